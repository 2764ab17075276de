"""Graphs of ONNX Runtime in other ways than the usual int8: 4 bits, mixed bits, and calibrated int8."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Rounding, Row, Target, WeightFormat
from autoft.space import Categorical, Float, SearchSpace
from autoft.strategies.onnx import BYTES, GRAPH, Graph, Onnx, OnnxModel, bare, graph_of, quiet

if TYPE_CHECKING:
    import onnx

__all__ = ["OnnxInt4", "OnnxMixed", "OnnxStaticInt8", "least_drift"]

BLOCK = 64
"""Weights that share a scale in 4 bits."""

BATCH = 16
"""Calibration rows a pass."""


class OnnxInt4(Onnx):
    """The graph with 4-bit matrices, 64 weights a scale, and int8 embedding tables: an eighth of the size of both.

    Round to nearest, weights only (``MatMulNBits`` of ONNX Runtime). Smaller than int8, and on most CPUs slower than it:
    the weights are turned back into numbers in each product.
    """

    name: ClassVar[str] = "onnx-int4"
    summary: ClassVar[str] = "graph for ONNX Runtime, 4-bit matrices and int8 embeddings"
    workload = "onnxruntime-int8"

    def weight_format(self, params: Mapping[str, Any]) -> WeightFormat:
        """Return how weights are rounded, those in 8 bits left out: products that are ``Gemm`` in the graph."""
        return WeightFormat(Rounding(0, 15, BLOCK), embeddings=BYTES, pooled=False, traced=True)

    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return the quantized graph.

        Raises:
            ModelError: the graph in 32 bits does not answer as the model does.
        """
        graph = graph_of(model, target)
        with quiet():
            # What is left are products with a bias in one node (GPT-2's layers, poolers, classifiers), which have no 4 bits.
            return Graph(_int8(_int4(graph, list(_matrices(graph))), ("MatMul", "Gather", "Gemm")))


class OnnxMixed(Onnx):
    """The graph with matrices in 4 bits where that changes the answers least, and in 8 bits elsewhere.

    For each matrix alone it is measured how far 4 bits move the logits of calibration rows; then matrices go to 4 bits
    in the order of this drift for each byte that is saved, until they have ``bits`` on average. As in HAWQ (Dong et al.
    2019, arXiv:1905.03696), with the change itself measured in place of a curvature.
    """

    name: ClassVar[str] = "onnx-mixed"
    summary: ClassVar[str] = "graph for ONNX Runtime, each matrix in 4 or 8 bits by how much it matters"
    workload = "onnxruntime-int8"
    space: ClassVar[SearchSpace] = {"bits": Float(4.0, 8.0, default=6.0)}
    calibration_rows: ClassVar[int | None] = 64

    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return the quantized graph.

        Raises:
            ModelError: the graph in 32 bits does not answer as the model does.
        """
        graph = graph_of(model, target)
        sizes = _matrices(graph)
        with quiet():
            batches = list(_batches(target, rows))
            wanted = _answers(graph, batches)
            drift = {name: _distance(_answers(_int4(graph, [name]), batches), wanted) for name in sizes}
            chosen = least_drift(drift, sizes, float(params["bits"]))
            return Graph(_int8(_int4(graph, chosen), ("MatMul", "Gather", "Gemm")))


class OnnxStaticInt8(Onnx):
    """The graph with int8 weights and activations whose ranges are taken from calibration rows, not from each call.

    Ranges by the smallest and the largest value (``minmax``), by the 99.99th percentile, or by the entropy of the
    distribution (Migacz 2017). On CPUs it is seldom faster than ``onnx-int8``, and drifts more; it is for runtimes and
    accelerators that take no ranges of their own.
    """

    name: ClassVar[str] = "onnx-static-int8"
    summary: ClassVar[str] = "graph for ONNX Runtime, int8 weights and activations, calibrated on training rows"
    workload = "onnxruntime-int8"
    space: ClassVar[SearchSpace] = {"ranges": Categorical(("minmax", "percentile", "entropy"))}
    calibration_rows: ClassVar[int | None] = 64

    def weight_format(self, params: Mapping[str, Any]) -> WeightFormat:
        """Return how weights and the inputs of linear layers are rounded."""
        return WeightFormat(
            Rounding(-127, 127, "row"), embeddings=BYTES, activations=BYTES, fixed_ranges=True, traced=True
        )

    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return the quantized graph.

        Raises:
            ModelError: the graph in 32 bits does not answer as the model does.
        """
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

        methods = {
            "minmax": CalibrationMethod.MinMax,
            "percentile": CalibrationMethod.Percentile,
            "entropy": CalibrationMethod.Entropy,
        }
        graph = graph_of(model, target)
        names = {node.name for node in graph.graph.input}

        class Rows(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
            def __init__(self) -> None:
                # Of one row each: a range may not depend on padding.
                self.batches = iter(_batches(target, rows, 1))

            def get_next(self) -> dict[str, Any] | None:
                batch = next(self.batches, None)
                return batch and {name: value.numpy() for name, value in batch.items() if name in names}

        with tempfile.TemporaryDirectory() as folder, quiet():
            path = Path(folder) / GRAPH
            quantize_static(
                graph,
                str(path),
                Rows(),
                calibrate_method=methods[str(params["ranges"])],
                op_types_to_quantize=["MatMul", "Gather", "Gemm"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8,
            )
            return Graph(bare(onnx.load(str(path))))


def least_drift(drift: Mapping[str, float], sizes: Mapping[str, int], bits: float) -> list[str]:
    """Return which matrices to store in 4 bits, the others in 8, so that all have ``bits`` on average, or just less.

    Args:
        drift: of each, how far 4 bits move the answers.
        sizes: weights of each.
        bits: between 4 and 8.
    """
    everything = sum(sizes.values())
    chosen: list[str] = []
    for name in sorted(drift, key=lambda name: (drift[name] / sizes[name], name)):
        if 8 * everything - 4 * sum(sizes[one] for one in chosen) <= bits * everything:
            break
        chosen.append(name)
    return chosen


def _matrices(graph: onnx.ModelProto) -> dict[str, int]:
    """Return the matrix products with constant weights, by the name of their node, and how many weights each has."""
    weights = {tensor.name: tensor.dims for tensor in graph.graph.initializer}
    found = {}
    for node in graph.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            rows, columns = weights[node.input[1]]
            found[node.name] = rows * columns
    return found


def _int4(graph: onnx.ModelProto, nodes: Sequence[str]) -> onnx.ModelProto:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    copied = onnx.ModelProto()
    copied.CopyFrom(graph)
    if not nodes:
        return copied
    # Level 4: activations in int8, which the kernels multiply directly.
    others = [node.name for node in copied.graph.node if node.name not in set(nodes)]
    quantizer = MatMulNBitsQuantizer(
        copied, bits=4, block_size=BLOCK, is_symmetric=False, accuracy_level=4, nodes_to_exclude=others
    )
    quantizer.process()
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


def _int8(graph: onnx.ModelProto, operators: Sequence[str]) -> onnx.ModelProto:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from autoft.hardware import has_int8_products

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / GRAPH
        quantize_dynamic(
            graph,
            str(path),
            op_types_to_quantize=list(operators),
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=not has_int8_products(),
            # Shapes are not inferred through the nodes of 4 bits.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        return bare(onnx.load(str(path)))


def _batches(target: Target, rows: Sequence[Row], size: int = BATCH) -> Iterator[dict[str, Any]]:
    """Yield calibration rows as the model reads them, labels left out."""
    features = target.task.encode(rows, target.context)
    for start in range(0, len(features), size):
        batch = target.task.collate(features[start : start + size], target.context)
        yield {name: value for name, value in batch.items() if name != "labels"}


def _answers(graph: onnx.ModelProto, batches: Sequence[Mapping[str, Any]]) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / GRAPH
        Graph(graph).write(path)
        session = OnnxModel(path)
        answers = [session(**batch) for batch in batches]
        return [getattr(answer, name) for answer in answers for name in session.outputs]


def _distance(found: Sequence[Any], wanted: Sequence[Any]) -> float:
    """Return the mean squared difference."""
    return sum(float((one - other).square().mean()) for one, other in zip(found, wanted, strict=True)) / len(wanted)
