"""A checked question's way through the batcher, as long as its client waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from server.api.codecs import request as stimulus
from server.errors import out_of_time
from server.serving.batcher import Work
from server.serving.context import Context
from server.serving.telemetry.statistics import Timing

if TYPE_CHECKING:
    from server.inference.engine import Engine, Prediction
    from server.inference.stimulus import Stimulus

__all__ = ["LARGE", "answer", "answer_mice", "maybe_in_thread", "named", "stimulus_of", "unless_gone", "work_out"]

LARGE = 64 * 1024  # bytes; below that, a thread costs more than the work

T = TypeVar("T")
Handler = Callable[[Request, Context], Awaitable[Response]]


def named(route: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Names the route for the metrics, and hands the handler its context."""

    async def endpoint(request: Request) -> Response:
        request.state.route = route
        return await handler(request, request.app.state.context)

    return endpoint


async def maybe_in_thread(is_large: bool, function: Callable[..., T], *arguments: Any) -> T:
    """Calls it, off the event loop where it may take a while."""
    return await asyncio.to_thread(function, *arguments) if is_large else function(*arguments)


async def answer(
    request: Request,
    context: Context,
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

    return await answer_mice(request, context, engine, [question], write_one, seconds=seconds)


async def answer_mice(
    request: Request,
    context: Context,
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
                request, context.batcher.predict_mice(engine, asked, deadline=deadline, timing=timing)
            )
        computed = time.perf_counter()
        is_large = sum(prediction.response.size for prediction in predictions) > LARGE
        written = await maybe_in_thread(is_large, write, engine, questions, predictions, request.state.request_id)
    except BaseException as error:
        for question in questions:
            context.statistics.failed(engine, question.mouse_id, time.perf_counter() - start)
        if isinstance(error, TimeoutError) and seconds is not None:  # the envelope's own would be a cancellation
            raise out_of_time(seconds) from None
        raise
    timing.writing = time.perf_counter() - computed
    for question in questions:
        context.statistics.answered(engine, question.mouse_id, len(question.image), timing)
    return written


async def work_out(
    request: Request,
    context: Context,
    engine: Engine,
    question: stimulus.Question,
    work: Work,
    write: Callable[[Engine, stimulus.Question, Any, str], T],
) -> T:
    """What `write` makes of the work's arrays."""
    asked, timing = stimulus_of(question), Timing(reading=time.perf_counter() - request.state.start)
    computing = context.batcher.compute(engine, asked, work, deadline=request.state.deadline, timing=timing)
    arrays = await unless_gone(request, computing)
    is_large = sum(array.size for array in arrays) > LARGE
    return await maybe_in_thread(is_large, write, engine, question, arrays, request.state.request_id)


def stimulus_of(question: stimulus.Question) -> Stimulus:
    """What the engine is shown."""
    from server.inference.engine import Stimulus  # loaded long since: the repository has made an engine

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
