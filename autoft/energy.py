"""Energy of a request as a cost metric, from the counters of processors (Linux powercap) and of NVIDIA GPUs (NVML).

A counter is of a whole package or a whole GPU, with all that runs there. So each metric has two columns: all that was
counted while requests ran, a request, and what the same part takes in that time while this process waits. Their difference
is not told: on a busy machine it is mostly the change of the other load.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoft.contracts import CostMetric, Refusal, Served

__all__ = ["Counter", "CpuEnergy", "Energy", "GpuEnergy", "Unreadable"]

NVML_NOT_SUPPORTED = 3


class Unreadable(Exception):
    """A machine has no energy counter that this process may read; the message says why, and what to do."""


@dataclass(frozen=True)
class Counter:
    """One counter of energy.

    Attributes:
        read: returns its count.
        joules: of one count.
        wraps: the count at which it begins again at 0; 0 where it never does.
    """

    read: Callable[[], int]
    joules: float
    wraps: int = 0

    def since(self, before: int) -> float:
        """Return the joules since it was at ``before``; it may have begun again once."""
        counts = self.read() - before
        return (counts + self.wraps if counts < 0 else counts) * self.joules


class Energy(CostMetric):
    """Energy of one request: raw rows in, predictions out, as the latency metric serves them."""

    unit = "joules"
    on_request = True

    SECONDS = 1.0
    """Of requests: RAPL counts anew each millisecond, GPUs each 20 to 100 ms, a tenth of it at most."""
    IDLE_SECONDS = 0.5
    """Of waiting before them."""
    MOVES_WITHIN = 0.3
    """Seconds in which a counter that counts has moved; those of some virtual machines stand still."""

    @abstractmethod
    def counters(self) -> list[Counter]:
        """Return the counters, which add up.

        Raises:
            Unreadable: there are none, or they may not be read.
        """

    def check(self, device: str, workers: int) -> Refusal | None:
        """Refuse where no counter can be read or one stands still, and where other trials run meanwhile."""
        if workers > 1:
            return Refusal(
                "counters are of the whole machine, where other trials run meanwhile: set executor.workers: 1"
            )
        try:
            counters = self.counters()
        except Unreadable as error:
            return Refusal(str(error))
        before = [counter.read() for counter in counters]
        begin = time.perf_counter()
        while any(counter.read() == count for counter, count in zip(counters, before, strict=True)):
            if time.perf_counter() - begin > self.MOVES_WITHIN:
                return Refusal("a counter stands still, as on some virtual machines: measure on the machine itself")
            time.sleep(0.001)
        return None

    def measure(self, served: Served) -> dict[str, float]:
        """Return the joules of one request, and those of waiting for as long."""
        counters = self.counters()
        served.predict(served.requests[0])
        meter = _Meter(counters)
        time.sleep(self.IDLE_SECONDS)
        waited, idle = meter.read()
        meter, count = _Meter(counters), 0
        for request in itertools.cycle(served.requests):
            served.predict(request)
            count += 1
            if time.perf_counter() - meter.begin > self.SECONDS:
                break
        seconds, joules = meter.read()
        busy, waiting = self.columns
        return {busy: joules / count, waiting: idle / waited * seconds / count}


class _Meter:
    """Begins to count when it is made."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self.counters = counters
        self.before = [counter.read() for counter in counters]
        self.begin = time.perf_counter()

    def read(self) -> tuple[float, float]:
        """Return the seconds and the joules since."""
        seconds = time.perf_counter() - self.begin
        return seconds, sum(one.since(count) for one, count in zip(self.counters, self.before, strict=True))


class CpuEnergy(Energy):
    """Energy of the processor packages, by RAPL, which Intel and AMD have; parts of a package are not counted again.

    Source: https://docs.kernel.org/power/powercap/powercap.html

    Args:
        root: of the kernel's tree.
    """

    name = "cpu_energy"
    summary = "energy that all processor packages take for one request, and for waiting as long"
    columns = ("cpu_energy_j", "cpu_energy_idle_j")

    def __init__(self, root: Path = Path("/sys/class/powercap")) -> None:
        self.root = root

    def counters(self) -> list[Counter]:
        """Return one a package."""
        found = []
        for zone in sorted(self.root.glob("intel-rapl:*")):
            try:
                # Cores, memory and the like are zones of their own within a package, and psys holds the packages.
                if not (zone / "name").read_text().startswith("package"):
                    continue
                wraps = int((zone / "max_energy_range_uj").read_text())
                counter = Counter(functools.partial(_count, zone / "energy_uj"), 1e-6, wraps)
                counter.read()
            except PermissionError:
                raise Unreadable(
                    f"{zone / 'energy_uj'} may be read by root only, as timing attacks use it (CVE-2020-8694); where you "
                    f"trust all users of this machine: sudo chmod a+r {self.root}/intel-rapl:*/energy_uj"
                ) from None
            except OSError as error:
                raise Unreadable(
                    f"{zone} cannot be read ({error.strerror}), as in a container; measure outside of it"
                ) from None
            found.append(counter)
        if not found:
            raise Unreadable(
                f"{self.root} has no processor package; it needs Linux on the machine itself, no virtual one, with the "
                "kernel's module intel_rapl_msr (for AMD too)"
            )
        return found


def _count(path: Path) -> int:
    return int(path.read_text())


class GpuEnergy(Energy):
    """Energy of the GPU that models are served on, by NVML; NVIDIA GPUs from Volta on count it.

    Source: ``nvmlDeviceGetTotalEnergyConsumption``, https://docs.nvidia.com/deploy/nvml-api
    """

    name = "gpu_energy"
    summary = "energy that the GPU takes for one request, and for waiting as long"
    columns = ("gpu_energy_j", "gpu_energy_idle_j")

    def check(self, device: str, workers: int) -> Refusal | None:
        """Refuse where models are not served on a GPU, too."""
        return super().check(device, workers) if device == "cuda" else Refusal("models are served on no NVIDIA GPU")

    def counters(self) -> list[Counter]:
        """Return that of the first GPU of CUDA_VISIBLE_DEVICES, numbered as nvidia-smi does."""
        try:
            nvml = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            raise Unreadable("the NVIDIA driver's libnvidia-ml.so.1 is not found; install it with the driver") from None
        handle, count = ctypes.c_void_p(), ctypes.c_ulonglong()
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()

        def asked(name: str, *arguments: object) -> None:
            if code := getattr(nvml, name)(*arguments):
                why = (
                    "it needs a whole GPU, from Volta on" if code == NVML_NOT_SUPPORTED else "see what nvidia-smi says"
                )
                raise Unreadable(f"{name} answered {code}: {why}")

        def read() -> int:
            asked("nvmlDeviceGetTotalEnergyConsumption", handle, ctypes.byref(count))
            return count.value

        asked("nvmlInit_v2")
        if first.isdigit():
            asked("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(int(first)), ctypes.byref(handle))
        else:
            asked("nvmlDeviceGetHandleByUUID", first.encode(), ctypes.byref(handle))
        read()
        return [Counter(read, 1e-3)]
