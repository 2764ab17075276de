"""The JSON schema that editors complete recipes from: it takes what is right and marks what is misspelt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from autoft.cli import app
from autoft.editors import recipe_schema_of
from autoft.recipe import _StrictLoader

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
GOOD = {"task": "text-classification", "model": "owner/name", "data": "reviews.csv"}


@pytest.fixture(scope="module")
def validator(catalog):
    schema = recipe_schema_of(catalog)
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


def wrong(validator, **changes) -> list[str]:
    return [error.message for error in validator.iter_errors({**GOOD, **changes})]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_recipes_are_valid(validator, path):
    value = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    assert [error.message for error in validator.iter_errors(value)] == []


RIGHT = {
    "short": {},
    "a budget with a cost metric": {"budget": {"time": "4x", "model_size": "5MB", "latency": "3ms", "cpu_energy": 0.1}},
    "automatic": {"budget": "auto"},
    "chains": {
        "pipelines": ["full", "nf4+lora"],
        "compress": ["none", "layer-pruning(layers=3)+ffn-pruning+onnx-int8", "magnitude-pruning(sparsity=0.3)"],
        "augment": "random-swap+character-noise",
        "regularize": ["none", "ema+layer-decay"],
    },
    "a space": {
        "space": {
            "train.epochs": [2, 3],
            "full.learning_rate": {"low": 1e-5, "high": 1e-4, "log": True},
            "lora": {"rank": 16},
            "train": {"schedule": "cosine", "batch_size": 8},
        }
    },
    "options and columns": {
        "task_options": {"problem": "multi"},
        "data": {"train": "a.csv", "columns": {"text": "b", "label": "c"}, "limit": {"train": 5}},
    },
    "objectives": {"search": {"objectives": ["accuracy", "latency_p50_ms"], "seed": 3}},
    "another task": {"task": "translation", "task_options": {"source_language": "en"}},
    "along": {"auxiliary": [{"task": "token-classification", "data": "b.jsonl"}]},
}


@pytest.mark.parametrize("changes", RIGHT.values(), ids=list(RIGHT))
def test_what_a_recipe_may_say_is_valid(validator, changes):
    assert wrong(validator, **changes) == []


TYPOS = {
    "a key": {"modle": "x"},
    "a task": {"task": "text-clasification"},
    "a budget": {"budget": {"tme": "5m"}},
    "a section's key": {"search": {"samplr": "tpe"}},
    "a choice": {"effort": "fast"},
    "a pipeline": {"pipelines": ["full", "lorra"]},
    "a compressor": {"compress": "onnx-int9"},
    "a step of a chain": {"compress": ["layer-prunning+onnx-int8"]},
    "an augmenter": {"augment": ["none", "random-swop"]},
    "a regularizer": {"regularize": "rdrop"},
    "a parameter": {"space": {"train.epoch": 3}},
    "a parameter in a section": {"space": {"lora": {"rnk": 3}}},
    "a section": {"space": {"lorra": {"rank": 3}}},
    "a value of another type": {"space": {"train.epochs": "three"}},
    "a choice of a parameter": {"space": {"train.schedule": "cosinus"}},
    "an option": {"task_options": {"problm": "multi"}},
    "a choice of an option": {"task_options": {"problem": "many"}},
    "a role": {"data": {"train": "a.csv", "columns": {"txt": "b"}}},
    "a metric": {"search": {"objectives": "acuracy"}},
    "a task to train along with": {"auxiliary": [{"task": "tokens", "data": "b.jsonl"}]},
}


@pytest.mark.parametrize("changes", TYPOS.values(), ids=list(TYPOS))
def test_a_typo_is_marked(validator, changes):
    assert wrong(validator, **changes) != []


def test_roles_and_options_are_those_of_the_recipes_own_task(validator):
    assert wrong(validator, task="translation", task_options={"problem": "multi"}) != []
    assert wrong(validator, task="translation", data={"train": "a.csv", "columns": {"source": "en"}}) == []


def test_the_command_writes_the_file_that_recipes_point_to(tmp_path, monkeypatch, validator):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["schema", "--output", "recipe.schema.json"])
    assert done.exit_code == 0, done.stderr
    assert "# yaml-language-server: $schema=recipe.schema.json" in done.stdout
    assert json.loads(Path("recipe.schema.json").read_text()) == json.loads(json.dumps(validator.schema))
    assert json.loads(CliRunner().invoke(app, ["schema"]).stdout) == json.loads(Path("recipe.schema.json").read_text())
