"""A study that several searches share: what each hears of the others, and what becomes of it when the database is away."""

from __future__ import annotations

import getpass
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import psutil
import pytest
import sqlalchemy
import yaml

from autoft import frozen_trials, shared_study
from autoft.errors import RecipeError, StudyError
from autoft.hardware import Hardware
from autoft.plans.plan import StepPlan, VariantPlan
from autoft.plans.planner import make_plan
from autoft.plans.screening import with_fallbacks
from autoft.recipe import dump_recipe, recipe_from_mapping
from autoft.rundir import CurvePoint, RunDir, TrialResult, VariantResult
from autoft.shared_study import RECORD, SharedStudy, study_name
from autoft.study_addresses import study_address

CPU = Hardware("cpu", 2, 8 * 2**30, (), "test", False, "Linux x86_64")
SECRET = "hunter2:/hunter2"


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(shared_study, "LOOK_EVERY", 0.02)
    monkeypatch.setattr(shared_study, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(shared_study, "TOLD_A_SECOND", math.inf)


@pytest.fixture
def plan(catalog, tiny_model):
    return films(catalog, tiny_model)


def films(catalog, model, fingerprint="rows", **changes):
    recipe = {"task": "text-classification", "model": str(model), "data": "train.csv", "name": "films", **changes}
    recipe.setdefault("budget", {"time": "5m", "model_size": "50MB"})
    data = {"sizes": {"train": 120, "validation": 40, "test": 40}, "fingerprint": fingerprint}
    return make_plan(recipe_from_mapping(recipe), catalog, CPU).with_data({"labels": ["a", "b"]}, data, ())


def result(plan, number, value=0.8, state="complete", **params) -> TrialResult:
    default = plan.default_config()
    config = default.model_copy(update={"number": number, "kind": "search", "params": {**default.params, **params}})
    variant = VariantResult(
        name="none", state="complete", validation={"accuracy": value}, costs={"model_size_bytes": 9e6}, folder="x"
    )
    point = CurvePoint(
        samples=60, epoch=0.5, seconds=1, train_loss=1, learning_rate=1e-4, validation={"accuracy": value / 2}
    )
    return TrialResult(
        number=number,
        state=state,
        config=config,
        curve=[point],
        validation={"accuracy": value},
        variants=[variant] if state == "complete" else [],
        violations={"memory": 1.0} if state == "infeasible" else {},
    )


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


class Driver:
    """A search's part in a study, as the search uses it."""

    def __init__(self, url: str, plan, folder: Path) -> None:
        self.notes: list[str] = []
        self.run = RunDir(folder)
        self.run.create()
        self.study = SharedStudy(study_address(url), plan, self.run, self.notes.append)
        self.heard: list = []

    def __enter__(self) -> Driver:
        self.study.open()
        return self

    def __exit__(self, *unused: object) -> None:
        self.study.close()

    def hears(self, count: int) -> list:
        until(lambda: len(self.heard) >= count or self.heard.extend(self.study.news()))
        self.heard += self.study.news()
        assert len(self.heard) == count
        return self.heard

    def tells(self, result: TrialResult, values: list[float] | None) -> None:
        self.study.started(result.config)
        self.study.ended(result, values)
        until(lambda: result.number in self.study._published)


def trials(url: str) -> list[optuna.trial.FrozenTrial]:
    """Return all trials of the only study that there is, as any other program reads them."""
    storage = shared_study.open_storage(study_address(url))
    (study,) = storage.get_all_studies()
    return storage.get_all_trials(study._study_id)


@pytest.fixture(params=["sqlite", "journal"])
def url(request, tmp_path) -> str:
    (tmp_path / "db").mkdir()
    return f"sqlite:///{tmp_path}/db/study.db" if request.param == "sqlite" else f"journal://{tmp_path}/db/study.log"


@pytest.fixture
def journal(tmp_path) -> str:
    (tmp_path / "db").mkdir()
    return f"journal://{tmp_path}/db/study.log"


def test_two_searches_hear_of_each_others_trials_once(url, plan, tmp_path):
    with Driver(url, plan, tmp_path / "a") as one, Driver(url, plan, tmp_path / "b") as other:
        assert one.study.seed != other.study.seed
        one.tells(result(plan, 0, 0.8), [0.8])
        one.tells(result(plan, 1, 0.7, "infeasible", **{"train.epochs": 1}), None)
        other.tells(result(plan, 0, 0.9), [0.9])
        first, second = other.hears(2)
        (theirs,) = one.hears(1)
    assert (first.values, second.values, theirs.values) == ([0.8], None, [0.9])
    assert first.result.config.params == result(plan, 0).config.params
    assert (first.result.curve[0].epoch, first.result.curve[0].validation) == (0.5, {"accuracy": 0.4})
    assert first.result.validation == {"accuracy": 0.8}
    assert (second.result.state, second.result.violations) == ("infeasible", {"memory": 1.0})
    assert {first.result.number, second.result.number} == {-1, -2}, "apart from the numbers of its own trials"
    found = trials(url)
    assert sorted((t.state.name, t.values) for t in found) == [
        ("COMPLETE", [0.8]),
        ("COMPLETE", [0.9]),
        ("PRUNED", None),
    ]
    best = next(t for t in found if t.values == [0.9])
    assert best.user_attrs["driver"] == other.study.driver
    assert (best.user_attrs["number"], best.user_attrs["variant"], best.user_attrs["model size MB"]) == (0, "none", 9.0)
    assert best.params["train.epochs"] == plan.default_config().params["train.epochs"]
    assert best.intermediate_values == {60: 0.45}


def test_a_journal_that_takes_long_to_read_is_waited_for_and_said_to_be_long(journal, plan, tmp_path, monkeypatch):
    with Driver(journal, plan, tmp_path / "a") as one:
        one.tells(result(plan, 0, 0.8), [0.8])
    storage = shared_study.open_storage(study_address(journal))
    (study,) = storage.get_all_studies()
    (told,) = storage.get_all_trials(study._study_id)
    for _ in range(300):
        storage.create_new_trial(study._study_id, template_trial=told)
    size = Path(study_address(journal).path).stat().st_size
    # What a slow machine is to a journal of some hundred megabytes.
    monkeypatch.setattr(shared_study, "OPENING", 0.001)
    monkeypatch.setattr(shared_study, "LONG_JOURNAL", size - 1)
    monkeypatch.setattr(shared_study, "JOURNAL_A_SECOND", size / 60)
    with Driver(journal, plan, tmp_path / "b") as other:
        assert "kB" in other.notes[0] or "MB" in other.notes[0]
        other.hears(1)


def test_a_trial_that_a_database_shows_after_a_later_one_is_heard_of_too(plan, tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    with Driver(url, plan, tmp_path / "a") as one, Driver(url, plan, tmp_path / "b") as other:
        one.tells(result(plan, 0, 0.8), [0.8])
        other.hears(1)
        # As if the next two had been begun later, and were done sooner than the one that comes now.
        other.study._read_up_to += 3
        one.tells(result(plan, 1, 0.7), [0.7])
        assert [heard.values for heard in other.hears(2)] == [[0.8], [0.7]]


def test_what_a_search_is_at_is_known_until_it_ends_or_is_taken_back(journal, plan, tmp_path):
    with Driver(journal, plan, tmp_path / "a") as one, Driver(journal, plan, tmp_path / "b") as other:
        first, second = result(plan, 0), result(plan, 1, **{"train.epochs": 1})
        one.study.started(first.config)
        one.study.started(second.config)
        until(lambda: len(other.study.going()) == 2)
        assert [config.params for config in other.study.going()] == [first.config.params, second.config.params]
        one.study.ended(first, [0.8])
        until(lambda: len(other.study.going()) == 1)
        one.study.taken_back(1)
        until(lambda: not other.study.going())
        other.hears(1)
    # No trial of Optuna's is left as running, nor one of what was taken back.
    assert [trial.state.name for trial in trials(journal)] == ["COMPLETE"]


def test_a_search_that_is_not_heard_of_any_more_keeps_nobody_from_what_it_was_at(journal, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_study, "BEAT_EVERY", math.inf)
    with Driver(journal, plan, tmp_path / "a") as one, Driver(journal, plan, tmp_path / "b") as other:
        one.study.started(result(plan, 0).config)
        until(other.study.going)
        monkeypatch.setattr(shared_study, "GONE_AFTER", 0.0)
        until(lambda: not other.study.going())


def test_a_search_that_is_started_again_tells_nothing_twice(url, plan, tmp_path):
    with Driver(url, plan, tmp_path / "a") as first:
        first.tells(result(plan, 0), [0.8])
        first.study.started(result(plan, 1).config)
        # As a search that is killed: it says no more.
        first.study._closing = True
        first.study._thread.join()
    with Driver(url, plan, tmp_path / "a") as again, Driver(url, plan, tmp_path / "b") as other:
        assert again.study.driver == first.study.driver
        again.study.ended(result(plan, 0), [0.8])
        again.tells(result(plan, 1, 0.7), [0.7])
        assert [one.values for one in other.hears(2)] == [[0.8], [0.7]]
        assert again.study.news() == []
    assert [trial.user_attrs["number"] for trial in trials(url)] == [0, 1]


def test_searches_of_other_data_or_another_space_do_not_mix(catalog, tiny_model, plan, journal, tmp_path):
    name = study_name(plan)
    assert name.startswith("films-")
    alike = films(
        catalog, tiny_model, budget={"time": "9h", "trials": 7, "model_size": "50MB"}, storage={"weights": "1MB"}
    )
    assert study_name(alike) == name
    assert study_name(films(catalog, tiny_model, search={"sampler": "random"})) == name
    # What an earlier call of a search found out by itself: a model that fits by a further chain alone, and a test of fewer rows.
    fallback = VariantPlan(name="x", chain=[StepPlan(strategy="x")])
    fallen = plan.model_copy(update={"fallbacks": [fallback]})
    assert study_name(with_fallbacks(fallen, {"x": [plan.models[0].name]})) == name
    assert study_name(plan.model_copy(update={"data": plan.of_rows({"test": 30})})) == name
    assert study_name(plan.model_copy(update={"data": plan.of_rows({"validation": 30})})) != name
    # Databases keep 512 characters.
    assert len(study_name(films(catalog, tiny_model, name="x" * 600))) < 256
    others = [
        films(catalog, tiny_model, fingerprint="other rows"),
        films(catalog, tiny_model, search={"seed": 1}),
        films(catalog, tiny_model, space={"train.epochs": [1, 2]}),
        films(catalog, tiny_model, search={"objectives": ["f1_macro"]}),
        films(catalog, tiny_model, budget={"model_size": "20MB"}),
        films(catalog, tiny_model, compress=["none"]),
        films(catalog, tiny_model, name="reviews"),
    ]
    assert len({name, *map(study_name, others)}) == 1 + len(others)
    with Driver(journal, plan, tmp_path / "a") as one, Driver(journal, others[0], tmp_path / "b") as other:
        one.tells(result(plan, 0), [0.8])
        other.tells(result(others[0], 0), [0.9])
        time.sleep(0.1)
        assert (one.study.news(), other.study.news()) == ([], [])


def test_while_the_database_is_away_the_search_goes_on_and_tells_it_later(journal, plan, tmp_path):
    with Driver(journal, plan, tmp_path / "a") as one, Driver(journal, plan, tmp_path / "b") as other:
        one.tells(result(plan, 0), [0.8])
        other.hears(1)
        (tmp_path / "db").rename(tmp_path / "away")
        one.study.ended(result(plan, 1, 0.7), [0.7])
        until(lambda: one.study.news() or one.notes)
        time.sleep(0.1)
        assert one.study.news() == []
        (note,) = one.notes
        assert "cannot be reached (FileNotFoundError" in note
        assert "goes on alone" in note
        (tmp_path / "away").rename(tmp_path / "db")
        assert [found.values for found in other.hears(2)] == [[0.8], [0.7]]
        until(lambda: one.study.news() or len(one.notes) == 2)
        assert "is back" in one.notes[1]
    assert [trial.user_attrs["number"] for trial in trials(journal)] == [0, 1]


def test_a_database_that_was_made_anew_is_told_everything(journal, plan, tmp_path):
    with Driver(journal, plan, tmp_path / "a") as one, Driver(journal, plan, tmp_path / "b") as other:
        one.tells(result(plan, 0), [0.8])
        other.hears(1)
        study_address(journal)
        (tmp_path / "db/study.log").unlink()
        one.study.ended(result(plan, 1, 0.7), [0.7])
        other.hears(2)
        until(lambda: len(trials(journal)) == 2)
    assert [trial.user_attrs["number"] for trial in trials(journal)] == [0, 1]


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_a_line_that_was_cut_off_is_told_again(cut, journal, plan, tmp_path):
    with Driver(journal, plan, tmp_path / "a") as one:
        one.tells(result(plan, 0), [0.8])
    path = tmp_path / "db/study.log"
    path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
    with Driver(journal, plan, tmp_path / "a") as again:
        again.study.ended(result(plan, 0), [0.8])
        again.tells(result(plan, 1, 0.7), [0.7])
    assert again.notes == []
    assert {trial.user_attrs["number"] for trial in trials(journal) if "number" in trial.user_attrs} == {0, 1}
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_what_cannot_be_told_at_the_end_is_said_and_told_by_the_next_call(journal, plan, tmp_path):
    with Driver(journal, plan, tmp_path / "a") as one:
        (tmp_path / "db").rename(tmp_path / "away")
        one.study.ended(result(plan, 0), [0.8])
    assert (
        one.notes[-1] == "1 trial is not in the shared study yet; the same command tells it, and trains nothing again."
    )
    (tmp_path / "away").rename(tmp_path / "db")
    with Driver(journal, plan, tmp_path / "a") as again:
        again.study.ended(result(plan, 0), [0.8])
    assert again.notes == []
    assert len(trials(journal)) == 1


def test_what_others_wrote_into_the_study_does_no_harm(journal, plan, tmp_path):
    with Driver(journal, plan, tmp_path / "a") as one:
        storage = shared_study.open_storage(study_address(journal))
        study = optuna.load_study(study_name=study_name(plan), storage=storage)
        good = json.loads(json.dumps(one.study._trial(result(plan, 9), [0.5]).system_attrs[RECORD]))
        damaged = [
            None,
            7,
            {},
            {**good, "config": 3},
            {**good, "config": {**good["config"], "params": {"x": [1]}}},
            {**good, "curve": [1]},
            {**good, "values": ["high"]},
            {**good, "values": [0.1, 0.2]},
            {**good, "state": "odd"},
            {**good, "trial": "first"},
        ]
        for record in [*damaged, {**good, "driver": "somebody"}]:
            attrs = {RECORD: record} if record is not None else {}
            study.add_trial(optuna.trial.create_trial(value=0.5, system_attrs=attrs))
        for value in (None, 3, {"running": 5}, {"running": [None, {"model": 1}]}):
            study.set_user_attr("driver x", value)
        study.set_user_attr("alive y", {})
        one.hears(1)
        assert one.study.going() == []
        assert one.notes == []


def test_a_look_into_a_database_reads_one_row_of_each_new_trial(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_study, "PAGE", 2)
    url, asked = f"sqlite:///{tmp_path}/study.db", []
    with Driver(url, plan, tmp_path / "a") as one:
        for number in range(5):
            one.tells(result(plan, number, number / 10), [number / 10])
    other = Driver(url, plan, tmp_path / "b")
    other.study._connect()
    sqlalchemy.event.listen(
        other.study._storage.engine, "before_cursor_execute", lambda *words: asked.append((words[2], words[3]))
    )
    other.study._look()
    assert [found.values for found in other.study.news()] == [[number / 10] for number in range(5)]
    asked = [words for words in asked if "trial_" in words[0]]
    assert len(asked) == 3
    assert all("trial_params" not in question and 2 in values for question, values in asked)
    other.study._look()
    assert other.study.news() == []


def test_a_database_is_told_many_trials_by_a_few_statements(plan, tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    driver = Driver(url, plan, tmp_path / "a")
    driver.study._connect()
    storage, study = driver.study._storage, driver.study._study
    told = [driver.study._trial(result(plan, number, 0.5 + number / 100), [0.5 + number / 100]) for number in range(6)]
    told[4].values, told[5].intermediate_values = [math.inf], {1: 0.5, 2: -math.inf}
    for trial in told[:2]:
        storage.create_new_trial(study, template_trial=trial)
    statements: list[str] = []
    sqlalchemy.event.listen(
        storage.engine, "before_cursor_execute", lambda _1, _2, statement, *_: statements.append(statement)
    )
    frozen_trials.insert_trials(storage, study, told[2:])
    # Optuna's own way takes some eighty for each trial.
    assert len(statements) < 20, [statement[:40] for statement in statements]
    found = trials(url)
    assert [trial.number for trial in found] == list(range(6))
    for there, trial in zip(found, told, strict=True):
        trial.number, trial._trial_id = there.number, there._trial_id
        assert there == trial


def test_who_has_very_many_to_tell_looks_into_the_study_meanwhile(journal, plan, tmp_path, monkeypatch):
    one, other = Driver(journal, plan, tmp_path / "a").study, Driver(journal, plan, tmp_path / "b").study
    one._exchange(closing=False)
    for number in range(5):
        one.ended(result(plan, number), [0.8])
    monkeypatch.setattr(shared_study, "LOOK_EVERY", -1.0)
    other.ended(result(plan, 0, 0.9), [0.9])
    other._exchange(closing=True)
    one._exchange(closing=False)
    assert one._dirty
    assert len(one._published) < 5
    assert [found.values for found in one.news()] == [[0.9]]
    one._exchange(closing=True)
    assert sorted(one._published) == [*range(5)]
    assert len(trials(journal)) == 6


def test_what_a_thousand_workers_are_at_is_told_in_part_and_now_and_then(journal, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_study, "TOLD_A_SECOND", 1000)
    one = Driver(journal, plan, tmp_path / "a").study
    for number in range(1000):
        one.started(result(plan, number).config)
        if number in {9, 19, 999}:
            one._exchange(closing=False)
    told = [json.loads(line) for line in Path(journal.removeprefix("journal://")).read_text().splitlines()]
    told = [line["user_attr"] for line in told if f"driver {one.driver}" in line.get("user_attr", {})]
    assert len(told) == 1
    one._exchange(closing=True)
    (study,) = shared_study.open_storage(study_address(journal)).get_all_studies()
    text = json.dumps(study.user_attrs[f"driver {one.driver}"])
    assert 50_000 < len(text) < 65_535


def test_what_a_database_has_no_room_for_is_cut(journal, plan, tmp_path):
    failed = result(plan, 0, state="failed").model_copy(update={"reason": "\N{PILE OF POO}" * 100_000})
    with Driver(journal, plan, tmp_path / "a") as one, Driver(journal, plan, tmp_path / "b") as other:
        one.tells(failed, None)
        assert other.hears(1)[0].result.state == "failed"
    (trial,) = trials(journal)
    assert max(len(json.dumps(value)) for value in trial.user_attrs.values()) < 65_535


def test_the_last_lines_name_a_search_that_did_better(journal, plan, tmp_path):
    with Driver(journal, plan, tmp_path / "a") as one, Driver(journal, plan, tmp_path / "b") as other:
        one.tells(result(plan, 0, 0.8), [0.8])
        other.tells(result(plan, 0, 0.7), [0.7])
        other.tells(result(plan, 1, 0.9, **{"train.epochs": 1}), [0.9])
        one.hears(2)
        other.hears(1)
        for driver in (one, other):
            driver.study.note_better()
    better = json.loads((tmp_path / "a/study.json").read_text())["better"]
    assert (better["value"], better["trial"], better["variant"]) == (0.9, 1, "none")
    assert better["folder"] == str(tmp_path / "b")
    assert "better" not in json.loads((tmp_path / "b/study.json").read_text())


@pytest.mark.parametrize("url", ["journal:///no/such/folder/study.log", "sqlite:////no/such/folder/study.db"])
def test_a_study_that_cannot_be_reached_at_the_start_is_one_error(url, plan, tmp_path):
    driver = Driver(url, plan, tmp_path / "a")
    with pytest.raises(StudyError, match="Nothing was trained") as caught:
        driver.study.open()
    assert str(caught.value).startswith(f"storage.study: {url}: ")
    assert caught.value.exit_code == 9


# -- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("journal:///shared/study.log", "journal:///shared/study.log"),
        ("grpc://head:13000", "grpc://head:13000"),
        ("sqlite:///study.db", "sqlite:///study.db"),
        ("sqlite:////data/study.db", "sqlite:////data/study.db"),
        ("postgresql+psycopg2://me@db/autoft", "postgresql+psycopg2://me@db/autoft"),
        (
            f"postgresql+psycopg://me:{SECRET}@db:5433/autoft?sslmode=require",
            "postgresql+psycopg://me@db:5433/autoft?sslmode=require",
        ),
        ("mysql+pymysql://db/autoft?user=me&password=hunter2", "mysql+pymysql://db/autoft?user=me&password="),
    ],
)
def test_an_address_is_shown_without_its_password(url, shown):
    assert study_address(url).shown == shown


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("study.log", "For a file write journal:///study.log"),
        ("postgre://db/x", "Did you mean postgresql://"),
        ("postgresql://db", "names no database"),
        ("journal://study.log", "third slash"),
        ("grpc://head", "grpc://host:13000"),
        ("grpc://head:port", "cannot be read as an address"),
        ("sqlite://study.db", "sqlite:///study.db"),
    ],
)
def test_what_is_no_address_says_what_it_should_be(url, said):
    with pytest.raises(RecipeError, match=r"storage\.study") as caught:
        recipe_from_mapping({"task": "t", "model": "m", "data": "d", "storage": url})
    assert said in str(caught.value)


@pytest.mark.parametrize("password", ["hun@ter2", "hun@t/er2", "hun ter2", "hun@@ter2"])
def test_a_part_of_a_password_is_not_taken_for_a_host(password):
    url = f"postgresql://me:{password}@db/autoft"
    with pytest.raises(RecipeError, match="in a password @ is written as %40, a space as %20") as caught:
        recipe_from_mapping({"task": "t", "model": "m", "data": "d"}, [f"storage.study={url}"])
    for part in ("hun", "ter2", "er2"):
        assert part not in str(caught.value)


def test_an_address_alone_is_that_of_the_study():
    recipe = recipe_from_mapping(
        {"task": "t", "model": "m", "data": "d", "storage": "sqlite:///a.db"}, ["storage.weights=2GB"]
    )
    assert (recipe.storage.study, recipe.storage.weights) == ("sqlite:///a.db", "2GB")


def test_a_password_is_in_no_file_and_no_message(catalog, tiny_model):
    url = f"postgresql+nothing://me:{SECRET}@db/autoft"
    recipe = recipe_from_mapping({"task": "t", "model": "m", "data": "d"}, [f"storage.study={url}"])
    assert recipe.storage.study == url
    assert "hunter2" not in dump_recipe(recipe)
    assert "postgresql+nothing://me@db/autoft" in dump_recipe(recipe)
    with pytest.raises(RecipeError) as caught:
        recipe_from_mapping({"task": "t", "model": "m", "data": "d"}, [f"storage.study=odd://me:{SECRET}@db/x"])
    assert "odd://me@db/x" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    address = study_address(url)
    for told in (
        f"no access to {url}",
        f"password {SECRET!r} is wrong",
        "connect(user='me', password='hunter2:/hunter2')",
    ):
        assert "hunter2" not in address.hidden(told)


def test_a_driver_that_is_missing_is_a_fault_of_the_recipe(catalog, tiny_model, monkeypatch):
    from autoft import study_addresses

    monkeypatch.setattr(study_addresses, "_installed", lambda module: False)
    for url, extra in (("postgresql://db/x", "postgresql"), ("mysql://db/x", "mysql"), ("grpc://db:1", "grpc")):
        with pytest.raises(RecipeError, match=r"storage\.study") as caught:
            films(catalog, tiny_model, storage=url)
        assert f'pip install "autoft[{extra}]"' in str(caught.value)
    assert films(catalog, tiny_model, storage="sqlite:///x.db")


def searched(folder: Path, run: str, model: Path, reviews: Path, study: str, *words: str, **environment: str):
    """Return a search that goes on over a small model, in a process of its own."""
    recipe = {
        "task": "text-classification",
        "model": str(model),
        "data": {"train": str(reviews), "validation_size": 80, "test_size": 80},
        "budget": {"time": "20m", "trials": 6},
        "effort": "quick",
        "compress": ["none"],
        "space": {"train.batch_size": 8, "full.learning_rate": {"low": 1e-4, "high": 6e-3}},
        "search": {"finalist_seeds": 0, "early_stopping": "none"},
        "storage": study,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return subprocess.Popen(
        [sys.executable, "-m", "autoft", "search", "tiny.yaml", "--run", run, *words],
        cwd=folder,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.slow
def test_a_later_search_goes_on_from_what_an_earlier_one_has_learned(journal, tmp_path, tiny_model, reviews):
    for run in ("a", "b"):
        process = searched(tmp_path, run, tiny_model, reviews, journal, "--set", "budget.trials=3")
        said = process.communicate(timeout=400)[0]
        assert process.returncode == 0, said
    a, b = (RunDir(tmp_path / run).results() for run in ("a", "b"))
    assert ([r.number for r in a], [r.number for r in b]) == ([0, 1, 2], [0, 1, 2])
    settings = [(r.config.model, r.config.pipeline, tuple(sorted(r.config.params.items()))) for r in (*a, *b)]
    assert len(set(settings)) == 5, "only the default is trained by each"
    assert len(trials(journal)) == 6
    best = {run: max(r.validation["accuracy"] for r in results) for run, results in (("a", a), ("b", b))}
    assert ("Better:" in said) == (best["a"] > best["b"])


# -- with servers -----------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_two_searches_share_a_study_by_a_grpc_proxy(plan, tmp_path):
    pytest.importorskip("grpc")
    port = free_port()
    serve = (
        "import optuna\n"
        f"storage = optuna.storages.RDBStorage('sqlite:///{tmp_path}/study.db')\n"
        f"optuna.storages.run_grpc_proxy_server(storage, host='127.0.0.1', port={port})\n"
    )
    url = f"grpc://127.0.0.1:{port}"
    server = subprocess.Popen([sys.executable, "-c", serve], stderr=subprocess.DEVNULL)
    try:
        with Driver(url, plan, tmp_path / "a") as one, Driver(url, plan, tmp_path / "b") as other:
            one.tells(result(plan, 0, 0.8), [0.8])
            other.tells(result(plan, 0, 0.9), [0.9])
            assert [found.values for found in other.hears(1)] == [[0.8]]
            assert [found.values for found in one.hears(1)] == [[0.9]]
            server.kill()
            server.wait()
            one.study.ended(result(plan, 1, 0.7), [0.7])
            until(lambda: one.study.news() or one.notes)
            assert "goes on alone" in one.notes[0]
            server = subprocess.Popen([sys.executable, "-c", serve], stderr=subprocess.DEVNULL)
            assert [found.values for found in other.hears(2)] == [[0.8], [0.7]]
    finally:
        server.kill()
        server.wait()
    assert len(trials(f"sqlite:///{tmp_path}/study.db")) == 3


class PostgreSQL:
    """A server of one's own, in a folder that is deleted afterwards."""

    SCHEME, MODULE = "postgresql", "psycopg"
    PASSWORD = "hunter2-hunter2"
    PROGRAMS = ("initdb", "pg_ctl", "createdb")
    REFUSAL = "password authentication failed"

    def __init__(self) -> None:
        # Debian keeps them out of the path.
        folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        folders += [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
        there = [folder for folder in folders if all((folder / name).is_file() for name in self.PROGRAMS)]
        if not there:
            pytest.skip("PostgreSQL's programs are not there")
        # It refuses to run as root.
        self.user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self.user and subprocess.run(["id", "postgres"], capture_output=True, check=False).returncode:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        self.bin, self.port = there[0], free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="autoft-postgresql-"))
        (self.folder / "password").write_text(self.PASSWORD)
        if self.user:
            subprocess.run(["chown", "-R", "postgres", str(self.folder)], check=True)
        self.program("initdb", "-D", "data", "-U", "me", "--pwfile=password", "--auth=scram-sha-256", "--no-sync")
        self.start()
        self.program("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "me", "autoft")

    def program(self, name: str, *words: str) -> None:
        subprocess.run(
            [*self.user, str(self.bin / name), *words],
            cwd=self.folder, env=os.environ | self.environment(), check=True, stdout=subprocess.DEVNULL, timeout=60,
        )  # fmt: skip

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1"
        self.program("pg_ctl", "-D", "data", "-o", options, "-l", "log", "-w", "start")

    def kill(self) -> None:
        pid = int((self.folder / "data/postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        until(lambda: not psutil.pid_exists(pid))

    def remove(self) -> None:
        self.program("pg_ctl", "-D", "data", "-m", "immediate", "stop")
        shutil.rmtree(self.folder)

    def environment(self) -> dict[str, str]:
        return {"PGPASSWORD": self.PASSWORD}

    def without_password(self) -> str:
        """Return an address that works where the environment is given."""
        return f"{self.SCHEME}://me@127.0.0.1:{self.port}/autoft"

    def address(self, password: str = PASSWORD) -> str:
        return f"{self.SCHEME}://me:{password}@127.0.0.1:{self.port}/autoft"


class MariaDB(PostgreSQL):
    """The same of MySQL's kind."""

    SCHEME, MODULE = "mysql", "pymysql"
    REFUSAL = "Access denied for user"

    def __init__(self) -> None:
        places = f"{os.environ['PATH']}:/usr/sbin"
        found = [shutil.which(name, path=places) for name in ("mariadbd", "mariadb-install-db")]
        if None in found:
            pytest.skip("MariaDB's programs are not there")
        self.program_of_server, install = map(str, found)
        self.port, self.folder = free_port(), Path(tempfile.mkdtemp(prefix="autoft-mariadb-"))
        (self.folder / "my.cnf").write_text(f"[client]\npassword={self.PASSWORD}\n")
        # What a server does at its start.
        (self.folder / "begin.sql").write_text(
            "CREATE DATABASE IF NOT EXISTS autoft CHARACTER SET utf8mb4;\n"
            f"CREATE USER IF NOT EXISTS me@'%' IDENTIFIED BY '{self.PASSWORD}';\nGRANT ALL ON autoft.* TO me@'%';\n"
        )
        words = ["--no-defaults", f"--datadir={self.folder}/data", "--skip-test-db", "--skip-name-resolve"]
        words += [f"--user={getpass.getuser()}", "--auth-root-authentication-method=normal"]
        subprocess.run([install, *words], check=True, capture_output=True, timeout=120)
        self.start()

    def start(self) -> None:
        words = ["--no-defaults", f"--datadir={self.folder}/data", f"--port={self.port}", "--bind-address=127.0.0.1"]
        words += [
            f"--socket={self.folder}/socket",
            f"--user={getpass.getuser()}",
            f"--init-file={self.folder}/begin.sql",
        ]
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen([self.program_of_server, *words], stdout=log, stderr=log)
        until(lambda: "ready for connections" in (self.folder / "log").read_text())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def environment(self) -> dict[str, str]:
        return {}

    def without_password(self) -> str:
        return f"{super().without_password()}?read_default_file={self.folder}/my.cnf"


@pytest.fixture(params=[PostgreSQL, MariaDB], ids=["postgresql", "mysql"])
def server(request):
    pytest.importorskip(request.param.MODULE)
    server = request.param()
    yield server
    server.remove()


@pytest.mark.slow
def test_two_searches_share_a_study_in_a_database_that_is_killed_and_started_again(server, plan, tmp_path):
    url = server.address()
    with Driver(url, plan, tmp_path / "a") as one, Driver(url, plan, tmp_path / "b") as other:
        one.tells(result(plan, 0, 0.8), [0.8])
        other.tells(result(plan, 0, 0.9), [0.9])
        assert [found.values for found in other.hears(1)] == [[0.8]]
        assert [found.values for found in one.hears(1)] == [[0.9]]
        server.kill()
        one.study.ended(result(plan, 1, 0.7), [0.7])
        until(lambda: one.study.news() or one.notes)
        server.start()
        assert [found.values for found in other.hears(2)] == [[0.8], [0.7]]
    found = trials(url)
    # A server that does not run is one error, which does not say the password.
    server.kill()
    late = Driver(url, plan, tmp_path / "c")
    with pytest.raises(StudyError, match="Nothing was trained") as caught:
        late.study.open()
    server.start()
    wrong = Driver(server.address("other"), plan, tmp_path / "d")
    with pytest.raises(StudyError, match=server.REFUSAL) as refused:
        wrong.study.open()
    assert len({(t.user_attrs["driver"], t.user_attrs["number"]) for t in found}) == len(found) == 3
    told = [*one.notes, *other.notes, str(caught.value), str(refused.value)]
    told += [path.read_text() for path in tmp_path.rglob("*.json")]
    assert not any(server.PASSWORD in text for text in told), told


def numbers(run: Path) -> set[int]:
    return {one.number for one in RunDir(run).results() if not one.config.derived}


@pytest.mark.slow
def test_two_searches_at_once_lose_nothing_and_tell_nothing_twice_whoever_is_killed(
    server, tmp_path, tiny_model, reviews
):
    def search(run: str) -> subprocess.Popen[str]:
        if run == "a":
            return searched(tmp_path, run, tiny_model, reviews, server.without_password(), **server.environment())
        study = ["--set", f"storage.study={server.address()}"]
        return searched(tmp_path, run, tiny_model, reviews, server.without_password(), *study)

    a, b = tmp_path / "a", tmp_path / "b"
    first, second = search("a"), search("b")
    try:
        wait(lambda: numbers(a) and numbers(b), first, second)
        server.kill()
        there = len(numbers(a))
        # On a quiet machine a trial is done before the study is asked again.
        wait(lambda: len(numbers(a)) > there and "goes on alone" in (a / "progress.json").read_text(), first)
        server.start()
        second.kill()
        second.communicate()
        second = search("b")
        said = [process.communicate(timeout=600)[0] for process in (first, second)]
        assert (first.returncode, second.returncode) == (0, 0), said
        found = trials(server.address())
    finally:
        for process in (first, second):
            process.kill()
    assert numbers(a) == numbers(b) == set(range(6))
    drivers = {run: json.loads((run / "study.json").read_text())["driver"] for run in (a, b)}
    told = sorted((trial.user_attrs["driver"], trial.user_attrs["number"]) for trial in found)
    assert told == sorted((drivers[run], number) for run in (a, b) for number in range(6))
    assert {trial.state.name for trial in found} <= {"COMPLETE", "PRUNED", "FAIL"}
    assert "goes on alone" in said[0]
    assert server.PASSWORD not in said[0] + said[1]
    for file in (path for run in (a, b) for path in run.rglob("*") if path.is_file()):
        assert server.PASSWORD.encode() not in file.read_bytes(), file


def wait(condition: Callable[[], object], *processes: subprocess.Popen[str]) -> None:
    """Wait for what searches do, for as long as they are at it."""
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
