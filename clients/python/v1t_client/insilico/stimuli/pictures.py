"""A set of natural images on disk: a folder of pictures, or one .npy of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from v1t_client._errors import InvalidArgument
from v1t_client.insilico.stimuli.screen import image_files, read_images

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
            InvalidArgument: there are no images, or not of this size.
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
            return np.concatenate([images for _, images in read_images(files, self.shape)])
        return np.asarray(self.source[np.asarray(indices)], dtype=np.float32)
