"""What a search shows while it runs: live on a terminal, lines on a pipe, JSON where a program reads.

A display never holds up the search: what happens is put into a queue, and a thread of its own writes. Where it can't write
any more, because the terminal was closed or the reader of a pipe has gone, the search goes on without it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import queue
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from autoft.estimates.forecast import MemoryForecast
from autoft.listener import Forecast, Listener, Standing, TrialTime
from autoft.plans.budgets import violations
from autoft.plans.plan import BudgetLimit, Plan
from autoft.progress import Figures, Follower, View, figures, printable, without_nan
from autoft.quantities import format_bytes, format_seconds
from autoft.report.views import column_title, cost_text
from autoft.rundir import TrialConfig, TrialResult
from autoft.screen import Picture, counts_text, describe, forgive_characters, outcome, time_left, trial_line, tried

__all__ = ["Display", "JsonListener", "LiveListener", "PlainListener", "choose_listener", "outliving_its_terminal"]

REFRESHED_EVERY = 1.0
"""Seconds between two drawings at most; the clock goes on where nothing happens."""

FASTEST = 0.25
"""Seconds between two drawings at least."""

QUIET = 300.0
"""Seconds without a line on a pipe, after which one says what is being done: some systems end a job that says nothing."""

MOST_WAITING = 20_000
"""Events that wait for a reader who takes none; of more, those that only say how far a training is are dropped."""


def choose_listener(as_json: bool, folder: Path | None = None) -> Display:
    """Return the listener for where standard output goes; ``folder`` is that of the run, as a user types it."""
    forgive_characters(sys.stdout)
    if as_json:
        return JsonListener(sys.stdout, folder)
    console = Console()
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveListener(console, folder)
    return PlainListener(sys.stdout, folder)


def opening(folder: Path | None, resumed: int) -> list[str]:
    """Return what is said under the first line: where the model will be, how it is loaded, and what was done before."""
    lines = []
    if folder is not None:
        command = f"autoft predict {shlex.quote(str(folder))}"
        lines.append(f"Into {folder}: the report, and the model that `{command}` loads.")
    if resumed:
        lines.append(f"Going on: {resumed} trial{'s are' if resumed > 1 else ' is'} done.")
    return lines


@contextlib.contextmanager
def outliving_its_terminal() -> Iterator[None]:
    """Have a command go on when its terminal is closed: the signal that says so is ignored."""
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    old = signal.signal(hangup, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(hangup, old)


class Display(Listener):
    """A listener that writes in a thread of its own; a context, which ends when all is written.

    Subclasses say what to write in ``show_...`` methods, which that thread alone calls. Without the context, each method
    writes at once.
    """

    def __init__(self) -> None:
        self.lost = False
        """Nothing can be written any more."""
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Display:
        self._thread = threading.Thread(target=self._write_on, name="display", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._thread is not None
        self._waiting.put(None)
        # A reader that takes nothing is waited for here, where all is saved and the run folder is free again.
        self._thread.join()
        if self.lost and self.descriptor() == 1:
            _leave_the_terminal()

    def descriptor(self) -> int | None:
        """Return the number of the file that it writes to, None where it is none."""
        return None

    def opened(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which the thread writes."""
        return contextlib.nullcontext()

    def draw(self) -> None:
        """Bring what changes up to date; called now and then."""

    def close(self) -> None:
        """Write what comes last."""

    def _tell(self, event: Callable[[], None], *, dispensable: bool = False) -> None:
        if self._thread is None:
            event()
        elif not self.lost and not (dispensable and self._waiting.qsize() > MOST_WAITING):
            self._waiting.put(event)

    def _write_on(self) -> None:
        try:
            with self.opened():
                drawn = 0.0
                while True:
                    try:
                        event = self._waiting.get(timeout=REFRESHED_EVERY)
                        if event is None:
                            break
                        event()
                    except queue.Empty:
                        drawn = 0.0
                    if time.monotonic() - drawn >= FASTEST:
                        self.draw()
                        drawn = time.monotonic()
            self.close()
        except (OSError, ValueError) as error:
            # The terminal or the pipe is gone (ValueError: closed on this side). There is nobody left to tell.
            self.lost = True
            if not isinstance(error, OSError) and "closed file" not in str(error):
                traceback.print_exc()
        except Exception:  # noqa: BLE001 - see below
            # A fault of the display, whatever it is, is no reason to lose a search that takes hours.
            self.lost = True
            with contextlib.suppress(OSError, ValueError):
                traceback.print_exc()

    # What happens, from the thread of the search.

    def begin(self, plan: Plan, resumed: int) -> None:
        """Show what is searched."""
        self._tell(lambda: self.show_begin(plan, resumed))

    def earlier(self, results: Sequence[TrialResult]) -> None:
        """Show what was done before."""
        self._tell(lambda: self.show_earlier(results))

    def forecast(self, forecast: Forecast) -> None:
        """Show what it will be."""
        self._tell(lambda: self.show_forecast(forecast))

    def trial_started(self, config: TrialConfig) -> None:
        """Show what a trial is."""
        self._tell(lambda: self.show_trial_started(config))

    def stage(self, trial: int, stage: str) -> None:
        """Show the stage of a trial."""
        self._tell(lambda: self.show_stage(trial, stage))

    def progress(self, trial: int, samples: int, total: int, rate: float) -> None:
        """Show how far a training is."""
        self._tell(lambda: self.show_progress(trial, samples, total, rate), dispensable=True)

    def validation(self, trial: int, samples: int, value: float) -> None:
        """Show a validation."""
        self._tell(lambda: self.show_validation(trial, samples, value))

    def trial_done(self, result: TrialResult, standing: Standing) -> None:
        """Show how a trial ended and how the search stands."""
        self._tell(lambda: self.show_trial_done(result, standing))

    def phase(self, name: str) -> None:
        """Show the phase."""
        self._tell(lambda: self.show_phase(name))

    def note(self, text: str) -> None:
        """Show a note, at the end or now."""
        self._tell(lambda: self.show_note(text))

    def waits(self, text: str) -> None:
        """Show what is waited for."""
        self._tell(lambda: self.show_waits(text))

    def interrupted(self) -> None:
        """Say that the search ends with what there is."""
        self._tell(self.show_interrupted)

    # What is shown of it.

    def show_begin(self, plan: Plan, resumed: int) -> None:
        """Show what is searched."""

    def show_earlier(self, results: Sequence[TrialResult]) -> None:
        """Show what was done before."""

    def show_forecast(self, forecast: Forecast) -> None:
        """Show what it will be."""

    def show_trial_started(self, config: TrialConfig) -> None:
        """Show what a trial is."""

    def show_stage(self, trial: int, stage: str) -> None:
        """Show the stage of a trial."""

    def show_progress(self, trial: int, samples: int, total: int, rate: float) -> None:
        """Show how far a training is."""

    def show_validation(self, trial: int, samples: int, value: float) -> None:
        """Show a validation."""

    def show_trial_done(self, result: TrialResult, standing: Standing) -> None:
        """Show how a trial ended and how the search stands."""

    def show_phase(self, name: str) -> None:
        """Show the phase."""

    def show_note(self, text: str) -> None:
        """Show a note."""

    def show_waits(self, text: str) -> None:
        """Show what is waited for."""

    def show_interrupted(self) -> None:
        """Say that the search ends with what there is."""


def _descriptor(stream: Any) -> int | None:
    try:
        return int(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return None


def _leave_the_terminal() -> None:
    """Have what is still printed go nowhere: where nobody reads, it would end the command with an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    if _hung_up(2):
        os.dup2(nowhere, 2)
    os.close(nowhere)


def _hung_up(descriptor: int) -> bool:
    """Say whether a descriptor is that of a terminal that is gone."""
    try:
        os.get_terminal_size(descriptor)
    except OSError as error:
        return error.errno == errno.EIO
    return False


INTERRUPTED = "Finishing with what there is. Press Ctrl-C again to stop now; the same command goes on later."


class PlainListener(Display):
    """A line for each trial that ends, and for each phase: for pipes, log files and terminals that only write on."""

    def __init__(self, stream: TextIO, folder: Path | None = None) -> None:
        super().__init__()
        self.stream, self.folder, self.plan = stream, folder, None
        self.notes: list[str] = []
        self.said = time.monotonic()
        self.doing = ""
        self.phase_shown = ""

    plan: Plan | None

    def descriptor(self) -> int | None:
        """Return that of the stream."""
        return _descriptor(self.stream)

    def line(self, text: str) -> None:
        """Write one line, in what the stream can write."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        text = printable(text).encode(encoding, "replace").decode(encoding)
        print(text, file=self.stream, flush=True)
        self.said = time.monotonic()

    def draw(self) -> None:
        """Say what is being done where nothing was said for long."""
        if self.doing and time.monotonic() - self.said >= QUIET:
            self.line(self.doing)

    def close(self) -> None:
        """Write the notes."""
        for note in self.notes:
            self.line(f"note: {note}")

    def show_begin(self, plan: Plan, resumed: int) -> None:
        """Say what is searched."""
        self.plan = plan
        for line in (_headline(plan), *opening(self.folder, resumed)):
            self.line(line)

    def show_forecast(self, forecast: Forecast) -> None:
        """Say what it will be."""
        self.line(str(forecast))

    def show_trial_started(self, config: TrialConfig) -> None:
        """Keep what a trial is."""
        self.doing = f"trial {config.number} goes on: {describe(config)}"

    def show_stage(self, trial: int, stage: str) -> None:
        """Keep the stage."""
        self.doing = f"trial {trial} goes on: {stage}"

    def show_progress(self, trial: int, samples: int, total: int, rate: float) -> None:
        """Keep how far a training is."""
        self.doing = f"trial {trial} goes on: {samples} of {total} samples, {rate:.0f} a second"

    def show_trial_done(self, result: TrialResult, standing: Standing) -> None:
        """Say how a trial ended and how the search stands, on one line."""
        assert self.plan is not None
        seconds = format_seconds(result.seconds.get("total", 0.0))
        self.line(
            f"trial {result.number} ended after {seconds}: {outcome(result, self.plan)}; {tried(result)}; "
            f"{_standing(standing, self.plan)}"
        )

    def show_phase(self, name: str) -> None:
        """Say the phase."""
        self.doing = f"{name} goes on"
        if name != self.phase_shown:
            self.line(f"[{name}]")
        self.phase_shown = name

    def show_note(self, text: str) -> None:
        """Keep it for the end; without the context there is none, so say it now."""
        if self._thread is None:
            self.line(f"note: {text}")
        elif text not in self.notes:
            self.notes.append(text)

    def show_waits(self, text: str) -> None:
        """Say it now."""
        self.line(text)

    def show_interrupted(self) -> None:
        """Say it now."""
        self.line(INTERRUPTED)


class JsonListener(Display):
    """One JSON object a line, each with its ``event``: for programs."""

    def __init__(self, stream: TextIO, folder: Path | None = None) -> None:
        super().__init__()
        self.stream, self.folder = stream, folder

    def descriptor(self) -> int | None:
        """Return that of the stream."""
        return _descriptor(self.stream)

    def emit(self, event: str, **body: Any) -> None:
        """Write one object; what is no finite number is null, for JSON has no word for it."""
        line = json.dumps({"event": event, **without_nan(body)}, allow_nan=False, default=str)
        print(line, file=self.stream, flush=True)

    def show_begin(self, plan: Plan, resumed: int) -> None:
        """Emit ``begin``."""
        self.emit("begin", name=plan.name, task=plan.task, objective=plan.objective, resumed=resumed, run=self.folder)

    def show_forecast(self, forecast: Forecast) -> None:
        """Emit ``forecast``."""
        self.emit("forecast", **asdict(forecast))

    def show_trial_started(self, config: TrialConfig) -> None:
        """Emit ``trial_started``."""
        self.emit("trial_started", **config.model_dump(mode="json"))

    def show_stage(self, trial: int, stage: str) -> None:
        """Emit ``stage``."""
        self.emit("stage", trial=trial, stage=stage)

    def show_progress(self, trial: int, samples: int, total: int, rate: float) -> None:
        """Emit ``progress``."""
        self.emit("progress", trial=trial, samples=samples, total=total, rate=round(rate, 1))

    def show_validation(self, trial: int, samples: int, value: float) -> None:
        """Emit ``validation``."""
        self.emit("validation", trial=trial, samples=samples, value=value)

    def show_trial_done(self, result: TrialResult, standing: Standing) -> None:
        """Emit ``trial_done``."""
        variants = {
            v.name: {"state": v.state, "reason": v.reason, "validation": v.validation, "costs": v.costs}
            for v in result.variants
        }
        self.emit(
            "trial_done",
            trial=result.number,
            state=result.state,
            reason=result.reason,
            seconds=result.seconds.get("total"),
            variants=variants,
            standing=asdict(standing),
        )

    def show_phase(self, name: str) -> None:
        """Emit ``phase``."""
        self.emit("phase", name=name)

    def show_note(self, text: str) -> None:
        """Emit ``note``, at once."""
        self.emit("note", text=text)

    def show_waits(self, text: str) -> None:
        """Emit ``waits``."""
        self.emit("waits", text=text)

    def show_interrupted(self) -> None:
        """Emit ``interrupted``."""
        self.emit("interrupted")


class LiveListener(Display):
    """A live display: trials that are done above, below them how the run stands, as :mod:`autoft.screen` draws it."""

    def __init__(self, console: Console, folder: Path | None = None) -> None:
        super().__init__()
        self.console, self.folder = console, folder
        self.plan: Plan | None = None
        self.follower = Follower()
        self.results: dict[int, TrialResult] = {}
        self.figures: Figures | None = None
        self.live: Live | None = None

    def descriptor(self) -> int | None:
        """Return that of the console."""
        return _descriptor(self.console.file)

    def opened(self) -> contextlib.AbstractContextManager[object]:
        """Return the live display, which draws when this listener says so."""
        self.live = Live(get_renderable=self.render, console=self.console, auto_refresh=False, transient=True)
        return self.live

    def draw(self) -> None:
        """Draw the part that changes."""
        if self.live is not None:
            self.live.refresh()

    def close(self) -> None:
        """Show the notes, which the display did not let scroll by."""
        for note in self.follower.now.notes:
            self.console.print(Text(f"note: {printable(note)}", style="yellow"))

    @property
    def view(self) -> View:
        """The run as it stands."""
        if self.plan is not None and self.figures is None:
            self.figures = figures(self.plan, list(self.results.values()))
        results = tuple(result for _, result in sorted(self.results.items()))
        name = self.plan.name if self.plan else "autoft search"
        view = View(name=name, state="running", plan=self.plan, results=results, progress=self.follower.now)
        return view if self.figures is None else View(**{**view.__dict__, "figures": self.figures})

    def render(self) -> Picture:
        """Return the part that changes."""
        return Picture(self.view, history=False)

    def show_earlier(self, results: Sequence[TrialResult]) -> None:
        """Take over what an earlier call has done."""
        self.results.update({result.number: result for result in results})
        self.figures = None

    def show_begin(self, plan: Plan, resumed: int) -> None:
        """Say what is searched."""
        self.plan, self.figures = plan, None
        self.follower.begin(plan, resumed)
        for line in (_headline(plan), *opening(self.folder, resumed)):
            self.console.print(Text(line))

    def show_forecast(self, forecast: Forecast) -> None:
        """Say what it will be."""
        self.follower.forecast(forecast)
        self.console.print(Text(str(forecast), style="dim"))

    def show_trial_started(self, config: TrialConfig) -> None:
        """Add a running trial."""
        self.follower.trial_started(config)

    def show_stage(self, trial: int, stage: str) -> None:
        """Show the stage."""
        self.follower.stage(trial, stage)

    def show_progress(self, trial: int, samples: int, total: int, rate: float) -> None:
        """Show how far the training is."""
        self.follower.progress(trial, samples, total, rate)

    def show_validation(self, trial: int, samples: int, value: float) -> None:
        """Show the value."""
        self.follower.validation(trial, samples, value)

    def show_trial_done(self, result: TrialResult, standing: Standing) -> None:
        """Move a trial above the live part."""
        assert self.plan is not None
        self.follower.trial_done(result, standing)
        self.results[result.number], self.figures = result, None
        self.console.print(trial_line(self.plan, result, self.console.width))

    def show_phase(self, name: str) -> None:
        """Show the phase."""
        self.follower.phase(name)

    def show_note(self, text: str) -> None:
        """Count it; it is shown at the end."""
        self.follower.note(text)

    def show_waits(self, text: str) -> None:
        """Say it now."""
        self.console.print(Text(text, style="yellow"))

    def show_interrupted(self) -> None:
        """Say it now."""
        self.console.print(Text(INTERRUPTED, style="yellow"))


def plan_tables(plan: Plan) -> Group:
    """Return a plan as tables: pipelines, compression, parameters with their origin, refusals, limits."""
    space = Table("parameter", "values", "default", "from", title="Space", title_justify="left")
    for name in plan.space:
        domain = plan.domain(name)
        space.add_row(name, str(domain), _value(domain.default), plan.origins.get(name, ""))
    settings = Table("setting", "value", title="Search", title_justify="left")
    for key, value in {
        "objective": ", ".join(plan.objectives),
        "effort": plan.effort,
        "sampler": plan.sampler,
        "early stopping": plan.early_stopping,
        "rows of a validation": plan.validation_rows or "all",
        "seed": plan.seed,
        "time": plan.time_text,
        "trials": plan.trials_limit or "as many as fit into the time",
        "limits": ", ".join(f"{limit.key} {limit.given}" for limit in plan.budget) or "none",
        "pipelines": ", ".join(pipeline.name for pipeline in plan.pipelines),
        "compression": ", ".join(variant.name for variant in plan.variants),
        "where it costs too much": ", ".join(variant.name for variant in plan.rescues) or "nothing else",
        "where none of them fits": ", ".join(variant.name for variant in plan.fallbacks) or "nothing else",
        "tolerance": plan.tolerance,
        "finalist seeds": plan.finalist_seeds,
        "folds": plan.folds,
        "trained along": ", ".join(one.task for one in plan.auxiliary) or "nothing",
        "ensemble": f"of up to {plan.ensemble} trials" if plan.ensemble > 1 else "none",
        "weights kept": format_bytes(plan.storage_bytes),
        "trackers": ", ".join(plan.trackers) or "none",
        "workers": f"{plan.threads_text}, on {plan.device}{', more where they pay' if plan.by_pace and plan.workers == 1 else ''}"
        + (f" of Ray nodes ({plan.address or 'local'})" if plan.executor == "ray" else ""),
        "processes of a training": plan.processes_text,
    }.items():
        settings.add_row(key, str(value))
    for name, option in plan.options.items():
        settings.add_row(f"task_options.{name}", str(option))
    parts: list[Any] = [settings, space]
    if plan.refusals:
        refused = Table("not used", "why", title="Refused", title_justify="left")
        for note in plan.refusals:
            refused.add_row(note.what, note.reason)
        parts.append(refused)
    for model, pipeline, reason in plan.illegal:
        parts.append(Text(f"{pipeline} is not tried with {model}: {reason}"))
    for pipeline, chain, reason in plan.unsuited:
        parts.append(Text(f"{chain} is not tried with {pipeline}: {reason}"))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in plan.warnings]
    return Group(*parts)


def forecast_tables(forecasts: Sequence[MemoryForecast]) -> Group:
    """Return what pipelines will need, and what each model will need where it is served, as tables."""
    models = dict.fromkeys(one.model for one in forecasts)
    served = [_serving_table(model, [one for one in forecasts if one.model == model]) for model in models]
    return Group(_training_table(forecasts), *served)


def _training_table(forecasts: Sequence[MemoryForecast]) -> Table:
    model = Column("model", overflow="fold")
    table = Table(model, "pipeline", "parameters", "trained", "training memory", "verdict")
    table.title, table.title_justify = "Training", "left"
    for one in forecasts:
        found = one.prediction
        peak = "unknown" if found.peak_bytes is None else format_bytes(found.peak_bytes)
        verdict: str = one.verdict or ""
        if one.batch:
            verdict += f"; batches of {one.batch[0]} do, {one.batch[1]} a step"
        table.add_row(
            one.model,
            one.pipeline,
            f"{found.parameters:,}" if found.parameters else "",
            f"{found.trainable_parameters:,}" if found.parameters else "",
            peak if found.exact else f"at least {peak}",
            verdict or found.reason,
        )
    return table


def _serving_table(model: str, forecasts: Sequence[MemoryForecast]) -> Table:
    """Return a row for each compression of a model; pipelines whose models are served alike share one."""
    table = Table("compression", "weights", "serving memory", "verdict")
    table.title, table.title_justify = f"Serving {model}", "left"
    pipelines: dict[tuple[str, ...], list[str]] = {}
    for one in forecasts:
        for name, served in one.serving.items():
            peak = served.prediction.peak_bytes
            row: tuple[str, ...] = (
                name,
                format_bytes(one.sizes[name]) if name in one.sizes else "measured",
                "measured" if peak is None else format_bytes(peak),
                "" if peak is None else served.verdict or "",
            )
            pipelines.setdefault(row, []).append(one.pipeline)
    shared = all(len(names) == len(forecasts) for names in pipelines.values())
    if not shared:
        table.add_column("trained by")
    for row, names in pipelines.items():
        table.add_row(*row, *(() if shared else (", ".join(names),)))
    if any("measured" in row for row in pipelines):
        table.caption, table.caption_justify = "measured: the search finds it out", "left"
    return table


def costs_table(costs: Mapping[str, Mapping[str, Mapping[str, float]]], limits: Sequence[BudgetLimit]) -> Table:
    """Return what models cost to serve before they are trained, beside what the budget allows, as a table."""
    shown = ["model_size_bytes", "latency_p50_ms", "latency_p95_ms", "inference_memory_bytes"]
    shown += [limit.column for limit in limits if limit.column not in {*shown, "train_memory_bytes"}]
    titles = [column_title(column) for column in shown]
    table = Table(Column("model", overflow="fold"), "compression", *titles, "verdict")
    table.title, table.title_justify = "Measured, untrained", "left"
    for model, variants in costs.items():
        for name, measured in variants.items():
            over = [key.replace("_", " ") for key in violations(measured, limits)]
            verdict = f"over {', '.join(over)}" if over else "fits" if limits else ""
            cells = (cost_text(column, measured.get(column)) for column in shown)
            table.add_row(model, name, *cells, verdict)
    return table


def times_table(times: Sequence[TrialTime]) -> Table:
    """Return how long trials take as a table."""
    table = Table("model", "pipeline", "a trial takes about", "trials that fit")
    workers = max((one.workers for one in times), default=1)
    table.title, table.title_justify = f"Time, {workers} workers" if workers > 1 else "Time", "left"
    for one in times:
        fit = "no limit yet" if one.trials is None else str(one.trials) if one.trials else "cut short"
        table.add_row(one.model, one.pipeline, format_seconds(one.seconds), fit)
    return table


def _headline(plan: Plan) -> str:
    sizes = plan.data["sizes"]
    limits = [plan.time_text, *(f"{limit.key} {limit.given}" for limit in plan.budget)]
    told = ", ".join(limit for limit in limits if limit)
    return (
        f"{plan.name}: {plan.task}, {sizes['train']} training, {sizes['validation']} validation, {sizes['test']} test rows; "
        f"{len(plan.models)} model{'s' if len(plan.models) > 1 else ''}, {len(plan.pipelines)} "
        f"pipeline{'s' if len(plan.pipelines) > 1 else ''}, {len(plan.variants)} "
        f"compression{'s' if len(plan.variants) > 1 else ''}" + (f"; {told}" if told else "")
    )


def _standing(standing: Standing, plan: Plan) -> str:
    words = []
    if standing.best is not None:
        words.append(
            f"best {plan.objective} {standing.best:.4f} (trial {standing.best_trial}, {standing.best_variant})"
        )
    if standing.default is not None:
        words.append(f"default {standing.default:.4f}")
    words.append(counts_text(standing.counts) or "no trial done")
    if standing.limit:
        words.append(f"{standing.finished} of {standing.limit} trials")
    expected = standing.expected_left if math.isfinite(standing.expected_left) else None
    budget = standing.seconds_left if math.isfinite(standing.seconds_left) else None
    words.append(time_left(expected, budget))
    return "; ".join(word for word in words if word)


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
