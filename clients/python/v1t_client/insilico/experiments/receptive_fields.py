"""Artificial receptive fields (paper A.5): response-weighted white noise, and a Gaussian fitted to it.

    map = covariance of response and noise over N images      then |map| / chance ~ offset + a 2-D Gaussian

One Gaussian cannot describe a field with several lobes: the fit may settle on the strongest lobe. The centre of the
whole field is therefore measured as well, with a Gaussian fitted to the map's energy blurred by 2 elements
(`envelope_x`, `envelope_y`).

The noise of a map makes the fitted Gaussian narrower, so sizes grow with the number of images. How much is measured by
adding as much noise as the map has, which is what half as many images would have given, and fitting again
(`sigma_half`); from both sizes the bias is extrapolated.

With a `Client` the server accumulates the maps (`POST /receptive_fields`); with any other predictor this module does.
Memory does not grow with N.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from v1t_client._answers.notes import Note
from v1t_client._answers.prediction import count as counted
from v1t_client._client import Client
from v1t_client._errors import InvalidArgument
from v1t_client._options import count, number
from v1t_client.insilico.experiments import receptive_field_figures as rf_figures
from v1t_client.insilico.experiments.receptive_field_stream import server_sums
from v1t_client.insilico.fitting.gaussian import GaussianFit, blurred, fit_gaussians
from v1t_client.insilico.framework.checkpoint import Work
from v1t_client.insilico.framework.experiment import Experiment
from v1t_client.insilico.framework.result import Result, variable
from v1t_client.insilico.framework.subject import BATCH, Subject
from v1t_client.insilico.stimuli.noise import NoiseSums, enlarge, noise_grid, white_noise

if TYPE_CHECKING:
    import xarray

__all__ = ["ReceptiveFields", "noise_sums", "receptive_field_centers"]

Array = npt.NDArray[np.float64]
WORTH_A_NOTE = 0.02  # relative bias of the sizes
RELIABLE = 6.0  # chance levels; the highest of 2,304 elements without a field is at 3.9
ENVELOPE = 2.0  # blur of the energy, elements at 36 rows: about the distance between lobes
BLOCK = 256  # images in one matrix product


@dataclass(frozen=True, kw_only=True)
class ReceptiveFields(Experiment):
    """Receptive fields measured with white noise.

    Attributes:
        n_images: how many noise images. The paper uses 500,000; the noise of a map falls with the square root.
        contrast: std of the noise, in stds of the training images.
        rows: rows of noise squares; None: 36 as in the published models, where the image height is a multiple of it.
        chunk: images per request, and between two saves.
    """

    name: ClassVar[str] = "rf"
    summary: ClassVar[str] = "map receptive fields with white noise, and fit a Gaussian to each"
    examples: ClassVar[str] = """\
examples:
  v1t rf A --images 20000 --output rf-A              all neurons of mouse A
  v1t rf A --best 100 --monitor 56.5x31.8@15 --output rf-A      sizes in degrees too
  v1t rf SIM1 --bundle exported_models/demo --images 5000 --output rf-SIM1
"""

    n_images: int = 500_000
    contrast: float = 1.0
    rows: int | None = None
    chunk: int = 5_000

    def __post_init__(self) -> None:
        if self.n_images < 100 or self.chunk < 1:
            raise InvalidArgument("too few noise images", got=self.n_images, expected="at least 100")
        if not 0 < self.contrast <= 10:
            raise InvalidArgument("contrast is out of range", got=self.contrast, expected="above 0, up to 10")

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        own = parser.add_argument_group("noise")
        own.add_argument(
            "--images",
            dest="n_images",
            type=count,
            default=cls.n_images,
            metavar="N",
            help="number of images (%(default)s)",
        )
        own.add_argument(
            "--contrast", type=number, default=cls.contrast, help="std, in stds of the training images (%(default)s)"
        )
        own.add_argument("--rows", type=count, help="rows of noise squares (36 if it divides the height)")
        own.add_argument("--chunk", type=count, default=cls.chunk, help="images between two saves (%(default)s)")

    def measure(self, subject: Subject, work: Work) -> xarray.Dataset:
        grid = noise_grid(subject.mouse.image_shape, self.rows)
        sums = self._sums(subject, work, grid)
        chance = sums.chance()
        maps = sums.weighted_average()
        # Scored against chance, which has mean 0: subtracting the map's own mean would bias the surround of a field.
        z = np.abs(maps) / np.where(chance > 0, chance, np.inf)[:, None, None]
        peak = z.max((1, 2))
        with work.progress(2 * len(subject), "Gaussian fits") as bar:
            fit = fit_gaussians(z, tick=bar.update)
            envelope = fit_gaussians(np.sqrt(blurred(z**2, ENVELOPE * grid[0] / 36)), tick=bar.update)
            half = self._sigma_half(maps, chance, fit.ok & (peak > RELIABLE))
        factor = subject.mouse.image_shape[1] // grid[0]
        bias, error = rf_figures.size_bias(half, (fit.major + fit.minor) / 2)
        if abs(bias) >= WORTH_A_NOTE:
            message = (
                f"sizes of receptive fields over {sums.n_images:,} images are "
                f"{rf_figures.described_bias(bias, error)}; compare them with sizes over as many images only"
            )
            subject.notes.append(Note("size_depends_on_images", None, message))
        return self._dataset(subject, sums, maps, peak, fit, envelope, grid).assign(
            sigma_half=variable(factor * half, "px", "mean of both sigmas, as over half as many images")
        )

    def _sigma_half(self, maps: Array, chance: Array, rows: npt.NDArray[np.bool_]) -> Array:
        """(n,) mean of both sigmas, in elements, of maps with the noise of half as many images; NaN without a fit."""
        found = np.full(len(maps), np.nan)
        if rows.any():
            rng = np.random.default_rng([self.seed, self.n_images])
            noisier = maps[rows] / chance[rows, None, None] + rng.standard_normal(maps[rows].shape)
            fit = fit_gaussians(np.abs(noisier) / np.sqrt(2))
            found[rows] = np.where(fit.ok, (fit.major + fit.minor) / 2, np.nan)
        return found

    def _sums(self, subject: Subject, work: Work, grid: tuple[int, int]) -> NoiseSums:
        state: dict[str, Any] = NoiseSums.empty(len(subject), grid).arrays()
        with work.resume(
            "sums", state, self.n_images, batch=self.chunk, counter="n_images", label="noise images"
        ) as loop:
            sums = NoiseSums.from_arrays(state)  # shares the arrays of the state
            for piece in loop:
                sums.add(noise_sums(subject, self, first=piece.start, n=len(piece), grid=grid, progress=loop.advance))
        return sums

    def _dataset(
        self,
        subject: Subject,
        sums: NoiseSums,
        maps: npt.NDArray[np.float64],
        peak: npt.NDArray[np.float64],
        fit: GaussianFit,
        envelope: GaussianFit,
        grid: tuple[int, int],
    ) -> xarray.Dataset:
        factor = subject.mouse.image_shape[1] // grid[0]
        center = factor * (fit.center + 0.5) - 0.5  # px of the image
        # Where the fit of the envelope failed, the centre of the field is used.
        middle = np.where(envelope.ok[:, None], factor * (envelope.center + 0.5) - 0.5, center)
        ok = fit.ok & (peak > 0)
        variables = {
            "map": variable(
                maps.astype(np.float32),
                "1",
                "covariance of standardised response and standardised noise",
                dims=("neuron", "y", "x"),
            ),
            "center_x": variable(center[:, 0], "px", "centre of the fitted Gaussian, right"),
            "center_y": variable(center[:, 1], "px", "centre of the fitted Gaussian, down"),
            "envelope_x": variable(middle[:, 0], "px", "middle of the whole field, right"),
            "envelope_y": variable(middle[:, 1], "px", "middle of the whole field, down"),
            "sigma_major": variable(factor * fit.major, "px"),
            "sigma_minor": variable(factor * fit.minor, "px"),
            "angle": variable(fit.angle, "deg", "of the major axis, from x towards y"),
            "amplitude": variable(fit.amplitude, "1", "of the fitted Gaussian, z"),
            "offset": variable(fit.offset, "1", "of the fitted Gaussian, z"),
            "fit_r2": variable(fit.r2, "1", "share of the map's variance that the fit explains"),
            "fitted": variable(ok, "1", "False: no fit; the fit's values are what was tried"),
            "peak": variable(peak, "1", "highest element over its chance level"),
            "reliable": variable(ok & (peak > RELIABLE), "1", f"fitted, with peak > {RELIABLE:g}"),
            "response_mean": variable(sums.total / sums.n_images, "std of responses"),
        }
        monitor = subject.screen.monitor
        if monitor is not None:
            x, y = subject.screen.place(center[:, 0], center[:, 1])
            variables |= {
                "azimuth": variable(x, "deg", "centre, right of the screen's middle"),
                "elevation": variable(-y, "deg", "centre, above the screen's middle"),
                "sigma_deg": variable(
                    np.asarray(monitor.degrees(factor * (fit.major + fit.minor) / 2)), "deg", "mean of both sigmas"
                ),
            }
        coords = {
            "x": variable(factor * (np.arange(grid[1]) + 0.5) - 0.5, "px", dims="x"),
            "y": variable(factor * (np.arange(grid[0]) + 0.5) - 0.5, "px", dims="y"),
        }
        dataset = subject.dataset(variables, coords)
        return dataset.assign_attrs(
            n_images=sums.n_images, image_height=subject.mouse.image_shape[1], image_width=subject.mouse.image_shape[2]
        )

    def draw(self, result: Result) -> dict[str, Any]:
        return {
            "maps": rf_figures.maps(result),
            "sizes": rf_figures.sizes(result),
            "centers": rf_figures.centers(result),
        }

    def summarize(self, result: Result) -> str:
        data = result.dataset
        reliable = data["reliable"].values
        n_images, n_failed = data.attrs["n_images"], int((~data["fitted"].values).sum())
        lines = [
            f"{reliable.sum():,} of {counted(len(reliable), 'neuron')} {'has' if len(reliable) == 1 else 'have'} a "
            f"receptive field over {counted(n_images, 'image')}; {n_failed:,} without a fit are marked in the table"
        ]
        if reliable.any():
            lines.append(rf_figures.median_size(result))
        return "\n".join(lines)


def noise_sums(
    subject: Subject,
    experiment: ReceptiveFields,
    *,
    first: int,
    n: int,
    grid: tuple[int, int],
    progress: Callable[[int], object] = lambda n: None,
) -> NoiseSums:
    """The sums over noise images first to first + n - 1, accumulated by the server, or here without a server."""
    screen = subject.screen
    std = experiment.contrast * screen.noise_std
    if isinstance(subject.predictor, Client):
        arguments = {
            "mouse": subject.mouse.mouse_id,
            "model": subject.mouse.model,
            "seed": experiment.seed,
            "first_image": first,
            "n_images": n,
            "grid": list(grid),
            "luminance": screen.luminance,
            "contrast": std,
            **({} if subject.all_neurons else {"neuron_ids": subject.neurons.neuron_ids.tolist()}),
            **subject.state,
        }
        sums, about = server_sums(subject.predictor, arguments, progress=progress)
        subject.note(about)
        return sums
    sums = NoiseSums.empty(len(subject), grid)
    for start in range(first, first + n, BLOCK):
        noise = white_noise(experiment.seed, start, min(BLOCK, first + n - start), grid)
        responses = []
        for piece in range(0, len(noise), BATCH):
            images = screen.luminance + std * enlarge(noise[piece : piece + BATCH], subject.mouse.image_shape)
            responses.append(subject.respond(images))
            progress(len(images))
        sums.show(noise, np.concatenate(responses))
    return sums


def receptive_field_centers(subject: Subject, folder: Path) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Receptive field centres (x, y) relative to the screen's centre in its unit, and which of them are reliable.

    Args:
        folder: a result of `ReceptiveFields`.
    """
    found = Result.load(folder)
    data = found.dataset
    if found.receipt.experiment != "rf" or data.attrs["model_hash"] != subject.model.hash:
        raise InvalidArgument(
            "these receptive fields are not of this mouse's twin",
            got=f"{found.receipt.experiment} of {data.attrs['mouse']} by {data.attrs['model']}",
            hint=f"Run v1t rf {subject.mouse.mouse_id} --output ... first.",
        )
    row = {int(neuron_id): i for i, neuron_id in enumerate(data["neuron"].values)}
    rows = np.array([row.get(int(neuron_id), -1) for neuron_id in subject.neurons.neuron_ids])
    known = (rows >= 0) & (data["reliable"].values[rows]) & (data.attrs["mouse"] == subject.mouse.mouse_id)
    x, y = subject.screen.place(data["envelope_x"].values[rows], data["envelope_y"].values[rows])
    return x, y, known
