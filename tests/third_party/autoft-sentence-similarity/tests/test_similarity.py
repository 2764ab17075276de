"""Run by tests/third_party/test_third_party.py once the plugin is installed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from autoft_sentence_similarity import autoft_tasks
from autoft_sentence_similarity.metrics import Pearson, Spearman
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from autoft.contracts import TaskContext
from autoft.testing import parametrize_with_checks

CONTEXT = TaskContext(facts={}, options={}, params={}, max_length=8)


@parametrize_with_checks(autoft_tasks())
def test_conformance(check):
    check()


# Few different values, so that there are ties.
@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 5)), min_size=2, max_size=20))
@pytest.mark.parametrize(("metric", "reference"), [(Pearson(), stats.pearsonr), (Spearman(), stats.spearmanr)])
def test_correlations_are_those_of_scipy(metric, reference, rows):
    said, true = np.array([a / 2 for a, _ in rows]), np.array([float(b) for _, b in rows])
    found = metric.score([{"score": value} for value in said], list(true), CONTEXT)
    if np.ptp(said) == 0 or np.ptp(true) == 0:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(reference(said, true).statistic, abs=1e-9)
