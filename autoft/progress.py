"""Where a run stands, for those who look at it: ``progress.json``, written by the search and read by anybody.

What is done is in the results of the trials. What is being done now is in ``progress.json`` alone: the phase, what each
worker is at, the time left, and notes. It is written at most once a second, atomically and without waiting for the disk,
and says at its end how the command ended. Whether its process still lives is asked of the system, so that a killed search
is not taken for a running one.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field

from autoft.errors import NothingFeasible, RunFolderError, first_line
from autoft.listener import Forecast, Listener, Standing
from autoft.plans.plan import Plan, read_plan
from autoft.quantities import format_seconds
from autoft.rundir import (
    Candidate,
    Count,
    DamagedRecord,
    Figure,
    RunDir,
    Seconds,
    TrialConfig,
    TrialResult,
    TrialState,
    count_states,
    read_typed,
)
from autoft.selection import candidates, select

__all__ = [
    "Activity",
    "Audience",
    "Figures",
    "Progress",
    "ProgressWriter",
    "RunReader",
    "RunState",
    "View",
    "figures",
    "printable",
    "without_nan",
]

WRITTEN_EVERY = 1.0
"""Seconds between two writings at least, where something changed."""

SIGN_OF_LIFE = 10.0
"""Seconds after which it is written though nothing changed."""

SILENCE = 60.0
"""Seconds without a sign of life, after which a search on another machine is not called running any more."""

MOST_NOTES = 200
"""Notes that are kept; a search has a few."""

SHOWN_OF_FRONT = 3

RunState = Literal["empty", "running", "finished", "stopped", "failed", "cut off"]
"""Of a run: no search has begun; one is at it; the last one came to its end; was ended by Ctrl-C; ended with an error; or
its process is gone, by a kill, a crash or a power cut."""

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]+")


def printable(text: str) -> str:
    """Return text on one line, without characters that steer a terminal or turn the direction of writing."""
    return _CONTROLS.sub(" ", text).strip()


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Activity(_Record):
    """What a worker is at."""

    worker: int
    config: TrialConfig
    stage: str = "load"
    began: Seconds
    """Since 1970."""
    stage_began: Seconds
    samples: Count = 0
    total: Count = 0
    """Training samples, seen and in all; 0 before the training."""
    rate: Figure = 0.0
    """Samples a second."""
    value: float | None = None
    """The objective at the last validation."""

    @property
    def trial(self) -> int:
        """The trial's number."""
        return self.config.number

    def seconds_left(self, now: float) -> float | None:
        """Return the seconds that its training will go on, None where it does not train."""
        if self.stage != "train" or not self.rate or not self.total:
            return None
        return max(0.0, (self.total - self.samples) / self.rate)


class Progress(_Record):
    """What ``progress.json`` holds."""

    version: int = 1
    state: Literal["running", "finished", "stopped", "failed"] = "running"
    reason: str = ""
    """Of a search that ended without a model, in one line."""
    pid: int = Field(ge=1, lt=2**31)
    pid_began: float
    """When the process started, seconds since 1970: a number alone is given to another process some day."""
    host: str
    machine: str
    """Tells places apart that have different processes under the same number."""
    began: Seconds
    written: Seconds
    phase: str = "prepare data"
    phase_began: Seconds
    phases: list[str] = []
    """Those that the command was at, in their order."""
    resumed: int = 0
    time_limit: Figure | None = None
    """Seconds of the whole command, None without a limit."""
    seconds_left: Figure | None = None
    """Of the time budget, when it was asked last."""
    expected_left: Figure | None = None
    """Seconds until the command is thought to end, then."""
    asked: Seconds = 0.0
    """When."""
    limit: int | None = None
    """Trials at most."""
    activities: list[Activity] = []
    notes: list[str] = []

    def left(self, now: float) -> tuple[float | None, float | None]:
        """Return the seconds until the command is thought to end, and those until its time is up.

        Args:
            now: seconds since 1970.
        """
        since = now - self.asked if self.asked else 0.0
        expected = None if self.expected_left is None else max(0.0, self.expected_left - since)
        return expected, None if self.seconds_left is None else self.seconds_left - since

    def process(self, now: float) -> tuple[bool, str]:
        """Say whether the process that writes this is alive, and which one it is.

        Args:
            now: seconds since 1970.
        """
        what = f"process {self.pid}"
        if self.machine == _machine():
            return _alive(self.pid, self.pid_began), what
        silent = now - self.written
        return silent < SILENCE, f"{what} on {printable(self.host)}, last heard of {format_seconds(max(0, silent))} ago"


@lru_cache(maxsize=1)
def _machine() -> str:
    """Return what is the same for processes that see each other by number, and for no others."""
    parts = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text().strip())
        except OSError:
            # Only Linux has them; elsewhere the name of the machine has to do.
            continue
    return " ".join(parts)


def _alive(pid: int, began: float) -> bool:
    try:
        process = psutil.Process(pid)
        same = abs(float(process.create_time()) - began) < 2.0
        return same and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


class Audience(Listener):
    """Several listeners, each told all, one after the other."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def begin(self, plan: Plan, resumed: int) -> None:
        """Pass it on."""
        for listener in self.listeners:
            listener.begin(plan, resumed)

    def forecast(self, forecast: Forecast) -> None:
        """Pass it on."""
        for listener in self.listeners:
            listener.forecast(forecast)

    def trial_started(self, config: TrialConfig) -> None:
        """Pass it on."""
        for listener in self.listeners:
            listener.trial_started(config)

    def stage(self, trial: int, stage: str) -> None:
        """Pass it on."""
        for listener in self.listeners:
            listener.stage(trial, stage)

    def progress(self, trial: int, samples: int, total: int, rate: float) -> None:
        """Pass it on."""
        for listener in self.listeners:
            listener.progress(trial, samples, total, rate)

    def validation(self, trial: int, samples: int, value: float) -> None:
        """Pass it on."""
        for listener in self.listeners:
            listener.validation(trial, samples, value)

    def trial_done(self, result: TrialResult, standing: Standing) -> None:
        """Pass it on."""
        for listener in self.listeners:
            listener.trial_done(result, standing)

    def earlier(self, results: Sequence[TrialResult]) -> None:
        """Pass it on."""
        for listener in self.listeners:
            listener.earlier(results)

    def phase(self, name: str) -> None:
        """Pass it on."""
        for listener in self.listeners:
            listener.phase(name)

    def note(self, text: str) -> None:
        """Pass it on."""
        for listener in self.listeners:
            listener.note(text)

    def waits(self, text: str) -> None:
        """Pass it on."""
        for listener in self.listeners:
            listener.waits(text)

    def interrupted(self) -> None:
        """Pass it on."""
        for listener in self.listeners:
            listener.interrupted()


class Follower(Listener):
    """Keeps a :class:`Progress` up to date with what happens."""

    def __init__(self) -> None:
        now = time.time()
        self.now = Progress(
            pid=os.getpid(),
            pid_began=psutil.Process().create_time(),
            host=platform.node(),
            machine=_machine(),
            began=now,
            written=now,
            phase_began=now,
            phases=["prepare data"],
        )
        self.changed = threading.Event()
        self.lock = threading.Lock()

    def begin(self, plan: Plan, resumed: int) -> None:
        """Keep how much was done before, and the limits."""
        with self._change() as now:
            now.resumed, now.limit = resumed, plan.trials_limit
            now.time_limit = _finite(plan.time_limit)

    def forecast(self, forecast: Forecast) -> None:
        """Keep the limit that is known only now."""
        with self._change() as now:
            now.time_limit = _finite(forecast.time_limit)

    def trial_started(self, config: TrialConfig) -> None:
        """Give the trial to the first worker that is free, as the search does."""
        with self._change() as now:
            again = [one.worker for one in now.activities if one.trial == config.number]
            now.activities = [one for one in now.activities if one.trial != config.number]
            taken = {one.worker for one in now.activities}
            worker = again[0] if again else min(set(range(len(taken) + 1)) - taken)
            began = time.time()
            now.activities.append(Activity(worker=worker, config=config, began=began, stage_began=began))
            now.activities.sort(key=lambda one: one.worker)

    def stage(self, trial: int, stage: str) -> None:
        """Keep the stage."""
        with self._change() as now:
            for one in now.activities:
                if one.trial == trial:
                    one.stage, one.stage_began = stage, time.time()

    def progress(self, trial: int, samples: int, total: int, rate: float) -> None:
        """Keep how far the training is."""
        with self._change() as now:
            for one in now.activities:
                if one.trial == trial:
                    one.samples, one.total, one.rate = samples, total, rate

    def validation(self, trial: int, samples: int, value: float) -> None:
        """Keep the value."""
        with self._change() as now:
            for one in now.activities:
                if one.trial == trial:
                    one.value = _finite(value)

    def trial_done(self, result: TrialResult, standing: Standing) -> None:
        """Free its worker, and keep the time left."""
        with self._change() as now:
            now.activities = [one for one in now.activities if one.trial != result.number]
            now.seconds_left, now.expected_left = _finite(standing.seconds_left), _finite(standing.expected_left)
            now.asked, now.limit = time.time(), standing.limit

    def phase(self, name: str) -> None:
        """Keep the phase; no worker is at anything between two of them."""
        with self._change() as now:
            now.phase, now.phase_began, now.activities = name, time.time(), []
            if name not in now.phases:
                now.phases.append(name)

    def note(self, text: str) -> None:
        """Keep it, once."""
        with self._change() as now:
            if text not in now.notes and len(now.notes) < MOST_NOTES:
                now.notes.append(text)

    def _change(self) -> _Change:
        return _Change(self)


class _Change:
    """Holds the lock of a follower, and says that something changed."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower

    def __enter__(self) -> Progress:
        self.follower.lock.acquire()
        return self.follower.now

    def __exit__(self, *exception: object) -> None:
        self.follower.lock.release()
        self.follower.changed.set()


class ProgressWriter(Follower):
    """Writes ``progress.json`` while the search runs, in a thread of its own; a context.

    A disk that is slow or full does not hold up or end the search: what has to be kept, the search writes itself.
    """

    def __init__(self, run: RunDir) -> None:
        super().__init__()
        self.path = run.progress
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="progress", daemon=True)

    def __enter__(self) -> ProgressWriter:
        self.write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self.changed.set()
        self._thread.join()
        with self.lock:
            self.now.state = _END.get(kind, "failed") if kind is not None else "finished"
            self.now.reason = printable(str(error))[:500] if error is not None else ""
            self.now.activities = []
        self.write()

    def write(self) -> None:
        """Write the file now: a reader sees the old one or the new one."""
        with self.lock:
            self.now.written = time.time()
            text = self.now.model_dump_json(indent=1)
        partial = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.path)
        except OSError:
            # The run does not depend on it, and where the disk is full the search says so itself.
            try:
                partial.unlink(missing_ok=True)
            except OSError:
                return

    def _write_on(self) -> None:
        while not self._over.is_set():
            self.changed.wait(SIGN_OF_LIFE)
            self.changed.clear()
            self.write()
            self._over.wait(WRITTEN_EVERY)


_END: dict[type[BaseException] | None, Literal["finished", "stopped", "failed"]] = {
    NothingFeasible: "finished",
    KeyboardInterrupt: "stopped",
}


@dataclass(frozen=True)
class Figures:
    """What the trials of a run say so far."""

    counts: dict[TrialState, int]
    best_so_far: tuple[float, ...] = ()
    """After each trial that is one of its own, the best objective of what fits; empty before there is one."""
    best: Candidate | None = None
    """What fits and has the best objective."""
    chosen: Candidate | None = None
    """What would be shipped now."""
    default: float | None = None
    """Of trial 0, uncompressed."""
    last: tuple[int, float] | None = None
    """The last trial that has a value, and its best one; of what does not fit too."""
    front: tuple[Candidate, ...] = ()
    """Of what fits and no other beats in quality, size and latency, the best in quality."""
    ended: int = 0
    """Trials of their own that are done."""


def figures(plan: Plan, results: Sequence[TrialResult]) -> Figures:
    """Return what trials say, in the order of their numbers.

    Args:
        plan: with objective and limits.
        results: of trials that are done.
    """
    results = sorted(results, key=lambda result: result.number)
    sign = 1 if plan.higher_is_better else -1
    everything = candidates(plan, results)
    fitting = [one for one in everything if not one.violations]
    most = max((len(one.folds) for one in fitting), default=0)
    fitting = [one for one in fitting if len(one.folds) == most]

    def top(trial: int, pool: Sequence[Candidate]) -> float | None:
        return max((one.objective for one in pool if one.trial == trial), key=lambda value: sign * value, default=None)

    so_far: list[float] = []
    last: tuple[int, float] | None = None
    for result in results:
        if result.config.repeats:
            continue
        value = top(result.number, fitting)
        known = top(result.number, everything)
        if known is None and result.state in {"complete", "pruned"}:
            known = result.validation.get(plan.objective)
        last = (result.number, known) if known is not None and math.isfinite(known) else last
        if value is not None:
            so_far.append(value if not so_far else max(so_far[-1], value, key=lambda one: sign * one))
        elif so_far:
            so_far.append(so_far[-1])
    try:
        selection = select(plan, results)
        chosen = next(one for one in fitting if (one.trial, one.variant) == (selection.trial, selection.variant))
    except (NothingFeasible, StopIteration):
        chosen = None
    yardstick = [one.objective for one in everything if (one.trial, one.variant) == (0, "none")]
    front = sorted((one for one in fitting if one.front), key=lambda one: -sign * one.objective)
    return Figures(
        counts=count_states(results),
        best_so_far=tuple(so_far),
        best=max(fitting, key=lambda one: sign * one.objective, default=None),
        chosen=chosen,
        default=yardstick[0] if yardstick else None,
        last=last,
        front=tuple(front[:SHOWN_OF_FRONT]),
        ended=sum(not result.config.derived for result in results),
    )


@dataclass(frozen=True)
class View:
    """A run as it is shown, on the terminal of its search and on any other."""

    name: str
    state: RunState
    plan: Plan | None = None
    results: tuple[TrialResult, ...] = ()
    """By number."""
    figures: Figures = field(default_factory=lambda: Figures(counts=count_states([])))
    progress: Progress | None = None
    process: str = ""
    """Which one holds the folder, where that is known."""
    damaged: tuple[str, ...] = ()
    """Files that could not be read."""
    seconds: float | None = None
    """That the run took, over all calls."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know."""
        return (*(self.progress.notes if self.progress else ()), *self.damaged)

    def to_json(self, now: float) -> dict[str, Any]:
        """Return the view for programs.

        Args:
            now: seconds since 1970.
        """
        told, plan, running = self.figures, self.plan, self.progress if self.state == "running" else None
        expected, left = running.left(now) if running else (None, None)

        def point(one: Candidate | None) -> dict[str, Any] | None:
            if one is None:
                return None
            return {"trial": one.trial, "variant": one.variant, "value": one.objective, "costs": one.costs}

        return {
            "run": self.name,
            "state": self.state,
            "reason": self.progress.reason if self.progress else "",
            "process": self.process,
            "pid": self.progress.pid if running and self.progress else None,
            "task": plan.task if plan else None,
            "objective": plan.objective if plan else None,
            "phase": running.phase if running else None,
            "workers": [
                {
                    "worker": one.worker,
                    "trial": one.trial,
                    "model": one.config.model,
                    "pipeline": one.config.pipeline,
                    "stage": one.stage,
                    "stage_seconds": now - one.stage_began,
                    "samples": one.samples,
                    "total": one.total,
                    "rate": one.rate,
                    "value": one.value,
                }
                for one in (running.activities if running else [])
            ],
            "trials": dict(told.counts),
            "limit": plan.trials_limit if plan else None,
            "best_so_far": list(told.best_so_far),
            "best": point(told.best),
            "chosen": point(told.chosen),
            "default": told.default,
            "last": {"trial": told.last[0], "value": told.last[1]} if told.last else None,
            "front": [point(one) for one in told.front],
            "expected_seconds_left": expected,
            "budget_seconds_left": left,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


class RunReader:
    """Reads a run folder again and again, from its files alone, and never writes to it.

    Raises:
        RunFolderError: there is no such folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.run = RunDir(path)
        if not self.run.path.is_dir():
            raise RunFolderError(f"{self.run.path}: no such run folder")
        self._known: dict[Path, tuple[tuple[int, int], TrialResult]] = {}
        self._plan: tuple[tuple[int, int], Plan] | None = None
        self._figures: tuple[object, Figures] | None = None

    def read(self) -> View:
        """Return how the run stands now; a file that is damaged or just vanished is left out, and named.

        Raises:
            RunFolderError: the folder is gone: what waits for a run that begins would wait for ever.
        """
        if not self.run.path.is_dir():
            raise RunFolderError(f"{self.run.path}: the run folder is gone: it was deleted or moved while it was shown")
        damaged: list[str] = []
        plan = self._read_plan(damaged)
        results = self._read_results(damaged)
        progress = self._read_progress(damaged)
        told = Figures(counts=count_states(results), ended=sum(not result.config.derived for result in results))
        if plan is not None:
            key = (id(plan), tuple(map(id, results)))
            if self._figures is None or self._figures[0] != key:
                self._figures = (key, figures(plan, results))
            told = self._figures[1]
        state, process = self._state(plan, progress)
        return View(
            name=plan.name if plan else self.run.path.name,
            state=state,
            plan=plan,
            results=tuple(results),
            figures=told,
            progress=progress,
            process=process,
            damaged=tuple(damaged),
            seconds=self._seconds(),
        )

    def _state(self, plan: Plan | None, progress: Progress | None) -> tuple[RunState, str]:
        holder = lock_holder(self.run)
        held = f"process {holder}" if holder else ""
        if progress is None:
            if plan is None:
                return "empty", held
            # Of a run without the file: an older one, or one that was copied without it.
            done = (self.run.path / "report.json").is_file()
            return ("running" if holder and not done else "finished" if done else "cut off"), held
        if progress.state != "running":
            return progress.state, held
        alive, process = progress.process(time.time())
        return ("running", process) if alive else ("cut off", held)

    def _seconds(self) -> float | None:
        try:
            return read_typed(self.run.path / "time.json", dict[str, Seconds], {}).get("seconds")
        except (RunFolderError, OSError):
            # It is written when the first trial ends, and it is told nowhere else.
            return None

    def _read_plan(self, damaged: list[str]) -> Plan | None:
        try:
            stamp = _stamp(self.run.plan)
            if self._plan is None or self._plan[0] != stamp:
                self._plan = (stamp, read_plan(self.run.plan))
        except FileNotFoundError:
            return None
        except (RunFolderError, OSError) as error:
            damaged.append(_damage(self.run.plan, error))
            return None
        return self._plan[1]

    def _read_progress(self, damaged: list[str]) -> Progress | None:
        try:
            return Progress.model_validate(json.loads(self.run.progress.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError, OSError) as error:
            damaged.append(_damage(self.run.progress, error))
            return None

    def _read_results(self, damaged: list[str]) -> list[TrialResult]:
        found: dict[Path, tuple[tuple[int, int], TrialResult]] = {}
        for number in self.run.numbers():
            path = self.run.result(number)
            try:
                stamp = _stamp(path)
                known = self._known.get(path)
                found[path] = (
                    known if known is not None and known[0] == stamp else (stamp, self.run.read_result(number))
                )
            except (RunFolderError, OSError) as error:
                # Where it was not there, the trial goes on, or the search has just taken it back; it may be there again by now.
                absent = not isinstance(error, DamagedRecord | OSError) or isinstance(error, FileNotFoundError)
                if not absent and path.is_file():
                    damaged.append(_damage(path.relative_to(self.run.path), error))
        self._known = found
        return [result for _, result in found.values()]


def lock_holder(run: RunDir) -> int | None:
    """Return the process that holds a run folder, as Linux lists its locks; None where nobody does, or where it can't be told.

    The lock itself is not touched: trying it would for a moment keep out a search that begins.
    """
    try:
        inode = (run.path / ".lock").stat().st_ino
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        # 1: FLOCK ADVISORY WRITE 3520 08:01:131090 0 EOF
        if len(words) == 8 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
            pid = int(words[4])
            return pid if pid > 0 else None
    return None


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_ino


def _damage(path: Path, error: Exception) -> str:
    said = printable(first_line(error))
    # Ours name the file themselves.
    return said if isinstance(error, RunFolderError) else f"{path} cannot be read: {said}"


def without_nan(value: Any) -> Any:
    """Return a value for JSON, with null for what is no finite number: JSON has no word for it."""
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
