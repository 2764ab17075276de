"""Exported files against the model that they come from: the same answers to the same rows?"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autoft.artifact import predicted
from autoft.contracts import Prediction, QualityMetric, Row
from autoft.errors import ModelError
from autoft.evaluation import references, score
from autoft.formats.base import Origin, is_generative

__all__ = ["Agreement", "Shown", "compare", "shown_rows"]

ROWS = 200
GENERATED_ROWS = 16
"""Texts that are written, which takes many steps each."""
TIMED = 50
"""Requests whose median is told; three of models that write."""


@dataclass(frozen=True)
class Shown:
    """Rows that both models are asked.

    Attributes:
        inputs: without targets.
        rows: with them.
        known: whether their targets are of the model's own data, so that answers can be judged.
        source: in words.
    """

    inputs: Sequence[Row]
    rows: Sequence[Row]
    known: bool
    source: str


@dataclass(frozen=True)
class Agreement:
    """How the answers of exported files compare with the model's own.

    Attributes:
        rows: that were asked.
        source: of the rows.
        agreement: share of them with the same answer.
        difference: the largest between two scores of one row, of those with the same answer.
        metric: by which the answers are judged; empty where targets are not known.
        quality: of the model on these rows.
        exported_quality: of the exported files.
        latency_ms: median of one request, of the model.
        exported_latency_ms: the same of the exported files, in the same process.
        differing: up to three pairs of answers that differ.
    """

    rows: int
    source: str
    agreement: float
    difference: float
    metric: str = ""
    quality: float = math.nan
    exported_quality: float = math.nan
    latency_ms: float = math.nan
    exported_latency_ms: float = math.nan
    differing: tuple[tuple[Prediction, Prediction], ...] = ()

    def figures(self) -> dict[str, str | int | float | None]:
        """Return all but the answers, as JSON has it: None for what is not known.

        Answers of tasks that write are texts about the user's rows, and these figures are handed on with a model.
        """
        found = {name: value for name, value in asdict(self).items() if name != "differing"}
        return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in found.items()}


def shown_rows(origin: Origin) -> Shown:
    """Return the first validation rows of the run, or the task's demo rows where there is no run.

    Raises:
        ModelError: there are none.
    """
    from autoft.data.prepared import open_data

    card = origin.task.card
    if origin.run is not None:
        count = GENERATED_ROWS if is_generative(origin) else ROWS
        rows: Sequence[Row] = open_data(origin.run.data).validation[:count]
        known, source = True, f"the first {len(rows)} validation rows"
    else:
        rows = list(origin.task.demo_rows())
        known, source = False, f"{len(rows)} demo rows of the task"
        if origin.context.facts.get("pair") and any(column.role == "text_pair" for column in card.inputs):
            # What the demo rows of classification lack; any second text serves a comparison.
            rows = [{**row, "text_pair": row["text"]} for row in rows]
    if not rows:
        raise ModelError(f"{origin.folder}: nothing to compare an export by: there are {source}")
    inputs = [{column.role: row[column.role] for column in card.inputs if column.role in row} for row in rows]
    return Shown(inputs, rows, known, source)


def compare(origin: Origin, exported: Any, context: Any, shown: Shown) -> Agreement:
    """Ask the model and what was exported of it the same, and return how the answers compare.

    Args:
        origin: the model.
        exported: what :meth:`Format.read` returned.
        context: with the processor of the exported folder.
        shown: rows for both.
    """
    own = predicted(origin.task, origin.loaded.model, shown.inputs, origin.context)
    said = predicted(origin.task, exported, shown.inputs, context)
    same = [answer(one) == answer(other) for one, other in zip(own, said, strict=True)]
    pairs = list(zip(own, said, same, strict=True))
    difference = max((largest_difference(one, other) for one, other, alike in pairs if alike), default=0.0)
    metric = _metric(origin) if shown.known else None
    quality, exported_quality = math.nan, math.nan
    if metric is not None:
        refs = references(origin.task, shown.rows, origin.context)
        quality = score({metric.name: metric}, own, refs, origin.context)[metric.name]
        exported_quality = score({metric.name: metric}, said, refs, context)[metric.name]
    latency, exported_latency = _latencies(origin, exported, context, shown.inputs)
    return Agreement(
        rows=len(same),
        source=shown.source,
        agreement=sum(same) / max(1, len(same)),
        difference=difference,
        metric=metric.name if metric else "",
        quality=quality,
        exported_quality=exported_quality,
        latency_ms=latency,
        exported_latency_ms=exported_latency,
        differing=tuple((answer(one), answer(other)) for one, other, alike in pairs if not alike)[:3],
    )


def answer(prediction: Prediction) -> dict[str, Any]:
    """Return what a prediction says, without how sure it is: words, numbers of places, and lists of them."""
    return {name: value for name, value in prediction.items() if _is_said(value)}


def _is_said(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_said(entry) for entry in value)
    return value is None or isinstance(value, str | bool | int)


def largest_difference(one: Prediction, other: Prediction) -> float:
    """Return the largest difference between two scores of the same name and place, of each 1 or less or relative."""
    return max(
        (_apart(a, b) for name in one.keys() & other.keys() for a, b in _numbers(one[name], other[name])), default=0.0
    )


def _apart(a: float, b: float) -> float:
    if not (math.isfinite(a) and math.isfinite(b)):
        return 0.0 if a == b or (math.isnan(a) and math.isnan(b)) else math.inf
    return abs(a - b) / max(1.0, abs(a))


def _numbers(one: Any, other: Any) -> list[tuple[float, float]]:
    if isinstance(one, float) and isinstance(other, float):
        return [(one, other)]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [pair for a, b in zip(one, other, strict=True) for pair in _numbers(a, b)]
    return []


def _metric(origin: Origin) -> QualityMetric | None:
    """Return the objective, or where it needs more than answers, the task's first metric that does not."""
    metrics: Mapping[str, QualityMetric] = origin.catalog.metrics_of(origin.task)
    names = [origin.loaded.manifest.objective, *metrics]
    return next((metrics[name] for name in names if name in metrics and metrics[name].uses != "targets"), None)


def _latencies(origin: Origin, exported: Any, context: Any, inputs: Sequence[Row]) -> tuple[float, float]:
    """Return the median milliseconds of a request of both, in turns, so that what else the machine does meets both."""
    took: tuple[list[float], list[float]] = ([], [])
    rows = inputs[: 3 if is_generative(origin) else TIMED]
    for row in rows:
        for times, model, own in zip(took, (origin.loaded.model, exported), (origin.context, context), strict=True):
            begin = time.perf_counter()
            predicted(origin.task, model, [row], own)
            times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(took[0]), statistics.median(took[1])
