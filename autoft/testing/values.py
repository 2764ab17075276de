"""Compare and judge plain values: what differs between two of them, and what is not plain JSON in one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["difference", "not_plain_json"]


def difference(found: Any, wanted: Any, tolerance: float = 0.0, where: str = "") -> str | None:
    """Return where two values differ first, and how; None where they agree.

    Args:
        found: numbers, texts, lists, mappings, arrays and tensors, nested as may be.
        wanted: what it should be.
        tolerance: how much numbers may differ, relative to the larger one, or absolute where both are below 1.
        where: stands in front of the answer.
    """
    found, wanted = _plain(found), _plain(wanted)
    place = where or "the value"
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        if set(found) != set(wanted):
            return f"{place} has the keys {_names(found)}, not {_names(wanted)}"
        pairs = [(f"{where}[{key!r}]", found[key], wanted[key]) for key in wanted]
    elif isinstance(found, list) and isinstance(wanted, list):
        if len(found) != len(wanted):
            return f"{place} has {len(found)} entries, not {len(wanted)}"
        pairs = [(f"{where}[{i}]", one, other) for i, (one, other) in enumerate(zip(found, wanted, strict=True))]
    elif _is_number(found) and _is_number(wanted):
        return None if _near(found, wanted, tolerance) else f"{place} is {found!r}, not {wanted!r}"
    else:
        return (
            None if type(found) is type(wanted) and found == wanted else f"{place} is {found!r:.60}, not {wanted!r:.60}"
        )
    for inner, one, other in pairs:
        if told := difference(one, other, tolerance, inner):
            return told
    return None


def not_plain_json(value: Any, where: str = "") -> str | None:
    """Return what of a value JSON would not give back as it is (a tuple, a numpy number, NaN ...); None where it does."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        return f"{where or 'the value'} is no plain JSON: {error}"
    told = difference(value, json.loads(text), 0.0, where)
    return told and f"{told}, which JSON does not keep"


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") and hasattr(value, "dtype") else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _near(found: float, wanted: float, tolerance: float) -> bool:
    if math.isnan(found) or math.isnan(wanted):
        return math.isnan(found) and math.isnan(wanted)
    if not tolerance or math.isinf(found) or math.isinf(wanted):
        return found == wanted
    return abs(found - wanted) <= tolerance * max(1.0, abs(found), abs(wanted))


def _names(value: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, value)) or "none"
