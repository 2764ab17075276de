from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.errors import ModelError
from autoft.strategies.attention import Attention, find_attention
from autoft.strategies.head_pruning import HeadPruning
from autoft.strategies.layer_pruning import FfnPruning
from autoft.strategies.low_rank import LowRank
from autoft.strategies.onnx import Onnx, OnnxInt8
from autoft.strategies.reshaped import SHAPES, Shapes, read_class, read_reshaped, shapes_of

PARAMS = {"keep": 0.5, "epochs": 0, "learning_rate": 1e-4, "teaching": 0.5}

OUTPUTS = {
    "bert": "bert.encoder.layer.{}.attention.output.dense",
    "roberta": "roberta.encoder.layer.{}.attention.output.dense",
    "distilbert": "distilbert.transformer.layer.{}.attention.out_lin",
    "gpt2": "transformer.h.{}.attn.c_proj",
    "llama": "model.layers.{}.self_attn.o_proj",
    "qwen3": "model.layers.{}.self_attn.o_proj",
}
"""The layer out of the heads, whose inputs are the heads side by side."""
SAYS = {"llama", "qwen3"}
"""Whose configurations can say how many heads there are."""


@pytest.fixture
def make(make_checkpoint, make_target, load):
    """Return a target and its model: four heads 16 wide, of Llama and Qwen two of keys and values."""

    def made(model_type):
        from transformers import AutoConfig, AutoModel

        model = None
        if model_type in {"llama", "qwen3"}:
            shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
            more = {"vocab_size": 22, "intermediate_size": 128, "head_dim": 16, "initializer_range": 0.2}
            torch.manual_seed(0)
            model = AutoModel.from_config(AutoConfig.for_model(model_type, pad_token_id=0, **shape, **more))
        target = make_target(make_checkpoint(model_type, model))
        loaded = load(target).eval()
        loaded.config.pad_token_id = 0
        return target, loaded

    return made


def mask_gradients(model, target, layers):
    """``|d loss / d mask|`` of each head, the mean over rows, each row by itself: Michel et al. 2019, equation 2."""
    task, context = target.task, target.context
    rows = task.demo_rows()
    found = np.zeros((len(layers), 4))
    for row in rows:
        batch = task.collate(task.encode([row], context), context)
        masks = [torch.ones(4, requires_grad=True) for _ in layers]
        handles = [
            model.get_submodule(layer).register_forward_pre_hook(
                lambda module, given, mask=mask: (given[0] * mask.repeat_interleave(16),)
            )
            for layer, mask in zip(layers, masks, strict=True)
        ]
        gradients = torch.autograd.grad(task.loss(model, batch, context), masks)
        for handle in handles:
            handle.remove()
        found += np.abs(np.stack([gradient.numpy() for gradient in gradients])) / len(rows)
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", list(OUTPUTS))
def test_the_heads_that_go_are_those_whose_mask_moves_the_loss_least(model_type, attention, make, logits):
    target, model = make(model_type)
    model.set_attn_implementation(attention)
    layers = [OUTPUTS[model_type].format(i) for i in range(2)]
    importance = mask_gradients(model, target, layers)
    if model_type in SAYS:
        # Heads that share keys and values stay or go together.
        importance = importance.reshape(2, 2, 2).sum(-1)
    groups, width = importance.shape[1], 64 // importance.shape[1]
    smaller = HeadPruning().apply(model, target, target.task.demo_rows(), PARAMS)
    assert smaller.config._attn_implementation == attention
    masked = []
    for layer, values in zip(layers, importance, strict=True):
        mask = torch.zeros(64)
        for group in np.argsort(-values)[: groups // 2]:
            mask[group * width : (group + 1) * width] = 1
        masked.append(
            model.get_submodule(layer).register_forward_pre_hook(lambda module, given, mask=mask: (given[0] * mask,))
        )
    torch.testing.assert_close(logits(smaller, target), logits(model, target))
    for handle in masked:
        handle.remove()
    assert (logits(smaller, target) - logits(model, target)).abs().max() > 1e-3
    for layer in layers:
        weight = smaller.get_submodule(layer).weight
        assert weight.shape == ((32, 64) if model_type == "gpt2" else (64, 32))


@pytest.mark.parametrize("model_type", list(OUTPUTS))
def test_the_files_load_back_exactly_and_into_transformers_where_it_can_say_so(
    model_type, make, load, logits, tmp_path
):
    target, model = make(model_type)
    smaller = HeadPruning().apply(model, target, target.task.demo_rows(), PARAMS)
    HeadPruning().save(smaller, tmp_path)
    loaded = HeadPruning().load(tmp_path, target)
    assert type(loaded) is type(model)
    stored = smaller.state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in loaded.state_dict().items())
    torch.testing.assert_close(logits(loaded, target), logits(smaller, target), rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in model.parameters())
    shapes = Shapes.model_validate_json((tmp_path / SHAPES).read_text())
    assert (shapes == Shapes()) == (model_type in SAYS)
    if model_type in SAYS:
        plain = load(replace(target, source=replace(target.source, path=str(tmp_path))))
        assert plain.config.num_attention_heads == 2
        assert plain.config.num_key_value_heads == 1
        torch.testing.assert_close(logits(plain, target), logits(smaller, target), rtol=1e-5, atol=1e-5)
    else:
        with pytest.raises(RuntimeError, match="mismatch"):
            load(replace(target, source=replace(target.source, path=str(tmp_path))))


@pytest.mark.parametrize("keep", [0.01, 0.25, 0.5, 0.75, 1.0])
def test_so_many_heads_stay_as_asked_for_and_all_are_the_model_itself(keep, make, logits):
    target, model = make("bert")
    smaller = HeadPruning().apply(model, target, target.task.demo_rows(), {**PARAMS, "keep": keep})
    assert [one.heads for one in find_attention(smaller)] == [max(1, int(4 * keep))] * 2
    attention = smaller.bert.encoder.layer[0].attention.self
    assert attention.num_attention_heads * attention.attention_head_size == attention.all_head_size
    if keep == 1.0:
        torch.testing.assert_close(logits(smaller, target), logits(model, target))


def test_a_decoder_without_some_of_its_heads_writes_with_its_cache_as_without(make):
    from transformers import AutoModelForCausalLM

    for model_type in ("gpt2", "llama"):
        target, _ = make(model_type)

        class Writing(type(target.task)):
            def loss(self, model, batch, context):
                return model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss

        model = AutoModelForCausalLM.from_pretrained(target.source.path).eval()
        smaller = HeadPruning().apply(model, replace(target, task=Writing()), target.task.demo_rows(), PARAMS)
        ids = torch.tensor([[5, 6, 7]])
        settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        with torch.no_grad():
            cached, plain = (smaller.generate(ids, use_cache=use, **settings) for use in (True, False))
        assert torch.equal(cached, plain)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6).flatmap(lambda groups: st.tuples(st.just(groups), st.integers(1, 3), st.integers(1, 4))),
    st.floats(0.05, 1.0),
    st.integers(0, 2**31),
)
def test_the_columns_that_stay_are_whole_groups_of_the_most_important_heads(sizes, keep, seed):
    groups, shared, size = sizes
    importance = np.random.default_rng(seed).random(groups * shared)
    one = Attention(None, (), None, size, groups * shared, groups)
    columns = one.columns(torch.tensor(importance), keep).tolist()
    sums = [importance[g * shared : (g + 1) * shared].sum() for g in range(groups)]
    best = sorted(range(groups), key=lambda g: -sums[g])[: max(1, round(keep * groups))]
    width = shared * size
    assert columns == [g * width + i for g in sorted(best) for i in range(width)]


def test_graphs_are_those_of_the_pruned_model_at_other_sizes_than_they_were_traced_at(tmp_path):
    from autoft.plugins import load_plugins
    from autoft.testing.workbench import Workbench

    bench = Workbench(load_plugins().task("text-classification"), load_plugins())
    model = HeadPruning().apply(bench.trained.model, bench.target, bench.rows, PARAMS)
    model = FfnPruning().apply(model, bench.target, bench.rows, PARAMS)
    assert [one.heads for one in find_attention(model)] == [1, 1]
    graph = Onnx().apply(model, bench.target, bench.rows, {})
    Onnx().save(graph, tmp_path)
    loaded = Onnx().load(tmp_path, bench.target)
    for batch, length in ((1, 1), (1, 9), (2, 3), (5, 17), (7, 40)):
        ids = torch.randint(5, model.config.vocab_size, (batch, length))
        mask = torch.ones_like(ids)
        mask[0, length // 2 + 1 :] = 0
        with torch.no_grad():
            wanted = model(input_ids=ids, attention_mask=mask).logits
        found = loaded(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert OnnxInt8().apply(model, bench.target, bench.rows, {}).proto.ByteSize() < graph.proto.ByteSize()


@pytest.mark.parametrize("task", ["token-classification", "question-answering", "generation"])
def test_models_of_other_tasks_keep_what_they_learned_and_load_back(task):
    """As the checks of every compressor, whose plan knows too little of its models to have them pruned."""
    from autoft.plugins import load_plugins
    from autoft.testing.strategies import compress, keeps_quality
    from autoft.testing.workbench import Workbench

    bench = Workbench(load_plugins().task(task), load_plugins())
    assert HeadPruning().check(replace(bench.planning, config=bench.config)) is None
    keeps_quality(bench, HeadPruning(), compress(bench, HeadPruning()))


NAMES = {"vocab_size": 22, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
COMMON = {**NAMES, "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0}
PICTURES = {**COMMON, "image_size": 16, "patch_size": 8}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
ARCHITECTURES = {
    "configuration": {
        **{
            name: {"num_key_value_heads": 2} for name in ["llama", "mistral", "qwen2", "qwen3", "starcoder2", "smollm3"]
        },
        **{name: {"head_dim": 8, "num_key_value_heads": 2} for name in ["gemma", "gemma2", "gemma3_text"]},
        **{name: {} for name in ["phi", "nomic_bert", "vit", "beit", "dinov2", "ijepa"]},
    },
    "shapes.json": {
        **{name: {} for name in ["bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie", "esm", "roformer"]},
        **{name: {} for name in ["distilbert", "gpt2", "gpt_neo", "opt", "albert", "modernbert"]},
        "deberta-v2": {**DISENTANGLED, "position_biased_input": False, "share_att_key": True},
        "stablelm": {"num_key_value_heads": 2},
        "gpt_neo": {"attention_types": [[["global"], 2]], "num_layers": 2},
        "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
        "modernbert": {f"{name}_token_id": 1 for name in ("cls", "sep", "bos", "eos")},
    },
    "refused": {
        **{name: {} for name in ["mpnet", "bloom", "falcon", "gpt_neox", "phi3", "olmo2"]},
        "deberta": DISENTANGLED,
    },
}
"""Where docs/compression.md says that it is written how many heads there are, and what tiny configurations need besides."""


@pytest.mark.parametrize(
    ("model_type", "where"), [(model_type, where) for where, types in ARCHITECTURES.items() for model_type in types]
)
def test_architectures_are_pruned_as_the_page_says(model_type, where, make_target, tmp_path):
    from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

    target = make_target(tmp_path)
    seeing = model_type in {"vit", "beit", "dinov2", "ijepa"}
    config = AutoConfig.for_model(model_type, **(PICTURES if seeing else COMMON), **ARCHITECTURES[where][model_type])
    if seeing:

        class Seeing(type(target.task)):
            def encode(self, rows, context):
                return [{"pixel_values": torch.randn(3, 16, 16), "labels": i % 2} for i, _ in enumerate(rows)]

            def collate(self, features, context):
                return {name: torch.stack([torch.as_tensor(f[name]) for f in features]) for name in features[0]}

        target = replace(target, task=Seeing())
    torch.manual_seed(0)
    kind = AutoModelForImageClassification if seeing else AutoModelForSequenceClassification
    model = kind.from_config(config).eval()
    for value in model.parameters():
        if value.dim() > 1:
            torch.nn.init.normal_(value, std=0.2)
    refusal = HeadPruning().check(replace(target, config=config.to_dict()))
    assert bool(refusal) == (where == "refused")
    rows = target.task.demo_rows()
    if where == "refused":
        with pytest.raises(ModelError, match=r"no attention of a form that is known|does not work with fewer heads"):
            HeadPruning().apply(model, target, rows, PARAMS)
        return
    smaller = HeadPruning().apply(model, target, rows, PARAMS)
    before, after = find_attention(model), find_attention(smaller)
    assert [one.groups * 2 for one in after] == [one.groups for one in before]
    assert (shapes_of(smaller) == Shapes()) == (where == "configuration")
    HeadPruning().save(smaller, tmp_path)
    loaded = kind.from_pretrained(tmp_path) if where == "configuration" else read_reshaped(tmp_path)
    stored = smaller.state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in loaded.state_dict().items())


def test_further_steps_leave_the_files_to_it(make, logits, tmp_path):
    target, model = make("bert")
    rows = target.task.demo_rows()
    narrow = HeadPruning().apply(model, target, rows, PARAMS)
    smaller = FfnPruning().apply(narrow, target, rows, PARAMS)
    HeadPruning().save(smaller, tmp_path)
    torch.testing.assert_close(logits(HeadPruning().load(tmp_path, target), target), logits(smaller, target))
    factorised = LowRank().apply(smaller, target, rows, PARAMS)
    shapes = shapes_of(factorised)
    assert shapes.factors
    assert shapes.numbers["bert.encoder.layer.0.attention.self"] == {"num_attention_heads": 2, "all_head_size": 32}
    LowRank().save(factorised, tmp_path)
    torch.testing.assert_close(logits(read_reshaped(tmp_path), target), logits(factorised, target))


def test_code_that_comes_with_the_files_is_neither_run_nor_offered(tmp_path, monkeypatch):
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}, "architectures": ["BertModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    asked = []
    # What a user would type, or what the first row to predict says.
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "y")
    with pytest.raises(ValueError, match="trust_remote_code"):
        read_class(tmp_path)
    assert not asked
    assert not (tmp_path / "ran").exists()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["pipeline"]}))
    with pytest.raises(ModelError, match="'pipeline', which is no model class"):
        read_class(tmp_path)


def test_refusals_say_what_would_change_them(make_checkpoint, make_target, load, make):
    target = make_target(make_checkpoint("bert"))
    assert HeadPruning().check(target) is None
    for config, told in (
        ({"model_type": "t5", "is_encoder_decoder": True}, "t5 is not one stack of layers"),
        ({"model_type": "resnet"}, "resnet is not one stack of layers"),
        ({"model_type": "mpnet", "num_hidden_layers": 2}, "heads of mpnet cannot be taken out one by one"),
    ):
        assert told in HeadPruning().check(replace(target, config=config)).reason
    model = load(target)
    for layer in model.bert.encoder.layer:
        layer.attention.self.query = torch.nn.Sequential(layer.attention.self.query)
    with pytest.raises(
        ModelError, match="BertForSequenceClassification of toy has no attention of a form that is known"
    ):
        HeadPruning().apply(model, target, [], PARAMS)


def test_a_model_that_does_not_work_with_fewer_heads_is_told(make):
    """A stand-in for an architecture with something beside that belongs to heads, as a bias of positions."""
    target, model = make("bert")
    for layer in model.bert.encoder.layer:
        attention = layer.attention.self
        attention.register_forward_hook(lambda module, given, out: (out[0] + torch.arange(64.0), *out[1:]))
    with pytest.raises(
        ModelError, match="does not work with fewer heads than its configuration says: The size of tensor"
    ):
        HeadPruning().apply(model, target, target.task.demo_rows(), PARAMS)
    _, model = make("bert")
    for layer in model.bert.encoder.layer:
        attention = layer.attention.self
        # What it gives depends on how many heads there are.
        attention.register_forward_hook(lambda module, given, out: (out[0] * out[0].shape[-1], *out[1:]))
    with pytest.raises(ModelError, match=r"its heads differ by 0\.5 from what they were in the whole"):
        HeadPruning().apply(model, target, target.task.demo_rows(), PARAMS)
    _, model = make("bert")
    # With all of its heads the first layer gives numbers.
    attention = model.bert.encoder.layer[0].attention.self
    attention.register_forward_hook(lambda module, given, out: (out[0] / (out[0].shape[-1] == 64), *out[1:]))
    with pytest.raises(ModelError, match="its heads differ by nan"):
        HeadPruning().apply(model, target, target.task.demo_rows(), PARAMS)
