from __future__ import annotations

import importlib
import importlib.metadata
import io
import os
import re
import sys
import textwrap
import threading

import pytest

from autoft import plugins
from autoft.errors import PluginError
from autoft.plugins import described, hook_of, load_plugins


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


TASK = """
    from autoft.contracts import Task, TaskCard
    from autoft.hookspecs import hookimpl

    CARD = TaskCard(name='guess', summary="", columns=(), metrics=(), architecture="")

    class Guess(Task):
        card = CARD
        demo_rows = load_model = encode = predict = reference = None

    @hookimpl
    def autoft_tasks():
        return [Guess()]
"""

ADAPTER = """
    from autoft.contracts import Adapter
    from autoft.hookspecs import hookimpl
    from autoft.space import Float

    class Tiny(Adapter):
        name = "tiny"
        summary = "a few weights"
        space = {"learning_rate": Float(0.1, 1.0, 0.5)}
        attach = merge = None

    @hookimpl
    def autoft_strategies():
        return [Tiny()]
"""

COST = """
    from autoft.contracts import CostMetric
    from autoft.hookspecs import hookimpl

    class Reads(CostMetric):
        name = "reads"
        summary = "reads of the disk"
        unit = "count"
        columns = ('disk_reads',)
        measure = None

    @hookimpl
    def autoft_metrics():
        return [Reads()]
"""


@pytest.mark.parametrize("code", [AUGMENTER, TASK, ADAPTER, COST])
def test_the_plugins_that_the_next_tests_break_are_whole(install, code):
    catalog = load_plugins([install("autoft-whole", "whole", code)])
    assert catalog.plugins
    assert not catalog.broken


def test_two_cost_metrics_cannot_measure_the_same_figure(install):
    other = COST.replace('"reads"', '"disk"')
    with pytest.raises(PluginError, match="cost figure 'disk_reads'"):
        load_plugins([install("autoft-reads", "reads", COST), install("autoft-disk", "disk", other)])


def test_a_metric_joins_the_task_of_another_plugin(install):
    code = """
    from autoft.contracts import QualityMetric
    from autoft.hookspecs import hookimpl

    class Kappa(QualityMetric):
        name = "kappa"
        summary = "agreement beyond chance"
        tasks = ("guess",)
        def score(self, predictions, references, context):
            return 0.0

    @hookimpl
    def autoft_metrics():
        return [Kappa()]
    """
    catalog = load_plugins([install("autoft-guess", "guess", TASK), install("autoft-kappa", "kappa", code)])
    assert list(catalog.metrics_of(catalog.task("guess"))) == ["kappa"]


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
        (AUGMENTER.replace('name = "shout"', ""), None, "the strategy Shout has the name None"),
        (AUGMENTER.replace('"shout"', '"a shout/.."'), None, "the strategy Shout has the name 'a shout/..'"),
        (AUGMENTER.replace('summary = "upper case"', ""), None, "the strategy 'shout' has no summary"),
        (AUGMENTER.replace("[Shout()]", "[Shout(), Shout()]"), None, "offers the strategy 'shout' twice"),
        (TASK.replace("card = CARD", ""), None, "the task Guess has no card"),
        (
            TASK.replace("'guess'", "'guess', ignores=('train.epochs',)"),
            None,
            "a task's card can ignore train.class_weights",
        ),
        (ADAPTER.replace('"learning_rate"', '"rate"'), None, "the adapter 'tiny' lacks learning_rate"),
        (
            AUGMENTER.replace("summary", 'models = {"judge"}; summary'),
            None,
            "the strategy 'shout' lacks judge in its space",
        ),
        (COST.replace("columns = ('disk_reads',)", ""), None, "the cost metric 'reads' names no columns"),
        ("raise SystemExit('no more')", None, "SystemExit: no more"),
        ("raise GeneratorExit('no more')", None, "GeneratorExit: no more"),
        ("class Stop(BaseException): pass\nraise Stop('no more')", None, "Stop: no more"),
        ("class Mute(Exception):\n    def __str__(self): raise ValueError\nraise Mute", None, "Mute"),
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


def test_what_a_plugin_prints_is_no_part_of_what_a_command_prints(install, capsys):
    load_plugins([install("autoft-shout", "shout", "print('HELLO')\n" + textwrap.dedent(AUGMENTER))])
    assert capsys.readouterr() == ("", "HELLO\n")


def test_a_plugin_whose_import_takes_long_is_told_with_the_place(install, monkeypatch):
    class Screen(io.StringIO):
        told = threading.Event()

        def flush(self):
            self.told.set()

    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(plugins, "LONG", 0.05)
    waits = "import sys\nassert sys.stderr.told.wait(60)\n" + textwrap.dedent(AUGMENTER)
    point = install("autoft-slow", "slow", waits)
    assert list(load_plugins([point]).augmenters) == ["shout"]
    said = r"warning: the plugin slow \(autoft-slow\) has been loading for 0 s, at \S+autoft_slow_module\.py:2; the command"
    assert re.match(said, screen.getvalue())
    assert screen.getvalue().count("\n") == 1


def test_two_plugins_with_the_same_name_are_an_error_that_names_both(install):
    points = [install("autoft-shout", "shout", AUGMENTER), install("autoft-yell", "yell", AUGMENTER)]
    with pytest.raises(PluginError, match=r"strategy 'shout': autoft-shout \(shout\) and autoft-yell \(yell\)"):
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
    assert list(catalog.cost_metrics) == [
        "model_size",
        "latency",
        "inference_memory",
        "cpu_energy",
        "gpu_energy",
    ]
    assert not catalog.broken


def test_an_error_in_a_hook_names_it_with_its_plugin_and_another_does_not(catalog):
    task = catalog.task("text-classification")
    with pytest.raises((TypeError, AttributeError)) as raised:
        task.facts([7], {})
    said = described(raised.value)
    assert said.startswith(f"{type(raised.value).__name__}: ")
    assert said.endswith(" (in the hook facts of the plugin text-classification (autoft-text-classification))")
    with pytest.raises(ZeroDivisionError) as raised:
        1 / 0  # noqa: B018
    assert described(raised.value) == "ZeroDivisionError: division by zero"


NAMED = b"Metadata-Version: 2.1\nName: autoft-odd\nVersion: 1\n"
LISTED = b"[autoft]\nodd = no_such_module\n"


@pytest.mark.parametrize(
    ("metadata", "listed", "distribution", "error"),
    [
        (None, LISTED, "unknown distribution", "No module named 'no_such_module'"),
        (b"Name: \xff\n", LISTED, "a damaged distribution", "No module named 'no_such_module'"),
        (b"Version: 1\n", LISTED, "unknown distribution", "No module named 'no_such_module'"),
        (NAMED, b"[autoft]\nodd = :::\n", "autoft-odd", "names ':::', which is neither a module nor module:object"),
        (NAMED, b"[autoft]\nodd =\n", "autoft-odd", "names '', which is neither a module nor module:object"),
    ],
)
def test_a_distribution_whose_metadata_are_damaged_stops_nobody(metadata, listed, distribution, error, damaged):
    damaged(metadata, listed)
    catalog = load_plugins()
    (broken,) = [one for one in catalog.broken if one.name == "odd"]
    assert (broken.distribution, error in broken.error) == (distribution, True), broken
    assert "full" in catalog.strategies
    assert hook_of(sys._getframe()) is None


@pytest.mark.parametrize("listed", [b"[autoft]\nodd\n", b"[autoft]\n\xff = x\n"])
def test_a_list_of_entry_points_that_cannot_be_read_is_told_with_its_distribution(listed, damaged):
    damaged(NAMED, listed)
    with pytest.raises(PluginError, match=r"the entry_points\.txt of autoft-odd is damaged \(.*\), so that no program"):
        load_plugins()


@pytest.mark.parametrize("name", ["entry_points.txt", "METADATA"])
def test_a_pipe_in_the_place_of_what_a_distribution_says_of_itself_is_told_and_not_read(name, damaged, tmp_path):
    damaged(NAMED, LISTED)
    pipe = tmp_path / "autoft_odd-1.dist-info" / name
    pipe.unlink()
    os.mkfifo(pipe)
    with pytest.raises(
        PluginError, match=f"{re.escape(str(pipe))}: is no file, but a pipe .* install autoft_odd again"
    ):
        load_plugins()


@pytest.fixture
def damaged(tmp_path, monkeypatch):
    """Install a distribution with these files."""

    def install(metadata, listed):
        info = tmp_path / "autoft_odd-1.dist-info"
        info.mkdir()
        if metadata is not None:
            (info / "METADATA").write_bytes(metadata)
        (info / "entry_points.txt").write_bytes(listed)
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()
        plugins._owners.cache_clear()

    yield install
    plugins._owners.cache_clear()
