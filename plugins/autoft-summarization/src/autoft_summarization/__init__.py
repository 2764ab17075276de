"""Summarization for autoft: news, dialogue and scientific texts, one or several references."""

from __future__ import annotations

from collections.abc import Sequence

from autoft.contracts import QualityMetric, Task
from autoft.hookspecs import hookimpl
from autoft_summarization.metrics import METRICS
from autoft_summarization.task import Summarization

__all__ = ["autoft_metrics", "autoft_tasks"]


@hookimpl
def autoft_tasks() -> Sequence[Task]:
    """Return the task."""
    return (Summarization(),)


@hookimpl
def autoft_metrics() -> Sequence[QualityMetric]:
    """Return its metrics."""
    return METRICS
