"""Image captioning for autoft: encoder-decoder models, BLIP, GIT, or a vision encoder with a new decoder."""

from __future__ import annotations

from collections.abc import Sequence

from autoft.contracts import QualityMetric, Task
from autoft.hookspecs import hookimpl
from autoft_image_captioning.metrics import METRICS
from autoft_image_captioning.task import ImageCaptioning

__all__ = ["autoft_metrics", "autoft_tasks"]


@hookimpl
def autoft_tasks() -> Sequence[Task]:
    """Return the task."""
    return (ImageCaptioning(),)


@hookimpl
def autoft_metrics() -> Sequence[QualityMetric]:
    """Return its metrics."""
    return METRICS
