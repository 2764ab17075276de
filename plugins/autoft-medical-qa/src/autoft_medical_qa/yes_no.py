"""Yes, no or maybe, read off an abstract, as in PubMedQA: text classification of question and context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from autoft_text_classification.task import TextClassification

from autoft.contracts import Baseline, Column, Detail, Prediction, Row, TaskCard, TaskContext
from autoft.errors import DataError
from autoft_medical_qa.reading import medical_share, passage, shown, text
from autoft_medical_qa.selective import CONFIDENCE_METRICS, NOTICE, OPTIONS, SUBJECT, SelectiveAnswers

__all__ = ["MedicalYesNo"]

SAID = {"yes": "yes", "no": "no", "maybe": "maybe", "true": "yes", "false": "no"}


class _YesNo(TextClassification):
    """Text classification of question and context."""

    def facts(self, rows: Sequence[Row], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answers that occur, and how often."""
        return super().facts(_classified(rows), {**options, "problem": "single"})

    def stratum(self, row: Row) -> str | None:
        """Return the answer; None where it cannot be read, which facts() tells with the row's number."""
        return SAID.get(_said(row))

    def encode(self, rows: Sequence[Row], context: TaskContext) -> list[dict[str, Any]]:
        """Return token ids of question and context, with the class number under ``labels``."""
        return super().encode(_classified(rows), context)

    def predict(self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32) -> list[Prediction]:
        """Return ``{"label", "score", "scores"}`` for each row."""
        return super().predict(model, _classified(rows), context, batch_size)

    def reference(self, row: Row, context: TaskContext) -> Any:
        """Return ``yes``, ``no`` or ``maybe``."""
        return super().reference(_classified([row])[0], context)

    def baselines(self, rows: Sequence[Row], context: TaskContext) -> Sequence[Baseline]:
        """Return the majority class, and logistic regression over TF-IDF."""

        def reading(baseline: Baseline) -> Baseline:
            return replace(baseline, predict=lambda given: baseline.predict(_classified(given)))

        return [reading(baseline) for baseline in super().baselines(_classified(rows), context)]

    def details(self, rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext) -> list[Detail]:
        """Return figures for each class, confusions and errors."""
        return list(super().details(_classified(rows), predictions, context))


class MedicalYesNo(SelectiveAnswers, _YesNo):
    """Questions that a context answers with yes, no or maybe."""

    form = "yes-no"
    card = TaskCard(
        name="medical-qa-yes-no",
        summary="medical questions that a context answers with yes, no or maybe (as PubMedQA)",
        columns=(
            Column("question", "text", "the question", guesses=("question", "query")),
            Column(
                "context",
                "passage",
                "what the answer is to be read off: a text, or a list of texts",
                guesses=("context", "contexts", "abstract", "passage", "snippets"),
                looks_like="texts",
            ),
            SUBJECT,
            Column(
                "answer",
                "label",
                "yes, no or maybe",
                target=True,
                guesses=("answer", "final_decision", "decision", "label"),
            ),
        ),
        metrics=("accuracy", "f1_macro", "precision_macro", "recall_macro", "mcc", "roc_auc", *CONFIDENCE_METRICS),
        architecture="sequence-classification",
        hub_pipeline="text-classification",
        notice=NOTICE,
        options=OPTIONS,
        models=("distilbert/distilbert-base-uncased", "google-bert/bert-base-uncased"),
    )

    def likeness(self, rows: Sequence[Row], options: Mapping[str, Any]) -> float:
        """Return that questions with yes, no or maybe are made for this task, the more so where they are medical."""
        return 0.5 + medical_share(rows) / 2

    def demo_rows(self) -> Sequence[Row]:
        """Return questions about small studies, made up for this plugin."""
        return (
            {
                "question": "Does daily walking lower blood pressure in older adults?",
                "context": "After twelve weeks of daily walking, mean systolic pressure fell by 6 mmHg (p < 0.01).",
                "answer": "yes",
            },
            {
                "question": "Does vitamin C shorten the common cold?",
                "context": "Days until recovery did not differ between vitamin C and placebo (p = 0.71).",
                "answer": "no",
            },
            {
                "question": "Is ultrasound a reliable test for appendicitis?",
                "context": "Sensitivity ranged from 55 % to 96 % with the examiner; more studies are needed.",
                "answer": "maybe",
            },
            {
                "question": "Do reminders by telephone reduce missed appointments?",
                "context": "Missed appointments fell from 21 % to 12 % in the group that was called (p = 0.002).",
                "answer": "yes",
            },
            {
                "question": "Is age related to the length of stay after knee replacement?",
                "context": "Length of stay was 4.1 days below and 4.2 days above the age of 70 (p = 0.63).",
                "answer": "no",
            },
            {
                "question": "Can saliva replace blood for measuring cortisol?",
                "context": "Values agreed in the morning, but not in the evening, when the sample was small.",
                "answer": "maybe",
            },
        )

    def decided(self, predictions: Sequence[Prediction], context: TaskContext) -> list[Prediction]:
        """Return the predictions with calibrated scores, confidence, and whether it is too low to answer."""
        found = super().decided(predictions, context)
        return [{**prediction, "score": prediction["confidence"]} for prediction in found]


def _classified(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the columns of text classification beside their own."""
    return [row if "text" in row else _as_pair(row, number) for number, row in enumerate(rows)]


def _as_pair(row: Row, number: int) -> Row:
    pair = {**row, "text": text(row, "question", number), "text_pair": passage(row, "context", number)}
    if "answer" in row:
        said = _said(row)
        if said not in SAID:
            raise DataError(
                f"row {number + 1}: 'answer' has to be yes, no or maybe (true and false are read as yes and no), "
                f"given {shown(row['answer'])}"
            )
        pair["label"] = SAID[said]
    return pair


def _said(row: Row) -> str:
    return str(row.get("answer")).strip().lower()
