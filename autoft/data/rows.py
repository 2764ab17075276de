"""Rows in Arrow: made of Python objects, looked at as such, and known by digests of their values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from autoft.contracts import Row, TaskCard
from autoft.errors import DataError, first_line

__all__ = [
    "CHUNK",
    "GROUP",
    "SLICE",
    "SPLITS",
    "Ints",
    "Keys",
    "Mask",
    "Split",
    "concatenated",
    "count_of_rows",
    "row_keys",
    "rows_table",
    "shortened",
    "table_of_rows",
]

SPLITS = ("train", "validation", "test")

SLICE = "slice:"
"""How roles begin that the recipe's ``data.slices`` adds to the rows; the column's name follows."""
GROUP = "data.group"
"""The role of the column that the recipe's key of this name adds to the training rows."""
CHUNK = 4096
"""Rows that are Python objects at the same time."""

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


def table_of_rows(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a table; a column that a row lacks is empty there.

    Raises:
        DataError: a column holds values of different kinds, or such as Arrow does not know.
    """
    return rows_table(rows, [f"row {number}" for number in range(len(rows))], "the rows")


def rows_table(rows: Sequence[Mapping[str, Any]], places: Sequence[str], origin: str) -> pa.Table:
    """Return rows as a table; a column that a row lacks is empty there.

    Args:
        rows: from column to value.
        places: where each row stands, as ``line 3``, for messages.
        origin: what the rows come from, for messages.

    Raises:
        DataError: a column holds values of different kinds, or such as Arrow does not know.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            place = next(place for row, place in zip(rows, places, strict=True) if name in row)
            raise DataError(f"{origin}: {place}: the key {name!r} holds half of a surrogate pair, which is not Unicode")
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
                f"{place}: column {name!r} holds {shortened(repr(value))}, but earlier rows hold values as "
                f"{shortened(repr(first))}; a column needs values of one kind"
            )
    return f"column {name!r} holds values of different kinds; a column needs values of one kind"


def concatenated(tables: Sequence[pa.Table], origin: str) -> pa.Table:
    """Return the rows of all tables, each column of the widest type that it has in one of them.

    Raises:
        DataError: a column has types that do not go together; ``origin`` stands in the message.
    """
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"{origin}: {first_line(error)}; a column needs values of one kind") from error


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
        return cls(rows_table(rows, [f"row {number}" for number in range(1, len(rows) + 1)], "rows"))

    @property
    def fingerprint(self) -> str:
        """A digest of all values and column names, the same on every machine."""
        if self._fingerprint is None:
            digest = hashlib.blake2b(json.dumps(sorted(self.table.column_names)).encode(), digest_size=16)
            digest.update(row_keys(self.table, sorted(self.table.column_names)).tobytes())
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
        for batch in self.table.to_batches(max_chunksize=CHUNK):
            yield from batch.to_pylist()

    def rows(self, indices: Sequence[int] | Ints) -> list[Row]:
        """Return the rows at these positions, in this order."""
        return list(self.table.take(pa.array(np.asarray(indices, dtype=np.int64))).to_pylist())

    def inputs(self, card: TaskCard) -> list[Row]:
        """Return all rows without the columns that a prediction must not see."""
        targets = {column.role for column in card.targets}
        hidden = {*targets, GROUP}
        kept = [name for name in self.table.column_names if name not in hidden and not name.startswith(SLICE)]
        return list(self.table.select(kept).to_pylist())


def row_keys(table: pa.Table, roles: Sequence[str]) -> Keys:
    """Return a 64-bit digest of the values of these roles for each row, ``(rows,)``; an absent role is null."""
    keys = np.empty(table.num_rows, dtype=np.uint64)
    at = 0
    for batch in table.to_batches(max_chunksize=CHUNK):
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


def count_of_rows(count: int, total: int) -> str:
    """Return a share of rows as a message says it."""
    return f"{count} of {total} rows"


def shortened(text: str, length: int = 60) -> str:
    """Return the text with an ellipsis for its end where it has more than ``length`` characters."""
    return text if len(text) <= length else f"{text[: length - 3]}..."
