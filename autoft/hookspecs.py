"""The hooks of autoft: each returns values, and the core folds them once into a catalog."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from autoft.contracts import CostMetric, QualityMetric, Strategy, Task

__all__ = ["PROJECT", "autoft_metrics", "autoft_strategies", "autoft_tasks", "hookimpl", "hookspec"]

PROJECT = "autoft"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def autoft_tasks() -> Sequence[Task]:
    """Return the tasks of this plugin."""
    raise NotImplementedError


@hookspec
def autoft_strategies() -> Sequence[Strategy]:
    """Return the strategies of this plugin: augmenters, quantizers, adapters, regularizers, compressors."""
    raise NotImplementedError


@hookspec
def autoft_metrics() -> Sequence[QualityMetric | CostMetric]:
    """Return the metrics of this plugin: quality from predictions, cost from a served model."""
    raise NotImplementedError
