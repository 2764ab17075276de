"""What columns hold: kinds of values, lengths, labels, spans. Tables stay in Arrow; a sample of rows becomes Python objects."""

from __future__ import annotations

import random
import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

__all__ = ["ColumnView", "Survey", "survey"]

SAMPLE = 1000
"""Rows that are looked at one by one."""

PICTURES = re.compile(r"(?i)\.(?:png|jpe?g|gif|bmp|webp|tiff?)$")
SOUNDS = re.compile(r"(?i)\.(?:wav|flac|mp3|ogg|opus|m4a)$")
ADDRESS = re.compile(r"(?i)^(?:https?|ftp)://\S+$")
IDENTIFIERS = re.compile(
    r"(?i)^(?:id|ids|idx|index|guid|uuid|uid|key|row|nr|no|number|unnamed.*|url|uri|link|date|time|timestamp)$|_id$|^id_"
)
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""Scripts written without spaces between words, as Unicode's names begin."""

MOST_LABELS = 1000
MOST_COLUMNS = 500
"""Columns that are looked at: of a hundred thousand, as genes have them, nearly all are numbers, and to look at each takes minutes."""


@dataclass(frozen=True)
class ColumnView:
    """What the sample shows of a column.

    Attributes:
        name: as the data calls it.
        kinds: of a task's column that its values fit, as ``text``, ``label``, ``tokens``, ``span``.
        values: of the sample, those that are missing left out.
        missing: share of rows without a value.
        words: median and 95th percentile of words, where the values are texts; None elsewhere.
        labels: how often each label occurs in all rows, the most frequent first; empty where it is none.
        script: that most letters are in, as ``LATIN``.
        identifies: it holds a number or a name of the row, an address or one single value: nothing to learn from.
    """

    name: str
    kinds: frozenset[str]
    values: tuple[Any, ...]
    missing: float
    words: tuple[float, float] | None
    labels: Mapping[str, int]
    script: str | None
    identifies: bool


@dataclass(frozen=True)
class Survey:
    """What a table holds.

    Attributes:
        columns: by name, as many as are looked at.
        rows: of the table.
        sample: rows of these columns.
        names: of all columns, those that are not looked at among them.
    """

    columns: dict[str, ColumnView]
    rows: int
    sample: pa.Table
    names: tuple[str, ...]


def survey(table: pa.Table, seed: int = 0, named: Collection[str] = ()) -> Survey:
    """Look at a table; a sample of rows drawn with the seed stands for all where that is enough, and its first columns likewise.

    Args:
        table: of rows.
        seed: of the sample.
        named: names, in small letters, of columns that are looked at wherever they stand.
    """
    wanted = sorted(table.column_names, key=lambda name: name.strip().lower() not in named)[:MOST_COLUMNS]
    names = tuple(table.column_names)
    if len(wanted) < len(names):
        seen = set(wanted)
        table = table.select([name for name in names if name in seen])
    rows = table.num_rows
    # Rows are often sorted by label: the first ones say little.
    drawn = sorted(random.Random(seed).sample(range(rows), SAMPLE)) if rows > SAMPLE else list(range(rows))
    sample = table.take(pa.array(drawn, pa.int64()))
    columns = {name: _view(name, table[name], sample[name].to_pylist()) for name in table.column_names}
    return Survey(columns, rows, sample, names)


def _view(name: str, column: pa.ChunkedArray, drawn: list[Any]) -> ColumnView:
    values = [value for value in drawn if value is not None and value != "" and value == value]
    kinds = _kinds(values)
    texts = [value for value in values if isinstance(value, str)]
    counts: dict[str, int] = {}
    if kinds & {"label", "labels"}:
        every = (part for value in column.to_pylist() for part in (value if isinstance(value, list) else [value]))
        counts = dict(Counter(str(part) for part in every if part is not None and part != "").most_common())
    script = _script(texts) if texts else None
    lengths = sorted(word_count(text, script) for text in texts)
    words = (statistics.median(lengths), float(lengths[int(0.95 * (len(lengths) - 1))])) if lengths else None
    distinct = len({str(value) for value in values})
    numbered = distinct == len(values) and all(isinstance(value, int) for value in values)
    single = words is not None and len(texts) == len(values) and words[1] <= 1
    unique = distinct > 0.95 * len(values)
    # Unique words with digits in them name the row, whatever the column is called.
    coded = single and unique and sum(any(char.isdigit() for char in text) for text in texts) > 0.9 * len(texts)
    address = bool(texts) and all(ADDRESS.match(text) for text in texts)
    named = bool(IDENTIFIERS.search(name)) and (numbered or (single and unique))
    picture = bool(kinds & {"image", "audio"})
    many = len(values) > 20
    identifies = not picture and (distinct < 2 or address or named or (many and (numbered or coded)))
    missing = 1 - len(values) / max(1, len(drawn))
    return ColumnView(name, frozenset(kinds), tuple(values), missing, words, counts, script, identifies)


def _kinds(values: Sequence[Any]) -> set[str]:
    """Return the kinds that all values fit."""
    if not values:
        return set()
    kinds: set[str] = set()
    if all(isinstance(value, str) for value in values):
        kinds |= {"text", "texts"}
        kinds |= {"image"} if all(PICTURES.search(value) for value in values) else set()
        kinds |= {"audio"} if all(SOUNDS.search(value) for value in values) else set()
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        kinds.add("number")
    if all(_is_media(value) for value in values):
        kinds |= {"image", "audio"}
    if _are_labels(values):
        kinds.add("label")
    if all(isinstance(value, list) for value in values):
        kinds |= _kinds_of_lists(values)
    if all(_is_span(value) for value in values):
        kinds.add("span")
    return kinds


def _kinds_of_lists(lists: Sequence[list[Any]]) -> set[str]:
    parts = [part for value in lists for part in value]
    kinds: set[str] = set()
    if parts and all(isinstance(part, str) for part in parts):
        kinds.add("texts")
        if sum(" " in part for part in parts) < 0.05 * len(parts):
            kinds.add("tokens")
    if parts and all(isinstance(part, str | int) for part in parts):
        distinct = len({str(part) for part in parts})
        if distinct <= max(2, min(MOST_LABELS, len(parts) / 4)):
            kinds |= {"labels", "label", "tags"}
    if parts and all(_is_message(part) for part in parts):
        kinds.add("messages")
    if all(_is_place(part) for part in parts):
        kinds.add("span")
    return kinds


def _are_labels(values: Sequence[Any]) -> bool:
    if not all(isinstance(value, str | int | float | bool) for value in values):
        return False
    if any(isinstance(value, float) and not value.is_integer() for value in values):
        return False
    distinct = {str(value) for value in values}
    # A label comes again and again, and is a name rather than a sentence.
    repeated = len(distinct) <= max(2, min(MOST_LABELS, len(values) / 4))
    return len(distinct) >= 2 and repeated and statistics.median(len(one.split()) for one in distinct) <= 6


def _is_media(value: Any) -> bool:
    if isinstance(value, bytes):
        return True
    return isinstance(value, Mapping) and bool({"bytes", "path"} & set(value)) and set(value) <= {"bytes", "path"}


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and ({"role", "content"} <= set(value) or {"from", "value"} <= set(value))


def _is_place(value: Any) -> bool:
    return isinstance(value, Mapping) and ({"start", "end"} <= set(value) or {"text", "answer_start"} <= set(value))


def _is_span(value: Any) -> bool:
    if isinstance(value, str):
        # The same as JSON, as a csv file has it.
        return value.lstrip().startswith(("{", "[{")) and (
            "answer_start" in value or ("start" in value and "end" in value)
        )
    return _is_place(value)


def word_count(text: str, script: str | None) -> int:
    """Return the number of words of a text, of characters in scripts that have no spaces between words."""
    unspaced = script is not None and script.startswith(UNSPACED)
    return len(re.sub(r"\s", "", text)) if unspaced else len(text.split())


def _script(texts: Sequence[str]) -> str | None:
    letters = Counter(char for text in texts[:200] for char in text[:400] if char.isalpha())
    scripts: Counter[str] = Counter()
    for char, count in letters.items():
        scripts[unicodedata.name(char, "?").split()[0]] += count
    return scripts.most_common(1)[0][0] if scripts else None
