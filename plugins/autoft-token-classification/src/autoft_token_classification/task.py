"""The task: a tag for each word, and the entities that the tags stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from autoft.contracts import (
    Baseline,
    Column,
    Detail,
    ExportSpec,
    ModelSource,
    Option,
    Output,
    Prediction,
    Row,
    Task,
    TaskCard,
    TaskContext,
)
from autoft.errors import DataError, ModelError
from autoft.losses import classification_loss
from autoft.pretrained import load_network, load_tokenizer
from autoft_token_classification.answers import Decoder
from autoft_token_classification.schemes import SCHEMES, detect_scheme, order_tags, read_entities, split_tag
from autoft_token_classification.sentences import Sentence, read_list, read_sentence, read_tags, true_entities
from autoft_token_classification.windows import Window, cut_windows, word_prefix

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["TokenClassification"]

MOST_TAGS = 1000
IGNORED = -100
"""Label of sub-words that no loss is computed for."""
TOKENS_AT_ONCE = 2**15
"""Of a training batch with more, parts go through the model one after the other, and again for their gradients."""


class TokenClassification(Task):
    """Tags of words: named entities, chunks, parts of speech."""

    card = TaskCard(
        name="token-classification",
        summary="a tag for each word: named entities, chunks, parts of speech",
        columns=(
            # The first input is what a plain text is read as.
            Column("text", "text", "the text to tag", required=False, guesses=("text", "sentence", "content")),
            Column(
                "tokens",
                "tokens",
                "the words: a list, or a text of words parted by white space",
                required=False,
                guesses=("tokens", "words", "token", "characters"),
            ),
            Column(
                "tags",
                "tags",
                "the tag of each word: a list, or a text of tags parted by white space",
                target=True,
                required=False,
                guesses=(
                    "tags",
                    "ner_tags",
                    "labels",
                    "ner",
                    "bio_tags",
                    "iob_tags",
                    "pos_tags",
                    "upos",
                    "chunk_tags",
                    "label",
                ),
            ),
            Column(
                "spans",
                "span",
                "instead of tags: a list of {start, end, label}, in characters of text",
                target=True,
                required=False,
                guesses=("spans", "entities", "annotations"),
                of="text",
            ),
        ),
        metrics=("entity_f1", "entity_precision", "entity_recall", "entity_f1_macro", "token_accuracy"),
        architecture="token-classification",
        hub_pipeline="token-classification",
        alternatives=(("tokens", "tags"), ("text", "tags"), ("text", "spans")),
        models=("distilbert/distilbert-base-cased", "google-bert/bert-base-cased"),
        windows=True,
        options=(
            Option("scheme", "of the tags; auto looks at the data, spans are iob2", "auto", ("auto", *SCHEMES)),
            Option(
                "decoding",
                "the best tag of each word, or the best sequence that the scheme allows",
                "argmax",
                ("argmax", "viterbi"),
            ),
            Option("strict", "leave out entities that are not tagged as the scheme says", False, (False, True)),
            Option("tag_names", "names of tags that are numbers, from 0, parted by spaces", ""),
        ),
    )

    def demo_rows(self) -> Sequence[Row]:
        """Return sentences with persons and places."""
        rows = (
            ("Ada Lovelace was born in London .", "B-PER I-PER O O O B-LOC O"),
            ("The train from Oslo to Bergen is late .", "O O O B-LOC O B-LOC O O O"),
            ("Grace Hopper met Howard Aiken at Harvard .", "B-PER I-PER O B-PER I-PER O B-LOC O"),
            ("Nobody lives on Rockall .", "O O O B-LOC O"),
            ("Turing left Manchester in June .", "B-PER O B-LOC O O O"),
        )
        return tuple({"tokens": words.split(), "tags": tags.split()} for words, tags in rows)

    def facts(self, rows: Sequence[Row], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags, their scheme and counts, the types of entities, and which columns say so.

        Raises:
            DataError: neither tags nor spans are there, or a row cannot be read, or there is nothing to tell apart.
        """
        present = {role for row in rows for role in ("text", "tokens", "tags", "spans") if row.get(role) is not None}
        facts: dict[str, Any] = {"tag_names": str(options.get("tag_names") or "").split()}
        if "tags" in present:
            facts |= {"targets": "tags", "words": "tokens" if "tokens" in present else "text", "split": "space"}
        elif "spans" in present:
            facts |= {"targets": "spans", "words": "text", "split": "words"}
        if "targets" not in facts or facts["words"] not in present:
            raise DataError(
                "the data needs 'tokens' and 'tags' (lists of words and of their tags), 'text' and 'tags', or 'text' and "
                f"'spans' (lists of {{start, end, label}}); found {' and '.join(sorted(present)) or 'none of them'}. Say "
                "which column is which, as\n  data:\n    columns: {tokens: words, tags: ner}"
            )
        wanted = str(options.get("scheme", "auto"))
        if facts["targets"] == "spans":
            if wanted == "plain":
                raise DataError("task_options.scheme is plain, but the data has spans; set it to auto or iob2")
            facts["scheme"] = "iob2" if wanted == "auto" else wanted
        counts: Counter[str] = Counter()
        tagged: list[list[str]] = []
        loose = 0
        for number, row in enumerate(rows):
            sentence = read_sentence(row, facts, number)
            tags = read_tags(row, sentence, facts, number)
            counts.update(tags)
            tagged.append(tags)
            if facts["targets"] == "spans":
                borders = {place for places in sentence.places or () for place in places}
                spans = true_entities(row, sentence, facts, strict=False, number=number)
                loose += sum(span.start not in borders or span.end not in borders for span in spans)
        if "scheme" not in facts:
            facts["scheme"] = detect_scheme(tagged) if wanted == "auto" else wanted
        scheme = facts["scheme"]
        _check_tags(counts, scheme, len(rows), str(facts["targets"]))
        kinds = {entity.label for tags in tagged for entity in read_entities(tags, scheme)}
        if facts["targets"] == "tags" and facts["words"] == "tokens":
            # A plain text that such a model is given: signs stand apart in tagged corpora.
            facts["split"] = "words"
        names = order_tags(counts, scheme)
        return {
            **facts,
            "labels": names,
            "counts": {name: counts[name] for name in names},
            "types": sorted(kinds),
            "rows": len(rows),
            "loose": loose,
        }

    def stratum(self, row: Row) -> str | None:
        """Return whether the row has any entity."""
        tags = row.get("tags")
        tags = read_list(tags, str | int) if isinstance(tags, str) else tags
        spans = row.get("spans")
        spans = read_list(spans, dict) if isinstance(spans, str) else spans
        found = any(tag != "O" for tag in tags) if isinstance(tags, list | tuple) else bool(spans)
        return "some" if found else "none"

    def load_processor(self, source: ModelSource, context: TaskContext) -> Any:
        """Return the tokenizer; one without a padding token pads with its end token.

        Raises:
            ModelError: it cannot be loaded, or does not say which word a sub-word is of.
        """
        tokenizer = load_tokenizer(source)
        if not tokenizer.is_fast:
            raise ModelError(
                f"{source.path}: {type(tokenizer).__name__} does not say which word a sub-word is of; this task needs a "
                "tokenizer of the tokenizers library (tokenizer.json)"
            )
        tokenizer.truncation_side = "right"
        return tokenizer

    def load_model(self, source: ModelSource, context: TaskContext) -> torch.nn.Module:
        """Return the model with an output for each tag."""
        names = list(context.labels)
        return load_network(
            "AutoModelForTokenClassification",
            source,
            context,
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
        )

    def encode(self, rows: Sequence[Row], context: TaskContext) -> list[dict[str, Any]]:
        """Return the windows of each row, one after the other in flat lists, and ``windows``, the length of each.

        ``labels`` holds the number of a word's tag at the sub-word that it is judged by, and -100 elsewhere. So have
        tags that training did not show, which only validation and test rows can have.
        """
        sentences = [read_sentence(row, context.facts, number) for number, row in enumerate(rows)]
        cut = cut_windows([sentence.words for sentence in sentences], context.processor, context.max_length)
        place = {name: i for i, name in enumerate(context.labels)}
        features: list[dict[str, Any]] = []
        for number, (row, sentence, windows) in enumerate(zip(rows, sentences, cut, strict=True)):
            feature: dict[str, Any] = {
                name: [value for window in windows for value in window.inputs[name]] for name in windows[0].inputs
            }
            feature["windows"] = [len(window) for window in windows]
            if row.get(context.facts["targets"]) is not None:
                tags = read_tags(row, sentence, context.facts, number)
                labels = []
                for window in windows:
                    own = [IGNORED] * len(window)
                    for word, at in window.words:
                        own[at] = place.get(tags[word], IGNORED)
                    labels += own
                feature["labels"] = labels
            features.append(feature)
        return features

    def collate(self, features: Sequence[Mapping[str, Any]], context: TaskContext) -> dict[str, torch.Tensor]:
        """Return tensors ``(windows, seq)`` of the windows of all rows, with their ``labels`` where rows have any."""
        windows = []
        for feature in features:
            at = 0
            for length in feature["windows"]:
                part = {name: values[at : at + length] for name, values in feature.items() if name != "windows"}
                windows.append(part)
                at += length
        return _padded(windows, context)

    def loss(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], context: TaskContext) -> torch.Tensor:
        """Return the loss over words, as ``train.loss``, class weights and label smoothing say."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits = _logits(model, inputs).float()
        labels = batch["labels"].reshape(-1)
        if not bool((labels != IGNORED).any()):
            # A batch of rows without a word to learn from.
            return logits.sum() * 0.0
        counts = [int(context.facts["counts"][name]) for name in context.labels]
        return classification_loss(
            logits.reshape(len(labels), -1), labels, context.params, counts, ignore_index=IGNORED
        )

    def predict(self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32) -> list[Prediction]:
        """Return ``{"tags", "scores", "entities", "offsets"}`` for each row, and ``tokens`` for rows of text.

        Entities are ``{"label", "start", "end", "text", "score"}``, in characters of a text and in words of a list, as
        ``offsets`` says; their score is the mean probability of their tags. With plain tags there are none.
        """
        sentences = [read_sentence(row, context.facts, number) for number, row in enumerate(rows)]
        decoder = Decoder(context)
        return [
            decoder.answer(sentence, scores)
            for sentence, scores in zip(sentences, _scores(model, sentences, context, batch_size), strict=True)
        ]

    def outputs(self, context: TaskContext) -> Sequence[Output]:
        """Return tags and scores, words of texts, and entities unless tags are plain ones."""
        found = (
            Output("tags", list[str], "the tag of each word"),
            Output("scores", list[float], "probability of each of these tags"),
            Output("tokens", list[str], "the words, where the row is a text", required=False),
        )
        if context.facts.get("scheme") == "plain":
            return found
        return (
            *found,
            Output("offsets", Literal["characters", "words"], "what start and end of entities count"),
            Output(
                "entities", list[dict[str, Any]], "each {label, start, end, text, score}; end is behind the last one"
            ),
        )

    def member_predictions(
        self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32
    ) -> list[Prediction]:
        """Return the words of each row as a :class:`Sentence`, and the log-probabilities ``(words, tags)``."""
        sentences = [read_sentence(row, context.facts, number) for number, row in enumerate(rows)]
        scores = _scores(model, sentences, context, batch_size)
        return [{"sentence": words, "scores": each} for words, each in zip(sentences, scores, strict=True)]

    def combine(self, predictions: Sequence[Sequence[Prediction]], context: TaskContext) -> list[Prediction] | None:
        """Return what the mean of the models' probabilities of each tag says."""
        import numpy as np

        decoder = Decoder(context)
        return [
            decoder.answer(
                said[0]["sentence"], np.logaddexp.reduce([one["scores"] for one in said]) - np.log(len(said))
            )
            for said in zip(*predictions, strict=True)
        ]

    def reference(self, row: Row, context: TaskContext) -> Any:
        """Return the tags and the entities of a row, ``{"tags", "entities"}``."""
        sentence = read_sentence(row, context.facts, 0)
        tags = read_tags(row, sentence, context.facts, 0)
        if context.facts["scheme"] == "plain":
            return {"tags": tags}
        strict = bool(context.options.get("strict"))
        entities = true_entities(row, sentence, context.facts, strict=strict, number=0)
        return {"tags": tags, "entities": [entity._asdict() for entity in entities]}

    def baselines(self, rows: Sequence[Row], context: TaskContext) -> Sequence[Baseline]:
        """Return the most frequent tag, the most frequent tag of each word, and a linear model of a word's looks."""
        from autoft_token_classification.baselines import lexicon, linear, majority

        sentences = [read_sentence(row, context.facts, number) for number, row in enumerate(rows)]
        tags = [
            read_tags(row, sentence, context.facts, number)
            for number, (row, sentence) in enumerate(zip(rows, sentences, strict=True))
        ]
        words = [sentence.words for sentence in sentences]
        return (majority(context), lexicon(words, tags, context), linear(words, tags, context))

    def export_inputs(self, context: TaskContext) -> ExportSpec:
        """Return two sentences of different length, padded: batch and sequence vary."""
        sentences = (("a", "short", "one"), ("a", "somewhat", "longer", "one", "than", "the", "other"))
        windows = [parts[0].inputs for parts in cut_windows(sentences, context.processor, context.max_length)]
        batch = _padded(windows, context)
        return ExportSpec(inputs=batch, dynamic={name: {0: "batch", 1: "seq"} for name in batch})

    def export_settings(self, context: TaskContext) -> dict[str, Any]:
        """Return how words are given to the tokenizer, and how their tags are read."""
        return {
            "word_prefix": word_prefix(context.processor),
            "scheme": context.facts["scheme"],
            "decoding": context.options.get("decoding", "argmax"),
        }

    def details(self, rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext) -> Sequence[Detail]:
        """Return figures and kinds of errors for each type, and sentences with what was found and missed."""
        from autoft_token_classification.details import report

        sentences = [read_sentence(row, context.facts, number) for number, row in enumerate(rows)]
        references = [self.reference(row, context) for row in rows]
        return report(sentences, predictions, references, context)


def _check_tags(counts: Mapping[str, int], scheme: str, rows: int, column: str) -> None:
    if len(counts) < 2:
        only = next(iter(counts), None)
        what = "have no words" if only is None else f"have the tag {only!r} for every word"
        raise DataError(f"all {rows} training rows {what}; there is nothing to tell apart")
    if len(counts) > MOST_TAGS:
        raise DataError(
            f"the training rows have {len(counts)} different {column}, as {next(iter(counts))!r}; these look like words or "
            f"ids: map the right column with data.columns.{column}"
        )
    if scheme in {"io", "plain"}:
        return
    unread = [tag for tag in counts if split_tag(tag) is None]
    if unread:
        raise DataError(
            f"task_options.scheme is {scheme}, but the tag {unread[0]!r} has no prefix as in 'B-{unread[0]}'; set it to "
            "io or plain"
        )
    prefixes = {tag[0] for tag in counts}
    known = {"iob1": "BIO", "iob2": "BIO", "iobes": "BIESMO", "bilou": "BILUO"}[scheme]
    strange = sorted(prefixes - set(known))
    if strange:
        raise DataError(
            f"the tags are read as {scheme}, which has the prefixes {', '.join(known)}, but some begin with "
            f"{', '.join(strange)}; task_options.scheme says which it is"
        )
    if scheme == "iobes" and not prefixes & set("BS"):
        raise DataError(
            "the tags say where entities end (E-) and never where they begin (B-, S-): rewrite IOE tags as IOB"
        )


def _scores(model: Any, sentences: Sequence[Sentence], context: TaskContext, batch_size: int) -> list[np.ndarray]:
    """Return the log-probability of each tag for each word of each sentence, ``(words, tags)``."""
    import numpy as np
    import torch

    if isinstance(model, torch.nn.Module):
        model.eval()
    cut = cut_windows([sentence.words for sentence in sentences], context.processor, context.max_length)
    scores = [np.zeros((len(sentence.words), len(context.labels))) for sentence in sentences]
    # Windows of like length go together, so that little is computed on padding.
    order: list[tuple[int, Window]] = [(i, window) for i, windows in enumerate(cut) for window in windows]
    order.sort(key=lambda item: len(item[1]))
    left = context.processor.padding_side == "left"
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = _padded([window.inputs for _, window in chosen], context)
            inputs = {name: value.to(context.device) for name, value in batch.items()}
            found = model(**inputs).logits.float().log_softmax(-1).cpu().numpy()
            for (i, window), each in zip(chosen, found, strict=True):
                shift = len(each) - len(window) if left else 0
                words, places = zip(*window.words, strict=True) if window.words else ((), ())
                scores[i][list(words)] = each[[place + shift for place in places]]
    return scores


def _padded(windows: Sequence[Mapping[str, list[int]]], context: TaskContext) -> dict[str, torch.Tensor]:
    import torch

    inputs = [{name: values for name, values in window.items() if name != "labels"} for window in windows]
    batch = dict(context.processor.pad(inputs, return_tensors="pt"))
    if "labels" in windows[0]:
        length = batch["input_ids"].shape[1]
        left = context.processor.padding_side == "left"
        rows = []
        for window in windows:
            filling = [IGNORED] * (length - len(window["labels"]))
            rows.append([*filling, *window["labels"]] if left else [*window["labels"], *filling])
        batch["labels"] = torch.tensor(rows, dtype=torch.long)
    return batch


def _logits(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return ``(windows, seq, tags)``; windows of long documents in parts, so that their activations fit."""
    import torch
    from torch.utils.checkpoint import checkpoint

    windows, length = inputs["input_ids"].shape
    at_once = max(1, TOKENS_AT_ONCE // length)
    if windows <= at_once:
        logits: torch.Tensor = model(**inputs).logits
        return logits

    def part(start: int) -> torch.Tensor:
        logits: torch.Tensor = model(**{name: value[start : start + at_once] for name, value in inputs.items()}).logits
        return logits

    return torch.cat([checkpoint(part, start, use_reentrant=False) for start in range(0, windows, at_once)])
