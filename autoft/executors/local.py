"""Worker processes on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from autoft.executors.supervision import Executor
from autoft.hardware import MAPPED, memory_left
from autoft.processes import is_stopped, spoken_to, training_environment
from autoft.rundir import RunDir

__all__ = ["LocalExecutor", "LocalProcess", "started"]


class LocalExecutor(Executor):
    """Starts workers on this machine, sends them requests, and gives their events.

    Args:
        run: the run folder.
        workers: how many.
        threads: of each.
        mapped: workers keep what their tensors need and no more, as :data:`autoft.hardware.MAPPED` says: slower, and for
            runs whose training memory is limited.
        patience: as of any executor.
    """

    def __init__(
        self, run: RunDir, workers: int, threads: int, *, mapped: bool = False, patience: float = 1800.0
    ) -> None:
        super().__init__(run, workers, patience=patience)
        self.mapped = MAPPED if mapped else {}
        self.environment = {**training_environment(threads), **self.mapped}

    def grow(self, workers: int, threads: int) -> None:
        """Start further workers, as any executor does."""
        self.environment = {**training_environment(threads), **self.mapped}
        super().grow(workers, threads)

    def _open(self, log: Path) -> LocalProcess:
        return LocalProcess(started(self.run.path, log, self.environment))


def started(run: Path, log: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Return a new worker process for a run folder, whose errors go to the end of a file.

    Raises:
        OSError: it cannot be started.
    """
    return spoken_to([sys.executable, "-m", "autoft.executors.worker", str(run)], log, environment)


class LocalProcess:
    """A worker process on this machine; what its methods do is said of :class:`WorkerProcess`."""

    machine = "this machine"
    lost = ""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    @property
    def pid(self) -> int:
        """Its number, which is that of its group too."""
        return self.process.pid

    def lines(self) -> Iterator[str]:
        """Give what it says on its channel."""
        assert self.process.stdout is not None
        # A pipe that end() closed raises ValueError.
        with suppress(ValueError):
            yield from self.process.stdout

    def write(self, line: str) -> None:
        """Send it a line."""
        assert self.process.stdin is not None
        # A worker that is gone is told as lost.
        with suppress(BrokenPipeError, ValueError):
            self.process.stdin.write(line)
            self.process.stdin.flush()

    def signal(self, number: int) -> None:
        """Send a signal to it and to all that it started."""
        _signal(self.process, number)

    def wait(self) -> int:
        """Return its exit code."""
        return self.process.wait()

    def end(self) -> None:
        """Kill it and all that it started."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    @property
    def stopped(self) -> bool:
        """Whether it is stopped."""
        return is_stopped(self.process.pid)

    @property
    def resident_bytes(self) -> int:
        """Its resident memory."""
        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def memory_left(self) -> tuple[int, int]:
        """Return what this machine has left, and the least to keep."""
        return memory_left()


def _signal(process: subprocess.Popen[str], number: int) -> None:
    """Send a signal to a worker and to all that it started: they are a group, also when the worker itself has ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
