"""The inputs of a mouse as the manifest describes them: channels with units and statistics, and behavioural states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from server.bundle.manifest import PUPIL_CENTER_CHANNELS, BehaviorState, Channel
from training.data.metadata import InputStatistics
from training.data.mouse import Mouse

__all__ = ["behavior_channels", "behavior_states", "image_channels", "pupil_center_channels"]


def image_channels(mouse: Mouse) -> list[Channel]:
    """A mouse's image channels, with the ranges of the training images where they are known."""
    channels = _channels([(name, "grey level") for name in mouse.image_channels], mouse.images, mouse)
    if not mouse.image_means:
        return channels
    ranges = zip(channels, mouse.image_means, mouse.image_contrasts, strict=True)
    return [c.model_copy(update={"image_mean": mean, "image_contrast": contrast}) for c, mean, contrast in ranges]


def behavior_channels(mouse: Mouse) -> list[Channel]:
    """A mouse's behaviour channels."""
    return _channels(mouse.behavior_channels, mouse.behavior, mouse)


def pupil_center_channels(mouse: Mouse) -> list[Channel]:
    """The x and y of a mouse's pupil centre."""
    return _channels(PUPIL_CENTER_CHANNELS, mouse.pupil_center, mouse)


def behavior_states(mouse: Mouse) -> list[BehaviorState]:
    """A mouse's behavioural states, as the manifest holds them."""
    return [BehaviorState.model_validate({**asdict(s), "behavior": list(s.behavior)}) for s in mouse.states]


def _channels(named: Sequence[tuple[str, str]], statistics: InputStatistics | None, mouse: Mouse) -> list[Channel]:
    """Channels from (name, unit) pairs and the recording's statistics."""
    if statistics is None:
        return [Channel(name=name, unit="standardized" if mouse.standardized_inputs else unit) for name, unit in named]
    return [
        Channel(
            name=name,
            unit=unit,
            mean=float(statistics.mean[i]),
            std=float(statistics.std[i]),
            min=float(statistics.min[i]),
            max=float(statistics.max[i]),
            median=float(statistics.median[i]),
            percentiles=mouse.percentiles.get(name, {}),
        )
        for i, (name, unit) in enumerate(named)
    ]
