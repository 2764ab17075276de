"""What the machine has: devices, memory, cores, instruction sets. Free of torch unless a GPU has to be asked."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

__all__ = [
    "MAPPED",
    "Gpu",
    "Hardware",
    "available_cores",
    "current_resident_bytes",
    "has_int8_products",
    "memory_left",
    "peak_resident_bytes",
    "reset_peak_resident",
]


MAPPED = {"MALLOC_MMAP_THRESHOLD_": str(2**19)}
"""Environment in which a process keeps what its tensors need and little more.

The GNU C library then maps each tensor of half a megabyte or more by itself, and gives it back at once. Left alone it keeps
them in a heap, where an aligned block does not fit into the hole that one of its own size left: the same LoRA step then
took 2.2 GB in place of 1.3, as docs/budget.md says. Mapping takes time, as each page is cleared anew.
"""


@dataclass(frozen=True)
class Gpu:
    """One graphics processor: its name, memory in bytes and compute capability (8.0 is Ampere, 9.0 Hopper)."""

    name: str
    memory_bytes: int
    capability: float = 0.0


@dataclass(frozen=True)
class Hardware:
    """The machine that trials run on.

    Attributes:
        device: ``cuda`` where an NVIDIA GPU answers and torch is no build for the CPU only, ``mps`` on Apple silicon,
            else ``cpu``.
        cores: usable by this process.
        memory_bytes: total memory, or the limit of the container where that is lower.
        gpus: as ``nvidia-smi`` lists them.
        cpu: the model's name.
        bf16: bfloat16 arithmetic in hardware (AVX512-bf16, AMX, or a GPU from Ampere on).
        system: operating system and architecture.
    """

    device: str
    cores: int
    memory_bytes: int
    gpus: tuple[Gpu, ...]
    cpu: str
    bf16: bool
    system: str

    @classmethod
    def probe(cls) -> Hardware:
        """Return what this machine has; takes some milliseconds and imports no torch."""
        return cls._probe(_nvidia_gpus())

    @classmethod
    def probe_cpu(cls) -> Hardware:
        """Return what this machine has beside its GPUs."""
        return replace(cls._probe(()), device="cpu", bf16=bool({"avx512_bf16", "amx_bf16"} & _cpu_flags()))

    @classmethod
    def _probe(cls, gpus: tuple[Gpu, ...]) -> Hardware:
        apple = platform.system() == "Darwin" and platform.machine() == "arm64"
        device = "cuda" if gpus and not _torch_for_cpu() else "mps" if apple else "cpu"
        flags = _cpu_flags()
        ampere = all(gpu.capability >= 8 for gpu in gpus)
        bf16 = bool({"avx512_bf16", "amx_bf16"} & flags) if device == "cpu" else device == "cuda" and ampere
        return cls(
            device=device,
            cores=available_cores(),
            memory_bytes=_memory_limit(),
            gpus=gpus,
            cpu=_cpu_name(),
            bf16=bf16,
            system=f"{platform.system()} {platform.machine()}",
        )

    @property
    def processor(self) -> str:
        """The name of what models are served on."""
        return self.gpus[0].name if self.device == "cuda" and self.gpus else self.cpu

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {**asdict(self), "gpus": [asdict(gpu) for gpu in self.gpus]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Hardware:
        """Rebuild it from :meth:`to_json`."""
        return cls(**{**value, "gpus": tuple(Gpu(**gpu) for gpu in value["gpus"])})

    def __str__(self) -> str:
        gpus = "; ".join(f"{gpu.name} {gpu.memory_bytes / 2**30:.0f} GiB" for gpu in self.gpus)
        cpu = f"{self.cpu}, {self.cores} core{'s' if self.cores != 1 else ''}"
        processor = gpus if self.device == "cuda" else cpu
        idle = f"; not used: {gpus}, as torch is a build for the CPU" if gpus and self.device == "cpu" else ""
        return f"{processor}, {self.memory_bytes / 2**30:.0f} GiB memory{', bf16' if self.bf16 else ''}{idle}"


def available_cores() -> int:
    """Return the number of cores that this process may use, container quotas counted."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, max(1, int(int(limit) / int(period))))
    return cores


def has_int8_products() -> bool:
    """Say whether this CPU sums products of int8 in 32 bits (VNNI on x86, the dot product of Arm).

    Others sum pairs in 16 bits, which overflow without a word: one of the two factors may then have 7 bits only.
    """
    return bool({"avx512_vnni", "avx_vnni", "asimddp", "i8mm"} & _cpu_flags())


def reset_peak_resident() -> bool:
    """Start the peak of this process's resident memory anew; False where the system offers no way."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def current_resident_bytes() -> int:
    """Return the resident memory of this process, in bytes."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process, in bytes, since it began or was last reset."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):
        return int(info.peak_wset)
    import resource

    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if platform.system() == "Darwin" else peak * 1024


def memory_left() -> tuple[int, int]:
    """Return the bytes that processes can still take before the machine or its container runs out, and the least to keep.

    A hundredth of all memory should be left, and 200 MB at least where there is that much.
    """
    total, left = _memory_limit(), int(psutil.virtual_memory().available)
    current = Path("/sys/fs/cgroup/memory.current")
    if current.is_file() and total < psutil.virtual_memory().total:
        # What the kernel keeps of files counts to the container's memory, and is given up when it is needed.
        statistics = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
        cached = next((int(line.split()[1]) for line in statistics if line.startswith("inactive_file ")), 0)
        left = min(left, total - int(current.read_text()) + cached)
    return left, min(max(total // 100, 200_000_000), total // 10)


def _memory_limit() -> int:
    total = int(psutil.virtual_memory().total)
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(name)
        if path.is_file():
            text = path.read_text().strip()
            if text.isdigit():
                return min(total, int(text))
    return total


@functools.cache
def _cpu_info() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""


def _cpu_flags() -> frozenset[str]:
    for line in _cpu_info().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def _cpu_name() -> str:
    for line in _cpu_info().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _nvidia_gpus() -> tuple[Gpu, ...]:
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        fields = (line.rsplit(",", 2) for line in answer.stdout.strip().splitlines())
        return tuple(Gpu(name.strip(), int(float(mib)) * 2**20, float(capability)) for name, mib, capability in fields)
    except (OSError, subprocess.SubprocessError, ValueError):
        # A driver that hangs, does not answer or answers in words drives no GPU that could be used.
        return ()


def _torch_for_cpu() -> bool:
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


class OtherLoad:
    """What other processes take of the processors from now on: a latency that is measured meanwhile is too high.

    Those of other containers on the machine, and what its host gives to others ("steal"), are among it.
    """

    BUSY = 0.2
    """From this share on it is told."""

    def __init__(self) -> None:
        self._busy, self._all, self._own = self._times()

    @staticmethod
    def _times() -> tuple[float, float, float]:
        times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        # What guests take is counted as the user's, too.
        found = {name: value for name, value in times._asdict().items() if not name.startswith("guest")}
        every = sum(found.values())
        return every - found["idle"] - found.get("iowait", 0.0), every, own.user + own.system

    @property
    def share(self) -> float:
        """Of all processors together, from 0 to 1."""
        busy, every, own = (
            now - then for now, then in zip(self._times(), (self._busy, self._all, self._own), strict=True)
        )
        return min(1.0, max(0.0, (busy - own) / every)) if every > 0 else 0.0
