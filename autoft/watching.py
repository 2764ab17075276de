"""Looking at a run from elsewhere: what ``autoft watch`` prints, from the files of the run folder alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from autoft.progress import RunReader, View, printable, without_nan
from autoft.quantities import format_seconds
from autoft.screen import Picture, forgive_characters, outcome, picture, time_left, tried

__all__ = ["watch"]

GOING = frozenset({"empty", "running"})
"""States after which something may come."""

LISTED = 12
"""Trials that a single picture lists."""


def watch(run: str | Path, stream: TextIO, *, once: bool = False, as_json: bool = False, every: float = 1.0) -> None:
    """Show a run until it ends; nothing is written into its folder.

    On a terminal it is the view of the search itself, elsewhere a line for each trial that ended.

    Args:
        run: the folder.
        stream: where to.
        once: show how it stands now, and no more.
        as_json: an object a line instead, for programs, whenever something changed.
        every: seconds between two looks.

    Raises:
        RunFolderError: there is no such folder.
    """
    reader = RunReader(run)
    forgive_characters(stream)
    console = Console(file=stream)
    if as_json:
        _as_json(reader, stream, once, every)
    elif once:
        _show(console, reader.read(), time.time())
    elif console.is_terminal and not console.is_dumb_terminal:
        _live(reader, console, every)
    else:
        _lines(reader, stream, every)


def _show(console: Console, view: View, now: float) -> None:
    """Print a view as large as it is, and its notes."""
    width = console.width if console.is_terminal else 120
    plain = console.options.ascii_only
    bare = picture(view, width, 1000, now, plain=plain, history=False)
    lines = picture(view, width, len(bare) + 1 + min(len(view.results), LISTED), now, plain=plain)
    wide = Console(file=console.file, width=width, force_terminal=console.is_terminal, no_color=console.no_color)
    wide.print(Group(*lines, *_notes(view)))


def _notes(view: View) -> list[Text]:
    return [Text(f"note: {printable(note)}", style="yellow") for note in view.notes]


def _live(reader: RunReader, console: Console, every: float) -> None:
    view = reader.read()
    with Live(get_renderable=lambda: Picture(view), console=console, auto_refresh=False, transient=True) as live:
        while view.state in GOING:
            live.refresh()
            time.sleep(every)
            view = reader.read()
    _show(console, view, time.time())


def _as_json(reader: RunReader, stream: TextIO, once: bool, every: float) -> None:
    last = ""
    while True:
        view, now = reader.read(), time.time()
        text = json.dumps(without_nan(view.to_json(now)), allow_nan=False)
        written = view.progress.written if view.progress else 0.0
        key = f"{view.state} {written} {len(view.results)}"
        if key != last:
            print(text, file=stream, flush=True)
        last = key
        if once or view.state not in GOING:
            return
        time.sleep(every)


def _lines(reader: RunReader, stream: TextIO, every: float) -> None:
    told: set[int] = set()
    state = ""
    while True:
        view, now = reader.read(), time.time()
        for result in view.results:
            if result.number not in told and view.plan is not None:
                seconds = format_seconds(result.seconds.get("total", 0.0))
                line = f"trial {result.number} ended after {seconds}: {outcome(result, view.plan)}; {tried(result)}"
                print(printable(line), file=stream, flush=True)
                told.add(result.number)
        if view.state != state:
            left = time_left(*view.progress.left(now)) if view.progress and view.state == "running" else ""
            words = [view.state, view.process, left, view.progress.reason if view.progress else ""]
            print(printable("; ".join(word for word in words if word)), file=stream, flush=True)
            state = view.state
        if view.state not in GOING:
            for note in view.notes:
                print(printable(f"note: {note}"), file=stream, flush=True)
            return
        time.sleep(every)
