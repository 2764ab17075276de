from __future__ import annotations

import json
import math
import random
import shutil
import sys
import time
from types import SimpleNamespace

import pytest

from autoft.checkpoints import Checkpoints
from autoft.data.prepared import rows_decided
from autoft.errors import RunFolderError, SearchFailed
from autoft.exchange import Elsewhere, Exchange
from autoft.executors import Event
from autoft.hardware import Hardware
from autoft.listener import Listener
from autoft.measures import Latency
from autoft.pace import STARTUP_SECONDS, TAUGHT, TRIAL_OVERHEAD_SECONDS, Pace
from autoft.plans.plan import BudgetLimit, ModelPlan, PipelinePlan, Plan, Setting, StepPlan, VariantPlan, epochs_again
from autoft.portfolio import configuration, published_chains
from autoft.rundir import CurvePoint, RunDir, TrialConfig, TrialResult, VariantResult
from autoft.search import Interruption, Search
from autoft.selection import best_trials, select, weights_to_keep
from autoft.space import Categorical, Float, Int, domain_to_json
from autoft.study import Study


def make_plan(sampler="tpe", early_stopping="halving", **changes) -> Plan:
    space = {
        "model": Categorical(("large", "small")),
        "pipeline": Categorical(("full", "lora")),
        "augment": Categorical(("none",)),
        "train.epochs": Int(1, 4, 3),
        "train.batch_size": Categorical((16,)),
        "full.learning_rate": Float(1e-6, 1e-3, 1e-5, log=True),
        "lora.learning_rate": Float(1e-4, 1e-2, 1e-3, log=True),
        "lora.rank": Int(4, 64, 16, log=True),
    }
    values = {
        "space": {name: domain_to_json(domain) for name, domain in space.items()},
        "models": [
            ModelPlan(name="large", path="", config={}, size_bytes=90),
            ModelPlan(name="small", path="", config={}, size_bytes=10),
        ],
        "pipelines": [
            PipelinePlan(name="full", quantizer=None, adapter="full"),
            PipelinePlan(name="lora", quantizer=None, adapter="lora"),
        ],
        "variants": [VariantPlan(name="none", chain=[])],
        "objective": "accuracy",
        "objectives": ["accuracy"],
        "metrics": {"accuracy": {"higher_is_better": True}},
        "budget": [],
        "sampler": sampler,
        "early_stopping": early_stopping,
        "seed": 3,
        "task": "text-classification",
        "trials_limit": None,
        "time_limit": 1000.0,
        "finalist_seeds": 0,
        "tolerance": 0.0,
        "data": {"sizes": {"train": 1000, "validation": 400, "test": 400}},
        "facts": {},
        "device": "cpu",
        "hardware": Hardware("cpu", 2, 2**33, (), "test", False, "Linux x86_64").to_json(),
        "trust_remote_code": False,
    }
    return Plan.model_construct(**{**values, **changes})


def done(config: TrialConfig, accuracy: float, state="complete") -> TrialResult:
    variant = VariantResult(name="none", state="complete", validation={"accuracy": accuracy}, costs={})
    point = CurvePoint(samples=10, epoch=1, seconds=1, train_loss=1, learning_rate=1, validation={"accuracy": accuracy})
    return TrialResult(
        number=config.number,
        state=state,
        config=config,
        curve=[point],
        validation={"accuracy": accuracy},
        variants=[variant] if state == "complete" else [],
        violations={"memory": 1.0} if state == "infeasible" else {},
    )


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "nsga2", "random", "grid", "qmc"])
def test_every_sampler_proposes_configurations_of_the_space(sampler):
    plan = make_plan(sampler)
    study = Study(plan)
    for number in range(14):
        config = study.ask(number)
        assert set(config.params) == set(plan.parameters(config.pipeline, "none"))
        assert all(plan.domain(name).contains(value) for name, value in config.params.items())
        study.tell(done(config, 0.5 + number / 100), [0.5 + number / 100])


def test_what_each_trial_of_a_model_trains_again_is_counted_before_one_was_seen():
    pruned = StepPlan(strategy="layer-pruning", params={"keep": 0.5, "epochs": 5})
    smaller = VariantPlan(name="layer-pruning", chain=[pruned], trains=True, models=["large"])
    plan = make_plan(variants=[VariantPlan(name="none", chain=[]), smaller])
    pace, config = Pace(plan, {}), plan.default_config()
    pace.seconds_per_sample = {"large": 0.04, "small": 0.01}
    without = Pace(make_plan(), {})
    without.seconds_per_sample = pace.seconds_per_sample
    assert config.model == "large"
    # Five epochs over 1,000 rows.
    assert pace.once(config) - without.once(config) == pytest.approx(5 * 1000 * 0.04)
    other = config.model_copy(update={"model": "small"})
    assert pace.once(other) == without.once(other)
    # What was seen is known.
    pace.overhead["large"] = 90.0
    assert pace.once(config) - without.once(config) == pytest.approx(90.0 - TRIAL_OVERHEAD_SECONDS)


def test_a_configuration_has_only_the_parameters_of_its_pipeline():
    study = Study(make_plan("random"))
    proposals = [study.ask(number) for number in range(30)]
    assert {"lora.rank" in proposal.params for proposal in proposals} == {True, False}
    for proposal in proposals:
        assert ("lora.rank" in proposal.params) == (proposal.pipeline == "lora")


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_a_seed_repeats_the_search(sampler):
    def run() -> list[dict]:
        study, asked = Study(make_plan(sampler)), []
        for number in range(12):
            config = study.ask(number)
            asked.append(config.model_dump())
            value = 1.0 / (1 + abs(config.params["train.epochs"] - 2))
            study.tell(done(config, value), [value])
        return asked

    assert run() == run()


def test_what_did_well_elsewhere_is_moved_into_the_space():
    plan = make_plan()
    found = configuration(
        plan,
        Setting(
            pipeline="lora",
            model="large",
            params={
                "lora.rank": 512,
                "lora.learning_rate": 3e-3,
                "train.epochs": 0,
                "augment": "swap",
                "fgm.epsilon": 1.0,
            },
        ),
    )
    assert found.model == "large"
    assert found.params == {
        "augment": "none",
        "train.epochs": 1,
        "train.batch_size": 16,
        "lora.learning_rate": 3e-3,
        "lora.rank": 64,
    }
    # A model that this plan does not have is its first one; a pipeline that it does not have cannot be tried.
    assert configuration(plan, Setting(pipeline="full", model="huge", params={})).model == "large"
    assert configuration(plan, Setting(pipeline="nf4+lora", params={})) is None
    assert configuration(make_plan(illegal=[("large", "lora", "why")]), Setting(pipeline="lora", params={})) is None


def test_what_did_well_elsewhere_comes_after_the_default_and_once(tmp_path, catalog):
    plan = make_plan()
    rate = {"full.learning_rate": 3e-4}
    known = [
        Setting(pipeline="full", params=plan.default_params("full")),
        Setting(pipeline="full", params=rate),
        Setting(pipeline="full", params=rate, model="elsewhere"),
        Setting(pipeline="full", params=rate, model="small"),
    ]
    search = Search(
        RunDir(tmp_path), make_plan(known=known), catalog, Listener(), Interruption(), started=time.monotonic()
    )
    kinds = [(config.kind, config.model, config.params["full.learning_rate"]) for config in search.agenda.queue[:3]]
    assert kinds == [("default", "large", 1e-5), ("known", "large", 3e-4), ("known", "small", 3e-4)]


def test_the_grid_ends():
    plan = make_plan("grid")
    study = Study(plan)
    count = 0
    while (config := study.ask(count)) is not None:
        study.tell(done(config, 0.5), [0.5])
        count += 1
        assert count < 1000
    # 2 models; the full pipeline has 3 epochs x 3 rates, lora 3 ranks more.
    assert count == 2 * (3 * 3 + 3 * 3 * 3)


def regularized(sampler="tpe", **changes) -> Plan:
    """The plan with regularizers, one of which needs all weights."""
    plan = make_plan(sampler, unsuited=[("lora", "mixout", "needs all weights")], **changes)
    further = {
        "regularize": Categorical(("none", "ema", "mixout")),
        "ema.decay": Categorical((0.9, 0.99)),
        "mixout.p": Categorical((0.5, 0.7, 0.9)),
    }
    plan.space.update({name: domain_to_json(domain) for name, domain in further.items()})
    return plan


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_configuration_has_the_parameters_of_its_regularizers_alone(sampler):
    study, seen = Study(regularized(sampler)), set()
    for number in range(20):
        config = study.ask(number)
        chain = config.params["regularize"]
        seen.add(chain)
        own = {name.split(".")[0] for name in config.params} & {"ema", "mixout"}
        assert own == ({chain} - {"none"})
        study.tell(done(config, 0.5), [0.5])
    assert seen == {"none", "ema", "mixout"}


def test_the_grid_leaves_out_regularizers_that_do_not_suit_the_pipeline():
    plan = regularized("grid")
    for name in ("full.learning_rate", "lora.learning_rate", "lora.rank", "train.epochs"):
        plan.space[name] = domain_to_json(Categorical((plan.domain(name).default,)))
    study, found = Study(plan), []
    while (config := study.ask(len(found))) is not None:
        found.append((config.model, config.pipeline, config.params["regularize"]))
    # Of each of two models: none, ema with 2 values, mixout with 3 for full alone.
    assert len(found) == 2 * ((1 + 2 + 3) + (1 + 2))
    assert ("large", "lora", "mixout") not in found


def test_what_does_not_suit_is_told_to_the_sampler_and_another_configuration_is_asked_for(tmp_path, catalog):
    plan = regularized()
    search = engine(tmp_path, catalog, space=plan.space, unsuited=plan.unsuited)
    default = search.plan.default_config()
    bad = default.model_copy(update={"pipeline": "lora", "params": {**default.params, "regularize": "mixout"}})
    assert search.agenda.illegal(bad) == "needs all weights"
    assert search.agenda.illegal(bad.model_copy(update={"pipeline": "full"})) is None


def test_a_training_with_regularizers_has_a_pace_of_its_own(tmp_path, catalog):
    search = engine(tmp_path, catalog)
    plan = search.plan
    plain = plan.default_config()
    costly = plain.model_copy(update={"params": {**plain.params, "regularize": "r-drop"}})
    # 3,000 samples at 0.1 s; what nobody has tried yet is taken to double a step.
    assert search.pace.once(plain) == pytest.approx(310.0)
    assert search.pace.once(costly) == pytest.approx(610.0)
    result = done(costly, 0.5)
    result.seconds = {"train": 3.0, "total": 13.0}
    search.pace.learn(result)
    assert search.pace.once(costly) == pytest.approx(3000 * 0.3 + 10.0)
    assert search.pace.once(plain) == pytest.approx(310.0)


def test_tpe_learns_to_avoid_what_does_not_fit():
    study = Study(make_plan())
    proposals = []
    for number in range(60):
        config = study.ask(number)
        proposals.append(config.model)
        if config.model == "large":
            study.tell(done(config, 0.9, "infeasible"), None)
        else:
            study.tell(done(config, 0.7), [0.7])
    assert proposals[30:].count("small") > 20


def config(number, model, kind="search") -> TrialConfig:
    return TrialConfig(
        number=number,
        kind=kind,
        model=model,
        pipeline="full",
        params={"augment": "none", "train.epochs": 3, "full.learning_rate": 1e-5},
        seed=3,
        parent=0 if kind == "seed" else None,
    )


def test_a_trial_behind_those_of_its_model_stops_and_a_better_one_does_not():
    study = Study(make_plan())
    for number, value in enumerate([0.80, 0.82, 0.84]):
        study.behind(config(number, "large"), 0.75, value)
    assert study.behind(config(3, "large"), 0.75, 0.60)
    assert not study.behind(config(4, "large"), 0.75, 0.90)


def test_a_difference_that_may_be_chance_stops_nobody():
    study = Study(make_plan())
    for number, value in enumerate([0.80, 0.82, 0.84]):
        study.behind(config(number, "large"), 0.75, value)
    # Half the standard error of .83 on 400 rows is .009.
    assert not study.behind(config(3, "large"), 0.75, 0.835)
    assert study.behind(config(4, "large"), 0.75, 0.815)


def test_trials_are_compared_after_as_much_of_their_own_training():
    study = Study(make_plan())

    def trial(number, epochs):
        one = config(number, "large")
        return one.model_copy(update={"params": {**one.params, "train.epochs": epochs}})

    # Three short ones, far after one epoch of two, are no measure for one of eight after its first.
    for number, value in enumerate([0.80, 0.82, 0.84]):
        assert not study.behind(trial(number, 2), 0.5, value - 0.2)
        study.behind(trial(number, 2), 1.0, value)
    assert not study.behind(trial(3, 8), 1.0, 0.50)
    assert not study.behind(trial(3, 8), 2.0, 0.65)
    assert study.behind(trial(3, 8), 4.0, 0.70)
    # What counts is the best so far, and before the first quarter nothing is compared.
    assert not study.behind(trial(4, 8), 1.0, 0.85)
    assert not study.behind(trial(4, 8), 2.0, 0.30)
    assert not study.behind(trial(4, 8), 4.0, 0.30)
    # A training that came to its end is kept.
    assert not study.behind(trial(5, 1), 1.0, 0.10)


def test_the_default_and_further_seeds_never_stop_early():
    study = Study(make_plan())
    for number, value in enumerate([0.80, 0.82, 0.84]):
        study.behind(config(number, "large"), 0.75, value)
    assert not study.behind(config(3, "large", "default"), 0.75, 0.10)
    assert not study.behind(config(4, "large", "seed"), 0.75, 0.10)


def test_a_small_model_is_not_stopped_for_being_worse_than_a_large_one_but_the_other_way_round():
    study = Study(make_plan())
    for number, value in enumerate([0.80, 0.82, 0.84]):
        study.behind(config(number, "large"), 0.75, value)
    assert not study.behind(config(3, "small"), 0.75, 0.60)
    study = Study(make_plan())
    for number, value in enumerate([0.80, 0.82, 0.84]):
        study.behind(config(number, "small"), 0.75, value)
    assert study.behind(config(3, "large"), 0.75, 0.60)


@pytest.mark.parametrize("early_stopping", ["halving", "hyperband", "median", "none"])
def test_every_kind_of_early_stopping_judges(early_stopping):
    study = Study(make_plan(early_stopping=early_stopping))
    stopped = []
    for number in range(12):
        value = 0.9 if number < 6 else 0.1
        trial = config(number, "large")
        judged = [study.behind(trial, epoch / 2, value - epoch / 1000) for epoch in range(1, 7)]
        behind = any(judged)
        stopped.append(behind)
        study.tell(done(trial, value, "pruned" if behind else "complete"), None)
    assert any(stopped[6:]) == (early_stopping != "none")


def test_trials_that_turned_out_infeasible_no_longer_stop_others():
    study = Study(make_plan())
    results = [done(config(number, "large"), value) for number, value in enumerate([0.80, 0.82, 0.84])]
    for result in results:
        study.behind(result.config, 1.0, result.validation["accuracy"])
    assert study.behind(config(3, "large"), 1.0, 0.60)
    for result in results:
        study.withdraw(result.number)
    assert not study.behind(config(4, "large"), 1.0, 0.60)


def test_a_trial_that_is_entered_later_is_the_one_that_was_asked_for_and_told():
    plan = make_plan(budget=[BudgetLimit(key="model_size", column="model_size_bytes", limit=50.0, given="50B")])
    live, later = Study(plan), Study(plan)
    for number, (state, values) in enumerate(
        [("complete", [0.8]), ("complete", None), ("pruned", None), ("infeasible", None), ("failed", None)]
    ):
        proposal = live.ask(number)
        result = done(proposal, 0.8, state)
        for point in result.curve:
            live.behind(proposal, point.epoch, point.validation["accuracy"])
        live.tell(result, values)
        later.replay(result, values)
    for one, other in zip(live.study.trials, later.study.trials, strict=True):
        assert (one.state, one.values, one.params) == (other.state, other.values, other.params)
        assert (one.distributions, one.constraints) == (other.distributions, other.constraints)
        assert one.intermediate_values == other.intermediate_values
    told, entered = ([t.state for t in study.stopping["large"].trials] for study in (live, later))
    assert entered == told[: len(entered)]
    assert [t.constraints for t in later.study.trials][3] == {"model_size": 0.0, "memory": 1.0}


@pytest.mark.parametrize("early_stopping", ["halving", "hyperband", "median"])
def test_what_is_withdrawn_from_the_early_stopping_leaves_no_trace(early_stopping):
    rng = random.Random(0)
    plan = make_plan(early_stopping=early_stopping)
    with_it, without = Study(plan), Study(plan)
    judged: dict[str, list[bool]] = {"with": [], "without": []}
    for number in range(30):
        model, value = rng.choice(["large", "small"]), rng.uniform(0.3, 0.9)
        steps = [(epoch, value + epoch / 100) for epoch in (0.75, 1.5, 2.25, 3.0)]
        if number % 5 == 4 and early_stopping != "hyperband":
            # Hyperband deals out its brackets by number, so that it cannot be compared beyond the last trial.
            odd = config(1000 + number, model)
            for epoch, _ in steps:
                with_it.behind(odd, epoch, 0.99)
            with_it.tell(done(odd, 0.99, "infeasible"), None)
            with_it.withdraw(odd.number)
        for name, study in (("with", with_it), ("without", without)):
            trial = config(number, model)
            judged[name] += [study.behind(trial, *step) for step in steps]
            study.tell(done(trial, value), None)
    assert judged["with"] == judged["without"]
    assert any(judged["with"])
    assert with_it.best_at == without.best_at


def test_a_trial_that_is_begun_again_is_compared_by_what_it_comes_to_then(tmp_path, catalog):
    """A worker was lost after the third quarter: the first one is not worth what the third was."""
    search = engine(tmp_path, catalog)
    default = search.plan.default_config()
    again, other = (default.model_copy(update={"number": number, "kind": "search"}) for number in (1, 2))
    executor = SimpleNamespace(send=lambda *args, **body: None, start=lambda worker: None, stop=lambda worker: None)
    search._send(executor, 0, again)
    for quarter, value in ((0.75, 0.60), (1.5, 0.70), (2.25, 0.90)):
        search.study.behind(again, quarter, value)
    lost = {"reason": "its machine was lost", "code": None, "hung": False, "machine_lost": True}
    search._handle(executor, Event(0, "lost", lost), set())
    search._send(executor, 0, search.trials.aside[0])
    assert not search.study.behind(again, 0.75, 0.60)
    assert search.study.best_at["large", 1] == 0.60
    # As good as the one before it at the same point.
    assert not search.study.behind(other, 0.75, 0.60)


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "nsga2", "qmc"])
def test_a_sampler_that_is_shown_some_of_the_trials_proposes_on(sampler, monkeypatch):
    monkeypatch.setattr("autoft.study.BEST_SHOWN", 4)
    monkeypatch.setattr("autoft.study.NEWEST_SHOWN", 8)
    plan = make_plan(sampler)
    study = Study(plan)
    for number in range(40):
        proposal = study.ask(number)
        assert all(plan.domain(name).contains(value) for name, value in proposal.params.items())
        study.tell(done(proposal, 0.5 + number / 100), [0.5 + number / 100])
    assert len(study.study.get_trials(deepcopy=False)) <= 13


def test_of_very_many_trials_of_an_earlier_call_those_are_entered_that_a_sampler_is_shown(monkeypatch):
    monkeypatch.setattr("autoft.study.BEST_SHOWN", 4)
    monkeypatch.setattr("autoft.study.NEWEST_SHOWN", 8)
    rng = random.Random(0)
    one_by_one, at_once = Study(make_plan()), Study(make_plan())
    trials = []
    for number in range(60):
        value, state = rng.uniform(0.3, 0.9), rng.choice(["complete", "complete", "pruned", "failed"])
        trials.append((done(config(number, "large"), value, state), [value] if state == "complete" else None))
    for result, values in trials:
        one_by_one.replay(result, values)
    at_once.replay_all(trials)

    def shown(study):
        return [(trial.state, trial.values) for trial in study.study.get_trials(deepcopy=False)]

    assert shown(at_once) == shown(one_by_one)
    assert at_once.study.get_trials(deepcopy=False)[-1].number < 20
    assert at_once.best_at == one_by_one.best_at
    few = Study(make_plan())
    few.replay_all(trials[:12])
    assert len(few.study.trials) == 12


def test_trials_of_an_earlier_call_are_known_to_the_sampler_and_the_early_stopping():
    study = Study(make_plan())
    for number, value in enumerate([0.80, 0.82, 0.84]):
        study.replay(done(config(number, "large"), value), [value])
    assert len(study.study.trials) == 3
    assert study.study.best_value == pytest.approx(0.84)
    assert study.behind(config(3, "large"), 1.0, 0.60)


def test_importance_needs_enough_trials_and_finds_the_parameter_that_matters():
    study = Study(make_plan("random"))
    assert study.importance() == {}
    for number in range(60):
        trial = study.ask(number)
        value = 0.9 if trial.model == "large" else 0.3
        value += number / 1e5
        study.tell(done(trial, value), [value])
    shares = study.importance()
    assert max(shares, key=shares.get) == "model"


def engine(tmp_path, catalog, **changes) -> Search:
    run = RunDir(tmp_path)
    run.create()
    plan = make_plan(**{"illegal": [], "time_limit": 1000.0, "workers": 1, "options": {}, **changes})
    engine = Search(run, plan, catalog, Listener(), Interruption(), started=time.monotonic())
    # One second a step of training for the large model, and a tenth of it for the small one.
    engine.pace.seconds_per_sample = {"large": 0.1, "small": 0.01}
    engine.pace.validate_per_row = {"large": 0.0, "small": 0.0}
    engine.pace.overhead = {"large": 10.0, "small": 10.0}
    engine.agenda.queue = []
    return engine


def untimed(result: TrialResult) -> TrialResult:
    return result.model_copy(update={"curve": []})


class Others(Exchange):
    """Other searches, as a study in a database tells of them."""

    def __init__(self, done: list[TrialResult], going: list[TrialConfig] | None = None) -> None:
        self.unheard = [Elsewhere(one, [one.validation["accuracy"]]) for one in done]
        self.at = going or []
        self.told: list = []

    def started(self, config):
        self.told.append(("started", config.number))

    def ended(self, result, values):
        self.told.append(("ended", result.number, values))

    def taken_back(self, number):
        self.told.append(("taken back", number))

    def news(self):
        found, self.unheard = self.unheard, []
        return found

    def going(self):
        return self.at


def elsewhere(config: TrialConfig, accuracy: float, number: int = -1) -> TrialResult:
    found = untimed(done(config.model_copy(update={"number": number}), accuracy))
    return found.model_copy(update={"variants": []})


def test_what_others_have_done_or_are_at_is_not_tried_again_and_known_to_the_sampler(tmp_path, catalog):
    search = engine(tmp_path, catalog, sampler="grid")
    everything = []
    other = Study(search.plan)
    while (config := other.ask(len(everything))) is not None:
        everything.append(config)
        other.forget(config.number)
    free, at, *done_elsewhere = everything
    search.exchange = search.agenda.exchange = Others(
        [elsewhere(one, 0.5, -1 - n) for n, one in enumerate(done_elsewhere)], [at]
    )
    search.agenda.queue = [
        done_elsewhere[0].model_copy(update={"kind": "published"}),
        at.model_copy(update={"kind": "known"}),
    ]
    proposal = search.agenda.next()
    assert (proposal.model, proposal.pipeline, proposal.params) == (free.model, free.pipeline, free.params)
    assert proposal.number == 0, "the numbers are those of this search alone"
    assert (search.trials.counted(), len(done_elsewhere) > 60) == (0, True)
    states = [trial.state.name for trial in search.study.study.trials]
    assert (states.count("COMPLETE"), states.count("RUNNING")) == (len(done_elsewhere), 2)
    # What another one was at and has done is asked about no more; nothing is left.
    search.exchange.at = []
    search.exchange.unheard = [Elsewhere(elsewhere(at, 0.6, -999), [0.6])]
    assert search.agenda.next() is None
    assert search.ended == "every configuration of the space has been tried"
    states = [trial.state.name for trial in search.study.study.trials]
    assert (states.count("COMPLETE"), states.count("RUNNING")) == (len(everything) - 1, 1)


def test_a_trial_is_behind_those_of_other_searches_too(tmp_path, catalog):
    search = engine(tmp_path, catalog)
    search.exchange = search.agenda.exchange = Others([])
    values = [0.80, 0.82, 0.84]
    theirs = [done(config(-1 - n, "large"), value) for n, value in enumerate(values)]
    theirs = [r.model_copy(update={"config": r.config.model_copy(update={"seed": n})}) for n, r in enumerate(theirs)]
    search.exchange.unheard = [Elsewhere(one, [one.validation["accuracy"]]) for one in theirs]
    search.agenda._bring_in()
    assert search.study.behind(config(3, "large"), 1.0, 0.60)
    # Begun anew, as after a trial that did not fit, it still knows them.
    own = untimed(done(config(7, "small"), 0.5, "infeasible"))
    search.study.fixed(own.config, 7)
    search._finish(own)
    assert search.study.behind(config(4, "large"), 1.0, 0.60)


def test_others_are_told_of_each_trial_that_the_sampler_knows(tmp_path, catalog):
    search = engine(tmp_path, catalog)
    search.exchange = search.agenda.exchange = Others([])
    first = search.study.fixed(search.plan.default_config(), 0)
    search._finish(untimed(done(first, 0.9)))
    again = first.model_copy(update={"number": 1, "kind": "seed", "parent": 0, "seed": 4})
    search._finish(untimed(done(again, 0.8)))
    assert search.exchange.told == [("ended", 0, [0.9])]
    heard = Others([])
    Search(search.run, search.plan, catalog, Listener(), Interruption(), started=time.monotonic(), exchange=heard)
    assert heard.told == []
    search.run.write_result(search.trials.results[0])
    Search(search.run, search.plan, catalog, Listener(), Interruption(), started=time.monotonic(), exchange=heard)
    assert heard.told == [("ended", 0, [0.9])]


def test_a_grid_that_goes_on_passes_over_what_is_done(tmp_path, catalog):
    search = engine(tmp_path, catalog, sampler="grid")
    for number in range(70):
        proposal = search.study.ask(number)
        search._finish(untimed(done(proposal, 0.5)))
        search.run.write_result(search.trials.results[number])
    again = engine(tmp_path, catalog, sampler="grid")
    proposal = again.agenda.next()
    assert proposal is not None, again.ended
    assert again.trials.known(proposal) is None
    assert proposal.number == 70


def test_what_the_sampler_is_asked_for_fits_into_the_time_left(tmp_path, catalog):
    search = engine(tmp_path, catalog)
    search._finish(untimed(done(search.study.fixed(search.plan.default_config(), 0), 0.9)))
    # The large model is the better one; 1,000 rows take it 100 s an epoch.
    assert [(c["model"], c["train.epochs"]) for c in search.agenda._affordable(250.0)] == [("large", 2), ("large", 2)]
    assert [(c["model"], c["train.epochs"]) for c in search.agenda._affordable(105.0)] == [("small", 4), ("small", 4)]
    assert search.agenda._affordable(15.0) == []


def test_a_value_that_an_adapter_refuses_over_its_base_is_proposed_to_nobody(tmp_path, catalog):
    pipelines = [
        PipelinePlan(name="full", quantizer=None, adapter="full"),
        PipelinePlan(name="lora", quantizer=None, adapter="lora"),
        PipelinePlan(name="nf4+lora", quantizer="nf4", adapter="lora"),
    ]
    models = [ModelPlan(name="small", path="", config={"model_type": "bert"}, size_bytes=10)]
    space = {
        "model": Categorical(("small",)),
        "pipeline": Categorical(("full", "lora", "nf4+lora")),
        "augment": Categorical(("none",)),
        "train.epochs": Categorical((1,)),
        "train.batch_size": Categorical((16,)),
        "full.learning_rate": Categorical((1e-4,)),
        "lora.learning_rate": Float(1e-4, 1e-2, 1e-3, log=True),
        "lora.start": Categorical(("default", "pissa")),
    }
    json_space = {name: domain_to_json(domain) for name, domain in space.items()}
    search = engine(tmp_path, catalog, pipelines=pipelines, models=models, space=json_space, sampler="random")
    proposed = set()
    for number in range(40):
        config = search.agenda.next()
        if config is None:
            break
        proposed.add((config.pipeline, config.params.get("lora.start")))
        search._finish(untimed(done(config, 0.5 + number / 1000)))
    assert {("lora", "default"), ("lora", "pissa"), ("nf4+lora", "default")} <= proposed
    assert ("nf4+lora", "pissa") not in proposed


def test_a_long_search_leaves_time_for_further_seeds_of_its_finalists_and_a_short_one_does_not(tmp_path, catalog):
    search = engine(tmp_path, catalog, finalist_seeds=2)
    search.plan.time_limit = 10_000.0
    default = search.plan.default_config()
    better = default.model_copy(update={"number": 1, "kind": "search", "model": "small"})
    for config, accuracy in ((default, 0.8), (better, 0.9)):
        result = untimed(done(search.study.fixed(config, config.number), accuracy))
        result.variants[0].folder = "somewhere"
        search.trials.results[config.number] = result
    # Three epochs of 1,000 rows: 310 s of the large default, 40 s of the small model; two seeds of both take 700 s.
    room = search.seconds_left() - search.reserve()
    assert [(c.parent, c.seed) for c in search.follow_ups.finalists()] == [(1, 4), (0, 4), (1, 5), (0, 5)]
    assert room - search.agenda.room() == pytest.approx(700.0, abs=1.0)
    # A fifth of 2,000 s holds one further seed of each, a fifth of 1,000 s holds none.
    for limit, seconds in ((2000.0, 350.0), (1000.0, 0.0)):
        search.plan.time_limit = limit
        room = search.seconds_left() - search.reserve()
        assert room - search.agenda.room() == pytest.approx(seconds, abs=1.0)


def test_a_training_that_the_time_cut_short_gets_no_further_seeds(tmp_path, catalog):
    search = engine(tmp_path, catalog, finalist_seeds=2, time_limit=10_000.0)
    default = search.plan.default_config()
    better = default.model_copy(update={"number": 1, "kind": "search", "model": "small"})
    for config, accuracy in ((default, 0.8), (better, 0.9)):
        result = untimed(done(config, accuracy))
        result.variants[0].folder = "somewhere"
        search.trials.results[config.number] = result
    assert [c.parent for c in search.follow_ups.finalists()] == [1, 0, 1, 0]
    # One of its three epochs.
    search.trials.results[0].curve = done(default, 0.8).curve
    assert search.follow_ups.finalists() == []


def test_the_first_regularizers_and_augmenters_are_tried_as_published(tmp_path, catalog):
    plan = make_plan(unsuited=[("full", "pgd", "for the test")])
    further = {
        "regularize": Categorical(("none", "pgd", "r-drop", "ema")),
        "r-drop.weight": Float(0.1, 10.0, 2.0),
        "pgd.epsilon": Float(0.01, 1.0, 0.1),
        "ema.decay": Float(0.9, 0.999, 0.99),
        "augment": Categorical(("none", "word-order")),
        "word-order.rate": Float(0.05, 0.5, 0.4),
        "word-order.kind": Categorical(("reverse", "shuffle")),
    }
    space = {**plan.space, **{name: domain_to_json(domain) for name, domain in further.items()}}
    search = engine(tmp_path, catalog, space=space, unsuited=plan.unsuited)
    default = search.plan.default_config()
    chains = published_chains(search.plan, catalog)
    assert {chain.kind for chain in chains} == {"published"}
    changed = [{n: v for n, v in chain.params.items() if default.params.get(n) != v} for chain in chains]
    # The first two of each, but what does not go with the default's pipeline.
    assert changed == [
        {"augment": "word-order", "word-order.rate": 0.15, "word-order.kind": "shuffle"},
        {"regularize": "r-drop", "r-drop.weight": 1.0},
    ]


@pytest.mark.parametrize(("configurations", "queued"), [(3, 0), (5, 0), (6, 1), (8, 2), (40, 2)])
def test_published_chains_leave_the_sampler_half_of_the_trials(tmp_path, catalog, configurations, queued):
    plan = make_plan()
    further = {"regularize": Categorical(("none", "ema", "swa")), "ema.decay": Categorical((0.99,))}
    further["swa.start"] = Categorical((0.75,))
    space = {**plan.space, **{name: domain_to_json(domain) for name, domain in further.items()}}
    search = engine(tmp_path, catalog, space=space)
    search.agenda.queue = [search.plan.default_config()] * 2
    search.agenda.queue_chains(configurations)
    assert len(search.agenda.queue) == 2 + queued


@pytest.mark.parametrize(
    ("leaves", "changes", "alike"),
    [
        ("dense", {"lora.rank": 64, "lora.learning_rate": 1e-2}, True),
        ("dense", {"train.max_length": 64}, False),
        ("dense", {"task.beams": 4}, False),
        ("adapted", {"lora.learning_rate": 1e-2}, True),
        ("adapted", {"lora.rank": 64}, False),
    ],
)
def test_only_models_that_cost_the_same_are_passed_over_for_a_better_one(tmp_path, catalog, leaves, changes, alike):
    """What is merged costs what the base does; what is not is served beside it, as virtual tokens are."""
    pipelines = [
        PipelinePlan(name="full", quantizer=None, adapter="full"),
        PipelinePlan(name="lora", quantizer=None, adapter="lora", leaves=leaves),
    ]
    search = engine(tmp_path, catalog, pipelines=pipelines, ensemble=0)
    params = {"lora.rank": 16, "lora.learning_rate": 1e-3, "train.max_length": 128, "task.beams": 1}
    default = search.plan.default_config()
    better = default.model_copy(update={"number": 1, "kind": "search", "pipeline": "lora", "params": params})
    search.trials.add(done(better, 0.9))
    assert search.trials.reached(better.model_copy(update={"number": 2})) == {"none": 0.9}
    other = better.model_copy(update={"number": 2, "params": {**params, **changes}})
    assert search.trials.reached(other) == ({"none": 0.9} if alike else {})


def test_of_variants_that_train_again_those_are_made_that_the_time_allows(tmp_path, catalog):
    steps = {name: StepPlan(strategy=name, params={"epochs": 2}) for name in ("layer-pruning", "ffn-pruning")}
    chains = {"a": ["layer-pruning"], "b": ["layer-pruning", "ffn-pruning"], "c": ["ffn-pruning"]}
    variants = [VariantPlan(name="none", chain=[])]
    variants += [VariantPlan(name=n, chain=[steps[s] for s in chain], trains=True) for n, chain in chains.items()]
    # What begins alike is trained once: two epochs of a's, two more for b, two for c.
    assert [epochs_again(variants[:count]) for count in (1, 2, 3, 4)] == [0, 2, 4, 6]
    assert epochs_again(variants[2:3], variants[1].beginnings) == 2
    search = engine(tmp_path, catalog, variants=variants)
    assert search.plan.at_once == 3
    result = done(search.study.fixed(search.plan.default_config(), 0), 0.9)
    # An epoch took 10 s; a quick variant 1 s, as a chain's own and each of its beginnings will.
    result.variants[0].folder, result.variants[0].seconds, result.seconds["train"] = "somewhere", 1.0, 10.0
    search.trials.results[0] = result
    # Two begin otherwise, and are traced; three beginnings are measured.
    whole = TAUGHT * 10 * 6 + 2 + 3
    for room, names in ((whole, ["a", "b", "c"]), (whole - 1, ["a", "b"]), (TAUGHT * 20 + 2, ["a"])):
        assert search.follow_ups._to_compress(room).variants == names
    assert search.follow_ups._to_compress(whole, 1).variants == ["a"]
    assert search.follow_ups._to_compress(TAUGHT * 20) is None
    search.plan.folds = 5
    assert search.follow_ups._to_compress(whole) is None, "it would be of one fold, and no candidate"
    search.plan.folds = 1
    # One that takes too long does not keep out those behind it.
    search.plan.variants = [variants[2], variants[1], variants[3]]
    assert search.follow_ups._to_compress(TAUGHT * 20 + 2).variants == ["a"]
    search.plan.variants = variants
    # The search keeps a half for the first, and no more than a quarter for several: here 83 s are all.
    for limit, kept in ((4 * whole, whole), (2 * whole, TAUGHT * 20 + 2), (TAUGHT * 30, 0.0)):
        search.plan.time_limit = limit
        assert search.seconds_left() - search.reserve() - search.agenda.room() == pytest.approx(kept, abs=0.5)
    # Finalists and averages leave that alone.
    search.plan.time_limit = 4 * whole
    assert search.follow_ups._kept_for_compression() == pytest.approx(whole)
    # Nothing before a second known-good configuration had its turn.
    search.agenda.queue = [search.plan.default_config()]
    assert search.seconds_left() - search.reserve() - search.agenda.room() == pytest.approx(0.0, abs=0.5)
    # Where a worker is lost over several, each is tried by itself, and what a worker is lost over alone is left.
    for number, names in ((1, ["a", "b", "c"]), (2, ["a"]), (3, ["b"]), (4, ["c"])):
        config = search.follow_ups._to_compress(math.inf)
        assert config.variants == names
        fell = TrialResult(number=number, state="failed", config=config.model_copy(update={"number": number}))
        search.trials.results[number] = fell
    assert search.follow_ups._to_compress(math.inf) is None
    for number in range(1, 5):
        # Of other teachers it is another thing.
        search.trials.results[number].config.members = [7]
    result.variants.append(VariantResult(name="a", state="complete"))
    assert search.follow_ups._to_compress(math.inf).variants == ["b", "c"]


def test_the_time_of_a_rescue_is_kept_once_it_is_due_and_without_it_none_is_made(tmp_path, catalog, monkeypatch):
    notes = []
    steps = [
        StepPlan(strategy="quantization-aware", params={"epochs": 3}, label="quantization-aware", weight_format="int8"),
        StepPlan(strategy="onnx-int8", label="onnx-int8"),
    ]
    rescue = VariantPlan(name="quantization-aware+onnx-int8", chain=steps, trains=True, rescues="onnx-int8")
    plain = [VariantPlan(name="none", chain=[]), VariantPlan(name="onnx-int8", chain=steps[1:])]
    search = engine(tmp_path, catalog, variants=plain, rescues=[rescue], tolerance=0.01)
    search.plan.time_limit = 5000.0
    monkeypatch.setattr(search.follow_ups, "note", notes.append)
    trial = done(search.study.fixed(search.plan.default_config(), 0), 0.9)
    trial.seconds = {"train": 50.0, "total": 60.0}
    trial.variants[0].folder = "somewhere"
    quantized = VariantResult(
        name="onnx-int8", state="complete", validation={"accuracy": 0.895}, costs={}, seconds=10.0
    )
    trial.variants.append(quantized)
    search.trials.results[0] = trial
    assert search.follow_ups.further_compression() == []
    left = search.seconds_left() - search.reserve()
    assert left - search.agenda.room() == pytest.approx(0.0, abs=1.0)
    quantized.validation["accuracy"] = 0.85
    # Three epochs of 50 s, longer with a teacher and 2.5 times as long with rounded numbers; and 10 s for
    # its files, as for those of each of its two steps to be measured.
    assert left - search.agenda.room() == pytest.approx(3 * 50 * TAUGHT * 2.5 + 30, abs=1.0)
    (config,) = search.agenda.numbered(search.follow_ups.further_compression())
    assert (config.kind, config.members, config.number) == ("compress", [0], 1)
    assert "onnx-int8 (by 0.05)" in notes[0]
    monkeypatch.setattr(search, "seconds_left", lambda: search.reserve() + 380.0)
    assert search.follow_ups.further_compression() == []
    assert "quantization-aware+onnx-int8 was not made" in notes[1]
    further = done(config, 0.9)
    further.variants[0].name = rescue.name
    search.trials.results[1] = further
    monkeypatch.setattr(search, "seconds_left", lambda: search.reserve() + 1000.0)
    assert search.follow_ups.further_compression() == []
    assert len(notes) == 2


def test_a_search_whose_time_is_too_short_for_its_best_model_goes_on_with_what_fits(tmp_path, catalog, monkeypatch):
    search = engine(tmp_path, catalog)
    for number in range(8):
        config = search.study.ask(number, {"model": "large" if number % 2 else "small"})
        search._finish(untimed(done(config, 0.9 if number % 2 else 0.5)))
    monkeypatch.setattr(search, "seconds_left", lambda: search.reserve() + 60.0)
    proposals = [search.agenda.next() for _ in range(3)]
    assert all(p is not None and p.model == "small" for p in proposals)
    monkeypatch.setattr(search, "seconds_left", lambda: search.reserve() + 12.0)
    assert search.agenda.next() is None
    assert search.ended == "the time left is too short for another trial"


def test_as_long_as_nothing_fits_the_soonest_known_good_is_trained_whatever_the_time(tmp_path, catalog, monkeypatch):
    search = engine(tmp_path, catalog)
    default = search.plan.default_config()
    small = default.model_copy(update={"kind": "published", "model": "small"})
    search.agenda.queue = [default.model_copy(update={"kind": "published", "pipeline": "lora"}), small]
    assert search.agenda._without_which_nothing() is None, "nothing is done yet: the default comes first"
    search._finish(untimed(done(search.study.fixed(default, 0), 0.9, state="infeasible")))
    monkeypatch.setattr(search, "seconds_left", lambda: search.reserve() + 1.0)
    chosen = search.agenda.next()
    assert (chosen.model, chosen.number) == ("small", 1)
    assert len(search.agenda.queue) == 1
    search._finish(untimed(done(chosen, 0.5)))
    assert search.agenda.next() is None, "there is a model to ship, and no time for another"
    assert search.ended == "the time left is too short for another trial"
    monkeypatch.setattr(search, "seconds_left", lambda: search.reserve() - 1.0)
    assert search.agenda._without_which_nothing() is None


def test_what_can_fit_goes_before_a_default_that_never_fits(tmp_path, catalog):
    search = engine(tmp_path, catalog)
    default = search.plan.default_config()
    slow = default.model_copy(update={"kind": "published", "model": "small"})
    slow.params = {**default.params, "train.epochs": 4}
    soon = default.model_copy(update={"kind": "published", "model": "small"})
    search.agenda.queue = [default, slow, soon]
    search.agenda.put_the_yardstick_second()
    assert search.agenda.queue[0] is default, "nothing says that it does not fit"
    search.agenda.too_much = {"large": {"none": {"model_size_bytes": 90.0}}}
    search.agenda.put_the_yardstick_second()
    first = search.agenda.next()
    assert (first.number, first.model, first.params["train.epochs"]) == (1, "small", 3), "number 0 is the default's"
    search._finish(untimed(done(first, 0.8)))
    second = search.agenda.next()
    assert (second.number, second.kind, second.model) == (0, "default", "large")
    search._finish(untimed(done(second, 0.9)))
    assert search.agenda.next().number == 2


def test_what_can_fit_goes_before_such_a_default_however_short_the_time(tmp_path, catalog, monkeypatch):
    search = engine(tmp_path, catalog)
    default = search.plan.default_config()
    search.agenda.queue = [default, default.model_copy(update={"kind": "published", "model": "small"})]
    search.agenda.too_much = {"large": {"none": {"model_size_bytes": 90.0}}}
    search.agenda.put_the_yardstick_second()
    monkeypatch.setattr(search, "seconds_left", lambda: search.reserve() - 5.0)
    first = search.agenda.next()
    assert (first.number, first.model) == (1, "small")
    search._finish(untimed(done(first, 0.8)))
    assert search.agenda.next() is None


def test_a_default_that_never_fits_takes_no_time_that_it_has_not_got(tmp_path, catalog, monkeypatch):
    search = engine(tmp_path, catalog)
    default = search.plan.default_config()
    small = default.model_copy(update={"kind": "published", "model": "small"})
    search.agenda.too_much = {"large": {"none": {"model_size_bytes": 90.0}}}
    search.agenda.queue = [default, small]
    search.agenda.put_the_yardstick_second()
    search._finish(untimed(done(search.agenda.next(), 0.8)))
    # The default takes 310 s; one of the small model takes 40.
    monkeypatch.setattr(search, "seconds_left", lambda: search.reserve() + 200.0)
    following = search.agenda.next()
    assert (following.kind, following.model) == ("search", "small")


@pytest.mark.parametrize(
    ("left", "first", "second"),
    [
        # The default takes 310 s; one of the small model takes 40, a quarter of which is compressed and measured.
        (400.0, ("default", "large"), ("published", "small")),
        (250.0, ("published", "small"), ("default", "large")),
        (150.0, ("published", "small"), ("search", "small")),
        (100.0, ("default", "large"), None),
    ],
    ids=["ends in time", "half of it would be trained", "less would", "nor is there time for the small one"],
)
def test_a_model_that_ends_in_time_goes_before_a_default_that_does_not(
    left, first, second, tmp_path, catalog, monkeypatch
):
    search = engine(tmp_path, catalog)
    search.plan.time_limit = 10_000.0
    default = search.plan.default_config()
    search.agenda.queue = [default, default.model_copy(update={"kind": "published", "model": "small"})]
    monkeypatch.setattr(search, "seconds_left", lambda: search.reserve() + left)
    search.agenda.put_the_yardstick_second()
    trial = search.agenda.next()
    assert (trial.kind, trial.model) == first
    search._finish(untimed(done(trial, 0.8)))
    spent = search.pace.estimate(trial)
    monkeypatch.setattr(search, "seconds_left", lambda: search.reserve() + left - spent)
    trial = search.agenda.next()
    assert (trial and (trial.kind, trial.model)) == second


def test_a_worker_that_holds_too_much_is_replaced_and_its_trial_sent_to_the_new_one(tmp_path, catalog):
    search = engine(tmp_path, catalog)
    config = search.plan.default_config().model_copy(update={"number": 0})
    search.trials.running[0] = config
    asked = []

    class Recorder:
        def stop(self, worker):
            asked.append("stop")

        def start(self, worker):
            asked.append("start")

        def send(self, worker, op, **body):
            asked.append((worker, op, body["config"]["number"], body["whole"]))

    idle: set[int] = set()
    search._handle(Recorder(), Event(0, "renew", {"trial": 0, "whole": False}), idle)
    assert asked == ["stop", "start", (0, "trial", 0, False)]
    # Also after the worker is lost once more.
    search._handle(Recorder(), Event(0, "renew", {"trial": 0, "whole": True}), idle)
    search._handle(Recorder(), Event(0, "renew", {"trial": 0, "whole": False}), idle)
    assert [request[3] for request in asked if isinstance(request, tuple)] == [False, True, True]
    assert (search.trials.running, idle) == ({0: config}, set())


class Grown:
    """An executor to which workers come."""

    def __init__(self):
        self.asked = []

    def send(self, worker, op, **body):
        self.asked.append((worker, op))

    def grow(self, workers, threads):
        self.asked.append((workers, threads))


@pytest.mark.parametrize(("paces", "workers", "threads"), [({1: 0.1, 2: 0.11}, 2, 1), ({1: 0.2, 2: 0.1}, 1, None)])
def test_workers_are_taken_where_steps_show_that_they_pay(tmp_path, catalog, monkeypatch, paces, workers, threads):
    search = engine(tmp_path, catalog, by_pace=True, threads=2, workers=1)
    notes, executor = [], Grown()
    monkeypatch.setattr(search.listener, "note", notes.append)
    # As they come from a worker, in JSON.
    probed = {
        name: {"by_threads": {str(n): pace for n, pace in paces.items()}, "memory_bytes": 1000}
        for name in ("large", "small")
    }
    alone = search.pace.estimate(search.plan.default_config())
    search.plan.time_limit = 100 * alone
    search._take_workers(executor, probed)
    assert (search.plan.workers, search.plan.train_threads) == (workers, threads)
    if workers == 1:
        assert executor.asked == notes == []
        return
    assert executor.asked == [(0, "plan"), (2, 1)]
    assert len(notes) == 1
    assert notes[0].startswith("2 workers with 1 thread each train about 1.")
    assert json.loads(search.run.plan.read_text())["workers"] == 2
    # A step beside another worker's, and with one thread.
    fixed = search.pace.overhead["large"]
    assert search.pace.estimate(search.plan.default_config()) == pytest.approx(
        fixed + (alone - fixed) * 0.1 / 0.11 / 0.85
    )


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_each_model_is_proposed_rates_of_its_own_range(tmp_path, catalog, sampler):
    """The narrow one has six times as high ones; the space holds both ranges."""
    space = {
        "model": Categorical(("large", "small")),
        "pipeline": Categorical(("full",)),
        "augment": Categorical(("none",)),
        "train.epochs": Int(1, 4, 3),
        "train.batch_size": Categorical((16,)),
        "full.learning_rate": Float(5e-6, 1.2e-3, 5e-5, log=True),
    }
    search = engine(
        tmp_path,
        catalog,
        sampler=sampler,
        space={name: domain_to_json(domain) for name, domain in space.items()},
        pipelines=[PipelinePlan(name="full", quantizer=None, adapter="full", rate_scales={"large": 1.0, "small": 6.0})],
    )
    search.plan.time_limit = 1e6
    search.agenda.queue = []
    seen = {"large": [], "small": []}
    for _ in range(40):
        config = search.agenda.next()
        if config is None:
            break
        seen[config.model].append(config.params["full.learning_rate"])
        result = done(config, 0.5).model_copy(update={"number": config.number})
        search.trials.results[config.number] = result
        search.study.tell(result, [0.5])
    assert len(seen["large"]) > 3 < len(seen["small"])
    assert 4.9e-6 <= min(seen["large"]) <= max(seen["large"]) <= 2.02e-4
    assert 2.9e-5 <= min(seen["small"]) <= max(seen["small"]) <= 1.22e-3


class Timing(Grown):
    """One worker that says what a step takes."""

    ready, startup, imports = frozenset({0}), 1.0, 1.0

    def __init__(self, figures):
        super().__init__()
        self.answers = {
            "probe": ("probed", {"figures": figures}),
            "time": ("timed", {"seconds": figures["seconds_per_sample"]}),
        }
        self.events = [Event(0, "ready", {})]
        self.memory_limits, self.time_limits = {}, {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def send(self, worker, op, **body):
        kind, answer = self.answers[op]
        self.events.append(Event(worker, kind, answer))

    def poll(self, timeout):
        return self.events.pop(0)


@pytest.mark.parametrize(("paces", "workers"), [({1: 0.1, 2: 0.11}, 2), ({1: 0.2, 2: 0.1}, 1)])
def test_how_many_trials_fit_counts_the_workers_that_the_search_would_take(
    tmp_path, catalog, monkeypatch, paces, workers
):
    search = engine(tmp_path, catalog, by_pace=True, threads=2, workers=1)
    figures = {
        "by_threads": {str(n): pace for n, pace in paces.items()},
        "memory_bytes": 1000,
        "precision": "float32",
        "seconds_per_sample": 0.01,
        "validate_seconds_per_row": 0.001,
        "test_seconds_per_row": 0.001,
    }
    monkeypatch.setattr(search, "_executor", lambda workers: Timing(figures))
    search.plan.time_limit = 1e6
    told = search.times()
    room = 1e6 - search.reserve()
    assert told
    for one in told:
        assert one.workers == workers
        assert one.trials == workers * int(room // one.seconds)
    # A step with one thread, beside another worker's.
    alone = engine(tmp_path / "alone", catalog, by_pace=False, threads=2, workers=1)
    monkeypatch.setattr(alone, "_executor", lambda workers: Timing(figures))
    alone.plan.time_limit = 1e6
    fixed = alone.pace.overhead.get("large", 20.0)
    slower = 0.1 / 0.11 / 0.85 if workers == 2 else 1.0
    assert told[0].seconds - fixed == pytest.approx((alone.times()[0].seconds - fixed) * slower)


class Unlucky:
    """A worker that is lost over its first requests; what it is asked is kept."""

    ready = frozenset({0})

    def __init__(self, losses: int, answer: Event, machine_lost: bool = False):
        self.losses, self.answer, self.machine_lost = losses, answer, machine_lost
        self.asked: list[str] = []
        self.told: list[dict] = []
        self.events: list[Event] = []
        self.memory_limits: dict[int, float] = {}
        self.time_limits: dict[int, float] = {}
        self.started = 0

    def send(self, worker, op, **body):
        self.asked.append(op)
        self.told.append(body)
        reason = "the worker process was killed by signal 9"
        lost = Event(0, "lost", {"reason": reason, "code": -9, "hung": False, "machine_lost": self.machine_lost})
        self.events.append(lost if len(self.asked) <= self.losses else self.answer)

    def poll(self, timeout):
        return self.events.pop(0) if self.events else None

    def stop(self, worker):
        pass

    def start(self, worker):
        self.started += 1


def test_a_worker_that_is_lost_while_models_are_measured_is_replaced_and_asked_again(tmp_path, catalog):
    search = engine(tmp_path, catalog)
    worker = Unlucky(2, Event(0, "screened", {"costs": {"none": {"model_size_bytes": 3.0}}}))
    assert search._served(worker, "small", ["none"]) == {"none": {"model_size_bytes": 3.0}}
    assert (worker.asked, worker.started) == (["screen"] * 3, 2)
    with pytest.raises(SearchFailed, match="3 workers were lost over it: the worker process was"):
        search._served(Unlucky(3, Event(0, "screened", {"costs": {}})), "small", ["none"])
    # Machines come and go.
    unlucky = Unlucky(5, Event(0, "screened", {"costs": {}}), machine_lost=True)
    assert search._served(unlucky, "small", ["none"]) == {}
    assert len(unlucky.asked) == 6


@pytest.mark.parametrize(("limit", "waits"), [("latency_p50_ms", True), ("model_size_bytes", False)])
def test_a_latency_is_not_screened_beside_a_worker_that_still_starts(tmp_path, catalog, limit, waits):
    search = engine(tmp_path, catalog, budget=[BudgetLimit(key="limit", column=limit, limit=50.0, given="50")])

    class Starting(Unlucky):
        placed, ready = frozenset({0, 1}), frozenset({0})

        def send(self, worker, op, **body):
            ready_when_asked.append(self.ready)
            super().send(worker, op, **body)

        def poll(self, timeout):
            event = super().poll(timeout)
            if event is None:
                self.ready = self.placed
                return Event(1, "ready", {})
            return event

    ready_when_asked = list[frozenset[int]]()
    executor = Starting(0, Event(0, "screened", {"costs": {"none": {limit: 3.0}}}))
    search._screen(executor)
    assert ready_when_asked == 2 * [frozenset({0, 1} if waits else {0})]


def test_what_an_earlier_call_was_at_comes_first_where_its_training_has_a_checkpoint(tmp_path, catalog, monkeypatch):
    search = engine(tmp_path, catalog)
    default = search.plan.default_config()
    search.run.write_result(done(default, 0.5).model_copy(update={"seconds": {"total": 10.0}}))
    cut_off = default.model_copy(
        update={"number": 3, "kind": "search", "model": "small", "params": {**default.params, "train.epochs": 2}}
    )
    seed = cut_off.model_copy(update={"number": 4, "kind": "seed", "parent": 0})
    for config in (cut_off, seed, cut_off.model_copy(update={"number": 5}), cut_off.model_copy(update={"number": 6})):
        folder = search.run.trial(config.number)
        folder.mkdir()
        (folder / "config.json").write_text(config.model_dump_json())
        (folder / "augmented.json").write_text("{}")
        if config.number != 6:
            Checkpoints(search.run.checkpoint(config.number), {}).write({}, 0.9)
    (search.run.checkpoint(5) / "state.json").write_text("{")
    assert search.run.clear_partial() == [3, 4, 5, 6]
    assert not search.run.trial(6).exists()
    assert {path.name for path in search.run.trial(3).iterdir()} == {"config.json", "checkpoint"}
    search = engine(tmp_path, catalog)
    search.agenda.queue = [cut_off.model_copy(update={"number": 0, "kind": "published"})]
    notes = []
    monkeypatch.setattr(search.listener, "note", notes.append)
    search._go_on()
    assert notes[0] == "Trial 3 goes on from its checkpoint, at 90% of its training."
    assert notes[1].startswith("Trial 5, which was broken off, is not gone on with: ")
    assert len(notes) == 2
    assert not search.run.trial(5).exists()
    assert search.agenda.queue == []
    assert search.agenda.number() == 4
    # Whole it would take 30 seconds, and 20 are left for it.
    monkeypatch.setattr(search.agenda, "room", lambda: 20.0)
    assert search.pace.estimate(cut_off) == 30.0
    assert search._set_aside() == cut_off
    search.trained.clear()
    assert search._set_aside() is None


def test_what_a_user_adds_is_none_of_the_trials_of_the_budget(tmp_path, catalog):
    search = engine(tmp_path, catalog, trials_limit=2)
    default = search.plan.default_config()
    search.trials.add(done(default, 0.8))
    search.trials.add(done(default.model_copy(update={"number": 1, "kind": "added", "model": "small"}), 0.7))
    assert (search.trials.counted(), search.trials.enough()) == (1, False)
    search.trials.add(done(default.model_copy(update={"number": 2, "kind": "search", "model": "small"}), 0.7))
    assert (search.trials.counted(), search.trials.enough()) == (2, True)


def test_a_default_that_was_broken_off_goes_on_with_as_little_time_as_one_that_was_not_begun(
    tmp_path, catalog, monkeypatch
):
    search = engine(tmp_path, catalog)
    default = search.plan.default_config()
    small = default.model_copy(update={"number": 1, "kind": "published", "model": "small"})
    result = done(small, 0.5)
    result.variants[0].costs = {"model_size_bytes": 10.0, "latency_p50_ms": 1.0}
    search.trials.add(result)
    # 310 s in all, of which there is time for six tenths.
    monkeypatch.setattr(search.agenda, "room", lambda: 200.0)
    search.agenda.queue = [default]
    assert search.agenda.next().kind == "default"
    search.trials.aside, search.trained = [default], {0: 0.1}
    assert search._set_aside() == default
    # Another one needs time for what is left of it.
    search.trials.aside, search.trained = [default.model_copy(update={"number": 2, "kind": "search"})], {2: 0.1}
    assert search._set_aside() is None


def test_a_trial_that_hung_has_failed_and_the_search_goes_on_with_a_new_worker(tmp_path, catalog):
    search = engine(tmp_path, catalog)
    config = search.plan.default_config().model_copy(update={"number": 0})
    search.trials.running[0] = config
    search.stages[0] = "train"
    worker, idle = Unlucky(0, Event(0, "ready")), set[int]()
    # SIGKILL, as it did not heed SIGTERM: no want of memory.
    body = {"reason": "the worker process was ended: no progress for 11 min 00 s", "code": -9, "hung": True}
    search._handle(worker, Event(0, "lost", body), idle)
    assert (search.trials.results[0].state, search.trials.results[0].violations) == ("failed", {})
    assert search.trials.results[0].reason == f"{body['reason']}; stage: train"
    assert (worker.started, worker.asked, idle) == (1, [], {0})


def test_a_trial_is_too_large_for_the_memory_only_where_a_new_worker_was_killed_over_it(tmp_path, catalog, monkeypatch):
    """What earlier trials left in a worker is no fault of the one that it was killed over."""
    search = engine(tmp_path, catalog)
    first, second = (search.plan.default_config().model_copy(update={"number": number}) for number in (0, 1))
    worker, idle, notes = Unlucky(0, Event(0, "ready")), set[int](), []
    monkeypatch.setattr(search.listener, "note", notes.append)
    search.trials.running[0] = first
    search.run.write_result(done(first, 0.5))
    search._handle(worker, Event(0, "done", {"trial": 0}), idle)
    search.trials.running[0] = second
    reason = "the worker process was killed by signal 9; the memory may not be enough"
    for started in (1, 2):
        assert list(search.trials.results) == [0]
        search.stages[0] = "measure: none"
        search._handle(worker, Event(0, "lost", {"reason": reason, "code": -9, "hung": False}), idle)
        assert worker.started == started
    assert worker.asked == ["trial"]
    assert notes == [f"Trial 1 is begun again in a new process: {reason}."]
    assert (search.trials.results[1].state, search.trials.results[1].violations) == ("infeasible", {"memory": 1.0})


def test_the_end_and_the_first_trial_take_as_long_as_scoring_does(tmp_path, catalog):
    """Where perplexity counts, validating writes nothing, and a test does."""
    search = engine(tmp_path, catalog, options={}, time_limit=1e6)
    pace, model = search.pace, search.plan.models[0].name
    pace.overhead, pace.validate_per_row = {}, {model: 0.01}
    quick, ends = pace.overhead_of(model), pace.closing(untrained=False)
    pace.validate_per_row = {model: 1.0}
    assert pace.overhead_of(model) == len(search.plan.variants) * (pace.validation_rows + Latency.LONG_SECONDS) > quick
    pace.validate_per_row, pace.test_per_row = {model: 0.01}, {model: 2.0}
    assert pace.overhead_of(model) == quick
    assert pace.closing(untrained=False) >= ends + 1.9 * pace.test_rows
    assert pace.closing(untrained=True) >= ends + 2 * 1.9 * pace.test_rows


def test_where_writing_takes_long_the_end_leaves_half_of_the_time_and_tests_what_fits(tmp_path, catalog):
    search = engine(tmp_path, catalog, time_limit=200.0)
    pace, model = search.pace, search.plan.models[0].name
    pace.validate_per_row = {model: 0.05}
    # All 400 rows of two models take more than that.
    assert pace.closing(untrained=False) == 100.0
    # However short the time, some rows are tested.
    pace.validate_per_row = {model: 10.0}
    assert pace.closing(untrained=False) > 1000.0

    def scored(seconds: float) -> VariantResult:
        return VariantResult(name="none", state="complete", score_seconds=seconds)

    before = pace.tested_rows(1e6, [scored(400.0)], untrained=False)
    # One row takes a second of the chosen model and half of one of the default; the former is judged once more.
    left = 2 * Latency.LONG_SECONDS + 3 * STARTUP_SECONDS + 400.0 + 150 * 1.5
    assert before == 400
    assert pace.tested_rows(left, [scored(400.0), scored(200.0)], untrained=False) == 150
    assert pace.tested_rows(0.0, [scored(400.0), scored(200.0)], untrained=False) == 100
    # A search that is late anyway does not end sooner by a second.
    assert pace.tested_rows(-50.0, [scored(4.0), scored(2.0)], untrained=False) == 400


def test_models_are_judged_by_as_many_rows_as_a_fifth_of_the_time_allows(tmp_path, catalog):
    variants = [VariantPlan(name="none", chain=[]), VariantPlan(name="dynamic-int8", chain=[])]
    search = engine(tmp_path, catalog, time_limit=200.0, validation_rows=50, variants=variants)
    notes, told = [], []
    search.listener = SimpleNamespace(note=notes.append, validation=lambda *said: told.append(said))
    worker = Unlucky(0, Event(0, "ready"))

    def validated(number: int, seconds: float) -> None:
        search.trials.running[0] = search.plan.default_config().model_copy(update={"number": number})
        point = CurvePoint(
            samples=1, epoch=1, seconds=1, train_loss=1, learning_rate=1, validation={"accuracy": 0.5},
            validate_seconds=seconds,
        )  # fmt: skip
        search._handle(worker, Event(0, "validation", {"trial": number, "point": point.model_dump()}), set())

    # 50 rows in five seconds: the trained model and two compressions of it, .1 s a row each, in 40 seconds.
    assert search._request(search.plan.default_config(), 1)["decided"] == {}
    validated(0, 5.0)
    assert rows_decided(search.run.data) == worker.told[-1]["decided"] == {"validation": 133}
    assert search._request(search.plan.default_config(), 1)["decided"] == {"validation": 133}
    assert (search.pace.validation_rows, search.plan.rows_there("validation")) == (133, 400)
    assert json.loads(search.run.plan.read_text())["data"]["sizes"]["validation"] == 133
    assert notes == [
        "Models are judged by 133 of the 400 validation rows, the same for all: more would take more than 20% of the time for each trial."
    ]
    # What was judged by them is compared with what comes.
    validated(1, 0.05)
    assert rows_decided(search.run.data) == {"validation": 133}
    assert len(notes) == 1
    assert [said[0] for said in told] == [0, 1]


def test_a_trial_that_failed_before_it_was_judged_leaves_the_rows_open(tmp_path, catalog):
    """Else all trials after it would be judged by all rows, for which there is no time, or thought to be."""
    variants = [VariantPlan(name="none", chain=[]), VariantPlan(name="dynamic-int8", chain=[])]
    search = engine(tmp_path, catalog, time_limit=200.0, validation_rows=50, variants=variants)
    search.pace.overhead, search.pace.validate_per_row = {}, {"large": 0.1}
    config = search.plan.default_config()
    before = search.pace.overhead_of("large")
    search.trials.add(TrialResult(number=0, state="failed", reason="its own", config=config))
    assert search.pace.overhead_of("large") == before
    search._judge_by_fewer(config, 5.0)
    assert rows_decided(search.run.data) == {"validation": 133}


@pytest.mark.parametrize(("shared", "seconds", "rows"), [(False, 0.05, {"validation": 400}), (True, 5.0, {})])
def test_models_are_judged_by_all_rows_where_there_is_time_or_others_share_the_study(
    shared, seconds, rows, tmp_path, catalog
):
    search = engine(tmp_path, catalog, time_limit=200.0, validation_rows=50)
    search.exchange.shared = shared
    search._judge_by_fewer(search.plan.default_config(), seconds)
    assert rows_decided(search.run.data) == rows
    assert search.plan.data["sizes"]["validation"] == 400


def test_a_checkpoint_is_judged_by_fewer_rows_where_that_takes_a_tenth_of_the_time(tmp_path, catalog):
    search = engine(tmp_path, catalog, time_limit=200.0, validation_rows=200)
    search.pace.validate_per_row = {"large": 0.1, "small": 0.01}
    assert search.pace.checked_rows() == 200
    search.pace.validate_per_row["large"] = 0.25
    worker = Unlucky(0, Event(0, "ready"))
    search._check_by_fewer(worker)
    assert (search.plan.validation_rows, worker.asked) == (80, ["plan"])
    assert worker.told[0]["plan"]["validation_rows"] == 80
    search.pace.validate_per_row["large"] = 25.0
    assert search.pace.checked_rows() == 50
    # Checkpoints of trials are compared.
    search.trials.results[0] = done(search.plan.default_config(), 0.5)
    search._check_by_fewer(worker)
    assert search.plan.validation_rows == 80


def test_a_worker_may_be_silent_for_longer_than_anything_was_seen_to_take(tmp_path, catalog):
    search = engine(tmp_path, catalog, patience=600.0)
    config = search.plan.default_config().model_copy(update={"number": 0})
    search.trials.running[0] = config
    search.pace.validate_per_row = {config.model: 0.001}
    # Exports and downloads tell of nothing: three times as long as training.
    assert search._patience(0) == 1800.0
    # The others' trials may take hours.
    search._handle(Unlucky(0, Event(0, "ready")), Event(0, "stage", {"trial": 0, "stage": "wait for memory"}), set())
    assert search._patience(0) == math.inf
    search._handle(Unlucky(0, Event(0, "ready")), Event(0, "stage", {"trial": 0, "stage": "load"}), set())
    assert search._patience(0) == 1800.0
    search.pace.overhead[config.model] = 4000.0
    assert search._patience(0) > 4 * 4000.0
    search._handle(Unlucky(0, Event(0, "ready")), Event(0, "stage", {"trial": 0, "stage": "train"}), set())
    search._handle(None, Event(0, "progress", {"trial": 0, "samples": 16, "total": 48, "rate": 100.0}), set())
    assert search._patience(0) == 600.0
    # A step of 16 rows takes 100 s, then a validation of 400 rows 200 s.
    search._handle(None, Event(0, "progress", {"trial": 0, "samples": 16, "total": 48, "rate": 0.16}), set())
    assert search._patience(0) > 10 * 100.0
    search.pace.validate_per_row[config.model] = 0.5
    assert search._patience(0) > 10 * (100.0 + 200.0)
    search._handle(Unlucky(0, Event(0, "ready")), Event(0, "stage", {"trial": 0, "stage": "compress: onnx"}), set())
    assert search._patience(0) > 4 * 4000.0
    # A distillation within it takes steps, and the export that follows does not.
    search._handle(None, Event(0, "progress", {"trial": 0, "samples": 16, "total": 48, "rate": 100.0}), set())
    assert search._patience(0) > 4 * 4000.0


LOOKED_AT: list[tuple[str, str]] = []
"""Audited events of files, with the path: what was opened and which folders were listed; since it was last emptied."""


def _look(event: str, arguments: tuple) -> None:
    if event in {"open", "os.scandir", "os.listdir"}:
        LOOKED_AT.append((event, str(arguments[0])))


@pytest.fixture(scope="module")
def watched_files():
    """Hooks stay as long as the process does: one for all tests of this module."""
    sys.addaudithook(_look)


def test_after_a_trial_no_files_of_earlier_ones_are_looked_at(tmp_path, catalog, watched_files):
    search = engine(tmp_path, catalog, storage_bytes=10**9, ensemble=1)
    idle: set[int] = set()
    for number in range(12):
        config = search.plan.default_config().model_copy(update={"number": number})
        # Each is better and larger than the last, so all files stay.
        result = untimed(done(config, 0.5 + number / 100))
        folder = f"trials/{number:04d}/variants/none"
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "weights").write_bytes(b"x" * (number + 1))
        result.variants[0].folder, result.variants[0].costs = folder, {"model_size_bytes": number + 1.0}
        search.run.write_result(result)
        search.trials.running[0] = config
        LOOKED_AT.clear()
        search._handle(None, Event(0, "done", {"trial": number}), idle)
        assert [path for event, path in LOOKED_AT if event == "open" and path.endswith("result.json")] == [
            str(search.run.result(number))
        ]
        others = [path for _, path in LOOKED_AT if "/trials/" in path and f"/trials/{number:04d}" not in path]
        assert others == []
    assert search.disk.sizes == {(number, "none"): number + 1 for number in range(12)}
    lines = (tmp_path / "trials.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in lines] == ["trial", *(str(number) for number in range(12))]


def test_of_a_quota_caches_go_first_and_then_the_weights_that_matter_least(tmp_path, catalog):
    models = [ModelPlan(name="small", path="", config={"model_type": "bert"}, size_bytes=1)]
    search = engine(tmp_path, catalog, models=models, storage_bytes=10**9)
    for number in range(4):
        # Each is better and larger than the last, so all are on the front.
        config = search.plan.default_config().model_copy(update={"number": number})
        result = untimed(done(config, 0.5 + number / 10))
        folder = f"trials/{number:04d}/variants/none"
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "weights").write_bytes(b"x" * (10_000 + number))
        result.variants[0].folder, result.variants[0].costs = folder, {"model_size_bytes": 10_000.0 + number}
        search.trials.results[number] = result
    (tmp_path / "data/encoded").mkdir()
    features = tmp_path / "data/encoded/features-a.arrow"
    features.write_bytes(b"x" * 30_000)

    def after(room: int) -> list[str]:
        search.plan.disk_bytes = search.plan.trial_bytes + room
        search.disk.drop_weights()
        return sorted(path.parts[-4] for path in tmp_path.glob("trials/*/variants/none/weights"))

    assert after(100_000) == ["0000", "0001", "0002", "0003"]
    assert features.exists()
    assert after(65_000) == ["0000", "0001", "0002", "0003"]
    assert not features.exists()
    search.disk.check()
    assert search.run.size() <= 65_000
    records = search.run.size() - sum(search.disk.sizes.values())
    assert after(records + 35_000) == ["0000", "0002", "0003"]
    search.disk.check()
    # The chosen one and the yardstick stay in any case.
    assert after(1_000) == ["0000", "0003"]
    with pytest.raises(RunFolderError, match=r"of storage\.disk, 50 MB, .* are left; give it more"):
        search.disk.check()


def test_before_a_disk_is_full_what_can_be_made_again_is_deleted(tmp_path, catalog, monkeypatch):
    search = engine(tmp_path, catalog, storage_bytes=10**9)
    graph = tmp_path / "cache/onnx/a.onnx"
    graph.parent.mkdir()
    graph.write_bytes(b"x" * 1000)
    needed = search.plan.trial_bytes

    def usage(path):
        return SimpleNamespace(free=needed - (500 if graph.exists() else -500))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    search.disk.check()
    assert not graph.exists()


class Writers:
    """Workers each of which fills the disk as far as a trial may, until the trial is done and leaves a fifth of it."""

    def __init__(self, search: Search, workers: int):
        self.search, self.placed = search, frozenset(range(workers))
        self.at: dict[int, int] = {}
        self.at_work: list[int] = []
        """How many there are with each that is sent."""
        self.largest = 0
        self.memory_limits: dict[int, float] = {}

    def write(self, number: int, size: int) -> None:
        # Sparse: it has its size, and takes next to nothing.
        with (self.search.run.trial(number) / "variants/none/weights").open("ab") as file:
            file.truncate(size)
        self.largest = max(self.largest, self.search.run.size())

    def send(self, worker, op, **body):
        self.at[worker] = number = body["config"]["number"]
        self.at_work.append(len(self.at))
        (self.search.run.trial(number) / "variants/none").mkdir(parents=True)
        self.write(number, self.search.plan.trial_bytes // 2)

    def poll(self, timeout):
        worker, number = next(iter(self.at.items()))
        del self.at[worker]
        self.write(number, self.search.plan.trial_bytes)
        self.write(number, self.search.plan.trial_bytes // 5)
        result = done(self.search.trials.running[worker], 0.5 + number / 100)
        result.variants[0].folder = f"trials/{number:04d}/variants/none"
        result.variants[0].costs = {"model_size_bytes": number + 1.0}
        self.search.run.write_result(result)
        return Event(worker, "done", {"trial": number})


@pytest.mark.parametrize(("room", "at_once"), [(9.0, 4), (2.5, 2), (1.5, 1)])
def test_a_quota_is_kept_by_several_workers_of_which_some_wait(tmp_path, catalog, room, at_once):
    search = engine(tmp_path, catalog, workers=4, storage_bytes=10**9)
    told: list[str] = []
    search.listener.note = told.append
    search.plan.disk_bytes = int(room * search.plan.trial_bytes)
    writers = Writers(search, 4)
    search._loop(writers, lambda: search.study.ask(search.agenda.number()), 8)
    assert len(search.trials.results) == 8
    assert writers.at_work == [min(number, at_once) for number in range(1, 9)]
    assert writers.largest <= search.plan.disk_bytes
    waits = f"storage.disk has room for {at_once} trial{'s' if at_once > 1 else ''} at once, of 50 MB each at most:"
    assert [text[: len(waits)] for text in told] == ([waits] if at_once < 4 else [])


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_leaving_out_what_is_beaten_changes_neither_the_choice_nor_the_files(tmp_path, catalog, noise, monkeypatch):
    monkeypatch.setattr("autoft.trials.FOLLOWED", 3)
    search = engine(tmp_path, catalog, storage_bytes=10**9, ensemble=1, finalist_seeds=1)
    rng = random.Random(1)
    for number in range(60):
        config = search.plan.default_config().model_copy(update={"number": number, "kind": "search"})
        if number % 10 == 9:
            chosen = search.trials.chosen(search.trials.contenders())
            config = config.model_copy(update={"kind": "seed", "parent": chosen.trial, "seed": number})
        size, milliseconds = rng.uniform(1, 10), rng.uniform(1, 10)
        result = untimed(done(config, round(rng.uniform(0, noise) + 0.05 * math.log(size * milliseconds), 2)))
        (variant,) = result.variants
        variant.folder = f"trials/{number:04d}/variants/none"
        variant.costs = {"model_size_bytes": size, "latency_p50_ms": milliseconds}
        search._finish(result)
        everything = list(search.trials.results.values())
        chosen, expected = search.trials.chosen(search.trials.contenders()), select(search.plan, everything)
        assert (chosen.trial, chosen.variant, chosen.reason) == (expected.trial, expected.variant, expected.reason)
        front = {c.trial for c in expected.candidates if c.front}
        files = {r.number for r in everything if any(v.folder for v in r.variants)}
        assert files == weights_to_keep_of(search, everything)
        assert front - search.trials.beaten == front
        best = best_trials(search.plan, everything)[:3]
        assert [r.number for r in best_trials(search.plan, search.trials.contenders())[:3]] == [r.number for r in best]
    assert len(search.trials.beaten) > 5


def weights_to_keep_of(search: Search, results: list[TrialResult]) -> set[int]:
    return {trial for trial, _ in weights_to_keep(search.plan, results, search.disk.sizes)}


def at_folds(search: Search, number: int, figures: list[float]) -> list[TrialConfig]:
    """Run a configuration on one fold after the other, and return what the search asks for in between."""
    config = search.plan.default_config() if number == 0 else search.study.ask(number, {"model": "small"})
    asked = []
    for figure in figures:
        if number == 0 and config.fold == 0:
            config = search.study.fixed(config, 0)
        search._finish(untimed(done(config, figure)))
        config = search.agenda.next_fold()
        asked.append(config)
    return asked


def test_a_configuration_is_trained_on_one_fold_after_the_other_and_told_by_its_mean(tmp_path, catalog):
    search = engine(tmp_path, catalog, folds=3, early_stopping="wilcoxon")
    asked = at_folds(search, 0, [0.80, 0.84, 0.88])
    assert [(c.kind, c.parent, c.fold) for c in asked[:2]] == [("fold", 0, 1), ("fold", 0, 2)]
    assert asked[2] is None
    (told,) = search.study.study.trials
    assert told.value == pytest.approx(0.84)
    # Only configurations count, not their trainings; each takes three times as long.
    assert search.trials.counted() == 1
    default = search.plan.default_config()
    assert search.pace.estimate(default) == pytest.approx(3 * search.pace.estimate(asked[0]))


def test_a_configuration_that_is_worse_on_the_first_three_folds_is_given_up(tmp_path, catalog):
    search = engine(tmp_path, catalog, folds=5, early_stopping="wilcoxon")
    at_folds(search, 0, [0.80, 0.84, 0.88, 0.82, 0.86])
    number = search.agenda.number()
    asked = at_folds(search, number, [0.70, 0.72, 0.71])
    assert asked[1] is not None
    assert asked[2] is None
    given_up = search.trials.results[number]
    assert (given_up.state, given_up.reason) == ("pruned", "behind after 3 of 5 folds")
    assert [r.number for r in RunDir(tmp_path).results() if r.state == "pruned"] == [number]
    assert search.study.study.trials[-1].state.name == "PRUNED"
    # Better on one of three, it goes on.
    number = search.agenda.number()
    assert at_folds(search, number, [0.70, 0.90, 0.71])[2] is not None


def test_without_the_wilcoxon_test_all_folds_are_trained(tmp_path, catalog):
    search = engine(tmp_path, catalog, folds=4, early_stopping="none")
    at_folds(search, 0, [0.80, 0.84, 0.88, 0.82])
    assert at_folds(search, search.agenda.number(), [0.10, 0.10, 0.10])[2] is not None


def test_folds_of_an_earlier_call_are_not_trained_again(tmp_path, catalog):
    search = engine(tmp_path, catalog, folds=3, early_stopping="wilcoxon")
    at_folds(search, 0, [0.80, 0.84, 0.88])
    at_folds(search, search.agenda.number(), [0.81, 0.85])
    for result in search.trials.results.values():
        search.run.write_result(result)
    again = engine(tmp_path, catalog, folds=3, early_stopping="wilcoxon")
    further = again.agenda.next_fold()
    assert (further.parent, further.fold) == (3, 2)
    again._finish(untimed(done(further, 0.89)))
    assert sorted(trial.value for trial in again.study.study.trials) == pytest.approx([0.84, 0.85])


def test_what_is_kept_for_the_end_goes_by_what_rows_took_and_not_by_what_was_done_once(tmp_path, catalog):
    search = engine(tmp_path, catalog)
    sizes = search.plan.data["sizes"]
    result = untimed(done(search.study.fixed(search.plan.default_config(), 0), 0.5))
    (variant,) = result.variants
    assert variant.name == "none"
    variant.seconds, variant.score_seconds, search.pace.imports = 14.0, 8.0, 5.0
    search._finish(result)
    # Written, loaded and timed once it took 6 s, and 8 s for the validation rows; as a final model it is tested too.
    rows = 1.5 * sizes["test"] + sizes["validation"]
    assert search.reserve() == pytest.approx(15 + 3 * 5 + 8.0 / sizes["validation"] * rows)


def test_the_end_is_expected_when_the_trials_or_the_time_are_used_up(tmp_path, catalog, monkeypatch):
    search = engine(tmp_path, catalog, trials_limit=5)
    search.plan.time_limit = 5000.0
    monkeypatch.setattr(search, "reserve", lambda: 100.0)
    for number, seconds in enumerate((20.0, 40.0)):
        trial = untimed(done(search.study.ask(number), 0.5))
        trial.seconds = {"total": seconds, "train": seconds - 10.0}
        search._finish(trial)
    monkeypatch.setattr(search, "seconds_left", lambda: 4000.0)
    # Three more at the mean of the two, and what the end takes of the time that is kept for it.
    assert search.expected_left() == pytest.approx(3 * 30 + 80)
    search.plan.trials_limit = None
    # The budget, but for half of the shortest trial: an epoch of the small model, 1,000 rows, and its measuring.
    assert search.expected_left() == pytest.approx(4000 - (0.01 * 1000 + 10) / 2)
    search.agenda.ended = "the time is used up"
    assert search.expected_left() == pytest.approx(80)
    monkeypatch.setattr(search, "seconds_left", lambda: 25.0)
    assert search.expected_left() == 25.0, "never more than the budget leaves"
    monkeypatch.setattr(search, "seconds_left", lambda: -5.0)
    assert search.expected_left() == 0.0


def test_what_waits_for_the_memory_of_a_gpu_is_given_up_once_no_time_is_left_for_it(tmp_path, catalog, monkeypatch):
    search = engine(tmp_path, catalog)
    default = search.plan.default_config()
    for worker, number in enumerate((1, 2, 0)):
        kind = "default" if number == 0 else "search"
        search.trials.running[worker] = default.model_copy(update={"number": number, "kind": kind})
    search.stages = {0: "train", 1: "wait for memory", 2: "wait for memory"}
    executor, idle = Unlucky(0, Event(0, "ready")), set[int]()
    search._finish(done(default.model_copy(update={"number": 3, "kind": "search"}), 0.5))
    monkeypatch.setattr(search, "seconds_left", lambda: search.reserve() + search.pace.expected(default) + 1.0)
    search._give_up_late(executor, idle)
    assert len(search.trials.running) == 3
    monkeypatch.setattr(search, "seconds_left", lambda: search.reserve() + search.pace.expected(default) - 1.0)
    search._give_up_late(executor, idle)
    assert [config.number for config in search.trials.running.values()] == [1, 0]
    assert (idle, executor.started) == ({1}, 1)
    assert search.trials.results[2].state == "failed"
    assert search.run.read_result(2).reason.startswith("other trials had the memory of the GPU")
