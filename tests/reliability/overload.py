"""Overload: ten times what the server can compute, at a fixed rate that waits for nobody."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from reliability import questions
from reliability.place import DEMO, Place, Report, at
from reliability.pressure import ask, press
from reliability.protocols import PROTOCOLS, Wires
from reliability.tally import Tally, percentile

__all__ = ["run"]

WAYS = ("form of .npy", "form of .npy, JSON back", "JSON, .npy back")
FACTOR = 10


def run(*, seconds: float, deadline: float = 2.0, seed: int = 0) -> Report:
    """Only 200, or 429 and 503 with Retry-After; what is accepted comes within the deadline, 99 times in a hundred."""
    with at([DEMO]) as place:
        return asyncio.run(_press(place, seconds, deadline, seed))


async def _press(place: Place, seconds: float, deadline: float, seed: int) -> Report:
    rng = np.random.default_rng(seed)
    # Of few images, gradients mostly: the engine is what runs out, and neither who asks nor the wire.
    asked = questions.draw_questions(questions.load(place.bundles), rng, sizes=(1, 2))
    async with Wires(place.server.url, keep=False) as wires:
        capacity = await _capacity(wires, asked, seconds=max(2.0, seconds / 6))
        tally = Tally()
        headers = {"X-Request-Timeout": f"{deadline:g}"}
        start, sent = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            while (elapsed := time.monotonic() - start) < seconds:
                while sent < FACTOR * capacity * elapsed:
                    question = asked[rng.integers(len(asked))]
                    group.create_task(ask(wires, question, PROTOCOLS[WAYS[rng.integers(len(WAYS))]], tally, headers))
                    sent += 1
                await asyncio.sleep(0.005)
    tally.allow(200, 429, 503)
    accepted = percentile(tally.seconds, 99)
    if tally.without_retry_after:
        tally.complain(f"{tally.without_retry_after} refusals without Retry-After")
    if accepted > deadline:
        tally.complain(f"p99 of the accepted is {accepted:.2f} s, past the deadline of {deadline:g} s")
    done = len(tally.seconds) / seconds
    text = (
        f"Predictions, gradients and attention, of 1 to 3 images: 8 clients get {capacity:.1f} answers/s. "
        f"Then {sent / seconds:.0f} requests/s for {seconds:.0f} s, each with X-Request-Timeout: {deadline:g}: "
        f"{done:.1f} answers/s, p99 {accepted:.2f} s.\n\n{tally.table()}"
    )
    return Report(text, tally.problems)


async def _capacity(wires: Wires, asked: list[questions.Question], *, seconds: float) -> float:
    """Requests per second that are answered when as many are asked as are answered."""
    tally = Tally()
    end = time.monotonic() + seconds
    await press(wires, asked, tally, clients=8, go_on=lambda: time.monotonic() < end, protocols=WAYS)
    return len(tally.seconds) / (time.perf_counter() - tally.start)
