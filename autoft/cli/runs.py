"""Commands on the folders of runs: report, compare, pick."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from autoft.cli.common import AsJson, RunFolder, app, console, say, shown, told


@app.command()
@told
def report(run: RunFolder) -> None:
    """Render a run's report again, and print its summary."""
    from autoft.report import terminal, write
    from autoft.rundir import read_run

    record = read_run(run)
    paths = write(record)
    console().print(terminal.summary(record) if record.selection else terminal.nearest_misses(record))
    for path in paths.values():
        print(shown(path))


@app.command()
@told
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two run folders or more.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option(help="Where the page goes; default: compare.html here, with --json nowhere.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put several runs on one page: fronts, chosen models, settings that differ, and whether their rows are the same."""
    from autoft.report import terminal
    from autoft.report.comparison import comparison_json, make_comparison, render_comparison
    from autoft.rundir import read_run, write_text

    comparison = make_comparison([read_run(run) for run in runs])
    page = output or (None if as_json else Path("compare.html"))
    if page is not None:
        write_text(page, render_comparison(comparison))
    if as_json:
        print(json.dumps(comparison_json(comparison)))
        return
    console().print(terminal.compared(comparison))
    print(page)


@app.command()
@told
def pick(
    run: RunFolder,
    size: Annotated[str | None, typer.Option(help="All files of the model take at most this, as 10MB.")] = None,
    latency: Annotated[str | None, typer.Option(help="A request takes at most this, half of the time, as 5ms.")] = None,
    memory: Annotated[str | None, typer.Option(help="A serving process takes at most this, as 600MB.")] = None,
    quality: Annotated[
        float | None,
        typer.Option(help="The objective is at least as good as this on validation; the cheapest of those."),
    ] = None,
    limits: Annotated[
        list[str],
        typer.Option("--limit", metavar="KEY=VALUE", help="Any other limit of a recipe's budget; repeatable."),
    ] = [],  # noqa: B006 - typer copies it
    output: Annotated[Path | None, typer.Option(help="Where to; default: picks/ in the run folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the front of a run, or export another model of it that fits other limits, without training."""
    from autoft import api
    from autoft.errors import Fault, NothingFeasible, RecipeError
    from autoft.processes import silence_libraries
    from autoft.recipe import set_key
    from autoft.report import terminal
    from autoft.rundir import read_run

    given: dict[str, Any] = {"model_size": size, "latency": latency, "inference_memory": memory}
    given = {key: value for key, value in given.items() if value is not None}
    for limit in limits:
        try:
            given = set_key(given, limit)
        except ValueError as error:
            raise RecipeError([Fault(f"--limit {limit}", str(error))], "limits") from None
    if not given and quality is None:
        record = read_run(run)
        if as_json:
            print(json.dumps({"front": terminal.front_rows(record)}))
        else:
            console().print(terminal.front(record))
            if limits_kept := terminal.front_limits(record):
                print(f"Next: autoft pick {run} {limits_kept}")
        return
    silence_libraries()
    try:
        picked = api.pick(run, given, quality=quality, output=output)
    except NothingFeasible:
        if not as_json:
            console().print(terminal.front(read_run(run)))
        raise
    chosen = {
        "trial": picked.selection.trial,
        "variant": picked.selection.variant,
        "reason": picked.selection.reason,
        "validation": dict(picked.validation),
        "costs": dict(picked.costs),
        "model": str(picked.path),
    }
    if as_json:
        print(json.dumps(chosen))
        return
    console().print(terminal.picked(read_run(run), picked.selection, picked.costs))
    print(f"Model:  {shown(picked.path)}")


@app.command()
@told
def verify(run: RunFolder, as_json: AsJson = False) -> None:
    """Score a run's exported model again and compare with what its report says; exit code 6 where they differ."""
    from dataclasses import asdict

    from rich.table import Table

    from autoft import api
    from autoft.errors import ExportMismatch
    from autoft.processes import silence_libraries
    from autoft.report.views import figure_text

    silence_libraries()
    found = api.verify(run)
    if as_json:
        print(json.dumps({"verified": [{**asdict(one), "same": one.same} for one in found]}))
    else:
        table = Table("split", "metric", "the report says", "the files score")
        for one in found:
            table.add_row(one.split, one.metric, figure_text(one.told), figure_text(one.found))
        console().print(table)
    other = [f"{one.split} {one.metric}" for one in found if not one.same]
    if other:
        raise ExportMismatch(f"{run}: the exported files do not score what the report says: {', '.join(other)}")
    if not as_json:
        print("The exported files score what the report says.")


@app.command()
@told
def add(
    run: RunFolder,
    settings: Annotated[
        list[str], typer.Option("--set", metavar="NAME=VALUE", help="A parameter, as lora.rank=32; repeatable.")
    ] = [],  # noqa: B006 - typer copies it
    start: Annotated[
        int | None,
        typer.Option("--from", metavar="TRIAL", help="Start from this trial's settings; default: the defaults."),
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option(help="One of the run's; default: that which has the parameters.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="One of the run's; default: the first.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a model, where the run's recipe does.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            help="Of a Ray cluster: auto, or host:port; local for this machine. A run that was trained on a cluster needs it."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Try a configuration of your own in a run, and choose anew; a model that is chosen now is tested."""
    from autoft import api
    from autoft.display import choose_listener, outliving_its_terminal
    from autoft.plans.plan import plan_of
    from autoft.report import terminal
    from autoft.screen import outcome

    listener = choose_listener(as_json, shown(run.absolute()))
    with outliving_its_terminal(), listener:
        added = api.add(
            run,
            settings,
            start=start,
            pipeline=pipeline,
            model=model,
            trust_remote_code=trust_remote_code,
            address=address,
            listener=listener,
        )
    record, trial = added.run.record, added.trial
    if as_json:
        print(
            json.dumps(
                {
                    "event": "added",
                    "run": str(added.path),
                    "trial": trial.number,
                    "state": trial.state,
                    "chosen": added.chosen,
                }
            )
        )
        return
    console().print(terminal.summary(record))
    say(f"Added:  trial {trial.number}, {outcome(trial, plan_of(record))}")
    print(
        "Chosen: this trial"
        if added.chosen
        else f"Chosen: trial {record.selection.trial if record.selection else '-'}, as before"
    )
    if record.final is not None:
        say("\n".join(terminal.closing(record, str(shown(run.absolute())))))
