from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autoft.strategies.augmentation import split_words
from autoft.strategies.reordering import Crop, SentenceOrder, WordOrder, split_sentences

TEXT = "One two three four. Five six! Seven, eight? Nine"
ANY = st.one_of(
    st.text(max_size=60), st.lists(st.sampled_from([*"ab今天", ". ", "! ", "。", "\n", " "]), max_size=30).map("".join)
)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One two. Three! “Four?” Five", ["One two.", "Three!", "“Four?”", "Five"]),
        ("今天很好。明天呢？后天！", ["今天很好。", "明天呢？", "后天！"]),
        ("first line\nsecond line", ["first line", "second line"]),
        ("3.5 is a.b number", ["3.5 is a.b number"]),
        ("  x ", ["x"]),
        ("", []),
    ],
)
def test_split_sentences(text, sentences):
    assert split_sentences(text)[0] == sentences


@given(ANY)
def test_sentences_and_gaps_make_the_text(text):
    sentences, gaps = split_sentences(text)
    assert len(gaps) == len(sentences) + 1
    assert "".join(gap + one for gap, one in zip(gaps, [*sentences, ""], strict=True)) == text
    assert all(sentences)
    assert not any(gap.strip() for gap in gaps)


@settings(deadline=None)
@given(text=ANY, seed=st.integers(0, 99), kind=st.sampled_from(["shuffle", "reverse"]), rate=st.floats(0.05, 0.5))
def test_words_move_within_one_sentence(text, seed, kind, rate):
    got = WordOrder().change(text, random.Random(seed), {"rate": rate, "kind": kind}, None)
    assert Counter("".join(got.split())) == Counter("".join(text.split()))
    # Words with nothing but a sign between them, as in 0'@0, may read as one word the other way round.
    assume(not "".join(split_words(text)[1][1:-1]).strip())
    assert Counter(split_words(got)[0]) == Counter(split_words(text)[0])
    before, after = split_words(text)[0], split_words(got)[0]
    moved = [i for i, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
    longest = max((len(split_words(one)[0]) for one in split_sentences(text)[0]), default=0)
    if moved:
        assert moved[-1] - moved[0] < min(longest, max(2, int(rate * longest)))


def test_a_run_is_reversed():
    seen = {
        WordOrder().change("a b c d e f.", random.Random(s), {"rate": 0.5, "kind": "reverse"}, None) for s in range(60)
    }
    assert seen == {"c b a d e f.", "a d c b e f.", "a b e d c f.", "a b c f e d."}


def test_sentences_are_rotated_reversed_and_shuffled():
    def all_of(kind):
        return {SentenceOrder().change(TEXT, random.Random(seed), {"kind": kind}, None) for seed in range(300)}

    assert all_of("reverse") == {"Nine Seven, eight? Five six! One two three four."}
    assert all_of("rotate") == {
        "Five six! Seven, eight? Nine One two three four.",
        "Seven, eight? Nine One two three four. Five six!",
        "Nine One two three four. Five six! Seven, eight?",
    }
    assert len(all_of("shuffle")) == 24
    assert SentenceOrder().change("One sentence.", random.Random(0), {"kind": "reverse"}, None) == "One sentence."


@settings(deadline=None)
@given(text=ANY, seed=st.integers(0, 99), keep=st.floats(0.5, 0.95), unit=st.sampled_from(["words", "sentences"]))
def test_a_crop_is_a_part_of_the_text_and_keeps_its_share(text, seed, keep, unit):
    got = Crop().change(text, random.Random(seed), {"keep": keep, "unit": unit}, None)
    assert got in text
    split = split_words if unit == "words" else split_sentences
    assert len(split(got)[0]) >= keep * len(split(text)[0])


def test_crops_begin_anywhere():
    seen = {Crop().change("a b c d", random.Random(s), {"keep": 0.5, "unit": "words"}, None) for s in range(200)}
    assert seen == {"a b c d", "a b c", "b c d"}
