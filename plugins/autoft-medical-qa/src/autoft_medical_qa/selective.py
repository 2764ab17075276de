"""What the four forms of medical question share: calibrated confidence, and no answer where it is too low.

A form puts :class:`SelectiveAnswers` in front of the task that it builds on. Predictions then hold ``confidence`` and
``abstained``. How far a confidence can be trusted, and from which on to answer, is decided on the validation rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from autoft.contracts import (
    Baseline,
    Chart,
    Column,
    Detail,
    Examples,
    Option,
    Output,
    Prediction,
    Row,
    Series,
    Table,
    Task,
    TaskContext,
)
from autoft.errors import DataError
from autoft_medical_qa.calibration import (
    ABSTAIN_ALWAYS,
    BINS,
    Floats,
    calibration_error,
    covering_threshold,
    fit_scale,
    fit_temperature,
    reliability,
    risk_coverage,
    risky_threshold,
    scaled,
    tempered,
)
from autoft_medical_qa.metrics import qualities

__all__ = ["CONFIDENCE_METRICS", "NOTICE", "OPTIONS", "SUBJECT", "SelectiveAnswers"]

NOTICE = (
    "Not for clinical use. This model answers questions as its training data does; it knows nothing of a patient, it "
    "makes mistakes, and a high confidence is no proof. No decision about anybody's health may rest on it."
)

CONFIDENCE_METRICS = ("ece", "brier", "aurc", "selective_accuracy")

OPTIONS = (
    Option("abstain_risk", "give no answer where more than this share of the answers would be wrong", None),
    Option("abstain_coverage", "answer this share of the questions, those that the model is surest of", None),
    Option(
        "abstain_delta",
        "chance that the risk on new rows is above abstain_risk (Geifman & El-Yaniv 2017); 0 takes the risk of the "
        "validation rows as it is",
        0.0,
    ),
)
"""When a model gives no answer; without them it always does."""

SUBJECT = Column(
    "subject",
    "label",
    "the field that a question is from; only the report makes use of it",
    required=False,
    guesses=("subject", "subject_name", "topic", "specialty", "chapter"),
)

SHOWN_ROWS = 20
SHOWN_SUBJECTS = 30
CURVE_POINTS = 100


class SelectiveAnswers(Task):
    """Confidence and abstention for a task whose predictions have ``scores`` of all answers, or a ``score`` of theirs.

    Attributes:
        form: of the questions, as :data:`autoft_medical_qa.metrics.QUALITY` names it.
    """

    form: ClassVar[str]

    def answer(self, prediction: Prediction) -> str:
        """Return what a prediction says, for tables."""
        return str(prediction["label"])

    def truth(self, row: Row, context: TaskContext) -> str:
        """Return what is right, for tables."""
        return str(self.reference(row, context))

    def facts(self, rows: Sequence[Row], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the facts of the task that this builds on, and the form of the questions.

        Raises:
            DataError: the rows cannot be used, or an option is out of its range.
        """
        _checked(options)
        return {**super().facts(rows, options), "form": self.form}

    def predict(self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32) -> list[Prediction]:
        """Return the predictions of the task that this builds on, with ``confidence`` and ``abstained``."""
        return self.decided(super().predict(model, rows, context, batch_size), context)  # type: ignore[safe-super]

    def outputs(self, context: TaskContext) -> Sequence[Output]:
        """Return those of the task that this builds on, with ``confidence`` and ``abstained``."""
        return (
            *super().outputs(context),
            Output("confidence", float, "calibrated probability that the answer is right"),
            Output("abstained", bool, "the confidence is below the threshold: the answer is not to be relied on"),
        )

    def combine(self, predictions: Sequence[Sequence[Prediction]], context: TaskContext) -> list[Prediction] | None:
        """Return what several models say together, where the task that this builds on can tell, with its confidence."""
        together = super().combine(predictions, context)
        return None if together is None else self.decided(together, context)

    def decided(self, predictions: Sequence[Prediction], context: TaskContext) -> list[Prediction]:
        """Return the predictions with calibrated confidence, and whether it is too low to answer.

        Args:
            predictions: with ``scores``, the probabilities of all answers, or with ``score``, what the model itself says
                of how likely its answer is.
            context: its facts hold the operating point, once that is known.
        """
        point = context.facts.get("operating_point") or {}
        found: list[Prediction] = []
        for prediction in predictions:
            changed: dict[str, Any] = dict(prediction)
            if "scores" in changed:
                if "temperature" in point:
                    changed["scores"] = tempered([changed["scores"]], point["temperature"])[0]
                changed["confidence"] = max(changed["scores"])
            else:
                changed["confidence"] = float(_rescaled(np.asarray([changed["score"]]), point)[0])
            changed["abstained"] = changed["confidence"] < (point.get("threshold") or 0.0)
            found.append(changed)
        return found

    def decided_at(self, predictions: Sequence[Prediction], point: Mapping[str, Any]) -> list[Prediction]:
        """Return the predictions as they are at what the task that this builds on has decided; as they are by default."""
        return list(predictions)

    def operating_point(
        self, rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext
    ) -> dict[str, Any]:
        """Return how to calibrate, from which confidence on to answer, and what that means for the validation rows.

        Returns:
            what the task that this builds on decides; ``temperature`` where predictions have the scores of all answers,
            ``slope`` and ``bias`` where they have not; ``threshold`` (None answers always); ``coverage`` and ``risk`` of
            the validation rows at it, and ``risk_of_all``, were all of them answered.
        """
        point = dict(super().operating_point(rows, predictions, context))
        predictions = self.decided_at(predictions, point)
        quality = qualities(predictions, [self.reference(row, context) for row in rows], context)
        if all("scores" in prediction for prediction in predictions):
            # Where the right answer is none that the model could have given, there is nothing to be learned.
            known = [
                (prediction["scores"], place)
                for row, prediction in zip(rows, predictions, strict=True)
                if (place := self.right_score(row, prediction, context)) is not None
            ]
            if known:
                point["temperature"] = round(fit_temperature(*zip(*known, strict=True)), 4)
        else:
            slope, bias = fit_scale(_column(predictions, "score"), quality)
            point |= {"slope": round(slope, 4), "bias": round(bias, 4)}
        calibrated = replace(context, facts={**context.facts, "operating_point": point})
        confidence = _column(self.decided(predictions, calibrated), "confidence")
        point["threshold"] = _threshold(confidence, quality, context.options)
        answered = confidence >= (point["threshold"] or 0.0)
        point["coverage"] = round(float(answered.mean()), 4)
        point["risk"] = round(float(1 - quality[answered].mean()), 4) if answered.any() else None
        point["risk_of_all"] = round(float(1 - quality.mean()), 4)
        return point

    def right_score(self, row: Row, prediction: Prediction, context: TaskContext) -> int | None:
        """Return the place of the right answer among the prediction's scores, or None where it has none."""
        labels, reference = context.labels, self.reference(row, context)
        return labels.index(reference) if reference in labels else None

    def baselines(self, rows: Sequence[Row], context: TaskContext) -> Sequence[Baseline]:
        """Return those of the task that this builds on, with their confidence."""

        def sure(baseline: Baseline) -> Baseline:
            return replace(baseline, predict=lambda given: self.decided(baseline.predict(given), context))

        return [sure(baseline) for baseline in super().baselines(rows, context)]

    def details(self, rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext) -> list[Detail]:
        """Return what the task that this builds on shows, then how far the confidence can be trusted."""
        references = [self.reference(row, context) for row in rows]
        quality, confidence = qualities(predictions, references, context), _column(predictions, "confidence")
        shown: list[Detail] = [
            *super().details(rows, predictions, context),
            _reliability_chart(predictions, quality, confidence, context),
            _risk_chart(quality, confidence),
            _abstention_table(predictions, quality, context),
        ]
        if subjects := _subject_table(rows, predictions, quality, confidence):
            shown.append(subjects)
        shown.append(self._unsure(rows, predictions, context))
        return shown

    def _unsure(self, rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext) -> Examples:
        order = np.argsort(_column(predictions, "confidence"), kind="stable")
        given_up = [i for i in order if predictions[i]["abstained"]]
        title = f"Questions without an answer: the least sure of {len(given_up)}" if given_up else "Least sure answers"
        lines = tuple(
            (
                str(rows[i]["question"])[:300],
                self.truth(rows[i], context)[:200],
                self.answer(predictions[i])[:200],
                round(float(predictions[i]["confidence"]), 3),
            )
            for i in (given_up or order)[:SHOWN_ROWS]
        )
        return Examples(title, ("question", "right", "would have said" if given_up else "said", "confidence"), lines)


def _checked(options: Mapping[str, Any]) -> None:
    for name in ("abstain_risk", "abstain_coverage", "abstain_delta"):
        value = options.get(name)
        if value is None:
            continue
        low_open = name == "abstain_coverage"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= 1 or (low_open and value == 0) or (name == "abstain_delta" and value == 1):
            allowed = {"abstain_coverage": "above 0 and up to 1", "abstain_delta": "from 0 on and below 1"}
            raise DataError(
                f"task_options.{name}: has to be a number {allowed.get(name, 'between 0 and 1')}; given {value!r}"
            )
    if options.get("abstain_risk") is not None and options.get("abstain_coverage") is not None:
        raise DataError("task_options: abstain_risk and abstain_coverage exclude each other; give one of them")
    if options.get("abstain_delta") and options.get("abstain_risk") is None:
        raise DataError("task_options.abstain_delta: bounds the risk, and needs abstain_risk")


def _threshold(confidence: Floats, quality: Floats, options: Mapping[str, Any]) -> float | None:
    if (coverage := options.get("abstain_coverage")) is not None:
        return covering_threshold(confidence, float(coverage))
    if (risk := options.get("abstain_risk")) is not None:
        return risky_threshold(confidence, quality, float(risk), float(options.get("abstain_delta") or 0.0))
    return None


def _column(predictions: Sequence[Prediction], name: str) -> Floats:
    return np.asarray([prediction[name] for prediction in predictions], np.float64)


def _rescaled(score: Floats, point: Mapping[str, Any]) -> Floats:
    return scaled(score, point["slope"], point["bias"]) if "slope" in point else score


def _reliability_chart(
    predictions: Sequence[Prediction], quality: Floats, confidence: Floats, context: TaskContext
) -> Chart:
    point = context.facts.get("operating_point") or {}
    once = np.ones((1, len(quality)))
    caption = (
        f"Mean quality of the answers (1 is right, 0 is wrong) by their confidence, in {BINS} bins; on the dashed line a "
        f"confidence says what it means. Expected calibration error {calibration_error(confidence, quality, once)[0]:.3f}"
    )
    series = [("confidence", confidence)]
    before: Floats | None = None
    if "temperature" in point:
        before = np.asarray(
            [max(row) for row in tempered([p["scores"] for p in predictions], 1 / point["temperature"])]
        )
    elif "slope" in point:
        before = _column(predictions, "score")
    if before is not None:
        series.append(("as trained", before))
        caption += f", as trained {calibration_error(before, quality, once)[0]:.3f}"
    lines = tuple(
        Series(name, tuple(x.tolist()), tuple(y.tolist()))
        for name, values in series
        for x, y in [reliability(values, quality)]
    )
    return Chart("Reliability", f"{caption}.", "confidence", "quality", lines, diagonal=True)


def _risk_chart(quality: Floats, confidence: Floats) -> Chart:
    lines = []
    for name, order in (("by confidence", confidence), ("best order there is", quality)):
        coverage, risk = risk_coverage(order, quality)
        chosen = np.unique(np.linspace(0, len(coverage) - 1, CURVE_POINTS).round().astype(int))
        lines.append(Series(name, tuple(coverage[chosen].tolist()), tuple(risk[chosen].tolist())))
    caption = (
        "Risk, one minus the mean quality of the answers, where only the surest share of the questions is answered."
    )
    return Chart("Risk and coverage", caption, "coverage", "risk", tuple(lines))


def _abstention_table(predictions: Sequence[Prediction], quality: Floats, context: TaskContext) -> Table:
    point = context.facts.get("operating_point") or {}
    answered = ~np.asarray([prediction["abstained"] for prediction in predictions], bool)
    risk = float(1 - quality[answered].mean()) if answered.any() else None
    rows: list[tuple[Any, ...]] = [("test", float(answered.mean()), risk, float(1 - quality.mean()))]
    threshold = point.get("threshold")
    title = "Abstention: every question is answered"
    if threshold is not None:
        title = f"Abstention: answers from a confidence of {threshold:.3f} on"
        if threshold == ABSTAIN_ALWAYS:
            title = "Abstention: no question is answered, for no confidence keeps the risk on validation"
        rows.insert(0, ("validation", point["coverage"], point["risk"], point["risk_of_all"]))
    return Table(title, ("rows of", "coverage", "risk of the answers", "risk if all were answered"), tuple(rows))


def _subject_table(
    rows: Sequence[Row], predictions: Sequence[Prediction], quality: Floats, confidence: Floats
) -> Table | None:
    places: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if row.get("subject") is not None:
            places[str(row["subject"])].append(i)
    if len(places) < 2:
        return None
    largest = sorted(places, key=lambda name: (-len(places[name]), name))[:SHOWN_SUBJECTS]
    lines = []
    for name in largest:
        chosen = places[name]
        abstained = sum(bool(predictions[i]["abstained"]) for i in chosen)
        lines.append((name, len(chosen), float(quality[chosen].mean()), float(confidence[chosen].mean()), abstained))
    title = "Figures by subject" + (f", the {SHOWN_SUBJECTS} largest" if len(places) > SHOWN_SUBJECTS else "")
    return Table(title, ("subject", "rows", "quality", "confidence", "abstained"), tuple(lines))
