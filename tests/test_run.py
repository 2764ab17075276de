"""Whole searches through the command line, on a tiny model: what it leaves, what goes wrong, how it goes on."""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import autoft
from autoft.cli import app
from autoft.rundir import read_run

COMMAND = [sys.executable, "-m", "autoft"]


def autoft_command(*words: object, cwd: Path, **settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, words)], cwd=cwd, capture_output=True, text=True, check=False, timeout=400, **settings
    )


def in_process(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """As :func:`autoft_command`, where a process of its own, which imports torch for seconds, would show nothing more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        done = CliRunner().invoke(app, [*map(str, words)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)


def write_recipe(folder: Path, model: Path, source: Path, **changes) -> Path:
    recipe = {
        "task": "text-classification",
        "model": str(model),
        "data": {"train": str(source), "validation_size": 80, "test_size": 80},
        "budget": {"time": "10m", "trials": 3},
        "effort": "quick",
        "compress": ["none", "dynamic-int8"],
        "space": {"full.learning_rate": {"low": 2e-3, "high": 8e-3}, "train.epochs": [6, 8], "train.batch_size": 8},
        "search": {"finalist_seeds": 0},
        **changes,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


SECRETS = {
    "HF_TOKEN": "hf_QWqwSecretOfTheHub",
    "WANDB_API_KEY": "0123456789secretofwandb0123456789abcdef01",
    "AWS_SECRET_ACCESS_KEY": "aSecretOfTheCloud",
    "HTTPS_PROXY": "http://user:secretOfTheProxy@127.0.0.1:9",
    "MLFLOW_TRACKING_URI": "http://user:secretOfMlflow@127.0.0.1:9",
}


NOTED = """
import atexit, pathlib, sys
imported = pathlib.Path("imported.txt").absolute()
atexit.register(lambda: imported.write_text(" ".join(sys.modules)))
from autoft.cli import main
main()
"""
"""The command, which leaves in a file what its own process has imported."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model, reviews) -> Path:
    """The folder in which a search of three trials has run to its end, with secrets in its environment."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = write_recipe(folder, tiny_model, reviews)
    (folder / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", NOTED, "search", recipe],
        cwd=folder,
        env={**os.environ, **SECRETS, "TMPDIR": str(folder / "tmp")},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    (folder / "stderr.txt").write_text(done.stderr)
    return folder


def test_the_search_learns_and_says_where_the_model_and_the_report_are(finished):
    out = (finished / "stdout.txt").read_text()
    assert "One default training takes about" in out
    assert "runs/tiny/report.html" in out
    assert "runs/tiny/best" in out
    assert (finished / "stderr.txt").read_text() == ""
    report = json.loads((finished / "runs/tiny/report.json").read_text())
    # One telling word decides the label: a model that learns is far above chance.
    assert report["best"]["test"]["accuracy"]["value"] > 0.8
    assert report["best"]["test"]["accuracy"]["n"] == 80
    assert report["baselines"]["trivial"]["test"]["accuracy"]["value"] < 0.7


def test_the_command_itself_imports_neither_torch_nor_transformers(finished):
    # That takes seconds; the processes that it starts need them.
    imported = (finished / "imported.txt").read_text().split()
    assert "optuna" in imported
    assert not {"torch", "transformers"} & {*imported}


def test_no_secret_of_the_environment_is_written_or_said(finished):
    words = [value.partition("//")[2].partition("@")[0] or value for value in SECRETS.values()]
    words += [word.partition(":")[2] for word in words if ":" in word]
    found = [path for path in finished.rglob("*") if path.is_file() and path.parent.name != "data"]
    assert len(found) > 20
    for path in found:
        content = path.read_bytes()
        assert not [word for word in words if word.encode() in content], path


def test_no_model_says_where_anything_is_on_this_machine(finished, tiny_model, places_told):
    assert json.loads((finished / "runs/tiny/best/autoft.json").read_text())["model"] == tiny_model.name
    models = [finished / "runs/tiny/best", *(finished / "runs/tiny/trials").glob("*/variants/*")]
    assert len(models) > 2
    for model in models:
        assert places_told(model) == []


def test_nothing_is_left_among_the_temporary_files(finished):
    assert [*(finished / "tmp").iterdir()] == []


def test_what_encoded_rows_take_of_the_disk_is_about_what_was_expected(finished):
    run = finished / "runs/tiny"
    expected = json.loads((run / "plan.json").read_text())["encoded_bytes"]
    taken = [path.stat().st_size for path in (run / "data/encoded").glob("features-*.arrow")]
    assert taken
    assert all(size / 3 < expected < 3 * size for size in taken), (taken, expected)


def test_report_json_keeps_its_promised_keys(finished):
    report = json.loads((finished / "runs/tiny/report.json").read_text())
    assert report["objective"] == "accuracy"
    assert set(report["trials"]) == {"complete", "pruned", "infeasible", "failed"}
    assert sum(report["trials"].values()) == 3
    assert report["seconds"] > 0
    for system in (report["baselines"]["trivial"], report["baselines"]["default"], report["best"]):
        interval = system["test"]["accuracy"]
        assert interval["low"] <= interval["value"] <= interval["high"]
        assert 0 <= system["validation"]["accuracy"] <= 1
    for system in (report["baselines"]["default"], report["best"]):
        costs = system["costs"]
        for column in (
            "model_size_bytes",
            "latency_p50_ms",
            "latency_p95_ms",
            "inference_memory_bytes",
            "train_memory_bytes",
        ):
            assert costs[column] > 0, column
    assert {"trial", "variant", "pipeline", "params"} <= set(report["best"])
    assert "torch" in report["environment"]


def test_a_trial_takes_as_much_memory_to_serve_as_the_exported_model_does_in_a_process_of_its_own(finished):
    record = read_run(finished / "runs/tiny")
    trials = {result.number: {one.name: one.costs for one in result.variants} for result in record.trials}
    chosen = record.selection
    for costs, measured in (
        (record.final.costs["best"], trials[chosen.trial][chosen.variant]),
        (record.final.costs["default"], trials[0]["none"]),
    ):
        assert measured["inference_memory_bytes"] == pytest.approx(costs["inference_memory_bytes"], rel=0.02)


def test_the_model_loads_with_autoft_and_scores_what_the_report_says(finished):
    record = read_run(finished / "runs/tiny")
    loaded = autoft.load(finished / "runs/tiny")
    from autoft.data.prepared import open_data

    prepared = open_data(finished / "runs/tiny/data")
    rows = prepared.validation[:]
    predictions = loaded.predict([{"text": row["text"]} for row in rows])
    hits = sum(p["label"] == r["label"] for p, r in zip(predictions, rows, strict=True))
    assert hits / len(rows) == pytest.approx(record.final.validation["best"]["accuracy"], abs=1e-9)
    assert loaded.manifest.measured["validation"]["accuracy"] == record.final.validation["best"]["accuracy"]


def test_predict_takes_texts_a_file_and_standard_input(finished, reviews):
    texts = ["the film is great", "the plot was awful"]
    words = in_process("predict", "runs/tiny", *texts, cwd=finished)
    piped = autoft_command(
        "predict", "runs/tiny/best", cwd=finished, input=f"{texts[0]}\n\n{json.dumps({'text': texts[1]})}\n"
    )
    assert words.returncode == 0, words.stderr
    answers = [json.loads(line) for line in words.stdout.splitlines()]
    assert [answer["label"] for answer in answers] == ["positive", "negative"]
    assert [json.loads(line)["label"] for line in piped.stdout.splitlines()] == ["positive", "negative"]
    filed = in_process("predict", "runs/tiny", "--input", reviews, "--output", "p.jsonl", cwd=finished)
    assert filed.returncode == 0, filed.stderr
    assert len((finished / "p.jsonl").read_text().splitlines()) == 400


@pytest.mark.slow
def test_time_may_be_a_multiple_of_one_default_training(tmp_path, tiny_model, reviews):
    recipe = write_recipe(tmp_path, tiny_model, reviews, budget={"time": "6x", "trials": 1}, compress="none")
    done = autoft_command("search", recipe, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    forecast = next(event for event in events if event["event"] == "forecast")
    assert forecast["time_limit"] == pytest.approx(6 * forecast["trial_seconds"])
    run = tmp_path / "runs/tiny"
    assert json.loads((run / "report.json").read_text())["budget"]["time"]["limit"] == forecast["time_limit"]
    # A later call keeps the limit that the first one found.
    assert autoft_command("search", recipe, "--set", "budget.trials=2", cwd=tmp_path).returncode == 0
    assert json.loads((run / "plan.json").read_text())["time_limit"] == forecast["time_limit"]


def test_pick_shows_the_front_and_exports_another_point_of_it(finished):
    run = finished / "runs/tiny"
    shown = autoft_command("pick", run, "--json", cwd=finished)
    assert shown.returncode == 0, shown.stderr
    front = json.loads(shown.stdout)["front"]
    chosen = next(point for point in front if "chosen" in point["remarks"])
    smallest = min(front, key=lambda point: point["costs"]["model_size_bytes"])
    assert {point["variant"] for point in front} <= {"none", "dynamic-int8"}
    limit = smallest["costs"]["model_size_bytes"] + 1
    before = (run / "selection.json").read_bytes()
    done = in_process("pick", run, "--size", f"{limit:.0f}B", "--output", "small", "--json", cwd=finished)
    assert done.returncode == 0, done.stderr
    picked = json.loads(done.stdout)
    assert picked["costs"]["model_size_bytes"] < limit
    loaded = autoft.load(finished / "small")
    assert loaded.predict(["the film is great"])[0]["label"] in {"positive", "negative"}
    assert loaded.manifest.variant == picked["variant"]
    assert "not tested" in (finished / "small" / "README.md").read_text()
    # The run itself is as it was, and was not tested again.
    assert (run / "selection.json").read_bytes() == before
    best = in_process("pick", run, "--quality", str(chosen["accuracy"]), cwd=finished)
    assert best.returncode == 0, best.stderr
    assert "runs/tiny/picks/" in best.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--size", "1B"], 4, "nothing that was tried fits the budget (model_size 1B)"),
        (["--quality", "1.5"], 4, "the best accuracy within these limits is"),
        (["--size", "ten"], 2, "model_size: needs a size with a unit"),
        (["--limit", "colour=3"], 2, "colour: unknown budget 'colour'"),
        (["--limit", "latency.p95"], 2, "needs the form key=value"),
        (
            ["--limit", "latency={p95: 5s, batch_size: 8}"],
            2,
            "latency.batch_size: the latencies of this run were measured with 1, given 8",
        ),
        (["--limit", "trials=2"], 2, "trials: is of a search"),
        (["--size", "1GB", "--output", "."], 5, "is there already, and holds no exported model"),
    ],
)
def test_pick_says_what_is_wrong(finished, words, code, message):
    done = in_process("pick", "runs/tiny", *words, cwd=finished)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    # What there is instead is shown where nothing fits.
    assert ("dynamic-int8" in done.stdout) == (code == 4)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_the_commands_that_the_report_shows_work_as_they_stand(finished):
    report = (finished / "runs" / "tiny" / "report.md").read_text()
    code, command = re.search(r"## Use the model\n\n```python\n(.*?)\n```\n\n```\n(.*?)\n```", report, re.S).groups()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    shown = subprocess.run(
        command, shell=True, cwd=finished / "runs", env=environment, capture_output=True, text=True, check=True
    )
    run = subprocess.run(
        [sys.executable, "-c", code.replace("model.predict", "print(model.predict") + ")"],
        cwd=finished / "runs",
        capture_output=True,
        text=True,
        check=True,
    )
    assert [json.loads(line) for line in shown.stdout.splitlines()] == ast.literal_eval(run.stdout)


def test_predictions_that_the_disk_cannot_hold_are_told(finished):
    full = in_process("predict", "runs/tiny", "a great film", "--output", "/dev/full", cwd=finished)
    assert full.returncode == 5, full.stderr
    assert "the disk is full; free some space" in full.stderr
    assert "Traceback" not in full.stderr


def test_predictions_into_a_folder_that_is_not_there_are_told(finished):
    done = in_process("predict", "runs/tiny", "a great film", "--output", "no/such/folder.jsonl", cwd=finished)
    assert done.returncode == 5
    assert done.stderr == "error: no/such/folder.jsonl: No such file or directory\n"


def test_trials_csv_has_a_line_for_every_trial_and_variant(finished):
    record = read_run(finished / "runs/tiny")
    with (finished / "runs/tiny/trials.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    expected = {(t.number, v.name) for t in record.trials for v in t.variants} | {
        (t.number, "") for t in record.trials if not t.variants
    }
    assert {(int(line["trial"]), line["variant"]) for line in lines} == expected
    assert all(line["train.epochs"] in {"6", "8"} for line in lines)


def test_only_the_front_and_the_weights_of_the_chosen_trial_stay_on_disk(finished):
    record = read_run(finished / "runs/tiny")
    kept = {str(path.parent.relative_to(record.path)) for path in record.path.glob("trials/*/variants/*/autoft.json")}
    assert kept == {v.folder for t in record.trials for v in t.variants if v.folder}
    front = {(c.trial, c.variant) for c in record.selection.candidates if c.front}
    stayed = {(t.number, v.name) for t in record.trials for v in t.variants if v.folder}
    # The default is the yardstick; of the chosen trial other formats are made, and further seeds may choose another variant.
    own = {0, record.selection.trial}
    assert {(number, name) for number, name in stayed if number not in own} <= front


def test_running_a_finished_search_again_repeats_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in (finished / "runs/tiny/trials").glob("*/result.json")}
    tested = (finished / "runs/tiny/final.json").stat().st_mtime_ns
    done = in_process("search", "tiny.yaml", cwd=finished)
    assert done.returncode == 0, done.stderr
    assert "3 trials are done" in done.stdout
    after = {path: path.stat().st_mtime_ns for path in (finished / "runs/tiny/trials").glob("*/result.json")}
    assert after == before
    assert (finished / "runs/tiny/final.json").stat().st_mtime_ns == tested


def test_a_model_and_records_that_were_damaged_are_made_again_and_no_trial_is(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished / "runs/tiny", run)
    before = {path: path.read_bytes() for path in run.glob("trials/*/result.json")}
    (run / "baselines.json").write_bytes(b"\0" * 99)
    weights = next((run / "best").glob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = in_process("search", finished / "tiny.yaml", "--run", run, cwd=finished)
    assert done.returncode == 0, done.stderr
    assert "baselines.json: is damaged" in done.stdout + done.stderr
    assert "another model" not in done.stdout
    assert weights.read_bytes() == content
    assert read_run(run).baselines
    assert {path: path.read_bytes() for path in run.glob("trials/*/result.json")} == before


def test_a_trial_whose_weights_were_damaged_is_done_again(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished / "runs/tiny", run)
    old = read_run(run)
    kept = next(variant.folder for variant in old.trials[0].variants if variant.folder)
    weights = max((run / kept).iterdir(), key=lambda path: path.stat().st_size)
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    done = in_process("search", finished / "tiny.yaml", "--run", run, cwd=finished)
    assert done.returncode == 0, done.stderr
    assert f"{weights.name} was changed; trial 0 is done again" in " ".join((done.stdout + done.stderr).split())
    assert weights.read_bytes() == content, "the same training gave the same weights"
    again = read_run(run)
    assert [
        one.number for one, other in zip(old.trials, again.trials, strict=True) if one.seconds != other.seconds
    ] == [0]
    assert [one.curve[-1].validation for one in again.trials] == [one.curve[-1].validation for one in old.trials]


def test_keys_that_came_with_a_later_version_do_not_make_it_another_recipe(finished):
    path = finished / "runs/tiny/recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    # As an earlier version would have left it.
    del recipe["launcher"], recipe["search"]["portfolio"]
    path.write_text(yaml.safe_dump(recipe))
    done = in_process("search", "tiny.yaml", cwd=finished)
    assert done.returncode == 0, done.stderr
    assert "3 trials are done" in done.stdout


def test_a_run_folder_of_another_recipe_is_refused(finished):
    done = in_process("search", "tiny.yaml", "--set", "data.validation_size=60", cwd=finished)
    assert done.returncode == 5
    assert "holds a run of another recipe (differs in data)" in done.stderr


def test_a_run_whose_trials_are_of_other_data_is_refused_and_stays_as_it_is(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished / "runs/tiny", run)
    plan = json.loads((run / "plan.json").read_text())
    plan["data"]["fingerprint"] = "of rows that were there when the trials were scored"
    (run / "plan.json").write_text(json.dumps(plan))
    before = {path: path.read_bytes() for path in run.glob("data/*") if path.is_file()}
    done = in_process("search", finished / "tiny.yaml", "--run", run, cwd=finished)
    assert done.returncode == 5
    assert "trained and scored on other data" in " ".join(done.stderr.split())
    assert json.loads((run / "plan.json").read_text()) == plan
    assert {path: path.read_bytes() for path in run.glob("data/*") if path.is_file()} == before


def test_the_report_can_be_rendered_again(finished):
    before = (finished / "runs/tiny/report.html").read_bytes()
    (finished / "runs/tiny/report.html").unlink()
    done = autoft_command("report", "runs/tiny", cwd=finished)
    assert done.returncode == 0, done.stderr
    assert (finished / "runs/tiny/report.html").read_bytes() == before


@pytest.mark.slow
def test_a_search_can_start_from_an_earlier_run_and_says_what_that_gains(finished, tmp_path, tiny_model, reviews):
    recipe = write_recipe(
        tmp_path,
        tiny_model,
        reviews,
        budget={"time": "10m", "trials": 2},
        compress=["none"],
        space={"full.learning_rate": 1e-5, "train.epochs": 1, "train.batch_size": 8},
        init_from=str(finished / "runs/tiny"),
    )
    done = autoft_command("search", recipe, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "runs/tiny/report.json").read_text())
    # A step of 1e-5 teaches nothing: what is known comes from the earlier run, whose body and head are the start.
    assert report["best"]["model"] == str(finished / "runs/tiny")
    assert report["best"]["test"]["accuracy"]["value"] > 0.8
    assert any("starting from" in warning and "(+0." in warning for warning in report["warnings"])


@pytest.mark.slow
def test_a_search_like_an_earlier_run_tries_its_best_configurations_first(finished, tmp_path, tiny_model, reviews):
    earlier = read_run(finished / "runs/tiny")
    done = [trial for trial in earlier.trials if trial.state == "complete" and not trial.config.derived]
    best = max(done, key=lambda trial: max(v.validation["accuracy"] for v in trial.variants if v.validation))
    recipe = write_recipe(
        tmp_path, tiny_model, reviews, budget={"time": "10m", "trials": 2}, search={"finalist_seeds": 0, "seed": 5}
    )
    like = os.path.relpath(finished / "runs/tiny", tmp_path)
    found = autoft_command("search", recipe, "--like", like, cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    default, second = read_run(tmp_path / "runs/tiny").trials
    assert (default.config.kind, second.config.kind) == ("default", "known")
    tried = [default.config.params, second.config.params]
    assert best.config.params in tried
    assert "known to do well" in (tmp_path / "runs/tiny/report.html").read_text()
    # The same command goes on where it was: here it has nothing to do.
    again = autoft_command("search", recipe, "--like", like, cwd=tmp_path)
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_a_label_that_no_training_row_has_is_a_wrong_answer_and_no_failure(tmp_path, tiny_model, reviews):
    head, *lines = reviews.read_text(encoding="utf-8").splitlines(keepends=True)
    parts = {"train": lines[:200], "validation": lines[200:260], "test": lines[260:320]}
    label = parts["validation"][3].rsplit(",", 1)[1]
    parts["validation"][3] = parts["validation"][3].replace(label, "mixed\n")
    for name, part in parts.items():
        (tmp_path / f"{name}.csv").write_text(head + "".join(part), encoding="utf-8")
    splits = {name: f"{name}.csv" for name in parts}
    recipe = write_recipe(tmp_path, tiny_model, reviews, data=splits, budget={"time": "10m", "trials": 1})
    done = autoft_command("search", recipe, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (trial,) = read_run(tmp_path / "runs/tiny").trials
    assert {variant.state for variant in trial.variants} == {"complete"}
    assert trial.validation["accuracy"] < 1.0


@pytest.mark.slow
def test_some_validation_rows_decide_within_a_training_and_all_of_them_after_it(tmp_path, tiny_model, reviews):
    recipe = write_recipe(
        tmp_path,
        tiny_model,
        reviews,
        budget={"time": "10m", "trials": 2},
        compress=["none"],
        search={"finalist_seeds": 0, "validation_rows": 7, "early_stopping": "none"},
    )
    done = autoft_command("search", recipe, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for trial in read_run(tmp_path / "runs/tiny").trials:
        shares = [7 * point.validation["accuracy"] for point in trial.curve]
        assert shares == pytest.approx([round(share) for share in shares])
        (served,) = trial.variants
        assert trial.validation["accuracy"] == served.validation["accuracy"]
        # The yardstick's files are scored on all in any case: once is enough.
        assert ("judge" in trial.seconds) == (trial.number != 0)
        assert 80 * trial.validation["accuracy"] == pytest.approx(round(80 * trial.validation["accuracy"]))


@pytest.mark.slow
def test_what_cannot_reach_the_front_is_not_compressed(tmp_path, tiny_model, reviews):
    recipe = write_recipe(
        tmp_path,
        tiny_model,
        reviews,
        budget={"time": "10m", "trials": 5},
        compress=["none", "dynamic-int8"],
        space={
            "full.learning_rate": [2e-3, 1e-6, 2e-6, 3e-6, 5e-6],
            "train.epochs": 6,
            "train.batch_size": 8,
            "train.head": "random",
        },
        search={"early_stopping": "none", "finalist_seeds": 0, "sampler": "grid"},
    )
    done = autoft_command("search", recipe, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    trials = read_run(tmp_path / "runs/tiny").trials
    assert [trial.state for trial in trials] == ["complete"] * 5
    best: dict[str, float] = {}
    left_out = 0
    for trial in trials:
        for variant in trial.variants:
            score = trial.validation["accuracy"]
            assert (variant.state == "pruned") == (score < best.get(variant.name, 0.0)), variant
            left_out += variant.state == "pruned"
            if variant.state == "pruned":
                assert not variant.costs
                assert variant.folder is None
        for variant in trial.variants:
            if variant.state == "complete":
                best[variant.name] = max(best.get(variant.name, 0.0), variant.validation["accuracy"])
    assert left_out >= 2, trials
    made = sum(variant.state == "complete" for trial in trials for variant in trial.variants)
    assert f"{made} variants judged" in done.stdout
    page = (tmp_path / "runs/tiny/report.html").read_text()
    assert "at the same cost" in page


@pytest.mark.slow
def test_a_search_over_folds_compares_means_and_ships_a_model_of_the_first(tmp_path, tiny_model, reviews):
    recipe = write_recipe(
        tmp_path,
        tiny_model,
        reviews,
        data={"train": str(reviews), "test_size": 80},
        budget={"time": "10m", "trials": 2},
        compress=["none"],
        search={"folds": 3},
    )
    done = autoft_command("search", recipe, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trial 0 on fold 3" in done.stdout
    record = read_run(tmp_path / "runs/tiny")
    kinds = [trial.config.kind for trial in record.trials]
    assert kinds.count("fold") == 4
    chosen = next(
        c
        for c in record.selection.candidates
        if (c.trial, c.variant) == (record.selection.trial, record.selection.variant)
    )
    # What each fold holds out is scored from files, and the mean is what is compared.
    figures = [
        next(v.validation["accuracy"] for v in trial.variants if v.name == chosen.variant)
        for trial in record.trials
        if chosen.trial in {trial.number, trial.config.parent}
    ]
    assert len(figures) == 3
    assert chosen.objective == pytest.approx(sum(figures) / 3)
    assert record.final.validation["best"]["accuracy"] == pytest.approx(figures[0])
    sizes = record.plan["data"]["sizes"]
    assert (sizes["validation"], sizes["test"]) == (106, 80)
    report = (tmp_path / "runs/tiny/report.html").read_text()
    assert "mean of 3 folds" in report


@pytest.mark.slow
def test_a_task_can_be_trained_along_with_another_and_the_report_says_what_that_gains(tmp_path, tiny_model, reviews):
    """The first task has 12 rows and learns little alone; the second has the same labels by another name, and 300 rows."""
    rows = list(csv.DictReader(reviews.open()))
    few, many = tmp_path / "few.csv", tmp_path / "many.csv"
    renamed = {"positive": "for", "negative": "against"}
    for path, part, name in ((few, rows[:72], str), (many, rows[72:], renamed.__getitem__)):
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows((row["text"], name(row["label"])) for row in part)
    recipe = write_recipe(
        tmp_path,
        tiny_model,
        few,
        data={"train": str(few), "validation_size": 30, "test_size": 30},
        auxiliary=[{"task": "text-classification", "data": str(many)}],
        budget={"time": "10m", "trials": 2},
        compress=["none"],
        space={
            "full.learning_rate": 5e-3,
            "train.epochs": 10,
            "train.batch_size": 4,
            "auxiliary.temperature": 1,
        },
    )
    done = autoft_command("search", recipe, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    record = read_run(tmp_path / "runs/tiny")
    weights = [trial.config.params["auxiliary.weight"] for trial in record.trials]
    assert weights == [0.0, 1.0]
    alone, along = (trial.validation["accuracy"] for trial in record.trials)
    assert along > alone
    assert any(f"({along - alone:+.4f})" in note for note in record.final.notes)
    # The model that is left is the first task's alone.
    model = autoft.load(tmp_path / "runs/tiny")
    assert set(model.context.labels) == {"positive", "negative"}


@pytest.mark.slow
def test_a_search_over_regularizers_losses_and_optimisers_says_what_each_trial_had(tmp_path, tiny_model, reviews):
    recipe = write_recipe(
        tmp_path,
        tiny_model,
        reviews,
        pipelines=["full", "lora"],
        compress=["none"],
        regularize=["none", "r-drop+ema", "mixout"],
        space={
            "full.learning_rate": 3e-3,
            "lora.learning_rate": 5e-3,
            "train.epochs": 2,
            "train.batch_size": 16,
            "train.loss": ["cross-entropy", "focal"],
            "train.optimizer": ["adamw", "lion", "adamw-8bit"],
            "train.gradient_checkpointing": True,
        },
        budget={"time": "10m", "trials": 8},
        search={"finalist_seeds": 0, "sampler": "random", "early_stopping": "none"},
    )
    explained = autoft_command("explain", recipe, cwd=tmp_path)
    assert "mixout is not tried with lora: mixout needs all weights" in " ".join(explained.stdout.split())
    done = autoft_command("search", recipe, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    record = read_run(tmp_path / "runs" / "tiny")
    states = {trial.number: (trial.state, trial.reason) for trial in record.trials if trial.config.kind != "soup"}
    assert all(state == "complete" for state, _ in states.values()), states
    first = record.trials[0].config.params
    assert (first["regularize"], first["train.loss"], first["train.optimizer"]) == ("none", "cross-entropy", "adamw")
    chains = {(trial.config.pipeline, trial.config.params["regularize"]) for trial in record.trials}
    assert len(chains) >= 3
    assert ("lora", "mixout") not in chains
    for trial in record.trials:
        names = {name.split(".")[0] for name in trial.config.params}
        wanted = set(str(trial.config.params["regularize"]).split("+")) - {"none"}
        assert names & {"r-drop", "ema", "mixout"} == wanted
    report = (tmp_path / "runs" / "tiny" / "report.md").read_text()
    assert "mixout with lora" in report


def test_a_budget_that_nothing_fits_exits_4_with_the_nearest_misses_and_trains_nothing(tmp_path, tiny_model, reviews):
    recipe = write_recipe(tmp_path, tiny_model, reviews, budget={"time": "10m", "trials": 3, "model_size": "2KB"})
    done = autoft_command("search", recipe, cwd=tmp_path)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "nothing that was tried fits the budget (model_size 2KB)" in done.stderr
    assert "dynamic-int8" in done.stdout
    assert "epoch" not in done.stdout
    record = read_run(tmp_path / "runs/tiny")
    assert all(not trial.curve for trial in record.trials)
    assert (tmp_path / "runs/tiny/report.html").is_file()


@pytest.mark.slow
def test_sizes_that_are_measured_before_training_are_those_of_the_trained_model(tmp_path, tiny_model, reviews):
    compress = ["none", "onnx", "onnx-int8", "dynamic-int8"]
    recipe = write_recipe(
        tmp_path, tiny_model, reviews, budget={"time": "10m", "trials": 1, "model_size": "1GB"}, compress=compress
    )
    done = autoft_command("search", recipe, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    (screened,) = json.loads((run / "screening.json").read_text()).values()
    trial = json.loads((run / "trials" / "0000" / "result.json").read_text())
    before, after = (
        {name: costs["model_size_bytes"] for name, costs in found.items()}
        for found in (screened, {variant["name"]: variant["costs"] for variant in trial["variants"]})
    )
    assert set(after) == set(compress)
    # The zero point of a table in uint8 takes two bytes from 128 on: words, positions, segments.
    assert abs(before.pop("onnx-int8") - after.pop("onnx-int8")) <= 3
    assert before == after


@pytest.fixture(scope="module")
def killed(tmp_path_factory, tiny_model, reviews):
    """A search that was killed after a trial: its recipe, the trials that were done, and what a second one said before."""
    folder = tmp_path_factory.mktemp("killed")
    recipe = write_recipe(folder, tiny_model, reviews, budget={"time": "10m", "trials": 3}, compress=["none"])
    process = subprocess.Popen([*COMMAND, "search", str(recipe)], cwd=folder, stdout=subprocess.DEVNULL)
    try:
        trials = folder / "runs/tiny/trials"
        deadline = time.monotonic() + 200
        while not list(trials.glob("*/result.json")):
            assert process.poll() is None, "the search ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = in_process("search", recipe, cwd=folder)
    finally:
        process.kill()
        process.wait()
    return recipe, {path: path.read_bytes() for path in trials.glob("*/result.json")}, second


def test_two_searches_in_one_folder_do_not_meet(killed):
    _, _, second = killed
    assert second.returncode == 5
    assert "another search is running in this folder" in second.stderr


def test_killed_in_the_middle_it_goes_on_and_repeats_no_finished_trial(killed):
    recipe, finished, _ = killed
    folder = recipe.parent
    assert len(finished) in {1, 2}
    done = autoft_command("search", recipe, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Going on: {len(finished)} trial" in done.stdout
    assert len(list(folder.glob("runs/tiny/trials/*/result.json"))) == 3
    for path, content in finished.items():
        now, then = json.loads(path.read_text()), json.loads(content)
        # Weights that left the front are deleted, and the record says so; nothing else may change.
        for result in (now, then):
            for variant in result["variants"]:
                variant.pop("folder")
        assert now == then
    left = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True, check=False)
    assert left.stdout == ""


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory, tiny_model, reviews) -> tuple[Path, list[dict]]:
    """A run, and what ``search --json`` said: the worker of the second trial was killed, after the third one came Ctrl-C."""
    folder = tmp_path_factory.mktemp("disturbed")
    # Long enough that a trial is not over before its first event is read.
    space = {"full.learning_rate": {"low": 2e-3, "high": 8e-3}, "train.epochs": 12, "train.batch_size": 8}
    budget = {"time": "10m", "trials": 50}
    executor = {"workers": 1}
    recipe = write_recipe(folder, tiny_model, reviews, budget=budget, space=space, compress=["none"], executor=executor)
    process = subprocess.Popen(
        [*COMMAND, "search", str(recipe), "--json"], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    worker, killed = None, False
    events = []
    for line in process.stdout:
        event = json.loads(line)
        events.append(event)
        if event["event"] == "stage" and worker is None:
            # Looked up in time, for the second trial has to lose it before it trains: later it would be begun again.
            children = psutil.Process(process.pid).children()
            (worker,) = [child for child in children if "autoft.executors.worker" in child.cmdline()]
        if event["event"] == "stage" and event["trial"] == 1 and not killed:
            worker.kill()
            killed = True
        if event["event"] == "trial_done" and event["trial"] == 2:
            process.send_signal(signal.SIGINT)
    assert process.wait() == 0
    return folder / "runs/tiny", events


def test_json_lines_on_request(disturbed):
    _, events = disturbed
    kinds = [event["event"] for event in events]
    assert kinds[-1] == "finished"
    assert {"begin", "forecast", "trial_started", "stage", "validation", "trial_done", "phase"} <= set(kinds)
    done_event = next(event for event in events if event["event"] == "trial_done")
    assert done_event["standing"]["counts"]["complete"] == 1


def test_a_trial_whose_worker_is_killed_after_another_trial_is_begun_again(disturbed):
    _, events = disturbed
    results = {event["trial"]: event for event in events if event["event"] == "trial_done"}
    assert results[1]["state"] in {"complete", "pruned"}
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert any(
        said.startswith("Trial 1 is begun again in a new process: ") and "killed by signal 9" in said for said in notes
    )
    assert results[2]["state"] in {"complete", "pruned"}


def test_ctrl_c_once_finishes_with_what_there_is(disturbed):
    run, events = disturbed
    kinds = [event["event"] for event in events]
    assert kinds[-1] == "finished"
    # That of the moment when it came may be trained to its end.
    assert 3 <= kinds.count("trial_done") <= 4
    assert (run / "best/autoft.json").is_file()
    assert (run / "report.html").is_file()


def test_three_first_trials_that_fail_alike_end_the_run(tmp_path, tiny_model, reviews):
    model = tmp_path / "damaged"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    # Attention heads that do not divide the width: transformers refuses to build it.
    (model / "config.json").write_text(json.dumps({**config, "num_attention_heads": 3}))
    recipe = write_recipe(tmp_path, model, reviews, budget={"time": "10m", "trials": 9})
    done = autoft_command("search", recipe, cwd=tmp_path)
    assert done.returncode in {2, 7}, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "error:" in done.stderr


def test_exported_files_that_are_not_what_was_measured_are_an_error(finished, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    from autoft.artifact import file_digests

    run = tmp_path / "run"
    shutil.copytree(finished / "runs/tiny", run)
    record = read_run(run)
    variant = next(v for v in record.trial(record.selection.trial).variants if v.name == record.selection.variant)
    weights = run / variant.folder / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("classifier.weight"))
    tensors[name] = -tensors[name] if tensors[name].dtype == torch.float32 else tensors[name]
    save_file(tensors, weights, metadata={"format": "pt"})
    # By digests that are those of other weights too; else the trial is done again.
    manifest = json.loads((weights.parent / "autoft.json").read_text())
    manifest["files"] = file_digests(weights.parent)
    (weights.parent / "autoft.json").write_text(json.dumps(manifest))
    (run / "final.json").unlink()
    done = in_process("search", finished / "tiny.yaml", "--run", run, cwd=finished)
    assert done.returncode == 6, done.stdout + done.stderr
    assert "they are not what was measured" in done.stderr


def test_verify_finds_a_model_as_it_was_reported_and_tells_where_it_is_not(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished / "runs/tiny", run)
    done = autoft_command("verify", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "score what the report says" in done.stdout
    said = json.loads(in_process("verify", run, "--json", cwd=tmp_path).stdout)["verified"]
    final = json.loads((run / "final.json").read_text())
    assert {(one["split"], one["metric"]) for one in said} == {
        *(("validation", name) for name in final["validation"]["best"]),
        *(("test", name) for name in final["test"]["best"]),
    }
    # Other weights of the same shapes: the files load, and say something else.
    weights = next((run / "best").glob("*.safetensors"))
    save_file({name: tensor.flip(0) for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    (run / "best/further.txt").write_text("not of the model")
    done = in_process("verify", run, cwd=tmp_path)
    assert done.returncode == 6, done.stdout + done.stderr
    assert f"further.txt was added, {weights.name} was changed" in done.stderr
    # Whoever changes the digests too is found by the scores.
    (run / "best/further.txt").unlink()
    manifest = json.loads((run / "best/autoft.json").read_text())
    manifest["files"][weights.name] = hashlib.sha256(weights.read_bytes()).hexdigest()
    (run / "best/autoft.json").write_text(json.dumps(manifest))
    done = in_process("verify", run, cwd=tmp_path)
    assert done.returncode == 6, done.stdout + done.stderr
    assert "validation accuracy" in done.stderr


@pytest.mark.slow
def test_a_model_that_learned_nothing_is_told_and_the_shortest_time_still_trains_the_default(
    tmp_path, tiny_model, reviews
):
    write_recipe(
        tmp_path,
        tiny_model,
        reviews,
        budget={"time": "1s"},
        compress=["none"],
        # A fitted head would have learned something before the training.
        space={"full.learning_rate": 1e-6, "train.epochs": 90, "train.batch_size": 8, "train.head": "random"},
    )
    done = autoft_command("search", "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a rule that learns nothing does as well" in done.stdout
    assert "did not come to its end: it was trained for" in done.stdout
    report = json.loads((tmp_path / "runs" / "tiny" / "report.json").read_text())
    assert report["trials"]["complete"] == 1
    # The default is what was chosen, and is not measured twice.
    assert report["baselines"]["default"]["test"] == report["best"]["test"]
    assert not (tmp_path / "runs/tiny/logs/final-default.log").exists()
    assert any("majority class scores" in warning for warning in report["warnings"])
    assert "a rule that learns nothing does as well" in (tmp_path / "runs" / "tiny" / "report.html").read_text()
