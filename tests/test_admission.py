"""Trials of workers that share a GPU begin once there is room for them: the ledger, how it is asked, and what a worker does with the answer."""

from __future__ import annotations

import io
import json
import os
import signal
import textwrap
import time
from collections import deque
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoft.data.prepared import prepare_data
from autoft.executors import LocalExecutor
from autoft.executors.admission import PROCESS_BYTES, WAITS, Admission
from autoft.executors.worker import _Worker, needed
from autoft.hardware import Gpu, Hardware
from autoft.plans.planner import make_plan
from autoft.recipe import recipe_from_mapping
from autoft.rundir import RunDir, write_json
from autoft.trial import Workplace

TOTAL = 80e9


def room_of(sharing: int) -> float:
    return TOTAL - sharing * PROCESS_BYTES


def ask(ledger: Admission, worker: int, *sizes: float, gpu: str = "a") -> None:
    ledger.ask(worker, gpu, TOTAL, sizes, 0)


def test_trials_are_side_by_side_as_far_as_they_fit_and_not_only_in_equal_parts():
    ledger = Admission(2)
    ask(ledger, 0, 50e9)
    ask(ledger, 1, 20e9)
    assert ledger.admit() == [(0, 50e9, False), (1, 20e9, False)]
    # Of which neither is known.
    ask(ledger, 0)
    ask(ledger, 1)
    assert ledger.admit() == [(0, room_of(2) / 2, False), (1, room_of(2) / 2, False)]


def test_one_that_fits_only_alone_waits_and_is_the_next_one():
    ledger = Admission(3)
    ask(ledger, 0, 30e9)
    ask(ledger, 1, 100e9)
    ask(ledger, 2, 10e9)
    assert ledger.admit() == [(0, 30e9, False)]
    # There is room for worker 2, which would be before worker 1.
    assert ledger.admit() == []
    ledger.free(0, 0)
    assert ledger.admit() == [(1, room_of(3), True)]
    ledger.leave(1)
    assert ledger.admit() == [(2, 10e9, False)]


def test_as_many_train_together_as_fit_beside_others():
    ledger = Admission(3)
    ask(ledger, 0, 30e9)
    ask(ledger, 1, 10e9, 25e9, 40e9, 55e9)
    assert ledger.admit() == [(0, 30e9, False), (1, 40e9, False)]
    ledger.free(0, 0)
    ask(ledger, 2, 50e9, 60e9)
    assert ledger.admit() == []
    # Not more than those take that begin.
    ledger.leave(1)
    ask(ledger, 2, 50e9, 100e9)
    assert ledger.admit() == [(2, 50e9, False)]


def test_what_a_process_keeps_is_not_given_away_and_keeps_nobody_from_beginning_alone():
    ledger = Admission(2)
    ask(ledger, 0, 30e9)
    ledger.admit()
    ledger.free(0, 5e9)
    ask(ledger, 1, TOTAL)
    assert ledger.admit() == [(1, room_of(2) - 5e9, False)]
    # A new process keeps nothing.
    ledger.leave(0)
    ask(ledger, 1, TOTAL)
    assert ledger.admit() == [(1, room_of(2), True)]


def test_workers_on_other_gpus_do_not_wait_for_each_other():
    ledger = Admission(1)
    ask(ledger, 0, TOTAL, gpu="a")
    ask(ledger, 1, TOTAL, gpu="b")
    assert ledger.admit() == [(0, room_of(1), True), (1, room_of(1), True)]


sizes_of = st.lists(st.floats(0, 1.5 * TOTAL), max_size=4).map(sorted)
steps = st.tuples(st.sampled_from(["ask", "free", "die"]), st.integers(0, 4), sizes_of, st.floats(0, 1))


@given(st.integers(1, 5), st.lists(steps, max_size=60))
def test_never_more_is_given_than_there_is_in_turn_and_everyone_gets_it(sharing, taken):
    ledger = Admission(sharing)
    held, kept, line = dict[int, float](), dict[int, float](), deque[tuple[int, float]]()

    def admitted() -> None:
        for worker, room, whole in ledger.admit():
            first, least = line.popleft()
            assert worker == first
            # Not less than it asked for, unless it has all that others do not keep.
            others = sum(kept[other] for other in kept if other != worker)
            assert room >= least or (not held and room == pytest.approx(room_of(sharing) - others))
            assert whole == (room == room_of(sharing))
            held[worker] = room
            kept.pop(worker, None)
            assert sum(held.values()) + sum(kept.values()) <= room_of(sharing) * (1 + 1e-9)
        # Whoever is first has its turn, once nobody is left.
        assert held or not line

    for what, worker, sizes, share in taken:
        worker %= sharing
        waits = any(worker == one for one, _ in line)
        if what == "ask" and not waits:
            left = share * held.pop(worker, 0.0) if worker in held else kept.get(worker, 0.0)
            kept[worker] = left
            ledger.ask(worker, "a", TOTAL, sizes, left)
            least = sizes[0] if sizes else room_of(sharing) / sharing
            line.append((worker, min(least, room_of(sharing))))
        elif what == "free" and worker in held:
            kept[worker] = share * held.pop(worker)
            ledger.free(worker, kept[worker])
        elif what == "die":
            ledger.leave(worker)
            held.pop(worker, None)
            kept.pop(worker, None)
            line = deque(one for one in line if one[0] != worker)
        admitted()
    while held:
        worker = next(iter(held))
        del held[worker]
        ledger.leave(worker)
        admitted()
    assert not line


@pytest.fixture
def workers(tmp_path):
    """Two workers that share a GPU, and ask for as much of it as each is told to."""
    (tmp_path / "site").mkdir()
    program = f"""
    import json, os, sys

    def say(event, **body):
        print(json.dumps({{"event": event, **body}}), flush=True)

    say("ready")
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "trial":
            assert request["shared"]
            say("needs", gpu="a", total={TOTAL}, sizes=[request["needs"]], kept=0)
        elif request["op"] == "room":
            say("stage", trial=os.getpid(), stage=str(request["bytes"]))
        else:
            say("freed", kept=0)
    os._exit(0)
    """
    (tmp_path / "site" / "sitecustomize.py").write_text(textwrap.dedent(program))
    run = RunDir(tmp_path / "run")
    run.create()
    executor = LocalExecutor(run, 2, 1)
    executor.environment["PYTHONPATH"] = str(tmp_path / "site")
    with executor:
        yield executor


def told(executor: LocalExecutor, kind: str, count: int) -> list:
    """Return so many events of a kind."""
    found, end = [], time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < end, found
        event = executor.poll(0.05)
        found += [event] if event is not None and event.kind == kind else []
    return found


def test_a_worker_has_an_answer_once_the_others_trial_has_ended_or_its_process_is_killed(workers):
    told(workers, "ready", 2)
    workers.send(0, "trial", needs=50e9)
    (first,) = told(workers, "stage", 1)
    workers.send(1, "trial", needs=50e9)
    told(workers, "needs", 1)
    workers.send(0, "end of the trial")
    (second,) = told(workers, "stage", 1)
    assert [(one.worker, one.body["stage"]) for one in (first, second)] == [(0, "50000000000.0"), (1, "50000000000.0")]
    workers.send(0, "trial", needs=25e9)
    assert told(workers, "stage", 1)[0].worker == 0
    workers.send(1, "end of the trial")
    workers.send(1, "trial", needs=TOTAL)
    told(workers, "needs", 1)
    os.kill(first.body["trial"], signal.SIGKILL)
    (lost,) = told(workers, "lost", 1)
    workers.stop(lost.worker)
    (whole,) = told(workers, "stage", 1)
    assert (whole.worker, float(whole.body["stage"])) == (1, room_of(2))


@pytest.fixture
def place(tmp_path, tiny_model, catalog, monkeypatch) -> Workplace:
    """What a worker has on a GPU that is not there, on which no model finds room."""
    (tmp_path / "rows.csv").write_text(
        "text,label\n" + "\n".join(f"film {n},{'good' if n % 2 else 'bad'}" for n in range(60))
    )
    hardware = Hardware("cuda", 2, 2**33, (Gpu("Test GPU", int(TOTAL), 8.0),), "test", False, "Linux x86_64")
    mapping = {"task": "text-classification", "model": str(tiny_model), "data": "rows.csv", "executor": {"workers": 2}}
    recipe, run = recipe_from_mapping(mapping), RunDir(tmp_path / "run")
    plan = make_plan(recipe, catalog, hardware, tmp_path)
    run.create()
    prepared = prepare_data(recipe.data, catalog.task(plan.task), plan.options, 0, run.data, tmp_path)
    plan = plan.with_data(prepared.facts, {"sizes": {"train": 40, "validation": 10, "test": 10}}, [])
    write_json(run.plan, plan.model_dump(mode="json"))

    def to(self, *arguments, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda at: SimpleNamespace(total_memory=TOTAL, uuid="a"))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 1000)
    return Workplace.open(run)


def test_a_trial_that_was_given_too_little_is_tried_again_with_the_whole_gpu(place, monkeypatch):
    shares = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)

    def said(answer, **changes):
        """What a worker says of a trial, given an answer to what it asks for."""
        out = io.StringIO()
        worker = _Worker(place.run, io.StringIO(json.dumps(answer) + "\n"), out)
        worker.place, worker.shared = place, True
        config = place.plan.default_config().model_dump(mode="json")
        request = {
            "config": config,
            "precision": {},
            "decided": {},
            "screened": {},
            "reached": {},
            "competes": False,
            "seconds": None,
            "left": None,
        }
        worker.trial({**request, "expected": 1.0, "whole": False, **changes})
        return [json.loads(line) for line in out.getvalue().split("\n") if line]

    events = said({"bytes": 20e9, "whole": False})
    did = [event.get("stage", event["event"]) for event in events]
    assert did == ["predict memory", WAITS, "needs", "load", "load", "renew"]
    needs = events[2]
    # A tiny model: what a GPU's libraries take beside it is most.
    (size,) = needs["sizes"]
    assert 100e6 < size < 500e6
    assert (needs["gpu"], needs["total"], needs["kept"], events[-1]["whole"]) == ("a", TOTAL, 1000, True)
    events = said({"bytes": 70e9, "whole": True}, whole=True)
    assert events[2]["sizes"] == [TOTAL]
    assert events[-1]["event"] == "done"
    assert place.run.read_result(0).violations == {"memory": 1.0}
    assert shares == [0.25, 0.875]


def test_trials_that_train_together_ask_for_room_for_one_two_and_all_and_as_many_begin_as_it_is_for(place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share: None)
    default = place.plan.default_config()
    configs = [
        default.model_copy(update={"kind": kind, "params": {**default.params, "train.batch_size": size}})
        # Of an average it is not known, and so those after it are not counted.
        for kind, size in (("search", 8), ("search", 32), ("search", 16), ("soup", 8), ("search", 8))
    ]
    requests = [{"config": config.model_dump(mode="json"), "whole": False} for config in configs]
    assert needed(place, configs[3]) is None
    peaks, base = [needed(place, config) for config in configs[:3]], place.plan.models[0].size_bytes
    assert peaks[0] < peaks[2] < peaks[1]
    sizes = [1000 + sum(peaks[:count]) - (count - 1) * base for count in (1, 2, 3)]
    for count, size in enumerate(sizes, start=1):
        out = io.StringIO()
        worker = _Worker(place.run, io.StringIO(json.dumps({"bytes": size, "whole": False}) + "\n"), out)
        worker.place, worker.shared = place, True
        assert worker.admit(requests) == ((size, False), count)
        assert json.loads(out.getvalue().split("\n")[-2])["sizes"] == sizes
