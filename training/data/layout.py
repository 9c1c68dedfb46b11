"""The Sensorium 2022 / Franke 2022 layout on disk, and the functions that read and check its files.

static21067-10-18-GrayImageNet-<hash>/        or a .zip of it, which is read without unpacking
    data/{images,responses,behavior,pupil_center}/<trial>.npy
    meta/neurons/{unit_ids,cell_motor_coordinates}.npy
    meta/trials/{tiers,trial_idx,frame_image_id}.npy
    meta/statistics/{images,responses,behavior,pupil_center}/all/{mean,std,min,max,median}.npy
    meta/simulated.json                       only if `training.simulation.simulate` wrote the recording
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from training.errors import RecordingError

__all__ = [
    "BEHAVIOR_NAMES",
    "IMAGE_ID_FILES",
    "INPUTS",
    "MOUSE_IDS",
    "PUPIL_CENTER_NAMES",
    "SIMULATED",
    "STATISTICS",
    "TIERS",
    "Source",
    "channel_names",
    "data_key_of",
    "finite",
    "flat",
    "paper_mouse_id",
]

INPUTS = ("images", "responses", "behavior", "pupil_center")
TIERS = ("train", "validation", "test", "final_test")
STATISTICS = ("mean", "std", "min", "max", "median")
BEHAVIOR_NAMES = ("pupil_dilation", "pupil_dilation_derivative", "running_speed")
PUPIL_CENTER_NAMES = ("pupil_center_x", "pupil_center_y")
IMAGE_ID_FILES = ("frame_image_id", "colorframeprojector_image_id")  # grey (Sensorium), colour (Franke)
SIMULATED = "meta/simulated.json"

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


def channel_names(n_channels: int) -> tuple[str, ...]:
    """Names of a recording's image channels.

    Dataset F has a UV and a green channel. Public code contradicts itself on their order, so they stay unnamed.
    """
    return ("gray",) if n_channels == 1 else tuple(f"channel_{i}" for i in range(n_channels))


class Source:
    """The files of one recording, in a folder or a zip, by their path in it.

    Args:
        path: the folder that contains `data/` and `meta/`, or a .zip of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise RecordingError(f"recording {str(path)!r} does not exist", expected="a folder or a .zip file")
        self._zip: zipfile.ZipFile | None = None
        self._prefix = ""
        if path.is_dir():
            self._stamps = dict(_walk(path))
        else:
            try:
                self._zip = zipfile.ZipFile(path)
            except (zipfile.BadZipFile, OSError) as error:
                raise RecordingError(
                    f"recording {str(path)!r} is not a readable zip file: {error}", hint="Download it again."
                ) from error
            self._stamps = dict(self._zip_stamps(self._zip))
        for folder in ("data/images", "data/responses", "meta/neurons", "meta/trials", "meta/statistics"):
            if not any(name.startswith(f"{folder}/") for name in self._stamps):
                raise RecordingError(
                    f"recording {path.name!r} has no {folder}/*.npy",
                    expected="data/ and meta/ of the Sensorium 2022 layout",
                    hint="Give the folder that contains data/ and meta/.",
                )

    @property
    def name(self) -> str:
        return self.path.stem if self._zip else self.path.name

    def __contains__(self, name: str) -> bool:
        return name in self._stamps

    def names(self) -> list[str]:
        return sorted(self._stamps)

    def numbered(self, folder: str) -> set[int]:
        """The trial numbers that have a file in this folder."""
        stems = (PurePosixPath(name).stem for name in self._stamps if name.startswith(f"{folder}/"))
        return {int(stem) for stem in stems if stem.isdecimal()}

    def fingerprint(self) -> str:
        """SHA-256 of the names, sizes and modification times of all files: cheap, and changes with any file."""
        lines = "\n".join(f"{name} {self._stamps[name]}" for name in self.names())
        return hashlib.sha256(lines.encode()).hexdigest()

    def read(self, name: str) -> bytes:
        if name not in self._stamps:
            raise RecordingError(
                f"recording {self.path.name!r} has no {name}", hint="The recording is incomplete: copy it again."
            )
        try:
            if self._zip is not None:
                return self._zip.read(self._prefix + name)
            return (self.path / name).read_bytes()
        except (OSError, zipfile.BadZipFile, EOFError, ValueError) as error:
            raise RecordingError(f"recording {self.path.name!r}: {name} cannot be read: {error}") from error

    def array(self, name: str) -> np.ndarray:
        return self.parse(name, self.read(name))

    def parse(self, name: str, content: bytes) -> np.ndarray:
        """An array from the bytes of a .npy file. Object arrays are refused: unpickling them could execute code."""
        try:
            array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError, OSError, SyntaxError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RecordingError(
                f"recording {self.path.name!r}: {name} is not a complete .npy array ({reason})",
                got=f"{len(content)} bytes",
                hint="Copy the file again.",
            ) from error
        return np.asarray(array)

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()

    def _zip_stamps(self, archive: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
        files = [info for info in archive.infolist() if not info.is_dir() and "__MACOSX/" not in info.filename]
        marker = "meta/trials/tiers.npy"
        roots = [info.filename.removesuffix(marker) for info in files if info.filename.endswith(marker)]
        self._prefix = min(roots, key=len, default="")
        for info in files:
            if info.filename.startswith(self._prefix) and _belongs(name := info.filename[len(self._prefix) :]):
                yield name, f"{info.file_size} {info.CRC:08x}"


def _belongs(name: str) -> bool:
    return (name.startswith(("data/", "meta/")) and name.endswith(".npy")) or name == SIMULATED


def _walk(root: Path) -> Iterator[tuple[str, str]]:
    for top in ("data", "meta"):
        for folder, _, files in os.walk(root / top):
            inside = Path(folder).relative_to(root).as_posix()
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name in files and _belongs(name := f"{inside}/{entry.name}"):
                        stat = entry.stat()
                        yield name, f"{stat.st_size} {stat.st_mtime_ns}"


def flat(array: np.ndarray, length: int, *, where: str) -> np.ndarray:
    """(length,) float32 from (length,) or (1, length): the data set's README and files disagree on the shape."""
    if array.dtype.kind not in "fiub":
        raise RecordingError(f"{where} is not numeric", got=f"dtype {array.dtype}", expected="float32")
    if array.shape not in ((length,), (1, length)):
        raise RecordingError(f"{where} has a wrong shape", got=array.shape, expected=f"({length},) or (1, {length})")
    return array.reshape(length).astype(np.float32)


def finite(array: np.ndarray, *, where: str) -> np.ndarray:
    if not np.isfinite(array).all():
        raise RecordingError(
            f"{where} contains NaN or infinity",
            got=f"{int((~np.isfinite(array)).sum())} of {array.size} values",
            hint="Remove the trial from the recording, or fill in the value.",
        )
    return array
