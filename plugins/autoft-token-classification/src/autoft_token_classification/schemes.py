"""Tagging schemes: which one tags are in, the entities that they stand for, and the order that tags may come in.

========  ===========================================================================================================
iob2      ``B-`` begins each entity, ``I-`` goes on with it (Tjong Kim Sang & Veenstra 1999)
iob1      ``I-`` begins an entity too; ``B-`` only where one follows another of its type (Ramshaw & Marcus 1995)
iobes     as iob2, and ``E-`` ends an entity, ``S-`` is one of a single word; BMES writes ``M-`` for ``I-``
bilou     as iobes with ``L-`` and ``U-`` (Ratinov & Roth 2009)
io        the bare type, or ``O``: neighbours of one type are one entity
plain     a tag for each word and nothing outside, as parts of speech
========  ===========================================================================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = [
    "SCHEMES",
    "Entity",
    "Transitions",
    "detect_scheme",
    "order_tags",
    "read_entities",
    "split_tag",
    "write_tags",
]

SCHEMES = ("iob2", "iob1", "iobes", "bilou", "io", "plain")
OUTSIDE = "O"

_ALIASES = {"L": "E", "U": "S", "M": "I"}
"""Prefixes of BILOU and BMES, and those of IOBES that mean the same."""
_PREFIXES = "BIESLUM"
_ILLEGAL = -1e4
"""Score of a transition that a scheme forbids: far below any log-probability, and still a number."""


class Entity(NamedTuple):
    """A stretch of a sentence and its type; ``end`` is after its last word or character."""

    label: str
    start: int
    end: int


def split_tag(tag: str) -> tuple[str, str] | None:
    """Return prefix and type of a tag: ``B-PER`` is ``("B", "PER")``, a bare ``B`` has the type ``_``.

    Prefixes of BILOU and BMES are returned as those of IOBES. None for tags that are not written so.
    """
    if tag == OUTSIDE:
        return OUTSIDE, ""
    if tag[:1] not in _PREFIXES or not tag or (len(tag) > 1 and tag[1] not in "-_"):
        return None
    return _ALIASES.get(tag[0], tag[0]), tag[2:] or "_"


def detect_scheme(sentences: Iterable[Sequence[str]]) -> str:
    """Return the scheme that the tags of these sentences are in.

    Tags without prefixes are ``io`` where ``O`` is the most frequent of them, and ``plain`` otherwise. Between the
    schemes of ``B`` and ``I`` decides how entities begin: all with ``I`` but those after one of their type is ``iob1``.
    """
    counts: Counter[str] = Counter()
    begun_inside = needless_begin = 0
    for tags in sentences:
        counts.update(tags)
        before = (OUTSIDE, "")
        for tag in tags:
            now = split_tag(tag) or (OUTSIDE, "")
            goes_on = before[0] in "BI" and before[1] == now[1]
            begun_inside += now[0] == "I" and not goes_on
            needless_begin += now[0] == "B" and not goes_on
            before = now
    prefixes = {tag[0] for tag in counts if split_tag(tag) is not None and tag != OUTSIDE}
    if any(split_tag(tag) is None for tag in counts) or not prefixes:
        return "io" if counts and counts.most_common(1)[0][0] == OUTSIDE and len(counts) > 1 else "plain"
    if prefixes & set("LU"):
        return "bilou"
    if prefixes & set("ESM"):
        return "iobes"
    return "iob1" if begun_inside and not needless_begin else "iob2"


def order_tags(tags: Iterable[str], scheme: str) -> list[str]:
    """Return the tags in the order of a model's outputs: ``O`` first, then by type, beginnings before what follows."""
    if scheme in {"plain", "io"}:
        return sorted(set(tags), key=lambda tag: (tag != OUTSIDE or scheme == "plain", tag))

    def key(tag: str) -> tuple[bool, str, int, str]:
        prefix, kind = split_tag(tag) or ("", tag)
        return tag != OUTSIDE, kind, "BIES".find(prefix), tag

    return sorted(set(tags), key=key)


def read_entities(tags: Sequence[str], scheme: str, *, strict: bool = False) -> list[Entity]:
    """Return the entities of a sentence, in words, as seqeval reads them.

    Args:
        tags: of each word.
        scheme: that they are in; of ``plain`` tags each word is one.
        strict: leave out entities that are not tagged as the scheme says (seqeval's strict mode). By default they are
            read as conlleval does: an ``I-`` after ``O`` or another type begins an entity.
    """
    from seqeval.metrics.sequence_labeling import get_entities

    if scheme == "plain":
        return [Entity(tag, i, i + 1) for i, tag in enumerate(tags)]
    if scheme == "io":
        written = [OUTSIDE if tag == OUTSIDE else f"I-{tag}" for tag in tags]
    else:
        parts = [split_tag(tag) or (OUTSIDE, "") for tag in tags]
        written = [prefix if prefix == OUTSIDE else f"{prefix}-{kind}" for prefix, kind in parts]
    if strict and scheme != "io":
        return _strict_entities(written, scheme)
    return [Entity(kind, first, last + 1) for kind, first, last in get_entities(written)]


def _strict_entities(tags: list[str], scheme: str) -> list[Entity]:
    from seqeval.scheme import IOB1, IOB2, IOBES, Entities

    # BILOU has been rewritten as IOBES.
    kind = {"iob1": IOB1, "iob2": IOB2}.get(scheme, IOBES)
    (found,) = Entities([tags], kind).entities
    return [Entity(entity.tag, entity.start, entity.end) for entity in found]


def write_tags(entities: Iterable[Entity], count: int, scheme: str) -> list[str]:
    """Return the tags of a sentence of so many words; the entities are in words and do not overlap."""
    tags = [OUTSIDE] * count
    before: Entity | None = None
    for entity in sorted(entities, key=lambda entity: entity.start):
        touches = before is not None and before.end == entity.start and before.label == entity.label
        for i in range(entity.start, entity.end):
            tags[i] = _written(scheme, entity, i, touches)
        before = entity
    return tags


def _written(scheme: str, entity: Entity, word: int, touches: bool) -> str:
    first, last = word == entity.start, word == entity.end - 1
    if scheme == "io":
        return entity.label
    if scheme == "iob1":
        prefix = "B" if first and touches else "I"
    elif scheme == "iob2":
        prefix = "B" if first else "I"
    else:
        single, end = ("S", "E") if scheme == "iobes" else ("U", "L")
        prefix = single if first and last else "B" if first else end if last else "I"
    return f"{prefix}-{entity.label}"


@dataclass(frozen=True)
class Transitions:
    """Which tags may follow each other, as scores: 0 where the scheme allows it, and far below where it does not.

    Attributes:
        start: of the first tag, ``(tags,)``.
        step: of a tag (column) after another (row), ``(tags, tags)``.
        end: of the last tag, ``(tags,)``.
    """

    start: np.ndarray
    step: np.ndarray
    end: np.ndarray

    @classmethod
    def of(cls, labels: Sequence[str], scheme: str) -> Transitions | None:
        """Return those of a scheme over these tags; None where every order is legal."""
        if scheme in {"io", "plain"}:
            return None
        parts = [split_tag(label) or (OUTSIDE, "") for label in labels]
        outside = (OUTSIDE, "")

        def scores(legal: list[bool]) -> np.ndarray:
            return np.where(np.asarray(legal), 0.0, _ILLEGAL)

        return cls(
            start=scores([_legal(outside, now, scheme) for now in parts]),
            step=np.stack([scores([_legal(before, now, scheme) for now in parts]) for before in parts]),
            end=scores([_legal(before, outside, scheme) for before in parts]),
        )

    def best_path(self, scores: np.ndarray) -> np.ndarray:
        """Return the legal tags ``(words,)`` of the greatest sum of scores (Viterbi 1967).

        Args:
            scores: log-probability of each tag for each word, ``(words, tags)``.
        """
        count = len(scores)
        if count == 0:
            return np.zeros(0, dtype=np.int64)
        back = np.zeros(scores.shape, dtype=np.int64)
        total = self.start + scores[0]
        for i in range(1, count):
            through = total[:, None] + self.step
            back[i] = through.argmax(0)
            total = through.max(0) + scores[i]
        path = np.zeros(count, dtype=np.int64)
        path[-1] = (total + self.end).argmax()
        for i in range(count - 1, 0, -1):
            path[i - 1] = back[i, path[i]]
        return path


def _legal(before: tuple[str, str], now: tuple[str, str], scheme: str) -> bool:
    same = before[1] == now[1]
    if scheme == "iob1":
        return now[0] != "B" or (before[0] in "BI" and same)
    if scheme == "iob2":
        return now[0] != "I" or (before[0] in "BI" and same)
    return same and now[0] in "IE" if before[0] in "BI" else now[0] not in "IE"
