"""The recipes that come with autoft: in a wheel beside this module, in a checkout in its folder ``recipes``."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from autoft.errors import Fault, RecipeError, closest

__all__ = ["ShippedRecipe", "copy_recipe", "shipped_recipes"]

PLACES = (Path(__file__).with_name("recipes"), Path(__file__).parents[1] / "recipes")
MAKER = "make_data.py"
"""The script beside some recipes that writes their data."""

MEASURED = "Measured: "


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe and what its comments say.

    Attributes:
        name: as ``text-classification/quickstart``.
        path: of the file.
        task: its name.
        summary: what the recipe is for.
        measured: what came of it, where it was run.
        command: that runs it, from a checkout.
    """

    name: str
    path: Path
    task: str
    summary: str
    measured: str
    command: str

    @property
    def makes_data(self) -> bool:
        """Whether a script has to write its data first."""
        return MAKER in self.command


def shipped_recipes() -> list[ShippedRecipe]:
    """Return the recipes that come with autoft, by name."""
    folder = next((place for place in PLACES if place.is_dir()), None)
    return [] if folder is None else [_read(path, folder) for path in sorted(folder.glob("*/*.yaml"))]


def _read(path: Path, folder: Path) -> ShippedRecipe:
    text = path.read_text(encoding="utf-8")
    comments = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.removeprefix("#").strip())
    told = " ".join(comments[1:])
    summary, _, measured = told.partition(MEASURED)
    name = path.relative_to(folder).with_suffix("").as_posix()
    return ShippedRecipe(name, path, yaml.safe_load(text)["task"], summary.strip(), measured.strip(), comments[0])


def copy_recipe(name: str, output: Path | None = None, *, force: bool = False) -> list[Path]:
    """Copy a recipe, and the script that writes its data where it has one.

    Args:
        name: as ``text-classification/quickstart``; its last part where that is the only such.
        output: the file; default: the recipe's name in the working directory.
        force: overwrite.

    Returns:
        The files written, the recipe first.

    Raises:
        RecipeError: there is no such recipe, or several, or a file is there already.
    """
    known = shipped_recipes()
    found = [one for one in known if name.removesuffix(".yaml") in {one.name, one.name.rpartition("/")[2]}]
    if not found:
        near = closest(name.rpartition("/")[2], [one.path.stem for one in known])
        hint = f" Did you mean {near!r}?" if near else ""
        names = ", ".join(one.name for one in known)
        raise RecipeError([Fault("", f"unknown recipe {name!r}.{hint} Known: {names}.")], "autoft recipes")
    if len(found) > 1:
        names = " or ".join(one.name for one in found)
        raise RecipeError([Fault("", f"{name!r} may be {names}")], "autoft recipes")
    recipe = found[0]
    target = Path(f"{recipe.path.stem}.yaml") if output is None else output
    target = target / recipe.path.name if target.is_dir() else target
    copies = {target: recipe.path}
    if recipe.makes_data:
        copies[target.with_name(MAKER)] = recipe.path.with_name(MAKER)
    for path in copies:
        if path.exists() and not force:
            raise RecipeError(
                [Fault("", "is there already; give --force to overwrite it, or --output another")], str(path)
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    for path, source in copies.items():
        shutil.copyfile(source, path)
    # The first line says how to run it: from where the copy is.
    first, _, rest = target.read_text(encoding="utf-8").partition("\n")
    first = re.sub(rf"\S+/{MAKER}", target.with_name(MAKER).as_posix(), first)
    first = re.sub(r"\S+\.yaml$", target.as_posix(), first)
    target.write_text(f"{first}\n{rest}", encoding="utf-8")
    return list(copies)
