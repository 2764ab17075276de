"""Where the rows are: which splits a path, a folder or several files hold."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoft.data.files import is_data_file
from autoft.data.rows import SPLITS
from autoft.data.sources import saved_splits
from autoft.errors import DataError
from autoft.paths import named_path, near_name, package_path

__all__ = ["Sources", "find_sources"]

NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
"""What a split is called, by the words that file names have."""


@dataclass(frozen=True)
class Sources:
    """The source of each split, as a recipe names it.

    Attributes:
        train: of the training rows.
        validation: None where it is to be cut.
        test: None where it is to be cut.
        beside: splits that were not named and were found beside the file that was.
        unread: files or parts that are called like a split of which another one is read, each with that one.
        base: folder that relative sources start from.
    """

    train: str
    validation: str | None
    test: str | None
    beside: tuple[str, ...]
    unread: tuple[tuple[str, str], ...]
    base: Path

    @property
    def given(self) -> dict[str, str]:
        """The splits that are there, by name."""
        found = {name: getattr(self, name) for name in SPLITS}
        return {name: source for name, source in found.items() if source is not None}


def find_sources(given: Sequence[str], recipe: Path) -> Sources:
    """Return the splits that the arguments of ``autoft init`` name.

    Args:
        given: one source (a file, a folder, ``package://`` or ``hub://``), or a file for each split.
        recipe: the file that the recipe will be; sources in its folder are named relative to it.

    Raises:
        DataError: there is no such file, or it is not clear which is which.
    """
    base = recipe.absolute().parent
    if len(given) == 1:
        found, beside = _splits_of(given[0])
    else:
        found, beside = {split: [source] for split, source in _named(given).items()}, ()
    named = {split: [_as_named(source, base) for source in sources] for split, sources in found.items()}
    unread = tuple((other, first) for first, *others in named.values() for other in others)
    taken = {split: sources[0] for split, sources in named.items()}
    return Sources(taken["train"], taken.get("validation"), taken.get("test"), beside, unread, base)


def _splits_of(source: str) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """Return what there is of each split of one source, first what is read, and which stand beside the file that was named."""
    if source.startswith("hub://"):
        return _hub_splits(source), ()
    prefix = ""
    if source.startswith("package://"):
        path = package_path(source)
        prefix = source.rstrip("/")
    else:
        path = _local(source)
    if path.is_dir():
        names = _folder_splits(path)
        if not names:
            return {"train": [source]}, ()
        return {split: [f"{prefix or path}/{name}" for name in found] for split, found in names.items()}, ()
    stem = path.name.split(".")[0]
    if _split_name(stem) != "train":
        return {"train": [source]}, ()
    siblings = {
        split: names
        for split, names in _by_split(
            [other.name for other in path.parent.iterdir() if is_data_file(other) and _alike(other.name, path.name)]
        ).items()
        if split != "train"
    }
    folder = source.rpartition("/")[0]
    beside = {split: [f"{folder}/{name}" if folder else name for name in names] for split, names in siblings.items()}
    return {"train": [source], **beside}, tuple(siblings)


def _local(source: str) -> Path:
    path = named_path(source, Path())
    if path is None:
        raise DataError(f"no such file: {source}{near_name(Path(os.path.expanduser(source)))}")
    return path


def _folder_splits(folder: Path) -> dict[str, list[str]]:
    """Return the names of each split in a folder; nothing where its files are one data set together."""
    names = saved_splits(folder)
    if names is not None:
        found = _by_split(names)
        return found if "train" in found else {"train": names[:1], **found}
    if (folder / "state.json").is_file():
        return {}
    files = sorted(entry.name for entry in folder.iterdir() if is_data_file(entry))
    # A folder that `save_to_disk` wrote for each split, without the file that lists them.
    files += sorted(entry.name for entry in folder.iterdir() if (entry / "state.json").is_file())
    found = _by_split(files)
    for split, (name, *others) in found.items():
        if name.split(".")[0].lower() not in NAMES and others:
            raise DataError(
                f"{folder}: {split} may be {' or '.join([name, *others][:4])}; name the files of each split, as autoft init "
                "train.csv test.csv, or where they belong together put those of a split into a folder of its own, as "
                "autoft init data/train data/test"
            )
    if found and "train" not in found:
        raise DataError(
            f"{folder}: holds {', '.join(names[0] for names in found.values())} and no training rows; name the files of each "
            f"split, as autoft init train.csv {next(iter(found.values()))[0]}"
        )
    return found


def _by_split(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of each split, exact ones before those that only hold the word."""
    found: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (name.split(".")[0].lower() not in NAMES, name)):
        split = _split_name(name.split(".")[0])
        if split is not None:
            found.setdefault(split, []).append(name)
    return {split: found[split] for split in SPLITS if split in found}


def _alike(one: str, other: str) -> bool:
    """Say whether two files are of one data set: apart from the split and numbers they have the same words in their names."""
    (name, *kinds), (other_name, *other_kinds) = one.split("."), other.split(".")
    return kinds == other_kinds and _further_words(name) == _further_words(other_name)


def _further_words(stem: str) -> list[str]:
    # Shards are called train-00000-of-00004.
    return [word for word in _words(stem) if word not in NAMES and word != "of"]


def _words(stem: str) -> list[str]:
    return [word for word in re.split(r"[^a-z]+", stem.lower()) if word]


def _split_name(stem: str) -> str | None:
    words = [word for word in _words(stem) if word in NAMES]
    return NAMES[words[-1]] if words else None


def _named(given: Sequence[str]) -> dict[str, str]:
    """Return which of several sources is which split: by their names, else in the order train, validation, test."""
    if len(given) > len(SPLITS):
        raise DataError(f"{len(given)} sources are given; at most one for each of {', '.join(SPLITS)}")
    names = [_split_name((source.partition("#")[2] or Path(source).name).split(".")[0]) for source in given]
    if len(set(names)) == len(names) and "train" in names and None not in names:
        return {str(name): source for name, source in zip(names, given, strict=True)}
    if any(names):
        raise DataError(
            f"which is which of {', '.join(given)}? Name them train, validation and test, or write the recipe's data "
            "section by hand: {train: ..., validation: ..., test: ...}"
        )
    order = ("train", "test") if len(given) == 2 else SPLITS
    return dict(zip(order, given, strict=True))


def _hub_splits(source: str) -> dict[str, list[str]]:
    """Return the splits of a data set on the hub, where it can be asked."""
    if "#" in source:
        return {"train": [source]}
    from datasets import get_dataset_split_names

    from autoft.data.sources import hub_parts

    form = hub_parts(source)
    try:
        # With the prefix it is no folder here.
        names = get_dataset_split_names(f"hf://datasets/{form['name']}", form["config"], revision=form["revision"])
    except Exception:  # noqa: BLE001 - a wrong card ends in any error of the library; the reading that follows tells it, and stops
        return {"train": [source]}
    found = _by_split([str(name) for name in names]) or {"train": [str(names[0])]}
    return {split: [f"{source}#{name}" for name in names] for split, names in found.items()}


def _as_named(source: str, base: Path) -> str:
    """Return a source as the recipe names it: below its folder relative to it, elsewhere in full."""
    if "://" in source:
        return source
    path = Path(os.path.abspath(Path(source).expanduser()))
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)
