"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

if TYPE_CHECKING:
    from autoft.artifact import Manifest
    from autoft.serving.batching import Batcher

__all__ = ["Metrics"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters and timings of one server, in a registry of its own.

    Args:
        manifest: of the model that is served.
        statuses: of answers, which are told from the start, as 0: the rate of what was not there before cannot be told.
    """

    def __init__(self, manifest: Manifest, statuses: Iterable[int]) -> None:
        # When each series began doubles their number and serves OpenMetrics only.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client has no types here
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = Counter(
            "autoft_requests", "requests for predictions, by status", ["status"], registry=self.registry
        )
        for status in statuses:
            self._requests.labels(str(status))
        self._rows = Counter("autoft_rows", "rows that were answered", registry=self.registry)
        self._request_seconds = Histogram(
            "autoft_request_seconds", "from request to answer", buckets=SECONDS, registry=self.registry
        )
        self._batch_rows = Histogram(
            "autoft_batch_rows", "rows a call of the model", buckets=ROWS, registry=self.registry
        )
        self._batch_seconds = Histogram(
            "autoft_batch_seconds", "a call of the model", buckets=SECONDS, registry=self.registry
        )
        self._waiting = Gauge("autoft_waiting_rows", "rows that wait for the model", registry=self.registry)
        info = Info("autoft_model", "what is served", registry=self.registry)
        info.info({"task": manifest.task, "model": manifest.model, "variant": manifest.variant})

    def watch(self, batcher: Batcher) -> None:
        """Tell how many rows of this batcher wait."""
        self._waiting.set_function(lambda: batcher.waiting)

    def request(self, status: int, rows: int, seconds: float) -> None:
        """Count a request.

        Args:
            status: of the answer.
            rows: that were answered.
            seconds: from the request to the answer.
        """
        self._requests.labels(str(status)).inc()
        self._rows.inc(rows)
        self._request_seconds.observe(seconds)

    def batch(self, rows: int, seconds: float) -> None:
        """Count a call of the model: its rows, and the seconds that it took."""
        self._batch_rows.observe(rows)
        self._batch_seconds.observe(seconds)
