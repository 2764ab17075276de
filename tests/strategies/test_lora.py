from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from autoft.errors import ModelError
from autoft.space import Categorical
from autoft.strategies.head_only import find_head
from autoft.strategies.lora import Lora, find_targets

PARAMS = {name: domain.default for name, domain in Lora.space.items()}


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def trained_names(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


HEADS = {
    "bert": {"classifier", "bert.pooler"},
    "distilbert": {"classifier", "pre_classifier"},
    "roberta": {"classifier"},
    "gpt2": {"score"},
    "llama": {"score"},
}


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "gpt2", "llama"])
def test_train_merge_save_load(model_type, make_checkpoint, make_target, load, train, logits, tmp_path):
    path = make_checkpoint(model_type)
    target = make_target(path)
    base = load(target)
    original = type(base)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = Lora().attach(base, target, PARAMS)
    losses = train(model, target)
    assert losses[-1] < losses[0] / 2
    expected = logits(model, target)

    merged = Lora().merge(model, None, target)

    assert type(merged) is original
    assert set(merged.state_dict()) == set(before)
    assert not [m for m in merged.modules() if type(m).__module__.startswith("peft")]
    assert not hasattr(merged, "peft_config")
    assert relative(logits(merged, target), expected) < 1e-4
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(value, before[name])}
    assert any("att" in name or "h.0" in name for name in changed)
    merged.save_pretrained(tmp_path)
    again = original.from_pretrained(tmp_path)
    assert relative(logits(again, target), expected) < 1e-4
