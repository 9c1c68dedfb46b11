"""Images to ask a teacher about, drawn by kind and standardised: mean about 0, std about 1, as natural images have.

Orientations are those of `training.simulation.cortex`: the direction along which the wave runs, so that bars are
perpendicular to it. Lengths are shares of the image's height, because images of 36 and of 144 rows show the same scene.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from training.simulation.stimuli import MEAN_LUMINANCE, dead_leaves

__all__ = ["GENERATED", "crops", "draw", "gabors", "gratings"]

CONTRAST = 60.0  # grey levels, about the std of natural images
SWING = MEAN_LUMINANCE / CONTRAST  # stds between the mean and black: contrast 1
ROWS = 36  # squares of noise are whole multiples of a row of the published models' images
CYCLES = (1.0, 8.0)  # per height of the image; mouse V1 prefers 0.02 to 0.1 cycles/degree: 1.5 to 7 on its monitor

Shape = tuple[int, int, int]


def draw(kind: str, n: int, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """(n, C, H, W) float32 images of a kind in `GENERATED`."""
    return GENERATED[kind](n, shape, rng).astype(np.float32)


def _leaves(n: int, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    grey = dead_leaves(n, image_shape=shape, rng=rng, description="dead leaves")
    return (grey.astype(np.float32) - MEAN_LUMINANCE) / CONTRAST


def _noise(n: int, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Uniform white noise in squares of 1, 2 or 4 rows, at contrasts from 0.25 to 1.5 stds; a third is smooth."""
    C, H, W = shape
    images = np.empty((n, C, H, W), np.float32)
    unit = max(1, H // ROWS)
    for image in images:
        size = unit * int(rng.choice([1, 2, 4]))
        rows, columns = -(-H // size), -(-W // size)
        field = rng.uniform(-(3**0.5), 3**0.5, (C, rows, columns))
        image[:] = field.repeat(size, axis=1).repeat(size, axis=2)[:, :H, :W]
        if rng.random() < 1 / 3:
            image[:] = _pink(image, rng.uniform(0.5, 1.5))
        image *= np.exp(rng.uniform(np.log(0.25), np.log(1.5)))
    return images


def _pink(image: np.ndarray, exponent: float) -> np.ndarray:
    """The same noise with an amplitude spectrum of 1 / f^exponent, and variance 1."""
    H, W = image.shape[1:]
    f = np.hypot(np.fft.fftfreq(H)[:, None], np.fft.rfftfreq(W))
    spectrum = np.fft.rfft2(image) / np.maximum(f, 1 / H) ** exponent
    spectrum[:, 0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(H, W))
    return np.asarray(field / field.std())


def _gratings(n: int, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Gratings of random direction, frequency, phase and contrast; half of them in a disc."""
    H, W = shape[1:]
    diameter = np.where(rng.random(n) < 0.5, np.inf, rng.uniform(0.2, 1, n) * H)
    return gratings(
        shape,
        direction=rng.uniform(0, 2 * np.pi, n),
        cycles=np.exp(rng.uniform(np.log(CYCLES[0]), np.log(CYCLES[1]), n)),
        phase=rng.uniform(0, 2 * np.pi, n),
        contrast=rng.uniform(0.2, 1, n),
        center=rng.uniform(0, [W, H], (n, 2)),
        diameter=diameter,
    )


def gratings(
    shape: Shape,
    *,
    direction: np.ndarray,
    cycles: np.ndarray,
    phase: np.ndarray,
    contrast: np.ndarray,
    center: np.ndarray | None = None,
    diameter: np.ndarray | None = None,
) -> np.ndarray:
    """(n, C, H, W) sine gratings, equal in all channels. Every argument has an entry per image.

    Args:
        direction: [rad]. cycles: per height of the image. phase: [rad] at the centre.
        center: (n, 2) x and y [px], by default the image's. diameter: [px] of a disc; by default the whole image.
    """
    C, H, W = shape
    n = len(direction)
    center = np.tile([(W - 1) / 2, (H - 1) / 2], (n, 1)) if center is None else center
    dx = np.arange(W)[None, None, :] - center[:, 0, None, None]  # (n, 1, W)
    dy = np.arange(H)[None, :, None] - center[:, 1, None, None]
    c, s = np.cos(direction)[:, None, None], np.sin(direction)[:, None, None]
    wave = np.cos(2 * np.pi * cycles[:, None, None] / H * (dx * c + dy * s) + phase[:, None, None])
    if diameter is not None:
        wave = wave * (np.hypot(dx, dy) <= diameter[:, None, None] / 2)
    return np.repeat((SWING * contrast[:, None, None] * wave)[:, None], C, axis=1)


def _gabors(n: int, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Sums of 1 to 30 Gabors of random place, direction, frequency and phase."""
    C, H, W = shape
    images = np.empty((n, C, H, W), np.float32)
    for image in images:
        m = int(np.exp(rng.uniform(0, np.log(30.99))))
        sigma = rng.uniform(0.04, 0.14, m) * H
        parts = gabors(
            shape,
            direction=rng.uniform(0, 2 * np.pi, m),
            cycles=np.clip(rng.lognormal(np.log(0.27), 0.3, m) / sigma * H, *CYCLES),
            phase=rng.uniform(0, 2 * np.pi, m),
            contrast=rng.uniform(0.3, 1, m),
            center=rng.uniform(0, [W, H], (m, 2)),
            sigma=sigma,
        )
        image[:] = np.clip(parts.sum(0), -SWING, SWING)
    return images


def gabors(shape: Shape, *, center: np.ndarray, sigma: np.ndarray, **wave: np.ndarray) -> np.ndarray:
    """(n, C, H, W) gratings (`wave` as there) under a Gaussian of `sigma` (n,) [px] around `center` (n, 2)."""
    _, H, W = shape
    dx = np.arange(W)[None, None, :] - center[:, 0, None, None]
    dy = np.arange(H)[None, :, None] - center[:, 1, None, None]
    envelope = np.exp(-0.5 * (dx**2 + dy**2) / sigma[:, None, None] ** 2)
    return gratings(shape, center=center, **wave) * envelope[:, None]


def crops(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Parts of standardised natural images (n, C, H, W), enlarged to their size, mirrored, at other contrasts."""
    H, W = images.shape[2:]
    result = np.empty(images.shape, np.float32)
    for image, part in zip(images, result, strict=True):
        share = rng.uniform(0.5, 0.95)
        top, left = rng.uniform(0, H * (1 - share)), rng.uniform(0, W * (1 - share))
        rows, columns = top + share * np.arange(H), left + share * np.arange(W)
        part[:] = _bilinear(image, rows, columns)[:, :: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
        part *= np.exp(rng.uniform(np.log(0.5), np.log(1.3)))
    return result


def _bilinear(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Image (C, H, W) at fractional rows and columns, one axis after the other."""
    for axis, places in ((1, rows), (2, columns)):
        first = np.minimum(places.astype(int), image.shape[axis] - 2)
        weight = np.expand_dims(places - first, tuple(i for i in range(3) if i != axis))
        image = np.take(image, first, axis) * (1 - weight) + np.take(image, first + 1, axis) * weight
    return image


# kind -> how n images of it are drawn
GENERATED: dict[str, Callable[[int, Shape, np.random.Generator], np.ndarray]] = {
    "leaves": _leaves,
    "noise": _noise,
    "gratings": _gratings,
    "gabors": _gabors,
}
