"""Masks: the part of a most exciting input that drives the neuron (Walker et al. 2019)."""

from __future__ import annotations

import numpy as np

from v1t_client._extras import needed
from v1t_client.insilico.most_exciting_inputs.canvas import Array

__all__ = ["center_of", "mask_of"]

THRESHOLD = 1.5  # stds of the image's own deviations
EDGE = 1.0  # px, std of the soft border


def mask_of(image: Array) -> Array:
    """(h, w) in [0, 1]: the largest region of strongly deviating pixels, with holes filled and a soft border.

    Args:
        image: (C, h, w) standardised.
    """
    ndimage = needed("scipy.ndimage")
    deviation = np.sqrt(((image - np.median(image, (1, 2), keepdims=True)) ** 2).sum(0))  # (h, w)
    strong = deviation > deviation.mean() + THRESHOLD * deviation.std()
    # The subfields of one Gabor are a pixel or two apart; dilation joins them into one region.
    regions, n_regions = ndimage.label(ndimage.binary_dilation(strong, iterations=2))
    if n_regions == 0:
        return np.zeros(deviation.shape)
    energy = ndimage.sum_labels(deviation**2, regions, np.arange(1, n_regions + 1))
    region = ndimage.binary_erosion(regions == 1 + int(np.argmax(energy)), border_value=1)
    filled = ndimage.binary_fill_holes(region)
    return np.clip(ndimage.gaussian_filter(filled.astype(float), EDGE), 0, 1)


def center_of(mask: Array) -> tuple[float, float]:
    """x and y of a mask's centre of mass [px]; NaN where it is empty."""
    total = mask.sum()
    if total == 0:
        return np.nan, np.nan
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    return float((x * mask).sum() / total), float((y * mask).sum() / total)
