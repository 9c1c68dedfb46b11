"""The batcher: requests that wait while the engine is busy share its next run. An idle engine never waits.

One worker thread runs the engine. A run holds images for one engine (one bundle), of any of its mice. A request larger
than a run is split and returns to the end of the queue after each piece, so that small requests take turns with it. An
image that one request shows to several mice counts once per mouse and stays in one run with all of them. A request that
cannot be answered before its deadline is refused on arrival. Work whose pieces cannot be batched with others, such as
gradients, waits in the same queue and runs alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from server.errors import Busy, NotReady, out_of_time, too_busy
from server.serving.telemetry.metrics import Metrics
from server.serving.telemetry.statistics import Timing

if TYPE_CHECKING:
    from server.inference.engine import Engine
    from server.inference.stimulus import Stimulus

__all__ = ["PREDICTION", "Batcher", "Work"]

logger = logging.getLogger("bentoml.v1t")


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
class _Job:
    """A request in the queue, and the results of its pieces so far."""

    work: Work
    engine: Engine
    stimuli: Sequence[Stimulus]  # one for each mouse that is shown the images
    done: asyncio.Future[list[Any]]
    arrived: float
    deadline: float
    timing: Timing
    computed_before: int  # images that the batcher had computed, for any request, when this one arrived
    taken: int = 0  # images handed to a run
    parts: list[Any] = field(default_factory=list)

    @property
    def n_mice(self) -> int:
        return len(self.stimuli)

    @property
    def left(self) -> int:
        return len(self.stimuli[0].image) - self.taken

    def take(self, n: int) -> _Piece:
        """The next n images; for several mice image by image, so that the mice can share a pass of the core."""
        images = slice(self.taken, self.taken + n)
        self.taken += n
        if self.n_mice == 1:
            whole = n == len(self.stimuli[0].image)
            return _Piece(self, images, [self.stimuli[0] if whole else self.stimuli[0][images]])
        return _Piece(self, images, [one[i : i + 1] for i in range(images.start, images.stop) for one in self.stimuli])

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
class _Piece:
    """The part of a job that goes into one run."""

    job: _Job
    images: slice
    stimuli: list[Stimulus]


def _join(parts: list[Any]) -> Any:
    """One named tuple of arrays from those of consecutive pieces."""
    return parts[0] if len(parts) == 1 else type(parts[0])(*map(np.concatenate, zip(*parts, strict=True)))


class Batcher:
    """Queues requests for the engines of this process.

    Args:
        max_batch: images in one run.
        max_queue: images that may wait; a request that would exceed it is refused with `Busy`.
        on_run: called in the worker thread after every batched run, with the engine, its stimuli and the seconds.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        max_queue: int,
        metrics: Metrics,
        on_run: Callable[[Engine, Sequence[Stimulus], float], None] = lambda *_: None,
    ) -> None:
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._metrics = metrics
        self._on_run = on_run
        self._queue: deque[_Job] = deque()
        self._waiting: Counter[str] = Counter()  # images, by name of work
        self._cost: dict[str, float] = {}  # seconds per image, by name of work: running means
        self._computed = 0  # images since the start
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._task: asyncio.Task[None] | None = None
        self._in_run: list[_Job] | None = None
        self._run_ends = 0.0  # when the current run does, estimated
        self._failure: str | None = None

    def start(self) -> None:
        """Starts to serve the queue, on the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._serve(), name="batcher")

    @property
    def alive(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def running(self) -> object | None:
        """Identifies the current run: a new object for every run, None between runs."""
        return self._in_run

    def fail_pending(self, reason: str) -> None:
        """Fails all pending requests with `NotReady`, and refuses new ones from now on."""
        self._failure = reason
        for job in [*self._queue, *(self._in_run or ())]:
            job.add(self._not_ready(reason))

    def check(self) -> None:
        """Raises NotReady, with the reason, unless requests are served."""
        if self._failure is not None:
            raise self._not_ready(self._failure)
        if not self.alive:
            raise NotReady("the batcher has stopped", hint="Restart the server; its log says why.", retry_after=30)

    @staticmethod
    def _not_ready(reason: str) -> NotReady:
        return NotReady(reason, hint="Try again: another server may be starting.", retry_after=5)

    async def close(self) -> None:
        """Stops after the current run and fails the requests that are still queued."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        while self._queue:
            self._queue.popleft().add(NotReady("the server is shutting down", retry_after=5))
        self._waiting.clear()
        self._metrics.queue_images.set(0)
        await asyncio.to_thread(self._thread.shutdown)

    async def compute(
        self,
        engine: Engine,
        stimuli: Sequence[Stimulus],
        work: Work = PREDICTION,
        *,
        deadline: float = math.inf,
        timing: Timing | None = None,
    ) -> list[Any]:
        """Queues a request and waits for its results. Cancelling it removes it from the queue at once.

        Args:
            stimuli: one per mouse, each of as many images; those of equal images can share a pass of the core.
            work: what to compute of them; `PREDICTION` gives a `Prediction` for each.
            deadline: on the clock of `time.perf_counter`; a request that is still queued by then never runs.
            timing: records the seconds spent queued and computing.

        Returns:
            A named tuple of arrays for each stimulus.

        Raises:
            Busy: the queue is full, or too long for the deadline; `retry_after` estimates when it has drained.
            DeadlineExceeded: the deadline passed first.
        """
        self.admit(sum(len(stimulus.image) for stimulus in stimuli), deadline)
        loop = asyncio.get_running_loop()
        done, now = loop.create_future(), time.perf_counter()
        job = _Job(work, engine, stimuli, done, now, deadline, timing or Timing(), self._computed)
        self._queue.append(job)
        self._count(job, job.left)
        self._arrived.set()
        time_left = deadline - now
        # A little early, so that the refusal itself is in time.
        timer = loop.call_later(time_left - min(0.05, time_left / 20), self._expire, job) if time_left < 1e6 else None
        try:
            results: list[Any] = await done
            return results
        finally:
            if timer is not None:
                timer.cancel()
            self._remove(job)

    def admit(self, n_images: int = 1, deadline: float = math.inf) -> None:
        """Raises Busy, with `retry_after`, if n images do not fit into the queue or would miss the deadline."""
        if self._failure is not None:
            self.check()
        waiting = self._waiting.total()
        seconds = sum(n * self._cost.get(name, 0.0) for name, n in self._waiting.items())  # estimated from past runs
        if self._in_run is not None:
            seconds += max(0.0, self._run_ends - time.perf_counter())
        retry_after = min(max(1, math.ceil(seconds)), 60)
        if waiting + n_images > self._max_queue:
            raise Busy(
                "the queue is full",
                got=f"{n_images} image{'s'[: n_images > 1]}, with {waiting} waiting",
                expected=f"at most {self._max_queue} waiting",
                hint="Try again later, or send fewer images at a time.",
                retry_after=retry_after,
            )
        if seconds > (time_left := max(0.0, deadline - time.perf_counter())):
            raise Busy(
                "the queue is longer than the request's time",
                got=f"about {seconds:.1f} s of work waiting, and {time_left:.1f} s left",
                hint="Try again later, or allow more time.",
                retry_after=retry_after,
            )

    def _remove(self, job: _Job) -> None:
        """Drops what is left of a job that was cancelled, failed or expired."""
        if job.left:
            self._count(job, -job.left)
            job.taken += job.left
            with contextlib.suppress(ValueError):
                self._queue.remove(job)

    def _expire(self, job: _Job) -> None:
        """Fails a job at its deadline: as overload (503) if other requests were computed before it, else as late."""
        allowed = float(f"{job.timing.reading + job.deadline - job.arrived:.2g}")
        waits = self._in_run is not None and all(other is not job for other in self._in_run)  # for another's run
        overtaken = self._computed - job.computed_before > job.taken * job.n_mice
        job.add(too_busy(allowed) if waits or overtaken else out_of_time(allowed))
        self._remove(job)

    def _count(self, job: _Job, images: int) -> None:
        self._waiting[job.work.name] += images * job.n_mice
        self._metrics.queue_images.set(self._waiting.total())

    async def _serve(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while batch := self._next_batch():
                await self._run_batch(batch)
                del batch  # an idle batcher keeps no engine in memory
                await asyncio.sleep(0)  # let answered and newly arrived requests run first

    async def _run_batch(self, batch: list[_Piece]) -> None:
        start = time.perf_counter()
        self._in_run = [piece.job for piece in batch]
        self._run_ends = start + _count_images(batch) * self._cost.get(batch[0].job.work.name, 0.0)
        results = await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, batch)
        self._in_run = None
        seconds = time.perf_counter() - start
        self._measure(batch, seconds)
        for piece, parts in zip(batch, results, strict=True):
            piece.job.timing.computing += seconds
            piece.job.add(parts)
            if isinstance(parts, Exception):
                self._remove(piece.job)

    def _measure(self, batch: Sequence[_Piece], seconds: float) -> None:
        """Updates the running mean of the cost of an image."""
        name, n_images = batch[0].job.work.name, _count_images(batch)
        cost = self._cost.get(name, seconds / n_images)
        self._cost[name] = cost + 0.2 * (seconds / n_images - cost)
        self._computed += n_images

    def _next_batch(self) -> list[_Piece]:
        """Takes up to max_batch images off the queue that can run with the job at its head."""
        batch: list[_Piece] = []
        space, now = self._max_batch, time.perf_counter()
        skipped: list[_Job] = []  # of another engine or work, or of too many mice: they keep their places
        split: list[_Job] = []  # with images left: they move to the end
        while self._queue and space > 0:
            job = self._queue.popleft()
            if job.deadline <= now:
                self._expire(job)
                continue
            if batch:
                first = batch[0].job
                if job.work is not first.work or job.engine is not first.engine or job.n_mice > space:
                    skipped.append(job)
                    continue
            if job.taken == 0:
                job.timing.queued = now - job.arrived
                self._metrics.queue_seconds.observe(job.timing.queued)
            n = min(job.work.max_images or max(1, space // job.n_mice), job.left)
            batch.append(job.take(n))
            self._count(job, -n)
            space -= n * job.n_mice
            if job.left:
                split.append(job)
            if not job.work.is_batched:
                break
        self._queue.extendleft(reversed(skipped))
        self._queue.extend(split)
        return batch

    # In the worker thread

    def _compute(self, batch: Sequence[_Piece]) -> list[Sequence[Any] | Exception]:
        """The results of each piece. If the run fails, each piece runs alone, so that only the faulty one fails."""
        try:
            results = iter(self._timed_run(batch))
            return [list(islice(results, len(piece.stimuli))) for piece in batch]
        except Exception as error:
            if len(batch) == 1:
                return [error]
            logger.warning("a run of %d requests failed and is repeated one by one: %s", len(batch), error)
        return [result for piece in batch for result in self._compute([piece])]

    def _timed_run(self, batch: Sequence[_Piece]) -> Sequence[Any]:
        job, stimuli = batch[0].job, [stimulus for piece in batch for stimulus in piece.stimuli]
        if not job.work.is_batched:
            with self._metrics.work_seconds.labels(job.work.name).time():
                return job.work.run(job.engine, stimuli, batch[0].images)
        start = time.perf_counter()
        results = job.work.run(job.engine, stimuli, batch[0].images)
        seconds = time.perf_counter() - start
        self._metrics.batch_images.observe(_count_images(batch))
        self._metrics.batch_requests.observe(len(batch))
        self._metrics.compute_seconds.observe(seconds)
        self._on_run(job.engine, stimuli, seconds)
        return results


def _count_images(batch: Sequence[_Piece]) -> int:
    return sum(len(stimulus.image) for piece in batch for stimulus in piece.stimuli)
