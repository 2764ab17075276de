"""Free answers to medical questions: generation with confidence and abstention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from autoft_generation.conditional import ConditionalGeneration, conditional_options
from autoft_generation.words import choose_tokenizer

from autoft.contracts import Baseline, Column, Output, Prediction, Row, TaskCard, TaskContext
from autoft_medical_qa.reading import medical_share, passage, text
from autoft_medical_qa.selective import CONFIDENCE_METRICS, NOTICE, OPTIONS, SUBJECT, SelectiveAnswers

__all__ = ["MedicalFree"]


class _Free(ConditionalGeneration):
    """Generation whose predictions say how likely the model finds what it wrote."""

    def facts(self, rows: Sequence[Row], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of generation, and what ROUGE counts of the answers.

        Raises:
            DataError: a row cannot be read.
        """
        _check_texts(rows)
        found = super().facts(rows, options)
        context = TaskContext({}, options, {}, 512)
        answers = (self.target_texts(row, context)[0] for row in rows)
        return {**found, "rouge_tokenizer": choose_tokenizer(answers)}

    def encode(self, rows: Sequence[Row], context: TaskContext) -> list[dict[str, Any]]:
        """Return what generation makes of the rows."""
        _check_texts(rows)
        return super().encode(rows, context)

    def predict(self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32) -> list[Prediction]:
        """Return ``{"text", "score"}`` for each row; the score is the mean probability of a token (geometric).

        The text is read once more as if it were the right answer, which costs little beside writing it. Length
        normalized likelihood as a measure of certainty is that of Malinin & Gales 2021 (arXiv 2002.07650).
        """
        _check_texts(rows)
        predictions = super().predict(model, rows, context, batch_size)
        role = self.card.targets[0].role
        written = [i for i, prediction in enumerate(predictions) if prediction["text"].strip()]
        given = [{**rows[i], role: predictions[i]["text"]} for i in written]
        figures = self.score_targets(model, given, context, batch_size) or ()
        scores = {
            i: math.exp(figure["log_likelihood"] / figure["target_tokens"])
            for i, figure in zip(written, figures, strict=True)
        }
        # Who writes nothing says nothing.
        return [{**prediction, "score": scores.get(i, 0.0)} for i, prediction in enumerate(predictions)]

    def outputs(self, context: TaskContext) -> Sequence[Output]:
        """Return those of generation, and the score."""
        return (*super().outputs(context), Output("score", float, "mean probability of its tokens (geometric)"))

    def baselines(self, rows: Sequence[Row], context: TaskContext) -> Sequence[Baseline]:
        """Return the most typical training answer, and the answer of the most similar training question."""
        return (_typical(rows, self, context), _nearest(rows, self, context))


class MedicalFree(SelectiveAnswers, _Free):
    """Questions that are answered in words of the model's own."""

    form = "free"
    card = TaskCard(
        name="medical-qa-free",
        summary="medical questions that are answered in free text, with or without a context (as MedQuAD)",
        columns=(
            Column("question", "text", "the question", guesses=("question", "query", "instruction", "input")),
            Column(
                "context",
                "passage",
                "a text to answer from, or a list of texts; may be absent",
                required=False,
                guesses=("context", "contexts", "abstract", "passage"),
                looks_like="texts",
            ),
            SUBJECT,
            Column(
                "answer",
                "texts",
                "the answer, or a list of answers of which each is right and the first is learned",
                target=True,
                guesses=("answer", "answers", "long_answer", "response", "output", "ideal_answer"),
            ),
        ),
        metrics=("rouge_l", "chrf", "perplexity", *CONFIDENCE_METRICS),
        architecture="conditional-generation",
        generates=True,
        ignores=("train.class_weights", "train.loss"),
        # The quality of a free answer is no yes or no, which the bound on the risk is about.
        options=(*conditional_options(max_new_tokens=128), *OPTIONS[:2]),
        models=("google-t5/t5-small", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        notice=NOTICE,
        untrained=True,
    )

    def likeness(self, rows: Sequence[Row], options: Mapping[str, Any]) -> float:
        """Return the share of questions that are medical, less where answers are a word or two."""
        context = TaskContext({}, options, {}, 512)
        long = sum(len(self.target_texts(row, context)[0]) > 20 for row in rows) / len(rows)
        return 0.6 * long * medical_share(rows)

    def demo_rows(self) -> Sequence[Row]:
        """Return questions of general knowledge, written for this plugin."""
        return (
            {"question": "What is anemia?", "answer": "A lack of red blood cells or of hemoglobin in the blood."},
            {"question": "What is a fracture?", "answer": "A break in a bone."},
            {
                "question": "What did walking change?",
                "context": "After twelve weeks of daily walking, mean systolic pressure fell by 6 mmHg.",
                "answer": "Blood pressure fell by 6 mmHg.",
            },
            {"question": "What is insulin?", "answer": "A hormone of the pancreas that lowers blood glucose."},
        )

    def source_text(self, row: Row, context: TaskContext) -> str:
        """Return the question, and the context under it."""
        question = text(row, "question", 0)
        return question if row.get("context") is None else f"{question}\n{passage(row, 'context', 0)}"

    def target_texts(self, row: Row, context: TaskContext) -> list[str]:
        """Return the right answers; none where the column holds something else."""
        value = row["answer"]
        return [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []

    def prompt(self, row: Row, context: TaskContext) -> str | list[dict[str, str]]:
        """Return the question as a message of a chat where the model knows chats, else as a text.

        A context that is too long loses its end, as it does where an encoder reads it, and not the question above it.
        """
        if row.get("context") is None:
            return self.framed(self.source_text(row, context), context)
        question = f"{text(row, 'question', 0)}\n"
        room = self.room_within(self.framed(question, context), context, row)
        return self.framed(question + self.beginning(passage(row, "context", 0), room, context), context)

    def framed(self, text: str, context: TaskContext) -> str | list[dict[str, str]]:
        """Return a question, with its context where it has one, as it is asked."""
        if context.processor.source.chat_template:
            return [{"role": "user", "content": text}]
        return f"Question: {text}\nAnswer: "

    def prefix(self, context: TaskContext) -> str:
        """Return what T5 was trained to read before a question."""
        return "question: " if context.processor.model_type in {"t5", "mt5", "umt5"} else ""

    def answer(self, prediction: Prediction) -> str:
        """Return what the model wrote."""
        return str(prediction["text"])

    def truth(self, row: Row, context: TaskContext) -> str:
        """Return the first right answer."""
        return str(self.reference(row, context)[0])


def _check_texts(rows: Sequence[Row]) -> None:
    """Raise DataError with the row's number, which :meth:`MedicalFree.source_text` is not told."""
    for number, row in enumerate(rows):
        text(row, "question", number)
        if row.get("context") is not None:
            passage(row, "context", number)


def _typical(rows: Sequence[Row], task: _Free, context: TaskContext) -> Baseline:
    """Return the training answer that is most like all others together."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    answers = [task.target_texts(row, context)[0] for row in rows]
    vectors = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b").fit_transform(answers)
    mean = np.asarray(vectors.mean(axis=0)).ravel()
    likeness = np.asarray(vectors @ mean)
    said: Prediction = {"text": answers[int(likeness.argmax())], "score": float(likeness.max())}
    return Baseline("most typical answer", lambda given: [said for _ in given], trivial=True)


def _nearest(rows: Sequence[Row], task: _Free, context: TaskContext) -> Baseline:
    """Return the answer of the training question nearest by TF-IDF of words and word pairs."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    answers = [task.target_texts(row, context)[0] for row in rows]
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    known = words.fit_transform([task.source_text(row, context) for row in rows])

    def predict(given: Sequence[Row]) -> list[Prediction]:
        likeness = words.transform([task.source_text(row, context) for row in given]) @ known.T
        found: list[Prediction] = []
        for i in range(len(given)):
            line = likeness[i].toarray()[0]
            found.append({"text": answers[int(line.argmax())], "score": float(min(1.0, line.max()))})
        return found

    return Baseline("answer of the nearest question by TF-IDF", predict)
