"""Reading rows: words of texts, tags, spans, and what is said of rows that cannot be read."""

from __future__ import annotations

import json

import pytest
from autoft_token_classification.schemes import Entity
from autoft_token_classification.sentences import read_sentence, read_spans, read_tags, split_text, true_entities
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.errors import DataError

TOKENS = {"words": "tokens", "targets": "tags", "split": "words", "scheme": "iob2"}
SPANS = {"words": "text", "targets": "spans", "split": "words", "scheme": "iob2"}


def words(text, how="words"):
    return [text[start:end] for start, end in split_text(text, how)]


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40), how=st.sampled_from(["words", "space"]))
def test_words_cover_all_but_white_space_in_order(text, how):
    places = split_text(text, how)
    ends = [0, *(place for pair in places for place in pair), len(text)]
    assert ends == sorted(ends)
    assert all(start < end for start, end in places)
    between = "".join(text[a:b] for a, b in zip(ends[::2], ends[1::2], strict=True))
    assert between.strip() == "" or between.isspace()
    if how == "space":
        assert words(text, how) == text.split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Angela Merkel lives in Berlin.", ["Angela", "Merkel", "lives", "in", "Berlin", "."]),
        ("n_jobs=4, isn't it?", ["n_jobs", "=", "4", ",", "isn", "'", "t", "it", "?"]),
        # Scripts without spaces: a word for each character.
        ("我爱北京ABC", ["我", "爱", "北", "京", "ABC"]),
        ("東京タワー", ["東", "京", "タ", "ワ", "ー"]),
        # Vowel signs belong to their letter.
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("naïve", ["naïve"]),
    ],
)
def test_words_are_parted_from_signs(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("row", "facts", "expected"),
    [
        ({"tokens": ["a", "b c", 3]}, TOKENS, ("a", "b c", "3")),
        ({"tokens": " New  York "}, TOKENS, ("New", "York")),
        ({"tokens": []}, TOKENS, ()),
        # As csv files have lists; what is no list of texts is read as words.
        ({"tokens": '["New York", "\u00e9"]'}, TOKENS, ("New York", "é")),
        ({"tokens": "[ 12 ]"}, TOKENS, ("[", "12", "]")),
        ({"tokens": "[sic] he said"}, TOKENS, ("[sic]", "he", "said")),
        # The column that training read comes first, the other serves where it is absent.
        ({"tokens": ["a"], "text": "x y"}, TOKENS, ("a",)),
        ({"tokens": ["a"], "text": "x y"}, SPANS, ("x", "y")),
        ({"tokens": None, "text": "x, y"}, TOKENS, ("x", ",", "y")),
        ({"text": "x, y"}, {**TOKENS, "words": "text", "split": "space"}, ("x,", "y")),
    ],
)
def test_words_come_from_the_column_that_has_them(row, facts, expected):
    assert read_sentence(row, facts, 0).words == expected


def test_entities_of_a_text_are_placed_by_characters_and_of_a_list_by_words():
    text = read_sentence({"text": "So New York, too"}, SPANS, 0)
    located = text.located(Entity("LOC", 1, 3))
    assert (located, text.excerpt(located), text.offsets) == (Entity("LOC", 3, 11), "New York", "characters")
    given_words = read_sentence({"tokens": ["So", "New", "York"]}, TOKENS, 0)
    located = given_words.located(Entity("LOC", 1, 3))
    assert (located, given_words.excerpt(located), given_words.offsets) == (Entity("LOC", 1, 3), "New York", "words")
    shown, places = given_words.shown
    assert [shown[start:end] for start, end in places] == ["So", "New", "York"]


def test_spans_become_tags_of_the_words_that_they_touch():
    text = "In New York and Berlin-Mitte, Berliners say Berlin."
    spans = [(3, 11, "LOC"), (16, 28, "LOC"), (30, 36, "LOC"), (44, 50, "LOC")]
    # A span as JSON text, as csv files have it; the third one ends within a word.
    row = {"text": text, "spans": json.dumps([{"start": a, "end": b, "label": label} for a, b, label in spans])}
    sentence = read_sentence(row, SPANS, 0)
    tagged = dict(zip(split_text(text), read_tags(row, sentence, SPANS, 0), strict=True))
    by_word = [(text[a:b], tag) for (a, b), tag in tagged.items() if tag != "O"]
    assert by_word == [
        ("New", "B-LOC"),
        ("York", "I-LOC"),
        ("Berlin", "B-LOC"),
        ("-", "I-LOC"),
        ("Mitte", "I-LOC"),
        ("Berliners", "B-LOC"),
        ("Berlin", "B-LOC"),
    ]
    # What has to be found stays as it was given.
    assert true_entities(row, sentence, SPANS, strict=False, number=0) == [Entity(c, a, b) for a, b, c in spans]


def test_white_space_around_a_span_is_no_part_of_it():
    row = {"text": "in Oslo now", "spans": [{"start": 2, "end": 8, "label": "LOC"}]}
    assert true_entities(row, read_sentence(row, SPANS, 0), SPANS, strict=False, number=0) == [Entity("LOC", 3, 7)]


def test_two_spans_in_one_word_leave_it_to_the_first():
    row = {
        "text": "underground line",
        "spans": [{"start": 0, "end": 5, "label": "A"}, {"start": 5, "end": 16, "label": "B"}],
    }
    assert read_tags(row, read_sentence(row, SPANS, 0), SPANS, 0) == ["B-A", "B-B"]


def test_numbers_of_tags_are_named():
    facts = {**TOKENS, "tag_names": ["O", "B-PER"]}
    row = {"tokens": ["a", "b"], "tags": [0, 1]}
    assert read_tags(row, read_sentence(row, facts, 0), facts, 0) == ["O", "B-PER"]
    assert read_tags(row, read_sentence(row, TOKENS, 0), TOKENS, 0) == ["0", "1"]
    for tags in ("O B-PER", '["O", "B-PER"]', "0 1", "[0, 1]"):
        row = {"tokens": ["a", "b"], "tags": tags}
        assert read_tags(row, read_sentence(row, facts, 0), facts, 0) == ["O", "B-PER"]


@pytest.mark.parametrize(
    ("row", "facts", "expected"),
    [
        ({}, TOKENS, "row 8: needs 'tokens', a list of words, or 'text'; given neither"),
        ({"text": 3}, TOKENS, "row 8: 'text' has to be a text, given int 3"),
        ({"tokens": 3}, TOKENS, "row 8: 'tokens' has to be a list of words, given int 3"),
        ({"tokens": ["a", None]}, TOKENS, "row 8: token 2 of 'tokens' has to be a word, given nothing"),
        ({"tokens": ["a"]}, TOKENS, r"row 8 \('a'\): 'tags' has to be a list with a tag for each word, given nothing"),
        (
            {"tokens": ["a", "b"], "tags": ["O"]},
            TOKENS,
            r"row 8 \('a b'\): has 2 words and 1 tags; needs a tag for each",
        ),
        (
            {"tokens": ["a"], "tags": [None]},
            TOKENS,
            r"row 8 \('a'\): the tag of word 1 has to be a name, given nothing",
        ),
        ({"tokens": "a b", "tags": "['O', 'O']"}, TOKENS, "a list as Python prints it; write it in JSON"),
        ({"tokens": ["a"], "tags": [True]}, TOKENS, "the tag of word 1 has to be a name, given bool True"),
        (
            {"tokens": ["a"], "tags": [2]},
            {**TOKENS, "tag_names": ["O", "X"]},
            "tag 2 of word 1 has no name; task_options.tag_names has 2",
        ),
    ],
)
def test_a_row_that_cannot_be_read_is_told_with_its_number(row, facts, expected):
    with pytest.raises(DataError, match=expected):
        read_tags(row, read_sentence(row, facts, 7), facts, 7)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        (None, r"row 1 \('in Oslo now'\): 'spans' has to be a list of {start, end, label}, given nothing"),
        ("[{", "'spans' is text, but not JSON"),
        (["LOC"], "span 1 has to be {start, end, label}, given str 'LOC'"),
        ([{"start": 0, "end": 4}], "span 1 has to be {start, end, label}, given dict"),
        ([{"start": 0.0, "end": 4, "label": "X"}], "needs whole numbers of characters, given 0.0 to 4"),
        ([{"start": 0, "end": 4, "label": None}], "needs a label, given nothing"),
        ([{"start": 0, "end": 99, "label": "X"}], "goes from 0 to 99, and the text has 11 characters"),
        ([{"start": 4, "end": 4, "label": "X"}], "goes from 4 to 4"),
        ([{"start": 2, "end": 3, "label": "X"}], "covers white space only"),
        (
            [{"start": 3, "end": 7, "label": "X"}, {"start": 0, "end": 4, "label": "Y"}],
            r"the spans 'in O' \(Y\) and 'Oslo' \(X\) overlap; a word has one tag",
        ),
    ],
)
def test_a_span_that_cannot_be_read_is_told(spans, expected):
    with pytest.raises(DataError, match=expected):
        read_spans({"text": "in Oslo now", "spans": spans}, 0)


def test_a_long_row_is_told_by_how_it_begins():
    with pytest.raises(
        DataError, match=r"^row 1 \('word word word word word word word wo\.\.\.'\): has 20 words and 1 tags"
    ):
        read_tags({"tags": "O"}, read_sentence({"tokens": "word " * 20}, TOKENS, 0), TOKENS, 0)
