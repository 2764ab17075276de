"""Schemes against seqeval's strict mode, and Viterbi against all sequences that there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from autoft_token_classification.schemes import (
    Entity,
    Transitions,
    detect_scheme,
    order_tags,
    read_entities,
    split_tag,
    write_tags,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities

SEQEVAL = {"iob1": IOB1, "iob2": IOB2, "iobes": IOBES, "bilou": BILOU}
PREFIXES = {"iob1": "BI", "iob2": "BI", "iobes": "BIES", "bilou": "BILU"}


def tags_of(scheme):
    return ["O", *(f"{prefix}-{kind}" for kind in ("X", "Y") for prefix in PREFIXES[scheme])]


def strictly(tags, scheme):
    """What seqeval's strict mode finds, by its own class for the scheme."""
    (found,) = Entities([list(tags)], SEQEVAL[scheme]).entities
    return [Entity(entity.tag, entity.start, entity.end) for entity in found]


@st.composite
def entities(draw):
    count = draw(st.integers(0, 12))
    found, at = [], 0
    while at < count:
        at += draw(st.integers(0, 3))
        end = at + draw(st.integers(1, 3))
        if end <= count:
            found.append(Entity(draw(st.sampled_from(["PER", "creative-work"])), at, end))
        at = end
    return found, count


@settings(max_examples=200, deadline=None)
@given(sentence=entities(), scheme=st.sampled_from(sorted(SEQEVAL)), strict=st.booleans())
def test_tags_that_are_written_read_back_as_the_same_entities(sentence, scheme, strict):
    found, count = sentence
    tags = write_tags(found, count, scheme)
    assert len(tags) == count
    assert read_entities(tags, scheme, strict=strict) == found
    assert strictly(tags, scheme) == found


@pytest.mark.parametrize("scheme", sorted(SEQEVAL))
def test_legal_sequences_are_those_that_seqeval_reads_without_loss(scheme):
    labels = tags_of(scheme)
    transitions = Transitions.of(labels, scheme)
    for count in (1, 2, 3):
        for path in itertools.product(range(len(labels)), repeat=count):
            tags = [labels[i] for i in path]
            steps = [transitions.step[a, b] for a, b in itertools.pairwise(path)]
            legal = transitions.start[path[0]] + sum(steps) + transitions.end[path[-1]] == 0
            assert legal == (write_tags(strictly(tags, scheme), count, scheme) == tags), tags


@pytest.mark.parametrize("scheme", sorted(SEQEVAL))
def test_the_best_path_is_the_best_of_all_legal_sequences(scheme):
    rng = np.random.default_rng(0)
    labels = tags_of(scheme)
    transitions = Transitions.of(labels, scheme)
    for count in (1, 2, 3, 4, 3, 4):
        scores = np.log(rng.dirichlet(np.ones(len(labels)), count))
        best, expected = -np.inf, None
        for path in itertools.product(range(len(labels)), repeat=count):
            tags = [labels[i] for i in path]
            total = scores[np.arange(count), path].sum()
            if total > best and write_tags(strictly(tags, scheme), count, scheme) == tags:
                best, expected = total, list(path)
        assert transitions.best_path(scores).tolist() == expected
    assert transitions.best_path(np.zeros((0, len(labels)))).tolist() == []


def test_where_no_legal_sequence_exists_there_still_is_an_answer():
    transitions = Transitions.of(["I-X", "E-X"], "iobes")
    assert transitions.best_path(np.log([[0.4, 0.6]])).tolist() == [1]
    assert Transitions.of(["O", "X"], "io") is None


@settings(max_examples=200, deadline=None)
@given(tags=st.lists(st.sampled_from(["O", *(f"{p}-{k}" for p in "BIES" for k in ("A", "B-C"))]), max_size=9))
def test_illegal_tags_are_read_as_seqeval_reads_them(tags):
    expected = [Entity(kind, start, end + 1) for kind, start, end in get_entities(tags)]
    assert read_entities(tags, "iobes") == expected
    renamed = [tag.replace("E-", "L-").replace("S-", "U-") for tag in tags]
    assert read_entities(renamed, "bilou") == expected
    middle = [tag.replace("I-", "M-") for tag in tags]
    assert read_entities(middle, "iobes") == expected


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-PER I-PER O B-LOC", "iob2"),
        ("B-PER O B-LOC B-LOC", "iob2"),
        ("O I-PER I-PER O I-LOC B-LOC O", "iob1"),
        # An I- that begins an entity by mistake does not make other tags IOB1.
        ("O I-PER O B-LOC O B-PER", "iob2"),
        ("B-PER E-PER O S-LOC", "iobes"),
        ("B-PER M-PER E-PER O", "iobes"),
        ("B-PER I-PER L-PER O U-LOC", "bilou"),
        ("B I O B", "iob2"),
        ("O O O person person O", "io"),
        ("DET NOUN VERB PUNCT", "plain"),
        # O is a pronoun here, and not the most frequent tag.
        ("O V N V D N", "plain"),
        ("B-PER NOUN O", "plain"),
    ],
)
def test_the_scheme_is_seen_from_the_tags(tags, expected):
    assert detect_scheme([tags.split()]) == expected


@settings(max_examples=100, deadline=None)
@given(
    sentences=st.lists(entities(), min_size=1, max_size=4),
    scheme=st.sampled_from(sorted(SEQEVAL)),
)
def test_whatever_scheme_is_seen_it_reads_the_entities_that_were_written(sentences, scheme):
    # Few tags leave room for several schemes, as B-X alone; all of them have to mean the same.
    tagged = [write_tags(found, count, scheme) for found, count in sentences]
    seen = detect_scheme(tagged)
    if any(found for found, _ in sentences):
        assert [read_entities(tags, seen) for tags in tagged] == [found for found, _ in sentences]


def test_bare_types_are_read_as_runs():
    assert read_entities(["O", "city", "city", "river", "O"], "io") == [Entity("city", 1, 3), Entity("river", 3, 4)]
    assert read_entities(["NOUN", "VERB"], "plain") == [Entity("NOUN", 0, 1), Entity("VERB", 1, 2)]


def test_tags_have_prefix_and_type():
    assert split_tag("B-creative-work") == ("B", "creative-work")
    assert split_tag("U_PER") == ("S", "PER")
    assert split_tag("M") == ("I", "_")
    assert split_tag("NOUN") is None
    assert split_tag("") is None


def test_outputs_are_in_a_stable_order():
    tags = ["I-PER", "B-LOC", "O", "B-PER", "S-LOC", "E-PER"]
    assert order_tags(tags, "iobes") == ["O", "B-LOC", "S-LOC", "B-PER", "I-PER", "E-PER"]
    assert order_tags(["VERB", "NOUN", "O"], "plain") == ["NOUN", "O", "VERB"]
    assert order_tags(["river", "O", "city"], "io") == ["O", "city", "river"]
