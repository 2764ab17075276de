"""A folder to build an image from: the model, what it needs, pinned to the versions in use here, and how it starts."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jinja2
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from autoft.artifact import Ensemble, LoadedModel, check_links, load
from autoft.errors import ServingError
from autoft.plugins import Catalog, load_plugins
from autoft.rundir import replacing_folder, write_text

__all__ = ["write_image_folder"]

LIBRARIES: Mapping[str, str] = {"bnb": "bitsandbytes", "torchao": "torchao", "gptq": "gptqmodel", "awq": "gptqmodel"}
"""Extras by the beginning of the formats that need them to load."""
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class _Needed:
    """The distributions that a model needs.

    Attributes:
        pins: ``name==version`` of what an index has.
        wheels: files of what this machine has from elsewhere, as the plugins of a repository.
    """

    pins: tuple[str, ...]
    wheels: tuple[Path, ...]


def write_image_folder(model: str | Path, folder: str | Path, *, options: Iterable[str] = ()) -> Path:
    """Write ``Dockerfile``, ``requirements.txt``, ``wheels/`` and ``model/`` for an image that serves the model.

    Args:
        model: a run folder, or a model that autoft exported.
        folder: is made; it may not hold anything yet.
        options: further words of ``autoft serve`` in the image.

    Returns:
        the folder.

    Raises:
        ModelError: the folder holds no model, or one that does not load.
        PluginError: the task or the format needs a plugin that is not installed.
        ServingError: the folder is not empty, or a package that is needed is neither from an index nor can be built.
        RunFolderError: the folder cannot be written.
    """
    target = Path(folder).absolute()
    if target.is_dir() and any(target.iterdir()):
        raise ServingError(f"{target}: is not empty; give a folder that is not there yet")
    catalog = load_plugins()
    loaded = load(model, catalog=catalog, device="cpu")
    if target.resolve().is_relative_to(loaded.folder.resolve()):
        raise ServingError(f"{target}: lies in the model's folder, which it would hold a copy of; give another folder")
    with replacing_folder(target) as partial:
        _write(partial, loaded, catalog, options)
    return target


def _write(target: Path, loaded: LoadedModel, catalog: Catalog, options: Iterable[str]) -> None:
    manifest = loaded.manifest
    wheels = target / "wheels"
    wheels.mkdir()
    needed = _needed(_roots(loaded, catalog), wheels)
    check_links(loaded.folder)
    shutil.copytree(loaded.folder, target / "model")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    torch = [pin for pin in needed.pins if pin.startswith("torch==")]
    words = ["autoft", "serve", "/model", "--host", "0.0.0.0", "--port", "8000", *options]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autoft", "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    values = {
        "python": python,
        "torch": torch[0].partition("+")[0] if torch else "",
        "cpu_wheels": "" if _uses_cuda() else CPU_WHEELS,
        "task": manifest.task,
        "model": " ".join(manifest.model.split()),
        "variant": " ".join(manifest.variant.split()),
        "command": json.dumps(words),
    }
    requirements = [pin.partition("+")[0] for pin in needed.pins]
    requirements += [f"./wheels/{wheel.name}" for wheel in needed.wheels]
    write_text(target / "requirements.txt", "\n".join(requirements) + "\n")
    write_text(target / "Dockerfile", environment.get_template("Dockerfile.j2").render(values))


def _uses_cuda() -> bool:
    from autoft.hardware import Hardware

    return Hardware.probe().device == "cuda"


def _roots(loaded: LoadedModel, catalog: Catalog) -> list[Requirement]:
    """Return what has to be installed: autoft, the plugins of the task and the format, and the library of the format."""
    task = loaded.manifest.task
    parts = loaded.model.members if isinstance(loaded.model, Ensemble) else [loaded]
    formats = {one.manifest.format for one in parts}
    extras = {"serve"} | {extra for start, extra in LIBRARIES.items() for one in formats if one.startswith(start)}
    owners = {
        plugin.distribution for plugin in catalog.plugins if task in plugin.tasks or formats & set(plugin.strategies)
    }
    own = Requirement(f"autoft[{','.join(sorted(extras))}]")
    return [own, *(Requirement(name) for name in sorted(owners) if canonicalize_name(name) != "autoft")]


def _needed(roots: Iterable[Requirement], wheels: Path) -> _Needed:
    """Return all that the roots need, in the versions that are installed; what no index has is made into wheels."""
    pins, files = [], []
    for distribution in sorted(_closure(roots), key=lambda one: canonicalize_name(one.name)):
        origin = distribution.read_text("direct_url.json")
        if origin is None:
            pins.append(f"{distribution.name}=={distribution.version}")
        else:
            files.append(_wheel(distribution, json.loads(origin), wheels))
    return _Needed(tuple(pins), tuple(files))


def _closure(roots: Iterable[Requirement]) -> Iterator[importlib.metadata.Distribution]:
    """Yield the installed distributions that requirements ask for, and those that these ask for."""
    waiting = [(one, "the image") for one in roots]
    seen: set[tuple[str, str]] = set()
    given: set[str] = set()
    while waiting:
        requirement, asks = waiting.pop()
        name = canonicalize_name(requirement.name)
        fresh = [extra for extra in ("", *sorted(requirement.extras)) if (name, extra) not in seen]
        if not fresh:
            continue
        try:
            distribution = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            raise ServingError(
                f"{asks} needs {requirement}, which is not installed here, so that its version is not known; pip install it"
            ) from None
        if name not in given:
            given.add(name)
            yield distribution
        known = {canonicalize_name(extra) for extra in distribution.metadata.get_all("Provides-Extra") or ()}
        for extra in fresh:
            seen.add((name, extra))
            if extra and canonicalize_name(extra) not in known:
                raise ServingError(
                    f"{asks} needs {name}[{extra}], which the installed {name} does not know; pip install '{name}[{extra}]'"
                )
            for text in distribution.requires or ():
                one = Requirement(text)
                wanted = one.marker is None or one.marker.evaluate({**_markers(), "extra": extra})
                # Without an extra's name in its marker, a requirement is one of the plain distribution.
                if wanted and (not extra or (one.marker is not None and "extra" in str(one.marker))):
                    waiting.append((one, distribution.name))


def _markers() -> dict[str, str]:
    # The image is Linux, whatever this machine is.
    linux = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    return {**{name: str(value) for name, value in default_environment().items()}, **linux}


def _wheel(distribution: importlib.metadata.Distribution, origin: Mapping[str, object], folder: Path) -> Path:
    """Put a wheel of what was installed from a folder or a file of this machine into a folder."""
    url = urlsplit(str(origin.get("url", "")))
    path = Path(unquote(url.path))
    if url.scheme != "file" or not path.exists():
        raise ServingError(
            f"{distribution.name} was installed from {origin.get('url')}, which cannot be read now; install it from an index, "
            "from a wheel or from its folder"
        )
    if path.suffix == ".whl":
        return Path(shutil.copy2(path, folder))
    before = set(folder.iterdir())
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(path)]
    # Without a network the build needs what is here; pip fetches it where it is not.
    if find_spec("hatchling") is not None:
        words.insert(5, "--no-build-isolation")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    made = sorted(set(folder.iterdir()) - before)
    if done.returncode or len(made) != 1:
        last = done.stderr.strip().splitlines()[-1:] or ["pip made no wheel"]
        raise ServingError(f"{distribution.name}: no wheel can be built of {path}: {last[0]}")
    return made[0]
