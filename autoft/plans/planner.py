"""Recipe, plugins and hardware become a plan: the one place where names resolve and compatibility is decided."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoft.contracts import (
    Adapter,
    Augmenter,
    Compressor,
    CostMetric,
    ModelSource,
    QualityMetric,
    Quantizer,
    Reach,
    Regularizer,
    State,
    Strategy,
    Target,
    Task,
    TaskContext,
)
from autoft.device import read_profile
from autoft.errors import Fault, ModelError, RunFolderError, unknown_name
from autoft.hardware import Hardware
from autoft.optimizers import OPTIMIZERS, refused_optimizers
from autoft.paths import named_path
from autoft.plans.budgets import budget_limits
from autoft.plans.efforts import AUXILIARY_SPACE, EFFORTS, FALLBACKS, INT8, TRAIN_SPACE, WIDE
from autoft.plans.environment import environment, used_plugins
from autoft.plans.models import base_model, earlier_model, hub_models, kept_commit
from autoft.plans.plan import (
    AuxiliaryPlan,
    BudgetLimit,
    ModelPlan,
    PipelinePlan,
    Plan,
    RefusalNote,
    StepPlan,
    TargetDevice,
    VariantPlan,
)
from autoft.plans.targets import format_behind
from autoft.plugins import Catalog
from autoft.pretrained import trained_without_dropout, usable_positions
from autoft.quantities import format_bytes, parse_bytes, parse_multiple, parse_seconds
from autoft.recipe import LatencyLimit, Recipe
from autoft.rundir import read_json
from autoft.space import Categorical, Domain, Float, check_widened, domain_from_recipe, domain_to_json
from autoft.study_addresses import study_address
from autoft.version import __version__

__all__ = ["make_plan"]

AT_ONCE = 8
"""How many LoRA trials a worker trains at once on a GPU, at most, where the recipe leaves it open."""

REACHES: tuple[Reach, ...] = ("head", "layers", "all")
"""How much of a model an adapter trains, in ascending order."""

STARTS: tuple[State, ...] = ("dense", "adapted")
"""What a trained model can be: merged into plain weights, or with an adapter that stays beside them."""

GENERATED_ROWS = 200
"""Validation rows that are generated at a checkpoint: the standard error of a share of them is .035 at most."""

PREDICTED_ROWS = 2000
"""Validation rows that are predicted at a checkpoint: the standard error of a share of them is .011 at most."""


def make_plan(
    recipe: Recipe,
    catalog: Catalog,
    hardware: Hardware,
    base: Path | None = None,
    *,
    source: str = "recipe",
    revisions: Mapping[str, str] | None = None,
) -> Plan:
    """Resolve a recipe's names and decide what is legal, before any data is read.

    Args:
        recipe: as :func:`autoft.recipe.load_recipe` returns it.
        catalog: what the installed plugins offer.
        hardware: the machine.
        base: folder that relative model paths start from; default: the working directory.
        source: the recipe's file, for messages.
        revisions: by name, the commits of hub models that an earlier call of the run took.

    Raises:
        RecipeError: all names and values that do not resolve, models that cannot be found among them, together.
        PluginError: the task is not installed.
    """
    return _Planner(recipe, catalog, hardware, base or Path.cwd(), source, revisions or {}).plan()


class _Planner:
    """The way from a recipe to its plan; collects faults, what is refused and what to warn of on it."""

    def __init__(
        self,
        recipe: Recipe,
        catalog: Catalog,
        hardware: Hardware,
        base: Path,
        source: str,
        revisions: Mapping[str, str],
    ) -> None:
        self.recipe, self.catalog, self.base, self.source, self.revisions = recipe, catalog, base, source, revisions
        self.task = catalog.task(recipe.task)
        device = hardware.device if recipe.executor.device == "auto" else recipe.executor.device
        self.hardware = hardware if device == hardware.device else _on_device(hardware, device)
        self.effort = EFFORTS[recipe.effort]
        self.faults: list[Fault] = []
        self.refusals: list[RefusalNote] = []
        self.warnings: list[str] = []
        self.device = self.target_device()
        if device != hardware.device and device != "cpu":
            self.fault("executor.device", f"this machine has no {device}; it has {hardware}")

    def fault(self, where: str, message: str) -> None:
        self.faults.append(Fault(where, message))

    def refuse(self, what: str, reason: str) -> None:
        self.refusals.append(RefusalNote(what=what, reason=reason))

    def plan(self) -> Plan:
        recipe, search = self.recipe, self.recipe.search
        options = self.options(self.task, recipe.task_options, "task_options")
        auxiliary = self.auxiliary()
        models, like = self.models(), self.like()
        targets = [self.target(model, options) for model in models]
        pipelines, illegal = self.pipelines(targets)
        variants = self.variants(targets)
        pipelines = self.compressible(pipelines, variants)
        rescued = search.quantization_aware == "auto" and search.folds == 1
        rescues = self.rescues(variants, targets) if rescued else []
        again = [variant.name for variant in variants if variant.trains]
        if search.folds > 1 and recipe.compress and again:
            self.warnings.append(
                f"{', '.join(again)}: what trains the best model again would be of one fold, and is left out with search.folds "
                "unless a model fits the budget by nothing else"
            )
        budget = self.budget()
        fallbacks = self.fallbacks(variants, targets, budget)
        augmenters = self.augmenters(targets)
        regularizers = self.regularizers(targets)
        unsuited = self.unsuited(pipelines, regularizers)
        space, origins = self.space(models, pipelines, augmenters, regularizers)
        objectives = self.objectives(models)
        self.same_answers(objectives, space, models)
        # Folds are the instances that the Wilcoxon test compares; without them trials are compared at their rungs.
        single = "wilcoxon" if search.folds > 1 else "halving"
        early_stopping = search.early_stopping or (single if len(objectives) == 1 else "none")
        if len(objectives) > 1 and early_stopping != "none":
            self.fault(
                "search.early_stopping",
                f"{early_stopping!r} needs one objective (Optuna cannot stop trials of several), given "
                f"{', '.join(objectives)}; use none, or one objective: the report shows the front of quality, size "
                "and latency anyway",
            )
        if early_stopping == "wilcoxon" and search.folds < 2:
            self.fault(
                "search.early_stopping",
                "wilcoxon compares trials over folds, and search.folds is 1; set it to 5, or use halving",
            )
        if len(objectives) > 1 and search.sampler in {"cmaes", "gp"}:
            self.fault("search.sampler", f"{search.sampler} takes one objective; use tpe or nsga2 with several")
        ensemble = self.effort["ensemble"] if search.ensemble is None else search.ensemble
        if search.folds > 1 and (search.ensemble or 0) > 1:
            self.fault(
                "search.ensemble",
                "is chosen on one validation split, and search.folds asks for several; use one of them",
            )
        for place, tracker in enumerate(recipe.trackers):
            # A folder of that name, as wandb itself leaves one where it runs, is no package.
            found = importlib.util.find_spec(tracker)
            if found is None or found.origin is None:
                self.fault(f"trackers[{place}]", f'{tracker} is not installed; pip install "autoft[{tracker}]"')
        if recipe.storage.study and (missing := study_address(recipe.storage.study).missing):
            self.fault("storage.study", missing)
        # As of a tracker; a folder of that name is no package.
        if recipe.executor.kind == "ray" and getattr(importlib.util.find_spec("ray"), "origin", None) is None:
            self.fault("executor.kind", 'ray is not installed; pip install "autoft[ray]"')
        self.launcher()
        multiple = parse_multiple(recipe.budget.time)
        together = self.together(objectives)
        named = self.named(space, [*variants, *rescues, *fallbacks])
        if self.faults:
            raise recipe.error(self.faults, self.source)
        request = recipe.budget.latency or LatencyLimit()
        # The machines of a cluster have to be alike: a worker takes one, unless the recipe says how many there are on each.
        sharing = 1 if recipe.executor.address not in {None, "local"} else self.workers
        processes = recipe.launcher.processes
        threads = recipe.executor.threads or max(1, self.hardware.cores // (sharing * processes))
        quality = {name: _known_of(metric) for name, metric in self.catalog.metrics_of(self.task).items()}
        return Plan(
            autoft=__version__,
            name=recipe.name or "run",
            task=recipe.task,
            notice=self.task.card.notice,
            options=options,
            auxiliary=auxiliary,
            models=models,
            revisions={**named, **{model.name: model.revision for model in models if model.revision is not None}},
            init_from=recipe.init_from,
            like=like,
            pipelines=pipelines,
            variants=variants,
            rescues=rescues,
            fallbacks=fallbacks,
            space={name: domain_to_json(domain) for name, domain in space.items()},
            origins=origins,
            illegal=illegal,
            unsuited=unsuited,
            refusals=self.refusals,
            warnings=self.warnings,
            objective=objectives[0],
            objectives=objectives,
            metrics=quality,
            budget=budget,
            time_limit=math.inf if multiple else parse_seconds(recipe.budget.time),
            time_multiple=multiple,
            trials_limit=recipe.budget.trials,
            request={"batch_size": request.batch_size, "length": request.length},
            target=self.device,
            effort=recipe.effort,
            sampler=search.sampler,
            early_stopping=early_stopping,
            validation_rows=self.validation_rows(objectives[0]),
            seed=search.seed,
            tolerance=search.tolerance,
            finalist_seeds=search.finalist_seeds if search.folds == 1 else 0,
            folds=search.folds,
            ensemble=ensemble if search.folds == 1 else 0,
            storage_bytes=parse_bytes(recipe.storage.weights),
            disk_bytes=parse_bytes(recipe.storage.disk) if recipe.storage.disk else None,
            trackers=list(dict.fromkeys(recipe.trackers)),
            executor=recipe.executor.kind,
            address=recipe.executor.address,
            workers=self.workers,
            by_pace=self.by_pace([*objectives, *(limit.column for limit in budget)]),
            together=together,
            processes=processes,
            sharding=recipe.launcher.sharding if processes > 1 else "none",
            threads=threads,
            patience=parse_seconds(recipe.executor.patience),
            device=self.hardware.device,
            trust_remote_code=recipe.trust_remote_code,
            hardware=self.hardware.to_json(),
            environment=environment(
                used_plugins(self.catalog.plugins, [self.task.card.name, *(one.task for one in auxiliary)]),
                recipe.model_dump(mode="json"),
            ),
        )

    def validation_rows(self, objective: str) -> int | None:
        """Return how many rows a validation within a training reads at most."""
        given = self.recipe.search.validation_rows
        if given != "auto":
            return None if given == "all" else given
        metric = self.catalog.metrics_of(self.task).get(objective)
        written = self.task.card.generates and metric is not None and metric.uses != "targets"
        return GENERATED_ROWS if written else PREDICTED_ROWS

    def together(self, objectives: Sequence[str]) -> int:
        """Return how many trials a worker may train at once: one where the memory of each training counts."""
        given = self.recipe.executor.together
        counts = self.recipe.budget.train_memory is not None or "train_memory_bytes" in objectives
        if given == "auto":
            alone = counts or self.recipe.launcher.processes > 1
            return AT_ONCE if self.hardware.device == "cuda" and not alone else 1
        if given < 1:
            self.fault("executor.together", f"has to be auto or at least 1, given {given}")
        elif given > 1 and counts:
            self.fault(
                "executor.together",
                "trials that train together share their memory, and this recipe asks for that of each training; set it "
                "to 1, or leave train_memory out of budget and objectives",
            )
        return given

    def launcher(self) -> None:
        """Tell what does not go with several processes that train a trial together."""
        processes, executor = self.recipe.launcher.processes, self.recipe.executor
        where, gpus = "launcher.processes", len(self.hardware.gpus)
        if processes == 1:
            return
        if executor.kind != "local":
            self.fault(
                where, f"{processes} processes train on this machine alone; leave out executor.kind: {executor.kind}"
            )
        if executor.together not in {"auto", 1}:
            self.fault(where, f"{processes} processes train one trial at a time; leave out executor.together")
        if self.recipe.auxiliary:
            self.fault(where, f"auxiliary tasks are trained by one process; given {processes}")
        if self.hardware.device == "mps":
            self.fault(where, f"mps is one device for one process, given {processes}; set executor.device: cpu")
        if self.hardware.device == "cuda" and processes > gpus:
            self.fault(where, f"each process takes a GPU of its own: at most {gpus} here, given {processes}")
        if self.hardware.device == "cuda" and self.workers > 1:
            self.fault(
                where,
                f"the processes of a worker take the first {processes} GPUs, and executor.workers is {self.workers}; "
                "set it to 1",
            )

    @property
    def workers(self) -> int:
        """How many workers there are at first."""
        given = self.recipe.executor.workers
        return 1 if given == "auto" else given

    def by_pace(self, columns: Collection[str]) -> bool:
        """Say whether the search may take more workers: not where something is asked for that can be measured beside none."""
        executor = self.recipe.executor
        alone = executor.workers == "auto" and executor.threads is None and executor.kind == "local"
        alone = alone and executor.together == 1 and self.recipe.launcher.processes == 1
        asked = [one for one in self.catalog.cost_metrics.values() if not set(one.columns).isdisjoint(columns)]
        return alone and self.hardware.device == "cpu" and all(one.check("cpu", 2) is None for one in asked)

    def undivided(self, quantizer: Quantizer | None, adapter: Adapter) -> str | None:
        """Return why several processes cannot train together so, or None."""
        if self.recipe.launcher.processes == 1:
            return None
        if quantizer is not None:
            return f"{quantizer.name}: a quantized base is trained by one process, and launcher.processes asks for more"
        if not adapter.divisible:
            return f"{adapter.name} is trained by one process, and launcher.processes asks for more"
        return None

    def target_device(self) -> TargetDevice | None:
        given = self.recipe.budget.target
        if given is None:
            return None
        if self.hardware.device != "cpu":
            self.fault(
                "budget.target", "profiles are of CPUs, and this search measures on a GPU; set executor.device: cpu"
            )
        try:
            profile = read_profile(self.base / given)
        except ValueError as error:
            self.fault("budget.target", str(error))
            return None
        return TargetDevice(**profile.model_dump(exclude={"memory"}), memory_bytes=profile.memory_bytes)

    def auxiliary(self) -> list[AuxiliaryPlan]:
        found = []
        for number, section in enumerate(self.recipe.auxiliary):
            where = f"auxiliary[{number}]"
            task = self.catalog.tasks.get(section.task)
            if task is None:
                hint = self.catalog.broken_hint()
                self.fault(f"{where}.task", unknown_name("task", section.task, self.catalog.tasks) + hint)
                continue
            options = self.options(task, section.task_options, f"{where}.task_options")
            found.append(AuxiliaryPlan(task=section.task, options=options, weight=section.weight))
        return found

    def quality(self) -> list[str]:
        return list(self.catalog.metrics_of(self.task))

    def options(
        self, task: Task, given: Mapping[str, str | int | float | bool | None], where: str
    ) -> dict[str, str | int | float | bool | None]:
        known = {option.name: option for option in task.card.options}
        chosen = {name: option.default for name, option in known.items()}
        for name, value in given.items():
            if name not in known:
                self.fault(f"{where}.{name}", unknown_name(f"option of {task.card.name}", name, known))
            elif (choices := known[name].choices) is not None and value not in choices:
                self.fault(f"{where}.{name}", f"allowed: {', '.join(map(str, choices))}; given {value!r}")
            else:
                chosen[name] = value
        return chosen

    def models(self) -> list[ModelPlan]:
        models = []
        names = self.recipe.model
        for i, name in enumerate(names):
            where = "model" if len(names) == 1 else f"model[{i}]"
            if name in names[:i]:
                self.fault(where, f"{name!r} is given twice")
                continue
            try:
                models.append(base_model(name, self.base, self.revisions.get(name)))
            except ModelError as error:
                self.fault(where, str(error))
        if self.recipe.init_from:
            try:
                models.append(earlier_model(self.recipe.init_from, self.base))
            except ModelError as error:
                self.fault("init_from", str(error))
        return models

    def like(self) -> str | None:
        """Return the folder of the earlier run that this one is to be like."""
        name = self.recipe.search.like
        if name is None:
            return None
        run = named_path(name, self.base, Path())
        run = run if run is not None and run.is_dir() else None
        try:
            task = read_json(run / "plan.json")["task"] if run else None
        except (RunFolderError, KeyError, TypeError):
            task = None
        if run is None or task is None:
            what = f"{name} is no run folder" if run else f"no such folder: {name}"
            self.fault("search.like", f"{what}; give the folder of an earlier run, as runs/reviews")
        elif task != self.task.card.name:
            self.fault("search.like", f"{name} is a run of {task}, and this recipe's task is {self.task.card.name}")
        return str(run.resolve()) if run else None

    def named(self, space: Mapping[str, Domain], variants: Sequence[VariantPlan]) -> dict[str, str]:
        """Return the commits of the hub models that parameters of what is used name, by name."""
        params = [
            (name, value)
            for name, domain in space.items()
            if isinstance(domain, Categorical)
            for value in domain.choices
        ]
        params += [
            (f"{step.strategy}.{name}", value)
            for variant in variants
            for step in variant.chain
            for name, value in step.params.items()
        ]
        commits = {}
        for name, parameter in hub_models(self.catalog.strategies, params).items():
            try:
                commits[name] = kept_commit(name, self.revisions.get(name))
            except ModelError as error:
                self.fault(f"space.{parameter}", str(error))
        return commits

    def target(self, model: ModelPlan, options: Mapping[str, Any]) -> Target:
        source = ModelSource(model.name, model.path, model.revision, trust_remote_code=self.recipe.trust_remote_code)
        context = TaskContext({}, options, {}, 512, self.hardware.device)
        return Target(self.task, source, model.config, context, self.hardware)

    def pipelines(self, targets: Sequence[Target]) -> tuple[list[PipelinePlan], list[tuple[str, str, str]]]:
        legal: dict[str, PipelinePlan] = {}
        refused: dict[str, str] = {}
        illegal: list[tuple[str, str, str]] = []
        for quantizer, adapter in itertools.product(
            [None, *self.catalog.quantizers.values()], self.catalog.adapters.values()
        ):
            name = f"{quantizer.name}+{adapter.name}" if quantizer else adapter.name
            state = quantizer.yields if quantizer else "dense"
            if reason := self.undivided(quantizer, adapter):
                refused[name] = reason
                continue
            if quantizer and self.recipe.auxiliary:
                refused[name] = "auxiliary tasks share a dense body"
                continue
            if state not in adapter.accepts:
                refused[name] = f"{adapter.name} cannot train over a {state} base"
                continue
            over = quantizer.name if quantizer else ""
            reasons = [self.first_refusal([quantizer, adapter], replace(one, quantizer=over)) for one in targets]
            for target, reason in zip(targets, reasons, strict=True):
                if reason:
                    illegal.append((target.source.name, name, reason))
            if targets and all(reasons):
                refused[name] = str(reasons[0])
            else:
                legal[name] = PipelinePlan(
                    name=name,
                    quantizer=quantizer.name if quantizer else None,
                    adapter=adapter.name,
                    leaves=adapter.leaves,
                    rate_scales=self.rate_scales(adapter, targets),
                )
        wanted = self.recipe.pipelines or self.effort["pipelines"] or list(self.task.default_pipelines()) or WIDE
        if self.recipe.pipelines is None and self.recipe.budget.train_memory and "nf4+lora" in legal:
            wanted = [*wanted, *(name for name in ("int8+lora", "nf4+lora") if name in legal and name not in wanted)]
        elif self.recipe.pipelines is None and self.hardware.device == "cpu":
            saving = [name for name in wanted if name in legal and legal[name].quantizer]
            for name in saving:
                self.refuse(name, "saves memory alone on a CPU; budget.train_memory would have it tried")
            wanted = [name for name in wanted if name not in saving]
        chosen = []
        for name in wanted:
            if name in legal:
                chosen.append(legal[name])
            elif name in refused:
                self.refuse(name, refused[name])
                if self.recipe.pipelines:
                    self.warnings.append(f"pipeline {name} is left out: {refused[name]}")
            elif self.recipe.pipelines:
                self.fault("pipelines", unknown_name("pipeline", name, [*legal, *refused]))
        # Of what nobody asked for, only the chains of adapters that are searched: the others are many.
        adapters = {name.rpartition("+")[2] for name in wanted}
        for name, reason in refused.items():
            if name not in wanted and name.rpartition("+")[2] in adapters and "cannot train over" not in reason:
                self.refuse(name, reason)
        if not chosen and targets and not self.faults:
            reasons_given = "; ".join(f"{note.what}: {note.reason}" for note in self.refusals)
            self.fault("pipelines", f"none is possible here ({reasons_given}); possible: {', '.join(legal) or 'none'}")
        return list({pipeline.name: pipeline for pipeline in chosen}.values()), [
            entry for entry in illegal if entry[1] in {pipeline.name for pipeline in chosen}
        ]

    def compressible(self, pipelines: list[PipelinePlan], variants: Sequence[VariantPlan]) -> list[PipelinePlan]:
        """Return the pipelines whose models some of the compressions take."""
        left = []
        for pipeline in pipelines:
            without = [variant.name for variant in variants if pipeline.leaves not in variant.starts]
            beside = f"{pipeline.adapter} keeps what it learned beside the base, and"
            if len(without) < len(variants) or not variants:
                left.append(pipeline)
                if without:
                    self.refuse(pipeline.name, f"{beside} such a model is not taken by {', '.join(without)}")
                continue
            reason = f"{beside} none of the compressions takes such a model; add none to compress"
            self.refuse(pipeline.name, reason)
            if self.recipe.pipelines:
                self.warnings.append(f"pipeline {pipeline.name} is left out: {reason}")
        if pipelines and not left and not self.faults:
            self.fault("pipelines", f"none is left: {reason}")
        return left

    def first_refusal(self, chain: Sequence[Strategy | None], target: Target) -> str | None:
        for strategy in chain:
            refusal = strategy.check(target) if strategy else None
            if refusal:
                return refusal.reason
        return None

    def variants(self, targets: Sequence[Target]) -> list[VariantPlan]:
        known = self.catalog.compressors
        given = self.recipe.compress
        variants: list[VariantPlan] = []
        offered = [[name] for name in given] if given else [name.split("|") for name in self.effort["compress"]]
        chosen: set[int] = set()
        for place, name in ((place, name) for place, names in enumerate(offered) for name in names):
            if place in chosen:
                continue
            if name == "none" and (reason := self.no_runtime("none", "torch")):
                self.refuse(name, reason)
                if given:
                    self.warnings.append(f"compression none is left out: {reason}")
                continue
            if name == "none":
                variants.append(VariantPlan(name="none", chain=[], starts=["dense", "adapted"]))
                continue
            steps = name.split("+")
            unknown = [step for step in steps if step not in known]
            if unknown:
                if given:
                    self.fault("compress", unknown_name("compressor", unknown[0], [*known, "none"]))
                continue
            reason = self.chain_refusal([known[step] for step in steps], targets)
            if reason:
                self.refuse(name, reason)
                if given:
                    self.warnings.append(f"compression {name} is left out: {reason}")
                continue
            chosen.add(place)
            variants.extend(self.expand([known[step] for step in steps]))
        tried = {variant.name.split("(")[0].split("+")[0] for variant in variants}
        tried.update(itertools.chain.from_iterable(offered))
        for name, compressor in known.items():
            reason = self.chain_refusal([compressor], targets)
            if reason and name not in tried:
                self.refuse(name, reason)
        if not variants and not self.faults:
            self.fault(
                "compress", "nothing is left: " + "; ".join(f"{note.what}: {note.reason}" for note in self.refusals)
            )
        return variants

    def no_runtime(self, name: str, workload: str) -> str | None:
        device = self.device
        if device is None or workload in device.milliseconds:
            return None
        if not workload:
            return f"{name}: runs in a runtime of its own, whose speed on {device.name} nobody knows"
        return f"{name}: {device.name} has no {workload}: its profile has times of {', '.join(device.milliseconds)}"

    def rescues(self, variants: Sequence[VariantPlan], targets: Sequence[Target]) -> list[VariantPlan]:
        """Return the variants that quantize without training, with a training for it right before they do."""
        known = self.catalog.compressors
        aware = next((compressor for compressor in known.values() if compressor.reads_weight_format), None)
        found: list[VariantPlan] = []
        for variant in variants:
            formats = [known[step.strategy].weight_format(step.params) is not None for step in variant.chain]
            if aware is None or variant.trains or True not in formats:
                continue
            place = formats.index(True)
            before, behind = variant.chain[:place], variant.chain[place:]
            chain = [known[step.strategy] for step in before] + [aware] + [known[step.strategy] for step in behind]
            if self.chain_refusal(chain, targets):
                continue
            for training in self.expand([aware]):
                steps = [*before, *training.chain, *behind]
                name = "+".join(step.label for step in steps)
                if training.trains and all(name != other.name for other in variants):
                    found.append(VariantPlan(name=name, chain=steps, trains=True, rescues=variant.name))
        return found

    def fallbacks(
        self, variants: Sequence[VariantPlan], targets: Sequence[Target], budget: Sequence[BudgetLimit]
    ) -> list[VariantPlan]:
        """Return stronger compressions than the effort's, where nobody chose these and what is served has limits."""
        if self.recipe.compress or all(limit.column == "train_memory_bytes" for limit in budget):
            return []
        known, found = self.catalog.compressors, list[VariantPlan]()
        offered = {tuple(step.strategy for step in variant.chain) for variant in variants}
        for beginning in FALLBACKS:
            chains = [[known[step] for step in (*beginning, end) if step in known] for end in INT8]
            legal = next((chain for chain in chains if chain and not self.chain_refusal(chain, targets)), None)
            if legal is not None and tuple(step.name for step in legal) not in offered:
                found += self.expand(legal, EFFORTS["best"]["space"])
        return found

    def chain_refusal(self, chain: Sequence[Compressor], targets: Sequence[Target]) -> str | None:
        state: State = "dense"
        for compressor in chain:
            if state not in compressor.accepts:
                return (
                    f"{compressor.name} cannot follow: it takes {' or '.join(sorted(compressor.accepts))}, not {state}"
                )
            if reason := self.no_runtime(compressor.name, chain[-1].workload):
                return reason
            if compressor.yields != "dense" or state not in {"reshaped", "factorized"}:
                state = compressor.yields
        # What each is told of those behind it; values that the recipe gives make no quantizer of what is none.
        usual = [(one, {name: domain.default for name, domain in one.space.items()}) for one in chain]
        behind = [format_behind(usual[place:]) for place in range(1, len(chain) + 1)]
        reasons = []
        for target in targets:
            pinned = self.with_pinned(target, chain)
            told = (
                self.first_refusal([one], replace(pinned, weight_format=found))
                for one, found in zip(chain, behind, strict=True)
            )
            reasons.append(next((reason for reason in told if reason), None))
        return reasons[0] if reasons and all(reasons) else None

    def expand(self, chain: Sequence[Compressor], space: Mapping[str, Domain] | None = None) -> list[VariantPlan]:
        """Return a variant for each combination of the compressors' parameter values, defaults where none is given.

        Args:
            chain: compressors, one behind the other.
            space: domains by parameter, where the recipe gives none; the effort's if it is None.
        """
        space = self.effort["space"] if space is None else space
        axes: list[list[tuple[str, str, Any]]] = []
        for compressor in chain:
            for parameter, known in compressor.space.items():
                key = f"{compressor.name}.{parameter}"
                domain: Domain = space.get(key, Categorical((known.default,)))
                if key in self.recipe.space:
                    try:
                        domain = domain_from_recipe(self.recipe.space[key], known)
                        check_widened(domain, known, fixed=False)
                    except ValueError as error:
                        self.fault(f"space.{key}", str(error))
                values = (
                    domain.choices if isinstance(domain, Categorical) else (domain.low, domain.default, domain.high)
                )
                axes.append([(compressor.name, parameter, value) for value in dict.fromkeys(values)])
        variants = []
        changed = {*self.recipe.space, *space}
        for combination in itertools.product(*axes):
            params: dict[str, dict[str, Any]] = {compressor.name: {} for compressor in chain}
            for owner, parameter, value in combination:
                params[owner][parameter] = value
            named = {
                step.name: [f"{k}={v}" for k, v in params[step.name].items() if f"{step.name}.{k}" in changed]
                for step in chain
            }
            labels = [name + (f"({', '.join(given)})" if given else "") for name, given in named.items()]
            given_params = [(step, params[step.name]) for step in chain]
            steps = [
                StepPlan(
                    strategy=step.name,
                    params=params[step.name],
                    label=label,
                    weight_format=str(format_behind(given_params[place:])) if step.reads_weight_format else "",
                )
                for place, (step, label) in enumerate(zip(chain, labels, strict=True), start=1)
            ]
            trains = any(step.trains(params[step.name]) for step in chain)
            starts = [state for state in STARTS if state in chain[0].accepts]
            variants.append(VariantPlan(name="+".join(labels), chain=steps, trains=trains, starts=starts))
        return variants

    def augmenters(self, targets: Sequence[Target]) -> list[str]:
        known = self.catalog.augmenters
        given = self.recipe.augment
        wanted = given or self.effort["augment"] or ["none", *known]
        kinds = {column.kind for column in self.task.card.inputs}
        chosen = []
        for name in wanted:
            parts = [] if name == "none" else name.split("+")
            unknown = [part for part in parts if part not in known]
            if unknown:
                if given:
                    self.fault("augment", unknown_name("augmenter", unknown[0], [*known, "none"]))
                continue
            chain = [known[part] for part in parts]
            if not given and any(not kinds & augmenter.rewrites for augmenter in chain):
                # Nobody asked for it, and there is nothing here that it could change.
                continue
            reasons = (self.first_refusal(chain, self.with_pinned(target, chain)) for target in targets)
            if reason := next((reason for reason in reasons if reason), None):
                self.refuse(name, reason)
                if given:
                    self.warnings.append(f"augmenter {name} is left out: {reason}")
            else:
                chosen.append(name)
        return list(dict.fromkeys(chosen)) or ["none"]

    def with_pinned(self, target: Target, chain: Sequence[Strategy]) -> Target:
        """Return the target with what the recipe pins of the augmenters' parameters, for their checks to read."""
        names = [f"{augmenter.name}.{parameter}" for augmenter in chain for parameter in augmenter.space]
        given = {name: self.recipe.space[name] for name in names if name in self.recipe.space}
        single = {
            name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in given.items()
        }
        pinned = {name: value for name, value in single.items() if isinstance(value, str | int | float)}
        return replace(target, context=replace(target.context, params=pinned))

    def regularizers(self, targets: Sequence[Target]) -> list[str]:
        """Return the chains of regularizers to search; those that any model refuses are left out."""
        known = self.catalog.regularizers
        given = self.recipe.regularize
        chosen = []
        for name in given or self.effort["regularize"]:
            steps = [] if name == "none" else name.split("+")
            unknown = [step for step in steps if step not in known]
            if unknown:
                if given:
                    self.fault("regularize", unknown_name("regularizer", unknown[0], [*known, "none"]))
                continue
            if len(set(steps)) < len(steps):
                self.fault("regularize", f"{name!r} names a regularizer twice")
                continue
            chain = [known[step] for step in steps]
            reason = next((found for target in targets if (found := self.first_refusal(chain, target))), None)
            if chain and self.recipe.launcher.processes > 1:
                reason = f"{name} acts on a training by one process, and launcher.processes asks for more"
            if reason:
                self.refuse(name, reason)
                if given:
                    self.warnings.append(f"regularization {name} is left out: {reason}")
            else:
                chosen.append(name)
        return list(dict.fromkeys(chosen)) or ["none"]

    def unsuited(self, pipelines: Sequence[PipelinePlan], chains: Sequence[str]) -> list[tuple[str, str, str]]:
        """Return which chains of regularizers need more of a training than a pipeline gives."""
        found = []
        for pipeline, chain in itertools.product(pipelines, chains):
            adapter = self.catalog.adapters[pipeline.adapter]
            state = self.catalog.quantizers[pipeline.quantizer].yields if pipeline.quantizer else "dense"
            for name in [] if chain == "none" else chain.split("+"):
                one = self.catalog.regularizers[name]
                if state not in one.accepts:
                    found.append((pipeline.name, chain, f"{name} cannot work over a {state} base"))
                elif REACHES.index(adapter.reach) < REACHES.index(one.needs):
                    what = "all weights" if one.needs == "all" else "something of the model's layers"
                    found.append((pipeline.name, chain, f"{name} needs {what} to be trained, as full does"))
        for chain in chains:
            if pipelines and {pipeline.name for pipeline in pipelines} <= {
                one for one, other, _ in found if other == chain
            }:
                reason = next(reason for _, other, reason in found if other == chain)
                self.refuse(chain, reason)
                self.warnings.append(f"regularization {chain} suits none of the pipelines: {reason}")
        return found

    def usable(self, name: str, domain: Domain) -> Domain:
        """Return the domain of ``train.optimizer`` without those that do not pay or work here, as refusals say."""
        refused = refused_optimizers(self.hardware) if name == "train.optimizer" else {}
        launcher = self.recipe.launcher
        if name == "train.optimizer" and launcher.processes > 1 and launcher.sharding == "fsdp":
            why = "is not tried over parts of weights; use adamw, or launcher.sharding: none"
            refused.update({one: f"{one}: {why}" for one in OPTIMIZERS if one != "adamw"})
        if not refused or not isinstance(domain, Categorical):
            return domain
        left = tuple(choice for choice in domain.choices if choice not in refused)
        for choice in domain.choices:
            if choice in refused:
                self.refuse(f"{name}={choice}", refused[str(choice)])
                self.warnings.append(f"{name} {choice} is left out: {refused[str(choice)]}")
        if not left:
            self.fault(f"space.{name}", f"nothing is left: {'; '.join(refused[str(one)] for one in domain.choices)}")
            return domain
        return Categorical(left, domain.default)

    def space(
        self,
        models: Sequence[ModelPlan],
        pipelines: Sequence[PipelinePlan],
        augmenters: Sequence[str],
        regularizers: Sequence[str],
    ) -> tuple[dict[str, Domain], dict[str, str]]:
        ignored = self.task.card.ignores
        known: dict[str, Domain] = {name: domain for name, domain in TRAIN_SPACE.items() if name not in ignored}
        known.update(self.task.space())
        if self.recipe.auxiliary:
            known.update(AUXILIARY_SPACE)
        owners: list[Adapter | Quantizer | Augmenter | Regularizer] = [
            self.catalog.augmenters[part]
            for part in dict.fromkeys(part for name in augmenters if name != "none" for part in name.split("+"))
        ]
        steps = dict.fromkeys(step for chain in regularizers for step in chain.split("+") if step != "none")
        owners += [self.catalog.regularizers[name] for name in steps]
        adapters = dict.fromkeys(pipeline.adapter for pipeline in pipelines)
        quantizers = dict.fromkeys(pipeline.quantizer for pipeline in pipelines if pipeline.quantizer)
        owners = [
            *(self.catalog.quantizers[name] for name in quantizers),
            *(self.catalog.adapters[name] for name in adapters),
            *owners,
        ]
        searched: dict[str, Domain] = {}
        origins: dict[str, str] = {}
        if self.recipe.auxiliary:
            # Without them is the plain default: whether they help is for the search to find out.
            searched["auxiliary.weight"] = Categorical((0.0, 0.5, 1.0), 0.0)
            origins["auxiliary.weight"] = "auxiliary"
        scales = {pipeline.adapter: pipeline.rate_scales for pipeline in pipelines}
        for owner in owners:
            for parameter, domain in owner.space.items():
                key = f"{owner.name}.{parameter}"
                if parameter == "learning_rate" and scales.get(owner.name):
                    domain = _scaled(domain, [scales[owner.name].get(model.name, 1.0) for model in models])
                known[key], searched[key], origins[key] = domain, domain, owner.name
        everything = self.all_parameters()
        space: dict[str, Domain] = {}
        if models:
            space["model"] = Categorical(tuple(model.name for model in models))
        if pipelines:
            space["pipeline"] = Categorical(tuple(pipeline.name for pipeline in pipelines))
        space["augment"] = Categorical(tuple(augmenters), "none" if "none" in augmenters else augmenters[0])
        space["regularize"] = Categorical(tuple(regularizers), "none" if "none" in regularizers else regularizers[0])
        origins.update(
            {
                "model": "recipe",
                "pipeline": self.origin(self.recipe.pipelines),
                "augment": self.origin(self.recipe.augment),
                "regularize": self.origin(self.recipe.regularize),
            }
        )
        for name, domain in known.items():
            if name in self.recipe.space:
                try:
                    given = domain_from_recipe(self.recipe.space[name], domain)
                    check_widened(given, domain, fixed=name in TRAIN_SPACE)
                    space[name], origins[name] = self.usable(name, given), "recipe"
                except ValueError as error:
                    self.fault(f"space.{name}", str(error))
            elif name == "train.dropout" and self.keeps_no_dropout(models):
                # It is how such models are fine-tuned elsewhere, and dropout in attention keeps the fused kernels away.
                space[name], origins[name] = Categorical((0.0,)), "as pretrained"
            elif name in self.effort["space"]:
                space[name], origins[name] = self.effort["space"][name], f"effort: {self.recipe.effort}"
            elif name in searched or name.startswith("task."):
                space[name] = searched.get(name, domain)
                origins.setdefault(name, self.task.card.name)
            else:
                space[name], origins[name] = Categorical((domain.default,)), "default"
        for name in self.recipe.space:
            if name in {"model", "pipeline", "augment", "regularize"}:
                section = "pipelines" if name == "pipeline" else name
                self.fault(f"space.{name}", f"is set by the key {section!r} at the top of the recipe")
            elif name not in everything:
                self.fault(f"space.{name}", unknown_name("parameter", name, everything))
            elif name in ignored:
                self.warnings.append(f"space.{name} has no effect: {self.task.card.name} makes no use of it")
            elif name not in space and everything[name] not in self.catalog.compressors:
                self.warnings.append(f"space.{name} has no effect: {everything[name]} is not searched")
        return space, origins

    def keeps_no_dropout(self, models: Sequence[ModelPlan]) -> bool:
        writes = self.task.card.generates and bool(models)
        return writes and all(trained_without_dropout(model.config) for model in models)

    def rate_scales(self, adapter: Adapter, targets: Sequence[Target]) -> dict[str, float]:
        """Return how many times as high as declared an adapter's learning rates are for each model, where not once for all."""
        if f"{adapter.name}.learning_rate" in self.recipe.space:
            return {}
        scales = {target.source.name: adapter.rate_scale(target) for target in targets}
        return scales if any(scale != 1.0 for scale in scales.values()) else {}

    def origin(self, given: object) -> str:
        return "recipe" if given else f"effort: {self.recipe.effort}"

    def all_parameters(self) -> dict[str, str]:
        auxiliary = AUXILIARY_SPACE if self.recipe.auxiliary else {}
        names = dict.fromkeys([*TRAIN_SPACE, *auxiliary, *self.task.space()], "autoft")
        for strategy in self.catalog.strategies.values():
            names.update({f"{strategy.name}.{parameter}": strategy.name for parameter in strategy.space})
        return names

    def objectives(self, models: Sequence[ModelPlan]) -> list[str]:
        quality = self.quality()
        if not quality:
            self.fault(
                "task", f"the metrics of {self.task.card.name} are not installed: {', '.join(self.task.card.metrics)}"
            )
            return [""]
        given = self.recipe.search.objectives or [quality[0]]
        metrics = self.catalog.metrics_of(self.task)
        kinds = {(model.config.get("model_type"), model.config.get("vocab_size")) for model in models}
        if len(kinds) > 1 and given[0] in metrics and metrics[given[0]].per_token:
            self.warnings.append(
                f"{given[0]} counts the tokens of each model's own tokenizer, and models with different ones cannot be "
                "compared by it"
            )
            like = [name for name, one in metrics.items() if one.uses == metrics[given[0]].uses and not one.per_token]
            if like and not self.recipe.search.objectives:
                given = like[:1]
                self.warnings[-1] += f"; the objective is {given[0]} instead (search.objectives says otherwise)"
        columns = {column: metric for metric in self.catalog.cost_metrics.values() for column in metric.columns}
        for name in given:
            if name in columns:
                self.measurable("search.objectives", columns[name])
            elif name not in quality:
                self.fault("search.objectives", unknown_name("metric", name, [*quality, *columns]))
        if given[0] not in quality:
            self.fault("search.objectives", f"the first has to be a quality metric: {', '.join(quality)}")
        return given

    def same_answers(self, objectives: Sequence[str], space: Mapping[str, Domain], models: Sequence[ModelPlan]) -> None:
        """Tell where trials would be compared by how likely they find answers that each of them cuts elsewhere."""
        length, metrics = space["train.max_length"], self.catalog.metrics_of(self.task)
        wanted = length.choices[0] if isinstance(length, Categorical) and len(length.choices) == 1 else None
        for name in objectives:
            if name in metrics and metrics[name].uses == "targets":
                like = next((other for other, one in metrics.items() if one.uses != "targets"), None)
                if isinstance(wanted, int):
                    self.same_positions(name, wanted, models, like)
                    continue
                self.fault(
                    "space.train.max_length",
                    f"{name} is of answers that are cut at this length, so that trials of different lengths would be "
                    "compared by different texts; give one length"
                    + (f", or search.objectives: {like}" if like else ""),
                )

    def same_positions(self, name: str, wanted: int, models: Sequence[ModelPlan], like: str | None) -> None:
        """Warn where models that take fewer tokens than others would be compared with these by shorter answers."""
        limits = [min(wanted, usable_positions(model.config) or wanted) for model in models]
        if len(set(limits)) > 1:
            short = models[limits.index(min(limits))]
            self.warnings.append(
                f"{name} is of answers that are cut at train.max_length or at the positions of a model: {short.name} takes "
                f"{min(limits)} tokens, and others take {max(limits)}, so that longer rows would be compared by different "
                f"texts; set train.max_length to {min(limits)}" + (f", or search.objectives to {like}" if like else "")
            )

    def measurable(self, key: str, metric: CostMetric) -> None:
        refusal = metric.check(self.hardware.device, self.workers)
        if refusal is not None:
            self.fault(key, f"{metric.name} cannot be measured here: {refusal.reason}")

    def budget(self) -> list[BudgetLimit]:
        limits, faults = budget_limits(self.recipe.budget, self.catalog)
        self.faults.extend(faults)
        for limit in limits:
            if metric := self.catalog.cost_metrics.get(limit.key):
                self.measurable(f"budget.{limit.key}", metric)
        if self.device is not None:
            memory = self.device.memory_bytes
            limits.append(
                BudgetLimit(key="target", column="inference_memory_bytes", limit=memory, given=format_bytes(memory))
            )
        return limits


def _known_of(metric: QualityMetric) -> dict[str, bool]:
    """Return what a plan knows of a metric: its direction, and what of it makes figures of two models different things."""
    further = {"per_token": metric.per_token, "of_targets": metric.uses == "targets"}
    return {"higher_is_better": metric.higher_is_better, **{name: True for name, holds in further.items() if holds}}


def _on_device(hardware: Hardware, device: str) -> Hardware:
    if device == "cpu":
        return Hardware.probe_cpu()
    return Hardware.from_json({**hardware.to_json(), "device": device})


def _scaled(domain: Domain, scales: Sequence[float]) -> Domain:
    """Return the domain of a learning rate that is so many times as high for each model; its default is the first one's."""
    if not isinstance(domain, Float):
        return domain
    low, high, default = (
        float(f"{rate:.3g}")
        for rate in (domain.low * min(scales), domain.high * max(scales), domain.default * scales[0])
    )
    return Float(low, high, default, log=domain.log)
