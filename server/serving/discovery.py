"""The bundles on disk: their folders, their versions, and whether any file has changed."""

from __future__ import annotations

import functools
import re
from collections.abc import Hashable, Iterable
from pathlib import Path

from server.bundle.manifest import MANIFEST
from server.errors import BundleError
from server.settings import PREFIX

__all__ = ["find_bundles", "state_of", "version_of"]

FIRST = "1"  # the version of a bundle outside a folder of versions
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


def find_bundles(places: Iterable[Path]) -> list[Path]:
    """The bundles in these folders, each a bundle, a folder of versions (`1`, `2`, ... with a bundle each), or a folder
    of such.

    A folder with graphs but no manifest counts as a bundle, so that it is reported and not ignored.

    Raises:
        BundleError: a path is not a folder, or there is no bundle in any of them.
    """
    places = list(places)
    found: dict[Path, Path] = {}  # resolved path -> path as found
    for place in places:
        if not place.is_dir():
            raise BundleError(
                f"{place} is not a folder", hint=f"Set {PREFIX}BUNDLES to a bundle, or a folder of bundles."
            )
        for folder in _versions(place) or _inside(place):
            found.setdefault(folder.resolve(), folder.absolute())
    if not found:
        raise BundleError(
            f"there is no bundle in {', '.join(map(str, places))}",
            hint=f"Export one with `python -m training export`, or set {PREFIX}BUNDLES to a folder with one.",
        )
    return list(found.values())


def _inside(place: Path) -> list[Path]:
    folders = [folder for folder in sorted(place.iterdir()) if folder.is_dir() and folder.name[0] not in "._"]
    return [bundle for folder in folders for bundle in _versions(folder) or ([folder] if _has_graphs(folder) else [])]


def _versions(folder: Path) -> list[Path]:
    """The folder itself, if it is a bundle, or the numbered bundles in it."""
    if (folder / MANIFEST).exists():
        return [folder]
    numbered = [inside for inside in folder.iterdir() if _NUMBER.fullmatch(inside.name) and _has_graphs(inside)]
    return sorted(numbered, key=lambda inside: int(inside.name))


def _has_graphs(folder: Path) -> bool:
    """Whether there is a graph in the folder; not in a hidden one, where an export may be at work."""
    return any(all(part[0] != "." for part in graph.relative_to(folder).parts) for graph in folder.rglob("*.onnx"))


@functools.lru_cache(maxsize=1024)
def version_of(bundle: Path) -> str:
    """The name of its folder if that is a number, else "1"."""
    return bundle.name if _NUMBER.fullmatch(bundle.name) else FIRST


def state_of(places: Iterable[Path]) -> Hashable:
    """A value that changes when a file of any bundle does; made of names, sizes and times only."""
    try:
        return tuple(
            (str(file), status.st_mtime_ns, status.st_size, status.st_ino)
            for bundle in find_bundles(places)
            for file in sorted(bundle.rglob("*"))
            if (status := file.stat()) and file.is_file()
        )
    except (BundleError, OSError) as error:  # such as a file that was removed meanwhile
        return str(error)
