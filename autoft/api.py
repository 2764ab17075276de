"""The Python API: what the commands do, as functions."""

from __future__ import annotations

import html
import json
import math
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from autoft import artifact, report
from autoft.additions import added_configuration, settings_of
from autoft.artifact import MANIFEST, LoadedModel, changed_files, undecided
from autoft.begun import check_begun_here, remember_begun
from autoft.card import stated_license
from autoft.contracts import Row
from autoft.data.downloads import is_commit
from autoft.data.features import expected_bytes
from autoft.data.prepared import PreparedData, prepare_data, prepare_folds, rows_decided
from autoft.data.rows import SPLITS
from autoft.data.sources import hub_commit, hub_parts, pinned_source, source_card
from autoft.device import DeviceProfile
from autoft.drafts import Draft, Question, draft_recipe
from autoft.editors import recipe_schema_of
from autoft.errors import (
    DataError,
    ExportMismatch,
    Fault,
    ModelError,
    RecipeError,
    RunFolderError,
    SearchFailed,
    first_line,
)
from autoft.estimates.forecast import MemoryForecast, forecast
from autoft.export import RESCORE_TOLERANCE, measure_pick, rescored, write_card
from autoft.export import export as export_variant
from autoft.finish import count_time, finish, set_aside_trials
from autoft.formats import Exported, export_format
from autoft.hardware import Hardware
from autoft.hub import push_folder
from autoft.listener import Listener, TrialTime
from autoft.plans.budgets import budget_limits, no_choice
from autoft.plans.models import hub_models, kept_commit
from autoft.plans.plan import Plan, Setting, plan_of, read_plan
from autoft.plans.planner import make_plan
from autoft.plans.screening import known_fallbacks, with_fallbacks
from autoft.plans.targets import plan_target
from autoft.plugins import Catalog, load_plugins
from autoft.portfolio import settings_like, settings_of_run
from autoft.progress import Audience, ProgressWriter
from autoft.recipe import (
    DataSection,
    ExecutorSection,
    Recipe,
    budget_section,
    dump_recipe,
    read_plain_yaml,
    recipe_from_mapping,
)
from autoft.report.comparison import comparison_json, make_comparison, render_comparison
from autoft.rundir import (
    Figure,
    RunDir,
    RunRecord,
    Seconds,
    Selection,
    TrialConfig,
    TrialResult,
    read_json,
    read_run,
    read_typed,
    write_json,
    write_text,
)
from autoft.search import Interruption, Search
from autoft.selection import select
from autoft.serving import serve
from autoft.shared_study import SharedStudy
from autoft.study_addresses import study_address
from autoft.tables import GivenRecipe
from autoft.trackers import TrackerListener
from autoft.trial import variant_folder
from autoft.workloads import latency_scales, measure_profile, measure_workloads

__all__ = [
    "Added",
    "Draft",
    "Exported",
    "Picked",
    "Question",
    "Run",
    "Verified",
    "add",
    "check",
    "compare",
    "draft",
    "explain",
    "export",
    "hardware",
    "load",
    "measure_device",
    "memory_forecast",
    "pick",
    "predict",
    "push",
    "schema",
    "search",
    "serve",
    "serving_costs",
    "time_forecast",
    "verify",
    "write_report",
]

FREE = ("budget", "executor", "storage", "trackers")
"""Sections of a recipe that may change between calls of one run."""

LIKE = 5
"""Configurations of an earlier run that are tried early, at most."""


@dataclass
class Run:
    """A run folder and what is in it; a notebook shows its report."""

    path: Path

    def _repr_html_(self) -> str:
        """Return the report in a frame, for notebooks; apart from the page that shows it."""
        where = html.escape(str(self.path))
        if not self.report.is_file():
            return f"<p>The run in <code>{where}</code> has no report yet.</p>"
        page = html.escape(self.report.read_text(encoding="utf-8"))
        # The report's own scripts may run, and reach nothing of the notebook.
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts allow-popups" title="Report of {where}" '
            'style="width:100%;height:640px;border:1px solid #8884;border-radius:6px"></iframe>'
        )

    @property
    def record(self) -> RunRecord:
        """All that the folder says."""
        return read_run(self.path)

    @property
    def best(self) -> LoadedModel:
        """The model that the search left, loaded."""
        return load(self.path / "best")

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    @property
    def summary(self) -> dict[str, Any]:
        """What ``report.json`` says."""
        summary: dict[str, Any] = read_json(self.path / "report.json")
        return summary


def search(
    recipe: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    run: str | Path | None = None,
    trust_remote_code: bool = False,
    listener: Listener | None = None,
) -> Run:
    """Search, select, export, test and report, all within the recipe's time.

    The same call goes on where an earlier one of the same run folder was cut off.

    Args:
        recipe: a file, or a mapping with the same keys, where ``data`` (or ``train``, ``validation`` and ``test`` in it)
            may hold the data itself: a DataFrame, a ``Dataset`` or ``DatasetDict`` of the datasets library, an Arrow
            table, or a list of dicts. It is kept in the run folder, as a file that ``recipe.yaml`` there names.
        overrides: as ``("space.train.epochs=3",)``.
        run: the run folder; default: ``runs/`` and the recipe's name.
        trust_remote_code: where the recipe lets code run that comes with a model, let what is in a run folder from elsewhere say
            which; one that was begun on this machine needs no leave.
        listener: told what happens.

    Raises:
        RecipeError: faults in the recipe, all of them.
        DataError: the data cannot be used.
        ModelError: a model cannot be found.
        PluginError: the task is not installed.
        NothingFeasible: nothing fits the budget; the report shows the nearest misses.
        StudyError: the study that the recipe shares with other searches cannot be reached at the start.
        RunFolderError: the folder is busy, damaged, full or of another recipe; or it is from elsewhere, code of models may run, and
            you do not say that you trust it.
        ExportMismatch: the exported files do not score what was measured.
        SearchFailed: the first three trials failed alike; or a process of the test was killed or hung, and the same call goes on.
    """
    started = time.monotonic()
    listener = listener or Listener()
    given = GivenRecipe(recipe, overrides)
    folder = RunDir(run or Path("runs") / given.name)
    loaded, base = given.read(folder)
    if loaded.trust_remote_code and not trust_remote_code:
        check_begun_here(folder)
    catalog = load_plugins()
    earlier = _earlier_revisions(folder)
    plan = make_plan(loaded, catalog, Hardware.probe(), base, source=_source(recipe), revisions=earlier)
    folder.create()
    if loaded.trust_remote_code:
        remember_begun(folder)
    with (
        folder.lock(),
        ProgressWriter(folder) as progress,
        TrackerListener(folder, Audience(progress, listener).note) as trackers,
        _interruptible(listener) as interruption,
    ):
        listener = Audience(progress, trackers, listener)
        loaded, plan = _pinned(loaded, plan, earlier, catalog)
        _same_recipe(folder, loaded)
        _same_device(folder, plan)
        for sentence in [*folder.set_aside_damaged(), *set_aside_trials(folder)]:
            listener.note(sentence)
        listener.phase("prepare data")
        for sentence in given.keep(folder):
            listener.note(sentence)
        plan = _with_prepared_data(plan, loaded, catalog, folder, base, listener.note, _data_of_trials(folder))
        plan = _with_known_rows(plan, folder)
        plan = _with_other_processor(_with_scales(_with_known_pace(plan, folder), folder, listener), folder)
        plan = _with_known_fallbacks(plan.model_copy(update={"known": _known_settings(plan, loaded)}), folder)
        write_text(folder.recipe, dump_recipe(loaded))
        write_json(folder.plan, plan.model_dump(mode="json"))
        folder.clear_partial()
        folder.clear_leftovers()
        used = read_typed(folder.path / "time.json", dict[str, Seconds], {}).get("seconds", 0.0)
        done = folder.results()
        listener.begin(plan, len(done))
        if done:
            listener.earlier(done)
        for warning in plan.warnings:
            listener.note(warning)
        with _sharing(loaded, plan, folder, listener) as shared:
            engine = Search(folder, plan, catalog, listener, interruption, started=started, used=used, exchange=shared)
            try:
                engine.go()
            finally:
                folder.clear_leftovers()
                write_json(folder.path / "importance.json", engine.importance())
                folder.write_trials_csv(engine.trials.results.values())
                count_time(folder, used, started, worked=engine.began)
            if engine.ended:
                listener.note(f"The search ended: {engine.ended}.")
            finish(
                folder,
                engine.plan,
                catalog,
                listener,
                started,
                used,
                worked=engine.began,
                rows_to_test=engine.tested_rows,
            )
    return Run(folder.path)


def _earlier_revisions(folder: RunDir) -> Mapping[str, str]:
    """Return the commits of the hub that an earlier call of a run took, by name."""
    try:
        return read_plan(folder.plan).revisions if folder.plan.is_file() else {}
    except RunFolderError:
        # It is damaged, and a new one takes its place.
        return {}


def _data_of_trials(folder: RunDir) -> str:
    """Return the fingerprint of the data that the trials of a run were trained and scored on; empty where none is done."""
    if not any(folder.result(number).is_file() for number in folder.numbers()):
        return ""
    try:
        return str(read_plan(folder.plan).data.get("fingerprint", ""))
    except RunFolderError:
        # It is damaged, and a new one takes its place.
        return ""


def _pinned(recipe: Recipe, plan: Plan, earlier: Mapping[str, str], catalog: Catalog) -> tuple[Recipe, Plan]:
    """Return a recipe whose names of the hub say the commit, and the plan that knows these.

    Args:
        recipe: as it was given.
        plan: of it, with the commits of the models.
        earlier: commits by name that an earlier call of the run took: it goes on with those, whatever the hub has by now.
        catalog: the installed strategies, whose parameters may name models.

    Raises:
        DataError: a source of the hub has a wrong form.
    """
    # Those of trials that a user added are named by no recipe.
    revisions, warnings = {**earlier, **plan.revisions}, list(plan.warnings)

    def section(data: DataSection, where: str) -> DataSection:
        update = {}
        for split in SPLITS:
            source = getattr(data, split)
            if source is None or not source.startswith("hub://"):
                continue
            try:
                commit = earlier.get(source) or hub_commit(source)
            except DataError as error:
                raise recipe.located(DataError(f"{where}.{split}: {error}")) from None
            if commit is not None:
                revisions[source], update[split] = commit, pinned_source(source, commit)
            elif not is_commit(hub_parts(source)["revision"]):
                warnings.append(
                    f"{where}.{split}: {source} is pinned to no commit: the hub cannot be asked, and nothing here says of which one "
                    "the rows are"
                )
        return data.model_copy(update=update)

    def model(name: Any) -> Any:
        return f"{name.partition('@')[0]}@{plan.revisions[name]}" if name in plan.revisions else name

    space = dict(recipe.space)
    for parameter, value in recipe.space.items():
        values = value if isinstance(value, list) else [value]
        if hub_models(catalog.strategies, [(parameter, one) for one in values]):
            space[parameter] = [model(one) for one in values] if isinstance(value, list) else model(value)
    auxiliary = [
        one.model_copy(update={"data": section(one.data, f"auxiliary[{number}].data")})
        for number, one in enumerate(recipe.auxiliary)
    ]
    pinned = {
        "model": [model(name) for name in recipe.model],
        "space": space,
        "data": section(recipe.data, "data"),
        "auxiliary": auxiliary,
    }
    return recipe.model_copy(update=pinned), plan.model_copy(update={"revisions": revisions, "warnings": warnings})


@contextmanager
def _sharing(recipe: Recipe, plan: Plan, run: RunDir, listener: Listener) -> Iterator[SharedStudy | None]:
    """Give the study that a recipe shares with other searches, or None; at the end all is told to it."""
    if recipe.storage.study is None:
        yield None
        return
    shared = SharedStudy(study_address(recipe.storage.study), plan, run, listener.note)
    shared.open()
    try:
        yield shared
    finally:
        shared.close()
        shared.note_better()


def _known_settings(plan: Plan, recipe: Recipe) -> list[Setting]:
    """Return what is to be tried right after the default: an earlier run says more than the portfolio."""
    if plan.like is not None:
        return settings_of_run(Path(plan.like), LIKE)
    default = plan.models[0]
    return settings_like(plan.task, default.size_bytes) if recipe.search.portfolio else []


def _with_prepared_data(
    plan: Plan,
    recipe: Recipe,
    catalog: Catalog,
    run: RunDir,
    base: Path,
    note: Callable[[str], None] = lambda text: None,
    expected: str = "",
) -> Plan:
    """Prepare the data of a recipe in a run folder, and return the plan with what it says.

    Raises:
        RunFolderError: it is not what is ``expected``, a fingerprint.
    """
    task = catalog.task(recipe.task)
    with _at_its_line(recipe):
        prepared = prepare_data(recipe.data, task, plan.options, plan.seed, run.data, base, plan.folds, note, expected)
        prepare_folds(prepared, task, plan.folds, plan.seed, run.data, note)
    plan = plan.with_data(prepared.facts, data_summary(prepared, recipe.data, base), prepared.warnings)
    plan = plan.model_copy(update={"encoded_bytes": expected_bytes(prepared.train, task.card)})
    with _at_its_line(recipe):
        return _with_auxiliary(plan, recipe, catalog, run, base, note)


@contextmanager
def _at_its_line(recipe: Recipe) -> Iterator[None]:
    """Let an error of the data show the line of the recipe that it is about."""
    try:
        yield
    except DataError as error:
        raise recipe.located(error) from error.__cause__


def _with_auxiliary(
    plan: Plan,
    recipe: Recipe,
    catalog: Catalog,
    run: RunDir,
    base: Path,
    note: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Prepare the data of auxiliary tasks, and return the plan with what it says."""
    known, warnings = [], []
    for number, (section, one) in enumerate(zip(recipe.auxiliary, plan.auxiliary, strict=True)):
        task, where = catalog.task(one.task), run.auxiliary(number)
        where.mkdir(parents=True, exist_ok=True)
        try:
            # Only training rows are of use: what has to be cut for the other splits is as little as can be, and of no group.
            absent = {f"{name}_size": 1 for name in ("validation", "test") if getattr(section.data, name) is None}
            data = section.data.model_copy(update={**absent, "group": None})
            prepared = prepare_data(data, task, one.options, plan.seed, where, base, note=note)
        except DataError as error:
            raise DataError(f"auxiliary[{number}].{error}") from error
        known.append((prepared.facts, len(prepared.train)))
        warnings += [f"auxiliary[{number}].{warning}" for warning in prepared.warnings]
    return plan.with_auxiliary(known, warnings)


def _with_scales(plan: Plan, run: RunDir, listener: Listener) -> Plan:
    """Return the plan with how fast the device is that models are for, beside this machine, which is measured once a run."""
    if plan.target is None:
        return plan
    path = run.path / "workloads.json"
    known = read_typed(path, _Workloads, _Workloads())
    if known.threads != plan.threads:
        listener.phase("measure this machine")
        measured = {"threads": plan.threads, **measure_workloads(plan.threads)}
        write_json(path, measured)
        known = _Workloads.model_validate(measured)
    target = plan.target.model_copy(update={"scales": latency_scales(plan.target.milliseconds, known.milliseconds)})
    return plan.model_copy(update={"target": target, "warnings": [*plan.warnings, target.text]})


class _Workloads(BaseModel):
    """What this machine was measured at."""

    threads: int = 0
    milliseconds: dict[str, list[Figure]] = {}


def _with_known_pace(plan: Plan, run: RunDir) -> Plan:
    """Return the plan with what an earlier call of the run found out: the seconds of the same multiple, and how many workers pay."""
    if (plan.time_multiple is None and not plan.by_pace) or not run.plan.is_file():
        return plan
    try:
        known = read_plan(run.plan)
    except RunFolderError:
        # It is damaged, and a new one takes its place.
        return plan
    found: dict[str, Any] = {}
    if plan.time_multiple is not None and known.time_multiple == plan.time_multiple:
        found["time_limit"] = known.time_limit
    if plan.by_pace and known.by_pace and known.hardware.get("cores") == plan.hardware["cores"]:
        found |= {"workers": known.workers, "train_threads": known.train_threads}
    return plan.model_copy(update=found)


def _with_known_rows(plan: Plan, run: RunDir) -> Plan:
    """Return the plan with the rows that figures of an earlier call are of, which those of this one are compared with."""
    data = plan.of_rows(rows_decided(run.data))
    if not run.plan.is_file() or not run.results():
        return plan.model_copy(update={"data": data})
    try:
        known = read_plan(run.plan).validation_rows
    except RunFolderError:
        # It is damaged, and a new one takes its place.
        known = plan.validation_rows
    return plan.model_copy(update={"data": data, "validation_rows": known})


def _with_other_processor(plan: Plan, run: RunDir) -> Plan:
    """Return the plan with a warning where trials of an earlier call were measured on another processor than this call has."""
    if not run.plan.is_file() or not run.results():
        return plan
    try:
        before = Hardware.from_json(read_plan(run.plan).hardware)
    except (RunFolderError, KeyError, TypeError):
        # It is damaged, or an older version wrote it.
        return plan
    here = Hardware.from_json(plan.hardware)
    if before.processor == here.processor:
        return plan
    told = (
        f"Trials of before were measured on {before.processor}, and any of now are on {here.processor}: latencies of both do not "
        "compare, so that which model is cheapest may be wrong; begin a run of its own to go by latency"
    )
    return plan.model_copy(update={"warnings": [*plan.warnings, told]})


def _with_known_fallbacks(plan: Plan, run: RunDir) -> Plan:
    """Return the plan with the fallbacks that models need, by what an earlier call of the run measured of them."""
    costs = read_typed(run.screening, dict[str, dict[str, dict[str, Figure]]], {})
    return with_fallbacks(plan, known_fallbacks(plan, costs))


def draft(
    data: str | Path | Sequence[str | Path],
    *,
    output: str | Path = "recipe.yaml",
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    model: str | None = None,
    ask: Callable[[Question], str] | None = None,
) -> Draft:
    """Look at data, guess its task, columns and model, and return a recipe for it. Nothing is trained or written.

    Args:
        data: a source, as a recipe names it, or one for each split.
        output: the file that the recipe's text is for; relative paths in it start from its folder.
        task: its name, where the data need not tell.
        columns: by role, columns that need not be guessed.
        model: to begin with.
        ask: answers what the data does not say; default: such data is an error that names the choices.

    Raises:
        DataError: the data cannot be read, no installed task takes it, or it is not clear which does.
        ModelError: there is no model to begin with.
        PluginError: the task is not installed.
    """
    sources = [str(data)] if isinstance(data, str | Path) else [str(source) for source in data]
    return draft_recipe(
        sources,
        load_plugins(),
        Hardware.probe(),
        output=Path(output),
        task=task,
        columns=columns,
        model=model,
        ask=ask,
    )


def schema() -> dict[str, Any]:
    """Return the JSON schema of recipes with the names of all that is installed, for editors."""
    return recipe_schema_of(load_plugins())


def explain(recipe: str | Path | Mapping[str, Any], *, overrides: Sequence[str] = ()) -> Plan:
    """Return what a search of this recipe would do, without reading data or loading a model."""
    given = GivenRecipe(recipe, overrides)
    loaded, base = given.read(RunDir(Path("runs") / given.name))
    return make_plan(loaded, load_plugins(), Hardware.probe(), base, source=_source(recipe))


@dataclass(frozen=True)
class Picked:
    """A point of a run's front in a folder of its own."""

    path: Path
    selection: Selection
    validation: Mapping[str, float]
    costs: Mapping[str, float]
    """Measured again from the files, in a fresh process."""

    @property
    def model(self) -> LoadedModel:
        """The model, loaded."""
        return load(self.path)


def pick(
    run: str | Path,
    limits: Mapping[str, Any],
    *,
    quality: float | None = None,
    output: str | Path | None = None,
) -> Picked:
    """Export another point of a finished run's front: the one that a search with these limits would have left.

    Nothing is trained, and the test split is not read.

    Args:
        run: the run folder.
        limits: as in a recipe's ``budget``, beside those of the run: ``{"model_size": "10MB", "latency": "5ms"}``.
        quality: the objective has to be at least as good as this on validation; of those the cheapest is taken, where
            otherwise it is the cheapest of those that are about as good as the best.
        output: the folder; default: ``picks/`` in the run folder, and the model's name.

    Raises:
        RecipeError: a limit is unknown or no quantity, or of something else than what the run measured.
        NothingFeasible: no model whose files are kept meets the limits.
        RunFolderError: the folder is busy, damaged, or no run; or ``output`` is there already and no pick.
        ExportMismatch: the exported files do not score what was measured.
        SearchFailed: the process that measures them was killed or hung.
    """
    folder, catalog = RunDir(run), load_plugins()
    record = read_run(folder.path)
    plan = plan_of(record)
    section, faults = budget_section(limits)
    further, unknown = budget_limits(section, catalog)
    if found := [*faults, *unknown, *no_choice(section, plan.request)]:
        raise RecipeError(found, source="limits")
    with folder.lock():
        results = folder.results()
        selection = select(plan.model_copy(update={"budget": [*plan.budget, *further]}), results, quality)
        slug = Path(variant_folder(selection.trial, selection.variant)).name
        target = Path(output).absolute() if output else folder.path / "picks" / f"{selection.trial:04d}-{slug}"
        if target.exists() and not (target / MANIFEST).is_file():
            raise RunFolderError(f"{target}: is there already, and holds no exported model; give another folder")
        export_variant(folder, plan, selection, results, target)
        final, known = measure_pick(folder, plan, selection, results, target)
        final.example = record.final.example if record.final else final.example
        write_card(target, plan, catalog, selection, results, final, known)
    return Picked(target, selection, final.validation["best"], final.costs["best"])


def export(
    model: str | Path,
    format: str,
    *,
    output: str | Path | None = None,
    trial: int | None = None,
    variant: str | None = None,
) -> Exported:
    """Write a trained model in a format that other programs load, and compare its answers with the model's own.

    The folder has the model, its tokenizer, labels and preprocessing as JSON, and a card whose code loads it without
    autoft. Nothing is left behind where the answers differ.

    Args:
        model: a run folder, or the folder of a model that autoft wrote.
        format: ``safetensors``, ``adapter``, ``onnx``, ``onnx-fp16``, ``onnx-int8`` or ``openvino``.
        output: the folder; default: ``exports/`` in the run folder, or beside the model's.
        trial: of the run; default: the chosen one.
        variant: of the trial; default: what the format is best made from.

    Raises:
        ModelError: the format does not suit the model, or a package is missing.
        RunFolderError: what it would be made from is not there, or ``output`` is something else.
        ExportMismatch: the exported files do not answer as the model does.
    """
    return export_format(model, format, output=output, trial=trial, variant=variant)


def push(model: str | Path, repo: str, *, public: bool = False) -> str:
    """Upload a model with its card to a hub and return its address; the token comes from ``HF_TOKEN`` alone.

    Args:
        model: a run folder, whose ``best/`` is taken, or a folder that :func:`export` or :func:`pick` wrote.
        repo: as ``owner/name``.
        public: everybody may see it; by default only its owner may.

    Raises:
        RunFolderError: the folder holds no model with a card.
        HubError: the name, the token or the hub is at fault.
    """
    return push_folder(model, repo, public=public)


@dataclass(frozen=True)
class Added:
    """A configuration of the user's own that was tried in a run."""

    path: Path
    """The run folder."""
    trial: TrialResult
    chosen: bool
    """Whether the run now ships it."""

    @property
    def run(self) -> Run:
        """The run."""
        return Run(self.path)


def add(
    run: str | Path,
    settings: Mapping[str, Any] | Sequence[str] = (),
    *,
    start: int | None = None,
    pipeline: str | None = None,
    model: str | None = None,
    trust_remote_code: bool = False,
    address: str | None = None,
    listener: Listener | None = None,
) -> Added:
    """Try one configuration of your own in a run: validated, compressed and measured as its other trials are.

    It is trained to its end, whatever that takes; its time is not taken from the budget of the search. The selection, and
    where another model is chosen now, export and test are done again, and the report says so.

    Args:
        run: the folder of a run with a trial that is done.
        settings: by parameter name, as ``{"lora.rank": 32}``, or as ``["lora.rank=32"]``; they may lie outside of what the run
            searches.
        start: the trial whose settings hold where none are given; default: the defaults.
        pipeline: of the run; default: that of ``start``, or the first that has the parameters.
        model: of the run; default: that of ``start``, or the first.
        trust_remote_code: let code run that comes with a model, in a run whose recipe does so; the run may be a stranger's.
        address: of a Ray cluster, as in a recipe, or ``local`` for this machine. A run that was trained on a cluster needs it: what
            a run folder says connects this machine to nothing.
        listener: told what happens.

    Raises:
        RecipeError: names or values that are wrong, all of them, or the run has this configuration already.
        NothingFeasible: nothing fits the run's budget, this trial included.
        RunFolderError: the folder is no run, busy, damaged or full, lets code of models run and you do not, or is of a cluster and
            you name none.
        SearchFailed: it was stopped before it was done, or no worker starts.
        ExportMismatch: the exported files do not score what was measured.
    """
    started = time.monotonic()
    listener = listener or Listener()
    folder, catalog = RunDir(run), load_plugins()
    plan = plan_of(read_run(folder.path))
    if plan.trust_remote_code and not trust_remote_code:
        # What is loaded, and not the name for it: a stranger's plan can call it as it likes.
        loaded = [f"{one.path}@{one.revision}" if one.revision else one.path for one in plan.models]
        raise RunFolderError(
            f"{folder.path}: the recipe of this run lets code run that comes with a model, of {', '.join(loaded)} and what its "
            "strategies load; give --trust-remote-code if you trust the authors"
        )
    place = _place(plan, address, folder)
    given, faults = (dict(settings), []) if isinstance(settings, Mapping) else settings_of(settings)
    with folder.lock(), _interruptible(listener) as interruption:
        folder.clear_partial()
        results = folder.results()
        if not results:
            raise RunFolderError(
                f"{folder.path}: no trial is done that this one could be beside; run autoft search first"
            )
        config = added_configuration(
            plan, catalog, results, given, start=start, pipeline=pipeline, model=model, faults=faults
        )
        plan = _with_named(plan, config, folder, catalog)
        used = read_typed(folder.path / "time.json", dict[str, Seconds], {}).get("seconds", 0.0)
        alone = {"workers": 1, "train_threads": None, "by_pace": False}
        free = plan.model_copy(update={"time_limit": math.inf, "trials_limit": None, **alone, **place})
        with ProgressWriter(folder) as progress:
            audience = Audience(progress, listener)
            audience.begin(free, len(results))
            audience.earlier(results)
            engine = Search(folder, free, catalog, audience, interruption, started=started)
            try:
                trial = engine.add(config)
                if trial is None:
                    raise SearchFailed("stopped before it was done; nothing was added to the run")
                write_json(folder.path / "importance.json", engine.importance())
                folder.write_trials_csv(engine.trials.results.values())
                finish(folder, plan, catalog, audience, started, used, worked=True, counted=False)
            finally:
                folder.clear_leftovers()
                # What a user adds takes nothing of the time that the recipe gives the search.
                write_json(folder.path / "time.json", {"seconds": used})
    selection = read_typed(folder.path / "selection.json", Selection)
    return Added(folder.path, folder.read_result(trial.number), selection.trial == trial.number)


def _place(plan: Plan, address: str | None, run: RunDir) -> dict[str, Any]:
    """Return what changes of the plan of a run with the address that a user gives for an added trial.

    Raises:
        RunFolderError: it is of a cluster, and the user gives none.
        RecipeError: what the user gives is no address of a cluster.
    """
    if address is None:
        if plan.executor != "local" and plan.address not in {None, "local"}:
            raise RunFolderError(
                f"{run.path}: this run was trained on the Ray cluster at {plan.address}; give --address {plan.address} to connect to "
                "it if you trust it, or --address local for this machine"
            )
        return {}
    try:
        ExecutorSection(kind="ray", address=address)
    except ValidationError as error:
        fault = Fault(f"--address {address}", str(error.errors()[0]["ctx"]["error"]))
        raise RecipeError([fault], "the added trial") from None
    return {"executor": "local", "address": None} if address == "local" else {"executor": "ray", "address": address}


def _with_named(plan: Plan, config: TrialConfig, run: RunDir, catalog: Catalog) -> Plan:
    """Return the plan of a run with the commits of the hub models that an added configuration names first.

    Raises:
        RecipeError: the hub does not give one.
    """
    named = hub_models(catalog.strategies, config.params.items())
    commits = {}
    for name in named.keys() - plan.revisions.keys():
        try:
            commits[name] = kept_commit(name)
        except ModelError as error:
            raise RecipeError([Fault(f"--set {named[name]}={name}", str(error))], "the added trial") from None
    found = {name: commit for name, commit in commits.items() if commit is not None}
    if found:
        plan = plan.model_copy(update={"revisions": {**plan.revisions, **found}})
        write_json(run.plan, plan.model_dump(mode="json"))
    return plan


def memory_forecast(plan: Plan) -> list[MemoryForecast]:
    """Return what each pipeline of a plan will need to train, and what comes of it to be served, as far as that is known."""
    return forecast(plan, load_plugins())


def time_forecast(recipe: str | Path | Mapping[str, Any], *, overrides: Sequence[str] = ()) -> list[TrialTime]:
    """Return how long a trial of each pipeline over each model takes here, and how many the time has room for.

    The data is read and a few real steps are taken of each, in a folder that is deleted again.

    Raises:
        AutoftError: as :func:`search` does before its first trial.
    """
    with _in_passing(recipe, overrides) as engine:
        return engine.times()


def serving_costs(
    recipe: str | Path | Mapping[str, Any], *, overrides: Sequence[str] = ()
) -> dict[str, dict[str, dict[str, float]]]:
    """Return what each model costs to serve in each compression, measured: by model and variant, costs by column.

    The data is read, and the models are compressed untrained, in a folder that is deleted again: size, latency and memory
    do not depend on what weights have learned. What cannot be made is left out.

    Raises:
        AutoftError: as :func:`search` does before its first trial.
    """
    with _in_passing(recipe, overrides) as engine:
        return engine.served()


@contextmanager
def _in_passing(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str]) -> Iterator[Search]:
    """Give a search over a recipe's data, in a folder that is deleted afterwards."""
    given, catalog = GivenRecipe(recipe, overrides), load_plugins()
    with tempfile.TemporaryDirectory() as temporary:
        folder = RunDir(temporary)
        loaded, base = given.read(folder)
        plan = make_plan(loaded, catalog, Hardware.probe(), base, source=_source(recipe))
        folder.create()
        given.keep(folder)
        plan = _with_prepared_data(plan, loaded, catalog, folder, base)
        write_json(folder.plan, plan.model_dump(mode="json"))
        try:
            yield Search(folder, plan, catalog, Listener(), Interruption(), started=time.monotonic())
        finally:
            folder.clear_leftovers()


@dataclass(frozen=True)
class Verified:
    """One figure of a report beside what the exported files score now."""

    split: str
    metric: str
    told: float
    found: float

    @property
    def same(self) -> bool:
        """They are equal, as far as sums in another order allow."""
        both_unknown = math.isnan(self.told) and math.isnan(self.found)
        near = math.isclose(self.told, self.found, rel_tol=RESCORE_TOLERANCE, abs_tol=RESCORE_TOLERANCE)
        return both_unknown or near


def verify(run: str | Path) -> list[Verified]:
    """Score the exported model of a finished run again, and return what its report says beside it.

    Nothing is changed: reading the test split again chooses nothing.

    Raises:
        RunFolderError: the folder is busy, damaged, or has no chosen model.
        ExportMismatch: a file is not the one that was exported, or they cannot be loaded.
        SearchFailed: the process that scores them was killed or hung.
    """
    folder = RunDir(run)
    record = read_run(folder.path)
    if record.final is None or not (folder.best / MANIFEST).is_file():
        raise RunFolderError(f"{folder.path}: has no chosen model yet; the command that began the search ends it")
    plan = plan_of(record)
    with folder.lock():
        other = changed_files(folder.best)
        if other:
            raise ExportMismatch(f"{folder.best}: not as it was exported: {', '.join(other)}")
        told = record.final.validation["best"]
        figures = rescored(folder, plan, told)
    test = {metric: interval.value for metric, interval in record.final.test["best"].items()}
    found = {metric: interval["value"] for metric, interval in figures["test"].items()}
    return [
        *(Verified("validation", name, value, figures["validation"][name]) for name, value in told.items()),
        *(Verified("test", name, value, found[name]) for name, value in test.items()),
    ]


def write_report(run: str | Path) -> dict[str, Path]:
    """Render the reports of a run folder again and return their paths by kind."""
    record = read_run(run)
    return report.write(record)


def compare(runs: Sequence[str | Path], *, output: str | Path | None = None) -> dict[str, Any]:
    """Return what there is to say of several runs beside each other, as ``autoft compare --json`` prints it.

    Args:
        runs: two run folders or more.
        output: a file that the comparison is written to as a page, too.

    Raises:
        RunFolderError: fewer than two folders, the same one twice, or no run; or the page cannot be written.
    """
    comparison = make_comparison([read_run(run) for run in runs])
    if output is not None:
        write_text(Path(output), render_comparison(comparison))
    return comparison_json(comparison)


def load(
    path: str | Path, *, catalog: Catalog | None = None, device: str | None = None, trust_remote_code: bool = False
) -> LoadedModel:
    """Load a model that autoft wrote: a run folder, its ``best/``, or the folder of a variant.

    Warns where it is a trial's model of which nothing was decided yet, as when to leave a question unanswered.

    Args:
        path: the folder.
        catalog: what plugins offer; by default all that are installed.
        device: ``cpu``, ``cuda`` or ``mps``; by default the best there is.
        trust_remote_code: run code that came with the base model.

    Raises:
        ModelError: the folder holds no model, or its files are damaged.
        PluginError: the task or the format needs a plugin that is not installed.
    """
    loaded = artifact.load(path, catalog=catalog, device=device, trust_remote_code=trust_remote_code)
    if told := undecided(loaded):
        warnings.warn(told, stacklevel=2)
    return loaded


def predict(
    model: str | Path, rows: Sequence[Row | str], *, batch_size: int = 32, device: str | None = None
) -> list[Mapping[str, Any]]:
    """Load a model that autoft wrote and return one prediction a row.

    Args:
        model: a run folder, its ``best/``, or the folder of another exported model.
        rows: rows by column role, or plain texts for tasks that need one text only.
        batch_size: rows a forward pass.
        device: ``cpu``, ``cuda`` or ``mps``; default: the best there is.

    Raises:
        ModelError: the folder holds no model, or its files are damaged.
        PluginError: the task or the format needs a plugin that is not installed.
        DataError: a row lacks what the task needs.
    """
    return list(load(model, device=device).predict(rows, batch_size))


def hardware() -> Hardware:
    """Return what this machine has."""
    return Hardware.probe()


def measure_device(threads: int | None = None) -> DeviceProfile:
    """Time this machine and return its profile, which a search elsewhere takes as ``budget.target``.

    Args:
        threads: that serve a model; default: one a core.

    Raises:
        SearchFailed: the process that measures ended with an error.
    """
    return measure_profile(threads)


def check(recipe: str | Path | Mapping[str, Any], *, overrides: Sequence[str] = ()) -> Iterator[str]:
    """Try a recipe end to end in seconds, and yield a sentence for each step that holds.

    Names and compatibility are resolved, the data is read and split, and for each model the task's demo rows and the
    first rows of the data go through encoding, loss, gradients, prediction and metrics.

    Raises:
        AutoftError: the first step that does not hold.
    """
    from autoft.evaluation import judged, references, score

    given, catalog = GivenRecipe(recipe, overrides), load_plugins()
    with tempfile.TemporaryDirectory() as folder:
        loaded, base = given.read(RunDir(folder))
        plan = make_plan(loaded, catalog, Hardware.probe(), base, source=_source(recipe))
        task = catalog.task(plan.task)
        pipelines = ", ".join(pipeline.name for pipeline in plan.pipelines)
        variants = ", ".join(variant.name for variant in plan.variants)
        yield f"recipe: {plan.task}; pipelines {pipelines}; compression {variants}"
        given.keep(RunDir(folder))
        with _at_its_line(loaded):
            prepared = prepare_data(loaded.data, task, plan.options, plan.seed, Path(folder), base)
        sizes = data_summary(prepared, loaded.data, base)["sizes"]
        yield (
            f"data: {sizes['train']} training, {sizes['validation']} validation and {sizes['test']} test rows; columns "
            + ", ".join(f"{role} from {column!r}" for role, column in prepared.columns.items())
        )
        for warning in (*plan.warnings, *prepared.warnings):
            yield f"warning: {warning}"
        own = [prepared.train[i] for i in range(min(8, len(prepared.train)))]
        with _at_its_line(loaded):
            plan = _with_auxiliary(plan, loaded, catalog, RunDir(folder), base)
    demo = list(task.demo_rows())
    facts = {"demo rows": (demo, task.facts(demo, plan.options)), "first rows": (own, prepared.facts)}
    for model in plan.models:
        for kind, (rows, known) in facts.items():
            described = plan.with_data(known, {}, ())
            default = described.default_config()
            target = plan_target(described, task, model, params=default.params)
            processor = task.load_processor(target.source, target.context)
            target = plan_target(described, task, model, params=default.params, processor=processor)
            network = task.load_model(target.source, target.context).to(target.context.device)
            features = task.encode(rows, target.context)
            batch = task.collate(features, target.context)
            loss = task.loss(network, {k: v.to(target.context.device) for k, v in batch.items()}, target.context)
            loss.backward()  # type: ignore[no-untyped-call]
            predictions = judged(task, network.eval(), rows, target.context)
            metrics = catalog.metrics_of(task)
            figures = score(metrics, predictions, references(task, rows, target.context), target.context)
            yield (
                f"{model.name}, {kind}: {len(rows)} rows encoded, loss {float(loss.detach()):.3f}, predicted; untrained "
                f"{plan.objective} {figures[plan.objective]:.3f}"
            )


def data_summary(prepared: PreparedData, section: DataSection, base: Path) -> dict[str, Any]:
    """Return what the plan and the report say of the data; a path of this machine is nobody else's business."""
    card = source_card(section.train, base)
    return {
        "source": section.train if "://" in section.train else None,
        "license": stated_license(card) if card is not None else None,
        "sizes": {name: len(getattr(prepared, name)) for name in ("train", "validation", "test")},
        "fingerprint": prepared.fingerprint,
        "columns": dict(prepared.columns),
    }


def _source(recipe: str | Path | Mapping[str, Any]) -> str:
    return "recipe" if isinstance(recipe, Mapping) else str(recipe)


def _same_recipe(folder: RunDir, recipe: Recipe) -> None:
    if not folder.recipe.is_file() or not any(folder.result(number).is_file() for number in folder.numbers()):
        return
    try:
        old = read_plain_yaml(folder.recipe.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{folder.recipe}: is damaged ({first_line(error)})") from error
    new = json.loads(recipe.model_dump_json())
    if not isinstance(old, dict):
        raise RunFolderError(f"{folder.recipe}: is damaged: it holds no recipe")
    with suppress(RecipeError):
        # A key that came with a later version had its default then.
        old = json.loads(recipe_from_mapping(old).model_dump_json())
    differing = [
        key for key in dict.fromkeys([*old, *new]) if key not in {*FREE, "name"} and old.get(key) != new.get(key)
    ]
    before, now = _measured_by(old), _measured_by(new)
    differing += [key for key in now if before[key] != now[key]]
    if differing:
        raise RunFolderError(
            f"{folder.path}: holds a run of another recipe (differs in {', '.join(differing)}); give --run another "
            "folder, or delete this one. Only budget, executor, storage and trackers may change between calls of a run, and "
            "of budget not what latencies are measured by"
        )


def _same_device(folder: RunDir, plan: Plan) -> None:
    """Raise where latencies of an earlier call were told for another device than the profile of the same name describes now."""
    done = any(folder.result(number).is_file() for number in folder.numbers())
    if plan.target is None or not folder.plan.is_file() or not done:
        return
    try:
        before = read_plan(folder.plan).target
    except RunFolderError:
        # It is damaged, and a new one takes its place.
        return
    if before is not None and before.milliseconds != plan.target.milliseconds:
        raise RunFolderError(
            f"{folder.path}: the profile that budget.target names was changed since the first trials, whose latencies are told by "
            "the one of before; give --run another folder, or put the profile back"
        )


def _measured_by(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a budget by which latencies are measured: of two calls they compare where these are the same."""
    budget = recipe.get("budget")
    # One that is damaged says nothing, and is written anew.
    budget = budget if isinstance(budget, dict) else {}
    latency = budget.get("latency")
    # A limit alone, as 5ms, is of one row a request.
    request = latency if isinstance(latency, dict) else {}
    return {
        "budget.target": budget.get("target"),
        "budget.latency.batch_size": request.get("batch_size", 1),
        "budget.latency.length": request.get("length"),
    }


@contextmanager
def _interruptible(listener: Listener) -> Iterator[Interruption]:
    """Turn the first Ctrl-C into a wish to finish; the second ends the command as usual."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def ask(signum: int, frame: object) -> None:
        if interruption.asked:
            raise KeyboardInterrupt
        interruption.asked = True
        listener.interrupted()

    old = signal.signal(signal.SIGINT, ask)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, old)
