"""A configuration of the user's own in a run that is there."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import autoft
from autoft.additions import added_configuration, settings_of
from autoft.cli import app
from autoft.errors import RecipeError, RunFolderError
from autoft.hardware import Hardware
from autoft.plans.planner import make_plan
from autoft.recipe import recipe_from_mapping
from autoft.rundir import TrialResult, read_run

# Minutes of whole searches and exports; the gate has others of both.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plan(tiny_model, catalog):
    recipe = {
        "task": "text-classification",
        "model": str(tiny_model),
        "data": "reviews.csv",
        "pipelines": ["full", "lora", "head-only"],
        "compress": ["none"],
        "augment": ["none", "random-swap"],
        "space": {"train.epochs": 2, "lora.rank": {"low": 4, "high": 16}},
    }
    return make_plan(recipe_from_mapping(recipe), catalog, Hardware.probe_cpu())


@pytest.fixture(scope="module")
def results(plan):
    default = plan.default_config()
    params = {**plan.default_params("lora"), "lora.rank": 8, "train.epochs": 2}
    other = default.model_copy(update={"number": 1, "kind": "search", "pipeline": "lora", "params": params})
    averaged = default.model_copy(update={"number": 2, "kind": "soup", "members": [0, 1]})
    return [TrialResult(number=one.number, state="complete", config=one) for one in (default, other, averaged)]


def built(plan, catalog, results, *overrides, **options):
    settings, faults = settings_of(overrides)
    return added_configuration(plan, catalog, results, settings, faults=faults, **options)


def test_the_rest_is_the_defaults_and_the_pipeline_the_one_that_has_the_parameter(plan, catalog, results):
    config = built(plan, catalog, results, "lora.rank=12")
    assert (config.kind, config.pipeline, config.model, config.seed) == (
        "added",
        "lora",
        plan.models[0].name,
        plan.seed,
    )
    assert config.params == {**plan.default_params("lora"), "lora.rank": 12}


def test_settings_may_lie_outside_of_what_the_run_searches(plan, catalog, results):
    config = built(plan, catalog, results, "lora.rank=64", "train.epochs=7", "train.dropout=0.5")
    assert (config.params["lora.rank"], config.params["train.epochs"], config.params["train.dropout"]) == (64, 7, 0.5)


def test_a_trial_to_start_from_gives_the_rest(plan, catalog, results):
    config = built(plan, catalog, results, "train.epochs=5", start=1)
    assert config.params == {**results[1].config.params, "train.epochs": 5}
    full = built(plan, catalog, results, "train.epochs=5", start=1, pipeline="full")
    assert set(full.params) == set(plan.default_params("full"))
    swapped = built(plan, catalog, results, "augment=random-swap", start=1)
    assert swapped.params["augment"] == "random-swap"
    assert any(name.startswith("random-swap.") for name in swapped.params)


def test_all_faults_come_at_once_each_with_what_is_right(plan, catalog, results):
    with pytest.raises(RecipeError) as caught:
        built(
            plan,
            catalog,
            results,
            "lora.rnk=3",
            "lora.rank=-1",
            "train.warmup=3",
            "train.schedule=cosinus",
            "train.batch_size=some",
            "train.epochs=[2, 3]",
            "augment=random-swop",
            "nothing",
            "full.learning_rate=1e-5",
            "dora.rank=4",
            "model=x",
            pipeline="lora",
            model="tiny-brt",
            start=9,
        )
    told = {fault.where.partition("=")[0]: fault.message for fault in caught.value.faults}
    assert "Did you mean 'lora.rank'?" in told["--set lora.rnk"]
    assert "at least 1" in told["--set lora.rank"] or "above 0" in told["--set lora.rank"]
    assert "at most 0.5" in told["--set train.warmup"]
    assert "cosine" in told["--set train.schedule"]
    assert "one value" in told["--set train.epochs"]
    assert [message for message in told.values() if message.count("known range") > 1] == []
    assert "Did you mean 'random-swap'?" in told["--set augment"]
    assert "key=value" in told["--set nothing"]
    assert "give --pipeline full" in told["--set full.learning_rate"]
    assert "a run of its own" in told["--set dora.rank"]
    assert "--model" in told["--set model"]
    assert "unknown model" in told["--model"]
    assert "no trial 9; it has 0, 1, 2" in told["--from"]


@pytest.mark.parametrize(
    ("overrides", "options", "says"),
    [
        ((), {}, "trial 0 of this run has these settings"),
        (("lora.rank=8",), {"start": 1}, "trial 1 of this run has these settings"),
        (("train.epochs=3",), {"start": 2}, "made of others"),
        ((), {"pipeline": "lorra"}, "Did you mean 'lora'?"),
    ],
)
def test_what_is_there_already_or_has_no_settings_is_refused(plan, catalog, results, overrides, options, says):
    with pytest.raises(RecipeError, match=says.replace("?", r"\?")):
        built(plan, catalog, results, *overrides, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model, reviews) -> Path:
    folder = tmp_path_factory.mktemp("added")
    with reviews.open(encoding="utf-8", newline="") as file:
        rows = [["comment", "verdict"], *list(csv.reader(file))[1:161]]
    with (folder / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    recipe = {
        "task": "text-classification",
        "name": "tiny",
        "model": str(tiny_model),
        "data": {"train": "reviews.csv", "columns": {"text": "comment", "label": "verdict"}},
        "budget": {"time": "20m", "trials": 1},
        "pipelines": ["full", "lora"],
        "compress": ["none"],
        "augment": ["none"],
        # Too little to learn anything: what is added is better.
        "space": {"train.epochs": 1, "full.learning_rate": 1e-6, "train.head": "random"},
        "search": {"finalist_seeds": 0},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    autoft.search(folder / "recipe.yaml", run=folder / "runs" / "tiny")
    return folder


BETTER = (
    "add",
    "runs/tiny",
    "--set",
    "full.learning_rate=0.01",
    "--set",
    "train.epochs=12",
    "--set",
    "train.head=fitted",
)


@pytest.fixture(scope="module")
def improved(finished, tmp_path_factory):
    """A copy of the run with a better configuration added, and what the command said."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("improved") / "copy"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(app, BETTER)
    assert done.exit_code == 0, (done.stderr, done.exception)
    return folder, done.stdout


def test_a_better_configuration_is_shipped_and_the_run_goes_on_as_before(finished, improved, monkeypatch):
    folder, said = improved
    monkeypatch.chdir(folder)
    before, record = read_run(finished / "runs/tiny"), read_run("runs/tiny")
    assert [(trial.number, trial.config.kind) for trial in record.trials] == [(0, "default"), (1, "added")]
    added = record.trial(1)
    assert (added.config.params["train.epochs"], added.config.params["full.learning_rate"]) == (12, 0.01)
    # Trained to its end, however the default's time was spent.
    assert added.curve[-1].epoch == pytest.approx(12)
    assert added.validation["accuracy"] > before.trial(0).validation["accuracy"]
    assert (record.selection.trial, before.selection.trial) == (1, 0)
    assert any("the test split was scored again" in note for note in record.final.notes)
    assert "Chosen: this trial" in said
    assert "Predict: autoft predict runs/tiny " in said
    assert "added by hand" in Path("runs/tiny/report.html").read_text()
    time = "runs/tiny/time.json"
    assert Path(time).read_text() == (finished / time).read_text()
    # Nor does it count among the trials of the budget.
    budget = json.loads(Path("runs/tiny/report.json").read_text())["budget"]
    assert (budget["trials"]["measured"], budget["trials"]["met"]) == (1, True)
    assert record.final.seconds == json.loads(Path(time).read_text())["seconds"]
    assert autoft.load("runs/tiny").predict("good superb film")
    # The sampler knows nothing of values that it would not propose, and the search has nothing more to do.
    again = CliRunner().invoke(app, ["search", "recipe.yaml"])
    assert again.exit_code == 0, again.stderr
    assert [trial.number for trial in read_run("runs/tiny").trials] == [0, 1]
    refused = CliRunner().invoke(app, BETTER)
    assert refused.exit_code == 2
    assert "trial 1 of this run has these settings" in refused.stderr


def test_a_worse_configuration_changes_nothing_but_the_record(improved, tmp_path):
    folder = Path(shutil.copytree(improved[0] / "runs/tiny", tmp_path / "run"))
    shipped = json.loads((folder / "final.json").read_text())
    added = autoft.add(folder, {"lora.learning_rate": 1e-6, "lora.rank": 64, "train.epochs": 1})
    assert (added.trial.config.pipeline, added.trial.number, added.chosen) == ("lora", 2, False)
    assert json.loads((folder / "final.json").read_text()) == shipped
    assert len(added.run.record.trials) == 3


def test_files_like_that_of_the_training_are_predicted_by_its_names(improved, monkeypatch):
    monkeypatch.chdir(improved[0])
    named = CliRunner().invoke(app, ["predict", "runs/tiny", "--input", "reviews.csv"])
    assert named.exit_code == 0, named.stderr
    with open("reviews.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    said = [json.loads(line)["label"] for line in named.stdout.splitlines()]
    assert said == [one["label"] for one in autoft.load("runs/tiny").predict([row["comment"] for row in rows])]
    Path("roles.jsonl").write_text(json.dumps({"text": rows[0]["comment"], "comment": "other"}) + "\n")
    by_role = CliRunner().invoke(app, ["predict", "runs/tiny", "--input", "roles.jsonl"])
    assert json.loads(by_role.stdout)["label"] == said[0]


def test_a_folder_without_a_trial_is_refused(finished, tmp_path):
    folder = Path(shutil.copytree(finished / "runs/tiny", tmp_path / "run"))
    shutil.rmtree(folder / "trials")
    for name in ("selection.json", "final.json"):
        (folder / name).unlink()
    with pytest.raises(RunFolderError, match="run autoft search first"):
        autoft.add(folder, {"lora.rank": 8})
    with pytest.raises(RunFolderError):
        autoft.add(tmp_path / "nothing", {"lora.rank": 8})
