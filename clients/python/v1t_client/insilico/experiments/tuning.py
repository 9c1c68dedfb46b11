"""Tuning to gratings: orientation, spatial frequency and contrast, and size where receptive fields are known.

Every curve is a mean over phases. Orientation, frequency and contrast are measured with full-field gratings for all
neurons together. Sizes and surrounds are measured one neuron at a time, centred on its receptive field (`v1t rf`), at
its preferred orientation and frequency.

A twin that sees single images cannot distinguish the two directions of a drifting grating, because the frames are the
same. Its direction tuning repeats its orientation tuning, and its DSI is 0.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from v1t_client._answers.prediction import count as counted
from v1t_client._errors import InvalidArgument
from v1t_client._options import count, numbers
from v1t_client.insilico.experiments import tuning_figures
from v1t_client.insilico.experiments.receptive_fields import receptive_field_centers
from v1t_client.insilico.fitting import tuning_curves as curves
from v1t_client.insilico.framework.checkpoint import Work
from v1t_client.insilico.framework.experiment import Experiment
from v1t_client.insilico.framework.result import Result, variable
from v1t_client.insilico.framework.subject import Subject

if TYPE_CHECKING:
    import xarray

__all__ = ["Tuning"]

Array = npt.NDArray[np.float64]
FREQUENCIES, SIZES = 8, 10
SHORTEST, LONGEST = 1 / 12, 1 / 1.2  # periods, in the image's height
FINEST = 4  # px, the shortest period by default
CONTRASTS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
SHUFFLES = 1000


@dataclass(frozen=True, kw_only=True)
class Tuning(Experiment):
    """Tuning curves of neurons.

    Attributes:
        n_orientations: number of orientations, evenly spaced from 0 to 180 degrees.
        frequencies: cycles per degree, or per px without a monitor; None: 8 from 1.2 to 12 cycles per image height,
            with at least 4 px per cycle.
        n_phases: number of phases, evenly spaced from 0 to 360 degrees.
        contrasts: of the contrast curve; the other curves use the highest.
        rf: folder of a `v1t rf` result of the same mouse; None: sizes are not measured.
        diameters: deg, or px without a monitor; None: 10 from 1/20 to 1.5 image heights.
    """

    name: ClassVar[str] = "tuning"
    summary: ClassVar[str] = "measure tuning to orientation, spatial frequency, contrast and size"
    examples: ClassVar[str] = """\
examples:
  v1t tuning A --output tuning-A                       full-field gratings, lengths in pixels
  v1t tuning A --monitor 56.5x31.8@15 --output tuning-A          in degrees
  v1t tuning A --best 20 --rf rf-A --output tuning-A   also sizes and surrounds, at the fields of `v1t rf A`
"""

    n_orientations: int = 12
    frequencies: tuple[float, ...] | None = None
    n_phases: int = 8
    contrasts: tuple[float, ...] = CONTRASTS
    rf: str | None = None
    diameters: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.n_orientations < 4 or self.n_phases < 2:
            raise InvalidArgument(
                "too few gratings",
                got=f"{self.n_orientations} orientations, {self.n_phases} phases",
                expected="at least 4 and 2",
            )
        for name, least, values in (
            ("frequencies", 4, self.frequencies),
            ("contrasts", 5, self.contrasts),
            ("diameters", 6, self.diameters),
        ):
            if values is not None and (len(values) < least or min(values) < 0 or (np.diff(values) <= 0).any()):
                raise InvalidArgument(
                    f"{name} do not make a curve", got=values, expected=f"{least} or more, increasing"
                )
        if max(self.contrasts) > 1:
            raise InvalidArgument(
                "contrasts are too high", got=max(self.contrasts), expected="Michelson contrasts, 0 to 1"
            )

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        own = parser.add_argument_group("gratings; lengths in degrees with --monitor, else in pixels")
        own.add_argument(
            "--orientations",
            dest="n_orientations",
            type=count,
            default=12,
            metavar="N",
            help="from 0 to 180 deg (%(default)s)",
        )
        own.add_argument(
            "--phases", dest="n_phases", type=count, default=8, metavar="N", help="from 0 to 360 deg (%(default)s)"
        )
        own.add_argument("--frequencies", type=numbers, metavar="F,F,...", help="cycles per degree, or per pixel")
        own.add_argument(
            "--contrasts", type=numbers, default=CONTRASTS, metavar="C,C,...", help="Michelson contrasts, 0 to 1"
        )
        own.add_argument("--rf", metavar="FOLDER", help="a result of `v1t rf`; also measure sizes at its centres")
        own.add_argument("--diameters", type=numbers, metavar="D,D,...", help="degrees, or pixels")

    def measure(self, subject: Subject, work: Work) -> xarray.Dataset:
        gratings = _Gratings(self, subject, work)
        centers = None if self.rf is None else receptive_field_centers(subject, Path(self.rf))
        grid = gratings.grid()  # (n, orientation, frequency, phase)
        chosen = _chosen(gratings, grid)
        contrast = gratings.contrast(chosen)  # (n, contrast, phase)
        variables, coords = _full_field(gratings, grid, chosen, contrast)
        if centers is not None:
            x, y, known = centers
            orientation, frequency = (variables[f"preferred_{name}"][1] for name in ("orientation", "frequency"))
            variables |= gratings.sizes(orientation, frequency, x, y, known)
            coords["diameter"] = variable(gratings.diameters, subject.screen.unit, dims="diameter")
        return subject.dataset(variables, coords)

    def draw(self, result: Result) -> dict[str, Any]:
        return tuning_figures.draw(result)

    def summarize(self, result: Result) -> str:
        data = result.dataset
        tuned = (data["osi_p"] < 0.01) & data["orientation_ok"]
        unit = data["frequency"].attrs["units"]
        lines = [
            f"{int(tuned.sum()):,} of {counted(len(tuned), 'neuron')} {'is' if len(tuned) == 1 else 'are'} tuned to "
            f"orientation (p < 0.01), without {int(np.isfinite(data['second_orientation']).sum()):,} that have two "
            f"peaks; median OSI {float(data['osi'].median()):.2f}",
            f"median preferred frequency {float(data['preferred_frequency'].median()):.3g} {unit}, c50 "
            f"{float(data['c50'].where(data['contrast_ok']).median()):.2f}",
        ]
        if "preferred_diameter" in data:
            lines.append(
                f"median preferred diameter {float(data['preferred_diameter'].median()):.3g} "
                f"{data['preferred_diameter'].attrs['units']}, suppression index "
                f"{float(data['suppression_index'].median()):.2f}"
            )
        return "\n".join(lines)


class _Gratings:
    """The gratings that are shown, and the responses to them; each method resumes from the work folder."""

    def __init__(self, experiment: Tuning, subject: Subject, work: Work) -> None:
        self.experiment, self.subject, self.work = experiment, subject, work
        height = subject.mouse.image_shape[1] / subject.screen.px  # in the screen's unit
        self.orientations = np.arange(experiment.n_orientations) * 180 / experiment.n_orientations
        self.phases = np.arange(experiment.n_phases) * 360 / experiment.n_phases
        finest = min(1 / (SHORTEST * height), subject.screen.px / FINEST)
        self.frequencies = np.array(experiment.frequencies or np.geomspace(1 / (LONGEST * height), finest, FREQUENCIES))
        self.diameters = np.array(experiment.diameters or np.geomspace(height / 20, 1.5 * height, SIZES))
        self.contrasts = np.array(experiment.contrasts)
        if self.frequencies.max() * 2 > subject.screen.px:
            raise InvalidArgument(
                "a frequency is too high for the image's pixels",
                got=f"{self.frequencies.max():.3g} cycles/{subject.screen.unit}",
                expected=f"at most {subject.screen.px / 2:.3g}",
            )

    def _responses(self, name: str, cells: list[dict[str, Any]], label: str) -> Array:
        """(cells, n, phases); a cell is one grating at all phases."""
        n, P = len(self.subject), len(self.phases)
        state = {"responses": np.zeros((len(cells), n, P), dtype=np.float32)}
        every = max(16, state["responses"].nbytes // 2**21)  # cells; large arrays are saved less often
        with self.work.resume(name, state, len(cells), every=every, label=label) as loop:
            for (i,) in loop:
                images = self.subject.screen.grating(**{"phase": self.phases, **cells[i]})
                state["responses"][i] = self.subject.respond(images).T
        return state["responses"].astype(np.float64)

    def grid(self) -> Array:
        """(n, orientation, frequency, phase) at the highest contrast."""
        top = self.contrasts.max()
        cells = [{"direction": o, "frequency": f, "contrast": top} for o in self.orientations for f in self.frequencies]
        responses = self._responses("grid", cells, "orientations and frequencies")
        shape = (len(self.orientations), len(self.frequencies), len(self.subject), len(self.phases))
        return responses.reshape(shape).transpose(2, 0, 1, 3)

    def contrast(self, chosen: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]) -> Array:
        """(n, contrast, phase), each neuron at its preferred cell of the grid."""
        pairs = sorted(set(zip(chosen[0].tolist(), chosen[1].tolist(), strict=True)))
        cells = [
            {"direction": self.orientations[o], "frequency": self.frequencies[f], "contrast": c}
            for o, f in pairs
            for c in self.contrasts
        ]
        responses = self._responses("contrast", cells, "contrasts")
        by_pair = responses.reshape(len(pairs), len(self.contrasts), len(self.subject), len(self.phases))
        row = {pair: i for i, pair in enumerate(pairs)}
        return np.stack([by_pair[row[int(o), int(f)], :, i] for i, (o, f) in enumerate(zip(*chosen, strict=True))])

    def sizes(
        self, orientation: Array, frequency: Array, x: Array, y: Array, known: npt.NDArray[np.bool_]
    ) -> dict[str, Any]:
        """Size curves and surrounds, neuron by neuron, centred at (x, y) where `known`."""
        n, D = len(self.subject), len(self.diameters)
        state = {"curve": np.full((n, D + 1), np.nan)}  # the last column is the blank screen
        with self.work.resume("sizes", state, n, every=10, label="sizes, neuron by neuron") as loop:
            for (i,) in loop:
                if known[i]:
                    state["curve"][i] = self._size_curve(i, orientation[i], frequency[i], x[i], y[i])
        curve = state["curve"]
        found = _sizes(self.diameters, curve[:, :-1], curve[:, -1], known, self.subject.screen.unit)
        surround = self._surrounds(orientation, frequency, x, y, found["preferred_diameter"][1])
        return {**found, **surround}

    def _size_curve(self, i: int, orientation: float, frequency: float, x: float, y: float) -> Array:
        screen, P = self.subject.screen, len(self.phases)
        images = screen.grating(
            direction=orientation,
            frequency=frequency,
            phase=np.tile(self.phases, len(self.diameters)),
            contrast=self.contrasts.max(),
            diameter=np.repeat(self.diameters, P),
            x=x,
            y=y,
        )
        responses = self.subject.only([i]).respond(np.concatenate([images, screen.blank()]))[:, 0]
        return np.append(responses[:-1].reshape(-1, P).mean(1), responses[-1])

    def _surrounds(self, orientation: Array, frequency: Array, x: Array, y: Array, diameter: Array) -> dict[str, Any]:
        """Responses with an iso and a cross surround, divided by the response to the centre alone."""
        n, P = len(self.subject), len(self.phases)
        state = {"ratio": np.full((n, 2), np.nan)}
        with self.work.resume("surrounds", state, n, every=10, label="surrounds, neuron by neuron") as loop:
            for (i,) in loop:
                if np.isfinite(diameter[i]):
                    images = self.subject.screen.center_surround(
                        direction=orientation[i],
                        surround_direction=np.repeat([orientation[i], orientation[i], orientation[i] + 90], P),
                        surround_contrast=np.repeat([0.0, 1.0, 1.0], P) * self.contrasts.max(),
                        contrast=self.contrasts.max(),
                        frequency=frequency[i],
                        phase=np.tile(self.phases, 3),
                        diameter=diameter[i],
                        x=x[i],
                        y=y[i],
                    )
                    alone, iso, cross = self.subject.only([i]).respond(images)[:, 0].reshape(3, P).mean(1)
                    state["ratio"][i] = (iso / alone, cross / alone) if alone > 0 else np.nan
        ratio = state["ratio"]
        described = "response over that to a centre of the preferred diameter alone"
        return {
            "iso_surround": variable(ratio[:, 0], "1", described),
            "cross_surround": variable(ratio[:, 1], "1", described),
        }


def _chosen(gratings: _Gratings, grid: Array) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The preferred cell of the grid of each neuron: orientation, frequency."""
    best = grid.mean(3).reshape(len(grid), -1).argmax(1)
    orientation, frequency = np.unravel_index(best, (len(gratings.orientations), len(gratings.frequencies)))
    return orientation, frequency


def _full_field(
    gratings: _Gratings, grid: Array, chosen: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]], contrast: Array
) -> tuple[dict[str, Any], dict[str, Any]]:
    rows = np.arange(len(grid))
    mean = grid.mean(3)  # (n, orientation, frequency)
    by_orientation, by_frequency = mean[rows, :, chosen[1]], mean[rows, chosen[0], :]
    orientation = curves.fit_orientation(gratings.orientations, by_orientation)
    frequency = curves.fit_frequency(gratings.frequencies, by_frequency)
    by_contrast = contrast.mean(2)
    saturation = curves.fit_contrast(gratings.contrasts, by_contrast)
    p = curves.shuffled_selectivity(
        grid[rows, :, chosen[1]],
        gratings.orientations,
        rng=np.random.default_rng(gratings.experiment.seed),
        n=SHUFFLES,
    )
    around = np.concatenate([gratings.orientations, gratings.orientations + 180])
    at_best = grid[rows, chosen[0], chosen[1]]  # (n, phase)
    first = np.abs(at_best @ np.exp(1j * np.radians(gratings.phases))) * 2 / len(gratings.phases)
    level = at_best.mean(1)
    # Where the fit failed, the vector sum or the best frequency shown is used; `*_ok` marks those neurons.
    vector = curves.preferred_angle(by_orientation, gratings.orientations)
    highest, second = curves.orientation_peaks(by_orientation, gratings.orientations)
    two_peaks = np.isfinite(second)
    preferred = np.where(two_peaks, highest, np.where(orientation.ok, orientation.values[:, 0], vector))
    best_frequency = np.where(frequency.ok, frequency.values[:, 0], gratings.frequencies[chosen[1]])
    unit = f"cycles/{gratings.subject.screen.unit}"
    variables: dict[str, Any] = {
        "response": variable(mean, "std of responses", "mean over phases", dims=("neuron", "orientation", "frequency")),
        "contrast_response": variable(by_contrast, "std of responses", dims=("neuron", "contrast")),
        "preferred_orientation": variable(
            preferred, "deg", "direction in which the wave runs, from x towards y; of two peaks, the higher one"
        ),
        "second_orientation": variable(second, "deg", "of a second peak; NaN: the curve has one peak"),
        "osi": variable(curves.orientation_selectivity(by_orientation, gratings.orientations), "1"),
        "osi_p": variable(p, "1", f"of {SHUFFLES} shuffles of the images"),
        "dsi": variable(
            curves.direction_selectivity(np.tile(by_orientation, 2), around),
            "1",
            "0 for a twin of single images: both directions have the same frames",
        ),
        "kappa": variable(orientation.values[:, 1], "1", "of the von Mises function"),
        "orientation_r2": variable(orientation.r2, "1"),
        "orientation_ok": variable(
            orientation.ok & ~two_peaks, "1", "False: two peaks, or the vector sum stands in for a fit"
        ),
        "preferred_frequency": variable(best_frequency, unit),
        "frequency_width": variable(frequency.values[:, 1], "octaves", "at half height"),
        "frequency_r2": variable(frequency.r2, "1"),
        "frequency_ok": variable(frequency.ok, "1", "False: the best that was shown stands in"),
        "phase_modulation": variable(first / np.where(level > 0, level, np.inf), "1", "F1 / F0"),
        "c50": variable(saturation.values[:, 0], "1"),
        "contrast_exponent": variable(saturation.values[:, 1], "1"),
        "contrast_r2": variable(saturation.r2, "1"),
        "contrast_ok": variable(saturation.ok, "1"),
    }
    coords = {
        "orientation": variable(gratings.orientations, "deg", dims="orientation"),
        "frequency": variable(gratings.frequencies, unit, dims="frequency"),
        "contrast": variable(gratings.contrasts, "1", dims="contrast"),
    }
    return variables, coords


def _sizes(diameters: Array, curve: Array, blank: Array, known: npt.NDArray[np.bool_], unit: str) -> dict[str, Any]:
    """Preferred diameter and suppression index of the fitted curve, above the response to the blank screen."""
    n = len(curve)
    preferred, index, r2, ok = np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, dtype=bool)
    if known.any():
        fit = curves.fit_size(diameters, curve[known])
        fine = np.linspace(diameters[0], diameters[-1], 500)
        evoked = fit.curve(fine) - blank[known, None]
        peak = evoked.max(1)
        # The smallest diameter within 1 % of the peak, which is also defined for a curve that only saturates.
        near = (evoked >= 0.99 * peak[:, None]).argmax(1)
        preferred[known] = np.where(fit.ok, fine[near], np.nan)
        index[known] = np.where(fit.ok & (peak > 0), (peak - evoked[:, -1]) / np.where(peak > 0, peak, 1), np.nan)
        r2[known], ok[known] = fit.r2, fit.ok
    return {
        "size_response": variable(curve, "std of responses", dims=("neuron", "diameter")),
        "blank_response": variable(blank, "std of responses"),
        "preferred_diameter": variable(preferred, unit, "smallest within 1 % of the peak"),
        "suppression_index": variable(index, "1", "(peak - largest) / peak, above the blank screen"),
        "size_r2": variable(r2, "1"),
        "size_ok": variable(ok, "1"),
    }
