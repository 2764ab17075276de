"""The plugin guide is a plugin: its code is installed from the page, searched with, and its reference is complete."""

from __future__ import annotations

import ast
import csv
import importlib
import inspect
import json
import os
import random
import re
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement

import autoft
from autoft import contracts, hookspecs
from autoft.artifact import load
from autoft.contracts import Column, ModelSource, Served, Target, TaskCard, TaskContext
from autoft.data.prepared import open_data
from autoft.hardware import Hardware
from autoft.plugins import load_plugins
from autoft.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = (DOCS / "plugins.md").read_text(encoding="utf-8")
REFERENCE = (DOCS / "hooks.md").read_text(encoding="utf-8")

BLOCKS = dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", GUIDE, re.DOTALL))
"""The files of the guide: the first line of each block is a comment with its path."""

PACKAGE = "autoft_review_stars"


def pyproject():
    return tomllib.loads(BLOCKS["pyproject.toml"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder as pip would leave it: the package of the guide, and the metadata of its pyproject."""
    folder = tmp_path_factory.mktemp("site-packages")
    for path, code in BLOCKS.items():
        if path.endswith(".py"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(code, encoding="utf-8")
    project = pyproject()["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["autoft"].items()
    (info / "entry_points.txt").write_text("[autoft]\n" + "".join(f"{name} = {value}\n" for name, value in points))
    return folder


@pytest.fixture(scope="module")
def installed(site):
    """The plugin of the guide in this process: its objects by name."""
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    try:
        catalog = load_plugins()
        assert not catalog.broken
        yield catalog
    finally:
        sys.path.remove(str(site))
        for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
            del sys.modules[name]


def environment(site):
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def command(*words, site, cwd):
    return subprocess.run(
        [sys.executable, "-m", "autoft", *words],
        cwd=cwd,
        env=environment(site),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


@pytest.fixture(scope="module")
def workshop(site, tiny_model, tmp_path_factory):
    """A folder with rated reviews and the recipe of the guide, for a model and a time that a test has."""
    folder = tmp_path_factory.mktemp("workshop")
    rng = random.Random(7)
    words = {"awful": 1, "dull": 2, "fine": 3, "good": 4, "superb": 5}
    with (folder / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "rating"])
        for number in range(160):
            word = rng.choice(list(words))
            filler = rng.choices(["the", "film", "plot", "music", "story", "actor"], k=8)
            writer.writerow([" ".join([*filler, word, "scene", str(number)]), words[word]])
    recipe = yaml.safe_load(BLOCKS["stars.yaml"])
    recipe["model"] = str(tiny_model)
    recipe["augment"] = "random-crop"
    recipe["compress"] = ["none", "half-weights"]
    recipe["budget"] |= {"time": "3m", "trials": 1, "cpu_time": "2s"}
    recipe["space"] = {"train.epochs": 1, "train.batch_size": 16, "random-crop.keep": [0.6, 0.9]}
    (folder / "stars.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


def test_the_guide_is_short_and_its_task_has_at_most_60_lines():
    assert sum(not line.startswith("<!--") for line in GUIDE.splitlines()) <= 250
    code = [line for line in BLOCKS[f"{PACKAGE}/task.py"].splitlines() if line.strip()]
    assert len(code) <= 60


def test_the_guide_bounds_autoft_so_that_this_version_fits():
    bounds = [Requirement(text) for text in pyproject()["project"]["dependencies"]]
    (own,) = [bound.specifier for bound in bounds if bound.name == "autoft"]
    assert own.contains(__version__)
    assert {bound.operator for bound in own} == {">=", "<"}


def test_the_plugin_of_the_guide_loads_no_heavy_library(site, tmp_path):
    code = (
        "import sys\nfrom autoft.plugins import load_plugins\nassert 'review-stars' in load_plugins().tasks\n"
        "assert not {'torch', 'transformers', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(site), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_autoft_plugins_lists_the_plugin_of_the_guide(site, tmp_path):
    done = command("plugins", "--json", site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    assert listed["broken"] == []
    (plugin,) = [one for one in listed["plugins"] if one["name"] == "review-stars"]
    assert plugin == {
        "name": "review-stars",
        "distribution": "autoft-review-stars",
        "version": "1.0.0",
        "tasks": ["review-stars"],
        "strategies": ["random-crop", "half-weights"],
        "metrics": ["stars_mae", "cpu_time"],
    }


def test_the_recipe_of_the_guide_is_checked(site, workshop):
    done = command("check", "stars.yaml", site=site, cwd=workshop)
    assert done.returncode == 0, done.stderr
    assert "'review'" in done.stdout
    assert done.stdout.rstrip().endswith("The recipe works.")


# ------------------------------------------------------------------------------------------- the guide's search


@pytest.fixture(scope="module")
def run(site, workshop):
    """The run folder of one search with all that the guide's plugin offers."""
    done = command("search", "stars.yaml", "--run", "run", site=site, cwd=workshop)
    assert done.returncode == 0, done.stderr + done.stdout
    return workshop / "run"


def test_the_report_holds_the_metric_and_the_cost_of_the_guide(run):
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert (report["task"], report["objective"]) == ("review-stars", "stars_mae")
    for system in (report["best"], report["baselines"]["default"], report["baselines"]["trivial"]):
        figure = system["test"]["stars_mae"]
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert figure["n"] == report["data"]["sizes"]["test"]
    for system in (report["best"], report["baselines"]["default"]):
        assert 0 < system["costs"]["cpu_time_ms"] < 2000
    assert report["budget"]["cpu_time"] == {
        "limit": 2000.0,
        "given": "2s",
        "unit": "ms",
        "column": "cpu_time_ms",
        "measured": report["best"]["costs"]["cpu_time_ms"],
        "met": True,
    }
    assert report["baselines"]["default"]["params"]["augment"] == "random-crop"
    assert "cpu time" in (run / "report.md").read_text(encoding="utf-8")
    assert "cpu_time_ms" in (run / "trials.csv").read_text(encoding="utf-8").splitlines()[0]


def test_every_compression_of_the_guide_works(run):
    result = json.loads((run / "trials" / "0000" / "result.json").read_text(encoding="utf-8"))
    variants = {variant["name"].split("(")[0]: variant for variant in result["variants"]}
    assert {name: (variant["state"], variant["reason"]) for name, variant in variants.items()} == dict.fromkeys(
        ["none", "half-weights"], ("complete", None)
    )
    sizes = {name: variant["costs"]["model_size_bytes"] for name, variant in variants.items()}
    assert sizes["half-weights"] < 0.7 * sizes["none"]
    scores = [variant["validation"]["stars_mae"] for variant in variants.values()]
    assert max(scores) - min(scores) < 0.01


def test_the_reported_figures_are_those_of_scikit_learn(run, installed):
    from sklearn.dummy import DummyRegressor
    from sklearn.metrics import mean_absolute_error

    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    data = open_data(run / "data")
    true = [row["stars"] for row in data.test]
    model = load(run / "best", catalog=installed, device="cpu")
    rows = data.test.inputs(model.task.card)
    said = [prediction["stars"] for prediction in model.predict(rows)]
    assert report["best"]["test"]["stars_mae"]["value"] == pytest.approx(mean_absolute_error(true, said), abs=1e-4)
    assert [prediction["stars"] for prediction in model.predict(rows, batch_size=1)] == pytest.approx(said, abs=1e-3)
    dummy = DummyRegressor(strategy="median").fit([[0]] * len(data.train), [row["stars"] for row in data.train])
    assert report["baselines"]["trivial"]["test"]["stars_mae"]["value"] == pytest.approx(
        mean_absolute_error(true, dummy.predict([[0]] * len(true)))
    )


# -------------------------------------------------------------------------------------------- the guide's claims


def test_the_metric_of_the_guide_agrees_with_its_sums(installed):
    from sklearn.metrics import mean_absolute_error

    metric = installed.quality_metrics["stars_mae"]
    rng = np.random.default_rng(3)
    true, said = rng.integers(1, 6, 50), rng.uniform(1, 5, 50)
    context = TaskContext(facts={}, options={}, params={}, max_length=8)
    predictions = [{"stars": value} for value in said.tolist()]
    statistics = metric.statistics(predictions, true.tolist(), context)
    draws = rng.integers(0, 50, (20, 50))
    figures = metric.aggregate(np.stack([statistics[draw].sum(0) for draw in draws]))
    assert figures == pytest.approx([mean_absolute_error(true[draw], said[draw]) for draw in draws])
    assert metric.score(predictions, true.tolist(), context) == pytest.approx(mean_absolute_error(true, said))


def test_the_cost_of_the_guide_counts_work_and_not_waiting(installed):
    def burn(rows):
        begin = time.process_time()
        while time.process_time() - begin < 0.02:
            pass
        return [{}] * len(rows)

    def wait(rows):
        time.sleep(0.02)
        return [{}] * len(rows)

    metric = installed.cost_metrics["cpu_time"]
    busy, idle = (
        metric.measure(Served(folder=Path(), predict=predict, rows=[{}] * 10, batch_size=4, peak_memory=lambda: 0))
        for predict in (burn, wait)
    )
    assert list(busy) == list(metric.columns)
    assert 20 <= busy["cpu_time_ms"] < 30
    assert idle["cpu_time_ms"] < 10


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.text("abc", min_size=1), max_size=30), keep=st.floats(0.5, 0.95), seed=st.integers())
def test_the_augmenter_of_the_guide_keeps_a_run_of_words(installed, words, keep, seed):
    crop, card = installed.augmenters["random-crop"], installed.tasks["review-stars"].card
    row = {"text": " ".join(words), "stars": 4}
    changed = crop.augment(row, card, random.Random(seed), {"keep": keep})
    kept = changed["text"].split()
    assert len(kept) == (max(1, round(keep * len(words))) if words else 0)
    assert any(words[start : start + len(kept)] == kept for start in range(len(words) + 1))
    assert (changed["stars"], row["text"]) == (4, " ".join(words))
    assert changed == crop.augment(row, card, random.Random(seed), {"keep": keep})


def target(installed, folder, **config):
    task = installed.tasks["review-stars"]
    context = TaskContext(facts={"mean": 3.0, "spread": 1.0}, options={}, params={}, max_length=32)
    return Target(task, ModelSource("base", str(folder)), config, context, Hardware.probe_cpu())


def test_the_strategies_of_the_guide_refuse_with_a_sentence(installed, tiny_model):
    crop, half = installed.augmenters["random-crop"], installed.compressors["half-weights"]
    assert crop.check(target(installed, tiny_model)) is None
    assert half.check(target(installed, tiny_model)) is None
    refusal = half.check(target(installed, tiny_model, quantization_config={"bits": 4}))
    assert refusal.reason.startswith("half-weights: base is quantized already")

    class Tagging(type(installed.tasks["review-stars"])):
        card = TaskCard(
            name="tagging",
            summary="tags",
            columns=(Column("text", "text", "words"), Column("tags", "tags", "a tag a word", target=True)),
            metrics=("stars_mae",),
            architecture="token-classification",
        )

    tagged = target(installed, tiny_model)
    refusal = crop.check(replace(tagged, task=Tagging()))
    assert refusal.reason.startswith("random-crop: would make the column 'tags' of tagging wrong")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_compressor_of_the_guide_halves_the_files_and_loads_them_back(installed, tiny_model, tmp_path, dtype):
    import torch

    here, half = target(installed, tiny_model), installed.compressors["half-weights"]
    model = here.task.load_model(here.source, here.context)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    half.save(half.apply(model, here, [], {"dtype": dtype}), tmp_path)
    loaded = half.load(tmp_path, here).state_dict()
    assert {name: weight.dtype for name, weight in model.state_dict().items()} == {
        name: weight.dtype for name, weight in before.items()
    }
    for name, weight in before.items():
        torch.testing.assert_close(loaded[name], weight.to(getattr(torch, dtype)).float(), rtol=0, atol=0)
    weights = sum(weight.numel() for weight in before.values())
    assert 2 * weights < (tmp_path / "model.safetensors").stat().st_size < 2.6 * weights


def test_the_task_of_the_guide_can_be_exported(installed, tiny_model, tmp_path):
    onnx, here = installed.compressors["onnx"], target(installed, tiny_model)
    here = replace(here, context=replace(here.context, processor=here.task.load_processor(here.source, here.context)))
    assert onnx.check(here) is None
    model = here.task.load_model(here.source, here.context)
    onnx.save(onnx.apply(model, here, [], {}), tmp_path)
    rows = [{"text": "a superb film"}, {"text": "the plot was dull and the story was weak and cold"}]
    wanted = [prediction["stars"] for prediction in here.task.predict(model, rows, here.context)]
    found = [prediction["stars"] for prediction in here.task.predict(onnx.load(tmp_path, here), rows, here.context)]
    assert found == pytest.approx(wanted, abs=1e-4)


def test_chains_are_legal_or_not_as_the_guide_says(installed, workshop):
    recipe = yaml.safe_load((workshop / "stars.yaml").read_text(encoding="utf-8"))
    recipe["compress"] = ["none", "magnitude-pruning+half-weights", "half-weights+onnx"]
    plan = autoft.explain({**recipe, "data": str(workshop / "reviews.csv")})
    assert {"+".join(step.strategy for step in variant.chain) for variant in plan.variants} == {
        "",
        "magnitude-pruning+half-weights",
    }
    (refused,) = [note.reason for note in plan.refusals if note.what == "half-weights+onnx"]
    assert refused == "onnx cannot follow: it takes adapted or dense or factorized or reshaped or sparse, not quantized"


# ------------------------------------------------------------------------------------------------- the reference


def section(title, level):
    """Return the text under a heading of the reference, up to the next heading of its level or above."""
    found = re.search(rf"^{'#' * level} `?{title}`?\n(.*?)(?=^#{{1,{level}}} |\Z)", REFERENCE, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def plain(code):
    return re.sub(r"[\s'\"]", "", code)


def documented(text):
    """Return what each list item of a section begins with: the code of one member."""
    return {plain(code) for code in re.findall(r"^- `([^`]*)`", text, re.MULTILINE)}


def signature(node):
    arguments = ast.unparse(node.args).removeprefix("self").removeprefix(", ")
    return f"{node.name}({arguments}) -> {ast.unparse(node.returns)}"


def declared(kind):
    """Return the code of each public member that a class itself declares, by name."""
    members = {}
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    for node in tree.body:
        if isinstance(node, ast.AnnAssign):
            members[node.target.id] = ast.unparse(node)
        elif isinstance(node, ast.FunctionDef):
            is_property = isinstance(inspect.getattr_static(kind, node.name), property)
            members[node.name] = f"{node.name}: {ast.unparse(node.returns)}" if is_property else signature(node)
    return {name: code for name, code in members.items() if not name.startswith("_")}


CLASSES = [name for name in contracts.__all__ if inspect.isclass(getattr(contracts, name)) and name[0].isupper()]
ALIASES = sorted(set(contracts.__all__) - set(CLASSES) | {"Row", "Prediction", "State"})
CLASSES = [name for name in CLASSES if name not in ALIASES]


def test_the_reference_names_every_hook_with_its_arguments():
    hooks = {
        name: signature(ast.parse(inspect.getsource(hook)).body[0])
        for name, hook in vars(hookspecs).items()
        if name.startswith("autoft_") and inspect.isfunction(hook)
    }
    assert set(hooks) == {name for name in hookspecs.__all__ if name.startswith("autoft_")}
    assert {plain(code) for code in hooks.values()} == documented(section("Hooks", 2))


@pytest.mark.parametrize("name", CLASSES)
def test_the_reference_names_every_member_of(name):
    members = declared(getattr(contracts, name))
    public = {member for member in vars(getattr(contracts, name)) if not member.startswith("_")}
    assert public <= set(members), "members that no annotation or method declares"
    found = documented(section(name, 3))
    assert {member: code for member, code in members.items() if plain(code) not in found} == {}, "missing or outdated"
    assert found - {plain(code) for code in members.values()} == set(), "documented, but gone"


@pytest.mark.parametrize("name", ALIASES)
def test_the_reference_says_what_an_alias_stands_for(name):
    text = section(name, 3)
    value = getattr(contracts, name)
    arguments = get_args(value)
    literal = all(isinstance(argument, str) for argument in arguments)
    union = [" | ".join(kind.__name__ for kind in arguments)] if all(isinstance(a, type) for a in arguments) else []
    wanted = arguments if literal else ["Mapping[str, Any]"] if Any in arguments else union
    assert wanted
    assert [word for word in wanted if f"`{word}`" not in text] == []


def test_what_the_reference_says_of_calls_exists():
    named = re.findall(r"`([A-Z]\w+)\.(\w+)`", REFERENCE)
    assert len(named) > 30
    absent = [
        f"{kind}.{member}"
        for kind, member in named
        if kind in CLASSES
        and member not in declared(getattr(contracts, kind))
        and not hasattr(getattr(contracts, kind), member)
    ]
    assert absent == []
    assert {kind for kind, _ in named} <= set(CLASSES)
