"""How many values the pages of a Parquet file hold: lists of a billion equal numbers take a few bytes of it.

pyarrow tells it of whole columns alone, in a call that ends the process where the file is damaged, and the file may say less there than its
pages hold. So it is read from the pages' headers, as its reader goes through them.

Sources: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift, for what is in which field, and
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md, for how it is written.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa

__all__ = ["page_values"]

_FOOTER = 8
"""Bytes at the end: the length of the footer, and a mark."""

_ROW_GROUPS, _COLUMNS, _METADATA = 4, 1, 3
_VALUES, _DATA_PAGE, _DICTIONARY_PAGE = 5, 9, 11
_KIND, _PACKED_SIZE, _HEADERS = 1, 3, {0: 5, 3: 8}
"""Numbers of fields: of the file, of a part of a column, and of a page, where each kind that has values says how many."""

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
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            length = int.from_bytes(data[-_FOOTER:-4], "little")
            for group in _Reader(data, len(data) - _FOOTER - length).struct()[_ROW_GROUPS]:
                for leaf in leaves:
                    found[leaf] += _values_of(data, group[_COLUMNS][leaf][_METADATA])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise pa.ArrowInvalid(f"what it says of its columns or pages is damaged: {type(error).__name__}") from error
    return found


def _values_of(data: mmap.mmap, column: dict[int, Any]) -> int:
    """Return the values of a part of a column, read until it has as many as it says, as pyarrow does."""
    read = 0
    # A file without a dictionary may say that it is at 0.
    at = min(filter(None, (column.get(_DICTIONARY_PAGE), column[_DATA_PAGE])))
    for _ in range(_MOST):
        if read >= column[_VALUES]:
            return read
        reader = _Reader(data, at)
        page = reader.struct()
        if page[_KIND] in _HEADERS:
            read += max(0, page[_HEADERS[page[_KIND]]][1])
        if page[_PACKED_SIZE] < 0:
            raise ValueError("a page of less than nothing")
        at = reader.at + page[_PACKED_SIZE]
    raise ValueError("pages without end")


class _Reader:
    """What is written by Thrift's compact protocol from a place on: structures as dictionaries by the numbers of their fields."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        if at < 0:
            raise ValueError("a place before the file")
        self.data, self.at = data, at

    def struct(self) -> dict[int, Any]:
        found: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._integer()
            found[field] = self._value(head & 15)
        return found

    def _value(self, kind: int) -> Any:
        match kind:
            case 1 | 2:
                return kind == 1
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._integer()
            case 7 | 8:
                # Fractions and texts, which nobody asks for.
                size = 8 if kind == 7 else self._number()
                self.at += size
                return None
            case 9 | 10:
                head = self._byte()
                size, element = head >> 4, head & 15
                if size == 15:
                    size = self._number()
                if size > _MOST:
                    raise ValueError("a list without end")
                # Truths have a byte each here, and are their own kind in a structure.
                return [self._byte() if element <= 2 else self._value(element) for _ in range(size)]
            case 12:
                return self.struct()
        raise ValueError("of no kind")

    def _integer(self) -> int:
        """Return a number with a sign, which is its last bit."""
        number = self._number()
        return number >> 1 ^ -(number & 1)

    def _number(self) -> int:
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
