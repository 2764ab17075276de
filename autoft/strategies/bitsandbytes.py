"""Quantized bases to train an adapter over: 8-bit and 4-bit weights, by the bitsandbytes library, on GPU and CPU."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Quantizer, Refusal, Target
from autoft.errors import ModelError
from autoft.space import Categorical, SearchSpace
from autoft.strategies.head_only import CONVOLUTIONAL, find_bodies

if TYPE_CHECKING:
    import torch

__all__ = ["BitsAndBytesBase", "Fp4Base", "Int8Base", "Nf4Base", "quiet"]

_HEAD_NAMES = ("classifier", "pre_classifier", "score", "qa_outputs", "lm_head", "pooler", "classification_head")


class BitsAndBytesBase(Quantizer):
    """What the 8-bit and the 4-bit base share.

    Only linear layers inside the repeated blocks of the body are quantized. The head, poolers and projections stay
    dense: they are trained, or made newly, and bitsandbytes can do neither.
    """

    def check(self, target: Target) -> Refusal | None:
        """Refuse where the library is missing or has no kernels, and models with nothing to quantize."""
        if importlib.util.find_spec("bitsandbytes") is None:
            return Refusal(f"{self.name}: needs bitsandbytes, which is not installed; pip install autoft[bitsandbytes]")
        if "mps" in (target.hardware.device, target.context.device):
            return Refusal(f"{self.name}: bitsandbytes does not train on Apple's mps; use a CPU or an NVIDIA GPU")
        model_type = target.config.get("model_type")
        if model_type in CONVOLUTIONAL:
            return Refusal(f"{self.name}: {model_type} has no linear layers outside its head to quantize")
        if target.config.get("quantization_config"):
            return Refusal(f"{self.name}: {target.source.name} is quantized already; use a checkpoint in 16 or 32 bits")
        return None

    def prepare(self, model: torch.nn.Module, target: Target) -> torch.nn.Module:
        """Return the loaded model with frozen quantized weights, float32 elsewhere, and layers that can train.

        Changes the model in place. Gradient checkpointing is left as it is.
        """
        from bitsandbytes.nn import Linear4bit, Linear8bitLt
        from peft import prepare_model_for_kbit_training

        quiet()
        for name, module in list(model.named_modules()):
            if not isinstance(module, Linear4bit | Linear8bitLt):
                continue
            if module.weight.is_floating_point():
                # Not in the checkpoint (cross-attention of a joined decoder ...), so never quantized: it cannot run.
                model.set_submodule(name, _plain(module, module.weight.data))
            elif isinstance(module, Linear4bit):
                # On CPUs with AVX512-bf16 the first evaluation repacks the weights for inference. From then on
                # gradients are exactly zero, without an error (bitsandbytes 0.50).
                module.support_avx512bf16_for_cpu = False
        prepared: torch.nn.Module = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        if target.context.device == "cpu":
            for tensor in (*prepared.parameters(), *prepared.buffers()):
                # A weight that is left as it was is mapped from its file, and the mapping holds all pages that were read
                # to quantize the others: more than the quantized weights take.
                if tensor.is_floating_point():
                    tensor.data = tensor.data.clone()
        return prepared

    def dequantize(self, model: torch.nn.Module, target: Target) -> torch.nn.Module:
        """Return the dense float32 model that the quantized weights stand for, ready to be saved.

        Changes the model in place. ``PreTrainedModel.dequantize`` is not used: it makes ``nn.Linear`` out of GPT-2's
        ``Conv1D``, whose files then load transposed, and casts weights to the checkpoint's precision.

        Raises:
            ModelError: an adapter is attached.
        """
        import bitsandbytes
        from bitsandbytes.nn import Linear4bit, Linear8bitLt

        if hasattr(model, "peft_config"):
            raise ModelError(
                f"{self.name}: dequantize the base of {target.source.name}, without the adapter, and merge into that"
            )
        for name, module in list(model.named_modules()):
            if not isinstance(module, Linear4bit | Linear8bitLt):
                continue
            if module.weight.is_floating_point():
                weight = module.weight.data  # not in the checkpoint, so never quantized
            elif isinstance(module, Linear4bit):
                state = module.weight.quant_state
                if getattr(state, "packing_format_for_cpu", False):
                    module.state_dict()  # puts weights that an evaluation repacked back into their usual order
                    state = module.weight.quant_state
                weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, state)
            else:
                # The scales move from the weight to the state with the first forward.
                stored = module.weight if module.state.SCB is None else module.state
                weight = bitsandbytes.functional.int8_vectorwise_dequant(stored.CB, stored.SCB)
            model.set_submodule(name, _plain(module, weight))
        _forget_quantization(model)
        return model.float().requires_grad_(True)


class Int8Base(BitsAndBytesBase):
    """8-bit weights, one scale a row, with outlier features of the activations in 16 bits.

    Method: LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339), with its outlier threshold of 6.0. On a CPU it needs
    about .35 of the memory of float32 weights, and 1.04 to 1.26 of the time a step.
    """

    name: ClassVar[str] = "int8"
    summary: ClassVar[str] = "8-bit base weights to train an adapter over (bitsandbytes)"

    def load_kwargs(self, target: Target, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``quantization_config`` and the device to load onto."""
        from transformers import BitsAndBytesConfig

        quiet()
        config = BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=6.0, llm_int8_skip_modules=_dense_modules(target)
        )
        return {"quantization_config": config, "device_map": {"": target.context.device}}


class Nf4Base(BitsAndBytesBase):
    """4-bit NormalFloat weights with doubly quantized scales: the base of QLoRA.

    Method: Dettmers et al. 2023 (arXiv:2305.14314), with its double quantization, which takes half a bit a weight less
    than plain scales. Computes in bfloat16 where the hardware does, else in float32. On a CPU with AVX512-bf16 it needs
    about .24 of the memory of float32 weights, and .76 of the time a step.
    """

    name: ClassVar[str] = "nf4"
    summary: ClassVar[str] = "4-bit base weights to train an adapter over, as QLoRA does (bitsandbytes)"
    space: ClassVar[SearchSpace] = {"double_quantization": Categorical((True, False))}

    def load_kwargs(self, target: Target, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``quantization_config`` and the device to load onto."""
        import torch
        from transformers import BitsAndBytesConfig

        quiet()
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.name,
            bnb_4bit_use_double_quant=params.get("double_quantization", True),
            bnb_4bit_compute_dtype=torch.bfloat16 if target.hardware.bf16 else torch.float32,
            llm_int8_skip_modules=_dense_modules(target),
        )
        return {"quantization_config": config, "device_map": {"": target.context.device}}


class Fp4Base(Nf4Base):
    """4-bit floating point weights, the other format of Dettmers et al. 2023 (arXiv:2305.14314).

    They found it behind NormalFloat everywhere (section 4): take it to compare.
    """

    name: ClassVar[str] = "fp4"
    summary: ClassVar[str] = "4-bit floating point base weights to train an adapter over (bitsandbytes)"


def quiet() -> None:
    """Silence the library."""
    # It tells every layer of every step that inputs are cast, and that an optional kernel package is absent.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _dense_modules(target: Target) -> list[str]:
    """Return patterns of the layers to leave dense: all linear layers outside the repeated blocks of the body."""
    import torch
    from torch import nn
    from transformers import AutoConfig
    from transformers.pytorch_utils import Conv1D

    config = AutoConfig.from_pretrained(target.source.path, **target.source.from_pretrained_kwargs())
    with torch.device("meta"):
        model, complete = _skeleton(config, target)
    bodies = find_bodies(model)
    blocks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(not body or name.startswith(f"{body}.") for body in bodies)
    ]
    # "$" makes the name match as a whole: transformers takes a bare name for a suffix too, so that a head called
    # "proj" would leave every "q_proj" dense.
    dense = [
        f"{re.escape(name)}$"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not any(name.startswith(f"{block}.") for block in blocks)
    ]
    return dense if complete else [*dense, *_HEAD_NAMES]


def _skeleton(config: Any, target: Target) -> tuple[Any, bool]:
    """Return the model without weights, and whether its head is the task's."""
    import transformers

    words = {"lm": "LM", "seq2seq": "Seq2Seq"}
    architecture = target.task.card.architecture
    name = "".join(words.get(word, word.capitalize()) for word in architecture.split("-"))
    auto = getattr(transformers, f"AutoModelFor{name}", None) or getattr(transformers, f"AutoModelFor{name}LM", None)
    options = {"trust_remote_code": target.source.trust_remote_code}
    if auto is not None and type(config) in auto._model_mapping:
        return auto.from_config(config, **options), True
    for known in config.architectures or ():
        if hasattr(transformers, known):
            return getattr(transformers, known)(config), False
    return transformers.AutoModel.from_config(config, **options), False


def _plain(module: Any, weight: torch.Tensor) -> torch.nn.Module:
    """Return a layer of the kind that the model had before it was quantized; ``weight`` is ``(out, in)``."""
    import torch
    from transformers.pytorch_utils import Conv1D

    # Conv1D keeps its weight as (in, out) and always has a bias.
    transposed = getattr(module, "source_cls", None) is Conv1D
    with torch.device("meta"):
        layer: Any = (
            Conv1D(module.out_features, module.in_features)
            if transposed
            else torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        )
    weight = weight.float()
    layer.weight = torch.nn.Parameter(weight.T.contiguous() if transposed else weight)
    if module.bias is not None:
        layer.bias = torch.nn.Parameter(module.bias.detach().float())
    plain: torch.nn.Module = layer.train(module.training)
    return plain


def _forget_quantization(model: torch.nn.Module) -> None:
    """Remove the marks by which transformers treats the model as quantized, when saving and when casting."""
    marks = ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit")
    for module in model.modules():
        for holder in (module, getattr(module, "config", None)):
            for mark in (*marks, "quantization_config", "_is_quantized"):
                if mark in getattr(holder, "__dict__", {}):
                    delattr(holder, mark)
