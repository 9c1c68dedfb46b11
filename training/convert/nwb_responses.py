"""The ROI responses of an NWB file: which series, whose neurons, and one number per trial and neuron."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from training.convert.extras import needed
from training.convert.mapping import Mapping
from training.convert.nwb_file import NwbFile, listed, samples, times_of
from training.convert.windows import rate_of, windowed
from training.errors import RecordingError
from training.tables import counted

__all__ = ["Plane", "guess_responses", "neurons_of", "plane_of", "read_plane", "response_span"]

IDS = ("unit_id", "global_roi_id", "cell_specimen_id", "cell_id")
COORDINATES = (("x_um", "y_um", "z_um"), ("x", "y", "z"))
COPIED = ("area", "layer", "animal_ids")  # columns that a recording has, too
# What a series is, by words in its path, best first: deconvolved, dF/F, fluorescence; then what surrounds the cells.
RANKS = (("event", "deconv", "spike", "inferred"), ("dff", "df_over_f", "dfoverf", "df/f"), ("",))
SURROUND = ("neuropil", "background", "raw_movie")


@dataclass(frozen=True, eq=False)
class Plane:
    """One series of responses.

    Attributes:
        name: of the imaging plane.
        rois: (N,) for each column of the series its row of the ROI table.
        ids: (N,) neuron ids; coordinates: (N, 3) [um], or None.
        columns: other columns of the table, (N,) each.
        kept: (N,) columns of the series that are taken.
    """

    name: str
    series: Any
    rois: np.ndarray
    ids: np.ndarray
    coordinates: np.ndarray | None
    columns: dict[str, np.ndarray]
    kept: np.ndarray


def guess_responses(file: NwbFile) -> tuple[str, ...]:
    """One series for each ROI: deconvolved responses before dF/F before fluorescence.

    Raises:
        RecordingError: the file has no responses.
    """
    pynwb = needed("pynwb", extra="nwb")
    found = {path: one for path, one in file.objects.items() if isinstance(one, pynwb.ophys.RoiResponseSeries)}
    if not found:
        raise RecordingError(f"{file.path.name} has no responses of ROIs", expected="a RoiResponseSeries")
    chosen: list[str] = []
    for path in sorted(found, key=_rank):
        table, rois = found[path].rois.table, set(np.asarray(found[path].rois.data[:]).tolist())
        of_table = [one for one in chosen if found[one].rois.table is table]
        same_kind = all(_rank(one)[0] == _rank(path)[0] for one in of_table)
        if same_kind and not any(rois & set(np.asarray(found[one].rois.data[:]).tolist()) for one in of_table):
            chosen.append(path)
    return tuple(sorted(chosen))


def _rank(path: str) -> tuple[int, str]:
    lower = path.lower()
    if any(word in lower for word in SURROUND):
        return len(RANKS), path
    return next(i for i, words in enumerate(RANKS) if any(word in lower for word in words)), path


def plane_of(file: NwbFile, path: str, mapping: Mapping, name: str | None) -> Plane:
    """A series with its neurons. Column j is the ROI that entry j of its region names: rows may be in another order.

    Raises:
        RecordingError: the region does not fit the series or its table.
    """
    series = file.find(path, "series")
    table = series.rois.table
    rois = np.asarray(series.rois.data[:], dtype=np.int64)
    columns = series.data.shape[1] if len(series.data.shape) == 2 else None
    if columns != len(rois):
        raise RecordingError(
            f"{path} has {counted(columns or 0, 'column')}, but its rois name {counted(len(rois), 'ROI')}",
            got=series.data.shape,
            expected=f"(samples, {len(rois)})",
        )
    if len(rois) == 0 or rois.min() < 0 or rois.max() >= len(table.id) or len(set(rois.tolist())) < len(rois):
        raise RecordingError(
            f"the rois of {path} do not name each a row of its table", expected=f"0 to {len(table.id) - 1}"
        )
    if name is None:
        name = table.imaging_plane.name if getattr(table, "imaging_plane", None) is not None else table.name
    kept = np.arange(len(rois))
    if mapping.keep:
        flags = _column(table, mapping.keep)
        kept = np.flatnonzero(flags.reshape(len(flags), -1)[rois, 0].astype(bool))
        if len(kept) == 0:
            raise RecordingError(f"column {mapping.keep!r} of {table.name} keeps no cell")
    ids = _ids(table, mapping)[rois]
    copied = {name_: _column(table, name_)[rois] for name_ in COPIED if name_ in table.colnames}
    return Plane(name, series, rois, ids, _coordinates(table, rois, mapping), copied, kept)


def _column(table: Any, name: str) -> np.ndarray:
    if name not in table.colnames:
        raise RecordingError(
            f"ROI table {table.name} has no column {name!r}", got=listed([str(one) for one in table.colnames])
        )
    values = np.asarray(table[name][:])
    return values.astype(str) if values.dtype.kind in "OS" and values.ndim == 1 else values


def _ids(table: Any, mapping: Mapping) -> np.ndarray:
    names = [mapping.neuron_id] if mapping.neuron_id else [name for name in IDS if name in table.colnames]
    for name in names:
        values = _column(table, name)
        if values.dtype.kind in "iu" and values.ndim == 1 and len(np.unique(values)) == len(values):
            return values.astype(np.int64)
        if mapping.neuron_id:
            raise RecordingError(f"column {name!r} of {table.name} does not hold a different integer for each ROI")
    return np.asarray(table.id[:], dtype=np.int64)


def _coordinates(table: Any, rois: np.ndarray, mapping: Mapping) -> np.ndarray | None:
    """(N, 3): columns of the table, or else the centres of the masks; None if there are neither."""
    wanted = [mapping.coordinates] if mapping.coordinates else COORDINATES
    for names in wanted:
        if mapping.coordinates or all(name in table.colnames for name in names):
            return np.stack([_column(table, name)[rois] for name in names], axis=1)
    if "pixel_mask" in table.colnames:
        centers = np.array([_center(table["pixel_mask"][int(row)]) for row in rois])
    elif "image_mask" in table.colnames:
        masks = (np.asarray(table["image_mask"][int(row)]) for row in rois)
        centers = np.array([np.average(np.argwhere(mask > 0), axis=0, weights=mask[mask > 0]) for mask in masks])
    else:
        return None
    plane = getattr(table, "imaging_plane", None)
    spacing = getattr(plane, "grid_spacing", None)
    origin = getattr(plane, "origin_coords", None)
    scale = np.asarray(spacing[:2], dtype=np.float64) * 1e6 if spacing is not None else np.ones(2)  # metres
    depth = float(origin[2]) * 1e6 if origin is not None and len(origin) == 3 else 0.0
    return np.column_stack([centers * scale, np.full(len(centers), depth)])


def _center(mask: Any) -> np.ndarray:
    x, y, weight = (np.array([pixel[i] for pixel in mask], dtype=np.float64) for i in range(3))
    return np.array([np.average(x, weights=weight), np.average(y, weights=weight)])


def response_span(plane: Plane, mapping: Mapping) -> tuple[float, float]:
    times = times_of(plane.series, mapping.clocks.get("responses", 0.0))
    return float(times[0]), float(times[-1])


def read_plane(plane: Plane, onsets: np.ndarray, mapping: Mapping) -> np.ndarray:
    """(T, N) the responses to each trial; a trial is NaN if its frames are missing."""
    times = times_of(plane.series, mapping.clocks.get("responses", 0.0))
    start, end = mapping.window
    if rate_of(times) * (end - start) < 1:
        raise RecordingError(
            f"{plane.name}: the window is shorter than the time between two frames",
            got=f"{1000 * (end - start):g} ms, and {1000 / rate_of(times):.0f} ms a frame" if rate_of(times) else None,
            hint="Add --window-ms FROM TO with a longer one.",
        )
    return windowed(
        lambda first, last: samples(plane.series, first, last)[:, plane.kept],
        times,
        onsets,
        window=mapping.window,
        baseline=mapping.baseline,
        statistic=mapping.statistic,
    )


def neurons_of(planes: list[Plane]) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray], list[str]]:
    """Ids, coordinates and other columns of all planes, and notes. Ids that two planes share are numbered anew.

    Raises:
        RecordingError: two planes have the same name.
    """
    twice = [a.name for i, a in enumerate(planes) for b in planes[:i] if a.name == b.name and not _parts(a, b)]
    if twice:
        raise RecordingError(
            f"two planes of the name {twice[0]!r}: their neurons would be counted twice if they are the same",
            got=", ".join(f"{plane.name} ({plane.series.name})" for plane in planes),
            expected="each plane once, under its own name",
            hint="Name one series per plane in the mapping (responses: [...]), or give them names (planes: [...]).",
        )
    ids = np.concatenate([plane.ids[plane.kept] for plane in planes])
    notes = []
    if len(np.unique(ids)) < len(ids):
        ids = np.concatenate([i * 1_000_000 + np.arange(len(plane.kept)) for i, plane in enumerate(planes, start=1)])
        notes.append("planes share ids of ROIs: neuron j of plane i became i x 1,000,000 + j")
    coordinates = None
    if all(plane.coordinates is not None for plane in planes):
        coordinates = np.concatenate([plane.coordinates[plane.kept] for plane in planes])  # type: ignore[index]
    shared = [name for name in COPIED if all(name in plane.columns for plane in planes)]
    columns = {name: np.concatenate([plane.columns[name][plane.kept] for plane in planes]) for name in shared}
    return ids, coordinates, columns, notes


def _parts(one: Plane, other: Plane) -> bool:
    """Whether two series are of different ROIs of one table."""
    return one.series.rois.table is other.series.rois.table and not set(one.rois.tolist()) & set(other.rois.tolist())
