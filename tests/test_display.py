from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from autoft.display import JsonListener, LiveListener, PlainListener, forecast_tables, outcome, plan_tables
from autoft.estimates.forecast import MemoryForecast, ServingForecast
from autoft.estimates.verdicts import Prediction
from autoft.hardware import Hardware
from autoft.plan import RefusalNote, make_plan
from autoft.recipe import recipe_from_mapping
from autoft.rundir import TrialConfig, TrialResult, VariantResult
from autoft.search import Forecast, Standing

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
    {"complete": 1, "pruned": 2, "infeasible": 3, "failed": 4}, 0.8, 1, "onnx-int8", 0.79, 61.0, 10, None
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
    listener.trial_done(trial(3, "failed", reason="RuntimeError: broken"), STANDING)
    listener.phase("export")
    listener.note("the disk is slow")


def test_on_a_pipe_each_thing_is_a_plain_line(plan):
    stream = io.StringIO()
    play(PlainListener(stream), plan)
    text = stream.getvalue()
    assert "\x1b" not in text
    for expected in (
        "Going on: 2 trials are done.",
        "trial 1 started: tiny, full",
        "trial 1 ended after 12 s: accuracy 0.8000 (onnx-int8, 23.7 MB, 2.50 ms)",
        "best accuracy 0.8000 (trial 1, onnx-int8); default 0.7900",
        "1 complete, 2 stopped early, 3 infeasible, 4 failed; 1 min 01 s left",
        "trial 2 ended after 12 s: stopped early: behind after 0.5 epochs",
        "RuntimeError: broken",
        "[export]",
        "note: the disk is slow",
    ):
        assert expected in text, text


def test_the_live_display_shows_trial_stage_rate_best_and_what_is_left(plan):
    stream = io.StringIO()
    listener = LiveListener(Console(file=stream, force_terminal=True, width=200, color_system=None))
    listener.begin(plan, 0)
    listener.trial_started(config(1))
    listener.stage(1, "train")
    listener.progress(1, 40, 120, 61.4)
    listener.console.print(listener.render())
    assert "trial 1 tiny, full" in stream.getvalue()
    assert "train" in stream.getvalue()
    assert "61 samples/s" in stream.getvalue()
    listener.trial_done(trial(1), STANDING)
    listener.console.print(listener.render())
    shown = stream.getvalue()
    assert "best accuracy 0.8000 (trial 1, onnx-int8); default 0.7900" in shown
    assert "2 stopped early, 3 infeasible, 4 failed" in shown
    assert "left" in shown


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


def test_brackets_of_a_reason_are_shown_and_not_taken_for_markup(plan):
    note = RefusalNote(what="nf4[x]", reason="needs bitsandbytes; pip install autoft[bitsandbytes]")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(plan_tables(plan.model_copy(update={"refusals": [note]})))
    shown = console.export_text()
    assert "pip install autoft[bitsandbytes]" in shown
    assert "nf4[x]" in shown


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
