"""What a search says of itself: what it will be, how it stands, and each thing that happens, to a listener."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoft.plans.plan import Plan
from autoft.quantities import format_bytes, format_seconds
from autoft.rundir import TrialConfig, TrialResult, TrialState

__all__ = ["Forecast", "Listener", "Standing", "TrialTime"]


@dataclass(frozen=True)
class Forecast:
    """What the search will be, said before it starts.

    ``whole``: the time has room for one default training to its end; ``closing_seconds``: what export, test and report will take.
    """

    trial_seconds: float
    configurations: int
    memory_bytes: float
    disk_bytes: float
    precision: str
    time_limit: float
    whole: bool = True
    closing_seconds: float = 0.0

    def __str__(self) -> str:
        count = (
            f"about {self.configurations} configurations fit" if self.configurations > 1 else "one configuration fits"
        )
        if not self.whole:
            count = "it will be cut short to end"
        if self.closing_seconds > self.time_limit:
            count = (
                f"export, test and report of the fewest rows alone take about {format_seconds(self.closing_seconds)}, which does "
                "not fit (a smaller model, or more time)"
            )
        return (
            f"One default training takes about {format_seconds(self.trial_seconds)} here ({self.precision}); "
            f"{count} in {format_seconds(self.time_limit)}; peak memory about {format_bytes(self.memory_bytes)}; "
            f"disk up to {format_bytes(self.disk_bytes)}."
        )


@dataclass(frozen=True)
class TrialTime:
    """What the default configuration of a pipeline over a model takes, and how many such trials the budget's time has room for.

    ``trials`` is None where the time is not limited yet; ``workers`` train them, as many as the search would take.
    """

    model: str
    pipeline: str
    seconds: float
    trials: int | None
    workers: int


@dataclass(frozen=True)
class Standing:
    """How the search stands: counts, the best feasible objective, the default's, and the time left."""

    counts: dict[TrialState, int]
    best: float | None
    best_trial: int | None
    best_variant: str | None
    default: float | None
    seconds_left: float
    """Of the time budget, for the whole command."""
    finished: int
    limit: int | None
    expected_left: float = math.nan
    """Seconds until the command is thought to end, at most those that are left; not a number where nothing is known."""


class Listener:
    """Told what happens; every method may be overridden, none has to be."""

    def begin(self, plan: Plan, resumed: int) -> None:
        """The search begins; ``resumed`` trials were done before."""

    def earlier(self, results: Sequence[TrialResult]) -> None:
        """What earlier calls of the run have done; told right after the beginning, where there is any."""

    def forecast(self, forecast: Forecast) -> None:
        """What it will be."""

    def trial_started(self, config: TrialConfig) -> None:
        """A trial was sent to a worker."""

    def stage(self, trial: int, stage: str) -> None:
        """A trial is at a stage, as ``train`` or ``compress: onnx``."""

    def progress(self, trial: int, samples: int, total: int, rate: float) -> None:
        """A training has seen so many samples."""

    def validation(self, trial: int, samples: int, value: float) -> None:
        """A training was validated."""

    def trial_done(self, result: TrialResult, standing: Standing) -> None:
        """A trial ended."""

    def phase(self, name: str) -> None:
        """The command is at a phase: prepare data, search, finalists, export, test, report."""

    def note(self, text: str) -> None:
        """Something that a user should know, at the end if not before."""

    def waits(self, text: str) -> None:
        """Nothing goes on: what for, and how to end it. Told again every few minutes, for a user to read now."""

    def interrupted(self) -> None:
        """The user asked for an end with what there is."""
