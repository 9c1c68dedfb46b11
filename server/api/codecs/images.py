"""The `image` field to (B, C, H, W): numbers or files, of the mouse's own size or brought to it as the request says."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from server.api.codecs import image_files as pictures
from server.api.codecs.arrays import as_float32, shape_of
from server.api.codecs.schemas import Resize
from server.bundle.manifest import MouseRecord
from server.errors import InvalidInput, TooLarge, brief
from server.settings import Settings

__all__ = ["read_images"]


def read_images(
    value: Any, record: MouseRecord, resize: Resize | None, settings: Settings, assumed: list[str]
) -> np.ndarray:
    """The images that were asked about, (B, C, H, W) float32; `assumed` gains what was done to them."""
    if value is None:
        raise InvalidInput(
            "image is missing",
            expected=f"numbers of shape {record.image_shape}, or a file",
            hint=f"GET /mice/{record.mouse_id} says what this mouse was shown.",
        )
    if isinstance(value, np.ndarray):
        array = as_float32(value, "image").reshape(
            _batch_shape(value.shape, "image", record, resize, settings, assumed)
        )
        return _fit(array, "image", record, resize, assumed)
    if isinstance(value, dict):
        return _files([_decode_base64(value)], record, resize, settings, assumed)
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return _files(value, record, resize, settings, assumed)
    if not isinstance(value, list):
        raise InvalidInput(
            "image is neither numbers nor a file", got=brief(value), expected='nested lists, or {"base64": "..."}'
        )
    shape = shape_of(value, "image")
    batch_shape = _batch_shape(shape, "image", record, resize, settings, assumed)
    array = as_float32(np.array(value, dtype=np.float64), "image").reshape(batch_shape)
    return _fit(array, "image", record, resize, assumed)


def _decode_base64(value: dict[str, Any]) -> bytes:
    text = value.get("base64")
    if set(value) != {"base64"} or not isinstance(text, str):
        raise InvalidInput("image is an object of another kind", got=brief(value), expected='{"base64": "..."}')
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput("image.base64 is not base64", got=brief(str(error)), expected="RFC 4648 base64") from None


def _files(
    files: list[bytes], record: MouseRecord, resize: Resize | None, settings: Settings, assumed: list[str]
) -> np.ndarray:
    _check_count(len(files), settings)
    parts: list[np.ndarray] = []
    sizes: set[tuple[int, ...]] = set()
    n_images = 0
    for i, file in enumerate(files):
        where = "image" if len(files) == 1 else f"image file {i}"
        if pictures.is_npy(file):
            array = pictures.read_npy(file, where)
            shape = _batch_shape(array.shape, where, record, resize, settings, assumed)
            part = as_float32(array, where).reshape(shape)
        else:
            part = _picture(file, where, record, resize, settings, assumed)
        sizes.add(part.shape[1:])
        if len(sizes) > 1:
            raise InvalidInput(
                f"{where} has another size than the files before it", got=part.shape[1:], expected="one size"
            )
        n_images += len(part)
        _check_count(n_images, settings)
        parts.append(_fit(part, where, record, resize, assumed))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _picture(
    file: bytes, where: str, record: MouseRecord, resize: Resize | None, settings: Settings, assumed: list[str]
) -> np.ndarray:
    C, H, W = record.image_shape
    if C != 1:
        raise InvalidInput(
            f"{where} is an image file, and mouse {record.mouse_id!r} was shown {C} channels",
            got="a file that is not .npy",
            expected=f"an array of shape {record.image_shape}, as .npy or nested lists",
            hint="A picture's red, green and blue are not the recording's channels "
            f"({', '.join(channel.name for channel in record.image_channels)}); their order must be said by an array.",
        )
    size = None if resize else (H, W)
    grey, was_colour = pictures.read_picture(file, where, max_pixels=settings.max_pixels, size=size)
    if was_colour:
        _note(assumed, "the image file's colours were converted to grey (ITU-R 601 luma)")
    return grey[None, None]  # (1, 1, H, W)


def _check_count(n_images: int, settings: Settings) -> None:
    if n_images > settings.max_images:
        raise TooLarge(
            "too many images in one request",
            got=n_images,
            expected=f"at most {settings.max_images}",
            hint="Send them in several requests.",
        )


def _batch_shape(
    shape: tuple[int, ...],
    where: str,
    record: MouseRecord,
    resize: Resize | None,
    settings: Settings,
    assumed: list[str],
) -> tuple[int, int, int, int]:
    """Reads (H, W), (C, H, W) or (B, C, H, W) as a batch, or says why it cannot be one."""
    C, H, W = record.image_shape
    expected = f"{record.image_shape}, or (B, {C}, {H}, {W})"
    if len(shape) == 2 and C == 1:
        _note(assumed, "an image of shape (H, W) was read as one image of one channel")
        shape = (1, 1, *shape)
    elif len(shape) == 3:
        shape = (1, *shape)
    if len(shape) != 4 or shape[1] != C:
        raise InvalidInput(
            f"{where} has another shape than mouse {record.mouse_id!r} was shown",
            got=str(shape[1:] if len(shape) == 4 and shape[0] == 1 else shape),
            expected=expected,
            hint=f"See GET /mice/{record.mouse_id}.",
        )
    if 0 in shape:
        raise InvalidInput(f"{where} is empty", got=str(shape), expected=expected)
    if resize is None and shape[2:] != (H, W):
        raise pictures.wrong_size(where, shape[1:], record.image_shape)
    _check_count(shape[0], settings)
    return (shape[0], shape[1], shape[2], shape[3])


def _fit(array: np.ndarray, where: str, record: MouseRecord, resize: Resize | None, assumed: list[str]) -> np.ndarray:
    _, H, W = record.image_shape
    if resize is None or array.shape[2:] == (H, W):
        return array
    background = [channel.mean or 0.0 for channel in record.image_channels]
    fitted = pictures.resize_images(array, (H, W), resize, background, where)
    how = {
        "fit": f"scaled to fit inside, padded with mean intensity {', '.join(f'{mean:.4g}' for mean in background)}",
        "fill": "scaled to cover, its overflow cut off around the centre",
        "crop": "cut around its centre, unscaled",
    }
    _note(assumed, f"image of {array.shape[2]} x {array.shape[3]} brought to {H} x {W}: {how[resize]}")
    return fitted


def _note(assumed: list[str], text: str) -> None:
    if text not in assumed:
        assumed.append(text)
