"""Sub-words and windows: every word is judged once, by its first sub-word, where it has most context."""

from __future__ import annotations

import pytest
from autoft_token_classification.windows import cut_windows
from hypothesis import given, settings
from hypothesis import strategies as st

PIECES = st.text("abcXY.,北", min_size=1, max_size=12)
# Signs that a tokenizer drops, and texts of its special tokens.
ODD = st.sampled_from(["", " ", "\u200d", "[SEP]", "[PAD]", "\n"])


@settings(max_examples=200, deadline=None)
@given(
    sentences=st.lists(st.lists(st.one_of(PIECES, PIECES, ODD), max_size=30), min_size=1, max_size=4),
    max_length=st.integers(8, 40),
)
def test_every_word_is_judged_once_by_its_first_sub_word(letters, sentences, max_length):
    first = {}
    for word in {word for words in sentences for word in words}:
        alone = letters([word], is_split_into_words=True, add_special_tokens=False)["input_ids"]
        first[word] = alone[0] if alone else letters.unk_token_id
    for words, windows in zip(sentences, cut_windows(sentences, letters, max_length), strict=True):
        judged = [(word, window.inputs["input_ids"][at]) for window in windows for word, at in window.words]
        assert sorted(word for word, _ in judged) == list(range(len(words)))
        assert all(piece == first[words[word]] for word, piece in judged)
        assert all(len(window) <= max_length for window in windows)
        assert all(len(set(map(len, window.inputs.values()))) == 1 for window in windows)


def test_a_word_is_judged_where_it_stands_farthest_from_a_cut(letters):
    # 40 words of one sub-word each, in windows of 18 words that share 5.
    (windows,) = cut_windows([["a"] * 40], letters, 20)
    assert [len(window) - 2 for window in windows] == [18, 18, 14]
    judged = [[word for word, _ in window.words] for window in windows]
    assert judged == [list(range(16)), list(range(16, 29)), list(range(29, 40))]


def test_a_short_sentence_is_one_window_that_the_tokenizer_would_make(letters):
    (windows,) = cut_windows([["Oslo", "."]], letters, 20)
    (window,) = windows
    expected = letters("Oslo .")
    assert window.inputs["input_ids"] == expected["input_ids"]
    assert window.inputs["token_type_ids"] == expected["token_type_ids"]
    assert window.words == ((0, 1), (1, 5))
    assert cut_windows([], letters, 20) == []


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_words_of_byte_level_tokenizers_are_read_as_after_a_space(family, byte_level, tmp_path):
    from transformers import GPT2Tokenizer, RobertaTokenizer

    byte_level(tmp_path, family)
    kind = RobertaTokenizer if family == "roberta" else GPT2Tokenizer
    words = ["and", "Oslo", "other", "Bergen"]
    expected = kind.from_pretrained(tmp_path, add_prefix_space=True)(words, is_split_into_words=True)
    for prefixed in (False, True):
        tokenizer = kind.from_pretrained(tmp_path, add_prefix_space=prefixed)
        ((window,),) = cut_windows([words], tokenizer, 64)
        assert window.inputs["input_ids"] == expected["input_ids"]
        assert [at for _, at in window.words] == [expected.word_ids().index(i) for i in range(len(words))]
    plain = kind.from_pretrained(tmp_path)(words, is_split_into_words=True)
    assert plain["input_ids"] != expected["input_ids"], "the vocabulary has to tell them apart"
