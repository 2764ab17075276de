# python benchmarks/frozen_layers.py
"""Trainings of the head or of the upper layers as a trial has them, against those that compute everything.

A trial recalls what frozen layers say, and computes its last layer for the first token alone where nothing else is read.

Movie review sentences and a model of 12 layers with random weights (384 wide, as MiniLM-L12), since time does not hang
on what weights are. Each training is timed whole, validations after each epoch included: computed; recalled with an
empty store, as the first trial of a search has it; recalled with the store of the training before, as later trials
have it. The three take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from reviews import MODEL, Bench

from autoft.frozen_layers import ActivationStore, recalled
from autoft.hardware import Hardware
from autoft.processes import silence_libraries
from autoft.strategies.first_token import first_token_alone, shortest_and_longest


def make_model(folder: Path, layers: int, width: int) -> Path:
    """Write a BERT of random weights with the tokenizer of the small model."""
    import shutil

    import torch
    from transformers import BertConfig, BertForMaskedLM

    from autoft.paths import package_path

    source = package_path(MODEL)
    known = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = BertConfig(
        vocab_size=known["vocab_size"],
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
    )
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(folder)
    for path in source.iterdir():
        if path.name.startswith(("tokenizer", "vocab", "special")):
            shutil.copy(path, folder)
    return folder


def seconds(bench: Bench, adapter: str, params: dict[str, Any], store: ActivationStore | None) -> tuple[float, float]:
    """Return the seconds of a training and its last training loss."""
    import torch

    strategy = bench.catalog.adapters[adapter]
    own = {name: domain.default for name, domain in strategy.space.items()} | params
    target = bench.target(0)
    torch.manual_seed(0)
    model = strategy.attach(bench.task.load_model(bench.source, target.context), target, own)

    def loss_of(texts: Any) -> Any:
        return bench.task.loss(model, dict(bench.task.collate(texts, target.context)), target.context)

    some = shortest_and_longest(bench.features, bench.features.lengths)
    begin = time.perf_counter()
    with contextlib.ExitStack() as stack:
        if store:
            assert stack.enter_context(recalled(model, store, loss_of, some))
            stack.enter_context(first_token_alone(model, lambda: loss_of(some)))
        outcome = bench.plain_training(
            model, target, own["learning_rate"], lambda model: {"accuracy": bench.accuracy(model)}
        )
    return time.perf_counter() - begin, outcome.curve[-1].train_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    silence_libraries()
    import torch

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = make_model(folder / "model", arguments.layers, arguments.width)
        bench = Bench(arguments.rows, arguments.validation, arguments.epochs, folder / "cache", str(path))
        print(
            f"{arguments.layers} layers of {arguments.width}, {arguments.rows} rows, {arguments.epochs} epochs, "
            f"{Hardware.probe().cpu}, {arguments.threads} threads, medians of {arguments.rounds} rounds\n"
        )
        print("| trained | computed | recalled, first | faster | recalled, later | faster | last training losses |")
        print("| --- " * 7 + "|")
        for label, adapter, params in (
            ("head", "head-only", {}),
            *((f"{k} upper layer{'s' if k > 1 else ''}", "top-layers", {"layers": k}) for k in (1, 2, 3, 6)),
        ):
            taken: dict[str, list[float]] = {"computed": [], "first": [], "later": []}
            losses: dict[str, float] = {}
            for _ in range(arguments.rounds):
                store = ActivationStore(folder)
                for kind, given in (("computed", None), ("first", store), ("later", store)):
                    took, losses[kind] = seconds(bench, adapter, params, given)
                    taken[kind].append(took)
            median = {kind: statistics.median(each) for kind, each in taken.items()}
            faster = {
                kind: statistics.median(a / b for a, b in zip(taken["computed"], taken[kind], strict=True))
                for kind in ("first", "later")
            }
            print(
                f"| {label} | {median['computed']:.1f} s | {median['first']:.1f} s | {faster['first']:.2f} | "
                f"{median['later']:.1f} s | {faster['later']:.2f} | "
                f"{', '.join(f'{losses[kind]:.4f}' for kind in taken)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
