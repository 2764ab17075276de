from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from autoft import evaluation
from autoft.artifact import LoadedModel
from autoft.contracts import Column, CostMetric, QualityMetric, Refusal, Task, TaskCard, TaskContext
from autoft.evaluation import (
    MeasureError,
    best_scored,
    bootstrap_interval,
    example_input,
    judged,
    measure_costs,
    score,
    untouched_works,
    validated_by,
    wanted_costs,
)
from autoft.hardware import Hardware
from autoft.plans.planner import make_plan
from autoft.recipe import recipe_from_mapping

CONTEXT = TaskContext(facts={}, options={}, params={}, max_length=8)


class Share(QualityMetric):
    """Share of right answers, with additive statistics."""

    name = "share"
    summary = "share of right answers"

    def score(self, predictions, refs, context):
        return float(np.mean([p == r for p, r in zip(predictions, refs, strict=True)]))

    def statistics(self, predictions, refs, context):
        return np.array([[p == r, 1] for p, r in zip(predictions, refs, strict=True)], dtype=float)

    def aggregate(self, sums):
        return sums[..., 0] / sums[..., 1]


class Median(QualityMetric):
    """A figure that has to be computed anew for each resample."""

    name = "median"
    summary = "median"

    def score(self, predictions, refs, context):
        return float(np.median(predictions))


class Undefined(QualityMetric):
    name = "undefined"
    summary = "never defined"

    def score(self, predictions, refs, context):
        return float("nan")


def test_the_interval_of_a_share_is_that_of_scipys_percentile_bootstrap():
    rng = np.random.default_rng(1)
    right = rng.random(300) < 0.8
    found = bootstrap_interval(Share(), list(right), [True] * 300, CONTEXT, seed=0, resamples=20_000)
    reference = stats.bootstrap(
        (right.astype(float),), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(5)
    ).confidence_interval
    assert found.value == right.mean()
    assert found.n == 300
    assert found.low == pytest.approx(reference.low, abs=0.004)
    assert found.high == pytest.approx(reference.high, abs=0.004)


def test_nothing_waits_for_the_libraries_of_measuring_processes_but_the_first_measurement(tmp_path):
    (tmp_path / "library.py").write_text(
        "import pathlib, time\n"
        "def wait():\n"
        "    for _ in range(2000):\n"
        "        if pathlib.Path('measuring').exists():\n"
        "            return\n"
        "        time.sleep(0.01)\n"
        "    raise SystemExit('imported while nothing was measured')\n"
    )
    (tmp_path / "start.py").write_text(
        "import pathlib\n"
        "from autoft import evaluation\n"
        "evaluation.ANY_MODEL = evaluation.MODELS_IN_TORCH = 'library:wait'\n"
        "evaluation.start_measuring()\n"
        "pathlib.Path('measuring').touch()\n"
        "modules = \"{'modules': [*__import__('sys').modules]}\"\n"
        "print('library' in evaluation._in_process(True, eval, modules)['modules'])\n"
    )
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    answer = subprocess.run(
        [sys.executable, "start.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert answer.stdout.strip() == "True"


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"reads": 1.0}, "names the columns disk_reads, and measured reads"),
        ({}, "measured none"),
        ({"disk_reads": float("nan")}, "disk_reads = nan"),
        ({"disk_reads": float("inf")}, "disk_reads = inf"),
    ],
)
def test_a_cost_metric_that_does_not_measure_what_it_names_is_told(figures, expected, tmp_path):
    class Reads(CostMetric):
        name, summary, unit, columns = "reads", "reads of the disk", "count", ("disk_reads",)

        def measure(self, served):
            return figures

    loaded = LoadedModel(None, None, CONTEXT, None, tmp_path)
    with pytest.raises(MeasureError, match=expected):
        measure_costs(loaded, [], 1, [Reads()])


def test_a_figure_that_is_asked_for_is_not_left_out_where_it_cannot_be_measured(tmp_path):
    class Reads(CostMetric):
        name, summary, unit, columns = "reads", "reads of the disk", "count", ("disk_reads",)

        def check(self, device, workers):
            return Refusal("the counter stands still")

        def measure(self, served):
            raise AssertionError

    loaded = LoadedModel(None, None, CONTEXT, None, tmp_path)
    assert measure_costs(loaded, [], 1, [Reads()]) == {}
    with pytest.raises(MeasureError, match="reads cannot be measured any more: the counter stands still"):
        measure_costs(loaded, [], 1, [Reads()], asked=["disk_reads"])


def test_a_metric_without_statistics_is_scored_anew_for_each_resample():
    values = np.random.default_rng(2).normal(size=101)
    found = bootstrap_interval(Median(), list(values), [0] * 101, CONTEXT, seed=0, resamples=4000)
    reference = stats.bootstrap(
        (values,), np.median, method="percentile", n_resamples=4000, rng=np.random.default_rng(5)
    ).confidence_interval
    assert found.low == pytest.approx(reference.low, abs=0.05)
    assert found.high == pytest.approx(reference.high, abs=0.05)


def test_the_seed_decides_the_interval():
    right = [True, False, True, True, False, True, True]
    one, same, other = (
        bootstrap_interval(Share(), right, [True] * 7, CONTEXT, seed=s, resamples=50) for s in (1, 1, 4)
    )
    assert one == same
    assert (one.low, one.high) != (other.low, other.high)


def test_all_right_has_no_width_and_an_undefined_figure_none_at_all():
    sure = bootstrap_interval(Share(), [True] * 9, [True] * 9, CONTEXT)
    assert (sure.low, sure.value, sure.high) == (1.0, 1.0, 1.0)
    never = bootstrap_interval(Undefined(), [1] * 9, [1] * 9, CONTEXT)
    assert np.isnan([never.value, never.low, never.high]).all()


class Different(Share):
    """How many different values there are."""

    def score(self, predictions, references, context):
        return float(len(set(predictions)))

    def resampled(self, predictions, references, context, counts):
        return (counts > 0).sum(1)


def test_an_interval_that_does_not_hold_its_figure_is_none():
    found = bootstrap_interval(Different(), list(range(50)), [0] * 50, CONTEXT)
    assert (found.value, found.n) == (50.0, 50)
    assert np.isnan([found.low, found.high]).all()


def test_scores_of_several_metrics():
    found = score({"share": Share(), "median": Median()}, [1, 0, 1], [1, 1, 1], CONTEXT)
    assert found == {"share": pytest.approx(2 / 3), "median": 1.0}


def test_of_several_models_one_without_a_figure_is_not_the_best():
    def best(**figures):
        return best_scored(list(figures), figures.__getitem__)

    assert best(full=float("nan"), dequantized=-0.3) == "dequantized"
    assert best(full=0.4, dequantized=float("nan")) == "full"
    assert best(full=0.4, dequantized=0.4) == "full"
    assert best(full=float("nan"), dequantized=float("nan")) == "full"


class Parrot(Task):
    """Says what it reads, and how long the target is."""

    card = TaskCard(
        name="parrot",
        summary="repeats",
        columns=(Column("text", "text", "read"), Column("answer", "text", "said", target=True)),
        metrics=("share",),
        architecture="causal-lm",
    )

    def demo_rows(self):
        return []

    def load_model(self, source, context):
        raise AssertionError

    def encode(self, rows, context):
        raise AssertionError

    def predict(self, model, rows, context, batch_size=32):
        assert all(set(row) == {"text"} for row in rows), "predictions see no targets"
        return [{"said": row["text"]} for row in rows]

    def reference(self, row, context):
        return row["answer"]


class LongParrot(Parrot):
    def score_targets(self, model, rows, context, batch_size=32):
        return [{"length": len(row["answer"])} for row in rows]


ROWS = [{"text": "a", "answer": "xyz"}, {"text": "b", "answer": ""}]


def test_figures_of_the_targets_join_the_predictions():
    assert judged(Parrot(), None, ROWS, CONTEXT) == [{"said": "a"}, {"said": "b"}]
    assert judged(LongParrot(), None, ROWS, CONTEXT) == [{"said": "a", "length": 3}, {"said": "b", "length": 0}]


def test_nothing_is_predicted_where_only_targets_count():
    assert judged(LongParrot(), None, ROWS, CONTEXT, only_targets=True) == [{"length": 3}, {"length": 0}]


def test_an_untouched_model_is_a_baseline_where_it_writes_by_itself(catalog, tiny_model, tmp_path):
    """The decoder that an encoder gets writes at random until it is trained."""
    config = json.loads((tiny_model / "config.json").read_text())
    writer = Path(shutil.copytree(tiny_model, tmp_path / "writer"))
    (writer / "config.json").write_text(json.dumps({**config, "architectures": ["BertLMHeadModel"]}))

    def works(task: str, model: Path) -> bool:
        recipe = recipe_from_mapping({"task": task, "model": str(model), "data": "train.csv"})
        return untouched_works(make_plan(recipe, catalog, Hardware.probe_cpu()), catalog.task(task))

    assert works("translation", writer)
    assert not works("translation", tiny_model)
    assert not works("text-classification", tiny_model)


def test_validation_has_the_figures_that_predictions_need_unless_none_counts(catalog):
    metrics = catalog.metrics_of(catalog.task("generation"))
    assert set(validated_by(metrics, ["perplexity", "model_size_bytes"])) == {"perplexity", "bits_per_byte"}
    for asked in (["rouge_l"], ["perplexity", "chrf"], ["latency_p50_ms"]):
        assert validated_by(metrics, asked) == metrics


@pytest.mark.parametrize(
    ("task", "rows", "expected"),
    [
        ("text-classification", [{"text": "x", "label": "a"}], "A warm and clever film that I will watch again."),
        ("image-captioning", [{"image": b"...", "captions": ["x"]}], "picture.png"),
        (
            "medical-qa-choice",
            None,
            {"question": "Which organ makes insulin?", "options": ["Liver", "Pancreas", "Spleen"]},
        ),
        # The demo rows of the task are prompts.
        (
            "generation",
            [{"messages": [{"role": "user", "content": "x"}]}],
            {"messages": [{"role": "user", "content": "..."}]},
        ),
    ],
)
def test_an_example_asks_for_what_the_data_have(catalog, task, rows, expected):
    found = catalog.task(task)
    assert example_input(found, rows or found.demo_rows()) == expected


def test_every_tasks_example_is_short_and_can_be_typed(catalog):
    for name in catalog.tasks:
        task = catalog.task(name)
        example = example_input(task, task.demo_rows())
        assert len(json.dumps(example)) < 300
        given = {task.card.inputs[0].role: example} if isinstance(example, str) else example
        assert not set(given) & {column.role for column in task.card.targets}


def test_a_metric_that_takes_its_time_measures_what_is_asked_for_and_what_is_tested(catalog):
    def names(*asked, tested=False):
        return [metric.name for metric in wanted_costs(catalog, asked, tested=tested)]

    usual = ["model_size", "latency", "inference_memory"]
    assert names() == names("accuracy", "latency_p95_ms") == usual
    assert names("cpu_energy_idle_j") == [*usual, "cpu_energy"]
    assert names(tested=True) == [*usual, "cpu_energy", "gpu_energy"]


FORKED = """
import os, psutil, signal, time
from autoft import evaluation, fork_server

evaluation.ANY_MODEL = evaluation.MODELS_IN_TORCH = "killed_once:start"
evaluation.STOPPED_SECONDS = fork_server.STOPPED_SECONDS = 1.0
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
SEEN = (
    "{'server': __import__('os').getppid(), 'main': __import__('sys').modules['__main__'].__spec__.name}"
    " | {name: __import__('os').environ.get(name) for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')}"
)
for in_torch in (False, True):
    first = evaluation._in_process(in_torch, eval, SEEN)
    os.kill(server := first.pop("server"), signal.SIGSTOP if in_torch else signal.SIGKILL)
    again = evaluation._in_process(in_torch, eval, SEEN)
    assert again.pop("server") != evaluation._in_process(not in_torch, eval, SEEN)["server"]
    print(first, again)
while psutil.pid_exists(server) and psutil.Process(server).status() != psutil.STATUS_ZOMBIE:
    time.sleep(0.01)
print(os.environ["OMP_WAIT_POLICY"])
for number in (signal.SIGKILL, LAST):
    try:
        evaluation._in_process(True, signal.raise_signal, number)
    except evaluation.MeasureError as error:
        print(error)
"""

KILLED_ONCE = """
import os, pathlib, signal

def start():
    try:
        pathlib.Path("killed").touch(exist_ok=False)
    except FileExistsError:
        pass
    else:
        os.kill(os.getpid(), signal.SIGKILL)
    import autoft.evaluation
"""


def test_a_metric_that_fails_on_what_a_trial_predicts_is_told_as_a_failure_to_measure(catalog, tmp_path):
    about = {"task": "text-classification", "format": "transformers", "model": "m", "facts": {"labels": ["a", "b"]}}
    nothing = {"config": {}, "options": {}, "params": {}}
    (tmp_path / "autoft.json").write_text(
        json.dumps({"autoft": "0.1.0", **about, **nothing, "max_length": 8, "variant": "none"})
    )
    with pytest.raises(MeasureError, match=r"KeyError: None \(in the hook score of"):
        evaluation._validation(tmp_path, catalog, "cpu", [{}], ["a"])


def test_without_fork_each_measurement_starts_a_process_that_serves(monkeypatch):
    monkeypatch.setattr(evaluation, "CAN_FORK", False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    seen = "{name: __import__('os').environ.get(name) for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')}"
    found = evaluation._in_process(True, eval, seen)
    assert found == {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": "1000"}
    with pytest.raises(MeasureError, match=r"was killed by signal 15$"):
        evaluation._in_process(True, signal.raise_signal, signal.SIGTERM)


@pytest.mark.parametrize("stop", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_measures_is_started_again_as_it_serves_and_its_end_is_told(stop, tmp_path):
    """A fork server is killed once within its imports, and of the two one is killed and one stopped between two measurements."""
    (tmp_path / "killed_once.py").write_text(KILLED_ONCE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", FORKED.replace("LAST", "signal.SIGSTOP" if stop else "signal.SIGTERM")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    seen = {"main": "autoft.fork_server", "OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": "1000"}
    assert done.stdout.splitlines() == [
        f"{seen} {seen}",
        f"{seen} {seen}",
        "PASSIVE",
        "the process that measures the model was killed by signal 9; the memory may not be enough",
        "the process that measures the model was "
        + ("stopped, as SIGSTOP does, and ended" if stop else "killed by signal 15"),
    ], done.stderr
