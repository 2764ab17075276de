"""The data layer: read sources, map columns to roles, cut splits, keep encoded features.

:func:`prepare_data` runs once a run and writes Arrow files; workers open them memory-mapped with :func:`open_data`, and
:func:`encoded` has each split tokenized once for all trials. Tables stay in Arrow: only rows that are looked at become
Python objects.
"""

from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import importlib.util
import inspect
import io
import json
import os
import re
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast, overload

import filelock
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from autoft.contracts import Column, Row, Task, TaskCard, TaskContext
from autoft.errors import DataError, PluginError, RunFolderError, closest, first_line, unknown_name
from autoft.recipe import DataSection
from autoft.rundir import read_json, write_json
from autoft.version import __version__

__all__ = [
    "Features",
    "PreparedData",
    "Split",
    "encoded",
    "grouped_batches",
    "hub_parts",
    "is_data_file",
    "load_inputs",
    "load_source",
    "map_columns",
    "open_data",
    "package_path",
    "prepare_data",
    "table_of_rows",
]

SLICE = "slice:"
"""How roles begin that the recipe's ``data.slices`` adds to the rows; the column's name follows."""

SPLITS = ("train", "validation", "test")
FILE_KINDS = frozenset({"image", "audio"})
"""Kinds of columns whose text names a file, relative to the data's own folder."""
TEXTS = "texts"
"""Kind of a column that holds a text or a list of such."""

_CHUNK = 4096
_ENCODE_CHUNK = 256
_CUT_SHARE = 0.15
_CUT_MOST = {"validation": 1000, "test": 2000}
# Files up to this size are known by their content, larger ones by size and time of change.
_HASHED_BYTES = 64 * 2**20

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


# ---------------------------------------------------------------------------------------------------- sources


def load_source(source: str, *, base: Path, where: str) -> pa.Table:
    """Read a data source of a recipe.

    Args:
        source: a csv, tsv, json, jsonl, parquet or arrow file, text also as .gz; a ``save_to_disk`` folder; a folder
            of several files of one kind; ``hub://owner/name[:config][@revision][#split]``; or
            ``package://module/path``.
        base: the recipe's folder; relative paths start there, then in the working directory.
        where: the recipe's key, as ``data.train``, for messages.

    Returns:
        The rows, with at least one row and distinct column names. Class numbers that carry names (``ClassLabel`` of
        the ``datasets`` library) are replaced by the names.

    Raises:
        DataError: it cannot be found or read, or holds no rows.
    """
    try:
        return _checked(_read(source, base), source)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error.__cause__


def package_path(source: str) -> Path:
    """Return the file or folder that ``package://module/path`` names, without importing the package.

    Raises:
        DataError: the form is wrong, the package is not installed, or it holds no such path.
    """
    rest = source.removeprefix("package://")
    module, _, inside = rest.partition("/")
    if not source.startswith("package://") or not module.isidentifier() or not inside.strip("/"):
        raise DataError(f"{source}: needs the form package://module/path/in/the/package")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise DataError(
            f"{source}: the Python package that provides the module {module!r} is not installed here; "
            f"pip install it ({module.replace('_', '-')} may be its name)"
        )
    folders = [Path(folder).resolve() for folder in spec.submodule_search_locations or ()]
    if not folders:
        raise DataError(f"{source}: {module!r} is a module of a single file and holds no data")
    for folder in folders:
        path = (folder / inside).resolve()
        if not path.is_relative_to(folder):
            raise DataError(f"{source}: the path leaves the package")
        if path.exists():
            return path
    raise DataError(f"{source}: the package has no such path{_near_file(folders[0] / inside)}")


def _read(source: str, base: Path) -> pa.Table:
    if source.startswith("hub://"):
        return _read_hub(source)
    path = package_path(source) if source.startswith("package://") else _local_path(source, base)
    return _read_folder(path) if path.is_dir() else _read_file(path)


def _local_path(source: str, base: Path) -> Path:
    if "://" in source:
        scheme = source.partition("://")[0]
        near = closest(scheme, ["hub", "package"])
        hint = f" Did you mean {near}://?" if near else ""
        raise DataError(f"{source}: allowed are a local path, hub:// and package://; given {scheme}://.{hint}")
    path = Path(source).expanduser()
    tried = [base / path, Path.cwd() / path]
    for candidate in tried:
        if candidate.exists():
            return candidate
    folders = " and ".join(dict.fromkeys(str(candidate.parent) for candidate in tried))
    raise DataError(f"no such file: {source} (looked in {folders}){_near_file(*tried)}")


def _near_file(*paths: Path) -> str:
    for path in paths:
        if path.parent.is_dir():
            near = closest(path.name, [entry.name for entry in path.parent.iterdir()])
            if near:
                return f"; did you mean {near!r}?"
    return ""


def _read_folder(folder: Path) -> pa.Table:
    listing = folder / "dataset_dict.json"
    if listing.is_file():
        try:
            names = [str(name) for name in json.loads(listing.read_text(encoding="utf-8"))["splits"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{listing}: is damaged ({first_line(error)}); save the data set again") from error
        raise DataError(
            f"{folder}: holds the splits {', '.join(names)}; name one, as {folder.name}/{(names or ['train'])[0]}"
        )
    if (folder / "state.json").is_file():
        return _read_saved(folder)
    data = sorted(path for path in folder.iterdir() if is_data_file(path))
    if not data:
        raise DataError(f"{folder}: holds no data files; allowed: {_allowed()}")
    kinds = sorted({_kind(path) for path in data})
    if len(kinds) > 1:
        raise DataError(f"{folder}: holds files of several kinds ({', '.join(kinds)}); name one file, or keep one kind")
    splits = [path.name for path in data if path.name.split(".")[0].lower() in {*SPLITS, "dev", "valid", "val"}]
    if splits and len(data) > 1:
        raise DataError(
            f"{folder}: holds files of different splits ({', '.join(splits)}); name one, as {folder.name}/{splits[0]}"
        )
    tables = [_checked(_read_file(path), str(path)) for path in data]
    for path, table in zip(data, tables, strict=True):
        if set(table.column_names) != set(tables[0].column_names):
            raise DataError(
                f"{folder}: {data[0].name} has the columns {', '.join(tables[0].column_names)}, "
                f"but {path.name} has {', '.join(table.column_names)}"
            )
    return _concat(tables, str(folder))


def _read_saved(folder: Path) -> pa.Table:
    from datasets import Dataset, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(f"{folder}: the saved data set is damaged ({first_line(error)})") from error
    assert isinstance(saved, Dataset)
    return _arrow_of(saved)


_HUB = re.compile(
    r"hub://(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^@#]+))?(?:@(?P<revision>[^#]+))?(?:#(?P<split>.+))?"
)


def hub_parts(source: str) -> dict[str, str | None]:
    """Return the ``name``, ``config``, ``revision`` and ``split`` that a ``hub://`` source names.

    Raises:
        DataError: the form is wrong.
    """
    form = _HUB.fullmatch(source)
    if form is None:
        raise DataError(
            f"{source}: needs the form hub://owner/name@revision#split, or hub://owner/name:config@revision#split"
        )
    return form.groupdict()


def _read_hub(source: str) -> pa.Table:
    form = hub_parts(source)
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        loaded = load_dataset(form["name"], form["config"], revision=form["revision"], split=form["split"] or "train")
    # RuntimeError: data sets that need a script, which the library no longer runs; OSError covers lost connections.
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{source}: the hub did not give it ({first_line(error)}); without a network, name a local file or "
            "package://module/path"
        ) from error
    return _arrow_of(loaded)


def _arrow_of(dataset: Any) -> pa.Table:
    # Through the formatter rather than `.data`, which ignores a selection or shuffle that was saved with the rows.
    table = dataset.with_format("arrow")[:]
    return table.replace_schema_metadata(dataset.features.arrow_schema.metadata)


def _read_file(path: Path) -> pa.Table:
    kind = _kind(path)
    if kind not in _READERS:
        near = closest(path.suffix, _READERS)
        hint = f" Did you mean {near}?" if near and near != kind else ""
        raise DataError(f"{path}: unknown kind of file {''.join(path.suffixes[-2:])!r}.{hint} Allowed: {_allowed()}.")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: is empty")
        return _READERS[kind](path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is a broken gzip file ({first_line(error)}); compress or fetch it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {_encoding_fault(path)}") from error
    except pa.ArrowException as error:
        raise DataError(f"{path}: is not a {kind.lstrip('.')} file, or is damaged ({first_line(error)})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or first_line(error)}") from error


def _kind(path: Path) -> str:
    """Return the suffix that decides how a file is read: ``.csv`` of ``a.CSV.gz``; ``.parquet.gz`` is none."""
    name = path.name.lower()
    inner = Path(name.removesuffix(".gz")).suffix
    return inner if not name.endswith(".gz") or inner in _TEXT_KINDS else f"{inner}.gz"


def is_data_file(path: Path) -> bool:
    """Say whether a path is a file of a kind that can be read."""
    return path.is_file() and not path.name.startswith((".", "_")) and _kind(path) in _READERS


def _allowed() -> str:
    return f"{', '.join(_READERS)} ({', '.join(_TEXT_KINDS)} also as .gz)"


def _opened(path: Path) -> IO[bytes]:
    # typeshed does not know that a GzipFile has all that a binary file has.
    return cast("IO[bytes]", gzip.GzipFile(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def _encoding_fault(path: Path) -> str:
    with _opened(path) as raw:
        start = raw.read(4)
    if start.startswith(b"\x1f\x8b") and not path.name.lower().endswith(".gz"):
        return f"holds gzip data; name it {path.name}.gz"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "is UTF-16 text; save it as UTF-8"
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return (
                    f"line {number} is not UTF-8 text (byte {line[error.start]:#04x}); save the file as UTF-8, "
                    "as with iconv -f WINDOWS-1252 -t UTF-8"
                )
    return "is not UTF-8 text; save it as UTF-8"


def _read_csv(path: Path) -> pa.Table:
    return _read_delimited(path, ",", csv.QUOTE_MINIMAL)


def _read_tsv(path: Path) -> pa.Table:
    """Read a tsv file of either habit: quotes as plain characters (GLUE), or as around csv values (pandas, Excel)."""
    try:
        table = _read_delimited(path, "\t", csv.QUOTE_NONE)
    except DataError as unquoted:
        # Tabs or newlines inside of values: only quotes can make sense of the file.
        try:
            return _read_delimited(path, "\t", csv.QUOTE_MINIMAL)
        except DataError:
            raise unquoted from None
    names = _unquoted(pa.chunked_array([table.column_names], pa.string())).to_pylist()
    columns = [_numbers(_unquoted(column)) if pa.types.is_string(column.type) else column for column in table.columns]
    return pa.table(columns, names=names)


def _unquoted(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the column with the quotes around whole values taken off."""
    quoted = pc.match_substring_regex(column, r'(?s)^"(?:[^"]|"")*"$')
    inner = pc.replace_substring(pc.utf8_slice_codeunits(column, 1, -1), '""', '"')
    return pc.if_else(quoted, inner, column)


def _read_delimited(path: Path, delimiter: str, quoting: Any) -> pa.Table:
    """Read a csv file strictly: pyarrow's reader takes a quote that is never closed as one long value, in silence."""
    # The limit is a setting of the whole process; 128 KiB is too little for a long document.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with _opened(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)
            return _delimited_table(reader, path, delimiter)
    finally:
        csv.field_size_limit(limit)


def _delimited_table(reader: Any, path: Path, delimiter: str) -> pa.Table:
    names: list[str] = []
    chunks: list[list[pa.Array]] = []
    rows: list[list[str]] = []
    wrong: list[str] = []
    count = 0
    for start, row in _delimited_rows(reader, path):
        if not names:
            names = row
            _check_header(names, path, delimiter)
        elif len(row) != len(names):
            count += 1
            if len(wrong) < 3:
                given = f"{len(row)} value{'s' if len(row) != 1 else ''}"
                wrong.append(f"line {start} has {given} for {len(names)} columns: {_short(delimiter.join(row))!r}")
        else:
            rows.append(row)
            if len(rows) == _CHUNK:
                chunks.append(_text_arrays(rows))
                rows = []
    if not names:
        raise DataError(f"{path}: is empty")
    if wrong:
        more = f" ({count} such lines)" if count > len(wrong) else ""
        mark = "a tab" if delimiter == "\t" else f"a {delimiter!r}"
        raise DataError(f'{path}: {"; ".join(wrong)}{more}; a value that holds {mark} or a line break needs "quotes"')
    if rows:
        chunks.append(_text_arrays(rows))
    columns = [pa.chunked_array([chunk[i] for chunk in chunks], pa.string()) for i in range(len(names))]
    return pa.table([_numbers(column) for column in columns], names=names)


def _delimited_rows(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Give each row that is not blank with the line that it begins on."""
    start = 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            open_quote = "unexpected end" in str(error)
            problem = 'a "quote" that opens there is not closed' if open_quote else f"is malformed ({error})"
            raise DataError(
                f'{path}: line {start}: {problem}; a quote inside of a quoted value is written twice ("")'
            ) from None
        if row:
            yield start, row
        start = reader.line_num + 1


def _check_header(names: Sequence[str], path: Path, delimiter: str) -> None:
    if len(names) == 1 and delimiter == "," and (other := next((mark for mark in ";\t|" if mark in names[0]), None)):
        how = "name it .tsv" if other == "\t" else "save it with commas"
        raise DataError(f"{path}: its values seem to be separated by {other!r}; {how}")


def _text_arrays(rows: Sequence[Sequence[str]]) -> list[pa.Array]:
    return [pa.array(values, pa.string()) for values in zip(*rows, strict=True)]


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Turn a column of text into numbers where every value is one and nothing is lost.

    ``007`` stays text: it is a code. So do ``NA``, ``null``, ``nan`` and ``true``, which may be words. Empty values of
    a column of numbers become null.
    """
    empty = pc.equal(column, "")
    values = pc.if_else(empty, pa.scalar(None, pa.string()), column)
    if values.null_count == len(values):
        return column
    # Beyond 18 digits whole numbers do not fit 64 bits, and beyond 16 not the 53 bits of a float.
    whole = pc.match_substring_regex(values, r"^(?:0|-?[1-9][0-9]{0,17})$")
    if pc.all(whole).as_py():
        return values.cast(pa.int64())
    real = pc.match_substring_regex(values, r"^-?(?:(?:0|[1-9][0-9]{0,15})(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$")
    if not pc.all(real).as_py():
        return column
    numbers = values.cast(pa.float64())
    return numbers if pc.all(pc.is_finite(numbers)).as_py() else column


def _read_jsonl(path: Path) -> pa.Table:
    with _opened(path) as file:
        return _json_table(_json_lines(file, path), path)


def _read_json(path: Path) -> pa.Table:
    with _opened(path) as file:
        start = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start.startswith(b"["):
        try:
            table = _read_jsonl(path)
        except DataError as error:
            whole = _json_whole(path, error)
            raise DataError(f"{path}: {_not_rows(whole)}") from None
        if table.num_rows == 1:
            raise DataError(f"{path}: {_not_rows(_json_whole(path, None))}")
        return table
    value = _json_whole(path, None)
    rows = ((f"row {number}", _json_row(row, f"{path}: row {number}")) for number, row in enumerate(value, 1))
    return _json_table(rows, path)


def _json_whole(path: Path, otherwise: DataError | None) -> Any:
    with _opened(path) as file:
        text = file.read().decode("utf-8-sig")
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except _DuplicateKey as error:
        raise DataError(f"{path}: the key {str(error)!r} is given twice in one object") from None
    except ValueError as error:
        raise (otherwise or DataError(f"{path}: is not JSON: {error}")) from None


def _not_rows(value: Any) -> str:
    if isinstance(value, dict):
        inner = next(
            (name for name, part in value.items() if isinstance(part, list) and part and isinstance(part[0], dict)),
            None,
        )
        hint = f"; its key {inner!r} holds a list of objects: save that list" if inner else ""
        return f"is a single object; needs an array of objects, or one object a line{hint}"
    return "needs an array of objects, or one object a line"


def _json_lines(file: IO[bytes], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        if not text:
            continue
        try:
            value = json.loads(text, object_pairs_hook=_distinct)
        except _DuplicateKey as error:
            raise DataError(f"{path}: line {number}: the key {str(error)!r} is given twice") from None
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}: line {number} is not JSON: {error.msg} (column {error.colno}): {_short(text)!r}"
            ) from None
        yield f"line {number}", _json_row(value, f"{path}: line {number}")


class _DuplicateKey(ValueError):
    pass


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise _DuplicateKey(counts.most_common(1)[0][0])
    return value


def _json_row(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f'{where}: needs an object, as {{"text": ...}}, given {_short(json.dumps(value))}')
    return value


def _json_table(rows: Iterable[tuple[str, dict[str, Any]]], path: Path) -> pa.Table:
    tables = []
    places: list[str] = []
    chunk: list[dict[str, Any]] = []
    for place, row in rows:
        places.append(place)
        chunk.append(row)
        if len(chunk) == _CHUNK:
            tables.append(_rows_table(chunk, places, str(path)))
            places, chunk = [], []
    if chunk:
        tables.append(_rows_table(chunk, places, str(path)))
    return _concat(tables, str(path)) if tables else pa.table({})


def table_of_rows(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a table; a column that a row lacks is empty there.

    Raises:
        DataError: a column holds values of different kinds, or such as Arrow does not know.
    """
    places = [f"row {number}" for number in range(len(rows))]
    return _rows_table(rows, places, "the rows")


def _rows_table(rows: Sequence[Mapping[str, Any]], places: Sequence[str], origin: str) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise DataError(f"{origin}: {_value_fault(name, values, places)}") from error
    return pa.table(columns) if columns else pa.table({"": pa.nulls(len(rows))}).select([])


def _value_fault(name: str, values: Sequence[Any], places: Sequence[str]) -> str:
    first = next(value for value in values if value is not None)
    for value, place in zip(values, places, strict=True):
        try:
            pa.array([first, value])
        except UnicodeEncodeError:
            return f"{place}: column {name!r} holds text with half of a surrogate pair, which is not Unicode"
        except OverflowError:
            return f"{place}: column {name!r} holds a number beyond 64 bits"
        except pa.ArrowException:
            return (
                f"{place}: column {name!r} holds {_short(repr(value))}, but earlier rows hold values as "
                f"{_short(repr(first))}; a column needs values of one kind"
            )
    return f"column {name!r} holds values of different kinds; a column needs values of one kind"


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path).read()


def _read_arrow(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        try:
            return pa.ipc.open_file(file).read_all()
        except pa.ArrowInvalid:
            file.seek(0)
            return pa.ipc.open_stream(file).read_all()


_READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
_TEXT_KINDS = (".csv", ".tsv", ".json", ".jsonl")


def _concat(tables: Sequence[pa.Table], origin: str) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"{origin}: {first_line(error)}; a column needs values of one kind") from error


def _checked(table: pa.Table, source: str) -> pa.Table:
    counts = Counter(table.column_names)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(f"{source}: has more than one column named {', '.join(map(repr, twice))}; rename or remove one")
    if table.num_rows == 0:
        raise DataError(f"{source}: has no rows")
    if not table.column_names:
        raise DataError(f"{source}: has no columns")
    return _plain(table, source)


def _plain(table: pa.Table, source: str) -> pa.Table:
    """Return the table with class names for class numbers, and without dictionary and extension types."""
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    features = json.loads(metadata).get("info", {}).get("features", {}) if metadata else {}
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if isinstance(column.type, pa.BaseExtensionType):
            column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
        class_names = _class_names(features.get(name))
        if class_names is not None:
            column = _named(column, class_names, f"{source}: column {name!r}")
        columns.append(column)
    return pa.table(columns, names=table.column_names)


def _class_names(feature: Any) -> list[str] | None:
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel":
        return feature.get("names")
    if feature.get("_type") in {"List", "LargeList", "Sequence"}:
        return _class_names(feature.get("feature"))
    return None


def _named(column: pa.ChunkedArray, names: Sequence[str], where: str) -> pa.ChunkedArray:
    # -1 is how the datasets library writes "no label".
    def name_of(value: Any) -> Any:
        if isinstance(value, list):
            return [name_of(item) for item in value]
        if value is None or value < 0:
            return None
        if value >= len(names):
            raise DataError(f"{where} holds the class {value}, but only {len(names)} classes have names")
        return names[value]

    if pa.types.is_integer(column.type) or pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return pa.chunked_array([pa.array([name_of(value) for value in column.to_pylist()])])
    return column


# ---------------------------------------------------------------------------------------------------- columns


def map_columns(table: pa.Table, card: TaskCard, mapping: Mapping[str, str], where: str) -> pa.Table:
    """Return the rows with the task's roles as columns, all other columns left out.

    Rows without a value in a required column (null, NaN, blank text, an empty list of inputs) are dropped.

    Args:
        table: as :func:`load_source` gives it.
        card: the task's card; it says which roles are required and which names to guess.
        mapping: from role to column (``data.columns``); roles left out are guessed.
        where: the recipe's key of the source, for messages.

    Raises:
        DataError: a role or column is unknown, a required role has no column, a guess is ambiguous, or no row is
            complete.
    """
    columns, _ = _resolve_columns(table.column_names, card, mapping, where)
    mapped = _selected(table, card, columns, where)
    complete = mapped.filter(pa.array(_complete(mapped, card)))
    if complete.num_rows == 0:
        raise DataError(f"{where}: none of its {table.num_rows} rows has a value in each of {_required(card)}")
    return complete


def load_inputs(
    source: str,
    card: TaskCard,
    mapping: Mapping[str, str],
    *,
    known: Mapping[str, str] | None = None,
    base: Path,
    where: str,
) -> tuple[pa.Table, pa.Table, list[bool]]:
    """Read rows to predict.

    Args:
        source: as :func:`load_source` takes it.
        card: of the task; its columns are those that a prediction needs.
        mapping: from role to column, as ``--column`` gives it; roles left out are guessed.
        known: what the training data called the column of each role; a file like it needs no mapping.
        base: the folder from which relative paths start.
        where: for messages.

    Returns:
        the rows with roles as columns; the same rows as the source has them; and for each whether it has a value in all
        required columns.

    Raises:
        DataError: the source cannot be read, or a required role has no column.
    """
    table = load_source(source, base=base, where=where)
    named = {column.role for column in card.columns} - set(table.column_names)
    taken = {role: name for role, name in (known or {}).items() if role in named and name in table.column_names}
    try:
        columns, _ = _resolve_columns(table.column_names, card, {**taken, **mapping}, where)
    except DataError as error:
        said, mark, _ = str(error).partition(" Say which is which, as")
        role = next(iter(column.role for column in card.columns))
        raise DataError(f"{said} Say which is which, as --column {role}=NAME" if mark else said) from error
    mapped = _with_files(_selected(table, card, columns, where), card, source, base, where)
    return mapped, table, _complete(mapped, card).tolist()


def _required(card: TaskCard) -> str:
    return ", ".join(column.role for column in card.columns if column.required)


def _resolve_columns(
    names: Sequence[str], card: TaskCard, mapping: Mapping[str, str], where: str
) -> tuple[dict[str, str], list[str]]:
    """Return the column of each role, and what about the guesses a user should know."""
    faults = _mapping_faults(names, card, mapping, where)
    if faults:
        raise DataError("\n".join(faults))
    chosen = dict(mapping)
    for column in card.columns:
        if column.role not in chosen and (found := _match(column.role, names, chosen, where)):
            chosen[column.role] = found
    # Every role takes its first guess; a column that two roles want goes to the required one.
    while claims := _claims(names, card, chosen, where):
        for name, columns in claims.items():
            required = [column for column in columns if column.required]
            claimants = required or columns
            if len(claimants) > 1:
                roles = " and ".join(repr(column.role) for column in claimants)
                raise DataError(f"{where}: the column {name!r} may be {roles}. {_show_mapping(names, card, chosen)}")
            chosen[claimants[0].role] = name
    missing = [column for column in card.columns if column.required and column.role not in chosen]
    if missing:
        wanted = " and ".join(f"{column.role!r} ({column.summary.rstrip('.')})" for column in missing)
        raise DataError(
            f"{where}: the task {card.name} needs a column for {wanted}, and none of its columns looks like it. "
            f"{_show_mapping(names, card, chosen)}"
        )
    notes = []
    for column in card.columns:
        rivals = [name for name in _guessed(column, names, where) if name not in chosen.values()]
        if (
            column.role not in mapping
            and column.role in chosen
            and chosen[column.role].lower() != column.role
            and rivals
        ):
            notes.append(
                f"{where}: took the column {chosen[column.role]!r} for {column.role!r}, though "
                f"{', '.join(map(repr, rivals))} may be meant; data.columns decides"
            )
    ordered = {column.role: chosen[column.role] for column in card.columns if column.role in chosen}
    return ordered, notes


def _mapping_faults(names: Sequence[str], card: TaskCard, mapping: Mapping[str, str], where: str) -> list[str]:
    roles = [column.role for column in card.columns]
    faults = [f"data.columns: {unknown_name('role', role, roles)}" for role in mapping if role not in roles]
    for role, name in mapping.items():
        if name not in names:
            faults.append(f"data.columns.{role}: {where} has no such column: {unknown_name('column', name, names)}")
    shared = [name for name, count in Counter(mapping.values()).items() if count > 1]
    for name in shared:
        given = " and ".join(repr(role) for role, column in mapping.items() if column == name)
        faults.append(f"data.columns: the column {name!r} is given to {given}; a column has one role")
    return faults


def _match(wanted: str, names: Sequence[str], chosen: Mapping[str, str], where: str) -> str | None:
    free = [name for name in names if name not in chosen.values()]
    if wanted in free:
        return wanted
    found = [name for name in free if name.strip().lower() == wanted.lower()]
    if len(found) > 1:
        raise DataError(
            f"{where}: {', '.join(map(repr, found))} may all be {wanted!r}; data.columns decides, as {{{wanted}: {found[0]}}}"
        )
    return found[0] if found else None


def _guessed(column: Column, names: Sequence[str], where: str) -> list[str]:
    found = [_match(guess, names, {}, where) for guess in column.guesses]
    return list(dict.fromkeys(name for name in found if name))


def _claims(names: Sequence[str], card: TaskCard, chosen: Mapping[str, str], where: str) -> dict[str, list[Column]]:
    claims: dict[str, list[Column]] = {}
    for column in card.columns:
        if column.role in chosen:
            continue
        for guess in column.guesses:
            if name := _match(guess, names, chosen, where):
                claims.setdefault(name, []).append(column)
                break
    return claims


def _show_mapping(names: Sequence[str], card: TaskCard, chosen: Mapping[str, str]) -> str:
    shown = {
        column.role: chosen.get(column.role, "...")
        for column in card.columns
        if column.required or column.role in chosen
    }
    example = ", ".join(f"{role}: {name}" for role, name in shown.items())
    return f"Its columns: {', '.join(names)}. Say which is which, as\n  data:\n    columns: {{{example}}}"


def _selected(table: pa.Table, card: TaskCard, columns: Mapping[str, str], where: str) -> pa.Table:
    return pa.table({role: _as_kind(table[name], card.column(role), name, where) for role, name in columns.items()})


def _as_kind(values: pa.ChunkedArray, column: Column, name: str, where: str) -> pa.ChunkedArray:
    """Return text for a column of text that happens to hold numbers."""
    if column.kind != "text" or pa.types.is_null(values.type) or _is_text(values.type):
        return values
    try:
        return values.cast(pa.string())
    except pa.ArrowException:
        raise DataError(
            f"{where}: the column {name!r} for {column.role!r} needs text, but holds {values.type}"
        ) from None


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def _complete(table: pa.Table, card: TaskCard) -> Mask:
    """Say for each row whether all required roles have a value."""
    mask = np.ones(table.num_rows, dtype=bool)
    for column in card.columns:
        if column.required and column.role in table.column_names:
            mask &= ~_missing(table[column.role], column)
    return mask


def _missing(values: pa.ChunkedArray, column: Column) -> Mask:
    kind = values.type
    missing = pc.is_null(values, nan_is_null=pa.types.is_floating(kind))
    if _is_text(kind):
        blank = pc.equal(pc.utf8_trim_whitespace(values.cast(pa.large_string())), "")
        missing = pc.or_(missing, pc.fill_null(blank, True))
    elif (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and not column.target:
        # An empty list of targets says something: no label applies.
        missing = pc.or_(missing, pc.fill_null(pc.equal(pc.list_value_length(values), 0), True))
    return np.asarray(missing.to_numpy(), dtype=bool)


def _filter_rows(table: pa.Table, wanted: Mapping[str, Any], where: str) -> tuple[pa.Table, list[str]]:
    """Keep the rows that ``data.where`` asks for; also says which of its values no row has."""
    notes = []
    for name, value in wanted.items():
        if name not in table.column_names:
            raise DataError(
                f"data.where.{name}: {where} has no such column: {unknown_name('column', name, table.column_names)}"
            )
        values = table[name]
        if pa.types.is_nested(values.type):
            raise DataError(
                f"data.where.{name}: the column holds {values.type}; only text, numbers and booleans can be compared"
            )
        given = {_comparable(item): item for item in (value if isinstance(value, list) else [value])}
        counts = {item["values"]: item["counts"] for item in pc.value_counts(values).to_pylist()}
        keep = [item for item in counts if item is not None and _comparable(item) in given]
        if not keep:
            common = sorted((item for item in counts if item is not None), key=lambda item: -counts[item])
            more = f" and {len(common) - 10} others" if len(common) > 10 else ""
            raise DataError(
                f"data.where.{name}: no row of {where} has {' or '.join(map(repr, given.values()))}; "
                f"there are {', '.join(_short(repr(item), 40) for item in common[:10])}{more}"
            )
        found = {_comparable(item) for item in keep}
        absent = [repr(item) for key, item in given.items() if key not in found]
        if absent:
            notes.append(f"data.where.{name}: no row of {where} has {', '.join(absent)}")
        table = table.filter(pc.is_in(values, value_set=pa.array(keep, values.type)))
        if table.num_rows == 0:
            raise DataError(f"data.where: no row of {where} has all of {dict(wanted)!r}")
    return table, notes


def _comparable(value: Any) -> str:
    """Return a value as the text by which YAML, csv and JSON agree: ``5`` is ``"5"`` is ``5.0``, true is ``"True"``."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value)
    return text.lower() if text.lower() in {"true", "false"} else text


# ----------------------------------------------------------------------------------------------------- splits


class Split(Sequence[Row]):
    """The rows of one split over an Arrow table: a row becomes Python objects when it is asked for.

    Attributes:
        table: columns by role.
    """

    def __init__(self, table: pa.Table, fingerprint: str | None = None) -> None:
        self.table = table
        self._fingerprint = fingerprint

    @classmethod
    def from_rows(cls, rows: Sequence[Row]) -> Split:
        """Return a split that holds these rows, as augmented ones.

        Raises:
            DataError: a column holds values of different kinds.
        """
        return cls(_rows_table(rows, [f"row {number}" for number in range(1, len(rows) + 1)], "rows"))

    @property
    def fingerprint(self) -> str:
        """A digest of all values and column names, the same on every machine."""
        if self._fingerprint is None:
            digest = hashlib.blake2b(json.dumps(sorted(self.table.column_names)).encode(), digest_size=16)
            digest.update(_row_keys(self.table, sorted(self.table.column_names)).tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return list(self.table.slice(start, max(stop - start, 0)).to_pylist())
            return self.rows(range(start, stop, step))
        position = range(len(self))[index]
        row: Row = self.table.slice(position, 1).to_pylist()[0]
        return row

    def __iter__(self) -> Iterator[Row]:
        for batch in self.table.to_batches(max_chunksize=_CHUNK):
            yield from batch.to_pylist()

    def rows(self, indices: Sequence[int] | Ints) -> list[Row]:
        """Return the rows at these positions, in this order."""
        return list(self.table.take(pa.array(np.asarray(indices, dtype=np.int64))).to_pylist())

    def inputs(self, card: TaskCard) -> list[Row]:
        """Return all rows without the columns that a prediction must not see."""
        targets = {column.role for column in card.targets}
        kept = [name for name in self.table.column_names if name not in targets and not name.startswith(SLICE)]
        return list(self.table.select(kept).to_pylist())


@dataclass(frozen=True)
class PreparedData:
    """The splits of a run.

    Attributes:
        train: what models are trained on.
        validation: what drives the search.
        test: scored once, after the selection.
        fingerprint: of all rows, the task and its facts; equal when and only when the data is.
        facts: what the task learned from the training rows, plain JSON.
        columns: the data's column of each role, in the training source.
        warnings: what the user should know, one sentence each.
    """

    train: Split
    validation: Split
    test: Split
    fingerprint: str
    facts: dict[str, Any]
    columns: dict[str, str]
    warnings: tuple[str, ...] = ()


def prepare_data(
    section: DataSection, task: Task, options: Mapping[str, Any], seed: int, folder: Path, base: Path, folds: int = 1
) -> PreparedData:
    """Load, filter, map, clean, limit and cut the data, and write it where workers open it.

    The training source is cleaned before it is limited and cut, so that no row of one split is also in another. Splits
    that a recipe names keep their rows, except that test rows are taken out of validation. All are shuffled.

    Args:
        section: the recipe's ``data``.
        task: says which columns there are, how to stratify, and what to learn from the training rows.
        options: the task's options, defaults filled in.
        seed: of the draw where ``limit`` or a cut asks for one.
        folder: where ``train.arrow``, ``validation.arrow``, ``test.arrow`` and ``meta.json`` go; read back where they
            answer the same request.
        base: the recipe's folder.
        folds: where it is above 1 and the recipe says nothing of the validation split, this is cut such that all folds
            of :func:`prepare_folds` have about as many rows.

    Raises:
        DataError: the data cannot be read or used.
        PluginError: the task's facts are not plain JSON.
        RunFolderError: the folder cannot be written, or its ``meta.json`` is damaged.
    """
    request = _request(section, task, options, seed, base, folds)
    meta = folder / "meta.json"
    if (
        meta.is_file()
        and read_json(meta).get("request") == request
        and all(_split_file(folder, name).is_file() for name in SPLITS)
    ):
        return open_data(folder)
    preparation = _Preparation(section, task, seed, base, folds)
    tables = preparation.tables()
    facts = _facts(task, options, tables, preparation.notes)
    splits = {name: Split(table) for name, table in tables.items()}
    content = [task.card.name, dict(options), facts, {name: split.fingerprint for name, split in splits.items()}]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A reader takes meta.json as the sign that the three files belong together.
        meta.unlink(missing_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be written: {error.strerror}") from error
    for name, table in tables.items():
        _write_arrow(_split_file(folder, name), table.schema, table.to_batches(max_chunksize=_CHUNK))
    write_json(
        meta,
        {
            "autoft": __version__,
            "request": request,
            "fingerprint": _digest(content),
            "columns": preparation.columns,
            "sizes": {name: len(split) for name, split in splits.items()},
            "splits": content[-1],
            "warnings": preparation.notes,
            "facts": facts,
        },
    )
    return open_data(folder)


def open_data(folder: Path) -> PreparedData:
    """Open what :func:`prepare_data` or :func:`prepare_folds` wrote, memory-mapped.

    Raises:
        RunFolderError: a file is missing or damaged.
    """
    meta = read_json(folder / "meta.json")
    splits = {}
    for name in SPLITS:
        # A fold has no test split of its own.
        path = _split_file(folder.parent if name in meta.get("above", ()) else folder, name)
        table = _open_arrow(path)
        if table.num_rows != meta["sizes"][name]:
            raise RunFolderError(f"{path}: is damaged; delete {folder / 'meta.json'} to have the data prepared again")
        splits[name] = Split(table, meta["splits"][name])
    return PreparedData(
        **splits,
        fingerprint=meta["fingerprint"],
        facts=meta["facts"],
        columns=meta["columns"],
        warnings=tuple(meta["warnings"]),
    )


def prepare_folds(prepared: PreparedData, task: Task, folds: int, seed: int, folder: Path) -> None:
    """Write the splits of further folds: each holds out another part of the training rows, and trains on all others.

    Fold 0 is what :func:`prepare_data` cut. The training rows are dealt out to the other folds, each class in turn, as
    scikit-learn's ``StratifiedKFold`` does; rows with the same inputs go to the same fold. The validation rows are
    training rows of all folds but the first; the test split stays what it is.

    Args:
        prepared: what :func:`prepare_data` returned.
        task: says how to stratify, and what the inputs are.
        folds: how many there are in all; nothing is written for 1.
        seed: of the dealing.
        folder: the one of :func:`prepare_data`; fold 1 goes to ``fold-1/`` in it.

    Raises:
        DataError: there are fewer training rows than folds to make of them.
        RunFolderError: the folder cannot be written.
    """
    if folds == 1:
        return
    table = prepared.train.table
    keys = _row_keys(table, [column.role for column in task.card.inputs])
    first, group = np.unique(keys, return_index=True, return_inverse=True)[1:]
    if len(first) < folds - 1:
        raise DataError(
            f"search.folds is {folds}, but beside the validation split there are only {len(first)} different training "
            "rows; ask for fewer folds"
        )
    rng = np.random.default_rng([seed, zlib.crc32(b"folds")])
    strata = [repr(task.stratum(prepared.train[int(i)])) for i in first]
    shuffled = [int(i) for i in rng.permutation(len(first))]
    order = sorted(shuffled, key=lambda i: strata[i])
    dealt = np.empty(len(first), dtype=np.int64)
    dealt[order] = np.arange(len(order)) % (folds - 1) + 1
    place = dealt[group]
    for number in range(1, folds):
        # A generator for each: a fold that an earlier call wrote does not move the order of the next.
        order_of = np.random.default_rng([seed, number, zlib.crc32(b"order")])
        target = folder / f"fold-{number}"
        fingerprint = _digest([prepared.fingerprint, number, folds, seed])
        if read_json(target / "meta.json", missing={}).get("fingerprint") == fingerprint:
            continue
        held = pa.array(place == number)
        learned = _harmonized(
            {"train": table.filter(pc.invert(held)), "validation": prepared.validation.table}, task.card
        )
        shown = learned["train"].column_names
        tables = {
            "train": pa.concat_tables([learned["train"], learned["validation"].select(shown)]),
            "validation": table.filter(held),
        }
        tables["train"] = tables["train"].take(pa.array(order_of.permutation(tables["train"].num_rows)))
        with _writing(target):
            target.mkdir(parents=True, exist_ok=True)
        for name, part in tables.items():
            _write_arrow(_split_file(target, name), part.schema, part.to_batches(max_chunksize=_CHUNK))
        splits = {**tables, "test": prepared.test.table}
        write_json(
            target / "meta.json",
            {
                "above": ["test"],
                "fingerprint": fingerprint,
                "columns": prepared.columns,
                "sizes": {name: part.num_rows for name, part in splits.items()},
                "splits": {name: Split(part).fingerprint for name, part in splits.items()},
                "warnings": [],
                "facts": prepared.facts,
            },
        )


class _Preparation:
    """The way from a recipe's sources to three clean tables; collects what to tell the user on it."""

    def __init__(self, section: DataSection, task: Task, seed: int, base: Path, folds: int) -> None:
        self.section = section
        self.task = task
        self.folds = folds
        self.card = task.card
        self.seed = seed
        self.base = base
        self.notes: list[str] = []
        self.columns: dict[str, str] = {}

    def tables(self) -> dict[str, pa.Table]:
        """Return the three splits."""
        given = {name: source for name in SPLITS if (source := getattr(self.section, name)) is not None}
        tables = _harmonized({name: self.source(name, source) for name, source in given.items()}, self.card)
        tables = self.cleaned(tables)
        tables = {name: self.limited(name, table) for name, table in tables.items()}
        absent = [name for name in ("test", "validation") if name not in tables]
        if absent:
            tables |= self.cut(tables["train"], absent)
            tables |= {name: self.limited(name, tables[name]) for name in absent}
            if not self.section.deduplicate:
                self.note_overlap(tables, absent)
        # Files often come sorted by class; shuffled once here, the first rows of a split are a fair sample of it.
        order = {name: self.rng(f"order.{name}").permutation(tables[name].num_rows) for name in SPLITS}
        return {name: tables[name].take(pa.array(order[name])) for name in SPLITS}

    def source(self, name: str, source: str) -> pa.Table:
        """Return the rows of one source by role."""
        where = f"data.{name}"
        table = load_source(source, base=self.base, where=where)
        if source.startswith("hub://") and "@" not in source:
            self.notes.append(f"{where}: {source} names no revision; the data may change, pin it as @revision before #")
        table, notes = _filter_rows(table, self.section.where, where)
        self.notes += notes
        columns, notes = _resolve_columns(table.column_names, self.card, self.section.columns, where)
        self.notes += notes
        if name == "train":
            self.columns = columns
        mapped = map_columns(table, *self.sliced(table, columns, where), where)
        dropped = table.num_rows - mapped.num_rows
        if dropped:
            self.notes.append(
                f"{where}: {_rows(dropped, table.num_rows)} left out for want of a value in {_required(self.card)}"
            )
        return _roomy(_with_files(mapped, self.card, source, self.base, where))

    def sliced(self, table: pa.Table, columns: Mapping[str, str], where: str) -> tuple[TaskCard, dict[str, str]]:
        """Return the card and the columns with those of ``data.slices`` added, which neither task nor model reads."""
        wanted = list(dict.fromkeys(self.section.slices))
        for name in wanted:
            if name not in table.column_names:
                raise DataError(f"data.slices: {where}: {unknown_name('column', name, table.column_names)}")
            if name in columns.values():
                role = next(role for role, column in columns.items() if column == name)
                raise DataError(
                    f"data.slices: {where}: the column {name!r} is read as {role!r} already; name one that the task does not read"
                )
        kept = {f"{SLICE}{name}": name for name in wanted}
        further = tuple(Column(role, "source", "where a row comes from", required=False) for role in kept)
        return replace(self.card, columns=(*self.card.columns, *further)), {**columns, **kept}

    def cleaned(self, tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
        """Take duplicates and rows of held-out splits out of ``train``, and test rows out of ``validation``."""
        roles = [column.role for column in self.card.inputs]
        keys = {name: _row_keys(table, roles) for name, table in tables.items()}
        self.note_conflicts(tables["train"], keys["train"])
        drop = {name: np.zeros(len(key), dtype=bool) for name, key in keys.items()}
        repeated = np.ones(len(keys["train"]), dtype=bool)
        repeated[np.unique(keys["train"], return_index=True)[1]] = False
        self.note_removal("train", repeated, "repeat the inputs of an earlier row")
        drop["train"] |= repeated
        for name, held_out in (("train", "validation"), ("train", "test"), ("validation", "test")):
            if name in keys and held_out in keys:
                leaked = np.isin(keys[name], keys[held_out]) & ~drop[name]
                self.note_removal(name, leaked, f"are also in data.{held_out}")
                drop[name] |= leaked
        if not self.section.deduplicate:
            return tables
        for name, mask in drop.items():
            if mask.all():
                raise DataError(
                    f"data.{name}: all of its {len(mask)} rows are also in a held-out split; give other data, or set "
                    "data.deduplicate to false to keep them"
                )
        return {name: table.filter(pa.array(~drop[name])) for name, table in tables.items()}

    def note_removal(self, name: str, mask: Mask, what: str) -> None:
        if mask.any():
            done = "left out" if self.section.deduplicate else "kept, as data.deduplicate is false"
            self.notes.append(f"data.{name}: {_rows(int(mask.sum()), len(mask))} {what}: {done}")

    def note_conflicts(self, table: pa.Table, inputs: Keys) -> None:
        """Warn of inputs that stand in ``train`` with different targets."""
        targets = _row_keys(table, [column.role for column in self.card.targets])
        pairs = np.unique(np.stack([inputs, targets], axis=1), axis=0)
        conflicts = int((np.unique(pairs[:, 0], return_counts=True)[1] > 1).sum())
        if conflicts:
            kept = "the first is kept" if self.section.deduplicate else "all are kept, as data.deduplicate is false"
            what = "input stands" if conflicts == 1 else "inputs stand"
            self.notes.append(f"data.train: {conflicts} {what} with different targets: {kept}")

    def note_overlap(self, tables: dict[str, pa.Table], cut: Sequence[str]) -> None:
        """Warn of rows that are in two splits because duplicates were kept."""
        roles = [column.role for column in self.card.inputs]
        keys = {name: _row_keys(table, roles) for name, table in tables.items()}
        for name, held_out in (("train", "validation"), ("train", "test"), ("validation", "test")):
            if name in cut or held_out in cut:
                self.note_removal(name, np.isin(keys[name], keys[held_out]), f"are also in the {held_out} split")

    def limited(self, name: str, table: pa.Table) -> pa.Table:
        """Return at most as many rows as ``data.limit`` says, drawn at random, in the order of the data."""
        limit = self.section.limit
        limits = {str(split): most for split, most in limit.items()} if isinstance(limit, dict) else {"train": limit}
        most = limits.get(name)
        if most is None or table.num_rows <= most:
            return table
        chosen = self.rng(f"limit.{name}").permutation(table.num_rows)[:most]
        return table.take(pa.array(np.sort(chosen)))

    def cut(self, train: pa.Table, names: Sequence[str]) -> dict[str, pa.Table]:
        """Cut held-out splits from the training rows, stratified where the task says how."""
        wanted = {name: getattr(self.section, f"{name}_size") for name in names}
        sizes = _cut_sizes(train.num_rows, wanted)
        if self.folds > 1 and wanted.get("validation", 1) is None:
            sizes["validation"] = max(1, (train.num_rows - sizes.get("test", 0)) // self.folds)
        strata = [self.task.stratum(row) for row in Split(train)]
        free = np.ones(train.num_rows, dtype=bool)
        parts = {}
        for name, size in sizes.items():
            chosen = _draw(strata, free, size, self.rng(f"cut.{name}"))
            free[chosen] = False
            parts[name] = train.take(pa.array(chosen))
        return {"train": train.filter(pa.array(free)), **parts}

    def rng(self, purpose: str) -> np.random.Generator:
        """Return a generator of its own for each purpose: one draw does not move the next."""
        return np.random.default_rng([self.seed, zlib.crc32(purpose.encode())])


def _with_files(table: pa.Table, card: TaskCard, source: str, base: Path, where: str) -> pa.Table:
    """Return the table with absolute paths in columns that name files; they stand beside the data."""
    for column in card.columns:
        if column.kind not in FILE_KINDS or column.role not in table.column_names:
            continue
        values = table[column.role]
        if not _is_text(values.type):
            continue
        folders = [base, Path.cwd()]
        if not source.startswith("hub://"):
            path = package_path(source) if source.startswith("package://") else _local_path(source, base)
            folders.insert(0, path if path.is_dir() else path.parent)
        paths = [_first_file(value, folders) for value in values.to_pylist()]
        lost = [value for value, path in zip(values.to_pylist(), paths, strict=True) if value and path is None]
        if lost:
            looked = ", ".join(dict.fromkeys(map(str, folders)))
            raise DataError(
                f"{where}: {_rows(len(lost), len(paths))} name a file that is not there, as {lost[0]!r} (looked in {looked})"
            )
        at = table.column_names.index(column.role)
        table = table.set_column(at, column.role, pa.array(paths, pa.string()))
    return table


def _first_file(value: str | None, folders: Sequence[Path]) -> str | None:
    if value is None:
        return None
    return next((str(path.absolute()) for folder in folders if (path := folder / value).is_file()), None)


def _roomy(table: pa.Table) -> pa.Table:
    """Return the table with 64-bit offsets where a column is large: taking rows puts it into one array of at most 2 GB."""
    wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
    columns = [
        column.cast(wide.get(column.type, column.type)) if column.nbytes > 2**30 else column for column in table.columns
    ]
    return pa.table(columns, names=table.column_names)


def _harmonized(tables: dict[str, pa.Table], card: TaskCard) -> dict[str, pa.Table]:
    """Give a column one type in all splits: text where one split holds text and another numbers that are codes too.

    In a column of kind ``texts`` one split may hold a text a row and another a list of texts, as the test split of a data
    set often has more references than the others; then all hold lists.
    """
    listed = {column.role for column in card.columns if column.kind == TEXTS}
    for role in dict.fromkeys(name for table in tables.values() for name in table.column_names):
        having = [name for name, table in tables.items() if role in table.column_names]
        kinds = {name: tables[name].schema.field(role).type for name in having}
        if len(set(kinds.values())) == 1:
            continue
        if role in listed and any(pa.types.is_list(kind) for kind in kinds.values()):
            for name in having:
                if _is_text(kinds[name]):
                    at = tables[name].column_names.index(role)
                    tables[name] = tables[name].set_column(at, role, _each_in_a_list(tables[name][role]))
                    kinds[name] = tables[name].schema.field(role).type
            if len(set(kinds.values())) == 1:
                continue
        if any(_is_text(kind) for kind in kinds.values()) and not any(
            pa.types.is_nested(kind) for kind in kinds.values()
        ):
            target: Any = pa.large_string() if pa.large_string() in kinds.values() else pa.string()
        else:
            try:
                fields = [pa.schema([pa.field(role, kind)]) for kind in kinds.values()]
                target = pa.unify_schemas(fields, promote_options="permissive").field(role).type
            except pa.ArrowException:
                shown = ", ".join(f"{kind} in data.{name}" for name, kind in kinds.items())
                raise DataError(f"the column for {role!r} holds {shown}; it needs one kind of value") from None
        for name in having:
            at = tables[name].column_names.index(role)
            tables[name] = tables[name].set_column(at, role, tables[name][role].cast(target))
    return tables


def _each_in_a_list(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array([None if value is None else [value] for value in values.to_pylist()])])


def _cut_sizes(rows: int, sizes: Mapping[str, float | int | None]) -> dict[str, int]:
    """Return how many rows each cut takes of so many.

    Raises:
        DataError: a cut would be empty, or nothing would be left to train on.
    """
    counts = {}
    for name, size in sizes.items():
        share = _CUT_SHARE if size is None else size
        count = share if isinstance(share, int) else round(rows * share)
        counts[name] = count if size is not None else min(count, _CUT_MOST[name])
        if counts[name] < 1:
            raise DataError(
                f"data.{name}: is absent, and {share * 100:g} % of the {rows} rows of data.train is less than one row; "
                f"give more rows, data.{name}, or data.{name}_size as a number of rows"
            )
    left = rows - sum(counts.values())
    if left < 1:
        asked = " and ".join(f"{count} for {name}" for name, count in counts.items())
        raise DataError(
            f"data.train: has {rows} rows, too few to cut {asked} and have some left to train on; give more rows, or "
            f"smaller {' and '.join(f'data.{name}_size' for name in counts)}"
        )
    return counts


def _draw(strata: Sequence[str | None], free: Mask, size: int, rng: np.random.Generator) -> Ints:
    """Draw rows among the free ones, from each stratum in proportion (largest remainder); positions ascend.

    A stratum gives its last row only when no other has one to spare, so that training sees every class.
    """
    members: dict[str, list[int]] = {}
    for position in np.flatnonzero(free):
        members.setdefault(repr(strata[int(position)]), []).append(int(position))
    names = sorted(members)
    counts = np.array([len(members[name]) for name in names], dtype=np.int64)
    taken = _largest_remainder(counts, size)
    chosen = [rng.permutation(members[name])[:count] for name, count in zip(names, taken, strict=True)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _largest_remainder(counts: Ints, size: int) -> Ints:
    """Share ``size`` seats among strata in proportion to their counts, each keeping one row while others have more."""
    quotas = counts * size / counts.sum()
    most = np.maximum(counts - 1, 0)
    taken: Ints = np.minimum(np.floor(quotas + 1e-9).astype(np.int64), most)
    while (missing := size - int(taken.sum())) > 0:
        if not (taken < most).any():
            most = counts
        open_ = np.flatnonzero(taken < most)
        order = open_[np.lexsort((open_, -counts[open_], -np.round(quotas[open_] - taken[open_], 9)))]
        taken[order[:missing]] += 1
    return taken


def _facts(task: Task, options: Mapping[str, Any], tables: Mapping[str, pa.Table], notes: list[str]) -> dict[str, Any]:
    """Return the task's facts about the training rows, after a look whether the held-out rows go with them."""
    facts = _plain_json(task.facts(Split(tables["train"]), options), task)
    try:
        together = task.facts(Split(_concat([tables[name] for name in SPLITS], "data")), options)
    except DataError as error:
        raise DataError(f"data.validation or data.test do not go with data.train: {error}") from error
    unseen = [label for label in together.get("labels", ()) if label not in facts.get("labels", ())]
    if unseen:
        shown = ", ".join(map(repr, unseen[:5])) + (" ..." if len(unseen) > 5 else "")
        notes.append(f"data: {len(unseen)} labels of validation or test are never seen in training: {shown}")
    return facts


def _plain_json(facts: Any, task: Task) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(facts))
    except (TypeError, ValueError) as error:
        raise PluginError(f"task {task.card.name}: facts() must return plain JSON ({error})") from error
    return plain


def _row_keys(table: pa.Table, roles: Sequence[str]) -> Keys:
    """Return a 64-bit digest of the values of these roles for each row, ``(rows,)``; an absent role is null."""
    keys = np.empty(table.num_rows, dtype=np.uint64)
    at = 0
    for batch in table.to_batches(max_chunksize=_CHUNK):
        columns = [
            batch.column(role).to_pylist() if role in table.column_names else [None] * batch.num_rows for role in roles
        ]
        rows: Iterable[Sequence[Any]] = zip(*columns, strict=True) if columns else [()] * batch.num_rows
        digests = b"".join(
            hashlib.blake2b(repr([_short_bytes(value) for value in row]).encode(), digest_size=8).digest()
            for row in rows
        )
        keys[at : at + batch.num_rows] = np.frombuffer(digests, dtype="<u8")
        at += batch.num_rows
    return keys


def _short_bytes(value: Any) -> Any:
    """Return a value with its bytes replaced by digests: the repr of an image is four times the image."""
    if isinstance(value, bytes):
        return hashlib.blake2b(value, digest_size=16).digest()
    if isinstance(value, dict):
        return {name: _short_bytes(item) for name, item in value.items()}
    return value


def _request(section: DataSection, task: Task, options: Mapping[str, Any], seed: int, base: Path, folds: int) -> str:
    sources = {}
    for name in SPLITS:
        source = getattr(section, name)
        if source is None or source.startswith("hub://"):
            sources[name] = source
            continue
        try:
            path = package_path(source) if source.startswith("package://") else _local_path(source, base)
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            sources[name] = [str(path.resolve()), [_file_state(file) for file in files if file.is_file()]]
        except DataError as error:
            raise DataError(f"data.{name}: {error}") from error.__cause__
        except OSError as error:
            raise DataError(f"data.{name}: {source} cannot be read: {error.strerror}") from error
    return _digest(
        [section.model_dump(mode="json"), sources, _task_state(task), dict(options), seed, folds, __version__]
    )


def _file_state(path: Path) -> list[Any]:
    stat = path.stat()
    if stat.st_size > _HASHED_BYTES:
        return [path.name, stat.st_size, stat.st_mtime_ns]
    return [path.name, stat.st_size, hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()]


def _task_state(task: Task) -> list[Any]:
    """Return the task's name and a digest of the source files of its classes: a plugin that changes encodes anew."""
    state: list[Any] = [task.card.name]
    for kind in type(task).__mro__:
        if kind in (*Task.__mro__,):
            continue
        file = inspect.getsourcefile(kind) if kind.__module__ != "__main__" else None
        source = Path(file).read_bytes() if file and Path(file).is_file() else kind.__qualname__.encode()
        state.append([kind.__module__, kind.__qualname__, hashlib.blake2b(source, digest_size=16).hexdigest()])
    return state


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _rows(count: int, total: int) -> str:
    return f"{count} of {total} rows"


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


# ------------------------------------------------------------------------------------------------------ files


def _split_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.arrow"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise RunFolderError(
                f"{path}: the disk is full; free some space and run the same command again to go on"
            ) from error
        raise RunFolderError(f"{path}: cannot be written: {error.strerror or error}") from error


def _write_arrow(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write an Arrow file so that a reader sees all of it or none; readers of an older one keep theirs."""
    partial = ""
    try:
        with _writing(path):
            handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(handle, "wb") as file:
                with pa.ipc.new_file(file, schema) as writer:
                    for batch in batches:
                        writer.write_batch(batch)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        if partial and os.path.exists(partial):
            os.unlink(partial)


def _open_arrow(path: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except FileNotFoundError:
        raise RunFolderError(f"{path}: is missing; run the search again to have it made") from None
    except (OSError, pa.ArrowException) as error:
        raise RunFolderError(f"{path}: is damaged ({first_line(error)}); delete it to have it made again") from error


# --------------------------------------------------------------------------------------------------- features

_LENGTH = "_autoft_length"
_NUMBERS = (pa.int32(), pa.int64(), pa.float64())
_ARRAY = {b"autoft": b"array"}
_ARRAY_TYPE = pa.struct([("dtype", pa.string()), ("shape", pa.list_(pa.int32())), ("data", pa.large_binary())])


class Features(Sequence[dict[str, Any]]):
    """The features of a split as :meth:`~autoft.contracts.Task.encode` made them, memory-mapped.

    Numbers, text and nested lists come back as they were; arrays and tensors come back as numpy arrays of the same
    shape and type (bfloat16 as float32).

    Attributes:
        lengths: of each feature as the task measures it, ``(rows,)``.
    """

    def __init__(self, table: pa.Table) -> None:
        self._fields = [field for field in table.schema if field.name != _LENGTH]
        self._batches = [batch for batch in table.to_batches() if batch.num_rows]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches])
        self.lengths: Ints = table[_LENGTH].to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        number = int(np.searchsorted(self._ends, position, side="right"))
        batch = self._batches[number]
        inside = position - int(self._ends[number]) + batch.num_rows
        feature = {}
        for field in self._fields:
            value = _feature_value(batch.column(field.name)[inside], field)
            if value is not None:
                feature[field.name] = value
        return feature


def encoded(split: Split, task: Task, context: TaskContext, cache: Path, processor_fingerprint: str) -> Features:
    """Return the features of a split, encoded once and kept in ``cache`` for every later trial and worker.

    The cache's key covers the rows, the task and its code, its facts and options, the trial's parameters that begin with
    ``task.``, the maximal length and the processor. Workers that ask at the same time wait for the first.

    Args:
        split: the rows; further rows, as augmented ones, make a split of their own.
        task: encodes.
        context: with the processor set.
        cache: a folder, made where it is absent.
        processor_fingerprint: a digest of the tokenizer or image processor.

    Raises:
        PluginError: the task's features cannot be kept: not mappings, or of different types in one field.
        RunFolderError: the cache cannot be written, or a file of it is damaged.
    """
    own = {name: value for name, value in context.params.items() if name.startswith("task.")}
    facts, options = dict(context.facts), dict(context.options)
    key = _digest(
        [
            split.fingerprint,
            _task_state(task),
            facts,
            options,
            own,
            context.max_length,
            processor_fingerprint,
            __version__,
        ]
    )
    path = cache / f"features-{key}.arrow"
    if not path.is_file():
        with _writing(path):
            cache.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cache / f".features-{key}.lock"):
            if not path.is_file():
                _encode(split, task, context, path)
    return Features(_open_arrow(path))


def _encode(split: Split, task: Task, context: TaskContext, path: Path) -> None:
    # A later chunk may widen the types of an earlier one (an empty list, a first large number), so chunks are spooled
    # with their own types and written once the types of all are known.
    with tempfile.TemporaryFile(dir=path.parent) as spool:
        schemas = []
        for batch in split.table.to_batches(max_chunksize=_ENCODE_CHUNK):
            if batch.num_rows == 0:
                continue
            table = _feature_table(task.encode(batch.to_pylist(), context), task)
            schemas.append(table.schema)
            with _writing(path), pa.ipc.new_stream(spool, table.schema) as writer:
                writer.write_table(table)
        try:
            schema = (
                pa.unify_schemas(schemas, promote_options="permissive")
                if schemas
                else pa.schema([(_LENGTH, pa.int64())])
            )
        except pa.ArrowException as error:
            raise PluginError(
                f"task {task.card.name}: encode() gives features of different types ({first_line(error)})"
            ) from error
        spool.seek(0)
        _write_arrow(path, schema, _spooled(spool, len(schemas), schema))


def _spooled(spool: Any, count: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for _ in range(count):
        with pa.ipc.open_stream(spool) as reader:
            table = reader.read_all()
        widened = pa.concat_tables([schema.empty_table(), table], promote_options="permissive")
        yield from widened.select(schema.names).combine_chunks().to_batches()


def _feature_table(features: Sequence[Mapping[str, Any]], task: Task) -> pa.Table:
    if not features or not all(isinstance(feature, Mapping) for feature in features):
        raise PluginError(f"task {task.card.name}: encode() must return one mapping of features for each row")
    columns: dict[str, Any] = {}
    fields = []
    for name in dict.fromkeys(name for feature in features for name in feature):
        values = [feature.get(name) for feature in features]
        if all(value is None for value in values):
            # As where the field is absent: a later chunk says what it holds.
            continue
        try:
            if any(_is_array(value) for value in values):
                columns[name] = pa.array([_array_record(value) for value in values], _ARRAY_TYPE)
                fields.append(pa.field(name, _ARRAY_TYPE, metadata=_ARRAY))
            else:
                columns[name] = _narrow(pa.array(values))
                fields.append(pa.field(name, columns[name].type))
        except (pa.ArrowException, OverflowError, TypeError, AttributeError, UnicodeEncodeError) as error:
            raise PluginError(
                f"task {task.card.name}: encode() gives values under {name!r} that cannot be kept ({error})"
            ) from error
    columns[_LENGTH] = pa.array([task.length(feature) for feature in features], pa.int64())
    fields.append(pa.field(_LENGTH, pa.int64()))
    return pa.table(list(columns.values()), schema=pa.schema(fields))


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "detach")


def _array_record(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        # numpy has no bfloat16.
        value = (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy()
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise TypeError(f"an array of {array.dtype}")
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": array.tobytes()}


def _narrow(values: pa.Array) -> pa.Array:
    """Return whole numbers in 32 bits where they fit: token ids take half of the disk and the memory."""
    is_list = pa.types.is_list(values.type)
    kind = values.type.value_type if is_list else values.type
    if not pa.types.is_int64(kind):
        return values
    extremes = pc.min_max(values.values if is_list else values).as_py()
    if extremes["min"] is not None and not -(2**31) <= extremes["min"] <= extremes["max"] < 2**31:
        return values
    return values.cast(pa.list_(pa.int32()) if is_list else pa.int32())


def _feature_value(scalar: Any, field: pa.Field) -> Any:
    if not scalar.is_valid:
        return None
    if field.metadata == _ARRAY:
        shape = tuple(scalar["shape"].as_py())
        # A copy, because torch wants arrays that it may write to.
        return np.frombuffer(scalar["data"].as_buffer(), dtype=scalar["dtype"].as_py()).reshape(shape).copy()
    if pa.types.is_list(field.type) and field.type.value_type in _NUMBERS and scalar.values.null_count == 0:
        # Ten times faster than as_py, which makes a scalar of every token.
        return scalar.values.to_numpy(zero_copy_only=True).tolist()
    return scalar.as_py()


# ---------------------------------------------------------------------------------------------------- batches


def grouped_batches(lengths: npt.NDArray[Any], batch_size: int, rng: np.random.Generator) -> list[Ints]:
    """Return batches of positions with rows of similar length together, in random order.

    Rows are shuffled into groups of up to 50 batches, sorted by length inside of each, and cut into batches, as
    ``LengthGroupedSampler`` of transformers does: little padding, and batches that differ between epochs. The batch
    with the longest row comes first, so that memory that does not suffice shows at once; one batch may be short.

    Args:
        lengths: of each row, ``(rows,)``.
        batch_size: rows a batch.
        rng: decides the order.

    Raises:
        ValueError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    count = len(lengths)
    if count == 0:
        return []
    lengths = np.asarray(lengths)
    # At least four groups, so that small data is still shuffled.
    group = batch_size * max(1, min(count // (batch_size * 4), 50))
    order = rng.permutation(count)
    batches: list[Ints] = []
    for start in range(0, count, group):
        members = order[start : start + group]
        members = members[np.argsort(-lengths[members], kind="stable")]
        batches.extend(members[at : at + batch_size] for at in range(0, len(members), batch_size))
    shuffled = [batches[position] for position in rng.permutation(len(batches))]
    longest = max(range(len(shuffled)), key=lambda position: int(lengths[shuffled[position]].max()))
    shuffled.insert(0, shuffled.pop(longest))
    return shuffled
