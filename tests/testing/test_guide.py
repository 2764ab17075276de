"""The plugin of docs/plugins.md passes the kit."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autoft.plugins import load_plugins
from autoft.testing import run_checks

GUIDE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
PACKAGE = "autoft_review_stars"


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The module with the guide's hooks."""
    for path, code in re.findall(r"```python\n# (\S+)\n(.*?)```", GUIDE, re.DOTALL):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield importlib.import_module(PACKAGE)
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


def test_the_plugin_of_the_guide_passes(plugin):
    known = load_plugins()
    own = [*plugin.autoft_tasks(), *plugin.autoft_strategies(), *plugin.autoft_metrics()]
    stars, crop, half, error, cpu = own
    # One strategy of each further stage: that ONNX Runtime takes what the guide exports is tested with its search.
    strategies = {name: known.strategies[name] for name in ("full", "nf4", "lora")}
    catalog = replace(known, strategies=strategies, quality_metrics={**known.quality_metrics, error.name: error})
    results = list(run_checks([stars, crop, half, cpu], catalog=catalog))
    assert {(one.subject, one.check): one.reason for one in results if one.outcome == "failed"} == {}
    assert {one.subject for one in results if one.outcome == "passed"} == {
        "review-stars",
        "random-crop",
        "half-weights",
        "cpu_time",
    }
    passed = {one.check for one in results if one.outcome == "passed"}
    assert {"check_augmenter[random-crop]", "check_compressor[half-weights]", "check_scores_near_perfect"} <= passed
