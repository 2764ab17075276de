"""Groups: rows with the same value of ``data.group``, which are all in one part where rows are parted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from autoft.contracts import Column
from autoft.data.columns import missing_values
from autoft.data.rows import GROUP, Ints, Mask, count_of_rows, row_keys, shortened
from autoft.errors import DataError

__all__ = ["deal", "group_numbers", "joined", "ungrouped"]


def ungrouped(table: pa.Table) -> Mask:
    """Say for each row whether it has no value of ``data.group``."""
    return missing_values(table[GROUP], Column(GROUP, "source", "whose a row is", required=False))


def group_numbers(table: pa.Table) -> Ints:
    """Return the number of each row's group, from 0; a row without a value is a group of its own."""
    groups: Ints = np.unique(row_keys(table, [GROUP]), return_inverse=True)[1].astype(np.int64)
    alone = ungrouped(table)
    groups[alone] = len(groups) + np.arange(alone.sum())
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def joined(one: Ints, other: Ints) -> Ints:
    """Return groups, numbered from 0, such that rows are in one if they share a number in either; chains of such rows too."""
    groups = np.arange(len(one))
    while True:
        before = groups
        for numbers in (one, other):
            least = np.full(len(numbers), len(numbers))
            np.minimum.at(least, numbers, groups)
            groups = least[numbers]
        if (groups == before).all():
            return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def deal(
    table: pa.Table,
    groups: Ints,
    strata: Sequence[str | None],
    sizes: Sequence[float],
    rng: np.random.Generator,
    parts: str,
) -> Ints:
    """Deal whole groups out, so that the parts' sizes and their shares of each stratum are near to what is asked for.

    The largest group comes first, in random order among those of one size, and each goes where the squared distance from what is
    asked for, relative to it, grows least: as in scikit-learn's ``StratifiedGroupKFold``, whose parts are all of one size.

    Args:
        table: the rows, with a column ``data.group``, for messages.
        groups: the number of each row's group, from 0.
        strata: of each row.
        sizes: rows of each part that are asked for; they add up to all.
        rng: decides between groups of one size.
        parts: what the parts are, for messages.

    Returns:
        the number of each row's part, from 0; no part is empty.

    Raises:
        DataError: there are fewer groups than parts, or one group holds nearly all rows.
    """
    counts = np.bincount(groups)
    rows, largest = len(groups), int(counts.argmax())
    if len(counts) < len(sizes):
        raise DataError(
            f"data.group: its column has {len(counts)} different values in the {rows} rows to be parted, too few for {parts}: "
            "each needs a value of its own"
        )
    others = rows - int(counts[largest])
    if others < (rows - max(sizes)) / 2:
        value = table[GROUP][int(np.flatnonzero(groups == largest)[0])].as_py()
        raise DataError(
            f"data.group: {count_of_rows(int(counts[largest]), rows)} have one value, {shortened(repr(value))}, and stay together; the "
            f"others are too few for {parts}"
        )
    stratum = np.unique([repr(one) for one in strata], return_inverse=True)[1].astype(np.int64)
    # Stratum 0 is that of all rows: the size of a part is to be met too.
    cells, amounts = np.unique(
        np.concatenate([np.stack([groups, stratum + 1], axis=1), np.stack([groups, 0 * stratum], axis=1)]),
        axis=0,
        return_counts=True,
    )
    begins = np.searchsorted(cells[:, 0], np.arange(len(counts) + 1))
    wanted = np.outer(sizes, np.r_[rows, np.bincount(stratum)]) / rows
    held = np.zeros_like(wanted)
    weights = np.r_[wanted.shape[1] - 1.0, np.ones(wanted.shape[1] - 1)]
    shuffled = rng.permutation(len(counts))
    order = shuffled[np.argsort(-counts[shuffled], kind="stable")]
    part_of = np.empty(len(counts), dtype=np.int64)
    for group in order:
        own = slice(begins[group], begins[group + 1])
        at, amount = cells[own, 1], amounts[own]
        growth = ((2 * (held[:, at] - wanted[:, at]) + amount) * amount / wanted[:, at]) @ weights[at]
        part = part_of[group] = int(growth.argmin())
        held[part, at] += amount
    for part in range(len(sizes)):
        if not (part_of == part).any():
            # Every group is larger than twice what is asked for: the smallest that another part can spare.
            numbers = np.bincount(part_of, minlength=len(sizes))
            part_of[next(group for group in order[::-1] if numbers[part_of[group]] > 1)] = part
    return part_of[groups]
