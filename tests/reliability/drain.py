"""SIGTERM under load: the server answers every request that it has accepted, and exits with code 0."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from dataclasses import dataclass

import numpy as np

from reliability import questions
from reliability.protocols import Connections, Reply, fitting
from reliability.questions import Question
from reliability.served_bundles import ServedBundles, serve_bundles
from reliability.tally import Report, Tally, markdown

__all__ = ["run"]

CLIENTS = 32
WAYS = ("JSON", "form of .npy", "form of PNGs, .npy back", "v2 by hand, binary")
_LOGGED = re.compile(r" (\d{3}) [\d.]+ ms (drain-\d+)")


@dataclass
class Sent:
    """A request that was sent, and its reply."""

    protocol: str
    question: Question
    sent: float
    replied: float = 0.0
    reply: Reply | None = None


def run(*, seconds: float, seed: int = 0) -> Report:
    """Every request that is in the server's log, or was sent well before the signal, must have a complete reply."""
    with serve_bundles(V1T_ACCESS_LOG="true") as served:
        requests, signalled = asyncio.run(_run(served, seconds, seed))
        code = served.server.process.wait(90)
        took = time.monotonic() - signalled
        logged = {name: int(status) for status, name in _LOGGED.findall(served.server.log.read_text())}
    tally = Tally()
    counts = {"answered before": 0, "in flight, answered": 0, "refused with Retry-After": 0, "never accepted": 0}
    for name, request in requests.items():
        accepted = name in logged or request.sent < signalled - 0.5
        if request.reply is None:
            if accepted:
                tally.lose(request.protocol, AssertionError(f"{name} was accepted and got no reply"))
            else:
                counts["never accepted"] += 1
            continue
        tally.take(request.protocol, request.question, request.reply, request.replied - request.sent)
        if request.reply.status != 200:
            counts["refused with Retry-After"] += 1
        elif request.replied < signalled:
            counts["answered before"] += 1
        else:
            counts["in flight, answered"] += 1
    tally.allow(200, 503)
    if not counts["in flight, answered"]:
        tally.complain("no request was in flight at the signal, so this run tests nothing")
    if tally.without_retry_after:
        tally.complain(f"{tally.without_retry_after} refusals without Retry-After")
    if code != 0:
        tally.complain(f"the server exited with code {code}")
    lines = [*counts.items(), ("accepted and lost", tally.lost), ("wrong", tally.wrong)]
    text = (
        f"{CLIENTS} clients for {seconds:.0f} s, then SIGTERM; the server exited with code {code} after {took:.1f} s."
        "\n\n"
        f"{markdown(('requests', 'count'), lines)}"
    )
    return Report(text, tally.problems)


async def _run(served: ServedBundles, seconds: float, seed: int) -> tuple[dict[str, Sent], float]:
    """Every request by its id, and the time of the signal."""
    asked = questions.draw_questions(questions.load(served.bundles), np.random.default_rng(seed), kinds=("predict",))
    pairs = [(question, fitting(question, WAYS)) for question in asked]
    requests: dict[str, Sent] = {}
    over = asyncio.Event()

    async def client(number: int) -> None:
        rng = np.random.default_rng([seed, number])
        while not over.is_set():
            question, ways = pairs[rng.integers(len(pairs))]
            protocol = ways[rng.integers(len(ways))]
            name = f"drain-{len(requests)}"
            requests[name] = request = Sent(protocol.name, question, time.monotonic())
            try:
                request.reply = await protocol.ask(connections, question, {"X-Request-ID": name})
            except Exception:  # there was no reply; the log shows whether the server had accepted the request
                if over.is_set():
                    return
            request.replied = time.monotonic()

    async with Connections(served.server.url, keep=False) as connections, asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(client(number))
        await asyncio.sleep(seconds)
        signalled = time.monotonic()
        served.server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)  # requests of this time reach a server that is shutting down
        over.set()
    return requests, signalled
