"""Batches of rows of similar length."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from autoft.data.rows import Ints

__all__ = ["grouped_batches"]


def grouped_batches(lengths: npt.NDArray[Any], batch_size: int, rng: np.random.Generator) -> list[Ints]:
    """Return batches of positions with rows of similar length together, in random order.

    Rows are shuffled into groups of up to 50 batches, sorted by length inside of each, and cut into batches, as
    ``LengthGroupedSampler`` of transformers does: little padding, and batches that differ between epochs. The batch
    with the longest row comes first, so that memory that does not suffice shows at once; one batch may be short.

    Args:
        lengths: of each row, ``(rows,)``.
        batch_size: rows a batch.
        rng: decides the order.

    Raises:
        ValueError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    count = len(lengths)
    if count == 0:
        return []
    lengths = np.asarray(lengths)
    # At least four groups, so that small data is still shuffled.
    group = batch_size * max(1, min(count // (batch_size * 4), 50))
    order = rng.permutation(count)
    batches: list[Ints] = []
    for start in range(0, count, group):
        members = order[start : start + group]
        members = members[np.argsort(-lengths[members], kind="stable")]
        batches.extend(members[at : at + batch_size] for at in range(0, len(members), batch_size))
    shuffled = [batches[position] for position in rng.permutation(len(batches))]
    longest = max(range(len(shuffled)), key=lambda position: int(lengths[shuffled[position]].max()))
    shuffled.insert(0, shuffled.pop(longest))
    return shuffled
