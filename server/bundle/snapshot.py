"""A private copy of a bundle's files, verified while it is made: what is served cannot change under the server.

onnxruntime maps weights into memory and computes from there, so that writing into a served file would change answers or
kill the process. The engine therefore opens its graphs from a copy in the folder for temporary files ($TMPDIR).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
import weakref
from pathlib import Path

from server.bundle.manifest import File, Manifest, open_regular
from server.errors import BundleError

__all__ = ["Snapshot", "remove_abandoned"]

_PREFIX = "v1t-bundle-"
_PIECE = 1024**2
_YOUNG = 60.0  # seconds during which a copy may be without its lock


class Snapshot:
    """A verified copy of the files that a manifest names. It is deleted with this object, or when the process ends.

    Attributes:
        folder: readable only by the user who runs this process.

    Raises:
        BundleError: a file is missing, is not a regular file, is not the one that the manifest describes, or cannot be
            copied; the message names it.
    """

    def __init__(self, bundle: Path, manifest: Manifest) -> None:
        try:
            self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        except OSError as error:
            raise _no_room(bundle, error) from error
        # Removes the copy when this object is freed or the process ends; after a kill, the next server removes it.
        self._finalizer = weakref.finalize(self, _remove, self.folder, _lock(self.folder))
        try:
            for file in manifest.files():
                self._copy(bundle, file)
        except BaseException:
            self._finalizer()
            raise

    def close(self) -> None:
        """Removes the copy. To be called before a signal ends the process, which then does not clean up."""
        self._finalizer()

    def _copy(self, bundle: Path, file: File) -> None:
        target = self.folder / file.path
        digest, size = hashlib.sha256(), 0
        try:
            with open_regular(bundle / file.path) as source:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as copy:
                    while piece := source.read(min(_PIECE, file.bytes - size + 1)):
                        copy.write(piece)
                        digest.update(piece)
                        size += len(piece)
                        if size > file.bytes:
                            break
        except FileNotFoundError:
            raise BundleError(
                f"bundle {bundle.name!r} lacks {file.path}", hint="Copy or export the bundle again."
            ) from None
        except OSError as error:
            if error.filename is not None and Path(error.filename) == bundle / file.path:
                raise BundleError(f"bundle {bundle.name!r}: {file.path} cannot be read: {error.strerror}") from error
            raise _no_room(bundle, error) from error
        if size != file.bytes or digest.hexdigest() != file.sha256:
            raise BundleError(
                f"bundle {bundle.name!r}: {file.path} is not the file that the manifest describes (SHA-256 differs)",
                hint="Copy or export the bundle again.",
            )


def remove_abandoned() -> None:
    """Removes the copies of processes that were killed: those that nobody holds a lock on."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _YOUNG and (lock := _lock(folder)) is not None:
                _remove(folder, lock)


def _lock(folder: Path) -> int | None:
    """Locks a folder, which also keeps systemd-tmpfiles from cleaning it. None where another process has the lock."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(folder: Path, lock: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)


def _no_room(bundle: Path, error: OSError) -> BundleError:
    return BundleError(
        f"bundle {bundle.name!r} cannot be copied into {tempfile.gettempdir()}: {error.strerror or error}",
        hint="The server opens bundles from a private copy: make room there, or set TMPDIR to another folder.",
    )
