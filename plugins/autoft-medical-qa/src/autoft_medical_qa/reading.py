"""Texts of rows as medical data sets have them, with errors that name the row and the column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoft.contracts import Row
from autoft.errors import DataError

__all__ = ["passage", "shown", "text"]


def text(row: Row, role: str, number: int) -> str:
    """Return the text of a column.

    Args:
        row: the example.
        role: of the column.
        number: the row's place, from 0.

    Raises:
        DataError: it is no text, or blank.
    """
    value = row.get(role)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"row {number + 1}: {role!r} has to be a text, given {shown(value)}")
    return value


def passage(row: Row, role: str, number: int) -> str:
    """Return the text of a column that holds a text, a list of texts, or these under ``contexts`` (as PubMedQA does).

    Raises:
        DataError: it is none of these, or blank.
    """
    value = row.get(role)
    if isinstance(value, Mapping):
        value = value.get("contexts")
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"row {number + 1}: {role!r} has to be a text, a list of texts, or an object with a list of texts under "
            f"'contexts', given {shown(row.get(role))}"
        )
    return value


def shown(value: Any) -> str:
    """Return a value as an error message shows it."""
    return "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"
