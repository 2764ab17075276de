"""Places in a text that columns of kind ``span`` hold, read and counted anew after the text around them has changed."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["UNSPACED", "Unreadable", "change_around", "cuts_a_word", "moved", "places"]

UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
"""Characters of scripts that are written without spaces between words, as ranges of a regular expression."""


class Unreadable(ValueError):
    """A value of a span column holds no places of the text, or other ones than it says."""


def cuts_a_word(text: str, start: int, end: int) -> bool:
    """Say whether a place of a text begins or ends inside of a word, as ``art`` does in ``artist``."""
    return any(0 < at < len(text) and all(map(_is_spaced, text[at - 1 : at + 1])) for at in (start, end))


def _is_spaced(character: str) -> bool:
    """Say whether a character is part of a word, in a script that puts spaces between words."""
    part = character.isalnum() or character == "_" or unicodedata.combining(character)
    return bool(part) and re.match(f"[{UNSPACED}]", character) is None


def places(value: Any, text: str) -> Iterator[tuple[int, int]]:
    """Yield first character and the one after the last of each place that a value names.

    Args:
        value: ``{start, end, ...}``; ``{text, answer_start}`` with one or a list of each; a text of which the first
            occurrence is meant that cuts no word; a list of these; or one of them as JSON.
        text: what the places are of.

    Raises:
        Unreadable: it is none of these, or what it names does not stand there.
    """
    value = _parsed(value, text)
    if isinstance(value, str):
        if value.strip():
            yield _stands(value, _first(value, text), text)
    elif isinstance(value, Mapping):
        if {"start", "end"} <= value.keys():
            start, end = value["start"], value["end"]
            if not (_is_place(start) and _is_place(end) and start < end <= len(text)):
                raise Unreadable(f"no place of the text: {value!r:.60}")
            yield start, end
        elif "text" in value:
            texts, starts = _listed(value["text"]), _listed(value.get("answer_start"))
            if len(starts) not in {0, len(texts)}:
                raise Unreadable(f"{len(texts)} texts and {len(starts)} starts")
            for one, start in zip(texts, starts or [None] * len(texts), strict=True):
                if not isinstance(one, str):
                    raise Unreadable(f"no text: {one!r:.60}")
                if one.strip():
                    yield _stands(one, _first(one, text) if start is None else start, text)
        else:
            raise Unreadable(f"no span: {value!r:.60}")
    elif isinstance(value, list | tuple):
        for item in value:
            yield from places(item, text)
    elif value is not None:
        raise Unreadable(f"no span: {value!r:.60}")


def moved(value: Any, text: str, shift: Callable[[int], int]) -> Any:
    """Return a value that :func:`places` reads, each place moved as ``shift`` says; all else stays."""
    parsed = _parsed(value, text)
    if isinstance(value, str):
        return value if parsed is value else json.dumps(moved(parsed, text, shift), ensure_ascii=False)
    if isinstance(value, Mapping):
        if {"start", "end"} <= value.keys():
            return {**value, "start": shift(value["start"]), "end": shift(value["end"])}
        starts = value.get("answer_start")
        if isinstance(starts, list | tuple):
            # An answer without a text, of a question that has none, stands nowhere.
            answers = zip(_listed(value["text"]), starts, strict=True)
            return {**value, "answer_start": [shift(s) if t.strip() and s is not None else s for t, s in answers]}
        return value if starts is None else {**value, "answer_start": shift(starts)}
    if isinstance(value, list | tuple):
        return [moved(item, text, shift) for item in value]
    return value


def change_around(
    text: str,
    spans: Mapping[str, Any],
    change: Callable[[str], str],
    whole: Callable[[str, int, int], tuple[int, int]],
) -> tuple[str, dict[str, Any]] | None:
    """Change the parts of a text between the places that some columns hold, and count the places anew.

    Args:
        text: the text.
        spans: values of the span columns, by role.
        change: returns a part changed.
        whole: widens a place of a text to whole words.

    Returns:
        the changed text and the values; None where a value cannot be read, or would no longer say the same.
    """
    try:
        held = {role: list(places(value, text)) for role, value in spans.items()}
    except Unreadable:
        return None
    kept: list[tuple[int, int]] = []
    for start, end in sorted(whole(text, *place) for found in held.values() for place in found):
        if kept and start <= kept[-1][1]:
            kept[-1] = (kept[-1][0], max(end, kept[-1][1]))
        else:
            kept.append((start, end))
    parts, new_starts, at, length = [], [], 0, 0
    for start, end in [*kept, (len(text), len(text))]:
        for part in (change(text[at:start]) if at < start else "", text[start:end]):
            new_starts.append(length)
            length += len(part)
            parts.append(part)
        at = end
    changed = "".join(parts)

    def shift(place: int) -> int:
        number = next(i for i, (start, end) in enumerate(kept) if start <= place <= end)
        return new_starts[2 * number + 1] + place - kept[number][0]

    values = {role: moved(value, text, shift) for role, value in spans.items()}
    try:
        for role, value in values.items():
            now = list(places(value, changed))
            if now != [(shift(start), shift(end)) for start, end in held[role]]:
                return None
            if [changed[a:b] for a, b in now] != [text[a:b] for a, b in held[role]]:
                return None
    except Unreadable:
        return None
    return changed, values


def _parsed(value: Any, text: str) -> Any:
    """Return what a text that is JSON stands for, as csv files hold nested values."""
    if isinstance(value, str) and value.lstrip()[:1] in {"{", "["} and value not in text:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise Unreadable(f"no JSON: {value!r:.60}") from None
    return value


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_place(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _first(one: str, text: str) -> int:
    """Return where a text first stands in another without cutting a word; -1 where it does not."""
    start = text.find(one)
    while start >= 0 and cuts_a_word(text, start, start + len(one)):
        start = text.find(one, start + 1)
    return start


def _stands(one: str, start: Any, text: str) -> tuple[int, int]:
    if not _is_place(start) or text[start : start + len(one)] != one:
        raise Unreadable(f"{one!r:.60} does not stand at {start!r}")
    return start, start + len(one)
