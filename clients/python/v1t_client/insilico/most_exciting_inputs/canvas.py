"""The canvas of the search: a grid of standardised pixels, shown to the mouse at the image size of the recording.

A twin resizes its image to 36 rows. Of a recording at 144 x 256 it reads a quarter of the pixels, so the gradient is 0
at the others, and a search pixel by pixel would draw dots. The search therefore runs on a grid of 36 rows, as in the
published recipes, and the image shown is its linear interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from v1t_client._answers.mice import MouseDetail
from v1t_client._extras import needed
from v1t_client.insilico.most_exciting_inputs.recipes import Constraint

__all__ = ["ROWS", "Canvas", "blurred"]

ROWS = 36
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Canvas:
    """Converts between standardised images on the grid (..., C, h, w) and images as shown (..., C, H, W).

    Attributes:
        shape: (C, H, W).
        factor: image pixels along one side of a grid pixel.
        mean, std: (C, 1, 1), of the training images.
        low, high: (C, 1, 1), range of the training images, standardised; infinite where it is not known.
    """

    shape: tuple[int, int, int]
    factor: int
    mean: Array
    std: Array
    low: Array
    high: Array

    @classmethod
    def of(cls, mouse: MouseDetail, *, rows: int = ROWS) -> Canvas:
        """A grid of `rows` rows if the image size is a multiple of it, otherwise the image's own pixels."""
        C, H, W = mouse.image_shape
        factor = H // rows if rows < H and H % rows == 0 and W % (H // rows) == 0 else 1

        def column(name: str, missing: float) -> Array:
            values = [getattr(channel, name) for channel in mouse.image_channels] or [None] * C
            return np.array([missing if value is None else value for value in values], float)[:, None, None]

        mean, std = column("mean", 0.0), column("std", 1.0)
        low, high = (column("min", -np.inf) - mean) / std, (column("max", np.inf) - mean) / std
        return cls(shape=mouse.image_shape, factor=factor, mean=mean, std=std, low=low, high=high)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        C, H, W = self.shape
        return C, H // self.factor, W // self.factor

    def show(self, images: Array) -> npt.NDArray[np.float32]:
        """(..., C, h, w) standardised -> (..., C, H, W) in the recording's units."""
        rows, columns = self._interpolation
        pixels = (rows @ images @ columns.T) * self.std + self.mean
        return pixels.astype(np.float32)

    def pull_back(self, gradient: npt.NDArray[np.float32]) -> Array:
        """d / d(shown pixel) (..., C, H, W) -> d / d(grid pixel) (..., C, h, w): the transpose of `show`."""
        rows, columns = self._interpolation
        return rows.T @ (gradient * self.std) @ columns

    def read(self, pixels: npt.NDArray[np.floating]) -> Array:
        """(..., C, H, W) in the recording's units -> (..., C, h, w) standardised: the mean of each block."""
        C, h, w = self.grid
        blocks = ((pixels - self.mean) / self.std).reshape(*pixels.shape[:-3], C, h, self.factor, w, self.factor)
        return blocks.mean((-3, -1))

    def constrain(self, images: Array, constraint: Constraint, size: float | Array) -> Array:
        """The images (..., C, h, w) scaled to the norm or contrast `size`, then clipped to levels that can be shown."""
        axes = (-3, -2, -1)
        if constraint == "contrast":
            images = images - images.mean(axes, keepdims=True)
            length = images.std(axes, keepdims=True)
        else:
            length = np.sqrt((images**2).sum(axes, keepdims=True))
        scaled = images * (size / np.maximum(length, np.finfo(float).tiny))
        return np.clip(scaled, self.low, self.high)

    @cached_property
    def _interpolation(self) -> tuple[Array, Array]:
        """(H, h) and (W, w): linear interpolation between pixel centres; the border repeats."""
        _, h, w = self.grid
        return _linear(h, self.factor), _linear(w, self.factor)


def _linear(n: int, factor: int) -> Array:
    at = np.clip((np.arange(n * factor) + 0.5) / factor - 0.5, 0, n - 1)
    left = np.minimum(at.astype(int), max(n - 2, 0))
    matrix = np.zeros((n * factor, n))
    matrix[np.arange(n * factor), left] += 1 - (at - left)
    matrix[np.arange(n * factor), np.minimum(left + 1, n - 1)] += at - left
    return matrix


def blurred(images: Array, sigma: float) -> Array:
    """(..., h, w) blurred by a Gaussian of `sigma` px; the border reflects."""
    if sigma < 0.1:  # a blur of less than a tenth of a pixel has no effect
        return images
    ndimage = needed("scipy.ndimage")
    return ndimage.gaussian_filter(images, sigma=(*(0,) * (images.ndim - 2), sigma, sigma), mode="reflect")
