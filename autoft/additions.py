"""A configuration of the user's own for a run that is there: from settings by name to a trial that can be trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from autoft.contracts import Task
from autoft.errors import Fault, RecipeError, unknown_name
from autoft.plans.efforts import AUXILIARY_SPACE, TRAIN_SPACE
from autoft.plans.plan import Plan
from autoft.plugins import Catalog
from autoft.recipe import set_key
from autoft.rundir import TrialConfig, TrialResult
from autoft.space import Categorical, Domain, check_widened, domain_from_recipe

__all__ = ["added_configuration", "settings_of"]

CHOICES = ("augment", "regularize")
"""Parameters that decide which others a configuration has."""


def settings_of(overrides: Sequence[str]) -> tuple[dict[str, Any], list[Fault]]:
    """Return settings that are given as ``lora.rank=32``, by name, and what is wrong with their form."""
    found: dict[str, Any] = {}
    faults = []
    for override in overrides:
        try:
            found |= set_key({}, f"space.{override}")["space"]
        except ValueError as error:
            faults.append(Fault(f"--set {override}", str(error)))
    return found, faults


def added_configuration(
    plan: Plan,
    catalog: Catalog,
    results: Sequence[TrialResult],
    settings: Mapping[str, Any],
    *,
    start: int | None = None,
    pipeline: str | None = None,
    model: str | None = None,
    faults: Sequence[Fault] = (),
) -> TrialConfig:
    """Return a configuration of the run's own pipelines and models with these settings.

    Args:
        plan: of the run.
        catalog: the installed plugins, which say what each parameter may be.
        results: the trials that are done.
        settings: by parameter name, as ``{"lora.rank": 32}``. They need not lie in what the run searches.
        start: the trial whose settings hold where none are given; default: the defaults of the plan.
        pipeline: as the plan names it; default: that of ``start``, or the first that has the parameters.
        model: as the plan names it; default: that of ``start``, or the plan's first.
        faults: that are known already.

    Raises:
        RecipeError: all names and values that are wrong, together, or the run has this configuration already.
    """
    found = list(faults)
    begin = _start(results, start, found)
    pipelines, models = [one.name for one in plan.pipelines], [one.name for one in plan.models]
    if pipeline is not None and pipeline not in pipelines:
        found.append(Fault("--pipeline", unknown_name("pipeline of this run", pipeline, pipelines)))
        pipeline = None
    if model is not None and model not in models:
        found.append(Fault("--model", unknown_name("model of this run", model, models)))
        model = None
    default = plan.default_config() if begin is None else begin
    chains = _chains(plan, settings, default, found)
    pipeline = pipeline or _pipeline(plan, settings, default, begin, chains)
    names = plan.parameters(pipeline, *(str(chains[name]) for name in CHOICES))
    kept = {} if begin is None else {name: value for name, value in begin.params.items() if name in names}
    defaults = plan.default_params(pipeline, model or default.model)
    params = {name: plan.domain(name).default for name in names} | defaults | kept | chains
    domains = _domains(plan, catalog)
    for name, value in settings.items():
        if name in CHOICES:
            continue
        if name not in names:
            found.append(Fault(f"--set {name}", _misplaced(plan, name, names, domains, pipeline, chains)))
            continue
        try:
            params[name] = _allowed(value, domains[name], fixed=name in TRAIN_SPACE)
        except ValueError as error:
            known = _range(domains[name])
            found.append(Fault(f"--set {name}={value}", f"{error}{'' if known in str(error) else known}"))
    metric = catalog.metrics_of(catalog.task(plan.task))[plan.objective]
    length = plan.domain("train.max_length").default
    if metric.uses == "targets" and params["train.max_length"] != length:
        # As the planner says of a recipe that searches it.
        told = f"{plan.objective} is of answers that are cut at this length; to be compared it has to be {length}, as in the run"
        found.append(Fault("--set train.max_length", told))
    config = default.model_copy(
        update={
            "kind": "added",
            "pipeline": pipeline,
            "model": model or default.model,
            "params": {name: params[name] for name in names},
            "seed": plan.seed,
            "parent": None,
            "fold": 0,
            "members": [],
            "variants": [],
            "parts": 1,
        }
    )
    if not found and (reason := plan.unfit(config.model, config.pipeline, params.get("regularize"))):
        found.append(Fault("", reason))
    same = [r.number for r in results if not r.config.derived and _alike(r.config, config)]
    if not found and same:
        found.append(
            Fault("", f"trial {same[0]} of this run has these settings; change one with --set, as --set train.epochs=5")
        )
    if found:
        raise RecipeError(found, "the added trial")
    return config


def _start(results: Sequence[TrialResult], number: int | None, faults: list[Fault]) -> TrialConfig | None:
    """Return the configuration to start from, None for the plan's defaults."""
    if number is None:
        return None
    found = next((result.config for result in results if result.number == number), None)
    if found is None:
        there = ", ".join(str(result.number) for result in results)
        faults.append(Fault("--from", f"the run has no trial {number}; it has {there}"))
    elif found.members:
        faults.append(Fault("--from", f"trial {number} was made of others and has no settings of its own"))
        return None
    return found


def _chains(plan: Plan, settings: Mapping[str, Any], default: TrialConfig, faults: list[Fault]) -> dict[str, Any]:
    """Return the augmenter and the regularizers of the configuration, which have to be among the run's."""
    chosen: dict[str, Any] = {}
    for name in CHOICES:
        domain = plan.domain(name)
        assert isinstance(domain, Categorical)
        chosen[name] = default.params.get(name, domain.default)
        if name in settings and not domain.contains(settings[name]):
            faults.append(
                Fault(
                    f"--set {name}",
                    unknown_name(f"choice of {name} of this run", str(settings[name]), map(str, domain.choices)),
                )
            )
        elif name in settings:
            chosen[name] = settings[name]
    return chosen


def _pipeline(
    plan: Plan, settings: Mapping[str, Any], default: TrialConfig, begin: TrialConfig | None, chains: Mapping[str, Any]
) -> str:
    """Return the pipeline that is started from, or, from the defaults, the first that has most of the parameters."""
    if begin is not None:
        return begin.pipeline
    ordered = [default.pipeline, *(one.name for one in plan.pipelines if one.name != default.pipeline)]

    def held(name: str) -> int:
        return len(set(settings) & set(plan.parameters(name, *(str(chains[choice]) for choice in CHOICES))))

    return max(ordered, key=held)


def _domains(plan: Plan, catalog: Catalog) -> dict[str, Domain]:
    """Return the widest domain of each parameter: what the run searches may be narrower."""
    task: Task = catalog.task(plan.task)
    known: dict[str, Domain] = {**TRAIN_SPACE, **AUXILIARY_SPACE, **task.space()}
    for strategy in catalog.strategies.values():
        known.update({f"{strategy.name}.{name}": domain for name, domain in strategy.space.items()})
    return {name: known.get(name, plan.domain(name)) for name in plan.space} | {
        name: domain for name, domain in known.items() if name not in plan.space
    }


def _allowed(value: Any, domain: Domain, *, fixed: bool) -> Any:
    """Return a value as its parameter's type has it.

    Raises:
        ValueError: it is of another type, or makes no sense for the parameter.
    """
    if isinstance(value, list | Mapping):
        raise ValueError(f"is one value for one trial, given {value!r}")
    given = domain_from_recipe(value, domain)
    check_widened(given, domain, fixed=fixed)
    assert isinstance(given, Categorical)
    return given.choices[0]


def _range(domain: Domain) -> str:
    return "" if isinstance(domain, Categorical) else f" (known range: {domain})"


def _misplaced(
    plan: Plan,
    name: str,
    names: Sequence[str],
    domains: Mapping[str, Domain],
    pipeline: str,
    chains: Mapping[str, Any],
) -> str:
    """Return what to tell of a parameter that the configuration does not have."""
    if name in {"model", "pipeline"}:
        return f"is given by --{name}"
    others = [
        one.name
        for one in plan.pipelines
        if name in plan.parameters(one.name, *(str(chains[choice]) for choice in CHOICES))
    ]
    if others:
        return f"belongs to {' and '.join(others)}, and this trial is of {pipeline}; give --pipeline {others[0]}"
    if name in domains:
        owner = name.partition(".")[0]
        return (
            f"belongs to {owner}, which this run does not try ({', '.join(one.name for one in plan.pipelines)}); a recipe that "
            "names it is a run of its own"
        )
    return unknown_name("parameter", name, [one for one in names if one not in CHOICES])


def _alike(one: TrialConfig, other: TrialConfig) -> bool:
    same = (one.model, one.pipeline, one.seed) == (other.model, other.pipeline, other.seed)
    return (
        same
        and set(one.params) == set(other.params)
        and all(_equal(one.params[n], other.params[n]) for n in one.params)
    )


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return bool(one == other)
