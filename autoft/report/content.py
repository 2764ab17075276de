"""What a report says, in words and tables, before it becomes HTML or Markdown."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from autoft.plans.budgets import violations
from autoft.plans.plan import Plan, plan_of
from autoft.quantities import format_bytes, format_seconds
from autoft.report.answer import ABOUT, caveats, meters, quality
from autoft.report.augmented import augmentation_table, changed_rows
from autoft.report.chosen import (
    budget_table,
    front_table,
    metrics_table,
    ratio_of,
    slice_views,
    step_table,
    systems_table,
)
from autoft.report.decisions import failures, rung_table
from autoft.report.details import shown_part
from autoft.report.trials import DERIVED, STATES, miss_table, prediction_table, trial_table
from autoft.report.views import IntervalView, Meter, TableView, counted, figure_text, quality_title, short_model
from autoft.rundir import RunRecord
from autoft.selection import candidates

__all__ = ["Content", "make_content", "usage"]

CLASSES = 20
"""Labels of the training rows that are shown with their counts."""


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
        trials=trial_table(record, plan) if record.trials else None,
        predictions=prediction_table(record),
        refused=_refused(plan),
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
        budget=budget_table(record, plan),
    )
    if record.augmented:
        content.augmentation = augmentation_table(record, plan)
        content.samples, content.pictures = changed_rows(record, plan)
    if record.final is not None:
        content.outcome += f", {format_seconds(record.final.seconds)} in all"
        content.quality, content.meters = quality(record, plan), meters(record, plan)
        content.systems = systems_table(record, plan)
        content.metrics = metrics_table(record, plan)
        content.details = [shown_part(item, record.path / "final.json") for item in record.final.details]
        content.slices = slice_views(record, plan)
        python, content.predict = usage(record, record.path.name)
        content.load = "\n".join(["import autoft", *python])
    if record.selection is not None:
        content.reason = record.selection.reason
        content.steps = step_table(record, plan)
        content.candidates = front_table(record, plan)
    elif all(candidate.violations for candidate in candidates(plan, record.trials)):
        content.misses = miss_table(record, plan)
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
    text = f"{what}: {quality_title(plan, 'test')} {figure_text(best.value)} on {counted(best.n, 'row')}"
    if math.isfinite(best.low) and math.isfinite(best.high):
        text += f" (95 % interval {figure_text(best.low, 3)} to {figure_text(best.high, 3)})"
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
    ratio = ratio_of(default, best, "model_size_bytes")
    if ratio is not None and not 1 / 1.05 < ratio < 1.05:
        smaller = f"1/{ratio:.1f}" if ratio >= 2 else f"{1 / ratio:.0%}"
        words.append(f"{smaller} of its size" if ratio > 1 else f"{1 / ratio:.1f} times its size")
    ratio = ratio_of(default, best, "latency_p50_ms")
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


def _data(plan: Plan) -> list[tuple[str, str]]:
    if not plan.data:
        return []
    sizes, whole = plan.data["sizes"], plan.data.get("whole", {})
    rows = [
        (
            split,
            f"{sizes[split]} rows"
            + (f", drawn at random of {whole[split]} to keep budget.time" if split in whole else ""),
        )
        for split in ("train", "validation", "test")
    ]
    rows += [(f"column {role}", str(column)) for role, column in plan.data.get("columns", {}).items()]
    known = ((name, plan.data.get(name)) for name in ("source", "license", "fingerprint"))
    return [*rows, *((name.replace("license", "licence"), str(value)) for name, value in known if value)]


def _refused(plan: Plan) -> list[tuple[str, str]]:
    """Return what was not used, and why; what was left out for the same reason together."""
    pairs = [(note.what, note.reason.removeprefix(f"{note.what}: ")) for note in plan.refusals]
    pairs += [(f"{pipeline} with {short_model(model)}", reason) for model, pipeline, reason in plan.illegal]
    pairs += [(f"{chain} with {pipeline}", reason) for pipeline, chain, reason in plan.unsuited]
    groups: dict[str, list[str]] = {}
    for what, reason in pairs:
        groups.setdefault(reason, []).append(what)
    return [(", ".join(names), reason) for reason, names in groups.items()]


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


def _repeat(plan: Plan) -> str:
    """Return the commands that make the same environment and run the same search.

    They are there to be copied into a shell: what is no version of a distribution, as a stranger's run may have, is left out.
    """
    given = {"autoft": plan.autoft, **plan.environment}
    known = {
        name: version.split("+")[0]
        for name, version in given.items()
        if re.fullmatch(r"\w[\w.-]*", name, re.ASCII) and re.fullmatch(r"\w[\w.!+-]*", version, re.ASCII)
    }
    python = known.get("python")
    packages = [f"{name}=={version}" for name, version in known.items() if name != "python"]
    lines = [f"# Python {python}" if python else "", f"pip install {' '.join(packages)}"]
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
        ("compression", ", ".join(variant.text for variant in plan.variants)),
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
    rows += [("workers", plan.threads_text)]
    if plan.processes > 1:
        rows.append(("processes of a training", plan.processes_text))
    return [*rows, *((name, version) for name, version in plan.environment.items())]
