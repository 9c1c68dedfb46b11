"""HAProxy with deploy/haproxy/haproxy.cfg, in front of servers of this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.checkout import ROOT

__all__ = ["CONFIGURATION", "haproxy_configuration", "replaced", "running"]

CONFIGURATION = (ROOT / "deploy" / "haproxy" / "haproxy.cfg").read_text()


def replaced(text: str, **by: str) -> str:
    """The text with each of these replaced; all have to be in it."""
    for old, new in by.items():
        assert old in text
        text = text.replace(old, new)
    return text


def haproxy_configuration(folder: Path, port: int, upstreams: Sequence[int]) -> Path:
    """The configuration with these ports of three servers."""
    ports = {f"127.0.0.1:300{number}": f"127.0.0.1:{upstream}" for number, upstream in enumerate(upstreams, 1)}
    file = folder / "haproxy.cfg"
    file.write_text(replaced(CONFIGURATION, **{"bind :8080": f"bind 127.0.0.1:{port}", **ports}))
    return file


@contextmanager
def running(*command: str | os.PathLike[str]) -> Iterator[None]:
    """A program that runs until the end of the block."""
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)
