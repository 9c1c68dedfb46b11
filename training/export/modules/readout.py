"""The readout for serving: the Gaussian readout at `mu`, which gathers tokens, for any list of neurons."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models import Twin

__all__ = ["Corners", "GatherReadout", "TouchedTokens"]


class Corners(NamedTuple):
    """The four tokens around each neuron's position: left top, left bottom, right top, right bottom.

    Attributes:
        token: (4, B, n) positions in the flat map; B is 1 without a shifter.
        inside: (4, B, n), whether they are inside the map.
        weight_x, weight_y: (4, B, n); the weight of a token is their product.
    """

    token: Tensor
    inside: Tensor
    weight_x: Tensor
    weight_y: Tensor

    @property
    def weight(self) -> Tensor:
        """(4, B, n), zero outside the map, like grid_sample's zero padding."""
        return torch.where(self.inside, self.weight_x * self.weight_y, 0.0)

    def flat_tokens(self, batch: int, n_tokens: int) -> Tensor:
        """Positions of the tokens in those of a whole batch, (4, B n); 0 for tokens outside the map."""
        first = torch.arange(batch, device=self.token.device)[:, None] * n_tokens  # (B, 1)
        return (first + torch.where(self.inside, self.token, 0)).flatten(1)


class GatherReadout(nn.Module):
    """Feature map (B, rows, columns, D), pupil centre (B, 2), neurons (n,) -> pre-activation (B, n).

    With channel-last features, the bilinear sample is a weighted sum of four gathered tokens.
    """

    # The column and the row of each corner.
    SIDE_X = (0.0, 0.0, 1.0, 1.0)
    SIDE_Y = (0.0, 1.0, 0.0, 1.0)

    mu: Tensor
    features: Tensor
    bias: Tensor
    side_x: Tensor
    side_y: Tensor

    def __init__(self, twin: Twin, mouse_id: str) -> None:
        super().__init__()
        readout = twin.readout(mouse_id)
        _, self.rows, self.columns = twin.core.output_shape
        for name, tensor in (
            ("mu", readout.mu),
            ("features", readout.features),
            ("bias", readout.bias),
            ("side_x", torch.tensor(self.SIDE_X)[:, None, None]),
            ("side_y", torch.tensor(self.SIDE_Y)[:, None, None]),
        ):
            self.register_buffer(name, tensor.detach().clone())
        self.shifter = twin.shifter(mouse_id)

    def tables(self) -> list[Tensor]:
        """The tensors with a row per neuron."""
        return [self.mu, self.features, self.bias]

    def forward(self, feature_map: Tensor, pupil_center: Tensor, neurons: Tensor) -> Tensor:
        token, (left, right), (top, bottom) = self.square(pupil_center, neurons)
        batch, n_tokens = feature_map.shape[0], self.rows * self.columns
        tokens, features = feature_map.flatten(0, 2), self.features.index_select(0, neurons)
        first = (torch.arange(batch, device=token.device)[:, None] * n_tokens + token).flatten()  # (B n,)
        # One corner at a time: all four would take 20 MB per image with 8,000 neurons.
        seen = [
            (tokens.index_select(0, first + step).unflatten(0, (batch, -1)) * features).sum(-1) for step in self.steps
        ]
        upper, lower = left * seen[0] + right * seen[2], left * seen[1] + right * seen[3]
        return top * upper + bottom * lower + self.bias.index_select(0, neurons)  # (B, n)

    def square(
        self, pupil_center: Tensor, neurons: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Four tokens inside the map with those that each neuron reads: the first one's position, and the weights of
        the left and right column and of the top and bottom row, each (B, n); B is 1 without a shifter.

        A neuron that looks past the edge reads from the outermost tokens what is left of their weight, as far as one
        token away. That is grid_sample's zero padding, without a mask.
        """
        mu = self.mu.index_select(0, neurons)  # (n, 2)
        shift = None if self.shifter is None else self.shifter(pupil_center)  # (B, 2)
        places = []
        for axis, size in enumerate((self.columns, self.rows)):
            half = 0.5 * (size - 1)  # [-1, 1] is from the centre of the first row to that of the last (align_corners)
            position = mu[:, axis][None]
            if shift is not None:
                position = position + shift[:, axis][:, None]  # (B, n)
            place = (position + 1) * half  # in this order, as grid_sample: another one moves it by a rounding
            first = place.floor().clamp(0, max(0, size - 2))
            away = place - first
            places.append((first, (F.relu(1 - away.abs()), F.relu(1 - (away - 1).abs()))))
        (column, horizontal), (row, vertical) = places
        return (row * self.columns + column).to(torch.int64), horizontal, vertical

    @property
    def steps(self) -> list[int]:
        """From the first token of a square to each: left top, left bottom, right top, right bottom."""
        down, right = self.columns * min(1, self.rows - 1), min(1, self.columns - 1)
        return [0, down, right, down + right]

    def seen(self, feature_map: Tensor, corners: Corners, features: Tensor) -> Tensor:
        """The product of each neuron's features (n, D) with the token at each of its corners, (4, B, n)."""
        batch = feature_map.shape[0]
        tokens = feature_map.flatten(0, 2)  # (B rows columns, D)
        index = corners.flat_tokens(batch, self.rows * self.columns)
        # One corner at a time: all four would take 20 MB per image with 8,000 neurons.
        parts = [tokens.index_select(0, index[i]).unflatten(0, (batch, -1)) * features for i in range(4)]
        return torch.stack([part.sum(-1) for part in parts])

    def corners(self, pupil_center: Tensor, neurons: Tensor) -> Corners:
        """The four tokens that each neuron reads."""
        mu = self.mu.index_select(0, neurons)[None]  # (1, n, 2)
        if self.shifter is not None:
            mu = mu + self.shifter(pupil_center)[:, None]  # (B, n, 2)
        # [-1, 1] is from the centre of the first row to that of the last (align_corners).
        x = (mu[..., 0] + 1) * (0.5 * (self.columns - 1))
        y = (mu[..., 1] + 1) * (0.5 * (self.rows - 1))
        column, row = x.floor() + self.side_x, y.floor() + self.side_y  # (4, B, n)
        inside = (column >= 0) & (column <= self.columns - 1) & (row >= 0) & (row <= self.rows - 1)
        token = (row * self.columns + column).to(torch.int64)
        return Corners(token, inside, 1 - (x - column).abs(), 1 - (y - row).abs())


class TouchedTokens(nn.Module):
    """Pupil centre (B, 2), neurons (n,) -> the tokens that the readout reads (B, 4 n); -1 outside the map.

    Without a shifter, the tokens are the same for every sample, and B is 1.
    """

    def __init__(self, twin: Twin, mouse_id: str) -> None:
        super().__init__()
        self.readout = GatherReadout(twin, mouse_id)

    def forward(self, pupil_center: Tensor, neurons: Tensor) -> Tensor:
        corners = self.readout.corners(pupil_center, neurons)
        return torch.where(corners.inside, corners.token, -1).transpose(0, 1).flatten(1)
