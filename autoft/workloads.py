"""Small fixed models that are timed on two machines, so that latencies of one can be told for the other.

A model's latency there is taken to be its latency here, times how much longer the workload of its runtime and arithmetic
takes there. That leaves out what the two differ in beside speed: caches above all.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoft.device import WORKLOADS, DeviceProfile
from autoft.errors import SearchFailed
from autoft.evaluation import serving_environment
from autoft.hardware import Hardware
from autoft.processes import thread_environment

__all__ = ["SHAPES", "latency_scales", "measure_profile", "measure_workloads"]

SHAPES = ((4, 256, 32), (2, 768, 64))
"""Layers, width and tokens of the encoders that are timed: one mostly overhead, one mostly products."""

WARM_UP, CALLS = 5, 40


def measure_profile(threads: int | None = None) -> DeviceProfile:
    """Return a profile of this machine; takes about half a minute.

    Args:
        threads: that serve a model; default: one a core.

    Raises:
        SearchFailed: the process that measures ended with an error.
    """
    hardware = Hardware.probe_cpu()
    count = threads or hardware.cores
    answer = measure_workloads(count)
    return DeviceProfile(
        name=os.uname().nodename if hasattr(os, "uname") else "device",
        cpu=hardware.cpu,
        threads=count,
        memory=hardware.memory_bytes,
        milliseconds=answer["milliseconds"],
        versions=answer["versions"],
    )


def measure_workloads(threads: int) -> dict[str, Any]:
    """Time the workloads in a process of their own, with threads as models are served with.

    Returns:
        ``{"milliseconds": {workload: [a time for each shape]}, "versions": {package: version}}``

    Raises:
        SearchFailed: the process ended with an error.
    """
    process = subprocess.run(
        [sys.executable, "-m", "autoft.workloads", str(threads)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=serving_environment(thread_environment(threads)),
        check=False,
    )
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or [f"it ended with {process.returncode}"]
        raise SearchFailed(f"the speed of this machine cannot be measured: {lines[-1]}")
    answer: dict[str, Any] = json.loads(process.stdout)
    return answer


def latency_scales(there: Mapping[str, Sequence[float]], here: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return how many times as long each workload takes there, as the geometric mean over its shapes."""
    return {
        name: math.exp(statistics.fmean(math.log(a / b) for a, b in zip(there[name], here[name], strict=True)))
        for name in there
        if name in here
    }


def _times(threads: int) -> dict[str, list[float]]:
    import torch

    torch.set_num_threads(threads)
    found: dict[str, list[float]] = {name: [] for name in WORKLOADS}
    for layers, width, tokens in SHAPES:
        for name, call in _calls(layers, width, tokens).items():
            found[name].append(_milliseconds(call))
    return found


def _calls(layers: int, width: int, tokens: int) -> dict[str, Callable[[], Any]]:
    """Return what is called for each workload: an encoder of random weights on one row."""
    import onnx
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import BertConfig, BertModel

    from autoft.hardware import has_int8_products
    from autoft.strategies.int8_layers import is_quantizable, quantized_copy
    from autoft.strategies.onnx import OnnxModel, quiet

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    model: Any = BertModel(config, add_pooling_layer=False).eval()
    ids = torch.randint(0, 1000, (1, tokens))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    quantized = copy.deepcopy(model)
    for name, module in list(quantized.named_modules()):
        if is_quantizable(module):
            quantized.set_submodule(name, quantized_copy(module, {}))
    with tempfile.TemporaryDirectory() as folder, quiet(), torch.no_grad():
        plain, small = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        exported = torch.onnx.export(model, (), kwargs=batch, dynamo=True, input_names=list(batch), verbose=False)
        assert exported is not None
        onnx.save_model(exported.model_proto, str(plain))
        quantize_dynamic(
            str(plain),
            str(small),
            op_types_to_quantize=["MatMul", "Gather", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=not has_int8_products(),
        )
        graphs = {"onnxruntime": OnnxModel(plain), "onnxruntime-int8": OnnxModel(small)}

    def run(part: Any) -> Callable[[], Any]:
        def call() -> Any:
            with torch.inference_mode():
                return part(**batch)

        return call

    return {name: run(part) for name, part in {"torch": model, "torch-int8": quantized, **graphs}.items()}


def _milliseconds(call: Callable[[], Any]) -> float:
    """Return the lower quartile of some calls: other work on the machine disturbs it less than the median."""
    for _ in range(WARM_UP):
        call()
    times = []
    for _ in range(CALLS):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.quantiles(times, n=4)[0] * 1e3


def main() -> None:
    """Time the workloads in this process and print the result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m autoft.workloads", description=main.__doc__)
    parser.add_argument("threads", type=int)
    threads = parser.parse_args().threads
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import onnxruntime
    import torch

    versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    out.write(json.dumps({"milliseconds": _times(threads), "versions": versions}))
    out.close()


if __name__ == "__main__":
    main()
