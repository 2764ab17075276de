"""The best trials together: their weights averaged into one model, or their predictions averaged.

Both are further candidates for the selection, and each has to fit the budget: averaged weights cost what one model
costs, averaged predictions what all of their members cost together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoft.artifact import Ensemble, load, save_ensemble
from autoft.contracts import Prediction, TaskContext
from autoft.evaluation import MeasureError, measure_in_process, references
from autoft.plans.budgets import violations
from autoft.rundir import TrialConfig, TrialResult, VariantResult
from autoft.trial import Callbacks, Trial, Workplace, ended_by, request_settings, variant_folder

if TYPE_CHECKING:
    import torch

__all__ = ["combine"]


def combine(place: Workplace, config: TrialConfig, callbacks: Callbacks) -> TrialResult:
    """Make one candidate out of several trials, and measure it in every compression.

    Args:
        place: the worker's plan, plugins and data.
        config: of kind ``soup`` or ``ensemble``; its ``members`` are trials whose files are there, the best first.
        callbacks: told of stages.

    Returns:
        the result; it is ``pruned`` where no further member makes the best one better.
    """
    begin = time.monotonic()
    result = TrialResult(number=config.number, state="failed", config=config)
    trials = {trial.number: trial for trial in place.run.results()}
    members = [trials[number] for number in config.members]
    result.train_memory_bytes = max((member.train_memory_bytes or 0 for member in members), default=0) or None
    memory = {"train_memory_bytes": float(result.train_memory_bytes)} if result.train_memory_bytes else {}
    try:
        make = _soup if config.kind == "soup" else _ensemble
        make(place, config, callbacks, members, memory, result)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever goes wrong here, the trials themselves are still there to choose
        ended_by(error, result, place.run.trial(config.number))
    result.seconds["total"] = time.monotonic() - begin
    return result


def _soup(
    place: Workplace,
    config: TrialConfig,
    callbacks: Callbacks,
    members: Sequence[TrialResult],
    memory: Mapping[str, float],
    result: TrialResult,
) -> None:
    """Average weights: a greedy soup (Wortsman et al. 2022, arXiv:2203.05482, recipe 1).

    Members come in the order of their own score, and one stays where the average scores no less with it. All were
    fine-tuned from the same checkpoint, heads from the same seed, so that they lie in one basin of the loss.
    """
    target = place.target(config.model, config.params, config.seed)
    validate, sign = place.validator(target.context), 1 if place.plan.higher_is_better else -1
    callbacks.stage("average")
    model = place.trained(members[0], target.context)
    chosen, best = [members[0].number], validate(model)
    mean = {name: value.clone() for name, value in model.state_dict().items()}
    for member in members[1:]:
        further = place.trained(member, target.context).state_dict()
        share = 1 / (len(chosen) + 1)
        trial = {name: _mixed(value, further[name], share) for name, value in mean.items()}
        model.load_state_dict(trial)
        figures = validate(model)
        if sign * figures[place.plan.objective] >= sign * best[place.plan.objective]:
            mean, best = trial, figures
            chosen.append(member.number)
    if len(chosen) == 1:
        result.state, result.reason = "pruned", f"averaged with any other, trial {chosen[0]} scores less"
        return
    model.load_state_dict(mean)
    result.validation = best
    trial_run = Trial(place, config, callbacks, None, result)
    for variant in place.plan.variants_of(config):
        if variant.trains:
            continue
        outcome = trial_run.variant(model, target, variant, dict(memory))
        outcome.members = chosen
        result.variants.append(outcome)
    trial_run.conclude()


def _mixed(mean: torch.Tensor, value: torch.Tensor, share: float) -> torch.Tensor:
    """Return the mean with one more value in it; counts and other whole numbers stay those of the first."""
    if not mean.is_floating_point():
        return mean
    return (mean.double() * (1 - share) + value.double() * share).to(mean.dtype)


def _ensemble(
    place: Workplace,
    config: TrialConfig,
    callbacks: Callbacks,
    members: Sequence[TrialResult],
    memory: Mapping[str, float],
    result: TrialResult,
) -> None:
    """Average predictions, in each compression by itself: greedy forward selection (Caruana et al. 2004), each once."""
    for variant in place.plan.variants:
        begin = time.monotonic()
        folders = {
            member.number: place.run.inside(found.folder)
            for member in members
            for found in member.variants
            if found.name == variant.name and found.folder and found.state == "complete"
        }
        if len(folders) < 2:
            continue
        callbacks.stage(f"average: {variant.name}")
        chosen = _chosen(place, folders)
        if chosen is None:
            result.state, result.reason = "pruned", f"{place.plan.task} cannot average these predictions"
            return
        if len(chosen) < 2:
            continue
        outcome = VariantResult(name=variant.name, state="failed", members=chosen)
        folder = place.run.path / variant_folder(config.number, variant.name)
        save_ensemble(folder, [folders[number] for number in chosen], place.plan.objective, variant.name)
        callbacks.stage(f"measure: {variant.name}")
        try:
            figures = measure_in_process(folder, place.run.data, validation=True, **request_settings(place.plan, place))
        except MeasureError as error:
            outcome.reason = str(error)
        else:
            outcome.validation, outcome.costs = figures["validation"], {**figures["costs"], **memory}
            outcome.score_seconds, outcome.other_load = figures["seconds"]["score"], figures["other_load"]
            outcome.violations = violations(outcome.costs, place.plan.budget)
            outcome.state = "infeasible" if outcome.violations else "complete"
            outcome.reason = f"over the budget: {', '.join(outcome.violations)}" if outcome.violations else None
        outcome.folder = variant_folder(config.number, variant.name)
        outcome.seconds = time.monotonic() - begin
        result.variants.append(outcome)
    if not result.variants:
        result.state, result.reason = "pruned", "together with any other, the best trial scores no better"
        return
    Trial(place, config, callbacks, None, result).conclude()


def _chosen(place: Workplace, folders: Mapping[int, Path]) -> list[int] | None:
    """Return which members to average, the best first; None where the task cannot average them."""
    objective = place.catalog.metrics_of(place.task)[place.plan.objective]
    sign = 1 if objective.higher_is_better else -1
    rows = place.data.validation[:]
    inputs = [{c.role: row[c.role] for c in place.task.card.inputs if c.role in row} for row in rows]
    said: dict[int, list[Prediction]] = {}
    context: TaskContext | None = None
    for number, folder in folders.items():
        loaded = load(folder, catalog=place.catalog, device=place.plan.device)
        said[number] = place.task.member_predictions(loaded.model, inputs, loaded.context)
        context = loaded.context
    assert context is not None
    if place.task.combine([next(iter(said.values()))], context) is None:
        return None
    refs = references(place.task, rows, context)

    def together(numbers: Sequence[int]) -> float:
        predictions = Ensemble.combined(place.task, [said[number] for number in numbers], context)
        value = sign * objective.score(predictions, refs, context)
        return -math.inf if math.isnan(value) else value

    first = max(folders, key=lambda number: together([number]))
    chosen, best = [first], together([first])
    while len(chosen) < len(folders):
        scored = {number: together([*chosen, number]) for number in folders if number not in chosen}
        further = max(scored, key=lambda number: scored[number])
        if scored[further] <= best:
            break
        chosen.append(further)
        best = scored[further]
    return chosen
