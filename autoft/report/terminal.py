"""What a search prints when it ends."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from autoft.report.content import TableView, make_content
from autoft.rundir import RunRecord

__all__ = ["nearest_misses", "summary"]

WIDE = frozenset({"latency p95", "train memory"})
"""Columns that the files of the report have and a terminal has no room for."""


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


def nearest_misses(record: RunRecord) -> Group:
    """Return what came nearest to the budget, where nothing fits."""
    content = make_content(record)
    parts: list[Text | Table] = [Text(content.headline, style="bold")]
    if content.misses:
        parts.append(_table(content.misses))
    parts.append(Text(content.outcome, style="dim"))
    return Group(*parts)


def _table(view: TableView, without: frozenset[str] = frozenset()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    shown = [place for place, column in enumerate(view.columns) if column not in without]
    for place in shown:
        table.add_column(view.columns[place], justify="left" if place in view.left else "right", overflow="fold")
    for row in view.rows:
        table.add_row(*(Text(row[place]) for place in shown))
    return table
