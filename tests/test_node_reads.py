"""Data and weights reach a node once, however many workers it has: what these make its disk read, as the kernel counts it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from autoft.data.prepared import prepare_data
from autoft.executors import LocalExecutor
from autoft.hardware import Hardware
from autoft.plans.planner import make_plan
from autoft.recipe import recipe_from_mapping
from autoft.rundir import RunDir, write_json

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="counts what /proc/PID/io says"),
]


def read_in_turn(run: RunDir, workers: int, model: str) -> list[int]:
    """Have one worker after the other encode and read the rows, and train some steps; return the bytes that the disk gave to each."""
    with LocalExecutor(run, workers, 1) as executor:

        def heard(kind: str, count: int) -> None:
            end = time.monotonic() + 300
            while count:
                assert time.monotonic() < end
                event = executor.poll(0.2)
                assert event is None or event.kind not in {"lost", "fatal"}, event
                count -= event is not None and event.kind == kind

        heard("ready", workers)
        found = []
        for worker in range(workers):
            process = psutil.Process(executor._workers[worker].process.pid)
            before = process.io_counters().read_bytes
            executor.send(worker, "probe", model=model)
            heard("probed", 1)
            found.append(process.io_counters().read_bytes - before)
    return found


def forget(path: Path) -> int:
    """Have the system keep nothing of a file in memory, and return its bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return path.stat().st_size


def test_what_one_worker_has_read_the_next_one_finds_in_memory(tmp_path, tiny_model, reviews, catalog):
    from transformers import AutoTokenizer, BertConfig, BertModel

    model = tmp_path / "model"
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(model)
    # Beside 40 MB it is little what libraries read once they are used.
    BertModel(
        BertConfig(hidden_size=512, num_hidden_layers=3, num_attention_heads=4, intermediate_size=2048)
    ).save_pretrained(model)
    head, *lines = reviews.read_text().splitlines()
    (tmp_path / "rows.csv").write_text("\n".join([head, *(f"{n} {line}" for n in range(100) for line in lines)]))
    recipe, run = (
        recipe_from_mapping({"task": "text-classification", "model": str(model), "data": "rows.csv"}),
        RunDir(tmp_path / "run"),
    )
    plan = make_plan(recipe, catalog, Hardware.probe(), tmp_path)
    run.create()
    prepared = prepare_data(recipe.data, catalog.task(plan.task), plan.options, 0, run.data, tmp_path)
    sizes = {name: len(getattr(prepared, name)) for name in ("train", "validation", "test")}
    write_json(run.plan, plan.with_data(prepared.facts, {"sizes": sizes}, []).model_dump(mode="json"))
    read_in_turn(run, 1, plan.models[0].name)
    size = forget(model / "model.safetensors") + sum(map(forget, run.data.glob("encoded/*.arrow")))
    assert size > 40e6
    first, second = read_in_turn(run, 2, plan.models[0].name)
    print(f"of {size / 1e6:.1f} MB the first read {first / 1e6:.1f}, the second {second / 1e6:.1f}")
    if first == 0:
        pytest.skip("the file system of the temporary files lies in memory")
    assert 0.9 * size < first < 1.5 * size
    assert second < 0.1 * size
