"""The strongest images of each neuron, updated batch by batch in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["TopImages"]


@dataclass(frozen=True, eq=False)
class TopImages:
    """The k highest responses of each neuron so far. For the lowest, add the negated responses.

    Attributes:
        responses: (n, k), highest first.
        index: (n, k), which image; -1 where there are fewer than k.
    """

    responses: npt.NDArray[np.float32]
    index: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, n: int, k: int) -> TopImages:
        return cls(np.full((n, k), -np.inf, dtype=np.float32), np.full((n, k), -1, dtype=np.int64))

    def add(self, responses: npt.NDArray[np.float32], first: int) -> None:
        """Adds the responses (B, n) to images first to first + B - 1, in place. Ties keep the earlier image."""
        numbers = np.broadcast_to(np.arange(first, first + len(responses)), responses.T.shape)
        all_responses = np.concatenate([self.responses, responses.T], axis=1)  # (n, k + B)
        all_numbers = np.concatenate([self.index, numbers], axis=1)
        order = np.argsort(-all_responses, axis=1, kind="stable")[:, : self.responses.shape[1]]
        self.responses[:] = np.take_along_axis(all_responses, order, axis=1)
        self.index[:] = np.take_along_axis(all_numbers, order, axis=1)
