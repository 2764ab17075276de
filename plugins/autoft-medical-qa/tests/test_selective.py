"""Confidence and abstention as the four forms share them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from autoft_medical_qa import autoft_tasks
from autoft_medical_qa.calibration import ABSTAIN_ALWAYS, tempered
from autoft_medical_qa.choice import MedicalChoice

from autoft.contracts import Chart, Examples, Table, TaskContext
from autoft.errors import DataError

TASK = MedicalChoice()


def choice_rows(count, seed=0):
    """Rows with two options, and predictions of an over-confident model that is right in three of four."""
    rng = np.random.default_rng(seed)
    rows, predictions = [], []
    for i in range(count):
        sure = rng.uniform(0.5, 1)
        right = rng.uniform() < sure
        logit = 3 * np.log(sure / (1 - sure))
        score = float(1 / (1 + np.exp(-logit)))
        rows.append(
            {
                "question": f"number {i}",
                "options": ["one", "two"],
                "answer": "A" if right else "B",
                "subject": "xy"[i % 2],
            }
        )
        predictions.append({"label": "A", "answer": "one", "scores": [score, 1 - score]})
    return rows, predictions


def context(rows, **options):
    return TaskContext(facts=TASK.facts(rows, options), options=options, params={}, max_length=8)


def at(place, point):
    return replace(place, facts={**place.facts, "operating_point": point})


def test_the_temperature_undoes_what_made_the_model_too_sure():
    rows, predictions = choice_rows(3000)
    place = context(rows)
    before = TASK.decided(predictions, place)
    point = TASK.operating_point(rows, before, place)
    assert point["temperature"] == pytest.approx(3, rel=0.15)
    assert point["threshold"] is None
    assert point["coverage"] == 1
    after = TASK.decided(predictions, at(place, point))
    expected = tempered([predictions[0]["scores"]], point["temperature"])[0]
    assert after[0]["scores"] == pytest.approx(expected)
    assert after[0]["confidence"] == max(after[0]["scores"])
    assert sum(map(sum, (answer["scores"] for answer in after))) == pytest.approx(len(rows))
    confidence = np.mean([answer["confidence"] for answer in after])
    assert confidence == pytest.approx(np.mean([row["answer"] == "A" for row in rows]), abs=0.02)
    assert not any(answer["abstained"] for answer in after)


def test_a_limit_on_the_risk_is_kept_on_the_validation_rows_and_nearly_on_new_ones():
    rows, predictions = choice_rows(2000)
    place = context(rows, abstain_risk=0.1)
    point = TASK.operating_point(rows, TASK.decided(predictions, place), place)
    assert point["risk"] <= 0.1
    assert 0.2 < point["coverage"] < 0.6
    for seed in (0, 1):
        rows, predictions = choice_rows(2000, seed)
        answered = [
            row["answer"] == "A"
            for row, answer in zip(rows, TASK.decided(predictions, at(place, point)), strict=True)
            if not answer["abstained"]
        ]
        assert len(answered) / 2000 == pytest.approx(point["coverage"], abs=0.05)
        assert 1 - np.mean(answered) == pytest.approx(0.1, abs=0.03)


def test_a_coverage_is_what_is_answered():
    rows, predictions = choice_rows(500)
    place = context(rows, abstain_coverage=0.7)
    point = TASK.operating_point(rows, TASK.decided(predictions, place), place)
    abstained = [answer["abstained"] for answer in TASK.decided(predictions, at(place, point))]
    assert 1 - np.mean(abstained) == pytest.approx(0.7, abs=0.005)
    assert point["coverage"] == pytest.approx(0.7, abs=0.005)


def test_a_risk_that_cannot_be_kept_leaves_every_question_unanswered():
    rows = [{"question": "q", "options": ["one", "two"], "answer": "B"}] * 10
    predictions = [{"label": "A", "answer": "one", "scores": [0.9, 0.1]}] * 10
    place = context(rows, abstain_risk=0.5)
    before = TASK.decided(predictions, place)
    point = TASK.operating_point(rows, before, place)
    assert point["threshold"] == ABSTAIN_ALWAYS
    assert point["risk"] is None
    after = TASK.decided(predictions, at(place, point))
    assert all(answer["abstained"] for answer in after)
    titles = [part.title for part in TASK.details(rows, after, at(place, point))]
    assert "Abstention: no question is answered, for no confidence keeps the risk on validation" in titles


def test_a_bound_on_the_risk_answers_less_than_the_risk_of_the_rows_themselves():
    rows, predictions = choice_rows(1000)
    covered = []
    for delta in (0.0, 0.05):
        place = context(rows, abstain_risk=0.15, abstain_delta=delta)
        covered.append(TASK.operating_point(rows, TASK.decided(predictions, place), place)["coverage"])
    assert 0.05 < covered[1] < covered[0]


def test_the_report_shows_calibration_risk_abstention_subjects_and_who_got_no_answer():
    rows, predictions = choice_rows(400)
    place = context(rows, abstain_risk=0.1)
    point = TASK.operating_point(rows, TASK.decided(predictions, place), place)
    after = TASK.decided(predictions, at(place, point))
    reliability, risk, abstention, subjects, unsure = TASK.details(rows, after, at(place, point))[-5:]
    assert isinstance(reliability, Chart)
    assert reliability.diagonal
    assert [series.name for series in reliability.series] == ["confidence", "as trained"]
    raw = max(max(prediction["scores"]) for prediction in predictions)
    assert max(reliability.series[1].x) == pytest.approx(raw, abs=0.02)
    assert max(reliability.series[0].x) < raw - 0.02
    assert isinstance(risk, Chart)
    assert risk.series[0].x[-1] == 1
    assert risk.series[0].y[-1] == pytest.approx(np.mean([row["answer"] == "B" for row in rows]))
    assert risk.series[1].y[0] == 0
    assert len(risk.series[0].x) <= 100
    assert isinstance(abstention, Table)
    (_, coverage, risk_then, risk_of_all_then), (_, test_coverage, test_risk, risk_of_all) = abstention.rows
    assert (coverage, risk_then) == (point["coverage"], point["risk"])
    assert risk_of_all_then == pytest.approx(risk_of_all, abs=1e-4)
    assert test_coverage == pytest.approx(point["coverage"], abs=1e-3)
    assert test_risk == pytest.approx(point["risk"], abs=1e-3)
    assert risk_of_all == pytest.approx(np.mean([row["answer"] == "B" for row in rows]))
    assert [line[:2] for line in subjects.rows] == [("x", 200), ("y", 200)]
    assert isinstance(unsure, Examples)
    left_out = sum(answer["abstained"] for answer in after)
    assert unsure.title == f"Questions without an answer: the least sure of {left_out}"
    confidences = [line[3] for line in unsure.rows]
    assert confidences == sorted(confidences)
    assert max(confidences) < point["threshold"]


@pytest.mark.parametrize("task", autoft_tasks(), ids=lambda task: task.card.name)
def test_every_form_says_first_that_it_is_not_for_clinical_use(task, catalog):
    assert task.card.notice.startswith("Not for clinical use.")
    found = set(catalog.metrics_of(task))
    assert found == set(task.card.metrics), "each metric of the card is offered by some plugin"
    assert {"ece", "brier", "aurc", "selective_accuracy"} <= found


@pytest.mark.parametrize("task", autoft_tasks(), ids=lambda task: task.card.name)
def test_an_option_out_of_range_is_told(task):
    options = {option.name: option.default for option in task.card.options}
    for changes, expected in (
        ({"abstain_risk": 1.5}, "task_options.abstain_risk: has to be a number between 0 and 1; given 1.5"),
        ({"abstain_risk": "low"}, "given 'low'"),
        ({"abstain_coverage": 0}, "task_options.abstain_coverage: has to be a number above 0 and up to 1; given 0"),
        ({"abstain_coverage": 0.5, "abstain_risk": 0.5}, "exclude each other"),
    ):
        with pytest.raises(DataError, match=expected):
            task.facts(task.demo_rows(), {**options, **changes})


def test_the_bound_needs_a_risk_and_a_chance_below_one():
    rows, _ = choice_rows(4)
    with pytest.raises(DataError, match="abstain_delta: bounds the risk, and needs abstain_risk"):
        TASK.facts(rows, {"abstain_delta": 0.1})
    with pytest.raises(DataError, match="from 0 on and below 1; given 1"):
        TASK.facts(rows, {"abstain_delta": 1, "abstain_risk": 0.1})
