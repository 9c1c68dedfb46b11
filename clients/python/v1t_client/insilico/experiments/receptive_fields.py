"""Artificial receptive fields (paper A.5): response-weighted noise, and a Gaussian fitted to it.

    map = covariance of response and noise over N images      then |map| / chance ~ offset + a 2-D Gaussian

One Gaussian cannot describe a field with several lobes: the fit may settle on the strongest lobe. The centre of the
whole field is therefore measured as well, with a Gaussian fitted to the map's energy blurred by 2 elements
(`envelope_x`, `envelope_y`).

The noise of a map makes the fitted Gaussian narrower, so sizes grow with the number of images. How much is measured by
adding as much noise as the map has, which is what half as many images would have given, and fitting again
(`sigma_half`); from both sizes the bias is extrapolated.

Balanced and orthogonal noise (`stimuli.noise`) cancel most of the noise of a map after a whole block of images, so they
need a fraction of the images that the paper's white noise needs.

With a `Client` the server accumulates the maps (`POST /receptive_fields`); with any other predictor this module does.
Memory does not grow with N.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np
import numpy.typing as npt

from v1t_client._answers.notes import Note
from v1t_client._answers.prediction import count as counted
from v1t_client._errors import InvalidArgument
from v1t_client._options import count, number
from v1t_client.insilico.experiments import receptive_field_figures as rf_figures
from v1t_client.insilico.experiments.mapped_fields import RELIABLE, MappedFields
from v1t_client.insilico.experiments.noise_mapping import Halves, Noise, noise_sums
from v1t_client.insilico.fitting.gaussian import GaussianFit, blurred, fit_gaussians
from v1t_client.insilico.framework.checkpoint import Work
from v1t_client.insilico.framework.experiment import Experiment
from v1t_client.insilico.framework.result import Result, variable
from v1t_client.insilico.framework.subject import Subject
from v1t_client.insilico.stimuli.noise import NoiseKind, NoiseSums, noise_grid

if TYPE_CHECKING:
    import xarray

__all__ = ["ReceptiveFields", "receptive_field_centers"]

Array = npt.NDArray[np.float64]
WORTH_A_NOTE = 0.02  # relative bias of the sizes
ENVELOPE = 2.0  # blur of the energy, elements at 36 rows: about the distance between lobes
MOST_IMAGES, DEFAULT_UNTIL = 500_000, 0.05
CHECKED_EVERY = 1.25  # times as many images


@dataclass(frozen=True, kw_only=True)
class ReceptiveFields(Experiment):
    """Receptive fields measured with noise.

    Attributes:
        n_images: at most how many noise images. Of noise in blocks, whole blocks are shown. The paper uses 500,000;
            the noise of a map falls with the square root. None: at most 500,000, and `until` is 0.05 unless given.
        until: stop as soon as the standard errors of centre and size are at most this share of the size, in 9 of 10
            neurons with a receptive field; the bias of the sizes counts as an error. 0.05 means sizes within 5 %, and
            centres within 0.5 px where sigma is 10 px. Checked between chunks, after two blocks and two chunks at
            least. The result is that of a run with `n_images` of where it stopped. None: never.
        noise: "white" as in the paper, "antithetic", "orthogonal" or "balanced"; see `stimuli.noise`. None: balanced
            if `n_images` is at least a block, otherwise orthogonal.
        contrast: std of the noise, in stds of the training images.
        rows: rows of noise squares; None: 36 as in the published models, where the image height is a multiple of it.
        chunk: about how many images per request, and between two saves: rounded to whole blocks of noise.
    """

    name: ClassVar[str] = "rf"
    summary: ClassVar[str] = "map receptive fields with noise, and fit a Gaussian to each"
    examples: ClassVar[str] = """\
examples:
  v1t rf A --output rf-A                             all neurons of mouse A, until 9 in 10 are known to 5 %
  v1t rf A --images 500000 --noise white --output rf-A          as in the paper
  v1t rf A --best 100 --monitor 56.5x31.8@15 --output rf-A      sizes in degrees too
  v1t rf SIM1 --bundle exported_models/demo --images 5000 --output rf-SIM1
"""

    n_images: int | None = None
    until: float | None = None
    noise: NoiseKind | None = None
    contrast: float = 1.0
    rows: int | None = None
    chunk: int = 5_000

    def __post_init__(self) -> None:
        if self.n_images is None:
            object.__setattr__(self, "until", DEFAULT_UNTIL if self.until is None else self.until)
            object.__setattr__(self, "n_images", MOST_IMAGES)
        if self._most < 100 or self.chunk < 1:
            raise InvalidArgument("too few noise images", got=self.n_images, expected="at least 100")
        if not 0 < self.contrast <= 10:
            raise InvalidArgument("contrast is out of range", got=self.contrast, expected="above 0, up to 10")
        if self.until is not None and not 0 < self.until < 1:
            raise InvalidArgument("until is out of range", got=self.until, expected="above 0, below 1")
        if self.noise not in (None, *get_args(NoiseKind)):
            raise InvalidArgument("no such noise", got=self.noise, expected=", ".join(get_args(NoiseKind)))

    @property
    def _most(self) -> int:
        assert self.n_images is not None, "set by __post_init__"
        return self.n_images

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        own = parser.add_argument_group("noise")
        own.add_argument(
            "--images",
            dest="n_images",
            type=count,
            metavar="N",
            help="number of images (default: at most 500000, with --until 0.05)",
        )
        own.add_argument(
            "--until",
            type=number,
            metavar="SHARE",
            help="stop when 9 in 10 receptive fields are known: standard errors of centre and size at most this share "
            "of the size",
        )
        own.add_argument(
            "--noise",
            choices=get_args(NoiseKind),
            help="white as in the paper; default: balanced from a block of images on, otherwise orthogonal",
        )
        own.add_argument(
            "--contrast", type=number, default=cls.contrast, help="std, in stds of the training images (%(default)s)"
        )
        own.add_argument("--rows", type=count, help="rows of noise squares (36 if it divides the height)")
        own.add_argument("--chunk", type=count, default=cls.chunk, help="images between two saves, about (%(default)s)")

    def measure(self, subject: Subject, work: Work) -> xarray.Dataset:
        grid = noise_grid(subject.mouse.image_shape, self.rows)
        noise = Noise.of(self.noise, self._most, seed=self.seed, grid=grid, contrast=self.contrast)
        found = self._mapped(subject, work, noise)
        with work.progress(len(subject), "envelopes") as bar:
            z = np.abs(found.maps) / found.scale[:, None, None]
            envelope = fit_gaussians(np.sqrt(blurred(z**2, ENVELOPE * grid[0] / 36)), tick=bar.advance)
        if abs(found.bias) >= WORTH_A_NOTE:
            message = (
                f"sizes of receptive fields over {found.sums.n_images:,} images are "
                f"{rf_figures.described_bias(found.bias, found.bias_error)}; compare them with sizes over as many "
                "images of the same noise only"
            )
            subject.notes.append(Note("size_depends_on_images", None, message))
        return self._dataset(subject, found, envelope, noise)

    def _mapped(self, subject: Subject, work: Work, noise: Noise) -> MappedFields:
        """The fields over all images, or until they are known."""
        empty = NoiseSums.empty(len(subject), noise.grid), NoiseSums.empty(len(subject), noise.grid)
        state: dict[str, Any] = Halves(empty).arrays()
        total = noise.whole(self._most)
        chunk = noise.chunk(total, self.chunk)
        with work.resume(
            "sums", state, total, batch=chunk, counter="n_images", label="noise images", at_most=self.until is not None
        ) as loop:
            halves = Halves.from_arrays(state)  # shares the arrays of the state
            for piece in loop:
                # Before the chunk, so that a resumed run decides the same.
                if self._is_due(piece.start, chunk, noise) and (found := self._fit(halves, noise)).known(self.until):
                    return found
                i = piece.start // chunk % 2
                halves.parts[i].add(noise_sums(subject, noise, first=piece.start, n=len(piece), progress=loop.advance))
                state[f"n_images_{i}"] = halves.parts[i].n_images
        with work.progress(len(subject), "Gaussian fits") as bar:
            return self._fit(halves, noise, tick=bar.advance)

    def _is_due(self, n: int, chunk: int, noise: Noise) -> bool:
        """Whether to look after n images if the fields are known: not too early, and rarely where n is large."""
        if self.until is None or n < 2 * max(chunk, noise.block):
            return False
        checks = np.log([n - chunk, n]) // np.log(CHECKED_EVERY)
        return bool(checks[1] > checks[0]) or n == 2 * chunk

    def _fit(self, halves: Halves, noise: Noise, tick: Callable[[int], object] = lambda n: None) -> MappedFields:
        return MappedFields.of(halves.total, halves.chance(noise), seed=self.seed, tick=tick)

    def _dataset(
        self,
        subject: Subject,
        found: MappedFields,
        envelope: GaussianFit,
        noise: Noise,
    ) -> xarray.Dataset:
        fit, sums, grid = found.fit, found.sums, noise.grid
        factor = subject.mouse.image_shape[1] // grid[0]
        center = factor * (fit.center + 0.5) - 0.5  # px of the image
        # Where the fit of the envelope failed, the centre of the field is used.
        middle = np.where(envelope.ok[:, None], factor * (envelope.center + 0.5) - 0.5, center)
        variables = {
            "map": variable(
                found.maps.astype(np.float32),
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
            "sigma_half": variable(factor * found.half, "px", "mean of both sigmas, as over half as many images"),
            "center_error": variable(factor * found.center_error, "px", "standard error of the centre"),
            "sigma_error": variable(found.size_error, "1", "relative standard error of the mean of both sigmas"),
            "fitted": variable(found.fitted, "1", "False: no fit; the fit's values are what was tried"),
            "peak": variable(found.peak, "1", "highest element over its chance level"),
            "reliable": variable(found.reliable, "1", f"fitted, with peak > {RELIABLE:g}"),
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
            n_images=sums.n_images,
            noise=noise.kind,
            image_height=subject.mouse.image_shape[1],
            image_width=subject.mouse.image_shape[2],
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
        have = "has" if len(reliable) == 1 else "have"
        lines = [
            f"{reliable.sum():,} of {counted(len(reliable), 'neuron')} {have} a receptive field over "
            f"{counted(n_images, 'image')} of {data.attrs.get('noise', 'white')} noise; "
            f"{n_failed:,} without a fit are marked in the table"
        ]
        if reliable.any():
            lines.append(rf_figures.median_size(result))
        return "\n".join(lines)


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
