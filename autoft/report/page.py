"""One HTML file: style, script, the figures and what draws them inside; nothing comes from the network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

from autoft.report.drawing import Figure

__all__ = ["render_html", "render_page", "script_json"]

DANGEROUS = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""What could end a script or be read as HTML in it, and the same as JSON escapes it."""


def render_page(template: str, figures: Mapping[str, Figure], **values: Any) -> str:
    """Return a page with its plots.

    A browser runs no other script than the two of this file, and asks nothing of the network: the page says so itself
    (Content-Security-Policy), so that a text which got past escaping could do no harm.

    Args:
        template: file name among the templates.
        figures: by name; without any, the library that draws them is left out.
        values: what the template shows.
    """
    script = _asset("page.js")
    hashes = [_hash(script)] + ([plotly()[1]] if figures else [])
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(f"'sha256-{one}'" for one in hashes),
        # Plotly writes its style into the page, and bars have their length in theirs.
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    drawn = {name: {"data": figure.data, "layout": figure.layout} for name, figure in figures.items()}
    return render_html(
        template,
        figures=figures,
        policy="; ".join(f"{name} {sources}" for name, sources in policy.items()),
        style=_asset("page.css"),
        script=script,
        document=script_json(drawn),
        library=plotly()[0] if figures else "",
        **values,
    )


def render_html(template: str, **values: Any) -> str:
    """Return a rendered template; texts become HTML.

    Args:
        template: file name among the templates.
        values: what the template shows.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autoft", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**values)


def script_json(value: object) -> str:
    """Return JSON that is safe inside of a script element, whatever texts it holds.

    Raises:
        ValueError: it holds a number that JSON does not know, as NaN.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter, escaped in DANGEROUS.items():
        text = text.replace(letter, escaped)
    return text


@lru_cache(maxsize=1)
def plotly() -> tuple[str, str]:
    """Return Plotly's script, packed (gzip and base64), and the SHA-256 by which a page allows it to run."""
    from plotly.offline import get_plotlyjs

    text = get_plotlyjs()
    # No time stamp: the same record gives the same bytes.
    packed = gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode("ascii"), _hash(text)


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _asset(name: str) -> str:
    return resources.files("autoft").joinpath("templates", name).read_text(encoding="utf-8")
