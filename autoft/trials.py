"""The trials of a search: those that are done, those that workers are at, and those that wait for one."""

from __future__ import annotations

import itertools
import math
import operator
from bisect import insort
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from autoft.errors import NothingFeasible
from autoft.plans.plan import Plan
from autoft.rundir import Selection, TrialConfig, TrialResult, count_states
from autoft.selection import best_trials, candidates, select
from autoft.study import GIVEN, Settings, settings_of_trial

__all__ = ["Trials"]

FOLLOWED = 64
"""Of the best trials, how many may still be compressed further, averaged or taught by, whatever else becomes of them."""


class Trials:
    """What is known of the trials of a search, and what follows from it by the plan.

    Args:
        plan: of the search; followed where it changes.
        results: of earlier calls.
    """

    def __init__(self, plan: Plan, results: Iterable[TrialResult]) -> None:
        self.plan = plan
        self.results: dict[int, TrialResult] = {result.number: result for result in results}
        """By number, of those that are done."""
        self.running: dict[int, TrialConfig] = {}
        """By worker, the trial that it is at, the first of them where they train together."""
        self.mates: dict[int, list[TrialConfig]] = {}
        """By worker, the others that train together with that one."""
        self.aside: list[TrialConfig] = []
        """Proposals that were not sent to a worker yet."""
        self.done: dict[Settings, int] = {}
        """By configuration, the trial that it is done in; those that follow from trials are none of their own."""
        self.bests: dict[tuple[Any, ...], dict[str, float]] = {}
        """By model, what the training leaves and the rows' length, the best objective of each variant."""
        self.beaten: set[int] = set()
        """Trials without files that another one beats in all: nothing that is chosen or follows can be one of them."""
        self.told = _Listed(self.results, lambda result: not result.config.derived)
        """Returns the results of configurations, those left out that follow from others."""
        self.limited = _Listed(self.results, lambda result: result.config.limited)
        """Returns those of them that the limit of the budget counts."""
        self.contenders = _Listed(self.results, lambda result: result.number not in self.beaten)
        """Returns the results that may still be chosen or followed up: few, however many trials are done."""
        for result in self.results.values():
            self._remember(result)

    def add(self, result: TrialResult) -> None:
        """Enter a trial that is done."""
        self.results[result.number] = result
        self._remember(result)

    def begin(self, worker: int, configs: Sequence[TrialConfig]) -> None:
        """Note that a worker is at trials, which wait no longer."""
        self.running[worker], self.mates[worker] = configs[0], list(configs[1:])
        self.aside = [config for config in self.aside if config not in configs]

    def leave(self, worker: int) -> list[TrialConfig]:
        """Note that a worker is at nothing any more, and return what it was at."""
        found = self.of(worker)
        self.running.pop(worker, None)
        self.mates.pop(worker, None)
        return found

    def of(self, worker: int) -> list[TrialConfig]:
        """Return the trials that a worker is at."""
        first = self.running.get(worker)
        return [] if first is None else [first, *self.mates.get(worker, [])]

    def at_work(self) -> list[TrialConfig]:
        """Return the trials that workers are at."""
        return [*self.running.values(), *(mate for mates in self.mates.values() for mate in mates)]

    def going(self) -> list[TrialConfig]:
        """Return the trials that workers are at, and those that wait for one."""
        return [*self.at_work(), *self.aside]

    def counted(self) -> int:
        """Return how many configurations are done, as the limit of the budget counts them."""
        return len(self.limited())

    def enough(self) -> bool:
        """Say whether as many are done as the budget allows."""
        limit = self.plan.trials_limit
        return limit is not None and self.counted() >= limit

    def any_complete(self) -> bool:
        """Say whether any trial came to its end."""
        return any(result.state == "complete" for result in self.results.values())

    def any_scored(self) -> bool:
        """Say whether any trial has a figure that later ones are compared with."""
        return any(result.validation for result in self.results.values())

    def known(self, config: TrialConfig) -> TrialResult | None:
        """Return the result of a configuration, or None where it is not done."""
        number = self.done.get(settings_of_trial(config))
        return None if number is None else self.results[number]

    def done_already(self, config: TrialConfig) -> bool:
        """Say whether a configuration is done."""
        return self.known(config) is not None

    def repeats(self, result: TrialResult) -> list[TrialResult]:
        """Return the results of a configuration on further folds."""
        if self.plan.folds == 1:
            return []
        return [r for r in self.results.values() if r.config.kind == "fold" and r.config.parent == result.number]

    def missing_folds(self, result: TrialResult) -> list[int]:
        """Return on which folds a complete trial has still to be trained; those that a worker is at count as done."""
        if result.config.derived:
            return []
        going = [*(r.config for r in self.repeats(result)), *self.going()]
        there = {config.fold for config in going if config.parent == result.number and config.kind == "fold"}
        return [fold for fold in range(1, self.plan.folds) if fold not in there]

    def values(self, result: TrialResult) -> list[float] | None:
        """Return what Optuna is told: the objectives of the best feasible variant, or None where there is none."""
        if result.state != "complete":
            return None
        own = [c for c in candidates(self.plan, [_as_search(result), *self.repeats(result)]) if not c.violations]
        if not own:
            # What could not be better than what there is was not compressed: its score is known all the same.
            known = any(variant.state == "pruned" for variant in result.variants)
            return [result.validation[self.plan.objective]] if known and len(self.plan.objectives) == 1 else None
        sign = 1 if self.plan.higher_is_better else -1
        best = max(own, key=lambda c: sign * c.objective)
        variant = next(v for v in result.variants if v.name == best.variant)
        others = [variant.validation.get(n, variant.costs.get(n, math.nan)) for n in self.plan.objectives[1:]]
        return [best.objective, *others]

    def chosen(self, results: Sequence[TrialResult]) -> Selection | None:
        """Return what would be shipped of these; a budget that was tightened between two calls may leave nothing."""
        try:
            return select(self.plan, results)
        except NothingFeasible:
            return None

    def reached(self, config: TrialConfig) -> dict[str, float]:
        """Return the best that is known of each variant that would cost what this trial's does, by name.

        Compressed alike, models of one architecture are equally large and fast. Nothing is said where a trial has a further
        use: as a repeat, in an average, as a teacher, or where the objectives are several.
        """
        if not self.competes(config):
            return {}
        return dict(self.bests.get(self._alike(config), {}))

    def competes(self, config: TrialConfig) -> bool:
        """Say whether a trial is of no use where another one scores more at the same cost."""
        plan = self.plan
        further = len(plan.objectives) > 1 or plan.folds > 1 or plan.ensemble > 1 or plan.teachers > 1
        return not (further or config.derived or config.kind in GIVEN)

    def _remember(self, result: TrialResult) -> None:
        if result.config.derived:
            return
        self.done.setdefault(settings_of_trial(result.config), result.number)
        sign, known = 1 if self.plan.higher_is_better else -1, self.bests.setdefault(self._alike(result.config), {})
        for variant in result.variants:
            value = variant.validation.get(self.plan.objective, math.nan)
            if variant.state == "complete" and sign * value > sign * known.get(variant.name, -sign * math.inf):
                known[variant.name] = value

    def _alike(self, config: TrialConfig) -> tuple[Any, ...]:
        """Return what trials have in common whose models, compressed alike, are equally large and fast.

        What an adapter does not merge is served, too: more virtual tokens take longer. And so may what the task searches.
        """
        chain = next((one for one in self.plan.pipelines if one.name == config.pipeline), None)
        served = {"task"} if chain is None or chain.leaves == "dense" else {"task", chain.adapter}
        settings = {
            (name, value)
            for name, value in config.params.items()
            if name.split(".", 1)[0] in served and not name.endswith(".learning_rate")
        }
        leaves = chain and (chain.leaves, "" if chain.leaves == "dense" else chain.adapter)
        return config.model, leaves, config.params.get("train.max_length"), frozenset(settings)

    def note_beaten(self) -> None:
        """Leave out of later comparisons what cannot be chosen any more, so that they take no longer the more trials are done.

        Whoever beats a trial beats what it beats, too: the front is the same without it.
        """
        results = self.contenders()
        if len(results) < 2 * FOLLOWED:
            return
        most = max(FOLLOWED, self.plan.ensemble, self.plan.teachers)
        still = {0, *(r.number for r in best_trials(self.plan, results)[:most])}
        still |= {c.trial for c in candidates(self.plan, results) if c.front}
        still |= {r.number for r in results if r.config.derived or any(v.folder for v in r.variants)}
        still |= {r.number for r in results if r.state == "complete" and self.missing_folds(r)}
        beaten = {r.number for r in results} - still
        if beaten:
            self.beaten |= beaten
            self.contenders.leave_out(beaten)


class _Listed:
    """The results that belong to a list, by number: asked for many times between two trials, of which most add one.

    Args:
        results: by number; none is taken away.
        belongs: whether one is of the list.
    """

    def __init__(self, results: dict[int, TrialResult], belongs: Callable[[TrialResult], bool]) -> None:
        self.results, self.belongs = results, belongs
        self.seen = 0
        self.found: list[TrialResult] = []
        self.counts = count_states([])
        """By state, in which they were when they came."""

    def __call__(self) -> list[TrialResult]:
        """Return the list as it is now."""
        new = [*itertools.islice(reversed(self.results.values()), len(self.results) - self.seen)]
        for result in reversed(new):
            if self.belongs(result):
                insort(self.found, result, key=operator.attrgetter("number"))
                self.counts[result.state] += 1
        self.seen = len(self.results)
        return self.found

    def leave_out(self, numbers: Collection[int]) -> None:
        """Take these out of the list."""
        self.found = [result for result in self.found if result.number not in numbers]


def _as_search(result: TrialResult) -> TrialResult:
    return result.model_copy(update={"config": result.config.model_copy(update={"kind": "search"})})
