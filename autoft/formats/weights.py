"""Weights in the safetensors format: a folder of transformers, a base with PEFT's files beside it, or the adapter alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

from autoft.artifact import MANIFEST
from autoft.card import BESIDE
from autoft.contracts import ModelSource
from autoft.errors import ModelError, RunFolderError
from autoft.formats.base import Format, Origin

__all__ = ["AdapterFiles", "Safetensors", "trained_adapter"]


class Safetensors(Format):
    """The trained weights as transformers saves them."""

    name = "safetensors"
    summary = "weights as transformers saves them, merged; of prefix and prompt tuning the base and PEFT's files"
    reads = ("transformers", *BESIDE)
    loads_as = ""
    library = "transformers"

    def write(self, origin: Origin, folder: Path) -> None:
        """Copy the files that were measured."""
        shutil.copytree(origin.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST, "README.md"))

    def read(self, folder: Path, origin: Origin) -> Any:
        """Return the model, loaded anew."""
        writer = origin.catalog.adapters.get(origin.loaded.manifest.format)
        if writer is not None:
            return writer.load(folder, origin.target).eval()
        return origin.task.load_model(origin.source(folder), origin.context).eval()


class AdapterFiles(Format):
    """What training added to the base model, without the base."""

    name = "adapter"
    summary = "the adapter alone, in PEFT's format, to put onto the base model"
    reads = ("transformers", *BESIDE)
    needs: ClassVar[tuple[str, ...]] = ("peft",)
    library = "peft"
    usage = "adapter"

    def write(self, origin: Origin, folder: Path) -> None:
        """Copy PEFT's files.

        Raises:
            ModelError: the model was trained without an adapter.
            RunFolderError: its files are not there.
        """
        shutil.copytree(trained_adapter(origin), folder, dirs_exist_ok=True)
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        # A path of this machine would say nothing elsewhere.
        config["base_model_name_or_path"] = origin.loaded.manifest.model
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")

    def read(self, folder: Path, origin: Origin) -> Any:
        """Return the base model with the adapter on it."""
        from peft import PeftModel

        manifest = origin.loaded.manifest
        writer = origin.catalog.adapters.get(manifest.format)
        if writer is not None:
            # The base is that of the trial: its head was trained, too.
            return writer.load(origin.folder, origin.target).eval()
        base = origin.task.load_model(_base(origin), origin.context)
        return PeftModel.from_pretrained(base, str(folder)).eval()


def trained_adapter(origin: Origin) -> Path:
    """Return where the files of the adapter are that the model was trained with.

    Raises:
        ModelError: it was trained without one.
        RunFolderError: they are not there.
    """
    if origin.loaded.manifest.format in BESIDE:
        return origin.folder / "adapter"
    if origin.run is None or origin.record is None or origin.trial is None:
        raise RunFolderError(
            f"{origin.folder}: is a merged model, and holds no adapter; give the folder of the run that it comes from"
        )
    if origin.variant != "none":
        raise ModelError(
            f"--format adapter: an adapter is what the training of a trial left; {origin.variant} changed the weights "
            "after it. Leave --variant out"
        )
    folder = origin.run.adapter(origin.trial)
    if folder.is_dir():
        return folder
    pipeline = origin.record.trial(origin.trial).config.pipeline
    raise RunFolderError(
        f"{origin.run.path}: trial {origin.trial} ({pipeline}) left no adapter: it was trained without one that PEFT "
        "writes, or by a version that merged it and kept nothing; export safetensors, the merged weights"
    )


def _base(origin: Origin) -> ModelSource:
    """Return the base model of the run."""
    from autoft.plans.plan import plan_of

    assert origin.record is not None
    assert origin.trial is not None
    planned = plan_of(origin.record).model(origin.record.trial(origin.trial).config.model)
    return ModelSource(name=planned.name, path=planned.path, revision=planned.revision)
