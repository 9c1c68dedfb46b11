"""Opens the graphs of one bundle: most of them on loading, some when they are first needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from server.bundle.manifest import File, Manifest, MouseRecord
from server.errors import NotReady
from server.inference.sessions import Graph, Precision, Provider, Session, open_core

__all__ = ["GraphLoader", "MouseGraphs"]


@dataclass(frozen=True)
class GraphLoader:
    """Opens graphs from a bundle's files, as long as these are the files that were loaded and verified.

    Holds no engine, so that an engine without users can be freed.
    """

    bundle: Path
    manifest: Manifest
    provider: Provider
    precision: Precision
    threads: int | None
    stamps: dict[str, tuple[int, ...]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for file in self.manifest.files():
            self.stamps[file.path] = _stamp(self.bundle / file.path)

    def core(self, file: File) -> Graph:
        path = self._path(file)
        return open_core(path, wanted=self.provider, precision=self.precision, threads=self.threads)

    def large(self, file: File) -> Session:
        return Session(self._path(file), wanted=self.provider, threads=self.threads)

    def small(self, file: File) -> Session:
        """Single-threaded: small graphs gain nothing from threads, and idle thread pools would slow the core."""
        return Session(self._path(file), wanted=self.provider, threads=1)

    def _path(self, file: File) -> Path:
        """The file's path.

        Raises:
            NotReady: the file, or shared weights, changed on disk since the bundle was loaded.
        """
        for path in (file.path, *(weights.path for weights in self.manifest.weights)):
            if _stamp(self.bundle / path) != self.stamps[path]:
                raise NotReady(
                    f"the files of bundle {self.manifest.name!r} were changed after it was loaded",
                    got=path,
                    hint="Try again once the server has loaded the new bundle: POST /admin/reload, or V1T_WATCH.",
                    retry_after=10,
                )
        return self.bundle / file.path


@dataclass(frozen=True, eq=False)
class MouseGraphs:
    """The graphs of one mouse that a forward pass needs; see `server.bundle.tensor_names`."""

    stems: list[Session]
    readouts: list[Session]
    ensemble: Session
    touched_tokens: list[Session]

    @classmethod
    def open(cls, mouse: MouseRecord, graphs: GraphLoader) -> Self:
        return cls(
            stems=[graphs.small(file) for file in mouse.stems],
            readouts=[graphs.small(file) for file in mouse.readouts],
            ensemble=graphs.small(mouse.ensemble),
            touched_tokens=[graphs.small(file) for file in mouse.touched_tokens],
        )


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
