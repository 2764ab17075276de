"""ROUGE by the library ``rouge_score``, and figures of a summary that have no direction: its length, its novelty.

A prediction is ``{"text": str}``, a reference a list of texts.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from autoft_generation.words import Tokenizer, tokenizer

from autoft.contracts import Prediction, QualityMetric, TaskContext
from autoft_summarization.texts import sentences

__all__ = ["METRICS", "Manner", "Rouge", "manner", "rouge_tokenizer"]

RougeName = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]


def _setting(context: TaskContext) -> tuple[str, bool]:
    return str(context.facts.get("rouge_tokenizer", "ascii")), bool(context.options.get("stemmer", False))


def rouge_tokenizer(context: TaskContext) -> Tokenizer:
    """Return what cuts texts into the tokens that are counted, as the task's facts and options say."""
    return tokenizer(*_setting(context))


@functools.cache
def _scorer(name: RougeName, tokens: str, stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([name], tokenizer=tokenizer(tokens, stemmer))


# A test split is scored twice: for its figure, and for the interval of that.
@functools.lru_cache(maxsize=16384)
def _fmeasure(name: RougeName, tokens: str, stemmer: bool, said: str, references: tuple[str, ...]) -> float:
    if name == "rougeLsum":
        # It is defined over sentences, and rouge_score takes each line for one.
        said, references = "\n".join(sentences(said)), tuple("\n".join(sentences(text)) for text in references)
    return float(_scorer(name, tokens, stemmer).score_multi(references, said)[name].fmeasure)


class Rouge(QualityMetric):
    """ROUGE (Lin 2004): the F-measure of each row against the reference that it is nearest to, averaged over rows.

    Computed by ``rouge_score``, from 0 to 1. Papers give it times 100.
    """

    def __init__(self, name: RougeName, summary: str) -> None:
        self.rouge: RougeName = name
        self.name = name
        self.summary = summary

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return the mean over rows; NaN without rows."""
        figures = self._figures(predictions, references, context)
        return float(np.mean(figures)) if figures else float("nan")

    def statistics(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
    ) -> np.ndarray:
        """Return the F-measure and one of each row, ``(rows, 2)``."""
        figures = self._figures(predictions, references, context)
        return np.stack([np.asarray(figures), np.ones(len(figures))], axis=1)

    def aggregate(self, sums: np.ndarray) -> np.ndarray:
        """Return the means, ``(resamples,)``."""
        return np.asarray(sums[:, 0] / sums[:, 1])

    def _figures(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
    ) -> list[float]:
        tokens, stemmer = _setting(context)
        return [
            _fmeasure(self.rouge, tokens, stemmer, said["text"], (true,) if isinstance(true, str) else tuple(true))
            for said, true in zip(predictions, references, strict=True)
        ]


METRICS: tuple[QualityMetric, ...] = (
    Rouge("rougeL", "F-measure of the longest common subsequence (ROUGE-L)"),
    Rouge("rouge1", "F-measure of words in common (ROUGE-1)"),
    Rouge("rouge2", "F-measure of word pairs in common (ROUGE-2)"),
    Rouge("rougeLsum", "F-measure of the common subsequences of sentences (ROUGE-L of whole summaries)"),
)


@dataclass(frozen=True)
class Manner:
    """How summaries are written. None of it is better when larger: it is compared with that of the references.

    Attributes:
        words: of a summary, the mean.
        novel: the share of the words, and of the word pairs, that the document does not have, over all summaries
            (Narayan et al. 2018); None where there are no pairs.
        sentences: of a summary, the mean.
    """

    words: float
    novel: tuple[float | None, float | None]
    sentences: float


def manner(summaries: Sequence[str], documents: Sequence[str], cut: Tokenizer) -> Manner:
    """Return how summaries are written.

    Args:
        summaries: at least one.
        documents: of each summary.
        cut: into what counts as a word.
    """
    counts: Counter[str] = Counter()
    for summary, document in zip(summaries, documents, strict=True):
        said, given = cut.tokenize(summary), cut.tokenize(document)
        known: Mapping[str, set[Any]] = {"word": set(given), "pair": set(pairwise(given))}
        shown: Mapping[str, list[Any]] = {"word": said, "pair": list(pairwise(said))}
        for kind, items in shown.items():
            counts[kind] += len(items)
            counts[f"novel {kind}"] += sum(item not in known[kind] for item in items)
        counts["sentence"] += len(sentences(summary))
    novel = tuple(counts[f"novel {kind}"] / counts[kind] if counts[kind] else None for kind in ("word", "pair"))
    return Manner(counts["word"] / len(summaries), (novel[0], novel[1]), counts["sentence"] / len(summaries))
