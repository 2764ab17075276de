"""Optuna's storage in memory that shows its users a bounded number of trials: the best, the newest, and those that go on.

What a sampler, or a pruner, does at each proposal takes time in proportion to the trials that it is shown, and the old ones
that are neither good nor near to what is tried now say the least. Imported by :mod:`autoft.study` alone, as it needs Optuna.
"""

from __future__ import annotations

import bisect
import copy
from collections import deque
from collections.abc import Container, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

__all__ = ["BoundedStorage"]


class BoundedStorage(optuna.storages.InMemoryStorage):  # type: ignore[misc]  # Optuna is not followed by mypy
    """A storage of one study with all its trials, of which ``get_all_trials`` gives some.

    Args:
        best: how many of the best are shown, by the first objective.
        newest: how many of the newest that are complete or pruned are shown.
    """

    def __init__(self, best: int, newest: int) -> None:
        super().__init__()
        self.best, self.newest = best, newest
        self._unfinished: set[int] = set()
        self._latest: deque[int] = deque(maxlen=newest)
        self._top: list[tuple[float, int]] = []
        """Of the best, value and number, the best first and smaller being better."""
        self._withdrawn: set[int] = set()

    def withdraw(self, number: int) -> None:
        """Show a trial to nobody any more."""
        self._withdrawn.add(number)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create one, as Optuna says."""
        trial_id: int = super().create_new_trial(study_id, template_trial)
        self._note(study_id, trial_id)
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set them, as Optuna says."""
        done: bool = super().set_trial_state_values(trial_id, state, values)
        self._note(self._trial_id_to_study_id_and_number[trial_id][0], trial_id)
        return done

    def _note(self, study_id: int, trial_id: int) -> None:
        trial = self.get_trial(trial_id)
        if not trial.state.is_finished():
            self._unfinished.add(trial.number)
            return
        self._unfinished.discard(trial.number)
        if trial.state in {TrialState.COMPLETE, TrialState.PRUNED}:
            self._latest.append(trial.number)
        if trial.state == TrialState.COMPLETE and self.best:
            maximized = self.get_study_directions(study_id)[0] == optuna.study.StudyDirection.MAXIMIZE
            bisect.insort(self._top, (-trial.values[0] if maximized else trial.values[0], trial.number))
            del self._top[self.best :]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return those that are shown, by number: all as long as they are few, and the first one always."""
        if states == (TrialState.WAITING,):
            # Optuna looks for these before each trial, and knows a short way.
            return list(super().get_all_trials(study_id, deepcopy, states))
        trials: list[FrozenTrial] = super().get_all_trials(study_id, deepcopy=False)
        if len(trials) > self.best + self.newest:
            shown = {0, *self._unfinished, *self._latest, *(number for _, number in self._top)}
            trials = [trials[number] for number in sorted(shown - self._withdrawn)]
        elif self._withdrawn:
            trials = [trial for trial in trials if trial.number not in self._withdrawn]
        if states is not None:
            trials = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials
