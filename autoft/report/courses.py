"""The plots of how a search went: its trials in their order, their curves, where they were stopped, what mattered."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from autoft.plans.budgets import keeps
from autoft.plans.plan import Plan
from autoft.report.decisions import forecasts, rungs
from autoft.report.drawing import (
    COLOURS,
    FAINT,
    INK,
    Figure,
    cost_axis,
    frame,
    key,
    plain,
    room,
    rounded,
    scatter,
)
from autoft.report.trials import KINDS, STATES, param_text
from autoft.report.views import cost_text, figure_text, quality_title, short_model
from autoft.rundir import RunRecord, TrialResult, TrialState
from autoft.selection import best_variant

__all__ = ["agreements", "best_value", "curves", "history", "importance", "rung_plot", "trial_text"]

SHOWN_PARAMETERS = 12
SHAPES: dict[TrialState, str] = {
    "complete": "circle",
    "pruned": "x-thin",
    "infeasible": "square-open",
    "failed": "triangle-down-open",
}
REASON = 160
"""Characters of a reason that a hover shows."""


def history(record: RunRecord, plan: Plan) -> Figure | None:
    """Draw what each trial scored in the order of the search, with the best so far; None where none has a figure."""
    trials = [trial for trial in record.trials if not trial.config.derived]
    values = {trial.number: value for trial in trials if (value := best_value(trial, plan)) is not None}
    if not values:
        return None
    data = [
        *_best_so_far(trials, values, plan),
        *_yardstick(trials, plan),
        *_kinds(trials, values, plan),
        *_without_figure(trials, values, plan),
        *_states({trial.state for trial in trials if trial.number in values}),
    ]
    last = max(trial.number for trial in trials)
    axis: dict[str, Any] = {"title": "trial", "range": [-0.5 - 0.02 * last, last + 0.5 + 0.02 * last]}
    if last <= 20:
        axis["dtick"] = 1 if last < 12 else 2
    fits = " that fits the budget, if one does," if plan.budget else ""
    caption = f"Each trial's best variant{fits} in the order of the search; stopped trials where they stopped."
    layout = frame(420, xaxis=axis, yaxis={"title": quality_title(plan), **room(list(values.values()))})
    return Figure("history", "Search history against trial 0", caption, data, layout)


def _best_so_far(trials: Sequence[TrialResult], values: Mapping[int, float], plan: Plan) -> list[dict[str, Any]]:
    """Return the line of the best model so far that fits the budget."""
    sign = 1 if plan.higher_is_better else -1
    best, line = -math.inf, []
    for trial in trials:
        one = best_variant(plan, trial)
        if trial.state == "complete" and one is not None and keeps(one.costs, plan.budget):
            best = max(best, sign * values[trial.number])
        if best > -math.inf:
            line.append((trial.number, sign * best))
    shape = {"color": INK, "width": 1.5, "shape": "hv"}
    return [scatter(line, "best so far", mode="lines", line=shape, hoverinfo="skip")] if line else []


def _yardstick(trials: Sequence[TrialResult], plan: Plan) -> list[dict[str, Any]]:
    """Return the line of the plain default fine-tune."""
    default = next((v for trial in trials if trial.number == 0 for v in trial.variants if v.name == "none"), None)
    if default is None or plan.objective not in default.validation:
        return []
    value, shape = default.validation[plan.objective], {"color": COLOURS[2], "width": 1.5, "dash": "dash"}
    ends = [(0, value), (max(trial.number for trial in trials), value)]
    return [scatter(ends, "default, uncompressed", mode="lines", line=shape, hoverinfo="skip")]


def _kinds(trials: Sequence[TrialResult], values: Mapping[int, float], plan: Plan) -> list[dict[str, Any]]:
    """Return the points of the trials, a colour for each way in which they were proposed, a shape for each end."""
    data = []
    for place, kind in enumerate(kind for kind in KINDS if any(trial.config.kind == kind for trial in trials)):
        own = [trial for trial in trials if trial.config.kind == kind and trial.number in values]
        # A cross is all outline, so its colour is that of the line.
        colour = COLOURS[(0, 1, 3, 4, 5)[place % 5]]
        shapes = [SHAPES[trial.state] for trial in own]
        marker = {"color": colour, "size": 10, "symbol": shapes, "line": {"width": 2, "color": colour}}
        looks = {"mode": "markers", "marker": marker, "showlegend": False, "legendgroup": kind}
        texts = [trial_text(trial, plan, values[trial.number]) for trial in own]
        points = [(trial.number, values[trial.number]) for trial in own]
        data.append(scatter(points, KINDS[kind], **looks, hovertext=texts, hoverinfo="text"))
        data.append(key(KINDS[kind], {"symbol": "circle", "color": colour}) | {"legendgroup": kind})
    return data


def _without_figure(trials: Sequence[TrialResult], values: Mapping[int, float], plan: Plan) -> list[dict[str, Any]]:
    """Return the points of trials that have no figure, where the worst one is."""
    lost = [trial for trial in trials if trial.number not in values]
    if not lost:
        return []
    sign = 1 if plan.higher_is_better else -1
    worst = min(values.values(), key=lambda value: sign * value)
    line = {"width": 2, "color": "$limit"}
    marker = {"symbol": SHAPES["failed"], "size": 10, "color": "$limit", "line": line}
    texts = [trial_text(trial, plan, None) for trial in lost]
    points = [(trial.number, worst) for trial in lost]
    looks = {"mode": "markers", "marker": marker, "hovertext": texts, "hoverinfo": "text"}
    return [scatter(points, "without a figure", **looks)]


def _states(seen: Collection[TrialState]) -> list[dict[str, Any]]:
    """Return what the shapes mean, where there are several."""
    line = {"width": 2, "color": FAINT}
    looks = {"color": FAINT, "line": line}
    shown = [state for state in SHAPES if state in seen]
    return [key(STATES[state], {"symbol": SHAPES[state], **looks}) for state in shown] if len(shown) > 1 else []


def trial_text(trial: TrialResult, plan: Plan, value: float | None) -> str:
    """Return what a hover says of a trial, as Plotly reads it."""
    config = trial.config
    lines = [
        f"<b>trial {trial.number}</b>, {KINDS[config.kind]}, {STATES[trial.state]}",
        f"{plain(short_model(config.model))}, {plain(config.pipeline)}",
    ]
    if value is not None:
        lines.append(f"validation {plain(plan.objective)} {figure_text(value)}")
    lines += [
        f"{plain(name)} = {plain(param_text(config.params[name]))}"
        for name in list(config.params)
        if "learning_rate" in name
    ]
    if trial.reason:
        lines.append(plain(_cut(trial.reason)))
    return "<br>".join(lines)


def _cut(text: str) -> str:
    return text if len(text) <= REASON else text[:REASON].rsplit(" ", 1)[0] + " …"


def best_value(trial: TrialResult, plan: Plan) -> float | None:
    """Return what a trial is drawn by: its best variant, or its last or best checkpoint; None where none has a figure."""
    best = best_variant(plan, trial)
    if best is not None:
        return best.validation[plan.objective]
    # Trained to its end and not compressed: the checkpoint that was kept, which need not be the last.
    known = trial.validation or (trial.curve[-1].validation if trial.curve else {})
    value = known.get(plan.objective, math.nan)
    return value if math.isfinite(value) else None


def curves(record: RunRecord, plan: Plan) -> Figure | None:
    """Draw the validations of all trainings; None where there are none."""
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
    caption += _judged_by(plan)
    values = [point.validation.get(plan.objective, math.nan) for trial in trials for point in trial.curve]
    axis = {"title": quality_title(plan), **room([value for value in values if math.isfinite(value)])}
    layout = frame(420, xaxis={"title": "epoch", "rangemode": "tozero"}, yaxis=axis)
    return Figure("curves", "Curves of the trials", caption, data, layout)


def _judged_by(plan: Plan) -> str:
    """Return by how many rows checkpoints were judged, where these are not all: figures of finished trials have all."""
    there = int(plan.data.get("sizes", {}).get("validation", 0))
    read = plan.rows_of_validation(there)
    return (
        f" Checkpoints are judged by {read} of the {there} validation rows, the same in all trials."
        if read < there
        else ""
    )


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
    return scatter(points, name, mode="lines+markers", line=line, hovertext=texts, hoverinfo="text", **changes)


def rung_plot(record: RunRecord, plan: Plan) -> Figure | None:
    """Draw where trials were compared and stopped; None where none was stopped."""
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
        texts = [f"{trial_text(one.trial, plan, one.value)}<br>after {one.share:.0%} of its training" for one in own]
        data.append(
            scatter(points, name, mode="markers", marker=marker, opacity=0.8, hovertext=texts, hoverinfo="text")
        )
    axis = {"title": "share of a trial's own training", "tickformat": ".0%", "dtick": 0.25, "range": [0, 1.05]}
    caption = (
        "The best score so far of each trial at each quarter of its training. Trials compete with those of their own model and of "
        "smaller ones; one that is within half a standard error of the best is not stopped."
    )
    caption += _judged_by(plan)
    layout = frame(420, xaxis=axis, yaxis={"title": quality_title(plan), **room([one.value for one in found])})
    return Figure("rungs", f"Early stopping ({plan.early_stopping})", caption, data, layout)


def importance(record: RunRecord, plan: Plan) -> Figure | None:
    """Draw how much parameters matter; None where too few trials are done to say so."""
    if not record.importance:
        return None
    ranked = sorted(record.importance.items(), key=lambda item: item[1])[-SHOWN_PARAMETERS:]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [rounded(share) for _, share in ranked],
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


def agreements(record: RunRecord) -> list[Figure | None]:
    """Draw what was predicted of times, memory and sizes against what was measured; None of what was not."""
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
    diagonal = scatter(
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
    points = scatter(
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
