"""What a search prints when it ends."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from autoft.report.content import TableView, make_content
from autoft.rundir import RunRecord

__all__ = ["nearest_misses", "summary"]


def summary(record: RunRecord) -> Group:
    """Return the outcome: one sentence, and the table of the model, the default and the baselines."""
    content = make_content(record)
    parts: list[Text | Table] = [Text(content.headline, style="bold")]
    if content.systems:
        parts.append(_table(content.systems))
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


def _table(view: TableView) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for place, column in enumerate(view.columns):
        table.add_column(column, justify="left" if place in view.left else "right", overflow="fold")
    for row in view.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
