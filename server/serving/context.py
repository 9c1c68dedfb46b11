"""Everything that a running server owns, opened together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from server.errors import NotReady
from server.serving.access import Access
from server.serving.batcher import Batcher
from server.serving.decode_pool import DecodePool
from server.serving.jobs import Priority
from server.serving.limits.concurrency_limiter import ConcurrencyLimiter
from server.serving.limits.connections import Connections
from server.serving.limits.memory_budget import MemoryBudget, default_budget
from server.serving.limits.origins import Origins
from server.serving.loading import load_engine
from server.serving.repository import Repository
from server.serving.shutdown import Shutdown
from server.serving.telemetry.metrics import Metrics
from server.serving.telemetry.statistics import Statistics
from server.settings import Settings

if TYPE_CHECKING:
    from server.inference.engine import Engine, Stimulus

__all__ = ["Context"]


@dataclass(frozen=True)
class Context:
    """What the endpoints and the middleware work with."""

    settings: Settings
    access: Access
    connections: Connections
    limiter: ConcurrencyLimiter
    memory: MemoryBudget
    origins: Origins
    repository: Repository
    decode_pool: DecodePool
    encoders: asyncio.Semaphore  # threads that encode large replies
    shutdown: Shutdown
    batcher: Batcher
    metrics: Metrics
    statistics: Statistics

    @classmethod
    def open(cls, settings: Settings, load: Callable[[Path, Settings], Engine] = load_engine) -> Self:
        """Creates all parts. No bundle is loaded before `repository.load`, and nothing runs before `batcher.start`.

        Args:
            load: makes an engine of a bundle.
        """
        metrics, statistics = Metrics(), Statistics()

        memory = settings.memory or default_budget()
        access = Access(settings)
        metrics.key_files_refused.set_function(lambda: len(access.key_problems))

        def on_run(engine: Engine, stimuli: Sequence[Stimulus], seconds: float) -> None:
            statistics.ran(engine, stimuli, seconds)
            for stage, stage_seconds in engine.stages.seconds.items():
                metrics.stage_seconds.labels(stage).observe(stage_seconds)

        return cls(
            settings=settings,
            access=access,
            connections=Connections(memory, metrics),
            limiter=ConcurrencyLimiter(settings.max_concurrent),
            memory=MemoryBudget(memory, metrics),
            origins=Origins(settings),
            repository=Repository(settings, metrics, load),
            decode_pool=DecodePool(),
            encoders=asyncio.Semaphore(2),
            shutdown=Shutdown(settings.drain, metrics),
            batcher=Batcher(max_batch=settings.max_batch, max_queue=settings.max_queue, metrics=metrics, on_run=on_run),
            metrics=metrics,
            statistics=statistics,
        )

    def check_ready(self) -> None:
        """Raises NotReady, with the reason, unless requests can be answered."""
        if self.access.problem is not None:
            raise NotReady("the server refuses all requests", hint=self.access.problem, retry_after=30)
        self.repository.check_ready()
        self.shutdown.check()
        self.batcher.check()
        self.connections.check()

    def admit(self, deadline: float, priority: Priority = "interactive") -> None:
        """Raises Busy, with `retry_after`, if the estimated wait exceeds the request's deadline."""
        self.batcher.admit(deadline=deadline - self.decode_pool.estimated_wait, priority=priority)
