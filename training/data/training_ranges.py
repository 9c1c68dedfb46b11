"""What the training trials held: named behavioural states, and how bright and contrasty their images were."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.data.layout import SENSORIUM_BEHAVIOR, BehaviorChannel

__all__ = ["RUNNING", "Range", "State", "behavior_states", "image_ranges", "state_from"]

Range = tuple[float, float]

RUNNING_SPEED = SENSORIUM_BEHAVIOR[2]  # in the unit of the next line
RUNNING = 1.0  # cm/s, the usual threshold of locomotion (Niell & Stryker 2010)
LEAST_TRIALS = 10  # medians over fewer trials say little about a state


@dataclass(frozen=True)
class State:
    """A behavioural state: medians over the training trials in which the mouse was in it.

    Attributes:
        name: "rest" or "running".
        definition: which trials count, in words.
        behavior: per behaviour channel; pupil_center: x and y, empty if they were not recorded.
    """

    name: str
    definition: str
    trials: int
    behavior: tuple[float, ...]
    pupil_center: tuple[float, ...]


def behavior_states(
    behavior: np.ndarray, pupil_center: np.ndarray | None, channels: Sequence[BehaviorChannel]
) -> tuple[State, ...]:
    """The states with at least 10 trials; none if the running speed was not recorded, in cm/s.

    Args:
        behavior: (T, K) of the training trials.
        pupil_center: (T, 2), or None.
        channels: of the columns of `behavior`.
    """
    if RUNNING_SPEED not in channels:
        return ()
    runs = np.abs(behavior[:, channels.index(RUNNING_SPEED)]) >= RUNNING  # (T,)
    kinds = (
        ("rest", ~runs, f"training trials with a running speed below {RUNNING:g} cm/s"),
        ("running", runs, f"training trials with a running speed of at least {RUNNING:g} cm/s"),
    )
    return tuple(
        State(name, definition, int(member.sum()), _medians(behavior, member), _medians(pupil_center, member))
        for name, member, definition in kinds
        if member.sum() >= LEAST_TRIALS
    )


def _medians(values: np.ndarray | None, rows: np.ndarray) -> tuple[float, ...]:
    return () if values is None else tuple(np.median(values[rows].astype(np.float64), axis=0).tolist())


def state_from(content: dict[str, Any]) -> State:
    """The inverse of `dataclasses.asdict`, from JSON."""
    return State(**{**content, **{key: tuple(content[key]) for key in ("behavior", "pupil_center")}})


def image_ranges(chunks: Iterable[np.ndarray]) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
    """Per channel, the smallest and largest mean of an image, and of its contrast, the std over its pixels.

    Args:
        chunks: images (B, C, H, W), some at a time.
    """
    means, contrasts = [], []
    for chunk in chunks:
        pixels = chunk.reshape(*chunk.shape[:2], -1).astype(np.float64)  # (B, C, H * W)
        means.append(pixels.mean(axis=2))
        contrasts.append(pixels.std(axis=2))
    return _ranges(means), _ranges(contrasts)


def _ranges(parts: Sequence[np.ndarray]) -> tuple[Range, ...]:
    if not parts:
        return ()
    values = np.concatenate(parts)  # (T, C)
    return tuple(zip(values.min(axis=0).tolist(), values.max(axis=0).tolist(), strict=True))
