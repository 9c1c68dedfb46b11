"""An ensemble: members that were trained separately, and how their pre-activations are combined.

An ensemble folder, as `python -m training combine` writes it:

ensemble.json    how the members are combined
member-0/ ...    their checkpoints
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from training.checkpoints.checkpoint import CHECKPOINT, CONFIG, Checkpoint, load_checkpoint, save_checkpoint
from training.data.mouse import Mouse
from training.errors import CheckpointError, ConfigError
from training.files import write_atomically, writing
from training.models.twin import response_from
from training.replacing import replacing

__all__ = [
    "ENSEMBLE",
    "MEMBERS",
    "RUN",
    "Combination",
    "Ensemble",
    "load_ensemble",
    "member_checkpoints",
    "save_ensemble",
]

ENSEMBLE = "ensemble.json"
RUN = "run.json"  # in the folder of a run: what is trained
MEMBERS = "members.json"  # in the folder of a finished run: which members are kept


@dataclass(frozen=True)
class Combination:
    """Weights (one per member) and bias that combine the members' pre-activations."""

    weights: tuple[float, ...]
    bias: float = 0.0


class Ensemble(nn.Module):
    """Members of the same mice. By default responses are ELU + 1 of the mean pre-activation, as in the reference code.

    Args:
        members: at least one; they may differ in configuration, but not in mice.
        combinations: per mouse, if they were learned; otherwise the mean.
    """

    def __init__(self, members: Sequence[Checkpoint], combinations: Mapping[str, Combination] | None = None) -> None:
        super().__init__()
        if not members:
            raise ConfigError("an ensemble needs at least one member", got="none")
        self.members = list(members)
        self.mice = members[0].mice
        for i, member in enumerate(self.members[1:], start=1):
            _check_same_mice(self.mice, member.mice, i)
        self.twins = nn.ModuleList(member.twin for member in self.members)
        mean = Combination((1 / len(self.members),) * len(self.members))
        self.combinations = dict.fromkeys(self.mice, mean) if combinations is None else dict(combinations)

    @property
    def weights_hashes(self) -> list[str]:
        return [member.weights_hash for member in self.members]

    @property
    def shares_stems(self) -> bool:
        """Whether all members share one stem: they crop in the same way, and have no image shifter."""
        first = self.members[0].config
        return first.cropper.shifter == "none" and all(
            (member.config.cropper, member.config.behavior, member.config.b_mlp.inputs)
            == (first.cropper, first.behavior, first.b_mlp.inputs)
            for member in self.members
        )

    def uses(self) -> list[Literal["image", "behavior", "pupil_center"]]:
        """The inputs that the responses of any member depend on."""
        used = {name for member in self.members for name in member.config.uses()}
        return [name for name in ("image", "behavior", "pupil_center") if name in used]

    def forward(self, mouse_id: str, image: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        """Standardised responses (B, N)."""
        return self.combine(mouse_id, self.pre_activations(mouse_id, image, behavior, pupil_center))

    def combine(self, mouse_id: str, pre_activations: Tensor) -> Tensor:
        """The members' pre-activations (M, B, N) -> responses (B, N)."""
        combination = self.combinations[mouse_id]
        weights = pre_activations.new_tensor(combination.weights)[:, None, None]
        return response_from((pre_activations * weights).sum(0) + combination.bias)

    def pre_activations(self, mouse_id: str, image: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        """The pre-activations of every member, (M, B, N)."""
        inputs = (image, behavior, pupil_center)
        return torch.stack([member.twin.pre_activation(mouse_id, *inputs) for member in self.members])


def _check_same_mice(first: dict[str, Mouse], other: dict[str, Mouse], member: int) -> None:
    if list(first) != list(other):
        raise ConfigError(f"member {member} has other mice than member 0", got=list(other), expected=list(first))
    for mouse_id, mouse in first.items():
        same = (
            mouse.image_shape == other[mouse_id].image_shape
            and mouse.behavior_channels == other[mouse_id].behavior_channels
            and np.array_equal(mouse.neuron_ids, other[mouse_id].neuron_ids)
            and mouse.data_hash == other[mouse_id].data_hash
            and mouse.standardized_inputs == other[mouse_id].standardized_inputs
        )
        if not same:
            raise ConfigError(
                f"member {member} was trained on another recording of mouse {mouse_id!r} than member 0",
                hint="Combine members that were trained on the same recordings.",
            )


def save_ensemble(path: str | Path, ensemble: Ensemble) -> Path:
    """Writes an ensemble folder with copies of its members.

    Raises:
        CheckpointError: the folder is not an ensemble, or it cannot be written.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / ENSEMBLE).exists())):
        raise CheckpointError(f"{folder} exists and is not an ensemble", hint="Give another --output.")
    content = {
        "members": len(ensemble.members),
        "combinations": {
            mouse_id: {"weights": list(combination.weights), "bias": combination.bias}
            for mouse_id, combination in ensemble.combinations.items()
        },
    }
    with writing(f"ensemble {folder}"), replacing(folder) as new:
        for i, member in enumerate(ensemble.members):
            save_checkpoint(new / f"member-{i}", member)
        write_atomically(new / ENSEMBLE, json.dumps(content, indent=2).encode())
    return folder


def load_ensemble(paths: Sequence[Path]) -> Ensemble:
    """An ensemble of checkpoints, of the kept members of finished runs, or an ensemble folder.

    Raises:
        CheckpointError: a path is none of these.
    """
    if len(paths) == 1 and (paths[0] / ENSEMBLE).is_file():
        folder = paths[0]
        try:
            content = json.loads((folder / ENSEMBLE).read_text(encoding="utf-8"))
            members = [load_checkpoint(folder / f"member-{i}") for i in range(content["members"])]
            combinations = {
                mouse_id: Combination(tuple(map(float, one["weights"])), float(one["bias"]))
                for mouse_id, one in content["combinations"].items()
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / ENSEMBLE} cannot be read: {error}") from error
        ensemble = Ensemble(members, combinations)
        wrong = [m for m in ensemble.mice if len(combinations.get(m, Combination(())).weights) != len(members)]
        if wrong:
            raise CheckpointError(f"{folder / ENSEMBLE} does not fit its members", got=f"weights of mouse {wrong[0]!r}")
        return ensemble
    return Ensemble([load_checkpoint(path) for path in member_checkpoints(paths)])


def member_checkpoints(paths: Sequence[Path]) -> list[Path]:
    """The given checkpoint folders, and the checkpoints of the kept members of the given runs.

    Raises:
        CheckpointError: a run is not finished.
    """
    found: list[Path] = []
    for path in paths:
        if (path / CONFIG).exists() or not (path / RUN).exists():
            found.append(path)
            continue
        if not (path / MEMBERS).exists():
            raise CheckpointError(f"run {path} is not finished", hint="Run the same train command again to resume it.")
        try:
            kept = json.loads((path / MEMBERS).read_text(encoding="utf-8"))["kept"]
            found += [path / f"member-{int(i)}" / CHECKPOINT for i in kept]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(
                f"{path / MEMBERS} cannot be read: {error!r}", hint="Run the same train command again: it writes it."
            ) from error
    return found
