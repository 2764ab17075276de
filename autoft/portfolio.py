"""Configurations that did well elsewhere: what a search tries right after its default.

An earlier run of the user's own (``search.like``) says most. Without one there is a portfolio: settings that served data
sets and models like these best together, found by ``benchmarks/portfolio.py`` as AutoGluon's is (Salinas and Erickson
2024, arXiv:2311.02971, section 5): one after the other, each the one that raises the best score so far the most.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoft.plan import Plan, Setting, plan_of
from autoft.rundir import TrialConfig, read_run
from autoft.selection import best_trials
from autoft.space import Categorical, Int

__all__ = ["configuration", "settings_of_run"]


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
    params = plan.default_params(setting.pipeline, **allowed)
    if plan.unfit(model, setting.pipeline, params.get("regularize")):
        return None
    default = plan.default_config()
    return default.model_copy(update={"kind": "known", "model": model, "pipeline": setting.pipeline, "params": params})


def _nearest(plan: Plan, name: str, value: Any) -> Any:
    domain = plan.domain(name)
    if isinstance(domain, Categorical) or isinstance(value, str | bool) or value is None:
        return value
    moved = min(max(value, domain.low), domain.high)
    return round(moved) if isinstance(domain, Int) else float(moved)
