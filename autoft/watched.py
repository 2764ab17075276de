"""Processes that answer the one that started them in lines of JSON: what they say, and what becomes of them where they do not.

Both ends are here. The process that was started has a :class:`Channel`: it says every few seconds that it lives, and in which
hook of a plugin it is. The one that started it for a single answer waits by :func:`ask`, which ends what hangs, asks again
where a process was killed or stopped, and leaves no process behind.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol, TextIO

from autoft.plugins import hook_of
from autoft.processes import STOPPED_SECONDS, end_with_parent, is_stopped
from autoft.quantities import format_seconds

__all__ = ["Channel", "ProcessFailed", "ProcessLost", "ask", "end_with", "own_channels"]

HEARTBEAT_SECONDS = 5.0
"""Between two of them."""

LARGEST_LOG = 10_000_000
"""Bytes of a log from which on its beginning is left out: a plugin that prints in each step would fill the disk."""

KEPT_LOG = 1_000_000
"""Bytes of its end that stay."""

LOOK = 0.5
"""Seconds between two looks at a process that says nothing."""

LONGEST_LOOK = 2.0
"""Seconds that are counted between two looks at most: a machine or a command that slept finds the process alive."""

GRACE = 5.0
"""Seconds that a process may take to end after its last word."""

ATTEMPTS = 2
"""How often a process is started that is killed or stopped."""


class ProcessFailed(Exception):
    """A process could not give its answer, as the message says; it would not do so another time."""


class ProcessLost(Exception):
    """A process was killed, stopped or hung, as the message says."""


class Asked(Protocol):
    """A process that answers in lines: what of :class:`subprocess.Popen` is used, in a group of its own."""

    pid: int
    stdin: IO[str] | None
    stdout: IO[str] | None

    def poll(self) -> int | None:
        """Return with what it ended; None where it has not."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended, and return with what."""

    def kill(self) -> None:
        """End it."""


class Channel:
    """What a process says to the one that started it: a line of JSON for each event.

    Args:
        out: the other end is read by that process.
    """

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.saying = threading.Lock()
        self.exit = os._exit

    def say(self, event: str, **body: Any) -> None:
        """Say an event of a kind, with what belongs to it; ends this process where nobody listens any more."""
        # A line of its own, whatever others left on the channel.
        line = "\n" + json.dumps({"event": event, **body}) + "\n"
        try:
            with self.saying:
                self.out.write(line)
                self.out.flush()
        except ConnectionError:
            # Raised into a trial this would be written down as the trial's failure.
            self.exit(1)

    def live(self) -> None:
        """Begin to say that the process lives, from a thread of its own, with the hook that it is in; its log stays short."""

        def beat() -> None:
            own = threading.get_ident()
            while True:
                time.sleep(HEARTBEAT_SECONDS)
                _shorten_log()
                self.say("alive", at=_hook_of_any(own))

        threading.Thread(target=beat, daemon=True).start()

    def tell_of_exits(self) -> None:
        """Have a hook that ends the process named: ``os._exit`` leaves nothing that could be asked."""
        own = os.getpid()

        def told(code: int) -> None:
            # What is forked from this process ends so as well.
            if os.getpid() == own:
                self.say("alive", at=hook_of(sys._getframe(1)))
            self.exit(code)

        os._exit = told  # type: ignore[assignment]  # typeshed says that it never returns, which told does not either


def own_channels() -> tuple[TextIO, TextIO]:
    """Return standard input and output for this process's own use.

    What libraries print on standard output goes where their errors go from then on, and who asks a user something is told
    that there is none, and takes no request away.
    """
    requests, out = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return requests, out


def end_with(parent: int) -> None:
    """End this process when its parent does, however that ends: a killed command must leave nothing at work behind."""
    # At once, so that the next search in this folder never meets a trial that is still being written.
    end_with_parent()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _shorten_log() -> None:
    """Leave out the beginning of the file that standard error goes to, where it is long; who writes to it appends."""
    there = os.fstat(2)
    if not stat.S_ISREG(there.st_mode) or there.st_size <= LARGEST_LOG:
        return
    end = b""
    # Some systems do not open it for reading: then nothing stays.
    with suppress(OSError), open("/dev/fd/2", "rb") as log:
        log.seek(-KEPT_LOG, os.SEEK_END)
        end = log.read()
    os.ftruncate(2, 0)
    os.write(2, b"(the log was long, and its beginning is left out)\n" + end)


def _hook_of_any(but: int) -> str | None:
    """Return the hook that a thread is in, other than one; no frame is kept, for tensors would live on with it."""
    frames = (frame for ident, frame in sys._current_frames().items() if ident != but)
    return next(filter(None, map(hook_of, frames)), None)


def ask(
    start: Callable[[Path], Asked],
    request: object,
    *,
    log: Path,
    patience: float,
    note: Callable[[str], None],
) -> Any:
    """Start a process, send it a request as one line of JSON on its standard input, and return its answer.

    The process says ``alive`` with ``at``, and in the end ``answer`` with it, or ``failed`` with a ``reason``. One that is killed
    or stopped, as SIGSTOP does, is started once again.

    Args:
        start: a process whose errors go to the end of a file; an ``OSError`` says that it cannot be.
        request: plain JSON.
        log: what the process prints is written into it, anew for each call.
        patience: seconds that an answer may take; those count in which this process looks.
        note: told, in a sentence, where a process is started again.

    Raises:
        ProcessFailed: it said so, or ended without an answer.
        ProcessLost: it was killed or stopped, :data:`ATTEMPTS` times in a row; or there is no answer in time.
    """
    log.write_bytes(b"")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            process = start(log)
        except OSError as error:
            raise ProcessLost(f"cannot be started: {error.strerror or error}") from error
        try:
            _send(process, request)
            return _answer(process, patience)
        except _Gone as gone:
            if attempt == ATTEMPTS:
                raise ProcessLost(f"{gone}, {ATTEMPTS} times in a row") from None
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{gone}, and is started again\n")
            note(f"{gone}, and is started again")
        finally:
            _kill_all(process)
            # The server that one was forked from may be stopped, and see no end.
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
    raise AssertionError("unreachable")


class _Gone(Exception):
    """A process was killed or stopped: another one may answer."""


def _send(process: Asked, request: object) -> None:
    assert process.stdin is not None
    # A process that is gone shows itself by giving no answer.
    with suppress(BrokenPipeError):
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.close()


def _answer(process: Asked, patience: float) -> Any:
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_listen, args=(process, lines), daemon=True).start()
    at, waited, stopped, looked = None, 0.0, 0.0, time.monotonic()
    while True:
        try:
            line = lines.get(timeout=LOOK)
        except queue.Empty:
            line = ""
        now = time.monotonic()
        passed, looked = min(now - looked, LONGEST_LOOK), now
        waited += passed
        event = _event(line) if line else {}
        match event.get("event"):
            case "alive":
                at = event.get("at")
            case "answer":
                return event["answer"]
            case "failed":
                raise ProcessFailed(event["reason"])
        if line is None:
            raise _ended(process, at)
        if not line and process.poll() is not None:
            # What it started may hold its channel open.
            _kill_all(process)
        stopped = stopped + passed if not line and is_stopped(process.pid) else 0.0
        if stopped > STOPPED_SECONDS:
            raise _Gone(f"was stopped, as SIGSTOP does, for {format_seconds(STOPPED_SECONDS)}")
        if waited > patience:
            raise ProcessLost(f"gave no answer for {format_seconds(patience)}" + (f", in {at}" if at else ""))


def _listen(process: Asked, lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put(None)


def _event(line: str) -> dict[str, Any]:
    """Return what a line says; nothing where it is no event, as what a library leaves on the channel."""
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _kill_all(process: Asked) -> None:
    """End a process and what it started: they are a group, also when the process itself has ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    # One that was forked makes its group itself, and may not have by now.
    process.kill()


def _ended(process: Asked, at: str | None) -> Exception:
    try:
        code = process.wait(GRACE)
    except subprocess.TimeoutExpired:
        return ProcessFailed("it closed its channel, and did not end")
    where = f", in {at}" if at else ""
    if code < 0:
        hint = "; the memory may not be enough" if code == -signal.SIGKILL else ""
        return _Gone(f"was killed by signal {-code}{where}{hint}")
    return ProcessFailed(f"it ended with {code}{where}")
