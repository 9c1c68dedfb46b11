"""Threads that decode request bodies, and an estimate of the wait for them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["Abandoned", "DecodePool", "checkpoint"]

T = TypeVar("T")

_LEAST = 64 * 1024  # work that a body counts for at least: every body has a fixed cost
_LARGE = 16 * 1024**2  # work that may take longer than others should wait


class Abandoned(Exception):
    """Nobody waits for what is being decoded. Ends the thread's part; no reply is made of it."""


@dataclass(eq=False)
class _Job:
    """What one thread does for one request."""

    work: int
    is_abandoned: bool = False


_JOB: ContextVar[_Job | None] = ContextVar("decoding", default=None)


def checkpoint() -> None:
    """Ends the decoding of a request that was cancelled, disconnected or late; to be called between files."""
    job = _JOB.get()
    if job is not None and job.is_abandoned:
        raise Abandoned


class DecodePool:
    """Decodes bodies in the order of arrival. A cancelled request leaves the queue before it is decoded.

    Large ones take turns with all threads but one, so that small ones never wait for a large one.

    Args:
        threads: that decode at once. They mostly hold Python's lock, so more threads would not be faster.
    """

    def __init__(self, threads: int = 2) -> None:
        self._n_threads = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._large = asyncio.Semaphore(max(1, threads - 1))
        self._pending = 0  # work that is queued or being done, also for requests that have left
        self._cost = 0.0  # seconds that a unit of work adds to the wait: a running mean

    @property
    def estimated_wait(self) -> float:
        """Seconds until a body that arrives now is decoded, estimated from earlier ones."""
        return self._pending * self._cost

    def close(self) -> None:
        """Ends the threads, after what they are doing."""
        self._threads.shutdown(cancel_futures=True)

    async def run(self, work: int, function: Callable[..., T], *arguments: Any) -> T:
        """Calls the function in a thread, when its turn comes.

        Args:
            work: bytes to parse and pixels to decode.
        """
        job = _Job(max(work, _LEAST))
        self._pending += job.work
        if job.work < _LARGE:
            return await self._run(job, function, arguments)
        try:
            await self._large.acquire()
        except BaseException:
            self._pending -= job.work
            raise
        return await self._run(job, function, arguments, self._large.release)

    async def _run(
        self,
        job: _Job,
        function: Callable[..., T],
        arguments: tuple[Any, ...],
        at_end: Callable[[], None] = lambda: None,
    ) -> T:
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        future = self._threads.submit(context.run, self._timed, job, function, arguments)

        def end() -> None:
            self._pending -= job.work
            at_end()

        def ended(future: Future[T]) -> None:  # in the thread, or here if it is cancelled before its turn
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(end)

        future.add_done_callback(ended)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            job.is_abandoned = True  # the thread stops at its next checkpoint, and counts until then
            raise

    def _timed(self, job: _Job, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        _JOB.set(job)
        start = time.perf_counter()
        try:
            checkpoint()
            return function(*arguments)
        finally:
            if not job.is_abandoned:
                cost = (time.perf_counter() - start) / job.work / self._n_threads
                self._cost += 0.2 * (cost - self._cost) if self._cost else cost
