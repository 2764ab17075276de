"""From a task's card to types: what a request may hold and what an answer holds, for pydantic and for OpenAPI."""

from __future__ import annotations

import base64
import binascii
import io
import itertools
import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError, from_json
from typing_extensions import NotRequired, TypedDict

from autoft.artifact import LoadedModel
from autoft.contracts import Column, Output, Prediction, Row
from autoft.errors import DataError, ServingError, closest
from autoft.serving.limits import Limits

__all__ = ["Fields", "Invalid", "Malformed", "fields_of"]

log = logging.getLogger("autoft.serving")

FILES = frozenset({"image", "audio"})
"""Kinds of columns whose value is a file: here its content in base64, never a path."""
PICTURES = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Formats of images that are taken, as Pillow calls them: none that starts another program or follows a reference."""
SHOWN_NAMES = 12
SHOWN_FAULTS = 100
"""Of a request, at most: each takes a search for the nearest name, and a place in the answer."""
SHOWN_EXAMPLES = 4
PATIENCE = 10.0
"""Seconds after which no further demo row is tried: a large model that writes texts takes long for each."""

Label = str | int | float | bool


class Malformed(ValueError):
    """A request is no JSON object."""


class Invalid(ValueError):
    """A request is JSON of another form than the task needs.

    Attributes:
        faults: each a field, as ``rows[3].text``, and what is wrong with it.
        many: there are more rows than allowed.
    """

    def __init__(self, faults: Sequence[tuple[str, str]], *, many: bool = False) -> None:
        super().__init__("; ".join(f"{field}: {message}" if field else message for field, message in faults))
        self.faults = tuple(faults)
        self.many = many


class Passages(TypedDict):
    """Several texts that are read as one."""

    contexts: Quick[str]


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Keyed(TypedDict):
    """An option with its letter."""

    key: str
    value: str


def _check_options(value: Any) -> Any:
    """Tell the first option that is neither text nor number: as with lists, no other."""
    wrong = (
        next((k for k, v in value.items() if type(v) not in {str, int, float}), None)
        if isinstance(value, dict)
        else None
    )
    if wrong is not None:
        raise PydanticCustomError("no_option", f"has to hold texts or numbers, and {wrong[:60]!r} is neither")
    return value


T = TypeVar("T")
Quick = Annotated[list[T], Field(fail_fast=True)]
"""A list whose first wrong entry is told and no other: a request may have millions of them."""

KINDS: Mapping[str, Any] = {
    "text": str,
    "document": str,
    "prompt": str,
    "texts": str | Quick[str],
    "passage": str | Quick[str] | Passages,
    "label": Label,
    "labels": Label | Quick[Label],
    "number": float,
    "tokens": Quick[str | int | float] | str,
    "option": str | int | float,
    "options": Quick[str | int | float]
    | Annotated[dict[str, str | int | float], BeforeValidator(_check_options)]
    | Quick[Keyed],
    "messages": Quick[Message],
}
"""What a column of a kind holds in JSON. Columns of other kinds, as plugins have of their own, hold any JSON."""


@dataclass(frozen=True)
class Fields:
    """The types of one model's requests and answers.

    Attributes:
        row: a row, as a request has it.
        rows: a request of several rows.
        prediction: what the model says of a row.
        predictions: the answer to a request of several rows.
        outputs: the parts of a prediction.
        inputs: the columns of a row.
        examples: rows as requests have them, of the task's demo rows.
        answers: what the model says of these.
        company: how much it matters to a row which others are predicted with it: the largest difference of a number of the
            demo rows' predictions, infinite where anything else differs.
        limits: of the server.
    """

    row: Any
    rows: Any
    prediction: Any
    predictions: Any
    outputs: tuple[Output, ...]
    inputs: tuple[Column, ...]
    examples: tuple[dict[str, Any], ...]
    answers: tuple[Prediction, ...]
    company: float
    limits: Limits

    def parse(self, body: bytes) -> tuple[list[Row], bool]:
        """Return the rows of a request, and whether it is one row and not a list.

        Raises:
            Malformed: it is no JSON, or no object.
            Invalid: a field is missing, of another type, too long or unknown, or there are too many rows.
        """
        try:
            found = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise Malformed(f"is not JSON: {error}") from None
        if not isinstance(found, dict):
            raise Malformed(f'has to be a JSON object: a row, or {{"rows": [...]}}; given {_json_type(found)}')
        single = "rows" not in found or any(column.role == "rows" for column in self.inputs)
        if not single and isinstance(found["rows"], list) and len(found["rows"]) > self.limits.rows:
            raise Invalid(
                [("rows", f"holds {len(found['rows'])} rows; a request may have {self.limits.rows}")], many=True
            )
        rows = found["rows"] if not single and isinstance(found["rows"], list) else []
        for place, one in [("", found), *((f"rows[{i}]", row) for i, row in enumerate(rows))]:
            if isinstance(one, dict) and len(one) > len(self.inputs) + SHOWN_FAULTS:
                raise Invalid([(place, f"has {len(one)} fields; a row may have {len(self.inputs)}")])
        try:
            checked = (self.row if single else self.rows).validate_python(found)
        except ValidationError as error:
            raise Invalid(_faults(error, [column.role for column in self.inputs], single=single)) from None
        return ([checked], True) if single else (checked["rows"], False)

    def schemas(self, template: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the JSON schemas of request and answer, and the definitions that they refer to.

        Args:
            template: of references, as ``#/components/schemas/{model}``.
        """
        adapters = {"row": self.row, "rows": self.rows, "prediction": self.prediction, "predictions": self.predictions}
        named, rest = TypeAdapter.json_schemas(
            [(name, "validation", adapter) for name, adapter in adapters.items()], ref_template=template
        )
        return {name: named[name, "validation"] for name in adapters}, dict(rest.get("$defs", {}))


def fields_of(model: LoadedModel, limits: Limits) -> Fields:
    """Return the types of a model's requests and answers, its demo rows tried on it.

    Args:
        model: is asked what it says of the task's demo rows, which also warms it up.
        limits: of the server.

    Raises:
        ServingError: the model fails on each of the demo rows that it takes.
    """
    inputs = tuple(
        # What the card says of files is for data sets, where a path is as good.
        replace(column, summary=f"the {column.kind} file") if column.kind in FILES else column
        for column in model.task.inputs(model.context)
    )
    row = _typed_dict(
        "Row",
        model.task.card.summary,
        {column.role: (_input_type(column, limits), column.required) for column in inputs},
        extra="forbid",
    )
    examples, answers = _tried_demo_rows(model, inputs)
    try:
        together = model.predict(examples) if len(examples) > 1 else answers
    except Exception:
        # Any other number of answers counts as other answers: rows are predicted one by one.
        log.warning("the model fails on the demo rows together, and not on one by one", exc_info=True)
        together = []
    outputs = tuple(model.task.outputs(model.context)) or _seen(answers)
    prediction = _typed_dict(
        "Prediction",
        "What the model says of a row.",
        {one.name: (Annotated[one.type, Field(description=one.summary)], one.required) for one in outputs},
        extra="allow",
    )
    listed = Annotated[list[row], Field(min_length=1, max_length=limits.rows, description="the rows, in any number")]  # type: ignore[valid-type]  # a type made while running
    said = Annotated[list[prediction], Field(description="one for each row, in their order")]  # type: ignore[valid-type]  # a type made while running
    return Fields(
        row=TypeAdapter(row),
        rows=TypeAdapter(_typed_dict("Rows", "Several rows.", {"rows": (listed, True)}, extra="forbid")),
        prediction=TypeAdapter(prediction),
        predictions=TypeAdapter(
            _typed_dict("Predictions", "The answer to several rows.", {"predictions": (said, True)}, extra="forbid")
        ),
        outputs=outputs,
        inputs=inputs,
        examples=tuple(_written(one, inputs) for one in examples),
        answers=tuple(answers),
        company=_difference(list(answers), list(together)),
        limits=limits,
    )


def _typed_dict(
    name: str, summary: str, fields: Mapping[str, tuple[Any, bool]], extra: Literal["allow", "forbid"]
) -> Any:
    """Return a type whose values are plain dictionaries, as tasks read rows."""
    # As a function, for the names of the fields are known only now.
    make: Any = TypedDict
    made = make(name, {field: kind if required else NotRequired[kind] for field, (kind, required) in fields.items()})
    made.__doc__ = summary
    made.__pydantic_config__ = ConfigDict(extra=extra, strict=True, title=name)
    return made


def _input_type(column: Column, limits: Limits) -> Any:
    if column.kind in FILES:
        kind = _file_type(column.kind, limits)
    elif column.kind in {"text", "document", "prompt"}:
        kind = Annotated[str, Field(max_length=limits.characters)]
    else:
        # Before its type is looked at, which takes much longer.
        kind = Annotated[KINDS.get(column.kind, Any), BeforeValidator(_bounded(limits.characters))]
    kind = kind if column.required else kind | None
    summary = f"{column.summary}, in base64" if column.kind in FILES else column.summary
    return Annotated[kind, Field(description=summary)]


def _bounded(limit: int) -> Any:
    def check(value: Any) -> Any:
        if any(count > limit for count in itertools.accumulate(_characters(value))):
            raise PydanticCustomError("too_long", f"holds more than {limit} characters")
        return value

    return check


def _characters(value: Any) -> Iterator[int]:
    """Give the characters of each part of a value; what has none counts as one, for it is work, too."""
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield len(key)
            yield from _characters(part)
    elif isinstance(value, list) and value:
        for part in value:
            yield from _characters(part)
    else:
        yield max(1, len(value)) if isinstance(value, str) else 1


def _file_type(kind: str, limits: Limits) -> Any:
    def unpack(text: str) -> bytes:
        if text.startswith("data:"):
            head, mark, text = text.partition(",")
            if not mark or not head.endswith(";base64"):
                raise PydanticCustomError("no_base64", "has to be base64 or a data: URI of such")
        try:
            content = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise PydanticCustomError(
                "no_base64",
                f"has to be the {kind} file in base64, without line breaks; a path or an address is not read",
            ) from None
        if kind == "image":
            _check_picture(content, limits.pixels)
        return content

    schema = {"type": "string", "contentEncoding": "base64", "maxLength": limits.body}
    return Annotated[str, AfterValidator(unpack), WithJsonSchema(schema)]


def _check_picture(content: bytes, limit: int) -> None:
    """Refuse what is no picture, or one whose header says that it is larger than allowed; nothing is unpacked."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures, which are refused here anyway.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=PICTURES) as picture:
                width, height = picture.size
    except Image.DecompressionBombError:
        raise PydanticCustomError("too_large", f"the image has too many pixels; {limit} are allowed") from None
    except UnidentifiedImageError:
        raise PydanticCustomError("no_image", f"is no image of a known format: {', '.join(PICTURES)}") from None
    except Exception as error:  # noqa: BLE001 - Pillow's readers raise errors of many kinds on damaged headers
        raise PydanticCustomError("no_image", f"the image is damaged ({type(error).__name__})") from None
    if width * height > limit:
        raise PydanticCustomError("too_large", f"the image has {width} x {height} pixels; {limit} are allowed")


def _tried_demo_rows(model: LoadedModel, inputs: Sequence[Column]) -> tuple[list[dict[str, Any]], list[Prediction]]:
    """Return the demo rows that the model takes, without targets, and what it says of each."""
    texts = [column.role for column in inputs if column.kind == "text"]
    examples: list[dict[str, Any]] = []
    answers: list[Prediction] = []
    failure: Exception | None = None
    started = time.monotonic()
    for demo in model.task.demo_rows()[:SHOWN_EXAMPLES]:
        if time.monotonic() - started > PATIENCE:
            break
        row = {column.role: demo[column.role] for column in inputs if demo.get(column.role) is not None}
        # A model of text pairs needs the optional second text, which demo rows may lack.
        whole = {**dict.fromkeys(texts, row[texts[0]]), **row} if texts and texts[0] in row else row
        for one in (row, whole):
            try:
                answers += model.predict([one])
            except DataError:
                continue
            except Exception as error:
                # As a row of a request that it fails on, this one harms no other.
                log.warning("the model failed on a demo row of its task", exc_info=True)
                failure = error
                break
            examples.append(one)
            break
    if failure is not None and not examples:
        raise ServingError(
            f"{model.folder}: the model fails on each demo row of its task, the last time with "
            f"{type(failure).__name__}: {failure}"
        ) from failure
    return examples, answers


def _difference(one: Any, other: Any) -> float:
    """Return how far the numbers of two predictions are apart at most; infinite where anything else differs."""
    if isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        return max((_difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return max(map(_difference, one, other), default=0.0)
    if one == other or (one != one and other != other):  # NaN is not itself
        return 0.0
    apart = abs(one - other) if isinstance(one, int | float) and isinstance(other, int | float) else math.inf
    return math.inf if math.isnan(apart) else apart


def _written(row: Mapping[str, Any], inputs: Sequence[Column]) -> dict[str, Any]:
    """Return a row as a request has it: files in base64."""
    kinds = {column.role: column.kind for column in inputs}
    found: dict[str, Any] = {}
    for role, value in row.items():
        if kinds[role] in FILES:
            content = value.get("bytes") if isinstance(value, Mapping) else value
            if not isinstance(content, bytes):
                continue
            value = base64.b64encode(content).decode()
        found[role] = list(value) if isinstance(value, tuple) else value
    return found


def _seen(answers: Sequence[Prediction]) -> tuple[Output, ...]:
    """Return the parts of predictions as they were seen, for tasks that do not describe theirs."""
    names = dict.fromkeys(name for answer in answers for name in answer)
    found = []
    for name in names:
        values = [answer[name] for answer in answers if name in answer]
        kinds = {_seen_type(value) for value in values}
        kind = kinds.pop() if len(kinds) == 1 else Any
        found.append(Output(name, kind, "as the model says it", required=len(values) == len(answers)))
    return tuple(found)


def _seen_type(value: Any) -> Any:
    if isinstance(value, bool | str | int | float):
        # A whole number may be a fraction next time.
        return type(value) if isinstance(value, bool | str) else float
    if isinstance(value, list) and value:
        inner = {_seen_type(part) for part in value}
        return list[inner.pop()] if len(inner) == 1 else list[Any]  # type: ignore[misc]  # as above
    return dict[str, Any] if isinstance(value, Mapping) else Any


def _faults(error: ValidationError, roles: Sequence[str], *, single: bool) -> list[tuple[str, str]]:
    """Return each wrong field once, with what is wrong; a value that may be of several types has one message."""
    found: dict[str, list[str]] = {}
    for one in error.errors(include_url=False, include_context=False, include_input=False):
        place, inside = _place(one["loc"])
        if place not in found and len(found) == SHOWN_FAULTS:
            found[""] = [f"there are more faults; the first {SHOWN_FAULTS} are told"]
            break
        kind = one["type"]
        if kind == "extra_forbidden" and not single and one["loc"][0] != "rows":
            message = "is not allowed beside 'rows'"
        elif kind == "extra_forbidden":
            near = closest(inside, roles)
            hint = f"did you mean {near!r}? " if near else ""
            message = f"is no field of a row; {hint}allowed: {', '.join(roles[:SHOWN_NAMES])}"
        elif kind == "missing":
            message = "is missing"
        else:
            message = one["msg"].replace("Input should", "has to").replace("a valid dictionary", "an object")
            message = message[:1].lower() + message[1:]
        found.setdefault(place, [])
        if message not in found[place]:
            found[place].append(message)
    return [(place, ", or: ".join(messages)) for place, messages in found.items()]


def _place(loc: tuple[str | int, ...]) -> tuple[str, str]:
    """Return where a fault is, as ``rows[3].text``, and the field's name; what pydantic adds of types is left out."""
    parts = list(loc)
    place = ""
    if parts[:1] == ["rows"]:
        place = "rows"
        parts.pop(0)
        if parts and isinstance(parts[0], int):
            place += f"[{parts.pop(0)}]"
    if not parts:
        return place, "rows"
    name = str(parts[0])[:60]
    return f"{place}.{name}" if place else name, name


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", str: "a string", list: "a list"}
    return names.get(type(value), "a number")
