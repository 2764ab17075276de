from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict
from html.parser import HTMLParser

import pytest

from autoft.contracts import Chart, Mark, MarkedText, Picture, Pictures, Series
from autoft.errors import RunFolderError
from autoft.hardware import Hardware
from autoft.plan import StepPlan, VariantPlan, make_plan
from autoft.recipe import dump_recipe, recipe_from_mapping
from autoft.report import make_content, summary, write
from autoft.report.terminal import nearest_misses
from autoft.report.terminal import summary as printed
from autoft.rundir import (
    CurvePoint,
    Final,
    Interval,
    RunDir,
    StepResult,
    TrialConfig,
    TrialResult,
    VariantResult,
    read_run,
    write_json,
)
from autoft.selection import select

HOSTILE = '<script>alert("x")</script> & <b>|pipe|</b>'


def variant(name: str, accuracy: float, size: float, latency: float, **changes) -> VariantResult:
    costs = {"model_size_bytes": size, "latency_p50_ms": latency, "latency_p95_ms": 2 * latency}
    validation = {"accuracy": accuracy, "roc_auc": float("nan")}
    values = {"name": name, "state": "complete", "validation": validation, "costs": costs, "folder": f"x/{name}"}
    return VariantResult(**{**values, **changes})


def trial(number: int, accuracy: float, model: str, kind="search", state="complete") -> TrialResult:
    params = {"train.epochs": 3, "augment": "none", "full.learning_rate": 10.0 ** -(4 + number % 3)}
    config = TrialConfig(number=number, kind=kind, model=model, pipeline="full", params=params, seed=0)
    curve = [
        CurvePoint(
            samples=10 * i, epoch=i / 2, seconds=i, train_loss=1 / i, learning_rate=1e-4, validation={"accuracy": a}
        )
        for i, a in ((1, accuracy - 0.2), (2, accuracy))
    ]
    variants = [variant("none", accuracy, 90e6, 14.0), variant("onnx-int8", accuracy - 0.002, 23e6, 3.0)]
    return TrialResult(
        number=number,
        state=state,
        reason="behind after 1 epochs" if state == "pruned" else None,
        config=config,
        curve=curve,
        seconds={"total": 12.0},
        validation={"accuracy": accuracy},
        variants=variants if state == "complete" else [],
    )


def make_run(tmp_path, catalog, model, *, trials: int = 10, finished: bool = True, budget=None) -> RunDir:
    """Write the records of a search as a search does."""
    given = {
        "task": "text-classification",
        "model": str(model),
        "data": "reviews.csv",
        "effort": "quick",
        "budget": {"time": "10m", "model_size": "50MB", "latency": "5ms", **(budget or {})},
    }
    recipe = recipe_from_mapping(given, name="tiny")
    plan = make_plan(recipe, catalog, Hardware.probe()).with_data(
        {"labels": ["0", "1"]},
        {"sizes": {"train": 100, "validation": 50, "test": 50}, "fingerprint": "abc", "columns": {"text": "text"}},
        ("2 rows of the test split are in the training split too",),
    )
    run = RunDir(tmp_path / "tiny")
    run.create()
    run.recipe.write_text(dump_recipe(recipe), encoding="utf-8")
    write_json(run.plan, plan.model_dump(mode="json"))
    results = [
        trial(i, 0.7 + i / 100, str(model), kind="search" if i else "default", state="pruned" if i == 4 else "complete")
        for i in range(trials)
    ]
    for result in results:
        run.write_result(result)
    write_json(run.path / "importance.json", {"full.learning_rate": 0.8, "train.epochs": 0.2})
    if finished:
        selection = select(plan, results)
        write_json(run.path / "selection.json", selection.model_dump(mode="json"))
        interval = Interval(value=0.79, low=0.7, high=0.86, n=50)
        metrics = {
            "accuracy": interval,
            "roc_auc": Interval(value=float("nan"), low=float("nan"), high=float("nan"), n=50),
        }
        costs = {"model_size_bytes": 23e6, "latency_p50_ms": 3.1, "latency_p95_ms": 4.0, "request_length": 27.0}
        slow = {"model_size_bytes": 90e6, "latency_p50_ms": 15.5, "latency_p95_ms": 20.0}
        final = Final(
            test={"best": metrics, "default": metrics, "majority class": metrics},
            validation={"best": {"accuracy": 0.78}, "default": {"accuracy": 0.7}},
            costs={"best": costs, "default": slow},
            details=[
                {"kind": "table", "title": "Figures for each class", "columns": ["label", "F1"], "rows": [["0", 0.5]]},
                {"kind": "matrix", "title": "Confusion matrix", "labels": ["0", "1"], "values": [[20, 5], [0, 0]]},
                {"kind": "examples", "title": "Errors", "columns": ["text", "score"], "rows": [[HOSTILE, 0.9]]},
            ],
            seconds=321.0,
        )
        write_json(run.path / "final.json", final.model_dump(mode="json"))
        baseline = {"trivial": True, "validation": {"accuracy": 0.5}, "test": {"accuracy": interval.model_dump()}}
        write_json(run.path / "baselines.json", {"majority class": baseline})
    return run


class Page(HTMLParser):
    """Collects what the checks look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in {"href", "src", "xlink:href", "action"}:
                self.references.append(value)
        if tag not in {"meta", "link", "br", "img", "use", "path", "rect"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in {"meta", "link", "br", "img", "use", "path", "rect"}:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in {"meta", "link", "br", "img", "use", "path", "rect"}:
            assert self.open.pop() == tag


@pytest.fixture
def html(tmp_path, catalog, tiny_model) -> str:
    run = make_run(tmp_path, catalog, tiny_model)
    return write(read_run(run.path))["html"].read_text(encoding="utf-8")


def test_the_page_is_one_file_that_asks_nothing_of_the_network(html):
    page = Page(html)
    assert page.open == []
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"url\((?!#)|@import", html)
    assert not {"script", "link", "iframe", "img"} & set(page.tags)


def test_ids_are_unique_and_every_reference_has_its_target(html):
    page = Page(html)
    assert len(page.ids) == len(set(page.ids)) > 0
    used = {reference[1:] for reference in page.references} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert used <= set(page.ids)


def test_texts_of_the_data_stay_texts(html):
    assert "<script" not in html
    assert "&lt;script&gt;" in html


PICTURE = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture
def section(tmp_path, catalog, tiny_model) -> dict[str, str]:
    """The report of a run whose task shows marked texts, pictures and a chart, by kind."""
    run = make_run(tmp_path, catalog, tiny_model)
    details = [
        asdict(MarkedText("Entities", (("row 1", f"{HOSTILE} Ann met Bob in Rome", MARKS),))) | {"kind": "markedtext"},
        asdict(Pictures("Captions", (Picture(PICTURE, (("true", HOSTILE), ("said", "a dog"))),)))
        | {"kind": "pictures"},
        asdict(
            Chart(
                "Reliability", "how often it is right", "said", "so", (Series("model", (0.1, 0.9), (0.2, 0.8)),), True
            )
        )
        | {"kind": "chart"},
    ]
    final = json.loads((run.path / "final.json").read_text())
    write_json(run.path / "final.json", {**final, "details": details})
    plan = json.loads(run.plan.read_text())
    write_json(run.plan, {**plan, "notice": "Not for clinical use."})
    return {kind: path.read_text(encoding="utf-8") for kind, path in write(read_run(run.path)).items()}


AT = len(HOSTILE) + 1
MARKS = (
    Mark(AT, AT + 3, "person", "right"),
    Mark(AT + 8, AT + 11, "place", "wrong"),
    Mark(AT + 8, AT + 11, "person", "missed"),
    Mark(AT + 15, AT + 19, "place", "right"),
)


def test_marked_texts_show_what_was_found_said_wrongly_and_missed(section):
    page = Page(section["html"])
    assert page.open == []
    assert '<mark class="right" title="found">Ann<small>person</small></mark> met ' in section["html"]
    assert '<mark class="wrong" title="wrong">Bob<small>place</small></mark>' in section["html"]
    assert '<mark class="missed" title="missed">Bob<small>person</small></mark> in ' in section["html"]
    assert "[+Ann person] met [-Bob place][?Bob person] in [+Rome place]" in section["md"]
    assert "<script" not in section["html"]


def test_pictures_and_charts_of_a_task_are_part_of_the_page(section):
    page = Page(section["html"])
    assert PICTURE in page.references
    assert "<span>said:</span> a dog" in section["html"]
    assert section["html"].count("<svg ") == 6
    assert "Reliability" in section["html"]
    assert "model (said: so): 0.1: 0.2, 0.9: 0.8" in section["md"]


def test_a_picture_from_elsewhere_is_not_shown(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    final = json.loads((run.path / "final.json").read_text())
    picture = asdict(Pictures("Captions", (Picture("https://example.org/a.png", ()),))) | {"kind": "pictures"}
    write_json(run.path / "final.json", {**final, "details": [picture]})
    assert "example.org" not in write(read_run(run.path))["html"].read_text()


def test_the_notice_of_a_task_is_read_first(section):
    for text in (section["html"], section["md"]):
        assert 0 < text.index("Not for clinical use.") < text.index("Chosen model, default and baselines")


def test_every_plot_is_there_and_follows_the_page_in_its_colours(html):
    for title in (
        "Quality against size",
        "Quality against latency",
        "Search history against trial 0",
        "Importance of the parameters",
        "Curves of the trials",
        "Confusion matrix",
    ):
        assert title in html
    assert html.count("<svg ") == 5
    drawn = "".join(re.findall(r"<svg .*?</svg>", html, flags=re.DOTALL))
    assert "var(--series-1)" in drawn
    # Black is what Matplotlib falls back to: it would not be seen on a dark page.
    assert not re.search(r"(fill|stroke): #", drawn)


def test_a_budget_shows_as_a_line_and_in_the_table(tmp_path, catalog, tiny_model):
    free = make_run(tmp_path / "free", catalog, tiny_model, budget={"model_size": None, "latency": None})
    bound = make_run(tmp_path / "bound", catalog, tiny_model)
    texts = [write(read_run(run.path))["html"].read_text() for run in (free, bound)]
    assert ["var(--series-6)" in "".join(re.findall(r"<svg .*?</svg>", text, re.DOTALL)) for text in texts] == [
        False,
        True,
    ]
    rows = {row[0]: row[1:] for row in make_content(read_run(bound.path)).budget.rows}
    assert rows["model_size"] == ("50 MB", "23 MB", "met")
    assert rows["time"] == ("10 min 00 s", "5 min 21 s", "met")


def test_a_limit_that_the_exported_files_break_is_said(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model, budget={"latency": "3.05ms"})
    rows = {row[0]: row[1:] for row in make_content(read_run(run.path)).budget.rows}
    assert rows["latency.p50"] == ("3.05 ms", "3.10 ms", "NOT met")
    assert summary(read_run(run.path))["budget"]["latency.p50"]["met"] is False


def test_the_same_record_gives_the_same_bytes_in_another_process(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    before = {kind: path.read_bytes() for kind, path in write(read_run(run.path)).items()}
    code = (
        "import sys; from autoft.report import write; from autoft.rundir import read_run; write(read_run(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=True)
    assert {kind: (run.path / f"report.{kind}").read_bytes() for kind in before} == before


@pytest.mark.parametrize("trials", [0, 1, 3])
def test_an_unfinished_run_has_a_report(tmp_path, catalog, tiny_model, trials):
    run = make_run(tmp_path, catalog, tiny_model, trials=trials, finished=False)
    paths = write(read_run(run.path))
    assert "No model has been chosen yet." in paths["html"].read_text()
    assert json.loads(paths["json"].read_text())["best"] is None
    assert ("baselines" in json.loads(paths["json"].read_text())) is True


def test_report_json_is_json_with_null_for_what_is_not_defined(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    report = json.loads(write(read_run(run.path))["json"].read_text(), parse_constant=refuse)
    assert report["best"]["test"]["roc_auc"]["value"] is None
    assert report["best"]["test"]["accuracy"] == {"value": 0.79, "low": 0.7, "high": 0.86, "n": 50}
    assert report["trials"] == {"complete": 9, "pruned": 1, "infeasible": 0, "failed": 0}
    assert report["baselines"]["trivial"]["name"] == "majority class"
    assert report["baselines"]["default"]["costs"]["model_size_bytes"] == 90e6
    assert report["budget"]["latency.p50"] == {
        "limit": 5.0,
        "given": "5ms",
        "unit": "ms",
        "column": "latency_p50_ms",
        "measured": 3.1,
        "met": True,
    }


def test_nothing_feasible_shows_the_nearest_first(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model, finished=False, budget={"model_size": "20MB", "latency": "1ms"})
    content = make_content(read_run(run.path))
    assert content.headline == "Nothing that was tried fits the budget (model_size 20MB, latency.p50 1ms)."
    assert [row[1] for row in content.misses.rows] == ["onnx-int8", "none"]
    assert (
        "model_size 23 MB for 20MB (1.15 times the limit); latency.p50 3.00 ms for 1ms (3.00"
        in content.misses.rows[0][2]
    )
    import io

    from rich.console import Console

    console = Console(width=160, record=True, file=io.StringIO())
    console.print(nearest_misses(read_run(run.path)))
    said = console.export_text()
    assert "Nearest misses:" in said
    assert "onnx-int8" in said


def test_a_training_that_memory_cannot_hold_is_a_near_miss_too(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model, finished=False, budget={"train_memory": "500MB"})
    for result in run.results():
        short = result.model_copy(
            update={
                "state": "infeasible",
                "variants": [],
                "reason": f"training would take about {600 + result.number % 2} MB; nothing was trained",
                "violations": {"train_memory": 0.2},
            }
        )
        run.write_result(short)
    content = make_content(read_run(run.path))
    assert content.headline.startswith("Nothing that was tried fits the budget (")
    assert "train_memory 500MB" in content.headline
    reasons = [row[2] for row in content.misses.rows]
    assert reasons, "told although nothing was compressed"
    assert len(set(content.misses.rows)) == len(content.misses.rows), "each once"


def test_predictions_stand_beside_what_was_measured(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    assert make_content(read_run(run.path)).predictions is None, "nothing was predicted"
    results = {result.number: result for result in run.results()}
    figures = {0: (10.0, 8.0, 1.1e9, 1e9), 1: (30.0, 20.0, 0.8e9, 1e9)}
    for number, (seconds, took, memory, taken) in figures.items():
        params = {**results[number].config.params, "train.epochs": 1}
        update = {
            "predicted": {"seconds": seconds, "train_memory_bytes": memory},
            "seconds": {"total": took},
            "train_memory_bytes": int(taken),
            "state": "complete",
            "config": results[number].config.model_copy(update={"params": params}),
            "curve": [],
        }
        run.write_result(results[number].model_copy(update=update))
    view = make_content(read_run(run.path)).predictions
    assert view.rows == (
        ("0", "complete", "10 s", "8.0 s", "1.1 GB", "1 GB"),
        ("1", "complete", "30 s", "20 s", "800 MB", "1 GB"),
    )
    # 10/8 and 30/20 are 25 and 50 % off, 1.1 and 0.8 of 1 are 10 and 20 %.
    assert view.note == (
        "time: 38% off at the median, 50% at most (2 trials); training memory: 15% off at the median, 20% at most (2 trials)."
    )


def test_the_terminal_says_what_was_left_and_what_it_buys(tmp_path, catalog, tiny_model):
    import io

    from rich.console import Console

    run = make_run(tmp_path, catalog, tiny_model)
    out = io.StringIO()
    Console(width=200, file=out).print(printed(read_run(run.path)))
    text = out.getvalue()
    assert "test accuracy 0.7900 on 50 rows" in text
    assert "1/3.9 of its size and 5.0 times as fast" in text
    assert "majority class" in text


def test_markdown_tables_are_whole(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    text = write(read_run(run.path))["md"].read_text()
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if re.fullmatch(r"\|( :?--:? \|)+", line):
            width = line.count("|")
            rows = [lines[number - 1]]
            while number + 1 < len(lines) and lines[number + 1].startswith("|"):
                number += 1
                rows.append(lines[number])
            assert len(rows) > 1
            assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {width}
    assert text.count("### ") >= 6


def test_a_plan_of_something_else_is_a_damaged_folder(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    write_json(run.plan, {"name": "x"})
    with pytest.raises(RunFolderError, match=r"plan\.json: is damaged"):
        write(read_run(run.path))


def test_a_baseline_that_is_better_on_the_test_rows_only_is_told(tmp_path, catalog, tiny_model):
    from autoft.api import _beside_baselines
    from autoft.plan import plan_of

    run = make_run(tmp_path, catalog, tiny_model)
    record = read_run(run.path)
    (note,) = _beside_baselines(run, plan_of(record), record.final)
    assert note.startswith("majority class scores 0.7900 test accuracy, the chosen model 0.7900")
    better = record.final.test["best"]["accuracy"].model_copy(update={"value": 0.8})
    record.final.test["best"] = {"accuracy": better}
    assert _beside_baselines(run, plan_of(record), record.final) == []


def test_each_step_from_the_trained_model_to_the_chosen_one_is_shown(tmp_path, catalog, tiny_model):
    from autoft.plan import plan_of
    from autoft.report.content import _steps

    run = make_run(tmp_path, catalog, tiny_model, trials=2)
    record = read_run(run.path)
    chain = [
        StepPlan(strategy="layer-pruning", label="layer-pruning(keep=0.5)"),
        StepPlan(strategy="onnx", label="onnx"),
    ]
    name = "layer-pruning(keep=0.5)+onnx"
    record.plan["variants"].append(VariantPlan(name=name, chain=chain, trains=True).model_dump())

    def costs(size, latency):
        return {"model_size_bytes": size, "latency_p50_ms": latency}

    step = StepResult(name="layer-pruning(keep=0.5)", validation={"accuracy": 0.7}, costs=costs(50e6, 8.0))
    chosen = VariantResult(
        name=name, state="complete", validation={"accuracy": 0.69}, costs=costs(50e6, 2.0), steps=[step]
    )
    further = record.trials[0].config.model_copy(update={"kind": "compress", "number": 2, "members": [1]})
    record.trials.append(TrialResult(number=2, state="complete", config=further, variants=[chosen]))
    record.trials[1].variants = [
        VariantResult(name="none", state="complete", validation={"accuracy": 0.71}, costs=costs(90e6, 16.0))
    ]
    record.selection = record.selection.model_copy(update={"trial": 2, "variant": name})
    plan = plan_of(record)
    found = _steps(record, plan)
    assert found.columns == ("step", "validation accuracy", "model size", "latency p50")
    assert found.rows == (
        ("as trained", "0.7100", "90 MB", "16.00 ms"),
        ("layer-pruning(keep=0.5)", "0.7000", "50 MB (÷1.80)", "8.00 ms (÷2.00)"),
        ("onnx", "0.6900", "50 MB (÷1.00)", "2.00 ms (÷4.00)"),
    )
    record.trials[2].variants[0].steps = []
    assert _steps(record, plan) is None


def test_a_plot_of_one_model_has_two_figures_on_its_axis(tmp_path, catalog, tiny_model):
    from autoft.plan import plan_of

    run = make_run(tmp_path, catalog, tiny_model, trials=1, budget={"model_size": None, "latency": None})
    record = read_run(run.path)
    for trial_result in record.trials:
        trial_result.variants = [
            variant.model_copy(update={"costs": {"model_size_bytes": 7.56e6, "latency_p50_ms": 0.52}})
            for variant in trial_result.variants
        ]
        run.write_result(trial_result)
    write_json(run.path / "selection.json", select(plan_of(record), record.trials).model_dump(mode="json"))
    page = write(read_run(run.path))["html"].read_text(encoding="utf-8")
    drawn = "".join(re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL))
    assert {"6.4 MB", "8.9 MB", "0.44 ms", "0.61 ms"} <= set(re.findall(r">([0-9.]+ (?:MB|ms))<", drawn))
