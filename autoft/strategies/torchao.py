"""Weights in int8, int4 and float8 by the torchao library, to serve a trained model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from autoft.contracts import Refusal, Target
from autoft.hardware import has_int8_products
from autoft.space import Categorical, SearchSpace
from autoft.strategies.weight_quantization import REST, Layers, TransformersQuantized, patterns

__all__ = ["TorchaoFp8", "TorchaoInt4", "TorchaoInt8", "TorchaoInt8Dynamic"]

EMBEDDINGS = Categorical((True, False))
"""Whether embedding tables are stored in int8. Each call then computes the whole table in floating point, for a moment."""


class TorchaoQuantized(TransformersQuantized):
    """Linear layers in a format of torchao, and embedding tables in int8 with a scale for each row.

    Tables that are also output embeddings stay as they are. Weights are tensors of torchao's own classes, which
    transformers writes as plain safetensors.
    """

    library: ClassVar[str] = "torchao"
    space: ClassVar[SearchSpace] = {"embeddings": EMBEDDINGS, "rest": REST}

    @abstractmethod
    def linear(self, target: Target, params: Mapping[str, Any]) -> Any:
        """Return torchao's configuration for linear layers."""

    def quantization_config(self, layers: Layers, target: Target, params: Mapping[str, Any]) -> Any:
        """Return a ``TorchAoConfig`` that names the weights to quantize."""
        from torchao.quantization import FqnToConfig, Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        chosen = {_weights(layers.quantized, (*layers.dense, *layers.embeddings)): self.linear(target, params)}
        if params.get("embeddings", True) and layers.embeddings:
            table = _weights(layers.embeddings, (*layers.dense, *layers.quantized))
            chosen[table] = Int8WeightOnlyConfig(set_inductor_config=False)
        # An empty list, as None would leave tied embeddings and the last layer out whatever they are called.
        return TorchAoConfig(FqnToConfig(chosen), modules_to_not_convert=[])


class TorchaoInt8(TorchaoQuantized):
    """Int8 weights with a scale for each row; products in floating point.

    Symmetric, from the largest absolute value of a row (Jacob et al. 2018, arXiv:1712.05877, section 3). For size: on a
    CPU each call turns the weights into floating point again.
    """

    name: ClassVar[str] = "torchao-int8"
    summary: ClassVar[str] = "int8 linear layers and embeddings, products in floating point (torchao)"

    def linear(self, target: Target, params: Mapping[str, Any]) -> Any:
        """Return torchao's configuration for linear layers."""
        from torchao.quantization import Int8WeightOnlyConfig

        return Int8WeightOnlyConfig(set_inductor_config=False)


class TorchaoInt8Dynamic(TorchaoQuantized):
    """Int8 weights with a scale for each row, activations with one for each token, taken in each call.

    Products of int8, as in Yao et al. 2022 (ZeroQuant, arXiv:2206.01861, section 4.1). On CPUs that sum such products in
    16 bits only, both factors have 7 bits.
    """

    name: ClassVar[str] = "torchao-int8-dynamic"
    summary: ClassVar[str] = "int8 linear layers and embeddings, activations quantized on the fly (torchao)"
    workload: ClassVar[str] = "torch-int8"

    def linear(self, target: Target, params: Mapping[str, Any]) -> Any:
        """Return torchao's configuration for linear layers."""
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        narrow = target.context.device == "cpu" and not has_int8_products()
        return Int8DynamicActivationInt8WeightConfig(set_inductor_config=False, reduce_range=narrow)


class TorchaoInt4(TorchaoQuantized):
    """Int4 weights in groups that share a scale and a zero point; products and all else in bfloat16.

    Rounded to the nearest, with torchao's own defaults. The kernel of NVIDIA GPUs pads the inputs of each layer to a
    multiple of 1,024, so that narrow models gain less.
    """

    name: ClassVar[str] = "torchao-int4"
    summary: ClassVar[str] = "int4 linear layers in groups, int8 embeddings, for NVIDIA GPUs (torchao)"
    rest: ClassVar[str] = "bf16"
    space: ClassVar[SearchSpace] = {"group_size": Categorical((32, 64, 128, 256), 128), "embeddings": EMBEDDINGS}

    def check(self, target: Target) -> Refusal | None:
        """Refuse all but NVIDIA GPUs from Ampere on: torchao packs 4 bits for no other processor that torch knows."""
        return _older_than(8.0, self.name, target) or super().check(target)

    def linear(self, target: Target, params: Mapping[str, Any]) -> Any:
        """Return torchao's configuration for linear layers."""
        from torchao.quantization import Int4WeightOnlyConfig
        from torchao.quantization.quantize_.workflows import Int4PackingFormat

        return Int4WeightOnlyConfig(
            group_size=int(params.get("group_size", 128)),
            # The one format whose kernel is torch's own; the plain one needs a further package.
            int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D,
            set_inductor_config=False,
        )


class TorchaoFp8(TorchaoQuantized):
    """Float8 (e4m3) weights with a scale for each row, all else in bfloat16.

    Method: Micikevicius et al. 2022 (arXiv:2209.05433). Activations are quantized in each call, with a scale for each
    token, and products are those of float8; or only the weights are stored so.
    """

    name: ClassVar[str] = "torchao-fp8"
    summary: ClassVar[str] = "float8 linear layers, int8 embeddings, for NVIDIA GPUs from Ada on (torchao)"
    rest: ClassVar[str] = "bf16"
    # What the products of float8 on GPUs take.
    divisor: ClassVar[int] = 16
    space: ClassVar[SearchSpace] = {"activations": Categorical(("dynamic", "none")), "embeddings": EMBEDDINGS}

    def check(self, target: Target) -> Refusal | None:
        """Refuse all but GPUs that multiply float8: elsewhere int8 is as small and keeps more of a weight."""
        return _older_than(8.9, self.name, target) or super().check(target)

    def linear(self, target: Target, params: Mapping[str, Any]) -> Any:
        """Return torchao's configuration for linear layers."""
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, Float8WeightOnlyConfig, PerRow

        if params.get("activations", "dynamic") == "none":
            return Float8WeightOnlyConfig(set_inductor_config=False)
        return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)


def _weights(names: tuple[str, ...], others: tuple[str, ...]) -> str:
    """Return torchao's way to name the weights of some layers and of no others."""
    return rf"re:({'|'.join(patterns(names, others))})\.weight"


def _older_than(capability: float, name: str, target: Target) -> Refusal | None:
    gpus = target.hardware.gpus
    if target.context.device == "cuda" and gpus and all(gpu.capability >= capability for gpu in gpus):
        return None
    return Refusal(
        f"{name}: needs an NVIDIA GPU of compute capability {capability} or newer, and this search is for "
        f"{target.hardware}; use bnb-nf4, or torchao-int8"
    )
