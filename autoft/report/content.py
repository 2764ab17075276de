"""What a report says, in words and tables, before it becomes HTML or Markdown."""

from __future__ import annotations

import functools
import itertools
import json
import math
import shlex
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import TypeAdapter

from autoft.contracts import Detail, Matrix
from autoft.errors import RunFolderError
from autoft.plans.budgets import violations
from autoft.plans.plan import Plan, plan_of
from autoft.quantities import format_bytes, format_seconds
from autoft.report.answer import ABOUT, caveats, meters, quality, system_names
from autoft.report.decisions import failures, forecasts, rung_table
from autoft.report.summary import budget_rows
from autoft.report.views import (
    IntervalView,
    Meter,
    TableView,
    column_title,
    cost_text,
    counted,
    figure_text,
    interval_text,
    interval_view,
    metric_title,
    quality_title,
    short_model,
)
from autoft.rundir import AugmentedValue, RunRecord, TrialConfig, TrialResult, VariantResult
from autoft.selection import best_variant, candidates, knees

__all__ = [
    "KINDS",
    "STATES",
    "Content",
    "Step",
    "make_content",
    "miss_rows",
    "steps",
    "usage",
    "varied",
]

STATES = {"complete": "complete", "pruned": "stopped early", "infeasible": "infeasible", "failed": "failed"}
KINDS = {
    "default": "default",
    "known": "known to do well",
    "published": "published settings",
    "search": "search",
    "added": "added by hand",
    "seed": "further seed",
    "fold": "further fold",
    "soup": "averaged weights",
    "ensemble": "averaged predictions",
    "compress": "made smaller, trained again",
}
DERIVED = {
    "seed": "further seed",
    "fold": "further fold",
    "soup": "average",
    "ensemble": "average",
    "compress": "recovery",
}
"""How trials that follow from others are counted."""

COMPARED = ("model_size_bytes", "latency_p50_ms", "inference_memory_bytes")
"""Costs that the steps of a chain are compared by."""

MISSES = 8
"""Nearest misses that are shown."""

SAMPLES = 10
"""Changed training rows that are shown."""

EXCERPT = 240
"""Characters of each that are shown at most."""

OFFERED = 20
"""Candidates of the selection that are shown."""


SLICES = 12
"""Parts of the test rows that are shown of each kind, the worst ones."""

CLASSES = 20
"""Labels of the training rows that are shown with their counts."""

PACKAGES = {"python", "autoft"}
"""What the environment names beside packages that are installed by their name."""


@dataclass(frozen=True)
class Step:
    """What the chosen model was at one point between its training and its files."""

    name: str
    validation: Mapping[str, float]
    costs: Mapping[str, float]


@dataclass
class Content:
    """A report, ready to be rendered."""

    title: str
    task: str
    headline: str
    outcome: str
    notice: str = ""
    quality: IntervalView | None = None
    meters: list[Meter] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    """What the figures do not say, the weightiest first."""
    systems: TableView | None = None
    metrics: TableView | None = None
    budget: TableView | None = None
    reason: str = ""
    steps: TableView | None = None
    candidates: TableView | None = None
    trials: TableView | None = None
    predictions: TableView | None = None
    augmentation: TableView | None = None
    samples: TableView | None = None
    pictures: list[dict[str, str]] = field(default_factory=list)
    """Changed pictures: ``{"augment", "before", "after"}``, the latter two as data URIs."""
    misses: TableView | None = None
    details: list[dict[str, Any]] = field(default_factory=list)
    slices: list[IntervalView] = field(default_factory=list)
    rungs: TableView | None = None
    failures: TableView | None = None
    refused: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    data: list[tuple[str, str]] = field(default_factory=list)
    data_notes: list[str] = field(default_factory=list)
    """Which rows repeat or stand in two splits, and were left out for it."""
    classes: TableView | None = None
    settings: list[tuple[str, str]] = field(default_factory=list)
    environment: list[tuple[str, str]] = field(default_factory=list)
    recipe: str = ""
    repeat: str = ""
    load: str = ""
    predict: str = ""


def make_content(record: RunRecord) -> Content:
    """Return what the report of a record says; parts that the run has not reached are left out."""
    plan = plan_of(record)
    counts = record.counts()
    outcome = ", ".join(f"{count} {STATES[state]}" for state, count in counts.items() if count) or "none yet"
    derived = Counter(DERIVED[trial.config.kind] for trial in record.trials if trial.config.derived)
    parts = [f"{counted(sum(counts.values()), 'trial')} ({outcome})"]
    parts += [counted(count, noun) for noun, count in derived.items()]
    judged = sum(variant.state != "pruned" for trial in record.trials for variant in trial.variants)
    content = Content(
        title=plan.name,
        task=plan.task,
        headline=_headline(record, plan),
        notice=plan.notice,
        outcome=", ".join([*parts, f"{counted(judged, 'variant')} judged"]),
        trials=_trials(record, plan) if record.trials else None,
        predictions=_predictions(record),
        refused=[(note.what, note.reason.removeprefix(f"{note.what}: ")) for note in plan.refusals]
        + [(f"{pipeline} with {short_model(model)}", reason) for model, pipeline, reason in plan.illegal]
        + [(f"{chain} with {pipeline}", reason) for pipeline, chain, reason in plan.unsuited],
        rungs=rung_table(record, plan),
        failures=failures(record),
        # That a baseline does as well weighs more than what else there is to say.
        caveats=[*(record.final.notes if record.final else []), *caveats(record, plan)],
        warnings=[warning for warning in plan.warnings if not _told_with_the_data(warning)],
        data=_data(plan),
        data_notes=_data_notes(plan),
        classes=_classes(plan),
        settings=_settings(plan),
        environment=_environment(plan),
        recipe=yaml.safe_dump(record.recipe, sort_keys=False, allow_unicode=True),
        repeat=_repeat(plan),
        budget=_budget(record, plan),
    )
    if record.augmented:
        content.augmentation = _augmentation(record, plan)
        content.samples, content.pictures = _samples(record, plan)
    if record.final is not None:
        content.outcome += f", {format_seconds(record.final.seconds)} in all"
        content.quality, content.meters = quality(record, plan), meters(record, plan)
        content.systems = _systems(record, plan)
        content.metrics = _metrics(record, plan)
        content.details = [_detail(item, record.path / "final.json") for item in record.final.details]
        content.slices = _slices(record, plan)
        python, content.predict = usage(record, record.path.name)
        content.load = "\n".join(["import autoft", *python])
    if record.selection is not None:
        content.reason = record.selection.reason
        content.steps = _steps(record, plan)
        content.candidates = _candidates(record, plan)
    elif all(candidate.violations for candidate in candidates(plan, record.trials)):
        content.misses = _misses(record, plan)
    return content


def usage(record: RunRecord, folder: str) -> tuple[list[str], str]:
    """Return how the model of a finished run is used, in Python after ``import autoft`` and on the command line.

    The row to try it with is one such as the task knows.

    Args:
        record: with a final model.
        folder: the run folder as it is called from where the commands are run.
    """
    example: Any = record.final.example if record.final else "..."
    python = [f"model = autoft.load({json.dumps(f'{folder}/best')})", f"model.predict({[example]!r})"]
    if isinstance(example, str):
        return python, f"autoft predict {shlex.quote(folder)} {shlex.quote(example)}"
    row = shlex.quote(json.dumps(example, ensure_ascii=False))
    return python, f"echo {row} | autoft predict {shlex.quote(folder)}"


def miss_rows(record: RunRecord, plan: Plan) -> list[tuple[TrialResult, VariantResult, dict[str, float]]]:
    """Return the variants nearest to the budget, the nearest first, one for each model and compression."""
    found: dict[tuple[str, str], tuple[TrialResult, VariantResult, dict[str, float]]] = {}
    for trial in record.trials:
        for variant in trial.variants:
            over = violations(variant.costs, plan.budget)
            key = (trial.config.model, variant.name)
            if over and (key not in found or sum(over.values()) < sum(found[key][2].values())):
                found[key] = (trial, variant, over)
    return sorted(found.values(), key=lambda entry: sum(entry[2].values()))[:MISSES]


def _headline(record: RunRecord, plan: Plan) -> str:
    final, selection = record.final, record.selection
    if selection is None:
        limits = ", ".join(f"{limit.key} {limit.given}" for limit in plan.budget)
        judged = [variant for trial in record.trials for variant in trial.variants if variant.state != "pruned"]
        if judged and all(violations(variant.costs, plan.budget) for variant in judged):
            return f"Nothing that was tried fits the budget ({limits})."
        if record.trials and all(trial.state == "infeasible" for trial in record.trials):
            return f"Nothing that was tried fits {f'the budget ({limits})' if limits else 'into memory'}."
        return f"No model has been chosen yet. {_so_far(record, plan)}"
    chosen = record.trial(selection.trial)
    what = f"{short_model(chosen.config.model)}, {chosen.config.pipeline}, {selection.variant}"
    if final is None or "best" not in final.test:
        return f"Trial {selection.trial} ({what}) was chosen; it has not been tested yet."
    best = final.test["best"][plan.objective]
    if not math.isfinite(best.value):
        return f"{what}: test {plan.objective} is not defined on these {counted(best.n, 'row')}."
    text = f"{what}: {quality_title(plan, 'test')} {best.value:.4f} on {counted(best.n, 'row')}"
    if math.isfinite(best.low) and math.isfinite(best.high):
        text += f" (95 % interval {best.low:.3f} to {best.high:.3f})"
    default = final.test.get("default", {}).get(plan.objective)
    if (selection.trial, selection.variant) == (0, "none"):
        return text + ". It is the plain default fine-tune."
    if default is None or "default" not in final.costs:
        return text + "."
    text += f", against {figure_text(default.value)} of the plain default fine-tune"
    cut_short = next((trial.cut_short for trial in record.trials if trial.number == 0), None)
    if cut_short is not None:
        text += " (which ended after {:.3g} of its {:g} epochs)".format(*cut_short)
    words = _against_default(final.costs["best"], final.costs["default"])
    return text + (f", at {' and '.join(words)}." if words else ".")


def _against_default(best: Mapping[str, float], default: Mapping[str, float]) -> list[str]:
    """Return in words how size and latency compare with the default's, what is worse too; nothing of what is about the same."""
    words = []
    ratio = _ratio(default, best, "model_size_bytes")
    if ratio is not None and not 1 / 1.05 < ratio < 1.05:
        smaller = f"1/{ratio:.1f}" if ratio >= 2 else f"{1 / ratio:.0%}"
        words.append(f"{smaller} of its size" if ratio > 1 else f"{1 / ratio:.1f} times its size")
    ratio = _ratio(default, best, "latency_p50_ms")
    if ratio is not None and not 1 / ABOUT < ratio < ABOUT:
        words.append(f"{ratio:.1f} times as fast" if ratio > 1 else f"{1 / ratio:.1f} times its latency")
    return words


def _so_far(record: RunRecord, plan: Plan) -> str:
    """Return what a run has come to that has not chosen a model."""
    if not record.trials:
        return "No trial is done."
    if all(trial.state == "failed" for trial in record.trials):
        (reason, times), *_ = Counter(trial.reason or "no reason is known" for trial in record.trials).most_common(1)
        return f"{counted(len(record.trials), 'trial')} failed, {times} of them with: {reason}"
    found = [c for c in candidates(plan, record.trials) if not c.violations]
    if not found:
        return "Nothing that fits has been found."
    sign = 1 if plan.higher_is_better else -1
    best = max(found, key=lambda c: sign * c.objective)
    config = record.trial(best.trial).config
    fits = ", which fits the budget" if plan.budget else ""
    return (
        f"Best so far: trial {best.trial} ({short_model(config.model)}, {config.pipeline}, {best.variant}), validation "
        f"{plan.objective} {figure_text(best.objective)}{fits}."
    )


def _ratio(one: Mapping[str, float], other: Mapping[str, float], column: str) -> float | None:
    if column not in one or not other.get(column):
        return None
    return one[column] / other[column]


def _systems(record: RunRecord, plan: Plan) -> TableView:
    final = record.final
    assert final is not None
    columns = [c for c in _cost_columns(record) if any(c in costs for costs in final.costs.values())]
    rows = []
    for system, name in system_names(record).items():
        if system not in final.test and system not in final.costs:
            continue
        costs = final.costs.get(system, {})
        validation = final.validation.get(system, {}).get(plan.objective)
        rows.append(
            (
                name,
                interval_text(final.test.get(system, {}).get(plan.objective)),
                figure_text(validation),
                *(cost_text(column, costs.get(column)) for column in columns),
            )
        )
    heads = ("model", f"test {plan.objective} (95 % interval)", f"validation {plan.objective}")
    n = final.test["best"][plan.objective].n
    size, length = int(plan.request["batch_size"] or 1), final.costs["best"].get("request_length")
    # A picture has none of its own: one token is what a caption begins with.
    tokens = f", about {round(length)} tokens" if length and length > 1 else ""
    note = (
        f"Test: {counted(n, 'row')}, read once, after the selection; bootstrap over rows. Latency: one request of "
        f"{counted(size, 'row')}{tokens}, from the raw row to the prediction, {counted(plan.threads, 'thread')}, in a fresh "
        "process, from the exported files."
    )
    titles = (*heads, *(column_title(column) for column in columns))
    return TableView("Chosen model, default and baselines", titles, tuple(rows), marked=0, note=note)


def _metrics(record: RunRecord, plan: Plan) -> TableView:
    assert record.final is not None
    test = record.final.test
    systems = [(key, name) for key, name in system_names(record).items() if key in test]
    rows = tuple(
        (metric_title(plan, metric), *(interval_text(test[key].get(metric)) for key, _ in systems))
        for metric in test["best"]
    )
    return TableView("Every metric on the test split", ("metric", *(name for _, name in systems)), rows)


def _budget(record: RunRecord, plan: Plan) -> TableView:
    rows = []
    for key, row in budget_rows(record, plan).items():
        met = {True: "met", False: "NOT met", None: "–"}[row["met"]]
        if row["unit"] == "s" and "column" not in row:
            # A multiple of the default's time is known once that is trained.
            limit = format_seconds(row["limit"]) if math.isfinite(row["limit"]) else plan.time_text
            measured = row["measured"] and format_seconds(row["measured"])
        elif "column" in row:
            limit = cost_text(row["column"], row["limit"])
            measured = row["measured"] and cost_text(row["column"], row["measured"])
        else:
            limit, measured = str(row["limit"]), str(row["measured"])
        rows.append((key, limit, measured or "–", met))
    return TableView("Budget", ("limit on", "limit", "measured", ""), tuple(rows), left=frozenset({0, 3}))


def _candidates(record: RunRecord, plan: Plan) -> TableView:
    selection = record.selection
    assert selection is not None
    sign = 1 if plan.higher_is_better else -1
    shown = sorted((c for c in selection.candidates if c.front), key=lambda c: -sign * c.objective)
    chosen = next(c for c in selection.candidates if (c.trial, c.variant) == (selection.trial, selection.variant))
    shown = shown[:OFFERED]
    if chosen not in shown:
        shown.insert(0, chosen)
    columns = [c for c in _cost_columns(record) if any(c in one.costs for one in shown)]
    remarks = front_remarks(record, plan)
    rows = []
    for candidate in shown:
        config = record.trial(candidate.trial).config
        repeats = str(len(candidate.folds if plan.folds > 1 else candidate.seeds))
        rows.append(
            (
                str(candidate.trial),
                f"{short_model(config.model)}, {config.pipeline}",
                candidate.variant,
                figure_text(candidate.objective),
                repeats,
                *(cost_text(column, candidate.costs.get(column)) for column in columns),
                ", ".join(remarks.get((candidate.trial, candidate.variant), [])),
            )
        )
    feasible = sum(not c.violations for c in selection.candidates)
    note = (
        f"The front among {feasible} feasible of {counted(len(selection.candidates), 'variant')}: none of the others is at "
        "least as good in quality, size and latency, and better in one. The command autoft pick exports another of "
        "them without training; at a knee, of size or of latency, what is paid for more quality begins to be much."
    )
    titles = (
        "trial",
        "model",
        "compression",
        f"validation {plan.objective}",
        "folds" if plan.folds > 1 else "seeds",
        *map(column_title, columns),
        "",
    )
    left = frozenset({1, 2, len(titles) - 1})
    return TableView("The front", titles, tuple(rows), left=left, marked=shown.index(chosen), note=note)


def front_remarks(record: RunRecord, plan: Plan) -> dict[tuple[int, str], list[str]]:
    """Return what there is to say of points of the front: the chosen one, the knees, those whose files are deleted."""
    selection = record.selection
    if selection is None:
        return {}
    front = [c for c in selection.candidates if c.front]
    found: dict[tuple[int, str], list[str]] = {(selection.trial, selection.variant): ["chosen"]}
    for trial, variant in dict.fromkeys((knee.trial, knee.variant) for knee in knees(plan, front).values()):
        found.setdefault((trial, variant), []).append("knee")
    kept = {(trial.number, v.name) for trial in record.trials for v in trial.variants if v.folder}
    for candidate in front:
        if (candidate.trial, candidate.variant) not in kept:
            found.setdefault((candidate.trial, candidate.variant), []).append("files deleted")
    return found


def steps(record: RunRecord, plan: Plan) -> list[Step]:
    """Return what the chosen model was as trained and after each step of its chain; empty where that is not known.

    It is empty, too, where the chain is one step and what it began from was not measured.
    """
    selection = record.selection
    if selection is None:
        return []
    trial = record.trial(selection.trial)
    chosen = next(variant for variant in trial.variants if variant.name == selection.variant)
    start = record.trial(trial.config.members[0]) if trial.config.kind == "compress" else trial
    plain = next((variant for variant in start.variants if variant.name == "none" and variant.validation), None)
    chain = next((variant.chain for variant in plan.every_variant if variant.name == chosen.name), [])
    names = [step.label for step in chain]
    known = [Step(step.name, step.validation, step.costs) for step in chosen.steps]
    if not known:
        # Chains that do not train are cheap to make, so that their beginnings may be variants too.
        before = {variant.name: variant for variant in trial.variants if variant.validation}
        starts = [("+".join(names[:count]), names[count - 1]) for count in range(1, len(names))]
        known = [Step(step, before[name].validation, before[name].costs) for name, step in starts if name in before]
    if not names or len(known) < len(names) - 1 or (len(names) == 1 and plain is None):
        return []
    known.append(Step(names[-1], chosen.validation, chosen.costs))
    if plain is not None:
        known.insert(0, Step("as trained", plain.validation, plain.costs))
    return known


def _steps(record: RunRecord, plan: Plan) -> TableView | None:
    """Return what each step of the chosen chain did; None where it is one step, or its steps are not known."""
    known = steps(record, plan)
    if not known:
        return None
    columns = [c for c in COMPARED if any(c in step.costs for step in known)]
    rows = []
    for place, step in enumerate(known):
        cells = [figure_text(step.validation[plan.objective])]
        for column in columns:
            ratio = _ratio(known[place - 1].costs, step.costs, column) if place else None
            cells.append(cost_text(column, step.costs.get(column)) + (f" (÷{ratio:.2f})" if ratio is not None else ""))
        rows.append((step.name, *cells))
    titles = ("step", f"validation {plan.objective}", *map(column_title, columns))
    note = "What the model was after each step, in brackets how many times smaller or faster than before it."
    return TableView("From the trained model to this one", titles, tuple(rows), marked=len(rows) - 1, note=note)


def _trials(record: RunRecord, plan: Plan) -> TableView:
    rows: list[tuple[str, ...]] = []
    marked = None
    differing = varied([trial.config for trial in record.trials])
    for trial in record.trials:
        config = trial.config
        best = best_variant(plan, trial)
        value = best.validation[plan.objective] if best else trial.validation.get(plan.objective)
        if record.selection and record.selection.trial == trial.number:
            marked = len(rows)
        rows.append(
            (
                str(trial.number),
                KINDS[config.kind] + (f" of {config.parent}" if config.parent is not None else ""),
                STATES[trial.state],
                short_model(config.model),
                config.pipeline,
                figure_text(value),
                best.name if best else "–",
                format_seconds(trial.seconds["total"]) if "total" in trial.seconds else "–",
                *(_param(config.params.get(name)) for name in differing),
                trial.reason or "",
            )
        )
    titles = ("trial", "from", "end", "model", "pipeline", f"validation {plan.objective}", "compression", "took")
    columns = (*titles, *differing, "why")
    # A column without an entry says nothing.
    keep = [i for i in range(len(columns)) if any(row[i] not in {"", "–"} for row in rows)]
    return TableView(
        "Trials",
        tuple(columns[i] for i in keep),
        tuple(tuple(row[i] for i in keep) for row in rows),
        left=frozenset(place for place, i in enumerate(keep) if i in {1, 2, 3, 4, 6, len(columns) - 1}),
        marked=marked,
        note=(f"Of each trial the best variant{' that fits, if one does' if plan.budget else ''}. ")
        + "All figures of all trials and compressions are in trials.csv.",
    )


def _predictions(record: RunRecord) -> TableView | None:
    """Return what was thought of each trial before, beside what was measured."""
    rows = []
    for trial in record.trials:
        seconds, memory = (trial.predicted.get(name) for name in ("seconds", "train_memory_bytes"))
        took, taken = trial.seconds.get("total"), trial.train_memory_bytes
        if seconds is None and memory is None:
            continue
        rows.append(
            (
                str(trial.number),
                STATES[trial.state],
                format_seconds(seconds) if seconds is not None else "–",
                format_seconds(took) if took is not None else "–",
                format_bytes(memory) if memory is not None else "–",
                format_bytes(taken) if taken else "–",
            )
        )
    if not rows:
        return None
    found = forecasts(record)
    errors = {
        "time": [abs(thought / took - 1) for _, thought, took in found.seconds],
        "training memory": [abs(needed / taken - 1) for _, needed, taken in found.memory],
    }
    said = [
        f"{name}: {statistics.median(some):.0%} off at the median, {max(some):.0%} at most ({counted(len(some), 'trial')})"
        for name, some in errors.items()
        if some
    ]
    sizes = [abs(before / measured - 1) for _, _, before, measured in found.size]
    if sizes:
        said.append(f"size, measured before training: {max(sizes):.2%} off at most ({counted(len(sizes), 'model')})")
    columns = ("trial", "end", "time predicted", "took", "training memory predicted", "measured")
    keep = [i for i in range(len(columns)) if i < 4 or any(row[4] != "–" for row in rows)]
    return TableView(
        "Predicted and measured",
        tuple(columns[i] for i in keep),
        tuple(tuple(row[i] for i in keep) for row in rows),
        left=frozenset({1}),
        note="; ".join(said) + "." if said else "",
    )


def _augmentation(record: RunRecord, plan: Plan) -> TableView:
    """Return what the best trial with each augmenter scored, and by how much that is above the best one without."""
    scores: dict[str, list[tuple[float, int]]] = {}
    for trial in record.trials:
        value = trial.validation.get(plan.objective, math.nan)
        if not trial.config.derived and math.isfinite(value):
            scores.setdefault(str(trial.config.params.get("augment", "none")), []).append((value, trial.number))
    sign = 1 if plan.higher_is_better else -1
    best = {name: max(found, key=lambda one: sign * one[0]) for name, found in scores.items()}
    order = sorted(best, key=lambda name: (name != "none", -sign * best[name][0]))
    plain = best["none"][0] if "none" in best else None
    rows = [
        (
            name,
            str(len(scores[name])),
            figure_text(best[name][0]),
            str(best[name][1]),
            "–" if plain is None or name == "none" else f"{best[name][0] - plain:+.4f}",
        )
        for name in order
    ]
    titles = ("augmentation", "trials", f"best validation {plan.objective}", "of trial", "against none")
    direction = "" if plan.higher_is_better else "Lower is better. "
    note = (
        f"{direction}The best of few trials on one validation split, before compression; other parameters differ between "
        "them too, so small differences are chance."
    )
    return TableView("What augmentation bought", titles, tuple(rows), note=note)


def _samples(record: RunRecord, plan: Plan) -> tuple[TableView | None, list[dict[str, str]]]:
    """Return some training rows before and after, in turn of each augmenter tried; the chosen one comes first."""
    sign = 1 if plan.higher_is_better else -1
    chosen = record.selection.trial if record.selection else None

    def rank(trial: TrialResult) -> tuple[bool, float]:
        value = trial.validation.get(plan.objective, math.nan)
        return trial.number != chosen, -sign * value if math.isfinite(value) else math.inf

    by_name: dict[str, list[tuple[str, AugmentedValue]]] = {}
    for trial in sorted((trial for trial in record.trials if trial.number in record.augmented), key=rank):
        kept = record.augmented[trial.number]
        by_name.setdefault(kept.augment, [(kept.augment, one) for one in kept.samples])
    turns = itertools.zip_longest(*by_name.values())
    shown = [one for turn in turns for one in turn if one is not None][:SAMPLES]
    # In the order of the augmenters, which reads better than in turns.
    shown.sort(key=lambda one: list(by_name).index(one[0]))
    pictures = [{"augment": name, **one.model_dump()} for name, one in shown if one.before.startswith("data:image/")]
    rows = [
        (name, one.role, *_excerpts(one.before, one.after))
        for name, one in shown
        if not one.before.startswith("data:image/")
    ]
    titles = ("augmentation", "column", "before", "after")
    view = TableView("Training rows, before and after", titles, tuple(rows), left=frozenset(range(4)))
    return view if rows else None, pictures


def _excerpts(before: str, after: str) -> tuple[str, str]:
    """Return the stretch of two texts where they begin to differ."""
    same = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    start = 0 if max(len(before), len(after)) <= EXCERPT else max(0, same - EXCERPT // 4)
    cut = [text[start : start + EXCERPT] for text in (before, after)]
    ends = ["…" if len(text) > start + EXCERPT else "" for text in (before, after)]
    first, second = (("…" if start else "") + text + end for text, end in zip(cut, ends, strict=True))
    return first, second


def varied(configs: Sequence[TrialConfig]) -> list[str]:
    """Return the names of the parameters that are not the same in all of these."""
    names = dict.fromkeys(name for config in configs for name in config.params)
    return [name for name in names if len({str(config.params.get(name)) for config in configs}) > 1]


def _param(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _misses(record: RunRecord, plan: Plan) -> TableView | None:
    near = miss_rows(record, plan)
    rows: list[tuple[str, ...]] = []
    for trial, variant, over in near:
        exceeded = "; ".join(
            f"{limit.key} {cost_text(limit.column, variant.costs[limit.column])} for {limit.given} "
            f"({1 + over[limit.key]:.2f} times the limit)"
            for limit in plan.budget
            if limit.key in over
        )
        rows.append(
            (
                short_model(trial.config.model),
                variant.name,
                exceeded,
                figure_text(variant.validation.get(plan.objective)),
            )
        )
    for trial in record.trials:
        # Nothing was compressed where a training did not fit into memory; the reason says by how much, as far as it is known.
        row = (short_model(trial.config.model), f"{trial.config.pipeline}, not trained", trial.reason or "", "–")
        if not trial.variants and {"memory", "train_memory"} & set(trial.violations) and row not in rows:
            rows.append(row)
    if not rows:
        return None
    rows = rows[:MISSES]
    titles = ("model", "compression", "over the budget", f"validation {plan.objective}")
    return TableView("Nearest misses", titles, tuple(rows), left=frozenset({0, 1, 2}))


@functools.cache
def _kinds() -> dict[str, TypeAdapter[Detail]]:
    return {kind.__name__.lower(): TypeAdapter(kind) for kind in get_args(Detail)}


def _detail(item: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a part of a task's own section, ready to be shown: cells as texts, shades of a matrix, pieces of a text.

    Raises:
        RunFolderError: it is no such part; ``path`` is the file that it comes from.
    """
    kind = _kinds().get(str(item.get("kind")))
    try:
        if kind is None:
            raise ValueError(f"{item.get('kind')!r} is no kind of {', '.join(_kinds())}")
        part = kind.validate_python({name: value for name, value in item.items() if name != "kind"})
        columns = part.labels if isinstance(part, Matrix) else getattr(part, "columns", None)
        rows = part.values if isinstance(part, Matrix) else getattr(part, "rows", ())
        if columns is not None and any(len(row) != len(columns) for row in rows):
            raise ValueError(f"{part.title}: a row has not as many cells as there are columns")
        if isinstance(part, Matrix) and len(rows) != len(part.labels):
            raise ValueError(f"{part.title}: is no square")
    except ValueError as error:
        raise RunFolderError(
            f"{path}: is damaged (in details: {' '.join(str(error).split()[:40])}); delete this file to have that part done again"
        ) from error
    if item["kind"] == "markedtext":
        return {**item, "rows": [(heading, _pieces(text, marks)) for heading, text, marks in item["rows"]]}
    if item["kind"] in {"pictures", "chart"}:
        return dict(item)
    if item["kind"] == "matrix":
        shaded = []
        for values in item["values"]:
            total = sum(values) or 1.0
            shaded.append([(f"{value:g}", round(value / total, 3)) for value in values])
        return {**item, "rows": list(zip(item["labels"], shaded, strict=True))}
    numeric = {
        i for i in range(len(item["columns"])) if all(isinstance(row[i], int | float | None) for row in item["rows"])
    }
    rows = [tuple(_detail_cell(cell) for cell in row) for row in item["rows"]]
    left = frozenset(range(len(item["columns"]))) - numeric
    return {**item, "view": TableView(item["title"], tuple(item["columns"]), tuple(rows), left=left)}


def _pieces(text: str, marks: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return a text cut at its marks: ``{"text", "label", "verdict"}`` each, the latter two empty between marks.

    Of marks that overlap, both are shown: the text that they share stands in each.
    """
    pieces, at = [], 0
    for mark in sorted(marks, key=lambda mark: (mark["start"], mark["end"])):
        if mark["start"] > at:
            pieces.append({"text": text[at : mark["start"]], "label": "", "verdict": ""})
        pieces.append({"text": text[mark["start"] : mark["end"]], "label": mark["label"], "verdict": mark["verdict"]})
        at = max(at, mark["end"])
    if at < len(text):
        pieces.append({"text": text[at:], "label": "", "verdict": ""})
    return pieces


def _detail_cell(cell: object) -> str:
    if isinstance(cell, float):
        return figure_text(cell)
    if isinstance(cell, list | tuple):
        return ", ".join(str(entry) for entry in cell)
    return "–" if cell is None else str(cell)


def _cost_columns(record: RunRecord) -> list[str]:
    first = ["model_size_bytes", "latency_p50_ms", "latency_p95_ms", "inference_memory_bytes", "train_memory_bytes"]
    seen = {column for trial in record.trials for variant in trial.variants for column in variant.costs}
    if record.final:
        seen |= {column for costs in record.final.costs.values() for column in costs}
    further = sorted(seen - {*first, "request_length"}, key=column_title)
    return [column for column in [*first, *further] if column in seen]


def _data(plan: Plan) -> list[tuple[str, str]]:
    if not plan.data:
        return []
    sizes = plan.data["sizes"]
    rows = [(split, f"{sizes[split]} rows") for split in ("train", "validation", "test")]
    rows += [(f"column {role}", str(column)) for role, column in plan.data.get("columns", {}).items()]
    return [*rows, ("fingerprint", str(plan.data.get("fingerprint", "")))]


def _told_with_the_data(warning: str) -> bool:
    """Say whether a warning is told with the data alone: of rows that were left out the figures are right all the same."""
    return warning.startswith("data.") and warning.endswith(": left out")


def _data_notes(plan: Plan) -> list[str]:
    """Return which rows were left out because they repeat or stand in two splits; those that were kept are warned of above."""
    if not plan.data:
        return []
    notes = [warning for warning in plan.warnings if _told_with_the_data(warning)]
    if not any("repeat the inputs" in warning or "are also in" in warning for warning in plan.warnings):
        notes.append(
            "No training row repeats the inputs of another one exactly, and none is in two splits; near repeats are not "
            "looked for."
        )
    return notes


def _classes(plan: Plan) -> TableView | None:
    """Return how many training rows have each label, where the task counts them."""
    counts = plan.facts.get("counts")
    if not isinstance(counts, Mapping) or not counts or not all(isinstance(n, int) for n in counts.values()):
        return None
    order = sorted(counts.items(), key=lambda entry: -entry[1])
    total = sum(counts.values()) or 1
    rows = [(str(name), str(count), f"{count / total:.1%}") for name, count in order[:CLASSES]]
    if len(order) > CLASSES:
        rest = sum(count for _, count in order[CLASSES:])
        rows.append((f"{len(order) - CLASSES} rarer ones", str(rest), f"{rest / total:.1%}"))
    return TableView("Labels of the training rows", ("label", "rows", "share"), tuple(rows))


def _slices(record: RunRecord, plan: Plan) -> list[IntervalView]:
    """Return the test figures of parts of the rows, one view for each way to part them."""
    assert record.final is not None
    whole = record.final.test.get("best", {})
    found = []
    for by, metric in dict.fromkeys((part.by, part.metric) for part in record.final.slices):
        figures = [(part.name, part.figure) for part in record.final.slices if (part.by, part.metric) == (by, metric)]
        note = "Small parts have wide intervals, and of many parts some differ by chance."
        if by != "length":
            sign = 1 if plan.metrics.get(metric, {}).get("higher_is_better", True) else -1
            figures.sort(key=lambda entry: sign * entry[1].value if math.isfinite(entry[1].value) else math.inf)
            if len(figures) > SLICES:
                note = f"The worst {SLICES} of {len(figures)}. {note}"
        figures = figures[:SLICES]
        marked = 0 if metric in whole else None
        if metric in whole:
            figures.insert(0, ("all test rows", whole[metric]))
        view = interval_view(f"Test {metric_title(plan, metric)} by {by}", by, figures, marked=marked, note=note)
        if view is not None:
            found.append(view)
    return found


def _repeat(plan: Plan) -> str:
    """Return the commands that make the same environment and run the same search."""
    packages = [
        f"{name}=={version.split('+')[0]}"
        for name, version in plan.environment.items()
        if name not in PACKAGES and version
    ]
    python = plan.environment.get("python", "")
    lines = [f"# Python {python}" if python else "", f"pip install autoft=={plan.autoft}"]
    lines[-1] += "".join(f" {package}" for package in packages)
    return "\n".join(filter(None, [*lines, "autoft search recipe.yaml"]))


def _settings(plan: Plan) -> list[tuple[str, str]]:
    objectives = [
        f"{name}, {'higher' if plan.metrics.get(name, {}).get('higher_is_better') else 'lower'} is better"
        for name in plan.objectives
    ]
    return [
        ("objectives" if len(objectives) > 1 else "objective", "; ".join(objectives)),
        ("effort", plan.effort),
        ("pipelines", ", ".join(pipeline.name for pipeline in plan.pipelines)),
        ("compression", ", ".join(variant.name for variant in plan.variants)),
        ("where it costs too much", ", ".join(variant.name for variant in plan.rescues) or "nothing else"),
        ("sampler", plan.sampler),
        ("early stopping", plan.early_stopping),
        ("seed", str(plan.seed)),
        *([("folds", str(plan.folds))] if plan.folds > 1 else []),
        ("tolerance", f"{plan.tolerance:g}"),
    ]


def _environment(plan: Plan) -> list[tuple[str, str]]:
    hardware = plan.hardware
    rows = [("device", plan.device), ("processor", str(hardware.get("cpu", ""))), ("cores", str(hardware.get("cores")))]
    if hardware.get("memory_bytes"):
        rows.append(("memory", format_bytes(hardware["memory_bytes"])))
    rows += [("workers", f"{plan.workers} with {counted(plan.threads, 'thread')} each")]
    return [*rows, *((name, version) for name, version in plan.environment.items())]
