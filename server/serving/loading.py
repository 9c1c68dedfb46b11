"""Loading one bundle within a time limit, in a thread that can be left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from server.errors import BundleError
from server.settings import PREFIX, Settings

if TYPE_CHECKING:
    from server.inference.engine import Engine

__all__ = ["LoadingTimeout", "load_engine", "load_in_time"]


class LoadingTimeout(BundleError, code="bad_bundle", status=500):
    """A bundle that takes longer to load than V1T_LOAD_TIMEOUT."""


def load_engine(bundle: Path, settings: Settings) -> Engine:
    """Loads and verifies one bundle."""
    from server.inference.engine import Engine  # imports onnxruntime, half a second that the port need not wait for

    return Engine.load(
        bundle,
        provider=settings.provider,
        precision=settings.precision,
        threads=settings.threads,
        max_batch=settings.max_batch,
    )


async def load_in_time(load: Callable[[Path, Settings], Engine], bundle: Path, settings: Settings) -> Engine:
    """Loads and warms an engine. What takes too long, such as a graph that never ends, is stopped and left behind.

    Args:
        load: makes an engine of a bundle; called in a thread.

    Raises:
        LoadingTimeout: it took longer than V1T_LOAD_TIMEOUT.
    """
    # Not in asyncio's pool: a thread of the pool that never ends would keep the process from ending.
    attempt = _Attempt(load, bundle, settings)
    threading.Thread(target=attempt.run, name=f"load {bundle.name}", daemon=True).start()
    try:
        async with asyncio.timeout(settings.load_timeout):
            return await asyncio.wrap_future(attempt.result)
    except TimeoutError:
        raise LoadingTimeout(
            f"bundle {bundle.name!r} did not load and run once in {PREFIX}LOAD_TIMEOUT={settings.load_timeout:g} s",
            hint="Export it again, or raise the limit. It is not tried again until its files change.",
        ) from None
    finally:
        attempt.stop()


class _Attempt:
    """One attempt to load a bundle, in a thread of its own."""

    def __init__(self, load: Callable[[Path, Settings], Engine], bundle: Path, settings: Settings) -> None:
        self.result: Future[Engine] = Future()
        self._load = load
        self._bundle = bundle
        self._settings = settings
        self._warming: Engine | None = None

    def run(self) -> None:
        try:
            self._warming = engine = self._load(self._bundle, self._settings)
            if self.result.cancelled():
                return
            engine.warm_up()
            self._warming = None
        except BaseException as error:
            self._finish(self.result.set_exception, error)
        else:
            self._finish(self.result.set_result, engine)

    def _finish(self, set_: Callable[..., None], outcome: object) -> None:
        if self.result.set_running_or_notify_cancel():
            set_(outcome)

    def stop(self) -> None:
        """Ends the warm-up, if it still runs."""
        if not self.result.done():
            self.result.cancel()
        if self.result.cancelled() and (engine := self._warming) is not None:
            engine.stop()
