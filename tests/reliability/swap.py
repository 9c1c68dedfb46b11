"""Swaps of a bundle under load: every reply is entirely that of the bundle whose hash it states."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import httpx
import numpy as np
from support.tiny_bundle import write_tiny_bundle

from reliability import questions
from reliability.clients import run_clients
from reliability.protocols import Connections
from reliability.served_bundles import ServedBundles, serve_bundles
from reliability.tally import Report, Tally, markdown

__all__ = ["KEY", "SwappedBundle", "run"]

KEY = "reliability-0123456789"
CLIENTS = 32


class SwappedBundle:
    """A folder that serves one of two bundles with the same name and mice but different weights."""

    def __init__(self, folder: Path) -> None:
        self.versions = [write_tiny_bundle(folder / f"of-seed-{seed}", seed=seed).folder for seed in (0, 1)]
        self.folder = folder / "served"
        self.folder.mkdir()
        self._swaps = 0
        self.swap()

    def swap(self) -> None:
        """Replaces the bundle with the other one, in one step."""
        link = self.folder / "tiny"
        (new := link.with_suffix(".new")).symlink_to(self.versions[self._swaps % 2], target_is_directory=True)
        new.replace(link)
        self._swaps += 1


async def reload(url: str) -> httpx.Response:
    """Asks the server to load what has changed on disk."""
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as admin:
        return await admin.post("/admin/reload", headers={"Authorization": f"Bearer {KEY}"})


def run(*, swaps: int, seed: int = 0) -> Report:
    """No reply may mix two bundles, and no request may be refused."""
    with tempfile.TemporaryDirectory() as temporary:
        bundle = SwappedBundle(Path(temporary))
        with serve_bundles([bundle.folder], V1T_ADMIN_KEYS=KEY) as served:
            return asyncio.run(_run(served, bundle, swaps, seed))


async def _run(served: ServedBundles, bundle: SwappedBundle, swaps: int, seed: int) -> Report:
    engines = questions.load(bundle.versions)
    asked = questions.draw_questions(engines, np.random.default_rng(seed), each=2, subsets=False)
    tally = Tally()
    over = asyncio.Event()

    async def swapper() -> None:
        try:
            for _ in range(swaps):
                await asyncio.sleep(0.05)
                bundle.swap()
                response = await reload(served.server.url)
                loaded = response.json().get("loaded", []) if response.status_code == 200 else []
                if len(loaded) != 1:
                    tally.complain(f"a reload was answered {response.status_code}: {response.text[:200]}")
        finally:
            over.set()

    async with Connections(served.server.url) as connections, asyncio.TaskGroup() as group:
        group.create_task(swapper())
        await run_clients(connections, asked, tally, clients=CLIENTS, keep_running=lambda: not over.is_set(), seed=seed)
    tally.allow(200)
    lines = [(engine.hash[:12], f"{tally.hashes[engine.hash]:,}") for engine in engines]
    if not all(tally.hashes[engine.hash] for engine in engines):
        tally.complain("all replies are of one bundle, so this run tests nothing")
    text = (
        f"{CLIENTS} clients. Swaps between the two bundles: {swaps}. Any two answers differ by at least "
        f"{questions.closest(asked):.2g}.\n\n"
        f"{markdown(('bundle', 'replies'), lines)}\n\n{tally.table()}"
    )
    return Report(text, tally.problems)
