"""``autoft plugins``: list, list strategies, write a new one, check one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autoft.cli import app
from autoft.errors import PluginError
from autoft.plugins import load_plugins
from autoft.scaffold import new_plugin

ROOT = Path(__file__).parents[1]


def command(*words):
    return CliRunner().invoke(app, ["plugins", *words])


def test_strategies_are_listed_with_what_they_take_and_leave():
    listed = json.loads(command("--strategies", "--json").stdout)["strategies"]
    installed = load_plugins().strategies
    assert {one["name"] for one in listed} == set(installed)
    stages = [one["stage"] for one in listed]
    assert stages == sorted(stages, key=["data", "load", "adapt", "train", "compress"].index)
    (lora,) = [one for one in listed if one["name"] == "lora"]
    assert (lora["accepts"], lora["yields"]) == (["dense", "quantized"], "dense")
    assert lora["parameters"]["rank"] == "4 to 64 (log)"
    shown = command("--strategies")
    assert shown.exit_code == 0
    for strategy in installed.values():
        assert strategy.name in shown.stdout


def test_plugins_alone_still_lists():
    listed = json.loads(command("--json").stdout)
    assert {plugin["name"] for plugin in listed["plugins"]} == {plugin.name for plugin in load_plugins().plugins}


def test_a_strategy_is_checked_by_name():
    done = command("check", "random-swap", "--json")
    checks = json.loads(done.stdout)["checks"]
    assert done.exit_code == 0
    assert {check["outcome"] for check in checks} == {"passed"}
    assert {"subject", "check", "outcome", "seconds", "reason"} == set(checks[0])
    shown = command("check", "random-swap").stdout
    assert "check_refuses_with_a_sentence[decoder]" in shown
    assert f"{len(checks)} checks passed, 0 failed, 0 skipped" in shown


def test_an_unknown_plugin_is_told():
    done = command("check", "random-swab")
    assert done.exit_code == 3
    assert "Did you mean 'random-swap'" in done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my task", "is no name for a task"),
        ("../evil", "is no name for a task"),
        ("text-classification", "autoft-text-classification has a plugin or task 'text-classification' already"),
    ],
)
def test_a_name_that_cannot_be_is_told(name, message, tmp_path):
    with pytest.raises(PluginError, match=message):
        new_plugin(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    done = command("new", "my-task", "--folder", str(tmp_path))
    assert done.exit_code == 3
    assert "is there already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("words", [["--strategies"], ["new", "my-task"], ["--help"]])
def test_they_load_no_heavy_library(words, tmp_path):
    code = (
        "import sys\nfrom autoft.cli import app\n"
        f"try:\n    app({['plugins', *words]!r}, standalone_mode=False)\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'transformers', 'sklearn', 'autoft.testing'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a new plugin, as the command writes it."""
    folder = tmp_path_factory.mktemp("new") / "autoft-my-task"
    done = command("new", "my-task", "--folder", str(folder))
    assert done.exit_code == 0, done.output
    assert "pip install -e" in done.stdout
    return folder


def test_a_new_plugin_is_complete_and_in_form(written):
    files = {str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()}
    assert files == {
        "pyproject.toml",
        "README.md",
        "src/autoft_my_task/__init__.py",
        "src/autoft_my_task/metrics.py",
        "src/autoft_my_task/task.py",
        "tests/test_conformance.py",
        "tests/test_task.py",
    }
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--config", str(ROOT / "pyproject.toml"), str(written / "src")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_plugin_passes_its_own_tests_once_it_is_installed(written, tmp_path):
    flags = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    site = tmp_path / "site-packages"
    install = [sys.executable, "-m", "pip", "install", *flags, "--target", str(site), str(written)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=written,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


@pytest.mark.parametrize(
    ("name", "package", "kind"),
    [("3d_Shapes", "autoft_3d_shapes", "Task3dShapes"), ("autoft-tone", "autoft_tone", "Tone")],
)
def test_names_become_those_of_python(name, package, kind, tmp_path):
    folder = new_plugin(name, tmp_path / "new")
    task = (folder / "src" / package / "task.py").read_text(encoding="utf-8")
    assert f"class {kind}(Task):" in task
    assert f'name="{name.removeprefix("autoft-")}"' in task
    compile(task, "task.py", "exec")
