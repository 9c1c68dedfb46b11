"""The Sensorium 2022 / Franke 2022 layout on disk: its names, and the checks of its arrays.

static21067-10-18-GrayImageNet-<hash>/        or a .zip of it, which is read without unpacking
    data/{images,responses,behavior,pupil_center}/<trial>.npy
    meta/neurons/{unit_ids,cell_motor_coordinates}.npy
    meta/trials/{tiers,trial_idx,frame_image_id}.npy
    meta/statistics/{images,responses,behavior,pupil_center}/all/{mean,std,min,max,median}.npy
    meta/behavior.json                        what the columns of data/behavior are; without it, Sensorium's three
    meta/simulated.json                       only if `training.simulation.simulate` wrote the recording
    simulated_truth.npz                       only in such a recording: what its neurons are
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from training.errors import RecordingError

__all__ = [
    "BEHAVIOR",
    "EXCLUDED",
    "IMAGE_ID_FILES",
    "INPUTS",
    "MOUSE_IDS",
    "PUPIL_CENTER_NAMES",
    "SENSORIUM_BEHAVIOR",
    "SIMULATED",
    "STATISTICS",
    "TIERS",
    "TRUTH",
    "BehaviorChannel",
    "behavior_text",
    "channel_names",
    "checked_mouse_id",
    "data_key_of",
    "finite",
    "flat",
    "float32",
    "paper_mouse_id",
]

INPUTS = ("images", "responses", "behavior", "pupil_center")
TIERS = ("train", "validation", "test", "final_test")
EXCLUDED = "excluded"  # the tier of trials that nothing uses; their files may be missing
STATISTICS = ("mean", "std", "min", "max", "median")
PUPIL_CENTER_NAMES = ("pupil_center_x", "pupil_center_y")
IMAGE_ID_FILES = ("frame_image_id", "colorframeprojector_image_id")  # grey (Sensorium), colour (Franke)
BEHAVIOR = "meta/behavior.json"
SIMULATED = "meta/simulated.json"
TRUTH = "simulated_truth.npz"


class BehaviorChannel(NamedTuple):
    """A column of `data/behavior`, by the name that requests to the served twin use."""

    name: str
    unit: str


SENSORIUM_BEHAVIOR = (
    BehaviorChannel("pupil_dilation", "eye-camera px"),
    BehaviorChannel("pupil_dilation_derivative", "eye-camera px/s"),
    BehaviorChannel("running_speed", "cm/s"),
)


# Data key (animal-session-scan) -> the paper's name: S0 and S1 of the competition, A-E Sensorium, F-O Franke.
MOUSE_IDS = {
    "26872-17-20": "S0",
    "27204-5-13": "S1",
    "21067-10-18": "A",
    "22846-10-16": "B",
    "23343-5-17": "C",
    "23656-14-22": "D",
    "23964-4-22": "E",
    "25311-10-26": "F",
    "25340-3-19": "G",
    "25704-2-12": "H",
    "25830-10-4": "I",
    "26085-6-3": "J",
    "26142-2-11": "K",
    "26426-18-13": "L",
    "26470-4-5": "M",
    "26644-6-2": "N",
    "26872-21-6": "O",
}


def data_key_of(name: str) -> str:
    """ "static21067-10-18-GrayImageNet-94c6..." -> "21067-10-18"; any other name is returned unchanged."""
    match = re.match(r"static(\d+-\d+-\d+)(?:-|$)", name)
    return match.group(1) if match else name


def paper_mouse_id(data_key: str) -> str:
    """The paper's name of a recording (Table A.1); the data key itself if the paper has none."""
    return MOUSE_IDS.get(data_key, data_key)


def checked_mouse_id(name: str) -> str:
    """A name for a mouse: any text that can be the name of a folder and of a mouse in a request.

    Raises:
        RecordingError: the message names it.
    """
    name = unicodedata.normalize("NFC", name)  # macOS writes accents of folder names as separate characters
    fits = name.isprintable() and 1 <= len(name.encode(errors="replace")) <= 200  # a file's name may have 255 bytes
    if not fits or name in (".", "..", "*") or set(name) & set("/\\"):
        raise RecordingError(
            "invalid name of a mouse",
            got=ascii(name[:120]),
            expected="1 to 200 bytes of printable characters, without / and \\",
            hint="Give another one: --recordings NAME=PATH.",
        )
    return name


def channel_names(n_channels: int) -> tuple[str, ...]:
    """Names of a recording's image channels.

    Dataset F has a UV and a green channel. Public code contradicts itself on their order, so they stay unnamed.
    """
    return ("gray",) if n_channels == 1 else tuple(f"channel_{i}" for i in range(n_channels))


def behavior_text(channels: Sequence[BehaviorChannel]) -> str:
    """ "pupil_dilation [eye-camera px], running_speed [cm/s]"."""
    return ", ".join(f"{channel.name} [{channel.unit}]" for channel in channels)


def flat(array: np.ndarray, length: int, *, where: str, hint: str | None = None) -> np.ndarray:
    """(length,) float32 from (length,) or (1, length): the data set's README and files disagree on the shape."""
    if array.dtype.kind not in "fiub":
        raise RecordingError(f"{where} is not numeric", got=f"dtype {array.dtype}", expected="float32")
    if array.shape not in ((length,), (1, length)):
        expected = f"({length},) or (1, {length})"
        raise RecordingError(f"{where} has a wrong shape", got=array.shape, expected=expected, hint=hint)
    return float32(array.reshape(length))


def float32(array: np.ndarray) -> np.ndarray:
    """The values as float32; those that float32 cannot hold become infinite, and are refused as such."""
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float32)


def finite(array: np.ndarray, *, where: str, hint: str) -> np.ndarray:
    if not np.isfinite(array).all():
        raise RecordingError(
            f"{where} contains NaN or infinity",
            got=f"{int((~np.isfinite(array)).sum())} of {array.size} values",
            hint=hint,
        )
    return array
