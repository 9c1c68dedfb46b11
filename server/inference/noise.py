"""Reproducible noise of four kinds: image i of seed s is the same on every machine, in any order.

The definition, which clients implement as well:

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

The image is luminance + contrast z, each element filling a square of pixels, in all channels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["NoiseKind", "NoiseSums", "enlarge", "noise_images", "white_noise"]


NoiseKind = Literal["white", "antithetic", "orthogonal", "balanced"]


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
