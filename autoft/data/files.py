"""Read files of rows: csv, tsv, json, jsonl, parquet and Arrow, strictly, and with the place of every fault."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, AnyStr

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from autoft.data.encodings import Room, plain, plain_type, sound
from autoft.data.parquet_pages import page_values, texts_of_deltas
from autoft.data.rows import CHUNK, concatenated, rows_table, shortened
from autoft.errors import DataError, closest, first_line

__all__ = ["allowed_kinds", "check_arrow", "check_parquet", "is_data_file", "kind_of", "read_file"]


def read_file(path: Path) -> pa.Table:
    """Read one file of rows.

    Raises:
        DataError: it is empty, damaged, of a kind that cannot be read, or holds values that make no column.
    """
    kind = kind_of(path)
    if kind not in _READERS:
        near = closest(path.suffix, _READERS)
        hint = f" Did you mean {near}?" if near and near != kind else ""
        raise DataError(
            f"{path}: unknown kind of file {''.join(path.suffixes[-2:])!r}.{hint} Allowed: {allowed_kinds()}."
        )
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: is empty")
        return _READERS[kind](path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is a broken gzip file ({first_line(error)}); compress or fetch it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {_encoding_fault(path)}") from error
    except MemoryError as error:
        raise DataError(f"{path}: takes more memory than there is; take a part of it") from error
    except pa.ArrowException as error:
        raise DataError(f"{path}: is not a {kind.lstrip('.')} file, or is damaged ({first_line(error)})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or first_line(error)}") from error


def kind_of(path: Path) -> str:
    """Return the suffix that decides how a file is read: ``.csv`` of ``a.CSV.gz``; ``.parquet.gz`` is none."""
    name = path.name.lower()
    inner = Path(name.removesuffix(".gz")).suffix
    return inner if not name.endswith(".gz") or inner in _TEXT_KINDS else f"{inner}.gz"


def is_data_file(path: Path) -> bool:
    """Say whether a path is a file of a kind that can be read."""
    return path.is_file() and not path.name.startswith((".", "_")) and kind_of(path) in _READERS


def allowed_kinds() -> str:
    """Return the kinds of files that can be read, as a message lists them."""
    return f"{', '.join(_READERS)} ({', '.join(_TEXT_KINDS)} also as .gz)"


def _opened(path: Path) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        return io.BufferedReader(_Unpacked(path))
    Room(path).check(path.stat().st_size)
    return path.open("rb")


def _lines(file: IO[AnyStr], path: Path) -> Iterator[AnyStr]:
    """Give the lines of a file, as far as there is memory for each by itself."""
    room = Room(path)
    while line := file.readline(room.bytes // _OBJECTS + 1):
        room.check(_OBJECTS * len(line))
        yield line


_OBJECTS = 25
"""How many times its length a text can take as Python objects: ``{},`` is 72 bytes."""

_CELLS = 2**20
_TEXT = 2**24
"""Values of a csv file, and characters of a JSON one, that are Python objects at the same time, where a row has no more."""

_WIDTHS = {"INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}
"""Bytes of a number of a Parquet file."""

_LEVELS = 4
"""Bytes that say of each value of a list in a Parquet file where it stands."""

_PART = 2**28
"""Bytes of a Parquet file that are read at a time, where its rows are of one size."""


class _Unpacked(io.RawIOBase):
    """What a gzip file unpacks to, as far as there is memory for it: a few megabytes may unpack to terabytes."""

    def __init__(self, path: Path) -> None:
        self._file, self._room = gzip.GzipFile(path), Room(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._room.take(count)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


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
    limit = csv.field_size_limit(min(sys.maxsize, max(1, Room(path).bytes // _OBJECTS)))
    try:
        with _opened(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(_lines(text, path), delimiter=delimiter, quoting=quoting, strict=True)
            return _delimited_table(reader, path, delimiter)
    finally:
        csv.field_size_limit(limit)


def _delimited_table(reader: Any, path: Path, delimiter: str) -> pa.Table:
    names: list[str] = []
    chunks: list[list[pa.Array]] = []
    rows: list[list[str]] = []
    wrong: list[str] = []
    count, most, room = 0, CHUNK, Room(path)
    for start, row in _delimited_rows(reader, path):
        if not names:
            names = row
            _check_header(names, path, delimiter)
            most = max(1, min(CHUNK, _CELLS // len(names)))
        elif len(row) != len(names):
            count += 1
            if len(wrong) < 3:
                given = f"{len(row)} value{'s' if len(row) != 1 else ''}"
                wrong.append(f"line {start} has {given} for {len(names)} columns: {shortened(delimiter.join(row))!r}")
        else:
            rows.append(row)
            if len(rows) == most:
                chunks.append(_text_arrays(rows))
                room.take(sum(values.nbytes for values in chunks[-1]))
                rows = []
    if not names:
        raise DataError(f"{path}: is empty")
    if wrong:
        more = f" ({count} such lines)" if count > len(wrong) else ""
        mark = "a tab" if delimiter == "\t" else f"a {delimiter!r}"
        raise DataError(f'{path}: {"; ".join(wrong)}{more}; a value that holds {mark} or a line break needs "quotes"')
    if rows:
        chunks.append(_text_arrays(rows))
    table = pa.table(
        [pa.chunked_array([chunk[i] for chunk in chunks], pa.string()) for i in range(len(names))], names=names
    )
    if most < CHUNK:
        # Of very many columns only few rows are read at once, and each part of each column is gone through by itself.
        table = table.combine_chunks()
    return pa.table([_numbers(column) for column in table.columns], names=names)


def _delimited_rows(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Give each row that is not blank with the line that it begins on."""
    start = 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            open_quote = "unexpected end" in str(error) or "field limit" in str(error)
            problem = 'a "quote" that opens there is not closed' if open_quote else f"is malformed ({error})"
            raise DataError(
                f'{path}: line {start}: {problem}; a quote inside of a quoted value is written twice ("")'
            ) from None
        if row:
            yield start, row
        start = reader.line_num + 1


def _check_header(names: Sequence[str], path: Path, delimiter: str) -> None:
    if any("\0" in name for name in names):
        raise DataError(f"{path}: its first line holds zero bytes, as UTF-16 text does; save it as UTF-8")
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
    return _json_table(_json_elements(path), path)


def _json_whole(path: Path, otherwise: DataError | None) -> Any:
    """Return what a file holds that is no rows, to say what it is; it can take many times the memory of its text."""
    with _opened(path) as file:
        content = file.read()
    if _OBJECTS * len(content) > Room(path).bytes:
        raise otherwise or DataError(f"{path}: {_not_rows(None)}")
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_distinct)
    except _DuplicateKey as error:
        raise DataError(f"{path}: the key {str(error)!r} is given twice in one object") from None
    except (ValueError, RecursionError) as error:
        raise (otherwise or DataError(f"{path}: is not JSON: {first_line(error)}")) from None


_SPACE = re.compile(r"[ \t\n\r]*")


class _Elements:
    """The elements of a JSON array one by one, with their lengths: a whole array takes many times the memory of its text."""

    def __init__(self, source: IO[str], path: Path) -> None:
        self._source, self._path, self._room = source, path, Room(path)
        self._part = min(_TEXT, self._room.bytes // _OBJECTS)
        self._text, self._at, self._lines = "", 0, 0

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        self._mark("[")
        if self._next() != "]":
            yield self._element()
            while self._next() == ",":
                self._mark(",")
                yield self._element()
        self._mark("]")
        if self._next():
            raise self._fault("extra data after the array", self._at)

    def _element(self) -> tuple[Any, int]:
        decoder = json.JSONDecoder(object_pairs_hook=_distinct)
        self._next()
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # What is cut ends before the end of a word, or in a text that began anywhere.
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - 10
                if not (cut and self._more()):
                    raise self._fault(error.msg, error.pos) from None
                continue
            length, self._at = end - self._at, end
            return value, length

    def _mark(self, wanted: str) -> None:
        if self._next() != wanted:
            raise self._fault(f"Expecting {wanted!r}", self._at)
        self._at += 1

    def _next(self) -> str:
        """Go to what comes next that is no space, and return it; nothing at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # it matches nothing too
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _more(self) -> bool:
        rest = self._text[self._at :]
        self._room.check(_OBJECTS * len(rest))
        self._lines += self._text.count("\n", 0, self._at)
        new = self._source.read(max(self._part, len(rest)))
        self._text, self._at = rest + new, 0
        return bool(new)

    def _fault(self, what: str, at: int) -> DataError:
        line = self._lines + self._text.count("\n", 0, at) + 1
        near = self._text[at : at + 60]
        return DataError(
            f"{self._path}: is not JSON: {what}: line {line}" + (f", at {near!r}" if near else ", at its end")
        )


def _json_elements(path: Path) -> Iterator[tuple[str, dict[str, Any], int]]:
    number = 1
    with _opened(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as source:
        try:
            for number, (value, length) in enumerate(_Elements(source, path), 1):
                yield f"row {number}", _json_row(value, f"{path}: row {number}"), length
        except _DuplicateKey as error:
            raise DataError(f"{path}: the key {str(error)!r} is given twice in one object") from None
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: is not JSON: {first_line(error)}") from None


def _not_rows(value: Any) -> str:
    if isinstance(value, dict):
        inner = next(
            (name for name, part in value.items() if isinstance(part, list) and part and isinstance(part[0], dict)),
            None,
        )
        hint = f"; its key {inner!r} holds a list of objects: save that list" if inner else ""
        return f"is a single object; needs an array of objects, or one object a line{hint}"
    return "needs an array of objects, or one object a line"


def _json_lines(file: IO[bytes], path: Path) -> Iterator[tuple[str, dict[str, Any], int]]:
    for number, line in enumerate(_lines(file, path), 1):
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        if not text:
            continue
        try:
            value = json.loads(text, object_pairs_hook=_distinct)
        except _DuplicateKey as error:
            raise DataError(f"{path}: line {number}: the key {str(error)!r} is given twice") from None
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}: line {number} is not JSON: {error.msg} (column {error.colno}): {shortened(text)!r}"
            ) from None
        # A number of thousands of digits, or a thousand lists in one another.
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number} cannot be read: {first_line(error)}: {shortened(text)!r}") from None
        yield f"line {number}", _json_row(value, f"{path}: line {number}"), len(text)


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
        raise DataError(f'{where}: needs an object, as {{"text": ...}}, given {shortened(json.dumps(value))}')
    return value


def _json_table(rows: Iterable[tuple[str, dict[str, Any], int]], path: Path) -> pa.Table:
    tables = []
    places: list[str] = []
    chunk: list[dict[str, Any]] = []
    names, count, size, room = set[str](), 0, 0, Room(path)
    for place, row, length in rows:
        places.append(place)
        chunk.append(row)
        names.update(row)
        count, size = count + 1, size + length
        if len(chunk) == CHUNK or size > min(_TEXT, room.bytes // _OBJECTS):
            # Rows of which each has keys of its own make a table of mostly nothing.
            room.check(8 * len(names) * count)
            tables.append(rows_table(chunk, places, str(path)))
            room.take(tables[-1].nbytes)
            places, chunk, size = [], [], 0
    if chunk:
        room.check(8 * len(names) * count)
        tables.append(rows_table(chunk, places, str(path)))
    return concatenated(tables, str(path)) if tables else pa.table({})


def check_parquet(path: Path) -> None:
    """Raise where a Parquet file is damaged, or its rows take more than there is memory for; of them a part is held at a time.

    Raises:
        DataError: they do.
        pyarrow.ArrowException: it is damaged; also as an OSError.
    """
    _read_parquet(path, keep=False)


def _read_parquet(path: Path, *, keep: bool = True) -> pa.Table:
    from pyarrow.parquet import ParquetFile

    room = Room(path)
    with ParquetFile(path) as file:
        columns = [file.schema.column(place) for place in range(len(file.schema))]
        texts = {place: one for place, one in enumerate(columns) if one.physical_type == "BYTE_ARRAY"}
        # pyarrow ends the process where what a file says of a part of a column is damaged; of groups of rows it is not asked.
        groups = (file.metadata.row_group(place).total_byte_size for place in range(file.metadata.num_row_groups))
        rows, size = max(1, file.metadata.num_rows), max(1, sum(groups))
        widths = [max(_WIDTHS.get(one.physical_type, 1), one.length) for one in columns]
        nested = {place for place, one in enumerate(columns) if one.max_repetition_level}
        room.check(rows * max(8, sum(width for place, width in enumerate(widths) if place not in nested)))
        room.check(size)
    if nested:
        # Beside each value it is kept where in its lists it stands.
        room.check(sum(count * (widths[place] + _LEVELS) for place, count in page_values(path, nested).items()))
    levels = {place: (one.max_repetition_level, one.max_definition_level) for place, one in texts.items()}
    # They are read as they are, after it is known what they take.
    deltas = texts_of_deltas(path, levels, room)
    dictionaries = [one.path for place, one in texts.items() if place not in deltas]
    return _parquet_table(path, dictionaries, min(CHUNK, max(1, _PART * rows // size)), keep=keep)


def _parquet_table(path: Path, texts: Sequence[str], most: int, *, keep: bool) -> pa.Table:
    """Read a Parquet file, these columns as dictionaries and part by part: a value that comes a billion times takes a few bytes in it.

    Where the rows are not kept, they are looked at alone, and a table without any is returned.
    """
    from pyarrow.parquet import ParquetFile

    room = Room(path)
    with ParquetFile(path) as file:
        plain_schema = pa.schema([field.with_type(plain_type(field.type)) for field in file.schema_arrow])
        schema = plain_schema.with_metadata(file.schema_arrow.metadata)
    tables = [schema.empty_table()]
    with ParquetFile(path, read_dictionary=list(texts)) as file:
        for batch in file.iter_batches(most):
            # As a dictionary, a text is not looked at when it is read.
            part = sound(pa.Table.from_batches([batch]), path)
            room.take(sum(column.nbytes for column in part.columns if column.type == plain_type(column.type)))
            columns = [
                plain(column, room, f"{path}: column {field.name!r}").cast(field.type)
                for column, field in zip(part.columns, schema, strict=True)
            ]
            if keep:
                tables.append(pa.table(columns, schema=schema))
    return sound(pa.concat_tables(tables), path)


def _read_arrow(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        start = _check_arrow(file, path)
        file.seek(start)
        return sound(pa.ipc.open_stream(file).read_all(), path)


def check_arrow(path: Path) -> None:
    """Raise where the compressed parts of an Arrow file unpack to more than there is memory for.

    Raises:
        DataError: they do.
        pyarrow.ArrowInvalid: it is no Arrow file, or is damaged.
    """
    with pa.memory_map(str(path)) as file:
        _check_arrow(file, path)


def _check_arrow(file: pa.MemoryMappedFile, path: Path) -> int:
    """Check what is unpacked, and return where the stream begins: an Arrow file is one between a few bytes and an index."""
    start, wanted = 0, None
    if file.read(6) == b"ARROW1":
        start, wanted = 8, pa.ipc.open_file(file).num_record_batches
    file.seek(start)
    batches, room = 0, Room(path)
    for message in pa.ipc.MessageReader.open_stream(file):
        room.take(_unpacked_size(message))
        batches += message.type == "record batch"
    if wanted is not None and batches != wanted:
        raise pa.ArrowInvalid(f"holds {batches} batches, and its index names {wanted}")
    return start


def _unpacked_size(message: pa.Message) -> int:
    """Return the bytes that the compressed buffers of a message unpack to, as they say themselves; Arrow holds them to it.

    pyarrow shows that of no message: it is read from the flatbuffers, by Arrow's ``Message.fbs``. A file that is not
    compressed is mapped, and takes no memory.
    """
    head = message.metadata.to_pybytes()

    def number(form: str, at: int) -> int:
        return int(struct.unpack_from(f"<{form}", head, at)[0])

    def field(table: int, index: int) -> int:
        """Return where a table has a field, 0 where it has none."""
        layout = table - number("i", table)
        entry = 4 + 2 * index
        offset = number("H", layout + entry) if entry < number("H", layout) else 0
        return table + offset if offset else 0

    def below(at: int) -> int:
        return at + number("I", at)

    if message.type not in {"record batch", "dictionary"}:
        return 0
    try:
        batch = below(field(below(0), 2))
        if message.type == "dictionary":
            batch = below(field(batch, 1))
        if not field(batch, 3) or not field(batch, 2):
            return 0
        buffers = below(field(batch, 2))
        size = 0
        for at in range(buffers + 4, buffers + 4 + 16 * number("I", buffers), 16):
            start, length = struct.unpack_from("<qq", head, at)
            if length:
                # Each begins with how long it is unpacked; -1 where it is not packed.
                size += max(0, struct.unpack_from("<q", message.body, start)[0])
        return size
    except struct.error as error:
        raise pa.ArrowInvalid(f"a message is cut: {error}") from error


_READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
_TEXT_KINDS = (".csv", ".tsv", ".json", ".jsonl")
