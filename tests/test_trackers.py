"""Trackers: what they are given is read back from their own files."""

from __future__ import annotations

import os
import threading

import pytest

from autoft import trackers
from autoft.errors import RecipeError
from autoft.hardware import Hardware
from autoft.listener import Standing
from autoft.plans.planner import make_plan
from autoft.recipe import recipe_from_mapping
from autoft.rundir import CurvePoint, RunDir, TrialConfig, TrialResult, VariantResult
from autoft.trackers import KINDS, Tracker, TrackerListener, without_secrets

CPU = Hardware("cpu", 2, 8 * 2**30, (), "test", False, "Linux x86_64")
STANDING = Standing(
    {"complete": 1, "pruned": 0, "infeasible": 0, "failed": 0}, 0.8, 1, "none", 0.7, 61.0, 1, None, 40.0
)
SECRET = "hunter2hunter2"


@pytest.fixture
def plan(catalog, tiny_model):
    recipe = {"task": "text-classification", "model": str(tiny_model), "data": "train.csv", "name": "films"}
    data = {"sizes": {"train": 120, "validation": 40, "test": 40}, "columns": {"text": "text", "label": "label"}}
    return make_plan(recipe_from_mapping(recipe), catalog, CPU).with_data({"labels": ["a", "b"]}, data, ())


@pytest.fixture
def run(tmp_path) -> RunDir:
    folder = RunDir(tmp_path / "run")
    folder.create()
    return folder


def config(number):
    params = {"train.epochs": 3, "full.learning_rate": 2e-4, "augment": "none", "train.note": None}
    return TrialConfig(number=number, kind="search", model="package://m/model", pipeline="full", params=params, seed=5)


def result(number, state="complete"):
    return TrialResult(
        number=number,
        state=state,
        config=config(number),
        seconds={"total": 12.5},
        parameters=1000,
        curve=[
            CurvePoint(
                samples=samples,
                epoch=samples / 120,
                seconds=1.0,
                train_loss=loss,
                learning_rate=1e-4,
                validation={"accuracy": value, "f1": value / 2, "roc_auc": float("nan")},
            )
            for samples, loss, value in ((60, 0.7, 0.6), (120, 0.5, 0.75))
        ],
        variants=[
            VariantResult(
                name="magnitude-pruning(sparsity=0.3)+onnx-int8",
                state="complete",
                validation={"accuracy": 0.74},
                costs={"model_size_bytes": 23e6, "latency_p50_ms": 1.5},
            )
        ],
    )


def play(run, plan, *names, notes=None):
    """Two trials side by side, as two workers send them, one of which is begun again; a third is left open."""
    notes = [] if notes is None else notes
    with TrackerListener(run, notes.append) as listener:
        listener.begin(plan.model_copy(update={"trackers": list(names)}), 0)
        listener.trial_started(config(0))
        listener.trial_started(config(1))
        listener.validation(1, 60, 0.1)
        listener.trial_started(config(1))
        for number in (0, 1):
            listener.validation(number, 60, 0.6)
            listener.validation(number, 120, 0.75)
        listener.trial_done(result(1, "failed"), STANDING)
        listener.trial_done(result(0), STANDING)
        listener.trial_started(config(2))
    return notes


@pytest.fixture
def secret(monkeypatch):
    """A secret in the environment, and on the command line."""
    monkeypatch.setenv("MY_API_KEY", SECRET)
    monkeypatch.setattr("sys.argv", ["autoft", "search", "--set", f"data=hub://u:{SECRET}@host"])


def holds_no_secret(folder):
    found = [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert found == []


def test_tensorboard_has_settings_curve_and_costs_of_each_trial(run, plan, secret):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    assert play(run, plan, "tensorboard") == []
    folder = run.path / "trackers" / "tensorboard"
    assert sorted(path.name for path in folder.iterdir()) == ["0000", "0001", "0002"]
    for number in (0, 1):
        events = EventAccumulator(str(folder / f"{number:04d}")).Reload()
        curve = [(event.step, round(event.value, 4)) for event in events.Scalars("validation/accuracy")]
        assert curve == [(60, 0.6), (120, 0.75)], "what was begun in vain is gone"
        assert [event.step for event in events.Scalars("train/loss")] == [60, 120]
        assert [round(event.value, 4) for event in events.Scalars("validation/f1")] == [0.3, 0.375]
        assert "validation/roc_auc" not in events.Tags()["scalars"], "no figure"
        cost = events.Scalars("magnitude-pruning(sparsity=0.3)+onnx-int8/model_size_bytes")
        assert [event.value for event in cost] == [23e6]
        plugin = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
        settings = metadata.parse_session_start_info_plugin_data(plugin).hparams
        assert settings["full.learning_rate"].number_value == 2e-4
        assert settings["pipeline"].string_value == "full"
        assert settings["seed"].number_value == 5
        end = events.summary_metadata[metadata.SESSION_END_INFO_TAG].plugin_data.content
        # 1: success, 2: failure.
        assert metadata.parse_session_end_info_plugin_data(end).status == (1 if number == 0 else 2)
    holds_no_secret(run.path)


def test_mlflow_has_a_run_for_each_trial(run, plan, secret, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert play(run, plan, "mlflow") == []
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{run.path / 'trackers' / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("films")
    runs = client.search_runs([experiment.experiment_id])
    ended = {(one.info.run_name, one.info.status) for one in runs}
    assert ended == {("trial 0", "FINISHED"), ("trial 1", "KILLED"), ("trial 1", "FAILED"), ("trial 2", "KILLED")}
    first = next(one for one in runs if one.info.run_name == "trial 0")
    assert first.data.params["full.learning_rate"] == "0.0002"
    assert first.data.params["pipeline"] == "full"
    assert first.data.tags["autoft.state"] == "complete"
    curve = client.get_metric_history(first.info.run_id, "validation/accuracy")
    assert [(point.step, point.value) for point in curve] == [(60, 0.6), (120, 0.75)]
    assert first.data.metrics["magnitude-pruning_sparsity_0.3__onnx-int8/latency_p50_ms"] == 1.5
    holds_no_secret(run.path)
    # A search that goes on after a kill finds the run that was left open, and ends it.
    left = client.create_run(experiment.experiment_id, tags={"autoft.run": str(run.path), "autoft.trial": "1"})
    play(run, plan, "mlflow")
    assert client.get_run(left.info.run_id).info.status == "KILLED"


def leveldb_records(data, begin, block=32768):
    """The records of a log in the format of LevelDB (its doc/log_format.md), whose file has ``begin`` bytes before."""
    place, whole = 0, b""
    while place + 7 <= len(data):
        left = block - (begin + place) % block
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in {1, 4}:  # The whole of a record, or its last part.
            yield whole
            whole = b""


def test_wandb_stays_offline_and_below_the_run(run, plan, secret, monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert play(run, plan, "wandb") == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "nothing beside the run folder"
    found = {}
    for path in sorted((run.path / "trackers" / "wandb").rglob("*.wandb")):
        records = [wandb_internal_pb2.Record.FromString(data) for data in leveldb_records(path.read_bytes()[7:], 7)]
        begun = next(record.run for record in records if record.HasField("run"))
        history = [
            {item.nested_key[0] if item.nested_key else item.key: item.value_json for item in record.history.item}
            for record in records
            if record.HasField("history")
        ]
        found.setdefault(begun.display_name, []).append((begun, history))
    assert sorted(found) == ["trial 0", "trial 1", "trial 2"]
    begun, history = found["trial 0"][0]
    assert begun.project == "films"
    assert '"full"' in str([item.value_json for item in begun.config.update])
    assert [point["validation/accuracy"] for point in history if "validation/accuracy" in point] == ["0.6", "0.75"]
    holds_no_secret(run.path)


class _Faulty(Tracker):
    """Fails at the second trial, as a tracker whose disk is full."""

    name = "tensorboard"
    started: list[int]

    def start(self, config, settings):
        if config.number == 1:
            raise OSError(f"no space left; user https://me:{SECRET}@host, key {os.environ['MY_API_KEY']}")
        self.__class__.started.append(config.number)

    def log(self, trial, values, step):
        pass

    def end(self, trial, state, words, values):
        pass

    def close(self):
        raise AssertionError("it was left out")


def test_a_tracker_that_fails_is_told_once_and_left_out(run, plan, secret, monkeypatch):
    _Faulty.started = []
    monkeypatch.setitem(KINDS, "tensorboard", _Faulty)
    notes = play(run, plan, "tensorboard")
    assert len(notes) == 1
    assert notes[0].startswith(
        "tensorboard is not written to any more, and the search goes on without it: OSError: no space"
    )
    assert SECRET not in notes[0]
    assert "https://***@host, key ***" in notes[0]
    assert _Faulty.started == [0]


def test_one_that_cannot_begin_does_not_keep_the_other_from_it(run, plan, monkeypatch):
    pytest.importorskip("tensorboard")
    (run.path / "trackers").mkdir()
    (run.path / "trackers" / "wandb").write_text("a file where a folder has to be")
    notes = play(run, plan, "wandb", "tensorboard")
    assert len(notes) == 1
    assert notes[0].startswith("wandb is not written to any more")
    assert (run.path / "trackers" / "tensorboard" / "0000").is_dir()


def test_one_that_hangs_holds_up_nothing_and_its_loss_is_told(run, plan, monkeypatch):
    free = threading.Event()

    class Hanging(_Faulty):
        def start(self, config, settings):
            free.wait()

    monkeypatch.setitem(KINDS, "tensorboard", Hanging)
    monkeypatch.setattr(trackers, "WAITED", 0.2)
    notes = play(run, plan, "tensorboard")
    free.set()
    assert notes == ["The trackers were not done within 0 seconds: what they had not written is lost."]


def test_none_is_the_default_and_nothing_is_written(run, plan):
    assert play(run, plan) == []
    assert not (run.path / "trackers").exists()


def test_names_are_checked_and_a_missing_package_is_told(catalog, tiny_model, monkeypatch):
    base = {"task": "text-classification", "model": str(tiny_model), "data": "train.csv"}
    with pytest.raises(RecipeError, match="trackers"):
        recipe_from_mapping({**base, "trackers": ["tensorbord"]})
    assert recipe_from_mapping({**base, "trackers": "mlflow"}).trackers == ["mlflow"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r'trackers\[1\]: wandb is not installed; pip install "autoft\[wandb\]"'):
        make_plan(recipe_from_mapping({**base, "trackers": ["mlflow", "wandb"]}), catalog, CPU)


def test_secrets_are_taken_out_of_messages(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "abcdef123456")
    assert without_secrets("401 for abcdef123456 at http://bob:pw@h:1/x") == "401 for *** at http://***@h:1/x"
