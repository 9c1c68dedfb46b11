"""What a file is, by its first bytes: so that an error names the cause and does not guess it from the file's name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from v1t_client._errors import InvalidArgument

__all__ = ["NPY_MAGIC", "described", "load_npy"]

NPY_MAGIC = b"\x93NUMPY"
_LFS = "a Git LFS pointer: run `git lfs pull`"
_ANNEX = "a git-annex pointer: run `git annex get`"
_KINDS = (
    (b"version https://git-lfs.github.com/spec", _LFS),
    (b"/annex/objects", _ANNEX),
    (b"../.git/annex", _ANNEX),
    (b".git/annex", _ANNEX),
    (b"<!doctype html", "an HTML page, such as a login or error page of a download"),
    (b"<html", "an HTML page, such as a login or error page of a download"),
    (b"\x89png\r\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"gif8", "a GIF image"),
    (b"ii*\x00", "a TIFF image"),
    (b"mm\x00*", "a TIFF image"),
    (b"bm", "a BMP image"),
    (b"riff", "a WebP image or another RIFF file"),
    (b"pk\x03\x04", "a zip archive, or an .npz file"),
    (b"\x89hdf", "an HDF5 file"),
    (b"matlab", "a MATLAB file"),
    (NPY_MAGIC.lower(), "a .npy file"),
)


def described(content: bytes) -> str:
    """What the beginning of a file is: `a Git LFS pointer: run ...`, or its first bytes if it is not known."""
    if not content:
        return "an empty file"
    head = content[:64].lstrip().lower()
    return next((kind for magic, kind in _KINDS if head.startswith(magic)), f"a file that begins with {content[:12]!r}")


def load_npy(path: str | os.PathLike[str], *, mapped: bool = False) -> np.ndarray[Any, Any]:
    """The array of a .npy file.

    Args:
        mapped: map the file into memory instead of reading it.

    Raises:
        InvalidArgument: it cannot be read.
    """
    try:
        with Path(path).open("rb") as stream:
            head = stream.read(64)
        if not head.startswith(NPY_MAGIC):
            raise InvalidArgument("the file is not a .npy file", got=f"{path}: {described(head)}")
        return np.asarray(np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False))
    except OSError as error:
        raise InvalidArgument(f"the file cannot be read: {error.strerror or error}", got=path) from error
    except (ValueError, EOFError, SyntaxError) as error:
        if isinstance(error, InvalidArgument):
            raise
        raise InvalidArgument(f"the .npy file cannot be read: {error}", got=path) from error
