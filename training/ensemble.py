"""An ensemble: members that were trained apart, and how their pre-activations are combined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from training.checkpoint import Checkpoint
from training.errors import ConfigError
from training.models.twin import response_from
from training.mouse import Mouse

__all__ = ["Ensemble"]


class Ensemble(nn.Module):
    """Members of the same mice; the reference's ensemble is the mean of pre-activations, then ELU + 1.

    Args:
        members: at least one; they may differ in configuration, not in mice.
    """

    def __init__(self, members: Sequence[Checkpoint]) -> None:
        super().__init__()
        if not members:
            raise ConfigError("an ensemble needs at least one member", got="none")
        self.members = list(members)
        self.mice = members[0].mice
        for i, member in enumerate(self.members[1:], start=1):
            _check_same_mice(self.mice, member.mice, i)
        self.twins = nn.ModuleList(member.twin for member in self.members)

    @property
    def shares_stems(self) -> bool:
        """Whether one stem serves all members: the same cropping, and no image shifter of their own."""
        first = self.members[0].config
        return first.cropper.shifter == "none" and all(
            (member.config.cropper, member.config.behavior, member.config.b_mlp.inputs)
            == (first.cropper, first.behavior, first.b_mlp.inputs)
            for member in self.members
        )

    def uses(self) -> list[Literal["image", "behavior", "pupil_center"]]:
        """The inputs that change the responses of any member."""
        used = {name for member in self.members for name in member.config.uses()}
        return [name for name in ("image", "behavior", "pupil_center") if name in used]

    def combination(self, mouse_id: str) -> tuple[Tensor, float]:
        """Weights (M,) and bias of the members' pre-activations."""
        n_members = len(self.members)
        return torch.full((n_members,), 1 / n_members), 0.0

    def forward(self, mouse_id: str, image: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        """Standardised responses (B, N)."""
        weights, bias = self.combination(mouse_id)
        members = torch.stack([twin.pre_activation(mouse_id, image, behavior, pupil_center) for twin in self.twins])
        return response_from((members * weights[:, None, None]).sum(0) + bias)  # (M, B, N) -> (B, N)


def _check_same_mice(first: dict[str, Mouse], other: dict[str, Mouse], member: int) -> None:
    if list(first) != list(other):
        raise ConfigError(f"member {member} has other mice than member 0", got=list(other), expected=list(first))
    for mouse_id, mouse in first.items():
        same = (
            mouse.image_shape == other[mouse_id].image_shape
            and np.array_equal(mouse.neuron_ids, other[mouse_id].neuron_ids)
            and mouse.data_hash == other[mouse_id].data_hash
            and mouse.standardized_inputs == other[mouse_id].standardized_inputs
        )
        if not same:
            raise ConfigError(
                f"member {member} knows another recording of mouse {mouse_id!r} than member 0",
                hint="Members of an ensemble are trained on the same recordings.",
            )
