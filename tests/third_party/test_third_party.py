"""Plugins of strangers, installed as pip does it: one that works and one that does not load."""

from __future__ import annotations

import csv
import importlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with both plugins installed."""
    target = tmp_path_factory.mktemp("site-packages")
    flags = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    folders = [HERE / "autoft-sentence-similarity", HERE / "autoft-broken"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *flags, "--target", target, *folders],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


def run(*words, site, cwd):
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def test_one_is_listed_and_the_other_is_shown_with_its_reason(site, tmp_path):
    done = run("autoft", "plugins", "--json", site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    (similarity,) = [one for one in listed["plugins"] if one["distribution"] == "autoft-sentence-similarity"]
    assert similarity == {
        "name": "similarity",
        "distribution": "autoft-sentence-similarity",
        "version": "2.3.0",
        "tasks": ["sentence-similarity"],
        "strategies": [],
        "metrics": ["similarity_spearman", "similarity_pearson"],
    }
    (broken,) = listed["broken"]
    assert broken == {
        "name": "broken",
        "distribution": "autoft-broken",
        "version": "0.0.1",
        "error": "ModuleNotFoundError: No module named 'a_package_that_nobody_has'",
    }
    assert {"autoft-strategies", "text-classification"} <= {one["name"] for one in listed["plugins"]}
    shown = run("autoft", "plugins", site=site, cwd=tmp_path).stdout
    assert "did not load: broken (autoft-broken 0.0.1): ModuleNotFoundError: No module named" in shown


def test_the_broken_one_cannot_be_checked_and_says_why(site, tmp_path):
    done = run("autoft", "plugins", "check", "autoft-broken", site=site, cwd=tmp_path)
    assert done.returncode == 3
    assert "the plugin broken (autoft-broken) did not load: ModuleNotFoundError" in done.stderr


def test_the_other_one_passes_the_kit_and_its_own_tests(site, tmp_path):
    # Elsewhere, as in a repository of its own: no conftest and no settings of this one.
    shutil.copytree(HERE / "autoft-sentence-similarity" / "tests", tmp_path / "tests")
    done = run("pytest", "-q", "-p", "no:cacheprovider", "tests", site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        ("sentence-similarity", ("text1", "text2", "similarity")),
        ("text-classification", ("text", "text_pair", "label")),
    ],
)
def test_recipes_of_either_work_beside_the_broken_one(task, columns, site, tiny_model, tmp_path):
    rng = random.Random(3)
    words = ["film", "plot", "scene", "music", "story", "actor", "good", "bad", "warm", "dull"]
    with (tmp_path / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for _ in range(60):
            first, kept = rng.sample(words, 4), rng.randint(0, 4)
            writer.writerow([" ".join(first), " ".join(first[:kept] + rng.sample(words, 4 - kept)), kept])
    recipe = f"task: {task}\nmodel: {tiny_model}\ndata: pairs.csv\nbudget: {{time: 3m}}\n"
    (tmp_path / "pairs.yaml").write_text(recipe)
    explained = run("autoft", "explain", "pairs.yaml", "--json", site=site, cwd=tmp_path)
    assert explained.returncode == 0, explained.stderr
    refused = {note["what"]: note["reason"] for note in json.loads(explained.stdout)["refusals"]}
    says_how = "the task sentence-similarity does not say how to trace its models"
    assert ("onnx" in refused) == (task == "sentence-similarity")
    assert says_how in refused.get("onnx", says_how)
    if task == "sentence-similarity":
        checked = run("autoft", "check", "pairs.yaml", site=site, cwd=tmp_path)
        assert checked.returncode == 0, checked.stderr
        assert checked.stdout.rstrip().endswith("The recipe works.")


def test_its_baselines_are_told_from_the_demo_rows(site, monkeypatch):
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    from autoft_sentence_similarity import autoft_metrics, autoft_tasks

    from autoft.contracts import TaskContext

    (task,) = autoft_tasks()
    rows = task.demo_rows()
    context = TaskContext(facts=task.facts(rows, {}), options={}, params={}, max_length=8)
    assert context.facts["mean"] == pytest.approx(sum(row["score"] for row in rows) / len(rows))
    mean, words = task.baselines(rows, context)
    spearman = autoft_metrics()[0]
    truth = [row["score"] for row in rows]
    assert spearman.score(words.predict(rows), truth, context) > 0.5
    assert math.isnan(spearman.score(mean.predict(rows), truth, context))
