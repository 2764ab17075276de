"""The commands: parse, call one function, print, exit code. Everything heavy is imported inside them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from autoft.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    name="autoft",
    help="Search, fine-tune and compress transformers until they fit your hardware.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

P = ParamSpec("P")
Recipe = Annotated[Path, typer.Argument(help="A recipe file.", show_default=False)]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, as budget.time=5m; repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _told(function: Callable[P, None]) -> Callable[P, None]:
    """Turn an error that a user can act upon into its message and its exit code."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from autoft.errors import AutoftError

        try:
            function(*args, **kwargs)
        except AutoftError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            print("\nStopped. The same command goes on where it was.", file=sys.stderr)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader of a pipe has seen enough, as `head` does.
            sys.stderr.close()
            raise typer.Exit(0) from None
        except OSError as error:
            import errno

            what = error.filename or "a file"
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            reason = "the disk is full; free some space and run again" if full else error.strerror or str(error)
            print(f"error: {what}: {reason}", file=sys.stderr)
            raise typer.Exit(5) from None

    return run


def _version(wanted: bool) -> None:
    if wanted:
        print(f"autoft {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
@_told
def search(
    recipe: Recipe,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    run: Annotated[Path | None, typer.Option(help="The run folder; default: runs/ and the recipe's name.")] = None,
    like: Annotated[
        Path | None, typer.Option(metavar="RUN", help="An earlier run whose best configurations are tried first.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Search, compress, test and report within the recipe's budget; the same command goes on where it was cut off."""
    from contextlib import nullcontext

    from autoft import api
    from autoft.display import LiveListener, choose_listener
    from autoft.errors import NothingFeasible
    from autoft.report import terminal
    from autoft.rundir import read_run

    if like is not None:
        overrides = [*overrides, f"search.like={json.dumps(str(like.absolute()))}"]
    listener = choose_listener(as_json)
    with listener if isinstance(listener, LiveListener) else nullcontext():
        try:
            done = api.search(recipe, overrides=overrides, run=run, listener=listener)
            missed = None
        except NothingFeasible as error:
            missed = error
    if missed is not None:
        folder = _run_folder(recipe, overrides, run)
        if not as_json:
            _console().print(terminal.nearest_misses(read_run(folder)))
            print(f"Report: {folder / 'report.html'}")
        raise missed
    if as_json:
        print(
            json.dumps(
                {
                    "event": "finished",
                    "run": str(done.path),
                    "report": str(done.report),
                    "best": str(done.path / "best"),
                }
            )
        )
        return
    _console().print(terminal.summary(done.record))
    print(f"Report: {_shown(done.report)}")
    print(f"Model:  {_shown(done.path / 'best')}")


@app.command()
@_told
def check(recipe: Recipe, overrides: Overrides = []) -> None:  # noqa: B006
    """Try a recipe end to end in seconds, before a long search."""
    from autoft import api
    from autoft.processes import silence_libraries

    silence_libraries()
    for sentence in api.check(recipe, overrides=overrides):
        print(sentence, flush=True)
    print("The recipe works.")


@app.command()
@_told
def explain(
    recipe: Recipe,
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
    _console().print(plan_tables(plan))
    if memory:
        _console().print(forecast_tables(needed))
    if times:
        _console().print(times_table(took))
    if measure:
        _console().print(costs_table(costs, plan.budget))


plugins_app = typer.Typer(help="List the installed plugins, write a new one, or check one.", rich_markup_mode=None)
app.add_typer(plugins_app, name="plugins")


@plugins_app.callback(invoke_without_command=True)
@_told
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
    _console().print(table)
    for broken in catalog.broken:
        print(f"did not load: {broken.name} ({broken.distribution} {broken.version}): {broken.error}")


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
    _console().print(table)


@plugins_app.command("new")
@_told
def plugins_new(
    name: Annotated[str, typer.Argument(help="The name of its task, as my-task.", show_default=False)],
    folder: Annotated[Path | None, typer.Option(help="Where to; default: autoft-NAME in the current folder.")] = None,
) -> None:
    """Write a plugin that works as it is: a task, its metric, its tests, for you to change."""
    from autoft.scaffold import new_plugin

    written = new_plugin(name, folder)
    for path in sorted(path for path in written.rglob("*") if path.is_file()):
        print(_shown(path))
    print(f"Next: pip install -e {_shown(written)} && autoft plugins check {written.name}")


@plugins_app.command("check")
@_told
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
    from rich.markup import escape
    from rich.table import Column, Table

    from autoft.processes import silence_libraries
    from autoft.testing import check_plugin

    silence_libraries()
    console = _console()
    table = Table("subject", Column("check", overflow="fold"), "outcome", "seconds", "reason")
    results = []
    live = Live(table, console=console) if console.is_terminal and not as_json else nullcontext()
    with live:
        for result in check_plugin(name, model=model):
            results.append(result)
            cells = (result.subject, result.check, result.outcome, f"{result.seconds:.2f}", result.reason)
            table.add_row(*map(escape, cells))
    if as_json:
        print(json.dumps({"checks": [asdict(result) for result in results]}))
    elif not console.is_terminal:
        console.print(table)
    failed = sum(result.outcome == "failed" for result in results)
    if not as_json:
        skipped = sum(result.outcome == "skipped" for result in results)
        print(f"{len(results) - failed - skipped} checks passed, {failed} failed, {skipped} skipped")
    if failed:
        raise typer.Exit(3)


@app.command()
@_told
def report(run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]) -> None:
    """Render a run's report again, and print its summary."""
    from autoft.report import terminal, write
    from autoft.rundir import read_run

    record = read_run(run)
    paths = write(record)
    _console().print(terminal.summary(record) if record.selection else terminal.nearest_misses(record))
    for path in paths.values():
        print(_shown(path))


@app.command()
@_told
def pick(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
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
            _console().print(terminal.front(record))
            print(f"Next: autoft pick {run} --size 10MB --latency 5ms, or --quality 0.8")
        return
    silence_libraries()
    try:
        picked = api.pick(run, given, quality=quality, output=output)
    except NothingFeasible:
        if not as_json:
            _console().print(terminal.front(read_run(run)))
        raise
    shown = {
        "trial": picked.selection.trial,
        "variant": picked.selection.variant,
        "reason": picked.selection.reason,
        "validation": dict(picked.validation),
        "costs": dict(picked.costs),
        "model": str(picked.path),
    }
    if as_json:
        print(json.dumps(shown))
        return
    _console().print(terminal.picked(read_run(run), picked.selection, picked.costs))
    print(f"Model:  {_shown(picked.path)}")


@app.command()
@_told
def predict(
    model: Annotated[Path, typer.Argument(help="A run folder, or a model that autoft exported.", show_default=False)],
    text: Annotated[list[str] | None, typer.Argument(help="Texts; none: rows from --input or standard input.")] = None,
    source: Annotated[Path | None, typer.Option("--input", help="A data file with the task's columns.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where the JSON lines go; default: standard output.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a forward pass.")] = 32,
) -> None:
    """Predict texts, a data file, or standard input (a text or a JSON object a line); one JSON object a line."""
    from autoft.api import load
    from autoft.processes import silence_libraries

    silence_libraries()
    loaded = load(model)
    rows = _rows(text, source, loaded.task.card)
    with output.open("w", encoding="utf-8") if output else _Standard() as file:
        for chunk in _chunks(rows, 16 * batch_size):
            for prediction in loaded.predict(chunk, batch_size):
                file.write(json.dumps(prediction, ensure_ascii=False) + "\n")


@app.command()
@_told
def hardware(
    measure: Annotated[
        Path | None,
        typer.Option(help="Time this machine and write its profile there, for budget.target of a search elsewhere."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that serve a model; default: one a core.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what this machine has, as searches see it, or measure it for searches on other machines."""
    from autoft.hardware import Hardware

    if measure is not None:
        from autoft import api
        from autoft.device import dump_profile
        from autoft.rundir import write_text

        profile = api.measure_device(threads)
        write_text(measure, dump_profile(profile))
        print(profile.model_dump_json(indent=1) if as_json else f"Written: {measure}")
        return
    from autoft.plugins import load_plugins

    probed = Hardware.probe()
    checked = {name: metric.check(probed.device, 1) for name, metric in load_plugins().cost_metrics.items()}
    reasons = {name: refusal.reason for name, refusal in checked.items() if refusal is not None}
    if as_json:
        print(
            json.dumps(
                {**probed.to_json(), "measured": sorted(checked.keys() - reasons), "not_measured": reasons}, indent=1
            )
        )
        return
    print(probed)
    print(f"measured of models: {', '.join(name for name in checked if name not in reasons)}")
    for name, reason in reasons.items():
        print(f"not measured: {name}: {reason}")


@app.command()
@_told
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from autoft.recipe import recipe_schema

    print(json.dumps(recipe_schema(), indent=1))


class _Standard:
    """Standard output as a context that stays open."""

    def __enter__(self) -> Any:
        return sys.stdout

    def __exit__(self, *exception: object) -> None:
        sys.stdout.flush()


def _rows(text: list[str] | None, source: Path | None, card: Any) -> Iterator[Any]:
    from dataclasses import replace

    from autoft.data import load_source, map_columns
    from autoft.errors import DataError

    if text and source:
        raise DataError("give texts or --input, not both")
    if source:
        wanted = replace(card, columns=card.inputs)
        table = map_columns(load_source(str(source), base=Path.cwd(), where="--input"), wanted, {}, "--input")
        for batch in table.to_batches(max_chunksize=1024):
            yield from batch.to_pylist()
    elif text:
        yield from text
    else:
        for number, line in enumerate(sys.stdin, start=1):
            stripped = line.strip()
            if not stripped:
                continue
            if not stripped.startswith("{"):
                yield stripped
                continue
            try:
                yield json.loads(stripped)
            except ValueError as error:
                raise DataError(f"standard input, line {number}: is not a JSON object: {error}") from None


def _chunks(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    from itertools import islice

    while chunk := list(islice(rows, size)):
        yield chunk


def _console() -> Any:
    from rich.console import Console

    console = Console()
    # On a pipe there is no width to keep to: tables must not be cut.
    return console if console.is_terminal else Console(width=160)


def _run_folder(recipe: Path, overrides: list[str], run: Path | None) -> Path:
    from autoft.recipe import load_recipe

    return run or Path("runs") / (load_recipe(recipe, overrides).name or "run")


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def main() -> None:
    """Run the command line."""
    app()
