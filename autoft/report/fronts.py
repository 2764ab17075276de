"""The plots of what was chosen: quality against each cost, and the steps from the trained model to the shipped one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from autoft.plans.plan import Plan
from autoft.report.chosen import Step, steps
from autoft.report.drawing import (
    COLOURS,
    FAINT,
    INK,
    SYMBOLS,
    Figure,
    cost_axis,
    frame,
    front_points,
    key,
    limit_line,
    plain,
    room,
    rounded,
    scatter,
)
from autoft.report.trials import KINDS
from autoft.report.views import column_title, cost_text, counted, figure_text, quality_title, short_model
from autoft.rundir import Candidate, RunRecord, TrialResult

__all__ = ["trade_off", "waterfall"]

HEADINGS = {"model_size_bytes": "size", "latency_p50_ms": "latency"}
"""Short names of the costs that every report has."""

SHOWN_COSTS = ("model_size_bytes", "latency_p50_ms", "latency_p95_ms", "inference_memory_bytes")
"""What a hover says of a candidate."""


def trade_off(record: RunRecord, plan: Plan, offered: Sequence[Candidate], column: str, name: str) -> Figure | None:
    """Draw every candidate's quality against a cost, with the front and the limits; None where none has that cost.

    Args:
        record: with the trials of the candidates.
        plan: with objective and limits.
        offered: candidates, those that do not fit too.
        column: of the cost.
        name: of the plot.
    """
    points = [c for c in offered if 0 < c.costs.get(column, 0) < math.inf and math.isfinite(c.objective)]
    if not points:
        return None
    trials = {trial.number: trial for trial in record.trials}
    chosen = (record.selection.trial, record.selection.variant) if record.selection else None
    limits = [limit for limit in plan.budget if limit.column == column]
    axis = cost_axis(column, [c.costs[column] for c in points] + [limit.limit for limit in limits])
    drawn = [limit_line(limit.limit, limit.given, axis["range"]) for limit in limits]
    layout = frame(
        420,
        xaxis=axis,
        yaxis={"title": quality_title(plan), **room([c.objective for c in points])},
        shapes=[shape for shapes, _ in drawn for shape in shapes],
        annotations=[note for _, notes in drawn for note in notes],
    )
    caption = (
        f"Every variant of every trial, as trained and compressed: validation {plan.objective} against {column_title(column)}. "
        "The line is the front: nothing further left is better."
    )
    if limits:
        caption += " The dashed line is the limit; what is in the shade costs too much."
    data = [
        *_front_line(points, plan, column),
        *_candidates(points, trials, plan, column, chosen),
    ]
    return Figure(name, f"Quality against {HEADINGS.get(column, column_title(column))}", caption, data, layout)


def _front_line(points: Sequence[Candidate], plan: Plan, column: str) -> list[dict[str, Any]]:
    fitting = ((c.costs[column], c.objective) for c in points if not c.violations)
    corners = front_points(fitting, plan.higher_is_better)
    line = {"color": INK, "width": 1.2, "shape": "hv"}
    front = scatter(corners, "front", mode="lines", line=line, opacity=0.6, hoverinfo="skip")
    return [front] if len(corners) > 1 else []


def _candidates(
    points: Sequence[Candidate],
    trials: Mapping[int, TrialResult],
    plan: Plan,
    column: str,
    chosen: tuple[int, str] | None,
) -> list[dict[str, Any]]:
    """Return a trace for each compression, a ring round the chosen model, and what explains the shapes.

    A colour is a compression; a shape is a model, where there are several, and a compression too where there is one.
    """
    variants = [v.name for v in plan.every_variant if any(c.variant == v.name for c in points)]
    variants += sorted({c.variant for c in points} - set(variants))
    models = [m.name for m in plan.models if any(trials[c.trial].config.model == m.name for c in points)]
    shapes = {model: SYMBOLS[place % len(SYMBOLS)] for place, model in enumerate(models)}
    data = []
    for place, variant in enumerate(variants):
        own = sorted((c for c in points if c.variant == variant), key=lambda c: (bool(c.violations), c.trial))
        one_shape, colour = SYMBOLS[place % len(SYMBOLS)], COLOURS[place % len(COLOURS)]
        base = [shapes.get(trials[c.trial].config.model, "circle") if len(models) > 1 else one_shape for c in own]
        marker = {
            "color": colour,
            "size": 9,
            "symbol": [mark + ("-open" if c.violations else "") for mark, c in zip(base, own, strict=True)],
            "line": {"width": [1.8 if c.violations else 1 for c in own], "color": colour},
        }
        texts = [_candidate_text(c, trials[c.trial], plan, c_is_chosen=(c.trial, c.variant) == chosen) for c in own]
        where = [(c.costs[column], c.objective) for c in own]
        looks = {"marker": marker, "opacity": 0.85, "hovertext": texts, "hoverinfo": "text"}
        data.append(scatter(where, variant, mode="markers", **looks))
    for c in points:
        if (c.trial, c.variant) == chosen:
            ring = {"symbol": "circle-open", "size": 20, "color": INK, "line": {"width": 2, "color": INK}}
            where = [(c.costs[column], c.objective)]
            data.append(scatter(where, "chosen", mode="markers", marker=ring, hoverinfo="skip"))
    if len(models) > 1:
        data += [key(short_model(model), {"symbol": shapes[model], "color": FAINT}) for model in models]
    if any(c.violations for c in points):
        data.append(key("over the budget", {"symbol": "circle-open", "color": FAINT, "line": {"width": 1.8}}))
    return data


def _candidate_text(candidate: Candidate, trial: TrialResult, plan: Plan, *, c_is_chosen: bool) -> str:
    config = trial.config
    repeats = candidate.folds if plan.folds > 1 else candidate.seeds
    mean = f", mean of {counted(len(repeats), 'fold' if plan.folds > 1 else 'seed')}" if len(repeats) > 1 else ""
    lines = [
        f"<b>{plain(candidate.variant)}</b>, trial {candidate.trial} ({KINDS[config.kind]})",
        f"{plain(short_model(config.model))}, {plain(config.pipeline)}",
        f"validation {plain(plan.objective)} {figure_text(candidate.objective)}{mean}",
        *(
            f"{column_title(column)} {cost_text(column, candidate.costs[column])}"
            for column in SHOWN_COSTS
            if column in candidate.costs
        ),
    ]
    if candidate.violations:
        over = ", ".join(
            f"{plain(limit)} {share:.1%} over" if math.isfinite(share) else f"{plain(limit)} was not measured"
            for limit, share in candidate.violations.items()
        )
        lines.append(f"does not fit: {over}")
    elif plan.budget:
        lines.append("fits the budget")
    if c_is_chosen:
        lines.append("<b>chosen</b>")
    elif candidate.front:
        lines.append("on the front")
    elif plan.folds > 1 and len(candidate.folds) < plan.folds:
        lines.append("not validated on all folds")
    elif not candidate.violations:
        lines.append("another one is at least as good, as small and as fast")
    return "<br>".join(lines)


def waterfall(record: RunRecord, plan: Plan) -> Figure | None:
    """Draw quality, size and latency of the chosen model after each step of its compression; None where that is not known."""
    known = steps(record, plan)
    if not known:
        return None
    names = [plain(f"{place}. {step.name}" if place else step.name) for place, step in enumerate(known)]
    colours = [FAINT] * (len(known) - 1) + [COLOURS[0]]
    rows = _step_rows(known, plan)
    gap, count = 0.09, len(rows)
    share = (1 - gap * (count - 1)) / count
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {}
    for place, (title, values, texts) in enumerate(rows):
        ending = "" if place == 0 else str(place + 1)
        trace: dict[str, Any] = {"x": names, "y": [rounded(value) for value in values]}
        trace |= {"xaxis": "x", "yaxis": f"y{ending}", "showlegend": False}
        trace |= {"text": texts, "textfont": {"color": INK}, "cliponaxis": False, "hoverinfo": "text"}
        trace["hovertext"] = [f"{name}<br>{plain(title)} {text}" for name, text in zip(names, texts, strict=True)]
        looks, ends = _quality_line(values, colours) if place == 0 else _cost_bars(values, colours)
        top = 1 - place * (share + gap)
        data.append(trace | looks)
        layout[f"yaxis{ending}"] = {
            "domain": [round(top - share, 4), round(top, 4)],
            "title": title,
            "showticklabels": False,
            "showgrid": False,
            "range": ends,
        }
    layout["xaxis"] = {"anchor": "y" if count == 1 else f"y{count}", "type": "category", "showgrid": False}
    caption = "What the trained model was after each step of its compression, on validation rows."
    test = record.final.test.get("best", {}).get(plan.objective) if record.final else None
    if test is not None:
        caption += f" The shipped files then scored {figure_text(test.value)} on the test rows."
    title = "From the trained model to the shipped one"
    return Figure("waterfall", title, caption, data, frame(150 + 130 * count, showlegend=False, **layout), wide=True)


def _step_rows(known: Sequence[Step], plan: Plan) -> list[tuple[str, list[float], list[str]]]:
    """Return what is drawn of each step: title, figures and figures as texts, quality first."""
    quality = [step.validation[plan.objective] for step in known]
    rows = [(quality_title(plan), quality, [figure_text(value) for value in quality])]
    for column in HEADINGS:
        if all(column in step.costs for step in known):
            costs = [step.costs[column] for step in known]
            rows.append((column_title(column), costs, [cost_text(column, cost) for cost in costs]))
    return rows


def _quality_line(values: Sequence[float], colours: Sequence[str]) -> tuple[dict[str, Any], list[float]]:
    """Return how quality is drawn, as a line with room for the texts above it, and the ends of its axis."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    space = (high - low) or abs(high) * 0.02 or 1.0
    looks = {"type": "scatter", "mode": "lines+markers+text", "textposition": "top center"}
    line = {"line": {"color": FAINT, "width": 2}, "marker": {"color": colours, "size": 12}}
    return looks | line, [low - 0.5 * space, high + 0.9 * space]


def _cost_bars(values: Sequence[float], colours: Sequence[str]) -> tuple[dict[str, Any], list[float]]:
    """Return how a cost is drawn, as bars from 0, and the ends of its axis."""
    looks = {"type": "bar", "width": 0.45, "marker": {"color": colours}, "textposition": "outside"}
    return looks, [0, max(values) * 1.25]
