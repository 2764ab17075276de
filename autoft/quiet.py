"""Quiet for a measurement: while a worker measures how fast a model is, the other workers' trainings wait between two steps.

Two files that belong to the run are locked, by ``flock``: whoever trains shares the one and lets go of it between steps, whoever
measures takes it alone. The other keeps those who train from taking the first again at once: a measurement
that waits for three trainings would wait for ever. Locks are freed by the system when a process dies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module elsewhere: nothing is locked here

__all__ = ["Quiet"]

LONGEST_WAIT = 60.0
"""Seconds that a measurement waits for others to come to the end of a step; then it is done beside them."""

LOOK_EVERY = 0.005
"""Seconds."""


class Quiet:
    """What the workers of a run have in common so that one can measure while the others wait.

    Args:
        folder: for the two files; None where there is but one worker, and nothing waits for anything.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder if fcntl is not None else None
        self._files: tuple[int, int] | None = None
        self._working = 0

    def _opened(self) -> tuple[int, int]:
        """Return what holds the locks: the one that measurements queue by, and the one of those who work."""
        assert self.folder is not None
        if self._files is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            turn, work = (os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o644) for name in ("turn", "work"))
            self._files = turn, work
        return self._files

    @contextmanager
    def working(self) -> Iterator[None]:
        """Keep measurements of others waiting, but in :meth:`pause`."""
        if self.folder is None:
            yield
            return
        if not self._working:
            self._begin()
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1
            if not self._working:
                fcntl.flock(self._opened()[1], fcntl.LOCK_UN)

    def pause(self) -> None:
        """Let others measure, where they wait for it; called between two steps of a training."""
        if self.folder is None or not self._working:
            return
        fcntl.flock(self._opened()[1], fcntl.LOCK_UN)
        self._begin()

    def _begin(self) -> None:
        turn, work = self._opened()
        fcntl.flock(turn, fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)
        fcntl.flock(work, fcntl.LOCK_SH)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Have the others wait, as soon as each is between two steps."""
        if self.folder is None:
            yield
            return
        turn, work = self._opened()
        fcntl.flock(turn, fcntl.LOCK_EX)
        until = time.monotonic() + LONGEST_WAIT
        try:
            while not _taken(work) and time.monotonic() < until:
                time.sleep(LOOK_EVERY)
            yield
        finally:
            fcntl.flock(work, fcntl.LOCK_UN)
            fcntl.flock(turn, fcntl.LOCK_UN)


def _taken(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
