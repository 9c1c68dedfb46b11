"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from v1t_client._errors import InvalidArgument

__all__ = ["cannot_write", "replacing"]


def cannot_write(error: OSError, path: str | os.PathLike[str], hint: str | None = None) -> InvalidArgument:
    """The error for a file or folder that could not be written, such as on a full disk."""
    return InvalidArgument(f"the output cannot be written: {error.strerror or error}", got=path, hint=hint)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path`, which is renamed to it at the end, or removed if writing fails.

    Raises:
        InvalidArgument: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        yield beside
        if path.is_dir():
            _remove(path)
        beside.replace(path)
    except BaseException as error:
        with suppress(OSError):
            _remove(beside)
        if isinstance(error, OSError):
            raise cannot_write(error, path) from error
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
