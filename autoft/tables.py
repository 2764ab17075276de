"""Data that a program holds: taken out of a recipe's mapping, and kept in the run folder for the search to read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from autoft.data.rows import SPLITS, table_of_rows
from autoft.errors import DataError, first_line
from autoft.recipe import Recipe, load_recipe, recipe_from_mapping
from autoft.rundir import RunDir, replacing

__all__ = ["GivenRecipe", "GivenTable", "take_tables"]


@dataclass(frozen=True)
class GivenTable:
    """One split that was given as an object and not as a source."""

    split: str
    kind: str
    """What it was: ``DataFrame``, ``Dataset``, ``Table``, ``rows``."""
    table: pa.Table
    fingerprint: str
    """A digest of columns, types and values."""

    def path(self, run: RunDir) -> Path:
        """Return the file that holds it in a run folder: its name says what it was, and the content."""
        return run.given / f"{self.split}-{self.kind}-{self.fingerprint}.parquet"

    def write(self, run: RunDir) -> str:
        """Write the file, unless it is there, and return a sentence on it.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        path = self.path(run)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                pyarrow.parquet.write_table(self.table, partial)
        return f"data.{self.split}: {self.table.num_rows} rows of a {self.kind} given in Python, kept as {path}"


def take_tables(recipe: Mapping[str, Any]) -> tuple[dict[str, Any], list[GivenTable]]:
    """Take the objects out of a recipe's ``data``.

    Args:
        recipe: ``data``, or ``train``, ``validation`` and ``test`` in it, may be a DataFrame of pandas, a ``Dataset`` of
            the datasets library, a table of pyarrow or of what exports Arrow (polars, DuckDB), or a list of dicts.

    Returns:
        The recipe, whose ``data`` is a section without these splits where any were taken, and what was taken.

    Raises:
        DataError: an object holds no rows or values that cannot be kept.
    """
    given = recipe.get("data")
    section = dict(given) if isinstance(given, Mapping) else {"train": given}
    taken = [_given(name, section.pop(name)) for name in SPLITS if _is_table(section.get(name))]
    return ({**recipe, "data": section} if taken else dict(recipe)), taken


def _is_table(value: object) -> bool:
    if _library(value) in _READERS:
        return True
    if isinstance(value, str | bytes | Mapping):
        return False
    return isinstance(value, Sequence) or hasattr(value, "__arrow_c_stream__")


def _library(value: object) -> str:
    """Return the name of the library that an object comes from: to know it, nothing has to be imported."""
    return type(value).__module__.partition(".")[0]


def _given(split: str, value: Any) -> GivenTable:
    where, kind = f"data.{split}", type(value).__name__
    reader = _READERS.get(_library(value), _from_arrow)
    if isinstance(value, Sequence) and _library(value) not in _READERS:
        reader, kind = _from_rows, "rows"
    try:
        table = reader(value)
    except (pa.ArrowException, OverflowError, TypeError, ValueError, UnicodeEncodeError) as error:
        raise DataError(f"{where}: the {kind} cannot be kept: {first_line(error)}") from error
    except DataError as error:
        raise DataError(f"{where}: {error}") from error.__cause__
    if table.num_rows == 0:
        raise DataError(f"{where}: holds no rows")
    return GivenTable(split, kind, table, _fingerprint(table))


def _from_pandas(value: Any) -> pa.Table:
    if value.ndim != 2:
        raise TypeError("needs a DataFrame with the task's columns; series.to_frame() makes one")
    return pa.Table.from_pandas(value, preserve_index=False).replace_schema_metadata()


def _from_datasets(value: Any) -> pa.Table:
    if not hasattr(value, "features"):
        raise TypeError(f"needs one split of it; there are {', '.join(map(str, value))}")
    # Its metadata names the classes of numbered labels, which the reader of sources puts in their place.
    return value.with_format("arrow")[:].replace_schema_metadata(value.features.arrow_schema.metadata)


def _from_rows(value: Sequence[Any]) -> pa.Table:
    for number, row in enumerate(value):
        if not isinstance(row, Mapping):
            raise TypeError(
                f"row {number} is a {type(row).__name__}; each row has to be a dict with the task's columns"
            )
    return table_of_rows(value)


def _from_arrow(value: Any) -> pa.Table:
    return pa.table(value)


_READERS = {"pandas": _from_pandas, "datasets": _from_datasets}


def _fingerprint(table: pa.Table) -> str:
    digest = hashlib.blake2b(digest_size=8)
    digest.update(json.dumps([[field.name, str(field.type)] for field in table.schema]).encode())
    metadata = table.schema.metadata or {}
    digest.update(repr(sorted(metadata.items())).encode())
    for column in table.columns:
        # Values and not buffers: a slice and its copy are the same data.
        for value in column.to_pylist():
            digest.update(repr(value).encode("utf-8", "surrogatepass"))
            digest.update(b"\0")
    return digest.hexdigest()


class GivenRecipe:
    """A recipe as a caller gave it; data that it holds itself becomes files of a run folder."""

    def __init__(self, recipe: str | Path | Mapping[str, Any], overrides: Sequence[str]) -> None:
        self._recipe: str | Path | Mapping[str, Any] = recipe
        self._tables: list[GivenTable] = []
        if isinstance(recipe, Mapping):
            self._recipe, self._tables = take_tables(recipe)
        self._overrides = overrides

    @property
    def name(self) -> str:
        """What the run is called where it is not said."""
        # Where the files will be does not matter to the name.
        return self.read(RunDir("."))[0].name or "run"

    def read(self, run: RunDir) -> tuple[Recipe, Path]:
        """Return the recipe, checked, whose data is in the run folder where it was given, and the folder of its paths.

        Raises:
            RecipeError: faults in it.
        """
        if not isinstance(self._recipe, Mapping):
            return load_recipe(self._recipe, self._overrides), Path(self._recipe).absolute().parent
        recipe = dict(self._recipe)
        if self._tables:
            recipe["data"] = {**recipe["data"], **{one.split: str(one.path(run)) for one in self._tables}}
        return recipe_from_mapping(recipe, self._overrides), Path.cwd()

    def keep(self, run: RunDir) -> list[str]:
        """Write the given data into the run folder, and return a sentence on each split.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        return [one.write(run) for one in self._tables]
