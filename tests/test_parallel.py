"""How many workers pay, against a count of what each would have trained by the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.data.features import encoded
from autoft.data.rows import Split
from autoft.executors import worker
from autoft.parallel import CONTENTION, FEWEST, PAYS, STARTS, thread_counts, workers_that_pay
from autoft.testing.workbench import Workbench


def fixed_and_steps(fixed, steps):
    """Return what a trial takes by its threads, of which a part does not depend on them."""
    return lambda threads, speed: fixed + steps[threads] / speed


def chosen(steps, fixed=0.0, cores=None, most=99, seconds=3600.0, trials=None, startup=8.0):
    return workers_that_pay(
        fixed_and_steps(fixed, steps), steps, cores=cores or max(steps), most=most, seconds=seconds, trials=trials, startup=startup
    )[:2]  # fmt: skip


@pytest.mark.parametrize(("cores", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_threads_are_powers_of_two_and_all_cores(cores, counts):
    assert thread_counts(cores) == counts


def test_a_model_that_gains_nothing_by_a_second_thread_has_a_worker_for_each():
    assert chosen({1: 20.0, 2: 22.0}) == (2, 1)


def test_a_model_that_gains_all_by_further_threads_has_one_worker():
    assert chosen({1: 80.0, 2: 40.0, 4: 20.0, 8: 10.0}) == (1, 8)


def test_in_between_each_worker_has_some_threads():
    # Two threads are twice as fast as one; more than two gain nothing.
    assert chosen({1: 80.0, 2: 40.0, 4: 40.0, 8: 40.0}) == (4, 2)


def test_a_short_search_or_a_few_trials_are_not_worth_a_start():
    steps = {1: 20.0, 2: 22.0}
    assert chosen(steps, seconds=79.0) == (1, 2)
    assert chosen(steps, trials=3) == (1, 2)
    assert chosen(steps, trials=4) == (2, 1)
    # Two trainings each: the first that are compared would be the last.
    assert chosen({1: 100.0, 2: 101.0}, seconds=300.0) == (1, 2)


def test_there_are_no_more_workers_than_memory_or_trials():
    steps = {1: 20.0, 8: 20.0}
    assert chosen(steps) == (8, 1)
    assert chosen(steps, most=3) == (3, 1)
    assert chosen(steps, trials=5) == (5, 1)
    assert chosen(steps, most=1) == (1, 8)


@given(
    steps=st.fixed_dictionaries({count: st.floats(0.1, 100.0) for count in (1, 2, 4)}),
    fixed=st.floats(0.0, 50.0),
    seconds=st.floats(10.0, 5000.0),
    most=st.integers(1, 5),
)
def test_what_is_chosen_trains_most_of_all_that_is_allowed(steps, fixed, seconds, most):
    workers, threads = chosen(steps, fixed, most=most, seconds=seconds, startup=5.0)
    one = fixed + steps[4]
    rates = {(1, 4): 1 / one}
    for count in steps:
        took = fixed + steps[count] / CONTENTION
        several = min(4 // count, most)
        allowed = several > 1 and seconds >= STARTS * 5.0 and seconds / took >= FEWEST
        if allowed and several / took * one >= PAYS:
            rates[several, count] = several / took
    assert rates[workers, threads] == pytest.approx(max(rates.values()))


@pytest.mark.parametrize(("slow", "steps"), [(3600.0, 5), (0.0, 1)])
def test_where_one_step_takes_long_the_first_one_is_the_measure(catalog, monkeypatch, tmp_path, slow, steps):
    bench = Workbench(catalog.task("text-classification"), catalog)
    features = encoded(Split.from_rows(bench.rows), bench.task, bench.context, tmp_path, "tiny")
    model, passes = bench.load_model(), []
    model.train().register_forward_hook(lambda module, given, output: passes.append(len(output.logits)))
    monkeypatch.setattr(worker, "LONG_STEP", slow)
    monkeypatch.setattr(worker, "PROBED_SECONDS", 3600.0)
    batches = [[0, 1, 2, 3]] * worker.PROBED_STEPS
    pace = worker._seconds_per_sample(bench, model, bench.target, features, batches, ["fp32"])
    assert passes.count(4) == steps
    assert pace["fp32"] > 0
