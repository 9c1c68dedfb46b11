"""Files that a kill leaves either old or new, and locks that end with their process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from training.errors import CheckpointError

__all__ = ["as_json", "check_output", "locked", "write_atomically", "write_files", "writing"]


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


def check_output(path: Path, *, force: bool, markers: Sequence[str] = ()) -> None:
    """Refuses an output that exists, unless it is an empty folder or `force` is True (`--force`).

    Args:
        markers: with `force`, only a folder that has one of these files is replaced: so that a mistyped --output does
            not cost a folder of something else.

    Raises:
        CheckpointError: the message names the output.
    """
    if not (path.exists() or path.is_symlink()) or (path.is_dir() and not any(path.iterdir())):
        return
    if not force:
        raise CheckpointError(f"{path} exists", hint="Give another --output, or --force to replace it.")
    if markers and not any((path / marker).is_file() for marker in markers):
        raise CheckpointError(
            f"{path} exists, and --force does not replace it",
            got="a folder of something else" if path.is_dir() else "a file",
            expected=f"a folder with {' or '.join(markers)}",
            hint="Give another --output.",
        )


def as_json(content: Any) -> Any:
    """A copy for JSON: arrays become lists, NaN and infinity become null."""
    if isinstance(content, dict):
        return {str(key): as_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [as_json(value) for value in content]
    if isinstance(content, np.ndarray | np.generic):
        return as_json(content.tolist())
    return None if isinstance(content, float) and not np.isfinite(content) else content


def write_files(folder: Path, files: Mapping[str, str | bytes | Mapping[str, Any]]) -> list[Path]:
    """Writes texts, bytes, and dictionaries as JSON, into a folder; returns their paths.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    with writing(folder):
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for name, content in files.items():
                text = json.dumps(as_json(content), indent=2) if isinstance(content, Mapping) else content
                write_atomically(folder / name, text.encode() if isinstance(text, str) else text)
        except OSError:
            if is_new and not any(folder.iterdir()):
                folder.rmdir()
            raise
    return [folder / name for name in files]


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
