"""A process that imports libraries once, and forks another for each piece of work.

What works has in memory what a process has that imported them itself. A forked one has its parent's own memory, but pages of
files only once it touches them, and those that an import alone has read it would never touch: it reads a byte of each first.

It is no fork server of :mod:`multiprocessing`, of which a process has one only, and whose processes import what was run as the
main module of the one that asks.
"""

from __future__ import annotations

import atexit
import ctypes
import mmap
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import traceback
from array import array
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import IO, Any, NoReturn

import psutil

from autoft.processes import STOPPED_SECONDS, end_with_parent, is_stopped

__all__ = ["CAN_FORK", "ForkServer", "Forked", "Spoken", "main"]

CAN_FORK = hasattr(os, "fork") and hasattr(socket, "send_fds")

LONGEST_NAME = 1000
"""Bytes of a function's name."""

UNKNOWN = -signal.SIGKILL
"""What a process ended with whose end nobody saw: its server was killed, and it most likely with it."""


class Forked:
    """A process that a :class:`ForkServer` forked.

    Args:
        pid: of the process.
        connection: the other end is the process's.
        ended: what is read from it once the process has ended says with what.
    """

    def __init__(self, pid: int, connection: Connection, ended: int) -> None:
        self.pid, self.connection = pid, connection
        self.exitcode: int | None = None
        self._ended = ended

    def kill(self) -> None:
        """End it."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, or for so many seconds; ``exitcode`` is then as that of a process of :mod:`multiprocessing`."""
        if self.exitcode is None and wait([self._ended], timeout):
            with open(self._ended, "rb") as ended:
                self.exitcode = int(ended.read() or UNKNOWN)


class Spoken:
    """A forked process that is spoken to in lines: what is used of it is as of :class:`subprocess.Popen`."""

    def __init__(self, forked: Forked) -> None:
        self._forked, self.pid, self.kill = forked, forked.pid, forked.kill
        with forked.connection as connection:
            self.stdin: IO[str] | None = os.fdopen(os.dup(connection.fileno()), "w", encoding="utf-8")
            self.stdout: IO[str] | None = os.fdopen(os.dup(connection.fileno()), encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        """Return with what it ended; None where it has not."""
        self._forked.join(0)
        return self._forked.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended, and return with what.

        Raises:
            subprocess.TimeoutExpired: it has not within so many seconds.
        """
        self._forked.join(timeout)
        if self._forked.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return self._forked.exitcode


class ForkServer:
    """The end of the process that asks; one thread asks at a time.

    Args:
        requests: the other end is the server's, which ends when this one is closed.
        process: the server, or the one that it was forked from.
        forked: it was forked.
    """

    def __init__(self, requests: socket.socket, process: subprocess.Popen[bytes], *, forked: bool = False) -> None:
        self._requests, self._process, self._forked = requests, process, forked

    @classmethod
    def start(cls, preload: str, environment: Mapping[str, str], log: Path | None = None) -> ForkServer:
        """Start a server, and wait for nothing.

        Args:
            preload: ``module:function`` that it calls first, without arguments, to import what is to be there.
            environment: of the server, and of what it forks.
            log: what they print goes to the end of this file; default: where this process prints.

        Raises:
            OSError: it cannot be started.
        """
        words = [sys.executable, "-m", "autoft.fork_server", preload]
        ours, theirs = socket.socketpair()
        with theirs, open(os.devnull if log is None else log, "ab") as file:
            out = None if log is None else file
            process = subprocess.Popen(words, stdin=theirs.fileno(), stdout=out, stderr=out, env=dict(environment))
        server = cls(ours, process)
        atexit.register(server.close)
        return server

    def fork_server(self, preload: str) -> ForkServer:
        """Have it fork a server that has imported more, as :meth:`start` says; work waits for that.

        Raises:
            ConnectionError: the server has ended.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._requests, [preload.encode()], [theirs.fileno()])
        return ForkServer(ours, self._process, forked=True)

    def fork(self, work: Callable[..., object], *arguments: Any) -> Forked:
        """Have it fork a process that does some work, when it has done that before.

        Args:
            work: a function of a module, called with a connection whose other end is that of the answer, and the arguments.
            arguments: can be pickled.

        Raises:
            ConnectionError, EOFError: the server has ended, or is stopped, as SIGSTOP does.
        """
        ours, theirs = Pipe()
        ended, told = os.pipe()
        try:
            with theirs:
                socket.send_fds(self._requests, [b"-"], [theirs.fileno(), told])
            self._await(ours)
            pid = ours.recv()
        except (EOFError, OSError):
            os.close(ended)
            ours.close()
            raise
        finally:
            os.close(told)
        # Killed by now, it gives no answer.
        with suppress(ConnectionError):
            ours.send((work, arguments))
        return Forked(pid, ours, ended)

    def _await(self, connection: Connection) -> None:
        """Wait until something is there, or the other end is closed."""
        stopped = 0.0
        # Counted in looks, so that a machine that slept in the meantime has stopped nothing.
        while not connection.poll(1.0):
            stopped = stopped + 1.0 if self._is_stopped() else 0.0
            if stopped >= STOPPED_SECONDS:
                raise ConnectionError("the server is stopped")

    def _is_stopped(self) -> bool:
        """Say whether one of the servers is, or what they fork."""
        try:
            others = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.Error:
            return False
        return any(is_stopped(pid) for pid in (self._process.pid, *(other.pid for other in others)))

    def spoken_to(self, main: Callable[[], object], log: Path) -> Spoken:
        """Have it fork a process that is spoken to in lines, as one of :func:`autoft.processes.spoken_to`.

        Args:
            main: a function of a module, which finds both ends of its channel at standard input and output.
            log: its errors go to the end of this file.

        Raises:
            ConnectionError, EOFError: the server has ended.
        """
        return Spoken(self.fork(_speak, main, str(log)))

    def close(self) -> None:
        """Have it end."""
        atexit.unregister(self.close)
        self._requests.close()
        if not self._forked:
            self._process.kill()
            self._process.wait()


def _serve(preload: str, requests: socket.socket, ready: int | None = None) -> NoReturn:
    """Answer requests until nobody can send one any more; tell, by closing it, when the imports are done."""
    pkgutil.resolve_name(preload)()
    # Else each process that is forked would print once more what was printed by now.
    sys.stdout.flush()
    pages = _file_pages()
    if ready is not None:
        os.close(ready)
    while True:
        name, given, *_ = socket.recv_fds(requests, LONGEST_NAME, 2)
        if not name:
            os._exit(0)
        if len(given) == 1:
            _fork_server(name.decode(), requests, given[0], pages)
            continue
        connection, told = given
        pid = os.fork()
        if pid == 0:
            requests.close()
            os.close(told)
            _read(pages)
            _work(Connection(connection))
        os.close(connection)
        _, status = os.waitpid(pid, 0)
        # Who asked may be gone.
        with suppress(BrokenPipeError), open(told, "wb") as ended:
            ended.write(str(os.waitstatus_to_exitcode(status)).encode())


def _fork_server(preload: str, requests: socket.socket, own: int, pages: array[int]) -> None:
    """Fork a server, and wait for its imports: what is measured meanwhile would share a core with them."""
    done, ready = os.pipe()
    if os.fork() == 0:
        end_with_parent()
        os.close(done)
        requests.close()
        _read(pages)
        _serve(preload, socket.socket(fileno=own), ready)
    os.close(own)
    os.close(ready)
    with open(done, "rb") as imports:
        imports.read()


def _work(connection: Connection) -> NoReturn:
    """Do what is asked for, and end at once: at a usual end libraries wait for threads that only the server had."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        with connection:
            connection.send(os.getpid())
            work, arguments = connection.recv()
            work(connection, *arguments)
        code = 0
    except Exception:  # noqa: BLE001 - nobody but the log is there to be told
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _speak(connection: Connection, main: Callable[[], object], log: str) -> None:
    os.setsid()
    with open(log, "ab") as errors:
        os.dup2(errors.fileno(), 2)
    for standard in (0, 1):
        os.dup2(connection.fileno(), standard)
    connection.close()
    main()


def _file_pages() -> array[int]:
    """Return the addresses of the pages of files that this process has in memory; none where the system does not say."""
    found = array("Q")
    pagemap = Path("/proc/self/pagemap")
    if not pagemap.exists():
        return found
    with pagemap.open("rb", buffering=0) as entries:
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            span, access, _, _, inode = line.split(maxsplit=5)[:5]
            if inode == "0" or access[0] != "r":
                continue
            begin, end = (int(address, 16) // mmap.PAGESIZE for address in span.split("-"))
            # An entry of 64 bits a page, the highest of which says that it is there (Linux, admin-guide/mm/pagemap.rst).
            entries.seek(begin * 8)
            there = array("Q", entries.read((end - begin) * 8))
            found.extend((begin + place) * mmap.PAGESIZE for place, entry in enumerate(there) if entry >> 63)
    return found


def _read(pages: array[int]) -> None:
    for address in pages:
        ctypes.c_char.from_address(address).value  # noqa: B018 - reading it is what it is for


def main() -> NoReturn:
    """Serve the process at the other end of standard input."""
    # Ctrl-C belongs to the one that asks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = socket.socket(fileno=os.dup(0))
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    _serve(sys.argv[1], requests)


if __name__ == "__main__":
    main()
