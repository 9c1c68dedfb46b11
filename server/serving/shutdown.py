"""The orderly end of a server: it refuses new requests, answers those in flight within a bound, and stops."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from server.errors import NotReady
from server.serving.telemetry.metrics import Metrics
from server.settings import PREFIX

__all__ = ["Shutdown"]

logger = logging.getLogger("bentoml.v1t")

_MIN_SECONDS = 0.5  # so that connections which are queued on the socket get a reply, not a reset


class Shutdown:
    """Counts requests in flight, and handles the signals that stop the process before the web server does.

    Args:
        seconds: that requests in flight get.
        exit: ends the process at once.
    """

    GRACE = 3.0  # seconds past the bound, for refusals to be written

    def __init__(self, seconds: float, metrics: Metrics, exit: Callable[[int], Any] = os._exit) -> None:
        self._seconds = seconds
        self._metrics = metrics
        metrics.in_flight.set_function(lambda: self.in_flight)
        self._exit = exit
        self.in_flight = 0  # requests
        self.begun = False
        self._server: dict[int, Callable[[int, FrameType | None], Any]] = {}  # signal -> the web server's handler
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Counts a request while it is handled."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def check(self) -> None:
        """Raises NotReady once the server is stopping."""
        if self.begun:
            raise NotReady("the server is shutting down", hint="Try again: another may be starting.", retry_after=5)

    def handle_signals(self, fail_pending: Callable[[], None]) -> None:
        """Takes SIGTERM and SIGINT over from the web server, if one runs; it gets them once no request is in flight.

        Args:
            fail_pending: refuses the requests that are still pending when the time is up.
        """
        if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGTERM)):
            return
        loop = asyncio.get_running_loop()

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self.begun and number == signal.SIGINT:  # the second Ctrl-C stops at once
                self._server[number](number, frame)
            else:
                loop.call_soon_threadsafe(self._begin, number, fail_pending)

        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.signal(number, on_signal)
            assert callable(handler)
            self._server[number] = handler

    def release_signals(self) -> None:
        """Restores the web server's handlers."""
        for number, handler in self._server.items():
            signal.signal(number, handler)
        self._server.clear()

    def _begin(self, number: int, fail_pending: Callable[[], None]) -> None:
        if not self.begun:
            self.begun = True
            self._metrics.ready.set(0)
            logger.info("shutting down: %d requests in flight", self.in_flight)
            self._task = asyncio.create_task(self._run(number, fail_pending), name="shutdown")

    async def _run(self, number: int, fail_pending: Callable[[], None]) -> None:
        last_resort = threading.Timer(self._seconds + self.GRACE, self._exit_now)
        last_resort.daemon = True
        last_resort.start()
        await asyncio.sleep(min(_MIN_SECONDS, self._seconds))
        if not await self._is_empty_within(self._seconds):
            logger.warning("%d requests were not answered within %sDRAIN=%g s", self.in_flight, PREFIX, self._seconds)
            fail_pending()
            await self._is_empty_within(self.GRACE / 2)
        self._server[number](number, None)

    async def _is_empty_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                while self.in_flight:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return False
        return True

    def _exit_now(self) -> None:
        """In a thread: a run that hangs, or a client that reads slowly, keeps the process from ending."""
        logger.warning("%d requests are cut off", self.in_flight)
        self._exit(0)
