"""Texts of rows as medical data sets have them, with errors that name the row and the column."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from autoft.contracts import Row
from autoft.errors import DataError

__all__ = ["medical_share", "passage", "shown", "text"]

MEDICAL = re.compile(
    r"\b(?:patients?|diseases?|syndromes?|diagnos\w*|symptom\w*|therap\w*|treatment\w*|clinic\w*|surg\w*|infect\w*|"
    r"viral|virus\w*|bacteri\w*|vaccin\w*|antibod\w*|antigen\w*|protein\w*|gene|genes|genetic\w*|cells?|tumou?rs?|cancer\w*|"
    r"carcinoma\w*|chronic|acute|mortality|hospital\w*|medic\w*|drugs?|doses?|dosage|blood|artery|arter\w+|vein\w*|nerves?|"
    r"muscle\w*|bones?|fracture\w*|cardiac|heart|lung\w*|pulmonary|renal|kidney\w*|liver|hepat\w*|gastr\w*|intestin\w*|"
    r"brain|cerebr\w*|neuro\w*|\w+itis|\w+oma|\w+osis|\w+emia|\w+aemia|\w+opathy|\w+ectomy|pregnan\w*|fetal|foetal|"
    r"infant\w*|pediatric\w*|dental|tooth|teeth|insulin|diabet\w*|hormone\w*|enzyme\w*|anesthe\w*|anaesthe\w*|pain|"
    r"respirat\w*|immun\w*|epidemi\w*|pandemic|covid\S*|sars\S*|pathogen\w*|lesion\w*|tissue\w*|biops\w*|serum|"
    r"plasma|vitamin\w*|deficien\w*|prognos\w*|trials?|cohort)\b",
    re.IGNORECASE,
)
"""Words that medical questions have, and others seldom."""


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


def medical_share(rows: Sequence[Row]) -> float:
    """Return which share of the questions, with their options where they have some, hold a medical word."""
    texts = [" ".join(str(row.get(role) or "") for role in ("question", "options")) for row in rows]
    return sum(MEDICAL.search(text) is not None for text in texts) / max(1, len(texts))
