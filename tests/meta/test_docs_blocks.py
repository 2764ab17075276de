"""The code blocks of the pages.

A page says near its top whether its blocks run here:

- ``<!-- blocks: run -->``: python, bash and yaml blocks go through in order, in an empty folder. A yaml block that begins
  with ``# name.yaml`` is written there, a python one with ``# path/name.py`` likewise.
- ``<!-- blocks: run, slow -->``: likewise, with the tests that are marked slow.
- ``<!-- blocks: not run: why -->``: they are checked only, as those of all pages are: recipes validate, Python compiles, and
  commands and options exist.

Before a single block ``<!-- not run: why -->`` leaves it out, ``<!-- no recipe: why -->`` says that yaml is something else, and
``<!-- exit code: 4 -->`` that a command ends so. Blocks of ``text`` are output.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from autoft.recipe import load_recipe, recipe_from_mapping

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "plugins").glob("*/README.md")])
FENCE = re.compile(r"(?:<!-- ([^\n]*?) -->\n\s*\n?)?^( *)```(\S*)[^\n]*\n(.*?)^\2```", re.DOTALL | re.MULTILINE)
KINDS = {
    "": "bash",
    "bash": "bash",
    "sh": "bash",
    "python": "python",
    "yaml": "yaml",
    "text": "text",
    "toml": "toml",
    "json": "json",
}


@dataclass(frozen=True)
class Block:
    kind: str
    code: str
    line: int
    note: str
    """What the comment before it says."""

    @property
    def file(self) -> str | None:
        """The name in its first line."""
        found = re.match(r"# ([\w./-]+\.(?:yaml|py|toml))\n", self.code)
        return found[1] if found else None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        note, indent, language, code = match[1] or "", match[2], match[3], match[4]
        line = text.count("\n", 0, match.start(4)) + 1
        assert language in KINDS, f"{page.name}:{line}: tell this test what a block of {language!r} is"
        lines = [one.removeprefix(indent) for one in code.splitlines()]
        found.append(Block(KINDS[language], "\n".join(lines) + "\n", line, note))
    return found


def page_note(page: Path) -> str:
    found = re.search(r"^<!-- blocks: (.*?) -->$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def every(kind: str) -> list[typing.Any]:
    return [
        pytest.param(page, block, id=f"{name(page)}:{block.line}")
        for page in PAGES
        for block in blocks(page)
        if block.kind == kind
    ]


RUN = [page for page in PAGES if page_note(page).startswith("run")]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_with_blocks_says_whether_they_run(page):
    if not {block.kind for block in blocks(page)} & {"bash", "python"}:
        return
    if page.parent.parent == ROOT / "plugins":
        # Their blocks install, and show what needs a run of its own: they are checked only.
        return
    note = page_note(page)
    assert re.fullmatch(r"run(, slow)?|not run: .+", note), (
        f"{name(page)}: say below its title whether its blocks run: <!-- blocks: run -->, <!-- blocks: run, slow -->, or "
        f"<!-- blocks: not run: why -->; it says {note!r}"
    )


def test_a_comment_before_a_block_is_one_that_is_known():
    for page in PAGES:
        for block in blocks(page):
            known = re.fullmatch(r"|not run: .+|no recipe: .+|exit code: \d+|blocks: .+|Written .+", block.note)
            assert known, f"{name(page)}:{block.line}: {block.note!r}"


# -------------------------------------------------------------------------------------------- checked, on all pages


@pytest.mark.parametrize(("page", "block"), every("yaml"))
def test_a_recipe_validates(page, block, tmp_path):
    if block.note.startswith("no recipe: "):
        return
    path = tmp_path / "recipe.yaml"
    path.write_text(block.code, encoding="utf-8")
    given = yaml.safe_load(block.code)
    if "task" in given:
        load_recipe(path)
        return
    # A part of a recipe: with the three keys that each one needs.
    whole = {"task": "text-classification", "model": "base", "data": "rows.csv", **given}
    path.write_text(yaml.safe_dump(whole), encoding="utf-8")
    load_recipe(path)
    recipe_from_mapping(whole)


@pytest.mark.parametrize(("page", "block"), every("python"))
def test_python_compiles(page, block):
    ast.parse(block.code)


def commands() -> dict[str, set[str]]:
    """Return the options of each command, by what is typed."""
    import typer

    from autoft.cli import app

    found: dict[str, set[str]] = {}

    def walk(command, words):
        found[words] = {option for param in command.params for option in param.opts if option.startswith("-")} | {
            "--help"
        }
        for child, one in getattr(command, "commands", {}).items():
            walk(one, f"{words} {child}".strip())

    walk(typer.main.get_command(app), "")
    return found


def calls(code: str) -> list[list[str]]:
    """Return the words of each call of autoft in a shell block."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\||[|;]", re.sub(r"'[^']*'|\"[^\"]*\"", "TEXT", line.split("  #")[0])):
            words = shlex.split(re.sub(r"[<>]", " ", part), comments=True)
            while words and ("=" in words[0] or words[0].endswith("python") or words[0] == "-m"):
                words = words[1:]
            if words and Path(words[0]).name == "autoft":
                found.append(words[1:])
    return found


@pytest.mark.parametrize(("page", "block"), every("bash"))
def test_commands_and_options_exist(page, block):
    known = commands()
    for words in calls(block.code):
        below = " ".join(words[:2])
        command = below if below in known else words[0] if words and not words[0].startswith("-") else ""
        assert command in known, f"{name(page)}:{block.line}: there is no command {command!r}"
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        assert options <= known[command], f"{name(page)}:{block.line}: {command} has no {options - known[command]}"


def test_calls_are_found_in_shell_text():
    code = "make x && autoft check a.yaml   # looks\nFOO=1 .venv/bin/autoft search a.yaml \\\n  --run 'b c'\necho '| autoft x' | autoft predict r\n"
    assert calls(code) == [["check", "a.yaml"], ["search", "a.yaml", "--run", "TEXT"], ["predict", "r"]]


# ------------------------------------------------------------------------------------------------------------ run


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of a shell in which `autoft` and `python` are those of the tests."""
    place = folder / ".bin"
    place.mkdir()
    for command, words in {"autoft": "-m autoft", "python": ""}.items():
        script = place / command
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        script.chmod(0o755)
    return {**os.environ, "PATH": f"{place}{os.pathsep}{os.environ['PATH']}"}


def run_page(page: Path, folder: Path) -> list[tuple[Block, str]]:
    """Run a page's blocks in order, and return each that ran with its output."""
    variables, said = environment(folder), []
    for block in blocks(page):
        if block.kind not in {"bash", "python", "yaml"} or block.note.startswith("not run: "):
            continue
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code, encoding="utf-8")
            continue
        if block.kind == "yaml":
            continue
        words = [sys.executable, "-c", block.code] if block.kind == "python" else ["bash", "-e", "-c", block.code]
        done = subprocess.run(
            words, cwd=folder, env=variables, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        wanted = re.fullmatch(r"exit code: (\d+)", block.note)
        assert done.returncode == int(wanted[1] if wanted else 0), (
            f"{name(page)}:{block.line}: ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        said.append((block, done.stdout))
    return said


@pytest.mark.offline_models
@pytest.mark.parametrize(
    "page", [pytest.param(page, id=name(page), marks=[pytest.mark.slow] * ("slow" in page_note(page))) for page in RUN]
)
def test_the_blocks_of_a_page_run(page, tmp_path):
    said = run_page(page, tmp_path)
    assert said
    for block, _ in said:
        for words in calls(block.code):
            if words[0] == "search" and not block.note.startswith("exit code"):
                run = words[words.index("--run") + 1] if "--run" in words else f"runs/{Path(words[1]).stem}"
                assert (tmp_path / run / "best" / "autoft.json").is_file()
