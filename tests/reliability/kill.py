"""SIGKILL of the worker under load: how long until somebody is answered again, and what clients that ask again see."""

from __future__ import annotations

import asyncio
import time

import httpx
import numpy as np

from reliability import questions
from reliability.place import Place, Report, at, worker_of
from reliability.pressure import press
from reliability.protocols import Wires
from reliability.tally import Tally, markdown

__all__ = ["run"]

WITHIN = 15.0  # seconds
CLIENTS = 16


def run(*, kills: int, seed: int = 0) -> Report:
    """Service again within 15 s, and no failure for the published client."""
    with at() as place:
        return asyncio.run(_press(place, kills, seed))


async def _press(place: Place, kills: int, seed: int) -> Report:
    asked = questions.draw_questions(questions.load(place.bundles), np.random.default_rng(seed), kinds=("predict",))
    outages: list[float] = []
    over = asyncio.Event()

    async def killer() -> None:
        for _ in range(kills):
            await asyncio.sleep(2)
            worker = worker_of(place.server)
            worker.kill()
            killed = time.monotonic()
            await _until_ready(place)
            outages.append(time.monotonic() - killed)
            await asyncio.sleep(2)
        over.set()

    async with Wires(place.server.url) as wires, asyncio.TaskGroup() as group:
        tally = Tally()
        group.create_task(killer())
        await press(
            wires,
            asked,
            tally,
            clients=CLIENTS,
            go_on=lambda: not over.is_set(),
            protocols=("v1t_client",),
            pause=0.02,
            seed=seed,
        )
    tally.allow(200)
    if max(outages) > WITHIN:
        tally.complain(f"nobody was answered for {max(outages):.1f} s, longer than {WITHIN:g} s")
    lines = [(i, f"{seconds:.1f}") for i, seconds in enumerate(outages, start=1)]
    text = (
        f"{CLIENTS} published clients (8 retries), SIGKILL of the worker {kills} times.\n\n"
        f"{markdown(('kill', 'ready again after s'), lines)}\n\n{tally.table()}"
    )
    return Report(text, tally.problems)


async def _until_ready(place: Place) -> None:
    """Returns when /readyz answers 200; the listening socket outlives the worker, so a connection may have to wait."""
    async with httpx.AsyncClient(base_url=place.server.url, timeout=2) as probe:
        while True:
            try:
                if (await probe.get("/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
