"""The plots of a report as SVG text, drawn with Matplotlib.

Colours are CSS variables of the page, so that the plots follow its light and dark style; text stays text.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoft.plan import Plan, plan_of
from autoft.report.content import STATES, column_title, cost_text, short_model
from autoft.rundir import Candidate, RunRecord, TrialResult
from autoft.selection import candidates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Figure", "figures"]

INK, FAINT, GRID = "#010101", "#020202", "#030303"
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006")
"""Stand-ins that are replaced by CSS variables when the SVG is written."""

MARKERS = ("o", "s", "^", "D", "v", "P")
MARKED = 30
"""Points of a chart's line that are still marked one by one."""
SHOWN_PARAMETERS = 12


@dataclass(frozen=True)
class Figure:
    """A plot: its place in the page, heading, what it shows in words, and the SVG."""

    name: str
    title: str
    caption: str
    svg: str


def figures(record: RunRecord) -> dict[str, Figure]:
    """Return the plots that the record has data for, by name: size, latency, history, importance, curves.

    The charts of the task's own section are ``chart-0``, ``chart-1`` ... by their place in it.
    """
    plan = plan_of(record)
    offered = record.selection.candidates if record.selection else candidates(plan, record.trials)
    drawn: list[Figure | None] = [
        _trade_off(record, plan, offered, "model_size_bytes", "size"),
        _trade_off(record, plan, offered, "latency_p50_ms", "latency"),
        _history(record, plan),
        _importance(record, plan),
        _curves(record, plan),
    ]
    details = record.final.details if record.final else []
    drawn += [_chart(place, item) for place, item in enumerate(details) if item["kind"] == "chart"]
    return {figure.name: figure for figure in drawn if figure is not None}


def _trade_off(record: RunRecord, plan: Plan, offered: Sequence[Candidate], column: str, name: str) -> Figure | None:
    points = [c for c in offered if column in c.costs]
    if not points:
        return None
    variants = [v.name for v in plan.every_variant if any(c.variant == v.name for c in points)]
    models = [m.name for m in plan.models if any(record.trial(c.trial).config.model == m.name for c in points)]
    limits = [limit for limit in plan.budget if limit.column == column]

    def draw(axes: Axes) -> None:
        feasible = [c for c in points if not c.violations]
        for place, variant in enumerate(variants):
            for mark, model in enumerate(models):
                own = [c for c in points if c.variant == variant and record.trial(c.trial).config.model == model]
                for fits in (True, False):
                    shown = [c for c in own if (not c.violations) == fits]
                    colour = SERIES[place % len(SERIES)]
                    axes.scatter(
                        [c.costs[column] for c in shown],
                        [c.objective for c in shown],
                        s=34,
                        marker=MARKERS[mark % len(MARKERS)],
                        facecolors=colour if fits else "none",
                        edgecolors=colour,
                        linewidths=1.2,
                        alpha=0.85,
                        zorder=3,
                    )
        steps = _front(feasible, column, plan)
        if len(steps) > 1:
            axes.step(*zip(*steps, strict=True), where="post", color=INK, linewidth=1, alpha=0.5, zorder=2)
        for limit in limits:
            axes.axvline(limit.limit, color=SERIES[5], linestyle="--", linewidth=1.4, zorder=2)
        if record.selection:
            chosen = next(
                c for c in offered if (c.trial, c.variant) == (record.selection.trial, record.selection.variant)
            )
            axes.scatter(
                [chosen.costs[column]],
                [chosen.objective],
                s=170,
                facecolors="none",
                edgecolors=INK,
                linewidths=1.6,
                zorder=4,
            )
        axes.set_xscale("log")
        _cost_axis(axes, column, [c.costs[column] for c in points] + [limit.limit for limit in limits])
        axes.set_ylabel(f"validation {plan.objective}")
        handles = [_handle("o", SERIES[i % len(SERIES)], v) for i, v in enumerate(variants)]
        if len(models) > 1:
            handles += [_handle(MARKERS[i % len(MARKERS)], FAINT, short_model(m)) for i, m in enumerate(models)]
        if any(c.violations for c in points):
            handles.append(_handle("o", FAINT, "over the budget", hollow=True))
        if record.selection:
            handles.append(_handle("o", INK, "chosen", hollow=True, size=10))
        if limits:
            handles.append(_line(SERIES[5], "budget", "--"))
        _legend(axes, handles)

    heading = "size" if name == "size" else "latency"
    caption = (
        f"Every compressed model of every trial: validation {plan.objective} against {column_title(column)}. The line is the "
        "front: nothing further left is better."
    )
    return Figure(name, f"Quality against {heading}", caption, _svg(draw, name, 5.6, 4.1))


def _front(points: Sequence[Candidate], column: str, plan: Plan) -> list[tuple[float, float]]:
    sign = 1 if plan.higher_is_better else -1
    steps: list[tuple[float, float]] = []
    for candidate in sorted(points, key=lambda c: (c.costs[column], -sign * c.objective)):
        if not steps or sign * candidate.objective > sign * steps[-1][1]:
            steps.append((candidate.costs[column], candidate.objective))
    if steps:
        steps.append((max(c.costs[column] for c in points), steps[-1][1]))
    return steps


def _history(record: RunRecord, plan: Plan) -> Figure | None:
    trials = [trial for trial in record.trials if not trial.config.derived]
    values = {trial.number: value for trial in trials if (value := _best_value(trial, plan)) is not None}
    if len(values) < 2:
        return None
    sign = 1 if plan.higher_is_better else -1

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        looks = {"complete": ("o", SERIES[0]), "pruned": ("x", SERIES[1]), "infeasible": ("s", SERIES[3])}
        handles = []
        for state, (marker, colour) in looks.items():
            shown = [trial for trial in trials if trial.state == state and trial.number in values]
            if shown:
                axes.scatter(
                    [trial.number for trial in shown],
                    [values[trial.number] for trial in shown],
                    marker=marker,
                    color=colour,
                    s=34,
                    linewidths=1.4,
                    zorder=3,
                )
                handles.append(_handle(marker, colour, STATES[state]))
        best, line = -math.inf, []
        for trial in trials:
            if trial.state == "complete" and trial.number in values:
                best = max(best, sign * values[trial.number])
            if best > -math.inf:
                line.append((trial.number, sign * best))
        if line:
            axes.step(*zip(*line, strict=True), where="post", color=INK, linewidth=1.2, zorder=2)
            handles.append(_line(INK, "best so far", "-"))
        default = next((trial for trial in trials if trial.number == 0), None)
        yardstick = next((v for v in default.variants if v.name == "none"), None) if default else None
        if yardstick and plan.objective in yardstick.validation:
            axes.axhline(yardstick.validation[plan.objective], color=SERIES[2], linestyle="--", linewidth=1.4, zorder=1)
            handles.append(_line(SERIES[2], "default, uncompressed", "--"))
        axes.set_xlabel("trial")
        axes.set_ylabel(f"validation {plan.objective}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes, handles)

    caption = "Each trial's best compressed model in the order of the search; stopped trials where they stopped."
    return Figure("history", "Search history against trial 0", caption, _svg(draw, "history", 5.6, 4.1))


def _best_value(trial: TrialResult, plan: Plan) -> float | None:
    sign = 1 if plan.higher_is_better else -1
    known = [v.validation[plan.objective] for v in trial.variants if plan.objective in v.validation]
    known += [trial.curve[-1].validation[plan.objective]] if not known and trial.curve else []
    finite = [value for value in known if math.isfinite(value)]
    return max(finite, key=lambda value: sign * value) if finite else None


def _importance(record: RunRecord, plan: Plan) -> Figure | None:
    if not record.importance:
        return None
    ranked = sorted(record.importance.items(), key=lambda item: item[1])[-SHOWN_PARAMETERS:]

    def draw(axes: Axes) -> None:
        axes.barh([name for name, _ in ranked], [share for _, share in ranked], color=SERIES[0], height=0.62, zorder=2)
        axes.set_xlabel("share of what explains good trials")
        axes.set_xlim(0, max(0.01, *(share for _, share in ranked)) * 1.05)
        axes.grid(visible=False, axis="y")

    caption = (
        "PED-ANOVA over the finished trials: which parameters the good ones have in common. With few trials, a hint."
    )
    height = max(1.6, 0.8 + 0.3 * len(ranked))
    return Figure("importance", "Importance of the parameters", caption, _svg(draw, "importance", 5.6, height))


def _curves(record: RunRecord, plan: Plan) -> Figure | None:
    trials = [trial for trial in record.trials if trial.curve and not trial.config.derived]
    if not trials:
        return None
    chosen = record.selection.trial if record.selection else None

    def draw(axes: Axes) -> None:
        handles = []
        for trial in sorted(trials, key=lambda t: (t.number == chosen, t.number == 0)):
            colour, width, alpha = FAINT, 1.0, 0.55
            if trial.number == 0:
                colour, width, alpha = SERIES[2], 2.0, 1.0
            if trial.number == chosen:
                colour, width, alpha = SERIES[0], 2.0, 1.0
            xs = [point.epoch for point in trial.curve]
            ys = [point.validation[plan.objective] for point in trial.curve]
            axes.plot(xs, ys, color=colour, linewidth=width, alpha=alpha, marker="o", markersize=3)
        if chosen is not None:
            handles.append(_line(SERIES[0], f"chosen (trial {chosen})" + (", the default" if chosen == 0 else ""), "-"))
        if chosen != 0 and any(trial.number == 0 for trial in trials):
            handles.append(_line(SERIES[2], "default (trial 0)", "-"))
        if any(trial.number not in {0, chosen} for trial in trials):
            handles.append(_line(FAINT, "other trials", "-"))
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"validation {plan.objective}")
        _legend(axes, handles)

    caption = "Validation while training, before compression; the best checkpoint of a trial is kept, not the last."
    return Figure("curves", "Curves of the trials", caption, _svg(draw, "curves", 5.6, 4.1))


def _chart(place: int, item: Mapping[str, Any]) -> Figure:
    def draw(axes: Axes) -> None:
        handles = []
        for number, series in enumerate(item["series"]):
            colour = SERIES[number % len(SERIES)]
            marker = "o" if len(series["x"]) <= MARKED else None
            axes.plot(series["x"], series["y"], color=colour, linewidth=2, marker=marker, markersize=3)
            handles.append(_line(colour, series["name"], "-"))
        if item["diagonal"]:
            both = [value for series in item["series"] for value in (*series["x"], *series["y"])] or [0.0, 1.0]
            ends = (min(0.0, *both), max(1.0, *both))
            axes.plot(ends, ends, color=FAINT, linewidth=1, linestyle="--")
        axes.set_xlabel(item["x_label"])
        axes.set_ylabel(item["y_label"])
        _legend(axes, handles if len(handles) > 1 else [])

    name = f"chart-{place}"
    return Figure(name, item["title"], item["caption"], _svg(draw, name, 5.6, 4.1))


def _cost_axis(axes: Axes, column: str, values: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = min(values) / 1.3, max(values) * 1.3
    axes.set_xlim(low, high)
    steps = (1, 2, 5) if high / low < 120 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [tick for decade in decades for step in steps if low <= (tick := step * 10.0**decade) <= high]
    if len(ticks) < 2:
        # All cost about the same: no two round figures are between them.
        ticks = [float(f"{low * 1.1:.2g}"), float(f"{high / 1.1:.2g}")]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(column, value)))
    axes.set_xlabel(column_title(column))


def _tick(column: str, value: float) -> str:
    return f"{value:g} ms" if column.endswith("_ms") else cost_text(column, value)


def _handle(marker: str, colour: str, label: str, *, hollow: bool = False, size: int = 6) -> Any:
    from matplotlib.lines import Line2D

    face = "none" if hollow else colour
    return Line2D(
        [], [], linestyle="none", marker=marker, color=colour, markerfacecolor=face, markersize=size, label=label
    )


def _line(colour: str, label: str, style: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=style, label=label)


def _legend(axes: Axes, handles: Sequence[Any]) -> None:
    if handles:
        axes.legend(
            handles=list(handles),
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
            ncols=3,
            frameon=False,
            fontsize=9,
            handletextpad=0.5,
            columnspacing=1.2,
        )


def _svg(draw: Callable[[Axes], None], name: str, width: float, height: float) -> str:
    """Return the plot as SVG text that is the same for the same data, with ids of its own."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "autoft",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": GRID,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
    }
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=(width, height))
        FigureCanvasSVG(canvas)
        draw(canvas.add_subplot())
        canvas.patch.set_alpha(0.0)
        for axes in canvas.axes:
            axes.patch.set_alpha(0.0)
        out = io.StringIO()
        canvas.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return _page_style(text[text.index("<svg") :], name)


def _page_style(svg: str, name: str) -> str:
    """Replace the stand-in colours by the page's variables, and make ids unique within the page."""
    colours = {INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--line)"}
    colours.update({colour: f"var(--series-{place})" for place, colour in enumerate(SERIES, start=1)})
    for colour, variable in colours.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    # The page sets the width; the drawing keeps its proportions.
    svg = re.sub(r'(<svg [^>]*?) ?width="[^"]+"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) ?height="[^"]+"', r"\1", svg, count=1)
    svg = re.sub(r"font: (\d+)px '?[^;\"]*", r"font-size: \1px; font-family: inherit", svg)
    return svg.replace("<svg ", '<svg role="img" ', 1)
