"""Each metric against seqeval called directly, and its bootstrap statistics against resampled rows."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from autoft_token_classification.details import report
from autoft_token_classification.metrics import METRICS
from autoft_token_classification.schemes import read_entities
from autoft_token_classification.sentences import Sentence
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES
from sklearn import metrics as sklearn_metrics

from autoft.contracts import TaskContext

BY_NAME = {metric.name: metric for metric in METRICS}
SCHEMES = {"iob1": ("BI", IOB1), "iob2": ("BI", IOB2), "iobes": ("BIES", IOBES), "bilou": ("BILU", BILOU)}


def context(scheme, types=("LOC", "PER")):
    return TaskContext(facts={"scheme": scheme, "types": list(types)}, options={}, params={}, max_length=8)


def answers(tags, scheme, strict=False):
    return [
        {
            "tags": row,
            "scores": [0.5] * len(row),
            "entities": [{**entity._asdict(), "score": 0.5} for entity in read_entities(row, scheme, strict=strict)],
        }
        for row in tags
    ]


def direct(name, true, said, scheme, strict):
    """The figure by seqeval."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "token_accuracy":
            return seqeval.accuracy_score(true, said)
        function = getattr(seqeval, f"{name.split('_')[1]}_score")
        how = {"mode": "strict", "scheme": SCHEMES[scheme][1]} if strict else {}
        if name.endswith("macro"):
            # The mean over no types at all is NaN there, and 0 here.
            return np.nan_to_num(function(true, said, average="macro", **how))
        return function(true, said, **how)


@st.composite
def rows(draw, scheme):
    tags = ["O", "O", *(f"{prefix}-{kind}" for prefix in SCHEMES[scheme][0] for kind in ("PER", "LOC", "x-y"))]
    pairs = st.lists(st.tuples(st.sampled_from(tags), st.sampled_from(tags)), min_size=1, max_size=8)
    drawn = draw(st.lists(pairs, min_size=1, max_size=6))
    true = [[true for true, _ in row] for row in drawn]
    # Answers that are often right, or hardly any entity would be.
    said = [[true if draw(st.booleans()) else other for true, other in row] for row in drawn]
    return true, said


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_figures_are_those_of_seqeval(scheme, strict, data):
    if scheme == "bilou" and not strict:
        # seqeval's default mode knows no L- and U-: they are read as the same sequence in IOBES.
        true, said = data.draw(rows("iobes"))
        written = [
            [[tag.replace("E-", "L-").replace("S-", "U-") for tag in row] for row in part] for part in (true, said)
        ]
        given_true, given_said = (answers(part, scheme) for part in written)
    else:
        true, said = data.draw(rows(scheme))
        given_true, given_said = (answers(part, scheme, strict) for part in (true, said))
    for name, metric in BY_NAME.items():
        found = metric.score(given_said, given_true, context(scheme))
        assert found == pytest.approx(direct(name, true, said, scheme, strict), abs=1e-12), name

    # The report's figures for each type.
    sentences = [Sentence(tuple(row)) for row in true]
    table, *_ = report(sentences, given_said, given_true, context(scheme, ("LOC", "PER", "x-y")))
    how = {"mode": "strict", "scheme": SCHEMES[scheme][1]} if strict else {}
    entities = {
        entity["label"] for part in (given_true, given_said) for answer in part for entity in answer["entities"]
    }
    # seqeval cannot report on no entities at all.
    expected = seqeval.classification_report(true, said, output_dict=True, zero_division=0, **how) if entities else {}
    assert entities <= {row[0] for row in table.rows}
    for name, precision, recall, f1, support, _ in table.rows:
        wanted = expected.get(name, {"precision": 0, "recall": 0, "f1-score": 0, "support": 0})
        found = {"precision": precision, "recall": recall, "f1-score": f1, "support": support}
        assert found == pytest.approx(wanted, abs=1e-12), name


@settings(max_examples=200, deadline=None)
@given(data=st.data(), draw=st.randoms(use_true_random=False))
def test_summed_statistics_give_the_figure_of_the_resampled_rows(data, draw):
    true, said = data.draw(rows("iob2"))
    chosen = [draw.randrange(len(true)) for _ in true]
    counts = np.bincount(chosen, minlength=len(true)).astype(float)[None]
    for name, metric in BY_NAME.items():
        statistics = metric.statistics(answers(said, "iob2"), answers(true, "iob2"), context("iob2"))
        (found,) = metric.aggregate(counts @ statistics)
        expected = direct(name, [true[i] for i in chosen], [said[i] for i in chosen], "iob2", False)
        assert found == pytest.approx(expected, abs=1e-9), name


@settings(max_examples=200, deadline=None)
@given(pairs=st.lists(st.tuples(*[st.sampled_from(["DET", "NOUN", "O"])] * 2), min_size=1, max_size=12))
def test_plain_tags_are_scored_word_by_word(pairs):
    true, said = [true for true, _ in pairs], [said for _, said in pairs]
    here = context("plain", ("DET", "NOUN", "O"))
    found = {name: metric.score([{"tags": said}], [{"tags": true}], here) for name, metric in BY_NAME.items()}
    accuracy = sklearn_metrics.accuracy_score(true, said)
    for name in ("entity_f1", "entity_precision", "entity_recall", "token_accuracy"):
        assert found[name] == pytest.approx(accuracy), name
    assert found["entity_f1_macro"] == pytest.approx(
        sklearn_metrics.f1_score(true, said, average="macro", zero_division=0.0)
    )


def test_nothing_to_find_and_no_words_are_no_error():
    empty = [{"tags": [], "entities": []}]
    assert BY_NAME["entity_f1"].score(empty, empty, context("iob2")) == 0.0
    assert BY_NAME["entity_f1_macro"].score(empty, empty, context("iob2")) == 0.0
    assert math.isnan(BY_NAME["token_accuracy"].score(empty, empty, context("iob2")))
