from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from autoft.cli.common import console
from autoft.display import JsonListener, LiveListener, PlainListener, choose_listener, forecast_tables, plan_tables
from autoft.estimates.forecast import MemoryForecast, ServingForecast
from autoft.estimates.verdicts import Prediction
from autoft.hardware import Hardware
from autoft.listener import Forecast, Standing
from autoft.plans.plan import RefusalNote
from autoft.plans.planner import make_plan
from autoft.progress import RunReader
from autoft.recipe import recipe_from_mapping
from autoft.rundir import TrialConfig, TrialResult, VariantResult, write_json
from autoft.screen import outcome

CPU = Hardware("cpu", 2, 8 * 2**30, (), "test", False, "Linux x86_64")
FORECAST = Forecast(30.0, 8, 2e9, 5e8, "fp32", 300.0)


@pytest.fixture
def plan(catalog, tiny_model):
    recipe = {"task": "text-classification", "model": str(tiny_model), "data": "train.csv", "name": "films"}
    data = {"sizes": {"train": 120, "validation": 40, "test": 40}, "columns": {"text": "text", "label": "label"}}
    return make_plan(recipe_from_mapping(recipe), catalog, CPU).with_data({"labels": ["a", "b"]}, data, ())


def config(number):
    return TrialConfig(number=number, kind="search", model="tiny", pipeline="full", params={}, seed=0)


def trial(number, state="complete", accuracy=0.8, size=23.7e6, reason=None):
    variant = VariantResult(
        name="onnx-int8",
        state="complete",
        validation={"accuracy": accuracy},
        costs={"model_size_bytes": size, "latency_p50_ms": 2.5},
        folder="x",
    )
    variants = [variant] if state == "complete" else []
    validation = {"accuracy": accuracy}
    return TrialResult(
        number=number,
        state=state,
        reason=reason,
        config=config(number),
        variants=variants,
        validation=validation,
        seconds={"total": 12.0},
    )


STANDING = Standing(
    {"complete": 1, "pruned": 2, "infeasible": 3, "failed": 4}, 0.8, 1, "onnx-int8", 0.79, 61.0, 10, None, 40.0
)


def test_a_training_that_takes_longer_than_the_search_may_is_not_said_to_fit():
    said = str(replace(FORECAST, trial_seconds=1000.0, configurations=1, whole=False))
    assert "takes about 16 min 40 s here (fp32); it will be cut short to end in 5 min 00 s;" in said
    assert "fits" not in said
    said = str(replace(FORECAST, whole=False, closing_seconds=400.0))
    assert (
        "export, test and report of the fewest rows alone take about 6 min 40 s, which does not fit (a smaller" in said
    )


def play(listener, plan):
    """A short search: one trial that ends well, one that is stopped, one that fails."""
    listener.begin(plan, 2)
    listener.forecast(FORECAST)
    for number in (1, 2, 3):
        listener.trial_started(config(number))
        listener.stage(number, "train")
        listener.progress(number, 40, 120, 61.4)
        listener.validation(number, 40, 0.75)
    listener.trial_done(trial(1), STANDING)
    listener.trial_done(trial(2, "pruned", reason="behind after 0.5 epochs"), STANDING)
    listener.trial_done(trial(3, "failed", reason="RuntimeError: broken\x1b[31m\nhere"), STANDING)
    listener.phase("export")
    listener.note("the disk is slow")


def test_on_a_pipe_a_trial_is_one_line_and_notes_come_once_at_the_end(plan):
    stream = io.StringIO()
    with PlainListener(stream) as listener:
        listener.note("the disk is slow")
        play(listener, plan)
    text = stream.getvalue()
    lines = text.splitlines()
    assert not set(text) & {chr(code) for code in range(32) if chr(code) != "\n"}, "no control characters"
    for number, expected in (
        (1, "trial 1 ended after 12 s: accuracy 0.8000 (onnx-int8, 23.7 MB, 2.50 ms); tiny, full; "),
        (2, "trial 2 ended after 12 s: stopped early: behind after 0.5 epochs; "),
        (3, "trial 3 ended after 12 s: failed: RuntimeError: broken [31m here; "),
    ):
        of_trial = [line for line in lines if line.startswith(f"trial {number}")]
        assert len(of_trial) == 1
        assert of_trial[0].startswith(expected)
        assert of_trial[0].endswith(
            "best accuracy 0.8000 (trial 1, onnx-int8); default 0.7900; 1 complete, 2 stopped early, 3 infeasible, "
            "4 failed; about 40 s left (at most 60 s)"
        )
    assert "Going on: 2 trials are done." in lines
    assert "[export]" in lines
    assert lines[-1] == "note: the disk is slow"
    assert text.count("the disk is slow") == 1


def test_without_a_context_a_note_is_said_at_once(plan):
    stream = io.StringIO()
    PlainListener(stream).note("the disk is slow")
    assert stream.getvalue() == "note: the disk is slow\n"


def test_a_stream_of_few_characters_gets_what_it_can_write(plan):
    raw = io.BytesIO()
    with PlainListener(io.TextIOWrapper(raw, encoding="ascii", write_through=True)) as listener:
        listener.begin(plan.model_copy(update={"name": "模型🚀"}), 0)
        listener.note("é")
    assert b"???: text-classification" in raw.getvalue().replace(b"??: ", b"???: ")


def test_a_reader_that_takes_nothing_does_not_hold_up_the_search(plan):
    """What happens is told while the first line still waits for its reader."""
    reads = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text):
            reads.wait()
            return super().write(text)

    stream = Stuck()
    with PlainListener(stream) as listener:
        play(listener, plan)
        assert stream.getvalue() == "", "all was told, and nothing is written yet"
        reads.set()
    assert "trial 3 ended" in stream.getvalue()


@pytest.mark.parametrize("kind", [PlainListener, JsonListener])
def test_a_reader_that_has_gone_costs_the_display_and_nothing_else(plan, kind):
    read, write = os.pipe()
    stream = os.fdopen(write, "w")
    with kind(stream) as listener:
        listener.begin(plan, 0)
        os.close(read)
        play(listener, plan)
        play(listener, plan)
    assert listener.lost
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_a_fault_of_the_display_is_told_and_costs_nothing_else(plan, capsys):
    class Faulty(PlainListener):
        def show_phase(self, name):
            raise ZeroDivisionError("of the display")

    with Faulty(io.StringIO()) as listener:
        play(listener, plan)
    assert listener.lost
    assert "ZeroDivisionError: of the display" in capsys.readouterr().err


TERMINAL = """
import sys, time
from autoft.display import choose_listener, outliving_its_terminal
sys.path.insert(0, {tests!r})
from test_display import config, trial, STANDING
from autoft.plans.plan import Plan
from autoft.rundir import read_json
plan = Plan.model_validate(read_json(__import__("pathlib").Path({plan!r})))
with outliving_its_terminal(), choose_listener(False) as listener:
    listener.begin(plan, 0)
    for number in range(40):
        listener.trial_started(config(number))
        listener.trial_done(trial(number), STANDING)
        time.sleep(0.1)
print("after the display")
open({done!r}, "w").write(type(listener).__name__ + (" lost" if listener.lost else " kept"))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no such terminals")
@pytest.mark.parametrize("closed", [True, False])
def test_a_search_outlives_its_terminal(plan, tmp_path, closed):
    """A real terminal is closed, or not: the process ends as if nothing had been."""
    import pty

    write_json(tmp_path / "plan.json", plan.model_dump(mode="json"))
    done = tmp_path / "done.txt"
    script = TERMINAL.format(tests=str(Path(__file__).parent), plan=str(tmp_path / "plan.json"), done=str(done))
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm-256color")
        os.execv(sys.executable, [sys.executable, "-c", script])
    shown = b""
    with contextlib.suppress(OSError):  # Its end, on Linux.
        while piece := os.read(terminal, 65536):
            shown += piece
            if closed and b"trial   3" in shown:
                break
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert done.read_text() == ("LiveListener lost" if closed else "LiveListener kept")
    if not closed:
        assert b"trial  39" in shown
        assert b"after the display" in shown
        assert shown.rindex(b"\x1b[?25h") < shown.rindex(b"after the display"), "the cursor is shown again"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no such terminals")
@pytest.mark.parametrize("kind", ["terminal", "pipe"])
def test_a_whole_search_goes_on_when_nobody_reads_any_more(tmp_path, tiny_model, reviews, kind):
    """After its first trial the terminal, or the pipe, is closed: the second trial, export, test and report follow."""
    import pty

    recipe = {
        "task": "text-classification",
        "model": str(tiny_model),
        "data": {"train": str(reviews), "validation_size": 80, "test_size": 80},
        "budget": {"time": "30m", "trials": 2},
        "effort": "quick",
        "compress": ["none"],
        "space": {"train.epochs": 1},
        "search": {"finalist_seeds": 0},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "autoft", "search", str(tmp_path / "tiny.yaml"), "--run", str(tmp_path / "run")]
    if kind == "terminal":
        child, reader = pty.fork()
        if child == 0:
            os.environ.update(TERM="xterm-256color")
            os.execv(sys.executable, command)
    else:
        reader, writer = os.pipe()
        child = subprocess.Popen(command, stdout=writer, stderr=subprocess.DEVNULL)
        os.close(writer)
    shown = b""
    while not re.search(rb"trial +0 ", shown):
        shown += os.read(reader, 65536)
    os.close(reader)
    assert (os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if kind == "terminal" else child.wait()) == 0
    run = RunReader(tmp_path / "run").read()
    assert run.state == "finished"
    assert [result.state for result in run.results] == ["complete", "complete"]
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "best" / "autoft.json").is_file()


@pytest.mark.parametrize(
    ("settings", "kind"),
    [({"TERM": "dumb"}, PlainListener), ({"TERM": "xterm"}, LiveListener)],
)
def test_a_terminal_that_only_writes_on_gets_lines(monkeypatch, settings, kind):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "JUPYTER_COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", settings["TERM"])
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert type(choose_listener(False)) is kind


def test_without_colour_the_live_display_says_the_same(plan, monkeypatch):
    def shown(**settings):
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        stream = io.StringIO()
        listener = LiveListener(Console(file=stream, force_terminal=True, width=100, height=30))
        play(listener, plan)
        listener.console.print(listener.render())
        return stream.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, bare = shown(TERM="xterm-256color"), shown(NO_COLOR="1")
    escapes = re.compile("\x1b\\[([0-9;]*)m")
    assert any(code in {"32", "36", "1;36", "33"} for code in escapes.findall(coloured))
    colours = {str(n) for n in (*range(30, 38), *range(40, 48), 38, 48, *range(90, 98))}
    assert not colours & {part for code in escapes.findall(bare) for part in code.split(";")}
    assert escapes.sub("", bare) == escapes.sub("", coloured)


def test_the_live_display_shows_trial_stage_rate_best_and_what_is_left(plan):
    stream = io.StringIO()
    listener = LiveListener(Console(file=stream, force_terminal=True, width=200, height=40, color_system=None))
    listener.begin(plan, 0)
    listener.phase("search")
    listener.trial_started(config(1))
    listener.stage(1, "train")
    listener.progress(1, 40, 120, 61.4)
    listener.console.print(listener.render())
    assert re.search(r"trial 1  train ━+╌+ 33%  a few seconds to train  61 samples/s  tiny, full", stream.getvalue())
    listener.validation(1, 40, 0.75)
    listener.trial_done(trial(1), STANDING)
    listener.note("the disk is slow")
    listener.console.print(listener.render())
    shown = stream.getvalue()
    assert "trial   1  accuracy 0.8000 (onnx-int8, 23.7 MB, 2.50 ms)  12 s  tiny, full" in shown
    assert "best 0.8000" in shown
    assert re.search(r"> trial 1 onnx-int8 +0.8000 +23.7 MB +2.50 ms", shown)
    assert "about 40 s left" in shown
    assert "1 note at the end  the disk is slow" in shown


def test_trials_of_an_earlier_call_are_in_the_view(plan):
    listener = LiveListener(Console(file=io.StringIO(), force_terminal=True, width=100))
    listener.begin(plan, 2)
    listener.earlier([trial(0, accuracy=0.7), trial(1, accuracy=0.9)])
    assert listener.view.figures.best_so_far == (0.7, 0.9)


def test_json_lines_hold_one_object_each_whatever_the_figures_are(plan):
    stream = io.StringIO()
    listener = JsonListener(stream)
    play(listener, plan)
    listener.validation(4, 10, math.nan)
    listener.trial_done(trial(4, accuracy=math.nan, size=math.inf), STANDING)

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    events = [json.loads(line, parse_constant=refuse) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events[:3]] == ["begin", "forecast", "trial_started"]
    assert events[-2] == {"event": "validation", "trial": 4, "samples": 10, "value": None}
    assert events[-1]["variants"]["onnx-int8"]["validation"] == {"accuracy": None}
    assert events[-1]["variants"]["onnx-int8"]["costs"] == {"model_size_bytes": None, "latency_p50_ms": 2.5}


def test_a_further_fold_is_told_without_costs(plan):
    """Of a fold only quality is measured, in every compression."""
    result = trial(4)
    further = VariantResult(name="none", state="complete", validation={"accuracy": 0.79})
    result.variants = [result.variants[0].model_copy(update={"costs": {}}), further]
    assert outcome(result, plan) == "accuracy 0.8000 (onnx-int8)"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_not_defined_is_said_in_words(plan, value):
    assert outcome(trial(4, accuracy=value), plan) == "accuracy not defined, no variant has a figure"
    bare = trial(4, accuracy=value).model_copy(update={"variants": [], "reason": "not compressed"})
    assert outcome(bare, plan) == "accuracy not defined, not compressed"


def test_brackets_of_a_reason_are_shown_and_not_taken_for_markup(plan, capsys, monkeypatch):
    note = RefusalNote(what="nf4[x]", reason="\x1b]0;[/]\x07needs bitsandbytes; pip install autoft[bitsandbytes]")
    monkeypatch.setenv("COLUMNS", "200")
    console().print(plan_tables(plan.model_copy(update={"refusals": [note]})))
    shown = capsys.readouterr().out
    assert "pip install autoft[bitsandbytes]" in shown
    assert "nf4[x]" in shown
    assert "]0;[/]needs" in shown
    assert "\x1b" not in shown


def test_a_forecast_fits_a_terminal_of_80_columns():
    def one(pipeline, **serving):
        return MemoryForecast(
            "package://some_encoders/model",
            pipeline,
            Prediction(1_540_000_000, parameters=22_713_986, trainable_parameters=676_610),
            "does not fit",
            (4, 4),
            {"none": 90_900_000, "dynamic-int8": 23_000_000},
            serving,
        )

    known = ServingForecast(Prediction(546_000_000), "fits")
    unknown = ServingForecast(Prediction(None, reason="why"), "probe")
    console = Console(width=80, file=io.StringIO())
    console.print(forecast_tables([one("full", **{"none": known, "onnx": unknown}), one("lora", none=known)]))
    shown = console.file.getvalue()
    assert "package://some_encoders/model" in shown.replace("\n", "")
    assert "batches" in shown
    assert "…" not in shown, "nothing is cut off"
    lines = [line.replace("│", " ").split() for line in shown.splitlines()]
    assert ["none", "90.9", "MB", "546", "MB", "fits", "full,", "lora"] in lines
    assert ["onnx", "measured", "measured", "full"] in lines, "without a verdict: nothing is predicted"
