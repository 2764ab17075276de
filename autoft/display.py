"""What a search shows while it runs: live on a terminal, lines on a pipe, JSON where a program reads."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text

from autoft.estimates.forecast import MemoryForecast
from autoft.plan import BudgetLimit, Plan, violations
from autoft.quantities import format_bytes, format_seconds
from autoft.report.content import column_title, cost_text
from autoft.rundir import TrialConfig, TrialResult
from autoft.search import Forecast, Listener, Standing, TrialTime

__all__ = ["JsonListener", "LiveListener", "PlainListener", "choose_listener"]


def choose_listener(as_json: bool) -> Listener:
    """Return the listener for where standard output goes."""
    if as_json:
        return JsonListener(sys.stdout)
    console = Console()
    return LiveListener(console) if console.is_terminal else PlainListener(sys.stdout)


def describe(config: TrialConfig) -> str:
    """Return a configuration in a few words: model, pipeline and what differs most between trials."""
    model = config.model.rstrip("/").rsplit("/", 2)
    short = model[-1] if len(model) < 2 or model[-1] not in {"model", "best"} else model[-2]
    rate = next((value for name, value in config.params.items() if name.endswith(".learning_rate")), None)
    epochs = config.params.get("train.epochs")
    words = [short, config.pipeline, f"{epochs} epoch{'' if epochs == 1 else 's'}"]
    if isinstance(rate, float):
        words.append(f"lr {rate:.2g}")
    chosen = (config.params.get(name) for name in ("augment", "regularize"))
    words += [str(value) for value in chosen if value not in {None, "none"}]
    if config.kind == "seed":
        words.append(f"trial {config.parent} with seed {config.seed}")
    if config.kind in {"soup", "ensemble"}:
        what = "weights" if config.kind == "soup" else "predictions"
        return f"averaged {what} of trials {', '.join(map(str, config.members))}"
    if config.kind == "compress":
        return f"trial {config.members[0]} made smaller and trained again"
    if config.kind == "fold":
        words.append(f"trial {config.parent} on fold {config.fold + 1}")
    return ", ".join(words)


def outcome(result: TrialResult, plan: Plan) -> str:
    """Return how a trial ended, in one line."""
    if result.state != "complete":
        return f"{_STATES[result.state]}: {result.reason}" if result.reason else _STATES[result.state]
    done = [v for v in result.variants if v.state == "complete" and plan.objective in v.validation]
    if not done:
        return f"{plan.objective} {result.validation[plan.objective]:.4f}, {result.reason}"
    sign = 1 if plan.higher_is_better else -1
    best = max(done, key=lambda variant: sign * variant.validation[plan.objective])
    size, latency = best.costs.get("model_size_bytes"), best.costs.get("latency_p50_ms")
    text = f"{plan.objective} {best.validation[plan.objective]:.4f} ({best.name}"
    if size and latency:
        text += f", {format_bytes(size)}, {latency:.2f} ms"
    smallest = min(done, key=lambda variant: variant.costs.get("model_size_bytes", 0))
    costs = smallest.costs
    # Of a further fold only quality is measured.
    if smallest is not best and {"model_size_bytes", "latency_p50_ms"} <= set(costs):
        text += (
            f"); smallest {smallest.validation[plan.objective]:.4f} ({smallest.name}, "
            f"{format_bytes(costs['model_size_bytes'])}, {costs['latency_p50_ms']:.2f} ms"
        )
    return text + ")"


_STATES = {"complete": "complete", "pruned": "stopped early", "infeasible": "infeasible", "failed": "failed"}


def counts(standing: Standing) -> str:
    """Return how many trials ended in each way."""
    return ", ".join(f"{count} {_STATES[state]}" for state, count in standing.counts.items() if count)


class PlainListener(Listener):
    """One line for each thing that happens: for pipes and log files."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.plan = stream, None
        self.shown: dict[int, float] = {}

    plan: Plan | None

    def line(self, text: str) -> None:
        """Write one line."""
        print(text, file=self.stream, flush=True)

    def begin(self, plan: Plan, resumed: int) -> None:
        """Say what is searched."""
        self.plan = plan
        self.line(_headline(plan))
        if resumed:
            self.line(f"Going on: {resumed} trials are done.")

    def forecast(self, forecast: Forecast) -> None:
        """Say what it will be."""
        self.line(str(forecast))

    def trial_started(self, config: TrialConfig) -> None:
        """Say what a trial is."""
        self.line(f"trial {config.number} started: {describe(config)}")

    def progress(self, trial: int, samples: int, total: int, rate: float) -> None:
        """Say how far a training is, at most every 15 seconds."""
        now = time.monotonic()
        if now - self.shown.setdefault(trial, now) >= 15:
            self.shown[trial] = now
            self.line(f"trial {trial}: {samples} of {total} samples, {rate:.0f} a second")

    def trial_done(self, result: TrialResult, standing: Standing) -> None:
        """Say how a trial ended and how the search stands."""
        assert self.plan is not None
        seconds = format_seconds(result.seconds.get("total", 0.0))
        self.line(f"trial {result.number} ended after {seconds}: {outcome(result, self.plan)}")
        self.line(f"  {_standing(standing, self.plan)}")

    def phase(self, name: str) -> None:
        """Say the phase."""
        self.line(f"[{name}]")

    def note(self, text: str) -> None:
        """Say it."""
        self.line(f"note: {text}")


class JsonListener(Listener):
    """One JSON object a line, each with its ``event``: for programs."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def emit(self, event: str, **body: Any) -> None:
        """Write one object; what is no finite number is null, for JSON has no word for it."""
        line = json.dumps({"event": event, **_finite(body)}, allow_nan=False, default=str)
        print(line, file=self.stream, flush=True)

    def begin(self, plan: Plan, resumed: int) -> None:
        """Emit ``begin``."""
        self.emit("begin", name=plan.name, task=plan.task, objective=plan.objective, resumed=resumed)

    def forecast(self, forecast: Forecast) -> None:
        """Emit ``forecast``."""
        self.emit("forecast", **asdict(forecast))

    def trial_started(self, config: TrialConfig) -> None:
        """Emit ``trial_started``."""
        self.emit("trial_started", **config.model_dump(mode="json"))

    def stage(self, trial: int, stage: str) -> None:
        """Emit ``stage``."""
        self.emit("stage", trial=trial, stage=stage)

    def progress(self, trial: int, samples: int, total: int, rate: float) -> None:
        """Emit ``progress``."""
        self.emit("progress", trial=trial, samples=samples, total=total, rate=round(rate, 1))

    def validation(self, trial: int, samples: int, value: float) -> None:
        """Emit ``validation``."""
        self.emit("validation", trial=trial, samples=samples, value=value)

    def trial_done(self, result: TrialResult, standing: Standing) -> None:
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

    def phase(self, name: str) -> None:
        """Emit ``phase``."""
        self.emit("phase", name=name)

    def note(self, text: str) -> None:
        """Emit ``note``."""
        self.emit("note", text=text)


class LiveListener(Listener):
    """A live display: finished trials above, running ones with their stage and rate, and how the search stands."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.plan: Plan | None = None
        self.running: dict[int, dict[str, Any]] = {}
        self.standing: Standing | None = None
        self.now = ""
        self.began = time.monotonic()
        self.live: Live | None = None

    def __enter__(self) -> LiveListener:
        self.live = Live(get_renderable=self.render, console=self.console, refresh_per_second=4, transient=True)
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.live.stop()

    def render(self) -> Group:
        """Return the part that changes."""
        rows: list[Any] = []
        for number, state in sorted(self.running.items()):
            bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[rate]}"),
                expand=False,
            )
            config: TrialConfig = state["config"]
            bar.add_task(
                f"trial {number} [dim]{describe(config)}[/dim]  {state['stage']}",
                total=state["total"] or None,
                completed=state["samples"],
                rate=state["rate"],
            )
            rows.append(bar)
        line = Text(self.now or "starting", style="bold")
        if self.standing and self.plan:
            line.append("  " + _standing(self.standing, self.plan, time.monotonic() - self.told), style="not bold")
        elif self.plan and math.isfinite(self.plan.time_limit):
            left = self.plan.time_limit - (time.monotonic() - self.began)
            line.append(f"  {format_seconds(max(left, 0))} left", style="not bold")
        return Group(*rows, line)

    told = 0.0

    def begin(self, plan: Plan, resumed: int) -> None:
        """Say what is searched."""
        self.plan = plan
        self.console.print(_headline(plan), highlight=False)
        if resumed:
            self.console.print(f"Going on: {resumed} trials are done.", highlight=False)

    def forecast(self, forecast: Forecast) -> None:
        """Say what it will be."""
        if self.plan:
            self.plan = self.plan.model_copy(update={"time_limit": forecast.time_limit})
        self.console.print(str(forecast), highlight=False)

    def trial_started(self, config: TrialConfig) -> None:
        """Add a running trial."""
        self.running[config.number] = {"config": config, "stage": "load", "samples": 0, "total": 0, "rate": ""}

    def stage(self, trial: int, stage: str) -> None:
        """Show the stage."""
        if trial in self.running:
            self.running[trial].update(stage=stage, rate="" if stage != "train" else self.running[trial]["rate"])

    def progress(self, trial: int, samples: int, total: int, rate: float) -> None:
        """Show how far the training is."""
        if trial in self.running:
            self.running[trial].update(samples=samples, total=total, rate=f"{rate:.0f} samples/s")

    def trial_done(self, result: TrialResult, standing: Standing) -> None:
        """Move a trial above the live part."""
        assert self.plan is not None
        state = self.running.pop(result.number, None)
        self.standing, self.told = standing, time.monotonic()
        what = describe(state["config"] if state else result.config)
        style = {"complete": "green", "pruned": "yellow", "infeasible": "magenta", "failed": "red"}[result.state]
        text = Text(f"trial {result.number:>3} ", style="bold")
        text.append(outcome(result, self.plan), style=style)
        text.append(f"  {what}, {format_seconds(result.seconds.get('total', 0.0))}", style="dim")
        self.console.print(text)

    def phase(self, name: str) -> None:
        """Show the phase."""
        self.now = name

    def note(self, text: str) -> None:
        """Say it above the live part."""
        self.console.print(Text(f"note: {text}", style="yellow"))


def plan_tables(plan: Plan) -> Group:
    """Return a plan as tables: pipelines, compression, parameters with their origin, refusals, limits."""
    space = Table("parameter", "values", "default", "from", title="Space", title_justify="left")
    for name in plan.space:
        domain = plan.domain(name)
        space.add_row(*map(escape, (name, str(domain), _value(domain.default), plan.origins.get(name, ""))))
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
        "tolerance": plan.tolerance,
        "finalist seeds": plan.finalist_seeds,
        "folds": plan.folds,
        "trained along": ", ".join(one.task for one in plan.auxiliary) or "nothing",
        "ensemble": f"of up to {plan.ensemble} trials" if plan.ensemble > 1 else "none",
        "weights kept": format_bytes(plan.storage_bytes),
        "workers": f"{plan.workers} with {plan.threads} threads each, on {plan.device}",
    }.items():
        settings.add_row(key, escape(str(value)))
    for name, option in plan.options.items():
        settings.add_row(f"task_options.{name}", escape(str(option)))
    parts: list[Any] = [settings, space]
    if plan.refusals:
        refused = Table("not used", "why", title="Refused", title_justify="left")
        for note in plan.refusals:
            refused.add_row(escape(note.what), escape(note.reason))
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
            verdict or escape(found.reason),
        )
    return table


def _serving_table(model: str, forecasts: Sequence[MemoryForecast]) -> Table:
    """Return a row for each compression of a model; pipelines whose models are served alike share one."""
    table = Table("compression", "weights", "serving memory", "verdict")
    table.title, table.title_justify = escape(f"Serving {model}"), "left"
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
        table.add_row(*map(escape, row), *(() if shared else (", ".join(names),)))
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
        for name, figures in variants.items():
            over = [key.replace("_", " ") for key in violations(figures, limits)]
            verdict = f"over {', '.join(over)}" if over else "fits" if limits else ""
            cells = (cost_text(column, figures.get(column)) for column in shown)
            table.add_row(*map(escape, (model, name, *cells, verdict)))
    return table


def times_table(times: Sequence[TrialTime]) -> Table:
    """Return how long trials take as a table."""
    table = Table("model", "pipeline", "a trial takes about", "trials that fit")
    table.title, table.title_justify = "Time", "left"
    for one in times:
        fit = "no limit yet" if one.trials is None else str(one.trials) if one.trials else "cut short"
        table.add_row(one.model, one.pipeline, format_seconds(one.seconds), fit)
    return table


def _headline(plan: Plan) -> str:
    sizes = plan.data["sizes"]
    limits = ", ".join(f"{limit.key} {limit.given}" for limit in plan.budget)
    return (
        f"{plan.name}: {plan.task}, {sizes['train']} training, {sizes['validation']} validation, {sizes['test']} test rows; "
        f"{len(plan.models)} model{'s' if len(plan.models) > 1 else ''}, {len(plan.pipelines)} "
        f"pipeline{'s' if len(plan.pipelines) > 1 else ''}, {len(plan.variants)} compressions; "
        f"{plan.time_text}" + (f", {limits}" if limits else "")
    )


def _standing(standing: Standing, plan: Plan, since: float = 0.0) -> str:
    words = []
    if standing.best is not None:
        words.append(
            f"best {plan.objective} {standing.best:.4f} (trial {standing.best_trial}, {standing.best_variant})"
        )
    if standing.default is not None:
        words.append(f"default {standing.default:.4f}")
    words.append(counts(standing) or "no trial done")
    if standing.limit:
        words.append(f"{standing.finished} of {standing.limit} trials")
    words.append(f"{format_seconds(max(standing.seconds_left - since, 0.0))} left")
    return "; ".join(words)


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
