"""Trainable tokens: which rows move, how they are chosen, and that merging gives what was trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.errors import ModelError
from autoft.plugins import load_plugins
from autoft.strategies.head_only import Head
from autoft.strategies.trainable_tokens import TrainableTokens, _flat
from autoft.testing.strategies import defaults
from autoft.testing.workbench import Workbench

PARAMS = {**defaults(TrainableTokens.space), "count": 4}


def learned(target, **changes):
    return TrainableTokens().learn_from(target, target.task.demo_rows(), {**PARAMS, **changes})


def test_the_most_frequent_tokens_are_chosen(make_checkpoint, make_target):
    target = make_target(make_checkpoint("bert"))
    ids = [target.context.processor(row["text"])["input_ids"] for row in target.task.demo_rows()]
    counts = Counter(token for row in ids for token in row)
    chosen = learned(target)
    assert len(chosen) == 4
    rest = [count for token, count in counts.items() if token not in chosen]
    assert min(counts[token] for token in chosen) >= max(rest)
    assert set(learned(target, count=1000)) == set(counts)


@settings(deadline=None)
@given(st.recursive(st.integers(0, 99), lambda inner: st.lists(inner, max_size=4), max_leaves=12).map(lambda x: [x]))
def test_ids_are_found_however_deep_they_lie(nested):
    import re

    assert list(_flat(nested)) == [int(number) for number in re.findall(r"\d+", str(nested))]


@pytest.mark.parametrize("onto_base", [False, True])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2"])
def test_only_these_rows_and_the_head_differ_after_training(
    model_type, onto_base, make_checkpoint, make_target, load, train, logits
):
    target = make_target(make_checkpoint(model_type))
    target = replace(target, learned=learned(target))
    before = {name: value.clone() for name, value in load(target).state_dict().items()}
    model = TrainableTokens().attach(load(target), target, PARAMS)
    losses = train(model, target, steps=12, lr=1e-2)
    assert losses[-1] < losses[0]
    expected = logits(model, target)
    merged = TrainableTokens().merge(model, (lambda: load(target)) if onto_base else None, target)
    torch.testing.assert_close(logits(merged, target), expected, rtol=1e-4, atol=1e-5)
    assert type(merged) is type(load(target))
    after = merged.state_dict()
    assert list(after) == list(before)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    (embeddings,) = [name for name in before if "word_embeddings" in name or "wte" in name]
    assert embeddings in changed
    assert all(name == embeddings or name.startswith(("classifier", "score")) for name in changed)
    moved = (after[embeddings] != before[embeddings]).any(-1).nonzero().flatten().tolist()
    assert moved == target.learned


def test_tied_output_embeddings_move_along():
    catalog = load_plugins()
    if "generation" not in catalog.tasks:
        pytest.skip("needs the plugin of generation")
    bench = Workbench(catalog.tasks["generation"], catalog, kind="decoder-conv1d")
    base = bench.load_model()
    assert base.lm_head.weight is base.transformer.wte.weight
    before = base.lm_head.weight.detach().clone()
    chosen = TrainableTokens().learn_from(bench.target, bench.rows, PARAMS)
    model = TrainableTokens().attach(base, replace(bench.target, learned=chosen), PARAMS)
    bench.train(model, 5, 1e-2)
    loss = bench.loss(model)
    merged = TrainableTokens().merge(model, None, bench.target)
    assert bench.loss(merged) == pytest.approx(loss, rel=1e-4)
    assert merged.lm_head.weight is merged.transformer.wte.weight
    assert (merged.lm_head.weight != before).any(-1).nonzero().flatten().tolist() == chosen


def test_a_task_without_text_is_refused(make_checkpoint, make_target):
    from autoft.contracts import Column

    column = Column("picture", "image", "a picture")
    target = make_target(make_checkpoint("bert"), columns=(column,))
    assert "reads no text, whose tokens could be trained" in TrainableTokens().check(target).reason
    assert TrainableTokens().check(make_target(make_checkpoint("bert"))) is None


def test_a_model_without_embeddings_of_tokens_is_told(make_checkpoint, make_target, load):
    target = replace(make_target(make_checkpoint("bert")), learned=[1, 2])
    model = load(target)
    model.bert.embeddings.word_embeddings = torch.nn.Identity()
    with pytest.raises(ModelError, match="has no input embeddings of tokens"):
        TrainableTokens().attach(model, target, PARAMS)


def test_a_model_of_pictures_which_names_no_embeddings_is_told(make_checkpoint, make_target):
    from transformers import ResNetConfig, ResNetModel

    target = replace(make_target(make_checkpoint("bert")), learned=[1, 2])
    model = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1]))
    with pytest.raises(ModelError, match="ResNetModel has no input embeddings of tokens"):
        TrainableTokens().targets(model, Head((), (), ()), target, PARAMS)
