"""Accuracy by pupil dilation (paper, Figure A.4): the third of test trials with the largest pupil against the smallest.

Per neuron, the single-trial correlation over each third. The paper compares the means over neurons, as
gain = (large - small) / small. A simulated mouse's ceiling in each third shows how much of the gain is due to noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from training.checkpoints.ensemble import Ensemble
from training.data.layout import behavior_text
from training.data.recordings import Recording
from training.errors import RecordingError
from training.evaluation.evaluate import simulated_ceiling
from training.figures import COLORS, COLUMN, PAGE, styled, violin
from training.metrics import single_trial_correlation
from training.tables import mean_and_sd
from training.trainer.loop import predict_trials

__all__ = ["PupilThirds", "accuracy_by_pupil", "draw", "over_mice"]

DILATION = "pupil_dilation"
LEAST = 4  # trials in a third; a correlation over fewer is meaningless


@dataclass(frozen=True, eq=False)
class PupilThirds:
    """Accuracy of one mouse's twin with the smallest and with the largest pupils.

    Attributes:
        n_trials: number of trials in each third.
        bounds: largest dilation in the small third, smallest in the large one [eye-camera px].
        small, large: (N,) single-trial correlations.
        ceilings: (small, large), means over neurons of a simulated mouse's ceiling, or None.
    """

    mouse_id: str
    n_trials: int
    bounds: tuple[float, float]
    small: np.ndarray
    large: np.ndarray
    ceilings: tuple[float, float] | None

    @property
    def gain(self) -> float:
        """(large - small) / small, of the means over neurons [%]."""
        small = float(self.small.mean())
        return 100 * (float(self.large.mean()) - small) / small if small else float("nan")

    def row(self) -> dict[str, Any]:
        """A row of the table."""
        row = {
            "mouse": self.mouse_id,
            "trials_per_third": self.n_trials,
            "small_up_to_px": self.bounds[0],
            "large_from_px": self.bounds[1],
            "small": float(self.small.mean()),
            "large": float(self.large.mean()),
            "gain_percent": self.gain,
            "neurons_better_with_large": float((self.large > self.small).mean()),
        }
        if self.ceilings is not None:
            row |= dict(zip(("ceiling_small", "ceiling_large"), self.ceilings, strict=True))
        return row


def accuracy_by_pupil(ensemble: Ensemble, recording: Recording) -> PupilThirds:
    """Single-trial correlations in the test trials with the smallest and with the largest pupil.

    Raises:
        ScoringError: the test responses are withheld.
        RecordingError: the recording has no behaviour, or too few test trials.
    """
    trials = recording.scorable("test")
    names = [channel.name for channel in recording.behavior_channels]
    if not recording.has_behavior or DILATION not in names:
        raise RecordingError(
            f"mouse {recording.mouse_id!r} has no pupil dilation",
            got=behavior_text(recording.behavior_channels) if recording.has_behavior else "no behaviour",
            expected=f"a behaviour channel {DILATION}",
        )
    third = len(trials) // 3
    if third < LEAST:
        raise RecordingError(
            f"mouse {recording.mouse_id!r} has too few test trials for thirds", got=len(trials), expected=3 * LEAST
        )
    dilation = recording.batch(trials.indices).behavior[:, names.index(DILATION)]  # (T,)
    order = np.argsort(dilation, kind="stable")
    small, large = trials.indices[order[:third]], trials.indices[order[-third:]]
    correlations = []
    for name, indices in (("small pupil", small), ("large pupil", large)):
        predictions = predict_trials(ensemble, recording, indices, progress=f"mouse {recording.mouse_id}, {name}")
        correlations.append(single_trial_correlation(recording.responses(indices), predictions))
    ceilings = [ceiling for indices in (small, large) if (ceiling := simulated_ceiling(recording, indices)) is not None]
    return PupilThirds(
        mouse_id=recording.mouse_id,
        n_trials=third,
        bounds=(float(dilation[order[third - 1]]), float(dilation[order[-third]])),
        small=correlations[0],
        large=correlations[1],
        ceilings=(float(ceilings[0].mean()), float(ceilings[1].mean())) if ceilings else None,
    )


def over_mice(results: Sequence[PupilThirds]) -> dict[str, float]:
    """Mean and sd over mice of both thirds and of the gain."""
    rows = [result.row() for result in results]
    summary = {}
    for name in ("small", "large", "gain_percent"):
        summary[f"{name}_mean"], summary[f"{name}_sd"] = mean_and_sd([row[name] for row in rows])
    return summary


def draw(results: Sequence[PupilThirds]) -> Figure:
    """Each mouse's distributions of correlations, small pupils to the left, large to the right, and the gain above."""
    colors = {"low": COLORS[5], "high": COLORS[0]}
    with styled():
        figure = Figure(figsize=(COLUMN if len(results) <= 4 else PAGE, 2.6))
        axes = figure.subplots()
        for i, result in enumerate(results):
            _half(axes, i, result.small, "low", colors["low"])
            _half(axes, i, result.large, "high", colors["high"])
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.12 * (high - low))
        for i, result in enumerate(results):
            axes.text(i, high + 0.04 * (high - low), f"{result.gain:+.1f} %", ha="center", va="bottom")
        axes.set_xticks(range(len(results)), [result.mouse_id for result in results])
        axes.set_xlim(-0.7, len(results) - 0.3)
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.set(xlabel="mouse", ylabel="single-trial correlation")
        handles = [
            Patch(color=colors["low"], label="smallest third of pupils"),
            Patch(color=colors["high"], label="largest third"),
            Line2D([], [], color="0.15", linewidth=2.2, label="median (thin: quartiles) over neurons"),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def _half(axes: Axes, place: float, values: np.ndarray, side: str, color: str) -> None:
    """Half a violin, with its quartiles (thin) and its median (thick)."""
    sign = -1 if side == "low" else 1
    violin(axes, place, values, width=0.85, color=color, alpha=0.6, side=side)
    for value, width, length in zip(np.percentile(values, (25, 50, 75)), (1, 2.2, 1), (0.16, 0.22, 0.16), strict=True):
        axes.plot([place, place + sign * length], [value, value], color="0.15", linewidth=width)
