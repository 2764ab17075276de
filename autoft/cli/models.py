"""Commands on a model that a search left: predict."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from autoft.cli.common import app, told


@app.command()
@told
def predict(
    model: Annotated[Path, typer.Argument(help="A run folder, or a model that autoft exported.", show_default=False)],
    text: Annotated[list[str] | None, typer.Argument(help="Texts; none: rows from --input or standard input.")] = None,
    source: Annotated[Path | None, typer.Option("--input", help="A data file with the task's columns.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where the JSON lines go; default: standard output.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a forward pass.")] = 32,
) -> None:
    """Predict texts, a data file, or standard input (a text or a JSON object a line); one JSON object a line."""
    from autoft.api import load
    from autoft.processes import silence_libraries

    silence_libraries()
    loaded = load(model)
    rows = _rows(text, source, loaded.task.card, loaded.manifest.columns)
    with output.open("w", encoding="utf-8") if output else _Standard() as file:
        for chunk in _chunks(rows, 16 * batch_size):
            for prediction in loaded.predict(chunk, batch_size):
                file.write(json.dumps(prediction, ensure_ascii=False) + "\n")


class _Standard:
    """Standard output as a context that stays open."""

    def __enter__(self) -> Any:
        return sys.stdout

    def __exit__(self, *exception: object) -> None:
        sys.stdout.flush()


def _rows(text: list[str] | None, source: Path | None, card: Any, columns: dict[str, str]) -> Iterator[Any]:
    from dataclasses import replace

    from autoft.data import load_source, map_columns
    from autoft.errors import DataError

    if text and source:
        raise DataError("give texts or --input, not both")
    if source:
        wanted = replace(card, columns=card.inputs)
        table = load_source(str(source), base=Path.cwd(), where="--input")
        # A file like that of the training has its names; one with the roles' own names needs none.
        roles = {column.role for column in wanted.columns} - set(table.column_names)
        mapping = {role: name for role, name in columns.items() if role in roles and name in table.column_names}
        table = map_columns(table, wanted, mapping, "--input")
        for batch in table.to_batches(max_chunksize=1024):
            yield from batch.to_pylist()
    elif text:
        yield from text
    else:
        for number, line in enumerate(sys.stdin, start=1):
            stripped = line.strip()
            if not stripped:
                continue
            if not stripped.startswith("{"):
                yield stripped
                continue
            try:
                yield json.loads(stripped)
            except ValueError as error:
                raise DataError(f"standard input, line {number}: is not a JSON object: {error}") from None


def _chunks(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    from itertools import islice

    while chunk := list(islice(rows, size)):
        yield chunk
