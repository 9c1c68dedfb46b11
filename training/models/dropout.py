"""Dropout with cheap masks on a CPU: 16 random bits per element instead of a float.

On a CPU, torch draws one random float per element, on one core, at 16 ns each: more than everything else that is done
to an attention weight. Here the bits come from SFC64, which each call seeds from torch's own generator, so that
`torch.manual_seed` controls them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Dropout", "RandomBits", "draw_seed", "keep_probability"]

_LEVELS = 2**16


def keep_probability(rate: float) -> float:
    """1 - rate rounded to 16 bits: within 2^-17 of it, and exactly what kept elements are divided by."""
    return 1 - round(rate * _LEVELS) / _LEVELS


def draw_seed() -> int:
    """A seed from torch's generator."""
    return int(torch.randint(2**63 - 1, ()))


class RandomBits:
    """A stream of independent random decisions, determined by the seed."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.SFC64(seed)

    def keep(self, rate: float, out: Tensor) -> Tensor:
        """Fills a contiguous tensor with 1 where an element is kept, and 0 elsewhere."""
        n = out.numel()
        words = self._generator.random_raw(-(-n // 4)).view(np.int16)[:n]
        # As int16 the words are uniform from -2^15, so this many levels are dropped.
        return torch.ge(torch.from_numpy(words).view(out.shape), round(rate * _LEVELS) - _LEVELS // 2, out=out)


class Dropout(nn.Module):
    """Zeroes elements with probability `p`, independently, and divides the others by `keep_probability(p)`."""

    # "eager" is torch's own dropout, which also runs on a GPU: the slow baseline of the benchmarks.
    kernel: Literal["fused", "eager"] = "fused"

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.kernel == "eager" or x.device.type != "cpu":
            return F.dropout(x, self.p)
        return x * self._kept(x) * (1 / keep_probability(self.p))

    @torch.compiler.disable  # the bits come from numpy
    def _kept(self, x: Tensor) -> Tensor:
        return RandomBits(draw_seed()).keep(self.p, torch.empty(x.shape, dtype=x.dtype))

    def extra_repr(self) -> str:
        return f"p={self.p}"
