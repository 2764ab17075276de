from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from autoft.errors import ModelError
from autoft.strategies.layer_pruning import FfnPruning, LayerPruning, find_layers
from autoft.testing import tiny_model

PARAMS = {"keep": 0.5, "epochs": 0, "learning_rate": 1e-4, "teaching": 0.5}


class Recorded:
    """A recovery that trains nothing and remembers what it was asked."""

    def __init__(self, teacher):
        self.teacher, self.asked = teacher, []

    def __call__(self, student, target, **settings):
        self.asked.append((student, settings))


def deep(model_type, count=6):
    """A model with more layers than two."""
    from transformers import AutoConfig, AutoModel

    sizes = {
        "bert": {"hidden_size": 32, "num_hidden_layers": count, "num_attention_heads": 2, "intermediate_size": 64},
        "distilbert": {"dim": 32, "n_layers": count, "n_heads": 2, "hidden_dim": 64},
        "gpt2": {"n_embd": 32, "n_layer": count, "n_head": 2, "n_positions": 64},
        "llama": {"hidden_size": 32, "num_hidden_layers": count, "num_attention_heads": 2, "intermediate_size": 64},
    }
    torch.manual_seed(0)
    return AutoModel.from_config(
        AutoConfig.for_model(model_type, vocab_size=22, pad_token_id=0, initializer_range=0.2, **sizes[model_type])
    )


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "gpt2", "llama"])
@pytest.mark.parametrize(("keep", "expected"), [(0.5, [0, 2, 4]), (0.34, [0, 3]), (0.01, [0]), (0.67, [0, 1, 3, 4])])
def test_layers_stay_evenly_over_the_depth(model_type, keep, expected, make_checkpoint, make_target, load):
    target = make_target(make_checkpoint(model_type, deep(model_type)))
    model = load(target)
    smaller = LayerPruning().apply(model, target, [], {**PARAMS, "keep": keep})
    _, before = find_layers(model)
    _, after = find_layers(smaller)
    assert len(before) == 6
    for layer, place in zip(after, expected, strict=True):
        for name, value in before[place].state_dict().items():
            assert torch.equal(layer.state_dict()[name], value), name
    assert smaller.config.num_hidden_layers == len(expected)


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "gpt2", "llama"])
@pytest.mark.parametrize("compressor", [LayerPruning(), FfnPruning()])
def test_a_smaller_model_is_one_of_transformers(
    model_type, compressor, make_checkpoint, make_target, load, logits, tmp_path
):
    target = make_target(make_checkpoint(model_type, deep(model_type)))
    rows = target.task.demo_rows()
    smaller = compressor.apply(load(target), target, rows, PARAMS)
    smaller.save_pretrained(tmp_path)
    loaded = load(replace(target, source=replace(target.source, path=str(tmp_path))))
    torch.testing.assert_close(logits(loaded, target), logits(smaller, target))
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in load(target).parameters())


def test_a_decoder_without_some_of_its_layers_writes_with_its_cache_as_without(tmp_path):
    from transformers import AutoModelForCausalLM

    from autoft.contracts import Target

    model = AutoModelForCausalLM.from_pretrained(tiny_model("decoder", tmp_path / "llama", ["some words"]))
    name, layers = find_layers(model)
    model.set_submodule(name, type(layers)([copy.deepcopy(layers[i % len(layers)]) for i in range(4)]))
    model.config.num_hidden_layers = 4
    smaller, _ = LayerPruning().prune(model, Target(None, None, {}, None, None), [], PARAMS)  # type: ignore[arg-type]
    ids = torch.tensor([[5, 6, 7]])
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        cached, plain = (smaller.generate(ids, use_cache=use, **settings) for use in (True, False))
    assert torch.equal(cached, plain)


def test_each_layer_learns_from_the_layer_at_the_same_share_of_the_depth(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert", deep("bert")))
    model = load(target)
    recover = Recorded(model)
    LayerPruning().apply(model, replace(target, recover=recover), [], {**PARAMS, "epochs": 2, "teaching": 0.7})
    ((student, settings),) = recover.asked
    layers = "bert.encoder.layer"
    assert settings == {
        "epochs": 2,
        "learning_rate": 1e-4,
        "teaching": 0.7,
        "matching": [(f"{layers}.0", f"{layers}.1"), (f"{layers}.1", f"{layers}.3"), (f"{layers}.2", f"{layers}.5")],
        "after_step": None,
        "teachers": [],
        "attending": [],
    }
    assert student is not model
    params = {**PARAMS, "epochs": 2, "attention": True}
    LayerPruning().apply(model, replace(target, recover=recover), [], params)
    assert recover.asked[-1][1]["attending"] == [
        (f"{layers}.{mine}.attention.self", f"{layers}.{theirs}.attention.self")
        for mine, theirs in ((0, 1), (1, 3), (2, 5))
    ]
    assert not LayerPruning().trains(PARAMS)
    assert LayerPruning().trains({**PARAMS, "epochs": 1})


def test_after_another_pruning_the_teacher_is_still_the_whole(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert", deep("bert")))
    whole = load(target)
    half = LayerPruning().apply(whole, target, [], PARAMS)
    recover = Recorded(whole)
    FfnPruning().apply(half, replace(target, recover=recover), target.task.demo_rows(), {**PARAMS, "epochs": 1})
    (_, settings) = recover.asked[0]
    assert [theirs.rpartition(".")[2] for _, theirs in settings["matching"]] == ["1", "3", "5"]


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_the_columns_that_go_are_those_whose_taylor_term_is_least(
    model_type, make_checkpoint, make_target, load, logits
):
    target = make_target(make_checkpoint(model_type, deep(model_type, 1)))
    rows, task, context = target.task.demo_rows(), target.task, target.context
    model = load(target).eval()
    down = {"bert": "bert.encoder.layer.0.output.dense", "gpt2": "transformer.h.0.mlp.c_proj"}.get(
        model_type, "model.layers.0.mlp.down_proj"
    )
    # By the definition: with a gate on each column, the term is |d loss / d gate| summed over tokens.
    batch = task.collate(task.encode(rows, context), context)
    found = []
    handle = model.get_submodule(down).register_forward_pre_hook(
        lambda module, given: found.append(torch.ones_like(given[0], requires_grad=True)) or (given[0] * found[-1],)
    )
    (gradient,) = torch.autograd.grad(task.loss(model, batch, context), found)
    handle.remove()
    importance = gradient.abs().sum((0, 1)).numpy()
    kept = np.sort(np.argsort(-importance)[: len(importance) // 2])

    smaller = FfnPruning().apply(model, target, rows, PARAMS)
    # The same as a whole model whose other columns lead nowhere.
    cut = copy.deepcopy(model)
    weight = cut.get_submodule(down).weight
    gone = np.setdiff1d(np.arange(len(importance)), kept)
    with torch.no_grad():
        weight[(gone, slice(None)) if model_type == "gpt2" else (slice(None), gone)] = 0.0
    torch.testing.assert_close(logits(smaller, target), logits(cut, target))


def test_all_layers_and_all_columns_are_the_model_itself(make_checkpoint, make_target, load, logits):
    target = make_target(make_checkpoint("bert", deep("bert", 3)))
    model = load(target)
    for compressor in (LayerPruning(), FfnPruning()):
        same = compressor.apply(model, target, target.task.demo_rows(), {**PARAMS, "keep": 1.0})
        torch.testing.assert_close(logits(same, target), logits(model, target))


def test_models_of_two_stacks_are_refused_before_anything_is_trained(make_checkpoint, make_target, load):
    target = replace(make_target(make_checkpoint("bert")), config={"model_type": "t5", "is_encoder_decoder": True})
    for compressor in (LayerPruning(), FfnPruning()):
        refusal = compressor.check(target)
        assert refusal is not None
        assert "t5 is not one stack of layers" in refusal.reason
    with pytest.raises(ModelError, match="no stacks of layers"):
        find_layers(load(make_target(make_checkpoint("bert", deep("bert", 1)))).classifier)
