from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from autoft.errors import ModelError
from autoft.strategies.full import Full
from autoft.strategies.head_only import HeadOnly, find_bodies, find_head

MODELS = ["bert", "distilbert", "roberta", "gpt2", "llama"]
HEADS = {
    "bert": {"classifier.weight", "classifier.bias"},
    "distilbert": {"classifier.weight", "classifier.bias", "pre_classifier.weight", "pre_classifier.bias"},
    "roberta": {f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")},
    "gpt2": {"score.weight"},
    "llama": {"score.weight"},
}


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("model_type", MODELS)
def test_full_trains_everything(model_type, make_checkpoint, make_target, load, train):
    target = make_target(make_checkpoint(model_type))
    model = load(target).requires_grad_(False)
    assert Full().check(target) is None
    attached = Full().attach(model, target, {"learning_rate": 5e-5})
    assert trained(attached) == set(dict(model.named_parameters()))
    before = snapshot(model)
    losses = train(attached, target, lr=1e-3)
    assert losses[-1] < 0.7 * losses[0]
    bodies = {name for name in changed(model, before) if name not in HEADS[model_type]}
    assert len(bodies) > 10
    assert Full().merge(attached, None, target) is model


def test_full_leaves_computed_positions_alone(make_target, tmp_path):
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(
        vocab_size=9, dim=16, n_layers=1, n_heads=2, hidden_dim=16, sinusoidal_pos_embds=True, max_position_embeddings=8
    )
    model = DistilBertForSequenceClassification(config)
    Full().attach(model, make_target(tmp_path), {})
    positions = "distilbert.embeddings.position_embeddings.weight"
    assert trained(model) == set(dict(model.named_parameters())) - {positions}


def test_full_refuses_quantized_weights(make_target, tmp_path):
    model = torch.nn.Linear(2, 2)
    model.weight = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"weight of toy is stored as torch\.int8"):
        Full().attach(model, make_target(tmp_path), {})


@pytest.mark.parametrize("model_type", MODELS)
def test_head_only_trains_the_head(model_type, make_checkpoint, make_target, load, train):
    target = make_target(make_checkpoint(model_type))
    model = load(target)
    assert HeadOnly().check(target) is None
    attached = HeadOnly().attach(model, target, {"learning_rate": 3e-3})
    assert trained(attached) == HEADS[model_type]
    before = snapshot(model)
    losses = train(attached, target, steps=30, lr=3e-2)
    assert losses[-1] < 0.7 * losses[0]
    assert changed(model, before) == HEADS[model_type]
    assert HeadOnly().merge(attached, None, target) is model


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, False),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, False),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, True),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, True),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, True),
    ],
)
def test_head_only_trains_the_new_decoder_of_an_encoder_and_refuses_models_that_write(config, refused, make_target):
    target = replace(make_target("nowhere", architecture="conditional-generation"), config=config)
    refusal = HeadOnly().check(target)
    assert (refusal is not None) == refused
    if refusal:
        assert "its output layer is pretrained" in refusal.reason


def test_head_only_trains_a_pooler_that_the_checkpoint_lacks(make_checkpoint, make_target, load):
    from transformers import AutoConfig, BertModel

    whole = make_target(make_checkpoint("bert"))
    config = AutoConfig.from_pretrained(whole.source.path)
    target = make_target(make_checkpoint("bert", BertModel(config, add_pooling_layer=False)))
    model = HeadOnly().attach(load(target), target, {})
    assert trained(model) == HEADS["bert"] | {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert trained(HeadOnly().attach(load(whole), whole, {})) == HEADS["bert"]


@pytest.mark.parametrize("architecture", ["causal-lm", "seq2seq-lm"])
def test_head_only_refuses_pretrained_heads(architecture, make_checkpoint, make_target):
    refusal = HeadOnly().check(make_target(make_checkpoint("bert"), architecture=architecture))
    assert refusal.reason == (
        f"head-only: a {architecture} model has no new head; its output layer is pretrained; use full or lora"
    )


def test_head_only_without_a_head(make_checkpoint, make_target):
    from transformers import AutoModel

    target = make_target(make_checkpoint("bert"))
    with pytest.raises(ModelError, match="no weights outside its pretrained body"):
        HeadOnly().attach(AutoModel.from_pretrained(target.source.path), target, {})
    with pytest.raises(ModelError, match="no weights outside its pretrained body"):
        HeadOnly().attach(torch.nn.Sequential(torch.nn.Linear(2, 2)), target, {})


def test_generated_words_are_no_head():
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        GPT2Config,
        GPT2LMHeadModel,
        T5Config,
        T5ForConditionalGeneration,
    )

    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    models = [
        GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9)),
        GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9, tie_word_embeddings=False)),
        BartForConditionalGeneration(
            BartConfig(d_model=8, vocab_size=9, encoder_ffn_dim=8, decoder_ffn_dim=8, **sizes)
        ),
        T5ForConditionalGeneration(
            T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=9, tie_word_embeddings=False)
        ),
    ]
    for model in models:
        assert find_head(model).parameters == (), type(model).__name__


def test_a_model_of_two_pretrained_parts():
    from transformers import BertConfig, BertModel, ViTConfig, ViTModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}

    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.text = BertModel(BertConfig(vocab_size=9, **sizes))
            self.image = ViTModel(ViTConfig(image_size=8, patch_size=4, **sizes))
            self.heads = torch.nn.ModuleList([torch.nn.Linear(8, 2), torch.nn.Linear(8, 2)])
            self.scale = torch.nn.Parameter(torch.ones(()))

    model = Pair()
    assert find_bodies(model) == ("text", "image")
    head = find_head(model)
    assert head.modules == ("heads.0", "heads.1")
    assert head.bare == ("scale",)
    assert set(head.parameters) == {f"heads.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")} | {"scale"}


@pytest.mark.parametrize("strategy", [Full, HeadOnly])
def test_published_settings_lie_in_the_space(strategy):
    for setting in strategy.published:
        assert all(strategy.space[name].contains(value) for name, value in setting.items())
    assert strategy.accepts == {"dense"}
