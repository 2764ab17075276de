"""Magnitude pruning: the smallest weights become zero."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from autoft.contracts import Row, Target, WeightPruner
from autoft.errors import ModelError
from autoft.space import Categorical, Float, SearchSpace

__all__ = ["MagnitudePruning"]


class MagnitudePruning(WeightPruner):
    """Zeroes the smallest weights of all linear layers of the body together (Han et al. 2015, arXiv 1506.02626).

    With a ``pattern`` as ``2:4`` the smallest two of each four weights in a row go instead, whatever ``sparsity`` says, as
    sparse matrix units of GPUs want it (Mishra et al. 2021, arXiv 2104.08378).

    The weights stay dense in memory and on disk: alone it makes a model neither smaller nor faster here. It shows how
    much a model can lose, and prepares for formats that store zeros in less space.
    """

    name = "magnitude-pruning"
    summary = "zeroes the smallest weights; alone neither smaller nor faster"
    space: ClassVar[SearchSpace] = {
        "sparsity": Float(0.05, 0.95, 0.3),
        "pattern": Categorical(("none", "2:4", "4:8")),
    }

    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return a copy of the model with weights of the body's linear layers set to zero.

        Raises:
            ModelError: the inputs of a layer cannot be parted as the pattern asks for.
        """
        import torch

        pruned = copy.deepcopy(model)
        body = getattr(pruned, pruned.base_model_prefix, pruned)
        layers = [module for module in body.modules() if type(module).__name__ in {"Linear", "Conv1D"}]
        if params["pattern"] != "none":
            for layer in layers:
                _apply_pattern(layer, str(params["pattern"]))
            return pruned
        weights = [layer.weight for layer in layers]
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


def _apply_pattern(layer: Any, pattern: str) -> None:
    """Zero the smallest n of each m weights of an output, in the order of its inputs."""
    import torch

    zeros, group = map(int, pattern.split(":"))
    # Conv1D of GPT-2 stores (inputs, outputs), Linear (outputs, inputs).
    conv = type(layer).__name__ == "Conv1D"
    rows = layer.weight.detach().T if conv else layer.weight.detach()
    if rows.shape[1] % group:
        raise ModelError(f"magnitude-pruning: {rows.shape[1]} inputs of a layer are no multiple of {group}")
    parts = rows.reshape(rows.shape[0], -1, group)
    smallest = parts.abs().topk(zeros, dim=-1, largest=False).indices
    kept = parts.scatter(-1, smallest, 0.0).reshape(rows.shape)
    with torch.no_grad():
        layer.weight.copy_(kept.T if conv else kept)
