"""Limits on costs: what a budget states, and by how much figures exceed it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from autoft.errors import Fault, unknown_name
from autoft.plans.plan import BudgetLimit
from autoft.plugins import Catalog
from autoft.quantities import parse_bytes, parse_seconds
from autoft.recipe import BudgetSection

__all__ = ["budget_limits", "keeps", "no_choice", "unmeasured", "violations"]


def budget_limits(section: BudgetSection, catalog: Catalog) -> tuple[list[BudgetLimit], list[Fault]]:
    """Return the limits on costs that a budget states, and what is wrong with those that cost metrics read."""
    limits, faults = [], []
    if section.model_size:
        limits.append(_limit("model_size", "model_size_bytes", parse_bytes(section.model_size), section.model_size))
    if section.latency:
        for key, given in (("p50", section.latency.p50), ("p95", section.latency.p95)):
            if given:
                limits.append(_limit(f"latency.{key}", f"latency_{key}_ms", parse_seconds(given) * 1e3, given))
    if section.train_memory:
        size = parse_bytes(section.train_memory)
        limits.append(_limit("train_memory", "train_memory_bytes", size, section.train_memory))
    if section.inference_memory:
        size = parse_bytes(section.inference_memory)
        limits.append(_limit("inference_memory", "inference_memory_bytes", size, section.inference_memory))
    for key, given in (section.model_extra or {}).items():
        metric = catalog.cost_metrics.get(key)
        if metric is None:
            known = dict.fromkeys([*BudgetSection.model_fields, *catalog.cost_metrics])
            faults.append(Fault(f"budget.{key}", unknown_name("budget", key, known)))
            continue
        try:
            limits.append(_limit(key, metric.columns[0], _quantity(given, metric.unit, metric.columns[0]), str(given)))
        except ValueError as error:
            faults.append(Fault(f"budget.{key}", str(error)))
    return limits, faults


def no_choice(section: BudgetSection, request: Mapping[str, int | None]) -> list[Fault]:
    """Return what a budget states that nothing is chosen by among models that are there.

    Args:
        section: the budget.
        request: what latencies were measured on, ``batch_size`` and ``length``.
    """
    faults = [
        Fault(f"budget.{key}", "is of a search, and no model is chosen by it; leave it out")
        for key in ("time", "trials", "target")
        if key in section.model_fields_set
    ]
    for key in ("batch_size", "length"):
        if section.latency is None or key not in section.latency.model_fields_set:
            continue
        given, measured = getattr(section.latency, key), request.get(key)
        if given != measured:
            told = f"the latencies of this run were measured with {measured or 'rows as they come'}, given {given}"
            faults.append(Fault(f"budget.latency.{key}", told))
    return faults


def violations(costs: Mapping[str, float], limits: Sequence[BudgetLimit]) -> dict[str, float]:
    """Return by how much each limit is exceeded, as a share of the limit; those kept, and those on what is not among the costs, are left out."""
    over = {limit.key: costs[limit.column] / limit.limit - 1 for limit in limits if limit.column in costs}
    return {key: value for key, value in over.items() if value > 0}


def unmeasured(costs: Mapping[str, float], limits: Sequence[BudgetLimit]) -> dict[str, float]:
    """Return infinity for each limit on what was not measured: how far it is exceeded nobody knows, nor that it is kept."""
    return {limit.key: math.inf for limit in limits if limit.column not in costs}


def keeps(costs: Mapping[str, float], limits: Sequence[BudgetLimit]) -> bool:
    """Say whether all that is limited was measured, and is within its limit."""
    return all(costs.get(limit.column, math.inf) <= limit.limit for limit in limits)


def _limit(key: str, column: str, limit: float, given: str) -> BudgetLimit:
    return BudgetLimit(key=key, column=column, limit=limit, given=given)


def _quantity(given: object, unit: str, column: str) -> float:
    if unit == "bytes":
        return float(parse_bytes(given))
    if unit == "seconds":
        return parse_seconds(given) * (1e3 if column.endswith("_ms") else 1.0)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
        raise ValueError(f"needs a number above 0, given {given!r}")
    return float(given)
