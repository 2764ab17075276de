"""What a translation costs nothing to get: the source itself, the nearest known sentence, and each word by itself."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

__all__ = ["TranslationMemory", "WordByWord", "words"]

MEMORY_ROWS = 100_000
"""Rows that a translation memory holds, the first ones of the training split."""
LINKS = 20_000_000
"""Pairs of a source and a target word that word alignment looks at; rows beyond are left out."""

_UNSPACED = r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
"""Thai, Lao, Tibetan, Burmese, Khmer, kana and Han: no spaces stand between their words."""
_WORDS = re.compile(
    # Numbers with their separators; words with apostrophes and hyphens in them; else each character by itself.
    rf"\d+(?:[.,:]\d+)*|[^\W{_UNSPACED}]+(?:['’-][^\W{_UNSPACED}]+)*|\S"
)


class TranslationMemory:
    """Answers with the translation of the most similar known source, by TF-IDF of character n-grams.

    Args:
        sources: known sentences.
        targets: their translations.
    """

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._targets = list(targets[:MEMORY_ROWS])
        self._vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, dtype=np.float32)
        self._known = self._vectorizer.fit_transform(sources[:MEMORY_ROWS]).T.tocsr()

    def translate(self, sources: Sequence[str]) -> list[str]:
        """Return a known translation for each source; of equally near ones the first."""
        found: list[str] = []
        for start in range(0, len(sources), 256):
            similar = self._vectorizer.transform(sources[start : start + 256]) @ self._known
            found += [self._targets[int(best)] for best in np.asarray(similar.argmax(axis=1)).ravel()]
        return found


class WordByWord:
    """Answers with the likeliest translation of each word, in the order of the source; unknown words stay as they are.

    Probabilities are those of IBM model 1 with an empty source word (Brown et al. 1993), by expectation maximisation.

    Args:
        sources: sentences.
        targets: their translations.
        spaces: words of the target language stand between spaces.
        rounds: of expectation maximisation.
    """

    def __init__(self, sources: Sequence[str], targets: Sequence[str], *, spaces: bool = True, rounds: int = 8) -> None:
        self._spaces = spaces
        self.dictionary = _dictionary(sources, targets, rounds)

    def translate(self, sources: Sequence[str]) -> list[str]:
        """Return a translation of each source."""
        return [_joined([self.dictionary.get(word, word) for word in words(text)], self._spaces) for text in sources]


def words(text: str) -> list[str]:
    """Return words and marks of punctuation; of scripts without spaces, single characters."""
    return _WORDS.findall(text)


def _dictionary(sources: Sequence[str], targets: Sequence[str], rounds: int) -> dict[str, str]:
    """Return the likeliest target word of each source word."""
    # Number 0 is the empty source word, which stands in every sentence and explains what no other word does.
    known: tuple[dict[str, int], dict[str, int]] = ({"": 0}, {})
    links: list[np.ndarray] = []
    places: list[np.ndarray] = []
    count = total = 0
    for source, target in zip(sources, targets, strict=True):
        left, right = (
            np.asarray([numbers.setdefault(word, len(numbers)) for word in words(text)], dtype=np.int64)
            for numbers, text in zip(known, (source, target), strict=True)
        )
        left = np.append(left, 0)
        # Pairs of words as one number each: the halves of 64 bits.
        links.append(((left[:, None] << 32) | right[None]).ravel())
        places.append(np.tile(np.arange(count, count + len(right)), len(left)))
        count, total = count + len(right), total + links[-1].size
        if total > LINKS:
            break
    if not total:
        return {}
    place = np.concatenate(places)
    pairs, link = np.unique(np.concatenate(links), return_inverse=True)
    left, right = pairs >> 32, pairs & 0xFFFFFFFF
    chance = np.ones(len(pairs))
    for _ in range(rounds):
        share = chance[link]
        share /= np.bincount(place, share)[place]
        counts = np.bincount(link, share)
        chance = counts / np.bincount(left, counts)[left]
    # Of each source word the likeliest pair; of equally likely ones, as brackets that always come together, the word
    # itself, else the target word seen first.
    itself = np.asarray([known[1].get(word, -1) for word in known[0]])[left] == right
    order = np.lexsort((-right, itself, chance.round(9), left))
    last = order[np.append(np.diff(left[order]) != 0, True)]
    names = [list(numbers) for numbers in known]
    return {names[0][i]: names[1][j] for i, j in zip(left[last], right[last], strict=True) if i}


def _joined(found: Sequence[str], spaces: bool) -> str:
    if not spaces:
        return "".join(found)
    return re.sub(r"([(\[„¿¡]) ", r"\1", re.sub(r" ([.,;:!?)\]…”])", r"\1", " ".join(found)))
