"""Reproducible white noise: image i of seed s is the same on every machine, in any order.

The definition, which clients implement as well:

    word k of image i = word k of numpy's Philox (4x64, 10 rounds) keyed by (s, i); k runs along rows, from the top
    u = (word >> 40) / 2^24, uniform in [0, 1)
    z = (u - 1/2 + 2^-25) sqrt(12): mean 0 and variance 1 over the set of all images

The image is luminance + contrast z, each element filling a square of pixels, in all channels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["NoiseSums", "enlarge", "white_noise"]


def white_noise(seed: int, first: int, n: int, grid: tuple[int, int]) -> npt.NDArray[np.float32]:
    """(n, h, w) standardised noise: images first to first + n - 1 of this seed."""
    keys = np.array([[seed] * n, range(first, first + n)], dtype=np.uint64).T  # a list would become floats
    words = np.stack([np.random.Philox(key=key).random_raw(grid[0] * grid[1]) for key in keys])
    u = (words >> np.uint64(40)).astype(np.float64) * 2.0**-24
    return ((u - 0.5 + 2.0**-25) * np.sqrt(12.0)).astype(np.float32).reshape(n, *grid)


def enlarge(noise: npt.NDArray[np.float32], shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """(B, h, w) to (B, C, H, W)."""
    factor = shape[1] // noise.shape[1]
    image = noise.repeat(factor, axis=1).repeat(factor, axis=2)[:, None]
    return np.ascontiguousarray(np.broadcast_to(image, (len(noise), *shape)))


class NoiseSums:
    """Sums over responses to noise; memory does not grow with the number of images.

    Attributes:
        maps: (n, h w), sum of response x z. noise: (h w,), sum of z.
        total, squares: (n,), sum of response and of its square.
    """

    def __init__(self, n_neurons: int, grid: tuple[int, int]) -> None:
        P = grid[0] * grid[1]
        self.maps = np.zeros((n_neurons, P))
        self.noise = np.zeros(P)
        self.total = np.zeros(n_neurons)
        self.squares = np.zeros(n_neurons)

    def add(self, noise: npt.NDArray[np.float32], responses: npt.NDArray[np.float32]) -> None:
        """Adds the responses (B, n) to noise (B, h, w)."""
        flat = noise.reshape(len(noise), -1)
        # One matrix product for the block, in float32; the sum over blocks is float64.
        self.maps += responses.T @ flat
        self.noise += flat.sum(0, dtype=np.float64)
        self.total += responses.sum(0, dtype=np.float64)
        self.squares += np.square(responses, dtype=np.float64).sum(0)
