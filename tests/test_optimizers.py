from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autoft.hardware import Hardware
from autoft.optimizers import OPTIMIZERS, Group, make_optimizer, refused_optimizers

CPU = Hardware("cpu", 2, 8 * 2**30, (), "test", False, "Linux x86_64")
HERE = [name for name in OPTIMIZERS if "8bit" not in name]


def one_weight(value):
    import torch

    return torch.nn.Parameter(torch.tensor(value, dtype=torch.float32))


def test_lion_takes_the_steps_of_the_paper():
    import torch

    rng, rate, decay = np.random.default_rng(0), 1e-2, 0.1
    start = rng.normal(size=(3, 2)).astype(np.float32)
    weight = one_weight(start)
    optimizer = make_optimizer("lion", [Group([weight], decay)], rate)
    theirs, momentum = start.astype(np.float64), np.zeros((3, 2))
    # A third of AdamW's rate, three times its decay.
    lower, stronger = rate / 3, decay * 3
    for _ in range(6):
        gradient = rng.normal(size=(3, 2))
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
        # Chen et al. 2023, algorithm 2, with its betas 0.9 and 0.99.
        update = np.sign(0.9 * momentum + 0.1 * gradient)
        theirs = theirs - lower * (update + stronger * theirs)
        momentum = 0.99 * momentum + 0.01 * gradient
    np.testing.assert_allclose(weight.detach().numpy(), theirs, rtol=1e-5)


def test_sgd_moves_by_momentum():
    import torch

    weight = one_weight([1.0, 2.0])
    optimizer = make_optimizer("sgd", [Group([weight], 0.0)], 1e-3)
    for _ in range(2):
        weight.grad = torch.tensor([1.0, -1.0])
        optimizer.step()
    # A hundred times AdamW's rate; the second step is 1 + 0.9 times the first.
    np.testing.assert_allclose(weight.detach().numpy(), [1 - 0.29, 2 + 0.29], rtol=1e-6)


def test_muon_gets_the_matrices_of_layers_and_adamw_the_rest():
    import torch

    matrix, vector = one_weight(np.eye(4) * 2), one_weight([1.0, 1.0])
    other = one_weight(np.eye(4) * 2)
    optimizer = make_optimizer(
        "muon", [Group([matrix], 0.0, matrices=True), Group([other], 0.0), Group([vector], 0.0)], 1e-2
    )
    gradient = torch.tensor(np.random.default_rng(0).normal(size=(4, 4)), dtype=torch.float32)
    for parameter in (matrix, other, vector):
        parameter.grad = gradient.clone() if parameter.ndim == 2 else torch.tensor([3.0, -3.0])
    optimizer.step()
    optimizer.zero_grad()
    # Adam's first step is the rate, by the gradient's sign.
    np.testing.assert_allclose(vector.detach().numpy(), [0.99, 1.01], rtol=1e-5)
    np.testing.assert_allclose((2 * np.eye(4) - other.detach().numpy()), 1e-2 * np.sign(gradient.numpy()), rtol=1e-4)
    # Muon's is near an orthogonal matrix, of 0.2 sqrt(4) times the rate, which is 5 times AdamW's.
    moved = np.linalg.svd(2 * np.eye(4) - matrix.detach().numpy(), compute_uv=False) / (5e-2 * 0.2 * 2)
    assert ((moved > 0.6) & (moved < 1.3)).all()
    assert matrix.grad is None


def test_decay_is_the_same_pull_on_the_matrices_that_learn_faster():
    """A step takes rate times decay of a weight; with no gradient that is all it does."""
    import torch

    matrix, other = one_weight(np.eye(4) * 2), one_weight(np.eye(4) * 2)
    optimizer = make_optimizer("muon", [Group([matrix], 0.1, matrices=True), Group([other], 0.1)], 1e-2)
    matrix.grad, other.grad = torch.zeros(4, 4), torch.zeros(4, 4)
    optimizer.step()
    for weight in (matrix, other):
        np.testing.assert_allclose(weight.detach().numpy(), np.eye(4) * 2 * (1 - 1e-2 * 0.1), rtol=1e-6)


@pytest.mark.parametrize("name", HERE)
def test_each_group_keeps_its_factor_and_a_schedule_reaches_all(name):
    import torch

    slow, fast = one_weight(np.ones((2, 2))), one_weight(np.ones((2, 2)))
    groups = [Group([fast], 0.0, matrices=True), Group([slow], 0.0, factor=0.5), Group([], 0.0)]
    optimizer = make_optimizer(name, groups, 1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    rate = 1e-3 * OPTIMIZERS[name].learning_rate
    faster = rate * OPTIMIZERS[name].matrices
    assert sorted(scheduler.get_last_lr()) == pytest.approx([rate / 2, faster])
    before = fast.detach().clone()
    for parameter in (slow, fast):
        parameter.grad = torch.ones(2, 2)
    optimizer.step()
    scheduler.step()
    assert sorted(scheduler.get_last_lr()) == pytest.approx([rate / 4, faster / 2])
    assert (fast < before).all()


@pytest.mark.parametrize("name", HERE)
def test_each_finds_the_least_square(name):
    import torch

    torch.manual_seed(0)
    inputs = torch.randn(64, 4)
    goal = inputs @ torch.randn(4, 3)
    weight = one_weight(np.zeros((4, 3)))
    optimizer = make_optimizer(name, [Group([weight], 0.0, matrices=True)], 2e-3 if name == "sgd" else 2e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss = ((inputs @ weight - goal) ** 2).mean()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.1 * float((goal**2).mean())


def test_optimisers_in_8_bits_are_refused_without_a_gpu():
    refused = refused_optimizers(CPU)
    assert set(refused) == {"adamw-8bit", "paged-adamw-8bit"}
    assert all(reason.startswith(f"{name}: ") and "use adamw" in reason for name, reason in refused.items())
    assert refused_optimizers(replace(CPU, device="cuda")) == {}


def test_an_unknown_optimiser_is_told():
    with pytest.raises(ValueError, match="one of adamw, adafactor"):
        make_optimizer("adam", [], 1e-3)
