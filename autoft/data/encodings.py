"""Columns as plain values, as far as there is memory for them: Arrow has many ways to write a value once and use it often."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from autoft.errors import DataError, first_line
from autoft.hardware import memory_left
from autoft.quantities import format_bytes

__all__ = ["Room", "plain", "plain_type", "sound"]

_PIECE = 2**28
"""Bytes that are written out at a time, where values are smaller: an array of text holds at most 2 GB."""

_VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


class Room:
    """The memory that the rows of a source may take: half of what is free, for they are held twice at times.

    Attributes:
        bytes: of it, those taken included.
    """

    def __init__(self, source: Path | str) -> None:
        self.bytes = memory_left()[0] // 2
        self._source, self._taken = source, 0.0

    def check(self, size: float) -> None:
        """Raise where so many bytes do not fit.

        Raises:
            DataError: they do not.
        """
        if size > self.bytes:
            raise DataError(
                f"{self._source}: takes more than the {format_bytes(self.bytes)} that there is memory for; take a part of it"
            )

    def take(self, size: float) -> None:
        """Raise where so many bytes do not fit beside those taken before.

        Raises:
            DataError: they do not.
        """
        self._taken += size
        self.check(self._taken)


def sound(table: pa.Table, source: Path | str) -> pa.Table:
    """Return the table once all of it is known to be readable; Arrow takes a file at its word until a value is asked for.

    Raises:
        DataError: written out it takes more memory than there is.
        pyarrow.ArrowInvalid: text that is not UTF-8, or values beyond the end of their buffer.
    """
    table.validate()
    room = Room(source)
    try:
        for column in table.columns:
            # A million views of one long text would be looked at one by one.
            for chunk in column.chunks if _may_repeat(column.type) else ():
                room.check(float(_sizes(chunk, room).sum()) - chunk.get_total_buffer_size())
    except (IndexError, ValueError) as error:
        raise pa.ArrowInvalid(f"an index is out of bounds: {first_line(error)}") from error
    table.validate(full=True)
    return table


def _may_repeat(kind: pa.DataType) -> bool:
    """Say whether values of a type can be longer together than what the file holds."""
    return bool(pa.types.is_nested(kind) or kind != plain_type(kind))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the same values without dictionaries, runs, views and extensions, at any depth."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_struct(kind):
        return pa.struct([_plain_field(kind.field(i)) for i in range(kind.num_fields)])
    if pa.types.is_map(kind):
        return pa.map_(_plain_field(kind.key_field), _plain_field(kind.item_field), kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain_field(kind.value_field), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(_plain_field(kind.value_field))
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(_plain_field(kind.value_field))
    return _VIEWS.get(kind, kind)


def _plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(plain_type(field.type))


def plain(column: pa.ChunkedArray, room: Room, where: str) -> pa.ChunkedArray:
    """Return a column with each value written out.

    Args:
        column: of any type that Arrow knows.
        room: what the values may take.
        where: the column, for messages.

    Raises:
        DataError: there is not the memory for it, or a value is too large for an array.
    """
    if not _may_repeat(column.type):
        return column
    kind = plain_type(column.type)
    parts = list[pa.Array]()
    for chunk in column.chunks:
        if not len(chunk):
            continue
        sizes = _sizes(chunk, room)
        if kind == column.type:
            # Nothing is written, and what is mapped takes no memory; but a list of a billion nulls takes none on disk either.
            room.check(float(sizes.sum()) - chunk.get_total_buffer_size())
            parts.append(chunk)
            continue
        room.take(float(sizes.sum()))
        starts = np.unique((np.cumsum(sizes) - sizes) // _PIECE, return_index=True)[1].tolist()
        try:
            parts += [
                _written(chunk.slice(start, end - start), kind)
                for start, end in zip(starts, [*starts[1:], len(chunk)], strict=True)
            ]
        except pa.ArrowException as error:
            raise DataError(f"{where} holds {column.type}, which cannot be read ({first_line(error)})") from error
    return pa.chunked_array(parts, kind)


def _written(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if values.type == kind:
        return values
    if isinstance(values, pa.DictionaryArray):
        return _written(values.dictionary_decode(), kind)
    if isinstance(values, pa.RunEndEncodedArray):
        return _written(pc.run_end_decode(values), kind)
    if isinstance(values, pa.ExtensionArray):
        return _written(values.storage, kind)
    if isinstance(values, pa.StructArray):
        fields = [_written(values.field(i), kind.field(i).type) for i in range(kind.num_fields)]
        return pa.StructArray.from_arrays(fields, fields=list(kind), mask=values.is_null())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        # Arrow's own cast of list views takes those that overlap for empty ones.
        lengths = pc.list_value_length(values).fill_null(0).to_numpy()
        offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32() if pa.types.is_list(kind) else pa.int64())
        made = pa.ListArray if pa.types.is_list(kind) else pa.LargeListArray
        inner = _written(values.flatten(), kind.value_type)
        return made.from_arrays(offsets, inner, type=kind, mask=values.is_null())
    if pa.types.is_nested(kind):
        return pa.array(values.to_pylist(), kind)
    return values.cast(kind)


def _sizes(values: pa.Array, room: Room) -> npt.NDArray[np.float64]:
    """Return the bytes that each value takes where it is written out, ``(len(values),)``; nothing is written for that.

    Floats: ten lists in one another of a thousand views of the next hold more than 64 bits count.
    """
    kind = values.type
    # A list of a billion nulls has no bytes of its own.
    room.check(8.0 * len(values))
    if isinstance(values, pa.ExtensionArray):
        return _sizes(values.storage, room)
    if isinstance(values, pa.DictionaryArray):
        own = np.append(_sizes(values.dictionary, room), 0.0)
        return np.asarray(own[values.indices.cast(pa.int64()).fill_null(len(own) - 1).to_numpy()])
    if isinstance(values, pa.RunEndEncodedArray):
        places = np.arange(values.offset, values.offset + len(values))
        own = _sizes(values.values, room)
        return np.asarray(own[np.searchsorted(values.run_ends.to_numpy(), places, side="right")])
    if isinstance(values, pa.StructArray):
        fields = [_sizes(values.field(i), room) for i in range(kind.num_fields)]
        return np.asarray(np.full(len(values), 8.0) + np.sum(fields, axis=0))
    if isinstance(values, pa.UnionArray):
        return _union_sizes(values, room)
    if kind in _VIEWS:
        # The length is the first four of the sixteen bytes of a view.
        lengths = np.frombuffer(values.buffers()[1] or b"", np.int32)[::4][values.offset : values.offset + len(values)]
        return np.where(values.is_valid().to_numpy(False), np.maximum(lengths, 0), 0) + 8.0
    if pa.types.is_fixed_size_list(kind):
        inner = _sizes(values.values.slice(values.offset * kind.list_size, len(values) * kind.list_size), room)
        return np.asarray(inner.reshape(len(values), kind.list_size).sum(axis=1) + 8.0)
    if pa.types.is_nested(kind):
        return _list_sizes(values, room)
    if pa.types.is_null(kind):
        return np.full(len(values), 8.0)
    try:
        return np.full(len(values), kind.bit_width / 8)
    except ValueError:
        return np.asarray(pc.binary_length(values).fill_null(0), np.float64) + 8.0


def _list_sizes(values: pa.Array, room: Room) -> npt.NDArray[np.float64]:
    parts = [values.keys, values.items] if isinstance(values, pa.MapArray) else [values.values]
    starts = values.offsets.to_numpy()
    if pa.types.is_list_view(values.type) or pa.types.is_large_list_view(values.type):
        ends = starts + values.sizes.to_numpy().astype(np.int64)
    else:
        starts, ends = starts[:-1], starts[1:]
    total = np.full(len(values), 8.0)
    for part in parts:
        upto = np.append(0.0, np.cumsum(_sizes(part, room)))
        total += upto[ends] - upto[starts]
    return np.where(values.is_valid().to_numpy(False), total, 8.0)


def _union_sizes(values: pa.UnionArray, room: Room) -> npt.NDArray[np.float64]:
    codes = values.type_codes.to_numpy()
    total = np.full(len(values), 8.0)
    for place, code in enumerate(values.type.type_codes):
        own, at = _sizes(values.field(place), room), codes == code
        total[at] += own[values.offsets.to_numpy()[at]] if values.type.mode == "dense" else own[at]
    return total
