"""A plugin of a stranger whose hooks raise, exit, hang, print and ask: a trial each, and the search goes on."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from functools import partial

import pytest
import yaml

PLUGIN = """
import os
import signal
import sys
import time

import autoft.strategies.dynamic_int8
import autoft.strategies.full
from autoft.contracts import CostMetric
from autoft.hookspecs import hookimpl
from autoft.space import Categorical, Float

HOOKS = ("attach", "after_step")
HOWS = ("raise", "exit", "_exit", "hang", "print", "ask", "leak")
KEPT = []


def trouble(hook, params):
    how = params["how"]
    if not how.startswith(hook + " "):
        return
    if how.endswith(" raise"):
        raise KeyError("what nobody has")
    if how.endswith(" exit"):
        sys.exit("no more")
    if how.endswith(" _exit"):
        os._exit(0)
    if how.endswith(" hang"):
        time.sleep(3600)
    if how.endswith(" leak"):
        KEPT.extend(open(__file__) for _ in range(150))
        return
    if how.endswith(" ask"):
        input("Your name? ")
    if how.endswith(" kill") and not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    # Standard output, and what the worker speaks to the search by.
    for channel in (1, 4):
        os.write(channel, b"garbage \\xff\\n{\\"event\\": 3}\\n{")


class Faulty(autoft.strategies.full.Full):
    name = "faulty"
    summary = "train all weights, badly"
    published = ()
    space = {
        "learning_rate": Float(1e-3, 1e-2, default=5e-3, log=True),
        "how": Categorical(("none", *(f"{hook} {how}" for hook in HOOKS for how in HOWS))),
    }
    how = {"how": "none"}

    def check(self, target):
        how = os.environ.get("FAULTY_CHECK")
        return trouble("check", {"how": how}) if how else None

    def attach(self, model, target, params):
        self.how = params
        trouble("attach", params)
        return super().attach(model, target, params)

    def after_step(self, model, step, steps):
        trouble("after_step", self.how)


class Calls(CostMetric):
    name = "calls"
    summary = "measured in the test alone"
    unit = "count"
    columns = ("calls",)
    on_request = True

    def measure(self, served):
        trouble("measure", {"how": os.environ.get("FAULTY_MEASURE", "")})
        return {"calls": 1.0}


@hookimpl
def autoft_strategies():
    return [Faulty()]


@hookimpl
def autoft_metrics():
    return [Calls()]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the plugin as an installer leaves it."""
    folder = tmp_path_factory.mktemp("site-packages")
    (folder / "autoft_faulty.py").write_text(PLUGIN)
    described = folder / "autoft_faulty-0.1.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: autoft-faulty\nVersion: 0.1\n")
    (described / "entry_points.txt").write_text("[autoft]\nfaulty = autoft_faulty\n")
    return folder


def searched(recipe, site, cwd, files=None, **environment):
    """Call a command of autoft with the plugin installed, each of whose processes may open so many files."""
    (cwd / "faulty.yaml").write_text(yaml.safe_dump(recipe))
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "autoft", "search", "faulty.yaml"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (files, files)) if files else None,
    )


def test_a_fault_in_the_command_is_one_line_with_the_hook_and_the_place(site, tiny_model, reviews, tmp_path):
    recipe = {"task": "text-classification", "model": str(tiny_model), "data": str(reviews), "pipelines": ["faulty"]}
    done = searched(recipe, site, tmp_path, FAULTY_CHECK="check exit")
    assert done.returncode == 3, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    at = f"in the hook check of the plugin faulty (autoft-faulty)), {site / 'autoft_faulty.py'}:"
    assert line.startswith(f"error: SystemExit: no more ({at}")


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["attach", "after_step"])
def test_each_fault_of_a_hook_costs_its_trial_and_is_named(hook, site, tiny_model, reviews, tmp_path):
    hows = [f"{hook} {how}" for how in ("raise", "exit", "_exit", "hang", "print", "ask")]
    recipe = {
        "task": "text-classification",
        "model": str(tiny_model),
        "data": {"train": str(reviews), "limit": 120, "validation_size": 40, "test_size": 40},
        "budget": {"time": "10m", "trials": 1 + len(hows)},
        "effort": "quick",
        "pipelines": ["full", "faulty"],
        "compress": ["none"],
        "space": {
            "train.epochs": 1,
            "train.batch_size": 8,
            "train.dropout": 0.1,
            "faulty.how": hows,
            "faulty.learning_rate": 5e-3,
            "full.learning_rate": 5e-3,
        },
        "search": {"sampler": "grid", "finalist_seeds": 0, "early_stopping": "none"},
        "executor": {"threads": 1, "patience": "2s"},
    }
    done = searched(recipe, site, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    results = [json.loads(path.read_text()) for path in (tmp_path / "runs/faulty/trials").glob("*/result.json")]
    found = {result["config"]["params"].get("faulty.how"): result for result in results}
    at = f"in the hook {hook} of the plugin faulty (autoft-faulty)"
    reasons = {
        "raise": f"KeyError: 'what nobody has' ({at})",
        "exit": f"SystemExit: no more ({at})",
        "_exit": f"the worker process ended with 0, {at}",
        "hang": "the worker process was ended: no progress for ",
        "ask": f"EOFError: EOF when reading a line ({at})",
    }
    for how, reason in reasons.items():
        result = found[f"{hook} {how}"]
        assert (result["state"], reason in result["reason"], at in result["reason"]) == ("failed", True, True), result
        assert reason in done.stdout
    assert found[f"{hook} print"]["state"] == "complete"
    assert "not an event: garbage" in (tmp_path / "runs/faulty/logs/worker-0.log").read_text(errors="replace")


@pytest.mark.slow
def test_a_hook_that_leaves_files_open_costs_workers_and_no_trial(site, tiny_model, reviews, tmp_path):
    recipe = {
        "task": "text-classification",
        "model": str(tiny_model),
        "data": {"train": str(reviews), "limit": 120, "validation_size": 40, "test_size": 40},
        "budget": {"time": "10m", "trials": 4},
        "effort": "quick",
        "pipelines": ["faulty"],
        "compress": ["none"],
        "space": {
            "train.epochs": 1,
            "train.batch_size": 8,
            "train.dropout": 0.1,
            "faulty.how": "attach leak",
            "faulty.learning_rate": [2e-3, 3e-3, 4e-3, 5e-3],
        },
        "search": {"sampler": "grid", "finalist_seeds": 0, "early_stopping": "none"},
        "executor": {"threads": 1, "workers": 1},
    }
    done = searched(recipe, site, tmp_path, files=256)
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(path.read_text()) for path in (tmp_path / "runs/faulty/trials").glob("*/result.json")]
    assert [result["state"] for result in results] == ["complete"] * 4, [result["reason"] for result in results]


@pytest.mark.slow
def test_a_fault_in_the_test_of_the_chosen_model_is_named_and_loses_nothing(site, tiny_model, reviews, tmp_path):
    recipe = {
        "task": "text-classification",
        "model": str(tiny_model),
        "data": {"train": str(reviews), "limit": 120, "validation_size": 40, "test_size": 40},
        "budget": {"time": "10m", "trials": 1},
        "effort": "quick",
        "compress": ["none"],
        "space": {"train.epochs": 1, "train.batch_size": 8},
        "executor": {"threads": 1, "patience": "5s"},
    }
    result = tmp_path / "runs/faulty/trials/0000/result.json"
    at = "in the hook measure of the plugin faulty (autoft-faulty)"
    said = {
        "raise": (6, f"KeyError: 'what nobody has' ({at})"),
        "exit": (6, f"SystemExit: no more ({at})"),
        "_exit": (6, f"it ended with 0, {at}"),
        "ask": (6, f"EOFError: EOF when reading a line ({at})"),
    }
    before = None
    for how, (code, words) in said.items():
        done = searched(recipe, site, tmp_path, FAULTY_MEASURE=f"measure {how}")
        assert (done.returncode, words in done.stderr) == (code, True), (how, done.stdout + done.stderr)
        assert "Traceback" not in done.stdout + done.stderr
        before = before or result.read_bytes()
        assert result.read_bytes() == before
    done = searched(recipe, site, tmp_path, FAULTY_MEASURE="measure kill")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The process that scores best was killed by signal 9" in done.stdout
    assert json.loads((tmp_path / "runs/faulty/report.json").read_text())["best"]["test"]["accuracy"]["n"] == 40
    assert result.read_bytes() == before
