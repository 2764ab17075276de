"""Each metric against the reference library or a brute-force count, and its resamples against the drawn rows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from autoft_generation.metrics import METRICS, BitsPerByte, Chrf, Distinct, Perplexity, Rouge
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import CHRF

from autoft.contracts import TaskContext

CONTEXT = TaskContext(facts={}, options={}, params={}, max_length=8)
words = st.sampled_from(["the", "cat", "sat", "on", "mat", "Katze", "läuft", "猫", "a", "1,5", "end."])
texts = st.lists(words, max_size=9).map(" ".join)
answers = st.lists(texts.filter(bool), min_size=1, max_size=3)
cases = st.lists(st.tuples(texts, answers), min_size=1, max_size=7)
figures = st.lists(st.tuples(st.floats(-60, -0.01), st.integers(1, 40), st.integers(1, 99)), min_size=1, max_size=8)
MANY = settings(max_examples=200, deadline=None)


def said(rows):
    return [{"text": text} for text, _ in rows]


def streams(rows):
    most = max(len(refs) for _, refs in rows)
    return [[refs[i] if i < len(refs) else None for _, refs in rows] for i in range(most)]


def resample(metric, predictions, references, chosen):
    counts = np.bincount(chosen, minlength=len(references)).astype(float)[None]
    (found,) = metric.resampled(predictions, references, CONTEXT, counts)
    return found


def draw(random, rows):
    return [random.randrange(len(rows)) for _ in rows]


@MANY
@given(rows=cases, order=st.sampled_from([0, 2]), random=st.randoms(use_true_random=False))
def test_chrf_is_that_of_sacrebleu(rows, order, random):
    metric, library = Chrf(word_order=order), CHRF(word_order=order)
    expected = library.corpus_score([text for text, _ in rows], streams(rows)).score
    assert metric.score(said(rows), [refs for _, refs in rows], CONTEXT) == pytest.approx(expected)
    chosen = draw(random, rows)
    drawn = [rows[i] for i in chosen]
    expected = library.corpus_score([text for text, _ in drawn], streams(drawn)).score
    assert resample(metric, said(rows), [refs for _, refs in rows], chosen) == pytest.approx(expected)


@MANY
@given(
    rows=cases,
    kind=st.sampled_from(["rouge1", "rouge2", "rougeL", "rougeLsum"]),
    stem=st.booleans(),
    random=st.randoms(use_true_random=False),
)
def test_rouge_is_the_best_of_several_references_by_the_library(rows, kind, stem, random):
    metric, scorer = Rouge(kind, use_stemmer=stem), RougeScorer([kind], use_stemmer=stem)
    each = [max(scorer.score(ref, text)[kind].fmeasure for ref in refs) for text, refs in rows]
    refs = [refs for _, refs in rows]
    assert metric.score(said(rows), refs, CONTEXT) == pytest.approx(np.mean(each))
    chosen = draw(random, rows)
    assert resample(metric, said(rows), refs, chosen) == pytest.approx(np.mean([each[i] for i in chosen]))


@MANY
@given(rows=cases, n=st.integers(1, 3), random=st.randoms(use_true_random=False))
def test_distinct_counts_different_runs_of_words(rows, n, random):
    def brute(outputs):
        seen, total = [], 0
        for output in outputs:
            parts = output.split()
            total += len(parts)
            for start in range(len(parts)):
                run = parts[start : start + n]
                if len(run) == n and run not in seen:
                    seen.append(run)
        return len(seen) / total if total else float("nan")

    metric, outputs = Distinct(n), [text for text, _ in rows]
    assert metric.score(said(rows), outputs, CONTEXT) == pytest.approx(brute(outputs), nan_ok=True)
    chosen = draw(random, rows)
    expected = brute([outputs[i] for i in chosen])
    assert resample(metric, said(rows), outputs, chosen) == pytest.approx(expected, nan_ok=True)


@MANY
@given(rows=figures, random=st.randoms(use_true_random=False))
def test_likelihoods_are_taken_over_all_tokens_and_all_bytes(rows, random):
    predictions = [
        {"log_likelihood": total, "target_tokens": tokens, "target_bytes": size} for total, tokens, size in rows
    ]
    refs = ["x"] * len(rows)
    for chosen in (list(range(len(rows))), draw(random, rows)):
        drawn = [rows[i] for i in chosen]
        total = math.fsum(row[0] for row in drawn)
        # The geometric mean of the tokens' inverse probabilities, and bits as powers of two.
        perplexity = math.exp(-total) ** (1 / sum(row[1] for row in drawn)) if total > -700 else None
        bits = -math.log2(math.e) * total / sum(row[2] for row in drawn)
        some = [predictions[i] for i in chosen]
        if perplexity is not None:
            assert Perplexity().score(some, refs, CONTEXT) == pytest.approx(perplexity)
            assert resample(Perplexity(), predictions, refs, chosen) == pytest.approx(perplexity)
        assert BitsPerByte().score(some, refs, CONTEXT) == pytest.approx(bits)
        assert resample(BitsPerByte(), predictions, refs, chosen) == pytest.approx(bits)


def test_a_uniform_model_is_as_perplexed_as_it_has_tokens():
    rows = [
        {"log_likelihood": -count * math.log(512), "target_tokens": count, "target_bytes": count} for count in (3, 5)
    ]
    assert Perplexity().score(rows, ["x", "y"], CONTEXT) == pytest.approx(512)
    assert BitsPerByte().score(rows, ["x", "y"], CONTEXT) == pytest.approx(9)


def test_the_example_of_the_library_for_rouge():
    # From the readme of rouge-score.
    reference, output = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    found = Rouge("rouge1").score([{"text": output}], [reference], CONTEXT)
    assert found == pytest.approx(2 * 0.75 * (6 / 9) / (0.75 + 6 / 9))


@pytest.mark.parametrize(
    ("output", "reference", "words"),
    [
        ("我头疼", "我很头疼", ("w t p", "w h t p")),
        ("Головная боль", "боль", ("g b", "b")),
        # By the letters of ASCII alone these two were the same.
        ("fär", "für", ("fr", "fur")),
    ],
)
def test_rouge_of_other_scripts_counts_their_words(output, reference, words):
    context = replace(CONTEXT, facts={"rouge_tokenizer": "unicode"})
    found = Rouge("rougeL").score([{"text": output}], [reference], context)
    assert found == RougeScorer(["rougeL"]).score(*words)["rougeL"].fmeasure


def test_no_rows_have_no_figure():
    for metric in METRICS:
        assert math.isnan(metric.score([], [], CONTEXT)), metric.name


def test_metrics_for_others_take_names_of_their_own():
    names = [Perplexity("p").name, BitsPerByte("b").name, Chrf("c").name, Rouge("rouge2", "r").name, Distinct(3).name]
    assert names == ["p", "b", "c", "r", "distinct_3"]
    assert [metric.uses for metric in METRICS[:3]] == ["targets", "targets", "predictions"]
