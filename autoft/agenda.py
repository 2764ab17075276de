"""What a search tries next: what is known to be good, then what the study proposes, as far as it is allowed and fits into the time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from autoft.exchange import Elsewhere, Exchange
from autoft.follow_ups import FollowUps
from autoft.pace import Pace
from autoft.plans.plan import Plan
from autoft.plans.screening import never_fits
from autoft.plans.targets import plan_target
from autoft.plugins import Catalog
from autoft.portfolio import known_good, published_chains, same_configuration
from autoft.rundir import TrialConfig
from autoft.space import Categorical
from autoft.study import Settings, Study, settings_of_trial
from autoft.trial import strategy_params
from autoft.trials import Trials

__all__ = ["Agenda"]

ASK_LIMIT = 60
"""Proposals that may be repeats, or too long for the time left, before the search ends."""

FREE_ASKS = 12
"""Proposals that may be too long for the time left, before the sampler is asked for shorter ones only."""

LITTLE = 0.3
"""Share of the time left that a model may take that is trained before a default which does not end in it."""


class Agenda:
    """Says what a search tries next.

    Args:
        plan: of the search; followed where it changes.
        catalog: what plugins offer, for the published settings and for what goes together.
        trials: of the search.
        pace: what they take.
        study: proposes configurations, once those are tried that are known to be good.
        exchange: with other searches of the same study.
        follow_ups: what the best trials are still to have time for.
        spare: returns the seconds of the budget that are left for trials.
    """

    def __init__(
        self,
        plan: Plan,
        catalog: Catalog,
        trials: Trials,
        pace: Pace,
        study: Study,
        exchange: Exchange,
        follow_ups: FollowUps,
        spare: Callable[[], float],
    ) -> None:
        self.plan, self.catalog, self.trials, self.pace = plan, catalog, trials, pace
        self.study, self.exchange, self.follow_ups, self.spare = study, exchange, follow_ups, spare
        self.queue = [config for config in known_good(plan, catalog) if not trials.done_already(config)]
        """Configurations that come before those of the sampler."""
        self.ended = ""
        """Why nothing more is tried; empty as long as something is."""
        self.too_much: dict[str, dict[str, dict[str, float]]] = {}
        """By model and variant, the screened costs of what cannot fit the budget."""
        self.elsewhere: dict[Settings, Elsewhere] = {}
        """By configuration, what other searches have done."""
        self.fits = False
        """A trial has left something that fits the budget."""

    def next(self) -> TrialConfig | None:
        """Return the configuration that is tried next, or None where there is none, or no time for one."""
        if self.nothing_fits():
            return None
        self._bring_in()
        room = self.room()
        rescue = self._without_which_nothing()
        if rescue is not None:
            return self.study.fixed(rescue, self.number())
        if room <= 0 and self.trials.results:
            self.ended = "the time is used up"
            return None
        further = self.next_fold()
        if further is not None:
            if self._fits(further, room):
                return further
            self.ended = "the time left is too short for a further fold"
            return None
        while self.queue:
            config = self.queue.pop(0)
            if config.kind == "default":
                if not self.trials.results or self._fits(config, self.time_for(config, room)):
                    return self.study.fixed(config, 0)
            elif self._tried_elsewhere(config):
                continue
            else:
                # Without a result there is nothing to export: what comes first is trained, however short the time.
                first = not (self.trials.results or self.trials.going())
                if (first or self._fits(config, room)) and not self.illegal(config):
                    return self.study.fixed(config, self.number())
        given: list[dict[str, Any]] = []
        too_long = 0
        for attempt in range(ASK_LIMIT):
            if too_long == FREE_ASKS:
                # The sampler prefers what is too long for the time left: it is asked for the rest of what fits.
                given = self._affordable(room)
                if not given:
                    self.ended = "the time left is too short for another trial"
                    return None
            proposal = self.study.ask(self.number(), given[attempt % len(given)] if given else None, self._tried)
            if proposal is None:
                self.ended = "every configuration of the space has been tried"
                return None
            illegal = self.illegal(proposal) or self.plan.other_models_rate(proposal)
            known = self.trials.known(proposal)
            if illegal:
                self.study.reject(proposal, illegal)
            elif known is not None:
                self.study.tell(known.model_copy(update={"number": proposal.number}), self.trials.values(known))
            elif self._tried_elsewhere(proposal):
                other = self.elsewhere.get(settings_of_trial(proposal))
                if other is None:
                    self.study.forget(proposal.number)
                else:
                    self.study.tell(other.result.model_copy(update={"number": proposal.number}), other.values)
            elif not self._fits(proposal, room):
                self.study.forget(proposal.number)
                too_long += 1
            else:
                return proposal
        self.ended = f"of {ASK_LIMIT} proposals none was new and short enough for the time left"
        return None

    def _without_which_nothing(self) -> TrialConfig | None:
        """Return the known-good configuration that is done soonest, as long as no trial has left anything that fits the budget.

        It is trained even where the time left seems too short: it ends with what it has, and a model that was trained for
        a moment is more than none.
        """
        if not self.trials.results or self.trials.going() or self.spare() <= 0:
            return None
        self.fits = self.fits or any(self.trials.values(result) is not None for result in self.trials.told())
        if self.fits:
            return None
        waiting = [config for config in self.queue if config.kind != "default" and not self.illegal(config)]
        if not waiting:
            return None
        soonest = min(waiting, key=self.pace.estimate)
        self.queue.remove(soonest)
        return soonest

    def _affordable(self, room: float) -> list[dict[str, Any]]:
        """Return choices of model, pipeline and epochs that fit into so many seconds: the best model's, else the next's.

        Of each pipeline, the most epochs that fit are taken.
        """
        sign = 1 if self.plan.higher_is_better else -1
        default = self.plan.default_config()

        def reached(model: str) -> float:
            values = (self.trials.values(r) for r in self.trials.told() if r.config.model == model)
            return max((sign * value[0] for value in values if value is not None), default=-math.inf)

        domain = self.plan.domain("train.epochs")
        lengths: list[Any] = (
            list(domain.choices)
            if isinstance(domain, Categorical)
            else list(range(int(domain.low), int(domain.high) + 1))
        )
        for model in sorted((model.name for model in self.plan.models), key=reached, reverse=True):
            found = []
            for pipeline in self.plan.pipelines:
                config = default.model_copy(update={"model": model, "pipeline": pipeline.name})
                if self.illegal(config):
                    continue
                for epochs in sorted(lengths, reverse=True):
                    params = {**self.plan.default_params(pipeline.name), "train.epochs": epochs}
                    if self._fits(config.model_copy(update={"params": params}), room):
                        found.append({"model": model, "pipeline": pipeline.name, "train.epochs": epochs})
                        break
            if found:
                return found
        return []

    def next_fold(self, only: int | None = None) -> TrialConfig | None:
        """Return a configuration on the next fold that it is to be trained on, or None where all are done.

        Args:
            only: the number of its first trial; default: any.
        """
        if self.plan.folds == 1:
            return None
        for result in self.trials.told() if only is None else [self.trials.results[only]]:
            missing = self.trials.missing_folds(result) if result.state == "complete" else []
            if missing:
                update = {"kind": "fold", "parent": result.number, "fold": missing[0], "number": self.number()}
                return result.config.model_copy(update=update)
        return None

    def numbered(self, configs: Sequence[TrialConfig]) -> list[TrialConfig]:
        """Return configurations with the next numbers."""
        first = self.number()
        return [config.model_copy(update={"number": first + place}) for place, config in enumerate(configs)]

    def number(self) -> int:
        """Return the number of the next trial."""
        # Number 0 is the default's, also where it does not come first.
        kept = [0] if any(config.kind == "default" for config in self.queue) else []
        taken = [*kept, *self.trials.results, *(config.number for config in self.trials.going())]
        return max(taken, default=-1) + 1

    def room(self) -> float:
        """Return the seconds that are left for new configurations."""
        # A second known-good training lifts all that is made of the best one.
        first = bool(self.queue) and len(self.trials.told()) < 2
        return self.follow_ups.room(compression=not first)

    def time_for(self, config: TrialConfig, room: float) -> float:
        """Return how many seconds a configuration may be thought to take, where so many are left.

        The yardstick runs whatever it takes, and ends with what it has when time is up. Where others were put before it, one that is
        to be shipped needs time for half of it, and one that cannot be for all.
        """
        return 2 * room if config.kind == "default" and not self.never_fits(config.model) else room

    def queue_chains(self, configurations: int) -> None:
        """Queue published regularizers and augmenters, as many as leave half of the configurations to the sampler."""
        published = published_chains(self.plan, self.catalog)
        chains = [config for config in published if not self.trials.done_already(config)]
        self.queue += chains[: max(0, configurations // 2 - len(self.queue))]

    def put_the_yardstick_second(self) -> None:
        """Have the soonest configuration go before a default that never fits the budget, or does not end in its time.

        Before the latter only one of another model that takes little of that time.
        """
        if not self.queue or self.queue[0].kind != "default":
            return
        default, room = self.queue[0], self.spare()
        waiting = [config for config in self.queue[1:] if not self.illegal(config)]
        if not self.never_fits(default.model):
            if self._fits(default, room):
                return
            others = [config for config in waiting if config.model != default.model]
            waiting = [config for config in others if self._fits(config, LITTLE * room)]
        if waiting:
            soonest = min(waiting, key=self.pace.estimate)
            self.queue.remove(soonest)
            self.queue.insert(0, soonest)

    def illegal(self, config: TrialConfig) -> str | None:
        """Return why a configuration cannot be tried, or None where it can."""
        if self.never_fits(config.model):
            return f"no compression of {config.model} fits the budget"
        if reason := self.plan.unfit(config.model, config.pipeline, config.params.get("regularize")):
            return reason
        pipeline = self.plan.pipeline(config.pipeline)
        task, model = self.catalog.task(self.plan.task), self.plan.model(config.model)
        adapter = self.catalog.adapters[pipeline.adapter]
        reserved = adapter.positions(strategy_params(config.params, adapter.name))
        target = plan_target(self.plan, task, model, params=config.params, reserved=reserved)
        refusal = adapter.check(replace(target, quantizer=pipeline.quantizer or ""))
        return refusal.reason if refusal else None

    def nothing_fits(self) -> bool:
        """Say whether no model can fit the budget, whatever is trained."""
        return all(self.never_fits(model.name) for model in self.plan.models)

    def leave_out(self, config: TrialConfig) -> None:
        """Take a configuration that is tried otherwise out of the queue."""
        self.queue = [other for other in self.queue if not same_configuration(other, config)]

    def never_fits(self, model: str) -> bool:
        """Say whether no compression of a model fits the budget, whatever is trained."""
        return never_fits(self.plan, model, self.too_much.get(model, {}))

    def _fits(self, config: TrialConfig, room: float) -> bool:
        return self.pace.estimate(config) <= room

    def _tried(self, config: TrialConfig) -> bool:
        return self.trials.done_already(config) or self._tried_elsewhere(config)

    def _tried_elsewhere(self, config: TrialConfig) -> bool:
        """Say whether another search has done a configuration, or is at it."""
        settings = settings_of_trial(config)
        return settings in self.elsewhere or settings in self.study.elsewhere

    def _bring_in(self) -> None:
        """Enter what other searches have done since the last look into the study, and what they are at."""
        news = self.exchange.news()
        self.study.replay_all([(other.result, other.values) for other in news])
        for other in news:
            # Of many thousand trials the curves would be the most of it.
            known = replace(other, result=other.result.model_copy(update={"curve": []}))
            self.elsewhere[settings_of_trial(other.result.config)] = known
        self.study.going_elsewhere(self.exchange.going())
