"""Predictions of sets of images that are larger than a request: cut into chunks, a few under way, answers in order.

A chunk is a request of its own, and asked again until it is answered or its time is up. So a set outlives a busy or
restarting server and passes any proxy, which one request of an hour would not.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from v1t_client._answers.prediction import Prediction, check_same_model
from v1t_client._errors import InvalidArgument
from v1t_client._large_sets.image_sets import ImageSet
from v1t_client._protocol.operations import Flow, Operations
from v1t_client._protocol.requests import Asked, Question, part_of, per_image

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Stream", "answers", "answers_async"]

CHUNK = 64  # images; small enough for a slow model to answer in its time, large enough to hide a request's own cost

Handle = TypeVar("Handle", bound="Cancellable")


class Stream:
    """One set of images on its way.

    Args:
        chunk: images in one request, at most.

    Attributes:
        images: what is shown.
        question: what is asked of them.
    """

    def __init__(
        self,
        operations: Operations,
        mouse: str,
        images: ImageSet,
        *,
        chunk: int = CHUNK,
        **asked: Unpack[Asked],
    ) -> None:
        if not isinstance(chunk, int) or chunk < 1:
            raise InvalidArgument("chunk is no count", got=repr(chunk), expected="an integer, 1 or more")
        self._operations = operations
        self._chunk = chunk
        self._hash: str | None = None
        self.images = images
        self.question = Question(mouse=mouse, image=None, **asked)
        for name, value in per_image(self.question).items():
            if images.n_images is not None and len(value) != images.n_images:
                raise InvalidArgument(
                    f"{name} does not fit the images", got=len(value), expected=f"one for all, or {images.n_images}"
                )

    def flows(self, first: int) -> Iterator[Flow[Prediction]]:
        """One flow per chunk, from the first image on; each chunk is read when its flow is asked for."""
        start = first
        for image in self.images.read(first, self._chunk):
            rows = slice(start, start + len(image))
            yield self._operations.predict_patiently(part_of(self.question, image, rows))
            start = rows.stop

    def accept(self, prediction: Prediction) -> Prediction:
        """The chunk's answer, if the same bundle gave it that answered those before.

        Raises:
            ModelChanged: another did.
        """
        self._hash = self._hash or prediction.model.hash
        check_same_model(self._hash, prediction)
        return prediction


class Cancellable(Protocol):
    """What was started and may be given up."""

    def cancel(self, /) -> object: ...


def ahead(flows: Iterable[Flow[Prediction]], start: Callable[[Flow[Prediction]], Handle], n: int) -> Iterator[Handle]:
    """Starts flows, n at a time, and gives them out in order, to be waited for."""
    if not isinstance(n, int) or n < 1:
        raise InvalidArgument("in_flight is no count", got=repr(n), expected="an integer, 1 or more")
    started: deque[Handle] = deque()
    try:
        for flow in flows:
            started.append(start(flow))
            if len(started) == n:
                yield started.popleft()
        while started:
            yield started.popleft()
    finally:
        for handle in started:
            handle.cancel()


def answers(
    stream: Stream, run: Callable[[Flow[Prediction]], Prediction], *, in_flight: int, first: int
) -> Iterator[Prediction]:
    """The answers of a stream, each chunk asked in a thread of its own."""

    def start(flow: Flow[Prediction]) -> Future[Prediction]:
        future: Future[Prediction] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(run(flow))
                except BaseException as error:
                    future.set_exception(error)

        # No pool: a program that is interrupted does not wait for answers that nobody reads.
        threading.Thread(target=work, name="v1t-stream", daemon=True).start()
        return future

    for future in ahead(stream.flows(first), start, in_flight):
        yield stream.accept(future.result())


async def answers_async(
    stream: Stream, run: Callable[[Flow[Prediction]], Coroutine[Any, Any, Prediction]], *, in_flight: int, first: int
) -> AsyncIterator[Prediction]:
    """The same on an event loop."""
    started = ahead(stream.flows(first), lambda flow: asyncio.ensure_future(run(flow)), in_flight)
    try:
        for task in started:
            try:
                prediction = await task
            finally:
                task.cancel()
            yield stream.accept(prediction)
    finally:
        started.close()  # type: ignore[attr-defined]  # a generator: what is under way is cancelled
