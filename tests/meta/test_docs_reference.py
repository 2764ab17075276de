"""docs/cli.md and docs/api.md are what the code says: AUTOFT_WRITE_DOCS=1 writes them."""

from __future__ import annotations

import inspect
import os
import re
import typing
from pathlib import Path
from typing import Any

import pytest

import autoft

DOCS = Path(__file__).parents[2] / "docs"
WRITTEN = "<!-- Written from the code: AUTOFT_WRITE_DOCS=1 pytest tests/meta/test_docs_reference.py -->"


def same(page: Path, text: str) -> None:
    if os.environ.get("AUTOFT_WRITE_DOCS"):
        page.write_text(text, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == text, (
        f"{page.name} is not what the code says: write it with AUTOFT_WRITE_DOCS=1"
    )


# ------------------------------------------------------------------------------------------------------- commands


def commands(command: Any, name: str) -> list[tuple[str, Any]]:
    """Return a command and those below it, by what is typed."""
    below = getattr(command, "commands", {})
    own = [] if below and not getattr(command, "invoke_without_command", False) else [(name, command)]
    return own + [found for child, one in below.items() for found in commands(one, f"{name} {child}")]


def plain(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")


WORDS = {Path: "PATH", int: "INTEGER", float: "NUMBER", str: "TEXT"}


def word_of(kind: Any) -> str:
    """Return what stands for a value of a type."""
    for one in (kind, *typing.get_args(kind)):
        if one in WORDS:
            return WORDS[one]
    raise AssertionError(f"give {kind} a word in this test")


def described(param: Any, kinds: dict[str, Any]) -> tuple[str, str]:
    """Return how a parameter is typed, and what it means."""
    help_text = plain(param.help)
    if param.param_type_name == "argument":
        word = (param.metavar or param.name).upper().strip("[]").removesuffix("...").rstrip("]")
        shown = f"{word}..." if param.nargs == -1 else word
        return (f"`[{shown}]`" if not param.required else f"`{shown}`"), help_text
    value = "" if param.is_flag else f" {param.metavar or word_of(kinds[param.name])}"
    default = param.default
    if not param.is_flag and default not in (None, [], ()) and not callable(default):
        help_text += f" Default: {default}."
    return ", ".join(f"`{name}{value}`" for name in param.opts), help_text


def cli_page() -> str:
    import typer

    from autoft.cli import app

    lines = ["# Commands", "", WRITTEN, ""]
    lines += [
        "What each command takes, as `autoft COMMAND --help` prints it. Exit codes: 0 done, 2 a fault in the recipe, the data or the",
        "model, 3 in a plugin, 4 nothing fits the budget, 5 a run folder that is busy, damaged or full, 6 an export that differs",
        "from what was measured, 7 a search that cannot go on, 130 stopped by Ctrl-C. [Bad input](errors.md) shows the messages.",
        "",
    ]
    for name, command in commands(typer.main.get_command(app), "autoft"):
        lines += [f"## {name}", "", plain(command.help or command.callback.__doc__), ""]
        kinds = typing.get_type_hints(inspect.unwrap(command.callback))
        shown = [param for param in command.params if param.name != "help" and not getattr(param, "hidden", False)]
        rows = [described(param, kinds) for param in shown]
        if rows:
            lines += ["| | |", "| --- | --- |", *(f"| {how} | {what} |" for how, what in rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def test_the_page_of_commands_is_what_they_say():
    same(DOCS / "cli.md", cli_page())


def test_the_page_of_commands_has_every_command_and_option():
    import typer

    from autoft.cli import app

    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    found = commands(typer.main.get_command(app), "autoft")
    assert {f"## {name}" for name, _ in found} <= set(text.splitlines())
    options = {option for _, command in found for param in command.params for option in param.opts if option[0] == "-"}
    assert [option for option in options - {"--help"} if option not in text] == []


# ------------------------------------------------------------------------------------------------------ Python API


SECTIONS = ("Args", "Returns", "Yields", "Raises", "Attributes")


def prose(text: str) -> str:
    """Return a docstring's text as Markdown."""
    text = re.sub(r":(?:func|class|meth|mod|attr|exc):`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


def docstring(value: Any) -> list[str]:
    """Return a Google-style docstring as lines of Markdown."""
    lines: list[str] = []
    section = None
    for line in prose(inspect.getdoc(value) or "").splitlines():
        head = re.fullmatch(r"(\w+):", line)
        if head and head[1] in SECTIONS:
            section = head[1]
            lines += [f"**{section}**", ""]
        elif section is None:
            lines.append(re.sub(r"::$", ":", line) if line.strip() != "::" else "")
        elif not line.strip():
            lines.append("")
        elif section in {"Returns", "Yields"}:
            lines.append(line.strip())
        else:
            item = re.fullmatch(r" {4}(\*{0,2}[\w.]+): (.*)", line)
            lines.append(f"- `{item[1]}`: {item[2]}" if item else f"  {line.strip()}")
    return lines


def annotation(text: str) -> str:
    return re.sub(r"\b(?:collections\.abc|typing|pathlib|autoft(?:\.\w+)+|numpy|npt)\.", "", text).replace("'", "")


def signature(name: str, value: Any) -> str:
    found = inspect.signature(value)
    parts, star = [], False
    for param in found.parameters.values():
        if param.name == "self":
            continue
        if param.kind is param.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        text = param.name
        if param.annotation is not param.empty:
            text += f": {annotation(param.annotation if isinstance(param.annotation, str) else inspect.formatannotation(param.annotation))}"
        if param.default is not param.empty:
            text += f" = {param.default!r}"
        parts.append(text)
    returns = found.return_annotation
    arrow = "" if returns is found.empty or returns is None else f" -> {annotation(str(returns))}"
    inside = ", ".join(parts)
    if len(inside) + len(name) + len(arrow) > 100:
        inside = "\n    " + ",\n    ".join(parts) + ",\n"
    return f"{name}({inside}){arrow}"


def own_members(kind: type) -> list[tuple[str, Any]]:
    found = []
    for name, value in vars(kind).items():
        if name.startswith("_"):
            continue
        if isinstance(value, property) or inspect.isfunction(value):
            found.append((name, value))
    return found


def entry(name: str, value: Any) -> list[str]:
    """Return the section of a function or a class."""
    lines = [f"## {name}", ""]
    if inspect.isclass(value):
        constructed = "__init__" in vars(value) and value.__module__ == "autoft.sklearn"
        if constructed:
            lines += ["```text", signature(name, value.__init__).removesuffix(" -> None"), "```", ""]
        lines += [*docstring(value), ""]
        fields = [key for key in getattr(value, "__annotations__", {}) if not key.startswith("_")]
        if fields and not constructed:
            lines += [*(f"- `{key}: {annotation(value.__annotations__[key])}`" for key in fields), ""]
        for member, one in own_members(value):
            if isinstance(one, property):
                lines += [f"### {name.split('.')[-1]}.{member}", "", *docstring(one.fget), ""]
            else:
                lines += [
                    f"### {name.split('.')[-1]}.{member}",
                    "",
                    "```text",
                    signature(member, one),
                    "```",
                    "",
                    *docstring(one),
                    "",
                ]
        return lines
    return [*lines, "```text", signature(name, value), "```", "", *docstring(value), ""]


def api_names() -> dict[str, Any]:
    from autoft import sklearn
    from autoft.artifact import LoadedModel

    first = ["search", "Run", "load"]
    rest = [name for name in autoft.__all__ if name not in first and not name.startswith("__")]
    names = {f"autoft.{name}": getattr(autoft, name) for name in [*first, *rest]}
    return {**names, "LoadedModel": LoadedModel, "autoft.sklearn.TextClassifier": sklearn.TextClassifier}


def api_page() -> str:
    lines = ["# Python API", "", WRITTEN, ""]
    lines += [
        "What the commands do, as functions. `recipe` is a file or a mapping with the keys of a [recipe](recipe.md). What plugins",
        "implement and are given is in [Hooks and contracts](hooks.md). [From Python](how-to/python.md) has examples.",
        "",
    ]
    for name, value in api_names().items():
        lines += entry(name, value)
    lines += ["## Errors", "", "All are in `autoft.errors`, and the commands' exit codes are theirs.", ""]
    from autoft import errors

    tree = inspect.getdoc(errors).split("::\n\n")[1].split("\n\n")[0]
    lines += ["```text", *(line.removeprefix("    ") for line in tree.splitlines()), "```"]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def test_the_page_of_the_api_is_what_the_code_says():
    same(DOCS / "api.md", api_page())


@pytest.mark.parametrize("name", [name for name in autoft.__all__ if not name.startswith("__")])
def test_what_is_public_says_its_arguments_and_what_it_raises(name):
    value = getattr(autoft, name)
    text = inspect.getdoc(value)
    assert text
    if inspect.isfunction(value) and len(inspect.signature(value).parameters) > 2:
        assert "Args:" in text or "Raises:" in text, f"autoft.{name} has arguments that its docstring does not explain"
