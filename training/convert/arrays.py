"""Arrays of your own to a session: `python -m training convert arrays`. docs/convert.md has the table of names.

A set is a .npz, a .zarr, or a folder of NAME.npy and of tables: trials.csv, responses.csv, neurons.csv.
"""

from __future__ import annotations

import csv
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from training.convert.extras import needed
from training.convert.images import resized
from training.convert.not_finite import NotFinite, finite_part
from training.convert.session import Session
from training.data.recording_files import BEHAVIOR_NAMES, BEHAVIOR_UNITS
from training.errors import RecordingError
from training.tables import counted

__all__ = ["ARRAYS", "read_arrays"]

# name -> what it is; (needed), shape
ARRAYS = {
    "images": "(I, H, W) or (I, C, H, W)",
    "image_ids": "(I,)",
    "trial_image_ids": "(T,)",
    "responses": "(T, N)",
    "neuron_ids": "(N,)",
    "neuron_coordinates": "(N, 2) or (N, 3)",
    "behavior": "(T, K)",
    "behavior_names": "(K,)",
    "behavior_units": "(K,)",
    "pupil_center": "(T, 2)",
    "trial_times": "(T,)",
    "tiers": "(T,)",
}
NEEDED = ("responses", "trial_image_ids")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
TIME, GAZE = "time", ("pupil_center_x", "pupil_center_y")


def read_arrays(
    path: Path, *, images: Path | None, image_size: tuple[int, int] | None, not_finite: NotFinite
) -> tuple[Session, list[str]]:
    """The session of a set of arrays, and notes.

    Args:
        images: a folder of image files, in place of the array `images`; a trial's image id is then a file's name,
            or its place among the sorted names.
        image_size: height and width to which images are resized.

    Raises:
        RecordingError: an array is missing, or does not fit the others; the message names it.
    """
    given = _read(path)
    if unknown := sorted(set(given) - set(ARRAYS)):
        raise RecordingError(f"{path} has an unknown array", got=unknown[0], expected=", ".join(ARRAYS))
    if lacking := [name for name in NEEDED if name not in given]:
        raise RecordingError(f"{path} has no {lacking[0]}", got=", ".join(given) or "no arrays", expected=lacking[0])
    stack, ids = _images(given, path, images, image_size)
    notes = []
    shown = _places(given["trial_image_ids"], ids)
    responses = given["responses"]
    if responses.ndim != 2 or responses.dtype.kind not in "uif":
        raise RecordingError(
            "responses are not responses", got=f"{responses.shape} {responses.dtype}", expected="(T, N) numbers"
        )
    T, N = responses.shape
    for name in ("trial_image_ids", "behavior", "pupil_center", "trial_times", "tiers"):
        if name in given and len(given[name]) != T:
            raise RecordingError(
                f"{name} and responses differ in length", got=len(given[name]), expected=f"{counted(T, 'trial')}"
            )
    trials, neurons, about = finite_part(responses, not_finite)
    notes += [about] if about else []
    times = given.get("trial_times")
    if times is None:
        notes.append("no trial_times: trials are taken to be in the order of time")
    elif times.ndim != 1 or times.dtype.kind not in "uif" or not np.isfinite(times).all():
        raise RecordingError("trial_times are not times", got=f"{times.shape} {times.dtype}", expected="(T,) seconds")
    rank = np.arange(T) if times is None else np.argsort(np.argsort(times, kind="stable"), kind="stable")
    coordinates = given.get("neuron_coordinates")
    if coordinates is None:
        notes.append("no neuron_coordinates: every neuron is put at 0, 0, 0")
    elif coordinates.ndim == 2 and coordinates.shape[1] == 2:
        coordinates = np.column_stack([coordinates, np.zeros(len(coordinates))])
    if coordinates is not None and len(coordinates) != N:
        got = len(coordinates)
        raise RecordingError("neuron_coordinates and responses differ in length", got=got, expected=f"{N} neurons")
    neuron_ids = given.get("neuron_ids", np.arange(1, N + 1))
    if len(neuron_ids) != N:
        raise RecordingError("neuron_ids and responses differ in length", got=len(neuron_ids), expected=f"{N} neurons")
    behavior, pupil_center, tiers = (given.get(name) for name in ("behavior", "pupil_center", "tiers"))
    names, units = _channels(given, behavior)
    session = Session(
        images=stack,
        shown=shown[trials],
        responses=responses[trials][:, neurons],
        neuron_ids=neuron_ids[neurons],
        coordinates=None if coordinates is None else coordinates[neurons],
        behavior=None if behavior is None else behavior[trials],
        behavior_names=names,
        behavior_units=units,
        pupil_center=None if pupil_center is None else pupil_center[trials],
        image_ids=ids[shown[trials]] if ids.dtype.kind in "iu" else None,
        trial_ids=rank[trials],
        tiers=None if tiers is None else tiers[trials].astype(str),
        provenance={"arrays": path.name, "images": images.name if images else None, "shapes": _shapes(given)},
    )
    return session, notes


def _shapes(given: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        name: {"shape": list(values.shape), "sha256": hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()}
        for name, values in given.items()
        if values.dtype.kind in "iuf"
    }


def _channels(given: dict[str, np.ndarray], behavior: np.ndarray | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = tuple(map(str, given["behavior_names"])) if "behavior_names" in given else BEHAVIOR_NAMES
    if behavior is not None and (behavior.ndim != 2 or behavior.shape[1] != len(names)):
        raise RecordingError(
            f"behavior has a wrong shape for {counted(len(names), 'channel')}",
            got=behavior.shape,
            expected=f"(T, {len(names)}): {', '.join(names)}",
            hint="Name the channels in behavior_names." if "behavior_names" not in given else None,
        )
    if "behavior_units" in given:
        units = tuple(map(str, given["behavior_units"]))
    else:
        usual = dict(zip(BEHAVIOR_NAMES, BEHAVIOR_UNITS, strict=True))
        units = tuple(usual.get(name, "a.u.") for name in names)
    if len(units) != len(names):
        raise RecordingError("behavior_units and behavior_names differ in length", got=len(units), expected=len(names))
    return names, units


def _places(asked: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(T,) each trial's image, as an index into the images."""
    if asked.dtype.kind == "f" and np.isfinite(asked).all() and (asked == np.rint(asked)).all():
        asked = asked.astype(np.int64)
    if asked.dtype.kind in "iu" and ids.dtype.kind not in "iu":
        ids = np.arange(len(ids))  # places among the sorted names
    if asked.ndim != 1 or asked.dtype.kind not in "iuSU" or (asked.dtype.kind in "iu") != (ids.dtype.kind in "iu"):
        raise RecordingError(
            "trial_image_ids do not fit the images' ids",
            got=f"{asked.shape} {asked.dtype}",
            expected=f"(T,) ids such as {ids[0]!r}",
        )
    place = {value: i for i, value in enumerate(ids.tolist())}
    wrong = [
        value
        for value in asked.astype(ids.dtype.kind if ids.dtype.kind in "U" else asked.dtype).tolist()
        if value not in place
    ]
    if wrong:
        raise RecordingError(
            f"{counted(len(wrong), 'trial')} with an image that does not exist",
            got=wrong[:3],
            expected=f"one of {counted(len(ids), 'image')}: {ids[0]!r} to {ids[-1]!r}",
        )
    return np.array([place[value] for value in asked.tolist()], dtype=np.int64)


def _images(
    given: dict[str, np.ndarray], path: Path, folder: Path | None, size: tuple[int, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """(I, C, H, W) images and (I,) ids."""
    if folder is None and path.suffix.lower() != ".zarr" and (path / "images").is_dir():
        folder = path / "images"
    if (folder is None) == ("images" not in given):
        got = "both" if folder else "neither"
        raise RecordingError(
            "images are an array or a folder", got=got, expected="the array images, or --images FOLDER"
        )
    if folder is not None:
        stack, names = _pictures(folder)
        ids = np.array(names)
    else:
        stack = given["images"]
        if stack.ndim not in (3, 4) or stack.dtype.kind not in "uif":
            raise RecordingError("images are not images", got=f"{stack.shape} {stack.dtype}", expected=ARRAYS["images"])
        stack = stack[:, None] if stack.ndim == 3 else stack
        if stack.shape[-1] in (1, 3) and stack.shape[1] > 3:
            raise RecordingError("images have their channels last", got=stack.shape, expected=ARRAYS["images"])
        ids = given.get("image_ids", np.arange(len(stack)))
        if ids.shape != (len(stack),) or len(np.unique(ids)) < len(ids):
            raise RecordingError("image_ids are not one id per image", got=ids.shape, expected=f"({len(stack)},)")
    if size is not None:
        stack = np.stack([resized(image, size) for image in stack])
    return stack, ids


def _pictures(folder: Path) -> tuple[np.ndarray, list[str]]:
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURES)
    if not paths:
        raise RecordingError(f"{folder} has no images", expected=", ".join(PICTURES))
    pictures = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                pictures.append(np.asarray(picture.convert("L")))
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise RecordingError(f"{path} cannot be read as an image: {error}") from error
    shapes = sorted({picture.shape for picture in pictures})
    if len(shapes) > 1:
        raise RecordingError(f"images of {folder} differ in size", got=", ".join(map(str, shapes[:3])), expected="one")
    return np.stack(pictures)[:, None], [path.name for path in paths]


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a set by name."""
    readers: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {".npz": _npz, ".zarr": _zarr}
    if not path.exists():
        raise RecordingError(f"{path} does not exist", expected=".npz, .zarr, or a folder of .npy and .csv files")
    if path.suffix.lower() in readers:
        return readers[path.suffix.lower()](path)
    if not path.is_dir():
        raise RecordingError(f"{path} is not a set of arrays", expected=".npz, .zarr, or a folder of .npy and .csv")
    arrays = {file.stem: _npy(file) for file in sorted(path.glob("*.npy"))}
    tables = _tables(path)
    if twice := sorted(set(arrays) & set(tables)):
        raise RecordingError(f"{path} has {twice[0]} twice", got="a .npy file and a table", expected="one of them")
    return arrays | tables


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise RecordingError(f"{path} cannot be read as .npz: {error}") from error


def _npy(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise RecordingError(f"{path} cannot be read as .npy: {error}") from error


def _zarr(path: Path) -> dict[str, np.ndarray]:
    zarr = needed("zarr", extra="zarr")
    try:
        group = zarr.open_group(str(path), mode="r")
        return {name: np.asarray(values[...]) for name, values in group.arrays()}
    except Exception as error:  # zarr and its codecs raise what they like about a damaged store
        raise RecordingError(f"{path} cannot be read as a Zarr group: {error}") from error


def _tables(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of trials.csv, responses.csv and neurons.csv, those that exist."""
    found: dict[str, np.ndarray] = {}
    if (folder / "responses.csv").is_file():
        columns = _csv(folder / "responses.csv")
        found["responses"] = np.stack([_numbers(v, f"responses.csv, {k}") for k, v in columns.items()], axis=1)
        if all(name.isdecimal() for name in columns):
            found["neuron_ids"] = np.array([int(name) for name in columns])
    if (folder / "trials.csv").is_file():
        columns = _csv(folder / "trials.csv")
        if "image_id" not in columns:
            raise RecordingError("trials.csv has no column image_id", got=", ".join(columns))
        ids = columns.pop("image_id")
        found["trial_image_ids"] = np.array([int(v) for v in ids]) if all(v.isdecimal() for v in ids) else np.array(ids)
        if "tier" in columns:
            found["tiers"] = np.array(columns.pop("tier"))
        numbers = {name: _numbers(values, f"trials.csv, {name}") for name, values in columns.items()}
        if TIME in numbers:
            found["trial_times"] = numbers.pop(TIME)
        if all(name in numbers for name in GAZE):
            found["pupil_center"] = np.stack([numbers.pop(name) for name in GAZE], axis=1)
        if numbers:
            names = [*(n for n in BEHAVIOR_NAMES if n in numbers), *(n for n in numbers if n not in BEHAVIOR_NAMES)]
            found["behavior"] = np.stack([numbers[name] for name in names], axis=1)
            found["behavior_names"] = np.array(names)
    if (folder / "neurons.csv").is_file():
        cells = _csv(folder / "neurons.csv")
        own = np.array([int(v) for v in _numbers(cells.get("neuron_id", []), "neurons.csv, neuron_id")])
        axes = [name for name in ("x_um", "y_um", "z_um") if name in cells]
        if len(axes) < 2 or not len(own):
            raise RecordingError("neurons.csv lacks columns", got=", ".join(cells), expected="neuron_id, x_um, y_um")
        positions = np.stack([_numbers(cells[name], f"neurons.csv, {name}") for name in axes], axis=1)
        if "neuron_ids" in found:  # rows may be in another order than the columns of responses.csv
            row = {int(one): i for i, one in enumerate(own)}
            if lacking := [one for one in found["neuron_ids"].tolist() if one not in row]:
                raise RecordingError("neurons.csv lacks a neuron of responses.csv", got=f"no {lacking[0]}")
            positions = positions[[row[one] for one in found["neuron_ids"].tolist()]]
        else:
            found["neuron_ids"] = own
        found["neuron_coordinates"] = positions
    return found


def _csv(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            header, *rows = list(csv.reader(stream)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordingError(f"{path} cannot be read as CSV: {error}") from error
    names = [name.strip() for name in header]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(names):
            raise RecordingError(
                f"{path.name}, line {number} has {counted(len(row), 'value')}", expected=f"{len(names)}, as the header"
            )
    if not rows or len(set(names)) < len(names):
        raise RecordingError(f"{path.name} has no rows, or a column twice", got=", ".join(names) or "nothing")
    return {name: [row[i].strip() for row in rows] for i, name in enumerate(names)}


def _numbers(values: list[str], where: str) -> np.ndarray:
    try:
        return np.array([float(value) if value else np.nan for value in values])
    except ValueError as error:
        raise RecordingError(f"{where} is not numeric: {error}") from error
