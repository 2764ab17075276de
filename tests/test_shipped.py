"""The recipes that come with autoft, in a checkout and in a wheel."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autoft.cli import app
from autoft.recipe import load_recipe
from autoft.shipped import copy_recipe, shipped_recipes

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path.relative_to(ROOT / "recipes").with_suffix("").as_posix() for path in (ROOT / "recipes").glob("*/*.yaml")
)


def test_all_recipes_are_listed_with_their_task_and_what_was_measured():
    found = json.loads(CliRunner().invoke(app, ["recipes", "--json"]).stdout)["recipes"]
    assert [one["name"] for one in found] == FILES
    for one in found:
        assert one["task"].startswith(one["name"].partition("/")[0])
        assert one["summary"]
        assert one["measured"]
        assert "Measured" not in one["summary"] + one["measured"]
    table = CliRunner().invoke(app, ["recipes"])
    assert all(name in table.stdout for name in FILES)


def test_a_copy_is_the_recipe_and_says_how_to_run_it_from_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["recipes", "copy", "quickstart"])
    assert done.exit_code == 0, done.stderr
    assert "autoft search quickstart.yaml" in done.stdout
    source = ROOT / "recipes" / "text-classification" / "quickstart.yaml"
    assert load_recipe("quickstart.yaml") == load_recipe(source)
    assert Path("quickstart.yaml").read_text().splitlines()[0] == "# autoft search quickstart.yaml"


def test_the_script_that_writes_the_data_comes_along(tmp_path):
    written = copy_recipe("facts", tmp_path / "own" / "mine.yaml")
    assert [path.name for path in written] == ["mine.yaml", "make_data.py"]
    assert written[1].read_bytes() == (ROOT / "recipes" / "question-answering" / "make_data.py").read_bytes()
    first = written[0].read_text().splitlines()[0]
    assert first == f"# python {written[1]} && autoft search {written[0]}"


def test_nothing_is_overwritten_unless_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("make_data.py").write_text("mine")
    refused = CliRunner().invoke(app, ["recipes", "copy", "facts"])
    assert (refused.exit_code, Path("make_data.py").read_text()) == (2, "mine")
    assert not Path("facts.yaml").exists()
    assert CliRunner().invoke(app, ["recipes", "copy", "facts", "--force"]).exit_code == 0


@pytest.mark.parametrize(
    ("name", "says"),
    [("quickstrat", "Did you mean 'quickstart'?"), ("docstrings", "generation/docstrings or summarization/docstrings")],
)
def test_a_name_that_is_none_or_several_is_told(name, says):
    done = CliRunner().invoke(app, ["recipes", "copy", name])
    assert done.exit_code == 2
    assert says in done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "site")
        names = archive.namelist()
    return folder / "site", names


def test_a_wheel_holds_the_recipes_and_finds_them(wheel, tmp_path):
    site, names = wheel
    held = sorted(
        name.removeprefix("autoft/recipes/").removesuffix(".yaml") for name in names if name.endswith(".yaml")
    )
    assert held == FILES
    assert not any("/data/" in name for name in names if name.startswith("autoft/recipes/"))
    script = "import sys; sys.path.insert(0, sys.argv[1])\nfrom autoft.shipped import shipped_recipes\nprint(*(one.path for one in shipped_recipes()), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script, str(site)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(site / "autoft" / "recipes" / f"{name}.yaml") for name in FILES]


def test_the_checkout_finds_its_own():
    assert all(one.path.is_relative_to(ROOT / "recipes") for one in shipped_recipes())
