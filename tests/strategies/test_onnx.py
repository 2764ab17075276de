from __future__ import annotations

import gc
import linecache
import logging
import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.graph_module import _loader
from transformers.modeling_outputs import SequenceClassifierOutput

from autoft.contracts import ExportSpec
from autoft.errors import ModelError
from autoft.hardware import has_int8_products
from autoft.pretrained import DROPOUTS
from autoft.strategies.layer_pruning import FfnPruning
from autoft.strategies.onnx import GRAPH, Onnx, OnnxInt8, OnnxModel, _answers_alike, _digests, _key, graph_of

MODELS = ["bert", "distilbert", "roberta", "gpt2"]


class Bag(torch.nn.Module):
    """Adds up what the words of a text say: it is traced in a quarter of the time that an encoder takes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(22, 32)
        self.start = torch.nn.Parameter(torch.randn(32))
        self.classifier = torch.nn.Linear(32, 2)
        self.eval()

    def forward(self, input_ids, attention_mask):
        said = (self.words(input_ids) * attention_mask[..., None]).sum(1)
        # As virtual tokens are, it is a constant of the graph in another shape than it has here.
        return SequenceClassifierOutput(logits=self.classifier(said + self.start[None]))


@pytest.fixture
def task(toy_task):
    """The toy task, which says how to trace its models."""

    class ExportableTask(type(toy_task)):
        def export_inputs(self, context):
            inputs = dict(context.processor(["the film", "the plot was not good"], padding=True, return_tensors="pt"))
            return ExportSpec(inputs=inputs, dynamic={name: {0: "batch", 1: "seq"} for name in inputs})

    return ExportableTask()


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Caches with the graph of a model of each type, traced once."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture
def traced(graphs, make_checkpoint, make_target, load, task):
    """A function that gives a target whose cache holds the graph of its model: tracing one takes seconds."""

    def make(model_type):
        target = make_target(make_checkpoint(model_type), task)
        if not (graphs / model_type).is_dir():
            graph_of(load(target), target)
            shutil.copytree(target.cache, graphs / model_type)
        shutil.copytree(graphs / model_type, target.cache, dirs_exist_ok=True)
        return target

    return make


def batch(target, *texts):
    return dict(target.context.processor(list(texts), padding=True, return_tensors="pt"))


def torch_logits(model, inputs):
    model.eval()
    with torch.no_grad():
        return model(**inputs).logits.numpy()


def written(folder, strategy, model, target):
    folder.mkdir()
    strategy.save(strategy.apply(model, target, [], {}), folder)
    return folder / GRAPH


TEXTS = (
    ("good",),
    ("the film was very good and the plot is nice but so dull", "bad"),
    ("a", "the film", "the plot was", "not good", "really awful film"),
)


@pytest.mark.parametrize("model_type", MODELS)
def test_the_graph_answers_as_torch_at_any_shape(
    model_type, make_checkpoint, make_target, load, task, graphs, tmp_path
):
    target = make_target(make_checkpoint(model_type), task)
    model = load(target)
    session = onnxruntime.InferenceSession(str(written(tmp_path / "files", Onnx(), model, target)))
    shutil.copytree(target.cache, graphs / model_type, dirs_exist_ok=True)
    names = {node.name for node in session.get_inputs()}
    for texts in TEXTS:
        inputs = batch(target, *texts)
        (found,) = session.run(["logits"], {name: value.numpy() for name, value in inputs.items() if name in names})
        np.testing.assert_allclose(found, torch_logits(model, inputs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("model_type", "alone"), [("bert", True), ("distilbert", True), ("gpt2", False)])
def test_the_last_layer_of_a_classifier_computes_for_the_token_that_is_read(model_type, alone, traced, load):
    target = traced(model_type)
    proto = graph_of(load(target), target)
    # The activation functions stand in the feed-forward of each layer.
    states = [node.output[0] for node in proto.graph.node if node.op_type in {"Gelu", "Tanh"}]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in states)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    names = {node.name for node in session.get_inputs()}
    inputs = batch(target, *TEXTS[1])
    found = session.run(states, {name: value.numpy() for name, value in inputs.items() if name in names})
    lengths = [one.shape[1] for one in found if one.ndim == 3]
    assert [lengths[0], lengths[-1]] == [inputs["input_ids"].shape[1], 1 if alone else inputs["input_ids"].shape[1]]


def test_a_graph_from_the_cache_has_the_weights_of_its_own_model(traced, load, tmp_path):
    target = traced("bert")
    first, second = load(target, seed=1), load(target, seed=2)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1.1)
    written(tmp_path / "first", Onnx(), first, target)
    (cached,) = (target.cache / "onnx").glob("*.onnx")
    stamp = cached.stat().st_mtime_ns
    assert cached.stat().st_size < 0.5 * (tmp_path / "first" / GRAPH).stat().st_size, "the cache holds no weights"
    graph = OnnxModel(written(tmp_path / "second", Onnx(), second, target))
    assert cached.stat().st_mtime_ns == stamp, "traced once"
    inputs = batch(target, "the film was good", "awful")
    np.testing.assert_allclose(graph(**inputs).logits, torch_logits(second, inputs), rtol=1e-3, atol=1e-4)
    assert not np.allclose(torch_logits(first, inputs), torch_logits(second, inputs), rtol=1e-2)


@pytest.mark.parametrize("model_type", MODELS)
def test_a_smaller_vocabulary_and_narrower_blocks_take_the_graph_of_the_whole(model_type, traced, load, task, tmp_path):
    target = traced(model_type)
    model = load(target)
    written(tmp_path / "whole", Onnx(), model, target)
    before = {path: path.stat().st_mtime_ns for path in (target.cache / "onnx").glob("*.onnx")}
    inputs = batch(target, "the film was very good", "awful")
    model.resize_token_embeddings(int(max(inputs["input_ids"].max(), model.config.pad_token_id or 0)) + 3)
    smaller = FfnPruning().apply(model, target, list(task.demo_rows()), {"keep": 0.625, "epochs": 0})
    graph = OnnxModel(written(tmp_path / "smaller", Onnx(), smaller, target))
    left = {path: path.stat().st_mtime_ns for path in (target.cache / "onnx").glob("*.onnx")}
    assert before.items() <= left.items()
    # GPT-2's layers write down how wide they are: its graph is traced anew, and kept beside the other.
    assert len(left) == (2 if model_type == "gpt2" else 1)
    np.testing.assert_allclose(graph(**inputs).logits, torch_logits(smaller, inputs), rtol=1e-3, atol=1e-4)
    sizes = [(tmp_path / name / GRAPH).stat().st_size for name in ("whole", "smaller")]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("model_type", MODELS)
def test_trials_of_any_dropout_take_one_graph(model_type, traced, load, tmp_path):
    """Dropout is the search's to choose, and a model that answers has none."""
    target = traced(model_type)
    inputs = batch(target, "the film was very good", "awful")
    for number, dropout in enumerate((0.0, 0.07, 0.3)):
        model = load(target, seed=number, **{name: dropout for name in DROPOUTS if name in target.config})
        assert {part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)} >= {dropout}
        graph = OnnxModel(written(tmp_path / str(number), Onnx(), model, target))
        np.testing.assert_allclose(graph(**inputs).logits, torch_logits(model, inputs), rtol=1e-3, atol=1e-4)
    assert len([*(target.cache / "onnx").glob("*.onnx")]) == 1


def test_the_parts_of_a_model_may_have_any_dropout_too(make_checkpoint, make_target, load, task):
    target = make_target(make_checkpoint("bert"), task)
    spec = task.export_inputs(target.context)

    def key(**changes):
        model = load(target)
        model.config.part = {"hidden_dropout_prob": 0.1, "heads": 4, **changes}
        return _key(model, spec, exact=True)

    assert key(hidden_dropout_prob=0.3) == key()
    assert key(heads=2) != key()


@pytest.fixture(scope="module")
def bag_graph(tmp_path_factory):
    """What is kept of the graph of a :class:`Bag`, traced once."""
    return tmp_path_factory.mktemp("bag") / "cache"


@pytest.fixture
def bag(bag_graph, make_target, task, tmp_path):
    """A bag, and a target whose cache holds its graph."""
    model, target = Bag(), make_target(tmp_path, task)
    if not bag_graph.is_dir():
        graph_of(model, target)
        shutil.copytree(target.cache, bag_graph)
    shutil.copytree(bag_graph, target.cache, dirs_exist_ok=True)
    return model, target


def test_a_cached_graph_that_does_not_fit_is_traced_anew(bag, tmp_path):
    """As one whose constants say how wide the blocks were."""
    model, target = bag
    (cached,) = (target.cache / "onnx").glob("*.onnx")
    proto = onnx.load(str(cached))
    (table,) = [one for one in proto.graph.initializer if "words" in one.name]
    table.name = "another"
    cached.write_bytes(proto.SerializeToString())
    cached.with_suffix(".sha256").write_text(_digests(cached))
    graph = OnnxModel(written(tmp_path / "second", Onnx(), model, target))
    inputs = batch(target, "the film was good")
    np.testing.assert_allclose(graph(**inputs).logits, torch_logits(model, inputs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("suffix", ["onnx", "json"])
def test_a_cached_graph_that_is_not_as_it_was_written_is_traced_anew_in_its_place(suffix, bag, tmp_path):
    model, target = bag
    (cached,) = (target.cache / "onnx").glob(f"*.{suffix}")
    whole = {path.name: path.stat().st_size for path in cached.parent.iterdir()}
    if suffix == "onnx":
        # It answers as the model does still.
        changed = onnx.load(str(cached))
        changed.producer_name = "another"
        cached.write_bytes(changed.SerializeToString())
    else:
        cached.write_bytes(cached.read_bytes()[:50])
    graph = OnnxModel(written(tmp_path / "second", Onnx(), model, target))
    inputs = batch(target, "the film was good")
    np.testing.assert_allclose(graph(**inputs).logits, torch_logits(model, inputs), rtol=1e-3, atol=1e-4)
    assert {path.name: path.stat().st_size for path in cached.parent.iterdir()} == whole
    assert b"another" not in cached.read_bytes()


def test_a_graph_with_constants_that_were_computed_of_weights_serves_these_weights_alone(bag, tmp_path):
    _, target = bag

    def stamps():
        return {path.name: path.stat().st_mtime_ns for path in (target.cache / "onnx").iterdir()}

    before = stamps()
    written(tmp_path / "same", OnnxInt8(), Bag(), target)
    assert stamps() == before, "traced once"
    other = Bag()
    with torch.no_grad():
        # So little that the graph of the first one would answer alike.
        other.start.add_(1e-6)
    inputs = batch(target, "the film was good")
    graph = OnnxModel(written(tmp_path / "other", Onnx(), other, target))
    np.testing.assert_allclose(graph(**inputs).logits, torch_logits(other, inputs), rtol=1e-3, atol=1e-4)
    assert stamps() != before, "traced anew"


def test_nothing_of_a_traced_graph_stays_with_the_process(make_target, task, tmp_path, caplog):
    """What torch notes of shapes and writes as code: each of many trials that are traced would be slower than the last."""
    # pytest keeps what is logged, and with it what it is about.
    caplog.set_level(logging.CRITICAL, logger="torch.__trace")
    target = replace(make_target(tmp_path, task), cache=None)
    model = Bag()
    texts, notes, objects = [], [], []
    # What was there before need not be looked through.
    gc.freeze()
    for _ in range(5):
        graph_of(model, target)
        gc.collect()
        there = gc.get_objects()
        objects.append(len(there))
        notes.append(sum(isinstance(one, ShapeEnv) for one in there))
        texts.append(set(_loader.eval_cache) | {name for name in linecache.cache if "eval_with_key" in name})
        del there
    assert texts[4] == texts[0]
    # Those of the last ones may stay.
    assert notes[4] == notes[2]
    assert objects[4] - objects[2] < 500, "two that stay are 1,700"


def test_int8_stores_matrices_and_tables_in_one_byte_a_weight(traced, load, task, tmp_path):
    target = traced("bert")
    model = load(target)
    path = written(tmp_path / "files", OnnxInt8(), model, target)
    arrays = [numpy_helper.to_array(initializer) for initializer in onnx.load(str(path)).graph.initializer]
    in_bytes = sum(array.size for array in arrays if array.dtype in (np.int8, np.uint8))
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "classifier" not in name)
    assert in_bytes >= matrices
    assert max((array.size for array in arrays if array.dtype == np.float32), default=0) <= 128, (
        "biases and scales only"
    )
    graph = OnnxModel(path)
    rows = task.demo_rows()
    inputs = batch(target, *(row["text"] for row in rows))
    expected = torch_logits(model, inputs)
    difference = np.abs(graph(**inputs).logits.numpy() - expected).max() / np.abs(expected).max()
    # Weights have a bit less where sums of 8 would overflow.
    assert 0 < difference < (0.1 if has_int8_products() else 0.2)
    assert metadata(path)["autoft.weight_bits"] == ("8" if has_int8_products() else "7")


def metadata(path):
    return {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}


def test_a_graph_that_this_cpu_would_compute_wrongly_is_told(traced, load, tmp_path, caplog):
    target = traced("bert")
    path = written(tmp_path / "files", OnnxInt8(), load(target), target)
    graph = onnx.load(str(path))
    graph.metadata_props[0].value = "8"
    path.write_bytes(graph.SerializeToString())
    OnnxInt8().load(path.parent, target)
    assert ("overflow" in caplog.text) == (not has_int8_products())


def test_the_given_model_stays_as_it_is(make_checkpoint, make_target, load, task):
    # Its graph is in no cache: tracing a model is what might change it. The second one finds it there.
    target = make_target(make_checkpoint("bert"), task)
    model = load(target).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for strategy in (Onnx(), OnnxInt8()):
        strategy.apply(model, target, [], {})
        assert model.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_graph_that_answers_otherwise_is_refused(make_target, task, tmp_path):
    model = Bag()

    class Noisy(torch.nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs) + torch.rand(inputs.shape[0], self.out_features)

    model.classifier = Noisy(32, 2)
    with pytest.raises(ModelError, match="does not answer as the model does"):
        Onnx().apply(model, make_target(tmp_path, task), [], {})


def test_a_graph_whose_answers_are_no_numbers_does_not_answer_alike(traced, load, task):
    target = traced("bert")
    model = load(target)
    graph = graph_of(model, target)
    assert _answers_alike(graph, model, task.export_inputs(target.context))
    with torch.no_grad():
        model.classifier.bias.fill_(torch.nan)
    assert not _answers_alike(graph, model, task.export_inputs(target.context))


def test_absent_token_types_are_zeros_and_unknown_inputs_are_left_out(
    make_checkpoint, make_target, load, task, tmp_path
):
    target = make_target(make_checkpoint("bert"), task)

    class WithTypes(type(task)):
        def export_inputs(self, context):
            spec = super().export_inputs(context)
            types = torch.zeros_like(spec.inputs["input_ids"])
            types[:, -1] = 1
            inputs = {**spec.inputs, "token_type_ids": types}
            return ExportSpec(inputs=inputs, dynamic={name: {0: "batch", 1: "seq"} for name in inputs})

    target = make_target(target.source.path, WithTypes())
    model = load(target)
    graph = OnnxModel(written(tmp_path / "files", Onnx(), model, target))
    assert "token_type_ids" in graph.inputs
    inputs = batch(target, "the film was good")
    found = graph(**inputs, unknown=torch.ones(1)).logits
    np.testing.assert_allclose(found, torch_logits(model, inputs), rtol=1e-3, atol=1e-4)


def test_a_task_that_cannot_be_traced_is_refused_with_the_reason(make_checkpoint, make_target, toy_task, task):
    target = make_target(make_checkpoint("bert"), toy_task)
    assert "does not say how to trace" in Onnx().check(target).reason
    assert Onnx().check(make_target(target.source.path, task)) is None
