"""The task: both sentences are read together, and one output is the score."""

from __future__ import annotations

import math
from statistics import fmean, pstdev

from autoft.contracts import Baseline, Chart, Column, Examples, Series, Task, TaskCard
from autoft.errors import DataError

__all__ = ["SentenceSimilarity"]


class SentenceSimilarity(Task):
    """How alike two sentences are."""

    card = TaskCard(
        name="sentence-similarity",
        summary="how alike two sentences are",
        columns=(
            Column("sentence1", "text", "one sentence", guesses=("text1", "first")),
            Column("sentence2", "text", "the other", guesses=("text2", "second")),
            Column("score", "number", "how alike they are", target=True, guesses=("similarity", "label")),
        ),
        metrics=("similarity_spearman", "similarity_pearson"),
        architecture="sequence-classification",
        ignores=("train.dropout", "train.label_smoothing", "train.class_weights", "train.loss"),
    )

    def demo_rows(self):
        """Return six pairs, from unlike to alike."""
        return [
            {"sentence1": "A man plays a guitar.", "sentence2": "A man is playing a guitar.", "score": 5.0},
            {"sentence1": "Two dogs run on the beach.", "sentence2": "Dogs are running by the sea.", "score": 4.2},
            {"sentence1": "A woman cuts an onion.", "sentence2": "A woman peels a potato.", "score": 2.4},
            {"sentence1": "The train is late again.", "sentence2": "The bus came on time.", "score": 1.5},
            {
                "sentence1": "A child sleeps.",
                "sentence2": "Stock prices fell on Monday in heavy trading.",
                "score": 0.0,
            },
            {"sentence1": "Rain is expected tomorrow.", "sentence2": "It will rain tomorrow.", "score": 4.6},
        ]

    def facts(self, rows, options):
        """Return mean and spread of the scores, and their range."""
        scores = [_number(row["score"], number) for number, row in enumerate(rows, start=1)]
        if len(set(scores)) < 2:
            raise DataError("the column 'score' needs at least two different numbers")
        return {"mean": fmean(scores), "spread": pstdev(scores), "low": min(scores), "high": max(scores)}

    def load_model(self, source, context):
        """Return a model with one output."""
        from transformers import AutoModelForSequenceClassification

        settings = {"num_labels": 1, "dtype": "float32", **source.load_kwargs, **source.from_pretrained_kwargs()}
        return AutoModelForSequenceClassification.from_pretrained(source.path, problem_type="regression", **settings)

    def encode(self, rows, context):
        """Return token ids of each pair, and the standardized score."""
        tokens = self._tokens(rows, context)
        features = [{name: values[i] for name, values in tokens.items()} for i in range(len(rows))]
        for number, (feature, row) in enumerate(zip(features, rows, strict=True), start=1):
            if "score" in row:
                feature["labels"] = (_number(row["score"], number) - context.facts["mean"]) / context.facts["spread"]
        return features

    def predict(self, model, rows, context, batch_size=32):
        """Return ``{"score"}`` for each pair, within the range of the training rows."""
        import torch

        if isinstance(model, torch.nn.Module):
            model.eval()
        found = []
        with torch.inference_mode():
            for start in range(0, len(rows), batch_size):
                batch = self._tokens(rows[start : start + batch_size], context, padding=True, return_tensors="pt")
                found += model(**batch.to(context.device)).logits[:, 0].float().tolist()
        facts = context.facts
        scores = (facts["mean"] + value * facts["spread"] for value in found)
        return [{"score": min(max(score, facts["low"]), facts["high"])} for score in scores]

    def reference(self, row, context):
        """Return the true score."""
        return float(row["score"])

    def baselines(self, rows, context):
        """Return the mean, and the share of words that both sentences have."""
        mean = context.facts["mean"]

        def overlap(given):
            return [{"score": 5 * _jaccard(row["sentence1"], row["sentence2"])} for row in given]

        return [
            Baseline("mean", lambda given: [{"score": mean} for _ in given], trivial=True),
            Baseline("shared words", overlap),
        ]

    def details(self, rows, predictions, context):
        """Return the pairs with the largest errors, and said scores over true ones."""
        pairs = sorted((float(row["score"]), said["score"]) for row, said in zip(rows, predictions, strict=True))
        lines = [
            (row["sentence1"], row["sentence2"], float(row["score"]), round(said["score"], 2))
            for row, said in zip(rows, predictions, strict=True)
        ]
        lines.sort(key=lambda line: -abs(line[2] - line[3]))
        series = Series("pairs", tuple(true for true, _ in pairs), tuple(said for _, said in pairs))
        return [
            Examples("Largest errors", ("one", "other", "true", "said"), tuple(lines[:10])),
            Chart("Said over true", "each pair of the test rows", "true score", "said score", (series,), diagonal=True),
        ]

    def _tokens(self, rows, context, **settings):
        firsts, seconds = (
            [_text(row, role, i) for i, row in enumerate(rows, 1)] for role in ("sentence1", "sentence2")
        )
        return context.processor(firsts, seconds, truncation=True, max_length=context.max_length, **settings)


def _text(row, role, number):
    if not isinstance(row.get(role), str):
        raise DataError(f"row {number}: {role!r} has to be a text, given {row.get(role)!r:.60}")
    return row[role]


def _number(value, number):
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"row {number}: 'score' has to be a number, given {value!r:.60}")
    return value


def _jaccard(one, other):
    words = [set(text.lower().split()) for text in (one, other)]
    return len(words[0] & words[1]) / max(1, len(words[0] | words[1]))
