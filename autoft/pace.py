"""What trainings and all that follows from them take, in seconds, learned from a few steps of each model and then from trials."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from autoft.hardware import memory_left
from autoft.measures import Latency
from autoft.parallel import CONTENTION, workers_that_pay
from autoft.plans.plan import Plan, VariantPlan, epochs_again
from autoft.rundir import TrialConfig, TrialResult, VariantResult
from autoft.space import Categorical

__all__ = [
    "OTHER_PATIENCE",
    "SLOW_ENCODING",
    "SLOW_STAGE",
    "TAUGHT",
    "TRIAL_OVERHEAD_SECONDS",
    "Pace",
    "slower_beside_others",
]

TRIAL_OVERHEAD_SECONDS = 20.0
"""Guess for compressing and measuring a trial's variants, until the first trial has shown it."""

STARTUP_SECONDS = 6.0
"""What a process takes at least to import the libraries; a slower machine shows it when its workers start."""

CLOSING_SECONDS = 15.0
"""For fitting the baselines, exporting the model and writing the report: about twice what they took of a thousand rows."""

TAUGHT = 1.0
"""What an epoch with a teacher takes, as a share of one of the whole model: less is left, and the teacher speaks once."""

ASKED = 0.5
"""What asking a further teacher once about every row takes at most, as a share of an epoch of training."""

LEAST_ROWS = 100
"""By which finished models are judged, and tested, however short the time: the standard error of a share of them is at most .05."""

LEAST_CHECKED = 50
"""The same of a checkpoint."""

CHECKED_SHARE = 0.1
"""Of the time budget: a validation within a training takes so much at most."""

JUDGED_SHARE = 0.2
"""Of the time budget: so much at most is for judging the variants of the first trial."""

END_SHARE = 0.5
"""Of the time budget: so much at most is left for export, test and report."""

LATE_SHARE = 0.05
"""Of the time budget: testing all rows may take so much, however late it is."""

REQUESTS = 200
"""A model's costs take as long as validating so many rows: 25 requests, each as long as eight rows at once."""

UNKNOWN_CHAIN = 2.0
"""How much longer a step is taken to be with regularizers that no trial has had yet: many need a second forward pass."""

WORKER_MEMORY = 1.5
"""How many times as much as a few steps took a worker is reckoned with."""

SLOW_STEP = 20.0
"""How much longer a step and a validation may take than they were seen to, before the worker counts as hung."""

SLOW_STAGE = 5.0
"""How much longer something else of a trial may take than all else together was thought to."""

SLOW_ENCODING = 0.01
"""Seconds that encoding a training row may take, of which nothing is told; tokenizers take less than a tenth of it."""

OTHER_PATIENCE = 3.0
"""How much longer it is waited for exports, downloads and measurements, which tell of nothing while they go on."""


class Pace:
    """What the trials of a search take here, and how long nothing may be heard of one.

    Args:
        plan: of the search, with the sizes of its data; followed where it changes.
        results: of the trials that are done, by number; likewise.
    """

    def __init__(self, plan: Plan, results: Mapping[int, TrialResult]) -> None:
        self.plan, self.results = plan, results
        self.seconds_per_sample: dict[str, float] = {}
        """By model, and by model, pipeline and chain of regularizers once such a training was seen."""
        self.validate_per_row: dict[str, float] = {}
        """By model."""
        self.test_per_row: dict[str, float] = {}
        """By model: more than validating where the objective needs no prediction, and the test's metrics do."""
        self.test_apart = False
        """It is more for some model."""
        self.overhead: dict[str, float] = {}
        """By model, what compressing and measuring a trial's variants takes."""
        self.startup = STARTUP_SECONDS
        self.imports = STARTUP_SECONDS
        """Seconds that a processor computes until a worker is ready."""
        self.train_rows, self.test_rows = plan.rows_there("train"), plan.rows_there("test")
        for result in results.values():
            self.learn(result)

    @property
    def validation_rows(self) -> int:
        """By how many rows finished models are judged."""
        return int(self.plan.data["sizes"]["validation"])

    @property
    def rows_at_checkpoint(self) -> int:
        """By how many rows a checkpoint is judged."""
        return self.plan.rows_of_validation(self.validation_rows)

    # -- learning -----------------------------------------------------------------------------------------------

    def begin(self, probed: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over what a few steps of each model took, where no trial has shown it."""
        for name, figures in probed.items():
            self.test_apart |= figures["test_seconds_per_row"] > figures["validate_seconds_per_row"]
            self.seconds_per_sample.setdefault(name, figures["seconds_per_sample"])
            self.validate_per_row.setdefault(name, figures["validate_seconds_per_row"])
            self.test_per_row.setdefault(name, figures["test_seconds_per_row"])

    def slow_down(self, probed: Mapping[str, Mapping[str, Any]], threads: int) -> None:
        """Reckon with workers that have so many threads each, from now on."""
        for name, figures in probed.items():
            if name in self.seconds_per_sample:
                self.seconds_per_sample[name] *= slower_beside_others(figures, threads)

    def learn(self, result: TrialResult) -> None:
        """Take over what a finished trial took."""
        if not result.curve:
            return
        model, pipeline = result.config.model, _trained_by(result.config)
        seen = result.curve[-1].samples
        # So many steps of auxiliary tasks came with each of its own.
        further = sum(self.plan.auxiliary_steps(result.config.params))
        # Of trials that train together each waits for the others.
        training = (result.seconds.get("train", 0.0) - result.seconds.get("validate", 0.0)) / result.together
        self.seconds_per_sample[f"{model} {pipeline}"] = training / max(1, seen) / (1 + further)
        rows = self.rows_at_checkpoint * len(result.curve)
        self.validate_per_row[model] = result.seconds.get("validate", 0.0) / max(1, rows)
        if any(variant.state == "complete" for variant in result.variants):
            # A head is fitted once, for the trials after it too.
            once = result.seconds.get("train", 0.0) + result.seconds.get("fit head", 0.0)
            self.overhead[model] = result.seconds.get("total", once) - once

    # -- what trials take ---------------------------------------------------------------------------------------

    def once(self, config: TrialConfig) -> float:
        """Return the seconds that one training of a configuration will take, to its last variant."""
        model = config.model
        per_sample = self.seconds_per_sample.get(f"{model} {_trained_by(config)}")
        if per_sample is None:
            per_sample = self.seconds_per_sample.get(f"{model} {config.pipeline}")
            if per_sample is None:
                per_sample = self.seconds_per_sample.get(f"{model} full", self.seconds_per_sample.get(model, 0.05))
            if _trained_by(config) != config.pipeline:
                per_sample *= UNKNOWN_CHAIN
        epochs = int(config.params["train.epochs"] or 1)
        batches = self.train_rows / int(config.params["train.batch_size"] or 1)
        checks = epochs * (2 if batches >= 60 else 1)
        validating = checks * self.rows_at_checkpoint * self.validate_per_row.get(model, per_sample / 2)
        known = self.overhead_of(model)
        steps = 1 + sum(self.plan.auxiliary_steps(config.params))
        return per_sample * steps * self.train_rows * epochs + validating + known

    def estimate(self, config: TrialConfig) -> float:
        """Return the seconds that a configuration will take: on all folds, unless it repeats another one."""
        times = 1 if config.repeats else self.plan.folds
        return times * self.once(config)

    def together(self, configs: Sequence[TrialConfig]) -> float:
        """Return the seconds that configurations will take, shared among the workers."""
        return sum(self.estimate(config) for config in configs) / self.plan.workers

    def expected(self, config: TrialConfig) -> float:
        """Return the seconds that a trial is thought to take, of whatever kind it is."""
        if config.kind in {"soup", "ensemble"}:
            return self.averaging(config)
        if config.kind == "compress":
            return self.compressing(config)
        return self.once(config)

    def shortest(self) -> float:
        """Return the seconds of the shortest configuration that the sampler may propose of the best model."""
        if not self.seconds_per_sample:
            return math.inf
        default, domain = self.plan.default_config(), self.plan.domain("train.epochs")
        lengths = domain.choices if isinstance(domain, Categorical) else (domain.low,)
        fewest = min(int(length or 1) for length in lengths)
        found = []
        for model, pipeline in itertools.product(self.plan.models, self.plan.pipelines):
            params = {**self.plan.default_params(pipeline.name), "train.epochs": fewest}
            found.append(default.model_copy(update={"model": model.name, "pipeline": pipeline.name, "params": params}))
        return min((self.estimate(config) for config in found), default=math.inf)

    def compressing(self, config: TrialConfig) -> float:
        """Return the seconds that variants take that train again: what is left of the model takes no longer than the whole."""
        member = self.results[config.members[0]]
        epoch = member.seconds.get("train", 0.0) / max(1.0, member.curve[-1].epoch if member.curve else 1.0)
        plain = self.seconds_per_sample.get(f"{config.model} full")
        if plain is not None:
            # The trial may have been trained on changed rows or with further passes, which this training has not.
            validating = 2 * self.rows_at_checkpoint * self.validate_per_row.get(config.model, 0.0)
            epoch = min(epoch, plain * self.train_rows + validating)
        took = [variant.seconds for variant in member.variants if variant.seconds] or [TRIAL_OVERHEAD_SECONDS]
        variants = [variant for variant in self.plan.trained_again(member) if variant.name in config.variants]
        measured = {beginning for variant in variants for beginning in variant.beginnings}
        # What begins otherwise is traced anew, as the slowest variant was; the rest is compressed and measured.
        traced = {variant.beginnings[0] for variant in variants}
        compressing = max(took) * len(traced) + statistics.fmean(took) * len(measured)
        further = sum(min(variant.teachers, len(config.members)) - 1 for variant in variants)
        return epoch * (TAUGHT * epochs_again(variants) + ASKED * further) + compressing

    def averaging(self, config: TrialConfig) -> float:
        """Return the seconds that averaging takes: members are scored one by one, and what comes of it is measured."""
        overhead = self.overhead_of(config.model)
        row = self.validate_per_row.get(config.model, 0.01)
        passes = len(config.members) * (1 if config.kind == "soup" else len(self.plan.variants))
        return passes * self.validation_rows * row + overhead * (1 if config.kind == "soup" else len(config.members))

    def closing(self, untrained: bool) -> float:
        """Return the seconds that export, test and report will need.

        Args:
            untrained: the base models are served and scored as they are, too.
        """
        yardstick = self._yardstick()
        if yardstick is not None and yardstick.seconds:
            # Results of an earlier version do not say how much of it was for the rows.
            per_row = (yardstick.score_seconds or yardstick.seconds) / max(1, self.validation_rows)
        else:
            # An untrained model that writes texts writes them to their limit; one that only reads is served in 32 bits.
            per_row = 1.5 * max(self.validate_per_row.values(), default=0.01)
        test_row = max([per_row, *self.test_per_row.values()])
        times = 2 if untrained else 1
        judging = per_row * times * self._judged_by(self.plan.default_config().model, per_row)
        scoring = test_row * (times + 0.5)
        least = self._fixed_at_end + judging + scoring * min(LEAST_ROWS, self.test_rows)
        # Where all rows take longer, fewer are tested.
        return min(
            self._fixed_at_end + judging + scoring * self.test_rows, max(least, END_SHARE * self.plan.time_limit)
        )

    @property
    def _fixed_at_end(self) -> float:
        # Three processes import the libraries anew: for the model, the default and the baselines. They do so on a machine that does
        # nothing else, and have fewer to import than a worker.
        # Requests of a model that writes take longer than all else of that.
        return max(CLOSING_SECONDS, 2 * self._measuring()) + 3 * self.imports

    def _yardstick(self) -> VariantResult | None:
        return next((v for r in self.results.values() if r.number == 0 for v in r.variants if v.name == "none"), None)

    def _measuring(self) -> float:
        """Return the seconds that it takes to load a model and to measure its costs."""
        yardstick = self._yardstick()
        if yardstick is not None and yardstick.score_seconds:
            return yardstick.seconds - yardstick.score_seconds
        # A single request takes hardly less than the few rows at once that were timed.
        return min(Latency.LONG_SECONDS, REQUESTS * max(self.validate_per_row.values(), default=0.0))

    def tested_rows(self, seconds: float, models: Sequence[VariantResult], untrained: bool) -> int:
        """Return of how many test rows the end can be in so many seconds: all, or as many as there is time for.

        Args:
            seconds: that are left.
            models: which are tested, the chosen one first; it is judged once more, too.
            untrained: as in :meth:`closing`.
        """
        rows = max(1, self.validation_rows)
        paces = [(model.score_seconds or model.seconds) / rows for model in models]
        untouched = max([*self.test_per_row.values(), *paces]) if untrained else 0.0
        judging = (paces[0] + untouched) * rows
        room = max(seconds - self._fixed_at_end - judging, LATE_SHARE * self.plan.time_limit)
        # Metrics of the test may need a text where those of validation need none.
        written = max(self.test_per_row.values(), default=0.0) if self.test_apart else 0.0
        pace = sum(max(one, written) for one in paces) + untouched
        if room >= pace * self.test_rows:
            return self.test_rows
        return min(self.test_rows, max(LEAST_ROWS, int(room / pace)))

    def judged_rows(self, model: str, per_row: float) -> int:
        """Return by how many of all validation rows finished models can be judged, where a row takes so many seconds."""
        there = self.plan.rows_there("validation")
        passes = self._scored(model) + (there > self.rows_at_checkpoint)
        if passes * per_row * there <= JUDGED_SHARE * self.plan.time_limit:
            return there
        return min(there, max(LEAST_ROWS, int(JUDGED_SHARE * self.plan.time_limit / (passes * per_row))))

    def _judged_by(self, model: str, per_row: float) -> int:
        """Return by how many rows finished models are judged, or likely will be: the first training that is validated decides it."""
        if any(result.validation for result in self.results.values()):
            return self.validation_rows
        return min(self.validation_rows, self.judged_rows(model, per_row))

    def checked_rows(self) -> int:
        """Return by how many rows a checkpoint can be judged, by what a row takes of the untrained models."""
        per_row, rows = max(self.validate_per_row.values(), default=0.0), self.rows_at_checkpoint
        if per_row * rows <= CHECKED_SHARE * self.plan.time_limit:
            return rows
        return min(rows, max(LEAST_CHECKED, int(CHECKED_SHARE * self.plan.time_limit / per_row)))

    def overhead_of(self, model: str) -> float:
        """Return the seconds that compressing and measuring is thought to take of a model.

        Where no trial of it has shown that, they are those of the slowest model that is known; before the first trial a guess,
        or what scoring its variants alone will take where that is more, as where texts are written. The training of what is
        made smaller in each of its trials comes on top.
        """
        if self.overhead.get(model):
            return self.overhead[model]
        variants = self._made(model)
        quick = [variant for variant in variants if not variant.trains]
        again = 0.0 if quick else epochs_again(variants)
        per_row = self.validate_per_row.get(model, 0.0)
        scoring = self._scored(model) * (self._judged_by(model, per_row) * per_row + self._measuring())
        per_sample = self.seconds_per_sample.get(f"{model} full", self.seconds_per_sample.get(model, 0.05))
        known = max(self.overhead.values(), default=max(TRIAL_OVERHEAD_SECONDS, scoring))
        return known + TAUGHT * again * per_sample * self.train_rows

    def _made(self, model: str) -> list[VariantPlan]:
        """Return which variants are made of each trial of a model."""
        variants = [variant for variant in self.plan.variants if variant.takes(model)]
        # Where some are for single models, it fits by no other.
        return [variant for variant in variants if variant.models] or variants

    def _scored(self, model: str) -> int:
        """Return how many variants of each trial are scored."""
        variants = self._made(model)
        return len([variant for variant in variants if not variant.trains] or variants)

    # -- how long nothing may be heard of a worker --------------------------------------------------------------

    def patience_in_training(self, model: str, step: float) -> float:
        """Return for how many seconds a training may tell of nothing, whose steps take so many."""
        validating = self.rows_at_checkpoint * self.validate_per_row.get(model, 0.0)
        longest = SLOW_STEP * (step + validating) + SLOW_ENCODING * self.train_rows
        return max(self.plan.patience, longest)

    def patience_after_training(self, model: str, trials: int) -> float:
        """Return the same for the rest of trials over a model: by what all but the training took in trials before."""
        return self.patience(trials * self.overhead_of(model))

    def patience(self, seconds: float) -> float:
        """Return for how many seconds nothing may be heard of work that was thought to take so many."""
        validating = self.validation_rows * max(self.validate_per_row.values(), default=0.0)
        longest = SLOW_STAGE * (seconds + validating) + SLOW_ENCODING * self.train_rows
        return max(OTHER_PATIENCE * self.plan.patience, longest)

    # -- several workers ----------------------------------------------------------------------------------------

    def workers_that_pay(
        self, probed: Mapping[str, Mapping[str, Any]], seconds: float, trials: int | None
    ) -> tuple[int, int, float]:
        """Return how many workers pay, with how many threads each, and how many times as much they train as one.

        Args:
            probed: by model, what its steps took with each number of threads, and its memory.
            seconds: that are left for trials.
            trials: that are to come, or None for as many as the time allows.
        """
        plan, config = self.plan, self.plan.default_config()
        paces = {int(threads): float(pace) for threads, pace in probed[config.model]["by_threads"].items()}
        if not paces or not min(paces.values()) > 0:
            return 1, max(paces, default=plan.threads), 1.0

        def trial_seconds(threads: int, speed: float) -> float:
            # What compressing and measuring takes, where it is known, it takes with any number of threads.
            guessed = self.overhead_of(config.model)
            fixed = self.overhead.get(config.model, 0.0)
            return fixed + (self.estimate(config) - guessed) * paces[threads] / paces[max(paces)] / speed

        _, enough = memory_left()
        each = max(figures["memory_bytes"] for figures in probed.values())
        return workers_that_pay(
            trial_seconds,
            paces,
            cores=max(paces),
            most=1 + int(max(0, memory_left()[0] - 2 * enough) // (WORKER_MEMORY * each)),
            seconds=seconds,
            trials=trials,
            startup=self.startup,
        )


def slower_beside_others(figures: Mapping[str, Any], threads: int) -> float:
    """Return how many times as long a step takes with so many threads beside other workers as alone with all."""
    paces = {int(count): float(pace) for count, pace in figures["by_threads"].items()}
    return paces[threads] / paces[max(paces)] / CONTENTION if paces else 1.0


def _trained_by(config: TrialConfig) -> str:
    """Return the pipeline, and the chain of regularizers where there is one: what the pace of a training depends on."""
    chain = config.params.get("regularize") or "none"
    return config.pipeline if chain == "none" else f"{config.pipeline} {chain}"
