"""The span of a medical text that answers a question: question answering with confidence and abstention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from autoft_question_answering.task import QuestionAnswering

from autoft.contracts import Column, Prediction, Row, TaskContext
from autoft_medical_qa.reading import medical_share, passage, text
from autoft_medical_qa.selective import CONFIDENCE_METRICS, NOTICE, OPTIONS, SUBJECT, SelectiveAnswers

__all__ = ["MedicalExtractive"]

NO_ANSWER = "(the text holds no answer)"


class MedicalExtractive(SelectiveAnswers, QuestionAnswering):
    """Questions that a span of a medical text answers."""

    form = "extractive"
    card = replace(
        QuestionAnswering.card,
        name="medical-qa-extractive",
        summary="medical questions that a span of a text answers, or none (as COVID-QA, emrQA)",
        columns=(
            QuestionAnswering.card.column("question"),
            Column(
                "context",
                "passage",
                "the text that may hold the answer, or a list of texts",
                guesses=(*QuestionAnswering.card.column("context").guesses, "contexts", "abstract"),
                looks_like="texts",
            ),
            SUBJECT,
            QuestionAnswering.card.column("answers"),
        ),
        metrics=(*QuestionAnswering.card.metrics, *CONFIDENCE_METRICS),
        options=(*QuestionAnswering.card.options, *OPTIONS),
        notice=NOTICE,
    )

    def likeness(self, rows: Sequence[Row], options: Mapping[str, Any]) -> float:
        """Return the share of questions that are medical: others are for question answering in general."""
        return medical_share(rows)

    def demo_rows(self) -> Sequence[Row]:
        """Return questions about a short text, written for this plugin, one of them without an answer."""
        insulin = (
            "Insulin is a hormone that beta cells of the pancreas release when blood glucose rises. It was isolated by "
            "Frederick Banting and Charles Best in Toronto in 1921, and given to a patient for the first time in 1922."
        )
        scurvy = ["Scurvy is caused by a lack of vitamin C.", "James Lind treated sailors with lemons in 1747."]
        return (
            {"question": "Which cells release insulin?", "context": insulin, "answers": "beta cells of the pancreas"},
            {"question": "When was insulin first given to a patient?", "context": insulin, "answers": "1922"},
            {"question": "What is the half-life of insulin?", "context": insulin, "answers": []},
            {"question": "What causes scurvy?", "context": scurvy, "answers": "a lack of vitamin C"},
            {"question": "Who treated sailors with lemons?", "context": scurvy, "answers": "James Lind"},
        )

    def texts(self, row: Row, number: int = 0) -> tuple[str, str]:
        """Return the question and the context of a row; a list of texts becomes one."""
        return text(row, "question", number), passage(row, "context", number)

    def decided_at(self, predictions: Sequence[Prediction], point: Mapping[str, Any]) -> list[Prediction]:
        """Return the predictions with or without an answer as the threshold of ``no_answer`` has it."""
        threshold = point.get("no_answer_threshold")
        if threshold is None:
            return list(predictions)
        found: list[Prediction] = []
        for prediction in predictions:
            answered = prediction["candidates"] and prediction["no_answer"] <= threshold
            refusal = {"answer": "", "start": -1, "end": -1, "score": prediction["no_answer"]}
            found.append({**prediction, **(prediction["candidates"][0] if answered else refusal)})
        return found

    def answer(self, prediction: Prediction) -> str:
        """Return the span, or that there is none."""
        return str(prediction["answer"]) or NO_ANSWER

    def truth(self, row: Row, context: TaskContext) -> str:
        """Return the first right answer, or that there is none."""
        return next(iter(self.reference(row, context)), NO_ANSWER)
