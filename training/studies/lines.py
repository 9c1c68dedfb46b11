"""The lines of a study's table: the scores of one variant at one place of the axis, over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.studies.runner import RunScores, Scores
from training.tables import mean_and_sd

__all__ = ["Line", "lines_of"]


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        seeds: for each seed, mouse_id -> score -> mean over neurons.
        numbers: the seeds' numbers, by which lines are paired; by default 0, 1, ...
        failed: number of trainings that diverged.
    """

    label: str
    x: float | None
    seeds: tuple[Scores, ...]
    failed: int = 0
    numbers: tuple[int, ...] = ()

    def by_seed(self, name: str) -> dict[int, float]:
        """Seed -> mean over mice, of the seeds that have this score."""
        scores = zip(self.numbers or range(len(self.seeds)), self.values(name), strict=True)
        return {seed: score for seed, score in scores if np.isfinite(score)}

    def of_mouse(self, mouse_id: str, name: str) -> tuple[float, float]:
        """Mean and standard deviation over seeds for one mouse."""
        return mean_and_sd([seed.get(mouse_id, {}).get(name, float("nan")) for seed in self.seeds])

    def over_seeds(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation over seeds of the mean over mice; NaN if the score is unknown."""
        return mean_and_sd(self.values(name))

    def values(self, name: str) -> list[float]:
        """For each seed, the mean over mice."""
        return [mean_and_sd([mouse.get(name, float("nan")) for mouse in seed.values()])[0] for seed in self.seeds]


def lines_of(results: Sequence[RunScores]) -> list[Line]:
    """One line per variant and position on the axis, in the order of the study."""
    found: dict[tuple[str, float | None], dict[int, Scores]] = {}
    failed: dict[tuple[str, float | None], int] = {}
    for result in results:
        if not result.run.variant.shown:
            continue
        key = (result.run.variant.label, result.run.variant.x)
        seeds = found.setdefault(key, {})
        if result.failed is None:
            seeds.setdefault(result.run.seed, {}).update(result.scores)
        failed[key] = failed.get(key, 0) + (result.failed is not None)
    return [
        Line(label, x, tuple(seeds[seed] for seed in sorted(seeds)), failed[label, x], tuple(sorted(seeds)))
        for (label, x), seeds in found.items()
    ]
