"""The way of a request through its handler: admitted, read, queued, computed, encoded, as long as its client waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from server.api.codecs.body import read_parts
from server.api.codecs.compression import content_encoding, decompressed
from server.api.codecs.request import (
    ImageRequest,
    Question,
    named_mice,
    question_about,
    questions_about,
    read_form,
    read_json,
    read_request,
)
from server.api.codecs.response import JSON
from server.api.codecs.schemas import PredictRequest
from server.errors import TwinError, Unauthorized, UnsupportedMedia, brief, out_of_time
from server.serving.batcher import PREDICTION, Work
from server.serving.context import Context
from server.serving.telemetry.metrics import SEVERAL, UNKNOWN
from server.serving.telemetry.statistics import Timing

if TYPE_CHECKING:
    from server.inference.engine import Engine
    from server.serving.repository import Bundle

__all__ = [
    "LARGE",
    "admit",
    "count_outside",
    "error_response",
    "in_thread_if",
    "media_type_of",
    "read_body",
    "read_questions",
    "respond",
]

LARGE = 64 * 1024  # bytes, or numbers, whose decoding or encoding is worth a thread

T = TypeVar("T")


def error_response(error: TwinError, request_id: str, path: str) -> Response:
    """The one error body of the HTTP contract; under /v2 the one of that protocol."""
    headers = {} if error.retry_after is None else {"Retry-After": str(max(1, round(error.retry_after)))}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="v1t"'
    is_protocol = path == "/v2" or path.startswith("/v2/")
    body = {"error": str(error)} if is_protocol else {**error.body(), "request_id": request_id}
    return Response(orjson.dumps(body, default=str), error.status, headers, media_type=JSON)


def admit(request: Request, context: Context) -> None:
    """Refuses, before the body is read, a request that cannot be answered now."""
    request.state.mouse = UNKNOWN  # until it is known to be one of ours: metrics have no other labels
    context.repository.check_ready()
    context.admit(request.state.deadline)


def media_type_of(request: Request) -> str:
    """The body's media type."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, context: Context) -> bytes:
    """The request's body, decompressed.

    Raises:
        UnsupportedMedia: it is compressed in another way than the server reads.
        TooLarge: it has too many bytes once it is decompressed.
        MalformedBody: the compressed data is damaged.
    """
    encoding = content_encoding(request.headers.get("content-encoding"))
    body = await request.body()
    if encoding is None:
        return body
    return await context.decode_pool.run(len(body), decompressed, body, encoding, context.settings.max_body)


async def read_questions(
    request: Request, context: Context, model: type[ImageRequest]
) -> tuple[Bundle, list[Question], bool]:
    """Reads a JSON body or a form.

    Returns:
        The bundle that answers, a question for each mouse, and whether the request names several mice.
    """
    media_type = media_type_of(request)
    if media_type not in (JSON, "multipart/form-data"):
        raise UnsupportedMedia(
            "the body is of a type that the server does not read",
            got=brief(request.headers.get("content-type", "")),
            expected="application/json or multipart/form-data",
            hint="curl: -H 'Content-Type: application/json', or -F name=value for a form.",
        )
    body = await read_body(request, context)
    context.admit(request.state.deadline)  # again: others may have arrived with it

    def read_fields() -> dict[str, Any]:
        if media_type == JSON:
            return read_json(body)
        max_files = context.settings.max_images + 1  # one more, so that our own message states the limit
        return read_form(read_parts(body, request.headers["content-type"], max_files=max_files), model)

    def read(fields: dict[str, Any] | None = None) -> tuple[Bundle, list[Question], bool]:
        return _questions(read_request(read_fields() if fields is None else fields, model), request, context)

    if media_type != JSON or len(body) > LARGE:
        return await context.decode_pool.run(len(body), read)
    fields = read_fields()
    if isinstance(fields.get("image"), dict):  # a file, whose pixels may be many
        return await context.decode_pool.run(len(body), read, fields)
    return read(fields)


def _questions(asked: ImageRequest, request: Request, context: Context) -> tuple[Bundle, list[Question], bool]:
    repository, settings = context.repository, context.settings
    if (mice := named_mice(asked)) is not None:
        assert isinstance(asked, PredictRequest)
        bundle, records = repository.look_up_all(mice, asked.model)
        request.state.mouse = SEVERAL
        return bundle, questions_about(records, asked, bundle.neurons, settings), True
    mouse_id = str(asked.mouse)
    bundle = repository.look_up(mouse_id, asked.model)
    request.state.mouse = mouse_id
    record, neurons = bundle.manifest.mice[mouse_id], bundle.neurons[mouse_id]
    return bundle, [question_about(record, asked, neurons, settings)], False


async def respond(
    request: Request,
    context: Context,
    engine: Engine,
    questions: Sequence[Question],
    encode: Callable[[list[Any]], Response],
    work: Work = PREDICTION,
    *,
    timeout: float | None = None,
) -> Response:
    """Computes the questions, unless the client disconnects first, and encodes the results.

    Args:
        questions: one per mouse, about the same images.
        encode: makes the reply of the results, one for each question.
        timeout: seconds for the computation, where the protocol's body sets them.
    """
    start = time.perf_counter()
    deadline = request.state.deadline if timeout is None else min(request.state.deadline, start + timeout)
    timing = Timing(reading=start - request.state.start)
    request.state.timing, request.state.bundle = timing, engine
    stimuli = [question.stimulus for question in questions]
    images = {stimulus.mouse_id: len(stimulus.image) for stimulus in stimuli}
    try:
        async with asyncio.timeout(timeout):
            computing = context.batcher.compute(engine, stimuli, work, deadline=deadline, timing=timing)
            results = await _unless_disconnected(request, computing)
        computed = time.perf_counter()
        is_large = sum(array.size for result in results for array in result) > LARGE
        response = await in_thread_if(is_large, encode, results)
    except BaseException as error:
        if work is PREDICTION:
            context.statistics.failed(engine, images, time.perf_counter() - start)
        if isinstance(error, TimeoutError) and timeout is not None:  # the middleware's would be a cancellation
            raise out_of_time(timeout) from None
        raise
    timing.writing = time.perf_counter() - computed
    if work is PREDICTION:
        context.statistics.answered(engine, images, timing)
    count_outside(context, engine, questions)
    return response


def count_outside(context: Context, engine: Engine, questions: Sequence[Question]) -> None:
    """Counts the inputs of answered questions that lie outside of what was recorded."""
    counter = context.metrics.outside_recording
    for question in questions:
        for note in question.notes:
            if note.code == "outside_recording":
                counter.labels(engine.manifest.name, question.mouse_id, note.input).inc()


async def in_thread_if(is_large: bool, function: Callable[..., T], *arguments: Any) -> T:
    """Calls the function; in a thread, away from the event loop, if the call may take long."""
    return await asyncio.to_thread(function, *arguments) if is_large else function(*arguments)


async def _unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """Waits for the work, and cancels it if the client disconnects."""
    working = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    except asyncio.CancelledError:
        if working.done() and not working.cancelled() and (error := working.exception()) is not None:
            raise error from None  # failed and cancelled at the same moment: the error says more
        raise
    finally:
        working.cancel()
        listening.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
