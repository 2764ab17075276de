# python benchmarks/portfolio.py --data banking77=path/to/banking77 ... --write autoft/portfolio.json
"""Which settings serve many data sets: records runs, finds a portfolio in them, and says what it is worth.

For each data set and model `autoft search` runs so many trials with a random sampler and without early stopping: the same
configurations for all, so that what one would have scored on another set is looked up and not guessed. The portfolio is
found greedily, one setting after the other, each the one that raises the mean over sets of the best score so far the most,
as a share of the best of all trials (Salinas and Erickson 2024, arXiv:2311.02971, section 5).

What it is worth is told for each data set by the portfolio that the other sets make: how many trials it takes to 99 % of the
best of all, with it after the default, and without it, where the rest come in random orders. `--write` writes the portfolio
of all sets for each model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from first_trial import MODELS, classification_sets

from autoft.api import search
from autoft.evaluation import start_measuring
from autoft.hardware import Hardware
from autoft.plans.plan import Plan, plan_of
from autoft.processes import silence_libraries
from autoft.rundir import RunRecord, read_run
from autoft.space import Categorical

NEAR = 0.99
"""Of the best of all trials: good enough."""

Scores = dict[str, float]
"""Of one data set and model: the best validation of each configuration, the default first, in the order of the trials."""


def record(data: Mapping[str, Any], model: str, folder: Path, given: argparse.Namespace) -> RunRecord:
    """Run the trials of a set that are not there yet, and return them."""
    recipe = {
        "task": "text-classification",
        "model": model,
        "data": data,
        "budget": {"time": "240h", "trials": given.trials},
        "compress": ["none"],
        "search": {"sampler": "random", "early_stopping": "none", "finalist_seeds": 0, "portfolio": False},
        "space": {"train.max_length": 128},
        "executor": {"threads": given.threads},
    }
    return read_run(search(recipe, run=folder).path)


def scores_of(run: RunRecord) -> Scores:
    """Return the best validation of each configuration of a run, by what tells it from others."""
    objective = plan_of(run).objective
    found: Scores = {}
    for trial in run.trials:
        if trial.state == "complete" and not trial.config.derived:
            setting = {"pipeline": trial.config.pipeline, "params": trial.config.params}
            key = json.dumps(setting, sort_keys=True)
            found.setdefault(key, max(point.validation[objective] for point in trial.curve))
    return found


def portfolio(sets: Sequence[Scores], most: int) -> list[str]:
    """Return settings that serve the sets, the one that brings most beside the default and those before it first."""
    shared = [key for key in sets[0] if all(key in scores for scores in sets)]
    best = [max(scores.values()) for scores in sets]
    reached = [next(iter(scores.values())) for scores in sets]
    chosen: list[str] = []
    while len(chosen) < most:

        def worth(key: str, reached: Sequence[float] = reached) -> float:
            parts = zip(sets, reached, best, strict=True)
            return statistics.fmean(max(so_far, scores[key]) / top for scores, so_far, top in parts)

        key = max(shared, key=worth)
        better = [max(so_far, scores[key]) for scores, so_far in zip(sets, reached, strict=True)]
        if better == reached:
            break
        reached = better
        chosen.append(key)
    return chosen


def searched(key: str, plan: Plan) -> dict[str, Any]:
    """Return a setting with the parameters that were searched, their numbers to three places."""
    setting = json.loads(key)
    params = {}
    for name, value in setting["params"].items():
        domain = plan.domain(name)
        if not isinstance(domain, Categorical) or len(domain.choices) > 1:
            params[name] = float(f"{value:.3g}") if isinstance(value, float) else value
    return {"pipeline": setting["pipeline"], "params": params}


def trials_to_near(scores: Scores, early: Sequence[str], orders: int = 200) -> float:
    """Return the mean number of trials until one is near the best: the default, ``early``, and the rest at random."""
    default, *rest = scores
    first = [default, *(key for key in early if key in scores and key != default)]
    others = np.array([scores[key] for key in rest if key not in first])
    enough = NEAR * max(scores.values())
    for count, key in enumerate(first, start=1):
        if scores[key] >= enough:
            return float(count)
    rng = np.random.default_rng(0)
    counts = [int(np.argmax(rng.permutation(others) >= enough)) + 1 for _ in range(orders)]
    return len(first) + statistics.fmean(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=[], metavar="NAME=FOLDER", help="data sets beside movie reviews")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these sets; default: all")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--rows", type=int, default=1000, help="training rows at most")
    parser.add_argument("--most", type=int, default=5, help="settings of a portfolio")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/portfolio"), help="where run folders go")
    parser.add_argument("--write", type=Path, help="file of the portfolio, where it is to be written")
    given = parser.parse_args()
    silence_libraries()
    start_measuring()
    print(
        f"{given.trials} trials, at most {given.rows} training rows, {given.threads} threads, {Hardware.probe().cpu}\n\n"
        "| model | data | default | best | trials to 99 %, in random order | default, then the others' portfolio "
        f"|\n{'| --- ' * 6}|"
    )
    entries = []
    for model in given.models:
        found: dict[str, Scores] = {}
        for name, data in classification_sets(given).items():
            run = record(data, model, given.runs / f"{name}-{Path(model).parent.name}", given)
            found[name], plan = scores_of(run), plan_of(run)
            print(f"{name}, {model}: {len(found[name])} configurations", file=sys.stderr, flush=True)
        for name, scores in found.items():
            early = portfolio([other for key, other in found.items() if key != name], given.most)
            print(
                f"| {model} | {name} | {next(iter(scores.values())):.4f} | {max(scores.values()):.4f} "
                f"| {trials_to_near(scores, []):.1f} | {trials_to_near(scores, early):.1f} |",
                flush=True,
            )
        entries.append(
            {
                "task": "text-classification",
                "model_bytes": plan.models[0].size_bytes,
                "rows": given.rows,
                "settings": [searched(key, plan) for key in portfolio(list(found.values()), given.most)],
            }
        )
    if given.write:
        given.write.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
