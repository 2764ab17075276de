"""Cheap taggers that show what the transformer buys."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from autoft.contracts import Baseline, Prediction, Row, TaskContext
from autoft_token_classification.answers import Decoder
from autoft_token_classification.sentences import read_sentence

__all__ = ["lexicon", "linear", "majority"]

MOST_DECISIONS = 1_500_000
"""Words times tags that the linear model is trained on, some twenty seconds' work; of more, sentences are left out."""

Words = Sequence[str]


def majority(context: TaskContext) -> Baseline:
    """Return the baseline that gives every word the most frequent tag."""
    shares = _logs(np.asarray([context.facts["counts"][name] for name in context.labels], dtype=np.float64))

    def scores(sentences: Sequence[Words]) -> list[np.ndarray]:
        return [np.tile(shares, (len(words), 1)) for words in sentences]

    return Baseline("majority tag", _tagger(scores, context), trivial=True)


def lexicon(sentences: Sequence[Words], tags: Sequence[Sequence[str]], context: TaskContext) -> Baseline:
    """Return the baseline that gives each word the tag that it most often has in the training rows.

    A word that these do not show in the same letters is looked up in lower case; an unknown one gets the most frequent
    tag of all.
    """
    place = {name: i for i, name in enumerate(context.labels)}
    exact: defaultdict[str, Counter[int]] = defaultdict(Counter)
    lower: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for words, names in zip(sentences, tags, strict=True):
        for word, name in zip(words, names, strict=True):
            exact[word][place[name]] += 1
            lower[word.lower()][place[name]] += 1
    total = Counter({place[name]: count for name, count in context.facts["counts"].items()})

    def scores(sentences: Sequence[Words]) -> list[np.ndarray]:
        found = [np.zeros((len(words), len(place))) for words in sentences]
        for words, counts in zip(sentences, found, strict=True):
            for i, word in enumerate(words):
                for tag, count in (exact.get(word) or lower.get(word.lower()) or total).items():
                    counts[i, tag] = count
        return [_logs(counts) for counts in found]

    return Baseline("most frequent tag of each word", _tagger(scores, context))


def linear(sentences: Sequence[Words], tags: Sequence[Sequence[str]], context: TaskContext) -> Baseline:
    """Return the baseline that judges a word by itself, its ends and shape, and those of its neighbours."""
    from sklearn.feature_extraction import FeatureHasher
    from sklearn.linear_model import SGDClassifier

    decisions = sum(map(len, sentences)) * len(context.labels)
    # Evenly over all rows: these may be sorted by their source.
    taken = list(zip(sentences, tags, strict=True))[:: max(1, math.ceil(decisions / MOST_DECISIONS))]
    hasher = FeatureHasher(2**18, input_type="string", alternate_sign=False)
    model = SGDClassifier(loss="log_loss", alpha=1e-6, max_iter=10, tol=None, average=True, random_state=0)
    model.fit(
        hasher.transform(features for words, _ in taken for features in _looks(words)),
        [name for _, names in taken for name in names],
    )
    place = {name: i for i, name in enumerate(context.labels)}
    order = [place[name] for name in model.classes_]

    def scores(sentences: Sequence[Words]) -> list[np.ndarray]:
        ends = np.cumsum([len(words) for words in sentences])
        if not len(ends) or not ends[-1]:
            return [np.zeros((0, len(place))) for _ in sentences]
        found = np.zeros((ends[-1], len(place)))
        # All sentences at once: each call multiplies with all weights, of which there are hundreds of thousands a tag.
        found[:, order] = model.predict_proba(
            hasher.transform(features for words in sentences for features in _looks(words))
        )
        return np.split(_logs(found), ends[:-1])

    return Baseline("linear model of words and neighbours", _tagger(scores, context))


def _tagger(
    scores: Callable[[Sequence[Words]], list[np.ndarray]], context: TaskContext
) -> Callable[[Sequence[Row]], list[Prediction]]:
    decoder = Decoder(context)

    def predict(rows: Sequence[Row]) -> list[Prediction]:
        sentences = [read_sentence(row, context.facts, number) for number, row in enumerate(rows)]
        found = scores([sentence.words for sentence in sentences])
        return [decoder.answer(sentence, each) for sentence, each in zip(sentences, found, strict=True)]

    return predict


def _logs(counts: np.ndarray) -> np.ndarray:
    """Return counts as log-probabilities; what was never seen is very unlikely rather than impossible."""
    return np.asarray(np.log(np.maximum(counts / counts.sum(-1, keepdims=True), 1e-9)))


def _looks(words: Words) -> Iterator[list[str]]:
    """Give the features of each word (after Ratinov & Roth 2009, table 1)."""
    shapes = [_shape(word) for word in words]
    lower = [word.lower() for word in words]

    def at(values: Sequence[str], i: int) -> str:
        return values[i] if 0 <= i < len(values) else "<>"

    for i, word in enumerate(words):
        features = ["always", f"word {word}", f"lower {lower[i]}", f"shape {shapes[i]}"]
        features += [f"begin {length} {lower[i][:length]}" for length in (1, 2, 3, 4)]
        features += [f"end {length} {lower[i][-length:]}" for length in (1, 2, 3, 4)]
        for step in (-2, -1, 1, 2):
            features += [f"{step} {at(lower, i + step)}", f"{step} shape {at(shapes, i + step)}"]
        features += [f"pair {at(lower, i - 1)} {lower[i]}", f"pair {lower[i]} {at(lower, i + 1)}"]
        yield features


@lru_cache(maxsize=100_000)
def _shape(word: str) -> str:
    """Return ``Aa-9`` for ``Berlin-2024``: runs of capitals, letters and digits as one sign each."""
    signs: list[str] = []
    for character in word:
        sign = "A" if character.isupper() else "a" if character.isalpha() else "9" if character.isdigit() else character
        if not signs or signs[-1] != sign:
            signs.append(sign)
    return "".join(signs)[:12]
