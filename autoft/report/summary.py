"""``report.json``: the figures of a run for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from autoft.plans.plan import Plan, plan_of
from autoft.rundir import RunRecord, TrialResult

__all__ = ["summary"]


def summary(record: RunRecord) -> dict[str, Any]:
    """Return what ``report.json`` holds; its keys only grow.

    Figures that were not measured are absent; those that are undefined (as ROC-AUC of one class) are null.
    """
    plan, final = plan_of(record), record.final
    baselines: dict[str, Any] = {}
    for name, figures in record.baselines.items():
        key = "trivial" if figures.trivial and "trivial" not in baselines else name
        baselines[key] = {"name": name, **figures.model_dump(include={"test", "validation"})}
    default = _trial(record, 0)
    if default is not None:
        baselines["default"] = {
            "trial": 0,
            "model": default.config.model,
            "params": default.config.params,
            "test": _intervals(record, "default"),
            "validation": _default_validation(record, default),
            "costs": _default_costs(record, default),
        }
    best = None
    if record.selection is not None:
        chosen = record.trial(record.selection.trial)
        best = {
            "trial": record.selection.trial,
            "variant": record.selection.variant,
            "model": chosen.config.model,
            "pipeline": chosen.config.pipeline,
            "params": chosen.config.params,
            "seed": chosen.config.seed,
            "reason": record.selection.reason,
            "test": _intervals(record, "best"),
            "validation": final.validation.get("best", {}) if final else {},
            "costs": final.costs.get("best", {}) if final else {},
        }
    counts = {str(state): count for state, count in record.counts().items()}
    document = {
        "autoft": plan.autoft,
        "name": plan.name,
        "task": plan.task,
        "objective": plan.objective,
        "trials": counts,
        "variants": sum(len(trial.variants) for trial in record.trials),
        "seconds": final.seconds if final else sum(trial.seconds.get("total", 0.0) for trial in record.trials),
        "data": plan.data,
        "baselines": baselines,
        "best": best,
        "budget": budget_rows(record, plan),
        "environment": {**plan.environment, "hardware": plan.hardware, "device": plan.device, "threads": plan.threads},
        "warnings": [*plan.warnings, *(final.notes if final else [])],
        "refused": {note.what: note.reason for note in plan.refusals},
    }
    clean: dict[str, Any] = _without_nan(document)
    return clean


def budget_rows(record: RunRecord, plan: Plan) -> dict[str, dict[str, Any]]:
    """Return each limit of the budget with the figure of what was left, in the column's unit, and whether it holds."""
    final = record.final
    rows: dict[str, dict[str, Any]] = {}
    seconds = final.seconds if final else None
    rows["time"] = {
        "limit": plan.time_limit,
        "unit": "s",
        "measured": seconds,
        "met": None if seconds is None else seconds <= plan.time_limit,
    }
    if plan.trials_limit is not None:
        count = sum(trial.config.limited for trial in record.trials)
        rows["trials"] = {
            "limit": plan.trials_limit,
            "unit": "trials",
            "measured": count,
            "met": count <= plan.trials_limit,
        }
    costs = final.costs.get("best", {}) if final else {}
    for limit in plan.budget:
        measured = costs.get(limit.column)
        rows[limit.key] = {
            "limit": limit.limit,
            "given": limit.given,
            "unit": limit.column.rsplit("_", 1)[-1],
            "column": limit.column,
            "measured": measured,
            "met": None if measured is None else measured <= limit.limit,
        }
    return rows


def _trial(record: RunRecord, number: int) -> TrialResult | None:
    return next((trial for trial in record.trials if trial.number == number), None)


def _default_costs(record: RunRecord, default: TrialResult) -> dict[str, float]:
    if record.final and "default" in record.final.costs:
        return record.final.costs["default"]
    return next((variant.costs for variant in default.variants if variant.name == "none"), {})


def _default_validation(record: RunRecord, default: TrialResult) -> dict[str, float]:
    if record.final and "default" in record.final.validation:
        return record.final.validation["default"]
    return next((variant.validation for variant in default.variants if variant.name == "none"), default.validation)


def _intervals(record: RunRecord, system: str) -> dict[str, dict[str, float]]:
    if record.final is None:
        return {}
    return {name: interval.model_dump() for name, interval in record.final.test.get(system, {}).items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return value
