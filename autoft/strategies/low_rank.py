"""Low-rank factorisation: linear layers become two smaller ones, and what is left is trained again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Refusal, Row, State, Target
from autoft.errors import ModelError
from autoft.space import Float, SearchSpace
from autoft.strategies.head_only import CONVOLUTIONAL
from autoft.strategies.layer_pruning import Recovered, layer_pairs
from autoft.strategies.linear_layers import body_layers, widths
from autoft.strategies.recovery import RECOVERY
from autoft.strategies.reshaped import ReshapedFiles, check_class

if TYPE_CHECKING:
    import torch

__all__ = ["LowRank"]

BATCH = 16
"""Calibration rows a pass."""


class LowRank(ReshapedFiles, Recovered):
    """Factorises the linear layers of the body, so that each has the share ``keep`` of its weights, and trains them.

    Which directions of a layer go is decided by what its inputs are on calibration rows, padding left out (Wang et al.
    2024, SVD-LLM, arXiv:2403.07378): not the smallest singular values of the weights, but those that move its outputs
    least. A layer that would not become smaller stays as it is; embeddings and heads do too. The published share of 0.8
    is that of the paper's comparisons, without any training.
    """

    name: ClassVar[str] = "low-rank"
    summary: ClassVar[str] = "factorises linear layers by an SVD of what they do to calibration rows, and trains them"
    space: ClassVar[SearchSpace] = {"keep": Float(0.05, 0.95, default=0.5), **RECOVERY}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"keep": 0.8, "epochs": 0},)
    accepts: ClassVar[frozenset[State]] = frozenset({"dense", "reshaped"})
    yields: ClassVar[State] = "factorized"

    def check(self, target: Target) -> Refusal | None:
        """Refuse bodies without linear layers."""
        model_type = target.config.get("model_type")
        if model_type in CONVOLUTIONAL:
            return Refusal(f"{self.name}: {model_type} computes with convolutions; use a model with linear layers")
        return None

    def prune(
        self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]
    ) -> tuple[Any, Sequence[tuple[str, str]]]:
        """Return the model with factors in the place of linear layers.

        Raises:
            ModelError: no layer would become smaller, or the model is of a class that transformers does not have.
        """
        import torch

        from autoft.strategies.factors import Factors, factorize, rank_of

        check_class(model, self.name)
        ranks = {name: rank_of(*widths(layer), float(params["keep"])) for name, layer in body_layers(model).items()}
        wanted = {name: rank for name, rank in ranks.items() if rank is not None}
        if not wanted:
            raise ModelError(
                f"{self.name}: no linear layer of {target.source.name} would become smaller at "
                f"keep={float(params['keep']):g}; lower it, or use a wider model"
            )
        grams = _grams(model, list(wanted), target, rows)
        for name, rank in wanted.items():
            layer: Any = model.get_submodule(name)
            conv = type(layer).__name__ == "Conv1D"
            inputs, outputs = widths(layer)
            factors: Any = Factors(inputs, rank, outputs, bias=layer.bias is not None).to(layer.weight)
            first, second, _ = factorize(layer.weight.T if conv else layer.weight, rank, grams.get(name))
            with torch.no_grad():
                factors[0].weight.copy_(first)
                factors[1].weight.copy_(second)
                if layer.bias is not None:
                    factors[1].bias.copy_(layer.bias)
            model.set_submodule(name, factors)
        return model, layer_pairs(model, target)


def _grams(model: Any, names: Sequence[str], target: Target, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Return the sum of ``x xᵀ`` over what comes into each layer, ``(inputs, inputs)``."""
    import torch

    task, context = target.task, target.context
    device = next(model.parameters()).device
    model.eval()
    with _gathered(model, names) as gathered, torch.no_grad():
        features = task.encode(rows, context) if rows else []
        for start in range(0, len(features), BATCH):
            batch = task.collate(features[start : start + BATCH], context)
            batch = {name: value.to(device) for name, value in batch.items()}
            gathered.mask = batch.get("attention_mask")
            task.loss(model, batch, context)
    return gathered.sums


class _Gathered:
    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.mask: torch.Tensor | None = None
        """Which positions of a batch are real tokens."""

    def add(self, name: str, inputs: torch.Tensor) -> None:
        fits = self.mask is not None and inputs.dim() == 3 and inputs.shape[:2] == self.mask.shape
        seen = inputs[self.mask.bool()] if fits and self.mask is not None else inputs.flatten(0, -2)
        gram = seen.float().T @ seen.float()
        self.sums[name] = self.sums[name] + gram if name in self.sums else gram


@contextmanager
def _gathered(model: Any, names: Sequence[str]) -> Iterator[_Gathered]:
    """Sum up what comes into layers, until the block ends."""
    gathered = _Gathered()

    def watch(name: str) -> Any:
        return model.get_submodule(name).register_forward_pre_hook(
            lambda module, given: gathered.add(name, given[0].detach())
        )

    handles = [watch(name) for name in names]
    try:
        yield gathered
    finally:
        for handle in handles:
            handle.remove()
