"""Image files (PNG, JPEG, .npy) to arrays, checked by their headers before pixels are decoded; and resizing."""

from __future__ import annotations

import io
import math
import struct
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from server.api.codecs.schemas import Resize
from server.errors import InvalidInput, TooLarge, brief

__all__ = ["is_npy", "read_npy", "read_npy_header", "read_picture", "resize_images", "wrong_size"]

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_JPEG = b"\xff\xd8\xff"
_JPEG_SCAN = b"\xff\xda"
_NPY = b"\x93NUMPY"
_MAX_SCANS = 100  # a progressive JPEG has about ten; each one costs a pass over all pixels
_ORIENTATION = 0x0112
_GREY_MODES = {"1", "L", "LA"}
_COLOUR_MODES = {"P", "RGB", "RGBA"}


def is_npy(file: bytes) -> bool:
    return file.startswith(_NPY)


def read_npy(file: bytes, where: str) -> np.ndarray:
    """The array of a .npy file, as stored. Nothing is unpickled, and the header must account for every byte.

    Raises:
        InvalidInput: the file is damaged, or its dtype is not a real number type.
    """
    stream = io.BytesIO(file)
    shape, fortran_order, dtype = read_npy_header(stream, where)
    promised, present = math.prod(shape) * dtype.itemsize, len(file) - stream.tell()
    if min(shape, default=0) < 0 or promised != present:
        raise InvalidInput(
            f"{where} is a damaged .npy file", got=f"{present} bytes of data", expected=f"{promised} for shape {shape}"
        )
    array = np.frombuffer(file, dtype=dtype, offset=stream.tell())
    return array.reshape(shape, order="F" if fortran_order else "C")


def read_npy_header(stream: io.BytesIO, where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and dtype of a .npy file; leaves the stream where the data begins.

    Raises:
        InvalidInput: the header is damaged, or the dtype is not a real number type.
    """
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran_order, dtype = readers[version](stream)
    except Exception as error:  # a fuzzed header may raise anything
        raise InvalidInput(f"{where} is a .npy file whose header cannot be read", got=brief(str(error))) from None
    if any(type(size) is not int for size in shape):  # numpy takes True for 1
        raise InvalidInput(
            f"{where} is a .npy file whose shape is not made of whole numbers",
            got=brief(shape),
            expected="(B, C, H, W)",
        )
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise InvalidInput(
            f"{where} has an unsupported dtype",
            got=brief(str(dtype)),
            expected="float16, float32, float64 or integers",
            hint="Save it with np.save(path, array.astype(np.float32)).",
        )
    return shape, fortran_order, dtype


def read_picture(file: bytes, where: str, *, max_pixels: int, size: tuple[int, int] | None) -> tuple[np.ndarray, bool]:
    """The grey levels of a PNG or JPEG file.

    Args:
        file: its bytes.
        where: what to call it in an error.
        max_pixels: refuse, before decoding, what claims more.
        size: required (H, W), checked before decoding; None: any.

    Returns:
        image: (H, W) float32, 0..255.
        was_colour: whether colours were converted to grey (ITU-R 601 luma).
    """
    if not file.startswith((_PNG, _JPEG)):
        raise InvalidInput(
            f"{where} is not in a format that the server reads",
            got=f"{len(file)} bytes starting with {file[:8]!r}" if file else "an empty file",
            expected="a PNG, JPEG or .npy file",
        )
    if file.startswith(_PNG) and len(file) > 25:
        # Checked in the header itself: Pillow reads 16-bit colour as 8-bit without a warning.
        if file[24] == 16:
            raise InvalidInput(
                f"{where} is a 16-bit PNG",
                expected="8 bits per channel",
                hint="Convert it to 8 bits, or send the values as a .npy array in the recording's own units.",
            )
        if _PNG_END not in file:
            raise InvalidInput(f"{where} is a truncated PNG", got=f"{len(file)} bytes without an end chunk")
    if file.startswith(_JPEG) and file.count(_JPEG_SCAN) > _MAX_SCANS:
        raise TooLarge(f"{where} is a JPEG of too many scans", expected=f"at most {_MAX_SCANS}")
    try:
        with Image.open(io.BytesIO(file), formats=("PNG", "JPEG")) as image:
            _check_header(image, where, max_pixels, size)
            _check_opaque(image, where)
            was_colour = image.mode not in _GREY_MODES
            return np.asarray(image.convert("L"), dtype=np.float32), was_colour
    except (InvalidInput, TooLarge):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooLarge(f"{where} has too many pixels", expected=f"at most {max_pixels}") from None
    except UnidentifiedImageError:
        raise InvalidInput(f"{where} is a damaged image file", expected="a PNG or JPEG file") from None
    except (MemoryError, RecursionError):
        raise TooLarge(f"{where} is an image too large to decode") from None
    except Exception as error:  # a fuzzed file may raise anything: OSError, SyntaxError, struct.error, zlib.error, ...
        raise InvalidInput(f"{where} is a damaged or truncated image file", got=brief(str(error))) from None


def _check_header(image: Image.Image, where: str, max_pixels: int, size: tuple[int, int] | None) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise TooLarge(
            f"{where} has too many pixels",
            got=f"{height} x {width} = {height * width}",
            expected=f"at most {max_pixels}",
        )
    if (n_frames := getattr(image, "n_frames", 1)) > 1:
        kind = "an animated PNG" if image.format == "PNG" else "a JPEG of several pictures (MPO)"
        raise InvalidInput(
            f"{where} is {kind}",
            got=f"{n_frames} frames",
            expected="a file of one image",
            hint="Save the frame that you mean as a PNG, or all of them as one .npy array (B, C, H, W).",
        )
    if image.mode not in _GREY_MODES | _COLOUR_MODES:
        raise InvalidInput(
            f"{where} has an unsupported pixel format",
            got=f"Pillow's mode {image.mode}",
            expected="8-bit grey, palette or RGB, with or without alpha",
        )
    if size is not None and (height, width) != size:
        raise wrong_size(where, (height, width), size)
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except (ValueError, KeyError, TypeError, SyntaxError, struct.error):
        orientation = 1  # unreadable metadata counts as none
    if orientation != 1:
        raise InvalidInput(
            f"{where} is stored rotated (EXIF orientation {brief(orientation)})",
            expected="an image stored upright",
            hint="Rotate the pixels themselves and save it again.",
        )


def _check_opaque(image: Image.Image, where: str) -> None:
    """Refuses an image of which a pixel is transparent; alpha that hides nothing is dropped."""
    if "transparency" not in image.info and image.mode not in ("LA", "RGBA"):
        return
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    if n_transparent := int(np.count_nonzero(alpha < 255)):
        raise InvalidInput(
            f"{where} has transparent pixels",
            got=f"{n_transparent} of {alpha.size} pixels",
            expected="an opaque image",
            hint="Composite it on the background that you mean and save it without alpha.",
        )
    image.info.pop("transparency", None)


def wrong_size(where: str, got: tuple[int, ...], expected: tuple[int, ...]) -> InvalidInput:
    """The error for an image of another size than the mouse was shown."""
    return InvalidInput(
        f"{where} has another size than this mouse's recording",
        got=str(got),
        expected=str(expected),
        hint="Make it fit with resize=fit (whole, padded), resize=fill (cut to cover) or resize=crop (centre).",
    )


def resize_images(
    images: np.ndarray, size: tuple[int, int], how: Resize, background: list[float], where: str
) -> np.ndarray:
    """Brings images to the mouse's size, bilinear with antialiasing.

    Args:
        images: (B, C, h, w) float32.
        size: (H, W).
        how: `fit` scales the whole image inside and pads, `fill` scales to cover and cuts the centre out,
            `crop` cuts the centre out unscaled.
        background: C intensities for the padding.
        where: what to call it in an error.

    Returns:
        (B, C, H, W) float32.
    """
    height, width = images.shape[-2:]
    H, W = size
    if how == "crop":
        if height < H or width < W:
            raise InvalidInput(
                f"{where} is too small to crop",
                got=str((height, width)),
                expected=f"at least {size}",
                hint="Use resize=fit or resize=fill.",
            )
        top, left = (height - H) // 2, (width - W) // 2
        return images[..., top : top + H, left : left + W]
    if how == "fill":
        scale = max(H / height, W / width)
        cut_height, cut_width = min(H / scale, height), min(W / scale, width)  # in the image's own pixels
        left, top = (width - cut_width) / 2, (height - cut_height) / 2
        return _scale(images, size, (left, top, left + cut_width, top + cut_height))
    scale = min(H / height, W / width)
    inner = (min(H, max(1, round(height * scale))), min(W, max(1, round(width * scale))))
    top, left = (H - inner[0]) // 2, (W - inner[1]) // 2
    padded = np.empty((*images.shape[:2], H, W), dtype=np.float32)
    padded[:] = np.asarray(background, dtype=np.float32)[:, None, None]
    padded[..., top : top + inner[0], left : left + inner[1]] = _scale(images, inner, (0, 0, width, height))
    return padded


def _scale(images: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    scaled = np.empty((*images.shape[:2], *size), dtype=np.float32)
    for index in np.ndindex(*images.shape[:2]):
        plane: Any = Image.fromarray(np.ascontiguousarray(images[index]))  # mode F: 32-bit floats
        scaled[index] = plane.resize(size[::-1], Image.Resampling.BILINEAR, box=box)
    return scaled
