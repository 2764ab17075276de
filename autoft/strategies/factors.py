"""A linear layer as the product of two smaller ones; imported only when a model is factorised or loaded."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Factors", "factorize", "rank_of"]


class Factors(nn.Sequential):
    """Two linear layers in the place of one: ``inputs @ first.T @ second.T + bias``.

    Args:
        inputs: width of what comes in.
        rank: width between the two.
        outputs: width of what goes out.
        bias: whether the second has one.
    """

    def __init__(self, inputs: int, rank: int, outputs: int, bias: bool) -> None:
        super().__init__(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=bias))
        self.widths = (inputs, rank, outputs)

    @property
    def weight(self) -> torch.Tensor:
        """What models see that look at a layer's weight for its type, as T5 does: the second factor's."""
        weight = self[1].weight
        assert isinstance(weight, torch.Tensor)
        return weight


def rank_of(inputs: int, outputs: int, keep: float) -> int | None:
    """Return the rank at which two factors have the share ``keep`` of the matrix's weights; None where they save nothing.

    A multiple of 8, as matrix kernels are made for, and at least 8.
    """
    rank = max(8, round(keep * inputs * outputs / (inputs + outputs) / 8) * 8)
    return rank if rank * (inputs + outputs) < inputs * outputs else None


def factorize(
    weight: torch.Tensor, rank: int, gram: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the two factors of a matrix whose product answers most like it, for inputs as they were seen.

    With inputs ``x`` and ``gram = sum(x xᵀ)`` this is the least ``sum |W x - second first x|²`` of all factors of the
    rank: with ``gram = L Lᵀ`` (Cholesky), the singular values of ``W L`` are what each direction adds to it, and the
    smallest are left out (Wang et al. 2024, SVD-LLM, arXiv:2403.07378, section 3.1). A gram matrix of few or dependent
    inputs has no inverse; a hundredth of its mean diagonal is added to it (Frantar et al. 2022, GPTQ, arXiv:2210.17323,
    section 3.3), so that directions that were never seen still count a little. Without inputs it is the plain SVD.

    Args:
        weight: ``(outputs, inputs)``.
        rank: of the product, at most the smaller of both.
        gram: of the inputs, ``(inputs, inputs)``.

    Returns:
        ``first (rank, inputs)`` and ``second (outputs, rank)``, of weights alike in size, and the singular values that
        were left out, from the largest on.
    """
    # Apple's GPUs have no numbers of 64 bits.
    matrix = weight.detach().to("cpu" if weight.device.type == "mps" else weight.device, torch.float64)
    root = torch.eye(matrix.shape[1], dtype=torch.float64, device=matrix.device)
    if gram is not None and float(gram.diagonal().mean()) > 0:
        gram = gram.to(matrix)
        root = torch.linalg.cholesky(gram + root * DAMPING * gram.diagonal().mean())
    left, values, right = torch.linalg.svd(matrix @ root, full_matrices=False)
    size = values[:rank].sqrt()
    # right @ root^-1, by solving: the inverse itself is never needed.
    first = torch.linalg.solve_triangular(root, size[:, None] * right[:rank], upper=False, left=False)
    second = left[:, :rank] * size
    return first.to(weight), second.to(weight), values[rank:]


DAMPING = 0.01
"""Share of the mean diagonal that is added to it."""
