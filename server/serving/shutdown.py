"""The end of a server: told to stop, it refuses new requests, answers those it has, within a bound, and goes."""

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

_LINGER = 0.5  # seconds, at least: connections that wait to be accepted are told, and not cut off


class Shutdown:
    """Counts the requests that are being answered, and stands between the signals and the web server.

    Args:
        seconds: that requests in flight get.
        exit: ends the process at once.
    """

    GRACE = 3.0  # seconds past the bound, for refusals to be written

    def __init__(self, seconds: float, metrics: Metrics, exit: Callable[[int], Any] = os._exit) -> None:
        self._seconds = seconds
        self._metrics = metrics
        self._exit = exit
        self.in_flight = 0  # requests that are being answered
        self._server: dict[int, Callable[[int, FrameType | None], Any]] = {}  # signal -> the web server's handler
        self._task: asyncio.Task[None] | None = None
        self.begun = False

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Counts a request while it is answered."""
        self.in_flight += 1
        self._metrics.in_flight.set(self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1
            self._metrics.in_flight.set(self.in_flight)

    def check(self) -> None:
        """Passes while new requests are answered.

        Raises:
            NotReady: the server was told to stop.
        """
        if self.begun:
            raise NotReady("the server is shutting down", hint="Ask again: another one may be starting.", retry_after=5)

    def take_over(self, fail_pending: Callable[[], None]) -> None:
        """Takes the signals from the web server, if one is running, to hand them on when nobody waits any more.

        Args:
            fail_pending: refuses whoever still waits when the time is up.
        """
        if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGTERM)):
            return
        loop = asyncio.get_running_loop()

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self.begun and number == signal.SIGINT:  # Ctrl-C for the second time: at once
                self._server[number](number, frame)
            else:
                loop.call_soon_threadsafe(self._begin, number, fail_pending)

        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.signal(number, on_signal)
            assert callable(handler)
            self._server[number] = handler

    def release(self) -> None:
        """Gives the signals back."""
        for number, handler in self._server.items():
            signal.signal(number, handler)
        self._server.clear()

    def _begin(self, number: int, fail_pending: Callable[[], None]) -> None:
        if not self.begun:
            self.begun = True
            self._metrics.ready.set(0)
            logger.info("shutting down: %d requests are being answered", self.in_flight)
            self._task = asyncio.create_task(self._run(number, fail_pending), name="shutdown")

    async def _run(self, number: int, fail_pending: Callable[[], None]) -> None:
        last = threading.Timer(self._seconds + self.GRACE, self._leave)  # goes on until the process has ended
        last.daemon = True
        last.start()
        await asyncio.sleep(min(_LINGER, self._seconds))
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

    def _leave(self) -> None:
        """In a thread: something keeps the process from ending, a run that hangs or a client that reads slowly."""
        logger.warning("%d requests are cut off", self.in_flight)
        self._exit(0)
