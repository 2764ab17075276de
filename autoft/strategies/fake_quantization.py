"""Models that compute with rounded numbers and learn in full precision; imported only when one is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from autoft.contracts import Rounding, WeightFormat
from autoft.strategies.head_only import find_bodies

__all__ = ["fake_quantization", "fake_quantized"]

SHARE = 0.01
"""Of each batch in fixed ranges: torch's ``MovingAverageMinMaxObserver`` has the same."""


def fake_quantized(values: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """Return what is left of numbers that are stored as integers and read again.

    The gradient is the straight-through estimator's (Bengio et al. 2013, arXiv:1308.3432): that of the numbers themselves,
    and zero where they were cut off. None goes to the scale.

    Args:
        values: ``(..., columns)`` in floating point; rows are the last dimension.
        rounding: how they are stored.
    """
    numbers = values.float()
    if rounding.group == "tensor":
        return _rounded(numbers, *_limits(numbers.detach()), rounding)
    rows = numbers.reshape(-1, numbers.shape[-1])
    if rounding.group == "row":
        return _in_groups(rows, rounding).view_as(numbers)
    # The last block of a row may be short; zeros lie within every range.
    columns = rows.shape[1]
    padded = nn.functional.pad(rows, (0, -columns % rounding.group))
    blocks = _in_groups(padded.reshape(-1, rounding.group), rounding)
    return blocks.view_as(padded)[:, :columns].reshape(numbers.shape)


@contextmanager
def fake_quantization(model: nn.Module, weight_format: WeightFormat) -> Iterator[None]:
    """Have a model compute as if it were quantized already, until the block ends; its weights stay what they are.

    Simulated quantization as in Jacob et al. 2018 (arXiv:1712.05877, section 3): weights are rounded in each forward pass,
    the range of activations is taken in each call, or is a moving average of those of the training's batches.

    Linear layers (GPT-2's ``Conv1D`` too) and plain embeddings are rounded. Embeddings with a forward of their own and
    products of activations with each other are not.

    Args:
        model: of transformers; changed in place.
        weight_format: how it will be quantized.
    """
    layers = [module for name, module in model.named_modules() if _covered(name, module, model, weight_format)]
    for layer in layers:
        rounded = _embedding if isinstance(layer, nn.Embedding) else _linear
        # On the instance: names of weights, which the training goes by, stay.
        layer.forward = rounded(layer, weight_format)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _covered(name: str, module: nn.Module, model: nn.Module, weight_format: WeightFormat) -> bool:
    if type(module) is nn.Embedding:
        if weight_format.embeddings is None:
            return False
    elif type(module) is not nn.Linear and type(module).__name__ != "Conv1D":
        return False
    if weight_format.heads:
        return True
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return module is output or any(not body or name.startswith(f"{body}.") for body in find_bodies(model))


def _embedding(layer: Any, weight_format: WeightFormat) -> Callable[[torch.Tensor], torch.Tensor]:
    plain, rounding = layer.forward, weight_format.embeddings
    assert rounding is not None

    def forward(ids: torch.Tensor) -> torch.Tensor:
        # Of a large table only the rows that are asked for are rounded, with the range of all where they share one.
        rows = plain(ids)
        if rounding.group == "tensor":
            return _rounded(rows.float(), *_limits(layer.weight.detach().float()), rounding)
        return fake_quantized(rows, rounding)

    return forward


def _linear(layer: Any, weight_format: WeightFormat) -> Callable[[torch.Tensor], torch.Tensor]:
    plain, inputs = layer.forward, _Inputs(layer, weight_format)
    transposed = type(layer).__name__ == "Conv1D"

    def forward(given: torch.Tensor) -> torch.Tensor:
        # Conv1D makes one matrix of whatever it is given.
        if not weight_format.pooled and layer.bias is not None and (transposed or given.dim() == 2):
            return plain(given)  # type: ignore[no-any-return]
        weight = fake_quantized(layer.weight.T if transposed else layer.weight, weight_format.matrices)
        return nn.functional.linear(inputs(given), weight, layer.bias)

    return forward


class _Inputs:
    """Rounds what a layer is given, and remembers its range where that is to be fixed."""

    def __init__(self, layer: nn.Module, weight_format: WeightFormat) -> None:
        self.layer, self.rounding, self.fixed = layer, weight_format.activations, weight_format.fixed_ranges
        self.known: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, given: torch.Tensor) -> torch.Tensor:
        if self.rounding is None:
            return given
        if not self.fixed:
            return fake_quantized(given, self.rounding)
        if self.known is None or self.layer.training:
            seen = _limits(given.detach().float())
            before = self.known or seen
            self.known = (torch.lerp(before[0], seen[0], SHARE), torch.lerp(before[1], seen[1], SHARE))
        return _rounded(given.float(), *self.known, self.rounding)


def _limits(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest and the largest, both ``()``."""
    smallest, largest = torch.aminmax(numbers)
    return smallest, largest


def _scale(least: torch.Tensor, most: torch.Tensor, rounding: Rounding) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scales and zeros of ranges, each of their shape."""
    least, most = least.clamp(max=0), most.clamp(min=0)
    if rounding.low == -rounding.high:
        scale = torch.maximum(-least, most) / rounding.high
        scale = torch.where(scale > 0, scale, 1.0)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    scale = (most - least) / (rounding.high - rounding.low)
    scale = torch.where(scale > 0, scale, 1.0)
    zero = torch.round(rounding.low - least / scale).clamp(rounding.low, rounding.high)
    return scale, zero.to(torch.int32)


def _rounded(numbers: torch.Tensor, least: torch.Tensor, most: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    scale, zero = _scale(least, most, rounding)
    return torch.fake_quantize_per_tensor_affine(numbers, scale, zero, rounding.low, rounding.high)


def _in_groups(rows: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """Return rows ``(groups, numbers)`` rounded, each with a scale of its own."""
    fixed = rows.detach()
    scale, zero = _scale(fixed.amin(1), fixed.amax(1), rounding)
    return torch.fake_quantize_per_channel_affine(rows, scale, zero, 0, rounding.low, rounding.high)
