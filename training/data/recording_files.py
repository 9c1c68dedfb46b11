"""Writes the files of a recording in the Sensorium 2022 layout (`training.data.layout`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.data.layout import BEHAVIOR, IMAGE_ID_FILES, SENSORIUM_BEHAVIOR, STATISTICS, BehaviorChannel
from training.data.recordings import Recording

__all__ = [
    "BEHAVIOR_NAMES",
    "BEHAVIOR_UNITS",
    "behavior_channels_of",
    "write_behavior_channels",
    "write_neurons",
    "write_statistics",
    "write_trial_meta",
    "write_trials",
]


# Of Sensorium's three channels.
BEHAVIOR_NAMES = tuple(channel.name for channel in SENSORIUM_BEHAVIOR)
BEHAVIOR_UNITS = tuple(channel.unit for channel in SENSORIUM_BEHAVIOR)


def write_trials(folder: Path, images: np.ndarray, shown: np.ndarray, inputs: Mapping[str, np.ndarray]) -> None:
    """`data/`: a file per trial and input.

    Args:
        images: (I, C, H, W); shown: (T,) each trial's image among them.
        inputs: such as "responses" -> (T, N).
    """
    for name in ("images", *inputs):
        (folder / "data" / name).mkdir(parents=True)
    for trial in tqdm(range(len(shown)), desc="writing", unit="trial", disable=None, leave=False):
        np.save(folder / f"data/images/{trial}.npy", images[shown[trial]])
        for name, values in inputs.items():
            np.save(folder / f"data/{name}/{trial}.npy", values[trial])


def write_trial_meta(
    folder: Path, *, tiers: np.ndarray, trial_ids: np.ndarray, image_ids: np.ndarray, color: bool
) -> None:
    """`meta/trials/`, an entry per trial in each array."""
    arrays = {"tiers": tiers, "trial_idx": trial_ids, IMAGE_ID_FILES[color]: image_ids}
    _write(folder / "meta/trials", arrays)


def write_neurons(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """`meta/neurons/`, an entry per neuron in each array; `unit_ids` and `cell_motor_coordinates` are needed."""
    _write(folder / "meta/neurons", arrays)


def write_behavior_channels(folder: Path, names: Sequence[str], units: Sequence[str]) -> None:
    """What the columns of `data/behavior` are. Nothing is written for Sensorium's three, in the data set's units."""
    channels = [BehaviorChannel(*one) for one in zip(names, units, strict=True)]
    if tuple(channels) != SENSORIUM_BEHAVIOR:
        (folder / BEHAVIOR).write_text(json.dumps([channel._asdict() for channel in channels]) + "\n")


def behavior_channels_of(recording: Recording) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and units of the columns of `data/behavior`; none if the recording has no behaviour."""
    channels = recording.behavior_channels if recording.has_behavior else ()
    return tuple(channel.name for channel in channels), tuple(channel.unit for channel in channels)


def write_statistics(folder: Path, images: np.ndarray, inputs: Mapping[str, np.ndarray]) -> None:
    """`meta/statistics/` of the training trials: of images a number per channel, of the other inputs one per entry.

    Args:
        images: (T, C, H, W), the images of the training trials; inputs: such as "responses" -> (T, N).
    """
    C = images.shape[1]
    statistics = {name: {s: getattr(np, s)(values, axis=0) for s in STATISTICS} for name, values in inputs.items()}
    of = _byte_statistics if images.dtype == np.uint8 else _float_statistics
    channels = [of(images[:, c]) for c in range(C)]
    statistics["images"] = {
        s: np.reshape([channel[s] for channel in channels], () if C == 1 else (C, 1, 1)) for s in STATISTICS
    }
    for name, values in statistics.items():
        if name in ("behavior", "pupil_center"):
            values["std"] = np.where(values["std"] == 0, 1, values["std"])  # a constant channel is not scaled
        _write(folder / "meta/statistics" / name / "all", {s: np.asarray(v, np.float32) for s, v in values.items()})


def _write(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)


def _byte_statistics(pixels: np.ndarray) -> dict[str, float]:
    """Exact statistics from the histogram, without a float copy of every pixel."""
    counts = sum(np.bincount(image.ravel(), minlength=256) for image in pixels)
    levels, total = np.arange(256), np.sum(counts)
    mean = float((counts * levels).sum() / total)
    present = np.flatnonzero(counts)
    middle = np.searchsorted(np.cumsum(counts), [(total - 1) // 2 + 1, total // 2 + 1])
    return {
        "mean": mean,
        "std": float(np.sqrt((counts * (levels - mean) ** 2).sum() / total)),
        "min": float(present[0]),
        "max": float(present[-1]),
        "median": float(middle.mean()),
    }


def _float_statistics(pixels: np.ndarray) -> dict[str, float]:
    values = pixels.astype(np.float64)
    return {name: float(getattr(np, name)(values)) for name in STATISTICS}
