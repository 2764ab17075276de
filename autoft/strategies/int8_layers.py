"""Layers with int8 weights for torch on the CPU; imported only when a model is quantized or loaded."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from autoft.hardware import has_int8_products

__all__ = ["Int8Embedding", "Int8Linear", "is_quantizable", "quantize_rows", "quantized_copy"]


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 weights and the scale of each row: ``weight ≈ int8 * scale``.

    Args:
        weight: ``(rows, columns)`` in floating point.

    Returns:
        int8 ``(rows, columns)`` within ±127, and scales ``(rows,)``; a row of zeros has the scale 1.
    """
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.clamp(torch.round(weight / scale[:, None]), -127, 127).to(torch.int8), scale


class Int8Linear(nn.Module):
    """A linear layer with int8 weights; activations are quantized in each call, to 7 bits where 8 would overflow.

    Args:
        weight_int8: ``(out, in)``.
        scale: of each output, ``(out,)``.
        bias: ``(out,)`` or None.
    """

    def __init__(self, weight_int8: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_int8.shape
        self.weight_int8, self.scale, self.bias = weight_int8, scale, bias
        self.packed = _packed(weight_int8, scale, bias)
        # Decided where the model runs, not where it was made: a file may come to a CPU without wide sums.
        self.narrow = not has_int8_products()

    @property
    def weight(self) -> torch.Tensor:
        """What models see that look at a layer's weight for its type, as T5 does: int8 ``(out, in)``."""
        return self.weight_int8

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return ``inputs @ weight.T + bias``, ``(..., out)``."""
        return torch.ops.quantized.linear_dynamic(inputs.float(), self.packed, self.narrow)  # type: ignore[no-any-return]

    def stored(self) -> dict[str, torch.Tensor]:
        """Return what a file has to hold."""
        tensors = {"weight_int8": self.weight_int8, "scale": self.scale}
        return tensors if self.bias is None else {**tensors, "bias": self.bias}


class Int8Embedding(nn.Module):
    """An embedding table in int8; the rows that a batch asks for are turned into floating point.

    Args:
        weight_int8: ``(rows, width)``.
        scale: of each row, ``(rows,)``.
    """

    def __init__(self, weight_int8: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight_int8.shape
        self.weight_int8, self.scale = weight_int8, scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of these ids, ``(..., width)``."""
        return self.weight_int8[ids].float() * self.scale[ids].unsqueeze(-1)

    def stored(self) -> dict[str, torch.Tensor]:
        """Return what a file has to hold."""
        return {"weight_int8": self.weight_int8, "scale": self.scale}


def is_quantizable(module: nn.Module) -> bool:
    """Say whether a module is a linear layer, a GPT-2 ``Conv1D`` or an embedding."""
    return isinstance(module, nn.Embedding) or type(module) is nn.Linear or type(module).__name__ == "Conv1D"


def quantized_copy(
    module: nn.Module, known: dict[int, tuple[torch.Tensor, torch.Tensor]]
) -> Int8Linear | Int8Embedding:
    """Return the int8 layer of a linear layer, a GPT-2 ``Conv1D`` or an embedding.

    Args:
        module: one that :func:`is_quantizable` says yes to.
        known: int8 weights and scales by the id of the weight that they were made from. An output layer that shares its
            weight with the input embeddings finds theirs here.
    """
    kind = type(module).__name__
    assert isinstance(module.weight, torch.Tensor)
    key = id(module.weight)
    if key not in known:
        known[key] = quantize_rows(module.weight.T if kind == "Conv1D" else module.weight)
    if isinstance(module, nn.Embedding):
        return Int8Embedding(*known[key])
    bias = module.bias.detach().float().clone() if isinstance(module.bias, torch.Tensor) else None
    return Int8Linear(*known[key], bias)


def _packed(weight_int8: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> object:
    with warnings.catch_warnings():
        # Deprecated in favour of torchao, whose int8 kernels are slower than these at batch 1 on a CPU.
        warnings.simplefilter("ignore", UserWarning)
        quantized = torch._make_per_channel_quantized_tensor(
            weight_int8, scale.double(), torch.zeros(len(scale), dtype=torch.long), 0
        )
    return torch.ops.quantized.linear_prepack(quantized, bias)
