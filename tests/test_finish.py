"""What the end of a run says of its trials."""

from __future__ import annotations

import pytest

from autoft.finish import _gain_of_auxiliary, _gain_of_start
from autoft.plans.plan import AuxiliaryPlan, ModelPlan, PipelinePlan, Plan
from autoft.rundir import TrialConfig, TrialResult
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
