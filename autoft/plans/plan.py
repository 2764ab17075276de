"""The plan of a run: all that is decided before the first trial, as the run folder keeps it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, model_validator

from autoft.contracts import State
from autoft.errors import RunFolderError
from autoft.quantities import format_seconds
from autoft.rundir import Count, Figure, RunRecord, TrialConfig, TrialResult, read_json
from autoft.space import Categorical, Domain, Float, Int, domain_from_json

__all__ = [
    "AuxiliaryPlan",
    "BudgetLimit",
    "ModelPlan",
    "PipelinePlan",
    "Plan",
    "RefusalNote",
    "Setting",
    "StepPlan",
    "TargetDevice",
    "VariantPlan",
    "epochs_again",
    "plan_of",
    "read_plan",
]


class _Plan(BaseModel):
    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="constants")


Commit = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""Of a repository of the hub: no branch of somebody else's, as ``refs/pr/1`` is one, and nothing that a source could be read on at."""


class ModelPlan(_Plan):
    """One base model: the recipe's name for it, where it is, and its configuration."""

    name: str
    path: str
    revision: Commit | None = None
    config: dict[str, Any]
    size_bytes: Count
    """Of its weights on disk; 0 where they are not on disk yet."""


class PipelinePlan(_Plan):
    """A legal chain of base quantization and adapter."""

    name: str
    quantizer: str | None
    adapter: str
    leaves: State = "dense"
    """What the trained model is, and compressions start from."""
    rate_scales: dict[str, float] = {}
    """By model, how many times as high as declared the adapter's learning rates are; empty where the recipe gives them."""


Named = TypeVar("Named", ModelPlan, PipelinePlan)


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
    models: list[str] = []
    """Names of the models that it is made of, where others fit the budget without it; empty for all."""

    @property
    def beginnings(self) -> list[str]:
        """By step, what the chain is up to there: what two variants have in common of these is done once."""
        steps = [step.model_dump_json(exclude={"label"}) for step in self.chain]
        return ["+".join(steps[: count + 1]) for count in range(len(steps))]

    @property
    def teachers(self) -> int:
        """Of how many trials the models are wanted to learn from."""
        return max((int(step.params.get("teachers") or 1) for step in self.chain), default=1)

    @property
    def text(self) -> str:
        """Its name, and of which models it is made, where that is not all."""
        return f"{self.name} (of {', '.join(self.models)}, which fits by no other)" if self.models else self.name

    def takes(self, model: str) -> bool:
        """Say whether it is made of a model."""
        return not self.models or model in self.models


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
    limit: Annotated[Figure, Field(gt=0)]
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
    models: list[ModelPlan] = Field(min_length=1)
    revisions: dict[str, Commit] = {}
    """Of models and data from the hub, those that strategies load among them, by the recipe's name for them: the commit."""
    init_from: str | None = None
    """Name of the model that an earlier run left, among the models."""
    like: str | None = None
    """Folder of an earlier run whose best configurations are tried early."""
    known: list[Setting] = []
    """These configurations."""
    pipelines: list[PipelinePlan] = Field(min_length=1)
    variants: list[VariantPlan]
    rescues: list[VariantPlan] = []
    """Variants that are made only where the one that each rescues is too much worse than the uncompressed model."""
    fallbacks: list[VariantPlan] = []
    """What a model is made smaller or faster by that fits the budget by none of the variants: the gentlest first."""
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
    """Of each quality metric ``higher_is_better``; ``per_token`` and ``of_targets`` where it counts a model's own tokens, or only
    reads how likely targets are, which are cut at ``train.max_length``."""
    budget: list[BudgetLimit]
    time_limit: float = Field(ge=0)
    """Of the whole command, in seconds; infinite until a multiple is known in seconds."""
    time_multiple: Figure | None = None
    """The limit as a multiple of one default training, where the recipe gives it so."""
    trials_limit: Count | None
    request: dict[str, int | None]
    """What latency is measured on: ``batch_size``, and ``length`` where the recipe states one."""
    target: TargetDevice | None = None
    effort: str
    sampler: str
    early_stopping: str
    validation_rows: Count | None = None
    """Rows that a validation within a training reads at most; None for all."""
    seed: int
    tolerance: Figure
    finalist_seeds: Count
    folds: int = Field(default=1, ge=1)
    ensemble: Count = 0
    storage_bytes: Count
    encoded_bytes: Count = 0
    """About what the encoded training rows take of the disk."""
    disk_bytes: Count | None = None
    """Of all files of the run; None for as much as the disk has."""
    trackers: list[str] = []
    """Where trials are logged to as well."""
    executor: str = "local"
    """Where trials run: on this machine, or on a Ray cluster."""
    address: str | None = None
    """Of the cluster; None for one of this machine alone."""
    workers: int = Field(ge=1)
    by_pace: bool = False
    """The search may take more of them, where a few steps show that it pays."""
    train_threads: int | None = Field(default=None, ge=1)
    """Threads that a worker trains with, where it serves a model with others: :attr:`threads`."""
    together: int = Field(default=1, ge=1)
    """How many LoRA trials of one model a worker trains at once, at most."""
    processes: int = Field(default=1, ge=1)
    """How many train each trial together."""
    sharding: Literal["fsdp", "none"] = "none"
    """Whether each of them keeps a part of the weights, gradients and optimiser states, or all of them."""
    threads: int = Field(ge=1)
    patience: FiniteFloat = 600.0
    """Seconds that a training may make no step before its worker is ended; other work may take three times as long."""
    device: str
    trust_remote_code: bool
    hardware: dict[str, Any]
    environment: dict[str, str]
    facts: dict[str, Any] = {}
    data: dict[str, Any] = {}

    @property
    def processes_text(self) -> str:
        """By how many processes a trial is trained, in words."""
        if self.processes == 1:
            return "1"
        kept = "a part of weights, gradients and optimiser states (FSDP)" if self.sharding == "fsdp" else "all weights"
        return f"{self.processes}, each with its rows of a batch and {kept}"

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

    def rows_there(self, split: str) -> int:
        """Return how many rows a split has, whether figures are of all of them or not."""
        return int(self.data.get("whole", {}).get(split, self.data["sizes"][split]))

    def of_rows(self, decided: Mapping[str, int]) -> dict[str, Any]:
        """Return what the plan says of its data where figures are of so many rows of some splits at most."""
        whole = {name: self.rows_there(name) for name in self.data["sizes"]}
        sizes = {name: min(there, decided.get(name, there)) for name, there in whole.items()}
        fewer = {name: there for name, there in whole.items() if sizes[name] < there}
        return {**{k: v for k, v in self.data.items() if k != "whole"}, "sizes": sizes} | (
            {"whole": fewer} if fewer else {}
        )

    def domain(self, name: str) -> Domain:
        """Return the domain of a parameter."""
        return domain_from_json(self.space[name])

    def model(self, name: str) -> ModelPlan:
        """Return the model that the recipe names so."""
        return self._named("model", name, self.models)

    def pipeline(self, name: str) -> PipelinePlan:
        """Return the pipeline of this name."""
        return self._named("pipeline", name, self.pipelines)

    @staticmethod
    def _named(what: str, name: str, offered: Sequence[Named]) -> Named:
        for one in offered:
            if one.name == name:
                return one
        raise RunFolderError(
            f"the plan of the run has no {what} {name!r}; it has {', '.join(one.name for one in offered)}"
        )

    def variants_of(self, config: TrialConfig, *, rescues: bool = False) -> list[VariantPlan]:
        """Return the compressions of what a configuration trains, and on demand those that rescue others of them."""
        offered = self.every_variant if rescues else self.variants
        leaves = self.pipeline(config.pipeline).leaves
        return [variant for variant in offered if leaves in variant.starts and variant.takes(config.model)]

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

    def rate_for(self, rate: float, pipeline: str, model: str, of: str | None = None) -> float:
        """Return a learning rate of a pipeline for a model, to three places.

        Args:
            rate: as the adapter declares it, or where ``of`` is given, as it is for that model.
            pipeline: its name.
            model: its name.
            of: the model that the rate is meant for.
        """
        scales = self.pipeline(pipeline).rate_scales
        return float(f"{rate * scales.get(model, 1.0) / scales.get(of or '', 1.0):.3g}")

    def other_models_rate(self, config: TrialConfig) -> str | None:
        """Return why the learning rate of a configuration is none for its model, where models have ranges of their own, or None."""
        pipeline = self.pipeline(config.pipeline)
        scales = [pipeline.rate_scales.get(model.name, 1.0) for model in self.models]
        name, own = f"{pipeline.adapter}.learning_rate", pipeline.rate_scales.get(config.model, 1.0)
        domain = self.domain(name) if len({*scales}) > 1 else None
        rate = config.params.get(name)
        if not isinstance(domain, Float) or not isinstance(rate, float):
            return None
        low, high = own * domain.low / min(scales), own * domain.high / max(scales)
        # Of bounds that are rounded to three places.
        if 0.99 * low <= rate <= 1.01 * high:
            return None
        return f"{config.model} learns at rates of {low:.3g} to {high:.3g}"

    def default_params(self, pipeline: str, model: str | None = None, **changes: Any) -> dict[str, Any]:
        """Return a configuration of defaults for a model, by default the plan's first.

        Args:
            pipeline: its name.
            model: its name.
            changes: by parameter name, kept where the domain allows them.
        """
        chosen: list[str | None] = []
        for name in ("augment", "regularize"):
            domain = self.domain(name) if name in self.space else None
            kept = domain is not None and domain.contains(changes.get(name))
            chosen.append(None if domain is None else str(changes[name] if kept else domain.default))
        params: dict[str, Any] = {name: self.domain(name).default for name in self.parameters(pipeline, *chosen)}
        rate, first = f"{self.pipeline(pipeline).adapter}.learning_rate", self.models[0].name
        if model is not None and model != first and self.pipeline(pipeline).rate_scales:
            params[rate] = self.rate_for(params[rate], pipeline, model, of=first)
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

    def cheapest_params(self, model: str) -> dict[str, Any]:
        """Return the default configuration of a model with the shortest texts that are searched, by which it costs least to serve."""
        domain, pipeline = self.domain("train.max_length"), self.default_config().pipeline
        lengths = domain.choices if isinstance(domain, Categorical) else (domain.low,)
        shortest = min((length for length in lengths if isinstance(length, int)), default=None)
        return self.default_params(pipeline, model, **{"train.max_length": shortest})

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
    def served_limits(self) -> list[BudgetLimit]:
        """The limits on what a model costs where it is served: all but that on the memory of its training."""
        return [limit for limit in self.budget if limit.column != "train_memory_bytes"]

    @property
    def threads_text(self) -> str:
        """How many workers there are and with how many threads each, for people to read."""
        each = self.train_threads or self.threads
        told = f"{self.workers} with {each} thread{'' if each == 1 else 's'} each"
        return told if each == self.threads else f"{told}; models are measured with {self.threads}"

    @property
    def at_once(self) -> int:
        """How many variants a trial makes at most: those that train again come in one of their own."""
        again = sum(variant.trains for variant in self.variants)
        return max(again, len(self.variants) - again)

    @property
    def most_at_work(self) -> int:
        """How many trials are at work at the same time, at most."""
        return self.workers * self.together

    @property
    def trial_bytes(self) -> int:
        """What a trial takes of the disk at most, before its weights are looked through."""
        return (2 + self.at_once) * max(model.size_bytes for model in self.models) + max(50_000_000, self.encoded_bytes)

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
        offered = self.variants_of(result.config, rescues=True)
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

    @model_validator(mode="after")
    def _knows_its_objective(self) -> Plan:
        if not self.objectives or "higher_is_better" not in self.metrics.get(self.objectives[0], {}):
            raise ValueError("metrics does not say of the objective whether higher is better")
        return self

    @model_validator(mode="after")
    def _has_domains(self) -> Plan:
        for name, domain in self.space.items():
            kind = _DOMAINS.get(str(domain.get("kind")))
            if kind is None:
                raise ValueError(f"space has no kind of {name}")
            kind.validate_python({key: value for key, value in domain.items() if key != "kind"})
        return self

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


_DOMAINS = {kind.__name__.lower(): TypeAdapter(kind) for kind in (Float, Int, Categorical)}


class _Sizes(_Plan):
    train: Count
    validation: Count
    test: Count


class _Data(_Plan):
    sizes: _Sizes
    fingerprint: str = ""
    columns: dict[str, str] = {}


class _Machine(_Plan):
    cpu: str = ""
    cores: int = 0
    memory_bytes: Count = 0
    bf16: bool = False


class _Request(_Plan):
    batch_size: int | None
    length: int | None


class _Mappings(_Plan):
    """What is read of the mappings of a plan; one that is empty is not there yet."""

    data: _Data | None = None
    hardware: _Machine | None = None
    request: _Request | None = None


def _checked_plan(value: object, path: Path) -> Plan:
    try:
        plan = Plan.model_validate(value)
        _Mappings.model_validate({name: getattr(plan, name) or None for name in _Mappings.model_fields})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunFolderError(
            f"{path}: is damaged (at {where!r}: {first['msg']}); it is not a plan of autoft"
        ) from error
    return plan


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
