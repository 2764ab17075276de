"""What a search and others of the same study tell each other, wherever that study is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoft.rundir import TrialConfig, TrialResult

__all__ = ["Elsewhere", "Exchange"]


@dataclass(frozen=True)
class Elsewhere:
    """A trial that another search has done: its number is below 0 and its own here, and it has no files."""

    result: TrialResult
    values: list[float] | None
    """Its objectives, None where it left nothing that fits."""


class Exchange:
    """What searches of one study tell each other. This one is of a search alone; no method may hold up its caller."""

    shared = False
    """There are others, whose figures have to be of the same rows."""

    seed: int | None = None
    """Of this search's sampler; None for the plan's."""

    def started(self, config: TrialConfig) -> None:
        """A trial of this search was sent to a worker."""

    def ended(self, result: TrialResult, values: Sequence[float] | None) -> None:
        """A trial of this search, or of an earlier call of it, is done."""

    def taken_back(self, number: int) -> None:
        """A trial of this search was ended without a result."""

    def news(self) -> Sequence[Elsewhere]:
        """Return what other searches have done, each trial once."""
        return ()

    def going(self) -> Sequence[TrialConfig]:
        """Return what other searches are at now."""
        return ()
