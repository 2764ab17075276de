from __future__ import annotations

import pytest
from autoft_summarization.texts import choose_tokenizer, document_text, sentences, tokenizer
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
    ("text", "expected"),
    [
        ("Für die Straße, 3.5 km", ["für", "die", "straße", "3", "5", "km"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("中文abc テスト", ["中", "文", "abc", "テ", "ス", "ト"]),
        ("Cafe\u0301", ["caf\u00e9"]),
    ],
)
def test_tokens_of_any_script_are_words_or_characters_where_words_are_not_spaced(text, expected):
    assert tokenizer("unicode").tokenize(text) == expected


def test_the_ascii_tokenizer_is_that_of_rouge_and_its_stemmer_is_porters():
    assert tokenizer("ascii").tokenize("The mice's 2 tails") == ["the", "mice", "s", "2", "tails"]
    assert tokenizer("ascii", stemmer=True).tokenize("running ponies") == ["run", "poni"]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["The café of José reopened on Monday", "“Quoted” – and so on" * 40], "ascii"),
        (["Die Straße über den Fluss ist für Fußgänger gesperrt"], "unicode"),
        (["他来了"], "unicode"),
        (["123"], "ascii"),
    ],
)
def test_what_is_counted_depends_on_the_letters(texts, expected):
    assert choose_tokenizer(texts) == expected


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
