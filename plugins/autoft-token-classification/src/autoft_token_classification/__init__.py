"""Named entities and other tags of words for autoft."""

from __future__ import annotations

from collections.abc import Sequence

from autoft.contracts import QualityMetric, Task
from autoft.hookspecs import hookimpl
from autoft_token_classification.metrics import METRICS
from autoft_token_classification.task import TokenClassification

__all__ = ["autoft_metrics", "autoft_tasks"]


@hookimpl
def autoft_tasks() -> Sequence[Task]:
    """Return the task."""
    return (TokenClassification(),)


@hookimpl
def autoft_metrics() -> Sequence[QualityMetric]:
    """Return its metrics."""
    return METRICS
