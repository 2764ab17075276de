"""The losses of tasks with class labels, one function for all of them.

Imported by tasks; torch is loaded when a loss is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["BETA", "GAMMA", "LOSSES", "balanced_weights", "binary_loss", "classification_loss", "effective_weights"]

LOSSES = ("cross-entropy", "focal", "class-balanced")
"""The values of ``train.loss``."""

GAMMA = 2.0
"""How strongly the focal loss turns away from rows that are right already (Lin et al. 2017: 2 works best)."""

BETA = 0.999
"""Of the class-balanced loss; Cui et al. 2019 try 0.9, 0.99, 0.999 and 0.9999."""


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Return a weight for each class, inverse to how often it comes: ``rows / (classes * count)``.

    As scikit-learn's ``compute_class_weight("balanced")``, after King and Zeng 2001.
    """
    return [sum(counts) / (len(counts) * count) for count in counts]


def effective_weights(counts: Sequence[int], beta: float = BETA) -> list[float]:
    """Return a weight for each class, inverse to its effective number of rows ``(1 - beta^n) / (1 - beta)``.

    Scaled to a mean of 1 (Cui et al. 2019, arXiv:1901.05555, section 3).
    """
    # A class that no training row has counts as one that a single row has.
    inverse = [(1 - beta) / (1 - beta ** max(count, 1)) for count in counts]
    return [len(inverse) * weight / sum(inverse) for weight in inverse]


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    params: Mapping[str, Any],
    counts: Sequence[int],
    *,
    ignore_index: int = -100,
    gamma: float = GAMMA,
    beta: float = BETA,
) -> torch.Tensor:
    """Return the mean loss over rows with one label each.

    Args:
        logits: ``(n, classes)`` in floating point.
        labels: ``(n,)``, the number of the class, or ``ignore_index``.
        params: a trial's parameters, of which these are read: ``train.loss``, ``cross-entropy``, ``focal``
            (``(1 - p)^gamma * -log p`` of the probability ``p`` of the true class; Lin et al. 2017, arXiv:1708.02002,
            equation 4) or ``class-balanced`` (cross-entropy weighted by :func:`effective_weights`);
            ``train.class_weights``, ``balanced`` weights classes by :func:`balanced_weights`, beside what the loss does;
            ``train.label_smoothing``, mixes each label with the uniform distribution (Szegedy et al. 2016,
            arXiv:1512.00567, section 7).
        counts: how often each class comes in the training rows, ``(classes,)``, each above 0.
        ignore_index: of positions that do not count.
        gamma: of the focal loss.
        beta: of the class-balanced loss.

    Returns:
        a scalar. Weights have the mean 1 over the training rows, and what they weigh is divided by the number of rows: torch's
        ``cross_entropy`` divides by the weights of the batch, and in one of a single row, as where memory is short, nothing is left of them.

    Raises:
        ValueError: ``train.loss`` is none of :data:`LOSSES`.
    """
    import torch
    from torch.nn import functional

    loss, smoothing = _loss(params), float(params.get("train.label_smoothing") or 0.0)
    numbers = torch.tensor(list(counts), dtype=torch.float32, device=logits.device)
    weights: torch.Tensor | None = None
    if params.get("train.class_weights") == "balanced":
        weights = numbers.sum() / (len(numbers) * numbers)
    if loss == "class-balanced":
        effective = torch.tensor(effective_weights(counts, beta), device=logits.device)
        weights = effective if weights is None else weights * effective
    if weights is not None:
        weights = (weights * (numbers.sum() / (numbers * weights).sum())).to(logits.dtype)
    kept = labels != ignore_index
    logits, labels = logits[kept], labels[kept]
    entropy = functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing, reduction="none")
    if loss != "focal":
        return entropy.mean()
    own = functional.log_softmax(logits, dim=-1).gather(1, labels[:, None])[:, 0]
    return ((1 - own.exp()).pow(gamma) * entropy).mean()


def binary_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    params: Mapping[str, Any],
    counts: Sequence[int],
    rows: int,
    *,
    gamma: float = GAMMA,
    beta: float = BETA,
) -> torch.Tensor:
    """Return the mean loss over rows with any number of labels, each a question with the answer yes or no.

    Args:
        logits: ``(n, labels)`` in floating point.
        labels: ``(n, labels)``, 1.0 where a row has the label, else 0.0.
        params: as for :func:`classification_loss`; ``balanced`` multiplies the loss of a yes by ``no / yes`` of the
            label's training rows. ``focal`` and ``class-balanced`` take each label as two classes.
        counts: how many training rows have each label, ``(labels,)``, each above 0.
        rows: how many training rows there are.
        gamma: of the focal loss.
        beta: of the class-balanced loss.

    Returns:
        a scalar, the mean over rows and labels.

    Raises:
        ValueError: ``train.loss`` is none of :data:`LOSSES`.
    """
    import torch
    from torch.nn import functional

    loss, smoothing = _loss(params), float(params.get("train.label_smoothing") or 0.0)
    numbers = torch.tensor(list(counts), device=logits.device)
    balanced = params.get("train.class_weights") == "balanced"
    weights = ((rows - numbers).clamp(min=1) / numbers) if balanced else None
    smooth = labels * (1 - smoothing) + smoothing / 2
    if loss == "cross-entropy":
        return functional.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weights)
    entropy = functional.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weights, reduction="none")
    if loss == "focal":
        wrong = (labels - logits.sigmoid()).abs()
        return (wrong.pow(gamma) * entropy).mean()
    # A label that all rows have would leave no row for its no.
    pairs = [effective_weights((max(rows - count, 1), count), beta) for count in counts]
    no, yes = torch.tensor(pairs, dtype=logits.dtype, device=logits.device).unbind(1)
    return (torch.where(labels > 0.5, yes, no) * entropy).mean()


def _loss(params: Mapping[str, Any]) -> str:
    loss = str(params.get("train.loss") or LOSSES[0])
    if loss not in LOSSES:
        raise ValueError(f"train.loss has to be one of {', '.join(LOSSES)}, given {loss!r}")
    return loss
