"""A model that fits the budget by none of the effort's compressions, beside one that does."""

from __future__ import annotations

import subprocess
import sys

import yaml

from autoft.rundir import read_run, read_typed


def test_it_is_made_smaller_by_the_gentlest_chain_that_fits_and_others_do_without(
    tmp_path, wordy_model, tiny_model, reviews
):
    recipe = {
        "task": "text-classification",
        "model": [str(wordy_model), str(tiny_model)],
        "data": {"train": str(reviews), "validation_size": 80, "test_size": 80},
        "budget": {"time": "10m", "trials": 2, "model_size": "150KB"},
        "effort": "quick",
        "space": {"full.learning_rate": 4e-3, "train.epochs": 1},
        "search": {"finalist_seeds": 0, "early_stopping": "none", "portfolio": False},
        "executor": {"workers": 1},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    words = [sys.executable, "-m", "autoft", "search", "tiny.yaml"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs/tiny"
    record, costs = read_run(run), read_typed(run / "screening.json", dict[str, dict[str, dict[str, float]]], {})
    sizes = {name: figures["model_size_bytes"] for name, figures in costs[str(wordy_model)].items()}
    taken = "vocabulary-pruning(unseen=0.005)+onnx-int8"
    assert sizes["onnx-int8"] > 150_000 > sizes[taken]
    assert set(costs[str(tiny_model)]) == {"none", "onnx-int8"}
    for trial in record.trials:
        made = {variant.name: variant.state for variant in trial.variants}
        if trial.config.model == str(wordy_model):
            assert made == {"none": "infeasible", "onnx-int8": "infeasible", taken: "complete"}
        else:
            assert taken not in made
    assert taken in " ".join(done.stdout.split())
    # The plan is made anew by each call, and what was taken then is still there to choose.
    again = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=400)
    assert again.returncode == 0, again.stdout + again.stderr
    assert read_run(run).selection == record.selection
