"""The task: a caption for a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autoft.contracts import (
    Baseline,
    Column,
    Detail,
    ModelSource,
    Option,
    Output,
    Picture,
    Pictures,
    Prediction,
    Row,
    Table,
    Task,
    TaskCard,
    TaskContext,
)
from autoft.errors import DataError
from autoft_image_captioning.baselines import most_frequent, nearest_picture
from autoft_image_captioning.captioners import (
    generate,
    load_captioner,
    longest_caption,
    next_token_logits,
    positions,
)
from autoft_image_captioning.cider import cider_d
from autoft_image_captioning.metrics import caption_tokens
from autoft_image_captioning.pictures import open_picture, thumbnail
from autoft_image_captioning.processor import CaptionProcessor, load_processor
from autoft_image_captioning.texts import captions_of, train_tokenizer

if TYPE_CHECKING:
    import torch

__all__ = ["ImageCaptioning"]

SHOWN = 10
"""Pictures in each part of the report: two full lines of a page as wide as a screen."""
IGNORED = -100
"""The label of padding, which no loss counts."""

LEAST = {
    "decoder_layers": 1,
    "decoder_width": 8,
    "image_size": 8,
    "max_new_tokens": 1,
    "num_beams": 1,
    "vocabulary": 300,
}
"""The smallest value of each option that is a number."""


class ImageCaptioning(Task):
    """Captions for pictures."""

    card = TaskCard(
        name="image-captioning",
        summary="a caption for a picture",
        columns=(
            Column(
                "image",
                "image",
                "the picture: the path of a file, its bytes, or both as the datasets library keeps them",
                guesses=(
                    "images",
                    "image_path",
                    "file_name",
                    "filename",
                    "file",
                    "filepath",
                    "path",
                    "img",
                    "picture",
                    "photo",
                ),
            ),
            Column(
                "captions",
                "texts",
                "the caption, or a list of captions",
                target=True,
                guesses=(
                    "caption",
                    "text",
                    "texts",
                    "sentences",
                    "sentence",
                    "description",
                    "descriptions",
                    "title",
                    "answer",
                ),
            ),
        ),
        metrics=("cider", "caption_bleu", "caption_chrf", "caption_rouge_l", "caption_perplexity"),
        architecture="image-text-to-text",
        generates=True,
        models=("microsoft/git-base",),
        options=(
            Option("training_caption", "which of a row's captions a step trains on", "random", ("random", "first")),
            Option("num_beams", "captions kept at each step of generation; 1 takes the likeliest token", 1),
            Option("max_new_tokens", "longest generated caption; null goes by the training captions", None),
            Option("image_size", "side of the square that pictures are resized to; null is the model's own way", None),
            Option("decoder_layers", "layers of the decoder that a vision encoder is joined to", 3),
            Option("decoder_width", "width of that decoder", 256),
            Option("vocabulary", "most tokens of that decoder, learned from the training captions", 4000),
        ),
        ignores=("train.class_weights", "train.loss"),
    )

    def demo_rows(self) -> Sequence[Row]:
        """Return small pictures of squares in different colours and places, drawn here."""
        return tuple(
            {"image": _square(colour, side), "captions": [f"a {colour} square on the {side}", f"one {colour} square"]}
            for colour, side in (("red", "left"), ("blue", "right"), ("green", "left"), ("yellow", "right"))
        )

    def facts(self, rows: Sequence[Row], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tokenizer of a new decoder as JSON, and how long captions are in its tokens.

        ``usual`` is the length that one caption in a hundred exceeds.
        """
        _check_options(options)
        texts = [text for i, row in enumerate(rows, start=1) for text in captions_of(row, f"training row {i}")]
        tokenizer = train_tokenizer(texts, int(options.get("vocabulary") or 4000))
        lengths = sorted(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))
        return {
            "usual": lengths[(99 * (len(lengths) - 1)) // 100],
            "longest": lengths[-1],
            "tokenizer": tokenizer.to_str(),
        }

    def load_processor(self, source: ModelSource, context: TaskContext) -> CaptionProcessor:
        """Return image processor and tokenizer."""
        return load_processor(source, context)

    def load_model(self, source: ModelSource, context: TaskContext) -> torch.nn.Module:
        """Return a captioner of transformers, or a vision encoder joined to a new decoder."""
        return load_captioner(source, context)

    def encode(self, rows: Sequence[Row], context: TaskContext) -> list[dict[str, Any]]:
        """Return the bytes of each resized picture, and the token ids of each caption under ``labels``."""
        pixels = context.processor.pixels(rows)
        features: list[dict[str, Any]] = [{"pixels": array} for array in pixels]
        for i, (feature, row) in enumerate(zip(features, rows, strict=True), start=1):
            if "captions" in row:
                feature["labels"] = context.processor.ids(captions_of(row, f"row {i}"), _longest(context))
        return features

    def collate(self, features: Sequence[Mapping[str, Any]], context: TaskContext) -> dict[str, torch.Tensor]:
        """Return pictures, captions so far, and the token after each, ``(batch, seq)``.

        Of several captions one is drawn, anew in each batch, from torch's generator, which each trial seeds.
        """
        import torch

        batch = {"pixel_values": context.processor.scaled([feature["pixels"] for feature in features])}
        if "labels" in features[0]:
            drawn = context.options.get("training_caption", "random") == "random"
            captions = [
                feature["labels"][
                    int(torch.randint(len(feature["labels"]), ())) if drawn and len(feature["labels"]) > 1 else 0
                ]
                for feature in features
            ]
            batch |= _sequences(captions, context.processor)
        return batch

    def length(self, feature: Mapping[str, Any]) -> int:
        """Return the tokens of the first caption; 1 without any."""
        return len(feature["labels"][0]) if "labels" in feature else 1

    def loss(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], context: TaskContext) -> torch.Tensor:
        """Return the cross-entropy of the next tokens, with label smoothing."""
        from torch.nn import functional

        logits = next_token_logits(model, batch).float()
        return functional.cross_entropy(
            logits.flatten(0, 1),
            batch["labels"].flatten(),
            ignore_index=IGNORED,
            label_smoothing=float(context.params.get("train.label_smoothing") or 0.0),
        )

    def predict(self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32) -> list[Prediction]:
        """Return ``{"caption"}`` for each row."""
        import torch

        model.eval()
        found: list[Prediction] = []
        with torch.inference_mode():
            for start in range(0, len(rows), batch_size):
                pixels = context.processor.pixels(rows[start : start + batch_size], start + 1)
                ids = generate(model, context.processor.scaled(pixels).to(context.device), context)
                found.extend({"caption": caption} for caption in context.processor.texts(ids))
        return found

    def outputs(self, context: TaskContext) -> Sequence[Output]:
        """Return the caption."""
        return (Output("caption", str, "what the picture shows"),)

    def score_targets(
        self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32
    ) -> Sequence[Mapping[str, Any]]:
        """Return the log-likelihood of each row's first caption, in nats, and its ``tokens``, the end among them."""
        import torch

        model.eval()
        found = []
        with torch.inference_mode():
            for start in range(0, len(rows), batch_size):
                part = rows[start : start + batch_size]
                first = [captions_of(row, f"row {start + i}")[0] for i, row in enumerate(part, start=1)]
                batch = {"pixel_values": context.processor.scaled(context.processor.pixels(part, start + 1))}
                batch |= _sequences(context.processor.ids(first, _longest(context)), context.processor)
                batch = {name: value.to(context.device) for name, value in batch.items()}
                logs = next_token_logits(model, batch).float().log_softmax(-1)
                counted = batch["labels"] != IGNORED
                each = logs.gather(-1, batch["labels"].clamp(min=0)[..., None])[..., 0] * counted
                found += [
                    {"log_likelihood": likelihood, "tokens": tokens}
                    for likelihood, tokens in zip(each.sum(1).tolist(), counted.sum(1).tolist(), strict=True)
                ]
        return found

    def reference(self, row: Row, context: TaskContext) -> list[str]:
        """Return all captions of the row."""
        return captions_of(row)

    def baselines(self, rows: Sequence[Row], context: TaskContext) -> Sequence[Baseline]:
        """Return the most frequent caption, and that of the training picture that looks most alike."""
        import torch

        return (most_frequent(rows), nearest_picture(rows, torch.get_num_threads()))

    def export_settings(self, context: TaskContext) -> dict[str, Any]:
        """Return how captions are written; how pictures are resized, the image processor's own file says."""
        return {
            "max_new_tokens": longest_caption(context),
            "num_beams": int(context.options.get("num_beams") or 1),
            "start_token_id": context.processor.start,
            "end_token_id": context.processor.end,
        }

    def details(self, rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext) -> Sequence[Detail]:
        """Return how varied captions are, and the pictures with the best and the worst ones."""
        said = [prediction["caption"] for prediction in predictions]
        true = [captions_of(row) for row in rows]
        scores = cider_d(
            [caption_tokens(text) for text in said], [[caption_tokens(text) for text in row] for row in true]
        )
        order = sorted(range(len(rows)), key=lambda i: (-scores[i], i))
        shown = min(SHOWN, len(rows) // 2)

        def page(title: str, chosen: Sequence[int]) -> Pictures:
            return Pictures(title, tuple(_shown(rows[i], said[i], true[i], float(scores[i])) for i in chosen))

        found: list[Detail] = [_variety(said, [row[0] for row in true])]
        if shown:
            found.append(page("Best captions, by CIDEr-D", order[:shown]))
            found.append(page("Worst captions, by CIDEr-D", order[::-1][:shown]))
        return found


def _check_options(options: Mapping[str, Any]) -> None:
    for name, least in LEAST.items():
        value = options.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise DataError(f"task_options.{name}: needs a whole number from {least} on, given {value!r}")


def _square(colour: str, side: str) -> bytes:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (32, 32), "white")
    left = 4 if side == "left" else 18
    ImageDraw.Draw(picture).rectangle((left, 10, left + 10, 20), fill=colour)
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def _longest(context: TaskContext) -> int:
    """Return the most tokens of a training caption, its end among them; the start takes the first position."""
    return min(context.max_length, positions(context))


def _sequences(captions: Sequence[Sequence[int]], processor: CaptionProcessor) -> dict[str, torch.Tensor]:
    """Return captions so far (the start first), which of them count, and the token after each; ``(batch, seq)``."""
    import torch

    longest = max(len(ids) for ids in captions)
    pad = processor.tokenizer.pad_token_id
    filler = processor.end if pad is None else pad
    given = torch.full((len(captions), longest), filler)
    wanted = torch.full((len(captions), longest), IGNORED)
    for i, ids in enumerate(captions):
        wanted[i, : len(ids)] = torch.tensor(ids)
        given[i, : len(ids)] = torch.tensor([processor.start, *ids[:-1]])
    return {"input_ids": given, "attention_mask": (wanted != IGNORED).long(), "labels": wanted}


def _variety(said: Sequence[str], true: Sequence[str]) -> Table:
    def figures(name: str, texts: Sequence[str]) -> tuple[Any, ...]:
        words = [caption_tokens(text) for text in texts]
        count = max(1, len(texts))
        return name, sum(map(len, words)) / count, len(set(texts)) / count, len({word for row in words for word in row})

    return Table(
        "How varied captions are",
        ("", "words a caption", "share of different captions", "different words"),
        (figures("predicted", said), figures("true (first of each row)", true)),
    )


def _shown(row: Row, said: str, true: Sequence[str], score: float) -> Picture:
    lines = [("predicted", said), *(("true", text) for text in true[:3]), ("CIDEr-D", f"{score:.2f}")]
    return Picture(thumbnail(open_picture(row["image"], "a test row")), tuple(lines))
