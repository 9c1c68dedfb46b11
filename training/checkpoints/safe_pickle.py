"""Reads torch's pickled checkpoints without executing what is in them.

Only torch's weights-only unpickler is used, with an allow-list: tensors and plain containers, and a few harmless
classes that trainers leave in their checkpoints, each replaced by an empty stand-in.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from training.errors import CheckpointError

__all__ = ["load_pickle"]


class _StandIn:
    """Takes the place of a class whose state we do not need; it runs no code of the pickle's and keeps nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def __setstate__(self, state: Any) -> None:
        del state


def _numpy_scalar(*args: Any) -> float:
    """Takes the place of numpy's scalar: its value is never needed, and its bytes are not interpreted."""
    del args
    return float("nan")


def _empty_dict(*args: Any) -> dict[Any, Any]:
    """Takes the place of a default dictionary: whatever would have made its defaults is not called."""
    del args
    return {}


# name in the pickle -> what is built instead
_HARMLESS: dict[str, Any] = {
    "torch.cuda.amp.grad_scaler.GradScaler": _StandIn,
    "torch.amp.grad_scaler.GradScaler": _StandIn,
    "torch.cuda.amp.grad_scaler._refresh_per_optimizer_state": _StandIn,
    "torch.amp.grad_scaler._refresh_per_optimizer_state": _StandIn,
    "collections.defaultdict": _empty_dict,  # of a scaler that was in use
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy.dtype": _StandIn,
}


def load_pickle(path: Path) -> Any:
    """The content of a `.pt` or `.pth` file, tensors on the CPU.

    Raises:
        CheckpointError: the file is no torch file, or it asks for a class or function that is not on the allow-list;
            the message names it. Nothing was executed.
    """
    allowed: list[Any] = [(stand_in, name) for name, stand_in in _HARMLESS.items()]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} is refused: {_reason(str(error))}",
            hint="Only tensors and plain containers are read. Nothing in the file was executed.",
        ) from None
    except Exception as error:  # a broken pickle makes the unpickler raise anything, struct.error and LookupError too
        first_line = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise CheckpointError(f"{path.name} is no checkpoint that torch can read: {first_line}") from None


def _reason(message: str) -> str:
    for pattern in (
        r"GLOBAL (\S+) was not an allowed global",
        r"unsupported GLOBAL (\S+) whose module",  # os, sys and posix, which torch never allows
        r"[Uu]nsupported (?:global|class)[^\w]*(?:GLOBAL )?([\w.]+)",
    ):
        if found := re.search(pattern, message):
            return f"it wants to load {found.group(1)}, which is not on the allow-list"
    tail = message.rsplit("WeightsUnpickler error:", 1)[-1].strip().split("\n", 1)[0]
    return f"its pickle does more than hold tensors ({tail})"
