"""Files that appear complete or not at all, and the JSON beside a file of responses that says how it was made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from v1t_client._answers.prediction import Prediction
from v1t_client._errors import InvalidArgument

__all__ = ["cannot_write", "replacing", "sidecar_of", "write_sidecar"]


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
        beside.replace(path)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(error, path) from error
        raise


def sidecar_of(path: Path) -> Path:
    """`responses.csv.json` for `responses.csv`."""
    return path.with_name(f"{path.name}.json")


def write_sidecar(prediction: Prediction, path: Path) -> None:
    """Writes what a file of responses cannot hold: mouse, model, whether it is simulated, neurons, images, notes."""
    with replacing(sidecar_of(path)) as beside:
        beside.write_text(json.dumps(prediction.metadata(), indent=1) + "\n", encoding="utf-8")
