"""Spans of medical texts: what it adds to question answering."""

from __future__ import annotations

import pytest
from autoft_medical_qa.calibration import scaled
from autoft_medical_qa.extractive import NO_ANSWER, MedicalExtractive

from autoft.contracts import Chart
from autoft.errors import DataError

ROWS = [
    {
        "question": "when was insulin reported",
        "context": "the study of insulin was reported in 1921",
        "answers": "1921",
    },
    {"question": "what lowers pressure", "context": ["a study", "walking lowers pressure"], "answers": ["walking"]},
    {
        "question": "what raises pressure",
        "context": "fever raises pressure",
        "answers": {"text": ["fever"], "answer_start": [0]},
    },
    {"question": "what is a cell", "context": "nothing was clear", "answers": []},
]


@pytest.fixture
def task():
    return MedicalExtractive()


def inputs(rows):
    return [{name: value for name, value in row.items() if name != "answers"} for row in rows]


def test_a_list_of_texts_is_one_context(task, source, make_context):
    context = make_context(task, ROWS)
    assert task.reference(ROWS[1], context) == ["walking"]
    model = task.load_model(source, context).eval()
    (found,) = task.predict(model, inputs(ROWS[1:2]), context)
    assert found["candidates"][0]["answer"] in "a study\nwalking lowers pressure"


def test_the_score_of_the_span_is_scaled_to_a_confidence(task, source, make_context):
    point = {"slope": 0.5, "bias": 1.0, "threshold": 0.6}
    context = make_context(task, ROWS, facts={"operating_point": point})
    model = task.load_model(source, context).eval()
    for answer in task.predict(model, inputs(ROWS), context):
        assert answer["confidence"] == pytest.approx(scaled(answer["score"], 0.5, 1.0))
        assert answer["abstained"] == (answer["confidence"] < 0.6)


def answered(text, score, no_answer):
    span = {"answer": text, "start": 0, "end": len(text), "score": score}
    return {**span, "no_answer": no_answer, "candidates": [span]}


def test_the_threshold_of_no_answer_is_set_before_the_confidence(task, make_context):
    context = make_context(task, ROWS, abstain_coverage=0.5)
    # By default, at 0.5, all but the last are answered; the best threshold leaves the last two unanswered.
    predictions = [
        answered("1921", 0.9, 0.1),
        answered("walking", 0.7, 0.2),
        answered("fever", 0.6, 0.3),
        {**answered("clear", 0.2, 0.4), "score": 0.2},
    ]
    decided = task.decided(predictions, context)
    point = task.operating_point(ROWS, decided, context)
    assert 0.3 < point["no_answer_threshold"] < 0.4
    again = task.decided_at(decided, point)
    assert [answer["answer"] for answer in again] == ["1921", "walking", "fever", ""]
    assert again[3]["score"] == 0.4
    # All four are right then, and the surer half is answered.
    assert point["risk"] == 0
    assert point["coverage"] == 0.5
    assert point["slope"] > 0


def test_baselines_have_a_confidence_and_the_report_its_charts(task, source, make_context):
    context = make_context(task, ROWS)
    for baseline in task.baselines(ROWS, context):
        answers = baseline.predict(inputs(ROWS))
        assert all(0 <= answer["confidence"] <= 1 for answer in answers)
    model = task.load_model(source, context).eval()
    predictions = task.predict(model, inputs(ROWS), context)
    parts = task.details(ROWS, predictions, context)
    assert [part.title for part in parts if isinstance(part, Chart)] == ["Reliability", "Risk and coverage"]
    assert {line[1] for line in parts[-1].rows} == {"1921", "walking", "fever", NO_ANSWER}


def test_a_row_that_cannot_be_read_is_told_with_its_number(task):
    with pytest.raises(DataError, match="row 2: 'context' has to be a text, a list of texts"):
        task.facts([ROWS[0], {"question": "what", "answers": ["a"]}], {})
