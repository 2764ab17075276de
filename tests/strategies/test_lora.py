from __future__ import annotations

import math

import pytest
import torch

from autoft.errors import ModelError
from autoft.strategies.head_only import find_head
from autoft.strategies.lora import Lora
from autoft.strategies.peft_adapter import find_targets

PARAMS = {name: domain.default for name, domain in Lora.space.items()}
MODELS = ["bert", "distilbert", "roberta", "gpt2", "llama"]
HEADS = {
    "bert": {"classifier"},
    "distilbert": {"classifier", "pre_classifier"},
    "roberta": {"classifier"},
    "gpt2": {"score"},
    "llama": {"score"},
}
ATTENTION = {
    "bert": {"self.query", "self.key", "self.value", "output.dense"},
    "distilbert": {"q_lin", "k_lin", "v_lin", "out_lin"},
    "roberta": {"self.query", "self.key", "self.value", "output.dense"},
    "gpt2": {"c_attn", "c_proj"},
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj"},
}
LAYERS_A_BLOCK = {"bert": 6, "distilbert": 6, "roberta": 6, "gpt2": 4, "llama": 7}
BLOCKS = 2


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).detach().norm() / expected.detach().norm())


def leftovers(model: torch.nn.Module) -> list[str]:
    found = [name for name, module in model.named_modules() if type(module).__module__.startswith("peft")]
    return found + [name for name in ("peft_config", "active_adapter") if name in model.__dict__]


@pytest.mark.parametrize("model_type", MODELS)
def test_targets_are_the_linear_layers_of_the_blocks(model_type, make_checkpoint, make_target, load):
    model = load(make_target(make_checkpoint(model_type)))
    head = find_head(model)
    every = find_targets(model, "all-linear", head)
    attention = find_targets(model, "attention", head)
    pooler = {"bert.pooler.dense"} if model_type == "bert" else set()
    assert len(set(every) - pooler) == BLOCKS * LAYERS_A_BLOCK[model_type]
    assert set(head.modules) == HEADS[model_type]
    endings = {name.rsplit("attn.")[-1].rsplit("attention.")[-1] for name in attention}
    assert endings == ATTENTION[model_type]
    assert len(attention) == BLOCKS * len(ATTENTION[model_type])
    assert set(attention) < set(every)


@pytest.mark.parametrize("targets", ["all-linear", "attention"])
@pytest.mark.parametrize("model_type", MODELS)
def test_trains_the_matrices_and_the_head_only(model_type, targets, make_checkpoint, make_target, load, train):
    target = make_target(make_checkpoint(model_type))
    model = Lora().attach(load(target), target, {**PARAMS, "targets": targets})
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    matrices = {name for name in trained if ".lora_A." in name or ".lora_B." in name}
    heads = {name.removeprefix("base_model.model.").partition(".modules_to_save")[0] for name in trained - matrices}
    assert heads == HEADS[model_type]
    frozen = {name: value.clone() for name, value in model.named_parameters() if name not in trained}
    losses = train(model, target)
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in frozen.items())


@pytest.mark.parametrize("onto_base", [False, True])
@pytest.mark.parametrize("model_type", MODELS)
def test_merge_leaves_a_plain_model(model_type, onto_base, make_checkpoint, make_target, load, train, logits, tmp_path):
    target = make_target(make_checkpoint(model_type))
    base = load(target)
    original, names = type(base), set(base.state_dict())
    model = Lora().attach(base, target, PARAMS)
    train(model, target)
    expected = logits(model, target)

    # Another seed gives another random head, which must not survive.
    merged = Lora().merge(model, (lambda: load(target, seed=99)) if onto_base else None, target)

    assert type(merged) is original
    assert set(merged.state_dict()) == names
    assert leftovers(merged) == []
    assert relative(logits(merged, target), expected) < 1e-4
    assert relative(logits(load(target), target), expected) > 0.5
    merged.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    torch.testing.assert_close(logits(original.from_pretrained(tmp_path), target), logits(merged, target))


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_merged_weight_is_the_papers_formula(model_type, rslora, make_checkpoint, make_target, load, train):
    target = make_target(make_checkpoint(model_type))
    before = {name: value.clone() for name, value in load(target).state_dict().items()}
    params = {**PARAMS, "rank": 4, "alpha": 24, "rslora": rslora}
    model = Lora().attach(load(target), target, params)
    train(model, target, steps=3)
    scale = 24 / math.sqrt(4) if rslora else 24 / 4
    learned = {name: value.clone() for name, value in model.state_dict().items()}
    merged = Lora().merge(model, None, target).state_dict()
    checked = 0
    for name in [name for name in learned if ".lora_A." in name]:
        plain = name.removeprefix("base_model.model.").partition(".lora_A")[0] + ".weight"
        update = scale * learned[name.replace("lora_A", "lora_B")] @ learned[name]
        update = update.T if model_type == "gpt2" else update  # Conv1D keeps (in, out)
        torch.testing.assert_close(merged[plain], before[plain] + update)
        checked += 1
    assert checked >= BLOCKS * LAYERS_A_BLOCK[model_type]


def test_a_pooler_that_the_checkpoint_lacks_is_trained_in_full(make_checkpoint, make_target, load, train, logits):
    from transformers import AutoConfig, BertModel

    with_pooler = make_target(make_checkpoint("bert"))
    config = AutoConfig.from_pretrained(with_pooler.source.path)
    target = make_target(make_checkpoint("bert", BertModel(config, add_pooling_layer=False)))
    base = load(target)
    assert set(find_head(base).modules) == {"bert.pooler", "classifier"}
    model = Lora().attach(base, target, PARAMS)
    assert not any("pooler" in name for name, _ in model.named_parameters() if "lora" in name)
    train(model, target, steps=4)
    expected = logits(model, target)
    merged = Lora().merge(model, lambda: load(target, seed=99), target)
    torch.testing.assert_close(logits(merged, target), expected, rtol=1e-3, atol=1e-4)


def test_frozen_weights_that_the_checkpoint_lacks_are_copied(make_checkpoint, make_target, load, logits):
    target = make_target(make_checkpoint("bert"))
    base = load(target)
    with torch.no_grad():
        base.bert.embeddings.LayerNorm.weight.mul_(3)  # as a part that each load would make anew
    model = Lora().attach(base, target, PARAMS)
    expected = logits(model, target)
    merged = Lora().merge(model, lambda: load(target), target)
    torch.testing.assert_close(logits(merged, target), expected, rtol=1e-3, atol=1e-4)


def test_saved_adapter_holds_the_head(make_checkpoint, make_target, load, train, logits, tmp_path):
    from peft import PeftModel

    target = make_target(make_checkpoint("distilbert"))
    model = Lora().attach(load(target), target, PARAMS)
    train(model, target)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(load(target, seed=99), tmp_path)
    torch.testing.assert_close(logits(again, target), logits(model, target))


@pytest.mark.parametrize(
    ("architecture", "auto", "model_type", "head"),
    [
        ("token-classification", "TokenClassification", "distilbert", {"classifier"}),
        ("question-answering", "QuestionAnswering", "bert", {"qa_outputs"}),
        ("causal-lm", "CausalLM", "gpt2", set()),
        ("causal-lm", "CausalLM", "llama", set()),
        ("seq2seq-lm", "Seq2SeqLM", "t5", set()),
        ("seq2seq-lm", "Seq2SeqLM", "bart", set()),
        ("image-classification", "ImageClassification", "vit", {"classifier"}),
        ("something-new", "SequenceClassification", "bert", {"classifier", "bert.pooler"}),
    ],
)
def test_other_architectures(architecture, auto, model_type, head, make_target, tmp_path):
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    own = {
        "t5": {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
        "bart": {
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
        },
        "distilbert": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 48},
        "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2},
        "vit": {**sizes, "image_size": 16, "patch_size": 8},
    }
    text = {} if model_type == "vit" else {"vocab_size": 40}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **own.get(model_type, sizes), **text)
    model = getattr(transformers, f"AutoModelFor{auto}").from_config(config).eval()
    if "pooler" in str(head):
        # As after from_pretrained() from a checkpoint without a pooler.
        for name, parameter in model.named_parameters():
            if "pooler" not in name and "classifier" not in name:
                parameter._is_hf_initialized = True
    target = make_target(tmp_path, architecture=architecture)
    if model_type == "vit":
        inputs = {"pixel_values": torch.randn(2, 3, 16, 16)}
    else:
        inputs = {"input_ids": torch.randint(1, 40, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    if architecture == "seq2seq-lm":
        inputs["decoder_input_ids"] = torch.randint(1, 40, (2, 4))
    adapted = Lora().attach(model, target, PARAMS)
    matrices = [p for n, p in adapted.named_parameters() if p.requires_grad and ".lora_" in n]
    rest = {
        n.removeprefix("base_model.model.").partition(".modules_to_save")[0]
        for n, p in adapted.named_parameters()
        if p.requires_grad and ".lora_" not in n
    }
    assert rest == head
    first = adapted(**inputs)[0]
    first.float().pow(2).mean().backward()
    assert all(parameter.grad is not None for parameter in matrices)
    with torch.no_grad():
        for parameter in matrices:
            parameter.add_(torch.randn_like(parameter) * 0.1)
        expected = adapted.eval()(**inputs)[0]
        got = Lora().merge(adapted, None, target)(**inputs)[0]
    assert relative(expected, first) > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_a_head_named_like_a_layer_of_the_body(make_checkpoint, make_target):
    from transformers import BertModel, BertPreTrainedModel

    class Peculiar(BertPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.bert = BertModel(config, add_pooling_layer=False)
            self.query = torch.nn.Linear(config.hidden_size, 3)
            self.temperature = torch.nn.Parameter(torch.ones(1))
            self.post_init()

        def _init_weights(self, module):
            super()._init_weights(module)
            if module is self:
                # Not in the files: transformers leaves to this method what is in its memory.
                torch.nn.init.ones_(self.temperature)

        def forward(self, input_ids=None, **kwargs):
            return (self.query(self.bert(input_ids=input_ids).last_hidden_state[:, 0]) * self.temperature,)

    target = make_target(make_checkpoint("bert"), architecture="my-own")
    model = Peculiar.from_pretrained(target.source.path)
    adapted = Lora().attach(model, target, PARAMS)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    own = {name for name in trained if "lora_" not in name}
    assert own == {f"base_model.model.{name}" for name in ("query.weight", "query.bias", "temperature")}
    assert any("self.query.lora_A" in name for name in trained)
    with torch.no_grad():
        for name in trained:
            adapted.get_parameter(name).add_(0.3)
    ids = torch.tensor([[1, 2, 3]])
    expected = adapted.eval()(ids)[0]
    merged = Lora().merge(adapted, lambda: Peculiar.from_pretrained(target.source.path), target)
    torch.testing.assert_close(merged(ids)[0], expected, rtol=1e-3, atol=1e-3)


def test_running_statistics_are_merged(make_target, tmp_path):
    """A frozen body still moves its batch norm's running means while it trains."""
    from transformers import BertConfig, BertModel, BertPreTrainedModel

    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)

    class Normed(BertPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.bert = BertModel(config, add_pooling_layer=False)
            self.norm = torch.nn.BatchNorm1d(config.hidden_size)
            self.post_init()

        def forward(self, input_ids=None, **kwargs):
            return (self.norm(self.bert(input_ids=input_ids).last_hidden_state[:, 0]),)

    Normed(config).save_pretrained(tmp_path)
    target = make_target(tmp_path, architecture="my-own")
    adapted = Lora().attach(Normed.from_pretrained(tmp_path), target, PARAMS)
    ids = torch.randint(0, 20, (8, 4))
    adapted.train()(ids)
    expected = adapted.eval()(ids)[0]
    merged = Lora().merge(adapted, lambda: Normed.from_pretrained(tmp_path), target)
    torch.testing.assert_close(merged(ids)[0], expected, rtol=1e-4, atol=1e-5)


def test_merge_onto_another_model_is_refused(make_checkpoint, make_target, load):
    target, other = make_target(make_checkpoint("bert")), make_target(make_checkpoint("distilbert"))
    model = Lora().attach(load(target), target, PARAMS)
    with pytest.raises(ModelError, match="no place for what was trained"):
        Lora().merge(model, lambda: load(other), target)


def test_attention_where_there_is_none(make_target, tmp_path):
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2, image_size=32)
    target = make_target(tmp_path, architecture="image-classification")
    with pytest.raises(ModelError, match=r"pin lora\.targets to all-linear"):
        Lora().attach(ConvNextForImageClassification(config), target, {**PARAMS, "targets": "attention"})
    adapted = Lora().attach(ConvNextForImageClassification(config), target, PARAMS)
    assert any("pwconv1.lora_A" in name for name, _ in adapted.named_parameters())


@pytest.mark.parametrize("model_type", ["mobilenet_v2", "poolformer", "resnet"])
def test_convolutional_models_are_refused(model_type, make_target, tmp_path):
    import transformers

    small = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]} if model_type == "resnet" else {}
    config = transformers.AutoConfig.for_model(model_type, **small)
    model = transformers.AutoModelForImageClassification.from_config(config)
    assert find_targets(model, "all-linear", find_head(model)) == ()
    target = make_target(tmp_path)
    target.config["model_type"] = model_type
    assert Lora().check(target).reason == (
        f"lora: {model_type} has no linear layers outside its head to adapt; use full or head-only"
    )
    with pytest.raises(ModelError, match="use full or head-only"):
        Lora().attach(model, target, PARAMS)


def test_check_accepts_encoders(make_checkpoint, make_target):
    assert Lora().check(make_target(make_checkpoint("bert"))) is None


def test_published_settings_lie_in_the_space():
    for setting in Lora.published:
        assert set(setting) == set(Lora.space)
        assert all(Lora.space[name].contains(value) for name, value in setting.items())


@pytest.mark.parametrize("start", ["default", "gaussian", "orthogonal", "pissa", "olora", "eva"])
def test_no_start_changes_what_the_model_says(start, make_checkpoint, make_target, load, logits):
    target = with_batches(make_target(make_checkpoint("bert")))
    expected = logits(load(target), target)
    model = Lora().attach(load(target), target, {**PARAMS, "start": start})
    torch.testing.assert_close(logits(model, target), expected, rtol=1e-4, atol=1e-4)
    merged = Lora().merge(model, None, target)
    torch.testing.assert_close(logits(merged, target), expected, rtol=1e-4, atol=1e-4)


def test_pissa_starts_from_the_principal_components(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    weight = load(target).bert.encoder.layer[0].attention.self.query.weight.detach()
    model = Lora().attach(load(target), target, {**PARAMS, "rank": 4, "alpha": 8, "start": "pissa"})
    layer = model.get_base_model().bert.encoder.layer[0].attention.self.query
    u, s, v = torch.linalg.svd(weight)
    best = (u[:, :4] * s[:4]) @ v[:4]
    update = 8 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    # The decomposition is randomised, and random weights have singular values that lie close together: other
    # directions may be found, as long as they explain as much.
    assert (weight - best).norm() <= (weight - update).norm() < 1.01 * (weight - best).norm()
    torch.testing.assert_close(layer.base_layer.weight + update, weight, rtol=1e-4, atol=1e-5)


def test_olora_starts_from_the_qr_decomposition(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    weight = load(target).bert.encoder.layer[0].attention.self.query.weight.detach()
    model = Lora().attach(load(target), target, {**PARAMS, "rank": 4, "start": "olora"})
    layer = model.get_base_model().bert.encoder.layer[0].attention.self.query
    q, r = torch.linalg.qr(weight)
    torch.testing.assert_close(layer.lora_B["default"].weight.detach(), q[:, :4])
    torch.testing.assert_close(layer.lora_A["default"].weight.detach(), r[:4])


@pytest.mark.parametrize("onto_base", [False, True])
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_merge_gives_back_what_a_start_took(start, onto_base, make_checkpoint, make_target, load, train, logits):
    target = make_target(make_checkpoint("bert"))
    model = Lora().attach(load(target), target, {**PARAMS, "start": start})
    train(model, target)
    expected = logits(model, target)
    merged = Lora().merge(model, (lambda: load(target, seed=99)) if onto_base else None, target)
    torch.testing.assert_close(logits(merged, target), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_starts_that_change_weights_are_refused_over_quantized_ones(start, make_checkpoint, make_target, load):
    from dataclasses import replace

    from autoft.strategies.bitsandbytes import Nf4Base

    pytest.importorskip("bitsandbytes")
    target = make_target(make_checkpoint("bert"))
    model = Nf4Base().prepare(load(target, **Nf4Base().load_kwargs(target, {})), target)
    with pytest.raises(ModelError, match="gaussian or orthogonal over a quantized base"):
        Lora().attach(model, target, {**PARAMS, "start": start})
    asked = replace(target, context=replace(target.context, params={"lora.start": start}))
    assert Lora().check(asked) is None
    assert "which nf4 quantizes" in Lora().check(replace(asked, quantizer="nf4")).reason


def test_olora_is_refused_for_conv1d(make_checkpoint, make_target):
    from dataclasses import replace

    target = make_target(make_checkpoint("gpt2"))
    asked = replace(target, context=replace(target.context, params={"lora.start": "olora"}))
    assert Lora().check(asked).reason == (
        "lora: PEFT's start=olora takes no Conv1D layers, as GPT-2's; take pissa or default"
    )


def test_plus_is_the_rate_of_b(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    model = Lora().attach(load(target), target, PARAMS)
    assert Lora().parameter_groups(model, 1e-3, PARAMS) is None
    (group,) = Lora().parameter_groups(model, 1e-3, {**PARAMS, "plus": 16.0})
    expected = {id(value) for name, value in model.named_parameters() if "lora_B" in name}
    assert {id(value) for value in group["params"]} == expected
    assert group["lr"] == pytest.approx(1.6e-2)


# ------------------------------------------------------------------------------------- starts that are computed


def with_batches(target, rows=None):
    from dataclasses import replace

    given = target.task.demo_rows() if rows is None else rows
    return replace(target, learned=Lora().learn_from(target, given, {**PARAMS, "start": "eva"}))


def inputs_of(model, name, target):
    """Return what goes into a layer for the tokens of the demo rows, row by row, none of it padding."""
    task, context = target.task, target.context
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    model.eval()
    with torch.no_grad():
        for feature in task.encode(task.demo_rows(), context):
            feature = {key: value for key, value in feature.items() if key != "labels"}
            model(**{key: torch.tensor([value]) for key, value in feature.items()})
    handle.remove()
    return torch.cat([one.reshape(-1, one.shape[-1]) for one in seen])


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_eva_starts_from_the_singular_vectors_of_the_inputs(model_type, make_checkpoint, make_target, load, logits):
    target = with_batches(make_target(make_checkpoint(model_type)))
    base = load(target)
    expected = logits(base, target)
    model = Lora().attach(load(target), target, {**PARAMS, "rank": 4, "start": "eva"})
    torch.testing.assert_close(logits(model, target), expected, rtol=1e-4, atol=1e-4)
    layers = [name for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")]
    assert len(layers) > 10
    for name in layers:
        found = model.get_base_model().get_submodule(name).lora_A["default"].weight.detach()
        _, values, vectors = torch.linalg.svd(inputs_of(base, name, target), full_matrices=False)
        # Up to sign; where two singular values are nearly the same, only the space of both is given.
        if (values[:4] / values[1:5]).min() > 1.02:
            torch.testing.assert_close((found @ vectors[:4].T).abs(), torch.eye(4), rtol=0, atol=2e-2)
        torch.testing.assert_close(found @ found.T, torch.eye(4), rtol=0, atol=1e-4)
        kept = float((inputs_of(base, name, target) @ found.T).norm())
        assert kept == pytest.approx(float(values[:4].norm()), rel=1e-4)


def test_eva_leaves_what_the_inputs_do_not_fill(make_checkpoint, make_target, load):
    from autoft.strategies.lora_starts import input_components

    target = with_batches(
        make_target(make_checkpoint("bert")), make_target(make_checkpoint("bert")).task.demo_rows()[:1]
    )
    model = load(target)
    name = "bert.pooler.dense"  # it sees one vector a row
    found = input_components(model, {name: 4}, target, target.learned)[name]
    assert found.shape == (1, model.config.hidden_size)


@pytest.mark.parametrize("memory", [1, 10**9])
def test_eva_finds_the_same_in_as_many_passes_as_memory_asks_for(memory, make_checkpoint, make_target, load):
    from autoft.strategies.lora_starts import input_components

    target = with_batches(make_target(make_checkpoint("bert")))
    model = load(target)
    ranks = {f"bert.encoder.layer.{i}.attention.self.query": 3 for i in range(2)}
    found = input_components(model, ranks, target, target.learned, memory)
    for name, vectors in found.items():
        values = torch.linalg.svdvals(inputs_of(model, name, target))
        kept = float((inputs_of(model, name, target) @ vectors.T).norm())
        assert kept == pytest.approx(float(values[:3].norm()), rel=1e-4)
    assert set(found) == set(ranks)


def test_eva_trains_and_merges(make_checkpoint, make_target, load, train, logits):
    target = with_batches(make_target(make_checkpoint("bert")))
    model = Lora().attach(load(target), target, {**PARAMS, "start": "eva"})
    losses = train(model, target)
    assert losses[-1] < losses[0]
    expected = logits(model, target)
    merged = Lora().merge(model, lambda: load(target, seed=99), target)
    torch.testing.assert_close(logits(merged, target), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("alpha", [4, 16])
@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("base", ["nf4", "fp4"])
def test_loftq_starts_from_what_quantization_took(base, model_type, alpha, make_checkpoint, make_target, load):
    from autoft.plugins import load_plugins

    pytest.importorskip("bitsandbytes")
    quantizer = load_plugins().quantizers[base]
    target = make_target(make_checkpoint(model_type))
    dense = quantizer.dequantize(load(target, **quantizer.load_kwargs(target, {})), target)
    model = quantizer.prepare(load(target, **quantizer.load_kwargs(target, {})), target)
    model = Lora().attach(model, target, {**PARAMS, "rank": 4, "alpha": alpha, "start": "loftq"})
    whole, checked = load(target), 0
    for name, module in model.get_base_model().named_modules():
        if not hasattr(module, "lora_A") or module.base_layer.weight.is_floating_point():
            continue
        original, rounded = (one.get_submodule(name).weight.detach() for one in (whole, dense))
        residual = (original - rounded) if model_type == "bert" else (original - rounded).T
        update = (alpha / 4 * module.lora_B["default"].weight @ module.lora_A["default"].weight).detach()
        values = torch.linalg.svdvals(residual)
        # What is left of the difference is what no update of this rank can give (Eckart and Young 1936).
        assert float((residual - update).norm()) == pytest.approx(float(values[4:].norm()), rel=1e-3)
        assert update.norm() > 0
        checked += 1
    assert checked >= 8


def test_loftq_is_refused_where_nothing_was_quantized_to_4_bits(make_checkpoint, make_target):
    from dataclasses import replace

    target = make_target(make_checkpoint("bert"))
    asked = replace(target, context=replace(target.context, params={"lora.start": "loftq"}))
    assert "take it over nf4 or fp4, and another start over a dense base" in Lora().check(asked).reason
    assert "another start over int8" in Lora().check(replace(asked, quantizer="int8")).reason
    assert Lora().check(replace(asked, quantizer="nf4")) is None
