"""Matplotlib figures without global state, and the layouts that several experiments use."""

from __future__ import annotations

from typing import Any

import numpy as np

from v1t_client._extras import needed

__all__ = ["axes_grid", "figure", "map_grid"]

INK, ACCENT, GREY = "#24292f", "#c2410c", "#9aa1a9"


def figure(width: float, height: float) -> Any:
    """A figure of this size in inches, independent of pyplot."""
    return needed("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def axes_grid(n: int, *, columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    """A figure with n small axes of `size` inches, row by row."""
    columns = max(1, min(columns, n))
    rows = -(-n // columns)
    made = figure(columns * size[0], rows * size[1])
    axes = np.atleast_1d(made.subplots(rows, columns, squeeze=False)).ravel()
    for left in axes[n:]:
        left.set_axis_off()
    return made, list(axes[:n])


def map_grid(maps: np.ndarray, titles: list[str], *, columns: int = 5, cmap: str = "RdBu_r") -> tuple[Any, list[Any]]:
    """Draws maps (n, h, w), each on its own scale that is symmetric around zero."""
    height, width = maps.shape[1:]
    across = 1.6
    made, axes = axes_grid(len(maps), columns=columns, size=(across, across * height / width + 0.28))
    for axis, image, title in zip(axes, maps, titles, strict=True):
        bound = np.abs(image).max() or 1.0
        axis.imshow(image, cmap=cmap, vmin=-bound, vmax=bound, interpolation="nearest")
        axis.set_title(title, fontsize=6, pad=2)
        axis.set_xticks([])
        axis.set_yticks([])
    return made, axes
