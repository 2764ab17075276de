"""The plots of a report, as Plotly's JSON.

They are plain values, so that rendering needs no Plotly: the page draws them. Colours are names of the page's own CSS
variables, as ``$series-1``, which its script replaces, so that plots follow the light and the dark style. Texts of the data are escaped:
Plotly would read tags in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoft.plans.budgets import violations
from autoft.plans.plan import Plan, plan_of
from autoft.report.content import KINDS, STATES, steps, varied
from autoft.report.decisions import forecasts, rungs
from autoft.report.views import column_title, cost_text, counted, figure_text, quality_title, short_model
from autoft.rundir import Candidate, RunRecord, TrialResult
from autoft.selection import best_variant, candidates

__all__ = ["COLOURS", "SYMBOLS", "Figure", "cost_axis", "figures", "frame", "front_points", "limit_line", "plain"]

INK, FAINT, LINE, SHADE = "$ink", "$faint", "$line", "$shade"
COLOURS = tuple(f"$series-{place}" for place in range(1, 7))
"""Colours that people with the usual kinds of colour blindness can tell apart; shapes differ, too."""

SCALE = tuple(f"$scale-{place}" for place in range(1, 6))
"""From the worst to the best."""

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
SHOWN_PARAMETERS = 12
AXES = 9
"""Parameters that parallel coordinates have room for."""

ABSENT = -0.12
"""Where the line of a trial goes that has no such parameter."""

MARKED = 30
"""Points of a chart's line that are still marked one by one."""

REASON = 160
"""Characters of a reason that a hover shows."""


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


def figures(record: RunRecord) -> dict[str, Figure]:
    """Return the plots that the record has data for, by name.

    The charts of the task's own section are ``chart-0``, ``chart-1`` ... by their place in it; plots of further costs that
    the budget limits are ``front-`` and the column.
    """
    plan = plan_of(record)
    offered = record.selection.candidates if record.selection else candidates(plan, record.trials)
    further = {limit.column for limit in plan.budget} - {"model_size_bytes", "latency_p50_ms"}
    drawn: list[Figure | None] = [
        _trade_off(record, plan, offered, "model_size_bytes", "size"),
        _trade_off(record, plan, offered, "latency_p50_ms", "latency"),
        *(_trade_off(record, plan, offered, column, f"front-{column}") for column in sorted(further)),
        _waterfall(record, plan),
        _history(record, plan),
        _curves(record, plan),
        _rungs(record, plan),
        _importance(record, plan),
        _parallel(record, plan),
        *_forecasts(record),
    ]
    details = record.final.details if record.final else []
    drawn += [_chart(place, item) for place, item in enumerate(details) if item["kind"] == "chart"]
    return {figure.name: figure for figure in drawn if figure is not None}


def plain(text: object) -> str:
    """Return a text that Plotly shows as it is: it reads a few tags and entities of HTML."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def frame(height: int, **layout: Any) -> dict[str, Any]:
    """Return what all plots have in common; the arguments are added to it, ``xaxis`` and ``yaxis`` to theirs."""
    axis = {
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
            found[name]["title"] = {**axis["title"], "text": plain(title)}  # type: ignore[dict-item]
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


def _trade_off(record: RunRecord, plan: Plan, offered: Sequence[Candidate], column: str, name: str) -> Figure | None:
    points = [c for c in offered if 0 < c.costs.get(column, 0) < math.inf and math.isfinite(c.objective)]
    if not points:
        return None
    trials = {trial.number: trial for trial in record.trials}
    variants = [v.name for v in plan.every_variant if any(c.variant == v.name for c in points)]
    variants += sorted({c.variant for c in points} - set(variants))
    models = [m.name for m in plan.models if any(trials[c.trial].config.model == m.name for c in points)]
    limits = [limit for limit in plan.budget if limit.column == column]
    marks = {model: SYMBOLS[place % len(SYMBOLS)] for place, model in enumerate(models)}
    chosen = (record.selection.trial, record.selection.variant) if record.selection else None
    data: list[dict[str, Any]] = []
    corners = front_points(((c.costs[column], c.objective) for c in points if not c.violations), plan.higher_is_better)
    if len(corners) > 1:
        line = {"color": INK, "width": 1.2, "shape": "hv"}
        data.append(_scatter(corners, "front", mode="lines", line=line, opacity=0.6, hoverinfo="skip"))
    for place, variant in enumerate(variants):
        own = sorted((c for c in points if c.variant == variant), key=lambda c: (bool(c.violations), c.trial))
        base = [
            marks.get(trials[c.trial].config.model, "circle") if len(models) > 1 else SYMBOLS[place % len(SYMBOLS)]
            for c in own
        ]
        marker = {
            "color": COLOURS[place % len(COLOURS)],
            "size": 9,
            "symbol": [mark + ("-open" if c.violations else "") for mark, c in zip(base, own, strict=True)],
            "line": {"width": [1.8 if c.violations else 1 for c in own], "color": COLOURS[place % len(COLOURS)]},
        }
        data.append(
            _scatter(
                [(c.costs[column], c.objective) for c in own],
                variant,
                mode="markers",
                marker=marker,
                opacity=0.85,
                hovertext=[
                    _candidate_text(c, trials[c.trial], plan, c_is_chosen=(c.trial, c.variant) == chosen) for c in own
                ],
                hoverinfo="text",
            )
        )
    ring = next((c for c in points if (c.trial, c.variant) == chosen), None)
    if ring is not None:
        marker = {"symbol": "circle-open", "size": 20, "color": INK, "line": {"width": 2, "color": INK}}
        data.append(
            _scatter([(ring.costs[column], ring.objective)], "chosen", mode="markers", marker=marker, hoverinfo="skip")
        )
    if len(models) > 1:
        data += [_key(short_model(model), {"symbol": marks[model], "color": FAINT}) for model in models]
    if any(c.violations for c in points):
        data.append(_key("over the budget", {"symbol": "circle-open", "color": FAINT, "line": {"width": 1.8}}))
    axis = cost_axis(column, [c.costs[column] for c in points] + [limit.limit for limit in limits])
    shapes, notes = [], []
    for limit in limits:
        drawn = limit_line(limit.limit, limit.given, axis["range"])
        shapes += drawn[0]
        notes += drawn[1]
    quality = {"title": quality_title(plan), **_room([c.objective for c in points])}
    layout = frame(420, xaxis=axis, yaxis=quality, shapes=shapes, annotations=notes)
    heading = {"size": "size", "latency": "latency"}.get(name, column_title(column))
    caption = (
        f"Every variant of every trial, as trained and compressed: validation {plan.objective} against {column_title(column)}. "
        "The line is the front: nothing further left is better."
    )
    if limits:
        caption += " The dashed line is the limit; what is in the shade costs too much."
    return Figure(name, f"Quality against {heading}", caption, data, layout)


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
            for column in ("model_size_bytes", "latency_p50_ms", "latency_p95_ms", "inference_memory_bytes")
            if column in candidate.costs
        ),
    ]
    if candidate.violations:
        over = ", ".join(f"{plain(key)} {share:.1%} over" for key, share in candidate.violations.items())
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


def _waterfall(record: RunRecord, plan: Plan) -> Figure | None:
    known = steps(record, plan)
    if not known:
        return None
    names = [plain(f"{place}. {step.name}" if place else step.name) for place, step in enumerate(known)]
    columns = [c for c in ("model_size_bytes", "latency_p50_ms") if all(c in step.costs for step in known)]
    final = record.final
    rows: list[tuple[str, list[float], list[str]]] = [
        (
            quality_title(plan),
            [step.validation[plan.objective] for step in known],
            [figure_text(step.validation[plan.objective]) for step in known],
        )
    ]
    rows += [
        (
            column_title(column),
            [step.costs[column] for step in known],
            [cost_text(column, step.costs[column]) for step in known],
        )
        for column in columns
    ]
    test = final.test.get("best", {}).get(plan.objective) if final else None
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {}
    gap, count = 0.09, len(rows)
    share = (1 - gap * (count - 1)) / count
    colours = [FAINT] * (len(known) - 1) + [COLOURS[0]]
    for place, (title, values, texts) in enumerate(rows):
        top = 1 - place * (share + gap)
        ending = "" if place == 0 else str(place + 1)
        trace: dict[str, Any] = {
            "x": names,
            "y": [_round(value) for value in values],
            "xaxis": "x",
            "yaxis": f"y{ending}",
            "showlegend": False,
        }
        trace |= {"text": texts, "textfont": {"color": INK}, "hoverinfo": "text"}
        trace["hovertext"] = [f"{name}<br>{plain(title)} {text}" for name, text in zip(names, texts, strict=True)]
        axis: dict[str, Any] = {
            "domain": [round(top - share, 4), round(top, 4)],
            "title": title,
            "showticklabels": False,
            "showgrid": False,
        }
        if place == 0:
            trace |= {"type": "scatter", "mode": "lines+markers+text", "textposition": "top center"}
            trace |= {
                "line": {"color": FAINT, "width": 2},
                "marker": {"color": colours, "size": 12},
                "cliponaxis": False,
            }
            finite = [value for value in values if math.isfinite(value)] or [0.0]
            low, high = min(finite), max(finite)
            room = (high - low) or abs(high) * 0.02 or 1.0
            axis["range"] = [low - 0.5 * room, high + 0.9 * room]
        else:
            trace |= {
                "type": "bar",
                "width": 0.45,
                "marker": {"color": colours},
                "textposition": "outside",
                "cliponaxis": False,
            }
            axis["range"] = [0, max(values) * 1.25]
        data.append(trace)
        layout[f"yaxis{ending}"] = axis
    layout["xaxis"] = {
        "anchor": "y" if count == 1 else f"y{count}",
        "type": "category",
        "showgrid": False,
    }
    caption = "What the trained model was after each step of its compression, on validation rows."
    if test is not None:
        caption += f" The shipped files then scored {figure_text(test.value)} on the test rows."
    return Figure(
        "waterfall",
        "From the trained model to the shipped one",
        caption,
        data,
        frame(150 + 130 * count, showlegend=False, **layout),
        wide=True,
    )


def _history(record: RunRecord, plan: Plan) -> Figure | None:
    trials = [trial for trial in record.trials if not trial.config.derived]
    values = {trial.number: value for trial in trials if (value := _best_value(trial, plan)) is not None}
    if not trials or not values:
        return None
    sign = 1 if plan.higher_is_better else -1
    marks = {"complete": "circle", "pruned": "x-thin", "infeasible": "square-open", "failed": "triangle-down-open"}
    data: list[dict[str, Any]] = []
    best, line = -math.inf, []
    for trial in trials:
        one = best_variant(plan, trial)
        if trial.state == "complete" and one is not None and not violations(one.costs, plan.budget):
            best = max(best, sign * values[trial.number])
        if best > -math.inf:
            line.append((trial.number, sign * best))
    if line:
        shape = {"color": INK, "width": 1.5, "shape": "hv"}
        data.append(_scatter(line, "best so far", mode="lines", line=shape, hoverinfo="skip"))
    default = next((trial for trial in trials if trial.number == 0), None)
    yardstick = next((v for v in default.variants if v.name == "none"), None) if default else None
    if yardstick and plan.objective in yardstick.validation:
        value = yardstick.validation[plan.objective]
        shape = {"color": COLOURS[2], "width": 1.5, "dash": "dash"}
        ends = [(0, value), (max(trial.number for trial in trials), value)]
        data.append(_scatter(ends, "default, uncompressed", mode="lines", line=shape, hoverinfo="skip"))
    kinds = [kind for kind in KINDS if any(trial.config.kind == kind for trial in trials)]
    for place, kind in enumerate(kinds):
        own = [trial for trial in trials if trial.config.kind == kind and trial.number in values]
        # A cross is all outline, so its colour is that of the line.
        colour = COLOURS[(0, 1, 3, 4, 5)[place % 5]]
        marker = {
            "color": colour,
            "size": 10,
            "symbol": [marks[trial.state] for trial in own],
            "line": {"width": 2, "color": colour},
        }
        data.append(
            _scatter(
                [(trial.number, values[trial.number]) for trial in own],
                KINDS[kind],
                mode="markers",
                marker=marker,
                showlegend=False,
                legendgroup=kind,
                hovertext=[_trial_text(trial, plan, values[trial.number]) for trial in own],
                hoverinfo="text",
            )
        )
        data.append(_key(KINDS[kind], {"symbol": "circle", "color": colour}) | {"legendgroup": kind})
    lost = [trial for trial in trials if trial.number not in values]
    if lost:
        worst = min(values.values(), key=lambda value: sign * value)
        marker = {
            "symbol": "triangle-down-open",
            "size": 10,
            "color": "$limit",
            "line": {"width": 2, "color": "$limit"},
        }
        data.append(
            _scatter(
                [(trial.number, worst) for trial in lost],
                "without a figure",
                mode="markers",
                marker=marker,
                hovertext=[_trial_text(trial, plan, None) for trial in lost],
                hoverinfo="text",
            )
        )
    states = {trial.state for trial in trials if trial.number in values}
    for state, mark in marks.items():
        if len(states) > 1 and state in states:
            data.append(_key(STATES[state], {"symbol": mark, "color": FAINT, "line": {"width": 2, "color": FAINT}}))
    last = max(trial.number for trial in trials)
    axis: dict[str, Any] = {"title": "trial", "range": [-0.5 - 0.02 * last, last + 0.5 + 0.02 * last]}
    if last <= 20:
        axis["dtick"] = 1 if last < 12 else 2
    fits = " that fits the budget, if one does," if plan.budget else ""
    caption = f"Each trial's best variant{fits} in the order of the search; stopped trials where they stopped."
    layout = frame(420, xaxis=axis, yaxis={"title": quality_title(plan), **_room(list(values.values()))})
    return Figure("history", "Search history against trial 0", caption, data, layout)


def _trial_text(trial: TrialResult, plan: Plan, value: float | None) -> str:
    config = trial.config
    lines = [
        f"<b>trial {trial.number}</b>, {KINDS[config.kind]}, {STATES[trial.state]}",
        f"{plain(short_model(config.model))}, {plain(config.pipeline)}",
    ]
    if value is not None:
        lines.append(f"validation {plain(plan.objective)} {figure_text(value)}")
    lines += [
        f"{plain(name)} = {plain(_param(config.params[name]))}"
        for name in list(config.params)
        if "learning_rate" in name
    ]
    if trial.reason:
        lines.append(plain(_cut(trial.reason)))
    return "<br>".join(lines)


def _cut(text: str) -> str:
    return text if len(text) <= REASON else text[:REASON].rsplit(" ", 1)[0] + " …"


def _param(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _best_value(trial: TrialResult, plan: Plan) -> float | None:
    best = best_variant(plan, trial)
    if best is not None:
        return best.validation[plan.objective]
    # Trained to its end and not compressed: the checkpoint that was kept, which need not be the last.
    known = trial.validation or (trial.curve[-1].validation if trial.curve else {})
    value = known.get(plan.objective, math.nan)
    return value if math.isfinite(value) else None


def _curves(record: RunRecord, plan: Plan) -> Figure | None:
    trials = [trial for trial in record.trials if trial.curve and not trial.config.derived]
    if not trials:
        return None
    chosen = record.selection.trial if record.selection else None
    told = {number for number in (0, chosen) if number is not None}
    others = [trial for trial in trials if trial.number not in told]
    stopped = [trial for trial in others if trial.state == "pruned"]
    rest = [trial for trial in others if trial.state != "pruned"]
    data = []
    for name, group, dash in (("other trials", rest, "solid"), ("stopped early", stopped, "dot")):
        if group:
            line = {"color": FAINT, "width": 1.2, "dash": dash}
            data.append(_curve(group, plan, name, line, opacity=0.65, marker={"size": 4}))
    shown = [(0, COLOURS[2], "default (trial 0)")] if chosen != 0 else []
    if chosen is not None:
        shown.append((chosen, COLOURS[0], f"chosen (trial {chosen})" + (", the default" if chosen == 0 else "")))
    for number, colour, name in shown:
        own = [trial for trial in trials if trial.number == number]
        if own:
            data.append(_curve(own, plan, name, {"color": colour, "width": 2.5}, marker={"size": 6}))
    caption = "Validation while training, before compression; the best checkpoint of a trial is kept, not the last."
    layout = frame(420, xaxis={"title": "epoch"}, yaxis={"title": quality_title(plan)})
    return Figure("curves", "Curves of the trials", caption, data, layout)


def _curve(
    trials: Sequence[TrialResult], plan: Plan, name: str, line: dict[str, Any], **changes: Any
) -> dict[str, Any]:
    points: list[tuple[float | None, float | None]] = []
    texts: list[str] = []
    for trial in trials:
        for point in trial.curve:
            value = point.validation.get(plan.objective, math.nan)
            points.append((point.epoch, value))
            texts.append(
                f"<b>trial {trial.number}</b>, epoch {point.epoch:.3g}, {point.seconds:.0f} s<br>validation "
                f"{plain(plan.objective)} {figure_text(value)}<br>training loss {point.train_loss:.4g}<br>learning rate {point.learning_rate:.3g}"
            )
        # One trace for all lines: a gap stands between two.
        points.append((None, None))
        texts.append("")
    return _scatter(points, name, mode="lines+markers", line=line, hovertext=texts, hoverinfo="text", **changes)


def _rungs(record: RunRecord, plan: Plan) -> Figure | None:
    found = rungs(record, plan)
    if not any(one.stopped for one in found):
        return None
    data = []
    looks = ((False, "went on", COLOURS[0], "circle"), (True, "stopped here", COLOURS[1], "x-thin"))
    for stopped, name, colour, mark in looks:
        own = [one for one in found if one.stopped is stopped]
        marker = {"color": colour, "symbol": mark, "size": 9, "line": {"width": 2 if stopped else 0, "color": colour}}
        # Beside each other, so that trials of about the same value are seen apart.
        points = [(one.share + ((one.trial.number * 7) % 11 - 5) * 0.004, one.value) for one in own]
        texts = [f"{_trial_text(one.trial, plan, one.value)}<br>after {one.share:.0%} of its training" for one in own]
        data.append(
            _scatter(points, name, mode="markers", marker=marker, opacity=0.8, hovertext=texts, hoverinfo="text")
        )
    axis = {"title": "share of a trial's own training", "tickformat": ".0%", "dtick": 0.25, "range": [0, 1.05]}
    caption = (
        "The best score so far of each trial at each quarter of its training. Trials compete with those of their own model and of "
        "smaller ones; one that is within half a standard error of the best is not stopped."
    )
    layout = frame(420, xaxis=axis, yaxis={"title": quality_title(plan)})
    return Figure("rungs", f"Early stopping ({plan.early_stopping})", caption, data, layout)


def _importance(record: RunRecord, plan: Plan) -> Figure | None:
    if not record.importance:
        return None
    ranked = sorted(record.importance.items(), key=lambda item: item[1])[-SHOWN_PARAMETERS:]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [_round(share) for _, share in ranked],
        "y": [plain(name) for name, _ in ranked],
        "marker": {"color": COLOURS[0]},
        "text": [f"{share:.0%}" for _, share in ranked],
        "textposition": "outside",
        "cliponaxis": False,
        "hoverinfo": "skip",
    }
    most = max(0.01, *(share for _, share in ranked))
    axis = {"title": "share of what explains good trials", "tickformat": ".0%", "range": [0, most * 1.15]}
    layout = frame(130 + 26 * len(ranked), xaxis=axis, yaxis={"type": "category"}, showlegend=False)
    caption = (
        f"PED-ANOVA over the finished trials: which parameters those of good validation {plan.objective} have in common. "
        "With few trials, a hint."
    )
    return Figure("importance", "Importance of the parameters", caption, [bars], layout)


def _parallel(record: RunRecord, plan: Plan) -> Figure | None:
    """Draw trials as lines over axes of their parameters: in SVG, as Plotly's own type needs WebGL, which is not everywhere."""
    trials = [trial for trial in record.trials if not trial.config.derived]
    values = {trial.number: value for trial in trials if (value := _best_value(trial, plan)) is not None}
    trials = [trial for trial in trials if trial.number in values]
    names = sorted(varied([trial.config for trial in trials]), key=lambda name: -record.importance.get(name, 0.0))
    settings = {trial.number: dict(trial.config.params) for trial in trials}
    for name in ("pipeline", "model"):
        if len({getattr(trial.config, name) for trial in trials}) > 1:
            names.insert(0, name)
            for trial in trials:
                settings[trial.number][name] = getattr(trial.config, name)
    if len(trials) < 3 or not names:
        return None
    names = names[:AXES]
    axes = [_Axis.of(name, [settings[trial.number].get(name) for trial in trials], plan) for name in names]
    goal = _Axis.numbers(plan.objective, list(values.values()), log=False)
    axes.append(goal)
    sign = 1 if plan.higher_is_better else -1
    chosen = record.selection.trial if record.selection else None
    order = sorted(trials, key=lambda trial: sign * values[trial.number])
    groups: dict[int, list[TrialResult]] = {}
    for place, trial in enumerate(order):
        if trial.number != chosen:
            groups.setdefault(len(SCALE) * place // len(order), []).append(trial)
    data = []
    labels = ("worst fifth", "below the middle", "middle", "above the middle", "best fifth")

    def lines(own: Sequence[TrialResult], name: str, line: dict[str, Any], **changes: Any) -> dict[str, Any]:
        points: list[tuple[float | None, float | None]] = []
        texts: list[str] = []
        for trial in own:
            head = _trial_text(trial, plan, values[trial.number])
            for place, axis in enumerate(axes):
                value = settings[trial.number].get(axis.name) if axis is not goal else values[trial.number]
                points.append((place, axis.place(value)))
                shown = "not a parameter of it" if value is None else plain(axis.text(value))
                texts.append(f"{plain(axis.name)}: {shown}<br>{head}")
            points.append((None, None))
            texts.append("")
        return _scatter(points, name, mode="lines+markers", line=line, hovertext=texts, hoverinfo="text", **changes)

    for place, own in sorted(groups.items()):
        line = {"color": SCALE[place], "width": 1.4}
        data.append(lines(own, labels[place], line, marker={"size": 5}, opacity=0.5 + 0.1 * place))
    own = [trial for trial in trials if trial.number == chosen]
    if own:
        data.append(lines(own, f"chosen (trial {chosen})", {"color": INK, "width": 3}, marker={"size": 7}))
    notes = []
    for place, axis in enumerate(axes):
        for at, text in axis.ticks():
            notes.append(
                {"x": place, "y": at, "text": plain(text), "showarrow": False, "xanchor": "left", "xshift": 5}
                | {"font": {"size": 11, "color": FAINT}, "bgcolor": "$page", "opacity": 0.9}
            )
    shapes = [
        {
            "type": "line",
            "x0": place,
            "x1": place,
            "y0": ABSENT,
            "y1": 1,
            "layer": "below",
            "line": {"color": LINE, "width": 1.5},
        }
        for place in range(len(axes))
    ]
    ticks = {
        "tickvals": list(range(len(axes))),
        "ticktext": [plain(axis.name.replace(".", ".\u200b")) for axis in axes],
        "range": [-0.15, len(axes) - 0.45],
        "showgrid": False,
        "tickangle": -35,
    }
    layout = frame(
        480,
        xaxis=ticks,
        yaxis={"visible": False, "range": [ABSENT - 0.06, 1.06]},
        shapes=shapes,
        annotations=notes,
    )
    layout["legend"]["y"] = -0.32
    layout["margin"]["l"] = 70
    caption = f"Each line is a trial, coloured by its validation {plan.objective}; – at the bottom: not a parameter of that trial."
    return Figure("parallel", "Parameters of the trials", caption, data, layout, wide=True)


@dataclass(frozen=True)
class _Axis:
    """One parameter of parallel coordinates, from 0 to 1."""

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[str, ...] = ()
    absent: bool = False

    @classmethod
    def of(cls, name: str, values: Sequence[Any], plan: Plan) -> _Axis:
        there = [value for value in values if value is not None]
        absent = len(there) < len(values)
        if any(isinstance(value, bool | str) for value in there):
            texts = [short_model(str(value)) if name == "model" else str(value) for value in there]
            return cls(name, choices=tuple(dict.fromkeys(sorted(texts))), absent=absent)
        log = bool(plan.space.get(name, {}).get("log")) and all(value > 0 for value in there)
        return cls.numbers(name, there, log=log, absent=absent)

    @classmethod
    def numbers(cls, name: str, values: Sequence[float], *, log: bool, absent: bool = False) -> _Axis:
        return cls(name, float(min(values)), float(max(values)), log, absent=absent)

    def place(self, value: Any) -> float:
        if value is None:
            return ABSENT
        if self.choices:
            at = self.choices.index(self.text(value))
            return at / (len(self.choices) - 1) if len(self.choices) > 1 else 0.5
        low, high, here = self.low, self.high, float(value)
        if self.log:
            low, high, here = math.log(low), math.log(high), math.log(here)
        return (here - low) / (high - low) if high > low else 0.5

    def text(self, value: Any) -> str:
        if self.choices:
            return short_model(str(value)) if self.name == "model" else str(value)
        return f"{value:.4g}"

    def ticks(self) -> list[tuple[float, str]]:
        absent = [(ABSENT, "–")] if self.absent else []
        if self.choices:
            return [*absent, *((self.place(choice), choice) for choice in self.choices)]
        return [*absent, *((self.place(value), self.text(value)) for value in dict.fromkeys((self.low, self.high)))]


def _forecasts(record: RunRecord) -> list[Figure | None]:
    found = forecasts(record)
    size = [(trial, before, measured, name) for trial, name, before, measured in found.size]
    return [
        _agreement("predicted-time", "Time of a trial", "seconds", [(*one, "") for one in found.seconds]),
        _agreement("predicted-memory", "Training memory", "memory_bytes", [(*one, "") for one in found.memory]),
        _agreement("predicted-size", "Size of the files", "size_bytes", size),
    ]


def _agreement(
    name: str, title: str, column: str, pairs: Sequence[tuple[TrialResult, float, float, str]]
) -> Figure | None:
    """Draw what was predicted against what was measured; None where there is nothing to compare."""
    pairs = [pair for pair in pairs if pair[1] > 0 and pair[2] > 0]
    if not pairs:
        return None
    column = "a_seconds" if column == "seconds" else column
    ends = [value for pair in pairs for value in pair[1:3]]
    low, high = min(ends) / 1.3, max(ends) * 1.3
    axis = cost_axis(column, ends)
    diagonal = _scatter(
        [(low, low), (high, high)],
        "equal",
        mode="lines",
        line={"color": FAINT, "dash": "dash", "width": 1.2},
        hoverinfo="skip",
    )
    texts = [
        f"<b>trial {trial.number}</b>{f', {plain(what)}' if what else ''}<br>predicted {cost_text(column, before)}<br>measured "
        f"{cost_text(column, measured)} ({before / measured - 1:+.1%})"
        for trial, before, measured, what in pairs
    ]
    points = _scatter(
        [(before, measured) for _, before, measured, _ in pairs],
        "trials",
        mode="markers",
        marker={"color": COLOURS[0], "size": 9},
        opacity=0.8,
        hovertext=texts,
        hoverinfo="text",
    )
    layout = frame(320, xaxis={**axis, "title": "predicted"}, yaxis={**axis, "title": "measured"}, showlegend=False)
    caption = "On the dashed line, what was predicted is what was measured."
    return Figure(name, f"{title}, predicted and measured", caption, [diagonal, points], layout)


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
            _scatter(
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
        data.append(_scatter(list(zip(ends, ends, strict=True)), "equal", mode="lines", line=line, hoverinfo="skip"))
    layout = frame(380, xaxis={"title": item["x_label"]}, yaxis={"title": item["y_label"]})
    layout["showlegend"] = len(item["series"]) > 1
    return Figure(f"chart-{place}", item["title"], item["caption"], data, layout)


def _scatter(points: Sequence[tuple[Any, Any]], name: str, **changes: Any) -> dict[str, Any]:
    return {
        "type": "scatter",
        "x": [_round(x) for x, _ in points],
        "y": [_round(y) for _, y in points],
        "name": plain(name),
        **changes,
    }


def _key(name: str, marker: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of the legend that no point stands for."""
    return _scatter([(None, None)], name, mode="markers", marker={"size": 9, **marker}, hoverinfo="skip")


def _room(values: Sequence[float]) -> dict[str, Any]:
    """Return the range of an axis where all values are the same: Plotly would show a whole unit on both sides."""
    low, high = min(values), max(values)
    if low < high:
        return {}
    # A score of 1e-38 is none, and an axis of such numbers says nothing.
    room = max(abs(low) * 0.05, 1e-4) if abs(low) > 1e-6 else 0.05
    return {"range": [_round(low - room), _round(high + room)]}


def _round(value: float | None) -> float | None:
    """Return a number as JSON knows it, to six digits: more cannot be seen."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}") if isinstance(value, float) else value
