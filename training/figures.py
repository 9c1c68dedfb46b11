"""Figures: one style for all, without global state, saved as PNG and PDF."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from training.files import write_files

__all__ = ["COLORS", "COLUMN", "PAGE", "color_of_position", "save_figure", "styled", "violin"]

COLUMN, PAGE = 85 / 25.4, 174 / 25.4  # inches: the widths of a journal's column and page
# Okabe and Ito's colours, as in the style.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLE = Path(__file__).with_name("figures.mplstyle")  # equal to the client's
CAPTION_SIZE = 5
CAPTION_CHARACTERS = 26  # per inch, at this size
# Colours of the plane's corners, (left, right) x (top, bottom); colours in between are mixed.
CORNERS = np.array([[[0.10, 0.35, 0.75], [0.95, 0.75, 0.15]], [[0.10, 0.65, 0.45], [0.80, 0.15, 0.35]]])


@contextmanager
def styled() -> Iterator[None]:
    """Applies the style to what is drawn in the block, and to nothing else."""
    with mpl.rc_context(fname=STYLE):
        yield


def save_figure(figure: Figure, folder: Path, name: str, *, caption: str) -> list[Path]:
    """Writes `name`.png and `name`.pdf, with the caption at the foot. Equal figures give equal files."""
    width = int(CAPTION_CHARACTERS * figure.get_figwidth())
    files = {}
    with styled():
        figure.supxlabel(textwrap.fill(caption, width), fontsize=CAPTION_SIZE, color="0.35")
        for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
            content = io.BytesIO()
            figure.savefig(content, format=kind, metadata=metadata)
            files[f"{name}.{kind}"] = content.getvalue()
    return write_files(folder, files)


def violin(
    axes: Axes, place: float, values: np.ndarray, *, width: float, color: str, alpha: float, side: str = "both"
) -> None:
    """A violin, or its half, without marks; nothing where all values are equal. side: "low", "high" or "both"."""
    if np.ptp(values) > 0:
        parts = axes.violinplot(values, [place], widths=width, showextrema=False, side=side)  # type: ignore[arg-type]
        for body in cast(list[PolyCollection], parts["bodies"]):
            body.set(facecolor=color, alpha=alpha, edgecolor=color, linewidth=0.8)


def color_of_position(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(N, 3) a colour for each position in the plane. u, v: (N,) 0 to 1, right and down; others are clipped."""
    u, v = np.clip(u, 0, 1)[:, None], np.clip(v, 0, 1)[:, None]
    top = (1 - u) * CORNERS[0, 0] + u * CORNERS[0, 1]
    bottom = (1 - u) * CORNERS[1, 0] + u * CORNERS[1, 1]
    color = (1 - v) * top + v * bottom
    middle = np.minimum(1 - np.abs(2 * u - 1), 1 - np.abs(2 * v - 1))
    return color + 0.55 * middle * (1 - color)  # makes the middle lighter
