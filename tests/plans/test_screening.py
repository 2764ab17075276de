from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.hardware import Hardware
from autoft.plans.plan import VariantPlan
from autoft.plans.planner import make_plan
from autoft.plans.screening import gentlest_fallback, known_fallbacks, never_fits, too_much, with_fallbacks
from autoft.recipe import recipe_from_mapping


@pytest.fixture(scope="module")
def plan(catalog, tiny_model, small_model):
    recipe = {
        "task": "text-classification",
        "model": [str(tiny_model), str(small_model)],
        "data": "train.csv",
        "effort": "quick",
        "budget": {"time": "10m", "model_size": "20MB"},
    }
    return make_plan(recipe_from_mapping(recipe), catalog, Hardware.probe_cpu())


@given(quick=st.lists(st.floats(1, 40), max_size=3), training=st.lists(st.floats(1, 40), min_size=1, max_size=9))
def test_a_fallback_is_found_wherever_the_strongest_fits_and_few_are_measured(plan, quick, training):
    sizes = [*quick, *training]
    variants = [VariantPlan(name=str(i), chain=[], trains=i >= len(quick)) for i in range(len(sizes))]
    plan = plan.model_copy(update={"fallbacks": variants})
    asked = []

    def fits(variant):
        asked.append(variant.name)
        return sizes[int(variant.name)] <= 20

    found = gentlest_fallback(plan, fits)
    assert (found is not None) == (sizes[-1] <= 20)
    assert len(asked) == len(set(asked)) <= 1 + len(quick) + math.ceil(math.log2(len(training) + 1))
    if found is not None:
        assert sizes[int(found.name)] <= 20
        if training == sorted(training, reverse=True) or not found.trains:
            assert all(size > 20 for size in sizes[: int(found.name)])


@pytest.mark.parametrize(
    ("lengths", "shortest"), [([256, 64], 64), ({"low": 16, "high": 512}, 16), (128, 128), (None, 256)]
)
def test_models_are_screened_at_the_shortest_texts_that_are_searched(catalog, tiny_model, lengths, shortest):
    """What is too slow at the default length may be fast enough at another one."""
    space = {} if lengths is None else {"space": {"train.max_length": lengths}}
    recipe = {"task": "text-classification", "model": str(tiny_model), "data": "train.csv", "effort": "quick", **space}
    plan = make_plan(recipe_from_mapping(recipe), catalog, Hardware.probe_cpu())
    params = plan.cheapest_params(str(tiny_model))
    assert params == {**plan.default_config().params, "train.max_length": shortest}


def test_each_model_that_needs_one_has_its_fallback_and_others_have_none(plan, tiny_model, small_model):
    large, small = str(tiny_model), str(small_model)
    tokens = next(variant.name for variant in plan.fallbacks)
    strongest = plan.fallbacks[-1].name

    def size(megabytes):
        return {"model_size_bytes": megabytes * 1e6}

    costs = {
        large: {"none": size(90), "onnx-int8": size(24), **{one.name: size(12) for one in plan.fallbacks}},
        small: {"none": size(17), "onnx-int8": size(5)},
    }
    assert set(too_much(plan, costs[large])) == {"none", "onnx-int8"}
    taken = known_fallbacks(plan, costs)
    assert taken == {tokens: [large]}
    found = with_fallbacks(plan, taken)
    assert [variant.name for variant in found.variants] == ["none", "onnx-int8", tokens]
    made = {
        model: [one.name for one in found.variants_of(found.default_config().model_copy(update={"model": model}))]
        for model in (large, small)
    }
    assert made == {large: ["none", "onnx-int8", tokens], small: ["none", "onnx-int8"]}
    assert not never_fits(found, large, too_much(found, costs[large]))
    # Nothing more is needed then; by a lower limit it is, and what was made stays.
    assert known_fallbacks(found, costs) == {}
    lower = found.model_copy(update={"budget": [plan.budget[0].model_copy(update={"limit": 11e6})]})
    costs[large][strongest] = size(9)
    assert known_fallbacks(lower, costs) == {strongest: [large]}
    assert [one.name for one in with_fallbacks(lower, {strongest: [large]}).variants][2:] == [tokens, strongest]
    # What was not measured is none that fits.
    del costs[large][strongest]
    assert known_fallbacks(plan, costs) == {}
