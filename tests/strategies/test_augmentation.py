from __future__ import annotations

import math
import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.contracts import Column, TaskCard
from autoft.strategies.augmentation import (
    CharacterNoise,
    RandomDeletion,
    RandomInsertion,
    RandomReplacement,
    RandomSwap,
    Vocabulary,
    split_words,
)

AUGMENTERS = [RandomInsertion(), RandomDeletion(), RandomSwap(), RandomReplacement(), CharacterNoise()]
CARD = TaskCard(
    name="pairs",
    summary="two texts, one class",
    columns=(
        Column("text", "text", "first"),
        Column("pair", "text", "second", required=False),
        Column("picture", "image", "not a text"),
        Column("summary", "text", "what to write", target=True),
        Column("label", "label", "the class", target=True),
    ),
    metrics=("accuracy",),
    architecture="sequence-classification",
)
LATIN = st.text("abcdefgh", min_size=1, max_size=8)
UNSPACED = st.sampled_from([*"我们今天去看电影ねこはい猫", "ส", "วั", "ดี"])
WORD = st.one_of(LATIN, UNSPACED)
SENTENCE = st.lists(WORD, min_size=1, max_size=25).map(" ".join)
NATURAL = st.lists(st.one_of(WORD, st.sampled_from([", ", ". ", "! ", " (", ") ", " «", "» ", " "])), max_size=40).map(
    "".join
)
RATE = st.floats(0.0, 1.0)
VOCABULARY = Vocabulary.of(["one two three", "one four", "我 们", "five five five one"])

each = pytest.mark.parametrize("augmenter", AUGMENTERS, ids=lambda augmenter: augmenter.name)


def squeezed(text: str) -> str:
    return "".join(text.split())


def is_subsequence(short, long) -> bool:
    rest = iter(long)
    return all(item in rest for item in short)


# ── words and gaps


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, it's state-of-the-art!", ["Don't", "stop", "it's", "state-of-the-art"]),
        ("3.14 and 1,000 (about)", ["3.14", "and", "1,000", "about"]),
        ("#fun @you http://a.b/c?d=1 x", ["#fun", "@you", "http://a.b/c?d=1", "x"]),
        ("今天很好。", ["今", "天", "很", "好"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("été naïve Ünï", ["été", "naïve", "Ünï"]),
        ("good ❤️ day", ["good", "day"]),
        ("iPhone 15を買う", ["iPhone", "15", "を", "買", "う"]),
        ("  ... ", []),
        ("", []),
    ],
)
def test_split_words(text, words):
    assert split_words(text)[0] == words


@given(st.text(max_size=80))
def test_words_and_gaps_make_the_text(text):
    words, gaps = split_words(text)
    assert len(gaps) == len(words) + 1
    assert "".join(gap + word for gap, word in zip(gaps, [*words, ""], strict=True)) == text
    assert all(words)


# ── all augmenters


@each
@settings(deadline=None)
@given(text=st.one_of(st.text(max_size=60), NATURAL), rate=RATE, seed=st.integers(0, 99))
def test_never_empty_and_repeatable(augmenter, text, rate, seed):
    row = {"text": text}
    once = augmenter.augment(row, CARD, random.Random(seed), {"rate": rate}, VOCABULARY)["text"]
    again = augmenter.augment(row, CARD, random.Random(seed), {"rate": rate}, VOCABULARY)["text"]
    assert once == again
    assert bool(once.strip()) == bool(text.strip())
    assert row == {"text": text}


@each
def test_rewrites_the_texts_of_the_input_only(augmenter):
    text = "several quite ordinary words following another"
    row = {"text": text, "pair": text, "picture": text, "summary": text, "label": "several quite", "other": text}
    got = augmenter.augment(row, CARD, random.Random(0), {"rate": 0.9}, VOCABULARY)
    assert {role for role in row if got[role] != row[role]} == {"text", "pair"}
    assert set(got) == set(row)


@each
@pytest.mark.parametrize("value", [None, "", 3])
def test_leaves_what_is_no_text(augmenter, value):
    row = {"text": "some text here", "pair": value}
    assert augmenter.augment(row, CARD, random.Random(0), {"rate": 0.3}, None)["pair"] == value
    assert "pair" not in augmenter.augment({"text": "some"}, CARD, random.Random(0), {"rate": 0.3}, None)


@each
def test_works_without_having_learned(augmenter):
    got = augmenter.augment({"text": "alpha beta gamma delta"}, CARD, random.Random(1), {"rate": 0.5})["text"]
    assert got != "alpha beta gamma delta"


@pytest.mark.parametrize("augmenter", [RandomDeletion(), RandomReplacement(), CharacterNoise()], ids=lambda a: a.name)
@settings(deadline=None)
@given(text=NATURAL, seed=st.integers(0, 9))
def test_rate_zero_changes_nothing(augmenter, text, seed):
    assert augmenter.rewrite(text, random.Random(seed), 0.0, VOCABULARY) == text


# ── each by itself


@settings(deadline=None)
@given(text=NATURAL, rate=RATE, seed=st.integers(0, 99))
def test_deletion_leaves_a_subsequence(text, rate, seed):
    got = RandomDeletion().rewrite(text, random.Random(seed), rate)
    assert is_subsequence(split_words(got)[0], split_words(text)[0])
    assert is_subsequence(squeezed(got), squeezed(text))


@pytest.mark.parametrize(
    ("text", "kept", "expected"),
    [
        ("the cat, sat down.", [1, 0, 1, 1], "the, sat down."),
        ("the cat sat down.", [0, 1, 1, 1], "cat sat down."),
        ("the cat sat down.", [1, 1, 1, 0], "the cat sat."),
        ("the (cat) sat", [1, 0, 1], "the () sat"),
        ("今天 很好。", [1, 0, 1, 1], "今 很好。"),
        ("foo我bar", [1, 0, 1], "foo bar"),
        ("a b c", [0, 0, 1], "c"),
        ("a b c", [1, 0, 0], "a"),
    ],
)
def test_deletion_keeps_the_punctuation(text, kept, expected):
    class Scripted(random.Random):
        def random(self):
            return float(kept[next(position)])

    position = iter(range(len(kept)))
    assert RandomDeletion().rewrite(text, Scripted(), 0.5) == expected


def test_deletion_takes_its_share():
    text = " ".join(["word"] * 20_000)
    left = split_words(RandomDeletion().rewrite(text, random.Random(0), 0.1))[0]
    assert len(left) == pytest.approx(18_000, abs=5 * math.sqrt(20_000 * 0.09))


def test_deletion_leaves_one_word():
    assert RandomDeletion().rewrite("one two three", random.Random(0), 1.0) in {"one", "two", "three"}


@settings(deadline=None)
@given(text=SENTENCE, rate=RATE, seed=st.integers(0, 99))
def test_swap_permutes_the_words(text, rate, seed):
    got = RandomSwap().rewrite(text, random.Random(seed), rate)
    assert Counter(split_words(got)[0]) == Counter(split_words(text)[0])
    assert Counter(squeezed(got)) == Counter(squeezed(text))


def test_swap_exchanges_two_words_and_keeps_the_gaps():
    got = RandomSwap().rewrite("alpha, beta: gamma!", random.Random(3), 0.1)
    words, gaps = split_words(got)
    assert gaps == ["", ", ", ": ", "!"]
    assert sum(a != b for a, b in zip(words, ["alpha", "beta", "gamma"], strict=True)) == 2
    assert RandomSwap().rewrite("alone!", random.Random(0), 0.3) == "alone!"


@settings(deadline=None)
@given(text=SENTENCE, rate=RATE, seed=st.integers(0, 99))
def test_insertion_gives_a_supersequence(text, rate, seed):
    before = split_words(text)[0]
    after = split_words(RandomInsertion().rewrite(text, random.Random(seed), rate, VOCABULARY))[0]
    assert is_subsequence(before, after)
    # EDA's number of changes: n = max(1, rate x words).
    assert len(after) == len(before) + max(1, int(rate * len(before)))
    assert set(after) - set(before) <= set(VOCABULARY.words)


def test_insertion_in_front_of_the_final_point_and_without_spaces_in_chinese():
    chinese = Vocabulary.of(["好"])
    seen = {RandomInsertion().rewrite("今天。", random.Random(seed), 0.1, chinese) for seed in range(40)}
    assert seen == {"好今天。", "今好天。", "今天好。"}
    latin = Vocabulary.of(["x"])
    seen = {RandomInsertion().rewrite("a b.", random.Random(seed), 0.1, latin) for seed in range(40)}
    assert seen == {"x a b.", "a x b.", "a b x."}
    seen = {RandomInsertion().rewrite("今天", random.Random(seed), 0.1, latin) for seed in range(40)}
    assert seen == {"x 今天", "今 x 天", "今天 x"}


@settings(deadline=None)
@given(text=NATURAL, rate=RATE, seed=st.integers(0, 99))
def test_replacement_keeps_the_number_of_words(text, rate, seed):
    before = split_words(text)[0]
    after = split_words(RandomReplacement().rewrite(text, random.Random(seed), rate, VOCABULARY))[0]
    assert len(after) == len(before)
    assert set(after) - set(before) <= set(VOCABULARY.words)


@settings(deadline=None)
@given(text=NATURAL, rate=RATE, seed=st.integers(0, 99))
def test_noise_keeps_digits_gaps_and_short_words(text, rate, seed):
    got = CharacterNoise().rewrite(f"{text} no 1234", random.Random(seed), rate)
    assert got.endswith(" no 1234")
    assert split_words(got)[1] == split_words(f"{text} no 1234")[1] or any(
        len(run) > 1 and not run.isascii() for run in text.split()
    )


def test_noise_keeps_the_ends_of_words_and_makes_one_error_a_letter():
    seen = {CharacterNoise().rewrite("word", random.Random(seed), 1.0) for seed in range(300)}
    assert all(got[0] == "w" and got[-1] == "d" for got in seen)
    assert {"wrod", "wd"} <= seen
    typed = {got[1] for got in seen if len(got) == 4 and got[2] == "r"}
    assert typed <= set("ikplo")  # around o on a QWERTY keyboard: i p above, k l below
    assert "WROD" in {CharacterNoise().rewrite("WORD", random.Random(seed), 1.0) for seed in range(300)}


def test_noise_takes_its_share():
    text = " ".join(["abcdefghij"] * 4000)
    got = CharacterNoise().rewrite(text, random.Random(0), 0.05).split()
    untouched = sum(word == "abcdefghij" for word in got) / 4000
    # Eight inner letters, each left alone with probability .95; swaps take up a second letter each.
    assert untouched == pytest.approx(0.95**8, abs=0.03)


def test_noise_in_chinese():
    seen = {CharacterNoise().rewrite("今天。", random.Random(seed), 0.5) for seed in range(200)}
    assert seen == {"今天。", "天今。", "今。", "天。"}


# ── the vocabulary


def test_learn_counts_the_input_texts_only():
    rows = [{"text": "a a b", "pair": "c", "summary": "zzz", "label": "yyy"}, {"text": "a", "pair": None}]
    learned = RandomInsertion().learn(rows, CARD)
    assert dict(zip(learned.words, [3, 4, 5], strict=True)) == dict(
        zip(("a", "b", "c"), learned.by_frequency, strict=True)
    )
    drawn = Counter(learned.draw(random.Random(seed)) for seed in range(3000))
    assert drawn["a"] / 3000 == pytest.approx(3 / 5, abs=0.04)
    assert RandomDeletion().learn(rows, CARD) is None


def test_idf_is_that_of_sklearn():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    texts = ["one two two", "one three", "four one five", "two five"]
    vectorizer = text.TfidfVectorizer(smooth_idf=False, norm=None, token_pattern=r"\S+").fit(texts)
    expected = dict(zip(vectorizer.get_feature_names_out(), vectorizer.idf_ - 1, strict=True))  # sklearn adds 1
    assert Vocabulary.of(texts).idf == pytest.approx(expected)


def test_chances_follow_uda():
    """min(p (C - TF-IDF) / Z, 1) with Z the mean of C - TF-IDF, worked out by hand."""
    vocabulary = Vocabulary.of(["the cat", "the dog", "the the fox", "cat"])
    words = ["the", "cat", "fox", "the"]
    tfidf = [2 / 4 * math.log(4 / 3), 1 / 4 * math.log(2), 1 / 4 * math.log(4), 2 / 4 * math.log(4 / 3)]
    slack = [max(tfidf) - value for value in tfidf]
    expected = [0.2 * value / (sum(slack) / 4) for value in slack]
    chances = vocabulary.replacement_chances(words, 0.2)
    assert chances == pytest.approx(expected)
    assert sum(chances) / 4 == pytest.approx(0.2)
    assert chances[2] == 0
    assert vocabulary.replacement_chances(["new", "newer"], 0.2) == [0.2, 0.2]


def test_replacement_spares_keywords_and_draws_none():
    texts = ["the film the film keyword"] + ["the film was the film"] * 60 + [f"rare{i} the" for i in range(9)]
    learned = RandomReplacement().learn([{"text": text} for text in texts], CARD)
    scores = {"was": 60 * (1 / 5) * math.log(70 / 60)}  # the word that sums up most TF-IDF is drawn least
    drawn = Counter(learned.draw_uninformative(random.Random(seed)) for seed in range(4000))
    assert scores["was"] > 0
    sentence = "the film keyword the film"
    kept = [RandomReplacement().rewrite(sentence, random.Random(seed), 0.3, learned) for seed in range(200)]
    assert all("keyword" in text for text in kept)
    assert sum(text != sentence for text in kept) > 100
    least = min(learned.words, key=lambda word: drawn[word])
    sums = dict.fromkeys(learned.words, 0.0)
    for text in texts:
        words = text.split()
        for word in words:
            sums[word] += math.log(70 / sum(word in other.split() for other in texts)) / len(words)
    assert least == max(sums, key=sums.__getitem__)
    assert drawn[least] == 0


def test_a_hundred_thousand_rows_are_learned_in_seconds():
    rng = random.Random(0)
    words = [f"w{i}" for i in range(30_000)]
    rows = [{"text": " ".join(rng.choices(words, k=12))} for _ in range(100_000)]
    start = time.process_time()
    learned = RandomReplacement().learn(rows, CARD)
    assert time.process_time() - start < 8
    assert len(learned.words) == 30_000


def test_the_vocabulary_is_bounded():
    rows = [{"text": f"every{i} own{i}"} for i in range(60_000)]
    assert len(RandomInsertion().learn(rows, CARD).words) == 50_000


# ── check


@each
@pytest.mark.parametrize("kind", ["tokens", "tags", "span"])
def test_check_names_the_column_that_would_become_wrong(augmenter, kind, make_target, tmp_path):
    columns = (Column("text", "text", ""), Column("answer", kind, "", target=True))
    target = make_target(tmp_path, name="my-task", columns=columns)
    assert augmenter.check(target).reason == (
        f"{augmenter.name}: would make the column 'answer' of my-task wrong, "
        f"as its kind {kind!r} refers to words or places of the text"
    )


@each
def test_check(augmenter, make_target, tmp_path):
    assert augmenter.check(make_target(tmp_path)) is None
    images = make_target(
        tmp_path, name="pictures", columns=(Column("image", "image", ""), Column("label", "label", ""))
    )
    assert augmenter.check(images).reason == (
        f"{augmenter.name}: rewrites columns of kind text, and pictures reads none"
    )
    for setting in augmenter.published:
        assert all(augmenter.space[name].contains(value) for name, value in setting.items())
