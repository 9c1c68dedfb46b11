"""The packed cache of a recording: all trials in four memory-mapped arrays, written once.

A recording has 4 files per trial, so an epoch of 4,500 trials would open 18,000 files. Packed, a batch is four slices.

    <recording>.packed/{images,responses,behavior,pupil_center}.npy, pack.json

Images are stored as bytes if all of them are bytes (a quarter of the memory). Everything else is float32.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from training.data.layout import EXCLUDED, SENSORIUM_BEHAVIOR, BehaviorChannel, flat, float32
from training.data.metadata import behavior_hint
from training.data.source import Source
from training.errors import RecordingError
from training.tables import counted

__all__ = ["PACK_VERSION", "PackedTrials", "is_packed", "open_packed"]

PACK_VERSION = 2
READABLE = (1, 2)  # version 1 is of recordings in which all trials are finite
PACK = "pack.json"


@dataclass(frozen=True, eq=False)
class PackedTrials:
    """All trials of a recording, in the order of their file numbers, in the recording's own units.

    Attributes:
        images: (T, C, H, W) uint8 or float32, memory-mapped.
        responses: (T, N) float32, memory-mapped.
        behavior: (T, K) float32, or None if the recording has none.
        pupil_center: (T, 2) float32, or None.
        data_hash: SHA-256 over the recording's files (names and contents).
        not_finite: trial -> the inputs in which it has NaN or infinity, such as ("pupil_center",).
    """

    images: np.ndarray
    responses: np.ndarray
    behavior: np.ndarray | None
    pupil_center: np.ndarray | None
    data_hash: str
    not_finite: dict[int, tuple[str, ...]]


def is_packed(path: Path) -> bool:
    """Whether a path is a cache; a shell's `*` finds caches together with recordings."""
    return path.suffix == ".packed" and (path / PACK).is_file()


def open_packed(
    source: Source,
    *,
    folder: Path,
    excluded: np.ndarray,
    n_neurons: int,
    behavior: tuple[BehaviorChannel, ...] = SENSORIUM_BEHAVIOR,
) -> PackedTrials:
    """Opens the pack in `folder`. Writes it first if there is none, or if the recording has changed.

    Args:
        excluded: (T,) bool, the trials that nothing uses: where their files are missing, their rows are zeros.

    Raises:
        RecordingError: a trial's file is missing, truncated or has another shape; or the disk is full.
    """
    fingerprint = source.fingerprint()
    packed = _open(folder, fingerprint)
    if packed is not None:
        return packed
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        temporary = folder.parent / f".{folder.name}.{socket.gethostname()}-{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            _pack(source, temporary, fingerprint=fingerprint, excluded=excluded, n_neurons=n_neurons, behavior=behavior)
            _put_in_place(temporary, folder, fingerprint)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise RecordingError(
            f"the packed cache {str(folder)!r} cannot be written: {error.strerror or error}",
            hint=("The disk is full: free some space" if full else "Make the folder writable")
            + ", or set V1T_CACHE to another folder.",
        ) from error
    packed = _open(folder, fingerprint)
    if packed is None:
        raise RecordingError(f"the packed cache {str(folder)!r} changed while it was opened", hint="Try again.")
    return packed


def _open(folder: Path, fingerprint: str) -> PackedTrials | None:
    """The pack; None if it does not exist, is damaged, or belongs to another version of the recording."""
    try:
        about: dict[str, Any] = json.loads((folder / PACK).read_text())
        if about["version"] not in READABLE or about["fingerprint"] != fingerprint:
            return None
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in about["shapes"]}
        if any(list(arrays[name].shape) != shape for name, shape in about["shapes"].items()):
            return None
        not_finite = {int(trial): tuple(names) for trial, names in about.get("not_finite", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return PackedTrials(
        images=arrays["images"],
        responses=arrays["responses"],
        behavior=arrays.get("behavior"),
        pupil_center=arrays.get("pupil_center"),
        data_hash=about["data_hash"],
        not_finite=not_finite,
    )


def _pack(
    source: Source,
    folder: Path,
    *,
    fingerprint: str,
    excluded: np.ndarray,
    n_neurons: int,
    behavior: tuple[BehaviorChannel, ...],
) -> None:
    n_trials = len(excluded)
    lengths = {"responses": n_neurons, "behavior": len(behavior), "pupil_center": 2}
    hints = {"behavior": behavior_hint(source, behavior)}
    present = [name for name in ("images", *lengths) if source.numbered(f"data/{name}")]
    for name in present:
        _check_numbers(source, name, excluded)
    hashes: dict[str, str] = {}
    shapes: dict[str, list[int]] = {}
    not_finite: dict[int, list[str]] = {}
    bar = tqdm(total=n_trials * len(present), desc=f"packing {source.name}", unit="file", disable=None, leave=False)

    def read(folder: str, trial: int) -> tuple[str, np.ndarray | None]:
        where = source.trial(folder, trial)
        if excluded[trial] and where not in source:
            return where, None
        content = source.read(where)
        if where not in hashes:
            hashes[where] = hashlib.sha256(content).hexdigest()
            bar.update()
        return where, source.parse(where, content)

    def note(name: str, trial: int, row: np.ndarray) -> np.ndarray:
        if not np.isfinite(row).all():
            not_finite.setdefault(trial, []).append(name)
        return row

    with bar:
        try:
            shapes["images"] = _write_images(folder, n_trials, np.uint8, read, note)
        except _NotUint8Error:
            shapes["images"] = _write_images(folder, n_trials, np.float32, read, note)
        for name in present[1:]:
            shapes[name] = [n_trials, lengths[name]]
            with _ArrayFile(folder / f"{name}.npy", shapes[name], np.float32) as file:
                for trial in range(n_trials):
                    where, row = read(f"data/{name}", trial)
                    if row is None:
                        row = np.zeros(lengths[name], np.float32)
                    file.append(note(name, trial, flat(row, lengths[name], where=where, hint=hints.get(name))))
    for name in source.names():
        if name not in hashes:
            hashes[name] = hashlib.sha256(source.read(name)).hexdigest()
    lines = "\n".join(f"{name} {hashes[name]}" for name in sorted(hashes))
    about = {
        "version": PACK_VERSION,
        "fingerprint": fingerprint,
        "data_hash": hashlib.sha256(lines.encode()).hexdigest(),
        "shapes": shapes,
        "not_finite": not_finite,
    }
    (folder / PACK).write_text(json.dumps(about, indent=2))


def _check_numbers(source: Source, name: str, excluded: np.ndarray) -> None:
    n_trials = len(excluded)
    numbers = source.numbered(f"data/{name}")
    missing = sorted(set(np.flatnonzero(~excluded).tolist()) - numbers)
    if missing:
        listed = ", ".join(f"{trial}.npy" for trial in missing[:5])
        raise RecordingError(
            f"recording {source.label!r}: data/{name} lacks {listed}{', ...' if len(missing) > 5 else ''}",
            got=f"{counted(len(numbers), 'file')}",
            expected=f"0.npy to {n_trials - 1}.npy, one per entry of meta/trials/tiers.npy",
            hint=f"To leave trials out, write {EXCLUDED!r} for them in meta/trials/tiers.npy.",
        )
    if extra := sorted(numbers - set(range(n_trials))):
        raise RecordingError(
            f"recording {source.label!r}: {source.trial(f'data/{name}', extra[0])} has no entry in "
            "meta/trials/tiers.npy",
            got=f"{len(numbers)} files",
            expected=f"{n_trials} trials",
        )


class _NotUint8Error(Exception):
    """An image is not uint8."""


def _write_images(
    folder: Path,
    n_trials: int,
    dtype: type[np.generic],
    read: Callable[[str, int], tuple[str, np.ndarray | None]],
    note: Callable[[str, int, np.ndarray], np.ndarray],
) -> list[int]:
    shape: tuple[int, ...] = ()
    file: _ArrayFile | None = None
    skipped = 0  # missing images of excluded trials, before the first shape is known
    try:
        for trial in range(n_trials):
            where, image = read("data/images", trial)
            if image is None:
                if file is None:
                    skipped += 1
                else:
                    file.append(np.zeros(shape, dtype))
                continue
            if image.ndim != 3 or image.size == 0 or (shape and image.shape != shape):
                raise RecordingError(f"{where} has a wrong shape", got=image.shape, expected=shape or "(C, H, W)")
            if image.dtype.kind not in "fiub":
                raise RecordingError(
                    f"{where} does not contain numbers", got=f"dtype {image.dtype}", expected="float32"
                )
            if dtype is np.uint8 and image.dtype != np.uint8:
                raise _NotUint8Error
            if file is None:
                shape = image.shape
                file = _ArrayFile(folder / "images.npy", [n_trials, *shape], dtype)
                for _ in range(skipped):
                    file.append(np.zeros(shape, dtype))
            file.append(image if dtype is np.uint8 else note("images", trial, float32(image)))
    finally:
        if file is not None:
            file.close()
    return [n_trials, *shape]


class _ArrayFile:
    """A .npy file that is written row by row. A memory map would end in a bus error on a full disk, not in ENOSPC."""

    def __init__(self, path: Path, shape: list[int], dtype: type[np.generic]) -> None:
        self._file = path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, row: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(row).data)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> _ArrayFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _put_in_place(temporary: Path, folder: Path, fingerprint: str) -> None:
    """Renames the finished pack, unless another process has written the same one in the meantime."""
    if folder.exists():
        if _open(folder, fingerprint) is not None:
            return
        stale = temporary.with_suffix(".stale")
        folder.rename(stale)
        shutil.rmtree(stale, ignore_errors=True)
    try:
        temporary.rename(folder)
    except OSError:
        if _open(folder, fingerprint) is None:
            raise


def _remove_leftovers(folder: Path) -> None:
    """Removes temporary folders of killed processes of this machine."""
    prefix = f".{folder.name}.{socket.gethostname()}-"
    for path in folder.parent.glob(f"{prefix}*"):
        pid = path.name.removeprefix(prefix).split(".")[0]
        if pid.isdecimal() and not _is_running(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    if os.name != "posix":  # on Windows os.kill would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
