"""The open connections: how many there may be, which one makes room for a new one, and which are too slow."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
import time
from typing import TYPE_CHECKING

import psutil

from server.errors import NotReady
from server.serving.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from server.serving.limits.connection import Connection

__all__ = ["Connections"]

logger = logging.getLogger("bentoml.v1t")

_BYTES = 64 * 1024  # that a connection may take without a request: a head, as received and as parsed
_PERIOD = 0.5  # seconds between two looks at all connections
_SPARE_FILES = 64  # kept for everything that is not a connection
_SPARE_CONNECTIONS = 32  # past the limit; they are answered, with a refusal
_SHOWN = 5.0  # seconds for which /readyz tells of a refused connection
_LOG_PERIOD = 10.0  # seconds between log lines about refused connections


class Connections:
    """All connections of this process.

    Args:
        memory: bytes of the budget; a quarter of it is for connections that are open at once.

    Attributes:
        limit: of open connections: what memory and, once started, the limit of open files allow.
    """

    def __init__(self, memory: int, metrics: Metrics) -> None:
        self._open: set[Connection] = set()
        self._metrics = metrics
        metrics.connections.set_function(lambda: len(self._open))
        self.limit = max(64, memory // 4 // _BYTES)
        self._files: int | None = None  # that this process may have open
        self._task: asyncio.Task[None] | None = None
        self._refused_at = self._logged_at = -math.inf
        self._reason = ""

    def start(self) -> None:
        """Starts to look for slow connections, on the running event loop."""
        self._files = _file_limit()
        if self._files is not None:
            self.limit = min(self.limit, max(16, self._files - psutil.Process().num_fds() - _SPARE_FILES))
        self._task = asyncio.get_running_loop().create_task(self._watch(), name="connections")

    async def stop(self) -> None:
        """Stops to look."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def check(self) -> None:
        """Raises NotReady, with the reason, for a while after a connection was refused for want of files or space."""
        if time.monotonic() - self._refused_at < _SHOWN:
            raise NotReady(self._reason, hint="Raise its limit of open files, or start more servers.", retry_after=5)

    def add(self, connection: Connection) -> bool:
        """Adds a connection, for which the oldest one that carries no request is closed if there are too many.

        Returns:
            Whether requests on it are answered; otherwise all requests are in progress, and it is refused.
        """
        self._open.add(connection)
        if len(self._open) <= self.limit:
            return True
        others = (one for one in self._open if one is not connection and not one.is_busy)
        if (oldest := min(others, key=lambda one: one.since, default=None)) is not None:
            self._open.discard(oldest)
            oldest.end("idle")
            return True
        self._refuse(f"the server has {len(self._open) - 1} connections with requests in progress, as many as it may")
        if len(self._open) > self.limit + _SPARE_CONNECTIONS:
            connection.end("crowded")
        return False

    def discard(self, connection: Connection) -> None:
        """Forgets a connection that is closed."""
        self._open.discard(connection)

    def count(self, reason: str) -> None:
        """Counts a connection that the server closed, or answered without the application."""
        self._metrics.connections_refused.labels(reason).inc()

    def _refuse(self, reason: str) -> None:
        now = time.monotonic()
        self._refused_at, self._reason = now, reason
        if now - self._logged_at >= _LOG_PERIOD:
            self._logged_at = now
            logger.error("%s (limit of open files: %s); new ones are refused with 503", reason, self._files)

    async def _watch(self) -> None:
        process = psutil.Process()
        while True:
            await asyncio.sleep(_PERIOD)
            now = time.monotonic()
            for connection in list(self._open):
                connection.look(now)
            if self._files is not None and self._files - process.num_fds() < _SPARE_FILES // 4:
                self.count("out_of_files")
                self._refuse(f"the process has {process.num_fds()} of {self._files} files open")


def _file_limit() -> int | None:
    """The soft limit of open files; None where there is none."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
