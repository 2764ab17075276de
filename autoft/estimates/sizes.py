"""The size of a model's weights file, to the byte, from shapes and types: nothing is written.

A file of safetensors is eight bytes, a header in JSON, and the tensors one behind the other
(https://github.com/huggingface/safetensors, "Format"), so its size follows from their names, types and shapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["INEXACT", "adapter_bytes", "safetensors_bytes", "weights_bytes"]

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""By name of the tensor: its type as safetensors names it, and its shape."""

WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
"""Bytes of an element."""

ORDER = (
    "U64",
    "I64",
    "F64",
    "F32",
    "U32",
    "I32",
    "BF16",
    "F16",
    "U16",
    "I16",
    "F8_E4M3",
    "F8_E5M2",
    "I8",
    "U8",
    "BOOL",
)
"""Types from the widest on; within a file, tensors stand in this order, those of a type by name."""

ALIGNMENT = 8
"""The header is filled up with spaces to a multiple of it."""

INEXACT = {
    "onnx": "the graph's nodes and names stand beside the weights, and the exporter folds and renames some of them",
    "onnx-int8": "the graph's nodes stand beside the weights, and which of them are quantized is found in the graph",
}
"""Compressors whose files are no safetensors, and why their size is not computed."""


def safetensors_bytes(tensors: Shapes, metadata: Mapping[str, str] | None = None) -> int:
    """Return the size of a safetensors file.

    Args:
        tensors: what is in it.
        metadata: texts of its header, as ``{"format": "pt"}``.
    """
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = dict(metadata)
    place = 0
    for name, (kind, shape) in sorted(tensors.items(), key=lambda item: (ORDER.index(item[1][0]), item[0])):
        size = WIDTHS[kind] * prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-text // ALIGNMENT) * ALIGNMENT + place


def weights_bytes(model: torch.nn.Module, compression: str) -> int | None:
    """Return the size of ``model.safetensors`` of a trained model after a compression; None where it is not computed.

    Args:
        model: dense, on any device, the meta device too: only shapes, types and sharing are read.
        compression: ``none``, ``magnitude-pruning``, ``bf16-weights`` or ``dynamic-int8``. Zeros are stored like other
            weights, so pruning them away changes nothing.
    """
    if compression in {"none", "magnitude-pruning"}:
        return safetensors_bytes(_shapes(_written(model)), {"format": "pt"})
    if compression == "bf16-weights":
        return safetensors_bytes(_shapes(_written(model), floating="BF16"), {"format": "pt"})
    if compression == "dynamic-int8":
        return _int8_bytes(model)
    return None


def adapter_bytes(model: Any) -> int:
    """Return the size of ``adapter_model.safetensors`` that PEFT writes of a model with one of its adapters."""
    from peft import get_peft_model_state_dict

    state: Mapping[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return safetensors_bytes(_shapes(state), {"format": "pt"})


def _written(model: Any) -> dict[str, torch.Tensor]:
    """Return the tensors that ``save_pretrained`` writes: shared ones once, under the names of the checkpoint."""
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    state = dict(model.state_dict())
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        state.pop(name, None)
    written: dict[str, torch.Tensor] = revert_weight_conversion(
        model, remove_tied_weights_from_state_dict(state, model)
    )
    return written


def _shapes(tensors: Mapping[str, torch.Tensor], floating: str = "") -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        name: (floating if floating and tensor.is_floating_point() else _kind(tensor.dtype), tuple(tensor.shape))
        for name, tensor in tensors.items()
    }


def _kind(dtype: torch.dtype) -> str:
    """Return how safetensors names a type of torch."""
    words = str(dtype).removeprefix("torch.")
    if words in {"bfloat16", "bool"}:
        return {"bfloat16": "BF16", "bool": "BOOL"}[words]
    for begin, letter in (("float8_e4m3fn", "F8_E4M3"), ("float8_e5m2", "F8_E5M2")):
        if words == begin:
            return letter
    for begin, letter in (("float", "F"), ("uint", "U"), ("int", "I")):
        if words.startswith(begin):
            return letter + words.removeprefix(begin)
    raise ValueError(f"safetensors has no type for {words}")


def _int8_bytes(model: Any) -> int:
    """Return the size of the file that :meth:`autoft.strategies.dynamic_int8.DynamicInt8.save` writes."""
    from torch import nn

    from autoft.strategies.dynamic_int8 import TIED, int8_places

    shapes = _shapes(model.state_dict())
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for path, module in int8_places(model):
        transposed = not isinstance(module, nn.Linear | nn.Embedding)
        rows, columns = reversed(module.weight.shape) if transposed else module.weight.shape
        shapes.pop(f"{path}.weight", None)
        owner = first.setdefault(id(module.weight), path)
        if owner == path:
            shapes[f"{path}.weight_int8"] = "I8", (rows, columns)
            shapes[f"{path}.scale"] = "F32", (rows,)
        else:
            tied[path] = owner
        if getattr(module, "bias", None) is not None:
            shapes[f"{path}.bias"] = "F32", (rows,)
    return safetensors_bytes(shapes, {"format": "pt", TIED: json.dumps(tied)})
