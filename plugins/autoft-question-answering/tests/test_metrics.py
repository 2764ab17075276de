"""Each metric against the rules of the official evaluation, written down here a second time."""

from __future__ import annotations

import collections
import math
import re
import string
import unicodedata

import numpy as np
import pytest
from autoft_question_answering.metrics import METRICS, answer_tokens, best_threshold, normalized
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.contracts import TaskContext

BY_NAME = {metric.name: metric for metric in METRICS}
CONTEXT = TaskContext(facts={}, options={}, params={}, max_length=8)


class Official:
    """The evaluation of SQuAD 2.0 from its description: question by question, without arrays."""

    @staticmethod
    def clean(text):
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        text = re.sub(r"\b(a|an|the)\b", " ", text)
        return " ".join(text.split())

    @classmethod
    def f1(cls, gold, said):
        gold_words, said_words = cls.clean(gold).split(), cls.clean(said).split()
        if not gold_words or not said_words:
            return float(gold_words == said_words)
        common = collections.Counter(gold_words) & collections.Counter(said_words)
        same = sum(common.values())
        if same == 0:
            return 0.0
        precision, recall = same / len(said_words), same / len(gold_words)
        return 2 * precision * recall / (precision + recall)

    @classmethod
    def raw(cls, references, said):
        golds = [text for text in references if cls.clean(text)] or [""]
        exact = max(float(cls.clean(gold) == cls.clean(said)) for gold in golds)
        return exact, max(cls.f1(gold, said) for gold in golds)

    @classmethod
    def all_figures(cls, references, said):
        raw = [cls.raw(gold, text) for gold, text in zip(references, said, strict=True)]
        has = [figures for figures, gold in zip(raw, references, strict=True) if gold]
        none = [figures for figures, gold in zip(raw, references, strict=True) if not gold]

        def mean(values):
            return sum(values) / len(values) if values else math.nan

        return {
            "exact_match": mean([exact for exact, _ in raw]),
            "qa_f1": mean([f1 for _, f1 in raw]),
            "has_answer_exact": mean([exact for exact, _ in has]),
            "has_answer_f1": mean([f1 for _, f1 in has]),
            "no_answer_accuracy": mean([exact for exact, _ in none]),
        }

    @classmethod
    def best_f1(cls, references, said, no_answer):
        score = best = sum(not gold for gold in references)
        for i in sorted(range(len(said)), key=no_answer.__getitem__):
            if references[i]:
                score += cls.raw(references[i], said[i])[1]
            elif said[i]:
                score -= 1
            best = max(best, score)
        return best / len(references)


def spaced(text):
    """Say that no character is of a script without spaces, by the names that Unicode gives."""
    blocks = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "TIBETAN", "MYANMAR", "KHMER", "TAI THAM", "HALFWIDTH KATA")
    names = [unicodedata.name(c, "") for c in text]
    return not any(name.startswith(blocks) or "KATAKANA" in name or "IDEOGRAPH" in name for name in names)


words = st.sampled_from(
    [
        "the",
        "a",
        "An",
        "Paris",
        "paris,",
        "U.S.",
        "1998",
        "São",
        "Größe",
        "e\u0301te\u0301",
        "'the'",
        "-",
        "“so”",
        "ﬁn",
        "İ",
    ]
)
phrases = st.lists(words, max_size=5).map(" ".join)
known = st.characters(exclude_categories=("Cs", "Cn", "Co"))
texts = st.one_of(phrases, phrases, st.text(known, max_size=12).filter(spaced))
questions = st.lists(
    st.tuples(st.lists(texts, max_size=3), texts, st.integers(0, 10**6)),
    min_size=1,
    max_size=8,
    unique_by=lambda q: q[2],
)


def split(rows):
    """Return references, answers and predictions."""
    references = [gold for gold, _, _ in rows]
    said = [text for _, text, _ in rows]
    predictions = [
        {"answer": text, "no_answer": number / 10**6, "candidates": [{"answer": text}]} for _, text, number in rows
    ]
    return references, said, predictions


@settings(max_examples=200, deadline=None)
@given(rows=questions)
def test_figures_are_those_of_the_official_rules(rows):
    references, said, predictions = split(rows)
    for name, expected in Official.all_figures(references, said).items():
        found = BY_NAME[name].score(predictions, references, CONTEXT)
        assert found == pytest.approx(expected, abs=1e-12, nan_ok=True), name


@settings(max_examples=200, deadline=None)
@given(rows=questions)
def test_the_best_f1_is_that_of_the_official_rules(rows):
    references, said, predictions = split(rows)
    found = BY_NAME["best_qa_f1"].score(predictions, references, CONTEXT)
    expected = Official.best_f1(references, said, [p["no_answer"] for p in predictions])
    assert found == pytest.approx(math.nan if all(references) else expected, abs=1e-12, nan_ok=True)


@settings(max_examples=200, deadline=None)
@given(gold=st.lists(texts, min_size=1, max_size=3), said=texts)
def test_squad_1_gives_the_same_where_references_are_more_than_articles(gold, said):
    gold = [text for text in gold if Official.clean(text)]
    if not gold:
        return

    def f1(one, other):
        # As SQuAD 1.1 has it: no rule for empty texts.
        one, other = Official.clean(one).split(), Official.clean(other).split()
        same = sum((collections.Counter(one) & collections.Counter(other)).values())
        return 2 * same / (len(one) + len(other)) if same else 0.0

    prediction = [{"answer": said}]
    exact = max(Official.clean(text) == Official.clean(said) for text in gold)
    assert BY_NAME["exact_match"].score(prediction, [gold], CONTEXT) == float(exact)
    expected = max(f1(said, text) for text in gold)
    assert BY_NAME["qa_f1"].score(prediction, [gold], CONTEXT) == pytest.approx(expected, abs=1e-12)


han = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(gold=han, said=han)
def test_chinese_is_compared_by_characters(gold, said):
    same = sum((collections.Counter(gold) & collections.Counter(said)).values())
    found = BY_NAME["qa_f1"].score([{"answer": f"《{said}》。"}], [[gold]], CONTEXT)
    assert found == pytest.approx(2 * same / (len(gold) + len(said)))
    assert BY_NAME["exact_match"].score([{"answer": f"《{said}》。"}], [[gold]], CONTEXT) == float(gold == said)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2008年8月", ("2008", "年", "8", "月")),
        ("在 Beijing 市", ("在", "beijing", "市")),
        ("さくらんぼ、", ("さ", "く", "ら", "ん", "ぼ")),
        ("ที่นี่", ("ที่", "นี่")),
        ("서울 특별시", ("서울", "특별시")),
        ("“the end”", ("“", "end”")),
        ("the A-team", ("ateam",)),
    ],
)
def test_tokens_are_words_or_characters_by_script(text, expected):
    assert answer_tokens(text) == expected


@settings(max_examples=200, deadline=None)
@given(text=st.text(known, max_size=20))
def test_tokens_hold_the_normalized_text_and_nothing_else(text):
    assert "".join(answer_tokens(text)) == normalized(text).replace(" ", "")


@settings(max_examples=200, deadline=None)
@given(rows=questions, draw=st.randoms(use_true_random=False))
def test_resamples_give_the_figure_of_the_drawn_rows(rows, draw):
    references, _, predictions = split(rows)
    chosen = [draw.randrange(len(rows)) for _ in rows]
    counts = np.bincount(chosen, minlength=len(rows)).astype(float)[None]
    drawn = [references[i] for i in chosen]
    for name, metric in BY_NAME.items():
        if name == "best_qa_f1" and (all(references) or all(drawn)):
            continue
        (found,) = metric.resampled(predictions, references, CONTEXT, counts)
        expected = metric.score([predictions[i] for i in chosen], drawn, CONTEXT)
        assert found == pytest.approx(expected, abs=1e-12, nan_ok=True), name


@settings(max_examples=200, deadline=None)
@given(rows=questions)
def test_the_threshold_is_the_best_of_all_that_there_are(rows):
    # Few different values, so that there are ties; texts of which nothing is left are judged by rules of their own.
    rows = [
        ([text for text in gold if Official.clean(text)], said, number // 250_000)
        for gold, said, number in rows
        if Official.clean(said)
    ]
    if not rows:
        return
    references, said, predictions = split(rows)

    def f1_at(threshold):
        given = ["" if p["no_answer"] > threshold else text for p, text in zip(predictions, said, strict=True)]
        return Official.all_figures(references, given)["qa_f1"]

    best = max(f1_at(threshold) for threshold in [-1.0, *(p["no_answer"] for p in predictions)])
    found = best_threshold(predictions, references)
    assert -1 <= found <= 1
    assert f1_at(found) == pytest.approx(best)


def test_a_refused_question_is_judged_by_its_best_span_for_the_threshold():
    predictions = [
        {"answer": "", "no_answer": 0.6, "candidates": [{"answer": "Brig"}]},
        {"answer": "", "no_answer": 0.9, "candidates": [{"answer": "Anna"}]},
    ]
    references = [["Brig"], []]
    assert BY_NAME["qa_f1"].score(predictions, references, CONTEXT) == 0.5
    assert BY_NAME["best_qa_f1"].score(predictions, references, CONTEXT) == 1.0
    assert best_threshold(predictions, references) == pytest.approx(0.75)


def test_figures_over_no_rows_are_not_defined():
    assert math.isnan(BY_NAME["no_answer_accuracy"].score([{"answer": "x"}], [["x"]], CONTEXT))
    assert math.isnan(BY_NAME["has_answer_f1"].score([{"answer": "x"}], [[]], CONTEXT))
    assert math.isnan(BY_NAME["best_qa_f1"].score([{"answer": "x"}], [[]], CONTEXT)), "nothing says how sure it is"
