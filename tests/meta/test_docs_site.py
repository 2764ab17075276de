"""The pages as a site: it builds without a warning, has every page in its navigation, and needs no network."""

from __future__ import annotations

import html.parser
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material")

ROOT = Path(__file__).parents[2]
FETCHED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


class Page(html.parser.HTMLParser):
    """What a page loads by itself, and what it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in FETCHED and given.get("rel") not in {"prev", "next", "canonical"}:
            self.loads.append(given.get(FETCHED[tag]) or "")
        if tag == "a":
            self.links.append(given.get("href") or "")


def pages(site):
    return sorted(path for path in site.rglob("*.html") if path.name != "404.html")


def test_every_page_is_in_the_site(site):
    made = {path.relative_to(site).with_suffix(".md").as_posix() for path in pages(site)}
    own = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert own <= made
    tasks = {
        f"tasks/{folder.name.removeprefix('autoft-')}.md" for folder in (ROOT / "plugins").iterdir() if folder.is_dir()
    }
    assert tasks | {"changelog.md", "contributing.md", "zh.md"} <= made


def test_nothing_is_loaded_from_elsewhere(site):
    for path in [*pages(site), site / "404.html"]:
        loads = Page(path.read_text(encoding="utf-8")).loads
        assert loads
        assert [url for url in loads if re.match(r"(https?:)?//", url)] == [], path
    for path in site.rglob("*.css"):
        assert (
            re.findall(
                r"url\(\s*[\"']?(?:https?:)?//[^)]*\)|@import\s+[\"']?http[^;]*", path.read_text(encoding="utf-8")
            )
            == []
        )


def test_links_between_pages_lead_to_files_of_the_site(site):
    checked = 0
    for path in pages(site):
        page = Page(path.read_text(encoding="utf-8"))
        for link in [*page.links, *page.loads]:
            target = link.split("#")[0]
            if not target or re.match(r"[a-z]+:", target):
                continue
            assert (path.parent / target).exists(), f"{path.relative_to(site)} links to {link}"
            checked += 1
    assert checked > 1000


def test_links_out_of_the_folder_are_mended(site):
    # The page of a task stands in plugins/, its tutorial in docs/tutorials/.
    tutorial = (site / "tutorials" / "translation.html").read_text(encoding="utf-8")
    assert 'href="../tasks/translation.html"' in tutorial
    task = (site / "tasks" / "translation.html").read_text(encoding="utf-8")
    assert 'href="generation.html"' in task
    assert 'href="../index.html"' in task
    # A file that is no page is named, not linked.
    assert "<code>benchmarks/plain_loop.py</code>" in (site / "log.html").read_text(encoding="utf-8")
    assert 'src="docs/report.png"' not in (site / "zh.html").read_text(encoding="utf-8")


def test_the_search_finds_pages(site):
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    assert all(location in index for location in ("tutorials/translation.html", "tasks/medical-qa.html", "cli.html"))


# ------------------------------------------------------------------------------------------------ README in Chinese


def told(text: str) -> dict[str, list[str]]:
    """Return what two READMEs have to share: commands and keys, figures, links."""
    text = re.sub(r"^\[(?:中文|English)\].*\n", "", text, flags=re.MULTILINE)
    code = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    fenced = [
        "\n".join(line.split("#")[0].rstrip() for line in block.splitlines())
        for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    ]
    return {
        "code": sorted(part for part in code if re.search(r"[a-z]", part)),
        "blocks": fenced,
        "figures": sorted(
            re.findall(
                r"(?<![\w.])\.\d+|\b\d+\.\d+\b|\b\d,\d{3}\b", re.sub(r"`[^`]*`|```.*?```", "", text, flags=re.DOTALL)
            )
        ),
        "links": sorted(set(re.findall(r"\]\(([^)]+)\)", text)) - {"docs/how-to/chinese.md"}),
    }


def test_the_two_readmes_name_the_same_commands_figures_and_pages():
    english, chinese = (told((ROOT / name).read_text(encoding="utf-8")) for name in ("README.md", "README.zh.md"))
    for kind, wanted in english.items():
        assert chinese[kind] == wanted, f"README.zh.md has other {kind} than README.md"
    assert "](README.zh.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
