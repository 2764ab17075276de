"""What a training step of each adapter costs: processor seconds of one thread, so that other work does not count.

BERT-tiny, batches of 16 demo rows of text classification, default settings, float32, fused AdamW: milliseconds a step
and their ratio to ``full``; the least of three measurements of eight steps each, in turns.

    python benchmarks/adapters.py
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from autoft.data import package_path
from autoft.plugins import load_plugins
from autoft.testing.strategies import defaults
from autoft.testing.workbench import Workbench

STEPS, TIMES, ROWS = 8, 3, 16


def main() -> None:
    torch.set_num_threads(1)
    catalog = load_plugins()
    bench = Workbench(catalog.tasks["text-classification"], catalog, model=package_path("package://cognition/model"))
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
    print(
        f"{ROWS} rows of {batch['input_ids'].shape[1]} tokens\n\n| adapter | ms a step | ratio |\n| --- | --- | --- |"
    )
    for name, seconds in best.items():
        print(f"| `{name}` | {1000 * seconds:.1f} | {seconds / best['full']:.2f} |")


if __name__ == "__main__":
    main()
