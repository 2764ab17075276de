from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from autoft.errors import ModelError
from autoft.strategies.factors import DAMPING, Factors, factorize, rank_of
from autoft.strategies.layer_pruning import FfnPruning, LayerPruning
from autoft.strategies.linear_layers import body_layers
from autoft.strategies.low_rank import LowRank
from autoft.strategies.reshaped import SHAPES, Shapes, read_reshaped, shapes_of
from autoft.testing import tiny_model

PARAMS = {"keep": 0.5, "epochs": 0, "learning_rate": 1e-4, "teaching": 0.5}
MODELS = ["bert", "distilbert", "roberta", "gpt2", "llama"]

sizes = st.tuples(st.integers(2, 7), st.integers(2, 7)).flatmap(
    lambda size: st.tuples(st.just(size), st.integers(1, min(size)), st.integers(0, 2**31))
)


def loss(gram: np.ndarray, weight: np.ndarray, product: np.ndarray) -> float:
    """``sum |(W - P) x|²`` over the inputs of the gram matrix."""
    away = weight - product
    return float(np.trace(away @ gram @ away.T))


@settings(max_examples=60, deadline=None)
@given(sizes)
def test_without_inputs_what_is_lost_is_what_eckart_and_young_say(case):
    size, rank, seed = case
    weight = np.random.default_rng(seed).normal(size=size)
    first, second, left_out = factorize(torch.tensor(weight), rank)
    assert first.shape == (rank, size[1])
    assert second.shape == (size[0], rank)
    values = np.linalg.svd(weight, compute_uv=False)
    away = np.linalg.norm(weight - (second @ first).numpy())
    assert away == pytest.approx(np.sqrt((values[rank:] ** 2).sum()), abs=1e-9)
    np.testing.assert_allclose(left_out.numpy(), values[rank:], atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(first.numpy(), axis=1), np.linalg.norm(second.numpy(), axis=0), rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(1, 20))
def test_with_inputs_nothing_of_the_rank_answers_more_alike(case, count):
    size, rank, seed = case
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=size)
    # Few inputs, so that many gram matrices have no inverse; of very unlike sizes, as activations are.
    inputs = rng.normal(size=(size[1], count)) * np.exp(rng.normal(size=(size[1], 1)))
    gram = inputs @ inputs.T
    first, second, left_out = factorize(torch.tensor(weight), rank, torch.tensor(gram))
    damped = gram + DAMPING * np.diag(gram).mean() * np.eye(size[1])
    found = loss(damped, weight, (second @ first).numpy())
    assert found == pytest.approx(float((left_out**2).sum()), rel=1e-6, abs=1e-9)
    # By another way: alternating least squares from several starts find no better product of this rank.
    for start in range(4):
        one = np.random.default_rng(start).normal(size=(rank, size[1]))
        for _ in range(60):
            other = weight @ damped @ one.T @ np.linalg.pinv(one @ damped @ one.T)
            one = np.linalg.pinv(other) @ weight
        assert found <= loss(damped, weight, other @ one) * (1 + 1e-6) + 1e-9
    plain, also, _ = factorize(torch.tensor(weight), rank)
    assert found <= loss(damped, weight, (also @ plain).numpy()) * (1 + 1e-6) + 1e-9


def test_inputs_that_are_nothing_are_no_inputs():
    weight = torch.randn(5, 4, dtype=torch.float64)
    told = zip(factorize(weight, 2), factorize(weight, 2, torch.zeros(4, 4)), strict=True)
    assert all(torch.equal(one, other) for one, other in told)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4096), st.integers(1, 4096), st.floats(0.05, 1.0))
def test_factors_have_the_share_that_is_asked_for_or_the_layer_stays(inputs, outputs, keep):
    rank = rank_of(inputs, outputs, keep)
    whole, slice_of_eight = inputs * outputs, 8 * (inputs + outputs)
    if rank is None:
        assert keep * whole > whole - slice_of_eight or whole <= slice_of_eight
    else:
        assert rank % 8 == 0
        assert rank * (inputs + outputs) < whole
        assert abs(rank * (inputs + outputs) - keep * whole) <= slice_of_eight


@pytest.mark.parametrize("model_type", MODELS)
def test_each_layer_is_the_nearest_one_for_the_inputs_that_it_sees(model_type, make_checkpoint, make_target, load):
    target = make_target(make_checkpoint(model_type))
    model = load(target).eval()
    model.config.pad_token_id = 0
    rows, task, context = target.task.demo_rows(), target.task, target.context
    seen: dict[str, list[torch.Tensor]] = {}
    batch = task.collate(task.encode(rows, context), context)
    mask = batch["attention_mask"].bool()
    layers = body_layers(model)
    handles = [
        layer.register_forward_pre_hook(lambda module, given, name=name: seen.setdefault(name, []).append(given[0]))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        task.loss(model, batch, context)
    for handle in handles:
        handle.remove()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    smaller = LowRank().apply(model, target, rows, PARAMS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the model stays"
    found = {name: module for name, module in smaller.named_modules() if isinstance(module, Factors)}
    assert found
    assert all(name in layers for name in found)
    for name, factors in found.items():
        weight = layers[name].weight.detach().double().numpy()
        weight = weight.T if model_type == "gpt2" else weight
        (inputs,) = seen[name]
        inputs = (inputs[mask] if inputs.dim() == 3 else inputs).double().numpy()
        gram = inputs.T @ inputs
        root = np.linalg.cholesky(gram + DAMPING * np.diag(gram).mean() * np.eye(len(gram)))
        left, values, right = np.linalg.svd(weight @ root)
        rank = factors[0].out_features
        assert rank == rank_of(weight.shape[1], weight.shape[0], 0.5)
        expected = left[:, :rank] * values[:rank] @ right[:rank] @ np.linalg.inv(root)
        product = (factors[1].weight @ factors[0].weight).detach().numpy()
        np.testing.assert_allclose(product, expected, atol=2e-3 * np.abs(expected).max())
        bias = getattr(layers[name], "bias", None)
        assert (factors[1].bias is None) == (bias is None)
        assert bias is None or torch.equal(factors[1].bias, bias)


@pytest.mark.parametrize("model_type", MODELS)
def test_the_files_are_smaller_and_load_back_exactly(model_type, make_checkpoint, make_target, load, logits, tmp_path):
    target = make_target(make_checkpoint(model_type))
    model = load(target)
    model.config.pad_token_id = 0
    smaller = LowRank().apply(model, target, target.task.demo_rows(), PARAMS)
    assert (logits(smaller, target) - logits(model, target)).abs().max() > 0
    LowRank().save(smaller, tmp_path)
    loaded = LowRank().load(tmp_path, target)
    assert type(loaded) is type(model)
    assert not loaded.training
    stored = smaller.state_dict()
    assert loaded.state_dict().keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in loaded.state_dict().items())
    # Where weights lie in memory decides the last bit of products.
    torch.testing.assert_close(logits(loaded, target), logits(smaller, target), rtol=1e-5, atol=1e-5)
    count = {kind: sum(p.numel() for p in one.parameters()) for kind, one in (("was", model), ("is", loaded))}
    assert count["is"] < count["was"]
    # A second time from what was loaded, as another variant would.
    LowRank().save(loaded, tmp_path)
    again = LowRank().load(tmp_path, target).state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in again.items())


@pytest.mark.parametrize("kind", ["decoder-conv1d", "seq2seq", "vision", "vision-to-text"])
def test_other_bodies_come_through_too_and_shared_embeddings_are_written_once(kind, tmp_path):
    import transformers

    folder = tiny_model(kind, tmp_path / "model", ["some words"])
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder)
    words = torch.tensor([[5, 6, 7]])
    inputs = {"seq2seq": {"input_ids": words, "decoder_input_ids": words}, "decoder-conv1d": {"input_ids": words}}
    given = inputs.get(kind, {"pixel_values": torch.randn(1, 3, 32, 32)})
    if kind == "vision-to-text":
        given["decoder_input_ids"] = words
    shapes = {name: (layer.weight.shape) for name, layer in body_layers(model).items()}
    assert shapes
    assert not any("lm_head" in name for name in shapes)
    for name, layer in body_layers(model).items():
        conv = type(layer).__name__ == "Conv1D"
        inside, outside = layer.weight.shape if conv else layer.weight.shape[::-1]
        factors = Factors(inside, 8, outside, bias=layer.bias is not None)
        model.set_submodule(name, factors)
    LowRank().save(model.eval(), tmp_path)
    loaded = read_reshaped(tmp_path)
    with torch.no_grad():
        wanted, found = model(**given), loaded(**given)
    for key, value in wanted.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5)
    stored = load_file(str(tmp_path / "model.safetensors"))
    assert (
        sum(len(value) == config.vocab_size for value in stored.values()) == 1 if kind == "decoder-conv1d" else stored
    )


def test_what_takes_factorised_models_answers_as_they_do(tmp_path):
    from autoft.plugins import load_plugins
    from autoft.testing.workbench import Workbench

    bench = Workbench(load_plugins().task("text-classification"), load_plugins())
    takers = [one for one in load_plugins().compressors.values() if "factorized" in one.accepts]
    taking = [one for one in takers if one.yields in {"exported", "quantized"}]
    assert {one.name for one in taking} >= {"onnx", "onnx-int8", "onnx-static-int8", "onnx-int4", "onnx-mixed"}
    assert {one.name for one in taking} >= {"dynamic-int8"}
    smaller = LowRank().apply(bench.trained.model, bench.target, bench.rows, PARAMS)
    batch = {name: value for name, value in bench.batch().items() if name != "labels"}
    for one in taking:
        made = one.apply(smaller, bench.target, bench.rows, {name: d.default for name, d in one.space.items()})
        folder = tmp_path / one.name
        folder.mkdir()
        one.save(made, folder)
        loaded = one.load(folder, bench.target)
        with torch.no_grad():
            wanted, found = smaller(**batch).logits, loaded(**batch).logits
        if one.name == "bf16-weights":
            assert {value.dtype for value in loaded.parameters()} == {torch.bfloat16}
        # 4 bits move the answers of so small a model a good deal.
        slack = {"onnx": 1e-3, "onnx-int4": 0.5, "onnx-mixed": 0.5}.get(one.name, 0.25)
        assert (found - wanted).abs().mean() < slack * wanted.abs().mean(), one.name


def test_further_steps_leave_the_files_to_it(make_checkpoint, make_target, load, logits, tmp_path):
    target = make_target(make_checkpoint("bert"))
    rows = target.task.demo_rows()
    smaller = LowRank().apply(load(target), target, rows, PARAMS)
    shorter = LayerPruning().apply(smaller, target, rows, PARAMS)
    assert shapes_of(shorter).factors.keys() == {name for name in shapes_of(smaller).factors if ".layer.1." not in name}
    LowRank().save(shorter, tmp_path)
    torch.testing.assert_close(logits(LowRank().load(tmp_path, target), target), logits(shorter, target))
    with pytest.raises(ModelError, match="no feed-forward blocks"):
        FfnPruning().apply(smaller, target, rows, PARAMS)


def test_tokens_can_be_dropped_after_it(tmp_path):
    from autoft.plugins import load_plugins
    from autoft.strategies.vocabulary_pruning import VocabularyPruning
    from autoft.testing.workbench import Workbench

    bench = Workbench(load_plugins().task("text-classification"), load_plugins())
    narrow = LowRank().apply(bench.trained.model, bench.target, bench.rows, PARAMS)
    params = {"min_count": 2, "unseen": 1.0, **PARAMS}
    fewer, target = VocabularyPruning().transform(narrow, bench.target, bench.rows, params)
    assert fewer.config.vocab_size < narrow.config.vocab_size
    loaded = bench.write_and_read(fewer, LowRank(), "low-rank+vocabulary-pruning", target)
    assert loaded.model.config.vocab_size == fewer.config.vocab_size
    assert bench.judge(loaded.model, loaded.context) == bench.judge(fewer, target.context)


def test_a_model_as_its_configuration_says_has_no_shapes_of_its_own(make_checkpoint, make_target, load):
    for model_type in MODELS:
        model = load(make_target(make_checkpoint(model_type)))
        assert shapes_of(model) == Shapes()
    model.classifier = torch.nn.Linear(3, 2)
    with pytest.raises(ModelError, match=r"classifier\.bias is not in both"):
        shapes_of(model)


def test_the_factors_learn_from_the_layers_of_the_whole(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    asked = []

    class Recorded:
        teacher = load(target)

        def __call__(self, student, target, **settings):
            asked.append(settings["matching"])

    LowRank().apply(Recorded.teacher, replace(target, recover=Recorded()), [], {**PARAMS, "epochs": 1})
    layers = [f"bert.encoder.layer.{i}" for i in range(2)]
    assert asked == [list(zip(layers, layers, strict=True))]
    assert LowRank().trains({**PARAMS, "epochs": 1})
    assert not LowRank().trains(PARAMS)


def test_refusals_say_what_would_change_them(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    assert LowRank().check(target) is None
    refusal = LowRank().check(replace(target, config={"model_type": "resnet"}))
    assert "resnet computes with convolutions; use a model with linear layers" in refusal.reason
    from transformers import AutoModel, BertConfig

    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    narrow = make_target(make_checkpoint("bert", AutoModel.from_config(BertConfig(vocab_size=22, **shape))))
    with pytest.raises(ModelError, match=r"no linear layer of toy would become smaller at keep=0\.5; lower it"):
        LowRank().apply(load(narrow), narrow, [], PARAMS)
    model = load(target)
    model.__class__ = type("MyModel", (type(model),), {})
    with pytest.raises(ModelError, match="MyModel is no class of transformers"):
        LowRank().apply(model, target, [], PARAMS)


def test_damaged_files_are_told(make_checkpoint, make_target, load, tmp_path):
    target = make_target(make_checkpoint("bert"))
    LowRank().save(LowRank().apply(load(target), target, [], PARAMS), tmp_path)
    good = json.loads((tmp_path / SHAPES).read_text())
    (first, *_) = good["factors"]
    for changed, told in (
        ({"factors": {**good["factors"], first: [64, 24, 64]}}, "do not fit the model"),
        ({"factors": {"bert.embeddings.word_embeddings": [8, 8, 8]}}, "word_embeddings is no linear layer"),
        ({"factors": {"bert.nothing": [8, 8, 8]}}, "of another model"),
        ({"numbers": {"bert": {"forward": 1}}}, "bert has no number forward"),
        ({"sizes": {"bert.nothing.weight": [1]}}, "of another model"),
    ):
        (tmp_path / SHAPES).write_text(json.dumps({**good, **changed}))
        with pytest.raises(ModelError, match=told):
            LowRank().load(tmp_path, target)
    (tmp_path / SHAPES).write_text("{")
    with pytest.raises(ValueError, match="Shapes"):
        LowRank().load(tmp_path, target)
    (tmp_path / SHAPES).write_text(json.dumps(good))
    tensors = load_file(str(tmp_path / "model.safetensors"))
    tensors.pop(f"{first}.1.weight")
    save_file(tensors, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(ModelError, match="do not fit the model"):
        LowRank().load(tmp_path, target)
