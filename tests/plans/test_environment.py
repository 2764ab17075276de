"""The versions that a report tells to install: with them the same command must find task, model and data."""

from __future__ import annotations

from importlib.metadata import version

import autoft
from autoft.plans.environment import environment, used_plugins
from autoft.plugins import Plugin

OWN = Plugin("classify", "autoft-classify", "1.2", tasks=("classify",), metrics=("score",))
OTHER = Plugin("tag", "autoft-tag", "1.3", tasks=("tag",))
STRATEGIES = Plugin("more", "autoft-more", "1.4", strategies=("shrink",))


def test_what_has_no_part_in_a_run_is_not_told():
    assert used_plugins([OWN, OTHER, STRATEGIES], ["classify"]) == [OWN, STRATEGIES]
    assert used_plugins([OWN, OTHER, STRATEGIES], ["classify", "tag"]) == [OWN, OTHER, STRATEGIES]


def test_plugins_and_packages_that_ship_models_or_data_are_told():
    recipe = {
        "model": ["package://yaml/model", "owner/name"],
        "data": {"train": "package://numpy/rows.csv", "test": "package://no_such_module/rows.csv"},
        "seed": 3,
    }
    found = environment([OWN, STRATEGIES], recipe)
    assert found["autoft"] == autoft.__version__
    assert (found["autoft-classify"], found["autoft-more"]) == ("1.2", "1.4")
    assert (found["PyYAML"], found["numpy"]) == (version("PyYAML"), version("numpy"))
    assert not any("no_such" in name for name in found)
    assert "PyYAML" not in environment([OWN], {})
