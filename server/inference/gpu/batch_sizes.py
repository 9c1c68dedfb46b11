"""The sizes of batches that a GPU runs. It plans or records its kernels anew for each, which takes a second."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["batch_sizes", "padded", "padded_size"]


def batch_sizes(largest: int) -> list[int]:
    """Powers of two and the middles between them, below the largest size, and that."""
    powers = [2**i for i in range((largest - 1).bit_length())]
    return [*(size for size in sorted({*powers, *(power * 3 // 2 for power in powers[1:])}) if size < largest), largest]


def padded_size(n: int, largest: int) -> int:
    """The size of the batch that n images run in."""
    return next(size for size in batch_sizes(largest) if size >= n)


def padded(array: npt.NDArray, size: int) -> npt.NDArray:
    """The array with copies of its last row up to that size: so no padding computes with values that never occur."""
    more = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], more, axis=0)]) if more else array
