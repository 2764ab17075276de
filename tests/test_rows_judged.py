"""By which rows models are judged, and which variants of a trial are made, where the time is short."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from autoft.artifact import save_artifact
from autoft.data.prepared import open_data, prepare_data, prepare_folds
from autoft.evaluation import measure_folder
from autoft.executors import follower
from autoft.hardware import Hardware
from autoft.plans.plan import VariantPlan
from autoft.plans.planner import make_plan
from autoft.ranks import Ranks
from autoft.recipe import recipe_from_mapping
from autoft.rundir import RunDir, TrialResult, VariantResult, write_json
from autoft.trial import Callbacks, Trial, Workplace, request_settings, run_trial


@pytest.fixture
def place(tmp_path, tiny_model, catalog) -> Workplace:
    """What a worker has on 20 validation rows, the labels of the first of which tell them apart."""
    rows = [f"film {number},{'good' if number % 3 else 'bad'}" for number in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]))
    mapping = {
        "task": "text-classification",
        "model": str(tiny_model),
        "data": {"train": "rows.csv", "validation_size": 20, "test_size": 20},
        "compress": ["none", "dynamic-int8"],
    }
    hardware = Hardware("cpu", 2, 2**33, (), "test", False, "Linux x86_64")
    recipe, run = recipe_from_mapping(mapping), RunDir(tmp_path / "run")
    plan = make_plan(recipe, catalog, hardware, tmp_path)
    run.create()
    prepared = prepare_data(recipe.data, catalog.task(plan.task), plan.options, 0, run.data, tmp_path)
    data = {"sizes": {"train": 20, "validation": 20, "test": 20}, "fingerprint": prepared.fingerprint}
    plan = plan.with_data(prepared.facts, data, [])
    write_json(run.plan, plan.model_dump(mode="json"))
    return Workplace.open(run)


def test_a_trial_is_judged_by_the_rows_that_the_search_has_decided_upon(place):
    config = place.plan.default_config()
    target = place.target(config.model, config.params, config.seed)
    model = place.task.load_model(target.source, target.context).eval()
    rows = place.data.validation[:]
    said = [answer["label"] for answer in place.task.predict(model, rows, target.context)]
    right = [one == row["label"] for one, row in zip(said, rows, strict=True)]

    def accuracy(count: int | None = None) -> float:
        return place.validator(target.context, count)(model)["accuracy"]

    assert accuracy() == pytest.approx(sum(right) / 20)
    # A checkpoint is judged by the first of them, however many are decided upon.
    first = accuracy(5)
    assert first == pytest.approx(sum(right[:5]) / 5)
    # By the word of the search: a file that it wrote on shared storage, another machine may see later.
    place.hear({"precision": {}, "decided": {"validation": 7}})
    assert accuracy() == pytest.approx(sum(right[:7]) / 7)
    assert accuracy(5) == first
    assert request_settings(place.plan, place)["decided"] == {"validation": 7}
    # A request that was sent before that may be the next to be read.
    place.hear({"precision": {}, "decided": {}})
    assert len(place.data.validation) == 7


def test_a_trial_within_which_fewer_rows_are_decided_upon_is_judged_by_these(place):
    """Its checkpoints are of more rows; what other trials are compared by is of those that all are judged by."""
    config = place.plan.default_config()
    # Nothing is learned, and nothing is measured: each compression is known not to fit.
    params = {**config.params, "train.epochs": 1, "full.learning_rate": 1e-12}
    config = config.model_copy(update={"number": 1, "kind": "search", "params": params})
    place.screened = {variant.name: {"model_size_bytes": 1.0} for variant in place.plan.variants}
    target = place.target(config.model, config.params, config.seed)
    torch.manual_seed(config.seed)
    model = place.task.load_model(target.source, target.context).eval()
    rows = place.data.validation[:]
    said = [answer["label"] for answer in place.task.predict(model, rows, target.context)]
    right = [one == row["label"] for one, row in zip(said, rows, strict=True)]
    assert sum(right) / 20 != sum(right[:7]) / 7

    def decides(point):
        place.decide({"validation": 7})
        return False

    result = run_trial(place, config, Callbacks(validation=decides))
    assert [point.validation["accuracy"] for point in result.curve] == pytest.approx([sum(right) / 20])
    assert result.validation["accuracy"] == pytest.approx(sum(right[:7]) / 7)


def test_the_middle_of_a_chain_is_scored_on_the_rows_that_its_fold_holds_out(place, monkeypatch):
    prepare_folds(open_data(place.run.data, whole=True), place.task, 3, 0, place.run.data)
    # The measurement itself, without a process of its own.
    monkeypatch.setattr("autoft.trial.measure_in_process", measure_folder)
    config = place.plan.default_config().model_copy(update={"number": 1, "kind": "fold", "parent": 0, "fold": 1})
    trial = Trial(place, config, Callbacks(), None, TrialResult(number=1, state="failed", config=config))
    model, target = trial.loaded()
    step = trial._step(
        "none",
        lambda folder: save_artifact(folder, model.eval(), target, writer=None, variant="none", objective="accuracy"),
    )
    found = []
    for fold in (0, 1):
        rows = place.splits(fold).validation[:]
        said = place.task.predict(model, rows, target.context)
        found.append(sum(one["label"] == row["label"] for one, row in zip(said, rows, strict=True)) / len(rows))
    assert found[0] != found[1]
    assert step.validation["accuracy"] == pytest.approx(found[1])


def test_a_process_that_trains_along_judges_by_the_rows_that_the_worker_judges_by(place, monkeypatch):
    """Of sharded weights all processes take part in each pass: one with more rows would wait for the others for good."""

    class Asked(Ranks):
        rank, size = 1, 2

        def __init__(self, *group):
            plan = place.plan.model_copy(update={"validation_rows": 5})
            config = place.plan.default_config().model_dump(mode="json")
            self.requests = [
                {"config": config, "plan": plan, "precision": {}, "decided": {"validation": 7}},
            ]

        def ask(self, request):
            # As where the worker has ended.
            return self.requests.pop() if self.requests else sys.exit()

        def begin(self, parts):
            return None

    monkeypatch.setattr(follower, "ProcessGroup", Asked)
    with pytest.raises(SystemExit):
        follower._follow(place, 1, place.run.path / "store")
    assert (len(place.data.validation), place.plan.rows_of_validation(7)) == (7, 5)


def test_a_variant_that_the_time_is_too_short_for_is_left_out_once_there_is_one_to_ship(place):
    notes: list[str] = []
    place.until = time.monotonic() + 30.0
    config = place.plan.default_config()
    result = TrialResult(number=0, state="failed", config=config)
    trial = Trial(place, config, Callbacks(note=notes.append), None, result)
    int8 = next(variant for variant in place.plan.variants if variant.name == "dynamic-int8")
    assert trial._too_late(int8) is None
    result.variants = [VariantResult(name="none", state="infeasible", seconds=50.0)]
    assert trial._too_late(int8) is None
    result.variants = [VariantResult(name="none", state="complete", seconds=20.0)]
    assert trial._too_late(int8) is None
    result.variants = [VariantResult(name="none", state="complete", seconds=50.0)]
    left_out = trial._too_late(int8)
    assert (left_out.name, left_out.state, left_out.validation) == ("dynamic-int8", "pruned", {})
    assert notes == [f"Trial 0, dynamic-int8: {left_out.reason}."]
    assert left_out.reason.startswith("left out: it takes about 50 s, and ")
    # What the budget does not offer is none to ship.
    place.plan.variants = [VariantPlan(name="dynamic-int8", chain=[])]
    assert trial._too_late(int8) is None
    place.plan.variants = [VariantPlan(name="none", chain=[]), int8]
    trial.until = None
    assert trial._too_late(int8) is None
