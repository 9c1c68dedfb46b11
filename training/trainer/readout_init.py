"""Initial readouts of new mice on a frozen core: ridge regression of responses on the core's feature maps.

A readout that starts at random spends most of its updates on finding where the neurons look. With the maps known, how
well a place of the map predicts a neuron is a linear regression, whose Gram matrix is the same for all neurons. The
position network is then fitted to the scores of all neurons at once, so that neurons which hardly respond look where
their neighbours do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from training.config import TrainingConfig
from training.data.recordings import Recording
from training.errors import ConfigError
from training.models import Twin
from training.models.readout import GaussianReadout
from training.trainer.transfer import FeatureMaps

__all__ = ["Trials", "fit_first_readout", "fit_first_readouts", "score_places"]

RIDGES = (0.03, 0.3, 3.0)  # of the features' mean variance
HELD_OUT = 5  # every 5th training trial scores places and ridges; validation trials are for early stopping only
TO_PLACES, TO_SCORES = 300, 700  # steps of fitting the position network: to the best places, then to the scores


def fit_first_readouts(
    twin: Twin, maps: FeatureMaps | None, recordings: Mapping[str, Recording], training: TrainingConfig
) -> bool:
    """Fits every mouse's readout, if `training.readout_start` asks for it; returns whether it did.

    Raises:
        ConfigError: a regression is required, but there are no maps to fit on.
    """
    if training.readout_start == "random" or (training.readout_start == "auto" and maps is None):
        return False
    if maps is None:
        raise ConfigError(
            "training.readout_start 'regression' needs a frozen core whose feature maps are fixed and fit into memory",
            hint="Give --core CHECKPOINT --freeze-core, or set training.readout_start to 'auto'.",
        )
    for recording in recordings.values():
        fit_first_readout(twin, maps, recording)
    return True


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
        _fit_features(readout, both, ridge, _nearest(readout.mu, grid))
        if (shifter := twin.shifter(recording.mouse_id)) is not None:
            last = [layer for layer in shifter.modules() if isinstance(layer, nn.Linear)][-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)


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
    """Moves `mu` to where the scores are high: the position network, or the free positions."""
    rows, columns = scores.shape[1:]
    best = scores.flatten(1).argmax(1)
    places = torch.stack([_axis(best % columns, columns), _axis(best // columns, rows)], dim=1)  # (N, 2), x and y
    if readout.position_network is None:
        with torch.no_grad():
            readout.free_mu.copy_(places)
        return
    weights = scores.amax(dim=(1, 2)).clamp(min=0).square()[:, None]
    weights = weights / weights.sum().clamp(min=1e-12)
    optimizer = torch.optim.Adam(readout.position_network.parameters(), lr=0.01)
    for step in range(TO_PLACES + TO_SCORES):
        mu = readout.mu
        if step < TO_PLACES:
            loss = (weights * (mu - places).abs()).sum()
        else:
            seen = F.grid_sample(scores[:, None], mu[:, None, None], align_corners=True, padding_mode="border")
            loss = -seen.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _fit_features(readout: GaussianReadout, trials: Trials, ridge: float, places: Tensor) -> None:
    """Sets features and bias to those of the regression at each neuron's place, before ELU + 1.

    At a mean response r the slope of ELU + 1 is min(r, 1), so the regression's weights are divided by it.
    """
    for place, neurons in _by_place(places):
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


def _axis(index: Tensor, n: int) -> Tensor:
    """Index 0 ... n - 1 to coordinate -1 ... 1."""
    return 2 * index / max(n - 1, 1) - 1
