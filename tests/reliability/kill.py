"""SIGKILL of the worker under load: the time until the server is ready, and whether clients with retries see errors."""

from __future__ import annotations

import asyncio
import time

import httpx
import numpy as np

from reliability import questions
from reliability.clients import run_clients
from reliability.protocols import Connections
from reliability.served_bundles import ServedBundles, serve_bundles, worker_of
from reliability.tally import Report, Tally, markdown

__all__ = ["run"]

WITHIN = 15.0  # seconds
CLIENTS = 16


def run(*, kills: int, seed: int = 0) -> Report:
    """The server must be ready again within 15 s, and no request of the published client may fail."""
    with serve_bundles() as served:
        return asyncio.run(_run(served, kills, seed))


async def _run(served: ServedBundles, kills: int, seed: int) -> Report:
    asked = questions.draw_questions(questions.load(served.bundles), np.random.default_rng(seed), kinds=("predict",))
    outages: list[float] = []
    over = asyncio.Event()

    async def killer() -> None:
        for _ in range(kills):
            await asyncio.sleep(2)
            worker = worker_of(served.server)
            worker.kill()
            killed = time.monotonic()
            await _until_ready(served)
            outages.append(time.monotonic() - killed)
            await asyncio.sleep(2)
        over.set()

    async with Connections(served.server.url) as connections, asyncio.TaskGroup() as group:
        tally = Tally()
        group.create_task(killer())
        await run_clients(
            connections,
            asked,
            tally,
            clients=CLIENTS,
            keep_running=lambda: not over.is_set(),
            protocols=("v1t_client",),
            pause=0.02,
            seed=seed,
        )
    tally.allow(200)
    if max(outages) > WITHIN:
        tally.complain(f"the server was not ready for {max(outages):.1f} s, longer than {WITHIN:g} s")
    lines = [(i, f"{seconds:.1f}") for i, seconds in enumerate(outages, start=1)]
    text = (
        f"{CLIENTS} clients of v1t_client (8 retries). SIGKILLs of the worker: {kills}.\n\n"
        f"{markdown(('kill', 'seconds until ready'), lines)}\n\n{tally.table()}"
    )
    return Report(text, tally.problems)


async def _until_ready(served: ServedBundles) -> None:
    """Returns when /readyz answers 200. The supervisor keeps the socket open, so a connection may have to wait."""
    async with httpx.AsyncClient(base_url=served.server.url, timeout=2) as probe:
        while True:
            try:
                if (await probe.get("/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
