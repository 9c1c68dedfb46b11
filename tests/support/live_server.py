"""A server as an operator starts it: `bentoml serve` in a process of its own, on a free port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from support.checkout import ROOT

__all__ = ["BENTOML", "PATIENCE", "ROOT", "Server", "free_port", "processes_serving", "serving"]

BENTOML = (sys.executable, "-m", "bentoml")
PATIENCE = 90  # seconds that anything may take before we call it hung


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait_for(self, path: str, status: int, words: str = "") -> httpx.Response:
        """Asks until the reply is the one that is waited for."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                response = httpx.get(f"{self.url}{path}")
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            if response.status_code == status and words in response.text:
                return response
            time.sleep(0.05)
        raise AssertionError(f"no {status} from {path}: {self.log.read_text()}")


def processes_serving(bundle: Path) -> list[int]:
    """The processes that serve this bundle now."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("V1T_BUNDLES") == str(bundle.resolve()):
                found.append(process.pid)
    return found


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(
    bundles: Path, workplace: Path, *arguments: str, cwd: Path = ROOT, port: int | None = None, **environment: str
) -> Iterator[Server]:
    """A server on a free port; `workplace` takes its log and BentoML's home."""
    port = port or free_port()
    log = workplace / f"server-{port}.log"
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("V1T_", "BENTOML_", "PYTHON"))
    }
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*BENTOML, "serve", *arguments, "--port", str(port)],
            cwd=cwd,
            env={
                **inherited,
                "V1T_BUNDLES": str(bundles),
                "V1T_PROVIDER": "cpu",
                "BENTOML_HOME": str(workplace / "bentoml"),
                "__BENTOML_DEBUG_USAGE": "True",  # would print what BentoML reports to its makers
                **environment,
            },
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Server(f"http://127.0.0.1:{port}", process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert code == 0, log.read_text()
    assert "Tracking Payload" not in log.read_text()
