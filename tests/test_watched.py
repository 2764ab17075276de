"""What becomes of processes that are asked for one answer: programs of the tests stand in for them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from autoft import watched
from autoft.fork_server import CAN_FORK, ForkServer
from autoft.processes import spoken_to
from autoft.watched import ProcessFailed, ProcessLost, ask

SAYS = """
import json, os, signal, subprocess, sys, time

def say(event, **body):
    print(json.dumps({"event": event, **body}), flush=True)

request = json.loads(sys.stdin.readline())
with open(request["starts"], "a+") as starts:
    starts.write("x")
    starts.seek(0)
    start = len(starts.read())
"""


FORKED = """
def nothing():
    pass

def main():
    exec(open("program.py").read(), {"__name__": "__main__"})
"""


@pytest.fixture(params=["started", "forked"])
def asked(tmp_path, request, monkeypatch):
    """Ask a program; gives its answer, and keeps what was noted, and how often it was started."""
    monkeypatch.chdir(tmp_path)
    notes, servers = [], []

    def start(log):
        if request.param == "started":
            return spoken_to([sys.executable, "-S", "program.py"], log, os.environ)
        if not servers:
            (tmp_path / "program_forked.py").write_text(FORKED)
            monkeypatch.syspath_prepend(tmp_path)
            servers.append(ForkServer.start("program_forked:nothing", os.environ))
        return servers[0].spoken_to(importlib.import_module("program_forked").main, log)

    def asked(program, patience=30.0):
        (tmp_path / "program.py").write_text(SAYS + textwrap.dedent(program))
        return ask(start, {"starts": "starts"}, log=tmp_path / "log", patience=patience, note=notes.append)

    asked.notes, asked.starts, asked.log = notes, lambda: len((tmp_path / "starts").read_text()), tmp_path / "log"
    if request.param == "forked" and not CAN_FORK:
        pytest.skip("this system has no fork")
    yield asked
    sys.modules.pop("program_forked", None)
    for server in servers:
        server.close()


def test_the_answer_is_found_among_what_libraries_leave_on_the_channel(asked):
    program = """
    sys.stdout.buffer.write(b"\\xff\\xfe\\n5\\nnull\\n[1]\\n{\\"event\\": 5}\\nhalf a line")
    sys.stdout.buffer.flush()
    print("for the log", file=sys.stderr)
    print()
    say("alive", at=None)
    say("answer", answer={"nan": float("nan"), "start": start, "long": "x" * 1_000_000})
    time.sleep(300)
    """
    answer = asked(program)
    assert answer["nan"] != answer["nan"]
    assert (answer["start"], len(answer["long"]), asked.notes) == (1, 1_000_000, [])
    assert asked.log.read_text() == "for the log\n"


def test_an_answer_is_heard_however_late_it_is_read(asked, monkeypatch):
    """The process ends right after it; who listens comes to it later."""
    listen = watched._listen

    def late(*arguments):
        time.sleep(0.3)
        listen(*arguments)

    monkeypatch.setattr(watched, "_listen", late)
    monkeypatch.setattr(watched, "LOOK", 0.02)
    assert asked("say('answer', answer='x' * 50_000)\nos._exit(0)") == "x" * 50_000


def test_one_that_is_killed_is_started_again(asked):
    program = """
    if start == 1:
        say("alive", at="the hook encode of the plugin odd (autoft-odd)")
        os.kill(os.getpid(), signal.SIGKILL)
    say("answer", answer=start)
    """
    assert asked(program) == 2
    (note,) = asked.notes
    assert note == (
        "was killed by signal 9, in the hook encode of the plugin odd (autoft-odd); the memory may not be enough, "
        "and is started again"
    )
    assert note in asked.log.read_text()


def test_one_that_is_stopped_is_ended_and_started_again_however_often_the_command_slept(asked, monkeypatch):
    monkeypatch.setattr(watched, "STOPPED_SECONDS", 0.2)
    monkeypatch.setattr(watched, "LOOK", 0.05)
    program = """
    if start == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    say("answer", answer=start)
    """
    assert asked(program) == 2
    assert asked.notes[0].startswith("was stopped, as SIGSTOP does, for ")


def test_one_that_is_killed_each_time_is_given_up(asked):
    with pytest.raises(ProcessLost, match=r"^was killed by signal 15, 2 times in a row$"):
        asked("os.kill(os.getpid(), signal.SIGTERM)")
    assert asked.starts() == 2


def test_one_that_hangs_is_ended_with_what_it_started_and_its_hook_is_named(asked, monkeypatch):
    monkeypatch.setattr(watched, "LOOK", 0.05)
    program = """
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(300)"])
    open(request["starts"] + ".child", "w").write(str(child.pid))
    while True:
        say("alive", at="the hook encode of the plugin odd (autoft-odd)")
        time.sleep(0.05)
    """
    said = r"^gave no answer for .*, in the hook encode of the plugin odd \(autoft-odd\)$"
    with pytest.raises(ProcessLost, match=said):
        asked(program, patience=0.5)
    assert asked.starts() == 1
    child = int((asked.log.parent / "starts.child").read_text())
    end = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_time_in_which_the_command_slept_is_not_counted(asked, monkeypatch):
    """The clock of this process jumps by an hour at each look."""
    monkeypatch.setattr(watched, "LOOK", 0.05)
    jumps = iter(range(10**6))
    monkeypatch.setattr(watched.time, "monotonic", lambda: 3600.0 * next(jumps))
    assert asked("time.sleep(0.3)\nsay('answer', answer=1)", patience=600.0) == 1


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("say('failed', reason='KeyError: 3 (in the hook encode)')", "KeyError: 3 (in the hook encode)"),
        (
            "say('alive', at='the hook encode of the plugin odd (autoft-odd)')\nos._exit(0)",
            "it ended with 0, in the hook encode of the plugin odd (autoft-odd)",
        ),
        # What it started holds its channel open.
        (
            "subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(300)'])\nos._exit(3)",
            "it ended with 3",
        ),
        ("os.closerange(0, 2)\ntime.sleep(300)", "it closed its channel, and did not end"),
    ],
)
def test_one_that_fails_is_not_asked_again(program, said, asked, monkeypatch):
    monkeypatch.setattr(watched, "GRACE", 0.2)
    with pytest.raises(ProcessFailed) as raised:
        asked(program)
    assert (str(raised.value), asked.starts()) == (said, 1)


def test_a_program_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ProcessLost, match="cannot be started: No such file"):
        ask(lambda log: spoken_to([str(tmp_path / "no")], log, {}), {}, log=tmp_path / "log", patience=1.0, note=print)


def test_the_log_of_a_process_that_prints_without_end_stays_short(tmp_path):
    program = """
    import io, sys, time
    from autoft import watched

    watched.HEARTBEAT_SECONDS, watched.LARGEST_LOG, watched.KEPT_LOG = 0.02, 10_000, 1_000
    watched.Channel(io.StringIO()).live()
    for number in range(2_000):
        print("step", number, file=sys.stderr, flush=True)
        time.sleep(0.0002)
    time.sleep(0.2)
    """
    log = tmp_path / "log"
    with log.open("a") as errors:
        subprocess.run([sys.executable, "-c", textwrap.dedent(program)], stderr=errors, check=True)
    text = log.read_text()
    assert len(text) <= 10_000
    # What is printed at that very moment may stand before it.
    assert "(the log was long, and its beginning is left out)\n" in text[:300]
    assert text.endswith("step 1999\n")
