"""The contract of a metric: quality from predictions, or cost from a served model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from autoft.contracts.strategy import Refusal
from autoft.contracts.task import Prediction, Row, TaskContext

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CostMetric", "QualityMetric", "Served", "Unit"]

Unit = Literal["bytes", "seconds", "count", "joules", "ratio"]


class QualityMetric(ABC):
    """A figure from predictions and references.

    Most figures of the field are a function of per-row statistics that add up (hits, true positives a class, n-gram
    counts). A metric that offers them through :meth:`statistics` and :meth:`aggregate` gets its bootstrap interval in
    one matrix product. One that knows another fast way offers :meth:`resampled`; the others are recomputed for each
    resample.
    """

    name: str
    summary: str
    higher_is_better: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = ()
    """Tasks that it is a metric of although their cards do not name it, as those of other plugins."""
    uses: ClassVar[Literal["predictions", "targets"]] = "predictions"
    """``targets``: it reads only what :meth:`~autoft.contracts.Task.score_targets` says, as perplexity does."""
    per_token: ClassVar[bool] = False
    """It counts the tokens of a model's own tokenizer: models with different ones cannot be compared by it."""

    @abstractmethod
    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return the figure over all rows; NaN where it is not defined for them."""

    def statistics(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
    ) -> np.ndarray | None:
        """Return per-row statistics ``(rows, k)`` whose sums decide the figure, or None where none do."""
        return None

    def aggregate(self, sums: np.ndarray) -> np.ndarray:
        """Return the figures ``(resamples,)`` from summed statistics ``(resamples, k)``."""
        raise NotImplementedError(f"{type(self).__name__} offers statistics() without aggregate()")

    def resampled(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext, counts: np.ndarray
    ) -> np.ndarray | None:
        """Return the figures ``(resamples,)`` from how often each row is drawn ``(resamples, rows)``, or None.

        None, the default, has them computed from :meth:`statistics`, or anew for each resample.
        """
        statistics = self.statistics(predictions, references, context)
        return None if statistics is None else self.aggregate(counts @ statistics)


@dataclass(frozen=True)
class Served:
    """A model as it is served, in a process of its own, for cost metrics to measure.

    Attributes:
        folder: its files.
        predict: rows without targets in, predictions out, at the stated batch size.
        rows: real validation rows to serve.
        batch_size: rows a request.
        peak_memory: returns the peak resident memory of this process so far, in bytes.
    """

    folder: Path
    predict: Callable[[Sequence[Row]], Sequence[Prediction]]
    rows: Sequence[Row]
    batch_size: int
    peak_memory: Callable[[], int]

    @property
    def requests(self) -> list[list[Row]]:
        """The rows in requests of ``batch_size``; the last begins again with the first rows where it needs more."""
        rows, size = list(self.rows), self.batch_size
        return [[rows[(start + i) % len(rows)] for i in range(size)] for start in range(0, len(rows), size)]


class CostMetric(ABC):
    """A figure of a served model where less is better; its name is at once a key of ``budget`` and a report column."""

    name: ClassVar[str]
    summary: ClassVar[str]
    unit: ClassVar[Unit]
    columns: ClassVar[tuple[str, ...]]
    """Names of the figures; a budget limits the first. Times end in ``_ms``, sizes in ``_bytes``, energies in ``_j``."""
    on_request: ClassVar[bool] = False
    """Takes its time: measured of the models that the test is for, and of every variant where a recipe asks for it."""

    def check(self, device: str, workers: int) -> Refusal | None:
        """Say why it cannot be measured on this machine; None, the default, where it can.

        Where it is refused its columns are absent, and a recipe that limits or optimises one is refused.

        Args:
            device: that models are served on: ``cpu``, ``cuda`` or ``mps``.
            workers: processes of the search that train and measure side by side.
        """
        return None

    @abstractmethod
    def measure(self, served: Served) -> dict[str, float]:
        """Return a finite figure for each of the columns, in the unit that the column's name says."""
