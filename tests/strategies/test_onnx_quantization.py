from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from autoft.strategies.onnx import Onnx
from autoft.strategies.onnx_quantization import OnnxInt4, OnnxMixed, OnnxStaticInt8, least_drift
from autoft.testing.workbench import Workbench


@pytest.fixture(scope="module")
def bench(tmp_path_factory, catalog):
    """Text classification over a tiny encoder that has learned its demo rows."""
    return Workbench(catalog.task("text-classification"), catalog, kind="encoder")


def answers(compressor, bench, tmp_path, **params):
    """Return the logits of the demo rows from the files, and the graph."""
    settings = {name: domain.default for name, domain in compressor.space.items()} | params
    graph = compressor.apply(bench.trained.model, bench.target, bench.rows, settings)
    compressor.save(graph, tmp_path)
    session = compressor.load(tmp_path, bench.target)
    batch = bench.task.collate(bench.task.encode(bench.rows, bench.context), bench.context)
    return session(**{k: v for k, v in batch.items() if k != "labels"}).logits.numpy(), onnx.load(
        tmp_path / "model.onnx"
    )


@pytest.mark.parametrize("compressor", [OnnxInt4(), OnnxMixed(), OnnxStaticInt8()])
def test_a_quantized_graph_says_nearly_what_the_whole_says(compressor, bench, tmp_path):
    (tmp_path / "whole").mkdir()
    wanted, _ = answers(Onnx(), bench, tmp_path / "whole")
    found, _ = answers(compressor, bench, tmp_path)
    assert np.abs(found - wanted).max() < 0.25 * np.abs(wanted).max()
    assert not np.array_equal(found, wanted)


def in_4_bits(graph):
    """Return how many weights of matrices are stored in 4 bits."""
    return sum(
        next(a.i for a in node.attribute if a.name == "K") * next(a.i for a in node.attribute if a.name == "N")
        for node in graph.graph.node
        if node.op_type == "MatMulNBits"
    )


def test_mixed_bits_are_as_many_as_asked_for(bench, tmp_path):
    (tmp_path / "int4").mkdir()
    every = in_4_bits(answers(OnnxInt4(), bench, tmp_path / "int4")[1])
    found = {}
    for bits in (4.0, 6.0, 8.0):
        (tmp_path / str(bits)).mkdir()
        four = in_4_bits(answers(OnnxMixed(), bench, tmp_path / str(bits), bits=bits)[1])
        found[bits] = (4 * four + 8 * (every - four)) / every
    assert found[8.0] == 8
    assert found[4.0] == 4
    assert 4 < found[6.0] <= 6


@pytest.mark.parametrize("seed", range(30))
def test_no_single_exchange_makes_the_choice_of_bits_better(seed):
    rng = random.Random(seed)
    names = [f"m{i}" for i in range(6)]
    sizes = dict.fromkeys(names, 10)
    drift = {name: rng.random() for name in names}
    bits = rng.choice([4.0, 5.0, 6.5, 8.0])
    chosen = least_drift(drift, sizes, bits)

    def average(subset):
        return (8 * 60 - 4 * 10 * len(subset)) / 60

    # Of matrices of one size, by looking at every subset.
    fitting = [s for count in range(7) for s in itertools.combinations(names, count) if average(s) <= bits]
    best = min(sum(drift[name] for name in subset) for subset in fitting)
    assert average(chosen) <= bits
    assert sum(drift[name] for name in chosen) == pytest.approx(best)


def test_embeddings_are_in_8_bits_beside_matrices_of_4(bench, tmp_path):
    _, graph = answers(OnnxInt4(), bench, tmp_path)
    words = bench.trained.model.get_input_embeddings().weight
    tables = [numpy_helper.to_array(t) for t in graph.graph.initializer if list(t.dims) == list(words.shape)]
    assert [table.dtype.itemsize for table in tables] == [1]


def test_ranges_of_activations_come_from_the_rows(bench, tmp_path):
    """The scale of the first product's input is that of the smallest and largest value that the rows bring."""
    _, graph = answers(OnnxStaticInt8(), bench, tmp_path)
    scales = [t for t in graph.graph.initializer if t.name.endswith("_scale")]
    assert scales
    other = replace(bench.target)
    few = OnnxStaticInt8().apply(bench.trained.model, other, bench.rows[:1], {"ranges": "minmax"})
    mine = {t.name: numpy_helper.to_array(t).tolist() for t in scales}
    theirs = {t.name: numpy_helper.to_array(t).tolist() for t in few.proto.graph.initializer if t.name in mine}
    assert mine != theirs
