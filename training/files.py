"""Whole files and locks: what a killed process leaves behind is either the old file or the new one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.errors import CheckpointError

__all__ = ["locked", "write_atomically", "writing"]


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a whole file, or leaves the old one in place."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def writing(what: object, *, hint: str | None = None) -> Iterator[None]:
    """Raises a CheckpointError in place of an OSError, such as a full disk, and names what was being written."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write {what}: {error.strerror}", hint=hint) from error


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock file while the block runs. The operating system releases the lock if the process dies.

    Windows has no such lock: there the block runs without one.

    Raises:
        CheckpointError: another process holds the lock, and `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckpointError(
                    f"another process trains in {path.parent}", hint="Wait for it, or give another --output."
                ) from None
        yield
