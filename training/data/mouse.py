"""What a twin knows about a mouse without its recording: neurons, units and statistics."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.data.discovery import find_recordings
from training.data.layout import SENSORIUM_BEHAVIOR, STATISTICS, BehaviorChannel, channel_names
from training.data.metadata import InputStatistics
from training.data.recordings import NanTrials, Recording
from training.data.training_ranges import Range, State, state_from
from training.errors import RecordingError

__all__ = ["Mouse", "by_mouse", "data_hashes", "open_recordings"]


@dataclass(frozen=True, eq=False)
class Mouse:
    """A mouse, as it is saved in checkpoints.

    Attributes:
        image_shape: (C, H, W) of the recording's images.
        neuron_ids: (N,) int64.
        neuron_coordinates: (N, 3) float32, cortical position [um]; NaN if unknown.
        behavior_channels: name and unit of each of the K behaviour channels.
        images, behavior, pupil_center: statistics over the training trials, (C,), (K,) and (2,); None if the recording
            lacks them, or if inputs are already standardised.
        percentiles: channel -> such as {"5": 12.1}, over the training trials.
        image_means, image_contrasts: per channel, the smallest and largest mean (and std over the pixels) of a training
            image; empty if they are not known.
        states: the behavioural states that the training trials hold; empty if they are not known.
        response_mean, response_std: (N,) float32, or None; the std is at least 1 % of the mean std, as in the reference
            code.
    """

    mouse_id: str
    image_shape: tuple[int, int, int]
    neuron_ids: np.ndarray
    neuron_coordinates: np.ndarray
    data_key: str | None = None
    image_channels: tuple[str, ...] = ("gray",)
    behavior_channels: tuple[BehaviorChannel, ...] = SENSORIUM_BEHAVIOR
    images: InputStatistics | None = None
    behavior: InputStatistics | None = None
    pupil_center: InputStatistics | None = None
    response_mean: np.ndarray | None = None
    response_std: np.ndarray | None = None
    percentiles: dict[str, dict[str, float]] = field(default_factory=dict)
    image_means: tuple[Range, ...] = ()
    image_contrasts: tuple[Range, ...] = ()
    states: tuple[State, ...] = ()
    simulated: bool = False
    data_hash: str | None = None

    @property
    def n_neurons(self) -> int:
        return len(self.neuron_ids)

    @property
    def n_behavior(self) -> int:
        return len(self.behavior_channels)

    @property
    def standardized_inputs(self) -> bool:
        """Whether no statistics are known, so that the twin takes inputs that are already standardised."""
        return self.images is None

    @classmethod
    def from_recording(cls, recording: Recording) -> Mouse:
        """A mouse with the statistics of its recording."""
        statistics = recording.statistics
        image_means, image_contrasts = recording.image_ranges()
        return cls(
            mouse_id=recording.mouse_id,
            data_key=recording.data_key,
            image_shape=recording.image_shape,
            image_channels=recording.image_channels,
            behavior_channels=recording.behavior_channels,
            neuron_ids=recording.neuron_ids,
            neuron_coordinates=recording.neuron_coordinates,
            images=statistics.images,
            behavior=statistics.behavior if recording.has_behavior else None,
            pupil_center=statistics.pupil_center if recording.has_pupil_center else None,
            response_mean=statistics.responses.mean,
            response_std=recording.response_std,
            percentiles=recording.behavior_percentiles(),
            image_means=image_means,
            image_contrasts=image_contrasts,
            states=recording.states(),
            simulated=recording.simulated,
            data_hash=recording.data_hash,
        )

    @classmethod
    def without_recording(
        cls, mouse_id: str, image_shape: tuple[int, int, int], n_neurons: int, data_key: str | None = None
    ) -> Mouse:
        """A mouse of imported weights: neurons are numbered, and inputs are already standardised."""
        return cls(
            mouse_id=mouse_id,
            data_key=data_key,
            image_shape=image_shape,
            image_channels=channel_names(image_shape[0]),
            neuron_ids=np.arange(n_neurons, dtype=np.int64),
            neuron_coordinates=np.full((n_neurons, 3), np.nan, np.float32),
        )

    def to_json(self) -> dict[str, Any]:
        """Everything that is not an array."""
        return {
            "mouse_id": self.mouse_id,
            "data_key": self.data_key,
            "image_shape": list(self.image_shape),
            "image_channels": list(self.image_channels),
            "behavior_channels": [channel._asdict() for channel in self.behavior_channels],
            "percentiles": self.percentiles,
            "image_means": self.image_means,
            "image_contrasts": self.image_contrasts,
            "states": [asdict(state) for state in self.states],
            "simulated": self.simulated,
            "data_hash": self.data_hash,
        }

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays, by flat names such as "images.mean"."""
        arrays = {"neuron_ids": self.neuron_ids, "neuron_coordinates": self.neuron_coordinates}
        for name in ("response_mean", "response_std"):
            if (value := getattr(self, name)) is not None:
                arrays[name] = value
        for name in ("images", "behavior", "pupil_center"):
            if (statistics := getattr(self, name)) is not None:
                arrays |= {f"{name}.{key}": getattr(statistics, key) for key in STATISTICS}
        # Copies, as the tensors of a checkpoint must not share memory.
        return {name: np.array(array, order="C") for name, array in arrays.items()}

    @classmethod
    def from_parts(cls, content: dict[str, Any], arrays: dict[str, np.ndarray]) -> Mouse:
        """The inverse of `to_json` and `to_arrays`."""
        channels, height, width = content["image_shape"]
        return cls(
            mouse_id=content["mouse_id"],
            data_key=content["data_key"],
            image_shape=(channels, height, width),
            image_channels=tuple(content["image_channels"]),
            percentiles=content["percentiles"],
            # Older checkpoints lack these.
            behavior_channels=tuple(BehaviorChannel(**one) for one in content["behavior_channels"])
            if "behavior_channels" in content
            else SENSORIUM_BEHAVIOR,
            image_means=_ranges(content.get("image_means", [])),
            image_contrasts=_ranges(content.get("image_contrasts", [])),
            states=tuple(state_from(state) for state in content.get("states", [])),
            simulated=content["simulated"],
            data_hash=content["data_hash"],
            neuron_ids=arrays["neuron_ids"],
            neuron_coordinates=arrays["neuron_coordinates"],
            response_mean=arrays.get("response_mean"),
            response_std=arrays.get("response_std"),
            images=_statistics(arrays, "images"),
            behavior=_statistics(arrays, "behavior"),
            pupil_center=_statistics(arrays, "pupil_center"),
        )


def open_recordings(paths: Sequence[Path], *, nan_trials: NanTrials = "refuse") -> list[Recording]:
    """Opens recordings, given as folders, zips, or folders of them, each perhaps as NAME=PATH. Caches are skipped.

    Prints what was passed over or excluded to stderr.

    Raises:
        RecordingError: a recording cannot be read, two are of the same mouse, or all paths are caches.
    """
    found: dict[str, Recording] = {}
    places, notes = find_recordings(paths)
    for place in places:
        recording = Recording.open(place.path, mouse_id=place.mouse_id, inside=place.inside, nan_trials=nan_trials)
        if recording.mouse_id in found:
            raise RecordingError(
                f"two recordings of mouse {recording.mouse_id!r}",
                got=f"{found[recording.mouse_id].label} and {recording.label}",
                expected="one recording per mouse",
                hint=f"If they are of two mice, name one: --recordings NAME={recording.path} ...",
            )
        found[recording.mouse_id] = recording
        if said := recording.excluded_note():
            notes.append(f"{recording.label}: {said}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return list(found.values())


def by_mouse(recordings: Iterable[Recording]) -> dict[str, Recording]:
    """mouse_id -> recording."""
    return {recording.mouse_id: recording for recording in recordings}


def data_hashes(recordings: Iterable[Recording]) -> dict[str, str]:
    """mouse_id -> hash of the recording."""
    return {recording.mouse_id: recording.data_hash for recording in recordings}


def _statistics(arrays: dict[str, np.ndarray], name: str) -> InputStatistics | None:
    if f"{name}.mean" not in arrays:
        return None
    return InputStatistics(**{key: arrays[f"{name}.{key}"] for key in STATISTICS})


def _ranges(pairs: Sequence[Sequence[float]]) -> tuple[Range, ...]:
    return tuple((smallest, largest) for smallest, largest in pairs)
