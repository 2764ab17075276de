"""The computed size of a weights file is that of the file, to the byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from autoft.estimates.sizes import INEXACT, adapter_bytes, safetensors_bytes, weights_bytes
from autoft.plugins import load_plugins
from autoft.testing.strategies import defaults
from autoft.testing.workbench import Workbench

KINDS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I8": "int8",
    "U8": "uint8",
}

tensors = st.dictionaries(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=12).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(sorted(KINDS)), st.lists(st.integers(0, 5), max_size=3).map(tuple)),
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(tensors, st.one_of(st.none(), st.just({"format": "pt"})))
def test_what_the_library_writes(shapes, metadata):
    arrays = {name: np.zeros(shape, KINDS[kind]) for name, (kind, shape) in shapes.items()}
    assert safetensors_bytes(shapes, metadata) == len(save(arrays, metadata=metadata))


@pytest.fixture(scope="module")
def catalog():
    return load_plugins()


TASKS = (
    ("text-classification", "encoder"),
    ("generation", "decoder"),
    ("generation", "decoder-conv1d"),
    ("translation", "seq2seq"),
    ("image-captioning", "vision-to-text"),
)


@pytest.mark.parametrize(("task", "kind"), TASKS)
@pytest.mark.parametrize("compression", ["none", "magnitude-pruning", "bf16-weights", "dynamic-int8"])
def test_the_file_of_a_compressed_model(task, kind, compression, catalog, tmp_path):
    bench = Workbench(catalog.tasks[task], catalog, kind=kind)
    model = bench.load_model()
    expected = weights_bytes(model, compression)
    if compression == "none":
        model.save_pretrained(tmp_path)
    else:
        compressor = catalog.compressors[compression]
        smaller = compressor.apply(model, bench.target, bench.rows, defaults(compressor.space))
        compressor.save(smaller, tmp_path)
    assert expected == (tmp_path / "model.safetensors").stat().st_size


@pytest.mark.parametrize(("task", "kind"), TASKS)
def test_shapes_are_enough(task, kind, catalog):
    bench = Workbench(catalog.tasks[task], catalog, kind=kind)
    bare = bench.load_model(device_map="meta")
    assert {parameter.device.type for parameter in bare.parameters()} == {"meta"}
    for compression in ("none", "bf16-weights", "dynamic-int8"):
        assert weights_bytes(bare, compression) == weights_bytes(bench.load_model(), compression)


@pytest.mark.parametrize("name", ["lora", "dora", "ia3"])
def test_the_file_of_an_adapter(name, catalog, tmp_path):
    bench = Workbench(catalog.tasks["text-classification"], catalog)
    adapter = catalog.adapters[name]
    model = adapter.attach(bench.load_model(), bench.target, defaults(adapter.space))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert adapter_bytes(model) == (tmp_path / "adapter_model.safetensors").stat().st_size


def test_what_is_not_computed_has_a_reason(catalog):
    model = Workbench(catalog.tasks["text-classification"], catalog).load_model()
    for compression in INEXACT:
        assert compression in catalog.compressors
        assert weights_bytes(model, compression) is None


def test_types_that_safetensors_lacks_are_refused():
    with pytest.raises(ValueError, match="complex64"):
        weights_bytes(torch.nn.ParameterList([torch.zeros(1, dtype=torch.complex64)]), "none")
