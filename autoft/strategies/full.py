"""Full fine-tuning: all weights are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Adapter, Reach, Target
from autoft.errors import ModelError
from autoft.space import Float, SearchSpace

if TYPE_CHECKING:
    import torch

__all__ = ["Full", "narrow_rate"]

PUBLISHED_WIDTH = 768
"""Of BERT-Base, for which learning rates are published."""
NARROW = 256
"""Models up to this wide get higher rates; a MiniLM, 384 wide, gained nothing by them."""
NARROWEST = 128
"""Of the narrowest model that rates were compared for; others are taken for that wide."""
_WIDTHS = ("hidden_size", "d_model", "dim", "n_embd")
"""What the width is called in a ``config.json``."""


class Full(Adapter):
    """Train every weight of the model.

    The range of the learning rate covers what is published for encoders: 2e-5 to 5e-5 for BERT (Devlin et al. 2019,
    arXiv:1810.04805, appendix A.3), 1e-5 to 3e-5 for RoBERTa (Liu et al. 2019, arXiv:1907.11692, appendix C), 1e-4 for
    ELECTRA-Base (Clark et al. 2020, arXiv:2003.10555, appendix B). Narrow models get higher ones (:meth:`rate_scale`).
    """

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "train all weights"
    reach: ClassVar[Reach] = "all"
    divisible: ClassVar[bool] = True
    space: ClassVar[SearchSpace] = {"learning_rate": Float(5e-6, 2e-4, default=5e-5, log=True)}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"learning_rate": 5e-5},
        {"learning_rate": 2e-5},
        {"learning_rate": 1e-4},
    )

    def rate_scale(self, target: Target) -> float:
        """Return how many times as high as for BERT-Base the rates of a narrow model are."""
        return narrow_rate(target.config)

    def attach(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> torch.nn.Module:
        """Return the model with all weights trainable, but for positions that the architecture computes.

        Raises:
            ModelError: it holds quantized weights, which have no gradient.
        """
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                raise ModelError(
                    f"full: {name} of {target.source.name} is stored as {parameter.dtype} and cannot be trained; "
                    "use an adapter as lora over a quantized base"
                )
            parameter.requires_grad_(not _is_fixed(model, name))
        return model

    def merge(
        self, model: torch.nn.Module, base: Callable[[], torch.nn.Module] | None, target: Target
    ) -> torch.nn.Module:
        """Return the model as it is: what was learned is in its own weights."""
        return model


def _is_fixed(model: torch.nn.Module, name: str) -> bool:
    """Say whether the architecture computes this weight, as sinusoidal positions, and never trains it."""
    module = model.get_submodule(name.rpartition(".")[0])
    config = getattr(model, "config", None)
    # DistilBERT says it with the first, XLM and FlauBERT with the second; Marian and Pegasus have a class of their own.
    sinusoidal = any(getattr(config, key, False) for key in ("sinusoidal_pos_embds", "sinusoidal_embeddings"))
    return "Sinusoidal" in type(module).__name__ or (sinusoidal and "position_embed" in name)


def narrow_rate(config: Mapping[str, Any]) -> float:
    """Return for a narrow model how many times narrower than BERT-Base it is, and 1 for others.

    With Adam the best learning rate of a body falls as one over the width (Yang et al. 2022, Tensor Programs V,
    arXiv:2203.03466, table 3). ELECTRA-Small, 256 wide, is published with 3e-4 where ELECTRA-Base has 1e-4 (Clark et al. 2020,
    arXiv:2003.10555, appendix B). Measured in ``docs/log.md``.

    Args:
        config: its ``config.json``.
    """
    width = next((config[key] for key in _WIDTHS if isinstance(config.get(key), int)), PUBLISHED_WIDTH)
    return PUBLISHED_WIDTH / max(NARROWEST, width) if width <= NARROW else 1.0
