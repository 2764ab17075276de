"""Export to ONNX Runtime, in 32 bits or with int8 weights.

Tracing a model takes seconds and gives the same graph for all trials of one architecture, so the graph is kept in the
run's cache without its weights, and each trial fills in its own. Whatever way a graph comes about, it is compared with
the torch model at other shapes than it was traced at. The last layer of a classifier that reads the first token alone is
traced for that token only.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import linecache
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Exporter, ExportSpec, Refusal, Rounding, Row, State, Target, WeightFormat
from autoft.errors import ModelError
from autoft.hardware import has_int8_products
from autoft.paths import digest_line
from autoft.pretrained import DROPOUTS, embeddings_of_inputs
from autoft.strategies.first_token import first_token_traced
from autoft.strategies.layer_pruning import WIDTHS, feed_forward_layers

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = ["BYTES", "GRAPH", "Graph", "Onnx", "OnnxInt8", "OnnxModel", "bare", "graph_of", "quiet"]

GRAPH = "model.onnx"
WEIGHT_BITS = "autoft.weight_bits"
"""Key of the graph's metadata: 8, or 7 where the CPU that it was made on needs one bit to spare."""

BYTES = Rounding(0, 255)
"""What ONNX Runtime makes of embedding tables, and of activations: a scale and a zero for the whole tensor."""

TOLERANCE = 1e-3
"""Largest difference between torch and the graph, relative to the largest output."""

SIZES = ("vocab_size", *WIDTHS)
"""Entries of a configuration that pruning changes and a graph does not depend on: that of the whole model serves all."""


class OnnxModel:
    """A graph in ONNX Runtime, called with tensors by name as a transformers model is.

    The outputs are attributes of what a call returns, as ``.logits`` with shape ``(batch, labels)``.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        threads = os.environ.get("OMP_NUM_THREADS", "")
        if threads.isdigit():
            options.intra_op_num_threads = int(threads)
        there = onnxruntime.get_available_providers()
        wanted = ["CUDAExecutionProvider"] if device == "cuda" else []
        providers = [provider for provider in [*wanted, "CPUExecutionProvider"] if provider in there]
        self.path = path
        self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        self.inputs = [node.name for node in self.session.get_inputs()]
        self.outputs = [node.name for node in self.session.get_outputs()]

    def __call__(self, **tensors: Any) -> SimpleNamespace:
        """Run the graph; inputs that it does not know are left out, absent token types are zeros."""
        import numpy as np
        import torch

        arrays = {name: tensors[name] for name in self.inputs if name in tensors}
        given = {
            name: value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            for name, value in arrays.items()
        }
        if "token_type_ids" in self.inputs and "token_type_ids" not in given:
            given["token_type_ids"] = np.zeros_like(given["input_ids"])
        answers = self.session.run(self.outputs, given)
        return SimpleNamespace(
            **{name: torch.from_numpy(answer) for name, answer in zip(self.outputs, answers, strict=True)}
        )


@dataclass(frozen=True)
class Graph:
    """A graph on its way to a file."""

    proto: onnx.ModelProto

    def write(self, path: Path) -> None:
        """Write the graph with its weights in one file, or beside it where they exceed what one file can hold."""
        import onnx

        if self.proto.ByteSize() < onnx.checker.MAXIMUM_PROTOBUF:
            path.write_bytes(self.proto.SerializeToString())
        else:
            onnx.save_model(self.proto, str(path), save_as_external_data=True, location=f"{path.name}.data")


class Onnx(Exporter):
    """The model as a graph for ONNX Runtime, weights in 32 bits: same answers, faster."""

    name = "onnx"
    summary = "graph for ONNX Runtime, 32-bit weights"
    workload = "onnxruntime"
    accepts: ClassVar[frozenset[State]] = frozenset({"dense", "sparse", "reshaped", "factorized", "adapted"})

    def check(self, target: Target) -> Refusal | None:
        """Refuse without the libraries, and for tasks that do not say how to trace their models."""
        for package in ("onnx", "onnxruntime", "onnxscript"):
            if find_spec(package) is None:
                return Refusal(f"{self.name}: needs {package}, which is not installed; pip install {package}")
        from autoft.contracts import Task

        if type(target.task).export_inputs is Task.export_inputs:
            return Refusal(f"{self.name}: the task {target.task.card.name} does not say how to trace its models")
        return None

    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return the model's graph.

        Raises:
            ModelError: the graph does not answer as the model does.
        """
        return Graph(graph_of(model, target))

    def save(self, model: Any, folder: Path) -> None:
        """Write ``model.onnx``."""
        model.write(folder / GRAPH)

    def load(self, folder: Path, target: Target) -> OnnxModel:
        """Return a session over ``model.onnx``."""
        return OnnxModel(folder / GRAPH, target.context.device)


class OnnxInt8(Onnx):
    """The graph with int8 weights, and activations quantized as they come: a quarter of the size, and faster.

    Dynamic quantization of ONNX Runtime, per output channel, of matrix products and embedding tables. Nothing has to be
    calibrated: the range of the activations is taken in each call.
    """

    name = "onnx-int8"
    summary = "graph for ONNX Runtime, int8 weights, activations quantized on the fly"
    workload = "onnxruntime-int8"
    operators = ("MatMul", "Gather", "Gemm")

    def weight_format(self, params: Mapping[str, Any]) -> WeightFormat:
        """Return how weights are rounded on this CPU: what ONNX Runtime calls a reduced range is ±64."""
        most = 127 if has_int8_products() else 64
        return WeightFormat(Rounding(-most, most, "row"), embeddings=BYTES, activations=BYTES, traced=True)

    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return the quantized graph.

        Raises:
            ModelError: the graph in 32 bits does not answer as the model does.
        """
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.TemporaryDirectory() as folder, quiet():
            path = Path(folder) / GRAPH
            quantize_dynamic(
                graph_of(model, target),
                str(path),
                op_types_to_quantize=list(self.operators),
                per_channel=True,
                weight_type=QuantType.QInt8,
                # Where products of int8 are summed in 16 bits they overflow: 7 bits do not.
                reduce_range=not has_int8_products(),
            )
            proto = bare(onnx.load(str(path)))
            proto.metadata_props.add(key=WEIGHT_BITS, value="8" if has_int8_products() else "7")
            return Graph(proto)

    def load(self, folder: Path, target: Target) -> OnnxModel:
        """Return a session over ``model.onnx``; warns where this CPU would compute something else than was measured."""
        model = super().load(folder, target)
        bits = model.session.get_modelmeta().custom_metadata_map.get(WEIGHT_BITS)
        if bits == "8" and not has_int8_products():
            logging.getLogger("autoft").warning(
                "%s: was quantized on a CPU that sums products of int8 in 32 bits; this one sums them in 16, which "
                "overflow: answers may differ from those that were measured. Run the search on a CPU like this one",
                folder,
            )
        return model


def graph_of(model: torch.nn.Module, target: Target) -> onnx.ModelProto:
    """Return the verified graph of a model, from the cache's graph where there is one."""
    spec = target.task.export_inputs(target.context)
    assert spec is not None
    training = model.training
    model.eval()
    try:
        return _verified_graph(model, target, spec)
    finally:
        model.train(training)


def _verified_graph(model: torch.nn.Module, target: Target, spec: ExportSpec) -> onnx.ModelProto:
    # First the graph that serves all sizes, then that of this size alone, where constants in it depend on the size.
    caches = (
        [target.cache / "onnx" / f"{_key(model, spec, exact)}.onnx" for exact in (False, True)] if target.cache else []
    )
    for cache in caches:
        proto = _filled(cache, model) if _is_whole(cache) else None
        if proto is not None and _answers_alike(proto, model, spec):
            return proto
    proto = _trace(model, spec)
    difference = _difference(proto, model, spec)
    if difference > TOLERANCE:
        raise ModelError(
            f"the exported graph does not answer as the model does: relative difference {difference:.2g} at other "
            f"shapes than it was traced at (allowed {TOLERANCE:g})"
        )
    if caches:
        _remember(next((cache for cache in caches if not _is_whole(cache)), caches[-1]), proto, model)
    return proto


def _answers_alike(proto: onnx.ModelProto, model: torch.nn.Module, spec: ExportSpec) -> bool:
    try:
        return _difference(proto, model, spec) <= TOLERANCE
    except Exception:  # noqa: BLE001 - a graph of another width may not even load; it is traced anew then
        return False


def _key(model: torch.nn.Module, spec: ExportSpec, exact: bool) -> str:
    known: Any = getattr(model, "config", None)
    config = known.to_dict() if known is not None else {}
    # Names of labels and files, what the loss was computed with, and the dropout of the trial say nothing about the graph.
    unlike = {"_name_or_path", "id2label", "label2id", "problem_type", "transformers_version", *DROPOUTS}
    unlike.update(() if exact else SIZES)
    pruned = set() if exact else _pruned(model)
    facts = {
        "class": type(model).__qualname__,
        "config": _without(config, unlike),
        "shapes": {name: None if name in pruned else [*value.shape] for name, value in model.state_dict().items()},
        "inputs": sorted(spec.inputs),
        "outputs": spec.outputs,
        "last layer": "of the first token, where no other is read",
        "versions": [version("torch"), version("onnx"), version("onnxscript")],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _without(config: Any, names: Collection[str]) -> Any:
    """Return a configuration without these entries, in the parts that it is made of too."""
    if not isinstance(config, Mapping):
        return config
    return {name: _without(value, names) for name, value in config.items() if name not in names}


def _pruned(model: Any) -> set[str]:
    """Return the names of weights whose sizes :data:`SIZES` say: the table of words, and feed-forward blocks."""
    parts = [embeddings_of_inputs(model), *feed_forward_layers(model)]
    changed = {id(weight) for part in parts if part is not None for weight in part.parameters()}
    return {name for name, weight in model.named_parameters(remove_duplicate=False) if id(weight) in changed}


def _trace(model: torch.nn.Module, spec: ExportSpec) -> onnx.ModelProto:
    """Return the graph as torch exports it; dynamo, for the older exporter is silently wrong for some models."""
    import torch

    dynamic = {
        name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
        for name, axes in spec.dynamic.items()
        if name in spec.inputs
    }
    # A decoder would return the keys and values of a generation that never comes, which no graph can hold.
    config: Any = getattr(model, "config", SimpleNamespace())
    use_cache = getattr(config, "use_cache", None)
    if use_cache:
        config.use_cache = False
    try:
        with torch.no_grad(), quiet(), _sources_forgotten(), first_token_traced(model, spec):
            program = torch.onnx.export(
                _with_names(model, list(spec.inputs)) if hasattr(model, "peft_config") else model,
                kwargs=dict(spec.inputs),
                dynamo=True,
                dynamic_shapes=dynamic,
                output_names=list(spec.outputs),
                verbose=False,
            )
            assert program is not None
            with tempfile.TemporaryDirectory() as folder:
                import onnx

                path = Path(folder) / GRAPH
                program.save(str(path))
                proto = onnx.load(str(path))
            _forget_shapes(program.exported_program)
    finally:
        if use_cache:
            config.use_cache = use_cache
    return bare(proto)


def _forget_shapes(program: Any) -> None:
    """Let go of what torch noted of a model's shapes, which else stays as long as the process.

    The notes are ten thousand objects a graph, and every later collection of garbage would look through them. They hold
    each other by way of tensors, where the collection sees no cycle, and are keys of caches of torch's. torch's own
    compiler breaks the same cycle when it is done (``output_graph.py``), its export does not as of 2.13.

    Args:
        program: an exported program that is not needed any more.
    """
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor) and value.fake_mode.shape_env is not None:
            value.fake_mode.shape_env.tracked_fakes = None
    for method in vars(ShapeEnv).values():
        if hasattr(method, "cache_clear"):
            method.cache_clear()


@contextmanager
def _sources_forgotten() -> Iterator[None]:
    """Let go of the texts of all functions that torch writes meanwhile: a megabyte for twelve layers, kept for tracebacks."""
    from torch.fx.graph_module import _loader

    before = set(_loader.eval_cache)
    try:
        yield
    finally:
        for name in _loader.eval_cache.keys() - before:
            del _loader.eval_cache[name]
            linecache.cache.pop(name, None)


def _with_names(model: torch.nn.Module, names: Sequence[str]) -> torch.nn.Module:
    """Return a module that does what the model does and says the names of its inputs.

    PEFT's models take some of them as keyword arguments that have no name in the signature, where the exporter looks.
    """
    import torch

    def forward(self: Any, **inputs: torch.Tensor) -> Any:
        return self.model(**inputs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind) for name in ("self", *names)]
    )
    wrapper: torch.nn.Module = type("Named", (torch.nn.Module,), {"forward": forward})()
    wrapper.model = model
    return wrapper.eval()


def bare(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what only people debugging an export read: source lines on each node, shapes of intermediate values."""
    for node in proto.graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    for initializer in proto.graph.initializer:
        initializer.ClearField("doc_string")
        initializer.ClearField("metadata_props")
    proto.graph.ClearField("value_info")
    proto.graph.ClearField("metadata_props")
    proto.ClearField("metadata_props")
    proto.ClearField("functions") if not proto.functions else None
    return proto


def _remember(cache: Path, proto: onnx.ModelProto, model: torch.nn.Module) -> None:
    """Write the graph without its weights, and which parameter goes where.

    What was computed of weights while it was traced stays in it, as the keys of virtual tokens do: such a graph says which
    weights those were, and serves the further formats of the same model.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    weights = {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
    origin: dict[str, tuple[str, bool]] = {}
    of_any = True
    for initializer in proto.graph.initializer:
        array = numpy_helper.to_array(initializer)
        if not np.issubdtype(array.dtype, np.floating):
            continue
        named = [initializer.name] if initializer.name in weights else list(weights)
        for name in named:
            weight = weights[name]
            if weight.shape == array.shape and np.array_equal(weight, array):
                origin[initializer.name] = (name, False)
                break
            if weight.ndim == 2 and weight.T.shape == array.shape and np.array_equal(weight.T, array):
                origin[initializer.name] = (name, True)
                break
        else:
            of_any = of_any and array.size <= 16
    shell = onnx.ModelProto()
    shell.CopyFrom(proto)
    for initializer in shell.graph.initializer:
        if initializer.name in origin:
            initializer.ClearField("raw_data")
            initializer.ClearField("float_data")
    cache.parent.mkdir(parents=True, exist_ok=True)
    kept = {"origin": origin, "weights": None if of_any else _weights_digest(model)}
    files = {cache.with_suffix(".json"): json.dumps(kept).encode(), cache: shell.SerializeToString()}
    digests = [f"{hashlib.sha256(content).hexdigest()}  {path.name}\n" for path, content in files.items()]
    files[cache.with_suffix(".sha256")] = "".join(digests).encode()
    for path, content in files.items():
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(path)


def _weights_digest(model: torch.nn.Module) -> str:
    import torch

    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _digests(cache: Path) -> str:
    return digest_line(cache.with_suffix(".json")) + digest_line(cache)


def _is_whole(cache: Path) -> bool:
    """Say whether a graph is kept there, and as it was written: what is compared with the model are two inputs."""
    try:
        return cache.with_suffix(".sha256").read_text(encoding="utf-8", errors="replace") == _digests(cache)
    except OSError:
        return False


def _filled(cache: Path, model: torch.nn.Module) -> onnx.ModelProto | None:
    """Return the cached graph with this model's weights, or None where they do not fit or the cache is damaged."""
    import numpy as np
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    weights = model.state_dict()
    try:
        kept = json.loads(cache.with_suffix(".json").read_text(encoding="utf-8"))
        proto = onnx.load(str(cache))
    except (OSError, ValueError, DecodeError):
        return None
    origin: dict[str, tuple[str, bool]] | None = kept.get("origin")
    # One that an earlier version kept says less.
    if origin is None or (kept["weights"] is not None and kept["weights"] != _weights_digest(model)):
        return None
    for initializer in proto.graph.initializer:
        if initializer.name not in origin:
            continue
        name, transposed = origin[initializer.name]
        array = weights[name].detach().cpu().numpy()
        array = np.ascontiguousarray(array.T if transposed else array)
        if array.ndim != len(initializer.dims) or array.dtype != np.float32:
            return None
        # Those of a smaller vocabulary or narrower blocks: what comes of it is compared with the model.
        initializer.dims[:] = array.shape
        initializer.raw_data = array.tobytes()
    return proto


def _difference(proto: onnx.ModelProto, model: torch.nn.Module, spec: ExportSpec) -> float:
    """Return the largest difference from torch at two other shapes, relative to the largest output."""
    import torch

    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / GRAPH
        Graph(proto).write(path)
        session = OnnxModel(path)
        for batch, length in ((1, 5), (3, 14)):
            inputs = {
                name: _reshaped(value, spec.dynamic.get(name, {}), batch, length) for name, value in spec.inputs.items()
            }
            with torch.no_grad():
                device = next(model.parameters()).device
                expected = model(**{name: value.to(device) for name, value in inputs.items()})
            found = session(**inputs)
            for name in spec.outputs:
                wanted = getattr(expected, name).float().cpu()
                scale = max(float(wanted.abs().max()), 1e-6)
                away = float((getattr(found, name) - wanted).abs().max()) / scale
                # What is no number is not within any tolerance, and max() passes over it.
                worst = max(worst, math.inf if math.isnan(away) else away)
    return worst


def _reshaped(value: torch.Tensor, axes: Mapping[int, str], batch: int, length: int) -> torch.Tensor:
    """Return the example input at another size, its values repeated."""
    import torch

    for axis, kind in axes.items():
        size = batch if kind == "batch" else length
        value = value.index_select(axis, torch.arange(size) % value.shape[axis])
    return value


class quiet:
    """Keeps the exporter's and the quantizer's advice off the log."""

    names = ("torch.onnx", "onnxscript", "onnx_ir", "root", "onnxruntime")

    def __enter__(self) -> None:
        self.caught = warnings.catch_warnings()
        self.caught.__enter__()
        warnings.simplefilter("ignore")
        self.levels = {name: logging.getLogger(name).level for name in self.names}
        for name in self.names:
            logging.getLogger(name).setLevel(logging.ERROR)

    def __exit__(self, *exception: object) -> None:
        self.caught.__exit__(None, None, None)
        for name, level in self.levels.items():
            logging.getLogger(name).setLevel(level)
