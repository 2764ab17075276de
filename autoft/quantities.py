"""Quantities with units, as recipes carry them: ``2h``, ``90s``, ``1h30m``, ``8GiB``, ``20MB``, ``3ms``."""

from __future__ import annotations

import re

from pydantic import ByteSize, TypeAdapter, ValidationError

__all__ = ["format_bytes", "format_count", "format_seconds", "parse_bytes", "parse_multiple", "parse_seconds"]

_SECONDS = {
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "seconds": 1.0,
    "m": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "minutes": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "hours": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
    "days": 86400.0,
}
_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zµ]+)\s*")
_BYTES: TypeAdapter[ByteSize] = TypeAdapter(ByteSize)


def parse_seconds(text: object) -> float:
    """Return the seconds that ``text`` stands for, as ``10m``, ``1h30m`` or ``3ms``.

    Raises:
        ValueError: it is no duration, has no unit, or is not above zero.
    """
    message = f"needs a duration with a unit, as 10m, 1h30m, 90s or 3ms; given {text!r}"
    if not isinstance(text, str):
        raise ValueError(message)
    lowered, total, at = text.strip().lower(), 0.0, 0
    while at < len(lowered):
        part = _PART.match(lowered, at)
        if part is None or part.group(2) not in _SECONDS:
            raise ValueError(message)
        total += float(part.group(1)) * _SECONDS[part.group(2)]
        at = part.end()
    if total <= 0:
        raise ValueError(message)
    return total


def parse_multiple(text: object) -> float | None:
    """Return the number that ``4x`` or ``2.5x`` stands for, or None where ``text`` is no multiple.

    Raises:
        ValueError: it is a multiple below 1.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*x\s*", text, re.IGNORECASE) if isinstance(text, str) else None
    if found is None:
        return None
    multiple = float(found.group(1))
    if multiple < 1:
        raise ValueError(f"needs at least 1x, the time of one default training; given {text!r}")
    return multiple


def parse_bytes(text: object) -> int:
    """Return the bytes that ``text`` stands for, as ``8GiB`` (powers of two) or ``20MB`` (powers of ten).

    Raises:
        ValueError: it is no size, has no unit, or is not above zero.
    """
    message = f"needs a size with a unit, as 20MB, 500KB or 8GiB; given {text!r}"
    if not isinstance(text, str) or text.strip().replace(".", "").isdigit():
        raise ValueError(message)
    try:
        size = int(_BYTES.validate_python(text.strip()))
    except ValidationError as error:
        raise ValueError(message) from error
    if size <= 0:
        raise ValueError(message)
    return size


def format_seconds(seconds: float) -> str:
    """Return a duration as people write it: ``2.24 ms``, ``4.1 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_bytes(size: float) -> str:
    """Return a size in decimal units: ``91.3 MB``, ``1.2 GB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{_short(size / scale)} {unit}"
    return f"{size:.0f} B"


def format_count(count: float) -> str:
    """Return a count in short form: ``22.7M``, ``4.4k``, ``512``."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{_short(count / scale)}{unit}"
    return f"{count:.0f}"


def _short(value: float) -> str:
    # Three digits, but never an exponent: 999.6 is 1000, not 1e+03.
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
