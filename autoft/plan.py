"""Recipe, plugins and hardware become a plan: the one place where names resolve and compatibility is decided.

Nothing here imports torch: a plan is made, and explained, in well under a second.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from autoft.contracts import (
    Adapter,
    Augmenter,
    Compressor,
    CostMetric,
    ModelSource,
    Quantizer,
    Reach,
    Regularizer,
    State,
    Strategy,
    Target,
    Task,
    TaskContext,
    WeightFormat,
)
from autoft.data.sources import package_path
from autoft.device import read_profile
from autoft.errors import DataError, Fault, ModelError, RunFolderError, closest, first_line, unknown_name
from autoft.gguf import converted
from autoft.hardware import Hardware
from autoft.losses import LOSSES
from autoft.optimizers import OPTIMIZERS, refused_optimizers
from autoft.plugins import Catalog
from autoft.pretrained import dense_folder
from autoft.quantities import format_bytes, format_seconds, parse_bytes, parse_multiple, parse_seconds
from autoft.recipe import BudgetSection, LatencyLimit, Recipe
from autoft.rundir import RunRecord, TrialConfig, TrialResult, read_json
from autoft.space import (
    Categorical,
    Domain,
    Float,
    Int,
    check_widened,
    domain_from_json,
    domain_from_recipe,
    domain_to_json,
)
from autoft.version import __version__

__all__ = [
    "AUXILIARY_SPACE",
    "EFFORTS",
    "TRAIN_SPACE",
    "WIDE",
    "AuxiliaryPlan",
    "BudgetLimit",
    "ModelPlan",
    "PipelinePlan",
    "Plan",
    "RefusalNote",
    "StepPlan",
    "TargetDevice",
    "VariantPlan",
    "auxiliary_target",
    "budget_limits",
    "epochs_again",
    "format_behind",
    "make_plan",
    "plan_of",
    "plan_target",
    "read_plan",
    "violations",
]

TRAIN_SPACE: dict[str, Domain] = {
    "train.epochs": Int(1, 100, 3),
    "train.batch_size": Int(1, 4096, 16),
    "train.gradient_accumulation": Int(1, 256, 1),
    "train.schedule": Categorical(("linear", "cosine", "constant", "inverse-sqrt", "plateau")),
    "train.warmup": Float(0.0, 0.5, 0.06),
    "train.weight_decay": Float(0.0, 0.5, 0.01),
    "train.label_smoothing": Float(0.0, 0.5, 0.0),
    "train.dropout": Float(0.0, 0.6, 0.1),
    "train.class_weights": Categorical(("none", "balanced")),
    "train.loss": Categorical(LOSSES),
    "train.optimizer": Categorical(tuple(OPTIMIZERS)),
    "train.gradient_checkpointing": Categorical((False, True)),
    "train.head": Categorical(("fitted", "random")),
    "train.max_grad_norm": Float(0.05, 100.0, 1.0),
    "train.max_length": Int(8, 131072, 512),
}
"""Every training parameter and the widest domain that a recipe may ask for. ``train.warmup`` is a share of all steps."""

AT_ONCE = 8
"""How many LoRA trials a worker trains at once on a GPU, at most, where the recipe leaves it open."""

REACHES: tuple[Reach, ...] = ("head", "layers", "all")

STARTS: tuple[State, ...] = ("dense", "adapted")
"""What a trained model can be: merged into plain weights, or with an adapter that stays beside them."""

AUXILIARY_SPACE: dict[str, Domain] = {
    "auxiliary.weight": Float(0.0, 100.0, 0.0),
    "auxiliary.temperature": Float(1.0, 1000.0, 2.0),
}
"""Parameters of training with auxiliary tasks, there where the recipe has some."""

EFFORTS: dict[str, dict[str, Any]] = {
    "quick": {
        "ensemble": 0,
        "pipelines": ["full"],
        "compress": ["none", "onnx-int8"],
        "augment": ["none"],
        "regularize": ["none"],
        "space": {
            "train.epochs": Int(1, 3, 2),
            "train.batch_size": Categorical((16, 32)),
            "train.max_length": Categorical((256,)),
        },
    },
    "balanced": {
        "ensemble": 0,
        "pipelines": ["full", "lora"],
        "compress": ["none", "dynamic-int8", "onnx", "onnx-int8"],
        "augment": ["none", "random-deletion", "random-swap", "mention-replacement"],
        "regularize": ["none"],
        "space": {
            "train.epochs": Int(2, 5, 3),
            "train.batch_size": Categorical((16, 32)),
            "train.schedule": Categorical(("linear", "cosine")),
            "train.warmup": Float(0.0, 0.15, 0.06),
            "train.weight_decay": Float(0.0, 0.1, 0.01),
            "train.label_smoothing": Float(0.0, 0.15, 0.0),
            "train.dropout": Float(0.0, 0.25, 0.1),
            "lora.start": Categorical(("default",)),
            "lora.plus": Categorical((1.0,)),
        },
    },
    "best": {
        "ensemble": 3,
        "pipelines": None,
        # Those that lie on the front of quality, size and latency: graphs in int8 are as small as torch's, and faster, and
        # zeroed weights alone make a model neither smaller nor faster. Chains that train come with the strongest first,
        # which a short search has time for; those that begin like it cost hardly more.
        "compress": [
            "none",
            "onnx|bf16-weights",
            "onnx-int8|dynamic-int8",
            "vocabulary-pruning+onnx-int8",
            "layer-pruning+ffn-pruning+vocabulary-pruning+onnx-int8",
            "layer-pruning+ffn-pruning+onnx-int8",
            "layer-pruning+vocabulary-pruning+onnx-int8",
            "layer-pruning+onnx-int8",
            "ffn-pruning+vocabulary-pruning+onnx-int8",
            "ffn-pruning+onnx-int8",
        ],
        # One or two of each idea (words away, about, in the place of others; letters; tags; pictures): with all twenty,
        # most trials would go into telling near relatives apart, which docs/augmentation.md found hard to do.
        "augment": [
            "none",
            "synonyms",
            "random-swap",
            "random-deletion",
            "random-replacement",
            "character-noise",
            "masked-replacement",
            "mention-replacement",
            "label-wise-replacement",
            "horizontal-flip",
            "random-resized-crop",
        ],
        "regularize": ["none", "r-drop", "fgm", "ema"],
        "space": {
            "train.epochs": Int(2, 8, 3),
            "train.batch_size": Categorical((8, 16, 32, 64), 16),
            "train.schedule": TRAIN_SPACE["train.schedule"],
            "train.warmup": Float(0.0, 0.2, 0.06),
            "train.weight_decay": Float(0.0, 0.2, 0.01),
            "train.label_smoothing": Float(0.0, 0.2, 0.0),
            "train.dropout": Float(0.0, 0.3, 0.1),
            "train.class_weights": TRAIN_SPACE["train.class_weights"],
            "lora.start": Categorical(("default", "pissa")),
            "lora.plus": Categorical((1.0, 4.0, 16.0)),
            "vocabulary-pruning.unseen": Categorical((0.005, 1.0)),
        },
    },
}
"""What the words of ``effort`` stand for: None means what the task names or all that are legal, of pipelines those of
:data:`WIDE`; parameters not named keep their default. Of compressions with ``|`` the first legal one is taken. In lists of
augmenters and regularizers the best founded come first: a long search tries these before the sampler chooses."""

# Not all that are legal: some eighty chains would leave each a trial or none. These differ in what they cost and in how
# much they can learn; the others are there for recipes that name them, and docs/adapters.md says what each is for.
GENERATED_ROWS = 200
"""Validation rows that are generated at a checkpoint: the standard error of a share of them is .035 at most."""

PREDICTED_ROWS = 2000
"""Validation rows that are predicted at a checkpoint: the standard error of a share of them is .011 at most."""

WIDE = ("full", "lora", "top-layers", "head-only", "nf4+lora")
"""Pipelines that are searched where neither recipe nor effort nor task names any."""


class _Plan(BaseModel):
    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="constants")


class ModelPlan(_Plan):
    """One base model: the recipe's name for it, where it is, and its configuration."""

    name: str
    path: str
    revision: str | None = None
    config: dict[str, Any]
    size_bytes: int
    """Of its weights on disk; 0 where they are not on disk yet."""


class PipelinePlan(_Plan):
    """A legal chain of base quantization and adapter."""

    name: str
    quantizer: str | None
    adapter: str
    leaves: State = "dense"
    """What the trained model is, and compressions start from."""


class StepPlan(_Plan):
    """One compressor of a variant and its parameters."""

    strategy: str
    params: dict[str, str | int | float | bool | None] = {}
    label: str = ""
    """Its name, with the parameters that the recipe gives."""
    weight_format: str = ""
    """How a later step quantizes, where this one goes by it: the same step before another one is not the same."""


class VariantPlan(_Plan):
    """A legal chain of compressors, applied to every trained model."""

    name: str
    chain: list[StepPlan]
    trains: bool = False
    """A step trains the model again: it is made of the best trial alone, where a variant that does not can fit."""
    rescues: str = ""
    """Name of the variant that quantizes alike without training for it; empty for variants that are made in any case."""
    starts: list[State] = ["dense"]
    """From which states of a trained model the chain can start."""

    @property
    def beginnings(self) -> list[str]:
        """By step, what the chain is up to there: what two variants have in common of these is done once."""
        steps = [step.model_dump_json(exclude={"label"}) for step in self.chain]
        return ["+".join(steps[: count + 1]) for count in range(len(steps))]

    @property
    def teachers(self) -> int:
        """Of how many trials the models are wanted to learn from."""
        return max((int(step.params.get("teachers") or 1) for step in self.chain), default=1)


class AuxiliaryPlan(_Plan):
    """A further task that is trained along."""

    task: str
    options: dict[str, str | int | float | bool | None]
    weight: float
    facts: dict[str, Any] = {}
    rows: int = 0
    """Of its training split."""


class BudgetLimit(_Plan):
    """A limit on a column: ``latency.p50`` limits ``latency_p50_ms``."""

    key: str
    column: str
    limit: float
    given: str


class TargetDevice(_Plan):
    """The device that models are for, where it is not the machine that searches."""

    name: str
    cpu: str
    threads: int
    memory_bytes: int
    milliseconds: dict[str, list[float]]
    """By workload, as its profile says."""
    scales: dict[str, float] = {}
    """By workload, how many times as long it takes there as here; empty until this machine is measured."""

    @property
    def text(self) -> str:
        """What a reader has to know of figures for this device."""
        scales = ", ".join(f"{scale:.3g} ({name})" for name, scale in self.scales.items())
        cpu = f" ({self.cpu}, {self.threads} thread{'s' if self.threads > 1 else ''})" if self.cpu else ""
        return (
            f"Latency is told for {self.name}{cpu}: measured on this machine, times {scales}, as its profile says. "
            "Measure the model there before you rely on it."
        )


class Setting(_Plan):
    """A pipeline with its parameters, by full name, that did well elsewhere; ``model`` where it was one of a certain name."""

    pipeline: str
    params: dict[str, str | int | float | bool | None]
    model: str = ""


class RefusalNote(_Plan):
    """What is not used, and why."""

    what: str
    reason: str


class Plan(_Plan):
    """All that is decided before the first trial. Plain JSON: workers rebuild it from the run folder."""

    autoft: str
    name: str
    task: str
    notice: str = ""
    """What everybody has to read first of the task's models."""
    options: dict[str, str | int | float | bool | None]
    auxiliary: list[AuxiliaryPlan] = []
    models: list[ModelPlan]
    init_from: str | None = None
    """Name of the model that an earlier run left, among the models."""
    like: str | None = None
    """Folder of an earlier run whose best configurations are tried early."""
    known: list[Setting] = []
    """These configurations."""
    pipelines: list[PipelinePlan]
    variants: list[VariantPlan]
    rescues: list[VariantPlan] = []
    """Variants that are made only where the one that each rescues is too much worse than the uncompressed model."""
    space: dict[str, dict[str, Any]]
    """Domains by parameter, as JSON; ``model`` and ``pipeline`` among them."""
    origins: dict[str, str]
    """By parameter: ``recipe``, ``effort: balanced``, ``default`` or the strategy's name."""
    illegal: list[tuple[str, str, str]] = []
    """Pairs of model and pipeline that cannot go together, and why."""
    unsuited: list[tuple[str, str, str]] = []
    """Pairs of pipeline and chain of regularizers that cannot go together, and why."""
    refusals: list[RefusalNote]
    warnings: list[str]
    objective: str
    objectives: list[str]
    metrics: dict[str, dict[str, bool]]
    budget: list[BudgetLimit]
    time_limit: float
    """Of the whole command, in seconds; infinite until a multiple is known in seconds."""
    time_multiple: float | None = None
    """The limit as a multiple of one default training, where the recipe gives it so."""
    trials_limit: int | None
    request: dict[str, int | None]
    """What latency is measured on: ``batch_size``, and ``length`` where the recipe states one."""
    target: TargetDevice | None = None
    effort: str
    sampler: str
    early_stopping: str
    validation_rows: int | None = None
    """Rows that a validation within a training reads at most; None for all."""
    seed: int
    tolerance: float
    finalist_seeds: int
    folds: int = 1
    ensemble: int = 0
    storage_bytes: int
    trackers: list[str] = []
    """Where trials are logged to as well."""
    workers: int
    together: int = 1
    """How many LoRA trials of one model a worker trains at once, at most."""
    threads: int
    device: str
    trust_remote_code: bool
    hardware: dict[str, Any]
    environment: dict[str, str]
    facts: dict[str, Any] = {}
    data: dict[str, Any] = {}

    @property
    def time_text(self) -> str:
        """The time limit in words."""
        times = f"{self.time_multiple:g} times one default training" if self.time_multiple else ""
        if math.isinf(self.time_limit):
            return times
        return f"{format_seconds(self.time_limit)}" + (f" ({times})" if times else "")

    def rows_of_validation(self, there: int) -> int:
        """Return how many of the rows that are there a validation within a training reads."""
        return there if self.validation_rows is None else min(there, self.validation_rows)

    def domain(self, name: str) -> Domain:
        """Return the domain of a parameter."""
        return domain_from_json(self.space[name])

    def model(self, name: str) -> ModelPlan:
        """Return the model that the recipe names so."""
        return next(model for model in self.models if model.name == name)

    def pipeline(self, name: str) -> PipelinePlan:
        """Return the pipeline of this name."""
        return next(pipeline for pipeline in self.pipelines if pipeline.name == name)

    def variants_of(self, pipeline: str, *, rescues: bool = False) -> list[VariantPlan]:
        """Return the compressions of models that a pipeline trains, and on demand those that rescue others of them."""
        offered = self.every_variant if rescues else self.variants
        return [variant for variant in offered if self.pipeline(pipeline).leaves in variant.starts]

    def parameters(self, pipeline: str, augment: str | None, regularize: str | None = None) -> list[str]:
        """Return the names of the parameters that a configuration has, ``model`` and ``pipeline`` left out."""
        chain = self.pipeline(pipeline)
        prefixes = {"train", "task", "auxiliary", chain.adapter, chain.quantizer, *(augment or "").split("+")}
        prefixes.update((regularize or "").split("+"))
        names = [name for name in self.space if name not in {"model", "pipeline"}]
        return [name for name in names if name in {"augment", "regularize"} or name.split(".", 1)[0] in prefixes]

    def unfit(self, model: str, pipeline: str, regularize: object) -> str | None:
        """Return why a model, a pipeline and a chain of regularizers cannot go together, or None."""
        pairs = [*self.illegal, *self.unsuited]
        reasons = {(one, other): reason for one, other, reason in pairs}
        return reasons.get((model, pipeline)) or reasons.get((pipeline, str(regularize)))

    def default_params(self, pipeline: str, **changes: Any) -> dict[str, Any]:
        """Return a configuration of defaults; ``changes`` by parameter name, kept where the domain allows them."""
        chosen: list[str | None] = []
        for name in ("augment", "regularize"):
            domain = self.domain(name) if name in self.space else None
            kept = domain is not None and domain.contains(changes.get(name))
            chosen.append(None if domain is None else str(changes[name] if kept else domain.default))
        params = {name: self.domain(name).default for name in self.parameters(pipeline, *chosen)}
        for name, value in changes.items():
            if name in params and self.domain(name).contains(value):
                params[name] = value
        return params

    def default_config(self) -> TrialConfig:
        """Return trial 0: the plain default fine-tune of the first model, the report's yardstick."""
        names = [pipeline.name for pipeline in self.pipelines]
        pipeline = "full" if "full" in names else names[0]
        return TrialConfig(
            number=0,
            kind="default",
            model=self.models[0].name,
            pipeline=pipeline,
            params=self.default_params(pipeline),
            seed=self.seed,
        )

    def auxiliary_steps(self, params: Mapping[str, Any]) -> list[float]:
        """Return how many steps of each auxiliary task there are for each step of the plan's own.

        Tasks are drawn in proportion to ``rows ** (1 / temperature)``: 1 is by size, a high temperature makes all alike
        (Arivazhagan et al. 2019, arXiv:1907.05019, section 4.1).
        """
        if not params.get("auxiliary.weight"):
            return [0.0] * len(self.auxiliary)
        own = max(1, int(self.data["sizes"]["train"]))
        return [(one.rows / own) ** (1 / float(params["auxiliary.temperature"])) for one in self.auxiliary]

    @property
    def train_memory(self) -> float | None:
        """The bytes that a training may take, or None where the budget does not say."""
        return next((limit.limit for limit in self.budget if limit.column == "train_memory_bytes"), None)

    @property
    def every_variant(self) -> list[VariantPlan]:
        """The variants, and those that may be made in addition."""
        return [*self.variants, *self.rescues]

    @property
    def teachers(self) -> int:
        """Of how many trials the models are wanted for one that learns from them."""
        return max((variant.teachers for variant in self.every_variant), default=1)

    def trained_again(self, result: TrialResult) -> list[VariantPlan]:
        """Return the variants with a training that are due for a trial, those that it has already left out."""
        lost, there = self.lost(result), {variant.name for variant in result.variants}
        offered = self.variants_of(result.config.pipeline, rescues=True)
        wanted = [variant for variant in offered if variant.trains and (not variant.rescues or variant.rescues in lost)]
        return [variant for variant in wanted if variant.name not in there]

    def lost(self, result: TrialResult) -> dict[str, float]:
        """Return by how much quantization makes a trial's model worse, by variant that could be rescued.

        Those within ``tolerance`` of the uncompressed model (its share, above 1) and those over the budget are left out.
        """
        sign = 1 if self.higher_is_better else -1
        plain = (variant.validation for variant in result.variants if variant.name == "none" and variant.validation)
        whole = next(plain, result.validation).get(self.objective, math.nan)
        lost = {
            variant.name: sign * (whole - variant.validation.get(self.objective, math.nan))
            for variant in result.variants
            if variant.state == "complete" and any(variant.name == other.rescues for other in self.rescues)
        }
        # Comparisons with what is no number are false.
        slack = self.tolerance * max(1.0, abs(whole)) + 1e-9
        return {name: by for name, by in lost.items() if by > slack}

    @property
    def higher_is_better(self) -> bool:
        """The direction of the objective."""
        return self.metrics[self.objective]["higher_is_better"]

    def with_data(self, facts: Mapping[str, Any], data: Mapping[str, Any], warnings: Iterable[str]) -> Plan:
        """Return the plan completed by what the data says."""
        update = {"facts": dict(facts), "data": dict(data), "warnings": [*self.warnings, *warnings]}
        return self.model_copy(update=update)

    def with_auxiliary(self, known: Sequence[tuple[Mapping[str, Any], int]], warnings: Iterable[str]) -> Plan:
        """Return the plan completed by the facts and the training rows of each auxiliary task."""
        auxiliary = [
            one.model_copy(update={"facts": dict(facts), "rows": rows})
            for one, (facts, rows) in zip(self.auxiliary, known, strict=True)
        ]
        return self.model_copy(update={"auxiliary": auxiliary, "warnings": [*self.warnings, *warnings]})


def read_plan(path: Path) -> Plan:
    """Read the plan of a run folder.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    return _checked_plan(read_json(path), path)


def plan_of(record: RunRecord) -> Plan:
    """Return the plan of a record.

    Raises:
        RunFolderError: the record's plan is none.
    """
    return _checked_plan(record.plan, record.path / "plan.json")


def _checked_plan(value: object, path: Path) -> Plan:
    try:
        return Plan.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunFolderError(
            f"{path}: is damaged (at {where!r}: {first['msg']}); it is not a plan of autoft"
        ) from error


ROUNDED = 2.5
"""What an epoch takes at most with rounded numbers, as a share of one without: matrices are rounded in each pass."""


def epochs_again(variants: Iterable[VariantPlan], done: Iterable[str] = ()) -> float:
    """Return how many epochs variants train again together; what they begin alike counts once, and ``done`` not at all.

    One with rounded numbers counts for as many as it takes the time of.
    """
    steps = {
        beginning: int(step.params.get("epochs") or 0) * (ROUNDED if step.weight_format else 1.0)
        for variant in variants
        for beginning, step in zip(variant.beginnings, variant.chain, strict=True)
    }
    return sum(steps.values()) - sum(steps.get(beginning, 0) for beginning in set(done))


def violations(costs: Mapping[str, float], limits: Sequence[BudgetLimit]) -> dict[str, float]:
    """Return by how much each limit is exceeded, as a share of the limit; those kept are left out."""
    over = {limit.key: costs[limit.column] / limit.limit - 1 for limit in limits if limit.column in costs}
    return {key: value for key, value in over.items() if value > 0}


def format_behind(chain: Iterable[tuple[Compressor, Mapping[str, Any]]]) -> WeightFormat | None:
    """Return how the first of these compressors that quantizes does, each with its parameters; None where none does."""
    formats = (compressor.weight_format(params) for compressor, params in chain)
    return next((found for found in formats if found is not None), None)


def auxiliary_target(plan: Plan, number: int, task: Task, target: Target) -> Target:
    """Return what an auxiliary task works upon: the model, processor and settings of the trial, its own facts and options."""
    one, context = plan.auxiliary[number], target.context
    own = {name: domain.default for name, domain in task.space().items()}
    params = {**{name: value for name, value in context.params.items() if not name.startswith("task.")}, **own}
    return replace(target, task=task, context=replace(context, facts=one.facts, options=one.options, params=params))


def plan_target(
    plan: Plan,
    task: Task,
    model: ModelPlan,
    *,
    params: Mapping[str, Any],
    seed: int = 0,
    processor: Any = None,
    cache: Path | None = None,
    reserved: int = 0,
) -> Target:
    """Return what strategies work upon for one configuration of the plan; ``reserved`` as in the context."""
    longest = model.config.get("max_position_embeddings")
    wanted = int(params.get("train.max_length") or 512)
    context = TaskContext(
        facts=plan.facts,
        options=plan.options,
        params=params,
        max_length=min(wanted, usable_positions(model.config) - reserved) if isinstance(longest, int) else wanted,
        device=plan.device,
        seed=seed,
        processor=processor,
        reserved=reserved,
    )
    source = ModelSource(
        name=model.name, path=model.path, revision=model.revision, trust_remote_code=plan.trust_remote_code
    )
    return Target(task, source, model.config, context, Hardware.from_json(plan.hardware), cache)


def usable_positions(config: Mapping[str, Any]) -> int:
    """Return how many tokens a model takes; the RoBERTa family keeps two positions for itself."""
    positions = int(config["max_position_embeddings"])
    roberta = str(config.get("model_type", "")) in {"roberta", "xlm-roberta", "camembert", "longformer"}
    return positions - 2 if roberta else positions


def make_plan(
    recipe: Recipe, catalog: Catalog, hardware: Hardware, base: Path | None = None, *, source: str = "recipe"
) -> Plan:
    """Resolve a recipe's names and decide what is legal, before any data is read.

    Args:
        recipe: as :func:`autoft.recipe.load_recipe` returns it.
        catalog: what the installed plugins offer.
        hardware: the machine.
        base: folder that relative model paths start from; default: the working directory.
        source: the recipe's file, for messages.

    Raises:
        RecipeError: all names and values that do not resolve, together.
        PluginError: the task is not installed.
        ModelError: a model cannot be found.
    """
    return _Planner(recipe, catalog, hardware, base or Path.cwd(), source).plan()


class _Planner:
    def __init__(self, recipe: Recipe, catalog: Catalog, hardware: Hardware, base: Path, source: str) -> None:
        self.recipe, self.catalog, self.base, self.source = recipe, catalog, base, source
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
        rescues = self.rescues(variants, targets) if search.quantization_aware == "auto" else []
        augmenters = self.augmenters(targets)
        regularizers = self.regularizers(targets)
        unsuited = self.unsuited(pipelines, regularizers)
        space, origins = self.space(models, pipelines, augmenters, regularizers)
        objectives = self.objectives()
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
        budget, multiple = self.budget(), parse_multiple(recipe.budget.time)
        together = self.together(objectives)
        if self.faults:
            raise recipe.error(self.faults, self.source)
        request = recipe.budget.latency or LatencyLimit()
        threads = recipe.executor.threads or max(1, self.hardware.cores // recipe.executor.workers)
        quality = {
            name: {"higher_is_better": metric.higher_is_better}
            for name, metric in self.catalog.metrics_of(self.task).items()
        }
        return Plan(
            autoft=__version__,
            name=recipe.name or "run",
            task=recipe.task,
            notice=self.task.card.notice,
            options=options,
            auxiliary=auxiliary,
            models=models,
            init_from=recipe.init_from,
            like=like,
            pipelines=pipelines,
            variants=variants,
            rescues=rescues,
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
            trackers=list(dict.fromkeys(recipe.trackers)),
            workers=recipe.executor.workers,
            together=together,
            threads=threads,
            device=self.hardware.device,
            trust_remote_code=recipe.trust_remote_code,
            hardware=self.hardware.to_json(),
            environment=environment(),
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
            return AT_ONCE if self.hardware.device == "cuda" and not counts else 1
        if given < 1:
            self.fault("executor.together", f"has to be auto or at least 1, given {given}")
        elif given > 1 and counts:
            self.fault(
                "executor.together",
                "trials that train together share their memory, and this recipe asks for that of each training; set it "
                "to 1, or leave train_memory out of budget and objectives",
            )
        return given

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
                models.append(self.resolve_model(name))
            except ModelError as error:
                self.fault(where, str(error))
        if self.recipe.init_from:
            try:
                folder = self.earlier(self.recipe.init_from)
                models.append(_local_model(self.recipe.init_from, folder))
            except ModelError as error:
                self.fault("init_from", str(error))
        return models

    def like(self) -> str | None:
        """Return the folder of the earlier run that this one is to be like."""
        name = self.recipe.search.like
        if name is None:
            return None
        run = next((path for path in (self.base / name, Path(name).expanduser()) if path.is_dir()), None)
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

    def earlier(self, name: str) -> Path:
        """Return the folder of the dense weights that an earlier run kept: the chosen ones, else the default's."""
        run = next((path for path in (self.base / name, Path(name).expanduser()) if path.is_dir()), None)
        if run is None:
            raise ModelError(f"no such folder: {name}; give the folder of a finished run, as runs/reviews")
        found = dense_folder(run)
        if found is None:
            raise ModelError(
                f"{name} holds no trained model that can be trained on; give the folder of a finished run, as runs/reviews"
            )
        return found

    def resolve_model(self, name: str) -> ModelPlan:
        if name.startswith("package://"):
            try:
                path = package_path(name)
            except DataError as error:
                raise ModelError(str(error)) from None
            return _local_model(name, path)
        for path in (self.base / name, Path(name).expanduser()):
            if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
                return _local_model(name, path)
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            parent = (self.base / name).parent
            near = closest(Path(name).name, [entry.name for entry in parent.iterdir()] if parent.is_dir() else [])
            hint = f"; did you mean {near!r}?" if near else ""
            raise ModelError(f"no such folder: {name}{hint}")
        return _hub_model(name)

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
            variants.extend(self.expand(name, [known[step] for step in steps]))
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
            for training in self.expand(aware.name, [aware]):
                steps = [*before, *training.chain, *behind]
                name = "+".join(step.label for step in steps)
                if training.trains and all(name != other.name for other in variants):
                    found.append(VariantPlan(name=name, chain=steps, trains=True, rescues=variant.name))
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

    def expand(self, name: str, chain: Sequence[Compressor]) -> list[VariantPlan]:
        """Return a variant for each combination of the compressors' parameter values, defaults where none is given."""
        axes: list[list[tuple[str, str, Any]]] = []
        for compressor in chain:
            for parameter, known in compressor.space.items():
                key = f"{compressor.name}.{parameter}"
                domain: Domain = self.effort["space"].get(key, Categorical((known.default,)))
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
        changed = {*self.recipe.space, *self.effort["space"]}
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
        """Return the domain of ``train.optimizer`` without those that do not pay on this machine, as refusals say."""
        refused = refused_optimizers(self.hardware) if name == "train.optimizer" else {}
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
        for owner in owners:
            for parameter, domain in owner.space.items():
                key = f"{owner.name}.{parameter}"
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

    def origin(self, given: object) -> str:
        return "recipe" if given else f"effort: {self.recipe.effort}"

    def all_parameters(self) -> dict[str, str]:
        auxiliary = AUXILIARY_SPACE if self.recipe.auxiliary else {}
        names = dict.fromkeys([*TRAIN_SPACE, *auxiliary, *self.task.space()], "autoft")
        for strategy in self.catalog.strategies.values():
            names.update({f"{strategy.name}.{parameter}": strategy.name for parameter in strategy.space})
        return names

    def objectives(self) -> list[str]:
        quality = self.quality()
        if not quality:
            self.fault(
                "task", f"the metrics of {self.task.card.name} are not installed: {', '.join(self.task.card.metrics)}"
            )
            return [""]
        given = self.recipe.search.objectives or [quality[0]]
        columns = {column: metric for metric in self.catalog.cost_metrics.values() for column in metric.columns}
        for name in given:
            if name in columns:
                self.measurable("search.objectives", columns[name])
            elif name not in quality:
                self.fault("search.objectives", unknown_name("metric", name, [*quality, *columns]))
        if given[0] not in quality:
            self.fault("search.objectives", f"the first has to be a quality metric: {', '.join(quality)}")
        return given

    def measurable(self, key: str, metric: CostMetric) -> None:
        refusal = metric.check(self.hardware.device, self.recipe.executor.workers)
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
            limits.append(_limit("target", "inference_memory_bytes", memory, format_bytes(memory)))
        return limits


def budget_limits(section: BudgetSection, catalog: Catalog) -> tuple[list[BudgetLimit], list[Fault]]:
    """Return the limits on costs that a budget states, and what is wrong with those that cost metrics read."""
    limits, faults = [], []
    if section.model_size:
        limits.append(_limit("model_size", "model_size_bytes", parse_bytes(section.model_size), section.model_size))
    if section.latency:
        for key, given in (("p50", section.latency.p50), ("p95", section.latency.p95)):
            if given:
                limits.append(_limit(f"latency.{key}", f"latency_{key}_ms", parse_seconds(given) * 1e3, given))
    if section.train_memory:
        size = parse_bytes(section.train_memory)
        limits.append(_limit("train_memory", "train_memory_bytes", size, section.train_memory))
    if section.inference_memory:
        size = parse_bytes(section.inference_memory)
        limits.append(_limit("inference_memory", "inference_memory_bytes", size, section.inference_memory))
    for key, given in (section.model_extra or {}).items():
        metric = catalog.cost_metrics.get(key)
        if metric is None:
            known = dict.fromkeys([*BudgetSection.model_fields, *catalog.cost_metrics])
            faults.append(Fault(f"budget.{key}", unknown_name("budget", key, known)))
            continue
        try:
            limits.append(_limit(key, metric.columns[0], _quantity(given, metric.unit, metric.columns[0]), str(given)))
        except ValueError as error:
            faults.append(Fault(f"budget.{key}", str(error)))
    return limits, faults


def _limit(key: str, column: str, limit: float, given: str) -> BudgetLimit:
    return BudgetLimit(key=key, column=column, limit=limit, given=given)


def _quantity(given: object, unit: str, column: str) -> float:
    if unit == "bytes":
        return float(parse_bytes(given))
    if unit == "seconds":
        return parse_seconds(given) * (1e3 if column.endswith("_ms") else 1.0)
    if isinstance(given, bool) or not isinstance(given, int | float) or given <= 0:
        raise ValueError(f"needs a number above 0, given {given!r}")
    return float(given)


def _on_device(hardware: Hardware, device: str) -> Hardware:
    if device == "cpu":
        return Hardware.probe_cpu()
    return Hardware.from_json({**hardware.to_json(), "device": device})


def _local_model(name: str, folder: Path) -> ModelPlan:
    if folder.is_file() and folder.suffix == ".gguf":
        folder = converted(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no config.json; give the folder of a transformers model")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is damaged: {error}") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(f"{path} names no model_type; it is not the configuration of a transformers model")
    weights = [*folder.glob("*.safetensors")]
    if not weights:
        unsafe = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.h5")]
        hint = (
            f"; {unsafe[0].name} is a format that can carry code and is not read: convert it to safetensors"
            if unsafe
            else ""
        )
        raise ModelError(f"{folder} holds no *.safetensors weights{hint}")
    return ModelPlan(
        name=name, path=str(folder), config=config, size_bytes=sum(file.stat().st_size for file in weights)
    )


def _hub_model(name: str) -> ModelPlan:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        path = hf_hub_download(repository, "config.json", revision=revision or None)
    except HFValidationError:
        raise ModelError(
            f"{name!r} is neither a folder here, nor a hub id (owner/name), nor package://module/path"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise ModelError(
            f"{name!r} is no folder here, and the hub did not give it ({reason}); without a network, name a local "
            "folder or package://module/path"
        ) from None
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    return ModelPlan(name=name, path=repository, revision=revision or None, config=config, size_bytes=0)


def environment() -> dict[str, str]:
    """Return the versions of the packages that figures depend on."""
    import platform

    versions = {"python": platform.python_version(), "autoft": __version__}
    for name in (
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "bitsandbytes",
        "torchao",
        "optuna",
        "datasets",
        "onnxruntime",
        "onnx",
    ):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
