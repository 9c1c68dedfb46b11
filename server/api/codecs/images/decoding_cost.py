"""What images take to decode, in bytes of memory and in work, told from their bytes and headers alone."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from server.api.codecs.images.files import is_npy, read_npy_header
from server.api.codecs.images.reader import decode_base64
from server.bundle.manifest import MouseRecord
from server.errors import InvalidInput, TooLarge
from server.settings import PREFIX, Settings

__all__ = ["Cost", "image_cost"]

MAX_PICTURES = 16  # pictures of V1T_MAX_PIXELS that one request may hold in all
_SCANS = 4  # of a progressive JPEG that take as long as decoding it once
_PICTURE = 12  # bytes per pixel of the picture that is being decoded: Pillow's RGB, grey and float32
_PNG, _JPEG, _SCAN = b"\x89PNG", b"\xff\xd8\xff", b"\xff\xda"


@dataclass(frozen=True)
class Cost:
    """What images take to decode.

    Attributes:
        memory: bytes, beside the body itself.
        work: pixels, weighed; about as long as parsing as many bytes.
    """

    memory: int = 0
    work: int = 0


def image_cost(value: Any, records: Sequence[MouseRecord], resizes: bool, settings: Settings) -> Cost:
    """What the `image` of a request takes to decode for these mice.

    Args:
        value: as `ImageReader.read` takes it. What cannot be decoded costs nothing: the reader refuses it.
        resizes: whether images of any size are accepted.

    Raises:
        TooLarge: the pictures of the request have too many pixels in all, or JPEGs have too many scans.
    """
    size = sum(math.prod(record.image_shape) for record in records)  # of an image for each mouse
    if isinstance(value, np.ndarray):
        return Cost(memory=4 * value.size * (len(records) + 1))
    if isinstance(value, dict):
        value = [decode_base64(value)]
    if not isinstance(value, list) or not value:
        return Cost()
    if not isinstance(value[0], bytes):  # numbers, which `json_memory` counts; resized, they may become more
        return Cost(8 * size * min(len(value), settings.max_images) * resizes)
    pictures = [file for file in value if not is_npy(file)]
    allowed_pixels = settings.max_pixels if resizes else max(math.prod(record.image_shape[1:]) for record in records)
    sizes = [min(_pixels(file), allowed_pixels) for file in pictures]  # the reader refuses larger ones
    work = sum(n * (1 + _scans(file) // _SCANS) for file, n in zip(pictures, sizes, strict=True))
    if work > (allowed := MAX_PICTURES * settings.max_pixels):
        raise TooLarge(
            "the pictures of the request have too many pixels in all",
            got=f"{work:,}, where a progressive JPEG counts once more for every {_SCANS} scans",
            expected=f"at most {allowed:,}, {MAX_PICTURES} times {PREFIX}MAX_PIXELS",
            hint="Make the pictures smaller, or send fewer at a time.",
        )
    shapes = [_shape(file) for file in value if is_npy(file)]
    elements = sum(map(math.prod, shapes))
    n_images = len(pictures) + resizes * sum(min(shape[0], settings.max_images) for shape in shapes if len(shape) == 4)
    memory = 8 * (n_images * size + elements * len(records)) + _PICTURE * max(sizes, default=0)
    return Cost(memory, len(records) * (work + 4 * elements))


def _pixels(file: bytes) -> int:
    """Pixels that the header of a PNG or JPEG claims; 0 if it cannot be read."""
    if file.startswith(_PNG):
        width, height = struct.unpack(">II", file[16:24]) if len(file) >= 24 else (0, 0)
        return int(width * height)
    if not file.startswith(_JPEG):
        return 0
    try:
        with Image.open(io.BytesIO(file), formats=("JPEG",)) as image:
            return image.width * image.height
    except Exception:  # a fuzzed file may raise anything; it is refused when it is read
        return 0


def _scans(file: bytes) -> int:
    return file.count(_SCAN) if file.startswith(_JPEG) else 0


def _shape(file: bytes) -> tuple[int, ...]:
    """Of a .npy file; (0,) if it is damaged."""
    try:
        shape, _, _ = read_npy_header(io.BytesIO(file), "image")
    except InvalidInput:
        return (0,)
    return shape if min(shape, default=0) >= 0 and math.prod(shape) <= len(file) else (0,)
