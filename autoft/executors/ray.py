"""Worker processes on the nodes of a Ray cluster.

Each is started by a Ray actor and lives beside it on the node: the same program, lines and limits as on one machine, which
the actor passes on. With the search's process, its actors end, and with an actor the process that it started.

The run folder lies on storage that all nodes see at the same path, as Ray's own libraries ask of theirs. What a node lacks is
told before anything is trained there.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from typing_extensions import Self

from autoft.errors import SearchFailed, first_line
from autoft.executors.local import LocalProcess, started
from autoft.executors.supervision import GRACE, Event, Executor
from autoft.hardware import MAPPED, Hardware
from autoft.plans.plan import Plan
from autoft.plugins import load_plugins
from autoft.processes import training_environment
from autoft.quantities import format_seconds
from autoft.rundir import RunDir

__all__ = ["NodeWorker", "RayExecutor", "gpus_of"]

LOOK = 1.0
"""Seconds that an actor waits at most for a line before it answers all the same, with how its process stands."""

ROOM_SECONDS = 10.0
"""That a worker waits for a node with room before that is told."""

ANSWER_SECONDS = 120.0
"""That an actor may leave unanswered what it answers every second. Ray finds most lost nodes before."""

HEAD_SECONDS = 20.0
"""That the head of the cluster may be out of reach. Ray would end this process without a word after a minute."""

HEAD_LOOK = 2.0
"""Seconds between two looks at it."""

SEEN_SECONDS = 10.0
"""Until a node sees a file that was just written on shared storage."""

CHECKED = ("autoft", "torch", "transformers", "peft")
"""Packages of which a node has to have the same version, as of the run's plugins."""

OBJECT_STORE_BYTES = 80 * 2**20
"""Of a local instance: only lines pass through it, and Ray takes no less than 75 MiB."""

FRACTIONS = 10_000
"""Ray divides a GPU into so many parts."""


def gpus_of(plan: Plan, free: float = 0.0) -> float:
    """Return the share of a GPU that Ray is asked for a worker: that all workers have a place, and 0 on a CPU.

    Never less than a training may take by the budget. As much as there is for each: Ray fills one GPU before it takes the next,
    and workers with small shares would leave the others idle. A whole one where none is free yet, for an autoscaler to start it.

    Args:
        plan: of the run.
        free: GPUs that nobody has yet; 0 where that is not known.
    """
    if plan.device != "cuda":
        return 0.0
    least = min(1.0, (plan.train_memory or 0.0) / plan.hardware["gpus"][0]["memory_bytes"])
    share = max(least, 1 / math.ceil(plan.workers / math.floor(free))) if free >= 1 else least or 1.0
    return max(1, math.floor(share * FRACTIONS)) / FRACTIONS


class NodeWorker:
    """A worker process and what is known of it, on the node where this actor is.

    Args:
        run: the run folder.
        log: where the process's errors go.
        threads: of the process.
        mapped: as in :class:`autoft.executors.local.LocalExecutor`.
    """

    def __init__(self, run: Path, log: Path, threads: int, mapped: bool) -> None:
        self._run, self._log = run, log
        self._environment = {**training_environment(threads), **(MAPPED if mapped else {})}
        self._process: LocalProcess | None = None
        self._told = threading.Condition()
        self._lines: list[str] = []
        self._first = 0
        """Which line the first of these is."""
        self._over = False

    def place(self) -> str:
        """Return which node this is, in words."""
        import ray

        return f"node {platform.node()} ({ray.util.get_node_ip_address()})"

    def start(self, digest: str, models: Mapping[str, str], versions: Mapping[str, str]) -> dict[str, Any]:
        """Start the process, unless this node lacks something.

        Args:
            digest: of the run's plan.
            models: where models have to lie, by name.
            versions: of packages.

        Returns:
            ``fault``, what the node lacks in words, or ``hardware``.
        """
        fault = self._fault(digest, models, versions)
        if fault:
            return {"fault": fault}
        begun = threading.Event()
        failed = list[OSError]()

        def attend() -> None:
            # The process asks to be killed with the thread that started it: this one stays until it has ended.
            try:
                self._process = LocalProcess(started(self._run, self._log, self._environment))
            except OSError as error:
                failed.append(error)
                begun.set()
                return
            begun.set()
            for line in self._process.lines():
                with self._told:
                    self._lines.append(line)
                    self._told.notify()
            self._process.wait()
            with self._told:
                self._over = True
                self._told.notify()

        threading.Thread(target=attend, daemon=True).start()
        begun.wait()
        if failed:
            return {"fault": f"cannot start a worker process: {failed[0]}"}
        return {"fault": "", "hardware": Hardware.probe().to_json()}

    def _fault(self, digest: str, models: Mapping[str, str], versions: Mapping[str, str]) -> str:
        shared = "storage that all nodes see at the same path"
        path = RunDir(self._run).plan
        until = time.monotonic() + SEEN_SECONDS
        while _digest(path) != digest:
            if time.monotonic() > until:
                what = "another file" if path.is_file() else "nothing"
                return f"sees {what} at {path}; the run folder has to be on {shared}"
            time.sleep(LOOK / 4)
        for name, place in models.items():
            if not Path(place).exists():
                return (
                    f"has no {place}, where the model {name} is; put it on {shared}, or install its package there too"
                )
        # Imported here, as it is no part of what an actor does else.
        from autoft.plans.environment import environment

        there = environment()
        for name in versions.keys() - there.keys():
            with suppress(importlib.metadata.PackageNotFoundError):
                there[name] = importlib.metadata.version(name)
        unlike = [f"{name} {there.get(name, 'none')} in place of {version}" for name, version in versions.items()]
        unlike = [text for text, name in zip(unlike, versions, strict=True) if there.get(name) != versions[name]]
        return f"has {', '.join(unlike)}; install the same on all nodes" if unlike else ""

    def said(self, after: int) -> dict[str, Any]:
        """Return what the process said, once there is something or a moment is over, and how it stands.

        Args:
            after: how many lines were heard; what is not heard is said again.
        """
        process = self._process
        assert process is not None
        with self._told:
            del self._lines[: after - self._first]
            self._first = after
            self._told.wait_for(lambda: self._lines or self._over, LOOK)
            lines, over = list(self._lines), self._over
        if process.ended and not over:
            # What it started holds its channel open.
            process.signal(signal.SIGKILL)
        return {
            "lines": lines,
            "over": over,
            "code": process.wait() if over else None,
            "resident": process.resident_bytes,
            "stopped": process.stopped,
            "left": process.memory_left(),
        }

    def write(self, line: str) -> None:
        """Send the process a line."""
        if self._process is not None:
            self._process.write(line)

    def signal(self, number: int) -> None:
        """Send a signal to the process and to all that it started."""
        if self._process is not None:
            self._process.signal(number)

    def end(self) -> None:
        """Kill the process and all that it started."""
        if self._process is not None:
            self._process.signal(signal.SIGKILL)
            self._process.wait()


class RayExecutor(Executor):
    """Starts workers on the nodes of a Ray cluster, sends them requests, and gives their events.

    Args:
        run: the run folder.
        plan: of the run.
        workers: how many.
        patience: as of any executor.
    """

    def __init__(self, run: RunDir, plan: Plan, workers: int, *, patience: float = 1800.0) -> None:
        super().__init__(run, workers, patience=patience)
        self.plan = plan
        self._connection = ExitStack()
        self._unlike = False
        self._gpus = 0.0
        """The share of a GPU that a worker asks for, once there is a connection."""
        self._left, self._headless = threading.Event(), threading.Event()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._ray = stack.enter_context(_connected(self.plan, self.workers))
            # Each group of calls has a thread of its own, and its calls are answered in turn.
            self._actor = self._ray.remote(concurrency_groups={"listening": 1, "signals": 1})(NodeWorker)
            self._gpus = gpus_of(self.plan, self._ray.available_resources().get("GPU", 0.0))
            self.admission.sharing = math.floor(1 / self._gpus) if self._gpus else 1
            head = str(self._ray.get_runtime_context().gcs_address)
            threading.Thread(target=self._watch, args=(head,), daemon=True).start()
            stack.callback(self._left.set)
            super().__enter__()
            self._connection = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._connection.close()

    def poll(self, timeout: float) -> Event | None:
        """Return the next event, as any executor does; a fatal one once the head of the cluster is lost."""
        if not self._headless.is_set():
            return super().poll(timeout)
        message = (
            f"the head of the Ray cluster has not answered for {format_seconds(HEAD_SECONDS)}; what is done is kept: once there "
            "is a cluster again, the same command goes on"
        )
        return Event(0, "fatal", {"message": message, "exit_code": SearchFailed.exit_code})

    def _watch(self, head: str) -> None:
        """Note that nothing has listened at the head's address for too long."""
        host, _, port = head.rpartition(":")
        heard = time.monotonic()
        while not self._left.wait(HEAD_LOOK):
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=HEAD_LOOK).close()
            except OSError:
                if time.monotonic() - heard > HEAD_SECONDS:
                    self._headless.set()
                    return
            else:
                heard = time.monotonic()

    def _open(self, log: Path) -> NodeProcess:
        plan = self.plan
        actor = self._actor.options(
            num_cpus=plan.threads,
            num_gpus=self._gpus,
            max_restarts=0,
            scheduling_strategy="SPREAD",
        ).remote(self.run.path, log, plan.threads, plan.train_memory is not None)
        return NodeProcess(self._ray, actor, self)

    def expected(self) -> tuple[str, dict[str, str], dict[str, str]]:
        """Return what :meth:`NodeWorker.start` compares."""
        models = {model.name: model.path for model in self.plan.models if Path(model.path).is_absolute()}
        checked = [*CHECKED, *sorted(plugin.distribution for plugin in load_plugins().plugins)]
        versions = {name: self.plan.environment[name] for name in checked if name in self.plan.environment}
        return _digest(self.run.plan), models, versions

    def needs(self) -> str:
        """Return what a worker asks of a node, in words."""
        share = self._gpus
        cores = f"{self.plan.threads} CPU{'s' if self.plan.threads > 1 else ''}"
        return cores + (f" and {share:g} of a GPU" if share else "")

    def unlike(self, machine: str, there: Mapping[str, Any]) -> str:
        """Return a warning about a node whose processors are others than here, once; else nothing."""
        here, other = _processor(self.plan.hardware, self.plan.device), _processor(there, self.plan.device)
        if self._unlike or here == other:
            return ""
        self._unlike = True
        return (
            f"{machine[:1].upper()}{machine[1:]} has {other}, and the machine of the search {here}: latencies that were "
            "measured on unlike nodes cannot be compared. Use nodes of one kind where latency or the time of a trial counts."
        )


class NodeProcess:
    """A worker process on a node, as this machine knows it; what its methods do is said of :class:`WorkerProcess`."""

    def __init__(self, ray: Any, actor: Any, executor: RayExecutor) -> None:
        self.machine, self.lost = "", ""
        self._ray, self._actor, self._executor = ray, actor, executor
        self._code: int | None = None
        self._resident, self._stopped, self._left = 0, False, (1, 0)
        self._over = False
        """Nothing more is asked of it."""
        self._heard = threading.Event()
        """Nothing more is heard of it either."""

    def lines(self) -> Iterator[str]:
        """Give what it says, and what is to be said of its node."""
        errors = self._ray.exceptions
        try:
            yield from self._lines()
        except errors.OutOfMemoryError:
            # Ray itself keeps nodes from running out of memory, and ends the actor.
            self._code = -signal.SIGKILL
        except errors.RayTaskError as error:
            if not self._over:
                yield _fatal(
                    f"Ray cannot start a worker: {str(error).strip().splitlines()[-1]}; autoft is needed there too"
                )
        except (errors.RayError, TimeoutError) as error:
            # Also where the actor alone died: it is Ray's process, and does nothing that could end it.
            preempted = getattr(error, "preempted", False)
            silent = f"has not answered for {format_seconds(ANSWER_SECONDS)}"
            what = silent if type(error) is TimeoutError else "was preempted" if preempted else "was lost"
            self.lost = f"{self.machine or 'a node'} {what}"
        finally:
            self._over = True
            self._heard.set()

    def _lines(self) -> Iterator[str]:
        executor = self._executor
        place, told = self._actor.place.remote(), False
        while not self._ray.wait([place], timeout=ROOM_SECONDS)[0]:
            if not told:
                text = (
                    f"Ray has found no place for a further worker yet, which needs {executor.needs()}; the search goes on with "
                    "those that there are, and this one begins as soon as there is room."
                )
                yield _line("waiting", text=text, needs=executor.needs())
            told = True
        self.machine = self._ray.get(place)
        expected: tuple[str, dict[str, str], dict[str, str]] | None = None
        found: dict[str, Any] = {"fault": ""}
        # Until the same plan was there before and after: the search writes it anew where its time becomes known.
        while expected is None or (found["fault"] and expected != executor.expected()):
            expected = executor.expected()
            found = self._answer(self._actor.start.remote(*expected))
        if found["fault"]:
            yield _fatal(f"{self.machine} {found['fault']}")
            return
        warning = executor.unlike(self.machine, found["hardware"])
        if warning:
            yield _line("note", text=warning)
        heard, silent = 0, 0.0
        while True:
            try:
                said = self._answer(self._actor.said.options(concurrency_group="listening").remote(heard))
            except self._ray.exceptions.ActorUnavailableError:
                # Whether it is lost is not known yet: what was not heard is said again.
                silent += LOOK
                if silent > ANSWER_SECONDS:
                    raise
                time.sleep(LOOK)
                continue
            silent = 0.0
            self._resident, self._stopped, self._left = said["resident"], said["stopped"], said["left"]
            heard += len(said["lines"])
            yield from said["lines"]
            if said["over"]:
                self._code = said["code"]
                return

    def _answer(self, asked: Any) -> Any:
        """Return an answer of the actor.

        Raises:
            TimeoutError: there is none; of the time in which this process ran.
        """
        for _ in range(round(ANSWER_SECONDS / LOOK)):
            if self._ray.wait([asked], timeout=LOOK)[0]:
                return self._ray.get(asked)
        raise TimeoutError

    def write(self, line: str) -> None:
        """Send it a line."""
        if not self._over:
            self._actor.write.remote(line)

    def signal(self, number: int) -> None:
        """Send a signal to it and to all that it started."""
        if not self._over:
            self._actor.signal.options(concurrency_group="signals").remote(number)

    def wait(self) -> int | None:
        """Return its exit code."""
        return self._code

    def end(self) -> None:
        """Kill it, all that it started, and its actor."""
        if self.machine and not self._over:
            # A node that does not answer is lost, and the process with it.
            with suppress(self._ray.exceptions.RayError):
                self._ray.get(self._actor.end.options(concurrency_group="signals").remote(), timeout=GRACE)
        self._over = True
        self._ray.kill(self._actor)
        # Who listens yet would have Ray begin anew once it is left.
        self._heard.wait(GRACE)

    @property
    def ended(self) -> bool:
        """Whether it has ended: the actor sees to what it started."""
        return False

    @property
    def stopped(self) -> bool:
        """Whether it was stopped when it was last heard of."""
        return self._stopped

    @property
    def resident_bytes(self) -> int:
        """Its resident memory when it was last heard of."""
        return self._resident

    def memory_left(self) -> tuple[int, int]:
        """Return what its node had left when it was last heard of, and the least to keep."""
        return self._left


@contextmanager
def _connected(plan: Plan, workers: int) -> Iterator[Any]:
    """Connect to the plan's cluster, or start one of this machine for as long as the block; give the module ``ray``.

    Raises:
        SearchFailed: there is no Ray, or no cluster at the address.
    """
    # Before Ray is imported: it neither tells its makers of its use nor copies the working directory of `uv run`.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Ray ends a process that has not reached the head for so many seconds; the search does so before, and says so.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "300")
    # The terminal belongs to the search's display.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    try:
        import ray
    except ImportError as error:
        raise SearchFailed(f'Ray cannot be imported ({error}); pip install "autoft[ray]"') from error
    if ray.is_initialized():
        # The caller's own.
        yield ray
        return
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    with ExitStack() as stack:
        if plan.address is None or plan.address == "local":
            # Trials are as quick as those of workers without Ray.
            os.environ.setdefault("RAY_worker_niceness", "0")
            # Sockets lie in it, whose paths are short: TMPDIR may be too deep.
            where = "/tmp" if Path("/tmp").is_dir() else None
            folder = tempfile.TemporaryDirectory(prefix="autoft-ray-", dir=where, ignore_cleanup_errors=True)
            settings |= {
                "address": "local",
                "num_cpus": workers * plan.threads,
                "num_gpus": len(plan.hardware["gpus"]) if plan.device == "cuda" else 0,
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "_temp_dir": stack.enter_context(folder),
            }
        else:
            settings["address"] = plan.address
        # Ray takes SIGTERM for itself, for longer than it is there.
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**settings)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            said = " ".join(str(error).split())
            if said.startswith("Version mismatch"):
                raise SearchFailed(
                    f"{settings['address']} is a cluster of other versions; install the same on all nodes ({said})"
                ) from error
            raise SearchFailed(
                f"Ray cannot be reached at {settings['address']}: {first_line(error)}; give executor.address host:port of a "
                "cluster's head node, auto on a machine of it, or none for this machine alone"
            ) from error
        finally:
            if main:
                signal.signal(signal.SIGTERM, before)
        stack.callback(ray.shutdown)
        # What befalls the cluster Ray prints on standard output, whatever `log_to_driver` says; a test looks at what comes.
        worker = ray._private.worker
        stack.callback(setattr, worker, "print_to_stdstream", worker.print_to_stdstream)
        worker.print_to_stdstream = _unsaid
        yield ray


def _unsaid(data: object, ignore_prefix: bool) -> None:
    """Print nothing."""


def _digest(path: Path) -> str:
    """Return a digest of a file, empty where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _processor(hardware: Mapping[str, Any], device: str) -> str:
    """Return the name of what a machine computes on."""
    names: Sequence[str] = [gpu["name"] for gpu in hardware["gpus"]]
    return ", ".join(sorted(set(names))) if device == "cuda" else str(hardware["cpu"])


def _line(event: str, **body: Any) -> str:
    return json.dumps({"event": event, **body})


def _fatal(message: str) -> str:
    return _line("fatal", message=message, exit_code=SearchFailed.exit_code)
