"""The task: labels for texts or pairs of texts, one or several a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from autoft.contracts import (
    Baseline,
    Chart,
    Column,
    Examples,
    ExportSpec,
    Matrix,
    ModelSource,
    Option,
    Output,
    Prediction,
    Row,
    Series,
    Table,
    Task,
    TaskCard,
    TaskContext,
)
from autoft.errors import DataError, closest
from autoft.losses import binary_loss, classification_loss
from autoft.pretrained import load_network, load_tokenizer

if TYPE_CHECKING:
    import torch

__all__ = ["TextClassification"]

MOST_LABELS = 1000
SHOWN_LABELS = 30
BINS = 10
"""Of the reliability diagram."""


class TextClassification(Task):
    """Labels for texts or pairs of texts."""

    card = TaskCard(
        name="text-classification",
        summary="a label, or several, for a text or a pair of texts; sentiment is one such",
        columns=(
            Column(
                "text",
                "text",
                "the text to classify",
                guesses=(
                    "text",
                    "sentence",
                    "sentence1",
                    "premise",
                    "question",
                    "question1",
                    "review",
                    "content",
                    "query",
                    "utterance",
                    "body",
                ),
            ),
            Column(
                "text_pair",
                "text",
                "a second text, read together with the first",
                required=False,
                guesses=("text_pair", "sentence2", "hypothesis", "question2"),
            ),
            Column(
                "label",
                "label",
                "the label, or a list of labels",
                target=True,
                guesses=("label", "labels", "class", "category", "sentiment", "polarity", "target", "intent"),
            ),
        ),
        metrics=(
            "accuracy",
            "f1_macro",
            "precision_macro",
            "recall_macro",
            "f1_micro",
            "precision_micro",
            "recall_micro",
            "f1_weighted",
            "precision_weighted",
            "recall_weighted",
            "mcc",
            "roc_auc",
        ),
        architecture="sequence-classification",
        models=("distilbert/distilbert-base-uncased", "google-bert/bert-base-uncased", "FacebookAI/roberta-base"),
        hub_pipeline="text-classification",
        options=(
            Option(
                "problem", "one label a row, or several; auto looks at the data", "auto", ("auto", "single", "multi")
            ),
            Option("threshold", "score from which a label is given, with several labels a row", 0.5),
        ),
    )

    def demo_rows(self) -> Sequence[Row]:
        """Return sentences about films, good or bad."""
        return (
            {"text": "A warm and clever film that I will watch again.", "label": "positive"},
            {"text": "Two hours of noise without a single idea.", "label": "negative"},
            {"text": "The cast is superb and the script never lags.", "label": "positive"},
            {"text": "Flat jokes, flat characters, flat ending.", "label": "negative"},
            {"text": "Quietly moving, with a last scene that stays.", "label": "positive"},
            {"text": "I wanted my money back after the first half.", "label": "negative"},
        )

    def facts(self, rows: Sequence[Row], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the label names, how often each occurs, whether rows have several, and whether texts come in pairs."""
        _verify_labels(rows)
        listed = {isinstance(row["label"], list | tuple) for row in rows}
        if listed == {True, False}:
            raise DataError(
                "the label column mixes single labels and lists of labels; use one or the other in all rows"
            )
        multi = listed == {True}
        wanted = options.get("problem", "auto")
        if wanted == "single" and multi:
            raise DataError("task_options.problem is single, but the label column holds lists; set it to multi or auto")
        multi = multi or wanted == "multi"
        counts = Counter(name for row in rows for name in _names(row["label"]))
        values = {
            value
            for row in rows
            for value in (row["label"] if isinstance(row["label"], list | tuple) else [row["label"]])
        }
        if any(isinstance(value, float) and not value.is_integer() for value in values):
            raise DataError("the label column holds fractions; this task needs classes, not quantities to estimate")
        if len(counts) < 2 and not multi:
            only = next(iter(counts), None)
            raise DataError(f"all {len(rows)} training rows have the label {only!r}; there is nothing to tell apart")
        if not counts:
            raise DataError("no training row has any label")
        if len(counts) > MOST_LABELS or (not multi and len(rows) >= 20 and len(counts) > len(rows) / 2):
            raise DataError(
                f"{len(rows)} training rows have {len(counts)} different labels, as {next(iter(counts))!r}; this looks "
                "like a text, a number or an id rather than a class: map the right column with data.columns.label"
            )
        numeric = all(isinstance(value, int | float) for value in values)
        names = sorted(
            counts, key=lambda name: (float(name) if numeric and name not in {"true", "false"} else 0.0, name)
        )
        pair = any(row.get("text_pair") is not None for row in rows)
        return {
            "labels": names,
            "problem": "multi" if multi else "single",
            "pair": pair,
            "counts": {name: counts[name] for name in names},
            "rows": len(rows),
            # Where no training row is without a label, no answer will be.
            "empty": any(not _names(row["label"]) for row in rows),
        }

    def stratum(self, row: Row) -> str | None:
        """Return the label; None with several a row."""
        return None if isinstance(row["label"], list | tuple) else _name(row["label"])

    def load_processor(self, source: ModelSource, context: TaskContext) -> Any:
        """Return the tokenizer; one without a padding token pads with its end token."""
        return load_tokenizer(source)

    def load_model(self, source: ModelSource, context: TaskContext) -> torch.nn.Module:
        """Return the model with a head of as many outputs as there are labels."""
        names = list(context.labels)
        multi = context.facts.get("problem") == "multi"
        return load_network(
            "AutoModelForSequenceClassification",
            source,
            context,
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
            problem_type="multi_label_classification" if multi else "single_label_classification",
        )

    def encode(self, rows: Sequence[Row], context: TaskContext) -> list[dict[str, Any]]:
        """Return token ids of each row, with the class number, or a 0 or 1 for each label, under ``labels``."""
        batch = self._tokens(rows, context)
        place = {name: i for i, name in enumerate(context.labels)}
        multi = context.facts.get("problem") == "multi"
        features = []
        for i, row in enumerate(rows):
            feature = {name: values[i] for name, values in batch.items()}
            if "label" in row:
                numbers = [_place(name, place, i) for name in _names(row["label"])]
                feature["labels"] = [float(j in numbers) for j in range(len(place))] if multi else numbers[0]
            features.append(feature)
        return features

    def collate(self, features: Sequence[Mapping[str, Any]], context: TaskContext) -> dict[str, torch.Tensor]:
        """Return tensors ``(batch, seq)``, and labels ``(batch,)`` or ``(batch, labels)``."""
        import torch

        inputs = [{name: value for name, value in feature.items() if name != "labels"} for feature in features]
        batch = dict(context.processor.pad(inputs, return_tensors="pt"))
        if "labels" in features[0]:
            multi = context.facts.get("problem") == "multi"
            kind = torch.float32 if multi else torch.long
            batch["labels"] = torch.tensor([feature["labels"] for feature in features], dtype=kind)
        return batch

    def loss(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], context: TaskContext) -> torch.Tensor:
        """Return the loss over classes, or over each label by itself, as ``train.loss`` and its like say."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits, labels = model(**inputs).logits.float(), batch["labels"]
        counts = [int(context.facts["counts"][name]) for name in context.labels]
        if context.facts.get("problem") == "multi":
            return binary_loss(logits, labels, context.params, counts, int(context.facts["rows"]))
        return classification_loss(logits, labels, context.params, counts)

    def predict(self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32) -> list[Prediction]:
        """Return ``{"label", "score", "scores"}`` for each row, or ``{"labels", "scores"}`` with several labels a row."""
        import torch

        if not rows:
            return []
        if isinstance(model, torch.nn.Module):
            model.eval()
        if len(rows) == 1:
            batch = self._tokens(rows, context, padding=True, return_tensors="pt")
            with torch.inference_mode():
                return self._answers(model(**batch.to(context.device)).logits, context)
        features = self.encode([{k: v for k, v in row.items() if k != "label"} for row in rows], context)
        # Rows of like length go together, so that little is computed on padding.
        order = sorted(range(len(rows)), key=lambda i: len(features[i]["input_ids"]))
        answers: list[Prediction] = [{}] * len(rows)
        with torch.inference_mode():
            for start in range(0, len(rows), batch_size):
                chosen = order[start : start + batch_size]
                padded = self.collate([features[i] for i in chosen], context)
                inputs = {name: value.to(context.device) for name, value in padded.items()}
                for i, answer in zip(chosen, self._answers(model(**inputs).logits, context), strict=True):
                    answers[i] = answer
        return answers

    def inputs(self, context: TaskContext) -> Sequence[Column]:
        """Return the card's inputs; the second text is needed or not there, as the model was trained."""
        pair = bool(context.facts.get("pair"))
        return tuple(
            replace(column, required=True) if column.role == "text_pair" else column
            for column in self.card.inputs
            if pair or column.role != "text_pair"
        )

    def outputs(self, context: TaskContext) -> Sequence[Output]:
        """Return label, score and scores, or labels and scores with several labels a row."""
        # Literal[*labels] needs Python 3.11; one takes a tuple just as well.
        label: Any = Literal[context.labels] if context.labels else str
        every = "probability of each label, in the order in which labels are listed"
        if context.facts.get("problem") == "multi":
            return (
                Output("labels", list[label], "the labels whose score reaches the threshold"),
                Output("scores", list[float], every),
            )
        return (
            Output("label", label, "the likeliest label"),
            Output("score", float, "its probability"),
            Output("scores", list[float], every),
        )

    def combine(self, predictions: Sequence[Sequence[Prediction]], context: TaskContext) -> list[Prediction] | None:
        """Return what the mean of the models' probabilities says."""
        import numpy as np

        scores = np.mean([[answer["scores"] for answer in said] for said in predictions], axis=0)
        if context.facts.get("problem") == "multi":
            return [_several(row, context) for row in scores.tolist()]
        return [_one(row, context) for row in scores.tolist()]

    def reference(self, row: Row, context: TaskContext) -> Any:
        """Return the label's name, or the list of names."""
        names = _names(row["label"])
        return names if context.facts.get("problem") == "multi" else names[0]

    def baselines(self, rows: Sequence[Row], context: TaskContext) -> Sequence[Baseline]:
        """Return the majority class, and logistic regression over TF-IDF of words and word pairs."""
        return (_majority(rows, context), _linear(rows, context))

    def export_inputs(self, context: TaskContext) -> ExportSpec:
        """Return two texts of different length, padded: batch and sequence vary."""
        rows = [{"text": "a short text"}, {"text": "a somewhat longer text than the other one"}]
        if context.facts.get("pair"):
            rows = [{**row, "text_pair": "another text"} for row in rows]
        batch = dict(self._tokens(rows, context, padding=True, return_tensors="pt"))
        return ExportSpec(inputs=batch, dynamic={name: {0: "batch", 1: "seq"} for name in batch})

    def export_settings(self, context: TaskContext) -> dict[str, Any]:
        """Return whether texts come in pairs, and with several labels a row the score from which a label is given."""
        found: dict[str, Any] = {"text_pair": bool(context.facts.get("pair"))}
        if context.facts.get("problem") == "multi":
            found |= {
                "threshold": float(context.options.get("threshold", 0.5)),
                "always_a_label": not context.facts.get("empty", True),
            }
        return found

    def details(
        self, rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext
    ) -> Sequence[Table | Matrix | Chart | Examples]:
        """Return figures for each class, the confusion matrix, how far a score can be trusted, and the most confident errors."""
        from sklearn.metrics import precision_recall_fscore_support

        from autoft_text_classification.metrics import indicators

        references = [self.reference(row, context) for row in rows]
        truth, said = indicators(predictions, references, context)
        names = list(context.labels)
        figures = precision_recall_fscore_support(
            truth, said, labels=list(range(len(names))), average=None, zero_division=0.0
        )
        lines = tuple(
            (name, *(float(part[i]) for part in figures[:3]), int(figures[3][i])) for i, name in enumerate(names)
        )
        found: list[Table | Matrix | Chart | Examples] = [
            Table("Figures for each class", ("label", "precision", "recall", "F1", "rows"), lines)
        ]
        if context.facts.get("problem") != "multi":
            found.append(_confusion(truth, said, names))
            found.append(_reliability(references, predictions))
        found.append(_errors(rows, references, predictions))
        return found

    def _tokens(self, rows: Sequence[Row], context: TaskContext, **kwargs: Any) -> Any:
        texts = [_text(row, "text", i) for i, row in enumerate(rows)]
        pairs = [_text(row, "text_pair", i) for i, row in enumerate(rows)] if context.facts.get("pair") else None
        return context.processor(texts, pairs, truncation=True, max_length=context.max_length, **kwargs)

    def _answers(self, logits: torch.Tensor, context: TaskContext) -> list[Prediction]:
        logits = logits.float()
        if context.facts.get("problem") == "multi":
            return [_several(row, context) for row in logits.sigmoid().tolist()]
        return [_one(row, context) for row in logits.softmax(-1).tolist()]


def _text(row: Row, role: str, number: int) -> str:
    value = row.get(role)
    if not isinstance(value, str):
        given = "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"
        raise DataError(f"row {number + 1}: {role!r} has to be a text, given {given}")
    return value


def _name(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _verify_labels(rows: Sequence[Row]) -> None:
    for number, row in enumerate(rows, start=1):
        value = row["label"]
        for entry in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(entry, str | int | float):
                raise DataError(f"row {number}: 'label' has to be a label or a list of labels, given {value!r:.60}")


def _names(value: Any) -> list[str]:
    return [_name(entry) for entry in value] if isinstance(value, list | tuple) else [_name(value)]


def _place(name: str, place: Mapping[str, int], row: int) -> int:
    if name not in place:
        near = closest(name, place)
        hint = f"; did you mean {near!r}?" if near else ""
        raise DataError(f"row {row + 1}: the label {name!r} does not occur in the training rows{hint}")
    return place[name]


def _several(scores: list[float], context: TaskContext) -> Prediction:
    """Return the labels from the threshold on; the best one alone where none reaches it and every row has a label."""
    threshold = float(context.options.get("threshold", 0.5))
    labels = [name for name, score in zip(context.labels, scores, strict=True) if score >= threshold]
    if not labels and not context.facts.get("empty", True):
        labels = [context.labels[max(range(len(scores)), key=scores.__getitem__)]]
    return {"labels": labels, "scores": scores}


def _one(scores: list[float], context: TaskContext) -> Prediction:
    """Return the likeliest label."""
    top = max(range(len(scores)), key=scores.__getitem__)
    return {"label": context.labels[top], "score": scores[top], "scores": scores}


def _majority(rows: Sequence[Row], context: TaskContext) -> Baseline:
    counts: Counter[tuple[str, ...]] = Counter(tuple(sorted(_names(row["label"]))) for row in rows)
    top = list(min(counts.items(), key=lambda item: (-item[1], item[0]))[0])
    share = [context.facts["counts"][name] / context.facts["rows"] for name in context.labels]
    multi = context.facts.get("problem") == "multi"

    def predict(given: Sequence[Row]) -> list[Prediction]:
        answer: Prediction = {"labels": top, "scores": share} if multi else {"label": top[0], "scores": share}
        return [answer for _ in given]

    return Baseline("majority class", predict, trivial=True)


def _linear(rows: Sequence[Row], context: TaskContext) -> Baseline:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MultiLabelBinarizer

    def texts(given: Sequence[Row]) -> list[str]:
        return [" ".join(filter(None, (row["text"], row.get("text_pair")))) for row in given]

    multi = context.facts.get("problem") == "multi"
    names = list(context.labels)
    # One regression against the rest is a fraction of the work of one over many classes, and scores the same.
    several = multi or len(names) > 2
    regression = (
        LogisticRegression(solver="liblinear", C=10.0) if several else LogisticRegression(max_iter=1000, C=10.0)
    )
    model = make_pipeline(
        # Characters of words stand for words where a script has no spaces.
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b"),
        OneVsRestClassifier(regression) if several else regression,
    )
    if multi:
        target: Any = MultiLabelBinarizer(classes=names).fit_transform([_names(row["label"]) for row in rows])
    else:
        target = [_name(row["label"]) for row in rows]
    model.fit(texts(rows), target)

    def predict(given: Sequence[Row]) -> list[Prediction]:
        scores = model.predict_proba(texts(given))
        if multi:
            return [_several(row, context) for row in scores.tolist()]
        order = [list(model.classes_).index(name) for name in names]
        return [_one(row, context) for row in scores[:, order].tolist()]

    return Baseline("TF-IDF + logistic regression", predict)


def _confusion(truth: Any, said: Any, names: list[str]) -> Matrix:
    shown = list(range(len(names)))
    title = "Confusion matrix"
    counts = truth[:, : len(names)].T @ said[:, : len(names)]
    if len(names) > SHOWN_LABELS:
        wrong = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
        shown = sorted(sorted(shown, key=lambda i: -wrong[i])[:SHOWN_LABELS])
        title = f"Confusion matrix of the {SHOWN_LABELS} most confused of {len(names)} labels"
    values = tuple(tuple(float(counts[i, j]) for j in shown) for i in shown)
    return Matrix(title, tuple(names[i] for i in shown), values)


def _reliability(references: Sequence[Any], predictions: Sequence[Prediction]) -> Chart:
    """Return how often the label is right by the score that it has, in bins of equal width (Guo et al. 2017)."""
    import numpy as np

    score = np.asarray([float(prediction["score"]) for prediction in predictions])
    right = np.asarray(
        [_names(said["label"]) == _names(true) for said, true in zip(predictions, references, strict=True)], np.float64
    )
    place = np.searchsorted(np.arange(1, BINS) / BINS, score, side="left")
    counts = np.bincount(place, minlength=BINS)
    held = counts > 0
    sure, often = (np.bincount(place, weights=values, minlength=BINS)[held] / counts[held] for values in (score, right))
    error = float(np.abs(often - sure) @ counts[held] / len(right))
    caption = (
        f"Share of the labels that are right by the score that they have, in {BINS} bins; on the dashed line a score says what "
        f"it means, below it the model is too sure. Bins of few rows say little. Expected calibration error {error:.3f}."
    )
    line = Series("chosen model", tuple(sure.tolist()), tuple(often.tolist()))
    return Chart("Reliability", caption, "score", "share that is right", (line,), diagonal=True)


def _errors(rows: Sequence[Row], references: Sequence[Any], predictions: Sequence[Prediction]) -> Examples:
    wrong = []
    for row, reference, prediction in zip(rows, references, predictions, strict=True):
        answer = prediction.get("labels", prediction.get("label"))
        missed = set(_names(reference)) != set(_names(answer))
        if missed:
            score = float(prediction.get("score", max(prediction["scores"])))
            text = " | ".join(filter(None, (row["text"], row.get("text_pair"))))
            wrong.append((score, text[:300], ", ".join(_names(reference)), ", ".join(_names(answer))))
    wrong.sort(key=lambda entry: -entry[0])
    lines = tuple((text, true, said, round(score, 3)) for score, text, true, said in wrong[:20])
    return Examples("Most confident errors", ("text", "true", "predicted", "score"), lines)
