"""Weights in 8 and 4 bits by the bitsandbytes library, to serve a trained model on GPU and CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from autoft.contracts import Target
from autoft.space import Categorical, SearchSpace
from autoft.strategies.bitsandbytes import quiet
from autoft.strategies.weight_quantization import REST, Layers, TransformersQuantized, patterns

__all__ = ["BnbFp4", "BnbInt8", "BnbNf4"]


class BnbInt8(TransformersQuantized):
    """8-bit weights, one scale a row, with outlier features of the activations in 16 bits.

    Method: LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339), with its outlier threshold of 6.0.
    """

    name: ClassVar[str] = "bnb-int8"
    summary: ClassVar[str] = "int8 linear layers, outliers in 16 bits (bitsandbytes, LLM.int8)"
    library: ClassVar[str] = "bitsandbytes"
    transposed: ClassVar[bool] = True

    def quantization_config(self, layers: Layers, target: Target, params: Mapping[str, Any]) -> Any:
        """Return a ``BitsAndBytesConfig``."""
        from transformers import BitsAndBytesConfig

        quiet()
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0, llm_int8_skip_modules=skipped(layers))

    def load(self, folder: Path, target: Target) -> Any:
        """Return the model as it was stored, on the context's device."""
        quiet()
        return super().load(folder, target)


class BnbNf4(BnbInt8):
    """4-bit NormalFloat weights in blocks of 64, by default with doubly quantized scales.

    Method: Dettmers et al. 2023 (arXiv:2305.14314). Computes in bfloat16 where the hardware does, else in float32.
    """

    name: ClassVar[str] = "bnb-nf4"
    summary: ClassVar[str] = "4-bit NormalFloat linear layers (bitsandbytes, QLoRA's format)"
    space: ClassVar[SearchSpace] = {"double_quantization": Categorical((True, False)), "rest": REST}
    # On CPUs with AVX512-bf16 bitsandbytes 0.50 repacks weights in whole blocks of 64 a row, and fails with others.
    divisor: ClassVar[int] = 64

    def quantization_config(self, layers: Layers, target: Target, params: Mapping[str, Any]) -> Any:
        """Return a ``BitsAndBytesConfig``."""
        import torch
        from transformers import BitsAndBytesConfig

        quiet()
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.name.removeprefix("bnb-"),
            bnb_4bit_use_double_quant=params.get("double_quantization", True),
            bnb_4bit_compute_dtype=torch.bfloat16 if target.hardware.bf16 else torch.float32,
            llm_int8_skip_modules=skipped(layers),
        )


class BnbFp4(BnbNf4):
    """4-bit floating point weights, the other format of Dettmers et al. 2023 (arXiv:2305.14314).

    They found it behind NormalFloat everywhere (section 4): take it to compare.
    """

    name: ClassVar[str] = "bnb-fp4"
    summary: ClassVar[str] = "4-bit floating point linear layers (bitsandbytes)"


def skipped(layers: Layers) -> list[str]:
    """Return patterns of the layers to leave dense, as ``llm_int8_skip_modules`` takes them."""
    # "$" makes a name match as a whole: transformers takes a bare name for the beginning of others too.
    return [f"{pattern}$" for pattern in patterns(layers.dense, layers.quantized)]
