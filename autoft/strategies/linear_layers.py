"""Linear layers of transformers: which a body has, their widths, and how they become narrower."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoft.strategies.head_only import find_bodies

if TYPE_CHECKING:
    import torch

__all__ = ["body_layers", "keep_inputs", "keep_outputs", "widths"]


def body_layers(model: torch.nn.Module) -> dict[str, Any]:
    """Return the linear layers of a transformers model's bodies, by name, those that say words left out."""
    from torch import nn

    bodies = find_bodies(model)
    modules: dict[str, Any] = dict(model.named_modules())
    tables = {id(module.weight) for module in modules.values() if isinstance(module, nn.Embedding)}
    outputs = {
        id(module.get_output_embeddings()) for module in modules.values() if hasattr(module, "get_output_embeddings")
    }
    return {
        name: module
        for name, module in modules.items()
        if type(module).__name__ in {"Linear", "Conv1D"}
        and any(not body or name.startswith(f"{body}.") for body in bodies)
        and id(module) not in outputs
        and id(module.weight) not in tables
    }


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
