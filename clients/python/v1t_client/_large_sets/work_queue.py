"""Tasks for several workers of unequal speed: each takes a task when it is free, and loses those it cannot do."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from v1t_client._errors import ConnectionFailed, DeadlineExceeded, ServerError, TimedOut

__all__ = ["WorkQueue"]

_LONGEST_PAUSE = 30.0  # seconds between two tasks of a worker that fails
_FIRST_PATIENCE = 10.0  # seconds until a second worker takes a task, while it is not known how long one takes
_LEAST_PATIENCE = 1.0
_PATIENCE = 3.0  # times the median duration of a task

T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False)
class _Attempt:
    """A task that was given out."""

    index: int
    task: Any
    since: float
    workers: int = 1


@dataclass(eq=False)
class _Run:
    """The tasks of one call of `WorkQueue.run`."""

    fresh: Iterator[tuple[int, Any]]
    returned: deque[tuple[int, Any]] = field(default_factory=deque)  # by workers that failed
    given: dict[int, _Attempt] = field(default_factory=dict)
    results: queue.SimpleQueue[tuple[int, Any]] = field(default_factory=queue.SimpleQueue)
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    ahead: int = 0  # results that were not taken yet
    exhausted: bool = False
    failing: dict[int, Exception] = field(default_factory=dict)  # worker -> its last error
    given_up: set[int] = field(default_factory=set)
    error: Exception | None = None  # in reading a task


class WorkQueue(Generic[T, R]):
    """Threads that do tasks, one for each worker; they are kept from one run to the next.

    A task whose worker fails goes to another one. A worker that fails for a moment (no connection, timeout, busy)
    pauses and goes on; one that fails otherwise gets no task until the next run. A worker without work takes a task
    that another has had for long. The first result of a task counts, so that each task has one result, whoever died or
    hung.

    Args:
        workers: each does one task at a time.
    """

    def __init__(self, workers: Sequence[Callable[[T], R]]) -> None:
        self._changed = threading.Condition()
        self._one_run = threading.Lock()
        self._run: _Run | None = None
        self._closed = False
        self._n_workers = len(workers)
        for i, worker in enumerate(workers):
            # Daemons: an interrupted program does not wait for replies that nobody reads.
            threading.Thread(target=self._work, args=(i, worker), name=f"v1t-worker-{i}", daemon=True).start()

    def close(self) -> None:
        """Ends the threads; one that waits for a reply ends after it."""
        with self._changed:
            self._closed, self._run = True, None
            self._changed.notify_all()

    def run(self, tasks: Iterable[T]) -> Generator[tuple[int, R], None, None]:
        """Yields (number of the task, result) as results arrive. Tasks are read when a worker is free.

        Raises:
            The error of a worker, when all workers fail; or that of reading a task.
        """
        with self._one_run:
            run = _Run(iter(enumerate(tasks)))
            with self._changed:
                self._run = run
                self._changed.notify_all()
            try:
                while (result := self._next(run)) is not None:
                    yield result
            finally:
                with self._changed:
                    if self._run is run:
                        self._run = None

    def _next(self, run: _Run) -> tuple[int, R] | None:
        """The next result; None if there are no more."""
        while True:
            with self._changed:
                if run.error is not None:
                    raise run.error
                if run.exhausted and not run.given and not run.returned and not run.ahead:
                    return None
                if len(run.failing) == self._n_workers and not run.ahead:
                    raise next(iter(run.failing.values()))
            with suppress(queue.Empty):
                result = run.results.get(timeout=0.1)
                with self._changed:
                    run.ahead -= 1
                    self._changed.notify_all()
                return result

    def _work(self, me: int, worker: Callable[[T], R]) -> None:
        failures = 0
        while (taken := self._take(me)) is not None:
            run, attempt = taken
            started = time.monotonic()
            try:
                result = worker(attempt.task)
            except Exception as error:
                self._failed(me, run, attempt, error)
                if _is_temporary(error):
                    failures += 1
                    self._pause(min(_LONGEST_PAUSE, 2.0 ** (failures - 1)))
            else:
                failures = 0
                self._succeeded(me, run, attempt, result, time.monotonic() - started)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        with self._changed:
            while not self._closed and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)

    def _take(self, me: int) -> tuple[_Run, _Attempt] | None:
        """Waits for a task; None when the queue is closed."""
        with self._changed:
            while not self._closed:
                if (run := self._run) is not None and (attempt := self._task_of(run, me)) is not None:
                    return run, attempt
                # Time also makes tasks: those that another worker has had for long.
                self._changed.wait(0.2 if self._run is not None and self._run.given else None)
        return None

    def _task_of(self, run: _Run, me: int) -> _Attempt | None:
        if me in run.given_up or run.error is not None or run.ahead > 2 * self._n_workers:
            return None  # the last: results are taken more slowly than they are made
        now = time.monotonic()
        if run.returned:
            index, task = run.returned.popleft()
        elif not run.exhausted:
            try:
                index, task = next(run.fresh)
            except StopIteration:
                run.exhausted = True
                return self._task_of(run, me)
            except Exception as error:  # in reading the task
                run.error = error
                return None
        else:
            patience = _FIRST_PATIENCE
            if run.durations:
                patience = max(_LEAST_PATIENCE, _PATIENCE * sorted(run.durations)[len(run.durations) // 2])
            late = [a for a in run.given.values() if a.workers == 1 and now - a.since > patience]
            if not late:
                return None
            oldest = min(late, key=lambda attempt: attempt.since)
            oldest.workers += 1
            return oldest
        run.given[index] = _Attempt(index, task, now)
        return run.given[index]

    def _succeeded(self, me: int, run: _Run, attempt: _Attempt, result: R, seconds: float) -> None:
        with self._changed:
            run.failing.pop(me, None)
            run.durations.append(seconds)
            if run.given.pop(attempt.index, None) is not None:  # else another worker was faster
                run.ahead += 1
                run.results.put((attempt.index, result))
            self._changed.notify_all()

    def _failed(self, me: int, run: _Run, attempt: _Attempt, error: Exception) -> None:
        with self._changed:
            run.failing[me] = error
            if not _is_temporary(error):
                run.given_up.add(me)
            attempt.workers -= 1
            if attempt.workers == 0 and run.given.pop(attempt.index, None) is not None:
                run.returned.append((attempt.index, attempt.task))
            self._changed.notify_all()


def _is_temporary(error: Exception) -> bool:
    if isinstance(error, ServerError):
        return error.status == 429 or error.status >= 500
    return isinstance(error, (ConnectionFailed, TimedOut, DeadlineExceeded))
