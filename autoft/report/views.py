"""What reports are made of before they become HTML, Markdown or lines of a terminal; figures as texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoft.paths import short_model
from autoft.plans.plan import Plan
from autoft.quantities import format_bytes, format_seconds
from autoft.rundir import Interval

__all__ = [
    "IntervalRow",
    "IntervalView",
    "Meter",
    "TableView",
    "column_title",
    "cost_text",
    "counted",
    "figure_text",
    "interval_text",
    "interval_view",
    "metric_title",
    "quality_title",
    "short_model",
]


LONG = 40
"""Characters from which on a cell is no name or figure, but a text."""


@dataclass(frozen=True)
class TableView:
    """A table of texts; ``left`` names the columns that hold words, and ``marked`` the row to be seen first.

    ``unprinted`` names the columns for which paper has no room.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: frozenset[int] = frozenset({0})
    marked: int | None = None
    note: str = ""
    unprinted: frozenset[int] = frozenset()

    @property
    def words(self) -> frozenset[int]:
        """The columns that hold texts: their cells are broken into lines, short ones too, so that long ones have the room."""
        return frozenset(place for place in self.left if any(len(row[place]) > LONG for row in self.rows))


@dataclass(frozen=True)
class IntervalRow:
    """A figure with its interval, and where both lie between the ends of a scale, in percent."""

    name: str
    value: str
    interval: str
    n: int
    at: float | None
    low: float | None
    high: float | None
    marked: bool = False
    outside: str = ""
    """``low`` or ``high`` where the figure lies beyond that end of the scale."""


@dataclass(frozen=True)
class IntervalView:
    """Figures with their intervals on one scale, from ``start`` to ``end``."""

    title: str
    heading: str
    rows: tuple[IntervalRow, ...]
    start: str
    end: str
    note: str = ""


@dataclass(frozen=True)
class Meter:
    """A cost of the chosen model beside that of the default and the limit; lengths in percent of the longest.

    ``met`` says whether the limit holds, None where there is none; ``better`` whether it is cheaper than the default, None
    where both cost about the same.
    """

    label: str
    value: str
    length: float
    default: str = ""
    default_length: float | None = None
    compared: str = ""
    better: bool | None = None
    limit: str = ""
    limit_at: float | None = None
    met: bool | None = None

    @property
    def spoken(self) -> str:
        """What the bars show, in words."""
        parts = [f"{self.label}: {self.value}"]
        parts += [f"default {self.default}"] if self.default else []
        parts += [f"limit {self.limit}, {'met' if self.met else 'not met'}"] if self.limit else []
        return "; ".join(parts)


def interval_view(
    title: str,
    heading: str,
    figures: Sequence[tuple[str, Interval]],
    *,
    marked: int | None = None,
    note: str = "",
    scaled: int | None = None,
) -> IntervalView | None:
    """Return figures on a scale that holds them and their intervals; None where none is defined.

    Args:
        title: of the view.
        heading: over the names.
        figures: names and intervals.
        marked: the one to be seen first.
        note: below.
        scaled: how many of the figures, from the first on, make the scale; others may lie outside. All, if None.
    """
    ends = [value for _, one in figures[:scaled] for value in (one.value, one.low, one.high) if math.isfinite(value)]
    if not ends:
        return None
    start, end = min(ends), max(ends)
    room = (end - start) * 0.06 or max(abs(end), 1e-9) * 0.05
    # A share is never below 0 or above 1, so the scale does not promise it either.
    start = max(0.0, start - room) if start >= 0 else start - room
    end = min(1.0, end + room) if end <= 1 else end + room

    def place(value: float) -> float | None:
        return round(100 * (min(end, max(start, value)) - start) / (end - start), 2) if math.isfinite(value) else None

    rows = tuple(
        IntervalRow(
            name,
            figure_text(one.value) if math.isfinite(one.value) else "not defined",
            _ends_text(one) or "–",
            one.n,
            place(one.value),
            place(one.low),
            place(one.high),
            number == marked,
            "low" if one.value < start else "high" if one.value > end else "",
        )
        for number, (name, one) in enumerate(figures)
    )
    return IntervalView(title, heading, rows, _end(start), _end(end), note)


def _end(value: float) -> str:
    """Return the end of a scale, with three digits or, where it has more before the point, all of these."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def cost_text(column: str, value: float | None) -> str:
    """Return a cost with its unit, read from the column's ending."""
    if value is None or not math.isfinite(value):
        return "–"
    if column.endswith("_bytes"):
        return format_bytes(value)
    if column.endswith("_ms"):
        return f"{value:.2f} ms" if value < 100 else f"{value:.0f} ms"
    if column.endswith("_s") or column.endswith("_seconds"):
        return format_seconds(value)
    if column.endswith("_j"):
        if value < 0.1:
            return f"{value * 1e3:.3g} mJ"
        return f"{value:.3g} J" if value < 100 else f"{value:.0f} J"
    return f"{value:.4g}"


def column_title(column: str) -> str:
    """Return a cost's name as a heading: ``latency p50``."""
    for ending in ("_bytes", "_ms", "_seconds", "_j"):
        column = column.removesuffix(ending)
    return column.replace("_", " ")


def metric_title(plan: Plan, metric: str) -> str:
    """Return a quality metric as a heading, which says where less of it is better: ``perplexity (lower is better)``."""
    higher = plan.metrics.get(metric, {}).get("higher_is_better", True)
    return metric if higher else f"{metric} (lower is better)"


def quality_title(plan: Plan, split: str = "validation") -> str:
    """Return the objective on a split as a heading: ``validation accuracy``."""
    return f"{split} {metric_title(plan, plan.objective)}"


def figure_text(value: float | None, digits: int = 4) -> str:
    """Return a quality figure, or a dash where it is not defined; one of 10 and more has two digits less after its point."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits if abs(value) < 10 else digits - 2}f}"


def interval_text(interval: Interval | None) -> str:
    """Return a figure with its interval."""
    if interval is None:
        return "–"
    if not math.isfinite(interval.value):
        return "not defined"
    ends = _ends_text(interval)
    return figure_text(interval.value) + (f" ({ends})" if ends else "")


def _ends_text(interval: Interval) -> str:
    """Return an interval's ends, or nothing where they are not defined."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return ""
    return f"{figure_text(interval.low, 3)}–{figure_text(interval.high, 3)}"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: ``1 trial``, ``2 trials``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
