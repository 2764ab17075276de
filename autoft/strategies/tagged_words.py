"""Augmentation of sentences whose words have tags (Dai and Adel 2020, arXiv:2010.11683): the tags stay right."""

from __future__ import annotations

import random
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

from autoft.contracts import Augmenter, Refusal, Row, Target, TaskCard
from autoft.space import Float, SearchSpace
from autoft.strategies.augmentation import Tagged, read_tagged

__all__ = ["LabelWiseReplacement", "MentionReplacement", "SegmentShuffle", "TaggedAugmenter", "segments"]

_MAX_ROWS = 100_000


class TaggedAugmenter(Augmenter):
    """What the augmenters of tagged words share: they rewrite ``tokens``, and tags where they move.

    Where a row has tags and no tokens, its text parted by white space stands for them.

    Rows without tags, or with other numbers of tags and words, stay as they are; so do rows with spans instead.
    """

    rewrites: ClassVar[frozenset[str]] = frozenset({"tokens"})
    invalidates: ClassVar[frozenset[str]] = frozenset()
    realigns: ClassVar[frozenset[str]] = frozenset({"tags"})
    space: ClassVar[SearchSpace] = {"rate": Float(0.05, 0.7, default=0.3)}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"rate": 0.1}, {"rate": 0.3}, {"rate": 0.5}, {"rate": 0.7})

    def check(self, target: Target) -> Refusal | None:
        """Refuse tasks without words that have tags."""
        card = target.task.card
        if not {"tokens", "tags"} <= {column.kind for column in card.columns}:
            return Refusal(
                f"{self.name}: needs columns of the kinds tokens and tags, which {card.name} does not have; use it with "
                "a task of tagged words"
            )
        return super().check(target)

    def augment(
        self, row: Row, card: TaskCard, rng: random.Random, params: Mapping[str, Any], learned: Any = None
    ) -> Row:
        """Return a copy of the row with words changed, and tags with them.

        Args:
            row: with words and tags.
            card: says which columns they are.
            rng: all randomness comes from it.
            params: ``rate``: the probability that a word, mention or segment is changed (the paper's p).
            learned: as :meth:`learn` returned it.
        """
        tagged = read_tagged(row, card)
        if tagged is None:
            return dict(row)
        words, tags = self.change(tagged, rng, float(params["rate"]), learned)
        return tagged.row(words, tags)

    def change(
        self, tagged: Tagged, rng: random.Random, rate: float, learned: Any
    ) -> tuple[Sequence[str], Sequence[Any]]:
        """Return the new words and their tags."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pool:
    """Things to draw from, as often as they were seen."""

    items: tuple[Any, ...]
    sums: tuple[int, ...]

    @classmethod
    def of(cls, counts: Counter[Any]) -> Pool:
        """Return the pool of what was counted."""
        ordered = counts.most_common()
        return cls(tuple(item for item, _ in ordered), tuple(accumulate(count for _, count in ordered)))

    def draw(self, rng: random.Random) -> Any:
        """Return one of the items."""
        return self.items[bisect(self.sums, rng.random() * self.sums[-1], 0, len(self.sums) - 1)]


class LabelWiseReplacement(TaggedAugmenter):
    """Replace each word with probability ``rate`` by a training word of the same tag, drawn by frequency under it.

    Method: label-wise token replacement of Dai and Adel 2020 (arXiv:2010.11683, section 3).
    """

    name: ClassVar[str] = "label-wise-replacement"
    summary: ClassVar[str] = "replace tagged words by training words of the same tag"

    def learn(self, rows: Sequence[Row], card: TaskCard) -> dict[Any, Pool]:
        """Return the words of each tag; at most 100,000 rows, evenly spread, are read."""
        counts: defaultdict[Any, Counter[str]] = defaultdict(Counter)
        for tagged in _read(rows, card):
            for word, tag in zip(tagged.words, tagged.tags, strict=True):
                counts[tag][word] += 1
        return {tag: Pool.of(words) for tag, words in counts.items()}

    def change(
        self, tagged: Tagged, rng: random.Random, rate: float, learned: Any
    ) -> tuple[Sequence[str], Sequence[Any]]:
        """Return the words, some replaced, and the tags as they were."""
        pools = learned or {}
        words = [
            pools[tag].draw(rng) if rng.random() < rate and tag in pools else word
            for word, tag in zip(tagged.words, tagged.tags, strict=True)
        ]
        return words, tagged.tags


class MentionReplacement(TaggedAugmenter):
    """Replace each entity with probability ``rate`` by a training entity of the same type, which brings its own tags.

    Entities next to another of their type stay, as some schemes then tag the second one otherwise; so do all words
    where tags are numbers or have no ``B-``, ``I-`` in front.

    Method: mention replacement of Dai and Adel 2020 (arXiv:2010.11683, section 3).
    """

    name: ClassVar[str] = "mention-replacement"
    summary: ClassVar[str] = "replace entities by training entities of the same type"

    def learn(self, rows: Sequence[Row], card: TaskCard) -> dict[str, Pool]:
        """Return the entities of each type, with their tags; at most 100,000 rows, evenly spread, are read."""
        counts: defaultdict[str, Counter[Any]] = defaultdict(Counter)
        for tagged in _read(rows, card):
            for kind, start, end in _alone(tagged):
                counts[kind][tagged.words[start:end], tagged.tags[start:end]] += 1
        return {kind: Pool.of(mentions) for kind, mentions in counts.items()}

    def change(
        self, tagged: Tagged, rng: random.Random, rate: float, learned: Any
    ) -> tuple[Sequence[str], Sequence[Any]]:
        """Return the words and the tags with some entities replaced."""
        pools = learned or {}
        words, tags = list(tagged.words), list(tagged.tags)
        # From the last on, so that places in front stay what they are.
        for kind, start, end in reversed(_alone(tagged)):
            if rng.random() < rate and kind in pools:
                words[start:end], tags[start:end] = pools[kind].draw(rng)
        return words, tags


class SegmentShuffle(TaggedAugmenter):
    """Shuffle the words within segments, each with probability ``rate``; a segment is an entity, or what lies between.

    Method: shuffle within segments of Dai and Adel 2020 (arXiv:2010.11683, section 3).
    """

    name: ClassVar[str] = "segment-shuffle"
    summary: ClassVar[str] = "shuffle the words within entities and between them"

    def change(
        self, tagged: Tagged, rng: random.Random, rate: float, learned: Any
    ) -> tuple[Sequence[str], Sequence[Any]]:
        """Return the words, shuffled within segments, and the tags as they were."""
        words = list(tagged.words)
        for _, start, end in segments(tagged.tags):
            if rng.random() < rate:
                part = words[start:end]
                rng.shuffle(part)
                words[start:end] = part
        return words, tagged.tags


def segments(tags: Sequence[Any]) -> list[tuple[Any, int, int]]:
    """Return runs of words that belong together as ``(type, start, end)``, in order, without a gap.

    A new one begins where the type changes (what follows the prefix of a tag as ``B-PER``; a tag without a prefix is
    its own type), at ``B``, ``S`` and ``U``, and after ``E``, ``L``, ``S`` and ``U``.
    """
    found: list[tuple[Any, int, int]] = []
    last = ""
    for at, tag in enumerate(tags):
        prefix, kind = _parts(tag)
        if found and found[-1][0] == kind and prefix not in {"B", "S", "U"} and last not in {"E", "L", "S", "U"}:
            found[-1] = (kind, found[-1][1], at + 1)
        else:
            found.append((kind, at, at + 1))
        last = prefix
    return found


def _parts(tag: Any) -> tuple[str, Any]:
    if isinstance(tag, str) and len(tag) > 2 and tag[0] in "BIESLUM" and tag[1] in "-_":
        return tag[0], tag[2:]
    return "", tag


def _alone(tagged: Tagged) -> list[tuple[str, int, int]]:
    """Return the entities that have no other of their type beside them."""
    found = segments(tagged.tags)
    alone = []
    for i, (kind, start, end) in enumerate(found):
        beside = [found[j][0] for j in (i - 1, i + 1) if 0 <= j < len(found)]
        if _parts(tagged.tags[start])[0] and kind not in beside:
            alone.append((kind, start, end))
    return alone


def _read(rows: Sequence[Row], card: TaskCard) -> list[Tagged]:
    step = -(-len(rows) // _MAX_ROWS) or 1
    return [tagged for row in rows[::step] if (tagged := read_tagged(row, card)) is not None]
