from __future__ import annotations

import importlib.metadata
import sys
import textwrap

import pytest

from autoft.errors import PluginError
from autoft.plugins import load_plugins


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution with one module and one entry point of the group autoft, as pip would."""
    monkeypatch.syspath_prepend(tmp_path)

    def run(distribution: str, name: str, code: str, target: str | None = None) -> importlib.metadata.EntryPoint:
        module = f"{distribution.replace('-', '_')}_module"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))
        info = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[autoft]\n{name} = {target or module}\n")
        sys.modules.pop(module, None)
        importlib.invalidate_caches()
        found = importlib.metadata.distribution(distribution).entry_points
        return next(iter(found.select(group="autoft")))

    return run


AUGMENTER = """
    from autoft.contracts import Augmenter
    from autoft.hookspecs import hookimpl

    class Shout(Augmenter):
        name = "shout"
        summary = "upper case"
        def augment(self, row, card, rng, params, learned=None):
            return {**row, "text": row["text"].upper()}

    @hookimpl
    def autoft_strategies():
        return [Shout()]
"""


def test_a_plugin_of_a_stranger_is_found_and_named(install):
    catalog = load_plugins([install("autoft-shout", "shout", AUGMENTER)])
    assert list(catalog.augmenters) == ["shout"]
    (plugin,) = catalog.plugins
    assert (plugin.name, plugin.distribution, plugin.version, plugin.strategies) == (
        "shout",
        "autoft-shout",
        "1.2",
        ("shout",),
    )


@pytest.mark.parametrize(
    ("code", "target", "expected"),
    [
        ("import does_not_exist_anywhere", None, "ModuleNotFoundError: No module named 'does_not_exist_anywhere'"),
        ("raise RuntimeError('half installed')", None, "RuntimeError: half installed"),
        ("x = 1", None, "offers nothing"),
        ("x = 1", "autoft_bad_module:absent", "AttributeError"),
        (
            "from autoft.hookspecs import hookimpl\n@hookimpl\ndef autoft_strategys():\n    return []",
            None,
            "unknown hook 'autoft_strategys'",
        ),
        (
            "from autoft.hookspecs import hookimpl\n@hookimpl\ndef autoft_tasks():\n    return ['a task']",
            None,
            "which is no Task instance",
        ),
        (
            "from autoft.hookspecs import hookimpl\n@hookimpl\ndef autoft_tasks():\n    return 'tasks'",
            None,
            "has to return a list or tuple",
        ),
    ],
)
def test_a_broken_plugin_is_kept_with_its_reason_and_stops_nobody(install, code, target, expected):
    broken = install("autoft-bad", "bad", code, target)
    good = install("autoft-shout", "shout", AUGMENTER)
    catalog = load_plugins([broken, good])
    assert list(catalog.augmenters) == ["shout"]
    (kept,) = catalog.broken
    assert kept.distribution == "autoft-bad"
    assert expected in kept.error
    assert kept.error in catalog.broken_hint()


def test_two_plugins_with_the_same_name_are_an_error_that_names_both(install):
    points = [install("autoft-shout", "shout", AUGMENTER), install("autoft-yell", "yell", AUGMENTER)]
    with pytest.raises(PluginError, match="strategy 'shout': autoft-shout and autoft-yell"):
        load_plugins(points)


def test_an_unknown_task_names_the_closest_one_and_what_did_not_load(install):
    catalog = load_plugins()
    with pytest.raises(PluginError, match="Did you mean 'text-classification'") as caught:
        catalog.task("text-clasification")
    assert caught.value.exit_code == 3
    broken = load_plugins([install("autoft-bad", "bad", "import absent_module_x")])
    with pytest.raises(PluginError, match=r"autoft-bad.*absent_module_x"):
        broken.task("text-classification")


def test_the_built_in_strategies_come_through_the_same_door():
    catalog = load_plugins()
    assert {"full", "head-only", "lora"} <= set(catalog.adapters)
    assert {"int8", "nf4"} <= set(catalog.quantizers)
    assert {"dynamic-int8", "onnx", "onnx-int8", "magnitude-pruning"} <= set(catalog.compressors)
    assert {"random-insertion", "random-deletion", "random-swap", "random-replacement", "character-noise"} <= set(
        catalog.augmenters
    )
    assert list(catalog.cost_metrics) == ["model_size", "latency", "inference_memory"]
    assert not catalog.broken
