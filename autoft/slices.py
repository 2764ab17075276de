"""Parts of a split that are worth a figure of their own: by the length of the input, by label, by source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoft.contracts import Row, TaskCard
from autoft.data.rows import SLICE

__all__ = ["Slice", "slices"]

LENGTHS = 4
"""Groups by length, of about as many rows each."""

MOST = 100
"""Labels, or sources, that are looked at; the most frequent ones."""

FEWEST = 5
"""Rows of which a figure is given: an interval over fewer says nothing."""


@dataclass(frozen=True)
class Slice:
    """Some rows of a split.

    Attributes:
        by: what they have in common: ``length``, the role of the label, or a column that ``data.slices`` names.
        name: the range of lengths, or the value.
        rows: their places in the split.
    """

    by: str
    name: str
    rows: tuple[int, ...]


def slices(card: TaskCard, rows: Sequence[Row]) -> list[Slice]:
    """Return the parts of rows that have a length in common, a label, or a source; none where all would be one part.

    A row with several labels is in the part of each.

    Args:
        card: says which columns are texts and labels.
        rows: of one split, with targets.
    """
    found = _by_length(card, rows)
    for column in card.columns:
        if column.target and column.kind in {"label", "labels"}:
            found += _by_value(column.role, [_values(row.get(column.role)) for row in rows])
    for role in dict.fromkeys(key for row in rows for key in row if key.startswith(SLICE)):
        found += _by_value(role.removeprefix(SLICE), [_values(row.get(role)) for row in rows])
    return found


def _by_length(card: TaskCard, rows: Sequence[Row]) -> list[Slice]:
    roles = [column.role for column in card.inputs if column.kind in {"text", "tokens"}]
    lengths = np.asarray([sum(_length(row.get(role)) for role in roles) for row in rows])
    if len(np.unique(lengths)) < LENGTHS:
        return []
    # A length is in one group only, so that groups differ in size where many rows are of one length.
    bounds = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTHS + 1)[1:], method="lower"))
    group = np.searchsorted(bounds, lengths)
    found = []
    for place in range(len(bounds)):
        members = np.flatnonzero(group == place)
        own = lengths[members]
        if len(members) >= FEWEST:
            name = f"{own.min()} to {own.max()} characters" if own.min() < own.max() else f"{own.min()} characters"
            found.append(Slice("length", name, tuple(members.tolist())))
    return found if len(found) > 1 else []


def _length(value: object) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list | tuple):
        # Tokens stand with a space between them.
        return sum(_length(entry) for entry in value) + max(0, len(value) - 1)
    return 0


def _values(value: object) -> list[str]:
    entries = value if isinstance(value, list | tuple) else [value]
    return list(dict.fromkeys(str(entry) for entry in entries if entry is not None))


def _by_value(by: str, values: Sequence[Sequence[str]]) -> list[Slice]:
    counts = Counter(value for own in values for value in own)
    shown = [name for name, count in counts.most_common(MOST) if count >= FEWEST]
    if len(shown) < 2:
        return []
    return [Slice(by, name, tuple(i for i, own in enumerate(values) if name in own)) for name in shown]
