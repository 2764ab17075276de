"""Write sentences of Python documentation in which the names from code are marked: what is a parameter, a class ...?

The sentences are real: docstrings of packages that autoft installs anyway (scipy, pandas, networkx, optuna,
scikit-learn, numpy), and of matplotlib, which has to be installed; all under BSD or MIT-like licences. Their authors mark what comes from code, as in
``If `axis` is None``. Here the marks are taken off, and become spans to find again. What a name is follows from the code:

- ``parameter``: of the function or class that the docstring documents;
- ``class``, ``function``: defined in the package, or named so by a Sphinx role;
- ``value``: True, False, None, a number, a quoted string;
- ``code``: other code, as attributes and expressions.

Authors do not mark every name, so no model can be right everywhere. Only sentences with at least one mark are taken.
Training reads some packages, validation another, test two more: most names of the test were never seen.

Files: ``data/train.jsonl``, ``data/validation.jsonl``, ``data/test.jsonl`` beside this script, rows
``{"text", "spans": [{"start", "end", "label"}], "package"}``. The same packages give the same files.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SPLITS = {
    "train": ("scipy", "pandas", "networkx", "optuna"),
    "validation": ("sklearn",),
    "test": ("numpy", "matplotlib"),
}
SENTENCES = {"train": 800, "validation": 400, "test": 500}
"""Of each package at most."""

MARK = re.compile(
    r":(?:py:)?(?P<role>[a-z]+):`(?P<target>[^`\n]+)`|``(?P<literal>[^`\n]+)``|`(?P<name>[^`\n]+)`|"
    r"(?<![\w*])\*(?P<stressed>\w+)\*(?![\w*])"
)
ROLES = {"class": "class", "exc": "class", "func": "function", "meth": "function", "attr": "code", "obj": "code"}
VALUE = re.compile(r"True|False|None|[-+]?\d[\d._]*(?:e[-+]?\d+)?|'[^']*'|\"[^\"]*\"")
STRANGE = re.compile(r"[`|\\$\[\]{}<>#^]|:\w+:|https?:|\.\. |>>>|\*\w|\w\*|__?(?=[\s.,])")
ENDS = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!vs\.)(?<!cf\.)\s+(?=[A-Z`:*])")


def documented(package: str) -> tuple[list[tuple[str, set[str]]], set[str], set[str]]:
    """Return each docstring of a package with the parameters of what it documents; and its classes and functions."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {package} is not installed")
    found, classes, functions = [], set(), set()
    for path in sorted(Path(spec.submodule_search_locations[0]).rglob("*.py")):
        if {"tests", "testing", "externals", "_vendor"} & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                classes.add(node.name)
                makers = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
                parameters = {name for maker in makers for name in arguments(maker)}
            elif isinstance(node, ast.FunctionDef):
                functions.add(node.name)
                parameters = arguments(node)
            else:
                continue
            if text := ast.get_docstring(node):
                found.append((inspect.cleandoc(text), parameters - {"self", "cls"}))
    return found, classes, functions


def arguments(node: ast.FunctionDef) -> set[str]:
    """Return the names of a function's parameters."""
    named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return {a.arg for a in [*named, node.args.vararg, node.args.kwarg] if a is not None}


def sentences(docstring: str) -> Iterator[str]:
    """Give the sentences of a docstring's prose: no headings, lists, examples, directives or parameter lines."""
    paragraph: list[str] = []
    depth, skipping = 0, -1
    lines = docstring.splitlines()
    for i, line in enumerate([*lines, ""]):
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if skipping >= 0 and text and indent > skipping:
            continue
        if text:
            skipping = -1
        under = lines[i + 1].strip() if i + 1 < len(lines) else ""
        heading = re.fullmatch(r"[-=~^]{3,}", text) or re.fullmatch(r"[-=~^]{3,}", under)
        typed = re.match(r"[\w*, .]+ : ", text)
        if not text or heading or typed or indent != depth or text.startswith((">>>", "..", "-", "*  ", "|")):
            if paragraph:
                yield from ENDS.split(" ".join(" ".join(paragraph).split()))
            paragraph = []
            depth = indent
        if not text or heading or typed:
            continue
        if text.startswith((">>>", "..", "|")) or text.endswith("::"):
            skipping = indent
            continue
        paragraph.append(text)


def unmarked(sentence: str, parameters: set[str], classes: set[str], functions: set[str]) -> dict[str, object] | None:
    """Return the plain text of a sentence and its spans; None where it has none, or markup that is not understood."""
    text, at, spans = "", 0, []
    for match in MARK.finditer(sentence):
        text += sentence[at : match.start()]
        at = match.end()
        role = match["role"]
        inside = match["target"] or match["literal"] or match["name"] or match["stressed"]
        if role and role not in ROLES:
            return None
        if title := re.fullmatch(r"(.+?)\s*<.+>", inside):
            inside = title[1]
        inside = inside.split(".")[-1] if inside.startswith("~") else inside.lstrip(".!")
        if not inside or len(inside) > 40 or inside != inside.strip():
            return None
        name = inside.removesuffix("()").split(".")[-1]
        if inside.lstrip("*") in parameters:
            label = "parameter"
        elif match["stressed"]:
            # Stress laid on a word of the text.
            text += inside
            continue
        elif VALUE.fullmatch(inside):
            label = "value"
        elif ROLES.get(role or "", "code") != "code":
            label = ROLES[role]
        elif name in classes:
            label = "class"
        elif inside.endswith("()") or (name in functions and len(name) > 2):
            label = "function"
        else:
            label = "code"
        spans.append({"start": len(text), "end": len(text) + len(inside), "label": label})
        text += inside
    text += sentence[at:]
    borders = [0, *(place for span in spans for place in (span["start"], span["end"])), len(text)]
    outside = "".join(text[a:b] for a, b in zip(borders[::2], borders[1::2], strict=True))
    plain = len(spans) > 0 and 6 <= len(text.split()) <= 40 and text.endswith(".") and text[0].isupper()
    return {"text": text, "spans": spans} if plain and not STRANGE.search(outside) else None


def main() -> None:
    """Write sentences of Python documentation with the names from code marked, as three files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "data")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for split in ("test", "validation", "train"):
        chosen = []
        for package in SPLITS[split]:
            docstrings, classes, functions = documented(package)
            rows = {}
            for docstring, parameters in docstrings:
                for sentence in sentences(docstring):
                    row = unmarked(sentence, parameters, classes, functions)
                    if row and row["text"] not in seen:
                        rows.setdefault(row["text"], {**row, "package": package})
            seen |= rows.keys()
            # By a digest of the text: a new version of a package moves few sentences in or out.
            order = sorted(rows, key=lambda text: hashlib.sha256(text.encode()).digest())
            chosen += [rows[text] for text in order[: SENTENCES[split]]]
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        counts = Counter(span["label"] for row in chosen for span in row["spans"])
        said = ", ".join(f"{count} {label}" for label, count in counts.most_common())
        sys.stdout.write(f"{split}: {len(chosen)} sentences of {', '.join(SPLITS[split])}; {said}\n")


if __name__ == "__main__":
    main()
