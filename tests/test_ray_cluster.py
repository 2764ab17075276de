"""Whole searches on a Ray cluster of several node processes on this machine: what is lost with a node, and what is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.ray]

COMMAND = [sys.executable, "-m", "autoft", "search"]


@pytest.fixture
def cluster(monkeypatch):
    """A head without room for workers; nodes are added by the tests."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield found
    found.shutdown()


def write_recipe(folder: Path, model: Path, source: Path, **changes) -> Path:
    recipe = {
        "task": "text-classification",
        "name": "tiny",
        "model": str(model),
        "data": {"train": str(source), "validation_size": 80, "test_size": 80},
        "budget": {"time": "20m", "trials": 3},
        "effort": "quick",
        "compress": ["none"],
        "space": {"full.learning_rate": {"low": 2e-3, "high": 8e-3}, "train.epochs": [6, 8], "train.batch_size": 8},
        "search": {"finalist_seeds": 0},
        "executor": {"threads": 1},
        **changes,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def searching(folder: Path, recipe: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, str(recipe), "--json", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended_well(process: subprocess.Popen[str]) -> list[dict]:
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, out + errors
    # Ray says nothing over the display.
    assert errors == ""
    return [json.loads(line) for line in out.splitlines()]


def results(run: Path) -> dict[int, dict]:
    """Return what trials found, without times and places."""
    found = {}
    for path in run.glob("trials/*/result.json"):
        result = json.loads(path.read_text())
        variants = [(variant["name"], variant["state"], variant["validation"]) for variant in result["variants"]]
        points = [(point["samples"], point["train_loss"], point["validation"]) for point in result["curve"]]
        found[result["number"]] = {
            "config": result["config"],
            "state": result["state"],
            "validation": result["validation"],
            "variants": variants,
            "curve": points,
        }
    return found


def workers(folder: Path) -> list[psutil.Process]:
    """Return the worker processes of a folder's runs."""
    found = []
    for one in psutil.process_iter(["cmdline"]):
        words = one.info["cmdline"] or []
        if "autoft.executors.worker" in words and str(folder) in words[-1]:
            found.append(one)
    return found


def gone(folder: Path, seconds: float = 60.0) -> float:
    """Wait until there is no worker process; return how long that took."""
    begin = time.monotonic()
    while workers(folder):
        assert time.monotonic() - begin < seconds, workers(folder)
        time.sleep(0.05)
    return time.monotonic() - begin


def left_of_ray(seconds: float = 30.0) -> list[psutil.Process]:
    """Return the processes of Ray that searches started, once they had time to end."""
    end = time.monotonic() + seconds
    while True:
        found = [
            one for one in psutil.process_iter(["cmdline"]) if "autoft-ray-" in " ".join(one.info["cmdline"] or [])
        ]
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.1)


def test_ray_and_this_machine_find_the_same_and_workers_wait_for_room(tmp_path, tiny_model, reviews, cluster):
    recipe = write_recipe(tmp_path, tiny_model, reviews)
    ended_well(searching(tmp_path, recipe, "--run", "here"))
    process = searching(tmp_path, recipe, "--run", "there", "--executor", "ray", "--address", cluster.address)
    notes = []
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "note":
            notes.append(event["text"])
            break
    cluster.add_node(num_cpus=1)
    ended_well(process)
    assert "Ray has found no place for a further worker yet, which needs 1 CPU;" in notes[0]
    assert results(tmp_path / "there") == results(tmp_path / "here")
    assert len(results(tmp_path / "there")) == 3
    gone(tmp_path)


def test_a_cluster_without_room_is_waited_for_no_longer_than_the_budget_says(tmp_path, tiny_model, reviews, cluster):
    recipe = write_recipe(tmp_path, tiny_model, reviews, budget={"time": "20s", "trials": 3})
    process = searching(tmp_path, recipe, "--executor", "ray", "--address", cluster.address)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 7, out + errors
    assert "no machine of the cluster had room for a worker until budget.time was used up" in errors
    events = [json.loads(line) for line in out.splitlines()]
    waits = [event for event in events if event["event"] == "waits"]
    assert "which needs 1 CPU" in waits[0]["text"]
    assert {"event": "phase", "name": "wait for machines"} in events
    # Nothing was tried: no time of the budget is gone.
    assert json.loads((tmp_path / "runs/tiny/time.json").read_text()) == {"seconds": 0.0}


def test_a_lost_node_costs_its_trial_nothing_but_time(tmp_path, tiny_model, reviews, cluster):
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    space = {"full.learning_rate": {"low": 2e-3, "high": 8e-3}, "train.epochs": 30, "train.batch_size": 8}
    recipe = write_recipe(tmp_path, tiny_model, reviews, space=space)
    process = searching(tmp_path, recipe, "--executor", "ray", "--address", cluster.address)
    events, first = [], None
    for line in process.stdout:
        events.append(json.loads(line))
        if first is None and (events[-1]["event"], events[-1].get("trial")) == ("progress", 1):
            first = (tmp_path / "runs/tiny/trials/0000/result.json").read_bytes()
            raylet = workers(tmp_path)[0].parent().parent().pid
            lost = next(node for node in nodes if node.all_processes["raylet"][0].process.pid == raylet)
            cluster.remove_node(lost, allow_graceful=False)
    assert process.wait() == 0, process.stderr.read()
    done = [event["trial"] for event in events if event["event"] == "trial_done"]
    assert sorted(done) == [0, 1, 2]
    assert (tmp_path / "runs/tiny/trials/0000/result.json").read_bytes() == first
    states = {number: result["state"] for number, result in results(tmp_path / "runs/tiny").items()}
    assert set(states.values()) <= {"complete", "pruned"}
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert [note for note in notes if note.startswith("Trial 1 is begun again on another machine: node ")]
    gone(tmp_path)


@pytest.mark.parametrize("alone", [False, True])
def test_a_killed_search_leaves_no_process_and_goes_on(tmp_path, tiny_model, reviews, cluster, alone):
    cluster.add_node(num_cpus=1)
    recipe = write_recipe(tmp_path, tiny_model, reviews, executor={"kind": "ray", "threads": 1})
    words = [] if alone else ["--address", cluster.address]
    process = searching(tmp_path, recipe, *words)
    for line in process.stdout:
        event = json.loads(line)
        if (event["event"], event.get("trial")) == ("progress", 1):
            os.kill(process.pid, signal.SIGKILL)
            break
    process.communicate()
    seconds = gone(tmp_path)
    if alone:
        assert not left_of_ray()
    print(f"the worker ended {seconds:.2f} s after the search")
    before = (tmp_path / "runs/tiny/trials/0000/result.json").read_bytes()
    # Its own folder stays behind where a search is killed, and not where it ends.
    folders = set(Path(tempfile.gettempdir()).glob("autoft-ray-*"))
    events = ended_well(searching(tmp_path, recipe, *words))
    if alone:
        assert not left_of_ray()
        assert set(Path(tempfile.gettempdir()).glob("autoft-ray-*")) <= folders
    done = [event["trial"] for event in events if event["event"] == "trial_done"]
    assert sorted(done) == [1, 2]
    assert (tmp_path / "runs/tiny/trials/0000/result.json").read_bytes() == before
    gone(tmp_path)


def test_a_lost_head_ends_the_search_with_what_to_do_and_another_cluster_goes_on(
    tmp_path, tiny_model, reviews, cluster
):
    from ray.cluster_utils import Cluster

    cluster.add_node(num_cpus=1)
    space = {"full.learning_rate": {"low": 2e-3, "high": 8e-3}, "train.epochs": 100, "train.batch_size": 8}
    recipe = write_recipe(tmp_path, tiny_model, reviews, space=space, budget={"time": "20m", "trials": 2})
    process = searching(tmp_path, recipe, "--executor", "ray", "--address", cluster.address)
    for line in process.stdout:
        event = json.loads(line)
        if (event["event"], event.get("trial")) == ("progress", 1):
            cluster.head_node.kill_gcs_server()
            break
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 7, out + errors
    assert "the head of the Ray cluster has not answered for 20 s; what is done is kept" in errors
    assert "Traceback" not in errors
    gone(tmp_path)
    before = (tmp_path / "runs/tiny/trials/0000/result.json").read_bytes()
    other = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        events = ended_well(searching(tmp_path, recipe, "--executor", "ray", "--address", other.address))
    finally:
        other.shutdown()
    assert [event["trial"] for event in events if event["event"] == "trial_done"] == [1]
    assert (tmp_path / "runs/tiny/trials/0000/result.json").read_bytes() == before
