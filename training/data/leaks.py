"""Images that occur in two tiers: a twin that was trained on a test image is scored too well.

Two images are equal if their pixels are, and alike if a perceptual hash is: the lowest frequencies of their cosine
transform, each above or below their median. It changes little with brightness, contrast, size or noise.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.data.layout import TIERS
from training.data.recordings import Recording

__all__ = ["ALIKE", "Leak", "find_leaks", "leaks_text", "perceptual_hash"]

FREQUENCIES = 9  # per axis; the mean is left out, so a hash has 80 bits
# Bits. Pairs of simulated images differ in 22 or more (45,000 pairs), noise of 8 grey levels changes up to 8.
ALIKE = 10
BATCH = 64  # images in memory at once
LISTED = 5


@dataclass(frozen=True)
class Shown:
    """An image of one tier: where it is, and its hashes. The trial is the first that shows it."""

    mouse_id: str
    tier: str
    trial: int
    pixels: str
    bits: np.ndarray

    def __str__(self) -> str:
        return f"{self.tier} trial {self.trial} of mouse {self.mouse_id}"


@dataclass(frozen=True)
class Leak:
    """One image in two tiers, of one mouse or of two.

    Attributes:
        bits: in how many the perceptual hashes differ; 0 if the pixels are equal.
        equal: the pixels are equal.
    """

    one: Shown
    other: Shown
    bits: int
    equal: bool


def perceptual_hash(images: np.ndarray) -> np.ndarray:
    """(B, 80) bool. images: (B, C, H, W)."""
    gray = np.asarray(images, dtype=np.float64).mean(1)  # (B, H, W)
    rows, columns = (_cosines(length) for length in gray.shape[1:])
    spectrum = (rows @ gray @ columns.T).reshape(len(gray), -1)[:, 1:]  # (B, 80)
    return spectrum > np.median(spectrum, axis=1, keepdims=True)


def _cosines(length: int) -> np.ndarray:
    """(F, length) the lowest frequencies of the cosine transform, orthonormal."""
    k, x = np.arange(FREQUENCIES)[:, None], np.arange(length)
    scale = np.sqrt(np.where(k == 0, 1.0, 2.0) / length)
    return scale * np.cos(np.pi * k * (x + 0.5) / length)


def find_leaks(recordings: Sequence[Recording]) -> list[Leak]:
    """Images in two tiers, of the same or of different recordings; first the equal ones, then by how alike they are."""
    shown = {tier: [one for recording in recordings for one in _shown(recording, tier)] for tier in TIERS}
    found = []
    for first, second in itertools.combinations([tier for tier in TIERS if shown[tier]], 2):
        ones, others = shown[first], shown[second]
        signs = np.array([one.bits for one in others]).T * 2.0 - 1  # (80, M)
        for start in range(0, len(ones), BATCH):
            own = np.array([one.bits for one in ones[start : start + BATCH]]) * 2.0 - 1
            differ = np.rint((len(signs) - own @ signs) / 2).astype(int)  # (B, M)
            found += [
                Leak(ones[start + i], others[j], int(differ[i, j]), ones[start + i].pixels == others[j].pixels)
                for i, j in np.argwhere(differ <= ALIKE)
            ]
    return sorted(found, key=lambda leak: (not leak.equal, leak.bits))


def _shown(recording: Recording, tier: str) -> list[Shown]:
    trials = recording.tier(tier)
    first = np.sort(np.unique(trials.image_ids, return_index=True)[1])  # one trial of every image
    shown = []
    for start in range(0, len(first), BATCH):
        indices = trials.indices[first[start : start + BATCH]]
        images = recording.batch(indices).image
        for trial, image, bits in zip(indices, images, perceptual_hash(images), strict=True):
            pixels = hashlib.sha256(np.ascontiguousarray(image).tobytes() + repr(image.shape).encode()).hexdigest()
            shown.append(Shown(recording.mouse_id, tier, int(trial), pixels, bits))
    return shown


def leaks_text(leaks: Sequence[Leak]) -> str:
    """What was found, a line per pair of tiers and the first of its images."""
    if not leaks:
        return "images in two tiers: none, neither equal nor alike"
    lines = []
    pairs = list(dict.fromkeys((leak.one.tier, leak.other.tier) for leak in leaks))
    for pair in pairs:
        own = [leak for leak in leaks if (leak.one.tier, leak.other.tier) == pair]
        n_equal = sum(leak.equal for leak in own)
        lines.append(
            f"images in both {pair[0]} and {pair[1]}: {n_equal} equal, {len(own) - n_equal} alike (look at these)"
        )
        lines += [
            f"  {leak.one} and {leak.other}: {'equal' if leak.equal else f'{leak.bits} of 80 bits differ'}"
            for leak in own[:LISTED]
        ]
        if len(own) > LISTED:
            lines.append(f"  and {len(own) - LISTED} more")
    return "\n".join(lines)
