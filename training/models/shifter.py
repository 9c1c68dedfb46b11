"""The shifter: a small network per mouse, from the pupil centre to a shift of positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Shifter"]


class Shifter(nn.Module):
    """Three dense layers, each followed by tanh: (B, n_inputs) -> (B, 2), x and y in (-scale, scale)."""

    def __init__(self, *, n_inputs: int, hidden: int, scale: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(n_inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 2)])
        self.scale = scale

    def stop(self) -> None:
        """Sets the shift to zero for all inputs; training changes it from there."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x * self.scale
