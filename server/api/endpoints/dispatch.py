"""The way of a request through its handler: admitted, read, queued, computed, encoded, as long as its client waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from server.api.codecs.images.decoding_cost import image_cost
from server.api.codecs.parsing.compression import content_encoding, decompressed
from server.api.codecs.parsing.form import read_parts
from server.api.codecs.parsing.json_memory import json_memory
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
from server.serving.context import Context
from server.serving.jobs import PREDICTION, Work
from server.serving.limits.memory_budget import Reservation
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
    "media_type_of",
    "read_body",
    "read_questions",
    "respond",
]

LARGE = 64 * 1024  # bytes, or numbers, whose decoding or encoding is worth a thread
_MUCH = 1024**2  # work of decoding during which it is worth noticing that the client disconnects

T = TypeVar("T")


def error_response(error: TwinError, request_id: str, path: str) -> Response:
    """The one error body of the HTTP contract; under /v2 the one of that protocol. The error loses its tracebacks.

    The task that failed with the error is in a frame of its traceback: a cycle, which would hold the request's body
    until the garbage collector finds it.
    """
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__, cause = None, cause.__context__
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
    context.admit(request.state.deadline, request.state.priority)


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
    memory: Reservation = request.state.memory

    def reserve(size: int) -> None:
        memory.set(2 * len(body) + size, "a compressed body")

    arguments = body, encoding, context.settings.max_body, reserve
    return await context.decode_pool.run(len(body), memory.used_by(decompressed), *arguments)


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
    context.admit(request.state.deadline, request.state.priority)  # again: others may have arrived with it
    memory: Reservation = request.state.memory

    def read_fields() -> dict[str, Any]:
        if media_type == JSON:
            memory.set(json_memory(body), "JSON")
            return read_json(body)
        memory.set(3 * len(body), "a form")  # itself, its parts, and the file that is being copied
        max_files = context.settings.max_images + 1  # one more, so that our own message states the limit
        parts = read_parts(body, request.headers["content-type"], max_files=max_files)
        texts = sum(json_memory(value.encode()) for _, value in parts if isinstance(value, str))
        memory.set(3 * len(body) + texts, "a form")
        return read_form(parts, model)

    def read(work: int) -> _Decoding | tuple[Bundle, list[Question], bool]:
        """The questions, unless their images take more work than this."""
        decoding = _Decoding(read_request(read_fields(), model), request, context)
        return decoding.questions() if decoding.work <= work else decoding

    if media_type == JSON and len(body) <= LARGE:
        decoded = read(0)
    else:
        decoding = context.decode_pool.run(len(body), memory.used_by(read), max(len(body), _MUCH))
        decoded = await (_unless_disconnected(request, decoding) if len(body) > _MUCH else decoding)
    return await decoded.questions_in_thread() if isinstance(decoded, _Decoding) else decoded


class _Decoding:
    """A request whose images are still to be decoded.

    Attributes:
        work: that its images take, as the decode pool counts it.
    """

    def __init__(self, asked: ImageRequest, request: Request, context: Context) -> None:
        self._asked, self._request, self._context = asked, request, context
        repository = context.repository
        mice = named_mice(asked)
        self._are_several = mice is not None
        if mice is not None:
            self._bundle, self._records = repository.look_up_all(mice, asked.model)
            request.state.mouse = SEVERAL
        else:
            mouse_id = str(asked.mouse)
            self._bundle = repository.look_up(mouse_id, asked.model)
            self._records = [self._bundle.manifest.mice[mouse_id]]
            request.state.mouse = mouse_id
        cost = image_cost(asked.image, self._records, asked.resize is not None, context.settings)
        request.state.memory.set(request.state.memory.size + cost.memory, "a request with images")
        self.work = cost.work

    def questions(self) -> tuple[Bundle, list[Question], bool]:
        """The bundle that answers, a question for each mouse, and whether the request names several mice."""
        neurons, settings = self._bundle.neurons, self._context.settings
        if self._are_several:
            assert isinstance(self._asked, PredictRequest)
            return self._bundle, questions_about(self._records, self._asked, neurons, settings), True
        (record,) = self._records
        return self._bundle, [question_about(record, self._asked, neurons[record.mouse_id], settings)], False

    async def questions_in_thread(self) -> tuple[Bundle, list[Question], bool]:
        """The same, decoded in the pool."""
        questions = self._request.state.memory.used_by(self.questions)
        decoding = self._context.decode_pool.run(self.work, questions)
        return await (_unless_disconnected(self._request, decoding) if self.work > _MUCH else decoding)


async def respond(
    request: Request,
    context: Context,
    engine: Engine,
    questions: Sequence[Question],
    encode: Callable[[list[Any]], Response],
    work: Work = PREDICTION,
    *,
    timeout: float | None = None,
    in_text: bool = True,
) -> Response:
    """Computes the questions, unless the client disconnects first, and encodes the results.

    Args:
        questions: one per mouse, about the same images.
        encode: makes the reply of the results, one for each question.
        timeout: seconds for the computation, where the protocol's body sets them.
        in_text: whether the reply is JSON, which takes more memory.
    """
    kept = len(await request.body()) + sum(question.stimulus.image.nbytes for question in questions)
    reply = sum(_reply_memory(engine, question, work, in_text) for question in questions)
    state = request.state
    state.memory.set(kept + reply, "a request and its reply")
    start = time.perf_counter()
    deadline = state.deadline if timeout is None else min(state.deadline, start + timeout)
    timing = Timing(reading=start - state.start)
    state.timing, state.bundle = timing, engine
    stimuli = [question.stimulus for question in questions]
    images = {stimulus.mouse_id: len(stimulus.image) for stimulus in stimuli}
    try:
        async with asyncio.timeout(timeout):
            priority = request.state.priority
            computing = context.batcher.compute(
                engine, stimuli, work, deadline=deadline, timing=timing, priority=priority
            )
            results = await _unless_disconnected(request, computing)
        computed = time.perf_counter()
        is_large = sum(array.size for result in results for array in result) > LARGE
        if is_large:  # in a thread, away from the event loop; few at once, as each holds Python's lock
            async with context.encoders:
                response = await asyncio.to_thread(state.memory.used_by(encode), results)
        else:
            response = encode(results)
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


def _reply_memory(engine: Engine, question: Question, work: Work, in_text: bool) -> int:
    """Bytes that the results for a question and its part of the reply take, at most."""
    stimulus = question.stimulus
    neurons = engine.neurons[stimulus.mouse_id] if stimulus.neurons is None else stimulus.neurons
    values = len(neurons) * 2 * len(stimulus.image) + (0 if work is PREDICTION else stimulus.image.size)
    return values * (40 if in_text else 16)  # float32 as computed, joined and selected; text, and its buffer


async def _unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """Waits for the work, and cancels it if the client disconnects."""
    working = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_disconnected(request))
    listening.add_done_callback(lambda _: working.cancel())
    try:
        return await working
    except asyncio.CancelledError:
        if working.done() and not working.cancelled() and (error := working.exception()) is not None:
            raise error from None  # failed and cancelled at the same moment: the error says more
        if listening.done() and not listening.cancelled():
            raise ClientDisconnect from None
        raise
    finally:
        working.cancel()
        listening.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
