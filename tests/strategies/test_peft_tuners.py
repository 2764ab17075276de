"""Each method's merged weight is what its paper's formula gives of the trained numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from autoft.strategies.lora import Dora
from autoft.strategies.peft_tuners import (
    Adalora,
    Boft,
    Fourierft,
    Hra,
    Ia3,
    Loha,
    Lokr,
    Miss,
    Oft,
    Randlora,
    Shira,
    VbLora,
    Vera,
    _divisor,
)

TUNERS = [Adalora, Boft, Dora, Fourierft, Hra, Ia3, Loha, Lokr, Miss, Oft, Randlora, Shira, VbLora, Vera]
QUERY, FEED, DOWN = (
    "bert.encoder.layer.1.attention.self.query",
    "bert.encoder.layer.1.intermediate.dense",
    "bert.encoder.layer.1.output.dense",
)


def defaults(tuner):
    return {name: domain.default for name, domain in tuner.space.items()}


@pytest.fixture
def learned(make_checkpoint, make_target, load, train):
    """Attach a method to BERT, train it, merge it: weights before and after, the trained layers, by name."""

    def run(tuner, **changes):
        target = make_target(make_checkpoint("bert"))
        before = {name: value.clone() for name, value in load(target).state_dict().items()}
        model = tuner().attach(load(target), target, {**defaults(tuner), **changes})
        train(model, target, steps=4, lr=1e-2)
        layers = {name: model.get_base_model().get_submodule(name) for name in (QUERY, FEED, DOWN)}
        states = {
            name: {k: v.detach().clone() for k, v in layer.state_dict().items()} for name, layer in layers.items()
        }
        merged = tuner().merge(model, None, target).state_dict()
        for name in layers:
            moved = (merged[f"{name}.weight"] - before[f"{name}.weight"]).abs().max()
            assert moved > 1e-5, name
        return before, merged, layers, states

    return run


def check(before, merged, formula):
    for name in (QUERY, FEED, DOWN):
        expected = formula(name, before[f"{name}.weight"])
        torch.testing.assert_close(merged[f"{name}.weight"], expected, rtol=1e-4, atol=1e-5)


def test_dora(learned):
    before, merged, _, states = learned(Dora, rank=4, alpha=8)

    def formula(name, weight):
        state = states[name]
        direction = weight + 8 / 4 * state["lora_B.default.weight"] @ state["lora_A.default.weight"]
        length = state["lora_magnitude_vector.default.weight"]
        return length[:, None] * direction / direction.norm(dim=1, keepdim=True)

    check(before, merged, formula)


def test_ia3(learned):
    before, merged, _, states = learned(Ia3)

    def formula(name, weight):
        scale = states[name]["ia3_l.default"].flatten()
        # Attention's outputs are scaled, and what goes into the feed-forward layers.
        return weight * (scale[:, None] if name == QUERY else scale[None, :])

    check(before, merged, formula)


def test_vera(learned):
    before, merged, layers, states = learned(Vera, rank=64)

    def formula(name, weight):
        rows, columns = weight.shape
        layer, state = layers[name], states[name]
        a, b = layer.vera_A["default"][:, :columns], layer.vera_B["default"][:rows]
        return weight + (state["vera_lambda_b.default"][:, None] * b) @ (state["vera_lambda_d.default"][:, None] * a)

    check(before, merged, formula)


def test_loha(learned):
    before, merged, _, states = learned(Loha, rank=4, alpha=8)

    def formula(name, weight):
        s = states[name]
        first = s["hada_w1_a.default"] @ s["hada_w1_b.default"]
        return weight + 8 / 4 * first * (s["hada_w2_a.default"] @ s["hada_w2_b.default"])

    check(before, merged, formula)


def test_lokr(learned):
    before, merged, _, states = learned(Lokr, rank=4, alpha=8)

    def formula(name, weight):
        s = states[name]
        second = s["lokr_w2.default"] if "lokr_w2.default" in s else s["lokr_w2_a.default"] @ s["lokr_w2_b.default"]
        return weight + 8 / 4 * torch.from_numpy(np.kron(s["lokr_w1.default"].numpy(), second.numpy()))

    check(before, merged, formula)


def test_fourierft(learned):
    before, merged, layers, states = learned(Fourierft, frequencies=6, scaling=50.0)

    def formula(name, weight):
        rows, columns = weight.shape
        update = np.zeros((rows, columns))
        y, x = np.arange(rows)[:, None], np.arange(columns)[None, :]
        for (u, v), value in zip(
            layers[name].indices["default"].T.tolist(), states[name]["fourierft_spectrum.default"], strict=True
        ):
            update += float(value) * np.cos(2 * np.pi * (u * y / rows + v * x / columns))
        # BERT's smallest layers are 64 by 64 here.
        return weight + torch.from_numpy(50.0 * 64**2 / 768**2 * update / (rows * columns)).float()

    check(before, merged, formula)


def test_hra(learned):
    before, merged, _, states = learned(Hra, rank=4)

    def formula(name, weight):
        u = states[name]["hra_u.default"]
        for column in u.T:
            weight = weight @ (torch.eye(len(column)) - 2 * torch.outer(column, column) / column.dot(column))
        return weight

    check(before, merged, formula)


@pytest.mark.parametrize(("tuner", "slack"), [(Oft, 2e-3), (Boft, 1e-4)])
def test_rotations_keep_the_angles_between_neurons(tuner, slack, learned):
    # OFT's Neumann series of the inverse is cut off after five terms; BOFT trains the lengths too.
    before, merged, _, _ = learned(tuner, block_size=8)
    for name in (QUERY, FEED, DOWN):
        old, new = before[f"{name}.weight"], merged[f"{name}.weight"]
        old, new = (weight / weight.norm(dim=1, keepdim=True) for weight in (old, new))
        torch.testing.assert_close(new @ new.T, old @ old.T, rtol=0, atol=slack)


def test_miss(learned):
    before, merged, _, states = learned(Miss, rank=8)

    def formula(name, weight):
        shared = states[name]["miss_block.default"]
        # Input i takes the row i mod rank of the shared matrix.
        return weight + torch.stack([shared[i % 8] for i in range(weight.shape[1])], dim=1)

    check(before, merged, formula)


def test_shira_trains_as_many_weights_as_lora_would(learned):
    before, merged, _, _ = learned(Shira, rank=4)
    for name in (QUERY, FEED, DOWN):
        old, new = before[f"{name}.weight"], merged[f"{name}.weight"]
        changed = int((old != new).sum())
        assert 0.9 * 4 * sum(old.shape) <= changed <= 4 * sum(old.shape)


def test_randlora_updates_have_full_rank(learned):
    before, merged, _, _ = learned(Randlora, rank=16)
    for name in (QUERY, FEED):
        update = merged[f"{name}.weight"] - before[f"{name}.weight"]
        assert int(torch.linalg.matrix_rank(update)) > 0.9 * min(update.shape) > 16


def test_vb_lora(learned):
    before, merged, layers, states = learned(VbLora, rank=2, vectors=16, topk=2)

    def mixed(logits, bank):
        out = torch.zeros(*logits.shape[:-1], bank.shape[1])
        for place in np.ndindex(*logits.shape[:-1]):
            best = torch.topk(logits[place], 2)
            weights = torch.exp(best.values) / torch.exp(best.values).sum()
            out[place] = weights[0] * bank[best.indices[0]] + weights[1] * bank[best.indices[1]]
        return out

    def formula(name, weight):
        s, bank = states[name], layers[name].vblora_vector_bank["default"].detach()
        a = mixed(s["vblora_logits_A.default"], bank).reshape(2, -1)
        b = mixed(s["vblora_logits_B.default"], bank).transpose(1, 2).reshape(-1, 2)
        return weight + b @ a

    check(before, merged, formula)


@pytest.mark.parametrize(("tuner", "part"), [(VbLora, "logits"), (Fourierft, "spectrum")])
def test_what_the_papers_train_ten_times_as_fast_is_a_group(tuner, part, make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    model = tuner().attach(load(target), target, defaults(tuner))
    (group,) = tuner().parameter_groups(model, 2e-3, defaults(tuner))
    expected = {id(value) for name, value in model.named_parameters() if part in name}
    assert {id(value) for value in group["params"]} == expected
    assert group["lr"] == pytest.approx(2e-2)


# -------------------------------------------------------------------------------------------------- AdaLoRA


def adapted(target, load, **changes):
    return Adalora().attach(load(target), target, {**defaults(Adalora), "dropout": 0.0, **changes})


def ranks(model):
    return sum(int((value != 0).sum()) for name, value in model.named_parameters() if ".lora_E." in name)


def test_adalora_ends_with_the_rank_that_was_asked_for(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    model = adapted(target, load, rank=4)
    layers = sum(".lora_E." in name for name, _ in model.named_parameters())
    task, context = target.task, target.context
    batch = task.collate(task.encode(task.demo_rows(), context), context)
    weights = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    counts = []
    for step in range(40):
        task.loss(model, batch, context).backward()
        optimizer.step()
        Adalora().after_step(model, step, 40)
        optimizer.zero_grad()
        counts.append(ranks(model))
    # 1.5 times the rank through the first tenth; the rank itself in the last half; never more in between.
    assert counts[2] == 6 * layers
    assert set(counts[21:]) == {4 * layers}
    assert counts[4:21] == sorted(counts[4:21], reverse=True)
    per_layer = {int((value != 0).sum()) for name, value in model.named_parameters() if ".lora_E." in name}
    assert len(per_layer) > 1, "every layer has the same rank"
    before = {name: value.clone() for name, value in load(target).state_dict().items()}
    layer = model.get_base_model().get_submodule(QUERY)
    state = {name: value.detach().clone() for name, value in layer.state_dict().items()}
    merged = Adalora().merge(model, None, target).state_dict()
    update = state["lora_B.default"] @ (state["lora_E.default"] * state["lora_A.default"])
    expected = before[f"{QUERY}.weight"] + 32 / 6 * update  # alpha over the rank that it began with
    torch.testing.assert_close(merged[f"{QUERY}.weight"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parts", [1, 3])
def test_the_penalty_is_the_gradient_of_the_papers_regularizer_once_a_step(make_checkpoint, make_target, load, parts):
    target = make_target(make_checkpoint("bert"))
    task, context = target.task, target.context
    batch = task.collate(task.encode(task.demo_rows(), context), context)
    model = adapted(target, load).eval()
    factors = {name: value for name, value in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}
    torch.manual_seed(1)
    with torch.no_grad():
        for value in factors.values():
            value.normal_()
    for _ in range(parts):
        (task.loss(model, batch, context) / parts).backward()
    got = {name: value.grad.clone() for name, value in factors.items() if value.grad is not None}
    plain = {name: value.detach().clone().requires_grad_() for name, value in factors.items()}
    total = sum(
        torch.linalg.matrix_norm((v @ v.T if ".lora_A." in n else v.T @ v) - torch.eye(min(v.shape)), ord="fro")
        for n, v in plain.items()
    )
    (Adalora.orthogonality * total / len(plain)).backward()
    # The singular values start at zero, so the loss itself says nothing about the factors yet.
    assert len(got) > 10
    for name, value in got.items():
        torch.testing.assert_close(value, plain[name].grad, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ all


@pytest.mark.parametrize("tuner", TUNERS, ids=lambda tuner: tuner.name)
def test_the_first_published_setting_is_the_default(tuner):
    assert dict(tuner.published[0]) == defaults(tuner)


@pytest.mark.parametrize("tuner", TUNERS, ids=lambda tuner: tuner.name)
def test_trains_few_numbers_and_the_head(tuner, make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    model = tuner().attach(load(target), target, {**defaults(tuner), **({"rank": 4} if "rank" in tuner.space else {})})
    own = {name for name, value in model.named_parameters() if value.requires_grad and ".classifier." not in name}
    assert own
    assert any(value.requires_grad for name, value in model.named_parameters() if ".classifier." in name)
    base = {name for name, _ in load(target).named_parameters()}
    plain = {name.removeprefix("base_model.model.").replace(".base_layer", "") for name in own}
    assert not plain & base


@pytest.mark.parametrize("onto_base", [False, True])
@pytest.mark.parametrize("tuner", TUNERS, ids=lambda tuner: tuner.name)
def test_a_head_of_several_layers_comes_through_a_merge(
    tuner, onto_base, make_checkpoint, make_target, load, train, logits
):
    target = make_target(make_checkpoint("roberta"))
    base = load(target)
    original, names = type(base), set(base.state_dict())
    model = tuner().attach(base, target, defaults(tuner))
    train(model, target, steps=3, lr=2e-3)
    expected = logits(model, target)
    merged = tuner().merge(model, (lambda: load(target, seed=99)) if onto_base else None, target)
    assert type(merged) is original
    assert set(merged.state_dict()) == names
    assert not [name for name, module in merged.named_modules() if type(module).__module__.startswith("peft")]
    torch.testing.assert_close(logits(merged, target), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("wanted", range(1, 40))
def test_divisor_is_the_largest_that_fits(wanted):
    for numbers in ([12, 18], [7], [64, 96, 32]):
        fits = [size for size in range(1, wanted + 1) if all(number % size == 0 for number in numbers)]
        assert _divisor(wanted, numbers) == max(fits)
        assert math.gcd(*numbers) % _divisor(wanted, numbers) == 0
