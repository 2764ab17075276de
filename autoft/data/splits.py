"""From a recipe's sources to three splits: rows are cleaned of duplicates and leaks, limited and cut."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from autoft.contracts import Column, Task, TaskCard
from autoft.data.columns import filter_rows, harmonized, map_columns, required_roles, resolve_columns, roomy, with_files
from autoft.data.groups import deal, group_numbers, ungrouped
from autoft.data.rows import GROUP, SLICE, SPLITS, Ints, Keys, Mask, Split, count_of_rows, row_keys
from autoft.data.sources import load_source
from autoft.errors import DataError, unknown_name
from autoft.recipe import DataSection

__all__ = ["Preparation"]

_PLACE = "\0place"
"""Column of a row's number in its source, from 1, while the splits are made; no file has a column of this name."""
_OWNER = "\0owner"
"""Column of the values of ``data.group`` until roles are given; the task, or a slice, may read the same values as another."""
_CUT_SHARE = 0.15
_CUT_MOST = {"validation": 1000, "test": 2000}


class Preparation:
    """The way from a recipe's sources to three clean tables; collects what to tell the user on it."""

    def __init__(self, section: DataSection, task: Task, seed: int, base: Path, folds: int) -> None:
        self.section = section
        self.task = task
        self.folds = folds
        self.card = task.card
        self.seed = seed
        self.base = base
        self.notes: list[str] = []
        self.columns: dict[str, str] = {}
        self.places: dict[str, tuple[str, pa.ChunkedArray]] = {}
        """Of each split the key of the source that its rows are from, and the number of each row there, from 1."""

    def tables(self) -> dict[str, pa.Table]:
        """Return the three splits."""
        given = {name: source for name in SPLITS if (source := getattr(self.section, name)) is not None}
        tables = harmonized({name: self.source(name, source) for name, source in given.items()}, self.card)
        tables = self.cleaned(tables)
        self.note_shared_groups(tables)
        tables = {name: self.limited(name, table) for name, table in tables.items()}
        absent = [name for name in ("test", "validation") if name not in tables]
        if absent:
            tables |= self.cut(tables["train"], absent)
            tables |= {name: self.limited(name, tables[name]) for name in absent}
            if not self.section.deduplicate:
                self.note_overlap(tables, absent)
        # Files often come sorted by class; shuffled once here, the first rows of a split are a fair sample of it.
        order = {name: self.rng(f"order.{name}").permutation(tables[name].num_rows) for name in SPLITS}
        tables = {name: tables[name].take(pa.array(order[name])) for name in SPLITS}
        self.places = {
            name: ("data.train" if name in absent else f"data.{name}", table[_PLACE]) for name, table in tables.items()
        }
        # Of the training rows folds are made: they keep the group.
        dropped = {name: {_PLACE} if name == "train" else {_PLACE, GROUP} for name in tables}
        return {
            name: table.select([column for column in table.column_names if column not in dropped[name]])
            for name, table in tables.items()
        }

    def located(self, said: str, splits: Sequence[str]) -> str | None:
        """Return what a task says of a row with its source and its number there.

        Args:
            said: by a task, which counts the rows that it is given.
            splits: whose rows it was given, one after the other.

        Returns:
            None where it is about no single row.
        """
        told = re.match(r"row (\d+)\b", said)
        at = int(told[1]) - 1 if told else -1
        for name in splits:
            source, places = self.places[name]
            if told and 0 <= at < len(places):
                return f"{source}: row {places[at]}{said[told.end() :]}"
            at -= len(places)
        return None

    def source(self, name: str, source: str) -> pa.Table:
        """Return the rows of one source by role."""
        where = f"data.{name}"
        table = load_source(source, base=self.base, where=where)
        if source.startswith("hub://") and "@" not in source:
            self.notes.append(f"{where}: {source} names no revision; the data may change, pin it as @revision before #")
        table, places, notes = filter_rows(table, self.section.where, where)
        self.notes += notes
        columns, notes = resolve_columns(table.column_names, self.card, self.section.columns, where)
        self.notes += notes
        if name == "train":
            self.columns = columns
        card, kept = self.sliced(table, columns, where)
        table = table.append_column(_PLACE, pa.array(places + 1))
        if self.section.group is not None and GROUP in kept:
            table = table.append_column(_OWNER, table[self.section.group])
        mapped = map_columns(table, card, {**kept, _PLACE: _PLACE}, where)
        dropped = table.num_rows - mapped.num_rows
        if dropped:
            self.notes.append(
                f"{where}: {count_of_rows(dropped, table.num_rows)} left out for want of a value in {required_roles(self.card)}"
            )
        if GROUP in kept:
            self.note_ungrouped(mapped, where)
        return roomy(with_files(mapped, self.card, source, self.base, where))

    def sliced(self, table: pa.Table, columns: Mapping[str, str], where: str) -> tuple[TaskCard, dict[str, str]]:
        """Return the card and the columns with those added that neither task nor model reads: slices, the group and the place."""
        wanted = list(dict.fromkeys(self.section.slices))
        for name in wanted:
            if name not in table.column_names:
                raise DataError(f"data.slices: {where}: {unknown_name('column', name, table.column_names)}")
            if name in columns.values():
                role = next(role for role, column in columns.items() if column == name)
                raise DataError(
                    f"data.slices: {where}: the column {name!r} is read as {role!r} already; name one that the task does not read"
                )
        kept = {f"{SLICE}{name}": name for name in wanted}
        group = self.section.group
        targets = {columns.get(column.role): column.role for column in self.card.targets}
        if group is not None and group in targets:
            raise DataError(
                f"data.group: {where}: the column {group!r} is what is predicted, its {targets[group]!r}: no split would have answers "
                "of another; name one that says whose a row is"
            )
        if group is not None and group in table.column_names:
            kept[GROUP] = _OWNER
        elif group is not None and where == "data.train":
            raise DataError(f"data.group: {where}: {unknown_name('column', group, table.column_names)}")
        elif group is not None:
            self.notes.append(f"{where}: has no column {group!r}, so its rows may be of groups that data.train has too")
        further = tuple(Column(role, "source", "where a row comes from", required=False) for role in [*kept, _PLACE])
        return replace(self.card, columns=(*self.card.columns, *further)), {**columns, **kept}

    def cleaned(self, tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
        """Take duplicates and rows of held-out splits out of ``train``, and test rows out of ``validation``."""
        roles = [column.role for column in self.card.inputs]
        keys = {name: row_keys(table, roles) for name, table in tables.items()}
        self.note_conflicts(tables["train"], keys["train"])
        drop = {name: np.zeros(len(key), dtype=bool) for name, key in keys.items()}
        repeated = np.ones(len(keys["train"]), dtype=bool)
        repeated[np.unique(keys["train"], return_index=True)[1]] = False
        self.note_removal("train", repeated, "repeat the inputs of an earlier row")
        drop["train"] |= repeated
        for name, held_out in itertools.combinations(SPLITS, 2):
            if name in keys and held_out in keys:
                leaked = np.isin(keys[name], keys[held_out]) & ~drop[name]
                self.note_removal(name, leaked, f"are also in data.{held_out}")
                drop[name] |= leaked
        if not self.section.deduplicate:
            return tables
        for name, mask in drop.items():
            if mask.all():
                raise DataError(
                    f"data.{name}: all of its {len(mask)} rows are also in a held-out split; give other data, or set "
                    "data.deduplicate to false to keep them"
                )
        return {name: table.filter(pa.array(~drop[name])) for name, table in tables.items()}

    def note_removal(self, name: str, mask: Mask, what: str) -> None:
        """Tell how many rows of a split are marked, why, and whether they were left out."""
        if mask.any():
            done = "left out" if self.section.deduplicate else "kept, as data.deduplicate is false"
            self.notes.append(f"data.{name}: {count_of_rows(int(mask.sum()), len(mask))} {what}: {done}")

    def note_ungrouped(self, table: pa.Table, where: str) -> None:
        """Warn of rows that are in no group.

        Raises:
            DataError: it is all training rows.
        """
        alone = ungrouped(table)
        if alone.all() and where == "data.train":
            raise DataError(f"data.group: {where}: none of its {len(alone)} rows has a value in {self.section.group!r}")
        if alone.any():
            self.notes.append(
                f"{where}: {count_of_rows(int(alone.sum()), len(alone))} have no value in {self.section.group!r}, the first of them "
                f"row {table[_PLACE][int(alone.argmax())]}: each is a group of its own"
            )

    def note_shared_groups(self, tables: Mapping[str, pa.Table]) -> None:
        """Warn of groups that are in two of the splits that were given."""
        keys = {
            name: row_keys(table, [GROUP])[~ungrouped(table)]
            for name, table in tables.items()
            if GROUP in table.column_names
        }
        for name, held_out in itertools.combinations([name for name in SPLITS if name in keys], 2):
            own = np.unique(keys[held_out])
            shared = int(np.isin(own, keys[name]).sum())
            if shared:
                self.notes.append(
                    f"data.{held_out}: {shared} of its {len(own)} values of {self.section.group!r} are also in data.{name}: if rows "
                    "of one are alike, figures are too good for others"
                )

    def note_conflicts(self, table: pa.Table, inputs: Keys) -> None:
        """Warn of inputs that stand in ``train`` with different targets."""
        targets = row_keys(table, [column.role for column in self.card.targets])
        pairs = np.unique(np.stack([inputs, targets], axis=1), axis=0)
        conflicts = int((np.unique(pairs[:, 0], return_counts=True)[1] > 1).sum())
        if conflicts:
            kept = "the first is kept" if self.section.deduplicate else "all are kept, as data.deduplicate is false"
            what = "input stands" if conflicts == 1 else "inputs stand"
            self.notes.append(f"data.train: {conflicts} {what} with different targets: {kept}")

    def note_overlap(self, tables: dict[str, pa.Table], cut: Sequence[str]) -> None:
        """Warn of rows that are in two splits because duplicates were kept."""
        roles = [column.role for column in self.card.inputs]
        keys = {name: row_keys(table, roles) for name, table in tables.items()}
        for name, held_out in itertools.combinations(SPLITS, 2):
            if name in cut or held_out in cut:
                self.note_removal(name, np.isin(keys[name], keys[held_out]), f"are also in the {held_out} split")

    def limited(self, name: str, table: pa.Table) -> pa.Table:
        """Return at most as many rows as ``data.limit`` says, drawn at random, in the order of the data."""
        limit = self.section.limit
        limits = {str(split): most for split, most in limit.items()} if isinstance(limit, dict) else {"train": limit}
        most = limits.get(name)
        if most is None or table.num_rows <= most:
            return table
        chosen = self.rng(f"limit.{name}").permutation(table.num_rows)[:most]
        return table.take(pa.array(np.sort(chosen)))

    def cut(self, train: pa.Table, names: Sequence[str]) -> dict[str, pa.Table]:
        """Cut held-out splits from the training rows, stratified where the task says how."""
        wanted = {name: getattr(self.section, f"{name}_size") for name in names}
        sizes = _cut_sizes(train.num_rows, wanted)
        if self.folds > 1 and wanted.get("validation", 1) is None:
            sizes["validation"] = max(1, (train.num_rows - sizes.get("test", 0)) // self.folds)
        strata = [self.task.stratum(row) for row in Split(train)]
        if GROUP in train.column_names:
            return self.cut_by_group(train, sizes, strata)
        free = np.ones(train.num_rows, dtype=bool)
        parts = {}
        for name, size in sizes.items():
            chosen = _draw(strata, free, size, self.rng(f"cut.{name}"))
            free[chosen] = False
            parts[name] = train.take(pa.array(chosen))
        return {"train": train.filter(pa.array(free)), **parts}

    def cut_by_group(
        self, train: pa.Table, sizes: Mapping[str, int], strata: Sequence[str | None]
    ) -> dict[str, pa.Table]:
        """Cut splits of whole groups, and leave a group for each further fold."""
        left = train.num_rows - sum(sizes.values())
        folds = max(1, self.folds - 1)
        names = [*sizes, *["train"] * folds]
        groups = group_numbers(train)
        further = [f"{self.folds} folds"] if self.folds > 1 else []
        parts = " and ".join([*further, ", ".join(["train", *sizes])])
        place = deal(train, groups, strata, [*sizes.values(), *[left / folds] * folds], self.rng("cut.group"), parts)
        chosen = {name: np.isin(place, [i for i, one in enumerate(names) if one == name]) for name in ["train", *sizes]}
        told = []
        for name, mask in chosen.items():
            asked = {"train": left, **sizes}[name]
            rows, values = int(mask.sum()), len(np.unique(groups[mask]))
            nearly = "" if rows == asked or name == "train" else f", for {asked} asked for"
            told.append(f"{rows} rows of {values} groups for {name}{nearly}")
        self.notes.append(f"data.train: cut by {self.section.group!r}, whole groups: {'; '.join(told)}")
        return {name: train.filter(pa.array(mask)) for name, mask in chosen.items()}

    def rng(self, purpose: str) -> np.random.Generator:
        """Return a generator of its own for each purpose: one draw does not move the next."""
        return np.random.default_rng([self.seed, zlib.crc32(purpose.encode())])


def _cut_sizes(rows: int, sizes: Mapping[str, float | int | None]) -> dict[str, int]:
    """Return how many rows each cut takes of so many.

    Raises:
        DataError: a cut would be empty, or nothing would be left to train on.
    """
    counts = {}
    for name, size in sizes.items():
        share = _CUT_SHARE if size is None else size
        count = share if isinstance(share, int) else round(rows * share)
        counts[name] = count if size is not None else min(count, _CUT_MOST[name])
        if counts[name] < 1:
            raise DataError(
                f"data.{name}: is absent, and {share * 100:g} % of the {rows} rows of data.train is less than one row; "
                f"give more rows, data.{name}, or data.{name}_size as a number of rows"
            )
    left = rows - sum(counts.values())
    if left < 1:
        asked = " and ".join(f"{count} for {name}" for name, count in counts.items())
        raise DataError(
            f"data.train: has {rows} rows, too few to cut {asked} and have some left to train on; give more rows, or "
            f"smaller {' and '.join(f'data.{name}_size' for name in counts)}"
        )
    return counts


def _draw(strata: Sequence[str | None], free: Mask, size: int, rng: np.random.Generator) -> Ints:
    """Draw rows among the free ones, from each stratum in proportion (largest remainder); positions ascend.

    A stratum gives its last row only when no other has one to spare, so that training sees every class.
    """
    members: dict[str, list[int]] = {}
    for position in np.flatnonzero(free):
        members.setdefault(repr(strata[int(position)]), []).append(int(position))
    names = sorted(members)
    counts = np.array([len(members[name]) for name in names], dtype=np.int64)
    taken = _largest_remainder(counts, size)
    chosen = [rng.permutation(members[name])[:count] for name, count in zip(names, taken, strict=True)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _largest_remainder(counts: Ints, size: int) -> Ints:
    """Share ``size`` seats among strata in proportion to their counts, each keeping one row while others have more."""
    quotas = counts * size / counts.sum()
    most = np.maximum(counts - 1, 0)
    taken: Ints = np.minimum(np.floor(quotas + 1e-9).astype(np.int64), most)
    while (missing := size - int(taken.sum())) > 0:
        if not (taken < most).any():
            most = counts
        open_ = np.flatnonzero(taken < most)
        order = open_[np.lexsort((open_, -counts[open_], -np.round(quotas[open_] - taken[open_], 9)))]
        taken[order[:missing]] += 1
    return taken
