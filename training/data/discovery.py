"""Finds recordings: in folders, in folders of folders, and in zip files of one or several.

Hidden files, resource forks, caches and texts are passed over. A zip beside its unpacked folder is the same recording.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from training.data.cache import is_packed
from training.data.layout import checked_mouse_id
from training.data.source import is_recording, open_zip, recordings_in, zip_members
from training.errors import RecordingError
from training.file_kinds import broken_link
from training.tables import counted

__all__ = ["Found", "find_recordings"]

EXPECTED = "folders or zips in the Sensorium layout, such as static21067-10-18-*"
_TEXTS = frozenset({".md", ".txt", ".rst", ".pdf"})


@dataclass(frozen=True)
class Found:
    """A recording, not yet opened.

    Attributes:
        path: its folder, or the zip that holds it.
        inside: its folder in the zip, if the zip holds several.
        mouse_id: the name that was given to it (NAME=PATH).
        names: of the recording's folder and, for a zip, of the zip: by these it is known beside an unpacked folder.
    """

    path: Path
    inside: str = ""
    mouse_id: str | None = None
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.path}/{self.inside}" if self.inside else str(self.path)


def find_recordings(paths: Sequence[Path]) -> tuple[list[Found], list[str]]:
    """The recordings at some paths, and sentences on what was passed over.

    Args:
        paths: recordings, or folders of them; each may be NAME=PATH, which names the mouse of one recording.

    Raises:
        RecordingError: a path holds no recordings, or one that cannot be read.
    """
    notes: list[str] = []
    found: dict[tuple[str, str], Found] = {}
    for given in paths:
        mouse_id, path = _named(given)
        parts = _at(path, notes)
        if mouse_id is not None and len(parts) != 1:
            raise RecordingError(
                f"--recordings {given} names {counted(len(parts), 'recording')}",
                got=", ".join(map(str, parts)) or None,
                expected="one recording for each name",
            )
        for part in parts:
            key = (os.path.realpath(part.path), part.inside)
            other = found.setdefault(key, _with_name(part, mouse_id))
            if mouse_id is not None and other.mouse_id != mouse_id:
                raise RecordingError(
                    f"{part} is given twice, and named twice",
                    got=f"{mouse_id!r} and {other.mouse_id!r}" if other.mouse_id else f"{mouse_id!r} and no name",
                    expected="one name for each recording",
                )
            if other.path.absolute() != part.path.absolute():
                notes.append(f"{part} is the same recording as {other}")
    if paths and not found:
        raise RecordingError("no recordings", got=", ".join(map(str, paths)), expected=EXPECTED)
    return _without_unpacked(found.values(), notes), notes


def _with_name(found: Found, mouse_id: str | None) -> Found:
    return Found(found.path, found.inside, mouse_id, found.names)


def _named(given: Path) -> tuple[str | None, Path]:
    """NAME and PATH of NAME=PATH; a path that exists, or whose "=" comes after a "/", is a path."""
    name, equals, path = str(given).partition("=")
    if not equals or "/" in name or os.sep in name or os.path.lexists(given):
        return None, given
    return checked_mouse_id(name), Path(path).expanduser()


def _at(path: Path, notes: list[str]) -> list[Found]:
    """The recordings at a path that was given."""
    if is_packed(path) or _is_passed_over(path):
        return []
    if is_recording(path):
        return [Found(path, names=(path.name,))]
    if not path.is_dir():
        return _in_zip(path) or [Found(path)]  # opening it says what is wrong
    found = _in_folder(path, notes, deeper=True)
    if not found:
        raise RecordingError(f"{path} contains no recordings", expected=EXPECTED)
    return found


def _in_folder(folder: Path, notes: list[str], *, deeper: bool) -> list[Found]:
    found: list[Found] = []
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise RecordingError(f"{folder} cannot be read: {error.strerror}") from error
    for child in children:
        if child.name.startswith(".") or _is_passed_over(child) or is_packed(child):
            continue
        if is_recording(child):
            found.append(Found(child, names=(child.name,)))
        elif child.is_dir():
            found += _in_folder(child, notes, deeper=False) if deeper else []
        elif child.suffix.lower() == ".zip":
            inside = _in_zip(child)
            found += inside
            if not inside:
                notes.append(f"{child} holds no recording: passed over")
        elif (link := broken_link(child)) is not None:
            notes.append(f"{child} is {link.name}: passed over")
    return found


def _in_zip(path: Path) -> list[Found]:
    with open_zip(path) as archive:
        roots = recordings_in(zip_members(archive))
    folders = [root.strip("/") for root in roots]
    return [
        Found(path, folder if len(roots) > 1 else "", names=(path.stem, PurePosixPath(folder).name))
        for folder in folders
    ]


def _without_unpacked(found: Iterable[Found], notes: list[str]) -> list[Found]:
    """Leaves out recordings in a zip whose unpacked folder was found beside the zip, or in a folder named like it."""
    found = list(found)
    folders = {
        (os.path.realpath(one.path.parent), name): one for one in found if one.path.is_dir() for name in one.names
    }
    kept = []
    for one in found:
        beside = os.path.realpath(one.path.parent)
        names = one.names[1:] if one.inside else one.names
        places = [(place, name) for place in (beside, os.path.join(beside, one.path.stem)) for name in names]
        unpacked = next((folders[place] for place in places if place in folders), None)
        if one.path.is_dir() or unpacked is None:
            kept.append(one)
        else:
            notes.append(f"{one} passed over: its unpacked folder {unpacked.path} is read")
    return kept


def _is_passed_over(path: Path) -> bool:
    """Whether a path, also one that a shell's `*` gave, is nothing that anybody means as a recording."""
    if path.name in ("__MACOSX", ".DS_Store") or path.name.startswith("._"):
        return True
    return path.is_file() and (path.suffix.lower() in _TEXTS or path.name in ("LICENSE", "LICENCE", "README"))
