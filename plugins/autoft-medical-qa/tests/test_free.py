"""Free answers: what it adds to generation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from autoft_generation.conditional import Tokenizers
from autoft_medical_qa.free import MedicalFree
from autoft_medical_qa.metrics import qualities

from autoft.contracts import TaskContext
from autoft.errors import DataError

ROWS = [
    {"question": "what is fever", "answer": "a cold"},
    {"question": "what is insulin", "context": "insulin lowers the blood", "answer": ["right of the cell", "a cell"]},
    {"question": "what is the heart", "answer": "an organ of the blood"},
    {"question": "what is the liver", "answer": "an organ of the blood"},
]


@pytest.fixture
def task():
    return MedicalFree()


def inputs(rows):
    return [{name: value for name, value in row.items() if name != "answer"} for row in rows]


def test_the_context_stands_under_the_question_and_all_answers_are_right(task, make_context):
    context = make_context(task, ROWS)
    assert task.source_text(ROWS[0], context) == "what is fever"
    assert task.source_text(ROWS[1], context) == "what is insulin\ninsulin lowers the blood"
    assert task.reference(ROWS[1], context) == ["right of the cell", "a cell"]


def test_the_score_is_the_mean_probability_of_the_tokens_that_were_written(task, source, make_context):
    context = make_context(task, ROWS, max_new_tokens=6)
    model = task.load_model(source, context).eval()
    found = task.predict(model, inputs(ROWS), context)
    written = [(row, answer) for row, answer in zip(inputs(ROWS), found, strict=True) if answer["text"]]
    assert written
    for row, answer in written:
        ids = context.processor.source(task.source_text(row, context), return_tensors="pt")
        target = [*context.processor.target(answer["text"], add_special_tokens=False).input_ids, 3]
        decoder = torch.tensor([[2, *target[:-1]]])
        with torch.no_grad():
            logits = model(input_ids=ids.input_ids, attention_mask=ids.attention_mask, decoder_input_ids=decoder).logits
        logs = torch.log_softmax(logits[0], -1)[range(len(target)), target]
        assert answer["score"] == pytest.approx(math.exp(logs.mean().item()), rel=1e-4)
        assert answer["confidence"] == answer["score"]


def test_who_writes_nothing_is_not_sure_of_it(task, source, make_context):
    context = make_context(task, ROWS)
    model = task.load_model(source, context).eval()
    with torch.no_grad():
        # The token that ends an answer is the likeliest from the beginning.
        model.decoder.cls.predictions.bias[context.processor.end_id] += 1e4
    for answer in task.predict(model, inputs(ROWS), context):
        assert answer["text"] == ""
        assert answer["confidence"] == 0


def test_confidence_is_scaled_to_what_is_right_of_an_answer(task):
    facts = task.facts(ROWS, {})
    context = TaskContext(facts=facts, options={"abstain_coverage": 0.5}, params={}, max_length=64)
    predictions = [
        {"text": "a cold", "score": 0.9},
        {"text": "a cell", "score": 0.8},
        {"text": "nothing", "score": 0.2},
        {"text": "maybe", "score": 0.1},
    ]
    point = task.operating_point(ROWS, task.decided(predictions, context), context)
    assert (point["coverage"], point["risk"]) == (0.5, 0)
    after = task.decided(predictions, TaskContext({**facts, "operating_point": point}, {}, {}, 64))
    assert [answer["abstained"] for answer in after] == [False, False, True, True]
    assert after[0]["confidence"] > 0.8
    assert after[3]["confidence"] < 0.2


def test_baselines_answer_with_a_typical_answer_and_with_that_of_the_nearest_question(task, make_context):
    context = make_context(task, ROWS)
    typical, nearest = task.baselines(ROWS, context)
    assert typical.trivial
    assert {answer["text"] for answer in typical.predict(inputs(ROWS))} == {"an organ of the blood"}
    answers = nearest.predict([*inputs(ROWS), {"question": "insulin"}])
    assert [answer["text"] for answer in answers] == [
        "a cold",
        "right of the cell",
        "an organ of the blood",
        "an organ of the blood",
        "right of the cell",
    ]
    assert answers[0]["confidence"] == pytest.approx(1)


def test_a_model_that_knows_chats_is_asked_in_one(task, make_context):
    context = make_context(task, ROWS)
    assert task.prompt(ROWS[0], context) == "Question: what is fever\nAnswer: "
    context.processor.source.chat_template = "{{ messages[0]['content'] }}"
    assert task.prompt(ROWS[0], context) == [{"role": "user", "content": "what is fever"}]


def test_an_answer_in_any_script_is_as_good_as_what_it_has_of_the_right_one(task, make_context):
    rows = [{"question": "头疼怎么办", "answer": "多喝水多休息"}]
    context = make_context(task, rows)
    # Three of four characters are right, of six.
    found = qualities([{"text": "多喝水吧"}], [task.reference(rows[0], context)], context)
    assert found == pytest.approx(2 * 3 / (4 + 6))


@pytest.mark.parametrize("chat", [None, "{{ messages[0]['content'] }}"])
def test_a_context_that_is_too_long_loses_its_end_and_never_the_question(chat, task, make_context):
    context = make_context(task, ROWS, max_new_tokens=4)
    words = context.processor.source
    words.chat_template = chat
    processor = Tokenizers("causal", "gpt2", words, words)
    context = replace(context, processor=processor, max_length=32)
    row = {"question": "what is insulin", "context": "the heart " + "of the blood " * 40}
    # The last answer is longer than one that is written, and needs its room in training all the same.
    for given in (row, {**row, "answer": "a cell"}, {**row, "answer": "right of the cell in the blood of the heart"}):
        (feature,) = task.encode([given], context)
        read = words.decode(feature["input_ids"])
        assert "what is insulin the heart of the blood of the blood" in read
        assert len(feature["input_ids"]) <= 32


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "", "answer": "a cold"}, "row 2: 'question' has to be a text, given str ''"),
        ({"answer": "a cold"}, "row 2: 'question' has to be a text, given nothing"),
        ({"question": "what", "context": [2], "answer": "a cold"}, "row 2: 'context' has to be a text"),
        ({"question": "what", "answer": " "}, "row 2: 'answer' has to be a text"),
        ({"question": "what", "answer": -1}, "row 2: 'answer' has to be a text, given -1"),
        ({"question": "what", "answer": ["a cold", 2]}, "row 2: 'answer' has to be a text"),
    ],
)
def test_a_row_that_cannot_be_read_is_told_with_its_number(row, expected, task, make_context):
    with pytest.raises(DataError, match=expected):
        task.facts([ROWS[0], row], {})
    with pytest.raises(DataError, match=expected):
        task.encode([ROWS[0], row], make_context(task, ROWS))
