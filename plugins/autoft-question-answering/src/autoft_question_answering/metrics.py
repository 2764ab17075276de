"""Exact match and F1 by the rules of SQuAD, over all rows and over those with and without an answer.

A prediction is ``{"answer", "no_answer", "candidates"}``, of which the last two may be absent; a reference is the list of
texts that are right, empty where the question has no answer.

The rules are those of the official evaluation of SQuAD 2.0 (Rajpurkar et al. 2018, arXiv 1806.03822), which are those
of SQuAD 1.1 (Rajpurkar et al. 2016, arXiv 1606.05250) but for references that consist of articles and punctuation only.
Scripts without spaces are compared by characters, as Chinese is in CMRC 2018 and MLQA (Lewis et al. 2020, arXiv
1910.07475); texts in other scripts are not touched by that.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from autoft.contracts import Prediction, QualityMetric, TaskContext

__all__ = [
    "METRICS",
    "BestF1",
    "SpanAgreement",
    "answer_tokens",
    "best_threshold",
    "exact_match",
    "normalized",
    "token_f1",
]

UNSPACED = re.compile(
    "[々〆〇\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Japanese kana and marks
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff\u1a20-\u1aaf]"  # Thai, Lao, Tibetan, Burmese, Khmer, Tai Tham
)
"""A character of a script that is written without spaces between words."""

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = frozenset(string.punctuation)


@lru_cache(maxsize=1 << 17)
def normalized(text: str) -> str:
    """Return an answer as SQuAD compares it: lower case, without punctuation and articles, single spaces.

    SQuAD knows the punctuation of ASCII only; a text with characters of an unspaced script loses all that Unicode has.
    """
    text = text.lower()
    unspaced = UNSPACED.search(text) is not None
    kept = "".join(
        c for c in text if c not in PUNCTUATION and not (unspaced and unicodedata.category(c).startswith("P"))
    )
    return " ".join(ARTICLES.sub(" ", kept).split())


@lru_cache(maxsize=1 << 17)
def answer_tokens(text: str) -> tuple[str, ...]:
    """Return what F1 counts: words of the normalized text, and single characters of scripts without spaces."""
    pieces: list[str] = []
    for word in normalized(text).split():
        pieces += _characters(word) if UNSPACED.search(word) else [word]
    return tuple(pieces)


def _characters(word: str) -> list[str]:
    """Cut off each character of an unspaced script, with the marks that stand on it; other runs stay whole."""
    pieces: list[str] = []
    run = False
    for c in word:
        unspaced = UNSPACED.match(c) is not None
        if pieces and (unicodedata.category(c).startswith("M") or (run and not unspaced)):
            pieces[-1] += c
        else:
            pieces.append(c)
            run = not unspaced
    return pieces


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 where the answer is one of the references after normalization, else 0."""
    return float(any(normalized(answer) == normalized(reference) for reference in _right(references)))


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Return the best F1 over common tokens with any of the references; of two empty texts it is 1."""
    return max(_f1(answer_tokens(answer), answer_tokens(reference)) for reference in _right(references))


def _right(references: Sequence[str]) -> list[str]:
    # A reference of which nothing is left is none; where none is left, saying nothing is right.
    return [reference for reference in references if normalized(reference)] or [""]


def _f1(said: Sequence[str], true: Sequence[str]) -> float:
    if not said or not true:
        return float(said == true)
    common = sum((Counter(said) & Counter(true)).values())
    return 2 * common / (len(said) + len(true))


class SpanAgreement(QualityMetric):
    """Exact match or F1, averaged over all rows, those that have an answer, or those that have none.

    Args:
        name: of the metric.
        summary: one line.
        figure: what is averaged.
        rows: over which rows; NaN where there are none.
    """

    def __init__(
        self,
        name: str,
        summary: str,
        figure: Literal["exact", "f1"],
        rows: Literal["all", "answerable", "unanswerable"] = "all",
    ) -> None:
        self.name, self.summary, self.figure, self.rows = name, summary, figure, rows

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return the average, NaN over no rows."""
        return float(self.aggregate(self.statistics(predictions, references, context).sum(0, keepdims=True))[0])

    def statistics(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
    ) -> np.ndarray:
        """Return the figure of each row and whether it counts, ``(rows, 2)``."""
        compare = exact_match if self.figure == "exact" else token_f1
        found = np.zeros((len(references), 2))
        for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
            if self.rows == "all" or (self.rows == "answerable") == bool(reference):
                found[i] = compare(str(prediction["answer"]), reference), 1.0
        return found

    def aggregate(self, sums: np.ndarray) -> np.ndarray:
        """Return the averages, ``(resamples,)``."""
        return np.asarray(np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0))


class BestF1(QualityMetric):
    """F1 with the threshold of ``no_answer`` that suits these very rows best, as ``best_f1`` of SQuAD 2.0.

    It says what a well-chosen threshold could reach. NaN where every row has an answer, or predictions say nothing of
    ``no_answer``. Unlike the official script it never parts rows of the same ``no_answer``, as no threshold could.
    """

    name = "best_qa_f1"
    summary = "F1 at the threshold of no_answer that suits the rows best (SQuAD 2.0 best_f1)"

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return the best F1."""
        return float(self.resampled(predictions, references, context, np.ones((1, len(references))))[0])

    def resampled(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext, counts: np.ndarray
    ) -> np.ndarray:
        """Return the best F1 of each resample, ``(resamples,)``: rows are sorted once and weighted by their counts."""
        if all(references) or any("no_answer" not in prediction for prediction in predictions):
            return np.full(len(counts), np.nan)
        order, ends, gains = _sorted_gains(predictions, references)
        unanswerable = np.array([not reference for reference in references], dtype=float)
        reached = np.cumsum(counts[:, order] * gains[order], axis=1)[:, ends]
        return np.asarray((counts @ unanswerable + np.maximum(reached.max(1), 0.0)) / counts.sum(1))


def _sorted_gains(
    predictions: Sequence[Prediction], references: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows by ``no_answer``, where a new value ends, and what answering each row gains over refusing it."""
    refusal = np.array([prediction["no_answer"] for prediction in predictions], dtype=float)
    gains = np.zeros(len(refusal))
    for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        answer = _best_answer(prediction)
        gains[i] = token_f1(answer, reference) if reference else -float(bool(answer))
    order = np.argsort(refusal, kind="stable")
    ordered = refusal[order]
    return order, np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)), gains


def _best_answer(prediction: Prediction) -> str:
    """Return the best span, also where the prediction refused to answer."""
    candidates = prediction.get("candidates")
    return str(candidates[0]["answer"] if candidates else prediction["answer"])


def best_threshold(predictions: Sequence[Prediction], references: Sequence[Any]) -> float:
    """Return the largest ``no_answer`` at which a question should still be answered, for the best F1 over the rows.

    As ``find_best_thresh`` of SQuAD 2.0, but in the middle between the last row to be answered and the first to be refused.

    Args:
        predictions: with ``no_answer``, and ``candidates`` or ``answer``.
        references: lists of right texts.
    """
    order, ends, gains = _sorted_gains(predictions, references)
    reached = np.cumsum(gains[order])[ends]
    values = np.array([predictions[int(order[end])]["no_answer"] for end in ends], dtype=float)
    best = int(reached.argmax())
    if reached[best] <= 0:
        # Every question is better refused than answered.
        return float(values[0] / 2) if values[0] > 0 else -1.0
    after = values[best + 1] if best + 1 < len(values) else 1.0
    return float((values[best] + after) / 2)


METRICS: tuple[QualityMetric, ...] = (
    SpanAgreement("qa_f1", "F1 over common words (characters of unspaced scripts), by the rules of SQuAD", "f1"),
    SpanAgreement("exact_match", "share of answers that are right to the letter, by the rules of SQuAD", "exact"),
    SpanAgreement("has_answer_f1", "F1 over the questions that have an answer", "f1", "answerable"),
    SpanAgreement("has_answer_exact", "exact match over the questions that have an answer", "exact", "answerable"),
    SpanAgreement("no_answer_accuracy", "share of unanswerable questions left unanswered", "exact", "unanswerable"),
    BestF1(),
)
