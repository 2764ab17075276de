"""Tokenizers of models that somebody else made: what their patterns end in is told, instead of ending the process or taking for ever.

``tokenizer.json`` may hold regular expressions, and one that backtracks needs exponential time for some texts. The ``tokenizers``
library gives such a match up after ten million steps, half a second, by a panic of Rust, which is no :class:`Exception`; one that
needs a little less at each place of a text takes minutes for a row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from autoft.errors import ModelError, first_line, is_panic

__all__ = ["checked_tokenizer", "panics_told"]

LONGEST_TEXT = 1024
"""Characters of the texts that a new tokenizer is tried on; the first have 16, and each further one twice as many as the one before."""

MOST_SECONDS = 1.0
"""Of the processor, for one of them: usual tokenizers take a few milliseconds for the longest."""

_TEXTS = ("The 3 films, and a STORY: it's fine! ", "a", " ", "1")
"""Which are repeated, with an end that fits nothing before it."""


def checked_tokenizer(tokenizer: Any, name: str) -> Any:
    """Return a tokenizer of transformers that was tried, and that raises :class:`ModelError` where it would panic.

    Args:
        tokenizer: with or without a backend in Rust.
        name: of the model, for messages.

    Raises:
        ModelError: it panics, or needs seconds for a few hundred characters.
    """
    kind = type(tokenizer)
    if not getattr(tokenizer, "is_fast", False) or issubclass(kind, _Told):
        return tokenizer
    tokenizer.__class__ = _telling(kind, name)
    for text in _TEXTS:
        length = 16
        while length <= LONGEST_TEXT:
            begin = time.process_time()
            with panics_told(name):
                tokenizer.backend_tokenizer.encode((text * length)[: length - 1] + "\x00")
            if (took := time.process_time() - begin) > MOST_SECONDS:
                raise ModelError(
                    f"{name}: its tokenizer takes {took:.0f} s for a text of {length} characters; a pattern in its "
                    "tokenizer.json needs time without end"
                )
            length *= 2
    return tokenizer


@contextmanager
def panics_told(name: str) -> Iterator[None]:
    """Turn a panic of the tokenizers within the block into an error.

    Args:
        name: of the model, for the message.

    Raises:
        ModelError: there was one.
    """
    try:
        yield
    except BaseException as error:
        # A panic derives from nothing else. All others go on as they are.
        if not is_panic(error):
            raise
        raise ModelError(
            f"{name}: its tokenizer fails on a text ({first_line(error)}); a pattern in its tokenizer.json needs time without "
            "end, or the file is damaged"
        ) from error


def _telling(kind: type[Any], name: str) -> type[Any]:
    """Return a tokenizer's class that tells of panics, of the same name, which transformers writes beside the files of a tokenizer."""
    return type(kind.__name__, (_Told, kind), {"__module__": kind.__module__, "_model": name, "_kind": kind})


def _empty(kind: type[Any], name: str) -> object:
    return object.__new__(_telling(kind, name))


class _Told:
    """What comes before a tokenizer's class: all that reads and writes texts, in the block that tells of panics."""

    _model: str
    _kind: type[Any]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Pickling looks a class up by its name, by which it finds the other one.
        reduced: Any = super().__reduce_ex__(max(2, protocol))
        return (_empty, (self._kind, self._model), *reduced[2:])

    def _encode_plus(self, *given: Any, **settings: Any) -> Any:
        with panics_told(self._model):
            return super()._encode_plus(*given, **settings)  # type: ignore[misc]  # of the tokenizer's own class

    def _decode(self, *given: Any, **settings: Any) -> Any:
        with panics_told(self._model):
            return super()._decode(*given, **settings)  # type: ignore[misc]  # likewise
