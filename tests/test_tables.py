"""Data given in Python: what is kept of it, and what a search makes of it."""

from __future__ import annotations

import csv
import html
import json
import re
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

import autoft
from autoft.data.sources import load_source
from autoft.errors import DataError, RecipeError
from autoft.listener import Listener
from autoft.recipe import load_recipe
from autoft.rundir import RunDir, TrialConfig, TrialResult
from autoft.tables import take_tables

ROWS = [{"text": "fine", "label": "good"}, {"text": "dull", "label": "bad"}, {"text": "warm", "label": "good"}]


def read_back(given, tmp_path):
    """Return the rows that a search would read, and the file's name."""
    _, (table,) = take_tables({"task": "any", "data": given})
    run = RunDir(tmp_path)
    table.write(run)
    path = table.path(run)
    return load_source(str(path), base=tmp_path, where="data.train").to_pylist(), path.name


def test_a_list_of_dicts(tmp_path):
    rows, name = read_back([*ROWS, {"text": "more", "weight": 2}], tmp_path)
    assert rows == [*({**row, "weight": None} for row in ROWS), {"text": "more", "label": None, "weight": 2}]
    assert re.fullmatch(r"train-rows-[0-9a-f]{16}\.parquet", name)


def test_a_dataframe_without_its_index(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS, index=["x", "y", "z"])
    frame["label"] = frame["label"].astype("category")
    rows, name = read_back(frame, tmp_path)
    assert rows == ROWS
    assert name.startswith("train-DataFrame-")
    assert name != read_back(frame.iloc[:2], tmp_path)[1]
    assert name == read_back(frame.copy(), tmp_path)[1]


def test_a_dataset_gives_the_names_of_its_classes(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    data = datasets.Dataset.from_dict({"text": ["fine", "dull", "warm"], "label": [1, 0, 1]}, features=features)
    rows, name = read_back(data, tmp_path)
    assert (rows, name[:14]) == (ROWS, "train-Dataset-")
    # Rows that were chosen, and not those that they were chosen from.
    assert read_back(data.select([2, 0]), tmp_path)[0] == [ROWS[2], ROWS[0]]
    split = datasets.DatasetDict({"train": data, "test": data.select([0])})
    recipe, tables = take_tables({"data": split})
    assert recipe["data"] == {}
    assert [(table.split, table.table.num_rows) for table in tables] == [("train", 3), ("test", 1)]


def test_what_exports_arrow(tmp_path):
    class Frame:
        """As polars and DuckDB do."""

        def __arrow_c_stream__(self, requested_schema=None):
            return pa.Table.from_pylist(ROWS).__arrow_c_stream__(requested_schema)

    assert read_back(Frame(), tmp_path)[0] == ROWS
    assert read_back(pa.Table.from_pylist(ROWS), tmp_path)[0] == ROWS


def test_sources_beside_tables_and_other_keys_stay(tmp_path):
    given = {"train": ROWS, "validation": "dev.csv", "columns": {"text": "text"}}
    recipe, (table,) = take_tables({"task": "any", "data": given})
    assert recipe == {"task": "any", "data": {"validation": "dev.csv", "columns": {"text": "text"}}}
    assert table.split == "train"
    assert given["train"] is ROWS
    assert take_tables({"task": "any", "data": "train.csv"}) == ({"task": "any", "data": "train.csv"}, [])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "data.train: holds no rows"),
        (["a.csv", "b.csv"], "row 0 is a str; each row has to be a dict"),
        ([{"text": "a"}, {"text": 3}], "row 1: column 'text' holds 3, but earlier rows hold values as 'a'"),
        ([{"text": object()}], "data.train"),
    ],
)
def test_what_cannot_be_kept_is_told(given, message):
    with pytest.raises(DataError, match=message):
        take_tables({"data": given})


def test_an_object_that_refuses_without_a_word_is_told_by_the_kind_of_error():
    class Closed:
        def __arrow_c_stream__(self, requested_schema=None):
            raise ValueError

    with pytest.raises(DataError, match=r"data\.train: the Closed cannot be kept: ValueError"):
        take_tables({"data": Closed()})


def test_a_series_and_a_dataset_dict_are_told_what_to_give():
    pandas = pytest.importorskip("pandas")
    datasets = pytest.importorskip("datasets")
    with pytest.raises(DataError, match="to_frame"):
        take_tables({"data": pandas.Series(["a"])})
    split = datasets.DatasetDict({"fit": datasets.Dataset.from_list(ROWS)})
    with pytest.raises(DataError, match="needs one split of it; there are fit"):
        take_tables({"data": {"train": split}})


def test_plan_and_check_take_data_without_leaving_files(tmp_path, monkeypatch, tiny_model):
    monkeypatch.chdir(tmp_path)
    recipe = {"task": "text-classification", "model": str(tiny_model), "data": 40 * ROWS, "effort": "quick"}
    assert autoft.explain(recipe).task == "text-classification"
    sentences = list(autoft.check({**recipe, "data": {"train": 40 * ROWS, "deduplicate": False}}))
    assert any("label from 'label'" in sentence or "label 'label'" in sentence for sentence in sentences)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RecipeError, match="tsk"):
        autoft.explain({"tsk": "any", "model": "m", "data": ROWS})


@pytest.fixture(scope="module")
def recipe(tiny_model, reviews):
    """A recipe with rows given as a list."""
    with reviews.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        "task": "text-classification",
        "model": str(tiny_model),
        "data": {"train": rows, "validation_size": 60, "test_size": 40},
        "budget": {"time": "10m", "trials": 1},
        "effort": "quick",
        "compress": "none",
        "space": {"full.learning_rate": 5e-3, "train.epochs": 4},
        "search": {"finalist_seeds": 0},
    }


@pytest.mark.slow
def test_a_search_over_rows_keeps_them_and_goes_on_with_the_same_ones(recipe, tmp_path):
    autoft.search(recipe, run=tmp_path / "run")
    run = autoft.search(recipe, run=tmp_path / "run")
    (kept,) = (run.path / "given").iterdir()
    resolved = yaml.safe_load((run.path / "recipe.yaml").read_text())
    assert Path(resolved["data"]["train"]) == kept
    assert load_source(str(kept), base=run.path, where="data.train").to_pylist() == recipe["data"]["train"]
    assert run.summary["trials"]["complete"] == 1
    # The file that is left is a recipe as any other.
    assert load_recipe(run.path / "recipe.yaml").data.validation_size == 60


class Begun(Exception):
    """A search has its folder, and nothing of it is done."""


class Ending(Listener):
    """Ends a search at its beginning."""

    def begin(self, plan, resumed):
        raise Begun


def test_other_rows_are_another_run(recipe, tmp_path):
    with pytest.raises(Begun):
        autoft.search(recipe, run=tmp_path, listener=Ending())
    config = TrialConfig(number=0, kind="default", model=recipe["model"], pipeline="full", params={}, seed=0)
    RunDir(tmp_path).write_result(TrialResult(number=0, state="complete", config=config))
    # The same ones are the same run.
    with pytest.raises(Begun):
        autoft.search(recipe, run=tmp_path, listener=Ending())
    (kept,) = (tmp_path / "given").iterdir()
    assert load_source(str(kept), base=tmp_path, where="data.train").to_pylist() == recipe["data"]["train"]
    other = {**recipe, "data": {**recipe["data"], "train": recipe["data"]["train"][:300]}}
    with pytest.raises(autoft.errors.RunFolderError, match="another recipe"):
        autoft.search(other, run=tmp_path)


def test_limits_may_change_between_calls_and_what_is_measured_may_not(recipe, tmp_path):
    def call(**budget):
        changed = {**recipe, "budget": {**recipe.get("budget", {}), **budget}}
        autoft.search(changed, run=tmp_path, listener=Ending())

    with pytest.raises(Begun):
        call(latency="5ms")
    config = TrialConfig(number=0, kind="default", model=recipe["model"], pipeline="full", params={}, seed=0)
    RunDir(tmp_path).write_result(TrialResult(number=0, state="complete", config=config))
    with pytest.raises(Begun):
        call(latency={"p95": "9ms"})
    with pytest.raises(autoft.errors.RunFolderError, match=r"differs in budget\.latency\.batch_size"):
        call(latency={"p50": "5ms", "batch_size": 8})


def test_what_was_measured_on_another_processor_is_told(recipe, tmp_path):
    class Listening(Ending):
        def begin(self, plan, resumed):
            told.append([warning for warning in plan.warnings if "latencies of both do not compare" in warning])
            super().begin(plan, resumed)

    told = []
    with pytest.raises(Begun):
        autoft.search(recipe, run=tmp_path, listener=Listening())
    config = TrialConfig(number=0, kind="default", model=recipe["model"], pipeline="full", params={}, seed=0)
    RunDir(tmp_path).write_result(TrialResult(number=0, state="complete", config=config))
    plan = json.loads((tmp_path / "plan.json").read_text())
    for cpu in (plan["hardware"]["cpu"], "Abacus"):
        (tmp_path / "plan.json").write_text(json.dumps({**plan, "hardware": {**plan["hardware"], "cpu": cpu}}))
        with pytest.raises(Begun):
            autoft.search(recipe, run=tmp_path, listener=Listening())
    assert [len(one) for one in told] == [0, 0, 1]
    assert "measured on Abacus, and any of now" in told[2][0]


@pytest.fixture
def run(tmp_path):
    run = autoft.Run(tmp_path)
    run.report.write_text('<!doctype html><p class="a">1 &lt; 2 &amp; so on</p>', encoding="utf-8")
    return run


def test_a_notebook_shows_the_report_apart_from_its_own_page(run):
    shown = run._repr_html_()
    (source,) = re.findall(r'srcdoc="([^"]*)"', shown)
    assert html.unescape(source) == run.report.read_text(encoding="utf-8")
    assert "<" not in source
    assert 'sandbox="allow-scripts allow-popups"' in shown
    assert "no report yet" in autoft.Run(run.path / "none & <other>")._repr_html_()
    assert "none &amp; &lt;other&gt;" in autoft.Run(run.path / "none & <other>")._repr_html_()


def test_the_formatter_of_ipython_takes_it(run):
    formatters = pytest.importorskip("IPython.core.formatters")
    assert formatters.HTMLFormatter()(run) == run._repr_html_()
