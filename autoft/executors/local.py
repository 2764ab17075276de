"""Long-lived worker processes on this machine, spoken to in lines of JSON.

A worker imports its libraries once and keeps them between trials. Its standard input takes requests, its standard
output gives events, and what libraries print goes to the run's ``logs/``. Nothing is pickled: a worker rebuilds the
plan from the run folder.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

import psutil

from autoft.errors import SearchFailed
from autoft.hardware import MAPPED, memory_left
from autoft.processes import thread_environment
from autoft.quantities import format_bytes
from autoft.rundir import RunDir

__all__ = ["Event", "LocalExecutor"]


@dataclass(frozen=True)
class Event:
    """What a worker says: its number, the kind (``ready``, ``stage``, ``done``, ``lost`` ...) and the rest."""

    worker: int
    kind: str
    body: dict[str, Any] = field(default_factory=dict)


class LocalExecutor:
    """Starts workers, sends them requests, and gives their events.

    Args:
        run: the run folder.
        workers: how many.
        threads: of each.
        mapped: workers keep what their tensors need and no more, as :data:`autoft.hardware.MAPPED` says: slower, and for
            runs whose training memory is limited.
    """

    def __init__(self, run: RunDir, workers: int, threads: int, *, mapped: bool = False) -> None:
        self.run, self.workers, self.threads = run, workers, threads
        self.environment = {**thread_environment(threads), **(MAPPED if mapped else {})}
        self._queue: queue.Queue[Event] = queue.Queue()
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self.memory_limits: dict[int, float] = {}
        """Resident bytes by worker, from which on it is ended; workers that are not named have none of their own."""
        self._ended: dict[int, str] = {}

    def __enter__(self) -> LocalExecutor:
        for worker in range(self.workers):
            self.start(worker)
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in list(self._processes):
            self.stop(worker)

    def start(self, worker: int) -> None:
        """Start a worker process; it says ``ready`` when it can take requests.

        Raises:
            SearchFailed: the process cannot be started.
        """
        log = self.run.logs / f"worker-{worker}.log"
        try:
            with log.open("a", encoding="utf-8") as errors:
                process = subprocess.Popen(
                    [sys.executable, "-m", "autoft.executors.worker", str(self.run.path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    encoding="utf-8",
                    env=self.environment,
                    # Ctrl-C belongs to the search, which decides what a worker still finishes.
                    start_new_session=True,
                )
        except OSError as error:
            raise SearchFailed(f"a worker process cannot be started: {error}") from error
        self._processes[worker] = process
        self._ended.pop(worker, None)
        threading.Thread(target=self._listen, args=(worker, process), daemon=True).start()

    def send(self, worker: int, op: str, **body: Any) -> None:
        """Send a request; a worker that is gone shows itself by a ``lost`` event."""
        pipe = self._processes[worker].stdin
        assert pipe is not None
        try:
            pipe.write(json.dumps({"op": op, **body}) + "\n")
            pipe.flush()
        except (BrokenPipeError, ValueError):
            return

    def poll(self, timeout: float) -> Event | None:
        """Return the next event, or None when none comes within ``timeout`` seconds; ends workers that need too much memory."""
        self._guard_memory()
        try:
            return self._queue.get(timeout=timeout)
        except queue.Empty:
            return None

    def _guard_memory(self) -> None:
        """End workers above their limit, and the largest one before the machine begins to swap."""
        used = {worker: _resident(process.pid) for worker, process in self._processes.items()}
        for worker, limit in list(self.memory_limits.items()):
            if used.get(worker, 0) > limit:
                self._end(worker, f"it needs more than {format_bytes(limit)} of memory")
        left, enough = memory_left()
        if left < enough and used:
            largest = max(used, key=lambda worker: used[worker])
            self._end(largest, f"{format_bytes(left)} of this machine's memory are left")

    def _end(self, worker: int, reason: str) -> None:
        """Kill a worker, whose loss is then told as that of any other."""
        self.memory_limits.pop(worker, None)
        self._ended.setdefault(worker, reason)
        self._processes[worker].kill()

    def stop(self, worker: int) -> None:
        """End a worker now; its trial leaves no result."""
        process = self._processes.pop(worker, None)
        self.memory_limits.pop(worker, None)
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue

    def _listen(self, worker: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                body = json.loads(line)
                self._queue.put(Event(worker, body.pop("event"), body))
        except ValueError:
            # The pipe was closed by stop(), or the worker died within a line.
            pass
        code = process.wait()
        if self._processes.get(worker) is process:
            self._queue.put(Event(worker, "lost", {"reason": self._cause(worker, code), "code": code}))

    def _cause(self, worker: int, code: int) -> str:
        if worker in self._ended:
            return f"the worker process was ended: {self._ended[worker]}"
        if code < 0:
            hint = "; the memory may not be enough" if code == -9 else ""
            return f"the worker process was killed by signal {-code}{hint}"
        log = self.run.logs / f"worker-{worker}.log"
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        last = f": {lines[-1].strip()}" if lines else ""
        return f"the worker process ended with {code}{last} (see {log})"


def _resident(pid: int) -> int:
    """Return the resident bytes of a process, 0 where it has ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
