"""A run folder as a report: one HTML file, Markdown for people in a terminal, JSON for machines.

Everything is read from the record, so a report can be rendered again at any time, of unfinished runs too, and the same
record gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path

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
    """Return the whole page: style, plots and what draws them inside, nothing from the network."""
    from autoft.report.figures import figures
    from autoft.report.page import render_page

    return render_page("report.html.j2", figures(record), content=content)


def render_markdown(content: Content) -> str:
    """Return the report without plots."""
    from autoft.card import templates

    return templates().get_template("report.md.j2").render(content=content)
