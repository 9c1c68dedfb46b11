"""Which images of a colour recording are monochrome: Dataset F showed both kinds, and its layout does not mark them."""

from __future__ import annotations

import numpy as np

from training.data.recordings import Recording

__all__ = ["is_monochrome", "monochrome_trials"]

BATCH = 64
ROUNDING = 0.002  # of the range of grey levels: half a level of 255
RELATIVE = 0.02  # of a channel's contrast


def is_monochrome(images: np.ndarray, *, grey_levels: float) -> np.ndarray:
    """(B,) whether all channels of an image are one picture, equal up to a positive scale and an offset.

    The channel of most contrast is fitted to each other channel; what is left must be within rounding, or 2 % of the
    other channel's contrast.

    Args:
        images: (B, C, H, W).
        grey_levels: the range of the recording's grey levels, such as 255.
    """
    pixels = images.reshape(*images.shape[:2], -1).astype(np.float64)
    pixels = pixels - pixels.mean(2, keepdims=True)  # (B, C, P)
    contrast = pixels.std(2)  # (B, C)
    first = pixels[np.arange(len(pixels)), contrast.argmax(1)]  # (B, P)
    power = (first**2).sum(1, keepdims=True)
    products = np.einsum("bcp,bp->bc", pixels, first)
    slope = np.divide(products, power, out=np.zeros_like(products), where=power > 0)
    left = (pixels - slope[:, :, None] * first[:, None]).std(2)
    close = left <= ROUNDING * grey_levels + RELATIVE * contrast
    flat = contrast <= ROUNDING * grey_levels
    return np.asarray((close & (slope > 0) & ~flat).all(1) | flat.all(1))


def monochrome_trials(recording: Recording, indices: np.ndarray) -> np.ndarray:
    """(T,) whether the images of these trials are monochrome; all are in a recording of one channel."""
    if recording.image_shape[0] == 1:
        return np.ones(len(indices), bool)
    statistics = recording.statistics.images
    grey_levels = float((statistics.max - statistics.min).max())
    batches = (recording.batch(indices[at : at + BATCH]).image for at in range(0, len(indices), BATCH))
    return np.concatenate([is_monochrome(images, grey_levels=grey_levels) for images in batches])
