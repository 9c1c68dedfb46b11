"""A session in memory: what a recording is made of, checked, and written as a recording."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.convert.split import Split, split_by_image
from training.data.layout import SIMULATED, TIERS
from training.data.metadata import read_behavior_channels
from training.data.recording_files import (
    BEHAVIOR_NAMES,
    BEHAVIOR_UNITS,
    write_behavior_channels,
    write_neurons,
    write_statistics,
    write_trial_meta,
    write_trials,
)
from training.data.source import Source
from training.errors import RecordingError
from training.replacing import replacing
from training.tables import counted

__all__ = ["CONVERTED", "LEAST_TRIALS", "Session"]

CONVERTED = "meta/converted.json"  # from which files, and how
LEAST_TRIALS = 10


@dataclass(frozen=True, eq=False, kw_only=True)
class Session:
    """One mouse that looked at images; each array is checked.

    Attributes:
        images: (I, C, H, W) uint8 or float, grey levels 0 to 255.
        shown: (T,) each trial's image, an index into `images`.
        responses: (T, N), one number per trial and neuron.
        neuron_ids: (N,) integers, all different.
        coordinates: (N, 3) cortical position [um]; None if it is not known.
        behavior: (T, K), in `behavior_units`; None if it was not recorded.
        pupil_center: (T, 2) x and y [eye-camera px]; None if it was not recorded.
        image_ids: (T,) equal for trials of the same image; by default `shown`.
        trial_ids: (T,) the trial's index in time, or hashed strings; by default the order of the trials.
        tiers: (T,) words; None if images are still to be split.
        neurons: more columns of (N,), such as "area" and "layer".
        simulated: the content of `meta/simulated.json` of a simulated recording.
        provenance: from which files it was made, and how.

    Raises:
        RecordingError: the message names the array.
    """

    images: np.ndarray
    shown: np.ndarray
    responses: np.ndarray
    neuron_ids: np.ndarray
    coordinates: np.ndarray | None = None
    behavior: np.ndarray | None = None
    behavior_names: tuple[str, ...] = BEHAVIOR_NAMES
    behavior_units: tuple[str, ...] = BEHAVIOR_UNITS
    pupil_center: np.ndarray | None = None
    image_ids: np.ndarray | None = None
    trial_ids: np.ndarray | None = None
    tiers: np.ndarray | None = None
    neurons: dict[str, np.ndarray] = field(default_factory=dict)
    simulated: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        T, N = self._shape("responses", self.responses)
        if self.images.ndim != 4 or 0 in self.images.shape or self.images.dtype.kind not in "uif":
            got = f"{self.images.shape} {self.images.dtype}"
            raise RecordingError("images are not images", got=got, expected="(I, C, H, W) numbers")
        lengths = {
            "the images of the trials": (self.shown, (T,)),
            "behavior": (self.behavior, (T, len(self.behavior_names))),
            "pupil_center": (self.pupil_center, (T, 2)),
            "image_ids of the trials": (self.image_ids, (T,)),
            "trial_ids": (self.trial_ids, (T,)),
            "tiers": (self.tiers, (T,)),
            "neuron_ids": (self.neuron_ids, (N,)),
            "coordinates": (self.coordinates, (N, 3)),
            **{name: (values, (N,)) for name, values in self.neurons.items()},
        }
        for name, (values, shape) in lengths.items():
            if values is not None and values.shape != shape:
                raise RecordingError(
                    f"{name} and responses differ in length",
                    got=values.shape,
                    expected=f"{shape}, as responses are {(T, N)} (trials, neurons)",
                )
        if self.shown.dtype.kind not in "iu" or not ((self.shown >= 0) & (self.shown < len(self.images))).all():
            wrong = [value for value in self.shown.tolist() if not 0 <= value < len(self.images)]
            raise RecordingError(
                f"{counted(len(wrong), 'trial')} with an image that does not exist",
                got=wrong[:3],
                expected=f"0 to {len(self.images) - 1}: there are {counted(len(self.images), 'image')}",
            )
        if self.neuron_ids.dtype.kind not in "iu" or len(np.unique(self.neuron_ids)) != N:
            got = f"{len(np.unique(self.neuron_ids))} distinct of {N}, {self.neuron_ids.dtype}"
            raise RecordingError("neuron_ids are not ids", got=got, expected="integers, all different")
        for name in ("images", "responses", "behavior", "pupil_center", "coordinates"):
            self._check_finite(name)
        if self.images.max() <= 1.0 and self.images.dtype.kind == "f":
            raise RecordingError(
                "images are not grey levels",
                got=f"values {self.images.min():.3g} to {self.images.max():.3g}",
                expected="0 to 255, as the screen showed them",
                hint="Multiply images between 0 and 1 by 255.",
            )
        if T < LEAST_TRIALS:
            raise RecordingError(
                f"{counted(T, 'trial')}: too few to train on", expected=f"{LEAST_TRIALS} or more, of several images"
            )

    def _shape(self, name: str, values: np.ndarray) -> tuple[int, int]:
        if values.ndim != 2 or 0 in values.shape or values.dtype.kind not in "uif":
            raise RecordingError(
                f"{name} are not responses", got=f"{values.shape} {values.dtype}", expected="(trials, neurons) numbers"
            )
        return values.shape[0], values.shape[1]

    def _check_finite(self, name: str) -> None:
        values = getattr(self, name)
        if values is None or values.dtype.kind != "f" or np.isfinite(values).all():
            return
        bad = ~np.isfinite(values)
        first = tuple(int(index) for index in np.argwhere(bad)[0])
        n_rows = int(bad.any(tuple(range(1, bad.ndim))).sum())
        rows = {"coordinates": "neuron", "images": "image"}.get(name, "trial")
        columns = f", of {counted(int(bad.any(0).sum()), 'neuron')}" if name == "responses" else ""
        raise RecordingError(
            f"{name}: NaN or infinity in {counted(n_rows, rows)}{columns}",
            got=f"{values[first]} at {first}",
            expected="finite numbers",
            hint="Add --not-finite drop-trials or drop-neurons to leave them out." if name == "responses" else None,
        )

    def split(self, split: Split) -> np.ndarray:
        """(T,) the tier of each trial: as given, or by image.

        Raises:
            RecordingError: a tier is unknown, or one that training needs would be empty.
        """
        tiers = self.tiers if self.tiers is not None else split_by_image(self._ids(), split)
        tiers = tiers.astype(str)
        if unknown := sorted(set(tiers.tolist()) - set(TIERS)):
            raise RecordingError("unknown tier", got=repr(unknown[0]), expected=" or ".join(TIERS))
        if lacking := [tier for tier in TIERS[:2] if not (tiers == tier).any()]:
            raise RecordingError(
                f"there would be no {lacking[0]} trials",
                got=", ".join(f"{(tiers == tier).sum()} {tier}" for tier in TIERS if (tiers == tier).any()),
                expected=f"images for {TIERS[0]} and {TIERS[1]}",
            )
        return tiers

    def write(self, output: Path, split: Split) -> None:
        """Writes the recording into `output`, as a whole or not at all.

        Raises:
            RecordingError: images cannot be split, or the folder cannot be written.
        """
        tiers = self.split(split)
        train = np.flatnonzero(tiers == "train")
        T, N = self.responses.shape
        inputs = {"responses": self.responses.astype(np.float32)}
        if self.behavior is not None:
            inputs["behavior"] = self.behavior.astype(np.float32)
        if self.pupil_center is not None:
            inputs["pupil_center"] = self.pupil_center.astype(np.float32)
        images = _smallest(self.images)
        coordinates = self.coordinates if self.coordinates is not None else np.zeros((N, 3), np.float32)
        try:
            with replacing(output) as folder:
                write_trials(folder, images, self.shown, inputs)
                trial_ids = self.trial_ids if self.trial_ids is not None else np.arange(T)
                color = images.shape[1] > 1
                write_trial_meta(folder, tiers=tiers, trial_ids=trial_ids, image_ids=self._ids(), color=color)
                write_neurons(
                    folder, {"unit_ids": self.neuron_ids, "cell_motor_coordinates": coordinates, **self.neurons}
                )
                if self.behavior is not None:
                    write_behavior_channels(folder, self.behavior_names, self.behavior_units)
                write_statistics(folder, images[self.shown[train]], {name: v[train] for name, v in inputs.items()})
                source = Source(folder)
                try:
                    read_behavior_channels(source, n_channels=images.shape[1])  # refuses names that it does not take
                finally:
                    source.close()
                if self.simulated:
                    (folder / SIMULATED).write_text(json.dumps(self.simulated, indent=2) + "\n")
                about = json.dumps({**self.provenance, "seed_of_split": split.seed}, indent=2)
                (folder / CONVERTED).write_text(about + "\n")
        except OSError as error:
            raise RecordingError(f"{output} cannot be written: {error.strerror or error}") from error

    def _ids(self) -> np.ndarray:
        return self.shown if self.image_ids is None else self.image_ids


def _smallest(images: np.ndarray) -> np.ndarray:
    """The same values as bytes, if all of them are bytes; otherwise float32."""
    if images.dtype != np.uint8 and images.min() >= 0 and images.max() <= 255 and (images == np.rint(images)).all():
        return images.astype(np.uint8)
    return images if images.dtype == np.uint8 else images.astype(np.float32)
