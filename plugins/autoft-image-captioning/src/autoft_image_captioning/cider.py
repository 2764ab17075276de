"""CIDEr-D: how much of what people say of a picture a caption says, rare words weighing more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

__all__ = ["cider_d"]

ORDERS = 4
SIGMA = 6.0
CELLS = 8_000_000
"""Largest number of weights that are held at a time, in many resamples: 64 MB."""

Ngrams = Counter[tuple[str, ...]]


def cider_d(
    captions: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    counts: np.ndarray | None = None,
) -> np.ndarray:
    """Return the CIDEr-D of each caption, from 0 to 10 (Vedantam et al. 2015, arXiv:1411.5726).

    The cosine between TF-IDF vectors of word n-grams, n from 1 to 4, with counts clipped to the reference's and a
    Gaussian penalty on the difference in length, averaged over n and references, times 10. As in pycocoevalcap, the
    document frequency is the number of rows whose references hold the n-gram, and the length counts word pairs.

    Cosines are made of sums that are linear in the squares of the weights, so that all resamples, each with document
    frequencies of its own, take a few products of sparse matrices.

    Args:
        captions: words of each caption.
        references: words of each reference, for each row.
        counts: how often each row is drawn, ``(resamples, rows)``; None for once each.

    Returns:
        ``(rows,)``, or with counts ``(resamples, rows)``.
    """
    if not captions:
        return np.zeros(0 if counts is None else (len(counts), 0))
    drawn = np.ones((1, len(captions))) if counts is None else counts
    scores = _Counts(captions, references).scores(drawn)
    return scores[0] if counts is None else scores


class _Counts:
    """The n-grams of captions and references as sparse matrices, a line for each order of each text."""

    def __init__(self, captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> None:
        said = [_ngrams(words) for words in captions]
        true = [[_ngrams(words) for words in row] for row in references]
        self.owner = np.repeat(np.arange(len(said)), [len(row) for row in true])
        pairs = [(said[i], counts) for i, row in enumerate(true) for counts in row]
        shared = [{key: min(ours[key], n) * n for key, n in theirs.items() if key in ours} for ours, theirs in pairs]
        # The columns: n-grams of references first, as all texts need them.
        self.columns: dict[tuple[str, ...], int] = {}
        present = [sorted({key for counts in row for key in counts}) for row in true]
        self.present = self._matrix([[(key, 1.0) for key in row] for row in present], by_order=False)
        self.true_squares = self._matrix([[(key, n * n) for key, n in counts.items()] for _, counts in pairs])
        self.shared = self._matrix([list(counts.items()) for counts in shared])
        self.said_squares = self._matrix([[(key, n * n) for key, n in counts.items()] for counts in said])
        width = len(self.columns)
        for matrix in (self.present, self.true_squares, self.shared, self.said_squares):
            matrix.resize((matrix.shape[0], width))
        gaps = np.asarray([_pairs_of_words(ours) - _pairs_of_words(theirs) for ours, theirs in pairs], dtype=np.float64)
        self.penalty = np.exp(-(gaps**2) / (2 * SIGMA**2))

    def _matrix(self, lines: Sequence[Iterable[tuple[tuple[str, ...], float]]], *, by_order: bool = True) -> Any:
        from scipy.sparse import csr_array

        entries = [
            (i * ORDERS + len(key) - 1 if by_order else i, self.columns.setdefault(key, len(self.columns)), value)
            for i, line in enumerate(lines)
            for key, value in line
        ]
        height = len(lines) * (ORDERS if by_order else 1)
        rows, columns, values = zip(*entries, strict=True) if entries else ((), (), ())
        shape = (height, max(1, len(self.columns)))
        return csr_array((np.asarray(values, dtype=np.float64), (rows, columns)), shape=shape)

    def scores(self, drawn: np.ndarray) -> np.ndarray:
        """Return the scores ``(resamples, rows)`` where rows are drawn so often, ``(resamples, rows)``."""
        step = max(1, CELLS // max(*self.shared.shape, 1))
        parts = [self._scores(drawn[start : start + step]) for start in range(0, len(drawn), step)]
        return np.concatenate(parts)

    def _scores(self, drawn: np.ndarray) -> np.ndarray:
        frequency = self.present.T @ drawn.T
        squares = (np.log(drawn.sum(1)) - np.log(np.maximum(frequency, 1.0))) ** 2
        # Each line is an order of a text: (texts, orders, resamples).
        said, true, shared = (
            (matrix @ squares).reshape(-1, ORDERS, len(drawn))
            for matrix in (self.said_squares, self.true_squares, self.shared)
        )
        norms = np.sqrt(said[self.owner] * true)
        cosines = np.divide(shared, norms, out=np.zeros_like(shared), where=norms > 0)
        similar = cosines.mean(1) * self.penalty[:, None]
        totals = np.zeros((drawn.shape[1], len(drawn)))
        np.add.at(totals, self.owner, similar)
        references = np.bincount(self.owner, minlength=drawn.shape[1])
        return 10.0 * (totals / np.maximum(references, 1)[:, None]).T


def _ngrams(words: Sequence[str]) -> Ngrams:
    return Counter(tuple(words[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(words) - n + 1))


def _pairs_of_words(counts: Ngrams) -> int:
    return sum(n for key, n in counts.items() if len(key) == 2)
