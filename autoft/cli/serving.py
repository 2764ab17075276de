"""Commands that make a model answer over the network: serve."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from autoft.cli.common import app, say, shown, told

if TYPE_CHECKING:
    from autoft.serving.server import Address

Value = TypeVar("Value")


@app.command()
@told
def serve(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="A run folder, or a model that autoft exported.", show_default=False)],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute; default: one a core.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows that are predicted together; default: 32, or 1 where company changes a row's answer."
        ),
    ] = None,
    wait: Annotated[
        str, typer.Option(help="How long the first row of a batch waits for others, as 5ms; 0: not at all.")
    ] = "0",
    queue: Annotated[int, typer.Option(min=1, help="Rows that wait for the model; beyond, the answer is 503.")] = 1024,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows of one request.")] = 256,
    max_characters: Annotated[int, typer.Option(min=1, help="Characters of one field of a row.")] = 100_000,
    max_body: Annotated[str, typer.Option(help="Size of one request, as 10MB.")] = "10MB",
    max_bodies: Annotated[
        str, typer.Option(help="Size of all requests together that have no answer yet, as 100MB.")
    ] = "100MB",
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of one image.")] = 50_000_000,
    timeout: Annotated[str, typer.Option(help="How long a request may take, as 30s.")] = "30s",
    docker: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Serve nothing; write a folder to build an image from, with the model in it."
        ),
    ] = None,
) -> None:
    """Serve a model over HTTP: POST /predict, a page to try it, /health, /metrics, /openapi.json."""
    from autoft.quantities import parse_bytes, parse_seconds
    from autoft.serving import Limits, server

    limits = Limits(
        batch_size=batch_size,
        wait=0.0 if wait.strip() in {"0", "0ms", "0s"} else _quantity("--wait", parse_seconds, wait),
        queue=queue,
        rows=max_rows,
        characters=max_characters,
        body=_quantity("--max-body", parse_bytes, max_body),
        bodies=_quantity("--max-bodies", parse_bytes, max_bodies),
        pixels=max_pixels,
        timeout=_quantity("--timeout", parse_seconds, timeout),
    )
    if docker is not None:
        _refuse_address(context)
        given: dict[str, object] = {"--threads": threads, "--batch-size": batch_size, "--wait": wait, "--queue": queue}
        given |= {"--max-rows": max_rows, "--max-characters": max_characters, "--max-body": max_body}
        given |= {"--max-bodies": max_bodies, "--max-pixels": max_pixels, "--timeout": timeout}
        _write_docker(model, docker, given)
        return
    _log_to_stderr()
    lost = server.serve(model, host=host, port=port, threads=threads, limits=limits, ready=_greet)
    waited = "what waited was answered" if not lost else f"{lost} request{'s' if lost > 1 else ''} got no answer"
    print(f"Stopped; {waited}.")


def _refuse_address(context: typer.Context) -> None:
    from autoft.errors import Fault, RecipeError

    reason = "does not go with --docker: the image listens on port 8000, and docker run -p says where it is reached"
    sources = {f"--{name}": context.get_parameter_source(name) for name in ("host", "port")}
    given = [option for option, source in sources.items() if source is not None and source.name != "DEFAULT"]
    if given:
        raise RecipeError([Fault(option, reason) for option in given], "options")


def _write_docker(model: Path, folder: Path, given: dict[str, object]) -> None:
    from typer.main import get_command

    from autoft.processes import silence_libraries
    from autoft.serving import missing_extra

    try:
        from autoft.serving.docker import write_image_folder
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    silence_libraries()
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]  # typer gives a group, and says that it is a command
    usual = {parameter.opts[0]: parameter.default for parameter in command.params}
    options = [word for name, value in given.items() if value != usual[name] for word in (name, str(value))]
    written = write_image_folder(model, folder, options=options)
    for path in sorted(written.iterdir()):
        print(shown(path))
    print(f"Next: docker build -t model {shown(written)} && docker run --rm -p 127.0.0.1:8000:8000 model")


def _greet(address: Address) -> None:
    say(f"{address.title}\n{address.url}   a page to try it; Ctrl-C ends")
    say(f"Example: {address.example}")
    for warning in address.warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def _quantity(option: str, parse: Callable[[object], Value], text: str) -> Value:
    from autoft.errors import Fault, RecipeError

    try:
        return parse(text)
    except ValueError as error:
        raise RecipeError([Fault(option, str(error))], "options") from None
