"""Yes, no or maybe: what it adds to text classification."""

from __future__ import annotations

import pytest
import torch
from autoft_medical_qa.yes_no import MedicalYesNo
from autoft_text_classification.task import TextClassification

from autoft.contracts import Matrix
from autoft.errors import DataError

ROWS = [
    {"question": "does walking do good", "context": "walking lowers pressure", "answer": "yes"},
    {"question": "does vitamin c do good", "context": ["nothing", "was clear"], "answer": "no"},
    {"question": "is cold bad", "context": {"contexts": ["the study showed", "nothing clear"]}, "answer": "Maybe"},
    {"question": "is fever bad", "context": "fever raises pressure", "answer": True},
]


@pytest.fixture
def task():
    return MedicalYesNo()


def inputs(rows):
    return [{name: value for name, value in row.items() if name != "answer"} for row in rows]


def test_answers_are_read_in_the_words_that_data_uses(task, make_context):
    context = make_context(task, ROWS)
    assert context.labels == ("maybe", "no", "yes")
    assert context.facts["counts"] == {"maybe": 1, "no": 1, "yes": 2}
    assert [task.reference(row, context) for row in ROWS] == ["yes", "no", "maybe", "yes"]
    assert [task.stratum(row) for row in ROWS] == ["yes", "no", "maybe", "yes"]
    assert task.stratum({**ROWS[0], "answer": "perhaps"}) is None, "facts() tells, with the row's number"
    assert [feature["labels"] for feature in task.encode(ROWS, context)] == [2, 1, 0, 2]


def test_question_and_context_are_classified_as_a_pair_of_texts(task, source, make_context):
    context = make_context(task, ROWS)
    model = task.load_model(source, context).eval()
    found = task.predict(model, inputs(ROWS), context)
    plain = TextClassification()
    pairs = [
        {"text": row["question"], "text_pair": text}
        for row, text in zip(
            ROWS,
            [
                "walking lowers pressure",
                "nothing\nwas clear",
                "the study showed\nnothing clear",
                "fever raises pressure",
            ],
            strict=True,
        )
    ]
    expected = plain.predict(model, pairs, context)
    for answer, other in zip(found, expected, strict=True):
        assert answer["label"] == other["label"]
        assert answer["scores"] == pytest.approx(other["scores"])
        assert answer["confidence"] == answer["score"] == max(answer["scores"])
    assert task.predict(model, inputs(ROWS)[:1], context)[0]["scores"] == pytest.approx(found[0]["scores"], abs=1e-5)


def test_the_temperature_moves_scores_and_confidence_together(task, source, make_context):
    context = make_context(task, ROWS, facts={"operating_point": {"temperature": 2.0, "threshold": 0.5}})
    model = task.load_model(source, context).eval()
    with torch.no_grad():
        batch = task.collate(task.encode(inputs(ROWS), context), context)
        expected = torch.softmax(model(**batch).logits / 2, -1).tolist()
    for answer, scores in zip(task.predict(model, inputs(ROWS), context), expected, strict=True):
        assert answer["scores"] == pytest.approx(scores, abs=1e-5)
        assert answer["confidence"] == answer["score"] == pytest.approx(max(scores), abs=1e-5)
        assert answer["abstained"] == (answer["confidence"] < 0.5)


def test_class_weights_and_the_baselines_are_those_of_text_classification(task, source, make_context):
    context = make_context(task, ROWS, {"train.class_weights": "balanced"})
    model = task.load_model(source, context).eval()
    batch = task.collate(task.encode(ROWS, context), context)
    weighted = task.loss(model, batch, context).item()
    assert weighted == pytest.approx(TextClassification().loss(model, batch, context).item())
    majority, linear = task.baselines(ROWS, context)
    assert majority.trivial
    assert {answer["label"] for answer in majority.predict(inputs(ROWS))} == {"yes"}
    assert [answer["label"] for answer in linear.predict(inputs(ROWS))] == ["yes", "no", "maybe", "yes"]
    assert all({"confidence", "abstained"} <= set(answer) for answer in linear.predict(inputs(ROWS)))


def test_the_report_shows_the_classes_of_rows_with_any_kind_of_context(task, source, make_context):
    context = make_context(task, ROWS)
    model = task.load_model(source, context).eval()
    predictions = task.predict(model, inputs(ROWS), context)
    classes, matrix, *_ = task.details(ROWS, predictions, context)
    assert [row[0] for row in classes.rows] == ["maybe", "no", "yes"]
    assert isinstance(matrix, Matrix)
    assert sum(map(sum, matrix.values)) == len(ROWS)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"question": "is it", "context": "fever", "answer": "perhaps"},
            "row 1: 'answer' has to be yes, no or maybe .*given str 'perhaps'",
        ),
        ({"question": "is it", "answer": "no"}, "row 1: 'context' has to be a text, a list of texts.*given nothing"),
        ({"question": "is it", "context": [1]}, r"row 1: 'context' has to be a text.*given list \[1\]"),
        ({"question": "is it", "context": {"text": ["a"]}}, "row 1: 'context' has to be a text"),
        ({"question": None, "context": "fever"}, "row 1: 'question' has to be a text, given nothing"),
    ],
)
def test_a_row_that_cannot_be_read_is_told_with_its_number(row, expected, task, make_context):
    with pytest.raises(DataError, match=expected):
        task.encode([row], make_context(task, ROWS))
    with pytest.raises(DataError, match=expected.replace("row 1", "row 5")):
        task.facts([*ROWS, row], {})
