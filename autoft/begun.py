"""Which run folders this user began on this machine, where a recipe lets code run that comes with a model."""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path

from autoft.errors import RunFolderError
from autoft.paths import cache_folder
from autoft.rundir import RunDir, write_text

__all__ = ["check_begun_here", "remember_begun"]

BEGUN = ".begun"
"""What was drawn at random for a run folder whose recipe lets code of models run."""


def check_begun_here(folder: RunDir) -> None:
    """Raise where code of models would run as a run folder from elsewhere says.

    Its plan names the commits, which may be those of pull requests, its trials name models, and weights that are loaded from it
    may have code beside them.

    Raises:
        RunFolderError: the folder was begun elsewhere.
    """
    if (folder.plan.exists() or folder.numbers()) and not _begun_here(folder):
        raise RunFolderError(
            f"{folder.path}: was not begun at this place by you, and the recipe lets code run that comes with a model: this folder would "
            "say which; give --trust-remote-code if you trust whoever made it"
        )


def _begun_here(folder: RunDir) -> bool:
    """Say whether a run folder was begun here: a copy, or what is unpacked in its place, is another.

    The number of a deleted folder may become that of the next one at its place, which lacks what was drawn for it.
    """
    drawn = folder.path / BEGUN
    return drawn.is_file() and _begun_note(folder, drawn.read_bytes()).is_file()


def remember_begun(folder: RunDir) -> None:
    """Let :func:`check_begun_here` know later that this run folder was begun here."""
    if _begun_here(folder):
        return
    drawn = secrets.token_hex(16)
    note = _begun_note(folder, drawn.encode())
    # Without a place to remember it in, the next call asks.
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(folder.path / BEGUN, drawn)
        note.touch()


def _begun_note(folder: RunDir, drawn: bytes) -> Path:
    """Return the file which says that a run folder was begun here, by what was drawn for it."""
    identity = f"{folder.path.resolve()}:{folder.path.stat().st_ino}:"
    return cache_folder() / "begun" / hashlib.sha256(os.fsencode(identity) + drawn).hexdigest()[:24]
