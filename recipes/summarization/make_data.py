"""Write documents and summaries from the docstrings of installed packages, for recipes/summarization/docstrings.yaml.

By convention (PEP 257) the first paragraph of a docstring is a summary in one line, and the rest describes what it
sums up. So the summary is that line; the document is the name with its arguments, as a reference page has it as its
heading, and the description up to the first section (parameters, examples ...).

The packages are the standard library (PSF licence), NumPy, SciPy, pandas and scikit-learn (BSD-3-Clause), all of them
requirements of autoft or of these. Their sources are read with ``ast``; nothing is imported, nothing is copied into the
repository. No package is in two splits, so that no author, no habit of naming and no copied paragraph goes from training
to test: train has the standard library, NumPy and SciPy, validation pandas, test scikit-learn.

    python recipes/summarization/make_data.py

The same versions give the same files.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import platform
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent / "data"
SPLITS = {"train": ("stdlib", "numpy", "scipy"), "validation": ("pandas",), "test": ("sklearn",)}
LIMITS = {"validation": 200, "test": 400}
"""Rows of a split, drawn at random; all where none is given."""
SEED = 0

SUMMARY_WORDS = range(4, 16)
DESCRIPTION_WORDS = range(10, 41)
LEFT_OUT = {
    *("tests", "test", "testing", "_test_common", "site-packages", "idlelib", "lib2to3", "pydoc_data", "turtledemo"),
    *("externals", "extern", "_external", "_vendor", "array_api_compat", "array_api_extra", "cobyqa", "pyprima"),
}
"""Folders of tests, and of copies of other projects."""

SECTION = re.compile(
    r"^(?:Args|Arguments|Parameters|Returns?|Yields|Raises|Attributes|Examples?|Notes?|References|See also|Usage)\s*:?\s*$"
    r"|^\s*(?:-{3,}|={3,}|~{3,})\s*$"
    r"|^\s*(?::\w+|\.\. |>>> |[-*+] |\d+[.)] )"
    r"|::\s*$",
    re.MULTILINE | re.IGNORECASE,
)
"""What ends the description: a heading, a field, a directive, a list, code."""


def package_folder(name: str) -> Path:
    """Return the folder of a package's sources, found without importing it."""
    if name == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the package {name} is not installed; pip install {name.replace('sklearn', 'scikit-learn')}")
    return Path(spec.origin).parent


def plain(text: str) -> str:
    """Return a paragraph as one line without the marks of reStructuredText."""
    text = re.sub(r":[\w:]+:`~?\.?([^`<]+?)(?:\s*<[^>]*>)?`", r"\1", text)
    text = re.sub(r"`~?([^`<]+?)(?:\s*<[^>]*>)?`_*", r"\1", text.replace("``", "`"))
    return " ".join(text.split())


Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documented(tree: ast.AST, outer: str = "") -> Iterator[tuple[str, str]]:
    """Give heading and docstring of each class, method and function, in order; functions inside functions are left out.

    A heading is the name with its arguments, that of a method with the class before it.
    """
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, Documented):
            if not isinstance(node, ast.expr):
                yield from documented(node, outer)
            continue
        if docstring := ast.get_docstring(node):
            yield heading(node, outer), docstring
        if isinstance(node, ast.ClassDef):
            yield from documented(node, f"{outer}{node.name}.")


def heading(node: Documented, outer: str) -> str:
    """Return the name of what is documented, with its arguments."""
    if isinstance(node, ast.ClassDef):
        made = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
        return f"class {outer}{node.name}{arguments(made) if made else ''}"
    return f"{outer}{node.name}{arguments(node)}"


def arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return the names of the arguments in brackets, the first six."""
    names = [part.arg for part in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    names = [name for name in names if name not in ("self", "cls")]
    return f"({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})"


def pairs(package: str) -> Iterator[dict[str, str]]:
    """Give document and summary of each docstring of a package that has both."""
    root = package_folder(package)
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if LEFT_OUT & set(parts) or path.name.startswith("test"):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            # Samples of other encodings and of wrong syntax, which the standard library has for its tools.
            continue
        for title, docstring in documented(tree):
            paragraphs = [part for part in re.split(r"\n\s*\n", docstring) if part.strip()]
            if len(paragraphs) < 2 or SECTION.search(paragraphs[0]):
                continue
            described = []
            for part in paragraphs[1:]:
                if SECTION.search(part):
                    break
                described.append(plain(part))
            summary, description = plain(paragraphs[0]), " ".join(described)
            if len(summary.split()) not in SUMMARY_WORDS or len(description.split()) not in DESCRIPTION_WORDS:
                continue
            if not (summary + description).isascii() or not summary[0].isalpha():
                continue
            yield {
                "document": f"{title}\n{description}",
                "summary": summary.rstrip(".") + ".",
                "package": package,
                "module": ".".join(path.relative_to(root).with_suffix("").parts),
            }


def main() -> None:
    """Write the three files and say what is in them."""
    seen: set[str] = set()
    # Test first: what is also in another split is left out of that one.
    for split in ("test", "validation", "train"):
        rows = []
        for package in SPLITS[split]:
            for row in pairs(package):
                # A method often takes over the text of another; one of them is enough.
                keys = {row["summary"].lower(), row["document"].partition("\n")[2].lower()}
                if not keys & seen:
                    seen |= keys
                    rows.append(row)
        random.Random(SEED).shuffle(rows)
        rows = rows[: LIMITS.get(split)]
        FOLDER.mkdir(exist_ok=True)
        with (FOLDER / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        versions = ", ".join(f"{name} {version(name)}" for name in SPLITS[split])
        print(f"{FOLDER / split}.jsonl: {len(rows)} rows from {versions}")


def version(package: str) -> str:
    """Return the installed version of a package."""
    if package == "stdlib":
        return platform.python_version()
    return importlib.metadata.version(package.replace("sklearn", "scikit-learn"))


if __name__ == "__main__":
    main()
