from __future__ import annotations

import itertools
import math
import random
import re
import time
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autoft.contracts import Column, TaskCard
from autoft.space import Float
from autoft.strategies.augmentation import (
    CharacterNoise,
    RandomDeletion,
    RandomInsertion,
    RandomReplacement,
    RandomSwap,
    Vocabulary,
    WordAugmenter,
    split_words,
)
from autoft.strategies.reordering import Crop, SentenceOrder, WordOrder
from autoft.strategies.rewording import FILLERS, FillerWords

AUGMENTERS = [
    RandomInsertion(),
    RandomDeletion(),
    RandomSwap(),
    RandomReplacement(),
    CharacterNoise(),
    WordOrder(),
    SentenceOrder(),
    Crop(),
    FillerWords(),
]
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


def settings_of(augmenter, share):
    """Every choice of an augmenter's parameters, numbers at a share of their range."""
    axes = []
    for domain in augmenter.space.values():
        number = isinstance(domain, Float)
        axes.append([domain.low + share * (domain.high - domain.low)] if number else domain.choices)
    return [dict(zip(augmenter.space, values, strict=True)) for values in itertools.product(*axes)]


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
    for params in settings_of(augmenter, rate):
        once = augmenter.augment(row, CARD, random.Random(seed), params, VOCABULARY)["text"]
        again = augmenter.augment(row, CARD, random.Random(seed), params, VOCABULARY)["text"]
        assert once == again
        assert bool(once.strip()) == bool(text.strip())
        assert row == {"text": text}


@each
def test_rewrites_the_texts_of_the_input_only(augmenter):
    text = "the several quite ordinary words. And following another"
    row = {"text": text, "pair": text, "picture": text, "summary": text, "label": "several quite", "other": text}
    (params, *_) = settings_of(augmenter, 0.0 if augmenter.name == "crop" else 1.0)
    # Of two sentences, a shuffle may keep the order.
    got = next(
        changed
        for seed in range(50)
        if all(
            (changed := augmenter.augment(row, CARD, random.Random(seed), params, VOCABULARY))[role] != text
            for role in ("text", "pair")
        )
    )
    assert {role for role in row if got[role] != row[role]} == {"text", "pair"}
    assert set(got) == set(row)


@each
@pytest.mark.parametrize("value", [None, "", 3])
def test_leaves_what_is_no_text(augmenter, value):
    row = {"text": "some text here", "pair": value}
    (params, *_) = settings_of(augmenter, 0.5)
    assert augmenter.augment(row, CARD, random.Random(0), params, None)["pair"] == value
    assert "pair" not in augmenter.augment({"text": "some"}, CARD, random.Random(0), params, None)


@each
def test_works_without_having_learned(augmenter):
    text = "the alpha beta gamma delta. And epsilon"
    (params, *_) = settings_of(augmenter, 0.5)
    got = {augmenter.augment({"text": text}, CARD, random.Random(seed), params)["text"] for seed in range(20)}
    assert got - {text}


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


def test_scanning_confuses_what_looks_alike():
    seen = {
        CharacterNoise().change("corn 10", random.Random(seed), {"rate": 0.5, "kind": "ocr"}, None)
        for seed in range(400)
    }
    assert {"com 10", "corn l0", "corn 1O"} <= seen
    # c-e, o-u or o-0, rn-m, 1-l-I-7 and 0-O-o-D, either way.
    assert all(re.fullmatch("[ce][ou0](rn|m) [1lI7][0OoD]", text) for text in seen)


def test_case_noise_changes_case_only():
    for seed in range(50):
        got = CharacterNoise().change("Ein Wort, zwei!", random.Random(seed), {"rate": 0.5, "kind": "case"}, None)
        assert got.lower() == "ein wort, zwei!"
    assert CharacterNoise().change("aB", random.Random(0), {"rate": 1.0, "kind": "case"}, None) == "Ab"


@settings(deadline=None)
@given(text=NATURAL, seed=st.integers(0, 99))
def test_edits_take_letters_from_the_word_itself(text, seed):
    got = CharacterNoise().change(text, random.Random(seed), {"rate": 0.5, "kind": "edit"}, None)
    assert set(got) <= set(text)


def test_edits_are_the_four_of_karpukhin():
    seen = {
        CharacterNoise().change("abc", random.Random(seed), {"rate": 0.4, "kind": "edit"}, None) for seed in range(2000)
    }
    omitted, swapped = {"bc", "ac", "ab"}, {"bac", "acb"}
    inserted = {"abc"[: i + 1] + new + "abc"[i + 1 :] for i in range(3) for new in "abc"}
    replaced = {"abc"[:i] + new + "abc"[i + 1 :] for i in range(3) for new in "abc"}
    assert omitted | swapped | inserted | replaced <= seen


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("This is the best of them", "en"),
        ("Das ist nicht von mir", "de"),
        ("今天去看电影", "zh"),
        ("猫はかわいい映画", None),
        ("C'est un bon film", None),
        ("", None),
    ],
)
def test_fillers_are_those_of_the_language(text, language):
    got = {FillerWords().rewrite(text, random.Random(seed), 0.05) for seed in range(60)}
    if language is None:
        assert got == {text}
        return
    gap = "" if language == "zh" else " "
    words = split_words(text)[0]
    expected = {
        gap.join([*words[:at], filler, *words[at:]]) for at in range(len(words) + 1) for filler in FILLERS[language]
    }
    assert got <= expected
    assert len(got) > 5


# ── tags and spans

TAGS = TaskCard(
    name="tagged",
    summary="words and tags",
    columns=(
        Column("text", "text", "", required=False),
        Column("words", "tokens", "", required=False),
        Column("tags", "tags", "", target=True, required=False),
        Column("spans", "span", "", target=True, required=False, of="text"),
    ),
    metrics=("accuracy",),
    architecture="token-classification",
)
ANSWERS = TaskCard(
    name="answers",
    summary="a place in a text",
    columns=(
        Column("question", "text", ""),
        Column("context", "text", ""),
        Column("answers", "span", "", target=True, of="context"),
    ),
    metrics=("accuracy",),
    architecture="question-answering",
)
TEXTUAL = [augmenter for augmenter in AUGMENTERS if augmenter.by_piece]


@settings(deadline=None)
@given(
    words=st.lists(st.tuples(LATIN, st.sampled_from(["O", "B-PER", "I-PER"])), min_size=1, max_size=12),
    rate=RATE,
    seed=st.integers(0, 99),
    form=st.sampled_from(["lists", "texts", "text"]),
)
def test_only_words_outside_of_entities_get_noise(words, rate, seed, form):
    tokens, tags = [word for word, _ in words], [tag for _, tag in words]
    row = {"words": tokens, "tags": tags}
    if form != "lists":
        row = {"words" if form == "texts" else "text": " ".join(tokens), "tags": " ".join(tags)}
    for params in settings_of(CharacterNoise(), rate):
        got = CharacterNoise().augment(row, TAGS, random.Random(seed), params)
        assert got["tags"] == row["tags"]
        new = got["words"] if form == "lists" else next(got[role] for role in row if role != "tags").split()
        assert len(new) == len(tokens)
        assert all(one == other for one, other, tag in zip(new, tokens, tags, strict=True) if tag != "O")


def test_tags_that_do_not_fit_leave_the_row_alone():
    row = {"text": "several ordinary words", "tags": ["O"]}
    assert CharacterNoise().augment(row, TAGS, random.Random(0), {"rate": 0.9, "kind": "typing"}) == row


@pytest.mark.parametrize("augmenter", TEXTUAL, ids=lambda augmenter: augmenter.name)
@settings(deadline=None)
@given(text=st.one_of(NATURAL, st.text(max_size=60)).filter(bool), data=st.data(), rate=RATE, seed=st.integers(0, 99))
def test_the_answer_stays_in_its_place(augmenter, text, data, rate, seed):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    answer = text[start:end]
    assume(answer.strip())
    row = {"question": "what is the question?", "context": text, "answers": {"text": [answer], "answer_start": [start]}}
    for params in settings_of(augmenter, rate):
        got = augmenter.augment(row, ANSWERS, random.Random(seed), params, VOCABULARY)
        (place,) = got["answers"]["answer_start"]
        assert got["answers"]["text"] == [answer]
        assert got["context"][place : place + len(answer)] == answer
        entity = {"spans": [{"start": start, "end": end, "label": "X"}], "text": text}
        got = augmenter.augment(entity, TAGS, random.Random(seed), params, VOCABULARY)
        (span,) = got["spans"]
        assert (got["text"][span["start"] : span["end"]], span["label"]) == (answer, "X")


def test_words_around_an_answer_come_and_go():
    text = "The lamp burned whale oil until 1869, and then paraffin."
    row = {"question": "What?", "context": text, "answers": {"text": ["whale oil"], "answer_start": [16]}}
    seen = {
        RandomDeletion().augment(row, ANSWERS, random.Random(seed), {"rate": 0.3})["context"] for seed in range(200)
    }
    assert len(seen) > 50
    assert all("whale oil" in one for one in seen)
    assert {"lamp", "1869", "paraffin", "burned"} <= {
        word for word in split_words(text)[0] if any(word not in one for one in seen)
    }


@pytest.mark.parametrize("augmenter", [SentenceOrder(), Crop()], ids=lambda augmenter: augmenter.name)
def test_what_moves_whole_texts_refuses_answers(augmenter, make_target, tmp_path):
    assert "answers" in augmenter.check(make_target(tmp_path, columns=ANSWERS.columns)).reason
    assert RandomDeletion().check(make_target(tmp_path, columns=ANSWERS.columns)) is None


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
    if isinstance(augmenter, WordAugmenter) and kind != "span":
        # One word for one word: tags stay right.
        assert augmenter.check(target) is None
        return
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
        f"{augmenter.name}: rewrites columns of kind {', '.join(sorted(augmenter.rewrites))}, and pictures reads none"
    )
    for setting in augmenter.published:
        assert all(augmenter.space[name].contains(value) for name, value in setting.items())
