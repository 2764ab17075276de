from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr, softmax

from autoft.distillation import VOCABULARY, attention_loss, distillation_loss, matching_loss


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 4), classes=st.integers(1, 6))
def test_logits_of_few_classes_are_compared_by_their_squared_difference(seed, rows, classes):
    rng = np.random.default_rng(seed)
    said, taught = rng.normal(size=(2, rows, classes))
    found = distillation_loss(torch.tensor(said), torch.tensor(taught))
    assert found.item() == pytest.approx(np.mean((said - taught) ** 2), rel=1e-5)


def test_logits_of_words_are_compared_by_what_they_stand_for():
    rng = np.random.default_rng(0)
    said, taught = rng.normal(size=(2, 2, 3, VOCABULARY))
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    away = rel_entr(softmax(taught, -1), np.exp(log_softmax(said, -1))).sum(-1)
    found = distillation_loss(torch.tensor(said), torch.tensor(taught), torch.tensor(mask))
    assert found.item() == pytest.approx((away * mask).sum() / mask.sum(), rel=1e-5)


def test_padding_counts_nowhere():
    said, taught = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    taught[mask == 0] = 1e6
    assert distillation_loss(said, taught, mask).item() == pytest.approx(1.0)
    assert matching_loss(said, taught, mask).item() == pytest.approx(1.0)


def test_hidden_states_are_compared_in_parts_of_the_teachers_size():
    rng = np.random.default_rng(1)
    said, taught = rng.normal(size=(2, 2, 3, 4))
    expected = ((said - taught) ** 2).sum() / (taught**2).sum()
    assert matching_loss(torch.tensor(said), torch.tensor(taught)).item() == pytest.approx(expected, rel=1e-5)
    scaled = matching_loss(torch.tensor(1000 * said), torch.tensor(1000 * taught))
    assert scaled.item() == pytest.approx(expected, rel=1e-5)


def test_attention_maps_are_compared_where_a_token_attends():
    rng = np.random.default_rng(2)
    said, taught = softmax(rng.normal(size=(2, 2, 3, 4, 4)), axis=-1)
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    away = [
        np.mean([np.sum((said[b, h, q] - taught[b, h, q]) ** 2) for h in range(3)])
        for b in range(2)
        for q in range(4)
        if mask[b, q]
    ]
    found = attention_loss(torch.tensor(said), torch.tensor(taught), torch.tensor(mask))
    assert found.item() == pytest.approx(np.mean(away), rel=1e-5)
    assert attention_loss(torch.tensor(said), torch.tensor(said)).item() == 0
