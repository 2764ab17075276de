"""Trials that a worker trains together: which the search sends, what becomes of them, and that they are those of one by one."""

from __future__ import annotations

import csv
import time

import numpy as np
import pytest
import yaml

from autoft.errors import RecipeError
from autoft.executors import Event
from autoft.executors.worker import fitting
from autoft.hardware import Hardware
from autoft.listener import Listener
from autoft.plans.plan import Plan
from autoft.plans.planner import make_plan
from autoft.plugins import load_plugins
from autoft.recipe import recipe_from_mapping
from autoft.rundir import CurvePoint, RunDir, TrialResult, VariantResult
from autoft.search import Interruption, Search
from autoft.space import Categorical, Float, Int, domain_to_json

SPACE = {
    "model": Categorical(("large", "small")),
    "pipeline": Categorical(("lora", "nf4+lora", "full")),
    "augment": Categorical(("none",)),
    "train.epochs": Int(1, 4, 3),
    "train.batch_size": Categorical((16,)),
    "lora.start": Categorical(("default", "pissa")),
    "lora.learning_rate": Float(1e-4, 1e-2, 1e-3, log=True),
    "full.learning_rate": Float(1e-6, 1e-3, 1e-5, log=True),
}


@pytest.fixture(scope="module")
def catalog():
    return load_plugins()


def engine(tmp_path, catalog, together=3, **changes):
    from autoft.plans.plan import ModelPlan, PipelinePlan, VariantPlan

    values = {
        "space": {name: domain_to_json(domain) for name, domain in SPACE.items()},
        "models": [ModelPlan(name=name, path="", config={}, size_bytes=90) for name in ("large", "small")],
        "pipelines": [
            PipelinePlan(name="full", quantizer=None, adapter="full"),
            PipelinePlan(name="lora", quantizer=None, adapter="lora"),
            PipelinePlan(name="nf4+lora", quantizer="nf4", adapter="lora"),
        ],
        "variants": [VariantPlan(name="none", chain=[])],
        "objective": "accuracy",
        "objectives": ["accuracy"],
        "metrics": {"accuracy": {"higher_is_better": True}},
        "budget": [],
        "sampler": "random",
        "early_stopping": "none",
        "seed": 3,
        "task": "text-classification",
        "trials_limit": None,
        "finalist_seeds": 0,
        "tolerance": 0.0,
        "data": {"sizes": {"train": 100, "validation": 40, "test": 40}},
        "facts": {},
        "device": "cpu",
        "hardware": Hardware("cpu", 2, 2**33, (), "test", False, "Linux x86_64").to_json(),
        "trust_remote_code": False,
        "illegal": [],
        "time_limit": 10_000.0,
        "workers": 1,
        "options": {},
        "storage_bytes": 10**9,
        "together": together,
    }
    run = RunDir(tmp_path)
    run.create()
    plan = Plan.model_construct(**{**values, **changes})
    search = Search(run, plan, catalog, Listener(), Interruption(), started=time.monotonic())
    search.pace.seconds_per_sample = {"large": 0.01, "small": 0.01}
    search.pace.validate_per_row = {"large": 0.0, "small": 0.0}
    search.pace.overhead = {"large": 1.0, "small": 1.0}
    search.agenda.queue = []
    return search


def trained(config, accuracy=0.5):
    point = CurvePoint(samples=10, epoch=1, seconds=1, train_loss=1, learning_rate=1, validation={"accuracy": accuracy})
    variant = VariantResult(name="none", state="complete", validation={"accuracy": accuracy}, costs={})
    return TrialResult(
        number=config.number,
        state="complete",
        config=config,
        seconds={"train": 1.0, "total": 2.0},
        curve=[point],
        validation={"accuracy": accuracy},
        variants=[variant],
    )


class Workers:
    """Workers that do what they are sent in an instant; the test says how it ends."""

    placed = frozenset({0})

    def __init__(self, search, ends):
        self.search, self.ends = search, ends
        self.sent: list[list[int]] = []
        self.events: list[Event] = []
        self.memory_limits: dict[int, float] = {}

    def send(self, worker, op, **body):
        requests = body["trials"] if op == "trials" else [body]
        numbers = [request["config"]["number"] for request in requests]
        self.sent.append(numbers)
        self.events += self.ends(self, worker, numbers)

    def poll(self, timeout):
        return self.events.pop(0) if self.events else None

    def stop(self, worker):
        pass

    def start(self, worker):
        pass


def well(workers, worker, numbers):
    """Each ends well, the last that was sent first."""
    found = []
    for number in reversed(numbers):
        config = next(config for config in workers.search.trials.going() if config.number == number)
        workers.search.run.trial(number).mkdir(parents=True, exist_ok=True)
        workers.search.run.write_result(trained(config, 0.5 + number / 100))
        found.append(Event(worker, "done", {"trial": number}))
    return found


def test_trials_of_one_base_are_sent_together_and_the_others_by_themselves(tmp_path, catalog):
    space = {**SPACE, "pipeline": Categorical(("lora", "nf4+lora")), "model": Categorical(("large",))}
    search = engine(
        tmp_path,
        catalog,
        trials_limit=30,
        space={name: domain_to_json(domain) for name, domain in space.items()},
    )
    workers = Workers(search, well)
    search._loop(workers, lambda: search.study.ask(search.agenda.number()), 30)
    assert sorted(number for numbers in workers.sent for number in numbers) == list(range(30))
    assert search.trials.counted() == 30
    assert not search.trials.aside
    assert not search.trials.running
    configs = {number: result.config for number, result in search.trials.results.items()}
    groups = [[configs[number] for number in numbers] for numbers in workers.sent]
    assert max(map(len, groups)) == 3
    for group in groups:
        assert len({(config.model, config.pipeline) for config in group}) == 1
        if len(group) > 1:
            assert all(config.params["lora.start"] == "default" for config in group)
    # Half of all leave the base as it is; of those few are left by themselves.
    fit = [c for c in configs.values() if c.params.get("lora.start") == "default"]
    assert sum(len(group) for group in groups if len(group) > 1) > len(fit) / 2


def test_one_at_a_time_is_what_it_was(tmp_path, catalog):
    search = engine(tmp_path, catalog, together=1, trials_limit=8)
    workers = Workers(search, well)
    search._loop(workers, lambda: search.study.ask(search.agenda.number()), 8)
    assert workers.sent == [[number] for number in range(8)]


def test_the_default_trains_by_itself_and_regularized_trials_too(tmp_path, catalog):
    search = engine(tmp_path, catalog)
    lora = search.study.ask(0, {"model": "large", "pipeline": "lora", "lora.start": "default"})
    assert search._kin(lora) == ("large", None)
    for changes in (
        {"kind": "default"},
        {"kind": "compress"},
        {"parts": 2},
        {"params": {**lora.params, "regularize": "rdrop"}},
        {"params": {**lora.params, "train.gradient_checkpointing": True}},
        {"params": {**lora.params, "lora.start": "olora"}},
        {"pipeline": "full"},
    ):
        assert search._kin(lora.model_copy(update=changes)) is None, changes
    assert search._kin(lora.model_copy(update={"pipeline": "nf4+lora"})) == ("large", "nf4")
    assert search._kin(lora.model_copy(update={"kind": "seed"})) == ("large", None)


def test_trials_whose_worker_is_lost_are_run_one_by_one(tmp_path, catalog):
    search = engine(tmp_path, catalog, trials_limit=3)
    told = []
    search.listener.note = told.append

    def ends(workers, worker, numbers):
        if len(numbers) > 1:
            return [Event(worker, "lost", {"reason": "the worker process was killed by signal 9", "code": -9})]
        return well(workers, worker, numbers)

    workers = Workers(search, ends)
    given = {"model": "large", "pipeline": "lora", "lora.start": "default"}
    search._loop(workers, lambda: search.study.ask(search.agenda.number(), given), 3)
    assert workers.sent == [[0, 1, 2], [0], [1], [2]]
    assert [result.state for result in search.trials.results.values()] == ["complete"] * 3
    assert told == ["Trials 0, 1, 2 are begun again, each by itself: the worker process was killed by signal 9."]


def test_trials_of_a_lost_worker_that_no_time_is_left_for_have_failed(tmp_path, catalog, monkeypatch):
    search = engine(tmp_path, catalog, trials_limit=3)

    def ends(workers, worker, numbers):
        if len(numbers) > 1:
            return [Event(worker, "lost", {"reason": "the worker process was killed by signal 9", "code": -9})]
        # The first of them alone uses up what there was.
        monkeypatch.setattr(search, "seconds_left", lambda: 1.0)
        return well(workers, worker, numbers)

    workers = Workers(search, ends)
    given = {"model": "large", "pipeline": "lora", "lora.start": "default"}
    search._loop(workers, lambda: search.study.ask(search.agenda.number(), given), 3)
    assert workers.sent == [[0, 1, 2], [0]]
    assert [search.trials.results[number].state for number in (0, 1, 2)] == ["complete", "failed", "failed"]
    assert "signal 9; no time is left" in search.run.read_result(2).reason
    assert not search.trials.going()


def test_a_worker_that_is_replaced_gets_those_that_are_not_done(tmp_path, catalog):
    search = engine(tmp_path, catalog, trials_limit=3)
    asked = []

    def ends(workers, worker, numbers):
        if not asked:
            asked.append(numbers)
            return [*well(workers, worker, numbers[:1]), Event(worker, "renew", {"trial": numbers[1]})]
        return well(workers, worker, numbers)

    workers = Workers(search, ends)
    given = {"model": "large", "pipeline": "lora", "lora.start": "default"}
    search._loop(workers, lambda: search.study.ask(search.agenda.number(), given), 3)
    assert workers.sent == [[0, 1, 2], [1, 2]]
    assert sorted(search.trials.results) == [0, 1, 2]


def test_each_trial_is_told_to_stop_by_its_own_validations(tmp_path, catalog):
    search = engine(tmp_path, catalog, early_stopping="halving")
    given = {"model": "large", "pipeline": "lora", "lora.start": "default", "train.epochs": 4}
    asked = [search.study.ask(number, given) for number in range(3)]
    search.trials.running[0], search.trials.mates[0] = asked[0], asked[1:]
    answers = {}

    class Recorder:
        def send(self, worker, op, **body):
            answers[current] = body["stop"]

    for current, accuracy in ((0, 0.9), (1, 0.5), (2, 0.95)):
        point = {"samples": 10, "epoch": 1.0, "validation": {"accuracy": accuracy}, "validate_seconds": 0.01}
        search._handle(Recorder(), Event(0, "validation", {"trial": current, "point": point}), set())
    assert answers == {0: False, 1: True, 2: False}


def test_no_more_are_sent_than_the_time_allows(tmp_path, catalog, monkeypatch):
    search = engine(tmp_path, catalog, together=8)
    given = {"model": "large", "pipeline": "lora", "lora.start": "default", "train.epochs": 4}
    first = search.study.ask(0, given)
    search.trials.results[0] = trained(first)
    # One takes 100 rows, 4 epochs, .01 s a row: 4 s, 1 s for what follows, and what validations take.
    monkeypatch.setattr(search.agenda, "room", lambda: 12.0)
    config = search.study.ask(search.agenda.number(), given)
    group = search._with_mates(config, lambda: search.study.ask(search.agenda.number(), given))
    assert len(group) == 3


def test_trials_of_which_one_was_slow_teach_the_pace_of_one(tmp_path, catalog):
    search = engine(tmp_path, catalog)
    config = search.study.ask(0, {"model": "large", "pipeline": "lora", "lora.start": "default"})
    result = trained(config).model_copy(update={"seconds": {"train": 40.0, "total": 50.0}, "together": 4})
    search.pace.learn(result)
    assert search.pace.seconds_per_sample["large lora"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("peaks", "base", "limit", "count"),
    [
        ([30.0, 30.0, 30.0], 20.0, 100.0, 3),
        ([30.0, 30.0, 30.0], 20.0, 45.0, 2),
        ([30.0, 30.0], 20.0, 10.0, 1),
        ([30.0, None, 30.0], 20.0, 100.0, 1),
        ([None], 20.0, 100.0, 1),
        ([15.0, 15.0], 20.0, 15.0, 2),
    ],
)
def test_as_many_as_fit_into_the_memory_share_the_base(peaks, base, limit, count):
    assert fitting(peaks, base, limit) == count


def recipe_of(folder, model, **changes):
    rng = np.random.default_rng(0)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(120):
            good = rng.random() < 0.5
            words = [
                *rng.choice(["the", "film", "plot", "scene"], int(rng.integers(3, 9))),
                "great" if good else "dull",
            ]
            writer.writerow([" ".join(words), "positive" if good else "negative"])
    recipe = {
        "task": "text-classification",
        "model": str(model),
        "data": {"train": "rows.csv", "validation_size": 30, "test_size": 20},
        "budget": {"time": "20m", "trials": 4},
        "effort": "quick",
        "pipelines": ["lora"],
        "compress": ["none"],
        "space": {
            "train.epochs": [1, 3],
            "train.batch_size": [8, 16],
            "train.dropout": 0.0,
            "lora.dropout": 0.0,
            "lora.rank": [4, 16],
        },
        "search": {"finalist_seeds": 0, "sampler": "random", "early_stopping": "none", "portfolio": False},
        "executor": {"together": 3},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.slow
def test_a_search_trains_together_what_each_would_learn_alone(tmp_path, tiny_model):
    from autoft.api import search
    from autoft.rundir import read_run
    from autoft.shared_base import Cohort
    from autoft.trial import Callbacks, Workplace, run_trial

    folder = tmp_path / "run"
    search(recipe_of(tmp_path, tiny_model), run=folder)
    results = {result.number: result for result in read_run(folder).trials}
    assert [result.together for _, result in sorted(results.items())] == [1, 3, 3, 3]
    assert all(result.state == "complete" for result in results.values())
    place = Workplace.open(RunDir(folder))
    for number in (1, 2, 3):
        config = results[number].config.model_copy(update={"number": 10 + number})
        alone = run_trial(place, config, Callbacks())
        assert alone.together == 1
        found, expected = ([p.train_loss for p in one.curve] for one in (results[number], alone))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        assert results[number].validation == pytest.approx(alone.validation, abs=0.04)
    # One whose base is another is computed by itself, and waits for the other all the same: its seconds are those of both.
    config = results[1].config
    other = config.model_copy(update={"number": 22, "params": {**config.params, "lora.start": "olora"}})
    pair = [config.model_copy(update={"number": 21}), other]
    found = Cohort().run([lambda seat, one=one: run_trial(place, one, Callbacks(), None, seat) for one in pair])
    assert [(one.reason or "").startswith("computed by itself") for one in found] == [False, True], found
    assert [one.together for one in found] == [2, 2]


def planned(tmp_path, tiny_model, **changes):
    path = recipe_of(tmp_path, tiny_model, **changes)
    hardware = Hardware("cpu", 2, 2**33, (), "test", False, "Linux x86_64")
    return make_plan(recipe_from_mapping(yaml.safe_load(path.read_text())), load_plugins(), hardware)


def test_on_a_cpu_trials_train_together_only_where_the_recipe_says_so(tmp_path, tiny_model):
    assert planned(tmp_path, tiny_model).together == 3
    assert planned(tmp_path, tiny_model, executor={"device": "cpu"}).together == 1
    assert planned(tmp_path, tiny_model, executor={"device": "cpu", "together": "auto"}).together == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"executor": {"together": 0}}, "at least 1"),
        ({"budget": {"time": "5m", "train_memory": "8GB"}}, "share their memory"),
    ],
)
def test_what_cannot_be_is_told(tmp_path, tiny_model, changes, message):
    with pytest.raises(RecipeError, match=message):
        planned(tmp_path, tiny_model, **changes)
