from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.contracts import Column, TaskCard
from autoft.strategies.tagged_words import LabelWiseReplacement, MentionReplacement, SegmentShuffle, segments

CARD = TaskCard(
    name="tagged",
    summary="words and tags",
    columns=(
        Column("text", "text", "", required=False),
        Column("tokens", "tokens", "", required=False),
        Column("tags", "tags", "", target=True, required=False),
    ),
    metrics=("accuracy",),
    architecture="token-classification",
)
ROWS = [
    {"tokens": ["Ada", "Lovelace", "lived", "in", "London", "."], "tags": ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]},
    {"tokens": ["Oslo", "is", "in", "Norway"], "tags": ["B-LOC", "O", "O", "B-LOC"]},
    {"tokens": ["Alan", "saw", "New", "York"], "tags": ["B-PER", "O", "B-LOC", "I-LOC"]},
]
AUGMENTERS = [LabelWiseReplacement(), MentionReplacement(), SegmentShuffle()]
TAG = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
each = pytest.mark.parametrize("augmenter", AUGMENTERS, ids=lambda augmenter: augmenter.name)


def many(augmenter, row, rate=0.5, count=400):
    learned = augmenter.learn(ROWS, CARD)
    return [augmenter.augment(row, CARD, random.Random(seed), {"rate": rate}, learned) for seed in range(count)]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O O B-LOC", [("PER", 0, 2), ("O", 2, 4), ("LOC", 4, 5)]),
        ("B-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("I-PER I-PER I-LOC", [("PER", 0, 2), ("LOC", 2, 3)]),
        ("B-PER E-PER S-PER S-PER O", [("PER", 0, 2), ("PER", 2, 3), ("PER", 3, 4), ("O", 4, 5)]),
        ("U-PER B-PER L-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("NOUN NOUN VERB", [("NOUN", 0, 2), ("VERB", 2, 3)]),
        ("", []),
    ],
)
def test_segments(tags, expected):
    assert segments(tags.split()) == expected


@pytest.mark.parametrize("scheme", ["IOB2", "IOBES", "BILOU"])
@settings(deadline=None)
@given(tags=st.lists(TAG, max_size=12))
def test_entities_are_those_of_seqeval(tags, scheme):
    sequence = pytest.importorskip("seqeval.metrics.sequence_labeling")
    expected = [(kind, start, end + 1) for kind, start, end in sequence.get_entities(tags)]
    if scheme != "IOB2":
        # The same entities in a scheme that marks ends too.
        last, single = ("E", "S") if scheme == "IOBES" else ("L", "U")
        tags = ["O"] * len(tags)
        for kind, start, end in expected:
            inner = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 2), f"{last}-{kind}"]
            tags[start:end] = inner if end - start > 1 else [f"{single}-{kind}"]
    found = [one for one in segments(tags) if one[0] != "O"]
    assert found == expected


@each
@settings(deadline=None)
@given(
    pairs=st.lists(st.tuples(st.text("abc", min_size=1, max_size=3), TAG), min_size=1, max_size=10),
    rate=st.floats(0, 1),
    seed=st.integers(0, 99),
    as_text=st.booleans(),
)
def test_every_word_keeps_a_tag_and_entities_their_types(augmenter, pairs, rate, seed, as_text):
    words, tags = [word for word, _ in pairs], [tag for _, tag in pairs]
    row = {"text": " ".join(words), "tags": " ".join(tags)} if as_text else {"tokens": words, "tags": tags}
    learned = augmenter.learn([*ROWS, row], CARD)
    got = augmenter.augment(row, CARD, random.Random(seed), {"rate": rate}, learned)
    assert got == augmenter.augment(row, CARD, random.Random(seed), {"rate": rate}, learned)
    new_words = got["text"].split() if as_text else got["tokens"]
    new_tags = got["tags"].split() if as_text else got["tags"]
    assert len(new_words) == len(new_tags)
    assert [kind for kind, _, _ in segments(new_tags)] == [kind for kind, _, _ in segments(tags)]
    known = {pair for one in ROWS for pair in zip(one["tokens"], one["tags"], strict=True)} | set(pairs)
    if augmenter.name != "segment-shuffle":
        assert set(zip(new_words, new_tags, strict=True)) <= known
    else:
        assert new_tags == tags
        for _, start, end in segments(tags):
            assert Counter(new_words[start:end]) == Counter(words[start:end])


def test_words_are_drawn_as_often_as_their_tag_has_them():
    row = {"tokens": ["here"], "tags": ["B-LOC"]}
    drawn = Counter(one["tokens"][0] for one in many(LabelWiseReplacement(), row, rate=1.0, count=4000))
    assert set(drawn) == {"London", "Oslo", "Norway", "New"}
    assert all(count / 4000 == pytest.approx(0.25, abs=0.03) for count in drawn.values())
    kept = sum(one["tokens"] == ["here"] for one in many(LabelWiseReplacement(), row, rate=0.3, count=4000))
    assert kept / 4000 == pytest.approx(0.7, abs=0.03)


def test_a_mention_brings_its_own_tags():
    got = {(" ".join(one["tokens"]), " ".join(one["tags"])) for one in many(MentionReplacement(), ROWS[2], rate=0.5)}
    assert ("Ada Lovelace saw Oslo", "B-PER I-PER O B-LOC") in got
    persons = {("Ada Lovelace", "B-PER I-PER"), ("Alan", "B-PER")}
    places = {("London", "B-LOC"), ("Oslo", "B-LOC"), ("Norway", "B-LOC"), ("New York", "B-LOC I-LOC")}
    assert got == {(f"{a} saw {b}", f"{x} O {y}") for a, x in persons for b, y in places}


def test_entities_beside_their_like_stay():
    row = {"tokens": ["Oslo", "London", "and", "Alan"], "tags": ["I-LOC", "B-LOC", "O", "I-PER"]}
    assert {tuple(one["tokens"][:2]) for one in many(MentionReplacement(), row, rate=1.0)} == {("Oslo", "London")}


def test_segments_are_shuffled_by_themselves():
    got = {" ".join(one["tokens"]) for one in many(SegmentShuffle(), ROWS[0], rate=0.5)}
    assert got == {f"{a} {b} London ." for a in ("Ada Lovelace", "Lovelace Ada") for b in ("lived in", "in lived")}


@each
@pytest.mark.parametrize(
    "row",
    [
        {"tokens": ["a", "b"], "tags": ["O"]},
        {"tokens": ["a", "b"]},
        {"tokens": ["a", ""], "tags": ["O", "O"]},
        {"text": "only a text"},
        {"tokens": None, "tags": None},
    ],
)
def test_rows_without_a_tag_for_each_word_stay(augmenter, row):
    assert all(one == row for one in many(augmenter, row, rate=1.0, count=20))


def test_tags_that_are_numbers():
    row = {"tokens": ["a", "b", "c"], "tags": [1, 1, 2]}
    learned = LabelWiseReplacement().learn([row], CARD)
    got = {
        tuple(LabelWiseReplacement().augment(row, CARD, random.Random(seed), {"rate": 1.0}, learned)["tokens"])
        for seed in range(100)
    }
    assert got == {(a, b, "c") for a in "ab" for b in "ab"}


@each
def test_tasks_without_tagged_words_are_refused(augmenter, make_target, tmp_path):
    assert augmenter.check(make_target(tmp_path, columns=CARD.columns)) is None
    assert augmenter.check(make_target(tmp_path)).reason.startswith(f"{augmenter.name}: needs columns of the kinds")
