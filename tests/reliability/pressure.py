"""Clients that ask, wait for the reply, check it, and ask again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from reliability.protocols import PROTOCOLS, Protocol, Wires, fitting
from reliability.questions import Question
from reliability.tally import Tally

__all__ = ["ask", "press"]

NOTHING: Mapping[str, str] = MappingProxyType({})


async def ask(
    wires: Wires, question: Question, protocol: Protocol, tally: Tally, headers: Mapping[str, str] = NOTHING
) -> None:
    """Asks once, and counts what comes."""
    start = time.perf_counter()
    try:
        reply = await protocol.ask(wires, question, headers)
    except asyncio.CancelledError:
        raise
    except Exception as error:  # whatever it is, it was no answer
        tally.lose(protocol.name, error)
    else:
        tally.take(protocol.name, question, reply, time.perf_counter() - start)


async def press(
    wires: Wires,
    questions: Sequence[Question],
    tally: Tally,
    *,
    clients: int,
    go_on: Callable[[], bool],
    protocols: Sequence[str] = tuple(PROTOCOLS),
    pause: float = 0.0,
    seed: int = 0,
) -> None:
    """So many clients at once, each with one question at a time, while `go_on()`; every question gets its reply.

    Args:
        pause: mean seconds between a reply and the client's next question.
    """
    pairs = [(question, ways) for question in questions if (ways := fitting(question, protocols))]

    async def client(number: int) -> None:
        rng = np.random.default_rng([seed, number])
        while go_on():
            question, ways = pairs[rng.integers(len(pairs))]
            await ask(wires, question, ways[rng.integers(len(ways))], tally)
            if pause:
                await asyncio.sleep(rng.exponential(pause))

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number))
