"""Frozen layers that recall what they said: the same losses and weights as computing it, and no computation."""

from __future__ import annotations

import copy
import resource
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.frozen_layers import ActivationStore, recalled

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
TYPES = ["bert", "roberta", "electra", "distilbert", "deberta-v2", "modernbert", "gpt2", "llama"]


def make(model_type, trained=1):
    """A classifier with random weights whose upper layers and head are trained."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from autoft.strategies.head_only import find_head
    from autoft.strategies.partial import layer_stacks

    torch.manual_seed(0)
    odd = {
        "distilbert": {"dim": 16, "hidden_dim": 24, "n_layers": 4, "n_heads": 2},
        "gpt2": {"n_embd": 16, "n_layer": 4, "n_head": 2},
        "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
        "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    }.get(model_type, {})
    config = AutoConfig.for_model(model_type, **SIZES, **odd, num_labels=3)
    model = AutoModelForSequenceClassification.from_config(config)
    (stack,) = layer_stacks(model).values()
    head = set(find_head(model).parameters)
    above = {id(p) for layer in list(stack)[len(stack) - trained :] for p in layer.parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head or id(parameter) in above)
    return model


def texts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 40, (length,), generator=generator).tolist() for length in lengths]


def collate(rows):
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([len(row) % 3 for row in rows])}


def computed_layers(model):
    """Count how often the first layer's attention computes."""
    from autoft.strategies.partial import layer_stacks

    (stack,) = layer_stacks(model).values()
    first = next(module for name, module in stack[0].named_modules() if "attn" in name or "attention" in name)
    seen = []
    first.register_forward_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize("trained", [0, 1, 3])
@pytest.mark.parametrize("model_type", TYPES)
def test_a_training_that_recalls_ends_with_the_weights_of_one_that_computes(model_type, trained, tmp_path):
    rows = texts([5, 9, 3, 12, 7, 7, 4, 10])
    plain = make(model_type, trained)
    model = copy.deepcopy(plain)

    def train(model):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        # Without dropout, so that the frozen layers of both do the same.
        model.eval()
        losses = []
        for epoch in range(3):
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(epoch)).tolist()
            for start in range(0, len(rows), 3):
                loss = model(**collate([rows[i] for i in order[start : start + 3]])).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        return losses

    expected = train(plain)
    store = ActivationStore(tmp_path)
    short = sorted(rows, key=len)
    with recalled(model, store, lambda some: model(**collate(some)).loss, short) as layers:
        assert layers == 4 - trained
        seen = computed_layers(model)
        found = train(model)
    assert found == pytest.approx(expected, abs=1e-5)
    for (name, a), b in zip(plain.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)
    # All texts were read together before the first step.
    assert not seen
    model(**collate(rows))
    assert seen, "behind the context it computes again"


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whatever_the_batch_the_answers_are_those_that_are_computed(tmp_path_factory, data):
    model = make("bert", 2).eval()
    rows = texts([4, 6, 9, 5])
    batches = data.draw(st.lists(st.lists(st.sampled_from(rows), min_size=1, max_size=4), min_size=1, max_size=6))
    with torch.no_grad():
        expected = [model(**collate(batch)).logits for batch in batches]
        store = ActivationStore(tmp_path_factory.mktemp("store"))
        with recalled(model, store, lambda some: model(**collate(some)).loss, rows[:2]) as layers:
            assert layers == 2
            found = [model(**collate(batch)).logits for batch in batches]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_layers_that_recall_have_no_dropout_and_those_above_have(tmp_path):
    model = make("bert").train()
    rows = texts([6, 8])
    states = []
    layers = model.bert.encoder.layer
    with recalled(model, ActivationStore(tmp_path, limit=0), lambda some: model(**collate(some)).loss, rows) as count:
        # Nothing can be kept, so nothing is recalled.
        assert count == 0
    with recalled(model, ActivationStore(tmp_path), lambda some: model(**collate(some)).loss, rows) as count:
        assert count == 3
        layers[2].register_forward_hook(lambda _, args, found: states.append(found))
        new = texts([5, 5], seed=1)
        model.train()
        answers = [model(**collate(new)).logits for _ in range(3)]
    torch.testing.assert_close(states[0], states[1])
    assert not torch.equal(answers[0], answers[1])


def test_other_weights_are_not_taken_for_those_that_were_kept(tmp_path):
    store, rows = ActivationStore(tmp_path), texts([6, 8])
    for scale in (1.0, 1.5):
        model = make("bert").eval()
        with torch.no_grad():
            model.bert.encoder.layer[0].output.dense.weight.mul_(scale)
            expected = model(**collate(rows)).logits
            with recalled(model, store, lambda some, model=model: model(**collate(some)).loss, rows):
                torch.testing.assert_close(model(**collate(rows)).logits, expected)


def everything(model):
    for parameter in model.parameters():
        parameter.requires_grad_()


def biases(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))


def words(model):
    model.get_input_embeddings().weight.requires_grad_()


@pytest.mark.parametrize("train", [everything, biases, words])
def test_nothing_is_recalled_where_something_below_is_trained(train, tmp_path):
    model = make("bert")
    train(model)
    with recalled(model, ActivationStore(tmp_path), lambda some: model(**collate(some)).loss, texts([3, 6])) as layers:
        assert layers == 0


def test_layers_that_hand_on_more_than_states_compute(tmp_path):
    """T5's first layer gives its position biases to the others."""
    from transformers import T5Config, T5ForSequenceClassification

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2, eos_token_id=1, decoder_start_token_id=0
    )
    model = T5ForSequenceClassification(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("classification_head" in name)

    def loss_of(some):
        batch = collate([[*row, 1] for row in some])
        return model(**batch).loss

    with recalled(model, ActivationStore(tmp_path), loss_of, texts([3, 6])) as layers:
        assert layers == 0


def test_what_is_asked_beside_the_last_states_is_computed(tmp_path):
    model = make("bert").eval()
    rows = texts([6, 6])
    with torch.no_grad():
        expected = model(**collate(rows), output_hidden_states=True).hidden_states
        with recalled(model, ActivationStore(tmp_path), lambda some: model(**collate(some)).loss, rows):
            found = model(**collate(rows), output_hidden_states=True).hidden_states
            padded_left = {"input_ids": torch.tensor([[0, 5, 6]]), "attention_mask": torch.tensor([[0, 1, 1]])}
            left = model(**padded_left).logits
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(left, model(**padded_left).logits)


def test_a_store_keeps_no_more_than_it_may(tmp_path):
    store = ActivationStore(tmp_path, limit=3 * 4 * 8)
    states = torch.arange(24, dtype=torch.float32).view(6, 4)
    store.put(b"one", states[:3])
    store.put(b"two", states[3:])
    store.put(b"three", states[:1])
    assert b"three" not in store
    torch.testing.assert_close(store.get(b"two"), states[3:])
    torch.testing.assert_close(store.get(b"one"), states[:3])
    half = ActivationStore(tmp_path)
    half.put(b"x", states.to(torch.bfloat16))
    assert torch.equal(half.get(b"x"), states.to(torch.bfloat16))
    assert not list(tmp_path.iterdir()), "the file has no name"


def test_a_full_disk_ends_the_keeping_only(tmp_path):
    """The system refuses a file that grows over a limit, as it does where there is no room."""
    store = ActivationStore(tmp_path)
    states = torch.ones(8, 16)
    store.put(b"before", states)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        store.put(b"over", states)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert b"over" not in store
    torch.testing.assert_close(store.get(b"before"), states)


def test_segments_tell_texts_apart(tmp_path):
    model = make("bert").eval()
    (row,) = texts([6])
    batches = [{**collate([row]), "token_type_ids": torch.tensor([kinds])} for kinds in ([0] * 6, [0, 0, 0, 1, 1, 1])]
    with torch.no_grad():
        expected = [model(**batch).logits for batch in batches]
        with recalled(model, ActivationStore(tmp_path), lambda some: model(**collate(some)).loss, [row]) as layers:
            assert layers == 3
            found = [model(**batch).logits for batch in (*batches, *batches)]
    for one, other in zip(found, [*expected, *expected], strict=True):
        torch.testing.assert_close(one, other)
