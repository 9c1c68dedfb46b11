"""A learned ensemble: the members stay as they are, and a linear layer over their pre-activations is fitted.

The reference's ensemble modes: the mean (no fit), one linear layer for all mice, or one per mouse.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.checkpoints.ensemble import Combination, Ensemble, load_ensemble, save_ensemble
from training.data.batches import read_batch
from training.data.mouse import open_recordings
from training.data.recordings import Recording
from training.errors import ConfigError
from training.models.twin import response_from
from training.trainer.loss import poisson_loss

__all__ = ["add_arguments", "fit_combinations", "run"]

# A layer of a few weights is settled by this many trials of a mouse; more would only take memory.
MAX_TRIALS = 1000
BATCH = 32


def fit_combinations(
    ensemble: Ensemble, recordings: Sequence[Recording], *, layer: Literal["shared", "per_mouse"]
) -> dict[str, Combination]:
    """Weights and bias per mouse that minimise the Poisson loss on training trials; members are frozen.

    Raises:
        ConfigError: a mouse of the ensemble has no recording.
    """
    by_mouse = {recording.mouse_id: recording for recording in recordings}
    missing = [mouse_id for mouse_id in ensemble.mice if mouse_id not in by_mouse]
    if missing:
        raise ConfigError(f"no recording of mouse {missing[0]!r} was given", got=sorted(by_mouse))
    samples = {mouse_id: _pre_activations(ensemble, by_mouse[mouse_id]) for mouse_id in ensemble.mice}
    if layer == "per_mouse":
        return {mouse_id: _fit([sample]) for mouse_id, sample in samples.items()}
    shared = _fit(list(samples.values()))
    return dict.fromkeys(ensemble.mice, shared)


def _pre_activations(ensemble: Ensemble, recording: Recording) -> tuple[Tensor, Tensor]:
    """Members' pre-activations (M, T, N) and standardised responses (T, N) of training trials."""
    indices = recording.tier("train").indices
    if len(indices) > MAX_TRIALS:
        indices = indices[np.linspace(0, len(indices) - 1, MAX_TRIALS).round().astype(int)]
    ensemble.eval()
    members, responses = [], []
    with torch.no_grad():
        for start in tqdm(range(0, len(indices), BATCH), desc=f"mouse {recording.mouse_id}", leave=False, disable=None):
            part = indices[start : start + BATCH]
            image, behavior, pupil_center, response = read_batch(recording, part, torch.device("cpu"))
            members.append(ensemble.pre_activations(recording.mouse_id, image, behavior, pupil_center))
            responses.append(response)
    return torch.cat(members, dim=1), torch.cat(responses)


def _fit(samples: Sequence[tuple[Tensor, Tensor]]) -> Combination:
    n_members = len(samples[0][0])
    weights = torch.full((n_members,), 1 / n_members, requires_grad=True)  # from the mean, the reference's default
    bias = torch.zeros((), requires_grad=True)
    n_values = sum(response.numel() for _, response in samples)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for members, response in samples:
            combined = torch.einsum("m,mtn->tn", weights, members) + bias
            total = total + poisson_loss(response_from(combined), response) / n_values
        total.backward()
        return total

    optimizer.step(loss)
    return Combination(tuple(weights.detach().tolist()), float(bias.detach()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoints", nargs="+", type=Path, help="a run, or checkpoints; they stay as they are")
    parser.add_argument("--recordings", nargs="+", required=True, type=Path, metavar="DIR", help="to fit on")
    parser.add_argument("--output", required=True, type=Path, metavar="ENSEMBLE", help="folder to write")
    parser.add_argument(
        "--layer", choices=["shared", "per_mouse"], default="shared", help="one linear layer for all mice, or one each"
    )


def run(args: argparse.Namespace) -> int:
    ensemble = load_ensemble(args.checkpoints)
    combinations = fit_combinations(ensemble, open_recordings(args.recordings), layer=args.layer)
    save_ensemble(args.output, Ensemble(ensemble.members, combinations))
    for mouse_id, combination in combinations.items():
        weights = ", ".join(f"{weight:.3f}" for weight in combination.weights)
        print(f"mouse {mouse_id}: weights {weights}, bias {combination.bias:.3f}")
    return 0
