"""Where a run stands, from its files: who is at it, what is damaged, and what the trials say."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from autoft.errors import RunFolderError, SearchFailed
from autoft.hardware import Hardware
from autoft.listener import Standing
from autoft.plans.planner import make_plan
from autoft.progress import Progress, ProgressWriter, RunReader, figures, lock_holder, printable
from autoft.recipe import recipe_from_mapping
from autoft.rundir import RunDir, TrialConfig, TrialResult, VariantResult, write_json

CPU = Hardware("cpu", 2, 8 * 2**30, (), "test", False, "Linux x86_64")
STANDING = Standing(
    {"complete": 1, "pruned": 0, "infeasible": 0, "failed": 0}, 0.8, 1, "none", 0.7, 61.0, 1, None, 40.0
)


@pytest.fixture
def plan(catalog, tiny_model):
    recipe = {"task": "text-classification", "model": str(tiny_model), "data": "train.csv", "name": "films"}
    recipe["budget"] = {"time": "5m", "model_size": "50MB"}
    data = {"sizes": {"train": 120, "validation": 40, "test": 40}, "columns": {"text": "text", "label": "label"}}
    return make_plan(recipe_from_mapping(recipe), catalog, CPU).with_data({"labels": ["a", "b"]}, data, ())


@pytest.fixture
def run(tmp_path, plan) -> RunDir:
    folder = RunDir(tmp_path / "run")
    folder.create()
    write_json(folder.plan, plan.model_dump(mode="json"))
    return folder


def config(number, kind="search", **changes):
    return TrialConfig(number=number, kind=kind, model="m", pipeline="full", params={}, seed=0, **changes)


def trial(number, value=0.8, size=20e6, state="complete", kind="search", **changes):
    variant = VariantResult(
        name="none",
        state="complete",
        validation={"accuracy": value},
        costs={"model_size_bytes": size, "latency_p50_ms": 2.0},
        folder="x",
    )
    return TrialResult(
        number=number,
        state=state,
        config=config(number, kind, **changes),
        variants=[variant] if state == "complete" else [],
        seconds={"total": 3.0},
    )


WRITER = """
import sys, time
from autoft.progress import ProgressWriter
from autoft.rundir import RunDir
run = RunDir(sys.argv[1])
with run.lock(), ProgressWriter(run) as writer:
    writer.phase("search")
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def searching(run):
    """A process that holds the run folder and writes its progress, as a search does."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_killed_search_is_not_shown_as_running(run, searching):
    view = RunReader(run.path).read()
    assert (view.state, view.process) == ("running", f"process {searching.pid}")
    os.kill(searching.pid, signal.SIGKILL)
    searching.wait()
    assert json.loads(run.progress.read_text())["state"] == "running", "it had no time to say anything else"
    assert RunReader(run.path).read().state == "cut off"


@pytest.mark.skipif(sys.platform != "linux", reason="the locks are listed by Linux alone")
def test_who_holds_the_folder_is_known_without_the_progress_file(run, searching):
    run.progress.unlink()
    assert lock_holder(run) == searching.pid
    view = RunReader(run.path).read()
    assert (view.state, view.process) == ("running", f"process {searching.pid}")
    # Looking has not taken the lock away.
    with pytest.raises(RunFolderError, match="another search"), run.lock():
        pass


def test_a_number_that_another_process_has_got_since_is_not_the_search(run):
    with ProgressWriter(run) as writer:
        now = writer.now
    alive = now.model_copy(update={"state": "running"})
    assert alive.process(time.time())[0], "this process is alive"
    assert not alive.model_copy(update={"pid_began": now.pid_began - 3600}).process(time.time())[0]


def test_a_search_on_another_machine_counts_by_its_signs_of_life(run):
    with ProgressWriter(run) as writer:
        now = writer.now
    there = now.model_copy(update={"state": "running", "machine": "elsewhere", "host": "node7", "pid": 1})
    assert there.process(now.written + 5) == (True, "process 1 on node7, last heard of 5.0 s ago")
    assert not there.process(now.written + 3600)[0]


@pytest.mark.parametrize(
    ("error", "state"),
    [(None, "finished"), (KeyboardInterrupt(), "stopped"), (SearchFailed("a worker\x1b[31m\nis gone"), "failed")],
)
def test_the_end_is_written_down_with_its_reason(run, error, state):
    def search():
        with ProgressWriter(run):
            if error is not None:
                raise error

    if error is None:
        search()
    else:
        with pytest.raises(type(error)):
            search()
    view = RunReader(run.path).read()
    assert view.state == state
    assert view.progress.reason == ("a worker [31m is gone" if state == "failed" else "")


def test_it_is_written_at_most_once_a_second_however_much_happens(run, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    seen = set()
    begin = time.monotonic()
    with ProgressWriter(run) as writer:
        writer.trial_started(config(0))
        for samples in range(3000):
            writer.progress(0, samples, 3000, 50.0)
            seen.add(run.progress.stat().st_ino)
    seconds = time.monotonic() - begin
    assert len(seen) <= 2 + seconds, "a file for each second, one at the beginning, one at the end"
    assert synced == [], "nothing waits for the disk"
    assert [path.name for path in run.path.iterdir() if "progress" in path.name] == ["progress.json"]


def test_a_disk_that_cannot_be_written_does_not_end_the_search(run):
    run.progress.mkdir()  # No file can take the place of a folder.
    with ProgressWriter(run) as writer:
        writer.phase("search")
        writer.write()
    assert [path.name for path in run.path.iterdir() if path.name.startswith(".progress")] == []


def test_each_worker_keeps_its_number(run):
    with ProgressWriter(run) as writer:
        for number in (0, 1, 2):
            writer.trial_started(config(number))
        writer.stage(1, "train")
        writer.progress(1, 30, 90, 20.0)
        writer.validation(1, 30, 0.75)
        writer.trial_done(trial(0), STANDING)
        writer.trial_started(config(3))
        writer.trial_started(config(2))  # Begun again in smaller parts.
        now = writer.now.model_copy(deep=True)
    assert [(one.worker, one.trial, one.stage) for one in now.activities] == [
        (0, 3, "load"),
        (1, 1, "train"),
        (2, 2, "load"),
    ]
    busy = now.activities[1]
    assert (busy.samples, busy.total, busy.value, busy.seconds_left(time.time())) == (30, 90, 0.75, 3.0)
    expected, budget = now.left(now.asked + 10)
    assert (expected, budget) == (30.0, 51.0)


def test_damaged_files_are_named_and_the_rest_is_shown(run):
    for number in range(3):
        run.write_result(trial(number, 0.7 + number / 100))
    run.result(1).write_text("{")
    run.progress.write_text("no JSON")
    view = RunReader(run.path).read()
    assert [result.number for result in view.results] == [0, 2]
    assert view.figures.best.objective == 0.72
    assert len(view.damaged) == 2
    assert "0001" in view.damaged[0]
    assert "progress.json" in view.damaged[1]
    run.result(1).write_text("[" * 100_000)
    run.progress.write_text("[" * 100_000)
    assert len(RunReader(run.path).read().damaged) == 2
    run.plan.write_text("{")
    view = RunReader(run.path).read()
    assert (view.figures.counts["complete"], view.figures.ended) == (2, 2), "trials are counted without a plan too"
    assert [told.count(name) for told, name in zip(view.damaged, ("plan.json", "result.json"), strict=False)] == [1, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"pid": -1},
        {"pid": 10**12},
        {"written": float("nan")},
        {"phase_began": float("inf")},
        {"expected_left": float("nan")},
    ],
    ids=str,
)
def test_a_progress_that_cannot_be_is_named(run, change):
    with ProgressWriter(run):
        pass
    known = json.loads(run.progress.read_text())
    run.progress.write_text(json.dumps(known | {"state": "running"} | change))
    (run.path / "time.json").write_text('{"seconds": NaN}')
    view = RunReader(run.path).read()
    assert "progress.json" in view.damaged[0]
    assert view.seconds is None


def test_reading_while_a_search_writes_never_fails(run, plan):
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            run.write_result(trial(number % 7, random.random()))
            write_json(run.plan, plan.model_dump(mode="json"))
            if number % 5 == 4:
                run.result(number % 7).unlink()
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    reader = RunReader(run.path)
    try:
        for _ in range(150):
            assert reader.read().damaged == ()
    finally:
        stop.set()
        thread.join()


class TakenBack(RunDir):
    """A run folder in which a search takes a result back, and writes the next one, while it is read."""

    def read_result(self, number):
        path = self.result(number)
        content = path.read_bytes()
        path.unlink()
        try:
            return super().read_result(number)
        finally:
            path.write_bytes(content)


def test_a_result_that_is_taken_back_and_written_anew_while_it_is_read_is_not_damaged(run, plan):
    run.write_result(trial(0, 0.5))
    write_json(run.plan, plan.model_dump(mode="json"))
    reader = RunReader(run.path)
    reader.run = TakenBack(run.path)
    assert reader.read().damaged == ()
    run.result(0).write_text("{")
    assert len(RunReader(run.path).read().damaged) == 1


def test_figures_agree_with_counting_by_hand(plan):
    """The best so far, the front and the last value, of random trials, against plain loops."""
    rng = random.Random(0)
    for _ in range(30):
        trials = []
        for number in range(rng.randint(1, 9)):
            state = rng.choice(["complete", "complete", "pruned", "failed"]) if number else "complete"
            size = rng.choice([10e6, 20e6, 40e6, 90e6])
            trials.append(trial(number, round(rng.random(), 3), size, state))
        told = figures(plan, trials)
        best, curve = None, []
        for one in trials:
            fits = one.state == "complete" and one.variants[0].costs["model_size_bytes"] <= 50e6
            if fits:
                value = one.variants[0].validation["accuracy"]
                best = value if best is None or value > best else best
            if best is not None:
                curve.append(best)
        assert list(told.best_so_far) == curve
        assert (told.best.objective if told.best else None) == best
        done = [one for one in trials if one.state == "complete"]
        assert told.last == (done[-1].number, done[-1].variants[0].validation["accuracy"])
        assert told.default == trials[0].variants[0].validation["accuracy"]
        points = [
            (one.variants[0].validation["accuracy"], one.variants[0].costs["model_size_bytes"], one.number)
            for one in done
            if one.variants[0].costs["model_size_bytes"] <= 50e6
        ]
        front = [p for p in points if not any(q[0] >= p[0] and q[1] <= p[1] and q[:2] != p[:2] for q in points)]
        assert [c.objective for c in told.front] == [p[0] for p in sorted(front, key=lambda p: -p[0])[:3]]


def test_further_seeds_are_no_trials_of_their_own(plan):
    told = figures(plan, [trial(0, 0.7), trial(1, 0.8), trial(2, 0.6, kind="seed", parent=1)])
    assert told.ended == 2
    assert told.best_so_far == (0.7, 0.7)
    assert told.best.objective == 0.7, "the mean of the two seeds of trial 1 is 0.7 too, and trial 0 was first"


def test_text_from_elsewhere_cannot_steer_the_terminal():
    assert printable("a\x1b[2J\x07b\r\nc\u202ed\x9b") == "a [2J b c d"
    assert printable("模型 🚀 é") == "模型 🚀 é"


def test_the_file_is_what_the_page_says(run):
    with ProgressWriter(run) as writer:
        writer.phase("search")
        writer.write()
        running = json.loads(run.progress.read_text())
    assert {"state", "pid", "host", "phase", "activities", "notes", "written", "seconds_left"} <= set(running)
    assert running["state"] == "running"
    assert running["pid"] == os.getpid()
    assert Progress.model_validate(running).phase == "search"
