"""Replies that are written while they are computed, as a sequence of events.

An event is a line of JSON, followed by as many bytes as its `bytes` says:

    {"event":"progress","done":32,"total":10000}
    {"event":"part","bytes":96128,"start":0}
    <96128 bytes>
    {"event":"end"}

The last event is `end`, or `error` with the error body of every other reply; a stream without either is incomplete.
`alive` is sent after a while without other events. A request that is refused before the first event gets an error
status.

A stream counts as one request of its caller (V1T_MAX_CONCURRENT) until it ends. It has a few images in the queue at a
time, so that small requests take turns with it. V1T_TIMEOUT bounds each wait: for the first event, each prediction and
each write. X-Request-Timeout bounds the whole stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.errors import Busy, TwinError

__all__ = ["EVENTS", "Event", "EventStream", "pipelined", "retry_while_busy"]

logger = logging.getLogger("bentoml.v1t")

EVENTS: Final = "application/x-v1t-stream"
ALIVE_AFTER = 10.0  # seconds without another event
_RETRY_PAUSE = 0.05  # seconds

P = TypeVar("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Event:
    """One event of a stream.

    Attributes:
        name: "part", "progress" or "end"; "error" and "alive" are the stream's own.
        body: bytes that follow the line.
        more: what else the line says, plain data.
    """

    name: str
    body: bytes = b""
    more: dict[str, Any] = field(default_factory=dict)

    def encoded(self) -> bytes:
        line = {"event": self.name, **({"bytes": len(self.body)} if self.body else {}), **self.more}
        return orjson.dumps(line, default=str) + b"\n" + self.body


class EventStream(Response):
    """A reply whose events are written as they come, as fast as the client reads. Made by `begin`."""

    def __init__(
        self,
        request: Request,
        first: Event,
        events: AsyncGenerator[Event, None],
        *,
        write_timeout: float,
        headers: dict[str, str],
    ) -> None:
        super().__init__(b"", headers=headers, media_type=EVENTS)
        del self.headers["Content-Length"]
        self._request = request
        self._first = first
        self._events = events
        self._write_timeout = write_timeout

    @classmethod
    async def begin(
        cls, request: Request, events: AsyncGenerator[Event, None], *, write_timeout: float, headers: dict[str, str]
    ) -> EventStream:
        """Waits for the first event, so that what is refused until then is answered by status.

        Args:
            events: closed when the client disconnects. An error that it raises becomes the last event.
            write_timeout: seconds that one write may take.
        """
        try:
            first = await anext(events)
        except BaseException:
            await events.aclose()
            raise
        return cls(request, first, events, write_timeout=write_timeout, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.create_task(self._write(send), name="stream")
        listening = asyncio.create_task(self._disconnected(receive))
        try:
            await asyncio.wait({writing, listening}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            for task in (writing, listening):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await task
            await self._events.aclose()

    async def _disconnected(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with contextlib.aclosing(self._with_keepalive()) as events:
                async for event in events:
                    async with asyncio.timeout(self._write_timeout):
                        await send({"type": "http.response.body", "body": event.encoded(), "more_body": True})
        except (ClientDisconnect, TimeoutError, OSError):
            return  # the client does not read; the connection closes before the reply is complete
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _with_keepalive(self) -> AsyncGenerator[Event, None]:
        """All events, `alive` where none came for a while, and the error that ended them, if any."""
        yield self._first
        coming: asyncio.Task[Event] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(self._events))
                done, _ = await asyncio.wait({coming}, timeout=ALIVE_AFTER)
                if not done:
                    yield Event("alive")
                    continue
                ready, coming = coming, None
                try:
                    event = ready.result()
                except StopAsyncIteration:
                    return
                except ClientDisconnect:
                    raise
                except Exception as error:
                    yield self._error(error)
                    return
                yield event
        finally:
            if coming is not None:
                coming.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                    await coming

    def _error(self, error: Exception) -> Event:
        request_id = self._request.state.request_id
        if not isinstance(error, TwinError):
            logger.error("the stream of request %s failed", request_id, exc_info=error)
            error = TwinError("the server failed on this request", hint="Its log has the request_id.")
        retry = {} if error.retry_after is None else {"retry_after": error.retry_after}
        return Event("error", more={**error.body(), "status": error.status, **retry, "request_id": request_id})


async def pipelined(
    pieces: Iterable[P], compute: Callable[[P], Awaitable[T]], *, ahead: int = 2
) -> AsyncGenerator[T, None]:
    """The result of each piece, in order; at most `ahead` pieces are computed or held at a time.

    Closing the generator cancels pending computations.
    """
    pending: deque[asyncio.Future[T]] = deque()
    try:
        for piece in pieces:
            if len(pending) == ahead:
                yield await pending.popleft()
            pending.append(asyncio.ensure_future(compute(piece)))
        while pending:
            yield await pending.popleft()
    finally:
        for computation in pending:
            computation.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def retry_while_busy(compute: Callable[[], Awaitable[T]], *, deadline: float) -> T:
    """The computation's result, tried again while the batcher's queue is full.

    Args:
        deadline: on the clock of `time.perf_counter`.

    Raises:
        Busy: the queue is still full at the deadline.
    """
    while True:
        try:
            return await compute()
        except Busy:
            if time.perf_counter() + _RETRY_PAUSE >= deadline:
                raise
        await asyncio.sleep(_RETRY_PAUSE)
