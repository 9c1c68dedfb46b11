"""Replies that are written while they are computed: order, back-pressure, keepalive, errors and disconnects."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from starlette.requests import Request

from server.api.codecs import streaming
from server.api.codecs.streaming import Event, EventStream, pipelined, retry_while_busy
from server.errors import Busy, InvalidInput


def events_of(body: bytes) -> list[tuple[dict[str, Any], bytes]]:
    """The events of a stream, parsed as the documentation describes."""
    stream, events = io.BytesIO(body), []
    while line := stream.readline():
        event = json.loads(line)
        events.append((event, stream.read(event.get("bytes", 0))))
    return events


def request_of(*messages: dict[str, Any] | asyncio.Event) -> tuple[Request, list[int]]:
    """A request that receives these messages; an asyncio event among them is waited for."""
    left, taken = list(messages), [0]

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        message = left.pop(0)
        if isinstance(message, asyncio.Event):
            await message.wait()
            return {"type": "http.disconnect"}
        taken[0] += 1
        return message

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "state": {"request_id": "r"}}
    return Request(scope, receive), taken


async def collected(stream: EventStream, request: Request, stall_after: int | None = None) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        if stall_after is not None and len(sent) >= stall_after:
            await asyncio.Event().wait()
        sent.append(message)

    await stream({"type": "http"}, request.receive, send)
    return sent


async def test_results_keep_their_order_and_few_pieces_are_held() -> None:
    held, most = 0, 0

    def pieces() -> Iterator[int]:
        nonlocal held, most
        for i in range(20):
            held += 1
            most = max(most, held)
            yield i

    async def compute(i: int) -> int:
        await asyncio.sleep(0.002 * (i % 3))
        return i

    expected = 0
    async for i in pipelined(pieces(), compute, ahead=3):
        assert i == expected
        expected += 1
        held -= 1
    assert expected == 20
    assert held == 0
    assert most <= 4  # three that are being computed, and one that is being sent


async def test_pending_computations_are_cancelled_when_nobody_wants_the_rest() -> None:
    cancelled = []

    async def compute(i: int) -> int:
        if i == 0:
            return 0
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(i)
            raise
        return i

    results = pipelined(range(9), compute, ahead=3)
    assert await anext(results) == 0
    await asyncio.sleep(0)
    await results.aclose()
    assert cancelled == [1, 2]


async def test_a_stream_waits_where_the_queue_is_full_until_its_deadline() -> None:
    refusals = 2

    async def ask() -> str:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise Busy("full", retry_after=0.01)
        return "answered"

    assert await retry_while_busy(ask, deadline=time.perf_counter() + 5) == "answered"
    refusals = 10**6
    with pytest.raises(Busy):
        await retry_while_busy(ask, deadline=time.perf_counter() + 0.05)


async def test_events_stop_when_the_client_hangs_up() -> None:
    gone, closed = asyncio.Event(), asyncio.Event()

    async def events() -> AsyncGenerator[Event, None]:
        try:
            yield Event("progress", more={"done": 0})
            gone.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    request, _ = request_of(gone)
    stream = await EventStream.begin(request, events(), write_timeout=5, headers={})
    sent = await asyncio.wait_for(collected(stream, request), 5)
    assert closed.is_set()
    assert sent[-1].get("more_body") is True  # so that the client notices the truncation


async def test_a_stream_ends_if_the_client_does_not_read() -> None:
    closed = asyncio.Event()

    async def events() -> AsyncGenerator[Event, None]:
        try:
            while True:
                yield Event("part", b"x" * 100)
        finally:
            closed.set()

    request, _ = request_of()
    stream = await EventStream.begin(request, events(), write_timeout=0.05, headers={})
    sent = await asyncio.wait_for(collected(stream, request, stall_after=5), 5)
    assert closed.is_set()
    assert len(sent) == 5


async def test_a_stream_without_results_sends_keep_alive_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "ALIVE_AFTER", 0.02)

    async def events() -> AsyncGenerator[Event, None]:
        yield Event("progress", more={"done": 0, "total": 2})
        await asyncio.sleep(0.1)
        yield Event("end")

    request, _ = request_of()
    stream = await EventStream.begin(request, events(), write_timeout=5, headers={})
    sent = await collected(stream, request)
    names = [event["event"] for event, _ in events_of(b"".join(message.get("body", b"") for message in sent))]
    assert names[0] == "progress"
    assert names[-1] == "end"
    assert set(names[1:-1]) == {"alive"}
    assert sent[-1]["more_body"] is False


async def test_known_errors_are_sent_and_unexpected_ones_without_details() -> None:
    for raised, code in ((InvalidInput("too bright"), "invalid_input"), (RuntimeError("secret"), "error")):

        async def events(raised: Exception = raised) -> AsyncGenerator[Event, None]:
            yield Event("progress")
            raise raised

        request, _ = request_of()
        stream = await EventStream.begin(request, events(), write_timeout=5, headers={})
        body = b"".join(message.get("body", b"") for message in await collected(stream, request))
        last, _ = events_of(body)[-1]
        assert (last["event"], last["error"]["code"], last["request_id"]) == ("error", code, "r")
        assert b"secret" not in body
