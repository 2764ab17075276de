"""What commands share: their application, arguments that many take, errors told to the user, the console."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

__all__ = ["AsJson", "Overrides", "RecipeFile", "RunFolder", "app", "console", "run_folder", "say", "shown", "told"]

app = typer.Typer(
    name="autoft",
    help="Search, fine-tune and compress transformers until they fit your hardware.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

P = ParamSpec("P")
RecipeFile = Annotated[Path, typer.Argument(help="A recipe file.", show_default=False)]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, as budget.time=5m; repeatable.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def told(function: Callable[P, None]) -> Callable[P, None]:
    """Turn an error that a user can act upon into its message and its exit code."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from autoft.errors import AutoftError, without_controls

        try:
            function(*args, **kwargs)
        except AutoftError as error:
            print(f"error: {without_controls(str(error))}", file=sys.stderr)
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
            print(f"error: {without_controls(str(what))}: {reason}", file=sys.stderr)
            raise typer.Exit(5) from None
        except typer.Exit:
            raise
        except (Exception, SystemExit) as error:
            _tell_of_plugin(error)
            raise

    return run


def _tell_of_plugin(error: BaseException) -> None:
    """Tell of an error that comes from a hook of a plugin in one line, with the place for its author, and end; else do nothing."""
    import traceback

    from autoft.errors import PluginError, without_controls
    from autoft.plugins import described, hook_of

    if hook_of(error.__traceback__) is None:
        return
    place = traceback.extract_tb(error.__traceback__)[-1]
    print(f"error: {without_controls(described(error))}, {place.filename}:{place.lineno}", file=sys.stderr)
    raise typer.Exit(PluginError.exit_code) from None


def console() -> Any:
    """Return rich's console for standard output, which prints no text that steers the terminal."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    from autoft.errors import without_controls

    class Harmless(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else without_controls(text), style, control)

    # A name in brackets is a name, and no style.
    found = Harmless(markup=False)
    # On a pipe there is no width to keep to: tables must not be cut.
    return found if found.is_terminal else Harmless(markup=False, width=160)


def say(text: str) -> None:
    """Print a line with names from data, models or plugins in it, without what steers the terminal."""
    from autoft.errors import without_controls

    print(without_controls(text), flush=True)


def run_folder(recipe: Path, overrides: list[str], run: Path | None) -> Path:
    """Return the folder that a search of the recipe uses."""
    from autoft.recipe import load_recipe

    return run or Path("runs") / (load_recipe(recipe, overrides).name or "run")


def shown(path: Path) -> Path:
    """Return a path as a user types it: below the current folder without it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
