"""Figures of attention: maps over images, ordered by gaze, and centers of mass against gaze."""

from __future__ import annotations

from typing import Any

import numpy as np

from v1t_client._extras import needed
from v1t_client.insilico.framework.plotting import ACCENT, INK, PAGE, axes_grid, heading
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
    figure, axes = axes_grid(dataset.sizes["nth"], columns=4, height=PAGE / 4 * H / W + 0.2)
    extent = (-0.5, W - 0.5, H - 0.5, -0.5)
    for k, axis in enumerate(axes):
        trial = int(dataset["shown"][k])
        attention = dataset["attention"][trial].values
        axis.imshow(dataset["shown_image"][k].values.mean(0), cmap="gray", extent=extent)
        share = attention / max(attention.max(), 1e-9)
        axis.imshow(np.ones_like(share), cmap=_one_color(ACCENT), alpha=0.8 * share, extent=extent)
        x, y = (dataset[f"center_{name}"][trial].item() for name in "xy")
        axis.plot(
            (x + 1) / 2 * W - 0.5,
            (y + 1) / 2 * H - 0.5,
            "+",
            color="white",
            markersize=7,
            markeredgewidth=1,
            path_effects=[needed("matplotlib.patheffects").withStroke(linewidth=2.5, foreground="black")],
        )
        name = dataset["image"].values[trial]
        title = f"trial {name}" if dataset["image"].dtype.kind == "i" else str(name)
        if "pupil_center_x" in dataset:
            gaze = [dataset[f"pupil_center_{name}"][trial].item() for name in "xy"]
            title += f", pupil ({gaze[0]:.3g}, {gaze[1]:.3g})"
        axis.set_title(title, fontsize=6)
        axis.set_axis_off()
    shown = f"{dataset.sizes['nth']} of {dataset.sizes['image']} images"
    text = f"{shown}; attention rollout, mean of members: the more orange, the more, up to each map's own maximum"
    heading(figure, f"{text}; cross: its centre of mass")
    return figure


def _one_color(color: str) -> Any:
    return needed("matplotlib.colors").ListedColormap([color])


def _gaze(result: Result) -> Any:
    dataset = result.dataset
    figure, axes = axes_grid(2, columns=2, height=2.2, width=2 * 2.6)
    for name, axis in zip("xy", axes, strict=True):
        pupil, center = dataset[f"pupil_center_{name}"].values, dataset[f"center_{name}"].values
        axis.plot(pupil, center, ".", color=INK, alpha=0.5, markeredgewidth=0, label="an image")
        r, p = dataset[f"correlation_{name}"].item(), dataset[f"p_value_{name}"].item()
        if np.isfinite(r):
            ends = np.array([pupil.min(), pupil.max()])
            axis.plot(ends, np.poly1d(np.polyfit(pupil, center, 1))(ends), color=ACCENT, label="least-squares line")
            axis.legend()
        n = np.isfinite(pupil).sum()
        found = f"|r| = {abs(r):.3f}, p = {p:.2g}" if np.isfinite(r) else "not correlated: one of them does not vary"
        axis.set_title(f"{found}\nn = {n:,} images")
        axis.set_xlabel(f"pupil centre {name} [{dataset[f'pupil_center_{name}'].attrs.get('units', '')}]")
        axis.set_ylabel(f"attention's centre {name} [half {'widths' if name == 'x' else 'heights'}]")
    return figure
