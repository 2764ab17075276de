"""Contracts about the repository itself: what starts fast, what recipes and documents promise."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autoft.recipe import Recipe, load_recipe
from autoft.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "plugins").glob("*/README.md")])
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "datasets",
    "optuna",
    "accelerate",
    "sklearn",
    "onnxruntime",
    "plotly",
    "fastapi",
    "uvicorn",
)

LOADED = f"""
import sys
from autoft.cli import app
try:
    app({{words!r}}, standalone_mode=False)
except SystemExit as error:
    assert not error.code, error.code
found = [name for name in {HEAVY!r} if name in sys.modules]
assert not found, found
"""


def tracked() -> list[Path]:
    answer = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in answer.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize("words", [["--help"], ["plugins"], ["schema"], ["hardware"], ["explain", "recipe.yaml"]])
def test_quick_commands_load_no_heavy_library(words, tmp_path, tiny_model):
    (tmp_path / "recipe.yaml").write_text(f"task: text-classification\nmodel: {tiny_model}\ndata: reviews.csv\n")
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(words=words)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_begins_with_the_command_that_runs_it_and_validates(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(f"autoft search {path.relative_to(ROOT)}")
    assert load_recipe(path).task


def test_the_api_is_callable_whatever_was_imported_before():
    """The functions search and hardware have the names of modules."""
    script = (
        "import autoft, autoft.search, autoft.hardware\n"
        "from autoft.search import Search\n"
        "assert autoft.hardware().cores == autoft.hardware().cores\n"
        "assert all(callable(getattr(autoft, name)) for name in autoft.__all__ if name != '__version__')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_core_module_has_its_place_in_the_import_order():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    placed = {name for layer in config["contracts"][0]["layers"] for name in layer.split(" | ")}
    modules = {f"autoft.{path.stem}" for path in (ROOT / "autoft").glob("*.py")}
    modules |= {f"autoft.{path.parent.name}" for path in (ROOT / "autoft").glob("*/__init__.py")}
    assert modules - {"autoft.__init__", "autoft.__main__"} == placed


def test_the_readme_names_every_command():
    from autoft.cli import app

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert [name for name in names if f"autoft {name}" not in readme] == []


def test_the_recipe_page_names_every_key():
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")

    def keys(model, prefix=""):
        for name, field in model.model_fields.items():
            yield f"{prefix}{name}"
            kind = field.annotation
            if isinstance(kind, type) and hasattr(kind, "model_fields"):
                yield from keys(kind, f"{name}.")

    assert [key for key in keys(Recipe) if f"`{key}`" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_changelog_begins_with_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", text, re.MULTILINE)[1] == __version__


def test_no_file_names_a_place_of_one_machine():
    pattern = re.compile(r"(?<![\w.])/(?:work|root|home|opt|tmp)/[\w.-]+")
    allowed = {"/home/user"}
    found = {}
    for path in tracked():
        if path.suffix in {".png", ".svg"} or path.name == Path(__file__).name:
            continue
        hits = set(pattern.findall(path.read_text(encoding="utf-8", errors="replace"))) - allowed
        if hits:
            found[str(path.relative_to(ROOT))] = hits
    assert found == {}


def test_nothing_that_is_loaded_can_carry_code():
    forbidden = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    for path in (ROOT / "autoft").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module.split(".")[0]]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, path
            assert not set(names) & forbidden, path
