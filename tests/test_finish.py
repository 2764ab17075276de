"""What the end of a run says of its trials."""

from __future__ import annotations

import pytest

from autoft.finish import _gain_of_auxiliary, _gain_of_start, _same_choice
from autoft.plans.plan import AuxiliaryPlan, ModelPlan, PipelinePlan, Plan
from autoft.rundir import Candidate, Selection, TrialConfig, TrialResult
from autoft.space import Categorical, Float, domain_to_json


def make_plan(**changes) -> Plan:
    space = {
        "model": Categorical(("plain", "earlier")),
        "pipeline": Categorical(("full", "lora")),
        "train.epochs": Categorical((3,)),
        "auxiliary.weight": Float(0.0, 1.0, 0.0),
    }
    values = {
        "space": {name: domain_to_json(domain) for name, domain in space.items()},
        "models": [ModelPlan(name=name, path="", config={}, size_bytes=1) for name in ("plain", "earlier")],
        "pipelines": [PipelinePlan(name=name, quantizer=None, adapter=name) for name in ("full", "lora")],
        "objective": "accuracy",
        "objectives": ["accuracy"],
        "metrics": {"accuracy": {"higher_is_better": True}},
        "seed": 3,
        "auxiliary": [AuxiliaryPlan(task="token-classification", options={}, weight=1.0)],
        "init_from": "earlier",
    }
    return Plan.model_construct(**{**values, **changes})


def trial(plan: Plan, accuracy: float, **changes) -> TrialResult:
    config = TrialConfig.model_validate({**plan.default_config().model_dump(), **changes})
    return TrialResult(number=config.number, state="complete", config=config, validation={"accuracy": accuracy})


@pytest.fixture
def plan() -> Plan:
    return make_plan()


@pytest.mark.parametrize(
    "further",
    [
        {"kind": "fold", "parent": 0, "fold": 1},
        {"kind": "soup", "members": [0, 1]},
        {"kind": "compress", "members": [0]},
        {"kind": "search", "pipeline": "lora"},
    ],
)
def test_a_gain_is_told_of_the_trainings_themselves_and_not_of_what_follows_from_them(plan, further):
    told = {"train.epochs": 3, "auxiliary.weight": 1.0}
    results = [
        trial(plan, 0.70),
        trial(plan, 0.75, number=1, kind="published", model="earlier"),
        trial(plan, 0.72, number=2, kind="published", params=told),
        # With the same settings as the default: of other rows, or another model.
        trial(plan, 0.99, number=3, **further),
    ]
    (start,) = _gain_of_start(plan, results)
    assert "gives 0.7500 validation accuracy, the plain start 0.7000 (+0.0500)" in start
    (along,) = _gain_of_auxiliary(plan, results)
    assert "gives 0.7200 validation accuracy, training alone 0.7000 (+0.0200)" in along


def test_another_trial_under_the_number_of_a_damaged_one_is_another_choice():
    def selection(objective: float, seeds: list[float], latency: float) -> Selection:
        costs = {"model_size_bytes": 90.0, "latency_p50_ms": latency}
        chosen = Candidate(trial=7, variant="none", objective=objective, seeds=seeds, costs=costs)
        other = Candidate(trial=8, variant="none", objective=0.1, seeds=[0.1], costs=costs)
        return Selection(trial=7, variant="none", objective="accuracy", reason="", candidates=[other, chosen])

    first = selection(0.9, [0.9], 5.0)
    assert _same_choice(first, Selection.model_validate_json(first.model_dump_json()))
    # Another seed of it, and other candidates, do not make it another model.
    assert _same_choice(first, selection(0.85, [0.9, 0.8], 5.0))
    assert not _same_choice(first, selection(0.8, [0.8], 5.0))
    assert not _same_choice(first, selection(0.9, [0.9], 5.2))
