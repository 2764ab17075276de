"""The recipe: what a user asks for, checked as a whole.

:func:`load_recipe` reads a YAML file and reports every fault of form at once. Names of tasks, models, strategies and
parameters are resolved later, in :mod:`autoft.plans`, where the installed plugins are known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from autoft.errors import DataError, Fault, RecipeError, closest, without_passwords
from autoft.lines import Lines, marked, read_yaml
from autoft.quantities import parse_bytes, parse_multiple, parse_seconds
from autoft.study_addresses import study_address

__all__ = [
    "AuxiliarySection",
    "BudgetSection",
    "DataSection",
    "ExecutorSection",
    "LatencyLimit",
    "LauncherSection",
    "Recipe",
    "SearchSection",
    "StorageSection",
    "dump_recipe",
    "load_recipe",
    "read_plain_yaml",
    "recipe_from_mapping",
    "recipe_from_text",
    "recipe_schema",
    "schema_line",
    "set_key",
    "yaml_of",
]


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


LARGEST = 1_000_000
"""Bytes that are read of a recipe: one of a megabyte is something else, as a data file."""

SHORT = {"data": "train", "executor": "kind", "storage": "study"}
"""By section that may be a single text, which of its keys that is."""

Names = Annotated[
    list[str],
    BeforeValidator(_one_or_many, json_schema_input_type=str | list[str]),
    Field(min_length=1),
]
Duration = Annotated[str, BeforeValidator(lambda value: (parse_seconds(value), value)[1])]
TimeBudget = Annotated[
    str, BeforeValidator(lambda value: value if parse_multiple(value) else (parse_seconds(value), value)[1])
]
Size = Annotated[str, BeforeValidator(lambda value: (parse_bytes(value), value)[1])]
SpaceValue = Any


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)


class DataSection(_Section):
    """Where the data is and how to read it."""

    train: str
    """A local csv, tsv, json, jsonl, parquet or arrow file (.gz too) or `save_to_disk` folder; `hub://owner/name@revision#split`; or `package://module/path`."""
    validation: str | None = None
    """The split that drives the search. Cut from `train` where it is absent."""
    test: str | None = None
    """The split that is scored once, after the selection. Cut from `train` where it is absent."""
    columns: dict[str, str] = {}
    """The data's column for each role of the task, as `{text: sentence, label: polarity}`; guessed where absent."""
    where: dict[str, str | int | float | bool | list[str | int | float | bool]] = {}
    """Keep only rows whose column has this value, or one of these."""
    validation_size: float | int | None = None
    """How much of `train` becomes the validation split: a share below 1 or a number of rows. Default: 15 %, at most 1000 rows."""
    test_size: float | int | None = None
    """How much of `train` becomes the test split: a share below 1 or a number of rows. Default: 15 %, at most 2000 rows."""
    limit: int | dict[Literal["train", "validation", "test"], int] | None = None
    """Read at most this many rows of the training split, or of each split named; drawn at random with the seed."""
    deduplicate: bool = True
    """Take rows of the validation and test splits out of the training split, and exact duplicates out of each cut."""
    group: str | None = None
    """Rows with the same value in this column, as one patient's, are in the same split where splits are cut, and in the same fold."""
    slices: list[str] = []
    """Columns by whose values the report tells the test figures too, as where a row comes from; the model does not see them."""

    @model_validator(mode="after")
    def _positive(self) -> DataSection:
        sizes = {"validation_size": self.validation_size, "test_size": self.test_size}
        for name, size in sizes.items():
            if size is not None and size <= 0:
                raise ValueError(f"{name} must be above 0, given {size}")
            if isinstance(size, float) and size >= 1:
                raise ValueError(f"{name} is a share below 1 or a whole number of rows, given {size}")
        limits = self.limit.values() if isinstance(self.limit, dict) else [self.limit]
        if any(limit is not None and limit <= 0 for limit in limits):
            raise ValueError(f"limit must be above 0, given {self.limit}")
        if self.test is not None and self.test == self.validation:
            raise ValueError("test and validation are the same data; the test split must not drive the search")
        return self


class LatencyLimit(_Section):
    """A limit on the time of one request, and what a request is."""

    p50: Duration | None = None
    """Half of the requests take at most this."""
    p95: Duration | None = None
    """95 % of the requests take at most this."""
    batch_size: int = Field(default=1, ge=1)
    """Rows a request."""
    length: int | None = Field(default=None, ge=1)
    """Measure on the validation rows nearest to this many tokens; default: rows as they come."""


def _latency(value: object) -> object:
    if isinstance(value, Mapping):
        return value
    parse_seconds(value)
    return {"p50": value}


class BudgetSection(BaseModel):
    """Limits. Every cost metric of a plugin is a key too."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)

    time: TimeBudget = "1h"
    """For the whole command: search, export, test and report. `4x` is four times one default training, by its estimate."""
    trials: int | None = Field(default=None, ge=1)
    """At most this many trials in all, those of earlier calls of the same run counted."""
    model_size: Size | None = None
    """Of all exported files of the model."""
    latency: Annotated[LatencyLimit, BeforeValidator(_latency, json_schema_input_type=str | LatencyLimit)] | None = None
    """Of one request: a duration for the median, or `{p50, p95, batch_size, length}`."""
    train_memory: Size | None = None
    """Peak memory of a training process: of the GPU where there is one, else resident."""
    inference_memory: Size | None = None
    """Peak resident memory of a process that serves the model, libraries included."""
    target: str | None = None
    """A profile of the device that the model is for, as `autoft hardware --measure` writes it there; default: this machine."""


class SearchSection(_Section):
    """How the search goes."""

    sampler: Literal["tpe", "gp", "cmaes", "nsga2", "random", "grid", "qmc"] = "tpe"
    """Optuna's sampler; tpe is multivariate and grouped."""
    early_stopping: Literal["halving", "hyperband", "median", "wilcoxon", "none"] | None = None
    """What stops trials that fall behind at a validation; default: halving, with several objectives none."""
    objectives: Names | None = None
    """What is optimised: a quality metric, and optionally cost metrics beside it; default: the task's first metric."""
    like: str | None = None
    """An earlier run of this task, broken off or not: its best configurations are tried right after the default."""
    portfolio: bool = True
    """Try settings early that served other data sets well, where some are known for the task and the model's size."""
    validation_rows: Annotated[int, Field(ge=1)] | Literal["auto", "all"] = "auto"
    """How many validation rows, the same in all trials, decide within a training; its best checkpoint is judged on all."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of sampling, splits and the first training of each configuration."""
    tolerance: float = Field(default=0.01, ge=0)
    """Among the variants whose objective is within this of the best, the cheapest is chosen; a share of a best above 1."""
    finalist_seeds: int = Field(default=2, ge=0)
    """Further seeds that the finalists are trained with, where the time allows; none with `folds`."""
    quantization_aware: Literal["auto", "never"] = "auto"
    """Train the best trial's model again for a quantization that costs it more than `tolerance`, where the time allows."""
    ensemble: int | None = Field(default=None, ge=0)
    """Average the weights, and the predictions, of up to so many of the best trials as further candidates; default: by effort."""
    folds: int = Field(default=1, ge=1)
    """Train each configuration so many times, validate on another part of the rows each time, and compare the means."""


class ExecutorSection(_Section):
    """Where trials run."""

    kind: Literal["local", "ray"] = "local"
    """On this machine, or on the nodes of a Ray cluster; `executor: ray` is short for this key alone."""
    address: str | None = None
    """Of the Ray cluster: `auto` on one of its machines, or `host:port` of its head; default: a cluster of this machine alone."""
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Worker processes, each with its share of the cores; `auto`: as many as pay on this machine's CPU by a few timed steps, else one."""
    threads: int | None = Field(default=None, ge=1)
    """Threads a worker; default: cores divided by workers, with `address` all cores of a machine like this one; each process of a launcher has its share."""
    together: int | Literal["auto"] = 1
    """LoRA trials of one model that a worker trains at once over one base; `auto`: as many as fit on a GPU, one on a CPU."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """What to train on."""
    patience: Duration = "10m"
    """A worker that makes no step of a training for so long is ended, and one at anything else after three times as long."""

    @model_validator(mode="after")
    def _address_of_ray(self) -> ExecutorSection:
        if self.address is not None and self.kind != "ray":
            raise ValueError(f"address is of a Ray cluster: set kind to ray; given kind {self.kind}")
        if "://" in (self.address or ""):
            raise ValueError(
                f"address has to be auto, local or host:port of a Ray cluster that this machine belongs to; given {self.address}"
            )
        return self


class LauncherSection(_Section):
    """Several processes that train each trial together, for what one GPU has no room for."""

    processes: int = Field(default=1, ge=1)
    """How many, of a worker: each takes a GPU of its own, or its share of the worker's cores, and its rows of each batch."""
    sharding: Literal["fsdp", "none"] = "fsdp"
    """`fsdp`: each keeps a part of weights, gradients and optimiser states. `none`: each keeps all of them."""


def _source(value: object) -> object:
    return {"train": value} if isinstance(value, str) else value


class AuxiliarySection(_Section):
    """A further task that is trained along: it shares the body of the model and has a head of its own."""

    task: str
    """The task's name, as `autoft plugins` lists it; it may be the recipe's own, with other data."""
    data: Annotated[DataSection, BeforeValidator(_source, json_schema_input_type=str | DataSection)]
    """A source of training data, or a section with columns and filters; only its training rows are used."""
    task_options: dict[str, str | int | float | bool | None] = {}
    """Settings of this task."""
    weight: float = Field(default=1.0, gt=0)
    """Its loss is multiplied with this, and with `space.auxiliary.weight`."""


StudyUrl = Annotated[
    str, BeforeValidator(lambda value: (study_address(value), value)[1] if isinstance(value, str) else value)
]


def _study(value: object) -> object:
    return {"study": value} if isinstance(value, str) else value


class StorageSection(_Section):
    """What the run folder may hold, and the study that several searches share."""

    weights: Size = "1.5GB"
    """Weights kept at the end of each trial: those on the front of quality, size and latency, the best first."""
    disk: Size | None = None
    """All that the run folder may take; what can be made again is deleted first, then weights."""
    study: StudyUrl | None = None
    """Search together with all who name the same: `postgresql://user@host/database`, `mysql://`, `sqlite:///file.db`, `journal:///path/file.log` or `grpc://host:port`."""


class Recipe(_Section):
    """What a user asks for: a data set, a task and a budget."""

    task: str
    """The task's name, as `autoft plugins` lists it."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Of the run; default: the recipe file's name."""
    model: Names
    """A model or a list to search: a local folder or GGUF file, a hub id, or `package://module/path`. The first is the default."""
    init_from: str | None = None
    """An earlier run, of this task or another: its trained model, with a new head where it needs one, is a further model."""
    data: DataSection
    """A source of training data, or a section with splits, columns and filters."""
    auxiliary: list[AuxiliarySection] = []
    """Further tasks to train along with this one; the search finds out whether they help."""
    budget: Annotated[
        BudgetSection,
        BeforeValidator(
            lambda value: {} if value == "auto" else value, json_schema_input_type=Literal["auto"] | BudgetSection
        ),
    ] = BudgetSection()
    """Limits that the result has to keep."""
    effort: Literal["quick", "balanced", "best"] = "balanced"
    """A word for a set of defaults, which `autoft explain` prints."""
    task_options: dict[str, str | int | float | bool | None] = {}
    """Settings of the task, which `autoft explain` lists."""
    pipelines: Names | None = None
    """Chains of base quantization and adapter to search, as `[full, lora, nf4+lora]`; default: by effort."""
    compress: Names | None = None
    """Chains of compressors applied to every trained model, as `[none, onnx, onnx-int8]`; default: by effort."""
    augment: Names | None = None
    """Augmenters to search, `none` among them if it may win; default: by effort."""
    regularize: Names | None = None
    """Chains of regularizers to search, as `[none, r-drop, ema+layer-decay]`; default: by effort."""
    space: dict[str, SpaceValue] = {}
    """Narrow, pin or widen any parameter that `autoft explain` shows: a scalar, a list or `{low, high, log}`."""
    search: SearchSection = SearchSection()
    """Sampler, early stopping, objectives and seeds."""
    executor: Annotated[
        ExecutorSection,
        BeforeValidator(
            lambda value: {"kind": value} if isinstance(value, str) else value,
            json_schema_input_type=Literal["local", "ray"] | ExecutorSection,
        ),
    ] = ExecutorSection()
    """Workers, threads and device."""
    launcher: LauncherSection = LauncherSection()
    """Processes that train each trial together."""
    storage: Annotated[StorageSection, BeforeValidator(_study, json_schema_input_type=str | StorageSection)] = (
        StorageSection()
    )
    """Weights that stay on disk, and a study that several machines share; an address alone is that study's."""
    trackers: Annotated[
        list[Literal["tensorboard", "mlflow", "wandb"]],
        BeforeValidator(_one_or_many, json_schema_input_type=str | list[str]),
    ] = []
    """Log each trial there as well, below the run folder unless the tracker's own settings in the environment say otherwise."""
    trust_remote_code: bool = False
    """Run code that comes with a hub model. Off unless you trust its author."""
    _lines: Lines = PrivateAttr(default_factory=Lines)

    def error(self, faults: Sequence[Fault], source: str) -> RecipeError:
        """Return the error that tells these faults of the recipe, each with its line as far as it has one."""
        return _error(faults, source, self._lines)

    def located(self, error: DataError) -> DataError:
        """Return an error of the data that begins with a key of the recipe with the line of that key."""
        where, colon, message = str(error).partition(": ")
        if not colon or not re.fullmatch(r"(?:data|auxiliary\[\d+\])(?:\.\w+)*", where):
            return error
        return DataError(str(self._lines.located(Fault(where, message))))

    @model_validator(mode="after")
    def _flat_space(self) -> Recipe:
        self.space = dict(_flatten(self.space))
        return self


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Args:
        path: a YAML file.
        overrides: as ``("space.train.epochs=3", "budget.time=5m")``; values are YAML.

    Raises:
        RecipeError: all faults of the file and the overrides together.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            # No more: a device, or the end of a pipe, may have no end.
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise RecipeError([Fault("", f"has more than {LARGEST} bytes, which no recipe needs")], str(path))
        text = content.decode("utf-8")
    except FileNotFoundError:
        near = closest(path.name, [entry.name for entry in path.parent.glob("*.y*ml")] if path.parent.is_dir() else [])
        hint = f"; did you mean {path.parent / near}?" if near else ""
        raise RecipeError([Fault("", f"no such file{hint}")], str(path)) from None
    except IsADirectoryError:
        raise RecipeError([Fault("", "is a folder; give the recipe file in it")], str(path)) from None
    except UnicodeDecodeError as error:
        raise RecipeError([Fault("", f"is not UTF-8 text: byte {error.start} cannot be read")], str(path)) from None
    except OSError as error:
        raise RecipeError([Fault("", f"cannot be read: {error.strerror}")], str(path)) from None
    return recipe_from_text(text, overrides, source=str(path), name=path.stem)


def recipe_from_text(text: str, overrides: Sequence[str] = (), *, source: str = "recipe", name: str = "run") -> Recipe:
    """Check a recipe that is YAML; ``source`` is what messages call it, and ``name`` stands in where it has none.

    Raises:
        RecipeError: all faults together.
    """
    try:
        value, node = read_yaml(text, _StrictLoader)
        lines = Lines.of(text, node, source, overrides)
    except yaml.YAMLError as error:
        fault, mark = Fault("", f"is not YAML: {_problem(error)}"), getattr(error, "problem_mark", None)
        raise RecipeError([marked(fault, source, text, mark) if mark else fault], source) from None
    except RecursionError:
        raise RecipeError([Fault("", "is nested too deeply, or an alias stands in what it names")], source) from None
    if value is None:
        raise RecipeError([Fault("", "is empty; a recipe needs at least task, model and data")], source)
    return recipe_from_mapping(value, overrides, source=source, name=name, lines=lines)


def recipe_from_mapping(
    value: object,
    overrides: Sequence[str] = (),
    *,
    source: str = "recipe",
    name: str = "run",
    lines: Lines | None = None,
) -> Recipe:
    """Check a recipe that is already a mapping; ``name`` stands in where it has none, and ``lines`` are of its file.

    Raises:
        RecipeError: all faults together.
    """
    if not isinstance(value, Mapping):
        raise RecipeError([Fault("", f"needs keys and values at the top, given {_kind(value)}")], source)
    lines = lines or Lines(overrides={override.partition("=")[0].strip(): override for override in overrides})
    merged: dict[str, Any] = dict(value)
    faults: list[Fault] = []
    for override in overrides:
        try:
            merged = set_key(merged, override)
        except ValueError as error:
            faults.append(Fault(f"--set {override}", str(error)))
    if isinstance(merged.get("data"), str):
        merged["data"] = {"train": merged["data"]}
    try:
        recipe = Recipe.model_validate(merged)
    except ValidationError as error:
        faults.extend(_faults(error))
    except RecursionError:
        raise RecipeError([Fault("", "is nested too deeply, or a value stands in itself")], source) from None
    if faults:
        raise _error(faults, source, lines)
    recipe._lines = lines
    return recipe if recipe.name else recipe.model_copy(update={"name": name})


def _error(faults: Sequence[Fault], source: str, lines: Lines) -> RecipeError:
    """Return the error with these faults in the order of their lines, those without one first."""
    return RecipeError(sorted((lines.located(fault) for fault in faults), key=lambda fault: fault.line), source)


def budget_section(value: Mapping[str, Any]) -> tuple[BudgetSection, list[Fault]]:
    """Return limits that are given beside a recipe, as a budget of their own, and what is wrong with them."""
    try:
        return BudgetSection.model_validate(dict(value)), []
    except ValidationError as error:
        return BudgetSection(), _faults(error)


def set_key(value: Mapping[str, Any], override: str) -> dict[str, Any]:
    """Return a copy of the mapping with one ``a.b=c`` applied; ``c`` is YAML.

    Raises:
        ValueError: the override has no ``=``, or its value is not YAML, or a part of its key is not a section.
    """
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise ValueError("needs the form key=value, as budget.time=5m")
    try:
        new, _ = read_yaml(text, _StrictLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"its value is not YAML: {_problem(error)}") from None
    except RecursionError:
        raise ValueError("its value is nested too deeply, or an alias stands in what it names") from None
    parts = key.strip().split(".")
    if parts[0] == "space" and len(parts) > 2:
        parts = ["space", ".".join(parts[1:])]
        flat = dict(_flatten(value.get("space") or {}))
        return {**value, "space": {**flat, parts[1]: new}}
    top = dict(value)
    at = top
    for part in parts[:-1]:
        below = at.get(part)
        if part in SHORT and isinstance(below, str):
            below = {SHORT[part]: below}
        if below is not None and not isinstance(below, Mapping):
            raise ValueError(f"{part!r} is a value, not a section")
        at[part] = dict(below or {})
        at = at[part]
    at[parts[-1]] = new
    return top


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of recipes, for editors."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "autoft recipe"
    schema["properties"]["data"] = {
        "description": schema["properties"]["data"].get("description", ""),
        "anyOf": [{"type": "string"}, {"$ref": "#/$defs/DataSection"}],
    }
    return schema


def schema_line(path: str) -> str:
    """Return the comment by which editors with the YAML language server find the schema of a recipe."""
    return f"# yaml-language-server: $schema={path}"


def _flatten(space: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in space.items():
        if isinstance(value, Mapping) and not {"low", "high"} & set(value):
            flat.extend(_flatten(value, f"{prefix}{name}."))
        else:
            flat.append((f"{prefix}{name}", value))
    return flat


def _faults(error: ValidationError) -> list[Fault]:
    faults = []
    for entry in error.errors():
        keys = [str(part) for part in entry["loc"] if not str(part).startswith(("function-", "list[", "dict["))]
        keys = [key for key in keys if key not in {"str", "int", "float", "bool", "LatencyLimit"}]
        where, given = ".".join(keys), entry["input"]
        match entry["type"]:
            case "extra_forbidden":
                known = _known_keys(keys[:-1])
                near = closest(keys[-1], known)
                hint = f" Did you mean {near!r}?" if near else ""
                message = f"unknown key.{hint} Allowed: {', '.join(known)}."
            case "missing":
                message = "is missing"
            case "literal_error":
                allowed = str(entry["ctx"]["expected"]).replace("'", "")
                near = closest(str(given), allowed.replace(" or ", ", ").split(", "))
                message = f"allowed: {allowed}; given {given!r}." + (f" Did you mean {near!r}?" if near else "")
            case "value_error":
                message = str(entry["ctx"]["error"])
            case "greater_than_equal":
                message = f"has to be at least {entry['ctx']['ge']}, given {_kind(given)}"
            case "too_short":
                message = "is an empty list; give at least one"
            case "string_pattern_mismatch":
                message = (
                    f"may hold letters, digits, '.', '_' and '-' only, the first a letter or digit; given {given!r}"
                )
            case "invalid_key":
                message = "a key has to be a text; write it in quotes"
            case kind if kind in _KINDS:
                message = f"needs {_KINDS[kind]}, given {_kind(given)}"
            case _:
                text = entry["msg"].removeprefix("Input should be ")
                message = f"needs {text}, given {_kind(given)}"
        fault = Fault(where, message)
        if fault not in faults:
            faults.append(fault)
    return faults


_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "list_type": "a name or a list of names",
    "dict_type": "a section with keys",
    "model_type": "a section with keys",
    "model_attributes_type": "a section with keys",
}
"""What a recipe needs, by the name of pydantic's complaint."""


def _known_keys(path: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if get_origin(annotation) is list:
            annotation = get_args(annotation)[0]
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
        elif part == "latency":
            model = LatencyLimit
    return list(model.model_fields)


def _kind(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool() | int() | float():
            return f"{value!r}"
        case str():
            return f"{value!r}"
        case list():
            return f"a list of {len(value)}"
        case Mapping():
            return "a section with keys"
        case _:
            return f"{value!r}"


_TEXTS = {
    "tag:yaml.org,2002:bool": r"(?i:yes|no|on|off)",
    "tag:yaml.org,2002:int": r"[-+]?(?:0[0-7_]+|[\d_]+(?::[\d_]+)+)",
    "tag:yaml.org,2002:float": r"[-+]?(?:[\d_]+(?::[\d_]+)+\.[\d_]*|0[\d_]+[.eE].*)",
    "tag:yaml.org,2002:timestamp": r".*",
}
"""What YAML 1.1 takes for something else than YAML 1.2 does, without a word: the country `no` for false, the code `017` for 15,
the time `1:30` for 90, dates for no text."""


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which YAML forbids and PyYAML accepts in silence, and reads words as texts."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """Return the tag of a node."""
        tag = str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]  # PyYAML's stubs leave it out
        if kind is yaml.ScalarNode and implicit[0] and re.fullmatch(_TEXTS.get(tag, "(?!)"), value):
            return "tag:yaml.org,2002:str"
        return tag

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            # As of a number of thousands of digits; PyYAML lets it through without its place.
            problem = f"{node.value!r} is not what it looks like ({error}); write a text in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            # The keys that ``<<: *other`` brings may be given again: that is what it is for.
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            if isinstance(key, str | int | float | bool):
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_plain_yaml(text: str) -> Any:
    """Return what a YAML text says that :func:`dump_recipe` wrote: no value stands in two places of it.

    Raises:
        ValueError: it is no YAML, or has aliases.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.YAMLError as error:
        raise ValueError(_problem(error)) from error


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader that refuses aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node, unless it is one that stands elsewhere."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "has an alias", None)
        return super().compose_node(parent, index)


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


class _Dumper(yaml.SafeDumper):
    """SafeDumper without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# YAML 1.1 reads 1e-4 as text; recipes mean the number. The dumper has to know, to put the text 1e3 in quotes.
for _class in (_StrictLoader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$"),
        list("-+0123456789"),
    )


class _LineDumper(_Dumper):
    """Dumper that escapes line breaks."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Return the node of a text, in double quotes where it has more than one line."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


_LineDumper.add_representer(str, _LineDumper.represent_text)


def yaml_of(value: Any) -> str:
    """Return a value in one line of YAML that a recipe reads as the same value."""
    text = yaml.dump(
        value, Dumper=_LineDumper, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML, every default filled in, without the password of a study's address."""
    value = recipe.model_dump(mode="json")
    if value["storage"]["study"]:
        value["storage"]["study"] = without_passwords(value["storage"]["study"])
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
