"""How options and right answers are read in the notations of public data sets."""

from __future__ import annotations

import pytest
from autoft_medical_qa.options import Choices, notation_of, read_choices, right_place
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.errors import DataError

TWO = {"question": "Which?", "options": ["Liver", "Heart"]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # MMLU and most files: a list.
        ({"options": ["Liver", "Heart", "Lung"]}, Choices(("A", "B", "C"), ("Liver", "Heart", "Lung"))),
        # MedQA: an object by letter; Arrow fills what other rows have with None.
        ({"options": {"A": "Liver", "B": "Heart", "C": None}}, Choices(("A", "B"), ("Liver", "Heart"))),
        # The first release of MedQA.
        (
            {"options": [{"key": "a", "value": "Liver"}, {"key": "b", "value": "Heart"}]},
            Choices(("A", "B"), ("Liver", "Heart")),
        ),
        # ARC.
        ({"options": {"text": ["Liver", "Heart"], "label": ["1", "2"]}}, Choices(("1", "2"), ("Liver", "Heart"))),
        # MedMCQA: a column for each.
        (
            {"option_a": "Liver", "option_b": "Heart", "option_c": "Lung", "option_d": None},
            Choices(("A", "B", "C"), ("Liver", "Heart", "Lung")),
        ),
        # Numbers in columns of their own; a column with gaps holds floats.
        ({"option_a": 5, "option_b": 7.0, "option_c": float("nan")}, Choices(("A", "B"), ("5", "7"))),
    ],
)
def test_options_are_read_in_all_their_forms(row, expected):
    assert read_choices(row, 0) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, "row 3: needs from 2 to 26 options, given 0"),
        ({"options": ["Liver"]}, "row 3: needs from 2 to 26 options, given 1"),
        ({"options": [str(i) for i in range(27)]}, "row 3: needs from 2 to 26 options, given 27"),
        ({"options": "Liver"}, "row 3: 'options' has to be a list of texts.*given str 'Liver'"),
        ({"options": ["Liver", " ", "Lung"]}, "row 3: the option B is empty, and others follow it"),
        ({"option_a": "Liver", "option_c": "Lung"}, "row 3: the option B is empty, and others follow it"),
    ],
)
def test_options_that_cannot_be_read_are_told_with_the_row(row, expected):
    with pytest.raises(DataError, match=expected):
        read_choices(row, 2)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["A", "b", " B "], "key"),
        ([0, 1, 1], "index from 0"),
        (["0", "1", "1"], "index from 0"),
        ([1, 2, 2], "index from 1"),
        ([1.0, 2.0, 2.0], "index from 1"),
        (["liver", "Heart ", "Heart"], "text"),
    ],
)
def test_the_notation_of_the_answers_is_found(answers, expected):
    rows = [{**TWO, "answer": answer} for answer in answers]
    assert notation_of(rows) == expected
    assert [right_place(row, 0, expected) for row in rows] == [0, 1, 1]


def test_keys_come_before_texts_that_look_like_keys():
    rows = [{"question": "Which cluster?", "options": ["B", "A"], "answer": "A"}]
    assert right_place(rows[0], 0, notation_of(rows)) == 0
    # Another row that has no such key decides for all.
    rows.append({"question": "Which organ?", "options": ["Liver", "Heart"], "answer": "Heart"})
    assert notation_of(rows) == "text"
    assert [right_place(row, 0, "text") for row in rows] == [1, 1]


def test_numbers_are_keys_where_the_data_calls_its_options_so():
    row = {"options": {"text": ["Liver", "Heart"], "label": ["1", "2"]}, "answer": 2}
    assert notation_of([row]) == "key"
    assert right_place(row, 0, "key") == 1


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["A", "C"], "row 2: 'answer' names no option: in other rows the answer is one of A, B; given str 'C'"),
        ([0, 1, 2], "row 3: 'answer' names no option: in other rows the answer is a number from 0 to 1; given int 2"),
        ([0, 1, -1], "row 3: .* a number from 0 to 1; given int -1"),
        (["Liver", "Heart", "Hart"], "row 3: .* the text of exactly one option, as 'Liver'; given str 'Hart'"),
        ([True, False], "row 1: 'answer' names no option"),
    ],
)
def test_an_answer_that_names_no_option_is_told_with_the_row(answers, expected):
    with pytest.raises(DataError, match=expected):
        notation_of([{**TWO, "answer": answer} for answer in answers])


def test_answers_that_may_count_from_0_or_from_1_are_told():
    four = {"options": ["Liver", "Heart", "Lung", "Skin"]}
    rows = [{**four, "answer": answer} for answer in (1, 3, 2)]
    with pytest.raises(
        DataError,
        match="row 1: 'answer' int 1 may mean, as index from 0, 'Heart' or, as index from 1, 'Liver', and no other row",
    ):
        notation_of(rows)
    assert notation_of([*rows, {**four, "answer": 0}]) == "index from 0"
    assert notation_of([*rows, {**four, "answer": 4}]) == "index from 1"


def test_numbers_that_may_be_texts_or_places_are_told():
    numbers = {"options": ["2", "3", "1"], "answer": "2"}
    with pytest.raises(DataError, match="as index from 0, '1' or, as index from 1, '3' or, as text, '2'"):
        notation_of([numbers])
    assert notation_of([numbers, {"options": ["10", "20"], "answer": "20"}]) == "text"
    # Each option stands where it says.
    assert notation_of([{"options": ["0", "1", "2"], "answer": 0}]) == "index from 0"


def test_a_text_that_two_options_have_names_neither():
    with pytest.raises(DataError, match="row 1: 'answer' names no option"):
        notation_of([{"options": ["Liver", "liver", "Heart"], "answer": "Liver"}])


OPTION = st.text("abcdefgh ", min_size=1, max_size=6).map(str.strip).filter(bool)


@settings(max_examples=60, deadline=None)
@given(
    questions=st.lists(
        st.tuples(st.lists(OPTION, min_size=2, max_size=8, unique_by=str.casefold), st.integers(0, 7)),
        min_size=1,
        max_size=8,
    )
)
def test_every_notation_that_fits_gives_places_of_options(questions):
    for say in (
        lambda options, place: "ABCDEFGH"[place],
        lambda options, place: place,
        lambda options, place: options[place],
    ):
        rows = [{"options": options, "answer": say(options, place % len(options))} for options, place in questions]
        # Tells that places are counted from 0.
        notation = notation_of([*rows, {"options": ["xy", "yx"], "answer": say(["xy", "yx"], 0)}])
        for row, (options, place) in zip(rows, questions, strict=True):
            found = right_place(row, 0, notation)
            assert 0 <= found < len(options)
            if notation == "index from 0" or (
                notation == "key" and isinstance(row["answer"], str) and row["answer"].isupper()
            ):
                assert found == place % len(options)
