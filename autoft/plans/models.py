"""Base models: found in folders, packages and on the hub, and looked at without loading their weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autoft.contracts import Strategy
from autoft.errors import DataError, ModelError, first_line
from autoft.gguf import converted
from autoft.paths import named_path, near_name, package_path
from autoft.plans.plan import ModelPlan
from autoft.pretrained import check_config, check_folder, check_index, dense_folder, named_models, on_hub

__all__ = ["base_model", "earlier_model", "hub_models", "kept_commit"]

INDEX = "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", INDEX)
"""One of these files holds a model's weights, or says where they are."""


CONVERTER = "SFconvertbot"
"""Who opens the pull requests of the hub's own converter."""


def base_model(name: str, base: Path, commit: str | None = None) -> ModelPlan:
    """Return the model that a recipe names.

    Args:
        name: a folder or a .gguf file, ``package://module/path``, or a hub id as ``owner/name@revision``.
        base: folder that relative paths start from, before the working directory.
        commit: of a model on the hub, where an earlier call of the run took that; default: the one that the name stands for now.

    Raises:
        ModelError: it cannot be found, or is no transformers model with safetensors weights.
    """
    if name.startswith("package://"):
        try:
            path = package_path(name)
        except DataError as error:
            raise ModelError(str(error)) from None
        return _local_model(name, path)
    local = named_path(name, base, Path())
    if local is not None and (local.is_dir() or local.suffix == ".gguf"):
        return _local_model(name, local)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"no such folder: {name}{near_name(base / name)}")
    return _hub_model(name, commit)


def earlier_model(name: str, base: Path) -> ModelPlan:
    """Return the model that an earlier run left: the dense weights of the chosen trial, else of the default's.

    Args:
        name: the run's folder.
        base: folder that relative paths start from, before the working directory.

    Raises:
        ModelError: there is no such folder, or it holds no such weights.
    """
    run = named_path(name, base, Path())
    if run is None or not run.is_dir():
        raise ModelError(f"no such folder: {name}; give the folder of a finished run, as runs/reviews")
    found = dense_folder(run)
    if found is None:
        raise ModelError(
            f"{name} holds no trained model that can be trained on; give the folder of a finished run, as runs/reviews"
        )
    return _local_model(name, found)


def hub_models(strategies: Mapping[str, Strategy], params: Iterable[tuple[str, object]]) -> dict[str, str]:
    """Return those of :func:`named_models` that are on the hub."""
    return {name: full for name, full in named_models(strategies, params).items() if on_hub(name)}


def kept_commit(name: str, earlier: str | None = None) -> str:
    """Return the commit of a hub model that a run keeps to.

    Args:
        name: as ``owner/name@revision``.
        earlier: the commit that an earlier call of the run took.

    Raises:
        ModelError: the hub does not give it, or it is no model of transformers with safetensors weights.
    """
    return str(_hub_model(name, earlier).revision)


def _local_model(name: str, folder: Path) -> ModelPlan:
    if folder.is_file() and folder.suffix == ".gguf":
        folder = converted(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no config.json; give the folder of a transformers model")
    config = _configuration(path, str(path))
    check_folder(folder)
    weights = [*folder.glob("*.safetensors")]
    if not weights:
        unsafe = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.h5")]
        hint = (
            f"; {unsafe[0].name} is a format that can carry code and is not read: convert it to safetensors"
            if unsafe
            else ""
        )
        raise ModelError(f"{folder} holds no *.safetensors weights{hint}")
    return ModelPlan(
        name=name, path=str(folder), config=config, size_bytes=sum(file.stat().st_size for file in weights)
    )


def _hub_model(name: str, commit: str | None) -> ModelPlan:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        path = Path(hf_hub_download(repository, "config.json", revision=commit or revision or None))
    except HFValidationError:
        raise ModelError(
            f"{name!r} is neither a folder here, nor a hub id (owner/name), nor package://module/path"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise ModelError(
            f"{name!r} is no folder here, and the hub did not give it ({reason}); without a network, name a local "
            "folder or package://module/path"
        ) from None
    config = _configuration(path, f"{name}: its config.json")
    # The folder of a file in the hub's cache is that of its commit: all else is then of the same one, whenever it is fetched.
    found = path.parent.name
    if commit is None:
        _check_weights(repository, path.parent)
    return ModelPlan(name=name, path=repository, revision=found, config=config, size_bytes=0)


def _check_weights(repository: str, snapshot: Path) -> None:
    """Raise where a commit is known to hold no safetensors, or more than these that transformers would read with them.

    Without safetensors it would take those of whoever offers some in a pull request; an adapter beside them it would put onto them.

    Args:
        repository: as ``owner/name``.
        snapshot: the commit's folder in the hub's cache.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def there(file: str) -> bool | None:
        """Say whether the commit holds a file, None where nobody can be asked; loading the weights shows it then."""
        try:
            hf_hub_download(repository, file, revision=snapshot.name, dry_run=True)
        except LocalEntryNotFoundError:
            return None
        except EntryNotFoundError:
            return False
        except OSError:
            return None
        return True

    if there("adapter_config.json"):
        raise ModelError(
            f"{repository!r} holds adapter_config.json beside the weights, an adapter that would be put onto them unseen; merge it into them"
        )
    known = {file: there(file) for file in WEIGHTS}
    if known[INDEX]:
        check_index(Path(hf_hub_download(repository, INDEX, revision=snapshot.name)))
    if any(known.values()) or (None in known.values() and next(snapshot.glob("pytorch_model*.bin"), None) is None):
        return
    offered = _converted(repository)
    raise ModelError(
        f"{repository!r} holds no safetensors weights at commit {snapshot.name}; other formats can carry code, and are not read: "
        + (
            f"the hub's converter offers such in a pull request; look at it, and name {repository}@{offered}"
            if offered is not None
            else "https://huggingface.co/spaces/safetensors/convert makes them, as a pull request whose commit you name as "
            f"{repository}@commit"
        )
    )


def _converted(repository: str) -> str | None:
    """Return the commit of the pull request in which the hub's own converter offers safetensors; None where there is none, or no answer.

    The name of who opened it is the hub's word, its title is anybody's.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        requests = api.get_repo_discussions(
            repository, author=CONVERTER, discussion_type="pull_request", discussion_status="open"
        )
        for one in requests:
            if one.author == CONVERTER:
                return api.model_info(repository, revision=one.git_reference).sha
    except Exception as error:
        # Without an answer, errors are those of the library for HTTP, whose name changes between versions of the hub's.
        if not isinstance(error, OSError | ValueError) and not type(error).__module__.startswith("httpx"):
            raise
    return None


def _configuration(path: Path, what: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{what} is damaged: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"{what} names no model_type; it is not the configuration of a transformers model")
    if not isinstance(config.get("architectures", []), list | None):
        raise ModelError(f"{what} is damaged: architectures has to be a list of names")
    check_config(config, what)
    return config
