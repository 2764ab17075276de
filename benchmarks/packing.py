"""What a training step of a causal model takes with padded, length-grouped and packed rows, on the rows of a search.

Each way reads the same rows in batches of the same number of rows, forward and backward, in turns; the figures are
those of the whole rows, and the ratios are to batches drawn at random.

    python benchmarks/packing.py runs/docstrings --rows 96
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoft.artifact import load
from autoft.data.batches import grouped_batches
from autoft.data.prepared import open_data
from autoft.plans.plan import Plan
from autoft.processes import silence_libraries
from autoft.rundir import RunDir, read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished search for generation")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    silence_libraries()
    run = RunDir(arguments.run)
    plan = Plan.model_validate(read_json(run.plan))
    torch.set_num_threads(plan.threads)
    loaded = load(run.best, device=plan.device)
    task, model, context = loaded.task, loaded.model.train(), loaded.context
    features = task.encode(open_data(run.data).train[: arguments.rows], context)
    lengths = np.asarray([task.length(feature) for feature in features])
    size = arguments.batch_size
    order = np.random.default_rng(plan.seed).permutation(len(features))
    drawn = [order[start : start + size] for start in range(0, len(order), size)]
    grouped = list(grouped_batches(lengths, size, np.random.default_rng(plan.seed)))
    packing = replace(context, options={**context.options, "packing": True})
    ways = {"drawn at random": (drawn, context), "length-grouped": (grouped, context), "packed": (drawn, packing)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    read = {}
    for repeat in range(arguments.repeats + 1):
        for name, (batches, given) in ways.items():
            begin = time.monotonic()
            read[name] = sum(_step(task, model, [features[i] for i in batch], given) for batch in batches)
            if repeat:
                seconds[name].append(time.monotonic() - begin)
    base = statistics.median(seconds["drawn at random"])
    print(
        f"{len(features)} rows, {int(lengths.sum())} tokens, batches of {size}, {plan.threads} threads, {plan.device}"
    )
    for name, times in seconds.items():
        took = statistics.median(times)
        padding = 1 - lengths.sum() / read[name]
        print(f"{name:16} {padding:6.1%} padding  {took:7.2f} s  {took / base:.2f} of the time")


def _step(task: Any, model: Any, features: list[Any], context: Any) -> int:
    batch = {name: value.to(context.device) for name, value in task.collate(features, context).items()}
    task.loss(model, batch, context).backward()
    model.zero_grad(set_to_none=True)
    if context.device == "cuda":
        torch.cuda.synchronize()
    return int(batch["input_ids"].numel())


if __name__ == "__main__":
    main()
