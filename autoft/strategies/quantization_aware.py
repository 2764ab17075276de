"""Training a model for the integers that it will be stored in, so that they cost it less."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

from autoft.contracts import Compressor, Refusal, Row, State, Target
from autoft.errors import ModelError
from autoft.space import Float, Int, SearchSpace
from autoft.strategies.first_token import first_token_traced
from autoft.strategies.recovery import RECOVERY, recover

__all__ = ["QuantizationAware"]


class QuantizationAware(Compressor):
    """Trains the model further while it computes with the rounded numbers of the step behind it, and rounds none itself.

    Quantization-aware training with a straight-through estimator (Jacob et al. 2018, arXiv:1712.05877). With ``teaching``
    above 0 the model learns from what it said before any number was rounded: quantization-aware distillation, as in
    LLM-QAT (Liu et al. 2023, arXiv:2305.17888), whose learning rate is the default; with 0, from the task's rows alone.
    """

    name: ClassVar[str] = "quantization-aware"
    summary: ClassVar[str] = "trains the model with the rounding of the quantizing step behind it"
    space: ClassVar[SearchSpace] = {
        **RECOVERY,
        "epochs": Int(0, 100, default=3),
        "learning_rate": Float(1e-6, 1e-2, default=2e-5, log=True),
    }
    reads_weight_format: ClassVar[bool] = True
    yields: ClassVar[State] = "dense"
    accepts: ClassVar[frozenset[State]] = frozenset({"dense"})

    def trains(self, params: Mapping[str, Any]) -> bool:
        """Say whether there are epochs to learn in."""
        return int(params["epochs"]) > 0

    def check(self, target: Target) -> Refusal | None:
        """Refuse a chain that does not quantize behind it."""
        if target.weight_format is None:
            return Refusal(
                f"{self.name}: no step behind it says how it quantizes; put one there, as {self.name}+onnx-int8"
            )
        return None

    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return a copy of the model, trained for the format of the step behind it where the target can train.

        Raises:
            ModelError: there is no such step.
        """
        from autoft.strategies.fake_quantization import fake_quantization

        form = target.weight_format
        if form is None:
            raise ModelError(f"{self.name}: no step behind it says how it quantizes")
        trained = copy.deepcopy(model)
        spec = target.task.export_inputs(target.context) if form.traced else None
        with first_token_traced(trained, spec) if spec else nullcontext(), fake_quantization(trained, form):
            recover(trained, target, params)
        return trained.eval()
