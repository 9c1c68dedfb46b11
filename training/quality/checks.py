"""What is good and bad about a recording, from its trials."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from training.data.layout import PUPIL_CENTER_NAMES
from training.data.leaks import Leak, find_leaks
from training.data.recording_files import behavior_channels_of
from training.data.recordings import Recording
from training.data.training_ranges import RUNNING
from training.errors import ScoringError
from training.metrics import fev_feve, split_half_reliability
from training.quality.alignment import Alignment, align, image_features
from training.tables import counted

__all__ = ["Quality", "quality_of"]

BATCH = 64  # images in memory at once
BINS = 20  # of the session, for drift
TENTH = BINS // 10
DRIFT = 1.5  # how far the mean response may move from the first to the last tenth of the session
DEAD_SHARE, SATURATED_SHARE = 0.1, 0.05  # of neurons, of images: more are flagged
SATURATED = 0.5  # of an image's pixels at black or white
BLANK = 1.0  # grey levels: the contrast below which an image is blank
STATE_SHARE = 0.02  # of trials at rest, and of those running
LISTED = 5


@dataclass(frozen=True, eq=False)
class Quality:
    """What was found in one recording.

    Attributes:
        reliability, fev: (N,) over repeated images; None if there are none.
        alignment: None if no responses are known.
        in_time: whether the order of trials in time is known.
        drift: (BINS,) mean response of all neurons in time, each over its mean; empty without the order in time.
        dead: ids of neurons that do not respond.
        saturated, blank: file numbers of trials with such images.
        coverage: per channel of behaviour and gaze its 1st, 50th and 99th percentile, and its std.
        running: the share of trials in which the mouse runs; None without running speed.
        leaks: images in two tiers; None if they were not looked for.
        flags: what needs a look before training, a sentence each.
    """

    mouse_id: str
    reliability: np.ndarray | None
    fev: np.ndarray | None
    alignment: Alignment | None
    in_time: bool
    drift: np.ndarray
    dead: np.ndarray
    saturated: np.ndarray
    blank: np.ndarray
    coverage: dict[str, tuple[float, float, float, float]]
    running: float | None
    leaks: list[Leak] | None
    flags: tuple[str, ...]


def quality_of(recording: Recording, *, leaks: bool = True) -> Quality:
    """Checks a recording. Trials whose responses are withheld are left out.

    Args:
        leaks: also look for images in two tiers.

    Raises:
        ScoringError: there are none with responses.
    """
    trials, in_time = _trials(recording)
    responses = recording.responses(trials)
    ids = recording.image_ids[trials]
    features, saturated, blank, changed = _look(recording, trials)
    flags = [f"{counted(changed, 'image id')} of trials that show different images"] if changed else []
    reliability, fev = _reliability(responses, ids)
    alignment = align(responses, ids, features)
    flags += alignment.flags()
    spread = responses.std(0)
    dead = recording.neuron_ids[spread <= 0.01 * spread.mean()]
    if len(dead) > DEAD_SHARE * recording.n_neurons:
        flags.append(f"{counted(len(dead), 'neuron')} of {recording.n_neurons} do not respond: leave them out")
    if len(saturated) > SATURATED_SHARE * len(trials):
        flags.append(f"{len(saturated)} of {counted(len(trials), 'trial')} with an image that is mostly black or white")
    if len(blank):
        flags.append(f"{counted(len(blank), 'trial')} with a blank image, the first {_listed(blank)}")
    drift = _drift(responses) if in_time else np.empty(0)
    if len(drift) and not 1 / DRIFT < (moved := drift[-TENTH:].mean() / max(drift[:TENTH].mean(), 1e-12)) < DRIFT:
        flags.append(f"responses drift: the last tenth of the session is at {moved:.2f} times the first tenth")
    coverage, running, about = _coverage(recording, trials)
    flags += about
    found = find_leaks([recording]) if leaks else None
    if equal := sum(leak.equal for leak in found or []):
        flags.append(f"{counted(equal, 'image')} in two tiers: scores of the test would be too high")
    return Quality(
        mouse_id=recording.mouse_id,
        reliability=reliability,
        fev=fev,
        alignment=alignment,
        in_time=in_time,
        drift=drift,
        dead=dead,
        saturated=saturated,
        blank=blank,
        coverage=coverage,
        running=running,
        leaks=found,
        flags=tuple(flags),
    )


def _listed(numbers: np.ndarray) -> str:
    return ", ".join(map(str, numbers[:LISTED].tolist()))


def _trials(recording: Recording) -> tuple[np.ndarray, bool]:
    """File numbers of the trials with responses, in the order of time if it is known."""
    found = []
    for tier in ("train", "validation", "test"):
        if len(recording.tier(tier)):
            try:
                found.append((recording.scorable(tier) if tier == "test" else recording.tier(tier)).indices)
            except ScoringError:
                continue  # withheld
    if not found:
        raise ScoringError(
            f"mouse {recording.mouse_id!r} has no trials with responses", expected="train, validation, test"
        )
    trials = np.sort(np.concatenate(found))
    ids = recording.trial_ids[trials]
    in_time = ids.dtype.kind in "iu" and len(np.unique(ids)) == len(ids)
    return (trials[np.argsort(ids, kind="stable")] if in_time else trials), in_time


def _look(recording: Recording, trials: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Features of every image, trials with saturated and blank images, and ids that have two different images."""
    features, saturated, blank = [], [], []
    pixels: dict[object, bytes] = {}
    changed = set()
    for start in range(0, len(trials), BATCH):
        part = trials[start : start + BATCH]
        images = recording.batch(part).image
        features.append(image_features(images))
        flat = images.reshape(len(images), -1)
        low, high = 0.0, 255.0
        saturated.append(part[((flat <= low) | (flat >= high)).mean(1) > SATURATED])
        blank.append(part[flat.std(1) < BLANK])
        for image_id, image in zip(recording.image_ids[part].tolist(), images, strict=True):
            digest = hashlib.sha256(np.ascontiguousarray(image).data).digest()
            if pixels.setdefault(image_id, digest) != digest:
                changed.add(image_id)
    return np.concatenate(features), np.concatenate(saturated), np.concatenate(blank), len(changed)


def _reliability(responses: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    _, index, counts = np.unique(ids, return_inverse=True, return_counts=True)
    repeated = counts[index] > 1
    if (counts > 1).sum() < 3:
        return None, None
    shown, own = responses[repeated], ids[repeated]
    return split_half_reliability(shown, own), fev_feve(shown, np.zeros_like(shown), own)[0]


def _drift(responses: np.ndarray) -> np.ndarray:
    mean = responses.mean(0)
    alive = mean > 0
    relative = (responses[:, alive] / mean[alive]).mean(1)  # (T,)
    return np.array([part.mean() for part in np.array_split(relative, BINS)]) if alive.any() else np.empty(0)


def _coverage(
    recording: Recording, trials: np.ndarray
) -> tuple[dict[str, tuple[float, float, float, float]], float | None, list[str]]:
    behavior, pupil_center = recording.states_of(trials)
    coverage: dict[str, tuple[float, float, float, float]] = {}
    flags: list[str] = []
    running = None
    for names, values, present in (
        (behavior_channels_of(recording)[0], behavior, recording.has_behavior),
        (PUPIL_CENTER_NAMES, pupil_center, recording.has_pupil_center),
    ):
        for name, column in zip(names, values.T, strict=True) if present else ():
            low, middle, high = np.percentile(column.astype(np.float64), (1, 50, 99))
            coverage[name] = (float(low), float(middle), float(high), float(column.std()))
            if column.std() <= 1e-6 * max(1.0, float(np.abs(column).max())):
                flags.append(f"{name} is constant: a twin learns nothing of it")
            if name == "running_speed":
                running = float((np.abs(column) >= RUNNING).mean())
                if not STATE_SHARE <= running <= 1 - STATE_SHARE:
                    flags.append(f"the mouse runs in {running:.0%} of trials: a twin cannot know the other state")
    return coverage, running, flags
