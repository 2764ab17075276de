"""How a run ends: the model is selected, exported, tested on rows that no choice has seen, and reported."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoft import report
from autoft.artifact import changed_files
from autoft.data.prepared import decide_rows, rows_decided
from autoft.errors import ModelError, NothingFeasible
from autoft.export import export as export_variant
from autoft.export import measure_final, write_card
from autoft.listener import Listener
from autoft.plans.budgets import violations
from autoft.plans.plan import Plan
from autoft.plugins import Catalog
from autoft.rundir import Final, RunDir, Selection, TrialResult, read_json, read_run, read_typed, write_json
from autoft.selection import select

__all__ = ["count_time", "finish", "set_aside_trials"]


def finish(
    folder: RunDir,
    plan: Plan,
    catalog: Catalog,
    listener: Listener,
    started: float,
    used: float,
    *,
    worked: bool,
    counted: bool = True,
    rows_to_test: Callable[[Selection], int] | None = None,
) -> None:
    """Select, export, test and report; unless ``counted``, what it takes is not of the search's time.

    ``rows_to_test`` says of how many rows the test can be in the time that is left; without it they stay those of before.
    """
    results = folder.results()
    try:
        selection = select(plan, results)
    except NothingFeasible:
        (folder.path / "selection.json").unlink(missing_ok=True)
        (folder.path / "final.json").unlink(missing_ok=True)
        listener.phase("report")
        report.write(read_run(folder.path))
        raise
    old = read_typed(folder.path / "selection.json", Selection) if (folder.path / "selection.json").is_file() else None
    final_path = folder.path / "final.json"
    same = old is not None and _same_choice(old, selection)
    write_json(folder.path / "selection.json", selection.model_dump(mode="json"))
    # For more rows there may be time now.
    longer = worked and "test" in plan.data.get("whole", {})
    if (
        same
        and not longer
        and final_path.is_file()
        and (folder.path / "baselines.json").is_file()
        and _as_exported(folder.best)
    ):
        final = read_typed(final_path, Final)
    else:
        worked = True
        tested_before = final_path.is_file() and not same
        listener.phase("export")
        export_variant(folder, plan, selection, results)
        listener.phase("test")
        if rows_to_test is not None:
            plan = _with_test_rows(plan, folder, rows_to_test(selection))
        final, known = measure_final(folder, plan, selection, results, listener.note)
        if tested_before:
            final.notes.append(
                "An earlier call of this run had chosen another model, or its trial was done again since: the test split was scored again."
            )
        for name, share in violations(final.costs["best"], plan.budget).items():
            note = f"Measured again from the exported files, {name} is {share:.1%} over its limit; the trial measured less."
            final.notes.append(note)
        final.notes.extend(_fewer_tested(plan))
        final.notes.extend(_cut_short(results))
        final.notes.extend(_beside_baselines(folder, plan, final))
        final.notes.extend(_gain_of_start(plan, results))
        final.notes.extend(_gain_of_auxiliary(plan, results))
        for note in final.notes:
            listener.note(note)
        write_card(folder.best, plan, catalog, selection, results, final, known)
    if worked:
        final.seconds = count_time(folder, used, started, worked=True) if counted else used
        write_json(final_path, final.model_dump(mode="json"))
    listener.phase("report")
    report.write(read_run(folder.path))
    count_time(folder, used, started, worked=worked and counted)


def count_time(folder: RunDir, used: float, started: float, *, worked: bool) -> float:
    """Return the seconds of all calls, this one counted if it did anything: looking at a finished run takes no budget."""
    seconds = used + time.monotonic() - started if worked else used
    write_json(folder.path / "time.json", {"seconds": seconds})
    return seconds


def _same_choice(old: Selection, new: Selection) -> bool:
    """Say whether two selections are of one model: a trial whose files were damaged is done again, and may be another under its number."""

    def chosen(selection: Selection) -> tuple[object, ...]:
        found = (c for c in selection.candidates if (c.trial, c.variant) == (selection.trial, selection.variant))
        one = next(found, None)
        return (selection.trial, selection.variant, one and one.costs, one and one.seeds[:1])

    return chosen(old) == chosen(new)


def _as_exported(model: Path) -> bool:
    """Return whether all files of an exported model are there as they were; further ones do no harm."""
    try:
        return not _damages(model)
    except ModelError:
        return False


def _damages(model: Path) -> list[str]:
    return [said for said in changed_files(model) if not said.endswith(" was added")]


def set_aside_trials(folder: RunDir) -> list[str]:
    """Move the results of trials whose kept files are damaged to ``logs/``, so that they are done again; return what the user is told."""
    told = []
    for result in folder.results():
        for variant in result.variants:
            model = folder.inside(variant.folder) if variant.folder else None
            if model is None:
                continue
            try:
                damages = _damages(model)
            except ModelError as error:
                damages = [str(error)]
            if damages:
                folder.set_aside(folder.result(result.number))
                told.append(f"{model}: {damages[0]}; trial {result.number} is done again, or another in its place.")
                break
    return told


def _with_test_rows(plan: Plan, folder: RunDir, rows: int) -> Plan:
    """Have the test be of so many rows, and return the plan that says so."""
    if rows == plan.data["sizes"]["test"]:
        return plan
    decide_rows(folder.data, "test", rows)
    plan = plan.model_copy(update={"data": plan.of_rows(rows_decided(folder.data))})
    write_json(folder.plan, plan.model_dump(mode="json"))
    return plan


def _fewer_tested(plan: Plan) -> list[str]:
    """Return what has to be said where the test is of some rows alone."""
    there, rows = plan.rows_there("test"), plan.data["sizes"]["test"]
    if rows == there:
        return []
    return [
        f"The test is of {rows} of the {there} test rows, drawn at random: for more the time was too short. With more of budget.time "
        "the same command goes on, and tests as many as it has time for."
    ]


def _cut_short(results: Sequence[TrialResult]) -> list[str]:
    """Return what has to be said where the yardstick was not trained to its end."""
    default = next((result for result in results if result.number == 0), None)
    if default is None or default.cut_short is None:
        return []
    return [
        "The default fine-tune did not come to its end: it was trained for {:.3g} of {:g} epochs. With more time it is a fairer "
        "yardstick.".format(*default.cut_short)
    ]


def _beside_baselines(folder: RunDir, plan: Plan, final: Final) -> list[str]:
    """Return what has to be said where a baseline does as well as the chosen model, on validation or on test."""
    objective = plan.objective
    sign = 1 if plan.higher_is_better else -1
    own = {"validation": final.validation["best"][objective], "test": final.test["best"][objective].value}
    notes = []
    for name, figures in read_json(folder.path / "baselines.json").items():
        # A baseline may have no figure: a perplexity for one, where it says nothing of the targets.
        other = {split: found.get(objective, math.nan) for split, found in _by_split(figures).items()}
        better = [split for split in own if sign * other[split] >= sign * own[split]]
        if not better:
            continue
        split = better[0]
        what = f"{name} scores {other[split]:.4f} {split} {objective}, the chosen model {own[split]:.4f}"
        if split == "test":
            notes.append(f"{what}: the validation rows promised more than there is; more of them tell better.")
        elif figures["trivial"]:
            notes.append(
                f"{what}: a rule that learns nothing does as well. Give the model more epochs, more rows or a larger base."
            )
        else:
            notes.append(f"{what}: on this data the cheaper baseline does at least as well.")
    return notes


def _by_split(figures: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the figures of a baseline on each split, by metric."""
    test = {metric: interval["value"] for metric, interval in figures["test"].items()}
    return {"validation": figures["validation"], "test": test}


def _gain_of_start(plan: Plan, results: Sequence[TrialResult]) -> list[str]:
    """Return what the default settings score from the earlier run's model and from the plain one, on validation."""
    if plan.init_from is None:
        return []
    default = plan.default_config()
    # What follows from a trial has its settings, too: other rows of a fold, weights that are averaged.
    scored = {
        result.config.model: result.validation[plan.objective]
        for result in results
        if result.state == "complete"
        and not result.config.derived
        and result.config.pipeline == default.pipeline
        and result.config.params == default.params
        and result.config.seed == default.seed
    }
    if not {plan.init_from, default.model} <= set(scored):
        return [f"The default settings were not trained to their end from {plan.init_from}: its gain is not known."]
    start, plain = scored[plan.init_from], scored[default.model]
    return [
        f"With the default settings, starting from {plan.init_from} gives {start:.4f} validation {plan.objective}, the "
        f"plain start {plain:.4f} ({start - plain:+.4f})."
    ]


def _gain_of_auxiliary(plan: Plan, results: Sequence[TrialResult]) -> list[str]:
    """Return what the default settings score with the auxiliary tasks and without, on validation."""
    if not plan.auxiliary:
        return []
    default = plan.default_config()
    rest = {name: value for name, value in default.params.items() if name != "auxiliary.weight"}
    scored = {
        result.config.params["auxiliary.weight"]: result.validation[plan.objective]
        for result in results
        if result.state == "complete"
        and not result.config.derived
        and (result.config.model, result.config.pipeline) == (default.model, default.pipeline)
        and result.config.seed == default.seed
        and {name: result.config.params.get(name) for name in rest} == rest
    }
    if not {0.0, 1.0} <= set(scored):
        return [
            "The default settings were not trained to their end with the auxiliary tasks and without: their gain is not known."
        ]
    return [
        f"With the default settings, training along with {', '.join(one.task for one in plan.auxiliary)} gives "
        f"{scored[1.0]:.4f} validation {plan.objective}, training alone {scored[0.0]:.4f} "
        f"({scored[1.0] - scored[0.0]:+.4f})."
    ]
