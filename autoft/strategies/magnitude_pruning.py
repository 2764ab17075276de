"""Magnitude pruning: the smallest weights become zero."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from autoft.contracts import Row, Target, WeightPruner
from autoft.space import Float

__all__ = ["MagnitudePruning"]


class MagnitudePruning(WeightPruner):
    """Zeroes the smallest weights of all linear layers of the body together (Han et al. 2015, arXiv 1506.02626).

    The weights stay dense in memory and on disk: alone it makes a model neither smaller nor faster here. It shows how
    much a model can lose, and prepares for formats that store zeros in less space.
    """

    name = "magnitude-pruning"
    summary = "zeroes the smallest weights; alone neither smaller nor faster"
    space = {"sparsity": Float(0.05, 0.95, 0.3)}  # noqa: RUF012 - as the contract declares it

    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return a copy of the model with the share ``sparsity`` of the body's linear weights set to zero."""
        import torch

        pruned = copy.deepcopy(model)
        body = getattr(pruned, pruned.base_model_prefix, pruned)
        weights = [module.weight for module in body.modules() if type(module).__name__ in {"Linear", "Conv1D"}]
        sizes = torch.cat([weight.detach().abs().flatten() for weight in weights])
        count = round(float(params["sparsity"]) * sizes.numel())
        if count:
            # The positions of the smallest, not a threshold: ties must not prune more than was asked.
            smallest = torch.zeros_like(sizes, dtype=torch.bool)
            smallest[torch.argsort(sizes)[:count]] = True
            with torch.no_grad():
                for weight, mask in zip(weights, torch.split(smallest, [w.numel() for w in weights]), strict=True):
                    weight.masked_fill_(mask.view_as(weight), 0.0)
        return pruned
