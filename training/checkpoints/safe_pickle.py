"""Reads torch's pickled checkpoints without executing their content.

Only torch's weights-only unpickler is used, with an allow-list: tensors, plain containers, and a few harmless classes
that trainers save in their checkpoints. Each of these is replaced by an empty stand-in.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from training.errors import CheckpointError
from training.file_kinds import broken_link, head_of, kind_of

__all__ = ["load_pickle"]

MAX_UNPACKED = 2**28  # bytes of a file, or else MAX_RATIO times its size
MAX_RATIO = 100


class _StandIn:
    """Replaces a class whose state is not needed. It runs no code of the pickle and keeps nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def __setstate__(self, state: Any) -> None:
        del state


def _empty_dict(*args: Any) -> dict[Any, Any]:
    """Replaces a default dictionary: its default factory is not called."""
    del args
    return {}


# name in the pickle -> its replacement
_HARMLESS: dict[str, Any] = {
    "torch.cuda.amp.grad_scaler.GradScaler": _StandIn,
    "torch.amp.grad_scaler.GradScaler": _StandIn,
    "torch.cuda.amp.grad_scaler._refresh_per_optimizer_state": _StandIn,
    "torch.amp.grad_scaler._refresh_per_optimizer_state": _StandIn,
    "collections.defaultdict": _empty_dict,  # in a scaler that was used
    "numpy.core.multiarray.scalar": _StandIn,
    "numpy._core.multiarray.scalar": _StandIn,
    "numpy.dtype": _StandIn,
}


def load_pickle(path: Path) -> Any:
    """The content of a `.pt` or `.pth` file, tensors on the CPU.

    Raises:
        CheckpointError: the file is not a torch file, unpacks to far more than its size, or needs a class or function
            that is not on the allow-list; the message names it. Nothing was executed.
    """
    _check_file(path)
    allowed: list[Any] = [(stand_in, name) for name, stand_in in _HARMLESS.items()]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} is refused: {_reason(str(error))}",
            hint="Only tensors and plain containers are read. Nothing in the file was executed.",
        ) from None
    except Exception as error:  # the unpickler may raise anything for a broken pickle, such as struct.error
        first_line = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise CheckpointError(f"{path.name} is not a checkpoint that torch can read: {first_line}") from None


def _check_file(path: Path) -> None:
    """Refuses what is not a torch file by its first bytes: a zip, or in old versions of torch a pickle or a tar."""
    if (link := broken_link(path)) is not None:
        raise CheckpointError(f"{path.name} is {link.name}", hint=link.hint)
    if not path.is_file():  # a pipe would be waited for without end
        raise CheckpointError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        kind = kind_of(head_of(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if kind is not None and kind.name not in ("a zip file", "a Python pickle", "a tar file"):
        raise CheckpointError(f"{path.name} is {kind.name}", expected="weights that torch saved", hint=kind.hint)
    if kind is None or kind.name != "a zip file":
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path.name} is not a complete file of torch: {error}", hint="Copy or download it again."
        ) from error
    size = path.stat().st_size
    if unpacked > max(MAX_UNPACKED, MAX_RATIO * size):
        raise CheckpointError(
            f"{path.name} unpacks to {unpacked / size:,.0f} times its size",
            got=f"{unpacked:,} bytes from {size:,}",
            expected=f"at most {MAX_RATIO} times, as torch does not compress",
        )


def _reason(message: str) -> str:
    for pattern in (
        r"GLOBAL (\S+) was not an allowed global",
        r"unsupported GLOBAL (\S+) whose module",  # os, sys and posix, which torch never allows
        r"[Uu]nsupported (?:global|class)[^\w]*(?:GLOBAL )?([\w.]+)",
    ):
        if found := re.search(pattern, message):
            return f"it loads {found.group(1)}, which is not on the allow-list"
    tail = message.rsplit("WeightsUnpickler error:", 1)[-1].strip().split("\n", 1)[0]
    return f"its pickle has more than tensors ({tail})"
