"""Energy against counters made here: files as the kernel's powercap has them, and a library as NVIDIA's driver has it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from autoft.artifact import LoadedModel
from autoft.contracts import CostMetric, Served, TaskContext
from autoft.energy import CpuEnergy, GpuEnergy
from autoft.errors import RecipeError
from autoft.evaluation import measure_costs
from autoft.hardware import Hardware
from autoft.plans.planner import make_plan
from autoft.recipe import recipe_from_mapping
from autoft.report.views import column_title, cost_text

CPU = Hardware("cpu", 2, 8 * 2**30, (), "test", False, "Linux x86_64")
RANGE = 262_143_328_850
"""Microjoules after which a counter of a server begins again at 0."""


class Zone:
    """One zone of powercap, whose counter is advanced as the kernel does: it begins again after its range."""

    def __init__(self, root: Path, zone: str, name: str, start: int = 0) -> None:
        self.folder, self.count, self.lock = root / zone, start, threading.Lock()
        self.folder.mkdir(parents=True)
        (self.folder / "name").write_text(f"{name}\n")
        (self.folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
        self.add(0)

    def add(self, joules: float) -> None:
        with self.lock:
            self.count = (self.count + round(joules * 1e6)) % RANGE
            # In one step, as the kernel gives whole numbers only.
            (self.folder / "new").write_text(f"{self.count}\n")
            os.replace(self.folder / "new", self.folder / "energy_uj")


@contextmanager
def counting(zone: Zone, watts: float):
    """Advance a counter by the time that passes."""
    done = threading.Event()

    def count():
        before = time.perf_counter()
        while not done.wait(0.001):
            now = time.perf_counter()
            zone.add(watts * (now - before))
            before = now

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def served(predict, requests: int = 3) -> Served:
    return Served(Path(), predict, [{"text": "a"}] * requests, 1, lambda: 0)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(CpuEnergy, "SECONDS", 0.05)
    monkeypatch.setattr(CpuEnergy, "IDLE_SECONDS", 0.05)


@pytest.fixture
def machine(tmp_path):
    """Two packages, the first about to begin again, with their parts, the platform that holds them, and the other door."""
    first = Zone(tmp_path, "intel-rapl:0", "package-0", start=RANGE - 5_000_000)
    second = Zone(tmp_path, "intel-rapl:1", "package-1", start=7)
    core = Zone(tmp_path, "intel-rapl:0:0", "core")
    dram = Zone(tmp_path, "intel-rapl:0:1", "dram")
    whole = Zone(tmp_path, "intel-rapl:2", "psys")
    door = Zone(tmp_path, "intel-rapl-mmio:0", "package-0")
    return first, second, core, dram, whole, door


def test_packages_are_added_up_and_nothing_within_them_is_counted_twice(machine, tmp_path, short):
    first, second, core, dram, whole, door = machine

    def predict(rows):
        for zone, joules in ((first, 2.0), (second, 0.5), (core, 1.5), (dram, 0.25), (whole, 4.0), (door, 2.0)):
            zone.add(joules)
        time.sleep(0.001)
        return [{}]

    found = CpuEnergy(tmp_path).measure(served(predict))
    assert found == {"cpu_energy_j": pytest.approx(2.5), "cpu_energy_idle_j": 0}
    assert first.count < RANGE - 5_000_000, "the counter of the first package has begun again"


def test_waiting_takes_what_the_package_takes_in_the_time_of_a_request(tmp_path, monkeypatch):
    # Long enough for a thread that counts on a busy machine, and not as long as the waiting.
    monkeypatch.setattr(CpuEnergy, "SECONDS", 0.2)
    zone = Zone(tmp_path, "intel-rapl:0", "package-0")
    with counting(zone, watts=20):
        begin, calls = time.perf_counter(), []
        found = CpuEnergy(tmp_path).measure(served(lambda rows: calls.append(time.sleep(0.01)) or [{}]))
        whole = 20 * (time.perf_counter() - begin)
    # A request does nothing but wait here, so the two columns say the same but for when the counter was looked at.
    assert found["cpu_energy_idle_j"] == pytest.approx(found["cpu_energy_j"], rel=0.5)
    assert 0.01 * 20 * 0.5 < found["cpu_energy_j"] < whole / (len(calls) - 1)


def test_a_counter_that_counts_is_accepted_and_one_that_stands_still_is_not(tmp_path):
    moving = Zone(tmp_path, "intel-rapl:0", "package-0")
    with counting(moving, watts=5):
        assert CpuEnergy(tmp_path).check("cpu", 1) is None
        Zone(tmp_path, "intel-rapl:1", "package-1")
        assert "stands still" in CpuEnergy(tmp_path).check("cpu", 1).reason


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such permissions")
def test_counters_for_root_only_say_what_opens_them():
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        zone = Zone(Path(name), "intel-rapl:0", "package-0")
        (zone.folder / "energy_uj").chmod(0o400)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        else:
            (zone.folder / "energy_uj").chmod(0)
        try:
            reason = CpuEnergy(Path(name)).check("cpu", 1).reason
        finally:
            os.seteuid(user)
    assert "CVE-2020-8694" in reason
    assert f"sudo chmod a+r {name}/intel-rapl:*/energy_uj" in reason


def test_a_machine_without_counters_and_a_container_that_hides_them_are_told_apart(tmp_path):
    assert "has no processor package" in CpuEnergy(tmp_path / "none").check("cpu", 1).reason
    # Containers leave the link and take away what it leads to.
    (tmp_path / "intel-rapl:0").symlink_to(tmp_path / "hidden")
    assert "as in a container" in CpuEnergy(tmp_path).check("cpu", 1).reason


def test_nothing_is_measured_while_other_trials_run(tmp_path):
    zone = Zone(tmp_path, "intel-rapl:0", "package-0")
    with counting(zone, watts=5):
        assert "executor.workers: 1" in CpuEnergy(tmp_path).check("cpu", 2).reason


def test_what_cannot_be_measured_is_absent_and_the_rest_is_there(tmp_path, short):
    class Rows(CostMetric):
        name, summary, unit, columns = "rows", "rows", "count", ("rows",)

        def measure(self, served):
            return {"rows": float(len(served.rows))}

    class Loaded(LoadedModel):
        def predict(self, rows, batch_size=1):
            zone.add(1.0)
            return [{} for _ in rows]

    loaded = Loaded(None, None, TaskContext({}, {}, {}, 8), None, tmp_path)
    metrics = [CpuEnergy(tmp_path), Rows()]
    zone = Zone(tmp_path, "intel-rapl:0", "package-0")
    assert measure_costs(loaded, [{"text": "a"}], 1, metrics) == {"rows": 1.0}, "the counter stands still"
    with counting(zone, watts=0.1):
        found = measure_costs(loaded, [{"text": "a"}], 1, metrics)
    assert set(found) == {"rows", "cpu_energy_j", "cpu_energy_idle_j"}
    assert found["cpu_energy_j"] == pytest.approx(1.0, rel=0.1)


def planned(catalog, tiny_model, root, **changes):
    recipe = {"task": "text-classification", "model": str(tiny_model), "data": "train.csv", **changes}
    metrics = {**catalog.cost_metrics, "cpu_energy": CpuEnergy(root)}
    return make_plan(recipe_from_mapping(recipe), replace(catalog, cost_metrics=metrics), CPU)


def test_energy_is_a_limit_and_an_objective_where_it_can_be_read(catalog, tiny_model, tmp_path):
    zone = Zone(tmp_path, "intel-rapl:0", "package-0")
    with counting(zone, watts=5):
        plan = planned(
            catalog,
            tiny_model,
            tmp_path,
            budget={"cpu_energy": 0.25},
            search={"objectives": ["accuracy", "cpu_energy_j"], "early_stopping": "none"},
        )
    assert [(limit.column, limit.limit) for limit in plan.budget] == [("cpu_energy_j", 0.25)]
    assert plan.objectives == ["accuracy", "cpu_energy_j"]


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        ({"budget": {"cpu_energy": 0.25}}, "budget.cpu_energy"),
        ({"search": {"objectives": ["accuracy", "cpu_energy_j"], "early_stopping": "none"}}, "search.objectives"),
    ],
)
def test_a_recipe_that_asks_for_energy_where_it_cannot_be_read_is_refused(catalog, tiny_model, tmp_path, asked, where):
    with pytest.raises(RecipeError) as caught:
        planned(catalog, tiny_model, tmp_path, **asked)
    text = str(caught.value)
    assert text.startswith("recipe: 1 fault\n")
    assert f"{where}: cpu_energy cannot be measured here: {tmp_path} has no processor package" in text


def test_a_limit_on_the_energy_of_a_gpu_is_refused_where_there_is_none(catalog, tiny_model, tmp_path):
    with pytest.raises(
        RecipeError, match=r"budget\.gpu_energy: gpu_energy cannot be measured here: models are served on no"
    ):
        planned(catalog, tiny_model, tmp_path, budget={"gpu_energy": 0.25})


def test_energies_are_shown_with_their_unit():
    assert [cost_text("cpu_energy_j", value) for value in (1234.5, 2.345, 0.0123, None)] == [
        "1234 J",
        "2.35 J",
        "12.3 mJ",
        "–",
    ]
    assert column_title("cpu_energy_idle_j") == "cpu energy idle"


def test_hardware_says_what_is_measured_and_why_the_rest_is_not():
    done = subprocess.run(
        [sys.executable, "-m", "autoft", "hardware", "--json"], capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout)
    assert {"model_size", "latency", "inference_memory"} <= set(answer["measured"])
    assert {"cpu_energy", "gpu_energy"} <= set(answer["measured"]) | set(answer["not_measured"])
    text = subprocess.run(
        [sys.executable, "-m", "autoft", "hardware"], capture_output=True, text=True, check=True
    ).stdout
    for name, reason in answer["not_measured"].items():
        assert f"not measured: {name}: {reason}" in text


DRIVER = r"""
#include <string.h>
static unsigned long long millijoules = 1000000;
static int gpu;
int nvmlInit_v2(void) { return INIT; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { gpu = index; *handle = &gpu; return index < 2 ? 0 : 2; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    gpu = 1; *handle = &gpu; return strcmp(uuid, "GPU-second") ? 6 : 0;
}
/* The first GPU counts 3 J each time that it is asked, the second 7 J. */
int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *count) {
    *count = millijoules += *(int *)handle ? 7000 : 3000; return ENERGY;
}
"""
ASK = """
import json
from pathlib import Path
from autoft.contracts import Served
from autoft.energy import GpuEnergy
GpuEnergy.SECONDS = GpuEnergy.IDLE_SECONDS = 0.0
metric = GpuEnergy()
refusal = metric.check("cuda", 1)
figures = None if refusal else metric.measure(Served(Path(), lambda rows: [{}], [{}], 1, lambda: 0))
print(json.dumps([refusal and refusal.reason, figures]))
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="compiles a library for Linux")
@pytest.mark.parametrize(
    ("visible", "init", "energy", "reason", "joules"),
    [
        (None, 0, 0, None, 3.0),
        ("1,0", 0, 0, None, 7.0),
        ("GPU-second", 0, 0, None, 7.0),
        ("MIG-part", 0, 0, "nvmlDeviceGetHandleByUUID answered 6: see what nvidia-smi says", None),
        (None, 9, 0, "nvmlInit_v2 answered 9: see what nvidia-smi says", None),
        (None, 0, 3, "nvmlDeviceGetTotalEnergyConsumption answered 3: it needs a whole GPU, from Volta on", None),
    ],
)
def test_the_counter_of_a_gpu_is_asked_as_nvml_documents_it(tmp_path, visible, init, energy, reason, joules):
    (tmp_path / "nvml.c").write_text(DRIVER)
    library = tmp_path / "libnvidia-ml.so.1"
    command = ["cc", "-shared", "-fPIC", f"-DINIT={init}", f"-DENERGY={energy}", "nvml.c", "-o", str(library)]
    subprocess.run(command, cwd=tmp_path, check=True)
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment |= {"LD_LIBRARY_PATH": str(tmp_path)} | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    told, figures = json.loads(done.stdout)
    assert told == reason
    if joules is not None:
        assert figures["gpu_energy_j"] == joules


def test_without_the_driver_a_gpu_has_no_counter(monkeypatch):
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has the driver")
    assert "libnvidia-ml.so.1 is not found" in GpuEnergy().check("cuda", 1).reason
