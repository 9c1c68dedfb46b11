"""Attack: a server with little memory and few files, under each of `attacks`, with honest clients beside it.

Resident memory must stay within the budget and 300 MB, /livez must be answered within a second, honest clients within
their deadlines, and no reply may be a 5xx but 503 with Retry-After.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import psutil
from support.live_server import ROOT
from support.tiny_bundle import write_tiny_bundle

from reliability import questions
from reliability.attacks import ATTACKS
from reliability.clients import run_clients
from reliability.protocols import Connections
from reliability.served_bundles import DEMO, ServedBundles, serve_bundles, worker_of
from reliability.tally import Report, Tally, markdown

__all__ = ["run"]

MB = 1024**2
BUDGET = 512 * MB  # half of a container of 1 GiB, as V1T_MEMORY would be by default
ALLOWED = 300 * MB  # beside the budget: the interpreter, the models, and what the allocator keeps
FILES = 1024
LIVE = 1.0  # seconds
DEADLINE = 10.0  # seconds of an honest client, with its retries
CLIENTS = 4
KEY_FILES = "files of keys, emptied, then a FIFO"
KEY = "a key of the attacked server".replace(" ", "-")


def run(*, seconds: float, only: Sequence[str] = (), checkout: Path = ROOT, clients: int = 0, seed: int = 0) -> Report:
    """Attacks a server in each way.

    Args:
        seconds: of each attack.
        only: words, one of which is in the names of the attacks; empty: all.
        checkout: the code of the server, to compare with an older one.
        clients: that attack at the same time; 0: as many as each attack has.
    """
    problems: list[str] = []
    lines = []
    names = [name for name in ATTACKS if not only or any(words in name for words in only)]
    with _few_files(), contextlib.ExitStack() as stack:
        served: ServedBundles | None = None
        for name in names:
            if served is None or served.server.process.poll() is not None:
                served = stack.enter_context(_server(checkout))
            line, found = _attack(served, name, seconds, clients, seed)
            lines.append(line)
            problems += [f"{name}: {problem}" for problem in found]
    if not only or any(words in KEY_FILES for words in only):
        lines.append(_attack_keys(checkout, problems))
    head = ("attack", "resident MB", "slowest /livez s", "honest answers", "slowest s", "lost", "attackers' replies")
    text = (
        f"{seconds:.0f} s each, beside {CLIENTS} honest clients. V1T_MEMORY is {BUDGET // MB} MB, the limit of files "
        f"{FILES}.\n\n{markdown(head, lines)}"
    )
    return Report(text, problems)


@contextlib.contextmanager
def _server(checkout: Path) -> Iterator[ServedBundles]:
    with tempfile.TemporaryDirectory() as temporary:
        tiny = write_tiny_bundle(Path(temporary) / "tiny", n_neurons=500).folder  # replies of some megabytes
        with serve_bundles([tiny, DEMO], cwd=checkout, V1T_MEMORY=str(BUDGET), V1T_TIMEOUT="120") as served:
            yield served


@contextlib.contextmanager
def _few_files() -> Iterator[None]:
    """Processes that are started in it may open few files; this one may open many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _attack(
    served: ServedBundles, name: str, seconds: float, clients: int, seed: int
) -> tuple[Sequence[object], list[str]]:
    url = httpx.URL(served.server.url)
    assert url.port is not None
    watch = _Watch(worker_of(served.server), url.port)
    command = [sys.executable, "-m", "reliability.attacks", name, str(url.port), str(seconds), str(clients)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # pytest's has no effect on new processes
    attackers = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    with watch:
        tally = asyncio.run(_honest(served, lambda: attackers.poll() is None, seed))
        output, _ = attackers.communicate()
    assert attackers.returncode == 0, f"the attackers ended with {attackers.returncode}"
    statuses = Counter(json.loads(output))
    problems = tally.problems.copy()
    tally.allow(200)
    if watch.resident > BUDGET + ALLOWED:
        problems.append(f"resident memory was {watch.resident // MB} MB")
    if watch.slowest > LIVE:
        problems.append(f"/livez took {watch.slowest:.1f} s")
    if wrong := {status for status in statuses if status.startswith("5") and status != "503"}:
        problems.append(f"attackers were answered {', '.join(sorted(wrong))}")
    if not tally.seconds:
        problems.append("no honest client was answered")
    shown = ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
    return (
        name,
        f"{watch.resident // MB:,}",
        f"{watch.slowest:.2f}",
        f"{len(tally.seconds):,}",
        f"{max(tally.seconds, default=0):.2f}",
        tally.lost,
        shown or "none",
    ), problems


async def _honest(served: ServedBundles, keep_running: object, seed: int) -> Tally:
    engines = questions.load(served.bundles)
    asked = questions.draw_questions(engines, np.random.default_rng(seed), sizes=(1, 1, 2, 4), kinds=("predict",))
    tally = Tally()
    async with Connections(served.server.url, timeout=DEADLINE, retries=100) as connections:
        await run_clients(
            connections,
            asked,
            tally,
            clients=CLIENTS,
            keep_running=keep_running,  # type: ignore[arg-type]
            protocols=("v1t_client",),
            pause=0.1,
            seed=seed,
        )
    return tally


class _Watch:
    """While it is entered: the largest resident memory of a worker, and the slowest reply of /livez to a new client."""

    def __init__(self, worker: psutil.Process, port: int) -> None:
        self.resident = 0
        self.slowest = 0.0
        self._worker, self._port = worker, port
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._look), threading.Thread(target=self._ask)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _look(self) -> None:
        while not self._stopped.wait(0.02):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.resident = max(self.resident, self._worker.memory_info().rss)

    def _ask(self) -> None:
        while not self._stopped.wait(0.1):
            start = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            try:
                connection.request("GET", "/livez")
                answered = connection.getresponse().status == 200
            except OSError:
                answered = False
            finally:
                connection.close()
            self.slowest = max(self.slowest, time.monotonic() - start if answered else 30.0)


def _attack_keys(checkout: Path, problems: list[str]) -> Sequence[object]:
    """Replaces a file of keys by an empty one and by a FIFO: the key must go on to open the server."""
    with serve_bundles(cwd=checkout, keys=KEY, V1T_MEMORY=str(BUDGET)) as served:
        file = served.folder / "keys"
        headers = {"Authorization": f"Bearer {KEY}"}
        port = httpx.URL(served.server.url).port
        assert port is not None
        statuses: Counter[str] = Counter()
        watch = _Watch(worker_of(served.server), port)
        with watch:
            for make in (lambda: file.write_text(""), lambda: (file.unlink(), os.mkfifo(file))):
                make()  # type: ignore[no-untyped-call]
                try:
                    status = str(httpx.get(f"{served.server.url}/mice", headers=headers, timeout=DEADLINE).status_code)
                except httpx.TransportError as error:
                    status = type(error).__name__
                statuses[status] += 1
                time.sleep(0.2)
            if checkout != ROOT:  # the old code opened the FIFO and waits for its writer
                with contextlib.suppress(OSError):
                    os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK))
        if set(statuses) != {"200"}:
            problems.append(f"files of keys: {dict(statuses)}")
        if watch.slowest > LIVE:
            problems.append(f"files of keys: /livez took {watch.slowest:.1f} s")
    shown = ", ".join(f"{status}: {count}" for status, count in statuses.items())
    slowest = f"{watch.slowest:.2f}"
    return KEY_FILES, f"{watch.resident // MB:,}", slowest, "-", "-", "-", shown
