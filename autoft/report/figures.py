"""The plots of a report: which there are, and those that a task draws of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoft.plans.plan import plan_of
from autoft.report.courses import agreements, curves, history, importance, rung_plot
from autoft.report.details import checked_part
from autoft.report.drawing import COLOURS, FAINT, SYMBOLS, Figure, frame, plain, scatter
from autoft.report.fronts import trade_off, waterfall
from autoft.report.parallel import parallel
from autoft.rundir import RunRecord
from autoft.selection import candidates

__all__ = ["figures"]

MARKED = 30
"""Points of a chart's line that are still marked one by one."""


def figures(record: RunRecord) -> dict[str, Figure]:
    """Return the plots that the record has data for, by name.

    The charts of the task's own section are ``chart-0``, ``chart-1`` ... by their place in it; plots of further costs that
    the budget limits are ``front-`` and the column.
    """
    plan = plan_of(record)
    offered = record.selection.candidates if record.selection else candidates(plan, record.trials)
    further = {limit.column for limit in plan.budget} - {"model_size_bytes", "latency_p50_ms"}
    drawn: list[Figure | None] = [
        trade_off(record, plan, offered, "model_size_bytes", "size"),
        trade_off(record, plan, offered, "latency_p50_ms", "latency"),
        *(trade_off(record, plan, offered, column, f"front-{column}") for column in sorted(further)),
        waterfall(record, plan),
        history(record, plan),
        curves(record, plan),
        rung_plot(record, plan),
        importance(record, plan),
        parallel(record, plan),
        *agreements(record),
    ]
    details = [checked_part(item, record.path / "final.json") for item in record.final.details] if record.final else []
    drawn += [_chart(place, item) for place, item in enumerate(details) if item["kind"] == "chart"]
    return {figure.name: figure for figure in drawn if figure is not None}


def _chart(place: int, item: Mapping[str, Any]) -> Figure:
    data = []
    for number, series in enumerate(item["series"]):
        colour = COLOURS[number % len(COLOURS)]
        mode = "lines+markers" if len(series["x"]) <= MARKED else "lines"
        texts = [
            f"{plain(series['name'])}<br>{plain(item['x_label'])} {x:.4g}<br>{plain(item['y_label'])} {y:.4g}"
            for x, y in zip(series["x"], series["y"], strict=True)
        ]
        data.append(
            scatter(
                list(zip(series["x"], series["y"], strict=True)),
                series["name"],
                mode=mode,
                line={"color": colour, "width": 2},
                marker={"size": 7, "symbol": SYMBOLS[number % len(SYMBOLS)]},
                hovertext=texts,
                hoverinfo="text",
            )
        )
    if item["diagonal"]:
        both = [value for series in item["series"] for value in (*series["x"], *series["y"])] or [0.0, 1.0]
        ends = (min(0.0, *both), max(1.0, *both))
        line = {"color": FAINT, "width": 1.2, "dash": "dash"}
        data.append(scatter(list(zip(ends, ends, strict=True)), "equal", mode="lines", line=line, hoverinfo="skip"))
    layout = frame(380, xaxis={"title": item["x_label"]}, yaxis={"title": item["y_label"]})
    layout["showlegend"] = len(item["series"]) > 1
    return Figure(f"chart-{place}", item["title"], item["caption"], data, layout)
