"""Images with statistics like natural images: dead leaves (Lee, Mumford & Huang 2001).

Discs with radii from a cubic power law overlap until they cover the image. Occlusion gives sharp edges at all scales
and a power spectrum near 1 / f^2. Each leaf has its own grey level, shading and texture.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from tqdm import tqdm

__all__ = ["dead_leaves"]

MEAN_LUMINANCE = 110.0  # grey levels, about that of the ImageNet images that mice were shown
COVERAGE = 3.0  # mean number of leaves over a point; they leave a share e^-3 of the ground uncovered
SMALLEST_RADIUS = 3.0  # px at 144 rows
N_TEXTURES = 8


def dead_leaves(
    n_images: int, *, image_shape: tuple[int, int, int], rng: np.random.Generator, description: str = "images"
) -> np.ndarray:
    """(n, C, H, W) uint8 images. Channels share the outlines of the leaves, but not their grey levels."""
    C, H, W = image_shape
    radii, density = _radii(H, W)
    textures = _textures(max(H, W), rng)
    y, x = np.mgrid[:H, :W].astype(np.float32)
    images = np.empty((n_images, C, H, W), np.uint8)
    for image in tqdm(images, desc=description, unit="image", disable=None, leave=False):
        leaf, cx, cy, radius = _outlines(H, W, rng.choice(radii, p=density, size=_n_leaves(H, W)), rng)
        n = len(radius)
        shared = rng.beta(1.2, 1.6, n)  # skewed towards dark, like luminance
        slope = rng.normal(0, 0.12, (2, n)).astype(np.float32) / np.maximum(radius, 8)
        shading = slope[0][leaf] * (x - cx[leaf]) + slope[1][leaf] * (y - cy[leaf])  # (H, W)
        texture = (
            _crop(textures[rng.integers(N_TEXTURES)], H, W, rng) * rng.gamma(1.5, 0.05, n).astype(np.float32)[leaf]
        )
        contrast, brightness = rng.uniform(0.6, 1.1), rng.normal(0, 12)
        for channel in range(C):
            own = shared if C == 1 else 0.6 * shared + 0.4 * rng.beta(1.2, 1.6, n)
            level = own.astype(np.float32)[leaf] - 1.2 / 2.8 + shading + texture  # (H, W), mean about 0
            image[channel] = np.clip(MEAN_LUMINANCE + brightness + 255 * contrast * level, 0, 255)
    return images


def _radii(H: int, W: int) -> tuple[np.ndarray, np.ndarray]:
    """Radii, and the probability of each: r^-3 times the area of centres whose leaf touches the image."""
    smallest = max(1.0, SMALLEST_RADIUS * H / 144)
    radii = np.arange(round(smallest), max(round(0.6 * H), 2), dtype=np.int64)
    weight = radii**-3.0 * (H + 2 * radii) * (W + 2 * radii)
    return radii, weight / weight.sum()


def _n_leaves(H: int, W: int) -> int:
    radii, _ = _radii(H, W)
    rate = radii**-3.0
    # Leaves per px^2 for this coverage, times the area of centres within a radius of the image.
    per_area = COVERAGE / (np.pi * (rate * radii**2).sum())
    return int(np.ceil(per_area * (rate * (H + 2 * radii) * (W + 2 * radii)).sum()))


def _outlines(
    H: int, W: int, radius: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The index of the topmost leaf at each pixel (H, W), and all leaves' centres and radii; leaf 0 is the ground."""
    cx = rng.integers(-radius, W + radius)
    cy = rng.integers(-radius, H + radius)
    leaf = np.zeros((H, W), np.int32)
    for i, (x, y, r) in enumerate(zip(cx.tolist(), cy.tolist(), radius.tolist(), strict=True), start=1):
        top, left = max(y - r, 0), max(x - r, 0)
        bottom, right = min(y + r + 1, H), min(x + r + 1, W)
        if top < bottom and left < right:
            mask = _disc(r)[top - y + r : bottom - y + r, left - x + r : right - x + r]
            np.copyto(leaf[top:bottom, left:right], i, where=mask)
    ground = np.array([W // 2]), np.array([H // 2]), np.array([max(H, W)])
    cx, cy, radius = (np.concatenate([g, own]) for g, own in zip(ground, (cx, cy, radius), strict=True))
    return leaf, cx.astype(np.float32), cy.astype(np.float32), radius


@cache
def _disc(radius: int) -> np.ndarray:
    offset = np.arange(-radius, radius + 1)
    return offset[:, None] ** 2 + offset**2 <= radius**2


def _textures(size: int, rng: np.random.Generator) -> np.ndarray:
    """(n, S, S) fields of 1 / f noise with variance 1; crops of them are the textures of leaves."""
    side = 2 * size
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)
    amplitude = 1 / np.maximum(np.hypot(fy, fx), 1 / size)
    spectrum = np.fft.rfft2(rng.normal(size=(N_TEXTURES, side, side))) * amplitude
    fields = np.fft.irfft2(spectrum, s=(side, side))
    fields /= fields.std(axis=(1, 2), keepdims=True)
    return fields.astype(np.float32)


def _crop(field: np.ndarray, H: int, W: int, rng: np.random.Generator) -> np.ndarray:
    top, left = rng.integers(0, field.shape[0] - H), rng.integers(0, field.shape[1] - W)
    crop = field[top : top + H, left : left + W]
    return crop[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
