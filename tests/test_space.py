from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.space import (
    Categorical,
    Float,
    Int,
    check_widened,
    domain_from_json,
    domain_from_recipe,
    domain_to_json,
)

RATE = Float(1e-5, 1e-3, 1e-4, log=True)
EPOCHS = Int(1, 10, 3)
SCHEDULE = Categorical(("linear", "cosine"))


def test_a_scalar_pins():
    assert domain_from_recipe(5, EPOCHS) == Categorical((5,), 5)
    assert domain_from_recipe("cosine", SCHEDULE) == Categorical(("cosine",), "cosine")


def test_a_list_is_a_choice_that_keeps_the_default_where_it_is_in_it():
    assert domain_from_recipe([1, 3, 5], EPOCHS) == Categorical((1, 3, 5), 3)
    assert domain_from_recipe([4, 5], EPOCHS).default == 4


def test_low_and_high_are_a_range_that_keeps_the_scale():
    found = domain_from_recipe({"low": 2e-4, "high": 5e-4}, RATE)
    assert found == Float(2e-4, 5e-4, 2e-4, log=True)
    assert not domain_from_recipe({"low": 2e-4, "high": 5e-4, "log": False}, RATE).log


@pytest.mark.parametrize(
    ("given_value", "known", "says"),
    [
        ("three", EPOCHS, "needs a whole number"),
        (2.5, EPOCHS, "needs a whole number"),
        (True, EPOCHS, "needs a whole number"),
        (float("nan"), RATE, "needs a number"),
        ("sine", SCHEDULE, "allowed: linear, cosine"),
        ([], EPOCHS, "an empty list"),
        ({"low": 5, "high": 2}, EPOCHS, "low 5 is above high 2"),
        ({"low": 5}, EPOCHS, "a range is"),
        ({"low": 1, "high": 2, "step": 1}, EPOCHS, "a range is"),
        ({"low": 1, "high": 2}, SCHEDULE, "a range is not possible here"),
    ],
)
def test_what_does_not_fit_a_parameter_is_refused(given_value, known, says):
    with pytest.raises(ValueError, match=says):
        domain_from_recipe(given_value, known)


@pytest.mark.parametrize(
    ("value", "known", "fixed", "fits"),
    [
        (20, EPOCHS, True, False),
        (20, EPOCHS, False, True),
        (-1, EPOCHS, False, False),
        (0.5, RATE, False, True),
        (0.0, RATE, False, False),
        (1.5, Float(0.0, 0.5, 0.1), False, False),
        (0.9, Float(0.0, 0.5, 0.1), False, True),
        (-3.0, Float(-1.0, 1.0, 0.0), False, True),
    ],
)
def test_widening_has_its_bounds(value, known, fixed, fits):
    domain = domain_from_recipe(value, known)
    if fits:
        check_widened(domain, known, fixed=fixed)
    else:
        with pytest.raises(ValueError, match="has to be"):
            check_widened(domain, known, fixed=fixed)


def domains():
    ints = st.tuples(st.integers(1, 50), st.integers(0, 50), st.booleans()).map(
        lambda t: Int(t[0], t[0] + t[1], t[0], t[2])
    )
    floats = st.tuples(st.floats(1e-6, 1), st.floats(0, 10), st.booleans()).map(
        lambda t: Float(t[0], t[0] + t[1], t[0], t[2])
    )
    scalars = st.one_of(st.text(max_size=4), st.integers(), st.booleans())
    choices = st.lists(scalars, min_size=1, max_size=5, unique_by=repr).map(lambda c: Categorical(tuple(c), c[0]))
    return st.one_of(ints, floats, choices)


@given(domains())
def test_a_domain_survives_its_file(domain):
    assert domain_from_json(json.loads(json.dumps(domain_to_json(domain)))) == domain
    assert domain.contains(domain.default)


@pytest.mark.parametrize(
    "make", [lambda: Int(3, 1, 2), lambda: Float(0.0, 1.0, 2.0), lambda: Float(0.0, 1.0, 0.5, log=True)]
)
def test_a_domain_that_makes_no_sense_cannot_be_made(make):
    with pytest.raises(ValueError, match="needs"):
        make()
