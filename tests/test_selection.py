from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.errors import NothingFeasible
from autoft.plans.budgets import keeps
from autoft.plans.plan import BudgetLimit, PipelinePlan, Plan, VariantPlan
from autoft.rundir import CurvePoint, TrialConfig, TrialResult, VariantResult
from autoft.selection import candidates, knees, select, weights_to_keep


def make_plan(tolerance=0.0, budget=(), storage=10**9, names=("none", "int8")) -> Plan:
    return Plan.model_construct(
        objective="accuracy",
        metrics={"accuracy": {"higher_is_better": True}},
        tolerance=tolerance,
        budget=list(budget),
        storage_bytes=storage,
        variants=[VariantPlan(name=name, chain=[]) for name in names],
        pipelines=[PipelinePlan(name="full", quantizer=None, adapter="full")],
    )


def trial(number, *variants, kind="search", parent=None, seed=0, fold=0) -> TrialResult:
    """Return a trial; a variant is (name, accuracy, bytes, ms)."""
    config = TrialConfig(
        number=number, kind=kind, model="m", pipeline="full", params={}, seed=seed, parent=parent, fold=fold
    )
    return TrialResult(
        number=number,
        state="complete",
        config=config,
        variants=[
            VariantResult(
                name=name,
                state="complete",
                validation={"accuracy": accuracy},
                costs={"model_size_bytes": size, "latency_p50_ms": latency},
                folder=f"trials/{number:04d}/variants/{name}",
            )
            for name, accuracy, size, latency in variants
        ],
    )


def chosen(plan, *results):
    selection = select(plan, list(results))
    return selection.trial, selection.variant


def test_the_best_objective_wins_without_tolerance():
    assert chosen(make_plan(), trial(0, ("none", 0.80, 90, 10)), trial(1, ("none", 0.81, 90, 10))) == (1, "none")


def test_the_cheapest_within_the_tolerance_wins():
    results = [trial(0, ("none", 0.810, 90, 10), ("int8", 0.806, 23, 2)), trial(1, ("none", 0.790, 9, 1))]
    assert chosen(make_plan(tolerance=0.005), *results) == (0, "int8")


def test_the_default_wins_ties():
    results = [trial(1, ("none", 0.80, 90, 10.0)), trial(0, ("none", 0.80, 90, 10.4), kind="default")]
    assert chosen(make_plan(), *results) == (0, "none")


def test_noise_of_the_latency_does_not_decide_between_equal_sizes():
    results = [trial(1, ("none", 0.80, 90, 9.8)), trial(2, ("none", 0.804, 90, 10.1))]
    assert chosen(make_plan(tolerance=0.01), *results) == (2, "none")


@pytest.mark.parametrize(
    ("size", "latency", "winner"),
    [
        (5_150_000, 1.25, 2),
        (5_150_233, 1.25, 2),
        (5_150_000, 1.30, 1),
        # A size has no noise: as large a difference of that is one.
        (5_800_000, 1.11, 1),
        (5_800_000, 0.90, 2),
    ],
    ids=["measured-in-a-run", "some-bytes-of-settings", "more-than-noise", "larger", "larger-and-faster"],
)
def test_models_of_one_size_differ_by_quality_where_latencies_differ_by_noise(size, latency, winner):
    results = [trial(1, ("none", 0.8125, 5_150_000, 1.11)), trial(2, ("none", 0.8200, size, latency))]
    assert chosen(make_plan(tolerance=0.01), *results) == (winner, "none")


def test_what_breaks_a_limit_is_not_chosen_however_good():
    limit = BudgetLimit(key="model_size", column="model_size_bytes", limit=50, given="50B")
    results = [trial(0, ("none", 0.99, 90, 10), ("int8", 0.7, 23, 2))]
    assert chosen(make_plan(budget=[limit]), *results) == (0, "int8")


def test_what_nobody_measured_a_limit_of_is_not_within_it():
    limit = BudgetLimit(key="cpu_energy", column="cpu_energy_j", limit=1, given="1")
    known, unknown = trial(0, ("none", 0.7, 90, 10)), trial(1, ("none", 0.99, 90, 10))
    known.variants[0].costs["cpu_energy_j"] = 0.5
    assert chosen(make_plan(budget=[limit]), known, unknown) == (0, "none")
    assert not keeps(unknown.variants[0].costs, [limit])
    with pytest.raises(NothingFeasible, match="cpu_energy was measured of none"):
        select(make_plan(budget=[limit]), [unknown])


def test_a_cost_that_nobody_measured_is_not_the_lowest():
    known, unknown = trial(0, ("none", 0.8, 90, 10)), trial(1, ("none", 0.8, 90, 10))
    del unknown.variants[0].costs["latency_p50_ms"]
    assert chosen(make_plan(), known, unknown) == (0, "none")


def test_nothing_feasible_names_the_budget():
    limit = BudgetLimit(key="model_size", column="model_size_bytes", limit=5, given="5B")
    with pytest.raises(NothingFeasible, match="model_size 5B") as caught:
        select(make_plan(budget=[limit]), [trial(0, ("none", 0.99, 90, 10))])
    assert caught.value.exit_code == 4


def test_no_trial_at_all_says_so():
    with pytest.raises(NothingFeasible, match="no trial was finished"):
        select(make_plan(), [])


def test_means_over_seeds_decide_among_finalists():
    results = [
        trial(0, ("none", 0.80, 90, 10), kind="default"),
        trial(1, ("none", 0.83, 90, 10)),
        trial(2, ("none", 0.82, 90, 10)),
        trial(3, ("none", 0.77, 90, 10), kind="seed", parent=1, seed=1),
        trial(4, ("none", 0.81, 90, 10), kind="seed", parent=0, seed=1),
    ]
    # Trial 1 was lucky: its mean is .80, the default's .805; trial 2 was never trained again.
    assert chosen(make_plan(), *results) == (0, "none")
    mean = next(c for c in candidates(make_plan(), results) if c.trial == 1)
    assert mean.objective == pytest.approx(0.80)
    assert mean.seeds == [0.83, 0.77]


def test_a_better_trial_that_a_later_call_found_is_not_passed_over_for_want_of_further_seeds():
    results = [
        trial(0, ("none", 0.80, 90, 10), kind="default"),
        trial(1, ("none", 0.83, 90, 10)),
        trial(2, ("none", 0.82, 90, 10), kind="seed", parent=1, seed=1),
        trial(3, ("none", 0.81, 90, 10), kind="seed", parent=0, seed=1),
        trial(4, ("none", 0.86, 90, 10)),
    ]
    assert chosen(make_plan(), *results[:4]) == (1, "none")
    assert chosen(make_plan(), *results) == (4, "none")
    results.append(trial(5, ("none", 0.70, 90, 10), kind="seed", parent=4, seed=1))
    assert chosen(make_plan(), *results) == (1, "none")


def test_the_default_can_still_be_shipped_when_seeds_show_that_what_beat_it_was_luck():
    plan = make_plan(tolerance=0.005)
    results = [
        trial(0, ("none", 0.80, 90, 10), ("int8", 0.80, 23, 2), kind="default"),
        trial(1, ("none", 0.83, 90, 9), ("int8", 0.83, 23, 1.9)),
    ]
    sizes = {(number, name): size for number in (0, 1) for name, size in (("none", 90), ("int8", 23))}
    assert (0, "int8") in weights_to_keep(plan, results, sizes)
    results.append(trial(2, ("none", 0.70, 90, 9), ("int8", 0.70, 23, 1.9), kind="seed", parent=1, seed=1))
    results.append(trial(3, ("none", 0.80, 90, 10), ("int8", 0.80, 23, 2), kind="seed", parent=0, seed=1))
    assert chosen(plan, *results) == (0, "int8")


def trained_for(result: TrialResult, epochs: float, planned: int) -> TrialResult:
    """Return a trial whose training came to so many epochs of those that were planned."""
    point = CurvePoint(samples=1, epoch=epochs, seconds=1, train_loss=1, learning_rate=1, validation={})
    config = result.config.model_copy(update={"params": {"train.epochs": planned}})
    return result.model_copy(update={"curve": [point], "config": config})


@pytest.mark.parametrize("short", [1, 3])
def test_a_training_that_the_time_cut_short_is_no_further_seed_of_a_whole_one(short):
    results = [
        trial(0, ("none", 0.80, 90, 10), kind="default"),
        trial(1, ("none", 0.83, 90, 10)),
        trial(2, ("none", 0.79, 90, 10), kind="seed", parent=0, seed=1),
        # The same configuration: it was at its beginning when the time was up; or trial 1 was, and this one was trained later.
        trial(3, ("none", 0.50 if short == 3 else 0.95, 90, 10), kind="seed", parent=1, seed=1),
    ]
    results = [trained_for(result, 0.2 if result.number == short else 3.0, 3) for result in results]
    found = {c.trial: (c.objective, c.seeds) for c in candidates(make_plan(), results)}
    assert found == {0: (pytest.approx(0.795), [0.80, 0.79]), 1: (0.83, [0.83])}
    assert chosen(make_plan(), *results) == (1, "none")


def test_the_chosen_trial_keeps_its_weights_where_a_single_figure_of_another_is_above_its_mean():
    results = [
        trial(0, ("none", 0.84, 90, 10), kind="default"),
        trial(5, ("none", 0.90, 90, 10.2)),
        trial(7, ("none", 0.89, 90, 10.1)),
        trial(8, ("none", 0.86, 90, 10.2), kind="seed", parent=5, seed=1),
        trial(9, ("none", 0.83, 90, 10), kind="seed", parent=0, seed=1),
    ]
    plan = make_plan(names=("none",))
    sizes = {(result.number, "none"): 90 for result in results}
    assert chosen(plan, *results) == (5, "none")
    assert (5, "none") in weights_to_keep(plan, results, sizes)
    # On the front models stand by their own figures: .90 and .89, the latter a little faster.
    assert {c.trial for c in candidates(plan, results) if c.front} == {0, 5, 7}


def test_what_further_seeds_may_choose_of_the_finalists_keeps_its_files_until_they_are_all_known():
    results = [
        trial(0, ("none", 0.84, 90, 10), ("int8", 0.83, 23, 2.5), kind="default"),
        trial(5, ("none", 0.90, 90, 10), ("int8", 0.885, 23, 2.5)),
        trial(7, ("none", 0.89, 90, 9), ("int8", 0.89, 23, 2.4)),
    ]
    plan = make_plan()
    sizes = {(result.number, name): 1 for result in results for name in ("none", "int8")}
    assert chosen(plan, *results) == (5, "none")
    assert (5, "int8") in weights_to_keep(plan, results, sizes), "by means it may be better than the uncompressed one"
    # The first seed of both was worse than the default's: for now that is chosen.
    results.append(trial(8, ("none", 0.70, 90, 10), ("int8", 0.70, 23, 2.5), kind="seed", parent=5, seed=1))
    results.append(trial(9, ("none", 0.83, 90, 10), ("int8", 0.83, 23, 2.5), kind="seed", parent=0, seed=1))
    assert chosen(plan, *results) == (0, "none")
    assert {(5, "none"), (5, "int8")} & weights_to_keep(plan, results, sizes) == {(5, "none"), (5, "int8")}
    results.append(trial(10, ("none", 0.85, 90, 10), ("int8", 0.95, 23, 2.5), kind="seed", parent=5, seed=2))
    results.append(trial(11, ("none", 0.83, 90, 10), ("int8", 0.83, 23, 2.5), kind="seed", parent=0, seed=2))
    assert chosen(plan, *results) == (5, "int8")


def test_of_those_as_good_as_asked_the_cheapest_is_taken_be_they_trained_with_further_seeds_or_not():
    results = [
        trial(0, ("none", 0.80, 90, 10), kind="default"),
        trial(1, ("none", 0.88, 90, 10)),
        trial(2, ("none", 0.92, 90, 10), kind="seed", parent=1, seed=1),
        trial(3, ("none", 0.84, 9, 1)),
        trial(4, ("none", 0.91, 9, 1)),
        trial(5, ("none", 0.75, 9, 1), kind="seed", parent=4, seed=1),
    ]

    def asked(quality):
        selection = select(make_plan(), results, quality)
        return selection.trial

    assert asked(0.84) == 3
    # The mean of trial 4, which was lucky, is .83.
    assert asked(0.845) == 1
    # The mean of trial 1 is .90, and the model itself is not as good.
    with pytest.raises(NothingFeasible, match=r"the best accuracy within these limits is 0\.8800, and 0\.89 was asked"):
        asked(0.89)


def test_means_over_folds_decide_and_the_model_of_the_first_fold_is_shipped():
    lucky, steady = trial(0, ("none", 0.90, 90, 10)), trial(1, ("none", 0.85, 90, 10))
    results = [
        lucky,
        steady,
        trial(2, ("none", 0.70, 90, 10), kind="fold", parent=0, fold=1),
        trial(3, ("none", 0.84, 90, 10), kind="fold", parent=1, fold=1),
    ]
    selection = select(make_plan(), results)
    assert (selection.trial, selection.variant) == (1, "none")
    assert "validation accuracy 0.8450 (mean of 2 folds)" in selection.reason
    assert {c.trial: c.folds for c in selection.candidates} == {0: [0.90, 0.70], 1: [0.85, 0.84]}


def test_a_trial_with_fewer_folds_is_neither_chosen_nor_on_the_front_and_keeps_its_weights():
    results = [
        trial(0, ("none", 0.80, 90, 10)),
        trial(1, ("none", 0.82, 90, 10), kind="fold", parent=0, fold=1),
        trial(2, ("none", 0.99, 90, 10)),
    ]
    selection = select(make_plan(), results)
    assert selection.trial == 0
    assert {c.trial: c.front for c in selection.candidates} == {0: True, 2: False}
    sizes = {(0, "none"): 90, (2, "none"): 90}
    assert weights_to_keep(make_plan(), results, sizes) == set(sizes)


def test_the_weights_of_the_chosen_trial_stay_for_other_formats_after_the_front_where_there_is_room():
    # int8 beats its own weights in size and time at the same accuracy: they are not on the front.
    results = [
        trial(0, ("none", 0.80, 90, 10)),
        trial(1, ("none", 0.90, 90, 10), ("int8", 0.90, 23, 2)),
        trial(2, ("none", 0.85, 90, 10), ("int8", 0.85, 20, 1)),
    ]
    sizes = {(0, "none"): 90, (1, "none"): 90, (1, "int8"): 23, (2, "none"): 90, (2, "int8"): 20}
    front = {(0, "none"), (1, "int8"), (2, "int8")}
    assert weights_to_keep(make_plan(), results, sizes) == {*front, (1, "none")}
    assert weights_to_keep(make_plan(storage=150), results, sizes) == front


def test_what_an_adapter_learned_counts_once_for_all_variants_of_its_trial():
    results = [
        trial(0, ("none", 0.80, 90, 10)),
        trial(1, ("none", 0.90, 90, 10), ("int8", 0.89, 23, 2)),
        trial(2, ("none", 0.85, 90, 10), ("int8", 0.85, 20, 1)),
    ]
    sizes = {(0, "none"): 90, (1, "none"): 90, (1, "int8"): 23, (2, "int8"): 20}
    front = {(1, "none"), (1, "int8"), (2, "int8")}
    total = 90 + 90 + 23 + 20 + 7 + 5
    keep = weights_to_keep(make_plan(storage=total, tolerance=0.0), results, sizes, {0: 0, 1: 7, 2: 5})
    assert keep == {(0, "none"), *front}
    keep = weights_to_keep(make_plan(storage=total - 1, tolerance=0.0), results, sizes, {0: 0, 1: 7, 2: 5})
    assert keep == {(0, "none"), (1, "none"), (1, "int8")}


def test_a_trial_that_was_given_up_at_a_fold_is_no_candidate():
    behind = trial(1, ("none", 0.99, 90, 10)).model_copy(update={"state": "pruned"})
    assert [c.trial for c in candidates(make_plan(), [trial(0, ("none", 0.80, 90, 10)), behind])] == [0]


def test_further_seeds_are_never_shipped():
    results = [trial(0, ("none", 0.80, 90, 10)), trial(1, ("none", 0.99, 90, 10), kind="seed", parent=0, seed=1)]
    assert chosen(make_plan(), *results) == (0, "none")


figures = st.tuples(st.integers(0, 6), st.integers(1, 6), st.integers(1, 6))


@given(st.lists(figures, min_size=1, max_size=12))
def test_the_front_is_what_a_brute_force_search_finds(points):
    results = [trial(i, ("none", a / 10, s, float(ms))) for i, (a, s, ms) in enumerate(points)]
    front = {c.trial for c in candidates(make_plan(), results) if c.front}
    expected = set()
    for i, (a, s, ms) in enumerate(points):
        beaten = any(b >= a and t <= s and us <= ms and (b, t, us) != (a, s, ms) for b, t, us in points)
        if not beaten:
            expected.add(i)
    assert front == expected


@given(st.lists(figures, min_size=1, max_size=12), st.sampled_from([0.0, 0.1, 0.3]))
def test_the_chosen_variant_is_within_the_tolerance_and_kept(points, tolerance):
    plan = make_plan(tolerance=tolerance, storage=8)
    results = [trial(i, ("none", a / 10, s, float(ms))) for i, (a, s, ms) in enumerate(points)]
    selection = select(plan, results)
    best = max(a for a, _, _ in points) / 10
    assert points[selection.trial][0] / 10 >= best - tolerance - 1e-12
    sizes = {(i, "none"): s for i, (_, s, _) in enumerate(points)}
    keep = weights_to_keep(plan, results, sizes)
    assert (selection.trial, "none") in keep
    assert (0, "none") in keep
    extra = keep - {(0, "none"), (selection.trial, "none")}
    spent = sum(sizes[key] for key in keep)
    assert not extra or spent <= 8


def test_a_hundred_trials_of_a_90_mb_model_keep_at_most_1_5_gb():
    size = 90_000_000
    plan = make_plan(storage=1_500_000_000, names=("none",))
    # Every trial on the front: better quality for more latency.
    results = [trial(i, ("none", 0.5 + i / 1000, size, 10.0 + i)) for i in range(100)]
    keep = weights_to_keep(plan, results, {(i, "none"): size for i in range(100)})
    assert size * len(keep) <= 1_500_000_000
    assert len(keep) > 10


def test_candidates_of_variants_that_the_plan_does_not_offer_are_left_out():
    plan = make_plan(names=("int8",))
    results = [trial(0, ("none", 0.9, 90, 10), ("int8", 0.8, 23, 2))]
    assert [c.variant for c in candidates(plan, results)] == ["int8"]


def front_of(*points):
    """Return candidates of accuracy, bytes and ms as they stand on one front."""
    plan = make_plan(names=("none",))
    results = [trial(number, ("none", *point)) for number, point in enumerate(points)]
    return plan, [candidate for candidate in candidates(plan, results) if candidate.front]


def test_the_knee_is_where_a_front_bends():
    # Of sizes 1, 10, 100 the one in the middle has nine tenths of the gain at half of the way.
    plan, front = front_of((0.50, 1, 1), (0.95, 10, 1.1), (1.00, 100, 1.2))
    assert knees(plan, front)["model_size_bytes"].trial == 1


def test_a_front_that_does_not_bend_outwards_has_no_knee():
    plan, straight = front_of((0.5, 1, 1), (0.75, 10, 1), (1.0, 100, 1))
    assert "model_size_bytes" not in knees(plan, straight)
    plan, inwards = front_of((0.5, 1, 1), (0.55, 10, 2), (1.0, 100, 3))
    assert knees(plan, inwards) == {}


@given(
    st.lists(
        st.tuples(st.integers(1, 99).map(lambda n: n / 100), st.integers(1, 10**6), st.integers(1, 1000)), max_size=12
    )
)
def test_a_knee_is_the_point_furthest_from_the_line_between_the_ends(points):
    plan, front = front_of(*points)
    for column, knee in knees(plan, front).items():
        pairs = {(math.log(c.costs[column]), c.objective) for c in front}
        steps = sorted(p for p in pairs if not any(o[0] <= p[0] and o[1] >= p[1] and o != p for o in pairs))
        first, last = np.array(steps[0]), np.array(steps[-1])
        scaled = {point: (np.array(point) - first) / (last - first) for point in steps}
        # The distance of a point above the diagonal of the unit square.
        above = {point: (quality - cost) / math.sqrt(2) for point, (cost, quality) in scaled.items()}
        assert above[math.log(knee.costs[column]), knee.objective] == pytest.approx(max(above.values()))
        assert max(above.values()) > 0
