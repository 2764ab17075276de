"""Translation for autoft: sentence pairs of any two languages."""

from __future__ import annotations

from collections.abc import Sequence

from autoft.contracts import QualityMetric, Task
from autoft.hookspecs import hookimpl
from autoft_translation.metrics import METRICS
from autoft_translation.task import Translation

__all__ = ["autoft_metrics", "autoft_tasks"]


@hookimpl
def autoft_tasks() -> Sequence[Task]:
    """Return the task."""
    return (Translation(),)


@hookimpl
def autoft_metrics() -> Sequence[QualityMetric]:
    """Return its metrics."""
    return METRICS
