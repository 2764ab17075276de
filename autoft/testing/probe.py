"""A small task of the kit's own, for strategies to be tried upon: whether a sentence praises or blames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autoft.contracts import (
    Column,
    ExportSpec,
    ModelSource,
    Prediction,
    QualityMetric,
    Row,
    Task,
    TaskCard,
    TaskContext,
)
from autoft.errors import DataError

if TYPE_CHECKING:
    import torch

__all__ = ["Praise", "PraiseHits"]


class PraiseHits(QualityMetric):
    """Share of sentences that are judged right."""

    name = "praise_hits"
    summary = "share of sentences that are judged right"

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return hits over rows."""
        hits = sum(bool(said["label"] == true) for said, true in zip(predictions, references, strict=True))
        return hits / len(references)


class Praise(Task):
    """Praise or blame, by a sequence classification head of any text model."""

    card = TaskCard(
        name="autoft-testing-praise",
        summary="whether a sentence praises or blames",
        columns=(
            Column("text", "text", "the sentence"),
            Column("label", "label", "praise or blame", target=True),
        ),
        metrics=("praise_hits",),
        architecture="sequence-classification",
        ignores=("train.dropout", "train.label_smoothing", "train.class_weights", "train.loss"),
    )

    def demo_rows(self) -> Sequence[Row]:
        """Return eight sentences of different length."""
        praise = ("What a meal!", "The bread was fresh and warm.", "Kind staff, quick and cheerful.", "I will be back.")
        blame = (
            "Cold soup.",
            "The bread was stale and dry.",
            "Rude staff, slow and gloomy all evening.",
            "Never again will I eat here.",
        )
        return [{"text": t, "label": "praise"} for t in praise] + [{"text": t, "label": "blame"} for t in blame]

    def facts(self, rows: Sequence[Row], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the two labels."""
        return {"labels": ["blame", "praise"]}

    def load_processor(self, source: ModelSource, context: TaskContext) -> Any:
        """Return the tokenizer; one without a padding token pads with its end token."""
        tokenizer = super().load_processor(source, context)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def load_model(self, source: ModelSource, context: TaskContext) -> torch.nn.Module:
        """Return the model with two outputs."""
        from transformers import AutoModelForSequenceClassification

        settings = {
            "num_labels": 2,
            "pad_token_id": context.processor.pad_token_id,
            "dtype": "float32",
            **source.load_kwargs,
            **source.from_pretrained_kwargs(),
        }
        model: torch.nn.Module = AutoModelForSequenceClassification.from_pretrained(source.path, **settings)
        return model

    def encode(self, rows: Sequence[Row], context: TaskContext) -> list[dict[str, Any]]:
        """Return token ids, and the label's number."""
        tokens = self._tokens(rows, context)
        features = [{name: values[i] for name, values in tokens.items()} for i in range(len(rows))]
        for number, (feature, row) in enumerate(zip(features, rows, strict=True), start=1):
            if "label" in row:
                if row["label"] not in context.labels:
                    raise DataError(f"row {number}: 'label' is praise or blame, given {row['label']!r:.60}")
                feature["labels"] = context.labels.index(row["label"])
        return features

    def predict(self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32) -> list[Prediction]:
        """Return ``{"label", "score"}`` for each row."""
        import torch

        if isinstance(model, torch.nn.Module):
            model.eval()
        found: list[Prediction] = []
        with torch.inference_mode():
            for start in range(0, len(rows), batch_size):
                batch = self._tokens(rows[start : start + batch_size], context, padding=True, return_tensors="pt")
                for scores in model(**batch.to(context.device)).logits.float().softmax(-1).tolist():
                    top = int(scores[1] > scores[0])
                    found.append({"label": context.labels[top], "score": scores[top]})
        return found

    def reference(self, row: Row, context: TaskContext) -> Any:
        """Return the label."""
        return row["label"]

    def export_inputs(self, context: TaskContext) -> ExportSpec:
        """Return two sentences, padded."""
        batch = dict(self._tokens(self.demo_rows()[:2], context, padding=True, return_tensors="pt"))
        return ExportSpec(batch, {name: {0: "batch", 1: "seq"} for name in batch})

    def _tokens(self, rows: Sequence[Row], context: TaskContext, **settings: Any) -> Any:
        texts = [row.get("text") for row in rows]
        for number, text in enumerate(texts, start=1):
            if not isinstance(text, str):
                raise DataError(f"row {number}: 'text' has to be a text, given {text!r:.60}")
        return context.processor(texts, truncation=True, max_length=context.max_length, **settings)
