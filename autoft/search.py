"""The search itself: sends what comes next to workers, takes what comes of it, and ends in time.

The study lives in memory and is rebuilt from the run folder: ``trials/*/result.json`` is the only record, so a search
that was cut off goes on where it stopped.
"""

from __future__ import annotations

import itertools
import math
import re
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from autoft.agenda import Agenda
from autoft.checkpoints import share_done
from autoft.data.prepared import decide_rows, rows_decided
from autoft.disk import Disk
from autoft.errors import AutoftError, RunFolderError, SearchFailed
from autoft.evaluation import untouched_works
from autoft.exchange import Exchange
from autoft.executors import Event, Executor, executor_of
from autoft.executors.admission import WAITS
from autoft.follow_ups import FollowUps
from autoft.hardware import OtherLoad
from autoft.listener import Forecast, Listener, Standing, TrialTime
from autoft.pace import JUDGED_SHARE, LATE_SHARE, OTHER_PATIENCE, TRIAL_OVERHEAD_SECONDS, Pace, slower_beside_others
from autoft.plans.budgets import unmeasured, violations
from autoft.plans.plan import Plan, VariantPlan
from autoft.plans.screening import fits_budget, gentlest_fallback, known_fallbacks, too_much, with_fallbacks
from autoft.plugins import Catalog
from autoft.quantities import format_seconds
from autoft.rundir import (
    Figure,
    RunDir,
    Selection,
    TrialConfig,
    TrialResult,
    VariantResult,
    count_states,
    read_typed,
    write_json,
)
from autoft.study import GIVEN, Study
from autoft.trial import MOST_PARTS
from autoft.trials import Trials

__all__ = ["Interruption", "Search"]

CLOSING_SHARE = 0.8
"""Of the time kept for export, test and report: what they took on average, as docs/log.md says."""

ATTEMPTS = 3
"""At measuring a model before anything is trained, where the worker is lost over it."""

ELSEWHERE = 3
"""How often a trial is begun again whose machine was lost, since its training was last seen to have got further."""

WORD_SECONDS = 300.0
"""Between two words of a search that waits for machines."""

TABLE_SHARE = 0.02
"""Of the time of a search, how much writing ``trials.csv`` may take while it goes on; at its end it is written in any case."""

SHORT_TABLE = 0.05
"""Seconds that writing it may take after each trial."""

CHANGE_THE_BASE = frozenset({"pissa", "olora"})
"""Values of ``lora.start`` that change the weights that trials could share."""


class _NoMachine(SearchFailed):
    """It was waited for a machine until the search had to end."""


@dataclass
class Interruption:
    """Set by Ctrl-C: once, finish with what there is."""

    asked: bool = False


class Search:
    """One search in one run folder."""

    def __init__(
        self,
        run: RunDir,
        plan: Plan,
        catalog: Catalog,
        listener: Listener,
        interruption: Interruption,
        *,
        started: float,
        used: float = 0.0,
        exchange: Exchange | None = None,
    ) -> None:
        """Prepare a search.

        Args:
            run: the run folder; plan and data are written there.
            plan: what to search.
            catalog: what plugins offer, for the published settings.
            listener: told what happens.
            interruption: asked between events.
            started: :func:`time.monotonic` at the start of the command.
            used: seconds of the time budget that earlier calls used.
            exchange: with other searches of the same study; default: there are none.
        """
        # A copy of its own: all parts of the search follow it when steps have shown how long and with how many workers it goes on.
        self.run, self.plan, self.catalog = run, plan.model_copy(), catalog
        self.listener, self.interruption = listener, interruption
        self.started, self.used = started, used
        self.exchange = exchange or Exchange()
        self.trials = Trials(self.plan, run.results())
        self.table_due = -math.inf
        self.pace = Pace(self.plan, self.trials.results)
        self.follow_ups = FollowUps(self.plan, catalog, self.trials, self.pace, self._spare, listener.note)
        self.precision: dict[str, str] = {}
        self.study = Study(self.plan, self.exchange.seed)
        self.trained: dict[int, float] = {}
        """Of trials that were broken off, the share of the training that there is a checkpoint of."""
        self.stages: dict[int, str] = {}
        """At which stage each worker was last."""
        self.steps: dict[int, float] = {}
        """Seconds that a step takes, of each worker that is seen to train."""
        done = []
        for result in self.trials.told():
            if result.state == "complete" and self.trials.missing_folds(result):
                self.study.reopen(result)
            else:
                done.append((result, self.trials.values(result)))
                self.exchange.ended(*done[-1])
        self.study.replay_all(done)
        for result in self.trials.results.values():
            self._at_fold(result)
        self.agenda = Agenda(
            self.plan, catalog, self.trials, self.pace, self.study, self.exchange, self.follow_ups, self._spare
        )
        self.apart: dict[int, str] = {}
        """Trials that are run by themselves, with the reason why a worker was lost while they trained together."""
        self.worn: set[int] = set()
        """Workers that a trial was done in, of which they may have kept memory."""
        self.cramped: set[int] = set()
        """Trials that ran out of memory in less than the whole of a GPU, and are to have that."""
        self.machines_lost: dict[int, list[str]] = {}
        """By trial, how each machine was lost on which it got no further."""
        self.noted: set[str] = set()
        """What was said that may come up again and again."""
        self.disk = Disk(run, self.plan, self.trials, self._say_once)
        self.phase = "measure models"
        """Where the search is."""
        self.needed = ""
        """What a worker needs that found no machine with room."""
        self.waits_since: float | None = None
        """When it was found that none of the workers has a machine."""
        self.word_due = -math.inf
        """When that is said the next time."""
        self.began = False
        """A trial was sent to a worker, or a model was found not to fit: this call has used time of the budget."""
        self.trials.note_beaten()

    @property
    def ended(self) -> str:
        """Why nothing more is tried; empty as long as something is."""
        return self.agenda.ended

    # -- time ---------------------------------------------------------------------------------------------------

    def seconds_left(self) -> float:
        """Return the seconds of the time budget that are left for the whole command."""
        return self.plan.time_limit - self.used - (time.monotonic() - self.started)

    def reserve(self) -> float:
        """Return the seconds that export, test and report will need."""
        return self.pace.closing(untrained=untouched_works(self.plan, self.catalog.task(self.plan.task)))

    def tested_rows(self, selection: Selection) -> int:
        """Return of how many rows the test of a selected variant can be in the time that is left."""
        results, task = self.trials.results, self.catalog.task(self.plan.task)
        of = {(0, "none"), (selection.trial, selection.variant)}
        models = [v for r in results.values() for v in r.variants if (r.number, v.name) in of and v.folder]
        chosen = next(v for v in results[selection.trial].variants if v.name == selection.variant)
        tested = [chosen, *(v for v in models if v is not chosen)]
        return self.pace.tested_rows(self.seconds_left(), tested, untouched_works(self.plan, task))

    def _spare(self) -> float:
        """Return the seconds that are left for trials."""
        return self.seconds_left() - self.reserve()

    def expected_left(self) -> float:
        """Return the seconds until the command is thought to end, as :class:`Standing` has them.

        Trials that are limited in number end when the last one does, at the mean pace of those so far. Else the time is
        used up but for a rest that is too short for another trial, on average half of the shortest one.
        """
        left, limit = self.seconds_left(), self.plan.trials_limit
        closing = CLOSING_SHARE * self.reserve()
        told = self.trials.told()
        going = [config for config in self.trials.running.values() if not config.derived]
        following = sum(map(self.pace.expected, self.trials.running.values())) / max(1, len(self.trials.running))
        if not self.ended:
            took = [result.seconds["total"] for result in told if result.seconds.get("total")]
            shortest = self.pace.shortest()
            by_time = left - closing - (shortest / 2 if math.isfinite(shortest) else 0.0) - following
            if limit is not None:
                mean = statistics.fmean(took) if took else self.pace.estimate(self.plan.default_config())
                waiting = max(0, limit - self.trials.counted() - len(going))
                by_time = min(by_time, mean * math.ceil(waiting / self.plan.workers))
            following += max(0.0, by_time)
        following += self.follow_ups.expected(max(0.0, left - following - self.reserve()))
        return max(0.0, min(left, following + closing))

    # -- the loop -----------------------------------------------------------------------------------------------

    def go(self) -> None:
        """Search until the time or the trials are used up, then train the finalists with further seeds.

        Raises:
            SearchFailed: the first three trials failed alike, no worker starts, or none has a machine until the time is used up.
            RunFolderError: the disk is full.
        """
        limit = self.plan.trials_limit
        if self.trials.enough() and self.agenda.next_fold() is None:
            self.agenda.ended = f"all {limit} trials are done"
            return
        # Without a result there is nothing to export: the default is trained, however short the time.
        if self.trials.results and self.seconds_left() < self.reserve():
            self.agenda.ended = "the time is used up"
            return
        with self._executor(self.plan.workers) as executor:
            try:
                self._start(executor)
            except _NoMachine:
                # What there is is exported all the same, on this machine.
                if not self.trials.any_complete():
                    raise
                self.agenda.ended = "" if self.interruption.asked else "the time is used up"
                return
            self._go_on()
            waiting: list[TrialConfig] = []

            def following() -> TrialConfig | None:
                return waiting.pop(0) if waiting else None

            while True:
                self._phase("search")
                self._loop(executor, lambda: following() or self.agenda.next(), limit)
                followed = False
                for phase, follow in (
                    ("finalists", self.follow_ups.finalists),
                    ("average", self.follow_ups.averages),
                    ("compress", self.follow_ups.further_compression),
                ):
                    waiting += [] if self.interruption.asked else self.agenda.numbered(follow())
                    if waiting:
                        followed = True
                        self._phase(phase)
                        self._loop(executor, following, None)
                # What follows from trials may take less time than was kept for it: the rest is for further trials.
                over = not followed or self.interruption.asked or self.trials.enough()
                further = None if over else self.agenda.next()
                if further is None:
                    return
                waiting.append(further)

    def _go_on(self) -> None:
        """Have those trials come first that an earlier call was at, where there is a checkpoint of the training."""
        for folder in sorted(self.run.path.glob("trials/[0-9]*/checkpoint")):
            number = int(folder.parent.name)
            try:
                config, share = self.run.read_config(number), share_done(folder)
            except RunFolderError as error:
                self.listener.note(f"Trial {number}, which was broken off, is not gone on with: {error}")
                shutil.rmtree(folder.parent, ignore_errors=True)
                continue
            # What follows from others is asked for again, and finds its checkpoint by its number.
            other = config.derived or config.kind == "added"
            if other or self.trials.done_already(config) or self.agenda.illegal(config):
                continue
            self.agenda.leave_out(config)
            self.trained[number] = share
            self.trials.aside.append(self.study.fixed(config, number))
            self.listener.note(f"Trial {number} goes on from its checkpoint, at {share:.0%} of its training.")

    def add(self, config: TrialConfig) -> TrialResult | None:
        """Train one configuration that the user gave, to its end and on all folds, and return what came of it.

        Returns:
            None where an interruption ended it.

        Raises:
            SearchFailed: no worker starts.
            RunFolderError: the disk is full.
        """
        number = self.agenda.number()
        queue = self.agenda.queue = [config.model_copy(update={"number": number})]
        with self._executor(1) as executor:
            self._probe(executor, 1)
            self._phase("search")
            self._loop(executor, lambda: queue.pop(0) if queue else self.agenda.next_fold(number), None)
        return self.trials.results.get(number)

    def times(self) -> list[TrialTime]:
        """Return what the default configuration of each pipeline over each model takes, from a few real steps of each.

        Raises:
            SearchFailed: no worker starts, or one ends.
        """
        found = []
        with self._executor(1) as executor:
            probed = self._probe(executor, 1)
            default, workers, slower = self.plan.default_config(), self.plan.workers, dict.fromkeys(probed, 1.0)
            if self.plan.by_pace and workers == 1:
                workers, threads, _ = self._workers_that_pay(probed)
                if workers > 1:
                    slower = {name: slower_beside_others(figures, threads) for name, figures in probed.items()}
            for model, pipeline in itertools.product(self.plan.models, self.plan.pipelines):
                params = self.plan.default_params(pipeline.name)
                config = default.model_copy(update={"model": model.name, "pipeline": pipeline.name, "params": params})
                if self.agenda.illegal(config):
                    continue
                event = self._asked(executor, "timed", "time", model=model.name, pipeline=pipeline.name)
                self.pace.seconds_per_sample[f"{model.name} {pipeline.name}"] = (
                    event.body["seconds"] * slower[model.name]
                )
                seconds = self.pace.estimate(config)
                # As if all began anew: what was tried here takes nothing of the budget.
                room = max(0.0, self.plan.time_limit - self.reserve())
                count = int(room // seconds) * workers if math.isfinite(room) else None
                found.append(TrialTime(model.name, pipeline.name, seconds, count, workers))
        return found

    def served(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return what each model costs to serve, by compression, untrained.

        Raises:
            SearchFailed: no worker starts, or one ends.
        """
        with self._executor(1) as executor:
            variants = [variant.name for variant in self.plan.variants]
            return {model.name: self._served(executor, model.name, variants) for model in self.plan.models}

    def _served(self, executor: Executor, model: str, variants: Sequence[str]) -> dict[str, dict[str, float]]:
        costs: dict[str, dict[str, float]] = self._asked(
            executor, "screened", "screen", model=model, variants=list(variants)
        ).body["costs"]
        return costs

    def _executor(self, workers: int) -> Executor:
        return executor_of(self.plan, self.run, workers, OTHER_PATIENCE * self.plan.patience)

    def _start(self, executor: Executor) -> None:
        self._phase("measure models")
        models = [model.name for model in self.plan.models]
        probed = self._probe(executor, self.plan.workers)
        if self.plan.by_pace and self.plan.workers == 1:
            self._take_workers(executor, probed)
        default = self.plan.default_config()
        self._check_by_fewer(executor)
        seconds = self.pace.estimate(default)
        if self.plan.time_multiple and math.isinf(self.plan.time_limit):
            self.plan.time_limit = self.plan.time_multiple * seconds
            write_json(self.run.plan, self.plan.model_dump(mode="json"))
        mean = statistics.fmean(self.pace.estimate(default.model_copy(update={"model": name})) for name in models)
        room = max(0.0, self._spare())
        count = int(room // mean) if room < seconds + mean else 1 + int((room - seconds) // mean)
        if self.plan.trials_limit:
            count = min(count, self.plan.trials_limit)
        forecast = Forecast(
            trial_seconds=seconds,
            configurations=max(1, count) * self.plan.workers,
            memory_bytes=max(figures["memory_bytes"] for figures in probed.values()),
            disk_bytes=self.disk.needed(),
            precision=self.precision[default.model],
            time_limit=self.plan.time_limit,
            whole=seconds <= room,
            closing_seconds=self.reserve(),
        )
        write_json(self.run.path / "forecast.json", {**forecast.__dict__, "models": probed})
        self.listener.forecast(forecast)
        self.agenda.queue_chains(forecast.configurations)
        self.disk.check()
        self._screen(executor)
        self.agenda.put_the_yardstick_second()

    def _probe(self, executor: Executor, workers: int) -> dict[str, dict[str, Any]]:
        """Wait for the workers, those left out for which no machine has room, and return what a step of each model takes."""
        ready, waiting = set[int](), set[int]()
        while not ready or len(ready | waiting) < workers:
            event = self._await(executor)
            (ready.add if event.kind == "ready" else ready.discard)(event.worker)
            (waiting.add if event.kind == "waiting" else waiting.discard)(event.worker)
        self.pace.startup = max(self.pace.startup, executor.startup)
        self.pace.imports = executor.imports or self.pace.imports
        probed: dict[str, dict[str, Any]] = {
            model.name: self._asked(executor, "probed", "probe", model=model.name).body["figures"]
            for model in self.plan.models
        }
        for name, figures in probed.items():
            self.precision[name] = figures["precision"]
        self.pace.begin(probed)
        return probed

    def _check_by_fewer(self, executor: Executor) -> None:
        """Have checkpoints judged by fewer rows where one validation would take much of the time; once, for they are compared."""
        rows = self.pace.checked_rows()
        if self.trials.results or self.exchange.shared or rows == self.pace.rows_at_checkpoint:
            return
        self.plan.validation_rows = rows
        self._tell_plan(executor)

    def _tell_plan(self, executor: Executor) -> None:
        """Have all workers follow the plan as it is now."""
        write_json(self.run.plan, self.plan.model_dump(mode="json"))
        for worker in range(self.plan.workers):
            self._send_plan(executor, worker)

    def _send_plan(self, executor: Executor, worker: int) -> None:
        executor.send(worker, "plan", plan=self.plan.model_dump(mode="json"))

    def _take_workers(self, executor: Executor, probed: Mapping[str, Mapping[str, Any]]) -> None:
        """Take as many workers as pay, by what steps of the first model take with each number of threads."""
        workers, threads, gain = self._workers_that_pay(probed)
        if workers == 1:
            return
        self.plan.workers, self.plan.train_threads = workers, threads
        write_json(self.run.plan, self.plan.model_dump(mode="json"))
        self.pace.slow_down(probed, threads)
        self._send_plan(executor, 0)
        executor.grow(workers, threads)
        alone = max(map(int, probed[self.plan.default_config().model]["by_threads"]))
        self.listener.note(
            f"{workers} workers with {threads} thread{'s' if threads > 1 else ''} each train about {gain:.1f} times as much here "
            f"as one with {alone}. A search that can be repeated to the bit takes executor.workers: 1."
        )

    def _workers_that_pay(self, probed: Mapping[str, Mapping[str, Any]]) -> tuple[int, int, float]:
        """Return how many workers pay, with how many threads each, and how many times as much they train as one."""
        limit = self.plan.trials_limit
        trials = None if limit is None else max(1, limit - self.trials.counted())
        return self.pace.workers_that_pay(probed, self._spare(), trials)

    def _screen(self, executor: Executor) -> None:
        """Find what cannot fit the budget before anything is trained: costs do not depend on what weights learned."""
        if not self.plan.served_limits:
            return
        self._phase("screen")
        if any(limit.column.startswith("latency") for limit in self.plan.served_limits):
            # A worker that still starts takes what a model needs that is measured beside it.
            while executor.placed - executor.ready:
                self._await(executor)
        costs = read_typed(self.run.screening, dict[str, dict[str, dict[str, Figure]]], {})
        models = [model.name for model in self.plan.models]
        for model in models:
            # Of an earlier call, with other limits, what is limited now may not be known.
            known = costs.get(model, {}).values()
            if model not in costs or any(unmeasured(one, self.plan.served_limits) for one in known):
                costs[model] = self._served(executor, model, [variant.name for variant in self.plan.variants])
        self.agenda.too_much = {model: too_much(self.plan, costs[model]) for model in models}
        self._fall_back(executor, costs)
        write_json(self.run.screening, costs)
        self.agenda.too_much = {model: too_much(self.plan, costs[model]) for model in models}
        if self.agenda.nothing_fits():
            self._record_misses(models)

    def _fall_back(self, executor: Executor, costs: dict[str, dict[str, dict[str, float]]]) -> None:
        """Have models that fit by none of their variants made in one more way, as far as there is one that fits.

        Args:
            executor: measures them.
            costs: by model and variant; what is measured here is added.
        """
        models = [model.name for model in self.plan.models]
        hopeless = [model for model in models if self.agenda.never_fits(model)]
        for model in hopeless:
            config = self.plan.default_config().model_copy(update={"model": model})
            # Where another model fits, one that cannot be trained in time is none to measure.
            if len(hopeless) == len(models) or self.pace.estimate(config) <= self._spare():
                gentlest_fallback(self.plan, partial(self._fits_untrained, executor, model, costs[model]))
        taken = known_fallbacks(self.plan, costs)
        if not taken:
            return
        self.plan.variants = with_fallbacks(self.plan, taken).variants
        self._tell_plan(executor)
        for name, needy in taken.items():
            self.listener.note(
                f"{', '.join(needy)}: none of the compressions of effort {self.plan.effort} fits the budget; {name} does, and is made too"
            )

    def _fits_untrained(
        self, executor: Executor, model: str, costs: dict[str, dict[str, float]], variant: VariantPlan
    ) -> bool:
        """Say whether a compression of a model fits the budget; it is measured, where its costs are not known."""
        if variant.name not in costs:
            costs.update(self._served(executor, model, [variant.name]))
        return fits_budget(self.plan, costs, variant)

    def _record_misses(self, models: Sequence[str]) -> None:
        """Nothing can fit: write each model's default as infeasible, with what was measured, and train nothing."""
        self.agenda.queue = []
        self.agenda.ended = "no compression of any model fits the budget, whatever is trained"
        for model in models:
            config = self.plan.default_config().model_copy(update={"number": self.agenda.number(), "model": model})
            if self.trials.done_already(config):
                continue
            variants = [
                VariantResult(
                    name=name,
                    state="infeasible",
                    costs=costs,
                    violations=violations(costs, self.plan.budget),
                    reason="over the budget",
                )
                for name, costs in self.agenda.too_much[model].items()
            ]
            result = TrialResult(
                number=config.number,
                state="infeasible",
                config=config,
                reason="no compression of this model fits the budget; measured before training",
                violations=min((v.violations for v in variants), key=lambda over: sum(over.values())),
                variants=variants,
            )
            self._record(result)

    def _await(self, executor: Executor) -> Event:
        """Return the next event; a worker that is lost is replaced, and one that does not start ends the search."""
        while (event := executor.poll(1.0)) is None:
            self._tell_of_waiting(executor)
            if self.waits_since is not None and (self.interruption.asked or self._time_to_wait() <= 0):
                raise self._no_machine()
        if event.kind in {"waiting", "note"}:
            self._note_once(event)
        if event.kind == "fatal":
            raise _fatal(event)
        if event.kind == "restarted":
            self._note_restart(event)
        if event.kind == "lost":
            self.listener.note(
                f"A worker was lost while models were measured, and is replaced: {event.body['reason']}."
            )
            self._renew(executor, event.worker)
        return event

    def _asked(self, executor: Executor, answer: str, op: str, **body: Any) -> Event:
        """Ask the first worker that is ready, and return its answer; where it is lost over it, another one is asked.

        Raises:
            SearchFailed: as many as :data:`ATTEMPTS` are lost over it, or one does not start.
        """
        lost = 0
        while lost < ATTEMPTS:
            worker = min(executor.ready, default=0)
            executor.send(worker, op, **body)
            executor.time_limits = {worker: self.pace.patience(TRIAL_OVERHEAD_SECONDS)}
            event = self._await(executor)
            while (event.worker, event.kind) not in {(worker, answer), (worker, "lost")}:
                event = self._await(executor)
            if event.kind == answer:
                executor.time_limits = {}
                return event
            # Machines may come and go as often as they like.
            lost += not event.body.get("machine_lost")
        raise SearchFailed(
            f"{body['model']} cannot be measured; {ATTEMPTS} workers were lost over it: {event.body['reason']}\n"
            "Once the cause is gone, the same command goes on with what there is"
        )

    def _note_restart(self, event: Event) -> None:
        self.listener.note(f"A worker was lost while it started, and is started again: {event.body['reason']}.")

    def _note_once(self, event: Event) -> None:
        """Pass on what an executor says of its machines; each worker may say it."""
        if event.kind == "waiting":
            self.needed = event.body["needs"]
        self._say_once(event.body["text"])

    def _say_once(self, text: str) -> None:
        if text not in self.noted:
            self.noted.add(text)
            self.listener.note(text)

    def _phase(self, name: str) -> None:
        self.phase = name
        self.listener.phase(name)

    def _tell_of_waiting(self, executor: Executor) -> None:
        """Say every few minutes that nothing goes on for want of a machine, what it takes, and what ends the waiting."""
        if not self.needed:
            return
        if executor.placed:
            if self.waits_since is not None:
                self.listener.phase(self.phase)
            self.needed, self.waits_since = "", None
            return
        now = time.monotonic()
        if self.waits_since is None:
            self.waits_since = self.word_due = now
            self.listener.phase("wait for machines")
        if now >= self.word_due:
            self.word_due = now + WORD_SECONDS
            ends = "finishes with what there is" if self.trials.any_complete() else "ends it"
            left = self._time_to_wait()
            limit = f", and so does budget.time in {format_seconds(left)}" if math.isfinite(left) else ""
            self.listener.waits(
                f"No machine of the cluster has room for a worker, which needs {self.needed}. The search goes on as soon as one "
                f"has; Ctrl-C {ends}{limit}."
            )

    def _time_to_wait(self) -> float:
        """Return for how many seconds it may be waited for machines."""
        return self.seconds_left() - (self.reserve() if self.trials.results else 0.0)

    def _no_machine(self) -> _NoMachine:
        until = "the search was stopped" if self.interruption.asked else "budget.time was used up"
        # What no trial was begun in does not count.
        more = "" if self.interruption.asked or not (self.began or self.used) else ", with more of budget.time"
        return _NoMachine(
            f"no machine of the cluster had room for a worker until {until}; once one has, the same command "
            f"goes on{more}"
        )

    def _patience(self, worker: int) -> float:
        """Return for how many seconds a worker may tell of no progress.

        Where a single training is seen to go on, by its steps and validations; else by what all but the training took in
        trials before, for within a stage as an export there may be nothing to tell of.
        """
        config, *mates = self.trials.of(worker)
        if self.stages.get(worker) == WAITS:
            return math.inf
        if worker in self.steps and not mates and self.stages.get(worker) == "train":
            return self.pace.patience_in_training(config.model, self.steps[worker])
        if config.kind in {"soup", "ensemble", "compress"}:
            return self.pace.patience(self.pace.expected(config))
        return self.pace.patience_after_training(config.model, 1 + len(mates))

    def _loop(self, executor: Executor, propose: Callable[[], TrialConfig | None], limit: int | None) -> None:
        idle = set(range(self.plan.workers))
        dry = False
        crowded = math.inf
        """With so many trials at work the disk has no room for a further one."""
        changed: int | None = None

        def another() -> TrialConfig | None:
            going = sum(not config.derived for config in self.trials.going())
            if limit is not None and self.trials.counted() + going >= limit and self.agenda.next_fold() is None:
                self.agenda.ended = f"all {limit} trials are done"
                return None
            return propose()

        while True:
            while (free := idle & executor.placed) and (self.trials.aside or not dry) and not self.interruption.asked:
                at_work = len(self.trials.at_work())
                fit = self.disk.further_trials() if at_work < crowded else 0
                if at_work and not fit:
                    crowded = at_work
                    break
                config = self._set_aside() or another()
                if config is None:
                    dry = True
                    break
                # Where there is no room for the first one either, that is told.
                self._send(executor, min(free), *self._with_mates(config, another)[: max(1, fit)])
                idle.discard(min(free))
            if not self.trials.running and (free or not self._waits_for_machines(dry)):
                return
            if self.interruption.asked and self.trials.any_complete():
                for worker in list(self.trials.running):
                    executor.stop(worker)
                for config in self.trials.going():
                    self.study.forget(config.number)
                    self.exchange.taken_back(config.number)
                    self.run.discard(config.number)
                self.trials.running.clear()
                self.trials.mates.clear()
                self.trials.aside.clear()
                return
            if changed is None:
                executor.time_limits = {worker: self._patience(worker) for worker in self.trials.running}
            elif changed in self.trials.running:
                # Of thousands of workers only the one that spoke is looked at anew.
                executor.time_limits[changed] = self._patience(changed)
            event = executor.poll(0.25)
            self._tell_of_waiting(executor)
            if event is not None:
                self._handle(executor, event, idle)
                if event.kind == "done":
                    dry, crowded = False, math.inf
            if self.plan.device == "cuda" and (event is None or event.kind == "done"):
                self._give_up_late(executor, idle)
            changed = event.worker if event is not None and event.kind in {"stage", "progress", "validation"} else None

    def _waits_for_machines(self, dry: bool) -> bool:
        """Say whether there is something to do, and time for it, once any worker has a machine again.

        Raises:
            SearchFailed: the time is used up, or the user asked for an end, and there is nothing to end with.
        """
        if dry and not self.trials.aside:
            return False
        if not self.trials.results and (self.interruption.asked or self._time_to_wait() <= 0):
            raise self._no_machine()
        if self.interruption.asked:
            return False
        if self.trials.results and self.seconds_left() <= self.reserve():
            self.agenda.ended = "the time is used up"
            # Trials that had begun are told as failed.
            self._set_aside()
            return False
        return True

    def _handle(self, executor: Executor, event: Event, idle: set[int]) -> None:
        body = event.body
        match event.kind:
            case "stage":
                self.steps.pop(event.worker, None)
                self._limit_memory(executor, event.worker, body["stage"])
                self.listener.stage(body["trial"], body["stage"])
            case "progress":
                batch = self._trial_of(event).params.get("train.batch_size")
                if body["rate"] > 0:
                    self.steps[event.worker] = int(batch or 1) / body["rate"]
                self.listener.progress(body["trial"], body["samples"], body["total"], body["rate"])
            case "validation":
                config = self._trial_of(event)
                point = body["point"]
                value = point["validation"][self.plan.objective]
                self._judge_by_fewer(config, point["validate_seconds"])
                self.listener.validation(config.number, point["samples"], value)
                stop = self.study.behind(config, point["epoch"], value)
                stop = stop or self.interruption.asked
                executor.send(event.worker, "decide", stop=stop, decided=rows_decided(self.run.data))
            case "done":
                self.worn.add(event.worker)
                config = self._trial_of(event)
                left = [other for other in self.trials.leave(event.worker) if other != config]
                if left:
                    self.trials.begin(event.worker, left)
                else:
                    idle.add(event.worker)
                self._finish(self.run.read_result(config.number))
            case "renew":
                if body.get("whole"):
                    self.cramped.add(body["trial"])
                self._renew(executor, event.worker)
                self._send(executor, event.worker, *self.trials.of(event.worker))
            case "lost":
                self._replace(executor, event, idle)
            case "restarted":
                self._note_restart(event)
            case "waiting" | "note":
                self._note_once(event)
            case "fatal":
                raise _fatal(event)

    def _judge_by_fewer(self, config: TrialConfig, seconds: float) -> None:
        """Decide by how many rows finished models are judged, once the first validation has shown what a row takes.

        What was judged is compared with all that is judged later, so that no later training changes it.
        """
        plan, there = self.plan, self.plan.rows_there("validation")
        if "validation" in rows_decided(self.run.data) or self.exchange.shared or self.trials.any_scored():
            return
        rows = self.pace.judged_rows(config.model, seconds / max(1, self.pace.rows_at_checkpoint))
        decide_rows(self.run.data, "validation", rows)
        if rows == there:
            return
        plan.data = plan.of_rows({"validation": rows})
        write_json(self.run.plan, plan.model_dump(mode="json"))
        self.listener.note(
            f"Models are judged by {rows} of the {there} validation rows, the same for all: more would take more than "
            f"{JUDGED_SHARE:.0%} of the time for each trial."
        )

    def _replace(self, executor: Executor, event: Event, idle: set[int]) -> None:
        """Start a worker anew that was lost, and have its trials begun again or told as failed."""
        body, lost, worn = event.body, self.trials.leave(event.worker), event.worker in self.worn
        self._renew(executor, event.worker)
        idle.add(event.worker)
        if not lost:
            return
        if body.get("machine_lost"):
            self._begin_elsewhere(lost, body["reason"])
            return
        if len(lost) > 1:
            # Whose fault it was shows when each is run by itself.
            for config in lost:
                self.run.discard(config.number)
                self.apart[config.number] = body["reason"]
                self.trials.aside.append(config)
            numbers = ", ".join(str(config.number) for config in lost)
            self.listener.note(f"Trials {numbers} are begun again, each by itself: {body['reason']}.")
            return
        (config,) = lost
        killed = body["code"] == -9 and not body.get("hung")
        stage = self.stages.get(event.worker)
        again = self._in_more_parts(config, stage) if killed else None
        how = f"with each batch in {again.parts} parts" if again is not None else "in a new process"
        if again is None and killed and worn:
            # What earlier trials left in the process may be what was missing.
            again = config
        if again is not None:
            self.listener.note(f"Trial {again.number} is begun again {how}: {body['reason']}.")
            self.run.discard(again.number)
            idle.discard(event.worker)
            self._send(executor, event.worker, again)
            return
        result = TrialResult(
            number=config.number,
            state="infeasible" if killed else "failed",
            reason=body["reason"] + (f"; stage: {stage}" if stage else ""),
            config=config,
            violations={"memory": 1.0} if killed else {},
        )
        self.run.discard(config.number)
        self._record(result)

    def _renew(self, executor: Executor, worker: int) -> None:
        """Start a worker anew."""
        executor.stop(worker)
        executor.start(worker)
        self.worn.discard(worker)

    def _begin_elsewhere(self, configs: Sequence[TrialConfig], reason: str) -> None:
        """Have trials begun again whose machine was lost: nothing of it is theirs, unless it befalls them again and again.

        A long training on machines that come and go gets further from one checkpoint to the next, and one that its machines do not
        bear does not.
        """
        again = []
        for config in configs:
            self.run.discard(config.number)
            if self._got_further(config.number):
                self.machines_lost.pop(config.number, None)
            lost = self.machines_lost.setdefault(config.number, [])
            lost.append(reason)
            if len(lost) <= ELSEWHERE:
                again.append(config)
                continue
            reason = f"{reason}; {len(lost)} machines in a row were lost on which it got no further"
            self._fail(config, reason)
        self.trials.aside += again
        if again:
            numbers = ", ".join(str(config.number) for config in again)
            many = len(again) > 1
            self.listener.note(
                f"Trial{'s' if many else ''} {numbers} {'are' if many else 'is'} begun again on another machine: {reason}."
            )

    def _got_further(self, number: int) -> bool:
        """Keep how much of a training that was broken off is done, and say whether that is more than it was."""
        before, self.trained[number] = self.trained.get(number, 0.0), 0.0
        with suppress(RunFolderError):
            self.trained[number] = share_done(self.run.checkpoint(number))
        return self.trained[number] > before

    def _give_up_late(self, executor: Executor, idle: set[int]) -> None:
        """Give up trials that wait for the memory of a GPU, once too little time is left for them.

        The default and what belongs to other trials are done all the same.
        """
        left = self._spare()
        for worker, first in list(self.trials.running.items()):
            waits = self.stages.get(worker) == WAITS and bool(self.trials.results)
            if not waits or first.kind in {"default", "fold"} or self.pace.expected(first) <= left:
                continue
            self._renew(executor, worker)
            idle.add(worker)
            for config in self.trials.leave(worker):
                self.run.discard(config.number)
                self._fail(config, "other trials had the memory of the GPU until too little time was left for this one")

    def _limit_memory(self, executor: Executor, worker: int, stage: str) -> None:
        """Have a worker ended whose training takes more than the budget allows; other stages have no limit of their own."""
        self.stages[worker] = stage
        limit = self.plan.train_memory
        executor.memory_limits.pop(worker, None)
        # On a GPU the limit is on its memory.
        if stage == "train" and limit is not None and self.plan.device == "cpu":
            executor.memory_limits[worker] = limit

    def _in_more_parts(self, config: TrialConfig, stage: str | None) -> TrialConfig | None:
        """Return what computes the same with less memory in each step, for a trial that was ended at a stage, or None."""
        parts = 2 * config.parts
        if stage != "train" or parts > min(MOST_PARTS, int(config.params["train.batch_size"] or 1)):
            return None
        return config.model_copy(update={"parts": parts})

    def _send(self, executor: Executor, worker: int, *configs: TrialConfig) -> None:
        """Send trials to a worker; several train together."""
        if not self.trials.running:
            self.disk.check()
        self.began = True
        self.trials.begin(worker, configs)
        self.stages.pop(worker, None)
        self.steps.pop(worker, None)
        requests = []
        for config in configs:
            # Where it is begun again, the best that it came to before is not what it has after its first quarter now.
            self.study.withdraw(config.number)
            folder = self.run.trial(config.number)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "config.json", config.model_dump(mode="json"))
            self.listener.trial_started(config)
            if not config.derived:
                self.exchange.started(config)
            requests.append(self._request(config, len(configs)))
        if len(requests) == 1:
            executor.send(worker, "trial", **requests[0])
        else:
            executor.send(worker, "trials", trials=requests)

    def _request(self, config: TrialConfig, together: int) -> dict[str, Any]:
        """Return what a worker is told of a trial, which is one of so many that train together."""
        pace = self.pace
        # A training that is ended validates once more.
        after = pace.overhead_of(config.model) + pace.rows_at_checkpoint * pace.validate_per_row.get(config.model, 0.0)
        seconds = max(5.0, self._spare() - together * after)
        left = self._spare() + LATE_SHARE * self.plan.time_limit
        return {
            "config": config.model_dump(mode="json"),
            "precision": self.precision,
            "decided": rows_decided(self.run.data),
            "screened": self.agenda.too_much.get(config.model, {}),
            "reached": self.trials.reached(config),
            "competes": self.trials.competes(config),
            "whole": config.number in self.cramped,
            "seconds": seconds if math.isfinite(seconds) else None,
            "left": left if math.isfinite(left) else None,
            "expected": self.pace.expected(config),
        }

    # -- together -----------------------------------------------------------------------------------------------

    def _trial_of(self, event: Event) -> TrialConfig:
        """Return the trial that a worker speaks of."""
        there = self.trials.of(event.worker)
        return next((config for config in there if config.number == event.body.get("trial")), there[0])

    def _set_aside(self) -> TrialConfig | None:
        """Return the next proposal that waits and still fits into the time, or None; others are given up.

        Those of a lost worker have begun: what is given up of them has failed, as where a worker had that one alone.
        """
        while self.trials.aside:
            config = self.trials.aside[0]
            left = (1 - self.trained.get(config.number, 0.0)) * self.pace.estimate(config)
            room = self.agenda.time_for(config, self.agenda.room())
            if config.derived or not self.trials.results or left <= room:
                return config
            self.trials.aside.pop(0)
            self.trained.pop(config.number, None)
            lost = [self.apart[config.number]] if config.number in self.apart else self.machines_lost.get(config.number)
            if lost:
                self._fail(config, f"{lost[-1]}; no time is left to begin it again")
            else:
                self.study.forget(config.number)
        return None

    def _kin(self, config: TrialConfig) -> tuple[str, str | None] | None:
        """Return what trials that train together have in common, or None for one that trains by itself.

        It is LoRA over a model that it leaves as it is, with one call of the model a step.
        """
        plan, params = self.plan, config.params
        if plan.together < 2 or config.kind in {*GIVEN, "soup", "ensemble", "compress"}:
            return None
        pipeline = plan.pipeline(config.pipeline)
        if pipeline.adapter != "lora" or params.get("lora.start") in CHANGE_THE_BASE or config.parts > 1:
            return None
        if (params.get("regularize") or "none") != "none" or params.get("train.gradient_checkpointing"):
            return None
        if any(plan.auxiliary_steps(params)) or config.number in self.apart:
            return None
        return config.model, pipeline.quantizer

    def _with_mates(self, config: TrialConfig, another: Callable[[], TrialConfig | None]) -> list[TrialConfig]:
        """Return a trial with those that train together with it: of the proposals that wait, and of further ones.

        Proposals are taken as they come, and those of another kind wait for their turn: as many as train together at most.
        """
        kin = self._kin(config)
        if kin is None:
            return [config]
        if config not in self.trials.aside:
            self.trials.aside.insert(0, config)
        waiting = [one for one in self.trials.aside if one is not config and self._kin(one) == kin]
        found = [config, *waiting[: self.plan.together - 1]]
        while len(found) < self.plan.together > len(self.trials.aside) - len(found):
            room = self.agenda.room() if self.trials.results else math.inf
            if sum(self.pace.estimate(one) for one in found) > room:
                break
            further = another()
            if further is None:
                break
            self.trials.aside.append(further)
            if self._kin(further) == kin:
                found.append(further)
        return found

    def _fail(self, config: TrialConfig, reason: str) -> None:
        """Have a trial fail that no worker ends."""
        self._record(TrialResult(number=config.number, state="failed", reason=reason, config=config))

    def _record(self, result: TrialResult) -> None:
        """Take a trial as done of which no worker writes the result."""
        self.run.write_result(result)
        self._finish(result)

    def _finish(self, result: TrialResult) -> None:
        self.began = True
        self.trials.add(result)
        self.pace.learn(result)
        self._tell(result)
        slow = (variant for variant in result.variants if any(key.startswith("latency") for key in variant.violations))
        if any(variant.other_load >= OtherLoad.BUSY for variant in slow):
            self._say_once(
                f"Other processes took more than {OtherLoad.BUSY:.0%} of the processors while models were measured that are over the limit "
                "on latency: on a quiet machine they are faster."
            )
        if result.state == "infeasible":
            self.study.withdraw(result.number)
        self.disk.drop_weights()
        self.trials.note_beaten()
        self._write_table()
        write_json(self.run.path / "time.json", {"seconds": self.used + time.monotonic() - self.started})
        self.listener.trial_done(result, self.standing())
        self._stop_if_all_fail()

    def _tell(self, result: TrialResult) -> None:
        """Tell the study how a configuration ended: with several folds, once it is done on all of them or falls behind."""
        config = result.config
        if (
            self.plan.folds == 1
            or (config.derived and config.kind != "fold")
            or (result.state != "complete" and not config.repeats)
        ):
            self._tell_all(result)
            return
        first = result if config.parent is None else self.trials.results[config.parent]
        if result.state != "complete" and first.number != 0:
            first.state, first.reason = result.state, f"fold {config.fold + 1}: {result.reason}"
        elif self._at_fold(result):
            done = 1 + len(self.trials.repeats(first))
            first.state, first.reason = "pruned", f"behind after {done} of {self.plan.folds} folds"
            self.listener.note(f"Trial {first.number} is given up: {first.reason}.")
        if first.state == "complete" and self.trials.missing_folds(first):
            return
        self.run.write_result(first)
        self._tell_all(first)

    def _tell_all(self, result: TrialResult) -> None:
        """Tell the study, and other searches, how a configuration ended."""
        values = self.trials.values(result)
        self.study.tell(result, values)
        if not result.config.derived:
            self.exchange.ended(result, values)

    def _at_fold(self, result: TrialResult) -> bool:
        """Report what a configuration scored on a fold, and say whether it should be given up."""
        first = result.config.number if result.config.parent is None else result.config.parent
        config = result.config
        if (
            self.plan.folds == 1
            or (config.derived and config.kind != "fold")
            or self.plan.objective not in result.validation
        ):
            return False
        return self.study.behind_at_fold(first, result.config.fold, result.validation[self.plan.objective])

    def _stop_if_all_fail(self) -> None:
        if len(self.trials.results) < 3 or any(r.state != "failed" for r in self.trials.results.values()):
            return
        done = sorted(self.trials.results.values(), key=lambda r: r.number)
        # In which hook a worker ended is not always known, and at which stage does not matter.
        reasons = {re.sub(r", in the hook .*|; stage: .*", "", r.reason or "") for r in done[:3]}
        if len(reasons) == 1:
            whole = self.run.trial(done[0].number) / "error.txt"
            # A worker that is lost leaves none.
            where = f"\nThe whole error is in {whole}" if whole.is_file() else ""
            raise SearchFailed(f"the first three trials failed alike: {reasons.pop()}{where}")

    # -- standing -----------------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """Return how the search stands."""
        told = self.trials.told()
        # A fold may change how the first one of its configuration ended.
        counts = dict(self.trials.told.counts) if self.plan.folds == 1 else count_states(told)
        best = best_trial = best_variant = None
        chosen = self.trials.chosen(self.trials.contenders())
        if chosen is not None:
            candidate = next(c for c in chosen.candidates if (c.trial, c.variant) == (chosen.trial, chosen.variant))
            best, best_trial, best_variant = candidate.objective, chosen.trial, chosen.variant
        default = self.trials.results.get(0)
        yardstick = next((v for v in default.variants if v.name == "none"), None) if default else None
        value = yardstick.validation.get(self.plan.objective) if yardstick else None
        return Standing(
            counts,
            best,
            best_trial,
            best_variant,
            value,
            self.seconds_left(),
            self.trials.counted(),
            self.plan.trials_limit,
            self.expected_left(),
        )

    def importance(self) -> dict[str, float]:
        """Return the share of the objective that each parameter explains, or nothing where too few trials are done."""
        return self.study.importance()

    def _write_table(self) -> None:
        """Write ``trials.csv`` where that was not just done: with many trials it takes longer than some trials."""
        now = time.monotonic()
        if now >= self.table_due:
            self.run.write_trials_csv(self.trials.results.values())
            took = time.monotonic() - now
            self.table_due = now + took + max(0.0, took - SHORT_TABLE) / TABLE_SHARE


def _fatal(event: Event) -> AutoftError:
    error: type[AutoftError] = next(
        (
            kind
            for kind in AutoftError.__subclasses__()
            if kind.exit_code == event.body["exit_code"] and kind is not AutoftError
        ),
        SearchFailed,
    )
    fatal = (
        SearchFailed(event.body["message"])
        if error.__init__ is not AutoftError.__init__
        else error(event.body["message"])
    )
    return fatal
