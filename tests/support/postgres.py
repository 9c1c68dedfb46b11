"""A PostgreSQL server on a free port of this machine, with its data in a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.live_server import PATIENCE, free_port
from support.tools import tool

__all__ = ["postgres"]


@contextmanager
def postgres() -> Iterator[str]:
    """Yields the URL of an empty database, as SQLAlchemy takes it. PostgreSQL refuses to run as root."""
    paths = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # where Debian has initdb
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), *map(str, paths[-1:])])
    programs = [tool(name, "postgresql") for name in ("initdb", "postgres")]
    user = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    folder = Path(tempfile.mkdtemp(prefix="v1t-postgres-"))
    os.chown(folder, user.pw_uid, user.pw_gid)
    identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    port = free_port()
    data, log = folder / "data", folder / "log"
    try:
        subprocess.run(
            [programs[0], "-D", data, "-U", "lab", "--auth", "trust", "--no-sync"],
            cwd=folder, check=True, capture_output=True, timeout=PATIENCE, **identity,
        )  # fmt: skip
        with log.open("wb") as stream:
            server = subprocess.Popen(
                [programs[1], "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-c", "fsync=off"],
                cwd=folder, stdout=stream, stderr=subprocess.STDOUT, **identity,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + PATIENCE
            while b"ready to accept connections" not in log.read_bytes():
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield f"postgresql+psycopg://lab@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # its fast shutdown
            server.wait(PATIENCE)
    finally:
        shutil.rmtree(folder)
