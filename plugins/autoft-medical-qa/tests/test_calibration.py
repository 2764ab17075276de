"""Calibration and selective prediction against loops over the definitions, other libraries, and drawn data."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from autoft_medical_qa.calibration import (
    ABSTAIN_ALWAYS,
    TEMPERATURES,
    accuracy_at,
    area_under_risk_coverage,
    calibration_error,
    covering_threshold,
    fit_scale,
    fit_temperature,
    reliability,
    risk_coverage,
    risky_threshold,
    scaled,
    tempered,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

# Values of few places, so that there are ties, and edges of bins among them.
CONFIDENCE = st.one_of(
    st.integers(0, 15).map(lambda k: k / 15), st.integers(0, 4).map(lambda k: k / 4), st.floats(0, 1)
)
ROWS = st.lists(st.tuples(CONFIDENCE, st.sampled_from([0.0, 1.0, 0.5])), min_size=1, max_size=40)
FEW = st.lists(st.tuples(st.integers(0, 3).map(lambda k: k / 3), st.sampled_from([0.0, 1.0])), min_size=1, max_size=6)


def arrays(rows):
    return np.array([c for c, _ in rows]), np.array([q for _, q in rows])


def once(rows):
    return np.ones((1, len(rows)))


@settings(max_examples=250, deadline=None)
@given(rows=ROWS)
def test_the_calibration_error_is_that_of_a_loop_over_the_bins(rows):
    expected, bins = 0.0, 15
    for m in range(1, bins + 1):
        low, high = (m - 1) / bins, m / bins
        inside = [(c, q) for c, q in rows if low < c <= high or (m == 1 and c == 0)]
        if inside:
            accuracy, confidence = (sum(part) / len(inside) for part in zip(*[(q, c) for c, q in inside], strict=True))
            expected += len(inside) / len(rows) * abs(accuracy - confidence)
    assert calibration_error(*arrays(rows), once(rows))[0] == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_the_reliability_diagram_shows_the_means_of_the_bins_that_hold_rows(rows):
    expected = []
    for m in range(1, 16):
        inside = [(c, q) for c, q in rows if (m - 1) / 15 < c <= m / 15 or (m == 1 and c == 0)]
        if inside:
            expected.append([sum(part) / len(inside) for part in zip(*inside, strict=True)])
    found = np.stack(reliability(*arrays(rows)), axis=1)
    assert found == pytest.approx(np.array(expected), abs=1e-12)


def risks(quality):
    return [sum(1 - q for q in quality[:k]) / k for k in range(1, len(quality) + 1)]


def orders(rows):
    """All orders in which no row comes before a surer one."""
    return [
        [q for _, q in order] for order in permutations(rows) if all(one[0] >= two[0] for one, two in pairwise(order))
    ]


@settings(max_examples=200, deadline=None)
@given(rows=FEW)
def test_risk_and_coverage_are_the_average_over_the_orders_of_equally_sure_rows(rows):
    all_risks = np.array([risks(quality) for quality in orders(rows)])
    confidence, quality = arrays(rows)
    coverage, risk = risk_coverage(confidence, quality)
    assert risk == pytest.approx(all_risks.mean(0), abs=1e-9)
    assert coverage == pytest.approx(np.arange(1, len(rows) + 1) / len(rows))
    area = area_under_risk_coverage(confidence, quality, once(rows))[0]
    assert area == pytest.approx(all_risks.mean(), abs=1e-9)
    answered = math.ceil(len(rows) * 4 / 5)
    selective = accuracy_at(0.8, confidence, quality, once(rows))[0]
    assert selective == pytest.approx(1 - all_risks[:, answered - 1].mean(), abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 200))
def test_areas_of_different_confidences_are_means_of_risks(seed, count):
    rng = np.random.default_rng(seed)
    confidence, quality = rng.permutation(count) / count, rng.integers(0, 2, count).astype(float)
    ordered = [quality[i] for i in sorted(range(count), key=lambda i: -confidence[i])]
    area = area_under_risk_coverage(confidence, quality, np.ones((1, count)))[0]
    assert area == pytest.approx(sum(risks(ordered)) / count, abs=1e-9)


def test_a_model_that_knows_its_errors_has_the_area_of_geifman_and_el_yaniv():
    # Their approximation of the best area at error r: r + (1 - r) ln(1 - r).
    count, r = 20000, 0.3
    quality = (np.arange(count) >= r * count).astype(float)
    area = area_under_risk_coverage(quality, quality, np.ones((1, count)))[0]
    assert area == pytest.approx(r + (1 - r) * math.log(1 - r), abs=1e-4)


def nll(logits, right, temperature):
    return torch.nn.functional.cross_entropy(torch.tensor(logits) / temperature, torch.tensor(right)).item()


@pytest.mark.parametrize("true", [0.6, 1.0, 2.5])
def test_the_temperature_is_the_likeliest_and_near_the_one_that_the_data_was_drawn_with(true):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4000, 4)) * 3
    chances = torch.softmax(torch.tensor(logits) / true, -1).numpy()
    right = [int(rng.choice(4, p=row / row.sum())) for row in chances]
    scores = torch.softmax(torch.tensor(logits), -1).tolist()
    found = fit_temperature(scores, right)
    assert found == pytest.approx(true, rel=0.1)
    best = min(np.linspace(0.3, 5, 471), key=lambda t: nll(logits, right, t))
    assert found == pytest.approx(best, abs=0.011)


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.floats(-20, 20), min_size=2, max_size=6),
    temperature=st.floats(0.25, 10),
)
def test_a_temperature_divides_the_logits(logits, temperature):
    scores = torch.softmax(torch.tensor(logits, dtype=torch.float64), -1).tolist()
    expected = torch.softmax(torch.tensor(logits, dtype=torch.float64) / temperature, -1).tolist()
    (found,) = tempered([scores], temperature)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_rows_with_different_numbers_of_answers_are_tempered_together():
    scores, right = [[0.7, 0.3], [0.2, 0.5, 0.3], [0.1, 0.1, 0.1, 0.7]], [0, 2, 3]
    found = fit_temperature(scores, right)

    def loss(temperature):
        return -sum(math.log(row[i]) for row, i in zip(tempered(scores, temperature), right, strict=True))

    assert all(loss(found) <= loss(found * factor) for factor in (0.9, 0.99, 1.01, 1.1))


def test_without_an_error_or_without_a_hit_the_temperature_stays_in_its_bounds():
    scores = [[0.6, 0.4]] * 5
    assert fit_temperature(scores, [0] * 5) == pytest.approx(TEMPERATURES[0], rel=1e-3)
    assert fit_temperature(scores, [1] * 5) == pytest.approx(TEMPERATURES[1], rel=1e-3)


def test_a_certainty_that_is_wrong_does_not_break_the_temperature():
    found = fit_temperature([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], [1, 1, 0])
    assert TEMPERATURES[0] <= found <= TEMPERATURES[1]


def test_scaling_is_a_logistic_regression_of_the_quality_on_the_log_odds():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.02, 0.98, 5000)
    odds = np.log(confidence / (1 - confidence))
    quality = (rng.uniform(size=5000) < 1 / (1 + np.exp(-(0.5 * odds - 1)))).astype(float)
    slope, bias = fit_scale(confidence, quality)
    reference = LogisticRegression(C=np.inf).fit(odds[:, None], quality)
    assert slope == pytest.approx(reference.coef_[0, 0], rel=0.01)
    assert bias == pytest.approx(reference.intercept_[0], rel=0.01)
    assert scaled(confidence, slope, bias) == pytest.approx(reference.predict_proba(odds[:, None])[:, 1], abs=0.005)


def test_scaling_learns_from_shares_as_from_that_many_rows():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.05, 0.95, 2000)
    quality = np.clip(0.6 * confidence + rng.uniform(0, 0.4, 2000), 0, 1)
    odds = np.log(confidence / (1 - confidence))
    reference = LogisticRegression(C=np.inf).fit(
        np.concatenate([odds, odds])[:, None],
        np.concatenate([np.ones(2000), np.zeros(2000)]),
        sample_weight=np.concatenate([quality, 1 - quality]),
    )
    slope, bias = fit_scale(confidence, quality)
    assert slope == pytest.approx(reference.coef_[0, 0], abs=0.01)
    assert bias == pytest.approx(reference.intercept_[0], abs=0.01)


@pytest.mark.parametrize("quality", [0.0, 1.0])
def test_scaling_stays_finite_where_all_answers_are_alike(quality):
    slope, bias = fit_scale(np.array([0.2, 0.9, 1.0, 0.0]), np.full(4, quality))
    assert math.isfinite(slope)
    assert math.isfinite(bias)
    assert slope > 0
    assert (scaled(np.array([0.5]), slope, bias)[0] > 0.5) == bool(quality)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, coverage=st.integers(1, 20).map(lambda k: k / 20))
def test_a_covering_threshold_is_the_highest_that_answers_enough(rows, coverage):
    confidence, _ = arrays(rows)
    threshold = covering_threshold(confidence, coverage)
    assert (confidence >= threshold).mean() >= coverage - 1e-9
    higher = [value for value in confidence if value > threshold]
    assert not higher or (confidence >= min(higher)).mean() < coverage - 1e-9


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, risk=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_a_risky_threshold_answers_the_most_rows_that_the_risk_allows(rows, risk):
    confidence, quality = arrays(rows)
    threshold = risky_threshold(confidence, quality, risk)

    def kept(value):
        chosen = [q for c, q in rows if c >= value]
        return sum(1 - q for q in chosen) / len(chosen) <= risk + 1e-9

    allowed = [value for value in confidence if kept(value)]
    assert threshold == (min(allowed) if allowed else ABSTAIN_ALWAYS)


def test_a_bound_on_the_risk_is_that_of_clopper_and_pearson():
    # A thousand rows with distinct confidences, of which the surest 800 have 20 errors and the rest has all others.
    rng = np.random.default_rng(0)
    confidence = np.linspace(0, 1, 1000)
    quality = np.ones(1000)
    quality[rng.choice(np.arange(200, 1000), 20, replace=False)] = 0
    quality[:200] = 0
    risk, delta = 0.06, 0.1
    threshold = risky_threshold(confidence, quality, risk, delta)
    answered = confidence >= threshold
    wrong = int((1 - quality[answered]).sum())
    level = 1 - delta / math.ceil(math.log2(1001))
    interval = binomtest(wrong, int(answered.sum()), alternative="less").proportion_ci(level, method="exact")
    assert interval.high <= risk
    assert 0.7 < answered.mean() <= 0.85


def test_the_risk_on_new_rows_exceeds_its_bound_as_seldom_as_promised():
    rng = np.random.default_rng(0)
    risk, delta, broken, answered = 0.15, 0.1, 0, []
    for _ in range(150):
        confidence = rng.uniform(size=2000)
        quality = (rng.uniform(size=2000) < confidence).astype(float)
        threshold = risky_threshold(confidence, quality, risk, delta)
        # Of confidences that are even and mean what they say, the risk above t is (1 - t) / 2.
        broken += threshold <= 1 and (1 - threshold) / 2 > risk
        answered.append((confidence >= threshold).mean())
    assert broken / 150 <= delta
    assert np.mean(answered) > 0.15, "of the 0.3 that keep the risk"
    plain = [
        risky_threshold(values, (rng.uniform(size=2000) < values).astype(float), risk)
        for values in rng.uniform(size=(150, 2000))
    ]
    assert np.mean([(1 - threshold) / 2 > risk for threshold in plain]) > delta, "the bound is what keeps it"
