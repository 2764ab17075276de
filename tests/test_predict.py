"""``autoft predict`` as a user sees it: one prediction a row whatever the file, and messages that name the row."""

from __future__ import annotations

import csv
import json
import shutil

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from autoft.artifact import load, save_artifact
from autoft.cli import app
from autoft.errors import ModelError
from autoft.testing.workbench import Workbench

TEXTS = ["a warm film", "flat jokes, flat ending", "", "  ", "the cast is superb"]


@pytest.fixture(scope="module")
def classifier(catalog, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    bench = Workbench(catalog.task("text-classification"), catalog)
    save_artifact(folder, bench.load_model(), bench.target, writer=None, variant="none", objective="")
    return folder


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """A csv with columns of its own, two of its rows without text."""
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "review"])
        writer.writerows(enumerate(TEXTS, start=1))
    return tmp_path / "reviews.csv"


def predict(*words, typed=None):
    return CliRunner().invoke(app, ["predict", *map(str, words)], input=typed)


def labels(folder):
    said = iter(load(folder).predict([text for text in TEXTS if text.strip()]))
    return [next(said)["label"] if text.strip() else None for text in TEXTS]


def test_a_row_without_text_keeps_its_place_and_is_told(classifier, reviews):
    done = predict(classifier, "--input", reviews)
    assert done.exit_code == 0
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one.get("label") for one in said] == labels(classifier)
    assert said[2] == said[3] == {}
    assert "2 rows have no value in a column that the task needs, and an empty prediction: 3, 4" in done.stderr


@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t"), ("CSV", ",")])
def test_a_table_of_text_has_the_columns_of_the_input_and_json_in_its_cells(suffix, mark, classifier, reviews):
    out = reviews.with_name(f"said.{suffix}")
    assert predict(classifier, "--input", reviews, "--output", out, "--keep").exit_code == 0
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter=mark))
    assert [row["review"] for row in rows] == TEXTS
    assert [row["label"] or None for row in rows] == labels(classifier)
    assert sum(json.loads(rows[0]["scores"])) == pytest.approx(1)


def test_a_true_label_of_the_input_is_kept_beside_the_predicted_one(classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": text, "label": f"true {number}", "given_label": "x"} for number, text in enumerate(TEXTS)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = predict(classifier, "--input", "in.jsonl", "--keep")
    assert done.exit_code == 0
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one.get("label") for one in said] == labels(classifier)
    assert [one["given_given_label"] for one in said] == [row["label"] for row in rows]
    assert {one["given_label"] for one in said} == {"x"}


def test_parquet_keeps_lists_as_lists(classifier, reviews):
    out = reviews.with_name("said.parquet")
    assert predict(classifier, "--input", reviews, "--output", out).exit_code == 0
    table = pq.read_table(out)
    assert table.column_names == ["label", "score", "scores"]
    assert table["label"].to_pylist() == labels(classifier)
    assert len(table["scores"][0].as_py()) == 2


def test_a_column_may_be_named(classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.jsonl").write_text('{"zzz": "a warm film"}\n{"zzz": "flat jokes"}\n')
    lacking = predict(classifier, "--input", "odd.jsonl")
    assert lacking.exit_code == 2
    assert "Its columns: zzz. Say which is which, as --column text=NAME" in lacking.stderr
    assert len(predict(classifier, "--input", "odd.jsonl", "--column", "text=zzz").stdout.splitlines()) == 2
    wrong = predict(classifier, "--input", "odd.jsonl", "--column", "text")
    assert (wrong.exit_code, "needs the form ROLE=NAME" in wrong.stderr) == (2, True)


def test_a_message_names_the_row_of_the_whole_input(catalog, tmp_path, monkeypatch):
    """Tasks count the rows that they are given, which are a part of the file."""
    monkeypatch.chdir(tmp_path)
    bench = Workbench(catalog.task("token-classification"), catalog)
    save_artifact(tmp_path / "m", bench.load_model(), bench.target, writer=None, variant="none", objective="")
    rows = [{"tokens": ["a", "b"]}] * 40
    rows[36] = {"tokens": None}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = predict("m", "--input", "rows.jsonl", "--batch-size", "1")
    assert done.exit_code == 2
    assert "row 37: needs 'tokens'" in done.stderr


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_an_input_is_not_lost_to_its_output(suffix, classifier, tmp_path):
    rows = tmp_path / f"rows.{suffix}"
    content = '{"text": "a film"}\n' if suffix == "jsonl" else "text\na film\n"
    rows.write_text(content)
    done = predict(classifier, "--input", rows, "--output", rows)
    assert done.exit_code == 2
    assert "is the file of --input" in done.stderr
    assert rows.read_text() == content


def test_an_input_that_cannot_be_read_leaves_an_earlier_output(classifier, reviews):
    out = reviews.with_name("said.jsonl")
    out.write_text("earlier\n")
    assert predict(classifier, "--input", reviews, "--column", "text=absent", "--output", out).exit_code == 2
    assert out.read_text() == "earlier\n"


def test_a_broken_line_of_standard_input_is_named(classifier):
    done = predict(classifier, typed='a film\n\n{"text": "b"}\n{"text": \n')
    assert done.exit_code == 2
    assert done.stderr.startswith("error: standard input, line 4: is not a JSON object")


@pytest.mark.parametrize(
    "typed", [b'{"text": "fine"}\n{"text": "a\\ud800"}\n', b"fine\n\xff\n", b"fine\n" * 10_000 + b"\xff\n"]
)
def test_typed_rows_that_are_not_utf_8_are_told(classifier, typed):
    done = predict(classifier, typed=typed)
    assert done.exit_code == 2
    assert "not UTF-8 text" in done.stderr


def test_an_argument_that_is_not_utf_8_is_told(classifier):
    done = predict(classifier, "fine", "a\udcff")
    assert done.exit_code == 2
    assert done.stderr == "error: row 2: holds what is not UTF-8 text\n"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"intermediate_size": 48}, "intermediate"),
        ({"num_hidden_layers": 3}, "layer.2"),
        ({"num_hidden_layers": 1}, "layer.1"),
    ],
    ids=["another-width", "more-layers", "fewer-layers"],
)
def test_weights_that_are_not_those_of_the_configuration_are_no_model(changed, named, classifier, tmp_path):
    folder = shutil.copytree(classifier, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(ModelError, match=rf"the weights do not fit the model: .*{named}"):
        load(folder)


def test_a_model_without_the_weights_of_its_head_answers_nothing(classifier, tmp_path):
    folder = shutil.copytree(classifier, tmp_path / "model")
    weights = {
        name: value for name, value in load_file(folder / "model.safetensors").items() if "classifier" not in name
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    done = predict(folder, "a warm film")
    assert done.exit_code == 2
    assert "the weights do not fit the model: classifier" in done.stderr
