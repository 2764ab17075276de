"""Where in its file each key of a recipe stands, so that a fault can show the line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml
from rich.cells import cell_len

from autoft.errors import Fault

__all__ = ["Lines", "marked", "read_yaml"]

TAB = "    "

LONGEST = 240
"""Characters of a line that are shown."""

MOST_VALUES = 100_000
"""Values that a text may come to once each alias is written out; a recipe has some hundred."""


def read_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> tuple[Any, yaml.Node | None]:
    """Return what a YAML text says, and its nodes, for :meth:`Lines.of`.

    Args:
        text: of one document.
        loader: that reads it.

    Raises:
        yaml.YAMLError: it is no YAML, or a few aliases of aliases stand for more values than memory has room for.
        RecursionError: it is nested too deeply, or an alias stands in what it names.
    """
    node = yaml.compose(text, Loader=loader)
    if node is None:
        return None, None
    count = _written_out(node, {})
    if count > MOST_VALUES:
        problem = f"its aliases stand for {count:.1e} values; at most {MOST_VALUES} may be"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return yaml.load(text, Loader=loader), node


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many nodes there are below one and with it, what aliases name counted each time."""
    if id(node) not in known:
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for entry in below for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_written_out(part, known) for part in parts)
    return known[id(node)]


@dataclass(frozen=True)
class _Place:
    """A stretch of one line: number from 1, columns from 0."""

    line: int
    start: int
    end: int


@dataclass(eq=False)
class Lines:
    """The lines of a recipe's file by dotted key, and the keys that came from elsewhere.

    Two recipes that say the same are equal wherever it stands: so are all of these.
    """

    source: str = ""
    text: Sequence[str] = ()
    places: dict[str, _Place] = field(default_factory=dict)
    overrides: dict[str, str] = field(default_factory=dict)
    """By key, the override that gave its value, as ``budget.time=5m``."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lines)

    __hash__ = None  # type: ignore[assignment]  # as Python's documentation has it for what cannot be hashed

    @classmethod
    def of(cls, text: str, node: yaml.Node | None, source: str, overrides: Iterable[str] = ()) -> Lines:
        """Return where the keys of a YAML text stand.

        Args:
            text: of the file.
            node: of it, as :func:`read_yaml` returns it.
            source: the file's name, for messages.
            overrides: as ``("budget.time=5m",)``: these keys no longer have their value from the file.
        """
        given = {override.partition("=")[0].strip(): override for override in overrides}
        return cls(source, text.splitlines(), dict(_places(node, "")), given)

    def located(self, fault: Fault) -> Fault:
        """Return a fault with the line that it is about, as far as there is one."""
        key = re.sub(r"\[(\d+)\]", r".\1", fault.where)
        given = next((above for above in _and_above(key) if above in self.overrides), None)
        if given is not None:
            # It took the place of all that the file says below its key.
            return replace(fault, excerpt=f"--set {self.overrides[given]}")
        for above in _and_above(key):
            place = self.places.get(above)
            if place is not None:
                excerpt = _excerpt(self.text[place.line - 1], place)
                return replace(fault, place=f"{self.source}:{place.line}", line=place.line, excerpt=excerpt)
        return fault


def _and_above(key: str) -> Iterator[str]:
    """Give a dotted key and those of the sections that it is in, from the inside out."""
    while key:
        yield key
        key = key.rpartition(".")[0]


def marked(fault: Fault, source: str, text: str, mark: yaml.Mark) -> Fault:
    """Return a fault of the YAML itself with the line and the character that the parser names."""
    lines = text.splitlines() or [""]
    line = min(mark.line, len(lines) - 1)
    place = _Place(line + 1, mark.column, mark.column + 1)
    return replace(fault, place=f"{source}:{place.line}", line=place.line, excerpt=_excerpt(lines[line], place))


def _places(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, _Place]]:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = f"{prefix}{key_node.value}"
            yield key, _place(key_node, value_node)
            yield from _places(value_node, f"{key}.")
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield f"{prefix}{number}", _place(item, item)
            yield from _places(item, f"{prefix}{number}.")


def _place(first: yaml.Node, last: yaml.Node) -> _Place:
    """Return the stretch from the start of one node to the end of another, or of the first where that is on another line."""
    line, start, end = first.start_mark.line, first.start_mark.column, last.end_mark
    if end.line != line:
        end = first.end_mark
    return _Place(line + 1, start, end.column if end.line == line else start + 1)


def _excerpt(text: str, place: _Place) -> str:
    number = f"{place.line:>6}"
    if len(text) > LONGEST:
        # Of a line without end, what is around the place.
        start = max(0, place.start - LONGEST // 4)
        cut = "…" if start else ""
        text = cut + text[start : start + LONGEST] + ("…" if start + LONGEST < len(text) else "")
        begin = place.start - start + len(cut)
        place = _Place(place.line, begin, min(len(text), begin + place.end - place.start))
    # How wide a tab is shown depends on what the line is indented by; as spaces it is as wide everywhere.
    before, meant = (part.replace("\t", TAB) for part in (text[: place.start], text[place.start : place.end]))
    marks = "^" * max(1, cell_len(meant))
    return f"{number} | {text.rstrip().replace(chr(9), TAB)}\n{' ' * len(number)} | {' ' * cell_len(before)}{marks}"
