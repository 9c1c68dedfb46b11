"""The bundles on disk: where they lie, which version of a model each is, and whether anything there has changed."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from pathlib import Path

from server.bundle.manifest import MANIFEST
from server.errors import BundleError
from server.settings import PREFIX

__all__ = ["find_bundles", "state_of", "version_of"]

FIRST = "1"  # the version of a bundle that lies in no folder of versions
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


def find_bundles(places: Iterable[Path]) -> list[Path]:
    """The bundles at these places, each a bundle, a folder of versions (`1`, `2`, ... with a bundle each), or a folder
    of such.

    A folder with graphs but no manifest counts as a bundle, so that it is refused by name and not passed over.

    Raises:
        BundleError: a place is no folder, or no place holds a bundle.
    """
    places = list(places)
    found: dict[Path, Path] = {}  # where a bundle really lies -> where it was found
    for place in places:
        if not place.is_dir():
            raise BundleError(f"{place} is no folder", hint=f"Set {PREFIX}BUNDLES to a bundle, or a folder of bundles.")
        for folder in _versions(place) or _inside(place):
            found.setdefault(folder.resolve(), folder.absolute())
    if not found:
        raise BundleError(
            f"there is no bundle in {', '.join(map(str, places))}",
            hint=f"Export one with `python -m training export`, or set {PREFIX}BUNDLES to where there is one.",
        )
    return list(found.values())


def _inside(place: Path) -> list[Path]:
    folders = [folder for folder in sorted(place.iterdir()) if folder.is_dir() and folder.name[0] not in "._"]
    return [bundle for folder in folders for bundle in _versions(folder) or ([folder] if _has_graphs(folder) else [])]


def _versions(folder: Path) -> list[Path]:
    """The folder, if it is a bundle, or the numbered bundles in it."""
    if (folder / MANIFEST).exists():
        return [folder]
    numbered = [inside for inside in folder.iterdir() if _NUMBER.fullmatch(inside.name) and _has_graphs(inside)]
    return sorted(numbered, key=lambda inside: int(inside.name))


def _has_graphs(folder: Path) -> bool:
    return any(folder.rglob("*.onnx"))


def version_of(bundle: Path) -> str:
    """The number that its folder is named, "1" if it is named otherwise."""
    return bundle.name if _NUMBER.fullmatch(bundle.name) else FIRST


def state_of(places: Iterable[Path]) -> Hashable:
    """Changes when a file of any bundle does; nothing is read but names, sizes and times."""
    try:
        return tuple(
            (str(file), status.st_mtime_ns, status.st_size, status.st_ino)
            for bundle in find_bundles(places)
            for file in sorted(bundle.rglob("*"))
            if (status := file.stat()) and file.is_file()
        )
    except (BundleError, OSError) as error:  # also a file that went while we looked
        return str(error)
