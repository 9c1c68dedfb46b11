"""The training loss of one mouse's batch (paper, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["poisson_loss"]

# Added to responses and predictions before the logarithm, as the reference code does.
EPS = torch.finfo(torch.float32).eps


def poisson_loss(
    predictions: Tensor, responses: Tensor, *, n_trials: int | None = None, batch_size: int | None = None
) -> Tensor:
    """Poisson loss, summed over batch and neurons: sum of y - r log y.

    Args:
        predictions, responses: (B, N), standardised.
        n_trials: training trials of this mouse; if given, the loss is scaled by sqrt(n_trials / batch_size).
        batch_size: of the whole update, if this is a part of it; by default B.
    """
    predictions, responses = predictions + EPS, responses + EPS
    loss = (predictions - responses * predictions.log()).sum()
    return loss if n_trials is None else loss * (n_trials / (batch_size or len(responses))) ** 0.5
