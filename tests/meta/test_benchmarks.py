"""What benchmarks compute themselves."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def module_of(name: str):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fronts():
    return module_of("fronts")


@pytest.fixture(scope="module")
def cost_aware():
    return module_of("cost_aware")


@given(points=st.lists(st.tuples(*[st.integers(-1, 5)] * 3), max_size=9))
def test_the_volume_is_that_of_the_unit_cells_that_some_point_covers(fronts, points):
    cells = itertools.product(range(5), repeat=3)
    covered = sum(any(all(c < p for c, p in zip(cell, point, strict=True)) for point in points) for cell in cells)
    assert fronts.hypervolume(points) == pytest.approx(covered)


def test_the_box_has_the_corners_that_it_says(fronts):
    near, far = fronts.REACH
    assert fronts.gains((0.5, near, near), 0.5) == (0.0, 0.0, 0.0)
    assert fronts.gains((1.0, far, far), 0.5) == pytest.approx((1.0, 1.0, 1.0))
    default = [fronts.gains((0.8, 1.0, 1.0), 0.5)]
    assert fronts.hypervolume(default) == pytest.approx(0.6 * (math.log(2) / math.log(100)) ** 2)
    assert fronts.hypervolume([fronts.gains((0.4, far, far), 0.5)]) == 0


def configured(cost_aware, world, epochs, rate):
    config = cost_aware.plan_of(world, 0).default_config()
    params = {"train.epochs": epochs, "train.batch_size": 8, "full.learning_rate": rate}
    return config.model_copy(update={"params": {**config.params, **params}})


def test_the_recorded_world_is_what_was_recorded_and_linear_between(cost_aware):
    flat = [[rate, length] for rate in (1e-4, 1e-2) for length in (1, 4)]
    trainings = [
        ["full", 8, length, rate, [0.6 if rate < 1e-3 else 0.8] * length, 2.0 * length, 1.0 * length]
        for rate, length in flat
    ]
    world = cost_aware.Recorded(trainings)
    assert world.curve(configured(cost_aware, world, 4, 1e-4)) == pytest.approx([0.6] * 4)
    assert world.curve(configured(cost_aware, world, 4, 1e-2)) == pytest.approx([0.8] * 4)
    assert world.curve(configured(cost_aware, world, 4, 1e-3)) == pytest.approx([0.7] * 4)
    assert world.seconds(configured(cost_aware, world, 4, 1e-4)) == pytest.approx((2.0, 1000 * 0.3 / 1000))
    assert world.best == 0.8


def test_of_the_proposals_the_cheapest_is_entered_and_the_others_leave_no_trace(cost_aware, catalog, tmp_path):
    world = cost_aware.world_of("alike", 0)

    def replay(rule):
        return cost_aware.Replay(world, cost_aware.plan_of(world, 0), 10.0, rule, tmp_path / rule, catalog)

    plain, chosen = replay("first"), replay("cheapest")
    proposals = []
    for _ in range(4):
        proposals.append(plain.study.ask(0))
        plain.study.forget(0)
    seconds = [plain.pace.estimate(proposal) for proposal in proposals]
    config = chosen.study.ask(0)
    assert len(set(seconds)) > 1
    assert config == proposals[seconds.index(min(seconds))]
    trials = chosen.study.study.trials
    assert [trial.state.name for trial in trials] == ["FAIL"] * 4 + ["RUNNING"]
    assert all(trials[-1].params[name] == config.params[name] for name in ("train.epochs", "train.batch_size"))


def test_a_replay_repeats_itself_and_ends_with_its_time(cost_aware, catalog, tmp_path):
    world = cost_aware.world_of("recorded", 0)
    replays = [
        cost_aware.Replay(world, cost_aware.plan_of(world, 1), 6.0, "drawn", tmp_path / name, catalog) for name in "ab"
    ]
    assert replays[0].play() == replays[1].play()
    assert [r.config for r in replays[0].trials.results.values()] == [
        r.config for r in replays[1].trials.results.values()
    ]
    for one in replays:
        assert one.clock == pytest.approx(sum(r.seconds["total"] for r in one.trials.results.values()))
        # The last training may take longer than expected, by its noise.
        assert one.clock < 1.1 * one.plan.time_limit
        assert len(one.trials.results) >= 4


@pytest.fixture(scope="module")
def portfolio():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield module_of("portfolio")


@given(
    scores=st.lists(st.lists(st.integers(1, 99), min_size=5, max_size=5), min_size=1, max_size=3),
    most=st.integers(1, 4),
)
def test_a_portfolio_begins_with_the_setting_that_brings_most_and_never_loses(portfolio, scores, most):
    sets = [dict(zip("dabce", map(float, one), strict=True)) for one in scores]
    chosen = portfolio.portfolio(sets, most)
    assert len(chosen) <= most

    def worth(names):
        return sum(max(one[name] for name in ("d", *names)) / max(one.values()) for one in sets)

    gained = [worth(chosen[:count]) for count in range(len(chosen) + 1)]
    assert gained == sorted(gained)
    if chosen:
        assert worth(chosen[:1]) == pytest.approx(max(worth([name]) for name in "dabce"))
    else:
        assert worth([]) == pytest.approx(max(worth([name]) for name in "dabce"))


def test_trials_until_a_score_is_near_the_best_are_counted(portfolio):
    """Of n at random of which k are good, the first good one comes at (n + 1) / (k + 1) on average."""
    scores = {"default": 0.5, **{f"bad{i}": 0.6 for i in range(17)}, "good": 0.995, "best": 1.0}
    assert portfolio.trials_to_near(scores, [], orders=4000) == pytest.approx(1 + 20 / 3, rel=0.05)
    assert portfolio.trials_to_near(scores, ["bad3", "good"]) == 3
    assert portfolio.trials_to_near({"default": 1.0, "other": 0.2}, []) == 1
