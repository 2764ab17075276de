"""Sub-words of words, in windows that a model can take: nothing of a long sentence is cut off.

The first sub-word of a word stands for it, as in BERT (Devlin et al. 2019, section 5.3). Sentences beyond
``max_length`` are read in windows that overlap by a quarter; a word is judged in the window where it stands farthest
from a cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = ["Window", "cut_windows", "word_prefix"]

INPUTS = ("input_ids", "token_type_ids")
"""What of a tokenizer's output is kept; the attention mask of a window without padding is all ones."""


@dataclass(frozen=True)
class Window:
    """A part of a sentence.

    Attributes:
        inputs: of the model, by name, ``(seq,)``.
        words: words that are judged in this window, and the position of the first sub-word of each.
    """

    inputs: dict[str, list[int]]
    words: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])


def cut_windows(sentences: Sequence[Sequence[str]], tokenizer: Any, max_length: int) -> list[list[Window]]:
    """Return the windows of each sentence; each of its words is judged in exactly one of them.

    Args:
        sentences: words of each.
        tokenizer: a fast one.
        max_length: sub-words of a window, special ones included.
    """
    if not sentences:
        return []
    lead = word_prefix(tokenizer)
    spelt = [[lead + word for word in words] or [""] for words in sentences]
    encoded = _encode(spelt, tokenizer, max_length)
    # Words of signs that the tokenizer drops have no sub-word to be judged by.
    unknown = tokenizer.unk_token or "?"
    for number, (words, parts) in enumerate(zip(sentences, encoded, strict=True)):
        seen = {word for part in parts for word in part[1] if word is not None}
        if len(seen) < len(words):
            spelt[number] = [word if i in seen else lead + unknown for i, word in enumerate(spelt[number])]
            (encoded[number],) = _encode([spelt[number]], tokenizer, max_length)
    return [_windows(parts, len(words)) for words, parts in zip(sentences, encoded, strict=True)]


_Part = tuple[dict[str, list[int]], list[int | None]]


def _encode(sentences: Sequence[Sequence[str]], tokenizer: Any, max_length: int) -> list[list[_Part]]:
    """Return the inputs of each window of each sentence, and the word that each sub-word is of."""
    room = max_length - tokenizer.num_special_tokens_to_add()
    batch = tokenizer(
        list(map(list, sentences)),
        is_split_into_words=True,
        truncation=True,
        max_length=max_length,
        stride=min(max_length // 4, max(room - 1, 0)),
        return_overflowing_tokens=True,
        return_attention_mask=False,
    )
    parts: list[list[_Part]] = [[] for _ in sentences]
    for i, sentence in enumerate(batch["overflow_to_sample_mapping"]):
        inputs = {name: batch[name][i] for name in INPUTS if name in batch}
        parts[sentence].append((inputs, batch.word_ids(i)))
    return parts


def _windows(parts: Sequence[_Part], count: int) -> list[Window]:
    best: list[tuple[float, int, int]] = [(-1.0, 0, 0)] * count
    begun = -1
    for number, (_, words) in enumerate(parts):
        inside = [place for place, word in enumerate(words) if word is not None]
        for place in inside:
            word = words[place]
            assert word is not None
            if word >= count or (place > inside[0] and words[place - 1] == word):
                continue
            # A window may begin within a word whose first sub-word the window before has.
            if place == inside[0] and word <= begun:
                continue
            before = place - inside[0] if number else float("inf")
            after = inside[-1] - place if number + 1 < len(parts) else float("inf")
            best[word] = max(best[word], (min(before, after), -number, place))
        begun = max([begun, *(words[place] or 0 for place in inside)])
    chosen: list[list[tuple[int, int]]] = [[] for _ in parts]
    for word, (_, number, place) in enumerate(best):
        chosen[-number].append((word, place))
    return [Window(inputs, tuple(words)) for (inputs, _), words in zip(parts, chosen, strict=True)]


def word_prefix(tokenizer: Any) -> str:
    """Return what is put before each word, that it is read as in running text."""
    return " " if _needs_space(tokenizer) else ""


@lru_cache(maxsize=4)
def _needs_space(tokenizer: Any) -> bool:
    """Say whether words need a space before them to be read as in running text (byte-level BPE of RoBERTa, GPT-2)."""

    def ids(words: str | list[str]) -> list[int]:
        split = isinstance(words, list)
        return list(tokenizer(words, is_split_into_words=split, add_special_tokens=False)["input_ids"])

    running = ids("and the other")
    return ids(["and", "the", "other"]) != running and ids(["and", " the", " other"]) == running
