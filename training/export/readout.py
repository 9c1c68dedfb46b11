"""The readout as it is served: the Gaussian readout at `mu`, by gathering tokens, for any list of neurons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.models import Twin

__all__ = ["Corner", "GatherReadout", "TouchedTokens"]


class Corner(NamedTuple):
    """One of the four tokens around each neuron's position; tensors are (B, n), or (1, n) where no gaze moves them.

    Attributes:
        token: position in the flat map.
        inside: whether it is on the map at all.
        weight_x, weight_y: the token's weight is their product.
        side_x, side_y: -1 (left, top) or 1 (right, bottom), which is also the weights' slope.
    """

    token: Tensor
    inside: Tensor
    weight_x: Tensor
    weight_y: Tensor
    side_x: int
    side_y: int

    @property
    def weight(self) -> Tensor:
        return torch.where(self.inside, self.weight_x * self.weight_y, 0.0)

    def index(self, batch: int, n_tokens: int) -> Tensor:
        """Where the token is in the tokens of a whole batch, (B n,); token 0 stands for what is outside."""
        first = torch.arange(batch, device=self.token.device)[:, None] * n_tokens  # (B, 1)
        return (first + torch.where(self.inside, self.token, 0)).flatten()


class GatherReadout(nn.Module):
    """Feature map (B, rows, columns, D), pupil (B, 2), neurons (n,) -> pre-activation (B, n).

    On channel-last features the bilinear sample is four gathered tokens and a weighted sum; a corner outside the map
    has weight zero, which is grid_sample's zero padding.
    """

    mu: Tensor
    features: Tensor
    bias: Tensor

    def __init__(self, twin: Twin, mouse_id: str) -> None:
        super().__init__()
        readout = twin.readout(mouse_id)
        _, self.rows, self.columns = twin.core.output_shape
        for name, tensor in (("mu", readout.mu), ("features", readout.features), ("bias", readout.bias)):
            self.register_buffer(name, tensor.detach().clone())
        self.shifter = twin.shifter(mouse_id)

    def forward(self, feature_map: Tensor, pupil_center: Tensor, neurons: Tensor) -> Tensor:
        features = self.features.index_select(0, neurons)  # (n, D)
        total = self.bias.index_select(0, neurons)[None]
        for corner in self.corners(pupil_center, neurons):
            total = total + corner.weight * (self.sample(feature_map, corner) * features).sum(-1)
        return total  # (B, n)

    def sample(self, feature_map: Tensor, corner: Corner) -> Tensor:
        """The tokens at one corner, (B, n, D)."""
        batch = feature_map.shape[0]
        tokens = feature_map.flatten(0, 2)  # (B rows columns, D)
        return tokens.index_select(0, corner.index(batch, self.rows * self.columns)).unflatten(0, (batch, -1))

    def corners(self, pupil_center: Tensor, neurons: Tensor) -> Iterator[Corner]:
        """The four tokens that each neuron reads."""
        mu = self.mu.index_select(0, neurons)[None]  # (1, n, 2)
        if self.shifter is not None:
            mu = mu + self.shifter(pupil_center)[:, None]  # (B, n, 2)
        # [-1, 1] is from the first to the last row's centre (align_corners).
        x = (mu[..., 0] + 1) * (0.5 * (self.columns - 1))
        y = (mu[..., 1] + 1) * (0.5 * (self.rows - 1))
        left, top = x.floor(), y.floor()
        for column, weight_x, side_x in ((left, left + 1 - x, -1), (left + 1, x - left, 1)):
            for row, weight_y, side_y in ((top, top + 1 - y, -1), (top + 1, y - top, 1)):
                inside = (column >= 0) & (column <= self.columns - 1) & (row >= 0) & (row <= self.rows - 1)
                token = (row * self.columns + column).to(torch.int64)
                yield Corner(token, inside, weight_x, weight_y, side_x, side_y)


class TouchedTokens(nn.Module):
    """Pupil (B, 2), neurons (n,) -> the tokens that the readout reads (B, 4 n); -1 is outside the map.

    Without a shifter the tokens are the same for every sample, and B is 1.
    """

    def __init__(self, twin: Twin, mouse_id: str) -> None:
        super().__init__()
        self.readout = GatherReadout(twin, mouse_id)

    def forward(self, pupil_center: Tensor, neurons: Tensor) -> Tensor:
        corners = self.readout.corners(pupil_center, neurons)
        return torch.cat([torch.where(corner.inside, corner.token, -1) for corner in corners], dim=1)
