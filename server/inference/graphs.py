"""Opens the graphs of one bundle: most when it is loaded, some when they are first needed. By then the files may be
another bundle's, put in this one's place: what has changed since it was verified is not opened."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from server.bundle.manifest import File, Manifest
from server.errors import NotReady
from server.inference.sessions import Graph, Precision, Provider, Session, open_core

__all__ = ["Graphs"]


@dataclass(frozen=True)
class Graphs:
    """A bundle's files, as they were when it was loaded. Holds no engine, so that an engine goes when nobody has it."""

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
        """Small graphs gain nothing from more threads, and idle pools would spin beside the core's."""
        return Session(self._path(file), wanted=self.provider, threads=1)

    def _path(self, file: File) -> Path:
        for path in (file.path, *(weights.path for weights in self.manifest.weights)):
            if _stamp(self.bundle / path) != self.stamps[path]:
                raise NotReady(
                    f"the files of bundle {self.manifest.name!r} were changed after it was loaded",
                    got=path,
                    hint="Ask again once the server has taken in the new bundle: POST /admin/reload, or V1T_WATCH.",
                    retry_after=10,
                )
        return self.bundle / file.path


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
