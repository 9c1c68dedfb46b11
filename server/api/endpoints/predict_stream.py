"""`POST /predict/stream`: a stack of images of any length, answered while it arrives; memory holds a few pieces of it.

The body is one .npy, (B, C, H, W); all else is in the query. Behaviour of each image comes as .npy before it, named in
their order by `arrays`. The reply is a .npy (B, n), written as it is computed, or a stream of events whose parts are
such arrays of some images each.
"""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from server.api.codecs import request as stimulus
from server.api.codecs import response as replies
from server.api.codecs.image_files import is_npy, read_npy_header
from server.api.codecs.request import Fields, Question
from server.api.codecs.schemas import StackQuery
from server.api.codecs.streaming import EVENTS, Event, EventStream, Upload, in_order, patiently, seconds_asked
from server.api.endpoints.dispatch import LARGE, maybe_in_thread, stimulus_of
from server.bundle.manifest import BEHAVIOR_CHANNELS
from server.errors import InvalidInput, NotAcceptable, TooLarge, UnsupportedMedia, brief
from server.serving.context import Context
from server.serving.telemetry.metrics import UNKNOWN
from server.serving.telemetry.statistics import Timing

if TYPE_CHECKING:
    from server.inference.engine import Engine, Prediction

__all__ = ["predict_stream"]

_BODIES = ("", "application/x-npy", "application/octet-stream")
_BEFORE = {"behavior": len(BEHAVIOR_CHANNELS), "pupil_center": 2}  # columns of the arrays that may come first
_COLUMNS = {"behavior": [name for name, _ in BEHAVIOR_CHANNELS], "pupil_center": ["pupil_center"]}
_IN_QUERY = Fields(stimulus.PREDICT.in_json, frozenset(StackQuery.model_fields))
_RUNS = 4  # of the engine, in one piece
_MAX_IMAGES = 10**9  # whoever sends more sends nonsense
_MAX_HEADER = 10_000  # bytes of a .npy header, as numpy reads them


@dataclass(frozen=True)
class _Header:
    """What a .npy says of the array that follows it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def rows(self, content: bytes) -> np.ndarray:
        return np.frombuffer(content, self.dtype).reshape(-1, *self.shape[1:])


async def predict_stream(request: Request, context: Context) -> Response:
    """Answers a stack of images."""
    request.state.mouse = UNKNOWN
    as_events = replies.accepted(request.headers.get("accept"), (replies.NPY, EVENTS)) == EVENTS
    _check_body(request)
    fields = stimulus.read_form(request.query_params.multi_items(), _IN_QUERY)
    names = _names(fields)
    mouse_id, model = stimulus.address(fields)
    context.admit(request.state.deadline)  # what is not answered now is not read either
    engine = await context.repository.find(mouse_id, model)
    request.state.mouse = mouse_id
    if fields.get("spread") and not as_events:
        raise NotAcceptable(
            "responses and their spread are two arrays, and one .npy cannot grow by both",
            got="spread=true",
            expected=f"Accept: {EVENTS}",
        )
    upload = Upload(request, patience=context.settings.timeout)
    before = {name: await _read_before(upload, name, context.settings.max_body) for name in names}
    header = await _read_header(upload, "the stack of images")
    stack = _Stack(request, context, engine, fields, before, header, upload)
    if as_events:
        stream = await EventStream.begin(request, stack.events(), patience=context.settings.timeout)
    else:
        stream = await EventStream.begin(
            request,
            stack.rows(),
            patience=context.settings.timeout,
            encode=lambda event: event.body,
            media_type=replies.NPY,
        )
        stream.headers["Content-Length"] = str(stack.reply_bytes)
    stream.headers["V1T-Reply"] = stack.about
    stream.received = upload.received
    return stream


class _Stack:
    """The images of one request, as they are read, asked and answered.

    Attributes:
        about: everything of the reply but its arrays, once the first piece was answered.
        reply_bytes: of the reply as one .npy, likewise.
    """

    about: str
    reply_bytes: int

    def __init__(
        self,
        request: Request,
        context: Context,
        engine: Engine,
        fields: dict[str, Any],
        before: dict[str, np.ndarray],
        header: _Header,
        upload: Upload,
    ) -> None:
        self._request, self._rooms, self._engine = request, context, engine
        self._record = engine.manifest.mice[fields["mouse"]]
        self._neurons = engine.neurons[fields["mouse"]]
        self._fields, self._before, self._header, self._upload = fields, before, header, upload
        self._n_images = header.shape[0] if header.shape else 0
        self._n_rows = min(_RUNS * context.settings.max_batch, context.settings.max_images)
        self._check()
        seconds = seconds_asked(request.headers.get("x-request-timeout"))
        self._deadline = math.inf if seconds is None else request.state.start + seconds
        self._timing = Timing(reading=time.perf_counter() - request.state.start)
        self._asked = self._answered = False

    def _check(self) -> None:
        if len(self._header.shape) != 4 or min(self._header.shape) < 1:
            raise InvalidInput(
                "the stack of images has another shape",
                got=str(self._header.shape),
                expected=f"(B, {', '.join(map(str, self._record.image_shape))})",
                hint=f"See GET /mice/{self._record.mouse_id}.",
            )
        if self._n_images > _MAX_IMAGES:
            raise TooLarge("the stack promises too many images", got=brief(self._n_images), expected=_MAX_IMAGES)
        piece = self._n_rows * self._header.row_bytes
        if piece > self._rooms.settings.max_body:
            raise TooLarge(
                "images are too large to stream",
                got=f"{piece} bytes for {self._n_rows} images",
                expected=f"at most {self._rooms.settings.max_body}",
            )
        for name, array in self._before.items():
            if array.shape != (self._n_images, _BEFORE[name]):
                raise InvalidInput(
                    f"{name} does not fit the images",
                    got=str(array.shape),
                    expected=f"({self._n_images}, {_BEFORE[name]})",
                )

    async def _questions(self) -> AsyncGenerator[Question, None]:
        for start in range(0, self._n_images, self._n_rows):
            rows = slice(start, min(start + self._n_rows, self._n_images))
            n_bytes = (rows.stop - rows.start) * self._header.row_bytes
            content = await self._upload.read(n_bytes, f"images {rows.start} to {rows.stop - 1}")
            question = await self._rooms.decode_pool.read(n_bytes, self._question, content, rows)
            del content
            yield question
            del question  # before the next is read
        await self._upload.finish()

    def _question(self, content: bytes, rows: slice) -> Question:
        fields = {**self._fields, "image": self._header.rows(content)}
        if (behavior := self._before.get("behavior")) is not None:
            columns = zip(BEHAVIOR_CHANNELS, behavior[rows].T, strict=True)
            fields |= {name: column.tolist() for (name, _), column in columns}
        if (pupil_center := self._before.get("pupil_center")) is not None:
            fields["pupil_center"] = pupil_center[rows].tolist()
        return stimulus.check(fields, self._record, self._neurons, self._rooms.settings)

    async def _ask(self, question: Question) -> Prediction:
        deadline = min(self._deadline, time.perf_counter() + self._rooms.settings.timeout)

        async def ask() -> Prediction:
            return await self._rooms.batcher.predict(
                self._engine, stimulus_of(question), deadline=deadline, timing=self._timing
            )

        # The first piece is refused as any other request would be; those after it wait for room in the queue.
        is_first, self._asked = not self._asked, True
        return await (ask() if is_first else patiently(ask, deadline=deadline))

    async def _answers(self) -> AsyncGenerator[tuple[Question, Prediction], None]:
        n_answered, mouse_id = 0, self._record.mouse_id
        try:
            async with contextlib.aclosing(in_order(self._questions(), self._ask)) as answers:
                async for question, prediction in answers:
                    if not self._answered:
                        _, self.about = replies.npy_body(
                            self._engine, question, prediction, self._request.state.request_id
                        )
                        self._answered = True
                    n_answered += len(question.image)
                    yield question, prediction
        except BaseException:
            self._rooms.statistics.failed(self._engine, mouse_id, time.perf_counter() - self._request.state.start)
            raise
        self._rooms.statistics.answered(self._engine, mouse_id, n_answered, self._timing)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Parts, each the .npy of some images, and the end."""
        done = 0
        async with contextlib.aclosing(self._answers()) as answers:
            async for question, prediction in answers:
                body, _ = await maybe_in_thread(
                    prediction.response.size > LARGE,
                    replies.npy_body,
                    self._engine,
                    question,
                    prediction,
                    self._request.state.request_id,
                )
                start, done = done, done + len(question.image)
                yield Event("part", body, {"start": start, "done": done, "total": self._n_images})
        yield Event("end", more={"done": done, "total": self._n_images})

    async def rows(self) -> AsyncGenerator[Event, None]:
        """One .npy, in pieces."""
        head = io.BytesIO()
        async with contextlib.aclosing(self._answers()) as answers:
            async for question, prediction in answers:
                responses, _ = replies.scaled(prediction, question, self._neurons)
                if not head.tell():
                    described = {"descr": "<f4", "fortran_order": False, "shape": (self._n_images, responses.shape[1])}
                    np.lib.format.write_array_header_1_0(head, described)
                    self.reply_bytes = head.tell() + 4 * self._n_images * responses.shape[1]
                    yield Event("part", head.getvalue())
                yield Event("part", np.ascontiguousarray(responses, "<f4").tobytes())


def _check_body(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia("the body is compressed", got=brief(encoding), expected="no Content-Encoding")
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() not in _BODIES:
        raise UnsupportedMedia(
            "the body is of a type that we do not read",
            got=brief(content_type),
            expected=replies.NPY,
            hint="curl -T images.npy sends it as it is; what else is asked stands in the query.",
        )


def _names(fields: dict[str, Any]) -> list[str]:
    """Takes out the names of the arrays that come before the images."""
    text = fields.pop("arrays", None)
    names = [] if text is None else str(text).split(",")
    if len(set(names)) < len(names) or not set(names) <= _BEFORE.keys():
        raise InvalidInput(
            "arrays does not name what comes before the images",
            got=brief(text),
            expected="behavior, pupil_center or both, joined by a comma",
        )
    twice = [name for array in names for name in _COLUMNS[array] if name in fields]
    if twice:
        raise InvalidInput(f"{twice[0]} is given twice", got="in the query and as an array", expected="one of them")
    return names


async def _read_header(upload: Upload, what: str) -> _Header:
    """The header of the next .npy."""
    start = await upload.read(10, what)
    long = start[6:7] != b"\x01"  # version 2 has four bytes for its length
    start += await upload.read(2, what) if long else b""
    length = int.from_bytes(start[8:], "little")
    if not is_npy(start) or length > _MAX_HEADER:
        raise InvalidInput(
            f"{what} is no .npy file", got=f"bytes starting with {start[:8]!r}", expected="what numpy.save writes"
        )
    header = start + await upload.read(length, what)
    shape, fortran_order, dtype = read_npy_header(io.BytesIO(header), what)
    if fortran_order and len(shape) > 1:
        raise InvalidInput(
            f"{what} is in Fortran's order, so that its first image ends with the file",
            expected="C order",
            hint="Save it with np.save(path, np.ascontiguousarray(array)).",
        )
    return _Header(shape, dtype)


async def _read_before(upload: Upload, name: str, max_bytes: int) -> np.ndarray:
    header = await _read_header(upload, name)
    if len(header.shape) != 2 or header.shape[0] < 1 or header.shape[1] != _BEFORE[name]:
        raise InvalidInput(f"{name} has another shape", got=str(header.shape), expected=f"(B, {_BEFORE[name]})")
    n_bytes = header.shape[0] * header.row_bytes
    if n_bytes > max_bytes:
        raise TooLarge(f"{name} is too large", got=f"{n_bytes} bytes", expected=f"at most {max_bytes}")
    return header.rows(await upload.read(n_bytes, name))
