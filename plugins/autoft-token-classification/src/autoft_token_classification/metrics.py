"""Metrics of tagging, equal to seqeval's; their bootstrap statistics are counts of entities per type.

A prediction is ``{"tags", "entities"}`` and a reference ``{"tags", "entities"}``, as the task makes them. With plain
tags, as parts of speech, there are no entities, and each word stands for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from autoft.contracts import Prediction, QualityMetric, TaskContext
from autoft_token_classification.schemes import Entity

__all__ = ["METRICS", "EntityScore", "TokenAccuracy", "entities_of"]

Figure = Literal["f1", "precision", "recall"]


def entities_of(answer: Mapping[str, Any], context: TaskContext) -> set[Entity]:
    """Return the entities of a prediction or a reference; with plain tags, each word with its tag."""
    if context.facts["scheme"] == "plain":
        return {Entity(tag, i, i + 1) for i, tag in enumerate(answer["tags"])}
    return {Entity(entity["label"], entity["start"], entity["end"]) for entity in answer["entities"]}


class EntityScore(QualityMetric):
    """Precision, recall or F1 of entities: type, beginning and end have to be right.

    The micro figure counts entities of all types alike, the macro figure is the mean over types that occur. With plain
    tags of words, precision, recall and F1 (micro) all are the accuracy, and macro F1 is that of the tags.
    """

    def __init__(self, figure: Figure, average: Literal["micro", "macro"] = "micro") -> None:
        self.figure, self.average = figure, average
        self.name = f"entity_{figure}" + ("_macro" if average == "macro" else "")
        what = "mean over types of the F1" if average == "macro" else {"f1": "F1"}.get(figure, figure)
        plain = "macro F1 of the tags" if average == "macro" else "the accuracy"
        self.summary = f"{what} of entities, as seqeval says; with plain tags, {plain}"

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return the figure; 0 where it would divide by zero, as seqeval does."""
        return float(self.aggregate(self.statistics(predictions, references, context).sum(0, keepdims=True))[0])

    def statistics(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
    ) -> np.ndarray:
        """Return entities found, predicted and true of each type, ``(rows, 3 * types)``."""
        pairs = [
            (entities_of(prediction, context), entities_of(reference, context))
            for prediction, reference in zip(predictions, references, strict=True)
        ]
        names = list(context.facts["types"])
        names += sorted({entity.label for pair in pairs for part in pair for entity in part} - set(names))
        place = {name: i for i, name in enumerate(names)}
        counts = np.zeros((len(pairs), 3, len(names)))
        for row, (said, true) in enumerate(pairs):
            for kind, part in enumerate((said & true, said, true)):
                for entity in part:
                    counts[row, kind, place[entity.label]] += 1
        return counts.reshape(len(pairs), -1)

    def aggregate(self, sums: np.ndarray) -> np.ndarray:
        """Return the figures, ``(resamples,)``; a type that a resample lacks is left out of its mean."""
        found, said, true = np.split(sums, 3, axis=1)
        if self.average == "micro":
            found, said, true = (part.sum(1, keepdims=True) for part in (found, said, true))
        top, bottom = {
            "precision": (found, said),
            "recall": (found, true),
            "f1": (2 * found, said + true),
        }[self.figure]
        each = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
        occurs = (said + true > 0).astype(float)
        total = occurs.sum(1)
        return np.asarray(np.divide((each * occurs).sum(1), total, out=np.zeros(len(sums)), where=total > 0))


class TokenAccuracy(QualityMetric):
    """Share of words with the right tag, those outside of entities among them."""

    name = "token_accuracy"
    summary = "share of words with the right tag, as seqeval says"

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return the share; NaN where there are no words."""
        return float(self.aggregate(self.statistics(predictions, references, context).sum(0, keepdims=True))[0])

    def statistics(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
    ) -> np.ndarray:
        """Return right words and words, ``(rows, 2)``."""
        counts = np.zeros((len(references), 2))
        for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
            pairs = zip(prediction["tags"], reference["tags"], strict=True)
            counts[row] = sum(said == true for said, true in pairs), len(reference["tags"])
        return counts

    def aggregate(self, sums: np.ndarray) -> np.ndarray:
        """Return right words over words."""
        right, words = sums[:, 0], sums[:, 1]
        return np.asarray(np.divide(right, words, out=np.full(len(sums), np.nan), where=words > 0))


METRICS: tuple[QualityMetric, ...] = (
    EntityScore("f1"),
    EntityScore("precision"),
    EntityScore("recall"),
    EntityScore("f1", "macro"),
    TokenAccuracy(),
)
