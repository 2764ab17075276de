"""Movement pruning: weights that training moves towards zero become zero."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from autoft.contracts import Refusal, Row, Target, WeightPruner
from autoft.errors import ModelError
from autoft.space import Categorical, Float, Int, SearchSpace
from autoft.strategies.head_only import CONVOLUTIONAL
from autoft.strategies.layer_pruning import layer_pairs
from autoft.strategies.linear_layers import body_layers, widths
from autoft.strategies.recovery import RECOVERY, recover

__all__ = ["MovementPruning", "sparsity_at"]

BEGIN, END = 0.1, 0.7
"""Shares of the training between which zeros come; before, scores find their order, and after, what is left settles."""


class MovementPruning(WeightPruner):
    """Zeroes the weights of linear layers that training moves towards zero (Sanh et al. 2020, arXiv:2005.07683).

    Each weight of the body's linear layers has a score, which is trained along: it falls where a step would bring the
    weight nearer to zero. Of each matrix those with the lowest scores are masked, more and more of them
    (:func:`sparsity_at`), and the rest goes on learning from the task and from the whole model. Scores begin with the
    magnitudes of their weights, and take the learning rate of the weights: the longer the training, the more the
    movement decides.

    With a ``pattern`` as ``2:4`` the lowest two of each four inputs go, whatever ``sparsity`` says (Mishra et al. 2021,
    arXiv:2104.08378). As with magnitude pruning, the model becomes neither smaller nor faster here; it keeps more of what
    it knew at a high sparsity, at the price of a training. The published 0.85 and 0.97 are the paper's.
    """

    name: ClassVar[str] = "movement-pruning"
    summary: ClassVar[str] = "zeroes weights that training moves towards zero; alone neither smaller nor faster"
    space: ClassVar[SearchSpace] = {
        "sparsity": Float(0.05, 0.97, 0.5),
        "pattern": Categorical(("none", "2:4", "4:8")),
        **RECOVERY,
        "epochs": Int(1, 100, default=5),
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"sparsity": 0.85}, {"sparsity": 0.97})

    def trains(self, params: Mapping[str, Any]) -> bool:
        """Say that it does: scores come from training."""
        return True

    def check(self, target: Target) -> Refusal | None:
        """Refuse bodies without linear layers."""
        model_type = target.config.get("model_type")
        if model_type in CONVOLUTIONAL:
            return Refusal(f"{self.name}: {model_type} computes with convolutions; use a model with linear layers")
        return None

    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return a trained copy of the model with zeros; by magnitude, where the target cannot train.

        Raises:
            ModelError: its body has no linear layers, or their inputs cannot be parted as the pattern asks for.
        """
        from torch.nn.utils import parametrize

        from autoft.strategies.scored_mask import ScoredMask

        pruned = copy.deepcopy(model)
        layers = list(body_layers(pruned).values())
        if not layers:
            raise ModelError(f"{self.name}: the body of {type(model).__name__} has no linear layers")
        pattern = str(params["pattern"])
        zeros, group = (0, 1) if pattern == "none" else map(int, pattern.split(":"))
        sparsity = zeros / group if zeros else float(params["sparsity"])
        pairs = layer_pairs(pruned, target)
        masks = []
        for layer in layers:
            if widths(layer)[0] % group:
                raise ModelError(f"{self.name}: {widths(layer)[0]} inputs of a layer are no multiple of {group}")
            mask = ScoredMask(layer.weight, sparsity, pattern, type(layer).__name__ == "Conv1D")
            parametrize.register_parametrization(layer, "weight", mask)
            masks.append(mask)

        def after_step(done: float) -> None:
            for mask in masks:
                mask.share = sparsity_at(done, sparsity)

        recover(pruned, target, params, pairs, after_step)
        pruned.eval()
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        return pruned


def sparsity_at(done: float, sparsity: float) -> float:
    """Return the share of zeros at a share of the training: none, then more and more slowly, then all (a cubic).

    The schedule of Zhu and Gupta 2017 (arXiv:1710.01878, equation 1), as Sanh et al. 2020 use it.
    """
    left = 1 - min(1.0, max(0.0, (done - BEGIN) / (END - BEGIN)))
    return sparsity * (1 - left**3)
