"""Calibration and selective prediction in numpy: bins, temperature, risk and coverage, thresholds.

A confidence is the chance, 0 to 1, that the model gives to its answer; the quality of an answer is 1 where it is right
and 0 where it is not, or a share between where answers are more or less right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "ABSTAIN_ALWAYS",
    "BINS",
    "accuracy_at",
    "area_under_risk_coverage",
    "bins_of",
    "calibration_error",
    "covering_threshold",
    "fit_scale",
    "fit_temperature",
    "reliability",
    "risk_coverage",
    "risky_threshold",
    "scaled",
    "tempered",
]

Floats = npt.NDArray[np.float64]

BINS = 15
"""Equal-width bins of the expected calibration error, as in Guo et al. 2017."""

ABSTAIN_ALWAYS = math.nextafter(1.0, 2.0)
"""A threshold that no confidence reaches."""

TEMPERATURES = (0.25, 10.0)
"""Bounds of the temperature: validation rows without a single error would make every answer a certainty."""

SLOPES = (0.01, 10.0)
_TINY = float(np.finfo(np.float64).tiny)


# ------------------------------------------------------------------------------------------------- calibration


def bins_of(confidence: Floats, bins: int = BINS) -> npt.NDArray[np.int64]:
    """Return the bin of each confidence, ``(rows,)``: bin ``i`` is ``(i / bins, (i + 1) / bins]``, the first holds 0."""
    edges = np.arange(1, bins) / bins
    return np.searchsorted(edges, confidence, side="left").astype(np.int64)


def calibration_error(confidence: Floats, quality: Floats, counts: Floats, bins: int = BINS) -> Floats:
    """Return the expected calibration error (Guo et al. 2017, equation 3) of each resample, ``(resamples,)``.

    Args:
        confidence: of each answer, ``(rows,)``.
        quality: of each answer, ``(rows,)``.
        counts: how often each resample draws each row, ``(resamples, rows)``.
        bins: how many, of equal width.
    """
    gap = np.zeros((len(confidence), bins))
    gap[np.arange(len(confidence)), bins_of(confidence, bins)] = quality - confidence
    return np.asarray(np.abs(counts @ gap).sum(1) / counts.sum(1))


def reliability(confidence: Floats, quality: Floats, bins: int = BINS) -> tuple[Floats, Floats]:
    """Return mean confidence and mean quality of each bin that holds an answer."""
    place = bins_of(confidence, bins)
    size = np.bincount(place, minlength=bins)
    held = size > 0
    sums = (np.bincount(place, weights=values, minlength=bins)[held] for values in (confidence, quality))
    mean_confidence, mean_quality = (total / size[held] for total in sums)
    return mean_confidence, mean_quality


def tempered(scores: Sequence[Sequence[float]], temperature: float) -> list[list[float]]:
    """Return the probabilities of each row with the logits divided by a temperature (Guo et al. 2017).

    The logarithm of a softmax is the logits up to a constant, so that probabilities are enough.
    """
    return [np.exp(_log_softmax(_logs(row) / temperature)).tolist() for row in scores]


def fit_temperature(scores: Sequence[Sequence[float]], right: Sequence[int]) -> float:
    """Return the temperature under which the right answers are the likeliest, within :data:`TEMPERATURES`.

    Args:
        scores: probabilities of each row's answers; rows may have different numbers of them.
        right: the place of the right answer of each row.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    width = max(len(row) for row in scores)
    logits = np.full((len(scores), width), -np.inf)
    for i, row in enumerate(scores):
        logits[i, : len(row)] = _logs(row)
    truth = logits[np.arange(len(scores)), np.asarray(right)]

    # In the inverse of the temperature this is convex, so the bounded search finds the one minimum.
    def mean_loss(inverse: float) -> float:
        return float((logsumexp(logits * inverse, axis=1) - truth * inverse).mean())

    low, high = TEMPERATURES
    found = minimize_scalar(mean_loss, bounds=(1 / high, 1 / low), method="bounded", options={"xatol": 1e-6})
    return float(1 / found.x)


def scaled(confidence: Floats, slope: float, bias: float) -> Floats:
    """Return confidences of which the log odds are stretched and shifted (Platt 1999)."""
    from scipy.special import expit

    return np.asarray(expit(slope * _log_odds(confidence) + bias))


def fit_scale(confidence: Floats, quality: Floats) -> tuple[float, float]:
    """Return slope and bias by which confidences predict the quality best, in cross-entropy (Platt 1999).

    The slope stays positive: scaling moves confidences, not their order. A weak pull towards slope 1 and bias 0 keeps
    both finite where all answers are right or all are wrong.
    """
    from scipy.optimize import minimize
    from scipy.special import log_expit

    odds = _log_odds(confidence)

    def loss(values: Floats) -> float:
        slope, bias = values
        given = slope * odds + bias
        entropy = -(quality * log_expit(given) + (1 - quality) * log_expit(-given)).sum()
        return float(entropy + 0.05 * ((slope - 1) ** 2 + bias**2))

    found = minimize(loss, np.array([1.0, 0.0]), method="L-BFGS-B", bounds=[SLOPES, (-20.0, 20.0)])
    return float(found.x[0]), float(found.x[1])


def _logs(row: Sequence[float]) -> Floats:
    return np.asarray(np.log(np.maximum(np.asarray(row, dtype=np.float64), _TINY)))


def _log_softmax(values: Floats) -> Floats:
    from scipy.special import log_softmax

    return np.asarray(log_softmax(values))


def _log_odds(confidence: Floats) -> Floats:
    from scipy.special import logit

    return np.asarray(logit(np.clip(confidence, 1e-12, 1 - 1e-12)))


# ---------------------------------------------------------------------------------------- selective prediction


def _cumulated(confidence: Floats, quality: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """Return how many rows, and how much loss, the surest rows hold up to each group of equal confidence.

    Both are ``(resamples, groups + 1)`` and begin with 0. Inside of a group no row comes before another: loss grows
    there evenly, as it does on average over all orders.
    """
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    drawn = counts[:, order]
    rows = np.cumsum(np.add.reduceat(drawn, starts, axis=1), axis=1)
    losses = np.cumsum(np.add.reduceat(drawn * (1 - quality[order]), starts, axis=1), axis=1)
    first = np.zeros((len(counts), 1))
    return np.concatenate([first, rows], axis=1), np.concatenate([first, losses], axis=1)


def area_under_risk_coverage(confidence: Floats, quality: Floats, counts: Floats) -> Floats:
    """Return the area under the risk-coverage curve of each resample, ``(resamples,)``.

    The mean, over all numbers of rows that could be answered, of the risk of the surest so many (Geifman & El-Yaniv
    2017; the empirical form is that of Geifman, Uziel & El-Yaniv 2019).

    Args:
        confidence: of each answer, ``(rows,)``.
        quality: of each answer, ``(rows,)``.
        counts: how often each resample draws each row, ``(resamples, rows)``.
    """
    rows, losses = _cumulated(confidence, quality, counts)
    most = int(rows[:, -1].max())
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, most + 1))])
    before, size = rows[:, :-1], np.diff(rows, axis=1)
    each = np.divide(np.diff(losses, axis=1), size, out=np.zeros_like(size), where=size > 0)
    # The sum over k of (losses + each * (k - before)) / k, for k from before + 1 to before + size.
    steps = harmonic[np.rint(rows[:, 1:]).astype(int)] - harmonic[np.rint(before).astype(int)]
    total = ((losses[:, :-1] - each * before) * steps + each * size).sum(1)
    return np.asarray(total / rows[:, -1])


def accuracy_at(coverage: float, confidence: Floats, quality: Floats, counts: Floats) -> Floats:
    """Return the mean quality of the surest share of rows of each resample, ``(resamples,)``.

    Args:
        coverage: the share of rows that are answered, rounded up to whole rows.
        confidence: of each answer, ``(rows,)``.
        quality: of each answer, ``(rows,)``.
        counts: how often each resample draws each row, ``(resamples, rows)``.
    """
    rows, losses = _cumulated(confidence, quality, counts)
    found = []
    for place, loss in zip(rows, losses, strict=True):
        answered = _ceil(coverage * place[-1])
        found.append(1 - np.interp(answered, place, loss) / answered)
    return np.asarray(found)


def risk_coverage(confidence: Floats, quality: Floats) -> tuple[Floats, Floats]:
    """Return coverage and risk, ``(rows,)`` each, where the surest 1, 2, ... rows are answered."""
    rows, losses = _cumulated(confidence, quality, np.ones((1, len(confidence))))
    answered = np.arange(1, len(confidence) + 1)
    return answered / len(confidence), np.interp(answered, rows[0], losses[0]) / answered


def covering_threshold(confidence: Floats, coverage: float) -> float:
    """Return the highest threshold that this share of the rows reaches."""
    return float(np.sort(confidence)[::-1][_ceil(coverage * len(confidence)) - 1])


def risky_threshold(confidence: Floats, quality: Floats, risk: float, delta: float = 0.0) -> float:
    """Return the threshold that answers the most rows at a risk of at most so much.

    Args:
        confidence: of each answer, ``(rows,)``.
        quality: of each answer, ``(rows,)``; 0 or 1 where ``delta`` is set.
        risk: the share of answered rows that may be wrong.
        delta: 0 takes the risk of these rows as it is. Otherwise the risk on new rows of the same kind is within the
            limit with probability ``1 - delta``: algorithm 1 of Geifman & El-Yaniv 2017, a binary search over the rows
            with an exact binomial bound at each step. That the confidences do not depend on these rows is assumed.

    Returns:
        the threshold; :data:`ABSTAIN_ALWAYS` where none keeps the limit.
    """
    best = ABSTAIN_ALWAYS
    if delta == 0:
        for threshold in np.unique(confidence):
            if (1 - quality[confidence >= threshold]).mean() <= risk + 1e-12:
                return float(threshold)
        return best
    ordered = np.sort(confidence)
    # From before the first row, which the paper's search never looks at, so that all rows may be answered.
    low, high = -1, len(ordered) - 1
    steps = math.ceil(math.log2(len(ordered) + 1))
    for _ in range(steps):
        middle = math.ceil((low + high) / 2)
        threshold = float(ordered[middle])
        answered = confidence >= threshold
        wrong = float((1 - quality[answered]).sum())
        if _binomial_bound(wrong, int(answered.sum()), delta / steps) <= risk:
            best = min(best, threshold)
            high = middle
        else:
            low = middle
    return best


def _binomial_bound(wrong: float, rows: int, delta: float) -> float:
    """Return the risk above which so few errors have a chance of at most ``delta`` (Clopper & Pearson 1934)."""
    from scipy.stats import beta

    wrong = round(wrong)
    return 1.0 if wrong >= rows else float(beta.ppf(1 - delta, wrong + 1, rows - wrong))


def _ceil(value: Any) -> int:
    """Return the next whole number; 0.8 times 5 is 4, whatever the last bit says."""
    return int(max(1, math.ceil(value - 1e-9)))
