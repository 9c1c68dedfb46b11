"""Where a run takes place: bundles in a temporary folder, a server on a free port, and what it is made of."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from support.live_server import ROOT, Server, serving
from support.tiny_bundle import write_tiny_bundle

__all__ = ["DEMO", "Place", "Report", "at", "worker_of"]

DEMO = ROOT / "exported_models" / "demo"


@dataclass(frozen=True)
class Report:
    """What a run found.

    Attributes:
        text: markdown, to paste into docs/reliability.md.
        problems: what must not be; none if all is well.
    """

    text: str
    problems: Sequence[str]


@dataclass(frozen=True)
class Place:
    """A server that is ready, and the bundles that it serves."""

    server: Server
    bundles: Sequence[Path]
    folder: Path


@contextmanager
def at(bundles: Sequence[Path] | None = None, **environment: str) -> Iterator[Place]:
    """A server of these bundles, by default of the demo twin and a tiny one of random weights; it must end with code 0.

    Args:
        environment: settings of the server.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if bundles is None:
            bundles = [DEMO, write_tiny_bundle(folder / "tiny").folder]
        home = folder / "home"
        home.mkdir()
        environment = {"V1T_BUNDLES": os.pathsep.join(map(str, bundles)), "V1T_THREADS": "1", **environment}
        with serving(bundles[0], home, **environment) as server:
            server.wait_for("/readyz", 200)
            yield Place(server, bundles, folder)


def worker_of(server: Server) -> psutil.Process:
    """The process that answers: the one child of `bentoml serve`."""
    workers = [
        child
        for child in psutil.Process(server.process.pid).children(recursive=True)
        if any("worker" in word for word in child.cmdline())
    ]
    if len(workers) != 1:
        raise AssertionError(f"{len(workers)} workers in place of one")
    return workers[0]
