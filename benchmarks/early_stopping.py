# python benchmarks/early_stopping.py --runs runs/portfolio
"""What stopping trials early brings in a search of ten to forty trainings: rules replayed on recorded curves.

Each run folder of `portfolio.py` holds trainings of one data set and model that ran to their end. A replay takes them in a
random order, the default first, and lets a rule see their validations one after the other, until as much time is used as so
many whole trials take on average; a trial that ran to its end also takes a quarter of a default training, to be compressed
and measured. Told is the best validation among the trials that ran to their end, as a share of the best of all, and how
many trials were begun; the mean over orders and runs, with the standard error over runs.

Rules: `none`; `halving`, as autoft has it (successive halving at quarters of each training, the default and trials within half
a standard error of the best are never stopped); `strict halving` without that tolerance; `median` and `hyperband` of Optuna, at
quarters with it; `by epochs`, halving at a half, one and a half and four and a half epochs, where the best third goes on and
who is within a standard error of the best; `paused`, asynchronous halving at a ninth, a third and the whole of each training,
where a trial that falls behind waits and goes on when it is among the best third after all (Li et al. 2020, arXiv:1810.05934,
algorithm 2).

The second table says how well a part of a training tells the order of the whole ones: Spearman's rank correlation of the
score after so many epochs with the final one, and of the same configurations trained on fewer rows (`--subset`, a folder of
runs recorded with smaller `--rows`), with the share of the whole time that it takes. The mean over runs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from autoft.plans.plan import Plan, plan_of
from autoft.rundir import TrialResult, read_run
from autoft.study import Study

FURTHER = 0.25
"""Of a default training: what compressing and measuring takes."""

REDUCTION = 3

Outcome = tuple[float, int]
"""The best score among the trials that ran to their end, and how many were begun."""


@dataclass(frozen=True)
class Curve:
    """A recorded training: its validations, what each was reached after, and the trial."""

    scores: tuple[float, ...]
    seconds: tuple[float, ...]
    trial: TrialResult

    @property
    def best(self) -> float:
        """Of the checkpoint that is kept."""
        return max(self.scores)


def curves_of(folder: Path) -> tuple[Plan, list[Curve]]:
    """Return the plan of a run and its trainings, the default first."""
    record = read_run(folder)
    plan = plan_of(record)
    found = [
        Curve(
            tuple(point.validation[plan.objective] for point in trial.curve),
            tuple(point.seconds for point in trial.curve),
            trial,
        )
        for trial in record.trials
        if trial.state == "complete"
    ]
    return plan, found


class Strict(Study):
    """The same, and what is within chance of the best is stopped too."""

    def _standard_error(self, value: float) -> float:
        return 0.0


def stopped_by(rule: str, kind: type[Study]) -> Callable[[Plan, Sequence[Curve], float], Outcome]:
    """Return a replay under one of the rules that stop a trial for good."""

    def replay(plan: Plan, order: Sequence[Curve], budget: float) -> Outcome:
        study = kind(plan.model_copy(update={"early_stopping": rule}))
        further = FURTHER * order[0].seconds[-1]
        used, best = 0.0, -math.inf
        for count, curve in enumerate(order, start=1):
            config, state = curve.trial.config, "complete"
            for place, score in enumerate(curve.scores):
                if used + curve.seconds[place] > budget:
                    return best, count
                behind = study.behind(config, curve.trial.curve[place].epoch, score)
                if behind and place + 1 < len(curve.scores):
                    state = "pruned"
                    used += curve.seconds[place]
                    break
            study._end_watch(config.number, curve.best if state == "complete" else None, study._pruned)
            if state == "complete":
                used += curve.seconds[-1] + further
                best = max(best, curve.best)
        return best, len(order)

    return replay


def by_epochs(plan: Plan, order: Sequence[Curve], budget: float) -> Outcome:
    """Replay halving that compares trials after as many epochs, whatever their length."""
    further = FURTHER * order[0].seconds[-1]
    rows = int(plan.data["sizes"]["validation"])
    rungs: dict[int, list[float]] = {1: [], 3: [], 9: []}
    used, best = 0.0, -math.inf
    for count, curve in enumerate(order, start=1):
        stopped = False
        for place, score in enumerate(curve.scores):
            if used + curve.seconds[place] > budget:
                return best, count
            rung = round(2 * curve.trial.curve[place].epoch)
            if rung not in rungs:
                continue
            ranked = sorted([*rungs[rung], score], reverse=True)
            rungs[rung].append(score)
            behind = score < ranked[max(0, len(ranked) // REDUCTION - 1)]
            behind &= score < ranked[0] - math.sqrt(max(0.0, score * (1 - score)) / rows)
            if behind and count > 1 and place + 1 < len(curve.scores):
                used += curve.seconds[place]
                stopped = True
                break
        if not stopped:
            used += curve.seconds[-1] + further
            best = max(best, curve.best)
    return best, len(order)


def paused(plan: Plan, order: Sequence[Curve], budget: float) -> Outcome:
    """Replay asynchronous halving with trials that wait and go on."""
    further = FURTHER * order[0].seconds[-1]
    marks = [
        [max(0, math.ceil(len(curve.scores) * share) - 1) for share in (1 / REDUCTION**2, 1 / REDUCTION, 1)]
        for curve in order
    ]
    rungs: list[dict[int, float]] = [{}, {}, {}]
    used, best, begun = 0.0, -math.inf, 0
    while True:
        number, rung = begun, 0
        for level in (1, 0):
            # The default, number 0, is never left waiting.
            ranked = sorted(rungs[level], key=lambda one: (one != 0, -rungs[level][one]))
            ready = [one for one in ranked[: max(1, len(ranked) // REDUCTION)] if one not in rungs[level + 1]]
            if ready:
                number, rung = ready[0], level + 1
                break
        if number >= len(order):
            return best, begun
        curve = order[number]
        place = marks[number][rung]
        before = curve.seconds[marks[number][rung - 1]] if rung else 0.0
        used += curve.seconds[place] - before + (further if rung == 2 else 0.0)
        if used > budget:
            return best, begun
        begun = max(begun, number + 1)
        rungs[rung][number] = max(curve.scores[: place + 1])
        if rung == 2:
            best = max(best, curve.best)


RULES: dict[str, Callable[[Plan, Sequence[Curve], float], Outcome]] = {
    "none": stopped_by("none", Study),
    "halving": stopped_by("halving", Study),
    "strict halving": stopped_by("halving", Strict),
    "median": stopped_by("median", Study),
    "hyperband": stopped_by("hyperband", Study),
    "by epochs": by_epochs,
    "paused": paused,
}


def key_of(curve: Curve) -> str:
    """Return what tells a configuration from others."""
    config = curve.trial.config
    return json.dumps([config.pipeline, config.params], sort_keys=True)


def correlations(runs: dict[str, list[Curve]], subset: dict[str, list[Curve]]) -> list[tuple[str, float, float, int]]:
    """Return what is compared with whole trainings, the mean rank correlation, the mean share of time, and the runs."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, curves in runs.items():
        whole = [curve.best for curve in curves]
        parts = {f"after {epochs:g} epochs": [epochs] * len(curves) for epochs in (0.5, 1.0, 1.5, 2.0)}
        for quarters in (1, 2, 3):
            own = [float(curve.trial.config.params["train.epochs"] or 1) for curve in curves]
            parts[f"after {quarters} quarters of each training"] = [quarters / 4 * epochs for epochs in own]
        for what, ends in parts.items():
            places = [
                next((i for i, one in enumerate(curve.trial.curve) if one.epoch >= end - 0.01), len(curve.scores) - 1)
                for curve, end in zip(curves, ends, strict=True)
            ]
            early = [max(curve.scores[: place + 1]) for curve, place in zip(curves, places, strict=True)]
            share = [curve.seconds[place] / curve.seconds[-1] for curve, place in zip(curves, places, strict=True)]
            entry = float(spearmanr(early, whole).statistic), statistics.fmean(share)
            found.setdefault(what, []).append(entry)
        smaller = {key_of(curve): curve for curve in subset.get(name, [])}
        pairs = [(smaller[key_of(curve)], curve) for curve in curves if key_of(curve) in smaller]
        if len(pairs) > 2:
            rank = float(spearmanr([a.best for a, _ in pairs], [b.best for _, b in pairs]).statistic)
            share = [a.seconds[-1] / b.seconds[-1] for a, b in pairs]
            found.setdefault("on fewer rows", []).append((rank, statistics.fmean(share)))
    return [
        (what, statistics.fmean(one[0] for one in entries), statistics.fmean(one[1] for one in entries), len(entries))
        for what, entries in found.items()
    ]


def recorded(folder: Path) -> dict[str, tuple[Plan, list[Curve]]]:
    """Return the runs of a folder by name."""
    found = {one.name: curves_of(one) for one in sorted(folder.iterdir()) if (one / "plan.json").is_file()}
    if not found:
        sys.exit(f"{folder} holds no run; record some by benchmarks/portfolio.py")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/portfolio"), help="folder of recorded runs")
    parser.add_argument("--trials", type=int, nargs="+", default=[5, 10, 20, 40], help="budgets, in mean whole trials")
    parser.add_argument("--subset", type=Path, help="folder of the same runs over fewer rows")
    parser.add_argument("--orders", type=int, default=50)
    given = parser.parse_args()
    runs = recorded(given.runs)
    counts = ", ".join(f"{name} ({len(curves)})" for name, (_, curves) in runs.items())
    print(f"{given.orders} orders of {counts}\n")
    print(f"| rule | {' | '.join(f'{count} trials: best | begun' for count in given.trials)} |")
    print("| --- " * (1 + 2 * len(given.trials)) + "|")
    for rule, replay in RULES.items():
        cells = []
        for count in given.trials:
            shares, begun = [], []
            for plan, curves in runs.values():
                default, *others = curves
                mean = statistics.fmean(one.seconds[-1] for one in curves) + FURTHER * default.seconds[-1]
                top = max(one.best for one in curves)
                rng = np.random.default_rng(0)
                found = [
                    replay(plan, [default, *(others[i] for i in rng.permutation(len(others)))], count * mean)
                    for _ in range(given.orders)
                ]
                shares.append(statistics.fmean(best / top for best, _ in found))
                begun.append(statistics.fmean(many for _, many in found))
            error = statistics.stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else math.nan
            cells += [f"{statistics.fmean(shares):.4f} ± {error:.4f}", f"{statistics.fmean(begun):.1f}"]
        print(f"| {rule} | {' | '.join(cells)} |", flush=True)
    subset = {name: curves for name, (_, curves) in recorded(given.subset).items()} if given.subset else {}
    print("\n| part | rank correlation | share of the time | runs |\n| --- | --- | --- | --- |")
    for what, rank, share, count in correlations({name: curves for name, (_, curves) in runs.items()}, subset):
        print(f"| {what} | {rank:.2f} | {share:.2f} | {count} |")


if __name__ == "__main__":
    main()
