"""Swapping bundles under load: every reply belongs wholly to one bundle, the one that it names."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import httpx
import numpy as np
from support.tiny_bundle import write_tiny_bundle

from reliability import questions
from reliability.place import Place, Report, at
from reliability.pressure import press
from reliability.protocols import Wires
from reliability.tally import Tally, markdown

__all__ = ["KEY", "Shelf", "run"]

KEY = "reliability-0123456789"
CLIENTS = 32


class Shelf:
    """A folder in which one name stands for one of two bundles of the same name and mice, with other weights."""

    def __init__(self, folder: Path) -> None:
        self.versions = [write_tiny_bundle(folder / f"of-seed-{seed}", seed=seed).folder for seed in (0, 1)]
        self.folder = folder / "served"
        self.folder.mkdir()
        self._turns = 0
        self.turn()

    def turn(self) -> None:
        """Puts up the other one, in one step."""
        link = self.folder / "tiny"
        (new := link.with_suffix(".new")).symlink_to(self.versions[self._turns % 2], target_is_directory=True)
        new.replace(link)
        self._turns += 1


async def reload(url: str) -> httpx.Response:
    """Asks the server to take in what is on disk."""
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as admin:
        return await admin.post("/admin/reload", headers={"Authorization": f"Bearer {KEY}"})


def run(*, swaps: int, seed: int = 0) -> Report:
    """No reply may mix two bundles, and none may be refused."""
    with tempfile.TemporaryDirectory() as temporary:
        bundles = Shelf(Path(temporary))
        with at([bundles.folder], V1T_ADMIN_KEYS=KEY) as place:
            return asyncio.run(_press(place, bundles, swaps, seed))


async def _press(place: Place, bundles: Shelf, swaps: int, seed: int) -> Report:
    judges = questions.load(bundles.versions)
    asked = questions.draw_questions(judges, np.random.default_rng(seed), each=2, subsets=False)
    tally = Tally()
    over = asyncio.Event()

    async def swapper() -> None:
        try:
            for _ in range(swaps):
                await asyncio.sleep(0.05)
                bundles.turn()
                response = await reload(place.server.url)
                loaded = response.json().get("loaded", []) if response.status_code == 200 else []
                if len(loaded) != 1:
                    tally.complain(f"a reload was answered {response.status_code}: {response.text[:200]}")
        finally:
            over.set()

    async with Wires(place.server.url) as wires, asyncio.TaskGroup() as group:
        group.create_task(swapper())
        await press(wires, asked, tally, clients=CLIENTS, go_on=lambda: not over.is_set(), seed=seed)
    tally.allow(200)
    lines = [(judge.hash[:12], f"{tally.hashes[judge.hash]:,}") for judge in judges]
    if not all(tally.hashes[judge.hash] for judge in judges):
        tally.complain("only one of the bundles has answered: the run shows nothing")
    text = (
        f"{CLIENTS} clients while two bundles took turns {swaps} times; any two answers differ by at least "
        f"{questions.closest(asked):.2g}.\n\n"
        f"{markdown(('bundle', 'replies, all of them its own'), lines)}\n\n{tally.table()}"
    )
    return Report(text, tally.problems)
