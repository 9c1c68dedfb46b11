"""Three servers behind HAProxy: one killed, one drained, one that hangs, a roll-out; no client may see any of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
from support.balancer import haproxy_configuration, running
from support.live_server import Server, free_port, serving
from support.tiny_bundle import write_tiny_bundle
from support.tools import tool

from reliability import questions
from reliability.clients import run_clients
from reliability.protocols import Connections
from reliability.served_bundles import worker_of
from reliability.swap import KEY, reload
from reliability.tally import Report, Tally, markdown

__all__ = ["run"]

CLIENTS = 16
SIZES = (1, 1, 1, 2, 3, 4, 8)  # images
HANGS = 6.0  # seconds


class Replica:
    """One server, its bundles, and its port, which it keeps over restarts."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.bundles = folder / "bundles"
        self.bundles.mkdir(parents=True)
        self._folder = folder
        self._serving: AbstractContextManager[Server] | None = None
        self.server: Server

    def start(self) -> None:
        options = {"V1T_THREADS": "1", "V1T_ADMIN_KEYS": KEY}
        self._serving = serving(self.bundles, self._folder, port=self.port, **options)
        self.server = self._serving.__enter__()
        self.server.wait_for("/readyz", 200)

    def stop(self) -> None:
        """SIGTERM; its exit code must be 0."""
        if self._serving is not None:
            ended, self._serving = self._serving, None
            ended.__exit__(None, None, None)

    def install(self, version: int, bundle: Path) -> None:
        shutil.copytree(bundle, self.bundles / "tiny" / f".{version}")
        (self.bundles / "tiny" / f".{version}").rename(self.bundles / "tiny" / str(version))


def run(*, rounds: int, requests: int = 0, seed: int = 0) -> Report:
    """Every reply must be right, and no request of the published client may fail, be lost or be answered twice.

    Args:
        rounds: of a kill, a drain and a hang, each of another replica; at least.
        requests: more rounds follow until so many are answered.
    """
    haproxy = tool("haproxy", "haproxy")
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as servers:
        folder = Path(temporary)
        versions = [write_tiny_bundle(folder / f"of-seed-{i}", seed=i).folder for i in (0, 1)]
        replicas = [Replica(folder / f"replica-{i}") for i in range(3)]
        for replica in replicas:
            replica.install(1, versions[0])
            servers.callback(replica.stop)
            replica.start()
        port = free_port()
        with running(haproxy, "-f", haproxy_configuration(folder, port, [replica.port for replica in replicas])):
            return asyncio.run(_run(f"http://127.0.0.1:{port}", replicas, versions, rounds, requests, seed))


async def _run(
    url: str, replicas: list[Replica], versions: list[Path], rounds: int, requests: int, seed: int
) -> Report:
    engines = questions.load(versions)
    asked = questions.draw_questions(
        engines, np.random.default_rng(seed), sizes=SIZES, each=3, kinds=("predict",), subsets=False
    )
    old = engines[0].hash
    pinned = [replace(one, model=f"{one.model}@1", answers={old: one.answers[old]}) for one in asked]
    over = asyncio.Event()
    events: Counter[str] = Counter()
    tally = Tally()

    async def kill(replica: Replica) -> None:
        worker_of(replica.server).kill()

    async def drain(replica: Replica) -> None:
        await asyncio.to_thread(replica.stop)
        await asyncio.to_thread(replica.start)

    async def hang(replica: Replica) -> None:
        worker = worker_of(replica.server)
        worker.suspend()
        await asyncio.sleep(HANGS)
        worker.resume()

    async def roll_out(replica: Replica) -> None:
        await asyncio.to_thread(replica.install, 2, versions[1])
        response = await reload(replica.server.url)
        if response.status_code != 200 or len(response.json()["loaded"]) != 1:
            tally.complain(f"a reload was answered {response.status_code}: {response.text[:200]}")

    async def happen(event: Callable[[Replica], Awaitable[None]], replica: Replica) -> None:
        await event(replica)
        await _until_ready(replica.server.url)
        await asyncio.sleep(3)  # until HAProxy has seen it
        events[event.__name__] += 1

    async def disturb() -> None:
        try:
            await asyncio.sleep(1)
            for turn in itertools.count():
                if turn >= rounds and len(tally.seconds) >= requests:
                    break
                first, second, third = (replicas[(turn + i) % 3] for i in range(3))
                await happen(kill, first)
                await happen(drain, second)
                await happen(hang, third)
                if turn == 0:
                    for replica in replicas:  # kills and drains of later rounds meet both versions
                        await happen(roll_out, replica)
        finally:
            over.set()

    async with Connections(url) as connections, asyncio.TaskGroup() as group:
        group.create_task(disturb())
        await run_clients(
            connections,
            [*asked, *pinned],
            tally,
            clients=CLIENTS,
            keep_running=lambda: not over.is_set(),
            protocols=("v1t_client",),
            pause=0.02,
            seed=seed,
        )
    tally.allow(200)
    lines = [(engine.hash[:12], f"{tally.hashes[engine.hash]:,}") for engine in engines]
    if not all(tally.hashes[engine.hash] for engine in engines):
        tally.complain("all replies are of one version, so this run tests no roll-out")
    happened = ", ".join(f"{name.replace('_', '-')}: {count}" for name, count in events.items())
    text = (
        f"{CLIENTS} clients of v1t_client (8 retries), half of the questions with the old version pinned. Events: "
        f"{happened}; a server hung for {HANGS:g} s.\n\n"
        f"{markdown(('bundle', 'replies'), lines)}\n\n{tally.table()}"
    )
    return Report(text, tally.problems)


async def _until_ready(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=2, trust_env=False) as probe:
        for _ in range(1800):
            with contextlib.suppress(httpx.TransportError):
                if (await probe.get("/readyz")).status_code == 200:
                    return
            await asyncio.sleep(0.05)
    raise AssertionError(f"{url} does not become ready again")
