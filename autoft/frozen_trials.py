"""Trials as Optuna keeps them, for those who look at them: in the dashboard of a run, or in a study that searches share."""

from __future__ import annotations

import datetime
import json
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.plans.plan import Plan
from autoft.report.views import column_title
from autoft.rundir import RunDir, TrialConfig, TrialResult, VariantResult
from autoft.screen import describe, outcome
from autoft.selection import best_variant
from autoft.study import directions, questions

if TYPE_CHECKING:
    import optuna

__all__ = ["finished_trial", "insert_trials", "named_study", "running_trial"]

UNITS = {"_bytes": ("MB", 1e6), "_ms": ("ms", 1.0), "_j": ("J", 1.0), "_seconds": ("s", 1.0)}


def named_study(plan: Plan, name: str, storage: optuna.storages.BaseStorage) -> optuna.Study:
    """Return the study of this name in a storage, where it is not there a new one that says what it is of."""
    import optuna

    study = optuna.create_study(study_name=name, directions=directions(plan), storage=storage, load_if_exists=True)
    if study.user_attrs.get("task") != plan.task:
        with warnings.catch_warnings():
            # Names of objectives are experimental in Optuna, and told once a study.
            warnings.simplefilter("ignore")
            study.set_metric_names([str(name) for name in plan.objectives])
        study.set_user_attr("limits", {limit.key: str(limit.given) for limit in plan.budget})
        study.set_user_attr("task", plan.task)
    return study


def finished_trial(
    plan: Plan, result: TrialResult, run: RunDir, values: Sequence[float] | None = None
) -> optuna.trial.FrozenTrial:
    """Return a trial that is done, with what a person looks for as attributes.

    Args:
        plan: of the run.
        result: the trial's.
        run: the folder, for its times.
        values: its objectives; default: those of its best variant that fits, else of its best one.
    """
    import optuna

    states = optuna.trial.TrialState
    variant = best_variant(plan, result)
    if values is None and variant is not None:
        values = _values(plan, variant)
    if result.state == "failed":
        state, values = states.FAIL, None
    elif result.state == "complete" and values is not None:
        state = states.COMPLETE
    else:
        state, values = states.PRUNED, None
    curve = {}
    if len(plan.objectives) == 1:
        curve = {point.samples: point.validation.get(plan.objective, math.nan) for point in result.curve}
    attributes: dict[str, Any] = {"trial": describe(result.config), "variant": variant.name if variant else ""}
    for column, cost in (variant.costs if variant else {}).items():
        unit, scale = next((found for ending, found in UNITS.items() if column.endswith(ending)), ("", 1.0))
        attributes[f"{column_title(column)} {unit}".strip()] = round(cost / scale, 4) if math.isfinite(cost) else None
    attributes |= {
        "outcome": outcome(result, plan),
        "state": result.state,
        **_names(result.config),
        "seconds": round(result.seconds.get("total", 0.0), 1),
        "parameters": result.parameters,
        "trainable parameters": result.trainable_parameters,
    }
    over = {limit.key: (variant.violations.get(limit.key, -1.0) if variant else -1.0) for limit in plan.budget}
    over.update(result.violations)
    distributions, params, further = questions(plan, result.config)
    begun = _time(run.trial(result.number) / "config.json")
    return optuna.trial.FrozenTrial(
        number=-1,
        trial_id=-1,
        state=state,
        value=None,
        values=values,
        datetime_start=begun,
        datetime_complete=begun + datetime.timedelta(seconds=result.seconds.get("total", 0.0)),
        params=params,
        distributions=distributions,
        user_attrs={
            name: value for name, value in {**attributes, **further}.items() if value is not None and value != ""
        },
        # Under this name the dashboard looks for them: above 0 is what does not fit.
        system_attrs={"constraints": list(over.values())} if over else {},
        intermediate_values={step: value for step, value in curve.items() if math.isfinite(value)},
    )


def insert_trials(
    storage: optuna.storages.RDBStorage, study_id: int, trials: Sequence[optuna.trial.FrozenTrial]
) -> None:
    """Insert finished trials into a study, all or none of them, by one statement for each table.

    What Optuna's own ``create_new_trial`` writes, which for each parameter, attribute and value asks anew for the trial, and
    inserts it alone.

    Args:
        storage: a relational database.
        study_id: of the study, as the storage numbers it.
        trials: with values of any of their fields; their numbers are the next of the study.
    """
    import sqlalchemy
    import sqlalchemy.orm
    from optuna.distributions import distribution_to_json
    from optuna.storages._rdb import models

    heads = []
    for trial in trials:
        head = models.TrialModel(study_id=study_id, state=trial.state)
        head.datetime_start, head.datetime_complete = trial.datetime_start, trial.datetime_complete
        heads.append(head)
    with sqlalchemy.orm.Session(storage.engine) as session, session.begin():
        # One search after the other: numbers are counted.
        models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
        session.add_all(heads)
        session.flush()
        first = heads[0].count_past_trials(session)
        rows: dict[Any, list[dict[str, Any]]] = {}
        for place, (head, trial) in enumerate(zip(heads, trials, strict=True)):
            head.number = first + place

            def add(model: Any, trial_id: int = head.trial_id, **columns: Any) -> None:
                rows.setdefault(model, []).append({"trial_id": trial_id, **columns})

            for objective, value in enumerate(trial.values or ()):
                stored, kind = models.TrialValueModel.value_to_stored_repr(value)
                add(models.TrialValueModel, objective=objective, value=stored, value_type=kind)
            for name, value in trial.params.items():
                domain = trial.distributions[name]
                internal, text = domain.to_internal_repr(value), distribution_to_json(domain)
                add(models.TrialParamModel, param_name=name, param_value=internal, distribution_json=text)
            for key, value in trial.user_attrs.items():
                add(models.TrialUserAttributeModel, key=key, value_json=json.dumps(value))
            for key, value in trial.system_attrs.items():
                add(models.TrialSystemAttributeModel, key=key, value_json=json.dumps(value))
            curve = models.TrialIntermediateValueModel
            for step, value in trial.intermediate_values.items():
                stored, kind = curve.intermediate_value_to_stored_repr(value)
                add(curve, step=step, intermediate_value=stored, intermediate_value_type=kind)
        for model, values in rows.items():
            session.execute(sqlalchemy.insert(model), values)


def running_trial(plan: Plan, config: TrialConfig, run: RunDir) -> optuna.trial.FrozenTrial:
    """Return a trial that goes on."""
    import optuna

    distributions, params, further = questions(plan, config)
    return optuna.trial.FrozenTrial(
        number=-1,
        trial_id=-1,
        state=optuna.trial.TrialState.RUNNING,
        value=None,
        datetime_start=_time(run.trial(config.number) / "config.json"),
        datetime_complete=None,
        params=params,
        distributions=distributions,
        user_attrs={"trial": describe(config), **_names(config), **further},
        system_attrs={},
        intermediate_values={},
    )


def _names(config: TrialConfig) -> dict[str, Any]:
    return {"kind": config.kind, "model": config.model, "pipeline": config.pipeline}


def _values(plan: Plan, variant: VariantResult) -> list[float] | None:
    found = [variant.validation.get(name, variant.costs.get(name, math.nan)) for name in plan.objectives]
    return found if all(math.isfinite(value) for value in found) else None


def _time(path: Path) -> datetime.datetime:
    """Return when a file was written, now where it is not there."""
    try:
        seconds = path.stat().st_mtime
    except OSError:
        seconds = time.time()
    # Optuna's times have no zone; its own are local.
    return datetime.datetime.fromtimestamp(seconds)
