"""GPTQ and AWQ by gptqmodel: on a GPU by intent, and here on the CPU, where the library runs too."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from autoft.contracts import ModelSource, Target, TaskContext
from autoft.errors import ModelError
from autoft.hardware import Gpu, Hardware
from autoft.strategies.gptq import Awq, Gptq
from autoft.strategies.weight_quantization import block_layers

each = pytest.mark.parametrize("strategy", [Gptq(), Awq()], ids=lambda one: one.name)
GROUP = 32


@pytest.fixture
def target(make_checkpoint, make_target):
    target = make_target(make_checkpoint("llama"), device="cuda", bf16=True)
    config = {**target.config, "architectures": ["LlamaForCausalLM"]}
    return replace(
        target, config=config, hardware=replace(target.hardware, gpus=(Gpu("a GPU", 2**34, 8.0),)), cache=None
    )


@each
def test_refusals(strategy, target, monkeypatch):
    found = {"gptqmodel", "optimum"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in found else None)
    assert strategy.check(target) is None
    cpu = replace(
        target, hardware=replace(target.hardware, device="cpu"), context=replace(target.context, device="cpu")
    )
    assert "NVIDIA GPUs; use bnb-nf4" in strategy.check(cpu).reason
    assert "decoders that write" in strategy.check(replace(target, config={"model_type": "bert"})).reason
    found.remove("optimum")
    assert "needs optimum" in strategy.check(target).reason
    found.symmetric_difference_update({"optimum", "gptqmodel"})
    assert "pip install autoft[gptqmodel]" in strategy.check(target).reason


@each
def test_layers_that_do_not_divide_are_told(strategy, target, make_checkpoint):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    with pytest.raises(ModelError, match="do not divide into groups of 128"):
        strategy.apply(LlamaForCausalLM(config), target, [], {})


@pytest.fixture(scope="module")
def writer(tmp_path_factory, catalog):
    """A Llama of 128 with large random weights, its task and rows to calibrate with."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from autoft.testing.models import texts_of, tiny_model

    task = catalog.task("generation")
    rows = [dict(row) for row in task.demo_rows()] * 4
    folder = tiny_model("decoder", tmp_path_factory.mktemp("llama"), texts_of(rows))
    config = LlamaConfig.from_pretrained(folder)
    config.update({"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2})
    config.head_dim = 64
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        # Channels that activate more than others, without which AWQ has nothing to find.
        model.model.embed_tokens.weight.mul_(torch.logspace(-1, 1, 128))
    model.save_pretrained(folder)
    source = ModelSource("tiny", str(folder))
    options = {option.name: option.default for option in task.card.options}
    context = TaskContext({}, options, {}, 128)
    context = replace(context, processor=task.load_processor(source, context))
    config_json = json.loads((folder / "config.json").read_text())
    return model, Target(task, source, config_json, context, Hardware.probe_cpu(), folder / "cache"), rows


def nearest(weight):
    """Return a matrix rounded to the nearest of 4 bits, with a range for each group of inputs."""
    groups = weight.reshape(weight.shape[0], -1, GROUP)
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    step = (high - low) / 15
    return (((groups - low) / step).round() * step + low).reshape(weight.shape)


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("gptqmodel", "optimum")), reason="needs autoft[gptqmodel]"
)
@each
def test_it_quantizes_better_than_the_nearest_and_transformers_loads_it(strategy, writer, tmp_path):
    model, target, rows = writer
    before = {name: value.clone() for name, value in model.state_dict().items()}
    strategy.save(strategy.apply(model, target, rows, {"group_size": GROUP}), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    stored = load_file(str(tmp_path / "model.safetensors"))
    for name in block_layers(model).quantized:
        assert stored[f"{name}.qweight"].nbytes == model.get_submodule(name).weight.numel() // 2
    batches = [torch.tensor([one["input_ids"]]) for one in target.task.encode(rows[: len(rows) // 4], target.context)]
    loaded = strategy.load(tmp_path, target)
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for name in block_layers(model).quantized:
            weight = rounded.get_submodule(name).weight
            weight.copy_(nearest(weight))
        expected, plain, found = (
            torch.cat([one(input_ids=ids).logits.float().flatten() for ids in batches])
            for one in (model, rounded, loaded)
        )
    assert 0 < (found - expected).norm() < (plain - expected).norm()
    program = (
        "import sys, torch\nfrom transformers import AutoModelForCausalLM\ntorch.set_grad_enabled(False)\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}).eval()\n"
        f"print(model(input_ids=torch.tensor({batches[0].tolist()})).logits.float().flatten().tolist())\n"
        "assert 'autoft' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    logits = torch.tensor(json.loads(ran.stdout.strip().splitlines()[-1]))
    with torch.no_grad():
        own = loaded(input_ids=batches[0]).logits.float().flatten()
    torch.testing.assert_close(logits, own, rtol=1e-3, atol=1e-3)
