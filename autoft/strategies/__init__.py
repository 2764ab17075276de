"""The built-in strategies, a file each, through the same hooks that strangers use."""

from __future__ import annotations

from collections.abc import Sequence

from autoft.contracts import Strategy
from autoft.hookspecs import hookimpl
from autoft.strategies.augmentation import (
    CharacterNoise,
    RandomDeletion,
    RandomInsertion,
    RandomReplacement,
    RandomSwap,
)
from autoft.strategies.bitsandbytes import Fp4Base, Int8Base, Nf4Base
from autoft.strategies.dynamic_int8 import DynamicInt8
from autoft.strategies.full import Full
from autoft.strategies.head_only import HeadOnly
from autoft.strategies.lora import Dora, Lora
from autoft.strategies.magnitude_pruning import MagnitudePruning
from autoft.strategies.onnx import Onnx, OnnxInt8
from autoft.strategies.partial import BitFit, LayerNorm, TopLayers
from autoft.strategies.peft_tuners import (
    Adalora,
    Boft,
    Fourierft,
    Hra,
    Ia3,
    Loha,
    Lokr,
    Miss,
    Oft,
    Randlora,
    Shira,
    VbLora,
    Vera,
)

__all__ = ["autoft_strategies"]


@hookimpl
def autoft_strategies() -> Sequence[Strategy]:
    """Return one of each."""
    return (
        RandomInsertion(),
        RandomDeletion(),
        RandomSwap(),
        RandomReplacement(),
        CharacterNoise(),
        Int8Base(),
        Nf4Base(),
        Fp4Base(),
        Full(),
        HeadOnly(),
        TopLayers(),
        BitFit(),
        LayerNorm(),
        Lora(),
        Dora(),
        Adalora(),
        Boft(),
        Fourierft(),
        Hra(),
        Ia3(),
        Loha(),
        Lokr(),
        Miss(),
        Oft(),
        Randlora(),
        Shira(),
        VbLora(),
        Vera(),
        MagnitudePruning(),
        DynamicInt8(),
        Onnx(),
        OnnxInt8(),
    )
