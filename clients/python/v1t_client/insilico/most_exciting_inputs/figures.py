"""Figures of most exciting inputs, drawn from the result alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from v1t_client._extras import needed
from v1t_client.insilico.framework.plotting import ACCENT, COLUMN, INK, PAGE, figure, heading
from v1t_client.insilico.framework.result import Result

if TYPE_CHECKING:
    import xarray

__all__ = ["figures_of", "picture"]

COLUMNS = 5
SHOWN = 40  # neurons; the others are in the result only


def figures_of(result: Result) -> dict[str, Any]:
    """mei: an image per neuron with the outline of its mask; ascent: the traces; one figure per related search."""
    dataset = result.dataset.isel(neuron=slice(SHOWN))
    n = result.dataset.sizes["neuron"]
    figures = {"mei": _gallery(dataset, "mei", "response", n), "ascent": _traces(dataset)}
    if "lei" in dataset:
        figures["lei"] = _gallery(dataset, "lei", "least_response", n)
    if "diverse" in dataset:
        figures["diverse"] = _diverse(dataset)
    if "center_response" in dataset:
        figures["surround"] = _surround(dataset)
    return figures


def picture(axes: Any, image: np.ndarray, title: str = "") -> None:
    """Draws an image (C, H, W), grey at its median level; channels side by side."""
    flat = np.concatenate(list(image), axis=1)
    middle = float(np.median(flat))
    swing = max(float(np.abs(flat - middle).max()), 1e-6)
    axes.imshow(flat, cmap="gray", vmin=middle - swing, vmax=middle + swing)
    axes.set_title(title, fontsize=6)
    axes.set_axis_off()


def _gallery(dataset: xarray.Dataset, name: str, response: str, total: int) -> Any:
    n = dataset.sizes["neuron"]
    baselines = [("natural", "best_natural"), ("noise", "best_noise")]
    rivals = ", ".join(what for what, key in baselines if key in dataset) if name == "mei" else ""
    made, axes = _grid(-(-n // COLUMNS), COLUMNS, dataset, lines=2 if rivals else 1)
    for axis, row in zip(axes.flat, range(n), strict=False):
        one = dataset.isel(neuron=row)
        title = f"{one['neuron'].item()}: {one[response].item():.2f}"
        if rivals:
            title += "\n" + ", ".join(f"{what} {one[key].item():.2f}" for what, key in baselines if key in one)
        picture(axis, one[name].values, title)
        _outline(axis, one["mask"].values, one[name].shape)
    found = {"mei": "most", "lei": "least"}[name]
    compared = f"; {rivals}: the best of these images, at its own contrast" if rivals else ""
    about = f"{n} of {total:,} neurons, each with its response [std] to its {found} exciting input{compared}"
    heading(made, f"{about}; orange: half height of the mask; grey levels to each image's own maximum")
    return made


def _diverse(dataset: xarray.Dataset) -> Any:
    dataset = dataset.isel(neuron=slice(12))
    n, k = dataset["diverse"].shape[:2]
    made, axes = _grid(n, k + 1, dataset)
    heading(
        made, "a neuron in each row: response [std] to its most exciting input (left) and to diverse exciting inputs"
    )
    for row in range(n):
        one = dataset.isel(neuron=row)
        picture(axes[row, 0], one["mei"].values, f"{one['neuron'].item()}: {one['response'].item():.2f}")
        for j in range(k):
            picture(axes[row, j + 1], one["diverse"][j].values, f"{one['diverse_response'][j].item():.2f}")
    return made


def _surround(dataset: xarray.Dataset) -> Any:
    dataset = dataset.isel(neuron=slice(12))
    n = dataset.sizes["neuron"]
    made, axes = _grid(n, 3, dataset)
    heading(
        made,
        "a neuron in each row: response [std] to its most exciting input, to its centre alone, and to the centre with "
        "an exciting and with a suppressing surround",
    )
    for row in range(n):
        one = dataset.isel(neuron=row)
        title = f"{one['neuron'].item()}: {one['response'].item():.2f}, center {one['center_response'].item():.2f}"
        picture(axes[row, 0], one["mei"].values, title)
        for column, kind in enumerate(("exciting", "suppressing"), start=1):
            name = f"{kind}_surround"
            picture(axes[row, column], one[name].values, f"{kind} surround: {one[f'{name}_response'].item():.2f}")
    return made


def _traces(dataset: xarray.Dataset) -> Any:
    made = figure(COLUMN, 2.2)
    axes = made.add_subplot()
    trace = dataset["mei_trace"].values  # (n, S, steps + 1)
    best = np.maximum(trace[:, :, -1].max(1), 1e-9)
    for row in trace / best[:, None, None]:
        axes.plot(row.T, color=INK, alpha=0.3, linewidth=0.6)
    axes.set_xlabel("step of the ascent")
    axes.xaxis.set_major_locator(needed("matplotlib.ticker").MaxNLocator(integer=True))
    axes.set_ylabel("response / last of the best start")
    axes.set_title(f"a line per start ({trace.shape[1]}) and neuron ({len(trace)})")
    return made


def _grid(rows: int, columns: int, dataset: xarray.Dataset, *, lines: int = 1) -> tuple[Any, np.ndarray]:
    """Axes for images (C, H, W) in rows, with titles of so many lines."""
    C, H, W = dataset["mei"].shape[1:]
    share = PAGE / max(columns, 3)
    made = figure(max(share * columns, COLUMN), rows * (share * H / (W * C) + 0.1 + 0.1 * lines))
    axes = made.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    return made, axes


def _outline(axes: Any, mask: np.ndarray, shape: tuple[int, ...]) -> None:
    """Draws the half-height contour of a mask on the grid over an image (C, H, W)."""
    if mask.max() > 0.5 and min(mask.shape) > 1:
        factor = shape[1] / mask.shape[0]
        y, x = ((np.arange(n) + 0.5) * factor - 0.5 for n in mask.shape)
        axes.contour(x, y, mask, levels=[0.5], colors=[ACCENT], linewidths=0.7)
