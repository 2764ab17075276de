"""What strategies work upon for one configuration of a plan, and what they are told of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoft.contracts import Compressor, ModelSource, Target, Task, TaskContext, WeightFormat
from autoft.hardware import Hardware
from autoft.plans.plan import ModelPlan, Plan
from autoft.pretrained import usable_positions

__all__ = ["auxiliary_target", "format_behind", "plan_target"]


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
    most = usable_positions(model.config)
    wanted = int(params.get("train.max_length") or 512)
    context = TaskContext(
        facts=plan.facts,
        options=plan.options,
        params=params,
        max_length=wanted if most is None else min(wanted, most - reserved),
        device=plan.device,
        seed=seed,
        processor=processor,
        reserved=reserved,
    )
    source = ModelSource(
        name=model.name, path=model.path, revision=model.revision, trust_remote_code=plan.trust_remote_code
    )
    hardware = Hardware.from_json(plan.hardware)
    return Target(task, source, model.config, context, hardware, cache, revisions=plan.revisions)


def auxiliary_target(plan: Plan, number: int, task: Task, target: Target) -> Target:
    """Return what an auxiliary task works upon: the model, processor and settings of the trial, its own facts and options."""
    one, context = plan.auxiliary[number], target.context
    own = {name: domain.default for name, domain in task.space().items()}
    params = {**{name: value for name, value in context.params.items() if not name.startswith("task.")}, **own}
    return replace(target, task=task, context=replace(context, facts=one.facts, options=one.options, params=params))


def format_behind(chain: Iterable[tuple[Compressor, Mapping[str, Any]]]) -> WeightFormat | None:
    """Return how the first of these compressors that quantizes does, each with its parameters; None where none does."""
    formats = (compressor.weight_format(params) for compressor, params in chain)
    return next((found for found in formats if found is not None), None)
