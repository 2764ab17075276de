"""Commands on recipes: search, check, explain, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from autoft.cli.common import AsJson, Overrides, RecipeFile, app, console, run_folder, say, shown, told


@app.command()
@told
def search(
    recipe: RecipeFile,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    run: Annotated[Path | None, typer.Option(help="The run folder; default: runs/ and the recipe's name.")] = None,
    like: Annotated[
        Path | None, typer.Option(metavar="RUN", help="An earlier run whose best configurations are tried first.")
    ] = None,
    executor: Annotated[
        str | None, typer.Option(metavar="KIND", help="Where trials run: local, or ray for the nodes of a Ray cluster.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster: auto, or host:port; default: a cluster of this machine alone."),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Go on in a run folder from elsewhere where the recipe lets code of models run."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Search, compress, test and report within the recipe's budget; the same command goes on where it was cut off."""
    from autoft import api
    from autoft.display import choose_listener, outliving_its_terminal
    from autoft.errors import NothingFeasible
    from autoft.report import terminal
    from autoft.report.content import usage
    from autoft.rundir import read_run

    if like is not None:
        overrides = [*overrides, f"search.like={json.dumps(str(like.absolute()))}"]
    for key, value in {"executor.kind": executor, "executor.address": address}.items():
        overrides = [*overrides, *([] if value is None else [f"{key}={json.dumps(value)}"])]
    where = shown(run_folder(recipe, overrides, run).absolute())
    listener = choose_listener(as_json, where)
    with outliving_its_terminal(), listener:
        try:
            done = api.search(
                recipe, overrides=overrides, run=run, trust_remote_code=trust_remote_code, listener=listener
            )
            missed = None
        except NothingFeasible as error:
            missed = error
    if missed is not None:
        folder = run_folder(recipe, overrides, run)
        if not as_json:
            console().print(terminal.nearest_misses(read_run(folder)))
            print(f"Report: {folder / 'report.html'}")
        raise missed
    if as_json:
        python, command = usage(done.record, str(done.path))
        told = {
            "event": "finished",
            "run": str(done.path),
            "report": str(done.report),
            "best": str(done.path / "best"),
            "predict": command,
            "python": ["import autoft", *python],
        }
        print(json.dumps(told))
        return
    record = done.record
    console().print(terminal.summary(record))
    say("\n".join(terminal.closing(record, str(where))))


@app.command()
@told
def check(recipe: RecipeFile, overrides: Overrides = []) -> None:  # noqa: B006 - typer copies it
    """Try a recipe end to end in seconds, before a long search."""
    from autoft import api
    from autoft.processes import silence_libraries

    silence_libraries()
    for sentence in api.check(recipe, overrides=overrides):
        say(sentence)
    print("The recipe works.")


@app.command()
@told
def explain(
    recipe: RecipeFile,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    memory: Annotated[
        bool,
        typer.Option(
            "--memory",
            help="Add parameters, the peaks of memory of training and serving, and sizes: seconds, and once a minute or two in which this machine is measured.",
        ),
    ] = False,
    times: Annotated[
        bool,
        typer.Option(
            "--time", help="Add how long trials take here and how many fit: reads the data and tries a few steps."
        ),
    ] = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Add size, latency and memory of serving, measured: reads the data and compresses the untrained models.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a search would do: every default with its origin, pipelines, compressions, refusals."""
    from dataclasses import asdict

    from autoft import api
    from autoft.display import costs_table, forecast_tables, plan_tables, times_table

    plan = api.explain(recipe, overrides=overrides)
    if memory:
        from autoft.processes import silence_libraries

        silence_libraries()
    needed = api.memory_forecast(plan) if memory else []
    took = api.time_forecast(recipe, overrides=overrides) if times else []
    costs = api.serving_costs(recipe, overrides=overrides) if measure else {}
    if as_json:
        found: dict[str, Any] = {"forecast": [asdict(one) for one in needed]} if memory else {}
        found |= {"times": [asdict(one) for one in took]} if times else {}
        found |= {"costs": costs} if measure else {}
        print(json.dumps({**plan.model_dump(mode="json"), **found}, indent=1))
        return
    console().print(plan_tables(plan))
    if memory:
        console().print(forecast_tables(needed))
    if times:
        console().print(times_table(took))
    if measure:
        console().print(costs_table(costs, plan.budget))


@app.command()
@told
def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write it to a file, as recipe.schema.json.")
    ] = None,
) -> None:
    """Print the JSON schema of recipes with the names of all that is installed, for editors."""
    from autoft.editors import recipe_schema_of
    from autoft.plugins import load_plugins
    from autoft.recipe import schema_line

    text = json.dumps(recipe_schema_of(load_plugins()), indent=1)
    if output is None:
        print(text)
        return
    output.write_text(text + "\n", encoding="utf-8")
    print(f"Wrote {output}. A recipe beside it says where it is, for editors:\n  {schema_line(output.name)}")
