from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.data.sources import load_source
from autoft.drafts.sources import find_sources
from autoft.errors import DataError, ModelError
from autoft.paths import named_path, public_name
from autoft.plans.models import base_model, earlier_model
from autoft.pretrained import named_model

ODD = [
    "x" * 3000,
    f"./{'x' * 300}/a.csv",
    "~nobody-of-this-name/a",
    "a\0b",
    f"package://json/{'x' * 3000}",
    "package://json/a\0b",
]


def test_a_name_is_looked_for_in_folders_in_turn(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a/one", "b/one", "b/two"):
        (tmp_path / name).write_text("")
    folders = [tmp_path / "a", tmp_path / "b"]
    assert named_path("one", *folders) == tmp_path / "a" / "one"
    assert named_path("two", *folders) == tmp_path / "b" / "two"
    assert named_path("three", *folders) is None
    assert named_path(str(tmp_path / "b" / "two"), tmp_path / "a") == tmp_path / "b" / "two"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named_path("~/b/two", Path("/nowhere")) == tmp_path / "b" / "two"


@pytest.mark.parametrize(
    ("name", "path", "shown"),
    [
        ("google/bert", "google/bert", "google/bert"),
        ("bert@0123abc", "bert", "bert@0123abc"),
        ("package://module/model", "/usr/lib/python3/module/model", "package://module/model"),
        ("/home/user/models/bert/", "", "bert"),
        ("~/bert", "", "bert"),
        ("../secret/bert", "", "bert"),
        ("secret/models/bert.gguf", "", "bert.gguf"),
        ("models/bert", "/home/user/models/bert", "bert"),
        ("~", "", "local folder"),
        ("~anna", "", "local folder"),
        ("..", "", "local folder"),
    ],
)
def test_of_a_folder_of_this_machine_others_read_the_last_part(name, path, shown):
    assert public_name(name, path) == shown


def test_a_folder_beside_the_recipe_is_no_model_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "models" / "bert").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("models/bert", "models/bert") == "bert"


@given(name=st.text())
def test_any_text_names_a_file_or_none(name):
    named_path(name, Path("/nowhere"), Path("/nowhere either"))


@pytest.mark.parametrize("name", ODD)
def test_what_no_file_can_be_called_is_not_there(name, tmp_path):
    with pytest.raises(DataError, match=r"no such|has no such path|needs the form"):
        load_source(name, base=tmp_path, where="data.train")
    with pytest.raises(ModelError, match=r"no such|has no such path|needs the form|is not on this machine|hub"):
        base_model(name, tmp_path)
    with pytest.raises(ModelError, match="no such folder"):
        earlier_model(name, tmp_path)
    if "/" in name:
        with pytest.raises(ModelError):
            named_model(name)


@pytest.mark.parametrize("name", [one for one in ODD if not one.startswith("package://")])
def test_a_draft_of_what_no_file_can_be_called_is_refused(name, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        find_sources([name], tmp_path / "recipe.yaml")
