"""The task: the span of a context that answers a question, or that there is none.

Everything that a task over other data may want to read, cut, decide or show differently is a method of its own:
:meth:`~QuestionAnswering.texts`, :meth:`~QuestionAnswering.answers`, :meth:`~QuestionAnswering.window_starts`,
:meth:`~QuestionAnswering.best_spans`, :meth:`~QuestionAnswering.decide`, :meth:`~QuestionAnswering.question_kind`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
from autoft.pretrained import load_network, load_tokenizer, loading
from autoft.strategies.places import cuts_a_word

if TYPE_CHECKING:
    import torch

__all__ = ["Answer", "QuestionAnswering", "SpanScores"]

QUESTION_WORDS: dict[str, str] = {
    "how many, how much": r"\bhow (many|much)\b|多少|几[个位年月天次座]|幾[個位年月天次座]",
    "when": r"\b(when|(what|which) (year|day|date|month|century|decade|time))\b|(什么|哪个?|何)(时候|年|月|日)|何时|何時",
    "where": r"\b(where|(what|which) (city|country|state|place|town))\b|哪里|哪裡|哪儿|在哪|何处|何處",
    "who": r"\b(who|whom|whose)\b|谁|誰|哪位",
    "why": r"\bwhy\b|为什么|為什麼|为何|為何",
    "how": r"\bhow\b|如何|怎么|怎麼|怎样|怎樣",
    "which": r"\bwhich\b|哪",
    "what": r"\bwhat\b|什么|什麼|何",
}
"""What a question asks for, by the first pattern that its text holds."""


@dataclass(frozen=True)
class Answer:
    """A right answer and where it stands in the context: characters ``start`` to ``end``."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class SpanScores:
    """What :meth:`QuestionAnswering.best_spans` says of one window; token places count from its beginning.

    Attributes:
        scores: of the best spans, the best first: start logit plus end logit.
        starts: the first token of each.
        ends: the last token of each.
        total: log of the sum of ``exp(score)`` over all legal spans.
        null: start and end logit of the place that stands for no answer.
    """

    scores: Sequence[float]
    starts: Sequence[int]
    ends: Sequence[int]
    total: float
    null: tuple[float, float]


class QuestionAnswering(Task):
    """The span of a context that answers a question, or that there is none."""

    card = TaskCard(
        name="question-answering",
        summary="the span of a context that answers a question, or that it holds no answer",
        columns=(
            Column("question", "text", "the question", guesses=("query", "question_text")),
            Column(
                "context",
                "text",
                "the text that may hold the answer",
                guesses=("passage", "paragraph", "document", "article", "text", "context_text"),
            ),
            Column(
                "answers",
                "span",
                'the answers: {"text": [...], "answer_start": [...]}, a text or a list of texts; an empty list for none',
                target=True,
                guesses=("answer", "answer_text", "label", "target", "span"),
                of="context",
            ),
        ),
        metrics=("qa_f1", "exact_match", "has_answer_f1", "has_answer_exact", "no_answer_accuracy", "best_qa_f1"),
        architecture="question-answering",
        models=("distilbert/distilbert-base-uncased", "google-bert/bert-base-uncased"),
        windows=True,
        ignores=("train.label_smoothing", "train.class_weights", "train.loss"),
        options=(
            Option("max_answer_tokens", "the longest answer that is given, in tokens", 30),
            Option("max_question_tokens", "tokens after which a question is cut", 64),
            Option("stride", "tokens that two windows of a long context share", 128),
            Option("train_windows", "windows of a context that a training step reads at most; predictions read all", 4),
            Option("candidates", "spans that a prediction lists", 3),
            Option(
                "missing_answer",
                "a row whose answer is not in its context: an error, or read as unanswerable",
                "error",
                ("error", "unanswerable"),
            ),
            Option(
                "no_answer_threshold",
                "no_answer above which a question is left unanswered; none: the best for F1 on validation",
                None,
            ),
        ),
    )

    def demo_rows(self) -> Sequence[Row]:
        """Return questions about two short texts, one of them without an answer."""
        lighthouse = (
            "The lighthouse on Skerry Point was built in 1811 by Agnes Muir. Its lamp burned whale oil until 1869, "
            "and is seen for 28 miles on a clear night."
        )
        orchard = "梨园里有四十二棵树，由老陈在一九五三年种下。每年九月，村民们来摘梨。"
        return (
            _demo(lighthouse, "Who built the lighthouse?", "Agnes Muir"),
            _demo(lighthouse, "What did the lamp burn until 1869?", "whale oil"),
            _demo(lighthouse, "How far is the light seen on a clear night?", "28 miles"),
            _demo(lighthouse, "Who keeps the lighthouse today?", None),
            _demo(orchard, "梨园里有多少棵树？", "四十二"),
            _demo(orchard, "谁种下了这些树？", "老陈"),
        )

    # ------------------------------------------------------------------------------------------- reading rows

    def texts(self, row: Row, number: int = 0) -> tuple[str, str]:
        """Return the question and the context of a row.

        Args:
            row: with the two texts.
            number: of the row from 0, for messages.

        Raises:
            DataError: one of them is no text.
        """
        return _text(row, "question", number), _text(row, "context", number)

    def answers(self, row: Row, options: Mapping[str, Any], number: int = 0) -> list[Answer]:
        """Return the right answers of a row and their places in the context, none where the question has no answer.

        The text decides, and ``answer_start`` says which of its places is meant: the nearest. Without it, it is the first
        that cuts no word, as ``art`` does in ``artist``. A text that differs from the context only in case or white space is
        found too.

        Args:
            row: with its target.
            options: ``missing_answer`` says what to do with an answer that is not in the context.
            number: of the row from 0, for messages.

        Raises:
            DataError: the target is no answer, or the answer is not in the context.
        """
        _, text = self.texts(row, number)
        found = []
        for answer, start in _given_answers(row.get("answers"), text, number):
            place = _place(answer, start, text)
            if place is not None:
                found.append(Answer(text[place[0] : place[1]], *place))
            elif options.get("missing_answer", "error") == "error":
                raise DataError(
                    f"row {number + 1}: the answer {answer!r:.80} does not stand in the context {text!r:.80}; mend the "
                    "row, or set task_options.missing_answer to unanswerable to read such rows as without an answer"
                )
        return found

    def facts(self, rows: Sequence[Row], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return how many rows there are, how many of them have no answer, and whether any has none.

        Raises:
            DataError: a row cannot be read, no row has an answer, or an option is out of range.
        """
        _check_options(options)
        empty = sum(not self.answers(row, options, number) for number, row in enumerate(rows))
        if empty == len(rows):
            raise DataError(f"none of the {len(rows)} training rows has an answer; there is nothing to learn")
        return {"rows": len(rows), "unanswerable_rows": empty, "unanswerable": empty > 0}

    def warnings(self, rows: Sequence[Row], options: Mapping[str, Any]) -> Sequence[str]:
        """Return how many answers stand elsewhere than their ``answer_start`` says, and how many that have none at several places."""
        moved: dict[int, str] = {}
        several: dict[int, str] = {}
        for number, row in enumerate(rows):
            _, text = self.texts(row, number)
            for answer, start in _given_answers(row.get("answers"), text, number):
                if start is None:
                    if (count := len(_places(answer, text, alone=True))) > 1:
                        several.setdefault(
                            number, f"the answer {answer!r:.60} has no answer_start and stands at {count} places"
                        )
                elif (place := _place(answer, start, text)) and place[0] != start + len(answer) - len(answer.lstrip()):
                    moved.setdefault(number, f"the answer {answer!r:.60} does not stand at its answer_start, {start}")
        return [
            f"row {min(found) + 1}: {found[min(found)]}; {read} is read, in {len(found):,} of the {len(rows):,} rows"
            for found, read in ((moved, "the nearest place"), (several, "the first of them"))
            if found
        ]

    def stratum(self, row: Row) -> str | None:
        """Return whether the row's target names an answer; None where it cannot be read."""
        try:
            named = any(True for _ in _given_answers(row.get("answers"), str(row.get("context")), 0))
        except DataError:
            # What is wrong is told by facts(), which knows the row's number.
            return None
        return "answer" if named else "no answer"

    def reference(self, row: Row, context: TaskContext) -> Any:
        """Return the right answers as texts, an empty list where there is none."""
        return [answer.text for answer in self.answers(row, context.options)]

    # ------------------------------------------------------------------------------------------------- models

    def load_processor(self, source: ModelSource, context: TaskContext) -> Any:
        """Return the tokenizer; one of a model with global attention says so in its ``model_input_names``.

        Raises:
            ModelError: there is none, or it does not say where in the text its tokens are.
        """
        tokenizer = load_tokenizer(source)
        if not tokenizer.is_fast:
            raise ModelError(
                f"{source.path}: {type(tokenizer).__name__} does not say which characters its tokens stand for, which "
                "answers need; use a model with a tokenizer.json"
            )
        if GLOBAL not in tokenizer.model_input_names and _has_global_attention(source):
            tokenizer.model_input_names = [*tokenizer.model_input_names, GLOBAL]
        return tokenizer

    def load_model(self, source: ModelSource, context: TaskContext) -> torch.nn.Module:
        """Return the model with a start and an end score for each token."""
        return load_network("AutoModelForQuestionAnswering", source, context, num_labels=2)

    def export_inputs(self, context: TaskContext) -> ExportSpec:
        """Return two windows of different length, padded: batch and sequence vary."""
        rows = [
            {"question": "who?", "context": "one of them"},
            {"question": "what?", "context": "this is a longer text"},
        ]
        batch = self.collate(self.encode(rows, context), context)
        inputs = {name: value for name, value in batch.items() if name not in NOT_FOR_THE_MODEL}
        dynamic = {name: {0: "batch", 1: "seq"} for name in inputs}
        return ExportSpec(inputs=inputs, dynamic=dynamic, outputs=("start_logits", "end_logits"))

    def export_settings(self, context: TaskContext) -> dict[str, Any]:
        """Return how long answers and questions are, how windows overlap, and when a question is left unanswered."""
        return {
            **{name: int(context.options[name]) for name in ("max_answer_tokens", "max_question_tokens", "stride")},
            "unanswerable": bool(context.facts.get("unanswerable")),
            "no_answer_threshold": self.threshold(context),
        }

    # ------------------------------------------------------------------------------------------------ windows

    def encode(self, rows: Sequence[Row], context: TaskContext) -> list[dict[str, Any]]:
        """Return the windows of each row, one after the other in flat lists, so that a row stays one feature.

        Every window is the question and a stretch of the context, with the special tokens of a pair.

        Returns:
            for each row ``input_ids`` (and what else the model reads of each token) of all windows; ``starts`` and
            ``ends``, the characters of the context that each token stands for, -1 where it can be no part of an answer;
            ``windows``, the length of each window; ``null``, the place in each that stands for no answer; and for rows with
            a target ``labels``, the first and the last token of the answer in each window, -1 where it is not there.
        """
        if not rows:
            return []
        texts = [self.texts(row, number) for number, row in enumerate(rows)]
        batch = context.processor(
            [question for question, _ in texts],
            [passage for _, passage in texts],
            return_offsets_mapping=True,
            verbose=False,
        )
        features = []
        for number, row in enumerate(rows):
            answers = self.answers(row, context.options, number) if self._has_target(row) else None
            features.append(self._feature(batch, number, texts[number][1], answers, context))
        return features

    def window_starts(self, tokens: int, room: int, context: TaskContext) -> list[int]:
        """Return where the windows over a context begin, so that every token is in one; the last one is full.

        Args:
            tokens: of the context.
            room: tokens of the context that one window takes.
            context: its option ``stride`` says how many tokens neighbours share, half of the room at most.
        """
        if tokens <= room:
            return [0]
        step = room - min(int(context.options["stride"]), room // 2)
        return [*range(0, tokens - room, step), tokens - room]

    def _has_target(self, row: Row) -> bool:
        return all(column.role in row for column in self.card.targets if column.required)

    def _feature(
        self, batch: Any, number: int, text: str, answers: Sequence[Answer] | None, context: TaskContext
    ) -> dict[str, Any]:
        sequence = np.array([-1 if part is None else part for part in batch.sequence_ids(number)])
        passage = np.flatnonzero(sequence == 1)
        before, after = _around(sequence, passage, context)
        room = max(1, context.max_length - len(before) - len(after))
        starts, ends = _trimmed_offsets(np.array(batch["offset_mapping"][number]).reshape(-1, 2), passage, text)
        windows = self.window_starts(len(passage), room, context)
        gold: dict[int, tuple[int, int]] = {}
        if answers:
            gold = _gold_spans(windows, room, _token_span(starts[passage], ends[passage], answers[0]))
        if answers is not None:
            windows = _kept_windows(windows, gold, int(context.options["train_windows"]))
        places = [np.concatenate([before, passage[at : at + room], after]).astype(int) for at in windows]
        flat = np.concatenate(places)
        feature: dict[str, Any] = {
            name: np.array(batch[name][number])[flat].tolist()
            for name in context.processor.model_input_names
            if name in batch and name != "attention_mask"
        }
        if GLOBAL in context.processor.model_input_names:
            # The question and the place of no answer before it see, and are seen by, all tokens (Beltagy et al. 2020,
            # arXiv 2004.05150, section 6).
            feature[GLOBAL] = (flat <= before[sequence[before] == 0].max(initial=0)).astype(int).tolist()
        ids = np.array(batch["input_ids"][number])[before]
        null = np.flatnonzero(ids == context.processor.cls_token_id)
        feature |= {
            "starts": starts[flat].tolist(),
            "ends": ends[flat].tolist(),
            "windows": [len(place) for place in places],
            "null": int(null[0]) if len(null) else 0,
        }
        if answers is not None:
            absent = (-1, -1) if gold else (feature["null"], feature["null"])
            spans = [(gold[at][0] + len(before), gold[at][1] + len(before)) if at in gold else absent for at in windows]
            feature["labels"] = [place for span in spans for place in span]
        return feature

    def collate(self, features: Sequence[Mapping[str, Any]], context: TaskContext) -> dict[str, torch.Tensor]:
        """Return all windows of the rows as one padded batch, ``(windows, seq)`` per input of the model.

        Further tensors: ``legal`` ``(windows, seq)``, 1 where a token can be part of an answer; ``null`` ``(windows,)``;
        ``row`` ``(windows,)``, of which feature each window is; and ``labels`` ``(windows, 2)`` where features have any.
        """
        import torch

        windows = [window for row, feature in enumerate(features) for window in _split(feature, row)]
        batch = self._padded(windows, context)
        batch["row"] = torch.tensor([window["row"] for window in windows])
        if "labels" in windows[0]:
            batch["labels"] = torch.tensor([window["labels"] for window in windows])
        return batch

    def _padded(self, windows: Sequence[Mapping[str, Any]], context: TaskContext) -> dict[str, torch.Tensor]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        processor = context.processor
        fill = {"input_ids": processor.pad_token_id or 0, "token_type_ids": processor.pad_token_type_id}

        def padded(name: str) -> torch.Tensor:
            values = [torch.tensor(window[name]) for window in windows]
            return pad_sequence(values, batch_first=True, padding_value=fill.get(name, 0))

        names = [name for name in (*processor.model_input_names, GLOBAL) if name in windows[0]]
        batch = {name: padded(name) for name in names}
        lengths = torch.tensor([len(window["input_ids"]) for window in windows])
        if "attention_mask" in processor.model_input_names:
            batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        starts = pad_sequence([torch.tensor(w["starts"]) for w in windows], batch_first=True, padding_value=-1)
        batch["legal"] = (starts >= 0).long()
        batch["null"] = torch.tensor([window["null"] for window in windows])
        return batch

    def loss(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], context: TaskContext) -> torch.Tensor:
        """Return the mean over rows of minus the log-likelihood of the answer's start and end, halved.

        Starts compete over all windows of a row, ends likewise: shared normalization (Clark & Gardner 2018, arXiv
        1710.10723), so that scores of windows can be compared. The answer is likely where start and end are in one of the
        windows that hold it. Of a row with one window it is the usual loss, over the context's tokens and the place that
        stands for no answer.
        """
        import torch

        inputs = {name: value for name, value in batch.items() if name not in NOT_FOR_THE_MODEL}
        output = model(**inputs)
        allowed = batch["legal"].bool().scatter(1, batch["null"][:, None], True)
        row, labels = batch["row"], batch["labels"]
        # The number of each window among those of its row.
        place = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
        shape = (int(row.max()) + 1, int(place.max()) + 1)

        def over_windows(values: torch.Tensor) -> torch.Tensor:
            table = values.new_full(shape, -math.inf)
            return table.index_put((row, place), values).logsumexp(1)

        spread, gold = torch.zeros(shape[0], device=row.device), torch.zeros(len(row), device=row.device)
        for side, logits in enumerate((output.start_logits, output.end_logits)):
            scores = logits.float().masked_fill(~allowed, -math.inf)
            right = scores.gather(1, labels[:, side, None].clamp(min=0))[:, 0]
            gold = gold + right.masked_fill(labels[:, side] < 0, -math.inf)
            spread = spread + over_windows(scores.logsumexp(1))
        return (spread - over_windows(gold)).mean() / 2

    # -------------------------------------------------------------------------------------------- predictions

    def predict(self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32) -> list[Prediction]:
        """Return the best span of each row's context, or none, as :meth:`decide` does; ``batch_size`` counts windows."""
        import torch

        if isinstance(model, torch.nn.Module):
            model.eval()
        found: list[Prediction] = []
        # In pieces, for the windows of many long contexts fill the memory.
        for at in range(0, len(rows), PREDICTED_TOGETHER):
            found += self._predicted(model, rows[at : at + PREDICTED_TOGETHER], context, batch_size)
        return found

    def _predicted(self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int) -> list[Prediction]:
        import torch

        targets = {column.role for column in self.card.targets}
        features = self.encode([{k: v for k, v in row.items() if k not in targets} for row in rows], context)
        windows = [window for row, feature in enumerate(features) for window in _split(feature, row)]
        # Windows of like length go together, so that little is computed on padding.
        order = sorted(range(len(windows)), key=lambda i: len(windows[i]["input_ids"]))
        found: dict[int, SpanScores] = {}
        with torch.inference_mode():
            for at in range(0, len(order), batch_size):
                chosen = order[at : at + batch_size]
                padded = self._padded([windows[i] for i in chosen], context)
                inputs = {k: v.to(context.device) for k, v in padded.items() if k not in NOT_FOR_THE_MODEL}
                output = model(**inputs)
                logits = (output.start_logits.float().cpu(), output.end_logits.float().cpu())
                scored = self.best_spans(*logits, padded["legal"].bool(), padded["null"], context)
                found.update(zip(chosen, scored, strict=True))
        scores: list[list[tuple[Mapping[str, Any], SpanScores]]] = [[] for _ in rows]
        for i, window in enumerate(windows):
            scores[window["row"]].append((window, found[i]))
        return [self.decide(row, own, context) for row, own in zip(rows, scores, strict=True)]

    def outputs(self, context: TaskContext) -> Sequence[Output]:
        """Return what :meth:`decide` does."""
        return (
            Output("answer", str, "the span that answers the question; an empty text where there is no answer"),
            Output("start", int, "its first character in the context; -1 without an answer"),
            Output("end", int, "the one after its last character; -1 without an answer"),
            Output("score", float, "how likely this answer is among all, or that there is none"),
            Output("no_answer", float, "how likely it is that there is no answer, beside the best span"),
            Output("candidates", list[dict[str, Any]], "the best spans, each {answer, start, end, score}"),
        )

    def best_spans(
        self,
        starts: torch.Tensor,
        ends: torch.Tensor,
        legal: torch.Tensor,
        null: torch.Tensor,
        context: TaskContext,
    ) -> list[SpanScores]:
        """Return the best spans of each window: every pair of tokens that can be an answer is looked at, none in a loop.

        Args:
            starts: logits ``(windows, seq)``.
            ends: logits ``(windows, seq)``.
            legal: where a token can be part of an answer, ``(windows, seq)``.
            null: the place that stands for no answer, ``(windows,)``.
            context: its options limit the length and number of spans.
        """
        import torch

        longest = min(int(context.options["max_answer_tokens"]), starts.shape[1])
        # Column d holds the score of the span that ends d tokens after its start.
        later = torch.nn.functional.pad(ends.masked_fill(~legal, -math.inf), (0, longest - 1), value=-math.inf)
        spans = starts.masked_fill(~legal, -math.inf)[:, :, None] + later.unfold(1, longest, 1)
        flat = spans.flatten(1)
        totals = flat.logsumexp(1).tolist()
        top = flat.topk(min(int(context.options["candidates"]), flat.shape[1]), dim=1)
        at = null[:, None]
        nulls = torch.cat([starts.gather(1, at), ends.gather(1, at)], dim=1).tolist()
        found = []
        for scores, places, total, (first, last) in zip(
            top.values.tolist(), top.indices.tolist(), totals, nulls, strict=True
        ):
            kept = [(score, *divmod(place, longest)) for score, place in zip(scores, places, strict=True)]
            kept = [(score, start, start + more) for score, start, more in kept if score > -math.inf]
            found.append(
                SpanScores(
                    scores=[score for score, _, _ in kept],
                    starts=[start for _, start, _ in kept],
                    ends=[end for _, _, end in kept],
                    total=total,
                    null=(first, last),
                )
            )
        return found

    def decide(
        self, row: Row, windows: Sequence[tuple[Mapping[str, Any], SpanScores]], context: TaskContext
    ) -> Prediction:
        """Return what a row's windows say together.

        Args:
            row: without its target.
            windows: each with what :meth:`best_spans` says of it.
            context: its facts say whether questions may have no answer, and the threshold.

        Returns:
            ``{"answer", "start", "end", "score", "no_answer", "candidates"}``. ``no_answer`` is how likely no answer is beside
            the best span; ``score``, how likely the given answer is among all. Without an answer, it is an empty text, and
            ``start`` and ``end`` are -1. ``candidates`` are the best spans, also where none is given.
        """
        _, text = self.texts(row)
        best: dict[tuple[int, int], float] = {}
        for window, found in windows:
            for score, first, last in zip(found.scores, found.starts, found.ends, strict=True):
                span = (window["starts"][first], window["ends"][last])
                best[span] = max(score, best.get(span, -math.inf))
        ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))[: int(context.options["candidates"])]
        unanswerable = bool(context.facts.get("unanswerable"))
        # As in training: no answer competes with its places in all windows.
        null = _log_sum([sum(found.null) for _, found in windows])
        total = _log_sum([*(found.total for _, found in windows), *([null] if unanswerable else [])])
        candidates = [
            {"answer": text[start:end], "start": start, "end": end, "score": math.exp(min(0.0, score - total))}
            for (start, end), score in ranked
        ]
        return self._given(candidates, _sigmoid(null - ranked[0][1]) if ranked else 1.0, context)

    def _given(self, candidates: Sequence[Prediction], no_answer: float, context: TaskContext) -> Prediction:
        """Return the best candidate as the answer, or none where that is likelier than the threshold."""
        given = candidates[0] if candidates else None
        if given is None or (context.facts.get("unanswerable") and no_answer > self.threshold(context)):
            given = {"answer": "", "start": -1, "end": -1, "score": no_answer}
        return {**given, "no_answer": no_answer, "candidates": list(candidates)}

    def combine(self, predictions: Sequence[Sequence[Prediction]], context: TaskContext) -> list[Prediction] | None:
        """Return what the mean of the models' probabilities says; what is no candidate of a model has none of it."""
        together = []
        for said in zip(*predictions, strict=True):
            spans: dict[tuple[int, int], dict[str, Any]] = {}
            for candidate in (one for prediction in said for one in prediction["candidates"]):
                span = spans.setdefault((candidate["start"], candidate["end"]), {**candidate, "score": 0.0})
                span["score"] += candidate["score"] / len(said)
            ranked = sorted(spans.values(), key=lambda span: (-span["score"], span["start"], span["end"]))
            no_answer = sum(prediction["no_answer"] for prediction in said) / len(said)
            together.append(self._given(ranked[: int(context.options["candidates"])], no_answer, context))
        return together

    def threshold(self, context: TaskContext) -> float:
        """Return the ``no_answer`` above which a question is left unanswered; 0.5 until one is known."""
        chosen = context.options.get("no_answer_threshold")
        if chosen is None:
            chosen = context.facts.get("operating_point", {}).get("no_answer_threshold", 0.5)
        return float(chosen)

    def operating_point(
        self, rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext
    ) -> dict[str, Any]:
        """Return the threshold of ``no_answer`` with the best F1, where questions may have no answer."""
        from autoft_question_answering.metrics import best_threshold

        if not context.facts.get("unanswerable") or context.options.get("no_answer_threshold") is not None:
            return {}
        return {
            "no_answer_threshold": best_threshold(predictions, [self.reference(row, context) for row in rows]),
        }

    # --------------------------------------------------------------------------------- baselines and the report

    def question_kind(self, question: str) -> str:
        """Return what a question asks for, as ``who``; ``other`` where no question word of English or Chinese is found."""
        lowered = question.lower()
        return next((kind for kind, pattern in QUESTION_WORDS.items() if re.search(pattern, lowered)), "other")

    def baselines(self, rows: Sequence[Row], context: TaskContext) -> Sequence[Baseline]:
        """Return what is right most often without reading the question, and the span by word overlap."""
        from autoft_question_answering.baselines import nearest_span, trivial

        return (trivial(self, rows, context), nearest_span(self, rows, context))

    def details(self, rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext) -> Sequence[Detail]:
        """Return figures by question word and by answer length, what was left unanswered, and answers in their contexts."""
        from autoft_question_answering.details import answered, by_length, by_question_word, marked_answers

        right = [self.answers(row, context.options, number) for number, row in enumerate(rows)]
        found: list[Detail] = [
            by_question_word(self, rows, predictions, right),
            by_length(predictions, right),
        ]
        if not all(right):
            found.append(answered(predictions, right, self.threshold(context)))
        found.append(marked_answers(self, rows, predictions, right))
        return found


GLOBAL = "global_attention_mask"
"""An input of Longformer: which tokens see, and are seen by, all others."""

NOT_FOR_THE_MODEL = frozenset({"labels", "legal", "null", "row"})
"""What a batch holds beside the inputs of the model."""

PREDICTED_TOGETHER = 1024
"""Rows whose windows are held in memory at once."""


def _demo(context: str, question: str, answer: str | None) -> Row:
    given = (
        {"text": [], "answer_start": []}
        if answer is None
        else {"text": [answer], "answer_start": [context.index(answer)]}
    )
    return {"question": question, "context": context, "answers": given}


def _has_global_attention(source: ModelSource) -> bool:
    from transformers import AutoConfig

    if Path(source.path).is_dir() and not (Path(source.path) / "config.json").is_file():
        # The folder of an exported graph: its tokenizer says what it reads.
        return False
    with loading(source, "the configuration"):
        config = AutoConfig.from_pretrained(source.path, **source.from_pretrained_kwargs())
    return bool(config.model_type == "longformer")


def _check_options(options: Mapping[str, Any]) -> None:
    least = {"max_answer_tokens": 1, "max_question_tokens": 1, "stride": 0, "train_windows": 1, "candidates": 1}
    for name, low in least.items():
        value = options.get(name, low)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise DataError(f"task_options.{name} has to be a whole number of at least {low}, given {value!r}")
    value = options.get("no_answer_threshold")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (number and 0 <= value <= 1):
        raise DataError(f"task_options.no_answer_threshold has to be a number from 0 to 1, or null, given {value!r}")


def _text(row: Row, role: str, number: int) -> str:
    value = row.get(role)
    if not isinstance(value, str):
        given = "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"
        raise DataError(f"row {number + 1}: {role!r} has to be a text, given {given}")
    return value


def _given_answers(value: Any, text: str, number: int) -> Iterator[tuple[str, int | None]]:
    """Yield the texts of a target and the starts that come with them."""
    if isinstance(value, str) and value.lstrip()[:1] in {"{", "["} and value not in text:
        # A csv file holds nested values as JSON.
        value = _from_json(value, number)
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Mapping) and "text" in value:
        texts, starts = value["text"], value.get("answer_start")
        texts = [texts] if isinstance(texts, str) else texts
        starts = [starts] if isinstance(starts, int) else starts
        if not all(part is None or isinstance(part, list | tuple) for part in (texts, starts)):
            raise _no_answer_form(value, number)
        if texts is not None and starts is not None and len(texts) != len(starts):
            raise DataError(
                f"row {number + 1}: 'answers' has {len(texts)} texts and {len(starts)} starts; each text needs one start"
            )
        value = [
            {"text": answer, "answer_start": start}
            for answer, start in zip(texts or [], starts or [None] * len(texts or []), strict=True)
        ]
    if not isinstance(value, list | tuple):
        raise _no_answer_form(value, number)
    for item in value:
        answer, start = (item.get("text"), item.get("answer_start")) if isinstance(item, Mapping) else (item, None)
        if not isinstance(answer, str) or not (start is None or isinstance(start, int)):
            raise _no_answer_form(item, number)
        if answer.strip():
            # Of an answer that stands nowhere known, data sets say -1.
            yield answer, None if start is not None and start < 0 else start


def _no_answer_form(value: Any, number: int) -> DataError:
    given = "nothing" if value is None else f"{type(value).__name__} {value!r:.80}"
    return DataError(
        f'row {number + 1}: \'answers\' has to be {{"text": [...], "answer_start": [...]}}, a text, or a list of texts '
        f"(empty where there is no answer), given {given}"
    )


def _from_json(value: str, number: int) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"row {number + 1}: 'answers' looks like JSON and is none ({error}), given {value!r:.80}"
        ) from None


def _place(answer: str, start: int | None, text: str) -> tuple[int, int] | None:
    """Return where an answer stands: nearest to ``start``, or without it the first of its places."""
    if start is not None and text.startswith(answer, start):
        # A search steps over places that overlap, as the second of "1 1" in "1 1 1".
        start += len(answer) - len(answer.lstrip())
        return start, start + len(answer.strip())
    # "art" is that of "his art", not that of "artist", wherever they stand.
    found = _places(answer, text, alone=start is None)
    return min(found, key=lambda place: abs(place[0] - (start or 0))) if found else None


def _places(answer: str, text: str, *, alone: bool) -> list[tuple[int, int]]:
    """Return where an answer stands, in order: to the letter, or else with other case and white space.

    Args:
        answer: any text.
        text: to look in.
        alone: places that cut a word are left out where there are others.
    """
    exact = re.escape(answer.strip())
    loose = r"\s+".join(re.escape(word) for word in answer.split())
    found = [
        # Ahead, so that none is stepped over that overlaps the one before.
        [match.span(1) for match in re.finditer(f"(?=({pattern}))", text, flags)]
        for pattern, flags in ((exact, 0), (loose, re.IGNORECASE))
    ]
    if alone:
        found = [*([place for place in places if not cuts_a_word(text, *place)] for places in found), *found]
    return next(filter(None, found), [])


def _around(sequence: np.ndarray, passage: np.ndarray, context: TaskContext) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens before the passage, the question cut where it is too long, and those after it."""
    everything = np.arange(len(sequence))
    first, last = (passage[0], passage[-1]) if len(passage) else (len(sequence), len(sequence))
    before, after = everything[everything < first], everything[everything > last]
    question = np.flatnonzero(sequence == 0)
    special = len(before) + len(after) - len(question)
    most = min(int(context.options["max_question_tokens"]), max(1, (context.max_length - special) // 2))
    return before[~np.isin(before, question[most:])], after


def _trimmed_offsets(offsets: np.ndarray, passage: np.ndarray, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the characters of each token of the passage without white space around them; -1 for other tokens.

    Tokenizers made of sentencepiece count the space before a word as a part of it.
    """
    starts, ends = np.full(len(offsets), -1), np.full(len(offsets), -1)
    inked = np.flatnonzero(np.fromiter((not c.isspace() for c in text), dtype=bool, count=len(text)))
    if not len(inked) or not len(passage):
        return starts, ends
    first, last = offsets[passage, 0], offsets[passage, 1]
    begins = inked[np.searchsorted(inked, first).clip(max=len(inked) - 1)]
    finishes = inked[(np.searchsorted(inked, last) - 1).clip(min=0)] + 1
    real = (first < last) & (begins >= first) & (finishes <= last) & (begins < finishes)
    starts[passage[real]], ends[passage[real]] = begins[real], finishes[real]
    return starts, ends


def _token_span(starts: np.ndarray, ends: np.ndarray, answer: Answer) -> tuple[int, int] | None:
    """Return the first and last token of the passage that share characters with the answer; the nearest where none does."""
    legal = np.flatnonzero(starts >= 0)
    if not len(legal):
        return None
    inside = legal[(starts[legal] < answer.end) & (ends[legal] > answer.start)]
    if not len(inside):
        # The tokenizer drops these characters, as it does with control characters.
        inside = legal[[np.abs(starts[legal] - answer.start).argmin()]]
    return int(inside[0]), int(inside[-1])


def _gold_spans(windows: Sequence[int], room: int, span: tuple[int, int] | None) -> dict[int, tuple[int, int]]:
    """Return the first and last token of the answer in each window that holds it, counted from the window's first.

    Where no window holds all of it, those with its first token have it up to their end.
    """
    if span is None:
        return {}
    first, last = span
    whole = [at for at in windows if at <= first and last < at + room]
    holding = whole or [at for at in windows if at <= first < at + room]
    return {at: (first - at, min(last - at, room - 1)) for at in holding}


def _kept_windows(windows: Sequence[int], gold: Mapping[int, Any], most: int) -> list[int]:
    """Return the windows that training reads: those with the answer first, others evenly over the context."""
    kept = list(gold)[:most]
    others = [at for at in windows if at not in gold]
    free = min(most - len(kept), len(others))
    picked = [others[int(i)] for i in np.linspace(0, len(others) - 1, free).round()] if free else []
    return sorted([*kept, *picked])


def _split(feature: Mapping[str, Any], row: int) -> Iterator[dict[str, Any]]:
    """Yield the windows of a feature."""
    per_token = [name for name in feature if name not in {"windows", "null", "labels"}]
    at = 0
    for number, length in enumerate(feature["windows"]):
        window = {name: feature[name][at : at + length] for name in per_token}
        window |= {"row": row, "null": feature["null"]}
        if "labels" in feature:
            window["labels"] = feature["labels"][2 * number : 2 * number + 2]
        yield window
        at += length


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top if math.isinf(top) else top + math.log(sum(math.exp(value - top) for value in values))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
