"""Gaussian readout (Lurz et al. 2021): each neuron's position in the feature map and its weights of the features."""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import ReadoutConfig
from training.data.mouse import Mouse
from training.errors import ConfigError

__all__ = ["GaussianReadout"]


class GaussianReadout(nn.Module):
    """Feature map (B, D, h, w) and shift (B, 2) -> pre-activation (B, N), for one mouse.

    In training, positions are drawn from a Gaussian around `mu` with full covariance. In evaluation they are `mu`.
    """

    MU_RANGE = 0.3  # of the initial free positions
    SIGMA_RANGE = 0.1

    def __init__(self, *, config: ReadoutConfig, mouse: Mouse, n_features: int) -> None:
        super().__init__()
        n_neurons = mouse.n_neurons
        self.l1 = config.l1
        self.features = nn.Parameter(torch.full((n_neurons, n_features), 1 / n_features))
        self.bias = nn.Parameter(torch.from_numpy(initial_bias(config, mouse)))
        self.sigma = nn.Parameter(torch.empty(n_neurons, 2, 2).uniform_(-self.SIGMA_RANGE, self.SIGMA_RANGE))
        self.position_network: nn.Sequential | None = None
        if config.position == "free":
            self.free_mu = nn.Parameter(torch.empty(n_neurons, 2).uniform_(-self.MU_RANGE, self.MU_RANGE))
        else:
            n_axes = len(config.coordinates)
            self.register_buffer("source_grid", torch.from_numpy(source_grid(mouse.neuron_coordinates[:, :n_axes])))
            widths = [n_axes, *[config.hidden] * config.hidden_layers]
            hidden = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ELU())]
            self.position_network = nn.Sequential(*hidden, nn.Linear(config.hidden, 2), nn.Tanh())

    @property
    def mu(self) -> Tensor:
        """(N, 2), x and y in [-1, 1]: the position of each neuron's receptive field in the feature map."""
        if self.position_network is not None:
            return self.position_network(self.source_grid)
        return self.free_mu.clamp(-1, 1)

    def forward(self, feature_map: Tensor, shift: Tensor | None) -> Tensor:
        positions = self.mu.expand(feature_map.shape[0], -1, -1)  # (B, N, 2)
        if self.training:
            noise = torch.randn_like(positions)
            positions = (positions + torch.einsum("nij,bnj->bni", self.sigma, noise)).clamp(-1, 1)
        if shift is not None:
            positions = positions + shift[:, None]  # after the clamp: outside of the map, features are zero
        sampled = F.grid_sample(feature_map, positions[:, :, None], align_corners=True)[..., 0]  # (B, D, N)
        return torch.einsum("bdn,nd->bn", sampled, self.features) + self.bias

    def regularizer(self) -> Tensor:
        """L1 over the weights of the features."""
        return self.l1 * self.features.abs().sum()


def source_grid(coordinates: np.ndarray) -> np.ndarray:
    """Cortical coordinates (N, axes) [um], centred per axis and divided by the largest absolute value of all axes."""
    centered = coordinates - coordinates.mean(axis=0, keepdims=True)
    largest = np.abs(centered).max()
    # With one neuron, or all at one position, there is nothing to divide by.
    return (centered / largest if largest > 0 else centered).astype(np.float32)


def initial_bias(config: ReadoutConfig, mouse: Mouse) -> np.ndarray:
    """(N,) float32, zero or from the mouse's response statistics."""
    # A mouse without a recording is not trained: its bias is among the imported weights.
    if config.bias == "zero" or mouse.standardized_inputs:
        return np.zeros(mouse.n_neurons, np.float32)
    if mouse.response_mean is None or mouse.response_std is None:
        raise ConfigError(
            f"readout.bias '{config.bias}' needs response statistics, which mouse {mouse.mouse_id!r} lacks",
            hint="Give its recording, or set readout.bias to 'zero'.",
        )
    mean = mouse.response_mean if config.bias == "mean" else mouse.response_mean / mouse.response_std
    return mean.astype(np.float32)
