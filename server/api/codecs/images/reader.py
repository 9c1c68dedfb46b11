"""The `image` field to (B, C, H, W): numbers or files, of the mouse's own size or resized to it."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import numpy as np

from server.api.codecs.images.files import is_npy, read_npy, read_picture, resize_images, wrong_size
from server.api.codecs.parsing.arrays import as_float32, shape_of
from server.api.codecs.schemas import Resize
from server.bundle.manifest import MouseRecord
from server.errors import InvalidInput, TooLarge, brief
from server.serving.decode_pool import checkpoint
from server.settings import Settings

__all__ = ["ImageReader", "decode_base64"]

_WHOLE = 10  # no standardised image is made of whole numbers and reaches so far


@dataclass(frozen=True)
class ImageReader:
    """Reads the images of one request for one mouse.

    Attributes:
        resize: how images of another size are made to fit; None: they are refused.
        assumed: gains what was assumed about the images or done to them.
    """

    record: MouseRecord
    resize: Resize | None
    settings: Settings
    assumed: list[str]

    def read(self, value: Any) -> np.ndarray:
        """The images (B, C, H, W) float32.

        Args:
            value: an array, nested lists, an object with base64, or the bytes of files.
        """
        if value is None:
            raise InvalidInput(
                "image is missing",
                expected=f"numbers of shape {self.record.image_shape}, or a file",
                hint=f"GET /mice/{self.record.mouse_id} says what this mouse was shown.",
            )
        if isinstance(value, dict):
            return self._files([decode_base64(value)])
        if isinstance(value, list) and value and isinstance(value[0], bytes):
            return self._files(value)
        if isinstance(value, list):
            shape = shape_of(value, "image")
            batch_shape = self._batch_shape(shape, "image")
            value = np.array(value, dtype=np.float64)
            self._check_standardized(value, "image")
        elif isinstance(value, np.ndarray):
            batch_shape = self._batch_shape(value.shape, "image")
            self._check_standardized(value, "image")
        else:
            raise InvalidInput(
                "image is neither numbers nor a file", got=brief(value), expected='nested lists, or {"base64": "..."}'
            )
        return self._fit(as_float32(value, "image").reshape(batch_shape), "image")

    def _files(self, files: list[bytes]) -> np.ndarray:
        self._check_count(len(files))
        parts: list[np.ndarray] = []
        sizes: set[tuple[int, ...]] = set()
        n_images = 0
        for i, file in enumerate(files):
            checkpoint()
            where = "image" if len(files) == 1 else f"image file {i}"
            if is_npy(file):
                array = read_npy(file, where)
                batch_shape = self._batch_shape(array.shape, where)
                self._check_standardized(array, where)
                part = as_float32(array, where).reshape(batch_shape)
            else:
                part = self._picture(file, where)
            sizes.add(part.shape[1:])
            if len(sizes) > 1:
                raise InvalidInput(
                    f"{where} has another size than the files before it", got=part.shape[1:], expected="one size"
                )
            n_images += len(part)
            self._check_count(n_images)
            parts.append(self._fit(part, where))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _picture(self, file: bytes, where: str) -> np.ndarray:
        """A PNG or JPEG file as (1, 1, H, W)."""
        if self.record.standardized_inputs:
            raise _not_standardized(self.record, where, "a picture file, which holds grey levels")
        C, H, W = self.record.image_shape
        if C != 1:
            channels = ", ".join(channel.name for channel in self.record.image_channels)
            raise InvalidInput(
                f"{where} is an image file, and mouse {self.record.mouse_id!r} was shown {C} channels",
                got="a file that is not .npy",
                expected=f"an array of shape {self.record.image_shape}, as .npy or nested lists",
                hint=f"A picture's red, green and blue are not the recording's channels ({channels}); send an array.",
            )
        size = None if self.resize else (H, W)
        grey, was_colour = read_picture(file, where, max_pixels=self.settings.max_pixels, size=size)
        if was_colour:
            self._note("the image file's colours were converted to grey (ITU-R 601 luma)")
        return grey[None, None]

    def _check_standardized(self, array: np.ndarray, where: str) -> None:
        """Refuses grey levels for a mouse that takes standardised images: they are whole numbers."""
        if not self.record.standardized_inputs:
            return
        if array.dtype.kind in "iu":
            raise _not_standardized(self.record, where, f"integers (dtype {array.dtype})")
        largest = array.max()
        if largest > _WHOLE and (array == np.floor(array)).all():
            raise _not_standardized(self.record, where, f"whole numbers up to {largest:.4g}")

    def _check_count(self, n_images: int) -> None:
        if n_images > self.settings.max_images:
            raise TooLarge(
                "too many images in one request",
                got=n_images,
                expected=f"at most {self.settings.max_images}",
                hint="Send them in several requests.",
            )

    def _batch_shape(self, shape: tuple[int, ...], where: str) -> tuple[int, int, int, int]:
        """(B, C, H, W) of an array of shape (H, W), (C, H, W) or (B, C, H, W); others are refused."""
        C, H, W = self.record.image_shape
        expected = f"{self.record.image_shape}, or (B, {C}, {H}, {W})"
        if len(shape) == 2 and C == 1:
            self._note("an image of shape (H, W) was read as one image of one channel")
            shape = (1, 1, *shape)
        elif len(shape) == 3:
            shape = (1, *shape)
        if len(shape) != 4 or shape[1] != C:
            raise InvalidInput(
                f"{where} has another shape than mouse {self.record.mouse_id!r} was shown",
                got=str(shape[1:] if len(shape) == 4 and shape[0] == 1 else shape),
                expected=expected,
                hint=f"See GET /mice/{self.record.mouse_id}.",
            )
        if 0 in shape:
            raise InvalidInput(f"{where} is empty", got=str(shape), expected=expected)
        if self.resize is None and shape[2:] != (H, W):
            raise wrong_size(where, shape[1:], self.record.image_shape)
        self._check_count(shape[0])
        return (shape[0], shape[1], shape[2], shape[3])

    def _fit(self, array: np.ndarray, where: str) -> np.ndarray:
        _, H, W = self.record.image_shape
        if self.resize is None or array.shape[2:] == (H, W):
            return array
        background = [channel.mean or 0.0 for channel in self.record.image_channels]
        means = ", ".join(f"{mean:.4g}" for mean in background)
        how = {
            "fit": f"scaled to fit inside, padded with mean intensity {means}",
            "fill": "scaled to cover, its overflow cut off around the centre",
            "crop": "cut around its centre, unscaled",
        }
        self._note(f"image of {array.shape[2]} x {array.shape[3]} brought to {H} x {W}: {how[self.resize]}")
        return resize_images(array, (H, W), self.resize, background, where)

    def _note(self, text: str) -> None:
        if text not in self.assumed:
            self.assumed.append(text)


def _not_standardized(record: MouseRecord, where: str, got: str) -> InvalidInput:
    return InvalidInput(
        f"{where} is not standardised, and mouse {record.mouse_id!r} takes standardised inputs",
        got=got,
        expected="(grey level - mean) / std of the training images, as floats",
        hint="Send a float32 array that is standardised, or import the weights again with --recordings: then the twin "
        "takes grey levels.",
    )


def decode_base64(value: dict[str, Any]) -> bytes:
    """The bytes of a file in JSON."""
    text = value.get("base64")
    if set(value) != {"base64"} or not isinstance(text, str):
        raise InvalidInput("image is an object of another kind", got=brief(value), expected='{"base64": "..."}')
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput("image.base64 is not base64", got=brief(str(error)), expected="RFC 4648 base64") from None
