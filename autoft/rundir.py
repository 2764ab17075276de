"""The run folder: paths, records, atomic writes, the lock. The folder is the record of a run.

::

    runs/<name>/
    ├── recipe.yaml            resolved copy
    ├── plan.json              what was decided before the first trial
    ├── given/                 data that was given in Python, where there is any
    ├── data/                  prepared splits and encoded features, by fingerprint
    ├── trials/0007/           config.json, progress.jsonl, result.json (written last)
    │   ├── adapter/           what its adapter learned, where it has one, as long as any of its variants is there
    │   ├── checkpoint/        of a long training, until the trial is done
    │   └── variants/<name>/   files of the variants that are on the front
    ├── progress.json          what the search is at now, or how it ended
    ├── study.json             which study it shares with other searches, and who it is there, where it does
    ├── trials.csv             one line a trial and variant
    ├── baselines.json         figures of the cheap predictors
    ├── selection.json         what was chosen, and why
    ├── final.json             test figures and the measurements of the exported files
    ├── best/                  the model
    ├── picks/                 other models of the front, as ``autoft pick`` exported them
    ├── exports/               models in other formats, as ``autoft export`` wrote them
    ├── report.html, report.md, report.json
    └── logs/                  what workers and libraries printed
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import filelock
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, model_validator

from autoft.errors import RunFolderError, first_line
from autoft.recipe import read_plain_yaml

__all__ = [
    "Candidate",
    "CurvePoint",
    "DamagedRecord",
    "Final",
    "Interval",
    "RunDir",
    "RunRecord",
    "Selection",
    "SliceFigure",
    "StepResult",
    "TrialConfig",
    "TrialKind",
    "TrialResult",
    "TrialState",
    "VariantResult",
    "count_states",
    "folder_size",
    "read_json",
    "read_run",
    "read_typed",
    "replacing",
    "replacing_folder",
    "write_json",
    "write_text",
    "writing",
]

Typed = TypeVar("Typed")

Figure = Annotated[float, Field(ge=-1e18, le=1e18)]
"""Finite, and such that sums and products of some are."""
Seconds = Annotated[float, Field(ge=0, le=1e10)]
Count = Annotated[int, Field(ge=0)]

DEEPEST = 100
"""Levels of lists and mappings in a file of the run folder, at most; what reads and writes them calls itself for each."""

_NUMBERED = re.compile(r"[0-9]{4}|[1-9][0-9]{4,6}")
_HALF = re.compile("[\ud800-\udfff]")

PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}")
"""Names of files that are being written."""

STALE = 3600.0
"""Seconds after which a file that is being written is not any more; a report may be written while a search begins."""

TrialState = Literal["complete", "pruned", "infeasible", "failed"]
"""How a trial ended: with figures; stopped early; outside the budget or the memory; or with an error."""

TrialKind = Literal["default", "known", "published", "search", "added", "seed", "fold", "soup", "ensemble", "compress"]
"""Where a configuration comes from: the plain default, what did well elsewhere, published settings, the sampler, the user; or it is another trial's, with a
further seed or on a further fold; or it is made of several: a soup averages weights, an ensemble predictions."""


class DamagedRecord(RunFolderError):
    """A file of the run folder does not hold what it should; the search makes those anew that it can.

    Args:
        path: of the file.
        fault: what is wrong with it.
    """

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(path, fault)
        self.path, self.fault = path, fault

    def __str__(self) -> str:
        return f"{self.path}: is damaged ({self.fault}); delete this file to have that part done again"

    @property
    def remedied(self) -> str:
        """What is told of it where the file was set aside."""
        return f"{self.path}: is damaged ({self.fault}); that part is done again"


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="constants")


class TrialConfig(_Record):
    """One configuration to train: plain JSON, everything a worker needs beside the plan."""

    number: int
    kind: TrialKind
    model: str
    """Name of the model, as in the recipe."""
    pipeline: str
    params: dict[str, str | int | FiniteFloat | bool | None]
    """Every parameter by name, as ``train.epochs``, ``lora.rank``, ``augment``."""
    seed: int
    parent: int | None = None
    """The trial whose configuration this repeats with another seed or on another fold."""
    fold: int = 0
    """Which rows are held out: 0 is the validation split, further folds are parts of the training split."""

    members: list[int] = []
    """The trials that may be averaged in a soup or an ensemble, the best first; the one that is compressed further, then those
    that teach it too."""
    variants: list[str] = []
    """Which are made of a trial that is compressed further."""
    parts: int = 1
    """Into how many each batch is cut from the start: an attempt before needed more memory than there is."""

    @model_validator(mode="after")
    def _names_what_it_is_made_of(self) -> TrialConfig:
        if self.repeats and self.parent is None:
            raise ValueError("it does not say which trial it repeats")
        if self.derived and not self.repeats and not self.members:
            raise ValueError("it does not say which trials it is made of")
        if not isinstance(self.params.get("train.epochs", 0), int | float | None):
            raise ValueError("train.epochs is no number")
        return self

    @property
    def repeats(self) -> bool:
        """Whether it is another trial's configuration over again."""
        return self.kind in {"seed", "fold"}

    @property
    def derived(self) -> bool:
        """Whether it follows from other trials: the sampler knows nothing of it, and it counts as no trial of its own."""
        return self.repeats or self.kind in {"soup", "ensemble", "compress"}

    @property
    def limited(self) -> bool:
        """Whether ``budget.trials`` counts it: neither what follows from other trials nor what a user adds takes of the budget."""
        return not self.derived and self.kind != "added"


class CurvePoint(_Record):
    """One validation while training."""

    samples: Count
    """Training samples seen."""
    epoch: Figure
    seconds: Seconds
    """Since the training began."""
    train_loss: float
    """Mean since the point before."""
    learning_rate: float
    validation: dict[str, float]
    validate_seconds: Seconds = 0.0
    """What this validation took."""


class Interval(_Record):
    """A figure with its 95 % bootstrap interval over ``n`` rows."""

    value: float
    low: float
    high: float
    n: Count


class SliceFigure(_Record):
    """What the chosen model scores on a part of the test split."""

    by: str
    """What its rows have in common: ``length``, the role of the label, or a column that ``data.slices`` names."""
    name: str
    metric: str
    figure: Interval


class StepResult(_Record):
    """What a model was after some steps of a chain, measured as if it had ended there."""

    name: str
    """The steps so far."""
    validation: dict[str, float]
    costs: dict[str, float]


class VariantResult(_Record):
    """One compression of a trained model, measured from its files."""

    name: str
    """As ``none``, ``onnx-int8``, ``magnitude-pruning(sparsity=0.3)+onnx-int8``."""
    state: TrialState
    reason: str | None = None
    """Why it is infeasible or failed."""
    validation: dict[str, float] = {}
    costs: dict[str, float] = {}
    """By column: ``model_size_bytes``, ``latency_p50_ms``, ``latency_p95_ms``, ``inference_memory_bytes`` ..."""
    other_load: Figure = 0.0
    """Share of the processors that other processes took while that was measured."""
    violations: dict[str, float] = {}
    """By budget key, how far over the limit: measured / limit - 1; only those above 0."""
    folder: str | None = None
    """Its files, relative to the run folder; None once they are deleted."""
    members: list[int] = []
    """The trials that were averaged, in a soup or an ensemble."""
    steps: list[StepResult] = []
    """Of a chain that trains: all but the last, which the figures of the variant itself are of."""
    seconds: Seconds = 0.0
    score_seconds: Seconds = 0.0
    """Of them, those in which it predicted the validation rows and was scored."""


class TrialResult(_Record):
    """What came of one configuration."""

    number: int
    state: TrialState
    reason: str | None = None
    config: TrialConfig
    seconds: dict[str, Seconds] = {}
    """By stage: ``load``, ``train`` (``validate`` is a part of it), ``judge``, ``compress``, ``measure``, ``total``."""
    curve: list[CurvePoint] = []
    best_samples: int | None = None
    """Training samples seen at the checkpoint that was kept."""
    validation: dict[str, float] = {}
    """Of the kept checkpoint as it was trained."""
    parts: int = Field(default=1, ge=1)
    """Into how many each batch was cut, its gradients added up, so that the training fits into memory."""
    together: int = Field(default=1, ge=1)
    """How many trials trained at the same time, itself included; ``train_memory_bytes`` and the seconds are then of all."""
    parameters: Count | None = None
    trainable_parameters: Count | None = None
    train_memory_bytes: Count | None = None
    predicted: dict[str, Figure] = {}
    """What was thought before: ``seconds`` of the whole trial; ``train_memory_bytes`` where the budget limits it."""
    violations: dict[str, float] = {}
    variants: list[VariantResult] = []

    @property
    def cut_short(self) -> tuple[float, float] | None:
        """Epochs that the training came to and that were planned, where it is complete and did not come to its end."""
        if self.state != "complete" or not self.curve:
            return None
        reached, planned = self.curve[-1].epoch, float(self.config.params.get("train.epochs") or 0)
        return (reached, planned) if reached <= planned - 0.01 else None


class Candidate(_Record):
    """A variant of a trial as the selection sees it."""

    trial: int
    variant: str
    objective: float
    """On validation; the mean over folds, or over seeds where finalists were trained again."""
    seeds: list[float] = []
    """The objective of each seed, the trial's own first."""
    folds: list[float] = []
    """The objective on each fold, the validation split first."""
    costs: dict[str, float] = {}
    violations: dict[str, float] = {}
    front: bool = False
    """No other feasible variant is at least as good in quality, size and latency, and better in one; by figures of the very models, or
    means over folds."""


class Selection(_Record):
    """What was chosen from the record, and why."""

    trial: int
    variant: str
    objective: str
    reason: str
    candidates: list[Candidate] = []


class Final(_Record):
    """What was measured after the selection: test figures once, and the exported files again."""

    test: dict[str, dict[str, Interval]] = {}
    """By system (``best``, ``default``, names of baselines), by metric."""
    validation: dict[str, dict[str, float]] = {}
    costs: dict[str, dict[str, float]] = {}
    """By system, measured in a fresh process from the exported files."""
    details: list[dict[str, Any]] = []
    """The task's own section of the report: tables, marked texts, pictures ..., each with its ``kind``."""
    slices: list[SliceFigure] = []
    """Of the chosen model; empty in runs of before they were made."""
    operating_point: dict[str, Any] = {}
    """What the chosen model's validation predictions decided, as a threshold."""
    example: str | dict[str, Any] = "..."
    """What such a model may be asked, for those who read how to use it."""
    notes: list[str] = []
    seconds: Seconds = 0.0
    """Of the whole run, over all calls."""


class BaselineFigures(_Record):
    """What a baseline scores, by metric."""

    trivial: bool = False
    """It reads nothing of the inputs."""
    validation: dict[str, float] = {}
    test: dict[str, Interval] = {}


class AugmentedValue(_Record):
    """A value of a training row before and after augmentation; pictures are ``data:`` URLs."""

    role: str
    before: str
    after: str


class AugmentedRows(_Record):
    """What a trial's augmentation does to some training rows."""

    augment: str
    samples: list[AugmentedValue] = []


_RECORDS: dict[str, Any] = {
    "selection.json": Selection,
    "final.json": Final,
    "baselines.json": dict[str, BaselineFigures],
    "forecast.json": dict[str, Any],
    "importance.json": dict[str, Figure],
    "screening.json": dict[str, dict[str, dict[str, Figure]]],
    "study.json": dict[str, Any],
    "time.json": dict[str, Seconds],
    "workloads.json": dict[str, Any],
}
"""What the records beside trials and plan hold; a search that goes on makes those that are absent."""


class RunRecord(_Record):
    """All that a run folder says."""

    path: Path
    recipe: dict[str, Any]
    plan: dict[str, Any]
    baselines: dict[str, BaselineFigures] = {}
    trials: list[TrialResult] = []
    selection: Selection | None = None
    final: Final | None = None
    forecast: dict[str, Any] = {}
    importance: dict[str, Figure] = {}
    """Share of the objective's variance that each parameter explains, where enough trials are done."""
    augmented: dict[int, AugmentedRows] = {}
    """By trial with augmentation."""

    def trial(self, number: int) -> TrialResult:
        """Return the trial with this number.

        Raises:
            RunFolderError: there is none.
        """
        for trial in self.trials:
            if trial.number == number:
                return trial
        raise RunFolderError(f"{self.path}: is damaged: there is no trial {number}, which another record of it names")

    def counts(self) -> dict[TrialState, int]:
        """Return how many trials ended in each state; further seeds and folds, and averages, are none of their own."""
        return count_states(self.trials)


def count_states(trials: Iterable[TrialResult]) -> dict[TrialState, int]:
    """Return how many of these ended in each state, those left out that follow from others."""
    counts: dict[TrialState, int] = {"complete": 0, "pruned": 0, "infeasible": 0, "failed": 0}
    for trial in trials:
        if not trial.config.derived:
            counts[trial.state] += 1
    return counts


class RunDir:
    """Paths of a run folder, and the only writer of its files."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def screening(self) -> Path:
        """What each model costs by compression, measured before the first trial, where the budget limits that."""
        return self.path / "screening.json"

    @property
    def plan(self) -> Path:
        """What was decided before the first trial."""
        return self.path / "plan.json"

    @property
    def progress(self) -> Path:
        """What a search is at, as :mod:`autoft.progress` writes it."""
        return self.path / "progress.json"

    @property
    def data(self) -> Path:
        """Prepared splits and encoded features."""
        return self.path / "data"

    @property
    def given(self) -> Path:
        """Data that was given in Python and not as files."""
        return self.path / "given"

    def fold(self, number: int) -> Path:
        """Return the folder of a fold's splits; fold 0 is the run's own training and validation split."""
        return self.data / f"fold-{number}" if number else self.data

    def auxiliary(self, number: int) -> Path:
        """Return the folder of an auxiliary task's data."""
        return self.data / f"auxiliary-{number}"

    @property
    def cache(self) -> Path:
        """What trials can use again, as exported graphs."""
        return self.path / "cache"

    @property
    def quiet(self) -> Path:
        """What workers lock while one of them measures."""
        return self.path / "cache" / "quiet"

    @property
    def logs(self) -> Path:
        """What workers and libraries printed."""
        return self.path / "logs"

    @property
    def best(self) -> Path:
        """The exported model."""
        return self.path / "best"

    def trial(self, number: int) -> Path:
        """Return the folder of a trial."""
        return self.path / "trials" / f"{number:04d}"

    def augmented(self, number: int) -> Path:
        """Return the file of what augmentation did to some rows of a trial; absent where there was none."""
        return self.trial(number) / "augmented.json"

    def adapter(self, number: int) -> Path:
        """Return the folder of what a trial's adapter learned, in PEFT's format; absent where it learned nothing apart."""
        return self.trial(number) / "adapter"

    def checkpoint(self, number: int) -> Path:
        """Return the folder of a training's checkpoint; absent where there is none, or the trial is done."""
        return self.trial(number) / "checkpoint"

    def result(self, number: int) -> Path:
        """Return the result file of a trial; it exists when the trial is done."""
        return self.trial(number) / "result.json"

    def inside(self, relative: str) -> Path:
        """Return a path of the run folder.

        Raises:
            RunFolderError: it would leave the folder, or is none.
        """
        try:
            path = (self.path / relative).resolve()
        except ValueError as error:
            # Of a character that no name of a file has.
            raise RunFolderError(f"{self.path}: names {relative!r}, which is no path ({first_line(error)})") from error
        if not path.is_relative_to(self.path.resolve()):
            raise RunFolderError(f"{self.path}: holds or names a path outside the run folder: {relative!r}")
        return path

    @property
    def scratch(self) -> Path:
        """Where workers put away files for a moment: among the system's temporary files, under a name that follows from the run.

        A worker that is killed leaves them behind, and the next search of the run finds them by the name.
        """
        digest = hashlib.sha256(os.fsencode(f"{Path.home()}:{self.path}")).hexdigest()[:8]
        return Path(tempfile.gettempdir()) / f"autoft-{digest}"

    def clear_leftovers(self) -> None:
        """Delete what killed processes left half made; for who holds the folder, and has no workers."""
        folders = [*self.path.glob(".screen-*"), *self.path.glob(".step-*"), *self.path.glob(".best-*")]
        for folder in [*folders, *self.cache.glob("tmp*"), self.scratch]:
            shutil.rmtree(folder, ignore_errors=True)
        old = time.time() - STALE
        for path in self.path.rglob(".*"):
            # Who is writing it may be done at any moment.
            with suppress(FileNotFoundError):
                if PARTIAL.fullmatch(path.name) and path.is_file() and path.stat().st_mtime < old:
                    path.unlink()
        for folder in [*self.path.glob("picks/.*"), *self.path.glob("exports/.*")]:
            if folder.is_dir() and folder.stat().st_mtime < old:
                shutil.rmtree(folder, ignore_errors=True)

    def size(self) -> int:
        """Return the bytes of all files of the folder."""
        return folder_size(self.path)

    def free(self, quota: float | None) -> float:
        """Return the bytes that may still be written, of the disk and of what the folder may have in all."""
        left = math.inf if quota is None else quota - self.size()
        return min(left, float(shutil.disk_usage(self.path).free))

    def drop_caches(self, needed: float) -> int:
        """Delete what can be made again, what was used longest ago first, until so many bytes are free; return how many were.

        Encoded rows that a worker is just reading for the first time are left out; those that it has open stay with it.
        """
        features, graphs = self.data.glob("encoded/features-*.arrow"), self.cache.glob("onnx/[!.]*")
        dropped = 0
        for path in sorted([*features, *graphs], key=_last_used):
            if dropped >= needed:
                break
            held = filelock.FileLock(path.with_name(f".{path.stem}.lock")) if path.suffix == ".arrow" else None
            try:
                with held.acquire(timeout=0) if held else nullcontext():
                    size = path.stat().st_size
                    path.unlink()
                    path.with_suffix(".sha256").unlink(missing_ok=True)
            except (filelock.Timeout, FileNotFoundError):
                continue
            dropped += size
        return dropped

    def create(self) -> None:
        """Make the folder and its parts.

        Raises:
            RunFolderError: it cannot be made or written.
        """
        try:
            for folder in (self.path, self.data, self.cache, self.logs, self.path / "trials"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{self.path}: the run folder cannot be written: {error.strerror}") from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one search at a time; freed by the system if the process dies.

        Raises:
            RunFolderError: another process holds it, which the message names; or a link of the folder leads out of it.
        """
        holder = self.path / ".holder"
        self.inside(".lock")
        lock = filelock.FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            who = holder.read_text(encoding="utf-8", errors="replace") if holder.is_file() else "as autoft watch shows"
            raise RunFolderError(
                f"{self.path}: another search is running in this folder, {who}; wait for it, or give autoft search another one by --run"
            ) from None
        except OSError as error:
            raise RunFolderError(f"{self.path}: the run folder cannot be written: {error.strerror}") from error
        try:
            self.check_links()
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            write_text(holder, f"process {os.getpid()} on {platform.node()} since {since}")
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def check_links(self) -> None:
        """Check that nothing is written elsewhere by a link, as one in a stranger's run may have it.

        Raises:
            RunFolderError: a link leads out of the folder.
        """
        folders = [str(self.path)]
        while folders:
            # Entries know what they are: no file is looked at.
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        self.inside(os.path.relpath(entry.path, self.path))
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)

    def write_result(self, result: TrialResult) -> None:
        """Write a trial's result, atomically: the file's presence means that the trial is done."""
        folder, path = self.trial(result.number), self.result(result.number)
        folder.mkdir(parents=True, exist_ok=True)
        first = not path.is_file()
        # After a power cut no result may stand without what it tells of, and none may be gone. What it told of before is there.
        with writing(folder):
            for made in folder.rglob("*") if first else ():
                _flush(made)
        write_json(path, result.model_dump(mode="json"))
        for parent in (folder, folder.parent) if first else (folder,):
            _flush(parent)
        shutil.rmtree(self.checkpoint(result.number), ignore_errors=True)

    def read_result(self, number: int) -> TrialResult:
        """Return the result of a trial that is done.

        Raises:
            RunFolderError: its file is absent or damaged.
        """
        path = self.result(number)
        # All that is kept of it has a type: nothing of any depth.
        result = read_typed(path, TrialResult, plain=False)
        if not result.number == result.config.number == number:
            raise DamagedRecord(path, f"it says that it is of trial {result.number}")
        return result

    def read_config(self, number: int) -> TrialConfig:
        """Return the configuration of a trial.

        Raises:
            RunFolderError: its file is absent or damaged.
        """
        return read_typed(self.trial(number) / "config.json", TrialConfig, plain=False)

    def results(self) -> list[TrialResult]:
        """Return the results of all trials that are done, by number.

        Raises:
            RunFolderError: a result file is damaged.
        """
        return [self.read_result(number) for number in self.numbers() if self.result(number).is_file()]

    def numbers(self) -> list[int]:
        """Return the numbers of the trials that have a folder; another folder beside them, as a copy, is no trial."""
        return sorted(
            int(folder.name) for folder in self.path.glob("trials/[0-9]*") if _NUMBERED.fullmatch(folder.name)
        )

    def write_trials_csv(self, results: Iterable[TrialResult]) -> None:
        """Write one line for each trial and variant, all figures of these trials, by number."""
        results = sorted(results, key=lambda result: result.number)
        params = sorted({name for result in results for name in result.config.params})
        metrics = sorted({name for result in results for variant in result.variants for name in variant.validation})
        costs = sorted({name for result in results for variant in result.variants for name in variant.costs})
        head = ["trial", "kind", "state", "model", "pipeline", "seed", "seconds", "train_memory_bytes", "variant"]
        head += ["variant_state", "reason", *(f"validation.{name}" for name in metrics), *costs, *params]
        lines: list[list[object]] = [[*head]]
        for result in results:
            config = result.config
            front: list[object] = [result.number, config.kind, result.state, config.model, config.pipeline, config.seed]
            front += [round(result.seconds.get("total", 0.0), 3), result.train_memory_bytes or ""]
            values = [config.params.get(name, "") for name in params]
            empty = VariantResult(name="", state=result.state, reason=result.reason, validation=result.validation)
            for variant in result.variants or [empty]:
                line: list[object] = [*front, variant.name, variant.state, variant.reason or ""]
                line += [variant.validation.get(name, "") for name in metrics]
                line += [variant.costs.get(name, "") for name in costs]
                lines.append(line + values)
        with replacing(self.path / "trials.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([_cell(value) for value in line] for line in lines)

    def clear_partial(self) -> list[int]:
        """Delete what there is of trials without a result, and return their numbers: they were cut off and run again.

        Of those whose training has a checkpoint, it and the configuration stay.
        """
        partial = [number for number in self.numbers() if not self.result(number).is_file()]
        for number in partial:
            self.discard(number)
        return partial

    def set_aside_damaged(self) -> list[str]:
        """Move records that cannot be read to ``logs/``, for the search makes them again; return for each what the user is told.

        Raises:
            RunFolderError: more than half of several results cannot be read, as where another version wrote them: no accident.
        """
        damaged: dict[Path, DamagedRecord] = {}
        numbers = [number for number in self.numbers() if self.result(number).is_file()]
        kinds = {self.path / name: kind for name, kind in _RECORDS.items()}
        for path, kind in {**kinds, **dict.fromkeys(map(self.augmented, numbers), AugmentedRows)}.items():
            if path.is_file():
                try:
                    read_typed(path, kind)
                except DamagedRecord as error:
                    damaged[path] = error
        for number in numbers:
            try:
                self.read_result(number)
            except DamagedRecord as error:
                damaged[self.result(number)] = error
        results = [damaged[path] for path in map(self.result, numbers) if path in damaged]
        if len(results) > max(1, len(numbers) // 2):
            raise results[0]
        for path in damaged:
            self.set_aside(path)
        return [error.remedied for error in damaged.values()]

    def set_aside(self, path: Path) -> None:
        """Move a file of the run to ``logs/``, where whoever looks for the reason of its damage finds it."""
        self.logs.mkdir(exist_ok=True)
        path.replace(self.logs / f"damaged-{path.relative_to(self.path).as_posix().replace('/', '-')}")

    def discard(self, number: int) -> None:
        """Delete what there is of a trial that is not done, but for its configuration and checkpoint where there is one."""
        folder = self.trial(number)
        if not self.checkpoint(number).is_dir():
            shutil.rmtree(folder, ignore_errors=True)
            return
        for path in folder.iterdir():
            if path.name in {"config.json", "checkpoint"}:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def read_run(path: str | Path) -> RunRecord:
    """Return all that a run folder says.

    Raises:
        RunFolderError: it is no run folder, or a file of it is damaged.
    """
    run = RunDir(path)
    if not run.path.is_dir():
        raise RunFolderError(f"{run.path}: no such run folder")
    if not run.plan.is_file() or not run.recipe.is_file():
        raise RunFolderError(f"{run.path}: is not a run folder: it has no plan.json and recipe.yaml of a search")
    try:
        recipe = read_plain_yaml(run.recipe.read_text(encoding="utf-8"))
        _check_plain(recipe)
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{run.recipe}: is damaged ({first_line(error)})") from error
    selection = run.path / "selection.json"
    final = run.path / "final.json"
    trials = run.results()
    augmented = {trial.number: run.augmented(trial.number) for trial in trials}
    try:
        record = RunRecord(
            path=run.path,
            recipe=recipe,
            plan=read_json(run.plan),
            baselines=read_json(run.path / "baselines.json", missing={}),
            trials=trials,
            augmented={number: read_json(path) for number, path in augmented.items() if path.is_file()},
            selection=read_typed(selection, Selection) if selection.is_file() else None,
            final=read_typed(final, Final) if final.is_file() else None,
            forecast=read_json(run.path / "forecast.json", missing={}),
            importance=read_json(run.path / "importance.json", missing={}),
        )
    except ValidationError as error:
        field, *inner = error.errors()[0]["loc"]
        file = run.recipe if field == "recipe" else run.path / f"{field}.json"
        raise _damaged(augmented[int(inner[0])] if field == "augmented" else file, error) from error
    if record.selection is not None:
        _check_selection(selection, record.selection, trials)
    # Whether the plan is one is checked where it is read as one.
    objectives = record.plan.get("objectives")
    objective = objectives[0] if isinstance(objectives, list) and objectives else None
    if record.final is not None and isinstance(objective, str):
        _check_final(final, record.final, objective)
    return record


def _check_final(path: Path, final: Final, objective: str) -> None:
    """Raise where the chosen model lacks a figure that it has in every run that is tested; without a test there are none at all."""
    if not final.test:
        return
    missing = [
        f"{name} has no {wanted} of the chosen model"
        for name, systems, wanted in (("test", final.test, objective), ("validation", final.validation, objective))
        if wanted not in systems.get("best", {})
    ]
    missing += ["costs has none of the chosen model"] if "best" not in final.costs else []
    if missing:
        raise DamagedRecord(path, missing[0])


def _check_selection(path: Path, selection: Selection, trials: Sequence[TrialResult]) -> None:
    """Raise where a selection names what no trial has, as after a damage that left it readable."""
    chosen = (selection.trial, selection.variant)
    if chosen not in {(trial.number, variant.name) for trial in trials for variant in trial.variants}:
        raise RunFolderError(
            f"{path}: names {selection.variant} of trial {selection.trial}, which "
            f"{RunDir(path.parent).result(selection.trial)} does not hold; delete the one that is wrong to have that part "
            "done again"
        )
    if chosen not in {(one.trial, one.variant) for one in selection.candidates}:
        raise DamagedRecord(
            path, f"the chosen {selection.variant} of trial {selection.trial} is none of its candidates"
        )
    lost = {one.trial for one in selection.candidates} - {trial.number for trial in trials}
    if lost:
        raise DamagedRecord(path, f"there is no trial {min(lost)}, of which it has a candidate")


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part.

    Raises:
        RunFolderError: the disk is full, or the folder cannot be written.
    """
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False))


def write_text(path: Path, text: str) -> None:
    """Write text so that a reader sees the old file or the new one, never a part.

    Raises:
        RunFolderError: the disk is full, or the folder cannot be written.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path, missing: dict[str, Any] | None = None) -> Any:
    """Read a JSON file of the run folder; ``missing`` stands for a file that is not there.

    Raises:
        RunFolderError: the file is damaged, or absent and ``missing`` is not given.
    """
    return _read_json(path, missing)


def _read_json(path: Path, missing: dict[str, Any] | None = None, *, plain: bool = True) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_int=_whole_number)
        if plain:
            _check_plain(value)
        return value
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise RunFolderError(f"{path}: is missing; the run folder is damaged") from None
    except (ValueError, RecursionError) as error:
        raise DamagedRecord(path, first_line(error)) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses inside of the block into an error about ``path``.

    Raises:
        RunFolderError: the disk is full, or the path cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise RunFolderError(
                f"{path}: the disk is full; free some space and run the same command again to go on"
            ) from error
        raise RunFolderError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, which then takes the place of ``path``: readers see the whole file or none of it.

    Raises:
        RunFolderError: the disk is full, or the folder cannot be written.
    """
    # Not mkstemp: its files can be read by their owner only.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with writing(path):
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which then takes the place of ``folder``; where filling it fails, ``folder`` stays as it is.

    Raises:
        RunFolderError: the disk is full, or the folder cannot be written.
    """
    partial = None
    try:
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
            yield partial
            # mkdtemp makes folders for their owner only.
            partial.chmod(0o755)
            # Deleting the old one takes long enough to be killed in it, and then both would be lost.
            before = partial.with_name(f"{partial.name}-before")
            with suppress(FileNotFoundError):
                os.replace(folder, before)
            os.replace(partial, folder)
            shutil.rmtree(before, ignore_errors=True)
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until the disk has what was written of a file, or the names that a folder lists."""
    if path.is_symlink() or (path.is_dir() and os.name == "nt"):
        return
    try:
        # Windows flushes only what may be written.
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    except FileNotFoundError:
        # Another process has just deleted it.
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot do that with folders.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}:
            raise
    finally:
        os.close(descriptor)


def folder_size(folder: Path) -> int:
    """Return the bytes of all files below a folder, those left out that vanish meanwhile."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            there = path.lstat()
            size += there.st_size if stat.S_ISREG(there.st_mode) else 0
    return size


def _last_used(path: Path) -> float:
    with suppress(FileNotFoundError):
        there = path.stat()
        return max(there.st_atime, there.st_mtime)
    return 0.0


def read_typed(path: Path, kind: type[Typed], missing: Typed | None = None, *, plain: bool = True) -> Typed:
    """Read a JSON file of the run folder as a value of this type.

    Args:
        path: of the file.
        kind: a model of pydantic, or what its ``TypeAdapter`` takes, as ``dict[str, float]``.
        missing: stands for a file that is not there.
        plain: check what has no type of its own in ``kind``, too.

    Raises:
        RunFolderError: the file is damaged, or absent and ``missing`` is not given.
    """
    if missing is not None and not path.is_file():
        return missing
    value = _read_json(path, plain=plain)
    try:
        found: Typed = _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise _damaged(path, error) from error
    return found


_ADAPTERS: dict[str, TypeAdapter[Any]] = {}


def _adapter(kind: type[Typed]) -> TypeAdapter[Typed]:
    # Making one takes a hundred times as long as using it.
    name = str(kind)
    if name not in _ADAPTERS:
        _ADAPTERS[name] = TypeAdapter(kind)
    return _ADAPTERS[name]


def _whole_number(text: str) -> int:
    number = int(text) if len(text) <= 20 else 2**63
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{text[:20]}... is a number of more than 64 bits")
    return number


def _check_plain(value: object) -> None:
    """Raise a ValueError where a value is nested too deeply to be read and written, or is none of JSON, or has half a character."""
    level: list[object] = [value]
    for _ in range(DEEPEST):
        below: list[object] = []
        for one in level:
            if isinstance(one, dict):
                below += one
                below += one.values()
            elif isinstance(one, list):
                below += one
            elif isinstance(one, str):
                if _HALF.search(one):
                    raise ValueError(f"holds half a character: {one[:20]!r}")
            elif not isinstance(one, int | float | None):
                raise ValueError(f"holds a {type(one).__name__}, {one!r:.40}")
        level = below
        if not level:
            return
    raise ValueError(f"is nested more than {DEEPEST} levels deep")


def _damaged(path: Path, error: ValidationError) -> DamagedRecord:
    fault = error.errors()[0]
    where = ".".join(map(str, fault["loc"]))
    return DamagedRecord(path, f"at {where!r}: {fault['msg']}")


def _cell(value: object) -> object:
    """Return what a table has for a value: a text that spreadsheets would compute is one to them by the mark before it."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return "" if isinstance(value, float) and math.isnan(value) else value
