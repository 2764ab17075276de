"""Medical question answering for autoft: choice, yes/no/maybe, extractive, free; calibrated, with abstention."""

from __future__ import annotations

from collections.abc import Sequence

from autoft.contracts import QualityMetric, Task
from autoft.hookspecs import hookimpl
from autoft_medical_qa.choice import MedicalChoice
from autoft_medical_qa.extractive import MedicalExtractive
from autoft_medical_qa.free import MedicalFree
from autoft_medical_qa.metrics import METRICS
from autoft_medical_qa.yes_no import MedicalYesNo

__all__ = ["autoft_metrics", "autoft_tasks"]


@hookimpl
def autoft_tasks() -> Sequence[Task]:
    """Return a task for each form of question."""
    return (MedicalChoice(), MedicalYesNo(), MedicalExtractive(), MedicalFree())


@hookimpl
def autoft_metrics() -> Sequence[QualityMetric]:
    """Return the metrics of confidence."""
    return METRICS
