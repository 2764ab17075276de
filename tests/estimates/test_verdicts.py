"""Verdicts, the largest batch that fits, and steps that are taken for real in a process with a limit."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autoft.errors import ModelError
from autoft.estimates import steps
from autoft.estimates.probe import loaded_model, probe
from autoft.estimates.setting import Setting, Work
from autoft.estimates.steps import CannotTrace, task_batch, trace_training
from autoft.estimates.verdicts import (
    MARGIN,
    Constants,
    Prediction,
    calibrate,
    constants_of,
    judge,
    largest_batch,
    parts_that_fit,
    predict,
)
from autoft.plugins import load_plugins
from autoft.testing.strategies import defaults
from autoft.testing.workbench import Workbench

MIB = 2**20


@pytest.fixture(scope="module")
def catalog():
    return load_plugins()


@pytest.fixture(scope="module")
def bench(catalog):
    return Workbench(catalog.tasks["text-classification"], catalog)


def setting_of(bench, catalog, adapter="full", **params):
    given = {**bench.params, "train.batch_size": 8, **params}
    given.update({f"{adapter}.{key}": value for key, value in defaults(catalog.adapters[adapter].space).items()})
    model = {"name": "tiny", "path": bench.source.path, "config": dict(bench.config)}
    return Setting(bench.task.card.name, model, bench.facts, bench.options, given, adapter, length=64)


@pytest.mark.parametrize(
    ("limit", "verdict"), [(94, "does not fit"), (96, "probe"), (104, "probe"), (105, "fits"), (1000, "fits")]
)
def test_near_the_limit_only_a_probe_tells(limit, verdict):
    assert judge(Prediction(100, margin=0.05), limit) == verdict


def test_the_least_that_is_needed_never_proves_that_it_fits():
    least = Prediction(100, exact=False)
    assert judge(least, 10**6) == "probe"
    assert judge(least, 50) == "does not fit"
    assert judge(Prediction(None, reason="unknown"), 10**6) == "probe"


def test_a_setting_survives_json(bench, catalog):
    setting = setting_of(bench, catalog)
    assert Setting.from_json(json.loads(json.dumps(setting.to_json()))) == setting


def test_what_cannot_be_traced_says_why(bench, catalog):
    """AdaLoRA ranks its importances in a step, and that takes their values."""
    setting = setting_of(bench, catalog, "adalora")
    with pytest.raises(CannotTrace, match="adalora"):
        trace_training(setting, catalog)
    prediction = predict(setting, catalog, Constants(0))
    assert prediction.peak_bytes is None
    assert "adalora" in prediction.reason
    assert judge(prediction, 10**12) == "probe"


def test_the_largest_batch_that_fits(bench, catalog, tmp_path):
    """Found by trying all divisors, largest first."""
    setting = setting_of(bench, catalog).with_batch(24)
    peaks = {
        size: trace_training(setting.with_batch(size, 24 // size), catalog).timeline.peak
        for size in (24, 12, 8, 6, 4, 3, 2, 1)
    }
    constants = Constants(MIB)
    for limit in (peaks[24] + MIB, peaks[24] + MIB - 1, peaks[6] + MIB, peaks[3] + MIB - 1, peaks[1] + MIB):
        best = next(size for size, peak in peaks.items() if peak + MIB <= limit)
        assert largest_batch(setting, catalog, constants, limit * (1 + MARGIN) + 1, tmp_path) == (best, 24 // best)
    assert largest_batch(setting, catalog, constants, (peaks[1] + MIB) * (1 + MARGIN) - 1, tmp_path) is None


def test_a_batch_is_cut_into_as_few_parts_as_may_fit(bench, catalog, tmp_path):
    setting = setting_of(bench, catalog).with_batch(24)
    peaks = {
        parts: trace_training(setting.with_batch(24 // parts, parts), catalog).timeline.peak for parts in (1, 2, 4, 8)
    }
    constants = Constants(MIB)
    for most in (2, 8):
        for limit in (peaks[1] + MIB, peaks[2] + MIB, peaks[4] + MIB, 1):
            # The fewest whose peak is not surely above the limit; where there are none, as many as are allowed.
            allowed = [parts for parts in (1, 2, 4, 8) if parts <= most]
            fitting = [parts for parts in allowed if (peaks[parts] + MIB) * (1 - MARGIN) <= limit]
            parts, prediction = parts_that_fit(setting, catalog, constants, limit, most, tmp_path)
            assert parts == (fitting or allowed[-1:])[0]
            assert prediction.peak_bytes == peaks[parts] + MIB
    assert parts_that_fit(setting.with_batch(3), catalog, constants, 1, 8)[0] == 2, "never more parts than rows"


def test_what_changes_nothing_about_memory_is_traced_once(bench, catalog, tmp_path):
    setting = setting_of(bench, catalog)

    def changed(**params) -> Setting:
        return replace(setting, params={**setting.params, **params})

    for one in (setting, changed(**{"full.learning_rate": 1.0, "train.epochs": 77, "train.warmup": 0.3})):
        predict(one, catalog, Constants(0), tmp_path)
    assert len(list(tmp_path.glob("trace-*.json"))) == 1
    predict(changed(**{"train.optimizer": "sgd"}), catalog, Constants(0), tmp_path)
    assert len(list(tmp_path.glob("trace-*.json"))) == 2


def test_what_torch_keeps_of_traces_is_bounded(bench, catalog, monkeypatch):
    monkeypatch.setattr(steps, "KNOWN_SHAPES", 500)
    FakeTensorMode.cache_clear()
    known = []
    for size in range(2, 8):
        trace_training(setting_of(bench, catalog).with_batch(size), catalog)
        known.append(len(FakeTensorMode.cache))
    # Where it is emptied, the next trace begins at what one trace takes.
    assert known[1] > known[0]
    assert max(known) <= 500 + known[0]


def test_rows_of_the_data_stand_in_for_those_of_the_task(bench, catalog):
    setting = setting_of(bench, catalog)
    rows = [{"text": "a film", "label": "bad"}, {"text": "another film " * 40, "label": "good"}]
    facts = bench.task.facts(rows, bench.options)
    own = replace(setting, facts=facts, rows=rows, length=64).with_batch(4)
    batch = task_batch(Work.of(own, catalog), 4, own.rows)
    assert batch["input_ids"].shape == (4, 64)
    assert int(batch["attention_mask"].sum(1).min()) < 10, "the last row is a short one"
    assert trace_training(own, catalog).timeline.peak > 0
    assert Setting.from_json(json.loads(json.dumps(own.to_json()))) == own


def test_traces_are_read_from_the_cache(bench, catalog, tmp_path):
    setting = setting_of(bench, catalog)
    first = predict(setting, catalog, Constants(5), tmp_path)
    (file,) = tmp_path.glob("trace-*.json")
    known = json.loads(file.read_text())
    file.write_text(json.dumps({**known, "peak": 1000}))
    assert predict(setting, catalog, Constants(5), tmp_path).peak_bytes == 1005
    assert predict(setting.with_batch(2), catalog, Constants(5), tmp_path).peak_bytes < first.peak_bytes


def test_real_steps_against_the_prediction_and_against_a_limit(bench, catalog, tmp_path):
    """Constants from one short row; then a batch whose tensors take several times what all else does is predicted."""
    small = setting_of(bench, catalog)
    assert constants_of(small, catalog, tmp_path) is None
    constants = calibrate(small, catalog, tmp_path)
    assert constants_of(small.with_batch(500), catalog, tmp_path) == constants
    large = Setting.from_json({**small.with_batch(256).to_json(), "length": 256})
    predicted = predict(large, catalog, constants).peak_bytes
    measured = probe(large)
    assert measured.fits
    assert measured.memory_bytes - constants.process_bytes > 300 * MIB
    assert predicted == pytest.approx(measured.memory_bytes, rel=0.05)
    limit = constants.process_bytes + 100 * MIB
    stopped = probe(large, limit)
    assert not stopped.fits
    assert limit < stopped.memory_bytes < measured.memory_bytes


def test_steps_that_fail_for_another_reason_say_so(bench, catalog):
    setting = setting_of(bench, catalog, **{"train.optimizer": "none-such"})
    with pytest.raises(ModelError, match="none-such"):
        probe(setting)


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="asks Linux what is resident")
def test_a_probe_reads_frozen_tables(bench, catalog, tmp_path):
    """Two steps read the rows of a few words, a training those of most."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(bench.source.path)
    config.vocab_size = 200_000
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(bench.source.path).save_pretrained(tmp_path)
    large = Workbench(catalog.tasks["text-classification"], catalog, model=tmp_path)
    setting = setting_of(large, catalog, "head-only")
    model = loaded_model(Work.of(setting, catalog), setting)
    table = model.get_input_embeddings().weight
    assert not table.requires_grad
    assert resident_bytes(tmp_path) >= table.nbytes > 10 * MIB
    assert torch.isfinite(table).all()


def resident_bytes(folder):
    """Return how much of a folder's files this process has in memory."""
    total, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            here = str(folder) in line
        elif here and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total
