"""From data to a recipe: what was found, what was decided and why, and the recipe's text with both as comments."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from autoft.contracts import TaskCard
from autoft.data.sources import load_source
from autoft.drafts.guesses import AMBIGUOUS, Guess, guess_tasks, named_columns
from autoft.drafts.models import (
    GET_A_DECODER,
    Candidate,
    affordable_rows,
    describe,
    installed_models,
    proposed_models,
    time_budget,
    training_seconds,
)
from autoft.drafts.sources import Sources, find_sources
from autoft.drafts.survey import ColumnView, Survey, survey
from autoft.errors import DataError, ModelError, RecipeError, first_line, listed, unknown_name
from autoft.hardware import Hardware
from autoft.plans.planner import make_plan
from autoft.plugins import Catalog
from autoft.quantities import format_seconds
from autoft.recipe import recipe_from_text, yaml_of

__all__ = ["Draft", "Question", "draft_recipe"]

COMPARED = 100_000
"""Rows of a split that are looked through for duplicates, at most."""

TOKENS_A_WORD, TOKENS_A_CHARACTER = 1.4, 1.0
"""What a tokenizer makes of a word, and of a character of a script without spaces, roughly."""

TOKENS_A_PICTURE = 200.0
"""What an encoder makes of a picture, roughly: a ViT cuts 224 pixels into 196 patches of 16."""

QUICK_SECONDS = 900
"""Time up to which a search is drafted as a quick one."""

QUICK_LENGTH, LONGEST = 256, 512
"""Tokens of a row: what ``effort: quick`` reads, and what most encoders read at most."""

IN_WINDOWS = 4 / 3
"""Tokens that are read for each token of a text in several windows: neighbours share about a quarter."""
TRAIN_WINDOWS = "train_windows"
"""Option of tasks that read some windows of a text only while they train."""

OTHER_LANGUAGE = frozenset({"target_language", "target_vocabulary"})
"""Options of tasks whose targets may be in a language that a model which only reads has no tokens for."""
VOCABULARY = 4000
"""Tokens of the decoder that it gets there."""

WRITTEN = 200
"""Validation rows that a draft takes where a CPU has to write a text for each, in every compression of every trial."""

_WHOSE = r"patient|person|user|author|speaker|participant|customer|client|writer|reviewer|student|respondent"
_NUMBER = r"s?(?:[_\s.-]?(?:ids?|no|nr|number|name|key|code))?$"
PERSONS = re.compile(
    rf"(?i)(?:^|[_\s.-])(?:(?:{_WHOSE}){_NUMBER}|(?:subject|group|document|doc|article|session|conversation)[_\s.-]?id$)"
)
GROUPS = re.compile(rf"(?i)(?:^|[_\s.-])(?:{_WHOSE}|subject|group|document|doc|article|session|conversation){_NUMBER}")
"""Names of columns that say whose a row is, or a part of what; where values are no numbers, ``subject`` may be a field."""

FEWEST_GROUPS, LARGEST_GROUP = 20, 0.1
"""Values of a column by which a draft cuts splits, and the share of rows with one of them at most: splits then have their sizes."""

UNEVEN = 3.0
"""How many times more rows the most frequent label has than the rarest before a draft speaks of it."""


@dataclass(frozen=True)
class Question:
    """Something that the data does not say.

    Attributes:
        key: ``task``, or the role whose column is asked for.
        text: the question.
        choices: what can be answered, the likeliest first, each with what speaks for it.
    """

    key: str
    text: str
    choices: tuple[tuple[str, str], ...]


@dataclass
class Draft:
    """A recipe for a data set, and what it was made from.

    Attributes:
        text: of the recipe, YAML with comments.
        task: its name.
        columns: by role, the data's column.
        found: what the data and the machine show, as pairs of a topic and a sentence.
        warnings: what stands between this recipe and a search.
    """

    text: str
    task: str
    columns: dict[str, str]
    found: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def draft_recipe(
    data: Sequence[str],
    catalog: Catalog,
    hardware: Hardware,
    *,
    output: Path,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    model: str | None = None,
    ask: Callable[[Question], str] | None = None,
) -> Draft:
    """Look at data and write a recipe for it. Nothing is trained.

    Args:
        data: one source, or one for each split.
        catalog: the installed plugins.
        hardware: that the search will run on.
        output: the file that the recipe is for; relative sources start from its folder.
        task: its name, where the data need not tell.
        columns: by role, columns that need not be guessed.
        model: to begin with, as a recipe names it.
        ask: answers what the data does not say; without it such data is an error that names the choices.

    Raises:
        DataError: the data cannot be read, no installed task takes it, or it is not clear which does.
        PluginError: the task is not installed.
    """
    sources = find_sources(data, output)
    tables = {name: load_source(source, base=sources.base, where=name) for name, source in sources.given.items()}
    names = [
        *(columns or {}).values(),
        *(name for one in catalog.tasks.values() for c in one.card.columns for name in (c.role, *c.guesses)),
    ]
    seen = survey(tables["train"], named={name.strip().lower() for name in names})
    guess = _decided(catalog, seen, task, dict(columns or {}), ask)
    card = guess.task.card
    drafted = Draft("", card.name, dict(guess.columns))
    for name, table in tables.items():
        absent = [
            column
            for role, column in guess.columns.items()
            if column not in table.column_names and not _optional(card, role)
        ]
        if absent:
            raise DataError(f"{sources.given[name]}: has no column {absent[0]!r}, which the training rows have")
    drafted.found += _about_rows(sources, tables, seen)
    drafted.warnings += [
        f"{other} is not read, for {first} is there too; name the file of each split to say which is which, as autoft init "
        "train.csv val.csv test.csv"
        for other, first in sources.unread
    ]
    drafted.found.append(("task", f"{card.name}: {', '.join(guess.reasons)}"))
    unused = [name for name in seen.names if name not in guess.columns.values()]
    if unused:
        drafted.found.append(("not read", listed(unused)))
    drafted.warnings += _about_header(card, guess, seen)
    drafted.found += _about_values(card, guess, seen)
    drafted.found += _about_duplicates(card, guess, tables)
    about, group = _about_groups(guess, seen, tables)
    drafted.warnings += about
    if group is not None:
        drafted.found.append(("group", f"{group}: splits are cut by it, so that rows of one value are in one split"))
    drafted.found.append(("machine", str(hardware)))

    script = next((v.script for role in _texts(card, guess) if (v := seen.columns[guess.columns[role]]).script), None)
    tokens, longest = _tokens(card, guess, seen)
    choices = _choices(card, model, script, sources.base)
    chosen = choices[0]
    rows = _training_rows(sources, tables)
    seconds = training_seconds(chosen, hardware, rows, _trained_tokens(card, tokens))
    limit = affordable_rows(rows, seconds)
    if limit is not None:
        seconds = seconds * limit / rows
    budget = time_budget(seconds)
    drafted.found.append(("model", f"{chosen.name}, which {chosen.why}{_size(chosen)}"))
    drafted.found.append(
        ("time", f"{_duration(budget)}: one default training takes very roughly {format_seconds(seconds)} here")
    )
    if limit is not None:
        drafted.found.append(("limit", f"{limit:,} of the training rows: all of them would take this machine too long"))
    limits = {"train": limit} if limit is not None else {}
    metric = catalog.metrics_of(guess.task).get(card.metrics[0])
    writes = card.generates and hardware.device == "cpu" and metric is not None and metric.uses == "predictions"
    held_out = tables["validation"].num_rows if "validation" in tables else int(0.15 * tables["train"].num_rows)
    if writes and held_out > WRITTEN:
        limits["validation"] = WRITTEN
        drafted.found.append(
            ("validation", f"{WRITTEN} rows: each trial writes a text for all of them, which takes long here")
        )
    drafted.text = _recipe_text(
        drafted, guess, sources, hardware, choices, budget, seconds, (tokens, longest), seen, limits, group
    )
    _tried(drafted, catalog, hardware, sources, chosen)
    return drafted


def _decided(
    catalog: Catalog,
    seen: Survey,
    task: str | None,
    columns: dict[str, str],
    ask: Callable[[Question], str] | None,
) -> Guess:
    """Return the task and its columns, asking for what cannot be known."""
    unknown = [unknown_name("column", name, seen.columns) for name in columns.values() if name not in seen.columns]
    if unknown:
        raise DataError("; ".join(unknown))
    if task is not None and columns:
        roles = [column.role for column in catalog.task(task).card.columns]
        wrong = [unknown_name(f"role of {task}", role, roles) for role in columns if role not in roles]
        if wrong:
            raise DataError("; ".join(wrong))
    tasks = [catalog.task(task)] if task is not None else list(catalog.tasks.values())
    guesses, refused = guess_tasks(tasks, seen, columns)
    if not guesses or (task is None and guesses[0].score <= 0):
        lines = "\n".join(f"  {name}: {reason.splitlines()[0]}" for name, reason in refused.items())
        hint = "" if task is not None else "; --task NAME says which it should be, --column ROLE=NAME what a column is"
        raise DataError(
            f"no installed task takes rows with the columns {listed(seen.names)}{_unseen(seen)}{hint}\n{lines}"
        )
    best = guesses[0]
    if task is None:
        _refuse_less(best, [catalog.task(name).card for name in refused], seen, refused)
    rivals = [guess for guess in guesses if guess.score >= AMBIGUOUS * best.score]
    if len(rivals) > 1:
        choices = tuple((one.task.card.name, f"{one.task.card.summary}: {', '.join(one.reasons)}") for one in rivals)
        answer = _asked(Question("task", "Which task is this data for?", choices), ask, "--task NAME")
        best = next(guess for guess in rivals if guess.task.card.name == answer)
    for rival in best.rivals:
        if rival.role in columns:
            continue
        choices = tuple((name, _described(seen.columns[name])) for name in rival.columns)
        question = Question(rival.role, f"Which column is {rival.role!r}, {rival.summary}?", choices)
        columns[rival.role] = _asked(question, ask, f"--column {rival.role}=NAME")
        # With one more column known, others may be too.
        return _decided(catalog, seen, best.task.card.name, columns, ask)
    return best


def _refuse_less(best: Guess, cards: Sequence[TaskCard], seen: Survey, refused: Mapping[str, str]) -> None:
    """Raise where the columns are called as those of a task that cannot take them, and the best guess reads only some."""
    for card in cards:
        meant = list(named_columns(card, seen).values())
        if set(best.columns.values()) < set(meant):
            name = best.task.card.name
            raise DataError(
                f"the columns {' and '.join(meant)} are called as those of {card.name}, which cannot take them: "
                f"{refused[card.name].splitlines()[0]}\nIf it is not meant, --task {name} reads "
                f"{' and '.join(best.columns.values())} alone"
            )


def _asked(question: Question, ask: Callable[[Question], str] | None, option: str) -> str:
    if ask is not None:
        return ask(question)
    lines = "\n".join(f"  {value}: {why}" for value, why in question.choices)
    raise DataError(f"{question.text} The data does not say; give {option}, or --yes for the first of\n{lines}")


def _described(view: ColumnView) -> str:
    example = next((str(value) for value in view.values), "")
    words = f"texts of {view.words[0]:.0f} words, " if view.words else ""
    distinct = len({str(value) for value in view.values})
    return f"{words}{distinct} different, as {example[:50]!r}"


def _optional(card: TaskCard, role: str) -> bool:
    return not card.column(role).required


def _texts(card: TaskCard, guess: Guess) -> list[str]:
    """Return the roles with something to read, inputs first."""
    kinds = {"text", "texts", "tokens", "messages"}
    return [c.role for c in (*card.inputs, *card.targets) if c.role in guess.columns and {c.kind, c.looks_like} & kinds]


# -------------------------------------------------------------------------------------------- what was found


def _about_rows(sources: Sources, tables: Mapping[str, pa.Table], seen: Survey) -> list[tuple[str, str]]:
    sizes = ", ".join(f"{name} {table.num_rows:,}" for name, table in tables.items())
    cut = [name for name in ("validation", "test") if name not in tables]
    beside = f" ({' and '.join(sources.beside)} stood beside the file)" if sources.beside else ""
    told = f"{sizes}{beside}" + (f"; {' and '.join(cut)} will be cut from the training rows" if cut else "")
    views = seen.columns
    columns = listed(_column(views[name]) if name in views else name for name in seen.names) + _unseen(seen)
    return [("rows", told), ("columns", columns)]


def _unseen(seen: Survey) -> str:
    """Return what is to be said where not all columns were looked at."""
    unseen = len(seen.names) - len(seen.columns)
    return f"; {unseen:,} were not looked at: --column ROLE=NAME names one of them" if unseen else ""


def _column(view: ColumnView) -> str:
    absent = f" ({view.missing:.0%} empty)" if view.missing > 0.005 else ""
    return f"{view.name}{absent}"


def _about_header(card: TaskCard, guess: Guess, seen: Survey) -> list[str]:
    """Return what is to be said where the names of columns look like values: a file without a line of names loses a row."""
    labels = [name for role, name in guess.columns.items() if card.column(role).kind == "label"]
    prose = any(len(guess.columns[role].split()) > 3 for role in _texts(card, guess))
    named = next((name for name in labels if name in seen.columns[name].labels), None)
    if named is None or not prose:
        return []
    return [
        f"the first line of the data seems to hold values and no names: {named!r} is the name of a column and a value in it. "
        "If so, put a line with names above it, as text,label"
    ]


def _about_values(card: TaskCard, guess: Guess, seen: Survey) -> list[tuple[str, str]]:
    found = []
    for role in guess.columns:
        view, column = seen.columns[guess.columns[role]], card.column(role)
        if column.kind in {"label", "labels", "tags"} and column.target and view.labels:
            found.append(("tags" if column.kind == "tags" else "labels", _balance(view, seen.rows, column.kind)))
        if view.words and role in _texts(card, guess) and not (column.target and view.labels):
            unit = "characters" if view.script and not _spaced(view.script) else "words"
            other = view.script if view.script and view.script != "LATIN" else ""
            # Cyrillic, but CJK.
            script = f", {other if len(other) <= 3 else other.title()}" if other else ""
            found.append(
                (
                    "lengths",
                    f"{role}: {view.words[0]:,.0f} {unit} in the median, 95 % up to {view.words[1]:,.0f}{script}",
                )
            )
    return found


def _spaced(script: str) -> bool:
    from autoft.drafts.survey import UNSPACED

    return not script.startswith(UNSPACED)


def _balance(view: ColumnView, rows: int, kind: str) -> str:
    total = sum(view.labels.values())
    names = list(view.labels)
    shown = ", ".join(f"{name} {view.labels[name] / total:.0%}" for name in names[:4])
    several = " of which rows have several" if kind != "tags" and total > 1.02 * rows else ""
    if len(names) <= 4:
        return f"{len(names)}{several}: {shown}"
    rarest = names[-1]
    return f"{len(names)}{several}: {shown} ... {rarest} {view.labels[rarest]:,} time{'s' if view.labels[rarest] != 1 else ''}"


def _about_duplicates(card: TaskCard, guess: Guess, tables: Mapping[str, pa.Table]) -> list[tuple[str, str]]:
    """Return how many rows repeat the inputs of another, and how many of the held-out ones training has too."""
    names = [guess.columns[column.role] for column in card.inputs if column.role in guess.columns]
    keys = {
        split: [
            json.dumps(row, sort_keys=True, default=str) for row in table.select(names).slice(0, COMPARED).to_pylist()
        ]
        for split, table in tables.items()
        if set(names) <= set(table.column_names)
    }
    trained = Counter(keys["train"])
    repeats = len(keys["train"]) - len(trained)
    told = [f"{_rows(repeats, 'training')} the input of another row"] if repeats else []
    for split in ("validation", "test"):
        leaked = sum(key in trained for key in keys.get(split, ()))
        if leaked:
            are = "is" if leaked == 1 else "are"
            told.append(
                f"{leaked:,} {split} row{'s' if leaked != 1 else ''} {are} in training too, and will be taken out there"
            )
    return [("duplicates", "; ".join(told))] if told else []


def _about_groups(guess: Guess, seen: Survey, tables: Mapping[str, pa.Table]) -> tuple[list[str], str | None]:
    """Return what is to be said of columns that name whose a row is, and the one by which the splits should be cut.

    That is the first which has enough values, none of them with too many rows; of the others is said that rows of one value may
    be in training and held out both.
    """
    told: list[str] = []
    group = None
    for name, view in seen.columns.items():
        whole = all(isinstance(value, int) for value in view.values)
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
        if name in guess.columns.values() or not (PERSONS if not whole else GROUPS).search(words):
            continue
        trained = pc.unique(tables["train"][name])
        if not 1 < len(trained) <= seen.rows / 2:
            continue
        given = [split for split in ("validation", "test") if split in tables and name in tables[split].column_names]
        known = {split: int(pc.sum(pc.is_in(pc.unique(tables[split][name]), trained)).as_py() or 0) for split in given}
        if any(known.values()):
            shared = " and ".join(f"{count:,} of them in {split} too" for split, count in known.items() if count)
            told.append(
                f"{name} has {len(trained):,} different values in training, {shared}: if rows of one are alike, figures are too good "
                "for others"
            )
        elif "test" not in tables:
            most = pc.max(pc.value_counts(tables["train"][name]).field("counts")).as_py()
            if group is None and len(trained) >= FEWEST_GROUPS and most <= LARGEST_GROUP * seen.rows:
                group = name
                continue
            by = "by rows" if group is None else f"by {group}"
            told.append(
                f"{name} has {len(trained):,} different values in {seen.rows:,} rows, and splits are cut {by}: if rows of one are "
                f"alike, figures are too good for others. data.group: {name} in the recipe keeps them in one split"
            )
    return told, group


def _rows(count: int, split: str) -> str:
    return f"{count:,} {split} row repeats" if count == 1 else f"{count:,} {split} rows repeat"


def _tokens(card: TaskCard, guess: Guess, seen: Survey) -> tuple[float, float]:
    """Return how many tokens a row has in the median, and which length 95 % do not exceed, roughly."""
    median = longest = 0.0
    for role in _texts(card, guess):
        view = seen.columns[guess.columns[role]]
        words = view.words
        if words is None:
            lengths = sorted(len(str(value).split()) for value in view.values) or [0]
            words = float(lengths[len(lengths) // 2]), float(lengths[int(0.95 * (len(lengths) - 1))])
        each = TOKENS_A_CHARACTER if view.script and not _spaced(view.script) else TOKENS_A_WORD
        median, longest = median + each * words[0], longest + each * words[1]
    pictures = sum(c.role in guess.columns and "image" in {c.kind, c.looks_like} for c in card.inputs)
    # Of a picture nothing is cut off at a length of texts.
    return max(median, 8.0) + 2 + pictures * TOKENS_A_PICTURE, longest + 2


def _trained_tokens(card: TaskCard, tokens: float) -> float:
    """Return how many tokens a training step reads of a row of so many."""
    if not card.windows or tokens <= LONGEST:
        return min(tokens, LONGEST)
    most = next((option.default for option in card.options if option.name == TRAIN_WINDOWS), None)
    return min(IN_WINDOWS * tokens, LONGEST * most if isinstance(most, int) else math.inf)


def _training_rows(sources: Sources, tables: Mapping[str, pa.Table]) -> int:
    rows = int(tables["train"].num_rows)
    cut = {"validation": 1000, "test": 2000}
    taken = sum(min(most, int(0.15 * rows)) for name, most in cut.items() if name not in tables)
    return max(1, rows - taken)


# ------------------------------------------------------------------------------------------------- the recipe


def _choices(card: TaskCard, model: str | None, script: str | None, base: Path) -> list[Candidate]:
    if model is None:
        found = proposed_models(card, installed_models(), script)
        if not found:
            raise ModelError(
                f"nothing that is installed suits {card.name}, and its plugin names no model; give --model a local folder "
                "or a hub id"
            )
        return found
    folder = next((path for path in (base / model, Path(model).expanduser()) if path.is_dir()), None)
    known = describe(model, folder) if folder else next((one for one in installed_models() if one.name == model), None)
    return [known if known else Candidate(model, "", 0, 0, "was asked for", here=folder is not None)]


def _size(model: Candidate) -> str:
    return f" ({model.parameters / 1e6:,.1f} million parameters)" if model.parameters else ""


def _duration(seconds: int) -> str:
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}h{f'{minutes}m' if minutes else ''}" if hours else f"{minutes}m"


def _recipe_text(
    drafted: Draft,
    guess: Guess,
    sources: Sources,
    hardware: Hardware,
    choices: Sequence[Candidate],
    budget: int,
    seconds: float,
    tokens: tuple[float, float],
    seen: Survey,
    limits: Mapping[str, int],
    group: str | None,
) -> str:
    card, chosen = guess.task.card, choices[0]
    lines = [f"# {card.name}: {card.summary}"]
    lines += [
        # A label may hold a line break, and a comment ends there.
        f"# {topic}: {' '.join(told.split())}"
        for topic in ("rows", "labels", "tags", "lengths", "duplicates")
        for about, told in drafted.found
        if about == topic
    ]
    if card.notice:
        lines.append(f"# {card.notice.splitlines()[0]}")
    lines += ["", f"task: {card.name}", f"name: {yaml_of(_name(sources))}  # of the run: runs/{_name(sources)}", ""]

    lines.append(
        f"# The first is the default fine-tune; a list is searched.{'' if chosen.here else ' Fetched from the hub.'}"
    )
    lines += ["model:", f"  - {yaml_of(chosen.name)}  # {chosen.why}{_size(chosen)}"]
    lines += [f"  # - {yaml_of(other.name)}  # {other.why}{_size(other)}" for other in choices[1:5]]

    lines += ["", "data:"]
    lines += [f"  {split}: {yaml_of(source)}" for split, source in sources.given.items()]
    cut = [name for name in ("validation", "test") if name not in sources.given]
    lines += [
        f"  validation_size: {limits[name]}  # cut from the training rows; each trial writes a text for all of them"
        if name in limits
        else f"  # {name}_size: 0.15  # cut from the training rows; a share, or a number of rows"
        for name in cut
    ]
    if group is not None:
        lines.append(
            f"  group: {yaml_of(group)}  # splits are cut by it: rows with the same value are in the same split"
        )
    lines.append(f"  columns: {yaml_of(dict(guess.columns))}")
    read = {name: count for name, count in limits.items() if name not in cut}
    if read:
        lines.append(
            f"  limit: {yaml_of(read)}  # all rows would take this machine too long; a GPU takes the line away"
        )

    lines += ["", "budget:"]
    lines.append(
        f"  time: {_duration(budget)}  # for everything; a default training takes very roughly {format_seconds(seconds)} on "
        f"{'this GPU' if hardware.device == 'cuda' else 'this machine'}"
    )
    lines += [
        "  # model_size: 25MB  # of all exported files",
        "  # latency: 5ms  # of one request, in the median",
        "  # inference_memory: 600MB  # of a process that serves the model",
    ]
    quick = budget <= QUICK_SECONDS
    lines += [
        "",
        f"effort: {'quick' if quick else 'balanced'}  # quick, balanced or best: what is searched; `autoft explain` lists it",
    ]
    space = []
    if (card.architecture, chosen.kind) in GET_A_DECODER:
        lines.append(
            "pipelines: [head-only]  # the model only reads: a new decoder learns to write, over the frozen model"
        )
        space.append("  train.epochs: [10, 5, 20]  # it begins from nothing")
    needed = QUICK_LENGTH if quick else LONGEST
    half, longest = tokens
    if quick and longest > QUICK_LENGTH and card.architecture != "causal-lm":
        needed = LONGEST
        some = "half of the rows have" if half > QUICK_LENGTH else "one row in twenty has"
        space.append(f"  train.max_length: {LONGEST}  # tokens; {some} more than {QUICK_LENGTH}")
    lines += ["space:", *space] if space else []
    if longest > needed:
        some = "Half of the rows are" if half > needed else "One row in twenty is"
        lines.append(
            f"# {some} longer than the {needed} tokens that are read at once: "
            + ("such texts are read in several windows." if card.windows else "the rest is cut off.")
        )
    lines += _objective(card, guess, seen)
    if card.options:
        lines += ["", "# task_options:"]
        lines += [f"#   {option.name}: {yaml_of(option.default)}  # {option.summary}" for option in card.options]
    if (card.architecture, chosen.kind) in GET_A_DECODER and {option.name for option in card.options} >= OTHER_LANGUAGE:
        lines[lines.index("# task_options:")] = "task_options:"
        lines = [
            f"  target_vocabulary: {VOCABULARY}  # pieces that are found in the targets; the model's own are of another language"
            if line.startswith("#   target_vocabulary:")
            else line
            for line in lines
        ]
    # Values are quoted where they need it; in a comment, as of a label, YAML takes no character that steers a terminal.
    return yaml.reader.Reader.NON_PRINTABLE.sub("", "\n".join([*lines, ""]))


def _objective(card: TaskCard, guess: Guess, seen: Survey) -> list[str]:
    """Return the lines about what is optimised."""
    lines = ["", "# search:", f"#   objectives: {card.metrics[0]}  # or {', '.join(card.metrics[1:4])}"]
    if len(card.metrics) == 1:
        lines[-1] = f"#   objectives: {card.metrics[0]}"
    for column in card.targets:
        view = seen.columns.get(guess.columns.get(column.role, ""))
        if column.kind != "label" or view is None or not view.labels or "f1_macro" not in card.metrics:
            continue
        if "f1_micro" in card.metrics and any(isinstance(value, list) for value in view.values):
            lines[1:] = [
                "search:",
                "  # accuracy counts rows whose labels are all right; f1_macro counts each label alike, however rare",
                f"  objectives: f1_micro  # or {card.metrics[0]}, f1_macro, f1_weighted",
            ]
            continue
        counts = list(view.labels.values())
        if counts[0] > UNEVEN * counts[-1]:
            lines.append(
                f"# The labels are uneven ({counts[0]:,} rows of the most frequent, {counts[-1]:,} of the rarest): f1_macro counts "
                "each alike."
            )
    return lines


def _name(sources: Sources) -> str:
    """Return a name for the run, by the data's: that of the folder where the file is called train."""
    source = sources.train.partition("#")[0].rpartition("://")[2]
    parts = [part.split(".")[0] for part in source.split("/") if part.strip(".")]
    plain = [part for part in parts if part.lower() not in {"train", "training", "data", "dataset"}] or parts
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", plain[-1] if plain else "run").strip("-._")
    return name or "run"


def _tried(draft: Draft, catalog: Catalog, hardware: Hardware, sources: Sources, chosen: Candidate) -> None:
    """Make the plan of a search from the recipe: what does not resolve is told at once and not by the next command."""
    recipe = recipe_from_text(draft.text, source="draft")
    try:
        plan = make_plan(recipe, catalog, hardware, sources.base)
    except (RecipeError, ModelError) as error:
        if chosen.here:
            raise
        # Without the place in a draft that nobody has seen yet.
        told = [fault.message for fault in error.faults] if isinstance(error, RecipeError) else [first_line(error)]
        draft.warnings += [f"the model {chosen.name} was not looked at: {one}" for one in told]
        return
    draft.warnings += plan.warnings
