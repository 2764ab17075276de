"""Answers without a transformer: what the report compares the chosen model with."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoft.contracts import Baseline, Prediction, Row, TaskContext
from autoft_question_answering.metrics import answer_tokens, best_threshold, token_f1

if TYPE_CHECKING:
    from autoft_question_answering.task import QuestionAnswering

__all__ = ["nearest_span", "sentence_spans", "trivial"]

BOUNDARY = re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[。！？])|\n+")
FITTED = 5000
"""Training rows that a threshold is fitted on; they come shuffled."""

WORD = re.compile(r"\w+")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Return where each sentence begins and ends, as characters, by its punctuation; blank ones are left out."""
    spans, at = [], 0
    for boundary in [*BOUNDARY.finditer(text), None]:
        start, end = at, boundary.start() if boundary else len(text)
        at = boundary.end() if boundary else at
        piece = text[start:end]
        if piece.strip():
            start += len(piece) - len(piece.lstrip())
            spans.append((start, start + len(piece.strip())))
    return spans


def trivial(task: QuestionAnswering, rows: Sequence[Row], context: TaskContext) -> Baseline:
    """Return what scores better on the training rows: the first sentence of the context, or no answer."""
    references = [task.reference(row, context) for row in rows]
    first = [_first_sentence(task.texts(row)[1]) for row in rows]
    reached = sum(token_f1(str(said["answer"]), reference) for said, reference in zip(first, references, strict=True))
    if sum(not reference for reference in references) > reached:
        return Baseline("no answer", lambda given: [_refusal(1.0) for _ in given], trivial=True)
    return Baseline(
        "first sentence", lambda given: [_first_sentence(task.texts(row)[1]) for row in given], trivial=True
    )


def nearest_span(task: QuestionAnswering, rows: Sequence[Row], context: TaskContext) -> Baseline:
    """Return the name or number nearest to the question's words, in the sentence that shares most of them.

    Words weigh by how rare they are among the training contexts. Whether a kind of question is answered by a number is
    learned from the training answers; a sentence without such a span is the answer as a whole. Where training rows are
    without an answer, so are questions whose best sentence shares too little, by the best threshold on those rows.
    """
    contexts = {task.texts(row)[1] for row in rows}
    spread = Counter(token for text in contexts for token in set(answer_tokens(text)))
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        for answer in task.reference(row, context)[:1]:
            kind = counts[task.question_kind(task.texts(row)[0])]
            kind[0] += bool(NUMBER.search(answer))
            kind[1] += 1
    numeric = {kind for kind, (numbers, total) in counts.items() if 2 * numbers > total}

    def weight(token: str) -> float:
        return math.log((1 + len(contexts)) / (1 + spread[token])) + 0.01

    def propose(given: Sequence[Row]) -> list[Prediction]:
        found = []
        for row in given:
            question, text = task.texts(row)
            asked = set(answer_tokens(question))
            number = task.question_kind(question) in numeric
            found.append(_nearest(text, {token: weight(token) for token in asked}, number=number))
        return found

    threshold = 1.0
    if context.facts.get("unanswerable"):
        some = rows[:FITTED]
        threshold = best_threshold(propose(some), [task.reference(row, context) for row in some])

    def predict(given: Sequence[Row]) -> list[Prediction]:
        return [
            {**_refusal(answer["no_answer"]), "candidates": answer["candidates"]}
            if answer["no_answer"] > threshold
            else answer
            for answer in propose(given)
        ]

    return Baseline("span nearest to the question's words", predict)


def _nearest(text: str, asked: dict[str, float], *, number: bool) -> Prediction:
    total = sum(asked.values())
    best: tuple[float, tuple[int, int]] | None = None
    for span in sentence_spans(text):
        shared = sum(asked[token] for token in set(answer_tokens(text[slice(*span)])) & asked.keys())
        if best is None or shared > best[0]:
            best = (shared, span)
    if best is None:
        return _refusal(1.0)
    shared, span = best
    start, end = _span_in(text, span, asked, number=number)
    return _answer(text, start, end, 1 - shared / total if total else 1.0)


def _span_in(text: str, sentence: tuple[int, int], asked: dict[str, float], *, number: bool) -> tuple[int, int]:
    """Return the number or name of a sentence that is nearest to words of the question, or the whole sentence."""
    anchors = [
        (match.start(), sum(asked[token] for token in answer_tokens(match[0]) if token in asked))
        for match in WORD.finditer(text, *sentence)
    ]
    anchors = [(place, weight) for place, weight in anchors if weight > 0]
    spans = [match.span() for match in NUMBER.finditer(text, *sentence)] if number else _names(text, sentence, asked)
    if not spans:
        return sentence

    def nearness(span: tuple[int, int]) -> float:
        return sum(weight / (1 + abs(place - span[0])) for place, weight in anchors)

    return max(spans, key=nearness)


def _names(text: str, sentence: tuple[int, int], asked: dict[str, float]) -> list[tuple[int, int]]:
    """Return runs of capitalised words that the question does not hold; nothing in scripts without capitals."""
    runs: list[tuple[int, int]] = []
    for match in WORD.finditer(text, *sentence):
        capital = match[0][0].isupper() and match.start() != sentence[0]
        if not capital or set(answer_tokens(match[0])) & asked.keys():
            continue
        if runs and re.fullmatch(r"[ '’-]", text[runs[-1][1] : match.start()]):
            runs[-1] = (runs[-1][0], match.end())
        else:
            runs.append(match.span())
    return runs


def _first_sentence(text: str) -> Prediction:
    spans = sentence_spans(text)
    return _answer(text, *spans[0], 0.0) if spans else _refusal(1.0)


def _answer(text: str, start: int, end: int, no_answer: float) -> Prediction:
    span = {"answer": text[start:end], "start": start, "end": end, "score": 1 - no_answer}
    return {**span, "no_answer": no_answer, "candidates": [span]}


def _refusal(no_answer: float) -> Prediction:
    return {"answer": "", "start": -1, "end": -1, "score": no_answer, "no_answer": no_answer, "candidates": []}
