"""Overload: ten times what the server can compute, at a fixed rate that waits for nobody."""

from __future__ import annotations

import asyncio
import time

import httpx
import numpy as np

from reliability import questions
from reliability.place import DEMO, Place, Report, at
from reliability.protocols import BODIES, Reply, Wires, read_npy
from reliability.questions import Question
from reliability.tally import Tally, percentile

__all__ = ["run"]

FACTOR = 10
WAYS = ("form of .npy", "form of PNGs, .npy back")


def run(*, seconds: float, deadline: float = 2.0, seed: int = 0, in_time: bool = True) -> Report:
    """Only 200, or 429 and 503 with Retry-After; what is accepted comes within the deadline, 99 times in a hundred.

    Args:
        in_time: judge the time too, which says something on a machine that does nothing else.
    """
    with at([DEMO]) as place:
        return asyncio.run(_press(place, seconds, deadline, seed, in_time))


async def _press(place: Place, seconds: float, deadline: float, seed: int, in_time: bool) -> Report:
    rng = np.random.default_rng(seed)
    # Gradients mostly: the engine is what runs out, and neither who asks nor the wire.
    judges = questions.load(place.bundles)
    asked = questions.draw_questions(judges, rng, sizes=(1,), kinds=("predict", "gradient"))
    async with Wires(place.server.url) as wires:
        sender = _Sender(wires, deadline)
        capacity = await _capacity(sender, asked, seconds=max(2.0, seconds / 6))
        sender.tally = tally = Tally()
        start, sent = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            while (elapsed := time.monotonic() - start) < seconds:
                while sent < FACTOR * capacity * elapsed:
                    group.create_task(sender.ask(asked[rng.integers(len(asked))], WAYS[sent % len(WAYS)]))
                    sent += 1
                await asyncio.sleep(0.005)
    tally.allow(200, 429, 503)
    accepted = percentile(tally.seconds, 99)
    if tally.without_retry_after:
        tally.complain(f"{tally.without_retry_after} refusals without Retry-After")
    if in_time and accepted > deadline:
        tally.complain(f"p99 of the accepted is {accepted:.2f} s, past the deadline of {deadline:g} s")
    done = len(tally.seconds) / seconds
    text = (
        f"Predictions and gradients of 1 and 2 images: 8 clients get {capacity:.1f} answers/s. "
        f"Then {sent / seconds:.0f} requests/s for {seconds:.0f} s, each with X-Request-Timeout: {deadline:g}: "
        f"{done:.1f} answers/s, p99 {accepted:.2f} s.\n\n{tally.table()}"
    )
    return Report(text, tally.problems)


async def _capacity(sender: _Sender, asked: list[Question], *, seconds: float) -> float:
    """Requests per second that are answered when as many are asked as are answered."""
    start = time.monotonic()

    async def client(number: int) -> None:
        rng = np.random.default_rng(number)
        while time.monotonic() < start + seconds:
            await sender.ask(asked[rng.integers(len(asked))], WAYS[number % len(WAYS)])

    await asyncio.gather(*map(client, range(8)))
    return len(sender.tally.seconds) / (time.monotonic() - start)


class _Sender:
    """Asks on bare connections: a client with a pool takes longer over a thousand requests than the server does."""

    def __init__(self, wires: Wires, deadline: float) -> None:
        self._wires = wires
        url = wires.http.base_url
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
        body, content_type = self._wires.body(question, BODIES[way])
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
