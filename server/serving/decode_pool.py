"""Where bodies become arrays: a few threads, and a line before them whose length is known in seconds."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["DecodePool"]

T = TypeVar("T")

_LEAST = 64 * 1024  # bytes that a body counts for at least: every one costs something


class DecodePool:
    """Reads in the order of arrival. Who is cancelled while he waits costs nothing.

    Args:
        threads: that read at once; what they run mostly holds Python's lock, so that more do not read faster.
    """

    def __init__(self, threads: int = 2) -> None:
        self._n_threads = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._waiting = 0  # bytes, in line or being read
        self._cost = 0.0  # seconds by which a byte makes the line longer: a running mean

    @property
    def seconds_ahead(self) -> float:
        """How long who comes now will wait, as far as measured."""
        return self._waiting * self._cost

    async def read(self, n_bytes: int, function: Callable[..., T], *arguments: Any) -> T:
        """Calls the function in a thread, when its turn comes.

        Args:
            n_bytes: what it has to read.
        """
        n_bytes = max(n_bytes, _LEAST)
        context = contextvars.copy_context()
        self._waiting += n_bytes
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._threads, lambda: context.run(self._timed, n_bytes, function, arguments)
            )
        finally:
            self._waiting -= n_bytes

    def _timed(self, n_bytes: int, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            cost = (time.perf_counter() - start) / n_bytes / self._n_threads
            self._cost += 0.2 * (cost - self._cost) if self._cost else cost
