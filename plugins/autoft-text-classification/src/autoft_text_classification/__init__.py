"""Text classification and sentiment for autoft: binary, multi-class, multi-label, sentence pairs."""

from __future__ import annotations

from collections.abc import Sequence

from autoft.contracts import QualityMetric, Task
from autoft.hookspecs import hookimpl
from autoft_text_classification.metrics import METRICS
from autoft_text_classification.task import TextClassification

__all__ = ["autoft_metrics", "autoft_tasks"]


@hookimpl
def autoft_tasks() -> Sequence[Task]:
    """Return the task."""
    return (TextClassification(),)


@hookimpl
def autoft_metrics() -> Sequence[QualityMetric]:
    """Return its metrics."""
    return METRICS
