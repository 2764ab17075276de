from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import parametrize

from autoft.distillation import distill
from autoft.errors import ModelError
from autoft.plans.efforts import TRAIN_SPACE
from autoft.strategies.linear_layers import body_layers
from autoft.strategies.movement_pruning import BEGIN, END, MovementPruning, sparsity_at
from autoft.strategies.scored_mask import ScoredMask

PARAMS = {"sparsity": 0.5, "pattern": "none", "epochs": 1, "learning_rate": 1e-3, "teaching": 0.5}


class Recorded:
    """A recovery that trains nothing and remembers what it was asked."""

    def __init__(self, teacher):
        self.teacher, self.asked = teacher, []

    def __call__(self, student, target, **settings):
        self.asked.append((student, settings))


class Trained:
    """The one recovery of trials, over the demo rows."""

    def __init__(self, teacher, rounds=12):
        self.teacher, self.rounds, self.seen = teacher, rounds, []

    def __call__(self, student, target, *, epochs, learning_rate, teaching, matching, after_step, teachers, attending):
        task, rows = target.task, target.task.demo_rows()
        params = {**{name: domain.default for name, domain in TRAIN_SPACE.items()}, "train.batch_size": 4}
        own = replace(target, context=replace(target.context, params=params))

        class Encoded(list):
            lengths = np.full(len(rows), 5)

        def validate(model):
            batch = task.collate(task.encode(rows, own.context), own.context)
            model.eval()
            with torch.no_grad():
                loss = float(task.loss(model, batch, own.context))
            zeros = [float((layer.weight == 0).float().mean()) for layer in body_layers_of(model)]
            self.seen.append((loss, zeros))
            return {"loss": loss}

        def tell(done):
            self.done.append(done)
            after_step(done)

        self.done = []
        distill(
            student,
            [(self.teacher, None)],
            own,
            features=Encoded(task.encode(rows, own.context)),
            rows=rows,
            required=False,
            remembered={},
            epochs=epochs,
            learning_rate=learning_rate,
            teaching=teaching,
            matching=matching,
            precision="fp32",
            objective="loss",
            higher_is_better=False,
            validate=validate,
            on_progress=lambda progress: None,
            deadline=None,
            after_step=tell,
        )


def body_layers_of(model):
    return [module for module in model.modules() if parametrize.is_parametrized(module)]


def test_scores_and_weights_get_the_gradients_of_the_paper():
    rng = np.random.default_rng(0)
    inputs, outer = rng.normal(size=(5, 6)), rng.normal(size=(5, 4))
    layer = torch.nn.Linear(6, 4, bias=False, dtype=torch.float64)
    weight = layer.weight.detach().numpy().copy()
    mask = ScoredMask(layer.weight, 0.5, "none", transposed=False)
    scores = rng.normal(size=(4, 6))
    mask.scores.data = torch.tensor(scores)
    mask.share = 0.25
    parametrize.register_parametrization(layer, "weight", mask)
    answers = layer(torch.tensor(inputs))
    (answers * torch.tensor(outer)).sum().backward()
    lowest = np.sort(scores.flatten())[:6]
    kept = (~np.isin(scores, lowest)).astype(float)
    np.testing.assert_allclose(answers.detach().numpy(), inputs @ (weight * kept).T)
    for i in range(4):
        for j in range(6):
            # dL/da_i * W_ij * x_j, whether the weight is masked or not (section 4); and the chain rule for the weight.
            moved = sum(outer[n, i] * inputs[n, j] for n in range(5))
            assert mask.scores.grad[i, j].item() == pytest.approx(moved * weight[i, j])
            assert layer.parametrizations.weight.original.grad[i, j].item() == pytest.approx(moved * kept[i, j])


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 4)), st.sampled_from(["none", "2:4", "4:8", "1:4"]),
    st.floats(0, 1), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_the_lowest_scores_go_and_with_a_pattern_only_those_that_it_would_zero(size, pattern, share, transposed, seed):
    outputs, inputs = size[0], size[1] * 8
    scores = torch.tensor(np.random.default_rng(seed).permutation(outputs * inputs).reshape(outputs, inputs) * 1.0)
    given_to = scores.T if transposed else scores
    one = ScoredMask(given_to, 0.5, pattern, transposed)
    one.scores.data = given_to.clone()
    mask = one.mask(share)
    mask = (mask.T if transposed else mask).numpy()
    candidates = list(np.ndindex(outputs, inputs))
    if pattern != "none":
        zeros, group = map(int, pattern.split(":"))
        candidates = []
        for i in range(outputs):
            for start in range(0, inputs, group):
                order = np.argsort(scores[i, start : start + group].numpy())
                candidates += [(i, start + int(j)) for j in order[:zeros]]
    lowest = sorted(candidates, key=lambda place: scores[place].item())[: round(share * outputs * inputs)]
    expected = np.ones((outputs, inputs))
    for place in lowest:
        expected[place] = 0
    np.testing.assert_array_equal(mask, expected)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.floats(0.05, 0.97))
def test_the_share_of_zeros_is_the_cubic_of_zhu_and_gupta(done, sparsity):
    found = sparsity_at(done, sparsity)
    if done <= BEGIN:
        assert found == 0
    elif done >= END:
        assert found == pytest.approx(sparsity)
    else:
        first, final = 0, sparsity
        assert found == pytest.approx(final + (first - final) * (1 - (done - BEGIN) / (END - BEGIN)) ** 3)


@pytest.mark.parametrize("pattern", ["none", "2:4"])
@pytest.mark.parametrize("model_type", ["bert", "distilbert", "gpt2", "llama"])
def test_zeros_are_burnt_in_and_the_model_is_one_of_transformers(
    model_type, pattern, make_checkpoint, make_target, load, logits, tmp_path
):
    target = make_target(make_checkpoint(model_type))
    model = load(target)
    model.config.pad_token_id = 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recover = Trained(copy_of(model))
    target = replace(target, recover=recover)
    pruned = MovementPruning().apply(model, target, [], {**PARAMS, "epochs": 10, "sparsity": 0.6, "pattern": pattern})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the model stays"
    assert pruned.state_dict().keys() == before.keys()
    layers = body_layers(pruned)
    assert layers.keys() == body_layers(model).keys()
    for name, layer in layers.items():
        assert type(layer) is type(model.get_submodule(name))
        zeros = (layer.weight == 0).cpu()
        if pattern == "none":
            assert int(zeros.sum()) == round(0.6 * zeros.numel()), name
        else:
            groups = (zeros.T if model_type == "gpt2" else zeros).reshape(-1, 4)
            assert (groups.sum(1) == 2).all(), name
    # Each step was told, and whatever was validated had as many zeros as what is left.
    assert recover.done == pytest.approx([(i + 1) / 20 for i in range(20)])
    share = 0.6 if pattern == "none" else 0.5
    assert all(found == pytest.approx(share, abs=1e-3) for _, zeros in recover.seen for found in zeros)
    task, context = target.task, target.context
    batch = task.collate(task.encode(task.demo_rows(), context), context)
    with torch.no_grad():
        assert float(task.loss(pruned, batch, context)) == pytest.approx(
            min(loss for loss, _ in recover.seen), rel=1e-4
        )
    pruned.save_pretrained(tmp_path)
    loaded = load(replace(target, source=replace(target.source, path=str(tmp_path))))
    torch.testing.assert_close(logits(loaded, target), logits(pruned, target))


def test_a_mask_of_a_validation_without_gradients_serves_the_training_that_goes_on():
    """At the end of the schedule both ask for the same one."""
    layer = torch.nn.Linear(4, 3)
    mask = ScoredMask(layer.weight, 0.5, "none", transposed=False)
    mask.share = 0.5
    parametrize.register_parametrization(layer, "weight", mask)
    torch.nn.init.normal_(mask.scores)
    layer.eval()
    with torch.inference_mode():
        validated = layer(torch.ones(1, 4))
    layer.train()
    trained = layer(torch.ones(1, 4))
    assert torch.equal(trained, validated)
    trained.sum().backward()
    assert mask.scores.grad.abs().sum() > 0
    torch.nn.init.normal_(mask.scores)
    assert not torch.equal(layer(torch.ones(1, 4)), trained), "other scores, another mask"


def copy_of(model):
    import copy

    return copy.deepcopy(model).eval()


def test_magnitudes_decide_at_first_and_then_what_training_does_to_weights():
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[0.5, 0.1]])
    mask = ScoredMask(layer.weight, 0.5, "none", transposed=False)
    parametrize.register_parametrization(layer, "weight", mask)
    inputs = torch.randn(64, 2)
    wanted = inputs @ torch.tensor([[0.0], [0.6]])
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01, weight_decay=0.0)
    dropped = []
    for _ in range(60):
        dropped.append(mask.mask(0.5).tolist())
        optimizer.zero_grad()
        (layer(inputs) - wanted).square().mean().backward()
        optimizer.step()
    assert dropped[0] == [[1, 0]], "the smaller one would go"
    layer.eval()
    assert (layer.weight == 0).tolist() == [[True, False]], "the one that training moved towards zero goes"


def test_where_only_the_cost_is_asked_for_the_smallest_weights_go(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    model = load(target)
    pruned = MovementPruning().apply(model, target, [], {**PARAMS, "sparsity": 0.3})
    for name, layer in body_layers(pruned).items():
        weight = model.get_submodule(name).weight.detach().numpy()
        cut = np.sort(np.abs(weight).flatten())[round(0.3 * weight.size)]
        np.testing.assert_array_equal(layer.weight.detach().numpy(), np.where(np.abs(weight) < cut, 0, weight))


def test_the_recovery_is_asked_with_scores_that_are_trained_too(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    recover = Recorded(load(target))
    pruned = MovementPruning().apply(recover.teacher, replace(target, recover=recover), [], PARAMS)
    ((student, asked),) = recover.asked
    assert student is pruned
    layers = [f"bert.encoder.layer.{i}" for i in range(2)]
    assert asked["matching"] == list(zip(layers, layers, strict=True))
    assert {"epochs": 1, "learning_rate": 1e-3, "teaching": 0.5}.items() <= asked.items()
    assert MovementPruning().trains(PARAMS)


def test_refusals_say_what_would_change_them(make_checkpoint, make_target, load):
    from transformers import AutoModel, BertConfig

    target = make_target(make_checkpoint("bert"))
    assert MovementPruning().check(target) is None
    refusal = MovementPruning().check(replace(target, config={"model_type": "resnet"}))
    assert "resnet computes with convolutions; use a model with linear layers" in refusal.reason
    shape = {"hidden_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    narrow = make_target(make_checkpoint("bert", AutoModel.from_config(BertConfig(vocab_size=22, **shape))))
    with pytest.raises(ModelError, match="6 inputs of a layer are no multiple of 4"):
        MovementPruning().apply(load(narrow), narrow, [], {**PARAMS, "pattern": "2:4"})
