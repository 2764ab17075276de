from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from autoft.hardware import Gpu, Hardware, OtherLoad, available_cores

posix = pytest.mark.skipif(os.name != "posix", reason="puts a shell script in place of nvidia-smi")


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Put a program in place of nvidia-smi that prints what a driver would."""

    def install(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return install


def torch_build(monkeypatch, version):
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)


@posix
def test_gpus_are_listed_and_used(driver, monkeypatch):
    torch_build(monkeypatch, "2.13.0")
    driver("echo 'NVIDIA H200, 143771, 9.0'; echo 'NVIDIA H200, 143771, 9.0'")
    probed = Hardware.probe()
    assert probed.gpus == (Gpu("NVIDIA H200", 143771 * 2**20, 9.0),) * 2
    assert (probed.device, probed.bf16) == ("cuda", True)
    assert str(probed).startswith("NVIDIA H200 140 GiB; NVIDIA H200 140 GiB")
    assert Hardware.from_json(probed.to_json()) == probed


@posix
def test_gpus_before_ampere_have_no_bf16(driver, monkeypatch):
    torch_build(monkeypatch, "2.13.0")
    driver("echo 'Tesla T4, 15360, 7.5'")
    assert (Hardware.probe().device, Hardware.probe().bf16) == ("cuda", False)


@posix
def test_a_gpu_is_left_alone_where_torch_is_built_for_the_cpu(driver, monkeypatch):
    torch_build(monkeypatch, "2.13.0+cpu")
    driver("echo 'Tesla T4, 15360, 7.5'")
    probed = Hardware.probe()
    assert probed.device == "cpu"
    assert "not used: Tesla T4 15 GiB, as torch is a build for the CPU" in str(probed)


@posix
@pytest.mark.parametrize("script", ["exit 9", "echo 'NVIDIA-SMI has failed'", "echo 'A100, [N/A], 8.0'", "echo"])
def test_a_driver_that_does_not_answer_means_no_gpu(driver, script):
    driver(script)
    assert Hardware.probe().gpus == ()


@posix
def test_hidden_gpus_are_not_seen(driver, monkeypatch):
    driver("echo 'Tesla T4, 15360, 7.5'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Hardware.probe().gpus == ()


def test_cores_and_memory_are_no_more_than_the_machine_has():
    probed = Hardware.probe()
    assert 1 <= probed.cores == available_cores() <= os.cpu_count()
    assert 0 < probed.memory_bytes <= psutil.virtual_memory().total


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux's affinity")
def test_cores_are_those_that_the_process_may_use():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    code += "from autoft.hardware import available_cores; print(available_cores())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "1"


def test_the_peak_memory_is_that_of_the_largest_moment():
    code = "from autoft.hardware import peak_resident_bytes as peak; before = peak(); held = bytearray(200_000_000); "
    code += "del held; print(peak() - before)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 180_000_000 < int(answer.stdout) < 260_000_000


def test_what_other_processes_take_of_the_processors_is_told_and_the_own_work_is_not():
    spin = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    others = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(psutil.cpu_count())]
    try:
        load = OtherLoad()
        time.sleep(1.0)
        assert load.share > OtherLoad.BUSY
    finally:
        for other in others:
            other.kill()
            other.wait()
    load, begin, user = OtherLoad(), time.monotonic(), psutil.Process().cpu_times().user
    while psutil.Process().cpu_times().user < user + 1.0:
        pass
    # However busy the machine is with other work, this process's own second is no part of it.
    own = 1.0 / (psutil.cpu_count() * (time.monotonic() - begin))
    assert load.share <= 1 - own + 0.05
