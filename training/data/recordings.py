"""A recording of one mouse that looks at images: opened from disk, checked, and read in batches.

    recording = Recording.open("static21067-10-18-GrayImageNet-94c6ff995dac583098847cfecd43e7b6")
    batch = recording.batch(recording.tier("train").indices[:16])
    batch.image, batch.behavior, batch.pupil_center, batch.response    # the recording's own units

See `training.data.layout` and `training.data.metadata` for the layout on disk, `training.data.cache` for the cache.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from training.data.cache import PackedTrials, open_packed
from training.data.layout import (
    EXCLUDED,
    PUPIL_CENTER_NAMES,
    TIERS,
    BehaviorChannel,
    channel_names,
    checked_mouse_id,
    data_key_of,
    paper_mouse_id,
)
from training.data.metadata import (
    Statistics,
    read_behavior_channels,
    read_n_channels,
    read_neurons,
    read_simulated,
    read_statistics,
    read_trials,
)
from training.data.source import Source
from training.data.training_ranges import Range, State, behavior_states, image_ranges
from training.errors import RecordingError, ScoringError
from training.tables import counted

__all__ = ["PERCENTILES", "Batch", "NanTrials", "Recording", "Trials"]

NanTrials = Literal["refuse", "exclude"]

PERCENTILES = (5, 25, 50, 75, 95)
CACHE_VARIABLE = "V1T_CACHE"


@dataclass(frozen=True, eq=False)
class Trials:
    """The trials of one tier.

    Attributes:
        indices: (T,) file numbers, for `Recording.batch`. They do not follow the order in time.
        image_ids: (T,) equal for trials of the same image.
        trial_ids: (T,) the trial's index in time; hashed strings where the competition hides it.
    """

    tier: str
    indices: np.ndarray
    image_ids: np.ndarray
    trial_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some trials, in the recording's own units (nothing is standardised).

    Attributes:
        image: (B, C, H, W) float32, grey levels 0 to 255.
        behavior: (B, K) float32, the recording's `behavior_channels`; zeros if `has_behavior` is False.
        pupil_center: (B, 2) float32, (x, y) eye-camera pixels; zeros if `has_pupil_center` is False.
        response: (B, N) float32, as recorded.
    """

    image: np.ndarray
    behavior: np.ndarray
    pupil_center: np.ndarray
    response: np.ndarray


@dataclass(frozen=True, eq=False)
class Recording:
    """One mouse's recording. `Recording.open` checks it.

    Attributes:
        mouse_id: the paper's name ("A"), or the data key if the paper does not have the mouse.
        data_key: animal-session-scan, such as "21067-10-18".
        image_shape: (C, H, W).
        image_channels: ("gray",), or "channel_0", "channel_1" for colour recordings.
        behavior_channels: name and unit of each of the K behaviour channels.
        neuron_ids: (N,) int64.
        neuron_coordinates: (N, 3) float32, cortical x, y, z [um].
        tiers, image_ids, trial_ids: (T,) by file number.
        simulated: whether `training.simulation.simulate` wrote it.
        data_hash: SHA-256 over its files, and over the trials that `nan_trials` excluded; the same for a folder and
            its zip.
        inside: its folder in the zip at `path`, if the zip holds several recordings.
        excluded_nan: trial -> the inputs with NaN or infinity for which `nan_trials` excluded it.
    """

    path: Path
    mouse_id: str
    data_key: str
    image_shape: tuple[int, int, int]
    image_channels: tuple[str, ...]
    behavior_channels: tuple[BehaviorChannel, ...]
    neuron_ids: np.ndarray
    neuron_coordinates: np.ndarray
    tiers: np.ndarray
    image_ids: np.ndarray
    trial_ids: np.ndarray
    statistics: Statistics
    has_behavior: bool
    has_pupil_center: bool
    simulated: bool
    cache: Path
    data_hash: str
    inside: str
    nan_trials: NanTrials
    excluded_nan: dict[int, tuple[str, ...]]
    _packed: PackedTrials = field(repr=False)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        cache: str | os.PathLike[str] | None = None,
        mouse_id: str | None = None,
        inside: str = "",
        nan_trials: NanTrials = "refuse",
    ) -> Recording:
        """Opens and checks a recording, and packs it the first time.

        Args:
            path: a folder or .zip in the Sensorium 2022 layout.
            cache: the folder for the packed cache; by default $V1T_CACHE, or else the folder of the recording.
            mouse_id: replaces the paper's name.
            inside: the recording's folder in the zip, if the zip holds several.
            nan_trials: "exclude" leaves out trials with NaN or infinity; "refuse" raises.

        Raises:
            RecordingError: a file is missing or invalid; the message names the recording and the file.
        """
        source = Source(Path(path), inside)
        try:
            return cls._opened(source, cache=cache, mouse_id=mouse_id, nan_trials=nan_trials)
        except RecordingError as error:
            raise error.within(f"recording {source.label!r}") from error
        finally:
            source.close()

    @classmethod
    def _opened(
        cls, source: Source, *, cache: str | os.PathLike[str] | None, mouse_id: str | None, nan_trials: NanTrials
    ) -> Recording:
        neuron_ids, coordinates = read_neurons(source)
        tiers, image_ids, trial_ids = read_trials(source)
        simulated = read_simulated(source)
        n_channels, n_neurons = read_n_channels(source), len(neuron_ids)
        behavior = read_behavior_channels(source, n_channels=n_channels)
        statistics = read_statistics(source, n_channels=n_channels, n_neurons=n_neurons, behavior=behavior)
        folder = _cache_folder(source, cache)
        packed = open_packed(source, folder=folder, excluded=tiers == EXCLUDED, n_neurons=n_neurons, behavior=behavior)
        excluded_nan = {trial: names for trial, names in packed.not_finite.items() if tiers[trial] != EXCLUDED}
        data_hash = packed.data_hash
        if excluded_nan:
            if nan_trials == "refuse":
                raise _refused(source, excluded_nan)
            tiers = tiers.astype(f"U{max(len(EXCLUDED), *map(len, TIERS))}")
            tiers[list(excluded_nan)] = EXCLUDED
            data_hash = hashlib.sha256(f"{data_hash} without {sorted(excluded_nan)}".encode()).hexdigest()
        _, C, H, W = packed.images.shape
        data_key = data_key_of(source.name)
        return cls(
            path=source.path,
            mouse_id=checked_mouse_id(mouse_id or simulated.get("mouse_id") or paper_mouse_id(data_key)),
            data_key=data_key,
            image_shape=(C, H, W),
            image_channels=channel_names(C),
            behavior_channels=behavior,
            neuron_ids=neuron_ids,
            neuron_coordinates=coordinates,
            tiers=tiers,
            image_ids=image_ids,
            trial_ids=trial_ids,
            statistics=statistics,
            has_behavior=packed.behavior is not None,
            has_pupil_center=packed.pupil_center is not None,
            simulated=bool(simulated),
            cache=folder,
            data_hash=data_hash,
            inside=source.inside,
            nan_trials=nan_trials,
            excluded_nan=excluded_nan,
            _packed=packed,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process gets the path, not gigabytes of memory-mapped trials.
        return _reopen, (self.path, self.cache.parent, self.mouse_id, self.inside, self.nan_trials)

    @property
    def label(self) -> str:
        """Its path, and its folder in a zip of several recordings."""
        return f"{self.path}/{self.inside}" if self.inside else str(self.path)

    @property
    def n_neurons(self) -> int:
        return len(self.neuron_ids)

    @property
    def n_trials(self) -> int:
        return len(self.tiers)

    @property
    def image_dtype(self) -> np.dtype[Any]:
        """How images are kept: bytes, or float32."""
        return self._packed.images.dtype

    @property
    def response_std(self) -> np.ndarray:
        """(N,) the std that responses are divided by: at least 1 % of the mean std, because of silent neurons."""
        std = self.statistics.responses.std.astype(np.float64)
        threshold = 0.01 * std.mean()
        return np.where(std > threshold, std, threshold).astype(np.float32)

    def tier(self, name: str) -> Trials:
        """The trials of a tier ("train", "validation", "test", "final_test"), in the order of their file numbers."""
        if name not in TIERS:
            raise RecordingError("unknown tier", got=repr(name), expected=" or ".join(TIERS))
        indices = np.flatnonzero(self.tiers == name)
        return Trials(name, indices, self.image_ids[indices], self.trial_ids[indices])

    def with_train_trials(self, n: int, *, seed: int) -> Recording:
        """The same recording with n random training trials. The statistics are still those of all training trials.

        Only for this process: a recording that is sent to another process is opened again, with all trials.

        Raises:
            RecordingError: there are fewer training trials.
        """
        train = np.flatnonzero(self.tiers == "train")
        if not 1 <= n <= len(train):
            raise RecordingError(
                f"mouse {self.mouse_id!r} has too few training trials", got=len(train), expected=f"{n} or more"
            )
        tiers = self.tiers.copy()
        tiers[np.random.default_rng([seed, n]).permutation(train)[n:]] = "unused"
        digest = hashlib.sha256(f"{self.data_hash} {seed} {n}".encode()).hexdigest()
        return replace(self, tiers=tiers, data_hash=digest)

    def without(self, inputs: Sequence[str]) -> Recording:
        """The same recording with some inputs held at their means over the training trials, so that they say nothing.

        Only for this process: a recording that is sent to another process is opened again, with all inputs.

        Args:
            inputs: names of behaviour, such as "running_speed", or "pupil_center".

        Raises:
            RecordingError: an input was not recorded.
        """
        changed: dict[str, Any] = {}
        names = [channel.name for channel in self.behavior_channels]
        for name in inputs:
            part, columns = ("behavior", [names.index(name)]) if name in names else ("pupil_center", [0, 1])
            if name not in (*names, "pupil_center"):
                raise RecordingError(
                    f"mouse {self.mouse_id!r} has no {name}", got=name, expected=", ".join((*names, "pupil_center"))
                )
            values = changed.get(part, getattr(self._packed, part))
            if values is None:
                raise RecordingError(f"mouse {self.mouse_id!r} has no {part} to hold at its mean", got=name)
            changed[part] = np.array(values)
            changed[part][:, columns] = getattr(self.statistics, part).mean[columns]
        digest = hashlib.sha256(f"{self.data_hash} without {sorted(inputs)}".encode()).hexdigest()
        return replace(self, _packed=replace(self._packed, **changed), data_hash=digest)

    def scorable(self, name: str) -> Trials:
        """The trials of a tier, if predictions can be compared with their responses.

        Raises:
            ScoringError: the tier is empty, or the competition withholds its responses (zeros, hashed trial ids).
        """
        trials = self.tier(name)
        if len(trials) == 0:
            held = ", ".join(str(tier) for tier in np.unique(self.tiers))
            raise ScoringError(f"mouse {self.mouse_id!r} has no {name} trials", got=held, expected=name)
        withheld = name == "final_test" or (name == "test" and self.trial_ids.dtype.kind not in "iu")
        if withheld or not self._packed.responses[trials.indices].any():
            raise ScoringError(
                f"the {name} responses of mouse {self.mouse_id!r} cannot be scored: the competition withholds them",
                got="zeroed responses or hashed trial ids",
                expected="recorded responses",
                hint="Score the validation tier, or write a submission file.",
            )
        return trials

    def batch(self, indices: np.ndarray) -> Batch:
        """Trials by file number, in the given order. indices: (B,) integers."""
        indices = np.asarray(indices)
        packed, n = self._packed, len(indices)
        return Batch(
            image=packed.images[indices].astype(np.float32, copy=False),  # (B, C, H, W)
            behavior=_rows(packed.behavior, indices, n, len(self.behavior_channels)),
            pupil_center=_rows(packed.pupil_center, indices, n, 2),
            response=np.asarray(packed.responses[indices]),  # (B, N)
        )

    def responses(self, indices: np.ndarray) -> np.ndarray:
        """(B, N) only the responses, without reading images."""
        return np.asarray(self._packed.responses[np.asarray(indices)])

    def states_of(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, K) behaviour and (B, 2) pupil centre, without reading images; zeros where they were not recorded."""
        indices, packed = np.asarray(indices), self._packed
        n, K = len(indices), len(self.behavior_channels)
        return _rows(packed.behavior, indices, n, K), _rows(packed.pupil_center, indices, n, 2)

    def behavior_percentiles(self) -> dict[str, dict[str, float]]:
        """Percentiles of the training trials: {"pupil_dilation": {"5": 12.1, ...}, ..., "pupil_center_y": ...}."""
        indices = self.tier("train").indices
        result: dict[str, dict[str, float]] = {}
        for names, values in (
            ([channel.name for channel in self.behavior_channels], self._packed.behavior),
            (PUPIL_CENTER_NAMES, self._packed.pupil_center),
        ):
            if values is None or len(indices) == 0:
                continue
            levels = np.percentile(np.asarray(values[indices], dtype=np.float64), PERCENTILES, axis=0)
            for k, name in enumerate(names):
                result[name] = {str(p): float(level) for p, level in zip(PERCENTILES, levels[:, k], strict=True)}
        return result

    def excluded_note(self) -> str | None:
        """A sentence on the trials that `nan_trials` excluded, if there are any."""
        if not self.excluded_nan:
            return None
        listed = _listed(self.excluded_nan)
        return f"{counted(len(self.excluded_nan), 'trial')} with NaN or infinity excluded (--nan-trials): {listed}"

    def states(self) -> tuple[State, ...]:
        """The behavioural states that the training trials hold."""
        indices, packed = self.tier("train").indices, self._packed
        if packed.behavior is None:
            return ()
        pupil_center = None if packed.pupil_center is None else packed.pupil_center[indices]
        return behavior_states(packed.behavior[indices], pupil_center, self.behavior_channels)

    def image_ranges(self) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
        """Per image channel, the ranges of the means and of the contrasts of the training images."""
        indices = self.tier("train").indices
        return image_ranges(self._packed.images[indices[at : at + 32]] for at in range(0, len(indices), 32))

    def notes(self) -> list[str]:
        """Sentences on what is unusual about this recording."""
        unusual = {
            "simulated: no mouse was recorded": self.simulated,
            "no behaviour: models that use it cannot be trained on this mouse": not self.has_behavior,
            "no pupil centre: shifters cannot be trained on this mouse": not self.has_pupil_center,
            "colour: public code contradicts itself on which channel is UV": len(self.image_channels) > 1,
        }
        notes = [note for note, applies in unusual.items() if applies]
        if said := self.excluded_note():
            notes.append(said)
        if n := int((self.tiers == EXCLUDED).sum()) - len(self.excluded_nan):
            notes.append(f"{counted(n, 'trial')} of tier {EXCLUDED!r}: not used")
        notes += [f"no {tier} trials" for tier in TIERS[:3] if len(self.tier(tier)) == 0]
        for tier in TIERS[2:]:
            if len(self.tier(tier)):
                try:
                    self.scorable(tier)
                except ScoringError:
                    notes.append(f"{tier} cannot be scored: its responses are withheld")
        std = self.statistics.responses.std
        if silent := int((std <= 0.01 * std.mean()).sum()):
            notes.append(f"{counted(silent, 'silent neuron')}: the std is raised to 1 % of the mean std")
        return notes


def _reopen(path: Path, cache: Path, mouse_id: str, inside: str, nan_trials: NanTrials) -> Recording:
    return Recording.open(path, cache=cache, mouse_id=mouse_id, inside=inside, nan_trials=nan_trials)


def _refused(source: Source, trials: dict[int, tuple[str, ...]]) -> RecordingError:
    trial, names = next(iter(sorted(trials.items())))
    where = source.trial(f"data/{names[0]}", trial)
    others = f" ({counted(len(trials), 'trial')} in all: {_listed(trials)})" if len(trials) > 1 else ""
    return RecordingError(
        f"{where} contains NaN or infinity{others}",
        hint="Add --nan-trials exclude to leave such trials out, or write 'excluded' for them in "
        "meta/trials/tiers.npy.",
    )


def _listed(trials: dict[int, tuple[str, ...]], n: int = 8) -> str:
    parts = [f"{trial} ({', '.join(names)})" for trial, names in sorted(trials.items())]
    return ", ".join(parts[:n]) + (f" and {len(parts) - n} more" if len(parts) > n else "")


def _rows(values: np.ndarray | None, indices: np.ndarray, n: int, width: int) -> np.ndarray:
    return np.zeros((n, width), np.float32) if values is None else np.asarray(values[indices])


def _cache_folder(source: Source, cache: str | os.PathLike[str] | None) -> Path:
    parent = cache or os.environ.get(CACHE_VARIABLE) or source.path.absolute().parent
    inside = f".{source.inside.replace('/', '.')}" if source.inside else ""
    return Path(parent) / f"{source.path.absolute().name}{inside}.packed"  # with suffix, to tell a folder from its zip
