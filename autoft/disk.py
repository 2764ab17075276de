"""The disk that a run has, or its quota of it: whether further trials have room, and which weights stay."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable

from autoft.errors import RunFolderError
from autoft.plans.plan import Plan
from autoft.quantities import format_bytes
from autoft.rundir import RunDir, folder_size
from autoft.selection import weights_to_keep
from autoft.trials import Trials

__all__ = ["Disk"]


class Disk:
    """Keeps a run within the disk, and within its quota of that.

    Args:
        run: the run folder.
        plan: of the search, with the quota; followed where it changes.
        trials: of the search; what a worker is at may still write as much as a trial does at most.
        note_once: told in a sentence why trials wait for room, again each time that they do.
    """

    def __init__(self, run: RunDir, plan: Plan, trials: Trials, note_once: Callable[[str], None]) -> None:
        self.run, self.plan, self.trials, self.note_once = run, plan, trials, note_once
        self.sizes: dict[tuple[int, str], int] = {}
        """By trial and variant, the bytes of the files that there are."""
        self.adapters: dict[int, int] = {}
        """By trial, the bytes of what its adapter learned."""

    def needed(self) -> float:
        """Return the bytes that the run takes at most, as far as is known before it begins."""
        plan = self.plan
        return float(min(plan.storage_bytes + plan.most_at_work * plan.trial_bytes, plan.disk_bytes or math.inf))

    def further_trials(self) -> int:
        """Return how many further trials the disk has room for beside those that workers are at, at most one worker's."""
        each, at_work = self.plan.trial_bytes, len(self.trials.at_work())
        if not at_work and self.plan.together == 1:
            # Whether there is room for a single one is looked at when it is sent.
            return 1
        free, unwritten = self.run.free(self.plan.disk_bytes), float(at_work * each)
        if free < unwritten + self.plan.together * each:
            # Only now it matters what of that they have written already.
            unwritten = self._unwritten()
            free = self._free(unwritten + each)
        fit = int(max(0.0, free - unwritten) // each)
        if at_work and not fit:
            whose = "The disk" if self.plan.disk_bytes is None else "storage.disk"
            self.note_once(
                f"{whose} has room for {at_work} trial{'s' if at_work > 1 else ''} at once, of {format_bytes(each)} each at "
                f"most: further ones wait until {'one' if at_work > 1 else 'it'} is done."
            )
        return min(fit, self.plan.together)

    def check(self) -> None:
        """Make room for a trial, of what can be made again.

        Raises:
            RunFolderError: there is none.
        """
        needed = self.plan.trial_bytes
        free = self._free(needed)
        if free >= needed:
            return
        if self.plan.disk_bytes is not None and free < shutil.disk_usage(self.run.path).free:
            raise RunFolderError(
                f"{self.run.path}: a trial needs about {format_bytes(needed)}, and of storage.disk, "
                f"{format_bytes(self.plan.disk_bytes)}, {format_bytes(max(0.0, free))} are left; give it more, or "
                "storage.weights less, and run the same command again to go on"
            )
        raise RunFolderError(
            f"{self.run.path}: {format_bytes(free)} of disk are free and a trial needs about {format_bytes(needed)}; "
            "free some space, or give --run a folder on another disk, and run the same command again to go on"
        )

    def drop_weights(self) -> None:
        """Delete the files of variants that are not on the front."""
        results = self.trials.contenders()
        there = {(r.number, v.name): v.folder for r in results for v in r.variants if v.folder}
        # What a trial left is not written again: its size is counted once.
        self.sizes = {
            key: self.sizes[key] if key in self.sizes else folder_size(self.run.inside(folder))
            for key, folder in there.items()
        }
        self.adapters = {
            number: self.adapters[number] if number in self.adapters else folder_size(self.run.adapter(number))
            for number in {number for number, _ in there}
        }
        keep = weights_to_keep(self._within_quota(), results, self.sizes, self.adapters)
        for result in results:
            dropped = [v for v in result.variants if v.folder and (result.number, v.name) not in keep]
            folders = [self.run.inside(variant.folder) for variant in dropped if variant.folder]
            for variant in dropped:
                variant.folder = None
            if dropped:
                self.run.write_result(result)
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
            if not any(variant.folder for variant in result.variants):
                shutil.rmtree(self.run.adapter(result.number), ignore_errors=True)

    def _within_quota(self) -> Plan:
        """Return the plan with as much room for weights as the quota leaves beside the trials; caches go before weights."""
        plan = self.plan
        if plan.disk_bytes is None:
            return plan
        weights = sum(self.sizes.values()) + sum(self.adapters.values())
        further = max(1, plan.most_at_work - len(self.trials.at_work()))
        room = plan.disk_bytes - self._unwritten() - further * plan.trial_bytes - (self.run.size() - weights)
        wanted = min(plan.storage_bytes, weights)
        if room < wanted:
            room += self.run.drop_caches(wanted - room)
        return plan.model_copy(update={"storage_bytes": min(plan.storage_bytes, max(0, int(room)))})

    def _unwritten(self) -> float:
        """Return what the trials that workers are at may still write at most, in bytes."""
        return sum(
            max(0, self.plan.trial_bytes - folder_size(trial / "variants") - folder_size(trial / "adapter"))
            for trial in (self.run.trial(config.number) for config in self.trials.at_work())
        )

    def _free(self, needed: float) -> float:
        """Return the bytes that are free; where those are fewer than needed, once what can be made again is deleted."""
        free = self.run.free(self.plan.disk_bytes)
        if free < needed:
            self.run.drop_caches(needed - free)
            free = self.run.free(self.plan.disk_bytes)
        return free
