"""Load: many clients, every mouse, size and protocol, each reply checked against its own expected values."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from reliability import questions
from reliability.place import Place, Report, at
from reliability.pressure import press
from reliability.protocols import Wires
from reliability.tally import Tally

__all__ = ["run"]


def run(*, seconds: float, clients: int = 64, seed: int = 0) -> Report:
    """No reply may be wrong, lost or swapped, and no status other than 200."""
    with at() as place:
        return asyncio.run(_press(place, seconds, clients, seed))


async def _press(place: Place, seconds: float, clients: int, seed: int) -> Report:
    asked = questions.draw_questions(
        questions.load(place.bundles), np.random.default_rng(seed), each=3 if seconds > 60 else 1
    )
    async with Wires(place.server.url) as wires:
        tally = Tally()
        end = time.monotonic() + seconds
        await press(wires, asked, tally, clients=clients, go_on=lambda: time.monotonic() < end, seed=seed)
    tally.allow(200)
    text = (
        f"{clients} clients for {seconds:.0f} s, {len(asked)} questions of which any two answers differ by at least "
        f"{questions.closest(asked):.2g} (a reply is wrong from {questions.TOLERANCE:g}).\n\n{tally.table()}"
    )
    return Report(text, tally.problems)
