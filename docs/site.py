"""What the site has beside the pages of this folder: the tasks' own pages, the changelog, and links between all of them.

MkDocs calls the functions here by their names (`hooks` in mkdocs.yml). Pages stand where people read them in the
repository, so that a link has to be mended where the page it leads to stands elsewhere in the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]

BESIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.zh.md": "zh.md",
    **{
        f"plugins/{folder.name}/README.md": f"tasks/{folder.name.removeprefix('autoft-')}.md"
        for folder in sorted((ROOT / "plugins").iterdir())
        if (folder / "README.md").is_file()
    },
}
"""Pages of the repository outside of this folder, and where they are in the site."""

SITE = {"README.md": "index.md", **BESIDE}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"^(`{3,}|~{3,})[^\n]*\n.*?^\1\s*$", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that stand elsewhere in the repository."""
    for source, target in BESIDE.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Mend the links of a page that lead out of this folder, or into it from elsewhere."""
    own = {target: source for source, target in BESIDE.items()}
    here = own.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def mended(found: re.Match[str]) -> str:
        sign, text, target, anchor = found[1], found[2], found[3], found[4] or ""
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        inside = SITE.get(there, there.removeprefix("docs/") if there.startswith("docs/") else None)
        if inside is None:
            # A file of the repository that is no page: its name says where it is.
            return found[0] if sign else f"{text} (`{there}`)"
        path = posixpath.relpath(inside, posixpath.dirname(page.file.src_uri) or ".")
        return f"{sign}[{text}]({path}{anchor})"

    parts, at = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(mended, markdown[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*parts, LINK.sub(mended, markdown[at:])])
