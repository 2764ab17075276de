"""What was chosen, as tables: its figures beside the default and the baselines, its limits, its front, its steps, its slices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from autoft.plans.plan import Plan
from autoft.quantities import format_seconds
from autoft.report.answer import system_names
from autoft.report.summary import budget_rows
from autoft.report.views import (
    IntervalView,
    TableView,
    column_title,
    cost_text,
    counted,
    figure_text,
    interval_text,
    interval_view,
    metric_title,
    short_model,
)
from autoft.rundir import RunRecord
from autoft.selection import knees

__all__ = [
    "Step",
    "budget_table",
    "front_remarks",
    "front_table",
    "metrics_table",
    "ratio_of",
    "slice_views",
    "step_table",
    "steps",
    "systems_table",
]

COMPARED = ("model_size_bytes", "latency_p50_ms", "inference_memory_bytes")
"""Costs that the steps of a chain are compared by."""

OFFERED = 20
"""Candidates of the selection that are shown."""

SLICES = 12
"""Parts of the test rows that are shown of each kind, the worst ones."""


@dataclass(frozen=True)
class Step:
    """What the chosen model was at one point between its training and its files."""

    name: str
    validation: Mapping[str, float]
    costs: Mapping[str, float]


def systems_table(record: RunRecord, plan: Plan) -> TableView:
    """Return test, validation and costs of the chosen model, the default and the baselines of a finished run."""
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
        f"Test: {counted(n, 'row')}, read after the selection; bootstrap over rows. Latency: one request of "
        f"{counted(size, 'row')}{tokens}, from the raw row to the prediction, {counted(plan.threads, 'thread')}, in a fresh "
        "process, from the exported files."
    )
    titles = (*heads, *(column_title(column) for column in columns))
    return TableView("Chosen model, default and baselines", titles, tuple(rows), marked=0, note=note)


def metrics_table(record: RunRecord, plan: Plan) -> TableView:
    """Return all test metrics of the chosen model, the default and the baselines of a finished run."""
    assert record.final is not None
    test = record.final.test
    systems = [(key, name) for key, name in system_names(record).items() if key in test]
    rows = tuple(
        (metric_title(plan, metric), *(interval_text(test[key].get(metric)) for key, _ in systems))
        for metric in test["best"]
    )
    return TableView("Every metric on the test split", ("metric", *(name for _, name in systems)), rows)


def budget_table(record: RunRecord, plan: Plan) -> TableView:
    """Return each limit beside what was measured of it, and whether it is met."""
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
    return TableView("Budget", ("limit on", "limit", "measured", "verdict"), tuple(rows), left=frozenset({0, 3}))


def front_table(record: RunRecord, plan: Plan) -> TableView:
    """Return the front of a run that has chosen, the best first, and the chosen candidate where it is not on it."""
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
        "remarks",
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


def step_table(record: RunRecord, plan: Plan) -> TableView | None:
    """Return what each step of the chosen chain did; None where it is one step, or its steps are not known."""
    known = steps(record, plan)
    if not known:
        return None
    columns = [c for c in COMPARED if any(c in step.costs for step in known)]
    rows = []
    for place, step in enumerate(known):
        cells = [figure_text(step.validation[plan.objective])]
        for column in columns:
            ratio = ratio_of(known[place - 1].costs, step.costs, column) if place else None
            cells.append(cost_text(column, step.costs.get(column)) + (f" (÷{ratio:.2f})" if ratio is not None else ""))
        rows.append((step.name, *cells))
    titles = ("step", f"validation {plan.objective}", *map(column_title, columns))
    note = "What the model was after each step, in brackets how many times smaller or faster than before it."
    return TableView("From the trained model to this one", titles, tuple(rows), marked=len(rows) - 1, note=note)


def slice_views(record: RunRecord, plan: Plan) -> list[IntervalView]:
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


def _cost_columns(record: RunRecord) -> list[str]:
    first = ["model_size_bytes", "latency_p50_ms", "latency_p95_ms", "inference_memory_bytes", "train_memory_bytes"]
    seen = {column for trial in record.trials for variant in trial.variants for column in variant.costs}
    if record.final:
        seen |= {column for costs in record.final.costs.values() for column in costs}
    further = sorted(seen - {*first, "request_length"}, key=column_title)
    return [column for column in [*first, *further] if column in seen]


def ratio_of(one: Mapping[str, float], other: Mapping[str, float], column: str) -> float | None:
    """Return how many times as much of a cost the one takes as the other; None where it is not known of both."""
    if column not in one or not other.get(column):
        return None
    return one[column] / other[column]
