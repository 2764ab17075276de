"""Commands on a model that a search left: predict."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from autoft.cli.common import app, told

TABLES = (".csv", ".tsv", ".parquet")
"""Suffixes of outputs that are tables; all others get JSON lines."""
CONTROLS = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What a text may hold that steers a terminal; below these JSON writes none as it is."""
NAMED = 5
"""Row numbers that a message still lists."""


@app.command()
@told
def predict(
    model: Annotated[Path, typer.Argument(help="A run folder, or a model that autoft exported.", show_default=False)],
    text: Annotated[list[str] | None, typer.Argument(help="Texts; none: rows from --input or standard input.")] = None,
    source: Annotated[Path | None, typer.Option("--input", help="A data file with the task's columns.")] = None,
    columns: Annotated[
        list[str],
        typer.Option(
            "--column", metavar="ROLE=NAME", help="Which column of --input is which, as text=review; repeatable."
        ),
    ] = [],  # noqa: B006 - typer copies it
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where predictions go: .csv, .tsv and .parquet as a table, else as JSON lines; default: standard output."
        ),
    ] = None,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Put the columns of the input beside the predictions; one of the same name becomes given_NAME.",
        ),
    ] = False,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1,
            help="Rows a forward pass. Some quantized models say of a row what depends on the rows beside it; with 1 it does not.",
        ),
    ] = 32,
) -> None:
    """Predict texts, a data file, or standard input (a text or a JSON object a line); one prediction a row, in order."""
    from autoft.artifact import load, undecided
    from autoft.errors import DataError
    from autoft.processes import silence_libraries

    if source and output and output.is_file() and source.is_file() and output.samefile(source):
        raise DataError(f"--output {output}: is the file of --input, which would be lost; give another one")
    silence_libraries()
    loaded = load(model)
    if told_first := undecided(loaded):
        print(f"warning: {told_first}", file=sys.stderr)
    rows = _rows(text, source, loaded, _mapping(columns))
    empty: list[int] = []
    predicted: set[str] = set()
    # Before the output is opened: an input that cannot be read leaves what an earlier call wrote.
    chunk = list(islice(rows, 16 * batch_size))
    with _written(output) as write:
        while chunk:
            whole = [row for row in chunk if row.given is not None]
            found = _predicted(loaded, whole, batch_size)
            predicted.update(*found)
            predictions = iter(found)
            for row in chunk:
                said = next(predictions) if row.given is not None else {}
                if row.given is None:
                    empty.append(row.number)
                write({**_beside(row.kept, predicted), **said} if keep else said)
            chunk = list(islice(rows, 16 * batch_size))
    if empty:
        named = ", ".join(map(str, empty[:NAMED])) + (" ..." if len(empty) > NAMED else "")
        print(
            f"warning: {len(empty)} row{'s have' if len(empty) > 1 else ' has'} no value in a column that the task needs, and an "
            f"empty prediction: {named}",
            file=sys.stderr,
        )


@dataclass(frozen=True)
class _Row:
    """A row to predict: its number in the input from 1, what the model gets (None: a column is empty), what the user gave."""

    number: int
    given: Any
    kept: Mapping[str, Any]


def _beside(kept: Mapping[str, Any], predicted: Collection[str]) -> dict[str, Any]:
    """Return what the user gave, under names that no prediction has: a true label must not look like a predicted one."""
    found = {name: value for name, value in kept.items() if name not in predicted}
    for name in kept:
        if name in predicted:
            other = f"given_{name}"
            while other in predicted or other in kept:
                other = f"given_{other}"
            found[other] = kept[name]
    return found


def _mapping(columns: Sequence[str]) -> dict[str, str]:
    from autoft.errors import DataError

    pairs = [column.partition("=") for column in columns]
    wrong = next(
        (column for column, (role, mark, name) in zip(columns, pairs, strict=True) if not (role and name)), None
    )
    if wrong is not None:
        raise DataError(f"--column {wrong}: needs the form ROLE=NAME, as text=review")
    return {role: name for role, _, name in pairs}


def _rows(text: Sequence[str] | None, source: Path | None, loaded: Any, mapping: Mapping[str, str]) -> Iterator[_Row]:
    from autoft.errors import DataError

    if text and source:
        raise DataError("give texts or --input, not both")
    if source:
        yield from _file_rows(source, loaded, mapping)
        return
    role = loaded.task.card.inputs[0].role
    for number, row in enumerate(text or _typed_rows(), start=1):
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            # So Python holds bytes of another encoding, and JSON half of a pair of surrogates.
            raise DataError(f"row {number}: holds what is not UTF-8 text") from None
        yield _Row(number, row, {role: row} if isinstance(row, str) else row)


def _file_rows(source: Path, loaded: Any, mapping: Mapping[str, str]) -> Iterator[_Row]:
    from dataclasses import replace

    from autoft.data.columns import load_inputs

    card = replace(loaded.task.card, columns=tuple(loaded.task.inputs(loaded.context)))
    mapped, table, complete = load_inputs(
        str(source), card, mapping, known=loaded.manifest.columns, base=Path.cwd(), where="--input"
    )
    number = 0
    for start in range(0, table.num_rows, 1024):
        for given, kept in zip(
            mapped.slice(start, 1024).to_pylist(), table.slice(start, 1024).to_pylist(), strict=True
        ):
            yield _Row(number + 1, given if complete[number] else None, kept)
            number += 1


def _typed_rows() -> Iterator[Any]:
    from autoft.errors import DataError

    number = 0
    try:
        for number, line in enumerate(sys.stdin, start=1):
            stripped = line.strip()
            if not stripped:
                continue
            if not stripped.startswith("{"):
                yield stripped
                continue
            try:
                row = json.loads(stripped)
            except (ValueError, RecursionError) as error:
                raise DataError(f"standard input, line {number}: is not a JSON object: {error}") from None
            yield row
    except UnicodeDecodeError:
        raise DataError(f"standard input: beyond line {number} it is not UTF-8 text") from None


def _predicted(loaded: Any, rows: Sequence[_Row], batch_size: int) -> Sequence[Mapping[str, Any]]:
    from autoft.errors import DataError

    try:
        found: Sequence[Mapping[str, Any]] = loaded.predict([row.given for row in rows], batch_size)
    except DataError as error:
        # A task counts the rows that it is given, which are a part of the input.
        def number(match: re.Match[str]) -> str:
            at = int(match[1])
            return f"row {rows[at - 1].number}" if 1 <= at <= len(rows) else match[0]

        raise DataError(re.sub(r"^row (\d+)\b", number, str(error))) from error
    return found


@contextmanager
def _written(output: Path | None) -> Iterator[Callable[[Mapping[str, Any]], Any]]:
    """Yield what a row is given to; a table is written when all are there."""
    if output is None:
        yield lambda row: sys.stdout.write(_line(row))
        sys.stdout.flush()
    elif output.suffix.lower() in TABLES:
        if not output.parent.is_dir():
            raise FileNotFoundError(2, "No such file or directory", str(output))
        rows: list[Mapping[str, Any]] = []
        yield rows.append
        _write_table(output, rows)
    else:
        with output.open("w", encoding="utf-8") as file:
            yield lambda row: file.write(_line(row))


def _line(row: Mapping[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False, default=str)
    # Letters of every language can be read as they are; of the rest JSON knows another way to say the same.
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet

        columns = {name: pa.array([row.get(name) for row in rows]) for name in names}
        pyarrow.parquet.write_table(pa.table(columns), path)
        return
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        writer.writerow(names)
        writer.writerows(_cells(row.get(name) for name in names) for row in rows)


def _cells(values: Iterable[Any]) -> list[Any]:
    """Return values as a cell holds them: lists and objects as JSON."""
    return [
        json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else value
        for value in values
    ]
