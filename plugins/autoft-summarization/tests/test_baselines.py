from __future__ import annotations

import networkx
import numpy as np
import pytest
from autoft_generation.words import tokenizer
from autoft_summarization.baselines import Lead, TextRank, nearest_length
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

CUT = tokenizer("ascii")
STORY = "Cats sleep long. Dogs bark at cats. Dogs and cats sleep. Rain fell on Monday."


@pytest.mark.parametrize(
    ("target", "expected"),
    [(1, "Cats sleep long."), (7, "Cats sleep long.\nDogs bark at cats."), (99, STORY.replace(". ", ".\n"))],
)
def test_the_lead_is_about_as_long_as_asked(target, expected):
    assert Lead(target, CUT)([STORY]) == [expected]


def test_a_document_without_a_word_has_a_lead_and_a_central_sentence():
    assert Lead(5, CUT)(["?!"]) == ["?!"]
    assert TextRank(["?!"], 5, CUT)(["?!"]) == ["?!"]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(0, 60))
def test_no_other_number_of_sentences_is_nearer_to_the_length(lengths, target):
    order = list(range(len(lengths)))
    chosen = nearest_length(lengths, order, target)
    distances = [abs(sum(lengths[:count]) - target) for count in range(1, len(lengths) + 1)]
    assert chosen == order[: len(chosen)]
    assert abs(sum(lengths[i] for i in chosen) - target) == min(distances)


def test_ranks_are_those_of_a_random_walk_over_cosines():
    documents = [STORY, "Rain fell on dogs.", "It was a long Monday."]
    parts = STORY.replace(". ", ".\n").split("\n")
    vectors = TfidfVectorizer(token_pattern=r"[a-z0-9]+").fit(documents).transform(parts)
    cosines = cosine_similarity(vectors) * (1 - np.eye(4))
    expected = networkx.pagerank(networkx.from_numpy_array(cosines), alpha=0.85, tol=1e-12)
    found = TextRank(documents, 4, CUT).ranks(parts)
    np.testing.assert_allclose(found, [expected[i] for i in range(4)], atol=1e-7)


def test_the_central_sentences_come_in_the_order_of_the_document():
    found = TextRank([STORY], 8, CUT)
    first, second = sorted(np.argsort(-found.ranks(STORY.replace(". ", ".\n").split("\n")))[:2])
    parts = STORY.replace(". ", ".\n").split("\n")
    assert found([STORY]) == [f"{parts[first]}\n{parts[second]}"]
    assert "Rain" not in found([STORY])[0]


def test_an_unknown_sentence_is_no_obstacle():
    assert TextRank(["cats sleep"], 2, CUT)(["Zebras run. Cats sleep. Cats sleep well."]) == ["Cats sleep."]
