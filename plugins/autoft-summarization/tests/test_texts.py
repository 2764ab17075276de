from __future__ import annotations

import pytest
from autoft_summarization.texts import document_text, sentences
from hypothesis import given
from hypothesis import strategies as st

from autoft.errors import DataError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He came. He left!", ["He came.", "He left!"]),
        ('Mr. Smith met J. R. Hall. "Really?" she asked. It cost 3.5 dollars, e.g. a lot.', None),
        ("The U.S. Army won... Then it left.", ["The U.S. Army won...", "Then it left."]),
        ("first line\n\nsecond. line", ["first line", "second. line"]),
        ("Он пришёл. Она ушла.", ["Он пришёл.", "Она ушла."]),
        ("他来了。“好吗？”我走了！", ["他来了。", "“好吗？”", "我走了！"]),
        ("वह आया। वह गया।", ["वह आया।", "वह गया।"]),
        (" \n ", []),
    ],
)
def test_a_text_is_cut_where_its_sentences_end(text, expected):
    if expected is None:
        expected = ["Mr. Smith met J. R. Hall.", '"Really?" she asked.', "It cost 3.5 dollars, e.g. a lot."]
    assert sentences(text) == expected


@given(st.text(max_size=80))
def test_cutting_a_text_loses_nothing_but_space(text):
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("as it is\n", "as it is\n"),
        (["Ann: hi", "Bob: hello "], "Ann: hi\nBob: hello"),
        ([{"speaker": "Ann", "text": "hi\nthere"}, {"speaker": None, "text": "yes"}], "Ann: hi there\nyes"),
        ([{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image"}]}], "user: hi"),
        ([{"from": "human", "value": "hi"}, {"from": "gpt", "value": ""}], "human: hi"),
    ],
)
def test_a_dialogue_becomes_a_line_a_turn(value, expected):
    assert document_text(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "row 3: 'document' has to be a text, or a list of turns, with something in it; given nothing"),
        (3, "given int 3"),
        ("  ", "given str '  '"),
        ([], "given list"),
        ([{"speaker": "Ann"}], "a turn needs its text under one of text, content, .*; given speaker"),
        ([1], "a turn has to be a text or an object, given int 1"),
    ],
)
def test_what_is_no_document_is_told(value, expected):
    with pytest.raises(DataError, match=expected):
        document_text(value, "row 3: 'document'")
