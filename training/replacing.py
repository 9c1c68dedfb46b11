"""Folders that are replaced as a whole: whoever looks, and whenever a kill comes, it is the old one or the new one.

The new folder is written beside the old one, under a hidden name, and flushed to the disk. Then the two swap their
names in one step, where the system can (Linux, macOS). Elsewhere the old one is renamed away first: for that moment
there is none under the name, and a kill right then leaves both whole, under hidden names.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["replacing"]

_AT_FDCWD, _SWAP = -100, 2  # of Linux's renameat2, and macOS's renamex_np


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which becomes `folder` at the end of the block, and is removed after an error.

    What processes that were killed have left beside it is removed, too.

    Raises:
        OSError: the folder cannot be written; then the old one is as it was.
    """
    folder = folder.resolve()  # a link stays, and what it leads to is replaced
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    new = folder.with_name(f"{_prefix(folder)}{os.getpid()}.new")
    try:
        new.mkdir()
        yield new
        for path in [*new.rglob("*"), new]:
            _flush(path)
        _put_in_place(new, folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)  # now the old one, if there was one


def _put_in_place(new: Path, folder: Path) -> None:
    if not folder.exists():
        new.rename(folder)
    elif not _swap(new, folder):
        old = new.with_suffix(".old")
        folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _swap(one: Path, other: Path) -> bool:
    """Swaps two names in one step; False if the system or the file system cannot."""
    names = os.fsencode(one), os.fsencode(other)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = libc.renamex_np(*names, _SWAP)
        else:
            failed = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _SWAP)
    except (AttributeError, OSError, TypeError):  # another system, or an older one
        return False
    code = ctypes.get_errno()
    if failed and code not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise OSError(code, os.strerror(code), str(other))
    return not failed


def _flush(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    if os.name != "posix" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prefix(folder: Path) -> str:
    return f".{folder.name}.{socket.gethostname()}-"


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed processes of this machine have left beside a folder."""
    for path in folder.parent.iterdir():
        process, _, kind = path.name.removeprefix(_prefix(folder)).partition(".")
        if path.name.startswith(_prefix(folder)) and kind in ("new", "old") and not _is_running(process):
            if kind == "old" and not folder.exists():
                path.rename(folder)  # killed between its two renames
            else:
                shutil.rmtree(path, ignore_errors=True)


def _is_running(process: str) -> bool:
    if os.name != "posix":  # on Windows os.kill would end the process
        return True
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return int(process) != os.getpid()  # of an earlier process with this id
