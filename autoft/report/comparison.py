"""Several runs side by side: what was chosen in each, whether their figures may be compared, and what was set differently."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from autoft.errors import RunFolderError
from autoft.plans.budgets import keeps
from autoft.plans.plan import Plan, plan_of
from autoft.quantities import format_seconds
from autoft.report.summary import summary
from autoft.report.views import (
    IntervalView,
    TableView,
    column_title,
    cost_text,
    counted,
    figure_text,
    interval_text,
    interval_view,
    quality_title,
    short_model,
)
from autoft.rundir import Candidate, RunRecord, read_typed

if TYPE_CHECKING:
    from autoft.report.drawing import Figure

__all__ = ["Comparison", "compared_figures", "comparison_json", "make_comparison", "render_comparison"]

COSTS = ("model_size_bytes", "latency_p50_ms", "inference_memory_bytes")

SAME = "the same"
"""What stands in a table of settings where a run has what the first one has."""

IGNORED = frozenset({"name", "memory_bytes"})
"""Settings that say nothing of a difference: a run's own name; what memory was free."""


@dataclass(frozen=True)
class _Run:
    """A run as the comparison calls it."""

    name: str
    record: RunRecord
    plan: Plan
    test_rows: str
    """Which rows it was tested on, as a fingerprint; empty where that is not known."""

    @property
    def fingerprint(self) -> str:
        return str(self.plan.data.get("fingerprint", "")) + _fewer(self.plan, "validation", "test")

    @property
    def scored_by(self) -> tuple[str, str, bool, str]:
        """Task, objective, whether higher is better, and what it counts: figures of runs that differ in it have nothing in common."""
        return self.plan.task, self.plan.objective, self.plan.higher_is_better, self.counts

    @property
    def counts(self) -> str:
        """What the objective counts, where that is not the same for all models and lengths, as perplexity's tokens; else empty."""
        plan, selection = self.plan, self.record.selection
        known = plan.metrics[plan.objective]
        config = self.record.trial(selection.trial).config if selection else plan.default_config()
        model = plan.model(config.model).config
        told = []
        if known.get("per_token"):
            told.append(f"tokens of {model.get('model_type')}, of which there are {model.get('vocab_size')}")
        if known.get("of_targets"):
            told.append(f"answers of {config.params.get('train.max_length')} tokens at most")
        return ", in ".join(told)

    def tested(self, system: str = "best") -> Any:
        final = self.record.final
        return final.test.get(system, {}).get(self.plan.objective) if final else None


@dataclass
class Comparison:
    """Several runs, ready to be rendered."""

    title: str
    runs: list[_Run]
    same_data: bool
    """All splits of all runs have the same rows; False, too, where that is not known."""
    same_test: bool
    """The test rows of all runs are the same."""
    alike: list[_Run] = field(default_factory=list)
    """Those of the task, the objective and what it counts that most have; empty where no two have the same."""
    notes: list[str] = field(default_factory=list)
    """What may be compared, and what may not."""
    chosen: TableView | None = None
    quality: IntervalView | None = None
    metrics: TableView | None = None
    settings: TableView | None = None

    @property
    def comparable(self) -> bool:
        """All runs were scored on the same test rows, by the same objective."""
        return self.same_test and len(self.alike) == len(self.runs)


def make_comparison(records: Sequence[RunRecord]) -> Comparison:
    """Return what there is to say of these runs beside each other, in the order given.

    Raises:
        RunFolderError: fewer than two runs, or the same one twice; or a folder's plan is damaged.
    """
    if len(records) < 2:
        raise RunFolderError("compare: needs two run folders or more, as autoft compare runs/a runs/b")
    paths = [record.path.resolve() for record in records]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise RunFolderError(f"{twice}: is named twice; compare it with another run")
    runs = [
        _Run(name, record, plan_of(record), _test_rows(record))
        for name, record in zip(_names(paths), records, strict=True)
    ]
    prints, tests = [run.fingerprint for run in runs], [run.test_rows or run.fingerprint for run in runs]
    same_data = all(prints) and len(set(prints)) == 1
    same_test = same_data or (all(tests) and len(set(tests)) == 1)
    comparison = Comparison(" · ".join(run.name for run in runs), runs, same_data, same_test, _alike(runs))
    comparison.notes = _notes(comparison)
    comparison.chosen = _chosen(runs)
    comparison.quality = _quality(comparison)
    comparison.metrics = _metrics(runs)
    comparison.settings = _settings(runs)
    return comparison


def render_comparison(comparison: Comparison) -> str:
    """Return the page: one HTML file, nothing from the network."""
    from autoft.report.page import render_page

    return render_page("compare.html.j2", compared_figures(comparison), content=comparison)


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison for programs; its keys only grow."""
    settings = comparison.settings
    values = _values(comparison.runs)
    return {
        "same_data": comparison.same_data,
        "same_test": comparison.same_test,
        "notes": comparison.notes,
        "runs": [
            {
                "name": run.name,
                "path": str(run.record.path),
                "fingerprint": run.fingerprint,
                **{key: value for key, value in summary(run.record).items() if key in _SUMMARY},
            }
            for run in comparison.runs
        ],
        "settings": {
            row[0]: {run.name: values[run.name].get(row[0]) for run in comparison.runs}
            for row in (settings.rows if settings else ())
        },
    }


_SUMMARY = ("autoft", "task", "objective", "trials", "variants", "seconds", "baselines", "best", "budget")


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a short name for each folder, with as many of the folders above it as tell all apart."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


class _Data(BaseModel):
    """What a run says of its rows."""

    splits: dict[str, str] = {}


def _test_rows(record: RunRecord) -> str:
    known = read_typed(record.path / "data" / "meta.json", _Data, _Data()).splits.get("test", "")
    return known and known + _fewer(plan_of(record), "test")


def _fewer(plan: Plan, *splits: str) -> str:
    """Return of how many rows figures are, where these are not all rows of a split."""
    whole = plan.data.get("whole", {})
    return "".join(f", {plan.data['sizes'][name]} of {name}" for name in splits if name in whole)


def _alike(runs: Sequence[_Run]) -> list[_Run]:
    (most, count), *_ = Counter(run.scored_by for run in runs).most_common(1)
    return [run for run in runs if run.scored_by == most] if count > 1 else []


def _notes(comparison: Comparison) -> list[str]:
    runs, alike = comparison.runs, comparison.alike
    notes = []
    # Where only what it counts differs, the objective has the same name.
    named = len({run.scored_by[:-1] for run in runs}) == 1
    if comparison.same_test and len(alike) < len(runs):
        rows = "rows in the same splits" if comparison.same_data else "test rows"
        other = "figures of the same thing" if named else "the same task and objective"
        notes.append(f"All runs have the same {rows}, but NOT {other}: their figures do not say which model is better.")
    elif comparison.same_data:
        notes.append("All runs have the same rows in the same splits, so their figures may be compared.")
    elif comparison.same_test:
        notes.append(
            "The runs were trained or validated on different rows and tested on the same ones: test figures may be compared, "
            "validation figures may not."
        )
    elif all(run.test_rows or run.fingerprint for run in runs):
        notes.append("The test rows are NOT the same: figures of different rows do not say which model is better.")
    else:
        known = [run.name for run in runs if not (run.test_rows or run.fingerprint)]
        notes.append(f"Of {', '.join(known)} it is not known what rows it has, so figures are not to be compared.")
    for what, values in (
        ("tasks", [run.plan.task for run in runs]),
        ("objectives", [run.plan.objective for run in runs]),
    ):
        if len(set(values)) > 1:
            told = ", ".join(f"{value} ({run.name})" for run, value in zip(runs, values, strict=True))
            notes.append(f"The {what} differ: {told}.")
    if named and len({run.counts for run in runs}) > 1:
        told = "; ".join(f"{run.counts or 'not known'} ({run.name})" for run in runs)
        notes.append(f"What {runs[0].plan.objective} counts differs: {told}.")
    if len(alike) < len(runs):
        rest = "of the rest something else is counted" if named else "the rest has another task or objective"
        none = "No two count the same" if named else "No two have the same task and objective"
        notes.append(
            f"On one scale and in plots stand only {', '.join(run.name for run in alike)}: {rest}."
            if alike
            else f"{none}: nothing is drawn on one scale."
        )
    machines = {(run.plan.hardware.get("cpu"), run.plan.device, run.plan.threads) for run in runs}
    targets = {run.plan.target.name if run.plan.target else "" for run in runs}
    if len(machines) > 1 or len(targets) > 1:
        notes.append(
            "Latencies were not measured on the same device with as many threads: compare sizes, and not times."
        )
    unfinished = [run.name for run in runs if run.record.final is None]
    if unfinished:
        notes.append(f"Not finished, or without a model that fits: {', '.join(unfinished)}.")
    return notes + _verdicts(comparison)


def _verdicts(comparison: Comparison) -> list[str]:
    """Return of the best run and each other one whether their intervals overlap; nothing of other rows or objectives."""
    runs = [run for run in comparison.alike if run.tested() is not None and math.isfinite(run.tested().value)]
    if not comparison.same_test or len(runs) < 2:
        return []
    sign = 1 if runs[0].plan.higher_is_better else -1
    first, *rest = sorted(runs, key=lambda run: -sign * run.tested().value)
    best, objective = first.tested(), first.plan.objective
    said = []
    for run in rest:
        other = run.tested()
        if not all(math.isfinite(end) for one in (best, other) for end in (one.low, one.high)):
            verdict = "an interval is not defined, so that nothing is known of chance."
        elif other.high < best.low or other.low > best.high:
            verdict = "the 95 % intervals do not overlap."
        else:
            verdict = f"the 95 % intervals overlap, so that on {counted(best.n, 'row')} this may be chance."
        said.append(
            f"{first.name} has {figure_text(best.value)} test {objective}, {run.name} {figure_text(other.value)} "
            f"({other.value - best.value:+.4f}): {verdict}"
        )
    return said


def _chosen(runs: Sequence[_Run]) -> TableView:
    rows = []
    objectives = {run.plan.objective for run in runs}
    for run in runs:
        # Where all have the same objective, the heading names it.
        before = f"{run.plan.objective} " if len(objectives) > 1 else ""
        selection, final = run.record.selection, run.record.final
        costs = final.costs.get("best", {}) if final else {}
        config = run.record.trial(selection.trial).config if selection else None
        count = sum(run.record.counts().values())
        seconds = final.seconds if final else sum(trial.seconds.get("total", 0.0) for trial in run.record.trials)
        rows.append(
            (
                run.name,
                short_model(config.model) if config else "–",
                config.pipeline if config else "–",
                selection.variant if selection else "–",
                f"{before}{interval_text(run.tested())}" if run.tested() is not None else "–",
                interval_text(run.tested("default")),
                *(cost_text(column, costs.get(column)) for column in COSTS),
                str(count),
                format_seconds(seconds) if seconds else "–",
            )
        )
    told = objectives.pop() if len(objectives) == 1 else "figure"
    titles = ("run", "model", "pipeline", "compression", f"test {told} (95 % interval)", "default's test")
    columns = (*titles, *map(column_title, COSTS), "trials", "took")
    return TableView("What was chosen", columns, tuple(rows), left=frozenset({0, 1, 2, 3}))


def _quality(comparison: Comparison) -> IntervalView | None:
    """Return the test figures of runs of one task and objective on one scale; None where these are fewer than two."""
    runs = [run for run in comparison.alike if run.tested() is not None]
    if len(runs) < 2:
        return None
    figures = []
    for run in runs:
        figures.append((run.name, run.tested()))
        if run.tested("default") is not None:
            figures.append((f"{run.name}, default", run.tested("default")))
    direction = "higher" if runs[0].plan.higher_is_better else "lower"
    rows = "the test rows" if comparison.same_test else "each run's own test rows"
    note = f"95 % bootstrap intervals over {rows}; {direction} is better."
    return interval_view(f"Test {runs[0].plan.objective}", "run", figures, note=note)


def _metrics(runs: Sequence[_Run]) -> TableView | None:
    finished = [run for run in runs if run.record.final and "best" in run.record.final.test]
    names = dict.fromkeys(name for run in finished for name in run.record.final.test["best"])  # type: ignore[union-attr]
    if len(finished) < 2:
        return None
    rows = tuple(
        (name, *(interval_text(run.record.final.test["best"].get(name)) for run in finished))  # type: ignore[union-attr]
        for name in names
    )
    return TableView("Every metric on the test split", ("metric", *(run.name for run in finished)), rows)


def _values(runs: Sequence[_Run]) -> dict[str, dict[str, Any]]:
    """Return all settings of each run, by its name: those of the recipe, then versions and hardware."""
    return {
        run.name: {
            **_flat(run.record.recipe),
            **{f"version of {name}": version for name, version in run.plan.environment.items()},
            **{f"hardware: {name}": value for name, value in run.plan.hardware.items() if name not in IGNORED},
            "device": run.plan.device,
            "threads": run.plan.threads,
        }
        for run in runs
    }


def _settings(runs: Sequence[_Run]) -> TableView | None:
    values = _values(runs)
    keys = dict.fromkeys(key for run in runs for key in values[run.name])
    rows = []
    for key in keys:
        texts = [_setting(values[run.name].get(key)) for run in runs]
        if len(set(texts)) > 1:
            rows.append((key, texts[0], *(SAME if text == texts[0] else text for text in texts[1:])))
    if not rows:
        return None
    columns = ("setting", *(run.name for run in runs))
    left = frozenset(range(len(columns)))
    return TableView("Settings that differ", columns, tuple(rows), left=left)


def _flat(section: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return a nested section by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        if not before and key in IGNORED:
            continue
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found


def _setting(value: Any) -> str:
    if value is None or value in ({}, []):
        return "–"
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def compared_figures(comparison: Comparison) -> dict[str, Figure]:
    """Return the fronts over each other, against size and latency, and the best so far against time; by name.

    Runs whose task and objective are not those of most are left out: their figures have another scale.
    """
    shown = comparison.alike
    if not shown:
        return {}
    drawn = [
        _fronts(shown, "model_size_bytes", "size"),
        _fronts(shown, "latency_p50_ms", "latency"),
        _progress(shown),
    ]
    return {figure.name: figure for figure in drawn if figure is not None}


def _fronts(runs: Sequence[_Run], column: str, name: str) -> Figure | None:
    from autoft.report.drawing import Figure, cost_axis, frame, limit_line
    from autoft.selection import candidates

    plan = runs[0].plan
    data: list[dict[str, Any]] = []
    costs: list[float] = []
    limits: dict[float, str] = {}
    for place, run in enumerate(runs):
        selection = run.record.selection
        offered = selection.candidates if selection else candidates(run.plan, run.record.trials)
        points = [c for c in offered if 0 < c.costs.get(column, 0) < math.inf and math.isfinite(c.objective)]
        if points:
            costs += [c.costs[column] for c in points]
            limits |= {limit.limit: limit.given for limit in run.plan.budget if limit.column == column}
            data += _front(run, points, column, place)
    if not costs:
        return None
    axis = cost_axis(column, [*costs, *limits])
    # Of several limits, shades over each other would say nothing.
    drawn = [limit_line(limit, given, axis["range"]) for limit, given in limits.items()]
    layout = frame(
        440,
        xaxis=axis,
        yaxis={"title": quality_title(plan)},
        shapes=[lines[-1] for lines, _ in drawn],
        annotations=[note for _, notes in drawn for note in notes],
    )
    caption = (
        f"Every variant of each run, as trained and compressed: validation {plan.objective} against {column_title(column)}. The "
        "lines are the fronts, rings the chosen models; hollow points do not fit their run's budget."
    )
    return Figure(name, f"Fronts against {name}", caption, data, layout)


def _front(run: _Run, points: Sequence[Candidate], column: str, place: int) -> list[dict[str, Any]]:
    """Return a run's front as a line, its candidates as points, and a ring round the chosen one, all of one colour."""
    from autoft.report.drawing import COLOURS, SYMBOLS, front_points, plain, scatter

    colour, symbol = COLOURS[place % len(COLOURS)], SYMBOLS[place % len(SYMBOLS)]
    fitting = ((c.costs[column], c.objective) for c in points if not c.violations)
    corners = front_points(fitting, run.plan.higher_is_better)
    line = {"color": colour, "width": 2, "shape": "hv"}
    marker = {"color": colour, "size": 8, "symbol": [symbol + ("-open" if c.violations else "") for c in points]}
    texts = [
        f"<b>{plain(run.name)}</b>, trial {c.trial}, {plain(c.variant)}<br>"
        f"{plain(short_model(config.model))}, {plain(config.pipeline)}<br>"
        f"validation {plain(run.plan.objective)} {figure_text(c.objective)}<br>{column_title(column)} {cost_text(column, c.costs[column])}"
        + ("<br>does not fit" if c.violations else "")
        for c in points
        for config in (run.record.trial(c.trial).config,)
    ]
    shown = {"mode": "markers", "showlegend": False, "legendgroup": run.name}
    where = [(c.costs[column], c.objective) for c in points]
    data = [
        scatter(corners or [(None, None)], run.name, mode="lines", line=line, hoverinfo="skip", legendgroup=run.name),
        scatter(where, run.name, marker=marker, hovertext=texts, hoverinfo="text", opacity=0.7, **shown),
    ]
    selection = run.record.selection
    for c in points:
        if selection and (c.trial, c.variant) == (selection.trial, selection.variant):
            ring = {"symbol": "circle-open", "size": 19, "color": colour, "line": {"width": 2.5, "color": colour}}
            where = [(c.costs[column], c.objective)]
            data.append(scatter(where, f"{run.name}, chosen", marker=ring, hoverinfo="skip", **shown))
    return data


def _progress(runs: Sequence[_Run]) -> Figure | None:
    from autoft.report.drawing import COLOURS, SYMBOLS, Figure, frame, plain
    from autoft.selection import best_variant

    sign, objective = 1 if runs[0].plan.higher_is_better else -1, runs[0].plan.objective
    data = []
    for place, run in enumerate(runs):
        spent, best = 0.0, -math.inf
        xs, ys, texts = list[float](), list[float](), list[str]()
        for trial in run.record.trials:
            # Workers train beside each other.
            spent += trial.seconds.get("total", 0.0) / max(1, run.plan.workers)
            one = best_variant(run.plan, trial)
            if trial.config.derived or one is None or not keeps(one.costs, run.plan.budget):
                continue
            best = max(best, sign * one.validation[objective])
            xs.append(round(spent / 60, 4))
            ys.append(sign * best)
            texts.append(f"<b>{plain(run.name)}</b>, trial {trial.number}<br>best so far {figure_text(sign * best)}")
        if xs:
            colour = COLOURS[place % len(COLOURS)]
            data.append(
                {"type": "scatter", "mode": "lines+markers", "name": plain(run.name), "x": xs, "y": ys}
                | {"line": {"color": colour, "width": 2, "shape": "hv"}, "hovertext": texts, "hoverinfo": "text"}
                | {"marker": {"size": 6, "symbol": SYMBOLS[place % len(SYMBOLS)]}}
            )
    if not data:
        return None
    title = f"best {quality_title(runs[0].plan)} so far"
    layout = frame(440, xaxis={"title": "minutes of trials"}, yaxis={"title": title})
    caption = "The best variant so far that fits its run's budget, after the time that trials took; preparing, export and test not counted."
    return Figure("progress", "How the searches went", caption, data, layout)
