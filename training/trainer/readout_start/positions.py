"""Moves readout positions to where maps are high: a position network for all neurons at once, or free positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.models.readout import GaussianReadout
from training.trainer.readout_start.energy_maps import peaks

__all__ = ["fit_network"]

TO_PEAKS, TO_MAPS = 300, 700  # steps of fitting the position network: to the peaks, then to the maps
PEAK_RATE, MAP_RATE = 0.01, 0.003  # learning rates of Adam


def fit_network(readout: GaussianReadout, maps: Tensor, weights: Tensor) -> None:
    """Fits the position network so that every neuron looks where its map is high.

    First to the maps' peaks, in proportion to the weights; then all neurons climb their maps together, so that a neuron
    without a clear peak follows its neighbours. Nothing is moved if all weights are zero.

    Args:
        maps: (N, rows, columns), of the places from -1 to 1.
        weights: (N,), not negative.
    """
    assert readout.position_network is not None
    if float(weights.sum()) <= 0:
        return
    weights = weights[:, None] / weights.sum()
    places = peaks(maps)
    optimizer = torch.optim.Adam(readout.position_network.parameters(), lr=PEAK_RATE)
    for step in range(TO_PEAKS + TO_MAPS):
        optimizer.zero_grad()
        mu = readout.mu
        if step < TO_PEAKS:
            loss = (weights * (mu - places).abs()).sum()
        else:
            optimizer.param_groups[0]["lr"] = MAP_RATE
            seen = F.grid_sample(maps[:, None], mu[:, None, None], align_corners=True, padding_mode="border")
            loss = -seen.mean()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
