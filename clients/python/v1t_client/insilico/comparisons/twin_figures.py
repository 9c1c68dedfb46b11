"""Figures of two twins: fields of the same units (Fig. 3a), densities of sigmas (Fig. 3b) and of centres (Fig. A.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from v1t_client._extras import needed
from v1t_client.insilico.comparisons.statistics import p_text, stars
from v1t_client.insilico.framework import plotting as figures
from v1t_client.insilico.framework.result import Result

__all__ = ["twin_figures"]

Array = npt.NDArray[np.float64]
COLORS = (figures.BLUE, figures.ACCENT)
PAIRS_IN_A_ROW = 3
LEVELS = 6  # of a density of centres


def twin_figures(result: Result) -> dict[str, Any]:
    """fields: maps of the same units side by side; sizes: densities of both sigmas; centers: of the centres."""
    return {"fields": _fields(result), "sizes": _sizes(result), "centers": _centers(result)}


def _labels(result: Result) -> tuple[str, str]:
    return result.dataset.attrs["first"], result.dataset.attrs["second"]


def _fields(result: Result) -> Any:
    data, labels = result.dataset, _labels(result)
    n, x, y = data.sizes["nth"], data["x"].values, data["y"].values
    columns = min(n, PAIRS_IN_A_ROW)
    rows = -(-n // columns)
    share = figures.PAGE / PAIRS_IN_A_ROW
    made = figures.figure(columns * share, 0.5 + rows * (share / 2 * len(y) / len(x) + 0.06))
    outer = made.add_gridspec(rows, columns, wspace=0.06)
    for k in range(n):
        pair = outer[divmod(k, columns)].subgridspec(1, 2, wspace=0.02)
        for i, label in enumerate(labels, start=1):
            axis = made.add_subplot(pair[i - 1])
            image = data[f"map_{i}"].values[k]
            bound = np.abs(image).max() or 1.0
            axis.imshow(image, cmap="RdBu_r", vmin=-bound, vmax=bound)
            figures.image_axes(axis)
            one = {name: float(data[f"shown_{name}_{i}"][k]) for name in _ELLIPSE}
            pitch = float(x[1] - x[0])
            across, down = figures.ellipse(*one.values())
            axis.plot((across - x[0]) / pitch, (down - y[0]) / pitch, color=figures.INK, linewidth=0.8)
            axis.set_xlim(-0.5, len(x) - 0.5)
            axis.set_ylim(len(y) - 0.5, -0.5)
            if k < columns:
                axis.set_title(label, fontsize=6)
            if i == 1:
                axis.set_ylabel(f"unit {int(data['shown'][k])}", fontsize=6)
    figures.heading(
        made,
        f"receptive fields of the same units in both twins: the {n} best-fitted of {int(data['compared'].sum()):,} "
        "compared units, by the share of a map's variance that its fit explains, in the worse of both twins; red: "
        "brighter pixels increase the response, blue: darker ones, each map to its own maximum; ellipse: one sigma of "
        "the fitted Gaussian",
    )
    return made


_ELLIPSE = ("center_x", "center_y", "sigma_major", "sigma_minor", "angle")


def _compared(result: Result, name: str) -> tuple[Array, Array]:
    data = result.dataset.isel(neuron=result.dataset["compared"].values)
    return data[f"{name}_1"].values, data[f"{name}_2"].values


def _sizes(result: Result) -> Any:
    made, axes = figures.axes_grid(2, columns=2, height=2.2)
    both = [_compared(result, name) for name in ("sigma_x", "sigma_y")]
    upper = 1.1 * max(sigma.max() for pair in both for sigma in pair)
    for axis, name, pair in zip(axes, ("sigma_x", "sigma_y"), both, strict=True):
        row = result.dataset.sel(quantity=name)
        for label, color, sigma in zip(_labels(result), COLORS, pair, strict=True):
            text = f"{label}: {sigma.mean():.2f} ± {sigma.std():.2f} px"
            places = np.linspace(0, upper, 300)
            density = _density(sigma[None], places[None])
            if density is None:  # too few units, or all are equal
                axis.plot(sigma, np.zeros(len(sigma)), "|", color=color, label=text)
            else:
                axis.plot(places, density, color=color, label=text)
                axis.fill_between(places, density, color=color, alpha=0.15, linewidth=0)
            axis.axvline(sigma.mean(), color=color, linewidth=0.7, linestyle="--")
        axis.set_xlim(0, upper)
        axis.set_ylim(0, 1.25 * axis.get_ylim()[1])  # the legend stands above
        p = float(row["p_holm"])
        found = f"p = {p_text(p)} ({stars(p)})" if np.isfinite(p) else "not tested"
        axis.set_title(f"difference {float(row['difference']):+.2f} px, {found}")
        axis.set_xlabel(f"{'horizontal' if name == 'sigma_x' else 'vertical'} sigma of the fitted Gaussian [px]")
        axis.legend()
    axes[0].set_ylabel("density of units [1/px]")
    n = int(result.dataset["compared"].sum())
    first, second = _labels(result)
    figures.heading(
        made,
        f"n = {n:,} units, the same in both; dashed: mean; difference: {first} - {second}, paired t-test over units, "
        "two-sided, corrected for four tests (Holm)"
        + "".join(f"\nnote: {note['message']}" for note in result.receipt.notes if note["code"].startswith("other_")),
    )
    return made


def _centers(result: Result) -> Any:
    attributes = result.dataset.attrs
    height, width = attributes["image_height"], attributes["image_width"]
    x, y = _compared(result, "center_x"), _compared(result, "center_y")
    made, axes = figures.axes_grid(2, columns=2, height=0.6 + figures.PAGE / 2 * height / width)
    down, across = np.mgrid[0 : height - 1 : 80j, 0 : width - 1 : 140j]
    places = np.stack([across.ravel(), down.ravel()])
    densities = [_density(np.stack(pair), places) for pair in zip(x, y, strict=True)]
    highest = max((density.max() for density in densities if density is not None), default=0.0)
    for i, (axis, label, color) in enumerate(zip(axes, _labels(result), COLORS, strict=True)):
        density = densities[i]
        if density is not None:
            fade = needed("matplotlib.colors").LinearSegmentedColormap.from_list(label, ["white", color])
            levels = np.linspace(0, highest, LEVELS + 1)[1:]
            axis.contourf(across, down, density.reshape(across.shape), levels=[*levels], cmap=fade, vmin=0, alpha=0.7)
        axis.plot(x[i], y[i], ".", color=figures.INK, markersize=2.5, alpha=0.6, markeredgewidth=0)
        axis.set_xlim(-0.5, width - 0.5)
        axis.set_ylim(height - 0.5, -0.5)
        axis.set_aspect("equal")
        axis.spines[:].set_visible(True)  # the borders of the image
        means = f"({x[i].mean():.1f} ± {x[i].std():.1f}, {y[i].mean():.1f} ± {y[i].std():.1f})"
        axis.set_title(f"{label}: mean {means} px")
        axis.set_xlabel("x [px]")
    axes[0].set_ylabel("y [px]")
    apart = float(np.median(np.hypot(x[0] - x[1], y[0] - y[1])))
    figures.heading(
        made,
        f"centres of the receptive fields of the same {len(x[0]):,} units on the image; a dot is a unit, colour the "
        f"density of units on one scale; a unit's centres in both twins are {apart:.1f} px apart (median)",
    )
    return made


def _density(values: Array, places: Array) -> Array | None:
    """A Gaussian kernel estimate (Scott's rule) of (d, n) values at (d, P) places; None if they have no spread."""
    d, n = values.shape
    if n < d + 2 or np.linalg.matrix_rank(np.cov(values).reshape(d, d)) < d:
        return None
    return np.asarray(needed("scipy.stats").gaussian_kde(values)(places))
