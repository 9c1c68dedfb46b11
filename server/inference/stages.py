"""Where the time of the engine's last call went, stage by stage."""

from __future__ import annotations

import time

__all__ = ["STAGES", "Stages"]

STAGES = ("stem", "core", "readout", "ensemble")


class Stages:
    """A clock that is asked after each stage.

    Attributes:
        seconds: of each stage, since `begin`. On a GPU a stage may end before its work does, at the next one's cost.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._last = 0.0

    def begin(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._last = time.perf_counter()

    def end_of(self, stage: str) -> None:
        """Counts what has passed since the last call for this stage."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now
