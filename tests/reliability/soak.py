"""Soak: everything at once for a while, and whether the worker's memory stays where it is."""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from reliability import questions
from reliability.fuzz import BODIES, FILES, form
from reliability.place import DEMO, Place, Report, at, worker_of
from reliability.pressure import press
from reliability.protocols import BODIES as GOOD_BODIES
from reliability.protocols import Wires
from reliability.swap import KEY, Shelf, reload
from reliability.tally import Tally, markdown

__all__ = ["run", "slope"]

CLIENTS = 16
PAUSE = 0.1  # mean seconds between a client's questions: a busy server, not one at its limit
WARM_UP = 0.25  # of the time: arenas, caches, and one of each bundle
FLAT = 20.0  # MB an hour, that the slope's confidence interval may not be above
LONG = 300.0  # seconds, below which there is no slope to speak of
BLOCKS = 8


def run(*, seconds: float, seed: int = 0) -> Report:
    """Memory is flat, and every proper question gets its own answer, whatever else is asked."""
    with tempfile.TemporaryDirectory() as temporary:
        bundles = Shelf(Path(temporary))
        with at([bundles.folder, DEMO], V1T_ADMIN_KEYS=KEY) as place:
            return asyncio.run(_press(place, bundles, seconds, seed))


async def _press(place: Place, bundles: Shelf, seconds: float, seed: int) -> Report:
    rng = np.random.default_rng(seed)
    judges = questions.load([*bundles.versions, DEMO])
    asked = questions.draw_questions(judges, rng, sizes=(1, 1, 2, 4, 8, 24), subsets=False)
    tally, counts = Tally(), {"bad requests": 0, "hang-ups": 0, "reloads": 0}
    end = time.monotonic() + seconds
    worker = worker_of(place.server)
    samples: list[tuple[float, float]] = []  # seconds, MB

    def go_on() -> bool:
        return time.monotonic() < end

    async def look() -> None:
        while go_on():
            samples.append((seconds - (end - time.monotonic()), _resident_mb(worker)))
            await asyncio.sleep(min(2, seconds / 50))

    async def ask_badly() -> None:
        bodies = [(body, "application/json") for body in BODIES.values()]
        bodies += [(form(file, mouse="A"), "multipart/form-data; boundary=xyz") for file in FILES.values()]
        while go_on():
            body, content_type = bodies[rng.integers(len(bodies))]
            response = await wires.http.post("/predict", content=body, headers={"Content-Type": content_type})
            counts["bad requests"] += 1
            if response.status_code >= 500:
                tally.complain(f"a bad request was answered {response.status_code}: {response.text[:200]}")
            await asyncio.sleep(0.3)

    async def hang_up() -> None:
        url = wires.http.base_url
        large = [question for question in asked if question.kind == "predict" and len(question) >= 8]
        while go_on():
            body, content_type = wires.body(large[rng.integers(len(large))], GOOD_BODIES["form of .npy"])
            head = f"Host: x\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
            _, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(
                f"POST /predict HTTP/1.1\r\n{head}".encode() + body[: rng.integers(len(body) + 1)]
            )  # often before the end
            await asyncio.sleep(rng.exponential(0.02))
            writer.transport.abort()
            counts["hang-ups"] += 1
            await asyncio.sleep(0.3)

    async def swap() -> None:
        while go_on():
            bundles.turn()
            response = await reload(place.server.url)
            counts["reloads"] += 1
            if response.status_code != 200:
                tally.complain(f"a reload was answered {response.status_code}: {response.text[:200]}")
            await asyncio.sleep(min(5, seconds / 20))

    async with Wires(place.server.url) as wires, asyncio.TaskGroup() as group:
        for task in (look(), ask_badly(), hang_up(), swap()):
            group.create_task(task)
        await press(wires, asked, tally, clients=CLIENTS, go_on=go_on, pause=PAUSE, seed=seed)
    tally.allow(200)
    warm = [sample for sample in samples if sample[0] > WARM_UP * seconds]
    per_hour, margin = slope(warm) if seconds >= LONG else (math.nan, math.nan)
    if per_hour - margin > FLAT:
        tally.complain(f"memory grows by {per_hour:.0f} ± {margin:.0f} MB an hour")
    lines = [(f"{at_:.0f}", f"{mb:.1f}") for at_, mb in samples[:: max(1, len(samples) // 15)]]
    beside = ", ".join(f"{n:,} {what}" for what, n in counts.items())
    text = (
        f"{CLIENTS} clients for {seconds:.0f} s; beside them {beside}. "
        f"After the first {WARM_UP:.0%} of the time, resident memory of the worker changed by **{per_hour:+.1f} MB an "
        f"hour** (95 %: {per_hour - margin:+.1f} to {per_hour + margin:+.1f}).\n\n"
        f"{markdown(('at s', 'resident MB'), lines)}\n\n{tally.table()}"
    )
    return Report(text, tally.problems)


def _resident_mb(worker: psutil.Process) -> float:
    return float(worker.memory_info().rss) / 1024**2


def slope(samples: list[tuple[float, float]]) -> tuple[float, float]:
    """Least squares in MB an hour, and the half width of its 95 % confidence interval.

    The interval is that of the means of a few blocks: neighbouring samples are anything but independent.
    """
    blocks = np.array([block.mean(axis=0) for block in np.array_split(np.array(samples), BLOCKS)])
    hours, mb = blocks[:, 0] / 3600, blocks[:, 1]
    spread = ((hours - hours.mean()) ** 2).sum()
    per_hour = float(((hours - hours.mean()) * (mb - mb.mean())).sum() / spread)
    left = mb - mb.mean() - per_hour * (hours - hours.mean())
    error = np.sqrt((left**2).sum() / (BLOCKS - 2) / spread)
    return per_hour, float(2.447 * error)  # Student's t of 6 degrees of freedom
