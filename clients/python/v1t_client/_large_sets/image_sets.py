"""Large sets of images that are read in chunks: a .npy or Zarr file, a folder, an array, a list or an iterator."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from v1t_client._arrays import as_array, is_tensor
from v1t_client._errors import InvalidArgument
from v1t_client._file_types import NPY_MAGIC, described
from v1t_client._images import Image, image_names
from v1t_client._large_sets.zarr_images import ZarrImages

__all__ = ["Chunk", "ImageSet", "Images", "image_files", "natural_order", "open_images"]

# An array of images or the path of such a .npy or .zarr, a folder of image files, an image, or an iterable of images.
Images: TypeAlias = Image | Iterable[Any]
Chunk: TypeAlias = list[Any] | npt.NDArray[Any]

_ENDINGS = (".png", ".jpg", ".jpeg", ".npy")
_CHUNK_BYTES = 8 * 1024**2


@dataclass(frozen=True)
class ImageSet:
    """Images that are read when they are needed.

    Attributes:
        n_images: how many; None for an iterator.
        read: read(first, size) yields the images from index `first` on, in chunks of at most `size`, as `predict`
            takes them.
        names: the file name of each image; empty if the images do not come from files of one image.
    """

    n_images: int | None
    read: Callable[[int, int], Iterator[Chunk]]
    names: tuple[str, ...] = ()

    def rows(self, rows: slice) -> Chunk:
        """The images of these rows at once."""
        parts: list[Chunk] = []
        start = rows.start
        for part in self.read(rows.start, rows.stop - rows.start):
            parts.append(part)
            start += len(part)
            if start >= rows.stop:
                break
        if len(parts) == 1:
            return parts[0]
        return [image for part in parts for image in part] if isinstance(parts[0], list) else np.concatenate(parts)

    def digest(self) -> str:
        """Identifies the set by its size, its names and its first image. An iterator is not read."""
        first = b"" if self.n_images is None else _content(next(self.read(0, 1)))
        names = "\n".join(self.names).encode(errors="surrogateescape")
        return hashlib.sha256(str(self.n_images).encode() + names + first).hexdigest()


def open_images(images: Images | ImageSet, *, channels: int | None = None) -> ImageSet:
    """Opens a set of images. Only the header of a .npy or .zarr is read.

    Args:
        channels: of one image of the mouse. If it is 1, a .npy file of three dimensions is a stack (B, H, W).

    Raises:
        InvalidArgument: these are not images.
    """
    if isinstance(images, ImageSet):
        return images
    if isinstance(images, (str, os.PathLike)):
        path = Path(os.fsdecode(images))
        if path.suffix.lower() == ".zarr":
            stored = ZarrImages(path, channels)
            return ImageSet(stored.shape[0], lambda first, size: stored.read(first, _fitting(size, stored.row_bytes)))
        if path.is_dir():
            return _listed(image_files(path))
        if path.suffix.lower() == ".npy":
            return _npy_file(path, channels)
        return _listed([images])
    if isinstance(images, (bytes, bytearray, memoryview)):
        return _listed([images])
    if isinstance(images, np.ndarray) or is_tensor(images):
        array = as_array(images, "images")
        return _array(array) if array.ndim == 4 else _listed([array])
    if isinstance(images, (list, tuple)):
        return _listed(images)
    if isinstance(images, Iterable):
        return ImageSet(None, lambda first, size: _grouped(islice(images, first, None), size))
    return _listed([images])


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder (PNG, JPEG, .npy) in natural order: 1, 2, 10. Links are followed.

    Hidden files, such as the resource forks `._1.png` of macOS, and folders in the folder are passed over.

    Raises:
        InvalidArgument: there is no such folder, it has no images, or a link in it leads nowhere.
    """
    if not folder.is_dir():
        raise InvalidArgument("no such folder of images", got=folder)
    try:
        found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise InvalidArgument(f"the folder cannot be read: {error.strerror or error}", got=folder) from error
    images = [path for path in found if path.suffix.lower() in _ENDINGS and not path.is_dir()]
    for path in images:
        if not path.exists():
            raise InvalidArgument("a link in the folder leads nowhere", got=f"{path} -> {os.readlink(path)}")
    if not images:
        folders = sorted(path.name for path in found if path.is_dir())
        inside = f" (it has folders: {', '.join(folders[:5])}; give one of them)" if folders else ""
        raise InvalidArgument(
            "the folder has no images", got=f"{folder}{inside}", expected=f"files that end in {', '.join(_ENDINGS)}"
        )
    return sorted(images, key=lambda path: natural_order(path.name))


def natural_order(name: str) -> tuple[list[int | str], str]:
    """A sort key: numbers in a name by their value, and the rest without regard to case."""
    parts = re.split(r"(\d+)", name)  # text and digits in turn
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], name


def _listed(images: Any) -> ImageSet:
    if not images:
        raise InvalidArgument("images is an empty list", expected="at least one image")
    return ImageSet(
        len(images), lambda first, size: _grouped(islice(images, first, None), size), image_names(list(images))
    )


def _grouped(images: Iterable[Image], size: int) -> Iterator[Chunk]:
    group: list[Any] = []
    n_bytes = 0
    for image in images:
        group.append(image)
        n_bytes += getattr(image, "nbytes", 0)
        if len(group) == size or n_bytes >= _CHUNK_BYTES:
            yield group
            group, n_bytes = [], 0
    if group:
        yield group


def _array(array: npt.NDArray[Any]) -> ImageSet:
    def read(first: int, size: int) -> Iterator[Chunk]:
        size = _fitting(size, array.nbytes // max(1, len(array)))
        for start in range(first, len(array), size):
            yield np.asarray(array[start : start + size])

    return ImageSet(len(array), read)


def _npy_file(path: Path, channels: int | None) -> ImageSet:
    """Read by position rather than memory-mapped: pages of a mapping stay resident once they were touched."""
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
            if not head.startswith(NPY_MAGIC):
                raise InvalidArgument("the file is not a readable .npy file", got=f"{path}: {described(head)}")
            stream.seek(0)
            version = np.lib.format.read_magic(stream)
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, fortran_order, dtype = readers[version](stream)
            offset = stream.tell()
    except OSError as error:
        raise InvalidArgument(f"the file cannot be read: {error.strerror or error}", got=path) from error
    except (ValueError, KeyError, SyntaxError) as error:
        if isinstance(error, InvalidArgument):
            raise
        raise InvalidArgument(f"the file is not a readable .npy file: {error}", got=path) from error
    if len(shape) == 3 and channels == 1:
        shape = (shape[0], 1, *shape[1:])
    if len(shape) != 4:
        return _listed([path])
    if dtype.hasobject or fortran_order:
        raise InvalidArgument(
            "the file cannot be read image by image",
            got=f"dtype {dtype}, {'Fortran' if fortran_order else 'C'} order",
            expected="numbers in C order",
            hint="Save it with np.save(path, np.ascontiguousarray(array)).",
        )
    row = shape[1:]
    row_bytes = math.prod(row) * dtype.itemsize
    if path.stat().st_size != offset + shape[0] * row_bytes:
        raise InvalidArgument("the .npy file is damaged", got=f"{path.stat().st_size} bytes", expected=f"shape {shape}")

    def read(first: int, size: int) -> Iterator[Chunk]:
        size = _fitting(size, row_bytes)
        for start in range(first, shape[0], size):
            n = min(size, shape[0] - start)
            flat = np.fromfile(path, dtype, count=n * math.prod(row), offset=offset + start * row_bytes)
            yield flat.reshape(n, *row)

    return ImageSet(shape[0], read)


def _fitting(size: int, row_bytes: int) -> int:
    return max(1, min(size, _CHUNK_BYTES // max(1, row_bytes)))


def _content(image: Any) -> bytes:
    if isinstance(image, list):
        return b"".join(_content(one) for one in image)
    if isinstance(image, (str, os.PathLike)):
        return os.fsencode(Path(image).name) + str(Path(image).stat().st_size).encode()
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    return np.ascontiguousarray(image).tobytes()
