"""While one process measures, no other is within a step."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from autoft import quiet as module
from autoft.quiet import Quiet

SPAWN = multiprocessing.get_context("spawn")


def train(folder, busy, steps, begun):
    quiet = Quiet(folder)
    with quiet.working():
        while True:
            with busy.get_lock():
                busy.value += 1
            time.sleep(0.002)
            with busy.get_lock():
                busy.value -= 1
            steps.value += 1
            begun.set()
            quiet.pause()


@pytest.fixture
def trainings(tmp_path):
    """Three that train all the time: how many are within a step, and how many steps each took."""
    busy = SPAWN.Value("i", 0)
    found = []
    for _ in range(3):
        steps, begun = SPAWN.Value("i", 0), SPAWN.Event()
        process = SPAWN.Process(target=train, args=(tmp_path, busy, steps, begun), daemon=True)
        process.start()
        found.append((process, steps, begun))
    assert all(begun.wait(60) for _, _, begun in found)
    yield busy, found
    for process, _, _ in found:
        process.kill()
        process.join()


def test_who_measures_waits_for_the_steps_of_all_and_none_begins_another(tmp_path, trainings):
    busy, found = trainings
    for _ in range(20):
        with Quiet(tmp_path).measuring():
            before = [steps.value for _, steps, _ in found]
            for _ in range(5):
                assert busy.value == 0
                time.sleep(0.002)
            assert [steps.value for _, steps, _ in found] == before
        # And they go on.
        until = time.monotonic() + 60
        while not all(steps.value > count for (_, steps, _), count in zip(found, before, strict=True)):
            assert time.monotonic() < until
            time.sleep(0.001)


def test_who_is_killed_keeps_nobody_waiting(tmp_path, trainings):
    _, found = trainings
    for process, _, _ in found[:2]:
        process.kill()
        process.join()
    began = time.monotonic()
    with Quiet(tmp_path).measuring():
        assert time.monotonic() - began < module.LONGEST_WAIT / 2


def test_for_who_does_not_come_to_the_end_of_a_step_it_is_not_waited_for_ever(tmp_path, trainings, monkeypatch):
    _, found = trainings
    process, steps, _ = found[0]
    os.kill(process.pid, signal.SIGSTOP)
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.05)
    with Quiet(tmp_path).measuring():
        stopped = steps.value
    assert steps.value == stopped
    os.kill(process.pid, signal.SIGCONT)


def test_within_work_that_is_work_of_a_larger_one_nobody_measures(tmp_path):
    quiet, other = Quiet(tmp_path), Quiet(tmp_path)
    with quiet.working():
        with quiet.working():
            pass
        assert not module._taken(other._opened()[1])
    assert module._taken(other._opened()[1])


def test_a_worker_alone_locks_nothing(tmp_path):
    quiet = Quiet(None)
    with quiet.working(), quiet.measuring():
        quiet.pause()
    assert list(tmp_path.iterdir()) == []
