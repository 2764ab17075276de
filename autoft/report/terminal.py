"""What a search prints when it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from rich.console import Group
from rich.table import Table
from rich.text import Text

from autoft.plans.plan import plan_of
from autoft.report.chosen import front_remarks
from autoft.report.comparison import Comparison
from autoft.report.content import make_content, usage
from autoft.report.views import TableView, cost_text
from autoft.rundir import RunRecord, Selection, read_typed

__all__ = ["closing", "compared", "front", "front_limits", "front_rows", "nearest_misses", "picked", "summary"]

NARROW = frozenset({"pipeline", "default's test", "inference memory"})
"""Columns of a comparison that its page has and a terminal has no room for."""

WIDE = frozenset({"latency p95", "train memory"})
"""Columns that the files of the report have and a terminal has no room for."""


class _Better(BaseModel):
    objective: str
    value: float
    trial: int
    variant: str
    folder: str
    host: str


class _Study(BaseModel):
    better: _Better | None = None


def summary(record: RunRecord) -> Group:
    """Return the outcome: one sentence, and the table of the model, the default and the baselines."""
    content = make_content(record)
    parts: list[Text | Table] = [Text(content.headline, style="bold")]
    if content.systems:
        parts.append(_table(content.systems, without=WIDE))
    if content.budget:
        parts.append(_table(content.budget))
    if content.reason:
        parts.append(Text(f"Chosen because of {content.reason}."))
    parts.append(Text(content.outcome, style="dim"))
    return Group(*parts)


def closing(record: RunRecord, folder: str) -> list[str]:
    """Return the last lines of a search: where report and model are, and how the model is used.

    Args:
        record: with a final model.
        folder: the run folder as it is called from where the search ran.
    """
    python, command = usage(record, folder)
    better = read_typed(record.path / "study.json", _Study, _Study()).better
    elsewhere = []
    if better is not None:
        elsewhere.append(
            f"Better:  {better.objective} {better.value:.4f} on validation: trial {better.trial}, {better.variant}, of the search "
            f"in {better.folder} on {better.host}"
        )
    return [
        f"Report:  {folder}/report.html",
        f"Model:   {folder}/best",
        f"Predict: {command}",
        f"Python:  {python[0]}",
        f"         {python[1]}",
        *elsewhere,
    ]


def front(record: RunRecord) -> Group:
    """Return the front of a run as a table, or what came nearest to the budget where nothing fits."""
    content = make_content(record)
    if content.candidates is None:
        return nearest_misses(record)
    return Group(_table(content.candidates, without=WIDE), Text(content.candidates.note, style="dim"))


def front_rows(record: RunRecord) -> list[dict[str, Any]]:
    """Return the points of the front for programs, the best first, and the chosen model where it is not among them."""
    plan, selection = plan_of(record), record.selection
    sign = 1 if plan.higher_is_better else -1
    remarks = front_remarks(record, plan)
    chosen = (selection.trial, selection.variant) if selection else None
    points = [c for c in selection.candidates if c.front or (c.trial, c.variant) == chosen] if selection else []
    return [
        {
            "trial": point.trial,
            "variant": point.variant,
            plan.objective: point.objective,
            "costs": point.costs,
            "remarks": remarks.get((point.trial, point.variant), []),
        }
        for point in sorted(points, key=lambda point: -sign * point.objective)
    ]


def front_limits(record: RunRecord) -> str:
    """Return options of ``autoft pick`` that points of the front keep whose files are there; empty where there is none."""
    rows = [row for row in front_rows(record) if "files deleted" not in row["remarks"]]
    sizes = [row["costs"]["model_size_bytes"] for row in rows if "model_size_bytes" in row["costs"]]
    if not sizes:
        return ""
    plan = plan_of(record)
    unit, bytes_each = ("MB", 1e6) if min(sizes) >= 1e6 else ("kB", 1e3)
    rounded = math.floor if plan.higher_is_better else math.ceil
    quality = rounded(100 * rows[-1][plan.objective]) / 100
    return f"--size {math.ceil(min(sizes) / bytes_each)}{unit}, or --quality {quality:g}"


def picked(record: RunRecord, selection: Selection, costs: Mapping[str, float]) -> Group:
    """Return what was picked, and what it costs as measured again."""
    config = record.trial(selection.trial).config
    figures = ", ".join(
        f"{title} {cost_text(column, costs.get(column))}"
        for title, column in (("size", "model_size_bytes"), ("latency p50", "latency_p50_ms"))
    )
    return Group(
        Text(
            f"Trial {selection.trial} ({config.model}, {config.pipeline}), {selection.variant}: {figures}", style="bold"
        ),
        Text(f"Chosen because of {selection.reason}."),
    )


def nearest_misses(record: RunRecord) -> Group:
    """Return what came nearest to the budget, where nothing fits."""
    content = make_content(record)
    parts: list[Text | Table] = [Text(content.headline, style="bold")]
    if content.misses:
        parts += [Text(f"{content.misses.title}:"), _table(content.misses)]
    parts.append(Text(content.outcome, style="dim"))
    return Group(*parts)


def compared(comparison: Comparison) -> Group:
    """Return several runs side by side: what may be compared, what was chosen, and what was set differently."""
    parts: list[Text | Table] = [Text(comparison.notes[0], style="bold")]
    if comparison.chosen:
        parts += [Text(), _table(comparison.chosen, without=NARROW)]
    if comparison.notes[1:]:
        parts += [Text(), *(Text(f"- {note}") for note in comparison.notes[1:])]
    if comparison.settings:
        parts += [Text(), Text(f"{comparison.settings.title}:", style="bold"), _table(comparison.settings)]
    return Group(*parts)


def _table(view: TableView, without: frozenset[str] = frozenset()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    shown = [place for place, column in enumerate(view.columns) if column not in without]
    for place in shown:
        table.add_column(view.columns[place], justify="left" if place in view.left else "right", overflow="fold")
    for row in view.rows:
        table.add_row(*(Text(row[place]) for place in shown))
    return table
