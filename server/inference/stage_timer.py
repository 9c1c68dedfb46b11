"""Timing of the last engine call, per stage."""

from __future__ import annotations

import time

__all__ = ["STAGES", "StageTimer"]

STAGES = ("stem", "core", "readout", "ensemble")


class StageTimer:
    """Sums the time of each stage.

    Attributes:
        seconds: per stage, since `begin`. On a GPU, core and readout end when their work is queued, and the ensemble's
            stage waits for it.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Resets all stages and starts the first."""
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._last = time.perf_counter()

    def end(self, stage: str) -> None:
        """Adds the time since the last call to this stage."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now
