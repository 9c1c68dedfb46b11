"""A learned ensemble: a linear layer over the pre-activations of frozen members is fitted.

The reference code's ensemble modes are the mean (no fit), one linear layer for all mice, or one per mouse.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from training.arguments import add_output, add_recordings
from training.checkpoints.ensemble import Combination, Ensemble, load_ensemble, save_ensemble
from training.data.batches import batches_of
from training.data.mouse import by_mouse, open_recordings
from training.data.recordings import Recording
from training.errors import ConfigError
from training.models.twin import response_from
from training.trainer.loss import poisson_loss

__all__ = ["add_arguments", "fit_combinations", "run"]

MAX_TRIALS = 1000  # of a mouse: enough for a layer of a few weights, and more would only take memory


def fit_combinations(
    ensemble: Ensemble, recordings: Sequence[Recording], *, layer: Literal["shared", "per_mouse"]
) -> dict[str, Combination]:
    """Weights and bias per mouse that minimise the Poisson loss on training trials, with frozen members.

    Raises:
        ConfigError: a mouse of the ensemble has no recording.
    """
    given = by_mouse(recordings)
    if missing := [mouse_id for mouse_id in ensemble.mice if mouse_id not in given]:
        raise ConfigError(f"no recording of mouse {missing[0]!r} was given", got=sorted(given))
    samples = {mouse_id: _pre_activations(ensemble, given[mouse_id]) for mouse_id in ensemble.mice}
    if layer == "per_mouse":
        return {mouse_id: _fit([sample]) for mouse_id, sample in samples.items()}
    shared = _fit(list(samples.values()))
    return dict.fromkeys(ensemble.mice, shared)


def _pre_activations(ensemble: Ensemble, recording: Recording) -> tuple[Tensor, Tensor]:
    """The members' pre-activations (M, T, N) and standardised responses (T, N) of training trials."""
    indices = recording.tier("train").indices
    if len(indices) > MAX_TRIALS:
        indices = indices[np.linspace(0, len(indices) - 1, MAX_TRIALS).round().astype(int)]
    ensemble.eval()
    members, responses = [], []
    with torch.no_grad():
        batches = batches_of(recording, indices, torch.device("cpu"), progress=f"mouse {recording.mouse_id}")
        for _, (*inputs, response) in batches:
            members.append(ensemble.pre_activations(recording.mouse_id, *inputs))
            responses.append(response)
    return torch.cat(members, dim=1), torch.cat(responses)


def _fit(samples: Sequence[tuple[Tensor, Tensor]]) -> Combination:
    n_members = len(samples[0][0])
    weights = torch.full((n_members,), 1 / n_members, requires_grad=True)  # starts from the mean
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
    parser.add_argument("checkpoints", nargs="+", type=Path, help="a run, or checkpoints; they are not changed")
    add_recordings(parser, "recordings to fit on")
    add_output(parser, "folder to write", metavar="ENSEMBLE")
    layer = "one linear layer for all mice, or one per mouse (default: shared)"
    parser.add_argument("--layer", choices=["shared", "per_mouse"], default="shared", help=layer)


def run(args: argparse.Namespace) -> int:
    ensemble = load_ensemble(args.checkpoints)
    combinations = fit_combinations(
        ensemble, open_recordings(args.recordings, nan_trials=args.nan_trials), layer=args.layer
    )
    save_ensemble(args.output, Ensemble(ensemble.members, combinations))
    for mouse_id, combination in combinations.items():
        weights = ", ".join(f"{weight:.3f}" for weight in combination.weights)
        print(f"mouse {mouse_id}: weights {weights}, bias {combination.bias:.3f}")
    return 0
