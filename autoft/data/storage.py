"""Arrow files that are kept between calls, and the digests by which they are known."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from autoft.contracts import Task
from autoft.errors import RunFolderError, first_line
from autoft.rundir import replacing

__all__ = ["digest_of", "open_arrow", "task_state", "write_arrow"]


def write_arrow(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write an Arrow file so that a reader sees all of it or none; readers of an older one keep theirs.

    Raises:
        RunFolderError: the disk is full, or the folder cannot be written.
    """
    with replacing(path) as partial, partial.open("wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def open_arrow(path: Path) -> pa.Table:
    """Open what :func:`write_arrow` wrote, memory-mapped.

    Raises:
        RunFolderError: it is missing or damaged.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except FileNotFoundError:
        raise RunFolderError(f"{path}: is missing; run the search again to have it made") from None
    except (OSError, pa.ArrowException) as error:
        raise RunFolderError(f"{path}: is damaged ({first_line(error)}); delete it to have it made again") from error


def task_state(task: Task) -> list[Any]:
    """Return the task's name and a digest of the source files of its classes: a plugin that changes encodes anew."""
    state: list[Any] = [task.card.name]
    for kind in type(task).__mro__:
        if kind in Task.__mro__:
            continue
        file = inspect.getsourcefile(kind) if kind.__module__ != "__main__" else None
        source = Path(file).read_bytes() if file and Path(file).is_file() else kind.__qualname__.encode()
        state.append([kind.__module__, kind.__qualname__, hashlib.blake2b(source, digest_size=16).hexdigest()])
    return state


def digest_of(value: Any) -> str:
    """Return a digest of a value that JSON can hold, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
