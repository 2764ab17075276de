"""Predict, score, and measure the cost of a model, in a process of its own where the figure needs it."""

from __future__ import annotations

import faulthandler
import json
import math
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from autoft.artifact import Ensemble, LoadedModel, context_of, load, predicted, processing, read_manifest
from autoft.contracts import Baseline, CostMetric, Prediction, QualityMetric, Row, Served, Task, TaskContext
from autoft.data.prepared import open_data
from autoft.data.rows import Split
from autoft.fork_server import CAN_FORK, ForkServer
from autoft.hardware import MAPPED, OtherLoad, peak_resident_bytes
from autoft.measures import Latency
from autoft.plans.plan import Plan, read_plan
from autoft.plans.targets import plan_target
from autoft.plugins import Catalog, described, load_plugins
from autoft.processes import KERNEL_CACHES, STOPPED_SECONDS, importing, is_stopped
from autoft.quiet import Quiet
from autoft.rundir import Interval, RunDir
from autoft.slices import slices
from autoft.strategies.head_only import gets_a_decoder
from autoft.watched import Channel, end_with, own_channels

__all__ = [
    "MeasureError",
    "best_scored",
    "bootstrap_interval",
    "import_for_any_model",
    "import_for_models_in_torch",
    "judged",
    "measure_costs",
    "measure_folder",
    "measure_in_process",
    "measure_served",
    "measure_served_in_process",
    "request_rows",
    "score",
    "serving_environment",
    "slice_figures",
    "start_measuring",
    "untouched_works",
    "validated_by",
    "wanted_costs",
]


Model = TypeVar("Model")
Process = TypeVar("Process")


class MeasureError(Exception):
    """A model could not be measured: a metric or its process failed, or was killed; the message says which."""


RESAMPLES = 1000
SLOW_RESAMPLES = 200
"""For metrics without additive statistics, which are computed anew for every resample."""


def references(task: Task, rows: Sequence[Row], context: TaskContext) -> list[Any]:
    """Return what predictions are compared with."""
    return [task.reference(row, context) for row in rows]


def judged(
    task: Task, model: Any, rows: Sequence[Row], context: TaskContext, *, only_targets: bool = False
) -> list[Prediction]:
    """Return the predictions for rows with targets, and what the task says of the targets added to them.

    Args:
        task: predicts.
        model: in evaluation mode, or an exported one.
        rows: with targets; the prediction does not see them.
        context: the task's context.
        only_targets: leave out what a prediction says and only score the targets.
    """
    inputs = [{c.role: row[c.role] for c in task.card.inputs if c.role in row} for row in rows]
    predictions: list[Prediction] = [{} for _ in rows] if only_targets else predicted(task, model, inputs, context)
    # How likely several models find a target is no mean of what a task says of one.
    figures = None if isinstance(model, Ensemble) else task.score_targets(model, rows, context)
    if figures is None:
        return predictions
    return [{**prediction, **figure} for prediction, figure in zip(predictions, figures, strict=True)]


def validated_by(metrics: Mapping[str, QualityMetric], asked: Collection[str]) -> Mapping[str, QualityMetric]:
    """Return the metrics of validation rows: all, or where those that count need no prediction, as perplexity, such alone.

    Args:
        metrics: of the task.
        asked: names of metrics that are optimised, and other names among them.
    """
    uses = {metrics[name].uses for name in asked if name in metrics}
    if uses != {"targets"}:
        return metrics
    return {name: metric for name, metric in metrics.items() if metric.uses == "targets"}


def score(
    metrics: Mapping[str, QualityMetric], predictions: Sequence[Prediction], refs: Sequence[Any], context: TaskContext
) -> dict[str, float]:
    """Return each metric over all rows; NaN where it is not defined for them."""
    return {name: float(metric.score(predictions, refs, context)) for name, metric in metrics.items()}


def best_scored(models: Sequence[Model], scored: Callable[[Model], float]) -> Model:
    """Return the model with the highest figure, the first of equal ones; one with NaN only where no other has more."""
    figures = [scored(model) for model in models]
    return models[int(np.nanargmax(figures))] if not np.isnan(figures).all() else models[0]


def bootstrap_interval(
    metric: QualityMetric,
    predictions: Sequence[Prediction],
    refs: Sequence[Any],
    context: TaskContext,
    *,
    seed: int = 0,
    resamples: int | None = None,
) -> Interval:
    """Return a figure with its 95 % percentile bootstrap interval over rows (Efron & Tibshirani 1993).

    The interval is not defined, NaN, where it does not hold the figure: the bootstrap says nothing of it then.

    Args:
        metric: the figure.
        predictions: one a row.
        refs: what they are compared with.
        context: the task's context.
        seed: of the resampling.
        resamples: default 1000, or 200 for metrics without additive statistics.
    """
    value = float(metric.score(predictions, refs, context))
    n = len(refs)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1.0 / n), size=resamples or RESAMPLES).astype(np.float64)
    figures = metric.resampled(predictions, refs, context, counts)
    if figures is None:
        draws = rng.integers(0, n, size=(resamples or SLOW_RESAMPLES, n))
        figures = np.asarray(
            [metric.score([predictions[i] for i in draw], [refs[i] for i in draw], context) for draw in draws]
        )
    figures = np.asarray(figures)[np.isfinite(figures)]
    if not len(figures):
        return Interval(value=value, low=float("nan"), high=float("nan"), n=n)
    low, high = np.percentile(figures, [2.5, 97.5])
    if not (low <= value <= high or np.isclose([low, high], value).any()):
        # Rows that are drawn twice make such a figure another one, as of how many different words there are.
        low = high = math.nan
    return Interval(value=value, low=float(low), high=float(high), n=n)


def request_rows(
    task: Task, split: Split, context: TaskContext, length: int | None, count: int = 64
) -> tuple[list[Row], int]:
    """Return validation rows to measure requests on, targets left out, and their median length in tokens.

    Args:
        task: encodes the rows.
        split: the validation split.
        context: with the processor.
        length: take the rows nearest to this many tokens; None takes rows as they come.
        count: how many rows.
    """
    # Rows in the order of the split: it is shuffled already, so the first ones are a fair sample.
    targets = {column.role for column in task.card.targets}
    # A request has no target; and one that the training rows do not have, as a rare label, could not be encoded.
    pool: list[Row] = [
        {role: value for role, value in row.items() if role not in targets}
        for row in split[: count if length is None else max(count, 1000)]
    ]
    lengths = [task.length(feature) for feature in task.encode(pool, context)]
    order = list(range(len(pool)))
    if length is not None:
        order.sort(key=lambda i: abs(lengths[i] - length))
    chosen = order[:count]
    return [pool[i] for i in chosen], int(np.median([lengths[i] for i in chosen]))


def measure_costs(
    loaded: LoadedModel,
    rows: Sequence[Row],
    batch_size: int,
    metrics: Iterable[CostMetric],
    workers: int = 1,
    asked: Collection[str] = (),
) -> dict[str, float]:
    """Return the cost figures of a served model that can be measured here; memory is that of this process so far.

    Raises:
        MeasureError: a metric measures other columns than it names, or a figure that is no finite number; or one of the
            ``asked`` columns cannot be measured.
    """
    served = Served(
        folder=loaded.folder,
        predict=lambda request: loaded.predict(request, batch_size=batch_size),
        rows=rows,
        batch_size=batch_size,
        peak_memory=peak_resident_bytes,
    )
    costs: dict[str, float] = {}
    for metric in metrics:
        refusal = metric.check(loaded.context.device, workers)
        if refusal is not None:
            if not set(metric.columns).isdisjoint(asked):
                raise MeasureError(f"the cost metric {metric.name} cannot be measured any more: {refusal.reason}")
            continue
        figures = metric.measure(served)
        if set(figures) != set(metric.columns):
            raise MeasureError(
                f"the cost metric {metric.name} names the columns {', '.join(metric.columns)}, "
                f"and measured {', '.join(figures) or 'none'}"
            )
        for column, value in figures.items():
            if not math.isfinite(value):
                raise MeasureError(
                    f"the cost metric {metric.name} measured {column} = {value}, which is no finite number"
                )
        costs.update(figures)
    return costs


def wanted_costs(catalog: Catalog, asked: Collection[str], *, tested: bool) -> list[CostMetric]:
    """Return the cost metrics that measure a model: those on request for these columns, or where it is the tested one."""
    return [
        metric
        for metric in catalog.cost_metrics.values()
        if tested or not metric.on_request or not set(metric.columns).isdisjoint(asked)
    ]


def measure_folder(
    folder: Path,
    data: Path,
    *,
    validation: bool,
    batch_size: int,
    length: int | None,
    device: str,
    threads: int,
    test: bool = False,
    details: bool = False,
    card: bool = False,
    costs: bool = True,
    decide: bool = False,
    decided: Mapping[str, int] | None = None,
    scored: bool = True,
    scales: Mapping[str, float] | None = None,
    workers: int = 1,
    quiet: Path | None = None,
    asked: Collection[str] = (),
    objective: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Load a model from its files, measure what it costs to serve, then score it.

    Args:
        folder: the model's files.
        data: the prepared data of the run.
        validation: score the validation split.
        batch_size: rows a request.
        length: as in :func:`request_rows`.
        device: to serve on.
        threads: to serve with.
        test: score the test split, each metric with its bootstrap interval.
        details: add the task's tables and examples of the test split, and figures of parts of it.
        card: add what :func:`autoft.artifact.processing` says of the model.
        costs: measure costs.
        scales: by workload, how many times as long it takes on the device that the model is for; latencies are then
            those of that device, and those of this machine stand beside them as ``latency_here_...``.
        workers: processes that train and measure at the same time.
        quiet: the folder of :class:`autoft.quiet.Quiet`, by which they wait for each other's measurements.
        asked: columns and metrics that the recipe limits or optimises; metrics that are measured on request are measured
            for these, and with a test. Where they need no prediction of the validation split, none is made: to write texts
            is most of the work.
        objective: the metric that parts of the test split are scored with.
        decide: let the task decide its operating point on the validation split, which a test does in any case.
        decided: as in :func:`autoft.data.prepared.open_data`.
        scored: score what is predicted of the validation split; else it is returned, with what it is compared with.
        seed: of the bootstrap.

    Returns:
        ``{"costs": {...}, "other_load": share of the processors that others took, "length": tokens, "validation": {...}, "predictions": [...], "references": [...],
        "operating_point": {...}, "test": {...}, "details": [...], "slices": [...], "example": row, "card": {...}, "seconds": {...}}``, only what was asked for. The operating point is decided before the test split is read.
    """
    import torch

    torch.set_num_threads(threads)
    begin = time.monotonic()
    catalog = load_plugins()
    loaded = load(folder, catalog=catalog, device=device)
    prepared = open_data(data, decided=decided)
    result: dict[str, Any] = {}
    if costs:
        rows, tokens = request_rows(loaded.task, prepared.validation, loaded.context, length)
        wanted = wanted_costs(catalog, asked, tested=test or decide)
        with Quiet(quiet).measuring():
            load_of_others = OtherLoad()
            result["costs"] = measure_costs(loaded, rows, batch_size, wanted, workers, asked)
            result["other_load"] = load_of_others.share
        if scales:
            result["costs"] = _elsewhere(result["costs"], scales.get(_workload(loaded.folder, catalog)))
        result["length"] = tokens
    measured = time.monotonic()
    metrics = catalog.metrics_of(loaded.task)
    plain = {name: value for name, value in loaded.context.facts.items() if name != "operating_point"}
    point = loaded.context.facts.get("operating_point")
    if validation:
        # Trials are compared by what their models say before anything is decided.
        loaded.context = replace(loaded.context, facts=plain)
        deciding = (test or decide) and type(loaded.task).operating_point is not Task.operating_point
        shown = validated_by(metrics, asked)
        rows, predictions, refs = _predicted(
            loaded, prepared.validation, only_targets=shown is not metrics and not deciding
        )
        if scored:
            result["validation"] = score(shown, predictions, refs, loaded.context)
        else:
            result |= {"predictions": predictions, "references": refs}
        if deciding:
            point = point or loaded.task.operating_point(rows, predictions, loaded.context)
    if point:
        result["operating_point"] = point
        loaded.context = replace(loaded.context, facts={**plain, "operating_point": point})
    if test:
        rows, predictions, refs = _predicted(loaded, prepared.test)
        result["test"] = {
            name: bootstrap_interval(metric, predictions, refs, loaded.context, seed=seed).model_dump()
            for name, metric in metrics.items()
        }
        if details:
            result["details"] = details_json(loaded.task, rows, predictions, loaded.context)
            result["slices"] = slice_figures(
                loaded.task, metrics, objective, rows, predictions, refs, loaded.context, seed
            )
            result["example"] = example_input(loaded.task, rows)
    if card:
        result["card"] = processing(loaded.task, loaded.manifest, loaded.context)
    result["seconds"] = {"costs": measured - begin, "score": time.monotonic() - measured}
    return result


def measure_served(
    folder: Path, rows: Sequence[Row], *, batch_size: int, length: int | None, device: str, threads: int
) -> dict[str, float]:
    """Load a model from its files, and return what it costs to serve, on rows that are there, not on those of a run.

    Args:
        folder: the model's files.
        rows: in place of the validation rows; targets are left out.
        batch_size: rows a request.
        length: as in :func:`request_rows`.
        device: to serve on.
        threads: to serve with.
    """
    import pyarrow
    import torch

    torch.set_num_threads(threads)
    catalog = load_plugins()
    loaded = load(folder, catalog=catalog, device=device)
    chosen, _ = request_rows(loaded.task, Split(pyarrow.Table.from_pylist(list(rows))), loaded.context, length)
    return measure_costs(loaded, chosen, batch_size, wanted_costs(catalog, (), tested=False))


def runs_in_torch(folder: Path) -> bool:
    """Say whether the model in a folder is one of transformers'."""
    return _workload(folder, load_plugins()).startswith("torch")


def _workload(folder: Path, catalog: Catalog) -> str:
    manifest = read_manifest(folder)
    if manifest.members:
        return _workload(folder / manifest.members[0], catalog)
    compressor = catalog.compressors.get(manifest.format)
    return compressor.workload if compressor else "torch"


def _elsewhere(costs: Mapping[str, float], scale: float | None) -> dict[str, float]:
    """Return costs with the latencies of another device; without them where the device has no such runtime.

    A metric of a plugin stays what it measured here.
    """
    found = dict(costs)
    for name in Latency.columns:
        if name in costs:
            here = found.pop(name)
            found[name.replace("latency_", "latency_here_")] = here
            if scale is not None:
                found[name] = here * scale
    return found


def _predicted(
    loaded: LoadedModel, split: Split, *, only_targets: bool = False
) -> tuple[list[Row], list[Prediction], list[Any]]:
    rows = split[:]
    predictions = judged(loaded.task, loaded.model, rows, loaded.context, only_targets=only_targets)
    return rows, predictions, references(loaded.task, rows, loaded.context)


ANY_MODEL = "autoft.evaluation:import_for_any_model"
MODELS_IN_TORCH = "autoft.evaluation:import_for_models_in_torch"
"""What servers call first, as :meth:`ForkServer.start` is told."""


@importing()
def import_for_any_model() -> None:
    """Import what every process does that serves a model, and no more: it would count as the model's memory."""
    import torch  # noqa: F401 - it is there afterwards, as in each process that serves
    import transformers.models.auto.tokenization_auto  # noqa: F401 - as above

    load_plugins()


@importing()
def import_for_models_in_torch() -> None:
    """Import what those do beside it whose model is one of transformers', which takes longer than all else."""
    import transformers.modeling_utils  # noqa: F401 - as above


def serving_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that serves a model to be measured.

    Threads of torch wait in a loop, as they do where a model is served; workers let them sleep, which costs a request
    of a small model a third of its time. They loop shortly only: on a quiet machine that is as fast as the default of
    GNU OpenMP, and on a busy one it does not make the figure many times larger (``docs/log.md``).
    """
    # Nor are tensors mapped one by one there, which a worker with little memory does, and caches are as large as they come.
    trained = {**MAPPED, **KERNEL_CACHES}
    kept = {name: value for name, value in environment.items() if trained.get(name) != value}
    kept.pop("OMP_WAIT_POLICY", None)
    return {**kept, "GOMP_SPINCOUNT": "1000"}


STARTS = 10
"""How often a process is tried to start."""


class ForkServers:
    """Where processes that load models are forked from, so that libraries are imported once: those of any model, and of models in torch.

    Args:
        environment: of them, when they are started.
        log: where they print; default: where this process does.
    """

    def __init__(self, environment: Callable[[], Mapping[str, str]], log: Path | None = None) -> None:
        self._environment, self._log = environment, log
        self._starting = threading.Lock()
        self._servers: list[ForkServer] = []

    def start(self) -> None:
        """Have both start, where the system can fork; nothing waits for their imports but the first process."""
        # Killed so early, they are started by the first one.
        with suppress(ConnectionError):
            if CAN_FORK:
                self._started(in_torch=True)

    def _started(self, *, in_torch: bool) -> ForkServer:
        with self._starting:
            if not self._servers:
                self._servers.append(ForkServer.start(ANY_MODEL, self._environment(), self._log))
            if in_torch and len(self._servers) == 1:
                self._servers.append(self._servers[0].fork_server(MODELS_IN_TORCH))
            return self._servers[in_torch]

    def fork(self, fork: Callable[[ForkServer], Process], *, in_torch: bool) -> Process:
        """Have a process forked, again where the one that it is forked from was killed.

        Raises:
            ChildProcessError: that is killed again and again.
        """
        for _ in range(STARTS):
            try:
                return fork(self._started(in_torch=in_torch))
            except (EOFError, ConnectionError):
                self.close()
        raise ChildProcessError("the process that measuring processes are forked from is killed again and again")

    def close(self) -> None:
        """Have them end."""
        with self._starting:
            while self._servers:
                self._servers.pop().close()


_MEASURING = ForkServers(lambda: serving_environment(os.environ))
"""Where this process has its measuring processes from."""


def start_measuring() -> None:
    """Have the processes start that measuring processes are forked from.

    The first measurement starts them where this has not been called, or where they were killed since.
    """
    _MEASURING.start()


def measure_in_process(folder: Path, data: Path, *, validation: bool, **settings: Any) -> dict[str, Any]:
    """Run :func:`measure_folder` in a fresh process and return its result.

    Where the system can fork, the process is forked from one that has the libraries imported that serving this model needs,
    and no others, so its peak memory is that of serving this model alone. What it predicts is scored here: the libraries of
    metrics are imported once for all models.

    Raises:
        MeasureError: the process failed or was killed, or a metric failed.
    """
    catalog = load_plugins()
    answer = _in_process(
        runs_in_torch(folder), measure_folder, folder, data, validation=validation, scored=False, **settings
    )
    if validation:
        begin, said = time.monotonic(), (answer.pop("predictions"), answer.pop("references"))
        answer["validation"] = _validation(folder, catalog, settings["device"], *said, settings.get("asked", ()))
        answer["seconds"]["score"] += time.monotonic() - begin
    return answer


def _validation(
    folder: Path,
    catalog: Catalog,
    device: str,
    predictions: Sequence[Prediction],
    refs: Sequence[Any],
    asked: Collection[str] = (),
) -> dict[str, float]:
    manifest = read_manifest(folder)
    metrics = validated_by(catalog.metrics_of(catalog.task(manifest.task)), asked)
    try:
        return score(metrics, predictions, refs, context_of(manifest, device))
    except (Exception, SystemExit) as error:  # whatever a metric of a plugin raises
        raise MeasureError(described(error)) from error


def measure_served_in_process(folder: Path, rows: Sequence[Row], **settings: Any) -> dict[str, float]:
    """Run :func:`measure_served` in a fresh process, as :func:`measure_in_process` does, and return its result.

    Raises:
        MeasureError: the process failed or was killed.
    """
    return _in_process(runs_in_torch(folder), measure_served, folder, rows, **settings)


def _in_process(
    in_torch: bool, measure: Callable[..., dict[str, Any]], *arguments: Any, **settings: Any
) -> dict[str, Any]:
    process, receiver = _started(in_torch, measure, arguments, settings)
    stopped = 0.0
    try:
        # Counted in looks, so that a machine that slept in the meantime has stopped nothing.
        while not receiver.poll(1.0) and stopped < STOPPED_SECONDS:
            stopped = stopped + 1.0 if is_stopped(process.pid) else 0.0
        if stopped >= STOPPED_SECONDS:
            process.kill()
        answer: dict[str, Any] = receiver.recv()
    except (EOFError, OSError):
        process.join()
        if stopped >= STOPPED_SECONDS:
            raise MeasureError("the process that measures the model was stopped, as SIGSTOP does, and ended") from None
        killed = process.exitcode is not None and process.exitcode < 0
        how = f"was killed by signal {-(process.exitcode or 0)}" if killed else f"ended with {process.exitcode}"
        hint = "; the memory may not be enough" if process.exitcode == -9 else ""
        raise MeasureError(f"the process that measures the model {how}{hint}") from None
    finally:
        receiver.close()
    process.join()
    if "error" in answer:
        raise MeasureError(answer["error"])
    return answer


def _started(in_torch: bool, *work: Any) -> tuple[Any, Connection]:
    """Start a measuring process, again where the one that it is forked from was killed."""
    if not CAN_FORK:
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_measure_and_send, args=(sender, *work), daemon=True)
        process.start()
        sender.close()
        return process, receiver
    try:
        forked = _MEASURING.fork(lambda server: server.fork(_measure_and_send, *work), in_torch=in_torch)
    except ChildProcessError as error:
        raise MeasureError(str(error)) from error
    return forked, forked.connection


def _measure_and_send(
    sender: Any, measure: Callable[..., dict[str, Any]], arguments: Sequence[Any], settings: dict[str, Any]
) -> None:
    # Of a server the environment is so; else OpenMP reads it when torch is imported.
    serving = serving_environment(os.environ)
    for name in {*os.environ} - {*serving}:
        del os.environ[name]
    os.environ.update(serving)
    try:
        sender.send(measure(*arguments, **settings))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it has to reach the parent as a sentence, not as a lost process
        sender.send({"error": described(error)})
    finally:
        sender.close()


def details_json(
    task: Task, rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext
) -> list[dict[str, Any]]:
    """Return the task's own section of the report as JSON, each part with its ``kind``."""
    from dataclasses import asdict

    return [{"kind": type(item).__name__.lower(), **asdict(item)} for item in task.details(rows, predictions, context)]


def slice_figures(
    task: Task,
    metrics: Mapping[str, QualityMetric],
    objective: str | None,
    rows: Sequence[Row],
    predictions: Sequence[Prediction],
    refs: Sequence[Any],
    context: TaskContext,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return figures of parts of the test split, each ``{"by", "name", "metric", "figure": interval}``.

    The objective is what parts are scored with; rows of one label with accuracy, where the task has it, since a mean over
    labels says nothing of one of them.
    """
    found = []
    for part in slices(task.card, rows):
        labelled = part.by in {column.role for column in task.card.targets}
        name = "accuracy" if labelled and "accuracy" in metrics else objective
        if name is None or name not in metrics:
            continue
        own = [predictions[i] for i in part.rows]
        figure = bootstrap_interval(metrics[name], own, [refs[i] for i in part.rows], context, seed=seed)
        found.append({"by": part.by, "name": part.name, "metric": name, "figure": figure.model_dump()})
    return found


def example_input(task: Task, rows: Sequence[Row]) -> str | dict[str, Any]:
    """Return what a user may ask a model of these data, from the demo rows of the task; a text where that is enough.

    A picture is named, not shown, and what no demo row has is left for the user to fill in.
    """
    roles = [column.role for column in task.card.inputs if any(row.get(column.role) is not None for row in rows)]
    demos = sorted(task.demo_rows(), key=lambda row: sum(row.get(role) is None for role in roles))
    demo: Row = demos[0] if demos else {}
    shown: dict[str, Any] = {}
    for role in roles:
        value = demo.get(role)
        if value is None or isinstance(value, bytes):
            value = PLACEHOLDERS.get(task.card.column(role).kind, "...")
        elif isinstance(value, str) and len(value) > EXAMPLE_CHARACTERS:
            value = value[:EXAMPLE_CHARACTERS].rsplit(" ", 1)[0] + " ..."
        shown[role] = value
    only = next(iter(shown.values()), None)
    return only if len(shown) == 1 and roles[0] == task.card.inputs[0].role and isinstance(only, str) else shown


EXAMPLE_CHARACTERS = 60
"""A text of an example is cut after so many."""

PLACEHOLDERS: Mapping[str, Any] = {
    "image": "picture.png",
    "messages": [{"role": "user", "content": "..."}],
    "tokens": ["..."],
}
"""What stands for a value by the kind of its column; a text for any other."""

UNTOUCHED = "untouched model"


def untouched_works(plan: Plan, task: Task) -> bool:
    """Say whether the plan's first model does the task untrained: one that a new decoder is put to says nothing yet."""
    return task.card.untrained and not gets_a_decoder(task.card.architecture, plan.models[0].config)


def baseline_figures(run: Path, *, seed: int = 0) -> dict[str, Any]:
    """Fit the task's baselines on the training split of a run and score them on validation and test.

    Where a base model does the task without training, the first one of the plan stands among them as it is.

    Args:
        run: the run folder.
        seed: of the bootstrap.

    Returns:
        By name: ``{"trivial": bool, "validation": {metric: value}, "test": {metric: interval}, "seconds": s}``
    """
    catalog, folder = load_plugins(), RunDir(run)
    plan, prepared = read_plan(folder.plan), open_data(folder.data)
    task = catalog.task(plan.task)
    metrics = catalog.metrics_of(task)
    context = TaskContext(facts=prepared.facts, options=plan.options, params={}, max_length=512)

    def figures(
        predict: Callable[[Split, bool], list[Prediction]],
        context: TaskContext,
        *,
        trivial: bool,
        known: Mapping[str, QualityMetric],
        validated: Mapping[str, QualityMetric],
    ) -> dict[str, Any]:
        begin = time.monotonic()
        scored = {}
        for name, shown in (("validation", validated), ("test", known)):
            split: Split = getattr(prepared, name)
            scored[name] = (predict(split, shown is not known), references(task, split[:], context))
        return {
            "trivial": trivial,
            "validation": score(validated, *scored["validation"], context),
            "test": {
                name: bootstrap_interval(metric, *scored["test"], context, seed=seed).model_dump()
                for name, metric in known.items()
            },
            "seconds": time.monotonic() - begin,
        }

    def by_rule(baseline: Baseline) -> dict[str, Any]:
        def predict(split: Split, only_targets: bool) -> list[Prediction]:
            return baseline.predict(split.inputs(task.card))

        # A rule says nothing of how likely a text is, so figures of that kind it has none.
        known = {name: metric for name, metric in metrics.items() if metric.uses == "predictions"}
        return figures(predict, context, trivial=baseline.trivial, known=known, validated=known)

    found = {baseline.name: by_rule(baseline) for baseline in task.baselines(prepared.train[:], context)}
    if untouched_works(plan, task):
        target = plan_target(plan, task, plan.models[0], params=plan.default_config().params)
        loaded = replace(target.context, processor=task.load_processor(target.source, target.context))
        model = task.load_model(target.source, loaded).to(loaded.device).eval()
        found[UNTOUCHED] = figures(
            lambda split, only_targets: judged(task, model, split[:], loaded, only_targets=only_targets),
            loaded,
            trivial=not any(entry["trivial"] for entry in found.values()),
            known=metrics,
            validated=validated_by(metrics, plan.objectives),
        )
    return found


def main() -> int:
    """Run one measurement in this process, for :func:`autoft.watched.ask`."""
    requests, out = own_channels()
    end_with(os.getppid())
    channel = Channel(out)
    channel.live()
    # What ends within a library of C leaves where it was in the log.
    faulthandler.enable()
    channel.tell_of_exits()
    request = json.loads(requests.readline())
    try:
        if request.pop("kind") == "baselines":
            answer = baseline_figures(Path(request.pop("run")), **request)
        else:
            folder = Path(request.pop("folder"))
            import_for_any_model()
            if runs_in_torch(folder):
                import_for_models_in_torch()
            answer = measure_folder(folder, Path(request.pop("data")), **request)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a plugin or a library raises is told to the command
        traceback.print_exception(error)
        channel.say("failed", reason=described(error))
        return 1
    channel.say("answer", answer=answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
