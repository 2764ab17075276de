"""Runs the application under uvicorn: its address, threads and end."""

from __future__ import annotations

import errno
import ipaddress
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoft.errors import ServingError
from autoft.processes import silence_libraries, thread_environment
from autoft.serving.limits import Limits

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["Address", "serve"]

ALIKE = 0.01
"""Difference of a row's predictions, alone and with others, from which on it matters; in half precision floating point makes
some thousandths."""


@dataclass(frozen=True)
class Address:
    """Where a server listens, and a line that asks it something.

    Attributes:
        url: as ``http://127.0.0.1:8000``.
        loopback: only this machine reaches it.
        example: a command for the shell.
        title: what is served.
        batch_size: rows that are predicted together.
        company: how far the demo rows' predictions are apart, alone and together (:class:`~autoft.serving.fields.Fields`).
    """

    url: str
    loopback: bool
    example: str
    title: str
    batch_size: int
    company: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """What whoever starts it has to know."""
        found = []
        if not self.loopback:
            found.append(
                "other machines reach this server, and it asks nobody for a password and encrypts nothing; put a proxy "
                "that does before it, or leave out --host"
            )
        if self.company > ALIKE:
            apart = f"by up to {self.company:.2g}" if self.company < math.inf else "in more than numbers"
            reason = (
                f"what this model says of a row depends on the rows beside it (the demo rows differ {apart}), as where a "
                "quantization goes by the range of a whole batch"
            )
            found.append(
                f"{reason}: rows are predicted one by one; --batch-size 32 may be faster, with answers that vary"
                if self.batch_size == 1
                else f"{reason}: with --batch-size {self.batch_size} the same row gets other answers in other company"
            )
        return tuple(found)


def serve(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    threads: int | None = None,
    device: str | None = None,
    limits: Limits | None = None,
    ready: Callable[[Address], None] | None = None,
) -> int:
    """Serve a model until the process is told to end (SIGINT, SIGTERM), and answer what waits before.

    Args:
        model: a run folder, or a model that autoft exported.
        host: a name or address of this machine; others than loopback let everybody in who reaches it.
        port: 0 takes a free one.
        threads: that compute; default: one a core. They are those of the whole process.
        device: ``cpu``, ``cuda`` or ``mps``; by default the best there is.
        limits: of requests and batches.
        ready: told the address once the server listens.

    Returns:
        how many requests that were under way when it was told to end got no answer: the model took too long, or it was told
        to end a second time.

    Raises:
        ServingError: the address cannot be listened on, the extra ``serve`` is not installed, or the model fails on each
            of its task's demo rows.
        ModelError: the folder holds no model, or its files are damaged.
        PluginError: the task or the format needs a plugin that is not installed.
    """
    from autoft.serving import make_app, missing_extra

    try:
        import fastapi  # noqa: F401 - only whether it is there
        import prometheus_client  # noqa: F401 - as above
        import uvicorn  # noqa: F401 - as above
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    # Before the model is read, which takes longer: the address may be taken.
    listener = _bound(host, port)
    try:
        # ONNX Runtime reads it when a graph is loaded, torch when it is imported, or is told below.
        count = threads or _cores()
        os.environ.update(thread_environment(count))
        import torch

        from autoft.artifact import load, undecided

        torch.set_num_threads(count)
        silence_libraries()
        loaded = load(model, device=device)
        if said := undecided(loaded):
            logging.getLogger(__name__).warning(said)
        app = make_app(loaded, limits)
        return _run(app, listener, host, limits or Limits(), ready)
    finally:
        listener.close()


def _cores() -> int:
    from autoft.hardware import Hardware

    return Hardware.probe().cores


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket with the address, not listening yet: until the model is there, callers are refused."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ServingError(f"--host {host}: is no address or name of this machine ({error})") from None
    except OverflowError:
        raise ServingError(f"--port {port}: has to be from 0 to 65535") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # On Windows this would share the port with another process.
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        listener.close()
        raise _refused(host, port, error) from None
    return listener


def _refused(host: str, port: int, error: OSError | OverflowError) -> ServingError:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return ServingError(
            f"port {port} of {host} is in use by another program; give another one, as --port {_next(port)}, or 0 for a free one"
        )
    if number == errno.EACCES:
        return ServingError(f"port {port} may not be used by this user; ports from 1024 on may")
    if number == errno.EADDRNOTAVAIL:
        return ServingError(f"{host} is no address of this machine; 127.0.0.1 is, and 0.0.0.0 stands for all it has")
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return ServingError(f"cannot listen on {host}, port {port}: {reason}")


def _next(port: int) -> int:
    return port + 1 if port < 65535 else port - 1


def _run(
    app: FastAPI, listener: socket.socket, named: str, limits: Limits, ready: Callable[[Address], None] | None
) -> int:
    import uvicorn

    from autoft.serving.app import REQUESTS, OneLength, OwnNames
    from autoft.serving.connections import timed_protocol

    host, port = listener.getsockname()[:2]
    loopback = ipaddress.ip_address(host.partition("%")[0]).is_loopback
    if loopback:
        app.add_middleware(OwnNames, names=frozenset({"localhost", "127.0.0.1", "[::1]", host, named.lower()}))
    app.add_middleware(OneLength)
    config = uvicorn.Config(
        app,
        http=timed_protocol(limits.timeout),
        log_config=None,
        access_log=False,
        server_header=False,
        # Of connections, as Room counts requests: those that never send one would take all that the system has.
        limit_concurrency=4 * REQUESTS,
        # A request that is under way has its answer by then, or its 504.
        timeout_graceful_shutdown=round(limits.timeout) + 5,
    )
    # The address that stands for all of a machine's is none to ask.
    asked = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    shown = f"[{asked}]" if ":" in asked else asked
    address = Address(
        url=f"http://{shown}:{port}",
        loopback=loopback,
        example=app.state.curl(f"http://{shown}:{port}"),
        title=app.title,
        batch_size=app.state.batch_size,
        company=app.state.company,
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started and ready is not None:
                ready(address)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.ending = True
            await super().shutdown(sockets)

    server = Server(config)
    with _quiet_end():
        try:
            server.run(sockets=[listener])
        except OSError as error:
            raise _refused(host, port, error) from None
    if not server.started:
        raise ServingError("the server did not start; what went wrong stands above")
    return int(app.state.unanswered)


@contextmanager
def _quiet_end() -> Iterator[None]:
    """Keep the signals that uvicorn has acted upon, and raises again when it is done, from ending the process hard."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        sys.stdout.flush()
        for number, handler in old.items():
            signal.signal(number, handler)
