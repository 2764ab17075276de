"""What a plan will need, pipeline by pipeline: the table of ``autoft explain --memory``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from autoft.errors import AutoftError
from autoft.estimates.setting import Setting, Work
from autoft.estimates.sizes import weights_bytes
from autoft.estimates.verdicts import (
    TRACED,
    Prediction,
    Verdict,
    calibrate,
    constants_of,
    judge,
    largest_batch,
    predict,
    predict_serving,
    serving_constants,
    serving_setting,
    setting_of,
)
from autoft.paths import cache_folder
from autoft.plans.plan import ModelPlan, PipelinePlan, Plan
from autoft.plugins import Catalog

__all__ = ["MemoryForecast", "ServingForecast", "forecast", "sizes_of"]


@dataclass(frozen=True)
class ServingForecast:
    """What a process needs that serves a model after a compression.

    Attributes:
        prediction: of ``inference_memory_bytes``; where there is none, the search measures it.
        verdict: against the budget's ``inference_memory``; None where the recipe has no such limit.
    """

    prediction: Prediction
    verdict: Verdict | None = None


@dataclass(frozen=True)
class MemoryForecast:
    """What the default configuration of a pipeline over a model will need.

    Attributes:
        model: its name.
        pipeline: its name.
        prediction: of the peak of training memory.
        verdict: against the budget's ``train_memory``; None where the recipe has no such limit.
        batch: the largest micro-batch that fits and how many make a step, where the configuration's own does not fit.
        sizes: bytes of the weights file by compression, as far as they are known without making it.
        serving: by compression.
    """

    model: str
    pipeline: str
    prediction: Prediction
    verdict: Verdict | None = None
    batch: tuple[int, int] | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    serving: dict[str, ServingForecast] = field(default_factory=dict)


def forecast(plan: Plan, catalog: Catalog, cache: Path | None = None) -> list[MemoryForecast]:
    """Return what each pipeline over each model will need, on rows as long as the plan allows.

    Where this machine's constants are not known yet, two steps of the smallest model are measured for each kind of
    pipeline, once, and it is served once in each compression. What was predicted before is read from the cache.

    Args:
        plan: of a recipe; with or without the facts of its data.
        catalog: what plugins offer.
        cache: folder of constants and traces; default: :func:`autoft.paths.cache_folder`.

    Raises:
        ModelError: a model cannot be loaded.
    """
    cache = cache or cache_folder()
    limit = plan.train_memory
    smallest = min(plan.models, key=lambda model: model.size_bytes or float("inf"))
    found = []
    for model in plan.models:
        sizes: dict[str, int] = {}
        for pipeline in plan.pipelines:
            if (model.name, pipeline.name) in {(one, other) for one, other, _ in plan.illegal}:
                continue
            setting = setting_of(plan, catalog, model, pipeline)
            sizes = sizes or sizes_of(plan, catalog, setting)
            one = _one(plan, catalog, cache, limit, smallest, model, pipeline, setting, sizes)
            small = setting_of(plan, catalog, smallest, pipeline)
            found.append(replace(one, serving=_serving(plan, catalog, cache, setting, small)))
    return found


def sizes_of(plan: Plan, catalog: Catalog, setting: Setting) -> dict[str, int]:
    """Return the bytes of the weights file of a setting's model by compression, those that are not computed left out."""
    work = Work.of(setting, catalog)
    source = replace(work.target.source, load_kwargs={"device_map": "meta"})
    model = work.task.load_model(source, work.target.context)
    known = {variant.name: weights_bytes(model, variant.name) for variant in plan.variants}
    return {name: size for name, size in known.items() if size is not None}


def _one(
    plan: Plan,
    catalog: Catalog,
    cache: Path,
    limit: float | None,
    smallest: ModelPlan,
    model: ModelPlan,
    pipeline: PipelinePlan,
    setting: Setting,
    sizes: dict[str, int],
) -> MemoryForecast:
    if plan.processes > 1:
        reason = f"shared by {plan.processes} processes, which no trace of one step shows; the training does"
        verdict: Verdict | None = None if limit is None else "probe"
        return MemoryForecast(model.name, pipeline.name, Prediction(None, reason=reason), verdict, sizes=sizes)
    try:
        constants = constants_of(setting, catalog, cache) or calibrate(
            setting_of(plan, catalog, smallest, pipeline), catalog, cache
        )
    except AutoftError as error:
        return MemoryForecast(model.name, pipeline.name, Prediction(None, reason=str(error)), sizes=sizes)
    prediction = predict(setting, catalog, constants, cache)
    if limit is None:
        return MemoryForecast(model.name, pipeline.name, prediction, sizes=sizes)
    verdict = judge(prediction, limit)
    batch = largest_batch(setting, catalog, constants, limit, cache=cache) if verdict == "does not fit" else None
    return MemoryForecast(model.name, pipeline.name, prediction, verdict, batch, sizes)


def _serving(plan: Plan, catalog: Catalog, cache: Path, setting: Setting, small: Setting) -> dict[str, ServingForecast]:
    limit = min((one.limit for one in plan.budget if one.column == "inference_memory_bytes"), default=None)
    found = {}
    for variant in plan.variants:
        prediction = _served(plan, catalog, cache, setting, small, variant.name)
        found[variant.name] = ServingForecast(prediction, None if limit is None else judge(prediction, limit))
    return found


def _served(plan: Plan, catalog: Catalog, cache: Path, setting: Setting, small: Setting, variant: str) -> Prediction:
    if variant not in TRACED:
        return Prediction(None, reason=f"{variant}: shows when it is served")
    if plan.device != "cpu":
        return Prediction(None, reason=f"what a process takes beside {plan.device} shows when it serves")
    if not catalog.adapters[setting.adapter].merges:
        return Prediction(None, reason=f"{setting.adapter}: stays beside its base, and takes no weights but real ones")
    batch_size, length = int(plan.request["batch_size"] or 1), plan.request["length"]
    small, setting = serving_setting(small, None), serving_setting(setting, length)
    chosen = length is not None
    try:
        constants = serving_constants(small, catalog, variant, chosen=chosen, cache=cache)
    except AutoftError as error:
        return Prediction(None, reason=str(error))
    return predict_serving(setting, catalog, variant, batch_size, constants, chosen=chosen, cache=cache)
