"""A search of very many trials that train nothing: what the driver itself takes for each, and what a kill costs.

``python benchmarks/scale.py --trials 10000 --workers 1000 --storage sqlite:///scale.db --output scale.json``

Scores come from a made-up function of the settings, with noise; all else is real: the sampler, early stopping, selection, the
run folder with one ``result.json`` a trial, and, with ``--storage``, the shared study. ``--kill SECONDS`` kills the search so
many seconds after its start, starts it again, and says what was lost. ``--fill`` begins where so many random trials are done: what
a proposal and a result take then is known without waiting for all that came before. ``--others`` begins in a study where another
search has done so many; ``--database`` names the process of its server, whose CPU seconds are told.

``--best`` and ``--newest`` set how many trials the sampler is shown (0 for all), and ``--regret`` prints how good the best of
so many trials is, the mean over some seeds: what showing it fewer costs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import optuna
import psutil
import sqlalchemy
from optuna.storages._rdb import models

from autoft import study
from autoft.executors import Event
from autoft.frozen_trials import insert_trials
from autoft.hardware import Hardware
from autoft.listener import Listener
from autoft.plans.plan import ModelPlan, PipelinePlan, Plan, VariantPlan
from autoft.plugins import load_plugins
from autoft.rundir import CurvePoint, RunDir, TrialConfig, TrialResult, VariantResult, write_json
from autoft.search import Interruption, Search
from autoft.shared_study import RECORD, SharedStudy, open_storage
from autoft.space import Categorical, Float, Int, domain_to_json
from autoft.study_addresses import study_address

SPACE = {
    "model": Categorical(("large", "small")),
    "pipeline": Categorical(("full", "lora")),
    "augment": Categorical(("none",)),
    "train.schedule": Categorical(("linear", "cosine", "constant")),
    "train.epochs": Int(1, 8, 3),
    "train.batch_size": Categorical((8, 16, 32)),
    "train.warmup": Float(0.0, 0.3, 0.1),
    "train.weight_decay": Float(1e-4, 0.3, 0.01, log=True),
    "train.dropout": Float(0.0, 0.4, 0.1),
    "train.label_smoothing": Float(0.0, 0.2, 0.0),
    "full.learning_rate": Float(1e-6, 1e-3, 1e-5, log=True),
    "lora.learning_rate": Float(1e-4, 1e-2, 1e-3, log=True),
    "lora.rank": Int(4, 64, 16, log=True),
}


def plan(trials: int, workers: int, seed: int) -> Plan:
    return Plan(
        autoft="scale",
        name="scale",
        task="text-classification",
        options={},
        models=[
            ModelPlan(name="large", path="", config={}, size_bytes=90_000_000),
            ModelPlan(name="small", path="", config={}, size_bytes=10_000_000),
        ],
        pipelines=[
            PipelinePlan(name="full", quantizer=None, adapter="full"),
            PipelinePlan(name="lora", quantizer=None, adapter="lora"),
        ],
        variants=[VariantPlan(name="none", chain=[]), VariantPlan(name="onnx-int8", chain=[])],
        space={name: domain_to_json(domain) for name, domain in SPACE.items()},
        origins={},
        refusals=[],
        warnings=[],
        objective="accuracy",
        objectives=["accuracy"],
        metrics={"accuracy": {"higher_is_better": True}},
        budget=[],
        time_limit=1e9,
        trials_limit=trials,
        request={},
        effort="balanced",
        sampler="tpe",
        early_stopping="halving",
        seed=seed,
        tolerance=0.0,
        finalist_seeds=2,
        storage_bytes=10**9,
        workers=workers,
        threads=1,
        device="cpu",
        trust_remote_code=False,
        hardware=Hardware("cpu", 2, 2**33, (), "simulated", False, "Linux x86_64").to_json(),
        environment={},
        data={"sizes": {"train": 1000, "validation": 1000, "test": 1000}, "fingerprint": "simulated"},
    )


def quality(config: TrialConfig) -> float:
    """Return what a configuration is worth without noise, at most 0.95: the optimum of each parameter is inside of its range."""
    found = 0.95 if config.model == "large" else 0.93
    for name, value in config.params.items():
        domain = SPACE[name]
        if isinstance(domain, Categorical):
            found -= 0.01 * domain.choices.index(value)
        else:
            low, high, at = float(domain.low), float(domain.high), float(value)
            if domain.log:
                low, high, at = math.log(low), math.log(high), math.log(at)
            place = (at - low) / (high - low)
            found -= 0.15 * (place - random.Random(name).uniform(0.2, 0.8)) ** 2
    return found


class SimulatedExecutor:
    """Answers at once what workers would after minutes; a trial that is not stopped is validated at each quarter."""

    def __init__(self, run: RunDir, workers: int) -> None:
        self.run, self.workers = run, workers
        self.time_limits: dict[int, float] = {}
        self.memory_limits: dict[int, float] = {}
        self.startup = self.imports = 0.0
        self.ready = self.placed = set(range(workers))
        self.events: deque[Event] = deque(Event(worker, "ready") for worker in range(workers))
        self.at: dict[int, tuple[TrialConfig, int, float]] = {}

    def __enter__(self) -> SimulatedExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def start(self, worker: int) -> None:
        """Do nothing: a simulated worker is always there."""

    stop = start

    def poll(self, seconds: float) -> Event | None:
        """Return the next event."""
        return self.events.popleft() if self.events else None

    def send(self, worker: int, op: str, **body: Any) -> None:
        """Answer a request."""
        if op == "probe":
            figures = {"precision": "fp32", "memory_bytes": 1e9, "seconds_per_sample": 1e-3}
            self.events.append(
                Event(
                    worker,
                    "probed",
                    {"figures": {**figures, "validate_seconds_per_row": 1e-4, "test_seconds_per_row": 1e-4}},
                )
            )
        elif op == "trial":
            config = TrialConfig.model_validate(body["config"])
            self.at[worker] = (config, 0, noisy(config))
            self.events.append(Event(worker, "stage", {"trial": config.number, "stage": "train"}))
            self._go_on(worker, stop=False)
        elif op == "decide":
            self._go_on(worker, stop=body["stop"])

    def _go_on(self, worker: int, stop: bool) -> None:
        config, quarter, score = self.at[worker]
        epochs = int(config.params["train.epochs"])
        if stop or quarter == 4:
            self.run.write_result(result_of(config, score, quarter, stop))
            self.events.append(Event(worker, "done", {"trial": config.number}))
            return
        self.at[worker] = (config, quarter + 1, score)
        point = point_of(epochs * (quarter + 1) / 4, score - 0.05 * (3 - quarter))
        told = {"trial": config.number, "samples": point.samples, "total": 1000 * epochs, "rate": 1000.0}
        self.events.append(Event(worker, "progress", told))
        self.events.append(Event(worker, "validation", {"trial": config.number, "point": point.model_dump()}))


def point_of(epoch: float, value: float) -> CurvePoint:
    return CurvePoint(
        samples=int(1000 * epoch),
        epoch=epoch,
        seconds=epoch,
        train_loss=1 - value,
        learning_rate=1e-4,
        validation={"accuracy": value},
    )


def noisy(config: TrialConfig) -> float:
    return quality(config) + random.Random(f"{config.number} {config.seed}").gauss(0, 0.005)


def result_of(config: TrialConfig, score: float, quarters: int = 4, stopped: bool = False) -> TrialResult:
    epochs = int(config.params["train.epochs"])
    curve = [point_of(epochs * (n + 1) / 4, score - 0.05 * (3 - n)) for n in range(quarters)]
    size = 90e6 if config.model == "large" else 10e6
    latency = random.Random(f"latency {config.number}").gauss(1.0, 0.02)
    variants = [
        VariantResult(
            name=name,
            state="complete",
            validation={"accuracy": score - loss},
            costs={"model_size_bytes": size * share, "latency_p50_ms": size / 1e7 * share * latency},
            folder=f"trials/{config.number:04d}/variants/{name}",
        )
        for name, share, loss in (("none", 1.0, 0.0), ("onnx-int8", 0.25, 0.004))
    ]
    return TrialResult(
        number=config.number,
        state="pruned" if stopped else "complete",
        config=config,
        seconds={"train": epochs, "validate": 0.1, "total": epochs + 1.0},
        curve=curve,
        validation={"accuracy": curve[-1].validation["accuracy"]},
        variants=[] if stopped else variants,
    )


def fill(run: RunDir, results: Iterable[TrialResult]) -> None:
    """Write results as if the trials had been done; all but the first have no files any more."""
    for result in results:
        for variant in result.variants if result.number else ():
            variant.folder = None
        run.trial(result.number).mkdir(parents=True, exist_ok=True)
        run.result(result.number).write_text(result.model_dump_json(), encoding="utf-8")


def drawn_results(found: Plan, count: int) -> Iterator[TrialResult]:
    """Yield what so many random trials, the first of them the default, came to."""
    rng = random.Random(0)
    for number in range(count):
        config = found.default_config().model_copy(update={"number": number})
        if number:
            chosen = {name: drawn(domain, rng) for name, domain in SPACE.items()}
            names = found.parameters(str(chosen["pipeline"]), "none")
            config = config.model_copy(
                update={
                    "kind": "search",
                    "model": chosen["model"],
                    "pipeline": chosen["pipeline"],
                    "params": {name: chosen[name] for name in names},
                }
            )
        yield result_of(config, noisy(config))


def fill_study(shared: SharedStudy, results: Iterable[TrialResult]) -> None:
    """Write trials into the study as the search of this folder would have told them, in a database many at once."""
    shared._connect()
    begin, count, storage, waiting = time.monotonic(), 0, shared._storage, []
    for result in results:
        trial = shared._trial(result, [max(one.validation["accuracy"] for one in result.variants)])
        count += 1
        if not isinstance(storage, optuna.storages.RDBStorage):
            storage.create_new_trial(shared._study, template_trial=trial)
            continue
        waiting.append(trial)
        if len(waiting) == 500:
            insert_trials(storage, shared._study, waiting)
            waiting = []
    if waiting:
        insert_trials(storage, shared._study, waiting)
    shared._disconnect()
    print(json.dumps({"told": count, "seconds": round(time.monotonic() - begin, 1)}), flush=True)


def drawn(domain: Any, rng: random.Random) -> Any:
    if isinstance(domain, Categorical):
        return rng.choice(domain.choices)
    if isinstance(domain, Int):
        return rng.randint(domain.low, domain.high)
    if domain.log:
        return math.exp(rng.uniform(math.log(domain.low), math.log(domain.high)))
    return rng.uniform(domain.low, domain.high)


class SimulatedSearch(Search):
    """The real search over simulated workers; it notes the CPU seconds that its own parts take."""

    times: dict[str, list[float]]

    def __init__(self, *words: Any, **named: Any) -> None:
        super().__init__(*words, **named)
        agenda = self.agenda
        # The models are none: there is nothing that an adapter could look at.
        agenda.illegal = lambda config: None
        agenda.next, agenda._bring_in = self._timed(agenda.next), self._counted(agenda._bring_in)

    def _executor(self, workers: int) -> Any:
        self.times = {"ask": [], "ask, waited": [], "finish": []}
        self.reports: list[dict[str, float]] = []
        self.begun = time.monotonic()
        return SimulatedExecutor(self.run, workers)

    def _timed(self, following: Callable[[], TrialConfig | None]) -> Callable[[], TrialConfig | None]:
        def asked() -> TrialConfig | None:
            begin, since = time.thread_time(), time.monotonic()
            found = following()
            self.times["ask"].append(time.thread_time() - begin)
            self.times["ask, waited"].append(time.monotonic() - since)
            return found

        return asked

    def _counted(self, bring_in: Callable[[], None]) -> Callable[[], None]:
        def brought_in() -> None:
            begin, known = time.monotonic(), len(self.agenda.elsewhere)
            bring_in()
            entered = len(self.agenda.elsewhere) - known
            if entered > 100:
                told = {"entered of others": entered, "seconds": round(time.monotonic() - begin, 1)}
                print(json.dumps({**told, "resident_mb": resident()}), flush=True)

        return brought_in

    def _finish(self, result: TrialResult) -> None:
        begin = time.thread_time()
        super()._finish(result)
        self.times["finish"].append(time.thread_time() - begin)
        if len(self.trials.results) in AT or len(self.trials.results) == self.plan.trials_limit:
            self.reports.append(self.report())
            print(json.dumps(self.reports[-1]), flush=True)

    def report(self) -> dict[str, float]:
        """Return how long the last 200 asks and results took, and how the search stands."""
        asked, finished = self.times["ask"][-200:], self.times["finish"][-200:]
        return {
            "trials": len(self.trials.results),
            "seconds": round(time.monotonic() - self.begun, 1),
            "ask_p50_ms": round(1e3 * statistics.median(asked), 2),
            "ask_p95_ms": round(1e3 * statistics.quantiles(asked, n=20)[-1], 2),
            "ask_waited_p95_ms": round(1e3 * statistics.quantiles(self.times["ask, waited"][-200:], n=20)[-1], 2),
            "finish_p50_ms": round(1e3 * statistics.median(finished), 2),
            "finish_p95_ms": round(1e3 * statistics.quantiles(finished, n=20)[-1], 2),
            "resident_mb": resident(),
            "best": round(max(quality(r.config) for r in self.trials.results.values()), 5),
        }


AT = {100, 300, 1000, 3000, 10_000, 30_000, 100_000}


def resident() -> float:
    return round(psutil.Process().memory_info().rss / 1e6, 1)


class MeasuredStudy(SharedStudy):
    """The real part in a shared study; it notes what its looks and what it tells take, waiting included."""

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self.times: dict[str, list[tuple[float, float]]] = {"look": [], "tell a trial": [], "tell of itself": []}

    def _measured(self, name: str, call: Any, *words: Any) -> float:
        begin, since, count = time.thread_time(), time.monotonic(), len(self._published)
        call(*words)
        share = max(1, len(self._published) - count) if name == "tell a trial" else 1
        took = time.monotonic() - since
        if name != "tell a trial" or len(self._published) > count:
            self.times[name].append((took / share, (time.thread_time() - begin) / share))
        return took

    def _look(self) -> None:
        took = self._measured("look", super()._look)
        if len(self.times["look"]) == 1:
            known = {"heard of": len(self._seen), "own": len(self._published), "seconds": round(took, 1)}
            print(
                json.dumps({**known, "cpu": round(self.times["look"][0][1], 1), "resident_mb": resident()}), flush=True
            )

    def _publish(self, closing: bool) -> None:
        self._measured("tell a trial", super()._publish, closing)

    def _tell_of_itself(self, closing: bool) -> None:
        self._measured("tell of itself", super()._tell_of_itself, closing)

    def report(self) -> dict[str, object]:
        """Return how many there were and what they took; the first look, which reads everything, is left out."""
        found: dict[str, object] = {}
        for name, times in self.times.items():
            waited, computed = (
                (sorted(column) for column in zip(*times[1:], strict=True)) if len(times) > 1 else ([], [])
            )
            if waited:
                found[name] = {
                    "n": len(waited),
                    "p50_ms": round(1e3 * statistics.median(waited), 1),
                    "p95_ms": round(1e3 * waited[int(0.95 * len(waited))], 1),
                    "cpu_p50_ms": round(1e3 * statistics.median(computed), 1),
                }
        return found


def search(
    folder: Path,
    trials: int,
    workers: int,
    seed: int,
    storage: str | None = None,
    filled: int = 0,
    others: int = 0,
) -> SimulatedSearch:
    run = RunDir(folder)
    run.create()
    found = plan(trials, workers, seed)
    fill(run, drawn_results(found, filled))
    write_json(run.plan, found.model_dump(mode="json"))
    shared = None
    if storage:
        shared = MeasuredStudy(study_address(storage), found, run, lambda text: print(text, file=sys.stderr))
        if filled:
            fill_study(shared, drawn_results(found, filled))
        if others:
            with tempfile.TemporaryDirectory() as elsewhere:
                fill_study(
                    SharedStudy(study_address(storage), found, RunDir(elsewhere), print), drawn_results(found, others)
                )
        begin = time.monotonic()
        print(json.dumps({"resident_mb": resident()}), flush=True)
        shared.open()
        print(json.dumps({"opened after seconds": round(time.monotonic() - begin, 1)}), flush=True)
    run.clear_partial()
    begin = time.monotonic()
    engine = SimulatedSearch(
        run, found, load_plugins(), Listener(), Interruption(), started=time.monotonic(), exchange=shared
    )
    print(
        json.dumps({"resumed": len(engine.trials.results), "seconds": round(time.monotonic() - begin, 1)}), flush=True
    )
    try:
        engine.go()
    finally:
        if shared is not None:
            begin = time.monotonic()
            shared.close()
            print(json.dumps({"publishing the rest, seconds": round(time.monotonic() - begin, 1)}), flush=True)
            print(json.dumps(shared.report()), flush=True)
    return engine


def stored(storage: str) -> dict[str, object]:
    """Return what the study in the storage holds, and how large it is."""
    address = study_address(storage)
    opened = open_storage(address)
    path = Path(address.path or address.url.removeprefix("sqlite:///"))
    if isinstance(opened, optuna.storages.RDBStorage):
        attributes = models.TrialSystemAttributeModel
        size = {
            "postgresql": "SELECT pg_database_size(current_database())",
            "mysql": "SELECT SUM(data_length + index_length) FROM information_schema.tables WHERE table_schema = DATABASE()",
        }
        with opened.engine.connect() as connection:
            said = connection.execute(
                sqlalchemy.select(attributes.value_json).where(attributes.key == RECORD)
            ).scalars()
            keys = [(told["driver"], told["trial"]) for told in map(json.loads, said)]
            question = size.get(opened.engine.dialect.name)
            taken = connection.execute(sqlalchemy.text(question)).scalar() if question else path.stat().st_size
    else:
        trials = [t for one in opened.get_all_studies() for t in opened.get_all_trials(one._study_id, deepcopy=False)]
        keys = [(trial.user_attrs["driver"], trial.user_attrs["number"]) for trial in trials]
        taken = path.stat().st_size if path.is_file() else math.nan
    return {
        "trials stored": len(keys),
        "told twice": len(keys) - len(set(keys)),
        "storage_mb": round(float(taken) / 1e6, 1),
    }


def computed(database: int | None) -> float:
    """Return the CPU seconds of a server and of its processes that there are now."""
    if database is None:
        return math.nan
    server = psutil.Process(database)
    times = [one.cpu_times() for one in (server, *server.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def killed(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Kill a search after some seconds and return what it had done then, and after it was started again."""
    words = [sys.executable, __file__, "--trials", str(arguments.trials), "--workers", str(arguments.workers)]
    words += ["--folder", str(folder)] + (["--storage", arguments.storage] if arguments.storage else [])
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    time.sleep(arguments.kill)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = RunDir(folder)
    there = run.results()
    begun = len(list((folder / "trials").glob("[0-9]*")))
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    after = {result.number: result for result in run.results()}
    return {
        "done at the kill": len(there),
        "under way at the kill": begun - len(there),
        "done before and lost": sum(after.get(r.number, r).config != r.config or r.number not in after for r in there),
        "done in the end": len(after),
    }


def regret(arguments: argparse.Namespace) -> dict[str, object]:
    found = []
    for seed in range(arguments.regret):
        with tempfile.TemporaryDirectory() as folder:
            engine = search(Path(folder), arguments.trials, arguments.workers, seed)
            found.append(max(quality(r.config) for r in engine.trials.results.values()))
    error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return {"best": round(statistics.fmean(found), 5), "standard error": round(error, 5), "seeds": len(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--storage", help="as storage.study of a recipe")
    parser.add_argument("--folder", type=Path, help="a run folder, which stays")
    parser.add_argument(
        "--fill", type=int, default=0, metavar="TRIALS", help="begin with so many random ones that are done"
    )
    parser.add_argument(
        "--others", type=int, default=0, metavar="TRIALS", help="begin in a study where another search has done so many"
    )
    parser.add_argument("--database", type=int, metavar="PID", help="of the storage's server")
    parser.add_argument("--kill", type=float, metavar="SECONDS")
    parser.add_argument("--best", type=int, default=study.BEST_SHOWN)
    parser.add_argument("--newest", type=int, default=study.NEWEST_SHOWN)
    parser.add_argument("--regret", type=int, default=0, metavar="SEEDS")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    everything = 10**9
    study.BEST_SHOWN, study.NEWEST_SHOWN = arguments.best, arguments.newest or everything
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="autoft-scale-"))
    facts: dict[str, object] = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    try:
        if arguments.regret:
            facts |= regret(arguments)
        elif arguments.kill:
            facts |= killed(arguments, folder)
        else:
            before = computed(arguments.database)
            found = search(
                folder, arguments.trials, arguments.workers, 0, arguments.storage, arguments.fill, arguments.others
            )
            facts["reports"] = found.reports
            if arguments.database:
                facts["database, cpu seconds"] = round(computed(arguments.database) - before, 1)
        if arguments.storage:
            facts |= stored(arguments.storage)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(facts))
    if arguments.output:
        arguments.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
