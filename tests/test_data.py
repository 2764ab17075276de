"""The data layer against csv, json, pandas, pyarrow and brute force."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import math
import random
import re
import tempfile
import threading
from collections import Counter
from fractions import Fraction
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.contracts import Column, Task, TaskCard, TaskContext
from autoft.data.batches import grouped_batches
from autoft.data.columns import map_columns
from autoft.data.features import encoded
from autoft.data.prepared import open_data, prepare_data, prepare_folds
from autoft.data.rows import Split
from autoft.data.sources import load_source, package_path
from autoft.errors import DataError, PluginError, RunFolderError
from autoft.recipe import DataSection

CARD = TaskCard(
    name="tickets",
    summary="a queue for a ticket",
    columns=(
        Column("text", "text", "what the customer wrote", guesses=("text", "sentence", "body")),
        Column("note", "text", "what the agent noted", required=False, guesses=("note", "comment")),
        Column("label", "label", "the queue", target=True, guesses=("label", "queue", "class")),
    ),
    metrics=("accuracy",),
    architecture="sequence-classification",
)


class Tickets(Task):
    """Texts with a label; counts how often it is asked to do something."""

    card = CARD

    def __init__(self):
        self.encoded_rows = 0
        self.facts_calls = 0

    def demo_rows(self):
        return [{"text": "a", "label": "x"}]

    def load_model(self, source, context):
        raise AssertionError("no test loads a model")

    def predict(self, model, rows, context, batch_size=32):
        raise AssertionError("no test predicts")

    def reference(self, row, context):
        return row["label"]

    def facts(self, rows, options):
        self.facts_calls += 1
        return {"labels": sorted({str(row["label"]) for row in rows})}

    def stratum(self, row):
        return str(row["label"])

    def encode(self, rows, context):
        self.encoded_rows += len(rows)
        return [features_of(row, context) for row in rows]


def features_of(row, context):
    """What a tokenizer might give: numbers of the words up to the maximal length, and the place of the label."""
    ids = [len(word) * context.params.get("task.factor", 1) for word in row["text"].split()][: context.max_length]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": context.labels.index(str(row["label"]))}


class Unstratified(Tickets):
    def stratum(self, row):
        return None


def write_csv(path: Path, rows, head=("text", "label"), delimiter=",") -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(head)
        writer.writerows(rows)
    return path


def load(path: Path | str, base: Path = Path("/nonexistent")) -> pa.Table:
    return load_source(str(path), base=base, where="data.train")


def fault(path: Path | str, base: Path = Path("/nonexistent")) -> str:
    """Return the message of loading what cannot be loaded; each names the recipe's key and the source."""
    with pytest.raises(DataError) as caught:
        load(path, base)
    message = str(caught.value)
    assert message.startswith("data.train: ")
    assert Path(str(path)).name in message
    return message


# ---------------------------------------------------------------------------------------------------- formats

ROWS = [
    {"text": "plain words", "label": 0, "score": 0.5},
    {"text": 'a, "quoted" one; with\ta tab', "label": 1, "score": -1e-7},
    {"text": "zwei\nZeilen, schön ☕ 東京", "label": 2, "score": 12345.678},
    {"text": "'single' \\ back\\slash", "label": -3, "score": 0.25},
]


def to_json(path, frame):
    path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=1), encoding="utf-8")


def to_arrow_file(path, frame):
    table = pa.Table.from_pandas(frame)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def to_arrow_stream(path, frame):
    table = pa.Table.from_pandas(frame)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def to_saved(path, frame):
    import datasets

    datasets.Dataset.from_pandas(frame).save_to_disk(str(path))


def to_shards(path, frame):
    path.mkdir()
    frame[:1].to_parquet(path / "part-0.parquet")
    frame[1:].to_parquet(path / "part-1.parquet")
    (path / "_SUCCESS").touch()


WRITERS = {
    "rows.csv": lambda path, frame: frame.to_csv(path, index=False),
    "all-quoted.csv": lambda path, frame: frame.to_csv(path, index=False, quoting=csv.QUOTE_ALL),
    "crlf.csv": lambda path, frame: frame.to_csv(path, index=False, lineterminator="\r\n"),
    "UPPER.CSV": lambda path, frame: frame.to_csv(path, index=False),
    "rows.csv.gz": lambda path, frame: frame.to_csv(path, index=False),
    "bom.csv": lambda path, frame: frame.to_csv(path, index=False, encoding="utf-8-sig"),
    "rows.tsv": lambda path, frame: frame.to_csv(path, index=False, sep="\t"),
    "rows.tsv.gz": lambda path, frame: frame.to_csv(path, index=False, sep="\t"),
    "rows.json": to_json,
    "records.json": lambda path, frame: frame.to_json(path, orient="records", double_precision=15),
    "lines.json": lambda path, frame: frame.to_json(path, orient="records", lines=True, double_precision=15),
    "rows.json.gz": lambda path, frame: frame.to_json(path, orient="records", double_precision=15),
    "rows.jsonl": lambda path, frame: frame.to_json(path, orient="records", lines=True, double_precision=15),
    "rows.jsonl.gz": lambda path, frame: frame.to_json(path, orient="records", lines=True, double_precision=15),
    "rows.parquet": lambda path, frame: frame.to_parquet(path),
    "rows.arrow": to_arrow_file,
    "stream.arrow": to_arrow_stream,
    "saved": to_saved,
    "shards": to_shards,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(name, tmp_path):
    WRITERS[name](tmp_path / name, pd.DataFrame(ROWS))
    assert load(name, tmp_path).to_pylist() == ROWS


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=8), delimiter=st.sampled_from([",", "\t"]))
def test_what_the_csv_module_writes_is_read_back(rows, delimiter):
    # A word that is no number keeps the columns text; numbers have a test of their own.
    rows = [("word", "word"), *rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("rows.csv" if delimiter == "," else "rows.csv.gz")
        write_csv(path, rows, ("a", "b"))
        assert [tuple(row.values()) for row in load(path).to_pylist()] == rows


numberlike = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.from_regex(r"-?[0-9]{1,4}(\.[0-9]{1,3})?([eE][-+]?[0-9]{1,3})?", fullmatch=True),
    st.sampled_from(
        ["", "NA", "nan", "inf", "null", "true", "007", "+5", "1_000", "1,5", " 5", "0x10", "--1", ".", "1e"]
    ),
)


@settings(max_examples=150, deadline=None)
@given(values=st.lists(numberlike, min_size=1, max_size=4))
def test_numbers_in_a_csv_keep_their_value(values):
    with tempfile.TemporaryDirectory() as folder:
        got = load(write_csv(Path(folder) / "n.csv", [("x", value) for value in values]))["label"].to_pylist()
    for text, value in zip(values, got, strict=True):
        if isinstance(value, str):
            assert value == text
        elif value is None:
            assert text == ""
        else:
            assert (int(text) if isinstance(value, int) else float(text)) == value
            assert math.isfinite(value)
            assert not re.match(r"-?0[0-9]", text), "a code with leading zeros has to stay text"
    if all(re.fullmatch(r"-?[1-9][0-9]{0,9}", text) for text in values):
        assert got == [int(text) for text in values]


def test_a_column_is_numbers_only_where_each_value_is_one(tmp_path):
    write_csv(tmp_path / "r.csv", [("1", "2", "007", "1.5", "", "NA"), ("2", "x", "8", "", "", "3")], "abcdef")
    assert load("r.csv", tmp_path).to_pydict() == {
        "a": [1, 2],
        "b": ["2", "x"],
        "c": ["007", "8"],
        "d": [1.5, None],
        "e": ["", ""],
        "f": ["NA", "3"],
    }


def test_a_quote_inside_of_a_value_is_read_as_the_csv_module_reads_it(tmp_path):
    raw = 'text,label\n"say ""hi""",a\nan 8" disk,b\n"two\nlines",c\n'
    (tmp_path / "q.csv").write_text(raw)
    expected = list(csv.DictReader(raw.splitlines(keepends=True)))
    assert [row["text"] for row in expected] == ['say "hi"', 'an 8" disk', "two\nlines"]
    assert load("q.csv", tmp_path).to_pylist() == expected


def test_a_quote_that_is_not_closed_is_an_error_with_its_line(tmp_path):
    (tmp_path / "q.csv").write_text('text,label\nfine,a\n"open,b\nnever,c\n')
    assert 'line 3: a "quote" that opens there is not closed' in fault("q.csv", tmp_path)


def test_a_tsv_may_hold_quotes_as_plain_characters(tmp_path):
    (tmp_path / "glue.tsv").write_text('sentence\tlabel\n" opens only\t1\nan 8" disk\t0\n')
    expected = pd.read_csv(tmp_path / "glue.tsv", sep="\t", quoting=csv.QUOTE_NONE)
    assert load("glue.tsv", tmp_path).to_pylist() == expected.to_dict("records")


@pytest.mark.parametrize("text", ["plain", 'with "quotes"', "a\ttab"])
def test_a_tsv_with_all_values_quoted_loses_the_quotes(text, tmp_path):
    frame = pd.DataFrame({"text": [text, "other"], "label": [1, 2], "when": ["x", "7"]})
    frame.to_csv(tmp_path / "q.tsv", sep="\t", index=False, quoting=csv.QUOTE_ALL)
    assert load("q.tsv", tmp_path).to_pylist() == frame.to_dict("records")


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(suffix, tmp_path):
    text = '[{"text": "a"}]' if suffix == "json" else '{"text": "a"}\n'
    (tmp_path / f"b.{suffix}").write_bytes(text.encode("utf-8-sig"))
    assert load(f"b.{suffix}", tmp_path).to_pylist() == [{"text": "a"}]


def test_keys_may_be_absent_from_json_rows(tmp_path):
    lines = [{"text": "a", "tags": ["x"]}, {"label": 1, "text": "b"}, {"text": None, "label": 2.5, "tags": []}]
    (tmp_path / "r.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    expected = [{key: line.get(key) for key in ("text", "tags", "label")} for line in lines]
    assert load("r.jsonl", tmp_path).to_pylist() == expected


def test_a_long_file_keeps_order_and_widens_types(tmp_path):
    """More rows than are read at once; whole numbers become real ones late."""
    rows = [{"n": i, "late": None if i < 9000 else "x"} for i in range(9990)] + [{"n": 0.5, "late": "y"}] * 10
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pd.DataFrame(rows).to_csv(tmp_path / "long.csv", index=False)
    assert load("long.jsonl", tmp_path).to_pylist() == rows
    assert load("long.csv", tmp_path)["n"].to_pylist() == [row["n"] for row in rows]


def test_a_value_longer_than_the_csv_modules_limit_is_read(tmp_path):
    limit = csv.field_size_limit()
    write_csv(tmp_path / "long.csv", [("x" * 300_000, "a")])
    assert load("long.csv", tmp_path)["text"].to_pylist() == ["x" * 300_000]
    assert csv.field_size_limit() == limit


def test_dictionary_columns_become_plain(tmp_path):
    table = pa.table({"label": pa.array(["a", "b", "a"]).dictionary_encode(), "text": ["x", "y", "z"]})
    pq.write_table(table, tmp_path / "d.parquet")
    got = load("d.parquet", tmp_path)
    assert got["label"].type == pa.string()
    assert got["label"].to_pylist() == ["a", "b", "a"]


# ----------------------------------------------------------------------------------------------------- faults

FAULTS = {
    "latin-1": ("l.csv", "text,label\nfine,0\nGröße,1\n".encode("latin-1"), ["line 3", "0xf6", "UTF-8"]),
    "latin-1 gzip": ("l.csv.gz", gzip.compress("text\nGröße\n".encode("latin-1")), ["line 2", "0xf6", "UTF-8"]),
    "latin-1 jsonl": ("l.jsonl", '{"text": "Größe"}\n'.encode("latin-1"), ["line 1", "0xf6", "UTF-8"]),
    "latin-1 json": ("l.json", '[\n{"text": "Größe"}]'.encode("latin-1"), ["line 2", "0xf6", "UTF-8"]),
    "utf-16": ("u.csv", "text,label\nä,1\n".encode("utf-16"), ["UTF-16", "UTF-8"]),
    "gzip without its suffix": ("g.csv", gzip.compress(b"text\na\n"), ["g.csv.gz"]),
    "no gzip at all": ("g.csv.gz", b"text,label\na,1\n", ["broken gzip"]),
    "cut gzip": ("g.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 500)[:40], ["broken gzip"]),
    "parquet in gzip": ("t.parquet.gz", b"PAR1", [".parquet.gz", "Allowed: .csv", "also as .gz"]),
    "too many values": (
        "r.csv",
        b"text,label\na,1\nb,2,3\n",
        ["line 3 has 3 values for 2 columns", "'b,2,3'", "quotes"],
    ),
    "too few values": ("r.csv", b"text,label\na,1\nb\n", ["line 3 has 1 value for 2 columns", "'b'"]),
    "ragged after a long value": ("r.csv", b'text,label\n"a\nb",1\nc\n', ["line 4 has 1 value for 2 columns"]),
    "ragged tsv": ("r.tsv", b"text\tlabel\na\tb\tc\n", ["line 2 has 3 values for 2 columns", "a tab"]),
    "many ragged lines": ("r.csv", b"text,label\n" + b"a\n" * 9, ["line 2", "line 3", "line 4", "(9 such lines)"]),
    "semicolons": ("s.csv", b"text;label\na;1\n", ["separated by ';'", "commas"]),
    "tabs in a csv": ("s.csv", b"text\tlabel\na\t1\n", ["'\\t'", ".tsv"]),
    "a column twice": ("d.csv", b"text,label,text\na,1,b\n", ["more than one column", "'text'", "rename"]),
    "a key twice": ("d.jsonl", b'{"a": 1}\n{"a": 1, "a": 2}\n', ["line 2", "'a'", "twice"]),
    "a key twice in an array": ("d.json", b'[{"a": 1, "a": 2}]', ["'a'", "twice"]),
    "no bytes": ("e.csv", b"", ["is empty"]),
    "no bytes of json": ("e.json", b"", ["is empty"]),
    "no bytes of parquet": ("e.parquet", b"", ["is empty"]),
    "blank lines": ("e.csv", b"\n\n", ["is empty"]),
    "a mark and nothing else": ("e.csv", b"\xef\xbb\xbf", ["is empty"]),
    "a header only": ("e.csv", b"text,label\n", ["no rows"]),
    "an empty array": ("e.json", b"[]", ["no rows"]),
    "blank jsonl": ("e.jsonl", b"\n \n", ["no rows"]),
    "compressed nothing": ("e.csv.gz", gzip.compress(b""), ["is empty"]),
    "one object": (
        "o.json",
        b'{"version": 1, "data": [{"text": "a"}]}',
        ["single object", "'data'", "array of objects"],
    ),
    "an object over lines": ("o.json", b'{\n"data": [{"text": "a"}]\n}', ["single object", "'data'"]),
    "a word": ("o.json", b'"hello"', ["object"]),
    "numbers": ("o.json", b"[1, 2]", ["row 1", "needs an object", "given 1"]),
    "a list as a line": ("o.jsonl", b'{"a": 1}\n["b"]\n', ["line 2", "needs an object", '["b"]']),
    "broken json": ("b.json", b'[{"a": 1},', ["is not JSON"]),
    "a broken line": ("b.jsonl", b'{"a": 1}\n\n{"a": \n', ["line 3 is not JSON"]),
    "mixed kinds": (
        "m.jsonl",
        b'{"label": 1}\n{"label": 2}\n{"label": "x"}\n',
        ["line 3", "'label'", "'x'", "as 1", "one kind"],
    ),
    "a huge number": ("m.jsonl", b'{"n": 1}\n{"n": 99999999999999999999999}\n', ["line 2", "'n'", "64 bits"]),
    "half a surrogate pair": ("m.jsonl", b'{"t": "a"}\n{"t": "\\ud800"}\n', ["line 2", "'t'", "surrogate"]),
    "no parquet": ("t.parquet", b"PAR1 not really PAR1", ["not a parquet file, or is damaged"]),
    "no arrow": ("t.arrow", b"ARROW1 not really", ["damaged"]),
    "an unknown kind": ("t.cvs", b"text\na\n", ["'.cvs'", "Did you mean .csv?", "Allowed: .csv, .tsv"]),
    "no suffix": ("README", b"text\na\n", ["unknown kind of file", "Allowed: .csv, .tsv"]),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_file_that_cannot_be_used_is_told_with_place_and_reason(what, tmp_path):
    name, content, words = FAULTS[what]
    (tmp_path / name).write_bytes(content)
    message = fault(name, tmp_path)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl"])
def test_a_file_that_was_cut_off_is_an_error(kind, tmp_path):
    path = tmp_path / f"rows.{kind}"
    WRITERS[path.name](path, pd.DataFrame(ROWS * 50))
    path.write_bytes(path.read_bytes()[:-40])
    message = fault(path)
    assert "damaged" in message or "is not JSON" in message


@pytest.mark.parametrize("write", [pq.write_table, lambda table, path: pd_arrow(table, path)], ids=["parquet", "arrow"])
def test_a_table_with_a_column_twice_is_an_error(write, tmp_path):
    path = tmp_path / ("t.parquet" if write is pq.write_table else "t.arrow")
    write(pa.table([["a"], ["b"], [1]], names=["text", "text", "label"]), path)
    assert "more than one column named 'text'" in fault(path)


def pd_arrow(table, path):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def test_a_file_that_is_not_there_offers_the_closest_name(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "reviews.csv").touch()
    monkeypatch.chdir(tmp_path)
    message = fault("data/review.csv", tmp_path / "recipes")
    assert "no such file: data/review.csv" in message
    assert str(tmp_path / "recipes" / "data") in message
    assert "did you mean 'reviews.csv'?" in message
    assert "did you mean" not in fault("data/zzzzzzzz.parquet", tmp_path)


def test_relative_paths_start_at_the_recipe_then_at_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    write_csv(tmp_path / "recipes" / "both.csv", [("recipe", 1)])
    write_csv(tmp_path / "both.csv", [("cwd", 1)])
    write_csv(tmp_path / "only.csv", [("cwd", 1)])
    monkeypatch.chdir(tmp_path)
    assert load("both.csv", tmp_path / "recipes")["text"].to_pylist() == ["recipe"]
    assert load("only.csv", tmp_path / "recipes")["text"].to_pylist() == ["cwd"]


def test_an_unknown_scheme_says_what_is_allowed(tmp_path):
    assert "allowed are a local path, hub:// and package://; given pakage://. Did you mean package://?" in fault(
        "pakage://a/b.csv", tmp_path
    )
    assert "hub://owner/name@revision#split" in fault("hub://with space/b.csv", tmp_path)


# ---------------------------------------------------------------------------------------------------- folders


def test_a_folder_of_saved_splits_asks_for_one(tmp_path):
    import datasets

    frame = pd.DataFrame(ROWS)
    parts = {"train": datasets.Dataset.from_pandas(frame[:3]), "test": datasets.Dataset.from_pandas(frame[3:])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    message = fault("saved", tmp_path)
    assert "holds the splits train, test" in message
    assert "saved/train" in message
    assert load("saved/train", tmp_path).to_pylist() == ROWS[:3]
    assert load("saved/test", tmp_path).to_pylist() == ROWS[3:]


@pytest.mark.parametrize("content", ['{"spl', "[]", '{"splits": 3}'])
def test_a_damaged_folder_of_saved_splits_is_told(content, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text(content)
    assert "dataset_dict.json" in fault("saved", tmp_path)


@pytest.mark.parametrize("damage", ["state.json", "data-00000-of-00001.arrow", "dataset_info.json"])
def test_a_damaged_saved_folder_is_told(damage, tmp_path):
    to_saved(tmp_path / "saved", pd.DataFrame(ROWS))
    (tmp_path / "saved" / damage).write_bytes((tmp_path / "saved" / damage).read_bytes()[:20])
    assert "damaged" in fault("saved", tmp_path)


def test_class_numbers_become_names_and_a_saved_selection_is_kept(tmp_path):
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["bad", "good"]),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B"])),
        }
    )
    rows = {"text": ["a", "b", "c"], "label": [1, 0, -1], "tags": [[0, 1], [], [1]]}
    data = datasets.Dataset.from_dict(rows, features=features).select([2, 0, 1])
    data.save_to_disk(str(tmp_path / "saved"))
    data.to_parquet(str(tmp_path / "rows.parquet"))
    expected = {"text": ["c", "a", "b"], "label": [None, "good", "bad"], "tags": [["B"], ["O", "B"], []]}
    assert load("saved", tmp_path).to_pydict() == expected
    assert load("rows.parquet", tmp_path).to_pydict() == expected


def test_files_of_a_folder_are_read_in_the_order_of_their_names(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    write_csv(folder / "b.csv", [("second", "x"), ("third", "7")])
    write_csv(folder / "a.csv", [("y", "first")], head=("label", "text"))
    (folder / "README.md").write_text("about")
    (folder / ".hidden.csv").write_text("x")
    assert load(folder)["text"].to_pylist() == ["first", "second", "third"]
    assert load(folder)["label"].to_pylist() == ["y", "x", "7"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"train.csv": "text\na\n", "dev.csv": "text\na\n"},
            ["different splits", "train.csv", "dev.csv", "folder/dev.csv"],
        ),
        ({"a.csv": "text\na\n", "b.tsv": "text\na\n"}, ["several kinds (.csv, .tsv)"]),
        (
            {"a.csv": "text,label\na,1\n", "b.csv": "text,class\na,1\n"},
            ["a.csv", "text, label", "b.csv", "text, class"],
        ),
        ({"a.csv": "text\na\n", "b.csv": "text\n"}, ["b.csv", "no rows"]),
        ({"a.csv": "n\n1\n", "b.csv": "n\nx\n"}, ["n", "one kind"]),
        ({"README.md": "x"}, ["holds no data files", ".csv, .tsv"]),
        ({}, ["holds no data files"]),
    ],
    ids=["splits", "kinds", "columns", "no-rows", "types", "other-files", "nothing"],
)
def test_a_folder_that_is_not_one_table_is_told(files, words, tmp_path):
    (tmp_path / "folder").mkdir()
    for name, text in files.items():
        (tmp_path / "folder" / name).write_text(text)
    message = fault("folder", tmp_path)
    assert [word for word in words if word not in message] == [], message


# --------------------------------------------------------------------------------------------------- packages


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package that ships data and must not be imported to get at it."""
    folder = tmp_path / "site" / "some_reviews"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    write_csv(folder / "data" / "train.csv", [("shipped", 1)])
    write_csv(tmp_path / "site" / "outside.csv", [("outside", 1)])
    (tmp_path / "site" / "some_module.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


def test_data_of_a_package_is_read_without_importing_it(package, tmp_path):
    assert package_path("package://some_reviews/data/train.csv") == package / "data" / "train.csv"
    assert load("package://some_reviews/data/train.csv").to_pylist() == [{"text": "shipped", "label": 1}]
    assert load("package://some_reviews/data").to_pylist() == [{"text": "shipped", "label": 1}]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("package://some_reviews/data/trian.csv", ["no such path", "did you mean 'train.csv'?"]),
        ("package://some_reviews/../outside.csv", ["leaves the package"]),
        ("package://other_reviews/train.csv", ["'other_reviews'", "not installed", "pip install", "other-reviews"]),
        ("package://some_module/train.csv", ["single file"]),
        ("package://some_reviews", ["package://module/path"]),
        ("package://some-reviews/train.csv", ["package://module/path"]),
        ("package:///train.csv", ["package://module/path"]),
    ],
)
def test_a_package_without_the_data_is_told(source, words, package):
    message = fault(source)
    assert source in message
    assert [word for word in words if word not in message] == [], message


# ---------------------------------------------------------------------------------------------------- columns


def mapped(table: dict, mapping=None, card=CARD):
    return map_columns(pa.table(table), card, mapping or {}, "data.train").to_pydict()


def mapping_fault(table: dict, mapping=None, card=CARD) -> str:
    with pytest.raises(DataError) as caught:
        mapped(table, mapping, card)
    return str(caught.value)


def test_roles_are_guessed_in_the_order_of_the_guesses():
    table = {"id": [1], "Queue": ["q"], "body": ["b"], "sentence": ["s"]}
    assert mapped(table) == {"text": ["s"], "label": ["q"]}


def test_the_role_s_own_name_comes_before_a_guess():
    assert mapped({"queue": ["q"], "label": ["l"], "text": ["t"]}) == {"text": ["t"], "label": ["l"]}


def test_a_mapping_decides_over_guesses():
    table = {"text": ["t"], "body": ["b"], "label": ["l"], "comment": ["c"]}
    assert mapped(table, {"text": "body"}) == {"text": ["b"], "note": ["c"], "label": ["l"]}
    assert mapped(table, {"text": "body", "note": "text"}) == {"text": ["b"], "note": ["t"], "label": ["l"]}


def test_an_exact_name_wins_over_one_in_other_letters():
    assert mapped({"TEXT": ["big"], "text": ["small"], "label": ["l"]}) == {"text": ["small"], "label": ["l"]}


def test_columns_that_differ_only_in_case_are_ambiguous():
    message = mapping_fault({"Text": ["a"], "TEXT": ["b"], "label": ["l"]})
    assert "data.train" in message
    assert "'Text', 'TEXT' may all be 'text'" in message
    assert "data.columns decides" in message


def test_a_column_that_two_roles_want_is_ambiguous():
    columns = (
        Column("question", "text", "what is asked", guesses=("input",)),
        Column("context", "text", "where the answer is", guesses=("input",)),
    )
    message = mapping_fault({"input": ["a"]}, card=dataclasses.replace(CARD, columns=columns))
    assert "'input' may be 'question' and 'context'" in message
    assert "columns: {question: ..., context: ...}" in message


def test_a_column_that_two_roles_want_goes_to_the_required_one():
    columns = (
        Column("hint", "text", "a hint", required=False, guesses=("input",)),
        Column("question", "text", "what is asked", guesses=("input",)),
    )
    assert mapped({"input": ["a"]}, card=dataclasses.replace(CARD, columns=columns)) == {"question": ["a"]}


def test_a_missing_column_names_the_role_and_all_columns():
    message = mapping_fault({"words": ["a"], "stars": [1]})
    for part in ("data.train", "tickets", "'text' (what the customer wrote)", "'label' (the queue)", "words, stars"):
        assert part in message
    assert "columns: {text: ..., label: ...}" in message


def test_faults_of_a_mapping_are_told_together_with_the_closest_names():
    table = {"sentence": ["a"], "label": [1]}
    message = mapping_fault(table, {"txet": "sentence", "text": "sentense", "label": "labels"})
    assert "unknown role 'txet'. Did you mean 'text'? Known: label, note, text." in message
    assert "data.columns.text: data.train has no such column" in message
    assert "'sentense'. Did you mean 'sentence'? Known: label, sentence." in message
    assert "'labels'. Did you mean 'label'?" in message


def test_a_column_has_one_role():
    message = mapping_fault({"a": ["x"], "label": [1]}, {"text": "a", "note": "a"})
    assert "'a' is given to 'text' and 'note'" in message


def test_rows_without_a_required_value_are_left_out():
    table = {
        "text": ["a", None, "c", " \t", "e", "f", ""],
        "label": [1.0, 2.0, math.nan, 4.0, None, 6.0, 7.0],
        "note": [None, "n", "n", "n", "n", "", "n"],
    }
    assert mapped(table) == {"text": ["a", "f"], "note": [None, ""], "label": [1.0, 6.0]}


def test_an_empty_list_is_missing_as_input_and_an_answer_as_target():
    card = dataclasses.replace(
        CARD, columns=(Column("tokens", "tokens", "words"), Column("labels", "labels", "topics", target=True))
    )
    table = {"tokens": [["a"], [], ["c"], None], "labels": [[], ["x"], ["y"], ["z"]]}
    assert mapped(table, card=card) == {"tokens": [["a"], ["c"]], "labels": [[], ["y"]]}


def test_rows_that_all_lack_a_value_are_an_error():
    message = mapping_fault({"text": ["", None], "label": [1, 2]})
    assert "data.train" in message
    assert "none of its 2 rows has a value in each of text, label" in message


def test_numbers_in_a_column_of_text_become_text_and_lists_are_an_error():
    assert mapped({"text": [5, 70], "label": [1, 2]})["text"] == ["5", "70"]
    message = mapping_fault({"body": [["a"]], "label": [1]})
    assert "'body' for 'text' needs text, but holds list" in message


# --------------------------------------------------------------------------------------------------- prepared


def prepare(folder: Path, task: Task | None = None, seed=0, options=None, out="data", **section):
    """Prepare the data of a recipe in ``folder``."""
    return prepare_data(DataSection(**section), task or Tickets(), options or {}, seed, folder / out, folder)


def tickets(count: int, seed=0, labels="aaabbc") -> list[tuple[str, str]]:
    """Rows with distinct texts, of random length."""
    rng = random.Random(seed)
    return [(f"ticket {i} " + "word " * rng.randint(0, 9) + "end", rng.choice(labels)) for i in range(count)]


def pairs(split: Split) -> list[tuple[str, str]]:
    return [(row["text"], str(row["label"])) for row in split]


def every(prepared) -> list[tuple[str, str]]:
    return pairs(prepared.train) + pairs(prepared.validation) + pairs(prepared.test)


def prepare_fault(folder: Path, **section) -> str:
    with pytest.raises(DataError) as caught:
        prepare(folder, **section)
    return str(caught.value)


@pytest.mark.parametrize("sizes", [{}, {"validation_size": 0.2, "test_size": 30}, {"validation_size": 7}])
def test_each_row_is_in_one_split_and_none_is_lost(sizes, tmp_path):
    rows = tickets(200)
    write_csv(tmp_path / "r.csv", rows)
    prepared = prepare(tmp_path, train="r.csv", **sizes)
    assert sorted(every(prepared)) == sorted(rows)
    expected = {"validation": {}, "test": {}}
    for name in expected:
        size = sizes.get(f"{name}_size", 0.15)
        expected[name] = size if isinstance(size, int) else round(200 * size)
    assert (len(prepared.validation), len(prepared.test)) == (expected["validation"], expected["test"])
    assert prepared.warnings == ()
    assert prepared.columns == {"text": "text", "label": "label"}
    assert prepared.facts == {"labels": ["a", "b", "c"]}


def test_cut_splits_are_at_most_so_large_by_default(tmp_path):
    rows = [(f"t{i}", "ab"[i % 2]) for i in range(15_000)]
    write_csv(tmp_path / "r.csv", rows)
    prepared = prepare(tmp_path, train="r.csv")
    assert (len(prepared.train), len(prepared.validation), len(prepared.test)) == (12_000, 1000, 2000)


def largest_remainder(counts: dict[str, int], size: int) -> list[dict[str, int]]:
    """Return all fair shares of ``size`` by exact arithmetic: floors, then one more for the largest remainders."""
    total = sum(counts.values())
    quotas = {name: Fraction(count * size, total) for name, count in counts.items()}
    floors = {name: math.floor(quota) for name, quota in quotas.items()}
    seats = size - sum(floors.values())
    remainders = {name: quotas[name] - floors[name] for name in counts}
    cutoff = sorted(remainders.values(), reverse=True)[seats - 1] if seats else Fraction(1)
    sure = [name for name in counts if remainders[name] > cutoff]
    tied = [name for name in counts if remainders[name] == cutoff]
    return [
        {name: floors[name] + (name in sure) + (name in chosen) for name in counts}
        for chosen in combinations(tied, seats - len(sure) if seats else 0)
    ]


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(8, 60), min_size=2, max_size=5),
    share=st.floats(0.1, 0.45),
    seed=st.integers(0, 5),
)
def test_a_cut_holds_each_class_in_proportion(counts, share, seed):
    of_class = dict(zip("abcde", counts, strict=False))
    rows = [(f"{name}{i}", name) for name, count in of_class.items() for i in range(count)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_csv(folder / "r.csv", rows)
        write_csv(folder / "test.csv", [("other", "a")])
        prepared = prepare(folder, seed=seed, train="r.csv", test="test.csv", validation_size=share)
        assert pairs(prepared.test) == [("other", "a")]
        got = Counter(label for _, label in pairs(prepared.validation))
        assert {name: got[name] for name in of_class} in largest_remainder(of_class, round(len(rows) * share))
        assert sorted(pairs(prepared.train) + pairs(prepared.validation)) == sorted(rows)


def test_training_keeps_a_row_of_each_class(tmp_path):
    rows = [(f"t{i}", f"rare{i}") for i in range(5)] + [(f"u{i}", "often") for i in range(35)]
    write_csv(tmp_path / "r.csv", rows)
    for seed in range(3):
        prepared = prepare(tmp_path, seed=seed, out=f"d{seed}", train="r.csv", validation_size=0.4, test_size=0.4)
        assert {label for _, label in pairs(prepared.train)} == {"often", *(f"rare{i}" for i in range(5))}


def test_without_strata_the_cut_is_still_of_that_size(tmp_path):
    rows = tickets(100)
    write_csv(tmp_path / "r.csv", rows)
    prepared = prepare(tmp_path, Unstratified(), train="r.csv", validation_size=10, test_size=0.3)
    assert [len(prepared.train), len(prepared.validation), len(prepared.test)] == [60, 10, 30]
    assert sorted(every(prepared)) == sorted(rows)


def test_splits_follow_from_the_seed(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(120))
    first, again, other = (
        prepare(tmp_path, seed=seed, out=out, train="r.csv") for seed, out in ((1, "a"), (1, "b"), (2, "c"))
    )
    assert every(first) == every(again)
    assert first.fingerprint == again.fingerprint
    assert set(pairs(first.test)) != set(pairs(other.test))
    assert first.fingerprint != other.fingerprint


@pytest.mark.parametrize("given", ["validation", "test"])
def test_the_split_that_is_not_given_is_cut(given, tmp_path):
    rows, held_out = tickets(100), [(f"held {i}", "a") for i in range(12)]
    write_csv(tmp_path / "train.csv", rows)
    write_csv(tmp_path / "held.csv", held_out)
    prepared = prepare(tmp_path, train="train.csv", **{given: "held.csv"})
    cut = prepared.test if given == "validation" else prepared.validation
    assert sorted(pairs(getattr(prepared, given))) == sorted(held_out)
    assert len(cut) == 15
    assert sorted(pairs(prepared.train) + pairs(cut)) == sorted(rows)


def test_all_splits_given_keep_their_rows(tmp_path):
    parts = {name: [(f"{name} {i}", "ab"[i % 2]) for i in range(20)] for name in ("train", "validation", "test")}
    for name, rows in parts.items():
        write_csv(tmp_path / f"{name}.csv", rows)
    prepared = prepare(tmp_path, **{name: f"{name}.csv" for name in parts})
    for name, rows in parts.items():
        assert sorted(pairs(getattr(prepared, name))) == sorted(rows)
        assert pairs(getattr(prepared, name)) != rows, "sorted files have to be shuffled"


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"test_size": 5000}, ["data.train: has 20 rows", "5000 for test", "data.test_size"]),
        ({"test_size": 0.5, "validation_size": 0.5}, ["10 for test and 10 for validation"]),
        ({"validation_size": 0.01}, ["data.validation: is absent, and 1 % of the 20 rows", "less than one row"]),
    ],
)
def test_a_cut_that_cannot_be_is_told(sizes, words, tmp_path):
    write_csv(tmp_path / "r.csv", tickets(20))
    message = prepare_fault(tmp_path, train="r.csv", **sizes)
    assert [word for word in words if word not in message] == [], message


def test_a_limit_applies_to_the_training_source_before_it_is_cut(tmp_path):
    rows = tickets(300)
    write_csv(tmp_path / "r.csv", rows)
    prepared = prepare(tmp_path, train="r.csv", limit=100, validation_size=0.1, test_size=20)
    assert [len(prepared.train), len(prepared.validation), len(prepared.test)] == [70, 10, 20]
    assert len(set(every(prepared)) & set(rows)) == 100
    assert not set(every(prepared)) <= set(rows[:100]), "drawn at random, not the first"


def test_a_limit_for_each_split(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(300))
    held = [(f"held {i}", "a") for i in range(50)]
    write_csv(tmp_path / "v.csv", held)
    prepared = prepare(
        tmp_path, train="r.csv", validation="v.csv", test_size=0.5, limit={"train": 100, "validation": 30, "test": 5}
    )
    assert [len(prepared.train), len(prepared.validation), len(prepared.test)] == [50, 30, 5]
    assert set(pairs(prepared.validation)) < set(held)


def test_a_limit_above_the_rows_changes_nothing(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(40))
    free = prepare(tmp_path, train="r.csv", out="a")
    assert every(prepare(tmp_path, train="r.csv", limit=40, out="b")) == every(free)


# ------------------------------------------------------------------------------------------ duplicates, leaks


def repeated_rows(seed: int) -> dict[str, list[tuple[str, str, str]]]:
    """Rows of few texts and notes, so that inputs repeat inside of splits and between them."""
    rng = random.Random(seed)
    pick = lambda: (f"t{rng.randrange(25)}", rng.choice(["", "n"]), rng.choice("ab"))  # noqa: E731
    return {name: [pick() for _ in range(count)] for name, count in (("train", 120), ("validation", 15), ("test", 14))}


@pytest.mark.parametrize("seed", range(4))
def test_duplicates_and_leaks_are_taken_out_and_counted(seed, tmp_path):
    parts = repeated_rows(seed)
    for name, rows in parts.items():
        write_csv(tmp_path / f"{name}.csv", rows, ("text", "note", "label"))
    prepared = prepare(tmp_path, **{name: f"{name}.csv" for name in parts})

    held = {name: {row[:2] for row in parts[name]} for name in ("validation", "test")}
    firsts: dict[tuple[str, str], str] = {}
    for text, note, label in parts["train"]:
        firsts.setdefault((text, note), label)
    in_validation = [inputs for inputs in firsts if inputs in held["validation"]]
    in_test = [inputs for inputs in firsts if inputs in held["test"] - held["validation"]]
    labels_of: dict[tuple[str, str], set[str]] = {}
    for text, note, label in parts["train"]:
        labels_of.setdefault((text, note), set()).add(label)
    conflicts = sum(len(labels) > 1 for labels in labels_of.values())
    leaked = [row for row in parts["validation"] if row[:2] in held["test"]]
    assert min(len(in_validation), len(in_test), conflicts, len(leaked)) > 0, "the rows have to hold each case"

    def triples(split):
        return Counter((row["text"], row["note"], row["label"]) for row in split)

    kept = Counter(
        (*inputs, label) for inputs, label in firsts.items() if inputs not in held["validation"] | held["test"]
    )
    assert triples(prepared.train) == kept
    assert triples(prepared.validation) == Counter(row for row in parts["validation"] if row[:2] not in held["test"])
    assert triples(prepared.test) == Counter(parts["test"])
    words = " ".join(prepared.warnings)
    assert f"data.train: {120 - len(firsts)} of 120 rows repeat the inputs of an earlier row: left out" in words
    assert f"data.train: {len(in_validation)} of 120 rows are also in data.validation: left out" in words
    assert f"data.train: {len(in_test)} of 120 rows are also in data.test: left out" in words
    assert f"data.validation: {len(leaked)} of 15 rows are also in data.test: left out" in words
    assert re.search(rf"data\.train: {conflicts} inputs? stands? with different targets: the first is kept", words)


def test_duplicates_that_are_kept_are_still_told(tmp_path):
    parts = repeated_rows(1)
    for name, rows in parts.items():
        write_csv(tmp_path / f"{name}.csv", rows, ("text", "note", "label"))
    prepared = prepare(tmp_path, deduplicate=False, **{name: f"{name}.csv" for name in parts})
    for name, rows in parts.items():
        got = Counter((row["text"], row["note"], row["label"]) for row in getattr(prepared, name))
        assert got == Counter(rows)
    repeats = 120 - len({row[:2] for row in parts["train"]})
    assert f"data.train: {repeats} of 120 rows repeat the inputs of an earlier row: kept" in " ".join(prepared.warnings)
    assert all("left out" not in warning for warning in prepared.warnings)


def test_duplicates_that_fall_on_both_sides_of_a_cut(tmp_path):
    rows = [(f"t{i % 30}", "ab"[i % 2]) for i in range(120)]
    write_csv(tmp_path / "r.csv", rows)
    clean = prepare(tmp_path, train="r.csv", out="a")
    assert sorted(every(clean)) == sorted(set(rows)), "each once, hence in one split"
    kept = prepare(tmp_path, train="r.csv", deduplicate=False, out="b")
    assert Counter(every(kept)) == Counter(rows)
    test = {text for text, _ in pairs(kept.test)}
    leaked = sum(text in test for text, _ in pairs(kept.train))
    assert leaked > 0
    assert f"data.train: {leaked} of {len(kept.train)} rows are also in the test split: kept" in " ".join(kept.warnings)


def test_a_training_source_that_is_all_in_test_is_an_error(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(10))
    message = prepare_fault(tmp_path, train="r.csv", test="r.csv")
    assert "data.train: all of its 10 rows are also in a held-out split" in message
    assert "data.deduplicate" in message


def test_rows_without_a_value_are_counted(tmp_path):
    write_csv(tmp_path / "r.csv", [*tickets(50), ("", "a"), ("  ", "b"), ("text", "")])
    prepared = prepare(tmp_path, train="r.csv")
    assert len(every(prepared)) == 50
    assert prepared.warnings == ("data.train: 3 of 53 rows left out for want of a value in text, label",)


def test_labels_never_seen_in_training_are_told(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(30, labels="ab"))
    write_csv(tmp_path / "t.csv", [("x", "a"), ("y", "zebra")])
    prepared = prepare(tmp_path, train="r.csv", test="t.csv")
    assert any("1 labels of validation or test" in warning and "'zebra'" in warning for warning in prepared.warnings)


def test_a_column_has_one_type_in_all_splits(tmp_path):
    write_csv(tmp_path / "r.csv", [(f"t{i}", i % 3) for i in range(30)])
    write_csv(tmp_path / "t.csv", [("x", "1"), ("y", "other")])
    prepared = prepare(tmp_path, train="r.csv", test="t.csv")
    assert {label for _, label in pairs(prepared.train)} == {"0", "1", "2"}
    assert {type(row["label"]) for split in (prepared.train, prepared.test) for row in split} == {str}
    (tmp_path / "l.jsonl").write_text('{"text": "x", "label": ["1"]}')
    message = prepare_fault(tmp_path, train="r.csv", test="l.jsonl")
    assert "'label'" in message
    assert "int64 in data.train, list" in message


def test_a_rival_of_a_guess_is_told(tmp_path):
    write_csv(tmp_path / "r.csv", [(*row, "x") for row in tickets(30)], ("sentence", "queue", "body"))
    prepared = prepare(tmp_path, train="r.csv")
    assert prepared.columns == {"text": "sentence", "label": "queue"}
    assert prepared.warnings == (
        "data.train: took the column 'sentence' for 'text', though 'body' may be meant; data.columns decides",
    )
    mapped = {"text": "sentence", "label": "queue"}
    assert prepare(tmp_path, train="r.csv", columns=mapped, out="b").warnings == ()


# ------------------------------------------------------------------------------------------------------ where


@pytest.fixture
def shops(tmp_path) -> Path:
    rows = [(f"text {i}", "ab"[i % 2], ["de", "fr", "it"][i % 3], i % 4, str(i % 5 == 0)) for i in range(120)]
    write_csv(tmp_path / "r.csv", rows, ("text", "label", "lang", "stars", "spam"))
    frame = pd.read_csv(tmp_path / "r.csv", keep_default_na=False)
    frame.to_parquet(tmp_path / "r.parquet")
    return tmp_path


@pytest.mark.parametrize("name", ["r.csv", "r.parquet"])
@pytest.mark.parametrize(
    ("where", "query"),
    [
        ({"lang": "de"}, "lang == 'de'"),
        ({"lang": ["de", "it"]}, "lang in ['de', 'it']"),
        ({"stars": 3}, "stars == 3"),
        ({"stars": "3"}, "stars == 3"),
        ({"stars": [1, 2.0]}, "stars in [1, 2]"),
        ({"spam": True}, "spam"),
        ({"spam": "false", "lang": "fr"}, "not spam and lang == 'fr'"),
    ],
)
def test_where_keeps_the_rows_that_pandas_keeps(name, where, query, shops):
    expected = pd.read_csv(shops / "r.csv").query(query)
    prepared = prepare(shops, train=name, where=where)
    assert sorted(every(prepared)) == sorted(zip(expected["text"], expected["label"], strict=True))
    assert prepared.warnings == ()


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"lnag": "de"}, ["data.where.lnag", "data.train", "Did you mean 'lang'?", "Known: label, lang, spam"]),
        ({"lang": "en"}, ["data.where.lang", "'en'", "'de'", "'fr'", "'it'"]),
        ({"stars": [8, 9]}, ["data.where.stars", "8 or 9", "there are 0, 1, 2, 3"]),
        ({"text": "text 1", "lang": "de"}, ["data.where.lang", "'de'", "there are 'fr'"]),
    ],
)
def test_a_where_that_keeps_nothing_says_what_there_is(where, words, shops):
    message = prepare_fault(shops, train="r.csv", where=where)
    assert [word for word in words if word not in message] == [], message


def test_a_value_of_where_that_no_row_has_is_told(shops):
    prepared = prepare(shops, train="r.csv", where={"lang": ["de", "en"]})
    assert len(every(prepared)) == 40
    assert prepared.warnings == ("data.where.lang: no row of data.train has 'en'",)


def test_where_cannot_compare_lists(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"text": "x", "label": "a", "tags": ["t"]}\n')
    message = prepare_fault(tmp_path, train="r.jsonl", where={"tags": "t"})
    assert "data.where.tags: the column holds list" in message


# ------------------------------------------------------------------------------------------------ fingerprint


def test_the_fingerprint_stays_when_nothing_changes(tmp_path):
    rows = tickets(60)
    write_csv(tmp_path / "r.csv", rows)
    pd.DataFrame(rows, columns=["text", "label"]).to_parquet(tmp_path / "r.parquet")
    first = prepare(tmp_path, train="r.csv", out="a")
    assert prepare(tmp_path, train="r.csv", out="b").fingerprint == first.fingerprint
    assert prepare(tmp_path, train="r.csv", out="b").fingerprint == first.fingerprint
    assert open_data(tmp_path / "a").fingerprint == first.fingerprint
    assert prepare(tmp_path, train="r.parquet", out="c").fingerprint == first.fingerprint, (
        "the rows count, not the file"
    )


def test_the_fingerprint_changes_with_rows_options_and_task(tmp_path):
    rows = tickets(60)
    write_csv(tmp_path / "r.csv", rows)
    write_csv(tmp_path / "text.csv", [(rows[0][0] + "!", rows[0][1]), *rows[1:]])
    write_csv(tmp_path / "label.csv", [(rows[0][0], "c" if rows[0][1] != "c" else "a"), *rows[1:]])
    write_csv(tmp_path / "fewer.csv", rows[1:])

    class Renamed(Tickets):
        card = dataclasses.replace(CARD, name="letters")

    variants = [
        {"train": "r.csv"},
        {"train": "text.csv"},
        {"train": "label.csv"},
        {"train": "fewer.csv"},
        {"train": "r.csv", "test_size": 10},
        {"train": "r.csv", "limit": 50},
        {"train": "r.csv", "seed": 1},
        {"train": "r.csv", "options": {"problem": "multi"}},
        {"train": "r.csv", "task": Renamed()},
    ]
    found = [prepare(tmp_path, out=f"out{i}", **variant).fingerprint for i, variant in enumerate(variants)]
    assert len(set(found)) == len(variants)


def test_a_split_s_fingerprint_is_of_its_values():
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 2}]
    base = Split.from_rows(rows).fingerprint
    assert Split(pa.table({"label": [1, 2], "text": ["a", "b"]})).fingerprint == base, "not of the order of columns"
    assert Split(pa.concat_tables([Split.from_rows([row]).table for row in rows])).fingerprint == base, "nor of chunks"
    others = [rows[::-1], rows[:1], [rows[0], {"text": "b", "label": 3}], [{"body": r["text"]} for r in rows]]
    assert len({base, *(Split.from_rows(other).fingerprint for other in others)}) == 5


# ------------------------------------------------------------------------------------------------------ cache


def test_prepared_data_is_used_again(tmp_path):
    task = Tickets()
    write_csv(tmp_path / "r.csv", tickets(60))
    first = prepare(tmp_path, task, train="r.csv")
    calls = task.facts_calls
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    assert set(files) == {"train.arrow", "validation.arrow", "test.arrow", "meta.json"}
    again = prepare(tmp_path, task, train="r.csv")
    assert task.facts_calls == calls > 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()} == files
    assert (every(again), again.facts, again.columns, again.warnings, again.fingerprint) == (
        every(first),
        first.facts,
        first.columns,
        first.warnings,
        first.fingerprint,
    )
    (tmp_path / "r.csv").touch()
    prepare(tmp_path, task, train="r.csv")
    assert task.facts_calls == calls, "the content counts, not the time"


def test_prepared_data_is_made_anew_for_another_request(tmp_path):
    rows = tickets(60)
    write_csv(tmp_path / "r.csv", rows)
    prepare(tmp_path, train="r.csv")
    write_csv(tmp_path / "r.csv", [*rows, ("one more", "a")])
    assert len(every(prepare(tmp_path, train="r.csv"))) == 61
    assert len(every(prepare(tmp_path, train="r.csv", limit=30))) == 30
    assert len(prepare(tmp_path, train="r.csv", test_size=3).test) == 3


@pytest.mark.parametrize("name", ["train.arrow", "validation.arrow", "test.arrow", "meta.json"])
def test_a_deleted_file_is_made_again(name, tmp_path):
    write_csv(tmp_path / "r.csv", tickets(60))
    first = every(prepare(tmp_path, train="r.csv"))
    (tmp_path / "data" / name).unlink()
    with pytest.raises(RunFolderError, match=re.escape(f"{name}: is missing")):
        open_data(tmp_path / "data")
    assert every(prepare(tmp_path, train="r.csv")) == first
    assert every(open_data(tmp_path / "data")) == first


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", ["train.arrow", "test.arrow", "meta.json"])
def test_a_file_that_was_cut_off_is_told_and_made_again_once_deleted(name, keep, tmp_path):
    write_csv(tmp_path / "r.csv", tickets(60))
    first = every(prepare(tmp_path, train="r.csv"))
    path = tmp_path / "data" / name
    content = path.read_bytes()
    path.unlink()  # Not in place: the first result still has the file mapped.
    path.write_bytes(content[: int(len(content) * keep)])
    for attempt in (lambda: open_data(tmp_path / "data"), lambda: prepare(tmp_path, train="r.csv")):
        with pytest.raises(RunFolderError, match="is damaged") as caught:
            attempt()
        assert str(path) in str(caught.value)
        assert "delete" in str(caught.value)
    path.unlink()
    assert every(prepare(tmp_path, train="r.csv")) == first


def test_a_file_of_other_data_is_told(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(60))
    prepare(tmp_path, train="r.csv")
    (tmp_path / "data" / "train.arrow").unlink()
    (tmp_path / "data" / "test.arrow").rename(tmp_path / "data" / "train.arrow")
    prepare(tmp_path, train="r.csv", out="other")
    (tmp_path / "other" / "test.arrow").rename(tmp_path / "data" / "test.arrow")
    with pytest.raises(RunFolderError, match=r"train\.arrow: is damaged; delete .*meta\.json"):
        open_data(tmp_path / "data")


def test_what_a_killed_process_left_behind_does_not_matter(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(60))
    first = every(prepare(tmp_path, train="r.csv", out="good"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".train.arrow.x1y2").write_bytes(b"ARROW1 half a f")
    (tmp_path / "data" / "train.arrow").write_bytes(b"half of an older one, no meta.json")
    assert every(prepare(tmp_path, train="r.csv")) == first


def test_whoever_may_read_the_run_may_read_its_data(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(60))
    data = prepare(tmp_path, train="r.csv")
    encoded(data.train, Tickets(), context(), tmp_path / "data", "t1")
    files = [path for path in (tmp_path / "data").iterdir() if path.suffix in {".arrow", ".json"}]
    assert len(files) == 5
    assert len({path.stat().st_mode for path in files}) == 1


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(60))
    (tmp_path / "data").write_text("a file")
    with pytest.raises(RunFolderError, match="cannot be written"):
        prepare(tmp_path, train="r.csv")


def test_facts_that_are_not_json_are_the_task_s_fault(tmp_path):
    class Wrong(Tickets):
        def facts(self, rows, options):
            return {"labels": {"a", "b"}}

    write_csv(tmp_path / "r.csv", tickets(60))
    with pytest.raises(PluginError, match=r"tickets: facts\(\) must return plain JSON"):
        prepare(tmp_path, Wrong(), train="r.csv")


# ------------------------------------------------------------------------------------------------------ split


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    cut=st.slices(10),
    index=st.integers(-12, 11),
    picks=st.lists(st.integers(0, 100), max_size=5),
)
def test_a_split_is_a_sequence_like_a_list(sizes, cut, index, picks):
    ends = np.cumsum([0, *sizes])
    chunks = [
        pa.table(
            {"text": pa.array([f"t{i}" for i in range(a, b)], pa.string()), "label": pa.array(range(a, b), pa.int64())}
        )
        for a, b in pairwise(ends)
    ]
    split = Split(pa.concat_tables(chunks))
    rows = [{"text": f"t{i}", "label": i} for i in range(ends[-1])]
    assert list(split) == rows
    assert len(split) == len(rows)
    assert split[cut] == rows[cut]
    if -len(rows) <= index < len(rows):
        assert split[index] == rows[index]
    else:
        with pytest.raises(IndexError):
            split[index]
    picks = [pick % len(rows) for pick in picks] if rows else []
    assert split.rows(picks) == [rows[pick] for pick in picks]
    assert split.inputs(CARD) == [{"text": row["text"]} for row in rows]


def test_rows_of_different_kinds_make_no_split():
    with pytest.raises(DataError, match="row 2: column 'text' holds 5, but earlier rows hold values as 'a'"):
        Split.from_rows([{"text": "a"}, {"text": 5}])


# -------------------------------------------------------------------------------------------------- features


def context(**changes) -> TaskContext:
    given = {"facts": {"labels": ["a", "b", "c"]}, "options": {}, "params": {}, "max_length": 6}
    return TaskContext(**{**given, **changes})


def ticket_split(count=700, seed=0) -> Split:
    return Split.from_rows([{"text": text, "label": label} for text, label in tickets(count, seed)])


def test_features_are_what_the_task_encodes_and_are_encoded_once(tmp_path):
    task, split = Tickets(), ticket_split()
    first = encoded(split, task, context(), tmp_path / "cache", "tokenizer-1")
    assert task.encoded_rows == len(first) == 700
    expected = [features_of(row, context()) for row in split]
    assert list(first) == expected
    assert first.lengths.tolist() == [len(feature["input_ids"]) for feature in expected]
    assert first[-1] == expected[-1]
    assert first[250:262:3] == expected[250:262:3]
    with pytest.raises(IndexError):
        first[700]
    again = encoded(split, task, context(), tmp_path / "cache", "tokenizer-1")
    assert task.encoded_rows == 700
    assert list(again) == expected
    assert list(encoded(ticket_split(), Tickets(), context(), tmp_path / "cache", "tokenizer-1")) == expected
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1


def test_what_encoding_depends_on_encodes_anew_and_nothing_else(tmp_path):
    task, split = Tickets(), ticket_split(20)

    def calls(split=split, processor="p", **changes) -> int:
        before = task.encoded_rows
        got = encoded(split, task, context(**changes), tmp_path, processor)
        assert list(got) == [features_of(row, context(**changes)) for row in split]
        return task.encoded_rows - before

    assert calls() == 20
    assert calls(params={"train.epochs": 3, "lora.rank": 8}) == 0
    assert calls(seed=7) == 0
    assert calls(device="cuda") == 0
    assert calls(processor="q") == 20
    assert calls(max_length=2) == 20
    assert calls(params={"task.factor": 2}) == 20
    assert calls(facts={"labels": ["c", "b", "a"]}) == 20
    assert calls(options={"lower": True}) == 20
    assert calls(split=ticket_split(20, seed=1)) == 20
    assert calls(split=Split.from_rows([*split, split[0]])) == 21
    assert calls() == 0


def test_another_task_does_not_take_the_features(tmp_path):
    class Letters(Tickets):
        card = dataclasses.replace(CARD, name="letters")

        def encode(self, rows, context):
            return [{"input_ids": [len(row["text"])]} for row in rows]

    split = ticket_split(5)
    encoded(split, Tickets(), context(), tmp_path, "p")
    assert list(encoded(split, Letters(), context(), tmp_path, "p")) == [{"input_ids": [len(r["text"])]} for r in split]


def test_workers_that_ask_at_once_encode_once(tmp_path):
    task, split = Tickets(), ticket_split(600)
    found: list[list[dict]] = []
    threads = [
        threading.Thread(target=lambda: found.append(list(encoded(split, task, context(), tmp_path, "p"))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert task.encoded_rows == 600
    assert found == [[features_of(row, context()) for row in split]] * 4


@pytest.mark.parametrize("keep", [0, 9, 0.5, 0.99])
def test_features_that_were_cut_off_are_told_and_made_again_once_deleted(keep, tmp_path):
    task, split = Tickets(), ticket_split(50)
    encoded(split, task, context(), tmp_path, "p")
    (path,) = tmp_path.glob("*.arrow")
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(RunFolderError, match="is damaged") as caught:
        encoded(split, task, context(), tmp_path, "p")
    assert str(path) in str(caught.value)
    path.unlink()
    assert list(encoded(split, task, context(), tmp_path, "p")) == [features_of(row, context()) for row in split]
    assert task.encoded_rows == 100


def test_an_encoding_that_fails_leaves_nothing_that_counts(tmp_path):
    class Failing(Tickets):
        def encode(self, rows, context):
            if self.encoded_rows >= 256:
                raise RuntimeError("out of luck")
            return super().encode(rows, context)

    task, split = Failing(), ticket_split(600)
    with pytest.raises(RuntimeError, match="out of luck"):
        encoded(split, task, context(), tmp_path, "p")
    assert not list(tmp_path.glob("*.arrow"))
    (tmp_path / ".features-0.arrow.tmp").write_bytes(b"half")
    task.encoded_rows = -1000
    assert len(encoded(split, task, context(), tmp_path, "p")) == 600


class Given(Tickets):
    """Encodes row ``i`` as the feature of that place."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def encode(self, rows, context):
        return [self.features[row["i"]] for row in rows]

    def length(self, feature):
        return len(feature)


def kept(features, folder):
    split = Split.from_rows([{"i": i} for i in range(len(features))])
    return list(encoded(split, Given(features), context(), folder, "p"))


whole = st.integers(-(2**63), 2**63 - 1)
value_kinds = st.sampled_from(
    [
        whole,
        st.lists(whole, max_size=4),
        st.lists(st.integers(0, 30_000), max_size=4),
        st.lists(st.floats(allow_nan=False), max_size=4),
        st.lists(st.booleans(), max_size=4),
        st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=3),
        st.lists(st.one_of(st.none(), st.integers(0, 9)), max_size=3),
        st.text(st.characters(codec="utf-8"), max_size=5),
        st.lists(st.text(st.characters(codec="utf-8"), max_size=3), max_size=3),
        st.booleans(),
        st.floats(allow_nan=False),
    ]
)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_features_come_back_as_they_were(data):
    kinds = {name: data.draw(value_kinds) for name in data.draw(st.sampled_from([("a",), ("a", "b")]))}
    features = data.draw(
        st.lists(st.fixed_dictionaries({"always": st.just(1)}, optional=kinds), min_size=1, max_size=5)
    )
    # So many that they are encoded in several chunks, the later ones possibly of wider types.
    features = features[:1] * 256 + features
    with tempfile.TemporaryDirectory() as folder:
        got = kept(features, Path(folder))
    assert got == features
    assert [{k: type(v) for k, v in f.items()} for f in got] == [{k: type(v) for k, v in f.items()} for f in features]


@pytest.mark.parametrize("first", [{"n": 0}, {"pixels": None}], ids=["absent", "none"])
def test_arrays_and_tensors_come_back_as_arrays(first, tmp_path):
    import torch

    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=(3, 4, 5)).astype(np.float32),
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        torch.arange(4.0).reshape(2, 2),
        torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        np.zeros((0, 3)),
        np.array(7),
    ]
    # A whole chunk without an array comes first.
    got = kept([first] * 256 + [{"pixels": array} for array in arrays], tmp_path)[256:]
    for array, feature in zip(arrays, got, strict=True):
        expected = array.float().numpy() if isinstance(array, torch.Tensor) else array
        assert isinstance(feature["pixels"], np.ndarray)
        assert (feature["pixels"].dtype, feature["pixels"].shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(feature["pixels"], expected)
        feature["pixels"][...] = 1  # may be written to


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ([], "one mapping of features for each row"),
        (["text"], "one mapping of features for each row"),
        ([{"x": [1]}, {"x": "a"}], "values under 'x' that cannot be kept"),
        ([{"x": object()}], "values under 'x' that cannot be kept"),
        ([{"x": 2**70}], "values under 'x' that cannot be kept"),
        ([{"x": 1}] * 256 + [{"x": "a"}], "features of different types"),
    ],
    ids=["none", "no-mapping", "mixed", "object", "huge", "mixed-chunks"],
)
def test_features_that_cannot_be_kept_are_the_task_s_fault(features, words, tmp_path):
    class Wrong(Given):
        def encode(self, rows, context):
            return [self.features[row["i"]] for row in rows] if self.features else []

    split = Split.from_rows([{"i": i} for i in range(max(1, len(features)))])
    with pytest.raises(PluginError, match=re.escape(words)) as caught:
        encoded(split, Wrong(features), context(), tmp_path, "p")
    assert "task tickets: encode()" in str(caught.value)
    assert not list(tmp_path.glob("*.arrow"))


def test_features_of_a_real_task_train_the_model_s_tokenizer(tmp_path, tiny_model, reviews, catalog):
    """Text classification with a tokenizer: prepared, encoded, memory-mapped, equal to encoding directly."""
    from transformers import AutoTokenizer

    task = catalog.task("text-classification")
    options = {option.name: option.default for option in task.card.options}
    prepared = prepare_data(DataSection(train=str(reviews)), task, options, 0, tmp_path / "data", tmp_path)
    frame = pd.read_csv(reviews).drop_duplicates("text")
    assert sorted(every(prepared)) == sorted(zip(frame["text"], frame["label"], strict=True))
    assert prepared.facts["labels"] == ["negative", "positive"]
    train = Counter(label for _, label in pairs(prepared.train))
    assert prepared.facts["counts"] == {"negative": train["negative"], "positive": train["positive"]}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    where = context(facts=prepared.facts, options=options, max_length=8, processor=tokenizer)
    got = encoded(prepared.train, task, where, tmp_path / "cache", "p")
    for row, feature in zip(prepared.train, got, strict=True):
        direct = dict(tokenizer(row["text"], truncation=True, max_length=8))
        assert feature == {**direct, "labels": int(row["label"] == "positive")}


# --------------------------------------------------------------------------------------------------- batches


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 50), max_size=300),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 3),
)
def test_batches_hold_each_row_once(lengths, batch_size, seed):
    def batches(seed):
        found = grouped_batches(np.array(lengths, dtype=np.int64), batch_size, np.random.default_rng(seed))
        return [batch.tolist() for batch in found]

    got = batches(seed)
    assert sorted(index for batch in got for index in batch) == list(range(len(lengths)))
    assert all(0 < len(batch) <= batch_size for batch in got)
    assert len(got) == math.ceil(len(lengths) / batch_size), "at most one batch is short"
    assert batches(seed) == got
    if lengths:
        assert max(lengths[index] for index in got[0]) == max(lengths)


def padding(lengths, batches) -> int:
    return sum(int(lengths[batch].max()) * len(batch) - int(lengths[batch].sum()) for batch in batches)


@pytest.mark.parametrize(("count", "at_most"), [(200, 0.6), (2000, 0.15), (20_000, 0.1)])
def test_rows_of_a_batch_are_close_in_length(count, at_most):
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(3, 0.7, count).astype(int) + 1
    grouped = grouped_batches(lengths, 16, np.random.default_rng(1))
    order = rng.permutation(count)
    random_order = [order[at : at + 16] for at in range(0, count, 16)]
    assert padding(lengths, grouped) < at_most * padding(lengths, random_order)


def test_batches_differ_between_epochs_and_are_in_no_order_of_length():
    lengths = np.random.default_rng(0).integers(1, 100, 2000)
    rng = np.random.default_rng(0)
    first, second = grouped_batches(lengths, 8, rng), grouped_batches(lengths, 8, rng)
    assert {frozenset(batch.tolist()) for batch in first} != {frozenset(batch.tolist()) for batch in second}
    means = [lengths[batch].mean() for batch in first]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.25


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_holds_at_least_one_row(size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {size}"):
        grouped_batches(np.array([1, 2]), size, np.random.default_rng(0))


def test_a_test_split_with_several_references_goes_with_one_reference_a_row(tmp_path):
    """Data sets as DialogSum have one summary for each training row, and three for each test row."""
    for name, rows in (
        ("train.jsonl", [{"text": f"t{i}", "label": f"s{i}"} for i in range(8)]),
        ("test.jsonl", [{"text": f"u{i}", "label": [f"s{i}", "other"]} for i in range(3)]),
    ):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    several = Column("label", "texts", "a summary, or several", target=True)
    card = dataclasses.replace(CARD, columns=(Column("text", "text", "a text"), several))
    task = type("Several", (Tickets,), {"card": card, "facts": lambda self, rows, options: {}})()
    prepared = prepare(tmp_path, task=task, train="train.jsonl", test="test.jsonl", validation_size=2)
    assert {row["label"][0] for row in prepared.train} <= {f"s{i}" for i in range(8)}
    assert sorted(row["label"] for row in prepared.test) == [[f"s{i}", "other"] for i in range(3)]
    with pytest.raises(DataError, match="one kind of value"):
        prepare(tmp_path, train="train.jsonl", test="test.jsonl", validation_size=2, out="other")


# ------------------------------------------------------------------------------------------------------- folds


def opened_folds(folder: Path, folds: int, **section):
    """Prepare the data and its folds in ``folder``, and return the splits of each fold."""
    data = folder / "data"
    prepared = prepare_data(DataSection(**section), Tickets(), {}, 0, data, folder, folds)
    prepare_folds(prepared, Tickets(), folds, 0, data)
    return [prepared, *(open_data(data / f"fold-{number}") for number in range(1, folds))]


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_each_row_is_held_out_by_one_fold_and_learned_by_all_others(folds, tmp_path):
    write_csv(tmp_path / "r.csv", tickets(200))
    opened = opened_folds(tmp_path, folds, train="r.csv", test_size=20)
    pool = sorted(pairs(opened[0].train) + pairs(opened[0].validation))
    assert sorted(row for fold in opened for row in pairs(fold.validation)) == pool
    for fold in opened:
        assert sorted(pairs(fold.train) + pairs(fold.validation)) == pool
        assert pairs(fold.test) == pairs(opened[0].test)
        assert fold.facts == opened[0].facts
        # 180 rows are left: each fold holds out its share, but for what stratifying moves.
        assert abs(len(fold.validation) - 180 / folds) <= 2
        assert fold.train.fingerprint not in {other.train.fingerprint for other in opened if other is not fold}


def test_folds_are_stratified_as_by_scikit_learn(tmp_path):
    from sklearn.model_selection import StratifiedKFold

    write_csv(tmp_path / "r.csv", tickets(300))
    prepared, *further = opened_folds(tmp_path, 4, train="r.csv")
    labels = [label for _, label in pairs(prepared.train)]
    splitter = StratifiedKFold(3, shuffle=True, random_state=0)
    for label in "abc":
        parts = [sum(labels[i] == label for i in held) for _, held in splitter.split(labels, labels)]
        mine = [sum(row[1] == label for row in pairs(fold.validation)) for fold in further]
        assert max(mine) - min(mine) <= 1
        assert sorted(mine) == sorted(parts)


def test_rows_with_the_same_inputs_are_held_out_together(tmp_path):
    rows = tickets(60) + [(f"twin {i % 10}", "a" if i < 10 else "b") for i in range(20)]
    write_csv(tmp_path / "r.csv", rows)
    _, *further = opened_folds(tmp_path, 4, train="r.csv", deduplicate=False)
    for fold in further:
        held = {text for text, _ in pairs(fold.validation) if text.startswith("twin")}
        learned = [text for text, _ in pairs(fold.train)]
        # The plain cut of the validation split does not look at texts where deduplication is off.
        own = {text for text, _ in pairs(opened_folds(tmp_path, 4, train="r.csv", deduplicate=False)[0].validation)}
        assert not (held - own) & set(learned)


def test_folds_are_written_once_and_anew_for_other_data(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(60))
    opened_folds(tmp_path, 3, train="r.csv")
    file = tmp_path / "data/fold-1/train.arrow"
    before = file.stat().st_mtime_ns
    opened_folds(tmp_path, 3, train="r.csv")
    assert file.stat().st_mtime_ns == before
    write_csv(tmp_path / "r.csv", tickets(60, seed=1))
    opened_folds(tmp_path, 3, train="r.csv")
    assert file.stat().st_mtime_ns != before


def test_more_folds_than_rows_are_an_error(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(12))
    with pytest.raises(DataError, match="ask for fewer folds"):
        opened_folds(tmp_path, 11, train="r.csv", test_size=2)


def test_the_validation_split_that_a_recipe_gives_is_the_first_fold(tmp_path):
    rows = tickets(90)
    write_csv(tmp_path / "train.csv", rows[:60])
    write_csv(tmp_path / "dev.csv", rows[60:])
    opened = opened_folds(tmp_path, 3, train="train.csv", validation="dev.csv", test_size=6)
    assert sorted(pairs(opened[0].validation)) == sorted(rows[60:])
    assert [len(fold.validation) for fold in opened[1:]] == [27, 27]
