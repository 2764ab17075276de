from __future__ import annotations

import csv
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest

import autoft
from autoft.api import _place
from autoft.errors import DataError, RecipeError, RunFolderError
from autoft.hardware import Hardware
from autoft.plans.plan import read_plan
from autoft.plans.planner import make_plan
from autoft.recipe import dump_recipe, recipe_from_mapping
from autoft.rundir import (
    RunDir,
    TrialConfig,
    TrialResult,
    VariantResult,
    read_json,
    read_run,
    replacing_folder,
    write_json,
    write_text,
)


def result(number: int, **changes) -> TrialResult:
    config = TrialConfig(number=number, kind="search", model="m", pipeline="full", params={"train.epochs": 3}, seed=0)
    variant = VariantResult(
        name="none",
        state="complete",
        validation={"accuracy": 0.5, "roc_auc": float("nan")},
        costs={"latency_p50_ms": 2.0},
    )
    values = {"number": number, "state": "complete", "config": config, "variants": [variant], **changes}
    return TrialResult(**values)


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create()
    return run


def test_results_come_back_by_number_nan_included(run):
    for number in (10, 2):
        run.write_result(result(number))
    found = run.results()
    assert [r.number for r in found] == [2, 10]
    assert found[0].variants[0].validation["accuracy"] == 0.5
    assert found[0].variants[0].validation["roc_auc"] != found[0].variants[0].validation["roc_auc"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's names of open files")
def test_weights_are_on_the_disk_before_the_result_that_tells_of_them(run, monkeypatch):
    flushed: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (flushed.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    weights = run.trial(1) / "variants/none/model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"w")
    run.write_result(result(1))
    *before, own, trial, trials = flushed
    assert {str(weights), str(weights.parent), str(weights.parent.parent)} <= set(before)
    assert "result.json" in own
    assert (trial, trials) == (str(run.trial(1)), str(run.trial(1).parent))


def test_a_trial_without_a_result_is_cleared_and_its_number_told(run):
    run.write_result(result(0))
    run.trial(1).mkdir()
    (run.trial(1) / "config.json").write_text("{}")
    assert run.clear_partial() == [1]
    assert not run.trial(1).exists()
    assert run.result(0).is_file()


def test_the_csv_holds_every_figure_and_leaves_undefined_ones_empty(run):
    pruned = result(1, state="pruned", reason='behind, "far"\nbehind', variants=[], validation={"accuracy": 0.4})
    run.write_trials_csv([pruned, result(0)])
    with (run.path / "trials.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["trial"] for line in lines] == ["0", "1"]
    assert lines[0]["validation.accuracy"] == "0.5"
    assert lines[0]["validation.roc_auc"] == ""
    assert lines[0]["latency_p50_ms"] == "2.0"
    assert lines[1]["reason"] == 'behind, "far"\nbehind'
    assert lines[1]["variant"] == ""


def test_the_csv_holds_nothing_that_a_spreadsheet_computes(run):
    negative = VariantResult(
        name="none", state="failed", reason='=HYPERLINK("http://a.example")', validation={"gain": -0.5}
    )
    run.write_trials_csv([result(0, variants=[negative])])
    with (run.path / "trials.csv").open(newline="", encoding="utf-8") as file:
        (line,) = csv.DictReader(file)
    assert (line["reason"], line["validation.gain"]) == ("""'=HYPERLINK("http://a.example")""", "-0.5")


def test_code_of_models_in_a_stranger_s_run_runs_only_where_it_is_said(run, tiny_model, catalog):
    recipe = recipe_from_mapping(
        {"task": "text-classification", "model": str(tiny_model), "data": "reviews.csv", "trust_remote_code": True}
    )
    write_text(run.recipe, dump_recipe(recipe))
    write_json(run.plan, make_plan(recipe, catalog, Hardware.probe_cpu()).model_dump(mode="json"))
    with pytest.raises(
        RunFolderError, match=f"code run .* of {re.escape(str(tiny_model))} and .*; give --trust-remote-code"
    ):
        autoft.add(run.path, ["train.epochs=2"])
    plan = read_plan(run.plan)
    renamed = plan.models[0].model_copy(update={"name": "known/name", "path": "other/name", "revision": "c0ffee"})
    write_json(run.plan, plan.model_copy(update={"models": [renamed]}).model_dump(mode="json"))
    with pytest.raises(RunFolderError, match=r"code run .* of other/name@c0ffee and"):
        autoft.add(run.path, ["train.epochs=2"])
    with pytest.raises(RunFolderError, match="no trial is done"):
        autoft.add(run.path, ["train.epochs=2"], trust_remote_code=True)


def test_a_search_goes_on_in_a_folder_from_elsewhere_with_code_of_models_only_where_it_is_said(
    run, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = {"task": "text-classification", "model": str(tiny_model), "data": "absent.csv", "trust_remote_code": True}
    run.write_result(result(0))
    asks = r"run: was not begun at this place by you.*; give --trust-remote-code"
    with pytest.raises(RunFolderError, match=asks):
        autoft.search(recipe, run=run.path)
    # What is said once holds for this folder, and for no copy of it.
    for trusted in (True, False):
        with pytest.raises(DataError, match=r"absent\.csv"):
            autoft.search(recipe, run=run.path, trust_remote_code=trusted)
    run.path.rename(tmp_path / "old")
    shutil.copytree(tmp_path / "old", run.path)
    with pytest.raises(RunFolderError, match=asks):
        autoft.search(recipe, run=run.path)
    with pytest.raises(DataError, match=r"absent\.csv"):
        autoft.search(recipe, run=run.path, trust_remote_code=True)
    # Nor for what another puts in its place, which may get the number that it had on the disk.
    (run.path / ".begun").unlink()
    with pytest.raises(RunFolderError, match=asks):
        autoft.search(recipe, run=run.path)
    with pytest.raises(DataError, match=r"absent\.csv"):
        autoft.search({**recipe, "trust_remote_code": False}, run=run.path)
    # What a search began itself it goes on with.
    for _ in range(2):
        with pytest.raises(DataError, match=r"absent\.csv"):
            autoft.search(recipe, run=tmp_path / "new")
        write_json(RunDir(tmp_path / "new").plan, {})


def test_a_stranger_s_run_connects_to_the_cluster_that_the_user_names_and_to_no_other(run, tiny_model, catalog):
    recipe = recipe_from_mapping({"task": "text-classification", "model": str(tiny_model), "data": "reviews.csv"})
    plan = make_plan(recipe, catalog, Hardware.probe_cpu())
    plan = plan.model_copy(update={"executor": "ray", "address": "192.0.2.1:6379"})
    write_text(run.recipe, dump_recipe(recipe))
    write_json(run.plan, plan.model_dump(mode="json"))
    with pytest.raises(
        RunFolderError, match=r"cluster at 192\.0\.2\.1:6379; give --address 192\.0\.2\.1:6379 to connect"
    ):
        autoft.add(run.path, ["train.epochs=2"])
    with pytest.raises(RecipeError, match=r"--address ray://other: .* has to be auto, local or host:port"):
        autoft.add(run.path, ["train.epochs=2"], address="ray://other")
    with pytest.raises(RunFolderError, match="no trial is done"):
        autoft.add(run.path, ["train.epochs=2"], address="local")
    assert _place(plan, "local", run) == {"executor": "local", "address": None}
    assert _place(plan, "other:6379", run) == {"executor": "ray", "address": "other:6379"}
    assert _place(plan.model_copy(update={"address": None}), None, run) == {}


def test_a_path_of_the_record_cannot_leave_the_folder(run):
    assert run.inside("trials/0000") == (run.path / "trials/0000").resolve()
    for path in ("../x", "/etc/passwd", "trials/../../x"):
        with pytest.raises(RunFolderError, match="outside the run folder"):
            run.inside(path)


@pytest.mark.parametrize("name", ["trials/\0", "trials/\ud824"])
def test_a_path_of_the_record_with_what_no_name_has_is_told(name, run):
    with pytest.raises(RunFolderError, match="which is no path"):
        run.inside(name)


def test_a_link_of_the_record_cannot_leave_the_folder(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (run.path / "trials/0000").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFolderError, match="outside the run folder"):
        run.inside("trials/0000")


@pytest.mark.parametrize("place", ["plan.json", "logs/final-best.log", "trials/0000", "picks"])
def test_nothing_is_done_in_a_folder_with_a_link_that_leads_out_of_it(place, run, tmp_path):
    (run.path / "inner").symlink_to(run.path / "cache")
    with run.lock():
        pass
    (tmp_path / "elsewhere").mkdir()
    (run.path / place).parent.mkdir(exist_ok=True)
    (run.path / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFolderError, match=f"outside the run folder: '{place}'"), run.lock():
        pass


@pytest.mark.parametrize("name", [".lock", "logs", "data/encoded/.features-a.lock", "trials/0003/checkpoint"])
def test_nothing_is_written_through_a_link_that_leads_out_of_the_folder(name, run, tmp_path):
    kept = tmp_path / "elsewhere" / "kept"
    kept.parent.mkdir()
    kept.write_text("kept")
    link = run.path / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_dir():
        link.rmdir()
    link.symlink_to(kept.parent if name in {"logs", "trials/0003/checkpoint"} else kept)
    with pytest.raises(RunFolderError, match=f"outside the run folder: '{name}'"), run.lock():
        pass
    assert kept.read_text() == "kept"
    assert os.listdir(kept.parent) == ["kept"]


def write_aged(path, content: bytes = b"x", age: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (time.time() - age,) * 2)


def test_what_killed_processes_left_half_made_is_deleted_and_nothing_else(run, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    old = 2 * 3600.0
    left = [".screen-ab/model", ".step-cd/model", ".best-ef/model", "cache/tmpab/model"]
    stale = [".report.html.0123abcd", "trials/0001/.result.json.0123abcd", "cache/.x.json.89abcdef"]
    kept = [
        ".lock",
        ".gitignore",
        ".report.json.0123abcd",
        "best/model",
        "cache/onnx/k.onnx",
        "trials/0001/result.json",
    ]
    for name in [*left, *kept]:
        write_aged(run.path / name)
    for name in [*stale, "data/encoded/.features-0123abcd.lock", ".report.json.0123abcd.old"]:
        write_aged(run.path / name, age=old)
    write_aged(run.path / "picks/.small-x/model")
    write_aged(run.path / "picks/.small-y/model")
    os.utime(run.path / "picks/.small-y", (time.time() - old,) * 2)
    write_aged(run.scratch / "tmpxy/model")
    run.clear_leftovers()
    there = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert there == {
        *kept,
        "data/encoded/.features-0123abcd.lock",
        ".report.json.0123abcd.old",
        "picks/.small-x/model",
    }
    assert not run.scratch.exists()


def test_two_runs_put_away_their_files_apart(run, tmp_path):
    assert run.scratch == RunDir(run.path).scratch != RunDir(tmp_path / "other").scratch
    assert len(run.scratch.name) <= 16, "sockets lie below it, and the system allows their paths 104 characters"


def test_caches_go_by_their_last_use_as_far_as_needed_and_what_is_held_stays(run):
    for age, name in enumerate(["data/encoded/features-a.arrow", "cache/onnx/b.onnx", "data/encoded/features-c.arrow"]):
        write_aged(run.path / name, b"x" * 100, age=1000.0 * age)
    with filelock.FileLock(run.data / "encoded/.features-c.lock"):
        assert run.drop_caches(50) == 100
    assert not (run.cache / "onnx/b.onnx").exists()
    assert run.size() == 200
    assert run.drop_caches(0) == 0
    assert run.drop_caches(1000) == 200
    assert run.size() == 0


def test_one_search_holds_the_folder_and_the_system_frees_it_when_it_is_killed(run):
    code = "import sys, time; from autoft.rundir import RunDir\nwith RunDir(sys.argv[1]).lock(): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        who = f"another search is running in this folder, process {process.pid} on {re.escape(platform.node())} since 2"
        with pytest.raises(RunFolderError, match=who), run.lock():
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with run.lock():
        pass
    assert not (run.path / ".holder").exists()


def test_killed_while_it_writes_a_reader_sees_the_old_file_or_the_new_one(run):
    path = run.path / "value.json"
    write_json(path, {"size": 0, "text": ""})
    code = (
        "import sys; from pathlib import Path; from autoft.rundir import write_json\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1; write_json(Path(sys.argv[1]), {'size': n, 'text': 'x' * n * 997})\n"
        "    n == 3 and print('going', flush=True)\n"
    )
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "going\n"
        time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        value = read_json(path)
        assert len(value["text"]) == value["size"] * 997


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_is_told_and_leaves_the_old_file(run, monkeypatch):
    path = run.path / "value.json"
    write_json(path, {"old": 1})
    # The new file is a link to the device on which every write ends with "no space left".
    monkeypatch.setattr("secrets.token_hex", lambda size: "partial")
    (run.path / ".value.json.partial").symlink_to("/dev/full")
    with pytest.raises(RunFolderError, match="the disk is full; free some space"):
        write_json(path, {"new": "x" * 100_000})
    monkeypatch.undo()
    assert read_json(path) == {"old": 1}
    assert [entry.name for entry in run.path.glob(".value*")] == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plan.json", b'{"a": '),
        ("plan.json", b"\xff\xfe"),
        ("trials/0000/result.json", b'{"number": 0}'),
        ("selection.json", b"[]"),
        ("final.json", b'{"test": 3}'),
        ("recipe.yaml", b"a: [1"),
    ],
)
def test_a_damaged_file_is_named(run, name, content):
    run.recipe.write_text("task: t")
    write_json(run.plan, {})
    run.write_result(result(0))
    (run.path / name).write_bytes(content)
    with pytest.raises(RunFolderError, match=r"is damaged") as caught:
        read_run(run.path)
    assert name in str(caught.value)


def test_damaged_records_are_set_aside_and_told(run):
    for number in range(3):
        run.write_result(result(number))
    whole = run.result(0).read_bytes()
    run.result(1).write_bytes(whole)
    (run.path / "selection.json").write_text("[]")
    (run.path / "time.json").write_text('{"seconds": 3}')
    told = run.set_aside_damaged()
    assert [
        str(run.path / name) in text
        for name, text in zip(("selection.json", "trials/0001/result.json"), told, strict=True)
    ]
    assert all(text.endswith("that part is done again") for text in told)
    assert [one.number for one in run.results()] == [0, 2]
    assert (run.logs / "damaged-trials-0001-result.json").read_bytes() == whole
    assert not (run.path / "selection.json").exists()
    assert (run.path / "time.json").exists()
    assert run.set_aside_damaged() == []


def test_what_is_wrong_with_a_record_is_told_as_it_is_whatever_it_says(run):
    # As of a plugin whose figure has the words of the remedy for its name.
    write_json(run.path / "baselines.json", {"delete this file to have that part done again": 3})
    (told,) = run.set_aside_damaged()
    assert "(at 'delete this file to have that part done again': " in told
    assert told.endswith("); that part is done again")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="which file a descriptor is of stands in /proc")
def test_of_a_result_that_is_written_again_only_what_changed_is_flushed(run, monkeypatch):
    flushed: list[str] = []

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        flushed.append(path.name.split(".json")[0].lstrip("."))

    monkeypatch.setattr(os, "fsync", fsync)
    weights = run.trial(3) / "variants" / "none" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"x")
    run.write_result(result(3))
    assert sorted(flushed) == ["0003", "model.safetensors", "none", "result", "trials", "variants"]
    flushed.clear()
    run.write_result(result(3, reason="a variant of it was dropped"))
    assert flushed == ["result", "0003"]


def test_results_that_another_version_wrote_are_no_accident(run):
    for number in range(3):
        run.write_result(result(number))
    for number in range(2):
        run.result(number).write_text("{}")
    with pytest.raises(RunFolderError, match=r"0000/result\.json: is damaged"):
        run.set_aside_damaged()
    assert run.result(0).is_file()


def test_a_record_of_a_run_that_has_just_begun_is_whole(run):
    run.recipe.write_text("task: t")
    write_json(run.plan, {"name": "x"})
    record = read_run(run.path)
    assert record.trials == []
    assert record.selection is None
    assert record.counts() == {"complete": 0, "pruned": 0, "infeasible": 0, "failed": 0}
    assert json.loads(record.model_dump_json())["plan"] == {"name": "x"}


def test_a_folder_takes_the_place_of_another_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "below" / "best"
    with replacing_folder(folder) as partial:
        (partial / "weights").write_text("old")
    assert folder.stat().st_mode & 0o777 == 0o755

    def fill_half():
        with replacing_folder(folder) as partial:
            (partial / "weights").write_text("half")
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        fill_half()
    assert (folder / "weights").read_text() == "old"
    with replacing_folder(folder) as partial:
        (partial / "other").write_text("new")
    assert sorted(path.name for path in folder.iterdir()) == ["other"]
    assert [path.name for path in folder.parent.iterdir()] == ["best"]


def test_who_is_killed_while_the_old_folder_is_deleted_has_the_new_one(tmp_path, monkeypatch):
    """As over a checkpoint of some gigabytes: else hours of training would be gone."""
    folder = tmp_path / "checkpoint"
    with replacing_folder(folder) as partial:
        (partial / "state").write_text("old")

    def killed(path, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt), replacing_folder(folder) as partial:
        (partial / "state").write_text("new")
    assert (folder / "state").read_text() == "new"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("importance.json", "false", "importance"),
        ("final.json", '{"test": {"best": {"accurac": {"value": 1, "low": 1, "high": 1, "n": 1}}}}', "has no accuracy"),
        (
            "final.json",
            '{"test": {"bestt": {"accuracy": {"value": 1, "low": 1, "high": 1, "n": 1}}}}',
            "has no accuracy",
        ),
        ("baselines.json", "[]", "baselines"),
        ("recipe.yaml", "- a list", "recipe"),
        ("plan.json", "[" * 100_000, "recursion"),
        ("plan.json", '{"data": ' + "[" * 200 + "]" * 200 + "}", "nested more than 100 levels"),
        ("plan.json", '{"name": "a \\ud800"}', "half a character"),
        ("plan.json", '{"data": {"seed": 1' + "0" * 400 + "}}", "more than 64 bits"),
        ("recipe.yaml", "a: &a [x]\nb: [*a, *a]", "alias"),
        ("recipe.yaml", "a: 2020-01-01", "holds a date"),
        ("recipe.yaml", "a: !!binary aGVsbG8=", "holds a bytes"),
        ("importance.json", '{"a": Infinity}', "importance"),
        ("final.json", '{"test": {}, "seconds": NaN}', "seconds"),
        ("selection.json", '{"trial": 7, "variant": "none", "objective": "accuracy", "reason": ""}', "none of trial 7"),
        (
            "selection.json",
            '{"trial": 1, "variant": "onnx", "objective": "accuracy", "reason": ""}',
            "onnx of trial 1, which .*result.json does not hold",
        ),
    ],
)
def test_a_file_that_says_something_else_than_it_should_is_named(run, name, content, told):
    write_json(run.plan, {"objectives": ["accuracy"]})
    run.recipe.write_text("task: t\n")
    run.write_result(result(1))
    assert read_run(run.path).trials[0].number == 1
    (run.path / name).write_text(content)
    with pytest.raises(RunFolderError, match=told) as caught:
        read_run(run.path)
    assert str(caught.value).startswith(str(run.path / name))


@pytest.mark.parametrize(
    "change",
    [
        {"number": 2},
        {"config": {"number": 2}},
        {"config": {"kind": "seed"}},
        {"config": {"kind": "compress"}},
        {"config": {"params": {"train.epochs": "many"}}},
        {"config": {"params": {"train.epochs": float("inf")}}},
        {"seconds": {"total": float("nan")}},
        {"seconds": {"total": -1.0}},
        {"predicted": {"seconds": float("inf")}},
        {"train_memory_bytes": -1},
        {"together": 0},
    ],
)
def test_a_result_that_cannot_be_is_damaged(run, change):
    write_json(run.plan, {})
    run.recipe.write_text("task: t\n")
    run.write_result(result(1))
    record = json.loads(run.result(1).read_text())
    config = record["config"] | change.pop("config", {})
    write_json(run.result(1), record | {"config": config} | change)
    with pytest.raises(RunFolderError, match=r"0001/result\.json: is damaged \("):
        read_run(run.path)


def test_a_copy_beside_the_trials_is_none(run):
    for number in (1, 999, 12345):
        run.write_result(result(number))
    (run.path / "trials" / "0001 copy").mkdir()
    (run.path / "trials" / "1").mkdir()
    assert [one.number for one in run.results()] == [1, 999, 12345]
    assert run.clear_partial() == []
    assert (run.path / "trials" / "0001 copy").is_dir()
