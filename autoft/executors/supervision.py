"""What is the same of worker processes wherever they run: requests and events in lines of JSON, starts, limits, losses.

A worker imports its libraries once and keeps them between trials. Its standard input takes requests, its standard
output gives events, and what libraries print goes to the run's ``logs/``. Nothing is pickled: a worker rebuilds the
plan from the run folder.

A worker that is killed, stopped or hangs is told as ``lost``. That it lives is told by its heartbeat, that it works by its
other events; both are timed by a clock that only runs while this process looks.
"""

from __future__ import annotations

import json
import queue
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import Self

from autoft.errors import SearchFailed
from autoft.executors.admission import Admission
from autoft.processes import STOPPED_SECONDS
from autoft.quantities import format_bytes, format_seconds
from autoft.rundir import RunDir

__all__ = ["Event", "Executor", "WorkerProcess"]

EVENTS = {
    "alive": {"at"},
    "waiting": {"text", "needs"},
    "note": {"text"},
    "ready": set(),
    "probed": {"figures"},
    "timed": {"seconds"},
    "screening": {"variant"},
    "screened": {"costs"},
    "stage": {"trial", "stage"},
    "progress": {"trial", "samples", "total", "rate"},
    "validation": {"trial", "point"},
    "needs": {"gpu", "total", "sizes", "kept"},
    "freed": {"kept"},
    "done": {"trial"},
    "renew": {"trial"},
    "fatal": {"message", "exit_code"},
}
"""What a worker says, with what comes with it; all other lines on its channel are not its own."""

NO_EVENT = "not an event"
"""What a line in a worker's log begins with that was on its channel."""

SHORTEST_START = 300.0
"""Seconds that a worker may take at least to start: imports from a slow disk on a busy machine take minutes."""

STARTS = 3
"""How often a worker is started in a row that is lost before it is ready."""

MACHINES = 20
"""On how many machines in a row that are lost before it is ready; machines that come and go are no fault of its own."""

LONGEST_LOOK = 2.0
"""Seconds that the clock goes on at most between two looks at the workers: a machine or a command that slept finds them alive."""

GRACE = 5.0
"""Seconds from SIGTERM to SIGKILL."""


@dataclass(frozen=True)
class Event:
    """What a worker says: its number, the kind (``ready``, ``stage``, ``done``, ``lost`` ...) and the rest."""

    worker: int
    kind: str
    body: dict[str, Any] = field(default_factory=dict)


class WorkerProcess(Protocol):
    """A worker process, wherever it runs; none of its methods fails where it has ended."""

    machine: str
    """Which machine it is on, in words; empty as long as that is open."""
    lost: str
    """Why the machine went with it, in words; empty where it did not."""

    def lines(self) -> Iterator[str]:
        """Give what it says on its channel, until that closes; once, in a thread of its own."""

    def write(self, line: str) -> None:
        """Send it a line."""

    def signal(self, number: int) -> None:
        """Send a signal to it and to all that it started."""

    def wait(self) -> int | None:
        """Return its exit code once its channel has closed, below zero for a signal; None where nobody knows it."""

    def end(self) -> None:
        """Kill it and all that it started, and wait for its end."""

    @property
    def ended(self) -> bool:
        """Whether it has ended, though something that it started may hold its channel open."""

    @property
    def stopped(self) -> bool:
        """Whether it is stopped, as SIGSTOP does."""

    @property
    def resident_bytes(self) -> int:
        """Its resident memory; 0 where it has ended."""

    def memory_left(self) -> tuple[int, int]:
        """Return what :func:`autoft.hardware.memory_left` says on its machine."""


@dataclass
class _Worker:
    """A worker process; times are those of the executor's clock."""

    process: WorkerProcess
    beat: float
    """When it was last heard of."""
    moved: float
    """When it last told of something else than that it lives."""
    placed: float
    """When it had a machine."""
    starts: int
    """How many processes in a row were started for it, none of which was ready before."""
    waiting: list[str] | None
    """Requests that are sent to it once it is ready; None from then on."""
    machines: int = 0
    """How many machines in a row were lost on which it was started."""
    at: str | None = None
    """In which hook of a plugin it was when it was last heard of."""
    ended: str = ""
    """Why it was ended."""
    hung: bool = False
    """That is why it was ended."""
    kill_at: float | None = None


class Executor(ABC):
    """Starts workers, sends them requests, and gives their events.

    Args:
        run: the run folder.
        workers: how many.
        patience: seconds after which a worker is ended that is still not ready, at least :data:`SHORTEST_START`.
    """

    def __init__(self, run: RunDir, workers: int, *, patience: float = 1800.0) -> None:
        self.run, self.workers = run, workers
        self.patience = max(patience, SHORTEST_START)
        self._queue: queue.Queue[tuple[_Worker, Event]] = queue.Queue()
        self._workers: dict[int, _Worker] = {}
        self.memory_limits: dict[int, float] = {}
        """Resident bytes by worker, from which on it is ended; workers that are not named have none of their own."""
        self.time_limits: dict[int, float] = {}
        """Seconds by worker, after which it is ended if it told of no progress in them; likewise."""
        self.startup = 0.0
        """Seconds that a worker took at most to be ready, once it had a machine."""
        self.imports = 0.0
        """Seconds that a processor computed for it: imports, and little else."""
        self.admission = Admission(workers)
        """What trials may take of GPUs that workers share: what these ask for is answered by :meth:`poll`."""
        self._clock, self._looked = 0.0, time.monotonic()

    def __enter__(self) -> Self:
        for worker in range(self.workers):
            self.start(worker)
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in list(self._workers):
            self.stop(worker)

    @abstractmethod
    def _open(self, log: Path) -> WorkerProcess:
        """Start a process, whose errors go to the end of a file.

        Raises:
            OSError: it cannot be started.
        """

    @property
    def placed(self) -> set[int]:
        """The workers that have a machine; others wait until there is one with room."""
        return {worker for worker, there in self._workers.items() if there.process.machine}

    @property
    def ready(self) -> set[int]:
        """The workers that take requests at once."""
        return {worker for worker, there in self._workers.items() if there.waiting is None}

    def start(self, worker: int) -> None:
        """Start a worker process; it says ``ready`` when it takes requests, which may be sent before.

        A process that is lost before it is ready is started again, which a ``restarted`` event tells; where that does not
        help, a ``fatal`` one does.

        Raises:
            SearchFailed: the process cannot be started.
        """
        self._start(worker, 1, [])

    def grow(self, workers: int, threads: int) -> None:
        """Start further workers, so that there are so many; each started from now on has so many threads.

        Raises:
            SearchFailed: a process cannot be started.
        """
        for worker in range(self.workers, workers):
            self.start(worker)
        self.workers = max(self.workers, workers)

    def _start(self, worker: int, starts: int, waiting: list[str], machines: int = 0) -> None:
        try:
            process = self._open(self._log(worker))
        except OSError as error:
            raise SearchFailed(f"a worker process cannot be started: {error}") from error
        started = _Worker(process, self._clock, self._clock, self._clock, starts, waiting, machines)
        self._workers[worker] = started
        threading.Thread(target=self._listen, args=(worker, started), daemon=True).start()

    def send(self, worker: int, op: str, **body: Any) -> None:
        """Send a request; a worker that is gone shows itself by a ``lost`` event."""
        line = json.dumps({"op": op, "shared": self.admission.sharing > 1, **body}) + "\n"
        there = self._workers[worker]
        there.moved = self._clock
        if there.waiting is None:
            there.process.write(line)
        else:
            there.waiting.append(line)

    def poll(self, timeout: float) -> Event | None:
        """Return the next event, or None when none comes within ``timeout`` seconds; ends workers that hang or need too much memory."""
        now = time.monotonic()
        self._clock, self._looked = self._clock + min(now - self._looked, LONGEST_LOOK), now
        self._guard_memory()
        for worker, there in self._workers.items():
            self._guard_time(worker, there)
        for worker, room, whole in self.admission.admit():
            self.send(worker, "room", bytes=room, whole=whole)
        try:
            there, event = self._queue.get(timeout=timeout)
        except queue.Empty:
            return None
        if self._workers.get(event.worker) is not there:
            # What a process said that was stopped or replaced since is not its successor's.
            return None
        if event.kind == "ready":
            for line in there.waiting or ():
                there.process.write(line)
            there.waiting, there.moved = None, self._clock
            self.startup = max(self.startup, self._clock - there.placed)
            self.imports = max(self.imports, event.body.get("processor_seconds", 0.0))
        elif event.kind == "needs":
            self.admission.ask(event.worker, **event.body)
        elif event.kind == "freed":
            self.admission.free(event.worker, event.body["kept"])
        elif event.kind == "lost" and there.waiting is not None:
            return self._start_again(event, there)
        return event

    def _start_again(self, event: Event, there: _Worker) -> Event:
        """Start a worker anew that was lost before it was ready, as often as :data:`STARTS` and :data:`MACHINES` say."""
        self.stop(event.worker)
        lost = bool(event.body["machine_lost"])
        starts, machines = there.starts + (not lost), there.machines + lost
        if starts <= STARTS and machines < MACHINES:
            self._start(event.worker, starts, there.waiting or [], machines)
            return Event(event.worker, "restarted", event.body)
        tried = f"on {MACHINES} machines in a row, all of which were lost" if lost else f"{STARTS} times in a row"
        message = (
            f"a worker does not start, {tried}: {event.body['reason']}\n"
            f"What it printed is in {self._log(event.worker)}; once the cause is gone, the same command "
            "goes on with what there is"
        )
        return Event(event.worker, "fatal", {"message": message, "exit_code": SearchFailed.exit_code})

    def _guard_memory(self) -> None:
        """End workers above their limit, and the largest one of a machine before that begins to swap."""
        used = {worker: there.process.resident_bytes for worker, there in self._workers.items()}
        for worker, limit in list(self.memory_limits.items()):
            if used.get(worker, 0) > limit:
                self._end(worker, f"it needs more than {format_bytes(limit)} of memory")
        machines: dict[str, list[int]] = {}
        for worker in self.placed:
            machines.setdefault(self._workers[worker].process.machine, []).append(worker)
        for machine, there in machines.items():
            left, enough = self._workers[there[0]].process.memory_left()
            # What one has that is just being killed is not free at once: no second one is killed for it.
            dying = any(self._workers[worker].ended and not self._workers[worker].hung for worker in there)
            if left < enough and not dying:
                largest = max(there, key=lambda worker: used[worker])
                self._end(largest, f"{format_bytes(left)} of {machine}'s memory are left")

    def _guard_time(self, worker: int, there: _Worker) -> None:
        """End a worker that is stopped, or that has told of no progress for longer than it may."""
        process = there.process
        if not process.machine:
            there.beat = there.moved = there.placed = self._clock
            return
        if process.ended or (there.kill_at is not None and self._clock > there.kill_at):
            # What it started would keep its channel open, and the loss would never be told.
            process.signal(signal.SIGKILL)
            return
        if there.hung:
            return
        silent, idle = self._clock - there.beat, self._clock - there.moved
        limit = self.patience if there.waiting is not None else self.time_limits.get(worker)
        if silent > STOPPED_SECONDS and process.stopped:
            reason = f"it was stopped, as SIGSTOP does, for {format_seconds(STOPPED_SECONDS)}"
        elif limit is not None and idle > limit:
            what = "no sign of life" if silent > limit else "no progress"
            # The limit, not the time itself: trials that hang alike have failed alike.
            reason = f"{what} for {format_seconds(limit)}" + (f", in {there.at}" if there.at else "")
        else:
            return
        there.ended, there.hung, there.kill_at = reason, True, self._clock + GRACE
        process.signal(signal.SIGTERM)

    def _end(self, worker: int, reason: str) -> None:
        """Kill a worker, whose loss is then told as that of any other."""
        self.memory_limits.pop(worker, None)
        there = self._workers[worker]
        there.ended = there.ended or reason
        there.process.signal(signal.SIGKILL)

    def stop(self, worker: int) -> None:
        """End a worker now, and what it started; its trial leaves no result."""
        there = self._workers.pop(worker, None)
        self.memory_limits.pop(worker, None)
        self.time_limits.pop(worker, None)
        if there is not None:
            there.process.end()
        self.admission.leave(worker)

    def _listen(self, worker: int, there: _Worker) -> None:
        for line in there.process.lines():
            event = _event(worker, line)
            if event is None:
                self._keep(worker, line)
                continue
            there.beat = self._clock
            if event.kind == "alive":
                there.at = event.body["at"]
                continue
            there.moved, there.at = self._clock, None
            self._queue.put((there, event))
        code = there.process.wait()
        body = {
            "reason": self._cause(worker, there, code),
            "code": code,
            "hung": there.hung,
            "machine_lost": bool(there.process.lost) and not there.ended,
        }
        self._queue.put((there, Event(worker, "lost", body)))

    def _keep(self, worker: int, line: str) -> None:
        """Write into a worker's log what is on its channel and is no event; a full disk keeps no worker from being heard."""
        with suppress(OSError):
            if line.strip():
                with self._log(worker).open("a", encoding="utf-8") as log:
                    log.write(f"{NO_EVENT}: {line.rstrip()[:500]}\n")

    def _log(self, worker: int) -> Path:
        return self.run.logs / f"worker-{worker}.log"

    def _cause(self, worker: int, there: _Worker, code: int | None) -> str:
        if there.ended:
            return f"the worker process was ended: {there.ended}"
        if there.process.lost:
            return there.process.lost
        at = f", in {there.at}" if there.at else ""
        if code is not None and code < 0:
            hint = "; the memory may not be enough" if code == -9 else ""
            return f"the worker process was killed by signal {-code}{at}{hint}"
        lines = list[str]()
        with suppress(OSError):
            lines = self._log(worker).read_text(encoding="utf-8", errors="replace").splitlines()
        printed = [line.strip() for line in lines if line.strip() and not line.startswith(NO_EVENT)]
        last = f": {printed[-1]}" if printed else ""
        return f"the worker process ended with {code}{at}{last} (see {self._log(worker)})"


def _event(worker: int, line: str) -> Event | None:
    """Return what a line says, or None where it is no event."""
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        return None
    kind = body.pop("event", None) if isinstance(body, dict) else None
    return Event(worker, kind, body) if isinstance(kind, str) and EVENTS.get(kind, {""}) <= body.keys() else None
