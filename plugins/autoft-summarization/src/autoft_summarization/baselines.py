"""Summaries made of sentences of the document: its first ones, and its most central ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from autoft_generation.words import Tokenizer

from autoft_summarization.texts import sentences

__all__ = ["Lead", "TextRank", "nearest_length"]

MOST_SENTENCES = 1000
"""Of a document; those after them are left out of the graph, whose size is the square of this."""


def nearest_length(lengths: Sequence[int], order: Sequence[int], target: float) -> list[int]:
    """Return as many of the first sentences in an order as come nearest to a length, one at least.

    Args:
        lengths: of the sentences, in tokens.
        order: numbers of sentences, the best first.
        target: tokens of a summary.
    """
    total = np.cumsum([lengths[i] for i in order])
    return list(order[: int(np.argmin(np.abs(total - target))) + 1])


class Lead:
    """The first sentences of a document, about as long as the references are.

    It knows nothing but the place of a sentence, and is hard to beat in news (Nenkova 2005).

    Args:
        target: tokens of a summary.
        cut: into tokens.
    """

    def __init__(self, target: float, cut: Tokenizer) -> None:
        self.target, self.cut = target, cut

    def __call__(self, documents: Sequence[str]) -> list[str]:
        """Return a summary of each document."""
        return [self._summary(sentences(document)) for document in documents]

    def _summary(self, parts: Sequence[str]) -> str:
        lengths = [len(self.cut.tokenize(part)) for part in parts]
        return "\n".join(parts[i] for i in nearest_length(lengths, range(len(parts)), self.target))


class TextRank:
    """The sentences that most others are like, in the document's order: TextRank (Mihalcea & Tarau 2004).

    Sentences are nodes, and the rank of one is its share in a random walk that jumps anywhere with a probability of
    0.15. The weight of an edge is the cosine of TF-IDF vectors, as in LexRank (Erkan & Radev 2004), without whose edges
    from a sentence to itself one that is like no other ranks low.

    Args:
        documents: to learn from how rare a word is.
        target: tokens of a summary.
        cut: into tokens.
    """

    JUMP = 0.15

    def __init__(self, documents: Sequence[str], target: float, cut: Tokenizer) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.target, self.cut = target, cut
        tokenize: Callable[[str], Any] = cut.tokenize
        self.vectorizer = TfidfVectorizer(analyzer=tokenize)
        # A text without any token would leave it without a vocabulary, and tell nothing.
        self.usable = any(cut.tokenize(document) for document in documents)
        if self.usable:
            self.vectorizer.fit(documents)

    def ranks(self, parts: Sequence[str]) -> np.ndarray:
        """Return the share of each sentence in the random walk, ``(sentences,)``; they add up to 1."""
        count = len(parts)
        if not self.usable:
            return np.full(count, 1 / count)
        vectors = self.vectorizer.transform(parts)
        weights = (vectors @ vectors.T).toarray()
        np.fill_diagonal(weights, 0.0)
        # From a sentence that is like no other the walk goes anywhere.
        total = weights.sum(1, keepdims=True)
        walk = np.divide(weights, total, out=np.full_like(weights, 1 / count), where=total > 0)
        rank = np.full(count, 1 / count)
        for _ in range(200):
            before, rank = rank, self.JUMP / count + (1 - self.JUMP) * rank @ walk
            if np.abs(rank - before).sum() < 1e-9:
                break
        return rank

    def __call__(self, documents: Sequence[str]) -> list[str]:
        """Return a summary of each document."""
        return [self._summary(sentences(document)[:MOST_SENTENCES]) for document in documents]

    def _summary(self, parts: Sequence[str]) -> str:
        lengths = [len(self.cut.tokenize(part)) for part in parts]
        order = np.argsort(-self.ranks(parts), kind="stable").tolist()
        return "\n".join(parts[i] for i in sorted(nearest_length(lengths, order, self.target)))
