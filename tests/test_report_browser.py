"""The pages of reports in headless Chromium, through the DevTools protocol: nothing fails, plots are drawn, no network."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")


class Browser:
    """One page of a headless Chromium, told what to do through a pipe."""

    def __init__(self, profile: Path) -> None:
        down, up = os.pipe(), os.pipe()
        flags = ["--headless", "--no-sandbox", "--hide-scrollbars", "--remote-debugging-pipe", "--disable-gpu"]
        flags += ["--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"]
        # Chromium reads at 3 and writes at 4; whatever those are here is moved out of the way first.
        shell = f'exec "$0" "$@" 3<&{down[0]} 4>&{up[1]}'
        if {down[0], up[1]} & {3, 4}:
            shell = f'exec 8<&{down[0]} 9>&{up[1]}; exec "$0" "$@" 3<&8 4>&9'
        self.process = subprocess.Popen(
            ["/bin/bash", "-c", shell, str(CHROMIUM), *flags, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(down[0], up[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(down[0])
        os.close(up[1])
        self.down, self.up = down[1], up[0]
        self.number, self.rest, self.session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        pages = self.send("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in pages if target["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.down, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            part = os.read(self.up, 1 << 20)
            assert part, "Chromium has ended"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def open(
        self, path: Path, *, width: int = 1200, height: int = 900, dark: bool = False, touch: bool = False
    ) -> None:
        self.events.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=touch)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        if not touch:
            # A headless Chromium has no mouse; a desktop has one.
            features += [{"name": "hover", "value": "hover"}, {"name": "pointer", "value": "fine"}]
        self.send("Emulation.setEmulatedMedia", media="", features=features)
        self.send("Page.navigate", url=path.absolute().as_uri())
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")

    def until(self, condition: str) -> None:
        # The machine may be busy: only a page that never comes to an end is a failure.
        end = time.monotonic() + 300
        while not self.value(condition):
            assert time.monotonic() < end, f"never so: {condition}"
            time.sleep(0.1)

    def value(self, expression: str) -> Any:
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))

    def pdf(self, path: Path) -> None:
        printed = self.send("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(printed["data"]))

    def complaints(self) -> list[str]:
        """What was said on the console, thrown, or refused."""
        self.value("1")
        kinds = {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"}
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in kinds]

    def requests(self) -> list[str]:
        asked = [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))]

    def close(self) -> None:
        os.close(self.down)
        os.close(self.up)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 15)
            self.process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        found = Browser(Path(profile))
        yield found
        found.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with plots of every kind, and texts that would do harm if they were read as HTML."""
    return written(tmp_path_factory.mktemp("page") / "report.html")


HARM = '</script><script>window.harm=1</script><img src=x onerror="window.harm=1"><a href="https://example.org/a">x</a>'


def written(path: Path) -> Path:
    """Write a page through the report's own templates, figures and policy, from values made here."""
    from autoft.report.content import Content
    from autoft.report.drawing import COLOURS, Figure, frame, plain
    from autoft.report.page import render_page
    from autoft.report.views import TableView

    table = TableView(HARM, ("what", HARM), ((HARM, "1"), ("a", "2")))
    many = TableView("Trials", ("trial", "why"), tuple((str(number), HARM) for number in range(40)))
    question = (
        "Which of the words of a question that goes on for very long, as such questions do, is the answer to it? " * 2
    )
    pieces = [
        {"text": "It is in here. ", "label": "", "verdict": ""},
        {"text": HARM, "label": "said", "verdict": "wrong"},
    ]
    texts = TableView(
        "Texts", ("document", "summary", "score"), ((question * 3, question, "0.5"),), left=frozenset({0, 1})
    )
    details = [
        {"kind": "markedtext", "title": HARM, "rows": [(question, [*pieces, {**pieces[0], "text": question * 2}])]},
        {"kind": "examples", "title": HARM, "view": texts},
        {"kind": "matrix", "title": HARM, "labels": [HARM, "b"], "rows": [(HARM, [("1", 0.5), ("1", 0.5)])] * 2},
    ]
    content = Content(
        HARM, "a task", HARM, HARM, budget=table, trials=many, warnings=[HARM], recipe=HARM, details=details
    )
    names = ("size", "latency", "waterfall", "history", "curves", "rungs", "importance", "parallel")
    figures = {
        name: Figure(
            name,
            HARM,
            HARM,
            [
                {"type": "scatter", "x": [1, 2], "y": [1, 2], "name": plain(HARM), "marker": {"color": COLOURS[0]}}
                | {"hovertext": [plain(HARM)] * 2, "hoverinfo": "text"},
                {"type": "bar", "x": [1, 2], "y": [2, 1], "name": "b", "marker": {"color": [COLOURS[1], "$faint"]}},
            ],
            frame(300, xaxis={"title": HARM}, yaxis={"title": "y"}),
            wide=name in {"waterfall", "parallel"},
        )
        for name in names
    }
    path.write_text(render_page("report.html.j2", figures, content=content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "look",
    [
        {"width": 1200},
        {"width": 390, "height": 844, "touch": True},
        {"width": 320, "height": 568, "touch": True},
        {"width": 1200, "dark": True},
    ],
    ids=["desktop", "phone", "small phone", "dark"],
)
def test_plots_are_drawn_without_a_complaint_and_without_the_network(browser, page, look):
    browser.open(page, **look)
    browser.until("document.documentElement.dataset.plots === 'drawn'")
    assert browser.complaints() == []
    assert browser.requests() == []
    drawn = "[...document.querySelectorAll('.plot')].filter((plot) => plot.querySelector('svg.main-svg .trace')).length"
    assert browser.value(drawn) == browser.value("document.querySelectorAll('.plot').length") == 8
    # Nothing has to be moved sideways but what moves by itself.
    assert browser.value("document.documentElement.scrollWidth") == look["width"]


def test_texts_do_no_harm(browser, page):
    browser.open(page)
    browser.until("document.documentElement.dataset.plots === 'drawn'")
    assert browser.value("window.harm") is None
    assert browser.value("document.querySelectorAll('main img, main a, svg a').length") == 0
    assert browser.value("document.querySelector('h1').textContent") == HARM
    assert browser.value("document.querySelector('.plot .legendtext').textContent").startswith("</script><script>")


def test_the_policy_stops_what_escaping_would_let_through(browser, page, tmp_path):
    """The second wall by itself: a script, a picture and a style sheet that got into the page come to nothing."""
    broken = tmp_path / "broken.html"
    into = (
        "<script>window.harm = 1</script><img src='https://example.org/a.png' onerror='window.harm = 2'>"
        "<link rel='stylesheet' href='https://example.org/a.css'><iframe src='https://example.org/'></iframe></body>"
    )
    broken.write_text(page.read_text(encoding="utf-8").replace("</body>", into), encoding="utf-8")
    browser.open(broken)
    browser.until("document.documentElement.dataset.plots === 'drawn'")
    assert browser.value("window.harm") is None
    said = " ".join(browser.complaints())
    for what in ("inline script", "a.png", "a.css", "example.org/"):
        assert what in said
    loaded = [event["params"] for event in browser.events if event.get("method") == "Network.responseReceived"]
    assert [one["response"]["url"] for one in loaded if "example.org" in one["response"]["url"]] == []


def test_the_button_changes_page_and_plots_and_the_choice_stays(browser, page):
    browser.open(page)
    browser.until("document.documentElement.dataset.plots === 'drawn'")
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "document.querySelector('.plot .xtitle').style.fill"
    light = browser.value(ground), browser.value(ink)
    for _ in range(2):
        browser.value("document.getElementById('theme').click()")
    assert browser.value("document.getElementById('theme').textContent") == "Theme: dark"
    dark = browser.value(ground), browser.value(ink)
    assert light[0] == "rgb(255, 255, 255)"
    assert dark[0] == "rgb(20, 23, 26)"
    assert light[1] != dark[1]
    assert dark[1] == "rgb(232, 234, 237)"
    browser.open(page)
    assert browser.value("document.documentElement.dataset.theme") == "dark"
    browser.value("document.getElementById('theme').click()")
    assert browser.value("document.documentElement.dataset.theme") is None


def test_paper_has_the_plots_within_its_width_and_the_folded_parts(browser, page, tmp_path):
    browser.open(page, dark=True)
    browser.until("document.documentElement.dataset.plots === 'drawn'")
    assert browser.value("document.querySelectorAll('details[open]').length") == 0
    browser.value("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.value("document.querySelectorAll('details:not([open])').length") == 0
    widths = "[...document.querySelectorAll('.plot svg.main-svg')].map((plot) => plot.clientWidth)"
    # A4 less its margins of 12 mm is 703 pixels wide.
    assert max(browser.value(widths)) <= 703
    assert browser.value("document.querySelector('.plot .xtitle').style.fill") == "rgb(22, 25, 29)"
    browser.value("window.dispatchEvent(new Event('afterprint'))")
    assert browser.value("document.querySelectorAll('details[open]').length") == 0
    assert browser.value("document.querySelector('.plot .xtitle').style.fill") == "rgb(232, 234, 237)"
    browser.pdf(tmp_path / "page.pdf")
    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", content)) <= 12


def test_a_browser_that_cannot_unpack_says_so_and_where_the_figures_are(browser, page, tmp_path):
    old = tmp_path / "old.html"
    text = page.read_text(encoding="utf-8")
    # The page as it is, in a browser that knows no DecompressionStream.
    script = browser.send("Page.addScriptToEvaluateOnNewDocument", source="delete window.DecompressionStream")
    try:
        old.write_text(text, encoding="utf-8")
        browser.open(old)
        browser.until("document.querySelector('.plot .wait').textContent.startsWith('No plot')")
        assert "The tables have the figures." in browser.value("document.querySelector('.plot').textContent")
    finally:
        browser.send("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])


def test_long_texts_leave_each_other_room(browser, page):
    wide = "[...document.querySelectorAll('{}')].map((part) => Math.round(part.getBoundingClientRect().width))"
    browser.open(page)
    (text,) = browser.value(wide.format("dl.marked dd"))
    assert text > 700, "of 1112 pixels, however long the question is"
    document, summary, _ = browser.value(wide.format("table.examples :is(tbody th, tbody td)"))
    assert document > 1.3 * summary, "the longer text has more room"
    browser.open(page, width=390, height=844, touch=True)
    assert browser.value(wide.format("dl.marked dd")) == [358]
    assert browser.value(wide.format("table.examples :is(tbody th, tbody td)")) == [358] * 3
    shown = "getComputedStyle(document.querySelector('table.examples td'), '::before').content"
    assert browser.value(shown) == '"summary"'


def test_every_part_can_be_reached_with_the_keyboard(browser, page):
    browser.open(page)
    assert browser.value("document.querySelectorAll('.scroll:not([tabindex])').length") == 0
    assert browser.value("document.querySelector('.skip').getAttribute('href')") == "#content"
    missing = "[...document.querySelectorAll('a[href^=\"#\"]')].filter((a) => !document.querySelector(a.getAttribute('href'))).length"
    assert browser.value(missing) == 0
