"""ROUGE against rouge_score called directly, against a brute force of its definition, and against Lin's example."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from autoft_generation.words import tokenizer
from autoft_summarization.metrics import METRICS, manner
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from autoft.contracts import TaskContext

BY_NAME = {metric.name: metric for metric in METRICS}
WORDS = ["the", "Police", "killed", "kills", "gunmen", "gunman,", "in", "a", "town", "it's", "3.5", "-"]
sentence = st.lists(st.sampled_from(WORDS), max_size=7).map(" ".join)
text = st.lists(sentence, max_size=3).map("\n".join)
rows = st.lists(st.tuples(text, st.lists(text, min_size=1, max_size=3)), min_size=1, max_size=4)


def context(tokens="ascii", **options):
    return TaskContext(facts={"rouge_tokenizer": tokens}, options=options, params={}, max_length=8)


def scored(name, given_rows, here):
    return BY_NAME[name].score([{"text": said} for said, _ in given_rows], [true for _, true in given_rows], here)


@pytest.mark.parametrize("name", list(BY_NAME))
@settings(max_examples=200, deadline=None)
@given(given_rows=rows, stemmer=st.booleans())
def test_rouge_is_the_mean_of_what_rouge_score_says_of_the_nearest_reference(name, given_rows, stemmer):
    scorer = RougeScorer([name], use_stemmer=stemmer)
    best = [max(scorer.score(true, said)[name].fmeasure for true in references) for said, references in given_rows]
    assert scored(name, given_rows, context(stemmer=stemmer)) == pytest.approx(sum(best) / len(best), abs=1e-12)


def test_rouge_l_of_the_example_in_the_paper():
    # Lin 2004, section 3.1: S1 "police killed the gunman", S2 and S3 have 3 and 2 words of it in order, of 4 each.
    rows_of_paper = [("police kill the gunman", ["police killed the gunman"])]
    assert scored("rougeL", rows_of_paper, context()) == pytest.approx(3 / 4)
    assert scored("rougeL", [("the gunman kill police", rows_of_paper[0][1])], context()) == pytest.approx(2 / 4)


characters = st.text(alphabet="猫狗在家里。", max_size=6)


def f_measure(hits, said, true):
    return 2 * hits / (said + true) if hits else 0.0


@settings(max_examples=100, deadline=None)
@given(said=characters, true=characters)
def test_rouge_of_a_script_without_spaces_counts_characters(said, true):
    first, second = ([c for c in part if c != "。"] for part in (said, true))
    here = context("unicode")

    def in_order(count):
        return any(list(pick) in [list(p) for p in combinations(second, count)] for pick in combinations(first, count))

    longest = max(count for count in range(len(first) + 1) if in_order(count))
    assert scored("rougeL", [(said, [true])], here) == pytest.approx(f_measure(longest, len(first), len(second)))
    common = sum(min(first.count(c), second.count(c)) for c in set(first))
    assert scored("rouge1", [(said, [true])], here) == pytest.approx(f_measure(common, len(first), len(second)))


def test_rouge_of_whole_summaries_compares_sentences_whether_lines_or_not():
    said, true = "The dog barked. The cat slept.", "The cat slept. The dog barked."
    expected = RougeScorer(["rougeLsum"]).score(true.replace(". ", ".\n"), said.replace(". ", ".\n"))["rougeLsum"]
    assert scored("rougeLsum", [(said, [true])], context()) == pytest.approx(expected.fmeasure)
    assert expected.fmeasure == 1 > scored("rougeL", [(said, [true])], context())


@settings(max_examples=60, deadline=None)
@given(given_rows=rows, draw=st.randoms(use_true_random=False))
def test_summed_statistics_give_the_figure_of_the_resampled_rows(given_rows, draw):
    chosen = [draw.randrange(len(given_rows)) for _ in given_rows]
    counts = np.bincount(chosen, minlength=len(given_rows)).astype(float)[None]
    for name, metric in BY_NAME.items():
        predictions = [{"text": said} for said, _ in given_rows]
        statistics = metric.statistics(predictions, [true for _, true in given_rows], context())
        expected = scored(name, [given_rows[i] for i in chosen], context())
        assert metric.aggregate(counts @ statistics) == pytest.approx([expected], abs=1e-12)


def test_no_rows_have_no_figure_and_a_single_reference_may_be_a_text():
    assert math.isnan(BY_NAME["rouge1"].score([], [], context()))
    assert BY_NAME["rouge1"].score([{"text": "a b"}], ["a b"], context()) == 1.0


def test_the_manner_of_summaries():
    said = ["the cat sat. It sat", "dog"]
    found = manner(said, ["The cat sat down", "a cat"], tokenizer("ascii"))
    # Words that the document lacks: it, dog. Pairs: (sat, it), (it, sat).
    assert (found.words, found.sentences) == (3.0, 1.5)
    assert found.novel == (2 / 6, 2 / 4)
    assert manner(["dog"], ["dog"], tokenizer("ascii")).novel == (0.0, None)
