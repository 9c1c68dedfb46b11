"""A checkpoint: a folder with `config.json` and the weights as safetensors. The only reader and writer.

The configuration names the weights file by its hash and is replaced last, in one step, so a kill at any moment leaves
the old checkpoint or the new one. Nothing in a checkpoint is executed.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from training.config import ModelConfig, parse_config
from training.data.mouse import Mouse
from training.errors import CheckpointError, ConfigError
from training.files import write_atomically
from training.models import Twin

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "Checkpoint",
    "library_versions",
    "load_checkpoint",
    "save_checkpoint",
    "source_commit",
]

CONFIG = "config.json"
CHECKPOINT = "checkpoint"  # the folder of a member's best weights, in its run
FORMAT = "v1t-checkpoint"
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A trained or imported member, with what is known of its making.

    Attributes:
        provenance: source, seed, commit, library versions, data hashes.
        scores: mouse_id -> name -> per-neuron test scores (N,), where the twin was evaluated.
    """

    twin: Twin
    provenance: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    weights_hash: str = ""

    @property
    def config(self) -> ModelConfig:
        return self.twin.config

    @property
    def mice(self) -> dict[str, Mouse]:
        return self.twin.mice


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint folder, replacing one that is there.

    Raises:
        CheckpointError: the folder holds something else, or it cannot be written.
    """
    folder = Path(path)
    if folder.exists() and not (folder.is_dir() and ((folder / CONFIG).exists() or _is_broken_off(folder))):
        raise CheckpointError(f"{folder} exists and is not a checkpoint", hint="Give another --output.")
    tensors = {f"model.{name}": tensor for name, tensor in checkpoint.twin.state_dict().items()}
    for mouse_id, mouse in checkpoint.mice.items():
        for name, array in mouse.to_arrays().items():
            tensors[f"mouse.{mouse_id}.{name}"] = torch.from_numpy(array)
    for mouse_id, scores in checkpoint.scores.items():
        for name, score in scores.items():
            tensors[f"score.{mouse_id}.{name}"] = score.float()
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / weights, content)
        write_atomically(folder / CONFIG, json.dumps(description, indent=2).encode())
        for stale in [*folder.glob("weights-*.safetensors"), *folder.glob(".*.partial")]:
            if stale.name != weights:
                stale.unlink()
    except OSError as error:
        raise CheckpointError(f"cannot write checkpoint {folder}: {error.strerror}") from error
    return folder


def _is_broken_off(folder: Path) -> bool:
    """Whether a folder without configuration holds nothing but what a killed `save_checkpoint` left."""
    return all(path.match("weights-*.safetensors") or path.match(".*.partial") for path in folder.iterdir())


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint folder; the twin is in evaluation mode, on the CPU.

    Raises:
        CheckpointError: not a checkpoint, an unknown version, or weights that do not belong to the configuration.
    """
    folder = Path(path)
    try:
        description = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{folder} is no checkpoint: it has no {CONFIG}",
            hint="`python -m training import` makes one from the reference code's runs.",
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {error}") from error
    if (
        not isinstance(description, dict)
        or description.get("format") != FORMAT
        or description.get("version") != VERSION
    ):
        raise CheckpointError(
            f"{folder / CONFIG} is of an unknown format",
            got={key: description.get(key) for key in ("format", "version")} if isinstance(description, dict) else None,
            expected={"format": FORMAT, "version": VERSION},
        )
    try:
        weights = folder / Path(description["weights"]["file"]).name
        content = weights.read_bytes()
        if hashlib.sha256(content).hexdigest() != description["weights"]["sha256"]:
            raise CheckpointError(f"{weights} is not the file that {CONFIG} describes (SHA-256 differs)")
        tensors = load_tensors(content)
        mice = [Mouse.from_parts(mouse, _arrays(tensors, mouse["mouse_id"])) for mouse in description["mice"]]
        twin = Twin(parse_config(description["config"]), mice)
        twin.load_state_dict(_prefixed(tensors, "model."))
    except (OSError, KeyError, TypeError, SafetensorError, RuntimeError, ConfigError) as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error}") from error
    scores: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _prefixed(tensors, "score.").items():
        mouse_id, score = name.split(".", 1)
        scores.setdefault(mouse_id, {})[score] = tensor
    return Checkpoint(
        twin=twin.eval(),
        provenance=description["provenance"],
        scores=scores,
        weights_hash=description["weights"]["sha256"],
    )


def _prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _arrays(tensors: dict[str, Tensor], mouse_id: str) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in _prefixed(tensors, f"mouse.{mouse_id}.").items()}


def library_versions(names: Sequence[str] = ("torch", "numpy", "onnx", "safetensors")) -> dict[str, str]:
    """Versions of the libraries that numbers depend on."""
    return {name: metadata.version(name) for name in names}


def source_commit() -> str | None:
    """The commit of this checkout, with "+" where it was changed; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+" if changed else commit


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
