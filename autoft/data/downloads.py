"""Data sets of the hub: what is fetched is checked before the ``datasets`` library unpacks and reads it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from autoft.data.encodings import Room
from autoft.data.files import check_arrow, check_parquet
from autoft.errors import DataError, first_line

__all__ = ["hub_rows", "is_commit", "prepared_commit"]

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"Rar!": "rar",
    b"7z\xbc\xaf\x27\x1c": "7z",
}
"""What a packed file begins with, and its kind, as ``fsspec`` calls those which are one stream."""

_PARQUET, _ARROW = b"PAR1", b"ARROW1"
_START = 6
_PIECE = 2**20


def hub_rows(name: str, config: str | None, revision: str | None, split: str) -> Any:
    """Return one split of a data set of the hub, as the ``datasets`` library has it.

    Args:
        name: as ``owner/name``.
        config: of its configurations; None where it has one.
        revision: a branch, a tag or a commit; None for the newest.
        split: as ``train``.

    Raises:
        DataError: its card names files that are not of it, a file is damaged or takes more memory than there is, or what was kept here
            is of another commit.
        Exception: what the libraries raise where the hub does not give it.
    """
    from datasets import DownloadManager, load_dataset_builder

    # Without the prefix, a folder here that is called so is read instead.
    builder = load_dataset_builder(f"hf://datasets/{name}", config, revision=revision)
    prepared, files = Path(builder.cache_dir), builder.config.data_files
    fetched = DownloadManager(builder.dataset_name, base_path=builder.base_path)
    if files:
        _check_origins(files, builder.base_path)
    elif is_commit(revision) and builder.hash != revision:
        # The library gives what it made of another one, too.
        which = f"of another commit ({builder.hash})" if is_commit(builder.hash) else "of a commit that nothing says"
        raise DataError(f"the hub cannot be asked, and what is kept of it here is {which}")
    if files and not (prepared / "dataset_info.json").is_file():
        for paths in fetched.download(files).values():
            for path in paths:
                _check_file(Path(path))
    builder.download_and_prepare(dl_manager=fetched)
    for path in prepared.glob("*.arrow"):
        check_arrow(path)
    return builder.as_dataset(split)


def prepared_commit(name: str, config: str | None) -> str | None:
    """Return the commit of what the ``datasets`` library gives of a data set where the hub cannot be asked; None where nothing says it.

    Whatever program had the library prepare it, its folder is called as the commit.

    Args:
        name: as ``owner/name``.
        config: of its configurations; None where it has one.
    """
    from datasets import load_dataset_builder

    try:
        kept = load_dataset_builder(f"hf://datasets/{name}", config)
    except (OSError, ValueError):
        # Nothing is kept, or of several configurations.
        return None
    return str(kept.hash) if is_commit(kept.hash) else None


def is_commit(name: str | None) -> bool:
    """Say whether a revision is a commit, and no branch or tag, which may move."""
    return re.fullmatch(r"[0-9a-f]{40}", name or "") is not None


def _check_origins(files: Mapping[str, Sequence[str]], base: str) -> None:
    """Raise where a card names files of elsewhere, or of another revision, as those of the data set: its commit is not theirs."""
    for file in itertools.chain.from_iterable(files.values()):
        if not file.rpartition("::")[2].startswith(f"{base}/"):
            raise DataError(f"its card names {file}, which is no file of the data set; name a local file to read that")


def _check_file(path: Path) -> None:
    """Raise where a file cannot be read, or holds more than there is memory for."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_ARROW))
        if start.startswith(_PARQUET):
            check_parquet(path)
        elif start == _ARROW or path.suffix == ".arrow":
            check_arrow(path)
        else:
            _check_packed(lambda: path.open("rb"), path.stat().st_size, Room(path.name))
    except (
        EOFError,
        zlib.error,
        lzma.LZMAError,
        zipfile.BadZipFile,
        tarfile.TarError,
        pa.ArrowException,
        OSError,
    ) as error:
        raise DataError(f"{path.name}: is damaged ({first_line(error)})") from error


def _check_packed(opened: Callable[[], AbstractContextManager[IO[bytes]]], size: int, room: Room) -> None:
    """Raise where there is no room for a file, or for what unpacking adds to it: of archives, files are read one by one."""
    from fsspec.compression import compr

    with opened() as file:
        start = file.read(_START)
        kind = next((kind for mark, kind in _PACKED.items() if start.startswith(mark)), None)
        if kind == "zip":
            file.seek(0)
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    # Python gives no more of a member than it says here.
                    room.take(max(0, member.file_size - member.compress_size))
                    _check_packed(functools.partial(archive.open, member), member.file_size, room)
        elif kind is None and file.seek(0) == 0 and tarfile.is_tarfile(file):
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as members:
                # A member may be a hole of terabytes.
                room.check(sum(part.size for part in members) - size)
        elif kind is None:
            room.check(size)
    if kind in {"rar", "7z"}:
        raise DataError(f"it holds a {kind} archive, which is not read; unpack it and name the local file")
    if kind is not None and kind != "zip" and kind in compr:
        unpacked, size = functools.partial(_unpacked, compr[kind], opened), 0
        with unpacked() as stream:
            while piece := stream.read(_PIECE):
                room.take(len(piece))
                size += len(piece)
        _check_packed(unpacked, size, room)


@contextlib.contextmanager
def _unpacked(
    kind: Callable[..., IO[bytes]], opened: Callable[[], AbstractContextManager[IO[bytes]]]
) -> Iterator[IO[bytes]]:
    with opened() as file, kind(file, mode="rb") as stream:
        yield stream
