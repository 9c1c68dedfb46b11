"""The images of an NWB file, and when each was shown."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.convert.extras import needed
from training.convert.images import resized
from training.convert.mapping import Mapping
from training.convert.nwb_file import NwbFile, listed, times_of
from training.errors import RecordingError
from training.tables import counted

__all__ = ["Presentations", "guess_stimulus", "read_presentations"]


@dataclass(frozen=True, eq=False)
class Presentations:
    """Images (I, C, H, W), and for each presentation its image (T,) and onset (T,) [s], ascending.

    `row` (T,) is the presentation's index in the file; `notes` say what was left out.
    """

    images: np.ndarray
    shown: np.ndarray
    onsets: np.ndarray
    row: np.ndarray
    notes: tuple[str, ...]


def guess_stimulus(file: NwbFile) -> str:
    """The series or the table that is most likely to say which image was shown when.

    Raises:
        RecordingError: there is none.
    """
    pynwb = needed("pynwb", extra="nwb")
    stimuli = list(file.nwb.stimulus.values())
    indexed = [one for one in stimuli if isinstance(one, pynwb.image.IndexSeries)]
    shown = [one for one in stimuli if isinstance(one, pynwb.image.ImageSeries)]
    found = indexed or shown
    if not found:
        tables = [file.path_of(one) for one in (file.nwb.intervals or {}).values()]
        raise RecordingError(
            f"{file.path.name} has no stimulus images",
            got=f"stimuli: {listed([one.name for one in stimuli])}; tables of intervals: {listed(tables)}",
            expected="an IndexSeries, ImageSeries or OpticalSeries among its stimuli",
            hint="Name a table with stimulus, image_column and images in a mapping, if one says which image was shown.",
        )
    if len(found) > 1:
        found.sort(key=lambda one: ("natural_scene" not in one.name.lower(), "image" not in one.name.lower()))
    return file.path_of(found[0])


def read_presentations(file: NwbFile, mapping: Mapping) -> Presentations:
    """Reads what `mapping.stimulus` names.

    Raises:
        RecordingError: images are outside of the file, or an index has no image.
    """
    offset = mapping.clocks.get("stimulus", 0.0)
    pynwb = needed("pynwb", extra="nwb")
    if mapping.image_column:
        table = file.find(mapping.stimulus, "table")
        if mapping.image_column not in table.colnames:
            raise RecordingError(
                f"table {table.name} has no column {mapping.image_column!r}", got=", ".join(table.colnames)
            )
        index = np.asarray(table[mapping.image_column][:], dtype=np.float64)
        onsets = np.asarray(table["start_time"][:], dtype=np.float64) + offset
        images = _images(file.find(mapping.images, "images"))
    else:
        series = file.find(mapping.stimulus, "series")
        if isinstance(series, pynwb.image.IndexSeries):
            index = np.asarray(series.data[:], dtype=np.float64)
            template = series.indexed_images if series.indexed_images is not None else series.indexed_timeseries
            images = _images(template)
        else:
            images, index = _distinct(_images(series))
        onsets = times_of(series, offset)
    return _presentations(images, index, onsets, mapping)


def _presentations(images: list[np.ndarray], index: np.ndarray, onsets: np.ndarray, mapping: Mapping) -> Presentations:
    rows = np.arange(len(index))
    if mapping.stimulus_samples == "frames":
        starts = np.flatnonzero(np.diff(index, prepend=np.nan) != 0)  # a run of the same index is one presentation
        index, onsets, rows = index[starts], onsets[starts], rows[starts]
    blank = ~np.isfinite(index) | (index < 0) | np.isin(index, mapping.blanks)
    n_blank, index = int(blank.sum()), np.where(blank, -1, index)
    if (beyond := index >= len(images)).any() or (index != np.rint(index)).any():
        raise RecordingError(
            f"{counted(int(beyond.sum()), 'presentation')} of an image that does not exist",
            got=f"index {index.max():.0f}",
            expected=f"0 to {len(images) - 1}: there are {counted(len(images), 'image')}",
            hint="If it stands for no image, list it under blanks in the mapping.",
        )
    kept = np.flatnonzero(~blank)
    kept = kept[np.argsort(onsets[kept], kind="stable")]
    used, shown = np.unique(index[kept].astype(np.int64), return_inverse=True)
    stack = _stacked([images[i] for i in used], mapping)
    notes = [f"{counted(n_blank, 'blank')} left out"] if n_blank else []
    if unused := len(images) - len(used):
        notes.append(f"{counted(unused, 'image')} never shown")
    # Images keep their index in the file as their id.
    return Presentations(stack, shown, onsets[kept], rows[kept], tuple(notes))


def _images(template: Any) -> list[np.ndarray]:
    """(C, H, W) or (H, W) arrays, in the order of their indices."""
    if hasattr(template, "images"):
        ordered = getattr(template, "order_of_images", None)
        found = list(ordered.data[:]) if ordered is not None else _by_number(template)
        return [_gray(np.asarray(one.data[:]), one.name) for one in found]
    if getattr(template, "external_file", None) is not None and len(template.external_file):
        raise RecordingError(
            f"the images of {template.name} are in other files",
            got=", ".join(map(str, list(template.external_file[:])[:3])),
            expected="images in the NWB file itself",
            hint="Use `python -m training convert arrays` with a folder of the images.",
        )
    data = np.asarray(template.data[:])
    return [_gray(frame, template.name) for frame in data]


def _by_number(container: Any) -> list[Any]:
    """The images of a container without an order, by the number at the end of their names."""
    ends = {name: re.search(r"(\d+)\D*$", name) for name in container.images}
    numbers = {name: int(end[1]) for name, end in ends.items() if end}
    if len(set(numbers.values())) < len(ends):
        raise RecordingError(
            f"images {container.name} have no order",
            got=f"no order_of_images, and names such as {listed(sorted(ends)[:3])}",
            expected="order_of_images, or a number at the end of every name",
        )
    return [container.images[name] for name in sorted(ends, key=lambda name: numbers[name])]


def _gray(image: np.ndarray, name: str) -> np.ndarray:
    """(C, H, W) from (H, W) or (H, W, C); three equal channels become one."""
    if image.ndim == 2:
        return image[None]
    if image.ndim != 3:
        raise RecordingError(f"{name} is not an image", got=image.shape, expected="(height, width) or with channels")
    image = np.moveaxis(image, -1, 0)
    if len(image) == 3:
        if not (image == image[:1]).all():
            raise RecordingError(
                f"{name} is in colour",
                got="three channels that differ",
                expected="grey images, or two channels as the mouse's projector has them",
            )
        return image[:1]
    return image


def _distinct(frames: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """The distinct images among frames, in order of their first appearance, and each frame's index among them."""
    known: dict[bytes, int] = {}
    images: list[np.ndarray] = []
    index: list[int] = []
    for frame in frames:
        digest = hashlib.sha256(np.ascontiguousarray(frame).tobytes() + repr(frame.shape).encode()).digest()
        if digest not in known:
            known[digest] = len(images)
            images.append(frame)
        index.append(known[digest])
    return images, np.array(index, dtype=np.float64)


def _stacked(images: list[np.ndarray], mapping: Mapping) -> np.ndarray:
    if mapping.image_size:
        images = [resized(image, (mapping.image_size[0], mapping.image_size[1])) for image in images]
    shapes = sorted({image.shape for image in images})
    if len(shapes) != 1:
        raise RecordingError(
            "images differ in shape" if shapes else "no image was shown",
            got=", ".join(map(str, shapes[:3])) or None,
            hint="Add --image-size HEIGHT WIDTH, which resizes all of them." if shapes else None,
        )
    return np.stack(images)
