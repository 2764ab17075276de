"""The first screen of a report: what was left, how good it is, what it costs, and what to keep in mind."""

from __future__ import annotations

import math
from collections.abc import Mapping

from autoft.plans.plan import Plan
from autoft.quantities import format_seconds
from autoft.report.summary import budget_rows
from autoft.report.views import IntervalView, Meter, column_title, cost_text, counted, figure_text, interval_view
from autoft.rundir import RunRecord

__all__ = ["ABOUT", "caveats", "meters", "quality", "system_names"]

SHOWN = ("model_size_bytes", "latency_p50_ms", "inference_memory_bytes")
"""Costs that every report begins with."""

FEW_ROWS = 300
"""Test rows below which the width of the interval is spelled out."""

FEW_TRIALS = 5
"""Finished trials below which a search has hardly begun."""

ABOUT = 1.1
"""Within this factor two costs count as the same."""


def system_names(record: RunRecord) -> dict[str, str]:
    """Return how the report calls what was scored on the test split, the chosen model first."""
    names = {
        "best": "chosen model",
        "default": "default fine-tune",
        "default-onnx": "default in ONNX Runtime, fp32",
    }
    return {**names, **{name: name for name in record.baselines}}


def quality(record: RunRecord, plan: Plan) -> IntervalView | None:
    """Return the test figures of the chosen model, the default and the baselines with their intervals on one scale."""
    if record.final is None:
        return None
    figures = [
        (name, record.final.test[system][plan.objective])
        for system, name in system_names(record).items()
        if plan.objective in record.final.test.get(system, {})
    ]
    sign = 1 if plan.higher_is_better else -1
    # The chosen model and the default as they are, then the baselines from the best on; a figure may be undefined.
    fixed = [entry for entry in figures if entry[0] not in record.baselines]
    rest = [entry for entry in figures if entry[0] in record.baselines]
    rest.sort(key=lambda entry: -sign * entry[1].value if math.isfinite(entry[1].value) else math.inf)
    figures = fixed + rest
    # A majority class near 0 would leave no room to tell the others apart.
    serious = [entry for entry in rest if not record.baselines[entry[0]].trivial]
    figures = [*fixed, *serious, *(entry for entry in rest if entry not in serious)]
    direction = "higher" if plan.higher_is_better else "lower"
    n = record.final.test["best"][plan.objective].n
    note = f"95 % bootstrap intervals over {counted(n, 'test row')}; {direction} is better."
    return interval_view(
        f"Test {plan.objective}", "model", figures, marked=0, note=note, scaled=len(fixed) + len(serious)
    )


def meters(record: RunRecord, plan: Plan) -> list[Meter]:
    """Return what the chosen model costs, beside the default and the limits, and the time that the run took."""
    assert record.final is not None
    costs, theirs = record.final.costs["best"], record.final.costs.get("default", {})
    limits = {row["column"]: row for row in budget_rows(record, plan).values() if "column" in row}
    found = [
        _meter(column, costs[column], theirs.get(column), limits.get(column))
        for column in dict.fromkeys([*SHOWN, *limits])
        if costs.get(column) is not None
    ]
    seconds, limit = record.final.seconds, plan.time_limit
    if seconds:
        known = math.isfinite(limit)
        longest = max(seconds, limit) if known else seconds
        found.append(
            Meter(
                "time of the whole run",
                format_seconds(seconds),
                _percent(seconds, longest),
                limit=format_seconds(limit) if known else "",
                limit_at=_percent(limit, longest) if known else None,
                met=seconds <= limit if known else None,
            )
        )
    return found


def _meter(column: str, mine: float, theirs: float | None, limit: Mapping[str, object] | None) -> Meter:
    most = float(str(limit["limit"])) if limit else None
    longest = max(value for value in (mine, theirs, most) if value is not None)
    compared, better = "", None
    if theirs and mine:
        ratio = theirs / mine
        words = {"bytes": ("smaller", "larger"), "ms": ("faster", "slower")}.get(
            column.rsplit("_", 1)[-1], ("less", "more")
        )
        if 1 / ABOUT < ratio < ABOUT:
            compared = f"about the default's {cost_text(column, theirs)}"
        else:
            better = ratio > 1
            factor = ratio if better else 1 / ratio
            compared = f"{factor:.1f} times {words[0 if better else 1]} than the default's {cost_text(column, theirs)}"
    return Meter(
        column_title(column),
        cost_text(column, mine),
        _percent(mine, longest),
        default=cost_text(column, theirs) if theirs is not None else "",
        default_length=_percent(theirs, longest) if theirs is not None else None,
        compared=compared,
        better=better,
        limit=cost_text(column, most) if most is not None else "",
        limit_at=_percent(most, longest) if most is not None else None,
        met=mine <= most if most is not None else None,
    )


def _percent(value: float, longest: float) -> float:
    return round(100 * value / longest, 2) if longest > 0 else 0.0


def caveats(record: RunRecord, plan: Plan) -> list[str]:
    """Return what a reader may take the figures for and should not, one sentence each, the weightiest first."""
    final, selection = record.final, record.selection
    if final is None or selection is None or "best" not in final.test:
        return []
    said = []
    best = final.test["best"][plan.objective]
    bounded = math.isfinite(best.low) and math.isfinite(best.high)
    for key, row in budget_rows(record, plan).items():
        if row["met"] is False and "column" in row:
            over = row["measured"] / row["limit"] - 1
            said.append(f"The limit on {key} is not met: the exported files are {over:.1%} over it.")
    default = final.test.get("default", {}).get(plan.objective) if bounded else None
    if default is not None and not math.isfinite(default.value):
        default = None
    itself = selection.trial == 0 and selection.variant == "none"
    if default is not None and not itself and best.low <= default.value <= best.high:
        said.append(
            f"The default's {figure_text(default.value)} lies within the chosen model's interval: on {best.n} rows a "
            f"difference of {best.value - default.value:+.4f} may be chance."
        )
    elif default is not None and not itself and (best.value - default.value > 0) != plan.higher_is_better:
        theirs = final.costs.get("default", {})
        cheaper = any(final.costs["best"].get(c, math.inf) < theirs.get(c, 0) / ABOUT for c in SHOWN)
        paid = ": that is what its smaller cost was paid with" if cheaper else ""
        said.append(
            f"The chosen model is worse than the default by {figure_text(abs(best.value - default.value))}{paid}."
        )
    validated = final.validation.get("best", {}).get(plan.objective)
    shown = [figure_text(value) for value in (best.low, validated, best.high)] if validated is not None else []
    if validated is not None and bounded and not best.low <= validated <= best.high and len(set(shown)) > 1:
        flattered = (validated > best.value) == plan.higher_is_better
        why = (
            "rows that helped to choose a model are no measure of it"
            if flattered
            else "its rows seem to be harder ones"
        )
        said.append(
            f"Validation said {figure_text(validated)}, {'better' if flattered else 'worse'} than the whole interval of the "
            f"test: {why}."
        )
    if best.n < FEW_ROWS:
        # Without a width all resamples score alike, as where nothing is right; that is no certainty.
        wide = (
            f": the interval is {figure_text(best.high - best.low, 3)} wide" if bounded and best.high > best.low else ""
        )
        said.append(f"Tested on {counted(best.n, 'row')} only{wide}.")
    chosen = next(
        (c for c in selection.candidates if (c.trial, c.variant) == (selection.trial, selection.variant)), None
    )
    if chosen is not None and len(chosen.seeds) < 2 and len(chosen.folds) < 2 and selection.trial != 0:
        said.append("It was chosen by one training run; another seed may score differently.")
    finished = record.counts()["complete"]
    if finished < FEW_TRIALS:
        begun = sum(trial.config.limited for trial in record.trials)
        more = "trials" if plan.trials_limit is not None and begun >= plan.trials_limit else "time"
        said.append(f"{counted(finished, 'trial')} came to an end: with more {more} the search may find better.")
    if not plan.budget:
        said.append("The recipe limits time or trials only: size, latency and memory are free.")
    if plan.target is not None:
        said.append(plan.target.text)
    return said
