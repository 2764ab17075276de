"""Captions as text: what a row may hold, and the tokenizer of a decoder that is made here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from autoft.contracts import Row
from autoft.errors import DataError

__all__ = ["END", "PAD", "START", "captions_of", "train_tokenizer"]

PAD, START, END = "<pad>", "<start>", "<end>"


def captions_of(row: Row, where: str = "a row") -> list[str]:
    """Return the captions of a row, spaces and line breaks in them made single spaces.

    Raises:
        DataError: they are neither a text nor a list of texts, or all blank.
    """
    value = row.get("captions")
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [None]
    wrong = next((text for text in texts if text is not None and not isinstance(text, str)), None)
    found = [" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip()]
    if wrong is not None or not found:
        given = f"{value!r:.60}"
        raise DataError(f"{where}: 'captions' has to be a text or a list of texts, one at least; given {given}")
    return found


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """Return a ``tokenizers.Tokenizer`` of byte-level BPE (Radford et al. 2019), learned from texts.

    Args:
        texts: captions.
        vocabulary: at most so many tokens, the 256 bytes and three special ones among them.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
