"""A run folder as a report: one HTML file, Markdown for people in a terminal, JSON for machines.

Everything is read from the record, so a report can be rendered again at any time, of unfinished runs too, and the same
record gives the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autoft.report.content import Content, make_content
from autoft.report.summary import summary
from autoft.rundir import RunRecord, write_json, write_text

__all__ = ["Content", "make_content", "render_html", "render_markdown", "summary", "write"]


def write(record: RunRecord) -> dict[str, Path]:
    """Write ``report.html``, ``report.md`` and ``report.json`` into the run folder.

    Returns:
        the paths, by kind: ``html``, ``md``, ``json``.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    content = make_content(record)
    paths = {kind: record.path / f"report.{kind}" for kind in ("html", "md", "json")}
    write_text(paths["html"], render_html(record, content))
    write_text(paths["md"], render_markdown(content))
    write_json(paths["json"], summary(record))
    return paths


def render_html(record: RunRecord, content: Content) -> str:
    """Return the whole page: style and plots inside, nothing from the network."""
    from autoft.report.figures import figures

    return _render("report.html.j2", escape=True, content=content, figures=figures(record))


def render_markdown(content: Content) -> str:
    """Return the report without plots."""
    return _render("report.md.j2", escape=False, content=content)


def _render(template: str, *, escape: bool, **values: Any) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autoft", "templates"),
        autoescape=escape,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    environment.filters["pretty_json"] = lambda value: json.dumps(value, indent=1)
    return environment.get_template(template).render(**values)
