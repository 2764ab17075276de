"""The parts of a task's own section of the report, made ready to be shown."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter

from autoft.contracts import Chart, Detail, Matrix
from autoft.report.views import TableView, figure_text
from autoft.rundir import DamagedRecord

__all__ = ["checked_part", "shown_part"]


@functools.cache
def _kinds() -> dict[str, TypeAdapter[Detail]]:
    return {kind.__name__.lower(): TypeAdapter(kind) for kind in get_args(Detail)}


def checked_part(item: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a part of a task's own section with its ``kind`` and all that such a part has.

    Raises:
        RunFolderError: it is no such part; ``path`` is the file that it comes from.
    """
    kind = _kinds().get(str(item.get("kind")))
    try:
        if kind is None:
            raise ValueError(f"{item.get('kind')!r} is no kind of {', '.join(_kinds())}")
        part = kind.validate_python({name: value for name, value in item.items() if name != "kind"})
        columns = part.labels if isinstance(part, Matrix) else getattr(part, "columns", None)
        rows = part.values if isinstance(part, Matrix) else getattr(part, "rows", ())
        if columns is not None and any(len(row) != len(columns) for row in rows):
            raise ValueError(f"{part.title}: a row has not as many cells as there are columns")
        if isinstance(part, Matrix) and len(rows) != len(part.labels):
            raise ValueError(f"{part.title}: is no square")
        if isinstance(part, Chart) and any(len(series.x) != len(series.y) for series in part.series):
            raise ValueError(f"{part.title}: a series has not as many y as x")
    except ValueError as error:
        raise DamagedRecord(path, f"in details: {' '.join(str(error).split()[:40])}") from error
    return {"kind": item["kind"], **asdict(part)}


def shown_part(item: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a part of a task's own section, ready to be shown: cells as texts, shades of a matrix, pieces of a text.

    Raises:
        RunFolderError: it is no such part; ``path`` is the file that it comes from.
    """
    item = checked_part(item, path)
    if item["kind"] == "markedtext":
        return {**item, "rows": [(heading, _pieces(text, marks)) for heading, text, marks in item["rows"]]}
    if item["kind"] in {"pictures", "chart"}:
        return item
    if item["kind"] == "matrix":
        shaded = []
        for values in item["values"]:
            total = sum(values) or 1.0
            shaded.append([(f"{value:g}", round(value / total, 3)) for value in values])
        return {**item, "rows": list(zip(item["labels"], shaded, strict=True))}
    numeric = {
        i for i in range(len(item["columns"])) if all(isinstance(row[i], int | float | None) for row in item["rows"])
    }
    rows = [tuple(_detail_cell(cell) for cell in row) for row in item["rows"]]
    left = frozenset(range(len(item["columns"]))) - numeric
    return {**item, "view": TableView(item["title"], tuple(item["columns"]), tuple(rows), left=left)}


def _pieces(text: str, marks: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return a text cut at its marks: ``{"text", "label", "verdict"}`` each, the latter two empty between marks.

    Of marks that overlap, both are shown: the text that they share stands in each.
    """
    pieces, at = [], 0
    for mark in sorted(marks, key=lambda mark: (mark["start"], mark["end"])):
        if mark["start"] > at:
            pieces.append({"text": text[at : mark["start"]], "label": "", "verdict": ""})
        pieces.append({"text": text[mark["start"] : mark["end"]], "label": mark["label"], "verdict": mark["verdict"]})
        at = max(at, mark["end"])
    if at < len(text):
        pieces.append({"text": text[at:], "label": "", "verdict": ""})
    return pieces


def _detail_cell(cell: object) -> str:
    if isinstance(cell, float):
        return figure_text(cell)
    if isinstance(cell, list | tuple):
        return ", ".join(str(entry) for entry in cell)
    return "–" if cell is None else str(cell)
