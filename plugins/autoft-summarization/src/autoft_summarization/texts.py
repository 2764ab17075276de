"""Documents, their sentences, and the tokens that ROUGE counts.

Scripts that write no spaces between words (Chinese, Japanese, Thai and their neighbours) are counted by characters, as
the sentence ends of all scripts are known.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import regex

from autoft.errors import DataError

__all__ = ["TOKENIZERS", "AnyScript", "Tokenizer", "choose_tokenizer", "document_text", "sentences", "tokenizer"]

TOKENIZERS = ("ascii", "unicode")
_ASCII_SHARE = 0.995
"""Of letters. English lies above 0.999 with names and loan words in it, German at 0.98, Italian at 0.99."""

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Myanmar}\p{Khmer}"
_TOKEN = regex.compile(rf"(?V1)[{_UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]+")

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


class Tokenizer(Protocol):
    """What ``rouge_score`` takes as its ``tokenizer``."""

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text, in order."""


class AnyScript:
    """Words of letters, marks and digits of any script in lower case; single characters where a script has no spaces."""

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text, in order."""
        tokens: list[str] = _TOKEN.findall(unicodedata.normalize("NFC", text).lower())
        return tokens


@functools.cache
def tokenizer(name: str, stemmer: bool = False) -> Tokenizer:
    """Return a tokenizer.

    Args:
        name: ``ascii`` for that of ``rouge_score``, which is that of ROUGE-1.5.5: it keeps a to z and 0 to 9 only;
            ``unicode`` for :class:`AnyScript`.
        stemmer: cut English endings off (Porter); for ``ascii`` only.
    """
    if name == "unicode":
        return AnyScript()
    from rouge_score.tokenizers import DefaultTokenizer

    found: Tokenizer = DefaultTokenizer(use_stemmer=stemmer)
    return found


def choose_tokenizer(texts: Iterable[str]) -> str:
    """Return ``ascii`` where nearly all letters of the texts are, so that figures are those of the literature."""
    letters = plain = 0
    for text in texts:
        letters += sum(map(str.isalpha, text))
        plain += sum(character.isascii() and character.isalpha() for character in text)
    return "ascii" if plain >= _ASCII_SHARE * letters else "unicode"


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
