# python benchmarks/attention_dropout.py
"""Attention with dropout in blocks against torch's own, in training steps of a model on a CPU.

Steps of random tokens, forward, backward and optimiser, in turns; the dropout is what the model comes with. A process each
tells the most memory that a step takes above what was there before it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from reviews import MODEL

from autoft.hardware import MAPPED, current_resident_bytes, peak_resident_bytes, reset_peak_resident
from autoft.paths import package_path
from autoft.processes import silence_libraries, thread_environment


def stepper(model: str, rows: int, tokens: int) -> Callable[[bool], float]:
    """Return a function that takes a step, in blocks or not, and returns its seconds."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from autoft.attention_dropout import attention_in_blocks

    torch.manual_seed(0)
    network: Any = AutoModelForSequenceClassification.from_pretrained(package_path(model)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(1000, network.config.vocab_size, (rows, tokens))
    mask, labels = torch.ones_like(ids), torch.randint(0, 2, (rows,))
    mask[0, tokens // 2 :] = 0

    def step(blocks: bool) -> float:
        begin = time.perf_counter()
        with attention_in_blocks() if blocks else contextlib.nullcontext():
            network(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - begin

    return step


def memory(model: str, rows: int, tokens: int, blocks: bool, threads: int) -> float:
    """Return the bytes of a second step in a process of its own, above what there is before it."""
    command = [sys.executable, __file__, "--model", model, "--threads", str(threads)]
    command += ["--memory", str(rows), str(tokens), str(int(blocks))]
    environment = thread_environment(threads) | MAPPED
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return float(json.loads(done.stdout))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 64, 128, 256, 512], help="of a row")
    parser.add_argument("--batch", type=int, default=4096, help="tokens of a step; at most 32 rows")
    parser.add_argument("--steps", type=int, default=7, help="of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=int, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    silence_libraries()
    import torch

    torch.set_num_threads(given.threads)
    if given.memory:
        rows, tokens, blocks = given.memory
        step = stepper(given.model, rows, tokens)
        step(bool(blocks))
        before = current_resident_bytes()
        reset_peak_resident()
        step(bool(blocks))
        print(peak_resident_bytes() - before)
        return
    print("rows  tokens  torch s  blocks s  torch/blocks (smallest to largest)  torch MB  blocks MB")
    for tokens in given.tokens:
        rows = min(32, max(1, given.batch // tokens))
        step = stepper(given.model, rows, tokens)
        step(True), step(False)
        took = [(step(False), step(True)) for _ in range(given.steps)]
        ratios = [a / b for a, b in took]
        plain, blocks = (statistics.median(times) for times in zip(*took, strict=True))
        of_plain, of_blocks = (
            memory(given.model, rows, tokens, blocks, given.threads) / 1e6 for blocks in (False, True)
        )
        print(
            f"{rows:4}  {tokens:6}  {plain:7.3f}  {blocks:8.3f}  {statistics.median(ratios):12.2f} ({min(ratios):.2f} to "
            f"{max(ratios):.2f}) {of_plain:17.0f} {of_blocks:10.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
