"""Find and read what a recipe names as data: files, folders, saved data sets, packages and the hub."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from autoft.data.downloads import hub_rows, prepared_commit
from autoft.data.encodings import Room, plain, sound
from autoft.data.files import allowed_kinds, check_arrow, is_data_file, kind_of, read_file
from autoft.data.rows import SPLITS, concatenated
from autoft.errors import DataError, closest, first_line, kind_and_line
from autoft.paths import named_path, near_name, package_path

__all__ = ["hub_commit", "hub_parts", "load_source", "pinned_source", "saved_splits", "source_card", "source_path"]


def load_source(source: str, *, base: Path, where: str) -> pa.Table:
    """Read a data source of a recipe.

    Args:
        source: a csv, tsv, json, jsonl, parquet or arrow file, text also as .gz; a ``save_to_disk`` folder; a folder
            of several files of one kind; ``hub://owner/name[:config][@revision][#split]``; or
            ``package://module/path``.
        base: the recipe's folder; relative paths start there, then in the working directory.
        where: the recipe's key, as ``data.train``, for messages.

    Returns:
        The rows, with at least one row and distinct column names. Class numbers that carry names (``ClassLabel`` of
        the ``datasets`` library) are replaced by the names.

    Raises:
        DataError: it cannot be found or read, or holds no rows.
    """
    try:
        return _checked(_read(source, base), source)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error.__cause__


def _read(source: str, base: Path) -> pa.Table:
    if source.startswith("hub://"):
        return _read_hub(source)
    path = source_path(source, base)
    return _read_folder(path) if path.is_dir() else read_file(path)


def source_path(source: str, base: Path) -> Path:
    """Return the file or folder that a source names which is not on the hub.

    Args:
        source: ``package://module/path``, or a path beside the recipe, or else in the working directory.
        base: the recipe's folder.

    Raises:
        DataError: it is not there, or the source has a scheme other than those of :func:`load_source`.
    """
    if source.startswith("package://"):
        return package_path(source)
    if "://" in source:
        scheme = source.partition("://")[0]
        near = closest(scheme, ["hub", "package"])
        hint = f" Did you mean {near}://?" if near else ""
        raise DataError(f"{source}: allowed are a local path, hub:// and package://; given {scheme}://.{hint}")
    found = named_path(source, base, Path.cwd())
    if found is not None:
        return found
    tried = [folder / os.path.expanduser(source) for folder in (base, Path.cwd())]
    folders = " and ".join(dict.fromkeys(str(candidate.parent) for candidate in tried))
    raise DataError(f"no such file: {source} (looked in {folders}){near_name(*tried)}")


def source_card(source: str, base: Path) -> Path | None:
    """Return the card of a data source that was read: the ``README.md`` beside its files, or what came with it from the hub.

    Args:
        source: as in :func:`load_source`.
        base: the recipe's folder.
    """
    if source.startswith("hub://"):
        from huggingface_hub import try_to_load_from_cache

        form = hub_parts(source)
        found = try_to_load_from_cache(
            str(form["name"]), "README.md", repo_type="dataset", revision=form["revision"] or "main"
        )
        return Path(found) if isinstance(found, str) else None
    path = source_path(source, base)
    card = (path if path.is_dir() else path.parent) / "README.md"
    return card if card.is_file() else None


def saved_splits(folder: Path) -> list[str] | None:
    """Return the splits that ``DatasetDict.save_to_disk`` wrote into a folder, by name; None where it wrote none.

    Raises:
        DataError: the file that lists them is damaged.
    """
    listing = folder / "dataset_dict.json"
    if not listing.is_file():
        return None
    try:
        return [str(name) for name in json.loads(listing.read_text(encoding="utf-8"))["splits"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{listing}: is damaged ({first_line(error)}); save the data set again") from error


def _read_folder(folder: Path) -> pa.Table:
    names = saved_splits(folder)
    if names is not None:
        raise DataError(
            f"{folder}: holds the splits {', '.join(names)}; name one, as {folder.name}/{(names or ['train'])[0]}"
        )
    if (folder / "state.json").is_file():
        return _read_saved(folder)
    data = sorted(path for path in folder.iterdir() if is_data_file(path))
    if not data:
        raise DataError(f"{folder}: holds no data files; allowed: {allowed_kinds()}")
    kinds = sorted({kind_of(path) for path in data})
    if len(kinds) > 1:
        raise DataError(f"{folder}: holds files of several kinds ({', '.join(kinds)}); name one file, or keep one kind")
    splits = [path.name for path in data if path.name.split(".")[0].lower() in {*SPLITS, "dev", "valid", "val"}]
    if splits and len(data) > 1:
        raise DataError(
            f"{folder}: holds files of different splits ({', '.join(splits)}); name one, as {folder.name}/{splits[0]}"
        )
    tables = [_checked(read_file(path), str(path)) for path in data]
    for path, table in zip(data, tables, strict=True):
        if set(table.column_names) != set(tables[0].column_names):
            raise DataError(
                f"{folder}: {data[0].name} has the columns {', '.join(tables[0].column_names)}, "
                f"but {path.name} has {', '.join(table.column_names)}"
            )
    return concatenated(tables, str(folder))


def _read_saved(folder: Path) -> pa.Table:
    from datasets import Dataset, load_from_disk

    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state.get("_indices_data_files"):
            raise DataError(
                f"{folder}: an old version of the datasets library saved a selection of its rows, which that of today does not "
                "read; load it with the old one, and save what flatten_indices() returns"
            )
        for one in state["_data_files"]:
            name = one["filename"]
            if Path(name).name != name:
                raise ValueError(f"state.json names {name!r}, which is not in it")
            check_arrow(folder / name)
        saved = load_from_disk(str(folder))
        assert isinstance(saved, Dataset)
        return sound(_arrow_of(saved), folder)
    except MemoryError as error:
        raise DataError(f"{folder}: takes more memory than there is; take a part of it") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, pa.ArrowException) as error:
        raise DataError(f"{folder}: the saved data set is damaged ({first_line(error)})") from error


_HUB = re.compile(
    r"hub://(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^@#]+))?(?:@(?P<revision>[^#]+))?(?:#(?P<split>.+))?"
)


def hub_parts(source: str) -> dict[str, str | None]:
    """Return the ``name``, ``config``, ``revision`` and ``split`` that a ``hub://`` source names.

    Raises:
        DataError: the form is wrong.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported without saying so

    form = _HUB.fullmatch(source)
    try:
        # The library for data sets would take ``../..`` for a folder.
        validate_repo_id(form["name"] if form is not None else "")
    except HFValidationError:
        form = None
    if form is None:
        raise DataError(
            f"{source}: needs the form hub://owner/name@revision#split, or hub://owner/name:config@revision#split"
        )
    return form.groupdict()


def pinned_source(source: str, commit: str) -> str:
    """Return a ``hub://`` source that names a commit in place of its revision."""
    form = hub_parts(source)
    config, split = (f"{sign}{form[key]}" if form[key] else "" for sign, key in ((":", "config"), ("#", "split")))
    return f"hub://{form['name']}{config}@{commit}{split}"


def hub_commit(source: str) -> str | None:
    """Return the commit that a ``hub://`` source stands for now; where the hub cannot be asked, that of what is kept here, or None.

    Raises:
        DataError: the form is wrong.
    """
    form = hub_parts(source)
    from huggingface_hub import HfApi

    try:
        asked = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).dataset_info(str(form["name"]), revision=form["revision"])
    except Exception as error:
        # Without an answer, errors are those of the library for HTTP, whose name changes between versions of the hub's.
        if not isinstance(error, OSError | ValueError) and not type(error).__module__.startswith("httpx"):
            raise
        kept = None if form["revision"] else prepared_commit(str(form["name"]), form["config"])
        card = source_card(source, Path())
        return kept or (card.parent.name if card is not None else None)
    return asked.sha


def _read_hub(source: str) -> pa.Table:
    form = hub_parts(source)
    from datasets.exceptions import DatasetGenerationError

    try:
        loaded = hub_rows(str(form["name"]), form["config"], form["revision"], form["split"] or "train")
        return sound(_arrow_of(loaded), source)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error.__cause__
    except pa.ArrowException as error:
        raise DataError(f"{source}: what the datasets library keeps of it is damaged ({first_line(error)})") from error
    except MemoryError as error:
        raise DataError(f"{source}: takes more memory than there is; take a part of it") from error
    except Exception as error:
        # What a card or a file says wrongly ends in whatever it leads to in the library, and a lost connection in errors of another.
        if isinstance(error, DatasetGenerationError):
            raise DataError(f"{source}: cannot be read ({kind_and_line(error.__cause__ or error)})") from error
        raise DataError(
            f"{source}: the hub did not give it ({first_line(error)}); without a network, name a local file or "
            "package://module/path"
        ) from error


def _arrow_of(dataset: Any) -> pa.Table:
    # Through the formatter rather than `.data`, which ignores a selection or shuffle that was saved with the rows.
    table = dataset.with_format("arrow")[:]
    return table.replace_schema_metadata(dataset.features.arrow_schema.metadata)


def _checked(table: pa.Table, source: str) -> pa.Table:
    counts = Counter(table.column_names)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(f"{source}: has more than one column named {', '.join(map(repr, twice))}; rename or remove one")
    if table.num_rows == 0:
        raise DataError(f"{source}: has no rows")
    if not table.column_names:
        raise DataError(f"{source}: has no columns")
    return _plain(table, source)


def _plain(table: pa.Table, source: str) -> pa.Table:
    """Return the table with class names for class numbers, and each value written out."""
    features, room = _features(table, source), Room(source)
    # Rows of nulls alone take no byte of a file.
    room.check(8 * table.num_rows)
    columns = []
    for name, values in zip(table.column_names, table.columns, strict=True):
        column = plain(values, room, f"{source}: column {name!r}")
        class_names = _class_names(features.get(name))
        if class_names is not None:
            column = _named(column, class_names, f"{source}: column {name!r}")
        columns.append(column)
    return pa.table(columns, names=table.column_names)


def _features(table: pa.Table, source: str) -> dict[str, Any]:
    """Return what the ``datasets`` library wrote of the columns, if it wrote the table."""
    metadata = (table.schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(metadata).get("info", {}).get("features", {})
        return dict(features or {})
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{source}: what the datasets library says of the columns is damaged; save it again") from error


def _class_names(feature: Any) -> list[str] | None:
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel":
        names = feature.get("names")
        return names if isinstance(names, list) else None
    if feature.get("_type") in {"List", "LargeList", "Sequence"}:
        return _class_names(feature.get("feature"))
    return None


def _named(column: pa.ChunkedArray, names: Sequence[str], where: str) -> pa.ChunkedArray:
    # -1 is how the datasets library writes "no label".
    def name_of(value: Any) -> Any:
        if isinstance(value, list):
            return [name_of(item) for item in value]
        if value is None or value < 0:
            return None
        if value >= len(names):
            raise DataError(f"{where} holds the class {value}, but only {len(names)} classes have names")
        return names[value]

    if pa.types.is_integer(column.type) or pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return pa.chunked_array([pa.array([name_of(value) for value in column.to_pylist()])])
    return column
