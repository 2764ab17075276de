from __future__ import annotations

import json

import pytest

from autoft.strategies.places import Unreadable, change_around, moved, places

TEXT = "one two three two"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"text": ["two"], "answer_start": [4]}, [(4, 7)]),
        ({"text": "two", "answer_start": 14}, [(14, 17)]),
        ({"text": ["two", "one"], "answer_start": [14, 0]}, [(14, 17), (0, 3)]),
        ({"text": ["two"]}, [(4, 7)]),
        ({"text": [], "answer_start": []}, []),
        ([{"text": "two", "answer_start": 14}], [(14, 17)]),
        ("two", [(4, 7)]),
        (["three", "two"], [(8, 13), (4, 7)]),
        ([{"start": 0, "end": 3, "label": "A"}], [(0, 3)]),
        (json.dumps([{"start": 0, "end": 3, "label": "A"}]), [(0, 3)]),
        (json.dumps({"text": ["two"], "answer_start": [14]}), [(14, 17)]),
        ([], []),
        (None, []),
        ("", []),
    ],
)
def test_places_of_every_form(value, found):
    assert list(places(value, TEXT)) == found
    same = moved(value, TEXT, lambda place: place)
    assert list(places(same, TEXT)) == found


@pytest.mark.parametrize(
    "value",
    [
        {"text": ["two"], "answer_start": [3]},
        {"text": ["two"], "answer_start": [4, 5]},
        {"text": ["TWO"], "answer_start": [4]},
        {"start": 3, "end": 99},
        {"start": 3, "end": 3},
        {"start": True, "end": 3},
        {"other": 1},
        "absent",
        [3],
        "[3",
        7,
    ],
)
def test_what_does_not_stand_there_is_unreadable(value):
    with pytest.raises(Unreadable):
        list(places(value, TEXT))
    assert change_around(TEXT, {"answer": value}, str.upper, lambda text, start, end: (start, end)) is None


def test_the_text_changes_around_and_places_are_counted_anew():
    spans = {"a": {"text": ["two"], "answer_start": [14]}, "b": [{"start": 4, "end": 7, "label": "X"}]}
    told = change_around(TEXT, spans, lambda part: part + "++", lambda text, start, end: (start, end))
    assert told is not None
    text, values = told
    # one_ ++ two _three_ ++ two, by hand
    assert text == "one ++two three ++two"
    assert values == {"a": {"text": ["two"], "answer_start": [18]}, "b": [{"start": 6, "end": 9, "label": "X"}]}
    assert spans["a"]["answer_start"] == [14]


def test_the_place_of_a_text_alone_is_that_of_words():
    text = "The artist showed his art."
    assert list(places("art", text)) == list(places({"text": ["art"]}, text)) == [(22, 25)]
    with pytest.raises(Unreadable):
        list(places("art", "The artist"))


def test_a_change_that_makes_another_place_the_first_is_not_taken():
    # Without a start the first occurrence is meant, and the change would put one in front of it.
    assert (
        change_around("a b", {"answer": "b"}, lambda part: "b " + part, lambda text, start, end: (start, end)) is None
    )
