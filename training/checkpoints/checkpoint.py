"""A checkpoint: a folder with `config.json` and the weights as safetensors, and the functions that read and write it.

`config.json` contains the hash of the weights file and is replaced last, atomically. So a kill leaves either the old
checkpoint or the new one. Nothing in a checkpoint is executed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from training.config import ModelConfig, parse_config
from training.data.mouse import Mouse
from training.errors import CheckpointError, ConfigError
from training.file_kinds import HEAD, kind_of
from training.files import write_atomically, writing
from training.models import Twin
from training.models.modules_by_mouse import module_name

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "MAX_PIXELS",
    "Checkpoint",
    "check_shapes",
    "library_versions",
    "load_checkpoint",
    "outline",
    "save_checkpoint",
    "source_commit",
]

CONFIG = "config.json"
CHECKPOINT = "checkpoint"  # folder of a member's best weights, in its run
FORMAT = "v1t-checkpoint"
T = TypeVar("T")
VERSION = 1
MAX_PIXELS = 10**8


@dataclass(frozen=True)
class Checkpoint:
    """A trained or imported member, and where it comes from.

    Attributes:
        provenance: source, seed, commit, library versions, data hashes.
    """

    twin: Twin
    provenance: dict[str, Any] = field(default_factory=dict)
    weights_hash: str = ""

    @property
    def config(self) -> ModelConfig:
        return self.twin.config

    @property
    def mice(self) -> dict[str, Mouse]:
        return self.twin.mice


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint folder, or replaces an older checkpoint.

    Raises:
        CheckpointError: the folder is not a checkpoint, or it cannot be written.
    """
    folder = Path(path)
    if folder.exists() and not (folder.is_dir() and ((folder / CONFIG).exists() or _is_partial(folder))):
        raise CheckpointError(f"{folder} exists and is not a checkpoint", hint="Give another --output.")
    tensors = {f"model.{name}": tensor for name, tensor in checkpoint.twin.state_dict().items()}
    for mouse_id, mouse in checkpoint.mice.items():
        for name, array in mouse.to_arrays().items():
            tensors[f"mouse.{module_name(mouse_id)}.{name}"] = torch.from_numpy(array)
    content = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    digest = hashlib.sha256(content).hexdigest()
    weights = f"weights-{digest[:12]}.safetensors"
    description = {
        "format": FORMAT,
        "version": VERSION,
        "weights": {"file": weights, "sha256": digest},
        "config": checkpoint.config.model_dump(mode="json"),
        "mice": [mouse.to_json() for mouse in checkpoint.mice.values()],
        "provenance": checkpoint.provenance,
    }
    with writing(f"checkpoint {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / weights, content)
        write_atomically(folder / CONFIG, json.dumps(description, indent=2).encode())
        for stale in [*folder.glob("weights-*.safetensors"), *folder.glob(".*.partial")]:
            if stale.name != weights:
                stale.unlink()
    return folder


def _is_partial(folder: Path) -> bool:
    """Whether a folder contains only what a killed `save_checkpoint` leaves behind."""
    return all(path.match("weights-*.safetensors") or path.match(".*.partial") for path in folder.iterdir())


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint folder. The twin is in evaluation mode, on the CPU.

    Raises:
        CheckpointError: the folder is not a checkpoint, has an unknown version, or its weights do not fit.
    """
    folder = Path(path)
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{folder} is not a checkpoint: it has no {CONFIG}",
            hint="`python -m training import` converts runs of the reference code.",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {error}") from error
    try:
        return _read(folder, json.loads(text))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {_kind(text) or error}") from error
    except CheckpointError:
        raise
    except (OSError, SafetensorError, ConfigError, *_DAMAGE) as error:
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise CheckpointError(f"checkpoint {folder} cannot be read: {reason}") from error


# What a value of the wrong kind in `config.json` may raise, in the checks of this package or in torch's.
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, MemoryError)


def _kind(text: str) -> str | None:
    kind = kind_of(text[:HEAD].encode())
    return f"it is {kind.name}" if kind is not None and kind.name != "a JSON document" else None


def _read(folder: Path, description: Any) -> Checkpoint:
    expected = {"format": FORMAT, "version": VERSION}
    got = {key: description.get(key) for key in expected} if isinstance(description, dict) else None
    if got != expected:
        raise CheckpointError(f"{folder / CONFIG} has an unknown format", got=got, expected=expected)
    weights = folder / Path(description["weights"]["file"]).name
    content = weights.read_bytes()
    if (kind := kind_of(content[:HEAD])) is not None and kind.name != "a safetensors file":
        raise CheckpointError(f"{weights} is {kind.name}", expected="a safetensors file", hint=kind.hint)
    if hashlib.sha256(content).hexdigest() != description["weights"]["sha256"]:
        raise CheckpointError(f"{weights} is not the file that {CONFIG} was written with (SHA-256 differs)")
    tensors = load_tensors(content)
    arrays = {name: tensor.numpy() for name, tensor in _prefixed(tensors, "mouse.").items()}
    mice = [
        Mouse.from_parts(mouse, _prefixed(arrays, f"{module_name(mouse['mouse_id'])}."))
        for mouse in description["mice"]
    ]
    if too_large := next((mouse for mouse in mice if math.prod(mouse.image_shape) > MAX_PIXELS), None):
        raise CheckpointError(f"{folder / CONFIG}: the images are too large", got=too_large.image_shape)
    config, state = parse_config(description["config"]), _prefixed(tensors, "model.")
    check_shapes(outline(config, mice, state), state, f"checkpoint {folder}")
    twin = Twin(config, mice)
    twin.load_state_dict(state)
    return Checkpoint(
        twin=twin.eval(), provenance=dict(description["provenance"]), weights_hash=description["weights"]["sha256"]
    )


def outline(config: ModelConfig, mice: Sequence[Mouse], state: Mapping[str, Tensor]) -> Twin:
    """The twin without memory for its weights, to compare their shapes: options may ask for more than memory holds.

    Raises:
        CheckpointError: a part of the configuration repeats more often than the weights have tensors.
    """
    for option in ("n_blocks", "n_layers"):
        if (n := getattr(config.core, option, 0)) > len(state):
            raise CheckpointError(f"the weights have {len(state)} tensors, but core.{option} is {n}")
    with torch.device("meta"):
        return Twin(config, mice)


def check_shapes(twin: Twin, weights: Mapping[str, Tensor], name: str) -> None:
    """Compares weights with those of a twin, or of its outline.

    Raises:
        CheckpointError: the message names the first that is missing, unknown, or of another shape or kind.
    """
    expected = twin.state_dict()
    # Batch norm counts its batches, but the count has no effect, and the importer leaves it out.
    missing = [key for key in expected if key not in weights and not key.endswith("num_batches_tracked")]
    if missing:
        raise CheckpointError(f"{name} lacks weights that its options require", got=f"no {missing[0]}")
    for key, tensor in weights.items():
        if key not in expected:
            raise CheckpointError(f"{name} has weights that do not belong to its options", got=key)
        if tensor.shape != expected[key].shape:
            raise CheckpointError(
                f"{name}: wrong shape of {key}",
                got=tuple(tensor.shape),
                expected=f"{tuple(expected[key].shape)}, from its options",
            )
        if tensor.is_floating_point() != expected[key].is_floating_point():
            raise CheckpointError(f"{name}: {key} holds another kind of number", got=tensor.dtype)


def _prefixed(values: dict[str, T], prefix: str) -> dict[str, T]:
    """The values whose names start with the prefix, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def library_versions(names: Sequence[str] = ("torch", "numpy", "onnx", "safetensors")) -> dict[str, str]:
    """Versions of the libraries that results depend on."""
    return {name: metadata.version(name) for name in names}


@functools.cache
def source_commit() -> str | None:
    """The commit of this checkout, with "+" if it has changes; None outside a checkout."""
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no")
        return _git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def now() -> str:
    """The time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
