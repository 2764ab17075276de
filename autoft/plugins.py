"""Discovery of plugins, and the catalog of what they offer.

Entry points of the group ``autoft`` are loaded one by one: one that fails is kept as a :class:`BrokenPlugin` and stops
nobody else, which pluggy's own loader does not guard against.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import re
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, MappingProxyType, TracebackType
from typing import TypeVar

import pluggy

from autoft import hookspecs
from autoft.contracts import (
    Adapter,
    Augmenter,
    Compressor,
    CostMetric,
    QualityMetric,
    Quantizer,
    Regularizer,
    Strategy,
    Task,
    TaskCard,
)
from autoft.errors import AutoftError, PluginError, first_line, kind_and_line, unknown_name, without_controls

__all__ = ["BrokenPlugin", "Catalog", "Plugin", "described", "hook_of", "load_plugins"]

GROUP = "autoft"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""Names become parts of parameter names (``lora.rank``), of pipelines (``nf4+lora``) and of folders."""
IGNORABLE = frozenset({"train.dropout", "train.label_smoothing", "train.class_weights", "train.loss"})
"""What a task may leave unused: the training loop itself reads the other parameters."""
LONG = 30.0
"""Seconds from which on it is told that a plugin is still being imported."""
Kind = TypeVar("Kind", bound=Strategy)


@dataclass(frozen=True)
class Plugin:
    """One plugin that loaded, and the names of what it offers."""

    name: str
    distribution: str
    version: str
    tasks: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class BrokenPlugin:
    """One plugin that did not load, and why."""

    name: str
    distribution: str
    version: str
    error: str


@dataclass(frozen=True)
class Catalog:
    """All that the installed plugins offer, by name."""

    tasks: Mapping[str, Task] = field(default_factory=dict)
    strategies: Mapping[str, Strategy] = field(default_factory=dict)
    quality_metrics: Mapping[str, QualityMetric] = field(default_factory=dict)
    cost_metrics: Mapping[str, CostMetric] = field(default_factory=dict)
    plugins: tuple[Plugin, ...] = ()
    broken: tuple[BrokenPlugin, ...] = ()

    def task(self, name: str) -> Task:
        """Return the task of this name.

        Raises:
            PluginError: no plugin offers it; says the closest name, and which plugins did not load.
        """
        if name not in self.tasks:
            raise PluginError(unknown_name("task", name, self.tasks) + self.broken_hint())
        return self.tasks[name]

    def metrics_of(self, task: Task) -> dict[str, QualityMetric]:
        """Return the metrics of a task that are installed: those of its card in its order, then what plugins add."""
        named = [name for name in task.card.metrics if name in self.quality_metrics]
        added = [name for name, metric in self.quality_metrics.items() if task.card.name in metric.tasks]
        return {name: self.quality_metrics[name] for name in dict.fromkeys([*named, *added])}

    def of_kind(self, kind: type[Kind]) -> dict[str, Kind]:
        """Return the strategies of a kind, by name."""
        return {name: strategy for name, strategy in self.strategies.items() if isinstance(strategy, kind)}

    @property
    def adapters(self) -> dict[str, Adapter]:
        """The adapters, by name."""
        return self.of_kind(Adapter)  # type: ignore[type-abstract]

    @property
    def quantizers(self) -> dict[str, Quantizer]:
        """The quantizers of base models, by name."""
        return self.of_kind(Quantizer)  # type: ignore[type-abstract]

    @property
    def augmenters(self) -> dict[str, Augmenter]:
        """The augmenters, by name."""
        return self.of_kind(Augmenter)  # type: ignore[type-abstract]

    @property
    def regularizers(self) -> dict[str, Regularizer]:
        """The regularizers, by name."""
        return self.of_kind(Regularizer)

    @property
    def compressors(self) -> dict[str, Compressor]:
        """The compressors, by name."""
        return self.of_kind(Compressor)  # type: ignore[type-abstract]

    def broken_hint(self) -> str:
        """Return a sentence about plugins that did not load, or nothing."""
        if not self.broken:
            return ""
        broken = "; ".join(f"{plugin.name} ({plugin.distribution}): {plugin.error}" for plugin in self.broken)
        return f" Some plugins did not load: {broken}."


def _installed() -> importlib.metadata.EntryPoints:
    """Return the entry points of the group ``autoft``.

    Raises:
        PluginError: the list of a distribution, whether it has plugins or not, cannot be read.
    """
    for folder in sys.path:
        for name in ("entry_points.txt", "METADATA"):
            for path in Path(folder).glob(f"*-info/{name}"):
                if not path.is_file():
                    raise PluginError(
                        f"{path}: is no file, but a pipe or a device, which a program that lists what is installed would read without "
                        f"end; install {path.parent.name.partition('-')[0]} again, or remove {path.parent}"
                    )
    try:
        return importlib.metadata.entry_points(group=GROUP)
    except (TypeError, ValueError) as error:
        for distribution in importlib.metadata.distributions():
            try:
                distribution.entry_points  # noqa: B018 - reads the file
            except (TypeError, ValueError) as damage:
                where = distribution.locate_file("")
                raise PluginError(
                    f"{where}: the entry_points.txt of {_named(distribution)[0]} is damaged ({first_line(damage)}), so that no program "
                    "of this environment can list its plugins; install it again, or remove it"
                ) from error
        raise


def _distribution(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    return _named(point.dist) if point.dist else ("unknown distribution", "")


def _named(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    """Return name and version of a distribution as far as its metadata can be read."""
    try:
        # Of a damaged one they are None, whatever their types say.
        return distribution.name or "unknown distribution", distribution.version or ""
    except (TypeError, ValueError, KeyError):
        return "a damaged distribution", ""


@contextlib.contextmanager
def _told_where_long(point: importlib.metadata.EntryPoint) -> Iterator[None]:
    """Say on the error stream, once, that a plugin is still being imported: one that waits without end leaves a command mute.

    It is not ended: what it is at cannot be known, as on a slow disk, and no thread can be ended from outside.
    """
    loading = threading.get_ident()

    def tell() -> None:
        package = point.module.partition(".")[0]
        frames = traceback.walk_stack(sys._current_frames().get(loading))
        own = (
            f", at {frame.f_code.co_filename}:{line}"
            for frame, line in frames
            if str(frame.f_globals.get("__name__")).partition(".")[0] == package
        )
        said = (
            f"warning: the plugin {point.name} ({_distribution(point)[0]}) has been loading for {LONG:.0f} s{next(own, '')}; the command "
            "goes on once that ends. If it does not, press Ctrl-C and uninstall it"
        )
        print(without_controls(said), file=sys.stderr, flush=True)  # noqa: T201 - a command that hangs has no other word

    timer = threading.Timer(LONG, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        # No other thread may be left where a worker is forked.
        timer.cancel()
        timer.join()


def _is_object(point: importlib.metadata.EntryPoint) -> bool:
    """Say whether an entry point has the form ``module`` or ``module:object``."""
    return point.pattern.match(point.value) is not None


def load_plugins(entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> Catalog:
    """Load every installed plugin and fold what they offer into a catalog.

    Args:
        entry_points: those to load; by default all of the group ``autoft`` in the environment.

    Raises:
        PluginError: two plugins offer the same name; the message names both distributions. Or an installed distribution is
            damaged, so that nothing in the environment can list what is installed.
    """
    points = _installed() if entry_points is None else entry_points
    catalog = _Fold()
    # Ours first: a metric of a stranger must not raise the peak memory that ours reads.
    # What a plugin prints is no part of what a command does, which may be JSON.
    with contextlib.redirect_stdout(sys.stderr):
        for point in sorted(points, key=lambda point: (not point.value.startswith("autoft."), point.name, point.value)):
            catalog.add(point)
    return catalog.freeze()


def hook_of(at: FrameType | TracebackType | None) -> str | None:
    """Say in which hook of a plugin a call or an error is, as ``the hook encode of the plugin my-task (autoft-my-task)``.

    The innermost plugin on the stack, and its function that something else called. What comes with autoft itself is no plugin here.

    Args:
        at: the innermost frame, or the traceback of an error.
    """
    stack: list[FrameType] = []
    while at is not None:
        if isinstance(at, TracebackType):
            stack.insert(0, at.tb_frame)
            at = at.tb_next
        else:
            stack.append(at)
            at = at.f_back
    found: tuple[str, str] | None = None
    for frame in stack:
        module = str(frame.f_globals.get("__name__", ""))
        package, owner = module.partition(".")[0], _owner(module)
        if owner is not None and (found is None or owner == found[0]):
            found = owner, frame.f_code.co_name
        elif found is not None and package == "autoft":
            break
    return f"the hook {found[1]} of the plugin {found[0]}" if found else None


def described(error: BaseException) -> str:
    """Return one line about an error: its kind, what it says, and the hook of a plugin that it comes from.

    Autoft's own errors, which say where and what by themselves, are told as they are.
    """
    if isinstance(error, AutoftError):
        return first_line(error)
    at = hook_of(error.__traceback__)
    return kind_and_line(error) + (f" (in {at})" if at else "")


@functools.cache
def _owners() -> dict[str, str]:
    """Return which plugin is behind the module that an entry point names."""
    return {
        point.module: f"{point.name} ({_distribution(point)[0]})" if point.dist else point.name
        for point in _installed()
        if _is_object(point) and point.module.partition(".")[0] != "autoft"
    }


def _owner(module: str) -> str | None:
    """Return which plugin a module belongs to: that of the nearest package above it that an entry point names."""
    while module and module not in _owners():
        module = module.rpartition(".")[0]
    return _owners().get(module)


class _Fold:
    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.strategies: dict[str, Strategy] = {}
        self.quality: dict[str, QualityMetric] = {}
        self.cost: dict[str, CostMetric] = {}
        self.plugins: list[Plugin] = []
        self.broken: list[BrokenPlugin] = []
        self.owners: dict[tuple[str, str], str] = {}

    def add(self, point: importlib.metadata.EntryPoint) -> None:
        distribution, version = _distribution(point)
        try:
            with _told_where_long(point):
                tasks, strategies, metrics = _offers(point)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - foreign code, which must not stop the other plugins
            self.broken.append(BrokenPlugin(point.name, distribution, version, kind_and_line(error)))
            return
        for task in tasks:
            self._own("task", task.card.name, point, distribution)
            self.tasks[task.card.name] = task
        for strategy in strategies:
            self._own("strategy", strategy.name, point, distribution)
            self.strategies[strategy.name] = strategy
        for metric in metrics:
            self._own("metric", metric.name, point, distribution)
            if isinstance(metric, CostMetric):
                for column in metric.columns:
                    self._own("cost figure", column, point, distribution)
                self.cost[metric.name] = metric
            else:
                self.quality[metric.name] = metric
        self.plugins.append(
            Plugin(
                point.name,
                distribution,
                version,
                tuple(task.card.name for task in tasks),
                tuple(strategy.name for strategy in strategies),
                tuple(metric.name for metric in metrics),
            )
        )

    def freeze(self) -> Catalog:
        return Catalog(
            MappingProxyType(self.tasks),
            MappingProxyType(self.strategies),
            MappingProxyType(self.quality),
            MappingProxyType(self.cost),
            tuple(self.plugins),
            tuple(self.broken),
        )

    def _own(self, kind: str, name: str, point: importlib.metadata.EntryPoint, distribution: str) -> None:
        owner = f"{distribution} ({point.name})"
        other = self.owners.setdefault((kind, name), owner)
        if other != owner:
            raise PluginError(f"two plugins offer the {kind} {name!r}: {other} and {owner}; uninstall one of them")


def _offers(
    point: importlib.metadata.EntryPoint,
) -> tuple[list[Task], list[Strategy], list[QualityMetric | CostMetric]]:
    if not _is_object(point):
        raise ValueError(f"its entry point names {point.value!r}, which is neither a module nor module:object")
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(point.load(), name=point.name)
    manager.check_pending()
    tasks = _flatten(manager.hook.autoft_tasks(), Task, "autoft_tasks")
    strategies = _flatten(manager.hook.autoft_strategies(), Strategy, "autoft_strategies")
    metrics = _flatten(manager.hook.autoft_metrics(), (QualityMetric, CostMetric), "autoft_metrics")
    if not (tasks or strategies or metrics):
        raise ValueError(
            "offers nothing: implement one of the hooks autoft_tasks, autoft_strategies, autoft_metrics with "
            "@autoft.hookspecs.hookimpl"
        )
    for task in tasks:
        if not isinstance(getattr(task, "card", None), TaskCard):
            raise TypeError(f"the task {type(task).__name__} has no card; set card = TaskCard(...)")
        if not set(task.card.ignores) <= IGNORABLE:
            raise ValueError(f"a task's card can ignore {', '.join(sorted(IGNORABLE))}; given {task.card.ignores}")
    _check_names("task", [task.card for task in tasks])
    _check_names("strategy", strategies)
    _check_names("metric", metrics)
    for strategy in strategies:
        if isinstance(strategy, Adapter) and "learning_rate" not in strategy.space:
            raise ValueError(f"the adapter {strategy.name!r} lacks learning_rate in its space; training reads it")
        if missing := sorted(set(strategy.models) - set(strategy.space)):
            raise ValueError(f"the strategy {strategy.name!r} lacks {missing[0]} in its space; it is among its models")
    for metric in metrics:
        if isinstance(metric, CostMetric) and not getattr(metric, "columns", ()):
            raise ValueError(f"the cost metric {metric.name!r} names no columns")
    return tasks, strategies, metrics


def _check_names(kind: str, values: Sequence[TaskCard | Strategy | QualityMetric | CostMetric]) -> None:
    for value in values:
        name = getattr(value, "name", None)
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise ValueError(
                f"the {kind} {type(value).__name__} has the name {name!r}; a name is letters, digits, '-' and '_'"
            )
        if not isinstance(getattr(value, "summary", None), str):
            raise TypeError(f"the {kind} {name!r} has no summary; set summary to one line of text")
    twice = [name for name, count in Counter(value.name for value in values).items() if count > 1]
    if twice:
        raise ValueError(f"offers the {kind} {twice[0]!r} twice")


def _flatten(answers: list[object], kind: type | tuple[type, ...], hook: str) -> list:  # type: ignore[type-arg]
    values = []
    for answer in answers:
        if not isinstance(answer, list | tuple):
            raise TypeError(f"{hook} returned {type(answer).__name__}; it has to return a list or tuple")
        for value in answer:
            if not isinstance(value, kind):
                names = kind.__name__ if isinstance(kind, type) else " or ".join(one.__name__ for one in kind)
                raise TypeError(f"{hook} returned {value!r}, which is no {names} instance")
            values.append(value)
    return values
