"""The metrics of confidence against scikit-learn and loops, and their resamples against the drawn rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from autoft_medical_qa.metrics import METRICS, qualities
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score

from autoft.contracts import TaskContext

BY_NAME = {metric.name: metric for metric in METRICS}
WORDS = ("maybe", "no", "yes")
ROWS = st.lists(st.tuples(st.integers(0, 8).map(lambda k: k / 8), st.booleans()), min_size=1, max_size=30)


def context(form="choice"):
    return TaskContext(facts={"form": form}, options={}, params={}, max_length=8)


def predicted(rows):
    return [{"label": "A", "confidence": confidence} for confidence, _ in rows], [
        "A" if hit else "B" for _, hit in rows
    ]


@settings(max_examples=200, deadline=None)
@given(rows=ROWS)
def test_the_brier_score_is_that_of_scikit_learn(rows):
    expected = brier_score_loss([hit for _, hit in rows], [confidence for confidence, _ in rows], pos_label=True)
    assert BY_NAME["brier"].score(*predicted(rows), context()) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(pairs=st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(WORDS)), min_size=1, max_size=30))
@pytest.mark.parametrize(("form", "labels"), [("choice", tuple("ABCDEFGH")), ("yes-no", WORDS)])
def test_what_is_right_is_what_scikit_learn_says(form, labels, pairs, catalog):
    metrics = catalog.metrics_of(catalog.task(f"medical-qa-{form}"))
    name = dict(zip(WORDS, labels, strict=False))
    true, said = [name[one] for one, _ in pairs], [name[other] for _, other in pairs]
    place = TaskContext(facts={"form": form, "labels": list(labels)}, options={}, params={}, max_length=8)
    predictions = [{"label": label, "confidence": 0.5} for label in said]
    accuracy = accuracy_score(true, said)
    assert metrics["accuracy"].score(predictions, true, place) == pytest.approx(accuracy)
    assert qualities(predictions, true, place).mean() == pytest.approx(accuracy)
    # All are equally sure, so that the surest are as good as all are on average.
    assert metrics["selective_accuracy"].score(predictions, true, place) == pytest.approx(accuracy)
    if form == "yes-no":
        expected = f1_score(true, said, average="macro", zero_division=0.0)
        assert metrics["f1_macro"].score(predictions, true, place) == pytest.approx(expected)


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, draw=st.randoms(use_true_random=False))
def test_a_resample_scores_as_the_drawn_rows_do(rows, draw):
    predictions, references = predicted(rows)
    chosen = [[draw.randrange(len(rows)) for _ in rows] for _ in range(2)]
    counts = np.stack([np.bincount(drawn, minlength=len(rows)) for drawn in chosen]).astype(float)
    for metric in METRICS:
        found = metric.resampled(predictions, references, context(), counts)
        for value, drawn in zip(found, chosen, strict=True):
            expected = metric.score([predictions[i] for i in drawn], [references[i] for i in drawn], context())
            assert value == pytest.approx(expected, abs=1e-9), metric.name


def test_sure_and_right_is_best_and_sure_and_wrong_is_worst():
    rows = [(1.0, True)] * 5
    assert [metric.score(*predicted(rows), context()) for metric in METRICS] == [0, 0, 0, 1]
    rows = [(1.0, False)] * 5
    assert [metric.score(*predicted(rows), context()) for metric in METRICS] == [1, 1, 1, 0]
    assert [metric.higher_is_better for metric in METRICS] == [False, False, False, True]


def test_eighty_percent_of_five_rows_are_four():
    rows = [(0.9, True), (0.8, True), (0.7, True), (0.6, False), (0.5, False)]
    assert BY_NAME["selective_accuracy"].score(*predicted(rows), context()) == pytest.approx(3 / 4)


def test_without_confidence_nothing_is_defined():
    for metric in METRICS:
        assert math.isnan(metric.score([{"label": "A"}], ["A"], context()))
        assert math.isnan(metric.score([], [], context()))


def test_the_form_of_the_question_says_what_is_right():
    said = [{"label": "yes"}, {"label": "no"}]
    assert qualities(said, ["yes", "yes"], context("yes-no")).tolist() == [1, 0]
    spans = [{"answer": "The pancreas."}, {"answer": ""}, {"answer": "liver"}]
    assert qualities(spans, [["pancreas"], [], ["pancreas"]], context("extractive")).tolist() == [1, 1, 0]
    texts = [{"text": "a break in a bone"}, {"text": "no idea"}]
    references = [["a fracture is a break of the bone", "a broken bone"], ["a break in a bone"]]
    scorer = RougeScorer(["rougeL"])
    expected = [
        max(scorer.score(true, said["text"])["rougeL"].fmeasure for true in right)
        for said, right in zip(texts, references, strict=True)
    ]
    assert qualities(texts, references, context("free")).tolist() == pytest.approx(expected)
    assert expected[0] > 0 == expected[1]
