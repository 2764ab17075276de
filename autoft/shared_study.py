"""A study in a database that several searches share: each tells it what it has done, and hears what the others have.

The run folder stays the truth of its search: whatever becomes of the database, nothing that is done is lost, and what it
does not have is told to it again. All traffic is on a thread of its own, so that no search waits for a database.

What is in the study: of each trial that is done one of Optuna's, written at once and never changed, under which any program
that knows Optuna finds parameters, values and costs; and of each search two attributes, ``driver ID`` with its host, its run
folder and what it is at, and ``alive ID``, a number that grows as long as the search lives. What a search is at is no trial
of Optuna's: such a one would stay RUNNING for ever once its search is gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.errors import StudyError, first_line
from autoft.exchange import Elsewhere, Exchange
from autoft.frozen_trials import finished_trial, insert_trials, named_study
from autoft.plans.plan import Plan
from autoft.progress import printable
from autoft.quantities import format_bytes
from autoft.rundir import CurvePoint, RunDir, TrialConfig, TrialResult, read_typed, write_json
from autoft.study_addresses import StudyAddress

if TYPE_CHECKING:
    import optuna

__all__ = ["SharedStudy", "open_storage", "study_name"]

LOOK_EVERY = 2.0
"""Seconds between two looks into the study."""

BEAT_EVERY = 20.0
"""Seconds after which a search says again that it lives."""

GONE_AFTER = 120.0
"""Seconds without a word of a search, after which nobody waits for what it was at. Each measures them by its own clock."""

OPENING = 60.0
"""Seconds that the start of a command waits for the study."""

JOURNAL_A_SECOND = 500_000
"""Bytes of a journal for which it waits a second more: a journal is read whole before there is an answer."""

LONG_JOURNAL = 30_000_000
"""Bytes of a journal from which on the user is told why nothing happens."""

CLOSING = 30.0
"""Seconds that the end of a command waits for what is still to be told."""

ATTEMPTS = 3
"""At opening a study: two searches that make the tables of a new database at once are in each other's way."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds between two attempts while the study cannot be reached; each pause is twice the one before."""

SILENT = 60.0
"""Seconds that one exchange may take, until the user is told that the study does not answer."""

LONGEST_RECORD = 60_000
"""Characters of an attribute: MySQL keeps 65,535."""

LONGEST_TEXT = 5_000
"""Characters of a text in an attribute: JSON makes up to twelve of one."""

LONGEST_NAME = 200
"""Characters of a run's name in that of its study: databases keep 512 of both."""

PAGE = 1000
"""Trials that a database is asked for at once."""

TOLD_AT_ONCE = 50
"""Trials that a database is told at once, at most."""

LATE = 20
"""Trials before the newest one that are read again: a database numbers them as they are begun, and shows them as they are done."""

TOLD_A_SECOND = 1000
"""Characters a second, at most, in which a search tells what it is at: of a thousand workers it would else be told all the time,
and a journal keeps each word."""

RECORD = "autoft"
"""The system attribute of a trial that has what other searches need to know."""


def study_name(plan: Plan) -> str:
    """Return the name of the study that a search belongs to: its run's, and a digest of all that scores depend on.

    Searches of one study have the same task, models, space, compressions, data, validation rows, objectives and limits, so
    that the score of one is one for the others, too. How long they search, with how many workers, which sampler and on what
    device does not matter.
    """
    same = {
        "task": [plan.task, plan.options],
        "auxiliary": [one.model_dump(mode="json") for one in plan.auxiliary],
        # As the recipe names the revision: the commit changes with each word of a model's card, too.
        "models": [[m.name, m.name.partition("@")[2] or None, _architecture(m.config)] for m in plan.models],
        # What models fall back upon is only known once they are measured, and then to each further call.
        "chains": [
            one.model_dump(mode="json")
            for one in (*plan.pipelines, *(v for v in plan.variants if not v.models), *plan.rescues)
        ],
        "space": plan.space,
        "objectives": [[name, plan.metrics.get(name)] for name in plan.objectives],
        # Of how many rows a search had time to test its model says nothing of scores.
        "data": [
            plan.data.get("fingerprint"),
            {**plan.data["sizes"], "test": plan.rows_there("test")},
            plan.seed,
            plan.folds,
            plan.validation_rows,
        ],
        "limits": [[limit.key, limit.limit] for limit in plan.budget],
        "measured": [plan.request, plan.target.name if plan.target else None],
    }
    digest = hashlib.blake2b(json.dumps(same, sort_keys=True, default=str).encode(), digest_size=6).hexdigest()
    return f"{plan.name[:LONGEST_NAME]}-{digest}"


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model's configuration says of the model, without where it was and which library wrote it."""
    return {key: value for key, value in config.items() if not key.startswith("_") and key != "transformers_version"}


def _journal_bytes(address: StudyAddress) -> int:
    """Return how long a study's journal is; 0 where it has none."""
    try:
        return Path(address.path).stat().st_size if address.scheme == "journal" else 0
    except OSError:
        # There is none yet, or opening it says why.
        return 0


def _cut_torn_line(journal: Path) -> None:
    """Cut off a journal's last line where a full disk or a power cut left it unfinished: the next one would be joined to it."""
    from optuna.storages.journal import JournalFileSymlinkLock

    if not journal.is_file():
        return
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        with journal.open("rb+") as file:
            end = file.seek(0, os.SEEK_END)
            place = end
            while place and file.read(1) != b"\n":
                place -= 1
                file.seek(place)
            if place < end - 1:
                file.truncate(place + 1 if place else 0)
    finally:
        lock.release()


def open_storage(address: StudyAddress) -> optuna.storages.BaseStorage:
    """Return Optuna's storage at an address, with limits on how long it may be silent where the driver has them.

    Raises:
        Exception: of whatever kind the driver has, where it cannot be reached.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    match address.scheme:
        case "journal":
            folder = Path(address.path).parent
            if not folder.is_dir():
                raise FileNotFoundError(f"no such folder: {folder}")
            _cut_torn_line(Path(address.path))
            return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(address.path))
        case "grpc":
            proxy = optuna.storages.GrpcStorageProxy(host=address.host, port=address.port)
            proxy.wait_server_ready(timeout=10)
            return proxy
        case "postgresql":
            # libpq's: without them a server that is cut off is waited for for hours.
            limits: dict[str, Any] = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5}
            limits |= {"keepalives_count": 3, "tcp_user_timeout": 30_000}
        case "mysql":
            limits = {"connect_timeout": 10, "read_timeout": 60, "write_timeout": 60}
        case _:
            limits = {"timeout": 20}
    # RDBStorage fills in a template: a brace of the address is none of it.
    url = address.url.replace("{", "{{").replace("}", "}}")
    return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": limits, "pool_pre_ping": True})


@dataclass
class _Peer:
    """Another search of the study."""

    about: dict[str, Any] = field(default_factory=dict)
    going: list[TrialConfig] = field(default_factory=list)
    beat: object = None
    heard: float = 0.0
    """When its beat last changed, by this machine's clock."""


@dataclass(frozen=True)
class _Record:
    """What a trial of the study says to other searches."""

    driver: str
    trial: int
    variant: str
    elsewhere: Elsewhere


class SharedStudy(Exchange):
    """A search's part in a study that others share.

    Args:
        address: of the study.
        plan: of the search, with what its data says.
        run: its folder, which keeps in ``study.json`` who the search is.
        note: told what a user should know, by the thread that calls :meth:`news` and :meth:`close`.
    """

    shared = True

    def __init__(self, address: StudyAddress, plan: Plan, run: RunDir, note: Callable[[str], None]) -> None:
        self.address, self.plan, self.run, self._note = address, plan, run, note
        self.name = study_name(plan)
        self._file = run.path / "study.json"
        # The same search after a restart: what it has told before is not told again.
        self.driver = str(read_typed(self._file, dict[str, Any], {}).get("driver") or secrets.token_hex(6))
        write_json(self._file, {"driver": self.driver, "study": self.name, "address": address.shown})
        digest = hashlib.blake2b(f"{plan.seed} {self.driver}".encode(), digest_size=4)
        self.seed = int.from_bytes(digest.digest(), "big")
        self._thread = threading.Thread(target=self._work, name="shared study", daemon=True)
        self._changed = threading.Condition()
        self._dirty, self._closing = True, False
        self._connected, self._opened = threading.Event(), threading.Event()
        self._refused: str | None = None
        # What this search tells: under the lock of _changed.
        self._own: dict[int, tuple[TrialResult, Sequence[float] | None]] = {}
        self._published: set[int] = set()
        self._waiting: set[int] = set()
        """Of the own trials, those that are not known to be in the study."""
        self._running: dict[int, TrialConfig] = {}
        # What it heard. Both ends of a deque may be used by two threads.
        self._news: deque[Elsewhere] = deque()
        self._notes: deque[str] = deque()
        self._going: Sequence[TrialConfig] = ()
        self._best: _Record | None = None
        # Of the thread alone.
        self._storage: optuna.storages.BaseStorage | None = None
        self._study = -1
        self._read_up_to = -1
        self._seen: set[tuple[str, int]] = set()
        self._peers: dict[str, _Peer] = {}
        self._told: dict[str, Any] | None = None
        self._tell_from = -math.inf
        self._beat: object = None
        self._beat_at = -math.inf
        self._away = False
        self._busy_since: float | None = None
        self._silence_told = False

    # -- of the search's thread ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, and read what is there.

        Raises:
            StudyError: the study cannot be reached, or refuses.
        """
        size = _journal_bytes(self.address)
        if size > LONG_JOURNAL:
            self._note(
                f"The study's journal has {format_bytes(size)}, and each search reads it whole when it begins; a database has its trials sooner."
            )
        self._thread.start()
        patience = OPENING + size / JOURNAL_A_SECOND
        if not self._connected.wait(patience):
            self._refused = f"does not answer within {patience:.0f} seconds"
        if self._refused is not None:
            raise StudyError(
                f"storage.study: {self.address.shown}: {self._refused}. Nothing was trained. {_remedy(self.address)}, or "
                "leave storage.study out to search alone"
            )
        # A large study takes longer to read; what comes later is heard of later.
        self._opened.wait(patience)

    def started(self, config: TrialConfig) -> None:
        """Have others told that this search is at a configuration."""
        with self._changed:
            self._running[config.number] = config

    def ended(self, result: TrialResult, values: Sequence[float] | None) -> None:
        """Have a result published."""
        with self._changed:
            self._running.pop(result.number, None)
            self._own[result.number] = (result, values)
            if result.number not in self._published:
                self._waiting.add(result.number)
                self._wake()

    def taken_back(self, number: int) -> None:
        """Have others told that this search is no longer at a configuration."""
        with self._changed:
            self._running.pop(number, None)

    def _wake(self) -> None:
        self._dirty = True
        self._changed.notify()

    def news(self) -> list[Elsewhere]:
        """Return what other searches have done, each trial once, as far as this one has heard."""
        self._tell_notes()
        since = self._busy_since
        if since is not None and time.monotonic() - since > SILENT and not self._silence_told:
            self._silence_told = True
            self._note(f"The shared study at {self.address.shown} does not answer; the search goes on alone.")
        found = []
        with contextlib.suppress(IndexError):
            while True:
                found.append(self._news.popleft())
        return found

    def going(self) -> Sequence[TrialConfig]:
        """Return what other searches are at, those left out that are not heard of any more."""
        return self._going

    def close(self) -> None:
        """Publish what is left, within :data:`CLOSING` seconds, and say what could not be."""
        with self._changed:
            self._closing = True
            self._running.clear()
            self._wake()
        if self._thread.is_alive():
            self._thread.join(CLOSING)
        self._tell_notes()
        left = len(self._waiting)
        if left:
            trials = "1 trial is" if left == 1 else f"{left} trials are"
            self._note(f"{trials} not in the shared study yet; the same command tells it, and trains nothing again.")

    def _tell_notes(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._note(self._notes.popleft())

    def note_better(self) -> None:
        """Keep in ``study.json`` what another search has that is better than all of this one, for the last lines of the command."""
        better, best = None, self._best
        sign = 1 if self.plan.higher_is_better else -1
        own = max((sign * values[0] for _, values in self._own.values() if values), default=-math.inf)
        if best is not None and best.elsewhere.values and len(self.plan.objectives) == 1:
            value = best.elsewhere.values[0]
            if sign * value > own:
                about = self._peers[best.driver].about if best.driver in self._peers else {}
                better = {
                    "objective": self.plan.objective,
                    "value": value,
                    "trial": best.trial,
                    "variant": best.variant,
                    "host": printable(str(about.get("host", "unknown"))),
                    "folder": printable(str(about.get("folder", "unknown"))),
                }
        told = {"driver": self.driver, "study": self.name, "address": self.address.shown}
        write_json(self._file, {**told, "better": better} if better else told)

    # -- of the thread that speaks to the database --------------------------------------------------------------

    def _work(self) -> None:
        pause, attempts = FIRST_PAUSE, 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty or self._closing, timeout=LOOK_EVERY)
                self._dirty, closing = False, self._closing
            try:
                self._busy_since = time.monotonic()
                self._exchange(closing)
            except Exception as error:  # noqa: BLE001 - each driver has errors of its own, and none may end a search
                self._busy_since = None
                self._disconnect()
                attempts += 1
                reason = self._reason(error)
                if not self._connected.is_set():
                    if attempts == ATTEMPTS or closing:
                        self._refused = reason
                        self._connected.set()
                        return
                    time.sleep(random.uniform(0.1, 0.4))
                    continue
                if not self._away:
                    self._away = True
                    self._notes.append(
                        f"The shared study at {self.address.shown} cannot be reached ({reason}); the search goes on alone "
                        "and tries again."
                    )
                if closing:
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, timeout=pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            self._busy_since, pause = None, FIRST_PAUSE
            if self._away or self._silence_told:
                self._away = self._silence_told = False
                self._notes.append("The shared study is back, and has all that this search has done.")
            self._opened.set()
            if closing:
                self._disconnect()
                return

    def _exchange(self, closing: bool) -> None:
        if self._storage is None:
            self._connect()
        self._look()
        self._publish(closing)
        self._tell_of_itself(closing)

    def _connect(self) -> None:
        """Open the study, and forget what was read of it: it may be another one, as of a database that was made anew."""
        storage = open_storage(self.address)
        named_study(self.plan, self.name, storage)
        self._study = storage.get_study_id_from_name(self.name)
        self._storage = storage
        with self._changed:
            self._published, self._waiting = set(), set(self._own)
        self._read_up_to = -1
        self._told, self._beat_at = None, -math.inf
        self._connected.set()

    def _disconnect(self) -> None:
        storage, self._storage = self._storage, None
        close = getattr(storage, "close", None) or getattr(getattr(storage, "engine", None), "dispose", None)
        if close is not None:
            with contextlib.suppress(Exception):
                # Of a connection that is broken nothing more is wanted.
                close()

    def _new_records(self) -> Iterator[object]:
        """Yield what the trials that came since the last look say to other searches, None for those that say nothing."""
        storage: Any = self._storage
        if not hasattr(storage, "engine"):
            trials = storage.get_all_trials(self._study, deepcopy=False)[self._read_up_to + 1 :]
            self._read_up_to += len(trials)
            yield from (trial.system_attrs.get(RECORD) for trial in trials)
            return
        import sqlalchemy
        from optuna.storages._rdb.models import TrialModel, TrialSystemAttributeModel

        # One row of each: Optuna reads all forty of a trial, and has all trials in memory at once.
        said = sqlalchemy.select(TrialSystemAttributeModel.trial_id, TrialSystemAttributeModel.value_json).join(
            TrialModel
        )
        said = said.where(TrialModel.study_id == self._study, TrialSystemAttributeModel.key == RECORD)
        said = said.order_by(TrialSystemAttributeModel.trial_id).limit(PAGE)
        after = self._read_up_to - LATE
        while True:
            self._busy_since = time.monotonic()
            with storage.engine.connect() as connection:
                rows = connection.execute(said.where(TrialSystemAttributeModel.trial_id > after)).all()
            for trial, text in rows:
                after, self._read_up_to = trial, max(trial, self._read_up_to)
                yield _json_of(text)
            if len(rows) < PAGE:
                return

    def _look(self) -> None:
        for told in self._new_records():
            if not isinstance(told, dict):
                continue
            driver, trial = told.get("driver"), told.get("trial")
            if not isinstance(driver, str) or not isinstance(trial, int):
                continue
            if driver == self.driver:
                with self._changed:
                    self._published.add(trial)
                    self._waiting.discard(trial)
            elif (driver, trial) not in self._seen and (
                record := _record_of(told, driver, trial, -1 - len(self._seen), self.plan)
            ):
                self._seen.add((driver, trial))
                self._news.append(record.elsewhere)
                self._keep_best(record)
        assert self._storage is not None
        attributes = self._storage.get_study_user_attrs(self._study)
        self._beat = attributes.get(f"alive {self.driver}")
        now = time.monotonic()
        for key, value in attributes.items():
            kind, _, driver = key.partition(" ")
            if driver == self.driver or kind not in {"driver", "alive"}:
                continue
            peer = self._peers.setdefault(driver, _Peer(heard=now))
            if kind == "driver" and isinstance(value, dict) and value != peer.about:
                peer.about = value
                found = (_config_of(one, -1) for one in _items(value.get("running")))
                peer.going = [config for config in found if config is not None]
            elif kind == "alive" and value != peer.beat:
                peer.beat, peer.heard = value, now
        self._going = [
            config for peer in self._peers.values() if now - peer.heard < GONE_AFTER for config in peer.going
        ]

    def _keep_best(self, record: _Record) -> None:
        values, best = record.elsewhere.values, self._best.elsewhere.values if self._best else None
        sign = 1 if self.plan.higher_is_better else -1
        if values and (not best or sign * values[0] > sign * best[0]):
            self._best = record

    def _publish(self, closing: bool) -> None:
        """Tell what is done; of very many some, so that others are heard of, and hear of this search, meanwhile."""
        with self._changed:
            waiting = [(number, *self._own[number]) for number in sorted(self._waiting)]
        storage: Any = self._storage
        relational = hasattr(storage, "engine")
        many = TOLD_AT_ONCE if relational else 1
        end = math.inf if closing else time.monotonic() + LOOK_EVERY
        while waiting:
            self._busy_since = time.monotonic()
            if self._busy_since > end:
                self._dirty = True
                return
            told, waiting = waiting[:many], waiting[many:]
            trials = [self._trial(result, values) for _, result, values in told]
            if relational:
                insert_trials(storage, self._study, trials)
            else:
                storage.create_new_trial(self._study, template_trial=trials[0])
            with self._changed:
                self._published.update(number for number, *_ in told)
                self._waiting.difference_update(number for number, *_ in told)

    def _trial(self, result: TrialResult, values: Sequence[float] | None) -> optuna.trial.FrozenTrial:
        if values is not None and not all(map(math.isfinite, values)):
            values = None
        trial = finished_trial(self.plan, result, self.run, values)
        told = {"driver": self.driver, "host": platform.node(), "number": result.number, **trial.user_attrs}
        trial.user_attrs = {
            name: value[:LONGEST_TEXT] if isinstance(value, str) else value for name, value in told.items()
        }
        record = {
            "driver": self.driver,
            "trial": result.number,
            "variant": trial.user_attrs.get("variant", ""),
            "state": result.state,
            "config": _told_of(result.config),
            "validation": _finite(result.validation.get(self.plan.objective)),
            "violations": {key: _finite(value) for key, value in result.violations.items()},
            "values": None if values is None else list(values),
            "curve": [[point.epoch, _finite(point.validation.get(self.plan.objective))] for point in result.curve],
        }
        if len(json.dumps(record)) > LONGEST_RECORD:
            record["curve"] = []
        trial.system_attrs = {**trial.system_attrs, RECORD: record}
        return trial

    def _tell_of_itself(self, closing: bool) -> None:
        assert self._storage is not None
        if closing or time.monotonic() >= self._tell_from:
            told = self._about_itself(closing)
            if told != self._told:
                self._storage.set_study_user_attr(self._study, f"driver {self.driver}", told)
                self._told = told
                self._tell_from = time.monotonic() + len(json.dumps(told)) / TOLD_A_SECOND
        if time.monotonic() - self._beat_at >= BEAT_EVERY:
            beat = self._beat + 1 if isinstance(self._beat, int) else 0
            self._storage.set_study_user_attr(self._study, f"alive {self.driver}", beat)
            self._beat_at = time.monotonic()

    def _about_itself(self, closing: bool) -> dict[str, Any]:
        told: dict[str, Any] = {"host": platform.node(), "folder": str(self.run.path), "running": [], "ended": closing}
        left = LONGEST_RECORD - len(json.dumps(told))
        with self._changed:
            running = list(self._running.values())
        for config in running:
            one = _told_of(config)
            left -= len(json.dumps(one)) + len(", ")
            if left < 0:
                break
            told["running"].append(one)
        return told

    def _reason(self, error: BaseException) -> str:
        """Return in one line what is at the bottom of an error, without a password."""
        # What Optuna and SQLAlchemy say of it is that there was an error.
        while error.__cause__ is not None:
            error = error.__cause__
        return self.address.hidden(printable(f"{type(error).__name__}: {first_line(error)}"))


def _remedy(address: StudyAddress) -> str:
    match address.scheme:
        case "journal":
            return "Give a file in a folder that all machines see"
        case "grpc":
            return "See that optuna.storages.run_grpc_proxy_server runs there"
        case "sqlite":
            return "Give a file in a folder that is there"
        case "postgresql":
            return "See that the server runs and has this database; a password belongs into PGPASSWORD or ~/.pgpass"
        case _:
            return (
                "See that the server runs and has this database, whose character set is utf8mb4; a password belongs into a "
                "file that the address names, as ?read_default_file=~/.my.cnf"
            )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _told_of(config: TrialConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", include={"kind", "model", "pipeline", "params", "seed"})


def _config_of(value: object, number: int) -> TrialConfig | None:
    try:
        return TrialConfig.model_validate({**dict(value), "number": number})  # type: ignore[call-overload]  # checked by trying
    except (TypeError, ValueError):
        return None


def _json_of(text: str) -> object:
    """Return what a database has as JSON; None where another program wrote something else."""
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return None


def _record_of(told: Mapping[str, Any], driver: str, trial: int, number: int, plan: Plan) -> _Record | None:
    """Return what a trial of the study says, under a number of this search; None where it is damaged."""
    if (config := _config_of(told.get("config"), number)) is None:
        return None
    try:
        curve = [
            CurvePoint(
                samples=0, epoch=epoch, seconds=0, train_loss=0, learning_rate=0, validation={plan.objective: value}
            )
            for epoch, value in told["curve"]
            if value is not None
        ]
        known = told["validation"]
        result = TrialResult(
            number=number,
            state=told["state"],
            config=config,
            curve=curve,
            validation={} if known is None else {plan.objective: known},
            violations={key: math.inf if value is None else value for key, value in told["violations"].items()},
        )
        values = None if told["values"] is None else [float(value) for value in told["values"]]
        if values is not None and len(values) != len(plan.objectives):
            return None
        return _Record(driver, trial, str(told["variant"]), Elsewhere(result, values))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
