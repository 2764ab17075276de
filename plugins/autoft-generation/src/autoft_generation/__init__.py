"""Text generation and dialogue for autoft, and what all tasks share that answer with a text."""

from __future__ import annotations

from collections.abc import Sequence

from autoft.contracts import QualityMetric, Task
from autoft.hookspecs import hookimpl
from autoft_generation.metrics import METRICS
from autoft_generation.task import Generation

__all__ = ["autoft_metrics", "autoft_tasks"]


@hookimpl
def autoft_tasks() -> Sequence[Task]:
    """Return the task."""
    return (Generation(),)


@hookimpl
def autoft_metrics() -> Sequence[QualityMetric]:
    """Return the metrics of texts."""
    return METRICS
