"""Base models: found in folders, packages and on the hub, and looked at without loading their weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autoft.contracts import Strategy
from autoft.errors import DataError, ModelError, first_line
from autoft.gguf import converted
from autoft.paths import named_path, near_name, package_path
from autoft.plans.plan import ModelPlan
from autoft.pretrained import check_folder, dense_folder, on_hub

__all__ = ["base_model", "earlier_model", "hub_models", "kept_commit", "named_models"]

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""One of these files holds a model's weights, or says where they are."""


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


def named_models(strategies: Mapping[str, Strategy], params: Iterable[tuple[str, object]]) -> dict[str, str]:
    """Return the models that parameters of strategies name, of the hub or not, each with the full name of the first that does.

    Args:
        strategies: by name; they say which of their parameters name models.
        params: full names and values.
    """
    found: dict[str, str] = {}
    for full, value in params:
        owner, _, parameter = full.partition(".")
        if owner in strategies and parameter in strategies[owner].models and isinstance(value, str):
            found.setdefault(value, full)
    return found


def hub_models(strategies: Mapping[str, Strategy], params: Iterable[tuple[str, object]]) -> dict[str, str]:
    """Return those of :func:`named_models` that are on the hub."""
    return {name: full for name, full in named_models(strategies, params).items() if on_hub(name)}


def kept_commit(name: str, earlier: str | None = None) -> str | None:
    """Return the commit of a hub model that a run keeps to, None where transformers has to convert its weights.

    Args:
        name: as ``owner/name@revision``.
        earlier: the commit that an earlier call of the run took.

    Raises:
        ModelError: the hub does not give it, or it is no model of transformers.
    """
    return _hub_model(name, earlier).revision


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
    # Where the hub has no safetensors, transformers looks for converted ones, but of the latest revision alone.
    found = path.parent.name
    pinned = found if commit or revision or _has_safetensors(repository, found) else None
    return ModelPlan(name=name, path=repository, revision=pinned, config=config, size_bytes=0)


def _has_safetensors(repository: str, commit: str) -> bool:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    for name in WEIGHTS:
        try:
            hf_hub_download(repository, name, revision=commit, dry_run=True)
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
            continue
        return True
    return False


def _configuration(path: Path, what: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{what} is damaged: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"{what} names no model_type; it is not the configuration of a transformers model")
    if not isinstance(config.get("architectures", []), list | None):
        raise ModelError(f"{what} is damaged: architectures has to be a list of names")
    return config
