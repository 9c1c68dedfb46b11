"""Initial readouts of new mice on a frozen core: ridge regression of responses on the core's feature maps.

A readout that starts at random spends most of its updates on finding where the neurons look. With the maps known, how
well a place of the map predicts a neuron is a linear regression, whose Gram matrix is the same for all neurons. The
position network is then fitted to the scores of all neurons at once, so that neurons which hardly respond look where
their neighbours do.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from training.data.recordings import Recording
from training.models import Twin
from training.models.readout import GaussianReadout
from training.trainer.readout_start.energy_maps import peaks
from training.trainer.readout_start.positions import fit_network
from training.trainer.transfer import FeatureMaps

__all__ = ["Trials", "fit_features", "fit_first_readout", "score_places"]

RIDGES = (0.03, 0.3, 3.0)  # of the features' mean variance
HELD_OUT = 5  # every 5th training trial scores places and ridges; validation trials are for early stopping only


def fit_first_readout(twin: Twin, maps: FeatureMaps, recording: Recording) -> None:
    """Sets positions, features and bias of one mouse's readout; the shift with the gaze becomes zero."""
    readout, device = twin.readout(recording.mouse_id), next(twin.parameters()).device
    trials, grid = recording.tier("train").indices, twin.core.output_shape[1:]
    scoring = np.arange(len(trials)) % HELD_OUT == 0
    fitted, held_out, both = (
        Trials(maps, recording, some, device) for some in (trials[~scoring], trials[scoring], trials)
    )
    scores, ridge = score_places(fitted, held_out, *grid)
    _fit_positions(readout, scores)
    with torch.no_grad():
        fit_features(readout, both, ridge, grid)
    twin.stop_shifts(recording.mouse_id)


class Trials:
    """Trials of one mouse: their features at one place at a time, and their standardised responses (T, N)."""

    def __init__(self, maps: FeatureMaps, recording: Recording, trials: np.ndarray, device: torch.device) -> None:
        self._maps, self._mouse_id, self._trials = maps, recording.mouse_id, trials
        standardized = recording.responses(trials) / recording.response_std
        self.responses = torch.from_numpy(standardized.astype(np.float32)).to(device)
        self.mean_response = self.responses.mean(0)

    def features(self, place: tuple[int, int]) -> Tensor:
        """Features at one row and column, (T, D)."""
        return self._maps.at(self._mouse_id, self._trials, place)

    def moments(self, place: tuple[int, int], neurons: Tensor | slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean features (D,), principal axes (D, D), variances (D,), and covariances with responses (D, N')."""
        features = self.features(place)
        mean = features.mean(0)
        features = features - mean  # the responses need not be centred as well
        variances, axes = torch.linalg.eigh(features.T @ features / len(features))
        return mean, axes, variances.clamp(min=0), axes.T @ (features.T @ self.responses[:, neurons]) / len(features)


def score_places(fitted: Trials, held_out: Trials, rows: int, columns: int) -> tuple[Tensor, float]:
    """How well each place predicts each neuron's held-out responses, (N, rows, columns), and the best ridge.

    Scores are correlations over single trials; a neuron whose held-out responses do not vary has 0 everywhere.
    """
    places = [(i, j) for i in range(rows) for j in range(columns)]
    target = F.normalize(held_out.responses - held_out.mean_response, dim=0)  # (V, N)
    scores = torch.empty(len(RIDGES), target.shape[1], len(places), device=target.device)
    for p, place in enumerate(tqdm(places, desc="fitting readout positions", unit="place", leave=False, disable=None)):
        _, axes, variances, covariances = fitted.moments(place, slice(None))
        features = held_out.features(place) @ axes  # (V, D)
        features = features - features.mean(0)
        gram, agreement = features.T @ features, features.T @ target  # (D, D), (D, N)
        for r, ridge in enumerate(RIDGES):
            weights = _solve(variances, covariances, ridge)  # (D, N)
            size = (weights * (gram @ weights)).sum(0).clamp(min=1e-20).sqrt()  # norm of the predictions
            scores[r, :, p] = (weights * agreement).sum(0) / size
    best = int(scores.amax(dim=2).mean(dim=1).argmax())
    return scores[best].unflatten(1, (rows, columns)), RIDGES[best]


def _solve(variances: Tensor, covariances: Tensor, ridge: float) -> Tensor:
    penalized = variances + ridge * variances.mean()
    return covariances / penalized.clamp(min=1e-12)[:, None]  # constant features get no weight


def _fit_positions(readout: GaussianReadout, scores: Tensor) -> None:
    """Moves `mu` to where the scores are high."""
    if readout.position_network is None:
        with torch.no_grad():
            readout.free_mu.copy_(peaks(scores))
    else:
        fit_network(readout, scores, scores.amax(dim=(1, 2)).clamp(min=0).square())


def fit_features(readout: GaussianReadout, trials: Trials, ridge: float, grid: tuple[int, ...]) -> None:
    """Sets features and bias to those of the regression at each neuron's place, before ELU + 1.

    At a mean response r the slope of ELU + 1 is min(r, 1), so the regression's weights are divided by it.

    Args:
        grid: rows and columns of the maps.
    """
    for place, neurons in _by_place(_nearest(readout.mu, grid)):
        mean, axes, variances, covariances = trials.moments(place, neurons)
        response = trials.mean_response[neurons].clamp(min=0.01)
        features = axes @ _solve(variances, covariances, ridge) / response.clamp(max=1)  # (D, N')
        readout.features[neurons] = features.T
        readout.bias[neurons] = torch.where(response < 1, response.log(), response - 1) - mean @ features


def _nearest(mu: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(N, 2), row and column of the place nearest each position."""
    rows, columns = grid
    return torch.stack([(mu[:, 1] + 1) / 2 * (rows - 1), (mu[:, 0] + 1) / 2 * (columns - 1)], dim=1).round().long()


def _by_place(places: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Each place with neurons, and the neurons there."""
    found, which = places.unique(dim=0, return_inverse=True)
    for i, (row, column) in enumerate(found.tolist()):
        yield (row, column), (which == i).nonzero()[:, 0]
