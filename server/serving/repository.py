"""The bundles that are served: loaded, verified and warmed beside the running service, then swapped in at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from server.bundle.manifest import Manifest, MouseRecord, load_manifest
from server.bundle.neurons import NeuronTable
from server.errors import BundleError, InvalidInput, NotFound, NotReady, TwinError, brief
from server.serving import malloc
from server.serving.discovery import find_bundles, state_of, version_of
from server.serving.loading import Loader, load_engine
from server.serving.telemetry.metrics import Metrics
from server.settings import Settings

if TYPE_CHECKING:
    from server.inference.engine import Engine

__all__ = ["Bundle", "Change", "Repository"]

logger = logging.getLogger("bentoml.v1t")

_SHOWN = 20  # names in an error
_PATIENCE = 10.0  # seconds that other bundles wait for one that is being loaded


@dataclass(eq=False)
class Bundle:
    """A bundle that is served, with its graphs in memory or not. Shares the attributes that describe an engine."""

    bundle: Path
    manifest: Manifest
    hash: str
    provider: str
    precision: str
    neurons: Mapping[str, NeuronTable]
    engine: Engine | None  # None: unloaded until the next request
    used: float = field(default_factory=time.monotonic)
    loading: asyncio.Task[Engine] | None = None

    @classmethod
    def of(cls, engine: Engine) -> Bundle:
        return cls(
            engine.bundle, engine.manifest, engine.hash, engine.provider, engine.precision, engine.neurons, engine
        )

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return version_of(self.bundle)

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.hash[:12]}, {self.provider})"


@dataclass(frozen=True)
class Change:
    """What loading the bundles on disk changed."""

    loaded: tuple[Bundle, ...]
    kept: tuple[Bundle, ...]
    removed: tuple[Bundle, ...]
    problems: tuple[str, ...]  # each bundle that was refused, and why


_Bundles = Mapping[str, Mapping[str, Bundle]]  # name -> version -> bundle, the newest version last


class Repository:
    """The bundles in use, by name and version.

    Args:
        load: makes an engine of a bundle; called in a thread.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, load: Callable[[Path, Settings], Engine] = load_engine
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._loader = Loader(load, settings, metrics, on_late=self._load_late)
        self._bundles: _Bundles = MappingProxyType({})
        self._problem: str | None = None
        self._loaded = False  # once
        self._complete = False  # once, without a problem; from then on a bad bundle leaves what is served as it is
        self._state: Hashable = None  # of the files, when they were last loaded
        self._late_load: asyncio.Task[Change] | None = None
        self._lock = asyncio.Lock()  # loads one bundle at a time: two would need memory for both

    @property
    def ready(self) -> bool:
        return self._complete

    @property
    def is_loading(self) -> bool:
        """Whether a bundle is still being loaded, at the start or after its caller stopped to wait for it."""
        is_late = self._late_load is not None and not self._late_load.done()
        return not self._loaded or self._loader.is_loading or is_late

    def check_ready(self) -> None:
        """Raises NotReady while bundles are loading, or if one was refused at the start; the hint says which."""
        if not self._loaded:
            hint = "Try again in a moment; GET /readyz says when."
            for bundle, seconds in self._loader.loading():
                hint = f"Bundle {bundle.name!r} has been loading for {seconds:.0f} s. {hint}"
            raise NotReady("the twins are being loaded", hint=hint, retry_after=1)
        if not self._complete:
            retry_after = 5 if self.is_loading else 30
            raise NotReady("the server has bundles that it cannot serve", hint=self._problem, retry_after=retry_after)

    # Look-ups

    @property
    def bundles(self) -> list[Bundle]:
        """Every version of every model."""
        self.check_ready()
        return list(_all(self._bundles))

    def records(self) -> list[tuple[Bundle, MouseRecord]]:
        """Every mouse of the newest version of every model."""
        self.check_ready()
        return [(bundle, record) for bundle in self._newest() for record in bundle.manifest.mice.values()]

    def versions(self, name: str) -> Mapping[str, Bundle]:
        """The versions of a model, the newest last; empty for an unknown model."""
        self.check_ready()
        return self._bundles.get(name, {})

    def look_up(self, mouse_id: str, model: str | None = None) -> Bundle:
        """The bundle that answers for a mouse.

        Args:
            model: a name, or a name and a version, "demo@2"; without a version the newest.

        Raises:
            NotFound: there is no such model, or none that holds the mouse.
            InvalidInput: several models hold the mouse, and none was named.
        """
        candidates = self._candidates(model)
        holders = [bundle for bundle in candidates if mouse_id in bundle.manifest.mice]
        if not holders:
            mice = dict.fromkeys(mouse for bundle in candidates for mouse in bundle.manifest.mice)
            raise NotFound(
                "there is no such mouse" + (f" in model {model!r}" if model else ""),
                got=brief(mouse_id),
                expected=_names(mice),
                hint="GET /mice lists them.",
            )
        return _only(holders, f"mouse {mouse_id!r}")

    def look_up_all(
        self, mice: Sequence[str] | Literal["*"], model: str | None = None
    ) -> tuple[Bundle, list[MouseRecord]]:
        """The one bundle that answers for all of these mice, and their records; "*" is every mouse of a bundle.

        Raises:
            NotFound: there is no such mouse, or no such model.
            InvalidInput: no bundle holds all of the mice, or several do and none was named.
        """
        candidates = self._candidates(model)
        holders = [bundle for bundle in candidates if mice == "*" or bundle.manifest.mice.keys() >= set(mice)]
        if not holders:
            for mouse_id in mice:
                self.look_up(mouse_id, model)
            hint = "Ask the models one by one."
            raise InvalidInput("no model holds all of these mice", got=brief(mice), hint=hint)
        bundle = _only(holders, "these mice")
        records = bundle.manifest.mice
        return bundle, [records[mouse_id] for mouse_id in (records if mice == "*" else mice)]

    def _newest(self) -> list[Bundle]:
        return [list(versions.values())[-1] for versions in self._bundles.values()]

    def _candidates(self, model: str | None) -> list[Bundle]:
        """The newest version of every model, or the model that is named."""
        self.check_ready()
        if model is None:
            return self._newest()
        name, _, version = model.partition("@")
        versions = self._bundles.get(name)
        if versions is None:
            raise NotFound(
                "there is no such model",
                got=brief(model),
                expected=_names(self._bundles),
                hint="GET /mice lists the models.",
            )
        if version and version not in versions:
            raise NotFound(f"model {name!r} has no such version", got=brief(version), expected=_names(versions))
        return [versions[version] if version else list(versions.values())[-1]]

    # Engines

    async def engine(self, bundle: Bundle) -> Engine:
        """The bundle's engine; an unloaded one is loaded first.

        Raises:
            NotReady: it cannot be loaded again.
        """
        bundle.used = time.monotonic()
        if bundle.engine is not None:
            return bundle.engine
        if bundle.loading is None:
            bundle.loading = asyncio.create_task(self._load_again(bundle), name=f"load {bundle.name}")
            bundle.loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # if nobody waits
        return await asyncio.shield(bundle.loading)

    async def _load_again(self, bundle: Bundle) -> Engine:
        try:
            async with self._lock:
                engine = await self._loader.engine(bundle.bundle)
                if engine.hash != bundle.hash:
                    raise BundleError("its files are not those that were served", got=f"hash {engine.hash[:12]}")
                bundle.engine, bundle.used = engine, time.monotonic()
                self._unload_unused(_all(self._bundles))
            logger.info("bundle %s is loaded again", bundle)
            return engine
        except TwinError as error:
            logger.error("bundle %s was unloaded and cannot be loaded again: %s", bundle, error)
            raise NotReady(
                f"bundle {bundle.name!r} cannot be loaded again", hint=f"{error}. Reload or restart.", retry_after=30
            ) from error
        finally:
            bundle.loading = None

    def _unload_unused(self, bundles: Iterable[Bundle]) -> None:
        """Unloads the least recently used bundles over V1T_MAX_LOADED; requests in flight keep their engine."""
        if self._settings.max_loaded is not None:
            loaded = sorted((one for one in bundles if one.engine is not None), key=lambda one: one.used)
            for bundle in loaded[: -self._settings.max_loaded]:
                bundle.engine = None
                logger.info("bundle %s is unloaded", bundle)
        self._update_metrics()

    def _load_late(self) -> None:
        self._late_load = asyncio.create_task(self.load(), name="load late bundles")

    def stop(self) -> None:
        """Ends the runs in progress with an error. No engine can be used afterwards."""
        for bundle in _all(self._bundles):
            if bundle.engine is not None:
                bundle.engine.stop()

    def close(self) -> None:
        """Closes and frees all engines, when the server stops."""
        for bundle in _all(self._bundles):
            if bundle.engine is not None:
                bundle.engine.close()
                bundle.engine = None

    # Changes

    async def load(self) -> Change:
        """Loads the bundles on disk that are new or changed, then swaps them in at once.

        Requests in flight finish on the engine that they began with. At the start, a bundle that cannot be served keeps
        the whole service unready; later, it leaves what is served as it is. Either way it is reported.
        """
        async with self._lock:
            change = await self._load_changes()
        await asyncio.to_thread(malloc.trim)  # replaced engines are freed now, or with their last request
        return change

    async def _load_changes(self) -> Change:
        before = {bundle.bundle: bundle for bundle in _all(self._bundles)}
        problems: list[str] = []
        bundles: dict[str, dict[str, Bundle]] = {}
        self._state = await asyncio.to_thread(state_of, self._settings.bundles)
        try:
            paths = await asyncio.to_thread(find_bundles, self._settings.bundles)
        except (BundleError, OSError) as error:  # a folder that is gone does not remove the bundles that it held
            paths, problems = [], [str(error)]
            bundles = {name: dict(versions) for name, versions in self._bundles.items()}
        self._loader.keep(paths)
        loaded: list[Bundle] = []
        for path in paths:
            old = before.get(path)
            try:
                bundle = (
                    old if old and await _is_unchanged(old) else Bundle.of(await self._loader.engine(path, _PATIENCE))
                )
                if bundle.version in bundles.get(bundle.name, ()):
                    raise BundleError(
                        f"bundle {path} is named {bundle.name!r}, as another one of version {bundle.version} is",
                        hint="Rename one of them, or put them in folders named 1, 2, ...",
                    )
            except TwinError as error:
                problems.append(f"{path}: {error}")
                if old is None or old.version in bundles.get(old.name, ()):
                    continue
                bundle = old
            bundles.setdefault(bundle.name, {})[bundle.version] = bundle
            if bundle is not old:
                loaded.append(bundle)
                self._unload_unused(loaded)
        newest_last = {
            name: MappingProxyType(dict(sorted(versions.items(), key=lambda item: int(item[0]))))
            for name, versions in bundles.items()
        }
        self._bundles = MappingProxyType(newest_last)  # the swap
        self._problem = "; ".join(problems) or None
        self._loaded = True
        self._complete = self._complete or not problems
        self._unload_unused(_all(self._bundles))
        after = list(_all(self._bundles))
        change = Change(
            loaded=tuple(loaded),
            kept=tuple(bundle for bundle in after if bundle not in loaded),
            removed=tuple(bundle for bundle in before.values() if bundle not in after),
            problems=tuple(problems),
        )
        self._report(change)
        return change

    def _report(self, change: Change) -> None:
        for bundle in change.loaded:
            logger.info("serving bundle %s: mice %s", bundle, ", ".join(bundle.manifest.mice))
        for bundle in change.removed:
            logger.info("no longer serving bundle %s", bundle)
        for problem in change.problems:
            logger.error("refused: %s", problem)
        self._metrics.refused.set(len(change.problems))
        self._metrics.ready.set(self.ready)

    def _update_metrics(self) -> None:
        self._metrics.bundle.clear()
        for one in _all(self._bundles):
            labels = (one.name, one.version, one.hash, one.provider, one.manifest.members)
            self._metrics.bundle.labels(*labels).set(one.engine is not None)

    async def watch(self, seconds: float) -> None:
        """Loads what changes on disk, once it is the same at two looks in a row."""
        last = self._state
        while True:
            await asyncio.sleep(seconds)
            now = await asyncio.to_thread(state_of, self._settings.bundles)
            if now == last and now != self._state:
                logger.info("the bundles on disk have changed")
                try:
                    await self.load()
                except Exception:  # keep watching whatever the error is
                    logger.exception("the bundles on disk cannot be loaded")
            last = now


def _all(bundles: _Bundles) -> Iterator[Bundle]:
    return (bundle for versions in bundles.values() for bundle in versions.values())


async def _is_unchanged(old: Bundle) -> bool:
    """Whether the manifest on disk, which has the hash of every file, is still the one that is served."""
    return (await asyncio.to_thread(load_manifest, old.bundle)).hash == old.hash


def _only(holders: Sequence[Bundle], mice: str) -> Bundle:
    if len(holders) > 1:
        names = _names(bundle.name for bundle in holders)
        raise InvalidInput(f"several models hold {mice}", expected=f"model: {names}", hint="Name it: model=NAME.")
    return holders[0]


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    return " or ".join(listed[:_SHOWN]) + (f" or {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")
