# python benchmarks/soak.py --trials 200
"""Many trials in one run: does anything grow, or slow down?

A search of BERT-tiny on a few movie reviews, with several pipelines, early stopping and int8. After each trial the
resident memory of the command and of its workers, their open files, the files and bytes of the run folder, and the
seconds since the last trial are noted, and how many of these were not the trial's own: what a trial takes depends on
what the sampler chose, what is beside it should not. Printed are medians by tenths of the run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from fronts import MODEL, reviews

from autoft.api import search
from autoft.evaluation import start_measuring
from autoft.hardware import Hardware
from autoft.listener import Listener
from autoft.processes import silence_libraries
from autoft.rundir import TrialResult

Noted = dict[str, float]


class Watch(Listener):
    """Notes after each trial what is taken."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.last, self.noted = folder, time.monotonic(), list[Noted]()

    def trial_done(self, result: TrialResult, standing: Any) -> None:
        """Look at the processes and the folder."""
        now = time.monotonic()
        command = psutil.Process()
        workers = [
            one for one in command.children(recursive=True) if "autoft.executors.worker" in " ".join(one.cmdline())
        ]
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        self.noted.append(
            {
                "command MB": command.memory_info().rss / 1e6,
                "worker MB": sum(one.memory_info().rss for one in workers) / 1e6,
                "open files": command.num_fds() + sum(one.num_fds() for one in workers),
                "files in the run": len(files),
                "run MB": sum(path.stat().st_size for path in files) / 1e6,
                "seconds a trial": now - self.last,
                "seconds of training": result.seconds.get("train", 0.0),
                "seconds beside the trial": now - self.last - result.seconds.get("total", 0.0),
            }
        )
        self.last = now
        if len(self.noted) % 20 == 0:
            print(f"{len(self.noted)} trials: {self.noted[-1]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    silence_libraries()
    start_measuring()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        watch = Watch(folder)
        recipe = {
            "task": "text-classification",
            "model": MODEL,
            "data": {**reviews(100), "limit": 300, "validation_size": 100, "test_size": 100},
            "budget": {"time": "24h", "trials": given.trials},
            "compress": ["none", "onnx-int8"],
            "pipelines": ["full", "lora", "head-only", "top-layers"],
            "augment": ["none"],
            "space": {"train.epochs": 1},
            "executor": {"threads": given.threads},
            "search": {"finalist_seeds": 0},
        }
        search(recipe, run=folder, listener=watch)
    size = max(1, len(watch.noted) // 10)
    tenths = [watch.noted[start : start + size] for start in range(0, size * 10, size)]
    print(f"\n{len(watch.noted)} trials, {given.threads} threads, {Hardware.probe().cpu}; medians of {size}\n")
    names = [*watch.noted[0]]
    print(f"| trials | {' | '.join(names)} |\n{'| --- ' * (len(names) + 1)}|")
    for number, tenth in enumerate(tenths):
        cells = (f"{statistics.median(one[key] for one in tenth):.4g}" for key in names)
        print(f"| {number * size + 1}–{number * size + len(tenth)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
