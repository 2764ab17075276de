"""Trials that several processes train together: what the plan says of them, and whole searches on a CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import yaml

from autoft.errors import RecipeError
from autoft.hardware import Gpu, Hardware
from autoft.plans.planner import make_plan
from autoft.recipe import recipe_from_mapping
from autoft.rundir import read_run

CPU = Hardware("cpu", 8, 2**33, (), "test", False, "Linux x86_64")
GPUS = Hardware("cuda", 8, 2**33, (Gpu("test", 2**33, 8.0),) * 2, "test", True, "Linux x86_64")


def recipe_of(model, source, launcher=None, **changes):
    return {
        "task": "text-classification",
        "model": str(model),
        "data": {"train": str(source), "validation_size": 40, "test_size": 40, "limit": 144},
        "budget": {"time": "1h", "trials": 2},
        "effort": "quick",
        "compress": ["none"],
        "pipelines": ["full"],
        "space": {"full.learning_rate": {"low": 2e-3, "high": 8e-3}, "train.epochs": 2, "train.batch_size": 8},
        "search": {"finalist_seeds": 0},
        "launcher": launcher or {"processes": 2},
        **changes,
    }


def planned(catalog, model, source, hardware=CPU, **changes):
    return make_plan(recipe_from_mapping(recipe_of(model, source, **changes)), catalog, hardware)


def test_processes_of_a_training_share_the_cores_and_one_process_shards_nothing(catalog, tiny_model, reviews):
    plan = planned(catalog, tiny_model, reviews)
    assert (plan.processes, plan.sharding, plan.threads) == (2, "fsdp", 4)
    plan = planned(catalog, tiny_model, reviews, launcher={"processes": 1}, executor={"workers": 2})
    assert (plan.processes, plan.sharding, plan.threads) == (1, "none", 4)
    assert planned(catalog, tiny_model, reviews, GPUS, executor={"together": "auto"}).together == 1


def test_what_one_process_has_to_train_is_refused_with_the_reason(catalog, tiny_model, reviews):
    every = sorted(catalog.adapters)
    wanted = [*every, "nf4+lora"]
    plan = planned(
        catalog,
        tiny_model,
        reviews,
        pipelines=wanted,
        regularize=["none", "ema"],
        space={"train.optimizer": ["adamw", "lion"]},
    )
    assert {pipeline.name for pipeline in plan.pipelines} == {
        "full", "head-only", "top-layers", "bitfit", "layernorm", "lora"
    }  # fmt: skip
    refused = {note.what: note.reason for note in plan.refusals}
    for name in ("nf4+lora", "dora", "ema", "train.optimizer=lion"):
        assert "launcher" in refused[name], refused[name]
    assert plan.domain("train.optimizer").choices == ("adamw",)
    assert plan.domain("regularize").choices == ("none",)
    whole = {"launcher": {"processes": 2, "sharding": "none"}, "space": {"train.optimizer": ["adamw", "lion"]}}
    assert planned(catalog, tiny_model, reviews, **whole).domain("train.optimizer").choices == ("adamw", "lion")


@pytest.mark.parametrize(
    ("changes", "hardware", "message"),
    [
        ({"executor": {"together": 2}}, CPU, "leave out executor.together"),
        ({"executor": "ray"}, CPU, "train on this machine alone"),
        ({"auxiliary": [{"task": "text-classification", "data": "x.csv"}]}, CPU, "trained by one process"),
        ({"launcher": {"processes": 3}}, GPUS, "at most 2 here, given 3"),
        ({"executor": {"workers": 2}}, GPUS, "executor.workers is 2; set it to 1"),
        ({"launcher": {"processes": 0}}, CPU, "at least 1, given 0"),
        ({"launcher": {"processes": 2, "sharding": "deepspeed"}}, CPU, "allowed: fsdp or none; given 'deepspeed'"),
    ],
)
def test_what_cannot_be_is_told(catalog, tiny_model, reviews, changes, hardware, message):
    with pytest.raises(RecipeError, match=message):
        planned(catalog, tiny_model, reviews, hardware, **changes)


def test_memory_that_several_processes_share_is_not_predicted(catalog, tiny_model, reviews, tmp_path):
    from autoft.estimates.forecast import forecast

    limits = {"compress": ["onnx"], "budget": {"train_memory": "8GB"}}
    (found,) = forecast(planned(catalog, tiny_model, reviews, **limits), catalog, tmp_path)
    assert found.prediction.peak_bytes is None
    assert "shared by 2 processes" in found.prediction.reason
    assert found.verdict == "probe"


def searching(folder, recipe):
    """Yield the events of a search, and at the end its exit code."""
    path = folder / "two.yaml"
    path.write_text(yaml.safe_dump(recipe))
    words = [sys.executable, "-m", "autoft", "search", str(path), "--run", str(folder / "run"), "--json"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        yield json.loads(line)
    yield {"event": "exit", "code": process.wait()}


def of_run(program, folder):
    """Return the numbers of the processes that work for a run."""
    words = ["pgrep", "-f", f"autoft.executors.{program} {folder / 'run'}"]
    return [int(one) for one in subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["fsdp", "none"])
def test_a_search_trains_each_trial_by_two_processes_and_says_so(tmp_path, tiny_model, reviews, sharding):
    recipe = recipe_of(tiny_model, reviews, {"processes": 2, "sharding": sharding}, pipelines=["full", "lora"])
    *events, last = searching(tmp_path, recipe)
    assert last["code"] == 0
    states = [event["state"] for event in events if event["event"] == "trial_done"]
    assert states[0] == "complete"
    assert states[1] in {"complete", "pruned"}
    assert read_run(tmp_path / "run").final.test["best"]["accuracy"].n == 40
    assert "2, each with its rows of a batch" in (tmp_path / "run" / "report.html").read_text()
    assert "Trained by 2 processes" in (tmp_path / "run" / "best" / "README.md").read_text()
    assert not of_run("[a-z]*", tmp_path)


@pytest.mark.slow
def test_a_process_that_is_killed_costs_what_a_worker_costs(tmp_path, tiny_model, reviews):
    killed, events = {}, []
    for event in searching(tmp_path, recipe_of(tiny_model, reviews)):
        events.append(event)
        trial = event.get("trial")
        if event["event"] == "progress" and trial not in killed:
            (follower,) = of_run("follower", tmp_path)
            killed[trial] = signal.SIGTERM if trial else signal.SIGKILL
            os.kill(follower, killed[trial])
    assert killed == {0: signal.SIGKILL, 1: signal.SIGTERM}
    assert events[-1]["code"] == 0
    done = {event["trial"]: event for event in events if event["event"] == "trial_done"}
    notes = [event["text"] for event in events if event["event"] == "note"]
    again = [note for note in notes if "begun again with each batch in 2 parts" in note]
    assert len(again) == 1
    assert "killed by signal 9, in process 2 of the 2 that train the trial" in again[0]
    assert done[0]["state"] == "complete"
    assert done[1]["state"] == "failed"
    assert "process 2 of the 2 that train the trial was killed by signal 15" in done[1]["reason"]
    assert not of_run("[a-z]*", tmp_path)


PLUGIN = """
import os

import autoft.strategies.full
from autoft.hookspecs import hookimpl
from autoft.space import Categorical, Float


class Faulty(autoft.strategies.full.Full):
    name = "faulty"
    summary = "train all weights, badly"
    published = ()
    space = {
        "learning_rate": Float(1e-3, 1e-2, default=5e-3),
        "how": Categorical(("well", "attach raises", "step raises", "step raises in one", "step exits in one")),
    }

    def attach(self, model, target, params):
        self.how = params["how"]
        if self.how == "attach raises":
            raise KeyError("attached")
        return super().attach(model, target, params)

    def after_step(self, model, step, steps):
        import torch

        if self.how == "step raises" or (self.how == "step raises in one" and torch.distributed.get_rank() == 1):
            raise KeyError("stepped")
        if self.how == "step exits in one" and torch.distributed.get_rank() == 1:
            os._exit(3)


@hookimpl
def autoft_strategies():
    return [Faulty()]
"""


@pytest.mark.slow
def test_what_fails_in_one_process_or_in_both_is_named_and_the_next_trial_begins(
    tmp_path, tiny_model, reviews, monkeypatch
):
    (tmp_path / "autoft_faulty.py").write_text(PLUGIN)
    described = tmp_path / "autoft_faulty-0.1.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: autoft-faulty\nVersion: 0.1\n")
    (described / "entry_points.txt").write_text("[autoft]\nfaulty = autoft_faulty\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    changes = {
        "pipelines": ["faulty"],
        "budget": {"time": "1h", "trials": 5},
        "search": {"finalist_seeds": 0, "sampler": "grid", "early_stopping": "none"},
        "space": {"faulty.learning_rate": 5e-3, "train.epochs": 1, "train.batch_size": 16, "train.max_length": 32},
    }
    *_, last = searching(tmp_path, recipe_of(tiny_model, reviews, **changes))
    assert last["code"] == 0
    trials = {trial.config.params["faulty.how"]: trial for trial in read_run(tmp_path / "run").trials}
    assert {how: trial.state for how, trial in trials.items()} == {
        "well": "complete",
        "attach raises": "failed",
        "step raises": "failed",
        "step raises in one": "failed",
        "step exits in one": "failed",
    }
    reasons = {how: trial.reason or "" for how, trial in trials.items()}
    assert "KeyError: 'attached'" in reasons["attach raises"]
    assert reasons["step raises"].startswith("KeyError: 'stepped'")
    second = "process 2 of the 2 that train the trial"
    assert f"{second} failed: KeyError: 'stepped'" in reasons["step raises in one"]
    assert f"{second} ended with 3" in reasons["step exits in one"]
    assert not of_run("[a-z]*", tmp_path)
