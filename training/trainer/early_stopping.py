"""When to lower the learning rate and when to stop (paper, section 4.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Plateau"]


@dataclass
class Plateau:
    """Early stopping on a validation score; higher is better.

    After more than `patience` epochs without a new best score, the learning rate is reduced and the best weights are
    restored. After `max_reductions` reductions without a new best score, training stops.
    """

    patience: int
    max_reductions: int
    best: float = -math.inf
    best_epoch: int = 0
    waited: int = 0
    reductions: int = 0

    def update(self, score: float, epoch: int) -> Literal["improved", "wait", "reduce", "stop"]:
        """What to do after an epoch with this validation score."""
        if score > self.best:
            self.best, self.best_epoch = score, epoch
            self.waited = self.reductions = 0
            return "improved"
        if self.waited < self.patience:
            self.waited += 1
            return "wait"
        if self.reductions >= self.max_reductions:
            return "stop"
        self.reductions += 1
        self.waited = 0
        return "reduce"

    def state_dict(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("best", "best_epoch", "waited", "reductions")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, key, value)
