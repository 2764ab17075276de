"""A model with its card onto a model hub: private unless it is said to be public, the token from the environment alone."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from autoft.artifact import MANIFEST, check_links
from autoft.card import PREPROCESSING
from autoft.errors import HubError, ModelError, RunFolderError
from autoft.paths import public_name
from autoft.rundir import read_typed

__all__ = ["TOKEN", "push_folder"]

TOKEN = "HF_TOKEN"
"""Name of the variable that the token is read from; it is written nowhere."""
CHECKED = "checked.json"


def push_folder(model: str | Path, repo: str, *, public: bool = False) -> str:
    """Upload a model's folder to a hub and return its address.

    The hub is that of ``HF_ENDPOINT``, by default huggingface.co.

    Args:
        model: a run folder, whose ``best/`` is taken, or a folder that ``autoft export`` or ``autoft pick`` wrote.
        repo: as ``owner/name``.
        public: everybody may see it. Otherwise only its owner may, and a repository that is public already is refused.

    Raises:
        RunFolderError: the folder holds no model with a card.
        ModelError: its card is none, it says where on this machine its base was, or a file is a link that leads out of the folder.
        HubError: the name, the token or the hub is at fault.
    """
    folder = _folder(model)
    _check_card(folder)
    _check_names(folder)
    check_links(folder)
    # A file or a secret that it was read from often ends with a line break.
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise HubError(
            f"no token for the hub: set the environment variable {TOKEN} to one that may write (the hub's page of "
            "access tokens makes them); it is read from nowhere else, and never written"
        )
    if not re.fullmatch(r"[!-~]+", token):
        # The library for HTTP would say the whole header, with the token in it.
        raise HubError(f"the environment variable {TOKEN} holds blanks or characters that no token has; copy it again")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token, library_name="autoft")
    try:
        address = api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.repo_info(repo).private:
            raise HubError(f"{repo}: is there already, and is public; give --public to upload to it, or another name")
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="Upload of autoft push",
            ignore_patterns=[".*", "*.lock"],
        )
    except HFValidationError as error:
        raise HubError(f"{repo!r}: is no name of a repository, as owner/name: {_line(error)}") from None
    except OfflineModeIsEnabled:
        raise HubError("HF_HUB_OFFLINE is set, which forbids all connections to the hub; unset it to push") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        hints = {
            401: f"the token in {TOKEN} is not known there",
            403: f"the token in {TOKEN} may not write to {repo}",
            404: f"{repo.split('/')[0]} is not known there",
        }
        raise HubError(f"{repo}: the hub refused: {hints.get(status, _line(error))}") from None
    except Exception as error:
        # The library for HTTP, whose name changes between versions of the hub's, has errors of its own for no answer.
        if isinstance(error, OSError) or type(error).__module__.startswith("httpx"):
            raise HubError(f"{api.endpoint}: cannot be reached: {_line(error)}") from None
        raise
    return str(address)


def _folder(model: str | Path) -> Path:
    folder = Path(model).absolute()
    if not folder.is_dir():
        raise RunFolderError(f"{folder}: no such folder; give a run, or a model that autoft exported")
    if (folder / "plan.json").is_file():
        folder = folder / "best"
    if not any((folder / name).is_file() for name in (MANIFEST, CHECKED)):
        raise RunFolderError(
            f"{folder}: holds no model; give a run whose search came to its end, or a folder that autoft export wrote"
        )
    if not (folder / "README.md").is_file():
        raise RunFolderError(f"{folder}: has no README.md, the model's card; export it again with autoft export")
    return folder


def _check_card(folder: Path) -> None:
    import yaml
    from huggingface_hub import ModelCard

    try:
        ModelCard.load(folder / "README.md")
    except (ValueError, yaml.YAMLError) as error:
        raise ModelError(f"{folder / 'README.md'}: is no card that a hub can read: {_line(error)}") from error


def _check_names(folder: Path) -> None:
    """Raise where files that an older version wrote say where on this machine the base model was."""
    for file, key in ((MANIFEST, "model"), (PREPROCESSING, "base_model")):
        told = read_typed(folder / file, dict[str, Any], {}).get(key)
        if isinstance(told, str) and public_name(told) != told:
            raise ModelError(
                f"{folder / file}: says where on this machine the base model was ({told}), as an older version wrote it; autoft pick "
                "and autoft export write the model without that"
            )


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
