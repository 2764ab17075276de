from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from autoft.contracts import Rounding, WeightFormat
from autoft.errors import ModelError
from autoft.strategies.dynamic_int8 import DynamicInt8
from autoft.strategies.fake_quantization import fake_quantization, fake_quantized
from autoft.strategies.first_token import first_token_traced
from autoft.strategies.int8_layers import quantize_rows
from autoft.strategies.onnx import OnnxInt8
from autoft.strategies.onnx_quantization import OnnxInt4, OnnxMixed, OnnxStaticInt8, _int4, _int8
from autoft.strategies.quantization_aware import QuantizationAware
from autoft.testing.strategies import defaults
from autoft.testing.workbench import Workbench

PARAMS = defaults(QuantizationAware.space)


def product(weight):
    """A graph that multiplies its input with a matrix ``(inputs, outputs)``, and reads rows of the same numbers."""
    tensors = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(weight, "table")]
    nodes = [
        helper.make_node("MatMul", ["given", "weight"], ["said"], name="product"),
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="read"),
    ]
    given_, ids = (
        helper.make_tensor_value_info("given", TensorProto.FLOAT, ["batch", "seq", weight.shape[0]]),
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"]),
    )
    outputs = [
        helper.make_tensor_value_info("said", TensorProto.FLOAT, ["batch", "seq", weight.shape[1]]),
        helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", weight.shape[1]]),
    ]
    graph = helper.make_graph(nodes, "product", [given_, ids], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def stored(graph):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


@st.composite
def matrices(draw):
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    shape = draw(st.integers(1, 150)), draw(st.integers(1, 9))
    weight = rng.normal(scale=draw(st.sampled_from([1e-3, 1.0, 50.0])), size=shape)
    if draw(st.booleans()):
        weight = np.abs(weight)
    if draw(st.booleans()):
        weight[:, rng.integers(shape[1])] = 0
    return weight.astype(np.float32)


def alike(found, wanted, step):
    """Within rounding error everywhere but for numbers half-way between two integers, which may go to either."""
    away = np.abs(found - wanted)
    assert away.max() <= 1.001 * step.max()
    assert (away > 1e-3 * step).sum() <= max(1, away.size // 100)


@settings(max_examples=25, deadline=None)
@given(weight=matrices())
def test_int8_weights_and_tables_are_rounded_as_onnx_runtime_rounds_them(weight):
    real = stored(_int8(product(weight), ("MatMul", "Gather")))
    scale = real["weight_scale"]
    kept = real["weight_quantized"].astype(np.float32) * scale
    form = OnnxInt8().weight_format({})
    alike(fake_quantized(torch.from_numpy(weight.T.copy()), form.matrices).numpy().T, kept, scale)
    table = (real["table_quantized"].astype(np.float32) - real["table_zero_point"]) * real["table_scale"]
    alike(fake_quantized(torch.from_numpy(weight), form.embeddings).numpy(), table, real["table_scale"])


@settings(max_examples=25, deadline=None)
@given(weight=matrices())
def test_4_bits_are_rounded_as_onnx_runtime_rounds_them(weight):
    real = stored(_int4(product(weight), ["product"]))
    inputs, outputs = weight.shape
    packed = real["weight_Q4"]
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(outputs, packed.shape[1], -1).astype(np.float32)
    zeros = real["weight_zero_points"].reshape(outputs, -1)
    zeros = np.stack([zeros & 15, zeros >> 4], -1).reshape(outputs, -1)[:, : packed.shape[1], None].astype(np.float32)
    scales = real["weight_scales"].reshape(outputs, packed.shape[1], 1)
    kept = ((codes - zeros) * scales).reshape(outputs, -1)[:, :inputs]
    found = fake_quantized(torch.from_numpy(weight.T.copy()), OnnxInt4().weight_format({}).matrices)
    alike(found.numpy(), kept, np.repeat(scales[..., 0], codes.shape[2], 1)[:, :inputs])


@settings(max_examples=25, deadline=None)
@given(weight=matrices())
def test_int8_of_torch_is_rounded_as_its_own_layers_round(weight):
    whole, scale = quantize_rows(torch.from_numpy(weight))
    form = DynamicInt8().weight_format({})
    kept = (whole.float() * scale[:, None]).numpy()
    alike(fake_quantized(torch.from_numpy(weight), form.matrices).numpy(), kept, scale[:, None].numpy())


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), group=st.sampled_from(["tensor", "row", 4]), low=st.sampled_from([0, -7]))
def test_the_gradient_goes_straight_through_what_is_not_cut_off(seed, group, low):
    """Bengio et al. 2013: as if there were no rounding; Jacob et al. 2018: none from outside of the range."""
    rng = np.random.default_rng(seed)
    values, upstream = rng.normal(size=(2, 3, 8)).astype(np.float32)
    numbers = torch.from_numpy(values).requires_grad_()
    (fake_quantized(numbers, Rounding(low, 7, group)) * torch.from_numpy(upstream)).sum().backward()
    size = {"tensor": 24, "row": 8, 4: 4}[group]
    parts = values.reshape(-1, size).astype(np.float64)
    least, most = np.minimum(parts.min(1), 0), np.maximum(parts.max(1), 0)
    scale = np.maximum(-least, most) / 7 if low else (most - least) / 7
    zero = np.zeros_like(scale) if low else np.clip(np.round(-least / scale), 0, 7)
    codes = np.round(parts / scale[:, None]) + zero[:, None]
    # Numbers that lie on the border itself may round to either side.
    sure = np.abs(parts / scale[:, None] - np.floor(parts / scale[:, None]) - 0.5) > 1e-4
    expected = np.where((codes >= low) & (codes <= 7), upstream.reshape(-1, size), 0)
    assert np.allclose(numbers.grad.numpy().reshape(-1, size)[sure], expected[sure])


def test_ranges_that_are_fixed_follow_the_batches_of_the_training_and_cut_off_what_is_outside():
    layer = nn.Linear(2, 1, bias=False)
    nn.init.ones_(layer.weight)
    model = nn.Sequential(layer)
    form = WeightFormat(Rounding(-127, 127, "row"), activations=Rounding(0, 255), fixed_ranges=True)
    with fake_quantization(model, form):
        model.train()
        model(torch.tensor([[[0.0, 1.0]]]))
        model(torch.tensor([[[0.0, 2.0]]]))
        model.eval()
        far = torch.tensor([[[0.5, 10.0]]], requires_grad=True)
        said = model(far)
        said.sum().backward()
        model(torch.tensor([[[0.0, 100.0]]]))
        again = model(far.detach())
    # A hundredth of the second batch: 1 + (2 - 1) / 100.
    assert said.item() == pytest.approx(0.5 + 1.01, abs=1.01 / 255)
    assert again.item() == said.item()
    assert far.grad.tolist() == [[[1.0, 0.0]]]


QUANTIZERS = [OnnxInt8(), OnnxInt4(), OnnxStaticInt8(), DynamicInt8()]


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def bench(request, catalog):
    return Workbench(catalog.task("text-classification"), catalog, kind=request.param)


def logits(model, bench, row):
    """One row at a time: a range that is taken in each call may not depend on others."""
    batch = bench.task.collate(bench.task.encode([row], bench.context), bench.context)
    batch.pop("labels")
    with torch.no_grad():
        return model(**batch).logits.float().numpy()


@pytest.mark.parametrize("quantizer", QUANTIZERS[:2] + QUANTIZERS[3:], ids=lambda one: one.name)
def test_a_model_computes_as_it_will_once_it_is_quantized(quantizer, bench, tmp_path):
    model = bench.trained.model.eval()
    made = quantizer.apply(model, bench.target, bench.rows, defaults(quantizer.space))
    quantizer.save(made, tmp_path)
    real = quantizer.load(tmp_path, bench.target)
    plain = np.concatenate([logits(model, bench, row) for row in bench.rows])
    wanted = np.concatenate([logits(real, bench, row) for row in bench.rows])
    form = quantizer.weight_format({})
    spec = bench.target.task.export_inputs(bench.target.context) if form.traced else None
    with first_token_traced(model, spec) if spec else nullcontext(), fake_quantization(model, form):
        found = np.concatenate([logits(model, bench, row) for row in bench.rows])
    lost = np.abs(wanted - plain).mean()
    assert lost > 0
    # What is left apart: numbers half-way between two integers, and 4-bit kernels' own rounding of activations.
    assert np.abs(found - wanted).mean() < 0.4 * lost
    assert np.array_equal(np.concatenate([logits(model, bench, row) for row in bench.rows]), plain)


def test_what_a_quantizer_leaves_alone_is_left_alone(bench):
    model, seen = bench.trained.model.eval(), {}

    def covered(form):
        with fake_quantization(model, form):
            return {name for name, module in model.named_modules() if "forward" in vars(module)}

    for quantizer in QUANTIZERS:
        seen[quantizer.name] = covered(quantizer.weight_format(defaults(quantizer.space)))
    whole = {name for name, module in model.named_modules() if type(module) in {nn.Linear, nn.Embedding}}
    assert seen["onnx-int8"] == seen["onnx-int4"] == seen["onnx-static-int8"] == whole
    assert whole - seen["dynamic-int8"] == whole & {"classifier", "score"}
    assert not covered(WeightFormat(Rounding(0, 15, 64))) & {
        name for name, module in model.named_modules() if type(module) is nn.Embedding
    }


def test_nothing_is_left_behind_after_an_error(bench):
    model = bench.trained.model
    names, inside = list(model.state_dict()), []

    def fail():
        with fake_quantization(model, OnnxInt8().weight_format({})):
            inside.extend(model.state_dict())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside == names
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]


def test_it_trains_a_copy_for_the_step_behind_it(bench):
    model, asked = bench.trained.model, []
    before = {name: value.clone() for name, value in model.state_dict().items()}

    class Recorded:
        teacher = model

        def __call__(self, student, target, **settings):
            rounded = {name for name, module in student.named_modules() if "forward" in vars(module)}
            asked.append((student, rounded, settings))
            with torch.no_grad():
                student.get_input_embeddings().weight.add_(1)

    target = replace(bench.target, recover=Recorded(), weight_format=OnnxInt8().weight_format({}))
    found = QuantizationAware().apply(model, target, [], {**PARAMS, "teaching": 0.0})
    ((student, rounded, settings),) = asked
    assert found is student is not model
    assert rounded
    assert not [name for name, module in found.named_modules() if "forward" in vars(module)]
    assert settings == {
        "epochs": 3,
        "learning_rate": 2e-5,
        "teaching": 0.0,
        "matching": (),
        "after_step": None,
        "teachers": [],
        "attending": (),
    }
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    name = next(name for name, value in found.named_parameters() if value is found.get_input_embeddings().weight)
    assert torch.equal(found.state_dict()[name], before[name] + 1)


def test_what_is_trained_for_a_format_loses_less_by_it(bench):
    """A model with 2-bit matrices learns its demo rows better when it is trained with their rounding."""
    form = WeightFormat(Rounding(0, 3, 64), embeddings=Rounding(0, 255))

    class Trained:
        teacher = bench.trained.model

        def __call__(self, student, target, **settings):
            bench.train(student, 60, learning_rate=3e-3)

    def loss(model):
        with fake_quantization(model, form):
            return bench.loss(model)

    target = replace(bench.target, recover=Trained(), weight_format=form)
    before = loss(bench.trained.model)
    assert loss(QuantizationAware().apply(bench.trained.model, target, [], PARAMS)) < 0.5 * before


def test_it_is_refused_without_a_quantizer_behind_it(bench):
    assert "put one there, as quantization-aware+onnx-int8" in QuantizationAware().check(bench.target).reason
    with pytest.raises(ModelError, match="no step behind it"):
        QuantizationAware().apply(bench.trained.model, bench.target, [], PARAMS)
    assert QuantizationAware().check(replace(bench.target, weight_format=OnnxInt4().weight_format({}))) is None
    # Which matrices get how many bits is found from the trained weights.
    assert OnnxMixed().weight_format({"bits": 6.0}) is None
    assert not QuantizationAware().trains({**PARAMS, "epochs": 0})
