"""The commands: parse, call one function, print, exit code. Everything heavy is imported inside them."""

from __future__ import annotations

from typing import Annotated

import typer

# In this order the commands stand in `autoft --help`, so that it is not sorted; importing is what registers them, so that no
# name is used.
from autoft.cli import starting, searching, watching, models, serving, exporting, runs, plugins, machine  # isort: skip  # noqa: F401
from autoft.cli.common import app
from autoft.version import __version__

__all__ = ["app", "main"]


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


def main() -> None:
    """Run the command line."""
    app()
