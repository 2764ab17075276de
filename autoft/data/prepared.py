"""The splits of a run and its folds, written once to where workers open them memory-mapped."""

from __future__ import annotations

import hashlib
import json
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from autoft.contracts import Task
from autoft.data.columns import harmonized
from autoft.data.groups import deal, group_numbers, joined
from autoft.data.rows import CHUNK, GROUP, SPLITS, Split, concatenated, row_keys
from autoft.data.sources import source_path
from autoft.data.splits import Preparation
from autoft.data.storage import digest_of, open_arrow, task_state, write_arrow
from autoft.errors import DataError, PluginError, RunFolderError
from autoft.paths import file_digest
from autoft.recipe import DataSection
from autoft.rundir import read_typed, write_json, writing
from autoft.version import __version__

__all__ = ["PreparedData", "decide_rows", "open_data", "prepare_data", "prepare_folds", "rows_decided"]

# Files up to this size are known by their content, larger ones by size and time of change.
_HASHED_BYTES = 64 * 2**20

_DECIDED = "rows.json"

_REMEDIED = "{}: the prepared data is not as it was written, and is prepared again."


@dataclass(frozen=True)
class PreparedData:
    """The splits of a run.

    Attributes:
        train: what models are trained on.
        validation: what drives the search.
        test: scored once, after the selection.
        fingerprint: of all rows, the task and its facts; equal when and only when the data is.
        facts: what the task learned from the training rows, plain JSON.
        columns: the data's column of each role, in the training source.
        warnings: what the user should know, one sentence each.
    """

    train: Split
    validation: Split
    test: Split
    fingerprint: str
    facts: dict[str, Any]
    columns: dict[str, str]
    warnings: tuple[str, ...] = ()


def prepare_data(
    section: DataSection,
    task: Task,
    options: Mapping[str, Any],
    seed: int,
    folder: Path,
    base: Path,
    folds: int = 1,
    note: Callable[[str], None] = lambda text: None,
    expected: str = "",
) -> PreparedData:
    """Load, filter, map, clean, limit and cut the data, and write it where workers open it.

    The training source is cleaned before it is limited and cut, so that no row of one split is also in another. Splits
    that a recipe names keep their rows, except that test rows are taken out of validation. All are shuffled.

    Args:
        section: the recipe's ``data``.
        task: says which columns there are, how to stratify, and what to learn from the training rows.
        options: the task's options, defaults filled in.
        seed: of the draw where ``limit`` or a cut asks for one.
        folder: where ``train.arrow``, ``validation.arrow``, ``test.arrow`` and ``meta.json`` go; read back where they
            answer the same request.
        base: the recipe's folder.
        folds: where it is above 1 and the recipe says nothing of the validation split, this is cut such that all folds
            of :func:`prepare_folds` have about as many rows.
        note: told in a sentence where what was there is damaged, and prepared again.
        expected: the fingerprint that the data has to have, as trials were scored on it; empty for any.

    Raises:
        DataError: the data cannot be read or used.
        PluginError: the task's facts are not plain JSON.
        RunFolderError: the folder cannot be written; or the data is not the expected one, and what is there stays as it is.
    """
    request = _request(section, task, options, seed, base, folds)
    meta = folder / "meta.json"
    prepared = None
    try:
        if meta.is_file() and read_typed(meta, dict[str, Any]).get("request") == request:
            prepared = _read_back(folder)
    except RunFolderError:
        note(_REMEDIED.format(folder))
    if prepared is not None:
        _check_expected(folder, prepared.fingerprint, expected)
        return prepared
    preparation = Preparation(section, task, seed, base, folds)
    tables = preparation.tables()
    facts = _facts(task, options, tables, preparation)
    fingerprints = {name: Split(table).fingerprint for name, table in tables.items()}
    fingerprint = digest_of([task.card.name, dict(options), facts, fingerprints])
    _check_expected(folder, fingerprint, expected)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # A reader takes meta.json as the sign that the three files belong together.
        meta.unlink(missing_ok=True)
        if not expected:
            # Of other rows nothing is decided yet; those that trials were judged by stay.
            (folder / _DECIDED).unlink(missing_ok=True)
    for name, table in tables.items():
        write_arrow(_split_file(folder, name), table.schema, table.to_batches(max_chunksize=CHUNK))
    write_json(
        meta,
        {
            "autoft": __version__,
            "request": request,
            "fingerprint": fingerprint,
            "columns": preparation.columns,
            "sizes": {name: table.num_rows for name, table in tables.items()},
            "splits": fingerprints,
            "files": _digests(folder, tables),
            "warnings": preparation.notes,
            "facts": facts,
        },
    )
    return open_data(folder, whole=True)


def rows_decided(folder: Path) -> dict[str, int]:
    """Return how many rows of ``validation`` and ``test`` figures are of, as far as that was decided.

    Raises:
        RunFolderError: what says so is damaged.
    """
    return read_typed(folder / _DECIDED, dict[str, int], {})


def decide_rows(folder: Path, split: str, count: int) -> None:
    """Have figures be of the first rows of a split from now on: it is shuffled, so they are drawn at random.

    Args:
        folder: the one of :func:`prepare_data`.
        split: ``validation``, of which the first decision holds, for figures of different rows are not compared; or ``test``.
        count: of rows; all of them where there are fewer.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    known = rows_decided(folder)
    if split == "validation" and split in known:
        return
    write_json(folder / _DECIDED, {**known, split: count})


def _check_expected(folder: Path, fingerprint: str, expected: str) -> None:
    if expected and fingerprint != expected:
        raise RunFolderError(
            f"{folder.parent}: holds a run whose trials were trained and scored on other data than the recipe's sources have now, so that "
            "their figures do not compare; put the data back as it was, or give --run another folder (with search.like this run's "
            "best settings are tried first there)"
        )


def _digests(folder: Path, splits: Iterable[str]) -> dict[str, str]:
    return {name: file_digest(_split_file(folder, name)) for name in splits}


def _read_back(folder: Path) -> PreparedData:
    """Return what was prepared in a folder, once its files are known to be those that were written.

    By their bytes: their rows would have to be looked at one by one, which takes several times as long.

    Raises:
        RunFolderError: they are not, or one is missing.
    """
    prepared = open_data(folder, whole=True)
    meta = read_typed(folder / "meta.json", _Meta)
    if _digests(folder, [name for name in SPLITS if name not in meta.above]) != meta.files:
        raise RunFolderError(f"{folder}: is damaged: its rows are not as they were written")
    return prepared


class _Meta(BaseModel):
    """What ``meta.json`` says of the splits beside it."""

    fingerprint: str
    sizes: dict[str, int]
    splits: dict[str, str]
    """Of each the fingerprint of its rows."""
    files: dict[str, str] = {}
    """Of those in the same folder the SHA-256."""
    facts: dict[str, Any]
    columns: dict[str, str]
    warnings: list[str]
    above: list[str] = []
    """Splits that a fold has from the folder above."""


def open_data(folder: Path, *, whole: bool = False, decided: Mapping[str, int] | None = None) -> PreparedData:
    """Open what :func:`prepare_data` or :func:`prepare_folds` wrote, memory-mapped.

    Args:
        folder: where they wrote it.
        whole: also the rows that no figure is of, by :func:`decide_rows`.
        decided: of how many rows of some splits figures are, for who is told so by another machine, which may have written it to
            shared storage a moment ago; default: what is written there.

    Raises:
        RunFolderError: a file is missing or damaged.
    """
    meta = read_typed(folder / "meta.json", _Meta)
    if decided is None:
        decided = rows_decided(folder.parent if meta.above else folder)
    splits = {}
    for name in SPLITS:
        # A fold has no test split of its own.
        path = _split_file(folder.parent if name in meta.above else folder, name)
        table = open_arrow(path)
        if table.num_rows != meta.sizes.get(name):
            raise RunFolderError(f"{path}: is damaged; delete {folder / 'meta.json'} to have the data prepared again")
        count = table.num_rows if whole else decided.get(name, table.num_rows)
        few = count < table.num_rows
        splits[name] = Split(table.slice(0, count) if few else table, None if few else meta.splits.get(name))
    return PreparedData(
        **splits,
        fingerprint=meta.fingerprint,
        facts=meta.facts,
        columns=meta.columns,
        warnings=tuple(meta.warnings),
    )


def prepare_folds(
    prepared: PreparedData,
    task: Task,
    folds: int,
    seed: int,
    folder: Path,
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Write the splits of further folds: each holds out another part of the training rows, and trains on all others.

    Fold 0 is what :func:`prepare_data` cut. The training rows are dealt out to the other folds, each class in turn, as
    scikit-learn's ``StratifiedKFold`` does; rows with the same inputs, or the same value of ``data.group``, go to the
    same fold. The validation rows are training rows of all folds but the first; the test split stays what it is.

    Args:
        prepared: what :func:`prepare_data` returned.
        task: says how to stratify, and what the inputs are.
        folds: how many there are in all; nothing is written for 1.
        seed: of the dealing.
        folder: the one of :func:`prepare_data`; fold 1 goes to ``fold-1/`` in it.
        note: told in a sentence where what was there is damaged, and written again.

    Raises:
        DataError: there are fewer training rows, or groups, than folds to make of them.
        RunFolderError: the folder cannot be written.
    """
    if folds == 1:
        return
    table = prepared.train.table
    keys = row_keys(table, [column.role for column in task.card.inputs])
    first, group = np.unique(keys, return_index=True, return_inverse=True)[1:]
    if len(first) < folds - 1:
        raise DataError(
            f"search.folds is {folds}, but beside the validation split there are only {len(first)} different training "
            "rows; ask for fewer folds"
        )
    rng = np.random.default_rng([seed, zlib.crc32(b"folds")])
    if GROUP in table.column_names:
        together = joined(group_numbers(table), group)
        every = [task.stratum(row) for row in prepared.train]
        sizes = [len(group) / (folds - 1)] * (folds - 1)
        place = deal(table, together, every, sizes, rng, f"the {folds - 1} folds beside that of data.validation") + 1
        table = table.drop_columns([GROUP])
    else:
        strata = [repr(task.stratum(prepared.train[int(i)])) for i in first]
        shuffled = [int(i) for i in rng.permutation(len(first))]
        order = sorted(shuffled, key=lambda i: strata[i])
        dealt = np.empty(len(first), dtype=np.int64)
        dealt[order] = np.arange(len(order)) % (folds - 1) + 1
        place = dealt[group]
    for number in range(1, folds):
        # A generator for each: a fold that an earlier call wrote does not move the order of the next.
        order_of = np.random.default_rng([seed, number, zlib.crc32(b"order")])
        target = folder / f"fold-{number}"
        fingerprint = digest_of([prepared.fingerprint, number, folds, seed])
        try:
            if (target / "meta.json").is_file() and _read_back(target).fingerprint == fingerprint:
                continue
        except RunFolderError:
            note(_REMEDIED.format(target))
        held = pa.array(place == number)
        learned = harmonized(
            {"train": table.filter(pc.invert(held)), "validation": prepared.validation.table}, task.card
        )
        shown = learned["train"].column_names
        tables = {
            "train": pa.concat_tables([learned["train"], learned["validation"].select(shown)]),
            "validation": table.filter(held),
        }
        tables["train"] = tables["train"].take(pa.array(order_of.permutation(tables["train"].num_rows)))
        with writing(target):
            target.mkdir(parents=True, exist_ok=True)
        for name, part in tables.items():
            write_arrow(_split_file(target, name), part.schema, part.to_batches(max_chunksize=CHUNK))
        splits = {**tables, "test": prepared.test.table}
        write_json(
            target / "meta.json",
            {
                "above": ["test"],
                "fingerprint": fingerprint,
                "columns": prepared.columns,
                "sizes": {name: part.num_rows for name, part in splits.items()},
                "splits": {name: Split(part).fingerprint for name, part in splits.items()},
                "files": _digests(target, tables),
                "warnings": [],
                "facts": prepared.facts,
            },
        )


def _facts(
    task: Task, options: Mapping[str, Any], tables: Mapping[str, pa.Table], preparation: Preparation
) -> dict[str, Any]:
    """Return the task's facts about the training rows, after a look whether the held-out rows go with them."""
    notes = preparation.notes
    try:
        facts = _plain_json(task.facts(Split(tables["train"]), options), task)
    except DataError as error:
        raise DataError(preparation.located(str(error), ["train"]) or str(error)) from error
    every = Split(concatenated([tables[name] for name in SPLITS], "data"))
    try:
        together = task.facts(every, options)
    except DataError as error:
        place = preparation.located(str(error), SPLITS)
        raise DataError(place or f"data.validation or data.test do not go with data.train: {error}") from error
    notes += [preparation.located(told, SPLITS) or f"data: {told}" for told in task.warnings(every, options)]
    unseen = [label for label in together.get("labels", ()) if label not in facts.get("labels", ())]
    if unseen:
        shown = ", ".join(map(repr, unseen[:5])) + (" ..." if len(unseen) > 5 else "")
        what = "label of validation or test is" if len(unseen) == 1 else "labels of validation or test are"
        notes.append(f"data: {len(unseen)} {what} never seen in training: {shown}")
    alike: dict[str, list[str]] = {}
    for label in together.get("labels", ()):
        alike.setdefault("".join(unicodedata.normalize("NFKC", str(label)).casefold().split()), []).append(repr(label))
    notes += [
        f"data: the labels {' and '.join(labels)} differ in spaces, case or the way letters are encoded alone, and are learned "
        "as different ones; write them alike if they mean the same"
        for labels in alike.values()
        if len(labels) > 1
    ][:5]
    return facts


def _plain_json(facts: Any, task: Task) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(facts))
    except (TypeError, ValueError) as error:
        raise PluginError(f"task {task.card.name}: facts() must return plain JSON ({error})") from error
    return plain


def _request(section: DataSection, task: Task, options: Mapping[str, Any], seed: int, base: Path, folds: int) -> str:
    sources = {}
    for name in SPLITS:
        source = getattr(section, name)
        if source is None or source.startswith("hub://"):
            sources[name] = source
            continue
        try:
            path = source_path(source, base)
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            sources[name] = [str(path.resolve()), [_file_state(file) for file in files if file.is_file()]]
        except DataError as error:
            raise DataError(f"data.{name}: {error}") from error.__cause__
        except OSError as error:
            raise DataError(f"data.{name}: {source} cannot be read: {error.strerror}") from error
    return digest_of(
        [section.model_dump(mode="json"), sources, task_state(task), dict(options), seed, folds, __version__]
    )


def _file_state(path: Path) -> list[Any]:
    stat = path.stat()
    if stat.st_size > _HASHED_BYTES:
        return [path.name, stat.st_size, stat.st_mtime_ns]
    return [path.name, stat.st_size, hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()]


def _split_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.arrow"
