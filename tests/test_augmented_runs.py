"""Augmentation in a whole search: what the plan allows, what trials record, what the report shows of it."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from autoft.contracts import ModelSource, Target, TaskContext
from autoft.errors import RecipeError
from autoft.hardware import Hardware
from autoft.plans.efforts import EFFORTS
from autoft.plans.planner import make_plan
from autoft.recipe import recipe_from_mapping
from autoft.report.content import make_content
from autoft.rundir import read_run
from autoft.space import Categorical, domain_from_json, domain_from_recipe, domain_to_json
from autoft.strategies.augmentation import CharacterNoise, RandomSwap
from autoft.strategies.pictures import HorizontalFlip
from autoft.training import Augmentation

CPU = Hardware("cpu", 2, 8 * 2**30, (), "test", False, "Linux x86_64")


def planned(catalog, model, **changes):
    recipe = {"task": "text-classification", "model": str(model), "data": "train.csv", **changes}
    return make_plan(recipe_from_mapping(recipe), catalog, CPU)


# ── the plan


@pytest.mark.parametrize("effort", list(EFFORTS))
@pytest.mark.parametrize(
    "task", ["text-classification", "token-classification", "question-answering", "image-captioning"]
)
def test_every_effort_has_none_first_and_nothing_that_is_refused(catalog, tiny_model, effort, task):
    plan = planned(catalog, tiny_model, effort=effort, task=task)
    domain = plan.domain("augment")
    assert (domain.choices[0], domain.default) == ("none", "none")
    target = Target(
        catalog.task(task), ModelSource("m", str(tiny_model)), plan.models[0].config, TaskContext({}, {}, {}, 64), CPU
    )
    assert all(catalog.augmenters[name].check(target) is None for name in domain.choices[1:])
    assert all(name in EFFORTS[effort]["augment"] for name in domain.choices)
    assert set(EFFORTS[effort]["augment"]) <= {"none", *catalog.augmenters}


@pytest.mark.parametrize(
    ("task", "offered", "refused"),
    [
        (
            "token-classification",
            {"mention-replacement", "label-wise-replacement", "segment-shuffle", "character-noise"},
            {"random-swap", "crop"},
        ),
        (
            "question-answering",
            {"random-deletion", "random-insertion", "word-order"},
            {"crop", "sentence-order", "masked-replacement"},
        ),
        (
            "image-captioning",
            {"horizontal-flip", "random-resized-crop", "colour-jitter", "random-erasing"},
            {"random-swap"},
        ),
        (
            "text-classification",
            {"random-swap", "crop", "filler-words", "embedding-neighbours"},
            {"segment-shuffle", "horizontal-flip"},
        ),
        ("summarization", set(), {"random-swap", "horizontal-flip"}),
    ],
)
def test_tasks_are_offered_what_keeps_their_columns_right(catalog, tiny_model, task, offered, refused):
    plan = planned(catalog, tiny_model, task=task, augment=["none", *sorted(offered | refused)])
    assert set(plan.domain("augment").choices) == {"none", *offered}
    reasons = {note.what: note.reason for note in plan.refusals}
    assert all(reasons[name].startswith(f"{name}: ") for name in refused)


def test_a_chain_has_the_parameters_of_both(catalog, tiny_model):
    plan = planned(catalog, tiny_model, augment=["none", "random-swap+character-noise", "random-swap"])
    both = set(plan.parameters("full", "random-swap+character-noise"))
    assert {"random-swap.rate", "character-noise.rate", "character-noise.kind"} <= both
    assert "character-noise.rate" not in plan.parameters("full", "random-swap")
    assert not any(name.startswith("random-swap.") for name in plan.parameters("full", "none"))
    with pytest.raises(RecipeError, match="Did you mean 'random-swap'"):
        planned(catalog, tiny_model, augment=["none", "random-swop+character-noise"])
    plan = planned(catalog, tiny_model, augment=["none", "random-swap+horizontal-flip"])
    assert plan.domain("augment").choices == ("none",)
    assert any("random-swap+horizontal-flip is left out: horizontal-flip:" in warning for warning in plan.warnings)


def test_a_recipe_names_the_models_of_back_translation(catalog, tiny_model):
    plan = planned(catalog, tiny_model, augment=["none", "back-translation"])
    assert plan.domain("augment").choices == ("none",)
    assert any("name them in the recipe" in warning for warning in plan.warnings)
    space = {"back-translation": {"forward": str(tiny_model), "backward": str(tiny_model)}}
    plan = planned(catalog, tiny_model, augment=["none", "back-translation"], space=space)
    assert plan.domain("augment").choices == ("none", "back-translation")
    assert plan.domain("back-translation.forward") == Categorical((str(tiny_model),))
    assert plan.domain("back-translation.pivot").choices == (None,)
    with pytest.raises(RecipeError, match="needs a text, given 3"):
        planned(
            catalog,
            tiny_model,
            augment=["back-translation"],
            space={"back-translation": {"forward": 3, "backward": str(tiny_model)}},
        )


def test_an_open_choice_takes_any_text_and_survives_json():
    known = Categorical((None,), open=True)
    assert domain_from_json(domain_to_json(known)) == known
    assert domain_from_recipe(["a/b", "c"], known).choices == ("a/b", "c")
    for wrong in (3, "", " ", True):
        with pytest.raises(ValueError, match="needs a text"):
            domain_from_recipe(wrong, known)
    with pytest.raises(ValueError, match="allowed"):
        domain_from_recipe("a", Categorical(("b",)))


def test_a_chain_changes_one_after_the_other(catalog):
    card = catalog.task("text-classification").card
    noise = Augmentation(CharacterNoise(), {"rate": 0.3, "kind": "case"}, None)
    chain = Augmentation(RandomSwap(), {"rate": 0.3}, None, then=noise)
    row = {"text": "several quite ordinary words following another", "label": "x"}
    rng = random.Random(5)
    swapped = RandomSwap().augment(row, card, rng, {"rate": 0.3})
    expected = CharacterNoise().augment(swapped, card, rng, {"rate": 0.3, "kind": "case"})
    assert chain.change(row, card, random.Random(5)) == expected
    assert sorted(expected["text"].lower().split()) == sorted(row["text"].split())
    assert expected["text"] != swapped["text"] != row["text"]


def test_samples_are_rows_that_change_and_pictures_small_ones(catalog):
    card = catalog.task("image-captioning").card
    rows = list(catalog.task("image-captioning").demo_rows())
    # All of its captions say left or right, so that a flip leaves them alone.
    assert Augmentation(HorizontalFlip(), {}, None).samples(rows, card) == []
    other = [{**row, "captions": ["a square"]} for row in rows] * 5
    samples = Augmentation(HorizontalFlip(), {}, None).samples(other, card, count=3)
    assert len(samples) == 3
    assert all(one["role"] == "image" and one["before"] != one["after"] for one in samples)
    assert all(one[when].startswith("data:image/jpeg;base64,") for one in samples for when in ("before", "after"))
    card = catalog.task("token-classification").card
    rows = catalog.task("token-classification").demo_rows()
    (first, *_) = Augmentation(CharacterNoise(), {"rate": 0.3, "kind": "typing"}, None).samples(rows, card)
    assert first["role"] == "tokens"
    assert first["before"] in {" ".join(row["tokens"]) for row in rows}


# ── a search


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model, reviews) -> Path:
    """The run folder of a search of four trials with and without augmentation."""
    folder = tmp_path_factory.mktemp("augmented")
    recipe = {
        "task": "text-classification",
        "model": str(tiny_model),
        "data": {"train": str(reviews), "validation_size": 80, "test_size": 80},
        "budget": {"time": "10m", "trials": 4},
        "effort": "quick",
        "compress": ["none"],
        "augment": ["none", "random-swap+embedding-neighbours"],
        "space": {"full.learning_rate": [4e-3], "train.epochs": 2, "train.batch_size": 16},
        "search": {"finalist_seeds": 0, "sampler": "grid", "early_stopping": "none"},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    words = [sys.executable, "-m", "autoft", "search", "tiny.yaml"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs/tiny"


def augmented(run):
    return {t.number: t for t in read_run(run).trials if t.config.params["augment"] != "none"}


def test_trials_record_what_augmentation_did(run):
    trials = augmented(run)
    assert trials
    record = read_run(run)
    assert set(record.augmented) == set(trials)
    for number in trials:
        kept = json.loads((run / f"trials/{number:04d}/augmented.json").read_text())
        assert kept["augment"] == "random-swap+embedding-neighbours"
        assert len(kept["samples"]) == 10
        assert all(one["before"] != one["after"] and one["role"] == "text" for one in kept["samples"])
    # Learned once a run, not once a trial.
    assert len(list((run / "cache").glob("embedding-neighbours-*.json"))) == 1


def test_the_report_shows_rows_and_what_it_bought(run):
    record = read_run(run)
    content = make_content(record)
    rows = {row[0]: row for row in content.augmentation.rows}
    assert set(rows) == {"none", "random-swap+embedding-neighbours"}
    for name, row in rows.items():
        scores = [t.validation["accuracy"] for t in record.trials if t.config.params["augment"] == name]
        assert int(row[1]) == len(scores)
        assert float(row[2]) == pytest.approx(max(scores), abs=5e-5)
        if name != "none":
            assert float(row[4]) == pytest.approx(float(row[2]) - float(rows["none"][2]), abs=2e-4)
    assert len(content.samples.rows) == 10
    page, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    for wanted in ("What augmentation bought", "Training rows, before and after"):
        assert wanted in page
        assert wanted in text
    assert content.samples.rows[0][3].split()[0] in page


def test_without_augmentation_nothing_is_shown(run, tmp_path):
    copy = tmp_path / "plain"
    shutil.copytree(run, copy)
    for file in copy.glob("trials/*/augmented.json"):
        file.unlink()
    content = make_content(read_run(copy))
    assert content.augmentation is None
    assert content.samples is None
    assert content.pictures == []


def test_pictures_and_long_texts_in_the_report(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    uri = "data:image/jpeg;base64,AAAA"
    long = "x" * 400
    samples = [
        {"role": "image", "before": uri, "after": uri + "BBBB"},
        {"role": "text", "before": long + " end", "after": long + " new"},
        {"role": "text", "before": "<b>a</b>", "after": "|"},
    ]
    for file in copy.glob("trials/*/augmented.json"):
        file.write_text(json.dumps({"augment": "horizontal-flip", "samples": samples}))
    content = make_content(read_run(copy))
    assert [(one["before"], one["after"]) for one in content.pictures] == [(uri, uri + "BBBB")]
    assert [row[2:] for row in content.samples.rows] == [
        ("…" + "x" * 59 + " end", "…" + "x" * 59 + " new"),
        ("<b>a</b>", "|"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "autoft", "report", str(copy)], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    page = (copy / "report.html").read_text()
    assert f'<img src="{uri}BBBB"' in page
    assert "&lt;b&gt;a&lt;/b&gt;" in page
