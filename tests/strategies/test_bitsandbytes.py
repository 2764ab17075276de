from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autoft.errors import ModelError
from autoft.strategies.bitsandbytes import Fp4Base, Int8Base, Nf4Base
from autoft.strategies.lora import Lora

bnb = pytest.importorskip("bitsandbytes")

PARAMS = {name: domain.default for name, domain in Lora.space.items()}
MODELS = ["bert", "distilbert", "roberta", "gpt2", "llama"]
HEADS = {
    "bert": {"classifier", "bert.pooler.dense"},
    "distilbert": {"classifier", "pre_classifier"},
    "roberta": {"classifier.dense", "classifier.out_proj"},
    "gpt2": {"score"},
    "llama": {"score"},
}
LAYERS_A_BLOCK = {"bert": 6, "distilbert": 6, "roberta": 6, "gpt2": 4, "llama": 7}
BLOCKS = 2

each_quantizer = pytest.mark.parametrize("quantizer", [Int8Base(), Nf4Base()], ids=lambda quantizer: quantizer.name)


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).detach().norm() / expected.detach().norm())


def is_quantized(module: torch.nn.Module) -> bool:
    return isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)


@pytest.fixture
def load_quantized(load):
    def run(quantizer, target, seed=1):
        return quantizer.prepare(load(target, seed=seed, **quantizer.load_kwargs(target, {})), target)

    return run


@each_quantizer
@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("head_in_checkpoint", [False, True])
def test_quantizes_the_blocks_and_nothing_else(
    quantizer, model_type, head_in_checkpoint, make_checkpoint, make_target, load, load_quantized
):
    target = make_target(make_checkpoint(model_type))
    if head_in_checkpoint:
        target = make_target(make_checkpoint(model_type, load(target)))
    model = load_quantized(quantizer, target)
    quantized = {name for name, module in model.named_modules() if is_quantized(module)}
    dense = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    assert len(quantized) == BLOCKS * LAYERS_A_BLOCK[model_type]
    assert dense == HEADS[model_type]
    assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    kinds = {parameter.dtype for parameter in model.parameters()}
    assert kinds == {torch.float32, torch.int8 if quantizer.name == "int8" else torch.uint8}


@each_quantizer
@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("model_type", ["bert", "distilbert", "gpt2", "llama"])
def test_goes_on_learning_after_an_evaluation(
    quantizer, bf16, model_type, make_checkpoint, make_target, load_quantized, train, logits
):
    target = make_target(make_checkpoint(model_type), bf16=bf16)
    model = Lora().attach(load_quantized(quantizer, target), target, {**PARAMS, "dropout": 0.0})
    train(model, target, steps=2, lr=1e-4)
    logits(model, target)
    for parameter in model.parameters():
        parameter.grad = None
    losses = train(model, target, steps=8, lr=2e-3)
    assert losses[-1] < 0.8 * losses[0]
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]
    assert without == []


@each_quantizer
@pytest.mark.parametrize("model_type", MODELS)
def test_both_merges_give_the_trained_models_logits(
    quantizer, model_type, make_checkpoint, make_target, load, load_quantized, train, logits, tmp_path
):
    target = make_target(make_checkpoint(model_type))
    model = Lora().attach(load_quantized(quantizer, target), target, PARAMS)
    train(model, target, steps=6, lr=2e-3)
    logits(model, target)
    train(model, target, steps=3, lr=2e-3)
    expected = logits(model, target)

    into_full = Lora().merge(model, lambda: load(target, seed=2), target)
    into_dequantized = Lora().merge(
        model, lambda: quantizer.dequantize(load_quantized(quantizer, target, seed=3), target), target
    )

    assert relative(logits(into_full, target), expected) < 0.3
    assert relative(logits(into_dequantized, target), expected) < 0.02
    assert relative(logits(load(target), target), expected) > 0.5  # an unrelated head, for scale
    for merged in (into_full, into_dequantized):
        assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
        merged.save_pretrained(tmp_path / "merged")
        again = type(merged).from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(logits(again, target), logits(merged, target))


@each_quantizer
@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("evaluated", [False, True])
def test_dequantize_gives_the_weights_that_the_layers_compute_with(
    quantizer, model_type, evaluated, make_checkpoint, make_target, load, load_quantized, logits, tmp_path
):
    target = make_target(make_checkpoint(model_type), bf16=False)
    model = load_quantized(quantizer, target)
    if evaluated:
        logits(model, target)
    computed = {}
    model.train()
    for name, module in model.named_modules():
        if is_quantized(module):
            with torch.no_grad():
                rows = module(torch.eye(module.in_features))
            computed[name] = rows - (0 if module.bias is None else module.bias)
    original = load(target)
    expected = logits(model, target)

    dense = quantizer.dequantize(model, target)

    for name, rows in computed.items():
        layer = dense.get_submodule(name)
        assert type(layer) is type(original.get_submodule(name))
        weight = layer.weight if model_type == "gpt2" else layer.weight.T
        torch.testing.assert_close(weight.detach(), rows, atol=1e-5, rtol=1e-4)
        assert 0 < relative(layer.weight, original.get_submodule(name).weight) < 0.15
    # In evaluation the 8-bit layers quantize their inputs too (LLM.int8), which the dense model does not.
    assert relative(logits(dense, target), expected) < (0.1 if quantizer.name == "int8" else 0.001)
    assert {parameter.dtype for parameter in dense.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in dense.parameters())
    dense.save_pretrained(tmp_path)
    assert "quantization" not in (tmp_path / "config.json").read_text()
    again = type(dense).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again, target), logits(dense, target))


def test_dequantize_undoes_the_inference_packing(make_checkpoint, make_target, load, load_quantized, logits):
    quantizer = Nf4Base()
    target = make_target(make_checkpoint("bert"))
    packed = load(target, **quantizer.load_kwargs(target, {}))
    logits(packed, target)  # without prepare(), so that CPUs with AVX512-bf16 repack
    expected = quantizer.dequantize(load_quantized(quantizer, target), target).state_dict()
    got = quantizer.dequantize(packed, target).state_dict()
    for name, value in expected.items():
        if "encoder" in name and name.endswith("weight"):
            # The packing keeps its scales in bfloat16, so the way back is exact to some parts in 256.
            torch.testing.assert_close(got[name], value, rtol=2**-7, atol=1e-6)


def test_dequantize_refuses_a_model_with_an_adapter(make_checkpoint, make_target, load_quantized):
    target = make_target(make_checkpoint("bert"))
    model = Lora().attach(load_quantized(Nf4Base(), target), target, PARAMS)
    with pytest.raises(ModelError, match="without the adapter"):
        Nf4Base().dequantize(model, target)


def test_merge_refuses_a_quantized_base(make_checkpoint, make_target, load_quantized):
    target = make_target(make_checkpoint("bert"))
    model = Lora().attach(load_quantized(Nf4Base(), target), target, PARAMS)
    with pytest.raises(ModelError, match="dense base"):
        Lora().merge(model, None, target)


@each_quantizer
def test_layers_that_the_checkpoint_lacks_stay_dense_and_run(
    quantizer, make_checkpoint, make_target, load, load_quantized
):
    from transformers import AutoModelForCausalLM

    path = make_checkpoint("gpt2")

    def load_model(self, source, context):
        return AutoModelForCausalLM.from_pretrained(source.path, add_cross_attention=True, **source.load_kwargs)

    target = make_target(path, architecture="causal-lm")
    type(target.task).load_model = load_model
    model = load_quantized(quantizer, target)
    new = [module for name, module in model.named_modules() if ".crossattention.c_" in name]
    assert len(new) == BLOCKS * 2
    assert {type(module).__name__ for module in new} == {"Conv1D"}
    out = model(input_ids=torch.tensor([[1, 2]]), encoder_hidden_states=torch.randn(1, 3, 64)).logits
    assert torch.isfinite(out).all()
    # They are new, so they are trained in full, and what they learned comes along with a merge.
    inputs = {"input_ids": torch.tensor([[1, 2, 3]]), "encoder_hidden_states": torch.randn(1, 3, 64)}
    adapted = Lora().attach(model, target, PARAMS)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len([name for name in trained if ".crossattention." in name and name.endswith("weight")]) >= BLOCKS * 2
    with torch.no_grad():
        for name in sorted(trained):
            adapted.get_parameter(name).add_(0.05)
        expected = adapted.eval()(**inputs).logits
        base = quantizer.dequantize(load(target, seed=9, **quantizer.load_kwargs(target, {})), target)
        merged = Lora().merge(adapted, lambda: base, target)
        got = merged(**inputs).logits
    assert relative(got, expected) < (0.05 if quantizer.name == "int8" else 0.02)


def test_says_nothing_while_it_works(make_checkpoint, make_target, load_quantized, train, logits, caplog):
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("bitsandbytes")]:
        logging.getLogger(name).setLevel(logging.NOTSET)
    target = make_target(make_checkpoint("bert"))
    for quantizer in (Int8Base(), Nf4Base()):
        model = Lora().attach(load_quantized(quantizer, target), target, PARAMS)
        train(model, target, steps=1)
        logits(model, target)
    assert [record for record in caplog.records if record.name.startswith("bitsandbytes")] == []


@each_quantizer
def test_check(quantizer, make_checkpoint, make_target, monkeypatch):
    target = make_target(make_checkpoint("bert"))
    assert quantizer.check(target) is None
    assert "mps" in quantizer.check(make_target(target.source.path, device="mps")).reason
    target.config["quantization_config"] = {"quant_method": "gptq"}
    assert "quantized already" in quantizer.check(target).reason
    target.config.clear()
    target.config["model_type"] = "mobilenet_v2"
    assert "mobilenet_v2 has no linear layers" in quantizer.check(target).reason
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert quantizer.check(target).reason == (
        f"{quantizer.name}: needs bitsandbytes, which is not installed; pip install autoft[bitsandbytes]"
    )


def test_planning_imports_no_heavy_library():
    code = """
import sys
from pathlib import Path
from types import SimpleNamespace as N
from autoft.strategies import autoft_strategies
column = N(role="text", kind="text", target=False)
card = N(name="t", architecture="sequence-classification", columns=(column,), inputs=(column,))
target = N(config={"model_type": "bert"}, hardware=N(device="cpu", bf16=True), context=N(device="cpu", params={}),
           source=N(name="m"), task=N(card=card), quantizer="")
names = {"int8", "nf4", "fp4", "lora", "ia3", "bitfit", "full", "head-only", "random-swap", "character-noise"}
for strategy in autoft_strategies():
    if strategy.name in names:
        assert strategy.check(target) is None, strategy.name
        names.discard(strategy.name)
assert not names, names
heavy = {"torch", "transformers", "peft", "bitsandbytes", "accelerate"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("quantizer", [Nf4Base(), Fp4Base()], ids=lambda one: one.name)
def test_the_4_bit_formats_are_those_that_are_asked_for(quantizer, double, make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    model = load(target, **quantizer.load_kwargs(target, {"double_quantization": double}))
    states = [module.weight.quant_state for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(states) == BLOCKS * LAYERS_A_BLOCK["bert"]
    assert {state.quant_type for state in states} == {quantizer.name}
    assert {state.nested for state in states} == {double}


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="asks Linux what is mapped")
@each_quantizer
def test_the_file_of_the_dense_weights_is_let_go(quantizer, make_checkpoint, make_target, load_quantized):
    """One weight that stays mapped would keep in memory all that was read to be quantized."""
    target = make_target(make_checkpoint("bert"))
    model = load_quantized(quantizer, target)
    assert target.source.path not in Path("/proc/self/maps").read_text()
    assert all(torch.isfinite(weight).all() for weight in model.parameters() if weight.is_floating_point())
