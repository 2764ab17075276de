"""Several runs side by side: ``autoft compare``."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autoft import api
from autoft.cli import app
from autoft.errors import RunFolderError
from autoft.report.comparison import compared_figures, make_comparison, render_comparison
from autoft.rundir import RunDir, read_run, write_json

# The runs that the tests of the report are written with.
_spec = importlib.util.spec_from_file_location("report_runs", Path(__file__).with_name("test_report.py"))
runs_of_reports = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runs_of_reports)
make_run, drawn, HOSTILE = runs_of_reports.make_run, runs_of_reports.drawn, runs_of_reports.HOSTILE


def changed(run: RunDir, *, accuracy: tuple[float, float, float] | None = None, **plan) -> RunDir:
    """Change a run's plan, and what its chosen model scores on the test rows: value, low, high."""
    if plan:
        write_json(run.plan, {**json.loads(run.plan.read_text()), **plan})
    if accuracy:
        final = json.loads((run.path / "final.json").read_text())
        value, low, high = accuracy
        final["test"]["best"]["accuracy"] = {"value": value, "low": low, "high": high, "n": 50}
        write_json(run.path / "final.json", final)
    return run


@pytest.fixture
def pair(tmp_path, catalog, tiny_model) -> list[RunDir]:
    return [make_run(tmp_path / name, catalog, tiny_model) for name in ("a", "b")]


def compared(runs: list[RunDir]):
    return make_comparison([read_run(run.path) for run in runs])


def data(**changes) -> dict:
    return {"sizes": {"train": 100, "validation": 50, "test": 50}, "fingerprint": "abc", "columns": {}, **changes}


def test_folders_of_one_name_are_told_apart(pair):
    assert [run.name for run in compared(pair).runs] == ["a/tiny", "b/tiny"]


def test_the_same_rows_are_said_to_be_the_same(pair):
    found = compared(pair)
    assert (found.same_data, found.same_test) == (True, True)
    assert "the same rows in the same splits" in found.notes[0]
    assert found.settings is None or "data" not in {row[0] for row in found.settings.rows}


def test_other_rows_are_said_to_be_others_and_nothing_is_concluded(pair):
    changed(pair[1], data=data(fingerprint="xyz"))
    found = compared(pair)
    assert (found.same_data, found.same_test) == (False, False)
    assert found.notes[0].startswith("The test rows are NOT the same")
    assert not any("overlap" in note for note in found.notes)


def test_the_same_test_rows_with_other_training_rows_compare_on_the_test(pair):
    changed(pair[1], data=data(fingerprint="xyz"))
    for run in pair:
        write_json(run.data / "meta.json", {"splits": {"test": "t"}})
    found = compared(pair)
    assert (found.same_data, found.same_test) == (False, True)
    assert "validation figures may not" in found.notes[0]
    assert any("overlap" in note for note in found.notes)


def test_rows_that_are_not_known_are_not_called_the_same(pair):
    changed(pair[0], data={})
    changed(pair[1], data={})
    found = compared(pair)
    assert (found.same_data, found.same_test) == (False, False)
    assert "it is not known what rows" in found.notes[0]


@pytest.mark.parametrize(
    ("figure", "words"),
    [((0.9, 0.87, 0.93), "do not overlap"), ((0.8, 0.7, 0.9), "may be chance")],
)
def test_intervals_decide_what_is_said_of_two(pair, figure, words):
    changed(pair[1], accuracy=figure)
    (verdict,) = [note for note in compared(pair).notes if "overlap" in note]
    assert words in verdict
    assert verdict.startswith(f"b/tiny has {figure[0]:.4f} test accuracy, a/tiny 0.7900 ({0.79 - figure[0]:+.4f})")


def test_latencies_of_other_machines_are_not_compared(pair):
    assert not any("Latencies" in note for note in compared(pair).notes)
    changed(pair[1], threads=7)
    assert any("compare sizes, and not times" in note for note in compared(pair).notes)


def test_settings_that_differ_are_shown_and_no_others(tmp_path, catalog, tiny_model):
    runs = [
        make_run(tmp_path / name, catalog, tiny_model, budget=budget)
        for name, budget in (("a", {}), ("b", {"model_size": "30MB"}), ("c", {}))
    ]
    rows = {row[0]: row[1:] for row in compared(runs).settings.rows}
    assert rows == {"budget.model_size": ("50MB", "30MB", "the same")}


def test_an_unfinished_run_stands_beside_a_finished_one(tmp_path, catalog, tiny_model):
    runs = [
        make_run(tmp_path / "a", catalog, tiny_model),
        make_run(tmp_path / "b", catalog, tiny_model, trials=3, finished=False),
        make_run(tmp_path / "c", catalog, tiny_model, trials=0, finished=False),
    ]
    found = compared(runs)
    assert [row[3] for row in found.chosen.rows] == ["onnx-int8", "–", "–"]
    assert any("Not finished, or without a model that fits: b/tiny, c/tiny." in note for note in found.notes)
    figures = drawn(render_comparison(found))
    assert {trace["name"] for trace in figures["size"]["data"]} >= {"a/tiny", "b/tiny"}


def test_an_objective_of_another_kind_is_not_drawn_over_the_first(pair, tmp_path, catalog, tiny_model):
    third = changed(make_run(tmp_path / "c", catalog, tiny_model), objective="f1_macro")
    found = compared([*pair, third])
    assert any(note.startswith("The objectives differ: accuracy (a/tiny)") for note in found.notes)
    names = {trace["name"] for trace in compared_figures(found)["size"].data}
    assert names == {"a/tiny", "a/tiny, chosen", "b/tiny", "b/tiny, chosen"}
    assert not any("c/tiny" in note for note in found.notes if "overlap" in note)
    assert found.notes[0].startswith("All runs have the same rows in the same splits, but NOT the same task")
    assert any("stand only a/tiny, b/tiny" in note for note in found.notes)
    # Whichever comes first, those that have company are compared.
    turned = compared([third, *pair])
    assert [row.name for row in turned.quality.rows] == ["a/tiny", "a/tiny, default", "b/tiny", "b/tiny, default"]
    assert turned.quality.title == "Test accuracy"
    assert 'class="notice"' in render_comparison(turned)


@pytest.mark.parametrize("change", [{"objective": "f1_macro"}, {"task": "medical-qa"}])
def test_two_runs_of_different_objectives_share_no_scale(pair, change):
    changed(pair[1], **change)
    found = compared(pair)
    assert found.quality is None
    assert compared_figures(found) == {}
    assert "No two have the same task and objective: nothing is drawn on one scale." in found.notes
    assert "may be compared" not in found.notes[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vocabulary": 50257}, "tokens of bert, of which there are 50257"),
        ({"longest": 64}, "answers of 64 tokens at most"),
        ({}, None),
    ],
)
def test_perplexities_of_other_tokens_or_of_answers_that_are_cut_elsewhere_share_no_scale(pair, changes, told):
    """A plan as that of a model that writes, whose objective is perplexity."""
    for run in pair:
        plan = json.loads(run.plan.read_text())
        plan["metrics"]["accuracy"] = {"higher_is_better": False, "per_token": True, "of_targets": True}
        write_json(run.plan, plan)
    for model in plan["models"]:
        model["config"]["vocab_size"] = changes.get("vocabulary", model["config"]["vocab_size"])
    write_json(pair[1].plan, plan)
    for number in range(10):
        result = pair[1].read_result(number)
        result.config.params["train.max_length"] = changes.get("longest", result.config.params.get("train.max_length"))
        pair[1].write_result(result)
    found = compared(pair)
    differs = [note for note in found.notes if note.startswith("What accuracy counts differs: ")]
    assert [told in note for note in differs] == ([True] if told else [])
    assert (found.quality is None) == (told is not None)
    assert found.comparable == (told is None)
    assert ("NOT figures of the same thing" in found.notes[0]) == (told is not None)


def test_an_interval_that_is_not_defined_overlaps_with_none(pair):
    nan = float("nan")
    changed(pair[1], accuracy=(0.8, nan, nan))
    (verdict,) = [note for note in compared(pair).notes if note.startswith("b/tiny has 0.8000")]
    assert verdict.endswith("an interval is not defined, so that nothing is known of chance.")


def test_figures_of_other_rows_are_not_said_to_be_of_the_same(pair):
    assert "over the test rows" in compared(pair).quality.note
    changed(pair[1], data=data(fingerprint="xyz"))
    assert "over each run's own test rows" in compared(pair).quality.note


def test_the_page_is_one_file_with_its_own_scripts_only(pair):
    pair[1].path.rename(pair[1].path.with_name("x<script>y"))
    html = render_comparison(compared([pair[0], RunDir(pair[1].path.with_name("x<script>y"))]))
    page = runs_of_reports.Page(html)
    assert page.open == []
    assert html.count("<script") == 3
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert set(drawn(html)) == {"size", "latency", "progress"}
    assert "x&lt;script&gt;y" in html


def test_the_best_so_far_never_falls_and_counts_the_time_of_all_trials(pair):
    (progress,) = [trace for trace in compared_figures(compared(pair))["progress"].data if trace["name"] == "a/tiny"]
    # Ten trials of 12 seconds; the one that was stopped took its time, too.
    assert progress["x"] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.2, 1.4, 1.6, 1.8, 2.0])
    # The compressed models: the others are over the budget.
    assert progress["y"] == pytest.approx([0.698, 0.708, 0.718, 0.728, 0.748, 0.758, 0.768, 0.778, 0.788])


def test_too_few_runs_or_one_twice_are_refused(pair, tmp_path):
    with pytest.raises(RunFolderError, match="needs two run folders"):
        compared(pair[:1])
    with pytest.raises(RunFolderError, match="is named twice"):
        compared([pair[0], pair[0]])
    with pytest.raises(RunFolderError, match="no such run folder"):
        api.compare([pair[0].path, tmp_path / "nowhere"])


def test_the_command_writes_the_page_and_prints_what_was_chosen(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(app, ["compare", "a/tiny", "b/tiny"])
    assert answer.exit_code == 0, answer.output
    assert "compare.html" in answer.output
    assert re.search(r"a/tiny\s+tiny-bert\S*\s+onnx-int8", answer.output)
    assert "the same rows" in answer.output
    assert "<html" in (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert CliRunner().invoke(app, ["compare", "a/tiny"]).exit_code == 5


def test_the_command_prints_json_and_writes_a_page_only_where_asked(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(app, ["compare", "a/tiny", "b/tiny", "--json"])
    found = json.loads(answer.output, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert not (tmp_path / "compare.html").exists()
    assert found["same_data"] is found["same_test"] is True
    assert [run["best"]["variant"] for run in found["runs"]] == ["onnx-int8", "onnx-int8"]
    assert found["settings"] == {}
    asked = CliRunner().invoke(app, ["compare", "a/tiny", "b/tiny", "--json", "--output", "both.html"])
    assert json.loads(asked.output) == found == api.compare([run.path for run in pair])
    assert (tmp_path / "both.html").is_file()
