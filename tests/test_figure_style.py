"""The style of figures: the client's and training's are one, of column width, and legible."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure
from support.checkout import ROOT
from support.gabor_bank import GaborBank
from v1t_client import Model
from v1t_client.insilico import EXPERIMENTS
from v1t_client.insilico.experiments.behavior import Behavior
from v1t_client.insilico.framework.plotting import COLUMN, PAGE, styled

from training import figures
from training.figures import COLORS

CLIENT = ROOT / "clients" / "python" / "v1t_client" / "insilico" / "framework" / "figures.mplstyle"
# What a dichromat sees of linear RGB: Viénot, Brettel and Mollon 1999, equations 4 to 6, as one matrix.
DICHROMATS = {
    "protanope": [[0.1124, 0.8876, 0], [0.1124, 0.8876, 0], [0.0040, -0.0040, 1]],
    "deuteranope": [[0.2928, 0.7072, 0], [0.2928, 0.7072, 0], [-0.0223, 0.0223, 1]],
}


def drawn() -> dict[str, Figure]:
    model = Model(name="demo", hash="cd" * 32, simulated=True, version="7")
    bank = GaborBank(n=9, shape=(18, 32), model=model)
    made = {}
    asked = Behavior(mouse="BANK", channels=("running_speed",), n_images=2)
    for experiment in (EXPERIMENTS["rf"](mouse="BANK", n_images=300), EXPERIMENTS["tuning"](mouse="BANK"), asked):
        made |= experiment.figures(experiment.run(bank))
    return made


def test_a_figure_is_a_column_or_a_page_wide_with_legible_text_inside_it_and_its_origin() -> None:
    made = drawn()
    assert {"maps", "sizes", "centers", "orientation", "population", "curves"} <= set(made)
    for name, figure in made.items():
        assert figure.get_figwidth() in (pytest.approx(COLUMN), pytest.approx(PAGE)), name
        figure.draw_without_rendering()
        for text in figure.findobj(mpl.text.Text):
            if text.get_visible() and text.get_text():
                assert text.get_fontsize() >= 5, (name, text)
        for axis in figure.axes:
            labels = (axis.title, axis.xaxis.label, axis.yaxis.label)
            boxes = [label.get_window_extent() for label in labels if label.get_text()]
            assert all(box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1 for box in boxes)
        footer = figure.texts[-1].get_text().replace("\n", " ")
        for words in ("SIMULATED", "mouse BANK", "n = 9 neurons", "model demo@7 cdcdcdcdcdcd"):
            assert words in footer, name


def test_training_has_the_style_of_the_client() -> None:
    assert (ROOT / "training" / CLIENT.name).read_bytes() == CLIENT.read_bytes()
    with styled():
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLORS)
    assert (figures.COLUMN, figures.PAGE) == (COLUMN, PAGE)


def test_the_style_is_used_where_figures_are_drawn_and_nowhere_else() -> None:
    before = dict(mpl.rcParams)
    with styled():
        assert mpl.rcParams["font.size"] == 7
        assert mpl.rcParams["pdf.fonttype"] == 42
    assert dict(mpl.rcParams) == before


def test_the_colours_of_lines_differ_for_colour_blind_readers() -> None:
    with styled():
        colors = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    rgb = np.array([matplotlib.colors.to_rgb(color) for color in colors])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for matrix in (np.eye(3), *map(np.array, DICHROMATS.values())):
        lab = _lab(np.clip(linear @ matrix.T, 0, 1))
        apart = [np.linalg.norm(a - b) for i, a in enumerate(lab) for b in lab[:i]]
        assert min(apart) > 10  # CIE76; 2.3 is just noticeable


def _lab(linear: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of linear sRGB (n, 3)."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = (linear @ to_xyz.T / to_xyz.sum(1)).T
    f = [np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116) for t in (x, y, z)]
    return np.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])], axis=1)
