"""Workers that need more memory than they may are ended, and what they did is tried again with less."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from autoft.executors import LocalExecutor
from autoft.executors.worker import limit_gpu_memory
from autoft.hardware import memory_left
from autoft.rundir import RunDir, TrialConfig
from autoft.search import Search
from autoft.trial import MOST_PARTS


def test_something_of_the_memory_is_to_be_left():
    left, enough = memory_left()
    assert 0 < enough < left


def test_a_worker_above_its_limit_is_ended_and_the_reason_is_told(tmp_path):
    run = RunDir(tmp_path / "run")
    run.create()
    with LocalExecutor(run, 1, 1) as executor:
        # A run folder without a plan: the worker would end by itself, but only after its imports.
        executor.memory_limits[0] = 1_000_000
        event, end = None, time.monotonic() + 60
        while event is None and time.monotonic() < end:
            event = executor.poll(0.1)
    assert event is not None
    # Lost before it was ready, it is started again.
    assert (event.kind, event.body["code"]) == ("restarted", -9)
    assert event.body["reason"] == "the worker process was ended: it needs more than 1 MB of memory"


def test_a_training_that_was_ended_is_begun_again_in_parts_and_nothing_else_is():
    config = TrialConfig(
        number=1, kind="search", model="m", pipeline="full", params={"train.batch_size": 16}, seed=0, parts=1
    )
    again = Search._in_more_parts(None, config, "train")
    assert again == config.model_copy(update={"parts": 2})
    assert Search._in_more_parts(None, config, "compress: onnx") is None
    assert Search._in_more_parts(None, config.model_copy(update={"parts": MOST_PARTS}), "train") is None
    single = config.model_copy(update={"params": {"train.batch_size": 1}})
    assert Search._in_more_parts(None, single, "train") is None


@pytest.mark.parametrize(("limit", "share"), [(None, 1.0), (2**33, 0.5), (2**40, 1.0)])
def test_a_worker_may_take_what_the_budget_says_of_a_gpu(limit, share, monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda at: SimpleNamespace(total_memory=2**34))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", taken.append)
    limit_gpu_memory(limit)
    assert taken == [share]


@pytest.mark.gpu
def test_memory_of_a_gpu_runs_out_at_the_limit_and_serves_on_below_it():
    # In a process of its own, as the limit stays.
    code = """
import torch
from autoft.errors import out_of_memory
from autoft.executors.worker import limit_gpu_memory
limit_gpu_memory(256e6)
held = torch.empty(100_000_000, dtype=torch.uint8, device="cuda")
try:
    torch.empty(200_000_000, dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError as error:
    print(out_of_memory(error), torch.cuda.mem_get_info()[0] > 200_000_000)
del held
print(len(torch.empty(200_000_000, dtype=torch.uint8, device="cuda")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "True", "200000000"], done.stderr


def test_what_cannot_be_trained_in_so_little_memory_is_known_without_training(tmp_path, tiny_model):
    with (tmp_path / "rows.jsonl").open("w") as file:
        for number in range(80):
            file.write(json.dumps({"text": f"film {number}", "label": "good" if number % 2 else "bad"}) + "\n")
    recipe = {
        "task": "text-classification",
        "name": "little",
        "model": str(tiny_model),
        "data": {"train": "rows.jsonl", "validation_size": 20, "test_size": 20},
        "budget": {"time": "3m", "trials": 2, "train_memory": "90MB"},
        "effort": "quick",
        "compress": "none",
    }
    (tmp_path / "little.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "autoft", "search", "little.yaml"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=170, env=environment
    )
    assert done.returncode == 4, done.stdout + done.stderr
    result = json.loads(Path(tmp_path, "runs/little/trials/0000/result.json").read_text())
    assert result["state"] == "infeasible"
    assert result["reason"].startswith("training would take about ")
    assert result["reason"].endswith("even with each batch in 8 parts; nothing was trained")
    assert "train" not in result["seconds"]
    assert result["violations"]["train_memory"] > 1
    assert result["predicted"]["train_memory_bytes"] > 90e6


@pytest.mark.slow
def test_a_search_keeps_a_limit_that_whole_batches_would_break(tmp_path, tiny_model):
    rng = random.Random(0)
    with (tmp_path / "long.jsonl").open("w") as file:
        for _ in range(800):
            good = rng.random() < 0.5
            words = rng.choices(["the", "film", "plot"], k=57) + ["great" if good else "awful"] * 3
            file.write(json.dumps({"text": " ".join(words), "label": "good" if good else "bad"}) + "\n")

    def search(name: str, batch_size: int, **budget: str) -> dict:
        recipe = {
            "task": "text-classification",
            "name": name,
            "model": str(tiny_model),
            "data": {"train": "long.jsonl", "validation_size": 60, "test_size": 60},
            "budget": {"time": "10m", "trials": 1, **budget},
            "effort": "quick",
            "compress": "none",
            "space": {"train.epochs": 12, "train.batch_size": batch_size, "full.learning_rate": 1e-3},
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        command = [sys.executable, "-m", "autoft", "search", f"{name}.yaml"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(Path(tmp_path, "runs", name, "trials/0000/result.json").read_text())

    small, whole = search("small", 4), search("whole", 680)
    assert whole["train_memory_bytes"] > small["train_memory_bytes"] + 60_000_000
    limit = (small["train_memory_bytes"] + whole["train_memory_bytes"]) // 2
    kept = search("kept", 680, train_memory=f"{limit}B")
    assert kept["state"] == "complete"
    assert kept["parts"] > 1
    assert f"each batch in {kept['parts']} parts" in kept["reason"]
    assert kept["train_memory_bytes"] <= limit
