"""Figures of attention: maps over images, ordered by gaze, and centers of mass against gaze."""

from __future__ import annotations

from typing import Any

import numpy as np

from v1t_client.insilico.framework.plotting import ACCENT, INK, axes_grid
from v1t_client.insilico.framework.result import Result

__all__ = ["figures_of"]


def figures_of(result: Result) -> dict[str, Any]:
    figures = {"overlays": _overlays(result)}
    if "correlation_x" in result.dataset:
        figures["gaze"] = _gaze(result)
    return figures


def _overlays(result: Result) -> Any:
    """Each map over its image, with its center of mass. Assumes that the core sees the whole image."""
    dataset = result.dataset
    H, W = dataset["shown_image"].shape[2:]
    figure, axes = axes_grid(dataset.sizes["nth"], columns=4, size=(2.2, 2.2 * H / W + 0.3))
    extent = (-0.5, W - 0.5, H - 0.5, -0.5)
    for k, axis in enumerate(axes):
        trial = int(dataset["shown"][k])
        attention = dataset["attention"][trial].values
        axis.imshow(dataset["shown_image"][k].values.mean(0), cmap="gray", extent=extent)
        share = attention / max(attention.max(), 1e-9)
        axis.imshow(share, cmap="autumn", alpha=0.8 * share, extent=extent, vmin=0, vmax=1)
        x, y = (dataset[f"center_{name}"][trial].item() for name in "xy")
        axis.plot(
            (x + 1) / 2 * W - 0.5,
            (y + 1) / 2 * H - 0.5,
            "+",
            color="deepskyblue",
            markersize=8,
            markeredgewidth=1.5,
        )
        name = dataset["image"].values[trial]
        title = f"trial {name}" if dataset["image"].dtype.kind == "i" else str(name)
        if "pupil_center_x" in dataset:
            gaze = [dataset[f"pupil_center_{name}"][trial].item() for name in "xy"]
            title += f", pupil ({gaze[0]:.3g}, {gaze[1]:.3g})"
        axis.set_title(title, fontsize=6, pad=2)
        axis.set_axis_off()
    text = "attention rollout, mean of members: red to yellow up to its own maximum; blue cross: its centre of mass"
    figure.suptitle(text, fontsize=6)
    return figure


def _gaze(result: Result) -> Any:
    dataset = result.dataset
    figure, axes = axes_grid(2, columns=2, size=(2.6, 2.4))
    for name, axis in zip("xy", axes, strict=True):
        pupil, center = dataset[f"pupil_center_{name}"].values, dataset[f"center_{name}"].values
        axis.plot(pupil, center, ".", color=INK, markersize=3, alpha=0.5)
        r, p = dataset[f"correlation_{name}"].item(), dataset[f"p_value_{name}"].item()
        if np.isfinite(r):
            ends = np.array([pupil.min(), pupil.max()])
            axis.plot(
                ends, np.poly1d(np.polyfit(pupil, center, 1))(ends), color=ACCENT, linewidth=1, label="fitted line"
            )
            axis.legend(fontsize=6, frameon=False)
        axis.set_title(f"|r| = {abs(r):.3f}, p = {p:.2g}", fontsize=8)
        axis.set_xlabel(f"pupil center {name}", fontsize=8)
        axis.set_ylabel(f"attention's center of mass {name}", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
