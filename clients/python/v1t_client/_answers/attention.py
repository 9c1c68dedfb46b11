"""Attention rollout maps: where the core of the twin looks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from v1t_client._answers.html import html_card, origin_facts
from v1t_client._answers.notes import Note
from v1t_client._answers.prediction import Model, count

__all__ = ["Attention"]


@dataclass(frozen=True, eq=False, repr=False)
class Attention:
    """Attention rollout maps, one per image and member.

    Attributes:
        maps: (B, M, h, w) float32 in [0, 1], at the size of the core's input image.
        mouse: mouse id.
        model: the bundle that computed it.
        assumed: what the server filled in or changed, one sentence each.
        state, notes: as in a prediction.
        request_id: identifies the request in the server's log.
    """

    maps: npt.NDArray[np.float32]
    mouse: str
    model: Model
    assumed: tuple[str, ...] = field(default=())
    state: str | None = None
    notes: tuple[Note, ...] = field(default=())
    request_id: str | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.maps)

    def __repr__(self) -> str:
        n_images, n_members, h, w = self.maps.shape
        lines = [
            f"<Attention: mouse {self.mouse!r}, {count(n_images, 'image')} x {count(n_members, 'member')}, {h} x {w}>",
            f"  model    {self.model.name} {self.model.hash[:12]}",
        ]
        lines += [f"  assumed  {line}" for line in self.assumed]
        return "\n".join([*lines, *(f"  note     {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        n_images, n_members, h, w = self.maps.shape
        title = f"Attention: {count(n_images, 'image')} x {count(n_members, 'member')}, {h} x {w}"
        return html_card(title, origin_facts(self))

    def mean(self) -> npt.NDArray[np.float32]:
        """(B, h, w), the mean over members."""
        return self.maps.mean(axis=1)
