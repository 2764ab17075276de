"""What the plots of a report are made of, as Plotly's JSON.

They are plain values, so that rendering needs no Plotly: the page draws them. Colours are names of the page's own CSS
variables, as ``$series-1``, which its script replaces, so that plots follow the light and the dark style. Texts of the data are escaped:
Plotly would read tags in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoft.report.views import column_title, cost_text

__all__ = [
    "COLOURS",
    "FAINT",
    "INK",
    "LINE",
    "SYMBOLS",
    "Figure",
    "cost_axis",
    "frame",
    "front_points",
    "key",
    "limit_line",
    "plain",
    "room",
    "rounded",
    "scatter",
]

INK, FAINT, LINE, SHADE = "$ink", "$faint", "$line", "$shade"
COLOURS = tuple(f"$series-{place}" for place in range(1, 7))
"""Colours that people with the usual kinds of colour blindness can tell apart; shapes differ, too."""

SYMBOLS = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "pentagon",
    "cross",
    "star",
    "triangle-down",
    "hexagon",
    "bowtie",
)


@dataclass(frozen=True)
class Figure:
    """A plot: its place in the page, heading, what it shows in words, and what Plotly draws."""

    name: str
    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    wide: bool = field(default=False, kw_only=True)

    @property
    def height(self) -> int:
        """In pixels, on the screen."""
        return int(self.layout["height"])


def plain(text: object) -> str:
    """Return a text that Plotly shows as it is: it reads a few tags and entities of HTML."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def frame(height: int, **layout: Any) -> dict[str, Any]:
    """Return what all plots have in common; the arguments are added to it, ``xaxis`` and ``yaxis`` to theirs."""
    axis: dict[str, Any] = {
        "gridcolor": LINE,
        "linecolor": LINE,
        "zeroline": False,
        "automargin": True,
        # Labels that turn where they have no room change the room that they have.
        "tickangle": 0,
        "tickfont": {"color": FAINT, "size": 12},
        "title": {"font": {"color": INK, "size": 13}, "standoff": 8},
    }
    found: dict[str, Any] = {
        "height": height,
        "autosize": True,
        # Wide enough for usual labels: a margin that follows them changes the legend's lines, these the height, and that the labels.
        "margin": {"l": 72, "r": 16, "t": 12, "b": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK, "size": 13},
        "hoverlabel": {"align": "left", "bgcolor": "$panel", "bordercolor": LINE, "font": {"color": INK, "size": 13}},
        "legend": {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top", "font": {"size": 12}},
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": FAINT, "activecolor": INK},
        "showlegend": True,
    }
    for name in dict.fromkeys(("xaxis", "yaxis", *(key for key in layout if key[1:].startswith("axis")))):
        given = dict(layout.pop(name, {}))
        title = given.pop("title", None)
        found[name] = {**axis, **given}
        if title is not None:
            found[name]["title"] = {**axis["title"], "text": plain(title)}
    return {**found, **layout}


def limit_line(limit: float, given: str, ends: Sequence[float]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a limit on a logarithmic axis as shapes and annotations: the line, and what is beyond it shaded.

    Args:
        limit: in the column's unit.
        given: as the recipe says it.
        ends: logarithms of what the axis begins and ends with.
    """
    right = math.log10(limit) > ends[0] + 0.6 * (ends[1] - ends[0])
    line = {"color": "$limit", "width": 2, "dash": "dash"}
    shapes = [
        {"type": "rect", "xref": "x", "yref": "paper", "x0": limit, "x1": limit * 1e6, "y0": 0, "y1": 1}
        | {"fillcolor": SHADE, "line": {"width": 0}, "layer": "below"},
        {"type": "line", "xref": "x", "yref": "paper", "x0": limit, "x1": limit, "y0": 0, "y1": 1, "line": line},
    ]
    note = {
        "xref": "x",
        "yref": "paper",
        "x": math.log10(limit),
        "y": 1,
        "text": plain(f"limit {given}"),
        "showarrow": False,
        "xanchor": "right" if right else "left",
        "yanchor": "top",
        "xshift": -4 if right else 4,
        "font": {"color": "$limit", "size": 12},
    }
    return shapes, [note]


def cost_axis(column: str, values: Sequence[float]) -> dict[str, Any]:
    """Return a logarithmic axis that holds these costs, with ticks as people write them."""
    low, high = min(values) / 1.3, max(values) * 1.3
    marks = (1, 2, 5) if high / low < 120 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [tick for decade in decades for mark in marks if low <= (tick := mark * 10.0**decade) <= high]
    if len(ticks) < 2:
        # All cost about the same: no two round figures are between them.
        ticks = [float(f"{low * 1.1:.2g}"), float(f"{high / 1.1:.2g}")]
    return {
        "type": "log",
        "range": [round(math.log10(low), 4), round(math.log10(high), 4)],
        "tickvals": ticks,
        "ticktext": [f"{tick:g} ms" if column.endswith("_ms") else cost_text(column, tick) for tick in ticks],
        "title": column_title(column),
    }


def front_points(points: Iterable[tuple[float, float]], higher_is_better: bool) -> list[tuple[float, float]]:
    """Return the corners of a front, from the cheapest on: costs and the best quality at that cost or less."""
    sign = 1 if higher_is_better else -1
    corners: list[tuple[float, float]] = []
    dearest = 0.0
    for cost, quality in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        dearest = cost
        if not corners or sign * quality > sign * corners[-1][1]:
            corners.append((cost, quality))
    if corners and dearest > corners[-1][0]:
        corners.append((dearest, corners[-1][1]))
    return corners


def scatter(points: Sequence[tuple[Any, Any]], name: str, **changes: Any) -> dict[str, Any]:
    """Return a trace of points, as Plotly reads it: None is a gap; ``changes`` are what else it has."""
    return {
        "type": "scatter",
        "x": [rounded(x) for x, _ in points],
        "y": [rounded(y) for _, y in points],
        "name": plain(name),
        **changes,
    }


def key(name: str, marker: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of the legend that no point stands for."""
    return scatter([(None, None)], name, mode="markers", marker={"size": 9, **marker}, hoverinfo="skip")


def room(values: Sequence[float]) -> dict[str, Any]:
    """Return the range of an axis where all values are the same: Plotly would show a whole unit on both sides."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if low < high or not values:
        return {}
    # A score of 1e-38 is none, and an axis of such numbers says nothing.
    room = max(abs(low) * 0.05, 1e-4) if abs(low) > 1e-6 else 0.05
    return {"range": [rounded(low - room), rounded(high + room)]}


def rounded(value: float | None) -> float | None:
    """Return a number as JSON knows it, to six digits: more cannot be seen."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}") if isinstance(value, float) else value
