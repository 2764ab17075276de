"""Of many trials a sampler is shown the best, the newest and those that go on."""

from __future__ import annotations

import random

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from autoft.bounded_storage import BoundedStorage


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_shown_are_the_best_the_newest_those_that_go_on_and_the_first(direction):
    rng = random.Random(0)
    storage = BoundedStorage(3, 5)
    study = optuna.create_study(direction=direction, storage=storage)
    ended: list[int] = []
    for number in range(60):
        trial = study.ask()
        if rng.random() < 0.2:
            state = rng.choice([TrialState.PRUNED, TrialState.FAIL])
            study.tell(trial, state=state)
            ended += [number] if state == TrialState.PRUNED else []
        elif rng.random() < 0.9:
            study.tell(trial, rng.random())
            ended.append(number)
        everything = study._storage._studies[study._study_id].trials
        complete = [t for t in everything if t.state == TrialState.COMPLETE]
        complete.sort(key=lambda t: (-t.value if direction == "maximize" else t.value, t.number))
        going = {t.number for t in everything if t.state == TrialState.RUNNING}
        expected = {0, *ended[-5:], *going, *(t.number for t in complete[:3])}
        if number < 8:
            expected = set(range(number + 1))
        assert [t.number for t in study.get_trials(deepcopy=False)] == sorted(expected)
        shown = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        assert {t.number for t in shown} == {t.number for t in complete} & expected
    assert study.best_trial.number == complete[0].number
    assert study.ask().number == 60, "the number of a trial is its number among all"


def test_trials_that_are_added_count_and_what_is_withdrawn_is_shown_to_nobody():
    storage = BoundedStorage(2, 2)
    study = optuna.create_study(storage=storage)
    for value in (1.0, 5.0, 2.0, 4.0, 3.0, 6.0):
        study.add_trial(create_trial(value=value))
    assert [t.value for t in study.trials] == [1.0, 2.0, 3.0, 6.0]
    storage.withdraw(4)
    assert [t.value for t in study.trials] == [1.0, 2.0, 6.0]
    few = BoundedStorage(5, 5)
    study = optuna.create_study(storage=few)
    study.add_trial(create_trial(value=1.0))
    study.add_trial(create_trial(value=2.0))
    few.withdraw(0)
    assert [t.value for t in study.trials] == [2.0]
