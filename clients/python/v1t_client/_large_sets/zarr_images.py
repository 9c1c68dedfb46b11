"""Images in a Zarr array, (B, C, H, W) or (B, H, W), in chunks of any shape."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from v1t_client._errors import InvalidArgument
from v1t_client._extras import needed

__all__ = ["ZarrImages"]

_MOST_BYTES = 1024**3  # of the images that one chunk of the array holds a part of
_NAME = "images"


class ZarrImages:
    """Rows of a Zarr array. Each of its chunks is decoded once if rows are read in order, however it is chunked.

    Args:
        path: an array, or a group with the array `images`, or with only one array.
        channels: of one image of the mouse; if it is 1, three dimensions are (B, H, W).

    Attributes:
        shape: (B, C, H, W).

    Raises:
        InvalidArgument: it is not such an array, or it is chunked so that no image can be read without a GiB of others.
        MissingExtra: zarr is not installed.
    """

    def __init__(self, path: Path, channels: int | None) -> None:
        self._array = array = _opened(path)
        shape = tuple(int(n) for n in array.shape)
        if len(shape) == 3 and channels in (1, None):
            shape = (shape[0], 1, *shape[1:])
        if len(shape) != 4 or np.dtype(array.dtype).kind not in "uif":
            raise InvalidArgument(
                "the Zarr array does not hold images",
                got=f"{path}: {array.dtype}, shape {tuple(array.shape)}",
                expected="numbers of shape (images, channels, height, width)",
            )
        self.shape = shape
        self.row_bytes = math.prod(shape[1:]) * np.dtype(array.dtype).itemsize
        self._rows = max(1, min(int(array.chunks[0]), shape[0]))  # images that share chunks
        if self._rows * self.row_bytes > _MOST_BYTES:
            raise InvalidArgument(
                "the Zarr array cannot be read image by image",
                got=f"{path}: chunks of {array.chunks}, so that {self._rows:,} images are decoded together",
                expected=f"at most {_MOST_BYTES // self.row_bytes:,}",
                hint=f"Write it again with chunks=(64, {', '.join(map(str, array.shape[1:]))}).",
            )
        self._start, self._block = 0, np.empty((0, *shape[1:]), array.dtype)  # what was decoded last

    def read(self, first: int, size: int) -> Iterator[npt.NDArray[Any]]:
        """Yields (n, C, H, W) from image `first` on, at most `size` at a time."""
        for start in range(first, self.shape[0], size):
            yield self._slice(start, min(start + size, self.shape[0]))

    def _slice(self, start: int, stop: int) -> npt.NDArray[Any]:
        parts = []
        while start < stop:
            if not self._start <= start < self._start + len(self._block):
                self._start = start // self._rows * self._rows
                rows = max(1, 64 // self._rows) * self._rows  # several small chunks at once
                found = np.asarray(self._array[self._start : self._start + rows])
                self._block = found.reshape(-1, *self.shape[1:])
            part = self._block[start - self._start : stop - self._start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _opened(path: Path) -> Any:
    zarr = needed("zarr", extra="zarr")
    try:
        found = zarr.open(str(path), mode="r")
        if hasattr(found, "shape"):
            return found
        arrays = dict(found.arrays())
    # zarr raises its own errors, those of numcodecs, and these.
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        raise InvalidArgument(f"the folder is not a readable Zarr: {error}", got=path) from error
    if _NAME in arrays:
        return arrays[_NAME]
    if len(arrays) != 1:
        raise InvalidArgument(
            "the Zarr group does not say which array holds the images",
            got=f"{path}: {', '.join(sorted(arrays)) or 'no arrays'}",
            expected=f"an array {_NAME!r}, or only one array",
            hint="Give the array's own folder.",
        )
    return next(iter(arrays.values()))
