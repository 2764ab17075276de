"""Variants that lose too much by quantization: which are made once more of weights that were trained for it, and when."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from autoft.rundir import read_run

AWARE = "quantization-aware(epochs=4, learning_rate=0.004)+onnx-int8"


@pytest.fixture(scope="module")
def outlier_model(tiny_model, tmp_path_factory) -> Path:
    """The tiny encoder with one huge number in the row of a token that no text has.

    The scale of an int8 table follows from it, so that next to nothing is left of all other rows.
    """
    from transformers import BertModel

    folder = tmp_path_factory.mktemp("models") / "outlier-bert"
    shutil.copytree(tiny_model, folder)
    model = BertModel.from_pretrained(folder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[1, 0] = 60.0
    model.save_pretrained(folder)
    return folder


def search(folder: Path, model: Path, reviews: Path, **changes: object) -> tuple[Path, str]:
    recipe = {
        "task": "text-classification",
        "model": str(model),
        "data": {"train": str(reviews), "validation_size": 80, "test_size": 80},
        "budget": {"time": "10m", "trials": 1},
        "effort": "quick",
        "compress": ["onnx-int8"],
        "space": {
            "full.learning_rate": 4e-3,
            "train.epochs": 5,
            "train.batch_size": 8,
            "quantization-aware": {"epochs": 4, "learning_rate": 4e-3},
        },
        "search": {"finalist_seeds": 0, "early_stopping": "none"},
        **changes,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    words = [sys.executable, "-m", "autoft", "search", "tiny.yaml"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs/tiny", done.stdout


def test_a_quantization_that_costs_too_much_is_trained_for(tmp_path, outlier_model, reviews):
    run, said = search(tmp_path, outlier_model, reviews)
    record = read_run(run)
    trial, again = record.trials
    figures = {variant.name: variant.validation["accuracy"] for variant in trial.variants}
    assert set(figures) == {"none", "onnx-int8"}
    assert figures["onnx-int8"] < figures["none"] - 0.01
    lost = figures["none"] - figures["onnx-int8"]
    assert again.config.kind == "compress"
    assert again.config.members == [0]
    (variant,) = again.variants
    assert variant.state == "complete", variant.reason
    assert variant.name == AWARE
    assert variant.validation["accuracy"] > figures["none"] - lost / 2
    # It costs what the other one costs.
    costs = {one.name: one.costs["model_size_bytes"] for one in trial.variants}
    assert variant.costs["model_size_bytes"] == pytest.approx(costs["onnx-int8"], rel=0.01)
    assert f"onnx-int8 (by {lost:.3g})" in " ".join(said.split())
    assert (record.selection.trial, record.selection.variant) == (1, AWARE)
    report = (run / "report.md").read_text()
    table = report.split("### From the trained model to this one")[1].split("###")[0]
    assert [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")][2:] == [
        "| as trained",
        "| quantization-aware(epochs=4, learning_rate=0.004)",
        "| onnx-int8",
    ]
    assert f"onnx-int8 alone is {lost:.3g} worse than uncompressed" in report


@pytest.mark.slow
def test_a_quantization_that_costs_little_is_left_as_it_is(tmp_path, tiny_model, reviews):
    run, said = search(tmp_path, tiny_model, reviews)
    record = read_run(run)
    (trial,) = record.trials
    figures = {variant.name: variant.validation["accuracy"] for variant in trial.variants}
    assert figures["onnx-int8"] >= figures["none"] - 0.01
    assert "search.tolerance" not in said
    assert record.plan["rescues"][0]["name"] == AWARE
