"""Write what functions of four packages do: their signature as the prompt, the first paragraph of their docstring.

The packages are numpy, pandas, scipy and scikit-learn as they are installed, all under the BSD-3-Clause licence. Sources
are parsed, not imported. Functions of one file are in one split, so that no test function has a neighbour in training.

    python recipes/generation/make_data.py
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("numpy", "pandas", "scikit-learn", "scipy")
LONGEST_SUMMARY = 160
LONGEST_SIGNATURE = 300


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the public functions and methods of a module, each with the name of its class, or an empty one."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield "", node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from ((node.name, member) for member in node.body if isinstance(member, ast.FunctionDef))


def summary(node: ast.FunctionDef) -> str:
    """Return the first paragraph of the docstring on one line."""
    return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())


def signature(owner: str, node: ast.FunctionDef) -> str:
    """Return the code down to where the docstring begins, annotations left out."""
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    line = f"def {node.name}({ast.unparse(node.args)}):"
    return f'class {owner}:\n    {line}\n        """' if owner else f'{line}\n    """'


def rows(package: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a package, each with the split that its file belongs to."""
    files = importlib.metadata.files(package) or []
    for file in sorted(file for file in files if file.suffix == ".py" and "tests" not in file.parts):
        share = zlib.crc32(str(file).encode()) % 10
        split = {0: "test", 1: "validation"}.get(share, "train")
        for owner, node in functions(ast.parse(Path(str(file.locate())).read_text(encoding="utf-8"))):
            text = summary(node)
            prompt = signature(owner, node)
            if (
                not node.name.startswith("_")
                # A text that is filled in when the module is imported.
                and "%(" not in text
                and 10 <= len(text) <= LONGEST_SUMMARY
                and len(prompt) <= LONGEST_SIGNATURE
            ):
                yield split, {"prompt": prompt, "completion": text, "package": package}


def main() -> None:
    """Write ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl`` into ``data`` beside this file."""
    folder = Path(__file__).parent / "data"
    folder.mkdir(exist_ok=True)
    found: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    for package in PACKAGES:
        for split, row in rows(package):
            found[split].append(row)
    for split, lines in found.items():
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{split}.jsonl").write_text(content, encoding="utf-8")
        print(f"{split}: {len(lines)} functions")


if __name__ == "__main__":
    main()
