from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.losses import LOSSES, balanced_weights, binary_loss, classification_loss, effective_weights

COUNTS = (5, 20, 75)


def drawn(rows: int, classes: int, seed: int):
    import torch

    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, classes)) * 3
    labels = rng.integers(classes, size=rows)
    return torch.tensor(logits), torch.tensor(labels), logits, labels


def probabilities(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 10_000), st.floats(0, 0.4), st.booleans(), st.sampled_from(LOSSES))
def test_classification_loss_is_what_a_loop_over_rows_makes_it(rows, seed, smoothing, balanced, loss):
    given_logits, given_labels, logits, labels = drawn(rows, 3, seed)
    params = {
        "train.loss": loss,
        "train.label_smoothing": smoothing,
        "train.class_weights": "balanced" if balanced else "none",
    }
    total = 0.0
    for row, label in zip(probabilities(logits), labels, strict=True):
        weights = np.ones(3)
        if balanced:
            weights *= [100 / (3 * count) for count in COUNTS]
        if loss == "class-balanced":
            effective = np.array([(1 - 0.999) / (1 - 0.999**count) for count in COUNTS])
            weights *= effective * 3 / effective.sum()
        weights /= np.average(weights, weights=COUNTS)
        # As torch's cross_entropy: the smoothed part of a class counts with that class's weight.
        goal = np.full(3, smoothing / 3)
        goal[label] += 1 - smoothing
        entropy = -(goal * weights * np.log(row)).sum()
        total += entropy * ((1 - row[label]) ** 2 if loss == "focal" else 1)
    found = float(classification_loss(given_logits, given_labels, params, COUNTS))
    assert found == pytest.approx(total / rows, rel=1e-5)
    # A batch that memory is too short for is computed in parts, down to single rows.
    parts = [
        float(classification_loss(given_logits[i : i + 1], given_labels[i : i + 1], params, COUNTS))
        for i in range(rows)
    ]
    assert np.mean(parts) == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_positions_to_ignore_do_not_count(loss):
    import torch

    logits, labels, *_ = drawn(8, 3, 0)
    params = {"train.loss": loss, "train.label_smoothing": 0.1}
    marked = labels.clone()
    marked[::2] = -100
    assert float(classification_loss(logits, marked, params, COUNTS)) == pytest.approx(
        float(classification_loss(logits[1::2], labels[1::2], params, COUNTS)), rel=1e-6
    )
    assert not torch.isnan(classification_loss(logits, labels, params, COUNTS))


def test_with_gamma_0_the_focal_loss_is_cross_entropy():
    logits, labels, *_ = drawn(8, 3, 1)
    focal = classification_loss(logits, labels, {"train.loss": "focal"}, COUNTS, gamma=0.0)
    assert float(focal) == pytest.approx(float(classification_loss(logits, labels, {}, COUNTS)), rel=1e-9)


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    rows = np.repeat([0, 1, 2], COUNTS)
    assert balanced_weights(COUNTS) == pytest.approx(
        list(compute_class_weight("balanced", classes=np.arange(3), y=rows))
    )


def test_effective_numbers_go_from_no_weights_to_inverse_counts():
    assert effective_weights(COUNTS, beta=0.0) == pytest.approx([1.0, 1.0, 1.0])
    inverse = np.array([1 / count for count in COUNTS])
    assert effective_weights(COUNTS, beta=1 - 1e-9) == pytest.approx(list(inverse * 3 / inverse.sum()), rel=1e-3)
    assert all(map(math.isfinite, effective_weights((0, 3))))


@settings(deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from(LOSSES), st.floats(0, 0.4))
def test_binary_loss_is_what_a_loop_over_labels_makes_it(seed, balanced, loss, smoothing):
    import torch

    rng = np.random.default_rng(seed)
    logits, labels, counts, rows = rng.normal(size=(6, 3)) * 2, rng.integers(2, size=(6, 3)), (5, 20, 60), 100
    params = {
        "train.loss": loss,
        "train.class_weights": "balanced" if balanced else "none",
        "train.label_smoothing": smoothing,
    }
    losses = []
    for i, j in np.ndindex(6, 3):
        yes, p = labels[i, j], 1 / (1 + math.exp(-logits[i, j]))
        goal = yes * (1 - smoothing) + smoothing / 2
        positive = (rows - counts[j]) / counts[j] if balanced else 1.0
        value = -(positive * goal * math.log(p) + (1 - goal) * math.log(1 - p))
        if loss == "focal":
            value *= (1 - (p if yes else 1 - p)) ** 2
        if loss == "class-balanced":
            pair = np.array([1 / (1 - 0.999**count) for count in (rows - counts[j], counts[j])])
            value *= (pair * 2 / pair.sum())[yes]
        losses.append(value)
    found = binary_loss(torch.tensor(logits), torch.tensor(labels, dtype=torch.float64), params, counts, rows)
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-5)


def test_an_unknown_loss_is_told():
    logits, labels, *_ = drawn(2, 3, 0)
    with pytest.raises(ValueError, match="one of cross-entropy, focal, class-balanced, given 'hinge'"):
        classification_loss(logits, labels, {"train.loss": "hinge"}, COUNTS)
