"""The metadata of a recording (`meta/`): neurons, trials and statistics, read and checked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.data.layout import (
    BEHAVIOR,
    EXCLUDED,
    IMAGE_ID_FILES,
    INPUTS,
    PUPIL_CENTER_NAMES,
    SENSORIUM_BEHAVIOR,
    SIMULATED,
    STATISTICS,
    TIERS,
    BehaviorChannel,
    behavior_text,
    channel_names,
    finite,
    flat,
    float32,
)
from training.data.source import Source
from training.errors import RecordingError

__all__ = [
    "InputStatistics",
    "Statistics",
    "behavior_hint",
    "read_behavior_channels",
    "read_n_channels",
    "read_neurons",
    "read_simulated",
    "read_statistics",
    "read_trials",
]

_CHANNELS = '[{"name": "whisking", "unit": "std"}, ...], one per column of data/behavior'


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """Statistics of one input from `meta/statistics`, float32, with an entry per channel or neuron."""

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    median: np.ndarray


@dataclass(frozen=True, eq=False)
class Statistics:
    """images (C,), responses (N,), behavior (K,), pupil_center (2,); mean 0 and std 1 for inputs that are missing."""

    images: InputStatistics
    responses: InputStatistics
    behavior: InputStatistics
    pupil_center: InputStatistics


def read_neurons(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Ids (N,) int64 and coordinates (N, 3) float32 [um]."""
    where = "meta/neurons/unit_ids.npy"
    ids = source.array(where)
    if ids.ndim != 1 or len(ids) == 0 or ids.dtype.kind not in "iu":
        raise RecordingError(f"{where} is not a list of ids", got=f"{ids.shape} {ids.dtype}", expected="(N,) integers")
    if len(np.unique(ids)) != len(ids):
        raise RecordingError(f"{where} has a neuron twice", got=f"{len(np.unique(ids))} distinct of {len(ids)}")
    where = "meta/neurons/cell_motor_coordinates.npy"
    coordinates = source.array(where)
    if coordinates.shape != (len(ids), 3):
        raise RecordingError(f"{where} has a wrong shape", got=coordinates.shape, expected=(len(ids), 3))
    return ids.astype(np.int64), finite(float32(coordinates), where=where, hint="Give every neuron a position.")


def read_trials(source: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tiers, image ids and trial ids, (T,) each, by file number."""
    where = "meta/trials/tiers.npy"
    tiers = source.array(where)
    if tiers.ndim != 1 or len(tiers) == 0 or tiers.dtype.kind not in "US":
        raise RecordingError(
            f"{where} is not a list of tiers", got=f"{tiers.shape} {tiers.dtype}", expected="(T,) words"
        )
    tiers = tiers.astype(str)
    if unknown := sorted(set(tiers.tolist()) - {*TIERS, EXCLUDED}):
        raise RecordingError(
            f"{where} contains an unknown tier",
            got=repr(unknown[0]),
            expected=" or ".join(TIERS),
            hint=f"Trials of tier {EXCLUDED!r} are not used.",
        )
    found = [name for name in IMAGE_ID_FILES if f"meta/trials/{name}.npy" in source]
    image_ids = _read_ids(source, f"meta/trials/{(found or IMAGE_ID_FILES)[0]}.npy", len(tiers))
    return tiers, image_ids, _read_ids(source, "meta/trials/trial_idx.npy", len(tiers))


def _read_ids(source: Source, where: str, n_trials: int) -> np.ndarray:
    ids = source.array(where)
    if ids.shape != (n_trials,):
        raise RecordingError(f"{where} and meta/trials/tiers.npy differ in length", got=ids.shape, expected=n_trials)
    if ids.dtype.kind == "f" and (ids == np.round(ids)).all():
        ids = ids.astype(np.int64)
    if ids.dtype.kind not in "iuUS":
        raise RecordingError(f"{where} does not contain ids", got=ids.dtype, expected="integers or strings")
    return ids.astype(np.int64) if ids.dtype.kind in "iu" else ids.astype(str)


def read_simulated(source: Source) -> dict[str, Any]:
    """The content of `meta/simulated.json`; empty for a real recording."""
    if SIMULATED not in source:
        return {}
    try:
        about = json.loads(source.read(SIMULATED))
    except ValueError as error:
        raise RecordingError(f"{SIMULATED} is not JSON: {error}") from error
    if not isinstance(about, dict) or not isinstance(about.get("mouse_id"), str):
        raise RecordingError(f"{SIMULATED} has no mouse_id", expected='{"mouse_id": "SIM1", ...}')
    return about


def read_behavior_channels(source: Source, *, n_channels: int) -> tuple[BehaviorChannel, ...]:
    """The columns of `data/behavior`, from `meta/behavior.json`; Sensorium's three where there is none.

    Args:
        n_channels: of the images, whose names are taken.
    """
    if BEHAVIOR not in source:
        return SENSORIUM_BEHAVIOR
    try:
        content = json.loads(source.read(BEHAVIOR))
    except ValueError as error:
        raise RecordingError(f"{BEHAVIOR} is not JSON: {error}", expected=_CHANNELS) from error
    if not isinstance(content, list) or not content:
        raise RecordingError(f"{BEHAVIOR} is not a list of channels", got=str(content)[:80], expected=_CHANNELS)
    channels = tuple(_behavior_channel(one) for one in content)
    names = [channel.name for channel in channels]
    taken = {"pupil_center", *PUPIL_CENTER_NAMES, *channel_names(n_channels)}
    for i, name in enumerate(names):
        if name in names[:i] or name in taken:
            raise RecordingError(
                f"{BEHAVIOR}: {name!r} " + ("is the name of another input" if name in taken else "is listed twice"),
                got=", ".join(names),
                expected="a name of its own for each channel",
            )
    return channels


def _behavior_channel(content: Any) -> BehaviorChannel:
    if not isinstance(content, dict) or set(content) != {"name", "unit"}:
        raise RecordingError(f"{BEHAVIOR}: not a channel", got=str(content)[:80], expected=_CHANNELS)
    channel = BehaviorChannel(str(content["name"]), str(content["unit"]))
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", channel.name):
        expected = "a letter, then letters, digits and _: at most 64"
        raise RecordingError(f"{BEHAVIOR}: invalid name of a channel", got=ascii(channel.name[:80]), expected=expected)
    if not (channel.unit.isprintable() and 1 <= len(channel.unit) <= 40):
        raise RecordingError(
            f"{BEHAVIOR}: invalid unit of channel {channel.name!r}",
            got=ascii(channel.unit[:80]),
            expected="1 to 40 printable characters, such as cm/s",
        )
    return channel


def behavior_hint(source: Source, channels: tuple[BehaviorChannel, ...]) -> str:
    """Where the number of behaviour channels comes from, for an array of another length."""
    if BEHAVIOR in source:
        return f"{BEHAVIOR} lists {behavior_text(channels)}."
    return f"The channels are {behavior_text(channels)}; if yours are others, list them in {BEHAVIOR}."


def read_n_channels(source: Source) -> int:
    """The number of channels of the first image. Packing checks that all images have the same shape."""
    where = source.trial("data/images", min(source.numbered("data/images"), default=0))
    shape = source.array(where).shape
    if len(shape) != 3 or 0 in shape:
        raise RecordingError(f"{where} is not an image", got=shape, expected="(C, H, W)")
    return int(shape[0])


def read_statistics(
    source: Source, *, n_channels: int, n_neurons: int, behavior: tuple[BehaviorChannel, ...]
) -> Statistics:
    """The statistics of every input; mean 0 and std 1 for behaviour or pupil centre that the recording lacks."""
    lengths = {"images": n_channels, "responses": n_neurons, "behavior": len(behavior), "pupil_center": 2}
    present = {name: bool(source.numbered(f"data/{name}")) for name in INPUTS}
    shape_hints = {"behavior": behavior_hint(source, behavior)}
    return Statistics(
        **{
            name: _read_input_statistics(source, name, lengths[name], shape_hints.get(name))
            if present[name]
            else _identity(lengths[name])
            for name in INPUTS
        }
    )


def _identity(length: int) -> InputStatistics:
    zeros, ones = np.zeros(length, np.float32), np.ones(length, np.float32)
    return InputStatistics(mean=zeros, std=ones, min=zeros, max=zeros, median=zeros)


def _read_input_statistics(source: Source, name: str, length: int, shape_hint: str | None) -> InputStatistics:
    values: dict[str, np.ndarray] = {}
    for statistic in STATISTICS:
        where = f"meta/statistics/{name}/all/{statistic}.npy"
        array = source.array(where)
        if array.size == 1 and name != "responses":  # one number for all channels
            array = np.full(length, array.reshape(()))
        elif name == "images" and array.shape == (length, 1, 1):
            array = array.reshape(length)
        hint = f"Compute it over the training trials without NaN, such as with numpy.nan{statistic}."
        values[statistic] = finite(flat(array, length, where=where, hint=shape_hint), where=where, hint=hint)
    if (values["std"] < 0).any() or (name != "responses" and (values["std"] == 0).any()):
        where = f"meta/statistics/{name}/all/std.npy"
        raise RecordingError(
            f"{where} is not positive, but inputs are divided by it",
            got=values["std"].min(),
            expected="> 0",
            hint="For a channel that is constant, write 1: then it is not scaled.",
        )
    return InputStatistics(**values)
