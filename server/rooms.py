"""What the routes stand on, and a checked question's way through the batcher, as long as anybody waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from server import stimulus
from server.access import Access
from server.batcher import Batcher, Work
from server.desk import Desk
from server.drain import Drain
from server.errors import NotReady, out_of_time
from server.library import Library, load_engine
from server.metrics import Metrics
from server.settings import Settings
from server.statistics import Statistics, Timing

if TYPE_CHECKING:
    from server.engine import Engine, Prediction, Stimulus

__all__ = ["LARGE", "Rooms", "answer", "answer_mice", "maybe_in_thread", "named", "work_out"]

LARGE = 64 * 1024  # bytes; below that, a thread costs more than the work

T = TypeVar("T")
Handler = Callable[[Request, "Rooms"], Awaitable[Response]]


@dataclass(frozen=True)
class Rooms:
    """What the routes stand on."""

    settings: Settings
    access: Access
    library: Library
    desk: Desk
    drain: Drain
    batcher: Batcher
    metrics: Metrics
    statistics: Statistics

    @classmethod
    def open(cls, settings: Settings, load: Callable[[Path, Settings], Engine] = load_engine) -> Self:
        """Makes them; nothing is loaded and nothing runs before the library loads and the batcher starts.

        Args:
            load: makes a warm engine of a bundle.
        """
        metrics, statistics = Metrics(), Statistics()

        def ran(engine: Engine, stimuli: Sequence[Stimulus], seconds: float) -> None:
            statistics.ran(engine, stimuli, seconds)
            for stage, of_stage in engine.stages.seconds.items():
                metrics.stage_seconds.labels(stage).observe(of_stage)

        batcher = Batcher(max_batch=settings.max_batch, max_queue=settings.max_queue, metrics=metrics, ran=ran)
        library, drain = Library(settings, metrics, load), Drain(settings.drain, metrics)
        return cls(settings, Access(settings), library, Desk(), drain, batcher, metrics, statistics)

    def check_ready(self) -> None:
        """Passes when every question can be answered.

        Raises:
            NotReady: with the reason.
        """
        if self.access.problem is not None:
            raise NotReady("the server answers nobody", hint=self.access.problem, retry_after=30)
        self.library.check_ready()
        self.drain.check()
        self.batcher.check()

    def admit(self, deadline: float) -> None:
        """Passes if who comes now can be answered in time, as far as is known.

        Raises:
            Busy: he cannot; `retry_after` says when.
        """
        self.batcher.admit(deadline=deadline - self.desk.seconds_ahead)


def named(route: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Names the route for the metrics, and hands the handler its rooms."""

    async def endpoint(request: Request) -> Response:
        request.state.route = route
        return await handler(request, request.app.state.rooms)

    return endpoint


async def maybe_in_thread(is_large: bool, function: Callable[..., T], *arguments: Any) -> T:
    """Calls it, off the event loop where it may take a while."""
    return await asyncio.to_thread(function, *arguments) if is_large else function(*arguments)


async def answer(
    request: Request,
    rooms: Rooms,
    engine: Engine,
    question: stimulus.Question,
    write: Callable[[Engine, stimulus.Question, Prediction, str], T],
    *,
    seconds: float | None = None,
) -> T:
    """What `write` makes of the prediction.

    Args:
        seconds: the time for it that the protocol's own words allow, less than the request's.
    """

    def write_one(
        engine: Engine, questions: Sequence[stimulus.Question], predictions: Sequence[Prediction], request_id: str
    ) -> T:
        return write(engine, questions[0], predictions[0], request_id)

    return await answer_mice(request, rooms, engine, [question], write_one, seconds=seconds)


async def answer_mice(
    request: Request,
    rooms: Rooms,
    engine: Engine,
    questions: Sequence[stimulus.Question],
    write: Callable[[Engine, Sequence[stimulus.Question], Sequence[Prediction], str], T],
    *,
    seconds: float | None = None,
) -> T:
    """What `write` makes of the predictions of several mice that are shown the same images. See `answer`."""
    start = time.perf_counter()
    deadline = request.state.deadline if seconds is None else min(request.state.deadline, start + seconds)
    asked = [stimulus_of(question) for question in questions]
    timing = Timing(reading=start - request.state.start)
    request.state.timing, request.state.bundle = timing, engine
    try:
        async with asyncio.timeout(seconds):
            predictions = await unless_gone(
                request, rooms.batcher.predict_mice(engine, asked, deadline=deadline, timing=timing)
            )
        computed = time.perf_counter()
        is_large = sum(prediction.response.size for prediction in predictions) > LARGE
        written = await maybe_in_thread(is_large, write, engine, questions, predictions, request.state.request_id)
    except BaseException as error:
        for question in questions:
            rooms.statistics.failed(engine, question.mouse_id, time.perf_counter() - start)
        if isinstance(error, TimeoutError) and seconds is not None:  # the envelope's own would be a cancellation
            raise out_of_time(seconds) from None
        raise
    timing.writing = time.perf_counter() - computed
    for question in questions:
        rooms.statistics.answered(engine, question.mouse_id, len(question.image), timing)
    return written


async def work_out(
    request: Request,
    rooms: Rooms,
    engine: Engine,
    question: stimulus.Question,
    work: Work,
    write: Callable[[Engine, stimulus.Question, Any, str], T],
) -> T:
    """What `write` makes of the work's arrays."""
    asked, timing = stimulus_of(question), Timing(reading=time.perf_counter() - request.state.start)
    computing = rooms.batcher.compute(engine, asked, work, deadline=request.state.deadline, timing=timing)
    arrays = await unless_gone(request, computing)
    is_large = sum(array.size for array in arrays) > LARGE
    return await maybe_in_thread(is_large, write, engine, question, arrays, request.state.request_id)


def stimulus_of(question: stimulus.Question) -> Stimulus:
    """What the engine is shown."""
    from server.engine import Stimulus  # loaded long since: the library has made an engine

    return Stimulus(
        mouse_id=question.mouse_id,
        image=question.image,
        behavior=question.behavior,
        pupil_center=question.pupil_center,
        neurons=question.neurons,
    )


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Waits for the work, unless the client hangs up first: then nobody computes it."""
    working = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    except asyncio.CancelledError:
        if working.done() and not working.cancelled() and (error := working.exception()) is not None:
            raise error from None  # both in one moment: the error says more
        raise
    finally:
        working.cancel()
        listening.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
