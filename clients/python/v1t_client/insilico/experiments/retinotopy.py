"""Retinotopy (paper A.8): positions of receptive fields on the screen against positions of neurons in cortex.

(x, y) on the screen = origin + matrix @ (x, y) in cortex,  fitted over neurons with a reliable receptive field
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from v1t_client._errors import InvalidArgument
from v1t_client.insilico.experiments.receptive_fields import receptive_field_centers
from v1t_client.insilico.framework import plotting as figures
from v1t_client.insilico.framework.checkpoint import Work
from v1t_client.insilico.framework.experiment import Experiment
from v1t_client.insilico.framework.result import Result, variable
from v1t_client.insilico.framework.subject import Subject

if TYPE_CHECKING:
    import xarray

__all__ = ["Retinotopy", "screen_colors"]

FEWEST = 10  # neurons
SHUFFLES = 1000


@dataclass(frozen=True, kw_only=True)
class Retinotopy(Experiment):
    """A linear map from cortex to the screen.

    Attributes:
        rf: folder of a `v1t rf` result of the same mouse.
    """

    name: ClassVar[str] = "retinotopy"
    summary: ClassVar[str] = "compare receptive field centres with cortical positions"
    examples: ClassVar[str] = """\
examples:
  v1t rf A --output rf-A
  v1t retinotopy A --rf rf-A --output retinotopy-A
"""

    rf: str

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rf", required=True, metavar="FOLDER", help="a result of `v1t rf` of this mouse")

    def measure(self, subject: Subject, work: Work) -> xarray.Dataset:
        x, y, known = receptive_field_centers(subject, Path(self.rf))
        cortex = subject.neurons.coordinates_um[:, :2].astype(np.float64)
        used = known & np.isfinite(cortex).all(1)
        if used.sum() < FEWEST:
            raise InvalidArgument(
                "too few neurons have both a reliable receptive field and a known cortical position",
                got=int(used.sum()),
                expected=f"{FEWEST} or more",
                hint="Show more noise images (v1t rf --images), or import the twin with its recording.",
            )
        screen = np.stack([x, y], axis=1)
        matrix, predicted, r2 = _plane(cortex[used], screen[used])
        rng = np.random.default_rng(self.seed)
        chance = [_plane(rng.permutation(cortex[used]), screen[used])[2] for _ in range(SHUFFLES)]
        p = (1 + (np.array(chance) >= r2).sum(0)) / (1 + SHUFFLES)
        residual = np.full(len(subject), np.nan)
        residual[used] = np.hypot(*(screen[used] - predicted).T)
        unit = subject.screen.unit
        return subject.dataset(
            {
                "center_x": variable(np.where(used, x, np.nan), unit, "from the middle, right"),
                "center_y": variable(np.where(used, y, np.nan), unit, "from the middle, down"),
                "residual": variable(residual, unit, "distance from the fitted map"),
                "used": variable(used, "1"),
                "matrix": variable(matrix * 1000, f"{unit}/mm", dims=("screen", "cortex")),
                "r2": variable(r2, "1", "of the plane, for x and y on the screen", dims="screen"),
                "p": variable(p, "1", f"of {SHUFFLES} shuffles of the positions", dims="screen"),
            },
            {"screen": ("screen", ["x", "y"]), "cortex": ("cortex", ["x", "y"])},
        )

    def draw(self, result: Result) -> dict[str, Any]:
        return {"retinotopy": _map(result)}

    def summarize(self, result: Result) -> str:
        data = result.dataset
        unit = data["center_x"].attrs["units"]
        r2, p = data["r2"].values, data["p"].values
        return (
            f"{int(data['used'].sum()):,} neurons: a plane explains {r2[0]:.0%} of x and {r2[1]:.0%} of y "
            f"(p {p[0]:.3f}, {p[1]:.3f}); median distance from it {float(data['residual'].median()):.1f} {unit}"
        )


def _plane(
    cortex: npt.NDArray[np.float64], screen: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The (2, 2) matrix, its predictions (n, 2), and r2 of each screen axis."""
    centred = cortex - cortex.mean(0)
    matrix, *_ = np.linalg.lstsq(centred, screen - screen.mean(0), rcond=None)
    predicted = centred @ matrix + screen.mean(0)
    spread = np.square(screen - screen.mean(0)).sum(0)
    return matrix.T, predicted, 1 - np.square(screen - predicted).sum(0) / np.where(spread > 0, spread, 1)


def _map(result: Result) -> Any:
    """Receptive fields on the screen and neurons in cortex, in the same colours (2-D colour map of A.8)."""
    data = result.dataset.isel(neuron=result.dataset["used"].values)
    x, y = data["center_x"].values, data["center_y"].values
    colors = screen_colors(x, y)
    made = figures.figure(figures.PAGE, 2.6)
    left, right = made.subplots(1, 2)
    dot = np.clip(2000 / len(x), 2, 14)
    n = f"{len(x):,} of {len(result.dataset['neuron']):,} neurons"
    figures.heading(made, f"{n}: each has the colour of its receptive field's place on the screen in both panels")
    left.scatter(x, y, c=colors, s=dot, linewidth=0)
    left.invert_yaxis()
    left.set_title("receptive field centres on the screen")
    unit = data["center_x"].attrs["units"]
    right.scatter(data["x_um"], data["y_um"], c=colors, s=dot, linewidth=0)
    right.set_title("the same neurons in cortex")
    for axis, label in ((left, unit), (right, "µm")):
        axis.set_aspect("equal")
        axis.set_xlabel(f"x [{label}]")
        axis.set_ylabel(f"y [{label}]")
    return made


def screen_colors(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A colour per position: each corner of the screen has its own, and they are mixed in between."""
    u, v = (np.clip(a, *np.percentile(a, [2, 98])) for a in (x, y))
    u, v = ((a - a.min()) / max(float(np.ptp(a)), 1e-9) for a in (u, v))
    corners = np.array([[[0.10, 0.30, 0.80], [0.10, 0.65, 0.55]], [[0.75, 0.15, 0.45], [0.95, 0.75, 0.10]]])  # [u, v]
    mixed = (
        corners[0, 0] * ((1 - u) * (1 - v))[:, None]
        + corners[0, 1] * ((1 - u) * v)[:, None]
        + corners[1, 0] * (u * (1 - v))[:, None]
        + corners[1, 1] * (u * v)[:, None]
    )
    return np.asarray(mixed)
