"""What tasks over models of transformers share: errors that say what to do, silence while loading, dropout by any name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from autoft.contracts import ModelSource
from autoft.errors import ModelError

__all__ = ["DROPOUTS", "loading", "set_dropout"]

DROPOUTS = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "classifier_dropout",
    "dropout",
    "dropout_rate",
    "embd_pdrop",
    "embedding_dropout",
    "hidden_dropout_prob",
    "mlp_dropout",
    "qa_dropout",
    "resid_pdrop",
    "seq_classif_dropout",
)
"""Names that configurations of transformers give to dropout."""


@contextlib.contextmanager
def loading(source: ModelSource, what: str = "the model") -> Iterator[None]:
    """Load in silence, and turn what libraries raise for missing and damaged files into an error that names the place.

    transformers reports each layer that the checkpoint lacks; the head of a base model is new by intent.

    Args:
        source: what is loaded.
        what: in words, as ``the tokenizer``.

    Raises:
        ModelError: it cannot be loaded.
    """
    import transformers

    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{source.path}: {what} cannot be loaded: {_first_line(error)}") from error
    except Exception as error:
        # safetensors raises its own error type for a cut or damaged file.
        if type(error).__module__.startswith("safetensors") or type(error).__name__ == "SafetensorError":
            raise ModelError(f"{source.path}: the weights are damaged: {_first_line(error)}") from error
        raise
    finally:
        transformers.logging.set_verbosity(level)


def set_dropout(config: Any, value: Any) -> None:
    """Set every kind of dropout that a configuration of transformers has; None leaves the checkpoint's own.

    Args:
        config: of the model, before it is built.
        value: ``context.params.get("train.dropout")``.
    """
    if value is None:
        return
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, value)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(":") if lines else type(error).__name__
