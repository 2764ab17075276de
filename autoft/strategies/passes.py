"""What regularizers see and change of a forward pass: outputs, input embeddings, what goes into the classifier.

Everything is done with hooks inside of a ``with`` block, so that nothing is left on the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from autoft.contracts import Refusal, Target
from autoft.errors import ModelError
from autoft.pretrained import embeddings_of_inputs
from autoft.strategies.head_only import CONVOLUTIONAL

if TYPE_CHECKING:
    import torch

__all__ = [
    "IGNORED",
    "WRITING",
    "classes_only",
    "encodes_and_decodes",
    "input_embeddings",
    "judged_logits",
    "logits_seen",
    "reads_labels",
    "with_embeddings",
    "without_embeddings",
]

WRITING = frozenset({"causal-lm", "conditional-generation", "image-text-to-text", "masked-lm", "seq2seq", "seq2seq-lm"})
"""Architectures whose output layer says words, and is pretrained."""

IGNORED = -100
"""The label of positions that do not count."""


def reads_labels(target: Target) -> bool:
    """Say whether the task's labels are numbers of classes for the model's logits: of rows, of words, or of tokens."""
    card = target.task.card
    kinds = {column.kind for column in card.targets}
    # Captioning puts pictures' tokens in front of some models' texts.
    written = card.architecture in WRITING - {"image-text-to-text", "masked-lm"}
    classes = card.architecture in {"sequence-classification", "token-classification"}
    return written or (classes and bool(kinds & {"label", "labels", "tags"}))


def classes_only(name: str, target: Target, kinds: tuple[str, ...] = ("label", "labels")) -> Refusal | None:
    """Refuse all but classification of whole rows, and of texts: what these regularizers do has no meaning elsewhere."""
    card = target.task.card
    found = {column.kind for column in card.targets}
    texts = any(column.kind in {"text", "texts"} for column in card.inputs)
    if card.architecture == "sequence-classification" and found & set(kinds) and texts:
        return None
    return Refusal(f"{name}: needs a task that gives each text a label, as text-classification; {card.name} does not")


def without_embeddings(name: str, target: Target) -> Refusal | None:
    """Refuse models that begin with convolutions, where there are no embeddings to change."""
    model_type = target.config.get("model_type")
    if model_type in CONVOLUTIONAL - {"squeezebert"}:
        return Refusal(f"{name}: {model_type} has no input embeddings; use a transformer")
    return None


def input_embeddings(model: torch.nn.Module) -> torch.nn.Module:
    """Return the module that makes the input embeddings.

    Raises:
        ModelError: the model does not say which.
    """
    # The table that encoder and decoder share is a module of its own, which neither of them calls.
    whole: Any = model
    reader = whole.get_encoder() if encodes_and_decodes(model) and hasattr(whole, "get_encoder") else whole
    module = embeddings_of_inputs(reader)
    if module is None:
        raise ModelError(f"{type(model).__name__} does not say where its input embeddings are; use another regularizer")
    return module


@contextmanager
def with_embeddings(
    model: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[list[torch.Tensor]]:
    """Change the input embeddings of each forward pass inside of the block.

    Where a model embeds twice in a pass, as encoder-decoders that share the table do, the first time is changed, which
    is the source text's.

    Args:
        model: in which :func:`input_embeddings` are found.
        change: from embeddings ``(rows, seq, width)`` to what takes their place.

    Yields:
        a list that grows by what the module gives: the changed embeddings first, later ones as they are.
    """
    seen: list[torch.Tensor] = []

    def hook(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output if seen else change(output)
        seen.append(changed)
        return changed

    handle = input_embeddings(model).register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()
    if not seen:
        raise ModelError(f"{type(model).__name__} does not use its input embeddings; take another regularizer")


@contextmanager
def logits_seen(model: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the ``logits`` of each call of the model inside of the block."""
    seen: list[torch.Tensor] = []

    def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
        if logits is None:
            raise ModelError(f"{type(model).__name__} gives no logits; take another regularizer")
        seen.append(logits)

    handle = model.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def encodes_and_decodes(model: torch.nn.Module) -> bool:
    """Say whether a model reads with an encoder and writes with a decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def judged_logits(
    seen: list[torch.Tensor], model: torch.nn.Module, batch: Mapping[str, torch.Tensor], target: Target
) -> tuple[torch.Tensor, bool]:
    """Return the logits at places that have a label, of one computation of the loss.

    Args:
        seen: of each call of the model, which is called more than once for windows of long texts.
        model: that gave them.
        batch: with ``labels``.
        target: the task.

    Returns:
        ``(places, classes)`` in 32 bits, and whether each of the classes is a question with yes or no of its own.

    Raises:
        ModelError: the logits do not go with the labels.
    """
    import torch

    logits, labels = torch.cat(seen) if len(seen) > 1 else seen[0], batch["labels"]
    if target.task.card.architecture in WRITING and not encodes_and_decodes(model):
        # Each place says the token after it; of prompts, tasks may ask for the last logits only.
        logits = logits[:, :-1]
        labels = labels[:, -logits.shape[1] :]
    if labels.is_floating_point() and labels.shape == logits.shape:
        return logits.float(), True
    if labels.shape != logits.shape[:-1]:
        raise ModelError(
            f"{target.task.card.name} has labels {tuple(labels.shape)} for logits {tuple(logits.shape)}, which do not go "
            "together; take another regularizer"
        )
    return logits[labels != IGNORED].float(), False
