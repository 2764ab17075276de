"""Augmentation by order and extent: words and sentences change places, a part of a text stands for the whole."""

from __future__ import annotations

import functools
import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from autoft.space import Categorical, Float, SearchSpace
from autoft.strategies.augmentation import TextAugmenter, split_words, with_words

__all__ = ["Crop", "SentenceOrder", "WordOrder", "split_sentences"]


class WordOrder(TextAugmenter):
    """Shuffle or reverse a run of words within a sentence: ``max(2, rate x words)`` of them, gaps keep their place.

    Method: ``shuffle`` is the word noise of Lample et al. 2018 (arXiv:1711.00043, section 2.3), which moves words a few
    places at most; here the run bounds how far. ``reverse`` reads the run backwards, as Sutskever et al. 2014
    (arXiv:1409.3215, section 3.3) read whole sources.
    """

    name: ClassVar[str] = "word-order"
    summary: ClassVar[str] = "shuffle or reverse a run of words within a sentence"
    space: ClassVar[SearchSpace] = {
        "rate": Float(0.05, 0.5, default=0.15),
        "kind": Categorical(("shuffle", "reverse")),
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"rate": 0.15, "kind": "shuffle"},)

    def change(self, text: str, rng: random.Random, params: Mapping[str, Any], learned: Any) -> str:
        """Return the text with one run of words in another order."""
        sentences, gaps = split_sentences(text)
        candidates = [i for i, sentence in enumerate(sentences) if len(split_words(sentence)[0]) > 1]
        if not candidates:
            return text
        at = rng.choice(candidates)
        words, between = split_words(sentences[at])
        length = min(len(words), max(2, int(float(params["rate"]) * len(words))))
        start = rng.randint(0, len(words) - length)
        run = words[start : start + length]
        if params.get("kind", "shuffle") == "reverse":
            run.reverse()
        else:
            rng.shuffle(run)
        sentences[at] = with_words([*words[:start], *run, *words[start + length :]], between)
        return _join(sentences, gaps)

    def rewrite(self, text: str, rng: random.Random, rate: float, learned: Any = None) -> str:
        """Return the text with a run of words shuffled."""
        return self.change(text, rng, {"rate": rate}, learned)


class SentenceOrder(TextAugmenter):
    """Put the sentences of a text in another order.

    Method: ``shuffle`` and ``rotate`` (begin at a random sentence, the ones before it go to the end) are the sentence
    permutation and document rotation of BART (Lewis et al. 2019, arXiv:1910.13461, section 2.2); ``reverse`` is the
    last sentence first. A text of one sentence stays.
    """

    name: ClassVar[str] = "sentence-order"
    summary: ClassVar[str] = "shuffle, rotate or reverse the sentences of a text"
    space: ClassVar[SearchSpace] = {"kind": Categorical(("shuffle", "rotate", "reverse"))}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"kind": "shuffle"},)
    by_piece: ClassVar[bool] = False

    def change(self, text: str, rng: random.Random, params: Mapping[str, Any], learned: Any) -> str:
        """Return the text with its sentences in another order; white space between them keeps its place."""
        sentences, gaps = split_sentences(text)
        if len(sentences) < 2:
            return text
        kind = params.get("kind", "shuffle")
        if kind == "shuffle":
            rng.shuffle(sentences)
        elif kind == "rotate":
            start = rng.randrange(1, len(sentences))
            sentences = [*sentences[start:], *sentences[:start]]
        else:
            sentences.reverse()
        return _join(sentences, gaps)

    def rewrite(self, text: str, rng: random.Random, rate: float, learned: Any = None) -> str:
        """Return the text with its sentences shuffled; ``rate`` has no part in it."""
        return self.change(text, rng, {}, learned)


class Crop(TextAugmenter):
    """Keep a random contiguous part: of the words, or of several sentences; at least ``keep`` of them.

    The share that stays is drawn evenly from ``keep`` to 1; of fewer than ``1 / (1 - keep)`` words or sentences none
    goes.

    Method: cropping of texts as in the random spans that contrastive learning takes for views of a document (Giorgi et
    al. 2021, DeCLUTR, arXiv:2006.03659; Izacard et al. 2022, Contriever, arXiv:2112.09118, section 3.2). One crop for
    labelled texts keeps most of them, for the label is that of the whole.
    """

    name: ClassVar[str] = "crop"
    summary: ClassVar[str] = "keep a random contiguous part of the words or sentences"
    space: ClassVar[SearchSpace] = {
        "keep": Float(0.5, 0.95, default=0.8),
        "unit": Categorical(("words", "sentences")),
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"keep": 0.8, "unit": "words"},)
    by_piece: ClassVar[bool] = False

    def change(self, text: str, rng: random.Random, params: Mapping[str, Any], learned: Any) -> str:
        """Return the part that stays; signs in front of the first word and behind the last go with their neighbours."""
        split = split_sentences if params.get("unit", "words") == "sentences" else split_words
        units, gaps = split(text)
        if len(units) < 2:
            return text
        share = rng.uniform(float(params["keep"]), 1.0)
        count = max(1, math.ceil(share * len(units)))
        start = rng.randint(0, len(units) - count)
        end = start + count
        first = gaps[0] if start == 0 else ""
        last = gaps[-1] if end == len(units) else ""
        return _join(units[start:end], [first, *gaps[start + 1 : end], last])

    def rewrite(self, text: str, rng: random.Random, rate: float, learned: Any = None) -> str:
        """Return the text without ``rate`` of its words, or fewer, at its ends."""
        return self.change(text, rng, {"keep": 1.0 - rate}, learned)


def split_sentences(text: str) -> tuple[list[str], list[str]]:
    """Return the ``n`` sentences of a text and the ``n + 1`` stretches of white space around them.

    A sentence ends at a line's end, at ``.``, ``!``, ``?`` or ``…`` (with closing quotes and brackets) before white
    space, and at the full stops of scripts without spaces. Abbreviations are not known.
    """
    sentences, gaps, end = [], [], 0
    for match in _sentence().finditer(text):
        sentences.append(match.group())
        gaps.append(text[end : match.start()])
        end = match.end()
    return sentences, [*gaps, text[end:]]


@functools.cache
def _sentence() -> re.Pattern[str]:
    closing = "[\"'”’»)\\]」』）]*"
    ends = rf"[.!?…]+{closing}(?=\s|$)|[。！？｡।]+{closing}"
    return re.compile(rf"\S(?:(?!{ends})[^\n])*?(?:{ends}|(?=\s*(?:\n|$)))|\S")


def _join(units: Sequence[str], gaps: Sequence[str]) -> str:
    return "".join(part for pair in zip(gaps, [*units, ""], strict=True) for part in pair)
