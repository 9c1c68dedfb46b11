"""Noise that is generated where it is used: image i of seed s is the same on every machine, in any order.

The definition, which the server implements as well (`server/inference/noise.py`):

    white: with word k of image i = word k of numpy's Philox (4x64, 10 rounds) keyed by (s, i); k runs along rows, from
        the top:
            u = (word >> 40) / 2^24, uniform in [0, 1)
            z = (u - 1/2 + 2^-25) sqrt(12): mean 0 and variance 1 over the set of all images
    orthogonal: in blocks of N = P + 1 images of P elements. Philox keyed by (s, 2^63 + block) gives N, P and P words:
            r = rank order of the first N (the stable argsort), c = 1 + rank order of the next P
            g = -1 where the top bit of the last P words is 1, otherwise 1
            z = g[k] cas(2 pi (r[i] c[k] mod N) / N), with cas(x) = cos(x) + sin(x)
        Over a block each element has mean 0 and variance 1, and no two elements are correlated.
    antithetic, balanced: images 2i and 2i + 1 are z and -z of image i of white noise, and of orthogonal noise.

The image shown is mean + contrast x std x z, where each element fills a square of pixels. Only sums over images are
kept:

    maps  = sum of response x z      (n, h, w)        noise   = sum of z           (h, w)
    total = sum of response          (n,)             squares = sum of response^2  (n,)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from v1t_client._errors import InvalidArgument

__all__ = ["NoiseKind", "NoiseSums", "block_size", "enlarge", "noise_grid", "noise_images", "white_noise"]

_ROWS = 36  # as in the published models


NoiseKind = Literal["white", "antithetic", "orthogonal", "balanced"]


def block_size(kind: NoiseKind, grid: tuple[int, int]) -> int:
    """Images over which the noise of a map that this kind cancels is cancelled; 1 for white noise."""
    P = grid[0] * grid[1]
    return {"white": 1, "antithetic": 2, "orthogonal": P + 1, "balanced": 2 * (P + 1)}[kind]


def noise_images(kind: NoiseKind, seed: int, first: int, n: int, grid: tuple[int, int]) -> npt.NDArray[np.float32]:
    """(n, h, w) standardised noise: images first to first + n - 1 of this seed."""
    if kind == "white":
        return white_noise(seed, first, n, grid)
    if kind == "orthogonal":
        return _orthogonal_noise(seed, first, n, grid)
    start, stop = first // 2, (first + n + 1) // 2
    half = (white_noise if kind == "antithetic" else _orthogonal_noise)(seed, start, stop - start, grid)
    pairs = np.stack([half, -half], axis=1).reshape(-1, *grid)
    return pairs[first % 2 : first % 2 + n]


def white_noise(seed: int, first: int, n: int, grid: tuple[int, int]) -> npt.NDArray[np.float32]:
    """(n, h, w) standardised white noise: images first to first + n - 1 of this seed."""
    keys = np.array([[seed] * n, range(first, first + n)], dtype=np.uint64).T  # a list would become floats
    words = np.stack([np.random.Philox(key=key).random_raw(grid[0] * grid[1]) for key in keys])
    u = (words >> np.uint64(40)).astype(np.float64) * 2.0**-24
    return ((u - 0.5 + 2.0**-25) * np.sqrt(12.0)).astype(np.float32).reshape(n, *grid)


def _orthogonal_noise(seed: int, first: int, n: int, grid: tuple[int, int]) -> npt.NDArray[np.float32]:
    P = grid[0] * grid[1]
    N = P + 1
    angle = 2 * np.pi * np.arange(N) / N
    cas = (np.cos(angle) + np.sin(angle)).astype(np.float32)
    noise = np.empty((n, P), dtype=np.float32)
    done = 0
    while done < n:
        block, row = divmod(first + done, N)
        size = min(N - row, n - done)
        words = np.random.Philox(key=np.array([seed, 2**63 + block], dtype=np.uint64)).random_raw(N + 2 * P)
        rows = np.argsort(words[:N], kind="stable")[row : row + size]
        columns = 1 + np.argsort(words[N : N + P], kind="stable")
        sign = np.where(words[N + P :] >> np.uint64(63), np.float32(-1), np.float32(1))
        noise[done : done + size] = cas[rows[:, None] * columns % N] * sign
        done += size
    return noise.reshape(n, *grid)


def noise_grid(shape: tuple[int, int, int], rows: int | None = None) -> tuple[int, int]:
    """(h, w) of the noise for images (C, H, W): `rows` rows; by default 36 if it divides the image, otherwise all.

    Raises:
        InvalidArgument: this number of rows does not give squares of whole pixels.
    """
    _, H, W = shape
    if rows is None:
        rows = _ROWS if H % _ROWS == 0 and W % (H // _ROWS) == 0 else H
    if not 1 <= rows <= H or H % rows or W % (H // rows):
        raise InvalidArgument(
            "the noise's squares are not a whole number of pixels",
            got=f"{rows} rows on {H} x {W} px",
            expected="a number of rows that divides the image into squares of whole pixels",
        )
    return rows, W * rows // H


def enlarge(noise: npt.NDArray[np.float32], shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """(B, h, w) to (B, H, W): each element fills its square."""
    factor = shape[1] // noise.shape[1]
    return noise.repeat(factor, axis=1).repeat(factor, axis=2)


@dataclass(eq=False)
class NoiseSums:
    """Sums of responses to noise. The sums over two sets of images can be added.

    Attributes:
        n_images: number of images.
        maps: (n, h, w), noise: (h, w), total: (n,), squares: (n,); float64.
    """

    n_images: int
    maps: npt.NDArray[np.float64]
    noise: npt.NDArray[np.float64]
    total: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]

    @classmethod
    def empty(cls, n: int, grid: tuple[int, int]) -> NoiseSums:
        return cls(0, np.zeros((n, *grid)), np.zeros(grid), np.zeros(n), np.zeros(n))

    def show(self, noise: npt.NDArray[np.float32], responses: npt.NDArray[np.float32]) -> None:
        """Adds the responses (B, n) to noise (B, h, w)."""
        B = len(noise)
        # One matrix product per block, in float32; across blocks float64, so that small contributions are not lost.
        self.maps += (responses.T @ noise.reshape(B, -1)).reshape(self.maps.shape)
        self.noise += noise.sum(0, dtype=np.float64)
        self.total += responses.sum(0, dtype=np.float64)
        self.squares += np.square(responses, dtype=np.float64).sum(0)
        self.n_images += B

    def add(self, other: NoiseSums) -> None:
        self.n_images += other.n_images
        self.maps += other.maps
        self.noise += other.noise
        self.total += other.total
        self.squares += other.squares

    def weighted_average(self) -> npt.NDArray[np.float64]:
        """(n, h, w) covariance of response and noise: the response-weighted average without the mean response.

        Over few images the mean of the noise is not 0; subtracting the mean response gives a map with less noise.
        """
        return (self.maps - self.total[:, None, None] * self.noise / self.n_images) / self.n_images

    def chance(self) -> npt.NDArray[np.float64]:
        """(n,) standard deviation of an element of `weighted_average` outside the receptive field."""
        mean = self.total / self.n_images
        variance = np.maximum(self.squares / self.n_images - mean**2, 0.0)
        return np.sqrt(variance / self.n_images)

    def arrays(self) -> dict[str, npt.NDArray[np.float64] | int]:
        return {
            "n_images": self.n_images,
            "maps": self.maps,
            "noise": self.noise,
            "total": self.total,
            "squares": self.squares,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.float64]]) -> NoiseSums:
        return cls(int(arrays["n_images"]), *(arrays[name] for name in ("maps", "noise", "total", "squares")))
