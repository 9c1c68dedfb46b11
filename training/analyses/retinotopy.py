"""Retinotopy of the readout (paper, A.8): where each neuron looks, against its position in cortex.

A neuron's readout position `mu` is in [-1, 1] of the feature map, x right and y down. Cortex and image are related by
an unknown rotation, reflection and stretch. So the correlation with cortex is that of each axis of `mu` with its best
linear prediction from the cortical x and y (multiple correlation). A position network (`readout.position: network`)
gives a smooth map by construction: only the truth of a simulated mouse shows whether the map is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.checkpoints.ensemble import Ensemble
from training.data.layout import TRUTH
from training.data.recordings import Recording
from training.errors import ScoringError
from training.figures import PAGE, color_of_position, styled
from training.metrics import single_trial_correlation, split_half_reliability
from training.simulation.cortex import load_cortex

__all__ = [
    "RELIABLE",
    "Retinotopy",
    "cortical_correlation",
    "draw",
    "notes",
    "readout_positions",
    "retinotopy",
    "true_centers",
]

RELIABLE = 0.5  # split-half reliability: the image explains at least half of the variance of the mean response
LEAST = 4  # neurons: any three points lie on a plane
INNER = (2, 98)  # percentiles of the positions; the colours span the range between them


@dataclass(frozen=True, eq=False)
class Retinotopy:
    """Readout positions of one mouse.

    Attributes:
        positions: (N, 2) mean of `mu` over members.
        coordinates: (N, 2) cortical x and y [um].
        reliable: (N,) bool; all True if reliability is not known.
        with_cortex: (2,) for x and y, the multiple correlation of reliable neurons' positions with cortex.
        centers: (N, 2) true receptive field centres [px of the recording's images] of a simulated mouse, or None.
        with_truth: (2,) for x and y, the correlation of reliable neurons' positions with `centers`, or None.
        reliability_known: False if test responses are withheld or no image was repeated.

    Correlations are NaN if fewer than 4 neurons are reliable.
    """

    mouse_id: str
    positions: np.ndarray
    coordinates: np.ndarray
    reliable: np.ndarray
    with_cortex: np.ndarray
    centers: np.ndarray | None
    with_truth: np.ndarray | None
    reliability_known: bool = True

    def row(self) -> dict[str, Any]:
        """A row of the table."""
        row: dict[str, Any] = {"mouse": self.mouse_id, "neurons": len(self.positions)}
        row["reliable"] = int(self.reliable.sum()) if self.reliability_known else None
        row |= {f"with_cortex_{axis}": float(r) for axis, r in zip("xy", self.with_cortex, strict=True)}
        if self.with_truth is not None:
            row |= {f"with_truth_{axis}": float(r) for axis, r in zip("xy", self.with_truth, strict=True)}
        return row


def retinotopy(ensemble: Ensemble, recording: Recording) -> Retinotopy:
    """Compares a mouse's readout positions with cortex and, for a simulated mouse, with the truth."""
    positions = readout_positions(ensemble, recording.mouse_id)
    coordinates = recording.neuron_coordinates[:, :2].astype(np.float64)
    known = _reliable(recording)
    reliable = np.ones(recording.n_neurons, bool) if known is None else known
    centers = true_centers(recording)
    truth = None if centers is None else _correlation(positions[reliable], centers[reliable])
    return Retinotopy(
        mouse_id=recording.mouse_id,
        positions=positions,
        coordinates=coordinates,
        reliable=reliable,
        with_cortex=cortical_correlation(positions[reliable], coordinates[reliable]),
        centers=centers,
        with_truth=truth,
        reliability_known=known is not None,
    )


def readout_positions(ensemble: Ensemble, mouse_id: str) -> np.ndarray:
    """(N, 2) each neuron's `mu`, as the mean over members."""
    with torch.no_grad():
        mu = torch.stack([member.twin.readout(mouse_id).mu for member in ensemble.members])  # (M, N, 2)
    return mu.double().mean(0).cpu().numpy()


def _correlation(positions: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(2,) correlation over neurons of positions (N, 2) in any units, for x and for y; 0 where either is constant."""
    return single_trial_correlation(positions, others) if len(positions) >= LEAST else np.full(2, np.nan)


def cortical_correlation(positions: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """(2,) multiple correlation of each axis of `positions` (N, 2) with its linear fit on `coordinates` (N, 2)."""
    if len(positions) < LEAST:
        return np.full(2, np.nan)
    design = np.column_stack([np.ones(len(coordinates)), coordinates - coordinates.mean(0)])
    fitted = design @ np.linalg.lstsq(design, positions, rcond=None)[0]
    return _correlation(fitted, positions)


def true_centers(recording: Recording) -> np.ndarray | None:
    """(N, 2) receptive field centres (x, y) [px] of a simulated mouse; None for a real one."""
    path = recording.path / TRUTH
    return load_cortex(path).center if recording.simulated and path.is_file() else None


def notes(ensemble: Ensemble) -> list[str]:
    """Sentences that a reader of the numbers needs."""
    notes = [
        f"Correlations are over neurons with a split-half reliability of {RELIABLE} or more on repeats, or over all "
        "neurons where reliability is not known (-)."
    ]
    if any(member.config.readout.position == "network" for member in ensemble.members):
        notes.append(
            "The position network gets the cortical coordinates: a smooth map, and so a correlation with cortex, "
            "arises by construction."
        )
    grids = [getattr(member.twin.core, "grid", None) for member in ensemble.members]
    patches = [
        getattr(getattr(member.twin.core, "tokenizer", None), "grid", grid)
        for member, grid in zip(ensemble.members, grids, strict=True)
    ]
    if grids != patches:
        notes.append(
            "Tokens are not arranged like patches (`token_grid: nearest_square`): mu is not a position in the image."
        )
    return notes


def _reliable(recording: Recording) -> np.ndarray | None:
    """(N,) bool; None if test responses are withheld or no image was shown twice."""
    try:
        trials = recording.scorable("test")
        reliability = split_half_reliability(recording.responses(trials.indices), trials.image_ids)
    except ScoringError:
        return None
    return reliability >= RELIABLE


def draw(results: Sequence[Retinotopy]) -> Figure:
    """A row per mouse: cortex coloured by readout position, the key to the colours, cortex coloured by the truth."""
    columns = 3 if any(result.centers is not None for result in results) else 2
    with styled():
        figure = Figure(figsize=(PAGE, PAGE / columns * len(results)))
        grid = figure.subplots(len(results), columns, squeeze=False)
        for row, result in zip(grid, results, strict=True):
            colors = _colors(result.positions, result.reliable)
            _scatter(row[0], result.coordinates, colors, result.reliable)
            r = result.with_cortex
            row[0].set_title(
                f"Mouse {result.mouse_id}: cortex, coloured by readout\nR = {r[0]:.2f} (x), {r[1]:.2f} (y)"
            )
            _label_cortex(row[0])
            _scatter(row[1], result.positions, colors, result.reliable)
            row[1].set_title("Readout positions\n(key to the colours)")
            row[1].set(xlabel="μ x [feature map, -1 to 1]", ylabel="μ y [feature map, -1 to 1]")
            row[1].invert_yaxis()  # y is down, as in the image
            row[1].set_aspect("equal", adjustable="datalim")
            if columns == 3 and result.centers is None:
                row[2].set_axis_off()
            elif result.centers is not None and result.with_truth is not None:
                r = result.with_truth
                _scatter(row[2], result.coordinates, _colors(result.centers, result.reliable), result.reliable)
                row[2].set_title(f"Cortex, coloured by the true centre\nr with μ = {r[0]:.2f} (x), {r[1]:.2f} (y)")
                _label_cortex(row[2])
    return figure


def _colors(positions: np.ndarray, reliable: np.ndarray) -> np.ndarray:
    """(N, 3) colours by position; they span most of the positions."""
    low, high = np.percentile(positions[reliable] if reliable.any() else positions, INNER, axis=0)
    u, v = ((positions - low) / np.where(high > low, high - low, 1)).T
    return color_of_position(u, v)


def _scatter(axes: Axes, places: np.ndarray, colors: np.ndarray, reliable: np.ndarray) -> None:
    size = float(np.clip(2000 / len(places), 2, 14))
    x, y = places[reliable].T
    axes.scatter(x, y, c=colors[reliable], s=size, linewidths=0, rasterized=True)


def _label_cortex(axes: Axes) -> None:
    axes.set(xlabel="cortex x [µm]", ylabel="cortex y [µm]")
    axes.set_aspect("equal", adjustable="datalim")
