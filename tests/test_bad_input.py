"""Bad input of every kind gets one clear message and an exit code; ``docs/errors.md`` shows what each is told.

``AUTOFT_WRITE_DOCS=1 pytest tests/test_bad_input.py`` writes that page anew.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from autoft.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"


@dataclass
class Place:
    """A folder with a good recipe, good data and a good model, for one thing to be made wrong."""

    folder: Path
    model: Path
    rows: list[tuple[str, str]]

    def recipe(self, text: str | None = None, **changes) -> str:
        """Write a recipe; ``None`` as a change leaves the key out."""
        path = self.folder / "recipe.yaml"
        if text is None:
            good = {
                "task": "text-classification",
                "model": str(self.model),
                "data": {"train": "reviews.csv"},
                "budget": {"time": "5m", "trials": 1},
                "effort": "quick",
                "compress": ["none"],
            }
            text = yaml.safe_dump({key: value for key, value in {**good, **changes}.items() if value is not None})
        path.write_text(text, encoding="utf-8")
        return str(path)

    def data(self, rows: list[tuple[str, str]] | None = None, head: tuple[str, ...] = ("text", "label")) -> None:
        """Write the data file."""
        with (self.folder / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(head)
            writer.writerows(self.rows if rows is None else rows)

    def own_model(self) -> Path:
        """Return a copy of the model, to be damaged."""
        return Path(shutil.copytree(self.model, self.folder / "model"))

    def run(self) -> Path:
        """Return a folder that looks like a run which has begun."""
        run = self.folder / "runs" / "recipe"
        (run / "trials" / "0000").mkdir(parents=True)
        return run


@pytest.fixture
def place(tmp_path, tiny_model, reviews, monkeypatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with reviews.open(encoding="utf-8", newline="") as file:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    place = Place(tmp_path, tiny_model, rows[:120])
    place.data()
    return place


@dataclass
class Case:
    """Something that goes wrong: what the user did, the words of the command, its exit code, and the heart of the message."""

    what: str
    make: Callable[[Place], list[str]]
    code: int
    says: str
    typed: str | None = None
    """Standard input."""


def explain(**changes) -> Callable[[Place], list[str]]:
    return lambda place: ["explain", place.recipe(**changes)]


def search(**changes) -> Callable[[Place], list[str]]:
    return lambda place: ["search", place.recipe(**changes)]


def written(text: str) -> Callable[[Place], list[str]]:
    return lambda place: ["explain", place.recipe(text)]


def with_data(rows=None, head=("text", "label"), **changes) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        place.data(rows(place) if callable(rows) else rows, head)
        return ["search", place.recipe(**changes)]

    return make


def with_file(name: str, content: bytes) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        (place.folder / name).write_bytes(content)
        return ["search", place.recipe(data={"train": name})]

    return make


def with_model(damage: Callable[[Path], None]) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        damage(place.own_model())
        return ["check", place.recipe(model="model")]

    return make


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def to_pickle(model: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def set_pattern(model: Path) -> None:
    definition = json.loads((model / "tokenizer.json").read_text())
    pattern = {"type": "Split", "pattern": {"Regex": r"(\w+\s?)+$"}, "behavior": "Isolated", "invert": False}
    (model / "tokenizer.json").write_text(json.dumps({**definition, "pre_tokenizer": pattern}))


def set_heads(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_attention_heads": 3}))


def missing_recipe(place: Place) -> list[str]:
    place.recipe()
    return ["explain", str(place.folder / "recipes.yaml")]


def latin_recipe(place: Place) -> list[str]:
    path = Path(place.recipe())
    # In front: where the byte is must not depend on how long the names of folders are.
    path.write_bytes("# Größe\n".encode("latin-1") + path.read_bytes())
    return ["explain", str(path)]


def override(*texts: str) -> Callable[[Place], list[str]]:
    return lambda place: ["explain", place.recipe(), *(word for text in texts for word in ("--set", text))]


def damaged_result(place: Place) -> list[str]:
    run = place.run()
    (run / "recipe.yaml").write_text("task: text-classification")
    (run / "plan.json").write_text("{}")
    (run / "trials/0000/result.json").write_text('{"number": 0, "sta')
    return ["report", str(run)]


def damaged_plan(place: Place) -> list[str]:
    run = place.run()
    (run / "recipe.yaml").write_text("task: text-classification")
    (run / "plan.json").write_text('{"task"')
    return ["report", str(run)]


def plan_of_something_else(place: Place) -> list[str]:
    run = place.run()
    (run / "recipe.yaml").write_text("task: text-classification")
    (run / "plan.json").write_text('{"hello": 1}')
    return ["report", str(run)]


def run_is_a_file(place: Place) -> list[str]:
    (place.folder / "runs").write_text("")
    return ["search", place.recipe()]


def other_recipe(place: Place) -> list[str]:
    run = place.run()
    recipe = place.recipe()
    # Its budget, which is damaged, may change.
    (run / "recipe.yaml").write_text("task: translation\nbudget: soon\n")
    # That it is damaged makes it no other run's.
    (run / "trials/0000/result.json").write_text('{"number": 0, "sta')
    return ["search", recipe]


def damaged_manifest(place: Place) -> list[str]:
    (place.folder / "best").mkdir()
    (place.folder / "best/autoft.json").write_text("{")
    return ["predict", "best", "text"]


def ensemble_of_itself(place: Place) -> list[str]:
    (place.folder / "best").mkdir()
    manifest = {"autoft": "0.1.0", "task": "text-classification", "format": "ensemble", "model": "m", "config": {}}
    manifest |= {"facts": {}, "options": {}, "params": {}, "max_length": 8, "variant": "none", "members": ["again"]}
    (place.folder / "best/autoft.json").write_text(json.dumps(manifest))
    (place.folder / "best/again").symlink_to(".")
    return ["predict", "best", "text"]


def manifest_of_another_task(place: Place) -> list[str]:
    (place.folder / "best").mkdir()
    manifest = {"autoft": "0.1.0", "task": "text-clasification", "format": "transformers", "model": "m", "config": {}}
    manifest |= {"facts": {}, "options": {}, "params": {}, "max_length": 8, "variant": "none"}
    (place.folder / "best/autoft.json").write_text(json.dumps(manifest))
    return ["predict", "best", "text"]


def model_with_card(place: Place) -> list[str]:
    folder = place.folder / "best"
    folder.mkdir()
    (folder / "autoft.json").write_text("{}")
    (folder / "README.md").write_text("---\nlibrary_name: autoft\n---\n# A model\n")
    return ["push", "best", "me/reviews"]


CASES = [
    Case("a recipe that is not there", missing_recipe, 2, "no such file; did you mean"),
    Case("a folder in place of a recipe", lambda place: ["explain", str(place.folder)], 2, "is a folder"),
    Case("a recipe that is not UTF-8", latin_recipe, 2, "is not UTF-8 text: byte"),
    Case("a recipe of megabytes", written("#" * 1_500_000), 2, "no recipe needs"),
    Case("an empty recipe", written("# nothing\n"), 2, "is empty; a recipe needs at least task, model and data"),
    Case("a recipe that is not YAML", written("task: [a, b\nmodel: x\n"), 2, "is not YAML"),
    Case("a tab in a recipe", written("task: a\ndata:\n\ttrain: x\n"), 2, "recipe.yaml:3: "),
    Case("a list in place of keys", written("- task: a\n"), 2, "needs keys and values at the top"),
    Case("a key given twice", written("task: a\ntask: b\n"), 2, "the key 'task' is given twice"),
    Case("a misspelt key", explain(modle="x", model=None), 2, "Did you mean 'model'?"),
    Case("a misspelt key of a section", explain(search={"samplr": "tpe"}), 2, "Did you mean 'sampler'?"),
    Case("no task", explain(task=None), 2, "task: is missing"),
    Case("no data", explain(data=None), 2, "data: is missing"),
    Case("a number in place of a model", explain(model=7), 2, "model:"),
    Case("words in place of a number", explain(budget={"trials": "many"}), 2, "budget.trials"),
    Case("no trials at all", explain(budget={"trials": 0}), 2, "budget.trials"),
    Case("a time without a unit", explain(budget={"time": 10}), 2, "needs a duration with a unit"),
    Case("a size without a unit", explain(budget={"model_size": "20"}), 2, "needs a size with a unit"),
    Case("a limit on what nothing measures", explain(budget={"time": "5m", "model_sise": "20MB"}), 2, "model_size"),
    Case("an unknown key of a limit", explain(budget={"latency": {"p51": "3ms"}}), 2, "p50"),
    Case("an unknown sampler", explain(search={"sampler": "tep"}), 2, "Did you mean 'tpe'?"),
    Case("an unknown effort", explain(effort="fast"), 2, "allowed: quick, balanced or best"),
    Case(
        "a study of an unknown kind", explain(storage="postgre://me:secret@db/autoft"), 2, "Did you mean postgresql://"
    ),
    Case("a study without its address", explain(storage="study.log"), 2, "journal:///study.log"),
    Case(
        "a study in a folder that is not there",
        search(storage="journal:///no/such/study.log"),
        9,
        "Nothing was trained",
    ),
    Case("an unknown tracker", explain(trackers=["tensorbord"]), 2, "Did you mean 'tensorboard'?"),
    Case("an unknown executor", explain(executor="rey"), 2, "Did you mean 'ray'?"),
    Case("an address of no cluster", explain(executor={"address": "auto"}), 2, "set kind to ray"),
    Case("a share above 1", explain(data={"train": "reviews.csv", "test_size": 1.5}), 2, "a share below 1"),
    Case(
        "the test split as the split that drives",
        explain(data={"train": "reviews.csv", "validation": "t.csv", "test": "t.csv"}),
        2,
        "the test split must not drive the search",
    ),
    Case("a run name with a path in it", explain(name="../../etc"), 2, "name"),
    Case("an unknown task", explain(task="text-clasification"), 3, "text-classification"),
    Case("an unknown pipeline", explain(pipelines=["lorra"]), 2, "lora"),
    Case(
        "several processes for several trials at once",
        explain(launcher={"processes": 2}, executor={"together": 2}),
        2,
        "leave out executor.together",
    ),
    Case("a pipeline of strategies that do not go together", explain(pipelines=["full+lora"]), 2, "full+lora"),
    Case("an unknown compressor", explain(compress=["onxx"]), 2, "onnx"),
    Case("compressors in an order that is not possible", explain(compress=["onnx+dynamic-int8"]), 2, "onnx"),
    Case("an unknown regularizer", explain(regularize=["none", "rdrop"]), 2, "r-drop"),
    Case("an unknown augmenter", explain(augment=["random-swop"]), 2, "random-swap"),
    Case("an unknown parameter", explain(space={"train.epoch": 3}), 2, "train.epochs"),
    Case("a parameter outside its domain", explain(space={"train.warmup": 3.0}), 2, "train.warmup"),
    Case("words in place of a parameter's number", explain(space={"train.epochs": "three"}), 2, "train.epochs"),
    Case("a range upside down", explain(space={"train.epochs": {"low": 5, "high": 2}}), 2, "train.epochs"),
    Case("the seed as a parameter", explain(space={"seed": [0, 1, 2]}), 2, "seed"),
    Case("an unknown task option", explain(task_options={"problm": "multi"}), 2, "problem"),
    Case("a task option that is not allowed", explain(task_options={"problem": "many"}), 2, "single"),
    Case("an unknown objective", explain(search={"objectives": "acuracy"}), 2, "accuracy"),
    Case(
        "several objectives with early stopping",
        explain(search={"objectives": ["accuracy", "latency_p50_ms"], "early_stopping": "halving"}),
        2,
        "early_stopping",
    ),
    Case("a test over folds without folds", explain(search={"early_stopping": "wilcoxon"}), 2, "search.folds is 1"),
    Case("--set without a value", override("budget.time"), 2, "needs the form key=value"),
    Case("--set into a value", override("task.name=x"), 2, "'task' is a value, not a section"),
    Case(
        "several faults at once",
        explain(effort="fast", budget={"time": "soon"}, search={"seed": -1}),
        2,
        "3 faults",
    ),
    Case("a model of a package that is not there", explain(model="package://no_such_thing/model"), 2, "no_such_thing"),
    Case("a path out of a package", explain(model="package://autoft/../../etc"), 2, "package://"),
    Case("a local model that is not there", explain(model="./modell"), 2, "modell"),
    Case("an earlier run that is not there", explain(init_from="runs/older"), 2, "runs/older"),
    Case("a run to be like that is not there", explain(search={"like": "runs/older"}), 2, "runs/older"),
    Case("a folder to be like that is no run", explain(search={"like": "."}), 2, "no run folder"),
    Case("an earlier run without a model", explain(init_from="."), 2, "no trained model"),
    Case(
        "an unknown task to train along with",
        explain(auxiliary=[{"task": "token-clasification", "data": "words.jsonl"}]),
        2,
        "auxiliary[0].task",
    ),
    Case(
        "a misspelt key of a task to train along with",
        explain(auxiliary=[{"task": "text-classification", "data": "topics.csv", "wight": 2}]),
        2,
        "'weight'",
    ),
    Case(
        "data of a task to train along with that is not there",
        search(auxiliary=[{"task": "text-classification", "data": "topics.csv"}]),
        2,
        "auxiliary[0].data.train",
    ),
    Case("folds and an ensemble", explain(search={"folds": 3, "ensemble": 3}), 2, "use one of them"),
    Case("more folds than rows", search(search={"folds": 500}), 2, "fewer folds"),
    Case("a hub model without a network", search(model="some/model-of-the-hub"), 2, "some/model-of-the-hub"),
    Case("a model without config.json", with_model(lambda m: (m / "config.json").unlink()), 2, "config.json"),
    Case("a model whose config.json is cut", with_model(lambda m: cut(m / "config.json")), 2, "config.json"),
    Case("weights that are cut", with_model(lambda m: cut(m / "model.safetensors")), 2, "damaged"),
    Case("weights as pickle only", with_model(to_pickle), 2, "safetensors"),
    Case("a model without a tokenizer", with_model(lambda m: (m / "tokenizer.json").unlink()), 2, "tokenizer"),
    Case("a tokenizer that takes exponential time", with_model(set_pattern), 2, "its tokenizer fails on a text"),
    Case("a model that cannot be built", with_model(set_heads), 2, "cannot be loaded"),
    Case("data that is not there", search(data="review.csv"), 2, "reviews.csv"),
    Case("data of an unknown kind", with_file("reviews.xlsx", b"PK"), 2, "xlsx"),
    Case("an empty data file", with_file("empty.csv", b""), 2, "empty"),
    Case("a header and no rows", with_data([]), 2, "reviews.csv"),
    Case("data that is not UTF-8", with_file("l.csv", "text,label\nfade Größe,0\n".encode("latin-1")), 2, "UTF-8"),
    Case("a row with too many cells", with_file("r.csv", b"text,label\na,0\nb,1,2\n"), 2, "3"),
    Case("a file that is no Parquet", with_file("t.parquet", b"PAR1 not really"), 2, "t.parquet"),
    Case("JSON lines with a broken line", with_file("t.jsonl", b'{"text": "a", "label": 0}\n{"text": '), 2, "line 2"),
    Case("JSON that holds no rows", with_file("t.json", b'"hello"'), 2, "t.json"),
    Case("names that steer a terminal", with_data(head=("te\x1b]0;you\x07xt", "stars\x9b2J")), 2, "te]0;youxt"),
    Case("a missing column", with_data(head=("words", "stars")), 2, "text"),
    Case(
        "a mapping to a column that is not there",
        search(data={"train": "reviews.csv", "columns": {"text": "txt"}}),
        2,
        "text",
    ),
    Case(
        "a mapping of a role that the task has not",
        search(data={"train": "reviews.csv", "columns": {"sentence": "text"}}),
        2,
        "sentence",
    ),
    Case("one class only", with_data(lambda place: [(t, "good") for t, _ in place.rows]), 2, "nothing to tell apart"),
    Case("labels that are texts", with_data(lambda place: [(t, t) for t, _ in place.rows]), 2, "different labels"),
    Case(
        "numbers to estimate as labels",
        with_data(lambda place: [(t, str(i + 0.5)) for i, (t, _) in enumerate(place.rows)]),
        2,
        "fractions",
    ),
    Case("too few rows to split", with_data([("a b", "x"), ("c d", "y")]), 2, "rows"),
    Case("labels that are all missing", with_data(lambda place: [(t, "") for t, _ in place.rows]), 2, "label"),
    Case(
        "a filter that keeps nothing",
        search(data={"train": "reviews.csv", "where": {"label": "neutral"}}),
        2,
        "neutral",
    ),
    Case(
        "a filter on a column that is not there",
        search(data={"train": "reviews.csv", "where": {"lable": "positive"}}),
        2,
        "label",
    ),
    Case("more test rows than there are", search(data={"train": "reviews.csv", "test_size": 5000}), 2, "5000"),
    Case("a data file of a package that is not there", search(data="package://autoft/no.csv"), 2, "no.csv"),
    Case("a report of a folder that is not there", lambda place: ["report", "runs/nothing"], 5, "no such run folder"),
    Case("a report of a folder that is no run", lambda place: ["report", "."], 5, "is not a run folder"),
    Case("a damaged plan", damaged_plan, 5, "plan.json: is damaged"),
    Case("a plan of something else", plan_of_something_else, 5, "plan.json: is damaged"),
    Case("a damaged result", damaged_result, 5, "result.json: is damaged"),
    Case("a run folder that cannot be made", run_is_a_file, 5, "cannot be written"),
    Case("a run folder of another recipe", other_recipe, 5, "holds a run of another recipe"),
    Case("predicting with a folder that is not there", lambda place: ["predict", "bst", "text"], 2, "no such folder"),
    Case("predicting with a folder that holds no model", lambda place: ["predict", ".", "text"], 2, "autoft.json"),
    Case("predicting with a damaged manifest", damaged_manifest, 2, "autoft.json: is damaged"),
    Case("predicting with an ensemble of itself", ensemble_of_itself, 2, "no model beside it"),
    Case("predicting for a task that is not installed", manifest_of_another_task, 3, "text-classification"),
    Case(
        "serving a folder that holds no model",
        lambda place: ["serve", ".", "--port", "0", "--threads", "1"],
        2,
        "autoft.json",
    ),
    Case(
        "serving on an address of another machine",
        lambda place: ["serve", ".", "--host", "203.0.113.7"],
        5,
        "is no address of this machine",
    ),
    Case(
        "a time limit of a server without a unit",
        lambda place: ["serve", ".", "--timeout", "30"],
        2,
        "needs a duration with a unit",
    ),
    Case(
        "an export of a folder that is not there", lambda place: ["export", "bst", "--format", "onnx"], 5, "no such run"
    ),
    Case(
        "an unknown format of an export", lambda place: ["export", ".", "--format", "onxx"], 2, "Did you mean 'onnx'?"
    ),
    Case("a push of a folder that holds no model", lambda place: ["push", ".", "me/reviews"], 5, "holds no model"),
    Case("a push without a token", model_with_card, 8, "HF_TOKEN"),
]


def run(case: Case, place: Place) -> tuple[int, str]:
    """Return the exit code and the message, places replaced by words that do not change."""
    result = CliRunner().invoke(app, case.make(place), input=case.typed)
    assert result.exception is None or isinstance(result.exception, SystemExit), (case.what, result.exception)
    text = result.stderr.replace(str(place.model), "tiny-bert").replace(str(place.folder), ".")
    return result.exit_code, text.strip()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what.replace(" ", "-"))
def test_bad_input_gets_a_message_and_an_exit_code(case, place):
    code, text = run(case, place)
    assert code == case.code, text
    assert text.startswith("error: "), text
    assert case.says in text
    assert "Traceback" not in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text), "it steers the terminal"


def page_rows(page: str) -> Iterator[tuple[str, str, str]]:
    for line in page.splitlines():
        if (found := re.fullmatch(r"\| (.+?) \| (\d) \| (.+) \|", line)) is not None:
            yield found[1], found[2], found[3]


def test_the_page_of_messages_lists_every_kind():
    listed = [what for what, _, _ in page_rows(PAGE.read_text(encoding="utf-8"))]
    assert listed == [case.what for case in CASES]
    assert len(listed) == len(set(listed)) >= 40


@pytest.mark.skipif("AUTOFT_WRITE_DOCS" not in os.environ, reason="writes docs/errors.md")
def test_write_the_page(tmp_path_factory, tiny_model, reviews, monkeypatch):
    with reviews.open(encoding="utf-8", newline="") as file:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    lines = []
    for case in CASES:
        folder = tmp_path_factory.mktemp("case")
        monkeypatch.chdir(folder)
        place = Place(folder, tiny_model, rows[:120])
        place.data()
        code, text = run(case, place)
        # A table has no columns to underline in.
        plain = re.sub(r"\n +\d* \| .*", "", text.removeprefix("error: "))
        cell = plain.replace("|", "\\|").replace("\n", "<br>")
        lines.append(f"| {case.what} | {code} | {cell} |")
    page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else "# Bad input and what it is told\n"
    head = page.split("| what was wrong |")[0].rstrip()
    PAGE.write_text("\n".join([head, "", "| what was wrong | exit | message |", "| --- | --- | --- |", *lines, ""]))
