"""NWB files to a session: `python -m training convert nwb`. Several files are several planes of one session."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from training.convert.extras import needed
from training.convert.mapping import Mapping
from training.convert.not_finite import NotFinite, finite_part
from training.convert.nwb_file import NwbFile, listed, open_nwb, samples, times_of
from training.convert.nwb_responses import (
    Plane,
    guess_responses,
    neurons_of,
    plane_of,
    read_plane,
    response_span,
)
from training.convert.nwb_stimulus import Presentations, guess_stimulus, read_presentations
from training.convert.session import Session
from training.convert.windows import trace_change, trace_mean
from training.data.recording_files import BEHAVIOR_NAMES, BEHAVIOR_UNITS
from training.errors import RecordingError
from training.tables import counted

__all__ = ["read_nwb"]

PUPIL, DERIVATIVE, RUNNING = BEHAVIOR_NAMES
GAZE = "pupil_center"
OWN_BEHAVIOR = "behavior/BehavioralTimeSeries"  # where `to-nwb` writes channels
# Words in the path of a series, all of one of the groups; the first that fits is taken.
WORDS = {
    PUPIL: (("pupil_dilation",), ("pupil", "size"), ("pupil", "area"), ("pupil", "diameter"), ("pupil", "radius")),
    DERIVATIVE: (("pupil_dilation_derivative",),),
    RUNNING: (("running_speed",), ("running",), ("treadmill",), ("wheel",), ("speed",), ("velocity",)),
    GAZE: (("pupil_center",), ("pupil", "location"), ("pupil", "position"), ("gaze",), ("eyetracking",)),
}
EXCEPT = ("derivative", "spherical", "acceleration", "corneal", "blink")  # not these, unless the group names them


def read_nwb(paths: Sequence[Path], mapping: Mapping, *, not_finite: NotFinite) -> tuple[Session, Mapping, list[str]]:
    """The session of some files, the mapping with what was guessed, and notes on what was left out or computed.

    Raises:
        RecordingError: a file is not NWB, has no stimuli or responses, or their times do not overlap.
    """
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open_nwb(path)) for path in paths]
        first = files[0]
        mapping = _completed(files, mapping)
        seen = read_presentations(first, mapping)
        planes = _planes(files, mapping)
        ids, coordinates, columns, about_ids = neurons_of(planes)
        if not mapping.response_samples:
            mapping = replace(mapping, response_samples=_guess_samples(planes, seen))
        if mapping.response_samples == "trials":
            parts = [_rows(plane.series, seen)[:, plane.kept] for plane in planes]
        else:
            for plane in planes:
                _check_overlap(plane, seen.onsets, mapping)
            parts = [read_plane(plane, seen.onsets, mapping) for plane in planes]
        traces, units, gaze, about_behavior = _behavior(first, mapping, seen)
        responses = np.concatenate(parts, axis=1)
        missing = {"frames of responses": np.logical_or.reduce([np.isnan(part).all(1) for part in parts])}
        missing |= {name: ~np.isfinite(values) for name, values in traces.items()}
        if gaze is not None:
            missing[GAZE] = ~np.isfinite(gaze).all(1)
        kept, about_missing = _complete(missing, mapping)
        columns_of_trials = _trial_columns(first, seen)
        if "file_number" in columns_of_trials:
            kept = kept[np.argsort(columns_of_trials["file_number"][kept], kind="stable")]
        finite, neurons, about_finite = finite_part(responses[kept], not_finite)
        kept = kept[finite]
        trials = {name: values[kept] for name, values in columns_of_trials.items()}
        session = Session(
            images=seen.images,
            shown=seen.shown[kept],
            responses=responses[kept][:, neurons],
            neuron_ids=ids[neurons],
            coordinates=None if coordinates is None else coordinates[neurons],
            neurons={name: values[neurons] for name, values in columns.items()},
            behavior=np.stack([values[kept] for values in traces.values()], axis=1) if traces else None,
            behavior_names=tuple(traces),
            behavior_units=tuple(units),
            pupil_center=None if gaze is None else gaze[kept],
            image_ids=trials.get("image_id"),
            trial_ids=trials.get("trial_id", kept),
            tiers=trials.get("tier"),
            **_origin(files, mapping),
        )
    notes = [*seen.notes, *about_ids, *about_behavior, *about_missing, *([about_finite] if about_finite else [])]
    return session, mapping, notes


def _completed(files: Sequence[NwbFile], mapping: Mapping) -> Mapping:
    """The mapping with guesses for what it leaves open."""
    guessed: dict[str, Any] = {}
    if not mapping.stimulus:
        guessed["stimulus"] = guess_stimulus(files[0])
    if not mapping.responses:
        found = [guess_responses(file) for file in files]
        guessed["responses"] = tuple(dict.fromkeys(path for paths in found for path in paths))
    own = _notes(files[0]).get("behavior_channels", [])
    behavior = {name: f"{OWN_BEHAVIOR}/{name}" for name in own} | mapping.behavior
    for channel in WORDS if not own else (GAZE,):
        if channel not in behavior and (path := _guess_trace(files[0], channel)):
            behavior[channel] = path
    return replace(mapping, behavior=behavior, **guessed)


def _guess_trace(file: NwbFile, channel: str) -> str | None:
    """The path of the series that is most likely to be this channel."""
    pynwb = needed("pynwb", extra="nwb")
    of_images = (pynwb.image.ImageSeries, pynwb.image.IndexSeries, pynwb.ophys.RoiResponseSeries)
    width = 2 if channel == GAZE else 1
    paths = [
        path
        for path, one in file.objects.items()
        if isinstance(one, pynwb.TimeSeries)
        and not isinstance(one, of_images)
        and one.data is not None
        and (int(np.prod(one.data.shape[1:])) == width)
    ]
    for words in WORDS[channel]:
        fitting = [path for path in sorted(paths) if all(word in path.lower() for word in words)]
        allowed = [path for path in fitting if not any(w in path.lower() for w in EXCEPT if w not in words[0])]
        if allowed:
            return allowed[0]
    return None


def _planes(files: Sequence[NwbFile], mapping: Mapping) -> list[Plane]:
    places = [(file, path) for file in files for path in mapping.responses if len(files) == 1 or _has(file, path)]
    if lacking := [file.path.name for file in files if file not in [place[0] for place in places]]:
        raise RecordingError(f"{lacking[0]} has none of the series of responses", got=listed(list(mapping.responses)))
    if mapping.planes and len(mapping.planes) != len(places):
        raise RecordingError(
            f"planes names {counted(len(mapping.planes), 'plane')}",
            got=", ".join(mapping.planes),
            expected=f"a name for each of {counted(len(places), 'series', 'series')} of responses",
        )
    names: Sequence[str | None] = mapping.planes or [None] * len(places)
    return [plane_of(file, path, mapping, name) for (file, path), name in zip(places, names, strict=True)]


def _guess_samples(planes: list[Plane], seen: Presentations) -> str:
    """ "trials" if every series has one sample at the onset of each presentation."""
    times = [times_of(plane.series) for plane in planes]
    if any(len(one) <= seen.row.max() for one in times):
        return "times"
    at_onsets = all(np.allclose(one[seen.row], seen.onsets, rtol=0, atol=1e-6) for one in times)
    return "trials" if at_onsets and all(len(one) == len(times[0]) for one in times) else "times"


def _has(file: NwbFile, path: str) -> bool:
    return path in file.objects


def _check_overlap(plane: Plane, onsets: np.ndarray, mapping: Mapping) -> None:
    start, end = response_span(plane, mapping)
    if onsets[-1] + mapping.window[1] < start or onsets[0] + mapping.window[0] > end:
        raise RecordingError(
            f"stimuli and responses of plane {plane.name!r} do not overlap in time",
            got=f"stimuli at {onsets[0]:.1f} to {onsets[-1]:.1f} s, responses at {start:.1f} to {end:.1f} s",
            expected="times of one clock",
            hint="State the seconds to add in the mapping, such as clocks: {stimulus: 12.5}.",
        )


def _rows(series: Any, seen: Presentations) -> np.ndarray:
    """(T, ...) the samples of the presentations, of a series with one sample for each."""
    values = samples(series)
    if len(values) <= seen.row.max():
        raise RecordingError(
            f"{series.name} has {counted(len(values), 'sample')}",
            expected=f"one for each of {int(seen.row.max()) + 1} presentations, as response_samples is 'trials'",
        )
    return values[seen.row]


def _behavior(
    file: NwbFile, mapping: Mapping, seen: Presentations
) -> tuple[dict[str, np.ndarray], list[str], np.ndarray | None, list[str]]:
    """(T,) of each channel, their units, (T, 2) gaze, and notes. NaN where too much is missing."""
    notes: list[str] = []
    chosen = {name: path for name, path in mapping.behavior.items() if path != "none"}
    own = [name for name in _notes(file).get("behavior_channels", []) if name in chosen]
    names = own or [*(name for name in BEHAVIOR_NAMES if name in chosen), *(n for n in chosen if n not in WORDS)]
    if PUPIL in chosen and DERIVATIVE not in mapping.behavior and not own:
        names.insert(1, DERIVATIVE)
        notes.append(f"{DERIVATIVE} computed from {PUPIL}")
    found, units = {}, []
    usual = dict(zip(BEHAVIOR_NAMES, BEHAVIOR_UNITS, strict=True))
    for name in names:
        series = file.find(chosen.get(name, chosen.get(PUPIL, "")), "series")
        values, unit = _per_trial(series, name, name not in chosen, mapping, seen)
        found[name] = values
        units.append(usual[name] if unit in ("n.a.", "unknown", "") and name in usual else unit)
    gaze = None
    if GAZE in chosen:
        gaze, _ = _per_trial(file.find(chosen[GAZE], "series"), GAZE, False, mapping, seen)
    return found, units, gaze, notes


def _per_trial(
    series: Any, name: str, derivative: bool, mapping: Mapping, seen: Presentations
) -> tuple[np.ndarray, str]:
    unit = f"{series.unit}/s" if derivative else str(series.unit)
    factor, unit = (100.0, "cm/s") if unit in ("m/s", "meters/s", "meters per second") else (None, unit)
    if mapping.response_samples == "trials":
        values = _rows(series, seen)
    else:
        path_offset = mapping.clocks.get(name, mapping.clocks.get(series.name, 0.0))
        trace = trace_change if derivative else trace_mean
        values = samples(series)
        values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        times = times_of(series, path_offset)
        values = trace(times, values, seen.onsets, window=mapping.window, max_gap=mapping.max_gap_s)
    return (values if factor is None else values * factor), unit


def _complete(missing: dict[str, np.ndarray], mapping: Mapping) -> tuple[np.ndarray, list[str]]:
    """The trials in which nothing is missing, and notes.

    Raises:
        RecordingError: more are left out than `mapping.max_dropped` allows.
    """
    left = np.logical_or.reduce(list(missing.values()))
    parts = [f"{int(which.sum())} without {what}" for what, which in missing.items() if which.any()]
    if left.mean() > mapping.max_dropped:
        raise RecordingError(
            f"too much is missing: {int(left.sum())} of {counted(len(left), 'trial')} would be left out",
            got=", ".join(parts),
            expected=f"at most {mapping.max_dropped:.0%} (max_dropped)",
            hint="Leave out a channel in the mapping, such as behavior: {pupil_dilation: none}; or state the clock of "
            "a series (clocks); or raise max_dropped.",
        )
    note = [f"{counted(int(left.sum()), 'trial')} left out: {', '.join(parts)}"] if parts else []
    return np.flatnonzero(~left), note


def _trial_columns(file: NwbFile, seen: Presentations) -> dict[str, np.ndarray]:
    """Image ids, tiers and trial ids from the table of trials, if it has them for these presentations."""
    table = file.nwb.trials
    if table is None or len(table.id) <= seen.row.max():
        return {}
    columns = {
        name: np.asarray(table[name][:])
        for name in ("image_id", "tier", "trial_id", "file_number")
        if name in table.colnames
    }
    columns = {name: v.astype(str) if v.dtype.kind in "OSU" else v for name, v in columns.items()}
    return {name: values[seen.row] for name, values in columns.items()}


def _origin(files: Sequence[NwbFile], mapping: Mapping) -> dict[str, Any]:
    """Provenance; and what marks a simulated recording, if `to-nwb` wrote the file from one."""
    simulated = _notes(files[0]).get("simulated", {})
    sources = [
        {"file": file.path.name, "sha256": _sha256(file.path), "identifier": str(file.nwb.identifier)} for file in files
    ]
    return {"simulated": simulated, "provenance": {"nwb": sources, "mapping": mapping.as_dict()}}


def _notes(file: NwbFile) -> dict[str, Any]:
    """What `to-nwb` wrote into the notes; empty for files of others."""
    about = None
    with contextlib.suppress(TypeError, ValueError):
        about = json.loads(file.nwb.notes)
    return about if isinstance(about, dict) and "converted_from" in about else {}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
