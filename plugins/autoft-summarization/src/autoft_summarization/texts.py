"""Documents and their sentences, in any script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import regex

from autoft.errors import DataError

__all__ = ["document_text", "sentences"]

_CLOSING = r"""["'”’»)\]}]*"""
_ABBREVIATION = (
    r"(?<!\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Gen|Sen|Rep|Gov|Lt|Col|vs|etc|cf|resp|approx|Fig|Figs|Eq|Eqs|Sec|No|al|Inc|Ltd|"
    r"Co|Corp)\.)(?<!\b(?:\p{L}\.)+)"
)
_SENTENCE_END = regex.compile(
    # A new line; or a full stop and a space before what may begin a sentence; or an end mark that needs no space.
    rf"\s*\n\s*|(?<=[.!?…؟।॥።]{_CLOSING}){_ABBREVIATION}\s+(?=[^\p{{Ll}}\s])|(?<=[。！？｡]{_CLOSING})(?=[^。！？｡\s”’」』）])"
)

_TEXT_KEYS = ("text", "content", "utterance", "message", "value")
_SPEAKER_KEYS = ("speaker", "role", "from", "name", "author")


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, each without space around it; a new line always begins one.

    A rule: an end mark, closing quotes and a space, unless a lower-case letter follows or an abbreviation or initial
    stands before. Marks of scripts without spaces need no space.
    """
    return [part for part in (piece.strip() for piece in _SENTENCE_END.split(text)) if part]


def document_text(value: Any, place: str = "the document") -> str:
    """Return a document as one text: a text as it is, a list of turns as a line each.

    Args:
        value: a text, or a list of texts or of turns ``{"speaker": ..., "text": ...}``; other usual names of the two,
            as ``role`` and ``content``, are known too.
        place: for messages, as ``row 3: 'document'``.

    Raises:
        DataError: it is neither, or has no text in it.
    """
    lines = [_turn(turn, place) for turn in value] if isinstance(value, list | tuple) else [value]
    text = "\n".join(line for line in lines if line) if all(isinstance(line, str) for line in lines) else None
    if text is None or not text.strip():
        given = "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"
        raise DataError(f"{place} has to be a text, or a list of turns, with something in it; given {given}")
    return text


def _turn(turn: Any, place: str) -> str:
    if isinstance(turn, str):
        return turn.strip()
    if not isinstance(turn, Mapping):
        raise DataError(f"{place}: a turn has to be a text or an object, given {type(turn).__name__} {turn!r:.60}")
    key = next((key for key in _TEXT_KEYS if turn.get(key) is not None), None)
    if key is None:
        raise DataError(
            f"{place}: a turn needs its text under one of {', '.join(_TEXT_KEYS)}; given {', '.join(map(str, turn)) or 'nothing'}"
        )
    said = turn[key]
    if isinstance(said, list | tuple):
        # Messages of several parts, of which pictures and the like have no text.
        said = " ".join(str(part.get("text") or "") if isinstance(part, Mapping) else str(part) for part in said)
    said = " ".join(str(said).split())
    speaker = next((str(turn[key]) for key in _SPEAKER_KEYS if turn.get(key) not in (None, "")), "")
    return f"{speaker}: {said}" if speaker and said else said
