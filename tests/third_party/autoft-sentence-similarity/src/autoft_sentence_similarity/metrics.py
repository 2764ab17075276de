"""Correlations of the scores that a model gives with the true ones; NaN where either does not vary."""

from __future__ import annotations

import numpy as np

from autoft.contracts import QualityMetric

__all__ = ["Pearson", "Spearman", "ranks"]


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value from 1, the mean of their ranks for equal ones."""
    ordered, place = np.unique(values, return_inverse=True)
    counts = np.bincount(place, minlength=len(ordered))
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def _moments(said: np.ndarray, true: np.ndarray) -> np.ndarray:
    return np.stack([np.ones(len(said)), said, true, said**2, true**2, said * true], axis=1)


def _correlation(sums: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = sums.T
    spread_x, spread_y = n * xx - x**2, n * yy - y**2
    varies = (spread_x > 1e-9 * n * xx) & (spread_y > 1e-9 * n * yy)
    bottom = np.sqrt(np.where(varies, spread_x * spread_y, 1.0))
    return np.where(varies, (n * xy - x * y) / bottom, np.nan)


class Pearson(QualityMetric):
    """Pearson's correlation; its moments add up."""

    name = "similarity_pearson"
    summary = "Pearson correlation of said and true scores"

    def score(self, predictions, references, context):
        """Return the correlation over all rows."""
        return float(self.aggregate(self.statistics(predictions, references, context).sum(0, keepdims=True))[0])

    def statistics(self, predictions, references, context):
        """Return the moments of each row, ``(rows, 6)``."""
        return _moments(*_scores(predictions, references))

    def aggregate(self, sums):
        """Return correlations ``(resamples,)``."""
        return _correlation(sums)


class Spearman(QualityMetric):
    """Spearman's rank correlation. Ranks change with the rows that are drawn, so resamples are computed anew."""

    name = "similarity_spearman"
    summary = "Spearman rank correlation of said and true scores"

    def score(self, predictions, references, context):
        """Return Pearson's correlation of the ranks."""
        said, true = _scores(predictions, references)
        return float(_correlation(_moments(ranks(said), ranks(true)).sum(0, keepdims=True))[0])


def _scores(predictions, references):
    said = np.asarray([prediction["score"] for prediction in predictions], dtype=np.float64)
    return said, np.asarray(references, dtype=np.float64)
