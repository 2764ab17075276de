"""What a search decided on its way: which trials were stopped and where, what failed, what was thought of costs before."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from autoft.plans.plan import Plan
from autoft.quantities import format_seconds
from autoft.report.views import TableView, counted, figure_text, short_model
from autoft.rundir import Figure, RunDir, RunRecord, TrialResult, read_typed

__all__ = ["QUARTERS", "Forecasts", "Rung", "failures", "forecasts", "rung_table", "rungs", "to_the_end"]

QUARTERS = 4
"""Trials are compared at each quarter of their own training (``docs/search.md``)."""

SHOWN_FAILURES = 30


@dataclass(frozen=True)
class Rung:
    """A trial where it was compared with others: its best validation so far, and whether it was stopped there."""

    trial: TrialResult
    share: float
    """Of its own training, from 0 to 1."""
    value: float
    stopped: bool


def rungs(record: RunRecord, plan: Plan) -> list[Rung]:
    """Return each trial at each quarter of its training that it has passed, and where it was stopped; by trial."""
    sign = 1 if plan.higher_is_better else -1
    found = []
    for trial in record.trials:
        epochs = float(trial.config.params.get("train.epochs") or 0)
        points = [p for p in trial.curve if math.isfinite(p.validation.get(plan.objective, math.nan))]
        if trial.config.derived or epochs <= 0 or not points:
            continue
        # One that has variants was trained to its end, and fell behind at a further fold.
        halted = trial.state == "pruned" and not trial.variants
        best, passed = -math.inf, 0
        for point in points:
            best = max(best, sign * point.validation[plan.objective])
            share = min(1.0, point.epoch / epochs)
            quarter = int(QUARTERS * share + 1e-6)
            stopped = halted and point is points[-1]
            if quarter > passed or stopped:
                found.append(Rung(trial, share, sign * best, stopped))
            passed = max(passed, quarter)
    return found


def rung_table(record: RunRecord, plan: Plan) -> TableView | None:
    """Return how many trials were compared in each quarter, and how many stopped; None where none was stopped."""
    found = rungs(record, plan)
    if not any(one.stopped for one in found):
        return None
    sign = 1 if plan.higher_is_better else -1
    rows = []
    for quarter in range(1, QUARTERS + 1):
        here = [one for one in found if math.ceil(QUARTERS * one.share - 1e-6) == quarter]
        if not here:
            continue
        on = [one.value for one in here if not one.stopped]
        rows.append(
            (
                f"{(quarter - 1) / QUARTERS:.0%} to {quarter / QUARTERS:.0%}",
                str(len({one.trial.number for one in here})),
                str(sum(one.stopped for one in here)),
                figure_text(sign * max(sign * one.value for one in here)),
                figure_text(sign * min(sign * value for value in on)) if on else "–",
            )
        )
    stopped = [one.trial for one in found if one.stopped]
    spent = sum(trial.seconds.get("total", 0.0) for trial in stopped)
    one = len(stopped) == 1
    note = f"{counted(len(stopped), 'trial')} stopped before the end took {format_seconds(spent)}{'' if one else ' together'}"
    thought = [trial.predicted["seconds"] for trial in stopped if trial.predicted.get("seconds")]
    if thought and len(thought) == len(stopped) and sum(thought) > spent:
        whole = "its end it" if one else "their end they"
        note += f"; to {whole} would have taken about {format_seconds(sum(thought))}, as predicted"
    columns = ("of its training", "trials compared", "stopped", f"best {plan.objective}", "worst that went on")
    return TableView("Where trials were stopped", columns, tuple(rows), note=note + ".")


def failures(record: RunRecord) -> TableView | None:
    """Return what failed or did not fit, with the reason, the same ones together."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for what, state, reason, number in _failed(record):
        groups.setdefault((what, state, reason), []).append(number)
    if not groups:
        return None
    words = {"failed": "failed", "infeasible": "did not fit"}
    order = sorted(groups.items(), key=lambda entry: (entry[0][1] != "failed", -len(entry[1]), entry[1][0]))
    rows = tuple(
        (what, words[state], _numbers(numbers), reason) for (what, state, reason), numbers in order[:SHOWN_FAILURES]
    )
    left = len(order) - len(rows)
    note = f"{counted(left, 'further reason')} in trials.csv." if left else ""
    titles = ("what", "end", "trials", "why")
    return TableView("What failed or did not fit", titles, rows, left=frozenset({0, 1, 2, 3}), note=note)


def _failed(record: RunRecord) -> Iterator[tuple[str, str, str, int]]:
    for trial in record.trials:
        what = f"{short_model(trial.config.model)}, {trial.config.pipeline}"
        if trial.state in {"failed", "infeasible"} and trial.reason:
            yield what, trial.state, trial.reason, trial.number
        for variant in trial.variants:
            if variant.state in {"failed", "infeasible"} and variant.reason:
                yield f"{what}, {variant.name}", variant.state, variant.reason, trial.number


def _numbers(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")


@dataclass(frozen=True)
class Forecasts:
    """Pairs of what was predicted and what was measured, each with its trial; times only of trials that came to their end."""

    seconds: tuple[tuple[TrialResult, float, float], ...]
    memory: tuple[tuple[TrialResult, float, float], ...]
    size: tuple[tuple[TrialResult, str, float, float], ...]
    """With the variant's name; measured before anything was trained. The weights take as many bytes after it; names and
    settings that stand beside them do not."""


def forecasts(record: RunRecord) -> Forecasts:
    """Return what the run predicted of its trials beside what was measured."""
    known = read_typed(RunDir(record.path).screening, dict[str, dict[str, dict[str, Figure]]], {})
    seconds, memory, size = [], [], []
    for trial in record.trials:
        took, taken = trial.seconds.get("total"), trial.train_memory_bytes
        thought, needed = (trial.predicted.get(name) for name in ("seconds", "train_memory_bytes"))
        # What was stopped before its end says nothing about how long it would have taken.
        if thought and took and trial.state == "complete" and to_the_end(trial):
            seconds.append((trial, thought, took))
        if needed and taken:
            memory.append((trial, needed, float(taken)))
        for variant in trial.variants:
            before = known.get(trial.config.model, {}).get(variant.name, {}).get("model_size_bytes")
            measured = variant.costs.get("model_size_bytes")
            if variant.state == "complete" and before and measured:
                size.append((trial, variant.name, before, measured))
    return Forecasts(tuple(seconds), tuple(memory), tuple(size))


def to_the_end(trial: TrialResult) -> bool:
    """Say whether a training took all of its epochs, and all that can come of it was made."""
    if any(variant.state == "pruned" for variant in trial.variants):
        return False
    epochs = trial.config.params.get("train.epochs")
    return not trial.curve or epochs is None or trial.curve[-1].epoch > float(epochs) - 0.01
