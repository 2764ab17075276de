"""Discovery of plugins, and the catalog of what they offer.

Entry points of the group ``autoft`` are loaded one by one: one that fails is kept as a :class:`BrokenPlugin` and stops
nobody else, which pluggy's own loader does not guard against.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

import pluggy

from autoft import hookspecs
from autoft.contracts import Adapter, Augmenter, Compressor, CostMetric, QualityMetric, Quantizer, Strategy, Task
from autoft.errors import PluginError, unknown_name

__all__ = ["BrokenPlugin", "Catalog", "Plugin", "load_plugins"]

GROUP = "autoft"
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
    def compressors(self) -> dict[str, Compressor]:
        """The compressors, by name."""
        return self.of_kind(Compressor)  # type: ignore[type-abstract]

    def broken_hint(self) -> str:
        """Return a sentence about plugins that did not load, or nothing."""
        if not self.broken:
            return ""
        broken = "; ".join(f"{plugin.name} ({plugin.distribution}): {plugin.error}" for plugin in self.broken)
        return f" Some plugins did not load: {broken}."


def load_plugins(entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> Catalog:
    """Load every installed plugin and fold what they offer into a catalog.

    Args:
        entry_points: those to load; by default all of the group ``autoft`` in the environment.

    Raises:
        PluginError: two plugins offer the same name; the message names both distributions.
    """
    points = importlib.metadata.entry_points(group=GROUP) if entry_points is None else entry_points
    catalog = _Fold()
    for point in sorted(points, key=lambda point: (point.name, point.value)):
        catalog.add(point)
    return catalog.freeze()


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
        distribution = point.dist.name if point.dist else "unknown distribution"
        version = point.dist.version if point.dist else ""
        # A plugin is foreign code: whatever it raises on import or in a hook must not stop the others.
        try:
            tasks, strategies, metrics = _offers(point)
        except Exception as error:  # noqa: BLE001
            self.broken.append(BrokenPlugin(point.name, distribution, version, _reason(error)))
            return
        for task in tasks:
            self._own("task", task.card.name, distribution)
            self.tasks[task.card.name] = task
        for strategy in strategies:
            self._own("strategy", strategy.name, distribution)
            self.strategies[strategy.name] = strategy
        for metric in metrics:
            self._own("metric", metric.name, distribution)
            if isinstance(metric, CostMetric):
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

    def _own(self, kind: str, name: str, distribution: str) -> None:
        other = self.owners.setdefault((kind, name), distribution)
        if (kind, name) in self.owners and other != distribution:
            raise PluginError(
                f"two plugins offer the {kind} {name!r}: {other} and {distribution}; uninstall one of them"
            )


def _offers(
    point: importlib.metadata.EntryPoint,
) -> tuple[list[Task], list[Strategy], list[QualityMetric | CostMetric]]:
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
    return tasks, strategies, metrics


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


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
