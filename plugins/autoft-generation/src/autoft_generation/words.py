"""The words that ROUGE counts, in any script.

Scripts that write no spaces between words (Chinese, Japanese, Thai and their neighbours) are counted by characters.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Iterable
from typing import Protocol

import regex

__all__ = ["TOKENIZERS", "AnyScript", "Tokenizer", "choose_tokenizer", "tokenizer"]

TOKENIZERS = ("ascii", "unicode")
_ASCII_SHARE = 0.995
"""Of letters. English lies above 0.999 with names and loan words in it, German at 0.98, Italian at 0.99."""

SAMPLE = 10_000

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Myanmar}\p{Khmer}"
_TOKEN = regex.compile(rf"(?V1)[{_UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]+")


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
    """Return ``ascii`` where nearly all letters of the texts are, so that figures are those of the literature.

    The first :data:`SAMPLE` texts decide: rows of a split are shuffled.
    """
    letters = plain = 0
    for text in itertools.islice(texts, SAMPLE):
        letters += sum(map(str.isalpha, text))
        plain += sum(character.isascii() and character.isalpha() for character in text)
    return "ascii" if plain >= _ASCII_SHARE * letters else "unicode"
