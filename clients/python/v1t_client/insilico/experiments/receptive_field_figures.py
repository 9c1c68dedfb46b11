"""Figures of receptive fields: the clearest maps, the distribution of sizes (Fig. 3b), the centres (Fig. A.2c)."""

from __future__ import annotations

from typing import Any

import numpy as np

from v1t_client.insilico.framework import plotting as figures
from v1t_client.insilico.framework.result import Result

__all__ = ["centers", "described_bias", "maps", "median_size", "size_bias", "sizes"]

WORST_SIGMAS = 0.05  # share of the widest fits that the size figure omits (paper A.5)
SHOWN = 20


def size_bias(half: Any, full: Any) -> tuple[float, float]:
    """How much too large sizes are because of noise, relative, and its standard error: the median over neurons.

    The change from half of the images to all of them is extrapolated to infinitely many, as one over the square root
    of their number.

    Args:
        half, full: (n,) sizes with the noise of half of the images (NaN where unknown), and of all.
    """
    ratio = (np.asarray(half) / np.asarray(full))[np.isfinite(half)]
    if not len(ratio):
        return 0.0, np.inf
    error = 1.253 * 1.483 * np.median(np.abs(ratio - np.median(ratio))) / np.sqrt(len(ratio))
    return float((np.median(ratio) - 1) / (np.sqrt(2) - 1)), float(error / (np.sqrt(2) - 1))


def median_size(result: Result) -> str:
    """The median sigma over reliable neurons, in words: the only place that computes and prints it."""
    sigma, unit = _sigmas(result)
    data = result.dataset.isel(neuron=result.dataset["reliable"].values)
    bias, error = size_bias(data["sigma_half"].values, ((data["sigma_major"] + data["sigma_minor"]) / 2).values)
    return f"median sigma {np.median(sigma):.2f} {unit}, {described_bias(bias, error)}"


def described_bias(bias: float, error: float) -> str:
    """`8% too small because of noise (standard error 3%)`."""
    if not np.isfinite(error):
        return "with an unknown bias by noise"
    return f"{abs(bias):.0%} too {'small' if bias < 0 else 'large'} because of noise (standard error {error:.0%})"


def _sigmas(result: Result) -> tuple[Any, str]:
    """The mean of both sigmas of each reliable neuron, in degrees where the screen is known, and the unit."""
    data = result.dataset.isel(neuron=result.dataset["reliable"].values)
    if "sigma_deg" in data:
        return data["sigma_deg"].values, "deg"
    return (data["sigma_major"].values + data["sigma_minor"].values) / 2, "px"


def maps(result: Result) -> Any:
    """The clearest maps with the ellipse of one sigma."""
    data = result.dataset
    rows = np.argsort(-np.where(data["fitted"].values, data["peak"].values, -1), kind="stable")[:SHOWN]
    chosen = data.isel(neuron=rows)
    titles = [f"{int(i)}  z {peak:.0f}" for i, peak in zip(chosen["neuron"], chosen["peak"], strict=True)]
    made, axes = figures.map_grid(chosen["map"].values, titles)
    x, y = data["x"].values, data["y"].values
    pitch = float(x[1] - x[0])
    figures.heading(
        made,
        f"the {len(rows)} clearest of {len(data['neuron']):,} neurons over {data.attrs['n_images']:,} images of "
        f"{data.attrs.get('noise', 'white')} noise, by the peak over chance (z); red: brighter "
        "pixels increase the response, blue: darker ones, each map to its own maximum; ellipse: one sigma of the "
        "fitted Gaussian",
    )
    for i, axis in enumerate(axes):
        one = chosen.isel(neuron=i)
        if not one["fitted"]:
            continue
        shape = ("center_x", "center_y", "sigma_major", "sigma_minor", "angle")
        across, down = figures.ellipse(*(float(one[name]) for name in shape))
        axis.plot((across - x[0]) / pitch, (down - y[0]) / pitch, color=figures.INK, linewidth=0.8)
        axis.set_xlim(-0.5, len(x) - 0.5)
        axis.set_ylim(len(y) - 0.5, -0.5)
    return made


def sizes(result: Result) -> Any:
    """Distribution of sigmas (Fig. 3b), without the worst 5 %."""
    made = figures.figure(figures.COLUMN, 2.2)
    axis = made.add_subplot()
    sigma, unit = _sigmas(result)
    kept = np.sort(sigma)[: int(np.ceil(len(sigma) * (1 - WORST_SIGMAS)))]
    if len(kept):
        figures.histogram(axis, kept, bins=min(40, max(5, len(kept) // 10)))
        axis.axvline(np.median(sigma), color=figures.ACCENT, label="median")
        axis.legend()
        shown = "" if len(kept) == len(sigma) else "; the widest 5 % are not shown"
        figures.heading(made, f"{median_size(result)}; {len(sigma):,} reliable neurons{shown}")
    axis.set_xlabel(f"sigma of the fitted Gaussian, mean of both axes [{unit}]")
    return made


def centers(result: Result) -> Any:
    """The positions of the receptive fields on the image (Fig. A.2c)."""
    data = result.dataset.isel(neuron=result.dataset["reliable"].values)
    height, width = result.dataset.attrs["image_height"], result.dataset.attrs["image_width"]
    made = figures.figure(figures.COLUMN, 0.5 + 2.9 * height / width)
    axis = made.add_subplot()
    axis.scatter(
        data["center_x"],
        data["center_y"],
        s=np.clip(2000 / max(len(data["neuron"]), 1), 2, 12),
        color=figures.ACCENT,
        alpha=0.5,
        linewidth=0,
    )
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)
    axis.set_aspect("equal")
    axis.spines[:].set_visible(True)  # the borders of the image
    axis.set_title(f"receptive field centres on the image, {len(data['neuron']):,} reliable neurons")
    axis.set_xlabel("x [px]")
    axis.set_ylabel("y [px]")
    return made
