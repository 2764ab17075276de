"""A mask over a weight that is learned with it; imported only when a model is pruned by movement."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["ScoredMask"]


class ScoredMask(nn.Module):
    """Zeroes the weights with the lowest scores, as a parametrization of torch; gradients pass the mask straight on.

    With the masked weight ``W' = W * mask(S)`` the weight gets ``dL/dW' * mask`` and the scores get ``dL/dW' * W``:
    those of weights that move away from zero rise, masked ones too (Sanh et al. 2020, arXiv:2005.07683, section 4).
    They begin with the magnitudes, not with zero as in the paper: a training of many steps moves scores by far more than
    that, and in one of few it is still magnitudes that decide, where an order of noise would ruin the model.

    In evaluation the share of zeros is always the final one, so that a validation judges what would be left.

    Args:
        weight: of a linear layer, ``(outputs, inputs)``; of a ``Conv1D``, ``(inputs, outputs)``.
        sparsity: share of zeros at the end.
        pattern: ``none``, or ``n:m`` for n zeros in each m inputs of an output.
        transposed: of a ``Conv1D``.
    """

    def __init__(self, weight: torch.Tensor, sparsity: float, pattern: str, transposed: bool) -> None:
        super().__init__()
        self.scores = nn.Parameter(weight.detach().abs())
        self.sparsity, self.transposed = sparsity, transposed
        self.pattern = (0, 0) if pattern == "none" else tuple(map(int, pattern.split(":")))
        self.share = 0.0
        """Of zeros in training, now."""
        self.known: tuple[Any, torch.Tensor] = (None, torch.empty(0))
        """The last mask, and what it was made for."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight with zeros."""
        share = self.share if self.training else self.sparsity
        # A validation asks for the same mask in each batch.
        key = (share, self.scores._version, self.scores.device)
        if self.known[0] != key:
            self.known = (key, self.mask(share))
        mask = self.known[1]
        passed: torch.Tensor = _StraightThrough.apply(self.scores, mask)  # type: ignore[no-untyped-call]
        return weight * passed

    # A mask that is made in a validation is used again in training, which takes no tensors of the inference mode.
    @torch.inference_mode(False)
    @torch.no_grad()
    def mask(self, share: float) -> torch.Tensor:
        """Return 0 for the share of weights that goes, and 1 for the others.

        With a pattern only weights that it would zero go, the lowest first, until all of them have gone.
        """
        scores = self.scores.detach()
        count = round(share * scores.numel())
        if self.pattern[1]:
            zeros, group = self.pattern
            rows = (scores.T if self.transposed else scores).contiguous()
            parts = rows.view(len(rows), -1, group)
            places = parts.topk(zeros, dim=-1, largest=False).indices
            going = torch.full_like(parts, torch.inf).scatter(-1, places, parts.gather(-1, places)).view_as(rows)
            scores = going.T if self.transposed else going
            count = min(count, int(scores.isfinite().sum()))
        mask = torch.ones(scores.numel(), dtype=scores.dtype, device=scores.device)
        mask[_lowest(scores.flatten(), count)] = 0
        return mask.view_as(self.scores)


def _lowest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Return the places of the lowest values, in no order."""
    if count and values.device.type == "cpu":
        # Several times as fast as topk of torch: on a CPU the masks of a step would take longer than the step.
        return torch.from_numpy(np.argpartition(values.float().numpy(), count - 1)[:count])
    return values.topk(count, largest=False, sorted=False).indices


class _StraightThrough(torch.autograd.Function):
    """The mask on the way there; on the way back, as if the scores themselves had been multiplied with."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return mask

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None
