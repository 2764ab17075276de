"""Weights in 16 bits: half of the size, with the range of 32 bits."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from autoft.contracts import ModelSource, PostTrainingQuantizer, Refusal, Row, State, Target
from autoft.strategies.reshaped import SHAPES, read_reshaped, write_shapes

__all__ = ["Bf16Weights"]


class Bf16Weights(PostTrainingQuantizer):
    """Stores and computes in bfloat16 (Kalamkar et al. 2019, arXiv:1905.12322): half of the size, hardly any loss.

    Faster only where the processor multiplies in this format; elsewhere, each product is computed in 32 bits. The files
    are those of a transformers model.
    """

    name: ClassVar[str] = "bf16-weights"
    summary: ClassVar[str] = "weights and products in bfloat16: half of the size"
    accepts: ClassVar[frozenset[State]] = frozenset({"dense", "sparse", "reshaped", "factorized"})

    def check(self, target: Target) -> Refusal | None:
        """Refuse processors that compute with bfloat16 in software only, many times slower."""
        if target.hardware.device == "cpu" and not target.hardware.bf16:
            return Refusal(f"{self.name}: this CPU has no instructions for bfloat16, and would be slower with it")
        return None

    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return a copy of the model in bfloat16."""
        import torch

        return copy.deepcopy(model).to(torch.bfloat16).eval()

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
            load_kwargs={"dtype": torch.bfloat16},
            trust_remote_code=target.source.trust_remote_code,
        )
        return target.task.load_model(source, target.context).to(target.context.device).eval()
