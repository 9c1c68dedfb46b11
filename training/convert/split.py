"""Which images are for training, validation and test: whole images, so that none is in two tiers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.errors import ConfigError

__all__ = ["Split", "split_by_image"]


@dataclass(frozen=True)
class Split:
    """How images are split.

    Attributes:
        repeats: an image that was shown at least this often is a test image, unless that were more than half of the
            images: then a share of all images is.
        test: the share of images for the test, where repeats do not decide.
        validation: the share of the other images for validation.
        seed: of the draw.
    """

    repeats: int = 4
    test: float = 0.15
    validation: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repeats < 2:
            raise ConfigError("--repeats is too small", got=self.repeats, expected="2 or more")
        for name in ("test", "validation"):
            if not 0 < getattr(self, name) < 0.5:
                raise ConfigError(f"--{name} is not a share", got=getattr(self, name), expected="between 0 and 0.5")
        if self.seed < 0:
            raise ConfigError("--seed is negative", got=self.seed, expected="0 or more")


def split_by_image(image_ids: np.ndarray, split: Split) -> np.ndarray:
    """(T,) "train", "validation" or "test" for each trial. image_ids: (T,), equal for trials of the same image."""
    ids, inverse, counts = np.unique(image_ids, return_inverse=True, return_counts=True)
    rng = np.random.default_rng(split.seed)
    repeated = counts >= split.repeats
    if repeated.any() and repeated.mean() <= 0.5:
        test = repeated
    else:
        test = np.zeros(len(ids), dtype=bool)
        test[rng.permutation(len(ids))[: _part(len(ids), split.test)]] = True
    others = np.flatnonzero(~test)
    tiers = np.where(test, "test", "train").astype("<U10")
    tiers[rng.permutation(others)[: _part(len(others), split.validation)]] = "validation"
    return tiers[inverse]


def _part(n: int, share: float) -> int:
    """At least one of several."""
    return max(1, round(share * n)) if n > 1 else 0
