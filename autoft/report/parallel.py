"""The parameters of all trials as lines over parallel axes: in SVG, as Plotly's own type needs WebGL, which is not everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoft.plans.plan import Plan
from autoft.report.courses import best_value, trial_text
from autoft.report.drawing import FAINT, INK, LINE, Figure, frame, plain, scatter
from autoft.report.trials import varied
from autoft.report.views import metric_title, short_model
from autoft.rundir import RunRecord, TrialResult

__all__ = ["parallel"]

SCALE = tuple(f"$scale-{place}" for place in range(1, 6))
"""From the worst to the best."""

FIFTHS = ("worst fifth", "below the middle", "middle", "above the middle", "best fifth")

AXES = 9
"""Parameters that parallel coordinates have room for."""

ABSENT = -0.12
"""Where the line of a trial goes that has no such parameter."""


def parallel(record: RunRecord, plan: Plan) -> Figure | None:
    """Draw trials as lines over axes of their parameters; None where fewer than three have a figure, or nothing varies."""
    trials = [trial for trial in record.trials if not trial.config.derived]
    values = {trial.number: value for trial in trials if (value := best_value(trial, plan)) is not None}
    trials = [trial for trial in trials if trial.number in values]
    columns = _columns(record, trials)
    if len(trials) < 3 or not columns:
        return None
    axes = [_Axis.of(name, column, plan) for name, column in columns.items()]
    axes.append(_Axis.numbers(metric_title(plan, plan.objective), list(values.values()), log=False))
    cells = {
        trial.number: [*(column[place] for column in columns.values()), values[trial.number]]
        for place, trial in enumerate(trials)
    }
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
        shapes=[_axis_line(place) for place in range(len(axes))],
        annotations=[note for place, axis in enumerate(axes) for note in _ticks(place, axis)],
    )
    layout["legend"]["y"] = -0.32
    layout["margin"]["l"] = 70
    caption = f"Each line is a trial, coloured by its validation {plan.objective}; – at the bottom: not a parameter of that trial."
    chosen = record.selection.trial if record.selection else None
    data = _lines(trials, axes, cells, plan, chosen)
    return Figure("parallel", "Parameters of the trials", caption, data, layout, wide=True)


def _columns(record: RunRecord, trials: Sequence[TrialResult]) -> dict[str, list[Any]]:
    """Return the values of what varies, in the order of the trials: model and pipeline, then what mattered most."""
    whole = [name for name in ("model", "pipeline") if len({getattr(trial.config, name) for trial in trials}) > 1]
    found = {name: [getattr(trial.config, name) for trial in trials] for name in whole}
    names = sorted(varied([trial.config for trial in trials]), key=lambda name: -record.importance.get(name, 0.0))
    found |= {name: [trial.config.params.get(name) for trial in trials] for name in names}
    return dict(list(found.items())[:AXES])


def _lines(
    trials: Sequence[TrialResult],
    axes: Sequence[_Axis],
    cells: Mapping[int, Sequence[Any]],
    plan: Plan,
    chosen: int | None,
) -> list[dict[str, Any]]:
    """Return a trace for each fifth of the trials, from the worst on, and one for the chosen trial."""
    sign = 1 if plan.higher_is_better else -1
    order = sorted(trials, key=lambda trial: sign * cells[trial.number][-1])
    fifths: dict[int, list[TrialResult]] = {}
    for place, trial in enumerate(order):
        if trial.number != chosen:
            fifths.setdefault(len(SCALE) * place // len(order), []).append(trial)
    looks: list[tuple[Sequence[TrialResult], dict[str, Any]]] = [
        (
            own,
            {"name": FIFTHS[place], "line": {"color": SCALE[place], "width": 1.4}}
            | {"marker": {"size": 5}, "opacity": 0.5 + 0.1 * place},
        )
        for place, own in sorted(fifths.items())
    ]
    own = [trial for trial in trials if trial.number == chosen]
    if own:
        line = {"line": {"color": INK, "width": 3}, "marker": {"size": 7}}
        looks.append((own, {"name": f"chosen (trial {chosen})", **line}))
    data = []
    for group, look in looks:
        points: list[tuple[float | None, float | None]] = []
        texts: list[str] = []
        for trial in group:
            row = cells[trial.number]
            head = trial_text(trial, plan, row[-1])
            for place, (axis, value) in enumerate(zip(axes, row, strict=True)):
                points.append((place, axis.place(value)))
                shown = "not a parameter of it" if value is None else plain(axis.text(value))
                texts.append(f"{plain(axis.name)}: {shown}<br>{head}")
            # One trace for all lines: a gap stands between two.
            points.append((None, None))
            texts.append("")
        data.append(scatter(points, mode="lines+markers", hovertext=texts, hoverinfo="text", **look))
    return data


def _axis_line(place: int) -> dict[str, Any]:
    ends = {"x0": place, "x1": place, "y0": ABSENT, "y1": 1}
    return {"type": "line", **ends, "layer": "below", "line": {"color": LINE, "width": 1.5}}


def _ticks(place: int, axis: _Axis) -> list[dict[str, Any]]:
    looks = {"showarrow": False, "xanchor": "left", "xshift": 5, "bgcolor": "$page", "opacity": 0.9}
    font = {"size": 11, "color": FAINT}
    return [{"x": place, "y": at, "text": plain(text), "font": font, **looks} for at, text in axis.ticks()]


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
