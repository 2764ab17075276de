"""Batches against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.data.batches import grouped_batches


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 50), max_size=300),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 3),
)
def test_batches_hold_each_row_once(lengths, batch_size, seed):
    def batches(seed):
        found = grouped_batches(np.array(lengths, dtype=np.int64), batch_size, np.random.default_rng(seed))
        return [batch.tolist() for batch in found]

    got = batches(seed)
    assert sorted(index for batch in got for index in batch) == list(range(len(lengths)))
    assert all(0 < len(batch) <= batch_size for batch in got)
    assert len(got) == math.ceil(len(lengths) / batch_size), "at most one batch is short"
    assert batches(seed) == got
    if lengths:
        assert max(lengths[index] for index in got[0]) == max(lengths)


def padding(lengths, batches) -> int:
    return sum(int(lengths[batch].max()) * len(batch) - int(lengths[batch].sum()) for batch in batches)


@pytest.mark.parametrize(("count", "at_most"), [(200, 0.6), (2000, 0.15), (20_000, 0.1)])
def test_rows_of_a_batch_are_close_in_length(count, at_most):
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(3, 0.7, count).astype(int) + 1
    grouped = grouped_batches(lengths, 16, np.random.default_rng(1))
    order = rng.permutation(count)
    random_order = [order[at : at + 16] for at in range(0, count, 16)]
    assert padding(lengths, grouped) < at_most * padding(lengths, random_order)


def test_batches_differ_between_epochs_and_are_in_no_order_of_length():
    lengths = np.random.default_rng(0).integers(1, 100, 2000)
    rng = np.random.default_rng(0)
    first, second = grouped_batches(lengths, 8, rng), grouped_batches(lengths, 8, rng)
    assert {frozenset(batch.tolist()) for batch in first} != {frozenset(batch.tolist()) for batch in second}
    means = [lengths[batch].mean() for batch in first]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.25


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_holds_at_least_one_row(size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {size}"):
        grouped_batches(np.array([1, 2]), size, np.random.default_rng(0))
