"""The readout for GPUs, which multiplies every token with every neuron's features.

That is 12 % more operations than the core has, at the published size, where `training.export.modules.readout` has
hardly any; but a matrix product runs at the rate of the core, and a neuron then reads four numbers in place of four
tokens: a third of the time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.export.modules.aligned import ALIGNMENT, aligned_width
from training.export.modules.readout import GatherReadout
from training.models import Twin

__all__ = ["AlignedReadout"]


class AlignedReadout(GatherReadout):
    """Feature map of an aligned core (B, rows, columns, W), pupil centre (B, 2), neurons (n,) -> pre-activation (B, n).

    Args:
        dtype: of the feature map and of the products; the rest is float32.
    """

    half_size: Tensor
    side: Tensor
    last: Tensor
    to_corner: Tensor

    def __init__(self, twin: Twin, mouse_id: str, *, dtype: torch.dtype) -> None:
        super().__init__(twin, mouse_id)
        dim = self.features.shape[1]
        self.features = F.pad(self.features, (0, aligned_width(dim) - dim)).to(dtype)  # (N, W)
        sizes = torch.tensor([self.columns, self.rows])
        for name, tensor in (
            ("half_size", 0.5 * (sizes - 1)[:, None]),  # (2, 1), of x and y
            ("last", (sizes - 2).clamp(min=0).float()[:, None]),  # the last place of a square
            ("side", torch.tensor([0.0, 1.0])[:, None, None]),  # (2, 1, 1): left or top, right or bottom
            ("to_corner", torch.tensor(self.steps)[:, None]),  # (4, 1)
        ):
            self.register_buffer(name, tensor)

    def forward(self, feature_map: Tensor, pupil_center: Tensor, neurons: Tensor) -> Tensor:
        first, weight = self.squares(pupil_center, neurons)
        batch, n = feature_map.shape[0], neurons.shape[0]
        columns = (n + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        asked = torch.cat([neurons, neurons.new_zeros(ALIGNMENT)])[:columns]
        products = feature_map.flatten(0, 2) @ self.features.index_select(0, asked).transpose(0, 1)
        products = products.reshape(batch, self.rows * self.columns * columns)
        places = (first * columns + torch.arange(n, device=first.device)).expand(batch, -1)  # (B, n)
        seen = products.gather(1, (places[:, None] + self.to_corner * columns).flatten(1)).float()  # (B, 4 n)
        return (seen.unflatten(1, (4, -1)) * weight).sum(1) + self.bias.index_select(0, neurons)  # (B, n)

    def squares(self, pupil_center: Tensor, neurons: Tensor) -> tuple[Tensor, Tensor]:
        """As `square`, with few operators: the first token (B, n), and the weights of all four (B, 4, n)."""
        position = self.mu.index_select(0, neurons).transpose(0, 1)[None]  # (1, 2, n)
        if self.shifter is not None:
            position = position + self.shifter(pupil_center)[:, :, None]  # (B, 2, n)
        place = (position + 1) * self.half_size
        first = torch.minimum(F.relu(place.floor()), self.last)
        sides = F.relu(1 - ((place - first)[:, None] - self.side).abs())  # (B, 2, 2, n): which side, of which axis
        weight = (sides[:, :, None, 0] * sides[:, None, :, 1]).flatten(1, 2)
        return (first[:, 1] * self.columns + first[:, 0]).to(torch.int64), weight
