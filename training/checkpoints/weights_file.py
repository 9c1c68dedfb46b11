"""The weights in a torch file as other projects save them: unwrapped, in float32, and checked to be numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.checkpoints.reference_runs import is_derived
from training.checkpoints.safe_pickle import load_pickle
from training.errors import CheckpointError

__all__ = ["Weights", "read_weights"]

_KEYS = ("model", "model_state_dict", "state_dict")  # of a trainer's checkpoint, that hold the weights
_WRAPPERS = {"module.": "DataParallel or AveragedModel", "_orig_mod.": "torch.compile"}


@dataclass(frozen=True)
class Weights:
    """A state dict.

    Attributes:
        name: of the file, for errors.
        state: key -> float32 tensor (counters stay integers).
        precision: the relative precision of the least precise tensor in the file.
        notes: sentences on what was changed.
    """

    name: str
    state: dict[str, Tensor]
    precision: float
    notes: list[str] = field(default_factory=list)


def read_weights(path: Path, name: str) -> Weights:
    """The weights in a `.pt` or `.pth` file: a state dict, or the checkpoint of a trainer that holds one.

    Raises:
        CheckpointError: the file is another kind of file, or a tensor is not dense, not of numbers, or not finite; the
            message names it.
    """
    content = load_pickle(path)
    if isinstance(content, dict):
        content = next((content[key] for key in _KEYS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content:
        got = "an empty dictionary" if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{name} has no weights", got=got, expected="a state dict, or one under the key 'model'")
    for key, tensor in content.items():
        _check_tensor(key, tensor, name, size=path.stat().st_size)
    notes: list[str] = []
    state = _unwrapped(content, name, notes)
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if half := sorted(str(dtype).removeprefix("torch.") for dtype in dtypes if torch.finfo(dtype).bits < 32):
        notes.append(f"the weights were in half precision ({' and '.join(half)}); they are kept as float32")
    for key, tensor in state.items():
        if tensor.is_floating_point() and not is_derived(key) and not torch.isfinite(tensor).all():
            n = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{name}: {key} contains NaN or infinity",
                got=f"{n} of {tensor.numel()} values",
                hint="Its training diverged, or half precision overflowed: give an earlier checkpoint.",
            )
    return Weights(
        name=name,
        state={key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()},
        precision=max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0),
        notes=notes,
    )


def _check_tensor(key: Any, tensor: Any, name: str, *, size: int) -> None:
    if not isinstance(key, str):
        raise CheckpointError(f"{name}: unknown key {key!r}", expected="a string")
    if not isinstance(tensor, Tensor):
        raise CheckpointError(f"{name}: key {key} is not a tensor", got=type(tensor).__name__)
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
        raise CheckpointError(
            f"{name}: key {key} is not a dense tensor of real numbers",
            got=f"{tensor.layout}, {tensor.dtype}, {tensor.device}",
        )
    if max(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()) > 100 * size:
        raise CheckpointError(
            f"{name}: key {key} claims more values than the file holds",
            got=f"{tensor.numel():,} values of {tensor.dtype}",
            expected=f"a file of {size:,} bytes",
        )


def _unwrapped(state: dict[str, Tensor], name: str, notes: list[str]) -> dict[str, Tensor]:
    """The keys without the prefixes of modules that wrapped the twin, or a part of it."""
    averaged = "n_averaged" in state
    state = {key: tensor for key, tensor in state.items() if key != "n_averaged"}
    removed: dict[str, str] = {}
    while state and (prefix := next((w for w in _WRAPPERS if all(key.startswith(w) for key in state)), None)):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
        removed[prefix] = _WRAPPERS[prefix]
    inner = {".".join(part for part in key.split(".") if part != "_orig_mod"): key for key in state}
    if len(inner) < len(state):
        twice = next(key for key in state if key not in inner.values())
        raise CheckpointError(f"{name}: key {twice} duplicates another key", got="'_orig_mod.' in a part of the keys")
    if list(inner) != list(state):  # only a part of the twin was compiled
        removed["_orig_mod."] = _WRAPPERS["_orig_mod."]
    if averaged:
        notes.append("the weights are averages (torch's AveragedModel)")
    if removed:
        notes.append("removed from the keys: " + ", ".join(f"{prefix} ({by})" for prefix, by in removed.items()))
    return {key: state[theirs] for key, theirs in inner.items()}
