"""Which trials may be on a GPU at once: a ledger of what each of them was predicted to need of its memory.

A trial of a worker that shares its GPU begins once it fits beside those that are there. It waits in line: none that asked later
goes before it, so that one which fits only alone has its turn when those before it have ended. Where nobody else is at work the
first in line has all that there is, whatever it asked for: whether a trial is possible at all shows where it has the whole GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["PROCESS_BYTES", "WAITS", "Admission"]

PROCESS_BYTES = 768 * 2**20
"""Of a GPU for each process that uses it: what CUDA and its libraries keep outside of torch's allocator. A guess, not measured."""

WAITS = "wait for memory"
"""The stage of a trial until its GPU has room for it."""

LEAST_SHARE = 0.5
"""Of a GPU that is for trials, however many processes there are."""


@dataclass
class _Gpu:
    """What is known of a GPU; all by worker, in bytes."""

    room: float
    """For trials, of all workers together."""
    admitted: dict[int, float] = field(default_factory=dict)
    """Of those that are at a trial."""
    kept: dict[int, float] = field(default_factory=dict)
    """What others did not give back after their last one."""
    waiting: dict[int, list[float]] = field(default_factory=dict)
    """Those in line, the first one first: what each can do with, the least first."""

    def left(self, worker: int) -> float:
        """Return what a worker could have beside the others."""
        others = {**self.kept, **self.admitted}
        others.pop(worker, None)
        return max(0.0, self.room - sum(others.values()))


class Admission:
    """The ledger of all GPUs of a search.

    Args:
        sharing: how many workers there are to a GPU at most; each has a process there, whether it is at a trial or not.
    """

    def __init__(self, sharing: int) -> None:
        self.sharing = sharing
        self._gpus: dict[str, _Gpu] = {}
        self._gpu_of: dict[int, str] = {}

    def ask(self, worker: int, gpu: str, total: float, sizes: Sequence[float], kept: float) -> None:
        """Have a worker wait for room for its next trial; what it had for the last one is given back.

        Args:
            worker: its number.
            gpu: on which it is; one GPU has the same name for all workers.
            total: bytes that the GPU has.
            sizes: bytes that the trial needs, and those that it needs with one or more that would train with it; none where that is
                not known: an equal part, of all workers that share the GPU.
            kept: bytes that it has even so.
        """
        self.leave(worker)
        there = self._gpus.setdefault(gpu, _Gpu(max(LEAST_SHARE * total, total - self.sharing * PROCESS_BYTES)))
        self._gpu_of[worker] = gpu
        there.kept[worker] = kept
        first, *more = sizes or [there.room / self.sharing]
        there.waiting[worker] = [min(first, there.room), *more]

    def free(self, worker: int, kept: float) -> None:
        """Give back what a worker's trial had, but for the bytes that its process keeps."""
        there = self._gpus[self._gpu_of[worker]]
        there.admitted.pop(worker, None)
        there.kept[worker] = kept

    def leave(self, worker: int) -> None:
        """Give back all that a worker had: its process has ended, or is asked for anew. Nothing happens where it had nothing."""
        there = self._gpus.get(self._gpu_of.pop(worker, ""))
        if there is not None:
            for known in (there.admitted, there.kept, there.waiting):
                known.pop(worker, None)

    def admit(self) -> list[tuple[int, float, bool]]:
        """Return who has room from now on, how many bytes of it, and whether that is all that a GPU has for trials."""
        found = []
        for there in self._gpus.values():
            while there.waiting:
                worker, sizes = next(iter(there.waiting.items()))
                left = there.left(worker)
                if left < sizes[0] and there.admitted:
                    break
                del there.waiting[worker]
                there.admitted[worker] = max((size for size in sizes if size <= left), default=left)
                found.append((worker, there.admitted[worker], there.admitted[worker] >= there.room))
        return found
