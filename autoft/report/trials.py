"""The trials of a run, as tables: how each ended, what was predicted of it, what came nearest to the budget."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from autoft.plans.budgets import violations
from autoft.plans.plan import Plan
from autoft.quantities import format_bytes, format_seconds
from autoft.report.decisions import forecasts
from autoft.report.views import TableView, cost_text, counted, figure_text, short_model
from autoft.rundir import RunRecord, TrialConfig, TrialResult, TrialState, VariantResult
from autoft.selection import best_variant

__all__ = [
    "DERIVED",
    "KINDS",
    "STATES",
    "miss_table",
    "param_text",
    "prediction_table",
    "trial_table",
    "varied",
]

STATES: dict[TrialState, str] = {
    "complete": "complete",
    "pruned": "stopped early",
    "infeasible": "infeasible",
    "failed": "failed",
}
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

PRINTED_COLUMNS = 11
"""With more, paper has none of the parameters of a trial."""

MISSES = 8
"""Nearest misses that are shown."""


def trial_table(record: RunRecord, plan: Plan) -> TableView:
    """Return all trials with their best variant, and the parameters that differ between them."""
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
                *(param_text(config.params.get(name)) for name in differing),
                trial.reason or "",
            )
        )
    titles = ("trial", "from", "end", "model", "pipeline", f"validation {plan.objective}", "compression", "took")
    columns = (*titles, *differing, "why")
    # A column without an entry says nothing.
    keep = [i for i in range(len(columns)) if any(row[i] not in {"", "–"} for row in rows)]
    parameters = frozenset(place for place, i in enumerate(keep) if len(titles) <= i < len(columns) - 1)
    return TableView(
        "Trials",
        tuple(columns[i] for i in keep),
        tuple(tuple(row[i] for i in keep) for row in rows),
        left=frozenset(place for place, i in enumerate(keep) if i in {1, 2, 3, 4, 6, len(columns) - 1}),
        marked=marked,
        unprinted=parameters if len(keep) > PRINTED_COLUMNS else frozenset(),
        note=(f"Of each trial the best variant{' that fits, if one does' if plan.budget else ''}. ")
        + "All figures of all trials and compressions are in trials.csv.",
    )


def prediction_table(record: RunRecord) -> TableView | None:
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
        f"{name}: {statistics.median(some):.0%} off at the median, {max(some):.0%} at most ({len(some)} trials)"
        if len(some) > 1
        else f"{name}: {some[0]:.0%} off (1 trial)"
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


def miss_table(record: RunRecord, plan: Plan) -> TableView | None:
    """Return what came nearest to the budget, and what did not fit into memory; None where all fits."""
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


def varied(configs: Sequence[TrialConfig]) -> list[str]:
    """Return the names of the parameters that are not the same in all of these."""
    names = dict.fromkeys(name for config in configs for name in config.params)
    return [name for name in names if len({str(config.params.get(name)) for config in configs}) > 1]


def param_text(value: object) -> str:
    """Return a parameter's value as it is shown, a dash where a trial has no such parameter."""
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
