"""Images of another size."""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["resized"]


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(C, h, w) float32, the means over the pixels that each new pixel covers."""
    H, W = size
    if image.shape[1:] == size:
        return image
    channels = [Image.fromarray(channel.astype(np.float32)).resize((W, H), Image.Resampling.BOX) for channel in image]
    return np.stack([np.asarray(channel) for channel in channels])
