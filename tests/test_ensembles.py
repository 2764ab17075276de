"""The best trials averaged: what comes of it is made of real trials of a tiny model, and checked by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import autoft
from autoft.artifact import load
from autoft.data.prepared import open_data
from autoft.ensembles import combine
from autoft.errors import ModelError, RecipeError
from autoft.rundir import RunDir, read_run
from autoft.trial import Callbacks, Workplace


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model, reviews) -> Path:
    """A finished search whose best trials were averaged, all its files kept."""
    folder = tmp_path_factory.mktemp("averaged")
    recipe = {
        "task": "text-classification",
        "model": str(tiny_model),
        "data": {"train": str(reviews), "validation_size": 80, "test_size": 80},
        "budget": {"time": "10m", "trials": 3},
        "effort": "quick",
        "compress": ["none", "dynamic-int8"],
        # Trained for so short that the trials differ.
        "space": {"full.learning_rate": {"low": 1e-3, "high": 3e-3}, "train.epochs": 2, "train.batch_size": 16},
        "search": {"finalist_seeds": 0, "ensemble": 3, "early_stopping": "none"},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    words = [sys.executable, "-m", "autoft", "search", "tiny.yaml"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder / "runs/tiny"


def averaged(run: Path, kind: str):
    (found,) = [trial for trial in read_run(run).trials if trial.config.kind == kind]
    return found


def variant_of(trial, name: str):
    return next(variant for variant in trial.variants if variant.name == name)


def test_both_kinds_are_tried_and_stand_in_the_report(run):
    out = (run.parent.parent / "stdout.txt").read_text()
    assert "averaged weights of trials" in out
    assert "averaged predictions of trials" in out
    # They are no trials of their own: three were asked for.
    assert sum(trial.config.kind not in {"soup", "ensemble"} for trial in read_run(run).trials) == 3
    assert json.loads((run / "report.json").read_text())["budget"]["trials"]["measured"] == 3


def test_averaged_weights_are_the_mean_of_the_chosen_trials(run):
    import torch
    from safetensors.torch import load_file

    # Made once more, for the search keeps its files only where it is on the front.
    config = averaged(run, "soup").config.model_copy(update={"number": 91})
    soup = combine(Workplace.open(RunDir(run)), config, Callbacks())
    assert soup.config.members[0] in {trial.number for trial in read_run(run).trials}
    if soup.state == "pruned":
        assert "scores less" in soup.reason
        return
    members = variant_of(soup, "none").members
    assert len(members) >= 2
    trials = {trial.number: trial for trial in read_run(run).trials}
    weights = [load_file(run / variant_of(trials[n], "none").folder / "model.safetensors") for n in members]
    for name, value in load_file(run / variant_of(soup, "none").folder / "model.safetensors").items():
        mean = torch.stack([one[name].double() for one in weights]).mean(0)
        assert torch.allclose(value.double(), mean, atol=1e-6), name
    assert variant_of(soup, "none").validation["accuracy"] >= max(
        variant_of(trials[n], "none").validation["accuracy"] for n in members
    )


@pytest.fixture
def place(run) -> Workplace:
    return Workplace.open(RunDir(run))


def test_averaged_predictions_are_the_mean_of_those_of_the_members(run, place, tmp_path):
    trials = [trial for trial in read_run(run).trials if trial.config.kind not in {"soup", "ensemble"}]
    folders = [run / variant_of(trial, "none").folder for trial in trials]
    from autoft.artifact import save_ensemble

    save_ensemble(tmp_path / "both", folders, "accuracy", "none")
    rows = [{"text": row["text"]} for row in open_data(run / "data").validation[:20]]
    said = [[answer["scores"] for answer in load(folder).predict(rows)] for folder in folders]
    together = autoft.load(tmp_path / "both").predict(rows)
    expected = np.mean(said, axis=0)
    assert np.allclose([answer["scores"] for answer in together], expected, atol=1e-6)
    labels = place.data.facts["labels"]
    assert [answer["label"] for answer in together] == [labels[i] for i in expected.argmax(1)]
    # The files are links, but as large as all members to whoever copies them.
    size = sum(path.stat().st_size for path in (tmp_path / "both").rglob("*") if path.is_file())
    assert size > sum(path.stat().st_size for folder in folders for path in folder.rglob("*.safetensors"))


def test_only_members_that_help_are_taken(run, place):
    """Against all subsets that forward selection could visit, by brute force."""
    ensemble = averaged(run, "ensemble")
    validation = place.data.validation[:]
    truth = [row["label"] for row in validation]
    labels = place.data.facts["labels"]
    trials = {trial.number: trial for trial in read_run(run).trials}
    for name in ("none", "dynamic-int8"):
        scores = {
            n: np.array([a["scores"] for a in load(run / variant_of(trials[n], name).folder).predict(validation)])
            for n in ensemble.config.members
        }

        def accuracy(numbers, scores=scores):
            mean = np.mean([scores[n] for n in numbers], axis=0)
            return np.mean([labels[i] == label for i, label in zip(mean.argmax(1), truth, strict=True)])

        chosen = [max(scores, key=lambda n: accuracy([n]))]
        while rest := [n for n in scores if n not in chosen]:
            best = max(rest, key=lambda n: accuracy([*chosen, n]))
            if accuracy([*chosen, best]) <= accuracy(chosen):
                break
            chosen.append(best)
        found = [variant.members for variant in ensemble.variants if variant.name == name]
        assert found == ([chosen] if len(chosen) > 1 else [])
    # Each of them took its own time, and scoring is a part of that.
    assert sum(variant.seconds for variant in ensemble.variants) <= ensemble.seconds["total"]
    assert all(variant.score_seconds > 0 for variant in ensemble.variants)


def test_an_ensemble_that_is_over_the_budget_is_no_candidate(run, place):
    from autoft.plans.plan import BudgetLimit

    ensemble = averaged(run, "ensemble")
    one = min(
        variant.costs["model_size_bytes"]
        for trial in read_run(run).trials
        for variant in trial.variants
        if variant.name == "none" and trial.config.kind == "default"
    )
    limit = BudgetLimit(key="model_size", column="model_size_bytes", limit=1.5 * one, given="")
    place.plan = place.plan.model_copy(update={"budget": [limit], "variants": place.plan.variants[:1]})
    again = combine(place, ensemble.config.model_copy(update={"number": 90}), Callbacks())
    if again.state == "pruned":
        assert "no better" in again.reason
    else:
        assert again.state == "infeasible"
        assert again.variants[0].violations["model_size"] == pytest.approx(1 / 3, abs=0.05)


def test_a_manifest_that_leads_out_of_its_folder_is_refused(run, tmp_path):
    from autoft.artifact import save_ensemble

    default = next(trial for trial in read_run(run).trials if trial.number == 0)
    save_ensemble(tmp_path / "both", [run / variant_of(default, "none").folder] * 2, "accuracy", "none")
    manifest = json.loads((tmp_path / "both/autoft.json").read_text())
    manifest["members"][1] = "../elsewhere"
    (tmp_path / "both/autoft.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="is damaged"):
        load(tmp_path / "both")


def test_ensembles_and_folds_do_not_go_together(tiny_model, reviews):
    recipe = {
        "task": "text-classification",
        "model": str(tiny_model),
        "data": str(reviews),
        "search": {"folds": 3, "ensemble": 3},
    }
    with pytest.raises(RecipeError, match=r"search\.ensemble"):
        autoft.explain(recipe)
    del recipe["search"]["ensemble"]
    assert autoft.explain({**recipe, "effort": "best"}).ensemble == 0
    assert autoft.explain({**recipe, "effort": "best", "search": {}}).ensemble == 3
