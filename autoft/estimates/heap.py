"""What the C library's heap makes of tensors that come and go: their storages once more, without torch and values.

``python -m autoft.estimates.heap`` reads events as JSON from standard input, and prints bytes.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence

from autoft.errors import ModelError
from autoft.evaluation import serving_environment
from autoft.hardware import current_resident_bytes, peak_resident_bytes, reset_peak_resident

__all__ = ["heap_bytes", "main", "replay"]

ALIGNMENT = 64
"""Of the blocks that torch asks for."""
TIMES = 3
"""So many requests: from the second on, the heap has the holes that the first one left."""


def heap_bytes(events: Sequence[tuple[int, int]]) -> int:
    """Return how much the resident memory of a process that serves grows by the storages of its requests.

    A heap takes more than is there at once, for freed blocks leave holes that others do not fit into. How much more is
    found by asking the C library of this machine for the same blocks, in a process of their own.

    Args:
        events: of one request (:attr:`autoft.estimates.storages.Timeline.events`).

    Raises:
        ModelError: the process failed, as where the memory is not there.
    """
    import os

    done = subprocess.run(
        [sys.executable, "-m", "autoft.estimates.heap"],
        input=json.dumps(list(events)),
        capture_output=True,
        text=True,
        env=serving_environment(os.environ),
        check=False,
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"the process ended with {done.returncode}"]
        raise ModelError(f"the storages of a request could not be replayed: {reason[0]}")
    return int(done.stdout)


def replay(events: Sequence[tuple[int, int]]) -> int:
    """Take and give back the blocks in this process, some times over, and return by how much its memory grew at most.

    Raises:
        MemoryError: a block is not there.
    """
    library = ctypes.CDLL(None)
    library.posix_memalign.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    before = current_resident_bytes()
    reset_peak_resident()
    for _ in range(TIMES):
        blocks: dict[int, ctypes.c_void_p] = {}
        for number, size in events:
            if size < 0:
                library.free(blocks.pop(number))
                continue
            block = ctypes.c_void_p()
            if library.posix_memalign(ctypes.byref(block), ALIGNMENT, size):
                raise MemoryError(f"{size} bytes")
            # Memory is there from when it is written to.
            library.memset(block, 1, size)
            blocks[number] = block
        for block in blocks.values():
            library.free(block)
    return max(0, peak_resident_bytes() - before)


def main() -> int:
    """Read events, and print by how much they made the memory grow."""
    sys.stdout.write(f"{replay(json.load(sys.stdin))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
