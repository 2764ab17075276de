"""Each metric against its reference implementation, and its bootstrap statistics against resampled rows.

``cider.json`` holds the scores that ``Cider`` of pycocoevalcap 1.2, the code of the COCO caption evaluation, gives to the
200 random cases of :func:`cases`. Its wheel has 104 MB, so that it is no dependency. To make the file anew, in the
folder of the plugin::

    pip install --no-deps pycocoevalcap==1.2
    python tests/test_metrics.py
"""

from __future__ import annotations

import json
import math
import random
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
from autoft_image_captioning.cider import cider_d
from autoft_image_captioning.metrics import METRICS, caption_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from autoft.contracts import TaskContext

BY_NAME = {metric.name: metric for metric in METRICS}
CONTEXT = TaskContext(facts={}, options={}, params={}, max_length=32)
CIDER = Path(__file__).with_name("cider.json")
WORDS = [
    "a",
    "the",
    "two",
    "red",
    "blue",
    "dog",
    "cat",
    "man",
    "on",
    "of",
    "left",
    "square",
    "is",
    "sitting",
    "table",
    "grass",
    "running",
    "with",
    "small",
    "white",
]


def cases(count=200):
    """Captions and references with shared n-grams, of different length and number, the same on every machine."""
    for seed in range(count):
        rng = random.Random(seed)
        rows = rng.randint(1, 8)
        base = [[rng.choice(WORDS) for _ in range(rng.randint(1, 14))] for _ in range(rows)]

        def changed(words, rng=rng):
            kept = [rng.choice(WORDS) if rng.random() < 0.25 else word for word in words if rng.random() > 0.15]
            return kept or [rng.choice(WORDS)]

        references = [[changed(words) for _ in range(rng.randint(1, 5))] for words in base]
        captions = [changed(words) if rng.random() > 0.1 else [rng.choice(WORDS)] for words in base]
        yield captions, references


def test_cider_is_that_of_pycocoevalcap():
    expected = json.loads(CIDER.read_text())
    assert len(expected["rows"]) == 200
    assert sum(score > 0.5 for scores in expected["rows"] for score in scores) > 400, "the cases have something to find"
    for (captions, references), scores in zip(cases(), expected["rows"], strict=True):
        assert cider_d(captions, references) == pytest.approx(scores, abs=1e-9)
        found = BY_NAME["cider"].score(predicted(captions), joined(references), CONTEXT)
        assert found == pytest.approx(np.mean(scores), abs=1e-9)


def predicted(captions):
    return [{"caption": " ".join(words)} for words in captions]


def joined(references):
    return [[" ".join(words) for words in row] for row in references]


def sacre(scorer, predictions, references):
    columns = [list(column) for column in zip_longest(*references)]
    return scorer.corpus_score([prediction["caption"] for prediction in predictions], columns).score


def test_bleu_chrf_and_rouge_are_those_of_their_libraries():
    rouge = RougeScorer(["rougeL"])
    for captions, references in cases():
        said, true = predicted(captions), joined(references)
        # These words are lower case and without punctuation, so that all tokenizers agree on them.
        assert BY_NAME["caption_bleu"].score(said, true, CONTEXT) == pytest.approx(sacre(BLEU(), said, true))
        assert BY_NAME["caption_chrf"].score(said, true, CONTEXT) == pytest.approx(sacre(CHRF(), said, true))
        each = [
            max(rouge.score(text, row["caption"])["rougeL"].fmeasure for text in texts)
            for row, texts in zip(said, true, strict=True)
        ]
        assert BY_NAME["caption_rouge_l"].score(said, true, CONTEXT) == pytest.approx(np.mean(each))


caption = st.lists(st.sampled_from([*WORDS, "Dog.", "isn't", "é", "犬"]), min_size=1, max_size=8).map(" ".join)
rows_of = st.lists(st.tuples(caption, st.lists(caption, min_size=1, max_size=3)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(rows=rows_of, draw=st.randoms(use_true_random=False))
@pytest.mark.parametrize("name", ["cider", "caption_bleu", "caption_chrf", "caption_rouge_l"])
def test_resamples_give_the_figure_of_the_resampled_rows(name, rows, draw):
    metric = BY_NAME[name]
    chosen = [draw.randrange(len(rows)) for _ in rows]
    counts = np.bincount(chosen, minlength=len(rows)).astype(float)[None]
    said, true = [{"caption": text} for text, _ in rows], [texts for _, texts in rows]
    (found,) = metric.resampled(said, true, CONTEXT, counts)
    expected = metric.score([said[i] for i in chosen], [true[i] for i in chosen], CONTEXT)
    assert found == pytest.approx(expected, abs=1e-9)


def test_many_resamples_of_cider_are_scored_in_parts(monkeypatch):
    captions, references = list(cases())[7]
    counts = np.random.default_rng(0).multinomial(len(captions), np.full(len(captions), 1 / len(captions)), 9)
    whole = cider_d(captions, references, counts)
    monkeypatch.setattr("autoft_image_captioning.cider.CELLS", 1)
    assert cider_d(captions, references, counts) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # What edu.stanford.nlp.process.PTBTokenizer (CoreNLP 3.4.1, -lowerCase) makes of them, punctuation left out.
        (
            "A dog and a cat are watching the plants on the table..",
            "a dog and a cat are watching the plants on the table",
        ),
        ("Mr. Smith's dogs' bowls. They're full... aren't they?", "mr. smith 's dogs bowls they 're full are n't they"),
        ("don't can't won't cannot I'm we've he'd", "do n't ca n't wo n't can not i 'm we 've he 'd"),
        ("an A-frame / B-side, $5 & 100% of 3.5 items", "an a-frame / b-side $ 5 & 100 % of 3.5 items"),
        ("Japanese “congratulations” button", "japanese congratulations button"),
        ("woman’s boot", "woman 's boot"),
        ("u.s. virgin islands flag", "u.s. virgin islands flag"),
        ("st. pierre & miquelon flag", "st. pierre & miquelon flag"),
        ("white medium-small square", "white medium-small square"),
        # Not the tokenizer's: words of scripts without spaces.
        ("一只狗 on grass", "一 只 狗 on grass"),
    ],
)
def test_captions_are_cut_into_words_as_the_evaluation_of_coco_does(text, expected):
    assert " ".join(caption_tokens(text)) == expected


def test_case_and_full_stops_do_not_count():
    true = [["a dog on the grass with a man"], ["two cats sitting on a table"]]
    said = [{"caption": "A dog on the grass with a man."}, {"caption": "Two cats, sitting on a table"}]
    assert BY_NAME["cider"].score(said, true, CONTEXT) == pytest.approx(10)
    assert BY_NAME["caption_bleu"].score(said, true, CONTEXT) == pytest.approx(100)
    assert BY_NAME["caption_rouge_l"].score(said, true, CONTEXT) == pytest.approx(1)


def test_perplexity_is_the_exponential_of_the_mean_loss_of_a_token():
    metric = BY_NAME["caption_perplexity"]
    rows = [{"log_likelihood": math.log(0.5) * 3, "tokens": 3}, {"log_likelihood": math.log(0.125), "tokens": 1}]
    # Four tokens, of which the log2 sums up to -6.
    assert metric.score(rows, [[], []], CONTEXT) == pytest.approx(2**1.5)
    assert metric.uses == "targets"
    assert not metric.higher_is_better
    assert math.isnan(metric.score([{"caption": "a dog"}], [["a dog"]], CONTEXT))
    assert math.isfinite(metric.score([{"log_likelihood": -1e6, "tokens": 1}], [[]], CONTEXT))


def test_a_caption_without_words_scores_nothing():
    said, true = [{"caption": "..."}, {"caption": ""}], [["a dog"], ["a cat", "two cats"]]
    for name in ("cider", "caption_bleu", "caption_chrf", "caption_rouge_l"):
        assert BY_NAME[name].score(said, true, CONTEXT) == 0


if __name__ == "__main__":
    # Writes cider.json; see the top.
    from pycocoevalcap.cider.cider import Cider

    scores = []
    for captions, references in cases():
        true = dict(enumerate(joined(references)))
        said = {i: [" ".join(words)] for i, words in enumerate(captions)}
        scores.append([float(score) for score in Cider().compute_score(true, said)[1]])
    CIDER.write_text(json.dumps({"by": "pycocoevalcap 1.2, Cider", "rows": scores}))
