"""The checks of a cost metric."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import get_args

from autoft.artifact import LoadedModel
from autoft.contracts import CostMetric, Served
from autoft.contracts.metric import Unit
from autoft.hardware import peak_resident_bytes
from autoft.testing.isolation import heavy_imports
from autoft.testing.workbench import Call, Workbench, expect, skip

__all__ = ["cost_checks"]


def cost_checks(metric: CostMetric, bench: Workbench) -> Iterator[Call]:
    """Yield the checks of a cost metric; ``bench`` has the model that it measures."""
    yield Call(check_import_is_light, (metric,))
    yield Call(check_cost_names, (metric,))
    yield Call(check_cost_is_measured, (bench, metric))


def check_import_is_light(metric: CostMetric) -> None:
    """Its module loads no heavy library."""
    heavy_imports(metric)


def check_cost_names(metric: CostMetric) -> None:
    """Summary, unit and columns are as the contract has them."""
    expect(
        metric.summary.strip() and "\n" not in metric.summary,
        f"the summary has to be one line, given {metric.summary!r:.60}",
    )
    units = get_args(Unit)
    expect(metric.unit in units, f"the unit is {metric.unit!r}, none of {', '.join(units)}")
    expect(len(set(metric.columns)) == len(metric.columns), "it names a column twice")
    endings = {"bytes": ("_bytes",), "seconds": ("_ms", "_seconds")}.get(metric.unit, ("",))
    expect(
        metric.columns[0].endswith(endings),
        f"a budget in {metric.unit} limits {metric.columns[0]!r}, whose name has to end in {' or '.join(endings)}",
    )


def check_cost_is_measured(bench: Workbench, metric: CostMetric) -> None:
    """It measures a served model: a finite figure, none below zero, for each column that it names."""
    loaded: LoadedModel = bench.write_and_read(bench.untrained, None, "none")
    refusal = metric.check(loaded.context.device, 1)
    if refusal is not None:
        skip(refusal.reason)
    served = Served(loaded.folder, lambda rows: loaded.predict(rows, 2), bench.inputs, 2, peak_resident_bytes)
    figures = metric.measure(served)
    expect(
        set(figures) == set(metric.columns), f"it names {', '.join(metric.columns)}, and measures {', '.join(figures)}"
    )
    wrong = {name: value for name, value in figures.items() if not (math.isfinite(value) and value >= 0)}
    expect(not wrong, f"it measures {wrong}")
