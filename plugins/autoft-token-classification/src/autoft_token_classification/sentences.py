"""From rows to words with tags: what users may write in the columns, and what is wrong with what they wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from autoft.contracts import Row
from autoft.errors import DataError
from autoft_token_classification.schemes import Entity, read_entities, write_tags

__all__ = ["Sentence", "read_list", "read_sentence", "read_spans", "read_tags", "split_text", "true_entities"]

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"


@dataclass(frozen=True)
class Sentence:
    """The words of a row.

    Attributes:
        words: the words.
        places: first character of each word and the one after its last, where the row is a text.
        text: that text.
    """

    words: tuple[str, ...]
    places: tuple[tuple[int, int], ...] | None = None
    text: str = ""

    @property
    def offsets(self) -> str:
        """What positions of entities count: ``characters`` of a text, ``words`` of a list."""
        return "words" if self.places is None else "characters"

    def located(self, entity: Entity) -> Entity:
        """Return an entity of words with its positions as :attr:`offsets` says."""
        if self.places is None:
            return entity
        return Entity(entity.label, self.places[entity.start][0], self.places[entity.end - 1][1])

    def excerpt(self, entity: Entity) -> str:
        """Return the text of a located entity."""
        if self.places is None:
            return " ".join(self.words[entity.start : entity.end])
        return self.text[entity.start : entity.end]

    @property
    def shown(self) -> tuple[str, tuple[tuple[int, int], ...]]:
        """The sentence as one text, and where in it the words stand."""
        if self.places is not None:
            return self.text, self.places
        places, at = [], 0
        for word in self.words:
            places.append((at, at + len(word)))
            at += len(word) + 1
        return " ".join(self.words), tuple(places)


@lru_cache(maxsize=1)
def _words() -> Any:
    import regex

    letters = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--[{_UNSPACED}]]+"
    return regex.compile(rf"(?V1)[{_UNSPACED}]\p{{M}}*|{letters}|\S")


def split_text(text: str, how: str = "words") -> list[tuple[int, int]]:
    """Return where the words of a text begin and end.

    Args:
        text: any text.
        how: ``words`` parts runs of letters and digits from each sign, and gives every character of scripts that are
            written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) a word of its own; ``space`` parts at
            white space only.
    """
    if how == "space":
        places, at = [], 0
        for word in text.split():
            at = text.index(word, at)
            places.append((at, at + len(word)))
            at += len(word)
        return places
    return [match.span() for match in _words().finditer(text)]


def read_list(cell: str, kinds: Any) -> list[Any]:
    """Return the words of a cell, or the items of a list in JSON, as csv files have it.

    Args:
        cell: any text.
        kinds: of items. A list of others is read as words: ``[ 12 ]`` may be three words of a text.
    """
    if cell.lstrip().startswith("["):
        try:
            found = json.loads(cell)
        except (ValueError, RecursionError):
            return cell.split()
        if all(isinstance(item, kinds) for item in found):
            return list(found)
    return cell.split()


def read_sentence(row: Row, facts: Mapping[str, Any], number: int) -> Sentence:
    """Return the words of a row: of the column that training read, or of the other where that one is absent.

    Args:
        row: with ``tokens`` or ``text``.
        facts: ``words`` (the column) and ``split`` (how texts are split).
        number: of the row from 0, for messages.

    Raises:
        DataError: neither column has a value, or it holds something else.
    """
    roles = ("text", "tokens") if facts.get("words") == "text" else ("tokens", "text")
    role = next((role for role in roles if row.get(role) is not None), None)
    if role is None:
        raise DataError(f"row {number + 1}: needs 'tokens', a list of words, or 'text'; given neither")
    value = row[role]
    if role == "text":
        if not isinstance(value, str):
            raise DataError(f"row {number + 1}: 'text' has to be a text, given {_given(value)}")
        places = tuple(split_text(value, facts.get("split", "words")))
        return Sentence(tuple(value[start:end] for start, end in places), places, value)
    if isinstance(value, str):
        return Sentence(tuple(read_list(value, str)))
    if not isinstance(value, list | tuple):
        raise DataError(f"row {number + 1}: 'tokens' has to be a list of words, given {_given(value)}")
    for i, word in enumerate(value):
        if not isinstance(word, str | int | float):
            raise DataError(f"row {number + 1}: token {i + 1} of 'tokens' has to be a word, given {_given(word)}")
    return Sentence(tuple(map(str, value)))


def read_tags(row: Row, sentence: Sentence, facts: Mapping[str, Any], number: int) -> list[str]:
    """Return a tag for each word of a row.

    Args:
        row: with ``tags`` or ``spans``, as ``facts["targets"]`` says.
        sentence: its words.
        facts: ``targets``, ``scheme`` for spans, ``tag_names`` for tags that are numbers.
        number: of the row from 0, for messages.

    Raises:
        DataError: there are none, or not as many as words, or spans that overlap or lie outside of the text.
    """
    if facts["targets"] == "spans":
        return write_tags(_in_words(read_spans(row, number), sentence), len(sentence.words), facts["scheme"])
    value = row.get("tags")
    where = _where(number, sentence.shown[0])
    if isinstance(value, str):
        if value.lstrip().startswith("['"):
            raise DataError(f"{where}: 'tags' is a list as Python prints it; write it in JSON, or its tags with spaces")
        value = read_list(value, str | int)
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: 'tags' has to be a list with a tag for each word, given {_given(value)}")
    if len(value) != len(sentence.words):
        raise DataError(f"{where}: has {len(sentence.words)} words and {len(value)} tags; needs a tag for each word")
    return [_tag(tag, facts.get("tag_names", ()), where, i) for i, tag in enumerate(value)]


def _tag(tag: Any, names: Sequence[str], where: str, word: int) -> str:
    if isinstance(tag, str) and names and tag.isdecimal():
        tag = int(tag)
    if isinstance(tag, str) and tag:
        return tag
    if isinstance(tag, int) and not isinstance(tag, bool):
        if not names:
            return str(tag)
        if 0 <= tag < len(names):
            return names[tag]
        raise DataError(
            f"{where}: tag {tag} of word {word + 1} has no name; task_options.tag_names has {len(names)}, "
            "the first for 0"
        )
    raise DataError(f"{where}: the tag of word {word + 1} has to be a name, given {_given(tag)}")


def read_spans(row: Row, number: int) -> list[Entity]:
    """Return the spans of a row's ``text`` in characters, in order.

    Raises:
        DataError: a span is not ``{start, end, label}``, is empty, lies outside of the text, or overlaps another.
    """
    text, value = row["text"], row.get("spans")
    row_name = _where(number, text)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError(f"{row_name}: 'spans' is text, but not JSON: {value[:60]!r}") from None
    if not isinstance(value, list | tuple):
        raise DataError(f"{row_name}: 'spans' has to be a list of {{start, end, label}}, given {_given(value)}")
    spans = []
    for i, span in enumerate(value):
        where = f"{row_name}: span {i + 1}"
        if not isinstance(span, Mapping) or {"start", "end", "label"} - span.keys():
            raise DataError(f"{where} has to be {{start, end, label}}, given {_given(span)}")
        start, end, label = span["start"], span["end"], span["label"]
        if not all(isinstance(place, int) and not isinstance(place, bool) for place in (start, end)):
            raise DataError(f"{where} needs whole numbers of characters, given {start!r} to {end!r}")
        if not isinstance(label, str) or not label:
            raise DataError(f"{where} needs a label, given {_given(label)}")
        if not 0 <= start < end <= len(text):
            raise DataError(
                f"{where} goes from {start} to {end}, and the text has {len(text)} characters; positions count from 0, "
                "and the end is after the last one"
            )
        if not text[start:end].strip():
            raise DataError(f"{where} covers white space only")
        spans.append(Entity(label, start, end))
    spans.sort(key=lambda span: span.start)
    for one, other in pairwise(spans):
        if other.start < one.end:
            raise DataError(
                f"{row_name}: the spans {text[one.start : one.end]!r} ({one.label}) and "
                f"{text[other.start : other.end]!r} ({other.label}) overlap; a word has one tag, so keep one of them"
            )
    return spans


def _in_words(spans: Sequence[Entity], sentence: Sentence) -> list[Entity]:
    """Return the words that each span touches; where two touch one word, it belongs to the first."""
    assert sentence.places is not None
    found, at = [], 0
    for span in spans:
        touched = [
            i for i, (start, end) in enumerate(sentence.places) if i >= at and start < span.end and end > span.start
        ]
        if touched:
            at = touched[-1] + 1
            found.append(Entity(span.label, touched[0], at))
    return found


def true_entities(row: Row, sentence: Sentence, facts: Mapping[str, Any], *, strict: bool, number: int) -> list[Entity]:
    """Return what has to be found in a row: its spans as they are given, or the entities of its tags."""
    if facts["targets"] == "spans":
        return [_trimmed(span, row["text"]) for span in read_spans(row, number)]
    tags = read_tags(row, sentence, facts, number)
    return [sentence.located(entity) for entity in read_entities(tags, facts["scheme"], strict=strict)]


def _trimmed(span: Entity, text: str) -> Entity:
    """Return a span without white space at its ends: no word begins or ends there."""
    inside = text[span.start : span.end]
    start = span.start + len(inside) - len(inside.lstrip())
    return Entity(span.label, start, start + len(inside.strip()))


def _where(number: int, text: str) -> str:
    """Return what tells a row: splits are shuffled, so its number alone does not find it in a file."""
    return f"row {number + 1} ({text if len(text) <= 40 else f'{text[:37]}...'!r})" if text else f"row {number + 1}"


def _given(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"
