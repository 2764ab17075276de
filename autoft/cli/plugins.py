"""The command `plugins`, and those below it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from autoft.cli.common import AsJson, app, console, say, shown, told

plugins_app = typer.Typer(help="List the installed plugins, write a new one, or check one.", rich_markup_mode=None)
app.add_typer(plugins_app, name="plugins")


@plugins_app.callback(invoke_without_command=True)
@told
def plugins(
    context: typer.Context,
    strategies: Annotated[bool, typer.Option("--strategies", help="List strategies instead, by their stage.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the installed plugins and what they offer, and those that did not load, with the reason."""
    if context.invoked_subcommand is not None:
        return
    from dataclasses import asdict

    from rich.table import Table

    from autoft.plugins import load_plugins

    catalog = load_plugins()
    if strategies:
        _list_strategies(catalog, as_json)
        return
    if as_json:
        print(
            json.dumps({"plugins": [asdict(p) for p in catalog.plugins], "broken": [asdict(p) for p in catalog.broken]})
        )
        return
    table = Table("plugin", "distribution", "tasks", "strategies", "metrics")
    for plugin in catalog.plugins:
        names = (", ".join(names) for names in (plugin.tasks, plugin.strategies, plugin.metrics))
        table.add_row(plugin.name, f"{plugin.distribution} {plugin.version}", *names)
    console().print(table)
    for broken in catalog.broken:
        say(f"did not load: {broken.name} ({broken.distribution} {broken.version}): {broken.error}")


def _list_strategies(catalog: Any, as_json: bool) -> None:
    from rich.table import Table

    from autoft.contracts import Adapter

    order = ("data", "load", "adapt", "train", "compress")
    found = sorted(catalog.strategies.values(), key=lambda strategy: order.index(strategy.stage))
    if as_json:
        listed = [
            {
                "name": strategy.name,
                "stage": strategy.stage,
                "accepts": sorted(strategy.accepts),
                "yields": strategy.leaves if isinstance(strategy, Adapter) else strategy.yields,
                "summary": strategy.summary,
                "parameters": {name: str(domain) for name, domain in strategy.space.items()},
            }
            for strategy in found
        ]
        print(json.dumps({"strategies": listed}))
        return
    table = Table("strategy", "stage", "accepts", "yields", "what it does")
    for strategy in found:
        # An augmenter is there before any model, and a regularizer leaves a model's state to the adapter.
        accepts = "" if strategy.stage == "data" else ", ".join(sorted(strategy.accepts))
        yields = strategy.leaves if isinstance(strategy, Adapter) else strategy.yields
        states = (accepts, "" if strategy.stage in {"data", "train"} else yields)
        table.add_row(strategy.name, strategy.stage, *states, strategy.summary)
    console().print(table)


@plugins_app.command("new")
@told
def plugins_new(
    name: Annotated[str, typer.Argument(help="The name of its task, as my-task.", show_default=False)],
    folder: Annotated[Path | None, typer.Option(help="Where to; default: autoft-NAME in the current folder.")] = None,
) -> None:
    """Write a plugin that works as it is: a task, its metric, its tests, for you to change."""
    from autoft.scaffold import new_plugin

    written = new_plugin(name, folder)
    for path in sorted(path for path in written.rglob("*") if path.is_file()):
        print(shown(path))
    print(f"Next: pip install -e {shown(written)} && autoft plugins check {written.name}")


@plugins_app.command("check")
@told
def plugins_check(
    name: Annotated[
        str, typer.Argument(help="A plugin, a distribution, a task, a strategy or a cost metric.", show_default=False)
    ],
    model: Annotated[
        Path | None, typer.Option(help="The folder of a small model; default: a tiny one that suits the task.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the conformance checks of a plugin on a tiny model; exit code 3 where one fails."""
    from contextlib import nullcontext
    from dataclasses import asdict

    from rich.live import Live
    from rich.table import Column, Table

    from autoft.processes import silence_libraries
    from autoft.testing import check_plugin

    silence_libraries()
    screen = console()
    table = Table("subject", Column("check", overflow="fold"), "outcome", "seconds", "reason")
    results = []
    live = Live(table, console=screen) if screen.is_terminal and not as_json else nullcontext()
    with live:
        for result in check_plugin(name, model=model):
            results.append(result)
            cells = (result.subject, result.check, result.outcome, f"{result.seconds:.2f}", result.reason)
            table.add_row(*cells)
    if as_json:
        print(json.dumps({"checks": [asdict(result) for result in results]}))
    elif not screen.is_terminal:
        screen.print(table)
    failed = sum(result.outcome == "failed" for result in results)
    if not as_json:
        skipped = sum(result.outcome == "skipped" for result in results)
        print(f"{len(results) - failed - skipped} checks passed, {failed} failed, {skipped} skipped")
    if failed:
        raise typer.Exit(3)
