"""How far a confidence can be trusted: calibration error, Brier score, risk-coverage curve, selective accuracy.

A prediction holds its ``confidence``; whether an answer is right is decided by the form of the question, which
``facts["form"]`` names. Figures of a resample are weighted by how often each row is drawn.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from autoft_generation.metrics import Rouge
from autoft_question_answering.metrics import exact_match

from autoft.contracts import Prediction, QualityMetric, TaskContext
from autoft_medical_qa.calibration import Floats, accuracy_at, area_under_risk_coverage, calibration_error

__all__ = ["METRICS", "SELECTIVE_COVERAGE", "Aurc", "Brier", "Ece", "SelectiveAccuracy", "qualities"]

SELECTIVE_COVERAGE = 0.8


def _same_labels(predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> Floats:
    return np.asarray([said["label"] == true for said, true in zip(predictions, references, strict=True)], np.float64)


def _exact_matches(predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> Floats:
    pairs = zip(predictions, references, strict=True)
    return np.asarray([exact_match(str(said["answer"]), true) for said, true in pairs], np.float64)


def _overlaps(predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> Floats:
    return np.asarray(Rouge().statistics(predictions, references, context)[:, 0])


QUALITY: Mapping[str, Callable[[Sequence[Prediction], Sequence[Any], TaskContext], Floats]] = {
    "choice": _same_labels,
    "yes-no": _same_labels,
    # As Kamath et al. 2020 (Selective question answering under domain shift).
    "extractive": _exact_matches,
    # Free answers are hardly ever those of the data: ROUGE-L says how much of them is there.
    "free": _overlaps,
}
"""By form, the quality of each answer, 0 to 1."""


def qualities(predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> Floats:
    """Return the quality of each answer, ``(rows,)``: 1 where it is right, as the form of the question has it."""
    return QUALITY[context.facts["form"]](predictions, references, context)


class ConfidenceMetric(QualityMetric):
    """A figure from the confidence and the quality of each answer; NaN where predictions have no confidence."""

    @abstractmethod
    def figures(self, confidence: Floats, quality: Floats, counts: Floats) -> Floats:
        """Return the figure of each resample, ``(resamples,)``.

        Args:
            confidence: of each answer, ``(rows,)``.
            quality: of each answer, ``(rows,)``.
            counts: how often each resample draws each row, ``(resamples, rows)``.
        """

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return the figure over all rows."""
        return float(self.resampled(predictions, references, context, np.ones((1, len(predictions))))[0])

    def resampled(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext, counts: np.ndarray
    ) -> np.ndarray:
        """Return the figures of the resamples, ``(resamples,)``."""
        if not predictions or any("confidence" not in prediction for prediction in predictions):
            return np.full(len(counts), np.nan)
        confidence = np.asarray([prediction["confidence"] for prediction in predictions], np.float64)
        return self.figures(confidence, qualities(predictions, references, context), counts)


class Ece(ConfidenceMetric):
    """Expected calibration error (Guo et al. 2017)."""

    name = "ece"
    summary = "expected calibration error: mean gap between confidence and quality over 15 bins of equal width"
    higher_is_better: ClassVar[bool] = False

    def figures(self, confidence: Floats, quality: Floats, counts: Floats) -> Floats:
        """Return the error of each resample."""
        return calibration_error(confidence, quality, counts)


class Brier(ConfidenceMetric):
    """Brier score of the confidence (Brier 1950): of the answer that is given, not of all that might be."""

    name = "brier"
    summary = "Brier score: mean squared difference of the confidence in the answer and its quality"
    higher_is_better: ClassVar[bool] = False

    def figures(self, confidence: Floats, quality: Floats, counts: Floats) -> Floats:
        """Return the score of each resample."""
        return np.asarray(counts @ (confidence - quality) ** 2 / counts.sum(1))


class Aurc(ConfidenceMetric):
    """Area under the risk-coverage curve (Geifman & El-Yaniv 2017)."""

    name = "aurc"
    summary = "area under the risk-coverage curve: mean risk of the surest rows over all numbers of them"
    higher_is_better: ClassVar[bool] = False

    def figures(self, confidence: Floats, quality: Floats, counts: Floats) -> Floats:
        """Return the area of each resample."""
        return area_under_risk_coverage(confidence, quality, counts)


class SelectiveAccuracy(ConfidenceMetric):
    """Mean quality of the rows that the model is surest of."""

    name = "selective_accuracy"
    summary = f"mean quality of the {SELECTIVE_COVERAGE:.0%} of the rows that the model is surest of"

    def figures(self, confidence: Floats, quality: Floats, counts: Floats) -> Floats:
        """Return the quality of each resample."""
        return accuracy_at(SELECTIVE_COVERAGE, confidence, quality, counts)


METRICS: tuple[QualityMetric, ...] = (Ece(), Brier(), Aurc(), SelectiveAccuracy())
