"""POST /receptive_fields: responses to noise, weighted by the noise and summed on the server.

The noise is made from its seed (`server.inference.noise`) and shown a few images at a time, in turn with other
requests. The reply is a stream of events: `progress`, and one `part` with the sums. The notes of the header are about
the first images, those of the part about all.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from server.api.codecs.parsing.json_memory import json_memory
from server.api.codecs.parsing.validation import validated
from server.api.codecs.recorded_range import ImageRange, refuse
from server.api.codecs.request import question_about, read_json
from server.api.codecs.response import JSON, accepted, check_finite, head_of, header_text
from server.api.codecs.schemas import NoiseRequest, PredictRequest
from server.api.codecs.streaming import EVENTS, Event, EventStream, pipelined, retry_while_busy
from server.api.endpoints.dispatch import LARGE, admit, count_outside, media_type_of, read_body
from server.bundle.manifest import MouseRecord
from server.errors import Busy, InvalidInput, TooLarge, UnsupportedMedia, brief
from server.inference.noise import NoiseSums, enlarge, noise_images
from server.inference.stimulus import Stimulus
from server.serving.context import Context
from server.serving.telemetry.statistics import Timing

if TYPE_CHECKING:
    from server.inference.engine import Engine, Prediction

__all__ = ["receptive_fields"]

BLOCK = 512  # images in one matrix product: the maps pass through memory once for so many
_BEGINNING = 8  # images that are checked before the reply begins
_RUNS = 4  # of the engine, in one piece
_BYTES_OF_MAPS = 20  # of each element: its sum in float64, and in float32 as one array, as .npy and as an event
_PROGRESS_PERIOD = 0.5  # seconds
_NOISE_FIELDS = frozenset({"noise", "seed", "first_image", "n_images", "grid", "luminance", "contrast"})


async def receptive_fields(request: Request, context: Context) -> Response:
    """Sums of responses to noise, as a stream of events."""
    accepted(request.headers.get("accept"), (EVENTS,))
    admit(request, context)
    if (media_type := media_type_of(request)) != JSON:
        raise UnsupportedMedia("the body is not JSON", got=brief(media_type), expected=JSON)
    body = await read_body(request, context)

    def read() -> dict[str, Any]:
        request.state.memory.set(json_memory(body), "JSON")
        return read_json(body)

    read_in_thread = request.state.memory.used_by(read)
    fields = await context.decode_pool.run(len(body), read_in_thread) if len(body) > LARGE else read()
    asked = validated(NoiseRequest, {name: value for name, value in fields.items() if value is not None})
    engine = await context.repository.engine(context.repository.look_up(asked.mouse, asked.model))
    request.state.mouse = asked.mouse
    mapping = _Mapping(request, context, engine, asked)
    headers = {"V1T-Reply": header_text(head_of(engine, mapping.question, request.state.request_id))}
    write_timeout = context.settings.timeout
    return await EventStream.begin(request, mapping.events(), write_timeout=write_timeout, headers=headers)


class _Mapping:
    """One request: its noise, shown and summed.

    Attributes:
        question: about one blank image; each piece replaces it. Its notes are about the first images of the noise.
    """

    def __init__(self, request: Request, context: Context, engine: Engine, asked: NoiseRequest) -> None:
        self._request, self._context, self._engine, self._asked = request, context, engine, asked
        record, neurons = engine.manifest.mice[asked.mouse], engine.neurons[asked.mouse]
        _check_grid(asked.grid, record)
        blank = np.zeros((1, *record.image_shape), dtype=np.float32)
        fields = asked.model_dump(exclude=set(_NOISE_FIELDS), exclude_none=True) | {"image": blank}
        beginning = ImageRange(record)
        noise = noise_images(asked.noise, asked.seed, asked.first_image, min(asked.n_images, _BEGINNING), asked.grid)
        beginning.add(self._levels(noise))
        question = validated(PredictRequest, fields)
        self.question = question_about(record, question, neurons, context.settings, shown=beginning)
        self._shown, self._lock = ImageRange(record), threading.Lock()
        positions = self.question.stimulus.neurons
        self._n_neurons = len(neurons) if positions is None else len(positions)
        self._timing = Timing(reading=time.perf_counter() - request.state.start)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Progress, then the sums: .npy one after another of maps (n, h, w), noise (h, w), total (n), squares (n)."""
        statistics, n_images = self._context.statistics, self._asked.n_images
        images = {self.question.mouse_id: n_images}
        try:
            with self._reserved_memory():
                sums = NoiseSums(self._n_neurons, self._asked.grid)
                async for done in self._show(sums):
                    yield Event("progress", more={"done": done, "total": n_images})
                body = await asyncio.to_thread(self._encode, sums)
        except BaseException:
            statistics.failed(self._engine, images, time.perf_counter() - self._request.state.start)
            raise
        statistics.answered(self._engine, images, self._timing)
        notes = [note for note in self.question.notes if note.input != "image"]
        question = replace(self.question, notes=notes + [outside.note() for outside in self._shown.found()])
        count_outside(self._context, self._engine, [question])
        said = {"notes": [note.model_dump() for note in question.notes]}
        yield Event("part", body, {"first_image": self._asked.first_image, "n_images": n_images, **said})
        yield Event("end")

    async def _show(self, sums: NoiseSums) -> AsyncGenerator[int, None]:
        """Shows all images; yields the number that is done, now and then."""
        done, total, reported = 0, self._asked.n_images, 0.0
        first, size = self._asked.first_image, _RUNS * self._context.settings.max_batch
        pieces = [range(first + i, first + min(i + size, total)) for i in range(0, total, size)]
        waiting: list[tuple[np.ndarray, np.ndarray]] = []
        async with contextlib.aclosing(pipelined(pieces, self._responses)) as results:
            async for noise, responses in results:
                waiting.append((noise, responses))
                done += len(noise)
                if sum(len(piece) for piece, _ in waiting) >= BLOCK or done == total:
                    await asyncio.to_thread(self._sum, sums, waiting)
                    waiting = []
                if time.perf_counter() - reported > _PROGRESS_PERIOD or done == total:
                    reported = time.perf_counter()
                    yield done

    def _sum(self, sums: NoiseSums, pieces: list[tuple[np.ndarray, np.ndarray]]) -> None:
        responses = np.concatenate([response for _, response in pieces])
        check_finite(self.question, responses)
        sums.add(np.concatenate([noise for noise, _ in pieces]), responses)

    async def _responses(self, images: range) -> tuple[np.ndarray, np.ndarray]:
        """The noise of these images (B, h, w), and the responses (B, n) to it."""
        noise, stimulus = await asyncio.to_thread(self._stimulus, images)
        deadline = min(self._request.state.client_deadline, time.perf_counter() + self._context.settings.timeout)

        async def predict() -> Prediction:
            batcher = self._context.batcher
            priority = self._request.state.priority
            (prediction,) = await batcher.compute(
                self._engine, [stimulus], deadline=deadline, timing=self._timing, priority=priority
            )
            return prediction

        # The first piece is refused as any request would be; later ones wait for space in the queue.
        is_first = images.start == self._asked.first_image
        prediction = await (predict() if is_first else retry_while_busy(predict, deadline=deadline))
        return noise, prediction.response

    def _stimulus(self, images: range) -> tuple[np.ndarray, Stimulus]:
        asked, shown, n = self._asked, self.question.stimulus, len(images)
        noise = noise_images(asked.noise, asked.seed, images.start, n, asked.grid)
        levels = self._levels(noise)
        with self._lock:
            self._shown.add(levels)
            if asked.strict and (found := self._shown.found()):
                raise refuse(found[0], asked.mouse)
        image = enlarge(levels[:, 0], shown.image.shape[1:])
        behavior, pupil_center = shown.behavior.repeat(n, axis=0), shown.pupil_center.repeat(n, axis=0)
        return noise, replace(shown, image=image, behavior=behavior, pupil_center=pupil_center)

    def _levels(self, noise: np.ndarray) -> np.ndarray:
        """Noise (B, h, w) as images (B, C, h, w) of one pixel for each of its elements."""
        C = self._engine.manifest.mice[self._asked.mouse].image_shape[0]
        levels = np.float32(self._asked.luminance) + np.float32(self._asked.contrast) * noise
        return np.repeat(levels[:, None], C, axis=1)

    @contextlib.contextmanager
    def _reserved_memory(self) -> Iterator[None]:
        """Reserves memory for the maps, from the limit that all such requests share."""
        rows, columns = self._asked.grid
        size = self._n_neurons * rows * columns
        limit, state = self._context.settings.max_maps, self._request.app.state
        reserved = getattr(state, "maps", 0)
        got = f"{size:,} elements ({self._n_neurons:,} neurons x {rows} x {columns})"
        if size > limit:
            hint = "Ask for fewer neurons at a time."
            raise TooLarge("the maps are too large", got=got, expected=f"at most {limit:,}", hint=hint)
        if reserved + size > limit:
            expected = f"at most {limit - reserved:,} at the moment"
            raise Busy("other receptive fields are being mapped", got=got, expected=expected, retry_after=30)
        memory = self._request.state.memory
        memory.set(memory.size + _BYTES_OF_MAPS * size, "maps")
        state.maps = reserved + size
        try:
            yield
        finally:
            state.maps -= size

    def _encode(self, sums: NoiseSums) -> bytes:
        stream = io.BytesIO()
        for array, kind in (
            (sums.maps.reshape(-1, *self._asked.grid), np.float32),
            (sums.noise.reshape(self._asked.grid), np.float64),
            (sums.total, np.float64),
            (sums.squares, np.float64),
        ):
            np.lib.format.write_array(stream, np.ascontiguousarray(array, dtype=kind), allow_pickle=False)
        return stream.getvalue()


def _check_grid(grid: tuple[int, int], record: MouseRecord) -> None:
    (rows, columns), (_, H, W) = grid, record.image_shape
    if min(grid) < 1 or H % rows or W % columns or H // rows != W // columns:
        raise InvalidInput(
            "grid does not divide the image into squares",
            got=brief(list(grid)),
            expected=f"[rows, columns] of squares of whole pixels on {H} x {W}",
            hint=f"See GET /mice/{record.mouse_id}.",
        )
