"""Simulated behaviour of a mouse over time: pupil, running and gaze.

One slow state of arousal, simulated at 10 Hz, drives everything. So the pupil's derivative is consistent with the
pupil, running occurs in bouts, and the pupil follows running.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

__all__ = ["Behavior", "simulate_behavior"]

RATE = 10.0  # Hz
IMAGE_SECONDS = 0.5  # each image was shown for 500 ms ...
PAUSE_SECONDS = (0.3, 0.5)  # ... and a grey screen for 300 to 500 ms (Willeke et al. 2022)


@dataclass(frozen=True, eq=False)
class Behavior:
    """Means over each trial, in order of time.

    Attributes:
        behavior: (T, 3) float32: pupil dilation [eye-camera px], its derivative [px/s], running speed [cm/s].
        pupil_center: (T, 2) float32, (x, y) [eye-camera px].
    """

    behavior: np.ndarray
    pupil_center: np.ndarray


def simulate_behavior(n_trials: int, rng: np.random.Generator) -> Behavior:
    """Behaviour during an experiment of n trials."""
    gaps = rng.uniform(*PAUSE_SECONDS, n_trials) + IMAGE_SECONDS
    onset = 30 + np.cumsum(gaps)  # [s], after the filters have settled
    n = int((onset[-1] + 5) * RATE)
    arousal = _wander(n, 40.0, rng)
    bouts = 0.5 * arousal + np.sqrt(1 - 0.25) * _wander(n, 6.0, rng)  # above its threshold for seconds at a time
    running = 14.0 * np.maximum(bouts - 0.4, 0) ** 1.3 * np.exp(0.15 * _wander(n, 0.5, rng))  # [cm/s]
    running += np.abs(rng.normal(0, 0.05, n))  # noise of the treadmill's encoder
    pupil = 0.7 * arousal + 0.35 * _wander(n, 4.0, rng) + 0.09 * _smooth(running, 1.5)
    pupil = 20 + 40 / (1 + np.exp(-0.9 * (pupil - 0.4)))  # [px], between pinpoint and fully dilated
    gaze = np.stack(
        [s * (0.8 * _wander(n, 45.0, rng) + 0.6 * _wander(n, 1.5, rng)) for s in (5.0, 3.5)], axis=1
    )  # (n, 2): horizontal movements are the larger ones
    where = rng.uniform((300, 220), (340, 260)) + gaze
    first = np.round(onset * RATE).astype(int)
    last = first + int(IMAGE_SECONDS * RATE)
    derivative = (pupil[last] - pupil[first]) / IMAGE_SECONDS
    means = [_mean_between(values, first, last) for values in (pupil, running)]
    return Behavior(
        behavior=np.stack([means[0], derivative, means[1]], axis=1).astype(np.float32),
        pupil_center=_mean_between(where, first, last).astype(np.float32),
    )


def _wander(n: int, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """(n,) Ornstein-Uhlenbeck process with this time constant, mean 0 and variance 1, smooth over 0.3 s."""
    keep = np.exp(-1 / (seconds * RATE))
    start = rng.normal()
    noise = rng.normal(size=n) * np.sqrt(1 - keep**2)
    path, _ = lfilter([1.0], [1.0, -keep], noise, zi=[keep * start])
    return _smooth(path, 0.3)


def _smooth(values: np.ndarray, seconds: float) -> np.ndarray:
    keep = np.exp(-1 / (seconds * RATE))
    result, _ = lfilter([1 - keep], [1.0, -keep], values, zi=[keep * values[0]])
    return np.asarray(result)


def _mean_between(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    total = np.cumsum(values, axis=0)
    return (total[last] - total[first]) / (last - first).reshape(-1, *[1] * (values.ndim - 1))
