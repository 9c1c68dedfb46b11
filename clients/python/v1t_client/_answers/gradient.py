"""The gradient of a weighted sum of responses with respect to each input."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from v1t_client._answers.html import html_card, origin_facts
from v1t_client._answers.mice import SENSORIUM_BEHAVIOR
from v1t_client._answers.notes import Note
from v1t_client._answers.prediction import Model, count

__all__ = ["Gradient"]


@dataclass(frozen=True, eq=False, repr=False)
class Gradient:
    """d(sum over n of weights times responses) / d(input) for each image, per unit of the recording.

    Attributes:
        image: (B, C, H, W) float32, per grey level.
        behavior: (B, K) float32, per unit of each behaviour channel.
        behavior_channels: names of the K columns of `behavior`; `MouseDetail.behavior` has their units.
        pupil_center: (B, 2) float32, x and y, per eye-camera pixel.
        responses: (B, n) float32, in `units`, as in a prediction.
        neuron_ids: (n,) int64, of the columns of `responses`.
        mouse: mouse id.
        units: "standardized" or "raw", of the responses and so of their derivatives.
        model: the bundle that computed it.
        assumed: what the server filled in or changed, one sentence each.
        state, notes: as in a prediction.
        request_id: identifies the request in the server's log.
    """

    image: npt.NDArray[np.float32]
    behavior: npt.NDArray[np.float32]
    pupil_center: npt.NDArray[np.float32]
    responses: npt.NDArray[np.float32]
    neuron_ids: npt.NDArray[np.int64]
    mouse: str
    units: str
    model: Model
    behavior_channels: tuple[str, ...] = SENSORIUM_BEHAVIOR
    assumed: tuple[str, ...] = field(default=())
    state: str | None = None
    notes: tuple[Note, ...] = field(default=())
    request_id: str | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.image)

    def __repr__(self) -> str:
        n_images, n_neurons = self.responses.shape
        lines = [
            f"<Gradient: mouse {self.mouse!r}, {count(n_images, 'image')}, {count(n_neurons, 'neuron')}>",
            f"  image         {self.image.shape}, largest {np.abs(self.image).max(initial=0):.3g} per grey level",
            *(
                f"  {name:<13} {np.array2string(values, precision=3, threshold=6)}"
                for name, values in (("behavior", self.behavior), ("pupil_center", self.pupil_center))
            ),
            f"  model         {self.model.name} {self.model.hash[:12]}, {count(self.model.members, 'member')}",
        ]
        lines += [f"  assumed       {line}" for line in self.assumed]
        return "\n".join([*lines, *(f"  note          {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        n_images, n_neurons = self.responses.shape
        size = f"{self.image.shape}, largest {np.abs(self.image).max(initial=0):.3g} per grey level"
        facts = [("image", size), *origin_facts(self)]
        return html_card(f"Gradient: {count(n_images, 'image')}, {count(n_neurons, 'neuron')}", facts)
