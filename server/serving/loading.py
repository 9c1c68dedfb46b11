"""Loading bundles within a time limit, each in a thread that can be left behind."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from server.errors import BundleError, TwinError
from server.serving.discovery import state_of
from server.serving.telemetry.metrics import Metrics
from server.settings import PREFIX, Settings

if TYPE_CHECKING:
    from server.inference.engine import Engine

__all__ = ["Loader", "LoadingTimeout", "load_engine"]

logger = logging.getLogger("bentoml.v1t")

Load = Callable[[Path, Settings], "Engine"]


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
        cuda_graphs=settings.cuda_graphs,
    )


class Loader:
    """Loads bundles, each in a thread of its own, and remembers those that take long.

    Args:
        load: makes an engine of a bundle; called in a thread.
        on_late: called when a bundle has been loaded, or refused, after its caller stopped to wait for it.
    """

    def __init__(self, load: Load, settings: Settings, metrics: Metrics, *, on_late: Callable[[], None]) -> None:
        self._load = load
        self._settings = settings
        self._metrics = metrics
        self._on_late = on_late
        self._attempts: dict[Path, _Attempt] = {}  # those that run, and those that took too long

    async def engine(self, bundle: Path, patience: float | None = None) -> Engine:
        """A warm engine. A bundle that took longer than V1T_LOAD_TIMEOUT is not tried again before its files change.

        Args:
            patience: seconds to wait for it; a slower bundle is loaded in the background, for a later call.

        Raises:
            TwinError: it cannot be served, or not yet.
        """
        state = await asyncio.to_thread(state_of, [bundle])
        attempt = self._attempts.get(bundle)
        if attempt is None or attempt.state != state:
            if attempt is not None:
                attempt.task.cancel()
            attempt = _Attempt(state, asyncio.create_task(self._attempt(bundle), name=f"load {bundle.name}"))
            self._attempts[bundle] = attempt
        if attempt.is_late and patience is not None:
            patience = 0  # it has been waited for
        if not (await asyncio.wait({attempt.task}, timeout=patience))[0]:
            if not attempt.is_late:
                attempt.is_late = True
                attempt.task.add_done_callback(self._finished_late)
            raise BundleError(
                f"it is still being loaded, for {attempt.seconds:.0f} s; other bundles do not wait for it"
            )
        if isinstance(attempt.task.exception(), LoadingTimeout):
            return attempt.task.result()
        del self._attempts[bundle]
        return attempt.task.result()

    @property
    def is_loading(self) -> bool:
        """Whether a bundle is being loaded, or was and its engine has not been taken yet."""
        return any(not isinstance(one.failure, LoadingTimeout) for one in self._attempts.values())

    def loading(self) -> list[tuple[Path, float]]:
        """The bundles that are being loaded, and for how many seconds."""
        return [(path, one.seconds) for path, one in self._attempts.items() if not one.task.done()]

    def keep(self, bundles: Iterable[Path]) -> None:
        """Stops to load all other bundles, and forgets them."""
        for gone in self._attempts.keys() - set(bundles):
            self._attempts.pop(gone).task.cancel()

    async def _attempt(self, bundle: Path) -> Engine:
        start = time.perf_counter()
        self._metrics.loading.inc()
        try:
            return await _load_in_time(self._load, bundle, self._settings)
        except TwinError:
            raise
        except Exception as error:  # onnxruntime has errors of its own; any of them refuses the bundle
            logger.exception("bundle %s cannot be loaded", bundle)
            raise BundleError(f"{type(error).__name__}: {error}") from error
        finally:
            self._metrics.loading.dec()
            self._metrics.load_seconds.observe(time.perf_counter() - start)

    def _finished_late(self, task: asyncio.Task[Engine]) -> None:
        if not task.cancelled():
            task.exception()  # marks it as seen; the next call raises it
            self._on_late()


@dataclass(eq=False)
class _Attempt:
    """An attempt to load a bundle whose files are in this state."""

    state: Hashable
    task: asyncio.Task[Engine]
    started: float = field(default_factory=time.monotonic)
    is_late: bool = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def failure(self) -> BaseException | None:
        """Why it failed, once it has."""
        return self.task.exception() if self.task.done() and not self.task.cancelled() else None


async def _load_in_time(load: Load, bundle: Path, settings: Settings) -> Engine:
    """Loads and warms an engine. What takes too long, such as a graph that never ends, is stopped and left behind.

    Args:
        load: makes an engine of a bundle; called in a thread.

    Raises:
        LoadingTimeout: it took longer than V1T_LOAD_TIMEOUT.
    """
    # Not in asyncio's pool: a thread of the pool that never ends would keep the process from ending.
    thread = _Thread(load, bundle, settings)
    threading.Thread(target=thread.run, name=f"load {bundle.name}", daemon=True).start()
    try:
        async with asyncio.timeout(settings.load_timeout):
            return await asyncio.wrap_future(thread.result)
    except TimeoutError:
        raise LoadingTimeout(
            f"bundle {bundle.name!r} did not load and run once in {PREFIX}LOAD_TIMEOUT={settings.load_timeout:g} s",
            hint="Export it again, or raise the limit. It is not tried again until its files change.",
        ) from None
    finally:
        thread.stop()


class _Thread:
    """What the thread does that loads a bundle."""

    def __init__(self, load: Load, bundle: Path, settings: Settings) -> None:
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
