"""Matplotlib figures in one style, without global state, and the layouts that several experiments use."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from v1t_client._extras import needed

__all__ = [
    "COLUMN",
    "PAGE",
    "add_footer",
    "axes_grid",
    "common_labels",
    "ellipse",
    "figure",
    "heading",
    "histogram",
    "image_axes",
    "map_grid",
    "shared_legend",
    "styled",
    "whole_counts",
    "wrapped",
]

COLUMN, PAGE = 85 / 25.4, 174 / 25.4  # inches: the widths of a journal's column and page
INK, ACCENT, BLUE, GREY, FAINT = "#24292f", "#D55E00", "#0072B2", "#9aa1a9", "#57606a"
LABEL = 0.16  # inches, of a label of all panels
FOOTER, FOOTER_CHARACTERS = 5, 26  # points, and characters per inch at this size
HEADING, HEADING_CHARACTERS = 6.5, 19
STYLE = Path(__file__).with_name("figures.mplstyle")


@contextmanager
def styled() -> Iterator[None]:
    """Applies the style to what is drawn or saved in the block, and to nothing else."""
    with needed("matplotlib").rc_context(fname=STYLE):
        yield


def figure(width: float, height: float) -> Any:
    """A figure of this size in inches, independent of pyplot."""
    return needed("matplotlib.figure").Figure(figsize=(width, height))


def heading(made: Any, text: str) -> None:
    """A line or more above all panels: what they show, and what their marks mean."""
    made.suptitle(wrapped(text, made, HEADING_CHARACTERS), fontsize=HEADING)


def add_footer(made: Any, text: str) -> None:
    """Adds small text below a figure, which becomes higher by it."""
    width, height = made.get_size_inches()
    lines = wrapped(text, made, FOOTER_CHARACTERS)
    footer = (6.5 * (lines.count("\n") + 1) + 5) / 72
    room = footer + (LABEL if made.get_supxlabel() else 0)
    made.set_size_inches(width, height + room)
    if made.get_layout_engine() is None:
        made.set_layout_engine("constrained")
    made.get_layout_engine().set(rect=(0, room / (height + room), 1, height / (height + room)))
    for label in made.texts:  # the layout places all others
        label.set_y((label.get_position()[1] * height + footer) / (height + room))
    made.text(0.04 / width, 0.03 / (height + room), lines, fontsize=FOOTER, color=FAINT, va="bottom", linespacing=1.25)


def wrapped(text: str, made: Any, characters_per_inch: int = HEADING_CHARACTERS) -> str:
    """The text in lines that fit into the width of a figure."""
    width = int(characters_per_inch * made.get_figwidth())
    return "\n".join(textwrap.fill(line, max(30, width)) for line in text.splitlines())


def common_labels(made: Any, x: str, y: str) -> None:
    """One label for the x axes and one for the y axes of all panels. `add_footer` makes room for the first."""
    made.supxlabel(x, y=0, va="bottom", fontsize="medium")
    made.supylabel(y, fontsize="medium")


def shared_legend(made: Any, axes: Sequence[Any]) -> None:
    """One legend above all panels, with each label of any panel once."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        made.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=len(handles))


def whole_counts(axis: Any, what: str = "neurons") -> None:
    """Labels the y axis with a count, whose ticks are whole numbers."""
    axis.yaxis.set_major_locator(needed("matplotlib.ticker").MaxNLocator(nbins=5, integer=True))
    axis.set_ylabel(f"number of {what}")


def histogram(axis: Any, values: Any, bins: Any) -> None:
    """How many neurons have which value."""
    axis.hist(values, bins=bins, color=GREY, edgecolor="white", linewidth=0.3)
    whole_counts(axis)


def image_axes(axis: Any) -> None:
    """Axes that show an image: a thin frame, no ticks."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set(visible=True, linewidth=0.4, color=GREY)


def axes_grid(n: int, *, columns: int, height: float, width: float = PAGE) -> tuple[Any, list[Any]]:
    """A figure with n small axes, row by row: `columns` of them share `width`, each row is `height` high (inches)."""
    share = width / columns
    columns = max(1, min(columns, n))
    rows = -(-n // columns)
    made = figure(max(columns * share, COLUMN), rows * height)
    axes = np.atleast_1d(made.subplots(rows, columns, squeeze=False)).ravel()
    for left in axes[n:]:
        left.set_axis_off()
    return made, list(axes[:n])


def ellipse(x: float, y: float, major: float, minor: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """x and y of points on an ellipse with this middle, these half axes, and `angle` [deg] from x towards y."""
    turn, tilt = np.linspace(0, 2 * np.pi, 60), np.radians(angle)
    a, b = major * np.cos(turn), minor * np.sin(turn)
    return x + a * np.cos(tilt) - b * np.sin(tilt), y + a * np.sin(tilt) + b * np.cos(tilt)


def map_grid(maps: np.ndarray, titles: list[str], *, columns: int = 5, cmap: str = "RdBu_r") -> tuple[Any, list[Any]]:
    """Draws maps (n, h, w), each on its own scale that is symmetric around zero."""
    height, width = maps.shape[1:]
    made, axes = axes_grid(len(maps), columns=columns, height=PAGE / columns * height / width + 0.2)
    for axis, image, title in zip(axes, maps, titles, strict=True):
        bound = np.abs(image).max() or 1.0
        axis.imshow(image, cmap=cmap, vmin=-bound, vmax=bound)
        axis.set_title(title, fontsize=6)
        image_axes(axis)
    return made, axes
