"""The bundles that are served: loaded, verified, warmed beside the running service, then put up in one step."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from server.bundle.manifest import Manifest, MouseRecord, NeuronTable, load_manifest
from server.errors import BundleError, InvalidInput, NotFound, NotReady, TwinError, brief
from server.serving import malloc as memory
from server.serving.discovery import find_bundles, state_of, version_of
from server.serving.telemetry.metrics import Metrics
from server.settings import Settings

if TYPE_CHECKING:
    from server.inference.engine import Engine

__all__ = ["Bundle", "Change", "Repository", "load_engine"]

logger = logging.getLogger("bentoml.v1t")

_SHOWN = 20  # names in an error


def load_engine(bundle: Path, settings: Settings) -> Engine:
    """Loads, verifies and warms one bundle."""
    from server.inference.engine import Engine  # onnxruntime: half a second that the port need not wait for

    engine = Engine.load(
        bundle,
        provider=settings.provider,
        precision=settings.precision,
        threads=settings.threads,
        max_batch=settings.max_batch,
    )
    engine.warm_up()
    return engine


@dataclass(eq=False)
class Bundle:
    """A bundle that is served, whether its graphs are in memory or not. What it says of itself is an engine's too."""

    bundle: Path
    manifest: Manifest
    hash: str
    provider: str
    precision: str
    neurons: Mapping[str, NeuronTable]
    engine: Engine | None  # None: out of memory, until somebody asks
    used: float = field(default_factory=time.monotonic)
    returning: asyncio.Task[Engine] | None = None

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
    """What a look at the bundles on disk changed."""

    loaded: tuple[Bundle, ...]
    kept: tuple[Bundle, ...]
    removed: tuple[Bundle, ...]
    problems: tuple[str, ...]  # of each bundle that was refused: which, and why


_Bundles = Mapping[str, Mapping[str, Bundle]]  # name -> version -> bundle, the newest version last


class Repository:
    """The bundles in use, by name and version.

    Args:
        load: makes a warm engine of a bundle; called in a thread.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, load: Callable[[Path, Settings], Engine] = load_engine
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._load = load
        self._bundles: _Bundles = MappingProxyType({})
        self._problem: str | None = None
        self._loaded = False  # once
        self._complete = False  # once, without a problem: from then on a bad bundle changes nothing
        self._state: Hashable = None  # of the files, when they were last taken in
        self._loading = asyncio.Lock()  # one bundle at a time: two would take memory that nobody reckoned with

    @property
    def ready(self) -> bool:
        return self._complete

    def check_ready(self) -> None:
        """Passes when every bundle was loaded.

        Raises:
            NotReady: bundles are still loading, or one was refused at the start; the hint says which and why.
        """
        if not self._loaded:
            raise NotReady(
                "the twins are being loaded", hint="Ask again in a moment; GET /readyz says when.", retry_after=1
            )
        if not self._complete:
            raise NotReady("the server has no twins that it can answer for", hint=self._problem, retry_after=30)

    # What is there

    @property
    def bundles(self) -> list[Bundle]:
        """Every version of every model, as it stood at this moment."""
        self.check_ready()
        return list(_all(self._bundles))

    def records(self) -> list[tuple[Bundle, MouseRecord]]:
        """Every mouse of the newest version of every model."""
        self.check_ready()
        newest = [list(versions.values())[-1] for versions in self._bundles.values()]
        return [(bundle, record) for bundle in newest for record in bundle.manifest.mice.values()]

    def versions(self, name: str) -> Mapping[str, Bundle]:
        """The versions of a model, the newest last; none of a model that is not there."""
        self.check_ready()
        return self._bundles.get(name, {})

    def look_up(self, mouse_id: str, model: str | None = None) -> Bundle:
        """The bundle that answers for a mouse.

        Args:
            model: a name, or a name and a version, "demo@2"; the newest version answers where none is named.

        Raises:
            NotFound: no bundle (of that name and version) holds the mouse.
            InvalidInput: several do, and none was named.
        """
        self.check_ready()
        candidates = {name: list(versions.values())[-1] for name, versions in self._bundles.items()}
        if model is not None:
            candidates = {model: self._named(model)}
        holders = [bundle for bundle in candidates.values() if mouse_id in bundle.manifest.mice]
        if not holders:
            mice = dict.fromkeys(mouse for bundle in candidates.values() for mouse in bundle.manifest.mice)
            raise NotFound(
                "there is no such mouse" + (f" in model {model!r}" if model else ""),
                got=brief(mouse_id),
                expected=_names(mice),
                hint="GET /mice lists them.",
            )
        if len(holders) > 1:
            names = _names(bundle.name for bundle in holders)
            raise InvalidInput(
                f"several models hold mouse {mouse_id!r}", expected=f"model: {names}", hint="Name the model."
            )
        return holders[0]

    def look_up_all(
        self, mice: Sequence[str] | Literal["*"], model: str | None = None
    ) -> tuple[Bundle, list[MouseRecord]]:
        """The one bundle that answers for all of these mice, and their records; "*" is every mouse that it holds.

        Raises:
            NotFound: there is no such mouse, or no such model.
            InvalidInput: no bundle holds all of them, or several do, and none was named.
        """
        self.check_ready()
        candidates = [list(versions.values())[-1] for versions in self._bundles.values()]
        if model is not None:
            candidates = [self._named(model)]
        holders = [bundle for bundle in candidates if mice == "*" or bundle.manifest.mice.keys() >= set(mice)]
        if len(holders) > 1:
            names = _names(bundle.name for bundle in holders)
            raise InvalidInput("several models hold these mice", expected=f"model: {names}", hint="Name the model.")
        if not holders:
            for mouse_id in mice:
                self.look_up(mouse_id, model)
            raise InvalidInput("no model holds all of these mice", got=brief(mice), hint="Ask the models one by one.")
        records = holders[0].manifest.mice
        return holders[0], [records[mouse_id] for mouse_id in (records if mice == "*" else mice)]

    def _named(self, model: str) -> Bundle:
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
        return versions[version] if version else list(versions.values())[-1]

    # Engines

    async def find(self, mouse_id: str, model: str | None = None) -> Engine:
        """The engine that answers for a mouse. See `look_up` for what is refused."""
        return await self.engine(self.look_up(mouse_id, model))

    async def engine(self, bundle: Bundle) -> Engine:
        """The bundle's engine: at once, or after it was loaded again where it had left memory.

        Raises:
            NotReady: it cannot be loaded any more.
        """
        bundle.used = time.monotonic()
        if bundle.engine is not None:
            return bundle.engine
        if bundle.returning is None:
            bundle.returning = asyncio.create_task(self._bring_back(bundle), name=f"load {bundle.name}")
            bundle.returning.add_done_callback(lambda task: task.cancelled() or task.exception())  # if all hung up
        return await asyncio.shield(bundle.returning)

    async def _bring_back(self, bundle: Bundle) -> Engine:
        try:
            async with self._loading:
                engine = await self._make(bundle.bundle)
                if engine.hash != bundle.hash:
                    raise BundleError("its files are not those that were served", got=f"hash {engine.hash[:12]}")
                bundle.engine, bundle.used = engine, time.monotonic()
                self._make_room(_all(self._bundles))
            logger.info("bundle %s is in memory again", bundle)
            return engine
        except TwinError as error:
            logger.error("bundle %s had left memory and cannot be loaded again: %s", bundle, error)
            raise NotReady(
                f"bundle {bundle.name!r} cannot be loaded again", hint=f"{error}. Reload or restart.", retry_after=30
            ) from error
        finally:
            bundle.returning = None

    def _make_room(self, bundles: Iterable[Bundle]) -> None:
        """Lets the least recently used ones go; whoever works with one keeps it until done."""
        if self._settings.max_loaded is not None:
            inside = sorted((one for one in bundles if one.engine is not None), key=lambda one: one.used)
            for bundle in inside[: -self._settings.max_loaded]:
                bundle.engine = None
                logger.info("bundle %s leaves memory", bundle)
        self._show()

    async def _make(self, place: Path) -> Engine:
        """Loads one bundle in a thread.

        Raises:
            TwinError: the bundle cannot be served.
        """
        start = time.perf_counter()
        try:
            return await asyncio.to_thread(self._load, place, self._settings)
        except TwinError:
            raise
        except Exception as error:  # onnxruntime has its own; whatever it is, the bundle is named and refused
            logger.exception("bundle %s cannot be loaded", place)
            raise BundleError(f"{type(error).__name__}: {error}") from error
        finally:
            self._metrics.load_seconds.observe(time.perf_counter() - start)

    # Changes

    async def load(self) -> Change:
        """Looks at the bundles on disk and takes in what is new: loaded beside what is served, then put up in one step.

        Requests in flight finish on the engine that they were given. At the start, a bundle that cannot be served keeps
        the whole service unready, and is named; later it leaves what is served as it is.
        """
        async with self._loading:
            change = await self._take_in()
        await asyncio.to_thread(memory.give_back)  # what was replaced is gone, or goes with its last request
        return change

    async def _take_in(self) -> Change:
        before = {bundle.bundle: bundle for bundle in _all(self._bundles)}
        problems: list[str] = []
        bundles: dict[str, dict[str, Bundle]] = {}
        self._state = await asyncio.to_thread(state_of, self._settings.bundles)
        try:
            places = await asyncio.to_thread(find_bundles, self._settings.bundles)
        except (BundleError, OSError) as error:  # a place that is gone says nothing about its bundles
            places, problems = [], [str(error)]
            bundles = {name: dict(versions) for name, versions in self._bundles.items()}
        loaded: list[Bundle] = []
        for place in places:
            old = before.get(place)
            try:
                bundle = old if old is not None and await _is_unchanged(old) else Bundle.of(await self._make(place))
                if bundle.version in bundles.get(bundle.name, ()):
                    raise BundleError(
                        f"bundle {place} is named {bundle.name!r}, as another one of version {bundle.version} is",
                        hint="Rename one of them, or put them in folders named 1, 2, ...",
                    )
            except TwinError as error:
                problems.append(f"{place}: {error}")
                if old is None or old.version in bundles.get(old.name, ()):
                    continue
                bundle = old
            bundles.setdefault(bundle.name, {})[bundle.version] = bundle
            if bundle is not old:
                loaded.append(bundle)
                self._make_room(loaded)
        newest_last = {
            name: MappingProxyType(dict(sorted(versions.items(), key=lambda item: int(item[0]))))
            for name, versions in bundles.items()
        }
        self._bundles = MappingProxyType(newest_last)  # the one step
        self._problem = "; ".join(problems) or None
        self._loaded = True
        self._complete = self._complete or not problems
        self._make_room(_all(self._bundles))
        after = list(_all(self._bundles))
        change = Change(
            loaded=tuple(loaded),
            kept=tuple(bundle for bundle in after if bundle not in loaded),
            removed=tuple(bundle for bundle in before.values() if bundle not in after),
            problems=tuple(problems),
        )
        self._tell(change)
        return change

    def _tell(self, change: Change) -> None:
        for bundle in change.loaded:
            logger.info("serving bundle %s: mice %s", bundle, ", ".join(bundle.manifest.mice))
        for bundle in change.removed:
            logger.info("no longer serving bundle %s", bundle)
        for problem in change.problems:
            logger.error("refused: %s", problem)
        self._metrics.refused.set(len(change.problems))
        self._metrics.ready.set(self.ready)

    def _show(self) -> None:
        """The metrics' bundles: 1 in memory, 0 out of it."""
        self._metrics.bundle.clear()
        for one in _all(self._bundles):
            labels = (one.name, one.version, one.hash, one.provider, one.manifest.members)
            self._metrics.bundle.labels(*labels).set(one.engine is not None)

    async def watch(self, seconds: float) -> None:
        """Takes in what changes on disk, once it has not changed any more from one look to the next."""
        last = self._state
        while True:
            await asyncio.sleep(seconds)
            now = await asyncio.to_thread(state_of, self._settings.bundles)
            if now == last and now != self._state:
                logger.info("the bundles on disk have changed")
                try:
                    await self.load()
                except Exception:  # whatever it is, we go on watching
                    logger.exception("the bundles on disk cannot be taken in")
            last = now


def _all(bundles: _Bundles) -> Iterator[Bundle]:
    return (bundle for versions in bundles.values() for bundle in versions.values())


async def _is_unchanged(old: Bundle) -> bool:
    """True where the manifest on disk is still the one that is served; it holds the hash of every file."""
    return (await asyncio.to_thread(load_manifest, old.bundle)).hash == old.hash


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    return " or ".join(listed[:_SHOWN]) + (f" or {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")
