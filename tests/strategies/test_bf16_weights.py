"""Weights in 16 bits, of both kinds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from autoft.errors import ModelError
from autoft.hardware import Gpu
from autoft.strategies.bf16_weights import Bf16Weights, Fp16Weights

HALVES = [(Bf16Weights(), torch.bfloat16, 8), (Fp16Weights(), torch.float16, 11)]
each = pytest.mark.parametrize(("strategy", "dtype", "digits"), HALVES, ids=["bf16", "fp16"])


@each
@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_the_files_hold_16_bits_and_load_back_to_the_same_answers(
    strategy, dtype, digits, model_type, make_checkpoint, make_target, load, logits, tmp_path
):
    from transformers import AutoModelForSequenceClassification

    target = make_target(make_checkpoint(model_type))
    model = load(target).eval()
    model.config.pad_token_id = 0
    half = strategy.apply(model, target, [], {})
    strategy.save(half, tmp_path)
    stored = load_file(str(tmp_path / "model.safetensors"))
    assert {value.dtype for value in stored.values()} == {dtype}
    for name, weight in model.named_parameters():
        # Rounded to the nearest of numbers with so many digits; the smallest of fp16 are 2 ** -24 apart.
        assert ((stored[name].float() - weight).abs() <= weight.abs() * 2.0**-digits + 2.0**-25).all(), name
    answers = logits(half, target)
    dense = logits(model, target)
    assert 0 < (answers - dense).abs().max() < 2.0 ** (4 - digits) * dense.abs().max()
    loaded = logits(strategy.load(tmp_path, target), target)
    # In memory the angles of Llama's positions have 16 bits too; no file holds them.
    assert (loaded - answers).abs().max() < 2.0 ** (4 - digits) * dense.abs().max()
    assert torch.equal(logits(AutoModelForSequenceClassification.from_pretrained(tmp_path), target), loaded)


@each
def test_weights_beyond_the_range_are_told(strategy, dtype, digits, make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    model = load(target)
    with torch.no_grad():
        model.classifier.weight[0, 0] = 1e6
    if torch.finfo(dtype).max > 1e6:
        assert strategy.apply(model, target, [], {}).classifier.weight[0, 0] == torch.tensor(1e6, dtype=dtype)
    else:
        with pytest.raises(ModelError, match=r"classifier\.weight holds weights too large for float16"):
            strategy.apply(model, target, [], {})


def test_half_precision_is_for_gpus(make_checkpoint, make_target):
    path = make_checkpoint("bert")
    assert "use bf16-weights, or a GPU" in Fp16Weights().check(make_target(path)).reason
    target = make_target(path, device="cuda")
    old = replace(target.hardware, gpus=(Gpu("an old GPU", 2**33, 7.0),), bf16=False)
    assert Fp16Weights().check(replace(target, hardware=old)) is None


def test_bfloat16_is_for_processors_that_have_it(make_checkpoint, make_target):
    path = make_checkpoint("bert")
    assert "no instructions for bfloat16" in Bf16Weights().check(make_target(path, bf16=False)).reason
    assert Bf16Weights().check(make_target(path, bf16=True)) is None
