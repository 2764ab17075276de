"""The processes that train along with a worker, from the worker's side: it starts them, and they live and die together."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoft.plans.plan import Plan
from autoft.ranks import ProcessGroup
from autoft.rundir import RunDir

__all__ = ["Followers"]

GRACE = 5.0
"""Seconds in which a training that failed in one process fails in this one by itself, as it does where the cause is the same."""

SETTLE = 2.0
"""Seconds in which it shows why a training failed here: a process that was killed closes its connections first."""


class Followers:
    """Starts them at once; the first training waits for them.

    Args:
        run: the run folder.
        plan: says how many processes there are, this one counted, and what each of them keeps.
        lost: called where one was lost that was needed, in a thread, with its rank, what befell it, and whether for want of
            memory; it ends this process, which may be waiting for the lost one for good.
    """

    def __init__(self, run: RunDir, plan: Plan, lost: Callable[[int, str, bool], None]) -> None:
        self.plan, self.lost = plan, lost
        self.store = Path(tempfile.mkdtemp(prefix="ranks-")) / "store"
        self.group: ProcessGroup | None = None
        self.failed: dict[int, tuple[str, bool]] = {}
        """By rank, what it told of an error, and whether memory was short."""
        self.broken = False
        """They were given up after a training that failed."""
        self.idle = threading.Event()
        self.idle.set()
        self.processes = []
        for rank in range(1, plan.processes):
            words = [sys.executable, "-m", "autoft.executors.follower", str(run.path), str(rank), str(self.store)]
            # In this process's group, and with its log: it is ended with the worker, and told of as the worker.
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
            self.processes.append(process)
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()

    @contextmanager
    def joined(self, request: Mapping[str, Any]) -> Iterator[ProcessGroup]:
        """Have them train along, as far as the trial in this context goes: it begins a training, or not."""
        plan = self.plan
        self.idle.clear()
        for rank, process in enumerate(self.processes, start=1):
            # What befell it since the last one; or in its start.
            if rank in self.failed:
                self.lost(rank, *self.failed[rank])
            if process.poll() is not None:
                self._ended(rank, process)
        if self.group is None:
            self.group = ProcessGroup(self.store, 0, plan.processes, plan.sharding, plan.device)
        self.group.ask(dict(request))
        try:
            yield self.group
        finally:
            if self.group.state == "waiting":
                self.group.begin(None)
            elif self.group.state == "training":
                self._settle()
            self.idle.set()

    def _settle(self) -> None:
        """Give them up after a training that failed here: they may be anywhere in it. One that ended first ends this process."""
        until = time.monotonic() + SETTLE
        while time.monotonic() < until and len(self.failed) < len(self.processes):
            time.sleep(0.05)
        self.broken = True
        self.idle.set()
        for process in self.processes:
            process.kill()

    def _watch(self, rank: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line) if line.strip() else {}
            if event.get("event") == "failed":
                self.failed[rank] = f"failed: {event['reason']}", bool(event["memory"])
                if not self.idle.wait(GRACE):
                    self.lost(rank, *self.failed[rank])
        process.wait()
        self._ended(rank, process)

    def _ended(self, rank: int, process: subprocess.Popen[str]) -> None:
        code = process.returncode
        if not self.idle.is_set():
            self.lost(rank, f"was killed by signal {-code}" if code < 0 else f"ended with {code}", code == -9)
