"""Tables of token embeddings that have the rows of a training's texts alone: the same weights as with the whole table."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from autoft.contracts import ModelSource, TaskContext
from autoft.data.features import encoded
from autoft.data.rows import Split
from autoft.optimizers import Group, make_optimizer
from autoft.testing.models import texts_of, tiny_model
from autoft.used_rows import BY_WEIGHT, asked_for, used_rows_alone

TEXTS = [[1, 5, 9, 2], [1, 17, 2], [1, 5, 30, 31, 2], [1, 9, 9, 17, 33, 2]]
TOKENS = np.array([0, 1, 2, 5, 9, 17, 30, 31, 33])


def classifier(model_type="bert", **sizes):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    given = {
        "vocab_size": 200,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    config = AutoConfig.for_model(model_type, **{**given, "max_position_embeddings": 40, "pad_token_id": 0, **sizes})
    return AutoModelForSequenceClassification.from_config(config)


def batch_of(rows):
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "labels": torch.tensor([len(row) % 2 for row in rows]),
    }


def trained(model, optimizer, steps=6):
    """Train without dropout: both draw the same numbers, whatever is computed."""
    made = make_optimizer(optimizer, [Group(list(model.parameters()), 0.1)], {"sgd": 1e-4}.get(optimizer, 1e-2))
    model.eval()
    for step in range(steps):
        model(**batch_of([TEXTS[step % 4], TEXTS[(step + 1) % 4]])).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        made.step()
        made.zero_grad(set_to_none=True)


def loss_of(model, rows=TEXTS):
    return lambda: model(**batch_of(rows)).loss


@pytest.mark.parametrize(
    ("model_type", "optimizer"),
    [
        *(("bert", name) for name in sorted(BY_WEIGHT)),
        ("roberta", "adamw"),
        ("electra", "adamw"),
        ("modernbert", "adamw"),
    ],
)
def test_a_training_ends_with_the_weights_of_one_with_the_whole_table(model_type, optimizer):
    odd = {"modernbert": {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}}
    whole = classifier(model_type, **odd.get(model_type, {}))
    model, before = copy.deepcopy(whole), copy.deepcopy(whole)
    trained(whole, optimizer)
    with used_rows_alone(model, TOKENS, loss_of(model)) as (rows, of):
        assert (rows, of) == (9, 200)
        # And one more, for the decay.
        assert len(model.get_input_embeddings().weight) == 10
        trained(model, optimizer)
    for (name, a), b, first in zip(whole.named_parameters(), model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5, msg=name)
        assert not torch.equal(a, first) or "bias" in name
    # A row of padding stays zero, and rows that no text has shrink as all do.
    unused = model.get_input_embeddings().weight[100] / before.get_input_embeddings().weight[100]
    assert 0.9 < unused.mean() < 1


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def trained_on_new_tokens(model):
    """Train on the texts, and from the third step on on tokens that none of them has."""
    made = make_optimizer("adamw", [Group(list(model.parameters()), 0.1)], 1e-2)
    model.train()
    for step in range(7):
        further = [[1, 60 + step, 9, 2]] if step > 1 else []
        model(**batch_of([TEXTS[step % 4], *further])).loss.backward()
        made.step()
        made.zero_grad(set_to_none=True)


def test_tokens_that_augmentation_brings_are_trained_too():
    whole = without_dropout(classifier())
    model, before = copy.deepcopy(whole), copy.deepcopy(whole)
    trained_on_new_tokens(whole)
    with used_rows_alone(model, TOKENS, loss_of(model), grows=True) as (rows, of):
        assert (rows, of) == (9, 200)
        trained_on_new_tokens(model)
        # Five of nine spare rows are taken, after the one for the decay.
        assert model.get_input_embeddings().weight.shape == (19, 16)
    for (name, a), b in zip(whole.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5, msg=name)
    moved = (model.get_input_embeddings().weight - before.get_input_embeddings().weight).abs().amax(dim=1)
    assert moved[62:67].min() > 10 * moved[100]
    assert not dict(model.named_buffers()).keys() - dict(before.named_buffers()).keys()


def test_where_no_row_is_spare_any_more_tokens_keep_what_they_were_pretrained_to():
    model = without_dropout(classifier())
    before = model.get_input_embeddings().weight.detach().clone()
    with used_rows_alone(model, TOKENS, loss_of(model), grows=True):
        made = make_optimizer("adamw", [Group(list(model.parameters()), 0.0)], 1e-2)
        model.train()
        for token in range(50, 62):
            model(**batch_of([[1, token, 9, 2]])).loss.backward()
            made.step()
            made.zero_grad(set_to_none=True)
    moved = (model.get_input_embeddings().weight - before).abs().amax(dim=1) > 1e-4
    assert moved[50:59].all()
    assert not moved[59:62].any()


def test_a_copy_of_the_weights_says_what_their_rows_are_of():
    """As the best weights are put back, of before some tokens came."""
    from autoft.training import snapshot

    model = without_dropout(classifier())
    with used_rows_alone(model, TOKENS, loss_of(model), grows=True):
        model.train()
        model(**batch_of([[1, 70, 2]]))
        best = snapshot(model)
        model(**batch_of([[1, 80, 81, 2]]))
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        with torch.no_grad():
            tensors["bert.embeddings.word_embeddings.weight"][-8:] = 7.0
            for name, value in best.items():
                tensors[name].copy_(value)
    assert not (model.get_input_embeddings().weight == 7.0).any()


def test_tokens_that_no_text_has_are_what_they_were_in_a_validation():
    model = classifier()
    expected = model.eval()(**batch_of([[1, 50, 9, 2], [1, 199, 2]])).logits
    with used_rows_alone(model, TOKENS, loss_of(model)) as (rows, of):
        assert rows < of
        found = model(**batch_of([[1, 50, 9, 2], [1, 199, 2]])).logits
        trained(model, "adamw")
        one = model(**batch_of([[1, 50, 9, 2]])).logits
    torch.testing.assert_close(found, expected)
    # Now with the decay of the rows that no text has, which is 2 in 1,000 here.
    torch.testing.assert_close(model(**batch_of([[1, 50, 9, 2]])).logits, one, rtol=0.1, atol=0.02)


def test_gradients_of_the_small_table_are_those_of_its_rows():
    model = classifier()
    loss_of(model.eval())().backward()
    expected = model.get_input_embeddings().weight.grad[TOKENS]
    model.zero_grad()
    with used_rows_alone(model, TOKENS, loss_of(model)):
        loss_of(model)().backward()
        found = model.get_input_embeddings().weight.grad
    torch.testing.assert_close(found[:-1], expected)
    assert not found[-1].any()


def _frozen(model):
    model.get_input_embeddings().weight.requires_grad_(False)


def _tied(model):
    model.further = torch.nn.Linear(16, 200, bias=False)
    model.further.weight = model.get_input_embeddings().weight


def _read_elsewhere(model):
    table = model.get_input_embeddings()

    def read(module, given, found):
        found.loss = found.loss + table.weight[100].sum()

    model.register_forward_hook(read)


def _counting(model):
    model.get_input_embeddings().scale_grad_by_freq = True


def _rounded(model):
    table = model.get_input_embeddings()
    own = table.forward
    table.forward = lambda ids: own(ids).round(decimals=2)


@pytest.mark.parametrize("change", [_frozen, _tied, _read_elsewhere, _counting, _rounded])
def test_a_table_that_is_frozen_or_does_more_stays_whole(change):
    model = classifier()
    change(model)
    weight = model.get_input_embeddings().weight
    with used_rows_alone(model, TOKENS, loss_of(model)) as (rows, of):
        assert rows == of
        assert model.get_input_embeddings().weight is weight
    assert "forward" not in vars(model.get_input_embeddings()) or change is _rounded


def test_a_batch_with_tokens_of_its_own_keeps_the_table_whole():
    model = classifier()
    with used_rows_alone(model, TOKENS, loss_of(model, [[1, 5, 120, 2]])) as (rows, of):
        assert rows == of


def test_where_most_rows_are_asked_for_the_table_stays_whole():
    model = classifier()
    with used_rows_alone(model, np.arange(190), loss_of(model)) as (rows, of):
        assert rows == of


def test_a_training_that_fails_leaves_the_whole_table():
    model = classifier()
    weight = model.get_input_embeddings().weight
    with pytest.raises(RuntimeError, match="on its way"), used_rows_alone(model, TOKENS, loss_of(model)):
        raise RuntimeError("on its way")
    assert model.get_input_embeddings().weight is weight
    assert model.get_input_embeddings().padding_idx == 0
    assert "forward" not in vars(model.get_input_embeddings())


def test_tokens_asked_for_are_those_of_rows_and_what_is_put_beside_them(catalog, tmp_path):
    task = catalog.task("text-classification")
    rows = [dict(row) for row in task.demo_rows()]
    source = ModelSource("tiny", str(tiny_model("encoder", tmp_path / "model", texts_of(rows))))
    options = {option.name: option.default for option in task.card.options}
    context = TaskContext(task.facts(rows, options), options, {"train.dropout": 0.1}, 32)
    context = TaskContext(**{**vars(context), "processor": task.load_processor(source, context)})
    features = encoded(Split.from_rows(rows), task, context, tmp_path, "tiny")
    model = task.load_model(source, context)

    found = asked_for(features, model, context.processor)

    batch = task.collate([features[i] for i in range(len(features))], context)
    assert set(batch["input_ids"].flatten().tolist()) <= set(found.tolist())
    assert set(context.processor.all_special_ids) <= set(found.tolist())
    assert len(found) < len(model.get_input_embeddings().weight)
    # All that is trained by a step of the task's own loss are rows that were asked for.
    task.loss(model, batch, context).backward()
    assert set(model.get_input_embeddings().weight.grad.any(dim=1).nonzero().flatten().tolist()) <= set(found.tolist())
