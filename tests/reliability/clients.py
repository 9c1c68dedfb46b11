"""Clients that each send one question after another, and check every reply."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from reliability.protocols import Connections, Protocol, fitting
from reliability.questions import Question
from reliability.tally import Tally

__all__ = ["ask", "run_clients"]

NOTHING: Mapping[str, str] = MappingProxyType({})


async def ask(
    connections: Connections, question: Question, protocol: Protocol, tally: Tally, headers: Mapping[str, str] = NOTHING
) -> None:
    """Sends one question, and counts its reply."""
    start = time.perf_counter()
    try:
        reply = await protocol.ask(connections, question, headers)
    except asyncio.CancelledError:
        raise
    except Exception as error:  # any error means that there was no reply
        tally.lose(protocol.name, error)
    else:
        tally.take(protocol.name, question, reply, time.perf_counter() - start)


async def run_clients(
    connections: Connections,
    questions: Sequence[Question],
    tally: Tally,
    *,
    clients: int,
    keep_running: Callable[[], bool],
    protocols: Sequence[str] | None = None,
    pause: float = 0.0,
    seed: int = 0,
) -> None:
    """Runs `clients` concurrent clients, each with one question at a time, until `keep_running()` is False.

    Args:
        protocols: None: all that the server speaks.
        pause: mean seconds between a reply and the client's next question.
    """
    names = connections.protocols if protocols is None else protocols
    pairs = [(question, ways) for question in questions if (ways := fitting(question, names))]

    async def client(number: int) -> None:
        rng = np.random.default_rng([seed, number])
        while keep_running():
            question, ways = pairs[rng.integers(len(pairs))]
            await ask(connections, question, ways[rng.integers(len(ways))], tally)
            if pause:
                await asyncio.sleep(rng.exponential(pause))

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number))
