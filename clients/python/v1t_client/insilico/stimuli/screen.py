"""Stimuli: what can be drawn on a mouse's screen, in the recording's own grey levels and size.

Places and lengths are in the screen's `unit`, "px" or "deg"; frequencies in cycles per unit. Places (x, y) are relative
to the image's middle; x right, y down. Angles are degrees: the direction along which a wave runs, from x towards y, so
bars are perpendicular to it; the same convention as the simulated mice's truth. Contrast is Michelson's, of the wave
before its envelope: levels run from luminance x (1 - contrast) to luminance x (1 + contrast).

Every parameter may be an array; they are broadcast, and the result has one image per element: (B, H, W) float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from v1t_client._answers.mice import MouseDetail
from v1t_client._errors import InvalidArgument
from v1t_client._extras import needed
from v1t_client.insilico.stimuli.monitor import Monitor

__all__ = ["Screen", "Unit", "image_files", "read_images"]

Unit = Literal["px", "deg"]
Images = npt.NDArray[np.float32]
STANDARDIZED_SWING = 2.0  # stds that contrast 1 moves a standardised image, about black and white of natural images
_ENDINGS = (".png", ".jpg", ".jpeg", ".npy")


@dataclass(frozen=True, kw_only=True)
class Screen:
    """Draws stimuli for one mouse.

    Attributes:
        shape: (C, H, W); a drawn image is the same in all channels.
        luminance: level of the background, in the recording's units. Default of `of`: the training images' mean.
        swing: how far contrast 1 moves a level from the background.
        noise_std: std of the training images, for noise.
        monitor: needed where `unit` is "deg".
        unit: of every place and length.
    """

    shape: tuple[int, int, int]
    luminance: float
    swing: float
    noise_std: float
    monitor: Monitor | None = None
    unit: Unit = "px"

    @classmethod
    def of(cls, mouse: MouseDetail, *, monitor: Monitor | None = None, luminance: float | None = None) -> Screen:
        """The screen of a mouse, in degrees where there is a monitor, else in pixels.

        A mouse whose inputs are standardised already has no grey levels: there the background is 0, contrast 1 means
        2 stds, and luminance cannot be chosen.
        """
        _, H, W = mouse.image_shape
        fitted = None if monitor is None else monitor.fitted(H, W)
        unit: Unit = "px" if monitor is None else "deg"
        if mouse.standardized_inputs:
            if luminance is not None:
                raise InvalidArgument(
                    f"mouse {mouse.mouse_id!r} takes standardised images, which have no luminance",
                    got=f"luminance {luminance:g}",
                    hint="Import the twin with its recording (--recordings), or leave luminance out.",
                )
            return cls(
                shape=mouse.image_shape,
                luminance=0.0,
                swing=STANDARDIZED_SWING,
                noise_std=1.0,
                monitor=fitted,
                unit=unit,
            )
        means = [channel.mean for channel in mouse.image_channels if channel.mean is not None]
        stds = [channel.std for channel in mouse.image_channels if channel.std is not None]
        if luminance is None and not means:
            raise InvalidArgument(
                f"the mean luminance of mouse {mouse.mouse_id!r} is not known", hint="Give luminance."
            )
        level = float(np.mean(means)) if luminance is None else float(luminance)
        if level <= 0:
            raise InvalidArgument("luminance is no grey level", got=level, expected="above 0")
        std = float(np.mean(stds)) if stds else level / 2
        return cls(shape=mouse.image_shape, luminance=level, swing=level, noise_std=std, monitor=fitted, unit=unit)

    def in_unit(self, unit: Unit) -> Screen:
        """The same screen, asked in another unit.

        Raises:
            InvalidArgument: degrees without a monitor.
        """
        if unit == "deg" and self.monitor is None:
            raise InvalidArgument(
                "degrees of visual angle need the monitor's geometry",
                expected="Monitor(width_cm=..., height_cm=..., distance_cm=...), or --monitor WIDTHxHEIGHT@DISTANCE",
                hint="Or give lengths in pixels.",
            )
        return replace(self, unit=unit)

    @property
    def px(self) -> float:
        """Pixels in one unit."""
        if self.unit == "px":
            return 1.0
        assert self.monitor is not None
        return self.monitor.pixels_per_degree

    def place(self, x_px: npt.ArrayLike, y_px: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Places in this screen's unit from the middle, of pixels counted from the top left pixel's middle."""
        _, H, W = self.shape
        return (np.asarray(x_px) - (W - 1) / 2) / self.px, (np.asarray(y_px) - (H - 1) / 2) / self.px

    # Drawing

    def blank(self, n: int = 1) -> Images:
        """Uniform background."""
        return np.full((n, *self.shape[1:]), self.luminance, dtype=np.float32)

    def grating(
        self,
        *,
        direction: npt.ArrayLike,
        frequency: npt.ArrayLike,
        phase: npt.ArrayLike = 0.0,
        contrast: npt.ArrayLike = 1.0,
        x: npt.ArrayLike = 0.0,
        y: npt.ArrayLike = 0.0,
        diameter: npt.ArrayLike = np.inf,
        inner: npt.ArrayLike = 0.0,
        edge: npt.ArrayLike = 0.0,
    ) -> Images:
        """Sinusoids; `phase` [deg] is that of the cosine at (x, y). In a disc of `diameter`, or a ring from `inner`.

        Args:
            edge: width of the disc's raised-cosine border, centred on its nominal radius; at least one pixel.
        """
        values = self._columns(direction, frequency, phase, contrast, x, y, diameter, inner, edge)
        direction_, frequency_, phase_, contrast_, x_, y_, diameter_, inner_, edge_ = values
        dx, dy = self._offsets(x_, y_)
        wave = self._wave(dx, dy, direction_, frequency_, phase_)
        window = self._disc(dx, dy, diameter_, edge_) - self._disc(dx, dy, inner_, edge_)
        return self._levels(contrast_ * wave * window)

    def gabor(
        self,
        *,
        direction: npt.ArrayLike,
        frequency: npt.ArrayLike,
        sigma: npt.ArrayLike,
        phase: npt.ArrayLike = 0.0,
        contrast: npt.ArrayLike = 1.0,
        x: npt.ArrayLike = 0.0,
        y: npt.ArrayLike = 0.0,
        aspect: npt.ArrayLike = 1.0,
    ) -> Images:
        """Sinusoids under a Gaussian of `sigma` along the wave and `aspect` x sigma along the bars."""
        values = self._columns(direction, frequency, sigma, phase, contrast, x, y, aspect)
        direction_, frequency_, sigma_, phase_, contrast_, x_, y_, aspect_ = values
        dx, dy = self._offsets(x_, y_)
        angle = np.radians(direction_)
        along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        envelope = np.exp(-0.5 * (along**2 + (across / aspect_) ** 2) / sigma_**2)
        return self._levels(contrast_ * envelope * self._wave(dx, dy, direction_, frequency_, phase_))

    def plaid(
        self,
        *,
        direction: npt.ArrayLike,
        frequency: npt.ArrayLike,
        angle: npt.ArrayLike = 90.0,
        phase: npt.ArrayLike = 0.0,
        contrast: npt.ArrayLike = 1.0,
        x: npt.ArrayLike = 0.0,
        y: npt.ArrayLike = 0.0,
        diameter: npt.ArrayLike = np.inf,
        edge: npt.ArrayLike = 0.0,
    ) -> Images:
        """Two gratings of half the contrast each, `angle` degrees apart; `direction` is that of the first."""
        values = self._columns(direction, frequency, angle, phase, contrast, x, y, diameter, edge)
        direction_, frequency_, angle_, phase_, contrast_, x_, y_, diameter_, edge_ = values
        dx, dy = self._offsets(x_, y_)
        first = self._wave(dx, dy, direction_, frequency_, phase_)
        second = self._wave(dx, dy, direction_ + angle_, frequency_, phase_)
        return self._levels(contrast_ / 2 * (first + second) * self._disc(dx, dy, diameter_, edge_))

    def center_surround(
        self,
        *,
        direction: npt.ArrayLike,
        surround_direction: npt.ArrayLike,
        frequency: npt.ArrayLike,
        diameter: npt.ArrayLike,
        surround_diameter: npt.ArrayLike = np.inf,
        phase: npt.ArrayLike = 0.0,
        contrast: npt.ArrayLike = 1.0,
        surround_contrast: npt.ArrayLike = 1.0,
        x: npt.ArrayLike = 0.0,
        y: npt.ArrayLike = 0.0,
        edge: npt.ArrayLike = 0.0,
    ) -> Images:
        """A grating in a disc, another in the ring around it: iso (same direction) or cross (90 degrees) surround."""
        center = self.grating(
            direction=direction, frequency=frequency, phase=phase, contrast=contrast, x=x, y=y,
            diameter=diameter, edge=edge,
        )  # fmt: skip
        surround = self.grating(
            direction=surround_direction, frequency=frequency, phase=phase, contrast=surround_contrast, x=x, y=y,
            diameter=surround_diameter, inner=diameter, edge=edge,
        )  # fmt: skip
        return center + surround - np.float32(self.luminance)

    def contrast_ramp(self, image: npt.ArrayLike, contrasts: Sequence[float]) -> Images:
        """An image at several contrasts around the background: background + contrast x (image - background)."""
        deviation = np.asarray(image, dtype=np.float64) - self.luminance  # (H, W)
        return (self.luminance + np.asarray(contrasts)[:, None, None] * deviation).astype(np.float32)

    # Grounds

    def _columns(self, *values: npt.ArrayLike) -> list[np.ndarray]:
        """Each as (B, 1, 1)."""
        arrays = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in values))
        return [array.reshape(-1, 1, 1) for array in arrays]

    def _offsets(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, H, W) distances from (x, y), in units; pixels are points at their middles."""
        _, H, W = self.shape
        columns, rows = self.place(np.arange(W), np.arange(H))
        return columns[None, None, :] - x, rows[None, :, None] - y

    def _wave(
        self, dx: np.ndarray, dy: np.ndarray, direction: np.ndarray, frequency: np.ndarray, phase: np.ndarray
    ) -> np.ndarray:
        angle = np.radians(direction)
        wave: np.ndarray = np.cos(2 * np.pi * frequency * (dx * np.cos(angle) + dy * np.sin(angle)) + np.radians(phase))
        return wave

    def _disc(self, dx: np.ndarray, dy: np.ndarray, diameter: np.ndarray, edge: np.ndarray) -> np.ndarray:
        """1 inside, 0 outside, a raised cosine between."""
        width = np.maximum(edge, 1 / self.px)
        inside = np.clip((diameter / 2 - np.hypot(dx, dy)) / width + 0.5, 0, 1)
        window: np.ndarray = np.where(diameter > 0, (1 - np.cos(np.pi * inside)) / 2, 0.0)
        return window

    def _levels(self, signal: np.ndarray) -> Images:
        return (self.luminance + self.swing * signal).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """For a receipt."""
        return {
            "image_shape": list(self.shape),
            "luminance": self.luminance,
            "level_at_contrast_1": self.luminance + self.swing,
            "unit": self.unit,
            "monitor": None if self.monitor is None else self.monitor.to_dict(),
        }


def image_files(folder: Path) -> list[Path]:
    """The natural images of a folder (PNG, JPEG, .npy), in the order of their names.

    Raises:
        InvalidArgument: no such folder, or none in it.
    """
    if not folder.is_dir():
        raise InvalidArgument("there is no such folder of images", got=folder)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)
    if not files:
        raise InvalidArgument("the folder holds no images", got=folder, expected="PNG, JPEG or .npy files")
    return files


def read_images(
    files: Sequence[Path], shape: tuple[int, int, int], *, batch: int = 32
) -> Iterator[tuple[slice, Images]]:
    """Batches (B, C, H, W) of image files, with their positions in the list; memory holds one batch.

    Raises:
        InvalidArgument: a file has another size than `shape`, or cannot be read.
    """
    for start in range(0, len(files), batch):
        piece = files[start : start + batch]
        yield slice(start, start + len(piece)), np.stack([_read_image(path, shape) for path in piece])


def _read_image(path: Path, shape: tuple[int, int, int]) -> Images:
    try:
        if path.suffix.lower() == ".npy":
            pixels = np.load(path, allow_pickle=False)
        else:
            with needed("PIL.Image").open(path) as picture:
                pixels = np.asarray(picture.convert("L") if shape[0] == 1 else picture)
                pixels = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"the image cannot be read: {error}", got=path) from error
    image = pixels[None] if pixels.ndim == 2 else pixels
    if image.shape != shape:
        raise InvalidArgument(
            "an image of the folder has another size than the mouse's",
            got=f"{path.name}: {' x '.join(map(str, image.shape))}",
            expected=f"{' x '.join(map(str, shape))} (C x H x W)",
            hint="Resize the folder once, the same way for all: what is cut or padded is an experimental choice.",
        )
    return image.astype(np.float32)
