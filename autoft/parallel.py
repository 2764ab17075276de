"""How many workers pay on a CPU: small models gain little from a second thread, and a second training gains as much as the first.

Steps of a BERT of two layers take longer on two threads than on one, and those of six layers little less, so that two
workers with a thread each train 1.4 to 2.8 times as much as one with both (``docs/log.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ["CONTENTION", "thread_counts", "workers_that_pay"]

CONTENTION = 0.85
"""How fast a step is while the other workers train, beside what it is alone: they share caches and memory."""

PAYS = 1.3
"""How many times as much has to be trained by several workers: what is proposed at once knows less of the other trials."""

FEWEST = 3
"""Trainings that each worker has the time for, at least."""

STARTS = 10
"""How many times as long as a worker's start the search has to go on."""


def thread_counts(cores: int) -> list[int]:
    """Return with how many threads a worker may train: the powers of two, and all cores."""
    return sorted({*(2**power for power in range(cores.bit_length()) if 2**power <= cores), cores})


def workers_that_pay(
    trial_seconds: Callable[[int, float], float],
    threads: Mapping[int, float],
    *,
    cores: int,
    most: int,
    seconds: float,
    trials: int | None,
    startup: float,
) -> tuple[int, int, float]:
    """Return how many workers are to train, with how many threads each, and how many times as much that is.

    Args:
        trial_seconds: returns what a trial takes with so many threads, its steps so many times as fast as alone.
        threads: with how many a step was timed; the largest is that of a single worker.
        cores: that there are.
        most: workers that there is memory for.
        seconds: that are left for trials.
        trials: that are to come, or None for as many as the time allows.
        startup: seconds that a worker takes to start.
    """
    alone = max(threads)
    one = trial_seconds(alone, 1.0)
    whole = min(seconds, one * trials) if trials is not None else seconds
    best = (1, alone, 1.0)
    if whole < STARTS * startup:
        return best
    for count in sorted(threads):
        workers = min(cores // count, most, trials if trials is not None else cores)
        if workers < 2:
            continue
        took = trial_seconds(count, CONTENTION)
        gain = workers * one / took
        if gain >= max(PAYS, best[2]) and whole / took >= FEWEST:
            best = (workers, count, gain)
    return best
