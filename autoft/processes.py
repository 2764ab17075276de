"""What processes of autoft begin with: their threads, and silence of the libraries that they import."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import stat
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

__all__ = [
    "KERNEL_CACHES",
    "STOPPED_SECONDS",
    "end_with_parent",
    "importing",
    "is_own_folder",
    "is_stopped",
    "release_memory",
    "silence_libraries",
    "spoken_to",
    "thread_environment",
    "training_environment",
    "trim_heap",
]

NOISY = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "onnx_ir",
    "onnxscript",
    "torch.onnx",
    "torch.utils._pytree",
    "torchao",
)


PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when its parent ends."""

STOPPED_SECONDS = 30.0
"""Until a process that is stopped, as SIGSTOP does, is given up; who stops one by hand may continue it before."""


def is_stopped(pid: int) -> bool:
    """Say whether a process is stopped, as SIGSTOP does; one that has ended is not."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def end_with_parent() -> None:
    """Have the system end this process at once when the thread that started it ends, where it can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def is_own_folder(path: Path) -> bool:
    """Make a folder for this user alone, and say whether it is one: others may write where temporary files lie, and link there."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return False
    there = path.lstat()
    return stat.S_ISDIR(there.st_mode) and there.st_uid == os.getuid() and not there.st_mode & 0o022


def spoken_to(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a process that is spoken to in lines, and whose errors go to the end of a file.

    It is in a group of its own: Ctrl-C belongs to the command, which decides what is still finished; and what the process
    starts ends with it.

    Raises:
        OSError: it cannot be started.
    """
    with log.open("a", encoding="utf-8") as errors:
        return subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=dict(environment),
            start_new_session=True,
        )


def thread_environment(threads: int) -> dict[str, str]:
    """Return the environment of a process that may use so many threads.

    It has to be set before torch is imported. Passive waiting keeps two processes on the same cores from slowing each
    other down tenfold.
    """
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "BITSANDBYTES_NOWELCOME": "1",
        "PYTHONWARNINGS": "ignore",
    }


KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", "LRU_CACHE_CAPACITY": "32"}
"""Of oneDNN, which multiplies in bf16 on CPUs, and of torch's layer above it, in entries.

Both keep code for each shape they have met, 1,024 of them unless told otherwise: half a gigabyte for a training whose batches have all
lengths, and no faster than with as many as the layers of one step have (``docs/budget.md``).
"""


def training_environment(threads: int) -> dict[str, str]:
    """Return :func:`thread_environment` of a process that trains; what the user has set of :data:`KERNEL_CACHES` stays."""
    return {**KERNEL_CACHES, **thread_environment(threads)}


IMPORTED = 50_000
"""Objects that an import makes from one collection of garbage to the next."""


@contextmanager
def importing() -> Iterator[None]:
    """Import libraries with few collections of garbage, which find next to none and else take a fifth of the time.

    Without any the process would have 8 MB more. What was imported stays: later collections need not look through it.
    """
    before = gc.get_threshold()
    gc.set_threshold(IMPORTED, *before[1:])
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*before)


@importing()
def silence_libraries() -> None:
    """Keep tips, adverts and progress bars of other libraries out of the log, where only errors are of use."""
    warnings.filterwarnings("ignore")
    # transformers imports torchao where it is installed, which tells of each of its libraries for other machines.
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def release_memory() -> None:
    """Give back what nothing needs any more: models lie in cycles of references, and freed blocks in a heap."""
    gc.collect()
    trim_heap()


def trim_heap() -> None:
    """Have the GNU C library give freed blocks of its heap back to the system; others do that by themselves or not at all."""
    if _malloc_trim is not None:
        _malloc_trim(0)


_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
