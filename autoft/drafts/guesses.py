"""Which task rows are made for, by the cards of the installed plugins: names of columns, kinds of values, and what tasks say.

A card is all that is known of a task: a plugin that autoft has never met is guessed like the built-in ones.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoft.contracts import Column, Row, Task, TaskCard
from autoft.data.columns import map_columns
from autoft.drafts.survey import ColumnView, Survey
from autoft.errors import AutoftError, DataError, PluginError, listed

__all__ = ["AMBIGUOUS", "Guess", "Rivals", "guess_tasks", "named_columns", "sample_rows"]

AMBIGUOUS = 0.85
"""Share of the best guess's score from which a second one is as good."""

NAMED, GUESSED, TELLING, FITTING = 1.0, 0.9, 0.7, 0.5
"""What a column is worth for a role: with its name, with the first that users give it, and with another name but values that
only such a column has, as pictures, or values that would do, as texts."""

TELLING_KINDS = frozenset({"tokens", "tags", "span", "image", "audio", "messages"})
FEW_LABELS = 20
TELLS = 3.0
"""How many columns of other kinds one of these stands for: a task that has no use for it is hardly meant."""

CLEARLY = 2.0
"""How many times longer a text is than another before length says more than order."""

CONTAINED = 0.9
"""Share of rows in which a span that is given as text has to stand in the text that it is of."""

KNOWN_BY_VALUES = frozenset(
    {"text", "texts", "label", "labels", "tokens", "tags", "span", "image", "audio", "messages"}
)
"""Kinds of columns that are found without their name; numbers may be anything."""


@dataclass(frozen=True)
class Rivals:
    """Columns of which each may be a role's: the data does not say."""

    role: str
    summary: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Guess:
    """A task that rows may be made for.

    Attributes:
        task: whose columns the data has.
        columns: by role, the data's column.
        score: how well names, values and lengths go together; only its order means something.
        reasons: in words.
        rivals: of each role whose column was found by its values alone, what else it could be.
    """

    task: Task
    columns: Mapping[str, str]
    score: float
    reasons: tuple[str, ...]
    rivals: tuple[Rivals, ...] = ()


@dataclass(frozen=True)
class _Match:
    column: str
    worth: float
    others: tuple[str, ...] = ()


def guess_tasks(tasks: Sequence[Task], data: Survey, given: Mapping[str, str]) -> tuple[list[Guess], dict[str, str]]:
    """Return the tasks that rows may be made for, the best first, and of all others why they are not.

    Args:
        tasks: to choose from.
        data: what the columns hold.
        given: columns by role that the user named.

    Raises:
        PluginError: a task says something of rows that it may not.
    """
    found, refused = [], {}
    for task in tasks:
        try:
            found.append(_guess(task, data, given))
        except AutoftError as error:
            if isinstance(error, PluginError):
                raise
            refused[task.card.name] = str(error)
    # Of two tasks that are as good, the one by name: the order does not depend on what was installed first.
    return sorted(found, key=lambda guess: (-guess.score, guess.task.card.name)), refused


def named_columns(card: TaskCard, data: Survey) -> dict[str, str]:
    """Return by role the columns that are called as a task's, whatever they hold; none where a role that it needs lacks."""
    given = {name.strip().lower(): name for name in data.columns}
    for wanted in card.alternatives or ((),):
        found: dict[str, str] = {}
        for column in card.columns:
            names = [given[name.lower()] for name in (column.role, *column.guesses) if name.lower() in given]
            free = [name for name in names if name not in found.values()]
            if free and (column.required or column.role in wanted):
                found[column.role] = free[0]
        if all(column.role in found for column in card.columns if column.required or column.role in wanted):
            return found
    return {}


def sample_rows(card: TaskCard, data: Survey, columns: Mapping[str, str]) -> list[Row]:
    """Return the sampled rows as a task sees them.

    Raises:
        DataError: none of them has a value in each required column.
    """
    # Other columns are left out: nothing may be guessed anew.
    table = data.sample.select(list(columns.values()))
    return list(map_columns(table, card, columns, "data").to_pylist())


def _guess(task: Task, data: Survey, given: Mapping[str, str]) -> Guess:
    card = task.card
    unknown = [role for role in given if role not in {column.role for column in card.columns}]
    if unknown:
        raise DataError(f"{card.name} has no role {unknown[0]!r}")
    content = [name for name, view in data.columns.items() if not view.identifies and view.values]
    weights = {name: TELLS if _tells(data.columns[name]) else 1.0 for name in content}
    attempts: list[tuple[dict[str, _Match], float]] = []
    for wanted in card.alternatives or ((),):
        matched = _match(card, wanted, data, given)
        if matched is not None:
            needed = [column.role for column in card.columns if column.required or column.role in wanted]
            names = sum(matched[role].worth for role in needed) / max(1, len(needed))
            taken = {match.column for match in matched.values()}
            covered = sum(weights[name] for name in content if name in taken) / max(1.0, sum(weights.values()))
            attempts.append((matched, names * (0.5 + 0.5 * covered)))
    if not attempts:
        raise DataError(_lacking(card, data))
    # The first of the alternatives is the usual one: a later one has to fit better.
    # One that leaves columns unread, as a completion without its prompt, has to fit them much better.
    matched, fit = max(attempts, key=lambda attempt: attempt[1])
    columns = {role: match.column for role, match in matched.items()}
    rows = sample_rows(card, data, columns)
    options = {option.name: option.default for option in card.options}
    task.facts(rows, options)
    likeness = task.likeness(rows, options)
    if not 0 <= likeness <= 1:
        raise PluginError(
            f"the task {card.name} says {likeness!r} of how much rows are like its own; it has to be from 0 to 1"
        )
    score = fit * 2 * likeness
    rivals = tuple(
        Rivals(role, card.column(role).summary, (match.column, *match.others))
        for role, match in matched.items()
        if match.others
    )
    return Guess(task, columns, score, _reasons(card, data, matched), rivals)


def _tells(view: ColumnView) -> bool:
    """Say whether a column was made for something that only few tasks do: pictures, spans, or a handful of labels."""
    return bool(view.kinds & TELLING_KINDS) or ("label" in view.kinds and len(view.labels) <= FEW_LABELS)


def _match(card: TaskCard, wanted: Sequence[str], data: Survey, given: Mapping[str, str]) -> dict[str, _Match] | None:
    """Return the column of each role that is required or wanted, and of others that their name tells; None where one lacks."""
    chosen = {role: _Match(name, NAMED) for role, name in given.items()}
    needed = [column for column in card.columns if column.required or column.role in wanted]
    # The text that spans are of comes first: it is the longest, and spans are known by standing in it.
    read = {column.of for column in needed}
    needed.sort(key=lambda column: (column.role not in read, column.target))
    further = [column for column in card.columns if column not in needed and not _rivals_of(column, card, wanted)]
    for column in [*needed, *further]:
        if column.role not in chosen and (named := _by_name(column, data, chosen)):
            chosen[column.role] = named
    for column in needed:
        if column.role not in chosen:
            found = _by_values(column, needed, data, chosen)
            if found is None:
                return None
            chosen[column.role] = found
    if any(not _in_context(card.column(role), match.column, data, chosen) for role, match in chosen.items()):
        return None
    return {column.role: chosen[column.role] for column in card.columns if column.role in chosen}


def _rivals_of(column: Column, card: TaskCard, wanted: Sequence[str]) -> bool:
    """Say whether a column belongs to another alternative than the one that is looked for."""
    return column.role not in wanted and any(column.role in other for other in card.alternatives)


def _by_name(column: Column, data: Survey, chosen: Mapping[str, _Match]) -> _Match | None:
    """Return the column that has the role's name or one that users give it, and values of its kind."""
    taken = {match.column for match in chosen.values()}
    names = {name.strip().lower(): name for name in data.columns if name not in taken}
    for place, wanted in enumerate([column.role, *column.guesses]):
        name = names.get(wanted.lower())
        if name is not None and _fits(column, data.columns[name], named=True):
            own = wanted.lower() == column.role.lower()
            return _Match(name, NAMED if own else GUESSED - 0.01 * min(place, 20))
    return None


def _by_values(column: Column, needed: Sequence[Column], data: Survey, chosen: Mapping[str, _Match]) -> _Match | None:
    """Return the column whose values fit a role best, with those that fit as well."""
    if _kind(column) not in KNOWN_BY_VALUES:
        return None
    taken = {match.column for match in chosen.values()}
    fitting = [
        view for view in data.columns.values() if view.name not in taken and not view.identifies and _fits(column, view)
    ]
    fitting = [view for view in fitting if _in_context(column, view.name, data, chosen)]
    if not fitting:
        return None
    worth = FITTING if _kind(column) in {"text", "texts", "label", "labels"} else TELLING
    if _kind(column) in {"label", "labels"}:
        first = min(fitting, key=lambda view: len(view.labels))
    else:
        first = fitting[0]
        longest = max(fitting, key=_characters)
        # What is to be read is longer than what is to be written, where one of them is clearly longer; else the order says it.
        if not column.target and _characters(longest) > CLEARLY * _characters(first):
            first = longest
    # As many of the others as further roles are waiting for such a column are no rivals.
    waiting = sum(other.role not in chosen and other is not column and _fits(other, first) for other in needed)
    others = [view.name for view in fitting if view is not first]
    return _Match(first.name, worth, tuple(others) if len(others) > waiting else ())


def _characters(view: ColumnView) -> float:
    return statistics.median(len(str(value)) for value in view.values)


def _kind(column: Column) -> str:
    return column.looks_like or column.kind


def _fits(column: Column, view: ColumnView, named: bool = False) -> bool:
    """Say whether a column's values are of a role's kind; those that have its name need less to show for it."""
    kind = _kind(column)
    if not view.values:
        return False
    scalar = all(isinstance(value, str | int | float | bool) for value in view.values)
    if kind in {"text", "texts"}:
        readable = kind in view.kinds
        if named:
            return readable or (kind == "text" and scalar)
        return readable and not view.kinds & {"label", "image", "audio", "span"} and _is_prose(view)
    if kind in {"label", "labels"}:
        if named and kind == "label" and scalar:
            return not _is_prose(view) or bool(view.kinds & {"label"})
        return kind in view.kinds
    if kind == "span":
        # A text that is to be found in another is one too; `_in_context` looks for it.
        return "span" in view.kinds or bool(column.of and view.kinds & {"text", "texts"})
    if kind == "tokens":
        return "tokens" in view.kinds or (named and "text" in view.kinds)
    if kind == "tags":
        return "tags" in view.kinds or (named and "text" in view.kinds)
    if kind in KNOWN_BY_VALUES or kind == "number":
        return kind in view.kinds
    # A kind of the plugin's own: its facts say whether the values will do.
    return named


def _is_prose(view: ColumnView) -> bool:
    """Say whether values are texts to be read, and not names or numbers."""
    distinct = len({str(value) for value in view.values}) / len(view.values)
    words = view.words
    return words is None or words[0] >= 20 or (distinct > 0.3 and words[1] >= 3)


def _in_context(column: Column, name: str, data: Survey, chosen: Mapping[str, _Match]) -> bool:
    """Say whether a column goes with those that it refers to: spans with their text, tags with their tokens."""
    rows = data.sample.num_rows
    if _kind(column) == "tags":
        words = next(
            (match.column for role, match in chosen.items() if role in {"tokens", "text"} and match.column != name),
            None,
        )
        if words is None:
            return True
        pairs = zip(data.sample[words].to_pylist(), data.sample[name].to_pylist(), strict=True)
        return bool(sum(_length(one) == _length(other) for one, other in pairs) >= CONTAINED * rows)
    if _kind(column) == "span" and column.of in chosen and "span" not in data.columns[name].kinds:
        texts = data.sample[chosen[column.of].column].to_pylist()
        pairs = zip(texts, data.sample[name].to_pylist(), strict=True)
        return bool(sum(_holds(text, span) for text, span in pairs) >= CONTAINED * rows)
    return True


def _length(value: Any) -> int:
    return len(value.split()) if isinstance(value, str) else len(value) if isinstance(value, list) else -1


def _holds(text: Any, span: Any) -> bool:
    """Say whether a text holds each of a row's spans, none of which is a single letter."""
    whole = "\n".join(map(str, text)) if isinstance(text, list) else str(text or "")
    spans = span if isinstance(span, list) else [span]
    return all(isinstance(one, str) and len(one) > 1 and one in whole for one in spans)


def _lacking(card: TaskCard, data: Survey) -> str:
    roles = [column.role for column in card.columns if column.required]
    roles += [" and ".join(wanted) for wanted in itertools.islice(card.alternatives, 1)]
    named = named_columns(card, data)
    unfit = [name for role, name in named.items() if not _fits(card.column(role), data.columns[name], named=True)]
    if unfit:
        view = data.columns[unfit[0]]
        return (
            f"the column {unfit[0]} has other values than such a column: {len(set(map(str, view.values)))} different"
            + (f", as {str(view.values[0])[:50]!r}" if view.values else "")
        )
    return f"no columns for {' and '.join(roles)} among {listed(data.names)}"


def _reasons(card: TaskCard, data: Survey, matched: Mapping[str, _Match]) -> tuple[str, ...]:
    """Return for each role which column it has, and why where its name does not say it."""
    reasons = []
    for role, match in matched.items():
        why = "" if match.worth > TELLING else f" (by its values: {_shown(data.columns[match.column])})"
        reasons.append(f"{role} from {match.column!r}{why}")
    return tuple(reasons)


def _shown(view: ColumnView) -> str:
    if view.labels and "label" in view.kinds:
        return f"{len(view.labels)} different"
    if view.words:
        return f"texts of {view.words[0]:.0f} words"
    return ", ".join(sorted(view.kinds))
