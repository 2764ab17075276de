"""docs/conformance.md lists every check with what it says of itself."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from autoft.testing import costs, strategies, tasks

PAGE = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("title", "module"),
    [("Tasks", tasks), ("Strategies", strategies), ("Cost metrics", costs)],
    ids=lambda one: str(one),
)
def test_the_page_says_what_each_check_says(title, module):
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)[1]
    listed = dict(re.findall(r"^\| `(check_\w+)` \| (.*) \|$", section, re.MULTILINE))
    wanted = {
        name: inspect.getdoc(function).splitlines()[0].replace("``", "`")
        for name, function in vars(module).items()
        if name.startswith("check_") and inspect.getmodule(function) is module
    }
    assert listed == wanted
