"""What the pages of a Parquet file hold: lists of a billion equal numbers, or a text that is the one before a billion times, take a few bytes.

pyarrow tells it of whole columns alone, in a call that ends the process where the file is damaged, and the file may say less there than its
pages hold. So it is read from the pages, as its reader goes through them.

Sources: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift, for what is in which field,
https://github.com/apache/parquet-format/blob/master/Encodings.md, for texts as differences, and
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md, for how fields are written.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from autoft.data.encodings import Room

__all__ = ["page_values", "texts_of_deltas"]

_FOOTER = 8
"""Bytes at the end: the length of the footer, and a mark."""

_ROW_GROUPS, _COLUMNS, _METADATA = 4, 1, 3
_CODEC, _VALUES, _DATA_PAGE, _DICTIONARY_PAGE = 4, 5, 9, 11
_KIND, _SIZE, _PACKED_SIZE, _HEADERS = 1, 2, 3, {0: 5, 3: 8}
_ENCODINGS, _DICTIONARY = {0: 2, 3: 4}, 2
"""Numbers of fields: of the file, of a part of a column, and of a page, where each kind that has values says how many, and how encoded."""

_DELTA_LENGTHS, _DELTAS, _ENCODED = 6, 7, {2, 8}
"""Encodings of texts: their lengths as differences, themselves as differences, and by a dictionary."""

_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}

_MOST = 1_000_000
"""Elements of a list, as many as pyarrow takes, and pages of a part of a column."""


def page_values(path: Path, leaves: Collection[int]) -> dict[int, int]:
    """Return how many values the pages of columns hold, nulls and empty lists among them.

    Args:
        path: a file that pyarrow opens.
        leaves: places of the columns in the file's schema, whose leaves are counted through.

    Raises:
        pyarrow.ArrowInvalid: the footer or a page is damaged.
    """
    found = dict.fromkeys(leaves, 0)
    with _pages(path, leaves) as (_, pages):
        for leaf, _, page, _ in pages:
            found[leaf] += _values_in(page)
    return found


def texts_of_deltas(path: Path, leaves: Mapping[int, tuple[int, int]], room: Room) -> set[int]:
    """Return the columns of texts with pages of differences, which pyarrow does not read as dictionaries, if all of these have room.

    Args:
        path: a file that pyarrow opens.
        leaves: places of the columns in the file's schema, each with its greatest repetition and definition level.
        room: what the texts may take when they are written out.

    Raises:
        DataError: they take more.
        pyarrow.ArrowInvalid: the footer or a page is damaged.
    """
    sizes = dict.fromkeys(leaves, 0)
    longest = dict.fromkeys(leaves, 0)
    found = set[int]()
    with _pages(path, leaves) as (data, pages):
        for leaf, codec, page, body in pages:
            # Room for where each value begins, too.
            size = 8 * _values_in(page)
            encoding = page[_HEADERS[page[_KIND]]][_ENCODINGS[page[_KIND]]] if page[_KIND] in _HEADERS else None
            room.check(max(size, page[_SIZE]))
            if page[_KIND] == _DICTIONARY:
                longest[leaf] = _longest(_unpacked(data[body], codec, page[_SIZE]))
            elif encoding in _ENCODED:
                size += _values_in(page) * longest[leaf]
            elif encoding == _DELTAS:
                size += _written_out(_values_of_page(page, data[body], codec, leaves[leaf]), _values_in(page))
            else:
                size += page[_SIZE]
            if encoding in {_DELTAS, _DELTA_LENGTHS}:
                found.add(leaf)
            sizes[leaf] += size
    room.take(sum(sizes[leaf] for leaf in found))
    return found


_Page = tuple[int, int, dict[int, Any], slice]
"""The leaf of a page, its codec, its header, and where what follows that stands in the file."""


@contextlib.contextmanager
def _pages(path: Path, leaves: Iterable[int]) -> Iterator[tuple[mmap.mmap, Iterator[_Page]]]:
    """Give a file and the pages of its columns.

    Raises:
        pyarrow.ArrowInvalid: the footer or a page is damaged.
    """

    def pages() -> Iterator[_Page]:
        length = int.from_bytes(data[-_FOOTER:-4], "little")
        for group in _Reader(data, len(data) - _FOOTER - length).struct()[_ROW_GROUPS]:
            for leaf in leaves:
                column = group[_COLUMNS][leaf][_METADATA]
                for page, body in _pages_of(data, column):
                    yield leaf, column.get(_CODEC, 0), page, body

    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data, pages()
    except (
        AttributeError,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        RecursionError,
        OSError,
    ) as error:
        raise pa.ArrowInvalid(f"what it says of its columns or pages is damaged: {type(error).__name__}") from error


def _pages_of(data: mmap.mmap, column: dict[int, Any]) -> Iterator[tuple[dict[int, Any], slice]]:
    """Yield the pages of a part of a column, until they have as many values as it says, as pyarrow does."""
    read = 0
    # A file without a dictionary may say that it is at 0.
    at = min(filter(None, (column.get(_DICTIONARY_PAGE), column[_DATA_PAGE])))
    for _ in range(_MOST):
        if read >= column[_VALUES]:
            return
        reader = _Reader(data, at)
        page = reader.struct()
        read += _values_in(page)
        if page[_PACKED_SIZE] < 0:
            raise ValueError("a page of less than nothing")
        at = reader.at + page[_PACKED_SIZE]
        yield page, slice(reader.at, at)
    raise ValueError("pages without end")


def _values_in(page: dict[int, Any]) -> int:
    return max(0, page[_HEADERS[page[_KIND]]][1]) if page[_KIND] in _HEADERS else 0


def _unpacked(body: bytes, codec: int, size: int) -> bytes:
    if codec == 0:
        return body
    if codec not in _CODECS:
        raise ValueError("packed as nobody does any more")
    return bytes(pa.decompress(body, size, _CODECS[codec], asbytes=True))


def _values_of_page(page: dict[int, Any], body: bytes, codec: int, levels: tuple[int, int]) -> bytes:
    """Return what follows the levels of a page of data."""
    if page[_KIND] == 0:
        body = _unpacked(body, codec, page[_SIZE])
        at = 0
        for most in levels:
            if most:
                at += 4 + int.from_bytes(body[at : at + 4], "little")
        return body[at:]
    fields = page[_HEADERS[3]]
    at = fields[5] + fields[6]
    return _unpacked(body[at:], codec, page[_SIZE] - at) if fields.get(7, True) else body[at:]


def _longest(body: bytes) -> int:
    """Return the length of the longest text of a dictionary, each written after its length."""
    found = at = 0
    while at < len(body):
        length = int.from_bytes(body[at : at + 4], "little")
        found, at = max(found, length), at + 4 + length
    return found


def _written_out(body: bytes, most: int) -> int:
    """Return the bytes of texts of which each is told by how much of the one before it begins with, and by the rest.

    Args:
        body: the lengths of what is taken over, by the encoding of whole numbers as differences, and the rest.
        most: texts there can be.
    """
    reader = _Reader(body, 0)
    block, parts, count, value = reader.number(), reader.number(), reader.number(), reader.integer()
    if count > most or not 0 < parts <= block or block % (8 * parts):
        raise ValueError("more texts than values")
    total, read = value if count else 0, 1
    while read < count:
        least = reader.integer()
        widths = body[reader.at : reader.at + parts]
        reader.at += parts
        for width in widths:
            taken = min(block // parts, count - read)
            if taken <= 0:
                break
            end = reader.at + block // parts * width // 8
            bits = np.unpackbits(np.frombuffer(body[reader.at : end], np.uint8), bitorder="little")
            above = (
                bits.reshape(-1, width)[:taken].astype(np.float64) @ 2.0 ** np.arange(width)
                if width
                else np.zeros(taken)
            )
            values = value + np.cumsum(above + least)
            if len(values) != taken or values.min() < 0:
                raise ValueError("no lengths")
            value, total, reader.at, read = int(values[-1]), total + int(values.sum()), end, read + taken
    return total + len(body)


class _Reader:
    """What is written by Thrift's compact protocol from a place on: structures as dictionaries by the numbers of their fields."""

    def __init__(self, data: mmap.mmap | bytes, at: int) -> None:
        if at < 0:
            raise ValueError("a place before the file")
        self.data, self.at = data, at

    def struct(self) -> dict[int, Any]:
        found: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self.integer()
            found[field] = self._value(head & 15)
        return found

    def _value(self, kind: int) -> Any:
        match kind:
            case 1 | 2:
                return kind == 1
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self.integer()
            case 7 | 8:
                # Fractions and texts, which nobody asks for.
                size = 8 if kind == 7 else self.number()
                self.at += size
                return None
            case 9 | 10:
                head = self._byte()
                size, element = head >> 4, head & 15
                if size == 15:
                    size = self.number()
                if size > _MOST:
                    raise ValueError("a list without end")
                # Truths have a byte each here, and are their own kind in a structure.
                return [self._byte() if element <= 2 else self._value(element) for _ in range(size)]
            case 12:
                return self.struct()
        raise ValueError("of no kind")

    def integer(self) -> int:
        """Return a number with a sign, which is its last bit."""
        number = self.number()
        return number >> 1 ^ -(number & 1)

    def number(self) -> int:
        """Return a number of seven bits a byte, the lowest first, of which the last has no eighth."""
        number = 0
        for shift in range(0, 70, 7):
            part = self._byte()
            number |= (part & 127) << shift
            if part < 128:
                return number
        raise ValueError("a number without end")

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]
