"""The bundles that are served: found, loaded, verified, warmed beside the running service, then put up in one step."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from server.contract import MANIFEST, MouseRecord
from server.errors import BundleError, InvalidInput, NotFound, NotReady, TwinError, brief
from server.metrics import Metrics
from server.settings import PREFIX, Settings

if TYPE_CHECKING:
    from server.engine import Engine

__all__ = ["Library", "find_bundles", "load_engine"]

logger = logging.getLogger("bentoml.v1t")

_SHOWN = 20  # names in an error


def find_bundles(places: Iterable[Path]) -> list[Path]:
    """The bundles at these places, each a bundle or a folder of bundles.

    A folder with graphs but no manifest counts as a bundle, so that it is refused by name and not passed over.

    Raises:
        BundleError: a place is no folder, or no place holds a bundle.
    """
    places = list(places)
    found: dict[Path, None] = {}
    for place in places:
        if not place.is_dir():
            raise BundleError(f"{place} is no folder", hint=f"Set {PREFIX}BUNDLES to a bundle, or a folder of bundles.")
        if (place / MANIFEST).exists():
            found[place.resolve()] = None
            continue
        for folder in sorted(place.iterdir()):
            if folder.is_dir() and not folder.name.startswith((".", "_")) and _is_bundle(folder):
                found[folder.resolve()] = None
    if not found:
        raise BundleError(
            f"there is no bundle in {', '.join(map(str, places))}",
            hint=f"Export one with `python -m training export`, or set {PREFIX}BUNDLES to where there is one.",
        )
    return list(found)


def _is_bundle(folder: Path) -> bool:
    return (folder / MANIFEST).exists() or any(folder.rglob("*.onnx"))


def load_engine(bundle: Path, settings: Settings) -> Engine:
    """Loads, verifies and warms one bundle."""
    from server.engine import Engine  # onnxruntime: half a second that the port need not wait for

    engine = Engine.load(
        bundle,
        provider=settings.provider,
        precision=settings.precision,
        threads=settings.threads,
        max_batch=settings.max_batch,
    )
    engine.warm_up()
    return engine


class Library:
    """The engines in use, by bundle name.

    Args:
        load: makes a warm engine of a bundle; called in a thread.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, load: Callable[[Path, Settings], Engine] = load_engine
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._load = load
        self._engines: Mapping[str, Engine] = MappingProxyType({})
        self._problem: str | None = None
        self._loaded = False

    @property
    def ready(self) -> bool:
        return self._loaded and self._problem is None

    @property
    def engines(self) -> Mapping[str, Engine]:
        """What is served, as it stood at this moment.

        Raises:
            NotReady: bundles are still loading, or one was refused; the hint says which and why.
        """
        if not self._loaded:
            raise NotReady(
                "the twins are being loaded", hint="Ask again in a moment; GET /readyz says when.", retry_after=1
            )
        if self._problem is not None:
            raise NotReady("the server has no twins that it can answer for", hint=self._problem, retry_after=30)
        return self._engines

    async def load(self) -> None:
        """Loads everything. A bundle that cannot be served keeps the whole service unready, and is named."""
        engines: dict[str, Engine] = {}
        problems: list[str] = []
        try:
            bundles = find_bundles(self._settings.bundles)
        except (BundleError, OSError) as error:
            bundles, problems = [], [str(error)]
        for bundle in bundles:
            try:
                engine = await asyncio.to_thread(self._load, bundle, self._settings)
                name = engine.manifest.name
                if name in engines:
                    raise BundleError(
                        f"bundle {bundle} is named {name!r}, as another one is", hint="Rename one of them."
                    )
            except TwinError as error:
                problems.append(f"{bundle}: {error}")
            except Exception as error:  # onnxruntime has its own; whatever it is, the bundle is named and refused
                logger.exception("bundle %s cannot be loaded", bundle)
                problems.append(f"{bundle}: {type(error).__name__}: {error}")
            else:
                engines[name] = engine
                self._metrics.bundle.labels(name, engine.hash, engine.provider, engine.manifest.members).set(1)
                logger.info(
                    "serving bundle %s (%s, %s): mice %s",
                    name,
                    engine.hash[:12],
                    engine.provider,
                    ", ".join(engine.manifest.mice),
                )
        for problem in problems:
            logger.error("refused: %s", problem)
        self._engines = MappingProxyType(engines)
        self._problem = "; ".join(problems) or None
        self._loaded = True
        self._metrics.ready.set(self.ready)

    def find(self, mouse_id: str, model: str | None = None) -> Engine:
        """The engine that answers for a mouse.

        Raises:
            NotFound: no bundle (of that name) holds the mouse.
            InvalidInput: several do, and none was named.
        """
        engines = self.engines
        if model is not None and model not in engines:
            raise NotFound(
                "there is no such model", got=brief(model), expected=_names(engines), hint="GET /mice lists the models."
            )
        holders = {
            name: engine
            for name, engine in engines.items()
            if mouse_id in engine.manifest.mice and model in (None, name)
        }
        if not holders:
            mice = dict.fromkeys(
                mouse for name, engine in engines.items() if model in (None, name) for mouse in engine.manifest.mice
            )
            raise NotFound(
                "there is no such mouse" + (f" in model {model!r}" if model else ""),
                got=brief(mouse_id),
                expected=_names(mice),
                hint="GET /mice lists them.",
            )
        if len(holders) > 1:
            raise InvalidInput(
                f"several models hold mouse {mouse_id!r}", expected=f"model: {_names(holders)}", hint="Name the model."
            )
        return next(iter(holders.values()))

    def records(self) -> list[tuple[Engine, MouseRecord]]:
        """Every mouse of every model."""
        return [(engine, record) for engine in self.engines.values() for record in engine.manifest.mice.values()]


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    return " or ".join(listed[:_SHOWN]) + (f" or {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")
