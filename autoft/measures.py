"""The built-in cost metrics: size, latency, memory and energy of a model as it is served."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from autoft.contracts import CostMetric, Served
from autoft.energy import CpuEnergy, GpuEnergy
from autoft.hookspecs import hookimpl

__all__ = ["InferenceMemory", "Latency", "ModelSize", "autoft_metrics"]


class ModelSize(CostMetric):
    """Size of all files that serving needs."""

    name = "model_size"
    summary = "all files of the exported model, processor included"
    unit = "bytes"
    columns = ("model_size_bytes",)

    def measure(self, served: Served) -> dict[str, float]:
        """Return the sum of the files' sizes in bytes."""
        files = (path for path in served.folder.rglob("*") if path.is_file())
        return {"model_size_bytes": float(sum(path.stat().st_size for path in files))}


class Latency(CostMetric):
    """Time of one request: raw rows in, predictions out, tokenization included."""

    name = "latency"
    summary = "time of one request, raw rows in and predictions out"
    unit = "seconds"
    columns = ("latency_p50_ms", "latency_p95_ms")

    WARM_UP = 5
    REQUESTS = 100
    SECONDS = 4.0
    """Fewer requests are measured where they take longer than this in all, but no fewer than 20."""

    LONG_SECONDS = 16.0
    """Where even 20 take longer than this, as where a text is written, it is as many as fit into it, but never fewer than 5."""

    WARM_SECONDS = 1.0
    """What was warmed up for so long is warm."""

    def measure(self, served: Served) -> dict[str, float]:
        """Return the median and the 95th percentile over real requests, in milliseconds."""
        import numpy as np

        requests = served.requests
        begin = time.perf_counter()
        for request in itertools.islice(itertools.cycle(requests), self.WARM_UP):
            served.predict(request)
            if time.perf_counter() - begin > self.WARM_SECONDS:
                break
        seconds: list[float] = []
        begin = time.perf_counter()
        for request in itertools.islice(itertools.cycle(requests), self.REQUESTS):
            start = time.perf_counter()
            served.predict(request)
            seconds.append(time.perf_counter() - start)
            took = time.perf_counter() - begin
            if (len(seconds) >= 20 and took > self.SECONDS) or (len(seconds) >= 5 and took > self.LONG_SECONDS):
                break
        p50, p95 = np.percentile(seconds, [50, 95])
        return {"latency_p50_ms": float(p50) * 1e3, "latency_p95_ms": float(p95) * 1e3}


class InferenceMemory(CostMetric):
    """Peak resident memory of the process that serves the model, libraries included."""

    name = "inference_memory"
    summary = "peak resident memory of a process that serves the model, libraries included"
    unit = "bytes"
    columns = ("inference_memory_bytes",)

    def measure(self, served: Served) -> dict[str, float]:
        """Return the peak in bytes; measured after the requests of the latency metric."""
        return {"inference_memory_bytes": float(served.peak_memory())}


@hookimpl
def autoft_metrics() -> Sequence[CostMetric]:
    """Return one of each, in the order of measurement."""
    return (ModelSize(), Latency(), InferenceMemory(), CpuEnergy(), GpuEnergy())
