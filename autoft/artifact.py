"""A model on disk: its files, its processor and ``autoft.json``, which says how to load it back.

Every compressed variant of a trial is written as an artifact and measured from it; ``best/`` is one of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from autoft.contracts import Compressor, ModelSource, Prediction, Row, Target, Task, TaskContext
from autoft.errors import ModelError, PluginError, unknown_name
from autoft.hardware import Hardware
from autoft.plugins import Catalog, load_plugins
from autoft.version import __version__

__all__ = ["LoadedModel", "Manifest", "load", "save_artifact"]

MANIFEST = "autoft.json"


class Manifest(BaseModel):
    """What ``autoft.json`` says."""

    autoft: str
    """Version that wrote it."""
    task: str
    format: str
    """``transformers``, or the compressor that wrote the files and loads them."""
    model: str
    """The base model, as the recipe named it."""
    config: dict[str, Any]
    """Of the base model."""
    facts: dict[str, Any]
    options: dict[str, Any]
    params: dict[str, Any]
    max_length: int
    variant: str
    objective: str = ""
    measured: dict[str, Any] = {}


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
        return self.task.predict(self.model, wrapped, self.context, batch_size)


def save_artifact(
    folder: Path, model: Any, target: Target, *, writer: Compressor | None, variant: str, objective: str
) -> None:
    """Write a model, its processor and its manifest into a folder.

    Args:
        folder: made if it is not there.
        model: what :meth:`Compressor.apply` returned, or a transformers model.
        target: of the trial; its context holds the processor.
        writer: the compressor that knows how to write the model; None for plain transformers.
        variant: name of the compression chain.
        objective: name of the metric that chose it.
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
        model=target.source.name,
        config=dict(target.config),
        facts=dict(target.context.facts),
        options=dict(target.context.options),
        params=dict(target.context.params),
        max_length=target.context.max_length,
        variant=variant,
        objective=objective,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


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
    manifest = _read_manifest(folder)
    catalog = catalog or load_plugins()
    task = catalog.task(manifest.task)
    hardware = Hardware.probe()
    source = ModelSource(name=manifest.model, path=str(folder), trust_remote_code=trust_remote_code)
    context = TaskContext(
        facts=manifest.facts,
        options=manifest.options,
        params=manifest.params,
        max_length=manifest.max_length,
        device=device or hardware.device,
    )
    context = replace(context, processor=task.load_processor(source, context))
    target = Target(task, source, manifest.config, context, hardware)
    if manifest.format == "transformers":
        model = task.load_model(source, context).to(context.device).eval()
    else:
        compressor = catalog.compressors.get(manifest.format)
        if compressor is None:
            known = catalog.compressors
            raise PluginError(f"{folder}: " + unknown_name("format", manifest.format, known) + catalog.broken_hint())
        try:
            model = compressor.load(folder, target)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"{folder}: the files of the model are damaged: {str(error).splitlines()[0]}") from error
        if hasattr(model, "eval"):
            model.eval()
    return LoadedModel(model, task, context, manifest, folder)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; give a run folder or a model that autoft exported")
    if not path.is_file():
        raise ModelError(f"{folder}: holds no {MANIFEST}; give a run folder with a finished search, or its best/")
    try:
        return Manifest.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, UnicodeDecodeError, ValidationError) as error:
        raise ModelError(f"{path}: is damaged: {str(error).splitlines()[0]}") from error
