"""Predictions of image sets that are larger than one request: cut into chunks, with a few requests in flight.

Each chunk is a request of its own and is retried until it succeeds or its time is up. A large set therefore survives a
busy or restarting server and passes through any proxy, which one request of an hour would not.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from v1t_client._answers.prediction import Prediction, check_same_model
from v1t_client._errors import InvalidArgument, check_count
from v1t_client._large_sets.image_sets import Images, open_images
from v1t_client._protocol.arguments import PredictOptions, PredictRequest, part_of, per_image
from v1t_client._protocol.operations import Flow, Operations

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["CHUNK", "ChunkedRequest", "run_chunks", "run_chunks_async"]

CHUNK = 64  # images; few enough for a slow model to answer in time, enough to hide the overhead of a request
IN_FLIGHT = 2  # chunks; the server computes one while the other is on its way

Handle = TypeVar("Handle", bound="Cancellable")


class ChunkedRequest:
    """A set of images with the arguments of their prediction, cut into requests.

    Args:
        chunk: most images in one request.

    Attributes:
        images: the images, opened.
        request: the arguments, for all images.
        in_flight: number of requests that are sent at the same time.
        first: index of the first image.
    """

    def __init__(
        self,
        operations: Operations,
        mouse: str,
        images: Images,
        *,
        chunk: int = CHUNK,
        in_flight: int = IN_FLIGHT,
        first: int = 0,
        **options: Unpack[PredictOptions],
    ) -> None:
        check_count("chunk", chunk, least=1)
        check_count("in_flight", in_flight, least=1)
        check_count("first", first, least=0)
        self._operations = operations
        self._chunk = chunk
        self._model_hash: str | None = None
        self._checked = 0  # images
        self.in_flight, self.first = in_flight, first
        self.request = PredictRequest(mouse=mouse, image=None, **options)
        self.images = open_images(images)
        n_images = self.images.n_images
        for name, value in per_image(self.request).items():
            if n_images is not None and len(value) != n_images:
                raise InvalidArgument(
                    f"{name} does not fit the images", got=len(value), expected=f"one for all, or {n_images}"
                )

    def flows(self) -> Iterator[Flow[Prediction]]:
        """One flow per chunk, starting at image `first`. A chunk is read when its flow is taken."""
        start = self.first
        for image in self.images.read(start, self._chunk):
            rows = slice(start, start + len(image))
            yield self._operations.predict_chunk(part_of(self.request, image, rows))
            start = rows.stop

    def check(self, prediction: Prediction) -> Prediction:
        """Returns the prediction of the next chunk, with its file names, if the same bundle made the ones before.

        Raises:
            ModelChanged: another bundle made it.
        """
        self._model_hash = self._model_hash or prediction.model.hash
        check_same_model(self._model_hash, prediction)
        start = self.first + self._checked
        self._checked += len(prediction)
        # Names are unique in the whole set, not only in a chunk.
        return replace(prediction, images=self.images.names[start : start + len(prediction)])


class Cancellable(Protocol):
    """A started computation that can be cancelled."""

    def cancel(self, /) -> object: ...


def start_ahead(
    flows: Iterable[Flow[Prediction]], start: Callable[[Flow[Prediction]], Handle], in_flight: int
) -> Iterator[Handle]:
    """Starts flows, `in_flight` at a time, and yields them in order."""
    started: deque[Handle] = deque()
    try:
        for flow in flows:
            started.append(start(flow))
            if len(started) == in_flight:
                yield started.popleft()
        while started:
            yield started.popleft()
    finally:
        for handle in started:
            handle.cancel()


def run_chunks(chunks: ChunkedRequest, run: Callable[[Flow[Prediction]], Prediction]) -> Iterator[Prediction]:
    """The predictions of all chunks in order; each chunk runs in its own thread."""

    def start(flow: Flow[Prediction]) -> Future[Prediction]:
        future: Future[Prediction] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(run(flow))
                except BaseException as error:
                    future.set_exception(error)

        # Not a pool: its threads would keep an interrupted program waiting for replies that nobody reads.
        threading.Thread(target=work, name="v1t-stream", daemon=True).start()
        return future

    for future in start_ahead(chunks.flows(), start, chunks.in_flight):
        yield chunks.check(future.result())


async def run_chunks_async(
    chunks: ChunkedRequest, run: Callable[[Flow[Prediction]], Coroutine[Any, Any, Prediction]]
) -> AsyncIterator[Prediction]:
    """The same on an event loop."""
    tasks = start_ahead(chunks.flows(), lambda flow: asyncio.ensure_future(run(flow)), chunks.in_flight)
    try:
        for task in tasks:
            try:
                prediction = await task
            finally:
                task.cancel()
            yield chunks.check(prediction)
    finally:
        tasks.close()  # type: ignore[attr-defined]  # a generator: closing it cancels what is in flight
