"""The page of a served model: a form to try it, how to call it, its fields and limits. Nothing comes from the network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

import jinja2

from autoft.artifact import LoadedModel
from autoft.quantities import format_bytes, format_seconds
from autoft.serving.fields import FILES, Fields
from autoft.version import __version__

__all__ = ["Page", "curl_line", "page_of"]

LONG = frozenset({"text", "document", "prompt", "passage"})
"""Kinds that get a field of several lines."""
WRITTEN = frozenset({"text", "document", "prompt", "option", "label"})
"""Kinds whose fields are taken as they are typed; others may hold JSON."""


@dataclass(frozen=True)
class Page:
    """The page as HTML, and the headers that let it run its own script and load nothing else."""

    html: str
    headers: Mapping[str, str]


def page_of(model: LoadedModel, fields: Fields) -> Page:
    """Return the page of a model."""
    card, manifest = model.task.card, model.manifest
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autoft", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    limits = fields.limits
    used = {role for row in fields.examples for role in row}
    columns = [
        {
            "role": column.role,
            "kind": column.kind,
            "summary": column.summary,
            "required": column.required,
            "widget": _widget(column.kind),
            "plain": column.kind in WRITTEN,
            "seldom": not column.required and bool(used) and column.role not in used,
        }
        for column in fields.inputs
    ]
    html = environment.get_template("serve.html.j2").render(
        card=card,
        model=manifest.model.removeprefix("package://"),
        variant=manifest.variant,
        version=__version__,
        columns=columns,
        outputs=[
            {"name": one.name, "type": _type_name(one.type), "summary": one.summary, "required": one.required}
            for one in fields.outputs
        ],
        labels=list(model.context.labels),
        examples=[{"row": row, "name": _example_name(row)} for row in fields.examples],
        curl=curl_line("http://HOST", fields),
        limits=[
            ("rows of a request", f"{limits.rows:,}"),
            ("characters of a field", f"{limits.characters:,}"),
            ("a request", format_bytes(limits.body)),
            *([("pixels of an image", f"{limits.pixels:,}")] if any(c["widget"] == "file" for c in columns) else []),
            ("until an answer", format_seconds(limits.timeout)),
            ("rows that wait", f"{limits.queue:,}"),
            ("rows predicted together", f"{limits.batch_size or 1:,}"),
        ],
    )
    return Page(html, {"content-security-policy": _policy(html), "x-content-type-options": "nosniff"})


def curl_line(address: str, fields: Fields) -> str:
    """Return a command that asks the model about the first demo row, or says where the row belongs.

    Args:
        address: of the server, as ``http://127.0.0.1:8000``.
        fields: of the model.
    """
    kinds = {column.role: column.kind for column in fields.inputs}
    row = dict(fields.examples[0]) if fields.examples else {}
    for role in row:
        if kinds[role] in FILES:
            # A picture in base64 is longer than a line should be.
            text = json.dumps({**row, role: "@"}, ensure_ascii=False).replace(
                '"@"', '"\'"$(base64 -w0 picture.png)"\'"'
            )
            return f"curl {address}/predict -H 'content-type: application/json' -d '{text}'"
    quoted = json.dumps(row, ensure_ascii=False).replace("'", "'\\''")
    return f"curl {address}/predict -H 'content-type: application/json' -d '{quoted}'"


def _widget(kind: str) -> str:
    if kind in FILES:
        return "file"
    return "lines" if kind in LONG or kind not in WRITTEN else "line"


def _type_name(kind: Any) -> str:
    """Return a type as people read it: ``list of numbers``."""
    if kind is Any:
        return "any"
    names = {str: "text", int: "number", float: "number", bool: "true or false"}
    if kind in names:
        return names[kind]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is list:
        return f"list of {_plural(_type_name(inner[0]))}" if inner else "list"
    if origin is dict or kind is dict:
        return "object"
    # What is left are choices, as Literal["yes", "no"].
    if all(isinstance(one, str) for one in inner):
        return "one of " + ", ".join(inner) if len(inner) <= 6 else f"one of {len(inner)} labels"
    return "any"


def _plural(name: str) -> str:
    return {"text": "texts", "number": "numbers", "object": "objects"}.get(name, name)


def _example_name(row: Mapping[str, Any]) -> str:
    text = next((value for value in row.values() if isinstance(value, str) and not _is_base64(value)), "")
    listed = next((" ".join(map(str, value)) for value in row.values() if isinstance(value, list)), "")
    name = text or listed
    return (name if len(name) <= 34 else f"{name[:33].rstrip()}…") or "picture"


def _is_base64(value: str) -> bool:
    return len(value) > 100 and re.fullmatch(r"[A-Za-z0-9+/]+=*", value) is not None


def _policy(html: str) -> str:
    """Return the content security policy: the page's own style and script by their hashes, requests to this server."""

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in found)

    return (
        f"default-src 'none'; style-src {hashes('style')}; script-src {hashes('script')}; connect-src 'self'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
