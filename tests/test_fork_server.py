from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

from autoft.fork_server import CAN_FORK

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="this system has no fork")

WORK = """
import os, sys

def library():
    import colorsys

def more():
    import stringprep

def tell(connection, say):
    print(say, flush=True)
    connection.send([os.getppid(), [name for name in ("colorsys", "stringprep") if name in sys.modules]])

def fail(connection):
    raise KeyError(3)
"""

ASKS = """
import os, time
import work
from autoft.fork_server import ForkServer

first = ForkServer.start("work:library", os.environ)
second = first.fork_server("work:more")
pids = []
for server in (first, second, first):
    forked = server.fork(work.tell, "said")
    pid, libraries = forked.connection.recv()
    forked.join()
    print(libraries, forked.exitcode)
    pids.append(pid)
forked = second.fork(work.fail)
forked.join()
print(forked.exitcode)
print(*pids, flush=True)
time.sleep(300)
"""


def test_servers_have_their_libraries_and_end_with_the_one_that_asks_however_that_ends(tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    words = [sys.executable, "-c", ASKS]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asks:
        lines = [asks.stdout.readline().strip() for _ in range(8)]
        asks.send_signal(signal.SIGKILL)
        errors = asks.stderr.read()
    one, both = "['colorsys'] 0", "['colorsys', 'stringprep'] 0"
    assert sorted(lines[:6]) == sorted([*["said"] * 3, one, both, one]), errors
    assert lines[6] == "1"
    assert errors.count("KeyError: 3") == 1
    first, second, again = map(int, lines[7].split())
    assert first == again != second
    end = time.monotonic() + 20
    for pid in (first, second):
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end
            time.sleep(0.01)
