"""Opens the graphs of one bundle: most of them on loading, some when they are first needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

from server.bundle import tensor_names
from server.bundle.manifest import File, Manifest, MouseRecord
from server.bundle.snapshot import Snapshot
from server.errors import BundleError
from server.inference.gpu.recorded import RecordedSession
from server.inference.sessions import Graph, Precision, Provider, Session, Stop, open_core

__all__ = ["GraphLoader", "MouseGraphs", "checked"]

G = TypeVar("G", bound=Graph)


@dataclass(frozen=True)
class GraphLoader:
    """Opens graphs from a folder. Holds no engine, so that an engine without users can be freed.

    Attributes:
        bundle: where the bundle lies.
        files: what its graphs are opened from: a private copy of the bundle, or a folder that nobody else writes to.
        recorded_batch: images in the largest batch of a core that is recorded as a CUDA graph; None: none are.
        stop: ends the runs of all graphs that were opened.
    """

    bundle: Path
    manifest: Manifest
    files: Snapshot | Path
    provider: Provider
    precision: Precision
    threads: int | None
    recorded_batch: int | None = None
    stop: Stop = field(default_factory=Stop)

    @property
    def folder(self) -> Path:
        return self.files.folder if isinstance(self.files, Snapshot) else self.files

    def core(self, file: File) -> Graph:
        """The graph of a core, or of one for some tokens."""
        path = self.folder / file.path
        if self.recorded_batch is not None:
            return RecordedSession(
                path,
                wanted="cuda",
                threads=self.threads,
                largest=self.recorded_batch,
                stop=self.stop,
                precision=self.precision,
            )
        return open_core(path, wanted=self.provider, precision=self.precision, threads=self.threads, stop=self.stop)

    def readouts(self, mouse: MouseRecord) -> list[File]:
        """The readouts of the cores' feature maps."""
        return mouse.half_readouts if self.precision == "fp16" else mouse.readouts

    def large(self, file: File) -> Session:
        return Session(self.folder / file.path, wanted=self.provider, threads=self.threads, stop=self.stop)

    def small(self, file: File) -> Session:
        """Single-threaded: small graphs gain nothing from threads, and idle thread pools would slow the core."""
        return Session(self.folder / file.path, wanted=self.provider, threads=1, stop=self.stop)


def checked(kind: str, file: File, graph: G) -> G:
    """The graph. Raises BundleError if it has other tensors than its kind."""
    inputs, outputs = tensor_names.FORWARD[kind]
    if not inputs.issuperset(graph.inputs) or not outputs.issuperset(graph.outputs):
        raise BundleError(
            f"{file.path} is not a {kind}",
            got=f"{', '.join(graph.inputs)} -> {', '.join(graph.outputs)}",
            expected=f"{', '.join(sorted(inputs))} -> {', '.join(sorted(outputs))}",
            hint="Export the bundle again.",
        )
    return graph


@dataclass(frozen=True, eq=False)
class MouseGraphs:
    """The graphs of one mouse that a forward pass needs; see `server.bundle.tensor_names`."""

    stems: list[Session]
    readouts: list[Session]
    ensemble: Session
    touched_tokens: list[Session]

    @classmethod
    def open(cls, mouse: MouseRecord, graphs: GraphLoader) -> Self:
        """Raises BundleError if a graph has other tensors than its kind."""

        def opened(kind: str, file: File) -> Session:
            return checked(kind, file, graphs.small(file))

        return cls(
            stems=[opened("stem", file) for file in mouse.stems],
            readouts=[opened("readout", file) for file in graphs.readouts(mouse)],
            ensemble=opened("ensemble", mouse.ensemble),
            touched_tokens=[graphs.small(file) for file in mouse.touched_tokens],
        )
