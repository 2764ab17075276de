"""Multiple choice: each option is read with the question and gets one logit, the softmax is over the row's options.

The model is a sequence classifier with a single output, as a cross-encoder that ranks is. Any number of options goes
through it, rows may differ in theirs, and their order makes no difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autoft_text_classification.task import TextClassification

from autoft.contracts import (
    Baseline,
    Column,
    Detail,
    Examples,
    ExportSpec,
    ModelSource,
    Output,
    Prediction,
    Row,
    Table,
    TaskCard,
    TaskContext,
)
from autoft_medical_qa.options import LETTERS, OPTION_COLUMNS, Choices, notation_of, read_choices, right_place
from autoft_medical_qa.reading import medical_share, text
from autoft_medical_qa.selective import CONFIDENCE_METRICS, NOTICE, OPTIONS, SUBJECT, SelectiveAnswers

if TYPE_CHECKING:
    import torch

__all__ = ["MedicalChoice"]

SHOWN_ERRORS = 20


class _Choice(TextClassification):
    """Multiple choice by the models and tokenizers of text classification."""

    def facts(self, rows: Sequence[Row], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return how the data says which option is right, and how often each place is."""
        for number, row in enumerate(rows):
            text(row, "question", number)
        notation = notation_of(rows)
        right = Counter(right_place(row, number, notation) for number, row in enumerate(rows))
        return {
            # A prediction names an option by its letter, whatever the data calls it, and questions to come may have more.
            "labels": list(LETTERS),
            "notation": notation,
            "right": [right[place] for place in range(max(right) + 1)],
            "rows": len(rows),
        }

    def member_predictions(
        self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32
    ) -> list[Prediction]:
        """Return predictions with all options of each row: together models may choose one that none chose."""
        said = self.predict(model, rows, context, batch_size)
        return [{**one, "choices": read_choices(row, i)} for i, (row, one) in enumerate(zip(rows, said, strict=True))]

    def combine(self, predictions: Sequence[Sequence[Prediction]], context: TaskContext) -> list[Prediction] | None:
        """Return what the mean of the models' probabilities of each option says."""
        import numpy as np

        return [
            _answer(np.mean([one["scores"] for one in said], axis=0).tolist(), said[0]["choices"])
            for said in zip(*predictions, strict=True)
        ]

    def stratum(self, row: Row) -> str | None:
        """Return None: the place of the right option says nothing of a question."""
        return None

    def load_processor(self, source: ModelSource, context: TaskContext) -> Any:
        """Return the tokenizer, which cuts the beginning of what is too long: a vignette ends with what is asked."""
        tokenizer = super().load_processor(source, context)
        tokenizer.truncation_side = "left"
        return tokenizer

    def load_model(self, source: ModelSource, context: TaskContext) -> torch.nn.Module:
        """Return the model with a head of one output."""
        # One label that applies or not: transformers knows no single label without another.
        return super().load_model(source, replace(context, facts={"labels": ["right"], "problem": "multi"}))

    def encode(self, rows: Sequence[Row], context: TaskContext) -> list[dict[str, Any]]:
        """Return token ids of question and option, a list of lists for each row, with the right place as ``labels``."""
        features = []
        for number, row in enumerate(rows):
            question, choices = text(row, "question", number), read_choices(row, number)
            pairs = context.processor(
                [question] * len(choices.texts), list(choices.texts), truncation=True, max_length=context.max_length
            )
            feature: dict[str, Any] = dict(pairs)
            if "answer" in row:
                feature["labels"] = right_place(row, number, context.facts["notation"])
            features.append(feature)
        return features

    def length(self, feature: Mapping[str, Any]) -> int:
        """Return the tokens of all pairs of a row."""
        return sum(len(ids) for ids in feature["input_ids"])

    def collate(self, features: Sequence[Mapping[str, Any]], context: TaskContext) -> dict[str, torch.Tensor]:
        """Return the pairs of all rows, ``(pairs, seq)``, ``options``, how many each row has, and ``labels``."""
        import torch

        pairs = [
            {name: values[i] for name, values in feature.items() if name != "labels"}
            for feature in features
            for i in range(len(feature["input_ids"]))
        ]
        batch = dict(context.processor.pad(pairs, return_tensors="pt"))
        batch["options"] = torch.tensor([len(feature["input_ids"]) for feature in features])
        if "labels" in features[0]:
            batch["labels"] = torch.tensor([feature["labels"] for feature in features])
        return batch

    def loss(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], context: TaskContext) -> torch.Tensor:
        """Return the cross-entropy over each row's options; label smoothing shares out among these."""
        logs = _log_probabilities(model, batch)
        right = logs.gather(1, batch["labels"][:, None])[:, 0]
        smoothing = float(context.params.get("train.label_smoothing") or 0.0)
        # Where a row has fewer options than another, what is left of it is -inf.
        even = logs.masked_fill(logs.isinf(), 0.0).sum(1) / batch["options"]
        return -((1 - smoothing) * right + smoothing * even).mean()

    def predict(self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32) -> list[Prediction]:
        """Return ``{"label", "answer", "scores"}`` for each row: the letter, the option, and chances of all options."""
        import torch

        if isinstance(model, torch.nn.Module):
            model.eval()
        features = self.encode([{k: v for k, v in row.items() if k != "answer"} for row in rows], context)
        order = sorted(range(len(rows)), key=lambda i: max(map(len, features[i]["input_ids"])))
        answers: list[Prediction] = [{}] * len(rows)
        with torch.inference_mode():
            for start in range(0, len(rows), batch_size):
                chosen = order[start : start + batch_size]
                batch = self.collate([features[i] for i in chosen], context)
                batch = {name: value.to(context.device) for name, value in batch.items()}
                for i, logs in zip(chosen, _log_probabilities(model, batch).exp().tolist(), strict=True):
                    choices = read_choices(rows[i], i)
                    answers[i] = _answer(logs[: len(choices.texts)], choices)
        return answers

    def outputs(self, context: TaskContext) -> Sequence[Output]:
        """Return label, answer and scores."""
        return (
            Output("label", str, "the letter of the chosen option, A for the first"),
            Output("answer", str, "its text"),
            Output("scores", list[float], "probability of each option, in their order"),
        )

    def reference(self, row: Row, context: TaskContext) -> Any:
        """Return the letter of the right option."""
        return LETTERS[right_place(row, 0, context.facts["notation"])]

    def baselines(self, rows: Sequence[Row], context: TaskContext) -> Sequence[Baseline]:
        """Return the place that is right most often, and the option whose characters are most like the question's."""
        return (_constant(context), _most_similar(rows))

    def export_inputs(self, context: TaskContext) -> ExportSpec:
        """Return two pairs of different length, padded: batch and sequence vary."""
        questions, options = ["a question", "a somewhat longer question"], ["an option", "another option than that"]
        batch = dict(context.processor(questions, options, padding=True, return_tensors="pt"))
        return ExportSpec(inputs=batch, dynamic={name: {0: "batch", 1: "seq"} for name in batch})

    def details(self, rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext) -> list[Detail]:
        """Return figures by the right option's letter and by the number of options, and the most confident errors."""
        return [*_tables(rows, predictions, context), _errors(rows, predictions, context)]


class MedicalChoice(SelectiveAnswers, _Choice):
    """Multiple choice questions."""

    form = "choice"
    card = TaskCard(
        name="medical-qa-choice",
        summary="medical multiple choice questions with any number of options (as MedMCQA, MedQA)",
        columns=(
            Column("question", "text", "the question", guesses=("question", "stem", "sent1", "query")),
            Column(
                "options",
                "options",
                "the options, as a list of texts or an object by letter",
                required=False,
                guesses=("options", "choices", "endings", "candidates"),
            ),
            *OPTION_COLUMNS,
            SUBJECT,
            Column(
                "answer",
                "choice",
                "the right option: its letter, its index from 0 or from 1, or its text",
                target=True,
                guesses=("answer", "cop", "answer_idx", "answer_key", "answerKey", "correct", "label", "gold"),
            ),
        ),
        metrics=("accuracy", *CONFIDENCE_METRICS),
        architecture="sequence-classification",
        ignores=("train.class_weights", "train.loss"),
        notice=NOTICE,
        options=OPTIONS,
        alternatives=(("options",), ("option_a", "option_b")),
        models=("distilbert/distilbert-base-uncased", "google-bert/bert-base-uncased"),
    )

    def demo_rows(self) -> Sequence[Row]:
        """Return questions of general knowledge, written for this plugin."""
        return (
            {"question": "Which organ makes insulin?", "options": ["Liver", "Pancreas", "Spleen"], "answer": "B"},
            {"question": "Scurvy is a lack of which vitamin?", "options": ["A", "C", "D", "K"], "answer": "B"},
            {
                "question": "Which of these is a bone of the forearm?",
                "options": ["Radius", "Femur", "Tibia", "Sternum"],
                "answer": "A",
            },
            {"question": "How many chambers has the human heart?", "options": ["2", "3", "4"], "answer": "C"},
        )

    def likeness(self, rows: Sequence[Row], options: Mapping[str, Any]) -> float:
        """Return that options with a right one are made for this task, the more so where the questions are medical."""
        return 0.5 + medical_share(rows) / 2

    def right_score(self, row: Row, prediction: Prediction, context: TaskContext) -> int | None:
        """Return the place of the right option."""
        return right_place(row, 0, context.facts["notation"])

    def answer(self, prediction: Prediction) -> str:
        """Return the option that a prediction names."""
        return str(prediction["answer"])

    def truth(self, row: Row, context: TaskContext) -> str:
        """Return the right option."""
        return _right_text(row, context)


def _log_probabilities(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the log-probability of each row's options, ``(rows, most options)``; -inf where a row has fewer."""
    import torch

    inputs = {name: value for name, value in batch.items() if name not in {"labels", "options"}}
    logits = model(**inputs).logits.float()[:, 0]
    rows = torch.nn.utils.rnn.pad_sequence(
        list(logits.split(batch["options"].tolist())), batch_first=True, padding_value=-torch.inf
    )
    return rows.log_softmax(-1)


def _answer(scores: list[float], choices: Choices) -> Prediction:
    top = max(range(len(scores)), key=scores.__getitem__)
    return {"label": LETTERS[top], "answer": choices.texts[top], "scores": scores}


def _right_text(row: Row, context: TaskContext) -> str:
    return read_choices(row, 0).texts[right_place(row, 0, context.facts["notation"])]


def _constant(context: TaskContext) -> Baseline:
    counts = context.facts["right"]

    def predict(given: Sequence[Row]) -> list[Prediction]:
        answers = []
        for number, row in enumerate(given):
            choices = read_choices(row, number)
            # One more for each: an option behind those that training has seen is not impossible.
            share = [1 + (counts[i] if i < len(counts) else 0) for i in range(len(choices.texts))]
            answers.append(_answer([value / sum(share) for value in share], choices))
        return answers

    return Baseline("most frequent place", predict, trivial=True)


def _most_similar(rows: Sequence[Row]) -> Baseline:
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Parts of words: medical terms share stems more often than words.
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    vectors.fit(
        [part for i, row in enumerate(rows) for part in (text(row, "question", i), *read_choices(row, i).texts)]
    )

    def predict(given: Sequence[Row]) -> list[Prediction]:
        answers = []
        for number, row in enumerate(given):
            choices = read_choices(row, number)
            found = vectors.transform([text(row, "question", number), *choices.texts])
            similar = (found[1:] @ found[0].T).toarray()[:, 0]
            even = np.full(len(similar), 1 / len(similar))
            answers.append(_answer((similar / similar.sum() if similar.sum() else even).tolist(), choices))
        return answers

    return Baseline("TF-IDF similarity of question and option", predict)


def _tables(rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext) -> list[Table]:
    true = [LETTERS[right_place(row, number, context.facts["notation"])] for number, row in enumerate(rows)]
    said = [str(prediction["label"]) for prediction in predictions]
    counts = [len(prediction["scores"]) for prediction in predictions]
    hits = [one == other for one, other in zip(true, said, strict=True)]
    letters = []
    for letter in sorted({*true, *said}):
        of_letter = [hit for hit, right in zip(hits, true, strict=True) if right == letter]
        letters.append(
            (
                letter,
                len(of_letter),
                said.count(letter),
                sum(of_letter) / len(of_letter) if of_letter else None,
                sum(of_letter) / said.count(letter) if letter in said else None,
            )
        )
    tables = [
        Table("Figures by option", ("option", "right in rows", "said in rows", "recall", "precision"), tuple(letters))
    ]
    if len(set(counts)) > 1:
        sizes = []
        for size in sorted(set(counts)):
            of_size = [hit for hit, count in zip(hits, counts, strict=True) if count == size]
            sizes.append((size, len(of_size), sum(of_size) / len(of_size), 1 / size))
        tables.append(Table("Figures by number of options", ("options", "rows", "accuracy", "by chance"), tuple(sizes)))
    return tables


def _errors(rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext) -> Examples:
    wrong = []
    for row, prediction in zip(rows, predictions, strict=True):
        right = _right_text(row, context)
        if LETTERS[right_place(row, 0, context.facts["notation"])] != prediction["label"]:
            wrong.append((max(prediction["scores"]), str(row["question"])[:300], right, str(prediction["answer"])))
    wrong.sort(key=lambda entry: -entry[0])
    lines = tuple((question, right, said, round(score, 3)) for score, question, right, said in wrong[:SHOWN_ERRORS])
    return Examples("Most confident errors", ("question", "right", "said", "confidence"), lines)
