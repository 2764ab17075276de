"""What is read as an answer, where it is found, and what a user is told of rows that cannot be read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.errors import DataError

TEXT = "Anna saw Anna's sister. 安娜看见了她。 ANNA  left."
OPTIONS = {"missing_answer": "error"}


def row(answers, text=TEXT):
    return {"question": "Who?", "context": text, "answers": answers}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"text": ["Anna"], "answer_start": [9]}, [("Anna", 9)]),
        ({"text": "Anna", "answer_start": 9}, [("Anna", 9)]),
        ({"text": ["Anna", "sister"], "answer_start": [0, 16]}, [("Anna", 0), ("sister", 16)]),
        ({"text": ["Anna"]}, [("Anna", 0)]),
        ([{"text": "Anna", "answer_start": 9}], [("Anna", 9)]),
        ("sister", [("sister", 16)]),
        (["sister", "Anna"], [("sister", 16), ("Anna", 0)]),
        (" sister ", [("sister", 16)]),
        ("安娜", [("安娜", 24)]),
        ("Anna left", [("ANNA  left", 32)]),
        ("SISTER", [("sister", 16)]),
        ({"text": ["Anna"], "answer_start": [7]}, [("Anna", 9)]),
        ({"text": [" sister"], "answer_start": [15]}, [("sister", 16)]),
        ({"text": [], "answer_start": []}, []),
        ([], []),
        ("", []),
        ([""], []),
        ('{"text": ["Anna"], "answer_start": [9]}', [("Anna", 9)]),
        ('["sister"]', [("sister", 16)]),
        ("[]", []),
    ],
)
def test_answers_of_every_form_are_found_in_the_context(answers, expected, task):
    found = task.answers(row(answers), OPTIONS)
    assert [(answer.text, answer.start) for answer in found] == expected
    assert all(TEXT[answer.start : answer.end] == answer.text for answer in found)


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("art", "The artist showed his art.", 22),
        ("13", "Of 2013, the 13 rows.", 13),
        ("US", "The USB stick is from the US.", 26),
        ("art", "A smart start: Art is long.", 15),
        ("cafe", "cafe\u0301 or cafe", 9),
        ("1 1", "11 1 1", 3),
        # Nothing stands alone: within a word, as before.
        ("kilo", "two kilometres", 4),
        # Scripts without spaces have no words to cut.
        ("四十二", "梨园里有四十二棵树。四十二!", 4),
        ("2", "第2章", 1),
    ],
)
def test_an_answer_without_a_start_is_no_part_of_a_word_where_it_stands_alone_too(answer, text, expected, task):
    (found,) = task.answers(row(answer, text), OPTIONS)
    assert found.start == expected


def test_a_start_says_that_a_part_of_a_word_is_meant(task):
    (found,) = task.answers(row({"text": ["art"], "answer_start": [4]}, "The artist showed his art."), OPTIONS)
    assert found.start == 4


def test_a_start_below_zero_says_no_place(task):
    (found,) = task.answers(row({"text": ["art"], "answer_start": [-1]}, "The artist showed his art."), OPTIONS)
    assert found.start == 22


def test_rows_whose_answers_stand_elsewhere_than_said_are_told(task):
    rows = [
        row({"text": ["Anna"], "answer_start": [9]}),
        row({"text": [" sister"], "answer_start": [15]}),
        row({"text": ["SISTER"], "answer_start": [16]}),
        row("sister"),
        row([]),
    ]
    assert task.warnings(rows, OPTIONS) == []
    # One has its place counted from 1, another in bytes.
    rows[3:3] = [
        row({"text": ["Anna"], "answer_start": [10]}),
        row({"text": ["安娜", "Anna"], "answer_start": [26, 1]}),
    ]
    assert task.warnings(rows, OPTIONS) == [
        "row 4: the answer 'Anna' does not stand at its answer_start, 10; the nearest place is read, in 2 of the 7 rows"
    ]


def test_rows_whose_answers_may_stand_at_several_places_are_told(task):
    rows = [
        row("sister"),
        row("Anna"),
        row({"text": ["Anna"], "answer_start": [-1]}),
        row("art", "The artist and his art."),
    ]
    assert task.warnings(rows, OPTIONS) == [
        "row 2: the answer 'Anna' has no answer_start and stands at 2 places; the first of them is read, in 2 of the 4 rows"
    ]


def test_of_places_that_overlap_the_start_says_which(task):
    (found,) = task.answers(row({"text": ["1 1"], "answer_start": [2]}, "1 1 1"), OPTIONS)
    assert (found.start, found.end) == (2, 5)


def test_a_text_in_brackets_that_stands_in_the_context_is_no_json(task):
    (found,) = task.answers(row("[5]", "see note [5] there"), OPTIONS)
    assert (found.start, found.end) == (9, 12)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40),
    places=st.tuples(st.integers(0, 39), st.integers(1, 40)),
)
def test_a_stretch_of_the_context_is_found_where_its_start_says(text, places, task):
    start, end = min(places[0], len(text) - 1), min(max(places), len(text))
    answer = text[start:end]
    if not answer.strip():
        return
    (found,) = task.answers(row({"text": [answer], "answer_start": [start]}, text), OPTIONS)
    assert found.text == answer.strip()
    assert found.start == start + len(answer) - len(answer.lstrip())


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"answers": "Berta"},
            "row 1: the answer 'Berta' does not stand in the context .* task_options.missing_answer",
        ),
        ({"answers": 7}, r'row 1: \'answers\' has to be {"text": .*given int 7'),
        ({"answers": None}, "row 1: 'answers' has to be .*given nothing"),
        ({"answers": {"answer_start": [1]}}, "row 1: 'answers' has to be .*given dict"),
        ({"answers": [3]}, "row 1: 'answers' has to be .*given int 3"),
        ({"answers": {"text": ["Anna"], "answer_start": ["x"]}}, "row 1: 'answers' has to be"),
        ({"answers": {"text": ["Anna"], "answer_start": 0.5}}, "row 1: 'answers' has to be"),
        ({"answers": {"text": 5}}, r"row 1: 'answers' has to be .*given dict {'text': 5}"),
        ({"answers": {"text": ["Anna"], "answer_start": []}}, "has 1 texts and 0 starts"),
        ({"answers": '{"text": '}, "row 1: 'answers' looks like JSON and is none"),
        ({"question": None}, "row 1: 'question' has to be a text, given nothing"),
        ({"context": 3}, "row 1: 'context' has to be a text, given int 3"),
    ],
)
def test_rows_that_cannot_be_read_are_told_with_their_number(changed, expected, task):
    with pytest.raises(DataError, match=expected):
        task.facts([{**row("Anna"), **changed}], OPTIONS)


def test_a_missing_answer_is_read_as_unanswerable_where_the_recipe_says_so(task):
    options = {"missing_answer": "unanswerable"}
    facts = task.facts([row("Anna"), row("Berta")], options)
    assert facts == {"rows": 2, "unanswerable_rows": 1, "unanswerable": True}
    assert json.loads(json.dumps(facts)) == facts


def test_rows_without_any_answer_teach_nothing(task):
    with pytest.raises(DataError, match="none of the 2 training rows has an answer"):
        task.facts([row([]), row([])], OPTIONS)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("max_answer_tokens", 0, "a whole number of at least 1, given 0"),
        ("stride", -1, "a whole number of at least 0, given -1"),
        ("train_windows", "all", "a whole number of at least 1, given 'all'"),
        ("candidates", True, "a whole number of at least 1, given True"),
        ("no_answer_threshold", 2, "a number from 0 to 1, or null, given 2"),
        ("no_answer_threshold", [0.5], r"a number from 0 to 1, or null, given \[0.5\]"),
    ],
)
def test_options_out_of_range_are_told(option, value, expected, task):
    with pytest.raises(DataError, match=f"task_options.{option} has to be {expected}"):
        task.facts([row("Anna")], {**OPTIONS, option: value})


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("Anna", "answer"),
        ({"text": ["Anna"], "answer_start": [0]}, "answer"),
        ('{"text": ["Anna"], "answer_start": [0]}', "answer"),
        ([], "no answer"),
        ([""], "no answer"),
        ({"text": [], "answer_start": []}, "no answer"),
        # As a csv file holds it.
        ('{"text": [], "answer_start": []}', "no answer"),
        (7, None),
    ],
)
def test_splits_keep_the_share_of_questions_without_an_answer(answers, expected, task):
    assert task.stratum(row(answers)) == expected


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("In what year did it end?", "when"),
        ("How much did she pay?", "how many, how much"),
        ("How is it made?", "how"),
        ("Name the city", "other"),
        ("To whom was it sent?", "who"),
        ("谁写了这封信？", "who"),
        ("这座桥有多少个桥拱？", "how many, how much"),
        ("Whatever happened", "other"),
    ],
)
def test_questions_are_sorted_by_their_word(question, expected, task):
    assert task.question_kind(question) == expected
