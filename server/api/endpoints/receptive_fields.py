"""`POST /receptive_fields`: responses to white noise, weighted and summed where they are; only the maps travel.

The noise is made here from its seed (`server.inference.noise`), shown a few images at a time, in turn with everybody
else's, and forgotten. The reply is a stream of events: `progress`, and one `part` with the sums.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from server.api.codecs import request as stimulus
from server.api.codecs import response as replies
from server.api.codecs.arrays import is_number
from server.api.codecs.request import Fields, Question
from server.api.codecs.schemas import NoiseRequest
from server.api.codecs.streaming import EVENTS, Event, EventStream, in_order, patiently, seconds_asked
from server.api.endpoints.dispatch import LARGE, maybe_in_thread, stimulus_of
from server.bundle.manifest import MouseRecord
from server.errors import Busy, InvalidInput, TooLarge, UnsupportedMedia, brief
from server.inference.noise import NoiseSums, enlarge, white_noise
from server.serving.context import Context
from server.serving.telemetry.metrics import UNKNOWN
from server.serving.telemetry.statistics import Timing

if TYPE_CHECKING:
    from server.inference.engine import Engine, Prediction

__all__ = ["NOISE", "receptive_fields"]

NOISE = Fields(frozenset(NoiseRequest.model_fields), frozenset())
BLOCK = 512  # images in one matrix product: the maps pass through memory once for so many
_RUNS = 4  # of the engine, in one piece
_MAX_IMAGES = 1_000_000
_SECONDS = 0.5  # between two events of progress


async def receptive_fields(request: Request, context: Context) -> Response:
    """Sums of responses to noise."""
    request.state.mouse = UNKNOWN
    replies.accepted(request.headers.get("accept"), (EVENTS,))
    context.repository.check_ready()
    context.admit(request.state.deadline)
    fields = await _fields(request)
    mouse_id, model = stimulus.address(fields, NOISE)
    engine = await context.repository.find(mouse_id, model)
    request.state.mouse = mouse_id
    asked = _Noise(request, context, engine, fields)
    stream = await EventStream.begin(request, asked.events(), patience=context.settings.timeout)
    stream.headers["V1T-Reply"] = replies.about(engine, asked.question, request.state.request_id)
    return stream


class _Noise:
    """One request: its noise, shown and summed."""

    def __init__(self, request: Request, context: Context, engine: Engine, fields: dict[str, Any]) -> None:
        self._request, self._rooms, self._engine = request, context, engine
        record = engine.manifest.mice[fields["mouse"]]
        self._shape = record.image_shape
        self._seed = _whole(fields.pop("seed", None), "seed", 0, 2**64 - 1)
        self._first = _whole(fields.pop("first_image", 0), "first_image", 0, 2**63 - 1)
        self._n_images = _whole(fields.pop("n_images", None), "n_images", 1, _MAX_IMAGES)
        self._grid = _grid(fields.pop("grid", None), record)
        self._luminance = _level(fields.pop("luminance", None), "luminance", -1e9)
        self._contrast = _level(fields.pop("contrast", None), "contrast", 0.0)
        blank = np.full((1, *self._shape), self._luminance, dtype=np.float32)
        neurons = engine.neurons[record.mouse_id]
        self.question = stimulus.check({**fields, "image": blank}, record, neurons, context.settings)
        self._n_neurons = len(neurons) if self.question.neurons is None else len(self.question.neurons)
        seconds = seconds_asked(request.headers.get("x-request-timeout"))
        self._deadline = math.inf if seconds is None else request.state.start + seconds
        self._timing = Timing(reading=time.perf_counter() - request.state.start)
        self._asked = False

    async def events(self) -> AsyncGenerator[Event, None]:
        """Progress, then the sums: .npy one after another of maps (n, h, w), noise (h, w), total (n), squares (n)."""
        mouse_id = self.question.mouse_id
        try:
            with self._room():
                sums = NoiseSums(self._n_neurons, self._grid)
                async for done in self._show(sums):
                    yield Event("progress", more={"done": done, "total": self._n_images})
                body = await asyncio.to_thread(self._body, sums)
        except BaseException:
            self._rooms.statistics.failed(self._engine, mouse_id, time.perf_counter() - self._request.state.start)
            raise
        self._rooms.statistics.answered(self._engine, mouse_id, self._n_images, self._timing)
        yield Event("part", body, {"first_image": self._first, "n_images": self._n_images})
        yield Event("end")

    async def _show(self, sums: NoiseSums) -> AsyncGenerator[int, None]:
        """Shows all images; says how many are done, now and then."""
        done, said, waiting = 0, -math.inf, []
        async with contextlib.aclosing(in_order(self._pieces(), self._ask)) as answers:
            async for (noise, _), prediction in answers:
                waiting.append((noise, prediction.response))
                done += len(noise)
                if sum(len(piece) for piece, _ in waiting) >= BLOCK or done == self._n_images:
                    await asyncio.to_thread(self._sum, sums, waiting)
                    waiting = []
                if time.perf_counter() - said > _SECONDS or done == self._n_images:
                    said = time.perf_counter()
                    yield done

    def _sum(self, sums: NoiseSums, pieces: list[tuple[np.ndarray, np.ndarray]]) -> None:
        responses = np.concatenate([response for _, response in pieces])
        replies.check_finite(self.question, responses)
        sums.show(np.concatenate([noise for noise, _ in pieces]), responses)

    async def _pieces(self) -> AsyncGenerator[tuple[np.ndarray, Question], None]:
        size = _RUNS * self._rooms.settings.max_batch
        for start in range(0, self._n_images, size):
            yield await asyncio.to_thread(self._piece, self._first + start, min(size, self._n_images - start))

    def _piece(self, first: int, n: int) -> tuple[np.ndarray, Question]:
        noise = white_noise(self._seed, first, n, self._grid)
        image = np.float32(self._luminance) + np.float32(self._contrast) * enlarge(noise, self._shape)
        held = self.question
        return noise, replace(
            held,
            image=image,
            behavior=held.behavior.repeat(n, axis=0),
            pupil_center=held.pupil_center.repeat(n, axis=0),
        )

    async def _ask(self, piece: tuple[np.ndarray, Question]) -> Prediction:
        deadline = min(self._deadline, time.perf_counter() + self._rooms.settings.timeout)

        async def ask() -> Prediction:
            return await self._rooms.batcher.predict(
                self._engine, stimulus_of(piece[1]), deadline=deadline, timing=self._timing
            )

        # The first piece is refused as any other request would be; those after it wait for room in the queue.
        is_first, self._asked = not self._asked, True
        return await (ask() if is_first else patiently(ask, deadline=deadline))

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """Memory for the maps, of what all such requests share."""
        size = self._n_neurons * self._grid[0] * self._grid[1]
        most, state = self._rooms.settings.max_maps, self._request.app.state
        taken = getattr(state, "maps", 0)
        what = f"{size:,} elements ({self._n_neurons:,} neurons x {self._grid[0]} x {self._grid[1]})"
        if size > most:
            raise TooLarge(
                "the maps are too large",
                got=what,
                expected=f"at most {most:,}",
                hint="Ask for fewer neurons at a time.",
            )
        if taken + size > most:
            raise Busy(
                "other receptive fields are being mapped",
                got=what,
                expected=f"at most {most - taken:,} at the moment",
                retry_after=30,
            )
        state.maps = taken + size
        try:
            yield
        finally:
            state.maps -= size

    def _body(self, sums: NoiseSums) -> bytes:
        stream = io.BytesIO()
        for array, kind in (
            (sums.maps.reshape(-1, *self._grid), np.float32),
            (sums.noise.reshape(self._grid), np.float64),
            (sums.total, np.float64),
            (sums.squares, np.float64),
        ):
            np.lib.format.write_array(stream, np.ascontiguousarray(array, dtype=kind), allow_pickle=False)
        return stream.getvalue()


async def _fields(request: Request) -> dict[str, Any]:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != replies.JSON or "content-encoding" in request.headers:
        got = brief(f"{media_type} {request.headers.get('content-encoding', '')}".strip())
        raise UnsupportedMedia("the body is of a type that we do not read here", got=got, expected=replies.JSON)
    body = await request.body()
    return await maybe_in_thread(len(body) > LARGE, stimulus.read_json, body)


def _whole(value: Any, name: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        got = "nothing" if value is None else brief(value)
        raise InvalidInput(f"{name} is no whole number in its range", got=got, expected=f"{least} to {most}")
    return value


def _level(value: Any, name: str, least: float) -> float:
    if not is_number(value) or not least <= value <= 1e9:
        got = "nothing" if value is None else brief(value)
        raise InvalidInput(f"{name} is no level", got=got, expected=f"a number in the image's units, {least:g} to 1e9")
    return float(value)


def _grid(value: Any, record: MouseRecord) -> tuple[int, int]:
    _, H, W = record.image_shape
    fits = isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) and n > 0 for n in value)
    if not fits or H % value[0] or W % value[1] or H // value[0] != W // value[1]:
        raise InvalidInput(
            "grid does not divide the image into squares",
            got="nothing" if value is None else brief(value),
            expected=f"[rows, columns] of squares of whole pixels on {H} x {W}",
            hint=f"See GET /mice/{record.mouse_id}.",
        )
    return value[0], value[1]
