"""The options of a multiple choice question, and which of them is right, in the notations that data sets use."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from autoft.contracts import Column, Row
from autoft.errors import DataError
from autoft_medical_qa.reading import shown

__all__ = ["LETTERS", "NOTATIONS", "OPTION_COLUMNS", "Choices", "notation_of", "read_choices", "right_place"]

LETTERS = tuple(ascii_uppercase)
FORMS = (
    "a list of texts, an object as {'A': text, 'B': text}, a list of objects with 'key' and 'value', an object with the "
    "lists 'text' and 'label', or columns of their own (option_a, option_b ...)"
)

OPTION_COLUMNS = tuple(
    Column(
        f"option_{letter}",
        "option",
        f"option {letter.upper()}, where each has a column of its own",
        required=False,
        guesses=(
            f"op{letter}",
            letter,
            f"choice_{letter}",
            f"option{number}",
            f"choice{number}",
            f"ending{number - 1}",
        ),
    )
    for number, letter in enumerate("abcdef", 1)
)


@dataclass(frozen=True)
class Choices:
    """The options of one question.

    Attributes:
        keys: by which the data calls them, in capitals: letters where it says nothing.
        texts: as many.
    """

    keys: tuple[str, ...]
    texts: tuple[str, ...]


def read_choices(row: Row, number: int) -> Choices:
    """Return the options of a row.

    Args:
        row: with ``options``, or ``option_a``, ``option_b`` ...
        number: the row's place, from 0.

    Raises:
        DataError: they have none of the known forms, or there are less than two or more than 26, or one is blank.
    """
    value = row.get("options")
    keys: Sequence[Any] | None = None
    if value is None:
        texts: Sequence[Any] = [row.get(column.role) for column in OPTION_COLUMNS]
    elif isinstance(value, Mapping) and {"text", "label"} <= set(value):
        keys, texts = value["label"] or (), value["text"] or ()
    elif isinstance(value, Mapping):
        keys, texts = list(value), list(value.values())
    elif isinstance(value, list | tuple) and value and all(isinstance(part, Mapping) for part in value):
        keys, texts = [part.get("key") for part in value], [part.get("value") for part in value]
    elif isinstance(value, list | tuple):
        texts = value
    else:
        raise DataError(f"row {number + 1}: 'options' has to be {FORMS}; given {shown(value)}")
    named = list(zip(keys if keys is not None else LETTERS, texts, strict=False))
    # Questions with fewer options than others leave their last columns, or keys, empty.
    while named and _is_blank(named[-1][1]):
        named.pop()
    blank = [str(key) for key, option in named if _is_blank(option)]
    if blank:
        raise DataError(f"row {number + 1}: the option {blank[0]} is empty, and others follow it")
    if not 2 <= len(named) <= len(LETTERS) or len(texts) > len(LETTERS):
        count = max(len(named), len(texts)) if len(texts) > len(LETTERS) else len(named)
        raise DataError(f"row {number + 1}: needs from 2 to {len(LETTERS)} options, given {count}; options are {FORMS}")
    return Choices(tuple(str(key).strip().upper() for key, _ in named), tuple(_text(option) for _, option in named))


def _is_blank(option: Any) -> bool:
    return option is None or (isinstance(option, float) and math.isnan(option)) or not str(option).strip()


def _text(option: Any) -> str:
    return str(int(option)) if isinstance(option, float) and option.is_integer() else str(option).strip()


def _number(answer: Any) -> int | None:
    if isinstance(answer, bool):
        return None
    if isinstance(answer, float):
        return int(answer) if answer.is_integer() else None
    if isinstance(answer, int):
        return answer
    digits = str(answer).strip()
    return int(digits) if digits.isascii() and digits.isdigit() else None


def _by_key(answer: Any, choices: Choices) -> int | None:
    number = _number(answer)
    key = str(number) if number is not None else str(answer).strip().upper()
    return choices.keys.index(key) if choices.keys.count(key) == 1 else None


def _by_index(first: int) -> Callable[[Any, Choices], int | None]:
    def find(answer: Any, choices: Choices) -> int | None:
        number = _number(answer)
        return number - first if number is not None and 0 <= number - first < len(choices.texts) else None

    return find


def _by_text(answer: Any, choices: Choices) -> int | None:
    wanted = _text(answer).casefold()
    places = [i for i, option in enumerate(choices.texts) if option.casefold() == wanted]
    return places[0] if len(places) == 1 else None


NOTATIONS: Mapping[str, Callable[[Any, Choices], int | None]] = {
    "key": _by_key,
    "index from 0": _by_index(0),
    "index from 1": _by_index(1),
    "text": _by_text,
}
"""How data says which option is right: each notation gives the place, or None where an answer does not fit it."""


def notation_of(rows: Sequence[Row]) -> str:
    """Return the notation that fits the answers of all rows: the keys of options before what else does.

    Raises:
        DataError: none does; the message shows the first row that the best one does not fit. Or several do that are no keys,
            and would have other options right.
    """
    misses: dict[str, list[int]] = {name: [] for name in NOTATIONS}
    for number, row in enumerate(rows):
        choices = read_choices(row, number)
        for name, find in NOTATIONS.items():
            if find(row["answer"], choices) is None:
                misses[name].append(number)
    best = min(NOTATIONS, key=lambda name: len(misses[name]))
    if misses[best]:
        raise _unknown(rows[misses[best][0]], misses[best][0], best)
    others = [name for name in NOTATIONS if name != best and not misses[name]] if best != "key" else []
    for number, row in enumerate(rows if others else ()):
        choices = read_choices(row, number)
        meant = {
            name: choices.texts[place]
            for name in (best, *others)
            if (place := NOTATIONS[name](row["answer"], choices)) is not None
        }
        if len(set(meant.values())) > 1:
            said = " or, as ".join(f"{name}, {option!r:.60}" for name, option in meant.items())
            raise DataError(
                f"row {number + 1}: 'answer' {shown(row['answer'])} may mean, as {said}, and no other row tells which: "
                "say which option is right by its letter (A for the first)"
            )
    return best


def right_place(row: Row, number: int, notation: str) -> int:
    """Return the place of the right option.

    Args:
        row: with ``answer`` and its options.
        number: the row's place, from 0, for messages.
        notation: one of :data:`NOTATIONS`.

    Raises:
        DataError: the answer names no option, or two of them.
    """
    place = NOTATIONS[notation](row["answer"], read_choices(row, number))
    if place is None:
        raise _unknown(row, number, notation)
    return place


def _unknown(row: Row, number: int, notation: str) -> DataError:
    choices = read_choices(row, number)
    count = len(choices.texts)
    allowed = {
        "key": f"one of {', '.join(choices.keys)}",
        "index from 0": f"a number from 0 to {count - 1}",
        "index from 1": f"a number from 1 to {count}",
        "text": f"the text of exactly one option, as {choices.texts[0]!r:.60}",
    }[notation]
    others = "in other rows the answer is" if notation != "text" else "an answer is a key, an index, or"
    return DataError(f"row {number + 1}: 'answer' names no option: {others} {allowed}; given {shown(row['answer'])}")
