"""Who runs together: what waits when the engine frees up becomes its next run. An idle engine is never waited for.

One worker thread runs the engine. A run holds images of one engine (one bundle), of any of its mice. A request larger
than a run is split and goes back to the end of the queue after each piece, so that small ones take turns with it. An
image that one request shows to several mice counts once for each, and stays in one run with all of them.
What cannot be in time is refused when it comes, before it costs anything.
Work other than predictions, such as gradients, queues alike and runs by itself.
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
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from server.errors import Busy, NotReady, out_of_time, too_busy
from server.serving.telemetry.metrics import Metrics
from server.serving.telemetry.statistics import Timing

if TYPE_CHECKING:
    from server.inference.engine import Engine, Prediction, Stimulus

__all__ = ["Batcher", "Work"]

logger = logging.getLogger("bentoml.v1t")

_PREDICTION = "predict"  # the name of what is no `Work`


@dataclass(frozen=True, eq=False)
class Work:
    """What is computed of a stimulus, other than a prediction.

    Attributes:
        name: for the metrics.
        run: makes a named tuple of arrays, the images' axis first, of a piece of the stimulus; called in the worker
            thread, with where the piece lies in the whole.
        max_images: in one piece.
    """

    name: str
    run: Callable[[Stimulus, slice], Any]
    max_images: int


@dataclass(eq=False)
class _Job:
    """A request that waits, and what was computed of it so far."""

    engine: Engine
    stimuli: Sequence[Stimulus]  # one for each mouse that is shown the images
    done: asyncio.Future[Any]
    arrived: float
    deadline: float
    timing: Timing
    work: Work | None = None  # None: a prediction
    computed_before: int = 0  # images, of anybody, when it came
    taken: int = 0  # images that were handed to a run
    parts: list[Any] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return _PREDICTION if self.work is None else self.work.name

    @property
    def n_mice(self) -> int:
        return len(self.stimuli)

    @property
    def left(self) -> int:
        return len(self.stimuli[0].image) - self.taken

    def take(self, n: int) -> list[Stimulus]:
        """The next n images; of several mice image by image, which may then share a pass of the core."""
        start = self.taken
        self.taken += n
        if self.n_mice == 1:
            return [_piece(self.stimuli[0], slice(start, start + n))]
        return [_piece(stimulus, slice(i, i + 1)) for i in range(start, start + n) for stimulus in self.stimuli]

    def give(self, parts: Sequence[Any] | Exception) -> None:
        """Takes in what a run made of what was taken last."""
        if self.done.done():  # cancelled while it ran
            return
        if isinstance(parts, Exception):
            self.done.set_exception(parts)
            return
        self.parts += parts
        if self.left == 0:
            join = _join if self.work is None else _join_arrays
            try:
                self.done.set_result([join(self.parts[mouse :: self.n_mice]) for mouse in range(self.n_mice)])
            except Exception as error:  # whatever it is, it is this job's alone: the queue goes on
                self.done.set_exception(error)


_Taken = tuple[_Job, list["Stimulus"]]  # a job, and what a run takes of it


def _piece(stimulus: Stimulus, images: slice) -> Stimulus:
    if images == slice(0, len(stimulus.image)):
        return stimulus
    return replace(
        stimulus,
        image=stimulus.image[images],
        behavior=stimulus.behavior[images],
        pupil_center=stimulus.pupil_center[images],
    )


def _join(parts: list[Prediction]) -> Prediction:
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        response=np.concatenate([part.response for part in parts]),
        spread=np.concatenate([part.spread for part in parts]),
    )


def _join_arrays(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else type(parts[0])(*map(np.concatenate, zip(*parts, strict=True)))


class Batcher:
    """Queues requests for the engines of this process.

    Args:
        max_batch: images in one run.
        max_queue: images that may wait; what would exceed it is refused with `Busy`.
        ran: is told of every run, in the worker thread: the engine, what it was given, and the seconds it took.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        max_queue: int,
        metrics: Metrics,
        ran: Callable[[Engine, Sequence[Stimulus], float], None] = lambda *_: None,
    ) -> None:
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._metrics = metrics
        self._ran = ran
        self._queue: deque[_Job] = deque()
        self._waiting: Counter[str] = Counter()  # images, by kind of work
        self._cost: dict[str, float] = {}  # seconds per image, by kind of work: running means
        self._computed = 0  # images since the start
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._task: asyncio.Task[None] | None = None
        self._in_run: list[_Job] | None = None
        self._refusal: str | None = None

    def start(self) -> None:
        """Begins to serve the queue, on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._serve(), name="batcher")

    @property
    def alive(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def running(self) -> object | None:
        """What runs now, a new object for every run; None: nothing."""
        return self._in_run

    def fail_pending(self, reason: str) -> None:
        """From now on nobody is answered: who waits, in a run or before one, and who comes, is told the reason."""
        self._refusal = reason
        for job in [*self._queue, *(self._in_run or ())]:
            job.give(NotReady(reason, hint="Ask again: another server may be starting.", retry_after=5))

    def check(self) -> None:
        """Passes while requests are answered.

        Raises:
            NotReady: with the reason.
        """
        if self._refusal is not None:
            raise NotReady(self._refusal, hint="Ask again: another server may be starting.", retry_after=5)
        if not self.alive:
            raise NotReady("the batcher has stopped", hint="Restart the server; its log says why.", retry_after=30)

    async def close(self) -> None:
        """Stops after the run in progress; what still waits is told so."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        while self._queue:
            self._queue.popleft().give(NotReady("the server is shutting down", retry_after=5))
        self._waiting.clear()
        self._metrics.queue_images.set(0)
        await asyncio.to_thread(self._thread.shutdown)

    async def predict(
        self, engine: Engine, stimulus: Stimulus, *, deadline: float = math.inf, timing: Timing | None = None
    ) -> Prediction:
        """Waits for its turn and the answer; whoever is cancelled leaves the queue at once.

        Args:
            deadline: on the clock of `time.perf_counter`; what is still queued then never runs.

            timing: takes in how long it was queued and computed.

        Raises:
            Busy: the queue is full; `retry_after` says when it should have drained.
            DeadlineExceeded: the deadline came first.
        """
        return (await self.predict_mice(engine, [stimulus], deadline=deadline, timing=timing))[0]

    async def predict_mice(
        self,
        engine: Engine,
        stimuli: Sequence[Stimulus],
        *,
        deadline: float = math.inf,
        timing: Timing | None = None,
    ) -> list[Prediction]:
        """Waits for the answers of several mice to as many images each; the same ones, where they may share a pass.

        See `predict` for the rest.
        """
        answers = await self._wait(engine, stimuli, None, deadline, timing or Timing())
        return cast("list[Prediction]", answers)

    async def compute(
        self,
        engine: Engine,
        stimulus: Stimulus,
        work: Work,
        *,
        deadline: float = math.inf,
        timing: Timing | None = None,
    ) -> Any:
        """Waits in the same queue for what `work` makes of the stimulus: a named tuple, its arrays joined.

        See `predict` for the rest.
        """
        return (await self._wait(engine, [stimulus], work, deadline, timing or Timing()))[0]

    async def _wait(
        self, engine: Engine, stimuli: Sequence[Stimulus], work: Work | None, deadline: float, timing: Timing
    ) -> list[Any]:
        n_images = sum(len(stimulus.image) for stimulus in stimuli)
        self.admit(n_images, deadline)
        loop = asyncio.get_running_loop()
        job = _Job(engine, stimuli, loop.create_future(), time.perf_counter(), deadline, timing, work, self._computed)
        self._queue.append(job)
        self._count(job, job.left)
        self._arrived.set()
        time_left = deadline - job.arrived
        # A little early, so that the refusal itself is in time.
        timer = loop.call_later(time_left - min(0.05, time_left / 20), self._expire, job) if time_left < 1e6 else None
        try:
            answers: list[Any] = await job.done
            return answers
        finally:
            if timer is not None:
                timer.cancel()
            self._forget(job)

    def admit(self, n_images: int = 1, deadline: float = math.inf) -> None:
        """Passes if so many images may queue, and what waits before them leaves them time.

        Raises:
            Busy: not now; `retry_after` says when.
        """
        if self._refusal is not None:
            self.check()
        waiting = self._waiting.total()
        ahead = sum(n * self._cost.get(kind, 0.0) for kind, n in self._waiting.items())  # seconds, as far as measured
        retry_after = min(max(1, math.ceil(ahead)), 60)
        if waiting + n_images > self._max_queue:
            raise Busy(
                "the queue is full",
                got=f"{n_images} images, with {waiting} waiting",
                expected=f"at most {self._max_queue} waiting",
                hint="Ask again later, or send fewer images at a time.",
                retry_after=retry_after,
            )
        if ahead > (time_left := max(0.0, deadline - time.perf_counter())):
            raise Busy(
                "the queue is longer than the request's time",
                got=f"about {ahead:.1f} s of work waiting, and {time_left:.1f} s left",
                hint="Ask again later, or allow more time.",
                retry_after=retry_after,
            )

    def _forget(self, job: _Job) -> None:
        """Drops what is left of a job that was cancelled or failed, before it costs anything."""
        if job.left:
            self._count(job, -job.left)
            job.taken += job.left
            with contextlib.suppress(ValueError):
                self._queue.remove(job)

    def _expire(self, job: _Job) -> None:
        """Drops a job whose deadline has passed: nobody waits for it any more."""
        allowed = float(f"{job.timing.reading + job.deadline - job.arrived:.2g}")
        waits = self._in_run is not None and all(other is not job for other in self._in_run)  # for a run of others
        overtaken = self._computed - job.computed_before > job.taken * job.n_mice  # others' images ran meanwhile
        job.give(too_busy(allowed) if waits or overtaken else out_of_time(allowed))
        self._forget(job)

    def _count(self, job: _Job, images: int) -> None:
        self._waiting[job.kind] += images * job.n_mice
        self._metrics.queue_images.set(self._waiting.total())

    async def _serve(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while batch := self._next_batch():
                await self._answer(batch)
                del batch  # while nobody asks, no engine is kept from leaving memory
                await asyncio.sleep(0)  # let those who were answered, and those who just came, have a word

    async def _answer(self, batch: list[_Taken]) -> None:
        start = time.perf_counter()
        self._in_run = [job for job, _ in batch]
        parts = await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, batch)
        self._in_run = None
        seconds = time.perf_counter() - start
        self._measure(batch, seconds)
        for (job, _), of_job in zip(batch, parts, strict=True):
            job.timing.computing += seconds
            job.give(of_job)
            if isinstance(of_job, Exception):
                self._forget(job)

    def _measure(self, batch: Sequence[_Taken], seconds: float) -> None:
        """Keeps the running mean of what an image of this kind of work takes."""
        kind, n_images = batch[0][0].kind, sum(len(stimulus.image) for _, stimuli in batch for stimulus in stimuli)
        cost = self._cost.get(kind, seconds / n_images)
        self._cost[kind] = cost + 0.2 * (seconds / n_images - cost)
        self._computed += n_images

    def _next_batch(self) -> list[_Taken]:
        """Takes up to max_batch images off the queue, for the engine of the job at its head; or a piece of work."""
        batch: list[_Taken] = []
        room, now = self._max_batch, time.perf_counter()
        others: list[_Job] = []  # of other engines, other work, and too many mice: they keep their places
        split: list[_Job] = []  # with images left: to the end
        while self._queue and room > 0:
            job = self._queue.popleft()
            if job.deadline <= now:
                self._expire(job)
                continue
            if batch and (job.work is not None or job.engine is not batch[0][0].engine or job.n_mice > room):
                others.append(job)
                continue
            if job.taken == 0:
                job.timing.queued = now - job.arrived
                self._metrics.queue_seconds.observe(job.timing.queued)
            n = min(max(1, room // job.n_mice) if job.work is None else job.work.max_images, job.left)
            batch.append((job, job.take(n)))
            self._count(job, -n)
            room -= n * job.n_mice
            if job.left:
                split.append(job)
            if job.work is not None:
                break
        self._queue.extendleft(reversed(others))
        self._queue.extend(split)
        return batch

    # In the worker thread

    def _compute(self, batch: Sequence[_Taken]) -> list[Sequence[Any] | Exception]:
        job, stimuli = batch[0]
        if job.work is None:
            return self._run(job.engine, [stimuli for _, stimuli in batch])
        (stimulus,) = stimuli
        start = time.perf_counter()
        try:
            return [[job.work.run(stimulus, slice(job.taken - len(stimulus.image), job.taken))]]
        except Exception as error:
            return [error]
        finally:
            self._metrics.work_seconds.labels(job.work.name).observe(time.perf_counter() - start)

    def _run(self, engine: Engine, requests: Sequence[list[Stimulus]]) -> list[Sequence[Prediction] | Exception]:
        """One run for all; if it fails, one for each, so that an error reaches only whose it is."""
        try:
            predictions = iter(self._timed(engine, requests))
            return [list(islice(predictions, len(stimuli))) for stimuli in requests]
        except Exception as error:
            if len(requests) == 1:
                return [error]
            logger.warning("a run of %d requests failed and is repeated one by one: %s", len(requests), error)
        parts: list[Sequence[Prediction] | Exception] = []
        for stimuli in requests:
            parts += self._run(engine, [stimuli])
        return parts

    def _timed(self, engine: Engine, requests: Sequence[list[Stimulus]]) -> Sequence[Prediction]:
        stimuli = [stimulus for of_request in requests for stimulus in of_request]
        n_images = sum(len(stimulus.image) for stimulus in stimuli)
        start = time.perf_counter()
        predictions = engine.predict_many(stimuli)
        seconds = time.perf_counter() - start
        self._metrics.batch_images.observe(n_images)
        self._metrics.batch_requests.observe(len(requests))
        self._metrics.compute_seconds.observe(seconds)
        self._ran(engine, stimuli, seconds)
        return predictions
