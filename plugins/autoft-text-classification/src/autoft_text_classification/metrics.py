"""Metrics of classification, by scikit-learn; their bootstrap statistics are sums of counts per class.

A prediction is ``{"label", "scores"}`` or ``{"labels", "scores"}``, a reference a label name or a list of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from autoft.contracts import Prediction, QualityMetric, TaskContext

__all__ = ["METRICS", "Accuracy", "Averaged", "Mcc", "RocAuc", "indicators"]

Average = Literal["macro", "micro", "weighted"]


def indicators(
    predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
) -> tuple[np.ndarray, np.ndarray]:
    """Return who is what and who is said to be what, each ``(rows, labels)`` of 0 and 1.

    A reference with a name that training did not show gets a column of its own, so that it counts as missed.
    """
    names = list(context.labels)
    given = [_names(reference) for reference in references]
    names += sorted({name for row in given for name in row} - set(names))
    place = {name: i for i, name in enumerate(names)}
    truth = np.zeros((len(given), len(names)), dtype=np.int64)
    said = np.zeros_like(truth)
    for i, (row, prediction) in enumerate(zip(given, predictions, strict=True)):
        truth[i, [place[name] for name in row]] = 1
        said[i, [place[name] for name in _names(prediction.get("labels", prediction.get("label")))]] = 1
    return truth, said


def _names(value: Any) -> list[str]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _multi(context: TaskContext) -> bool:
    return context.facts.get("problem") == "multi"


def _labels(truth: np.ndarray, said: np.ndarray, context: TaskContext) -> Any:
    """Return what scikit-learn takes: indicators for several labels a row, else class numbers."""
    return (truth, said) if _multi(context) else (truth.argmax(1), said.argmax(1))


class Accuracy(QualityMetric):
    """Share of rows that are right; with several labels a row, all of them have to be."""

    name = "accuracy"
    summary = "share of rows that are right (all labels of a row)"

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return ``sklearn.metrics.accuracy_score``."""
        from sklearn.metrics import accuracy_score

        return float(accuracy_score(*_labels(*indicators(predictions, references, context), context)))

    def statistics(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
    ) -> np.ndarray:
        """Return hits and ones, ``(rows, 2)``."""
        truth, said = indicators(predictions, references, context)
        return np.stack([(truth == said).all(1), np.ones(len(truth))], axis=1)

    def aggregate(self, sums: np.ndarray) -> np.ndarray:
        """Return hits over rows."""
        return np.asarray(sums[:, 0] / sums[:, 1])


class Averaged(QualityMetric):
    """Precision, recall or F1, averaged over labels: macro, micro, or weighted by their frequency."""

    def __init__(self, figure: Literal["precision", "recall", "f1"], average: Average) -> None:
        self.figure, self.average = figure, average
        self.name = f"{figure}_{average}"
        self.summary = f"{average} average of {figure} over labels"

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return the figure as ``sklearn.metrics.precision_recall_fscore_support`` does."""
        from sklearn.metrics import precision_recall_fscore_support

        truth, said = indicators(predictions, references, context)
        # Indicators serve single labels as well: one of them is set in each row.
        figures = precision_recall_fscore_support(
            *_labels(truth, said, context), average=self.average, zero_division=0.0
        )
        return float(figures[("precision", "recall", "f1").index(self.figure)])

    def statistics(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
    ) -> np.ndarray:
        """Return hits, truths and answers of each label, and whether a row may have several, ``(rows, 3 * labels + 1)``."""
        truth, said = indicators(predictions, references, context)
        several = np.full((len(truth), 1), _multi(context))
        return np.concatenate([truth & said, truth, said, several], axis=1)

    def aggregate(self, sums: np.ndarray) -> np.ndarray:
        """Return the averages, ``(resamples,)``.

        As in scikit-learn, a label absent from a resample is left out where rows have one label, and counts as 0 where they
        have several.
        """
        hits, truth, said = np.split(sums[:, :-1], 3, axis=1)
        if self.average == "micro":
            hits, truth, said = (part.sum(1, keepdims=True) for part in (hits, truth, said))
        top, bottom = {
            "precision": (hits, said),
            "recall": (hits, truth),
            "f1": (2 * hits, truth + said),
        }[self.figure]
        each = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
        weights = truth if self.average == "weighted" else ((truth + said > 0) | (sums[:, -1:] > 0)).astype(float)
        total = weights.sum(1)
        return np.asarray(np.divide((each * weights).sum(1), total, out=np.zeros(len(sums)), where=total > 0))


class Mcc(QualityMetric):
    """Matthews correlation coefficient, for one label a row (Gorodkin 2004 for several classes)."""

    name = "mcc"
    summary = "Matthews correlation coefficient (one label a row)"

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return ``sklearn.metrics.matthews_corrcoef``, or NaN with several labels a row."""
        from sklearn.metrics import matthews_corrcoef

        if _multi(context):
            return float("nan")
        return float(matthews_corrcoef(*_labels(*indicators(predictions, references, context), context)))

    def statistics(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
    ) -> np.ndarray | None:
        """Return hits, truths and answers of each label, ``(rows, 3 * labels)``."""
        if _multi(context):
            return None
        truth, said = indicators(predictions, references, context)
        return np.concatenate([truth & said, truth, said], axis=1)

    def aggregate(self, sums: np.ndarray) -> np.ndarray:
        """Return the coefficients, ``(resamples,)``."""
        hits, truth, said = np.split(sums, 3, axis=1)
        n = truth.sum(1)
        top = hits.sum(1) * n - (truth * said).sum(1)
        bottom = np.sqrt((n**2 - (said**2).sum(1)) * (n**2 - (truth**2).sum(1)))
        return np.asarray(np.divide(top, bottom, out=np.zeros(len(sums)), where=bottom > 0))


class RocAuc(QualityMetric):
    """Area under the ROC curve: of the positive class, or the macro average of one against the rest."""

    name = "roc_auc"
    summary = "area under the ROC curve (macro average over labels)"

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return ``sklearn.metrics.roc_auc_score``, or NaN where a label has no row, or no other, or no scores."""
        from sklearn.metrics import roc_auc_score

        if any("scores" not in prediction for prediction in predictions):
            return float("nan")
        truth, _ = indicators(predictions, references, context)
        truth = truth[:, : len(context.labels)]
        scores = np.asarray([prediction["scores"] for prediction in predictions], dtype=np.float64)
        usable = (truth.sum(0) > 0) & (truth.sum(0) < len(truth))
        if not usable.all() or len(truth) == 0:
            return float("nan")
        if not _multi(context) and len(context.labels) == 2:
            return float(roc_auc_score(truth[:, 1], scores[:, 1]))
        return float(roc_auc_score(truth, scores, average="macro"))

    def resampled(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext, counts: np.ndarray
    ) -> np.ndarray:
        """Return the areas, ``(resamples,)``: scores are sorted once, and rows weighted by how often they are drawn.

        The area is the share of pairs of a row with the label and one without that are in order, ties counting half
        (Hanley & McNeil 1982). NaN where a resample lacks a label, or has no other.
        """
        if any("scores" not in prediction for prediction in predictions):
            return np.full(len(counts), np.nan)
        truth, _ = indicators(predictions, references, context)
        scores = np.asarray([prediction["scores"] for prediction in predictions], dtype=np.float64)
        binary = not _multi(context) and len(context.labels) == 2
        columns = [1] if binary else range(len(context.labels))
        areas = [_weighted_area(truth[:, column], scores[:, column], counts) for column in columns]
        return np.asarray(np.mean(areas, axis=0))


def _weighted_area(truth: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    # Where a new score begins: rows of the same score are ties.
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    drawn = counts[:, order]
    positive = np.add.reduceat(drawn * truth[order], starts, axis=1)
    negative = np.add.reduceat(drawn, starts, axis=1) - positive
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(1) * negative.sum(1)
    in_order = (positive * (below + negative / 2)).sum(1)
    return np.asarray(np.divide(in_order, pairs, out=np.full(len(counts), np.nan), where=pairs > 0))


METRICS: tuple[QualityMetric, ...] = (
    Accuracy(),
    *(
        Averaged(figure, average)
        for average in ("macro", "micro", "weighted")
        for figure in ("f1", "precision", "recall")
    ),
    Mcc(),
    RocAuc(),
)
