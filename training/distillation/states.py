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
    """(n, K) behaviour and (n, 2) pupil centre, in the units that the twin takes.

    With a recording, trials are resampled as they are, so that pupil, running and gaze keep their joint distribution,
    with jitter; a tenth lies beyond. With its statistics only, each input is drawn by itself from within its range.
    With neither, inputs are standardised.
    """
    K, (dilation, speed) = mouse.n_behavior, _columns(mouse)
    if recording is not None:
        recorded = np.concatenate(recording.states_of(recording.tier("train").indices), axis=1).astype(np.float64)
        mean, std = recorded.mean(0), recorded.std(0)
        reach = np.where(rng.random((n, 1)) < BEYOND, REACH, 1.0)
        states = mean + reach * (rng.choice(recorded, n) - mean) + JITTER * std * rng.normal(size=(n, K + 2))
        states[:, speed] = np.maximum(states[:, speed], recorded[:, speed].min(0))
    elif mouse.standardized_inputs:
        states = rng.normal(size=(n, K + 2))
        states[:, dilation] = np.maximum(DILATION + states[:, dilation], 0)
        states[:, speed] = np.maximum(states[:, speed], 0)
    else:
        states = np.zeros((n, K + 2))
        for part, known in ((slice(K), mouse.behavior), (slice(K, K + 2), mouse.pupil_center)):
            if known is not None:
                drawn = rng.normal(known.mean, known.std, (n, len(known.mean)))
                states[:, part] = np.clip(drawn, known.min, known.max)
    states = states.astype(np.float32)
    return states[:, :K], states[:, K:]


def median_state(mouse: Mouse) -> tuple[np.ndarray, np.ndarray]:
    """(K,) and (2,), the state in which experiments are done."""
    behavior = np.zeros(mouse.n_behavior) if mouse.behavior is None else mouse.behavior.median
    if mouse.behavior is None and mouse.standardized_inputs:
        behavior[_columns(mouse)[0]] = DILATION
    pupil_center = np.zeros(2) if mouse.pupil_center is None else mouse.pupil_center.median
    return behavior.astype(np.float32), pupil_center.astype(np.float32)


def running_states(mouse: Mouse) -> tuple[np.ndarray, np.ndarray]:
    """(2, K) behaviour at rest and while running, and (2, 2) the pupil centre, for the effect of running.

    Both are the median state where the running speed is not one of the channels: then its effect is 0.
    """
    behavior, pupil_center = median_state(mouse)
    named = {state.name: state for state in mouse.states}
    if len(named) == 2:
        both = np.array([named[name].behavior for name in ("rest", "running")], np.float32)
    else:
        std = np.ones(mouse.n_behavior) if mouse.behavior is None else mouse.behavior.std
        dilation, speed = _columns(mouse)
        both = np.stack([behavior, behavior]).astype(np.float32)
        if speed:
            both[1, dilation] += std[dilation]
            both[1, speed] += 2 * std[speed]
            both[0, speed] = 0
    return both, np.stack([pupil_center, pupil_center])


def _columns(mouse: Mouse) -> tuple[list[int], list[int]]:
    """The columns of behaviour that hold the pupil dilation and the running speed; empty where none does."""
    names = [channel.name for channel in mouse.behavior_channels]
    dilation, speed = "pupil_dilation", "running_speed"
    return [i for i, name in enumerate(names) if name == dilation], [i for i, name in enumerate(names) if name == speed]
