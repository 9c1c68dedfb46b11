"""Figures of receptive fields: the clearest maps, the distribution of sizes (Fig. 3b), the centres (Fig. A.2c)."""

from __future__ import annotations

from typing import Any

import numpy as np

from v1t_client.insilico.framework import plotting as figures
from v1t_client.insilico.framework.result import Result

__all__ = ["centers", "maps", "sizes"]

WORST_SIGMAS = 0.05  # share of the widest fits that the size figure omits (paper A.5)
SHOWN = 20


def maps(result: Result) -> Any:
    """The clearest maps with the ellipse of one sigma."""
    data = result.dataset
    rows = np.argsort(-np.where(data["fitted"].values, data["peak"].values, -1), kind="stable")[:SHOWN]
    chosen = data.isel(neuron=rows)
    titles = [f"{int(i)}  z {peak:.0f}" for i, peak in zip(chosen["neuron"], chosen["peak"], strict=True)]
    made, axes = figures.map_grid(chosen["map"].values, titles)
    x, y = data["x"].values, data["y"].values
    pitch = float(x[1] - x[0])
    turn = np.linspace(0, 2 * np.pi, 60)
    for i, axis in enumerate(axes):
        one = chosen.isel(neuron=i)
        if not one["fitted"]:
            continue
        angle = np.radians(float(one["angle"]))
        a, b = float(one["sigma_major"]) * np.cos(turn), float(one["sigma_minor"]) * np.sin(turn)
        across = float(one["center_x"]) + a * np.cos(angle) - b * np.sin(angle)
        down = float(one["center_y"]) + a * np.sin(angle) + b * np.cos(angle)
        axis.plot((across - x[0]) / pitch, (down - y[0]) / pitch, color=figures.INK, linewidth=0.8)
        axis.set_xlim(-0.5, len(x) - 0.5)
        axis.set_ylim(len(y) - 0.5, -0.5)
    return made


def sizes(result: Result) -> Any:
    """Distribution of sigmas (Fig. 3b), without the worst 5 %."""
    data = result.dataset.isel(neuron=result.dataset["reliable"].values)
    made = figures.figure(3.6, 2.6)
    axis = made.add_subplot()
    sigma = (data["sigma_major"].values + data["sigma_minor"].values) / 2
    if "sigma_deg" in data:
        sigma = data["sigma_deg"].values
    unit = "deg" if "sigma_deg" in data else "px"
    kept = np.sort(sigma)[: int(np.ceil(len(sigma) * (1 - WORST_SIGMAS)))]
    if len(kept):
        axis.hist(kept, bins=min(40, max(5, len(kept) // 10)), color=figures.GREY)
        axis.axvline(np.median(kept), color=figures.ACCENT)
        axis.set_title(f"median {np.median(kept):.2f} {unit}, {len(kept):,} neurons (widest 5 % left out)", fontsize=7)
    axis.set_xlabel(f"sigma of the fitted Gaussian [{unit}]", fontsize=8)
    axis.set_ylabel("neurons", fontsize=8)
    axis.tick_params(labelsize=7)
    return made


def centers(result: Result) -> Any:
    """The positions of the receptive fields on the image (Fig. A.2c)."""
    data = result.dataset.isel(neuron=result.dataset["reliable"].values)
    height, width = result.dataset.attrs["image_height"], result.dataset.attrs["image_width"]
    made = figures.figure(4.0, 0.6 + 3.4 * height / width)
    axis = made.add_subplot()
    axis.scatter(
        data["center_x"],
        data["center_y"],
        s=max(2.0, 200 / max(len(data["neuron"]), 1)),
        color=figures.ACCENT,
        alpha=0.5,
        linewidth=0,
    )
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)
    axis.set_aspect("equal")
    axis.set_title(f"receptive field centres, {len(data['neuron']):,} reliable neurons", fontsize=8)
    axis.set_xlabel("px", fontsize=8)
    axis.set_ylabel("px", fontsize=8)
    axis.tick_params(labelsize=7)
    return made
