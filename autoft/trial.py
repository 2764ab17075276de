"""One trial: load, adapt, train, compress in every legal way, measure each from its files."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from autoft.artifact import load, read_manifest, save_artifact
from autoft.checkpoints import Checkpoints, plain
from autoft.contracts import (
    Adapter,
    Compressor,
    ModelSource,
    Quantizer,
    Regularizer,
    Row,
    Target,
    Task,
    TaskContext,
    Teacher,
)
from autoft.data.features import Features, encoded
from autoft.data.prepared import PreparedData, open_data, rows_decided
from autoft.data.rows import Split
from autoft.distillation import alike, distill, named_teacher
from autoft.errors import AutoftError, RunFolderError, first_line, out_of_disk, out_of_files, out_of_memory
from autoft.evaluation import MeasureError, best_scored, judged, measure_in_process, references, score, validated_by
from autoft.frozen_layers import ActivationStore, recalled
from autoft.hardware import current_resident_bytes
from autoft.head_start import HeadWeights, fit_head
from autoft.paths import plain_files_digest
from autoft.plans.budgets import violations
from autoft.plans.plan import Plan, VariantPlan, epochs_again, read_plan
from autoft.plans.targets import auxiliary_target, format_behind, plan_target
from autoft.plugins import Catalog, described, load_plugins
from autoft.processes import release_memory
from autoft.quantities import format_bytes, format_seconds
from autoft.quiet import Quiet
from autoft.ranks import Ranks
from autoft.rundir import CurvePoint, RunDir, StepResult, TrialConfig, TrialResult, VariantResult, write_json
from autoft.shared_base import Seat
from autoft.strategies.first_token import first_token_alone, shortest_and_longest
from autoft.training import Augmentation, Auxiliary, Progress, Regularization, TrainOutcome, share_body, train
from autoft.used_rows import BY_WEIGHT, asked_for, tokens_trained, used_rows_alone

if TYPE_CHECKING:
    import torch

__all__ = [
    "MOST_PARTS",
    "Callbacks",
    "FreshWorkerNeeded",
    "Trial",
    "Workplace",
    "compress_further",
    "ended_by",
    "run_trial",
    "screen",
    "strategy_params",
    "train_along",
    "variant_folder",
]

MOST_PARTS = 8
"""Into which a batch is cut at most, for want of memory."""

USED = 1.1
"""A worker that holds so many times what a new one needs is replaced before a training that memory is short for."""


class FreshWorkerNeeded(Exception):
    """A new process alone has the memory, or the open files, that a trial or larger parts of it need."""


@dataclass
class Callbacks:
    """What a trial tells while it runs."""

    stage: Callable[[str], None] = lambda stage: None
    progress: Callable[[Progress], None] = lambda progress: None
    validation: Callable[[CurvePoint], bool] = lambda point: False
    note: Callable[[str], None] = lambda text: None


@dataclass
class Workplace:
    """What a worker keeps between trials: plan, plugins, data, processors, encoded features."""

    run: RunDir
    plan: Plan
    catalog: Catalog
    task: Task
    data: PreparedData
    precision: dict[str, str] = field(default_factory=dict)
    """By model, ``bf16`` or ``fp32``: what :mod:`autoft.executors.worker` found faster."""
    processors: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """By model, the digest of the files of its processor."""
    folds: dict[int, PreparedData] = field(default_factory=dict)
    decided: dict[str, int] = field(default_factory=dict)
    """Of how many rows of some splits figures are, by the last word of the search."""
    followed: dict[str, int] = field(default_factory=dict)
    """The same of ``data``."""
    heads: dict[tuple[str, int], dict[str, HeadWeights | None]] = field(default_factory=dict)
    """By model and fold, the heads that :func:`fit_head` found."""
    served: bool = False
    """Something was asked of this process before."""
    note: Callable[[str], None] = lambda text: None
    """Told what concerns no single trial."""
    _quiet: Quiet | None = None
    screened: dict[str, dict[str, float]] = field(default_factory=dict)
    """Variants of the trial's model that are known not to fit, with the costs that :func:`screen` measured."""
    reached: dict[str, float] = field(default_factory=dict)
    """Of variants that cost what the trial's will, the best score that is known."""
    until: float | None = None
    """Of :func:`time.monotonic`: no variant is begun that is likely not made and measured by then, where there is another one."""

    @property
    def quiet(self) -> Quiet:
        """By what it waits for the measurements of other workers on this machine."""
        folder = self.run.quiet if self.plan.workers > 1 and self.plan.executor == "local" else None
        if self._quiet is None or self._quiet.folder != folder:
            self._quiet = Quiet(folder)
        return self._quiet

    @classmethod
    def open(cls, run: RunDir) -> Workplace:
        """Rebuild everything from a run folder."""
        plan = read_plan(run.plan)
        catalog, decided = load_plugins(), rows_decided(run.data)
        data = open_data(run.data, decided=decided)
        return cls(run, plan, catalog, catalog.task(plan.task), data, decided=decided, followed=decided)

    def hear(self, request: Mapping[str, Any]) -> None:
        """Take over what the search says of all models with a trial: in which precision they train, and which rows they are judged by."""
        self.precision.update(request["precision"])
        self.decide(request["decided"])
        self.follow_rows()

    def decide(self, decided: Mapping[str, int]) -> None:
        """Note of how many rows of some splits figures are; what was decided stays, though a word of before comes after it."""
        self.decided = {**decided, **self.decided}

    def target(self, model: str, params: Mapping[str, Any], seed: int, reserved: int = 0) -> Target:
        """Return what strategies work upon, the processor loaded; ``reserved`` positions are an adapter's."""
        target = plan_target(
            self.plan,
            self.task,
            self.plan.model(model),
            params=params,
            seed=seed,
            cache=self.run.cache,
            reserved=reserved,
        )
        known_as = self.known_as(model, target.context)
        if known_as not in self.processors:
            self.processors[known_as] = self.task.load_processor(target.source, target.context)
        return replace(target, context=replace(target.context, processor=self.processors[known_as]))

    def trained(self, result: TrialResult, context: TaskContext) -> torch.nn.Module:
        """Return the model of a trial as it was trained and merged, from its files."""
        folder, trusted = self.kept(result), self.plan.trust_remote_code
        if read_manifest(folder).format != "transformers":
            # What its adapter keeps beside the base is a part of it.
            whole = load(folder, catalog=self.catalog, device=context.device, trust_remote_code=trusted)
            return cast("torch.nn.Module", whole.model)
        source = ModelSource(result.config.model, str(folder), trust_remote_code=trusted, finished=True)
        return self.task.load_model(source, context).to(context.device).eval()

    def kept(self, result: TrialResult) -> Path:
        """Return the folder of a trial's uncompressed files."""
        folder = next(variant.folder for variant in result.variants if variant.name == "none")
        assert folder is not None
        return self.run.inside(folder)

    @cached_property
    def activations(self) -> ActivationStore:
        """What frozen layers said of texts, shared by the trials of this process."""
        return ActivationStore(self.run.cache)

    def splits(self, fold: int) -> PreparedData:
        """Return the splits of a fold."""
        if fold and fold not in self.folds:
            self.folds[fold] = open_data(self.run.fold(fold), decided=self.followed)
        return self.folds[fold] if fold else self.data

    def follow_rows(self) -> None:
        """Judge models by those validation rows that the search has decided upon."""
        if self.decided != self.followed:
            self.followed, self.data = self.decided, open_data(self.run.data, decided=self.decided)
            self.folds.clear()

    def features(self, model: str, context: TaskContext, fold: int = 0) -> Features:
        """Return the encoded training rows, from the cache where they are there already."""
        return self.encoded(self.splits(fold).train, self.task, context, self.known_as(model, context))

    def known_as(self, model: str, context: TaskContext) -> str:
        """Return what tells a model's processor from others, one of before its files were changed too.

        One leaves more positions free where an adapter takes some.
        """
        if model not in self.files:
            self.files[model] = plain_files_digest(Path(self.plan.model(model).path))
        reserved = f", {context.reserved} positions reserved" if context.reserved else ""
        return f"{model}, {self.files[model]}{reserved}"

    def encoded(self, rows: Split, task: Task, context: TaskContext, processor: str) -> Features:
        """Return encoded rows, likewise; ``processor`` is the name of what encodes them."""
        return encoded(rows, task, context, self.run.data / "encoded", processor, self.note)

    def validator(
        self, context: TaskContext, rows: int | None = None, fold: int = 0
    ) -> Callable[[Any], dict[str, float]]:
        """Return a function that scores a model on the validation split of a fold, or on ``rows`` of it.

        They are the first ones of a split that was shuffled, the same for all models: their scores are compared.
        Where the objective needs no prediction, as perplexity, none is made: generating is most of the work.
        """
        metrics = self.catalog.metrics_of(self.task)
        split = self.splits(fold).validation
        shown = split[:rows]
        refs = references(self.task, shown, context)
        wanted = validated_by(metrics, [self.plan.objective])
        return lambda model: score(
            wanted, judged(self.task, model, shown, context, only_targets=wanted is not metrics), refs, context
        )


def strategy_params(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a strategy's parameters without its name in front."""
    return {key.removeprefix(f"{name}."): value for key, value in params.items() if key.startswith(f"{name}.")}


def run_trial(
    place: Workplace,
    config: TrialConfig,
    callbacks: Callbacks,
    deadline: float | None = None,
    seat: Seat | None = None,
    ranks: Ranks | None = None,
) -> TrialResult:
    """Run one configuration to its end; never raises for what a configuration can bring about.

    Args:
        place: the worker's plan, plugins and data.
        config: what to train.
        callbacks: told of stages, progress and validations.
        deadline: of :func:`time.monotonic`; the training ends with what it has when it is reached.
        seat: among trials that train at the same time.
        ranks: the processes that train it together, of which this is rank 0; the others call :func:`train_along`.

    Returns:
        the result, whose state says how it ended; weights of its variants lie in the trial's folder.

    Raises:
        FreshWorkerNeeded: nothing that counts was done: a new process has more memory, or files, for it.
    """
    begin = time.monotonic()
    result = TrialResult(number=config.number, state="failed", config=config)
    trial = None
    try:
        trial = Trial(place, config, callbacks, deadline, result, seat, ranks)
        trial.go()
    except FreshWorkerNeeded:
        raise
    except (Exception, SystemExit) as error:
        # A trial may fail in any library; the run goes on, the reason is kept.
        if out_of_files(error) and place.served:
            # What earlier trials left open, as a plugin's hooks may, ends with the process.
            raise FreshWorkerNeeded from error
        ended_by(error, result, place.run.trial(config.number))
    result.seconds["total"] = time.monotonic() - begin + (trial.earlier if trial else 0.0)
    return result


def train_along(place: Workplace, config: TrialConfig, ranks: Ranks) -> None:
    """Train a configuration along with rank 0, which alone decides, tells, and goes on with the model.

    Args:
        place: this process's plan, plugins and data.
        config: as rank 0 has it.
        ranks: the processes that train it.

    Raises:
        Exception: whatever a configuration can bring about.
    """
    trial = Trial(
        place, config, Callbacks(), None, TrialResult(number=config.number, state="failed", config=config), None, ranks
    )
    try:
        ready = trial.ready(trial.target())
    except (Exception, SystemExit):
        if ranks.begin(None) is None:
            # Rank 0 did not come as far either, and says why.
            return
        raise
    trial.trained(*ready)


def compress_further(
    place: Workplace, config: TrialConfig, callbacks: Callbacks, deadline: float | None = None
) -> TrialResult:
    """Make the variants of a trial whose compressors train; never raises for what these can bring about.

    Args:
        place: the worker's plan, plugins and data.
        config: of kind ``compress``; its one member is the trial, whose uncompressed files are there.
        callbacks: told of stages and progress.
        deadline: of :func:`time.monotonic`; the variants that are still to come share what is left.
    """
    begin = time.monotonic()
    result = TrialResult(number=config.number, state="failed", config=config)
    try:
        member = next(one for one in place.run.results() if one.number == config.members[0])
        target = place.target(config.model, config.params, config.seed)
        dense = place.trained(member, target.context)
        result.validation, result.train_memory_bytes = member.validation, member.train_memory_bytes
        memory = {"train_memory_bytes": float(member.train_memory_bytes)} if member.train_memory_bytes else {}
        trial = Trial(place, config, callbacks, deadline, result)
        offered = place.plan.trained_again(member)
        waiting = [variant for variant in offered if variant.name in (config.variants or {v.name for v in offered})]
        trial.begun.expect(waiting)
        lost = {name: by for name, by in place.plan.lost(member).items() if any(v.rescues == name for v in waiting)}
        if lost:
            result.reason = "; ".join(f"{name} alone is {by:.3g} worse than uncompressed" for name, by in lost.items())
        while waiting:
            if deadline is not None:
                # By what each has still to train; one for what compressing and measuring take.
                share, whole = (len(some) + epochs_again(some, trial.begun.made) for some in (waiting[:1], waiting))
                trial.deadline = time.monotonic() + max(0.0, deadline - time.monotonic()) * share / whole
            result.variants.append(trial.variant(dense, target, waiting.pop(0), memory))
        trial.conclude()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever goes wrong here, the trial itself is still there to choose
        ended_by(error, result, place.run.trial(config.number))
    result.seconds["total"] = time.monotonic() - begin
    return result


def ended_by(error: BaseException, result: TrialResult, folder: Path) -> None:
    """Write down that a trial ended by an error: want of memory is no failure but a limit; other errors are kept whole.

    Raises:
        RunFolderError: a disk is full. That says nothing of the trial, which the same command does again.
    """
    _check_disk(error, result.number)
    if out_of_memory(error):
        result.state, result.reason = "infeasible", f"out of memory: {first_line(error)}"
        result.violations = {"memory": 1.0}
        return
    result.state = "failed"
    result.reason = described(error)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")


def _check_disk(error: BaseException, trial: int) -> None:
    if out_of_disk(error):
        raise RunFolderError(
            f"trial {trial}: the disk is full ({first_line(error)}); free some space and run the same command again to go on"
        ) from error


def variant_folder(trial: int, variant: str) -> str:
    """Return where the files of a variant go, relative to the run folder."""
    slug = re.sub(r"[^A-Za-z0-9.=]+", "-", variant).strip("-")
    return f"trials/{trial:04d}/variants/{slug}"


def screen(
    place: Workplace, model: str, variants: Collection[str], on_variant: Callable[[str], None] = lambda name: None
) -> dict[str, dict[str, float]]:
    """Measure what compressions of a model cost to serve, before anything is trained.

    Size, latency and memory do not depend on what the weights have learned, so a limit that no training can meet is
    found in seconds, and graphs that are exported here serve all trials of the model. Where the length of texts is searched, it is
    the shortest: what is too slow at that is too slow in every trial.

    Args:
        place: the run's plan and data.
        model: the recipe's name for it.
        variants: names of the compressions, of the plan's own and those that it falls back upon.
        on_variant: is told each compression before it is made.

    Returns:
        by variant, its costs; variants that cannot be made are left out: the trials will say why.
    """
    plan = place.plan
    target = place.target(model, plan.cheapest_params(model), plan.seed)
    dense = place.task.load_model(target.source, target.context).eval()
    _tell_apart(dense)
    costs: dict[str, dict[str, float]] = {}
    for variant in (one for one in (*plan.variants, *plan.fallbacks) if one.name in variants):
        on_variant(variant.name)
        with tempfile.TemporaryDirectory(dir=place.run.path, prefix=".screen-") as folder:
            try:
                write_variant(place, dense, target, variant, Path(folder))
                figures = measure_in_process(
                    Path(folder), place.run.data, validation=False, **request_settings(plan, place)
                )
            except (Exception, SystemExit):  # noqa: BLE001 - a compressor may fail in any library
                continue
            costs[variant.name] = figures["costs"]
    return costs


def _tell_apart(model: Any) -> None:
    """Move the values of weights that are all alike a little, as training will: exporters store equal weights once.

    The biases of a new head are all zero. A graph of theirs is smaller, and serves no trained model.
    """
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point() and weight.numel() and bool((weight == weight.flatten()[0]).all()):
                weight.add_(torch.rand_like(weight), alpha=1e-3)


def request_settings(plan: Plan, place: Workplace | None = None) -> dict[str, Any]:
    """Return how a served model is measured, in a worker's place or by itself, as arguments of :func:`autoft.evaluation.measure_folder`."""
    folder = place.quiet.folder if place is not None else None
    return {
        "batch_size": plan.request["batch_size"],
        "length": plan.request["length"],
        "device": plan.device,
        "threads": plan.threads,
        "scales": plan.target.scales if plan.target else None,
        "workers": plan.workers,
        "asked": [*plan.objectives, *(limit.column for limit in plan.budget)],
        "quiet": folder,
        "decided": place.followed if place is not None else None,
    }


def write_variant(
    place: Workplace,
    dense: Any,
    target: Target,
    variant: VariantPlan,
    folder: Path,
    after_step: Callable[[str, Callable[[Path], None]], None] | None = None,
    begun: Begun | None = None,
    adapter: Adapter | None = None,
    fold: int = 0,
) -> None:
    """Compress a trained model as a variant says, and write its files into the folder.

    Args:
        place: the worker's plan, plugins and data.
        dense: the trained model.
        target: what compressors work upon.
        variant: the chain.
        folder: for the files.
        after_step: told of each step but the last, with its beginning (:attr:`VariantPlan.beginnings`) and how to write
            what the model is then.
        begun: where chains begin alike, what they have in common is taken from there, and put there.
        adapter: what trained the model; it writes the files of what it does not merge.
        fold: whose training rows calibrate; those of another one hold its validation rows.
    """
    model: Any = dense
    writer: Compressor | Adapter | None = None if adapter is None or adapter.merges else adapter

    def write(into: Path) -> None:
        with place.quiet.working():
            save_artifact(
                into,
                model,
                target,
                writer=writer,
                variant=variant.name,
                objective=place.plan.objective,
                strategies=place.catalog.strategies,
            )

    chain = [(place.catalog.compressors[step.strategy], step.params) for step in variant.chain]
    for number, (step, beginning) in enumerate(zip(variant.chain, variant.beginnings, strict=True), start=1):
        compressor = place.catalog.compressors[step.strategy]
        if begun is not None and beginning in begun.made:
            model, known = begun.made[beginning]
            target = replace(known, recover=target.recover)
        else:
            rows = place.splits(fold).train[: compressor.calibration_rows]
            target = replace(target, weight_format=format_behind(chain[number:]))
            with place.quiet.working():
                model, target = compressor.transform(model, target, rows, step.params)
            if begun is not None and beginning in begun.shared:
                begun.made[beginning] = model, target
        plain = compressor.yields in {"dense", "sparse"} and not compressor.writes_itself
        writer = writer if plain else compressor
        if after_step is not None and beginning != variant.beginnings[-1]:
            after_step(beginning, write)
    write(folder)


@dataclass
class Begun:
    """What chains have in common that begin alike: models after these steps, and what was measured of them."""

    shared: set[str] = field(default_factory=set)
    """Beginnings (:attr:`VariantPlan.beginnings`) of more than one variant."""
    made: dict[str, tuple[Any, Target]] = field(default_factory=dict)
    steps: dict[str, StepResult] = field(default_factory=dict)

    def expect(self, variants: Sequence[VariantPlan]) -> None:
        """Say which variants are to come, so that nothing is kept that no other one needs."""
        count = Counter(beginning for variant in variants for beginning in variant.beginnings)
        self.shared = {beginning for beginning, times in count.items() if times > 1}


class Trial:
    """One configuration at work; what comes of it is written into ``result``."""

    def __init__(
        self,
        place: Workplace,
        config: TrialConfig,
        callbacks: Callbacks,
        deadline: float | None,
        result: TrialResult,
        seat: Seat | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Prepare it; the arguments are those of :func:`run_trial`."""
        self.place, self.plan, self.config, self.callbacks = place, place.plan, config, callbacks
        self.deadline, self.result, self.seat, self.ranks = deadline, result, seat, ranks or Ranks()
        # Of this trial: while others train at the same time, the place may be told something else.
        self.screened, self.reached, self.until = place.screened, place.reached, place.until
        self.remembered: dict[tuple[str, ...], dict[int, torch.Tensor]] = {}
        """What teachers say of training rows together, by their names, once a compressor has asked."""
        self.begun = Begun()
        self.parts = config.parts
        """Into how many each batch is cut from the start."""
        self.checked = 0
        """By how many rows of its fold the model was scored within the training."""
        self.earlier = 0.0
        """Seconds of its training in a process that was ended."""
        pipeline = self.plan.pipeline(config.pipeline)
        self.adapter: Adapter = place.catalog.adapters[pipeline.adapter]
        self.quantizer: Quantizer | None = place.catalog.quantizers[pipeline.quantizer] if pipeline.quantizer else None

    def go(self) -> None:
        """Load, adapt, train, merge, and compress in every legal way."""
        config, plan = self.config, self.plan
        with self._stage("load"):
            target = self.target()
        if not self._may_fit(target):
            return
        model, target, auxiliary = self.ready(target)
        self.result.parameters = sum(p.numel() for p in model.parameters())
        self.result.trainable_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        trained = self.trained(model, target, auxiliary)
        assert trained is not None
        model, outcome = trained
        assert outcome.best is not None
        result = self.result
        result.seconds["validate"] = outcome.validate_seconds
        result.curve, result.best_samples = outcome.curve, outcome.best.samples
        result.validation, result.train_memory_bytes = outcome.best.validation, outcome.memory_bytes
        memory = {"train_memory_bytes": float(outcome.memory_bytes)}
        result.violations = violations(memory, plan.budget)
        if outcome.stopped:
            result.state, result.reason = "pruned", f"behind after {_epochs(outcome.curve[-1].epoch)}"
            return
        if result.violations and config.number != 0:
            result.state, result.reason = "infeasible", "training needs more memory than the budget allows"
            return
        self.place.follow_rows()
        result.parts = outcome.parts
        alone = self.seat.why_alone if self.seat else ""
        if self.seat is not None:
            # Also where its own body computes: its seconds and its memory are those of all.
            result.together = len(self.seat.cohort.seats)
        notes = [f"computed by itself: {alone}"] if alone else []
        notes += [f"each batch in {outcome.parts} parts, for want of memory"] if outcome.parts > 1 else []
        if outcome.gone_on_after is not None:
            notes.append(f"training was broken off, and gone on with after {_epochs(outcome.gone_on_after)}")
        if outcome.out_of_time:
            notes.append(f"training ended at the time limit, after {_epochs(outcome.curve[-1].epoch)}")
        result.reason = "; ".join(notes) or None
        self._keep_adapter(model)
        with self._stage("merge"):
            dense = self._merge(model, target)
        variants = self._variants()
        again = len(variants) < len(plan.variants_of(config))
        wanted = config.number == 0 or plan.ensemble > 1 or again or bool(plan.rescues)
        if wanted and all(v.name != "none" for v in variants):
            # The yardstick of the report: the default fine-tune as transformers serves it. And weights to average, or
            # to start from where a variant of the best trial is trained again.
            variants.insert(0, VariantPlan(name="none", chain=[]))
        self.begun.expect(variants)
        there = len(self.place.splits(config.fold).validation)
        # What decided within the training was some of the rows, or more of them where the search decided upon fewer meanwhile; what
        # others compare the trial by is all that it has decided upon.
        judged = self.checked == there
        for variant in variants:
            # The yardstick's files are scored on all whatever comes of it, so that the model need not be.
            if not judged and (config.number, variant.name) != (0, "none"):
                with self._stage("judge"):
                    result.validation = self.place.validator(target.context, fold=config.fold)(dense)
                judged = True
            result.variants.append(self._too_late(variant) or self.variant(dense, target, variant, memory))
            if not judged and result.variants[-1].validation:
                result.validation, judged = result.variants[-1].validation, True
        self.conclude()

    def _too_late(self, variant: VariantPlan) -> VariantResult | None:
        """Return what there is of a variant that the time is too short for: by the slowest one so far, once there is one to ship."""
        offered = {one.name for one in self.plan.every_variant}
        made = [one for one in self.result.variants if one.state == "complete" and one.name in offered]
        if self.until is None or not made or variant.name in self.screened:
            return None
        seconds = max(one.seconds for one in made)
        left = self.until - time.monotonic()
        if seconds <= left:
            return None
        told = f"left out: it takes about {format_seconds(seconds)}, and {format_seconds(max(0.0, left))} of the time are left for it"
        self.callbacks.note(f"Trial {self.config.number}, {variant.name}: {told}.")
        return VariantResult(name=variant.name, state="pruned", reason=told)

    def ready(self, target: Target) -> tuple[torch.nn.Module, Target, list[Auxiliary]]:
        """Return the model as its training begins, what the adapter was told, and the tasks that are trained along."""
        import torch

        torch.manual_seed(self.config.seed)
        with self._stage("load"):
            model, auxiliary = self._load(target)
        if self.config.params.get("train.head") == "fitted":
            with self._stage("fit head"):
                self._fit_head(model, target)
        with self._stage("load"):
            model, target = self._attach(model, target)
        return model, target, auxiliary

    def trained(
        self, model: torch.nn.Module, target: Target, auxiliary: Sequence[Auxiliary]
    ) -> tuple[torch.nn.Module, TrainOutcome] | None:
        """Train a model, and return it with all of its weights; None where rank 0 does not begin the training."""
        parts = self.ranks.begin(self.parts)
        if parts is None:
            return None
        self.parts = parts
        self.checked, validate = self._rows_checked(), self._validator(target)
        with (
            self._stage("train"),
            Regularization(self._regularizers(), model, target) as regularization,
            self._sharing(model, auxiliary, regularization) as backward,
        ):
            self.ranks.shard(model)
            if self.ranks.size > 1:
                # What others keep now.
                release_memory()
            outcome = self._train(model, target, validate, auxiliary, regularization, backward)
            model = self.ranks.gathered(model)
        self.earlier = outcome.earlier
        self.result.seconds["train"] += outcome.earlier
        return model, outcome

    def _validator(self, target: Target) -> Callable[[Any], dict[str, float]]:
        """Return what scores a model within the training."""
        return self.place.validator(target.context, self._rows_checked(), self.config.fold)

    def _rows_checked(self) -> int:
        return self.plan.rows_of_validation(len(self.place.splits(self.config.fold).validation))

    def _may_fit(self, target: Target) -> bool:
        """Cut batches into as many parts as the training needs to stay within its memory, and say whether it may at all.

        Without a limit nothing is predicted, nor where a prediction would leave something out: auxiliary tasks, several processes.
        """
        plan, config, place = self.plan, self.config, self.place
        limit = plan.train_memory
        if limit is None or any(plan.auxiliary_steps(config.params)) or self.ranks.size > 1:
            return True
        # Imported here, for torch's tracing comes with it, and before memory is looked at, as its own stays.
        from autoft.estimates import steps  # noqa: F401
        from autoft.estimates.verdicts import Constants, calibrate, constants_of, judge, parts_that_fit, setting_of

        with self._stage("predict memory"):
            pipeline = plan.pipeline(config.pipeline)
            features = place.features(config.model, target.context, config.fold)
            rows = _some_rows(place.splits(config.fold).train, features)
            setting = setting_of(plan, place.catalog, plan.model(config.model), pipeline, rows, **config.params)
            precision = place.precision.get(config.model, "fp32")
            setting = replace(
                setting,
                length=int(features.lengths.max()),
                precision=precision,
                tokens=tokens_trained(config.params, features),
            )
            smallest = min(plan.models, key=lambda model: model.size_bytes or math.inf)
            likeness = replace(setting_of(plan, place.catalog, smallest, pipeline, rows), precision=precision)
            try:
                constants = constants_of(setting, place.catalog) or calibrate(likeness, place.catalog)
            except AutoftError:
                # What two steps of the smallest model cannot show, the training itself will.
                return True
            here = current_resident_bytes() if plan.device == "cpu" else 0
            # Of what a step needs beside its tensors a worker has most already, and keeps more from what it did before.
            known = Constants(max(constants.process_bytes, here))
            parts, prediction = parts_that_fit(setting, place.catalog, known, limit, MOST_PARTS, place.run.cache)
            used = here > USED * constants.process_bytes and place.served
            if used and prediction.peak_bytes is not None and (parts > 1 or judge(prediction, limit) != "fits"):
                raise FreshWorkerNeeded
        # After an attempt that was ended, as many more as that one had too few.
        self.parts = min(MOST_PARTS, parts * config.parts)
        if prediction.peak_bytes is None:
            return True
        self.result.predicted["train_memory_bytes"] = float(prediction.peak_bytes)
        if judge(prediction, limit) != "does not fit":
            return True
        cut = f", even with each batch in {parts} parts" if parts > 1 else ""
        self.result.state = "infeasible"
        self.result.reason = (
            f"training would take about {format_bytes(prediction.peak_bytes)}{cut}; nothing was trained"
        )
        self.result.violations = violations(self.result.predicted, plan.budget)
        return False

    def _variants(self) -> list[VariantPlan]:
        """Return which variants are made of every trial: those that need no training, if any of them can fit."""
        every = self.plan.variants_of(self.config)
        quick = [variant for variant in every if not variant.trains]
        return quick if any(variant.name not in self.screened for variant in quick) else every

    def conclude(self) -> None:
        """Say how the trial ended, from how its variants did."""
        result = self.result
        states = {variant.state for variant in result.variants}
        offered = {variant.name for variant in self.plan.every_variant}
        if any(variant.state == "complete" and variant.name in offered for variant in result.variants):
            result.state = "complete"
        elif "pruned" in states:
            told = "not compressed: behind another trial at the same cost"
            result.state, result.reason = "complete", "; ".join(filter(None, (result.reason, told)))
        elif "infeasible" in states:
            result.state, result.reason = "infeasible", "no compressed variant fits the budget"
            misses = [variant.violations for variant in result.variants if variant.violations]
            result.violations = min(misses, key=lambda over: sum(over.values())) if misses else {}
        else:
            result.state = "failed"
            result.reason = "; ".join(f"{variant.name}: {variant.reason}" for variant in result.variants)

    def _stage(self, name: str) -> _Stage:
        return _Stage(name, self.result.seconds, self.callbacks.stage, self.place.quiet)

    def target(self) -> Target:
        """Return what strategies work upon, the processor loaded."""
        own = strategy_params(self.config.params, self.adapter.name)
        return self.place.target(self.config.model, self.config.params, self.config.seed, self.adapter.positions(own))

    def loaded(self) -> tuple[torch.nn.Module, Target]:
        """Return the model with its adapter as a training begins with it, and what strategies work upon."""
        target = self.target()
        return self._attach(self._load(target)[0], target)

    def _load(self, target: Target) -> tuple[torch.nn.Module, list[Auxiliary]]:
        source = target.source
        if self.quantizer:
            kwargs = self.quantizer.load_kwargs(target, strategy_params(self.config.params, self.quantizer.name))
            source = replace(source, load_kwargs=kwargs)
        model = self.place.task.load_model(source, target.context)
        model = self.quantizer.prepare(model, target) if self.quantizer else model.to(target.context.device)
        return model, self._auxiliary(model, target)

    def _fit_head(self, model: torch.nn.Module, target: Target) -> None:
        """Have a new head begin at its optimum over the body as it is."""
        place, config = self.place, self.config
        fit_head(
            model,
            task=place.task,
            context=target.context,
            features=place.features(config.model, target.context, config.fold),
            batch_size=max(1, int(config.params["train.batch_size"] or 1) // self.parts),
            precision=place.precision.get(config.model, "fp32"),
            known=place.heads.setdefault((config.model, config.fold), {}),
        )

    def _attach(self, model: torch.nn.Module, target: Target) -> tuple[torch.nn.Module, Target]:
        """Return the model with its adapter, and the target that the adapter was told."""
        own = strategy_params(self.config.params, self.adapter.name)
        if type(self.adapter).learn_from is not Adapter.learn_from:
            learned = self.adapter.learn_from(target, self.place.splits(self.config.fold).train[:], own)
            target = replace(target, learned=learned)
        target = replace(target, quantizer=self.quantizer.name if self.quantizer else "")
        model = self.adapter.attach(model, target, own)
        return model if self.quantizer else model.to(target.context.device), target

    def _auxiliary(self, model: torch.nn.Module, target: Target) -> list[Auxiliary]:
        """Return the tasks that are trained along, with heads of their own over the model's body."""
        place = self.place
        params: Mapping[str, Any] = self.config.params
        found = []
        for number, steps in enumerate(self.plan.auxiliary_steps(params)):
            if not steps:
                continue
            one = self.plan.auxiliary[number]
            task = place.catalog.task(one.task)
            own = auxiliary_target(self.plan, number, task, target)
            other = task.load_model(own.source, own.context)
            share_body(model, other)
            data = open_data(place.run.auxiliary(number)).train
            features = place.encoded(data, task, own.context, place.known_as(self.config.model, own.context))
            weight = one.weight * float(params["auxiliary.weight"])
            found.append(Auxiliary(task, own.context, other.to(own.context.device), features, steps, weight))
        return found

    def _regularizers(self) -> list[tuple[Regularizer, Mapping[str, Any]]]:
        """Return the chain of the configuration, each with its parameters."""
        params = self.config.params
        chain = str(params.get("regularize") or "none")
        names = [] if chain == "none" else chain.split("+")
        return [(self.place.catalog.regularizers[name], strategy_params(params, name)) for name in names]

    def _train(
        self,
        model: torch.nn.Module,
        target: Target,
        validate: Callable[[Any], dict[str, float]],
        auxiliary: Sequence[Auxiliary],
        regularization: Regularization,
        backward: Callable[[torch.Tensor], None] | None,
    ) -> TrainOutcome:
        params, place = self.config.params, self.place
        rate = float(params[f"{self.adapter.name}.learning_rate"])  # type: ignore[arg-type]
        given = place.splits(self.config.fold).train
        name = params.get("augment")
        augmentation, features = None, None
        if name and name != "none":
            augmentation = self._augmentation(str(name).split("+"), target, given[:])
            if self.ranks.leads:
                self._keep_samples(str(name), augmentation, given)
        else:
            features = place.features(self.config.model, target.context, self.config.fold)
        rows = given[:] if augmentation else given
        # Whatever changes weights or the loss may read more than the task does.
        plain = not auxiliary and not regularization.chain and backward is None and self.ranks.size == 1
        with self._less(model, target, features, rows) if plain else nullcontext():
            return train(
                model,
                task=place.task,
                context=target.context,
                features=features,
                rows=rows,
                augmentation=augmentation,
                learning_rate=rate,
                precision=place.precision.get(self.config.model, "fp32"),
                objective=self.plan.objective,
                higher_is_better=self.plan.higher_is_better,
                validate=validate,
                on_validation=self.callbacks.validation,
                on_progress=self.callbacks.progress,
                deadline=self.deadline,
                auxiliary=auxiliary,
                regularization=regularization,
                groups=self.adapter.parameter_groups(model, rate, strategy_params(params, self.adapter.name)),
                after_step=self._after_step,
                parts=self.parts,
                trim=place.plan.train_memory is not None,
                backward=backward,
                ranks=self.ranks,
                checkpoints=self._checkpoints(auxiliary, regularization, backward),
            )

    def _after_step(self, model: torch.nn.Module, step: int, total: int) -> None:
        self.adapter.after_step(model, step, total)
        self.place.quiet.pause()

    def _checkpoints(
        self, auxiliary: Sequence[Auxiliary], regularization: Regularization, backward: object
    ) -> Checkpoints | None:
        """Return where the training is written down, or None where that cannot be done with all that it knows."""
        config, plan = self.config, self.plan
        alone = self.ranks.size == 1 and backward is None and not auxiliary
        # What is known between two steps by an adapter that acts after each, or by an optimiser on pages, is its own.
        own = type(self.adapter).after_step is not Adapter.after_step
        own = own or "8bit" in str(config.params.get("train.optimizer"))
        if not alone or own or not plain(regularization.states):
            return None
        of = {
            **config.model_dump(mode="json", include={"model", "pipeline", "params", "seed", "fold"}),
            "precision": self.place.precision.get(config.model, "fp32"),
            "data": plan.data["fingerprint"],
            "environment": plan.environment,
        }
        run = self.place.run
        return Checkpoints(
            run.checkpoint(config.number),
            of,
            self.callbacks.note,
            # What is left has to do for the rest of the trial, and as much for each of the others.
            lambda: run.free(plan.disk_bytes) / plan.most_at_work - plan.trial_bytes,
        )

    def _sharing(
        self, model: torch.nn.Module, auxiliary: Sequence[Auxiliary], regularization: Regularization
    ) -> AbstractContextManager[Callable[[torch.Tensor], None] | None]:
        """Have the model compute with those of the other trials, where there are any and one call is all that a step is."""
        if self.seat is None or auxiliary or regularization.chain:
            return nullcontext()
        return self.seat.sharing(model)

    @contextmanager
    def _less(
        self, model: torch.nn.Module, target: Target, features: Features | None, rows: Sequence[Row]
    ) -> Iterator[None]:
        """Have the model compute less: not what it said before, nor what nothing reads, and train no tokens that no row has.

        Args:
            model: with its adapter.
            target: what is trained.
            features: of the training rows, where they are the same in each epoch.
            rows: for training.
        """
        import torch

        place, config, context = self.place, self.config, target.context
        precision = place.precision.get(config.model, "fp32")

        def loss_of(texts: Sequence[Any]) -> torch.Tensor:
            batch = {name: value.to(context.device) for name, value in place.task.collate(texts, context).items()}
            return place.task.loss(model, batch, context)

        def recalled_loss_of(texts: Sequence[Any]) -> torch.Tensor:
            with torch.autocast(context.device, torch.bfloat16, enabled=precision == "bf16"):
                return loss_of(texts)

        if features is not None:
            ends = shortest_and_longest(features, features.lengths)
        else:
            some = place.task.encode(rows[:64], context)
            ends = shortest_and_longest(some, [place.task.length(one) for one in some])
        with ExitStack() as stack:
            if config.params["train.optimizer"] in BY_WEIGHT:
                # Of the rows as they are: augmentation keeps most of their tokens.
                plain = features or place.features(config.model, context, config.fold)
                tokens = asked_for(plain, model, context.processor)
                stack.enter_context(used_rows_alone(model, tokens, lambda: loss_of(ends), grows=features is None))
            if features is not None:
                # In this trial or an earlier one.
                stack.enter_context(recalled(model, place.activations, recalled_loss_of, ends, precision))
            stack.enter_context(first_token_alone(model, lambda: loss_of(ends)))
            yield

    def _augmentation(self, names: Sequence[str], target: Target, rows: Sequence[Row]) -> Augmentation:
        """Return the augmenters of these names, one after the other, with what they learn of the training rows."""
        augmentation = None
        for name in reversed(names):
            augmenter, params = self.place.catalog.augmenters[name], strategy_params(self.config.params, name)
            learned = augmenter.learn_from(target, rows, params)
            augmentation = Augmentation(augmenter, params, learned, then=augmentation)
        assert augmentation is not None
        return augmentation

    def _keep_samples(self, name: str, augmentation: Augmentation, rows: Sequence[Row]) -> None:
        """Write what the augmenters do to some training rows, for the report."""
        if self.config.derived:
            return
        path = self.place.run.augmented(self.config.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"augment": name, "samples": augmentation.samples(rows, self.place.task.card)})

    def _keep_adapter(self, model: torch.nn.Module) -> None:
        """Write what the adapter learned, which merging takes apart; a few megabytes, for other bases and later exports."""
        folder = self.place.run.adapter(self.config.number)
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.adapter.save_learned(model, folder)

    def _merge(self, model: torch.nn.Module, target: Target) -> torch.nn.Module:
        """Return the model over a dense base; over a quantized one, the better of merging into the full and the dequantized base."""
        if self.quantizer is None:
            return self.adapter.merge(model, None, target).eval()
        quantizer, task = self.quantizer, self.place.task
        kwargs = quantizer.load_kwargs(target, strategy_params(self.config.params, quantizer.name))
        bases: list[Callable[[], torch.nn.Module]] = [
            lambda: task.load_model(target.source, target.context),
            lambda: quantizer.dequantize(
                task.load_model(replace(target.source, load_kwargs=kwargs), target.context), target
            ),
        ]
        merged = [self.adapter.merge(model, base, target).eval().to(target.context.device) for base in bases]
        sign, validate = 1 if self.plan.higher_is_better else -1, self._validator(target)
        return best_scored(merged, lambda dense: sign * validate(dense)[self.plan.objective])

    def variant(
        self, dense: torch.nn.Module, target: Target, variant: VariantPlan, memory: dict[str, float]
    ) -> VariantResult:
        """Compress a trained model in one way, write it, measure it from its files, and return what was measured."""
        import torch

        begin = time.monotonic()
        folder = self.place.run.path / variant_folder(self.config.number, variant.name)
        outcome = VariantResult(name=variant.name, state="failed")
        plain = variant.name == "none"
        yardstick = plain and self.config.number == 0
        # What variants of the best trial start from that are trained again, whether it fits the budget itself or not.
        again = any(other.trains for other in self.plan.variants_of(self.config, rescues=True))
        kept = yardstick or (plain and again)
        if variant.name in self.screened and not kept:
            outcome.costs = {**self.screened[variant.name], **memory}
            outcome.violations = violations(outcome.costs, self.plan.budget)
            outcome.state, outcome.reason = "infeasible", "over the budget: " + ", ".join(outcome.violations)
            return outcome
        # What is behind is not the best trial, whose files others start from.
        if not yardstick and self._is_behind(variant.name):
            outcome.state = "pruned"
            outcome.reason = f"another trial's reaches {self.reached[variant.name]:.4g} at the same cost"
            return outcome
        self.callbacks.stage(f"compress: {variant.name}")
        try:
            # New heads and dropout of what is trained again.
            torch.manual_seed(self.config.seed)
            recover = _Recovery(self, dense, target, variant.name)

            def measure_step(beginning: str, write: Callable[[Path], None]) -> None:
                label, steps = variant.chain[len(outcome.steps)].label, self.begun.steps
                if beginning not in steps:
                    steps[beginning] = self._step(label, write)
                outcome.steps.append(steps[beginning])

            write_variant(
                self.place,
                dense,
                replace(target, recover=recover),
                variant,
                folder,
                measure_step if variant.trains else None,
                self.begun,
                self.adapter,
                self.config.fold,
            )
            self.result.seconds["compress"] = self.result.seconds.get("compress", 0.0) + time.monotonic() - begin
            measuring = time.monotonic()
            self.callbacks.stage(f"measure: {variant.name}")
            self._measure(folder, variant, memory, outcome)
            self.result.seconds["measure"] = self.result.seconds.get("measure", 0.0) + time.monotonic() - measuring
        except MeasureError as error:
            _check_disk(error, self.config.number)
            outcome.state, outcome.reason = "failed", str(error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a compressor may fail in any library; the other variants go on
            _check_disk(error, self.config.number)
            state = "infeasible" if out_of_memory(error) else "failed"
            outcome.state, outcome.reason = state, described(error)  # type: ignore[assignment]
            self.place.run.trial(self.config.number).mkdir(parents=True, exist_ok=True)
            with (self.place.run.trial(self.config.number) / "error.txt").open("a", encoding="utf-8") as file:
                file.write(f"{variant.name}\n{traceback.format_exc()}\n")
        if outcome.state == "complete" or kept:
            outcome.folder = str(folder.relative_to(self.place.run.path))
        else:
            shutil.rmtree(folder, ignore_errors=True)
        outcome.seconds = time.monotonic() - begin
        return outcome

    def _is_behind(self, variant: str) -> bool:
        """Say whether a variant cannot reach the front: even if compressing loses nothing, one that costs the same is better."""
        reached = self.reached.get(variant)
        sign = 1 if self.plan.higher_is_better else -1
        own = self.result.validation.get(self.plan.objective, math.nan)
        return reached is not None and sign * own < sign * reached

    def _step(self, name: str, write: Callable[[Path], None]) -> StepResult:
        """Measure what a model is in the middle of a chain, from files that are deleted afterwards."""
        self.callbacks.stage(f"measure: {name}")
        with tempfile.TemporaryDirectory(dir=self.place.run.path, prefix=".step-") as folder:
            write(Path(folder))
            figures = measure_in_process(
                Path(folder),
                self.place.run.fold(self.config.fold),
                validation=True,
                **request_settings(self.plan, self.place),
            )
        return StepResult(name=name, validation=figures["validation"], costs=figures["costs"])

    def _measure(self, folder: Path, variant: VariantPlan, memory: dict[str, float], outcome: VariantResult) -> None:
        size = float(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
        over = violations({"model_size_bytes": size}, self.plan.budget)
        yardstick = self.config.number == 0 and variant.name == "none"
        if over and not yardstick:
            # Too large whatever it scores: the time is better spent on another trial.
            outcome.costs, outcome.violations = {"model_size_bytes": size, **memory}, over
            outcome.state, outcome.reason = "infeasible", "larger than model_size allows"
            return
        # What a model costs does not depend on the rows that it learned from.
        figures = measure_in_process(
            folder,
            self.place.run.fold(self.config.fold),
            validation=True,
            costs=self.config.kind != "fold",
            **request_settings(self.plan, self.place),
        )
        outcome.validation, outcome.costs = figures["validation"], {**figures.get("costs", {}), **memory}
        outcome.score_seconds = figures["seconds"]["score"]
        outcome.other_load = figures.get("other_load", 0.0)
        outcome.violations = violations(outcome.costs, self.plan.budget)
        outcome.state = "infeasible" if outcome.violations else "complete"
        if outcome.violations:
            outcome.reason = "over the budget: " + ", ".join(outcome.violations)


class _Recovery:
    """Trains what a compressor made of a trial's model: on the trial's rows, in its precision, until its time is up."""

    def __init__(self, trial: Trial, teacher: torch.nn.Module, taught: Target, variant: str) -> None:
        self.trial, self.teacher, self.taught, self.variant = trial, teacher, taught, variant

    def best(self, count: int) -> Sequence[Teacher]:
        place, known = self.trial.place, {result.number: result for result in self.trial.place.run.results()}
        found = [Teacher("", self.teacher, self.taught.context)]
        for number in self.trial.config.members[1:count]:
            config = known[number].config
            reserved = read_manifest(place.kept(known[number])).reserved
            context = place.target(config.model, config.params, config.seed, reserved).context
            found.append(Teacher(f"trial {number}", place.trained(known[number], context), context))
        return found

    def named(self, name: str) -> Teacher:
        return named_teacher(name, self.taught)

    def __call__(
        self,
        student: torch.nn.Module,
        target: Target,
        *,
        epochs: int,
        learning_rate: float,
        teaching: float = 0.5,
        matching: Sequence[tuple[str, str]] = (),
        after_step: Callable[[float], None] | None = None,
        teachers: Sequence[Teacher] = (),
        attending: Sequence[tuple[str, str]] = (),
    ) -> None:
        trial, place, config = self.trial, self.trial.place, self.trial.config
        rows = place.splits(config.fold).train

        def read(context: TaskContext, known_as: str) -> Features:
            models = (model for model, processor in place.processors.items() if processor is context.processor)
            return place.encoded(rows, place.task, context, next(models, known_as))

        # A processor that an earlier step made follows from the rows, the base model, the steps, and what a step reads of a student.
        own_files = plain_files_digest(Path(target.source.path))
        features = read(target.context, f"{place.known_as(config.model, target.context)}, {self.variant}, {own_files}")
        asked = []
        for teacher in teachers or self.best(1):
            own = read(teacher.context, teacher.name)
            asked.append((teacher.model, None if alike(features, own) else (own, teacher.context)))

        def stepped(done: float) -> None:
            if after_step is not None:
                after_step(done)
            place.quiet.pause()

        outcome = distill(
            student,
            asked,
            target,
            features=features,
            rows=rows,
            required=bool(teachers),
            remembered=trial.remembered.setdefault(tuple(one.name for one in teachers), {}),
            epochs=epochs,
            learning_rate=learning_rate,
            teaching=teaching,
            matching=matching if asked[0][1] is None else (),
            precision=place.precision.get(config.model, "fp32"),
            objective=trial.plan.objective,
            higher_is_better=trial.plan.higher_is_better,
            validate=place.validator(
                target.context,
                place.plan.rows_of_validation(len(place.splits(config.fold).validation)),
                config.fold,
            ),
            on_progress=trial.callbacks.progress,
            deadline=trial.deadline,
            after_step=stepped,
            attending=attending,
        )
        seconds = trial.result.seconds
        seconds["recover"] = seconds.get("recover", 0.0) + outcome.seconds


class _Stage:
    """A part of a trial that nobody measures beside, but where it says so."""

    def __init__(self, name: str, seconds: dict[str, float], tell: Callable[[str], None], quiet: Quiet) -> None:
        self.name, self.seconds, self.tell, self.quiet = name, seconds, tell, quiet

    def __enter__(self) -> None:
        self.begin = time.monotonic()
        self.tell(self.name)
        self.working = self.quiet.working()
        self.working.__enter__()

    def __exit__(self, *exception: object) -> None:
        self.working.__exit__(None, None, None)
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.monotonic() - self.begin


def _some_rows(rows: Sequence[Row], features: Features) -> list[Row]:
    """Return the longest training row, the shortest, and the first ones."""
    places = [int(features.lengths.argmax()), int(features.lengths.argmin()), *range(min(8, len(rows)))]
    return [rows[place] for place in dict.fromkeys(places)]


def _epochs(count: float) -> str:
    return "1 epoch" if count == 1 else f"{count:.3g} epochs"
