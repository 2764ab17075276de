"""Configurations that did well elsewhere or are published: what a search tries right after its default.

An earlier run of the user's own (``search.like``) says most. Without one there is a portfolio: settings that served data
sets and models like these best together, found by ``benchmarks/portfolio.py`` as AutoGluon's is (Salinas and Erickson
2024, arXiv:2311.02971, section 5): one after the other, each the one that raises the best score so far the most.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from autoft.plans.plan import Plan, Setting, plan_of
from autoft.plugins import Catalog
from autoft.rundir import TrialConfig, read_run
from autoft.selection import best_trials
from autoft.space import Categorical, Int

__all__ = [
    "PORTFOLIO",
    "configuration",
    "known_good",
    "published_chains",
    "same_configuration",
    "settings_like",
    "settings_of_run",
]

PORTFOLIO = Path(__file__).with_name("portfolio.json")
"""Written by ``benchmarks/portfolio.py``: settings that served several data sets together, by task and size of the model."""

SIMILAR = 4.0
"""How many times larger or smaller a model may be than the one that a setting was found with."""

FOUNDED = 2
"""How many regularizers, and how many augmenters, a long search tries before the sampler chooses."""


def settings_of_run(run: Path, most: int) -> list[Setting]:
    """Return the settings of the best trials of a finished or broken-off run, the best first.

    Args:
        run: its folder.
        most: how many at most.

    Raises:
        RunFolderError: it is no run folder, or a damaged one.
    """
    record = read_run(run)
    best = best_trials(plan_of(record), record.trials)
    return [
        Setting(pipeline=one.config.pipeline, params=one.config.params, model=one.config.model) for one in best[:most]
    ]


def settings_like(task: str, model_bytes: float, portfolio: Path = PORTFOLIO) -> list[Setting]:
    """Return the portfolio's settings for a task and the model nearest in size, the first to try first.

    Args:
        task: by name.
        model_bytes: size of the model's weights.
        portfolio: the file.

    Returns:
        none where nothing is known of the task, or of models of about this size.
    """
    entries = [one for one in json.loads(portfolio.read_text(encoding="utf-8")) if one["task"] == task]

    def distance(entry: dict[str, Any]) -> float:
        return abs(math.log(max(model_bytes, 1.0) / entry["model_bytes"]))

    nearest = min(entries, key=distance, default=None)
    if nearest is None or distance(nearest) > math.log(SIMILAR):
        return []
    return [Setting.model_validate(setting) for setting in nearest["settings"]]


def configuration(plan: Plan, setting: Setting) -> TrialConfig | None:
    """Return a setting as a configuration of a plan, or None where it does not have the pipeline.

    Values that the plan does not allow are moved to the nearest that it does; parameters that the setting does not name, or
    whose choices leave its value out, take their default. A model that the plan does not have is its first one.
    """
    if setting.pipeline not in {pipeline.name for pipeline in plan.pipelines}:
        return None
    known = {model.name for model in plan.models}
    model = setting.model if setting.model in known else plan.models[0].name
    allowed = {name: _nearest(plan, name, value) for name, value in setting.params.items() if name in plan.space}
    params = plan.default_params(setting.pipeline, model, **allowed)
    if plan.unfit(model, setting.pipeline, params.get("regularize")):
        return None
    default = plan.default_config()
    return default.model_copy(update={"kind": "known", "model": model, "pipeline": setting.pipeline, "params": params})


def known_good(plan: Plan, catalog: Catalog) -> list[TrialConfig]:
    """Return the default, what did well elsewhere, the default of each further model, published settings of pipelines."""
    default = plan.default_config()
    configs = [default]
    for known in plan.known:
        config = configuration(plan, known)
        if config is not None and not any(same_configuration(config, other) for other in configs):
            configs.append(config)
    for other in plan.models[1:]:
        params = plan.default_params(default.pipeline, other.name)
        configs.append(default.model_copy(update={"kind": "published", "model": other.name, "params": params}))
    if plan.auxiliary and plan.domain("auxiliary.weight").contains(1.0):
        params = {**default.params, "auxiliary.weight": 1.0}
        configs.insert(1, default.model_copy(update={"kind": "published", "params": params}))
    illegal = {(model, pipeline) for model, pipeline, _ in plan.illegal}
    for pipeline in plan.pipelines:
        adapter = catalog.adapters[pipeline.adapter]
        settings = list(adapter.published[:1]) or ([{}] if pipeline.name != default.pipeline else [])
        for setting in settings:
            changes = {(f"{adapter.name}.{key}" if "." not in key else key): value for key, value in setting.items()}
            rate = f"{adapter.name}.learning_rate"
            if rate in changes:
                changes[rate] = plan.rate_for(changes[rate], pipeline.name, default.model)
            params = plan.default_params(pipeline.name, **changes)
            config = default.model_copy(update={"kind": "published", "pipeline": pipeline.name, "params": params})
            if (config.model, pipeline.name) not in illegal and not any(same_configuration(config, c) for c in configs):
                configs.append(config)
    return configs


def published_chains(plan: Plan, catalog: Catalog) -> list[TrialConfig]:
    """Return the default with each of the first regularizers and augmenters of the plan, set as their sources say."""
    default = plan.default_config()
    found = []
    for place in range(FOUNDED):
        for kind, known in (("regularize", catalog.regularizers), ("augment", catalog.augmenters)):
            domain = plan.domain(kind) if kind in plan.space else None
            names = [name for name in domain.choices if name != "none"] if isinstance(domain, Categorical) else []
            if place >= len(names):
                continue
            changes: dict[str, Any] = {kind: names[place]}
            for step in str(names[place]).split("+"):
                for setting in known[step].published[:1]:
                    changes.update({f"{step}.{key}": value for key, value in setting.items()})
            params = plan.default_params(default.pipeline, **changes)
            config = default.model_copy(update={"kind": "published", "params": params})
            if not plan.unfit(config.model, config.pipeline, params.get("regularize")):
                found.append(config)
    return found


def same_configuration(one: TrialConfig, other: TrialConfig) -> bool:
    """Say whether two configurations train alike, whatever they are tried for."""
    return (one.model, one.pipeline, one.params, one.seed) == (other.model, other.pipeline, other.params, other.seed)


def _nearest(plan: Plan, name: str, value: Any) -> Any:
    domain = plan.domain(name)
    if isinstance(domain, Categorical) or isinstance(value, str | bool) or value is None:
        return value
    moved = min(max(value, domain.low), domain.high)
    return round(moved) if isinstance(domain, Int) else float(moved)
