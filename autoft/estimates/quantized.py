"""Layers over quantized weights, as they are traced: the memory of bitsandbytes' layers, without its kernels.

Its weights are tensors of classes of its own, which cannot be fake ones. Imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from autoft.errors import ModelError
from autoft.contracts import Quantizer, Target

__all__ = ["quantized_skeleton", "trace_quantized"]

BLOCK = 64
"""Weights of four bits that share a scale; of nested scales, 256 share one of their own (Dettmers et al. 2023)."""
NESTED = 256
READ = "_is_hf_initialized"
"""The mark that transformers leaves on what it read from a checkpoint."""


def quantized_skeleton(
    model: torch.nn.Module, quantizer: Quantizer, target: Target, params: Mapping[str, Any]
) -> torch.nn.Module:
    """Return a dense model of the meta device with the quantizer's layers in place of those that it would quantize.

    Raises:
        ModelError: the quantizer is none of bitsandbytes, so that its layers are not known.
    """
    config = quantizer.load_kwargs(target, params).get("quantization_config")
    if type(config).__name__ != "BitsAndBytesConfig":
        # Becomes the reason of the verdict: such a configuration is for the probe, which takes real steps.
        raise ModelError(f"{quantizer.name} is no quantizer of bitsandbytes; its memory shows by real steps only")
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
    from transformers.quantizers import AutoHfQuantizer

    # What the checkpoint lacks is made newly, after the rest is quantized, and stays dense.
    read = {name for name, module in model.named_modules() if _is_read(getattr(module, "weight", None))}
    biases = {name for name, module in model.named_modules() if _is_read(getattr(module, "bias", None))}
    library = AutoHfQuantizer.from_config(config)
    library.preprocess_model(model=model, device_map={"": "cpu"})
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        if not isinstance(module, Linear4bit | Linear8bitLt):
            continue
        if name in biases:
            setattr(module.bias, READ, True)
        if name not in read:
            continue
        if isinstance(module, Linear4bit):
            settings = {"quant_type": weight.quant_type, "compress_statistics": weight.compress_statistics}
            packed = torch.empty(((weight.numel() + 1) // 2, 1), dtype=torch.uint8, device="meta")
            module.weight = Params4bit(packed, requires_grad=False, **settings)
        else:
            packed = torch.empty(weight.shape, dtype=torch.int8, device="meta")
            module.weight = Int8Params(packed, requires_grad=False, has_fp16_weights=False)
        setattr(module.weight, READ, True)
    library.postprocess_model(model)
    return quantizer.prepare(model, target)


def _is_read(tensor: object) -> bool:
    return hasattr(tensor, READ)


def trace_quantized(model: torch.nn.Module) -> None:
    """Have layers over quantized weights compute as bitsandbytes does, by operators that fake tensors know; in place."""
    if not any(type(module).__name__ in {"Linear4bit", "Linear8bitLt"} for module in model.modules()):
        return
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for module in model.modules():
        if not isinstance(module, Linear4bit | Linear8bitLt):
            continue
        # Their own attributes and methods look for what only a real weight has.
        weight, four = module.weight, isinstance(module, Linear4bit)
        count = module.out_features * module.in_features
        if not four:
            scales = [(module.out_features, torch.float32)]
        elif weight.compress_statistics:
            blocks = -(-count // BLOCK)
            scales = [(blocks, torch.uint8), (-(-blocks // NESTED), torch.float32), (NESTED, torch.float32)]
        else:
            scales = [(-(-count // BLOCK), torch.float32)]
        module.__class__ = _Traced
        module.dtype = getattr(module, "compute_dtype", None) if four else None
        module.keeps_inputs = not four
        module.weight = torch.nn.Parameter(torch.empty_like(weight.data, device="meta"), requires_grad=False)
        for number, (size, dtype) in enumerate(scales):
            module.register_buffer(f"scale_{number}", torch.empty(size, dtype=dtype, device="meta"))


class _Traced(torch.nn.Module):
    """A linear layer whose weight is made dense for each product, and made again for the gradient."""

    out_features: int
    in_features: int
    bias: torch.nn.Parameter | None
    weight: torch.nn.Parameter
    dtype: torch.dtype | None
    keeps_inputs: bool

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return ``(..., out)``."""
        given = inputs if self.dtype is None else inputs.to(self.dtype)
        bias = None if self.bias is None else self.bias.to(given.dtype)
        shape = self.out_features, self.in_features
        result: torch.Tensor = _Product.apply(  # type: ignore[no-untyped-call]  # torch has no types here
            given, self.weight, shape, bias, self.keeps_inputs
        )
        return result.to(inputs.dtype)


class _Product(torch.autograd.Function):
    """``MatMul4Bit`` and ``MatMul8bitFp`` of bitsandbytes; the latter keeps its inputs, of which it only needs the shape."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        shape: tuple[int, int],
        bias: torch.Tensor | None,
        keeps_inputs: bool,
    ) -> torch.Tensor:
        ctx.shape, ctx.rows = shape, inputs.shape[:-1]
        ctx.has_bias = bias is not None
        if keeps_inputs:
            ctx.inputs = inputs
        return functional.linear(inputs, torch.empty(shape, dtype=inputs.dtype, device=inputs.device), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Four bits become what the weights were before, 32-bit numbers, and these what the products are computed in.
        dense = torch.empty(ctx.shape, dtype=torch.float32, device=gradient.device).to(gradient.dtype)
        rows = gradient.reshape(prod(ctx.rows), ctx.shape[0])
        for_bias = rows.sum(0) if ctx.has_bias and ctx.needs_input_grad[3] else None
        for_inputs = torch.matmul(rows, dense).view(*ctx.rows, ctx.shape[1]) if ctx.needs_input_grad[0] else None
        return for_inputs, None, None, for_bias, None
