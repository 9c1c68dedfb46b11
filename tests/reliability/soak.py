"""Soak: good and bad requests, disconnects and reloads at the same time, and whether the worker's memory grows."""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import psutil

from reliability import questions
from reliability.clients import run_clients
from reliability.fuzz import BODIES, FILES, form
from reliability.protocols import BODIES as GOOD_BODIES
from reliability.protocols import Connections
from reliability.served_bundles import DEMO, ServedBundles, serve_bundles, worker_of
from reliability.swap import KEY, SwappedBundle, reload
from reliability.tally import Report, Tally, markdown

__all__ = ["run", "slope"]

CLIENTS = 16
PAUSE = 0.1  # mean seconds between a client's questions, so that the server is busy but below its limit
WARM_UP = 0.25  # of the time, in which the allocator's pools and the caches fill and each bundle is loaded once
FLAT = 20.0  # MB per hour; the whole confidence interval of the slope may not be above it
MOST_GROWTH = 50.0  # MB of resident memory, from ten minutes on
LONG = 300.0  # seconds; shorter runs do not fit a slope
BLOCKS = 8


def run(*, seconds: float, seed: int = 0, figure: Path | None = None) -> Report:
    """The worker's memory may not grow, and every good question must get its answer, whatever else is sent.

    Args:
        figure: where to draw the memory over time.
    """
    with tempfile.TemporaryDirectory() as temporary:
        bundle = SwappedBundle(Path(temporary))
        with serve_bundles([bundle.folder, DEMO], V1T_ADMIN_KEYS=KEY) as served:
            report, samples = asyncio.run(_run(served, bundle, seconds, seed))
    if figure is not None:
        _draw(samples, figure)
    return report


async def _run(
    served: ServedBundles, bundle: SwappedBundle, seconds: float, seed: int
) -> tuple[Report, list[tuple[float, float, float]]]:
    rng = np.random.default_rng(seed)
    engines = questions.load([*bundle.versions, DEMO])
    asked = questions.draw_questions(engines, rng, sizes=(1, 1, 2, 4, 8, 24), subsets=False)
    tally, counts = (
        Tally(),
        {"bad requests": 0, "bad requests that met a closed connection": 0, "disconnects": 0, "reloads": 0},
    )
    end = time.monotonic() + seconds
    worker = worker_of(served.server)
    samples: list[tuple[float, float, float]] = []  # seconds, resident MB, MB in use by malloc

    def keep_running() -> bool:
        return time.monotonic() < end

    async def sample_memory() -> None:
        while keep_running():
            with contextlib.suppress(httpx.TransportError):  # as below
                in_use = await _in_use_mb(connections)
                samples.append((seconds - (end - time.monotonic()), _resident_mb(worker), in_use))
            await asyncio.sleep(min(2, seconds / 50))

    async def send_bad_requests() -> None:
        bodies = [(body, "application/json") for body in BODIES.values()]
        bodies += [(form(file, mouse="A"), "multipart/form-data; boundary=xyz") for file in FILES.values()]
        while keep_running():
            body, content_type = bodies[rng.integers(len(bodies))]
            try:
                response = await connections.http.post("/predict", content=body, headers={"Content-Type": content_type})
            except httpx.TransportError:  # the server closed an idle connection just then; clients repeat the request
                counts["bad requests that met a closed connection"] += 1
                continue
            counts["bad requests"] += 1
            if response.status_code >= 500:
                tally.complain(f"a bad request was answered {response.status_code}: {response.text[:200]}")
            await asyncio.sleep(0.3)

    async def disconnect() -> None:
        url = connections.http.base_url
        large = [question for question in asked if question.kind == "predict" and len(question) >= 8]
        while keep_running():
            body, content_type = connections.body(large[rng.integers(len(large))], GOOD_BODIES["form of .npy"])
            head = f"Host: localhost\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
            _, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(
                f"POST /predict HTTP/1.1\r\n{head}".encode() + body[: rng.integers(len(body) + 1)]
            )  # usually a part of the body
            await asyncio.sleep(rng.exponential(0.02))
            writer.transport.abort()
            counts["disconnects"] += 1
            await asyncio.sleep(0.3)

    async def swap() -> None:
        while keep_running():
            bundle.swap()
            response = await reload(served.server.url)
            counts["reloads"] += 1
            if response.status_code != 200:
                tally.complain(f"a reload was answered {response.status_code}: {response.text[:200]}")
            await asyncio.sleep(min(5, seconds / 20))

    async with Connections(served.server.url) as connections, asyncio.TaskGroup() as group:
        for task in (sample_memory(), send_bad_requests(), disconnect(), swap()):
            group.create_task(task)
        await run_clients(connections, asked, tally, clients=CLIENTS, keep_running=keep_running, pause=PAUSE, seed=seed)
    tally.allow(200)
    warm = [sample for sample in samples if sample[0] > WARM_UP * seconds]
    resident, in_use = (
        slope([(sample[0], sample[k]) for sample in warm]) if seconds >= LONG else (math.nan, math.nan) for k in (1, 2)
    )
    for what, (per_hour, margin) in (("resident memory", resident), ("memory in use by malloc", in_use)):
        if per_hour - margin > FLAT:
            tally.complain(f"{what} grows by {per_hour:.0f} ± {margin:.0f} MB per hour")
    first, last = (np.median([sample[1] for sample in part]) for part in (_around(samples, 600), samples[-30:]))
    if seconds > 1200 and last - first > MOST_GROWTH:
        tally.complain(f"resident memory grew from {first:.0f} MB after ten minutes to {last:.0f} MB")
    lines = [(f"{at_:.0f}", f"{mb:.1f}", f"{used:.1f}") for at_, mb, used in samples[:: max(1, len(samples) // 15)]]
    beside = ", ".join(f"{n:,} {what}" for what, n in counts.items())
    text = (
        f"{CLIENTS} clients for {seconds:.0f} s; at the same time {beside}. "
        f"After the first {WARM_UP:.0%} of the time, resident memory of the worker changed by {_per_hour(resident)}, "
        f"and what malloc has in use by {_per_hour(in_use)}.\n\n"
        f"{markdown(('after s', 'resident MB', 'in use MB'), lines)}\n\n{tally.table()}"
    )
    return Report(text, tally.problems), samples


def _per_hour(slope_: tuple[float, float]) -> str:
    per_hour, margin = slope_
    return f"**{per_hour:+.1f} MB per hour** (95 %: {per_hour - margin:+.1f} to {per_hour + margin:+.1f})"


def _around(samples: list[tuple[float, float, float]], seconds: float) -> list[tuple[float, float, float]]:
    """Some 30 samples around a time, or the last ones of a shorter run."""
    return sorted(samples, key=lambda sample: abs(sample[0] - seconds))[:30]


def _draw(samples: list[tuple[float, float, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    seconds, resident, in_use = np.array(samples).T
    figure, axes = plt.subplots(figsize=(6.9, 2.8), layout="constrained")
    axes.plot(seconds / 60, resident, color="#0072b2", label="resident memory of the worker")
    axes.plot(seconds / 60, in_use, color="#d55e00", label="in use by malloc")
    axes.set(xlabel="time [min]", ylabel="memory [MB]", ylim=(0, None), xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))  # above: no curve is there
    figure.savefig(path, dpi=150)
    plt.close(figure)


async def _in_use_mb(connections: Connections) -> float:
    response = await connections.http.get("/metrics")
    line = next(line for line in response.text.splitlines() if line.startswith("v1t_heap_bytes "))
    return float(line.split()[1]) / 1024**2


def _resident_mb(worker: psutil.Process) -> float:
    return float(worker.memory_info().rss) / 1024**2


def slope(samples: list[tuple[float, float]]) -> tuple[float, float]:
    """The least-squares slope in MB per hour, and half the width of its 95 % confidence interval.

    The interval is computed from the means of a few blocks, as neighbouring samples are not independent.
    """
    blocks = np.array([block.mean(axis=0) for block in np.array_split(np.array(samples), BLOCKS)])
    hours, mb = blocks[:, 0] / 3600, blocks[:, 1]
    spread = ((hours - hours.mean()) ** 2).sum()
    per_hour = float(((hours - hours.mean()) * (mb - mb.mean())).sum() / spread)
    residual = mb - mb.mean() - per_hour * (hours - hours.mean())
    error = np.sqrt((residual**2).sum() / (BLOCKS - 2) / spread)
    return per_hour, float(2.447 * error)  # Student's t of 6 degrees of freedom
