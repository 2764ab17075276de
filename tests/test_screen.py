"""A run drawn on terminals of every size, with labels from anywhere."""

from __future__ import annotations

import io
import time
import unicodedata

import pytest
from rich.console import Console

from autoft.hardware import Hardware
from autoft.plans.planner import make_plan
from autoft.progress import Activity, Progress, View, figures
from autoft.recipe import recipe_from_mapping
from autoft.rundir import TrialConfig, TrialResult, VariantResult, count_states
from autoft.screen import (
    BLOCKS,
    Picture,
    about,
    bar,
    fitted,
    forgive_characters,
    picture,
    sparkline,
    time_left,
    trial_line,
)

CPU = Hardware("cpu", 2, 8 * 2**30, (), "test", False, "Linux x86_64")
NOW = 1_800_000_000.0
NAMES = ("tiny", "评论/情感模型", "🚀🔥-bert", "e\u0301te\u0301", "evil\x1b[2J\rmodel")


def cells(text):
    """The width of text on a terminal, after Unicode's annex 11 and not after rich."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


@pytest.fixture(scope="module")
def plan(catalog, tiny_model):
    recipe = {"task": "text-classification", "model": str(tiny_model), "data": "train.csv", "name": "films"}
    recipe["budget"] = {"time": "10m", "model_size": "50MB", "latency": "5ms"}
    data = {"sizes": {"train": 120, "validation": 40, "test": 40}, "columns": {"text": "text", "label": "label"}}
    return make_plan(recipe_from_mapping(recipe), catalog, CPU).with_data({"labels": ["好", "坏"]}, data, ())


def config(number, model):
    params = {"train.epochs": 3, "full.learning_rate": 2e-4}
    return TrialConfig(number=number, kind="search", model=model, pipeline="full", params=params, seed=0)


def trial(number, model, state="complete"):
    variants = [
        VariantResult(
            name=name,
            state="complete",
            validation={"accuracy": 0.7 + number / 100 - place / 200},
            costs={"model_size_bytes": size, "latency_p50_ms": 3.0 - place},
            folder="x",
        )
        for place, (name, size) in enumerate((("none", 45e6), ("onnx-int8", 23e6)))
    ]
    return TrialResult(
        number=number,
        state=state,
        reason=None if state == "complete" else f"RuntimeError: {model}\nbroke\x1b[31m",
        config=config(number, model),
        variants=variants if state == "complete" else [],
        seconds={"total": 12.0},
    )


@pytest.fixture(scope="module")
def view(plan):
    results = [trial(n, NAMES[n % 5], "complete" if n % 3 == 0 else "failed") for n in range(9)]
    activities = [
        Activity(
            worker=n,
            config=config(9 + n, NAMES[n]),
            stage=stage,
            began=NOW - 40,
            stage_began=NOW - 30,
            samples=60,
            total=120,
            rate=2.0,
            value=0.71,
        )
        for n, stage in enumerate(("train", "compress: onnx-int8", "measure: none"))
    ]
    progress = Progress(
        pid=1,
        pid_began=0,
        host="h",
        machine="m",
        began=NOW - 252,
        written=NOW,
        phase="search",
        phase_began=NOW - 200,
        phases=["prepare data", "measure models", "search"],
        time_limit=600,
        seconds_left=340,
        expected_left=300,
        asked=NOW - 10,
        activities=activities,
        notes=["数据里有重复的行 " * 9, "a\x1b]0;title\x07b"],
    )
    return View("films", "running", plan, tuple(results), figures(plan, results), progress, "process 7")


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_nothing_is_wider_or_higher_than_the_terminal(view, width, plain):
    for height in (1, 5, 9, 10, 24, 60):
        lines = picture(view, width, height, NOW, plain=plain)
        assert 1 <= len(lines) <= height
        for line in lines:
            assert cells(line.plain) <= width, line.plain
            assert line.plain.isprintable(), "no control characters"
            assert not plain or line.plain.isascii()


def test_on_ten_rows_time_best_front_and_workers_are_there(view):
    text = "\n".join(line.plain for line in picture(view, 80, 9, NOW))
    for expected in ("about 5 min left", "best 0.7600", "> trial", "trial 9  train", "trial 10", "9 trials"):
        assert expected in text
    assert "数据" not in text


def test_the_narrow_one_keeps_quality_and_size(view):
    text = "\n".join(line.plain for line in picture(view, 40, 10, NOW))
    assert "about 5 min left" in text
    assert "0.7550" in text
    assert "23 MB" in text
    assert any(block in text for block in BLOCKS)


def test_a_wide_one_shows_what_each_worker_does_and_what_was_done(view):
    text = "\n".join(line.plain for line in picture(view, 120, 40, NOW))
    assert "worker 0  trial 9  train ━━━━━╌╌╌╌╌ 50%  30 s to train  accuracy 0.7100" in text
    assert "worker 1  trial 10  compress: onnx-int8  for 0:30" in text
    assert "✓ prepare data  ✓ measure models  ▸ search  export  test  report" in text
    assert "trial   3  accuracy 0.7300" in text
    assert "(at most 5.5 min)" in text


def test_what_a_user_added_is_none_of_the_trials_of_the_limit(plan):
    results = [trial(n, NAMES[0]) for n in range(4)]
    results[3].config.kind = "added"
    limited = plan.model_copy(update={"trials_limit": 3})
    text = {
        of: "\n".join(line.plain for line in picture(View("films", "finished", one, tuple(results), figures(one, results)), 80, 24, NOW))
        for of, one in (("limited", limited), ("unlimited", plan))
    }  # fmt: skip
    assert "3 of 3 trials: 4 complete" in text["limited"]
    assert "4 trials: 4 complete" in text["unlimited"]


def test_a_trial_that_is_done_takes_one_line(plan):
    wide = "trial   3  accuracy 0.7300 (none, 45 MB, 3.00 ms)  smallest 0.7250 (onnx-int8, 23 MB, 2.00 ms)  12 s  tiny, full, "
    assert trial_line(plan, trial(3, "tiny"), 150).plain == wide + "3 epochs, lr 0.0002"
    assert trial_line(plan, trial(3, "tiny"), 90).plain == (
        "trial   3  accuracy 0.7300 (none, 45 MB, 3.00 ms)  12 s  tiny, full, 3 epochs, lr 0.0002"
    )
    assert trial_line(plan, trial(3, "tiny"), 60).plain == "trial   3  accuracy 0.7300 (none, 45 MB, 3.00 ms)  12 s"


def test_rich_draws_the_same_lines_without_folding_them(view):
    for width, height in ((40, 10), (60, 12), (80, 24), (120, 40)):
        stream = io.StringIO()
        console = Console(file=stream, width=width, height=height, force_terminal=True, color_system=None)
        console.print(Picture(view, now=NOW))
        drawn = stream.getvalue().splitlines()
        assert len(drawn) < height
        assert [line.rstrip() for line in drawn] == [
            line.plain.rstrip() for line in picture(view, width, height - 1, NOW)
        ]


def test_a_terminal_without_unicode_gets_ascii(view):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    Console(file=file, width=80, height=40, force_terminal=True, color_system=None).print(Picture(view, now=NOW))
    file.flush()
    assert b"train #####..... 50%" in raw.getvalue()


def test_labels_that_a_terminal_cannot_write_cost_no_line(view):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="latin-1")
    forgive_characters(file)
    Console(file=file, width=120, height=40, force_terminal=True, color_system=None).print("模型 é")
    file.flush()
    assert raw.getvalue().decode("latin-1").strip() == "?? é"


def test_states_without_a_search(plan):
    empty = View("films", "empty")
    assert [line.plain for line in picture(empty, 80, 9, NOW)] == ["films", "no search has begun here"]
    killed = View("films", "cut off", plan, (trial(0, "tiny"),), figures(plan, [trial(0, "tiny")]), seconds=90.0)
    text = "\n".join(line.plain for line in picture(killed, 80, 20, NOW))
    assert "cut off after 1 min 30 s: no process is at it; the same command goes on" in text
    assert "left" not in text, "no time left is told of a search that does not run"


def test_where_less_is_better_the_words_say_so(plan):
    low = plan.model_copy(
        update={
            "objective": "log_loss",
            "objectives": ["log_loss"],
            "metrics": {"log_loss": {"higher_is_better": False}},
        }
    )
    results = [trial(n, "tiny") for n in range(2)]
    for result, value in zip(results, (0.5, 0.4), strict=True):
        for variant in result.variants:
            variant.validation = {"log_loss": value}
    view = View("films", "finished", low, tuple(results), figures(low, results))
    text = "\n".join(line.plain for line in picture(view, 100, 30, NOW))
    assert "best 0.4000" in text
    assert "-0.1000 against trial 0 (better)" in text
    assert "lower is better" in text


def test_a_sparkline_has_a_block_for_each_figure_and_keeps_their_order():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 20) == BLOCKS
    assert sparkline([0.5, 0.5], 20) == BLOCKS[3] * 2
    assert sparkline([], 20) == ""
    many = sparkline(list(range(1000)), 25)
    assert len(many) == 25
    assert list(many) == sorted(many, key=BLOCKS.index)
    assert many[-1] == BLOCKS[-1], "the last figure is always shown"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3, "a few seconds"),
        (62, "60 s"),
        (95, "1.5 min"),
        (301, "5 min"),
        (1200, "20 min"),
        (9000, "2.5 h"),
        (9e5, "10 days"),
    ],
)
def test_times_are_no_finer_than_they_are_known(seconds, words):
    assert about(seconds) == words


def test_time_left_in_words():
    assert time_left(240.0, 300.0) == "about 4 min left (at most 5 min)"
    assert time_left(240.0, 241.0) == "about 4 min left"
    assert time_left(240.0, 864000.0) == "about 4 min left", "a limit that is far away says nothing"
    assert time_left(None, None) == ""
    assert time_left(10.0, -75.0) == "over its time by 1 min 15 s"


def test_parts_give_way_by_their_rank():
    parts = [("first", "", 0), ("second", "", 2), ("third", "", 1)]
    assert fitted(parts, 80).plain == "first  second  third"
    assert fitted(parts, 14).plain == "first  third"
    assert fitted(parts, 8).plain == "first"
    assert bar(0.5, 4) == "━━╌╌"


def test_drawing_takes_a_small_part_of_the_time_between_two_drawings(plan, view):
    """Of a search of 300 trials: its figures are counted anew after each trial only."""
    results = [trial(n, "tiny", "complete" if n % 3 == 0 else "failed") for n in range(300)]
    large = View("films", "running", plan, tuple(results), figures(plan, results), view.progress)
    begin = time.process_time()
    for _ in range(20):
        picture(large, 120, 50, NOW, history=False)
    assert (time.process_time() - begin) / 20 < 0.1, "seconds of this process, at most four times a second"
    assert sum(count_states(results).values()) == 300
