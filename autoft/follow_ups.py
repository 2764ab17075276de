"""What follows from the best trials: further seeds, averages, variants that train again; and the time that is kept for it."""

from __future__ import annotations

import math
from collections.abc import Callable

from autoft.contracts import Task
from autoft.pace import Pace
from autoft.plans.plan import Plan
from autoft.plugins import Catalog
from autoft.quantities import format_seconds
from autoft.rundir import TrialConfig, TrialResult
from autoft.selection import best_trials
from autoft.trials import Trials

__all__ = ["FollowUps"]

FINALISTS_SHARE = 0.2
"""Of the time budget: the search leaves so much at most for further seeds of the finalists."""

COMPRESSION_SHARE = 0.5
"""Of the time budget: the search leaves so much at most for the first variant of the best trial that is trained again."""

FURTHER_SHARE = 0.25
"""The same for all such variants together: another trial mostly brings more than a second one of them."""


class FollowUps:
    """What is made of the best trials of a search; none of it has a number yet.

    Args:
        plan: of the search; followed where it changes.
        catalog: which has the task: not every one averages predictions.
        trials: of the search.
        pace: what they take.
        spare: returns the seconds of the budget that are left for trials.
        note: told in a sentence what is made, and what the time is too short for.
    """

    def __init__(
        self,
        plan: Plan,
        catalog: Catalog,
        trials: Trials,
        pace: Pace,
        spare: Callable[[], float],
        note: Callable[[str], None],
    ) -> None:
        self.plan, self.catalog, self.trials, self.pace = plan, catalog, trials, pace
        self.spare, self.note = spare, note

    def finalists(self) -> list[TrialConfig]:
        """Return further seeds of the chosen trial and of the default, as many as fit into the time left."""
        room = self.spare() - self._kept_for_compression()
        wanted = self._further_seeds(room)
        if not wanted:
            all_seeds = self._further_seeds(math.inf)
            if all_seeds:
                self.note(
                    "The finalists were not trained with further seeds: that takes about "
                    f"{format_seconds(self.pace.together(all_seeds))}, more than is left"
                )
            return []
        return wanted

    def averages(self) -> list[TrialConfig]:
        """Return what the best trials are averaged to, as far as the time allows: their weights, and their predictions."""
        wanted = [c for c in self._averaged() if not any(_same_members(r.config, c) for r in self.trials.contenders())]
        room = self.spare() - self._kept_for_compression()
        fitting: list[TrialConfig] = []
        for config in wanted:
            seconds = self.pace.averaging(config)
            if seconds <= room:
                fitting.append(config)
                room -= seconds
            else:
                self.note(
                    f"{'Weights' if config.kind == 'soup' else 'Predictions'} of the best trials were not averaged: that "
                    f"takes about {format_seconds(seconds)}, more than is left"
                )
        return fitting

    def further_compression(self) -> list[TrialConfig]:
        """Return the best trial, to be made smaller and trained again, in as many ways as the time allows."""
        config, room = self._to_compress(math.inf), self.spare()
        if config is None:
            return []
        fitting = self._to_compress(room)
        left_out = [name for name in config.variants if fitting is None or name not in fitting.variants]
        if left_out:
            self.note(
                f"Of the best trial {', '.join(left_out)} {'was' if len(left_out) == 1 else 'were'} not made: training it "
                f"again takes about {format_seconds(self.pace.compressing(config))} in all, more than is left"
            )
        lost = self.plan.lost(self.trials.results[config.members[0]])
        made = {v.rescues for v in self.plan.rescues if fitting is not None and v.name in fitting.variants}
        if told := ", ".join(f"{name} (by {by:.3g})" for name, by in lost.items() if name in made):
            self.note(
                f"Of trial {config.members[0]}, what follows is worse than its uncompressed model by more than "
                f"search.tolerance allows, and is made once more of weights that are trained for it: {told}"
            )
        return [fitting] if fitting else []

    def room(self, compression: bool) -> float:
        """Return the seconds that are left for new configurations: export and test have theirs, and so have finalists.

        Finalists get theirs where it is a small part of the whole budget. In a short search another configuration
        brings more than another seed; in a long one the best of many figures is more and more the luckiest.

        Args:
            compression: of the best trial has its time, too.
        """
        left = self.spare()
        share = FINALISTS_SHARE * self.plan.time_limit
        averaging = sum(self.pace.averaging(config) for config in self._averaged())
        left -= self._kept_for_compression() if compression else 0.0
        return left - self.pace.together(self._further_seeds(share)) - (averaging if averaging <= share else 0.0)

    def expected(self, room: float) -> float:
        """Return the seconds that further seeds and further compression will take of so many."""
        return min(room, self.pace.together(self._further_seeds(room)) + self._kept_for_compression())

    def _further_seeds(self, room: float) -> list[TrialConfig]:
        """Return the chosen trial and the default with further seeds, the most that take at most so many seconds.

        Both get the same seeds, for only then their means can be compared.
        """
        contenders = self.trials.contenders() if self.plan.finalist_seeds else []
        chosen = self.trials.chosen([r for r in contenders if not r.config.derived])
        if chosen is None or chosen.trial == 0 or 0 not in self.trials.results:
            return []
        if any(self.trials.results[number].cut_short is not None for number in (chosen.trial, 0)):
            # Other seeds would be trained for longer, or for as long as there is time: not the same thing.
            return []
        have = {(r.config.parent, r.config.seed) for r in contenders if r.config.kind == "seed"}
        for seeds in range(self.plan.finalist_seeds, 0, -1):
            wanted = [
                self.trials.results[number].config.model_copy(
                    update={"kind": "seed", "parent": number, "seed": self.plan.seed + i}
                )
                for i in range(1, seeds + 1)
                for number in (chosen.trial, 0)
                if (number, self.plan.seed + i) not in have
            ]
            if self.pace.together(wanted) <= room:
                return wanted
        return []

    def _averaged(self) -> list[TrialConfig]:
        if self.plan.ensemble < 2:
            return []
        best = best_trials(self.plan, self.trials.contenders())
        if not best:
            return []
        top, found = best[0].config, []

        def shares_the_start(other: TrialConfig) -> bool:
            chains = [self.plan.pipeline(c.pipeline) for c in (top, other)]
            dense = all(chain.quantizer is None and chain.leaves == "dense" for chain in chains)
            return other.model == top.model and other.seed == top.seed and dense

        dense = [r.number for r in best if shares_the_start(r.config) and _has_files(r, "none")][: self.plan.ensemble]
        if len(dense) > 1 and dense[0] == top.number:
            found.append(top.model_copy(update={"kind": "soup", "members": dense}))
        averaging = type(self.catalog.task(self.plan.task)).combine is not Task.combine
        served = [r.number for r in best if any(_has_files(r, v.name) for v in self.plan.variants)]
        if averaging and len(served) > 1:
            found.append(top.model_copy(update={"kind": "ensemble", "members": served[: self.plan.ensemble]}))
        return found

    def _to_compress(self, room: float, most: int | None = None) -> TrialConfig | None:
        """Return the best trial with the variants that train again and take at most so many seconds together.

        They come in the order of the plan, ``most`` of them, and those that take too long beside the ones before are
        left out.
        """
        if self.plan.folds > 1:
            # It would be of one fold, and is not compared with means over all.
            return None
        best = best_trials(self.plan, self.trials.contenders())
        there = [r.number for r in best if any(v.name == "none" and v.folder for v in r.variants)]
        if not best or best[0].number not in there:
            return None
        waiting = [variant.name for variant in self.plan.trained_again(best[0])]
        members = there[: self.plan.teachers]
        config = best[0].config.model_copy(update={"kind": "compress", "members": members})
        earlier = [r for r in self.trials.contenders() if _same_members(r.config, config)]
        done = {variant.name for r in earlier for variant in r.variants}
        # A worker that was lost over it leaves none: then each is made by itself, and one that was is not made again.
        lost = [r.config.variants for r in earlier if not r.variants]
        done |= {names[0] for names in lost if len(names) == 1}
        most = 1 if lost else most
        for name in waiting:
            further = config.model_copy(update={"variants": [*config.variants, name]})
            if name not in done and len(config.variants) != most and self.pace.compressing(further) <= room:
                config = further
        return config if config.variants else None

    def _kept_for_compression(self) -> float:
        """Return the seconds that are left for variants of the best trial that are trained again."""
        limit = self.plan.time_limit
        wanted = [self._to_compress(COMPRESSION_SHARE * limit, 1), self._to_compress(FURTHER_SHARE * limit)]
        return max((self.pace.compressing(config) for config in wanted if config), default=0.0)


def _same_members(one: TrialConfig, other: TrialConfig) -> bool:
    return (one.kind, one.members) == (other.kind, other.members)


def _has_files(result: TrialResult, variant: str) -> bool:
    return any(v.name == variant and v.folder and v.state == "complete" for v in result.variants)
