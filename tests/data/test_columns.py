"""Columns of a source and roles of a task."""

from __future__ import annotations

import dataclasses
import math

import pyarrow as pa
import pytest

from autoft.contracts import Column, TaskCard
from autoft.data.columns import map_columns
from autoft.errors import DataError

CARD = TaskCard(
    name="tickets",
    summary="a queue for a ticket",
    columns=(
        Column("text", "text", "what the customer wrote", guesses=("text", "sentence", "body")),
        Column("note", "text", "what the agent noted", required=False, guesses=("note", "comment")),
        Column("label", "label", "the queue", target=True, guesses=("label", "queue", "class")),
    ),
    metrics=("accuracy",),
    architecture="sequence-classification",
)


def mapped(table: dict, mapping=None, card=CARD):
    return map_columns(pa.table(table), card, mapping or {}, "data.train").to_pydict()


def mapping_fault(table: dict, mapping=None, card=CARD) -> str:
    with pytest.raises(DataError) as caught:
        mapped(table, mapping, card)
    return str(caught.value)


def test_roles_are_guessed_in_the_order_of_the_guesses():
    table = {"id": [1], "Queue": ["q"], "body": ["b"], "sentence": ["s"]}
    assert mapped(table) == {"text": ["s"], "label": ["q"]}


def test_the_role_s_own_name_comes_before_a_guess():
    assert mapped({"queue": ["q"], "label": ["l"], "text": ["t"]}) == {"text": ["t"], "label": ["l"]}


def test_a_mapping_decides_over_guesses():
    table = {"text": ["t"], "body": ["b"], "label": ["l"], "comment": ["c"]}
    assert mapped(table, {"text": "body"}) == {"text": ["b"], "note": ["c"], "label": ["l"]}
    assert mapped(table, {"text": "body", "note": "text"}) == {"text": ["b"], "note": ["t"], "label": ["l"]}


def test_an_exact_name_wins_over_one_in_other_letters():
    assert mapped({"TEXT": ["big"], "text": ["small"], "label": ["l"]}) == {"text": ["small"], "label": ["l"]}


def test_columns_that_differ_only_in_case_are_ambiguous():
    message = mapping_fault({"Text": ["a"], "TEXT": ["b"], "label": ["l"]})
    assert "data.train" in message
    assert "'Text', 'TEXT' may all be 'text'" in message
    assert "data.columns decides" in message


def test_a_column_that_two_roles_want_is_ambiguous():
    columns = (
        Column("question", "text", "what is asked", guesses=("input",)),
        Column("context", "text", "where the answer is", guesses=("input",)),
    )
    message = mapping_fault({"input": ["a"]}, card=dataclasses.replace(CARD, columns=columns))
    assert "'input' may be 'question' and 'context'" in message
    assert "columns: {question: ..., context: ...}" in message


def test_a_column_that_two_roles_want_goes_to_the_required_one():
    columns = (
        Column("hint", "text", "a hint", required=False, guesses=("input",)),
        Column("question", "text", "what is asked", guesses=("input",)),
    )
    assert mapped({"input": ["a"]}, card=dataclasses.replace(CARD, columns=columns)) == {"question": ["a"]}


def test_a_missing_column_names_the_role_and_all_columns():
    message = mapping_fault({"words": ["a"], "stars": [1]})
    for part in ("data.train", "tickets", "'text' (what the customer wrote)", "'label' (the queue)", "words, stars"):
        assert part in message
    assert "columns: {text: ..., label: ...}" in message


def test_faults_of_a_mapping_are_told_together_with_the_closest_names():
    table = {"sentence": ["a"], "label": [1]}
    message = mapping_fault(table, {"txet": "sentence", "text": "sentense", "label": "labels"})
    assert "unknown role 'txet'. Did you mean 'text'? Known: label, note, text." in message
    assert "data.columns.text: data.train has no such column" in message
    assert "'sentense'. Did you mean 'sentence'? Known: label, sentence." in message
    assert "'labels'. Did you mean 'label'?" in message


def test_a_column_has_one_role():
    message = mapping_fault({"a": ["x"], "label": [1]}, {"text": "a", "note": "a"})
    assert "'a' is given to 'text' and 'note'" in message


def test_rows_without_a_required_value_are_left_out():
    table = {
        "text": ["a", None, "c", " \t", "e", "f", ""],
        "label": [1.0, 2.0, math.nan, 4.0, None, 6.0, 7.0],
        "note": [None, "n", "n", "n", "n", "", "n"],
    }
    assert mapped(table) == {"text": ["a", "f"], "note": [None, ""], "label": [1.0, 6.0]}


def test_an_empty_list_is_missing_as_input_and_an_answer_as_target():
    card = dataclasses.replace(
        CARD, columns=(Column("tokens", "tokens", "words"), Column("labels", "labels", "topics", target=True))
    )
    table = {"tokens": [["a"], [], ["c"], None], "labels": [[], ["x"], ["y"], ["z"]]}
    assert mapped(table, card=card) == {"tokens": [["a"], ["c"]], "labels": [[], ["y"]]}


def test_rows_that_all_lack_a_value_are_an_error():
    message = mapping_fault({"text": ["", None], "label": [1, 2]})
    assert "data.train" in message
    assert "none of its 2 rows has a value in each of text, label" in message


def test_numbers_in_a_column_of_text_become_text_and_lists_are_an_error():
    assert mapped({"text": [5, 70], "label": [1, 2]})["text"] == ["5", "70"]
    message = mapping_fault({"body": [["a"]], "label": [1]})
    assert "'body' for 'text' needs text, but holds list" in message
