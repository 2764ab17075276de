"""TensorBoard, MLflow and Weights & Biases, where the recipe names them: one run of theirs for each trial.

They are written to from the search, which hears of every trial, in a thread of its own: a tracker that is slow holds up no
trial, and one that fails is left out, with one note. Accelerate's classes are not used: its MLflow tracker logs to the one
run that is active in a process, where trials of several workers go on side by side, and its TensorBoard tracker makes a
second run of each trial's settings, without the figures that belong to them.

That their packages are installed, :mod:`autoft.plans` has asked. What is logged: the configuration, the validation curve, and at the end the figures and costs of each variant. No recipe, no
command line, no environment.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import re
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from autoft.listener import Listener, Standing
from autoft.plans.plan import Plan
from autoft.progress import printable
from autoft.rundir import RunDir, TrialConfig, TrialResult
from autoft.screen import describe, outcome

__all__ = ["Tracker", "TrackerListener", "without_secrets"]

WAITED = 60.0
"""Seconds that the end of a search waits for trackers, as one that sends over a slow network."""

_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """Return a message on one line without user and password of addresses, and without values of secret settings."""
    text = _CREDENTIALS.sub("***@", printable(text))
    for name, value in os.environ.items():
        if len(value) >= 6 and _SECRET.search(name):
            text = text.replace(value, "***")
    return text


class Tracker(ABC):
    """Where trials are logged to: one run of the tracker for each. Called by one thread."""

    name: str

    def __init__(self, plan: Plan, folder: Path) -> None:
        """Prepare it.

        Args:
            plan: of the search, whose name is that of the project.
            folder: the tracker's own, below the run folder.
        """
        self.plan, self.folder = plan, folder
        folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def start(self, config: TrialConfig, settings: Mapping[str, Any]) -> None:
        """Begin the run of a trial; one of the same number that is open was begun in vain."""

    @abstractmethod
    def log(self, trial: int, values: Mapping[str, float], step: int) -> None:
        """Log figures at so many training samples."""

    @abstractmethod
    def end(self, trial: int, state: str, words: str, values: Mapping[str, float]) -> None:
        """End the run of a trial with its last figures."""

    @abstractmethod
    def close(self) -> None:
        """End what is still open, as the search has ended."""


class _TensorBoard(Tracker):
    name = "tensorboard"

    def __init__(self, plan: Plan, folder: Path) -> None:
        super().__init__(plan, folder)
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary, self._writer = Event, Summary, EventFileWriter
        self._begun, self._status, self._plugin, self._metadata = hparams_pb, api_pb2.Status, plugin_data_pb2, metadata
        self._open: dict[int, Any] = {}

    def start(self, config: TrialConfig, settings: Mapping[str, Any]) -> None:
        old = self._open.pop(config.number, None)
        if old is not None:
            old.close()
        folder = self.folder / f"{config.number:04d}"
        if folder.is_dir():
            shutil.rmtree(folder)
        self._open[config.number] = self._writer(str(folder))
        known = {name: value for name, value in settings.items() if value is not None}
        self._write(config.number, self._begun(known, trial_id=f"trial {config.number}"), 0)
        self._open[config.number].flush()

    def log(self, trial: int, values: Mapping[str, float], step: int) -> None:
        if trial in self._open:
            found = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            self._write(trial, self._summary(value=found), step)
            self._open[trial].flush()

    def end(self, trial: int, state: str, words: str, values: Mapping[str, float]) -> None:
        if trial in self._open:
            self.log(trial, values, 0)
            status = "STATUS_FAILURE" if state == "failed" else "STATUS_SUCCESS"
            told = self._plugin.SessionEndInfo(status=self._status.Value(status), end_time_secs=time.time())
            # What tensorboard has of its own for this imports TensorFlow.
            value = self._summary.Value(
                tag=self._metadata.SESSION_END_INFO_TAG,
                metadata=self._metadata.create_summary_metadata(self._plugin.HParamsPluginData(session_end_info=told)),
                tensor=self._metadata.NULL_TENSOR,
            )
            self._write(trial, self._summary(value=[value]), 0)
            self._open.pop(trial).close()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def _write(self, trial: int, summary: Any, step: int) -> None:
        self._open[trial].add_event(self._event(wall_time=time.time(), step=step, summary=summary))


class _MLflow(Tracker):
    name = "mlflow"

    def __init__(self, plan: Plan, folder: Path) -> None:
        super().__init__(plan, folder)
        # Set before the import, which reads it: looking at models is nobody else's business.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import logging

        import mlflow
        from mlflow.entities import Metric, Param

        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._metric, self._param = Metric, Param
        local = f"sqlite:///{folder / 'mlflow.db'}"
        given = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = mlflow.MlflowClient(tracking_uri=given or local)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or plan.name
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            self._experiment = experiment.experiment_id
        else:
            place = None if given else (folder / "artifacts").as_uri()
            self._experiment = self._client.create_experiment(name, artifact_location=place)
        self._open: dict[int, str] = {}

    def start(self, config: TrialConfig, settings: Mapping[str, Any]) -> None:
        run = {"autoft.run": str(self.folder.parents[1]), "autoft.trial": str(config.number)}
        where = " and ".join(f"tags.`{key}` = '{value}'" for key, value in run.items() if "'" not in value)
        # What a killed search has left open under this number.
        for old in self._client.search_runs([self._experiment], f"{where} and attributes.status = 'RUNNING'"):
            self._client.set_terminated(old.info.run_id, "KILLED")
        begun = self._client.create_run(self._experiment, tags=run, run_name=f"trial {config.number}")
        self._open[config.number] = begun.info.run_id
        params = [self._param(_name(name), str(value)[:500]) for name, value in settings.items()]
        self._client.log_batch(begun.info.run_id, params=params)

    def log(self, trial: int, values: Mapping[str, float], step: int) -> None:
        if trial in self._open:
            now = int(time.time() * 1000)
            metrics = [self._metric(_name(name), value, now, step) for name, value in values.items()]
            self._client.log_batch(self._open[trial], metrics=metrics)

    def end(self, trial: int, state: str, words: str, values: Mapping[str, float]) -> None:
        if trial in self._open:
            self.log(trial, values, 0)
            self._client.set_tag(self._open[trial], "autoft.state", state)
            self._client.set_tag(self._open[trial], "autoft.outcome", words[:4000])
            self._client.set_terminated(self._open.pop(trial), "FAILED" if state == "failed" else "FINISHED")

    def close(self) -> None:
        while self._open:
            self._client.set_terminated(self._open.popitem()[1], "KILLED")


class _WandB(Tracker):
    name = "wandb"

    def __init__(self, plan: Plan, folder: Path) -> None:
        super().__init__(plan, folder)
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        # The command line, the address of a git remote and the environment may hold secrets.
        self._settings = wandb.Settings(
            console="off", silent=True, disable_git=True, save_code=False, x_disable_meta=True, x_disable_stats=True
        )
        self._open: dict[int, Any] = {}

    def start(self, config: TrialConfig, settings: Mapping[str, Any]) -> None:
        old = self._open.pop(config.number, None)
        if old is not None:
            old.finish(exit_code=1)
        self._open[config.number] = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or self.plan.name,
            name=f"trial {config.number}",
            dir=str(self.folder),
            mode=os.environ.get("WANDB_MODE") or "offline",
            config=dict(settings),
            reinit="create_new",
            settings=self._settings,
        )

    def log(self, trial: int, values: Mapping[str, float], step: int) -> None:
        if trial in self._open:
            # Steps of wandb may not go back, and the curve's columns come at the end: samples are a figure of their own.
            self._open[trial].log({**values, "samples": step})

    def end(self, trial: int, state: str, words: str, values: Mapping[str, float]) -> None:
        if trial in self._open:
            run = self._open.pop(trial)
            run.summary.update({**values, "state": state, "outcome": words})
            run.finish(exit_code=1 if state == "failed" else 0)

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].finish(exit_code=1)


def _name(name: str) -> str:
    """Return a name of the characters that every tracker takes."""
    return re.sub(r"[^\w\-. /]", "_", name)[:200]


KINDS: dict[str, type[Tracker]] = {kind.name: kind for kind in (_TensorBoard, _MLflow, _WandB)}


class TrackerListener(Listener):
    """Logs trials to the trackers of the plan; a context, which ends when all is written or a minute has passed.

    Args:
        run: below whose folder they write.
        tell: told once of each tracker that fails, from the thread of the search.
    """

    def __init__(self, run: RunDir, tell: Callable[[str], None]) -> None:
        self.run, self.tell = run, tell
        self.plan: Plan | None = None
        self.trackers: list[Tracker] = []
        self._waiting: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._failures: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> TrackerListener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(WAITED)
            if self._thread.is_alive():
                self.tell(f"The trackers were not done within {WAITED:.0f} seconds: what they had not written is lost.")
        self._tell_failures()

    def begin(self, plan: Plan, resumed: int) -> None:
        """Start the trackers that the plan names."""
        self.plan = plan
        if plan.trackers:
            self._thread = threading.Thread(
                target=self._write_on, args=(list(plan.trackers),), name="trackers", daemon=True
            )
            self._thread.start()

    def trial_started(self, config: TrialConfig) -> None:
        """Begin a run."""
        settings = {
            "trial": describe(config),
            "kind": config.kind,
            "model": config.model,
            "pipeline": config.pipeline,
            "seed": config.seed,
            **config.params,
        }
        if config.parent is not None:
            settings["parent"] = config.parent
        self._tell_trackers(lambda tracker: tracker.start(config, settings))

    def validation(self, trial: int, samples: int, value: float) -> None:
        """Log a point of the curve."""
        assert self.plan is not None
        values = _finite({f"validation/{self.plan.objective}": value})
        if values:
            self._tell_trackers(lambda tracker: tracker.log(trial, values, samples))

    def trial_done(self, result: TrialResult, standing: Standing) -> None:
        """Log the rest of the curve, figures and costs, and end the run."""
        assert self.plan is not None
        objective, number = self.plan.objective, result.number
        curve = [
            (
                point.samples,
                _finite(
                    {
                        "train/loss": point.train_loss,
                        "train/learning_rate": point.learning_rate,
                        "train/epoch": point.epoch,
                        **{f"validation/{name}": v for name, v in point.validation.items() if name != objective},
                    }
                ),
            )
            for point in result.curve
        ]
        values, words, state = _final(result), outcome(result, self.plan), result.state

        def end(tracker: Tracker) -> None:
            for samples, columns in curve:
                tracker.log(number, columns, samples)
            tracker.end(number, state, words, values)

        self._tell_trackers(end)

    def phase(self, name: str) -> None:
        """Tell what failed so far."""
        self._tell_failures()

    def _tell_trackers(self, what: Callable[[Tracker], None]) -> None:
        if self._thread is not None:
            self._waiting.put(what)
        self._tell_failures()

    def _tell_failures(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self.tell(self._failures.get_nowait())

    def _write_on(self, names: Sequence[str]) -> None:
        assert self.plan is not None
        plan = self.plan
        for name in names:
            folder = self.run.path / "trackers" / name
            self._guarded(name, lambda name=name, folder=folder: self.trackers.append(KINDS[name](plan, folder)))  # type: ignore[misc]  # mypy cannot infer a lambda's defaults
        while (what := self._waiting.get()) is not None:
            for tracker in list(self.trackers):
                if not self._guarded(tracker.name, lambda what=what, tracker=tracker: what(tracker)):  # type: ignore[misc]  # mypy cannot infer a lambda's defaults
                    self.trackers.remove(tracker)
        for tracker in self.trackers:
            self._guarded(tracker.name, tracker.close)

    def _guarded(self, name: str, action: Callable[[], object]) -> bool:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, no trial may be lost for it
            reason = without_secrets(f"{type(error).__name__}: {error}")[:500]
            self._failures.put(f"{name} is not written to any more, and the search goes on without it: {reason}")
            return False
        return True


def _final(result: TrialResult) -> dict[str, float]:
    """Return the figures of a trial that is done, by names as ``onnx-int8/model_size_bytes``."""
    values: dict[str, float] = {
        **{f"trained/{name}": value for name, value in result.validation.items()},
        **{f"seconds/{name}": value for name, value in result.seconds.items()},
    }
    known = {
        "trained/parameters": result.parameters,
        "trained/trainable_parameters": result.trainable_parameters,
        "trained/train_memory_bytes": result.train_memory_bytes,
    }
    values.update({name: figure for name, figure in known.items() if figure is not None})
    for variant in result.variants:
        values.update({f"{variant.name}/{name}": value for name, value in variant.validation.items()})
        values.update({f"{variant.name}/{name}": value for name, value in variant.costs.items()})
    return _finite(values)


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
