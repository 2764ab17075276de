"""The application: what each address answers, and with which status."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic_core import to_json
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from autoft.artifact import LoadedModel
from autoft.contracts import Prediction, Row
from autoft.serving.batching import Batcher, Closed, Failure, QueueFull
from autoft.serving.fields import Fields, Invalid, Malformed, fields_of
from autoft.serving.limits import Limits
from autoft.serving.metrics import Metrics
from autoft.serving.page import curl_line, page_of
from autoft.serving.server import ALIKE
from autoft.version import __version__

__all__ = ["OneLength", "OwnNames", "make_app"]

COMPONENTS = "#/components/schemas/{model}"
BATCH = 32
"""Rows a forward pass, where the caller does not say and it makes no difference to the rows."""
REQUESTS = 1000
"""Requests for predictions that are under way at a time; further ones get 503."""
LONG = 65_536
"""Bytes from which on a body is parsed beside the event loop: they take milliseconds, in which nobody else is served."""
GONE = 499
"""Status of a request whose caller went away, as proxies count it; nobody reads it."""
STATUSES = {
    400: "The body is no JSON object, or its length is told in two ways.",
    403: "On a loopback address: the request names another host than this machine.",
    408: "The body did not come in time.",
    413: "The body is too large, or has too many rows.",
    415: "The content type is not JSON.",
    422: "A field is missing, unknown, too long or of another type, or the task cannot use a row.",
    500: "The model failed on a row.",
    503: "Too much is under way, the server is about to end, or memory ran out; Retry-After says when to come back.",
    504: "There was no answer in time.",
}
ERROR: Mapping[str, Any] = {
    "title": "Error",
    "description": "Why a request has no answer.",
    "type": "object",
    "properties": {
        "detail": {"type": "string", "description": "what is wrong, in a sentence"},
        "errors": {
            "type": "array",
            "description": "each wrong field, with status 422, and the rows where there are too many",
            "items": {
                "type": "object",
                "properties": {
                    "field": {"type": "string", "description": "as rows[3].text"},
                    "message": {"type": "string"},
                },
                "required": ["field", "message"],
            },
        },
    },
    "required": ["detail"],
}
HEALTH: Mapping[str, Any] = {
    "title": "Health",
    "description": "Whether the server takes rows, and for which model.",
    "type": "object",
    "properties": {
        "status": {"type": "string", "enum": ["ok", "ending"]},
        **{name: {"type": "string"} for name in ("task", "model", "variant", "autoft")},
        "waiting": {"type": "integer", "description": "rows that wait for the model"},
    },
    "required": ["status", "task", "model", "variant", "autoft", "waiting"],
}


class Room:
    """Counts the requests that are under way, and the bytes of their bodies, for these and the rows that are made of them.

    Args:
        requests: at a time, at most.
        size: bytes together, at most.
    """

    def __init__(self, requests: int, size: int) -> None:
        self._requests = requests
        self._size = size

    @contextmanager
    def request(self) -> Iterator[Callable[[int], None]]:
        """Count a request while it is under way, and give what counts the bytes of its body as they come.

        Raises:
            Refused: there are too many, or too many bytes with those that just came; so does what is given.
        """
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if size > self._size:
                raise Refused(503, "the requests under way are too large together; come back later", retry_after=1)
            self._size -= size
            taken += size

        if not self._requests:
            raise Refused(503, "too many requests are under way; come back later", retry_after=1)
        self._requests -= 1
        try:
            yield take
        finally:
            self._requests += 1
            self._size += taken


class Refused(Exception):
    """A request without an answer: its status, and what the caller is told."""

    def __init__(
        self, status: int, detail: str, faults: Sequence[tuple[str, str]] = (), retry_after: float | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.faults = faults
        self.retry_after = retry_after

    def response(self) -> Response:
        """Return the answer in JSON."""
        said: dict[str, Any] = {"detail": self.detail}
        if self.faults:
            said["errors"] = [{"field": field, "message": message} for field, message in self.faults]
        headers = {"retry-after": str(round(self.retry_after))} if self.retry_after is not None else None
        return _json(said, self.status, headers)


def make_app(model: LoadedModel, limits: Limits | None = None) -> FastAPI:
    """Return the web application that serves a model.

    The model is asked from one thread that runs as long as the application does, and once here for each of the task's demo
    rows, which the page and the OpenAPI description show.

    Args:
        model: as :func:`autoft.load` gives it.
        limits: of requests and batches; by default those of :class:`Limits`.

    Raises:
        AutoftError: the model cannot be used.
    """
    limits = limits or Limits()
    fields = fields_of(model, limits)
    batch_size = limits.batch_size or (1 if fields.company > ALIKE else BATCH)
    fields = replace(fields, limits=replace(limits, batch_size=batch_size))
    # What other hosts' names get is no request for a prediction.
    metrics = Metrics(model.manifest, sorted({200, GONE, *STATUSES} - {403}))
    batcher = Batcher(
        lambda rows: model.predict(rows, batch_size),
        batch_size=batch_size,
        wait=limits.wait,
        capacity=limits.queue,
        observe=metrics.batch,
    )
    metrics.watch(batcher)
    room = Room(REQUESTS, max(limits.bodies, limits.body))
    # One thread: what JSON becomes can be many times as large, and is in memory for one long body at a time.
    parser = ThreadPoolExecutor(1, "autoft-parser")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        # Who tells a server to end a second time does not wait for the model.
        with suppress(asyncio.CancelledError):
            yield
            # Who still waits has its answer by then, or its 504.
            await batcher.close(limits.timeout)

    card, manifest = model.task.card, model.manifest
    app = FastAPI(
        title=f"{card.name}: {manifest.variant} of {manifest.model}",
        version=__version__,
        description=" ".join(filter(None, (f"Serves a model for {card.name}: {card.summary}.", card.notice))),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        exception_handlers={404: _not_found, 405: _not_allowed, Exception: _failed},
    )

    @app.post("/predict", summary="Predict one row, or many", tags=["model"])
    async def predict(request: Request) -> Response:
        started = time.perf_counter()
        try:
            response, rows = await _answered(request, room, parser, fields, batcher)
        except Refused as refused:
            response, rows = refused.response(), 0
        except ClientDisconnect:
            response, rows = Response(status_code=GONE), 0
        except asyncio.CancelledError:
            if not app.state.ending:
                raise
            response, rows = Refused(503, "the server ended before there was an answer", retry_after=5).response(), 0
            app.state.unanswered += 1
        except Exception:
            # The handler below tells it.
            metrics.request(500, 0, time.perf_counter() - started)
            raise
        app.state.unanswered += app.state.ending and response.status_code == 504
        metrics.request(response.status_code, rows, time.perf_counter() - started)
        return response

    # FastAPI answers HEAD, which load balancers ask, only where it is told to.
    @app.head("/health", include_in_schema=False)
    @app.get("/health", summary="Say whether the server takes rows, and for which model", tags=["server"])
    async def health() -> Response:
        said = {
            "status": "ok" if batcher.alive else "ending",
            "task": card.name,
            "model": manifest.model,
            "variant": manifest.variant,
            "autoft": __version__,
            "waiting": batcher.waiting,
        }
        return _json(said, 200 if batcher.alive else 503)

    @app.get("/metrics", summary="Counters and timings for Prometheus", tags=["server"])
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    page = page_of(model, fields)

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return Response(page.html, media_type="text/html; charset=utf-8", headers=page.headers)

    app.state.batch_size, app.state.company = batch_size, fields.company
    app.state.ending, app.state.unanswered = False, 0
    app.state.curl = lambda address: curl_line(address, fields)
    described: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not described:
            described.update(_openapi(app, fields))
        return described

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI's documentation has it
    return app


class OwnNames:
    """Refuses requests that name another host than this machine.

    The page of a web site whose name is made to lead to this machine asks it under that name, and a browser takes both for
    one site.

    Args:
        app: answers the others.
        names: of hosts that are answered, in small letters, IPv6 in brackets.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self.app = app
        self.names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            if re.sub(r":\d*$", "", host).lower() not in self.names:
                response = _json({"detail": "only requests to a name of this machine are answered, as 127.0.0.1"}, 403)
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


class OneLength:
    """Refuses requests that tell the length of their body in two ways, and ends their connection (RFC 9112, section 6.1).

    A proxy may go by the other way: the rest of what is one body to it would be a request of its own here.

    Args:
        app: answers the others.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "http" and {"content-length", "transfer-encoding"} <= set(Headers(scope=scope)):
            said = {"detail": "content-length and transfer-encoding do not go together"}
            await _json(said, 400, {"connection": "close"})(scope, receive, send)
            return
        await self.app(scope, receive, send)


async def _answered(
    request: Request, room: Room, parser: Executor, fields: Fields, batcher: Batcher
) -> tuple[Response, int]:
    """Return the answer to a request, and how many rows it has.

    Raises:
        Refused: there is none.
        ClientDisconnect: the caller went away while sending.
    """
    clock, timeout = asyncio.get_running_loop().time, fields.limits.timeout
    end = clock() + timeout
    late = Refused(504, f"there was no answer within {timeout:g} s")
    with room.request() as take:
        body = await _body_in_time(request, take, fields.limits)
        try:
            rows, single = await asyncio.wait_for(_rows(body, parser, fields), end - clock())
        except asyncio.TimeoutError:
            raise late from None
        del body
        future = _submitted(batcher, rows)
        if not await _waited(request, future, end - clock()):
            raise late
        answers = future.result()
        faults = [(i, answer) for i, answer in enumerate(answers) if isinstance(answer, Failure)]
        if faults:
            raise _refusal(faults, single)
        return _json(answers[0] if single else {"predictions": answers}), len(rows)


async def _body_in_time(request: Request, take: Callable[[int], None], limits: Limits) -> bytes:
    try:
        return await asyncio.wait_for(_body(request, limits.body, take), limits.timeout)
    except asyncio.TimeoutError:
        raise Refused(408, f"the body did not come within {limits.timeout:g} s") from None


async def _rows(body: bytes, parser: Executor, fields: Fields) -> tuple[list[Row], bool]:
    """Return the rows of a body, and whether it is one row and not a list.

    Raises:
        Refused: there are none.
    """
    try:
        if len(body) < LONG:
            return fields.parse(body)
        return await asyncio.get_running_loop().run_in_executor(parser, fields.parse, body)
    except Malformed as error:
        raise Refused(400, f"the body {error}") from None
    except Invalid as error:
        raise Refused(413 if error.many else 422, str(error), error.faults) from None


async def _body(request: Request, limit: int, take: Callable[[int], None]) -> bytes:
    """Return the body of a request.

    Args:
        request: whose body is read.
        limit: bytes of it.
        take: is told the bytes that are kept, before they are.

    Raises:
        Refused: it is no JSON by its content type, larger than allowed, or there is no room for it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Forms of other web sites can send any body, but not with this type: a page that somebody looks at cannot ask the
    # models on that person's machine.
    if not re.fullmatch(r"application/(?:[\w.+-]+\+)?json", kind):
        given = f"given {kind[:60]!r}" if kind else "there is none"
        raise Refused(
            415, f"the content type has to be application/json, {given}; with curl: -H 'content-type: application/json'"
        )
    too_large = Refused(413, f"the body has more than {limit} bytes")
    length = request.headers.get("content-length", "")
    announced = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0
    parts, size = list[bytes](), 0
    refusal = too_large if announced > limit else None
    async for part in request.stream():
        size += len(part)
        if size > limit:
            refusal = too_large
        if refusal is None:
            try:
                take(len(part))
                parts.append(part)
            except Refused as full:
                refusal = full
        if refusal is not None:
            # A caller who is still sending would not read a refusal, and lose it: up to a point the rest is thrown away.
            parts.clear()
            if size > 2 * limit:
                raise refusal
    if refusal is not None:
        raise refusal
    return b"".join(parts)


def _submitted(batcher: Batcher, rows: Sequence[Row]) -> asyncio.Future[list[Prediction | Failure]]:
    try:
        return batcher.submit(rows)
    except QueueFull as error:
        raise Refused(503, "too many rows are waiting; come back later", retry_after=error.retry_after) from None
    except Closed:
        raise Refused(503, "the server is about to end", retry_after=5) from None


async def _waited(request: Request, future: asyncio.Future[Any], timeout: float) -> bool:
    """Wait for the answers, and say whether they are there; a caller who goes away, or waits too long, gives its rows up.

    Raises:
        ClientDisconnect: the caller went away.
    """
    gone = asyncio.ensure_future(_gone(request))
    try:
        either: list[asyncio.Future[Any]] = [future, gone]
        await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and not future.done():
            raise ClientDisconnect
        return future.done()
    finally:
        future.cancel()
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refusal(faults: Sequence[tuple[int, Failure]], single: bool) -> Refused:
    def where(i: int) -> str:
        return "" if single else f"rows[{i}]"

    unusable = [(where(i), re.sub(r"^row 1: ", "", failure.message)) for i, failure in faults if failure.kind == "row"]
    if len(unusable) == len(faults):
        detail = "; ".join(f"{field}: {message}" if field else message for field, message in unusable)
        return Refused(422, detail, unusable)
    places = ", ".join(where(i) for i, failure in faults if failure.kind != "row") or "the row"
    if any(failure.kind == "memory" for _, failure in faults):
        return Refused(503, f"there was not enough memory for {places}", retry_after=5)
    return Refused(500, f"the model failed on {places}; the log of the server says more")


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    # What JSON has no number for becomes null; the standard library would write NaN, which no other reader takes.
    return Response(to_json(value, inf_nan_mode="null"), status, headers, "application/json")


async def _not_found(request: Request, error: Exception) -> Response:
    return _json({"detail": "there is nothing here; POST /predict, GET /, /health, /metrics, /openapi.json"}, 404)


async def _not_allowed(request: Request, error: Exception) -> Response:
    headers = getattr(error, "headers", None)
    return _json({"detail": "this address takes another method; POST /predict, GET the others"}, 405, headers)


async def _failed(request: Request, error: Exception) -> Response:
    return _json({"detail": "an error of the server; its log says more"}, 500)


def _openapi(app: FastAPI, fields: Fields) -> dict[str, Any]:
    """Return FastAPI's description with the types of this model's rows and predictions."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    named, definitions = fields.schemas(COMPONENTS)
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    components.clear()
    components.update(definitions)
    components["Error"], components["Health"] = dict(ERROR), dict(HEALTH)
    post = schema["paths"]["/predict"]["post"]
    post["description"] = (
        'A row gets its prediction; `{"rows": [...]}` gets `{"predictions": [...]}`, one for each row in their order. '
        "Rows of concurrent requests are predicted together."
    )
    single = {f"row {i + 1}": {"value": row} for i, row in enumerate(fields.examples)}
    several = {"several rows": {"value": {"rows": list(fields.examples[:3])}}} if fields.examples else {}
    post["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"oneOf": [named["row"], named["rows"]]},
                "examples": {**single, **several},
            }
        },
    }
    answers = {f"row {i + 1}": {"value": dict(answer)} for i, answer in enumerate(fields.answers)}
    if fields.answers:
        answers["several rows"] = {"value": {"predictions": [dict(answer) for answer in fields.answers[:3]]}}
    post["responses"] = {
        "200": {
            "description": "What the model says.",
            "content": {
                "application/json": {
                    "schema": {"anyOf": [named["prediction"], named["predictions"]]},
                    "examples": answers,
                }
            },
        },
        **{
            str(status): {
                "description": description,
                "content": {"application/json": {"schema": {"$ref": COMPONENTS.format(model="Error")}}},
                **(
                    {"headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}}
                    if status == 503
                    else {}
                ),
            }
            for status, description in STATUSES.items()
        },
    }
    health = {"application/json": {"schema": {"$ref": COMPONENTS.format(model="Health")}}}
    schema["paths"]["/health"]["get"]["responses"] = {
        "200": {"description": "The server takes rows.", "content": health},
        "503": {"description": "The server is about to end.", "content": health},
    }
    figures = {"text/plain": {"schema": {"type": "string"}}}
    schema["paths"]["/metrics"]["get"]["responses"] = {"200": {"description": "The figures.", "content": figures}}
    return schema
