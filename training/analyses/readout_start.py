"""Where readouts started and where they ended, on the energy maps of the training trials.

The maps (`training.trainer.readout_start.energy_maps`) show where neurons look without a trained model. So they tell a
readout that has not found its receptive fields, also for a mouse whose true centres nobody knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.analyses.retinotopy import true_centers
from training.checkpoints.ensemble import Ensemble
from training.data.recordings import Recording
from training.figures import COLORS, PAGE, styled
from training.models.image_positions import map_positions, resting_positions
from training.trainer.readout_start.energy_maps import check_maps, energy_maps, peaks
from training.trainer.readout_start.start import load_start

__all__ = ["ReadoutStart", "draw", "notes", "readout_start"]

SHOWN = 6  # neurons of each mouse in the figure
MARKS: dict[str, dict[str, Any]] = {
    "start": {"marker": "o", "color": COLORS[0], "markerfacecolor": "none", "markersize": 5, "markeredgewidth": 1},
    "end": {"marker": "x", "color": COLORS[1], "markersize": 5, "markeredgewidth": 1.2},
    "true centre": {"marker": "+", "color": COLORS[2], "markersize": 6, "markeredgewidth": 1.2},
}


@dataclass(frozen=True, eq=False)
class ReadoutStart:
    """Readout positions of one mouse on its energy maps; positions are x and y in [-1, 1] of the feature map.

    Attributes:
        neuron_ids: (N,).
        pixels: pixels of the core's image in one unit of a position, x and y.
        maps: (N, rows, columns).
        clearness: (N,), and clear: (N,) bool, whether the peak is above chance.
        peaks, end: (N, 2) of the maps, and of the readout at the median gaze, as the mean over members.
        start: (N, 2), or None if no member started from the trials.
        truth: (N, 2), or None for a real mouse.
    """

    mouse_id: str
    neuron_ids: np.ndarray
    pixels: np.ndarray
    maps: np.ndarray
    clearness: np.ndarray
    clear: np.ndarray
    peaks: np.ndarray
    start: np.ndarray | None
    end: np.ndarray
    truth: np.ndarray | None

    def row(self) -> dict[str, Any]:
        """A row of the table; distances are medians over the clear neurons, in pixels of the core's image."""
        return {
            "mouse": self.mouse_id,
            "neurons": len(self.clear),
            "clear": int(self.clear.sum()),
            "start_to_end": self._apart(self.start, self.end),
            "start_to_peak": self._apart(self.start, self.peaks),
            "end_to_peak": self._apart(self.end, self.peaks),
            "start_to_truth": self._apart(self.start, self.truth),
            "end_to_truth": self._apart(self.end, self.truth),
        }

    def _apart(self, one: np.ndarray | None, other: np.ndarray | None) -> float | None:
        if one is None or other is None or not self.clear.any():
            return None
        return float(np.median(np.linalg.norm((one - other)[self.clear] * self.pixels, axis=1)))


def readout_start(ensemble: Ensemble, recording: Recording, checkpoints: Sequence[Path]) -> ReadoutStart:
    """Compares a mouse's readout positions with its energy maps, which are those of the first member's crop.

    Args:
        checkpoints: the folders of the members, beside which a run keeps where their readouts started.

    Raises:
        ConfigError: places of the feature map are not places in the image.
    """
    twin, mouse_id = ensemble.members[0].twin, recording.mouse_id
    check_maps(twin)
    found = energy_maps(twin, recording)
    starts = [start[mouse_id].positions for path in checkpoints if mouse_id in (start := load_start(path.parent))]
    ends = [resting_positions(member.twin, mouse_id) for member in ensemble.members]
    centers = true_centers(recording)
    assert twin.core.spacing is not None
    _, rows, columns = twin.core.output_shape
    return ReadoutStart(
        mouse_id=mouse_id,
        neuron_ids=recording.neuron_ids,
        pixels=np.array([columns - 1, rows - 1]) * twin.core.spacing.step / 2,
        maps=found.maps.cpu().numpy(),
        clearness=found.clearness.cpu().numpy(),
        clear=found.clear.cpu().numpy(),
        peaks=peaks(found.maps).cpu().numpy(),
        start=np.mean(starts, axis=0) if starts else None,
        end=torch.stack(ends).mean(0).cpu().numpy(),
        truth=None if centers is None else map_positions(twin, mouse_id, torch.from_numpy(centers).float()).numpy(),
    )


def notes(results: Sequence[ReadoutStart]) -> list[str]:
    """Sentences that a reader of the numbers needs."""
    said = [
        "clear: neurons whose energy map has a higher peak than 99 % of those of shuffled responses. Distances are "
        "medians over these neurons, in pixels of the core's image."
    ]
    if any(result.start is None for result in results):
        said.append("Where readouts started is kept only if training.readout_start was 'trials', and in the run.")
    return said


def draw(results: Sequence[ReadoutStart]) -> Figure:
    """A row of maps for each mouse, from the clearest neuron to the least clear one, with start, end and truth."""
    with styled():
        figure = Figure(figsize=(PAGE, 0.45 + 0.85 * len(results)))
        grid = figure.subplots(len(results), SHOWN, squeeze=False)
        for row, result in zip(grid, results, strict=True):
            order = np.argsort(-result.clearness, kind="stable")
            some = np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int))
            for axes in row[len(some) :]:
                axes.set_axis_off()
            for axes, neuron in zip(row, order[some], strict=False):
                _draw_map(axes, result, neuron)
            row[0].set_ylabel(f"mouse {result.mouse_id}")
        marks = {
            label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(marks.values(), marks.keys(), loc="outside upper center", ncols=len(marks))
    return figure


def _draw_map(axes: Axes, result: ReadoutStart, neuron: int) -> None:
    aspect = float(result.pixels[1] / result.pixels[0])
    axes.imshow(result.maps[neuron], cmap="Greys", extent=(-1, 1, 1, -1), aspect=aspect)
    for label, places in (("start", result.start), ("end", result.end), ("true centre", result.truth)):
        if places is not None:
            axes.plot(*places[neuron], linestyle="none", label=label, **MARKS[label])
    axes.set(xlim=(-1, 1), ylim=(1, -1), xticks=[], yticks=[])
    axes.set_title(f"neuron {result.neuron_ids[neuron]}\nclearness {result.clearness[neuron]:.2f}", fontsize=6)
    for spine in axes.spines.values():
        spine.set_visible(True)
