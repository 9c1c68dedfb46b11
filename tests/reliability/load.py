"""Load: many clients, with every mouse, size and protocol; each reply is compared with its expected values."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from reliability import questions
from reliability.clients import run_clients
from reliability.protocols import Connections
from reliability.served_bundles import ServedBundles, serve_bundles
from reliability.tally import Report, Tally

__all__ = ["run"]


def run(*, seconds: float, clients: int = 64, seed: int = 0) -> Report:
    """No reply may be wrong, lost or another request's, and every status must be 200."""
    with serve_bundles() as served:
        return asyncio.run(_run(served, seconds, clients, seed))


async def _run(served: ServedBundles, seconds: float, clients: int, seed: int) -> Report:
    asked = questions.draw_questions(
        questions.load(served.bundles), np.random.default_rng(seed), each=3 if seconds > 60 else 1
    )
    async with Connections(served.server.url, grpc=served.grpc) as connections:
        tally = Tally()
        end = time.monotonic() + seconds
        await run_clients(
            connections, asked, tally, clients=clients, keep_running=lambda: time.monotonic() < end, seed=seed
        )
    tally.allow(200)
    text = (
        f"{clients} clients for {seconds:.0f} s, with {len(asked)} questions. Any two answers differ by at least "
        f"{questions.closest(asked):.2g}; a reply is wrong if it is off by more than {questions.TOLERANCE:g}.\n\n"
        f"{tally.table()}"
    )
    return Report(text, tally.problems)
