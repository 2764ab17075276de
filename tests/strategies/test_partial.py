from __future__ import annotations

import pytest
import torch

from autoft.errors import ModelError
from autoft.strategies.partial import BitFit, LayerNorm, TopLayers

HEADS = {"bert": ("classifier.",), "roberta": ("classifier.",), "gpt2": ("score.",), "llama": ("score.",)}


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def rest_of(model, names, model_type):
    return {name for name in names if not name.startswith(HEADS[model_type])}


@pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2", "llama"])
@pytest.mark.parametrize("layers", [1, 2, 9])
def test_top_layers_trains_the_last_blocks_and_the_head(model_type, layers, make_checkpoint, make_target, load):
    target = make_target(make_checkpoint(model_type))
    model = TopLayers().attach(load(target), target, {"layers": layers})
    blocks = {"bert": "bert.encoder.layer.", "roberta": "roberta.encoder.layer.", "gpt2": "transformer.h."}
    stack = blocks.get(model_type, "model.layers.")
    kept = tuple(f"{stack}{index}." for index in range(2) if index >= 2 - layers)
    expected = {name for name, _ in model.named_parameters() if name.startswith((*kept, *HEADS[model_type]))}
    assert trainable(model) == expected
    assert rest_of(model, expected, model_type)


def test_top_layers_of_an_encoder_and_a_decoder(make_target, tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=3, num_heads=2))
    target = make_target(tmp_path, architecture="seq2seq-lm")
    found = trainable(TopLayers().attach(model, target, {"layers": 1}))
    assert {name.rsplit(".block.")[0] + "." + name.split(".block.")[1].split(".")[0] for name in found} == {
        "encoder.2",
        "decoder.2",
    }


@pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2"])
def test_bitfit_trains_every_bias_and_the_head(model_type, make_checkpoint, make_target, load, train):
    target = make_target(make_checkpoint(model_type))
    model = BitFit().attach(load(target), target, {})
    found = rest_of(model, trainable(model), model_type)
    assert found == rest_of(model, {name for name, _ in model.named_parameters() if name.endswith(".bias")}, model_type)
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    losses = train(model, target)
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in frozen.items())
    assert BitFit().merge(model, None, target) is model


def test_bitfit_needs_biases(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("llama"))
    assert BitFit().check(target).reason == "bitfit: llama has no biases to train; use layernorm or lora"
    with pytest.raises(ModelError, match="nothing of this kind to train"):
        BitFit().attach(load(target), target, {})


@pytest.mark.parametrize(("model_type", "count"), [("bert", 2 * (1 + 2 * 2)), ("gpt2", 2 * (2 * 2 + 1)), ("llama", 5)])
def test_layernorm_trains_the_norms_and_the_head(model_type, count, make_checkpoint, make_target, load, train):
    # Two norms a block of two blocks, and one for the embeddings or the end; Llama's have no bias.
    target = make_target(make_checkpoint(model_type))
    model = LayerNorm().attach(load(target), target, {})
    found = rest_of(model, trainable(model), model_type)
    assert len(found) == count
    assert all("norm" in name.lower() or ".ln_" in name for name in found)
    losses = train(model, target)
    assert losses[-1] < losses[0]
