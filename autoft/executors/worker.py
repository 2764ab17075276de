"""The worker process: takes requests in lines of JSON, runs trials, says what happens.

``python -m autoft.executors.worker RUN_FOLDER``
"""

from __future__ import annotations

import faulthandler
import gc
import itertools
import json
import math
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from autoft.contracts import Target, TaskContext
from autoft.data.batches import grouped_batches
from autoft.data.features import Features
from autoft.ensembles import combine
from autoft.errors import AutoftError, SearchFailed, out_of_memory
from autoft.evaluation import import_for_models_in_torch, judged, start_measuring
from autoft.executors.admission import WAITS
from autoft.executors.followers import Followers
from autoft.hardware import available_cores, peak_resident_bytes, reset_peak_resident
from autoft.parallel import thread_counts
from autoft.plans.plan import Plan
from autoft.plugins import described
from autoft.processes import is_own_folder, release_memory, silence_libraries
from autoft.rundir import CurvePoint, RunDir, TrialConfig, TrialResult
from autoft.shared_base import Cohort, Seat
from autoft.training import Progress
from autoft.trial import Callbacks, FreshWorkerNeeded, Trial, Workplace, compress_further, run_trial, screen
from autoft.used_rows import asked_for, tokens_trained, used_rows_alone
from autoft.watched import Channel, end_with, own_channels

__all__ = ["fitting", "limit_gpu_memory", "main", "needed", "probe_model", "time_pipeline"]

CLEARLY_FASTER = 0.85
"""A step in bf16 has to take at most this share of one in fp32."""

SLOW_ANSWERS = 4.0
"""Seconds for eight rows from which on a model generates so slowly that the time of imports does not matter."""

PROBED_STEPS = 5
"""Of a model in each precision at most, the first of which does not count."""

PROBED_SECONDS = 1.0
"""Of steps, from which on two that count are enough."""

LONG_STEP = 5.0
"""Seconds for the first step, from which on it counts and is the only one: what it alone does is a small share of it."""

TIMED_STEPS = 4
"""Of a pipeline, likewise."""

LONG_PROBE = 10.0
"""Seconds for these steps, from which on it is not tried how fast they are with other numbers of threads."""

WORKSPACE_BYTES = 128 * 2**20
"""Of a GPU's memory, that a training takes beside its tensors where that was not measured: workspaces of libraries, and gaps."""

UNKNOWN_PACE = 0.05
"""Seconds for a training row of a model of which not one row fits into memory."""


def limit_gpu_memory(limit: float | None) -> None:
    """Have torch say that memory ran out where this process would take more of its GPU than a limit; None for all of it.

    From then on an allocation beyond it raises ``torch.OutOfMemoryError``; what is cached is given back first.

    Args:
        limit: bytes.
    """
    import torch

    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (limit or total) / total))


def probe_model(place: Workplace, name: str) -> dict[str, Any]:
    """Return what one training step of a model takes here, in the precisions that the machine has.

    A few real batches at the default batch size are trained, forward and backward. bf16 is taken where it is clearly
    faster: a few steps do not tell small differences apart, and the same recipe should train in the same precision.

    Returns:
        ``{"precision", "by_threads", "seconds_per_sample", "validate_seconds_per_row", "test_seconds_per_row", "memory_bytes",
        "parameters"}``
    """
    import numpy as np
    import torch

    plan = place.plan
    pipeline = plan.default_config().pipeline
    params = plan.default_params(pipeline)
    target = place.target(name, params, plan.seed)
    features = place.features(name, target.context)
    reset_peak_resident()
    model = place.task.load_model(target.source, target.context).to(target.context.device)
    model.train()
    device_type = "cuda" if target.context.device == "cuda" else "cpu"
    precisions = ["fp32", "bf16"] if place.plan.hardware["bf16"] else ["fp32"]
    batch_size, seconds = int(params["train.batch_size"]), dict[str, float]()
    while not seconds:
        batches = grouped_batches(features.lengths, batch_size, np.random.default_rng(0))[:PROBED_STEPS]
        try:
            seconds = _seconds_per_sample(place, model, target, features, batches, precisions)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            model.zero_grad(set_to_none=True)
            if batch_size == 1:
                # No trial of this model will end otherwise, and each says so; what it would take does not matter.
                seconds = dict.fromkeys(precisions, UNKNOWN_PACE)
            batch_size //= 2
    faster = seconds.get("bf16", math.inf) < CLEARLY_FASTER * seconds["fp32"]
    precision = "bf16" if faster else "fp32"
    place.precision[name] = precision
    model.eval()
    try:
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            validating = testing = _seconds_per_row(place, model, target.context)
            if place.catalog.metrics_of(place.task)[plan.objective].uses == "targets":
                testing = _seconds_per_answer(place, model, target.context)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        validating = testing = seconds[precision] / 2
    memory = torch.cuda.max_memory_allocated() if device_type == "cuda" else peak_resident_bytes()
    by_threads: dict[int, float] = {}
    if plan.by_pace and plan.workers == 1 and seconds[precision] * sum(map(len, batches[:TIMED_STEPS])) < LONG_PROBE:
        by_threads = _by_threads(place, model, target, features, batches[:TIMED_STEPS], precision)
    return {
        "precision": precision,
        "by_threads": by_threads,
        "seconds_per_sample": seconds[precision],
        "validate_seconds_per_row": validating,
        "test_seconds_per_row": testing,
        "memory_bytes": memory,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def _by_threads(
    place: Workplace, model: Any, target: Target, features: Features, batches: Sequence[Any], precision: str
) -> dict[int, float]:
    """Return the seconds that a training row takes by the number of threads."""
    import torch

    found, before = {}, torch.get_num_threads()
    model.train()
    try:
        for threads in thread_counts(before):
            torch.set_num_threads(threads)
            found[threads] = _seconds_per_sample(place, model, target, features, batches, [precision])[precision]
    finally:
        torch.set_num_threads(before)
        model.eval()
    return found


def _seconds_per_sample(
    place: Workplace, model: Any, target: Target, features: Features, batches: Sequence[Any], precisions: Sequence[str]
) -> dict[str, float]:
    """Return the seconds that a training row takes in each precision, forward and backward.

    One row is a warm-up, and so is the first batch unless it takes :data:`LONG_STEP`, which ends it. After two more it ends once
    :data:`PROBED_SECONDS` are spent on what counts.
    """
    import torch

    from autoft.attention_dropout import attention_in_blocks

    context = target.context

    def loss_of(indices: Sequence[int]) -> Any:
        batch = place.task.collate([features[int(i)] for i in indices], context)
        return place.task.loss(model, {key: value.to(context.device) for key, value in batch.items()}, context)

    samples, seconds = 0, dict.fromkeys(precisions, 0.0)
    tokens = asked_for(features, model, context.processor)
    with attention_in_blocks(), used_rows_alone(model, tokens, lambda: loss_of(batches[0][:1])):
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=0.0, fused=True)
        for step, indices in enumerate([batches[0][:1], *batches]):
            if step <= 2:
                samples, seconds = 0, dict.fromkeys(precisions, 0.0)
            # In turns, so that whatever else the machine does slows both down.
            for precision in precisions:
                begin = time.perf_counter()
                with torch.autocast(context.device, dtype=torch.bfloat16, enabled=precision == "bf16"):
                    loss = loss_of(indices)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if context.device == "cuda":
                    torch.cuda.synchronize()
                seconds[precision] += time.perf_counter() - begin
            samples += len(indices)
            spent = sum(seconds.values())
            if (step == 1 and spent > LONG_STEP) or (step >= 3 and spent > PROBED_SECONDS):
                break
    return {precision: took / max(1, samples) for precision, took in seconds.items()}


def time_pipeline(place: Workplace, name: str, pipeline: str) -> float:
    """Return the seconds that a training row takes in a pipeline over a model, from a few real steps.

    In the precision that :func:`probe_model` found for the model. The first step is a warm-up.
    """
    import numpy as np

    plan = place.plan
    config = TrialConfig(
        number=0, kind="default", model=name, pipeline=pipeline, params=plan.default_params(pipeline), seed=plan.seed
    )
    model, target = Trial(
        place, config, Callbacks(), None, TrialResult(number=0, state="failed", config=config)
    ).loaded()
    features = place.features(name, target.context)
    model.train()
    batch_size = int(config.params["train.batch_size"] or 1)
    batches = grouped_batches(features.lengths, batch_size, np.random.default_rng(0))[:TIMED_STEPS]
    precision = place.precision.get(name, "fp32")
    return _seconds_per_sample(place, model, target, features, batches, [precision])[precision]


def fitting(peaks: Sequence[float | None], base: float, limit: float) -> int:
    """Return how many trainings, from the first on, fit into a memory at once; at least one.

    Args:
        peaks: bytes that each needs alone, the base included; from one on that is not known, none is added.
        base: bytes of what they share.
        limit: bytes that there are.
    """
    left, count = limit, 0
    for peak in peaks:
        left -= math.inf if peak is None else max(0.0, peak - (base if count else 0.0))
        if left < 0:
            break
        count += 1
    return max(1, count)


def needed(place: Workplace, config: TrialConfig) -> int | None:
    """Return how many bytes a trial is predicted to need at most, by as much more as predictions may be too low.

    Returns:
        None where it is not known: of what is no training of one model on rows of one task, and where no step can be traced.
    """
    plan = place.plan
    if config.kind in {"soup", "ensemble", "compress"} or any(plan.auxiliary_steps(config.params)):
        return None
    from autoft.estimates.verdicts import Constants, constants_of, predict, setting_of

    features = place.features(config.model, place.target(config.model, config.params, config.seed).context, config.fold)
    rows = place.splits(config.fold).train[:8]
    model, pipeline = plan.model(config.model), plan.pipeline(config.pipeline)
    setting = replace(
        setting_of(plan, place.catalog, model, pipeline, rows, **config.params),
        length=int(features.lengths.max()),
        precision=place.precision.get(config.model, "fp32"),
        tokens=tokens_trained(config.params, features),
    )
    known = constants_of(setting, place.catalog) or Constants(WORKSPACE_BYTES)
    prediction = predict(setting, place.catalog, known, place.run.cache)
    peak = prediction.peak_bytes
    return None if peak is None else math.ceil(peak * (1 + prediction.margin))


def _seconds_per_row(place: Workplace, model: Any, context: TaskContext) -> float:
    """Return what it takes to predict and score a validation row."""

    def timed(rows: int) -> float:
        validate = place.validator(context, rows=rows)
        begin = time.perf_counter()
        validate(model)
        return time.perf_counter() - begin

    first = timed(8)
    rows, seconds = 8, first
    if first < SLOW_ANSWERS:
        # The first call imports the metrics' libraries and is no measure; a fast model has to show its pace on more rows.
        rows = 64 if first < 0.5 else 32
        seconds = timed(rows)
    return seconds / min(rows, len(place.data.validation))


def _seconds_per_answer(place: Workplace, model: Any, context: TaskContext) -> float:
    """Return what it takes to predict a row, which a test does whatever the objective needs."""

    def timed(count: int) -> float:
        rows = place.data.validation[:count]
        begin = time.perf_counter()
        judged(place.task, model, rows, context)
        return (time.perf_counter() - begin) / len(rows)

    seconds = timed(8)
    # More rows at once take hardly longer where little is computed.
    return timed(32) if 8 * seconds < 1.0 else seconds


class _Room(NamedTuple):
    """What a worker's trials may take of its device's memory."""

    bytes: float
    whole: bool
    """It is all that a trial can have there."""


class _Worker(Channel):
    def __init__(self, run: RunDir, requests: TextIO, out: TextIO) -> None:
        super().__init__(out)
        self.run, self.requests = run, requests
        self.place: Workplace | None = None
        self.followers: Followers | None = None
        self.shared = False
        """Other workers may be on this one's GPU."""
        self.admitted = False
        """The search keeps room on a shared GPU for what is done now."""

    def serve(self) -> None:
        if available_cores() > 1:
            # Its imports take a core of their own beside this process's.
            start_measuring()
        import torch

        self.place = Workplace.open(self.run)
        self.place.note = lambda text: self.say("note", text=text)
        plan = self.place.plan
        torch.set_num_threads(plan.train_threads or plan.threads)
        if plan.processes > 1:
            self.followers = Followers(self.run, plan, self.give_up)
        if plan.device == "cuda":
            limit_gpu_memory(plan.train_memory)
        # As any process that serves a model does: what a worker computes until it is ready says how long those will take.
        import_for_models_in_torch()
        self.say("ready", processor_seconds=time.process_time())
        for number, line in enumerate(self.requests):
            request = json.loads(line)
            self.shared = request["shared"]
            if request["op"] in {"probe", "time", "screen"}:
                self.measure(request)
            elif request["op"] == "plan":
                # What the search decided since this process read it; other machines may see the file later than this word.
                self.place.plan = Plan.model_validate(request["plan"])
                torch.set_num_threads(self.place.plan.train_threads or self.place.plan.threads)
            elif request["op"] == "trial":
                self.trial(request)
            elif request["op"] == "trials":
                self.together(request["trials"])
            self.place.served = True
            release_memory()
            if self.admitted:
                self.say("freed", kept=self._given_back())
                self.admitted = False
            if number < 2:
                # What the first requests import stays: later collections need not look through it.
                gc.freeze()

    def measure(self, request: dict[str, Any]) -> None:
        """Measure a model before anything is trained; what fails here would fail in each of its trials.

        Raises:
            SearchFailed: in a plugin or a library.
        """
        assert self.place is not None
        model = request["model"]
        try:
            if request["op"] == "probe":
                self.say("probed", figures=probe_model(self.place, model))
            elif request["op"] == "time":
                self.say("timed", seconds=time_pipeline(self.place, model, request["pipeline"]))
            else:
                found = screen(self.place, model, request["variants"], lambda name: self.say("screening", variant=name))
                self.say("screened", costs=found)
        except AutoftError:
            raise
        except (Exception, SystemExit) as error:  # whatever a plugin or a library raises
            traceback.print_exception(error)
            raise SearchFailed(f"{model} cannot be measured: {described(error)}") from error

    def trial(self, request: dict[str, Any], room: _Room | None = None) -> None:
        """Run a trial, in the room that it has; None: once there is some."""
        assert self.place is not None
        config = TrialConfig.model_validate(request["config"])
        callbacks, deadline = self._prepared(request)
        room = room or self.admit([request])[0]
        if config.kind in {"soup", "ensemble"}:
            result = combine(self.place, config, callbacks)
        elif config.kind == "compress":
            result = compress_further(self.place, config, callbacks, deadline)
        else:
            followers = self.followers
            if followers is not None and followers.broken:
                self.say("renew", trial=config.number, whole=False)
                return
            try:
                with (
                    followers.joined({**request, "plan": self.place.plan})
                    if followers is not None
                    else nullcontext() as ranks
                ):
                    result = run_trial(self.place, config, callbacks, deadline, ranks=ranks)
            except FreshWorkerNeeded:
                self.say("renew", trial=config.number, whole=False)
                return
            if followers is not None and followers.broken and "memory" in result.violations:
                # The search begins it again with smaller batches, as this process could have done only by itself.
                self.give_up(0, "ran out of memory", True)
            # It was predicted to need less; or what this process keeps from before may be what was missing.
            cramped = not room.whole and not request["whole"]
            if "memory" in result.violations and (cramped or self.place.served):
                self.say("renew", trial=config.number, whole=cramped)
                return
        self._done(result, request)

    def together(self, requests: Sequence[dict[str, Any]]) -> None:
        """Run trials that train at the same time, as many at once as fit into the memory."""
        assert self.place is not None
        waiting = [{**one, "until": _until(one)} for one in requests]
        while waiting:
            self.place.precision.update(waiting[0]["precision"])
            room, count = self.admit(waiting)
            now, waiting = waiting[:count], waiting[count:]
            if len(now) == 1:
                self.trial(now[0], room)
                continue
            cohort: Cohort[dict[str, Any] | None] = Cohort(self.place.plan.seed)
            found = cohort.run([partial(self._seated, one, now) for one in now])
            for one in found:
                if isinstance(one, BaseException):
                    raise one
                if one is not None:
                    release_memory()
                    self.trial(one)

    def admit(self, requests: Sequence[dict[str, Any]]) -> tuple[_Room, int]:
        """Return the room for the first of some trials, and how many of them, from that one on, are to train in it at once.

        On a GPU that several workers share it waits for its turn, and for that room beside what the others train. On a CPU, where
        trials train together only because the recipe says so, it is all of them.
        """
        assert self.place is not None
        plan = self.place.plan
        if plan.device != "cuda":
            return _Room(math.inf, whole=True), len(requests)
        import torch

        gpu, first = torch.cuda.get_device_properties(torch.cuda.current_device()), requests[0]
        limit = min(gpu.total_memory, plan.train_memory or gpu.total_memory)
        if not self.shared and len(requests) == 1:
            return _Room(limit, whole=True), 1
        self.stage(first["config"]["number"], "predict memory")
        peaks = [limit if one["whole"] else self._needed(one) for one in requests]
        model, pipeline = plan.model(first["config"]["model"]), plan.pipeline(first["config"]["pipeline"])
        # Of a quantized base it is not known what is left of its files.
        base = 0 if pipeline.quantizer else model.size_bytes
        if not self.shared:
            return _Room(limit, whole=True), fitting(peaks, base, limit)
        known = [peak for peak in itertools.takewhile(lambda peak: peak is not None, peaks) if peak is not None]
        kept = self._given_back()
        sizes = itertools.accumulate(known, lambda size, peak: size + max(0.0, peak - base))
        self.stage(first["config"]["number"], WAITS)
        self.say(
            "needs",
            gpu=str(gpu.uuid),
            total=gpu.total_memory,
            # Trials train together only where nothing limits their memory.
            sizes=[kept + size if number else min(limit, kept + size) for number, size in enumerate(sizes)],
            kept=kept,
        )
        answer = self._answer()
        self.admitted = True
        room = _Room(min(limit, answer["bytes"]), answer["whole"] or answer["bytes"] >= limit)
        limit_gpu_memory(room.bytes)
        return room, fitting(peaks, base, room.bytes - kept)

    def _needed(self, request: dict[str, Any]) -> int | None:
        """Return what :func:`needed` says; nothing is known of a trial where that fails, as the trial itself then will."""
        assert self.place is not None
        try:
            return needed(self.place, TrialConfig.model_validate(request["config"]))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a plugin or a library raises
            traceback.print_exception(error)
            return None

    def _given_back(self) -> int:
        """Give back what this process has of the GPU and does not need, and return the bytes that it keeps."""
        import torch

        release_memory()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    def _seated(self, request: dict[str, Any], every: Sequence[dict[str, Any]], seat: Seat) -> dict[str, Any] | None:
        """Run a trial among others; return it where it has to be run by itself, as there was no memory for all."""
        assert self.place is not None
        config = TrialConfig.model_validate(request["config"])
        callbacks, deadline = self._prepared(request)
        result = run_trial(self.place, config, callbacks, deadline, seat)
        if "memory" in result.violations:
            return request
        self._done(result, request)
        if request["competes"]:
            for other in every:
                if other["competes"] and other is not request:
                    self._told_reached(result, other)
        return None

    def _told_reached(self, result: TrialResult, request: dict[str, Any]) -> None:
        """Have a trial that is still training know what another one reaches at the same cost, as the search would tell it."""
        assert self.place is not None
        plan, own, config = self.place.plan, TrialConfig.model_validate(request["config"]), result.config
        alike = [(plan.pipeline(one.pipeline).leaves, one.params.get("train.max_length")) for one in (own, config)]
        if alike[0] != alike[1]:
            return
        sign, reached = 1 if plan.higher_is_better else -1, request["reached"]
        for variant in result.variants:
            value = variant.validation.get(plan.objective, math.nan)
            if variant.state == "complete" and sign * value > sign * reached.get(variant.name, -sign * math.inf):
                reached[variant.name] = value

    def _prepared(self, request: dict[str, Any]) -> tuple[Callbacks, float | None]:
        """Tell the place what a trial may know, and return whom it tells, and until when it may train."""
        assert self.place is not None
        self.place.hear(request)
        self.place.screened, self.place.reached = request["screened"], request["reached"]
        self.place.until = None if request["left"] is None else time.monotonic() + float(request["left"])
        number = request["config"]["number"]
        callbacks = Callbacks(
            partial(self.stage, number),
            partial(self.progress, number),
            partial(self.validation, number),
            lambda text: self.say("note", text=text),
        )
        return callbacks, request["until"] if "until" in request else _until(request)

    def give_up(self, rank: int, what: str, memory: bool) -> None:
        """End this process where one of those that train a trial together is lost: the others wait for it for good.

        Args:
            rank: of that process.
            what: befell it.
            memory: for want of memory, as far as one knows: the search then tries the trial again with smaller batches.
        """
        assert self.place is not None
        which = f"process {rank + 1} of the {self.place.plan.processes} that train the trial"
        if memory:
            self.say("alive", at=which)
            os.kill(os.getpid(), signal.SIGKILL)
        print(f"{which} {what}", file=sys.stderr, flush=True)  # noqa: T201 - the log's last line says why a worker ended
        self.exit(1)

    def _done(self, result: TrialResult, request: dict[str, Any]) -> None:
        result.predicted["seconds"] = request["expected"]
        self.run.write_result(result)
        self.say("done", trial=result.number)

    def stage(self, number: int, name: str) -> None:
        self.say("stage", trial=number, stage=name)

    def progress(self, number: int, progress: Progress) -> None:
        self.say("progress", trial=number, samples=progress.samples, total=progress.total, rate=progress.rate)

    def validation(self, number: int, point: CurvePoint) -> bool:
        assert self.place is not None
        self.say("validation", trial=number, point=point.model_dump())
        answer = self._answer()
        # What a training is validated by stays what it was: it is followed once that has ended.
        self.place.decide(answer["decided"])
        return bool(answer["stop"])

    def _answer(self) -> dict[str, Any]:
        """Return what the search answers; this process ends where there is no search any more."""
        line = self.requests.readline()
        if not line:
            self.exit(0)
        answer: dict[str, Any] = json.loads(line)
        return answer


def _until(request: dict[str, Any]) -> float | None:
    """Return when the training of a request has to end, as :func:`time.monotonic` has it."""
    return None if request["seconds"] is None else time.monotonic() + float(request["seconds"])


def main() -> int:
    """Serve requests until standard input ends."""
    requests, out = own_channels()
    end_with(os.getppid())
    run = RunDir(Path(sys.argv[1]))
    if is_own_folder(run.scratch):
        # A worker is ended by SIGKILL, and deletes nothing: the search does.
        os.environ["TMPDIR"] = tempfile.tempdir = str(run.scratch)
    worker = _Worker(run, requests, out)
    worker.live()
    # What ends within a library of C leaves where it was in the log.
    faulthandler.enable()
    silence_libraries()
    worker.tell_of_exits()
    try:
        worker.serve()
    except AutoftError as error:
        worker.say("fatal", message=str(error), exit_code=error.exit_code)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
