"""Metrics of texts: how likely a reference is to the model, how like it the output is, how much outputs repeat.

A prediction is ``{"text": str}``, with ``log_likelihood``, ``target_tokens`` and ``target_bytes`` where the task has scored
its targets; a reference is a text, or a list of texts of which each is right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from autoft.contracts import Prediction, QualityMetric, TaskContext
from autoft_generation.words import tokenizer

__all__ = ["METRICS", "BitsPerByte", "Chrf", "Distinct", "Perplexity", "Rouge", "texts_of"]


def texts_of(reference: Any) -> list[str]:
    """Return the texts of a reference, which is one text or a list of them."""
    return [reference] if isinstance(reference, str) else list(reference)


class Perplexity(QualityMetric):
    """``exp`` of the mean negative log-likelihood of a reference's tokens, the end token among them (Jelinek et al. 1977).

    Models with different tokenizers cannot be compared by it; :class:`BitsPerByte` can.
    """

    higher_is_better = False
    uses = "targets"
    per_token = True

    def __init__(self, name: str = "perplexity") -> None:
        self.name = name
        self.summary = "perplexity of the references, per token of the model"

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return the perplexity of all tokens together."""
        return float(self.aggregate(self.statistics(predictions, references, context).sum(0, keepdims=True))[0])

    def statistics(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
    ) -> np.ndarray:
        """Return log-likelihoods and token counts, ``(rows, 2)``."""
        rows = [(entry["log_likelihood"], entry["target_tokens"]) for entry in predictions]
        return np.asarray(rows, dtype=np.float64).reshape(-1, 2)

    def aggregate(self, sums: np.ndarray) -> np.ndarray:
        """Return perplexities, ``(resamples,)``."""
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(-_ratio(sums[:, 0], sums[:, 1])))


class BitsPerByte(QualityMetric):
    """Negative log2-likelihood of the references over their UTF-8 bytes: comparable between tokenizers (Gao et al. 2020)."""

    higher_is_better = False
    uses = "targets"

    def __init__(self, name: str = "bits_per_byte") -> None:
        self.name = name
        self.summary = "bits that the model needs for a byte of the references"

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return the bits of all references over their bytes."""
        return float(self.aggregate(self.statistics(predictions, references, context).sum(0, keepdims=True))[0])

    def statistics(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
    ) -> np.ndarray:
        """Return log-likelihoods and bytes, ``(rows, 2)``."""
        rows = [(entry["log_likelihood"], entry["target_bytes"]) for entry in predictions]
        return np.asarray(rows, dtype=np.float64).reshape(-1, 2)

    def aggregate(self, sums: np.ndarray) -> np.ndarray:
        """Return bits a byte, ``(resamples,)``."""
        return np.asarray(-_ratio(sums[:, 0], sums[:, 1]) / math.log(2))


class Chrf(QualityMetric):
    """chrF: F-score of character n-grams (Popović 2015), or chrF++ with words (Popović 2017), over the corpus.

    Args:
        name: of the metric.
        word_order: longest word n-gram: 0 for chrF, 2 for chrF++.
    """

    def __init__(self, name: str = "chrf", word_order: int = 0) -> None:
        self.name, self.word_order = name, word_order
        self.summary = f"chrF{'+' * word_order} of the outputs, 0 to 100 (sacrebleu)"

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return ``sacrebleu.metrics.CHRF.corpus_score``; a row may have several references."""
        if not references:
            return float("nan")
        return float(self._metric().corpus_score(*_streams(predictions, references)).score)

    def statistics(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
    ) -> np.ndarray:
        """Return n-gram counts of output, reference and match by order, ``(rows, 3 * orders)``."""
        found = self._metric()._extract_corpus_statistics(*_streams(predictions, references))
        return np.asarray(found, dtype=np.float64)

    def aggregate(self, sums: np.ndarray) -> np.ndarray:
        """Return the scores, ``(resamples,)``."""
        metric = self._metric()
        return np.asarray([metric._compute_f_score(row) for row in sums.tolist()])

    def _metric(self) -> Any:
        from sacrebleu.metrics import CHRF

        return CHRF(word_order=self.word_order)


class Rouge(QualityMetric):
    """ROUGE F1, mean over rows (Lin 2004), by rouge-score; of several references the best counts.

    What its words are ``facts["rouge_tokenizer"]`` says, one of :data:`~autoft_generation.words.TOKENIZERS`; without it
    they are runs of ASCII letters and digits, as in the literature.

    Args:
        kind: ``rouge1``, ``rouge2``, ``rougeL``, or ``rougeLsum`` (sentences on lines of their own).
        name: of the metric.
        use_stemmer: compare stems of English words; with ascii only.
    """

    def __init__(
        self,
        kind: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"] = "rougeL",
        name: str = "rouge_l",
        use_stemmer: bool = False,
    ) -> None:
        self.kind, self.name, self.use_stemmer = kind, name, use_stemmer
        self.summary = f"F1 of {kind.replace('rouge', 'ROUGE-')}, mean over rows, 0 to 1"

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return the mean F1."""
        return float(self.aggregate(self.statistics(predictions, references, context).sum(0, keepdims=True))[0])

    def statistics(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
    ) -> np.ndarray:
        """Return F1 and one, ``(rows, 2)``."""
        from rouge_score.rouge_scorer import RougeScorer

        words = tokenizer(str(context.facts.get("rouge_tokenizer", "ascii")), self.use_stemmer)
        scorer = RougeScorer([self.kind], tokenizer=words)
        rows = [
            (scorer.score_multi(texts_of(reference), entry["text"])[self.kind].fmeasure, 1.0)
            for entry, reference in zip(predictions, references, strict=True)
        ]
        return np.asarray(rows, dtype=np.float64).reshape(-1, 2)

    def aggregate(self, sums: np.ndarray) -> np.ndarray:
        """Return means, ``(resamples,)``."""
        return _ratio(sums[:, 0], sums[:, 1])


class Distinct(QualityMetric):
    """Different n-grams of all outputs over their words: how little they repeat (Li et al. 2016, arXiv 1510.03055).

    Words are what white space parts. As in the paper the count is scaled by the number of words, for every n. A bootstrap
    says nothing of it: rows that are drawn twice repeat each other, so that it has no interval.

    Args:
        n: words in an n-gram.
        name: of the metric.
    """

    def __init__(self, n: int, name: str | None = None) -> None:
        self.n, self.name = n, name or f"distinct_{n}"
        self.summary = f"different {'words' if n == 1 else f'runs of {n} words'} of the outputs over their words"

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return the ratio over all outputs; NaN where there is no word."""
        words = [entry["text"].split() for entry in predictions]
        total = sum(map(len, words))
        return len({gram for row in words for gram in _grams(row, self.n)}) / total if total else float("nan")

    def resampled(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext, counts: np.ndarray
    ) -> np.ndarray:
        """Return the ratios, ``(resamples,)``: an n-gram is there where any of its rows is drawn."""
        words = [entry["text"].split() for entry in predictions]
        places: dict[tuple[str, ...], set[int]] = {}
        for i, row in enumerate(words):
            for gram in _grams(row, self.n):
                places.setdefault(gram, set()).add(i)
        totals = counts @ np.asarray([len(row) for row in words], dtype=np.float64)
        distinct = np.zeros(len(counts))
        if places:
            rows = np.concatenate([np.fromiter(found, dtype=np.int64) for found in places.values()])
            starts = np.cumsum([0, *map(len, places.values())])[:-1]
            # In parts, for this is a matrix of resamples by occurrences.
            step = max(1, 20_000_000 // len(rows))
            for start in range(0, len(counts), step):
                drawn = counts[start : start + step, rows] > 0
                distinct[start : start + step] = np.logical_or.reduceat(drawn, starts, axis=1).sum(1)
        return _ratio(distinct, totals)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0))


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _streams(predictions: Sequence[Prediction], references: Sequence[Any]) -> tuple[list[str], list[list[str | None]]]:
    """Return outputs and one stream for each place of a reference, as sacrebleu takes them."""
    listed = [texts_of(reference) for reference in references]
    most = max(map(len, listed), default=1)
    streams: list[list[str | None]] = [[row[i] if i < len(row) else None for row in listed] for i in range(most)]
    return [entry["text"] for entry in predictions], streams


METRICS: tuple[QualityMetric, ...] = (Perplexity(), BitsPerByte(), Chrf(), Rouge(), Distinct(1), Distinct(2))
