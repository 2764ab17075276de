"""Every error that autoft raises on purpose.

::

    AutoftError                 exit code 1
    ├── RecipeError             2   faults in a recipe, all of them at once
    ├── DataError               2   a data set that cannot be read or used
    ├── ModelError              2   a model that cannot be found or loaded
    ├── PluginError             3   a task or strategy that is missing, broken or clashing
    ├── NothingFeasible         4   the search ended and nothing fits the budget
    ├── RunFolderError          5   a run folder that is busy, damaged, full or of another recipe
    ├── ServingError            5   a server that cannot start: its address, its model, or packages that it needs
    ├── ExportMismatch          6   the exported files do not score what the trial scored
    ├── SearchFailed            7   the first trials all failed alike, a worker cannot be started, or the test was killed
    ├── HubError                8   a model hub that cannot be reached, or refuses
    └── StudyError              9   a shared study that cannot be reached, or refuses

Each message says where, what is allowed, what was given and, for names, the closest one.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "AutoftError",
    "DataError",
    "ExportMismatch",
    "Fault",
    "HubError",
    "ModelError",
    "NothingFeasible",
    "PluginError",
    "RecipeError",
    "RunFolderError",
    "SearchFailed",
    "ServingError",
    "StudyError",
    "closest",
    "unknown_name",
]


class AutoftError(Exception):
    """Base of all errors that a user can act upon; ``exit_code`` is what the command returns."""

    exit_code = 1


class DataError(AutoftError):
    """A data set cannot be read or used."""

    exit_code = 2


class ModelError(AutoftError):
    """A model cannot be found or loaded."""

    exit_code = 2


class PluginError(AutoftError):
    """A plugin is missing, broken, or clashes with another."""

    exit_code = 3


class NothingFeasible(AutoftError):
    """The search ended and no variant of any trial fits the budget."""

    exit_code = 4


class RunFolderError(AutoftError):
    """A run folder is busy, damaged, full, or belongs to another recipe."""

    exit_code = 5


class ServingError(AutoftError):
    """A server cannot start: its address is taken or not of this machine, or a package is not installed."""

    exit_code = 5


class ExportMismatch(AutoftError):
    """The exported files do not score what the trial they come from scored."""

    exit_code = 6


class SearchFailed(AutoftError):
    """The search cannot go on: the first trials failed alike, a worker does not start, or a process of the test is killed or hangs."""

    exit_code = 7


class HubError(AutoftError):
    """A model hub cannot be reached, or refuses."""

    exit_code = 8


class StudyError(AutoftError):
    """The database of a shared study cannot be reached, or refuses."""

    exit_code = 9


@dataclass(frozen=True)
class Fault:
    """One fault of a recipe.

    Attributes:
        where: a dotted key.
        message: what is wrong, and what to do about it.
        place: file and line of the key, as ``recipe.yaml:7``; empty where it stands in no file.
        line: the line's number.
        excerpt: the line itself with what is meant underlined, or the override that gave the value.
    """

    where: str
    message: str
    place: str = ""
    line: int = 0
    excerpt: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        # Of a value without end its begin says what it is.
        text = re.sub(r"(\S{60})\S{300,}", r"\1…", text)
        text = f"{self.place}: {text}" if self.place else text
        return without_passwords("\n".join([text, *(f"  {line}" for line in self.excerpt.splitlines())]))


class RecipeError(AutoftError):
    """One or more faults in a recipe, told together."""

    exit_code = 2

    def __init__(self, faults: Sequence[Fault], source: str = "recipe") -> None:
        self.faults = tuple(faults)
        self.source = source
        count = len(self.faults)
        head = f"{source}: {count} fault{'s' if count != 1 else ''}"
        told = "\n".join(str(fault) for fault in self.faults[:MANY])
        more = f"\nand {count - MANY} more" if count > MANY else ""
        super().__init__("\n".join([head, *(f"  {line}" for line in (told + more).splitlines())]))


_PASSWORDS = (
    # One with spaces in it is no right address, and a password all the same.
    re.compile(r"(?<=://)([^:@/\s]*):(?:\S*|[^/\n]*)(?=@)"),
    re.compile(r"([?&](?:password|passwd|pwd|passfile|sslpassword|token)=)[^&\s'\"]*", re.IGNORECASE),
)


def without_passwords(text: str) -> str:
    """Return a text whose addresses have lost their passwords: ``postgresql://user:secret@host`` is ``postgresql://user@host``."""
    for pattern in _PASSWORDS:
        text = pattern.sub(r"\1", text)
    return text


_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def without_controls(text: str) -> str:
    """Return a text without what steers a terminal or turns the direction of writing; line breaks and tabs stay.

    Names of columns, labels and files may hold such characters, and a message repeats them.
    """
    return _CONTROLS.sub("", text)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its type where it says nothing.

    Without a colon at its end, and at most 500 characters.
    """
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # noqa: BLE001 - an error of a plugin may fail to say what it is
        lines = []
    return lines[0].rstrip(":")[:500] if lines else type(error).__name__


def kind_and_line(error: BaseException) -> str:
    """Return the type of an error and the first line of what it says, as ``ValueError: no such row``."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like ``name``, or None where none is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.55)
    return found[0] if found else None


OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "std::bad_alloc")

ONEDNN_OUT_OF_MEMORY = frozenset({"could not create a primitive", "could not execute a primitive"})
"""The whole of what oneDNN says where its code or its buffers find no room; shapes that it does not know it calls otherwise."""


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, of the machine or of a GPU."""
    text = str(error).lower().strip()
    return (
        isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY) or text in ONEDNN_OUT_OF_MEMORY
    )


def out_of_files(error: BaseException | None) -> bool:
    """Say whether an error, or one that it comes from, means that a process has as many files open as it may."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            return True
        error = error.__cause__ or error.__context__
    return False


def is_panic(error: BaseException) -> bool:
    """Say whether an error is a panic of a library in Rust: each has its own class for them, which is no :class:`Exception`."""
    return type(error).__module__ == "pyo3_runtime" and type(error).__name__ == "PanicException"


FULL = ("no space left on device", "os error 28", "disk quota exceeded")


def out_of_disk(error: BaseException | None) -> bool:
    """Say whether an error, or one that it comes from, means that a disk is full."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
        if full or any(words in str(error).lower() for words in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


MANY = 40
"""Names or faults that a message still lists in full."""


def listed(names: Iterable[str]) -> str:
    """Return names as a message lists them: the first of many, and of a long one how it begins."""
    short = [name if len(name) <= 60 else f"{name[:57]}..." for name in names]
    return ", ".join(short[:MANY]) + (f" and {len(short) - MANY} others" if len(short) > MANY else "")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence for an unknown name: what was given, the closest, and all that there are, or the nearest."""
    names = sorted(known)
    near = closest(name, names)
    hint = f" Did you mean {near!r}?" if near else ""
    there = f" Known: {listed(names)}." if names else " None is installed."
    if len(names) > MANY:
        some = difflib.get_close_matches(name, names, n=8, cutoff=0.0)
        there = f" The nearest of {len(names)}: {listed(some)}."
    return f"unknown {kind} {name!r}.{hint}{there}"
