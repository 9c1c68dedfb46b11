"""The watchdog: ends the process when a run of the engine, or the event loop, hangs.

Python cannot stop a thread inside a graph. The supervisor of the process, `bentoml serve` or Kubernetes, starts a new
one.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from server.settings import PREFIX

__all__ = ["HUNG", "Watchdog"]

HUNG = 75  # the exit code; EX_TEMPFAIL of sysexits.h

logger = logging.getLogger("bentoml.v1t")

_GRACE = 1.0  # seconds for the refusals to be written


class Watchdog:
    """Monitors the engine and the event loop from a thread of its own.

    Args:
        seconds: that one run, or one turn of the event loop, may take.
        running: identifies the current run, by a new object for every run; None between runs.
        fail_pending: fails pending requests with the reason; called on the event loop.
        exit: ends the process at once.
    """

    def __init__(
        self,
        seconds: float,
        running: Callable[[], object | None],
        fail_pending: Callable[[str], None],
        exit: Callable[[int], Any] = os._exit,
    ) -> None:
        self._seconds = seconds
        self._running = running
        self._fail_pending = fail_pending
        self._exit = exit
        self._period = min(1.0, seconds / 4)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._turns = 0  # of the event loop, at the watchdog's request

    def start(self) -> None:
        """Starts to monitor, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        last, asked = time.monotonic(), 0
        run: object | None = None
        of_run = of_loop = 0.0  # seconds without a change
        while not self._stopped.wait(self._period):
            now = time.monotonic()
            passed = min(now - last, 2 * self._period)  # time that the process was suspended does not count
            last = now
            previous, run = run, self._running()
            of_run = of_run + passed if run is not None and run is previous else 0.0
            of_loop = of_loop + passed if self._turns < asked else 0.0
            if of_run > self._seconds or of_loop > self._seconds:
                self._end("a run of the engine" if of_run > self._seconds else "the event loop")
                return
            if self._turns == asked:
                asked += 1
                try:
                    self._loop.call_soon_threadsafe(self._turn)
                except RuntimeError:  # the loop is closed: the server has stopped
                    return

    def _turn(self) -> None:
        self._turns += 1

    def _end(self, what: str) -> None:
        reason = f"{what} hangs: it took more than {PREFIX}RUN_TIMEOUT={self._seconds:g} s"
        logger.critical("%s. The stacks of all threads follow, then this process ends with code %d.", reason, HUNG)
        faulthandler.dump_traceback(2, all_threads=True)  # to stderr, even if sys.stderr was replaced
        self._loop.call_soon_threadsafe(self._fail_pending, reason)
        time.sleep(_GRACE)
        self._exit(HUNG)
