"""Reading data against csv, json, pandas and pyarrow."""

from __future__ import annotations

import csv
import gzip
import json
import math
import random
import re
import shutil
import struct
import tempfile
import tracemalloc
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.data.encodings import Room
from autoft.data.parquet_pages import page_values, texts_of_deltas
from autoft.data.sources import load_source, source_card
from autoft.errors import DataError
from autoft.paths import package_path


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


# --------------------------------------------------------------------------------------------------- formats

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


# ---------------------------------------------------------------------------------------------------- faults

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
    assert "hub://owner/name@revision#split" in fault("hub://../..", tmp_path)


def test_a_small_file_that_unpacks_to_more_than_there_is_memory_for_is_refused(tmp_path, monkeypatch):
    import datasets

    rows = [("good " * 20, 1)] * 20_000
    text = "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)
    with gzip.open(tmp_path / "lines.csv.gz", "wt") as file:
        file.write(text)
    with gzip.open(tmp_path / "line.json.gz", "wt") as file:
        file.write(text.replace("\n", " "))
    pq.write_table(pa.table({"text": [text for text, _ in rows]}), tmp_path / "rows.parquet")
    table = pa.table({"text": [text for text, _ in rows]})
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), ["y" * 10_000])
    files = (("file", pa.ipc.new_file, "zstd", table), ("stream", pa.ipc.new_stream, "lz4", table))
    for name, new, packing, packed in (*files, ("known", pa.ipc.new_file, None, pa.table({"text": long}))):
        with new(
            tmp_path / f"{name}.arrow", packed.schema, options=pa.ipc.IpcWriteOptions(compression=packing)
        ) as writer:
            writer.write_table(packed)
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    shutil.copy(tmp_path / "stream.arrow", tmp_path / "saved" / "data-00000-of-00001.arrow")
    names = ("lines.csv.gz", "line.json.gz", "rows.parquet", "file.arrow", "stream.arrow", "known.arrow", "saved")
    assert all((tmp_path / name).stat().st_size < 100_000 for name in names)
    assert load(tmp_path / "lines.csv.gz").num_rows == load(tmp_path / "rows.parquet").num_rows == 20_000
    assert load(tmp_path / "file.arrow").num_rows == load(tmp_path / "saved").num_rows == 20_000
    free = SimpleNamespace(total=10**9, available=2 * 10**6)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    for name in names:
        assert "takes more than the 1 MB that there is memory for" in fault(tmp_path / name)


def same_values(kind: str) -> pa.Array:
    """Return 2000 values, of 8 kB each, of which Arrow holds one."""
    value, rows = "y" * 8000, pa.array([0] * 2000, pa.int32())
    known = pa.DictionaryArray.from_arrays(rows, [value])
    views = pa.py_buffer(struct.pack("<i4sii", len(value), b"yyyy", 0, 0) * 2000)
    letters = pa.array(["y"] * 1000)
    return {
        "views": lambda: pa.Array.from_buffers(pa.string_view(), 2000, [None, views, pa.py_buffer(value.encode())]),
        "runs": lambda: pa.RunEndEncodedArray.from_arrays([2000], [value]),
        "lists of views": lambda: pa.ListViewArray.from_arrays(rows, pa.array([1000] * 2000, pa.int32()), letters),
        "inner dictionary": lambda: pa.StructArray.from_arrays([known], ["a"]),
        "list of it": lambda: pa.ListArray.from_arrays(pa.array(range(2001), pa.int32()), known),
        "dictionary of lists": lambda: pa.DictionaryArray.from_arrays(rows, pa.array([["y"] * 1000])),
        "nulls": lambda: pa.nulls(2_000_000),
        "list of nulls": lambda: pa.LargeListArray.from_arrays([0, 2_000_000], pa.nulls(2_000_000)),
        "nulls of one size": lambda: pa.FixedSizeListArray.from_arrays(pa.nulls(2_000_000), 1000),
        "union": lambda: pa.UnionArray.from_dense(pa.array([0] * 2000, pa.int8()), rows, [pa.array([value])]),
    }[kind]()


SAME_VALUES = (
    "views", "runs", "lists of views", "inner dictionary", "list of it", "dictionary of lists", "nulls", "list of nulls",
    "nulls of one size", "union",
)  # fmt: skip


@pytest.mark.parametrize("kind", SAME_VALUES)
def test_values_that_a_file_holds_once_and_uses_often_are_refused_where_the_memory_would_end(
    tmp_path, monkeypatch, kind
):
    values = same_values(kind)
    path = tmp_path / "rows.arrow"
    with pa.ipc.new_file(path, pa.schema({"text": values.type})) as writer:
        writer.write_table(pa.table({"text": values}))
    assert path.stat().st_size < 100_000
    assert load(path).num_rows == len(values)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=10**9, available=2 * 10**6))
    assert "takes more than the 1 MB that there is memory for" in fault(path)


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", None])
def test_a_parquet_file_of_any_encoding_is_read(tmp_path, encoding):
    texts, lists = ["a", "ab", None, "ab"], [["ab"], [], None, ["ab", "b"]]
    names = ("text", "lists.list.element")
    packed = {"use_dictionary": False, "column_encoding": dict.fromkeys(names, encoding)} if encoding else {}
    pq.write_table(pa.table({"text": texts, "lists": lists}), tmp_path / "rows.parquet", **packed)
    assert load(tmp_path / "rows.parquet").to_pydict() == {"text": texts, "lists": lists}


@pytest.mark.parametrize(
    "kind",
    ["text", "list", "bytes", "numbers in lists", "differences", "differences in lists", "list beside differences"],
)
def test_a_parquet_file_is_read_no_further_than_there_is_memory_for(tmp_path, monkeypatch, kind):
    known = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), ["y" * 10_000])
    values = {
        "text": lambda: known,
        "list": lambda: pa.ListArray.from_arrays([0, 2000], known),
        "bytes": lambda: pa.array([b"y" * 10_000] * 2000, pa.binary(10_000)),
        "numbers in lists": lambda: pa.ListArray.from_arrays([0, 2_000_000], pa.repeat(7, 2_000_000)),
        "differences": lambda: pa.array(["y" * 10_000] * 2000),
        "differences in lists": lambda: pa.ListArray.from_arrays([0, 2000], pa.array(["y" * 10_000] * 2000)),
        "list beside differences": lambda: pa.ListArray.from_arrays([0, 2000], known),
    }[kind]()
    packed = {}
    if "differences" in kind:
        beside = kind.startswith("list beside")
        written = {"other": "DELTA_BYTE_ARRAY"} | (
            {} if beside else {"text": "DELTA_BYTE_ARRAY", "text.list.element": "DELTA_BYTE_ARRAY"}
        )
        packed = {"use_dictionary": ["text.list.element"] if beside else False, "column_encoding": written}
    pq.write_table(pa.table({"text": values, "other": ["a"] * len(values)}), tmp_path / "rows.parquet", **packed)
    assert (tmp_path / "rows.parquet").stat().st_size < 100_000
    pool, usual = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=10**9, available=2 * 10**6))
    pa.set_memory_pool(pool)
    try:
        assert "takes more than the 1 MB that there is memory for" in fault(tmp_path / "rows.parquet")
    finally:
        pa.set_memory_pool(usual)
    assert pool.max_memory() < 2 * 10**6


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "zstd", "lz4"])
def test_what_texts_take_that_are_written_as_differences_is_known_before_they_are_read(tmp_path, version, codec):
    numbers = random.Random(0)
    texts = [
        None if numbers.random() < 0.1 else "word" * numbers.randrange(20) + str(numbers.random()) for _ in range(500)
    ]
    lists = [texts[: numbers.randrange(9)] for _ in texts]
    path, room = tmp_path / "rows.parquet", Room(tmp_path)
    encodings = {
        "texts": "DELTA_BYTE_ARRAY",
        "lists.list.element": "DELTA_BYTE_ARRAY",
        "lengths": "DELTA_LENGTH_BYTE_ARRAY",
    }
    table = pa.table({"texts": texts, "lists": lists, "lengths": texts, "plain": texts})
    sizes = {
        "data_page_version": version,
        "compression": codec,
        "row_group_size": 300,
        "data_page_size": 2000,
        "write_batch_size": 50,
    }
    pq.write_table(table, path, use_dictionary=False, column_encoding=encodings, **sizes)
    assert texts_of_deltas(path, {0: (0, 1), 1: (1, 3), 2: (0, 1), 3: (0, 1)}, room) == {0, 1, 2}
    values = [*texts, *texts, *(text for one in lists for text in one)]
    known = sum(map(len, filter(None, values)))
    # Beside them stand 8 bytes a value, and what the pages hold.
    assert known < room._taken - 8 * len(values) < known * 1.5
    assert load(path).to_pylist() == table.to_pylist()
    damaged = bytearray(path.read_bytes())
    at = pq.read_metadata(path).row_group(0).column(1).data_page_offset
    for _ in range(30):
        changed = bytearray(damaged)
        changed[at + numbers.randrange(400)] ^= 1 << numbers.randrange(8)
        path.write_bytes(changed)
        with suppress(DataError):
            load(path)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_the_values_in_the_pages_of_a_parquet_file_are_counted(tmp_path, version):
    lists = [[1, 2, 3], [], None, [4], [5, None]] * 100
    table = pa.table({"flat": range(500), "lists": lists, "texts": [[str(n), "b"] for n in range(500)]})
    path, sizes = tmp_path / "rows.parquet", {"row_group_size": 300, "data_page_size": 64, "write_batch_size": 16}
    pq.write_table(table, path, use_dictionary=["texts.list.element"], data_page_version=version, **sizes)
    # An empty list and an absent one stand for a value each.
    assert page_values(path, [1, 2]) == {1: 800, 2: 1000}
    damaged = path.read_bytes()
    at = pq.read_metadata(path).row_group(0).column(1).data_page_offset
    for change in (b"\xff" * 12, b"\x15\x00\x15\x01\x15\x01", b"\x15\x00\x15\x02\x15\x02\x25\x02\x00"):
        path.write_bytes(damaged[:at] + change + damaged[at + len(change) :])
        with pytest.raises(pa.ArrowInvalid, match="of its columns or pages is damaged"):
            page_values(path, [1, 2])


def test_every_encoding_of_arrow_gives_the_same_rows(tmp_path):
    texts = pa.array(["good", None, "bad", "good", "a text of more than twelve bytes"])
    lists = pa.array([["x", "y"], None, ["y"], [], ["y", "z"]])
    overlapping = pa.ListViewArray.from_arrays(
        pa.array([0, 0, 1, 0, 1], pa.int32()), pa.array([2, 0, 1, 0, 2], pa.int32()), pa.array(["x", "y", "z"]),
        mask=pa.array([False, True, False, False, False]),
    )  # fmt: skip
    ways = {
        "dictionary": (texts.dictionary_encode(), texts),
        "runs": (pc.run_end_encode(texts), texts),
        "views": (texts.cast(pa.string_view()), texts),
        "list views": (overlapping, lists),
        "lists of a dictionary": (pa.ListArray.from_arrays([0, 2, 2, 3, 3, 5], pa.array([*"xyyyz"]).dictionary_encode()), None),
        "a dictionary of lists": (pa.DictionaryArray.from_arrays([0, None, 1, 2, 3], lists.drop_null()), lists),
        "structs": (pa.StructArray.from_arrays([texts.cast(pa.string_view()), overlapping], ["a", "b"]), None),
        "maps": (pa.MapArray.from_arrays([0, 1, 1, 2, 2, 3], pa.array([*"aba"]).dictionary_encode(), [1, 2, 3]), None),
    }  # fmt: skip
    table = pa.table({name: values for name, (values, _) in ways.items()})
    with pa.ipc.new_file(tmp_path / "rows.arrow", table.schema) as writer:
        writer.write_table(table.slice(0, 2))
        writer.write_table(table.slice(2))
    rows = load(tmp_path / "rows.arrow")
    for name, (values, same) in ways.items():
        assert rows[name].to_pylist() == (values if same is None else same).to_pylist(), name
    # What preparing does to rows, and Arrow does to none of these encodings but the first.
    assert rows.filter(pa.array([True] * 5)).take([4, 0]).num_rows == 2


def test_a_selection_of_rows_that_an_old_version_saved_is_not_ignored(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    state = tmp_path / "saved" / "state.json"
    state.write_text(state.read_text().replace("{", '{"_indices_data_files": [{"filename": "indices.arrow"}],', 1))
    assert "saved a selection of its rows" in fault("saved", tmp_path)


LIMITED = {
    "line.csv": b"text,label\n" + b"a" * 500_000,
    "quote.csv": b'text,label\n"' + b"a\n" * 250_000,
    "line.jsonl": b'{"text": [' + b"{}," * 100_000 + b"{}]}\n",
    "row.json": b'[{"text": [' + b"{}," * 100_000 + b"{}]}]",
    "large.csv": b"text,label\n" + b"a,b\n" * 300_000,
    "short.csv": b"text,label\n" + b"a,b\n" * 200_000,
    "keys.jsonl": b"".join(b'{"%d": 1}\n' % number for number in range(1000)),
}


@pytest.mark.parametrize("name", LIMITED)
def test_text_that_takes_more_than_there_is_memory_for_is_refused_before_it_does(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(LIMITED[name])
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=10**9, available=2 * 10**6))
    tracemalloc.start()
    try:
        words = "is not closed" if name == "quote.csv" else "takes more than the 1 MB that there is memory for"
        assert words in fault(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 6 * 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("part", [1, 3, 40])
def test_an_array_is_read_part_by_part_as_json_reads_it(tmp_path, monkeypatch, part):
    monkeypatch.setattr("autoft.data.files._TEXT", part)
    good = ' [ {"a": 1.5, "b": "\\u00e4\\n\\"x"} ,\n{"b":null, "a":-2e3},{"a": 0.25, "b": "é☕"}] \n'
    path = tmp_path / "rows.json"
    path.write_text(good, encoding="utf-8")
    assert load(path).to_pylist() == json.loads(good)
    worse = [good[:end] for end in range(2, len(good) - 3)]
    worse += [good.replace(",\n", mark) for mark in ("", ",,", ";", "]")] + [
        good.replace("] ", ",] "),
        good + "]",
        good + "1",
    ]
    for text in worse:
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)
        path.write_text(text, encoding="utf-8")
        assert "is not JSON" in fault(path), text


def test_a_csv_file_with_more_columns_than_values_are_read_at_once_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("autoft.data.files._CELLS", 3)
    write_csv(tmp_path / "wide.csv", [[*"abcd"], [*"efgh"]], [*"wxyz"])
    table = load(tmp_path / "wide.csv")
    assert table.to_pydict() == {"w": ["a", "e"], "x": ["b", "f"], "y": ["c", "g"], "z": ["d", "h"]}
    # Each part of each of very many columns would be gone through by itself.
    assert {column.num_chunks for column in table.columns} == {1}


def test_a_key_with_half_of_a_surrogate_pair_is_told_with_its_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "a", "\\ud800": 1}\n')
    assert "line 2: the key '\\ud800' holds half of a surrogate pair" in fault("rows.jsonl", tmp_path)


def test_utf_16_without_a_mark_is_told(tmp_path):
    (tmp_path / "rows.csv").write_bytes("text,label\na,b\n".encode("utf-16-le"))
    assert "zero bytes, as UTF-16 text does" in fault("rows.csv", tmp_path)


def test_a_saved_data_set_that_names_files_elsewhere_is_refused(tmp_path):
    import datasets

    for name in ("saved", "other"):
        datasets.Dataset.from_dict({"text": [name]}).save_to_disk(tmp_path / name)
    state = tmp_path / "saved" / "state.json"
    state.write_text(state.read_text().replace("data-", "../other/data-"))
    assert "names '../other/data-00000-of-00001.arrow', which is not in it" in fault("saved", tmp_path)


# --------------------------------------------------------------------------------------------------- folders


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


# -------------------------------------------------------------------------------------------------- packages


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


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_a_binary_file_with_any_byte_changed_is_read_whole_or_told_in_a_sentence(kind, tmp_path):
    rows = [{"text": f"row {i}", "label": i % 2, "tags": ["a", "b"][: i % 3]} for i in range(9)]
    table = pa.Table.from_pylist(rows)
    path, read = tmp_path / f"r.{kind}", 0
    if kind == "arrow":
        pyarrow.feather.write_feather(table, str(path), compression="uncompressed")
    else:
        pq.write_table(table, path)
    whole = path.read_bytes()
    for at, change in [(at, 0xFF) for at in range(0, len(whole), 7)] + [(at, 1) for at in range(3, len(whole), 7)]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :])
        with suppress(DataError):
            read += len(load(path).to_pylist()) > 0
    assert 0 < read < len(whole)


def test_damaged_notes_of_the_datasets_library_are_told(tmp_path):
    for notes in ("{", "[]", '{"info": 1}', '{"info": {"features": 3}}'):
        table = pa.table({"text": ["a"], "label": [0]}).replace_schema_metadata({"huggingface": notes})
        pq.write_table(table, tmp_path / "r.parquet")
        assert "what the datasets library says of the columns is damaged" in fault(tmp_path / "r.parquet")


@pytest.mark.parametrize("kind", ["json", "jsonl"])
@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000 + "]" * 5000])
def test_json_that_python_does_not_read_is_told(kind, value, tmp_path):
    (tmp_path / f"r.{kind}").write_text('{"text": "a", "label": ' + value + "}\n")
    assert "cannot be read" in fault(tmp_path / f"r.{kind}") or "is not JSON" in fault(tmp_path / f"r.{kind}")


def test_the_card_of_data_is_the_page_beside_its_files(tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "train.csv").write_text("text,label\na,b\n")
    assert source_card("films/train.csv", tmp_path) is None
    card = tmp_path / "films" / "README.md"
    card.write_text("---\nlicense: mit\n---\n")
    assert source_card("films/train.csv", tmp_path) == source_card("films", tmp_path) == card


def test_the_card_of_data_of_the_hub_is_the_one_that_came_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "datasets--me--films"
    for commit in ("c" * 40, "d" * 40):
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "snapshots" / commit / "README.md").write_text(commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("c" * 40)
    assert source_card("hub://me/films#train", tmp_path).read_text() == "c" * 40
    assert source_card(f"hub://me/films@{'d' * 40}", tmp_path).read_text() == "d" * 40
    assert source_card("hub://me/others", tmp_path) is None
