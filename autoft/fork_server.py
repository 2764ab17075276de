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
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["CAN_FORK", "ForkServer", "Forked", "main"]

CAN_FORK = hasattr(os, "fork") and hasattr(socket, "send_fds")

LONGEST_NAME = 1000
"""Bytes of a function's name."""

UNKNOWN = 255
"""What a process ended with whose end nobody saw."""


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

    def join(self) -> None:
        """Wait until it has ended; ``exitcode`` is then as that of a process of :mod:`multiprocessing`."""
        with open(self._ended, "rb") as ended:
            self.exitcode = int(ended.read() or UNKNOWN)


class ForkServer:
    """The end of the process that asks; one thread asks at a time.

    Args:
        requests: the other end is the server's, which ends when this one is closed.
        process: the server, where this process started it.
    """

    def __init__(self, requests: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self._requests, self._process = requests, process

    @classmethod
    def start(cls, preload: str, environment: Mapping[str, str]) -> ForkServer:
        """Start a server, and wait for nothing.

        Args:
            preload: ``module:function`` that it calls first, without arguments, to import what is to be there.
            environment: of the server, and of what it forks.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "autoft.fork_server", preload], stdin=theirs.fileno(), env=dict(environment)
            )
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
        return ForkServer(ours)

    def fork(self, work: Callable[..., object], *arguments: Any) -> Forked:
        """Have it fork a process that does some work, when it has done that before.

        Args:
            work: a function of a module, called with a connection whose other end is that of the answer, and the arguments.
            arguments: can be pickled.

        Raises:
            ConnectionError, EOFError: the server has ended.
        """
        ours, theirs = Pipe()
        ended, told = os.pipe()
        try:
            with theirs:
                socket.send_fds(self._requests, [b"-"], [theirs.fileno(), told])
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

    def close(self) -> None:
        """Have it end."""
        self._requests.close()
        if self._process is not None:
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
