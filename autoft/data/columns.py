"""Columns: which of a source's plays which role of the task, which rows are complete, and of what type the values are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from autoft.contracts import Column, TaskCard
from autoft.data.encodings import Room
from autoft.data.rows import Ints, Mask, count_of_rows, shortened
from autoft.data.sources import load_source, source_path
from autoft.errors import DataError, listed, unknown_name
from autoft.paths import named_path

__all__ = [
    "FILE_KINDS",
    "filter_rows",
    "harmonized",
    "load_inputs",
    "map_columns",
    "missing_values",
    "required_roles",
    "resolve_columns",
    "roomy",
    "with_files",
]

FILE_KINDS = frozenset({"image", "audio"})
"""Kinds of columns whose text names a file; :func:`with_files` says where it is looked for."""

_TEXTS = "texts"
"""Kind of a column that holds a text or a list of such."""


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
    columns, _ = resolve_columns(table.column_names, card, mapping, where)
    mapped = _selected(table, card, columns, where)
    complete = mapped.filter(pa.array(_complete(mapped, card)))
    if complete.num_rows == 0:
        raise DataError(f"{where}: none of its {table.num_rows} rows has a value in each of {required_roles(card)}")
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
        columns, _ = resolve_columns(table.column_names, card, {**taken, **mapping}, where)
    except DataError as error:
        said, mark, _ = str(error).partition(" Say which is which, as")
        hint = f" Say which is which, as --column {card.columns[0].role}=NAME" if mark else ""
        raise DataError(said + hint) from error
    mapped = with_files(_selected(table, card, columns, where), card, source, base, where)
    return mapped, table, _complete(mapped, card).tolist()


def required_roles(card: TaskCard) -> str:
    """Return the roles that need a column, as a message lists them."""
    return ", ".join(column.role for column in card.columns if column.required)


def resolve_columns(
    names: Sequence[str], card: TaskCard, mapping: Mapping[str, str], where: str
) -> tuple[dict[str, str], list[str]]:
    """Return the column of each role, and what about the guesses a user should know.

    Raises:
        DataError: as :func:`map_columns` does, but for rows.
    """
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
    return f"Its columns: {listed(names)}. Say which is which, as\n  data:\n    columns: {{{example}}}"


def _selected(table: pa.Table, card: TaskCard, columns: Mapping[str, str], where: str) -> pa.Table:
    # Of a file that is mapped, the columns that are used come into memory here, and no others.
    Room(where).check(sum(table[name].nbytes for name in columns.values()))
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
            mask &= ~missing_values(table[column.role], column)
    return mask


def missing_values(values: pa.ChunkedArray, column: Column) -> Mask:
    """Say for each row whether it has no value: null, NaN, blank text, or an empty list of inputs."""
    kind = values.type
    missing = pc.is_null(values, nan_is_null=pa.types.is_floating(kind))
    if _is_text(kind):
        blank = pc.equal(pc.utf8_trim_whitespace(values.cast(pa.large_string())), "")
        missing = pc.or_(missing, pc.fill_null(blank, True))
    elif (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and not column.target:
        # An empty list of targets says something: no label applies.
        missing = pc.or_(missing, pc.fill_null(pc.equal(pc.list_value_length(values), 0), True))
    return np.asarray(missing.to_numpy(), dtype=bool)


def filter_rows(table: pa.Table, wanted: Mapping[str, Any], where: str) -> tuple[pa.Table, Ints, list[str]]:
    """Keep the rows that ``data.where`` asks for; also says where they stood, and which of its values no row has.

    Raises:
        DataError: a column is unknown or nested, or no row is left.
    """
    notes = []
    places = np.arange(table.num_rows, dtype=np.int64)
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
                f"there are {', '.join(shortened(repr(item), 40) for item in common[:10])}{more}"
            )
        found = {_comparable(item) for item in keep}
        absent = [repr(item) for key, item in given.items() if key not in found]
        if absent:
            notes.append(f"data.where.{name}: no row of {where} has {', '.join(absent)}")
        chosen = pc.is_in(values, value_set=pa.array(keep, values.type))
        table, places = table.filter(chosen), places[chosen.to_numpy()]
        if table.num_rows == 0:
            raise DataError(f"data.where: no row of {where} has all of {dict(wanted)!r}")
    return table, places, notes


def _comparable(value: Any) -> str:
    """Return a value as the text by which YAML, csv and JSON agree: ``5`` is ``"5"`` is ``5.0``, true is ``"True"``."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value)
    return text.lower() if text.lower() in {"true", "false"} else text


def with_files(table: pa.Table, card: TaskCard, source: str, base: Path, where: str) -> pa.Table:
    """Return the table with absolute paths in columns that name files.

    A file stands beside the data, or else beside the recipe (``base``), or else in the working directory.

    Raises:
        DataError: one is in none of these.
    """
    for column in card.columns:
        if column.kind not in FILE_KINDS or column.role not in table.column_names:
            continue
        values = table[column.role]
        if not _is_text(values.type):
            continue
        folders = [base, Path.cwd()]
        if not source.startswith("hub://"):
            path = source_path(source, base)
            folders.insert(0, path if path.is_dir() else path.parent)
        paths = [_first_file(value, folders) for value in values.to_pylist()]
        lost = [value for value, path in zip(values.to_pylist(), paths, strict=True) if value and path is None]
        if lost:
            looked = ", ".join(dict.fromkeys(map(str, folders)))
            raise DataError(
                f"{where}: {count_of_rows(len(lost), len(paths))} name a file that is not there, as {lost[0]!r} (looked in {looked})"
            )
        at = table.column_names.index(column.role)
        table = table.set_column(at, column.role, pa.array(paths, pa.string()))
    return table


def _first_file(value: str | None, folders: Sequence[Path]) -> str | None:
    if value is None:
        return None
    path = named_path(value, *folders)
    return str(path.absolute()) if path is not None and path.is_file() else None


def roomy(table: pa.Table) -> pa.Table:
    """Return the table with 64-bit offsets where a column is large: taking rows puts it into one array of at most 2 GB."""
    wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
    columns = [
        column.cast(wide.get(column.type, column.type)) if column.nbytes > 2**30 else column for column in table.columns
    ]
    return pa.table(columns, names=table.column_names)


def harmonized(tables: dict[str, pa.Table], card: TaskCard) -> dict[str, pa.Table]:
    """Give a column one type in all splits: text where one split holds text and another numbers that are codes too.

    In a column of kind ``texts`` one split may hold a text a row and another a list of texts, as the test split of a data
    set often has more references than the others; then all hold lists.
    """
    listed = {column.role for column in card.columns if column.kind == _TEXTS}
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
