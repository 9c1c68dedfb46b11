"""A served bundle whose files go bad under load: every reply is that of the bundle whose hash it states."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from support.endless_bundle import make_endless
from support.tiny_bundle import TinyTwin, write_tiny_bundle

from reliability import questions
from reliability.clients import run_clients
from reliability.protocols import Connections
from reliability.served_bundles import ServedBundles, serve_bundles
from reliability.tally import Report, Tally, markdown

__all__ = ["run"]

CLIENTS = 16
PAUSE = 0.02  # mean seconds between a client's questions
BAD = 5.0  # seconds that a bundle stays bad
SOON = 30.0  # seconds in which the next good bundle must be served


def run(*, rounds: int, seed: int = 0) -> Report:
    """No reply may be wrong or lost, and the next good bundle must be served within 30 s."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        good = [write_tiny_bundle(folder / f"of-seed-{seed}", seed=seed) for seed in (0, 1)]
        served = folder / "served"
        served.mkdir()
        _put(good[0].folder, served)
        with serve_bundles([served], V1T_WATCH="0.5") as server:
            return asyncio.run(_run(server, good, served, rounds, seed))


async def _run(server: ServedBundles, good: list[TinyTwin], served: Path, rounds: int, seed: int) -> Report:
    engines = questions.load([twin.folder for twin in good])
    asked = questions.draw_questions(engines, np.random.default_rng(seed), each=2, subsets=False)
    tally = Tally()
    over = asyncio.Event()
    lines: list[tuple[str, str]] = []

    async def damage() -> None:
        try:
            for i in range(rounds):
                for name, make_bad in _DAMAGES.items():
                    await asyncio.to_thread(make_bad, served)
                    await asyncio.sleep(BAD)
                    new = (i * len(_DAMAGES) + len(lines) + 1) % 2
                    before = tally.hashes[engines[new].hash]
                    start = time.monotonic()
                    await asyncio.to_thread(_put, good[new].folder, served)
                    while tally.hashes[engines[new].hash] == before and time.monotonic() < start + SOON:
                        await asyncio.sleep(0.02)
                    seconds = time.monotonic() - start
                    lines.append((name, f"{seconds:.1f}"))
                    if seconds >= SOON:
                        tally.complain(f"{name}: the next good bundle was not served within {SOON:.0f} s")
        finally:
            over.set()

    async with Connections(server.server.url) as connections, asyncio.TaskGroup() as group:
        group.create_task(damage())
        await run_clients(
            connections, asked, tally, clients=CLIENTS, keep_running=lambda: not over.is_set(), pause=PAUSE, seed=seed
        )
    tally.allow(200)
    text = (
        f"{CLIENTS} clients; each bundle stays bad for {BAD:.0f} s. The slowest reply took "
        f"{max(tally.seconds, default=0):.2f} s.\n\n"
        f"{markdown(('what happens to the served bundle', 'seconds until the next good one is served'), lines)}\n\n"
        f"{tally.table()}"
    )
    return Report(text, tally.problems)


def _put(bundle: Path, served: Path) -> None:
    """Puts a bundle in the place of the served one, as the exporter does: beside it, then by renaming."""
    new, old = served / ".new", served / ".old"
    shutil.copytree(bundle, new)
    if (served / "tiny").exists():
        (served / "tiny").rename(old)
    new.rename(served / "tiny")
    shutil.rmtree(old, ignore_errors=True)


def _write_into(served: Path) -> None:
    """Overwrites every file in place with random bytes of the same size."""
    rng = np.random.default_rng()
    for path in (served / "tiny").rglob("*"):
        if path.is_file():
            with path.open("r+b") as stream:
                stream.write(rng.bytes(path.stat().st_size))


def _make_a_fifo(served: Path) -> None:
    manifest = served / "tiny" / "manifest.json"
    manifest.unlink()
    os.mkfifo(manifest)


def _never_end(served: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        twin = write_tiny_bundle(Path(temporary) / "tiny", seed=2)
        make_endless(twin)
        _put(twin.folder, served)


_DAMAGES: dict[str, Callable[[Path], None]] = {
    "all of its files are overwritten in place": _write_into,
    "its manifest becomes a FIFO": _make_a_fifo,
    "a bundle with a graph that never ends takes its place": _never_end,
}
