"""Bounds on the heads, bodies, replies and idleness of connections, over real sockets in this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from server.errors import NotReady
from server.serving.limits import connection as connection_module
from server.serving.limits import connections as connections_module
from server.serving.limits.connection import Connection
from server.serving.limits.connections import Connections
from server.serving.telemetry.metrics import Metrics

App = Callable[[Scope, Receive, Send], Awaitable[None]]

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
CLOSE = b"Connection: close\r\n"


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "REPLY_SECONDS"):
        monkeypatch.setattr(connection_module, name, 0.15)
    monkeypatch.setattr(connections_module, "_PERIOD", 0.02)


async def whole_body(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the number of bytes of the body."""
    n, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        n, more = n + len(message.get("body", b"")), message.get("more_body", False)
    await answer(send, str(n).encode())


async def answer(send: Send, body: bytes) -> None:
    length = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(app: App = whole_body, limit: int | None = None) -> AsyncIterator[tuple[int, Connections]]:
    """A server on a free port, and its connections."""
    connections = Connections(2**30, Metrics())
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=partial(Connection, connections=connections), lifespan="off", log_config=None, timeout_keep_alive=60
    )
    server = uvicorn.Server(config)
    connections.start()
    if limit is not None:
        connections.limit = limit
    task = asyncio.create_task(server._serve([listening]))
    try:
        yield listening.getsockname()[1], connections
    finally:
        server.should_exit = server.force_exit = True
        await task
        await connections.stop()


async def talk(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """All that the server answers until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionError:
        return b""
    finally:
        await close(writer)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def status_of(reply: bytes) -> int:
    return int(reply.split()[1])


def code_of(reply: bytes) -> str:
    error: dict[str, Any] = json.loads(reply.partition(b"\r\n\r\n")[2])["error"]
    return str(error["code"])


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(GET + b"a: b\r\n" * 100 + b"\r\n", id="101 fields"),
        pytest.param(GET + b"a: " + b"b" * 40_000 + b"\r\n\r\n", id="a long value"),
        pytest.param(GET + (b"a" * 40_000) + b": b\r\n\r\n", id="a long name"),
        pytest.param(b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n", id="a long path"),
        pytest.param(GET + b"a: " + b"b" * 40_000_000, id="a value without an end"),
        pytest.param(GET + b"a: b\r\n" * 4_000_000, id="fields without an end"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"x" * 4_000_000, id="a chunk's extension"),
        pytest.param(
            POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n" + b"a: b\r\n" * 200 + b"\r\n", id="trailers"
        ),
    ],
)
async def test_a_large_head_is_refused_and_not_kept(head: bytes) -> None:
    async with serving() as (port, _):
        reply = await talk(port, head)
        assert (status_of(reply), code_of(reply)) == (431, "head_too_large")
        assert status_of(await talk(port, GET + CLOSE + b"\r\n")) == 200


async def test_a_head_within_the_bounds_is_read_in_any_pieces() -> None:
    head = POST + CLOSE + b"Content-Length: 70000\r\n" + b"a: b\r\n" * 90 + b"b: " + b"c" * 20_000 + b"\r\n\r\n"
    async with serving() as (port, _):
        for size in (1000, 20_000, 200_000):
            sent = head + b"x" * 70_000
            reply = await talk(port, *(sent[i : i + size] for i in range(0, len(sent), size)))
            assert reply.endswith(b"\r\n\r\n70000")


async def test_malformed_http_is_answered_with_the_usual_error() -> None:
    async with serving() as (port, _):
        reply = await talk(port, b"nonsense\r\n\r\n")
        assert (status_of(reply), code_of(reply)) == (400, "malformed_body")


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        pytest.param((GET + b"a: b",), 408, id="half a head"),
        pytest.param((GET, *[b"a: b\r\n"] * 20), 408, id="a dripping head"),
        pytest.param((POST + b"Content-Length: 9\r\n\r\nabc",), 408, id="half a body"),
        pytest.param((POST + b"Content-Length: 99\r\n\r\n", *[b"a"] * 20), 408, id="a dripping body"),
        pytest.param((POST + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\na\r\n"] * 20), 408, id="dripping chunks"),
    ],
)
async def test_a_request_that_arrives_too_slowly_is_refused(parts: tuple[bytes, ...], status: int) -> None:
    async with serving() as (port, _):
        reply = await talk(port, *parts, pause=0.03)
        assert (status_of(reply), code_of(reply)) == (status, "request_timeout")


async def test_an_idle_connection_is_closed_and_one_with_a_request_is_not() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.5)
        await answer(send, b"slow")

    async with serving(slow) as (port, _):
        idle, busy = await asyncio.gather(talk(port), talk(port, GET + CLOSE + b"\r\n"))
        assert idle == b""
        assert busy.endswith(b"slow")


async def test_a_client_that_does_not_read_its_reply_is_cut_off_and_its_memory_released() -> None:
    released = asyncio.Event()

    class Reply:
        def release(self) -> None:
            released.set()

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"x" * 64_000_000)
        scope["state"]["connection"].hold(Reply())

    async with serving(large) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(GET + b"\r\n")
        await asyncio.sleep(0.1)
        assert not released.is_set()
        await asyncio.wait_for(released.wait(), 5)
        n_read = 0
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(2**20):
                n_read += len(part)
        assert n_read < 64_000_000
        await close(writer)
        released.clear()
        assert len(await talk(port, GET + CLOSE + b"\r\n")) > 64_000_000  # one that reads
        await asyncio.wait_for(released.wait(), 5)


async def test_many_pipelined_requests_close_the_connection() -> None:
    async with serving() as (port, _):
        few = await talk(port, (GET + b"\r\n") * 10 + GET + CLOSE + b"\r\n")
        assert few.count(b"200 OK") == 11
        assert (await talk(port, (GET + b"\r\n") * 1000)).count(b"200 OK") == 0


async def test_a_new_connection_takes_the_place_of_the_oldest_idle_one() -> None:
    async with serving(limit=3) as (port, connections):
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert status_of(await talk(port, GET + CLOSE + b"\r\n")) == 200
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(idle[0][0].read(), 5) == b""
        connections.check()
        for _, writer in idle:
            await close(writer)


async def test_when_all_connections_have_requests_a_new_one_is_refused_and_readiness_says_so() -> None:
    let_go = asyncio.Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["state"]["connection"].is_admitted:
            await let_go.wait()
        await answer(send, str(scope["state"]["connection"].is_admitted).encode())

    async with serving(waits, limit=3) as (port, connections):
        busy = [asyncio.create_task(talk(port, GET + CLOSE + b"\r\n")) for _ in range(3)]
        await asyncio.sleep(0.05)
        connections.check()
        assert (await talk(port, GET + CLOSE + b"\r\n")).endswith(b"False")
        with pytest.raises(NotReady, match="3 connections"):
            connections.check()
        let_go.set()
        assert all(reply.endswith(b"True") for reply in await asyncio.gather(*busy))
        assert (await talk(port, GET + CLOSE + b"\r\n")).endswith(b"True")
