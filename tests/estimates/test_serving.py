"""What serving takes: traced requests against real ones, the heap against blocks by hand, and a served model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from autoft.artifact import load
from autoft.estimates.forecast import ServingForecast, forecast
from autoft.estimates.heap import heap_bytes
from autoft.estimates.served import served_bytes, write
from autoft.estimates.serving import request_rows, trace_request
from autoft.estimates.setting import Setting, Work
from autoft.estimates.steps import CannotTrace
from autoft.estimates.storages import StorageTracker
from autoft.estimates.verdicts import Constants, Prediction, judge, predict_serving, serving_constants, serving_setting
from autoft.hardware import Hardware
from autoft.plans.planner import make_plan
from autoft.plugins import load_plugins
from autoft.recipe import recipe_from_mapping
from autoft.testing.strategies import defaults
from autoft.testing.workbench import Workbench

MIB = 2**20


@pytest.fixture(scope="module")
def catalog():
    return load_plugins()


def setting_of(catalog, task="text-classification", kind=None, adapter="full", length=48, model=None):
    bench = Workbench(catalog.tasks[task], catalog, kind=kind, model=model)
    given = {**bench.params, "train.batch_size": 4}
    given.update({f"{adapter}.{key}": value for key, value in defaults(catalog.adapters[adapter].space).items()})
    model = {"name": "tiny", "path": bench.source.path, "config": dict(bench.config)}
    setting = Setting(task, model, bench.facts, bench.options, given, adapter, length=length)
    # Its folder goes when the bench does.
    return bench, setting


class TestHeap:
    def test_what_is_there_at_once(self):
        one_by_one = [(0, 8 * MIB), (0, -8 * MIB), (1, 8 * MIB), (1, -8 * MIB)]
        together = [(0, 8 * MIB), (1, 8 * MIB), (0, -8 * MIB), (1, -8 * MIB)]
        # glibc 2.36 fills a hole that an aligned block left, or not, by what else lies beside it, which differs with each
        # process: blocks that could take turns in one place are up to as many as there ever were. Only the least is sure.
        for events, at_once, ever in ((one_by_one, 8 * MIB, 48 * MIB), (together, 16 * MIB, 48 * MIB)):
            for _ in range(3):
                assert at_once - MIB <= heap_bytes(events) <= ever + MIB
        assert heap_bytes([]) < MIB

    def test_blocks_that_a_request_leaves_are_given_back_before_the_next(self):
        assert heap_bytes([(0, 40 * MIB)]) < 60 * MIB


@pytest.mark.parametrize("variant", ["none", "bf16-weights"])
@pytest.mark.parametrize("task", ["text-classification", "token-classification", "question-answering"])
def test_a_request_on_fake_tensors_takes_what_one_on_real_ones_does(task, variant, catalog, tmp_path):
    _bench, setting = setting_of(catalog, task)
    setting = serving_setting(setting, 48)
    request = trace_request(setting, catalog, variant, 5)
    if variant != "none" and not Hardware.probe_cpu().bf16:
        pytest.skip("no bfloat16 here")
    write(setting, variant, tmp_path)
    loaded = load(tmp_path, catalog=catalog, device="cpu")
    work = Work.of(setting, catalog)
    with StorageTracker() as tracker:
        tracker.add(*loaded.model.parameters(), *loaded.model.buffers())
        weights, begin = tracker.timeline.left, len(tracker.timeline.events)
        loaded.task.predict(loaded.model, request_rows(work, 5), work.target.context, 5)
    assert request.weights_bytes == weights

    def peak(events):
        here, most = 0, 0
        for _, size in events:
            here += size
            most = max(most, here)
        return most

    assert peak(request.events) == pytest.approx(peak(tracker.timeline.events[begin:]), rel=0.05)
    assert peak(request.events) > 0


def test_int8_weights_are_those_of_the_file_and_a_copy_for_the_kernels(catalog, tmp_path):
    _bench, setting = setting_of(catalog)
    setting = serving_setting(setting, 48)
    request = trace_request(setting, catalog, "dynamic-int8", 2)
    write(setting, "dynamic-int8", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    buffers = sum(b.nbytes for b in load(tmp_path, catalog=catalog, device="cpu").model.buffers())
    tables = sum(t.nbytes for name, t in stored.items() if "embeddings" in name and name.endswith("weight_int8"))
    linear = sum(t.nbytes for name, t in stored.items() if name.endswith("weight_int8")) - tables
    assert request.weights_bytes == pytest.approx(sum(t.nbytes for t in stored.values()) + linear + buffers, rel=0.01)
    assert request.tables_bytes == tables


def test_more_than_one_forward_pass_is_not_traced(catalog):
    bench, setting = setting_of(catalog, "generation", "decoder")
    with pytest.raises(CannotTrace, match="none: "):
        trace_request(serving_setting(setting, 32), catalog, "none", 1)
    prediction = predict_serving(serving_setting(setting, 32), catalog, "none", 1, Constants(0), chosen=True)
    assert prediction.peak_bytes is None
    assert judge(prediction, 10**12) == "probe"
    assert bench is not None


def test_what_the_data_may_not_need_is_no_proof_that_it_does_not_fit():
    prediction = Prediction(100, margin=0.1, least_bytes=60)
    assert judge(prediction, 53) == "does not fit"
    assert [judge(prediction, limit) for limit in (55, 89, 109)] == ["probe"] * 3
    assert judge(prediction, 111) == "fits"


def test_adapters_that_merge_are_served_alike(catalog):
    _bench, full = setting_of(catalog)
    lora = replace(full, adapter="lora", params={**full.params, "lora.r": 4})
    assert serving_setting(lora, 20) == serving_setting(full, 20)
    assert serving_setting(full, None).length == full.length


@pytest.mark.slow
def test_a_served_model_beside_its_prediction(catalog, tmp_path):
    """Constants of a request of one row; then requests whose tensors take tens of megabytes."""
    _bench, setting = setting_of(catalog, length=64)
    setting = serving_setting(setting, None)
    constants = serving_constants(setting, catalog, "none", chosen=True, cache=tmp_path)
    assert serving_constants(setting, catalog, "none", chosen=True, cache=tmp_path) == constants
    small, large = (
        predict_serving(setting, catalog, "none", rows, constants, chosen=True, cache=tmp_path) for rows in (1, 1024)
    )
    assert large.peak_bytes - small.peak_bytes > 50 * MIB
    measured = served_bytes(setting, "none", 1024, chosen=True)
    assert large.peak_bytes == pytest.approx(measured, rel=0.1)
    unknown = predict_serving(setting, catalog, "none", 1024, constants, chosen=False, cache=tmp_path)
    assert unknown.peak_bytes == large.peak_bytes
    assert unknown.least_bytes < large.least_bytes - 50 * MIB


@pytest.mark.slow
def test_the_forecast_of_a_plan(catalog, tmp_path):
    bench, _ = setting_of(catalog)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps(row) for row in bench.rows))
    recipe = recipe_from_mapping(
        {
            "task": "text-classification",
            "model": bench.source.path,
            "data": {"train": str(rows)},
            "budget": {"time": "1m", "inference_memory": "4GB"},
            "pipelines": ["full", "prefix-tuning"],
            "compress": ["none", "onnx"],
        },
        [],
    )
    plan = make_plan(recipe, catalog, Hardware.probe_cpu(), tmp_path)
    found = {one.pipeline: one.serving for one in forecast(plan, catalog, tmp_path)}
    assert found["full"]["none"].verdict == "fits"
    assert 200 * MIB < found["full"]["none"].prediction.peak_bytes < 2000 * MIB
    for pipeline, variant in (("full", "onnx"), ("prefix-tuning", "none")):
        served = found[pipeline][variant]
        assert isinstance(served, ServingForecast)
        assert (served.prediction.peak_bytes, served.verdict) == (None, "probe")
        assert served.prediction.reason
