"""Overload: ten times as many requests as the server can answer, sent at a fixed rate without waiting for replies."""

from __future__ import annotations

import asyncio
import time

import httpx
import numpy as np

from reliability import questions
from reliability.protocols import BODIES, Connections, Reply, read_npy
from reliability.questions import Question
from reliability.served_bundles import DEMO, ServedBundles, serve_bundles
from reliability.tally import Report, Tally, percentile

__all__ = ["run"]

FACTOR = 10
WAYS = ("form of .npy", "form of PNGs, .npy back")


def run(*, seconds: float, deadline: float = 2.0, seed: int = 0, in_time: bool = True) -> Report:
    """Statuses must be 200, or 429 and 503 with Retry-After; 99 % of the answers must come within the deadline.

    Args:
        in_time: also check the deadline, which makes sense only on a machine that does nothing else. Elsewhere, some of
            the accepted requests may pass it, with status 504.
    """
    with serve_bundles([DEMO]) as served:
        return asyncio.run(_run(served, seconds, deadline, seed, in_time))


async def _run(served: ServedBundles, seconds: float, deadline: float, seed: int, in_time: bool) -> Report:
    rng = np.random.default_rng(seed)
    # Mostly gradients, so that the engine is the bottleneck, not the clients or the network.
    engines = questions.load(served.bundles)
    asked = questions.draw_questions(engines, rng, sizes=(1,), kinds=("predict", "gradient"))
    async with Connections(served.server.url) as connections:
        sender = _Sender(connections, deadline)
        capacity = await _capacity(sender, asked, seconds=max(2.0, seconds / 6))
        sender.tally = tally = Tally()
        start, sent = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            while (elapsed := time.monotonic() - start) < seconds:
                while sent < FACTOR * capacity * elapsed:
                    group.create_task(sender.ask(asked[rng.integers(len(asked))], WAYS[sent % len(WAYS)]))
                    sent += 1
                await asyncio.sleep(0.005)
    tally.allow(200, 429, 503, *(() if in_time else (504,)))
    accepted = percentile(tally.seconds, 99)
    if tally.without_retry_after:
        tally.complain(f"{tally.without_retry_after} refusals without Retry-After")
    if in_time and accepted > deadline:
        tally.complain(f"p99 of the answers is {accepted:.2f} s, later than the deadline of {deadline:g} s")
    done = len(tally.seconds) / seconds
    text = (
        f"Predictions and gradients of 1 and 2 images. 8 clients that wait for each reply: {capacity:.1f} answers/s. "
        f"Then {sent / seconds:.0f} requests/s for {seconds:.0f} s, each with X-Request-Timeout: {deadline:g}. Result: "
        f"{done:.1f} answers/s, p99 {accepted:.2f} s.\n\n{tally.table()}"
    )
    return Report(text, tally.problems)


async def _capacity(sender: _Sender, asked: list[Question], *, seconds: float) -> float:
    """Answers per second to clients that each wait for a reply before the next request."""
    start = time.monotonic()

    async def client(number: int) -> None:
        rng = np.random.default_rng(number)
        while time.monotonic() < start + seconds:
            await sender.ask(asked[rng.integers(len(asked))], WAYS[number % len(WAYS)])

    await asyncio.gather(*map(client, range(8)))
    return len(sender.tally.seconds) / (time.monotonic() - start)


class _Sender:
    """Sends requests on plain sockets: a client with a pool would be slower than the server at this rate."""

    def __init__(self, connections: Connections, deadline: float) -> None:
        self._connections = connections
        url = connections.http.base_url
        self._host, self._port = url.host, url.port
        self._headers = f"Host: {url.host}\r\nConnection: close\r\nX-Request-Timeout: {deadline:g}\r\n"
        self.tally = Tally()

    async def ask(self, question: Question, way: str) -> None:
        start = time.perf_counter()
        try:
            reply = await self._send(question, way)
        except (OSError, EOFError, ValueError) as error:
            self.tally.lose(way, error)
        else:
            self.tally.take(way, question, reply, time.perf_counter() - start)

    async def _send(self, question: Question, way: str) -> Reply:
        body, content_type = self._connections.body(question, BODIES[way])
        head = (
            f"POST /{question.kind} HTTP/1.1\r\n{self._headers}Accept: application/x-npy\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(head.encode())
            writer.write(body)
            await writer.drain()
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = httpx.Headers([tuple(line.split(": ", 1)) for line in lines[1:] if line])  # type: ignore[misc]
            content = await reader.readexactly(int(headers["content-length"]))
        finally:
            writer.close()
        return read_npy(httpx.Response(int(lines[0].split()[1]), headers=headers, content=content))
