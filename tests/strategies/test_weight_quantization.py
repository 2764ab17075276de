"""Compressors whose files transformers loads by itself: bitsandbytes and torchao."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from autoft.errors import ModelError
from autoft.hardware import Gpu, Hardware, has_int8_products
from autoft.strategies.bf16_weights import Fp16Weights
from autoft.strategies.bnb_weights import BnbFp4, BnbInt8, BnbNf4
from autoft.strategies.torchao import TorchaoFp8, TorchaoInt4, TorchaoInt8, TorchaoInt8Dynamic
from autoft.strategies.weight_quantization import block_layers, patterns

HEADS = {
    "bert": {"classifier", "bert.pooler.dense"},
    "distilbert": {"classifier", "pre_classifier"},
    "gpt2": {"score"},
    "llama": {"score"},
}
LAYERS_A_BLOCK = {"bert": 6, "distilbert": 6, "gpt2": 4, "llama": 7}
BLOCKS = 2
TABLES = {"bert": 3, "distilbert": 2, "gpt2": 2, "llama": 1}

ON_CPU = (BnbInt8(), BnbNf4(), BnbFp4(), TorchaoInt8(), TorchaoInt8Dynamic())
CASES = [
    (strategy, model_type)
    for strategy in ON_CPU
    for model_type in ("bert", "distilbert", "gpt2", "llama")
    if strategy.transposed or model_type != "gpt2"
]
DRIFT = {"bnb-int8": 0.1, "bnb-nf4": 0.1, "bnb-fp4": 0.1, "torchao-int8": 1e-4, "torchao-int8-dynamic": 0.2}
"""Largest difference of logits from those with the weights that the stored ones stand for, as a share of the largest.

What is left is the rounding of activations: to 8 bits, to bfloat16, or none.
"""

# Appendix E of Dettmers et al. 2023 (arXiv:2305.14314), rounded as it is printed there to 4 places.
NF4 = [-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0]
NF4 += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1]

needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}")
    for name in ("bitsandbytes", "torchao")
}


def cases(chosen=CASES):
    return [
        pytest.param(strategy, kind, id=f"{strategy.name}-{kind}", marks=needs[strategy.library])
        for strategy, kind in chosen
    ]


def standing_for(quantized, model, layers):
    """Return the dense model with the weights that quantized layers stand for, in the libraries' own words."""
    dense = copy.deepcopy(model)
    for name in (*layers.quantized, *layers.embeddings):
        module, own = quantized.get_submodule(name), dense.get_submodule(name)
        weight = module.weight.data
        kind = type(module).__name__
        if kind in {"Linear4bit", "Linear8bitLt"}:
            import bitsandbytes
        if kind == "Linear4bit":
            weight = bitsandbytes.functional.dequantize_4bit(weight, module.weight.quant_state)
        elif kind == "Linear8bitLt":
            weight = bitsandbytes.functional.int8_vectorwise_dequant(module.weight.CB, module.weight.SCB)
        elif hasattr(weight, "dequantize"):
            weight = weight.dequantize()
        own.weight.data = (weight if weight.shape == own.weight.shape else weight.T).detach().float().clone()
        if weight.shape[0] == weight.shape[1] and type(own).__name__ == "Conv1D":
            own.weight.data = own.weight.data.T.contiguous()
    return dense


def trained(model_type, make_checkpoint, make_target, load):
    target = make_target(make_checkpoint(model_type))
    model = load(target).eval()
    model.config.pad_token_id = 0
    return model, target


# ------------------------------------------------------------------------------------------- which layers


@given(
    st.sets(st.lists(st.sampled_from(["a", "b", "0", "1", "12", "b2"]), min_size=1, max_size=4).map(".".join)),
    st.data(),
)
def test_patterns_match_what_they_are_for_and_nothing_else(names, data):
    others = data.draw(st.sets(st.sampled_from(sorted(names)))) if names else set()
    chosen = names - others
    found = patterns(chosen, others)
    matching = {name for name in names if any(re.fullmatch(pattern, name) for pattern in found)}
    assert matching == chosen


def test_one_pattern_stands_for_the_layers_of_all_blocks():
    names = [f"bert.encoder.layer.{i}.output.dense" for i in range(12)]
    assert patterns(names, ["classifier"]) == [r"bert\.encoder\.layer\.\d+\.output\.dense"]


@pytest.mark.parametrize("model_type", sorted(HEADS))
def test_the_blocks_are_quantized_and_heads_are_not(model_type, make_checkpoint, make_target, load):
    model, _ = trained(model_type, make_checkpoint, make_target, load)
    layers = block_layers(model, transposed=True)
    assert len(layers.quantized) == BLOCKS * LAYERS_A_BLOCK[model_type]
    assert set(layers.dense) == HEADS[model_type]
    assert len(layers.embeddings) == TABLES[model_type]


def test_layers_that_do_not_divide_that_overflow_or_that_share_their_table_stay():
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=64, tie_word_embeddings=True))
    layers = block_layers(llama, divisor=64)
    assert layers.quantized == ("model.layers.0.mlp.down_proj",)
    assert layers.embeddings == ()
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2))
    assert not [name for name in block_layers(t5).quantized if name.endswith(".wo")]


# -------------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def written(tmp_path_factory, make_checkpoint, toy_tokenizer):
    """Models compressed and written in this process, and their logits in another that knows transformers alone."""
    found = {}

    def of(strategy, model, target, logits):
        key = (strategy.name, model.config.model_type)
        if key not in found:
            folder = tmp_path_factory.mktemp("-".join(key))
            quantized = strategy.apply(model, target, [], {})
            strategy.save(quantized, folder)
            layers = block_layers(model, strategy.divisor, strategy.transposed)
            standing = logits(standing_for(quantized, model, layers), target)
            found[key] = quantized, folder, logits(quantized, target), standing
        return found[key]

    return of


@pytest.mark.parametrize(("strategy", "model_type"), cases())
def test_the_files_load_back_to_the_same_answers(
    strategy, model_type, make_checkpoint, make_target, load, logits, written
):
    model, target = trained(model_type, make_checkpoint, make_target, load)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dense = logits(model, target)
    _, folder, answers, standing = written(strategy, model, target, logits)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the model stays"
    assert not torch.equal(answers, dense)
    assert (answers - standing).abs().max() < DRIFT[strategy.name] * standing.abs().max()
    torch.testing.assert_close(logits(strategy.load(folder, target), target), answers, rtol=1e-5, atol=1e-5)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}, "nothing that could carry code"


@pytest.mark.parametrize(("strategy", "model_type"), cases())
def test_weights_take_the_bytes_that_their_format_says(
    strategy, model_type, make_checkpoint, make_target, load, logits, written
):
    model, target = trained(model_type, make_checkpoint, make_target, load)
    _, folder, *_ = written(strategy, model, target, logits)
    stored = load_file(str(folder / "model.safetensors"))
    layers = block_layers(model, strategy.divisor, strategy.transposed)
    assert len(layers.quantized) == BLOCKS * LAYERS_A_BLOCK[model_type]
    bits = 4 if strategy.divisor == 64 else 8
    tables = layers.embeddings if strategy.library == "torchao" else ()
    for name in (*layers.quantized, *tables):
        weight = stored[f"{name}._weight_qdata" if strategy.library == "torchao" else f"{name}.weight"]
        assert weight.nbytes == model.get_submodule(name).weight.numel() * bits // 8
    for name in layers.dense:
        assert stored[f"{name}.weight"].dtype == torch.float32


@pytest.mark.parametrize(("strategy", "model_type"), cases([case for case in CASES if case[1] in {"bert", "llama"}]))
def test_what_was_written_after_predictions_is_the_same(
    strategy, model_type, make_checkpoint, make_target, load, logits, written, tmp_path
):
    # bitsandbytes moves scales at the first prediction, and repacks 4-bit weights on CPUs with AVX512-bf16. It packs
    # them back to be written, with scales that went through bfloat16: the files are written before any prediction.
    model, target = trained(model_type, make_checkpoint, make_target, load)
    quantized, folder, *_ = written(strategy, model, target, logits)
    strategy.save(quantized, tmp_path)
    first, later = (load_file(str(path / "model.safetensors")) for path in (folder, tmp_path))
    assert set(first) == set(later)
    for name, value in first.items():
        if not value.is_floating_point() and "absmax" not in name and "quant_state" not in name:
            assert torch.equal(later[name], value), name
        elif value.is_floating_point():
            rough = "bias" in name or "absmax" in name
            torch.testing.assert_close(later[name].float(), value.float(), rtol=0.02 if rough else 0, atol=0)


@pytest.mark.slow
def test_transformers_alone_loads_all_of_them(make_checkpoint, make_target, load, logits, written, tmp_path):
    """In a fresh process that never sees autoft."""
    jobs, expected = [], {}
    for strategy, model_type in CASES:
        if importlib.util.find_spec(strategy.library) is None:
            continue
        model, target = trained(model_type, make_checkpoint, make_target, load)
        _, folder, answers, _ = written(strategy, model, target, logits)
        rows = target.task.collate(target.task.encode(target.task.demo_rows(), target.context), target.context)
        jobs.append({"folder": str(folder), "ids": rows["input_ids"].tolist(), "mask": rows["attention_mask"].tolist()})
        expected[str(folder)] = answers
    assert jobs
    program = f"""
import json, sys, torch
from transformers import AutoModelForSequenceClassification
found = {{}}
for job in json.loads({json.dumps(jobs)!r}):
    model = AutoModelForSequenceClassification.from_pretrained(job["folder"]).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(job["ids"]), attention_mask=torch.tensor(job["mask"])).logits
    found[job["folder"]] = logits.float().tolist()
assert "autoft" not in sys.modules
json.dump(found, open({str(tmp_path / "found.json")!r}, "w"))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    for folder, answers in expected.items():
        torch.testing.assert_close(torch.tensor(found[folder]), answers, rtol=1e-5, atol=1e-5, msg=folder)


@pytest.mark.parametrize("strategy", [pytest.param(s, id=s.name, marks=needs[s.library]) for s in ON_CPU])
def test_the_rest_may_be_stored_in_16_bits(strategy, make_checkpoint, make_target, load, logits, tmp_path):
    model, target = trained("bert", make_checkpoint, make_target, load)
    quantized = strategy.apply(model, target, [], {"rest": "bf16"})
    strategy.save(quantized, tmp_path)
    stored = load_file(str(tmp_path / "model.safetensors"))
    assert {stored[f"{name}.weight"].dtype for name in HEADS["bert"]} == {torch.bfloat16}
    loaded = strategy.load(tmp_path, target)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(logits(loaded, target), logits(quantized, target))


# ------------------------------------------------------------------------------------------------ weights


@needs["bitsandbytes"]
def test_int8_weights_are_those_of_the_paper(make_checkpoint, make_target, load, logits, written):
    # Equation 2 of Dettmers et al. 2022: round(127 * w / absmax) of each row.
    model, target = trained("llama", make_checkpoint, make_target, load)
    _, folder, *_ = written(BnbInt8(), model, target, logits)
    stored = load_file(str(folder / "model.safetensors"))
    for name in block_layers(model).quantized:
        weight = model.get_submodule(name).weight.detach().half().float()
        largest = weight.abs().amax(dim=1)
        torch.testing.assert_close(stored[f"{name}.SCB"], largest)
        expected = torch.round(127 * weight / largest[:, None])
        assert (stored[f"{name}.weight"] - expected).abs().max() <= 1, "a tie may be rounded either way"
        assert (stored[f"{name}.weight"] != expected).float().mean() < 0.01


@needs["bitsandbytes"]
def test_nf4_weights_are_the_nearest_values_of_the_paper(make_checkpoint, make_target, load):
    import bitsandbytes

    model, target = trained("bert", make_checkpoint, make_target, load)
    quantized = BnbNf4().apply(model, target, [], {"double_quantization": False})
    values = torch.tensor(NF4)
    for name in block_layers(model, 64).quantized:
        weight = quantized.get_submodule(name).weight
        found = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float()
        blocks = model.get_submodule(name).weight.detach().reshape(-1, 64)
        largest = blocks.abs().amax(dim=1, keepdim=True)
        distances = (blocks / largest)[..., None].sub(values).abs()
        taken = found.reshape(-1, 64) / largest
        assert taken[..., None].sub(values).abs().amin(-1).max() < 1e-4, "one of the sixteen"
        assert ((blocks / largest - taken).abs() <= distances.amin(-1) + 2e-4).all(), "the nearest"


@needs["bitsandbytes"]
@pytest.mark.parametrize("strategy", [BnbNf4(), BnbFp4()], ids=lambda one: one.name)
def test_double_quantization_takes_less_than_half_a_bit_a_weight_away(
    strategy, make_checkpoint, make_target, load, tmp_path
):
    model, target = trained("bert", make_checkpoint, make_target, load)
    sizes = {}
    for double in (True, False):
        folder = tmp_path / str(double)
        strategy.save(strategy.apply(model, target, [], {"double_quantization": double}), folder)
        stored = load_file(str(folder / "model.safetensors"))
        sizes[double] = sum(value.nbytes for name, value in stored.items() if name.endswith("absmax"))
    weights = sum(model.get_submodule(name).weight.numel() for name in block_layers(model, 64).quantized)
    assert sizes[False] == weights / 64 * 4, "32 bits a block"
    # 8 bits a block, and 32 a block of 256 blocks (section 3), of which small layers have one that is not full.
    assert weights / 64 <= sizes[True] <= weights / 64 + 4 * (weights // (64 * 64) + 1)


@needs["torchao"]
@pytest.mark.parametrize("strategy", [TorchaoInt8(), TorchaoInt8Dynamic()], ids=lambda one: one.name)
def test_torchaos_int8_weights_are_within_half_a_step_of_what_they_stand_for(
    strategy, make_checkpoint, make_target, load, logits, written
):
    model, target = trained("bert", make_checkpoint, make_target, load)
    quantized, *_ = written(strategy, model, target, logits)
    layers = block_layers(model)
    for name in (*layers.quantized, *layers.embeddings):
        weight = model.get_submodule(name).weight.detach()
        stored = quantized.get_submodule(name).weight
        scale = stored.scale.reshape(-1, 1).float()
        # Symmetric: from -128 to 127 there are 255 steps over twice the largest value of a row. From -64 to 63 there are 127, where
        # the CPU's products of 8 bits overflow.
        largest = weight.abs().amax(dim=1, keepdim=True)
        filled = largest > 0  # the row of the padding token is zero
        narrow = isinstance(strategy, TorchaoInt8Dynamic) and not has_int8_products() and name not in layers.embeddings
        torch.testing.assert_close(scale[filled], largest[filled] / (63.5 if narrow else 127.5), rtol=1e-4, atol=0)
        assert ((stored.qdata.float() * scale - weight).abs() <= scale / 2 * (1 + 1e-3)).all()


@needs["torchao"]
def test_embeddings_can_stay(make_checkpoint, make_target, load, tmp_path):
    model, target = trained("bert", make_checkpoint, make_target, load)
    TorchaoInt8().save(TorchaoInt8().apply(model, target, [], {"embeddings": False}), tmp_path)
    stored = load_file(str(tmp_path / "model.safetensors"))
    for name in block_layers(model).embeddings:
        assert torch.equal(stored[f"{name}.weight"], model.get_submodule(name).weight)


@needs["torchao"]
def test_float8_is_stored_and_loaded_where_it_is_not_multiplied(make_checkpoint, make_target, load, logits, tmp_path):
    # What a GPU is needed for is the product of float8: weights alone are turned into bfloat16 anywhere.
    model, target = trained("bert", make_checkpoint, make_target, load)
    dense, strategy = logits(model, target), TorchaoFp8()
    quantized = strategy.apply(model, target, [], {"activations": "none"})
    strategy.save(quantized, tmp_path)
    stored = load_file(str(tmp_path / "model.safetensors"))
    for name in block_layers(model).quantized:
        weight = model.get_submodule(name).weight.detach()
        found, scale = stored[f"{name}._weight_qdata"], stored[f"{name}._weight_scale"].float()
        assert found.dtype == torch.float8_e4m3fn
        # Three bits behind the point, and bfloat16 has eight digits: at most a sixteenth, and below the smallest
        # normal number half of its step.
        error = (found.float() * scale - weight).abs()
        assert (error <= weight.abs() / 16 * 1.1 + scale * 2**-9).all()
    answers = logits(quantized, target)
    assert 0 < (answers - dense).abs().max() < 0.5 * dense.abs().max()
    assert torch.equal(logits(strategy.load(tmp_path, target), target), answers)


# ----------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def on_gpu(make_target, make_checkpoint):
    def make(capability, model_type="bert"):
        target = make_target(make_checkpoint(model_type), device="cuda", bf16=capability >= 8)
        gpu = Gpu("a GPU", 2**34, capability)
        return replace(target, hardware=replace(target.hardware, gpus=(gpu,)))

    return make


@needs["torchao"]
@pytest.mark.parametrize(("strategy", "least"), [(TorchaoInt4(), 8.0), (TorchaoFp8(), 8.9)], ids=["int4", "fp8"])
def test_formats_of_newer_gpus_are_refused_elsewhere(strategy, least, on_gpu, make_target, make_checkpoint):
    assert strategy.check(on_gpu(least)) is None
    assert f"compute capability {least}" in strategy.check(on_gpu(least - 0.1)).reason
    assert f"compute capability {least}" in strategy.check(make_target(make_checkpoint("bert"))).reason


@pytest.mark.parametrize("strategy", ON_CPU, ids=lambda one: one.name)
def test_what_cannot_be_quantized_is_refused(strategy, make_target, make_checkpoint, monkeypatch):
    target = make_target(make_checkpoint("bert"))
    if importlib.util.find_spec(strategy.library) is not None:
        assert strategy.check(target) is None
        for change, told in (
            ({"model_type": "resnet"}, "resnet has no linear layers"),
            ({"quantization_config": {"quant_method": "awq"}}, "quantized already"),
        ):
            assert told in strategy.check(replace(target, config={**target.config, **change})).reason
        transposed = strategy.check(replace(target, config={"model_type": "gpt2"}))
        assert (transposed is None) == (strategy.library == "bitsandbytes")
        slow = replace(target.hardware, bf16=False)
        pinned = replace(target.context, params={f"{strategy.name}.rest": "bf16"})
        assert "bfloat16" in strategy.check(replace(target, hardware=slow, context=pinned)).reason
        assert strategy.check(replace(target, hardware=slow)) is None
        assert "mps" in strategy.check(replace(target, hardware=replace(target.hardware, device="mps"))).reason
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert f"pip install autoft[{strategy.library}]" in strategy.check(target).reason


@pytest.mark.parametrize("strategy", ON_CPU, ids=lambda one: one.name)
def test_loading_without_the_library_says_what_to_install(
    strategy, make_target, make_checkpoint, monkeypatch, tmp_path
):
    target = make_target(make_checkpoint("bert"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=rf"pip install autoft\[{strategy.library}\]"):
        strategy.load(tmp_path, target)


@needs["bitsandbytes"]
def test_a_model_without_a_layer_that_fits_is_told(make_checkpoint, make_target, load):
    from transformers import BertConfig, BertForSequenceClassification

    _, target = trained("bert", make_checkpoint, make_target, load)
    config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=48, vocab_size=20)
    with pytest.raises(ModelError, match="inputs that divide by 64"):
        BnbNf4().apply(BertForSequenceClassification(config), target, [], {})
    with pytest.raises(ModelError, match="Linear is no model of transformers"):
        BnbInt8().apply(torch.nn.Linear(4, 4), target, [], {})


# -------------------------------------------------------------------------------------------------- GPUs


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("strategy", "params"),
    [
        (Fp16Weights(), {}),
        (BnbInt8(), {}),
        (BnbNf4(), {}),
        (TorchaoInt8(), {}),
        (TorchaoInt8Dynamic(), {}),
        (TorchaoInt4(), {"group_size": 32}),
        (TorchaoFp8(), {}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_it_predicts_and_loads_on_a_gpu(strategy, params, make_checkpoint, make_target, load, tmp_path):
    target = make_target(make_checkpoint("bert"), device="cuda")
    target = replace(target, hardware=Hardware.probe())
    refusal = strategy.check(target)
    if refusal:
        pytest.skip(refusal.reason)
    model = load(target).cuda().eval()
    task, context = target.task, target.context
    batch = task.collate(task.encode(task.demo_rows(), context), context)
    batch = {name: value.cuda() for name, value in batch.items() if name != "labels"}
    quantized = strategy.apply(model, target, [], params)
    strategy.save(quantized, tmp_path)
    with torch.no_grad():
        dense, answers = model(**batch).logits, quantized(**batch).logits.float()
        loaded = strategy.load(tmp_path, target)(**batch).logits.float()
    assert 0 < (answers - dense).abs().max() < 0.8 * dense.abs().max()
    torch.testing.assert_close(loaded, answers, rtol=1e-3, atol=1e-3)
