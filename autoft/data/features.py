"""The features of a split: encoded once, kept for every later trial and worker."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, overload

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from autoft.contracts import Task, TaskCard, TaskContext
from autoft.data.columns import FILE_KINDS
from autoft.data.rows import Ints, Split
from autoft.data.storage import digest_of, open_arrow, task_state, write_arrow
from autoft.errors import PluginError, RunFolderError, first_line
from autoft.paths import digest_line
from autoft.rundir import write_text, writing
from autoft.version import __version__

__all__ = ["Features", "encoded", "expected_bytes"]

_ENCODE_CHUNK = 256
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

    def whole_numbers(self) -> Ints:
        """Return the whole numbers that stand in any field, each once, in rising order; of arrays those of 16 bits and more."""
        found: list[Any] = [np.empty(0, dtype=np.int64)]
        for batch in self._batches:
            for field in self._fields:
                found += _whole_numbers(batch.column(field.name), field)
        return np.unique(np.concatenate(found))


def expected_bytes(split: Split, card: TaskCard) -> int:
    """Return about how many bytes the features of a split will take, before any is encoded.

    A token is three to four bytes of text and becomes three numbers of 32 bits: its own, that it is to be read, and of which text it
    is. A picture becomes a byte for each colour of each point, 224 times 224 of them as most models read them. A row takes a little
    beside that.
    """
    files = [
        column.role for column in card.columns if column.kind in FILE_KINDS and column.role in split.table.column_names
    ]
    text = split.table.drop_columns(files).nbytes
    return 4 * int(text) + len(split) * (40 + len(files) * 3 * 224**2)


def encoded(
    split: Split,
    task: Task,
    context: TaskContext,
    cache: Path,
    processor_fingerprint: str,
    note: Callable[[str], None] = lambda text: None,
) -> Features:
    """Return the features of a split, encoded once and kept in ``cache`` for every later trial and worker.

    The cache's key covers the rows, the task and its code, its facts and options, the trial's parameters that begin with
    ``task.``, the maximal length and the processor. Workers that ask at the same time wait for the first. Each process looks once
    whether a file is what was written, by the digest beside it, and encodes anew what is not.

    Args:
        split: the rows; further rows, as augmented ones, make a split of their own.
        task: encodes.
        context: with the processor set.
        cache: a folder, made where it is absent.
        processor_fingerprint: a digest of the tokenizer or image processor.
        note: told in a sentence of a file that was damaged.

    Raises:
        PluginError: the task's features cannot be kept: not mappings, or of different types in one field.
        RunFolderError: the cache cannot be written.
    """
    own = {name: value for name, value in context.params.items() if name.startswith("task.")}
    facts, options = dict(context.facts), dict(context.options)
    key = digest_of(
        [
            split.fingerprint,
            task_state(task),
            facts,
            options,
            own,
            context.max_length,
            processor_fingerprint,
            __version__,
        ]
    )
    path = cache / f"features-{key}.arrow"
    with writing(path):
        cache.mkdir(parents=True, exist_ok=True)
    # Held until it is open: where the disk is full, what nobody holds is deleted.
    with filelock.FileLock(cache / f".features-{key}.lock"):
        digest = path.with_suffix(".sha256")
        if path.is_file() and digest.is_file():
            with suppress(RunFolderError):
                if digest.read_text(encoding="utf-8", errors="replace") == digest_line(path):
                    return Features(open_arrow(path))
            note(f"{path}: is not as it was written; its rows are encoded again.")
        _encode(split, task, context, path)
        write_text(digest, digest_line(path))
        return Features(open_arrow(path))


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
            with writing(path), pa.ipc.new_stream(spool, table.schema) as writer:
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
        write_arrow(path, schema, _spooled(spool, len(schemas), schema))


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


def _whole_numbers(values: pa.Array, field: pa.Field) -> Iterator[Ints]:
    if field.metadata == _ARRAY:
        arrays = (_feature_value(value, field) for value in values if value.is_valid)
        yield from (np.unique(one).astype(np.int64) for one in arrays if one.dtype.kind in "iu" and one.itemsize > 1)
        return
    while pa.types.is_list(values.type):
        values = values.flatten()
    if pa.types.is_integer(values.type):
        yield pc.drop_null(pc.unique(values)).to_numpy(zero_copy_only=False).astype(np.int64)
