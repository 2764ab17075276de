"""What the search is told of workers that do not start, print, hang, are stopped or die; programs of the tests stand in for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager

import psutil
import pytest

from autoft.executors import LocalExecutor, local, supervision
from autoft.rundir import RunDir

SAYS = """
import json, os, signal, subprocess, sys, time

def say(event, **body):
    print(json.dumps({"event": event, **body}), flush=True)
"""


@contextmanager
def executing(folder, program, workers=1, **settings):
    """Workers whose interpreter runs ``program`` and ends, before it comes to the worker's own."""
    (folder / "site").mkdir()
    code = SAYS + textwrap.dedent(program) + "\nos._exit(0)\n"
    (folder / "site" / "sitecustomize.py").write_text(code)
    run = RunDir(folder / "run")
    run.create()
    executor = LocalExecutor(run, workers, 1, **settings)
    executor.environment["PYTHONPATH"] = str(folder / "site")
    with executor:
        yield executor


def until(executor, kind, seconds=30.0):
    """Return the events up to the first of a kind; fails where it does not come."""
    found, end = [], time.monotonic() + seconds
    while not found or found[-1].kind != kind:
        assert time.monotonic() < end, found
        event = executor.poll(0.05)
        found += [event] if event is not None else []
    return found


def test_what_is_no_event_is_kept_in_the_log_and_what_follows_is_heard(tmp_path):
    program = """
    say("ready")
    sys.stdout.buffer.write(b"\\xff\\xfe no text\\n5\\nnull\\n[1]\\n{\\"event\\": 5}\\n{\\"event\\": \\"done\\"}\\n{\\"event\\": \\"lost\\"}\\nhalf a line")
    sys.stdout.buffer.flush()
    print()
    say("done", trial=3)
    """
    with executing(tmp_path, program) as executor:
        events = until(executor, "lost")
    assert [(event.kind, event.body) for event in events[:-1]] == [("ready", {}), ("done", {"trial": 3})]
    log = (tmp_path / "run/logs/worker-0.log").read_text()
    assert "not an event: half a line" in log
    assert log.count("not an event") == 8


def test_a_worker_is_told_as_lost_whatever_it_leaves_on_its_channel_and_in_the_run_folder(tmp_path):
    program = """
    say("ready")
    sys.stdin.readline()
    print("[" * 100_000, flush=True)
    """
    with executing(tmp_path, program) as executor:
        until(executor, "ready")
        (tmp_path / "run" / "logs" / "worker-0.log").unlink()
        (tmp_path / "run" / "logs").rmdir()
        executor.send(0, "trial")
        assert "the worker process ended with 0" in until(executor, "lost")[-1].body["reason"]


def test_what_a_worker_said_before_it_was_replaced_is_not_its_successors(tmp_path):
    program = """
    say("ready")
    if sys.stdin.readline():
        say("done", trial=os.getpid())
        sys.stdin.readline()
    """
    with executing(tmp_path, program) as executor:
        until(executor, "ready")
        first = executor._workers[0].process.pid
        executor.send(0, "trial")
        while executor._queue.empty():
            time.sleep(0.01)
        executor.stop(0)
        executor.start(0)
        executor.send(0, "trial")
        assert until(executor, "done")[-1].body["trial"] != first


def test_a_worker_lost_in_its_start_is_started_again_and_gets_what_was_sent(tmp_path):
    program = f"""
    with open({str(tmp_path / "starts")!r}, "a+") as starts:
        starts.write("x")
        starts.seek(0)
        if len(starts.read()) < 3:
            starts.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    say("ready")
    say("done", trial=json.loads(sys.stdin.readline())["number"])
    """
    with executing(tmp_path, program) as executor:
        executor.send(0, "trial", number=7)
        events = until(executor, "done")
    assert [event.kind for event in events] == ["restarted", "restarted", "ready", "done"]
    assert "killed by signal 9" in events[0].body["reason"]
    assert events[-1].body == {"trial": 7}


def test_a_worker_that_never_starts_ends_the_search_with_what_to_do(tmp_path):
    with executing(tmp_path, "sys.stderr.write('no library\\n'); sys.stderr.flush(); os._exit(5)") as executor:
        events = until(executor, "fatal")
    assert [event.kind for event in events] == ["restarted", "restarted", "fatal"]
    assert events[-1].body["exit_code"] == 7
    said = events[-1].body["message"]
    assert said.startswith("a worker does not start, 3 times in a row: the worker process ended with 5: no library")
    assert "worker-0.log; once the cause is gone, the same command goes on" in said


@pytest.mark.parametrize(("lost", "last"), [(5, "ready"), (100, "fatal")])
def test_machines_that_are_lost_while_a_worker_starts_do_not_count_as_its_own_fault(lost, last, tmp_path, monkeypatch):
    monkeypatch.setattr(supervision, "MACHINES", 6)
    started = []

    class OnMachines(LocalExecutor):
        """Says of the first processes that their machines were lost."""

        def _open(self, log):
            process = super()._open(log)
            started.append(process)
            if len(started) <= lost:
                process.lost = f"10.0.0.{len(started)} was lost"
                process.end()
            return process

    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(SAYS + 'say("ready")\nsys.stdin.readline()\nos._exit(0)\n')
    run = RunDir(tmp_path / "run")
    run.create()
    executor = OnMachines(run, 1, 1)
    executor.environment["PYTHONPATH"] = str(tmp_path / "site")
    with executor:
        events = until(executor, last)
    assert [event.kind for event in events] == ["restarted"] * min(lost, 5) + [last]
    if last == "fatal":
        assert (
            events[-1]
            .body["message"]
            .startswith("a worker does not start, on 6 machines in a row, all of which were lost: 10.0.0.6 was lost")
        )


def test_a_worker_without_progress_is_ended_with_what_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(supervision, "GRACE", 0.2)
    program = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(300)"])
    say("ready")
    say("stage", trial=child.pid, stage="train")
    while True:
        say("alive", at="the hook attach of the plugin slow (autoft-slow)")
        time.sleep(0.05)
    """
    with executing(tmp_path, program) as executor:
        child = psutil.Process(until(executor, "stage")[-1].body["trial"])
        executor.time_limits[0] = 0.5
        lost = until(executor, "lost")[-1]
        executor.stop(0)
        psutil.wait_procs([child], timeout=10)
    assert lost.body["hung"]
    assert lost.body["reason"].startswith("the worker process was ended: no progress for ")
    assert lost.body["reason"].endswith(", in the hook attach of the plugin slow (autoft-slow)")
    assert not child.is_running()


def test_a_stopped_worker_is_ended_and_one_that_only_says_nothing_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(supervision, "STOPPED_SECONDS", 0.3)
    monkeypatch.setattr(supervision, "GRACE", 0.0)
    program = """
    say("ready")
    time.sleep(1.0)
    say("done", trial=1)
    os.kill(os.getpid(), signal.SIGSTOP)
    """
    with executing(tmp_path, program) as executor:
        assert [event.kind for event in until(executor, "done")] == ["ready", "done"]
        lost = until(executor, "lost")[-1]
    assert lost.body["hung"]
    assert "it was stopped, as SIGSTOP does, for " in lost.body["reason"]


def test_where_a_worker_is_being_killed_for_want_of_memory_no_second_one_is(tmp_path, monkeypatch):
    """What it had is free a moment after it has ended: until then the machine seems to have as little as before."""
    with executing(tmp_path, "say('ready')\nsys.stdin.readline()", workers=2) as executor:
        until(executor, "ready")
        until(executor, "ready")
        monkeypatch.setattr(local, "memory_left", lambda: (1, 2))
        executor.poll(0)
        (first,) = [worker for worker, there in executor._workers.items() if there.ended]
        process, end = executor._workers[first].process, time.monotonic() + 30
        while process.resident_bytes:
            assert time.monotonic() < end
            time.sleep(0.01)
        executor.poll(0)
        assert [worker for worker, there in executor._workers.items() if there.ended] == [first]
        # Where there is as little once it is told and replaced, another one may be.
        executor.stop(first)
        executor.poll(0)
        assert [worker for worker, there in executor._workers.items() if there.ended] == [1 - first]


def test_time_in_which_nobody_looked_is_no_time_without_progress(tmp_path):
    """As where the machine slept, or the command itself was stopped."""
    program = """
    say("ready")
    say("done", trial=json.loads(sys.stdin.readline())["number"])
    """
    with executing(tmp_path, program) as executor:
        until(executor, "ready")
        executor.time_limits[0] = 60.0
        executor._looked -= 3600.0
        assert executor.poll(0.2) is None
        assert executor.poll(0.2) is None
        executor.send(0, "trial", number=1)
        until(executor, "done")


def test_a_worker_that_died_is_told_though_what_it_forked_holds_its_channel(tmp_path):
    program = """
    say("ready")
    if os.fork() == 0:
        time.sleep(300)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with executing(tmp_path, program) as executor:
        lost = until(executor, "lost")[-1]
    assert (lost.body["code"], lost.body["hung"]) == (-9, False)


def test_an_idle_worker_may_wait_for_ever(tmp_path):
    with executing(tmp_path, "say('ready')\nsys.stdin.readline()\nsay('done', trial=1)") as executor:
        until(executor, "ready")
        executor._clock += 1e6
        assert executor.poll(0.2) is None
        executor.send(0, "trial", number=1)
        until(executor, "done")


def test_a_worker_says_that_it_lives_takes_no_request_for_an_answer_and_names_who_ends_it(tmp_path):
    """The real one: it beats, its plugins' standard input is empty, and ``os._exit`` is told."""
    code = """
    import io, os, sys, time
    from autoft import watched
    from autoft.executors import worker

    watched.HEARTBEAT_SECONDS = 0.05
    out = io.StringIO()
    one = worker._Worker(None, io.StringIO(), out)
    one.live()
    one.tell_of_exits()
    while out.getvalue().count('"alive"') < 2:
        time.sleep(0.01)
    one.exit = lambda code: sys.stdout.write(out.getvalue())
    from autoft_text_classification import autoft_tasks
    eval("os._exit(3)", {"__name__": "autoft_text_classification.x", "os": os})
    """
    words = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=100, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last == (
        '{"event": "alive", "at": "the hook <module> of the plugin text-classification (autoft-text-classification)"}'
    )


def test_a_group_that_is_gone_is_no_error():
    process = subprocess.Popen([sys.executable, "-S", "-c", ""], start_new_session=True)
    process.wait()
    local._signal(process, signal.SIGKILL)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
