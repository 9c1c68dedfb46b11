"""The screen: draws stimuli in the grey levels and image size of the recording.

Positions and lengths are in the screen's `unit`, "px" or "deg"; frequencies in cycles per unit. Positions (x, y) are
relative to the image's centre; x points right, y down. Angles are in degrees: the direction along which a wave runs,
from x towards y, so bars are perpendicular to it; simulated mice use the same convention. Contrast is the Michelson
contrast of the wave before its envelope: levels run from luminance x (1 - contrast) to luminance x (1 + contrast).

Every parameter may be an array. Parameters are broadcast, and the result has one image per element: (B, H, W) float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from v1t_client._answers.mice import MouseDetail
from v1t_client._errors import InvalidArgument
from v1t_client.insilico.stimuli.monitor import Monitor

__all__ = ["Screen", "Unit"]

Unit = Literal["px", "deg"]
Images = npt.NDArray[np.float32]
STANDARDIZED_SWING = 2.0  # stds of a standardised image at contrast 1, about black and white of natural images


@dataclass(frozen=True, kw_only=True)
class Screen:
    """Draws stimuli for one mouse.

    Attributes:
        shape: (C, H, W); a drawn image is the same in all channels.
        luminance: level of the background, in the recording's units.
        swing: difference between background and peak at contrast 1.
        noise_std: std of the training images, for noise.
        monitor: needed where `unit` is "deg".
        unit: of all positions and lengths.
    """

    shape: tuple[int, int, int]
    luminance: float
    swing: float
    noise_std: float
    monitor: Monitor | None = None
    unit: Unit = "px"

    @classmethod
    def of(cls, mouse: MouseDetail, *, monitor: Monitor | None = None, luminance: float | None = None) -> Screen:
        """The screen of a mouse, in degrees if there is a monitor, otherwise in pixels.

        The luminance is the mean of the training images by default. Where inputs are standardised there are no grey
        levels: the background is 0, contrast 1 means 2 stds, and luminance cannot be set.
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
            raise InvalidArgument("luminance is not a grey level", got=level, expected="above 0")
        std = float(np.mean(stds)) if stds else level / 2
        return cls(shape=mouse.image_shape, luminance=level, swing=level, noise_std=std, monitor=fitted, unit=unit)

    def in_unit(self, unit: Unit) -> Screen:
        """The same screen in another unit.

        Raises:
            InvalidArgument: degrees need a monitor.
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
        """Converts pixel coordinates, counted from the centre of the top left pixel, to positions on this screen."""
        _, H, W = self.shape
        return (np.asarray(x_px) - (W - 1) / 2) / self.px, (np.asarray(y_px) - (H - 1) / 2) / self.px

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
        """Sinusoidal gratings in a disc of `diameter`, or in a ring that starts at diameter `inner`.

        Args:
            phase: of the cosine at (x, y), degrees.
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
        """Gabors: sinusoids with a Gaussian envelope of `sigma` along the wave and `aspect` x sigma along the bars."""
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
        """An image at several contrasts: background + contrast x (image - background)."""
        deviation = np.asarray(image, dtype=np.float64) - self.luminance  # (H, W)
        return (self.luminance + np.asarray(contrasts)[:, None, None] * deviation).astype(np.float32)

    def _columns(self, *values: npt.ArrayLike) -> list[np.ndarray]:
        """Broadcasts the values, each to (B, 1, 1)."""
        arrays = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in values))
        return [array.reshape(-1, 1, 1) for array in arrays]

    def _offsets(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, H, W) distances of the pixel centres from (x, y), in the screen's unit."""
        _, H, W = self.shape
        columns, rows = self.place(np.arange(W), np.arange(H))
        return columns[None, None, :] - x, rows[None, :, None] - y

    def _wave(
        self, dx: np.ndarray, dy: np.ndarray, direction: np.ndarray, frequency: np.ndarray, phase: np.ndarray
    ) -> np.ndarray:
        angle = np.radians(direction)
        return np.cos(2 * np.pi * frequency * (dx * np.cos(angle) + dy * np.sin(angle)) + np.radians(phase))

    def _disc(self, dx: np.ndarray, dy: np.ndarray, diameter: np.ndarray, edge: np.ndarray) -> np.ndarray:
        """1 inside, 0 outside, a raised cosine in between."""
        width = np.maximum(edge, 1 / self.px)
        inside = np.clip((diameter / 2 - np.hypot(dx, dy)) / width + 0.5, 0, 1)
        return np.where(diameter > 0, (1 - np.cos(np.pi * inside)) / 2, 0.0)

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
