"""Commands for the beginning: init, recipes."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from autoft.cli.common import AsJson, app, console, say, shown, told

SCHEMA = "recipe.schema.json"
"""The file beside a recipe from which editors complete it."""


@app.command()
@told
def init(
    data: Annotated[
        list[str],
        typer.Argument(
            help="A file, a folder with splits, package:// or hub://; or a file for each split.", show_default=False
        ),
    ],
    task: Annotated[str | None, typer.Option(help="The task, where the data need not tell.")] = None,
    column: Annotated[
        list[str], typer.Option("--column", metavar="ROLE=NAME", help="What a column is, as text=comment; repeatable.")
    ] = [],  # noqa: B006 - typer copies it
    model: Annotated[str | None, typer.Option(help="The model to begin with: a folder, hub id or package://.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The recipe.")] = Path("recipe.yaml"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing, and take what is likeliest.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the recipe.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at data, guess its task, columns and model, and write a recipe with comments."""
    from autoft import api
    from autoft.errors import Fault, RecipeError
    from autoft.recipe import schema_line

    if output.exists() and not force:
        raise RecipeError(
            [Fault("", "is there already; give --force to overwrite it, or --output another file")], str(output)
        )
    schema = output.with_name(SCHEMA)
    if schema.exists() and not force and '"autoft recipe"' not in schema.read_text(encoding="utf-8", errors="replace"):
        raise RecipeError([Fault("", "is there and is no schema of autoft; give --force to overwrite it")], str(schema))
    columns = dict(_pair(given) for given in column)
    ask = (lambda question: question.choices[0][0]) if yes else _ask if sys.stdin.isatty() and not as_json else None
    draft = api.draft(data, output=output, task=task, columns=columns, model=model, ask=ask)
    output.parent.mkdir(parents=True, exist_ok=True)
    head = f"# autoft search {shlex.quote(str(shown(output.absolute())))}\n{schema_line(SCHEMA)}\n"
    output.write_text(head + draft.text, encoding="utf-8")
    schema.write_text(json.dumps(api.schema(), indent=1) + "\n", encoding="utf-8")
    if as_json:
        found: dict[str, Any] = {"recipe": str(output), "task": draft.task, "columns": draft.columns}
        print(json.dumps({**found, "found": [list(one) for one in draft.found], "warnings": draft.warnings}))
        return
    width = max(len(topic) for topic, _ in draft.found)
    topics = [
        topic if topic != before else ""
        for (topic, _), before in zip(draft.found, ["", *(t for t, _ in draft.found)], strict=False)
    ]
    for topic, (_, text) in zip(topics, draft.found, strict=True):
        say(f"{topic:<{width}}  {text}")
    for warning in draft.warnings:
        say(f"warning: {warning}")
    print(f"\nWrote {output}, and {schema.name} by which editors complete it. Next:")
    typed = shlex.quote(str(output))
    print(
        f"  autoft check {typed}      try it end to end, in seconds\n  autoft explain {typed}    what will be searched\n  autoft search {typed}"
    )


def _pair(given: str) -> tuple[str, str]:
    from autoft.errors import DataError

    role, sign, name = given.partition("=")
    if not sign or not role or not name:
        raise DataError(f"--column {given}: needs the form ROLE=NAME, as text=comment")
    return role, name


def _ask(question: Any) -> str:
    """Ask on the terminal; a number, the name itself, or enter for the first."""
    say(question.text)
    for number, (value, why) in enumerate(question.choices, 1):
        say(f"  {number}. {value}: {why}")
    names = [value for value, _ in question.choices]
    while True:
        answer = typer.prompt("Number or name", default="1")
        if answer in names:
            return str(answer)
        if answer.isdigit() and 1 <= int(answer) <= len(names):
            return str(names[int(answer) - 1])
        print(f"Allowed: 1 to {len(names)}, or {', '.join(names)}")


recipes_app = typer.Typer(help="List the recipes that come with autoft, or copy one.", rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback(invoke_without_command=True)
@told
def recipes(context: typer.Context, as_json: AsJson = False) -> None:
    """List the recipes that come with autoft: what each is for, and what came of it."""
    if context.invoked_subcommand is not None:
        return
    from dataclasses import asdict

    from rich.table import Table

    from autoft.shipped import shipped_recipes

    found = shipped_recipes()
    if as_json:
        print(json.dumps({"recipes": [{**asdict(one), "path": str(one.path)} for one in found]}))
        return
    table = Table("recipe", "what it is", "measured", show_lines=True)
    for one in found:
        table.add_row(one.name, one.summary, one.measured)
    console().print(table)
    print("Next: autoft recipes copy text-classification/quickstart")


@recipes_app.command("copy")
@told
def copy(
    name: Annotated[str, typer.Argument(help="As text-classification/quickstart.", show_default=False)],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file; default: the recipe's name.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite.")] = False,
) -> None:
    """Copy a recipe, and the script that writes its data where it has one."""
    from autoft.shipped import copy_recipe

    written = copy_recipe(name, output, force=force)
    print(f"Wrote {' and '.join(map(str, written))}. Next:")
    first = written[0].read_text(encoding="utf-8").partition("\n")[0]
    print(f"  {first.removeprefix('#').strip()}")
