"""Our HTTP: translates requests to questions and predictions to replies, and does nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from server import replies, stimulus
from server.batcher import Batcher
from server.errors import (
    InvalidInput,
    MalformedBody,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    TwinError,
    UnsupportedMedia,
    brief,
)
from server.library import Library
from server.metrics import CONTENT_TYPE, UNKNOWN, Metrics
from server.middleware import error_response
from server.neurons import PARAMETERS, NeuronQuery
from server.openapi import document
from server.page import POLICY, index
from server.settings import Settings

__all__ = ["Rooms", "create_app"]

_LARGE = 64 * 1024  # bytes; below that, a thread costs more than the work


@dataclass(frozen=True)
class Rooms:
    """What the routes stand on."""

    settings: Settings
    library: Library
    batcher: Batcher
    metrics: Metrics


def create_app(rooms: Rooms) -> Starlette:
    """The application; mounted by `server/service.py`, and complete without it but for the middleware's envelope."""
    app = Starlette(
        routes=[
            Route("/predict", _named("/predict", _predict), methods=["POST"]),
            Route("/mice", _named("/mice", _mice)),
            Route("/mice/{mouse}", _named("/mice/{mouse}", _mouse)),
            Route("/mice/{mouse}/neurons", _named("/mice/{mouse}/neurons", _neurons)),
            Route("/metrics", _named("/metrics", _metrics)),
            Route("/docs.json", _named("/docs.json", _docs)),
            Route("/", _named("/", _index)),
        ],
        exception_handlers={
            TwinError: _on_error,
            HTTPException: _on_error,
            ClientDisconnect: _on_gone,
            Exception: _on_error,
        },
    )
    app.router.redirect_slashes = False
    app.state.rooms = rooms
    return app


Handler = Callable[[Request, Rooms], Awaitable[Response]]


def _named(route: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Names the route for the metrics, and hands the handler its rooms."""

    async def endpoint(request: Request) -> Response:
        request.state.route = route
        return await handler(request, request.app.state.rooms)

    return endpoint


async def _on_error(request: Request, error: Exception) -> Response:
    headers = {}
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        error = _translate(request, error)
    elif not isinstance(error, TwinError):
        error = TwinError("the server failed on this request", hint="Its log has the request_id.")
    response = error_response(error, request.state.request_id)
    response.headers.update(headers)
    return response


async def _on_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # for the metrics: nobody reads it


def _translate(request: Request, error: HTTPException) -> TwinError:
    path = brief(request.url.path)
    if error.status_code == 405:
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "another method").split(", ")))
        return MethodNotAllowed(f"{path} has no such method", got=brief(request.method), expected=allowed)
    if error.status_code == 404:
        return NotFound("there is no such route", got=path, expected="/predict, /mice, ...", hint="See /docs.json.")
    return MalformedBody(brief(error.detail))


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type=replies.JSON)


# POST /predict


async def _predict(request: Request, rooms: Rooms) -> Response:
    # The metrics' label is a mouse that we know, or UNKNOWN.
    request.state.mouse = UNKNOWN
    media_type = replies.accepted(request.headers.get("accept"))
    engines = rooms.library.engines  # before the body is read: while nothing is loaded, nothing is decoded
    assert engines
    fields, is_large = await _read_fields(request, rooms.settings)
    mouse_id, model = stimulus.address(fields)
    engine = rooms.library.find(mouse_id, model)
    request.state.mouse = mouse_id
    record, neurons = engine.manifest.mice[mouse_id], engine.neurons[mouse_id]
    question = await _maybe_in_thread(is_large, stimulus.check, fields, record, neurons, rooms.settings)
    del fields
    prediction = await _unless_gone(request, _ask(rooms.batcher, engine, question, request.state.deadline))
    is_large = prediction.response.size > _LARGE
    request_id = request.state.request_id
    if media_type == replies.NPY:
        body, header = await _maybe_in_thread(is_large, replies.npy_body, engine, question, prediction, request_id)
        return Response(body, headers={"V1T-Reply": header}, media_type=replies.NPY)
    body = await _maybe_in_thread(is_large, replies.json_body, engine, question, prediction, request_id)
    return Response(body, media_type=replies.JSON)


async def _ask(batcher: Batcher, engine: Any, question: stimulus.Question, deadline: float) -> Any:
    from server.engine import Stimulus  # loaded long since: the library has made an engine

    return await batcher.predict(
        engine,
        Stimulus(
            mouse_id=question.mouse_id,
            image=question.image,
            behavior=question.behavior,
            pupil_center=question.pupil_center,
            neurons=question.neurons,
        ),
        deadline=deadline,
    )


async def _maybe_in_thread(is_large: bool, function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments) if is_large else function(*arguments)


async def _unless_gone(request: Request, answer: Awaitable[Any]) -> Any:
    """Waits for the answer, unless the client hangs up first: then nobody computes it."""
    working = asyncio.ensure_future(answer)
    listening = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        listening.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read_fields(request: Request, settings: Settings) -> tuple[dict[str, Any], bool]:
    """The fields of the body, and whether to check them off the event loop."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia("the body is compressed", got=brief(encoding), expected="no Content-Encoding")
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == replies.JSON:
        body = await request.body()
        is_large = len(body) > _LARGE
        fields = await _maybe_in_thread(is_large, stimulus.read_json, body)
        return fields, is_large or isinstance(fields.get("image"), dict)
    if media_type == "multipart/form-data":
        return stimulus.read_form(await _read_parts(request, settings)), True
    raise UnsupportedMedia(
        "the body is of a type that we do not read",
        got=brief(content_type),
        expected="application/json or multipart/form-data",
        hint="curl: -H 'Content-Type: application/json', or -F name=value for a form.",
    )


async def _read_parts(request: Request, settings: Settings) -> Iterable[tuple[str, str | bytes]]:
    max_files = settings.max_images + 1  # one more, so that our own message says what is allowed
    try:
        async with request.form(max_files=max_files, max_fields=100, max_part_size=1024**2) as form:
            return [
                (name, await value.read() if isinstance(value, UploadFile) else value)
                for name, value in form.multi_items()
            ]
    except HTTPException as error:
        if "Too many" in error.detail or "exceeded" in error.detail:
            raise TooLarge("the form is too large", got=brief(error.detail)) from None
        raise MalformedBody("the form cannot be read", got=brief(error.detail)) from None
    except (TwinError, ClientDisconnect, TimeoutError):
        raise
    except Exception as error:  # a fuzzed form may raise anything
        raise MalformedBody("the form cannot be read", got=brief(f"{type(error).__name__}: {error}")) from None


# GET


def _query(request: Request, known: tuple[str, ...]) -> dict[str, str]:
    """The query's parameters; unknown and repeated ones are refused."""
    query: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise InvalidInput("unknown query parameter", got=brief(name), expected=", ".join(known) or "none")
        if name in query:
            raise InvalidInput(f"{name} is given twice", expected="one value")
        query[name] = value
    return query


async def _mice(request: Request, rooms: Rooms) -> Response:
    _query(request, ())
    return _json({"mice": [replies.summarize(engine, record) for engine, record in rooms.library.records()]})


async def _mouse(request: Request, rooms: Rooms) -> Response:
    request.state.mouse = UNKNOWN
    mouse_id = request.path_params["mouse"]
    engine = rooms.library.find(mouse_id, _query(request, ("model",)).get("model"))
    request.state.mouse = mouse_id
    return _json(replies.describe(engine, engine.manifest.mice[mouse_id]))


async def _neurons(request: Request, rooms: Rooms) -> Response:
    request.state.mouse = UNKNOWN
    mouse_id = request.path_params["mouse"]
    query = _query(request, PARAMETERS)
    engine = rooms.library.find(mouse_id, query.get("model"))
    request.state.mouse = mouse_id
    answer = NeuronQuery.parse(query).answer(engine.neurons[mouse_id])
    return _json({"mouse": mouse_id, "model": engine.manifest.name, **answer})


async def _metrics(request: Request, rooms: Rooms) -> Response:
    return Response(rooms.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


async def _docs(request: Request, rooms: Rooms) -> Response:
    return _json(document())


async def _index(request: Request, rooms: Rooms) -> Response:
    try:
        mice, problem = rooms.library.records(), None
    except TwinError as error:
        mice, problem = [], error
    html = index(str(request.base_url).rstrip("/"), [record for _, record in mice], problem)
    return HTMLResponse(html, 200 if problem is None else problem.status, {"Content-Security-Policy": POLICY})
