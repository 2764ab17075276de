"""What benchmarks compute themselves."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

FRONTS = Path(__file__).parents[2] / "benchmarks" / "fronts.py"


@pytest.fixture(scope="module")
def fronts():
    spec = importlib.util.spec_from_file_location("fronts", FRONTS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
