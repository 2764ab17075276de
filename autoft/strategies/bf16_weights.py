"""Weights in 16 bits: half of the size, with the range of 32 bits or with more digits."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from autoft.contracts import ModelSource, PostTrainingQuantizer, Refusal, Row, State, Target
from autoft.errors import ModelError
from autoft.strategies.reshaped import SHAPES, read_reshaped, write_shapes

__all__ = ["Bf16Weights", "Fp16Weights"]


class Bf16Weights(PostTrainingQuantizer):
    """Stores and computes in bfloat16 (Kalamkar et al. 2019, arXiv:1905.12322): half of the size, hardly any loss.

    Faster only where the processor multiplies in this format; elsewhere, each product is computed in 32 bits. The files
    are those of a transformers model.
    """

    name: ClassVar[str] = "bf16-weights"
    summary: ClassVar[str] = "weights and products in bfloat16: half of the size"
    format: ClassVar[str] = "bfloat16"
    accepts: ClassVar[frozenset[State]] = frozenset({"dense", "sparse", "reshaped", "factorized"})

    def check(self, target: Target) -> Refusal | None:
        """Refuse processors that compute with bfloat16 in software only, many times slower."""
        if target.hardware.device == "cpu" and not target.hardware.bf16:
            return Refusal(f"{self.name}: this CPU has no instructions for bfloat16, and would be slower with it")
        return None

    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return a copy of the model in 16 bits.

        Raises:
            ModelError: a weight is larger than the format can hold.
        """
        import torch

        half = copy.deepcopy(model).to(getattr(torch, self.format)).eval()
        large = [name for name, weight in half.named_parameters() if not torch.isfinite(weight).all()]
        if large:
            raise ModelError(f"{self.name}: {large[0]} holds weights too large for {self.format}; use bf16-weights")
        return half

    def save(self, model: Any, folder: Path) -> None:
        """Write the model's files as transformers does, and ``shapes.json`` where its layers have other shapes."""
        model.save_pretrained(folder)
        write_shapes(model, folder)

    def load(self, folder: Path, target: Target) -> Any:
        """Return the model as it was stored."""
        import torch

        if (folder / SHAPES).is_file():
            return read_reshaped(folder).to(target.context.device).eval()
        source = ModelSource(
            name=target.source.name,
            path=str(folder),
            load_kwargs={"dtype": getattr(torch, self.format)},
            trust_remote_code=target.source.trust_remote_code,
            finished=True,
        )
        return target.task.load_model(source, target.context).to(target.context.device).eval()


class Fp16Weights(Bf16Weights):
    """Stores and computes in IEEE half precision: half of the size, with 11 digits where bfloat16 has 8.

    Weights only lose what 16 bits cannot hold (Micikevicius et al. 2018, arXiv:1710.03740); activations above 65,504
    overflow, as T5's do, whose second feed-forward layer transformers keeps in 32 bits for that.
    """

    name: ClassVar[str] = "fp16-weights"
    summary: ClassVar[str] = "weights and products in half precision: half of the size, for GPUs"
    format: ClassVar[str] = "float16"

    def check(self, target: Target) -> Refusal | None:
        """Refuse CPUs, which took 3 to 4.6 times as long with it as with 32 bits."""
        if "cpu" in (target.hardware.device, target.context.device):
            return Refusal(
                f"{self.name}: CPUs take several times as long in half precision; use bf16-weights, or a GPU"
            )
        return None
