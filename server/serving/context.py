"""Everything that a running server owns, opened together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from server.errors import NotReady
from server.serving.access import Access
from server.serving.batcher import Batcher
from server.serving.decode_pool import DecodePool
from server.serving.repository import Repository, load_engine
from server.serving.shutdown import Shutdown
from server.serving.telemetry.metrics import Metrics
from server.serving.telemetry.statistics import Statistics
from server.settings import Settings

if TYPE_CHECKING:
    from server.inference.engine import Engine, Stimulus

__all__ = ["Context"]


@dataclass(frozen=True)
class Context:
    """What the routes stand on."""

    settings: Settings
    access: Access
    repository: Repository
    decode_pool: DecodePool
    shutdown: Shutdown
    batcher: Batcher
    metrics: Metrics
    statistics: Statistics

    @classmethod
    def open(cls, settings: Settings, load: Callable[[Path, Settings], Engine] = load_engine) -> Self:
        """Makes them; nothing is loaded and nothing runs before the repository loads and the batcher starts.

        Args:
            load: makes a warm engine of a bundle.
        """
        metrics, statistics = Metrics(), Statistics()

        def ran(engine: Engine, stimuli: Sequence[Stimulus], seconds: float) -> None:
            statistics.ran(engine, stimuli, seconds)
            for stage, of_stage in engine.stages.seconds.items():
                metrics.stage_seconds.labels(stage).observe(of_stage)

        batcher = Batcher(max_batch=settings.max_batch, max_queue=settings.max_queue, metrics=metrics, ran=ran)
        repository, drain = Repository(settings, metrics, load), Shutdown(settings.drain, metrics)
        return cls(settings, Access(settings), repository, DecodePool(), drain, batcher, metrics, statistics)

    def check_ready(self) -> None:
        """Passes when every question can be answered.

        Raises:
            NotReady: with the reason.
        """
        if self.access.problem is not None:
            raise NotReady("the server answers nobody", hint=self.access.problem, retry_after=30)
        self.repository.check_ready()
        self.shutdown.check()
        self.batcher.check()

    def admit(self, deadline: float) -> None:
        """Passes if who comes now can be answered in time, as far as is known.

        Raises:
            Busy: he cannot; `retry_after` says when.
        """
        self.batcher.admit(deadline=deadline - self.decode_pool.seconds_ahead)
