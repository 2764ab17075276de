"""The environments that processes of a search are given."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from autoft.evaluation import serving_environment
from autoft.hardware import MAPPED
from autoft.processes import KERNEL_CACHES, importing, training_environment

MANY_SHAPES = """
import torch
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
layer = torch.nn.Linear(128, 512)
def step(rows):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.randn(rows, 128)).sum().backward()
step(8)
before = resident()
for rows in range(9, 209):
    step(rows)
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_batches_of_many_lengths_leave_no_code_for_each_in_a_process_that_trains():
    # Some 270 MB with the caches as they come, on a processor that multiplies in bf16.
    done = subprocess.run(
        [sys.executable, "-c", MANY_SHAPES], env=training_environment(1), capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100e6


def test_what_the_user_has_set_of_the_caches_stays_and_a_measured_model_has_them_as_they_come(monkeypatch):
    for name in (*KERNEL_CACHES, *MAPPED):
        monkeypatch.delenv(name, raising=False)
    assert KERNEL_CACHES.items() <= training_environment(2).items()
    given = {**training_environment(2), **MAPPED}
    assert given.keys() - serving_environment(given).keys() == {*KERNEL_CACHES, *MAPPED, "OMP_WAIT_POLICY"}
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    assert training_environment(2)["LRU_CACHE_CAPACITY"] == "7"
    assert serving_environment(training_environment(2))["LRU_CACHE_CAPACITY"] == "7"


def test_imports_are_not_looked_through_for_garbage_and_what_comes_after_them_is():
    seen = []
    gc.callbacks.append(lambda phase, info: seen.append(info["generation"]))
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    gc.collect()
    seen.clear()
    try:
        with importing():
            made = [[] for _ in range(20_000)]
        within, frozen = len(seen), gc.get_freeze_count()
        made += [[] for _ in range(20_000)]
        assert gc.get_threshold() == (700, 10, 10)
    finally:
        gc.callbacks.pop()
        gc.set_threshold(*before)
    assert within == 0
    assert frozen > 20_000
    assert len(seen) > 20
