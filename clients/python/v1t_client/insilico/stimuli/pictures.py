"""Sets of natural images on disk: a folder of image files, or one .npy file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from v1t_client._errors import InvalidArgument
from v1t_client._extras import needed
from v1t_client._large_sets.image_sets import image_files

__all__ = ["Pictures"]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images of one size, read when they are needed.

    Attributes:
        source: the files, or a memory-mapped array (N, C, H, W).
        shape: (C, H, W).
    """

    source: list[Path] | npt.NDArray[Any]
    shape: tuple[int, int, int]

    @classmethod
    def open(cls, path: Path, shape: tuple[int, int, int]) -> Pictures:
        """A folder of PNG, JPEG and .npy files, or a .npy of (N, H, W) or (N, C, H, W).

        Raises:
            InvalidArgument: there are no images, or they have another size.
        """
        if path.suffix.lower() != ".npy":
            return cls(image_files(path), shape)
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"the images cannot be read: {error}", got=path) from error
        if array.ndim == 3:
            array = array[:, None]
        if array.ndim != 4 or array.shape[1:] != shape or len(array) == 0 or array.dtype.kind not in "iuf":
            raise InvalidArgument(
                "the images have another size than the mouse's",
                got=f"{path.name}: {array.dtype} {array.shape}",
                expected=f"(N, {', '.join(map(str, shape))})",
            )
        return cls(array, shape)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(B, C, H, W) of these images, in the recording's units."""
        if isinstance(self.source, list):
            files = [self.source[int(i)] for i in indices]
            return np.stack([_read_image(path, self.shape) for path in files])
        return np.asarray(self.source[np.asarray(indices)], dtype=np.float32)


def _read_image(path: Path, shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """(C, H, W)."""
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
            hint="Resize all images of the folder in the same way; cropping or padding is an experimental choice.",
        )
    return image.astype(np.float32)
