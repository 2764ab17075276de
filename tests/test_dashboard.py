"""``autoft dashboard``: Optuna's dashboard over a copy of the study, which nothing can be done to."""

from __future__ import annotations

import datetime
import http.client
import json
import math
import socket
import subprocess
import sys
import threading

import pytest

from autoft.errors import AutoftError, RunFolderError
from autoft.hardware import Hardware
from autoft.plans.planner import make_plan
from autoft.progress import ProgressWriter, RunReader
from autoft.recipe import recipe_from_mapping
from autoft.rundir import CurvePoint, RunDir, TrialResult, VariantResult, write_json

dashboards = pytest.importorskip("optuna_dashboard")

from autoft.dashboard import Dashboard, _Handler, _study_note, study_of  # noqa: E402 - the extra first

CPU = Hardware("cpu", 2, 8 * 2**30, (), "test", False, "Linux x86_64")


@pytest.fixture
def run(tmp_path, catalog, tiny_model) -> RunDir:
    recipe = {"task": "text-classification", "model": str(tiny_model), "data": "train.csv", "name": "films"}
    recipe["budget"] = {"time": "5m", "model_size": "50MB"}
    recipe["pipelines"] = ["full", "lora"]
    data = {"sizes": {"train": 120, "validation": 40, "test": 40}, "columns": {"text": "text", "label": "label"}}
    plan = make_plan(recipe_from_mapping(recipe), catalog, CPU).with_data({"labels": ["a", "b"]}, data, ())
    folder = RunDir(tmp_path / "run")
    folder.create()
    write_json(folder.plan, plan.model_dump(mode="json"))
    default = plan.default_config()
    large = {"model_size_bytes": 90e6, "latency_p50_ms": 3.0}
    small = {"model_size_bytes": 23e6, "latency_p50_ms": 1.5}
    variants = [
        VariantResult(
            name="none",
            state="infeasible",
            validation={"accuracy": 0.9},
            costs=large,
            violations={"model_size": 0.8},
        ),
        VariantResult(name="onnx-int8", state="complete", validation={"accuracy": 0.88}, costs=small, folder="x"),
    ]
    curve = [
        CurvePoint(
            samples=n, epoch=n / 120, seconds=1.0, train_loss=1.0, learning_rate=1e-4, validation={"accuracy": v}
        )
        for n, v in ((60, 0.6), (120, 0.7))
    ]
    configs = [
        default,
        default.model_copy(update={"number": 1, "pipeline": "lora", "kind": "search"}),
        default.model_copy(update={"number": 3, "kind": "search"}),
        # As a published setting may: outside of what the sampler may propose.
        default.model_copy(update={"number": 4, "params": {**default.params, "train.epochs": 99, "odd.name": "x|y"}}),
    ]
    results = [
        TrialResult(
            number=0, state="complete", config=configs[0], variants=variants, curve=curve, seconds={"total": 9.0}
        ),
        TrialResult(number=1, state="pruned", reason="behind", config=configs[1], curve=curve, seconds={"total": 4.0}),
        TrialResult(number=3, state="failed", reason="<script>alert(1)</script>", config=configs[2]),
        TrialResult(number=4, state="infeasible", config=configs[3], variants=variants[:1], seconds={"total": 5.0}),
    ]
    for result in results:
        folder.write_result(result)
        write_json(folder.trial(result.number) / "config.json", result.config.model_dump(mode="json"))
    return folder


def test_the_study_has_the_trials_of_the_run_under_their_numbers(run):
    study = study_of(RunReader(run.path).read(), run)
    trials = study.trials
    assert [(t.number, t.state.name) for t in trials] == [
        (0, "COMPLETE"),
        (1, "PRUNED"),
        (2, "FAIL"),
        (3, "FAIL"),
        (4, "PRUNED"),
    ]
    first = trials[0]
    assert first.values == [0.88], "of the best variant that fits, though another is better"
    assert first.intermediate_values == {60: 0.6, 120: 0.7}
    assert first.user_attrs["variant"] == "onnx-int8"
    assert first.user_attrs["model size MB"] == 23.0
    assert first.user_attrs["latency p50 ms"] == 1.5
    assert first.user_attrs["pipeline"] == "full"
    assert first.duration == datetime.timedelta(seconds=9)
    assert first.params["pipeline"] == "full"
    assert trials[1].params["pipeline"] == "lora"
    assert trials[2].user_attrs["outcome"] == "taken back before it was done"
    assert "train.epochs" not in trials[4].params
    assert (trials[4].user_attrs["train.epochs"], trials[4].user_attrs["odd.name"]) == (99, "x|y")
    assert trials[4].system_attrs["constraints"] == [0.8]
    assert first.system_attrs["constraints"] == [-1.0]
    assert study.best_trial.number == 0
    assert study.metric_names == ["accuracy"]


def test_a_trial_that_runs_is_in_it(run):
    with ProgressWriter(run) as writer:
        config = RunReader(run.path).read().results[0].config
        writer.trial_started(config.model_copy(update={"number": 5}))
        writer.write()
        study = study_of(RunReader(run.path).read(), run)
    assert (study.trials[5].state.name, study.trials[5].user_attrs["pipeline"]) == ("RUNNING", "full")
    # Once the search has ended, nothing runs any more.
    assert len(study_of(RunReader(run.path).read(), run).trials) == 5


def test_a_number_far_off_is_no_study_without_end(run):
    last = run.results()[-1]
    far = last.config.model_copy(update={"number": 5_000_000})
    run.write_result(last.model_copy(update={"number": 5_000_000, "config": far}))
    with pytest.raises(AutoftError, match="is damaged: there are 5 trials, and one has the number 5000000"):
        study_of(RunReader(run.path).read(), run)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(RunFolderError, match="no such run folder"):
        Dashboard(tmp_path / "none")
    with pytest.raises(AutoftError, match="no search has begun here"):
        Dashboard(tmp_path)


@pytest.fixture
def served(run):
    dashboard = Dashboard(run.path)
    server = dashboard.server(port=0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def ask(method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, text

    ask.port = server.server_port
    yield ask, dashboard
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_page_and_its_data_are_served(served):
    ask, _ = served
    assert ask("GET", "/dashboard")[0] == 200
    status, body = ask("GET", "/api/studies/0")
    assert status == 200
    study = json.loads(body)
    assert study["name"] == "films"
    assert [trial["number"] for trial in study["trials"]] == [0, 1, 2, 3, 4]
    notes = json.dumps(study)
    assert "onnx-int8" in notes
    assert {"key": "model size MB", "value": "23.0"} in study["trials"][0]["user_attrs"]
    assert "nothing that is done here changes the run" in study["note"]["body"]
    assert "| onnx-int8 | complete | 0.8800 | 23 MB | 1.50 ms | – |" in study["trials"][0]["note"]["body"]
    assert "<script>" not in study["trials"][3]["note"]["body"]


def test_the_note_of_the_study_shows_names_as_they_are_and_no_figure_that_there_is_not(run):
    plan = json.loads(run.plan.read_text()) | {
        "name": "<img src=x>",
        "task": "<iframe src=$x$>",
        "metrics": {"accuracy": {"higher_is_better": False}},
    }
    write_json(run.plan, plan)
    result = RunReader(run.path).read().results[0]
    variants = [VariantResult(name="none", state="complete", validation={"accuracy": math.inf}, folder="x")]
    run.write_result(result.model_copy(update={"variants": variants}))
    note = _study_note(RunReader(run.path).read())
    assert note.startswith("**\\<img src=x\\>**: \\<iframe src=\\$x\\$\\>, accuracy (lower is better); ")
    assert "has accuracy –." in note


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", "/api/studies/0", None),
        ("POST", "/api/studies", {"study_name": "other", "directions": ["minimize"]}),
        ("POST", "/api/studies/0/rename", {"study_name": "other"}),
        ("PUT", "/api/studies/0/note", {"version": 9, "body": "x"}),
        ("POST", "/api/trials/0/user-attrs", {"user_attrs": {"a": 1}}),
    ],
)
def test_nothing_can_be_changed(served, run, method, path, body):
    ask, _ = served
    files = sorted((str(path), path.stat().st_mtime_ns) for path in run.path.rglob("*"))
    before = ask("GET", "/api/studies/0")
    status, answer = ask(method, path, json.dumps(body), **{"Content-Type": "application/json"})
    assert status == 405
    assert b"changes nothing" in answer
    assert ask("GET", "/api/studies/0") == before
    assert sorted((str(path), path.stat().st_mtime_ns) for path in run.path.rglob("*")) == files


def test_a_page_from_elsewhere_cannot_read_along(served):
    ask, _ = served
    assert ask("GET", "/api/studies", Host="evil.example:80")[0] == 403
    assert ask("GET", "/api/studies", Host="[::1]evil.example")[0] == 403
    assert ask("GET", "/api/studies", Host="localhost:80")[0] == 200
    assert ask("GET", "/api/studies", Host="[::1]:80")[0] == 200


def test_a_page_from_elsewhere_cannot_have_plots_computed(served):
    ask, _ = served
    for site, status in {"cross-site": 403, "same-site": 403, "same-origin": 200, "none": 200}.items():
        for path in ("/api/studies/0", "/csv/0"):
            assert ask("GET", path, **{"Sec-Fetch-Site": site})[0] == status, (path, site)
        assert ask("GET", "/dashboard", **{"Sec-Fetch-Site": site})[0] == 200


def test_a_header_that_does_not_end_keeps_no_thread(served, monkeypatch, capfd):
    ask, _ = served
    assert _Handler.timeout is not None
    monkeypatch.setattr(_Handler, "timeout", 0.1)
    with socket.create_connection(("127.0.0.1", ask.port), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        assert connection.recv(1) == b""
    assert capfd.readouterr().err == ""


def test_trials_that_end_while_it_is_open_are_shown(served, run, monkeypatch):
    ask, _ = served
    monkeypatch.setattr("autoft.dashboard.LOOKED_EVERY", 0.0)
    result = RunReader(run.path).read().results[0]
    run.write_result(result.model_copy(update={"number": 5, "config": result.config.model_copy(update={"number": 5})}))
    assert len(json.loads(ask("GET", "/api/studies/0")[1])["trials"]) == 6


def test_a_port_that_is_taken_is_told(served, run):
    _, dashboard = served
    busy = dashboard.server(port=0)
    with pytest.raises(AutoftError, match="give --port another one"):
        dashboard.server(port=busy.server_port)
    busy.server_close()


def test_the_command_prints_the_address(run):
    command = [sys.executable, "-m", "autoft", "dashboard", str(run.path), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line
        port = int(line.split("127.0.0.1:")[1].split("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/api/studies")
        assert json.loads(connection.getresponse().read())["study_summaries"][0]["study_name"] == "films"
        connection.close()
    finally:
        process.terminate()
        process.communicate()


def test_without_the_extra_it_says_how_to_install_it(run):
    script = (
        "import sys\nsys.modules['optuna_dashboard'] = None\nfrom autoft.cli import main\n"
        f"sys.argv = ['autoft', 'dashboard', {str(run.path)!r}]\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert 'pip install "autoft[dashboard]"' in done.stderr
