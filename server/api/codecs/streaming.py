"""Long exchanges in bounded memory: bodies read as they arrive, replies written piece by piece as they are computed.

A stream is a sequence of events. Each is one line of JSON, and after it as many bytes as its `bytes` says:

    {"event":"progress","done":32,"total":10000}
    {"event":"part","bytes":96128,"start":0}
    <96128 bytes>
    {"event":"end"}

`end` comes last, or `error` with the error body of every other reply; what stops before either is not whole. `alive`
comes where nothing else did for a while. A request that is refused before the first event is answered by status.

A stream holds its caller's place (V1T_MAX_CONCURRENT) until it ends, and has a few images in the queue at a time, so
that small requests take turns with it. V1T_TIMEOUT bounds what it may wait for: the first event, each piece of the
body, each answer, each write. X-Request-Timeout bounds the whole of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.errors import Busy, DeadlineExceeded, InvalidInput, MalformedBody, TwinError, brief

__all__ = ["EVENTS", "STREAMED", "Event", "EventStream", "Upload", "in_order", "patiently", "seconds_asked"]

logger = logging.getLogger("bentoml.v1t")

EVENTS: Final = "application/x-v1t-stream"
STREAMED: Final = frozenset({"/predict/stream"})  # whose bodies are bounded piece by piece, not as a whole
ALIVE_AFTER = 10.0  # seconds without another event
_PAUSE = 0.05  # seconds before a full queue is asked again

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
    """A reply whose events are written as they come; back-pressure is the connection's.

    Make one by `begin`, which waits for the first event: what is refused until then is answered by status.

    Args:
        events: closed when the client hangs up. What it raises becomes the last event.
        encode: bytes of an event; None: the form above. Where it writes nothing of an error, the reply stops short.

    Attributes:
        received: is set when the body has been read to its end, where it is read while the reply is written.
    """

    received: asyncio.Event | None = None

    def __init__(
        self,
        request: Request,
        first: Event,
        events: AsyncGenerator[Event, None],
        *,
        patience: float,
        headers: dict[str, str] | None = None,
        media_type: str = EVENTS,
        encode: Callable[[Event], bytes] = Event.encoded,
    ) -> None:
        super().__init__(b"", headers=headers, media_type=media_type)
        del self.headers["Content-Length"]
        self._request = request
        self._first = first
        self._events = events
        self._patience = patience
        self._encode = encode

    @classmethod
    async def begin(
        cls, request: Request, events: AsyncGenerator[Event, None], *, patience: float, **options: Any
    ) -> EventStream:
        """Waits for the first event.

        Args:
            patience: seconds that one write may take.
            options: see the class.
        """
        try:
            first = await anext(events)
        except BaseException:
            await events.aclose()
            raise
        return cls(request, first, events, patience=patience, **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.create_task(self._write(send), name="stream")
        listening = asyncio.create_task(self._gone(receive))
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

    async def _gone(self, receive: Receive) -> None:
        if self.received is not None:
            await self.received.wait()  # until then, whoever reads the body hears of it
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        complete = True
        try:
            async with contextlib.aclosing(self._lively()) as events:
                async for event in events:
                    content = self._encode(event)
                    complete = event.name != "error" or bool(content)
                    if content:
                        async with asyncio.timeout(self._patience):
                            await send({"type": "http.response.body", "body": content, "more_body": True})
        except (ClientDisconnect, TimeoutError, OSError):
            return  # nobody reads: the connection is closed, and the reply is seen to be short
        if complete:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _lively(self) -> AsyncGenerator[Event, None]:
        """All events, with signs of life between them, and the error if one stops them."""
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


class Upload:
    """The body of a request, read as it arrives and no faster than it is used.

    Args:
        patience: seconds that one read may take.
    """

    def __init__(self, request: Request, *, patience: float) -> None:
        self._chunks = request.stream()
        self._patience = patience
        self._buffer = bytearray()
        self.received = asyncio.Event()

    async def read(self, n: int, what: str) -> bytes:
        """The next n bytes.

        Raises:
            MalformedBody: the body ends before them.
            DeadlineExceeded: they do not come.
            ClientDisconnect: the client hung up.
        """
        try:
            async with asyncio.timeout(self._patience):
                while len(self._buffer) < n and await self._more():
                    pass
        except TimeoutError:
            raise DeadlineExceeded(
                f"{what} did not arrive",
                expected=f"within {self._patience:g} s",
                hint="Read the reply while you send: the server reads no further ahead than it answers.",
            ) from None
        if len(self._buffer) < n:
            raise MalformedBody(
                f"the body ends within {what}", got=f"{len(self._buffer)} bytes of it", expected=f"{n} bytes"
            )
        content = bytes(memoryview(self._buffer)[:n])
        del self._buffer[:n]
        return content

    async def finish(self) -> None:
        """Reads the end.

        Raises:
            MalformedBody: there is more.
        """
        async with asyncio.timeout(self._patience):
            while not self._buffer and await self._more():
                pass
        if self._buffer:
            raise MalformedBody("the body goes on after the last array", got=brief(bytes(self._buffer[:16])))

    async def _more(self) -> bool:
        try:
            self._buffer += await anext(self._chunks)
        except StopAsyncIteration:
            self.received.set()
            return False
        return True


async def in_order(
    pieces: AsyncIterator[P], ask: Callable[[P], Awaitable[T]], *, ahead: int = 2
) -> AsyncGenerator[tuple[P, T], None]:
    """Each piece with its answer, in order; `ahead` pieces at most are held at a time, read and asked.

    Closing it cancels what was asked.
    """
    room = asyncio.Semaphore(ahead)
    asked: asyncio.Queue[tuple[P, asyncio.Future[T]] | BaseException | None] = asyncio.Queue()
    running: set[asyncio.Future[T]] = set()

    async def read() -> None:
        try:
            await room.acquire()
            async for piece in pieces:
                answer = asyncio.ensure_future(ask(piece))
                running.add(answer)
                asked.put_nowait((piece, answer))
                await room.acquire()
            asked.put_nowait(None)
        except Exception as error:
            asked.put_nowait(error)

    reading = asyncio.create_task(read())
    try:
        while (item := await asked.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            piece, answer = item
            result = await answer
            running.discard(answer)
            yield piece, result
            del piece, answer, item, result  # before the next is read
            room.release()
    finally:
        reading.cancel()
        for answer in running:
            answer.cancel()
        await asyncio.gather(reading, *running, return_exceptions=True)


async def patiently(ask: Callable[[], Awaitable[T]], *, deadline: float) -> T:
    """What is asked of the batcher, asked again while its queue is full: a stream waits where a request is refused.

    Args:
        deadline: on the clock of `time.perf_counter`.

    Raises:
        Busy: the queue is still full by then.
    """
    while True:
        try:
            return await ask()
        except Busy:
            if time.perf_counter() + _PAUSE >= deadline:
                raise
        await asyncio.sleep(_PAUSE)


def seconds_asked(header: str | None) -> float | None:
    """X-Request-Timeout.

    Raises:
        InvalidInput: it is no time.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidInput("X-Request-Timeout is no time", got=brief(header), expected="seconds, such as 2.5")
    return seconds
