"""A model on disk: its files, its processor and ``autoft.json``, which says how to load it back.

Every compressed variant of a trial is written as an artifact and measured from it; ``best/`` is one of them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, field_validator

from autoft.contracts import Adapter, Compressor, ModelSource, Prediction, Row, Strategy, Target, Task, TaskContext
from autoft.errors import ModelError, PluginError, first_line, unknown_name
from autoft.hardware import Hardware
from autoft.paths import file_digest, public_name
from autoft.plugins import Catalog, load_plugins
from autoft.pretrained import public_params
from autoft.rundir import Final, read_typed
from autoft.version import __version__

__all__ = [
    "Ensemble",
    "LoadedModel",
    "Manifest",
    "changed_files",
    "check_links",
    "context_of",
    "file_digests",
    "load",
    "predicted",
    "processing",
    "read_manifest",
    "save_artifact",
    "save_ensemble",
    "undecided",
]

MANIFEST = "autoft.json"
CARD = "README.md"
ENSEMBLE = "ensemble"


class Manifest(BaseModel):
    """What ``autoft.json`` says."""

    autoft: str
    """Version that wrote it."""
    task: str
    format: str
    """``transformers``, ``ensemble``, or the compressor or adapter that wrote the files and loads them."""
    model: str
    """The base model, as the recipe named it; of a folder of this machine the last part of its name."""
    config: dict[str, Any]
    """Of the base model."""
    facts: dict[str, Any]
    options: dict[str, Any]
    params: dict[str, Any]
    max_length: int
    reserved: int = 0
    """Positions that virtual tokens of an adapter take."""
    variant: str
    members: list[str] = []
    """Folders of the models whose predictions are averaged, where the format is ``ensemble``."""
    objective: str = ""
    columns: dict[str, str] = {}
    """What the training data called the column of each role."""
    measured: dict[str, Any] = {}
    files: dict[str, str] = {}
    """SHA-256 of each file beside the manifest and the model card, by path; empty where an older version wrote them."""

    @field_validator("model")
    @classmethod
    def _public(cls, model: str) -> str:
        # An older version wrote the whole path, which goes into no card or export any more.
        return public_name(model)


@dataclass
class LoadedModel:
    """A model ready to predict, with its task and its manifest."""

    model: Any
    task: Task
    context: TaskContext
    manifest: Manifest
    folder: Path

    def predict(self, rows: Sequence[Row | str] | Row | str, batch_size: int = 32) -> list[Prediction]:
        """Return one prediction a row.

        Args:
            rows: rows by column role, or plain texts for tasks that need one text only.
            batch_size: rows a forward pass.

        Raises:
            DataError: a row lacks what the task needs.
        """
        given: Iterable[Row | str] = [rows] if isinstance(rows, str | dict) else rows
        role = self.task.card.inputs[0].role
        wrapped = [{role: row} if isinstance(row, str) else row for row in given]
        return predicted(self.task, self.model, wrapped, self.context, batch_size)


@dataclass(frozen=True)
class Ensemble:
    """Models whose predictions the task averages."""

    members: Sequence[LoadedModel]

    def predict(self, task: Task, rows: Sequence[Row], context: TaskContext, batch_size: int) -> list[Prediction]:
        """Return the averaged predictions of the members.

        Raises:
            PluginError: the task cannot average predictions.
        """
        said = [one.task.member_predictions(one.model, rows, one.context, batch_size) for one in self.members]
        return self.combined(task, said, context)

    @staticmethod
    def combined(task: Task, said: Sequence[Sequence[Prediction]], context: TaskContext) -> list[Prediction]:
        """Return the average of what several models said of the same rows.

        Raises:
            PluginError: the task cannot average predictions.
        """
        found = task.combine(said, context)
        if found is None:
            raise PluginError(f"{task.card.name} cannot average predictions: its combine() returns None")
        return found


def predicted(
    task: Task, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32
) -> list[Prediction]:
    """Return the predictions of a model or of an :class:`Ensemble`."""
    if isinstance(model, Ensemble):
        return model.predict(task, rows, context, batch_size)
    return task.predict(model, rows, context, batch_size)


def save_artifact(
    folder: Path,
    model: Any,
    target: Target,
    *,
    writer: Compressor | Adapter | None,
    variant: str,
    objective: str,
    strategies: Mapping[str, Strategy] = {},
) -> None:
    """Write a model, its processor and its manifest into a folder; nothing in it says where on this machine anything is.

    Args:
        folder: made if it is not there.
        model: what :meth:`Compressor.apply` or :meth:`Adapter.merge` returned, or a transformers model.
        target: of the trial; its context holds the processor.
        writer: the compressor, or the adapter that does not merge, that knows how to write the model; None for plain
            transformers.
        variant: name of the compression chain.
        objective: name of the metric that chose it.
        strategies: by name; they say which of their parameters name models.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if writer is None:
        model.save_pretrained(folder)
    else:
        writer.save(model, folder)
    target.context.processor.save_pretrained(folder)
    manifest = Manifest(
        autoft=__version__,
        task=target.task.card.name,
        format=writer.name if writer else "transformers",
        model=public_name(target.source.name, target.source.path),
        config=dict(target.config),
        facts=dict(target.context.facts),
        options=dict(target.context.options),
        params=public_params(strategies, target.context.params),
        max_length=target.context.max_length,
        reserved=target.context.reserved,
        variant=variant,
        objective=objective,
        files=file_digests(folder),
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def save_ensemble(folder: Path, members: Sequence[Path], objective: str, variant: str) -> None:
    """Write a folder that holds other models and says that their predictions are averaged.

    Args:
        folder: made if it is not there.
        members: folders of models, whose files are linked, or copied where the file system has no links.
        objective: name of the metric that chose them.
        variant: name of the compression chain of all of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"member-{number}" for number in range(len(members))]
    for name, member in zip(names, members, strict=True):
        shutil.copytree(member, folder / name, copy_function=_linked, dirs_exist_ok=True)
    update = {
        "format": ENSEMBLE,
        "members": names,
        "objective": objective,
        "variant": variant,
        "files": file_digests(folder),
    }
    manifest = read_manifest(members[0]).model_copy(update=update)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def _linked(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def load(
    path: str | Path, *, catalog: Catalog | None = None, device: str | None = None, trust_remote_code: bool = False
) -> LoadedModel:
    """Load a model that autoft wrote: a run folder, its ``best/``, or the folder of a variant.

    Args:
        path: the folder.
        catalog: what plugins offer; by default all that are installed.
        device: ``cpu``, ``cuda`` or ``mps``; by default the best there is.
        trust_remote_code: run code that came with the base model.

    Raises:
        ModelError: the folder holds no model, or its files are damaged.
        PluginError: the task or the format needs a plugin that is not installed.
    """
    folder = Path(path).absolute()
    if not (folder / MANIFEST).is_file() and (folder / "best" / MANIFEST).is_file():
        folder = folder / "best"
    manifest = read_manifest(folder)
    catalog = catalog or load_plugins()
    task = catalog.task(manifest.task)
    hardware = Hardware.probe()
    source = ModelSource(name=manifest.model, path=str(folder), trust_remote_code=trust_remote_code, finished=True)
    context = context_of(manifest, device or hardware.device)
    if manifest.format == ENSEMBLE:
        members = [load(_member(folder, name), catalog=catalog, device=context.device) for name in manifest.members]
        context = replace(context, processor=members[0].context.processor)
        return LoadedModel(Ensemble(members), task, context, manifest, folder)
    context = replace(context, processor=task.load_processor(source, context))
    target = Target(task, source, manifest.config, context, hardware)
    if manifest.format == "transformers":
        model = task.load_model(source, context).to(context.device).eval()
    else:
        known = {name: one for name, one in catalog.strategies.items() if isinstance(one, Compressor | Adapter)}
        writer = known.get(manifest.format)
        if writer is None:
            raise PluginError(f"{folder}: " + unknown_name("format", manifest.format, known) + catalog.broken_hint())
        try:
            model = writer.load(folder, target)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"{folder}: the files of the model are damaged: {first_line(error)}") from error
        if hasattr(model, "eval"):
            model.eval()
    return LoadedModel(model, task, context, manifest, folder)


def undecided(loaded: LoadedModel) -> str | None:
    """Return what to tell of a trial's model that answers otherwise than it would if the run had chosen it; None of all others.

    Raises:
        RunFolderError: what was found of the run's chosen model is damaged.
    """
    folder, decides = loaded.folder, type(loaded.task).operating_point is not Task.operating_point
    if not decides or folder.parent.name != "variants" or "operating_point" in loaded.manifest.facts:
        return None
    final = folder.parents[3] / "final.json"
    if final.is_file() and not read_typed(final, Final).operating_point:
        return None
    return (
        f"{folder}: is from before {loaded.task.card.name} decides on validation when to answer and how sure it is, as it does "
        "of the model that a run chooses; autoft pick and autoft export write it with that"
    )


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of a model's files by path; the manifest and the model card, which tell of them, are left out."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in {MANIFEST, CARD}:
            digests[name] = file_digest(path)
    return digests


def changed_files(folder: Path) -> list[str]:
    """Return what of a model is not as it was written, in words; nothing where its manifest has no digests.

    Raises:
        ModelError: the folder holds no model.
    """
    known = read_manifest(folder).files
    if not known:
        return []
    found = file_digests(folder)
    return [
        *(f"{name} is missing" for name in known if name not in found),
        *(f"{name} was added" for name in found if name not in known),
        *(f"{name} was changed" for name in known if name in found and found[name] != known[name]),
    ]


def check_links(folder: Path) -> None:
    """Raise where a file of a model is a link that leads out of its folder: a copy would hold what is elsewhere on this machine.

    In the hub's cache, files of ``snapshots/<commit>/`` are links into the ``blobs/`` beside it.

    Raises:
        ModelError: there is such a link.
    """
    folder = folder.resolve()
    home = folder.parents[1] if folder.parent.name == "snapshots" else folder
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            raise ModelError(f"{path}: is a link that leads out of the folder of the model; put the file in its place")


def context_of(manifest: Manifest, device: str) -> TaskContext:
    """Return what a task knows of a model on disk, without its processor."""
    return TaskContext(
        facts=manifest.facts,
        options=manifest.options,
        params=manifest.params,
        max_length=manifest.max_length,
        device=device,
        reserved=manifest.reserved,
    )


def _member(folder: Path, name: str) -> Path:
    if Path(name).name != name or name == ".." or read_manifest(folder / name).format == ENSEMBLE:
        raise ModelError(f"{folder / MANIFEST}: is damaged: a member is in {name!r}, which is no model beside it")
    return folder / name


def read_manifest(folder: Path) -> Manifest:
    """Return what the folder of a model says of it.

    Raises:
        ModelError: it holds no model, or what it says is damaged.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; give a run folder or a model that autoft exported")
    if not path.is_file():
        raise ModelError(f"{folder}: holds no {MANIFEST}; give a run folder with a finished search, or its best/")
    try:
        return Manifest.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is damaged: {first_line(error)}") from error


def processing(task: Task, manifest: Manifest, context: TaskContext) -> dict[str, Any]:
    """Return, as plain JSON, what the card and the settings of a model say of its inputs, for whom its processor is needed.

    Args:
        task: knows what is done to inputs.
        manifest: of the model.
        context: with its processor.

    Returns:
        ``{"settings": {...}, "traced": whether the task says how to trace its models}``
    """
    context = replace(context, device="cpu")
    tokenizer = _tokenizer(context.processor)
    settings: dict[str, Any] = {
        "task": task.card.name,
        "base_model": manifest.model,
        "inputs": [column.role for column in task.card.inputs],
        "max_length": context.max_length,
        "truncation": True,
    }
    if tokenizer is not None:
        settings |= {
            "lowercase": _lowers(tokenizer),
            "padding_side": tokenizer.padding_side,
            "pad_token_id": tokenizer.pad_token_id,
        }
    return {"settings": settings | task.export_settings(context), "traced": task.export_inputs(context) is not None}


def _tokenizer(processor: Any) -> Any:
    """Return the tokenizer of a processor, which may be one, or hold one."""
    if hasattr(processor, "pad_token_id"):
        return processor
    return next((found for name in ("source", "tokenizer") if (found := getattr(processor, name, None))), None)


def _lowers(tokenizer: Any) -> bool:
    """Say whether a tokenizer reads capitals as small letters."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None:
        return bool(getattr(tokenizer, "do_lower_case", False))
    return "A" not in normalizer.normalize_str("A")
