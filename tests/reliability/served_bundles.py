"""A live server on a free port, with the bundles that it serves."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from support.live_server import ROOT, Server, free_port, serving
from support.tiny_bundle import write_tiny_bundle

__all__ = ["DEMO", "ServedBundles", "serve_bundles", "worker_of"]

DEMO = ROOT / "exported_models" / "demo"


@dataclass(frozen=True)
class ServedBundles:
    """A server that is ready, and its bundles.

    Attributes:
        grpc: address of its gRPC service.
    """

    server: Server
    bundles: Sequence[Path]
    folder: Path
    grpc: str


@contextmanager
def serve_bundles(
    bundles: Sequence[Path] | None = None, *, cwd: Path = ROOT, keys: str | None = None, **environment: str
) -> Iterator[ServedBundles]:
    """Serves these bundles, by default the demo twin and a tiny one with random weights; the exit code must be 0.

    Args:
        cwd: the checkout whose server is started.
        keys: content of a file of API keys, `keys` in the folder.
        environment: settings of the server.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if bundles is None:
            bundles = [DEMO, write_tiny_bundle(folder / "tiny").folder]
        home = folder / "home"
        home.mkdir()
        if keys is not None:
            (folder / "keys").write_text(keys)
            environment["V1T_API_KEYS_FILE"] = str(folder / "keys")
        grpc = f"127.0.0.1:{free_port()}"
        environment = {
            "V1T_GRPC": grpc,
            "V1T_BUNDLES": os.pathsep.join(map(str, bundles)),
            "V1T_THREADS": "1",
            **environment,
        }
        with serving(bundles[0], home, cwd=cwd, **environment) as server:
            server.wait_for("/readyz", 200)
            yield ServedBundles(server, bundles, folder, grpc)


def worker_of(server: Server) -> psutil.Process:
    """The process that handles requests: the only worker of `bentoml serve`."""
    workers = [
        child
        for child in psutil.Process(server.process.pid).children(recursive=True)
        if any("worker" in word for word in child.cmdline())
    ]
    if len(workers) != 1:
        raise AssertionError(f"{len(workers)} workers instead of 1")
    return workers[0]
