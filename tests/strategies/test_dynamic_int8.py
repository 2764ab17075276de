from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from autoft.errors import ModelError
from autoft.hardware import has_int8_products
from autoft.strategies.dynamic_int8 import WEIGHTS, DynamicInt8
from autoft.strategies.int8_layers import Int8Embedding, Int8Linear, quantize_rows


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.floats(-1e4, 1e4, width=32, allow_subnormal=False), min_size=3, max_size=3), min_size=1, max_size=6
    )
)
def test_each_weight_is_within_half_a_step_of_what_it_stands_for(rows):
    weight = torch.tensor(rows)
    quantized, scale = quantize_rows(weight)
    assert quantized.dtype == torch.int8
    for row, integers, step in zip(weight.tolist(), quantized.tolist(), scale.tolist(), strict=True):
        for value, integer in zip(row, integers, strict=True):
            assert abs(integer) <= 127
            assert abs(value - integer * step) <= step / 2 * (1 + 1e-3)
        if any(row):
            assert max(map(abs, integers)) == 127, "the whole range is used"


def test_a_row_of_zeros_stays_one():
    quantized, scale = quantize_rows(torch.zeros(2, 4))
    assert not quantized.any()
    assert scale.tolist() == [1, 1]


def test_the_linear_layer_multiplies_with_the_weights_that_it_stands_for():
    torch.manual_seed(0)
    weight, bias, inputs = torch.randn(16, 32), torch.randn(16), torch.randn(5, 7, 32)
    quantized, scale = quantize_rows(weight)
    found = Int8Linear(quantized, scale, bias)(inputs)
    expected = inputs.numpy() @ (quantized.numpy() * scale.numpy()[:, None]).T + bias.numpy()
    # What differs is the rounding of the activations: to 8 bits, or to 7 where sums of 8 would overflow.
    step = 0.02 if has_int8_products() else 0.04
    assert np.abs(found.numpy() - expected).max() < step * np.abs(expected).max()


def test_the_embedding_looks_its_rows_up():
    quantized, scale = quantize_rows(torch.randn(10, 4))
    ids = torch.tensor([[3, 0], [9, 3]])
    expected = [[(quantized[i] * scale[i]).tolist() for i in row] for row in ids.tolist()]
    assert Int8Embedding(quantized, scale)(ids).tolist() == expected


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "roberta", "gpt2", "llama"])
def test_the_files_hold_int8_and_load_back_to_the_same_answers(
    model_type, make_checkpoint, make_target, load, logits, tmp_path
):
    target = make_target(make_checkpoint(model_type))
    model, strategy = load(target), DynamicInt8()
    model.config.pad_token_id = 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dense = logits(model, target)
    quantized = strategy.apply(model, target, [], {})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the model stays"
    answers = logits(quantized, target)
    assert 0 < (answers - dense).abs().max() < 0.2 * dense.abs().max(), "random weights, so rounding shows"
    strategy.save(quantized, tmp_path)
    assert torch.equal(logits(strategy.load(tmp_path, target), target), answers)
    stored = load_file(str(tmp_path / WEIGHTS))
    matrices = {name: value for name, value in stored.items() if value.ndim == 2}
    heads = {name for name, value in matrices.items() if value.dtype != torch.int8}
    assert heads, "the head stays as it is"
    assert all(not name.startswith(f"{model.base_model_prefix}.") for name in heads)


def test_tied_embeddings_are_stored_once_and_a_model_of_two_bodies_is_quantized_in_both(tmp_path):
    from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel, LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=32, tie_word_embeddings=True)).eval()
    bert = BertConfig(**shape, intermediate_size=32)
    pair = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(bert, BertConfig(**bert.to_dict())))
    ids = torch.tensor([[3, 4, 5]])
    for name, model, inputs in (
        ("llama", llama, {"input_ids": ids}),
        ("pair", pair.eval(), {"input_ids": ids, "decoder_input_ids": ids}),
    ):
        quantized = DynamicInt8().apply(model, None, [], {})
        folder = tmp_path / name
        folder.mkdir()
        DynamicInt8().save(quantized, folder)
        loaded = DynamicInt8().load(folder, None)
        with torch.no_grad():
            expected, found = model(**inputs).logits, loaded(**inputs).logits
            assert torch.equal(found, quantized(**inputs).logits)
        assert (found - expected).abs().max() < 0.2 * expected.abs().max()
        kinds = {key: value.dtype for key, value in load_file(str(folder / WEIGHTS)).items() if value.ndim == 2}
        assert set(kinds.values()) == {torch.int8}, kinds
    stored = load_file(str(tmp_path / "llama" / WEIGHTS))
    assert sum("weight_int8" in key and value.shape[0] == 50 for key, value in stored.items()) == 1


def test_models_of_no_class_of_transformers_are_refused(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    model = load(target)
    model.__class__ = type("MyModel", (type(model),), {})
    with pytest.raises(ModelError, match="MyModel is no class of transformers"):
        DynamicInt8().apply(model, target, [], {})


def test_a_gpu_is_refused_before_anything_is_trained(make_checkpoint, make_target):
    assert "CPU only" in DynamicInt8().check(make_target(make_checkpoint("bert"), device="cuda")).reason


def test_weights_that_do_not_fit_are_told(make_checkpoint, make_target, load, tmp_path):
    from safetensors.torch import save_file

    target = make_target(make_checkpoint("bert"))
    strategy = DynamicInt8()
    strategy.save(strategy.apply(load(target), target, [], {}), tmp_path)
    tensors = load_file(str(tmp_path / WEIGHTS))
    tensors.pop("classifier.bias")
    save_file(tensors, str(tmp_path / WEIGHTS))
    with pytest.raises(ModelError, match=r"do not fit the model: classifier\.bias"):
        strategy.load(tmp_path, target)
