"""The files of a recording, in a folder or a zip, by their path in it; and their arrays."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from training.data.layout import BEHAVIOR, INPUTS, SIMULATED, data_key_of
from training.data.object_arrays import read_words
from training.errors import RecordingError
from training.file_kinds import HEAD, broken_link, head_of, kind_of

__all__ = ["Source", "is_recording", "open_zip", "recordings_in", "zip_members"]

MAX_UNPACKED = 2**30  # bytes of a zip, or else MAX_RATIO times its size
MAX_RATIO = 100
MAX_FILE = 2**30  # bytes of an array

_PARTS = (*(f"data/{name}" for name in INPUTS), "meta/neurons", "meta/trials", "meta/statistics")
_ARRAYS = (*(f"data/{name}/" for name in INPUTS), "meta/")
_INSIDE = re.compile(rf"((?:.*?/)?)(?:{'|'.join(_PARTS)})/")


class Source:
    """The files of one recording, in a folder or a zip, by their path in it.

    Hidden files and macOS's resource forks (`._0.npy`, `__MACOSX`) are not part of it. Links are followed.

    Args:
        path: the folder that contains `data/` and `meta/`, or a .zip of it.
        inside: the folder in the zip, if the zip holds several recordings.
    """

    def __init__(self, path: Path, inside: str = "") -> None:
        self.path = path
        self.inside = inside
        self._zip: zipfile.ZipFile | None = None
        self._root = ""
        self._names: dict[str, Path | zipfile.ZipInfo] = {}
        if path.is_dir():
            self._names = dict(_walk(path))
        else:
            self._zip = open_zip(path)
            self._names = self._zip_names(self._zip)
        self._stamps = {name: _stamp(place) for name, place in self._names.items()}
        for folder in ("data/images", "data/responses", "meta/neurons", "meta/trials", "meta/statistics"):
            if not any(name.startswith(f"{folder}/") for name in self._names):
                raise RecordingError(
                    f"recording {self.label!r} has no {folder}/*.npy",
                    expected="data/ and meta/ of the Sensorium 2022 layout",
                    hint="Give the folder that contains data/ and meta/.",
                )
        self._trials = {f"data/{name}": self._numbered(f"data/{name}") for name in INPUTS}

    @property
    def name(self) -> str:
        """The recording's name: its folder's. A zip's own name, if it holds one recording, unless only the folder in
        it is named as in the Sensorium data set."""
        if self._zip is None:
            return self.path.resolve().name if self.path.name in ("", ".", "..") else self.path.name
        folder = PurePosixPath(self._root).name
        if folder and (
            self.inside or (data_key_of(folder) != folder and data_key_of(self.path.stem) == self.path.stem)
        ):
            return folder
        return self.path.stem

    @property
    def label(self) -> str:
        """What errors call it."""
        return f"{self.path.name}/{self.inside}" if self.inside else self.path.name or str(self.path)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def names(self) -> list[str]:
        return sorted(self._names)

    def numbered(self, folder: str) -> set[int]:
        """The trial numbers that have a file in this folder."""
        return set(self._trials[folder])

    def trial(self, folder: str, number: int) -> str:
        """The name of a trial's file: `7.npy`, or `0007.npy`."""
        return self._trials[folder].get(number, f"{folder}/{number}.npy")

    def _numbered(self, folder: str) -> dict[int, str]:
        found: dict[int, str] = {}
        for name in self.names():
            parent, _, file = name.rpartition("/")
            stem = file.removesuffix(".npy")
            if parent != folder or not (stem.isascii() and stem.isdecimal()):
                continue
            if (other := found.setdefault(int(stem), name)) != name:
                raise RecordingError(
                    f"recording {self.label!r} has trial {int(stem)} twice",
                    got=f"{other} and {name}",
                    expected="one file per trial",
                )
        return found

    def fingerprint(self) -> str:
        """SHA-256 of the names, sizes and modification times of all files: cheap, and changes with any file."""
        lines = "\n".join(f"{name} {self._stamps[name]}" for name in self.names())
        return hashlib.sha256(lines.encode()).hexdigest()

    def read(self, name: str) -> bytes:
        place = self._names.get(name)
        if place is None:
            raise RecordingError(
                f"recording {self.label!r} has no {name}", hint="The recording is incomplete: copy it again."
            )
        try:
            if isinstance(place, Path) and not place.is_file():  # a pipe would be waited for without end
                link = broken_link(place)
                problem = link.name if link is not None else "not a file"
                raise RecordingError(
                    f"recording {self.label!r}: {name} is {problem}", hint=link.hint if link is not None else None
                )
            size = place.stat().st_size if isinstance(place, Path) else place.file_size
            if size > MAX_FILE:
                raise RecordingError(
                    f"recording {self.label!r}: {name} is too large for an array of one trial",
                    got=f"{size:,} bytes",
                    expected=f"at most {MAX_FILE:,}",
                )
            if isinstance(place, zipfile.ZipInfo):
                assert self._zip is not None
                return self._zip.read(place)
            return place.read_bytes()
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, MemoryError) as error:
            raise RecordingError(f"recording {self.label!r}: {name} cannot be read: {error}") from error

    def array(self, name: str) -> np.ndarray:
        return self.parse(name, self.read(name))

    def parse(self, name: str, content: bytes) -> np.ndarray:
        """An array from the bytes of a .npy file. Of objects only strings are read, and only in `meta/`."""
        try:
            return np.asarray(_parse(content, words=name.startswith("meta/")))
        except Exception as error:  # numpy evaluates the header as Python: a broken one may raise anything
            kind = kind_of(content[:HEAD])
            if b"numpy.ma" in content[:4096] and kind is not None:
                raise RecordingError(
                    f"recording {self.label!r}: {name} is a pickle of a masked array (numpy.ma)",
                    hint="Its mask would be lost: save it with numpy.save(path, array.filled(numpy.nan)).",
                ) from None
            if kind is not None and kind.name != "a .npy array":
                raise RecordingError(
                    f"recording {self.label!r}: {name} is {kind.name}", expected="a .npy array", hint=kind.hint
                ) from None
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RecordingError(
                f"recording {self.label!r}: {name} is not a complete .npy array ({reason})",
                got=f"{len(content)} bytes",
                hint="Copy the file again.",
            ) from error

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()

    def _zip_names(self, archive: zipfile.ZipFile) -> dict[str, Path | zipfile.ZipInfo]:
        members = zip_members(archive)
        roots = recordings_in(members)
        if self.inside:
            self._root = next((root for root in roots if root.strip("/") == self.inside), f"{self.inside}/")
        elif len(roots) > 1:
            raise RecordingError(
                f"{self.path.name} holds several recordings", got=", ".join(roots), expected="one", hint="Unpack it."
            )
        else:
            self._root = roots[0] if roots else ""
        inside = {name.removeprefix(self._root): one for name, one in members.items() if name.startswith(self._root)}
        return {name: one for name, one in inside.items() if _belongs(name)}


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip file of recordings.

    Raises:
        RecordingError: it is missing, is another kind of file, or unpacks to far more than its size.
    """
    if (link := broken_link(path)) is not None:
        raise RecordingError(f"recording {str(path)!r} is {link.name}", hint=link.hint)
    if not path.exists():
        raise RecordingError(f"recording {str(path)!r} does not exist", expected="a folder or a .zip file")
    if not path.is_file():
        raise RecordingError(f"recording {str(path)!r} is neither a folder nor a file", expected="a folder or a .zip")
    try:
        kind = kind_of(head_of(path))
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        if kind is not None and kind.name != "a zip file":
            raise RecordingError(
                f"recording {str(path)!r} is {kind.name}", expected="a folder or a .zip file", hint=kind.hint
            ) from None
        raise RecordingError(
            f"recording {str(path)!r} is not a readable zip file: {error}", hint="Download it again."
        ) from error
    size, unpacked = path.stat().st_size, sum(info.file_size for info in archive.infolist())
    if unpacked > max(MAX_UNPACKED, MAX_RATIO * size):
        archive.close()
        raise RecordingError(
            f"recording {str(path)!r} unpacks to {unpacked / size:,.0f} times its size",
            got=f"{unpacked:,} bytes from {size:,}",
            expected=f"at most {MAX_RATIO} times",
            hint="If the recording really is like this, unpack it and give the folder.",
        )
    return archive


def zip_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The files of a zip by path, with `/` also where Windows wrote a backslash; without hidden files.

    Raises:
        RecordingError: two files have the same path.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.replace("\\", "/").removeprefix("./")
        if name.endswith("/") or any(_is_hidden(part) for part in name.split("/")):
            continue
        if name in members:
            raise RecordingError(f"{archive.filename} has {name} twice", expected="one file of each name")
        members[name] = info
    return members


def recordings_in(names: Iterable[str]) -> list[str]:
    """The folders of a zip that are recordings, each with its "/" at the end; "" if the zip itself is one."""
    roots = sorted({found[1] for name in names if (found := _INSIDE.match(name))})
    return [root for root in roots if not any(root != other and root.startswith(other) for other in roots)]


def is_recording(folder: Path) -> bool:
    """Whether a folder is a recording, perhaps an incomplete one, and not a folder of recordings."""
    return any((folder / part).is_dir() for part in _PARTS)


def _stamp(place: Path | zipfile.ZipInfo) -> str:
    if isinstance(place, zipfile.ZipInfo):
        return f"{place.file_size} {place.CRC:08x}"
    try:
        stat = place.stat()
    except OSError:
        return "unreadable"  # reading it says why
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _belongs(name: str) -> bool:
    return (name.startswith(_ARRAYS) and name.endswith(".npy")) or name in (BEHAVIOR, SIMULATED)


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    """The files of a recording's folder. Links are followed, but none back into a folder that leads to it."""

    def walk(folder: Path, inside: str, above: frozenset[str]) -> Iterator[tuple[str, Path]]:
        real = os.path.realpath(folder)
        if real in above:
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                name = f"{inside}/{entry.name}"
                if _is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    yield from walk(Path(entry.path), name, above | {real})
                elif _belongs(name):
                    yield name, Path(entry.path)

    for top in ("data", "meta"):
        if (root / top).is_dir():
            yield from walk(root / top, top, frozenset())


def _parse(content: bytes, *, words: bool) -> np.ndarray:
    """The array of a .npy file; its header is checked before memory is allocated for what it claims."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise ValueError(f"version {version} of the format")
    shape, _, dtype = read_header[version](stream)
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"its header has the shape {shape}")
    count = math.prod(shape)
    if dtype.hasobject:
        if not words or dtype != np.dtype(object):
            raise ValueError("it holds Python objects, which are not read: loading them could execute code")
        if count > len(content):
            raise ValueError(f"its header claims {count:,} values")
        return read_words(content[stream.tell() :], shape)
    if count * max(1, dtype.itemsize) > len(content) - stream.tell():
        raise ValueError(f"its header claims {count:,} values of {dtype}, more than the file holds")
    stream.seek(0)
    return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
