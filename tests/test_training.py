from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.training import learning_rate_factor

SCHEDULES = ["constant", "linear", "cosine", "inverse-sqrt", "plateau"]


@given(
    schedule=st.sampled_from(SCHEDULES),
    total=st.integers(1, 2000),
    share=st.floats(0, 0.5),
)
def test_the_factor_stays_between_0_and_1_and_rises_only_while_warming_up(schedule, total, share):
    warmup = round(share * total)
    factors = [learning_rate_factor(schedule, step, total, warmup) for step in range(total)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert np.all(np.diff(factors[:warmup]) > 0)
    assert np.all(np.diff(factors[warmup:]) <= 1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")]
)
def test_schedules_follow_transformers_after_the_warm_up(ours, theirs):
    import torch
    from transformers.optimization import get_scheduler

    total, warmup = 50, 10
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    expected = []
    for _ in range(total):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    factors = [learning_rate_factor(ours, step, total, warmup) for step in range(total)]
    assert factors[warmup:] == pytest.approx(expected[warmup:], abs=1e-9)


def test_inverse_square_root_halves_when_the_steps_are_four_times_the_warm_up():
    assert learning_rate_factor("inverse-sqrt", 400, 1000, 100) == pytest.approx(0.5)


def test_an_unknown_schedule_is_an_error():
    with pytest.raises(ValueError, match="triangular"):
        learning_rate_factor("triangular", 5, 10, 0)


def test_a_cosine_ends_near_nothing():
    assert learning_rate_factor("cosine", 99, 100, 0) < 1e-3
    assert math.isclose(learning_rate_factor("cosine", 50, 100, 0), 0.5)
