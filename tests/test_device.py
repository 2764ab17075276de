"""Profiles of devices that models are for, and what a search makes of them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import autoft
from autoft.device import WORKLOADS, DeviceProfile, dump_profile, read_profile
from autoft.errors import RecipeError, RunFolderError
from autoft.evaluation import measure_folder
from autoft.hardware import Hardware
from autoft.plans.planner import make_plan
from autoft.plugins import load_plugins
from autoft.recipe import recipe_from_mapping
from autoft.rundir import RunDir, TrialConfig, TrialResult, write_json
from autoft.workloads import SHAPES, latency_scales

HERE = {name: [1.0, 10.0] for name in WORKLOADS}


def profile(**changes) -> DeviceProfile:
    given = {"name": "board", "cpu": "A72", "threads": 4, "memory": "2GiB", "milliseconds": HERE, **changes}
    return DeviceProfile(**given)


def plan_for(folder: Path, model: Path, device: DeviceProfile | None, **changes):
    if device is not None:
        (folder / "board.yaml").write_text(dump_profile(device))
    recipe = {
        "task": "text-classification",
        "model": str(model),
        "data": "absent.csv",
        "budget": {"target": "board.yaml"},
        "compress": ["none", "onnx-int8", "dynamic-int8"],
        **changes,
    }
    return make_plan(recipe_from_mapping(recipe), load_plugins(), Hardware.probe_cpu(), folder)


def test_a_profile_is_read_back_as_it_was_written(tmp_path):
    path = tmp_path / "board.yaml"
    path.write_text(dump_profile(profile()))
    assert read_profile(path) == profile()
    assert read_profile(path).memory_bytes == 2 * 2**30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "cannot be read"),
        ("- 1", "is no profile of a device"),
        (yaml.safe_dump({**profile().model_dump(), "memory": "much"}), "memory: .*needs a size with a unit"),
        (yaml.safe_dump({**profile().model_dump(), "milliseconds": {"cuda": [1.0]}}), "given cuda"),
        (yaml.safe_dump({**profile().model_dump(), "milliseconds": {"torch": [0.0]}}), "all above 0"),
    ],
)
def test_a_file_that_is_no_profile_gets_a_message(tmp_path, text, message):
    path = tmp_path / "board.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{message}.*autoft hardware --measure"):
        read_profile(path)


def test_a_missing_profile_is_a_fault_of_the_recipe(tmp_path, tiny_model):
    with pytest.raises(RecipeError, match=r"budget.target: no such file"):
        plan_for(tmp_path, tiny_model, None)


def test_the_memory_of_the_device_is_a_limit(tmp_path, tiny_model):
    limits = plan_for(tmp_path, tiny_model, profile()).budget
    assert [(limit.column, limit.limit) for limit in limits] == [("inference_memory_bytes", 2 * 2**30)]


def test_what_the_device_has_no_runtime_for_is_refused(tmp_path, tiny_model):
    plan = plan_for(tmp_path, tiny_model, profile(milliseconds={"onnxruntime-int8": [1.0, 2.0]}))
    assert [variant.name for variant in plan.variants] == ["onnx-int8"]
    reasons = {note.what: note.reason for note in plan.refusals}
    assert "board has no torch" in reasons["none"]
    assert "board has no torch-int8" in reasons["dynamic-int8"]


def test_a_run_whose_trials_were_told_for_another_device_does_not_go_on(tmp_path, tiny_model):
    run = RunDir(tmp_path / "runs/r")
    plan = plan_for(tmp_path, tiny_model, profile())
    run.create()
    write_json(run.plan, plan.model_dump(mode="json"))
    config = TrialConfig(number=0, kind="search", model="m", pipeline="full", params={}, seed=0)
    run.write_result(TrialResult(number=0, state="complete", config=config, variants=[]))
    faster = plan_for(tmp_path, tiny_model, profile(milliseconds={name: [0.5, 5.0] for name in WORKLOADS}))
    recipe = {
        "task": "text-classification",
        "model": str(tiny_model),
        "data": "absent.csv",
        "budget": {"target": str(tmp_path / "board.yaml")},
    }
    assert faster.target != plan.target
    with pytest.raises(
        RunFolderError, match=r"the profile that budget\.target names was changed since the first trials"
    ):
        autoft.search(recipe, run=run.path)


def test_the_scale_is_the_geometric_mean_over_shapes():
    scales = latency_scales({"torch": [2.0, 80.0], "onnxruntime": [1.0, 1.0]}, {"torch": [1.0, 10.0]})
    assert scales == {"torch": pytest.approx(math.sqrt(2 * 8))}


@pytest.mark.slow
def test_a_search_judges_by_the_device(tmp_path, tiny_model, reviews):
    """A device a thousand times slower in torch than in ONNX Runtime: the limit leaves one of two alike models."""
    slow = {name: [1e6, 1e7] if name == "torch" else [1e-3, 1e-2] for name in WORKLOADS}
    (tmp_path / "board.yaml").write_text(dump_profile(profile(milliseconds=slow)))
    recipe = {
        "task": "text-classification",
        "model": str(tiny_model),
        "data": {"train": str(reviews), "validation_size": 60, "test_size": 60},
        "budget": {"time": "5m", "trials": 1, "target": "board.yaml", "latency": "1s"},
        "effort": "quick",
        "compress": ["none", "onnx"],
        "space": {"train.epochs": 1},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "autoft", "search", "r.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Latency is told for board (A72, 4 threads)" in done.stdout
    run = tmp_path / "runs/r"
    report = json.loads((run / "report.json").read_text())
    assert report["best"]["variant"] == "onnx"
    here = json.loads((run / "workloads.json").read_text())["milliseconds"]
    assert set(here) == set(WORKLOADS)
    assert all(len(times) == len(SHAPES) and min(times) > 0 for times in here.values())
    scales = json.loads((run / "plan.json").read_text())["target"]["scales"]
    costs = report["best"]["costs"]
    assert costs["latency_p50_ms"] == pytest.approx(scales["onnxruntime"] * costs["latency_here_p50_ms"])
    default = report["baselines"]["default"]["costs"]
    assert default["latency_p50_ms"] == pytest.approx(scales["torch"] * default["latency_here_p50_ms"])
    assert default["latency_p50_ms"] > 1000
    assert "Latency is told for board" in (run / "report.md").read_text()
    # One is a graph, the other runs in torch: both are forked with the libraries of such a process, and no others.
    trial = json.loads((run / "trials/0000/result.json").read_text())
    memory = {one["name"]: one["costs"]["inference_memory_bytes"] for one in trial["variants"]}
    assert memory["onnx"] == pytest.approx(costs["inference_memory_bytes"], rel=0.02)
    assert memory["none"] == pytest.approx(default["inference_memory_bytes"], rel=0.02)
    # Of a device that has no torch, a model that runs in torch has no latency.
    settings = {"validation": False, "batch_size": 1, "length": None, "device": "cpu", "threads": 1}
    alone = measure_folder(run / "trials/0000/variants/none", run / "data", scales={"onnxruntime": 2.0}, **settings)
    assert "latency_p50_ms" not in alone["costs"]
    assert alone["costs"]["latency_here_p50_ms"] > 0
