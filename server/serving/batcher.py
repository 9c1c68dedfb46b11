"""The batcher: requests that wait while the engine is busy share its next run. An idle engine never waits.

One worker thread runs the engine. A run holds images for one engine (one bundle), of any of its mice. A request larger
than a run is split and returns to the end of the queue after each piece, so that small requests take turns with it. An
image that one request shows to several mice counts once per mouse and stays in one run with all of them. A request that
cannot be answered before its deadline is refused on arrival. Work whose pieces cannot be batched with others, such as
gradients, waits in the same queue and runs alone.

Bulk requests have a queue of their own. They run while no interactive request waits; while some do, every fourth run is
of bulk requests. For a while after an interactive request, these runs are short: the next one may come during them.
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
from itertools import islice
from typing import TYPE_CHECKING, Any

from server.errors import Busy, NotReady, out_of_time, too_busy
from server.serving.jobs import PREDICTION, Job, Piece, Priority, Work, count_images
from server.serving.telemetry.metrics import Metrics
from server.serving.telemetry.statistics import Timing

if TYPE_CHECKING:
    from server.inference.engine import Engine
    from server.inference.stimulus import Stimulus

__all__ = ["Batcher"]

logger = logging.getLogger("bentoml.v1t")

_AHEAD = 3  # runs of interactive requests between two of bulk requests, while both wait
_SHORT = 0.01  # seconds that a short run of bulk requests takes, as estimated; one image may take longer
_RECENT = 10.0  # seconds after an interactive request for which runs of bulk requests are short


class Batcher:
    """Queues requests for the engines of this process.

    Args:
        max_batch: images in one run.
        max_queue: images of one priority that may wait; a request that would exceed it is refused with `Busy`.
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
        self._queues: dict[Priority, deque[Job]] = {"interactive": deque(), "bulk": deque()}
        # Images, by name of work.
        self._waiting: dict[Priority, Counter[str]] = {"interactive": Counter(), "bulk": Counter()}
        metrics.queue_images.set_function(lambda: sum(waiting.total() for waiting in self._waiting.values()))
        self._ahead = 0  # runs of interactive requests since the last one of bulk requests
        self._interactive_at = -math.inf  # when the last interactive request arrived
        self._cost: dict[str, float] = {}  # seconds per image, by name of work: running means
        self._computed = 0  # images since the start
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._task: asyncio.Task[None] | None = None
        self._in_run: list[Job] | None = None
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
        for job in [*self._queued(), *(self._in_run or ())]:
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
        for job in self._queued():
            job.add(NotReady("the server is shutting down", retry_after=5))
        for priority, queue in self._queues.items():
            queue.clear()
            self._waiting[priority].clear()
        await asyncio.to_thread(self._thread.shutdown)

    async def compute(
        self,
        engine: Engine,
        stimuli: Sequence[Stimulus],
        work: Work = PREDICTION,
        *,
        deadline: float = math.inf,
        timing: Timing | None = None,
        priority: Priority = "interactive",
    ) -> list[Any]:
        """Queues a request and waits for its results. Cancelling it removes it from the queue at once.

        Args:
            stimuli: one per mouse, each of as many images; those of equal images can share a pass of the core.
            work: what to compute of them; `PREDICTION` gives a `Prediction` for each.
            deadline: on the clock of `time.perf_counter`; a request that is still queued by then never runs.
            timing: records the seconds spent queued and computing.
            priority: bulk: after the interactive requests, but for every fourth run.

        Returns:
            A named tuple of arrays for each stimulus.

        Raises:
            Busy: the queue is full, or too long for the deadline; `retry_after` estimates when it has drained.
            DeadlineExceeded: the deadline passed first.
        """
        self.admit(sum(len(stimulus.image) for stimulus in stimuli), deadline, priority)
        loop = asyncio.get_running_loop()
        done, now = loop.create_future(), time.perf_counter()
        job = Job(work, engine, stimuli, done, now, deadline, timing or Timing(), self._computed, priority)
        self._queues[priority].append(job)
        if priority == "interactive":
            self._interactive_at = now
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

    def admit(self, n_images: int = 1, deadline: float = math.inf, priority: Priority = "interactive") -> None:
        """Raises Busy, with `retry_after`, if n images do not fit into the queue or would miss the deadline."""
        if self._failure is not None:
            self.check()
        waiting = self._waiting[priority].total()
        seconds = self._seconds(priority)
        if priority == "bulk":
            seconds += self._seconds("interactive")
        elif (bulk := self._seconds("bulk")) > 0:
            seconds += min(bulk, _SHORT + seconds / _AHEAD)  # the runs of bulk requests in between
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

    def _queued(self) -> list[Job]:
        return [job for queue in self._queues.values() for job in queue]

    def _seconds(self, priority: Priority) -> float:
        """Seconds of work that wait, estimated from past runs."""
        return sum(n * self._cost.get(name, 0.0) for name, n in self._waiting[priority].items())

    def _remove(self, job: Job) -> None:
        """Drops what is left of a job that was cancelled, failed or expired."""
        if job.left:
            self._count(job, -job.left)
            job.taken += job.left
            with contextlib.suppress(ValueError):
                self._queues[job.priority].remove(job)

    def _expire(self, job: Job) -> None:
        """Fails a job at its deadline: as overload (503) if other requests were computed before it, else as late."""
        allowed = float(f"{job.timing.reading + job.deadline - job.arrived:.2g}")
        waits = self._in_run is not None and all(other is not job for other in self._in_run)  # for another's run
        overtaken = self._computed - job.computed_before > job.taken * job.n_mice
        job.add(too_busy(allowed) if waits or overtaken else out_of_time(allowed))
        self._remove(job)

    def _count(self, job: Job, images: int) -> None:
        self._waiting[job.priority][job.work.name] += images * job.n_mice

    async def _serve(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while batch := self._next_batch():
                await self._run_batch(batch)
                del batch  # an idle batcher keeps no engine in memory
                await asyncio.sleep(0)  # let answered and newly arrived requests run first

    async def _run_batch(self, batch: list[Piece]) -> None:
        start = time.perf_counter()
        self._in_run = [piece.job for piece in batch]
        self._run_ends = start + count_images(batch) * self._cost.get(batch[0].job.work.name, 0.0)
        results = await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, batch)
        self._in_run = None
        seconds = time.perf_counter() - start
        self._measure(batch, seconds)
        for piece, parts in zip(batch, results, strict=True):
            piece.job.timing.computing += seconds
            piece.job.add(parts)
            if isinstance(parts, Exception):
                self._remove(piece.job)

    def _measure(self, batch: Sequence[Piece], seconds: float) -> None:
        """Updates the running mean of the cost of an image."""
        name, n_images = batch[0].job.work.name, count_images(batch)
        cost = self._cost.get(name, seconds / n_images)
        self._cost[name] = cost + 0.2 * (seconds / n_images - cost)
        self._computed += n_images

    def _next_batch(self) -> list[Piece]:
        """The next run: of interactive requests, unless it is the turn of bulk requests, or only those wait."""
        order: list[Priority] = ["interactive", "bulk"]
        if self._ahead >= _AHEAD:
            order.reverse()
        for priority in order:
            if batch := self._take(self._queues[priority]):
                self._ahead = self._ahead + 1 if priority == "interactive" and self._queues["bulk"] else 0
                return batch
        return []

    def _run_size(self, job: Job) -> int:
        """Images in a run that begins with this job."""
        size = job.work.max_images or self._max_batch
        if job.priority == "bulk" and time.perf_counter() - self._interactive_at < _RECENT:
            cost = self._cost.get(job.work.name, 0.0)
            size = min(size, max(1, int(_SHORT / cost))) if cost else 1
        return size

    def _take(self, queue: deque[Job]) -> list[Piece]:
        """Takes images off a queue that can run with the job at its head."""
        batch: list[Piece] = []
        space, now = 1, time.perf_counter()
        skipped: list[Job] = []  # of another engine or work, or of too many mice: they keep their places
        split: list[Job] = []  # with images left: they move to the end
        while queue and space > 0:
            job = queue.popleft()
            if job.deadline <= now:
                self._expire(job)
                continue
            if not batch:
                space = self._run_size(job)
            if batch:
                first = batch[0].job
                if job.work is not first.work or job.engine is not first.engine or job.n_mice > space:
                    skipped.append(job)
                    continue
            if job.taken == 0:
                job.timing.queued = now - job.arrived
                self._metrics.queue_seconds.observe(job.timing.queued)
            n = min(max(1, space // job.n_mice), job.left)
            batch.append(job.take(n))
            self._count(job, -n)
            space -= n * job.n_mice
            if job.left:
                split.append(job)
            if not job.work.is_batched:
                break
        queue.extendleft(reversed(skipped))
        queue.extend(split)
        return batch

    # In the worker thread

    def _compute(self, batch: Sequence[Piece]) -> list[Sequence[Any] | Exception]:
        """The results of each piece. If the run fails, each piece runs alone, so that only the faulty one fails."""
        try:
            results = iter(self._timed_run(batch))
            return [list(islice(results, len(piece.stimuli))) for piece in batch]
        except Exception as error:
            if len(batch) == 1:
                return [error]
            logger.warning("a run of %d requests failed and is repeated one by one: %s", len(batch), error)
        return [result for piece in batch for result in self._compute([piece])]

    def _timed_run(self, batch: Sequence[Piece]) -> Sequence[Any]:
        job, stimuli = batch[0].job, [stimulus for piece in batch for stimulus in piece.stimuli]
        if not job.work.is_batched:
            with self._metrics.work_seconds.labels(job.work.name).time():
                return job.work.run(job.engine, stimuli, batch[0].images)
        start = time.perf_counter()
        results = job.work.run(job.engine, stimuli, batch[0].images)
        seconds = time.perf_counter() - start
        self._metrics.batch_images.observe(count_images(batch))
        self._metrics.batch_requests.observe(len(batch))
        self._metrics.compute_seconds.observe(seconds)
        self._on_run(job.engine, stimuli, seconds)
        return results
