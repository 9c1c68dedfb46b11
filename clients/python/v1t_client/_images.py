"""Converts images in any accepted form to the file parts of a request. Pixels are not changed."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, Union

import numpy as np
import numpy.typing as npt

from v1t_client._arrays import as_array, is_tensor
from v1t_client._errors import InvalidArgument
from v1t_client._file_types import NPY_MAGIC, described

__all__ = ["Image", "ImagePart", "encode_images", "image_names"]

# An array, the path or the bytes of a file, a PIL image, or a list of those.
Image: TypeAlias = Union[npt.NDArray[Any], str, "os.PathLike[str]", bytes, Sequence[Any], Any]

_ACCEPTED = "an array, a PNG, JPEG or .npy file (path or bytes), a PIL image, or a list of those"
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "png", "image/png"),
    (b"\xff\xd8\xff", "jpg", "image/jpeg"),
    (NPY_MAGIC, "npy", "application/x-npy"),
)
# Integers up to 16 bits and half floats fit float32 exactly and are smaller to send. Wider integers are sent as one of
# these if their values fit, so that the server sees that they are integers; all others are sent as float32.
_SENT_UNCHANGED = frozenset({"uint8", "int8", "uint16", "int16", "float16", "float32"})


class ImagePart(NamedTuple):
    """One file part of a multipart request."""

    filename: str
    content: bytes
    content_type: str


def encode_images(image: Image) -> tuple[list[ImagePart], int | None]:
    """The file parts for `image`, and the number of images in them (None where only the server can tell).

    Args:
        image: (H, W), (C, H, W) or (B, C, H, W) array in the recording's own units, or a file, or a list.

    Raises:
        InvalidArgument: it is none of those, or has values that float32 cannot represent.
    """
    if not isinstance(image, (list, tuple)):
        return _encode_one(image, "image")
    if not image:
        raise InvalidArgument("image is an empty list", expected="at least one image")
    if all(_is_array(item) for item in image):
        stacked = _stack([as_array(item, f"image[{i}]") for i, item in enumerate(image)])
        return [_npy(stacked, "image")], len(stacked)
    parts = [_encode_one(item, f"image[{i}]")[0][0] for i, item in enumerate(image)]
    return parts, len(parts)


def image_names(images: Any) -> tuple[str, ...]:
    """The file name of each image of a list, or of one image: as short as they are unique.

    Empty if one of the images is not a file.
    """
    paths = [_path_of(image) for image in (images if isinstance(images, (list, tuple)) else [images])]
    if not all(paths):
        return ()
    names = [Path(path).name for path in paths]
    return tuple(names if len(set(names)) == len(names) else paths)


def _path_of(image: Any) -> str:
    if _is_pil(image):
        image = getattr(image, "filename", "")
    return os.fsdecode(image) if isinstance(image, (str, os.PathLike)) else ""


def _encode_one(image: Any, name: str) -> tuple[list[ImagePart], int | None]:
    if _is_pil(image):
        return [_file(_pil_to_png(image, name), name)], 1
    if isinstance(image, (str, os.PathLike)):
        content, shown = _read(image, name), os.fspath(image)
    elif isinstance(image, (bytes, bytearray, memoryview)):
        content, shown = bytes(image), f"{len(image)} bytes"
    elif _is_array(image):
        array = as_array(image, name)
        if array.ndim not in (2, 3, 4):
            raise InvalidArgument(
                f"{name} has {array.ndim} dimensions",
                got=f"shape {array.shape}",
                expected="(H, W), (C, H, W) or (B, C, H, W)",
            )
        return [_npy(array, name)], len(array) if array.ndim == 4 else 1
    else:
        hint = "Nested lists of numbers: pass numpy.asarray(image)." if isinstance(image, (list, tuple)) else None
        raise InvalidArgument(f"{name} is not an image", got=type(image).__name__, expected=_ACCEPTED, hint=hint)
    part = _file(content, name, shown)
    return [part], None if part.content_type == "application/x-npy" else 1


def _is_array(image: Any) -> bool:
    return (hasattr(image, "__array__") or is_tensor(image)) and not _is_pil(image)


def _is_pil(image: Any) -> bool:
    # If the caller has such an object, Pillow has been imported already.
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(image, module.Image)


def _pil_to_png(image: Any, name: str) -> bytes:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise InvalidArgument(
            f"{name} has several frames",
            got=f"{getattr(image, 'filename', '') or 'an image'} of {frames} frames",
            expected="one image",
            hint="Choose one with image.seek(i), and pass image.copy().",
        )
    buffer = io.BytesIO()
    try:
        image.save(buffer, format="PNG")
    except Exception as error:  # a file that Pillow opened may turn out to be damaged in many ways
        raise InvalidArgument(
            f"{name} cannot be sent as PNG: {error}", got=f"mode {image.mode!r}", hint="Pass numpy.asarray(image)."
        ) from error
    return buffer.getvalue()


def _read(path: str | os.PathLike[str], name: str) -> bytes:
    if str(path).startswith(("http://", "https://")):
        raise InvalidArgument(f"{name} is a URL", got=path, expected=_ACCEPTED, hint="Download it first.")
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidArgument(f"{name}: the file cannot be read: {reason}", got=os.fspath(path)) from error


def _file(content: bytes, name: str, shown: str | None = None) -> ImagePart:
    for signature, suffix, content_type in _SIGNATURES:
        if content.startswith(signature):
            return ImagePart(f"image.{suffix}", content, content_type)
    raise InvalidArgument(
        f"{name} is not a PNG, JPEG or .npy file", got=f"{shown}: {described(content)}", expected=_ACCEPTED
    )


def _stack(images: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise InvalidArgument(
            "the images of a list differ in shape",
            got=", ".join(str(shape) for shape in sorted(shapes)),
            expected="one shape for all",
        )
    shape = shapes.pop()
    if len(shape) not in (2, 3):
        raise InvalidArgument(
            "an element of the list is not one image",
            got=f"shape {shape}",
            expected="(H, W) or (C, H, W)",
            hint="Join batches with numpy.concatenate and pass one (B, C, H, W) array.",
        )
    stacked = np.stack(images)
    # (B, H, W) would be interpreted as one image with B channels.
    return stacked[:, None] if len(shape) == 2 else stacked  # (B, C, H, W)


def _npy(array: npt.NDArray[Any], name: str) -> ImagePart:
    if array.dtype.kind not in "iuf":
        raise InvalidArgument(
            f"{name} does not hold real numbers", got=f"dtype {array.dtype}", expected="a float or integer dtype"
        )
    if array.size == 0:
        raise InvalidArgument(f"{name} is empty", got=f"shape {array.shape}", expected="at least one pixel")
    sent = array if array.dtype.name in _SENT_UNCHANGED else _narrowed(array)
    if sent.dtype.kind == "f" and not np.isfinite(sent).all():
        problem = "values too large for float32" if np.isfinite(array).all() else "NaN or infinite values"
        raise InvalidArgument(f"{name} has {problem}", expected="finite values in the recording's own units")
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(sent, dtype=sent.dtype.newbyteorder("=")), allow_pickle=False)
    return ImagePart("image.npy", buffer.getvalue(), "application/x-npy")


def _narrowed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.dtype.kind in "iu":
        for narrow in (np.uint8, np.uint16, np.int16):
            if np.iinfo(narrow).min <= array.min() and array.max() <= np.iinfo(narrow).max:
                return array.astype(narrow)
    with np.errstate(over="ignore"):
        return array.astype(np.float32)
