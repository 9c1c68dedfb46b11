"""Our HTTP: translates requests to questions and predictions to replies, and does nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from server.api.codecs import request as stimulus
from server.api.codecs import response as replies
from server.api.codecs.body import read_parts
from server.api.codecs.neuron_query import PARAMETERS, NeuronQuery
from server.api.endpoints import admin, inference_protocol
from server.api.endpoints.dispatch import LARGE, answer, answer_mice, named, work_out
from server.api.endpoints.pages import POLICY, index
from server.api.endpoints.predict_stream import predict_stream
from server.api.endpoints.receptive_fields import receptive_fields
from server.api.middleware import error_response
from server.api.openapi import document
from server.errors import (
    InvalidInput,
    MalformedBody,
    MethodNotAllowed,
    NotFound,
    TwinError,
    UnsupportedMedia,
    brief,
)
from server.serving.batcher import Work
from server.serving.context import Context
from server.serving.telemetry.metrics import CONTENT_TYPE, SEVERAL, UNKNOWN

if TYPE_CHECKING:
    from server.inference.engine import Engine, Gradient, Stimulus
    from server.serving.repository import Bundle

__all__ = ["create_app"]


def create_app(context: Context) -> Starlette:
    """The application; mounted by `server/service.py`, and complete without it but for the middleware's envelope."""
    app = Starlette(
        routes=[
            Route("/predict", named("/predict", _predict), methods=["POST"]),
            Route("/predict/stream", named("/predict/stream", predict_stream), methods=["POST"]),
            Route("/receptive_fields", named("/receptive_fields", receptive_fields), methods=["POST"]),
            Route("/gradient", named("/gradient", _gradient), methods=["POST"]),
            Route("/attention", named("/attention", _attention), methods=["POST"]),
            Route("/mice", named("/mice", _mice)),
            Route("/mice/{mouse}", named("/mice/{mouse}", _mouse)),
            Route("/mice/{mouse}/neurons", named("/mice/{mouse}/neurons", _neurons)),
            Route("/metrics", named("/metrics", _metrics)),
            Route("/docs.json", named("/docs.json", _docs)),
            Route("/", named("/", _index)),
            *admin.routes(),
            *inference_protocol.routes(),
        ],
        exception_handlers={
            TwinError: _on_error,
            HTTPException: _on_error,
            ClientDisconnect: _on_gone,
            Exception: _on_error,
        },
    )
    app.router.redirect_slashes = False
    app.state.context = context
    return app


async def _on_error(request: Request, error: Exception) -> Response:
    headers = {}
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        error = _translate(request, error)
    elif not isinstance(error, TwinError):
        error = TwinError("the server failed on this request", hint="Its log has the request_id.")
    response = error_response(error, request.state.request_id, request.url.path)
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


# POST


async def _predict(request: Request, context: Context) -> Response:
    media_type = _start(request, context)
    bundle, questions, are_several = await _understood(request, context, stimulus.PREDICT)
    engine = await context.repository.engine(bundle)
    if are_several:
        if media_type == replies.NPY:
            return _npy(*await answer_mice(request, context, engine, questions, replies.mice_npy))
        return _body(await answer_mice(request, context, engine, questions, replies.mice_json))
    (question,) = questions
    if media_type == replies.NPY:
        return _npy(*await answer(request, context, engine, question, replies.npy_body))
    return _body(await answer(request, context, engine, question, replies.json_body))


async def _gradient(request: Request, context: Context) -> Response:
    media_type = _start(request, context)
    engine, question = await _question(request, context, stimulus.GRADIENT)
    weights = question.weights
    assert weights is not None
    if question.units == "raw":
        weights = weights * replies.response_std(engine, question)

    def run(piece: Stimulus, images: slice) -> Gradient:
        of_piece = weights[images] if weights.ndim == 2 else weights
        return engine.gradient(piece.mouse_id, piece.image, piece.behavior, piece.pupil_center, of_piece, piece.neurons)

    work = Work("gradient", run, 1 if engine.device == "cpu" else engine.max_batch)
    if media_type == replies.NPY:
        return _npy(*await work_out(request, context, engine, question, work, replies.gradient_npy))
    return _body(await work_out(request, context, engine, question, work, replies.gradient_json))


async def _attention(request: Request, context: Context) -> Response:
    media_type = _start(request, context)
    engine, question = await _question(request, context, stimulus.ATTENTION)

    def run(piece: Stimulus, images: slice) -> replies.Attention:
        maps = engine.attention_rollout(piece.mouse_id, piece.image, piece.behavior, piece.pupil_center)
        return replies.Attention(maps.swapaxes(0, 1))  # (M, B, h, w) -> (B, M, h, w)

    work = Work("attention", run, engine.max_batch)
    if media_type == replies.NPY:
        return _npy(*await work_out(request, context, engine, question, work, replies.attention_npy))
    return _body(await work_out(request, context, engine, question, work, replies.attention_json))


def _body(body: bytes) -> Response:
    return Response(body, media_type=replies.JSON)


def _npy(body: bytes, header: str) -> Response:
    return Response(body, headers={"V1T-Reply": header}, media_type=replies.NPY)


def _start(request: Request, context: Context) -> str:
    """The type of the reply; refuses before the body is read: what is not answered now is not decoded either."""
    request.state.mouse = UNKNOWN  # the metrics' label is a mouse that we know, or this
    media_type = replies.accepted(request.headers.get("accept"))
    context.repository.check_ready()
    context.admit(request.state.deadline)
    return media_type


async def _question(request: Request, context: Context, known: stimulus.Fields) -> tuple[Engine, stimulus.Question]:
    """What is asked, checked, and whom."""
    bundle, (question,), _ = await _understood(request, context, known)
    return await context.repository.engine(bundle), question


_Understood = tuple["Bundle", list[stimulus.Question], bool]  # one question for each mouse, and if several were named


async def _understood(request: Request, context: Context, known: stimulus.Fields) -> _Understood:
    form = _form_type(request)
    body = await request.body()
    context.admit(request.state.deadline)  # once more: others may have come while it did
    arguments = request, context, known
    if form is not None:
        max_files = context.settings.max_images + 1  # one more, so that our own message says what is allowed
        return await context.decode_pool.read(len(body), _understand_form, body, form, max_files, *arguments)
    if len(body) > LARGE:
        return await context.decode_pool.read(len(body), lambda: _understand(stimulus.read_json(body), *arguments))
    fields = stimulus.read_json(body)
    if isinstance(fields.get("image"), dict):  # a file, which may be larger than it looks
        return await context.decode_pool.read(len(body), _understand, fields, *arguments)
    return _understand(fields, *arguments)


def _form_type(request: Request) -> str | None:
    """The whole content type of a form, None for JSON; every other body is refused before it is read."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia("the body is compressed", got=brief(encoding), expected="no Content-Encoding")
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == replies.JSON:
        return None
    if media_type == "multipart/form-data":
        return content_type
    raise UnsupportedMedia(
        "the body is of a type that we do not read",
        got=brief(content_type),
        expected="application/json or multipart/form-data",
        hint="curl: -H 'Content-Type: application/json', or -F name=value for a form.",
    )


def _understand_form(
    body: bytes, content_type: str, max_files: int, request: Request, context: Context, known: stimulus.Fields
) -> _Understood:
    parts = read_parts(body, content_type, max_files=max_files)
    return _understand(stimulus.read_form(parts, known), request, context, known)


def _understand(fields: dict[str, Any], request: Request, context: Context, known: stimulus.Fields) -> _Understood:
    if (mice := stimulus.several_mice(fields, known)) is not None:
        _, model = stimulus.address(fields | {"mouse": "several"}, known)
        bundle, records = context.repository.look_up_all(mice, model)
        request.state.mouse = SEVERAL
        return bundle, stimulus.check_mice(fields, records, bundle.neurons, context.settings), True
    mouse_id, model = stimulus.address(fields, known)
    bundle = context.repository.look_up(mouse_id, model)
    request.state.mouse = mouse_id
    record, neurons = bundle.manifest.mice[mouse_id], bundle.neurons[mouse_id]
    return bundle, [stimulus.check(fields, record, neurons, context.settings, known)], False


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


async def _mice(request: Request, context: Context) -> Response:
    _query(request, ())
    return _json({"mice": [replies.summarize(bundle, record) for bundle, record in context.repository.records()]})


async def _mouse(request: Request, context: Context) -> Response:
    request.state.mouse = UNKNOWN
    mouse_id = request.path_params["mouse"]
    bundle = context.repository.look_up(mouse_id, _query(request, ("model",)).get("model"))
    request.state.mouse = mouse_id
    return _json(replies.describe(bundle, bundle.manifest.mice[mouse_id]))


async def _neurons(request: Request, context: Context) -> Response:
    request.state.mouse = UNKNOWN
    mouse_id = request.path_params["mouse"]
    query = _query(request, PARAMETERS)
    bundle = context.repository.look_up(mouse_id, query.get("model"))
    request.state.mouse = mouse_id
    answer = NeuronQuery.parse(query).answer(bundle.neurons[mouse_id])
    return _json({"mouse": mouse_id, "model": bundle.name, "hash": bundle.hash, **answer})


async def _metrics(request: Request, context: Context) -> Response:
    return Response(context.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


async def _docs(request: Request, context: Context) -> Response:
    return _json(document())


async def _index(request: Request, context: Context) -> Response:
    try:
        mice, problem = context.repository.records(), None
    except TwinError as error:
        mice, problem = [], error
    html = index(str(request.base_url).rstrip("/"), [record for _, record in mice], problem)
    return HTMLResponse(html, 200 if problem is None else problem.status, {"Content-Security-Policy": POLICY})
