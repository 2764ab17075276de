"""Averages of the weights over a training: exponential (EMA) and even (SWA). They are validated and shipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Regularizer, Target
from autoft.space import Float, SearchSpace

if TYPE_CHECKING:
    import torch

__all__ = ["Ema", "Swa"]


class Ema(Regularizer):
    """Exponential moving average of the trained weights, as of Polyak and Juditsky 1992.

    After step ``t`` the average becomes ``d * average + (1 - d) * weights`` with ``d = min(decay, (1 + t) / (10 + t))``,
    which TensorFlow's ``ExponentialMovingAverage`` does for short trainings. Costs a copy of what is trained.
    """

    name: ClassVar[str] = "ema"
    summary: ClassVar[str] = "ship the exponential moving average of the weights"
    space: ClassVar[SearchSpace] = {"decay": Float(0.9, 0.9999, default=0.99)}

    def prepare(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> Any:
        """Return the average so far, of no step."""
        return {"steps": 0, "weights": {}}

    def after_step(self, model: torch.nn.Module, params: Mapping[str, Any], state: Any, done: float) -> None:
        """Take the weights into the average."""
        state["steps"] += 1
        steps = state["steps"]
        decay = min(float(params["decay"]), (1 + steps) / (10 + steps))
        # The first weights are what there is to average.
        _mix(model, state["weights"], 1.0 if steps == 1 else 1 - decay)

    def averaged(self, model: torch.nn.Module, params: Mapping[str, Any], state: Any) -> Mapping[str, torch.Tensor]:
        """Return the average."""
        weights: Mapping[str, torch.Tensor] = state["weights"]
        return weights


class Swa(Regularizer):
    """Stochastic weight averaging: the even average of the weights after each late step.

    After Izmailov et al. 2018, arXiv:1803.05407. Averages from the share ``start`` of the training on; the paper begins at three quarters, and averages once an epoch
    at a constant or cyclic rate. Fine-tuning has few epochs, so that every step counts here, and the schedule stays what
    ``train.schedule`` says: ``constant`` is nearest to the paper.
    """

    name: ClassVar[str] = "swa"
    summary: ClassVar[str] = "ship the even average of the weights of the last steps"
    space: ClassVar[SearchSpace] = {"start": Float(0.0, 0.95, default=0.75)}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"start": 0.75},)

    def prepare(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> Any:
        """Return the average so far, of no step."""
        return {"steps": 0, "weights": {}}

    def after_step(self, model: torch.nn.Module, params: Mapping[str, Any], state: Any, done: float) -> None:
        """Take the weights into the average, where the training is that far."""
        if done > float(params["start"]):
            state["steps"] += 1
            _mix(model, state["weights"], 1 / state["steps"])

    def averaged(self, model: torch.nn.Module, params: Mapping[str, Any], state: Any) -> Mapping[str, torch.Tensor]:
        """Return the average; nothing before its start, so that the weights as they are get validated."""
        weights: Mapping[str, torch.Tensor] = state["weights"]
        return weights


def _mix(model: torch.nn.Module, average: dict[str, torch.Tensor], share: float) -> None:
    """Move the average by a share towards the trained weights of the model, in 32 bits."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            value = parameter.detach().float()
            if name in average:
                average[name].lerp_(value, share)
            else:
                average[name] = value.clone()
