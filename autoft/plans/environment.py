"""The versions that the figures of a run depend on, and that its report tells to install."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from autoft.plugins import Plugin
from autoft.version import __version__

__all__ = ["environment", "used_plugins"]

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "torchao",
    "optuna",
    "datasets",
    "onnxruntime",
    "onnx",
)


def environment(plugins: Iterable[Plugin] = (), recipe: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return versions by distribution, that of Python as ``python``.

    Args:
        plugins: those that the run uses.
        recipe: with names of models and data; packages that ship one (``package://module/path``) are told too.
    """
    versions = {"python": platform.python_version(), "autoft": __version__}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for plugin in plugins:
        if plugin.version:
            versions.setdefault(plugin.distribution, plugin.version)
    modules = {source.removeprefix("package://").split("/")[0] for source in _packaged(recipe or {})}
    owners = importlib.metadata.packages_distributions() if modules else {}
    for name in sorted({name for module in modules for name in owners.get(module, ())}):
        versions.setdefault(name, importlib.metadata.version(name))
    return versions


def used_plugins(plugins: Iterable[Plugin], tasks: Iterable[str]) -> list[Plugin]:
    """Return the plugins that may have a part in a run: those of its tasks, and those that are no tasks' own."""
    own = set(tasks)
    return [plugin for plugin in plugins if not plugin.tasks or own & set(plugin.tasks)]


def _packaged(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.startswith("package://"):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _packaged(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _packaged(entry)
