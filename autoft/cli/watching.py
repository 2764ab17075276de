"""Commands that look at a run, also while it goes on: watch, dashboard."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from autoft.cli.common import RunFolder, app, told


@app.command()
@told
def watch(
    run: RunFolder,
    once: Annotated[bool, typer.Option("--once", help="Show how it stands now, and end.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Show a search that runs in another terminal, or how one ended; Ctrl-C ends the looking, not the search."""
    from autoft.watching import watch as look

    try:
        look(run, sys.stdout, once=once, as_json=as_json, every=every)
    except KeyboardInterrupt:
        # The usual end of looking; the search knows nothing of it.
        return


@app.command()
@told
def dashboard(
    run: RunFolder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0 takes one that is free.")] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than this machine see the run then.")
    ] = "127.0.0.1",
) -> None:
    """Show a run in Optuna's dashboard, in the browser; what is done there changes nothing in the run."""
    from autoft.dashboard import Dashboard

    server = Dashboard(run).server(host, port)
    name = f"[{host}]" if ":" in host else host
    print(f"Optuna's dashboard on {run}: http://{name}:{server.server_port}/dashboard (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return
    finally:
        server.server_close()
