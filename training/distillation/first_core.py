"""The student's first core: where it is built like the teacher's, it starts from the weights of one of its members."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.models import Twin
from training.models.tokenizer import PatchTokenizer
from training.models.vit import ViTCore

__all__ = ["first_core"]

POSITION = "tokenizer.position"


def first_core(student: Twin, member: Twin) -> list[str]:
    """Copies the weights of the core that have the same name and shape, of the same mice; returns their names.

    A transformer's blocks are the member's first ones. Its positions are those of the member's tokens at the same
    place of the image, or between them.
    """
    ours, theirs = student.core.state_dict(), member.core.state_dict()
    own = {*student.own_core_parameters(), *member.own_core_parameters()}
    taken = {name: theirs[name] for name in ours if name in theirs and theirs[name].shape == ours[name].shape}
    taken = {
        name: weights for name, weights in taken.items() if name not in own or list(student.mice) == list(member.mice)
    }
    if isinstance(student.core, ViTCore) and isinstance(member.core, ViTCore):
        taken.pop(POSITION, None)
        if ours[POSITION].shape[1] == theirs[POSITION].shape[1]:
            taken[POSITION] = _positions(student.core, member.core)
    student.core.load_state_dict({**ours, **taken})
    return list(taken)


def _positions(student: ViTCore, member: ViTCore) -> Tensor:
    """(1 + L, D): the cls token's, and those at the middles of the student's patches."""
    theirs, ours = member.tokenizer, student.tokenizer
    assert isinstance(theirs, PatchTokenizer)
    assert isinstance(ours, PatchTokenizer)
    grid = theirs.position[1:].detach().T.unflatten(1, theirs.grid)[None]  # (1, D, rows, columns)
    places = []
    for n, n_theirs in zip(ours.grid, theirs.grid, strict=True):
        middle = torch.arange(n) * ours.stride + (ours.patch_size - theirs.patch_size) / 2
        places.append(2 * middle / theirs.stride / max(n_theirs - 1, 1) - 1)
    rows, columns = torch.meshgrid(*places, indexing="ij")
    at = torch.stack([columns, rows], dim=-1)[None].to(grid)  # (1, rows, columns, 2), x and y
    sampled = F.grid_sample(grid, at, align_corners=True, padding_mode="border")[0].flatten(1).T
    return torch.cat([theirs.position[:1].detach(), sampled])
