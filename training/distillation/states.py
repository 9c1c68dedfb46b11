"""Behaviour and gaze to ask a teacher about: a mouse's own, taken together, and somewhat beyond."""

from __future__ import annotations

import numpy as np

from training.data.mouse import Mouse
from training.data.recordings import Recording

__all__ = ["draw_states", "median_state", "running_states"]

JITTER = 0.25  # stds that are added to a resampled trial
BEYOND, REACH = 0.1, 1.5  # this share of the draws lies this much further from the mean
# Standardised inputs whose statistics are unknown. Behaviour is divided by its std and not centred: dilation is some
# stds above 0, its derivative around 0, and a mouse mostly rests.
DILATION = 3.0


def draw_states(
    mouse: Mouse, recording: Recording | None, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) behaviour and (n, 2) pupil centre, in the units that the twin takes.

    With a recording, trials are resampled as they are, so that pupil, running and gaze keep their joint distribution,
    with jitter; a tenth lies beyond. With its statistics only, each input is drawn by itself from within its range.
    With neither, inputs are standardised.
    """
    if recording is not None:
        recorded = np.concatenate(recording.states_of(recording.tier("train").indices), axis=1).astype(np.float64)
        mean, std, slowest = recorded.mean(0), recorded.std(0), recorded[:, 2].min()
        reach = np.where(rng.random((n, 1)) < BEYOND, REACH, 1.0)
        states = mean + reach * (rng.choice(recorded, n) - mean) + JITTER * std * rng.normal(size=(n, 5))
        states[:, 2] = np.maximum(states[:, 2], slowest)
    elif mouse.standardized_inputs:
        states = rng.normal(size=(n, 5))
        states[:, 0] = np.maximum(DILATION + states[:, 0], 0)
        states[:, 2] = np.maximum(states[:, 2], 0)
    else:
        states = np.zeros((n, 5))
        for part, known in ((slice(3), mouse.behavior), (slice(3, 5), mouse.pupil_center)):
            if known is not None:
                drawn = rng.normal(known.mean, known.std, (n, len(known.mean)))
                states[:, part] = np.clip(drawn, known.min, known.max)
    states = states.astype(np.float32)
    return states[:, :3], states[:, 3:]


def median_state(mouse: Mouse) -> tuple[np.ndarray, np.ndarray]:
    """(3,) and (2,), the state in which experiments are done."""
    dilation = DILATION if mouse.standardized_inputs else 0.0
    behavior = np.array([dilation, 0, 0]) if mouse.behavior is None else mouse.behavior.median
    pupil_center = np.zeros(2) if mouse.pupil_center is None else mouse.pupil_center.median
    return behavior.astype(np.float32), pupil_center.astype(np.float32)


def running_states(mouse: Mouse) -> tuple[np.ndarray, np.ndarray]:
    """(2, 3) behaviour at rest and while running, and (2, 2) the pupil centre, for the effect of running."""
    behavior, pupil_center = median_state(mouse)
    named = {state.name: state for state in mouse.states}
    if len(named) == 2:
        both = np.array([named[name].behavior for name in ("rest", "running")], np.float32)
    else:
        std = np.ones(3) if mouse.behavior is None else mouse.behavior.std
        both = np.stack([behavior, behavior + std * np.array([1, 0, 2])]).astype(np.float32)
        both[0, 2] = 0
    return both, np.stack([pupil_center, pupil_center])
