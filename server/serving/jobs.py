"""What the batcher queues: work on stimuli, the requests that ask for it, and their pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from server.serving.telemetry.statistics import Timing

if TYPE_CHECKING:
    from server.inference.engine import Engine
    from server.inference.stimulus import Stimulus

__all__ = ["PREDICTION", "Job", "Piece", "Priority", "Work", "count_images"]

Priority: TypeAlias = Literal["interactive", "bulk"]


@dataclass(frozen=True, eq=False)
class Work:
    """A computation on stimuli.

    Attributes:
        name: label in the metrics; costs are averaged per name.
        run: computes pieces of stimuli in the worker thread. Gets the engine, the pieces, and the slice of images that
            the pieces are of the whole request. Returns a named tuple of arrays for each piece, images first.
        max_images: per run; None: as many as fit into a batch, together with other requests of the same work.
    """

    name: str
    run: Callable[[Engine, Sequence[Stimulus], slice], Sequence[Any]]
    max_images: int | None = None

    @property
    def is_batched(self) -> bool:
        return self.max_images is None


PREDICTION = Work("predict", lambda engine, stimuli, images: engine.predict_many(stimuli))


@dataclass(eq=False)
class Job:
    """A request in the queue, and the results of its pieces so far."""

    work: Work
    engine: Engine
    stimuli: Sequence[Stimulus]  # one for each mouse that is shown the images
    done: asyncio.Future[list[Any]]
    arrived: float
    deadline: float
    timing: Timing
    computed_before: int  # images that the batcher had computed, for any request, when this one arrived
    priority: Priority = "interactive"
    taken: int = 0  # images handed to a run
    parts: list[Any] = field(default_factory=list)

    @property
    def n_mice(self) -> int:
        return len(self.stimuli)

    @property
    def left(self) -> int:
        return len(self.stimuli[0].image) - self.taken

    def take(self, n: int) -> Piece:
        """The next n images; for several mice image by image, so that the mice can share a pass of the core."""
        images = slice(self.taken, self.taken + n)
        self.taken += n
        if self.n_mice == 1:
            whole = n == len(self.stimuli[0].image)
            return Piece(self, images, [self.stimuli[0] if whole else self.stimuli[0][images]])
        return Piece(self, images, [one[i : i + 1] for i in range(images.start, images.stop) for one in self.stimuli])

    def add(self, parts: Sequence[Any] | Exception) -> None:
        """Adds the results of the last piece taken; the last piece resolves the request."""
        if self.done.done():  # cancelled during the run
            return
        if isinstance(parts, Exception):
            self.done.set_exception(parts)
            return
        self.parts += parts
        if self.left == 0:
            try:
                self.done.set_result([_join(self.parts[mouse :: self.n_mice]) for mouse in range(self.n_mice)])
            except Exception as error:  # fails this request only; the queue is served on
                self.done.set_exception(error)


@dataclass(frozen=True, eq=False)
class Piece:
    """The part of a job that goes into one run."""

    job: Job
    images: slice
    stimuli: list[Stimulus]


def _join(parts: list[Any]) -> Any:
    """One named tuple of arrays from those of consecutive pieces."""
    return parts[0] if len(parts) == 1 else type(parts[0])(*map(np.concatenate, zip(*parts, strict=True)))


def count_images(batch: Sequence[Piece]) -> int:
    return sum(len(stimulus.image) for piece in batch for stimulus in piece.stimuli)
