"""Linear layers of transformers: their widths, and how they become narrower."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["keep_inputs", "keep_outputs", "widths"]


def widths(layer: Any) -> tuple[int, int]:
    """Return inputs and outputs of a linear layer, or of GPT-2's ``Conv1D``."""
    rows, columns = layer.weight.shape
    return (rows, columns) if type(layer).__name__ == "Conv1D" else (columns, rows)


def keep_outputs(layer: Any, kept: torch.Tensor) -> None:
    """Leave a linear layer, or a ``Conv1D``, these of its outputs."""
    conv = type(layer).__name__ == "Conv1D"
    _keep(layer, kept, 1 if conv else 0)
    if layer.bias is not None:
        layer.bias = type(layer.bias)(layer.bias.detach()[kept.to(layer.bias.device)])
    setattr(layer, "nf" if conv else "out_features", len(kept))


def keep_inputs(layer: Any, kept: torch.Tensor) -> None:
    """Leave a linear layer, or a ``Conv1D``, these of its inputs."""
    conv = type(layer).__name__ == "Conv1D"
    _keep(layer, kept, 0 if conv else 1)
    setattr(layer, "nx" if conv else "in_features", len(kept))


def _keep(layer: Any, kept: torch.Tensor, axis: int) -> None:
    weight = layer.weight.detach().index_select(axis, kept.to(layer.weight.device))
    # As it will be read from a file: in another order in memory, products round otherwise.
    layer.weight = type(layer.weight)(weight.contiguous())
