"""Sets of natural images on disk: a folder of image files, or one .npy file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from v1t_client._errors import InvalidArgument, V1TError
from v1t_client._extras import needed
from v1t_client._file_types import described, load_npy
from v1t_client._large_sets.image_sets import image_files

__all__ = ["Pictures"]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images of one size, read when they are needed.

    Attributes:
        source: the files, or a memory-mapped array (N, C, H, W).
        shape: (C, H, W).
        standardized: the images must be standardised.
    """

    source: list[Path] | npt.NDArray[Any]
    shape: tuple[int, int, int]
    standardized: bool = False

    @classmethod
    def open(cls, path: Path, shape: tuple[int, int, int], *, standardized: bool = False) -> Pictures:
        """A folder of PNG, JPEG and .npy files, or a .npy of (N, H, W) or (N, C, H, W).

        Args:
            standardized: the mouse takes standardised images, which picture files and integers are not.

        Raises:
            InvalidArgument: there are no images, they have another size, or they are not standardised but must be.
        """
        if path.is_dir() or path.suffix.lower() != ".npy":
            files = image_files(path)
            if standardized and (pictures := [file.name for file in files if file.suffix.lower() != ".npy"]):
                raise _not_standardized(pictures[0])
            return cls(files, shape, standardized)
        array = load_npy(path, mapped=True)
        if array.ndim == 3:
            array = array[:, None]
        if array.ndim != 4 or array.shape[1:] != shape or len(array) == 0 or array.dtype.kind not in "iuf":
            raise InvalidArgument(
                "the images have another size than the mouse's",
                got=f"{path.name}: {array.dtype} {array.shape}",
                expected=f"(N, {', '.join(map(str, shape))})",
            )
        if standardized and array.dtype.kind in "iu":
            raise _not_standardized(f"{path.name} of {array.dtype}")
        return cls(array, shape, standardized)

    @property
    def names(self) -> tuple[str, ...]:
        """The file name of each image; empty for an array."""
        return tuple(path.name for path in self.source) if isinstance(self.source, list) else ()

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(B, C, H, W) of these images, in the recording's units."""
        if isinstance(self.source, list):
            files = [self.source[int(i)] for i in indices]
            return np.stack([_read_image(path, self.shape, self.standardized) for path in files])
        return np.asarray(self.source[np.asarray(indices)], dtype=np.float32)


def _not_standardized(got: str) -> InvalidArgument:
    return InvalidArgument(
        "this mouse takes standardised images, and these are grey levels",
        got=got,
        expected="a float32 .npy of standardised images",
        hint="Import the twin again with --recordings, so that it takes grey levels; or standardise the images.",
    )


def _read_image(path: Path, shape: tuple[int, int, int], standardized: bool) -> npt.NDArray[np.float32]:
    """(C, H, W)."""
    try:
        if path.suffix.lower() == ".npy":
            pixels = load_npy(path)
        else:
            with needed("PIL.Image").open(path) as picture:
                frames = getattr(picture, "n_frames", 1)
                if frames > 1:
                    raise InvalidArgument(
                        "an image file has several frames",
                        got=f"{path} of {frames} frames",
                        expected="files of one image",
                        hint="Save each frame as a file of its own.",
                    )
                pixels = np.asarray(picture.convert("L") if shape[0] == 1 else picture)
                pixels = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels
    except V1TError:
        raise
    except (OSError, ValueError, SyntaxError) as error:  # Pillow reports some damaged files as SyntaxError
        with path.open("rb") as stream:
            head = stream.read(64)
        raise InvalidArgument(f"the image cannot be read: {error}", got=f"{path}: {described(head)}") from error
    if pixels.dtype.kind not in "iuf" or not np.isfinite(pixels).all():
        raise InvalidArgument("an image does not hold finite numbers", got=f"{path.name} of {pixels.dtype}")
    if standardized and pixels.dtype.kind in "iu":
        raise _not_standardized(f"{path.name} of {pixels.dtype}")
    image = pixels[None] if pixels.ndim == 2 else pixels
    if image.shape != shape:
        raise InvalidArgument(
            "an image of the folder has another size than the mouse's",
            got=f"{path.name}: {' x '.join(map(str, image.shape))}",
            expected=f"{' x '.join(map(str, shape))} (C x H x W)",
            hint="Resize all images of the folder in the same way; cropping or padding is an experimental choice.",
        )
    return image.astype(np.float32)
