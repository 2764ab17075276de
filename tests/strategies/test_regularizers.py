"""Regularizers against their formulas, recomputed with numpy and scipy."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.contracts import Column, Regularizer
from autoft.errors import ModelError
from autoft.strategies import autoft_strategies
from autoft.strategies.adversarial import Fgm, Mixup, Pgd, _direction, _inside
from autoft.strategies.averaging import Ema, Swa
from autoft.strategies.consistency import RDrop, TokenCutoff, _hide, divergence
from autoft.strategies.contrastive import SupervisedContrastive, contrast
from autoft.strategies.full import Full
from autoft.strategies.head_only import HeadOnly
from autoft.strategies.lora import Lora
from autoft.strategies.start_weights import L1, L2Sp, LayerDecay, Mixout, ReinitTop, layer_of
from autoft.training import Regularization

ALL = [one for one in autoft_strategies() if isinstance(one, Regularizer)]


@pytest.fixture
def ready(make_checkpoint, make_target, load):
    """Return a model of a type in training mode, its target and its batch."""

    def make(model_type="bert", dropout=0.1):
        target = make_target(make_checkpoint(model_type))
        model = load(target).train()
        for module in model.modules():
            if type(module).__name__ == "Dropout":
                module.p = dropout
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = dropout
        rows = target.task.encode(target.task.demo_rows(), target.context)
        return model, target, target.task.collate(rows, target.context)

    return make


def usual(one):
    return {name: domain.default for name, domain in one.space.items()}


def acting(one, model, target, **params):
    return Regularization([(one, {**usual(one), **params})], model, target)


def own_loss(model, target):
    return lambda batch: target.task.loss(model, batch, target.context)


# ------------------------------------------------------------------------------------------------------------ all


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
@pytest.mark.parametrize("adapter", [Full(), Lora(), HeadOnly()], ids=lambda adapter: adapter.name)
def test_each_trains_over_each_adapter_that_reaches_far_enough(ready, one, adapter):
    import torch

    if ["head", "layers", "all"].index(adapter.reach) < ["head", "layers", "all"].index(one.needs):
        pytest.skip("the plan does not try it")
    model, target, batch = ready(dropout=0.0)
    model = adapter.attach(model, target, {name: domain.default for name, domain in adapter.space.items()}).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    compute = own_loss(model, target)
    torch.manual_seed(0)
    before = float(compute(batch))
    optimizer = torch.optim.AdamW(weights, lr=5e-3)
    with acting(one, model, target) as regularization:
        for step in range(25):
            optimizer.zero_grad()
            loss = regularization.loss(compute, batch)
            assert loss.ndim == 0
            loss.backward()
            optimizer.step()
            regularization.after_step((step + 1) / 25)
    assert float(compute(batch)) < before
    assert all(torch.equal(value, frozen[name]) for name, value in model.named_parameters() if name in frozen)


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_published_settings_lie_in_the_space(one):
    assert all(one.space[name].contains(value) for setting in one.published for name, value in setting.items())


def test_a_chain_wraps_from_the_inside_out(ready):
    model, target, batch = ready()
    order = []

    class Plus(Regularizer):
        summary = "adds, or multiplies"

        def __init__(self, name, change):
            self.name, self.change = name, change

        def loss(self, compute, model, batch, target, params, state):
            value = compute(batch)
            order.append(self.name)
            return self.change(value)

    chain = [(Plus("plus", lambda value: value + 1), {}), (Plus("times", lambda value: value * 2), {})]
    with Regularization(chain, model, target) as regularization:
        value = regularization.loss(lambda given: batch["labels"].sum() * 0.0 + 3.0, batch)
    assert (float(value), order) == (8.0, ["plus", "times"])


def test_what_was_prepared_is_undone_where_the_next_one_fails(ready):
    model, target, _ = ready()

    class Broken(Regularizer):
        name = "broken"
        summary = "cannot begin"

        def prepare(self, model, target, params):
            raise ModelError("no")

    with pytest.raises(ModelError, match="no"), Regularization([(Mixout(), {"p": 0.5}), (Broken(), {})], model, target):
        pass
    assert not any("forward" in vars(module) for module in model.modules())


# ---------------------------------------------------------------------------------------------------- consistency


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 5))
def test_divergence_is_that_of_scipy(seed, places, classes):
    import torch
    from scipy.special import rel_entr, softmax

    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(2, places, classes)) * 2
    expected = rel_entr(softmax(one, 1), softmax(other, 1)).sum(1).mean()
    assert float(divergence(torch.tensor(one), torch.tensor(other))) == pytest.approx(expected, abs=1e-9)
    p, q = 1 / (1 + np.exp(-one)), 1 / (1 + np.exp(-other))
    expected = (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).sum(1).mean()
    assert float(divergence(torch.tensor(one), torch.tensor(other), binary=True)) == pytest.approx(expected, abs=1e-9)


def test_r_drop_is_the_mean_of_two_passes_and_their_symmetric_divergence(ready):
    import torch
    from scipy.special import rel_entr, softmax

    model, target, batch = ready(dropout=0.3)
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.logits.detach().numpy()))
    torch.manual_seed(1)
    loss = RDrop().loss(own_loss(model, target), model, batch, target, {"weight": 0.7}, None)
    one, other = (softmax(logits.astype(np.float64), 1) for logits in seen)
    rows = np.arange(len(one))
    entropy = [-np.log(p[rows, batch["labels"].numpy()]).mean() for p in (one, other)]
    apart = (rel_entr(one, other).sum(1) + rel_entr(other, one).sum(1)).mean() / 2
    assert apart > 1e-4
    assert loss.item() == pytest.approx(np.mean(entropy) + 0.7 * apart, rel=1e-4)


def test_r_drop_without_dropout_is_the_plain_loss(ready):
    model, target, batch = ready(dropout=0.0)
    compute = own_loss(model, target)
    loss = RDrop().loss(compute, model, batch, target, {"weight": 5.0}, None)
    assert loss.item() == pytest.approx(compute(batch).item(), rel=1e-5)


def test_r_drop_reads_only_places_with_a_label(make_target, tmp_path):
    import torch

    from autoft.strategies.passes import judged_logits

    class Writer(torch.nn.Module):
        config = SimpleNamespace(is_encoder_decoder=False)

    model = Writer()
    words = make_target(tmp_path, architecture="token-classification")
    logits, labels = torch.randn(2, 4, 3), torch.tensor([[0, 1, -100, -100], [-100, 2, 0, -100]])
    found, binary = judged_logits([logits], model, {"labels": labels}, words)
    assert torch.equal(found, logits[[0, 0, 1, 1], [0, 1, 1, 2]])
    assert not binary
    # A language model says at each place what comes next; of prompts a task may ask for the last logits only.
    text = make_target(tmp_path, architecture="causal-lm")
    found, _ = judged_logits([logits], model, {"labels": labels}, text)
    assert torch.equal(found, logits[[0, 1, 1], [0, 0, 1]])
    # A decoder beside an encoder is given its labels moved already.
    model.config.is_encoder_decoder = True
    found, _ = judged_logits([logits], model, {"labels": labels}, make_target(tmp_path, architecture="seq2seq-lm"))
    assert torch.equal(found, logits[[0, 0, 1, 1], [0, 1, 1, 2]])
    several = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert judged_logits([logits[0, :2]], model, {"labels": several}, make_target(tmp_path))[1]
    with pytest.raises(ModelError, match="do not go together"):
        judged_logits([logits], model, {"labels": labels[:, :3]}, words)


def test_r_drop_refuses_labels_that_are_no_classes(make_target, tmp_path):
    columns = (Column("text", "text", "a text"), Column("answer", "span", "a place", target=True))
    refusal = RDrop().check(make_target(tmp_path, columns=columns, architecture="question-answering"))
    assert "are not" in refusal.reason
    assert RDrop().check(make_target(tmp_path)) is None


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.floats(0.05, 0.3), st.booleans())
def test_a_share_of_the_tokens_is_hidden_and_the_ends_stay(lengths, ratio, left):
    import torch

    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in zip(mask, lengths, strict=True):
        row[-length:] = 1
    mask = mask if left else mask.flip(1)
    hidden = _hide(mask, ratio)
    for row, cut, length in zip(mask, hidden, lengths, strict=True):
        places = torch.nonzero(row).flatten()
        assert (cut <= row).all()
        assert cut[places[0]] == cut[places[-1]] == 1
        # To the nearest whole number; a half may go either way.
        assert abs(int(row.sum() - cut.sum()) - min(ratio * length, max(0, length - 2))) <= 0.5 + 1e-5


def test_token_cutoff_adds_the_loss_of_cut_rows_and_the_jensen_shannon_divergence(ready):
    import torch
    from scipy.spatial.distance import jensenshannon
    from scipy.special import softmax

    model, target, batch = ready(dropout=0.0)
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.logits.detach().numpy()))
    torch.manual_seed(0)
    params = {"ratio": 0.3, "consistency": 2.0}
    loss = TokenCutoff().loss(own_loss(model, target), model, batch, target, params, None)
    one, other = (softmax(logits.astype(np.float64), 1) for logits in seen)
    rows, labels = np.arange(len(one)), batch["labels"].numpy()
    entropy = sum(-np.log(p[rows, labels]).mean() for p in (one, other))
    apart = np.mean([jensenshannon(p, q) ** 2 for p, q in zip(one, other, strict=True)])
    assert apart > 1e-6
    assert loss.item() == pytest.approx(entropy + 2.0 * apart, rel=1e-4)


# ---------------------------------------------------------------------------------------------------- embeddings


def embeddings_of(model, run):
    """Return what the word embeddings give in each forward pass of ``run``, as the layers after them see it."""
    seen = []
    handle = model.bert.embeddings.word_embeddings.register_forward_hook(
        lambda module, inputs, output: seen.append(output.detach().clone())
    )
    try:
        run()
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    ("one", "params"), [(Fgm(), {"epsilon": 0.5}), (Pgd(), {"epsilon": 0.5, "steps": 3, "step": 0.6})]
)
def test_embeddings_move_towards_a_higher_loss_by_their_radius_and_the_table_stays(ready, one, params):
    import torch

    model, target, batch = ready(dropout=0.0)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    compute, plain = own_loss(model, target), []

    def told(given):
        plain.append(compute(given))
        return plain[-1]

    with acting(one, model, target, **params) as regularization:
        seen = []
        # Behind the regularizer's own hook: the layer norm's input, less token types and positions.
        norm = model.bert.embeddings.LayerNorm
        handle = norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
        loss = regularization.loss(told, batch)
        handle.remove()
    words = model.bert.embeddings.word_embeddings(batch["input_ids"]).detach()
    radius = 0.5 * words.norm(dim=-1).mean()
    moved = (seen[-1] - seen[0]).flatten(1).norm(dim=1)
    if one.name == "fgm":
        torch.testing.assert_close(moved, radius.expand_as(moved), rtol=1e-4, atol=1e-5)
    else:
        assert (moved <= radius * 1.0001).all()
        assert (moved > 0.5 * radius).all()
    assert len(plain) == (2 if one.name == "fgm" else 4)
    assert float(plain[-1]) > float(plain[0])
    assert loss.item() == pytest.approx(float(plain[0]) + float(plain[-1]), rel=1e-6)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_gradient_of_fgm_is_that_of_both_losses(ready):
    import torch

    model, target, batch = ready(dropout=0.0)
    compute = own_loss(model, target)
    table = model.bert.embeddings.word_embeddings
    moves = embeddings_of_change(model, target, batch)
    with acting(Fgm(), model, target) as regularization:
        regularization.loss(compute, batch).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    handle = table.register_forward_hook(lambda module, inputs, output: output + moves)
    moved = compute(batch)
    handle.remove()
    (compute(batch) + moved).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-6)


def embeddings_of_change(model, target, batch):
    """Return the change that FGM makes at its default, computed by hand."""
    table, kept = model.bert.embeddings.word_embeddings, []

    def keep(module, inputs, output):
        output.retain_grad()
        kept.append(output)

    handle = table.register_forward_hook(keep)
    target.task.loss(model, batch, target.context).backward()
    handle.remove()
    gradient = kept[0].grad.detach().clone()
    model.zero_grad()
    radius = Fgm.space["epsilon"].default * kept[0].detach().norm(dim=-1).mean()
    return radius * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1)


def test_what_leaves_the_ball_is_put_back_on_it():
    import torch

    change = torch.tensor([[[3.0, 4.0]], [[0.3, 0.4]], [[0.0, 0.0]]])
    expected = torch.tensor([[[0.6, 0.8]], [[0.3, 0.4]], [[0.0, 0.0]]])
    torch.testing.assert_close(_inside(change, torch.tensor(1.0)), expected)
    torch.testing.assert_close(_direction(change)[0], expected[0])
    assert not torch.isnan(_direction(change)).any()


def test_adversarial_training_works_through_accumulation_and_checkpointing(ready):
    import torch

    model, target, batch = ready(dropout=0.0)
    compute = own_loss(model, target)
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        with acting(Pgd(), model, target) as regularization:
            for half in (slice(0, 4), slice(4, 8)):
                part = {name: value[half] for name, value in batch.items()}
                (regularization.loss(compute, part) / 2).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, other, rtol=1e-4, atol=1e-6)


def test_the_source_text_of_an_encoder_decoder_is_moved():
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from autoft.strategies.passes import with_embeddings

    small = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "vocab_size": 20, "num_layers": 1}
    model = T5ForConditionalGeneration(T5Config(**small, decoder_start_token_id=0)).eval()
    batch = {"input_ids": torch.tensor([[3, 4, 5]]), "labels": torch.tensor([[6, 7]])}
    told = []
    model.encoder.dropout.register_forward_pre_hook(lambda module, inputs: told.append(inputs[0].detach()))
    model.decoder.dropout.register_forward_pre_hook(lambda module, inputs: told.append(inputs[0].detach()))
    plain = model(**batch).loss
    with with_embeddings(model, lambda embeddings: embeddings + 1.0):
        moved = model(**batch).loss
    # Each dropout comes twice in a pass: before the first layer and behind the last.
    torch.testing.assert_close(told[4], told[0] + 1.0)
    torch.testing.assert_close(told[6], told[2])
    assert float(moved) != float(plain)


def test_a_model_whose_embeddings_are_not_used_is_told():
    import torch

    from autoft.strategies.passes import with_embeddings

    class Unused(torch.nn.Linear):
        def get_input_embeddings(self):
            return torch.nn.Embedding(2, 2)

    with pytest.raises(ModelError, match="does not use"), with_embeddings(Unused(1, 1), lambda embeddings: embeddings):
        pass
    with pytest.raises(ModelError, match="does not say where"):
        Fgm().prepare(torch.nn.Linear(1, 1), None, {})


def test_layers_that_write_do_not_start_anew(make_target, tmp_path):
    for architecture in ("causal-lm", "conditional-generation"):
        refusal = ReinitTop().check(make_target(tmp_path, architecture=architecture))
        assert refusal.reason.startswith(f"reinit-top: a {architecture} model writes")
    assert ReinitTop().check(make_target(tmp_path)) is None


def test_mixup_mixes_embeddings_and_losses(ready):
    import torch

    model, target, batch = ready(dropout=0.0)
    words = model.bert.embeddings.word_embeddings(batch["input_ids"]).detach()
    seen, asked = [], []

    def compute(given):
        asked.append(given["labels"].clone())
        handle = model.bert.embeddings.LayerNorm.register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0].detach().clone())
        )
        value = own_loss(model, target)(given)
        handle.remove()
        asked.append(float(value.detach()))
        return value

    torch.manual_seed(3)
    loss = Mixup().loss(compute, model, batch, target, {"alpha": 1.0}, None)
    torch.manual_seed(3)
    share = float(torch.distributions.Beta(1.0, 1.0).sample())
    other = torch.randperm(len(batch["labels"]))
    assert 0.01 < share < 0.99
    # What the layer norm gets beside the words: positions and token types, alike for all rows.
    rest = model.bert.embeddings.position_embeddings.weight[: words.shape[1]]
    rest = rest + model.bert.embeddings.token_type_embeddings.weight[0]
    for mixed in seen:
        torch.testing.assert_close(
            mixed - rest.detach(), share * words + (1 - share) * words[other], rtol=1e-4, atol=1e-5
        )
    first, one, second, two = asked
    assert torch.equal(first, batch["labels"])
    assert torch.equal(second, batch["labels"][other])
    assert loss.item() == pytest.approx(share * one + (1 - share) * two, rel=1e-5)


@pytest.mark.parametrize("one", [Mixup(), TokenCutoff(), SupervisedContrastive()], ids=lambda one: one.name)
def test_what_mixes_rows_needs_labels_of_rows(make_target, tmp_path, one):
    assert one.check(make_target(tmp_path)) is None
    words = make_target(tmp_path, architecture="token-classification")
    assert one.check(words).reason.startswith(f"{one.name}: needs a task that gives each text a label")


# ---------------------------------------------------------------------------------------------------- contrastive


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8), st.floats(0.1, 1.0))
def test_contrast_is_what_a_loop_over_pairs_makes_it(seed, rows, temperature):
    import torch

    rng = np.random.default_rng(seed)
    features, labels = rng.normal(size=(rows, 4)), rng.integers(3, size=rows)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    losses = []
    for i in range(rows):
        alike = [j for j in range(rows) if j != i and labels[j] == labels[i]]
        if not alike:
            continue
        total = sum(math.exp(unit[i] @ unit[k] / temperature) for k in range(rows) if k != i)
        losses.append(-np.mean([math.log(math.exp(unit[i] @ unit[j] / temperature) / total) for j in alike]))
    found = contrast(torch.tensor(features), torch.tensor(labels), temperature)
    assert float(found) == pytest.approx(np.mean(losses) if losses else 0.0, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "gpt2"])
def test_the_classifiers_input_is_what_is_contrasted(ready, model_type):
    import torch

    model, target, batch = ready(model_type, dropout=0.0)
    if model_type == "gpt2":
        model.config.pad_token_id = 0
    compute = own_loss(model, target)
    with acting(SupervisedContrastive(), model, target, weight=0.4) as regularization:
        loss = regularization.loss(compute, batch)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if model_type == "bert":
        features = model.bert(**inputs).pooler_output
    elif model_type == "distilbert":
        features = torch.relu(model.pre_classifier(model.distilbert(**inputs).last_hidden_state[:, 0]))
    else:
        states = model.transformer(**inputs).last_hidden_state
        features = states[torch.arange(len(states)), batch["attention_mask"].sum(1) - 1]
    expected = 0.6 * compute(batch) + 0.4 * contrast(features, batch["labels"], 0.3)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_rows_with_several_labels_are_told(ready):
    model, target, _ = ready()
    several = replace(target, context=replace(target.context, facts={**target.context.facts, "problem": "multi"}))
    with pytest.raises(ModelError, match="needs one label a row"):
        SupervisedContrastive().prepare(model, several, {})


# ---------------------------------------------------------------------------------------------------- weights


def test_the_gradient_of_l1_is_the_sign_of_each_trained_matrix(ready):
    import torch

    model, target, batch = ready(dropout=0.0)
    model.bert.embeddings.requires_grad_(False)
    start = torch.zeros((), requires_grad=True)
    L1().loss(lambda given: start * 1.0, model, batch, target, {"weight": 0.25}, None).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.ndim >= 2:
            np.testing.assert_allclose(parameter.grad.numpy(), 0.25 * np.sign(parameter.detach().numpy()), err_msg=name)
        else:
            assert parameter.grad is None, name


def test_l2_sp_pulls_the_body_to_its_start_and_the_head_to_zero(ready):
    import torch

    model, target, batch = ready(dropout=0.0)
    one, params = L2Sp(), {"alpha": 0.3, "beta": 0.05}
    before = {name: value.detach().clone().numpy() for name, value in model.named_parameters()}
    state = one.prepare(model, target, params)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter += 0.01 * (index + 1)
    start = torch.zeros((), requires_grad=True)
    loss = one.loss(lambda given: start * 1.0, model, batch, target, params, state)
    loss.backward()
    expected = 0.0
    for name, parameter in model.named_parameters():
        now = parameter.detach().numpy()
        factor, away = (0.05, now) if name.startswith("classifier") else (0.3, now - before[name])
        np.testing.assert_allclose(parameter.grad.numpy(), factor * away, rtol=1e-4, atol=1e-7, err_msg=name)
        expected += factor / 2 * float((away.astype(np.float64) ** 2).sum())
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_mixout_mixes_each_weight_with_its_start(ready, model_type):
    import torch

    model, target, _ = ready(model_type, dropout=0.0)
    layer = (
        model.bert.encoder.layer[0].attention.self.query if model_type == "bert" else model.transformer.h[0].mlp.c_fc
    )
    head = model.classifier if model_type == "bert" else model.score
    with acting(Mixout(), model, target, p=0.75):
        start = layer.weight.detach().clone()
        with torch.no_grad():
            layer.weight += 1.0
        # A unit matrix in makes a layer say its weights.
        inputs = torch.eye(start.shape[0] if model_type == "gpt2" else start.shape[1])
        said = (layer(inputs) - layer.bias).detach()
        used = said if model_type == "gpt2" else said.T
        # (m w0 + (1 - m) w - p w0) / (1 - p): w0 with probability p, else (w - p w0) / (1 - p) = w0 + 4.
        kept = (used - start).round(decimals=3)
        assert set(kept.unique().tolist()) == {0.0, 4.0}
        assert float((kept == 0).float().mean()) == pytest.approx(0.75, abs=0.05)
        again = (layer(inputs) - layer.bias).detach()
        assert not torch.equal(said, again), "each pass draws anew"
        layer.eval()
        torch.testing.assert_close(
            layer(inputs) - layer.bias, inputs @ (start + 1 if model_type == "gpt2" else (start + 1).T)
        )
        assert "forward" not in vars(head)
    assert "forward" not in vars(layer)


def test_mixout_stands_in_the_place_of_the_dropout_of_the_body(ready):
    from torch import nn

    model, target, _ = ready("bert", dropout=0.3)

    def shares(part):
        return {module.p for module in part.modules() if isinstance(module, nn.Dropout)}

    with acting(Mixout(), model, target, p=0.5):
        assert shares(model.bert) == {0.0}
        assert model.dropout.p == 0.3
    assert shares(model) == {0.3}


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        (
            "bert",
            {
                "bert.embeddings.word_embeddings.weight": 0.25,
                "bert.embeddings.LayerNorm.bias": 0.25,
                "bert.encoder.layer.0.attention.self.query.weight": 0.5,
                "bert.encoder.layer.1.output.dense.bias": 1.0,
                "bert.pooler.dense.weight": 1.0,
                "classifier.weight": 1.0,
            },
        ),
        (
            "gpt2",
            {
                "transformer.wte.weight": 0.25,
                "transformer.h.0.ln_1.weight": 0.5,
                "transformer.h.1.mlp.c_fc.weight": 1.0,
                "transformer.ln_f.weight": 1.0,
                "score.weight": 1.0,
            },
        ),
    ],
)
def test_each_layer_learns_at_a_share_of_the_one_above(ready, model_type, expected):
    model, target, _ = ready(model_type)
    factors = LayerDecay().learning_rates(model, target, {"rate": 0.5})
    assert {name: factors.get(name, 1.0) for name in expected} == expected


def test_matrices_beside_frozen_layers_have_the_rate_of_their_layer(ready):
    model, target, _ = ready()
    adapted = Lora().attach(model, target, {name: domain.default for name, domain in Lora.space.items()})
    factors = LayerDecay().learning_rates(adapted, target, {"rate": 0.5})
    found = {
        factors.get(name, 1.0): name for name, p in adapted.named_parameters() if p.requires_grad and "lora_A" in name
    }
    assert set(found) == {0.5, 1.0}
    assert "layer.0." in found[0.5]


def test_encoder_and_decoder_are_counted_each_from_its_own_top():
    from transformers import T5Config, T5ForConditionalGeneration

    small = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "vocab_size": 20}
    model = T5ForConditionalGeneration(T5Config(**small, num_layers=3, num_decoder_layers=3))
    below = layer_of(model)
    assert below["shared.weight"] == 3
    for part in ("encoder", "decoder"):
        assert [below[f"{part}.block.{i}.layer.0.SelfAttention.q.weight"] for i in range(3)] == [2, 1, 0]


def test_only_the_uppermost_layers_and_the_pooler_start_anew(ready):
    import torch

    model, target, _ = ready()
    before = copy.deepcopy(model)
    torch.manual_seed(5)
    ReinitTop().prepare(model, target, {"layers": 1})
    for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True):
        again = name.startswith(("bert.encoder.layer.1.", "bert.pooler."))
        constant = new.ndim == 1
        assert torch.equal(new, old) != (again and not constant), name
    weight = model.bert.encoder.layer[1].intermediate.dense.weight
    # The deviation that the configuration names; 128 x 64 draws.
    assert float(weight.detach().std()) == pytest.approx(model.config.initializer_range, rel=0.05)
    with pytest.raises(ModelError, match=r"lower reinit-top\.layers"):
        ReinitTop().prepare(model, target, {"layers": 2})


# ---------------------------------------------------------------------------------------------------- averages


def run_of(one, params, values):
    """Return the averages after each step of a model with one weight that takes these values."""
    import torch

    model, found = torch.nn.Linear(1, 1, bias=False), []
    state = one.prepare(model, None, params)
    for step, value in enumerate(values):
        with torch.no_grad():
            model.weight.fill_(value)
        one.after_step(model, params, state, (step + 1) / len(values))
        found.append({name: float(weight) for name, weight in one.averaged(model, params, state).items()})
    return found


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.floats(0.9, 0.999))
def test_an_exponential_average_is_that_of_a_loop(values, decay):
    found, average = run_of(Ema(), {"decay": decay}, values), values[0]
    for step, value in enumerate(values, 1):
        share = min(decay, (1 + step) / (10 + step))
        average = value if step == 1 else share * average + (1 - share) * value
        assert found[step - 1]["weight"] == pytest.approx(average, rel=1e-4, abs=1e-5)


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.floats(0, 0.95))
def test_an_even_average_is_the_mean_of_the_late_steps(values, start):
    found = run_of(Swa(), {"start": start}, values)
    late = [value for step, value in enumerate(values, 1) if step / len(values) > start]
    assert found[-1]["weight"] == pytest.approx(np.mean(late), rel=1e-4, abs=1e-5)
    assert all(
        not one for one, step in zip(found, range(1, len(values) + 1), strict=True) if step / len(values) <= start
    )


def test_weights_that_are_not_trained_are_not_averaged():
    import torch

    model = torch.nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    one = Swa()
    state = one.prepare(model, None, {"start": 0.0})
    one.after_step(model, {"start": 0.0}, state, 1.0)
    assert set(one.averaged(model, {}, state)) == {"weight"}
