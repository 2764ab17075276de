"""Checks as data: which there are for an object, run by pytest or without it."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest import SkipTest

from autoft.contracts import CostMetric, Strategy, Task
from autoft.errors import PluginError, closest, first_line, kind_and_line, unknown_name
from autoft.plugins import Catalog, load_plugins
from autoft.testing.costs import cost_checks
from autoft.testing.models import Kind
from autoft.testing.probe import Praise, PraiseHits
from autoft.testing.strategies import strategy_checks
from autoft.testing.tasks import task_checks
from autoft.testing.workbench import CheckFailed, Workbench, subject_name

__all__ = ["Check", "CheckResult", "Subject", "check_plugin", "checks_of", "parametrize_with_checks", "run_checks"]

Subject = Task | Strategy | CostMetric
Outcome = Literal["passed", "failed", "skipped", "failed as expected"]

TRIED: tuple[Kind, ...] = ("encoder", "decoder")
"""The models that strategies are tried upon."""


@dataclass(frozen=True)
class Check:
    """One check of one object; call it, and it passes, raises, or raises ``unittest.SkipTest``.

    Attributes:
        subject: name of what is checked.
        name: of the check: ``check_compressor[onnx]``.
        summary: what holds where it passes.
    """

    subject: str
    name: str
    summary: str
    run: Callable[[], None] = field(repr=False)

    def __call__(self) -> None:
        """Run it.

        Raises:
            CheckFailed: it does not hold.
            SkipTest: there is nothing to check.
        """
        self.run()


@dataclass(frozen=True)
class CheckResult:
    """What came of a check.

    Attributes:
        subject: name of what was checked.
        check: the check's name.
        outcome: ``passed``, ``failed``, ``skipped`` or ``failed as expected``.
        seconds: it took.
        reason: of every outcome but ``passed``.
    """

    subject: str
    check: str
    outcome: Outcome
    seconds: float
    reason: str = ""


def checks_of(
    objects: Iterable[Subject], *, model: str | Path | None = None, catalog: Catalog | None = None
) -> list[Check]:
    """Return the checks for tasks, strategies and cost metrics, in the order in which they should run.

    Which there are follows from what an object is and does. Nothing is loaded or trained before the first check runs;
    checks of the same task share one tiny model.

    Args:
        objects: instances, of installed plugins or not.
        model: the folder of a model to use for tasks, where no tiny one of the kit suits them.
        catalog: what plugins offer; by default all that are installed.
    """
    given = list(objects)
    catalog = catalog or load_plugins()
    strategies = [one for one in given if isinstance(one, Strategy)]
    # The kit's own task, for what is no task itself.
    tried = replace(catalog, quality_metrics={**catalog.quality_metrics, PraiseHits.name: PraiseHits()})
    benches: dict[str, Workbench] = {
        kind: Workbench(Praise(), tried, strategies=strategies, kind=kind) for kind in TRIED
    }
    checks: list[Check] = []
    for one in given:
        if isinstance(one, Task):
            calls = task_checks(Workbench(one, catalog, strategies=strategies, model=model))
        elif isinstance(one, Strategy):
            calls = strategy_checks(one, benches)
        else:
            calls = cost_checks(one, benches[TRIED[0]])
        for call in calls:
            summary = (inspect.getdoc(call.function) or "").partition("\n")[0]
            name = call.function.__name__ + (f"[{call.of}]" if call.of else "")
            checks.append(Check(subject_name(one), name, summary, partial(call.function, *call.arguments)))
    return checks


def run_checks(
    objects: Iterable[Subject],
    *,
    expected_failures: Mapping[str, str] | None = None,
    model: str | Path | None = None,
    catalog: Catalog | None = None,
) -> Iterator[CheckResult]:
    """Run the checks of objects without pytest, and yield a record of each as it ends.

    Args:
        objects: as for :func:`checks_of`.
        expected_failures: names of checks that have to fail, each with a reason; one that passes has failed.
        model: as for :func:`checks_of`.
        catalog: as for :func:`checks_of`.

    Raises:
        ValueError: an expected failure has no reason, or names no check.
    """
    checks = checks_of(objects, model=model, catalog=catalog)
    expected = _expected(expected_failures, checks)
    for check in checks:
        begin = time.monotonic()
        outcome, reason = _outcome(check, expected.get(check.name))
        yield CheckResult(check.subject, check.name, outcome, time.monotonic() - begin, reason)


def _outcome(check: Check, expected: str | None) -> tuple[Outcome, str]:
    try:
        check()
    except SkipTest as reason:
        return "skipped", str(reason)
    except Exception as error:  # noqa: BLE001 - whatever foreign code raises is what the check found
        told = first_line(error) if isinstance(error, CheckFailed) else kind_and_line(error)
        return ("failed as expected", expected) if expected else ("failed", told)
    return ("failed", f"passes, though it is expected to fail: {expected}") if expected else ("passed", "")


def parametrize_with_checks(
    objects: Sequence[Subject],
    *,
    expected_failures: Mapping[str, str] | None = None,
    model: str | Path | None = None,
) -> Any:
    """Return a pytest decorator: the test is run once for each check, which it gets as the argument ``check``.

    ::

        @parametrize_with_checks(autoft_tasks())
        def test_conformance(check):
            check()

    Args:
        objects: as for :func:`checks_of`.
        expected_failures: names of checks that have to fail, each with a reason; one that passes fails the test.
        model: as for :func:`checks_of`.

    Raises:
        ValueError: an expected failure has no reason, or names no check.
    """
    import pytest

    checks = checks_of(objects, model=model)
    expected = _expected(expected_failures, checks)

    def marks(check: Check) -> list[Any]:
        # Only what an author expects, with the reason; strict, so that one that passes again is told.
        known = check.name in expected
        return [pytest.mark.xfail(reason=expected[check.name], strict=True)] if known else []

    return pytest.mark.parametrize(
        "check",
        [
            pytest.param(
                check,
                id=f"{check.subject}-{check.name}",
                marks=marks(check),
            )
            for check in checks
        ],
    )


def _expected(given: Mapping[str, str] | None, checks: Sequence[Check]) -> dict[str, str]:
    # What stands in brackets may be absent on this machine, as a strategy whose library is not installed.
    names = {check.name.partition("[")[0] for check in checks}
    for name, reason in (given or {}).items():
        if name.partition("[")[0] not in names:
            near = closest(name, names)
            raise ValueError(f"there is no {name!r} to fail" + (f"; did you mean {near!r}?" if near else ""))
        if not (isinstance(reason, str) and reason.strip()):
            raise ValueError(f"{name} is expected to fail; say why")
    return dict(given or {})


def check_plugin(name: str, *, model: str | Path | None = None) -> Iterator[CheckResult]:
    """Run the checks of an installed plugin, and yield a record of each as it ends.

    Args:
        name: of a plugin, a distribution, a task, a strategy or a cost metric.
        model: as for :func:`checks_of`.

    Raises:
        PluginError: nothing of this name is installed, it did not load, or it offers nothing that can be checked.
    """
    catalog = load_plugins()
    broken = [one for one in catalog.broken if name in {one.name, one.distribution}]
    if broken:
        raise PluginError(f"the plugin {broken[0].name} ({broken[0].distribution}) did not load: {broken[0].error}")
    offered: dict[str, Subject] = {**catalog.cost_metrics, **catalog.strategies, **catalog.tasks}
    plugins = [one for one in catalog.plugins if name in {one.name, one.distribution}]
    if plugins:
        names = [part for one in plugins for part in (*one.tasks, *one.strategies, *one.metrics)]
        subjects = [offered[part] for part in names if part in offered]
        if not subjects:
            raise PluginError(f"{name} offers metrics only; they are checked with the tasks that they are for")
    elif name in offered:
        subjects = [offered[name]]
    else:
        known = {part for one in catalog.plugins for part in (one.name, one.distribution)} | set(offered)
        raise PluginError(unknown_name("plugin", name, known) + catalog.broken_hint())
    return run_checks(subjects, model=model, catalog=catalog)
