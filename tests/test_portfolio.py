"""What is known of earlier searches: the shipped file is usable, and a run gives its best configurations."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from autoft.plans.efforts import TRAIN_SPACE
from autoft.portfolio import PORTFOLIO, settings_like

ENTRIES = json.loads(PORTFOLIO.read_text(encoding="utf-8"))


def write(path, *entries):
    path.write_text(json.dumps(list(entries)), encoding="utf-8")
    return path


def entry(task="text-classification", model_bytes=1e8, rate=1e-4):
    return {
        "task": task,
        "model_bytes": model_bytes,
        "rows": 1000,
        "settings": [{"pipeline": "full", "params": {"full.learning_rate": rate}}],
    }


def test_the_model_nearest_in_size_says_what_to_try(tmp_path):
    path = write(tmp_path / "known.json", entry(model_bytes=1e7, rate=3e-4), entry(model_bytes=1e8, rate=1e-4))

    def rates(task, size):
        return [setting.params["full.learning_rate"] for setting in settings_like(task, size, path)]

    assert rates("text-classification", 1.2e7) == [3e-4]
    assert rates("text-classification", 9e7) == [1e-4]
    # 3.2e7 is the middle of both in the logarithm.
    assert rates("text-classification", 3.0e7) == [3e-4]
    assert rates("text-classification", 3.4e7) == [1e-4]
    assert rates("text-classification", 3.9e8) == [1e-4]
    assert rates("text-classification", 4.1e8) == []
    assert rates("token-classification", 1e8) == []
    assert rates("text-classification", 0) == []


@pytest.mark.parametrize("known", ENTRIES, ids=lambda one: f"{one['task']}, {one['model_bytes']} bytes")
def test_every_setting_that_is_shipped_is_one_that_plans_can_have(known, catalog):
    assert known["task"] in catalog.tasks
    assert 1 <= len(known["settings"]) <= 5
    for setting in known["settings"]:
        *quantizer, adapter = setting["pipeline"].split("+")
        assert set(quantizer) <= set(catalog.quantizers)
        domains = dict(TRAIN_SPACE)
        for owner in (adapter, *quantizer, *str(setting["params"]["augment"]).split("+")):
            if owner != "none":
                domains |= {f"{owner}.{name}": domain for name, domain in catalog.strategies[owner].space.items()}
        # Narrow models get higher rates, the narrowest the highest.
        narrowest = SimpleNamespace(config={"hidden_size": 1})
        scale = catalog.adapters[adapter].rate_scale(narrowest)
        for name, value in setting["params"].items():
            if name == f"{adapter}.learning_rate":
                assert domains[name].low <= value <= scale * domains[name].high
            elif name not in {"augment", "regularize"}:
                assert domains[name].contains(value), (name, value)
