"""Graphs: ONNX in 32, 16 and 8 bits, and OpenVINO's own format, read from ONNX."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from autoft.errors import ModelError
from autoft.formats.base import EXACT, HALF, INTEGER, Format, Origin, Tolerance, is_generative
from autoft.formats.writers import GraphWriter, is_written, write_generative
from autoft.strategies.onnx import GRAPH, Graph, OnnxModel, quiet

__all__ = ["OnnxFormat", "OnnxHalf", "OnnxInteger", "OpenVino", "OpenVinoModel"]


class OnnxFormat(Format):
    """Graphs for ONNX Runtime, weights in 32 bits."""

    name = "onnx"
    summary = "graph for ONNX Runtime, 32-bit weights; of models that write, several graphs with a cache"
    reads = ("onnx", "transformers")
    needs: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "onnxscript")
    loads_as = "onnx"
    library = "onnx"

    def write(self, origin: Origin, folder: Path) -> None:
        """Write the graph: the very one that was measured, where the trial has it.

        Raises:
            ModelError: the model cannot be traced.
        """
        if is_generative(origin):
            write_generative(origin, folder, self.converted)
            return
        if origin.loaded.manifest.format == self.name:
            for path in origin.folder.glob(f"{GRAPH}*"):
                shutil.copy2(path, folder / path.name)
            return
        _traceable(origin, self.name)
        compressor = origin.catalog.compressors[self.name if self.name in origin.catalog.compressors else "onnx"]
        model = compressor.apply(
            origin.loaded.model, origin.target, origin.calibration_rows(compressor.calibration_rows or 256), {}
        )
        Graph(self.converted(model.proto) if compressor.name != self.name else model.proto).write(folder / GRAPH)

    def converted(self, proto: Any) -> Any:
        """Return a graph in 32 bits as this format has it."""
        return proto

    def read(self, folder: Path, origin: Origin) -> Any:
        """Return a session over the graph, or something that writes with several."""
        return GraphWriter(folder) if is_written(folder) else OnnxModel(folder / GRAPH)


class OnnxHalf(OnnxFormat):
    """Graphs with weights in 16 bits; what goes in and comes out stays in 32."""

    name = "onnx-fp16"
    summary = (
        "graph for ONNX Runtime, 16-bit weights: half the size; for GPUs, as CPUs compute in 32 bits and are slower"
    )
    tolerance: ClassVar[Tolerance] = HALF

    def converted(self, proto: Any) -> Any:
        """Return the graph in 16 bits."""
        from onnxruntime.transformers.float16 import convert_float_to_float16

        with quiet():
            return convert_float_to_float16(proto, keep_io_types=True, disable_shape_infer=True)

    def write(self, origin: Origin, folder: Path) -> None:
        """Write the graph.

        Raises:
            ModelError: the model cannot be traced.
        """
        if origin.loaded.manifest.format != "onnx":
            super().write(origin, folder)
            return
        import onnx

        Graph(self.converted(onnx.load(str(origin.folder / GRAPH)))).write(folder / GRAPH)


class OnnxInteger(OnnxFormat):
    """Graphs with int8 weights, activations quantized as they come."""

    name = "onnx-int8"
    summary = (
        "graph for ONNX Runtime, int8 weights, activations quantized on the fly: a quarter of the size, faster on CPUs"
    )
    reads = ("onnx-int8", "transformers")
    loads_as = "onnx-int8"
    tolerance: ClassVar[Tolerance] = INTEGER

    def converted(self, proto: Any) -> Any:
        """Return the graph with matrix products and embedding tables in int8, as the compressor ``onnx-int8`` does."""
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        from autoft.hardware import has_int8_products
        from autoft.strategies.onnx import OnnxInt8, bare

        with tempfile.TemporaryDirectory() as temporary, quiet():
            path = Path(temporary) / GRAPH
            quantize_dynamic(
                proto,
                str(path),
                op_types_to_quantize=list(OnnxInt8.operators),
                per_channel=True,
                weight_type=QuantType.QInt8,
                reduce_range=not has_int8_products(),
            )
            return bare(onnx.load(str(path)))


class OpenVinoModel:
    """A graph in OpenVINO, called with tensors by name as a transformers model is."""

    def __init__(self, path: Path) -> None:
        import openvino

        # A CPU with bf16 would compute in it, with scores that are off by hundredths.
        self.compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self.inputs = [port.get_any_name() for port in self.compiled.inputs]

    def __call__(self, **tensors: Any) -> SimpleNamespace:
        """Run the graph; inputs that it does not know are left out, absent token types are zeros."""
        import numpy as np
        import torch

        given = {name: tensors[name].cpu().numpy() for name in self.inputs if name in tensors}
        if "token_type_ids" in self.inputs and "token_type_ids" not in given:
            given["token_type_ids"] = np.zeros_like(given["input_ids"])
        found = self.compiled(given)
        return SimpleNamespace(
            **{port.get_any_name(): torch.from_numpy(found[port].copy()) for port in self.compiled.outputs}
        )


class OpenVino(Format):
    """The graph in OpenVINO's intermediate representation, weights in 32 bits."""

    name = "openvino"
    summary = "graph for OpenVINO (Intel CPUs, GPUs and NPUs), 32-bit weights"
    reads = ("onnx", "transformers")
    needs: ClassVar[tuple[str, ...]] = ("openvino", "onnx", "onnxruntime", "onnxscript")
    extra = "openvino"
    tolerance: ClassVar[Tolerance] = EXACT
    library = "openvino"
    usage = "openvino"

    def write(self, origin: Origin, folder: Path) -> None:
        """Write ``model.xml`` and ``model.bin``, read from the ONNX graph.

        Raises:
            ModelError: the model cannot be traced, or writes texts.
        """
        # Core().read_model and not openvino.convert_model, which reports what it did to its makers over the network.
        import openvino

        if is_generative(origin):
            raise ModelError(
                "--format openvino: has one graph, and a model that writes texts needs several and a loop; take onnx, "
                "whose graphs OpenVINO reads too"
            )
        with tempfile.TemporaryDirectory() as temporary:
            OnnxFormat().write(origin, Path(temporary))
            graph = openvino.Core().read_model(str(Path(temporary) / GRAPH))
            openvino.save_model(graph, str(folder / "model.xml"), compress_to_fp16=False)

    def read(self, folder: Path, origin: Origin) -> Any:
        """Return the graph, compiled for the CPU."""
        return OpenVinoModel(folder / "model.xml")


def _traceable(origin: Origin, name: str) -> None:
    if origin.task.export_inputs(origin.context) is None:
        raise ModelError(
            f"--format {name}: the task {origin.task.card.name} does not say how to trace its models, and "
            f"{type(origin.loaded.model).__name__} does not write token after token; export safetensors"
        )
