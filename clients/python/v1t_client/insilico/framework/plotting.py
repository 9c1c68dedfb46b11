"""Matplotlib figures without global state, and the layouts that several experiments use."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np

from v1t_client._extras import needed

__all__ = ["add_footer", "axes_grid", "common_labels", "figure", "histogram", "map_grid", "whole_counts"]

INK, ACCENT, GREY, FAINT = "#24292f", "#c2410c", "#9aa1a9", "#57606a"
LABEL = 0.16  # inches, of a label of all panels


def figure(width: float, height: float) -> Any:
    """A figure of this size in inches, independent of pyplot."""
    return needed("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def add_footer(made: Any, text: str) -> None:
    """Adds small text below a figure, which becomes higher by it."""
    width, height = made.get_size_inches()
    lines = textwrap.wrap(text, max(30, int(26 * width)))  # characters of 5 points
    footer = (6.5 * len(lines) + 5) / 72
    room = footer + (LABEL if made.get_supxlabel() else 0)
    made.set_size_inches(width, height + room)
    if made.get_layout_engine() is None:
        made.set_layout_engine("constrained")
    made.get_layout_engine().set(rect=(0, room / (height + room), 1, height / (height + room)))
    for label in made.texts:  # the layout places all others
        label.set_y((label.get_position()[1] * height + footer) / (height + room))
    made.text(
        0.04 / width, 0.03 / (height + room), "\n".join(lines), fontsize=5, color=FAINT, va="bottom", linespacing=1.25
    )


def common_labels(made: Any, x: str, y: str) -> None:
    """One label for the x axes and one for the y axes of all panels. `add_footer` makes room for the first."""
    made.supxlabel(x, y=0, va="bottom", fontsize=7)
    made.supylabel(y, fontsize=7)


def whole_counts(axis: Any, what: str = "neurons") -> None:
    """Labels the y axis with a count, whose ticks are whole numbers."""
    axis.yaxis.set_major_locator(needed("matplotlib.ticker").MaxNLocator(nbins=5, integer=True))
    axis.set_ylabel(what, fontsize=7)


def histogram(axis: Any, values: Any, bins: Any) -> None:
    """How many neurons have which value."""
    axis.hist(values, bins=bins, color=GREY)
    whole_counts(axis)


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
