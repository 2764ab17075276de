"""Each metric against scikit-learn called directly, and its bootstrap statistics against resampled rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from autoft_text_classification.metrics import METRICS
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from autoft.contracts import TaskContext

NAMES = ["apple", "pear", "plum"]
BY_NAME = {metric.name: metric for metric in METRICS}


def context(problem):
    return TaskContext(facts={"labels": NAMES, "problem": problem}, options={}, params={}, max_length=8)


def direct(name, truth, said):
    """The figure by scikit-learn, from label names or from indicators."""
    if name == "accuracy":
        return sklearn_metrics.accuracy_score(truth, said)
    if name == "mcc":
        return sklearn_metrics.matthews_corrcoef(truth, said)
    figure, average = name.split("_")
    function = getattr(sklearn_metrics, f"{figure}_score")
    return function(truth, said, average=average, zero_division=0.0)


single = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), min_size=1, max_size=12)
several = st.lists(
    st.tuples(st.lists(st.sampled_from(NAMES), unique=True), st.lists(st.sampled_from(NAMES), unique=True)),
    min_size=1,
    max_size=8,
)
ADDITIVE = [name for name in BY_NAME if name != "roc_auc"]


@settings(max_examples=80, deadline=None)
@given(rows=single)
def test_single_labels_score_as_scikit_learn_says(rows):
    truth, said = [true for true, _ in rows], [answer for _, answer in rows]
    for name in ADDITIVE:
        found = BY_NAME[name].score([{"label": answer} for answer in said], truth, context("single"))
        assert found == pytest.approx(direct(name, truth, said), abs=1e-12), name


@settings(max_examples=80, deadline=None)
@given(rows=several)
def test_several_labels_score_as_scikit_learn_says(rows):
    def indicators(lists):
        return np.array([[int(name in row) for name in NAMES] for row in lists])

    truth, said = [true for true, _ in rows], [answer for _, answer in rows]
    for name in ADDITIVE:
        found = BY_NAME[name].score([{"labels": answer} for answer in said], truth, context("multi"))
        if name == "mcc":
            assert math.isnan(found)
        else:
            assert found == pytest.approx(direct(name, indicators(truth), indicators(said)), abs=1e-12), name


@settings(max_examples=60, deadline=None)
@given(rows=single, draw=st.randoms(use_true_random=False))
def test_summed_statistics_give_the_figure_of_the_resampled_rows(rows, draw):
    chosen = [draw.randrange(len(rows)) for _ in rows]
    truth, said = [true for true, _ in rows], [answer for _, answer in rows]
    counts = np.bincount(chosen, minlength=len(rows)).astype(float)[None]
    for name in ADDITIVE:
        metric = BY_NAME[name]
        statistics = metric.statistics([{"label": answer} for answer in said], truth, context("single"))
        (found,) = metric.aggregate(counts @ statistics)
        expected = direct(name, [truth[i] for i in chosen], [said[i] for i in chosen])
        assert found == pytest.approx(expected, abs=1e-9), name


@settings(max_examples=60, deadline=None)
@given(rows=several, draw=st.randoms(use_true_random=False))
def test_summed_statistics_of_several_labels_give_the_figure_of_the_resampled_rows(rows, draw):
    chosen = [draw.randrange(len(rows)) for _ in rows]
    counts = np.bincount(chosen, minlength=len(rows)).astype(float)[None]
    truth, predictions = [true for true, _ in rows], [{"labels": answer} for _, answer in rows]
    for name in (name for name in ADDITIVE if name != "mcc"):
        found = BY_NAME[name].resampled(predictions, truth, context("multi"), counts)
        drawn = [predictions[i] for i in chosen], [truth[i] for i in chosen]
        assert found == pytest.approx(BY_NAME[name].score(*drawn, context("multi")), abs=1e-9), name


def test_the_area_under_the_curve_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.choice(NAMES, 60)
    scores = rng.dirichlet(np.ones(3), 60)
    predictions = [{"label": NAMES[row.argmax()], "scores": row.tolist()} for row in scores]
    found = BY_NAME["roc_auc"].score(predictions, list(truth), context("single"))
    expected = sklearn_metrics.roc_auc_score(truth, scores, multi_class="ovr", average="macro", labels=NAMES)
    assert found == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from(NAMES), st.lists(st.integers(0, 4), min_size=3, max_size=3)), min_size=2),
    draw=st.randoms(use_true_random=False),
    names=st.sampled_from([NAMES, NAMES[:2]]),
)
def test_areas_of_resamples_are_those_of_scikit_learn_over_the_drawn_rows(rows, draw, names):
    # Scores of few values, so that there are ties.
    truth = [name if name in names else names[0] for name, _ in rows]
    scores = [[value / 4 for value in values[: len(names)]] for _, values in rows]
    predictions = [{"label": names[0], "scores": row} for row in scores]
    chosen = [draw.randrange(len(rows)) for _ in rows]
    counts = np.bincount(chosen, minlength=len(rows)).astype(float)[None]
    here = TaskContext(facts={"labels": names, "problem": "single"}, options={}, params={}, max_length=8)
    (found,) = BY_NAME["roc_auc"].resampled(predictions, truth, here, counts)
    expected = BY_NAME["roc_auc"].score([predictions[i] for i in chosen], [truth[i] for i in chosen], here)
    assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_the_area_under_the_curve_of_two_classes_is_that_of_the_second():
    two = TaskContext(facts={"labels": ["no", "yes"], "problem": "single"}, options={}, params={}, max_length=8)
    # Three of the four pairs of a no and a yes are in order.
    predictions = [{"label": "no", "scores": [1 - score, score]} for score in (0.1, 0.6, 0.5, 0.9)]
    assert BY_NAME["roc_auc"].score(predictions, ["no", "no", "yes", "yes"], two) == pytest.approx(0.75)


def test_the_area_under_the_curve_is_not_defined_without_both_sides_or_scores():
    one_sided = [{"label": "pear", "scores": [0.1, 0.8, 0.1]}] * 3
    assert math.isnan(BY_NAME["roc_auc"].score(one_sided, ["pear"] * 3, context("single")))
    assert math.isnan(BY_NAME["roc_auc"].score([{"label": "pear"}], ["pear"], context("single")))


def test_a_label_that_training_did_not_show_counts_as_missed():
    predictions = [{"label": "apple"}, {"label": "pear"}]
    assert BY_NAME["accuracy"].score(predictions, ["apple", "fig"], context("single")) == 0.5
