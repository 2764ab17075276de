"""A run drawn for a terminal of any size: each line stands for itself, and the least important ones go first.

:func:`picture` is what both the live display of a search and ``autoft watch`` show.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.text import Text

from autoft.plans.plan import Plan
from autoft.progress import Activity, View, printable
from autoft.quantities import format_seconds
from autoft.report.trials import STATES
from autoft.report.views import column_title, cost_text
from autoft.rundir import Candidate, TrialConfig, TrialResult, TrialState

__all__ = [
    "Picture",
    "about",
    "bar",
    "clock",
    "counts_text",
    "describe",
    "fitted",
    "forgive_characters",
    "outcome",
    "picture",
    "sparkline",
    "time_left",
    "trial_line",
    "tried",
]

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.:-=+*#"

COLOURS: dict[TrialState, str] = {"complete": "green", "pruned": "yellow", "infeasible": "magenta", "failed": "red"}

COURSE = ("prepare data", "measure models", "screen", "search", "finalists", "export", "test", "report")
"""The phases that a run mostly goes through; ``screen``, ``finalists`` and others are shown once they came."""

ALWAYS = frozenset({"prepare data", "measure models", "search", "export", "test", "report"})

ROOMY = 14
"""Rows from which on there is room for what is only pleasant to know."""

NARROW = 50
"""Columns below which words give way to figures."""


@dataclass(frozen=True)
class Line:
    """One line, and how soon it goes where there are too few rows: the largest first."""

    text: Text
    rank: int


class Picture:
    """A view as rich draws it, as large as the terminal is at that moment.

    Args:
        view: of the run.
        spare: rows to leave free, of the height of the terminal.
        now: seconds since 1970; default: when it is drawn.
        history: whether trials that are done are listed where there is room; a search prints them above.
    """

    def __init__(self, view: View, *, spare: int = 1, now: float | None = None, history: bool = True) -> None:
        self.view, self.spare, self.now, self.history = view, spare, now, history

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = max(1, (options.height or console.size.height) - self.spare)
        plain = options.ascii_only
        now = time.time() if self.now is None else self.now
        yield Group(*picture(self.view, options.max_width, height, now, plain=plain, history=self.history))


def picture(
    view: View, width: int, height: int, now: float, *, plain: bool = False, history: bool = True
) -> list[Text]:
    """Return the lines that show a run: at most ``height``, each at most ``width`` cells wide.

    Args:
        view: of the run.
        width: cells.
        height: lines.
        now: seconds since 1970.
        plain: only ASCII characters.
        history: list trials that are done where there is room.
    """
    parts = [
        _head(view, width, height, now, plain),
        _objective(view, width, plain),
        _front(view, width),
        _workers(view, width, now, plain),
        _foot(view, width),
    ]
    blank = Line(Text(), 10)
    lines = [line for part in parts if part for line in [*part, blank]][:-1]
    if history:
        kept = min(len(view.results), max(0, height - len(lines) - 1))
        lines += [blank] if kept else []
        lines += [
            Line(trial_line(view.plan, result, width), 9) for result in list(view.results)[len(view.results) - kept :]
        ]
    ranks = sorted(range(len(lines)), key=lambda place: (lines[place].rank, place))[:height]
    shown = [lines[place].text for place in sorted(ranks)]
    if plain:
        shown = [Text(line.plain.encode("ascii", "replace").decode(), spans=line.spans) for line in shown]
    for line in shown:
        line.no_wrap, line.overflow = True, "ellipsis"
        line.truncate(width, overflow="crop" if plain else "ellipsis")
    return shown


def fitted(parts: Sequence[tuple[str, str, int]], width: int, gap: str = "  ") -> Text:
    """Return parts side by side, without those that have no room: the highest rank goes first.

    Args:
        parts: text, style and rank of each; rank 0 always stays, and is cut at the end where it must be.
        width: cells.
        gap: between two parts.
    """
    left = [part for part in parts if part[0]]
    while sum(cell_len(part[0]) for part in left) + len(gap) * (len(left) - 1) > width:
        droppable = [part for part in left if part[2] > 0]
        if not droppable:
            break
        left.remove(max(reversed(droppable), key=lambda part: part[2]))
    line = Text()
    for place, (text, style, _) in enumerate(left):
        line.append(gap if place else "")
        line.append(text, style=style)
    return line


def sparkline(values: Sequence[float], width: int, plain: bool = False) -> str:
    """Return figures as a row of blocks, the lowest as the lowest one.

    Args:
        values: finite figures, in their order.
        width: cells at most; of more figures, the last of each part is shown.
        plain: ASCII characters.
    """
    blocks = ASCII_BLOCKS if plain else BLOCKS
    if not values or width <= 0:
        return ""
    if len(values) > width:
        values = [values[(place + 1) * len(values) // width - 1] for place in range(width)]
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(1.0, abs(high)):
        return blocks[3] * len(values)
    return "".join(blocks[min(7, int((value - low) / (high - low) * 8))] for value in values)


def bar(share: float, width: int, plain: bool = False) -> str:
    """Return a bar of which a share is full."""
    done = round(max(0.0, min(1.0, share)) * width)
    full, empty = ("#", ".") if plain else ("━", "╌")
    return full * done + empty * (width - done)


def about(seconds: float) -> str:
    """Return an estimated duration, no finer than it is known."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"{5 * round(seconds / 5)} s"
    minutes = seconds / 60
    if minutes < 10:
        half = round(2 * minutes) / 2
        return f"{half:g} min"
    if minutes < 90:
        return f"{round(minutes)} min"
    hours = minutes / 60
    return f"{round(2 * hours) / 2:g} h" if hours < 48 else f"{round(hours / 24)} days"


def forgive_characters(stream: TextIO) -> None:
    """Have a stream write a question mark for what its encoding has not: no label is worth an error."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def clock(seconds: float) -> str:
    """Return a time that goes on, as a clock shows it: ``4:07``, ``2:05:00``."""
    whole = max(0, int(seconds))
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def time_left(expected: float | None, budget: float | None) -> str:
    """Return the time left in words: what is expected, and what it is at most by the budget.

    Args:
        expected: seconds until the command is thought to end; None where nothing is known.
        budget: seconds of its time that are left, below 0 where it is used up; None without a limit.
    """
    if budget is not None and budget <= 0:
        return f"over its time by {format_seconds(-budget)}" if budget < -1 else "its time is up"
    if expected is None:
        return f"at most {about(budget)} left" if budget is not None else ""
    words = f"about {about(expected)} left"
    if budget is not None and budget < 10 * max(60.0, expected) and about(budget) != about(expected):
        words += f" (at most {about(budget)})"
    return words


def describe(config: TrialConfig) -> str:
    """Return a configuration in a few words: model, pipeline and what differs most between trials."""
    model = config.model.rstrip("/").rsplit("/", 2)
    short = model[-1] if len(model) < 2 or model[-1] not in {"model", "best"} else model[-2]
    rate = next((value for name, value in config.params.items() if name.endswith(".learning_rate")), None)
    epochs = config.params.get("train.epochs")
    words = [short.removeprefix("package:").strip("/"), config.pipeline]
    if epochs is not None:
        words.append(f"{epochs} epoch{'' if epochs == 1 else 's'}")
    if isinstance(rate, float):
        words.append(f"lr {rate:.2g}")
    chosen = (config.params.get(name) for name in ("augment", "regularize"))
    words += [str(value) for value in chosen if value not in {None, "none"}]
    if config.kind == "seed":
        words.append(f"trial {config.parent} with seed {config.seed}")
    if config.kind in {"soup", "ensemble"}:
        what = "weights" if config.kind == "soup" else "predictions"
        return f"averaged {what} of trials {', '.join(map(str, config.members))}"
    if config.kind == "compress":
        return f"trial {config.members[0]} made smaller and trained again"
    if config.kind == "fold":
        words.append(f"trial {config.parent} on fold {config.fold + 1}")
    return printable(", ".join(words))


def tried(result: TrialResult) -> str:
    """Return what a trial was, as :func:`describe`; of one that did not fit before anything was trained, the model alone."""
    text = describe(result.config)
    return text.split(",")[0] if result.state == "infeasible" and not result.curve and not result.seconds else text


def outcome(result: TrialResult, plan: Plan) -> str:
    """Return how a trial ended, in one line."""
    if result.state != "complete":
        state = STATES[result.state]
        return f"{state}: {printable(result.reason)}" if result.reason else state
    done = [
        v
        for v in result.variants
        if v.state == "complete" and math.isfinite(v.validation.get(plan.objective, math.nan))
    ]
    if not done:
        value = result.validation.get(plan.objective, math.nan)
        figure = f"{value:.4f}" if math.isfinite(value) else "not defined"
        why = result.reason or ("no variant has a figure" if result.variants else "no variant was made")
        return f"{plan.objective} {figure}, {printable(why)}"
    sign = 1 if plan.higher_is_better else -1
    best = max(done, key=lambda variant: sign * variant.validation[plan.objective])
    size, latency = best.costs.get("model_size_bytes"), best.costs.get("latency_p50_ms")
    text = f"{plan.objective} {best.validation[plan.objective]:.4f} ({best.name}"
    if size and latency:
        text += f", {cost_text('model_size_bytes', size)}, {cost_text('latency_p50_ms', latency)}"
    smallest = min(done, key=lambda variant: variant.costs.get("model_size_bytes", 0))
    costs = smallest.costs
    # Of a further fold only quality is measured.
    if smallest is not best and {"model_size_bytes", "latency_p50_ms"} <= set(costs):
        text += (
            f"); smallest {smallest.validation[plan.objective]:.4f} ({smallest.name}, "
            f"{cost_text('model_size_bytes', costs['model_size_bytes'])}, "
            f"{cost_text('latency_p50_ms', costs['latency_p50_ms'])}"
        )
    return text + ")"


def counts_text(counts: dict[TrialState, int]) -> str:
    """Return how many trials ended in each way."""
    return ", ".join(f"{count} {STATES[state]}" for state, count in counts.items() if count)


# -- the parts ----------------------------------------------------------------------------------------------------


def _head(view: View, width: int, height: int, now: float, plain: bool) -> list[Line]:
    dot = " - " if plain else " · "
    parts = [(printable(view.name), "bold", 0)]
    if view.plan is not None:
        limits = ", ".join(f"{limit.key.replace('_', ' ')} {limit.given}" for limit in view.plan.budget)
        parts += [
            (view.plan.task, "", 1),
            (view.plan.objective + ("" if view.plan.higher_is_better else ", lower is better"), "", 3),
            (view.plan.time_text.removesuffix(" 00 s").removesuffix(" 00 min"), "dim", 4),
            (printable(limits), "dim", 2),
        ]
    lines = [Line(fitted(parts, width, dot), 5)]
    if view.state != "running" or view.process:
        lines.append(Line(_state_line(view, width), 0 if view.state != "running" else 6))
    if view.state == "running" and view.progress is not None:
        if height >= ROOMY:
            lines.append(Line(_course(view, width, plain), 7))
        lines.append(Line(_time_line(view, width, now, plain), 1))
    return lines


def _state_line(view: View, width: int) -> Text:
    reason = f": {view.progress.reason}" if view.progress and view.progress.reason else ""
    took = f" after {format_seconds(view.seconds)}" if view.seconds else ""
    match view.state:
        case "running":
            return fitted([("running", "green", 0), (view.process, "dim", 1)], width)
        case "finished":
            text, style = f"finished{took}{reason}", "green"
        case "stopped":
            text, style = f"stopped{took} by its user; the same command goes on", "yellow"
        case "failed":
            text, style = f"ended with an error{reason}", "red"
        case "cut off":
            text, style = f"cut off{took}: no process is at it; the same command goes on", "red"
        case _:
            text, style = "no search has begun here", "yellow"
    held = f"held by {view.process}" if view.process else ""
    return fitted([(text, style, 0), (held, "dim", 1)], width)


def _course(view: View, width: int, plain: bool) -> Text:
    assert view.progress is not None
    seen, current = view.progress.phases, view.progress.phase
    order = [*seen, *(name for name in COURSE if name in ALWAYS and name not in seen)]
    place = order.index(current) if current in order else 0
    done = "+" if plain else "✓"
    parts = []
    for number, name in enumerate(order):
        if name == current:
            parts.append((f"{'>' if plain else '▸'} {name}", "bold cyan", 0))
        elif number < place or (name in seen and name != current):
            parts.append((f"{done} {name}", "green", place - number + 2 if number < place else 2))
        else:
            parts.append((name, "dim", number - place))
    return fitted(parts, width, "  ")


def _time_line(view: View, width: int, now: float, plain: bool) -> Text:
    progress = view.progress
    assert progress is not None
    expected, budget = progress.left(now)
    limit = progress.time_limit
    spent = now - progress.began
    if not progress.asked and limit is not None:
        # No trial is done yet: the limit is all that is known.
        budget = limit - spent if not progress.resumed else None
    # Between the phases that say how long they will take, one that says nothing is not late yet.
    whole = spent + expected if expected is not None else limit
    words = time_left(expected, budget)
    shorter, _, most = words.partition(" (")
    parts = [(progress.phase, "bold", 0)]
    if whole:
        share = spent / whole
        parts.append((bar(min(share, 0.99), min(30, max(10, width // 4)), plain), "cyan", 2))
    parts.append((shorter or f"for {clock(spent)}", "", 1))
    if most:
        parts.append((f"({most}", "", 3))
    if words:
        parts.append((f"{clock(spent)} so far", "dim", 4))
    return fitted(parts, width)


def _objective(view: View, width: int, plain: bool) -> list[Line]:
    told, plan = view.figures, view.plan
    if plan is None or (told.best is None and told.last is None):
        return []
    found = []
    if told.best is not None:
        spark = sparkline(told.best_so_far, min(40, max(8, width // 3)), plain)
        found.append(
            Line(
                fitted(
                    [
                        (f"best {told.best.objective:.4f}", "bold green", 0),
                        (_against(told.best.objective, told.default, plan, told.best.trial), "", 2),
                        (spark, "cyan", 1),
                        (
                            f"trial {told.best.trial}, {told.best.variant}" if told.best.trial else told.best.variant,
                            "dim",
                            3,
                        ),
                    ],
                    width,
                ),
                2,
            )
        )
    else:
        found.append(Line(Text("nothing fits the budget yet", style="yellow"), 2))
    if told.last is not None:
        number, value = told.last
        against = _against(value, told.default, plan, number)
        parts = [(f"last {value:.4f}", "", 0), (against, "", 1), (f"trial {number}" if number else "", "dim", 2)]
        if told.default is not None and number:
            parts.append((f"default {told.default:.4f}", "dim", 3))
        found.append(Line(fitted(parts, width), 6))
    return found


def _against(value: float, default: float | None, plan: Plan, trial: int) -> str:
    if trial == 0:
        return "trial 0, the default"
    if default is None:
        return ""
    # Where less is better, a minus is good; the words say which it is.
    gain = value - default
    if abs(gain) < 5e-5:
        return "as trial 0"
    better = (gain > 0) == plan.higher_is_better
    return f"{gain:+.4f} against trial 0" + ("" if better == (gain > 0) else (" (better)" if better else " (worse)"))


def _front(view: View, width: int) -> list[Line]:
    told, plan = view.figures, view.plan
    if plan is None or not told.front:
        return []
    columns = ["model_size_bytes", "latency_p50_ms"]
    # A narrow terminal has room for the size; a limit that is on something else is shown where there is room.
    columns += [limit.column for limit in plan.budget if limit.column not in {*columns, "train_memory_bytes"}]
    columns = [column for column in columns if any(column in one.costs for one in told.front)]
    shares = {"model_size_bytes": "size", "latency_p50_ms": "latency"}
    heads = [plan.objective, *(shares.get(column, column_title(column)) for column in columns)]
    rows = [[f"{one.objective:.4f}", *(cost_text(c, one.costs.get(c)) for c in columns)] for one in told.front]
    widths = [max(cell_len(row[place]) for row in [heads, *rows]) for place in range(len(heads))]
    labels = [_point(one, told.chosen, width) for one in told.front]
    head = "best that fit" if width >= NARROW else "  fits"
    longest = max(cell_len(label) for label in [head, *labels])
    while len(widths) > 1 and sum(widths) + 2 * len(widths) + min(longest, 24) > width:
        widths.pop()
    names = max(1, min(longest, width - sum(widths) - 2 * len(widths)))

    def row(label: str, cells: Sequence[str], style: str = "") -> Text:
        line = Text(style=style)
        name = Text(label)
        name.truncate(names, overflow="ellipsis", pad=True)
        line.append_text(name)
        for cell, wide in zip(cells, widths, strict=False):
            line.append(" " * (2 + wide - cell_len(cell)) + cell)
        return line

    lines = [Line(row(head, heads, "dim"), 4)]
    for place, (one, label, cells) in enumerate(zip(told.front, labels, rows, strict=True)):
        ships = told.chosen is not None and (one.trial, one.variant) == (told.chosen.trial, told.chosen.variant)
        lines.append(Line(row(label, cells, "bold" if ships else ""), 4 if ships else 5 + place))
    return lines


def _point(one: Candidate, chosen: Candidate | None, width: int) -> str:
    mark = "> " if chosen is not None and (one.trial, one.variant) == (chosen.trial, chosen.variant) else "  "
    return f"{mark}{'trial ' if width >= NARROW else ''}{one.trial} {one.variant}"


def _workers(view: View, width: int, now: float, plain: bool) -> list[Line]:
    if view.state != "running" or view.progress is None:
        return []
    lines = []
    several = len(view.progress.activities) > 1
    for place, one in enumerate(view.progress.activities):
        rank = 3 if place < 4 else 8
        line, what = _worker_line(view, one, width, now, plain, several), describe(one.config)
        lines.append(Line(line, rank))
        if what not in line.plain:
            lines.append(Line(Text(f"  {what}", style="dim"), 9))
    return lines


def _worker_line(view: View, one: Activity, width: int, now: float, plain: bool, several: bool) -> Text:
    parts = [(f"worker {one.worker}" if several else "", "dim", 5), (f"trial {one.trial}", "bold", 0)]
    stage = printable(one.stage)
    left = one.seconds_left(now)
    if one.stage == "train" and one.total:
        share = one.samples / one.total
        parts += [
            (f"{stage} {bar(share, 10, plain)} {share:.0%}", "cyan", 0),
            (f"{about(left)} to train" if left is not None else "", "", 2),
            (f"{view.plan.objective} {one.value:.4f}" if view.plan and one.value is not None else "", "", 1),
            (f"{one.rate:.0f} samples/s" if one.rate >= 1 else f"{one.rate:.2g} samples/s", "dim", 6),
        ]
    else:
        seconds = max(0.0, now - one.stage_began)
        parts += [(stage, "cyan", 0), (f"for {clock(seconds)}" if seconds >= 2 else "", "", 1)]
    parts.append((describe(one.config), "dim", 4))
    return fitted(parts, width)


def _foot(view: View, width: int) -> list[Line]:
    lines = []
    told = view.figures
    limit = view.plan.trials_limit if view.plan else None
    if told.ended or view.results:
        # What a user added takes nothing of the limit.
        counted = sum(result.config.limited for result in view.results)
        total = f"{counted} of {limit} trials" if limit else f"{told.ended} trial{'' if told.ended == 1 else 's'}"
        lines.append(Line(fitted([(total, "", 0), (counts_text(told.counts), "dim", 1)], width, ": "), 3))
    notes = view.notes
    if notes and view.state == "running":
        many = f"{len(notes)} note{'' if len(notes) == 1 else 's'}"
        lines.append(Line(fitted([(f"{many} at the end", "yellow", 0), (printable(notes[-1]), "dim", 1)], width), 8))
        if cell_len(printable(notes[-1])) + cell_len(many) + 12 > width:
            lines[-1] = Line(Text(f"{many}, shown at the end", style="yellow"), 8)
    return lines


def trial_line(plan: Plan | None, result: TrialResult, width: int) -> Text:
    """Return a trial that is done on one line, where that is wide enough for how it ended.

    Args:
        plan: of the search; without it only the state is told.
        result: of the trial.
        width: cells.
    """
    text = outcome(result, plan) if plan is not None else STATES[result.state]
    best, also, smallest = text.partition("; smallest ")
    return fitted(
        [
            (f"trial {result.number:>3}", "bold", 0),
            (best, COLOURS[result.state], 0),
            (f"smallest {smallest}" if also else "", COLOURS[result.state], 3),
            (format_seconds(result.seconds.get("total", 0.0)), "dim", 1),
            (tried(result), "dim", 2),
        ],
        width,
    )
