from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from html import unescape as html_unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.contracts import Chart, Mark, MarkedText, Picture, Pictures, Series
from autoft.errors import RunFolderError
from autoft.hardware import Hardware
from autoft.plans.plan import StepPlan, VariantPlan, plan_of
from autoft.plans.planner import make_plan
from autoft.quantities import parse_bytes
from autoft.recipe import dump_recipe, recipe_from_mapping
from autoft.report import make_content, summary, write
from autoft.report.drawing import front_points, plain
from autoft.report.page import script_json
from autoft.report.terminal import closing, front_limits, front_rows, nearest_misses
from autoft.report.terminal import summary as printed
from autoft.report.views import TableView
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


def drawn(html: str) -> dict[str, dict[str, Any]]:
    """Return the plots of a page, as its script reads them; Plotly's own classes have checked each."""
    from plotly.graph_objects import Figure

    figures = json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.DOTALL)[1])
    for figure in figures.values():
        Figure(painted(figure))
    return figures


def painted(value: Any) -> Any:
    """Put a colour in place of each name of one, as the page's script does."""
    if isinstance(value, dict):
        return {key: painted(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [painted(entry) for entry in value]
    return "#123456" if isinstance(value, str) and value.startswith("$") else value


def texts_of(value: Any) -> Iterator[str]:
    """Go through the texts of a plot that Plotly reads as HTML."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from texts_of(entry)
    elif isinstance(value, str):
        yield value


def test_the_page_is_one_file_that_asks_nothing_of_the_network(html):
    page = Page(html)
    assert page.open == []
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"url\((?!#)|@import", html)
    assert not {"link", "iframe", "img", "object", "embed", "form"} & set(page.tags)


def test_the_page_says_itself_that_only_its_own_two_scripts_may_run(html):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1].replace("&#39;", "'")
    sources = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert sources["default-src"] == "'none'"
    assert html.index("Content-Security-Policy") < html.index("<style>") < html.index("<script")
    own = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    packed = re.search(r'<script type="text/plain" id="plotly">(.*?)</script>', html, re.DOTALL)[1]
    scripts = [own.encode(), gzip.decompress(base64.b64decode(packed))]
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts]
    assert sources["script-src"].split() == hashes
    assert "unsafe" not in sources["script-src"]


def test_the_page_is_small_enough_for_a_mail(html):
    assert len(html.encode()) < 2_500_000


def test_ids_are_unique_and_every_reference_has_its_target(html):
    page = Page(html)
    assert len(page.ids) == len(set(page.ids)) > 0
    used = {reference[1:] for reference in page.references} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert used <= set(page.ids)


def test_headings_follow_each_other_and_tables_are_labelled(html):
    levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", html)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    for table in re.findall(r"<table.*?</table>", html, re.DOTALL):
        assert "<caption>" in table or 'class="intervals"' in table
        assert '<th class="left" scope="col">' in table or 'scope="col"' in table
        assert 'scope="row"' in table
    assert re.findall(r'<th\b[^>]*scope="col"[^>]*></th>', html) == [], "a column without a name"
    assert 'lang="en"' in html
    plots = re.findall(r'<div class="plot"[^>]*>', html)
    assert plots
    assert all('role="img"' in plot and re.search(r'aria-label="[^"]{20,}"', plot) for plot in plots)


def colours(html: str, theme: str) -> dict[str, str]:
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    block = re.search(
        r":root \{(.*?)\}" if theme == "light" else r':root\[data-theme="dark"\] \{(.*?)\}', style, re.DOTALL
    )[1]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))


def luminance(colour: str) -> float:
    """After WCAG 2.1, relative luminance."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_read_and_seen(html, theme):
    """WCAG 2.1: 4.5 for text, 3 for lines and points."""
    found = colours(html, theme)
    for text in ("ink", "faint", "good", "bad", "limit", "link"):
        assert min(contrast(found[text], found[ground]) for ground in ("page", "panel")) >= 4.5, text
    assert contrast(found["ink"], found["mark"]) >= 4.5
    for place in range(1, 7):
        assert contrast(found[f"series-{place}"], found["page"]) >= 3, place
    scale = [luminance(found[f"scale-{place}"]) for place in range(1, 6)]
    assert scale == sorted(scale, reverse=theme == "light")


def test_the_dark_style_is_the_same_by_the_system_and_by_the_button(html):
    blocks = re.findall(r"(?:not\(\[data-theme=\"light\"\]\)|:root\[data-theme=\"dark\"\]) \{(.*?)\}", html, re.DOTALL)
    assert len(blocks) == 2
    assert blocks[0].split() == blocks[1].split()


def test_texts_of_the_data_stay_texts(html):
    assert html.count("<script") == 3
    assert "&lt;script&gt;" in html


def test_texts_in_plots_are_shown_and_not_read_as_html(tmp_path, catalog, tiny_model):
    """Names and reasons come from data and plugins: Plotly reads links and tags in its texts."""
    run = make_run(tmp_path, catalog, tiny_model)
    for result in run.results():
        params = {
            **result.config.params,
            "augment": f"{HOSTILE}{result.number % 2}",
            f"{HOSTILE}.rate": result.number / 10,
        }
        config = result.config.model_copy(update={"pipeline": HOSTILE, "params": params})
        run.write_result(result.model_copy(update={"reason": HOSTILE, "config": config}))
    write_json(run.path / "importance.json", {HOSTILE: 0.5, "</script><!--\u2028": 0.5})
    html = write(read_run(run.path))["html"].read_text(encoding="utf-8")
    assert html.count("<script") == html.count("</script>") == 3
    assert "\u2028" not in html.split('id="figures"')[1].split("</script>")[0]
    figures = drawn(html)
    assert {"history", "parallel", "curves", "importance", "rungs"} <= set(figures)
    texts = list(texts_of(figures))
    assert any("&lt;script&gt;" in text for text in texts)
    for text in texts:
        assert re.findall(r"<[^>]*>", re.sub(r"<br>|</?b>", "", text)) == []


@given(st.recursive(st.text(), lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=8))
def test_json_in_a_script_says_the_same_and_cannot_end_it(value):
    text = script_json(value)
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")


@given(st.text())
def test_a_text_is_the_same_after_plotly_has_read_it(text):
    """Plotly replaces these entities, and nothing else begins with < then."""
    read = plain(text).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert read == text
    assert not set(plain(text)) & set("<>")


@given(
    st.lists(st.tuples(st.floats(0.1, 1e9), st.integers(0, 20).map(lambda n: n / 20)), min_size=1, max_size=30),
    st.booleans(),
)
def test_the_front_is_what_a_search_over_all_pairs_finds(points, higher):
    sign = 1 if higher else -1
    corners = front_points(points, higher)
    for cost, _ in points:
        # The line at a cost is the best of all that cost as much or less.
        line = [q for c, q in corners if c <= cost][-1]
        assert line == sign * max(sign * q for c, q in points if c <= cost)
    assert [c for c, _ in corners] == sorted(c for c, _ in corners)


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
    found = re.sub(r'<span class="unseen">, (.*?)</span>', r"|\1|", section["html"])
    assert '<mark class="right">Ann<small>person|found|</small></mark> met ' in found
    assert '<mark class="wrong">Bob<small>place|wrong|</small></mark>' in found
    assert '<mark class="missed">Bob<small>person|missed|</small></mark> in ' in found
    assert "[+Ann person] met [-Bob place][?Bob person] in [+Rome place]" in section["md"]
    assert section["html"].count("<script") == 3


def test_pictures_and_charts_of_a_task_are_part_of_the_page(section):
    page = Page(section["html"])
    assert PICTURE in page.references
    assert "<span>said:</span> a dog" in section["html"]
    (chart,) = [figure for name, figure in drawn(section["html"]).items() if name.startswith("chart-")]
    assert (chart["data"][0]["x"], chart["data"][0]["y"]) == ([0.1, 0.9], [0.2, 0.8])
    assert chart["data"][1]["line"]["dash"] == "dash", "the diagonal"
    assert 'data-figure="chart-2"' in section["html"]
    # What a model says of a picture, which may be wrong, is not told as what it shows.
    assert re.findall(r'<img [^>]*alt="(.*?)"', section["html"]) == ["Picture 1, described below"]
    assert f"<span>true:</span> {HOSTILE}" in html_unescape(section["html"])
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
        "From the trained model to the shipped one",
        "Search history against trial 0",
        "Importance of the parameters",
        "Curves of the trials",
        "Early stopping (halving)",
        "Parameters of the trials",
        "Confusion matrix",
    ):
        assert title in html
    figures = drawn(html)
    assert set(figures) == {"size", "latency", "waterfall", "history", "curves", "rungs", "importance", "parallel"}
    places = re.findall(r'data-figure="([^"]+)"', html)
    assert sorted(places) == sorted(figures)
    known = set(colours(html, "light")) | {"shade"}
    used = {text[1:] for text in texts_of(figures) if text.startswith("$")}
    assert "series-1" in used
    assert used <= known
    # A colour of its own would not be seen on a dark page.
    assert not [text for text in texts_of(figures) if re.fullmatch(r"#[0-9a-fA-F]{3,8}", text)]


def test_every_candidate_says_what_it_is_and_whether_it_fits(html):
    (none, int8) = [trace for trace in drawn(html)["size"]["data"] if trace["name"] in {"none", "onnx-int8"}]
    assert len(none["hovertext"]) == len(int8["hovertext"]) == 9
    # 90 MB and 14 ms against limits of 50 MB and 5 ms.
    assert all("does not fit: model_size 80.0% over, latency.p50 180.0% over" in text for text in none["hovertext"])
    assert all(symbol.endswith("-open") for symbol in none["marker"]["symbol"])
    assert all("fits the budget" in text and "23 MB" in text and "3.00 ms" in text for text in int8["hovertext"])
    assert not any(symbol.endswith("-open") for symbol in int8["marker"]["symbol"])
    assert sum("<b>chosen</b>" in text for text in int8["hovertext"]) == 1
    assert "validation accuracy 0.7880" in int8["hovertext"][-1]


def test_the_waterfall_goes_from_trained_to_shipped(html):
    quality, size, latency = drawn(html)["waterfall"]["data"]
    assert quality["x"] == ["as trained", "1. onnx-int8"]
    assert quality["y"] == [0.79, 0.788]
    assert (size["y"], latency["y"]) == ([90e6, 23e6], [14.0, 3.0])
    assert size["text"] == ["90 MB", "23 MB"]


def test_the_history_shows_the_best_so_far_and_where_trials_stopped(html):
    traces = {trace["name"]: trace for trace in drawn(html)["history"]["data"] if trace["x"] != [None]}
    # Trial 4 was stopped: its last validation, and no part of the best. Uncompressed, each is better, and 90 MB of 50 MB.
    assert traces["best so far"]["x"] == list(range(10))
    assert traces["best so far"]["y"] == [0.698, 0.708, 0.718, 0.728, 0.728, 0.748, 0.758, 0.768, 0.778, 0.788]
    search = traces["search"]
    assert [symbol for x, symbol in zip(search["x"], search["marker"]["symbol"], strict=True) if x == 4] == ["x-thin"]


def test_the_table_of_trials_has_of_each_the_best_that_fits(tmp_path, catalog, tiny_model):
    view = make_content(read_run(make_run(tmp_path, catalog, tiny_model).path)).trials
    value, of = view.columns.index("validation accuracy"), view.columns.index("compression")
    assert [(row[value], row[of]) for row in view.rows[8:]] == [("0.7780", "onnx-int8"), ("0.7880", "onnx-int8")]


@pytest.mark.parametrize("better", ["more", "less"])
def test_what_pick_is_shown_with_is_kept_by_points_of_the_front(tmp_path, catalog, tiny_model, better):
    run = make_run(tmp_path, catalog, tiny_model)
    plan = json.loads(run.plan.read_text())
    plan["metrics"]["accuracy"]["higher_is_better"] = better == "more"
    run.plan.write_text(json.dumps(plan))
    record = read_run(run.path)
    size, quality = re.fullmatch(r"--size (\S+), or --quality (\S+)", front_limits(record)).groups()
    rows = front_rows(record)
    assert min(row["costs"]["model_size_bytes"] for row in rows) <= parse_bytes(size)
    figures = [row["accuracy"] for row in rows]
    assert min(figures) >= float(quality) if better == "more" else max(figures) <= float(quality)


def test_pick_is_shown_with_what_is_kept_by_points_whose_files_are_there(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    smallest = run.read_result(2)
    smallest.variants.append(variant("onnx-int4", 0.5, 7e6, 2.0, folder=None))
    run.write_result(smallest)
    plan = plan_of(read_run(run.path))
    plan.variants.append(plan.variants[-1].model_copy(update={"name": "onnx-int4"}))
    write_json(run.plan, plan.model_dump(mode="json"))
    selection = select(plan, run.results())
    write_json(run.path / "selection.json", selection.model_dump(mode="json"))
    record = read_run(run.path)
    (deleted,) = [row for row in front_rows(record) if row["variant"] == "onnx-int4"]
    assert deleted["remarks"] == ["files deleted"]
    assert front_limits(record) == "--size 23MB, or --quality 0.78"


def test_the_chosen_model_is_listed_where_it_is_not_on_the_front(tmp_path, catalog, tiny_model):
    record = read_run(make_run(tmp_path, catalog, tiny_model).path)
    chosen = (record.selection.trial, record.selection.variant)
    for candidate in record.selection.candidates:
        # As where its mean over seeds is less than a single figure of another.
        candidate.front = candidate.trial == 8
    assert {(row["trial"], row["variant"]) for row in front_rows(record) if "chosen" in row["remarks"]} == {chosen}


def test_the_last_line_says_where_a_search_of_the_same_study_did_better(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    study = {"driver": "a1", "study": "films-1", "address": "journal:///shared/study.log"}
    write_json(run.path / "study.json", study)
    assert closing(read_run(run.path), "runs/films")[-1].startswith("         model")
    better = {"objective": "accuracy", "value": 0.91234, "trial": 7, "variant": "onnx-int8"}
    write_json(run.path / "study.json", {**study, "better": {**better, "host": "two", "folder": "/data/runs/films"}})
    assert closing(read_run(run.path), "runs/films")[-1] == (
        "Better:  accuracy 0.9123 on validation: trial 7, onnx-int8, of the search in /data/runs/films on two"
    )


def test_the_first_sentence_says_that_the_default_was_cut_short(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    path = run.result(0)
    default = json.loads(path.read_text())
    default["config"]["params"]["train.epochs"] = 2
    for epoch, words in (
        (2.0, "of the plain default fine-tune, at"),
        (0.05, "(which ended after 0.05 of its 2 epochs), at"),
    ):
        default["curve"][-1]["epoch"] = epoch
        write_json(path, default)
        assert words in make_content(read_run(run.path)).headline


def test_of_a_model_that_scores_nothing_no_width_and_no_difference_is_told(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    path = run.path / "final.json"
    final = json.loads(path.read_text())
    final["test"]["best"]["accuracy"] = {"value": 0.0, "low": 0.0, "high": 0.0, "n": 16}
    final["validation"]["best"]["accuracy"] = 1.8e-38
    write_json(path, final)
    caveats = make_content(read_run(run.path)).caveats
    assert "Tested on 16 rows only." in caveats
    assert not any("interval of the test" in text for text in caveats)


def changed(run: RunDir, name: str, change: dict[str, Any]) -> RunDir:
    """Change what a file of a run says, nested tables one by one."""

    def merged(old: Any, new: Any) -> Any:
        if not (isinstance(old, dict) and isinstance(new, dict)):
            return new
        return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}

    write_json(run.path / name, merged(json.loads((run.path / name).read_text()), change))
    return run


LESS_IS_BETTER = {"metrics": {"accuracy": {"higher_is_better": False}}}


@pytest.mark.parametrize(
    ("value", "plan", "words"),
    [
        (0.9, {}, "better than the whole interval of the test: rows that helped to choose"),
        (0.6, {}, "worse than the whole interval of the test: its rows seem to be harder"),
        (0.9, LESS_IS_BETTER, "worse than the whole interval of the test: its rows seem to be harder"),
        (0.6, LESS_IS_BETTER, "better than the whole interval of the test: rows that helped to choose"),
    ],
)
def test_only_a_validation_that_flatters_is_told_to_have_chosen(tmp_path, catalog, tiny_model, value, plan, words):
    run = changed(make_run(tmp_path, catalog, tiny_model), "plan.json", plan)
    changed(run, "final.json", {"validation": {"best": {"accuracy": value}}})
    (said,) = [text for text in make_content(read_run(run.path)).caveats if "interval of the test" in text]
    assert words in said


@pytest.mark.parametrize(("budget", "more"), [({"trials": 3}, "trials"), ({"trials": 30}, "time"), ({}, "time")])
def test_what_a_short_search_wants_more_of_is_what_ended_it(tmp_path, catalog, tiny_model, budget, more):
    run = make_run(tmp_path, catalog, tiny_model, trials=3, budget=budget)
    assert f"3 trials came to an end: with more {more} the search may find better." in (
        make_content(read_run(run.path)).caveats
    )


def test_the_first_sentence_says_that_the_default_itself_was_chosen(tmp_path, catalog, tiny_model):
    run = changed(make_run(tmp_path, catalog, tiny_model), "selection.json", {"trial": 0, "variant": "none"})
    headline = make_content(read_run(run.path)).headline
    assert headline.endswith("(95 % interval 0.700 to 0.860). It is the plain default fine-tune.")


@pytest.mark.parametrize(
    ("size", "latency", "words"),
    [
        (180e6, 31.0, ", at 2.0 times its size and 2.0 times its latency."),
        (22.5e6, 31.0, ", at 1/4.0 of its size and 2.0 times its latency."),
        (72e6, 15.5, ", at 80% of its size."),
        (90e6, 15.0, "against 0.7900 of the plain default fine-tune (which ended after 1 of its 3 epochs)."),
    ],
)
def test_the_first_sentence_does_not_hide_what_costs_more(tmp_path, catalog, tiny_model, size, latency, words):
    costs = {"costs": {"best": {"model_size_bytes": size, "latency_p50_ms": latency}}}
    run = changed(make_run(tmp_path, catalog, tiny_model), "final.json", costs)
    assert make_content(read_run(run.path)).headline.endswith(words)


def test_nothing_is_said_twice(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model, budget={"model_size": None, "latency": None})
    told = [
        "data.train: 3 of 100 rows repeat the inputs of an earlier row: left out",
        "data.train: 2 of 100 rows are also in data.test: kept, as data.deduplicate is false",
        "data.train: hub://a/b names no revision; the data may change",
    ]
    changed(run, "plan.json", {"warnings": told})
    paths = write(read_run(run.path))
    for kind in ("html", "md"):
        page = paths[kind].read_text(encoding="utf-8")
        for words in ("Chosen because of", "The recipe limits time or trials only", *told):
            assert page.count(words) == 1, words
        assert "No training row repeats" not in page
        # What makes figures too good is read first; what was mended stands with the data.
        assert page.index(told[1]) < page.index("The search") < page.index(told[0])


def test_where_less_is_better_the_page_says_so_and_the_worst_is_above(tmp_path, catalog, tiny_model):
    run = changed(make_run(tmp_path, catalog, tiny_model), "plan.json", LESS_IS_BETTER)
    lost = run.results()[7]
    run.write_result(lost.model_copy(update={"state": "failed", "reason": "no luck", "curve": [], "variants": []}))
    run.write_result(run.results()[7].model_copy(update={"validation": {}}))
    content = make_content(read_run(run.path))
    assert "test accuracy (lower is better) 0.7900 on 50 rows" in content.headline
    assert content.metrics.rows[0][0] == "accuracy (lower is better)"
    assert content.metrics.rows[1][0] == "roc_auc"
    figures = drawn(write(read_run(run.path))["html"].read_text(encoding="utf-8"))
    for name in ("size", "latency", "history", "curves", "rungs", "waterfall"):
        assert figures[name]["layout"]["yaxis"]["title"]["text"] == "validation accuracy (lower is better)"
    (without,) = [trace for trace in figures["history"]["data"] if trace["name"] == "without a figure"]
    assert (without["x"], without["y"]) == ([7], [0.788]), "beside the worst, not the best"


def test_plots_of_checkpoints_say_by_how_many_rows_they_were_judged(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    words = "Checkpoints are judged by 20 of the 50 validation rows, the same in all trials."
    for rows, times in ((None, 0), (60, 0), (20, 2)):
        changed(run, "plan.json", {"validation_rows": rows})
        page = write(read_run(run.path))["html"].read_text(encoding="utf-8")
        assert len(re.findall(f"<figcaption>[^<]*{words}</figcaption>", page)) == times


def test_the_best_so_far_is_of_models_that_fit(tmp_path, catalog, tiny_model):
    """Trained to its end, compressed to nothing that fits: its uncompressed 90 MB are no best of 50 MB."""
    run = make_run(tmp_path, catalog, tiny_model)
    result = run.results()[6]
    variants = [variant("none", 0.99, 90e6, 14.0, state="infeasible"), VariantResult(name="onnx-int8", state="pruned")]
    run.write_result(result.model_copy(update={"variants": variants}))
    (best,) = [
        trace
        for trace in drawn(write(read_run(run.path))["html"].read_text())["history"]["data"]
        if trace["name"] == "best so far"
    ]
    assert max(best["y"]) == 0.788


def test_a_trial_that_does_not_fit_was_not_stopped(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    result = run.results()[6]
    run.write_result(result.model_copy(update={"state": "infeasible", "reason": "no compressed variant fits"}))
    curves = {trace["name"]: trace for trace in drawn(write(read_run(run.path))["html"].read_text())["curves"]["data"]}
    trials = {name: set(re.findall(r"trial (\d+)", " ".join(trace["hovertext"]))) for name, trace in curves.items()}
    assert trials["stopped early"] == {"4"}
    assert "6" in trials["other trials"]


def test_a_trial_given_up_at_a_further_fold_was_trained_to_its_end(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    for result in run.results():
        halted = result.number == 4
        changes = {"state": "complete"} if halted else {"state": "pruned", "reason": "behind after 3 of 5 folds"}
        run.write_result(result.model_copy(update=changes))
    assert make_content(read_run(run.path)).rungs is None


def test_a_time_limit_that_is_not_known_yet_is_told_as_the_recipe_has_it(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model, trials=0, finished=False, budget={"time": "4x"})
    rows = {row[0]: row[1:] for row in make_content(read_run(run.path)).budget.rows}
    assert rows["time"] == ("4 times one default training", "–", "–")


def test_a_request_of_pictures_has_no_tokens(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    assert "one request of 1 row, about 27 tokens, from the raw row" in make_content(read_run(run.path)).systems.note
    changed(run, "final.json", {"costs": {"best": {"request_length": 1.0}}})
    assert "one request of 1 row, from the raw row" in make_content(read_run(run.path)).systems.note


def test_a_plan_that_does_not_know_its_objective_is_damaged(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    plan = json.loads(run.plan.read_text())
    for damage in ({"metrics": {}}, {"objectives": []}, {"metrics": {"accuracy": {"higher_is_bette": True}}}):
        write_json(run.plan, plan | damage)
        with pytest.raises(RunFolderError, match=r"plan\.json: is damaged"):
            make_content(read_run(run.path))


@pytest.mark.parametrize(
    "damage",
    [{"kind": "tabl"}, {"kind": None}, {"columns": 5}, {"rows": [[1]]}, {"title": None}, {"rows": [3]}],
)
def test_a_section_of_the_task_that_is_damaged_is_named(damage, tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    path = run.path / "final.json"
    final = json.loads(path.read_text())
    table = {"kind": "table", "title": "Words", "columns": ["word", "count"], "rows": [["a", 1], ["b", None]]}
    write_json(path, final | {"details": [table]})
    assert make_content(read_run(run.path)).details[0]["view"].rows == (("a", "1"), ("b", "–"))
    write_json(path, final | {"details": [table | damage]})
    with pytest.raises(RunFolderError, match=r"final\.json: is damaged \(in details: .*delete this file"):
        make_content(read_run(run.path))


def put(run: RunDir, name: str, place: str, value: Any) -> None:
    """Change one value of a JSON file; ``place`` has its keys with slashes between them."""
    path = run.path / name
    document = at = json.loads(path.read_text())
    *above, last = [int(key) if key.isdigit() else key for key in place.split("/")]
    for key in above:
        at = at[key]
    at[last] = value
    path.write_text(json.dumps(document))


def test_a_run_that_a_stranger_sends_is_read_or_told_to_be_damaged(tmp_path, catalog, tiny_model):
    """What was changed in such a folder and ended a command in a traceback."""
    changes = [
        ("plan.json", "models", []),
        ("plan.json", "pipelines", []),
        ("plan.json", "budget/0/limit", 0),
        ("plan.json", "time_limit", float("nan")),
        ("plan.json", "threads", 0),
        ("plan.json", "tolerance", float("nan")),
        ("plan.json", "space/train.epochs/kind", "x"),
        ("plan.json", "space/train.epochs/low", "x"),
        ("plan.json", "data/sizes/train", -1),
        ("selection.json", "candidates", []),
        ("selection.json", "candidates/1/trial", 77),
        ("final.json", "costs/best", None),
        ("final.json", "costs", {}),
        ("final.json", "validation", {}),
        ("final.json", "details/0/rows", [[1, 2, 3]]),
        ("trials/0002/result.json", "config/kind", "ensemble"),
        ("study.json", "better", {"value": "{0.__class__}"}),
        ("study.json", "better", [1]),
        ("screening.json", "m", 3),
        ("screening.json", "m", {"none": {"model_size_bytes": "much"}}),
    ]
    run = make_run(tmp_path, catalog, tiny_model)
    for name in ("study.json", "screening.json"):
        write_json(run.path / name, {})
    before = {name: (run.path / name).read_text() for name, _, _ in changes}

    def look() -> None:
        record = read_run(run.path)
        write(record)
        closing(record, "runs/x")

    look()
    for name, place, value in changes:
        put(run, name, place, value)
        with pytest.raises(RunFolderError, match="damaged"):
            look()
        (run.path / name).write_text(before[name])
    # These are odd, and no more.
    put(run, "trials/0002/result.json", "config/model", "/")
    put(
        run,
        "final.json",
        "details",
        [{"kind": "chart", "title": "", "caption": "", "x_label": "", "y_label": "", "series": []}],
    )
    look()


def test_a_default_without_a_figure_is_no_yardstick(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    path = run.path / "final.json"
    final = json.loads(path.read_text())
    final["test"]["default"]["accuracy"] |= {"value": float("nan")}
    write_json(path, final)
    assert not any("nan" in text for text in make_content(read_run(run.path)).caveats)


def test_a_figure_that_is_not_defined_is_said_in_words(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    path, nan = run.path / "final.json", float("nan")
    final = json.loads(path.read_text())
    for value, words in ((nan, "is not defined on these 50 rows."), (0.5, "accuracy 0.5000 on 50 rows, against 0.79")):
        final["test"]["best"]["accuracy"] = {"value": value, "low": nan, "high": nan, "n": 50}
        write_json(path, final)
        content = make_content(read_run(run.path))
        assert words in content.headline
        assert not any("nan" in text for text in (content.headline, *content.caveats, *content.systems.rows[0]))


def test_figures_have_as_many_digits_as_they_are_read_with(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    figure = {"value": 537.95094, "low": 519.8861, "high": 552.4029, "n": 50}
    details = [{"kind": "table", "title": "Lengths", "columns": ["words", "share"], "rows": [[85.0, 0.0625]]}]
    changed(run, "final.json", {"test": {"best": {"accuracy": figure}}, "details": details})
    content = make_content(read_run(run.path))
    assert "accuracy 537.95 on 50 rows (95 % interval 519.9 to 552.4), against 0.7900 of" in content.headline
    assert content.systems.rows[0][1] == "537.95 (519.9–552.4)"
    assert content.quality.rows[0].interval == "519.9–552.4"
    assert content.details[0]["view"].rows == (("85.00", "0.0625"),)


def test_short_texts_leave_room_to_the_long_ones_of_their_column():
    rows = (("a", "short", "0.5" * 20), ("b", "long " * 20, "0.5"))
    assert TableView("t", ("row", "text", "score"), rows, left=frozenset({0, 1})).words == {1}


def test_examples_are_read_below_each_other_where_there_is_no_room(html):
    (table,) = re.findall(r'<table class="examples">.*?</table>', html, re.DOTALL)
    assert re.findall(r'data-column="(.*?)"', table) == ["text", "score"]
    assert html.count("data-column=") == 2


def test_a_step_without_a_figure_does_not_cost_the_report(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    for result in run.results():
        changed = [one.model_copy(update={"validation": {"accuracy": float("nan")}}) for one in result.variants[:1]]
        slow = [
            one.model_copy(update={"costs": {**one.costs, "latency_p50_ms": float("inf")}})
            for one in result.variants[:1]
        ]
        run.write_result(
            result.model_copy(update={"variants": (changed if result.number else slow) + result.variants[1:]})
        )
    write_json(run.path / "selection.json", select(plan_of(read_run(run.path)), run.results()).model_dump(mode="json"))
    page = drawn(write(read_run(run.path))["html"].read_text())
    assert page["waterfall"]["data"][0]["y"] == [None, 0.788]
    assert [trace["name"] for trace in page["latency"]["data"] if trace["name"] == "none"] == []


@pytest.mark.parametrize(("smaller", "words"), [(True, "by 0.2900: that is what its smaller"), (False, "by 0.2900.")])
def test_a_worse_model_is_only_called_cheaper_where_it_is(tmp_path, catalog, tiny_model, smaller, words):
    run = make_run(tmp_path, catalog, tiny_model)
    final = json.loads((run.path / "final.json").read_text())
    final["test"]["best"]["accuracy"] = {"value": 0.5, "low": 0.45, "high": 0.55, "n": 50}
    if not smaller:
        final["costs"]["best"] = final["costs"]["default"]
    write_json(run.path / "final.json", final)
    (said,) = [one for one in make_content(read_run(run.path)).caveats if "is worse than the default" in one]
    assert words in said


def test_what_was_refused_for_the_same_reason_is_told_once(tmp_path, catalog, tiny_model):
    notes = [("onnx", "no trace"), ("awq", "needs a GPU"), ("onnx-int8", "onnx-int8: no trace")]
    refusals = [{"what": what, "reason": reason} for what, reason in notes]
    run = make_run(tmp_path, catalog, tiny_model)
    changed(run, "plan.json", {"refusals": refusals, "illegal": [["a/b", "lora", "no trace"]]})
    assert make_content(read_run(run.path)).refused == [
        ("onnx, onnx-int8, lora with b", "no trace"),
        ("awq", "needs a GPU"),
    ]


def test_where_trials_were_stopped_is_counted(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    view = make_content(read_run(run.path)).rungs
    # Ten trials of three epochs, validated at 0.5 and 1: only after 1/3 is a quarter passed; trial 4 ends there.
    assert [row[:3] for row in view.rows] == [("25% to 50%", "10", "1")]
    assert view.note == "1 trial stopped before the end took 12 s."
    run.write_result(run.results()[4].model_copy(update={"predicted": {"seconds": 40.0}}))
    told = make_content(read_run(run.path)).rungs.note
    assert told.endswith("took 12 s; to its end it would have taken about 40 s, as predicted.")


def test_what_failed_is_told_with_its_reason_once(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    for result in run.results():
        if result.number in {2, 3}:
            change = {"state": "failed", "reason": "out of luck", "variants": []}
        elif result.number == 5:
            change = {"variants": [*result.variants, VariantResult(name="awq", state="failed", reason="no kernel")]}
        else:
            continue
        run.write_result(result.model_copy(update=change))
    rows = make_content(read_run(run.path)).failures.rows
    assert [row[1:] for row in rows] == [("failed", "2, 3", "out of luck"), ("failed", "5", "no kernel")]
    assert rows[1][0].endswith("full, awq")


def test_the_first_screen_has_the_model_beside_the_default_and_its_limits(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    content = make_content(read_run(run.path))
    meters = {meter.label: meter for meter in content.meters}
    size = meters["model size"]
    assert (size.value, size.default, size.limit, size.met, size.better) == ("23 MB", "90 MB", "50 MB", True, True)
    # Lengths are shares of the longest, here the default's.
    assert (size.length, size.default_length, size.limit_at) == pytest.approx((25.56, 100, 55.56))
    assert size.compared == "3.9 times smaller than the default's 90 MB"
    assert meters["latency p50"].met is True
    assert [row.name for row in content.quality.rows] == ["chosen model", "default fine-tune", "majority class"]
    assert content.quality.rows[0].interval == "0.700–0.860"
    assert content.load.count("\n") == 2, "three lines"


@pytest.mark.parametrize("kind", ["md", "html"])
def test_the_commands_of_a_report_say_where_they_run(kind, tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    text = write(read_run(run.path))[kind].read_text(encoding="utf-8")
    used = text[text.index(f"autoft predict {run.path.name}") :]
    assert "From the folder that holds the run folder" in used[:1000]


def test_what_the_figures_do_not_say_is_said(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model, budget={"latency": "3.05ms"})
    caveats = make_content(read_run(run.path)).caveats
    assert caveats[0] == "The limit on latency.p50 is not met: the exported files are 1.6% over it."
    assert any("on 50 rows a difference of +0.0000 may be chance" in sentence for sentence in caveats)
    assert any(sentence.startswith("Tested on 50 rows only") for sentence in caveats)
    assert any("one training run" in sentence for sentence in caveats)


def test_a_baseline_that_does_as_well_is_said_before_all_else(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    final = json.loads((run.path / "final.json").read_text())
    write_json(run.path / "final.json", {**final, "notes": ["a rule that learns nothing does as well"]})
    page = write(read_run(run.path))["html"].read_text()
    assert page.index("a rule that learns nothing does as well") < page.index("Tested on 50 rows only")


def test_parts_of_the_test_rows_stand_beside_all_of_them(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    assert make_content(read_run(run.path)).slices == [], "a run of before there were any"
    figures = [
        {
            "by": by,
            "name": name,
            "metric": "accuracy",
            "figure": {"value": value, "low": value - 0.1, "high": value, "n": n},
        }
        for by, name, value, n in (
            ("length", "1 to 9", 0.9, 30),
            ("length", "10 to 99", 0.5, 20),
            ("label", HOSTILE, 0.8, 9),
        )
    ]
    final = json.loads((run.path / "final.json").read_text())
    write_json(run.path / "final.json", {**final, "slices": figures})
    paths = write(read_run(run.path))
    length, label = make_content(read_run(run.path)).slices
    assert [(row.name, row.value, row.n) for row in length.rows] == [
        ("all test rows", "0.7900", 50),
        ("1 to 9", "0.9000", 30),
        ("10 to 99", "0.5000", 20),
    ]
    assert [row.name for row in label.rows] == ["all test rows", HOSTILE]
    changed(run, "final.json", {"slices": [{**part, "metric": "other"} for part in figures]})
    assert not any(row.marked for view in make_content(read_run(run.path)).slices for row in view.rows)
    assert "Test accuracy by length" in paths["html"].read_text(encoding="utf-8")
    assert "10 to 99" in paths["md"].read_text(encoding="utf-8")


def test_repeated_and_leaked_rows_are_told_with_the_data(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    assert "No training row repeats" in make_content(read_run(run.path)).data_notes[0]
    note = "data.train: 3 of 100 rows are also in data.test: left out"
    plan = json.loads(run.plan.read_text())
    write_json(run.plan, {**plan, "warnings": [note]})
    assert make_content(read_run(run.path)).data_notes == [note]


def test_the_commands_that_repeat_the_run_name_its_versions(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    plan = json.loads(run.plan.read_text())
    write_json(run.plan, {**plan, "environment": {"python": "3.11.7", "autoft": "0.1.0", "torch": "2.13.0+cpu"}})
    text = make_content(read_run(run.path)).repeat
    assert text == "# Python 3.11.7\npip install autoft==0.1.0 torch==2.13.0\nautoft search recipe.yaml"


def test_a_budget_shows_as_a_line_and_in_the_table(tmp_path, catalog, tiny_model):
    free = make_run(tmp_path / "free", catalog, tiny_model, budget={"model_size": None, "latency": None})
    bound = make_run(tmp_path / "bound", catalog, tiny_model)
    lines = []
    for run in (free, bound):
        figures = drawn(write(read_run(run.path))["html"].read_text())
        shapes = [figures[name]["layout"]["shapes"] for name in ("size", "latency")]
        lines.append([[shape["x0"] for shape in found if shape["type"] == "line"] for found in shapes])
    assert lines == [[[], []], [[50e6], [5.0]]]
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


def test_an_unfinished_run_says_what_it_has_come_to(tmp_path, catalog, tiny_model):
    def headline(name, **settings):
        return make_content(
            read_run(make_run(tmp_path / name, catalog, tiny_model, finished=False, **settings).path)
        ).headline

    assert headline("none", trials=0).endswith("No trial is done.")
    # Of six trials the last is the best; 50 MB and 5 ms leave the compressed model.
    assert headline("some", trials=6).endswith(
        f"trial 5 ({tiny_model.name}, full, onnx-int8), validation accuracy 0.7480, which fits the budget."
    )
    run = make_run(tmp_path / "failed", catalog, tiny_model, trials=3, finished=False)
    for result in run.results():
        run.write_result(result.model_copy(update={"state": "failed", "reason": "no luck", "variants": []}))
    assert make_content(read_run(run.path)).headline.endswith("3 trials failed, 3 of them with: no luck")


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
    Console(width=300, file=out).print(printed(read_run(run.path)))
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
    assert "&lt;script>" in text
    assert "<script" not in text


def test_what_a_reader_copies_out_of_the_report_is_what_it_seems(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    given = {
        "python": "3.11.4\nrm -rf /",
        "numpy": "2.1.0+cpu",
        "torch; rm -rf /": "1",
        "--index-url": "http://elsewhere",
        "evil": "1; rm -rf /",
    }
    changed(run, "plan.json", {"environment": given, "autoft": "0.1.0"})
    changed(run, "final.json", {"example": "a\n````\n<img src=x>"})
    record = read_run(run.path)
    install, search = make_content(record).repeat.splitlines()
    assert re.fullmatch(r"pip install autoft==0\.1\.0( [a-z-]+==[\d.]+)* numpy==2\.1\.0", install)
    assert search == "autoft search recipe.yaml"
    text = write(record)["md"].read_text(encoding="utf-8")
    command = text[text.index("autoft predict") :]
    assert text[: text.index("autoft predict")].endswith("\n`````\n")
    assert command[: command.index("\n`````\n")].endswith("a\n````\n<img src=x>'")


def test_a_plan_of_something_else_is_a_damaged_folder(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    write_json(run.plan, {"name": "x"})
    with pytest.raises(RunFolderError, match=r"plan\.json: is damaged"):
        write(read_run(run.path))


def test_a_plan_whose_mappings_have_other_keys_is_named_as_damaged(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model)
    plan = json.loads(run.plan.read_text(encoding="utf-8"))
    sizes = {"train": 1, "validation": 1, "test": 1}
    for changes, where in (
        ({"data": {"sizfs": sizes}}, "data.sizes"),
        ({"data": {"sizes": {"train": 1, "validation": 1}}}, "data.sizes.test"),
        ({"data": {"sizes": {**sizes, "validation": []}}}, "data.sizes.validation"),
        ({"data": {"sizes": sizes, "columns": 3}}, "data.columns"),
        ({"hardware": {"memory_bytes": "much"}}, "hardware.memory_bytes"),
        ({"request": {"batch_sizf": 1, "length": None}}, "request.batch_size"),
    ):
        write_json(run.plan, {**plan, **changes})
        with pytest.raises(RunFolderError, match=rf"plan\.json: is damaged \(at '{re.escape(where)}'"):
            write(read_run(run.path))


def test_a_baseline_that_is_better_on_the_test_rows_only_is_told(tmp_path, catalog, tiny_model):
    from autoft.finish import _beside_baselines
    from autoft.plans.plan import plan_of

    run = make_run(tmp_path, catalog, tiny_model)
    record = read_run(run.path)
    (note,) = _beside_baselines(run, plan_of(record), record.final)
    assert note.startswith("majority class scores 0.7900 test accuracy, the chosen model 0.7900")
    better = record.final.test["best"]["accuracy"].model_copy(update={"value": 0.8})
    record.final.test["best"] = {"accuracy": better}
    assert _beside_baselines(run, plan_of(record), record.final) == []


def test_each_step_from_the_trained_model_to_the_chosen_one_is_shown(tmp_path, catalog, tiny_model):
    from autoft.plans.plan import plan_of
    from autoft.report.chosen import step_table

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
    found = step_table(record, plan)
    assert found.columns == ("step", "validation accuracy", "model size", "latency p50")
    assert found.rows == (
        ("as trained", "0.7100", "90 MB", "16.00 ms"),
        ("layer-pruning(keep=0.5)", "0.7000", "50 MB (÷1.80)", "8.00 ms (÷2.00)"),
        ("onnx", "0.6900", "50 MB (÷1.00)", "2.00 ms (÷4.00)"),
    )
    record.trials[2].variants[0].steps = []
    assert step_table(record, plan) is None


def test_a_plot_of_one_model_has_two_figures_on_its_axis(tmp_path, catalog, tiny_model):
    from autoft.plans.plan import plan_of

    run = make_run(tmp_path, catalog, tiny_model, trials=1, budget={"model_size": None, "latency": None})
    record = read_run(run.path)
    for trial_result in record.trials:
        trial_result.variants = [
            variant.model_copy(update={"costs": {"model_size_bytes": 7.56e6, "latency_p50_ms": 0.52}})
            for variant in trial_result.variants
        ]
        run.write_result(trial_result)
    write_json(run.path / "selection.json", select(plan_of(record), record.trials).model_dump(mode="json"))
    figures = drawn(write(read_run(run.path))["html"].read_text(encoding="utf-8"))
    axes = [figures[name]["layout"]["xaxis"] for name in ("size", "latency")]
    assert [axis["ticktext"] for axis in axes] == [["6.4 MB", "8.9 MB"], ["0.44 ms", "0.61 ms"]]
    for axis in axes:
        ends = [10**end for end in axis["range"]]
        assert all(ends[0] < tick < ends[1] for tick in axis["tickvals"])


def test_one_checkpoint_has_an_axis_of_its_own_size(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model, trials=1)
    result = run.results()[0]
    for points, ends in ((result.curve[:1], [0.475, 0.525]), ([], None)):
        run.write_result(result.model_copy(update={"curve": points}))
        curves = drawn(write(read_run(run.path))["html"].read_text(encoding="utf-8")).get("curves")
        assert (curves and curves["layout"]["yaxis"]["range"]) == ends


def test_a_long_search_is_rendered_whole(tmp_path, catalog, tiny_model):
    run = make_run(tmp_path, catalog, tiny_model, trials=200)
    html = write(read_run(run.path))["html"].read_text(encoding="utf-8")
    figures = drawn(html)
    assert sum(len(trace["x"]) for trace in figures["size"]["data"] if "hovertext" in trace) == 2 * 199
    assert "Trials: 200 rows" in html
    assert len(html.encode()) < 3_500_000
