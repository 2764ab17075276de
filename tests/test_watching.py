"""``autoft watch``: a run from its files, also while it is written, whoever wrote it."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autoft.errors import RunFolderError
from autoft.hardware import Hardware
from autoft.listener import Standing
from autoft.plans.planner import make_plan
from autoft.progress import ProgressWriter, RunReader
from autoft.recipe import recipe_from_mapping
from autoft.rundir import RunDir, TrialConfig, TrialResult, VariantResult, write_json
from autoft.watching import watch

CPU = Hardware("cpu", 2, 8 * 2**30, (), "test", False, "Linux x86_64")
STANDING = Standing(
    {"complete": 1, "pruned": 0, "infeasible": 0, "failed": 0}, 0.8, 1, "none", 0.7, 61.0, 1, None, 40.0
)


@pytest.fixture
def run(tmp_path, catalog, tiny_model) -> RunDir:
    recipe = {"task": "text-classification", "model": str(tiny_model), "data": "train.csv", "name": "films"}
    data = {"sizes": {"train": 120, "validation": 40, "test": 40}, "columns": {"text": "text", "label": "label"}}
    plan = make_plan(recipe_from_mapping(recipe), catalog, CPU).with_data({"labels": ["a", "b"]}, data, ())
    folder = RunDir(tmp_path / "run")
    folder.create()
    write_json(folder.plan, plan.model_dump(mode="json"))
    return folder


def trial(number, value=0.8):
    variant = VariantResult(
        name="none",
        state="complete",
        validation={"accuracy": value, "roc_auc": float("nan")},
        costs={"model_size_bytes": 2e7, "latency_p50_ms": float("inf")},
        folder="x",
    )
    config = TrialConfig(number=number, kind="search", model="m", pipeline="full", params={}, seed=0)
    return TrialResult(number=number, state="complete", config=config, variants=[variant], seconds={"total": 3.0})


def shown(folder, **options) -> str:
    stream = io.StringIO()
    watch(folder, stream, **options)
    return stream.getvalue()


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_an_empty_folder_and_none(tmp_path):
    assert shown(tmp_path, once=True).splitlines() == [tmp_path.name, "no search has begun here"]
    assert json.loads(shown(tmp_path, once=True, as_json=True))["state"] == "empty"
    with pytest.raises(RunFolderError, match="no such run folder"):
        watch(tmp_path / "none", io.StringIO())


def test_a_finished_run_is_shown_with_its_notes_and_left_as_it_is(run):
    with ProgressWriter(run) as writer:
        for number in range(3):
            run.write_result(trial(number, 0.7 + number / 100))
            writer.trial_done(trial(number), STANDING)
        writer.note("the disk is slow")
    write_json(run.path / "time.json", {"seconds": 95.0})
    before = contents(run.path)
    text = shown(run.path, once=True)
    assert "finished after 1 min 35 s" in text
    assert "best 0.7200  +0.0200 against trial 0" in text
    assert text.count("note: the disk is slow") == 1
    # Without --once it ends by itself, as there is nothing to wait for.
    lines = shown(run.path).splitlines()
    assert [line for line in lines if line.startswith("trial 2 ended after 3.0 s: accuracy 0.7200")]
    assert lines[-2:] == ["finished", "note: the disk is slow"]
    assert contents(run.path) == before, "looking writes nothing"


def test_json_has_no_word_that_json_has_not(run):
    run.write_result(trial(0))

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    found = json.loads(shown(run.path, once=True, as_json=True), parse_constant=refuse)
    assert found["best"] == {
        "trial": 0,
        "variant": "none",
        "value": 0.8,
        "costs": {"model_size_bytes": 2e7, "latency_p50_ms": None},
    }
    assert found["trials"] == {"complete": 1, "pruned": 0, "infeasible": 0, "failed": 0}
    assert found["state"] == "cut off", "no process is at it, and it has no report"


SEARCH = """
import sys, time
sys.path.insert(0, {tests!r})
from test_watching import trial, STANDING
from autoft.progress import ProgressWriter, RunReader
from autoft.rundir import RunDir
run = RunDir({run!r})
with run.lock(), ProgressWriter(run) as writer:
    writer.phase("search")
    for number in range(3):
        writer.trial_started(trial(number).config)
        run.write_result(trial(number, 0.7 + number / 10))
        writer.trial_done(trial(number), STANDING)
        print(number, flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def search(run):
    """A process that writes the folder as a search does: a trial more for each line that it gets."""
    script = SEARCH.format(tests=str(Path(__file__).parent), run=str(run.path))
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "0\n"
    yield process
    process.kill()
    process.communicate()


def command(run, *words):
    return [sys.executable, "-m", "autoft", "watch", str(run.path), "--every", "0.1", *words]


def test_watching_a_search_until_it_ends(run, search):
    watching = subprocess.Popen(command(run), stdout=subprocess.PIPE, text=True)
    lines = [watching.stdout.readline(), watching.stdout.readline()]
    assert lines[0].startswith("trial 0 ended")
    # How long it will take is written with the next second.
    assert lines[1].startswith(f"running; process {search.pid}")
    for _ in range(3):
        search.stdin.write("\n")
        search.stdin.flush()
    rest, _ = watching.communicate()
    assert watching.returncode == 0
    assert [line.split(" ended")[0] for line in rest.splitlines()] == ["trial 1", "trial 2", "finished"]


def test_a_search_that_is_killed_ends_the_watching(run, search):
    watching = subprocess.Popen(command(run, "--json"), stdout=subprocess.PIPE, text=True)
    first = json.loads(watching.stdout.readline())
    assert (first["state"], first["pid"], first["trials"]["complete"]) == ("running", search.pid, 1)
    os.kill(search.pid, signal.SIGKILL)
    search.wait()
    rest, _ = watching.communicate()
    assert watching.returncode == 0
    assert json.loads(rest.splitlines()[-1])["state"] == "cut off"


def test_ctrl_c_ends_the_watching_and_not_the_search(run, search):
    # A shell's background job, as tests may be, ignores it, and what it starts does.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    watching = subprocess.Popen(
        command(run), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )
    watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    _, errors = watching.communicate()
    assert (watching.returncode, errors) == (0, "")
    assert search.poll() is None


def test_a_folder_that_is_empty_is_waited_for(tmp_path):
    folder = RunDir(tmp_path / "later")
    folder.create()
    watching = subprocess.Popen(command(folder), stdout=subprocess.PIPE, text=True)
    assert watching.stdout.readline() == "empty\n"
    with ProgressWriter(folder):
        assert watching.stdout.readline().startswith(f"running; process {os.getpid()}")
    assert watching.communicate()[0] == "finished\n"


def test_a_folder_that_is_deleted_is_not_waited_for(run):
    reader = RunReader(run.path)
    assert reader.read().name == "films"
    shutil.rmtree(run.path)
    with pytest.raises(RunFolderError, match="is gone: it was deleted or moved"):
        reader.read()


@pytest.mark.skipif(sys.platform == "win32", reason="has no such terminals")
def test_on_a_terminal_it_is_the_view_of_the_search(run, search):
    import pty

    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS="80", LINES="24")
        os.execv(sys.executable, command(run))
    text = b""
    while b"trial 0 none" not in text:
        text += os.read(terminal, 65536)
    for _ in range(3):
        search.stdin.write("\n")
        search.stdin.flush()
    try:
        while piece := os.read(terminal, 65536):
            text += piece
    except OSError:  # Its end, on Linux.
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert b"running" in text
    last = text[text.rindex(b"finished") :]
    assert b"0.9000" in last
    assert b"\x1b[?25h" in text, "the cursor is shown again"


def test_quick_to_start(tmp_path):
    """It loads no heavy library: somebody who wants to look does not want to wait."""
    script = (
        "import sys\nfrom autoft.cli import app\n"
        f"try: app(['watch', {str(tmp_path)!r}, '--once'], standalone_mode=False)\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'optuna', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no search has begun here" in done.stdout
