"""Threads that decode request bodies, and an estimate of the wait for them."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["DecodePool"]

T = TypeVar("T")

_MIN_BYTES = 64 * 1024  # that a body counts for at least: every body has a fixed cost


class DecodePool:
    """Decodes bodies in the order of arrival. A cancelled request leaves the queue before it is decoded.

    Args:
        threads: that decode at once. They mostly hold Python's lock, so more threads would not be faster.
    """

    def __init__(self, threads: int = 2) -> None:
        self._n_threads = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._pending_bytes = 0  # queued or being decoded
        self._cost = 0.0  # seconds that a byte adds to the wait: a running mean

    @property
    def estimated_wait(self) -> float:
        """Seconds until a body that arrives now is decoded, estimated from earlier ones."""
        return self._pending_bytes * self._cost

    async def run(self, n_bytes: int, function: Callable[..., T], *arguments: Any) -> T:
        """Calls the function in a thread, when its turn comes.

        Args:
            n_bytes: size of the body that it decodes.
        """
        n_bytes = max(n_bytes, _MIN_BYTES)
        context = contextvars.copy_context()
        self._pending_bytes += n_bytes
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._threads, lambda: context.run(self._timed, n_bytes, function, arguments)
            )
        finally:
            self._pending_bytes -= n_bytes

    def _timed(self, n_bytes: int, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            cost = (time.perf_counter() - start) / n_bytes / self._n_threads
            self._cost += 0.2 * (cost - self._cost) if self._cost else cost
